"""Many starts in one compiled program, on all devices: each device runs them in turn, or several side by side.

A place is one of the runs that a device makes side by side; when its run has ended, the next start takes the place.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from functional_nn import checks, platforms
from functional_nn.optimizers.second_order.method import SecondOrder
from functional_nn.optimizers.second_order.minimization import (
    checked_arguments,
    checked_params,
    initial_state,
    next_state,
    run_to_end,
)
from functional_nn.optimizers.second_order.problem import FlatProblem, Problem, check_problem
from functional_nn.optimizers.second_order.solution import Solution, solution_of
from functional_nn.optimizers.second_order.state import BUDGET_SPENT, RUNNING, Start
from functional_nn.rows import cached


def restarts(
    problem: Problem,
    method: SecondOrder | str,
    starts: Any,
    *,
    steps: int = 1000,
    goal: float | Array = -np.inf,
    gradient_tolerance: float | Array | None = None,
    change_tolerance: float | Array | None = None,
    evaluations: int | Array | None = None,
    block: int | None = None,
    chunk: int = 25,
) -> Solution:
    """Runs `minimize` from many starts in one compiled program and returns all solutions, in the order of the starts.

    The starts are divided among the devices of this process (on a CPU, make its cores devices:
    `jax.config.update("jax_num_cpu_devices", 2)`). A start that is not finite ends as "diverged".

    Args:
        problem: As in `minimize`.
        method: As in `minimize`.
        starts: Parameters with a leading axis, one start a row, such as `jax.vmap(network.init)(keys)`.
        steps: As in `minimize`.
        goal: As in `minimize`.
        gradient_tolerance: As in `minimize`.
        change_tolerance: As in `minimize`.
        evaluations: As in `minimize`, for each run.
        block: The number of runs that a device makes side by side. The default is 1024 on accelerators, and 1 on CPUs,
            where a batch of small factorizations gains nothing over a loop: each run is made to its end before the
            next.
        chunk: With several runs side by side, the number of steps after which runs that have ended are replaced by the
            next starts.

    Returns:
        A `Solution` in which each array has a leading axis; `best` is the lowest. It has no path and no state.

    Raises:
        ValueError: As `minimize`, and for arrays of starts without a common leading axis.
        TypeError: As `minimize`; it cannot be traced itself: inside `jit`, use `vmap` of `minimize`.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum((x**2 - 1) ** 2 + 0.1 * x))
        >>> solutions = optimizers.restarts(problem, "newton", jnp.array([[1.5], [-1.5]]))
        >>> solutions.status.tolist(), round(float(solutions.best.params[0]), 3)
        (['gradient', 'gradient'], -1.012)
    """
    method, limits_of = checked_arguments(
        "restarts", method, steps, goal, gradient_tolerance, change_tolerance, evaluations
    )
    check_problem("restarts", problem)
    devices = jax.local_devices()
    if block is None:
        block = platforms.suited(devices[0].platform).starts
    block, chunk = checks.integer("restarts", "block", block, 1), checks.integer("restarts", "chunk", chunk, 1)
    starts = jax.tree.map(np.asarray, checked_params(f"restarts: {method.name}", starts))
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(starts)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"restarts: starts: expected a leading axis of the same length in every array, got {sorted(lengths)}; "
            "jax.vmap(network.init)(keys) makes them"
        )
    flat = FlatProblem(problem, starts)
    flat.check_start("restarts: starts", starts)
    limits = limits_of(flat.dtype)
    mesh, data = Mesh(np.array(devices), ("lanes",)), (problem.data, problem.bounds)
    block = min(block, -(-lengths.pop()[0] // mesh.size))  # no place without a start
    if block == 1:
        program = _in_turn_program(problem.functions, problem.name, method, steps, mesh)
        return _in_turn(program, mesh.size, data, starts, limits)
    programs = _side_by_side_programs(problem.functions, problem.name, method, steps, chunk, mesh)
    return _side_by_side(programs, mesh.size * block, data, starts, limits)


_CALL = 16  # starts that a device gets in one call, so that Ctrl-C is noticed in between


def _in_turn(program: Callable, devices: int, data: tuple, starts: Any, limits: tuple) -> Solution:
    count = len(jax.tree.leaves(starts)[0])
    calls = -(-count // (devices * _CALL))
    size = devices * -(-count // (devices * calls))  # the same for every call, so that one program serves
    solutions = []
    for first in range(0, count, size):
        rows = np.minimum(np.arange(first, first + size), count - 1)
        some = program(data, jax.tree.map(lambda x, rows=rows: x[rows], starts), *limits)
        solutions.append(jax.tree.map(np.asarray, some))
    return jax.tree.map(lambda *some: jnp.asarray(np.concatenate(some)[:count]), *solutions)


def _side_by_side(programs: tuple, width: int, data: tuple, starts: Any, limits: tuple) -> Solution:
    (begin, advance), count = programs, len(jax.tree.leaves(starts)[0])
    places = np.full(width, -1)  # the start from which the run in each place came; -1 for a free place
    states, waiting, solutions = None, iter(range(count)), None
    while True:
        free = places < 0
        places[free] = [next(waiting, -1) for _ in range(free.sum())]
        if (places < 0).all():
            return jax.tree.map(jnp.asarray, solutions)
        rows = jax.tree.map(lambda x: x[np.maximum(places, 0)], starts)
        if states is None:
            shapes = jax.eval_shape(begin, data, rows, *limits)
            states = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
            states = states._replace(status=np.full_like(states.status, BUDGET_SPENT))
        states = advance(data, states, free & (places >= 0), rows, *limits)
        ended = (np.asarray(states.status) != RUNNING) & (places >= 0)
        if ended.any():
            some = jax.tree.map(np.asarray, _stateless(solution_of(states, None)))
            if solutions is None:
                solutions = jax.tree.map(lambda x: np.zeros((count, *x.shape[1:]), x.dtype), some)
            for whole, new in zip(jax.tree.leaves(solutions), jax.tree.leaves(some), strict=True):
                whole[places[ended]] = new[ended]
            places[ended] = -1


def _stateless(solution: Solution) -> Solution:
    return solution._replace(state=None)


@functools.partial(cached, size=32)
def _in_turn_program(functions: Any, name: str, method: SecondOrder, steps: int, mesh: Mesh) -> Callable:
    """Returns `(data, starts, *limits) -> Solution`, in which each run is made to its end before the next."""

    def run(data, starts, *limits):
        problem = Problem(functions, data[0], name, data[1])
        return lax.map(lambda start: _stateless(run_to_end(method, steps, False, problem, start, *limits)), starts)

    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(whole, rows, *(whole,) * 4), out_specs=rows, check_vma=False)
    )


@functools.partial(cached, size=32)
def _side_by_side_programs(
    functions: Any, name: str, method: SecondOrder, steps: int, chunk: int, mesh: Mesh
) -> tuple[Callable, Callable]:
    """Returns two functions.

    `begin(data, starts, *limits)` returns states; `advance(data, states, fresh, starts, *limits)` returns the states
    after at most `chunk` more steps, where the places in `fresh` first begin at their starts.
    """

    def begin(data, starts, *limits):
        problem = Problem(functions, data[0], name, data[1])
        return jax.vmap(lambda params: initial_state(method, steps, problem, params, *limits))(starts)

    def advance(data, states, fresh, starts, *limits):
        problem = Problem(functions, data[0], name, data[1])

        def advance_run(state, new, params):
            first = initial_state(method, steps, problem, params, *limits)
            start = Start(first.params, first.value)
            state = jax.tree.map(lambda a, b: jnp.where(new, a, b), first, state)
            last = state.step + chunk
            return lax.while_loop(
                lambda state: (state.status == RUNNING) & (state.step < last),
                lambda state: next_state(method, steps, problem, start, state, *limits),
                state,
            )

        return jax.vmap(advance_run)(states, fresh, starts)

    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return begin, jax.jit(
        jax.shard_map(
            advance, mesh=mesh, in_specs=(whole, rows, rows, rows, *(whole,) * 4), out_specs=rows, check_vma=False
        )
    )
