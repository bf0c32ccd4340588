"""Clipped gradients and their noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import chain, relative_error
from quantity_cases import KEY, LOSS, NETWORK, flat

import functional_nn as fnn
from functional_nn import quantities


def test_clipping_leaves_small_gradients_alone(data):
    whole = quantities.gradient(NETWORK, LOSS, *data)
    assert relative_error(quantities.clipped_gradient(NETWORK, LOSS, *data, max_norm=1e6), whole) <= 1e-12
    assert relative_error(whole, fnn.value_and_grad(NETWORK, LOSS)(*data)[1]) <= 1e-12
    small = quantities.clipped_gradient(NETWORK, LOSS, *data, max_norm=1e-3)
    assert np.linalg.norm(flat(small)) <= 1e-3 * (1 + 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_noise_has_the_documented_deviation(data, reduction):
    """sigma max_norm on the sum; 1/Q of it on a mean."""
    loss = fnn.losses.cross_entropy(reduction)
    options = {"max_norm": 0.5, "noise_multiplier": 2.0}
    noiseless = flat(quantities.clipped_gradient(NETWORK, loss, *data, max_norm=0.5))
    draw = jax.jit(lambda key: quantities.clipped_gradient(NETWORK, loss, *data, key=key, **options))
    noise = np.stack([flat(draw(key)) - noiseless for key in jax.random.split(KEY, 60)])
    expected = 1.0 / (5 if reduction == "mean" else 1)
    # The standard error of a deviation from n numbers is sigma / sqrt(2 n); five of them.
    assert abs(noise.std() / expected - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 * expected / np.sqrt(noise.size)
    assert len({float(x) for x in noise[0]}) == noise.shape[1]  # no two parameters share theirs


def test_an_example_that_overflows_is_not_silently_left_out():
    """|g|^2 is beyond float32, whose largest number is 3.4e38."""
    network = chain((3, 2), "linear", "linear")
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), network.init(KEY))
    x, t = jnp.ones((2, 3), jnp.float32), jnp.array([[1.0, 0.0], [1e25, 0.0]], jnp.float32)
    found = quantities.clipped_gradient(network, "mean_square_error", params, x, t, max_norm=1.0)
    assert not np.isfinite(flat(found)).all()


def test_an_example_without_gradient_is_not_divided_by():
    network = chain((2, 1), "linear", "linear")
    params = {"layer1": {"weights": {"input": jnp.zeros((1, 2))}, "bias": jnp.zeros(1)}}
    x, t = jnp.ones((2, 2)), jnp.array([[0.0], [1.0]])
    clipped = quantities.clipped_gradient(network, "sum_square_error", params, x, t, max_norm=1.0)
    assert np.isfinite(flat(clipped)).all() and np.linalg.norm(flat(clipped)) == pytest.approx(1)
