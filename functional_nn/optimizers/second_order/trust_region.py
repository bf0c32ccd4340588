r"""Steps of at most a given length: the best such step, from eigenvectors or from products alone, and which length.

Letters: P parameters, x a point, g (P,) and H (P, P) the gradient and Hessian of F there, d a step, D a diagonal of
scales (P,), :math:`\Delta` the radius, and the model of the change of F

.. math:: q(d) = g^T d + \tfrac{1}{2} d^T H d

With eigenvectors (More and Sorensen 1983), the d that makes q least where :math:`\lVert D d \rVert \le \Delta` is as
follows. With :math:`D^{-1} H D^{-1} = V \mathrm{diag}(w) V^T` and :math:`c = V^T D^{-1} g` there is a
:math:`\mu \ge 0`, and :math:`D d = -V u`, where

.. math::
    u_i = \frac{c_i}{w_i + \mu}, \qquad w_i + \mu \ge 0, \qquad \mu \, (\Delta - \lVert u \rVert) = 0

:math:`\mu = 0` where H is positive definite and Newton's step short enough. Else
:math:`\lVert u \rVert = \Delta`, and :math:`1 / \lVert u \rVert` is nearly a straight line in :math:`\mu`, on which
Newton's iteration for :math:`1 / \Delta = 1 / \lVert u \rVert` rises to the solution from any :math:`\mu` below it. The
unknown here is :math:`\nu = \mu + \min w`, which can be distinguished from 0 however near :math:`\mu` is to
:math:`-\min w`. Where :math:`\nu` itself is 0, because c has no component along the lowest eigenvector, and
:math:`\lVert u \rVert` is less than :math:`\Delta` (the hard case), a multiple of that eigenvector makes up the length.

Without a matrix (Steihaug 1983): conjugate gradients that start from 0 make longer steps as they make better ones, so
that the first that would leave the region ends on its border; so does a direction without positive curvature.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import linalg
from functional_nn.optimizers.second_order.problem import FlatProblem
from functional_nn.optimizers.second_order.state import Evaluation, Move, counts
from functional_nn.precision import largest

ITERATIONS = 40  # of the secular equation, which mostly takes five
REFUSALS = 60  # in a row, each at least halving the radius


class Proposal(NamedTuple):
    """A proposed step.

    Attributes:
        step: d (P,).
        fall: By how much q falls along it.
        length: `|D d|`.
        bound: True if that is the radius.
        damped: True if H is not positive definite.
        products: The number of products it took.
    """

    step: Array
    fall: Array
    length: Array
    bound: Array
    damped: Array
    products: Array


def within(w: Array, c: Array, radius: Array) -> tuple[Array, Array]:
    """Returns (u (P,), whether `|u|` is the radius), as in the module's docstring; w (P,) is in rising order."""
    gaps, t = w - w[0], c / radius

    def at(nu):
        below = gaps + nu
        u = jnp.where(below > 0, t / jnp.where(below > 0, below, 1), 0)
        return u, jnp.vdot(u, u), jnp.vdot(u, u / jnp.where(below > 0, below, 1))

    def outside(carry):
        _, (_, square, _), count = carry
        return (square > 1 + 1e-6) & (count < ITERATIONS)

    def newton(carry):
        nu, (_, square, slope), count = carry
        nu = nu + (jnp.sqrt(square) - 1) * square / slope
        return nu, at(nu), count + 1

    # below the nu that is sought, as |u| >= |u_i|
    low = jnp.maximum(jnp.max(jnp.abs(t) - gaps), jnp.maximum(w[0], 0))
    nu, (u, square, _), _ = lax.while_loop(outside, newton, (low, at(low), jnp.zeros((), jnp.int32)))
    u = u.at[0].add(jnp.where(nu > 0, 0, jnp.sqrt(jnp.maximum(1 - square, 0))))
    return radius * u, (nu > w[0]) | (w[0] <= 0)


def by_eigenvectors(H: Array, g: Array, D: Array, x: Array) -> tuple[Callable[[Array], Proposal], Array, Array]:
    """Returns a function that proposes steps, a first radius, and whether H bends downward.

    The function maps a radius to the best step with `|D d| <= radius`. The first radius is the length of Newton's own
    step or, where H is not positive definite, a tenth of one along the gradient as curved as H is anywhere: too long a
    first step ends in another valley. Curvature that may be rounding is replaced by the least that can be distinguished
    from it. H bends downward where its lowest eigenvalue is below 0 by more than the root of what rounding could have
    made.
    """
    A = H / D[:, None] / D[None, :]
    w, V = linalg.eigh(jnp.where(jnp.all(jnp.isfinite(A)), A, jnp.eye(len(A), dtype=A.dtype)))
    c = V.T @ (g / D)
    size = jnp.max(jnp.abs(w))
    floor = jnp.maximum(len(w) * jnp.finfo(w.dtype).eps * size, jnp.finfo(w.dtype).tiny)
    damped = w[0] < floor
    distinct = jnp.where(jnp.abs(w) < floor, floor, w)

    def propose(radius):
        u, bound = within(distinct, c, radius)
        fall = jnp.vdot(c, u) - jnp.vdot(u, distinct * u) / 2
        return Proposal(-(V @ u) / D, fall, jnp.linalg.norm(u), bound, damped, jnp.zeros((), jnp.int32))

    first = jnp.linalg.norm(c / jnp.where(damped, 10 * jnp.where(size > 0, size, 1), distinct))
    share = 0.1 * jnp.linalg.norm(D * x)  # at a saddle without a gradient
    first = jnp.where(first > 0, first, jnp.where(share > 0, share, 1))
    return propose, first, w[0] < -(jnp.finfo(w.dtype).eps ** 0.5) * size


def by_products(
    multiply: Callable[[Array], Array], g: Array, tolerance: Array | float, iterations: int
) -> Callable[[Array], Proposal]:
    """Returns a function that maps a radius to the step at which Steihaug's conjugate gradients end.

    They end where `|g + H d| <= tolerance |g|`, on the border `|d| = radius`, or after so many iterations. `multiply`
    maps v to H v.

    A radius of 0 means that there is none yet. Then a step that would go to the border stays: at the last d, or, where
    the first direction already has no positive curvature, at a step along -g that is as curved as H is along it.
    """

    size = jnp.max(jnp.abs(g))
    size = jnp.where(size > 0, size, 1)
    g = g / size  # and d / radius: of unit size, so that squares are finite in any unit

    def unfinished(carry):
        _, r, _, _, ended, i, _ = carry
        return ~ended & (jnp.linalg.norm(r) > tolerance * jnp.linalg.norm(g)) & (i < iterations)

    def propose(radius):
        bounded = radius > 0
        unit = jnp.where(bounded, radius, 1)

        def step(carry):
            d, r, p, _, _, i, damped = carry
            Hp = multiply(p) * (unit / size)
            curvature, square, rr = jnp.vdot(p, Hp), jnp.vdot(p, p), jnp.vdot(r, r)
            curved = curvature > 0
            alpha = rr / jnp.where(curved, curvature, 1)
            ahead = d + alpha * p
            leaves = ~curved | (bounded & (jnp.vdot(ahead, ahead) >= 1))
            # the positive root of |d + t p| = 1
            dp, left = jnp.vdot(d, p), jnp.maximum(1 - jnp.vdot(d, d), 0)
            root = jnp.sqrt(dp**2 + square * left)
            border = left / jnp.where(dp + root > 0, dp + root, 1)
            bend = jnp.abs(curvature)
            free = jnp.where(i > 0, 0, rr / jnp.where(bend > 0, bend, jnp.sqrt(rr)))
            t = jnp.where(leaves, jnp.where(bounded, border, free), alpha)
            d, new = d + t * p, r + t * Hp
            beta = jnp.vdot(new, new) / jnp.where(rr > 0, rr, 1)
            return d, new, -new + beta * p, leaves & bounded, leaves, i + 1, damped | ~curved

        no, zero = jnp.asarray(False), jnp.zeros((), jnp.int32)
        d, r, _, bound, _, i, damped = lax.while_loop(unfinished, step, (jnp.zeros_like(g), g, -g, no, no, zero, no))
        fall = -jnp.vdot(g + r, d) / 2  # as H d = r - g
        return Proposal(unit * d, unit * fall * size, unit * jnp.linalg.norm(d), bound, damped, i)

    return propose


def trusted(
    flat: FlatProblem, current: Evaluation, propose: Callable[[Array], Proposal], radius: Array, memory: Callable
) -> Move:
    """Returns the first proposed step whose fall in F is a sufficient share of the model's, at ever smaller radii.

    memory(radius) returns what the method remembers. Where neither fall can be distinguished from F's rounding they
    count as equal (Conn, Gould and Toint 2000, Sec. 17.4.2).
    """
    eps = float(jnp.finfo(current.x.dtype).eps)

    def refused(carry):
        _, accepted, unmoved, count, *_ = carry
        return ~accepted & ~unmoved & (count < REFUSALS)

    def attempt(carry):
        radius, _, _, count, products, _, _ = carry
        tried = propose(radius)
        x = current.x + tried.step
        value, gradient = flat.value_and_gradient(x)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        change = jnp.where(finite, value, current.value) - current.value
        noise = 4 * eps * jnp.abs(current.value)
        over = tried.fall + noise
        ratio = jnp.where(finite, (noise - change) / jnp.where(over > 0, over, 1), -1)
        # to the minimum of the parabola through both values and the slope
        slope = jnp.vdot(current.gradient, tried.step)
        bend = change - slope
        least = jnp.where(finite & (bend > 0), -slope / jnp.where(bend > 0, 2 * bend, 1), 0.1)
        shorter = jnp.clip(least, 0.1, 0.5) * tried.length
        longer = jnp.maximum(radius, jnp.where(ratio > 0.9, 4, 2) * tried.length)
        radius = jnp.where(ratio < 0.25, shorter, jnp.where((ratio > 0.75) & tried.bound, longer, radius))
        accepted, unmoved, trial = ratio > 1e-4, jnp.all(x == current.x), (x, value, gradient)
        return radius, accepted, unmoved, count + 1, products + tried.products, tried, trial

    none, zero, no = jnp.zeros_like(current.value), jnp.zeros((), jnp.int32), jnp.asarray(False)
    untried = Proposal(jnp.zeros_like(current.x), none, none, no, no, zero)
    first = radius, no, no, zero, zero, untried, current[:3]
    radius, accepted, unmoved, count, products, tried, trial = lax.while_loop(refused, attempt, first)
    accepted = accepted & ~unmoved
    x, value, gradient = (jnp.where(accepted, new, old) for new, old in zip(trial, current[:3], strict=True))
    end = Evaluation(x, value, gradient, memory(radius), counts(gradients=count, products=products))
    predicted = jnp.where(tried.fall > 0, tried.fall, largest(value.dtype))  # nothing could be tried
    return Move(end, tried.step, ~accepted, tried.damped, jnp.where(accepted, 0, predicted))
