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


def _curves(s: Array, y: Array) -> Array:
    """Is s'y large enough to be told from rounding? Only then does the update stay positive definite."""
    return jnp.vdot(s, y) > jnp.finfo(s.dtype).eps * jnp.linalg.norm(s) * jnp.linalg.norm(y)


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
        s, y = found.x - here.x, found.gradient - here.gradient
        curves = _curves(s, y)
        product = jnp.where(curves, jnp.vdot(s, y), 1)
        scale = jnp.where(begun & ~replaced, 1, product / jnp.where(curves, jnp.vdot(y, y), 1))
        fresh = jnp.eye(flat.size, dtype=B.dtype)
        B = jnp.where(begun & ~replaced, B, jnp.where(curves, scale, 1) * fresh)
        # what s^T B^-1 s, as B g = -s / alpha, has in excess of s^T y
        excess = -found.step * jnp.vdot(s, here.gradient) / product
        B = B * jnp.where(begun & ~replaced & curves, jnp.maximum(excess, 1), 1)
        By = B @ y
        # Eq. 6.17 multiplied out: two outer products instead of two products of matrices
        sBy = jnp.outer(s, By)
        updated = B + ((product + jnp.vdot(y, By)) / product) * jnp.outer(s, s / product) - (sBy + sBy.T) / product
        begun = ((begun & ~replaced) | curves) & ~found.missed
        memory = BFGSMemory(jnp.where(begun, jnp.where(curves, updated, B), fresh), here.value, begun)
        return found.move(here, d, memory, ~curves & ~found.missed)

    constants = {"line_search": line_search, "budget": budget}
    return SecondOrder("bfgs", look, move, constants, elements=lambda size, count: size**2, budget=budget)


class LBFGSMemory(NamedTuple):
    """steps, changes: the last m s and y, (m, P), the newest first; products (m,): s'y, 0 where there is none yet;
    before: F at the point before.
    """

    steps: Array
    changes: Array
    products: Array
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
        none = jnp.zeros((history, flat.size), g.dtype)
        memory = LBFGSMemory(none, none, jnp.zeros(history, g.dtype), unknown(value))
        return Here(x, value, g, memory, counts(gradients=1))

    def move(flat, here: Here) -> Move:
        S, Y, products, before = here.memory
        d, _ = downhill(-_two_loops(S, Y, products, here.gradient), here.gradient)
        first = jnp.where(products[0] > 0, 1, first_step(here, d, before))
        found = search(line_search, flat, here, d, first)
        s, y = found.x - here.x, found.gradient - here.gradient
        curves = _curves(s, y)
        kept = [jnp.where(found.missed, 0, old) for old in (S, Y, products)]
        latest = [
            jnp.where(curves, jnp.concatenate([new[None], old[:-1]]), old)
            for new, old in zip((s, y, jnp.vdot(s, y)), kept, strict=True)
        ]
        return found.move(here, d, LBFGSMemory(*latest, here.value), ~curves & ~found.missed)

    return SecondOrder("lbfgs", look, move, {"history": history, "line_search": line_search})


def _two_loops(S: Array, Y: Array, products: Array, g: Array) -> Array:
    """B g. A pair that is not there yet has s = y = 0, and changes nothing."""
    reciprocal = jnp.where(products > 0, 1 / jnp.where(products > 0, products, 1), 0)

    def back(q, row):
        s, y, r = row
        alpha = r * jnp.vdot(s, q)
        return q - alpha * y, alpha

    q, alphas = jax.lax.scan(back, g, (S, Y, reciprocal))
    newest = jnp.vdot(Y[0], Y[0])
    q = q * jnp.where(newest > 0, products[0] / jnp.where(newest > 0, newest, 1), 1)

    def forth(q, row):
        s, y, r, alpha = row
        return q + s * (alpha - r * jnp.vdot(y, q)), None

    return jax.lax.scan(forth, q, (S, Y, reciprocal, alphas), reverse=True)[0]
