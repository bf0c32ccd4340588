"""Kolen-Pollack and weight mirrors: how feedback is learned, from the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import (
    KEY,
    LOSS,
    MLP,
    SKIP,
    TINY,
    WEIGHTS,
    backpropagated,
    backward,
    close,
    edges,
    initialized,
    mean_error,
    networks,
    numbers,
    over_keys,
    signal_numbers,
    tree,
    unbiased,
)

import functional_nn as fnn
from functional_nn import rules


@networks
@pytest.mark.parametrize("rule", ["kolen_pollack(0.03)", "weight_mirror(0.5, 4)"])
def test_learned_feedback_has_the_weights_shapes_and_is_what_crosses(rule, network):
    params, inputs, targets = initialized(rule, network)
    learned = {(layer, source) for layer, own in params.items() for source in own.get("feedback", {})}
    assert learned == edges(network)
    for layer, source in learned:
        assert params[layer]["feedback"][source].shape == params[layer]["weights"][source].shape
    shown = rules.feedback_weights(network, rule, params)
    close(shown, tree({(layer, source): params[layer]["feedback"][source] for layer, source in learned}), 0)
    again = rules.begin(rule, network, params, jax.random.key(5))
    close(again, params, 0)  # existing feedback stays
    found = backpropagated(rule, network, params, inputs, targets, WEIGHTS)
    _, s = backward(
        network,
        params,
        inputs,
        mean_error(targets, WEIGHTS),
        lambda layer, source, s, errors: s @ params[layer]["feedback"][source],
    )
    close(found.sensitivities, s)


@networks
def test_kolen_pollack_moves_w_and_b_equally_and_both_decay(network):
    """Akrout et al. 2019, Eq. 16 and 17: dW = -eta (s a^T + lambda W), dB = -eta (s a^T + lambda B)."""
    decay = 0.03
    params, inputs, targets = initialized(f"kolen_pollack({decay})", network)
    found = backpropagated(f"kolen_pollack({decay})", network, params, inputs, targets, WEIGHTS)
    gradient, _ = backward(
        network,
        params,
        inputs,
        mean_error(targets, WEIGHTS),
        lambda layer, source, s, errors: s @ params[layer]["feedback"][source],
    )
    for layer, source in edges(network):
        own, moved = params[layer], gradient[layer]["weights"]
        gradient[layer].setdefault("feedback", {})[source] = moved[source] + decay * own["feedback"][source]
        moved[source] = moved[source] + decay * own["weights"][source]
    close(found.gradients, gradient)


def test_kolen_pollack_under_gradient_descent_shrinks_w_minus_b_geometrically():
    """W - B is multiplied by 1 - eta lambda, whatever the data, until nothing but rounding is left of it."""
    rate, decay = 0.4, 0.5
    rule = f"kolen_pollack({decay})"
    first, inputs, targets = initialized(rule, TINY)
    gradient_of = fnn.value_and_grad(TINY, LOSS, rule=rule)

    def update(params, at):
        part = {"input": jax.lax.dynamic_slice_in_dim(inputs["input"], at, 2)}
        _, gradient = gradient_of(params, part, jax.lax.dynamic_slice_in_dim(targets, at, 2))
        params = jax.tree.map(lambda x, g: x - rate * g, params, gradient)
        return params, params["layer2"]

    _, path = jax.jit(lambda params: jax.lax.scan(update, params, jnp.arange(160) % 5))(first)
    difference = np.asarray(path["weights"]["layer1"]) - np.asarray(path["feedback"]["layer1"])
    start = first["layer2"]["weights"]["layer1"] - first["layer2"]["feedback"]["layer1"]
    factors = (1 - rate * decay) ** np.arange(1, 161)
    np.testing.assert_allclose(difference, factors[:, None, None] * start, rtol=0, atol=1e-14)
    np.testing.assert_allclose(path["feedback"]["layer1"][-1], path["weights"]["layer1"][-1], rtol=0, atol=1e-14)
    assert np.linalg.norm(path["weights"]["layer1"][-1]) > 0.01  # neither is all gone


def test_a_weight_mirror_moves_its_feedback_towards_the_weights():
    """On average the gradient of B is rate (B - W); of dense weights its variance is derived: a sample's z_i x_j is
    W_ij and the sum of W_ik x_k x_j over the others, whose squares' mean is the sum of W_ik^2.
    """
    rate, samples, count = 0.5, 4, 4000
    rule = f"weight_mirror({rate}, {samples})"
    data = initialized(rule, SKIP)
    params = data[0]
    step = fnn.value_and_grad(SKIP, LOSS, rule=rule)
    drawn = over_keys(lambda key: step(*data, None, key)[1], count)
    for layer, source in edges(SKIP):
        w, b = params[layer]["weights"][source], params[layer]["feedback"][source]
        found = np.asarray(drawn[layer]["feedback"][source])
        variance = rate**2 * ((w**2).sum(axis=1, keepdims=True) - w**2) / samples
        allowed = 5 * np.sqrt(variance / count)
        assert (np.abs(found.mean(axis=0) - rate * (b - w)) <= allowed).all()
        np.testing.assert_allclose(found.var(axis=0), variance, rtol=0.2)
    kept = jax.tree.map(lambda x: x[:2], drawn)
    gradient, _ = backward(
        SKIP,
        params,
        data[1],
        mean_error(data[2]),
        lambda layer, source, s, errors: s @ params[layer]["feedback"][source],
    )
    for number in range(2):  # the weights learn as under any B
        own = jax.tree.map(lambda x, at=number: x[at], kept)
        close({name: own[name]["weights"] for name in own}, {name: gradient[name]["weights"] for name in gradient})


def test_a_weight_mirror_of_a_convolution_counts_the_products_of_each_weight():
    """With zeros at the edge: outer weights of a kernel meet fewer positions, and B still converges to them."""
    network = fnn.graph(
        inputs={"x": (5, 2)},
        layers=[
            fnn.Layer("one", 2, "tanh", (("x", "dense"),)),
            fnn.Layer("two", 3, "tanh", (("one", "conv(3)"),)),
            fnn.Layer("output", 2, "softmax", (("two", "full"),)),
        ],
    )
    params, x, t = signal_numbers(network)
    params = rules.begin("weight_mirror", network, params, KEY)
    step = jax.jit(fnn.value_and_grad(network, LOSS, rule="weight_mirror(1, 1000)"))
    drawn = [step(params, x, t, None, jax.random.key(seed))[1] for seed in range(16)]
    for layer, source in (("two", "one"), ("output", "two")):
        own = params[layer]
        found = np.stack([np.asarray(gradient[layer]["feedback"][source]).ravel() for gradient in drawn])
        expected = np.asarray(own["feedback"][source]) - np.asarray(own["weights"][source])
        assert found.std(axis=0).max() < 0.2  # so that a mean of the wrong count of meetings would be seen
        unbiased(found, expected.ravel(), 6)


def test_missing_feedback_or_that_of_another_rule_is_refused():
    params, inputs, targets = numbers(MLP)
    with pytest.raises(ValueError, match=r"kolen_pollack.* learns layer2/feedback, .* got {}; rules.begin\(.* params,"):
        rules.feedback_weights(MLP, "kolen_pollack", params)
    others = initialized("kolen_pollack", MLP)[0]
    with pytest.raises(ValueError, match=r"target_prop.* rules.begin\(.*, rules.without_feedback\(params\), key\)"):
        backpropagated("target_propagation", MLP, others, inputs, targets)
    backpropagated("target_propagation", MLP, initialized("target_propagation", MLP)[0], inputs, targets)
