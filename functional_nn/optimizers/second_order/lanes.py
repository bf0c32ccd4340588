"""Many starts in one compiled program, on all devices: one after another on each, or in lanes refilled as they end."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from functional_nn import checks, platforms
from functional_nn.optimizers.second_order.method import (
    BUDGET_SPENT,
    RUNNING,
    Begun,
    SecondOrder,
    Solution,
    begun,
    check_problem,
    checked_params,
    run_to_end,
    settled,
    solution,
    stepped,
)
from functional_nn.optimizers.second_order.problem import Flat, Problem
from functional_nn.registry import cached


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
    """`minimize` from many starts in one compiled program: a `Solution` of lanes, in their order; `best` is the lowest.

    starts: parameters with a leading axis, one start a row, such as `jax.vmap(network.init)(keys)`. They are shared out
    among the devices of this process (on a CPU, give JAX its cores: `jax.config.update("jax_num_cpu_devices", 2)`).
    block: lanes of a device that go side by side; one that has ended is not moved until, every `chunk` steps, it takes
    the next start. By default 1024 on accelerators and 1 on CPUs, one start after another, each to its own end: there
    a batch of small factorizations gains nothing over a loop. Other arguments as `minimize`. A start that is not finite
    ends as "diverged". No path and no state are kept.

    Cannot itself be traced: there, `vmap` minimize. Raises ValueError as `minimize`.
    """
    method, limits = settled("restarts", method, steps, goal, gradient_tolerance, change_tolerance, evaluations)
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
    flat = Flat(problem, starts)
    flat.check_start("restarts: starts", starts)
    limits = limits(flat.dtype)
    mesh, given = Mesh(np.array(devices), ("lanes",)), (problem.data, problem.bounds)
    block = min(block, -(-lengths.pop()[0] // mesh.size))  # no lane that never has a start
    if block == 1:
        return _one_by_one(
            _each(problem.functions, problem.name, method, steps, mesh), mesh.size, given, starts, limits
        )
    return _side_by_side(
        _lanes(problem.functions, problem.name, method, steps, chunk, mesh),
        mesh.size * block,
        given,
        starts,
        limits,
    )


_CALL = 16  # starts a device is given at once, so that Ctrl-C is heard in between


def _one_by_one(run: Callable, devices: int, given: tuple, starts: Any, limits: tuple) -> Solution:
    count = len(jax.tree.leaves(starts)[0])
    calls = -(-count // (devices * _CALL))
    size = devices * -(-count // (devices * calls))  # the same for every call, so that one program serves
    found = []
    for first in range(0, count, size):
        rows = np.minimum(np.arange(first, first + size), count - 1)
        some = run(given, jax.tree.map(lambda x, rows=rows: x[rows], starts), *limits)
        found.append(jax.tree.map(np.asarray, some))
    return jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts)[:count]), *found)


def _side_by_side(programs: tuple, width: int, given: tuple, starts: Any, limits: tuple) -> Solution:
    (begin, advance), count = programs, len(jax.tree.leaves(starts)[0])
    lanes = np.full(width, -1)  # the start that each lane has come from
    states, waiting, kept = None, iter(range(count)), None
    while True:
        free = lanes < 0
        lanes[free] = [next(waiting, -1) for _ in range(free.sum())]
        if (lanes < 0).all():
            return jax.tree.map(jnp.asarray, kept)
        rows = jax.tree.map(lambda x: x[np.maximum(lanes, 0)], starts)
        if states is None:
            shapes = jax.eval_shape(begin, given, rows, *limits)
            states = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
            states = states._replace(status=np.full_like(states.status, BUDGET_SPENT))
        states = advance(given, states, free & (lanes >= 0), rows, *limits)
        ended = (np.asarray(states.status) != RUNNING) & (lanes >= 0)
        if ended.any():
            found = jax.tree.map(np.asarray, _stateless(solution(states, None)))
            if kept is None:
                kept = jax.tree.map(lambda x: np.zeros((count, *x.shape[1:]), x.dtype), found)
            for whole, some in zip(jax.tree.leaves(kept), jax.tree.leaves(found), strict=True):
                whole[lanes[ended]] = some[ended]
            lanes[ended] = -1


def _stateless(found: Solution) -> Solution:
    return found._replace(state=None)


@functools.partial(cached, size=32)
def _each(functions: Any, name: str, method: SecondOrder, steps: int, mesh: Mesh) -> Callable:
    """(given, starts, *limits) -> Solution, each start run to its end before the next."""

    def run(given, starts, *limits):
        problem = Problem(functions, given[0], name, given[1])
        return lax.map(lambda start: _stateless(run_to_end(method, steps, False, problem, start, *limits)), starts)

    here, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(whole, here, *(whole,) * 4), out_specs=here, check_vma=False)
    )


@functools.partial(cached, size=32)
def _lanes(
    functions: Any, name: str, method: SecondOrder, steps: int, chunk: int, mesh: Mesh
) -> tuple[Callable, Callable]:
    """begin(given, starts, *limits) -> states; advance(given, states, fresh, starts, *limits) -> states after at
    most `chunk` more steps, those begun anew that are fresh.
    """

    def begin(given, starts, *limits):
        problem = Problem(functions, given[0], name, given[1])
        return jax.vmap(lambda params: begun(method, steps, problem, params, *limits))(starts)

    def advance(given, states, fresh, starts, *limits):
        problem = Problem(functions, given[0], name, given[1])

        def lane(state, new, start):
            first = begun(method, steps, problem, start, *limits)
            origin = Begun(first.params, first.value)
            state = jax.tree.map(lambda a, b: jnp.where(new, a, b), first, state)
            last = state.step + chunk
            return lax.while_loop(
                lambda state: (state.status == RUNNING) & (state.step < last),
                lambda state: stepped(method, steps, problem, origin, state, *limits),
                state,
            )

        return jax.vmap(lane)(states, fresh, starts)

    here, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return begin, jax.jit(
        jax.shard_map(
            advance, mesh=mesh, in_specs=(whole, here, here, here, *(whole,) * 4), out_specs=here, check_vma=False
        )
    )
