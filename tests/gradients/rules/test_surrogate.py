"""Surrogate derivatives: where an activation has none, and nowhere else."""

import jax
import numpy as np
import pytest
from rule_cases import (
    KEY,
    LOSS,
    MLP,
    STEPS,
    backpropagated,
    backward,
    close,
    forward,
    mean_error,
    numbers,
)

import functional_nn as fnn


@pytest.mark.parametrize("slope", [1.0, 2.5])
def test_a_surrogate_replaces_missing_derivatives_only(slope):
    """s = g h / (1 + slope |n|)^2: Zenke and Ganguli 2018, Eq. 5, h the height of the step; the outputs stay steps."""
    params, inputs, targets = numbers(STEPS)

    def fast(height):
        return lambda n, a: height / (1 + slope * np.abs(n)) ** 2

    gradient, s = backward(
        STEPS, params, inputs, mean_error(targets), slopes={"hardlim": fast(1.0), "hardlims": fast(2.0)}
    )
    found = backpropagated(f"surrogate({slope})", STEPS, params, inputs, targets, key=None)
    close(found.gradients, gradient)
    close(found.sensitivities, s)
    for name, a in forward(STEPS, params, inputs)[1].items():
        np.testing.assert_allclose(found.trace.activations[name], a, rtol=1e-14)
    assert set(np.unique(found.trace.activations["layer1"])) <= {0.0, 1.0}
    # where there is a derivative, it stays
    smooth = numbers(MLP)
    close(
        backpropagated(f"surrogate({slope})", MLP, *smooth).gradients,
        backward(MLP, *smooth[:2], mean_error(smooth[2]))[0],
    )


def test_a_surrogate_trains_a_network_of_thresholds():
    """XOR of two threshold layers, which no single layer knows."""
    network = fnn.multilayer((2, 8, 2), ("hardlims", "softmax"))
    x = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    t = np.eye(2)[[0, 1, 1, 0]]
    step = jax.jit(fnn.value_and_grad(network, LOSS, rule="surrogate"))
    params = network.init(KEY)
    for _ in range(300):
        value, gradient = step(params, x, t)
        params = jax.tree.map(lambda w, g: np.asarray(w) - 0.5 * np.asarray(g), params, gradient)
    assert value < 0.05
    np.testing.assert_array_equal(np.argmax(network.apply(params, x), axis=1), [0, 1, 1, 0])
