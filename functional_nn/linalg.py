"""Dense factorizations, one matrix at a time on CPU.

On CPU, under `vmap`, XLA passes a whole batch of matrices to one LAPACK call, which spreads it over the threads on
which devices run. Two devices of one process that do so at the same time wait for each other forever (jaxlib 0.10.1, 2
threads), and for matrices of some 40 columns it takes twice the time of one call a matrix. On accelerators the batch is
kept.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import cho_solve, solve_triangular

from functional_nn import precision


def _matrix_by_matrix(function: Callable) -> Callable:
    each = jax.custom_batching.sequential_vmap(function)

    @functools.wraps(function)
    def dispatched(*arrays: Array):
        return lax.platform_dependent(*arrays, cpu=each, default=function)

    return dispatched


@_matrix_by_matrix
def cholesky(matrix: Array) -> Array:
    """Returns the lower L (P, P) with L L^T = matrix; nan if it is not positive definite."""
    return jnp.linalg.cholesky(matrix)


@_matrix_by_matrix
def cholesky_solve(L: Array, right: Array) -> Array:
    """Returns (L L^T)^-1 right, for right (P,) or (P, K)."""
    return cho_solve((L, True), right)


@_matrix_by_matrix
def positive_solve(matrix: Array, right: Array) -> Array:
    """Returns matrix^-1 right, for right (P,) or (P, K); nan if the matrix is not positive definite."""
    return cho_solve((jnp.linalg.cholesky(matrix), True), right)


@_matrix_by_matrix
def least_squares(matrix: Array, right: Array) -> Array:
    """Returns the x (P,) that minimizes the norm of matrix x - right, by QR; matrix (N, P) of full rank, N >= P."""
    R, c = _triangle(matrix, right)
    return solve_triangular(R, c)


def _triangle(matrix: Array, right: Array) -> tuple[Array, Array]:
    size = matrix.shape[1]
    R = jnp.linalg.qr(jnp.concatenate([matrix, right[:, None]], axis=1), mode="r")
    return R[:size, :size], R[:size, size]


@_matrix_by_matrix
def triangle(matrix: Array, right: Array) -> tuple[Array, Array]:
    """Returns R (P, P) and Q^T right (P,) for matrix (N, P) = Q R, N >= P."""
    return _triangle(matrix, right)


@jax.custom_jvp
@_matrix_by_matrix
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Returns rising eigenvalues and eigenvectors in columns, of a symmetric matrix; both have reverse derivatives."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@eigh.defjvp
@precision.full
def _eigh_jvp(primals, tangents):
    # from A V = V diag(l), V^T V = I: dl_i = v_i^T dA v_i, dV = V S, S_ij = v_i^T dA v_j / (l_j - l_i), S_ii = 0
    values, vectors = eigh(*primals)
    (change,) = tangents
    along = vectors.T @ ((change + change.T) / 2) @ vectors
    diagonal = jnp.eye(len(values), dtype=bool)
    gaps = jnp.where(diagonal, 1, values[None, :] - values[:, None])
    return (values, vectors), (jnp.diagonal(along), vectors @ jnp.where(diagonal, 0, along / gaps))


@_matrix_by_matrix
def singular(matrix: Array) -> tuple[Array, Array, Array]:
    """Returns U (N, K), s (K,) and V^T (K, P) with matrix (N, P) = U diag(s) V^T, K = min(N, P), s falling."""
    U, s, V = jnp.linalg.svd(matrix, full_matrices=False)
    return U, s, V
