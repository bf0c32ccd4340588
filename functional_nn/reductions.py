"""Sums and maxima, in the way that suits the platform.

On CPU, XLA's own go through an array one number at a time: in a small network's update they took as long as its largest
product. There they go by halves of the first axis, which vectorize (of an array made flat, every number is found by a
division), and along the other axes they are products with ones.
"""

from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import platforms, precision


def total(x: Array) -> Array:
    """The sum of all of x."""
    if not platforms.here().sums_as_products or x.size == 0:
        return jnp.sum(x)
    return _halved(jnp.add, jnp.sum, x)


def largest(x: Array) -> Array:
    """The largest of x, nan where one is."""
    if not platforms.here().sums_as_products:
        return jnp.max(x)
    return _halved(jnp.maximum, jnp.max, x)


def over_examples(x: Array) -> Array:
    """(Q, S) -> (S,): on CPU, XLA's own column sum of a large batch costs up to a tenth of the whole gradient."""
    if not platforms.here().sums_as_products:
        return jnp.sum(x, axis=0)
    # Halves take a sixth of the product's time for 128 examples of 256 columns; for few columns they take longer.
    if len(x) and x.shape[1] >= 32:
        return _rows_halved(jnp.add, precision.wide(x)).astype(x.dtype)  # of 16 bits each half would be rounded
    return lax.dot(jnp.ones(x.shape[0], x.dtype), x, precision=lax.Precision.HIGHEST)


def over_columns(x: Array) -> Array:
    """(Q, N) -> (Q,): on CPU, XLA's own sum of rows writes its terms down first, and takes six times as long."""
    if not platforms.here().sums_as_products:
        return jnp.sum(x, axis=1)
    return lax.dot(x, jnp.ones(x.shape[1], x.dtype), precision=lax.Precision.HIGHEST)


def over_positions(x: Array) -> Array:
    """(Q, T, C) -> (Q, C): XLA's own sum of few channels takes four times as long, on CPU."""
    if not platforms.here().sums_as_products:
        return jnp.sum(x, axis=1)
    ones = jnp.ones(x.shape[:2], x.dtype)
    return lax.dot_general(ones, x, (((1,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST)


def unit(x: Array) -> Array:
    """A power of two near the largest |x_i|, 1 where that is 0: x / unit(x) is of unit size, its squares are numbers,
    and no digit is lost.
    """
    size = jnp.max(jnp.abs(x))
    sound = (size > 0) & jnp.isfinite(size)
    limits = jnp.finfo(x.dtype)
    power = lax.reduce_precision(jnp.where(sound, size, 1), exponent_bits=limits.nexp, mantissa_bits=0)
    return jnp.clip(power, limits.tiny, 2.0 ** (limits.maxexp - 2))


def norm(x: Array) -> Array:
    """|x|, Euclidean, also where the squares of what is small or large are no numbers."""
    size = unit(x)
    return size * jnp.linalg.norm(x / size)


def _halved(combine: Callable[[Array, Array], Array], few: Callable[[Array], Array], x: Array) -> Array:
    """All of x combined, by `few` what is left of it in the end."""
    while x.ndim > 1:
        x = _rows_halved(combine, x)
    return x if x.ndim == 0 else _rows_halved(combine, x, few, 16)


def _rows_halved(
    combine: Callable[[Array, Array], Array],
    x: Array,
    few: Callable[[Array], Array] = lambda x: x[0],
    many: int = 1,
) -> Array:
    """(Q, ...) -> (...): its rows combined, the last `many` by `few`."""
    odd = []
    while len(x) > many:
        if len(x) % 2:
            odd, x = [*odd, x[-1]], x[:-1]
        x = combine(x[: len(x) // 2], x[len(x) // 2 :])
    return reduce(combine, odd, few(x))
