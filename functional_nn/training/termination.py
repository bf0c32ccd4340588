"""When to stop before the last epoch. A criterion reads each epoch's row of the history, inside the compiled program.

CSE 475, 19.70.3: no significant change of the loss, or a validation loss that rises. Lecture 2: while the parameters
change. Prechelt 1998 ("Early Stopping - But When?", in Neural Networks: Tricks of the Trade) for the criteria GL, PQ
and UP; his letters: E_va(t) the validation loss after epoch t, E_opt(t) the lowest of it so far, E_tr(t) the training
loss, here that of the epoch's examples before the updates that used them; a strip is k epochs in a row.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, precision
from functional_nn.precision import at_least_float32
from functional_nn.registry import Described, Registry


@dataclass(frozen=True)
class Criterion(Described):
    """init() -> memory; update(memory, row) -> (memory, stop), where `row` is a `History` of this epoch's scalars.

    reason: what is to be said when it stops a run. score(row) -> what is lowest at the parameters to be restored,
    None where the last ones stay. validation, accuracy: True where it needs validation data, and right answers.
    params: True where both functions take the parameters, too: init(params), update(memory, row, params).
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
        """Its memory before the first epoch, which begins from `params`."""
        return self.init(params) if self.params else self.init()

    def judge(self, memory: Any, row: Any, params: Any) -> tuple[Any, Array]:
        """(memory, stop) after an epoch that left `params`."""
        return self.update(memory, row, params) if self.params else self.update(memory, row)

    def __repr__(self) -> str:
        return f"<criterion {self.name}: {self.reason}>"


_registry: Registry[Criterion] = Registry("criterion", Criterion)
register, names = _registry.register, _registry.names
get, knows = _registry.get, _registry.knows

# What the loss says ---------------------------------------------------------------------------------------------------


@register
def no_change(tolerance: float = 1e-4, epochs: int = 5) -> Criterion:
    """Stops when the training loss has stayed within `tolerance`, relatively, of a reference for `epochs` epochs.

    The reference is the last loss that differed from the one before it by more. Raises ValueError unless the
    tolerance is > 0 and epochs >= 1.
    """
    tolerance = checks.constant("no_change", "tolerance", tolerance, lambda v: (v > 0) & np.isfinite(v), "> 0")
    checks.integer("no_change", "epochs", epochs, 1)

    def update(memory, row):
        reference, still = memory
        loss = row.training_loss.astype(reference.dtype)
        still_there = jnp.abs(loss - reference) <= tolerance * jnp.abs(reference)  # False for nan
        changed = ~(still_there & (reference < precision.largest(reference.dtype)))  # where it begins
        reference, still = jnp.where(changed, loss, reference), jnp.where(changed, 0, still + 1)
        return (reference, still), still >= epochs

    return Criterion(
        "no_change",
        lambda: (_no_loss_yet(), jnp.zeros((), jnp.int32)),
        update,
        f"the training loss changed by less than {_said(tolerance)} of itself for {epochs} epochs",
    )


@register
def gradient_below(norm: float) -> Criterion:
    """Stops when the mean over the epoch's updates of ||g|| is at most `norm`. Raises ValueError unless it is > 0."""
    norm = checks.constant("gradient_below", "norm", norm, lambda v: (v > 0) & np.isfinite(v), "> 0")
    return Criterion(
        "gradient_below",
        tuple,
        lambda memory, row: (memory, row.gradient_norm <= norm),
        f"the gradient norm is at most {_said(norm)}",
    )


@register
def loss_below(goal: float) -> Criterion:
    """Stops when the training loss is at most `goal`: that of the epoch's examples, which drawn with replacement need
    not be all. Raises ValueError unless the goal is a finite number.
    """
    goal = checks.constant("loss_below", "goal", goal, np.isfinite, "a finite number")
    return Criterion(
        "loss_below",
        tuple,
        lambda memory, row: (memory, row.training_loss <= goal),
        f"the training loss is at most {_said(goal)}",
    )


@register
def early_stopping(
    patience: int = 10,
    least: float = 0.0,
    monitor: Literal["validation_loss", "validation_accuracy"] = "validation_loss",
    restore: bool = True,
) -> Criterion:
    """Stops when the validation loss has not fallen (its accuracy risen) by more than `least` for `patience` epochs.

    restore: the run's parameters are then those of its best epoch, the first of equals, exactly; also where the last
    epoch comes before patience ends. Raises ValueError for patience < 1, a negative `least`, an unknown monitor.
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
    """Prechelt's GL: stops after the first epoch with 100 (E_va(t) / E_opt(t) - 1) > alpha, alpha in percent.

    Losses must be positive. restore: as in `early_stopping`. strip: validation losses are looked at after each so many
    epochs alone, Prechelt's "once in a while, e.g. after every fifth epoch", so that a method whose first steps go up
    and down is not stopped at once; the epoch that is restored may be any. Raises ValueError unless alpha is a number
    >= 0 and strip >= 1.
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
        f"the validation loss is more than {_said(alpha)} % above its lowest",
        _validation_loss if restore else None,
        validation=True,
    )


def _new_strip():
    """Of the training losses in a strip so far: their sum, the least, and how many."""
    return jnp.zeros((), precision.default()), _no_loss_yet(), jnp.zeros((), jnp.int32)


def _along_strip(part, loss, strip: int):
    """(the strip with one more loss, or a new one after its end; mean - least; least; is it the end?): P_k = 1000 (mean
    / least - 1).
    """
    total, least, at = part
    loss = loss.astype(total.dtype)
    total, least, at = total + loss, jnp.where(loss < least, loss, least), at + 1
    ends = at == strip
    following = jax.tree.map(lambda new, old: jnp.where(ends, new, old), _new_strip(), (total, least, at))
    return following, total / strip - least, least, ends


@register
def progress_quotient(alpha: float = 0.5, strip: int = 5, restore: bool = True) -> Criterion:
    """Prechelt's PQ: stops after the first strip at whose end GL(t) / P_k(t) > alpha: little progress for its price.

    GL(t) = 100 (E_va(t) / E_opt(t) - 1); P_k(t) = 1000 (mean of E_tr over the strip / its least - 1), the progress in
    training, in per mille. Losses must be positive. strip: k, in epochs. restore: as in `early_stopping`. Raises
    ValueError for alpha < 0 and a strip < 1.
    """
    alpha = checks.constant("progress_quotient", "alpha", alpha, *checks.NON_NEGATIVE)
    checks.integer("progress_quotient", "strip", strip, 1)
    checks.boolean("progress_quotient", "restore", restore)

    def init():
        return _no_loss_yet(), *_new_strip()

    def update(memory, row):
        lowest, *part = memory
        now = row.validation_loss.astype(lowest.dtype)
        lowest = jnp.where(now < lowest, now, lowest)
        part, excess, least, ends = _along_strip(part, row.training_loss, strip)
        # GL > alpha P_k, multiplied by what both are divided by: a loss may be 0
        stop = 100 * (now - lowest) * least > alpha * 1000 * excess * lowest
        return (lowest, *part), stop & ends & (lowest < _no_loss_yet())

    return Criterion(
        "progress_quotient",
        init,
        update,
        f"the validation loss has risen by more than training still gains in {strip} epochs is worth: the "
        f"quotient is above {_said(alpha)}",
        _validation_loss if restore else None,
        validation=True,
    )


@register
def progress_below(alpha: float = 0.1, strip: int = 5) -> Criterion:
    """Stops after the first strip whose training progress P_k(t), in per mille as in `progress_quotient`, is below
    `alpha`: little is gained any more (Prechelt 1994, PROBEN1: P_5 < 0.1).

    Losses must be positive. Brings no earlier parameters back, and goes beside a criterion that does. strip: k, in
    epochs. Raises ValueError unless alpha > 0 and strip >= 1.
    """
    alpha = checks.constant("progress_below", "alpha", alpha, *checks.POSITIVE)
    checks.integer("progress_below", "strip", strip, 1)

    def update(memory, row):
        memory, excess, least, ends = _along_strip(memory, row.training_loss, strip)
        return memory, ends & (1000 * excess < alpha * least)  # P_k < alpha, multiplied by the least

    return Criterion(
        "progress_below",
        _new_strip,
        update,
        f"the training loss, over {strip} epochs, was less than {_said(alpha)} per mille above its least on the mean",
    )


@register
def successive_increases(strips: int = 3, strip: int = 5, restore: bool = True) -> Criterion:
    """Prechelt's UP: stops where the validation loss has risen from strip to strip, `strips` times in succession.

    It is compared at the strips' last epochs, E_va(t) > E_va(t - k). strip: k, in epochs. restore: as in
    `early_stopping`. Raises ValueError for strips or a strip < 1.
    """
    checks.integer("successive_increases", "strips", strips, 1)
    checks.integer("successive_increases", "strip", strip, 1)
    checks.boolean("successive_increases", "restore", restore)

    def update(memory, row):
        before, rises, at = memory
        now, ends = row.validation_loss.astype(before.dtype), at + 1 == strip
        rose = (now > before) & (before < _no_loss_yet())
        after = now, jnp.where(rose, rises + 1, 0), jnp.zeros_like(at)
        memory = jax.tree.map(lambda new, old: jnp.where(ends, new, old), after, (before, rises, at + 1))
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


# What the parameters say ----------------------------------------------------------------------------------------------


@register
def unchanged(tolerance: float = 0.0, epochs: int = 1) -> Criterion:
    """Stops when no epoch of the last `epochs` changed any parameter by more than `tolerance` of the largest one.

    0 is Lecture 2's while theta^(i+1) != theta^i: bitwise the same before and after an epoch. A step that a method
    refuses changes none: of such a method ask for several `epochs`. Raises ValueError for a
    negative tolerance and epochs < 1.
    """
    tolerance = checks.constant("unchanged", "tolerance", tolerance, *checks.NON_NEGATIVE)
    checks.integer("unchanged", "epochs", epochs, 1)

    def update(memory, row, params):
        before, still = memory
        # an infinity, of a class that is masked, is no size and no change
        sizes = jax.tree.map(lambda x: jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0)), params)
        moves = jax.tree.map(lambda x, old: jnp.max(jnp.where(x == old, 0, jnp.abs(x - old))), params, before)
        still = jnp.where(_largest(moves) <= tolerance * _largest(sizes), still + 1, 0)
        return (params, still), still >= epochs

    exactly = isinstance(tolerance, float) and tolerance == 0
    how = "did not change" if exactly else f"changed by no more than {_said(tolerance)} of the largest"
    return Criterion(
        "unchanged",
        lambda params: (params, jnp.zeros((), jnp.int32)),
        update,
        f"the parameters {how} in {'an epoch' if epochs == 1 else f'{epochs} epochs'}",
        params=True,
    )


@register
def cycle() -> Criterion:
    """Stops when the parameters are bitwise those of an earlier epoch, and gradients since then were not all zero.

    Of the perceptron rule, at one rate above 0 for all parameters and without a penalty, this says that no weights
    answer every example rightly: where some do, each update brings the weights nearer to them, and none is ever undone.
    Of other methods it says that all will repeat, where batches come in a fixed order and the method remembers nothing;
    also of one that does not move. Brent's algorithm (1980): beside the last epoch's, the parameters of one are kept,
    the latest whose number is 0, 1, 3, 7, ..., so that a cycle of n epochs that begins after m is seen by 3 (n + m).
    """

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return params, params, jnp.asarray(False), zero + 1, zero

    def update(memory, row, params):
        before, kept, moved, length, at = memory
        moves = row.gradient_norm > 0
        moved, at = moved | moves, at + 1
        back = (_same(params, kept) & moved) | (_same(params, before) & moves)
        renew = at == length
        fresh = params, jnp.asarray(False), 2 * length, jnp.zeros_like(at)
        memory = jax.tree.map(lambda new, old: jnp.where(renew, new, old), fresh, (kept, moved, length, at))
        return (params, *memory), back

    return Criterion("cycle", init, update, "the parameters have come back to those of an earlier epoch", params=True)


def _same(params: Any, others: Any) -> Array:
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True)
    return functools.reduce(jnp.logical_and, (jnp.all(x == other) for x, other in pairs))


def _largest(numbers: Any) -> Array:
    numbers = [x.astype(at_least_float32(x.dtype)) for x in jax.tree.leaves(numbers)]
    return functools.reduce(jnp.maximum, numbers)


def _said(number) -> str:
    return f"{number:g}" if isinstance(number, float) else "a traced number"
