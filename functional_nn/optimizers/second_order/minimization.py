"""`minimize`: runs a second-order method until it has converged, failed, or spent its budget."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, precision
from functional_nn.optimizers import first_order
from functional_nn.optimizers.optimizer import check_params
from functional_nn.optimizers.second_order.convergence import stationary, status_after_step
from functional_nn.optimizers.second_order.method import SecondOrder, constant, get, names
from functional_nn.optimizers.second_order.problem import FlatProblem, Problem, check_problem
from functional_nn.optimizers.second_order.solution import Path, Solution, solution_of
from functional_nn.optimizers.second_order.state import (
    BUDGET_SPENT,
    DIVERGED,
    GOAL,
    GRADIENT,
    RUNNING,
    Start,
    State,
)
from functional_nn.precision import largest
from functional_nn.reductions import norm
from functional_nn.rows import cached


def minimize(
    problem: Problem,
    method: SecondOrder | str,
    params: Any,
    *,
    steps: int = 1000,
    goal: float | Array = -np.inf,
    gradient_tolerance: float | Array | None = None,
    change_tolerance: float | Array | None = None,
    evaluations: int | Array | None = None,
    path: bool = True,
) -> Solution:
    """Runs a second-order method from `params` until it has converged, failed, or spent its budget.

    It is pure: it may be jitted, and vmapped over starts, data or traced constants; a run that has ended no longer
    changes. Called with plain arrays it compiles once for each problem's functions, method, steps, shapes and set of
    tolerances given; the last 32 programs are kept.

    Args:
        problem: From `problem_from`, or `training.problem` for a network.
        method: A method, or its name such as "bfgs" or "levenberg_marquardt(mu=0.1)".
        params: Where to start: arrays of real numbers in any structure.
        steps: The largest number of steps.
        goal: F at or below it ends the run.
        gradient_tolerance: The run converges when the largest `|dF/dx_i|` is at most this, in the units of F and x.
            None tests shares, which do not depend on units, instead. For least squares, the share is the cosine of
            the residuals with each column of their Jacobian. Otherwise it is the change of F when a parameter changes
            by its own size, as a share of F; the square of the tolerance then bounds the predicted fall of F, also as
            a share of F (see `second_order.convergence`). Default: None, with a tolerance of 1e-5, or of the square
            root of the dtype's epsilon where that is smaller (1.5e-8 in float64).
        change_tolerance: The run converges when F changed by no more than this share of itself, in a step that was not
            expected to do better. It also converges when the step tried was no longer than this share of the
            parameters. None adds a condition, since a short step may be a damped one: F could fall by no more than
            epsilon^(2/3) of itself. Levenberg-Marquardt, whose Jacobian predicts the fall, adds it with a given
            tolerance, too. Default: None, with a tolerance of epsilon.
        evaluations: The largest number of evaluations of F, with its gradient or without; None for no limit.
        path: Whether to keep one row a step.

    Returns:
        The `Solution`, with its status, the reason in words, and advice.

    Raises:
        ValueError: F or its gradient is not finite at the start (inside `jit` the status is "diverged" instead), or an
            argument is out of range.
        TypeError: An argument is not a problem, a method, or parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> rosenbrock = optimizers.problem_from(lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> solution = optimizers.minimize(rosenbrock, "bfgs", jnp.array([-1.2, 1.0]))
        >>> solution.status, bool(jnp.abs(solution.params - 1).max() < 1e-3)
        ('gradient', True)
    """
    method, limits_of = checked_arguments(
        "minimize", method, steps, goal, gradient_tolerance, change_tolerance, evaluations
    )
    checks.boolean("minimize", "path", path)
    check_problem("minimize", problem)
    params = checked_params(method.name, params)
    flat = FlatProblem(problem, params)
    flat.check_start(f"{method.name}: params", params)
    limits = limits_of(flat.dtype)
    if not all(map(checks.is_concrete, jax.tree.leaves((problem, params, limits, method.constants)))):
        solution = run_to_end(method, steps, path, problem, params, *limits)
        # With jax_debug_nans every nan is an error; then rows after the end stay 0.
        keep_zeros = path is False or jax.config.jax_debug_nans
        return solution if keep_zeros else solution._replace(path=_nan_after_end(jnp, solution))
    for name, leaf in checks.by_path(params).items():
        checks.finite(f"{method.name}: params" + (f": {name}" if name else ""), leaf)
    data = problem.data, problem.bounds
    solution = _compiled(problem.functions, problem.name, method, steps, path)(data, params, *limits)
    if int(solution.ended) == DIVERGED and int(solution.steps) == 0:
        raise ValueError(
            f"{method.name}: params: {problem!r} is not finite at the start: F = {float(solution.value):g}, "
            f"largest |dF/dx_i| = {np.max(np.abs(np.asarray(solution.gradient))):g}; start elsewhere"
        )
    return solution._replace(path=_nan_after_end(np, solution)) if path else solution


def _nan_after_end(numpy: Any, solution: Solution) -> Path:
    """Returns the path with nan after the end; numpy: `jax.numpy`, or NumPy for concrete arrays."""
    rows = jax.tree.map(numpy.asarray, solution.path)
    after = numpy.arange(rows.value.shape[0], dtype=np.int32) >= numpy.asarray(solution.steps)

    def missing(x):
        return numpy.where(after, numpy.asarray(np.nan, x.dtype), x)

    return Path(*map(missing, rows[:3]), rows.passes)


# Arguments ------------------------------------------------------------------------------------------------------------


def checked_params(owner: str, params: Any) -> Any:
    """Returns the parameters as arrays.

    Raises TypeError for a leaf that is not an array of real numbers, ValueError where there is no number.
    """
    for name, leaf in checks.by_path(params).items():
        if not isinstance(leaf, bool | int | float | complex):
            checks.numeric(f"{owner}: params" + (f": {name}" if name else ""), leaf)
    params = jax.tree.map(jnp.asarray, params)
    check_params(owner, params)
    if not sum(leaf.size for leaf in jax.tree.leaves(params)):
        raise ValueError(f"{owner}: params: expected at least one number, got shapes {checks.shapes(params)}")
    return params


def checked_arguments(
    owner: str,
    method: SecondOrder | str,
    steps: int,
    goal: float | Array,
    gradient_tolerance: float | Array | None,
    change_tolerance: float | Array | None,
    evaluations: int | Array | None,
) -> tuple[SecondOrder, Callable[[Any], tuple[Array | None, ...]]]:
    """Returns the method, and the function dtype -> the limits as arrays, None for a default tolerance.

    Raises ValueError or TypeError for arguments that are refused.
    """
    method = _second_order(owner, method)
    checks.integer(owner, "steps", steps, 1)
    if checks.is_concrete(goal):
        checks.constant(owner, "goal", goal, lambda v: ~np.isnan(v), "a number")
    if evaluations is not None and checks.is_concrete(evaluations):
        checks.integer(owner, "evaluations", evaluations, 1)
    for name, value in (("gradient_tolerance", gradient_tolerance), ("change_tolerance", change_tolerance)):
        if value is not None:
            constant(owner, name, value)

    def limits_of(dtype) -> tuple[Array | None, ...]:
        end = float(jnp.finfo(dtype).max)
        finite = np.clip(goal, -end, end) if checks.is_concrete(goal) else goal
        most = np.iinfo(np.int32).max if evaluations is None else evaluations
        values = (finite, dtype), (gradient_tolerance, dtype), (change_tolerance, dtype), (most, np.int32)

        # NumPy's where possible: making JAX's takes a tenth of a short run
        def array(x, dtype):
            return (np if isinstance(x, int | float | np.generic) else jnp).asarray(x, dtype)

        return tuple(None if x is None else array(x, dtype) for x, dtype in values)

    return method, limits_of


def _second_order(owner: str, method: SecondOrder | str) -> SecondOrder:
    """Returns the method. Raises for a first-order method, and for one of another library."""
    if first_order.knows(method):
        raise ValueError(
            f"{owner}: {getattr(method, 'name', method)} is a first-order method, which `fit` runs; "
            f"accepted: {', '.join(names())}"
        )
    if not isinstance(method, str | SecondOrder):
        hint = ""
        if hasattr(method, "init") and hasattr(method, "update"):  # as optax's transformations have
            hint = "; for optax's, make an optimizer by optimizers.from_optax(...), which `fit` runs"
        raise TypeError(
            f"{owner}: method: expected one of {', '.join(names())}, by name or made, got {type(method).__name__}{hint}"
        )
    return get(method)


# Programs -------------------------------------------------------------------------------------------------------------


@functools.partial(cached, size=32)
def _compiled(functions: Any, name: str, method: SecondOrder, steps: int, path: bool) -> Callable:
    # One jit for each problem's functions, which are no argument of it: what JAX keeps of them is freed with it.
    return jax.jit(
        lambda data, params, *limits: run_to_end(
            method, steps, path, Problem(functions, data[0], name, data[1]), params, *limits
        )
    )


def run_to_end(
    method: SecondOrder, steps: int, path: bool, problem: Problem, params: Any, *limits: Array | None
) -> Solution:
    """Does what `minimize` does, without checks; rows of the path after the end are 0."""
    first = initial_state(method, steps, problem, params, *limits)
    column = jnp.zeros(steps, first.value.dtype)
    rows = Path(column, column, column, jnp.zeros(steps, jnp.int32)) if path else None
    start = Start(first.params, first.value)

    def running(carry):
        return carry[0].status == RUNNING

    def step(carry):
        before, rows = carry
        state = next_state(method, steps, problem, start, before, *limits)
        if path:
            row = Path(state.value, norm(state.gradient), state.length, state.counts.passes)
            rows = jax.tree.map(lambda column, x: lax.dynamic_update_index_in_dim(column, x, before.step, 0), rows, row)
        return state, rows

    state, rows = lax.while_loop(running, step, (first, rows))
    return solution_of(state, rows)


@precision.full
def initial_state(method: SecondOrder, steps: int, problem: Problem, params: Any, *limits: Array | None) -> State:
    """Returns the state at the start, with its status."""
    state = method.init(params, problem)
    start = Start(state.params, state.value)
    return state._replace(status=_status(state.status, method, problem, start, None, state, steps, *limits))


@precision.full
def next_state(
    method: SecondOrder, steps: int, problem: Problem, start: Start, before: State, *limits: Array | None
) -> State:
    """Returns the state after one step, with its status.

    limits: the goal, the gradient tolerance, the change tolerance, and the largest number of evaluations.
    """
    state = method.update(before, problem)
    status = status_after_step(method, problem, start, before, state, limits[2])
    return state._replace(status=_status(status, method, problem, start, before, state, steps, *limits))


def _status(
    status: Array,
    method: SecondOrder,
    problem: Problem,
    start: Start,
    before: State | None,
    state: State,
    steps: int,
    goal: Any,
    gradient_tolerance: Any,
    change_tolerance: Any,
    evaluations: Any,
) -> Array:
    """Returns the status: the method's own, or that of the limit that is met."""
    if gradient_tolerance is None:
        tolerance = min(float(jnp.finfo(state.value.dtype).eps) ** 0.5, 1e-5)
        converged = stationary(method, problem, start, before, state, tolerance)
    else:
        converged = jnp.max(jnp.abs(state.gradient)) <= gradient_tolerance
    status = jnp.where(converged, GRADIENT, status)
    status = method.verdict((state if before is None else before).memory, state.memory, status)
    spent = (state.step >= steps) | (state.counts.evaluations >= evaluations)
    status = jnp.where((status == RUNNING) & spent, BUDGET_SPENT, status)
    has_goal = goal > -largest(state.value.dtype)  # else F that falls without end would reach it
    status = jnp.where(has_goal & (state.value <= goal), GOAL, status)
    return jnp.where(state.status == DIVERGED, DIVERGED, status).astype(jnp.int32)
