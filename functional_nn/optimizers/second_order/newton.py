"""Newton's method, plain, damped and saddle-free.

Letters: P parameters, x a point, g (P,) and H (P, P) the gradient and Hessian of F there, d a step.

F(x + d) is about F + g^T d + d^T H d / 2 (Hagan Eq. 3.10), whose gradient by d, g + H d, is 0 at d = -H^-1 g (Eq.
3.28). Along an eigenvector v of H with eigenvalue lambda that is -(v^T g) / lambda: to the model's minimum where
lambda > 0, up to its maximum where lambda < 0, and far away where lambda is near 0. Damping puts lambda + alpha in its
place, saddle-free |lambda|; either way d^T g < 0 once all are positive.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks, linalg
from functional_nn.optimizers import line_searches
from functional_nn.optimizers.line_searches import LineSearch
from functional_nn.optimizers.second_order.method import (
    BUDGET,
    CHANGE,
    GRADIENT,
    RUNNING,
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
from functional_nn.optimizers.second_order.trust_region import by_eigenvectors, by_products, trusted
from functional_nn.reductions import norm


@register
def newton(
    damping: float | Array = 0.0,
    saddle_free: bool = False,
    line_search: LineSearch | str | None = None,
    globalization: Literal["trust_region", "line_search"] = "trust_region",
    budget: int = BUDGET,
) -> SecondOrder:
    """Newton's method, x_(k+1) = x_k - (H + alpha I)^-1 g: Hagan Eq. 3.28, with alpha, the `damping`, CSE 475 19.72.

    globalization: what is done where H + alpha I is not positive definite, or that step too long. "trust_region": the
    step of least model |D d| <= Delta (More and Sorensen 1983, see `second_order.trust_region`), by the eigenvectors of
    a scaled Hessian, D_ii the largest |H_ii + alpha|^(1/2) so far, so that no unit of F or of a parameter matters.
    Such a run ends at no saddle: where the gradient vanishes and H bends downward it goes on along that.
    "line_search": a multiple of I is added until the matrix is positive definite (Nocedal and Wright 2006, Alg. 3.3),
    or with `saddle_free` every eigenvalue is replaced by its size (Dauphin et al. 2014), and those near 0 by the
    smallest that rounding allows to be told from it; then the full step comes first, and `line_search` makes it shorter
    ("backtracking" by default; "full_step" takes it unconditionally). So it is, too, where a line search is given, or
    saddle_free.

    The state counts steps from a matrix that is not positive definite as damped. One Hessian, (P, P), a step. Raises
    ValueError for constants out of range and, when it meets the parameters, for a Hessian above `budget` bytes.
    """
    damping = constant("newton", "damping", damping)
    checks.boolean("newton", "saddle_free", saddle_free)
    checks.integer("newton", "budget", budget, 1)
    choice("newton", "globalization", globalization, ("trust_region", "line_search"))
    if globalization == "trust_region" and line_search is None and not saddle_free:
        return _in_region(damping, budget)
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

    constants = {
        "damping": damping,
        "saddle_free": saddle_free,
        "line_search": line_search,
        "globalization": "line_search",
        "budget": budget,
    }
    return SecondOrder("newton", look, move, constants, elements=lambda size, count: size**2, budget=budget)


class RegionMemory(NamedTuple):
    """radius: of the region, 0 before the first step; scales: D (P,), likewise; indefinite: did H bend downward where
    the last step began? True while that is not known.
    """

    radius: Array
    scales: Array
    indefinite: Array


def _in_region(damping: float | Array, budget: int) -> SecondOrder:
    def look(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        memory = RegionMemory(jnp.zeros_like(value), jnp.zeros_like(x), jnp.asarray(True))
        return Here(x, value, g, memory, counts(gradients=1))

    def move(flat, here: Here) -> Move:
        radius, D, _ = here.memory
        H = flat.hessian(here.x) + damping * jnp.eye(flat.size, dtype=flat.dtype)
        bends = jnp.sqrt(jnp.abs(jnp.diagonal(H)))
        D = jnp.maximum(D, jnp.where(jnp.isfinite(bends), bends, 0))
        most = jnp.max(D)
        scales = jnp.where(D > 0, D, jnp.where(most > 0, most, 1))
        propose, first, indefinite = by_eigenvectors(H, here.gradient, scales, here.x)
        radius = jnp.where(radius > 0, radius, first)
        moved = trusted(flat, here, propose, radius, lambda radius: RegionMemory(radius, D, indefinite))
        after, memory = moved.here, moved.here.memory
        memory = memory._replace(indefinite=indefinite & ~moved.failed)  # else it would go on where it cannot
        return moved._replace(here=after._replace(memory=memory, counts=added(after.counts, counts(matrices=1))))

    def verdict(before: RegionMemory, after: RegionMemory, status: Array) -> Array:
        converged = (status == GRADIENT) | (status == CHANGE)
        return jnp.where(converged & after.indefinite, RUNNING, status)

    constants = {"damping": damping, "saddle_free": False, "globalization": "trust_region", "budget": budget}
    return SecondOrder(
        "newton", look, move, constants, elements=lambda size, count: size**2, budget=budget, verdict=verdict
    )


class NewtonCGMemory(NamedTuple):
    """radius: of the region, 0 before the first step; steepest: the largest |g| so far; indefinite: did the last step
    meet negative curvature?
    """

    radius: Array
    steepest: Array
    indefinite: Array


@register
def newton_cg(tolerance: float | Array = 0.5, iterations: int = 1000) -> SecondOrder:
    """Newton's method for many parameters: H d = -g by conjugate gradients, from products alone, in a trust region.

    They end where |g + H d| <= min(tolerance, (|g| / G)^(1/2)) |g|, G the largest |g| so far, so that the steps become
    Newton's near a minimum (Dembo and Steihaug 1983; Nocedal and Wright 2006, Alg. 7.2), after so many `iterations`, or
    at the border of the region, to which also a direction without curvature leads (Steihaug 1983); such steps are
    counted as damped. Raises ValueError for constants out of range.
    """
    tolerance = constant("newton_cg", "tolerance", tolerance, checks.POSITIVE)
    checks.integer("newton_cg", "iterations", iterations, 1)

    def look(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        memory = NewtonCGMemory(jnp.zeros_like(value), norm(g), jnp.asarray(False))
        return Here(x, value, g, memory, counts(gradients=1))

    def move(flat, here: Here) -> Move:
        radius, steepest, _ = here.memory
        size = norm(here.gradient)
        steepest = jnp.maximum(steepest, size)
        near = jnp.minimum(tolerance, jnp.sqrt(size / jnp.where(steepest > 0, steepest, 1)))
        propose = by_products(flat.product(here.x, "hessian"), here.gradient, near, iterations)
        moved = trusted(flat, here, propose, radius, lambda radius: NewtonCGMemory(radius, steepest, False))
        memory = moved.here.memory._replace(indefinite=moved.damped)
        return moved._replace(here=moved.here._replace(memory=memory))

    return SecondOrder("newton_cg", look, move, {"tolerance": tolerance, "iterations": iterations})


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
