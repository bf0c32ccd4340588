"""When to stop before the last epoch. A criterion reads each epoch's row of the history, inside the compiled program.

CSE 475, 19.70.3: no significant change of the loss, or a validation loss that rises.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, precision
from functional_nn.registry import Described, cached


@dataclass(frozen=True)
class Criterion(Described):
    """init() -> memory; update(memory, row) -> (memory, stop), where `row` is a `History` of this epoch's scalars.

    reason: what is to be said when it stops a run. score(row) -> what is lowest at the parameters to be restored,
    None where the last ones stay. validation, accuracy: True where it needs validation data, and right answers.
    """

    name: str
    init: Callable[[], Any]
    update: Callable[[Any, Any], tuple[Any, Array]]
    reason: str
    score: Callable[[Any], Array] | None = None
    validation: bool = False
    accuracy: bool = False

    def __repr__(self) -> str:
        return f"<criterion {self.name}: {self.reason}>"


@cached
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
        lambda: (precision.largest(precision.default()), jnp.zeros((), jnp.int32)),
        update,
        f"the training loss changed by less than {_said(tolerance)} of itself for {epochs} epochs",
    )


@cached
def gradient_below(norm: float) -> Criterion:
    """Stops when the mean over the epoch's updates of ||g|| is at most `norm`. Raises ValueError unless it is > 0."""
    norm = checks.constant("gradient_below", "norm", norm, lambda v: (v > 0) & np.isfinite(v), "> 0")
    return Criterion(
        "gradient_below", tuple, lambda memory, row: (memory, row.gradient_norm <= norm),
        f"the gradient norm is at most {_said(norm)}",
    )  # fmt: skip


@cached
def loss_below(goal: float) -> Criterion:
    """Stops when the training loss is at most `goal`. Raises ValueError unless that is a finite number."""
    goal = checks.constant("loss_below", "goal", goal, np.isfinite, "a finite number")
    return Criterion(
        "loss_below", tuple, lambda memory, row: (memory, row.training_loss <= goal),
        f"the training loss is at most {_said(goal)}",
    )  # fmt: skip


@cached
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
        lambda: (precision.largest(precision.default()), jnp.zeros((), jnp.int32)),
        update,
        f"the {monitor.replace('_', ' ')} has not improved for {patience} epochs",
        score if restore else None,
        validation=True,
        accuracy=monitor == "validation_accuracy",
    )


def _said(number) -> str:
    return f"{number:g}" if isinstance(number, float) else "a traced number"
