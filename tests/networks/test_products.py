"""Both orders of memory give the same products, eager, compiled and for a whole population at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn.networks.products import COLUMNS, ROWS

DRAW = np.random.default_rng(0)
A, S, W = DRAW.normal(size=(3, 12, 5)), DRAW.normal(size=(3, 12, 4)), DRAW.normal(size=(3, 4, 5))
EXPECTED = {
    "forward": ((A, W), np.einsum("mqr,msr->mqs", A, W)),
    "back": ((S, W), np.einsum("mqs,msr->mqr", S, W)),
    "outer": ((S, A), np.einsum("mqs,mqr->msr", S, A)),
    "total": ((S,), S.sum(axis=1)),
}


@pytest.mark.newest
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("products", [ROWS, COLUMNS], ids=["rows", "columns"])
@pytest.mark.parametrize("name", EXPECTED)
def test_products_are_numpys(name, products, dtype):
    arguments, expected = EXPECTED[name]
    arguments = [jnp.asarray(x, dtype) for x in arguments]
    tolerance = 16 * float(jnp.finfo(dtype).eps)
    product = getattr(products, name)
    found = jax.jit(jax.vmap(product))(*arguments)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=8 * tolerance)
    np.testing.assert_allclose(product(*(x[0] for x in arguments)), expected[0], rtol=tolerance, atol=8 * tolerance)


@pytest.mark.newest
@pytest.mark.parametrize("examples", [1, 2, 7, 8])
def test_totals_of_any_number_of_examples(examples):
    s = DRAW.normal(size=(examples, 3))
    np.testing.assert_allclose(COLUMNS.total(jnp.asarray(s)), s.sum(axis=0), rtol=1e-14)


def test_the_recursion_in_columns_is_the_recursion():
    """On a graph that fans out, with two inputs, maxout, a shared bias and a learned slope; a population, compiled."""
    network = fnn.graph(
        inputs={"p": 3, "q": 2},
        layers=[
            fnn.Layer("first", 4, "prelu", ("p",)),
            fnn.Layer("second", 3, "maxout(2)", ("first", "q"), bias="shared"),
            fnn.Layer("output", 2, "softmax", ("second", "first")),
        ],
    )
    loss = fnn.losses.cross_entropy()
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 3))
    inputs = {"p": jnp.asarray(DRAW.normal(size=(8, 3))), "q": jnp.asarray(DRAW.normal(size=(8, 2)))}
    targets = fnn.one_hot(jnp.arange(8) % 2, 2).astype(jnp.float64)
    found, expected = (
        jax.jit(jax.vmap(fnn.value_and_grad(network, loss, products), (0, None, None)))(params, inputs, targets)
        for products in (COLUMNS, ROWS)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), found, expected)
