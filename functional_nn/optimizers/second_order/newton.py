"""Newton's method, plain, damped and saddle-free.

Letters: P parameters, x a point, g (P,) and H (P, P) the gradient and Hessian of F there, d a step.

F(x + d) is about F + g^T d + d^T H d / 2 (Hagan Eq. 3.10), whose gradient by d, g + H d, is 0 at d = -H^-1 g (Eq.
3.28). Along an eigenvector v of H with eigenvalue lambda that is -(v^T g) / lambda: to the model's minimum where
lambda > 0, up to its maximum where lambda < 0, and far away where lambda is near 0. Damping puts lambda + alpha in its
place, saddle-free |lambda|; either way d^T g < 0 once all are positive.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, linalg
from functional_nn.optimizers import line_searches
from functional_nn.optimizers.line_searches import LineSearch
from functional_nn.optimizers.second_order.method import (
    BUDGET,
    Here,
    Move,
    SecondOrder,
    added,
    choice,
    constant,
    counts,
    downhill,
    register,
    search,
)
from functional_nn.optimizers.second_order import trust_region


@register
def newton(
    damping: float | Array = 0.0,
    saddle_free: bool = False,
    line_search: LineSearch | str | None = None,
    globalization: Literal["trust_region", "line_search"] | None = None,
    budget: int = BUDGET,
) -> SecondOrder:
    """Newton's method, x_(k+1) = x_k - (H + alpha I)^-1 g: Hagan Eq. 3.28, with alpha, the `damping`, CSE 475 19.72.

    Where H + alpha I is not positive definite the step would lead to a saddle or a maximum, or nowhere: a multiple of I
    is added until it is (Nocedal and Wright 2006, Alg. 3.3), or with `saddle_free` every eigenvalue is replaced by its
    size (Dauphin et al. 2014), and those near 0 by the smallest that rounding allows to be told from it; the state
    counts such steps as damped. The full step comes first; "full_step" as line search takes it unconditionally.
    One Hessian, (P, P), a step. Raises ValueError for constants out of range and, when it meets the parameters, for a
    Hessian above `budget` bytes.
    """
    damping = constant("newton", "damping", damping)
    checks.boolean("newton", "saddle_free", saddle_free)
    checks.integer("newton", "budget", budget, 1)
    if globalization is None:
        lines = saddle_free or line_search is not None or not (checks.is_concrete(damping) and np.all(damping == 0))
        globalization = "line_search" if lines else "trust_region"
    choice("newton", "globalization", globalization, ("trust_region", "line_search"))
    if globalization == "trust_region":
        return _by_region(budget)
    line_search = line_searches.get("backtracking" if line_search is None else line_search)
    direction = _by_size if saddle_free else _by_shifts

    def look(flat, x, memory):
        return Here(x, *flat.value_and_gradient(x), (), counts(gradients=1))

    def move(flat, here: Here) -> Move:
        d, damped = direction(flat.hessian(here.x), here.gradient, damping)
        d, replaced = downhill(d, here.gradient)
        found = search(line_search, flat, here, d)
        moved = found.move(here, d, (), damped | replaced)
        # The next step would search the same line again, also where this one is below the last digits of x.
        failed = found.missed | (jnp.all(found.x == here.x) & jnp.any(here.gradient != 0))
        return moved._replace(here=moved.here._replace(counts=added(found.counts, counts(matrices=1))), failed=failed)

    constants = {"damping": damping, "saddle_free": saddle_free, "line_search": line_search, "budget": budget}
    return SecondOrder("newton", look, move, constants, elements=lambda size, count: size**2, budget=budget)


class RegionMemory(NamedTuple):
    """radius: of the region, 0 before the first step; scales: D (P,), 0 likewise."""

    radius: Array
    scales: Array

import os
SCALED = os.environ.get("SCALED", "1") == "1"

def _by_region(budget: int) -> SecondOrder:
    def look(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        return Here(x, value, g, RegionMemory(jnp.zeros_like(value), jnp.zeros_like(x)), counts(gradients=1))

    def move(flat, here: Here) -> Move:
        radius, D = here.memory
        H = flat.hessian(here.x)
        bends = jnp.sqrt(jnp.abs(jnp.diagonal(H)))
        D = jnp.maximum(D, jnp.where(jnp.isfinite(bends), bends, 0)) if SCALED else jnp.zeros_like(here.x)
        most = jnp.max(D)
        propose, first = trust_region.by_eigenvectors(H, here.gradient, jnp.where(D > 0, D, jnp.where(most > 0, most, 1)))
        radius = jnp.where(radius > 0, radius, first)
        moved = trust_region.trusted(flat, here, propose, radius, lambda radius: RegionMemory(radius, D))
        return moved._replace(here=moved.here._replace(counts=added(moved.here.counts, counts(matrices=1))))

    constants = {"globalization": "trust_region", "budget": budget}
    return SecondOrder("newton", look, move, constants, elements=lambda size, count: size**2, budget=budget)


def _by_shifts(H: Array, g: Array, damping) -> tuple[Array, Array]:
    """-(H + (damping + shift) I)^-1 g, by the first shift of 0, beta, 10 beta, ... that makes it positive definite."""
    diagonal = jnp.diagonal(H)
    size, limits = jnp.max(jnp.abs(H)), jnp.finfo(H.dtype)
    # of no curvature at all the step is -g
    smallest = jnp.where(size > 0, jnp.maximum(limits.eps**0.5 * size, limits.tiny**0.5), 1)
    lowest = jnp.min(diagonal) + damping
    shift = jnp.where(lowest > 0, 0, smallest - lowest)  # no matrix is positive definite whose diagonal is not

    def factor(shift):
        return linalg.cholesky(H + (damping + shift) * jnp.eye(len(H), dtype=H.dtype))

    def indefinite(carry):
        shift, L = carry
        return ~jnp.all(jnp.isfinite(L)) & jnp.isfinite(shift)

    def more(carry):
        shift = jnp.maximum(10 * carry[0], smallest)
        return shift, factor(shift)

    shift, L = lax.while_loop(indefinite, more, (shift, factor(shift)))
    return -linalg.cholesky_solve(L, g), shift > 0


def _by_size(H: Array, g: Array, damping) -> tuple[Array, Array]:
    """-|H + damping I|^-1 g, |A| with A's eigenvectors and the sizes of its eigenvalues."""
    values, vectors = linalg.eigh(H + damping * jnp.eye(len(H), dtype=H.dtype))
    sizes = jnp.abs(values)
    floor = jnp.maximum(jnp.max(sizes) * len(H) * jnp.finfo(H.dtype).eps, jnp.finfo(H.dtype).tiny)
    return -(vectors @ ((vectors.T @ g) / jnp.maximum(sizes, floor))), jnp.any(values < floor)
