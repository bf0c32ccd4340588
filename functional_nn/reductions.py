"""Sums and maxima, in the way that suits the platform.

On CPU, XLA's own reductions go through an array one number at a time: in a small network's update they took as long as
its largest product. Here they combine halves of the first axis, which vectorizes (in a flattened array, each number is
found by a division), and along the other axes they are products with ones.
"""

from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import platforms, precision


def total(x: Array) -> Array:
    """Returns the sum of all of x."""
    if not platforms.here().sums_as_products or x.size == 0:
        return jnp.sum(x)
    return _halved(jnp.add, jnp.sum, x)


def largest(x: Array) -> Array:
    """Returns the largest number of x; nan if one is nan."""
    if not platforms.here().sums_as_products:
        return jnp.max(x)
    return _halved(jnp.maximum, jnp.max, x)


def over_examples(x: Array) -> Array:
    """(Q, S) -> (S,). On CPU, XLA's own column sum of a large batch takes up to a tenth of the whole gradient."""
    if not platforms.here().sums_as_products:
        return jnp.sum(x, axis=0)
    # Halves take a sixth of the product's time for 128 examples of 256 columns; for few columns they take longer.
    if len(x) and x.shape[1] >= 32:
        return _rows_halved(jnp.add, precision.wide(x)).astype(x.dtype)  # in 16 bits each half would be rounded
    return lax.dot(jnp.ones(x.shape[0], x.dtype), x, precision=lax.Precision.HIGHEST)


def over_columns(x: Array) -> Array:
    """(Q, N) -> (Q,). On CPU, XLA's own sum of rows writes its terms to memory first, and takes six times as long."""
    if not platforms.here().sums_as_products:
        return jnp.sum(x, axis=1)
    return lax.dot(x, jnp.ones(x.shape[1], x.dtype), precision=lax.Precision.HIGHEST)


def over_positions(x: Array) -> Array:
    """(Q, T, C) -> (Q, C). On CPU, XLA's own sum of few channels takes four times as long."""
    if not platforms.here().sums_as_products:
        return jnp.sum(x, axis=1)
    ones = jnp.ones(x.shape[:2], x.dtype)
    return lax.dot_general(ones, x, (((1,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST)


def unit(x: Array) -> Array:
    """Returns a power of two near max abs(x), or 1 if that is 0.

    x / unit(x) then has unit size, its squares do not overflow, and no digit is lost.
    """
    size = jnp.max(jnp.abs(x))
    sound = (size > 0) & jnp.isfinite(size)
    limits = jnp.finfo(x.dtype)
    power = lax.reduce_precision(jnp.where(sound, size, 1), exponent_bits=limits.nexp, mantissa_bits=0)
    return jnp.clip(power, limits.tiny, 2.0 ** (limits.maxexp - 2))


def norm(x: Array) -> Array:
    """Returns the Euclidean norm of x, also where the squares of its numbers overflow or underflow."""
    size = unit(x)
    return size * jnp.linalg.norm(x / size)


def _halved(combine: Callable[[Array, Array], Array], few: Callable[[Array], Array], x: Array) -> Array:
    """All of x combined; `few` combines what is left in the end."""
    while x.ndim > 1:
        x = _rows_halved(combine, x)
    return x if x.ndim == 0 else _rows_halved(combine, x, few, 16)


def _rows_halved(
    combine: Callable[[Array, Array], Array],
    x: Array,
    few: Callable[[Array], Array] = lambda x: x[0],
    many: int = 1,
) -> Array:
    """(Q, ...) -> (...): its rows combined; `few` combines the last `many`."""
    odd = []
    while len(x) > many:
        if len(x) % 2:
            odd, x = [*odd, x[-1]], x[:-1]
        x = combine(x[: len(x) // 2], x[len(x) // 2 :])
    return reduce(combine, odd, few(x))
