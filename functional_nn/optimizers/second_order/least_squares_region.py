r"""Levenberg-Marquardt by a trust region: the best step of limited length for a linear model of the residuals.

This is the method of More (1978), as in MINPACK (More, Garbow and Hillstrom 1980).

Letters: P parameters, N residuals r, J = dr/dparams (N, P), :math:`F = r^T r`, :math:`g = J^T r`; D (P,), the largest
length of each column of J met so far; :math:`p = D \delta` a step, in which every parameter has the unit of r;
:math:`\Delta` the radius. The step is the :math:`\delta` that minimizes

.. math:: \lVert r + J \delta \rVert^2 \quad \text{where} \quad \lVert D \delta \rVert \le \Delta

and there is a :math:`\mu` with

.. math:: (J^T J + \mu D^2) \, \delta = -g, \qquad \mu \ge 0, \qquad \mu \, (\lVert p \rVert - \Delta) = 0

With the singular values :math:`J D^{-1} = U S V^T` and :math:`c = U^T r`, a sum over K = min(N, P) numbers gives the
step for any :math:`\mu`:

.. math:: p(\mu) = -V \, \frac{s c}{s^2 + \mu}

Its length falls as :math:`\mu` rises, and :math:`1 / \lVert p(\mu) \rVert` is nearly a line, so that Newton's iteration
on :math:`1 / \lVert p \rVert = 1 / \Delta` takes a few steps: one decomposition serves every radius that is tried at a
point. If r or a parameter is multiplied by a number, p, :math:`\mu` and all decisions stay the same.

The Gauss-Newton step, :math:`\mu = 0`, would lower :math:`\lVert r \rVert^2` by :math:`\lVert c \rVert^2`, over the s
that are not 0, if r were linear; :math:`\lVert c \rVert / \lVert r \rVert` is the cosine between r and the plane that
the columns of J span (Bates and Watts 1981, the relative offset). A run has converged where that is small, or where
the Gauss-Newton step moves no parameter by more than a small share of itself.

Geodesic acceleration (Transtrum and Sethna 2012): r bends along the step by the second derivative r'' of
:math:`r(x + t \delta)` by t. So :math:`\delta + a / 2`, with

.. math:: (J^T J + \mu D^2) \, a = -J^T r''

follows the valley's curve to second order. It is used where it is short compared to :math:`\delta`,
:math:`2 \lVert D a \rVert \le \tfrac{3}{4} \lVert D \delta \rVert`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import linalg
from functional_nn.optimizers.second_order.method import evaluation_at
from functional_nn.optimizers.second_order.problem import FlatProblem
from functional_nn.optimizers.second_order.state import Evaluation, Move, State, counts

_ACCEPTED, _POOR, _GOOD = 1e-4, 0.25, 0.75  # of the predicted decrease: More 1978, Sec. 5
_NEAR = 0.1  # |p| may differ from the radius by this share of it
_OUTWARD = (
    4.0  # after a good step, while all were good, the radius is this many times its length: the start may be far off
)
_BENT = 0.75  # above it 2 |D a| / |D delta| is too large for a correction of the step
_SHRINKS = 0.9  # a step shorter than this share of the last shows that steps converge
_SHARE = 8  # times the tolerance of the cosine: by how much a Gauss-Newton step may still move a parameter


class LeastSquaresMemory(NamedTuple):
    """The memory of Levenberg-Marquardt with a trust region.

    Attributes:
        radius: Delta.
        mu: The damping of the last step.
        moved: `|D delta|` of the last step made.
        outward: True while every step so far was good.
        scale: D (P,), 0 for a parameter that F has not depended on.
        lengths: The lengths of J's columns at this point (P,), 0 for parameters that a bound holds.
        squares: s^2 (K,).
        vectors: V^T (K, P).
        slopes: s c (K,).
        jacobian: J (N, P) with geodesic acceleration, else None.
        held: True for parameters that a bound holds (P,); None without bounds.
    """

    radius: Array
    mu: Array
    moved: Array
    outward: Array
    scale: Array
    lengths: Array
    squares: Array
    vectors: Array
    slopes: Array
    jacobian: Array | None
    held: Array | None = None

    @property
    def undetermined(self) -> Array:
        """True for parameters that the step leaves where they are, alone or in a combination with others (P,)."""
        determined = _determined(self.squares, orthogonal=True)
        spanned = jnp.sum(jnp.where(determined[:, None], self.vectors**2, 0), axis=0)
        free = 1 - spanned > jnp.finfo(spanned.dtype).eps ** 0.5
        return free if self.held is None else free & ~self.held


def _length(J: Array) -> Array:
    """Returns the length of each column (P,), scaled first: squares of what is small are 0 in single precision."""
    size = jnp.max(jnp.abs(J), axis=0)
    size = jnp.where(size > 0, size, 1)
    return size * jnp.sqrt(jnp.sum((J / size[None, :]) ** 2, axis=0))


def _units(scale: Array) -> Array:
    """Returns D; for a parameter without influence the largest of the others', or 1."""
    most = jnp.max(scale)
    return jnp.where(scale > 0, scale, jnp.where(most > 0, most, 1))


def _rounding(memory: LeastSquaresMemory, x: Array) -> Array:
    """Returns by how much the rounding of x may change `|r|`."""
    return 4 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(memory.lengths * x)


def _determined(squares: Array, orthogonal: bool) -> Array:
    """Returns which s are distinct from 0: of J itself to rounding, of J^T J to the root of it."""
    limits = jnp.finfo(squares.dtype)
    share = (squares.size * limits.eps) ** (2 if orthogonal else 1)
    return squares > jnp.maximum(jnp.max(squares) * share, limits.tiny)


class TrustRegion(NamedTuple):
    """The functions evaluate, move and stationary of `SecondOrder`.

    Attributes:
        radius: Delta at the start, in lengths of D x.
        scaled: True if D is not I.
        orthogonal: True for the singular values of J by QR, False for the eigenvalues of J^T J.
        geodesic: True for geodesic acceleration.
    """

    radius: float | Array
    scaled: bool
    orthogonal: bool
    geodesic: bool

    def evaluate(self, flat: FlatProblem, x: Array, memory: LeastSquaresMemory | None) -> Evaluation:
        """Returns the evaluation at x: the residuals, their Jacobian, and its decomposition."""
        r, J = flat.jacobian(x)
        value, held = jnp.vdot(r, r), None
        if flat.bounds is not None:
            lower, upper = flat.bounds
            g = jnp.sum(J * r[:, None], axis=0)
            held = ((x <= lower) & (g > 0)) | ((x >= upper) & (g < 0))
            J = jnp.where(held[None, :], 0, J)
        # from the triangle only: XLA:CPU takes five times as long for J where J is also in a product
        R, c = linalg.triangle(J, r) if r.size > x.size else (J, r)
        lengths = _length(R)
        own_scale = lengths if self.scaled else jnp.ones_like(lengths)
        scale = own_scale if memory is None else jnp.maximum(memory.scale, own_scale)
        D = _units(scale)
        squares, vectors, slopes = _spectrum(R / D[None, :], c, self.orthogonal)
        if flat.bounds is None:
            g = (slopes @ vectors) * D
        if memory is None:
            size = jnp.linalg.norm(D * x)
            radius = self.radius * jnp.where(size > 0, size, jnp.sqrt(value))
            radius, zero = jnp.asarray(radius, x.dtype), jnp.zeros_like(value)
            region = radius, zero, zero, jnp.asarray(True)
        else:
            region = memory[:4]
        J = J if self.geodesic else None
        memory = LeastSquaresMemory(*region, scale, lengths, squares, vectors, slopes, J, held)
        return Evaluation(x, value, 2 * g, memory, counts(values=1, matrices=1))

    def move(self, flat: FlatProblem, current: Evaluation) -> Move:
        """Returns the move of one step, which tries one radius."""
        memory, x, F = current.memory, current.x, current.value
        limits = jnp.finfo(x.dtype)
        D, determined = _units(memory.scale), _determined(memory.squares, self.orthogonal)
        mu = damping(memory.squares, memory.slopes, memory.radius, determined)
        inverse = jnp.where(determined, 1 / jnp.where(determined, memory.squares + mu, 1), 0)

        def solve(slopes):
            return -(slopes * inverse) @ memory.vectors / D

        delta, products = solve(memory.slopes), 0
        length = jnp.linalg.norm(D * delta)
        if self.geodesic:
            products = 1
            bent = flat.second_derivative(x, delta)
            a = solve(memory.vectors @ ((bent @ memory.jacobian) / D))
            short = 2 * jnp.linalg.norm(D * a) <= _BENT * length  # False where it is nan
            tried = jnp.where(short, delta + a / 2, delta)
        else:
            tried = delta
        end = x + tried
        if flat.bounds is not None:
            end = jnp.clip(end, *flat.bounds)
            delta = tried = end - x
            length = jnp.linalg.norm(D * delta)
        # the change of |r|^2 if r is linear: the slope's part, and the curvature's
        along = memory.vectors @ (D * delta)
        bend = jnp.vdot(memory.squares * along, along)
        falls = -jnp.vdot(memory.slopes, along)  # -g^T delta
        predicted = 2 * falls - bend
        value = flat.value(end)
        finite = jnp.isfinite(value)
        fall = jnp.where(finite, F - value, -F)
        # Where less is predicted than F is rounded by, F cannot decide; but steps that shrink by themselves converge.
        noise = _rounding(memory, x)
        rounding = 8 * limits.eps * F + (2 * jnp.sqrt(F) + noise) * noise
        blind = (predicted <= rounding) & (jnp.abs(fall) <= rounding) & (length <= _SHRINKS * memory.moved)
        # A step that bounds cut off may be predicted to lead up, and yet lead down.
        lower = (predicted <= 0) & (fall > 0)
        ratio = jnp.where(predicted > 0, fall / jnp.where(predicted > 0, predicted, 1), -1)
        ratio = jnp.where(blind | lower, (_POOR + _GOOD) / 2, ratio)
        accepted = finite & jnp.any(end != x) & (ratio >= _ACCEPTED)

        # where F rose: the share of the step at which the parabola through both values and the slope has its minimum
        share = falls / jnp.where(falls > 0, 2 * falls - fall, 1)
        share = jnp.where((fall < 0) & (falls > 0) & finite, jnp.clip(share, 0.1, 0.5), 0.5)
        share = jnp.where(finite & (value < 100 * F), share, 0.1)
        radius = jnp.where(memory.moved > 0, memory.radius, jnp.minimum(memory.radius, length))
        whole = mu == 0
        outward = memory.outward & ((ratio >= _GOOD) | (whole & (ratio > _POOR)))
        longer = jnp.where(outward & (ratio >= _GOOD), _OUTWARD, 2) * length
        radius = jnp.where(
            ratio <= _POOR,
            share * jnp.minimum(radius, 10 * length),
            jnp.where(whole | (ratio >= _GOOD), longer, radius),
        )
        moved = jnp.where(accepted, length, memory.moved)
        memory = memory._replace(radius=radius, mu=mu, moved=moved, outward=outward)
        evaluation = lax.cond(
            accepted,
            lambda: evaluation_at(flat, self.evaluate, current, end, value, memory),
            lambda: current._replace(memory=memory),
        )
        # A Jacobian comes with its residuals, but those at x were the trial's already.
        evaluations = counts(values=1, products=products, matrices=evaluation.counts.matrices)
        nowhere = radius <= limits.eps * jnp.linalg.norm(D * x)
        failed = ~accepted & (nowhere | ~(radius > limits.tiny))
        expected = jnp.where(accepted, 0, jnp.maximum(predicted, 0))
        return Move(evaluation._replace(counts=evaluations), tried, failed, ~jnp.all(determined), expected)

    def stationary(self, flat: FlatProblem, state: State, x0: Array, tolerance: Array | float) -> Array:
        """Returns whether the residuals are nearly orthogonal to the plane, or the Gauss-Newton step is short."""
        memory, x, eps = state.memory, flat.flatten(state.params), jnp.finfo(flat.dtype).eps
        determined = _determined(memory.squares, self.orthogonal)
        roots = jnp.sqrt(jnp.where(determined, memory.squares, 1))
        c = jnp.where(determined, memory.slopes / roots, 0)
        # near a minimum at x = 0 the start says how small is small
        w = jnp.maximum(jnp.abs(x), eps**0.5 * jnp.abs(x0))
        # A refused step shows that the plane predicts too much, as where J is nearly singular. Then columns decide.
        D, lengths = _units(memory.scale), jnp.where(memory.lengths > 0, memory.lengths, 1)
        each = (memory.slopes @ memory.vectors) * D / lengths
        projection = jnp.where(state.expected > 0, jnp.max(jnp.abs(each)), jnp.linalg.norm(c))
        orthogonal = projection <= tolerance * jnp.sqrt(state.value) + _rounding(memory, w)
        step = (c / roots) @ memory.vectors / D
        short = jnp.all(jnp.abs(step) <= _SHARE * tolerance * w) & jnp.all(determined | (memory.slopes == 0))
        return orthogonal | short


def _spectrum(scaled: Array, r: Array, orthogonal: bool) -> tuple[Array, Array, Array]:
    """Returns s^2 (K,), V^T (K, P) and s c (K,) of J D^-1, or of its triangle and Q^T r."""
    if orthogonal:
        U, s, vectors = linalg.singular(scaled)
        return s**2, vectors, s * (r @ U)
    squares, vectors = linalg.eigh(scaled.T @ scaled)
    return jnp.maximum(squares, 0), vectors.T, vectors.T @ (r @ scaled)


def damping(squares: Array, slopes: Array, radius: Array, determined: Array) -> Array:
    """Returns mu: 0 for a Gauss-Newton step within the radius, else such that `|p(mu)|` is the radius, to a tenth.

    It is Hebden's and More's iteration on `1 / |p|`, between bounds that close in on mu (More 1978, Sec. 5). All
    lengths are those of p.
    """

    def step(mu):
        below = jnp.where(determined, squares + mu, 1)
        p = jnp.where(determined, slopes / below, 0)
        length = jnp.linalg.norm(p)
        return length, jnp.vdot(p, p / below) / jnp.where(length > 0, length, 1)  # and -d|p| / dmu

    length, falling = step(jnp.zeros_like(radius))
    within = length <= (1 + _NEAR) * radius
    tiny = jnp.finfo(radius.dtype).tiny
    # |p(mu)| is convex: Newton's first step falls short of mu; |p(mu)| <= |s c| / mu
    low = jnp.where(falling > 0, (length - radius) / jnp.where(falling > 0, falling, 1), 0)
    high = jnp.linalg.norm(jnp.where(determined, slopes, 0)) / jnp.maximum(radius, tiny)
    first = jnp.where(within, 0, jnp.clip(jnp.where(low > 0, low, 1e-3 * high), 0, high))

    def outside(carry):
        mu, _, _, (length, _), count = carry
        return ~within & (jnp.abs(length - radius) > _NEAR * radius) & (count < 50)

    def newton(carry):
        mu, low, high, (length, falling), count = carry
        excess = length - radius
        low, high = jnp.where(excess > 0, jnp.maximum(low, mu), low), jnp.where(excess > 0, high, jnp.minimum(high, mu))
        tried = mu + length / radius * excess / jnp.where(falling > 0, falling, tiny)
        inside = (tried > low) & (tried < high)
        mu = jnp.where(inside, tried, jnp.maximum(jnp.sqrt(low * high), 1e-3 * high))
        return mu, low, high, step(mu), count + 1

    initial = first, jnp.maximum(low, 0), high, step(first), jnp.zeros((), jnp.int32)
    return lax.while_loop(outside, newton, initial)[0]
