r"""Conjugate gradients: directions from two successive gradients, without a matrix.

Letters: P parameters, :math:`g_k` the gradient and :math:`d_k` the direction at step k,
:math:`y = g_{k+1} - g_k`, all (P,).

On a quadratic with Hessian H, :math:`y = \alpha_k H d_k`. The next direction,
:math:`d_{k+1} = -g_{k+1} + \beta \, d_k`, is conjugate to the last, :math:`d_{k+1}^T H d_k = 0`, if
:math:`y^T d_{k+1} = 0`. The formula of Hestenes and Stiefel follows:

.. math:: \beta = \frac{g_{k+1}^T y}{d_k^T y}

An exact search leaves :math:`g_{k+1}^T d_k = 0`, and that of the step before left :math:`g_k^T d_k = -g_k^T g_k`, so
that :math:`d_k^T y = g_k^T g_k`. That is the formula of Polak and Ribiere:

.. math:: \beta = \frac{g_{k+1}^T y}{g_k^T g_k}

Successive gradients are orthogonal, too, which is the formula of Fletcher and Reeves:

.. math:: \beta = \frac{g_{k+1}^T g_{k+1}}{g_k^T g_k}

Where F is not quadratic, or a search not exact, the three differ.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn import checks
from functional_nn.optimizers import line_searches
from functional_nn.optimizers.line_searches import LineSearch, quotient
from functional_nn.optimizers.second_order.line_steps import downhill, first_trial, search_along
from functional_nn.optimizers.second_order.method import SecondOrder, constant, register
from functional_nn.optimizers.second_order.state import Evaluation, Move, counts, no_previous_value
from functional_nn.reductions import unit

# g, y = g - g_before, d: the gradient, how it changed by the last step, and that step's direction
_BETAS = {
    "fletcher_reeves": lambda g, before, y, d: quotient(jnp.vdot(g, g), jnp.vdot(before, before)),
    "polak_ribiere": lambda g, before, y, d: quotient(jnp.vdot(g, y), jnp.vdot(before, before)),
    "polak_ribiere_plus": lambda g, before, y, d: jnp.maximum(quotient(jnp.vdot(g, y), jnp.vdot(before, before)), 0),
    "hestenes_stiefel": lambda g, before, y, d: quotient(jnp.vdot(g, y), jnp.vdot(d, y)),
    "dai_yuan": lambda g, before, y, d: quotient(jnp.vdot(g, g), jnp.vdot(d, y)),
}


class CGMemory(NamedTuple):
    """The memory of `conjugate_gradient`.

    Attributes:
        direction: The next d (P,).
        before: F at the point before.
        since: Steps since the last restart.
        anchor: The direction of that restart, d_t of Powell and Beale.
        anchor_change: How the gradient changed along it, y_t.
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
    r"""Nonlinear conjugate gradients, with a line search along each direction.

    .. math:: d_{k+1} = -g_{k+1} + \beta_k \, d_k

    On a quadratic with exact searches all formulas for :math:`\beta` are the same, and the minimum is reached in P
    steps. A direction that does not lead down is always replaced by -g.

    Warning:
        CSE 475 prints :math:`g_k^T H g_{k-1} = 0` as the condition that makes directions conjugate: it is
        :math:`d_k^T H d_{k-1} = 0`.

    Args:
        beta: With :math:`y = g_{k+1} - g_k`: "fletcher_reeves" (1964), :math:`g^T g / g_k^T g_k`; "polak_ribiere"
            (1969), :math:`g^T y / g_k^T g_k`; "polak_ribiere_plus", the same where it is not negative, else 0;
            "hestenes_stiefel" (1952), :math:`g^T y / d^T y`; "dai_yuan" (1999), :math:`g^T g / d^T y`.
        restart: What happens after P steps, and where successive gradients are far from orthogonal,
            :math:`\lvert g_{k+1}^T g_k \rvert \ge 0.2 \, g_{k+1}^T g_{k+1}`. "gradient" restarts from -g.
            "powell_beale" restarts from the current direction, :math:`d_t`, and stays conjugate to it:
            :math:`d = -g + \beta d + \gamma d_t` with :math:`\gamma = g^T y_t / d_t^T y_t` (Powell 1977, Eq. 2 and Sec.
            3; Beale 1972). "never" does not restart.
        line_search: The line search, or its name.

    Returns:
        The method.

    Raises:
        ValueError: An argument is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum(jnp.array([1.0, 10.0]) * (x - 1) ** 2))
        >>> solution = optimizers.minimize(problem, optimizers.conjugate_gradient(), jnp.zeros(2))
        >>> solution.status, [round(float(x), 3) for x in solution.params]
        ('gradient', [1.0, 1.0])
    """
    checks.one_of("conjugate_gradient", "beta", beta, tuple(_BETAS))
    checks.one_of("conjugate_gradient", "restart", restart, ("never", "gradient", "powell_beale"))
    line_search = line_searches.get(line_search)
    anchored = restart == "powell_beale"

    def evaluate(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        anchor = (jnp.zeros_like(g), jnp.zeros_like(g)) if anchored else (None, None)
        memory = CGMemory(-g, no_previous_value(value), jnp.zeros((), jnp.int32), *anchor)
        return Evaluation(x, value, g, memory, counts(gradients=1))

    def move(flat, current: Evaluation) -> Move:
        memory = current.memory
        d, replaced = downhill(memory.direction, current.gradient)
        line_step = search_along(d, line_search, flat, current, first_trial(current, d, memory.before))
        since, size = memory.since + 1, unit(current.gradient)
        before, g, d = (
            current.gradient / size,
            line_step.gradient / size,
            d / size,
        )  # of unit size: their squares are finite in any unit
        y = g - before
        conjugate = -g + _BETAS[beta](g, before, y, d) * d
        anchor, anchor_change = memory.anchor, memory.anchor_change
        if restart != "never":
            far = jnp.abs(jnp.vdot(g, before)) >= 0.2 * jnp.vdot(g, g)
            again = far | (since >= flat.size) | replaced
            if anchored:
                last, change = anchor / size, anchor_change / size
                with_anchor = conjugate + quotient(jnp.vdot(g, change), jnp.vdot(last, change)) * last
                # Powell's second test: it must lead down, but not much more steeply than the gradient itself
                share = -jnp.vdot(with_anchor, g) / jnp.maximum(jnp.vdot(g, g), jnp.finfo(g.dtype).tiny)
                again = again | (share < 0.8) | (share > 1.2)
                conjugate = jnp.where(again, conjugate, with_anchor)
                anchor = jnp.where(again, d * size, anchor)
                anchor_change = jnp.where(again, y * size, anchor_change)
            else:
                conjugate = jnp.where(again, -g, conjugate)
            since = jnp.where(again, 0, since)
        following = jnp.where(line_step.missed, -g, conjugate) * size
        return line_step.move(current, d * size, CGMemory(following, current.value, since, anchor, anchor_change))

    constants = {"beta": beta, "restart": restart, "line_search": line_search}
    return SecondOrder("conjugate_gradient", evaluate, move, constants)


class ScaledCGMemory(NamedTuple):
    """The memory of `scaled_conjugate_gradient`.

    Attributes:
        direction: p (P,).
        curvature: p^T H p, kept while a step is refused.
        scale: lambda.
        refused: True if the last step was refused.
        since: Steps accepted since the last restart.
    """

    direction: Array
    curvature: Array
    scale: Array
    refused: Array
    since: Array


@register
def scaled_conjugate_gradient(scale: float | Array = 1e-6) -> SecondOrder:
    r"""Moller's scaled conjugate gradients: a trust parameter takes the place of a line search.

    Each step goes to the minimum of a parabola along the direction p. Its curvature is raised until it is positive, by
    a :math:`\lambda` that follows how well the parabola predicted F:

    .. math:: x_{k+1} = x_k - \frac{p^T g_k}{p^T H p + \lambda \lVert p \rVert^2} \, p

    The direction restarts every P steps. A step that would raise F is refused; the next one tries a larger
    :math:`\lambda`.

    Warning:
        The curvature is the product with the Hessian itself; the paper takes a difference of two gradients.

    Args:
        scale: :math:`\lambda_1`, > 0.

    Returns:
        The method.

    Raises:
        ValueError: The scale is out of range.

    References:
        Moller 1993, p. 530.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum(jnp.array([1.0, 10.0]) * (x - 1) ** 2))
        >>> solution = optimizers.minimize(problem, optimizers.scaled_conjugate_gradient(), jnp.zeros(2))
        >>> solution.status, [round(float(x), 3) for x in solution.params]
        ('gradient', [1.0, 1.0])
    """
    scale = constant("scaled_conjugate_gradient", "scale", scale, checks.POSITIVE)

    def evaluate(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        zero = jnp.zeros_like(value)
        memory = ScaledCGMemory(-g, zero, jnp.asarray(scale, value.dtype), jnp.asarray(False), jnp.zeros((), jnp.int32))
        return Evaluation(x, value, g, memory, counts(gradients=1))

    def move(flat, current: Evaluation) -> Move:
        p, old, lam, refused, since = current.memory
        r = -current.gradient
        p, _ = downhill(p, current.gradient)
        square = jnp.maximum(jnp.vdot(p, p), jnp.finfo(p.dtype).tiny)
        # steps 2 to 4: p'Hp + lambda |p|^2, made positive
        curvature = jax.lax.cond(refused, lambda: old, lambda: jnp.vdot(p, flat.product(current.x, "hessian")(p)))
        delta = curvature + lam * square
        indefinite = delta <= 0
        lam = jnp.where(indefinite, 2 * (lam - delta / square), lam)
        delta = curvature + lam * square
        # steps 5 to 8
        mu = jnp.vdot(p, r)
        alpha = mu / jnp.maximum(delta, jnp.finfo(p.dtype).tiny)
        tried = alpha * p
        value, g = flat.value_and_gradient(current.x + tried)
        predicted = 2 * delta * (current.value - value) / jnp.where(mu != 0, mu, 1) ** 2
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(g))
        rounding = jnp.abs(value - current.value) <= 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        accepted = finite & ((predicted >= 0) | rounding)
        since = jnp.where(accepted, since + 1, since)
        again = since >= flat.size
        beta = (jnp.vdot(g, g) + jnp.vdot(g, r)) / jnp.where(mu != 0, mu, 1)  # (|r'|^2 - r''r) / mu
        following = jnp.where(again, -g, -g + beta * p)
        lam = jnp.where(finite & (predicted >= 0.75), lam / 4, lam)
        lam = jnp.where(
            ~finite | (predicted < 0.25), lam + jnp.where(finite, delta * (1 - predicted), 9 * delta) / square, lam
        )
        x, value, gradient, following = (
            jnp.where(accepted, new, before)
            for new, before in (
                (current.x + tried, current.x),
                (value, current.value),
                (g, current.gradient),
                (following, p),
            )
        )
        memory = ScaledCGMemory(following, curvature, lam, ~accepted, jnp.where(again, 0, since))
        evaluations = counts(gradients=1, products=jnp.where(refused, 0, 1))
        failed = ~jnp.isfinite(lam)
        return Move(
            Evaluation(x, value, gradient, memory, evaluations), tried, failed, indefinite, expected=mu * alpha / 2
        )

    return SecondOrder("scaled_conjugate_gradient", evaluate, move, {"scale": scale})
