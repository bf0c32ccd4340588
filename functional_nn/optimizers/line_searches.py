r"""Line searches: how far to go along a direction, by values and slopes along the line.

Letters: x a point, d a direction that leads down (:math:`g^T d < 0`), :math:`\alpha` the step,
:math:`\phi(\alpha) = F(x + \alpha d)`, whose slope is :math:`\phi'(\alpha) = g(x + \alpha d)^T d`. A search that finds
no lower point says so in its result and never raises: the point is then the start. Every comparison of values allows
for the rounding of F, a few units in its last place; without that no search could end where F no longer changes (Hager
and Zhang 2005, Sec. 4, is the same remedy).

F falls along d at first, :math:`\phi(\alpha) = \phi(0) + \alpha g^T d + O(\alpha^2)`, so that for small
:math:`\alpha` and any c < 1

.. math:: \phi(\alpha) \le \phi(0) + c \, \alpha \, \phi'(0)

The parabola through :math:`\phi(0)`, :math:`\phi'(0)` and :math:`\phi(\alpha)` has its minimum at

.. math:: - \frac{\phi'(0) \, \alpha^2}{2 \, (\phi(\alpha) - \phi(0) - \alpha \phi'(0))}

The condition

.. math:: \lvert \phi'(\alpha) \rvert \le c_2 \lvert \phi'(0) \rvert

makes :math:`s = \alpha d` and y, the change of g, satisfy :math:`s^T y > 0` where :math:`c_2 < 1`, which quasi-Newton
updates need.
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
from functional_nn.registry import Registry
from functional_nn.rows import Constants, Described


class Point(NamedTuple):
    """A point on the line.

    Attributes:
        step: alpha.
        value: phi.
        slope: phi'.
        gradient: The gradient g (P,).

    Example:
        >>> from functional_nn.optimizers.line_searches import Point
        >>> Point(0.0, 1.0, -2.0, None).slope
        -2.0
    """

    step: Array
    value: Array
    slope: Array
    gradient: Array


class Line(NamedTuple):
    """The function along a line.

    Attributes:
        value: value(alpha) returns phi.
        point: point(alpha) returns the `Point`.
        start: The `Point` at 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn.optimizers.line_searches import Line, Point, backtracking
        >>> def point(step):
        ...     return Point(step, (step - 1) ** 2, 2 * (step - 1), 2 * (step - 1)[None])
        >>> line = Line(lambda step: (step - 1) ** 2, point, point(jnp.asarray(0.0)))
        >>> float(backtracking().search(line, jnp.asarray(4.0)).point.step)
        1.0
    """

    value: Callable[[Array], Array]
    point: Callable[[Array], Point]
    start: Point


class SearchResult(NamedTuple):
    """The result of a line search.

    Attributes:
        point: The `Point` chosen; the start where no lower point was found.
        found: Whether a point was found.
        values: Evaluations of F alone, int32.
        gradients: Evaluations of F with its gradient, int32.

    Example:
        >>> from functional_nn.optimizers.line_searches import SearchResult
        >>> SearchResult(None, False, 3, 1).values
        3
    """

    point: Point
    found: Array
    values: Array
    gradients: Array


@dataclass(frozen=True, eq=False)
class LineSearch(Described):
    """A line search.

    Attributes:
        name: Its name, as in `line_searches.get`.
        search: search(line, first) returns a `SearchResult`; `first` is the step to be tried first.
        constants: The constants that it was made with, by name.

    Example:
        >>> from functional_nn.optimizers import line_searches
        >>> line_searches.get("backtracking(evaluations=5)")
        <line search backtracking(decrease=0.0001, evaluations=5)>
    """

    name: str
    search: Callable[[Line, Array], SearchResult]
    constants: dict[str, Any]

    def __repr__(self) -> str:
        return f"<line search {self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})>"


__all__ = [
    "Line",
    "LineSearch",
    "Point",
    "SearchResult",
    "backtracking",
    "full_step",
    "get",
    "golden_section",
    "names",
    "register",
    "strong_wolfe",
]

_registry: Registry[LineSearch] = Registry("line search", LineSearch)


def register(factory: Callable[Constants, LineSearch]) -> Callable[Constants, LineSearch]:
    """Gives a function that returns a line search its name. A decorator.

    Afterwards the name may be used wherever a line search is expected. Equal constants
    return the same object, so that compiled programs are used again.

    Args:
        factory: The function; its name is the name of the line search, and its arguments are the constants.

    Returns:
        The same function, its results cached.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> from functional_nn.optimizers import line_searches
        >>> @line_searches.register
        ... def exact(curvature: float = 1e-6):
        ...     return line_searches.strong_wolfe(curvature=curvature)
        >>> line_searches.get("exact").name
        'strong_wolfe'
    """
    return _registry.register(factory)


def names() -> tuple[str, ...]:
    """Returns the names of the registered line searches.

    Example:
        >>> from functional_nn.optimizers import line_searches
        >>> "strong_wolfe" in line_searches.names()
        True
    """
    return _registry.names()


def get(line_search: str | LineSearch) -> LineSearch:
    """Returns the line search with this name.

    Args:
        line_search: A name, with arguments where wanted, such as "strong_wolfe(curvature=0.1)"; a line search is
        returned as it is.

    Returns:
        The line search.

    Raises:
        ValueError: The name is unknown, or its arguments are refused.
        TypeError: It is neither a name nor a line search.

    Example:
        >>> from functional_nn.optimizers import line_searches
        >>> line_searches.get("backtracking(evaluations=5)")
        <line search backtracking(decrease=0.0001, evaluations=5)>
    """
    return _registry.get(line_search)


_SHARE = (lambda v: (v > 0) & (v < 1), "in (0, 1)")


def _rounding(a: Array, b: Array) -> Array:
    """Returns by how much two equal values may differ by rounding; 0 where either is not finite."""
    size = jnp.maximum(jnp.abs(a), jnp.abs(b))
    return 4 * jnp.finfo(a.dtype).eps * jnp.where(jnp.isfinite(size), size, 0)


def _int(number: Array | int) -> Array:
    return jnp.asarray(number, jnp.int32)


@register
def full_step() -> LineSearch:
    """Takes the first step itself, wherever it leads: Newton's method as Hagan prints it (Eq. 3.28).

    It fails only where F is not finite there.

    Returns:
        The line search.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum((x - 1) ** 4))
        >>> search = optimizers.line_searches.full_step()
        >>> solution = optimizers.minimize(problem, optimizers.bfgs(search), jnp.zeros(2), steps=1)
        >>> solution.status
        'budget'
    """

    def search(line: Line, first: Array) -> SearchResult:
        return _ended(line, line.point(first), True, 0)

    return LineSearch("full_step", search, {})


def _computed_once(line: Line) -> Line:
    """Returns the same line, each value computed once.

    A value computed twice, in two fusions, may be two values, and decisions that depend on it would contradict each
    other where they are close.
    """
    barrier = lax.optimization_barrier
    return Line(lambda step: barrier(line.value(step)), lambda step: barrier(line.point(step)), line.start)


def _ended(
    line: Line, point: Point, accepted: Array | bool, values: Array | int, gradients: Array | int = 1
) -> SearchResult:
    """Returns the result: the point if it is finite and accepted, else the start."""
    found = jnp.isfinite(point.value) & jnp.all(jnp.isfinite(point.gradient)) & accepted
    point = jax.tree.map(lambda new, old: jnp.where(found, new, old), point, line.start)
    return SearchResult(point, found, _int(values), _int(gradients))


@register
def backtracking(decrease: float = 1e-4, evaluations: int = 40) -> LineSearch:
    r"""Takes the first step that decreases F enough, and makes steps shorter until one does.

    .. math:: \phi(\alpha) \le \phi(0) + c \, \alpha \, \phi'(0)

    A refused step is followed by the minimum of the parabola through :math:`\phi(0)`, :math:`\phi'(0)` and
    :math:`\phi(\alpha)`, kept between a tenth and a half of the step (Dennis and Schnabel 1983, Alg. 6.3.1); by a tenth
    of it where F is not finite. Each evaluation is one value, with one gradient at the end.

    Args:
        decrease: c, in (0, 1).
        evaluations: The largest number of steps tried.

    Returns:
        The line search.

    Raises:
        ValueError: A constant is out of range.

    References:
        Armijo 1966; Nocedal and Wright 2006, Eq. 3.4.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum((x - 1) ** 4))
        >>> search = optimizers.line_searches.backtracking()
        >>> solution = optimizers.minimize(problem, optimizers.bfgs(search), jnp.zeros(2), goal=1e-6)
        >>> solution.status
        'goal'
    """
    checks.constant("backtracking", "decrease", decrease, *_SHARE)
    checks.integer("backtracking", "evaluations", evaluations, 1)

    def search(line: Line, first: Array) -> SearchResult:
        line = _computed_once(line)
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
    """Finds the minimum along the line by values alone: a bracket by steps that grow, then golden section.

    The last width of the bracket is `tolerance` times the step. Values alone cannot place a minimum better than to the
    root of the rounding error. Each evaluation is one value, with one gradient at the end. The search fails where no
    step decreases F.

    Args:
        tolerance: In (0, 1).
        growth: The factor of growing steps, > 1.
        evaluations: The largest number of evaluations, >= 3.

    Returns:
        The line search.

    Raises:
        ValueError: A constant is out of range.

    References:
        Kiefer 1953.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum((x - 1) ** 4))
        >>> search = optimizers.line_searches.golden_section()
        >>> solution = optimizers.minimize(problem, optimizers.bfgs(search), jnp.zeros(2), goal=1e-6)
        >>> solution.status
        'goal'
    """
    checks.constant("golden_section", "tolerance", tolerance, *_SHARE)
    checks.constant("golden_section", "growth", growth, lambda v: (v > 1) & np.isfinite(v), "a finite number > 1")
    checks.integer("golden_section", "evaluations", evaluations, 3)
    share = (5**0.5 - 1) / 2

    def search(line: Line, first: Array) -> SearchResult:
        line = _computed_once(line)

        def lower(value, other):
            return (value < other) | (jnp.isnan(other) & jnp.isfinite(value))

        # a < b < c with phi(b) below both: outward while it falls, inward while the first step is already too far
        def is_open(carry):
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
        initial = (zero, first, second), (line.start.value, line.value(first), line.value(second)), _int(2)
        (a, b, c), (_, fb, _), count = lax.while_loop(is_open, widen, initial)

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
    """The state of `strong_wolfe`.

    Attributes:
        low: The best point so far.
        high: The other end, once `closed`.
        closed: Whether there are two ends.
        next: The next step.
        widths: Of the bracket, one and two steps ago.
        accepted: Whether `low` satisfies both conditions.
        count: The number of evaluations.
    """

    low: Point
    high: Point
    closed: Array
    next: Array
    widths: tuple
    accepted: Array
    count: Array


@register
def strong_wolfe(decrease: float = 1e-4, curvature: float = 0.9, evaluations: int = 30) -> LineSearch:
    r"""Finds a step that decreases F enough and at which the slope has flattened: the strong Wolfe conditions.

    .. math::
        \begin{aligned}
        \phi(\alpha) &\le \phi(0) + c_1 \, \alpha \, \phi'(0) \\
        \lvert \phi'(\alpha) \rvert &\le c_2 \, \lvert \phi'(0) \rvert
        \end{aligned}

    Each evaluation is a value and a gradient. The next step is the minimum of the cubic through both ends, or halfway
    where that is outside or the bracket shrinks too slowly (More and Thuente 1994, Sec. 4). If the evaluations run out,
    the lowest point found is taken, if it is lower than the start.

    Args:
        decrease: :math:`c_1`, in (0, 1).
        curvature: :math:`c_2`, in (0, 1): 0.9 for quasi-Newton methods, 0.1 for conjugate gradients, 1e-10 for an exact
            search.
        evaluations: The largest number of evaluations.

    Returns:
        The line search.

    Raises:
        ValueError: A constant is out of range.

    References:
        Nocedal and Wright 2006, Eq. 3.7 and Alg. 3.5 and 3.6.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum((x - 1) ** 4))
        >>> search = optimizers.line_searches.strong_wolfe()
        >>> solution = optimizers.minimize(problem, optimizers.bfgs(search), jnp.zeros(2), goal=1e-6)
        >>> solution.status
        'goal'
    """
    checks.constant("strong_wolfe", "decrease", decrease, *_SHARE)
    checks.constant("strong_wolfe", "curvature", curvature, *_SHARE)
    checks.integer("strong_wolfe", "evaluations", evaluations, 1)

    def search(line: Line, first: Array) -> SearchResult:
        line = _computed_once(line)
        start = line.start

        def unfinished(b: _Bracket) -> Array:
            return ~b.accepted & (b.count < evaluations)

        def step(b: _Bracket) -> _Bracket:
            new = line.point(b.next)
            finite = jnp.isfinite(new.value) & jnp.isfinite(new.slope)
            # Values that differ by rounding say nothing; then the slope alone decides.
            high = new.value > start.value + decrease * new.step * start.slope + _rounding(start.value, new.value)
            high = high | (new.value > b.low.value + _rounding(b.low.value, new.value)) | ~finite
            flat = jnp.abs(new.slope) <= -curvature * start.slope
            accepted = ~high & flat
            # The minimum is between `low` and `new` if new is too high, or slopes upward as seen from low.
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
        bracket = _Bracket(start, start, jnp.asarray(False), first, (widest, widest), jnp.asarray(False), _int(0))
        b = lax.while_loop(unfinished, step, bracket)
        found = b.accepted | (b.low.value < start.value)
        point = jax.tree.map(lambda new, old: jnp.where(found, new, old), b.low, start)
        return SearchResult(point, found, _int(0), b.count)

    constants = {"decrease": decrease, "curvature": curvature, "evaluations": evaluations}
    return LineSearch("strong_wolfe", search, constants)


def quotient(numerator: Array, denominator: Array) -> Array:
    """Returns the quotient, 0 where the denominator is 0."""
    return jnp.where(denominator != 0, numerator / jnp.where(denominator != 0, denominator, 1), 0)


def _cubic(p: Point, q: Point) -> tuple[Array, Array]:
    """Returns the minimum of the cubic through two values and slopes (Nocedal and Wright Eq. 3.59); does it exist?

    Where the values differ by little more than rounding, it is the zero of the line through the slopes.
    """
    across = q.step - p.step
    steepest = jnp.maximum(jnp.abs(p.slope), jnp.abs(q.slope))
    s_p, s_q = quotient(p.slope, steepest), quotient(q.slope, steepest)  # of unit size: squares are finite in any unit
    d1 = s_p + s_q - 3 * quotient(quotient(q.value - p.value, across), steepest)
    square = d1**2 - s_p * s_q
    d2 = jnp.sign(across) * jnp.sqrt(jnp.maximum(square, 0))
    bend = s_q - s_p + 2 * d2
    cubic = q.step - across * quotient(s_q + d2 - d1, bend)
    secant = q.step - across * quotient(s_q, s_q - s_p)
    noise = quotient(_rounding(p.value, q.value), jnp.abs(across))
    distinct = noise < 0.01 * steepest
    exists = jnp.where(distinct, (square >= 0) & (bend != 0), s_p * s_q < 0) & (across != 0)
    step = jnp.where(distinct, cubic, secant)
    return step, exists & jnp.isfinite(step)


def _between(low: Point, high: Point) -> Array:
    """Returns the next step inside a bracket: the cubic's minimum, a twentieth of the width or more from both ends."""
    middle = (low.step + high.step) / 2
    left, right = jnp.minimum(low.step, high.step), jnp.maximum(low.step, high.step)
    margin = 0.05 * (right - left)
    minimum, exists = _cubic(low, high)
    return jnp.where(exists, jnp.clip(minimum, left + margin, right - margin), middle)


def _beyond(low: Point, new: Point) -> Array:
    """Returns the next step while F still falls: the cubic's minimum, 1.1 to 5 times the last stride further out."""
    stride = new.step - low.step
    minimum, exists = _cubic(low, new)
    near, far = new.step + 0.1 * stride, new.step + 4 * stride
    return jnp.where(exists & (minimum > new.step), jnp.clip(minimum, near, far), far)
