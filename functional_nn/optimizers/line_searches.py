"""How far to go along a direction: searches for a step length, by values and slopes along the line.

Letters: x a point, d a direction that leads down (g^T d < 0), alpha the step, phi(alpha) = F(x + alpha d), whose slope
is phi'(alpha) = g(x + alpha d)^T d. A search that finds nothing says so in its result and never raises: the point is
then where it was. Every comparison of values allows for the rounding of F, a few units in its last place, without
which no search could end where F no longer changes (Hager and Zhang 2005, Sec. 4, is the same remedy).

F falls along d at first, phi(alpha) = phi(0) + alpha g^T d + O(alpha^2), so that phi(alpha) <= phi(0) + c alpha phi'(0)
holds for small alpha and any c < 1. The parabola through phi(0), phi'(0) and phi(alpha) has its minimum at -phi'(0)
alpha^2 / (2 (phi(alpha) - phi(0) - alpha phi'(0))). |phi'(alpha)| <= c2 |phi'(0)| makes s = alpha d and y, the change
of g, satisfy s^T y > 0 where c2 < 1: what quasi-Newton updates need.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.precision import largest
from functional_nn.registry import Described, Registry


class Point(NamedTuple):
    """On the line: step alpha, value phi, slope phi', and the gradient g (P,) there."""

    step: Array
    value: Array
    slope: Array
    gradient: Array


class Line(NamedTuple):
    """value(alpha) -> phi; point(alpha) -> Point; start: the Point at 0."""

    value: Callable[[Array], Array]
    point: Callable[[Array], Point]
    start: Point


class Found(NamedTuple):
    """The Point that was chosen, `start` where none was found; how often F alone was asked for, and how often with its
    gradient.
    """

    point: Point
    found: Array
    values: Array
    gradients: Array


@dataclass(frozen=True, eq=False)
class LineSearch(Described):
    """search(line, first) -> Found, `first` the step to be tried first; constants: what it was made with, by name."""

    name: str
    search: Callable[[Line, Array], Found]
    constants: dict[str, Any]

    def __repr__(self) -> str:
        return f"<line search {self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})>"


_registry: Registry[LineSearch] = Registry("line search", LineSearch)
register, names, get = _registry.register, _registry.names, _registry.get

_SHARE = (lambda v: (v > 0) & (v < 1), "in (0, 1)")


def _rounding(one: Array, other: Array) -> Array:
    """By how much two values may differ and be one; 0 where either is not finite."""
    size = jnp.maximum(jnp.abs(one), jnp.abs(other))
    return 4 * jnp.finfo(one.dtype).eps * jnp.where(jnp.isfinite(size), size, 0)


def _int(number) -> Array:
    return jnp.asarray(number, jnp.int32)


@register
def full_step() -> LineSearch:
    """The first step itself, wherever it leads: Eq. 3.28 as it is printed. Fails only where F is not finite there."""

    def search(line: Line, first: Array) -> Found:
        return _ended(line, line.point(first), True, 0)

    return LineSearch("full_step", search, {})


def _once(line: Line) -> Line:
    """The same, computed once: a value computed twice, in two fusions, may be two values, and decisions that rest on it
    would contradict each other where they are close.
    """
    once = lax.optimization_barrier
    return Line(lambda step: once(line.value(step)), lambda step: once(line.point(step)), line.start)


def _ended(line: Line, point: Point, accepted: Array | bool, values, gradients=1) -> Found:
    found = jnp.isfinite(point.value) & jnp.all(jnp.isfinite(point.gradient)) & accepted
    point = jax.tree.map(lambda new, old: jnp.where(found, new, old), point, line.start)
    return Found(point, found, _int(values), _int(gradients))


@register
def backtracking(decrease: float = 1e-4, evaluations: int = 40) -> LineSearch:
    """The first step that decreases F enough: phi(alpha) <= phi(0) + c alpha phi'(0) (Armijo 1966; Nocedal and Wright
    2006, Eq. 3.4), c the `decrease`.

    A step refused is followed by the minimum of the parabola through phi(0), phi'(0) and phi(alpha), kept between a
    tenth and a half of it (Dennis and Schnabel 1983, Alg. 6.3.1); by a tenth where F is not finite. One value an
    evaluation, one gradient at the end.
    """
    checks.constant("backtracking", "decrease", decrease, *_SHARE)
    checks.integer("backtracking", "evaluations", evaluations, 1)

    def search(line: Line, first: Array) -> Found:
        line = _once(line)
        start = line.start

        def enough(step, value):
            return value <= start.value + decrease * step * start.slope + _rounding(start.value, value)

        def refused(carry):
            step, value, count = carry
            return ~enough(step, value) & (count < evaluations)

        def shorter(carry):
            step, value, count = carry
            bend = value - start.value - step * start.slope  # of the parabola, times step^2
            minimum = -start.slope * step / jnp.where(bend > 0, 2 * bend, 1) * step
            step = jnp.where(jnp.isfinite(value) & (bend > 0), jnp.clip(minimum, 0.1 * step, 0.5 * step), 0.1 * step)
            return step, line.value(step), count + 1

        # Mostly the first step is taken, and its gradient is known already.
        point = line.point(first)
        step, value, count = lax.while_loop(refused, shorter, (first, point.value, _int(1)))
        point = lax.cond(count > 1, line.point, lambda step: point, step)
        return _ended(line, point, enough(step, value), count - 1, jnp.where(count > 1, 2, 1))

    return LineSearch("backtracking", search, {"decrease": decrease, "evaluations": evaluations})


@register
def golden_section(tolerance: float = 1e-8, growth: float = 2.0, evaluations: int = 120) -> LineSearch:
    """The minimum along the line by values alone: a bracket by steps that grow, then Kiefer's golden section (1953).

    The bracket's last width is `tolerance` times the step; values alone cannot place a minimum better than the root of
    the rounding error. One value an evaluation, one gradient at the end; fails where no step decreases F.
    """
    checks.constant("golden_section", "tolerance", tolerance, *_SHARE)
    checks.constant("golden_section", "growth", growth, lambda v: (v > 1) & np.isfinite(v), "a finite number > 1")
    checks.integer("golden_section", "evaluations", evaluations, 3)
    share = (5**0.5 - 1) / 2

    def search(line: Line, first: Array) -> Found:
        line = _once(line)

        def lower(one, other):
            return (one < other) | (jnp.isnan(other) & jnp.isfinite(one))

        # a < b < c with phi(b) below both: outward while it falls, inward while the first step is already too far
        def open_(carry):
            (a, b, c), (fa, fb, fc), count = carry
            return ~(lower(fb, fa) & ~lower(fc, fb)) & (count < evaluations)

        def widen(carry):
            (a, b, c), (fa, fb, fc), count = carry
            outward = lower(fb, fa)
            new = jnp.where(outward, growth * c, b / growth)
            value = line.value(new)
            steps = [jnp.where(outward, p, q) for p, q in zip((b, c, new), (a, new, b), strict=True)]
            values = [jnp.where(outward, p, q) for p, q in zip((fb, fc, value), (fa, value, fb), strict=True)]
            return tuple(steps), tuple(values), count + 1

        zero, second = jnp.zeros_like(first), growth * first
        begun = (zero, first, second), (line.start.value, line.value(first), line.value(second)), _int(2)
        (a, b, c), (_, fb, _), count = lax.while_loop(open_, widen, begun)

        def wide(carry):
            a, b, c, _, count = carry
            return (c - a > tolerance * c) & (count < evaluations)

        def narrow(carry):
            a, b, c, fb, count = carry
            right = c - b > b - a
            new = jnp.where(right, b + (1 - share) * (c - b), b - (1 - share) * (b - a))
            value = line.value(new)
            better = lower(value, fb)
            a, c = (
                jnp.where(better & right, b, jnp.where(~better & ~right, new, a)),
                jnp.where(better & ~right, b, jnp.where(~better & right, new, c)),
            )
            return a, jnp.where(better, new, b), c, jnp.where(better, value, fb), count + 1

        _, b, _, fb, count = lax.while_loop(wide, narrow, (a, b, c, fb, count))
        return _ended(line, line.point(b), fb < line.start.value, count)

    constants = {"tolerance": tolerance, "growth": growth, "evaluations": evaluations}
    return LineSearch("golden_section", search, constants)


class _Bracket(NamedTuple):
    """low: the best point so far; high: the other end once `closed`; widths: of the bracket, one and two steps ago."""

    low: Point
    high: Point
    closed: Array
    next: Array
    widths: tuple
    accepted: Array
    count: Array


@register
def strong_wolfe(decrease: float = 1e-4, curvature: float = 0.9, evaluations: int = 30) -> LineSearch:
    """A step that decreases F enough and where the slope has flattened: phi(alpha) <= phi(0) + c1 alpha phi'(0) and
    |phi'(alpha)| <= c2 |phi'(0)| (Nocedal and Wright 2006, Eq. 3.7 and Alg. 3.5 and 3.6), c1 the `decrease`, c2 the
    `curvature`: 0.9 for quasi-Newton, 0.1 for conjugate gradients, 1e-10 for an exact search.

    Each evaluation is a value and a gradient; the next step is the minimum of the cubic through both ends, halfway
    where that falls outside or the bracket shrinks too slowly (More and Thuente 1994, Sec. 4). Where the evaluations
    run out, the lowest point found is taken, if it is lower than the start.
    """
    checks.constant("strong_wolfe", "decrease", decrease, *_SHARE)
    checks.constant("strong_wolfe", "curvature", curvature, *_SHARE)
    checks.integer("strong_wolfe", "evaluations", evaluations, 1)

    def search(line: Line, first: Array) -> Found:
        line = _once(line)
        start = line.start

        def going(b: _Bracket):
            return ~b.accepted & (b.count < evaluations)

        def step(b: _Bracket) -> _Bracket:
            new = line.point(b.next)
            finite = jnp.isfinite(new.value) & jnp.isfinite(new.slope)
            # Values that differ by rounding say nothing; then the slope alone decides.
            high = new.value > start.value + decrease * new.step * start.slope + _rounding(start.value, new.value)
            high = high | (new.value > b.low.value + _rounding(b.low.value, new.value)) | ~finite
            flat = jnp.abs(new.slope) <= -curvature * start.slope
            accepted = ~high & flat
            # The minimum is between `low` and `new` where new is too high, or slopes upward as seen from low.
            beyond = new.slope * (new.step - b.low.step) >= 0
            closed = b.closed | high | beyond
            other = jax.tree.map(lambda low, h: jnp.where(beyond, low, h), b.low, b.high)
            high_end = jax.tree.map(lambda n, o: jnp.where(high, n, o), new, other)
            low_end = jax.tree.map(lambda low, n: jnp.where(high, low, n), b.low, new)
            width = jnp.abs(high_end.step - low_end.step)
            slow = b.closed & (width > 0.66 * b.widths[1])
            inside = jnp.where(slow, (low_end.step + high_end.step) / 2, _between(low_end, high_end))
            outward = _beyond(b.low, new)
            return _Bracket(
                low_end,
                high_end,
                closed,
                jnp.where(closed, inside, outward),
                (jnp.where(closed, width, largest(width.dtype)), b.widths[0]),
                accepted,
                b.count + 1,
            )

        widest = largest(first.dtype)
        begun = _Bracket(start, start, jnp.asarray(False), first, (widest, widest), jnp.asarray(False), _int(0))
        b = lax.while_loop(going, step, begun)
        found = b.accepted | (b.low.value < start.value)
        point = jax.tree.map(lambda new, old: jnp.where(found, new, old), b.low, start)
        return Found(point, found, _int(0), b.count)

    constants = {"decrease": decrease, "curvature": curvature, "evaluations": evaluations}
    return LineSearch("strong_wolfe", search, constants)


def _over(one: Array, other: Array) -> Array:
    """one / other; 0 where that cannot be."""
    return jnp.where(other != 0, one / jnp.where(other != 0, other, 1), 0)


def _cubic(p: Point, q: Point) -> tuple[Array, Array]:
    """The minimum of the cubic through two values and slopes (Nocedal and Wright Eq. 3.59), and whether there is one.

    Where the values differ by little more than rounding, the zero of the line through the slopes.
    """
    across = q.step - p.step
    steepest = jnp.maximum(jnp.abs(p.slope), jnp.abs(q.slope))
    one, other = _over(p.slope, steepest), _over(q.slope, steepest)  # whose squares are numbers in any unit
    d1 = one + other - 3 * _over(_over(q.value - p.value, across), steepest)
    square = d1**2 - one * other
    d2 = jnp.sign(across) * jnp.sqrt(jnp.maximum(square, 0))
    bend = other - one + 2 * d2
    cubic = q.step - across * _over(other + d2 - d1, bend)
    secant = q.step - across * _over(other, other - one)
    noise = _over(_rounding(p.value, q.value), jnp.abs(across))
    told = noise < 0.01 * steepest
    there = jnp.where(told, (square >= 0) & (bend != 0), one * other < 0) & (across != 0)
    found = jnp.where(told, cubic, secant)
    return found, there & jnp.isfinite(found)


def _between(low: Point, high: Point) -> Array:
    """The next step inside a bracket: the cubic's minimum, at least a twentieth of the width from either end."""
    middle = (low.step + high.step) / 2
    left, right = jnp.minimum(low.step, high.step), jnp.maximum(low.step, high.step)
    margin = 0.05 * (right - left)
    tried, there = _cubic(low, high)
    return jnp.where(there, jnp.clip(tried, left + margin, right - margin), middle)


def _beyond(low: Point, new: Point) -> Array:
    """The next step where F still falls: the cubic's minimum, between 1.1 and 5 times the last stride further out."""
    stride = new.step - low.step
    tried, there = _cubic(low, new)
    near, far = new.step + 0.1 * stride, new.step + 4 * stride
    return jnp.where(there & (tried > new.step), jnp.clip(tried, near, far), far)
