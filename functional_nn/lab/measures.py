"""What is told of outputs beside their targets: what was taken for what, characteristics, and the line through them.

Letters: Q examples, C classes, E epochs.
"""

from typing import NamedTuple

import numpy as np

from functional_nn.training.evaluation import confusion_counts as confusion_counts  # reports count as training does


class Characteristic(NamedTuple):
    """A receiver operating characteristic, (n,) each, where what is at `threshold` or above is taken, from none to all:
    false and true positive rate, the shares of those that are no members, and of the members.

    area: under it, 1 where all members are above all others, 1/2 of what knows nothing. nan where a share has no sense.
    """

    false: np.ndarray
    true: np.ndarray
    threshold: np.ndarray
    area: float


def characteristic(member: np.ndarray, scores: np.ndarray) -> Characteristic:
    """Of scores (Q,), which should be high where `member` (Q,) is True. Scores that are equal are taken together, and
    those that are nan last of all.

    >>> characteristic(np.array([True, False, True]), np.array([0.9, 0.5, 0.5])).area
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
    """outputs ~ slope targets + offset, by least squares, and their correlation R; nan where targets are all equal (R
    also where outputs are).
    """

    correlation: float
    slope: float
    offset: float


def fitted_line(targets: np.ndarray, outputs: np.ndarray) -> Line:
    """Of as many numbers of one as of the other, all alike; pairs of which one is not finite are left out.

    >>> line = fitted_line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
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
    """(E,) int64: for how many epochs the loss has not been below its lowest before, as `early_stopping` counts.

    >>> validation_failures(np.array([3.0, 2.0, 2.5, 2.0, 1.0])).tolist()
    [0, 0, 1, 2, 0]
    """
    lowest, waited, found = np.inf, 0, []
    for loss in np.asarray(losses, np.float64):
        lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
        found.append(waited)
    return np.array(found, np.int64)
