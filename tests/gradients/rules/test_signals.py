"""Rules across convolutions, attention and residuals, against `jax.grad` with other matrices on the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import (
    KEY,
    LOSS,
    ONE_SWEEP,
    close,
    flat,
    signal_numbers,
)

import functional_nn as fnn
from functional_nn import rules
from functional_nn.networks.network import plus_bias, theta, weights_of

PRESETS = {
    "lenet": fnn.presets.get("lenet((2, 3), (5,), tanh)")((6, 6, 1), 3),
    "residual": fnn.presets.get("residual(depth=1, width=4, stages=1, norm=group_norm(2))")((4, 4, 2), 3),
    "transformer": fnn.presets.get("transformer(1, 2, 4, 6)")(5, 3, tokens=6),
}


# connections of every kind, several sources, what has no weights, and positions that are fewer further up
SIGNAL = fnn.graph(
    inputs={"x": (6, 2)},
    layers=[
        fnn.Layer("conv", 4, "tanh", (("x", "conv(3)"),)),
        fnn.Layer("attention", 4, "attention(2)", (("conv", "dense"),), bias="none"),
        fnn.Layer("block", 4, "layer_norm", (("attention", "identity"), ("conv", "conv(3)")), bias="none"),
        fnn.Layer("pool", 4, "max_pool(2)", (("block", "identity"),), bias="none"),
        fnn.Layer("strided", 3, "tanh", (("block", "conv(2, stride=2)"), ("pool", "dense"))),
        fnn.Layer("output", 3, "softmax", (("strided", "full"), ("attention", "full"))),
    ],
)


def crossed(network, params, inputs, targets, shown, direct):
    """F, whose derivative `jax.grad` takes as the rule says: z = W x as a value, W's derivative that of x held fixed,
    x's that of B x with B held fixed; of direct feedback x's is s^M B, from a term s^M B x that adds nothing to F.
    """
    held = jax.lax.stop_gradient
    a, direct_reads = dict(inputs), []
    for layer in network.layers:
        own, terms = params[layer.name], []
        for source, by in layer.reads:
            x, w = a[source], weights_of(own, source, by)
            b = shown.get(layer.name, {}).get(source)
            if b is None:
                terms.append(by.forward(x, w))
                continue
            terms.append(by.forward(held(x), w))
            if direct:
                direct_reads.append((x, b))
            else:
                through = by.forward(x, held(b))
                terms[-1] = terms[-1] + through - held(through)
        n = plus_bias(sum(terms[1:], start=terms[0]), own)
        a[layer.name], _ = layer.activation.forward(n, theta(layer, own, a))
    value = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(n, axis=-1), axis=-1))
    errors = held(jax.nn.softmax(n, axis=-1) - targets) / len(targets)
    extra = sum((jnp.sum(x.reshape(len(x), -1) * (errors @ b)) for x, b in direct_reads), start=0.0)
    return value + extra - held(extra)


crossed_and_gradient = jax.jit(jax.value_and_grad(crossed, 1), static_argnums=(0, 5))


@pytest.mark.parametrize("rule", ["feedback_alignment(3)", "sign_symmetric", "direct_feedback(3)"])
def test_a_rule_across_every_connection_is_jax_grad_with_other_matrices(rule):
    params, inputs, targets = signal_numbers(SIGNAL)
    shown = rules.feedback_weights(SIGNAL, rule, params)
    direct = rule.startswith("direct")
    found = jax.jit(fnn.value_and_grad(SIGNAL, LOSS, rule=rule))(params, inputs, targets)
    expected = crossed_and_gradient(SIGNAL, params, inputs, targets, shown, direct)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    close(found[1], expected[1], 1e-11)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_with_another_rule_in_each_layer(name):
    """All of them in one program: the value is the network's, the gradient finite and another than the exact one."""
    network = PRESETS[name]
    params, inputs, targets = signal_numbers(network)
    given = [(layer.name, ONE_SWEEP[number % len(ONE_SWEEP)]) for number, layer in enumerate(network.layers[::-1])]
    rule = dict(given)
    own = rules.begin(rule, network, params, KEY)

    def both(own):
        step = fnn.value_and_grad(network, LOSS, rule=rule)
        return step(own, inputs, targets, None, KEY), fnn.value_and_grad(network, LOSS)(own, inputs, targets)

    (value, gradient), (expected, exact) = jax.jit(both)(own)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    assert jax.tree.structure(gradient) == jax.tree.structure(own)
    for layer, found in rules.without_feedback(gradient).items():
        if not jax.tree.leaves(found):
            continue
        x, y = (
            flat(jax.tree.map(lambda leaf: leaf[None], tree))
            for tree in (found, {name: exact[layer][name] for name in found})
        )
        assert np.isfinite(x).all()
        assert layer == network.output.name or np.linalg.norm(x - y) > 1e-6 * np.linalg.norm(y), layer


@pytest.mark.slow  # a program of fifteen backward passes each
@pytest.mark.parametrize("name", PRESETS)
def test_presets_with_every_rule(name):
    """The value is the network's, the gradient finite, and another than the exact one unless all have derivatives."""
    network = PRESETS[name]
    params, inputs, targets = signal_numbers(network)
    own = {rule: rules.begin(rule, network, params, KEY) for rule in ("exact", *ONE_SWEEP)}

    def all_rules(own):  # in one program, whose forward pass they share
        found = {}
        for rule, params in own.items():
            value, gradient = fnn.value_and_grad(network, LOSS, rule=rule)(params, inputs, targets, None, KEY)
            assert jax.tree.structure(gradient) == jax.tree.structure(params)
            found[rule] = (
                value,
                jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(rules.without_feedback(gradient))]),
            )
        return found

    found = jax.jit(all_rules)(own)
    value, exact = found.pop("exact")
    for rule, (given, gradient) in found.items():
        np.testing.assert_allclose(given, value, rtol=1e-13)
        assert np.isfinite(gradient).all(), rule
        same = np.linalg.norm(gradient - exact) < 1e-9 * np.linalg.norm(exact)
        assert same == (rule == "surrogate"), rule


def test_direct_feedback_shares_b_over_positions_where_the_outputs_have_them():
    """Outputs with positions of their own: errors of each position go to that position, by the same B."""
    network = fnn.graph(
        inputs={"x": (5, 2)},
        layers=[
            fnn.Layer("conv", 4, "tanh", (("x", "conv(3)"),)),
            fnn.Layer("output", 3, "softmax", (("conv", "dense"),)),
        ],
    )
    params, x, t = signal_numbers(network)
    shown = rules.feedback_weights(network, "direct_feedback", params)["output"]["conv"]
    assert shown.shape == (3, 4)
    found = fnn.backpropagate(network, LOSS, params, x, t, rule={"others": "direct_feedback"})
    g = np.asarray(found.sensitivities["output"]) @ np.asarray(shown)
    close(found.sensitivities["conv"], g * (1 - np.asarray(found.trace.activations["conv"]) ** 2))
    whole = rules.feedback_weights(SIGNAL, "direct_feedback", signal_numbers(SIGNAL)[0])
    assert whole["output"]["strided"].shape == (3, 3 * 3) and whole["attention"]["conv"].shape == (3, 6 * 4)


def test_direct_feedback_refuses_positions_unlike_the_outputs():
    network = fnn.graph(
        inputs={"x": (6, 2)},
        layers=[
            fnn.Layer("one", 3, "tanh", (("x", "conv(3)"),)),
            fnn.Layer("output", 2, "softmax", (("one", "conv(2, stride=2)"),)),
        ],
    )
    with pytest.raises(
        ValueError,
        match=r"direct_feedback brings the output's error to 'one', but the output has positions \(3,\) "
        r"and 'one' has \(6,\), so errors cannot be matched to positions",
    ):
        fnn.value_and_grad(network, LOSS, rule="direct_feedback")
