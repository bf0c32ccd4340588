"""What training keeps and returns, as named tuples of arrays: batches, metrics, the history, and a run.

Letters: B batch size, E epochs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn.networks.network import Params

Correct = Callable[[Array, Array], Array]  # (outputs, targets) -> (Q,) booleans

COMPLETED, DIVERGED, STOPPED = 0, 1, 2  # how a run ended; STOPPED + i by the i-th criterion


class Batch(NamedTuple):
    """Examples that one update, or one evaluation, is made of.

    A whole data set may have `networks.stored` arrays for its inputs and targets.

    Attributes:
        inputs: `{name: (B, *P, R)}`, by name also where there is one.
        targets: `(B, *P, S)`.
        weights: (B,) of the examples, or `(B, *P)` of the outputs' positions; None where all count alike.
        key: for dropout and for gradients that are random; None where nothing is drawn.
        scale: multiplies the gradient; None for 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import training
        >>> training.Batch({"input": jnp.ones((5, 3))}, jnp.zeros((5, 2))).weights is None
        True
    """

    inputs: dict[str, Array]
    targets: Array
    weights: Array | None = None
    key: Array | None = None
    scale: Array | None = None


class Metrics(NamedTuple):
    """Scalars that `train_step` returns for one batch.

    Attributes:
        loss: F, before the update.
        weight: the sum of the examples' weights; without weights, their number.
        right: the weight of the examples that are classified correctly, None where that is undefined.
        gradient_norm: ||dF/dparams||.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import training
        >>> metrics = training.Metrics(jnp.array(0.7), jnp.array(4.0), jnp.array(3.0), jnp.array(0.1))
        >>> float(metrics.accuracy)
        0.75
    """

    loss: Array
    weight: Array
    right: Array | None
    gradient_norm: Array

    @property
    def accuracy(self) -> Array | None:
        """The share of examples classified correctly, each by its weight; None where that is undefined."""
        return share(self.right, self.weight)


class History(NamedTuple):
    """What was measured in each epoch: NumPy arrays (E,), one value an epoch.

    Losses have the precision of the parameters. A column that is not measured is nan; inside compiled programs it is
    None. Each example counts by its weight.

    Attributes:
        epoch: counted from 1.
        training_loss: F on the epoch's batches, each measured just before the update that used it. For `batch()` this
            is the loss before the epoch. The inputs are augmented and neurons dropped where training does so; the
            regularizer's penalty is not included.
        training_accuracy: the accuracy on the same outputs.
        gradient_norm: the mean of ||dF/dparams|| over the epoch's updates, the penalty's gradient included.
        validation_loss: F on the validation data after the epoch, without augmentation or dropout.
        validation_accuracy: the accuracy there.
        tracked: {name: array (E, ...)} for everything that `fit` was asked to track, measured after the epoch.

    Example:
        >>> import jax, numpy as np, functional_nn as fnn
        >>> network = fnn.multilayer((2, 1), ("linear",))
        >>> x, t = np.eye(2), np.ones((2, 1))
        >>> result = fnn.fit(network, "mean_square_error", "gd(0.1)", x, t, key=jax.random.key(0), epochs=3)
        >>> result.history.epoch.tolist(), result.history.training_loss.shape
        ([1, 2, 3], (3,))
        >>> bool(np.isnan(result.history.validation_loss).all())
        True
    """

    epoch: np.ndarray
    training_loss: np.ndarray
    training_accuracy: np.ndarray | None
    gradient_norm: np.ndarray
    validation_loss: np.ndarray | None
    validation_accuracy: np.ndarray | None
    tracked: dict[str, Any] = {}


class Best(NamedTuple):
    """The parameters of the best epoch so far.

    Attributes:
        params: the parameters after that epoch.
        epoch: its number; 0 while no score was finite, so that no epoch is best.
        score: its score, the lowest so far.
    """

    params: Params
    epoch: Array
    score: Array


class Run(NamedTuple):
    """All that training needs to continue, and how it ended.

    Attributes:
        state: the optimizer's.
        memories: one for each criterion.
        best: the best epoch, None where no criterion restores it.
        epoch: how many are done.
        ended: 0 not yet, 1 diverged, 2 + i by the i-th criterion, below 0 by the second-order method itself, with its
            status.
        failed: the update, counted from 1 over the whole run, that was not finite and was not made; 0 where none.
        shown: the loss of that update.
    """

    state: Any
    memories: tuple[Any, ...]
    best: Best | None
    epoch: Array
    ended: Array
    failed: Array
    shown: Array


def share(right: Array | None, weight: Array) -> Array | None:
    """right / weight, and 1 where all are right: compilers multiply by 1 / weight instead, which may round above 1."""
    return None if right is None else jnp.where(right >= weight, 1, right / weight)


def fill_missing(table: History) -> History:
    """Returns a compiled program's table with nan in the columns that are not measured."""
    like = table.training_loss
    nothing = None if isinstance(like, jax.ShapeDtypeStruct) else np.full(like.shape, np.nan, like.dtype)
    columns = {name: like if nothing is None else nothing for name, x in table._asdict().items() if x is None}
    return table._replace(**columns)


def blank_after_end(table: History, ran: Array) -> History:
    """Returns a compiled program's table with nan after `ran` epochs, 0 in integers, and in unmeasured columns."""
    late = jnp.arange(len(table.epoch), dtype=ran.dtype) >= ran

    def column(x):
        missing = jnp.asarray(jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0, x.dtype)
        return jnp.where(late.reshape(-1, *[1] * (x.ndim - 1)), missing, x)

    nothing = {name: jnp.full_like(table.training_loss, jnp.nan) for name, x in table._asdict().items() if x is None}
    return jax.tree.map(column, table)._replace(**nothing)


class Table:
    """A history that grows. Its memory is doubled when it is full, so that a row costs the same in a long run."""

    def __init__(self) -> None:
        self.count, self.whole = 0, None

    def add(self, rows: History) -> None:
        """Appends rows (n, ...)."""
        count = self.count + len(rows.epoch)
        if self.whole is None:
            self.whole = jax.tree.map(np.array, rows)
        elif count > len(self.whole.epoch):
            self.whole = jax.tree.map(lambda x: np.resize(x, (2 * count, *x.shape[1:])), self.whole)
        for column, x in zip(jax.tree.leaves(self.whole), jax.tree.leaves(rows), strict=True):
            column[self.count : count] = x
        self.count = count

    @property
    def rows(self) -> History:
        """All rows so far, (E, ...). Rows that were returned are not written to again."""
        return jax.tree.map(lambda x: x[: self.count], self.whole)
