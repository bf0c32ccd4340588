"""Gradient descent with momentum whose learning rate follows the error: no curvature, no line search.

It is here, and not among the first-order methods, because it judges each step by F at the new point, which only a
problem can tell.

Letters: x (P,) the parameters, g the gradient, alpha the learning rate, gamma the `decay`, Delta x a change.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from functional_nn import checks
from functional_nn.optimizers.second_order.method import Here, Move, SecondOrder, constant, counts, register
from functional_nn.precision import largest


class RateMemory(NamedTuple):
    """change: Delta x, the last that was made (P,); rate: alpha, of the next step; plain: that one has no momentum."""

    change: Array
    rate: Array
    plain: Array


@register
def variable_learning_rate(
    learning_rate: float | Array = 0.01,
    increase: float | Array = 1.05,
    decrease: float | Array = 0.7,
    tolerance: float | Array = 0.04,
    decay: float | Array = 0.9,
) -> SecondOrder:
    """Variable learning rate backpropagation: Hagan et al., NND2, ch. 12; MATLAB's traingdx, whose defaults these are
    (traingda at decay 0). Kordecki's "general idea": larger steps where the error falls, others where it does not.

    The step tried is Delta x = gamma Delta x_before - (1 - gamma) alpha g, gamma the `decay`. Then
      - F falls: the step is made, alpha is multiplied by `increase`;
      - F rises, by `tolerance` |F| at most, or stays: the step is made, alpha stays;
      - F rises by more, or is not finite: the step is not made, alpha is multiplied by `decrease`, and the next step is
        -alpha g, without momentum.
    So F may rise, and the last parameters need not be the best; with `tolerance` 0 it never does.

    Deviations: Hagan leaves open the momentum of the first step; it has none, as MATLAB's. |F| stands for F, which need
    not be a sum of squares here; MATLAB asks for the ratio of the two errors, the same where F > 0. The factor
    (1 - gamma) is Hagan's: `momentum`, which has none, is at rate alpha this at alpha / (1 - gamma). The state ends as
    "search_failed" where alpha is too small to move any parameter.

    One value with its gradient a step, also where it is not made. Raises ValueError for constants out of range.
    """
    name = "variable_learning_rate"
    constants = {
        "learning_rate": constant(name, "learning_rate", learning_rate, checks.POSITIVE),
        "increase": constant(name, "increase", increase, (lambda v: v > 1, "a number > 1")),
        "decrease": constant(name, "decrease", decrease, (lambda v: (v > 0) & (v < 1), "in (0, 1)")),
        "tolerance": constant(name, "tolerance", tolerance),
        "decay": constant(name, "decay", decay, (lambda v: (v >= 0) & (v < 1), "in [0, 1)")),
    }

    def look(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        if memory is None:
            rate = jnp.asarray(constants["learning_rate"], value.dtype)
            memory = RateMemory(jnp.zeros_like(g), rate, jnp.asarray(True))
        return Here(x, value, g, memory, counts(gradients=1))

    def move(flat, here: Here) -> Move:
        change, rate, plain = here.memory
        F, descent = here.value, rate * here.gradient
        up, down, most, gamma = (jnp.asarray(value, F.dtype) for value in list(constants.values())[1:])
        tried = jnp.where(plain, -descent, gamma * change - (1 - gamma) * descent)
        x = here.x + tried
        value, g = flat.value_and_gradient(x)
        made = jnp.isfinite(value) & jnp.all(jnp.isfinite(g)) & (value <= F + most * jnp.abs(F))
        grown = jnp.minimum(rate, largest(F.dtype) / up) * up  # where F falls without end
        after = jnp.where(made, jnp.where(value < F, grown, rate), down * rate)
        stuck = jnp.all(x == here.x) & jnp.any(here.gradient != 0)
        # Of a step that was not made the gradient promised this; momentum may have promised a rise.
        promised = jnp.where(made, 0, jnp.vdot(here.gradient, descent))
        memory = RateMemory(jnp.where(made, tried, change), after, ~made)
        x, value, g = (jnp.where(made, new, old) for new, old in ((x, here.x), (value, F), (g, here.gradient)))
        return Move(Here(x, value, g, memory, counts(gradients=1)), tried, stuck, expected=promised)

    return SecondOrder(name, look, move, constants)
