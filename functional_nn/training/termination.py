r"""Criteria that stop training before the last epoch. They read each epoch's history inside the compiled program.

CSE 475, 19.70.3, stops when the loss no longer changes significantly, or when the validation loss rises. Lecture 2
trains while the parameters change. The other criteria are Prechelt's, in his letters: :math:`E_{va}(t)` is the
validation loss after epoch t, :math:`E_{opt}(t)` the lowest validation loss so far, and :math:`E_{tr}(t)` the training
loss, here that of the epoch's examples before the updates that used them. A strip is k successive epochs.

The generalization loss, in percent:

.. math:: GL(t) = 100 \left( \frac{E_{va}(t)}{E_{opt}(t)} - 1 \right)

The training progress over the strip that ends with epoch t, in per mille:

.. math:: P_k(t) = 1000 \left( \frac{\sum_{t'=t-k+1}^{t} E_{tr}(t')}{k \min_{t'=t-k+1}^{t} E_{tr}(t')} - 1 \right)

References:
    Prechelt 1998, Early Stopping - But When?, in Neural Networks: Tricks of the Trade.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, precision
from functional_nn.precision import at_least_float32
from functional_nn.registry import Registry
from functional_nn.rows import Described

__all__ = [
    "Criterion",
    "cycle",
    "early_stopping",
    "generalization_loss",
    "get",
    "gradient_below",
    "knows",
    "loss_below",
    "names",
    "no_change",
    "progress_below",
    "progress_quotient",
    "register",
    "successive_increases",
    "unchanged",
]


@dataclass(frozen=True)
class Criterion(Described):
    """A criterion that stops training, for `fit(stop=...)`.

    It keeps a memory, a pytree of arrays, from epoch to epoch. Both functions run inside the compiled program.

    Attributes:
        name: Its name, which becomes the status of a run that it stops.
        init: `init() -> memory`, before the first epoch.
        update: `update(memory, row) -> (memory, stop)` after each epoch. `row` is a `History` of this epoch's scalars,
            and `stop` a scalar bool.
        reason: The words in `FitResult.reason` when it stops a run. Checkpoints hold them: a run continues only
            with the same words.
        score: `score(row) -> scalar`. The parameters of the epoch with the lowest score are restored. None (default)
            keeps the last parameters.
        validation: True if it needs validation data.
        accuracy: True if it needs a loss with right answers.
        params: True if the functions also take the parameters: `init(params)`, `update(memory, row, params)`.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> criterion = fnn.training.Criterion(
        ...     "small_loss", tuple, lambda memory, row: (memory, row.training_loss < 0.1), "the loss is below 0.1"
        ... )
        >>> row = fnn.training.History(1, jnp.asarray(0.05), None, jnp.asarray(1.0), None, None)
        >>> bool(criterion.judge(criterion.begin(None), row, None)[1])
        True
    """

    name: str
    init: Callable[[], Any]
    update: Callable[[Any, Any], tuple[Any, Array]]
    reason: str
    score: Callable[[Any], Array] | None = None
    validation: bool = False
    accuracy: bool = False
    params: bool = False

    def begin(self, params: Any) -> Any:
        """Returns the memory before the first epoch, which starts from `params`."""
        return self.init(params) if self.params else self.init()

    def judge(self, memory: Any, row: Any, params: Any) -> tuple[Any, Array]:
        """Returns (memory, stop) after an epoch that ended with `params`."""
        return self.update(memory, row, params) if self.params else self.update(memory, row)

    def __repr__(self) -> str:
        return f"<criterion {self.name}: {self.reason}>"


_registry: Registry[Criterion] = Registry("criterion", Criterion)
register, names = _registry.register, _registry.names
get, knows = _registry.get, _registry.knows


def _shown(number) -> str:
    return f"{number:g}" if isinstance(number, float) else "a traced number"


# By the losses --------------------------------------------------------------------------------------------------------


@register
def no_change(tolerance: float = 1e-4, epochs: int = 5) -> Criterion:
    """Stops when the training loss has not changed significantly for several epochs.

    The loss is compared with a reference, the last loss that differed by more than the tolerance from the reference
    before it. A slow but steady change therefore counts.

    Args:
        tolerance: The change that is not significant, relative to the reference, > 0.
        epochs: How many successive epochs without a significant change.

    Raises:
        ValueError: For a tolerance <= 0 or `epochs` < 1.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.no_change(1e-3, epochs=3)
        <criterion no_change: the training loss changed by less than 0.001 of itself for 3 epochs>
    """
    tolerance = checks.constant("no_change", "tolerance", tolerance, lambda v: (v > 0) & np.isfinite(v), "> 0")
    checks.integer("no_change", "epochs", epochs, 1)

    def update(memory, row):
        reference, unchanged_epochs = memory
        loss = row.training_loss.astype(reference.dtype)
        close = jnp.abs(loss - reference) <= tolerance * jnp.abs(reference)  # False for nan
        changed = ~(close & (reference < precision.largest(reference.dtype)))  # True in the first epoch
        reference = jnp.where(changed, loss, reference)
        unchanged_epochs = jnp.where(changed, 0, unchanged_epochs + 1)
        return (reference, unchanged_epochs), unchanged_epochs >= epochs

    return Criterion(
        "no_change",
        lambda: (_no_loss_yet(), jnp.zeros((), jnp.int32)),
        update,
        f"the training loss changed by less than {_shown(tolerance)} of itself for {epochs} epochs",
    )


@register
def gradient_below(norm: float) -> Criterion:
    """Stops when the norm of the gradient, averaged over the epoch's updates, is at most `norm`.

    Args:
        norm: The norm, > 0.

    Raises:
        ValueError: For a norm <= 0.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.gradient_below(1e-3)
        <criterion gradient_below: the gradient norm is at most 0.001>
    """
    norm = checks.constant("gradient_below", "norm", norm, lambda v: (v > 0) & np.isfinite(v), "> 0")
    return Criterion(
        "gradient_below",
        tuple,
        lambda memory, row: (memory, row.gradient_norm <= norm),
        f"the gradient norm is at most {_shown(norm)}",
    )


@register
def loss_below(goal: float) -> Criterion:
    """Stops when the training loss is at most `goal`.

    The training loss is that of the epoch's examples, which are not all examples if they are drawn with replacement.

    Args:
        goal: The loss, a finite number.

    Raises:
        ValueError: If the goal is not a finite number.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.loss_below(0.01)
        <criterion loss_below: the training loss is at most 0.01>
    """
    goal = checks.constant("loss_below", "goal", goal, np.isfinite, "a finite number")
    return Criterion(
        "loss_below",
        tuple,
        lambda memory, row: (memory, row.training_loss <= goal),
        f"the training loss is at most {_shown(goal)}",
    )


@register
def early_stopping(
    patience: int = 10,
    least: float = 0.0,
    monitor: Literal["validation_loss", "validation_accuracy"] = "validation_loss",
    restore: bool = True,
) -> Criterion:
    """Stops when the validation loss, or accuracy, has not improved for `patience` epochs.

    Args:
        patience: How many successive epochs without an improvement.
        least: An epoch improves only if the loss falls (the accuracy rises) by more than this. >= 0.
        monitor: "validation_loss" or "validation_accuracy".
        restore: True (default) returns exactly the parameters of the best epoch, the first of equal ones, also if the
            last epoch comes before the patience ends. False returns the last parameters.

    Raises:
        ValueError: For `patience` < 1, a negative `least`, or an unknown monitor. `fit` raises it without validation
            data.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((2, 1), ("sigmoid",))
        >>> data = jax.numpy.eye(2), jax.numpy.array([[0.0], [1.0]])
        >>> result = fnn.fit(
        ...     network, "binary_cross_entropy", "gd(0.0)", *data,
        ...     key=jax.random.key(0), epochs=20, validation=data, stop=fnn.training.early_stopping(patience=3),
        ... )
        >>> result.status, len(result.history.epoch), int(result.best.epoch)
        ('early_stopping', 4, 1)
    """
    checks.integer("early_stopping", "patience", patience, 1)
    checks.boolean("early_stopping", "restore", restore)
    least = checks.constant("early_stopping", "least", least, lambda v: (v >= 0) & np.isfinite(v), "a number >= 0")
    checks.one_of("early_stopping", "monitor", monitor, ("validation_loss", "validation_accuracy"))

    def score(row):
        return row.validation_loss if monitor == "validation_loss" else -row.validation_accuracy

    def update(memory, row):
        lowest, waited = memory
        now = score(row).astype(lowest.dtype)
        improved = now < lowest - least
        lowest, waited = jnp.where(improved, now, lowest), jnp.where(improved, 0, waited + 1)
        return (lowest, waited), waited >= patience

    return Criterion(
        "early_stopping",
        lambda: (_no_loss_yet(), jnp.zeros((), jnp.int32)),
        update,
        f"the {monitor.replace('_', ' ')} has not improved for {patience} epochs",
        score if restore else None,
        validation=True,
        accuracy=monitor == "validation_accuracy",
    )


@register
def generalization_loss(alpha: float = 5.0, restore: bool = True, strip: int = 1) -> Criterion:
    """Prechelt's GL: stops when the validation loss exceeds its lowest value so far by more than `alpha` percent.

    It stops after the first epoch with 100 (E_va(t) / E_opt(t) - 1) > alpha. Losses must be positive.

    Args:
        alpha: The excess in percent, >= 0.
        restore: True (default) restores the parameters of the best epoch, as in `early_stopping`.
        strip: The validation loss is read only every `strip` epochs: Prechelt's "once in a while, e.g. after every
            fifth epoch". A method whose first steps go up and down is then not stopped at once. The restored epoch may
            be any epoch.

    Raises:
        ValueError: For a negative alpha or `strip` < 1.

    References:
        Prechelt 1998, Early Stopping - But When?

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.generalization_loss(5)
        <criterion generalization_loss: the validation loss is more than 5 % above its lowest>
    """
    alpha = checks.constant("generalization_loss", "alpha", alpha, *checks.NON_NEGATIVE)
    checks.boolean("generalization_loss", "restore", restore)
    checks.integer("generalization_loss", "strip", strip, 1)

    def init():
        return _no_loss_yet() if strip == 1 else (_no_loss_yet(), jnp.zeros((), jnp.int32))

    def update(memory, row):
        lowest, at = (memory, 0) if strip == 1 else memory
        now, ends = row.validation_loss.astype(lowest.dtype), at + 1 == strip
        lowest = jnp.where(ends & (now < lowest), now, lowest)
        stop = ends & (lowest < _no_loss_yet()) & (100 * (now - lowest) > alpha * lowest)
        return (lowest if strip == 1 else (lowest, jnp.where(ends, 0, at + 1))), stop

    return Criterion(
        "generalization_loss",
        init,
        update,
        f"the validation loss is more than {_shown(alpha)} % above its lowest",
        _validation_loss if restore else None,
        validation=True,
    )


def _new_strip():
    """The memory of a strip before its first epoch: the sum of the training losses, the lowest, and their number."""
    return jnp.zeros((), precision.default()), _no_loss_yet(), jnp.zeros((), jnp.int32)


class _Strip(NamedTuple):
    """A strip after one more epoch; P_k = 1000 excess / least.

    memory: for the next epoch. excess: the mean training loss - the lowest. ends: True in the strip's last epoch.
    """

    memory: tuple
    excess: Array
    least: Array
    ends: Array


def _along_strip(memory: tuple, loss: Array, strip: int) -> _Strip:
    total, least, at = memory
    loss = loss.astype(total.dtype)
    total, least, at = total + loss, jnp.where(loss < least, loss, least), at + 1
    ends = at == strip
    following = jax.tree.map(lambda new, old: jnp.where(ends, new, old), _new_strip(), (total, least, at))
    return _Strip(following, total / strip - least, least, ends)


@register
def progress_quotient(alpha: float = 0.5, strip: int = 5, restore: bool = True) -> Criterion:
    """Prechelt's PQ: stops when the validation loss has risen by much more than training still gains.

    It stops after the first strip at whose end GL(t) / P_k(t) > alpha, where GL(t) = 100 (E_va(t) / E_opt(t) - 1), in
    percent, and P_k(t) = 1000 (mean of E_tr over the strip / its lowest - 1), the training progress in per mille.
    Losses must be positive.

    Args:
        alpha: The quotient, >= 0.
        strip: k, in epochs.
        restore: True (default) restores the parameters of the best epoch, as in `early_stopping`.

    Raises:
        ValueError: For a negative alpha or `strip` < 1.

    References:
        Prechelt 1998, Early Stopping - But When?

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.progress_quotient(0.5, strip=5).name
        'progress_quotient'
    """
    alpha = checks.constant("progress_quotient", "alpha", alpha, *checks.NON_NEGATIVE)
    checks.integer("progress_quotient", "strip", strip, 1)
    checks.boolean("progress_quotient", "restore", restore)

    def init():
        return _no_loss_yet(), *_new_strip()

    def update(memory, row):
        lowest, *training_memory = memory
        now = row.validation_loss.astype(lowest.dtype)
        lowest = jnp.where(now < lowest, now, lowest)
        along = _along_strip(training_memory, row.training_loss, strip)
        # GL > alpha P_k, multiplied by both denominators, since a loss may be 0
        stop = 100 * (now - lowest) * along.least > alpha * 1000 * along.excess * lowest
        return (lowest, *along.memory), stop & along.ends & (lowest < _no_loss_yet())

    return Criterion(
        "progress_quotient",
        init,
        update,
        f"the validation loss has risen by more than training still gains in {strip} epochs is worth: the "
        f"quotient is above {_shown(alpha)}",
        _validation_loss if restore else None,
        validation=True,
    )


@register
def progress_below(alpha: float = 0.1, strip: int = 5) -> Criterion:
    """Stops when training gains little any more: its progress P_k(t) over a strip is below `alpha`.

    P_k(t) is in per mille, as in `progress_quotient`. Losses must be positive. It restores no earlier parameters and
    may be combined with a criterion that does.

    Args:
        alpha: The progress in per mille, > 0.
        strip: k, in epochs.

    Raises:
        ValueError: For alpha <= 0 or `strip` < 1.

    References:
        Prechelt 1994, PROBEN1, which stops at P_5 < 0.1.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.progress_below(0.1, strip=5).name
        'progress_below'
    """
    alpha = checks.constant("progress_below", "alpha", alpha, *checks.POSITIVE)
    checks.integer("progress_below", "strip", strip, 1)

    def update(memory, row):
        along = _along_strip(memory, row.training_loss, strip)
        # P_k < alpha, multiplied by its denominator
        return along.memory, along.ends & (1000 * along.excess < alpha * along.least)

    return Criterion(
        "progress_below",
        _new_strip,
        update,
        f"the training loss, over {strip} epochs, was less than {_shown(alpha)} per mille above its least on the mean",
    )


@register
def successive_increases(strips: int = 3, strip: int = 5, restore: bool = True) -> Criterion:
    """Prechelt's UP: stops when the validation loss has risen in `strips` successive strips.

    The loss is compared at the last epochs of the strips, E_va(t) > E_va(t - k).

    Args:
        strips: How many successive strips.
        strip: k, in epochs.
        restore: True (default) restores the parameters of the best epoch, as in `early_stopping`.

    Raises:
        ValueError: For `strips` or `strip` < 1.

    References:
        Prechelt 1998, Early Stopping - But When?

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.successive_increases(3, strip=5)
        <criterion successive_increases: the validation loss has risen in 3 successive strips of 5 epochs>
    """
    checks.integer("successive_increases", "strips", strips, 1)
    checks.integer("successive_increases", "strip", strip, 1)
    checks.boolean("successive_increases", "restore", restore)

    def update(memory, row):
        before, rises, at = memory
        now, ends = row.validation_loss.astype(before.dtype), at + 1 == strip
        rose = (now > before) & (before < _no_loss_yet())
        at_end = now, jnp.where(rose, rises + 1, 0), jnp.zeros_like(at)
        memory = jax.tree.map(lambda new, old: jnp.where(ends, new, old), at_end, (before, rises, at + 1))
        return memory, memory[1] >= strips

    return Criterion(
        "successive_increases",
        lambda: (_no_loss_yet(), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
        update,
        f"the validation loss has risen in {strips} successive strips of {strip} epochs",
        _validation_loss if restore else None,
        validation=True,
    )


def _no_loss_yet() -> Array:
    return precision.largest(precision.default())


def _validation_loss(row) -> Array:
    return row.validation_loss


# By the parameters ----------------------------------------------------------------------------------------------------


@register
def unchanged(tolerance: float = 0.0, epochs: int = 1) -> Criterion:
    """Stops when no parameter has changed by more than a fraction of the largest parameter for several epochs.

    A tolerance of 0 is Lecture 2's loop "while theta^(i+1) != theta^i": the parameters are bitwise the same before and
    after an epoch. A step that a method rejects changes no parameter, so give such a method several `epochs`.

    Args:
        tolerance: The fraction of the largest parameter, >= 0.
        epochs: How many successive epochs.

    Raises:
        ValueError: For a negative tolerance or `epochs` < 1.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.unchanged()
        <criterion unchanged: the parameters did not change in an epoch>
    """
    tolerance = checks.constant("unchanged", "tolerance", tolerance, *checks.NON_NEGATIVE)
    checks.integer("unchanged", "epochs", epochs, 1)

    def update(memory, row, params):
        before, unchanged_epochs = memory
        # the infinite bias of a masked class counts neither as a size nor as a change
        sizes = jax.tree.map(lambda x: jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0)), params)
        changes = jax.tree.map(lambda x, old: jnp.max(jnp.where(x == old, 0, jnp.abs(x - old))), params, before)
        small = _largest(changes) <= tolerance * _largest(sizes)
        unchanged_epochs = jnp.where(small, unchanged_epochs + 1, 0)
        return (params, unchanged_epochs), unchanged_epochs >= epochs

    exactly = isinstance(tolerance, float) and tolerance == 0
    how = "did not change" if exactly else f"changed by no more than {_shown(tolerance)} of the largest"
    return Criterion(
        "unchanged",
        lambda params: (params, jnp.zeros((), jnp.int32)),
        update,
        f"the parameters {how} in {'an epoch' if epochs == 1 else f'{epochs} epochs'}",
        params=True,
    )


@register
def cycle() -> Criterion:
    """Stops when the parameters are bitwise those of an earlier epoch, although gradients since then were not all zero.

    For the perceptron rule, with one learning rate above 0 for all parameters and without a penalty, this proves that
    no weights classify every example correctly: if some do, each update brings the weights nearer to them, and no state
    returns. For other methods it says that everything will repeat, if batches come in a fixed order and the method has
    no memory. This includes a method that does not move.

    The cycle is found by Brent's algorithm: in addition to the last epoch's parameters it keeps those of one earlier
    epoch, the latest whose number is 0, 1, 3, 7, ... A cycle of n epochs that begins after m epochs is found after at
    most 3 (n + m) epochs.

    References:
        Brent 1980, An Improved Monte Carlo Factorization Algorithm.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.cycle()
        <criterion cycle: the parameters have come back to those of an earlier epoch>
    """

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return params, params, jnp.asarray(False), zero + 1, zero

    def update(memory, row, params):
        before, kept, moved, length, at = memory
        moves = row.gradient_norm > 0
        moved, at = moved | moves, at + 1
        returned = (_same(params, kept) & moved) | (_same(params, before) & moves)
        full = at == length  # keep these parameters from now on, for twice as long
        renewed = params, jnp.asarray(False), 2 * length, jnp.zeros_like(at)
        memory = jax.tree.map(lambda new, old: jnp.where(full, new, old), renewed, (kept, moved, length, at))
        return (params, *memory), returned

    return Criterion("cycle", init, update, "the parameters have come back to those of an earlier epoch", params=True)


def _same(params: Any, others: Any) -> Array:
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True)
    return functools.reduce(jnp.logical_and, (jnp.all(x == other) for x, other in pairs))


def _largest(numbers: Any) -> Array:
    numbers = [x.astype(at_least_float32(x.dtype)) for x in jax.tree.leaves(numbers)]
    return functools.reduce(jnp.maximum, numbers)
