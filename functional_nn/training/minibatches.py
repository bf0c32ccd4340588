"""Batch, mini-batch and stochastic index streams: data made from a key, so that two runs can be given the same.

Letters: Q examples, B the batch size, U = ceil(Q / B) updates an epoch (floor where the last batch is dropped).

A batch's mean gradient has the whole one as its expectation; of B examples drawn with replacement its covariance is
Sigma / B, Sigma that of the examples' own gradients, and without Sigma / B (Q - B) / (Q - 1): nothing for B = Q.

Two runs of `fit` with one key and one plan see identical batches, whatever their optimizers or gradients. A loss that
is a sum over the batch is the same training as its mean at B times the learning rate (Kordecki), for methods that
follow the gradient's size: `gd(rate)` on the mean is `gd(rate / B)` on the sum.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.training import keys

Shuffle = Literal["each_epoch", "once", "never"]
Last = Literal["kept", "dropped", "weighted"]


class Drawn(NamedTuple):
    """An epoch's batches: indices (U, B) int32, weights (U, B) of their examples, scales (U,) of a mean's gradients."""

    indices: Array
    weights: Array
    scales: Array


@dataclass(frozen=True, repr=False)
class BatchPlan:
    """Which examples each update of each epoch sees. Made by `batch`, `minibatch`, `stochastic` or `importance`.

    size: B, or None for all examples at once. shuffle: "each_epoch", "once" (fixed random batches, CSE 475 19.68.1)
    or "never". last: what becomes of an incomplete last batch. "kept": an update like any other, in which each of its
    b examples counts for 1 / b of a mean loss; "weighted": that update is scaled by b / B, so that every example of
    the epoch counts alike (in a loss that is a sum they always do); "dropped": left out. Batches that are kept are
    filled up with examples of weight 0. importance: the share of uniform draws in batches that are drawn by gradient
    norm, see `importance`; None for batches that go through the data. replacement: every example of every batch is
    drawn from all Q, uniformly, in U whole batches an epoch; in one, some examples are seen several times and others
    not at all. Raises ValueError for a size < 1 and for unknown words, and where replacement has nothing to draw or
    goes with another order than "each_epoch" or with `last`, of which there is none.
    """

    size: int | None
    shuffle: Shuffle = "each_epoch"
    last: Last = "kept"
    importance: float | None = None
    replacement: bool = False

    def __post_init__(self):
        if self.size is not None:
            object.__setattr__(self, "size", checks.integer("", "batch size", self.size, 1))
        if self.shuffle not in ("each_epoch", "once", "never"):
            raise ValueError(f"shuffle must be 'each_epoch', 'once' or 'never', got {self.shuffle!r}")
        if self.last not in ("kept", "dropped", "weighted"):
            raise ValueError(f"last must be 'kept', 'dropped' or 'weighted', got {self.last!r}")
        if self.importance is not None:
            checks.integer("importance", "batch size", self.size, 1)

            def accepts(v):
                return (v > 0) & (v <= 1)

            checks.constant("importance", "uniform", self.importance, accepts, "in (0, 1]")
        if checks.boolean("minibatch", "replacement", self.replacement):
            if self.size is None or self.importance is not None:
                raise ValueError("replacement: expected batches of a size, drawn uniformly; use minibatch(size, ...)")
            if (self.shuffle, self.last) != ("each_epoch", "kept"):
                raise ValueError(
                    "replacement: examples are drawn anew each epoch, in whole batches; expected shuffle='each_epoch' "
                    f"and last='kept', got {self.shuffle!r} and {self.last!r}"
                )

    def __repr__(self) -> str:
        # by which checkpoints know it: of older versions, too, which had no replacement
        names = ("size", "shuffle", "last", "importance", *(("replacement",) if self.replacement else ()))
        return f"BatchPlan({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def _drawn(self) -> bool:
        """Does each batch have B examples, whatever Q is?"""
        return self.replacement or self.importance is not None

    def updates(self, examples: int) -> int:
        """U, the number of updates in an epoch of `examples`. Raises ValueError for a batch larger than the data."""
        if self.size is None:
            return 1
        if self.size > examples:
            raise ValueError(f"batch size must be 1 to {examples}, the number of examples, got {self.size}")
        return examples // self.size if self.last == "dropped" else -(-examples // self.size)

    def indices(self, key: Array, epoch: Array | int, examples: int) -> Array:
        """Example numbers (U, B) int32 for an epoch; a pure function of key and epoch."""
        if self.replacement:
            shape = self.updates(examples), self.size
            return jax.random.randint(keys.epoch(key, epoch), shape, 0, examples, jnp.int32)
        if self.shuffle == "never" or self.size is None:
            order = jnp.arange(examples, dtype=jnp.int32)
        else:
            key = keys.epoch(key, epoch) if self.shuffle == "each_epoch" else key
            order = permutation(key, examples)
        updates = self.updates(examples)
        size = self.size or examples
        filled = jnp.concatenate([order, order[: max(0, updates * size - examples)]])
        return filled[: updates * size].reshape(updates, size)

    def weights(self, examples: int) -> np.ndarray | None:
        """(U, B) float32, 0 for what fills up the last batch, else 1; None where nothing is filled up."""
        updates, size = self.updates(examples), self.size or examples
        if updates * size <= examples or self._drawn:
            return None
        return (np.arange(updates * size) < examples).astype(np.float32).reshape(updates, size)

    def draw(self, key: Array, epoch: Array | int, norms: Array) -> Drawn:
        """An epoch's batches where examples are drawn by the norms (Q,) of their gradients; see `importance`."""
        examples = len(norms)
        updates, uniform = self.updates(examples), jnp.full_like(norms, 1 / examples)
        total = jnp.sum(norms)
        proportional = jnp.where(total > 0, norms / jnp.where(total > 0, total, 1), uniform)
        probability = (1 - self.importance) * proportional + self.importance * uniform
        reached = jnp.cumsum(probability)
        at = jax.random.uniform(keys.epoch(key, epoch), (updates, self.size), norms.dtype) * reached[-1]
        indices = jnp.minimum(jnp.searchsorted(reached, at, side="right"), examples - 1).astype(jnp.int32)
        weights = 1 / (examples * probability[indices])
        # A mean loss divides by the sum of the weights; what is unbiased is the division by B.
        return Drawn(indices, weights, jnp.mean(weights, axis=1))

    def counts(self, examples: int) -> np.ndarray:
        """(U,) float64, how many examples each update of an epoch sees."""
        updates, size = self.updates(examples), self.size or examples
        if self._drawn:
            return np.full(updates, float(size))
        return np.minimum(size, examples - size * np.arange(updates)).astype(np.float64)

    def scales(self, examples: int) -> np.ndarray | None:
        """(U,) float32, what each update's gradient of a mean loss is multiplied by; None where always by 1."""
        if self.last != "weighted" or self.weights(examples) is None:
            return None
        return (self.counts(examples) / self.size).astype(np.float32)


def batch() -> BatchPlan:
    """All examples in every update: gradient descent proper."""
    return BatchPlan(None, "never")


def minibatch(
    size: int, *, shuffle: Shuffle = "each_epoch", last: Last = "kept", replacement: bool = False
) -> BatchPlan:
    """`size` examples an update; with `replacement`, each drawn from all (Lecture 2, Alg. 8.1, read literally).

    Raises ValueError for a size < 1, for an unknown `shuffle` or `last`, and where they do not go with replacement.
    """
    return BatchPlan(checks.integer("", "batch size", size, 1), shuffle, last, replacement=replacement)


def stochastic(*, shuffle: Shuffle = "each_epoch", replacement: bool = False) -> BatchPlan:
    """One example an update: stochastic gradient descent (Hagan Eq. 3.25-3.27); with `replacement`, Lecture 2's "sample
    i from 1..n".
    """
    return minibatch(1, shuffle=shuffle, replacement=replacement)


def importance(size: int, *, uniform: float = 0.1) -> BatchPlan:
    """`size` examples an update, drawn with replacement: mostly those with large gradients, and weighted less for it.

    Example q is drawn with probability p_q = (1 - uniform) |g_q| / sum |g| + uniform / Q and weighs 1 / (Q p_q), so
    that each batch's gradient is an unbiased estimate of the whole one; drawing by norm is what makes its variance
    least (Needell, Srebro and Ward 2014; Katharopoulos and Fleuret 2018, arXiv 1803.00942). The norms are those at the
    start of each epoch, from one sweep over all examples without dropout; uniform, in (0, 1], bounds every weight by
    1 / uniform. Training loss and accuracy in the history are then estimates, weighed alike. Raises ValueError for a
    size < 1 or, in training, above Q, and for `uniform` out of range.
    """
    return BatchPlan(size, importance=uniform)


def permutation(key: Array, examples: int) -> Array:
    """The numbers 0 to Q - 1 (Q,) in random order, int32.

    Random bits over each number's own, sorted as one array: on CPU five times faster than `jax.random.permutation`,
    which sorts a second one along and took a quarter of a small network's training time. Equal random bits leave two
    numbers in order, so it is done as often as makes that negligible: three times log(Q) random bits in all, the rule
    of JAX's own.
    """
    own = max(1, (examples - 1).bit_length())
    rounds = max(1, math.ceil(3 * math.log2(examples) / (32 - own)))
    numbers = jnp.arange(examples, dtype=jnp.uint32)
    order = None
    for bits in jax.random.bits(key, (rounds, examples), jnp.uint32):
        drawn = jnp.sort((bits >> own) << own | numbers) & ((1 << own) - 1)
        order = drawn if order is None else order[drawn]
    return order.astype(jnp.int32)
