r"""Plans of batches: which examples each update sees, in batch, mini-batch and stochastic training.

Letters: Q examples, B the batch size, U = ceil(Q / B) updates an epoch (floor where the last batch is dropped).

The mean gradient of a batch has the gradient of all examples as its expectation. If the gradients of the examples have
the covariance :math:`\Sigma`, the mean gradient of B examples drawn with replacement has the covariance

.. math:: \frac{1}{B} \Sigma

and that of B examples drawn without replacement, which is 0 for B = Q,

.. math:: \frac{1}{B} \, \frac{Q - B}{Q - 1} \, \Sigma

The indices are a pure function of a key: two runs of `fit` with the same key and plan see identical batches, whatever
their optimizers and gradients are. For methods that follow the gradient's size, training on a loss that is a sum over
the batch equals training on its mean with B times the learning rate (Kordecki): `gd(rate)` on the mean is
`gd(rate / B)` on the sum.
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
    """The batches of an epoch that are drawn by gradient norm.

    Attributes:
        indices: (U, B) int32, the numbers of the examples.
        weights: (U, B), the weights of the examples.
        scales: (U,), the factors of the gradients of a mean loss.
    """

    indices: Array
    weights: Array
    scales: Array


@dataclass(frozen=True, repr=False)
class BatchPlan:
    """Which examples each update of each epoch sees. Returned by `batch`, `minibatch`, `stochastic` and `importance`.

    Attributes:
        size: B, or None for all examples at once.
        shuffle: "each_epoch", "once" (fixed random batches, CSE 475 19.68.1) or "never".
        last: What happens to an incomplete last batch of b < B examples. "kept": it is an update like any other, in
            which each example counts for 1 / b of a mean loss. "weighted": its gradient is scaled by b / B, so that all
            examples of the epoch count equally (in a loss that is a sum they always do). "dropped": it is left out.
            Batches that are kept are filled with examples of weight 0.
        importance: The fraction of uniform draws in batches drawn by gradient norm, see `importance`. None for batches
            that go through the data.
        replacement: True draws every example of every batch from all Q, uniformly, in U whole batches an epoch. In an
            epoch some examples are then seen several times, and others not at all.

    Raises:
        ValueError: For a size < 1, for unknown words, and for replacement without a size, with another `shuffle` than
            "each_epoch" or with another `last` than "kept".

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.BatchPlan(32)
        BatchPlan(size=32, shuffle='each_epoch', last='kept', importance=None)
        >>> fnn.training.BatchPlan(32).updates(100)
        4
    """

    size: int | None
    shuffle: Shuffle = "each_epoch"
    last: Last = "kept"
    importance: float | None = None
    replacement: bool = False

    def __post_init__(self) -> None:
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
                    "replacement: examples are drawn again in each epoch, in whole batches; expected "
                    f"shuffle='each_epoch' and last='kept', got {self.shuffle!r} and {self.last!r}"
                )

    def __repr__(self) -> str:
        # checkpoints hold this text, also those of older versions, which had no replacement
        names = ("size", "shuffle", "last", "importance", *(("replacement",) if self.replacement else ()))
        return f"BatchPlan({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def _drawn(self) -> bool:
        """True if each batch has B examples, whatever Q is."""
        return self.replacement or self.importance is not None

    def updates(self, examples: int) -> int:
        """Returns U, the number of updates in an epoch of `examples`.

        Raises:
            ValueError: For a batch larger than the data.
        """
        if self.size is None:
            return 1
        if self.size > examples:
            raise ValueError(f"batch size must be 1 to {examples}, the number of examples, got {self.size}")
        return examples // self.size if self.last == "dropped" else -(-examples // self.size)

    def indices(self, key: Array, epoch: Array | int, examples: int) -> Array:
        """Returns the numbers of an epoch's examples, (U, B) int32: a pure function of key and epoch."""
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
        """Returns (U, B) float32: 0 for examples that only fill the last batch, else 1. None if there are none."""
        updates, size = self.updates(examples), self.size or examples
        if updates * size <= examples or self._drawn:
            return None
        return (np.arange(updates * size) < examples).astype(np.float32).reshape(updates, size)

    def draw(self, key: Array, epoch: Array | int, norms: Array) -> Drawn:
        """Returns an epoch's batches, drawn by the norms (Q,) of the examples' gradients. See `importance`."""
        examples = len(norms)
        updates, uniform = self.updates(examples), jnp.full_like(norms, 1 / examples)
        total = jnp.sum(norms)
        proportional = jnp.where(total > 0, norms / jnp.where(total > 0, total, 1), uniform)
        probability = (1 - self.importance) * proportional + self.importance * uniform
        reached = jnp.cumsum(probability)
        at = jax.random.uniform(keys.epoch(key, epoch), (updates, self.size), norms.dtype) * reached[-1]
        indices = jnp.minimum(jnp.searchsorted(reached, at, side="right"), examples - 1).astype(jnp.int32)
        weights = 1 / (examples * probability[indices])
        # A mean loss divides by the sum of the weights; the division by B is unbiased.
        return Drawn(indices, weights, jnp.mean(weights, axis=1))

    def counts(self, examples: int) -> np.ndarray:
        """Returns (U,) float64, how many examples each update of an epoch sees."""
        updates, size = self.updates(examples), self.size or examples
        if self._drawn:
            return np.full(updates, float(size))
        return np.minimum(size, examples - size * np.arange(updates)).astype(np.float64)

    def scales(self, examples: int) -> np.ndarray | None:
        """Returns (U,) float32, the factor of each update's gradient of a mean loss. None if all are 1."""
        if self.last != "weighted" or self.weights(examples) is None:
            return None
        return (self.counts(examples) / self.size).astype(np.float32)


def batch() -> BatchPlan:
    """Returns the plan with all examples in every update, in their order: gradient descent proper.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.batch().updates(100)
        1
    """
    return BatchPlan(None, "never")


def minibatch(
    size: int, *, shuffle: Shuffle = "each_epoch", last: Last = "kept", replacement: bool = False
) -> BatchPlan:
    """Returns the plan with `size` examples in each update.

    Args:
        size: B, >= 1. Training refuses a size above Q.
        shuffle: "each_epoch" (default), "once" (fixed random batches) or "never".
        last: What happens to an incomplete last batch: "kept" (default), "weighted" or "dropped", see `BatchPlan`.
        replacement: True draws each example from all (Lecture 2, Alg. 8.1, read literally). False by default.

    Raises:
        ValueError: For a size < 1, an unknown word, and `replacement` with another `shuffle` or `last` than the
            default.

    Example:
        >>> import jax, functional_nn as fnn
        >>> plan = fnn.training.minibatch(4, shuffle="never", last="dropped")
        >>> plan.indices(jax.random.key(0), 0, 10).tolist()
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    return BatchPlan(checks.integer("", "batch size", size, 1), shuffle, last, replacement=replacement)


def stochastic(*, shuffle: Shuffle = "each_epoch", replacement: bool = False) -> BatchPlan:
    """Returns the plan with one example in each update: stochastic gradient descent.

    Args:
        shuffle: "each_epoch" (default), "once" or "never".
        replacement: True draws each example from all: Lecture 2's "sample i from 1..n". False by default.

    Raises:
        ValueError: As `minibatch`.

    References:
        Hagan, Demuth and Beale, Neural Network Design, Eq. 3.25-3.27.

    Example:
        >>> import jax, functional_nn as fnn
        >>> plan = fnn.training.stochastic()
        >>> sorted(plan.indices(jax.random.key(0), 0, 5).ravel().tolist())
        [0, 1, 2, 3, 4]
    """
    return minibatch(1, shuffle=shuffle, replacement=replacement)


def importance(size: int, *, uniform: float = 0.1) -> BatchPlan:
    r"""Returns the plan with `size` examples in each update, drawn by the norms of their gradients.

    Examples are drawn with replacement. Example q is drawn with probability

    .. math:: p_q = (1 - u) \frac{\lVert g_q \rVert}{\sum_r \lVert g_r \rVert} + \frac{u}{Q}

    where u is `uniform`, and has the weight 1 / (Q p_q), so that each batch's gradient is an unbiased estimate of the
    gradient of all examples. Drawing by norm minimizes its variance. The norms are those at the start of each epoch,
    from one sweep over all examples without dropout. Training loss and accuracy in the history are estimates with the
    same weights.

    Args:
        size: B, >= 1. Training refuses a size above Q.
        uniform: The fraction of uniform draws, in (0, 1]. It bounds every weight by 1 / uniform.

    Raises:
        ValueError: For a size < 1, and for `uniform` out of range.

    References:
        Needell, Srebro and Ward 2014. Katharopoulos and Fleuret 2018, arXiv 1803.00942.

    Example:
        >>> import jax, functional_nn as fnn
        >>> plan = fnn.training.importance(2, uniform=0.5)
        >>> drawn = plan.draw(jax.random.key(0), 0, jax.numpy.array([0.0, 0.0, 0.0, 1.0]))
        >>> drawn.indices.shape, drawn.weights.shape
        ((2, 2), (2, 2))
    """
    return BatchPlan(size, importance=uniform)


def permutation(key: Array, examples: int) -> Array:
    """Returns the numbers 0 to Q - 1 in random order, (Q,) int32.

    The high bits of each number are random, the low bits are the number itself, and all are sorted as one array. On CPU
    this is five times faster than `jax.random.permutation`, which sorts a second array along and took a quarter of a
    small network's training time. Two numbers with equal random bits stay in order, so the sort is repeated until that
    is negligible: 3 log2(Q) random bits in all, the rule of JAX's own permutation.
    """
    number_bits = max(1, (examples - 1).bit_length())
    rounds = max(1, math.ceil(3 * math.log2(examples) / (32 - number_bits)))
    numbers = jnp.arange(examples, dtype=jnp.uint32)
    order = None
    for bits in jax.random.bits(key, (rounds, examples), jnp.uint32):
        drawn = jnp.sort((bits >> number_bits) << number_bits | numbers) & ((1 << number_bits) - 1)
        order = drawn if order is None else order[drawn]
    return order.astype(jnp.int32)
