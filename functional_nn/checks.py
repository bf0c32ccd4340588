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


def numeric(name: str, x, dtype=None) -> None:
    """Raises TypeError unless `x` is an array of numbers, and real ones where `dtype`, their destination, is real."""
    given = getattr(x, "dtype", None)
    if given is None:
        raise TypeError(f"{name}: expected an array of numbers, got {type(x).__name__}")
    if not (jax.dtypes.issubdtype(given, np.number) or given == np.bool_):
        raise TypeError(f"{name}: expected an array of numbers, got dtype {given}")
    if dtype is not None and given.kind == "c" and np.dtype(dtype).kind != "c":
        raise TypeError(f"{name}: expected real numbers, got dtype {given}")


# what `constant` accepts, and how that is said
NON_NEGATIVE = (lambda v: (v >= 0) & np.isfinite(v), "a finite number >= 0")
POSITIVE = (lambda v: (v > 0) & np.isfinite(v), "a finite number > 0")


def constant(owner: str, name: str, value, accepts, accepted: str):
    """A constant of `owner` itself: a Python float for every plain number, arrays and tracers as they are.

    Raises ValueError where a concrete value is not a number that `accepts`, described as `accepted`.
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
    """`value` as a Python int. Raises ValueError unless it is an integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{owner}{': ' if owner else ''}{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def boolean(owner: str, name: str, value) -> bool:
    """`value` as a bool. Raises ValueError unless it is one."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{owner}: {name} must be True or False, got {value!r}")
    return bool(value)


def prng_key(name: str, value) -> None:
    """Raises TypeError unless `value` is one key as `jax.random.key` or `jax.random.PRNGKey` gives it."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and shape == ()) and not (dtype == np.uint32 and shape == (2,)):
        given = type(value).__name__ if dtype is None else f"{dtype} of shape {shape}"
        raise TypeError(f"{name}: expected a single key such as jax.random.key(0), got {given}")


def one_of(owner: str, name: str, value, accepted: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of the words accepted."""
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{owner}: {name} must be {' or '.join(map(repr, accepted))}, got {value!r}")


def by_path(tree) -> dict:
    """The leaves of a tree by their path, such as "layer1/weights/input"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes(tree) -> dict:
    """The shapes of a tree's leaves by their path; () for plain numbers."""
    return {path: np.shape(leaf) for path, leaf in by_path(tree).items()}


def same_shapes(label: str, given: dict, expected: dict, owner: str) -> None:
    """Raises ValueError at the first path where shapes by path differ: a leaf missing, unknown, or of another shape."""
    for path in sorted(expected.keys() ^ given.keys()):
        raise ValueError(
            f"{label}: {path or 'the array'} is {'missing' if path in expected else f'not one of {owner}'}"
        )
    for path, shape in expected.items():
        if given[path] != shape:
            raise ValueError(f"{label}: {path or 'the array'} expected shape {shape}, got {given[path]}")
