"""The records of second-order methods: their state, what they know at a point, and how a run can end.

Every failure is data: a status in the state, so that one run of many that fails leaves the others as they are. Values
that are not known yet are never nan or infinity inside a program, so that `jax_debug_nans` and `jax_debug_infs` can be
used.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn.precision import largest

RUNNING, GOAL, GRADIENT, CHANGE, BUDGET_SPENT, SEARCH_FAILED, DIVERGED, NO_EVIDENCE = range(8)
STATUSES = ("running", "goal", "gradient", "change", "budget", "search_failed", "diverged", "no_evidence")
REASONS = (
    "not ended",
    "converged: F is at the goal or below",
    "converged: the gradient is within tolerance",
    "converged: F, or the parameters, no longer change",
    "the budget of steps or evaluations is spent",
    "no lower point was found: the line search failed, the damping is at its largest, or the rate moves nothing",
    "F or its gradient is not finite",
    "converged, but the data determine no parameter: gamma is 0; they may be noise alone, or try another initializer",
)


class Counts(NamedTuple):
    """How often a problem was evaluated, int32.

    Attributes:
        values: Evaluations of F alone.
        gradients: Evaluations of F with its gradient.
        products: Products of a curvature matrix and a vector.
        matrices: Evaluations of a matrix: a Hessian, or a Jacobian.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum(x**2))
        >>> counts = optimizers.minimize(problem, "newton", jnp.ones(2)).counts
        >>> int(counts.gradients), int(counts.matrices), int(counts.passes)
        (2, 1, 3)
    """

    values: Array
    gradients: Array
    products: Array
    matrices: Array

    @property
    def evaluations(self) -> Array:
        """How often F was computed, with its gradient or without."""
        return self.values + self.gradients

    @property
    def passes(self) -> Array:
        """All evaluations together, each counted as one pass over the problem's data, whatever it costs."""
        return self.values + self.gradients + self.products + self.matrices


def counts(
    values: Array | int = 0, gradients: Array | int = 0, products: Array | int = 0, matrices: Array | int = 0
) -> Counts:
    """Returns `Counts` of these numbers."""
    return Counts(*(jnp.asarray(count, jnp.int32) for count in (values, gradients, products, matrices)))


def add_counts(first: Counts, second: Counts) -> Counts:
    """Returns the sum of two `Counts`."""
    return jax.tree.map(jnp.add, first, second)


class State(NamedTuple):
    """The state of a second-order method.

    Attributes:
        params: The parameters.
        step: The number of updates so far, int32.
        value: F at the parameters.
        gradient: dF/dparams, flat (P,).
        length: The length of the last move that was tried, relative to the norm of the parameters.
        expected: The decrease of F that was expected of that move where it was not made, else 0.
        status: 0 while running, else the index of one of `STATUSES`, int32.
        counts: How often the problem was evaluated.
        damped: The number of updates whose matrix was singular or indefinite, and was damped more than the method
            prescribes, int32.
        memory: What else the method remembers.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem, method = optimizers.problem_from(lambda x: jnp.sum(x**2)), optimizers.bfgs()
        >>> state = method.update(method.init(jnp.ones(2), problem), problem)
        >>> int(state.step), state.gradient.shape, bool(state.value < 2)
        (1, (2,), True)
    """

    params: Any
    step: Array
    value: Array
    gradient: Array
    length: Array
    expected: Array
    status: Array
    counts: Counts
    damped: Array
    memory: Any


class Evaluation(NamedTuple):
    """What a method knows at a point.

    Attributes:
        x: The point (P,).
        value: F there.
        gradient: dF/dx there (P,).
        memory: The method's memory.
        counts: How often the problem was evaluated for it.
    """

    x: Array
    value: Array
    gradient: Array
    memory: Any
    counts: Counts


class Move(NamedTuple):
    """The result of one step.

    Attributes:
        evaluation: What is known at the end of the step.
        tried: The change of x that was tried, whether it was made or not; 0 where nothing was tried.
        failed: True where no lower point was found.
        damped: True where the matrix had to be damped.
        expected: The decrease that was predicted for a change that was tried and not made, else 0; the dtype's largest
            number where nothing could be tried.
    """

    evaluation: Evaluation
    tried: Array
    failed: Array | bool = False
    damped: Array | bool = False
    expected: Array | float = 0.0

    def with_counts(self, further: Counts) -> "Move":
        """Returns the move with further evaluations counted."""
        counts = add_counts(self.evaluation.counts, further)
        return self._replace(evaluation=self.evaluation._replace(counts=counts))


class Start(NamedTuple):
    """Where a run began: the parameters, and F there."""

    params: Any
    value: Array


def no_previous_value(value: Array) -> Array:
    """Returns what stands for F at the point before the first: the largest number of the dtype of `value`."""
    return largest(value.dtype)
