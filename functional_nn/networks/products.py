"""The products of a layer, in two orders of memory: the same numbers to rounding, and the same recursion around them.

Letters: Q examples, S neurons of a layer, R of the source it reads; a (Q, R), s and g (Q, S), weights W (S, R).
`ROWS` says what is meant and leaves the order to the compiler. `COLUMNS` keeps activations and sensitivities as
(S, Q) in memory, behind the same shapes: on CPU every product of a whole population of small networks is then one that
XLA's fast kernels take as it stands, which makes a step of the population take 0.6 of the time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Products(NamedTuple):
    """forward(a, W) = a W^T (Q, S); back(s, W) = s W (Q, R); outer(s, a) = s^T a (S, R); total(s) = sum_q s_q (S,)."""

    forward: Callable[[Array, Array], Array]
    back: Callable[[Array, Array], Array]
    outer: Callable[[Array, Array], Array]
    total: Callable[[Array], Array]


def _forward(a: Array, weights: Array) -> Array:
    return lax.dot_general(a, weights, (((1,), (1,)), ((), ())))  # without writing the transpose down


def _outer(s: Array, a: Array) -> Array:
    return lax.dot_general(s, a, (((0,), (0,)), ((), ())))


def _total(s: Array) -> Array:
    # As a product with ones: on CPU, XLA's own column sum of a large batch costs up to a tenth of the whole gradient.
    # Full precision is asked for because accelerators round the factors of a product otherwise.
    return lax.dot(jnp.ones(s.shape[0], s.dtype), s, precision=lax.Precision.HIGHEST)


ROWS = Products(_forward, lax.dot, _outer, _total)


def _standing(x: Array) -> Array:
    """The transpose, written down: without the barrier XLA would fold it into the product beside it."""
    return lax.optimization_barrier(x.T)


def _forward_in_columns(a: Array, weights: Array) -> Array:
    return _standing_product(weights, _standing(a))


def _back_in_columns(s: Array, weights: Array) -> Array:
    return _standing_product(_standing(weights), _standing(s))


def _standing_product(x: Array, y: Array) -> Array:
    # The transpose of a product would be taken for a product of transposes, hence this barrier.
    return lax.optimization_barrier(lax.dot(x, y)).T


def _outer_in_columns(s: Array, a: Array) -> Array:
    return lax.dot_general(_standing(s), _standing(a), (((1,), (1,)), ((), ())))


def _total_in_columns(s: Array) -> Array:
    s = _standing(s)
    while s.shape[1] % 2 == 0 and s.shape[1] > 4:  # halves, which vectorize; XLA adds a row one number at a time
        s = s[:, : s.shape[1] // 2] + s[:, s.shape[1] // 2 :]
    return jnp.sum(s, axis=1)


COLUMNS = Products(_forward_in_columns, _back_in_columns, _outer_in_columns, _total_in_columns)
