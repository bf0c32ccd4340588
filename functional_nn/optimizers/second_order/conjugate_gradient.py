"""Conjugate gradients: directions from two successive gradients, no matrix.

Letters: P parameters, g_k the gradient and d_k the direction at step k, y = g_(k+1) - g_k, all (P,).

On a quadratic with Hessian H, y = alpha_k H d_k. That d_(k+1) = -g_(k+1) + beta d_k be conjugate to the last direction,
d_(k+1)^T H d_k = 0, says y^T d_(k+1) = 0:

    beta = g_(k+1)^T y / d_k^T y               Hestenes and Stiefel
         = g_(k+1)^T y / g_k^T g_k             Polak and Ribiere: an exact search leaves g_(k+1)^T d_k = 0, and that
                                               of the step before g_k^T d_k = -g_k^T g_k, so that d_k^T y = g_k^T g_k
         = g_(k+1)^T g_(k+1) / g_k^T g_k       Fletcher and Reeves: successive gradients are orthogonal as well

Where F is not quadratic, or a search not exact, these differ.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn import checks
from functional_nn.optimizers import line_searches
from functional_nn.optimizers.line_searches import LineSearch
from functional_nn.optimizers.second_order.method import (
    Here,
    Move,
    SecondOrder,
    choice,
    constant,
    counts,
    downhill,
    first_step,
    register,
    search,
    unknown,
)
from functional_nn.reductions import unit

# g, y = g - g_before, d: the gradient, how it changed by the last step, and that step's direction
_BETAS = {
    "fletcher_reeves": lambda g, before, y, d: _over(jnp.vdot(g, g), jnp.vdot(before, before)),
    "polak_ribiere": lambda g, before, y, d: _over(jnp.vdot(g, y), jnp.vdot(before, before)),
    "polak_ribiere_plus": lambda g, before, y, d: jnp.maximum(_over(jnp.vdot(g, y), jnp.vdot(before, before)), 0),
    "hestenes_stiefel": lambda g, before, y, d: _over(jnp.vdot(g, y), jnp.vdot(d, y)),
    "dai_yuan": lambda g, before, y, d: _over(jnp.vdot(g, g), jnp.vdot(d, y)),
}


def _over(one: Array, other: Array) -> Array:
    return jnp.where(other != 0, one / jnp.where(other != 0, other, 1), 0)


class CGMemory(NamedTuple):
    """direction: the next d (P,); before: F at the point before; since: steps since the last restart; anchor,
    anchor_change: the direction of that restart (Powell and Beale's d_t) and how the gradient changed along it.
    """

    direction: Array
    before: Array
    since: Array
    anchor: Any
    anchor_change: Any


@register
def conjugate_gradient(
    beta: Literal[
        "fletcher_reeves", "polak_ribiere", "polak_ribiere_plus", "hestenes_stiefel", "dai_yuan"
    ] = "polak_ribiere_plus",
    restart: Literal["never", "gradient", "powell_beale"] = "powell_beale",
    line_search: LineSearch | str = "strong_wolfe(curvature=0.1)",
) -> SecondOrder:
    """Nonlinear conjugate gradients: d_(k+1) = -g_(k+1) + beta_k d_k, from a line search along each d.

    beta, with y = g_(k+1) - g_k: "fletcher_reeves" g'g / g_k'g_k (1964); "polak_ribiere" g'y / g_k'g_k (1969), "_plus"
    where not negative; "hestenes_stiefel" g'y / d'y (1952); "dai_yuan" g'g / d'y (1999). On a quadratic with exact
    searches all are the same, and the minimum is reached in P steps (CSE 475 prints g_k' H g_(k-1) = 0 for what makes
    directions conjugate: it is d_k' H d_(k-1) = 0).
    restart, where successive gradients are far from orthogonal, |g_(k+1)'g_k| >= 0.2 g_(k+1)'g_(k+1), and after P
    steps: "gradient" begins anew from -g; "powell_beale" keeps the direction at which it restarts, and stays conjugate
    to it: d = -g + beta d + gamma d_t, gamma = g'y_t / d_t'y_t (Powell 1977, Eq. 2 and Sec. 3; Beale 1972). A direction
    that does not lead down is replaced by -g always. Raises ValueError for words it does not know.
    """
    choice("conjugate_gradient", "beta", beta, tuple(_BETAS))
    choice("conjugate_gradient", "restart", restart, ("never", "gradient", "powell_beale"))
    line_search = line_searches.get(line_search)
    anchored = restart == "powell_beale"

    def look(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        none = (jnp.zeros_like(g), jnp.zeros_like(g)) if anchored else (None, None)
        memory = CGMemory(-g, unknown(value), jnp.zeros((), jnp.int32), *none)
        return Here(x, value, g, memory, counts(gradients=1))

    def move(flat, here: Here) -> Move:
        memory = here.memory
        d, replaced = downhill(memory.direction, here.gradient)
        found = search(line_search, flat, here, d, first_step(here, d, memory.before))
        since, size = memory.since + 1, unit(here.gradient)
        before, g, d = here.gradient / size, found.gradient / size, d / size  # whose squares are numbers in any unit
        y = g - before
        conjugate = -g + _BETAS[beta](g, before, y, d) * d
        anchor, anchor_change = memory.anchor, memory.anchor_change
        if restart != "never":
            far = jnp.abs(jnp.vdot(g, before)) >= 0.2 * jnp.vdot(g, g)
            again = far | (since >= flat.size) | replaced
            if anchored:
                last, change = anchor / size, anchor_change / size
                with_anchor = conjugate + _over(jnp.vdot(g, change), jnp.vdot(last, change)) * last
                # Powell's second test: it must lead down, but not much more steeply than the gradient itself
                share = -jnp.vdot(with_anchor, g) / jnp.maximum(jnp.vdot(g, g), jnp.finfo(g.dtype).tiny)
                again = again | (share < 0.8) | (share > 1.2)
                conjugate = jnp.where(again, conjugate, with_anchor)
                anchor = jnp.where(again, d * size, anchor)
                anchor_change = jnp.where(again, y * size, anchor_change)
            else:
                conjugate = jnp.where(again, -g, conjugate)
            since = jnp.where(again, 0, since)
        following = jnp.where(found.missed, -g, conjugate) * size
        return found.move(here, d * size, CGMemory(following, here.value, since, anchor, anchor_change))

    constants = {"beta": beta, "restart": restart, "line_search": line_search}
    return SecondOrder("conjugate_gradient", look, move, constants)


class ScaledCGMemory(NamedTuple):
    """direction: p (P,); curvature: p^T H p, kept while a step is refused; scale: lambda; refused: the last step was;
    since: steps made since the last restart.
    """

    direction: Array
    curvature: Array
    scale: Array
    refused: Array
    since: Array


@register
def scaled_conjugate_gradient(scale: float | Array = 1e-6) -> SecondOrder:
    """Moller's scaled conjugate gradients (1993, p. 530), without line search: the step is that of a parabola whose
    curvature p'Hp + lambda |p|^2 is raised until it is positive, and whose lambda follows how well it predicted F.

    `scale` is lambda_1. The curvature is the product with the Hessian itself, where the paper takes a difference of two
    gradients. The direction restarts every P steps. A step is refused where F would rise; the next then tries a larger
    lambda. Raises ValueError unless scale > 0.
    """
    scale = constant("scaled_conjugate_gradient", "scale", scale, checks.POSITIVE)

    def look(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        zero = jnp.zeros_like(value)
        memory = ScaledCGMemory(-g, zero, jnp.asarray(scale, value.dtype), jnp.asarray(False), jnp.zeros((), jnp.int32))
        return Here(x, value, g, memory, counts(gradients=1))

    def move(flat, here: Here) -> Move:
        p, old, lam, refused, since = here.memory
        r = -here.gradient
        p, _ = downhill(p, here.gradient)
        square = jnp.maximum(jnp.vdot(p, p), jnp.finfo(p.dtype).tiny)
        # steps 2 to 4: p'Hp + lambda |p|^2, made positive
        curvature = jax.lax.cond(refused, lambda: old, lambda: jnp.vdot(p, flat.product(here.x, "hessian")(p)))
        delta = curvature + lam * square
        indefinite = delta <= 0
        lam = jnp.where(indefinite, 2 * (lam - delta / square), lam)
        delta = curvature + lam * square
        # steps 5 to 8
        mu = jnp.vdot(p, r)
        alpha = mu / jnp.maximum(delta, jnp.finfo(p.dtype).tiny)
        tried = alpha * p
        value, g = flat.value_and_gradient(here.x + tried)
        predicted = 2 * delta * (here.value - value) / jnp.where(mu != 0, mu, 1) ** 2
        sound = jnp.isfinite(value) & jnp.all(jnp.isfinite(g))
        rounding = jnp.abs(value - here.value) <= 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        made = sound & ((predicted >= 0) | rounding)
        since = jnp.where(made, since + 1, since)
        again = since >= flat.size
        beta = (jnp.vdot(g, g) + jnp.vdot(g, r)) / jnp.where(mu != 0, mu, 1)  # (|r'|^2 - r''r) / mu
        following = jnp.where(again, -g, -g + beta * p)
        lam = jnp.where(sound & (predicted >= 0.75), lam / 4, lam)
        lam = jnp.where(
            ~sound | (predicted < 0.25), lam + jnp.where(sound, delta * (1 - predicted), 9 * delta) / square, lam
        )
        x, value, gradient, following = (
            jnp.where(made, new, before)
            for new, before in ((here.x + tried, here.x), (value, here.value), (g, here.gradient), (following, p))
        )
        memory = ScaledCGMemory(following, curvature, lam, ~made, jnp.where(again, 0, since))
        asked = counts(gradients=1, products=jnp.where(refused, 0, 1))
        failed = ~jnp.isfinite(lam)
        return Move(Here(x, value, gradient, memory, asked), tried, failed, indefinite, expected=mu * alpha / 2)

    return SecondOrder("scaled_conjugate_gradient", look, move, {"scale": scale})
