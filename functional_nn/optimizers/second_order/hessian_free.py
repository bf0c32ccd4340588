"""Methods for networks too large for a matrix: Hessian-free, and Kronecker-factored curvature.

Letters: G the Gauss-Newton matrix of F, lambda its damping, delta a step, q(delta) = g'delta + delta'(G + lambda I)
delta/2, what the model says F will change by.

q is least where its gradient g + (G + lambda I) delta is 0: linear equations, to which conjugate gradients need nothing
of G but products (two passes each), or whose inverse is taken of each layer's block alone, for which G stands as a
Kronecker product S (x) A: its inverse makes S^-1 V A^-1 of a layer's part V (S, R) of the gradient.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.optimizers import line_searches
from functional_nn.optimizers.second_order.method import (
    Here,
    Move,
    SecondOrder,
    added,
    choice,
    constant,
    counts,
    landed,
    register,
    search,
)
from functional_nn.precision import largest

_DECAY = (lambda v: (v >= 0) & (v < 1), "in [0, 1)")


class HFMemory(NamedTuple):
    """damping: lambda; warm: what conjugate gradients of the last step ended at (P,), begun from next time."""

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
    """Hessian-free optimization, Martens 2010: (G + lambda I) delta = -g by conjugate gradients, from products alone.

    At most `iterations`, begun from `warm` times the last solution, ended when q has fallen by less than k times
    `tolerance` of itself in the last k = max(10, i / 10) of i (Sec. 4.4); of the iterates remembered at 1.3^j the last
    whose F is not above an earlier one's is taken (4.6), then backtracking along it. lambda, which begins at `damping`,
    is multiplied by 2/3 where F fell by more than 3/4 of what q without lambda predicted, by 3/2 where by less than 1/4
    (4.1). The preconditioner is (mean of squares of the examples' gradients + lambda)^(3/4) (4.7), where the problem
    knows them. curvature="hessian" puts the Hessian in the place of G, of a function that is no sum of squares; what
    conjugate gradients have found is taken where they meet a direction that curves downward.
    minibatches=True lets `fit` give another batch to every step. Raises ValueError for constants out of range and for a
    problem without Gauss-Newton products.
    """
    damping = constant("hessian_free", "damping", damping, checks.POSITIVE)
    checks.integer("hessian_free", "iterations", iterations, 1)
    constant("hessian_free", "tolerance", tolerance, checks.POSITIVE)
    constant("hessian_free", "warm", warm, _DECAY)
    choice("hessian_free", "preconditioner", preconditioner, ("square_gradients", "none"))
    choice("hessian_free", "curvature", curvature, ("gauss_newton", "hessian"))
    checks.boolean("hessian_free", "minibatches", minibatches)
    line_search = line_searches.get("backtracking(decrease=0.01)")
    marks = _marks(iterations)

    def look(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        if memory is None:
            memory = HFMemory(jnp.asarray(damping, x.dtype), jnp.zeros_like(x))
        return Here(x, value, g, memory, counts(gradients=1))

    def move(flat, here: Here) -> Move:
        lam, g = here.memory.damping, here.gradient
        highest = largest(here.value.dtype)  # of a point where F is not finite
        multiply = flat.product(here.x, curvature)
        weigh = jnp.ones_like(g)
        if preconditioner == "square_gradients" and flat.knows("square_gradients"):
            weigh = (flat.square_gradients(here.x) + lam) ** 0.75
        solved = _conjugate_gradients(
            lambda v: multiply(v) + lam * v, -g, warm * here.memory.warm, weigh, iterations, tolerance, marks
        )

        def at_mark(number):
            found = flat.value(here.x + solved.kept[number])
            return jnp.where(jnp.isfinite(found), found, highest)

        def falls(carry):  # from the last iterate back, as long as F falls (4.6)
            number, value, earlier, _ = carry
            return (number > 0) & (earlier <= value)

        def back(carry):
            number, _, earlier, asked = carry
            return number - 1, earlier, at_mark(jnp.maximum(number - 2, 0)), asked + 1

        begun = solved.number, at_mark(solved.number), at_mark(jnp.maximum(solved.number - 1, 0)), 2
        number, value, _, asked = lax.while_loop(falls, back, begun)
        delta = solved.kept[number]
        leads = (jnp.vdot(delta, g) < 0) & (value < highest)
        model = jnp.vdot(g, delta) + jnp.vdot(delta, multiply(delta)) / 2
        ratio = jnp.where(leads & (model < 0), (value - here.value) / jnp.where(model < 0, model, -1), 0)
        lam = lam * jnp.where(ratio > 0.75, 2 / 3, jnp.where(ratio < 0.25, 3 / 2, 1))
        delta = jnp.where(leads, delta, -g)
        found = search(line_search, flat, here, delta)
        memory = HFMemory(lam, jnp.where(leads & ~found.missed, solved.last, 0))
        asked = counts(values=asked, products=solved.iterations + 2)
        moved = found.move(here, delta, memory, ~leads)
        return moved._replace(here=moved.here._replace(counts=added(found.counts, asked)))

    constants = {
        "damping": damping,
        "iterations": iterations,
        "tolerance": tolerance,
        "warm": warm,
        "preconditioner": preconditioner,
        "curvature": curvature,
        "minibatches": minibatches,
    }
    return SecondOrder("hessian_free", look, move, constants, (f"{curvature}_product",), full_batch=not minibatches)


def _marks(iterations: int) -> np.ndarray:
    """ceil(1.3^j), and the last: at which iterates conjugate gradients are remembered."""
    steps = np.ceil(1.3 ** np.arange(1, 1 + int(np.log(iterations) / np.log(1.3)))) if iterations > 1 else []
    return np.unique(np.append(steps, iterations)).astype(np.int32)


class _Solved(NamedTuple):
    """kept: iterates (K, P) at the marks, the last one filling up; number: of the first mark not before the last
    iterate; last: that iterate; iterations: how many.
    """

    kept: Array
    number: Array
    last: Array
    iterations: Array


def _conjugate_gradients(multiply, right, start, weigh, iterations, tolerance, marks) -> _Solved:
    """B delta = right, preconditioned by `weigh` (P,), with Martens' stopping rule."""
    most = max(10, iterations // 10)  # how far back the rule ever looks
    tiny = jnp.finfo(right.dtype).tiny
    residual = multiply(start) - right
    z = residual / weigh

    def quadratic(delta, residual):
        return jnp.vdot(delta, residual - right) / 2

    def going(carry):
        i, delta, residual, p, rho, past, _, curves = carry
        k = jnp.maximum(10, i // 10)
        now, before = past[i % (most + 1)], past[(i - k) % (most + 1)]
        settled = (i > k) & (now < 0) & (now - before > k.astype(now.dtype) * tolerance * now)
        return (i < iterations) & ~settled & curves & (rho > tiny)

    def step(carry):
        i, delta, residual, p, rho, past, kept, _ = carry
        Bp = multiply(p)
        bend = jnp.vdot(p, Bp)
        curves = bend > 0  # else rounding, or something that is not finite: what there is, is taken
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
    begun = jnp.zeros((), jnp.int32), start, residual, -z, jnp.vdot(residual, z), past, kept, jnp.asarray(True)
    i, delta, *_, kept, _ = lax.while_loop(going, step, begun)
    return _Solved(kept, jnp.sum(marks < i, dtype=jnp.int32), delta, i)


class KFACMemory(NamedTuple):
    """factors: running averages; damping: lambda; change: the last step (P,); step: updates made, int32."""

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
    """Kronecker-factored approximate curvature: Martens and Grosse 2015 (arXiv 1503.05671).

    Each layer's block of G is about activations (x) sensitivities, whose damped inverse makes the proposal Delta of -g
    (Eq. 4.1; the damping split between the two factors as in Sec. 6.3). Factors are averaged over updates with weight
    min(1 - 1/k, decay) for the old (Sec. 5). delta = a Delta + m delta_before, with a and m that minimize q, by two
    exact products with G (Sec. 6.4, 7); lambda follows how well q predicted F, multiplied by 19/20 or its inverse
    (Sec. 6.5; every step). The factors are those of the exact curvature, not of sampled targets (Botev et al. 2017).
    A step that raises F is not made. minibatches=True lets `fit` give another batch to every step.
    Raises ValueError for constants out of range and for a problem without layers.
    """
    damping = constant("kfac", "damping", damping, checks.POSITIVE)
    decay = constant("kfac", "decay", decay, _DECAY)
    checks.boolean("kfac", "momentum", momentum)
    checks.boolean("kfac", "minibatches", minibatches)

    def look(flat, x, memory):
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
        return Here(x, value, g, memory, counts(gradients=1, matrices=1))

    def move(flat, here: Here) -> Move:
        factors, lam, before, step = here.memory
        g, multiply = here.gradient, flat.product(here.x, "gauss_newton")
        proposal = -flat.solve(factors, lam, g)
        one, other = multiply(proposal) + lam * proposal, multiply(before) + lam * before
        a, m = _best_pair(proposal, before if momentum else jnp.zeros_like(before), one, other, g)
        delta = a * proposal + m * before
        predicted = -(jnp.vdot(g, delta) + jnp.vdot(delta, a * one + m * other) / 2)
        undamped = predicted + lam * jnp.vdot(delta, delta) / 2
        sound = jnp.all(jnp.isfinite(delta))
        delta, broken = jnp.where(sound, delta, 0), ~sound | ~(predicted >= 0)
        x = here.x + delta
        value = flat.value(x)
        made = ~broken & jnp.isfinite(value) & (value < here.value)
        ratio = (here.value - value) / jnp.where(undamped > 0, undamped, 1)
        eased = lam * jnp.where(ratio > 0.75, 0.95, jnp.where(ratio < 0.25, 1 / 0.95, 1))
        lam = jnp.where(made, eased, 4 * lam)
        memory = KFACMemory(factors, lam, jnp.where(made, delta, 0), step + 1)
        after = lax.cond(made, lambda: landed(flat, look, here, x, value, memory), lambda: here._replace(memory=memory))
        after = after._replace(counts=added(after.counts, counts(values=1, products=2)))
        failed = ~made & ~(lam < 1e10)
        expected = jnp.where(broken, largest(x.dtype), jnp.where(made, 0, predicted))
        return Move(after, jnp.where(broken, 0, delta), failed, broken, expected)

    constants = {"damping": damping, "decay": decay, "momentum": momentum, "minibatches": minibatches}
    return SecondOrder("kfac", look, move, constants, ("factors", "gauss_newton_product"), full_batch=not minibatches)


def _best_pair(u: Array, v: Array, Bu: Array, Bv: Array, g: Array) -> tuple[Array, Array]:
    """a, m that minimize q(a u + m v), B u and B v given; m = 0 where v adds no direction of its own."""
    uu, uv, vv = jnp.vdot(u, Bu), jnp.vdot(u, Bv), jnp.vdot(v, Bv)
    gu, gv = jnp.vdot(g, u), jnp.vdot(g, v)
    determinant = uu * vv - uv**2
    both = determinant > jnp.finfo(u.dtype).eps * 100 * uu * vv
    safe = jnp.where(both, determinant, 1)
    alone = -gu / jnp.where(uu > 0, uu, 1)
    return jnp.where(both, (uv * gv - vv * gu) / safe, alone), jnp.where(both, (uv * gu - uu * gv) / safe, 0)
