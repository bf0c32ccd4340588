"""How much memory a population's members take, and how many of them a device therefore trains at a time.

A group is trained in blocks: members side by side in one program, small enough for a CPU's caches or as large as an
accelerator's memory allows.
"""

import functools
import os
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from functional_nn import checks, platforms
from functional_nn.gradients import rules
from functional_nn.gradients.views import said_bytes
from functional_nn.training.epoch import start_run
from functional_nn.training.evaluation import copied_size, evaluation_block
from functional_nn.training.gradient import rule_of
from functional_nn.training.initial_parameters import parameter_shapes
from functional_nn.training.members import Group, SettingsFactory
from functional_nn.training.records import History, Run


class MemberMemory(NamedTuple):
    """Bytes that one member takes, estimated from shapes.

    Attributes:
        kept: Its state and its own data, as long as the population is trained.
        update: What one update reads and writes.
        epoch: What an epoch takes, validation included.
    """

    kept: int
    update: int
    epoch: int


def member_memory(group: Group) -> MemberMemory:
    """The bytes that one member of the group takes."""
    network, plan = group.network, group.common.plan
    rule = rule_of(group.common.gradient)
    params = jax.eval_shape(
        lambda params: rules.begin(rule, network, params, jax.random.key(0)), parameter_shapes(network)
    )
    run = jax.eval_shape(functools.partial(start_member, group.make_settings), _first_member(group.values), params)
    item = np.dtype(jax.tree.leaves(params)[0].dtype).itemsize
    examples, axes = group.data.examples, group.data.axes
    judged = 0
    if group.held_out is not None:
        judged = min(len(group.held_out.targets), evaluation_block(network, jax.tree.leaves(params)[0].dtype))
    widths, sizes, copied = network.trace_size, network.sizes, copied_size(network)
    own_columns = (axes.inputs == 0) * sum(sizes[name] for name, _ in network.inputs) + (axes.targets == 0) * sizes[
        network.output.name
    ]
    update = _bytes(run) + _bytes(params) + item * (plan.size or examples) * (3 * widths + 2 * copied)
    return MemberMemory(
        kept=_bytes(run) + item * examples * own_columns,
        update=update,
        epoch=update + item * judged * (widths + copied),
    )


def start_member(make_settings: SettingsFactory, values: Any, params: Any) -> Run:
    """A member's run before its first update."""
    return start_run(make_settings(values), params)


def _first_member(values: Any) -> Any:
    """The shapes of one member's values."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), values)


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def default_budget(mesh: Mesh) -> int:
    """Half of an accelerator's memory, or of the machine's, in bytes."""
    statistics = mesh.devices.flat[0].memory_stats() or {}
    whole = statistics.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // 2


def block_sizes(groups: list[Group], block: int | None, budget: int | None, mesh: Mesh, epochs: int) -> list[int]:
    """How many members of each group a device trains at a time. Raises ValueError if they do not fit the budget."""
    budget = default_budget(mesh) if budget is None else checks.integer("", "budget", budget, 1)
    block = block if block is None else checks.integer("", "block", block, 1)
    devices, platform = mesh.size, platforms.here()
    sharing = devices if platform.one_memory else 1
    estimates = [member_memory(group) for group in groups]
    members = sum(len(group.members) for group in groups)
    history = 8 * epochs * len(History._fields)
    data = max(_bytes(group.data.whole) for group in groups)
    kept = sum(
        len(group.members) * (estimate.kept + history) for group, estimate in zip(groups, estimates, strict=True)
    )
    sizes = []
    for group, estimate in zip(groups, estimates, strict=True):
        room, share = budget - data - kept, -(-len(group.members) // devices)
        fits = room // (sharing * estimate.epoch)
        least = min(share, block or 1)
        if least > fits:
            needed = data + kept + sharing * estimate.epoch * least
            over = f"take {said_bytes(needed)}, {said_bytes(needed - budget)} above the budget of {said_bytes(budget)}"
            if fits >= 1:
                raise ValueError(f"block: {least} members a device {over}; block={fits} fits")
            few = (budget - data - sharing * estimate.epoch) * members // kept
            raise ValueError(f"{members} members {over}; {f'{few} of them fit' if few > 0 else 'not even one fits'}")
        most = block or (fits if platform.lanes is None else min(platform.lanes // estimate.update + 1, fits))
        blocks = -(-share // most)
        sizes.append(-(-share // blocks))  # blocks as equal as possible
    return sizes
