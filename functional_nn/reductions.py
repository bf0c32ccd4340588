"""Sums and maxima of whole arrays by halves, which vectorize: on CPU, XLA goes through them one number at a time, which
in a small network's update took as long as its largest product. Halves are of the first axis: of an array made flat,
the compiler finds every number by a division.
"""

from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp
from jax import Array, lax


def total(x: Array) -> Array:
    """The sum of all of x."""
    return _halved(jnp.add, jnp.sum, x)


def largest(x: Array) -> Array:
    """The largest of x, nan where one is."""
    return _halved(jnp.maximum, jnp.max, x)


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
    odd = []
    while x.size > 16:
        if len(x) == 1:
            x = x[0]
        elif len(x) % 2:
            odd, x = [*odd, x[-1]], x[:-1]
        else:
            x = combine(x[: len(x) // 2], x[len(x) // 2 :])
    return reduce(combine, (_halved(combine, few, rest) for rest in odd), few(x))
