"""What is refused, and how it is said: one line, what was given and what is accepted.

Shapes are checked wherever they are known, so also while a program is traced; values only where they are concrete,
so never under `jit` or `vmap`. Inside the library nothing is checked again.
"""

import jax
import numpy as np


def is_concrete(x) -> bool:
    """False for the stand-ins that `jit`, `vmap` and `grad` pass while they trace."""
    return not isinstance(x, jax.core.Tracer)


def finite(name: str, x) -> None:
    """Raises ValueError naming the first index where a concrete `x` is nan or infinite."""
    if not is_concrete(x):
        return
    x = np.asarray(x)
    if x.dtype.kind in "biu":
        return
    wrong = ~np.isfinite(x.astype(np.complex128 if x.dtype.kind == "c" else np.float64))
    if wrong.any():
        index = np.unravel_index(int(np.argmax(wrong)), x.shape)
        raise ValueError(f"{name}: expected finite numbers, got {x[index]} at index {tuple(map(int, index))}")


def representable(name: str, x, dtype) -> None:
    """Raises ValueError naming the first index where a concrete `x` is beyond the largest number of `dtype`."""
    if not is_concrete(x) or x.dtype == dtype:
        return
    largest = float(jax.numpy.finfo(dtype).max)
    size = np.abs(np.asarray(x).astype(np.complex128))
    if size.size and size.max() > largest:
        index = np.unravel_index(int(np.argmax(size > largest)), size.shape)
        found = np.asarray(x)[index]
        raise ValueError(
            f"{name}: {found} at index {tuple(map(int, index))} is too large for {dtype} (at most {largest:g})"
        )


def numeric(name: str, x) -> None:
    """Raises TypeError unless `x` is an array of numbers."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        raise TypeError(f"{name}: expected an array of numbers, got {type(x).__name__}")
    if not (jax.dtypes.issubdtype(dtype, np.number) or dtype == np.bool_):
        raise TypeError(f"{name}: expected an array of numbers, got dtype {dtype}")
