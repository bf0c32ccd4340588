"""Dense factorizations, lane by lane on CPU.

There, under `vmap`, XLA hands a whole batch of matrices to one LAPACK call, which spreads it over the threads that
devices run on: two devices of one process that do so at once wait for each other for ever (jaxlib 0.10.1, 2 threads),
and for matrices of some 40 columns it takes twice the time of one call a lane. On accelerators the batch is kept.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import cho_solve, solve_triangular

from functional_nn import precision


def _lane_by_lane(function: Callable) -> Callable:
    each = jax.custom_batching.sequential_vmap(function)

    @functools.wraps(function)
    def dispatched(*arrays: Array):
        return lax.platform_dependent(*arrays, cpu=each, default=function)

    return dispatched


@_lane_by_lane
def cholesky(matrix: Array) -> Array:
    """L (P, P), lower, L L^T = matrix; nan where it is not positive definite."""
    return jnp.linalg.cholesky(matrix)


@_lane_by_lane
def cholesky_solve(L: Array, right: Array) -> Array:
    """(L L^T)^-1 right, for right (P,) or (P, K)."""
    return cho_solve((L, True), right)


@_lane_by_lane
def positive_solve(matrix: Array, right: Array) -> Array:
    """matrix^-1 right, for right (P,) or (P, K); nan where the matrix is not positive definite."""
    return cho_solve((jnp.linalg.cholesky(matrix), True), right)


@_lane_by_lane
def least_squares(matrix: Array, right: Array) -> Array:
    """The x (P,) for which |matrix x - right| is least, by the R of both; matrix (N, P) of full rank, N >= P."""
    R, c = _triangle(matrix, right)
    return solve_triangular(R, c)


def _triangle(matrix: Array, right: Array) -> tuple[Array, Array]:
    size = matrix.shape[1]
    R = jnp.linalg.qr(jnp.concatenate([matrix, right[:, None]], axis=1), mode="r")
    return R[:size, :size], R[:size, size]


@_lane_by_lane
def triangle(matrix: Array, right: Array) -> tuple[Array, Array]:
    """R (P, P) and Q^T right (P,) of matrix (N, P) = Q R, N >= P."""
    return _triangle(matrix, right)


@jax.custom_jvp
@_lane_by_lane
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues in rising order, and eigenvectors in columns, of a symmetric matrix; has reverse derivatives, too."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@eigh.defjvp
@precision.full
def _eigh_jvp(primals, tangents):
    # of A V = V diag(l), V^T V = I: dl_i = v_i^T dA v_i, dV = V S, S_ij = v_i^T dA v_j / (l_j - l_i), S_ii = 0
    values, vectors = eigh(*primals)
    (change,) = tangents
    along = vectors.T @ ((change + change.T) / 2) @ vectors
    own = jnp.eye(len(values), dtype=bool)
    gaps = jnp.where(own, 1, values[None, :] - values[:, None])
    return (values, vectors), (jnp.diagonal(along), vectors @ jnp.where(own, 0, along / gaps))


@_lane_by_lane
def singular(matrix: Array) -> tuple[Array, Array, Array]:
    """U (N, K), s (K,) and V^T (K, P) of matrix (N, P) = U diag(s) V^T, K = min(N, P), s falling."""
    U, s, V = jnp.linalg.svd(matrix, full_matrices=False)
    return U, s, V
