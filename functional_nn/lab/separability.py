r"""Decides whether one threshold neuron can answer every example correctly, and finds all weights that do and those
with the widest margin.

Letters: Q examples, R inputs; x (n,) an input with a 1 appended for the bias, so n = R + 1 (R without a bias);
t = +-1.

The neuron outputs +1 if and only if w.x >= 0 (CSE 475, 17.61). Weights answer correctly if

.. math::

    w \cdot x_q \ge 0 \; (t_q = +1), \quad w \cdot x_q < 0 \; (t_q = -1),

and then every positive multiple of w does too. These weights form a convex polyhedral cone, bounded by one half-space
:math:`t_q x_q \cdot w \ge 0` for each example, without the faces of examples with t_q = -1. If the cone is pointed, its
elements are the sums of positive multiples of its extreme rays.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog, nnls

__all__ = [
    "Cone",
    "Separability",
    "separability",
]

_TOLERANCE = 1e-9  # numbers below it count as 0, for unit vectors
_MOST = 200_000  # sets of half-spaces that are tried for rays


class Cone(NamedTuple):
    """A polyhedral cone of weights.

    Attributes:
        rays: (K, n), the extreme rays; the largest element of each is +-1.
        free: (m, n), an orthonormal basis of what can be added to any w without changing an answer.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab.separability import separability
        >>> separability(np.array([[-1.0], [1.0]]), np.array([0, 1])).cone().rays.shape
        (2, 2)
    """

    rays: np.ndarray
    free: np.ndarray


class Separability(NamedTuple):
    r"""What is known about one neuron's weights w (n,): the inputs' weights first, the bias, if there is one, last.

    Margin, weights, radius and bound are nan if rounding hides them, as for examples that are far from 0 and close
    together.

    Attributes:
        separable: whether any weights answer all Q examples correctly.
        halfspaces: (Q, n), t_q x_q; the closed cone is {w: halfspaces @ w >= 0}.
        positive: (Q,) booleans, t_q = +1: which half-spaces include their boundary.
        margin: g, the largest min_q t_q w.x_q over unit vectors w; 0 if none is above 0.
        weights: (n,), the unit vector w with that margin; nan if the margin is 0.
        radius: R, the largest :math:`\lVert x_q \rVert`.
        bound: (R / g)^2, the most mistakes that the perceptron rule makes when it starts from zero weights (Novikoff
            1962); infinite if the margin is 0.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab.separability import separability
        >>> inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> separability(inputs, np.array([0, 1, 1, 0]))  # xor
        <no weights are right>
    """

    separable: bool
    halfspaces: np.ndarray
    positive: np.ndarray
    margin: float
    weights: np.ndarray
    radius: float
    bound: float

    def __repr__(self) -> str:
        if not self.separable:
            return "<no weights are right>"
        known = f"margin {self.margin:.4g}, at most {self.bound:.4g} mistakes" if self.margin > 0 else "margin unknown"
        return f"<weights that are right exist: {known}>"

    def answers(self, weights: np.ndarray) -> np.ndarray:
        """Returns which weights answer every example correctly: (..., n) -> (...) booleans."""
        n = np.asarray(weights, np.float64) @ self.halfspaces.T
        return np.all(np.where(self.positive, n >= 0, n > 0), axis=-1)

    def cone(self) -> Cone:
        """Returns the cone of all weights that answer correctly; an empty one if none do.

        It is found by trying all n - 1 half-spaces that may meet in a ray. Raises ValueError if that would take more
        than 200,000 trials.
        """
        size = self.halfspaces.shape[1]
        return _cone(self.halfspaces) if self.separable else Cone(np.zeros((0, size)), np.zeros((0, size)))


def separability(inputs: np.ndarray, targets: np.ndarray, bias: bool = True) -> Separability:
    """Decides whether one threshold neuron can answer all examples correctly, and finds the widest margin.

    Linear programming decides whether such weights exist. The margin is the distance from 0 of the convex hull of the
    t_q x_q, found by non-negative least squares.

    Args:
        inputs: (Q, R).
        targets: (Q,) or (Q, 1), of 0 and 1 or of -1 and +1.
        bias: whether the neuron has a bias.

    Returns:
        The `Separability`.

    Raises:
        ValueError: for other shapes and targets, and for numbers that are not finite.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab.separability import separability
        >>> found = separability(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 0, 0, 1]))  # and
        >>> found.separable, round(found.margin, 3), round(found.bound)
        (True, 0.243, 51)
    """
    p, signs = _checked(inputs, targets)
    x = _with_bias(p, bias)
    halfspaces = signs[:, None] * x
    radius = float(np.linalg.norm(x, axis=1).max())
    center = p.mean(axis=0) * bias
    about = _with_bias(p - center, bias)  # a bias makes up for the shift
    margin, weights = _widest(halfspaces, signs[:, None] * about, center if bias else None, radius)
    separable = margin > 0 or _exists(about, signs, strictly=False)
    if margin == 0 and separable and _exists(about, signs, strictly=True):
        margin = math.nan  # lost in rounding
    bound = math.inf if margin == 0 else (radius / margin) ** 2
    return Separability(separable, halfspaces, signs > 0, margin, weights, radius, bound)


def _checked(inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (Q, R) and t (Q,) of -1 and +1."""
    p, t = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    if p.ndim != 2 or not p.size:
        raise ValueError(f"inputs: expected shape (Q, R), got {p.shape}")
    if t.shape not in ((len(p),), (len(p), 1)):
        raise ValueError(f"targets: expected shape ({len(p)},) or ({len(p)}, 1) for one neuron, got {t.shape}")
    if not np.isfinite(p).all():
        raise ValueError(f"inputs: expected finite numbers, got {p[~np.isfinite(p)][0]:g}")
    t = t.ravel()
    wrong = t[~np.isin(t, (0, 1) if 0 in t else (-1, 1))]
    if wrong.size:
        raise ValueError(f"targets: expected 0 and 1 or -1 and +1, got {wrong[0]:g}")
    return p, np.where(t > 0, 1.0, -1.0)


def _exists(x: np.ndarray, signs: np.ndarray, strictly: bool) -> bool:
    """Whether some w in the unit cube has w.x <= -s, s > 0, where the sign is -1, and w.x >= 0 (if `strictly`, >= s)
    where it is +1.
    """
    rows = np.hstack([-signs[:, None] * _even(x), ((signs < 0) | strictly)[:, None]])
    cost = np.zeros(rows.shape[1])
    cost[-1] = -1
    found = linprog(cost, rows, np.zeros(len(rows)), bounds=[(-1, 1)] * (rows.shape[1] - 1) + [(0, 1)])
    return found.status == 0 and -found.fun > _TOLERANCE


def _even(x: np.ndarray) -> np.ndarray:
    """The examples with other weights that give the same answers, and of norm 1, so that rounding keeps small
    differences.
    """
    x = x / np.maximum(np.abs(x).max(axis=0), np.finfo(float).tiny)
    size = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(size > 0, size, 1)


def _widest(
    halfspaces: np.ndarray, about: np.ndarray, center: np.ndarray | None, radius: float
) -> tuple[float, np.ndarray]:
    """g and its unit vector w: the distance from 0 of the convex hull of the t_q x_q and the direction of its nearest
    point.

    0 and nan if that distance is 0; nan if it could not be found to a millionth. `about` holds the half-spaces of the
    examples about `center`, their mean; without a bias, which makes up for a shift, there is no center, and both are
    equal.
    """
    # The minimum of |A' l|^2 + (1 - sum l)^2 over l >= 0 has an l proportional to the nearest point's.
    rows = np.vstack([halfspaces.T, np.ones(len(halfspaces))])
    target = np.zeros(len(rows))
    target[-1] = 1
    ratio, _ = nnls(rows, target, maxiter=max(1000, 10 * rows.shape[1]))
    nearest = halfspaces.T @ ratio / ratio.sum()
    unknown = np.full(halfspaces.shape[1], np.nan)
    if np.linalg.norm(nearest) <= 1e-14 * radius:
        return 0.0, unknown
    # Far from 0 the examples' differences are lost in that point. But it shows the examples that support it, and all of
    # them have t w.x = g: the shortest w with t w.x = 1 is found from them, about their mean.
    held = ratio > 1e-10 * ratio.max()
    v = _shortest(about[held], center)
    for w in (v, nearest):
        w = w / np.linalg.norm(w)
        shifted = w if center is None else np.append(w[:-1], w[-1] + w[:-1] @ center)
        values = about @ shifted
        least, reached = values.min(), values[held].max()
        if least > 0 and reached - least <= 1e-6 * least:
            return float(least), w
    return (0.0, unknown) if np.linalg.norm(nearest) <= _TOLERANCE * radius else (math.nan, unknown)


def _with_bias(p: np.ndarray, bias: bool) -> np.ndarray:
    return np.hstack([p, np.ones((len(p), 1))]) if bias else p


def _shortest(rows: np.ndarray, center: np.ndarray | None) -> np.ndarray:
    """The w (n,) of least norm with rows @ w' = 1, where w' is w about the center: its bias is b + w.center there."""
    back = np.eye(rows.shape[1])
    if center is not None:
        back[-1, :-1] = -center
    some = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    _, values, vectors = np.linalg.svd(rows)
    free = vectors[int((values > 1e-12 * values[0]).sum()) :].T
    if free.size:
        some = some - free @ np.linalg.lstsq(back @ free, back @ some, rcond=None)[0]
    return back @ some


def _cone(halfspaces: np.ndarray) -> Cone:
    """The extreme rays, in the space that the half-spaces see, and a basis of the one that they do not see."""
    _, values, vectors = np.linalg.svd(halfspaces)
    rank = int((values > _TOLERANCE * values[0]).sum()) if values[0] > 0 else 0
    seen, free = vectors[:rank], vectors[rank:]
    if not rank:
        return Cone(np.zeros((0, halfspaces.shape[1])), free)
    rows = halfspaces @ seen.T
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows[size[:, 0] > 0] / size[size > 0][:, None]
    rows = rows[np.unique(np.round(rows, 12), axis=0, return_index=True)[1]]
    trials = math.comb(len(rows), rank - 1)
    if trials > _MOST:
        raise ValueError(
            f"the rays of {len(rows)} half-spaces in {rank} dimensions would take {trials} trials, above {_MOST}; give "
            "fewer examples or inputs"
        )
    found: list[np.ndarray] = []
    for chosen in itertools.combinations(rows, rank - 1):
        if rank == 1:
            line = np.ones(1)
        else:
            _, values, vectors = np.linalg.svd(np.stack(chosen))
            if values[-1] <= _TOLERANCE:  # they meet in more than a line
                continue
            line = vectors[-1]
        for ray in (line, -line):
            inside = np.all(rows @ ray >= -_TOLERANCE)
            if inside and not any(np.allclose(ray, other, atol=1e-7) for other in found):
                found.append(ray)
    rays = np.array(found).reshape(-1, rank) @ seen
    return Cone(np.round(rays / np.abs(rays).max(axis=1, keepdims=True), 12) + 0.0, free)
