"""Which examples train, which decide when to stop, and which are kept for the test: three disjoint sets of numbers.

Letters: Q examples. The three ways are those of MATLAB's dividerand, divideblock and divideint, and given numbers are
its divideind: validation and test parts have their share of Q, rounded, and training has what is left.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.training.minibatches import permutation

WAYS = ("random", "blocks", "interleaved")


class Division(NamedTuple):
    """The numbers of the examples in each part, rising, int32."""

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def take(self, data: Any) -> tuple[Any, Any, Any]:
        """(training, validation, test) of an array (Q, ...), or of a tuple or tree of such."""
        return tuple(jax.tree.map(lambda x, rows=rows: x[rows], data) for rows in self)


def divide(
    examples: int,
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    by: Literal["random", "blocks", "interleaved"] | Sequence[Sequence[int]] = "random",
    *,
    key: Array | None = None,
) -> Division:
    """Divides `examples`, Q, into training, validation and test part, by their shares.

    by: "random", from `key`, which only this one takes; "blocks", the first for training, the last for the test;
    "interleaved", in turns: each example goes to the part that is furthest behind its share, so that of the first n
    every part has its share but for less than one; or the three parts' own numbers, of which none may be twice and not
    all need be there. Shares count in proportion to their sum.

    >>> parts = divide(20, by="interleaved")
    >>> parts.validation.tolist(), parts.test.tolist()
    ([2, 8, 15], [4, 11, 17])

    Raises ValueError for examples < 1, shares that are not three numbers >= 0 with the first above 0, a way that is
    none, a key where none is taken or none where one is, and numbers that are no examples' or come twice; TypeError for
    what is no key.
    """
    examples = checks.integer("divide", "examples", examples, 1)
    random = isinstance(by, str) and by == "random"
    if random != (key is not None):
        wants = "needs key=jax.random.key(...)" if random else "draws nothing, and takes no key"
        raise ValueError(f"divide: by={by!r} {wants}")
    if not isinstance(by, str):
        return _given(examples, by)
    checks.one_of("divide", "by", by, WAYS)
    shares = _shares(shares)
    if by == "interleaved":
        return _interleaved(examples, shares)
    validation, test = (int(np.floor(share * examples + 0.5)) for share in shares[1:])
    training = examples - validation - test
    if training < 1:
        raise ValueError(f"divide: no example of {examples} is left for training, with {validation} and {test} taken")
    order = np.arange(examples, dtype=np.int32)
    if random:
        checks.prng_key("key", key)
        order = np.asarray(permutation(key, examples))
    return Division(*map(np.sort, np.split(order, (training, training + validation))))


def _shares(shares: Sequence[float]) -> np.ndarray:
    try:
        found = np.asarray(shares, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (3,) or not np.isfinite(found).all() or (found < 0).any() or found[0] == 0:
        raise ValueError(
            "divide: shares must be three numbers >= 0, of training, which is above 0, validation and test, "
            f"got {shares!r}"
        )
    return found / found.sum()


def _interleaved(examples: int, shares: np.ndarray) -> Division:
    part, counts = np.empty(examples, np.int64), np.zeros(3)
    for number in range(examples):
        # of parts equally far behind, but for rounding, the first
        part[number] = np.argmax(np.round(shares * (number + 1) - counts, 9))
        counts[part[number]] += 1
    return Division(*(np.flatnonzero(part == own).astype(np.int32) for own in range(3)))


def _given(examples: int, parts: Sequence[Sequence[int]]) -> Division:
    if not hasattr(parts, "__len__"):
        raise TypeError(
            f"divide: by must be {', '.join(map(repr, WAYS))} or three parts' numbers, got {type(parts).__name__}"
        )
    named = dict(zip(Division._fields, parts, strict=False)) if len(parts) == 3 else {}
    if not named:
        raise ValueError(f"divide: by must be {', '.join(map(repr, WAYS))} or three parts' numbers, got {len(parts)}")
    found = {}
    for name, numbers in named.items():
        own = np.asarray(numbers)
        own = own.astype(np.int32) if own.size == 0 else own
        if own.ndim != 1 or own.dtype.kind not in "iu":
            raise ValueError(f"divide: {name} must be integers (n,), got {own.dtype} of shape {own.shape}")
        if own.size and not 0 <= own.min() <= own.max() < examples:
            wrong = own[(own < 0) | (own >= examples)][0]
            raise ValueError(f"divide: {name} must be numbers from 0 to {examples - 1}, got {wrong}")
        found[name] = np.sort(own).astype(np.int32)
    if not found["training"].size:
        raise ValueError("divide: training must have one example at least, got none")
    numbers, times = np.unique(np.concatenate(list(found.values())), return_counts=True)
    if (times > 1).any():
        raise ValueError(f"divide: example {numbers[times > 1][0]} is there twice; expected disjoint parts")
    return Division(**found)
