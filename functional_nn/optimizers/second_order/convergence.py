r"""When a run has converged. No test depends on the units of F or of the parameters.

Letters: x (P,) the parameters, g the gradient at x, F the value there, :math:`x_0` and :math:`F_0` those at the start,
eps of the dtype. All tests predict by how much F could still fall.

Least squares, with residuals r, :math:`J_j` a column of their Jacobian J, and :math:`A = J^T J`: along one parameter F
falls by :math:`(J_j^T r)^2 / \lVert J_j \rVert^2`, so that the cosine
:math:`\lvert J_j^T r \rvert / (\lVert J_j \rVert \, \lVert r \rVert)` says by which share of itself (MINPACK's gtol:
More, Garbow and Hillstrom 1980). Where r goes to 0 its direction stays random; but r cannot become smaller than the
rounding of x makes it. So the run has converged where, for all j,

.. math::
    \frac{\lvert J_j^T r \rvert}{\lVert J_j \rVert} \le
    \mathrm{tol} \, \lVert r \rVert + 4 \, \mathrm{eps} \Big( \sum_i A_{ii} x_i^2 \Big)^{1/2}

Other functions, with :math:`s = x - x_{\mathrm{before}}` and :math:`y = g - g_{\mathrm{before}}`: the curvature met
along the step is :math:`h = s^T y / s^T s`, which predicts the decrease :math:`g^T g / 2h`. That is a prediction for
the most curved directions. For the others,
:math:`\max_i \lvert g_i \rvert \max(\lvert x_i \rvert, \lvert x_{0i} \rvert)` is what a change of one parameter by its
own size does to F (Dennis and Schnabel 1983, Sec. 7.2). The first must be at most
:math:`\mathrm{tol}^2 \lvert F \rvert`, the second at most :math:`\mathrm{tol} \lvert F \rvert`. Where F goes to 0, or
through it, :math:`F_0 - F` replaces :math:`\lvert F \rvert`, :math:`\mathrm{eps}^{3/4}` replaces tol, and the
predicted step must be short:

.. math:: \frac{\lVert g \rVert}{h} \le \mathrm{eps}^{1/4} \max(\lVert x \rVert, \lVert x_0 \rVert)
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import Array

from functional_nn.optimizers.second_order.problem import Problem
from functional_nn.optimizers.second_order.state import CHANGE, DIVERGED, Start, State
from functional_nn.reductions import norm

if TYPE_CHECKING:
    from functional_nn.optimizers.second_order.method import SecondOrder


def _size(x: Array) -> Array:
    """Returns the largest `|x_i|`; 1 where that is 0."""
    size = jnp.max(jnp.abs(x))
    return jnp.where(size > 0, size, 1)


def stationary(
    method: "SecondOrder",
    problem: Problem,
    start: Start,
    before: State | None,
    state: State,
    tolerance: Array | float,
) -> Array:
    """Returns whether F can fall by no more than the share tolerance^2 of itself, by the tests of this module."""
    flat, g = method.flat(problem, state.params), state.gradient
    x, x0 = flat.flatten(state.params), flat.flatten(start.params)
    flat_everywhere = jnp.all(g == 0)
    if method.stationary is not None:
        return flat_everywhere | method.stationary(flat, state, x0, tolerance)
    if before is None:  # one point alone predicts nothing
        return flat_everywhere
    s, y = x - flat.flatten(before.params), g - before.gradient
    # of unit size: squares of what is small would be 0 in single precision
    sizes = _size(s), _size(y)
    s, y = s / sizes[0], y / sizes[1]
    bend = jnp.vdot(s, y)
    p = g * (sizes[0] / sizes[1]) * (jnp.vdot(s, s) / jnp.where(bend > 0, bend, 1))
    fall = jnp.vdot(g, p) / 2
    w = jnp.maximum(jnp.abs(x), jnp.abs(x0))
    share = jnp.max(jnp.abs(g) * w)
    eps = jnp.finfo(x.dtype).eps
    F, fallen = jnp.abs(state.value), jnp.maximum(start.value - state.value, 0)
    small = (share <= tolerance * F) & (fall <= tolerance**2 * F)
    short = jnp.max(jnp.abs(p)) <= eps**0.25 * jnp.max(w)
    fallen_to_zero = (share <= eps**0.75 * fallen) & (fall <= eps**1.5 * fallen) & short
    # Where not even the last digits have moved no curvature was met; then the run's own moves say how large x is.
    predicted = (bend > 0) | (jnp.all(s == 0) & jnp.all((x != x0) | (g == 0)))
    return flat_everywhere | (predicted & (small | fallen_to_zero))


def status_after_step(
    method: "SecondOrder",
    problem: Problem,
    start: Start,
    before: State,
    state: State,
    tolerance: Array | None = None,
) -> Array:
    """Returns the status after a step.

    It is CHANGE where F, or the parameters, no longer change by more than `tolerance`, by default epsilon, and F could
    not fall by more either.
    """
    eps = float(jnp.finfo(state.value.dtype).eps)
    predicts = tolerance is None or method.stationary is not None
    least: Array | float = eps if tolerance is None else tolerance
    change = jnp.maximum(jnp.abs(before.value - state.value), state.expected)
    unchanged = change <= least * jnp.maximum(jnp.abs(before.value), jnp.abs(state.value))
    unchanged = unchanged | ((state.length <= least) & (state.length > 0))
    # F may be constant to rounding while its gradient still goes to zero
    unchanged = unchanged & (norm(state.gradient) >= 0.5 * norm(before.gradient))
    if predicts:
        near = jnp.maximum(least, eps ** (2 / 3)) ** 0.5
        unchanged = unchanged & stationary(method, problem, start, before, state, near)
    return jnp.where(unchanged & (state.status != DIVERGED), CHANGE, state.status)
