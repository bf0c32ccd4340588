"""Sums and maxima of whole arrays by halves, which vectorize: on CPU, XLA goes through them one number at a time, which
in a small network's update took as long as its largest product.
"""

from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp
from jax import Array


def total(x: Array) -> Array:
    """The sum of all of x."""
    halves, odd = _halved(jnp.add, x)
    return sum(odd, start=jnp.sum(halves))


def largest(x: Array) -> Array:
    """The largest of x, nan where one is."""
    halves, odd = _halved(jnp.maximum, x)
    return reduce(jnp.maximum, odd, jnp.max(halves))


def _halved(combine: Callable[[Array, Array], Array], x: Array) -> tuple[Array, list[Array]]:
    x, odd = x.reshape(-1), []
    while x.size > 16:
        if x.size % 2:
            odd, x = [*odd, x[-1]], x[:-1]
        x = combine(x[: x.size // 2], x[x.size // 2 :])
    return x, odd
