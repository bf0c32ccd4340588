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
    """inputs {name: (B, *P, R)}, targets (B, *P, S); weights (B,) of the examples, or (B, *P) of positions; a key for
    dropout and for gradients that are random, a scale of the gradient, each where there is one. A whole data set may
    have `networks.stored` ones in the places of inputs and targets.
    """

    inputs: dict[str, Array]
    targets: Array
    weights: Array | None = None
    key: Array | None = None
    scale: Array | None = None


class Metrics(NamedTuple):
    """Scalars, of one batch. loss: F; weight: the examples' weights in all, which without weights is their number;
    right: of those that are classified rightly, None where that has no sense; gradient_norm: ||dF/dparams||.
    """

    loss: Array
    weight: Array
    right: Array | None
    gradient_norm: Array

    @property
    def accuracy(self) -> Array | None:
        """The share of examples classified rightly, each by its weight."""
        return share(self.right, self.weight)


class History(NamedTuple):
    """One value an epoch, NumPy arrays (E,).

    training_loss and training_accuracy are those of the epoch's examples, each measured just before the update that
    used it (for `batch`, exactly those before the epoch), augmented, with neurons dropped where there is dropout and
    without the regularizer's penalty; gradient_norm, the penalty's gradient included, is the mean over the epoch's
    updates; validation_* are measured after the epoch, as the data are and no neuron dropped; each example counts by
    its weight. Each loss has the precision of the parameters. nan where there is nothing to say; None within compiled
    programs. tracked: {name: what `fit` was asked to track, each of its arrays (E, ...)}, measured after the epoch on
    all training examples.
    """

    epoch: np.ndarray
    training_loss: np.ndarray
    training_accuracy: np.ndarray | None
    gradient_norm: np.ndarray
    validation_loss: np.ndarray | None
    validation_accuracy: np.ndarray | None
    tracked: dict[str, Any] = {}


class Best(NamedTuple):
    """The parameters of the best epoch so far, which that was, and its score, the lowest; epoch 0 before any score was
    finite: then nothing is best.
    """

    params: Params
    epoch: Array
    score: Array


class Run(NamedTuple):
    """All that training needs to go on, and how it ended: 0 not yet, 1 diverged, 2 + i by the i-th criterion, below 0
    by the second-order method itself, with its status.

    failed: the update, counted from 1 over the whole run, that was not finite and was not made; 0 where none. shown:
    the loss it found.
    """

    state: Any
    memories: tuple
    best: Best | None
    epoch: Array
    ended: Array
    failed: Array
    shown: Array


def share(right: Array | None, weight: Array) -> Array | None:
    """right / weight, and 1 where all are right: compilers multiply by 1 / weight instead, which may round above 1."""
    return None if right is None else jnp.where(right >= weight, 1, right / weight)


def fill_missing(table: History) -> History:
    """A compiled program's table with nan in the columns that have nothing to say."""
    like = table.training_loss
    nothing = None if isinstance(like, jax.ShapeDtypeStruct) else np.full(like.shape, np.nan, like.dtype)
    columns = {name: like if nothing is None else nothing for name, x in table._asdict().items() if x is None}
    return table._replace(**columns)


def blank_after_end(table: History, ran: Array) -> History:
    """A compiled program's table with nan after the end, 0 in integers, and in columns that have nothing to say."""
    late = jnp.arange(len(table.epoch), dtype=ran.dtype) >= ran

    def column(x):
        missing = jnp.asarray(jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0, x.dtype)
        return jnp.where(late.reshape(-1, *[1] * (x.ndim - 1)), missing, x)

    nothing = {name: jnp.full_like(table.training_loss, jnp.nan) for name, x in table._asdict().items() if x is None}
    return jax.tree.map(column, table)._replace(**nothing)


class Table:
    """A history that grows. Its memory is doubled when it is full, so that a row costs the same in a long run."""

    def __init__(self):
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
        """All rows so far, (E, ...): what is given out is not written to again."""
        return jax.tree.map(lambda x: x[: self.count], self.whole)
