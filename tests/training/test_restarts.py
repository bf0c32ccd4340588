"""Best of N: each start is a run of its own, and the best of them is returned."""

import chex
import jax
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers
from functional_nn.training import best_of, fit, minibatch

KEY = jax.random.key(0)
XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
T = np.array([[0], [1], [1], [0]], float)
NETWORK = fnn.multilayer((2, 2, 1), ("tanh", "sigmoid"))
SETTINGS = {"epochs": 60, "plan": fnn.training.batch()}


def test_the_best_of_several_starts_is_the_best_run():
    found = best_of(5, NETWORK, "binary_cross_entropy", "adam(0.1)", XOR, T, key=KEY, **SETTINGS)
    assert found.losses.shape == (5,) and found.index == found.losses.argmin()
    for i, key in enumerate(jax.random.split(KEY, 5)):
        alone = fit(NETWORK, "binary_cross_entropy", "adam(0.1)", XOR, T, key=key, **SETTINGS)
        ended, _ = fnn.training.evaluate(NETWORK, fnn.losses.get("binary_cross_entropy"), alone.params, XOR, T)
        assert found.losses[i] == pytest.approx(float(ended), rel=1e-9)
        if i == found.index:
            chex.assert_trees_all_close(found.params, alone.params, rtol=1e-8)
    assert len(set(found.losses.round(6))) > 1  # starts matter: XOR has local minima


def test_validation_data_judge_where_they_are_given():
    held_out = (XOR[:2], T[:2])
    found = best_of(3, NETWORK, "binary_cross_entropy", "gd(0.5)", XOR, T, key=KEY, validation=held_out, **SETTINGS)
    np.testing.assert_allclose(found.losses, found.outcomes.history.validation_loss[:, -1], rtol=1e-12)


def test_a_start_that_diverged_counts_as_infinite():
    """However low the loss of its last finite parameters."""

    def gradient(network, loss):
        right = fnn.value_and_grad(network, loss)

        def from_positive_starts(params, *batch):
            value, grads = right(params, *batch)
            good = params["layer1"]["weights"]["input"][0, 0] > 0
            return value, jax.tree.map(lambda g: jax.numpy.where(good, g, np.nan), grads)

        return from_positive_starts

    found = best_of(6, NETWORK, "binary_cross_entropy", "gd(0)", XOR, T, key=KEY, gradient=gradient, **SETTINGS)
    assert (np.isinf(found.losses) == (np.asarray(found.outcomes.ended) == 1)).all()
    assert 0 < np.isinf(found.losses).sum() < 6 and np.isfinite(found.losses[found.index])


def test_a_start_that_diverged_is_never_the_best():
    linear = fnn.multilayer((2, 1), ("linear",))
    with pytest.raises(ValueError, match="all 2 starts diverged; the learning rate may be too large"):
        best_of(2, linear, "mean_square_error", optimizers.gd(1e200), XOR, T, key=KEY, epochs=5, plan=minibatch(2))


def test_a_count_that_is_none_is_refused():
    with pytest.raises(ValueError, match="count must be an integer >= 1, got 0"):
        best_of(0, NETWORK, "binary_cross_entropy", "gd", XOR, T, key=KEY, epochs=1)
