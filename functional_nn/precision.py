"""Floating-point types: which are available, in which sums are accumulated, and products in full precision."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def default() -> np.dtype:
    """Returns JAX's default float: float32, or float64 if `jax_enable_x64` is on."""
    return np.dtype(jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)


def available(dtype) -> np.dtype:
    """Returns `dtype`. Raises ValueError for 64 bits while `jax_enable_x64` is off, and for other than floats."""
    dtype = np.dtype(dtype)
    if dtype.itemsize == 8 and dtype.kind == "f" and not jax.config.jax_enable_x64:
        raise ValueError(
            f"dtype {dtype} needs 64-bit mode, which is off; call jax.config.update('jax_enable_x64', True) first, "
            "or choose float32, bfloat16 or float16"
        )
    if not jax.dtypes.issubdtype(dtype, np.floating):
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    return dtype


def at_least_float32(dtype) -> np.dtype:
    """Returns float32 for the 16-bit floats, every other dtype unchanged: sums over many terms are accumulated in
    it.
    """
    return np.dtype(jnp.float32) if np.dtype(dtype).itemsize < 4 else np.dtype(dtype)


def wide(x: jax.Array) -> jax.Array:
    """Returns `x` in the type in which sums over many of its numbers are accumulated."""
    dtype = at_least_float32(x.dtype)
    return x if x.dtype == dtype else x.astype(dtype)


def largest(dtype) -> jax.Array:
    """Returns the largest finite number. It means "none yet" where the lowest is kept; `jax_debug_infs` accepts it."""
    return jnp.asarray(jnp.finfo(dtype).max, dtype)


def full(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Returns the same function with its matrix products at full precision on every device.

    By default accelerators round the factors first, from float32 to 10 bits (TF32) or 7 (bfloat16). That suffices for a
    first-order method, where it is lost in the noise of the batches. It does not where a small difference of large
    numbers matters: when solving equations, accepting a step, or forming a Gram matrix.
    """

    @functools.wraps(function)
    def precisely(*args: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        with jax.default_matmul_precision("highest"):
            return function(*args, **keywords)

    return precisely
