"""Feedback alignment, direct feedback and sign symmetry against a recursion in NumPy from the papers' equations.

Letters as in `rules`: W what a connection has, B the matrix that replaces it, s = dF/dn, s^M that of the outputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import (
    KEY,
    LOSS,
    MLP,
    SKIP,
    WEIGHTS,
    backpropagated,
    backward,
    close,
    edges,
    forward,
    mean_error,
    networks,
    numbers,
)

import functional_nn as fnn
from functional_nn import rules


@networks
@pytest.mark.parametrize(
    "rule",
    [
        "feedback_alignment(3)",
        "feedback_alignment(3, 0.5)",
        "direct_feedback(3)",
        "direct_feedback(1, 2.0)",
        "sign_symmetric",
        "sign_symmetric(fixed, 4)",
    ],
)
def test_feedback_weights_are_what_crosses(rule, network):
    """g = s B, for direct feedback g = s^M B; all else as always. `feedback_weights` shows B for every edge."""
    params, inputs, targets = numbers(network)
    shown = rules.feedback_weights(network, rule, params)
    assert {(layer, source) for layer, own in shown.items() for source in own} == edges(network)
    direct = rule.startswith("direct")

    def cross(layer, source, s, errors):
        return (errors if direct else s) @ np.asarray(shown[layer][source])

    found = backpropagated(rule, network, params, inputs, targets, WEIGHTS, None)
    gradient, s = backward(network, params, inputs, mean_error(targets, WEIGHTS), cross)
    close(found.gradients, gradient)
    close(found.sensitivities, s)
    outputs = forward(network, params, inputs)[1][network.output.name]
    expected = -(WEIGHTS / WEIGHTS.sum()) @ np.sum(targets * np.log(outputs), axis=1)
    np.testing.assert_allclose(found.value, expected, rtol=1e-13)


WIDE = fnn.multilayer((3, 150, 100, 40), ("tanh", "tanh", "softmax"))


@pytest.mark.parametrize("rule", ["feedback_alignment", "direct_feedback"])
def test_random_feedback_is_uniform_with_glorots_deviation_and_independent(rule):
    """Mean 0, deviation sqrt(2 / (numbers that are read + neurons that read)), within 5 standard errors."""
    params = WIDE.init(KEY)
    first, other, scaled = (rules.feedback_weights(WIDE, f"{rule}({how})", params) for how in ("0", "1", "0, 0.25"))
    again = rules.feedback_weights(WIDE, f"{rule}(0)", WIDE.init(jax.random.key(1)))
    outputs = {"layer2": 100, "layer3": 40} if rule == "feedback_alignment" else {"layer2": 40, "layer3": 40}
    for layer, source, reads in (("layer2", "layer1", 150), ("layer3", "layer2", 100)):
        b = np.asarray(first[layer][source])
        assert b.shape == (outputs[layer], reads) and b.dtype == np.float64
        deviation = np.sqrt(2 / sum(b.shape))
        assert np.abs(b).max() <= np.sqrt(3) * deviation
        assert abs(b.mean()) < 5 * deviation / np.sqrt(b.size)
        assert abs((b**2).mean() / deviation**2 - 1) < 5 * np.sqrt((9 / 5 - 1) / b.size)  # fourth moment 9/5
        np.testing.assert_array_equal(again[layer][source], b)  # of seed and names alone
        np.testing.assert_allclose(scaled[layer][source], b / 4, rtol=1e-15)
        assert abs(np.corrcoef(b.ravel(), np.asarray(other[layer][source]).ravel())[0, 1]) < 5 / np.sqrt(b.size)
    short = min(first["layer2"]["layer1"].size, first["layer3"]["layer2"].size)
    one, two = (np.asarray(first[layer][source]).ravel()[:short] for layer, source in sorted(edges(WIDE)))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(short)


def test_a_traced_seed_draws_as_a_concrete_one():
    params, inputs, targets = numbers(MLP)

    def gradient(seed):
        rule = rules.feedback_alignment(seed)
        return fnn.value_and_grad(MLP, LOSS, rule=rule)(params, inputs, targets)[1]

    drawn = jax.jit(jax.vmap(gradient))(jnp.arange(3))
    for seed in range(3):
        close(jax.tree.map(lambda x, at=seed: x[at], drawn), gradient(seed), 1e-14)


def crossing(rule, w, key=KEY):
    """B, read off a linear network: there s^1 = s^2 B, and s^2 is made the unit matrix."""
    size, reads = w.shape
    network = fnn.multilayer((1, reads, size), ("linear", "linear"))
    params = network.init(KEY)
    params["layer2"]["weights"]["layer1"] = jnp.asarray(w)
    inputs = np.ones((size, 1))
    outputs = network.apply(params, inputs)
    found = fnn.backpropagate(
        network, "half_sum_square_error", params, inputs, outputs - np.eye(size), None, key, rule=rule
    )
    np.testing.assert_allclose(found.sensitivities["layer2"], np.eye(size), rtol=0, atol=1e-14)
    return np.asarray(found.sensitivities["layer1"])


def test_feedback_drawn_at_every_update_is_shown_for_each_key():
    params, inputs, targets = numbers(SKIP)
    shown = rules.feedback_weights(SKIP, "sign_symmetric(random)", params, KEY)
    gradient, _ = backward(
        SKIP, params, inputs, mean_error(targets), lambda layer, source, s, errors: s @ np.asarray(shown[layer][source])
    )
    close(backpropagated("sign_symmetric(random)", SKIP, params, inputs, targets).gradients, gradient)


def test_sign_symmetric_has_the_signs_of_w_and_its_own_magnitudes():
    w = np.random.default_rng(1).normal(size=(60, 90))
    w[3, 5] = 0.0
    deviation = np.sqrt(2 / 150)
    np.testing.assert_allclose(crossing("sign_symmetric", w), np.sign(w) * deviation, rtol=0, atol=1e-15)
    other = jax.random.key(21)
    random, fixed = (crossing(f"sign_symmetric({kind})", w) for kind in ("random", "fixed"))
    for b in (random, fixed):
        np.testing.assert_array_equal(np.sign(b), np.sign(w))
        sizes = np.abs(b[w != 0])
        assert sizes.max() <= np.sqrt(3) * deviation  # uniform from 0, of the mean square that Glorot's weights have
        assert abs((sizes**2).mean() / deviation**2 - 1) < 5 * np.sqrt((9 / 5 - 1) / sizes.size)
    np.testing.assert_allclose(crossing("sign_symmetric(random)", w), random, rtol=1e-14)
    other_key = np.abs(crossing("sign_symmetric(random)", w, other) - random)
    assert (other_key > 1e-9)[w != 0].mean() > 0.99  # for every batch
    np.testing.assert_allclose(crossing("sign_symmetric(fixed)", w, other), fixed, rtol=1e-14)
    assert (np.abs(crossing("sign_symmetric(fixed, 1)", w) - fixed) > 1e-9)[w != 0].mean() > 0.99
    turned = crossing("sign_symmetric(fixed)", -w)
    np.testing.assert_allclose(turned, -fixed, rtol=1e-14)  # the sizes stay where the signs change
