"""Divisions of the examples into three disjoint parts: for training, for validation and for the test.

Letters: Q examples. The ways "random", "blocks" and "interleaved" are MATLAB's dividerand, divideblock and divideint,
and explicit numbers are its divideind. The validation and test parts have their shares of Q, rounded, and the training
part has the rest.
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
    """The numbers of the examples in each part, increasing, int32. Returned by `divide`.

    Attributes:
        training: The examples that the network is trained on.
        validation: The examples that decide when to stop, or which network is best.
        test: The examples kept for the test.

    Example:
        >>> import numpy as np, functional_nn as fnn
        >>> division = fnn.training.divide(10, by="blocks")
        >>> training, validation, test = division.take(np.arange(10.0))
        >>> validation.tolist()
        [6.0, 7.0]
    """

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def take(self, data: Any) -> tuple[Any, Any, Any]:
        """Returns the training, validation and test part of an array (Q, ...), or of a tuple or tree of them."""
        return tuple(jax.tree.map(lambda x, rows=rows: x[rows], data) for rows in self)


def divide(
    examples: int,
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    by: Literal["random", "blocks", "interleaved"] | Sequence[Sequence[int]] = "random",
    *,
    key: Array | None = None,
) -> Division:
    """Divides examples into a training, a validation and a test part.

    Args:
        examples: Their number, Q.
        shares: The shares of training, validation and test, three numbers >= 0 of which the first is above 0. They
            count relative to their sum.
        by: "random" (default) draws the parts from `key`. "blocks" takes the first examples for training and the last
            for the test. "interleaved" gives each example to the part that is furthest behind its share, so that of
            the first n examples every part has its share to within one. Or three lists of numbers, one for each
            part: no number may occur twice, and numbers may be left out.
        key: A key of `jax.random.key`, only with "random".

    Returns:
        A `Division`, whose `take` divides arrays.

    Raises:
        ValueError: For `examples` < 1, wrong shares, an unknown way, a missing or an unused key, and for numbers that
            are out of range or occur twice.
        TypeError: If `key` is not a key, or `by` is neither a word nor lists.

    Example:
        >>> import functional_nn as fnn
        >>> division = fnn.training.divide(20, by="interleaved")
        >>> division.validation.tolist(), division.test.tolist()
        ([2, 8, 15], [4, 11, 17])
    """
    examples = checks.integer("divide", "examples", examples, 1)
    random = isinstance(by, str) and by == "random"
    if random != (key is not None):
        wants = "needs key=jax.random.key(...)" if random else "draws nothing and takes no key"
        raise ValueError(f"divide: by={by!r} {wants}")
    if not isinstance(by, str):
        return _explicit(examples, by)
    checks.one_of("divide", "by", by, WAYS)
    shares = _fractions(shares)
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


def _fractions(shares: Sequence[float]) -> np.ndarray:
    """The shares divided by their sum."""
    try:
        fractions = np.asarray(shares, np.float64)
    except (TypeError, ValueError):
        fractions = np.zeros(0)
    if fractions.shape != (3,) or not np.isfinite(fractions).all() or (fractions < 0).any() or fractions[0] == 0:
        raise ValueError(
            "divide: shares must be three numbers >= 0, of training, which is above 0, validation and test, "
            f"got {shares!r}"
        )
    return fractions / fractions.sum()


def _interleaved(examples: int, fractions: np.ndarray) -> Division:
    part_of, counts = np.empty(examples, np.int64), np.zeros(3)
    for number in range(examples):
        # of parts that are equally far behind, up to rounding, the first
        part_of[number] = np.argmax(np.round(fractions * (number + 1) - counts, 9))
        counts[part_of[number]] += 1
    return Division(*(np.flatnonzero(part_of == part).astype(np.int32) for part in range(3)))


def _explicit(examples: int, parts: Sequence[Sequence[int]]) -> Division:
    """The division into lists of numbers."""
    expected = f"{', '.join(map(repr, WAYS))} or three lists of numbers"
    if not hasattr(parts, "__len__"):
        raise TypeError(f"divide: by must be {expected}, got {type(parts).__name__}")
    if len(parts) != 3:
        raise ValueError(f"divide: by must be {expected}, got {len(parts)}")
    checked = {}
    for name, part in zip(Division._fields, parts, strict=True):
        numbers = np.asarray(part)
        numbers = numbers.astype(np.int32) if numbers.size == 0 else numbers
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise ValueError(f"divide: {name} must be integers (n,), got {numbers.dtype} of shape {numbers.shape}")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < examples:
            wrong = numbers[(numbers < 0) | (numbers >= examples)][0]
            raise ValueError(f"divide: {name} must be numbers from 0 to {examples - 1}, got {wrong}")
        checked[name] = np.sort(numbers).astype(np.int32)
    if not checked["training"].size:
        raise ValueError("divide: training must have at least one example, got none")
    numbers, counts = np.unique(np.concatenate(list(checked.values())), return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"divide: example {numbers[counts > 1][0]} occurs twice; expected disjoint parts")
    return Division(**checked)
