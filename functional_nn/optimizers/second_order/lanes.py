"""Many starts at once: lanes of one compiled program, on all devices, refilled as they end."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from functional_nn import checks
from functional_nn.optimizers import first_order
from functional_nn.optimizers.second_order.method import (
    BUDGET_SPENT,
    RUNNING,
    SecondOrder,
    Solution,
    begun,
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
    goal: float | Array = -jnp.inf,
    gradient_tolerance: float | Array | None = None,
    change_tolerance: float | Array | None = None,
    evaluations: int | Array | None = None,
    block: int = 64,
    chunk: int = 25,
) -> Solution:
    """`minimize` from many starts in one compiled program: a `Solution` of lanes, in their order; `best` is the lowest.

    starts: parameters with a leading axis, one start a row, such as `jax.vmap(network.init)(keys)`. A lane that has
    ended stands still until, every `chunk` steps, it takes the next start; `block` lanes a device, on every device of
    this process (on a CPU, give JAX its cores: `jax.config.update("jax_num_cpu_devices", 2)`). Other arguments as
    `minimize`. A start that is not finite ends as "diverged". Its arrays are NumPy's; it keeps no path and no state.

    Cannot itself be traced: there, `vmap` minimize. Raises ValueError as `minimize`.
    """
    method, limits = settled(method, steps, goal, gradient_tolerance, change_tolerance, evaluations)
    block, chunk = checks.integer("restarts", "block", block, 1), checks.integer("restarts", "chunk", chunk, 1)
    starts = jax.tree.map(np.asarray, starts)
    first_order.check_params(method.name, starts)
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(starts)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"starts: expected a leading axis of the same length in every array, got {sorted(lengths)}; "
            "jax.vmap(network.init)(keys) makes them"
        )
    ((count,),) = lengths
    limits = limits(Flat(problem, starts).dtype)
    mesh = Mesh(np.array(jax.local_devices()), ("lanes",))
    width = mesh.size * min(block, -(-count // mesh.size))
    begin, advance = _compiled(method, steps, chunk, mesh)

    lanes = np.full(width, -1)  # the start that each lane has come from
    states, waiting, kept = None, iter(range(count)), None
    while True:
        free = lanes < 0
        lanes[free] = [next(waiting, -1) for _ in range(free.sum())]
        if (lanes < 0).all():
            return jax.tree.map(jnp.asarray, kept)
        rows = jax.tree.map(lambda x: x[np.maximum(lanes, 0)], starts)
        if states is None:
            shapes = jax.eval_shape(begin, problem, rows, *limits)
            states = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
            states = states._replace(status=np.full_like(states.status, BUDGET_SPENT))
        states = advance(problem, states, free & (lanes >= 0), rows, *limits)
        ended = (np.asarray(states.status) != RUNNING) & (lanes >= 0)
        if ended.any():
            found = jax.tree.map(np.asarray, solution(states, None)._replace(state=None))
            if kept is None:
                kept = jax.tree.map(lambda x: np.zeros((count, *x.shape[1:]), x.dtype), found)
            for whole, some in zip(jax.tree.leaves(kept), jax.tree.leaves(found), strict=True):
                whole[lanes[ended]] = some[ended]
            lanes[ended] = -1


@functools.partial(cached, size=64)
def _compiled(method: SecondOrder, steps: int, chunk: int, mesh: Mesh) -> tuple[Callable, Callable]:
    """begin(problem, starts, *limits) -> states; advance(problem, states, fresh, starts, *limits) -> states after at
    most `chunk` more steps, those begun anew that are fresh.
    """

    def begin(problem, starts, *limits):
        return jax.vmap(lambda params: begun(method, steps, problem, params, *limits))(starts)

    def advance(problem, states, fresh, starts, *limits):
        def lane(state, new, start):
            state = jax.tree.map(
                lambda a, b: jnp.where(new, a, b), begun(method, steps, problem, start, *limits), state
            )
            last = state.step + chunk
            return lax.while_loop(
                lambda state: (state.status == RUNNING) & (state.step < last),
                lambda state: stepped(method, steps, problem, state, *limits),
                state,
            )

        return jax.vmap(lane)(states, fresh, starts)

    here, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return begin, jax.jit(
        jax.shard_map(
            advance, mesh=mesh, in_specs=(whole, here, here, here, *(whole,) * 4), out_specs=here, check_vma=False
        )
    )
