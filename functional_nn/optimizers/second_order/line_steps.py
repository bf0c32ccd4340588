"""Steps along a line: what methods with a line search have in common."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from functional_nn.optimizers.line_searches import Line, LineSearch, Point
from functional_nn.optimizers.second_order.problem import FlatProblem
from functional_nn.optimizers.second_order.state import Counts, Evaluation, Move, counts
from functional_nn.precision import largest
from functional_nn.reductions import unit


def downhill(direction: Array, gradient: Array) -> tuple[Array, Array]:
    """Returns (direction, replaced): the negative gradient where the direction is not finite or does not lead down."""
    good = jnp.all(jnp.isfinite(direction)) & (jnp.vdot(direction / unit(direction), gradient / unit(gradient)) < 0)
    return jnp.where(good, direction, -gradient), ~good


class LineStep(NamedTuple):
    """The end of a line search along d.

    Attributes:
        x: The point x + alpha d.
        value: F there.
        gradient: dF/dx there.
        step: alpha.
        missed: True where no lower point was found.
        failed: True where none was found along the negative gradient either.
        counts: How often F was evaluated.
    """

    x: Array
    value: Array
    gradient: Array
    step: Array
    missed: Array
    failed: Array
    counts: Counts

    def move(self, current: Evaluation, direction: Array, memory: Any, damped: Array | bool = False) -> Move:
        """Returns the move to the end of the search; of one that missed, the slope predicts the decrease."""
        end = Evaluation(self.x, self.value, self.gradient, memory, self.counts)
        tried = jnp.where(self.missed, direction, self.x - current.x)
        size = unit(direction)
        predicted = jnp.minimum(-jnp.vdot(current.gradient, direction / size), largest(tried.dtype) / size) * size
        expected = jnp.where(self.missed, predicted, 0)
        return Move(end, tried, self.failed, damped, expected)


def search_along(
    direction: Array, line_search: LineSearch, flat: FlatProblem, current: Evaluation, first: Array | float = 1.0
) -> LineStep:
    """Searches along a direction, with `first` as the first step.

    A search that misses fails only along the negative gradient; otherwise the method restarts from that direction.
    """
    size = unit(direction)  # along -g the slope would be a square, of what may be 1e24 in single precision
    d = direction / size

    def point(step: Array) -> Point:
        value, gradient = flat.value_and_gradient(current.x + step * d)
        return Point(step, value, jnp.vdot(gradient, d), gradient)

    zero = jnp.zeros_like(current.value)
    start = Point(zero, current.value, jnp.vdot(current.gradient, d), current.gradient)
    line = Line(lambda step: flat.value(current.x + step * d), point, start)
    result = line_search.search(line, jnp.asarray(first, current.value.dtype) * size)
    end, missed = result.point, ~result.found
    return LineStep(
        current.x + end.step * d,
        end.value,
        end.gradient,
        end.step / size,
        missed,
        missed & jnp.all(direction == -current.gradient),
        counts(result.values, result.gradients),
    )


def first_trial(current: Evaluation, direction: Array, before: Array) -> Array:
    """Returns the step length to try first along a direction.

    It is the one that would decrease F by as much as the last step did, if F were a parabola along the line (Nocedal
    and Wright 2006, Eq. 3.60). `before` is F at the point before this one, `no_previous_value` at the start. At the
    start the length is sum `|x_i d_i|` / sum d_i^2, so that the parameters that d moves most change by about their own
    size; for x = 0 a tenth of what would bring a straight line from F to 0; and a step of length 1 where F is 0, too.
    The units of F do not matter, nor does a common unit of all parameters.
    """
    size = unit(direction)
    direction = direction / size
    slope = jnp.vdot(current.gradient, direction)
    known = before < largest(before.dtype)
    down = jnp.where(slope < 0, -slope, 1)
    again = 2.02 * (jnp.where(known, before, current.value) - current.value) / down
    length = jnp.linalg.norm(direction)
    length = jnp.where(length > 0, length, 1)
    initial = jnp.vdot(jnp.abs(direction) / length, jnp.abs(current.x)) / length
    initial = jnp.where(initial > 0, initial, 0.1 * jnp.abs(current.value) / down)
    initial = jnp.where(initial > 0, initial, 1 / length)
    return jnp.where(known & (again > 0), again, initial) / size
