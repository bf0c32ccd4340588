"""Quantities of learning rules: where a rule points relative to the exact gradient, how it scatters, and what of each
example comes from its s and a; by hand from two gradients, and one example at a time.
"""

import jax
import numpy as np
import pytest
from rule_cases import (
    EXAMPLES,
    KEY,
    LOSS,
    MLP,
    SKIP,
    TINY,
    WEIGHTS,
    backward,
    close,
    flat,
    initialized,
    mean_error,
    numbers,
)

import functional_nn as fnn
from functional_nn import quantities, rules, training

# rules under which each example is by itself, whatever the others in its block
BY_EXAMPLE = (
    "feedback_alignment(3)",
    "direct_feedback(3)",
    "sign_symmetric",
    "clipped_back(0.2)",
    "kolen_pollack(0.1)",
    {"output": "feedback_alignment(3)", "second": "clipped_back(0.1)"},
)
METHODS = ("local_loss", "predictive_coding(5)")


def undecayed(rule):
    """The rule, without what it adds to the gradient whatever the examples are."""
    return "kolen_pollack(0)" if rule == "kolen_pollack(0.1)" else rule


def angle(x, y):
    """(cosine, |y| / |x|) of two trees, as one vector each."""
    x, y = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (x, y))
    norms = np.linalg.norm(x), np.linalg.norm(y)
    if 0 in norms:
        return 0.0, 0.0
    return x @ y / norms[0] / norms[1], norms[1] / norms[0]


def measured(network, rule, data, weights=None, **settings):
    return quantities.alignment(network, LOSS, *data, weights=weights, rule=rule, **settings)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
@pytest.mark.parametrize("rule", [*BY_EXAMPLE, *METHODS], ids=str)
def test_alignment_is_the_angle_of_the_two_gradients_layer_by_layer(rule, weights):
    """By hand: cosines and ratios of gradients and of sensitivities, from what `backpropagate` gives of both. What
    comes of the parameters alone, as decay does, has no part in it.
    """
    data = initialized(rule, SKIP)
    found = measured(SKIP, rule, data, weights)
    exact, s = backward(SKIP, *data[:2], mean_error(data[2], weights))
    own = fnn.backpropagate(SKIP, LOSS, *data, weights, rule=undecayed(rule))
    given = rules.without_feedback(own.gradients)
    assert list(found) == [layer.name for layer in SKIP.layers]
    for name, of_layer in found.items():
        np.testing.assert_allclose(of_layer[:2], angle(exact[name], given[name]), rtol=1e-12)
        np.testing.assert_allclose(of_layer[2:], angle(s[name], own.sensitivities[name]), rtol=1e-12)
    assert any(abs(of_layer.gradient_cosine) < 0.999 for of_layer in found.values())


@pytest.mark.parametrize("rule", ["clipped_back(0.2)", "direct_feedback(3)", "local_loss"])
def test_blocks_of_examples_add_up_to_the_same_angle(rule):
    """With a part of a block left over, in which the last example stands once more and counts for nothing."""
    data = initialized(rule, TINY)
    close(measured(TINY, rule, data, WEIGHTS, block=4), measured(TINY, rule, data, WEIGHTS), 1e-11)


def test_the_exact_gradient_points_where_it_points():
    data = numbers(SKIP)
    for rule in ("exact", {"first": "exact"}, "surrogate"):
        for of_layer in measured(SKIP, rule, data).values():
            np.testing.assert_allclose(of_layer, 1, rtol=1e-14)
    # and so does the same direction at another length
    third = fnn.Rule("a third of it", alter=lambda place, s: s / 3 if place.layer.name == "output" else s)
    for of_layer in measured(SKIP, third, data).values():
        np.testing.assert_allclose(of_layer, (1, 1 / 3, 1, 1 / 3), rtol=1e-13)
    back = fnn.Rule("turned round", carry=lambda edge, s: -edge.back(s))
    assert measured(MLP, back, numbers(MLP))["layer2"].gradient_cosine == pytest.approx(-1)


def test_angles_are_0_where_a_gradient_is_0_and_none_where_there_is_none():
    """A rule that sends nothing; a rule without sensitivities; a layer without parameters."""
    nothing = fnn.Rule("nothing", carry=lambda edge, s: 0 * edge.back(s))
    found = measured(MLP, nothing, numbers(MLP))
    assert found["layer1"] == (0, 0, 0, 0)
    np.testing.assert_allclose(found["layer3"], 1)
    of_values = measured(TINY, "finite_differences", numbers(TINY))
    for of_layer in of_values.values():
        assert of_layer[2:] == (None, None)
        np.testing.assert_allclose(of_layer[:2], 1, rtol=1e-9)
    copied = fnn.graph(
        inputs={"p": 3},
        layers=[
            fnn.Layer("one", 4, "tanh", ("p",)),
            fnn.Layer("copy", 4, "tanh", (("one", "identity"),), bias="none"),
            fnn.Layer("output", 2, "softmax", ("copy",)),
        ],
    )
    draw = np.random.default_rng(0)
    data = copied.init(KEY, np.float64), draw.normal(size=(EXAMPLES, 3)), np.eye(2)[np.arange(EXAMPLES) % 2]
    found = measured(copied, "feedback_alignment", data)
    assert found["copy"][:2] == (None, None) and abs(found["copy"].sensitivity_cosine) < 1


def test_a_random_rule_draws_from_the_key_that_is_given():
    data = numbers(TINY)
    with pytest.raises(ValueError, match="rule: noisy.* draws; give rule_key=jax.random.key"):
        measured(TINY, "noisy(0.5)", data)
    with pytest.raises(ValueError, match=r"params: the rule kolen_pollack.* learns layer2/feedback"):
        measured(TINY, "kolen_pollack", data)
    found = [measured(TINY, "noisy(0.5)", data, rule_key=jax.random.key(seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


# Within fit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["feedback_alignment(1)", "kolen_pollack(0.5)", "noisy(0.2)"])
def test_alignment_is_tracked_by_fit_along_its_own_rule(rule):
    """After each epoch, at the parameters of then, with what the rule has learned."""
    params, inputs, targets = initialized(rule, TINY)
    seen = []
    result = training.fit(
        TINY,
        LOSS,
        "gd(0.5)",
        inputs,
        targets,
        key=KEY,
        epochs=20,
        rule=rule,
        track=("alignment",),
        params=params,
        plan=training.minibatch(3),
        chunk=10,
        on_chunk=lambda state, history: seen.append(state.params),
    )
    tracked = result.history.tracked["alignment"]
    assert tracked["layer1"].gradient_cosine.shape == (20,)
    np.testing.assert_allclose(tracked["layer2"].sensitivity_cosine, 1, atol=0.05 if "noisy" in rule else 1e-12)
    if not rules.is_random(rules.get(rule)):
        for at, own in zip((9, 19), seen, strict=True):
            expected = measured(TINY, rule, (own, inputs, targets))
            close(jax.tree.map(lambda x, at=at: x[at], tracked), expected, 1e-11)
    if rule.startswith("kolen"):  # B has become W
        assert tracked["layer1"].gradient_cosine[0] < 0.9 < 0.999 < tracked["layer1"].gradient_cosine[-1]


# How a random rule scatters -------------------------------------------------------------------------------------------


def test_rule_noise_of_a_fixed_rule_is_its_bias_alone():
    data = numbers(MLP)
    exact, _ = backward(MLP, *data[:2], mean_error(data[2]))
    given = fnn.value_and_grad(MLP, LOSS, rule="feedback_alignment(3)")(*data)[1]
    found = quantities.rule_noise(MLP, LOSS, *data, rule="feedback_alignment(3)", samples=3)
    for name, own in found.items():
        x, y = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree[name])]) for tree in (exact, given))
        np.testing.assert_allclose(own.bias, np.linalg.norm(y - x) / np.linalg.norm(x), rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose([own.bias_error, own.variance], 0, atol=1e-15)


def test_rule_noise_of_a_forward_gradient_is_the_derived_variance():
    """Of a layer with P_l of all parameters, |(g.v) v_l - g_l|^2 is P_l |g|^2 + |g_l|^2 on average, and there is no
    bias beyond the standard error of the mean.
    """
    samples = 3000
    data = numbers(TINY)
    exact, _ = backward(TINY, *data[:2], mean_error(data[2]))
    found = quantities.rule_noise(TINY, LOSS, *data, rule="forward_gradient", samples=samples, rule_key=KEY)
    g = {name: flat(jax.tree.map(lambda x: x[None], own))[0] for name, own in exact.items()}
    square = sum(x @ x for x in g.values())
    for name, own in found.items():
        here = g[name] @ g[name]
        derived = (g[name].size * square + here) / here
        np.testing.assert_allclose(own.variance, derived, rtol=0.15)  # 5 of sqrt(2 / samples)
        np.testing.assert_allclose(own.bias_error, np.sqrt(own.variance / samples), rtol=1e-12)
        assert own.bias < 3 * own.bias_error


def test_rule_noise_is_the_moments_of_what_the_rule_gives():
    """Two draws of noise: the mean's distance, the spread about it, from gradients formed one by one."""
    data, samples = numbers(TINY), 4
    found = quantities.rule_noise(TINY, LOSS, *data, rule="noisy(0.5)", samples=samples, rule_key=KEY)
    exact, _ = backward(TINY, *data[:2], mean_error(data[2]))
    step = fnn.value_and_grad(TINY, LOSS, rule="noisy(0.5)")
    keys = jax.random.split(jax.random.fold_in(KEY, 0), samples)
    drawn = [step(*data, None, key)[1] for key in keys]
    for name, own in found.items():
        rows = np.stack([flat(jax.tree.map(lambda x: np.asarray(x)[None], each[name]))[0] for each in drawn])
        g = flat(jax.tree.map(lambda x: x[None], exact[name]))[0]
        bias, spread = rows.mean(axis=0) - g, rows - rows.mean(axis=0)
        np.testing.assert_allclose(own.bias, np.linalg.norm(bias) / np.linalg.norm(g), rtol=1e-10)
        np.testing.assert_allclose(own.variance, (spread**2).sum() / (samples - 1) / (g @ g), rtol=1e-10)
    with pytest.raises(ValueError, match="rule_noise: samples must be an integer >= 2, got 1"):
        quantities.rule_noise(TINY, LOSS, *data, rule="noisy(0.5)", samples=1, rule_key=KEY)


# Of each example ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", BY_EXAMPLE[:4] + BY_EXAMPLE[5:], ids=str)
def test_what_is_made_of_s_and_a_is_of_each_examples_gradient_by_the_rule(rule):
    """Norms, clipped sums, second moments, inner products, from gradients formed by the rule of one example alone."""
    params, inputs, targets = numbers(SKIP)
    alone = jax.jit(fnn.value_and_grad(SKIP, LOSS, rule=rule))
    each = [
        alone(params, {name: x[q : q + 1] for name, x in inputs.items()}, targets[q : q + 1])[1]
        for q in range(EXAMPLES)
    ]
    rows = np.stack([flat(jax.tree.map(lambda x: np.asarray(x)[None], own))[0] for own in each])
    norms = np.linalg.norm(rows, axis=1)
    bound = np.median(norms)
    found = quantities.compute(
        SKIP,
        LOSS,
        params,
        inputs,
        targets,
        (
            "per_example_norms",
            "per_example_gradients",
            "inner_products",
            "clipped_gradient",
            "second_moment",
            "gradient",
        ),
        max_norm=bound,
        rule=rule,
    )
    np.testing.assert_allclose(found["per_example_norms"], norms, rtol=1e-12)
    close(found["per_example_gradients"], jax.tree.map(lambda *x: np.stack(x), *each), 1e-12)
    np.testing.assert_allclose(found["inner_products"], rows @ rows.T, rtol=0, atol=1e-12 * (norms @ norms))
    clipped = (rows * np.minimum(1, bound / norms)[:, None]).mean(axis=0)
    for name, expected in (
        ("clipped_gradient", clipped),
        ("second_moment", (rows**2).mean(axis=0)),
        ("gradient", rows.mean(axis=0)),
    ):
        own = flat(jax.tree.map(lambda x: np.asarray(x)[None], found[name]))[0]
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12 * np.linalg.norm(expected))


def test_jacobians_and_curvature_stay_exact():
    data = numbers(TINY)
    names = ("jacobian", "gauss_newton_diagonal")
    each = "feedback_alignment", "exact"
    both = jax.jit(lambda *data: [quantities.compute(TINY, LOSS, *data, names, rule=rule) for rule in each])
    found, exact = both(*data)
    assert all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (found, exact)), strict=True))


def test_training_clips_what_the_rule_gives_of_each_example():
    params, inputs, targets = numbers(TINY)
    rule = rules.get("feedback_alignment(2)")
    gradient = training.clipping.Clipped(0.3, 0.0, rule)(TINY, LOSS)(params, inputs, targets)[1]
    expected = quantities.clipped_gradient(TINY, LOSS, params, inputs, targets, max_norm=0.3, rule=rule)
    close(gradient, expected, 1e-14)
    for own in ("local_loss", "kolen_pollack"):
        with pytest.raises(ValueError, match=f"rule: {own}.* has no gradient of each example, which could be clipped"):
            training.fit(TINY, LOSS, "gd", inputs, targets, key=KEY, epochs=1, gradient=training.clipped(1.0), rule=own)
