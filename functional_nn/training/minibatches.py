"""Batch, mini-batch and stochastic index streams: data made from a key, so that two runs can be given the same.

Letters: Q examples, B the batch size, U = ceil(Q / B) updates an epoch.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Shuffle = Literal["each_epoch", "once", "never"]


@dataclass(frozen=True)
class BatchPlan:
    """Which examples each update of each epoch sees. Made by `batch`, `minibatch` or `stochastic`.

    size: B, or None for all examples at once. shuffle: "each_epoch", "once" (fixed random batches, CSE 475 19.68.1)
    or "never". An incomplete last batch keeps its examples: it is filled up with examples of weight 0.
    """

    size: int | None
    shuffle: Shuffle = "each_epoch"

    def updates(self, examples: int) -> int:
        """U, the number of updates in an epoch of `examples`. Raises ValueError for a batch larger than the data."""
        if self.size is None:
            return 1
        if self.size > examples:
            raise ValueError(f"batch size must be 1 to {examples}, the number of examples, got {self.size}")
        return -(-examples // self.size)

    def indices(self, key: Array, epoch: Array | int, examples: int) -> Array:
        """Example numbers (U, B) int32 for an epoch; a pure function of key and epoch."""
        if self.shuffle == "never" or self.size is None:
            order = jnp.arange(examples, dtype=jnp.int32)
        else:
            key = jax.random.fold_in(key, epoch) if self.shuffle == "each_epoch" else key
            order = jax.random.permutation(key, examples).astype(jnp.int32)
        updates = self.updates(examples)
        size = self.size or examples
        missing = updates * size - examples
        return jnp.concatenate([order, order[:missing]]).reshape(updates, size)

    def weights(self, examples: int) -> np.ndarray | None:
        """(U, B) float32, 0 for what fills up the last batch, else 1; None where nothing is filled up."""
        updates, size = self.updates(examples), self.size or examples
        if updates * size == examples:
            return None
        return (np.arange(updates * size) < examples).astype(np.float32).reshape(updates, size)


def batch() -> BatchPlan:
    """All examples in every update: gradient descent proper."""
    return BatchPlan(None, "never")


def minibatch(size: int, *, shuffle: Shuffle = "each_epoch") -> BatchPlan:
    """`size` examples an update. Raises ValueError for a size < 1 or an unknown `shuffle`."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"batch size must be an integer >= 1, got {size!r}")
    if shuffle not in ("each_epoch", "once", "never"):
        raise ValueError(f"shuffle must be 'each_epoch', 'once' or 'never', got {shuffle!r}")
    return BatchPlan(int(size), shuffle)


def stochastic(*, shuffle: Shuffle = "each_epoch") -> BatchPlan:
    """One example an update: stochastic gradient descent (Hagan Eq. 3.25-3.27)."""
    return minibatch(1, shuffle=shuffle)
