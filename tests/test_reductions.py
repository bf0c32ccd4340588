"""Sums by halves: of any number of rows, and as exact as their dtype has room for."""

import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn import reductions


@pytest.mark.parametrize("rows", [1, 2, 7, 129, 1000])
@pytest.mark.parametrize("columns", [3, 64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_over_examples_of_16_bits_are_rounded_once(rows, columns, dtype):
    x = jnp.asarray(np.random.default_rng(rows).uniform(0.5, 1.5, (rows, columns)), dtype)
    found, exact = reductions.over_examples(x), np.asarray(x, np.float64).sum(axis=0)
    assert found.dtype == x.dtype and found.shape == (columns,)
    # half a unit in the last place, and what float32 adds to it
    within = float(jnp.finfo(dtype).eps) / 2 + rows * float(jnp.finfo("float32").eps)
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=within)


def test_what_cancels_does_not_overflow_on_the_way():
    x = jnp.asarray(np.tile([[2000.0], [-2000.0]], (64, 40)), jnp.float16)
    assert (reductions.over_examples(x) == 0).all()


@pytest.mark.parametrize("shape", [(), (1,), (17,), (0, 40), (1, 40), (33, 65), (5, 3, 2, 7)])
def test_all_of_an_array_of_any_shape(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(reductions.total(jnp.asarray(x)), x.astype(np.float64).sum(), rtol=1e-5, atol=1e-5)
    if x.size:
        assert reductions.largest(jnp.asarray(x)) == x.max()
    if len(shape) == 2:
        np.testing.assert_allclose(reductions.over_examples(jnp.asarray(x)), x.sum(axis=0), rtol=1e-5, atol=1e-5)
