"""Batch, mini-batch and stochastic index streams: data made from a key, so that two runs can be given the same.

Letters: Q examples, B the batch size, U = ceil(Q / B) updates an epoch (floor where the last batch is dropped).

Two runs of `fit` with one key and one plan see identical batches, whatever their optimizers or gradients. A loss that
is a sum over the batch is the same training as its mean at B times the learning rate (Kordecki), for methods that
follow the gradient's size: `gd(rate)` on the mean is `gd(rate / B)` on the sum.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks

Shuffle = Literal["each_epoch", "once", "never"]
Last = Literal["kept", "dropped", "weighted"]


@dataclass(frozen=True)
class BatchPlan:
    """Which examples each update of each epoch sees. Made by `batch`, `minibatch` or `stochastic`.

    size: B, or None for all examples at once. shuffle: "each_epoch", "once" (fixed random batches, CSE 475 19.68.1)
    or "never". last: what becomes of an incomplete last batch. "kept": an update like any other, in which each of its
    b examples counts for 1 / b of a mean loss; "weighted": that update is scaled by b / B, so that every example of
    the epoch counts alike (in a loss that is a sum they do anyhow); "dropped": left out. Batches that are kept are
    filled up with examples of weight 0. Raises ValueError for a size < 1 and for unknown words.
    """

    size: int | None
    shuffle: Shuffle = "each_epoch"
    last: Last = "kept"

    def __post_init__(self):
        if self.size is not None:
            object.__setattr__(self, "size", checks.integer("", "batch size", self.size, 1))
        if self.shuffle not in ("each_epoch", "once", "never"):
            raise ValueError(f"shuffle must be 'each_epoch', 'once' or 'never', got {self.shuffle!r}")
        if self.last not in ("kept", "dropped", "weighted"):
            raise ValueError(f"last must be 'kept', 'dropped' or 'weighted', got {self.last!r}")

    def updates(self, examples: int) -> int:
        """U, the number of updates in an epoch of `examples`. Raises ValueError for a batch larger than the data."""
        if self.size is None:
            return 1
        if self.size > examples:
            raise ValueError(f"batch size must be 1 to {examples}, the number of examples, got {self.size}")
        return examples // self.size if self.last == "dropped" else -(-examples // self.size)

    def indices(self, key: Array, epoch: Array | int, examples: int) -> Array:
        """Example numbers (U, B) int32 for an epoch; a pure function of key and epoch."""
        if self.shuffle == "never" or self.size is None:
            order = jnp.arange(examples, dtype=jnp.int32)
        else:
            key = jax.random.fold_in(key, epoch) if self.shuffle == "each_epoch" else key
            order = _permutation(key, examples)
        updates = self.updates(examples)
        size = self.size or examples
        filled = jnp.concatenate([order, order[: max(0, updates * size - examples)]])
        return filled[: updates * size].reshape(updates, size)

    def weights(self, examples: int) -> np.ndarray | None:
        """(U, B) float32, 0 for what fills up the last batch, else 1; None where nothing is filled up."""
        updates, size = self.updates(examples), self.size or examples
        if updates * size <= examples:
            return None
        return (np.arange(updates * size) < examples).astype(np.float32).reshape(updates, size)

    def counts(self, examples: int) -> np.ndarray:
        """(U,) float64, how many examples each update of an epoch sees."""
        updates, size = self.updates(examples), self.size or examples
        return np.minimum(size, examples - size * np.arange(updates)).astype(np.float64)

    def scales(self, examples: int) -> np.ndarray | None:
        """(U,) float32, what each update's gradient of a mean loss is multiplied by; None where always by 1."""
        if self.last != "weighted" or self.weights(examples) is None:
            return None
        return (self.counts(examples) / self.size).astype(np.float32)


def batch() -> BatchPlan:
    """All examples in every update: gradient descent proper."""
    return BatchPlan(None, "never")


def minibatch(size: int, *, shuffle: Shuffle = "each_epoch", last: Last = "kept") -> BatchPlan:
    """`size` examples an update. Raises ValueError for a size < 1 or an unknown `shuffle` or `last`."""
    return BatchPlan(checks.integer("", "batch size", size, 1), shuffle, last)


def stochastic(*, shuffle: Shuffle = "each_epoch") -> BatchPlan:
    """One example an update: stochastic gradient descent (Hagan Eq. 3.25-3.27)."""
    return minibatch(1, shuffle=shuffle)


def _permutation(key: Array, examples: int) -> Array:
    """The numbers 0 to Q - 1 (Q,) in random order, int32.

    Random bits over each number's own, sorted as one array: on CPU five times faster than `jax.random.permutation`,
    which sorts a second one along and took a quarter of a small network's training time. Equal random bits leave two
    numbers in order, so it is done as often as makes that negligible: three times log(Q) random bits in all, the rule
    of JAX's own.
    """
    own = max(1, (examples - 1).bit_length())
    rounds = max(1, math.ceil(3 * math.log2(examples) / (32 - own)))
    numbers = jnp.arange(examples, dtype=jnp.uint32)
    order = numbers
    for bits in jax.random.bits(key, (rounds, examples), jnp.uint32):
        order = order[jnp.sort((bits >> own) << own | numbers) & ((1 << own) - 1)]
    return order.astype(jnp.int32)
