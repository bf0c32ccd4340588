"""Quasi-Newton methods: curvature from how the gradient changes along the steps made.

Letters: P parameters, s = x_(k+1) - x_k a step, y = g_(k+1) - g_k how the gradient changed along it, both (P,); B
(P, P) stands for H^-1.

On a quadratic y = H s. The next B is asked to know that, B y = s, and to stay symmetric and near the last one:

    B <- E B E^T + s s^T / s^T y,   E = I - s y^T / s^T y       as E^T y = 0, B y = s
    v^T B v = (E^T v)^T B (E^T v) + (s^T v)^2 / s^T y            positive for all v, if it was, where s^T y > 0

L-BFGS never forms B: m such updates of a multiple of I are unrolled, E^T of each applied to g from the newest back,
then E and the s s^T terms from the oldest on, 4 m P multiplications.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn import checks
from functional_nn.optimizers import line_searches
from functional_nn.optimizers.line_searches import LineSearch
from functional_nn.optimizers.second_order.method import (
    BUDGET,
    Here,
    Move,
    SecondOrder,
    counts,
    downhill,
    first_step,
    register,
    search,
    unknown,
)
from functional_nn.reductions import unit


class Pair(NamedTuple):
    """A step s and how the gradient changed along it, y, each of unit size (P,); product: s^T y of these; ratio: of
    what s was divided by to what y was; curves: can s^T y be told from rounding, so that the update stays positive
    definite?
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
    """In any unit of F: in single precision s^T y and y^T y themselves may be no numbers."""
    sizes = unit(s), unit(y)
    s, y = s / sizes[0], y / sizes[1]
    product = jnp.vdot(s, y)
    curves = product > jnp.finfo(s.dtype).eps * jnp.linalg.norm(s) * jnp.linalg.norm(y)
    y = jnp.where(curves, y, 1)  # divided by, below
    return Pair(s, y, jnp.where(curves, product, 1), sizes[0] / sizes[1], curves)


class BFGSMemory(NamedTuple):
    """inverse: the approximate H^-1 (P, P); before: F at the point before; begun: False until the first update."""

    inverse: Array
    before: Array
    begun: Array


@register
def bfgs(line_search: LineSearch | str = "strong_wolfe", budget: int = BUDGET) -> SecondOrder:
    """Broyden, Fletcher, Goldfarb and Shanno (1970): d = -B g, and with s = x_(k+1) - x_k, y = g_(k+1) - g_k,
    B = (I - s y'/s'y) B (I - y s'/s'y) + s s'/s'y (Nocedal and Wright 2006, Eq. 6.17). CSE 475 19.73.2.

    Before the first update B is scaled by s'y / y'y (Eq. 6.20), before any other by s'B^-1 s / s'y where that is above
    1: B^-1 then has more curvature along s than was met, and a badly scaled start is forgotten sooner (Al-Baali 1998).
    A step without curvature, s'y not above rounding, leaves B as it is and is counted as damped; where d does not lead
    down, the next is -g, and B begins anew. One matrix (P, P). Raises ValueError, when it meets the parameters, for a
    matrix above `budget` bytes.
    """
    line_search = line_searches.get(line_search)
    checks.integer("bfgs", "budget", budget, 1)

    def look(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        memory = BFGSMemory(jnp.eye(flat.size, dtype=g.dtype), unknown(value), jnp.asarray(False))
        return Here(x, value, g, memory, counts(gradients=1))

    def move(flat, here: Here) -> Move:
        B, before, begun = here.memory
        d, replaced = downhill(-(B @ here.gradient), here.gradient)
        found = search(line_search, flat, here, d, jnp.where(begun & ~replaced, 1, first_step(here, d, before)))
        change = found.gradient - here.gradient
        s, y, product, ratio, curves = pair = _pair(found.x - here.x, change)
        fresh = jnp.eye(flat.size, dtype=B.dtype)
        B = jnp.where(begun & ~replaced, B, pair.scale * fresh)
        # what s^T B^-1 s, as B g = -s / alpha, has in excess of s^T y
        excess = -found.step * jnp.vdot(s, here.gradient / unit(change)) / product
        B = B * jnp.where(begun & ~replaced & curves, jnp.maximum(excess, 1), 1)
        By = B @ y
        # Eq. 6.17 multiplied out: two outer products instead of two products of matrices; s s^T / s^T y has the ratio
        sBy = jnp.outer(s, By)
        updated = B + (ratio + jnp.vdot(y, By) / product) / product * jnp.outer(s, s) - (sBy + sBy.T) / product
        begun = ((begun & ~replaced) | curves) & ~found.missed
        memory = BFGSMemory(jnp.where(begun, jnp.where(curves, updated, B), fresh), here.value, begun)
        return found.move(here, d, memory, ~curves & ~found.missed)

    constants = {"line_search": line_search, "budget": budget}
    return SecondOrder("bfgs", look, move, constants, elements=lambda size, count: size**2, budget=budget)


class LBFGSMemory(NamedTuple):
    """steps, changes: the last m s and y, (m, P), the newest first, each of unit size; products (m,): s'y of these, 0
    where there is none yet; ratios (m,): of the size of s to that of y; scale: s'y / y'y of the newest; before: F at
    the point before.
    """

    steps: Array
    changes: Array
    products: Array
    ratios: Array
    scale: Array
    before: Array


@register
def lbfgs(history: int = 10, line_search: LineSearch | str = "strong_wolfe") -> SecondOrder:
    """Limited-memory BFGS: Liu and Nocedal 1989; d = -B g by the two-loop recursion over the last m steps, m the
    `history` (Nocedal and Wright 2006, Alg. 7.4), begun from s'y / y'y of the newest.

    A step without curvature is not remembered and is counted as damped. 2 m P numbers. Raises ValueError unless
    history >= 1.
    """
    checks.integer("lbfgs", "history", history, 1)
    line_search = line_searches.get(line_search)

    def look(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        none, zero = jnp.zeros((history, flat.size), g.dtype), jnp.zeros(history, g.dtype)
        memory = LBFGSMemory(none, none, zero, zero, jnp.ones_like(value), unknown(value))
        return Here(x, value, g, memory, counts(gradients=1))

    def move(flat, here: Here) -> Move:
        memory = here.memory
        d, _ = downhill(-_two_loops(memory, here.gradient), here.gradient)
        first = jnp.where(memory.products[0] > 0, 1, first_step(here, d, memory.before))
        found = search(line_search, flat, here, d, first)
        pair = _pair(found.x - here.x, found.gradient - here.gradient)
        kept = [jnp.where(found.missed, 0, old) for old in memory[:4]]
        latest = [
            jnp.where(pair.curves, jnp.concatenate([new[None], old[:-1]]), old)
            for new, old in zip(pair[:4], kept, strict=True)
        ]
        scale = jnp.where(pair.curves, pair.scale, jnp.where(found.missed, 1, memory.scale))
        return found.move(here, d, LBFGSMemory(*latest, scale, here.value), ~pair.curves & ~found.missed)

    return SecondOrder("lbfgs", look, move, {"history": history, "line_search": line_search})


def _two_loops(memory: LBFGSMemory, g: Array) -> Array:
    """B g. A pair that is not there yet has s = y = 0, and changes nothing."""
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
