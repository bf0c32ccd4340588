r"""Quasi-Newton methods: curvature from how the gradient changes along the steps.

Letters: P parameters, :math:`s = x_{k+1} - x_k` a step, :math:`y = g_{k+1} - g_k` the change of the gradient along it,
both (P,); B (P, P) approximates :math:`H^{-1}`.

On a quadratic :math:`y = H s`. The next B must satisfy this, :math:`B y = s`, and stay symmetric and near the last one.
With :math:`E = I - s y^T / s^T y` and :math:`\leftarrow` for the update,

.. math::
    \begin{aligned}
    B &\leftarrow E B E^T + \frac{s s^T}{s^T y} \\
    v^T B v &\leftarrow (E^T v)^T B \, (E^T v) + \frac{(s^T v)^2}{s^T y}
    \end{aligned}

As :math:`E^T y = 0`, the new B maps y to s. By the second line it is positive definite, if the old one was, where
:math:`s^T y > 0`.

L-BFGS never forms B: m such updates of a multiple of I are unrolled. :math:`E^T` of each is applied to g from the
newest back, then E and the :math:`s s^T` terms from the oldest on: 4 m P multiplications.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn import checks
from functional_nn.optimizers import line_searches
from functional_nn.optimizers.line_searches import LineSearch
from functional_nn.optimizers.second_order.line_steps import downhill, first_trial, search_along
from functional_nn.optimizers.second_order.method import BUDGET, SecondOrder, register, square_matrix
from functional_nn.optimizers.second_order.state import Evaluation, Move, counts, no_previous_value
from functional_nn.reductions import unit


class Pair(NamedTuple):
    """A step s and the change y of the gradient along it.

    Attributes:
        step: s (P,), of unit size.
        change: y (P,), of unit size.
        product: s^T y of these.
        ratio: The size that s was divided by over that of y.
        curves: True if s^T y is positive beyond rounding, so that the update stays positive definite.
    """

    step: Array
    change: Array
    product: Array
    ratio: Array
    curves: Array

    @property
    def scale(self) -> Array:
        """s^T y / y^T y of the pair itself; 1 where it has no curvature."""
        return jnp.where(self.curves, self.ratio * self.product / jnp.vdot(self.change, self.change), 1)


def _pair(s: Array, y: Array) -> Pair:
    """Returns the pair, in any unit of F: in single precision s^T y and y^T y themselves may overflow."""
    sizes = unit(s), unit(y)
    s, y = s / sizes[0], y / sizes[1]
    product = jnp.vdot(s, y)
    curves = product > jnp.finfo(s.dtype).eps * jnp.linalg.norm(s) * jnp.linalg.norm(y)
    y = jnp.where(curves, y, 1)  # divided by, below
    return Pair(s, y, jnp.where(curves, product, 1), sizes[0] / sizes[1], curves)


class BFGSMemory(NamedTuple):
    """The memory of `bfgs`.

    Attributes:
        inverse: The approximate H^-1 (P, P).
        before: F at the point before.
        updated: False until the first update of `inverse`.
    """

    inverse: Array
    before: Array
    updated: Array


@register
def bfgs(line_search: LineSearch | str = "strong_wolfe", budget: int = BUDGET) -> SecondOrder:
    r"""The method of Broyden, Fletcher, Goldfarb and Shanno (1970): one matrix (P, P), updated at every step.

    .. math::
        \begin{aligned}
        d &= -B g \\
        B &\leftarrow \Big(I - \frac{s y^T}{s^T y}\Big) B \Big(I - \frac{y s^T}{s^T y}\Big) + \frac{s s^T}{s^T y}
        \end{aligned}

    Before its first update B is multiplied by :math:`s^T y / y^T y` (Eq. 6.20). Before any other it is multiplied by
    :math:`s^T B^{-1} s / s^T y` where that is above 1: then :math:`B^{-1}` has more curvature along s than was met, and
    a badly scaled start is forgotten sooner (Al-Baali 1998). A step without curvature, :math:`s^T y` not above
    rounding, leaves B as it is and is counted as damped. Where d does not lead down, the next direction is -g, and B
    restarts.

    Args:
        line_search: The line search, or its name.
        budget: The bytes that the matrix may take.

    Returns:
        The method.

    Raises:
        ValueError: An argument is out of range, or (in `init`) the matrix would take more than `budget` bytes.

    References:
        Nocedal and Wright 2006, Eq. 6.17 and 6.20; CSE 475 19.73.2.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum(jnp.array([1.0, 10.0]) * (x - 1) ** 2))
        >>> solution = optimizers.minimize(problem, optimizers.bfgs(), jnp.zeros(2))
        >>> solution.status, [round(float(x), 3) for x in solution.params]
        ('gradient', [1.0, 1.0])
    """
    line_search = line_searches.get(line_search)
    checks.integer("bfgs", "budget", budget, 1)

    def evaluate(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        memory = BFGSMemory(jnp.eye(flat.size, dtype=g.dtype), no_previous_value(value), jnp.asarray(False))
        return Evaluation(x, value, g, memory, counts(gradients=1))

    def move(flat, current: Evaluation) -> Move:
        B, before, updated_before = current.memory
        d, replaced = downhill(-(B @ current.gradient), current.gradient)
        line_step = search_along(
            d, line_search, flat, current, jnp.where(updated_before & ~replaced, 1, first_trial(current, d, before))
        )
        change = line_step.gradient - current.gradient
        s, y, product, ratio, curves = pair = _pair(line_step.x - current.x, change)
        fresh = jnp.eye(flat.size, dtype=B.dtype)
        B = jnp.where(updated_before & ~replaced, B, pair.scale * fresh)
        # the ratio of s^T B^-1 s, in which B g = -s / alpha, to s^T y
        excess = -line_step.step * jnp.vdot(s, current.gradient / unit(change)) / product
        B = B * jnp.where(updated_before & ~replaced & curves, jnp.maximum(excess, 1), 1)
        By = B @ y
        # Eq. 6.17 multiplied out: two outer products instead of two products of matrices; s s^T / s^T y has the ratio
        sBy = jnp.outer(s, By)
        B_updated = B + (ratio + jnp.vdot(y, By) / product) / product * jnp.outer(s, s) - (sBy + sBy.T) / product
        updated = ((updated_before & ~replaced) | curves) & ~line_step.missed
        memory = BFGSMemory(jnp.where(updated, jnp.where(curves, B_updated, B), fresh), current.value, updated)
        return line_step.move(current, d, memory, ~curves & ~line_step.missed)

    constants = {"line_search": line_search, "budget": budget}
    return SecondOrder("bfgs", evaluate, move, constants, elements=square_matrix, budget=budget)


class LBFGSMemory(NamedTuple):
    """The memory of `lbfgs`.

    Attributes:
        steps: The last m s (m, P), the newest first, each of unit size.
        changes: The last m y (m, P), in the same order and of unit size.
        products: s^T y of these (m,), 0 for a pair that does not exist yet.
        ratios: The size of each s over that of its y (m,).
        scale: s^T y / y^T y of the newest pair.
        before: F at the point before.
    """

    steps: Array
    changes: Array
    products: Array
    ratios: Array
    scale: Array
    before: Array


@register
def lbfgs(history: int = 10, line_search: LineSearch | str = "strong_wolfe") -> SecondOrder:
    """Limited-memory BFGS: the last m steps stand for the matrix, which is never formed.

    .. math:: d = -B g

    B is the result of m updates of :math:`(s^T y / y^T y) I`, that of the newest step; the two-loop recursion applies
    it (Nocedal and Wright 2006, Alg. 7.4). A step without curvature is not kept, and is counted as damped. The memory
    holds 2 m P numbers.

    Args:
        history: m, >= 1.
        line_search: The line search, or its name.

    Returns:
        The method.

    Raises:
        ValueError: An argument is out of range.

    References:
        Liu and Nocedal 1989.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum(jnp.array([1.0, 10.0]) * (x - 1) ** 2))
        >>> solution = optimizers.minimize(problem, optimizers.lbfgs(history=5), jnp.zeros(2))
        >>> solution.status, [round(float(x), 3) for x in solution.params]
        ('gradient', [1.0, 1.0])
    """
    checks.integer("lbfgs", "history", history, 1)
    line_search = line_searches.get(line_search)

    def evaluate(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        vectors, numbers = jnp.zeros((history, flat.size), g.dtype), jnp.zeros(history, g.dtype)
        memory = LBFGSMemory(vectors, vectors, numbers, numbers, jnp.ones_like(value), no_previous_value(value))
        return Evaluation(x, value, g, memory, counts(gradients=1))

    def move(flat, current: Evaluation) -> Move:
        memory = current.memory
        d, _ = downhill(-_two_loops(memory, current.gradient), current.gradient)
        first = jnp.where(memory.products[0] > 0, 1, first_trial(current, d, memory.before))
        line_step = search_along(d, line_search, flat, current, first)
        pair = _pair(line_step.x - current.x, line_step.gradient - current.gradient)
        kept = [jnp.where(line_step.missed, 0, old) for old in memory[:4]]
        latest = [
            jnp.where(pair.curves, jnp.concatenate([new[None], old[:-1]]), old)
            for new, old in zip(pair[:4], kept, strict=True)
        ]
        scale = jnp.where(pair.curves, pair.scale, jnp.where(line_step.missed, 1, memory.scale))
        return line_step.move(current, d, LBFGSMemory(*latest, scale, current.value), ~pair.curves & ~line_step.missed)

    return SecondOrder("lbfgs", evaluate, move, {"history": history, "line_search": line_search})


def _two_loops(memory: LBFGSMemory, g: Array) -> Array:
    """Returns B g. A pair that does not exist yet has s = y = 0, and changes nothing."""
    S, Y, products, ratios, scale, _ = memory
    reciprocal = jnp.where(products > 0, 1 / jnp.where(products > 0, products, 1), 0)

    def back(q, row):
        s, y, r = row
        alpha = r * jnp.vdot(s, q)
        return q - alpha * y, alpha

    q, alphas = jax.lax.scan(back, g, (S, Y, reciprocal))
    q = q * scale

    def forth(q, row):
        s, y, r, ratio, alpha = row
        return q + s * (ratio * alpha - r * jnp.vdot(y, q)), None

    return jax.lax.scan(forth, q, (S, Y, reciprocal, ratios, alphas), reverse=True)[0]
