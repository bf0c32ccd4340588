"""Several starts: each is a run of its own, and the one with the lowest loss is returned."""

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


def test_each_start_is_what_it_would_be_alone_and_the_best_is_returned():
    restarts = best_of(5, NETWORK, "binary_cross_entropy", "adam(0.1)", XOR, T, key=KEY, **SETTINGS)
    assert restarts.losses.shape == (5,) and restarts.index == restarts.losses.argmin()
    for i, key in enumerate(jax.random.split(KEY, 5)):
        alone = fit(NETWORK, "binary_cross_entropy", "adam(0.1)", XOR, T, key=key, **SETTINGS)
        final, _ = fnn.training.evaluate(NETWORK, fnn.losses.get("binary_cross_entropy"), alone.params, XOR, T)
        assert restarts.losses[i] == pytest.approx(float(final), rel=1e-9)
        if i == restarts.index:
            chex.assert_trees_all_close(restarts.params, alone.params, rtol=1e-8)
    assert len(set(restarts.losses.round(6))) > 1  # starts matter: XOR has local minima


def test_starts_are_compared_on_the_validation_data_if_given():
    held_out = (XOR[:2], T[:2])
    restarts = best_of(3, NETWORK, "binary_cross_entropy", "gd(0.5)", XOR, T, key=KEY, validation=held_out, **SETTINGS)
    np.testing.assert_allclose(restarts.losses, restarts.outcomes.history.validation_loss[:, -1], rtol=1e-12)


def test_a_diverged_start_has_infinite_loss():
    """However low the loss of its last finite parameters is."""

    def gradient(network, loss):
        right = fnn.value_and_grad(network, loss)

        def finite_from_positive_starts(params, *batch):
            value, grads = right(params, *batch)
            positive = params["layer1"]["weights"]["input"][0, 0] > 0
            return value, jax.tree.map(lambda g: jax.numpy.where(positive, g, np.nan), grads)

        return finite_from_positive_starts

    restarts = best_of(6, NETWORK, "binary_cross_entropy", "gd(0)", XOR, T, key=KEY, gradient=gradient, **SETTINGS)
    assert (np.isinf(restarts.losses) == (np.asarray(restarts.outcomes.ended) == 1)).all()
    assert 0 < np.isinf(restarts.losses).sum() < 6 and np.isfinite(restarts.losses[restarts.index])


def test_it_is_an_error_if_every_start_diverges():
    linear = fnn.multilayer((2, 1), ("linear",))
    with pytest.raises(ValueError, match="all 2 starts diverged; the learning rate may be too large"):
        best_of(2, linear, "mean_square_error", optimizers.gd(1e200), XOR, T, key=KEY, epochs=5, plan=minibatch(2))


def test_a_count_below_one_is_refused():
    with pytest.raises(ValueError, match="count must be an integer >= 1, got 0"):
        best_of(0, NETWORK, "binary_cross_entropy", "gd", XOR, T, key=KEY, epochs=1)
