"""Noise scale, signal to noise, variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import chain, problem
from quantity_cases import LOSS, NETWORK, each_gradient, flat

from functional_nn import quantities


def test_noise_scale_and_signal_to_noise_are_their_definitions(data):
    params, *_ = data
    found = quantities.compute(NETWORK, LOSS, *data, ("noise_scale", "signal_to_noise"))
    g = each_gradient(NETWORK, LOSS, *data)
    where = flat(
        {name: jax.tree.map(lambda x, i=i: jnp.full_like(x, i), params[name]) for i, name in enumerate(params)}
    )
    noise = found["noise_scale"]
    for i, name in [(None, None), *enumerate(params)]:
        own = g if i is None else g[:, where == i]
        trace = own.var(axis=0, ddof=1).sum()
        signal = (own.mean(axis=0) ** 2).sum() - trace / len(g)
        one = noise.total if i is None else noise.layers[name]
        np.testing.assert_allclose([one.noise, one.signal], [trace, signal], rtol=1e-10)
        assert one.scale == pytest.approx(trace / signal, rel=1e-9) if signal > 0 else np.isinf(one.scale)
        if i is not None:
            ratio = np.linalg.norm(own.mean(axis=0)) / np.sqrt(own.var(axis=0).sum())
            assert found["signal_to_noise"][name] == pytest.approx(ratio, rel=1e-9)


def test_noise_and_signal_are_unbiased(data):
    """Over all pairs of five examples, the mean of what two give is what all ten pairs' population is."""
    params, inputs, targets = data
    pairs = [(i, j) for i in range(5) for j in range(i)]
    g = each_gradient(NETWORK, LOSS, *data)

    def of(pair):
        return quantities.noise_scale(NETWORK, LOSS, params, *jax.tree.map(lambda x: x[pair], (inputs, targets))).total

    found = jax.jit(jax.vmap(of))(jnp.array(pairs))
    # drawn without replacement: the mean inner product of two different examples, and the variance with ddof = 1
    products = g @ g.T
    assert jnp.mean(found.signal) == pytest.approx((products.sum() - np.trace(products)) / 20, rel=1e-9)
    assert jnp.mean(found.noise) == pytest.approx(g.var(axis=0, ddof=1).sum(), rel=1e-9)


def test_equal_examples_have_no_variance():
    network = chain((3, 4, 2), "tanh", "softmax")
    params, inputs, targets = problem(network, "cross_entropy", 0, 1)
    same = [jnp.tile(x, (6, 1)) for x in (inputs, targets)]
    found = quantities.variance(network, "cross_entropy", params, *same)
    # two roundings of g^2 each way, with |g| < 2; and nothing below 0, of which a deviation could not be taken
    assert flat(found).min() >= 0 and flat(found).max() <= 4 * 4 * 1.2e-16
    assert quantities.noise_scale(network, "cross_entropy", params, *same).total.noise >= 0
