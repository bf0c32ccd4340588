r"""Newton's method: plain, damped, saddle-free, and by products alone.

Letters: P parameters, x a point, g (P,) and H (P, P) the gradient and Hessian of F there, d a step.

The quadratic model of F (Hagan Eq. 3.10) and the step at which its gradient, g + H d, is 0 (Eq. 3.28):

.. math::
    \begin{aligned}
    F(x + d) &\approx F + g^T d + \tfrac{1}{2} d^T H d \\
    d &= -H^{-1} g
    \end{aligned}

Along an eigenvector v of H with eigenvalue :math:`\lambda` that step is :math:`-(v^T g) / \lambda`: to the model's
minimum where :math:`\lambda > 0`, up to its maximum where :math:`\lambda < 0`, and far away where :math:`\lambda` is
near 0. Damping replaces :math:`\lambda` by :math:`\lambda + \alpha`, saddle-free Newton by
:math:`\lvert \lambda \rvert`. Either way :math:`d^T g < 0` once all of them are positive.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks, linalg
from functional_nn.optimizers import line_searches
from functional_nn.optimizers.line_searches import LineSearch
from functional_nn.optimizers.second_order.line_steps import downhill, search_along
from functional_nn.optimizers.second_order.method import BUDGET, SecondOrder, constant, register, square_matrix
from functional_nn.optimizers.second_order.state import CHANGE, GRADIENT, RUNNING, Evaluation, Move, counts
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
    r"""Newton's method: one Hessian (P, P) and one linear solve a step.

    .. math:: x_{k+1} = x_k - (H + \alpha I)^{-1} g

    The state counts steps whose matrix is not positive definite as damped.

    Args:
        damping: :math:`\alpha`, >= 0.
        saddle_free: Whether every eigenvalue is replaced by its magnitude (Dauphin et al. 2014), and those near 0 by
            the smallest that rounding can distinguish from it. Implies globalization by a line search.
        line_search: A line search, or its name; "backtracking" by default, "full_step" takes the full step
            unconditionally. The full step is tried first and may be made shorter. If given, it implies globalization by
            a line search.
        globalization: What happens where :math:`H + \alpha I` is not positive definite, or the step is too long.
            "trust_region": the step is that of least model with :math:`\lVert D d \rVert \le \Delta` (More and Sorensen
            1983, see `second_order.trust_region`), from the eigenvectors of a scaled Hessian, where :math:`D_{ii}` is
            the largest :math:`\lvert H_{ii} + \alpha \rvert^{1/2}` so far. Then the units of F and of the parameters do
            not matter, and a run does not end at a saddle: where the gradient vanishes and H bends downward it
            continues along that direction. "line_search": a multiple of I is added until the matrix is positive
            definite (Nocedal and Wright 2006, Alg. 3.3).
        budget: The bytes that the Hessian may take.

    Returns:
        The method.

    Raises:
        ValueError: A constant is out of range, or (in `init`) the Hessian would take more than `budget` bytes.

    References:
        Hagan Eq. 3.28; with damping, CSE 475 19.72.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum(jnp.array([1.0, 10.0]) * (x - 1) ** 2))
        >>> solution = optimizers.minimize(problem, optimizers.newton(), jnp.zeros(2))
        >>> int(solution.steps), [round(float(x), 3) for x in solution.params]
        (1, [1.0, 1.0])
    """
    damping = constant("newton", "damping", damping)
    checks.boolean("newton", "saddle_free", saddle_free)
    checks.integer("newton", "budget", budget, 1)
    checks.one_of("newton", "globalization", globalization, ("trust_region", "line_search"))
    if globalization == "trust_region" and line_search is None and not saddle_free:
        return _in_region(damping, budget)
    line_search = line_searches.get("backtracking" if line_search is None else line_search)
    direction = _by_size if saddle_free else _by_shifts

    def evaluate(flat, x, memory):
        return Evaluation(x, *flat.value_and_gradient(x), (), counts(gradients=1))

    def move(flat, current: Evaluation) -> Move:
        d, damped = direction(flat.hessian(current.x), current.gradient, damping)
        d, replaced = downhill(d, current.gradient)
        line_step = search_along(d, line_search, flat, current)
        step = line_step.move(current, d, (), damped | replaced)
        # The next step would search the same line again, also where this step is below the last digits of x.
        failed = line_step.missed | (jnp.all(line_step.x == current.x) & jnp.any(current.gradient != 0))
        return step.with_counts(counts(matrices=1))._replace(failed=failed)

    constants = {
        "damping": damping,
        "saddle_free": saddle_free,
        "line_search": line_search,
        "globalization": "line_search",
        "budget": budget,
    }
    return SecondOrder("newton", evaluate, move, constants, elements=square_matrix, budget=budget)


class RegionMemory(NamedTuple):
    """The memory of `newton` with a trust region.

    Attributes:
        radius: Delta, 0 before the first step.
        scales: D (P,), 0 before the first step.
        indefinite: True if H bent downward where the last step began, and while that is not known.
    """

    radius: Array
    scales: Array
    indefinite: Array


def _in_region(damping: float | Array, budget: int) -> SecondOrder:
    def evaluate(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        memory = RegionMemory(jnp.zeros_like(value), jnp.zeros_like(x), jnp.asarray(True))
        return Evaluation(x, value, g, memory, counts(gradients=1))

    def move(flat, current: Evaluation) -> Move:
        radius, D, _ = current.memory
        H = flat.hessian(current.x) + damping * jnp.eye(flat.size, dtype=flat.dtype)
        bends = jnp.sqrt(jnp.abs(jnp.diagonal(H)))
        D = jnp.maximum(D, jnp.where(jnp.isfinite(bends), bends, 0))
        most = jnp.max(D)
        scales = jnp.where(D > 0, D, jnp.where(most > 0, most, 1))
        propose, first, indefinite = by_eigenvectors(H, current.gradient, scales, current.x)
        radius = jnp.where(radius > 0, radius, first)
        step = trusted(flat, current, propose, radius, lambda radius: RegionMemory(radius, D, indefinite))
        memory = step.evaluation.memory._replace(
            indefinite=indefinite & ~step.failed
        )  # else it would continue where it cannot move
        step = step.with_counts(counts(matrices=1))
        return step._replace(evaluation=step.evaluation._replace(memory=memory))

    def verdict(before: RegionMemory, after: RegionMemory, status: Array) -> Array:
        converged = (status == GRADIENT) | (status == CHANGE)
        return jnp.where(converged & after.indefinite, RUNNING, status)

    constants = {"damping": damping, "saddle_free": False, "globalization": "trust_region", "budget": budget}
    return SecondOrder("newton", evaluate, move, constants, elements=square_matrix, budget=budget, verdict=verdict)


class NewtonCGMemory(NamedTuple):
    """The memory of `newton_cg`.

    Attributes:
        radius: Of the region, 0 before the first step.
        steepest: The largest `|g|` so far.
        indefinite: True if the last step met negative curvature.
    """

    radius: Array
    steepest: Array
    indefinite: Array


@register
def newton_cg(tolerance: float | Array = 0.5, iterations: int = 1000) -> SecondOrder:
    r"""Newton's method for many parameters: conjugate gradients solve its equation, from products with H alone.

    They solve :math:`H d = -g` within a trust region and stop at

    .. math:: \lVert g + H d \rVert \le \min\big(\mathrm{tolerance}, (\lVert g \rVert / G)^{1/2}\big) \, \lVert g \rVert

    with G the largest :math:`\lVert g \rVert` so far, so that near a minimum the steps become Newton's (Dembo and
    Steihaug 1983; Nocedal and Wright 2006, Alg. 7.2). They also stop after `iterations`, or at the border of the
    region, to which a direction without positive curvature leads, too (Steihaug 1983). Such steps are counted as
    damped.

    Args:
        tolerance: > 0.
        iterations: The largest number of products a step.

    Returns:
        The method.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum(jnp.array([1.0, 10.0]) * (x - 1) ** 2))
        >>> solution = optimizers.minimize(problem, optimizers.newton_cg(), jnp.zeros(2))
        >>> solution.status, [round(float(x), 3) for x in solution.params]
        ('gradient', [1.0, 1.0])
    """
    tolerance = constant("newton_cg", "tolerance", tolerance, checks.POSITIVE)
    checks.integer("newton_cg", "iterations", iterations, 1)

    def evaluate(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        memory = NewtonCGMemory(jnp.zeros_like(value), norm(g), jnp.asarray(False))
        return Evaluation(x, value, g, memory, counts(gradients=1))

    def move(flat, current: Evaluation) -> Move:
        radius, steepest, _ = current.memory
        size = norm(current.gradient)
        steepest = jnp.maximum(steepest, size)
        near = jnp.minimum(tolerance, jnp.sqrt(size / jnp.where(steepest > 0, steepest, 1)))
        propose = by_products(flat.product(current.x, "hessian"), current.gradient, near, iterations)
        step = trusted(flat, current, propose, radius, lambda radius: NewtonCGMemory(radius, steepest, False))
        memory = step.evaluation.memory._replace(indefinite=step.damped)
        return step._replace(evaluation=step.evaluation._replace(memory=memory))

    return SecondOrder("newton_cg", evaluate, move, {"tolerance": tolerance, "iterations": iterations})


def _by_shifts(H: Array, g: Array, damping: float | Array) -> tuple[Array, Array]:
    """Returns -(H + (damping + shift) I)^-1 g, with the first shift of 0, beta, 10 beta, ... that makes it
    positive definite, and whether it is not 0.
    """
    diagonal = jnp.diagonal(H)
    size, limits = jnp.max(jnp.abs(H)), jnp.finfo(H.dtype)
    # without any curvature the step is -g
    smallest = jnp.where(size > 0, jnp.maximum(limits.eps**0.5 * size, limits.tiny**0.5), 1)
    lowest = jnp.min(diagonal) + damping
    shift = jnp.where(
        lowest > 0, 0, smallest - lowest
    )  # a matrix is positive definite only if its diagonal is positive

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


def _by_size(H: Array, g: Array, damping: float | Array) -> tuple[Array, Array]:
    """Returns `-|H + damping I|^-1 g`, where `|A|` has A's eigenvectors and the magnitudes of its eigenvalues."""
    values, vectors = linalg.eigh(H + damping * jnp.eye(len(H), dtype=H.dtype))
    sizes = jnp.abs(values)
    floor = jnp.maximum(jnp.max(sizes) * len(H) * jnp.finfo(H.dtype).eps, jnp.finfo(H.dtype).tiny)
    return -(vectors @ ((vectors.T @ g) / jnp.maximum(sizes, floor))), jnp.any(values < floor)
