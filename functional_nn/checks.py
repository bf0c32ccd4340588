"""Checks of what users pass. A message is one line: what was given and what is accepted.

Shapes are checked wherever they are known, and so also while a program is traced. Values are checked only where they
are concrete, and so never under `jit` or `vmap`. Inside the library nothing is checked again.
"""

from collections.abc import Callable

import jax
import numpy as np


def is_concrete(x) -> bool:
    """Returns False for the stand-ins that `jit`, `vmap` and `grad` pass while they trace."""
    return not isinstance(x, jax.core.Tracer)


_BLOCK = 2**20  # numbers that are checked together, so that a check of large data takes little memory


def first(x, wrong: Callable[[np.ndarray], np.ndarray]) -> tuple[int, ...] | None:
    """Returns the first index, in order, at which wrong(a block of rows of x) is True; None if there is none."""
    x = np.atleast_1d(np.asarray(x))
    rows = max(1, _BLOCK // max(1, x[:1].size))
    for start in range(0, len(x), rows):
        found = np.asarray(wrong(x[start : start + rows]))
        if found.any():
            index = np.unravel_index(int(np.argmax(found)), found.shape)
            return (start + int(index[0]), *map(int, index[1:]))
    return None


def finite(name: str, x) -> None:
    """Raises ValueError with the first index at which a concrete `x` is nan or infinite."""
    if not is_concrete(x) or x.dtype.kind in "biu":
        return
    index = first(x, lambda block: ~np.isfinite(block))
    if index is not None:
        index = index[: np.ndim(x)]
        raise ValueError(f"{name}: expected finite numbers, got {np.asarray(x)[index]} at index {index}")


def representable(name: str, x, dtype) -> None:
    """Raises ValueError with the first index at which a concrete `x` exceeds the largest number of `dtype`."""
    if not is_concrete(x) or x.dtype == dtype:
        return
    largest = float(jax.numpy.finfo(dtype).max)
    kind = x.dtype.kind
    if kind == "b" or float((np.iinfo if kind in "iu" else jax.numpy.finfo)(x.dtype).max) <= largest:
        return
    wide = np.result_type(x.dtype, np.float32)  # 16 bits may not hold the limit
    index = first(x, lambda block: np.abs(block.astype(wide, copy=False)) > largest)
    if index is not None:
        index = index[: np.ndim(x)]
        raise ValueError(
            f"{name}: {np.asarray(x)[index]} at index {index} is too large for {dtype} (at most {largest:g})"
        )


# how objects that hold numbers are converted to arrays
_CONVERSIONS = {"toarray": "x.toarray()", "to_numpy": "x.to_numpy()", "numpy": "x.numpy()"}


def numeric(name: str, x, dtype=None) -> None:
    """Raises TypeError unless `x` is an array of numbers, and of real ones if `dtype`, to which it is converted, is
    real.

    Raises ValueError for a masked array with something masked in it.
    """
    if not isinstance(x, np.ndarray | np.generic | jax.Array):
        kind, owner = type(x).__name__, type(x).__module__.partition(".")[0]
        kind = kind if owner == "builtins" else f"{owner}'s {kind}"
        how = next((f"; {how} converts it" for method, how in _CONVERSIONS.items() if hasattr(x, method)), "")
        raise TypeError(f"{name}: expected an array of numbers, got {kind}{how}")
    given = x.dtype
    if not (jax.dtypes.issubdtype(given, np.number) or given == np.bool_):
        raise TypeError(f"{name}: expected an array of numbers, got dtype {given}")
    if dtype is not None and given.kind == "c" and np.dtype(dtype).kind != "c":
        raise TypeError(f"{name}: expected real numbers, got dtype {given}")
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        index = first(np.ma.getmaskarray(x), lambda block: block)
        raise ValueError(f"{name}: masked at index {index}; leave out such examples, or fill them: x.filled(value)")


# what `constant` accepts, and its description
NON_NEGATIVE = (lambda v: (v >= 0) & np.isfinite(v), "a finite number >= 0")
POSITIVE = (lambda v: (v > 0) & np.isfinite(v), "a finite number > 0")


def constant(owner: str, name: str, value, accepts, accepted: str):
    """Returns a constant of `owner`: a Python float for every plain number; arrays and tracers unchanged.

    Raises ValueError if a concrete value is not a number that `accepts` accepts, which `accepted` describes.
    """
    if not is_concrete(value) and value.shape == ():
        return value
    try:
        right = not isinstance(value, bool | str) and np.ndim(value) == 0 and accepts(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        right = False
    if not right:
        raise ValueError(f"{owner}: {name} must be {accepted}, got {value!r}")
    return value if isinstance(value, jax.Array) else float(value)


def integer(owner: str, name: str, value, least: int) -> int:
    """Returns `value` as a Python int. Raises ValueError unless it is an integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{owner}{': ' if owner else ''}{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def boolean(owner: str, name: str, value) -> bool:
    """Returns `value` as a bool. Raises ValueError unless it is one."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{owner}: {name} must be True or False, got {value!r}")
    return bool(value)


def prng_key(name: str, value) -> None:
    """Raises TypeError unless `value` is one key as `jax.random.key` or `jax.random.PRNGKey` returns it."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and shape == ()) and not (dtype == np.uint32 and shape == (2,)):
        given = type(value).__name__ if dtype is None else f"{dtype} of shape {shape}"
        raise TypeError(f"{name}: expected a single key such as jax.random.key(0), got {given}")


def one_of(owner: str, name: str, value, accepted: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of the accepted words."""
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{owner}: {name} must be {' or '.join(map(repr, accepted))}, got {value!r}")


def by_path(tree) -> dict:
    """Returns the leaves of a tree by their path, such as "layer1/weights/input"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def former_path(path: str) -> str:
    """Returns the path in older versions: an activation's parameters were next to the layer's own, and BFGS had another
    name for whether its matrix was updated.
    """
    return path.replace("/learned/", "/").replace("/memory/updated", "/memory/begun")


def shapes(tree) -> dict:
    """Returns the shapes of a tree's leaves by their path; () for plain numbers."""
    return {path: np.shape(leaf) for path, leaf in by_path(tree).items()}


def same_shapes(label: str, given: dict, expected: dict, owner: str) -> None:
    """Raises ValueError at the first path where the shapes differ: a leaf is missing, unknown, or of another shape."""
    for path in sorted(expected.keys() ^ given.keys()):
        raise ValueError(
            f"{label}: {path or 'the array'} is {'missing' if path in expected else f'not one of {owner}'}"
        )
    for path, shape in expected.items():
        if given[path] != shape:
            raise ValueError(f"{label}: {path or 'the array'} expected shape {shape}, got {given[path]}")
