"""Floating-point types: which are available, in which one sums and averages are kept, and what rounds no factor."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def default() -> np.dtype:
    """JAX's default float: float32, or float64 where `jax_enable_x64` is on."""
    return np.dtype(jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)


def available(dtype) -> np.dtype:
    """`dtype` itself, or ValueError where 64 bits are asked for while `jax_enable_x64` is off."""
    dtype = np.dtype(dtype)
    if dtype.itemsize == 8 and dtype.kind == "f" and not jax.config.jax_enable_x64:
        raise ValueError(
            f"dtype {dtype} needs 64-bit mode, which is off; call jax.config.update('jax_enable_x64', True) first, "
            "or ask for float32, bfloat16 or float16"
        )
    if not jax.dtypes.issubdtype(dtype, np.floating):
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    return dtype


def at_least_float32(dtype) -> np.dtype:
    """float32 for the 16-bit floats, every other dtype itself: what sums over many terms are kept in."""
    return np.dtype(jnp.float32) if np.dtype(dtype).itemsize < 4 else np.dtype(dtype)


def wide(x: jax.Array) -> jax.Array:
    """`x` in the type that sums over many of its like are kept in."""
    dtype = at_least_float32(x.dtype)
    return x if x.dtype == dtype else x.astype(dtype)


def largest(dtype) -> jax.Array:
    """The largest finite number: it stands for "none yet" where the lowest is kept, and `jax_debug_infs` lets it be."""
    return jnp.asarray(jnp.finfo(dtype).max, dtype)


def full(function: Callable) -> Callable:
    """The same function, its matrix products at full precision on every device.

    By default accelerators round the factors first, of float32 to 10 bits (TF32) or 7 (bfloat16): enough for a
    first-order method, which is not told from noise in its batches, and not where a small difference of large numbers
    is looked for, as in what is solved, in a step that is accepted or not, and in a Gram matrix.
    """

    @functools.wraps(function)
    def precisely(*args, **keywords):
        with jax.default_matmul_precision("highest"):
            return function(*args, **keywords)

    return precisely
