"""Steps of at most a given length: the best such step, from eigenvectors or from products alone, and which length.

Letters: P parameters, x a point, g (P,) and H (P, P) the gradient and Hessian of F there, d a step, D a diagonal of
scales (P,), Delta the radius, q(d) = g^T d + d^T H d / 2 what the model says F will change by.

The d that makes q least where |D d| <= Delta (More and Sorensen 1983): with D^-1 H D^-1 = V diag(w) V^T and
c = V^T D^-1 g there is a mu >= 0, and D d = -V u, where

    u_i = c_i / (w_i + mu),   w_i + mu >= 0,   mu (Delta - |u|) = 0

mu = 0 where H is positive definite and its own step short enough. Else |u| = Delta, and 1 / |u| is nearly a straight
line in mu, on which Newton's iteration for 1 / Delta = 1 / |u| rises to the end from any mu below it. The unknown here
is nu = mu + min w, which is told from 0 however near mu is to -min w. Where nu is 0 itself, c having no part in the
lowest eigenvector, and |u| less than Delta (the hard case), a multiple of that eigenvector makes up for it.

Without a matrix (Steihaug 1983): conjugate gradients begun from 0 make longer steps as they make better ones, so that
the first that would leave the region ends on its border; so does a direction without curvature.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import linalg
from functional_nn.optimizers.second_order.method import Here, Move, counts
from functional_nn.optimizers.second_order.problem import Flat
from functional_nn.precision import largest

ITERATIONS = 40  # on the secular equation, which mostly takes five
REFUSALS = 60  # in a row, each at least halving the radius


class Proposed(NamedTuple):
    """A step d (P,); by how much q falls along it; its length |D d|; bound: is that the radius? damped: was H found not
    to be positive definite? products: how many it took.
    """

    step: Array
    fall: Array
    length: Array
    bound: Array
    damped: Array
    products: Array


def within(w: Array, c: Array, radius: Array) -> tuple[Array, Array]:
    """(u (P,), whether |u| is the radius) as above; w (P,) in rising order."""
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


def by_eigenvectors(H: Array, g: Array, D: Array, x: Array) -> tuple[Callable[[Array], Proposed], Array, Array]:
    """(radius -> the best step in |D d| <= radius; a first radius; does H bend downward by more than the root of what
    rounding could have made?)

    The first radius is the length of Newton's own step or, where H is not positive definite, a tenth of one along the
    gradient as curved as H is anywhere: too long a first step ends in another valley. Curvature that rounding could
    have made is taken for the least that can be told from it.
    """
    A = H / D[:, None] / D[None, :]
    w, V = linalg.eigh(jnp.where(jnp.all(jnp.isfinite(A)), A, jnp.eye(len(A), dtype=A.dtype)))
    c = V.T @ (g / D)
    size = jnp.max(jnp.abs(w))
    floor = jnp.maximum(len(w) * jnp.finfo(w.dtype).eps * size, jnp.finfo(w.dtype).tiny)
    damped = w[0] < floor
    told = jnp.where(jnp.abs(w) < floor, floor, w)

    def propose(radius):
        u, bound = within(told, c, radius)
        fall = jnp.vdot(c, u) - jnp.vdot(u, told * u) / 2
        return Proposed(-(V @ u) / D, fall, jnp.linalg.norm(u), bound, damped, jnp.zeros((), jnp.int32))

    first = jnp.linalg.norm(c / jnp.where(damped, 10 * jnp.where(size > 0, size, 1), told))
    own = 0.1 * jnp.linalg.norm(D * x)  # of a saddle without a gradient
    first = jnp.where(first > 0, first, jnp.where(own > 0, own, 1))
    return propose, first, w[0] < -(jnp.finfo(w.dtype).eps ** 0.5) * size


def by_products(
    multiply: Callable[[Array], Array], g: Array, tolerance: Array | float, iterations: int
) -> Callable[[Array], Proposed]:
    """radius -> the step at which Steihaug's conjugate gradients end: where |g + H d| <= tolerance |g|, on the border
    |d| = radius, or after so many iterations. multiply: v -> H v.

    For a radius of 0, there is none yet, and what would leave for the border stays: at the last d, or, where the first
    direction already has no curvature, at a step along -g that is as curved as H is along it.
    """

    size = jnp.max(jnp.abs(g))
    size = jnp.where(size > 0, size, 1)
    g = g / size  # and d / radius: of unit size, so that squares are numbers whatever the units

    def going(carry):
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
        d, r, _, bound, _, i, damped = lax.while_loop(going, step, (jnp.zeros_like(g), g, -g, no, no, zero, no))
        fall = -jnp.vdot(g + r, d) / 2  # as H d = r - g
        return Proposed(unit * d, unit * fall * size, unit * jnp.linalg.norm(d), bound, damped, i)

    return propose


def trusted(flat: Flat, here: Here, propose: Callable[[Array], Proposed], radius: Array, memory: Callable) -> Move:
    """The first step proposed whose fall in F is a share of the model's, at ever smaller radii; memory(radius) is what
    the method remembers. Where neither fall can be told from F's rounding they count as equal (Conn, Gould and Toint
    2000, Sec. 17.4.2).
    """
    eps = float(jnp.finfo(here.x.dtype).eps)

    def refused(carry):
        _, made, standing, count, *_ = carry
        return ~made & ~standing & (count < REFUSALS)

    def attempt(carry):
        radius, _, _, count, products, _, _ = carry
        tried = propose(radius)
        x = here.x + tried.step
        value, gradient = flat.value_and_gradient(x)
        sound = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        change = jnp.where(sound, value, here.value) - here.value
        noise = 4 * eps * jnp.abs(here.value)
        over = tried.fall + noise
        ratio = jnp.where(sound, (noise - change) / jnp.where(over > 0, over, 1), -1)
        # to the minimum of the parabola through both values and the slope
        slope = jnp.vdot(here.gradient, tried.step)
        bend = change - slope
        least = jnp.where(sound & (bend > 0), -slope / jnp.where(bend > 0, 2 * bend, 1), 0.1)
        shorter = jnp.clip(least, 0.1, 0.5) * tried.length
        longer = jnp.maximum(radius, jnp.where(ratio > 0.9, 4, 2) * tried.length)
        radius = jnp.where(ratio < 0.25, shorter, jnp.where((ratio > 0.75) & tried.bound, longer, radius))
        made = ratio > 1e-4
        return radius, made, jnp.all(x == here.x), count + 1, products + tried.products, tried, (x, value, gradient)

    none, zero, no = jnp.zeros_like(here.value), jnp.zeros((), jnp.int32), jnp.asarray(False)
    untried = Proposed(jnp.zeros_like(here.x), none, none, no, no, zero)
    begun = radius, no, no, zero, zero, untried, here[:3]
    radius, made, standing, count, products, tried, there = lax.while_loop(refused, attempt, begun)
    made = made & ~standing
    x, value, gradient = (jnp.where(made, new, old) for new, old in zip(there, here[:3], strict=True))
    after = Here(x, value, gradient, memory(radius), counts(gradients=count, products=products))
    promised = jnp.where(tried.fall > 0, tried.fall, largest(value.dtype))  # nothing could be tried
    return Move(after, tried.step, ~made, tried.damped, jnp.where(made, 0, promised))
