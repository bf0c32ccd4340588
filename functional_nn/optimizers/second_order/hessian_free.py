r"""Methods for networks too large for a matrix: Hessian-free, and Kronecker-factored curvature.

Letters: G the Gauss-Newton matrix of F, :math:`\lambda` its damping, :math:`\delta` a step. The model of the change of
F is

.. math:: q(\delta) = g^T \delta + \tfrac{1}{2} \delta^T (G + \lambda I) \, \delta

It is least where its gradient, :math:`g + (G + \lambda I) \, \delta`, is 0. These are linear equations. Hessian-free
solves them by conjugate gradients, which need only products with G (two passes each). Kronecker-factored curvature
takes the inverse of each layer's block alone, and approximates that block by a Kronecker product
:math:`S \otimes A`, whose inverse maps a layer's part V (S, R) of the gradient to :math:`S^{-1} V A^{-1}`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.optimizers import line_searches
from functional_nn.optimizers.second_order.line_steps import search_along
from functional_nn.optimizers.second_order.method import SecondOrder, constant, evaluation_at, register
from functional_nn.optimizers.second_order.state import Evaluation, Move, counts
from functional_nn.precision import largest

_DECAY = (lambda v: (v >= 0) & (v < 1), "in [0, 1)")


class HFMemory(NamedTuple):
    """The memory of `hessian_free`.

    Attributes:
        damping: lambda.
        warm: The last solution of conjugate gradients (P,), from which the next ones start.
    """

    damping: Array
    warm: Array


@register
def hessian_free(
    damping: float | Array = 1.0,
    iterations: int = 250,
    tolerance: float = 5e-4,
    warm: float = 0.95,
    preconditioner: Literal["square_gradients", "none"] = "square_gradients",
    curvature: Literal["gauss_newton", "hessian"] = "gauss_newton",
    minibatches: bool = False,
) -> SecondOrder:
    r"""Hessian-free optimization: conjugate gradients solve for a damped Gauss-Newton step, from products alone.

    .. math:: (G + \lambda I) \, \delta = -g

    Conjugate gradients start from `warm` times the last solution. After i iterations they stop if q fell by less than k
    times `tolerance` of itself in the last :math:`k = \max(10, i / 10)` (Sec. 4.4). Iterates are kept at :math:`i =
    1.3^j`; the step is the last one whose F is not above that of an earlier one (4.6), and backtracking along it
    follows. :math:`\lambda` is multiplied by 2/3 where F fell by more than 3/4 of what q without :math:`\lambda`
    predicted, by 3/2 where it fell by less than 1/4 (4.1).

    Args:
        damping: The first :math:`\lambda`, > 0.
        iterations: The largest number of iterations of conjugate gradients a step.
        tolerance: Of their stopping rule, > 0.
        warm: In [0, 1).
        preconditioner: "square_gradients": (mean of the squares of the examples' gradients + :math:`\lambda`) to the
            power of 3/4 (4.7), where the problem provides them; or "none".
        curvature: "gauss_newton", or "hessian" for a function that is not a sum of squares. With the Hessian, conjugate
            gradients stop at a direction that curves downward, and the solution so far is used.
        minibatches: Whether `fit` may use another batch for every step.

    Returns:
        The method.

    Raises:
        ValueError: A constant is out of range, or (in `init`) the problem provides no such products.

    References:
        Martens 2010, whose sections are cited.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(residuals=lambda x: jnp.array([1.0, 3.0]) * (x - 1))
        >>> solution = optimizers.minimize(problem, optimizers.hessian_free(), jnp.zeros(2))
        >>> solution.status, [round(float(x), 2) for x in solution.params]
        ('gradient', [1.0, 1.0])
    """
    damping = constant("hessian_free", "damping", damping, checks.POSITIVE)
    checks.integer("hessian_free", "iterations", iterations, 1)
    constant("hessian_free", "tolerance", tolerance, checks.POSITIVE)
    constant("hessian_free", "warm", warm, _DECAY)
    checks.one_of("hessian_free", "preconditioner", preconditioner, ("square_gradients", "none"))
    checks.one_of("hessian_free", "curvature", curvature, ("gauss_newton", "hessian"))
    checks.boolean("hessian_free", "minibatches", minibatches)
    line_search = line_searches.get("backtracking(decrease=0.01)")
    marks = _marks(iterations)

    def evaluate(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        if memory is None:
            memory = HFMemory(jnp.asarray(damping, x.dtype), jnp.zeros_like(x))
        return Evaluation(x, value, g, memory, counts(gradients=1))

    def move(flat, current: Evaluation) -> Move:
        lam, g = current.memory.damping, current.gradient
        highest = largest(current.value.dtype)  # where F is not finite
        multiply = flat.product(current.x, curvature)
        weigh = jnp.ones_like(g)
        if preconditioner == "square_gradients" and flat.provides("square_gradients"):
            weigh = (flat.square_gradients(current.x) + lam) ** 0.75
        solved = _conjugate_gradients(
            lambda v: multiply(v) + lam * v, -g, warm * current.memory.warm, weigh, iterations, tolerance, marks
        )

        def value_at_mark(number):
            value = flat.value(current.x + solved.kept[number])
            return jnp.where(jnp.isfinite(value), value, highest)

        def falls(carry):  # from the last iterate back, as long as F falls (4.6)
            number, value, earlier, _ = carry
            return (number > 0) & (earlier <= value)

        def back(carry):
            number, _, earlier, evaluations = carry
            return number - 1, earlier, value_at_mark(jnp.maximum(number - 2, 0)), evaluations + 1

        last = solved.number, value_at_mark(solved.number), value_at_mark(jnp.maximum(solved.number - 1, 0)), 2
        number, value, _, evaluations = lax.while_loop(falls, back, last)
        delta = solved.kept[number]
        leads = (jnp.vdot(delta, g) < 0) & (value < highest)
        model = jnp.vdot(g, delta) + jnp.vdot(delta, multiply(delta)) / 2
        ratio = jnp.where(leads & (model < 0), (value - current.value) / jnp.where(model < 0, model, -1), 0)
        lam = lam * jnp.where(ratio > 0.75, 2 / 3, jnp.where(ratio < 0.25, 3 / 2, 1))
        delta = jnp.where(leads, delta, -g)
        line_step = search_along(delta, line_search, flat, current)
        memory = HFMemory(lam, jnp.where(leads & ~line_step.missed, solved.last, 0))
        further = counts(values=evaluations, products=solved.iterations + 2)
        return line_step.move(current, delta, memory, ~leads).with_counts(further)

    constants = {
        "damping": damping,
        "iterations": iterations,
        "tolerance": tolerance,
        "warm": warm,
        "preconditioner": preconditioner,
        "curvature": curvature,
        "minibatches": minibatches,
    }
    return SecondOrder("hessian_free", evaluate, move, constants, (f"{curvature}_product",), full_batch=not minibatches)


def _marks(iterations: int) -> np.ndarray:
    """Returns the iterations at which conjugate gradients keep their iterate: ceil(1.3^j), and the last."""
    steps = np.ceil(1.3 ** np.arange(1, 1 + int(np.log(iterations) / np.log(1.3)))) if iterations > 1 else []
    return np.unique(np.append(steps, iterations)).astype(np.int32)


class _Solved(NamedTuple):
    """The result of conjugate gradients.

    Attributes:
        kept: Iterates (K, P) at the marks; the last iterate fills the marks after it.
        number: The number of the first mark not before the last iterate.
        last: The last iterate.
        iterations: How many there were.
    """

    kept: Array
    number: Array
    last: Array
    iterations: Array


def _conjugate_gradients(
    multiply: Callable[[Array], Array],
    right: Array,
    start: Array,
    weigh: Array,
    iterations: int,
    tolerance: float,
    marks: np.ndarray,
) -> _Solved:
    """Solves B delta = right, preconditioned by `weigh` (P,), with Martens' stopping rule."""
    most = max(10, iterations // 10)  # how far back the rule looks at most
    tiny = jnp.finfo(right.dtype).tiny
    residual = multiply(start) - right
    z = residual / weigh

    def quadratic(delta, residual):
        return jnp.vdot(delta, residual - right) / 2

    def unfinished(carry):
        i, delta, residual, p, rho, past, _, curves = carry
        k = jnp.maximum(10, i // 10)
        now, before = past[i % (most + 1)], past[(i - k) % (most + 1)]
        stalled = (i > k) & (now < 0) & (now - before > k.astype(now.dtype) * tolerance * now)
        return (i < iterations) & ~stalled & curves & (rho > tiny)

    def step(carry):
        i, delta, residual, p, rho, past, kept, _ = carry
        Bp = multiply(p)
        bend = jnp.vdot(p, Bp)
        curves = bend > 0  # else rounding, or not finite: the iterate so far is used
        alpha = jnp.where(curves, rho / jnp.where(curves, bend, 1), 0)
        delta, residual = delta + alpha * p, residual + alpha * Bp
        z = residual / weigh
        after = jnp.vdot(residual, z)
        p = -z + (after / jnp.maximum(rho, tiny)) * p
        i = i + 1
        past = past.at[i % (most + 1)].set(quadratic(delta, residual))
        kept = jnp.where((marks >= i)[:, None], delta[None, :], kept)
        return i, delta, residual, p, after, past, kept, curves

    past = jnp.zeros(most + 1, right.dtype).at[0].set(quadratic(start, residual))
    kept = jnp.broadcast_to(start, (len(marks), start.size))
    first = jnp.zeros((), jnp.int32), start, residual, -z, jnp.vdot(residual, z), past, kept, jnp.asarray(True)
    i, delta, *_, kept, _ = lax.while_loop(unfinished, step, first)
    return _Solved(kept, jnp.sum(marks < i, dtype=jnp.int32), delta, i)


class KFACMemory(NamedTuple):
    """The memory of `kfac`.

    Attributes:
        factors: Running averages.
        damping: lambda.
        change: The last step (P,).
        step: Updates made, int32.
    """

    factors: object
    damping: Array
    change: Array
    step: Array


@register
def kfac(
    damping: float | Array = 1.0,
    decay: float | Array = 0.95,
    momentum: bool = True,
    minibatches: bool = False,
) -> SecondOrder:
    r"""Kronecker-factored approximate curvature (K-FAC).

    Each layer's block of G is approximately activations :math:`\otimes` sensitivities. The damped inverse of that
    product maps -g to the proposal :math:`\Delta` (Eq. 4.1; the damping is split between the two factors as in Sec.
    6.3). Factors are averaged over updates, with weight min(1 - 1/k, `decay`) for the old (Sec. 5). The step is

    .. math:: \delta = a \Delta + m \, \delta_{\mathrm{before}}

    where a and m minimize q, by two exact products with G (Sec. 6.4, 7). :math:`\lambda` follows how well q predicted
    F: it is multiplied by 19/20 or its inverse (Sec. 6.5; every step). A step that raises F is not made.

    Warning:
        The factors are those of the exact curvature, not of sampled targets (Botev et al. 2017).

    Args:
        damping: The first :math:`\lambda`, > 0.
        decay: The largest weight of old factors, in [0, 1).
        momentum: Whether the last step is part of the next; without it m is 0.
        minibatches: Whether `fit` may use another batch for every step.

    Returns:
        The method.

    Raises:
        ValueError: A constant is out of range, or (in `init`) the problem has no layers.

    References:
        Martens and Grosse 2015 (arXiv 1503.05671), whose sections are cited.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import functional_nn as fnn
        >>> network = fnn.multilayer((1, 1), ("linear",))
        >>> x = jnp.linspace(-1, 1, 5)[:, None]
        >>> problem = fnn.training.problem(network, "mean_square_error", x, 2 * x + 1)
        >>> params = network.init(jax.random.key(0))
        >>> solution = fnn.optimizers.minimize(problem, fnn.optimizers.kfac(damping=0.1), params, steps=50)
        >>> bool(solution.value < 1e-6)
        True
    """
    damping = constant("kfac", "damping", damping, checks.POSITIVE)
    decay = constant("kfac", "decay", decay, _DECAY)
    checks.boolean("kfac", "momentum", momentum)
    checks.boolean("kfac", "minibatches", minibatches)

    def evaluate(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        factors = flat.factors(x)
        if memory is None:
            memory = KFACMemory(factors, jnp.asarray(damping, x.dtype), jnp.zeros_like(x), jnp.zeros((), jnp.int32))
        else:
            k = memory.step.astype(x.dtype) + 1
            old = jnp.minimum(1 - 1 / k, jnp.asarray(decay, x.dtype))

            def average(before, new):
                return before + (1 - old).astype(new.dtype) * (new - before)

            memory = memory._replace(factors=jax.tree.map(average, memory.factors, factors))
        return Evaluation(x, value, g, memory, counts(gradients=1, matrices=1))

    def move(flat, current: Evaluation) -> Move:
        factors, lam, before, step = current.memory
        g, multiply = current.gradient, flat.product(current.x, "gauss_newton")
        proposal = -flat.solve(factors, lam, g)
        B_proposal, B_before = multiply(proposal) + lam * proposal, multiply(before) + lam * before
        a, m = _best_pair(proposal, before if momentum else jnp.zeros_like(before), B_proposal, B_before, g)
        delta = a * proposal + m * before
        predicted = -(jnp.vdot(g, delta) + jnp.vdot(delta, a * B_proposal + m * B_before) / 2)
        undamped = predicted + lam * jnp.vdot(delta, delta) / 2
        finite = jnp.all(jnp.isfinite(delta))
        delta, broken = jnp.where(finite, delta, 0), ~finite | ~(predicted >= 0)
        x = current.x + delta
        value = flat.value(x)
        accepted = ~broken & jnp.isfinite(value) & (value < current.value)
        ratio = (current.value - value) / jnp.where(undamped > 0, undamped, 1)
        eased = lam * jnp.where(ratio > 0.75, 0.95, jnp.where(ratio < 0.25, 1 / 0.95, 1))
        lam = jnp.where(accepted, eased, 4 * lam)
        memory = KFACMemory(factors, lam, jnp.where(accepted, delta, 0), step + 1)
        end = lax.cond(
            accepted,
            lambda: evaluation_at(flat, evaluate, current, x, value, memory),
            lambda: current._replace(memory=memory),
        )
        failed = ~accepted & ~(lam < 1e10)
        expected = jnp.where(broken, largest(x.dtype), jnp.where(accepted, 0, predicted))
        move = Move(end, jnp.where(broken, 0, delta), failed, broken, expected)
        return move.with_counts(counts(values=1, products=2))

    constants = {"damping": damping, "decay": decay, "momentum": momentum, "minibatches": minibatches}
    return SecondOrder(
        "kfac", evaluate, move, constants, ("factors", "gauss_newton_product"), full_batch=not minibatches
    )


def _best_pair(u: Array, v: Array, Bu: Array, Bv: Array, g: Array) -> tuple[Array, Array]:
    """Returns a, m that minimize q(a u + m v), given B u and B v; m is 0 where v is parallel to u."""
    uu, uv, vv = jnp.vdot(u, Bu), jnp.vdot(u, Bv), jnp.vdot(v, Bv)
    gu, gv = jnp.vdot(g, u), jnp.vdot(g, v)
    determinant = uu * vv - uv**2
    both = determinant > jnp.finfo(u.dtype).eps * 100 * uu * vv
    safe = jnp.where(both, determinant, 1)
    alone = -gu / jnp.where(uu > 0, uu, 1)
    return jnp.where(both, (uv * gv - vv * gu) / safe, alone), jnp.where(both, (uv * gu - uu * gv) / safe, 0)
