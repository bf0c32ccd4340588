"""Rules that a user writes, and rules by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import (
    EXAMPLES,
    KEY,
    LOSS,
    MLP,
    SKIP,
    STEPS,
    TINY,
    WEIGHTS,
    backpropagated,
    backward,
    clip_in_numpy,
    close,
    forward,
    mean_error,
    networks,
    numbers,
)

import functional_nn as fnn
from functional_nn import rules, training
from functional_nn.gradients import draws


@pytest.fixture
def damped_in_tests():
    @rules.register
    def damped_in_tests(factor=0.5):
        return fnn.Rule(f"damped_in_tests({factor})", carry=lambda edge, s: factor * edge.back(s))

    return damped_in_tests


@networks
def test_a_users_rule_is_known_by_its_name(network, damped_in_tests):
    params, inputs, targets = numbers(network)

    def cross(layer, source, s, errors):
        return 0.9 * s @ params[layer]["weights"][source]

    for rule in ("damped_in_tests(0.9)", damped_in_tests(0.9), {"others": "damped_in_tests(factor=0.9)"}):
        found = backpropagated(rule, network, params, inputs, targets, key=None)
        close(found.gradients, backward(network, params, inputs, mean_error(targets), cross)[0])
    assert damped_in_tests(0.9) is rules.get("damped_in_tests(0.9)") and "damped_in_tests" in rules.names()
    with pytest.raises(ValueError, match="rule 'damped_in_tests' is already registered"):
        rules.register(fnn.Rule("damped_in_tests"))


def test_a_rule_that_changes_s_sees_layer_trace_and_parameters():
    """The three parts that may stand together: s changed by what the layer gave, and gradients changed afterwards."""
    rule = fnn.Rule(
        "own",
        weights=lambda edge: 2 * edge.weights,
        alter=lambda place, s: s * place.trace.activations[place.layer.name] * place.share()[:, None],
        learn=lambda place, found: jax.tree.map(lambda x: 3 * x, found),
    )
    params, inputs, targets = numbers(MLP)
    share = WEIGHTS / WEIGHTS.sum()
    a = forward(MLP, params, inputs)[1]
    gradient, _ = backward(
        MLP,
        params,
        inputs,
        mean_error(targets, WEIGHTS),
        lambda layer, source, s, errors: 2 * s @ params[layer]["weights"][source],
        lambda layer, s: s * a[layer] * share[:, None],
    )
    close(
        backpropagated(rule, MLP, params, inputs, targets, WEIGHTS).gradients, jax.tree.map(lambda x: 3 * x, gradient)
    )


@pytest.mark.parametrize(
    "given",
    [
        {"second": "feedback_alignment(3)", "output": "direct_feedback(1)", "others": "damped_in_tests(0.5)"},
        {"output": "feedback_alignment(3)"},
        "{second: feedback_alignment(3), output: direct_feedback(1), others: damped_in_tests(0.5)}",
    ],
)
@pytest.mark.usefixtures("damped_in_tests")
def test_a_layers_rule_covers_what_the_layer_sends_back(given):
    params, inputs, targets = numbers(SKIP)
    named = given if isinstance(given, dict) else dict(rules.get(given))
    shown = {
        "feedback": rules.feedback_weights(SKIP, "feedback_alignment(3)", params),
        "direct": rules.feedback_weights(SKIP, "direct_feedback(1)", params),
    }

    def cross(layer, source, s, errors):
        rule = named.get(layer, named.get("others", "exact"))
        rule = rule if isinstance(rule, str) else rule.name
        if rule.startswith("feedback"):
            return s @ np.asarray(shown["feedback"][layer][source])
        if rule.startswith("direct"):
            return errors @ np.asarray(shown["direct"][layer][source])
        return (0.5 if rule.startswith("damped") else 1) * s @ params[layer]["weights"][source]

    found = backpropagated(given, SKIP, params, inputs, targets, key=None)
    close(found.gradients, backward(SKIP, params, inputs, mean_error(targets), cross)[0])


def test_rules_by_layer_leave_other_layers_exact():
    params, inputs, targets = numbers(MLP)
    share = np.full(EXAMPLES, 1 / EXAMPLES)
    clip = clip_in_numpy(0.2, share)

    def alter(layer, s):
        return clip(layer, s) if layer == "layer2" else s

    found = backpropagated({"layer2": "clipped_back(0.2)"}, MLP, params, inputs, targets, key=None)
    close(found.gradients, backward(MLP, params, inputs, mean_error(targets), alter=alter)[0])
    steps = numbers(STEPS)
    apart = backpropagated({"layer1": "surrogate(2)", "layer2": "surrogate"}, STEPS, *steps, key=None)
    slopes = {"hardlim": lambda n, a: 1 / (1 + 2 * np.abs(n)) ** 2, "hardlims": lambda n, a: 2 / (1 + np.abs(n)) ** 2}
    close(apart.gradients, backward(STEPS, *steps[:2], mean_error(steps[2]), slopes=slopes)[0])
    with pytest.raises(ValueError, match="layer 'layer1': 'hardlim' has no derivative"):
        backpropagated({"layer2": "surrogate"}, STEPS, *steps)


@pytest.mark.parametrize(
    "part, gives, message",
    [
        ("weights", lambda edge: jnp.zeros((7, 7)), r"weights must return shape \(2, 4\), got \(7, 7\)"),
        ("direct", lambda edge: jnp.zeros((2, 9)), r"direct must return shape \(2, 4\), got \(2, 9\)"),
        ("carry", lambda edge, s: s[:, :1], r"carry must return shape \(6, 4\), got \(6, 1\)"),
        ("alter", lambda place, s: s.sum(axis=0), r"alter must return shape \(6, 2\), got \(2,\)"),
    ],
)
def test_a_users_rule_that_returns_another_shape_is_refused(part, gives, message):
    params, inputs, targets = numbers(TINY)
    rule = fnn.Rule("own", **{part: gives})
    with pytest.raises(ValueError, match=f"rule 'own': {message}"):
        fnn.value_and_grad(TINY, LOSS, rule=rule)(params, inputs, targets)


@pytest.mark.parametrize("part", ["alter", "carry"])
def test_a_users_rule_that_returns_another_dtype_is_refused(part):
    gives = {"alter": lambda place, s: s.astype(jnp.float32), "carry": lambda edge, s: edge.back(s).astype(jnp.float32)}
    with pytest.raises(ValueError, match=f"rule 'own': {part} must return float64, got float32"):
        fnn.value_and_grad(TINY, LOSS, rule=fnn.Rule("own", **{part: gives[part]}))(*numbers(TINY))


def test_a_rule_that_draws_must_declare_it_and_needs_a_key():
    params, inputs, targets = numbers(TINY)
    silent = fnn.Rule("silent", alter=lambda place, s: s * draws.signs(place.stream, s.shape, s.dtype))
    with pytest.raises(ValueError, match="stream: this rule has none to draw from; .* needs random=True"):
        fnn.value_and_grad(TINY, LOSS, rule=silent)(params, inputs, targets)
    with pytest.raises(TypeError, match="key: expected a single key"):
        fnn.value_and_grad(TINY, LOSS, rule="noisy(0.1)")(params, inputs, targets, None, 3)


def test_a_function_that_returns_no_rule_is_refused():
    @rules.register
    def nothing_in_tests():
        pass

    with pytest.raises(TypeError, match="rule 'nothing_in_tests': its function .* a Rule, got NoneType"):
        fnn.value_and_grad(TINY, LOSS, rule="nothing_in_tests")


def test_parts_of_a_rule_that_exclude_each_other_are_refused():
    crossing = {"weights": lambda edge: edge.weights, "carry": lambda edge, s: s}
    with pytest.raises(ValueError, match="rule 'two': give one of weights, direct and carry, got weights and carry"):
        fnn.Rule("two", **crossing)
    with pytest.raises(ValueError, match="a method makes the whole gradient, so it cannot be combined with alter"):
        fnn.Rule("two", method=lambda request: None, alter=lambda place, s: s)
    with pytest.raises(
        ValueError, match="rule: feedback_alignment.* is a hand-written way back; it needs gradient='man"
    ):
        training.fit(
            MLP, LOSS, "gd", *numbers(MLP)[1:], key=KEY, epochs=1, gradient="automatic", rule="feedback_alignment"
        )
