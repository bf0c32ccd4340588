r"""Gradient descent with momentum whose learning rate follows the error: no curvature, no line search.

It is not among the first-order methods because it judges each step by F at the new point, which only a problem
provides.

Letters: x (P,) the parameters, g the gradient, :math:`\alpha` the learning rate, :math:`\gamma` the `decay`,
:math:`\Delta x` a change.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from functional_nn import checks
from functional_nn.optimizers.second_order.method import SecondOrder, constant, register
from functional_nn.optimizers.second_order.state import Evaluation, Move, counts
from functional_nn.precision import largest


class RateMemory(NamedTuple):
    """The memory of `variable_learning_rate`.

    Attributes:
        change: The last change that was made (P,).
        rate: alpha of the next step.
        plain: True if the next step has no momentum.
    """

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
    r"""Variable learning rate backpropagation: the rate grows while the error falls and shrinks when it rises.

    The step tried is

    .. math:: \Delta x_k = \gamma \, \Delta x_{k-1} - (1 - \gamma) \, \alpha g_k

    - Where F falls, the step is made and :math:`\alpha` is multiplied by `increase`.
    - Where F stays, or rises by at most `tolerance` times its magnitude, the step is made and :math:`\alpha` stays.
    - Where F rises by more, or is not finite, the step is not made, :math:`\alpha` is multiplied by `decrease`, and the
      next step is :math:`-\alpha g`, without momentum.

    So F may rise, and the last parameters need not be the best; with `tolerance` 0 it never rises. The state ends as
    "search_failed" where :math:`\alpha` is too small to move any parameter. Every step evaluates F and its gradient
    once.

    Warning:
        Hagan leaves the momentum of the first step open; here it has none, as in MATLAB. `|F|` replaces F, which need
        not be a sum of squares here; MATLAB compares the ratio of the two errors, which is the same where F > 0. The
        factor :math:`1 - \gamma` is Hagan's: `momentum`, which does not have it, at rate :math:`\alpha` equals this at
        :math:`\alpha / (1 - \gamma)`.

    Args:
        learning_rate: The first :math:`\alpha`, > 0.
        increase: > 1.
        decrease: In (0, 1).
        tolerance: >= 0.
        decay: :math:`\gamma`, in [0, 1).

    Returns:
        The method.

    Raises:
        ValueError: A constant is out of range.

    References:
        Hagan et al., NND2, ch. 12; MATLAB's traingdx, whose defaults these are (traingda at decay 0); Kordecki's
        "general idea": larger steps where the error falls, others where it does not.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum((x - 1) ** 2))
        >>> solution = optimizers.minimize(problem, "variable_learning_rate", jnp.zeros(2), steps=50)
        >>> bool(solution.value < 0.1), bool(solution.state.memory.rate > 0.01)
        (True, True)
    """
    name = "variable_learning_rate"
    constants = {
        "learning_rate": constant(name, "learning_rate", learning_rate, checks.POSITIVE),
        "increase": constant(name, "increase", increase, (lambda v: v > 1, "a number > 1")),
        "decrease": constant(name, "decrease", decrease, (lambda v: (v > 0) & (v < 1), "in (0, 1)")),
        "tolerance": constant(name, "tolerance", tolerance),
        "decay": constant(name, "decay", decay, (lambda v: (v >= 0) & (v < 1), "in [0, 1)")),
    }

    def evaluate(flat, x, memory):
        value, g = flat.value_and_gradient(x)
        if memory is None:
            rate = jnp.asarray(constants["learning_rate"], value.dtype)
            memory = RateMemory(jnp.zeros_like(g), rate, jnp.asarray(True))
        return Evaluation(x, value, g, memory, counts(gradients=1))

    def move(flat, current: Evaluation) -> Move:
        change, rate, plain = current.memory
        F, descent = current.value, rate * current.gradient
        up, down, most, gamma = (jnp.asarray(value, F.dtype) for value in list(constants.values())[1:])
        tried = jnp.where(plain, -descent, gamma * change - (1 - gamma) * descent)
        x = current.x + tried
        value, g = flat.value_and_gradient(x)
        accepted = jnp.isfinite(value) & jnp.all(jnp.isfinite(g)) & (value <= F + most * jnp.abs(F))
        grown = jnp.minimum(rate, largest(F.dtype) / up) * up  # where F falls without end
        next_rate = jnp.where(accepted, jnp.where(value < F, grown, rate), down * rate)
        stuck = jnp.all(x == current.x) & jnp.any(current.gradient != 0)
        # The fall that the gradient predicts for a step that was not made; with momentum it may predict a rise.
        predicted = jnp.where(accepted, 0, jnp.vdot(current.gradient, descent))
        memory = RateMemory(jnp.where(accepted, tried, change), next_rate, ~accepted)
        x, value, g = (
            jnp.where(accepted, new, old) for new, old in ((x, current.x), (value, F), (g, current.gradient))
        )
        return Move(Evaluation(x, value, g, memory, counts(gradients=1)), tried, stuck, expected=predicted)

    return SecondOrder(name, evaluate, move, constants)
