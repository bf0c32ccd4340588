"""Laws that hold for every rule: compiled, vmapped, in every dtype, with dropout and with weights of 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import (
    EXAMPLES,
    KEY,
    LOSS,
    ONE_SWEEP,
    TINY,
    backpropagated,
    backward,
    clip_in_numpy,
    close,
    initialized,
    mean_error,
    networks,
    numbers,
)

import functional_nn as fnn
from functional_nn import rules


@networks
def test_the_exact_rule_is_the_plain_gradient_program_and_bits(network):
    """The same program, to the letter, and the same bits."""
    data = numbers(network)
    plain, named = fnn.value_and_grad(network, LOSS), fnn.value_and_grad(network, LOSS, rule="exact")
    layers = fnn.value_and_grad(network, LOSS, rule={"others": "exact"})
    text = str(jax.make_jaxpr(plain)(*data))
    assert str(jax.make_jaxpr(named)(*data)) == text == str(jax.make_jaxpr(layers)(*data))
    found, again = plain(*data), named(*data)
    assert all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (found, again)), strict=True))
    close(found[1], backward(network, *data[:2], mean_error(data[2]))[0])
    assert str(jax.make_jaxpr(fnn.value_and_grad(network, LOSS, rule="feedback_alignment"))(*data)) != text


@pytest.mark.parametrize("rule", ONE_SWEEP)
def test_a_rule_under_jit_and_vmap_is_the_rule_alone(rule):
    """Under jit and vmap over parameters, with one key."""
    several = [initialized(rule, TINY, seed)[0] for seed in range(2)]
    _, inputs, targets = numbers(TINY)
    step = fnn.value_and_grad(TINY, LOSS, rule=rule)
    stacked = jax.tree.map(lambda *x: np.stack(x), *several)
    members = jax.jit(jax.vmap(step, (0, None, None, None, None)))(stacked, inputs, targets, None, KEY)
    for number, params in enumerate(several):
        value, gradient = step(params, inputs, targets, None, KEY)
        member = jax.tree.map(lambda x, at=number: x[at], members)
        np.testing.assert_allclose(member[0], value, rtol=1e-13)
        close(member[1], gradient, 1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rule", ONE_SWEEP)
def test_a_rule_keeps_the_dtype(rule, dtype):
    """In 32 bits the numbers are float64's to rounding, unless they are rounded or drawn by a comparison."""
    params, inputs, targets = initialized(rule, TINY)
    low = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, inputs, targets))
    value, gradient = fnn.value_and_grad(TINY, LOSS, rule=rule)(*low, None, KEY)
    for x in jax.tree.leaves((value, gradient)):
        assert x.dtype == dtype and np.isfinite(np.asarray(x, np.float64)).all()
    if dtype == jnp.float32 and not rule.startswith(("rounded", "dropped", "weight_mirror")):
        wide = fnn.value_and_grad(TINY, LOSS, rule=rule)(params, inputs, targets, None, KEY)[1]
        close(gradient, wide, 1e-5)


@pytest.mark.parametrize("rule", ["feedback_alignment(3)", "direct_feedback(3)", "clipped_back(0.2)"])
def test_dropout_drops_the_same_neurons_on_the_way_back(rule):
    network = fnn.multilayer((3, 5, 4, 2), ("tanh", "sigmoid", "softmax"), dropout=(0.5, 0.25, 0))
    params, inputs, targets = numbers(network)
    found = backpropagated(rule, network, params, inputs, targets)
    masks = {name: np.asarray(own.mask) for name, own in found.trace.dropped.items()}
    assert {name: set(np.unique(mask)) for name, mask in masks.items()} == {"layer1": {0, 2}, "layer2": {0, 4 / 3}}
    plain = {name: jax.tree.map(np.asarray, x) for name, x in found.trace.net_inputs.items()}
    a = {"input": inputs["input"]}
    for layer, f in (("layer1", np.tanh), ("layer2", lambda n: 1 / (1 + np.exp(-n)))):
        a[layer] = f(plain[layer]) * masks[layer]
    shown = None if rule.startswith("clipped") else rules.feedback_weights(network, rule, params)
    clip = clip_in_numpy(0.2, np.full(EXAMPLES, 1 / EXAMPLES)) if shown is None else lambda layer, s: s
    outputs = np.asarray(found.trace.activations["layer3"])
    s = {"layer3": clip("layer3", (outputs - targets) / EXAMPLES)}
    for layer, source in (("layer3", "layer2"), ("layer2", "layer1")):
        b = params[layer]["weights"][source] if shown is None else np.asarray(shown[layer][source])
        g = (s["layer3"] if rule.startswith("direct") else s[layer]) @ b
        f = np.tanh(plain[source]) if source == "layer1" else 1 / (1 + np.exp(-plain[source]))
        slope = 1 - f**2 if source == "layer1" else f * (1 - f)
        s[source] = clip(source, g * masks[source] * slope)
    close(found.sensitivities, s)
    for layer, source in (("layer1", "input"), ("layer2", "layer1"), ("layer3", "layer2")):
        close(found.gradients[layer]["weights"][source], s[layer].T @ a[source])


@pytest.mark.parametrize("rule", ["node_perturbation", "predictive_coding", "clipped_back(1)", "target_propagation"])
def test_with_weights_of_0_the_gradient_is_0(rule):
    """As of the exact gradient, where weights are traced: they are refused where they are known."""
    params, inputs, targets = initialized(rule, TINY)[0], *numbers(TINY)[1:]
    gradient = jax.jit(fnn.value_and_grad(TINY, LOSS, rule=rule))
    value, found = gradient(params, inputs, targets, jnp.zeros(EXAMPLES), KEY)
    assert value == 0 and all(not np.any(x) for x in jax.tree.leaves(found))


@pytest.mark.parametrize("rule", ["weight_perturbation", "spsa", "node_perturbation", "finite_differences"])
def test_rules_of_small_steps_are_refused_in_16_bits(rule):
    params, inputs, targets = numbers(TINY)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    with pytest.raises(ValueError, match=f"rule: {rule} takes a small step, which bfloat16 does not resolve"):
        fnn.value_and_grad(TINY, LOSS, rule=rule)(params, inputs, targets, None, KEY)
