"""Dense factorizations against NumPy's, of one matrix and under vmap, where one of the matrices cannot be factored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn import linalg

LANES, P, N, K = 5, 6, 9, 3
DRAW = np.random.default_rng(0)
J = DRAW.standard_normal((LANES, N, P))
A = np.einsum("lnp,lnq->lpq", J, J)  # positive definite
INDEFINITE = np.diag(np.arange(P) - 1.5)
FEW, MANY, TALL = (
    DRAW.standard_normal((LANES, P)),
    DRAW.standard_normal((LANES, P, K)),
    DRAW.standard_normal((LANES, N)),
)

# name -> (function of arrays, the same in NumPy for one lane, its arrays with lanes in front)
CASES = {
    "cholesky": (linalg.cholesky, np.linalg.cholesky, (A,)),
    "cholesky_solve": (linalg.cholesky_solve, lambda L, b: np.linalg.solve(L @ L.T, b), (np.linalg.cholesky(A), FEW)),
    "cholesky_solve, columns": (
        linalg.cholesky_solve,
        lambda L, b: np.linalg.solve(L @ L.T, b),
        (np.linalg.cholesky(A), MANY),
    ),
    "positive_solve": (linalg.positive_solve, np.linalg.solve, (A, FEW)),
    "positive_solve, columns": (linalg.positive_solve, np.linalg.solve, (A, MANY)),
    "least_squares": (linalg.least_squares, lambda J, b: np.linalg.lstsq(J, b)[0], (J, TALL)),
    "eigenvalues": (lambda A: linalg.eigh(A)[0], np.linalg.eigvalsh, (A - np.eye(P),)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.sampled(every=2)
def test_one_matrix_and_lanes_are_numpys(name):
    """Alone, compiled, in lanes, and in lanes that share an array."""
    function, reference, arrays = CASES[name]
    expected = np.stack([reference(*(array[lane] for array in arrays)) for lane in range(LANES)])
    lanes = jax.jit(jax.vmap(function))
    np.testing.assert_allclose(lanes(*arrays), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jax.jit(function)(*(array[0] for array in arrays)), expected[0], rtol=1e-9, atol=1e-12)
    if len(arrays) == 2:
        shared = jax.vmap(function, (None, 0))(jnp.asarray(arrays[0][0]), jnp.asarray(arrays[1]))
        expected = np.stack([reference(arrays[0][0], right) for right in arrays[1]])
        np.testing.assert_allclose(shared, expected, rtol=1e-9, atol=1e-12)


def test_eigenvectors_put_the_matrix_together_again():
    values, vectors = jax.jit(jax.vmap(linalg.eigh))(A)
    np.testing.assert_allclose(np.einsum("lij,lj,lkj->lik", vectors, values, vectors), A, atol=1e-12 * np.abs(A).max())
    np.testing.assert_allclose(np.einsum("lij,lik->ljk", vectors, vectors), np.stack([np.eye(P)] * LANES), atol=1e-12)
    assert (np.diff(values) >= 0).all()


@pytest.mark.parametrize("name", ["cholesky", "positive_solve", "positive_solve, columns"])
def test_only_a_matrix_that_is_not_positive_definite_is_nan(name):
    """A lane that cannot be factored says so, and leaves the others bitwise as they are."""
    function, _, arrays = CASES[name]
    lanes = jax.jit(jax.vmap(function))
    healthy = np.asarray(lanes(*arrays))
    for wrong in (INDEFINITE, np.zeros((P, P)), np.full((P, P), np.nan)):
        broken = arrays[0].copy()
        broken[2] = wrong
        found = np.asarray(lanes(broken, *arrays[1:]))
        assert not np.isfinite(found[2]).all()
        np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(healthy, 2, axis=0))
    assert np.isfinite(healthy).all()


def test_least_squares_does_not_square_the_condition_number():
    """Of a matrix of condition 1e7, J'J has 1e14: solved with it, hardly a digit is left; here eight are."""
    U, _ = np.linalg.qr(DRAW.standard_normal((N, P)))
    V, _ = np.linalg.qr(DRAW.standard_normal((P, P)))
    matrix, x = U @ np.diag(np.geomspace(1, 1e-7, P)) @ V.T, DRAW.standard_normal(P)
    found = np.asarray(linalg.least_squares(jnp.asarray(matrix), jnp.asarray(matrix @ x)))
    squared = np.asarray(linalg.positive_solve(jnp.asarray(matrix.T @ matrix), jnp.asarray(matrix.T @ (matrix @ x))))
    assert np.linalg.norm(found - x) <= 1e-7 * np.linalg.norm(x)
    assert not np.linalg.norm(squared - x) <= 1e-4 * np.linalg.norm(x)


@pytest.mark.parametrize("name", CASES)
def test_dtypes_stay(name):
    function, _, arrays = CASES[name]
    for dtype in (jnp.float32, jnp.float64):
        given = [jax.ShapeDtypeStruct(array.shape, dtype) for array in arrays]
        assert jax.eval_shape(jax.vmap(function), *given).dtype == dtype


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_eigenvectors_have_derivatives_both_ways(mode):
    """Of a function in which no sign of an eigenvector counts, against differences; in lanes, too."""
    weights = jnp.asarray(DRAW.standard_normal((P, P)))

    def function(matrix):
        values, vectors = linalg.eigh(matrix)
        return jnp.sum(jnp.sin(values)) + jnp.sum(weights * ((vectors * jnp.exp(-values)[None, :]) @ vectors.T))

    direction = jnp.asarray(DRAW.standard_normal((P, P)))
    start, step = jnp.asarray(A[0] / 5), 1e-5
    slope = (function(start + step * direction) - function(start - step * direction)) / (2 * step)
    found = jax.jit(jax.vmap(mode(function)))(jnp.stack([start, 2 * start]))
    np.testing.assert_allclose(jnp.sum(found[0] * direction), slope, rtol=1e-7)
    np.testing.assert_allclose(jax.grad(lambda m: linalg.eigh(m)[0][0])(jnp.eye(P)).sum(), 1)  # several are one
