"""Measures of outputs against targets: confusion counts, receiver operating characteristics, and fitted lines.

Letters: Q examples, C classes, E epochs.
"""

from typing import NamedTuple

import numpy as np

from functional_nn.training.evaluation import confusion_counts  # reports count as training does

__all__ = [
    "Characteristic",
    "Line",
    "characteristic",
    "confusion_counts",
    "fitted_line",
    "validation_failures",
]


class Characteristic(NamedTuple):
    """A receiver operating characteristic: its points (n,), from a threshold that accepts nothing to one that accepts
    all.

    Attributes:
        false: false positive rate, the accepted share of the non-members; nan if there are none.
        true: true positive rate, the accepted share of the members; nan if there are none.
        threshold: scores at the threshold or above are accepted.
        area: area under the curve: 1 if all members score above all others, 1/2 for a random score; nan if a rate is.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import measures
        >>> measures.characteristic(np.array([True, False]), np.array([0.9, 0.5])).threshold.tolist()
        [inf, 0.9, 0.5]
    """

    false: np.ndarray
    true: np.ndarray
    threshold: np.ndarray
    area: float


def characteristic(member: np.ndarray, scores: np.ndarray) -> Characteristic:
    """Computes the receiver operating characteristic of scores.

    Args:
        member: (Q,) booleans: which examples are members of the class.
        scores: (Q,) numbers, which should be high for members. Equal scores are accepted together, nan scores last.

    Returns:
        The `Characteristic`.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import measures
        >>> measures.characteristic(np.array([True, False, True]), np.array([0.9, 0.5, 0.5])).area
        0.75
    """
    member, scores = np.asarray(member, bool), np.asarray(scores, np.float64)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, kind="stable")
    ranked, falling = member[order], scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[: len(ranked)])
    found, taken = np.cumsum(ranked)[last], np.cumsum(~ranked)[last]
    shares = []
    for counted, total in ((taken, (~member).sum()), (found, member.sum())):
        shares.append(np.append(0.0, counted) / total if total else np.full(len(last) + 1, np.nan))
    false, true = shares
    return Characteristic(false, true, np.append(np.inf, falling[last]), float(np.trapezoid(true, false)))


class Line(NamedTuple):
    """The least-squares line outputs = slope targets + offset, and the correlation of outputs and targets.

    Attributes:
        correlation: R; nan if all targets or all outputs are equal.
        slope: nan if all targets are equal.
        offset: nan if all targets are equal.

    Example:
        >>> from functional_nn.lab import measures
        >>> measures.Line(1.0, 2.0, 1.0).slope
        2.0
    """

    correlation: float
    slope: float
    offset: float


def fitted_line(targets: np.ndarray, outputs: np.ndarray) -> Line:
    """Fits a line to outputs against targets by least squares.

    Args:
        targets: numbers, of any shape.
        outputs: as many numbers. Pairs with a number that is not finite are left out.

    Returns:
        The `Line`.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import measures
        >>> line = measures.fitted_line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
        >>> [round(x, 12) for x in line]
        [1.0, 2.0, 1.0]
    """
    t, a = (np.ravel(x).astype(np.float64) for x in (targets, outputs))
    known = np.isfinite(t) & np.isfinite(a)
    t, a = t[known], a[known]
    if not t.size or t.min() == t.max():
        return Line(np.nan, np.nan, np.nan)
    # relative to the largest of each, whose squares do not overflow
    unit_t, unit_a = (np.abs(x).max() or 1.0 for x in (t, a))
    t, a = t / unit_t, a / unit_a
    dt, da = t - t.mean(), a - a.mean()
    slope = (dt @ da) / (dt @ dt)
    correlation = np.nan if a.min() == a.max() else (dt @ da) / np.sqrt((dt @ dt) * (da @ da))
    return Line(float(correlation), float(slope / unit_t * unit_a), float((a.mean() - slope * t.mean()) * unit_a))


def validation_failures(losses: np.ndarray) -> np.ndarray:
    """Counts, at each epoch, for how many epochs the loss has not fallen below its minimum, as `early_stopping` does.

    Args:
        losses: (E,) held-out losses.

    Returns:
        (E,) int64.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import measures
        >>> measures.validation_failures(np.array([3.0, 2.0, 2.5, 2.0, 1.0])).tolist()
        [0, 0, 1, 2, 0]
    """
    lowest, waited, found = np.inf, 0, []
    for loss in np.asarray(losses, np.float64):
        lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
        found.append(waited)
    return np.array(found, np.int64)
