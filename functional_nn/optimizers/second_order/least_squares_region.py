"""Levenberg-Marquardt by a trust region: the shortest step that the linear model of the residuals asks for, no longer
than the radius (More 1978, as in MINPACK: More, Garbow and Hillstrom 1980).

Letters: P parameters, N residuals r, J = dr/dparams (N, P), F = r^T r, g = J^T r; D (P,), the length of each column of
J, the largest met so far; p = D delta a step, in which every parameter has the unit of r; Delta the radius.

    least |r + J delta|^2  under  |D delta| <= Delta        (J^T J + mu D^2) delta = -g,  mu >= 0,  mu (|p| - Delta) = 0

J D^-1 = U S V^T, c = U^T r: p(mu) = -V s c / (s^2 + mu), whose length falls as mu rises; 1 / |p(mu)| is nearly a line,
so that Newton's iteration on 1 / |p| = 1 / Delta takes a few steps, each a sum over K = min(N, P) numbers: one
decomposition serves every radius that is tried at a point. Multiply r, or a parameter, by a number: p, mu and what is
decided stay as they are.

The Gauss-Newton step, mu = 0, lowers |r|^2 by |c|^2 of the s that are not 0, were r linear; |c| / |r| is the cosine
between r and the plane that the columns of J span (Bates and Watts 1981, the relative offset). A run has converged
where that is small, or where the Gauss-Newton step moves no parameter by more than a small share of itself.

Geodesic acceleration (Transtrum and Sethna 2012): r bends along the step by r'' = d^2 r(x + t delta) / dt^2, so that
delta + a / 2 with (J^T J + mu D^2) a = -J^T r'' follows the valley's curve to second order; it is taken where it is
short beside delta, 2 |D a| <= 3/4 |D delta|.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import linalg
from functional_nn.optimizers.second_order.method import Here, Move, counts, landed
from functional_nn.optimizers.second_order.problem import Flat

_ACCEPTED, _POOR, _GOOD = 1e-4, 0.25, 0.75  # of the decrease that was foretold: More 1978, Sec. 5
_NEAR = 0.1  # |p| may differ from the radius by this share of it
_OUTWARD = 4.0  # the radius is so many steps long after a good one, as long as none was less: the start may be far off
_BENT = 0.75  # 2 |D a| / |D delta| above it is no correction of the step
_SHRINKS = 0.9  # a step shorter than this share of the last shows that they converge
_SHARE = 8  # of the tolerance of the cosine: by which a Gauss-Newton step may still move a parameter


class LeastSquaresMemory(NamedTuple):
    """radius: Delta; mu; moved: |D delta| of the last step made; outward: every step so far was good; scale: D (P,), 0
    of a parameter that F has not depended on; lengths: of J's columns here (P,), 0 of those that a bound holds;
    squares: s^2 (K,); vectors: V^T (K, P); slopes: s c (K,); jacobian: J (N, P) where geodesic acceleration needs it,
    else None; held (P,): by a bound, None without bounds.
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
        """(P,): does the step leave the parameter, or a combination with others, where it is?"""
        told = _determined(self.squares, orthogonal=True)
        spanned = jnp.sum(jnp.where(told[:, None], self.vectors**2, 0), axis=0)
        free = 1 - spanned > jnp.finfo(spanned.dtype).eps ** 0.5
        return free if self.held is None else free & ~self.held


def _length(J: Array) -> Array:
    """Of each column (P,): of what is of unit size, since the squares of what is small are 0 in single precision."""
    size = jnp.max(jnp.abs(J), axis=0)
    size = jnp.where(size > 0, size, 1)
    return size * jnp.sqrt(jnp.sum((J / size[None, :]) ** 2, axis=0))


def _units(scale: Array) -> Array:
    """D, of a parameter without influence the largest of the others', or 1."""
    most = jnp.max(scale)
    return jnp.where(scale > 0, scale, jnp.where(most > 0, most, 1))


def _rounding(memory: LeastSquaresMemory, x: Array) -> Array:
    """Of |r|: what the rounding of x does to it."""
    return 4 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(memory.lengths * x)


def _determined(squares: Array, orthogonal: bool) -> Array:
    """Which s are told from 0: of J itself to rounding, of J^T J to the root of it."""
    limits = jnp.finfo(squares.dtype)
    share = (squares.size * limits.eps) ** (2 if orthogonal else 1)
    return squares > jnp.maximum(jnp.max(squares) * share, limits.tiny)


class TrustRegion(NamedTuple):
    """look, move and stationary of `SecondOrder`. radius: Delta at the start, in lengths of D x; scaled: D is other
    than I; orthogonal: from the singular values of J by QR, else from the eigenvalues of J^T J.
    """

    radius: float | Array
    scaled: bool
    orthogonal: bool
    geodesic: bool

    def look(self, flat: Flat, x: Array, memory: LeastSquaresMemory | None) -> Here:
        r, J = flat.jacobian(x)
        value, held = jnp.vdot(r, r), None
        if flat.bounds is not None:
            lower, upper = flat.bounds
            g = jnp.sum(J * r[:, None], axis=0)
            held = ((x <= lower) & (g > 0)) | ((x >= upper) & (g < 0))
            J = jnp.where(held[None, :], 0, J)
        # of the triangle only: XLA:CPU takes five times as long for J where J is in a product as well
        R, c = linalg.triangle(J, r) if r.size > x.size else (J, r)
        lengths = _length(R)
        now = lengths if self.scaled else jnp.ones_like(lengths)
        scale = now if memory is None else jnp.maximum(memory.scale, now)
        D = _units(scale)
        squares, vectors, slopes = _spectrum(R / D[None, :], c, self.orthogonal)
        if flat.bounds is None:
            g = (slopes @ vectors) * D
        if memory is None:
            size = jnp.linalg.norm(D * x)
            radius = self.radius * jnp.where(size > 0, size, jnp.sqrt(value))
            radius, zero = jnp.asarray(radius, x.dtype), jnp.zeros_like(value)
            far = radius, zero, zero, jnp.asarray(True)
        else:
            far = memory[:4]
        J = J if self.geodesic else None
        memory = LeastSquaresMemory(*far, scale, lengths, squares, vectors, slopes, J, held)
        return Here(x, value, 2 * g, memory, counts(values=1, matrices=1))

    def move(self, flat: Flat, here: Here) -> Move:
        memory, x, F = here.memory, here.x, here.value
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
            short = 2 * jnp.linalg.norm(D * a) <= _BENT * length  # not, where it is nan
            tried = jnp.where(short, delta + a / 2, delta)
        else:
            tried = delta
        after = x + tried
        if flat.bounds is not None:
            after = jnp.clip(after, *flat.bounds)
            delta = tried = after - x
            length = jnp.linalg.norm(D * delta)
        # of |r|^2, as far as r is linear; and what is left of it by mu
        along = memory.vectors @ (D * delta)
        bend = jnp.vdot(memory.squares * along, along)
        falls = -jnp.vdot(memory.slopes, along)  # -g^T delta
        predicted = 2 * falls - bend
        value = flat.value(after)
        finite = jnp.isfinite(value)
        fall = jnp.where(finite, F - value, -F)
        # Where less is foretold than F is rounded by, F cannot tell; but steps that shrink by themselves lead on.
        lost = _rounding(memory, x)
        rounding = 8 * limits.eps * F + (2 * jnp.sqrt(F) + lost) * lost
        blind = (predicted <= rounding) & (jnp.abs(fall) <= rounding) & (length <= _SHRINKS * memory.moved)
        # A step that bounds cut off may be foretold to lead up, and yet lead down.
        lower = (predicted <= 0) & (fall > 0)
        ratio = jnp.where(predicted > 0, fall / jnp.where(predicted > 0, predicted, 1), -1)
        ratio = jnp.where(blind | lower, (_POOR + _GOOD) / 2, ratio)
        made = finite & jnp.any(after != x) & (ratio >= _ACCEPTED)

        # where F rose the parabola through both values and the slope has its minimum at this share of the step
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
        moved = jnp.where(made, length, memory.moved)
        memory = memory._replace(radius=radius, mu=mu, moved=moved, outward=outward)
        found = lax.cond(
            made, lambda: landed(flat, self.look, here, after, value, memory), lambda: here._replace(memory=memory)
        )
        # A Jacobian comes with its residuals, but those at x were the trial's already.
        asked = counts(values=1, products=products, matrices=found.counts.matrices)
        nowhere = radius <= limits.eps * jnp.linalg.norm(D * x)
        failed = ~made & (nowhere | ~(radius > limits.tiny))
        expected = jnp.where(made, 0, jnp.maximum(predicted, 0))
        return Move(found._replace(counts=asked), tried, failed, ~jnp.all(determined), expected)

    def stationary(self, flat: Flat, state, x0: Array, tolerance: Array | float) -> Array:
        memory, x, eps = state.memory, flat.flatten(state.params), jnp.finfo(flat.dtype).eps
        determined = _determined(memory.squares, self.orthogonal)
        roots = jnp.sqrt(jnp.where(determined, memory.squares, 1))
        c = jnp.where(determined, memory.slopes / roots, 0)
        # a minimum at x = 0 is as near as it can be told from where the run began
        w = jnp.maximum(jnp.abs(x), eps**0.5 * jnp.abs(x0))
        # A step refused shows that the plane promises too much, as where J is nearly singular: then by single columns.
        D, lengths = _units(memory.scale), jnp.where(memory.lengths > 0, memory.lengths, 1)
        each = (memory.slopes @ memory.vectors) * D / lengths
        part = jnp.where(state.expected > 0, jnp.max(jnp.abs(each)), jnp.linalg.norm(c))
        aligned = part <= tolerance * jnp.sqrt(state.value) + _rounding(memory, w)
        step = (c / roots) @ memory.vectors / D
        short = jnp.all(jnp.abs(step) <= _SHARE * tolerance * w) & jnp.all(determined | (memory.slopes == 0))
        return aligned | short


def _spectrum(scaled: Array, r: Array, orthogonal: bool) -> tuple[Array, Array, Array]:
    """s^2 (K,), V^T (K, P) and s c (K,) of J D^-1, or of its triangle and Q^T r."""
    if orthogonal:
        U, s, vectors = linalg.singular(scaled)
        return s**2, vectors, s * (r @ U)
    squares, vectors = linalg.eigh(scaled.T @ scaled)
    return jnp.maximum(squares, 0), vectors.T, vectors.T @ (r @ scaled)


def damping(squares: Array, slopes: Array, radius: Array, determined: Array) -> Array:
    """mu: 0 where the Gauss-Newton step is within the radius, else |p(mu)| is the radius, to a tenth: Hebden's and
    More's iteration on 1 / |p|, between bounds that close in on it (More 1978, Sec. 5). All sizes are those of p.
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

    def away(carry):
        mu, _, _, (length, _), count = carry
        return ~within & (jnp.abs(length - radius) > _NEAR * radius) & (count < 50)

    def newton(carry):
        mu, low, high, (length, falling), count = carry
        over = length - radius
        low, high = jnp.where(over > 0, jnp.maximum(low, mu), low), jnp.where(over > 0, high, jnp.minimum(high, mu))
        tried = mu + length / radius * over / jnp.where(falling > 0, falling, tiny)
        inside = (tried > low) & (tried < high)
        mu = jnp.where(inside, tried, jnp.maximum(jnp.sqrt(low * high), 1e-3 * high))
        return mu, low, high, step(mu), count + 1

    begun = first, jnp.maximum(low, 0), high, step(first), jnp.zeros((), jnp.int32)
    return lax.while_loop(away, newton, begun)[0]
