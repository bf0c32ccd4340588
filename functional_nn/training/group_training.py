"""The training of one group: its members in blocks on the devices, and what is known of them on the host.

Letters: N members of the group, M lanes of a block, E epochs. A lane is one position in a block, where one member is
trained; the last block is filled with lanes that do nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from functional_nn import compiler, platforms
from functional_nn.rows import cached
from functional_nn.training import keys
from functional_nn.training.member_memory import start_member
from functional_nn.training.members import Group, SettingsFactory
from functional_nn.training.program import population_program
from functional_nn.training.records import DIVERGED, STOPPED, Batch, History, Run, fill_missing
from functional_nn.training.results import OUTRANKED, TrainedGroup


@dataclass
class _Block:
    """Members in training, one a lane. positions: each lane's member in the group, -1 for a lane that does nothing."""

    positions: np.ndarray
    run: Run
    values: Any
    data: Batch
    key: Array

    @property
    def used(self) -> np.ndarray:
        """Which lanes train a member."""
        return self.positions >= 0


class GroupTraining:
    """A group in training.

    members_per_device: how many are trained at a time on each device of the mesh. chunk: the epochs of a call. shared:
    whether all members see the same batches, drawn from `plan_key`.

    Attributes:
        own: The positions in the group of the members that this process trains.
        runs: Each member's run as it last was on the host, (N, ...); None before the first is copied.
        history: (E, N, ...); None before the first chunk.
        ended: (N,), how each member ended, 0 while it is running.
        epoch: (N,), the epochs each member has run.
    """

    def __init__(self, group: Group, members_per_device: int, chunk: int, mesh: Mesh, shared: bool, plan_key: Array):
        self.group, self.mesh, self.shared, self.plan_key = group, mesh, shared, plan_key
        self.size = members_per_device * mesh.size
        common = dataclasses.replace(group.common, columns=platforms.here().columns)
        make_settings = dataclasses.replace(group.make_settings, common=common)
        self.begin, self.advance = compiled_programs(make_settings, chunk, shared, group.data.axes, mesh)
        count, process = len(group.members), jax.process_index()
        self.own = np.arange(count)[process :: jax.process_count()]  # each process trains its share
        self.runs: Run | None = None
        self.history: History | None = None
        self.ended = np.zeros(count, np.int64)
        self.epoch = np.zeros(count, np.int64)
        self.blocks: list[_Block] = []
        self.held_out, self.key = self._to_devices((group.held_out, plan_key), split=False)
        self.shared_data: Batch | None = None  # the arrays that all members share, on the devices

    # What is running

    @property
    def running(self) -> np.ndarray:
        """The positions of this process's members that have not ended."""
        return self.own[self.ended[self.own] == 0]

    @property
    def result(self) -> TrainedGroup:
        """What became of the group."""
        return TrainedGroup(self.group, self.runs, self.history, self.ended, self.epoch)

    def latest(self, monitor: str) -> np.ndarray:
        """(N,), a metric in each member's last epoch; nan for those that diverged, or have not begun."""
        if self.history is None:
            return np.full(len(self.epoch), np.nan)
        at = np.maximum(self.epoch - 1, 0), np.arange(len(self.epoch))
        column = np.asarray(getattr(self.history, monitor)[at], np.float64)
        return np.where((self.ended != DIVERGED) & (self.epoch > 0), column, np.nan)

    # Blocks

    def begin_blocks(self) -> None:
        """Divides the members into blocks, each with its initial parameters."""

        def fresh(positions, values):
            return self.begin(self._to_devices(values), self._to_devices(self.group.initial(positions)))

        self.blocks = [self._block(positions, fresh) for positions in _divided(self.own, self.size)]

    def resume_blocks(self, packing: Sequence[np.ndarray] | None = None) -> None:
        """Divides the running members into blocks, from their runs on the host. packing: the positions of each block,
        by default as few blocks as possible.
        """
        packing = _divided(self.running, self.size) if packing is None else packing

        def kept(positions, values):
            return jax.tree.map(lambda x: x[positions], self.runs)

        self.blocks = [self._block(positions, kept) for positions in packing]

    def _block(self, positions: np.ndarray, runs: Callable[[np.ndarray, Any], Run]) -> _Block:
        """The block of these members; runs(positions, values) returns their runs. Filled up with its first member."""
        full = np.concatenate([positions, np.full(self.size - len(positions), positions[0])])
        unused = np.arange(self.size) >= len(positions)
        values = jax.tree.map(lambda v: v[full], self.group.values)
        run = runs(full, values)
        run = run._replace(ended=np.where(unused, DIVERGED, np.asarray(run.ended)).astype(np.int32))
        key = self.key
        if not self.shared:
            key = self._to_devices(jax.vmap(keys.plan)(self.group.keys[full]))
        return _Block(
            positions=np.where(unused, -1, full),
            run=self._to_devices(run),
            values=self._to_devices(values),
            data=self._data(full),
            key=key,
        )

    def _to_devices(self, tree: Any, split: bool = True) -> Any:
        """The arrays on the devices: split along their first axis, or whole on each."""
        spec = PartitionSpec(self.mesh.axis_names) if split else PartitionSpec()
        return jax.device_put(tree, NamedSharding(self.mesh, spec))

    def _data(self, positions: np.ndarray) -> Batch:
        """The data that the members at these positions train on. Arrays that all share are put on the devices once."""
        axes = self.group.data.axes
        if self.shared_data is None or 0 in axes:
            data = self.group.data_of(positions)
            placed = Batch(*(self._to_devices(x, axis == 0) for x, axis in zip(data[:3], axes, strict=False)))
            self.shared_data = self.shared_data or placed
        columns = zip(axes, self.shared_data, self.shared_data if 0 not in axes else placed, strict=True)
        return Batch(*(common if axis is None else fresh for axis, common, fresh in columns))

    # Epochs

    def train(self, first: int, count: int) -> list[History]:
        """Starts `count` epochs of every block. The tables that it returns may not be ready yet."""
        tables = []
        for block in self.blocks:
            block.run, table = self.advance(block.run, block.values, block.data, self.held_out, block.key, first, count)
            tables.append(table)
        return tables

    def record(self, tables: list[History], first: int, count: int, epochs: int) -> None:
        """Waits for the blocks and keeps their histories, and how their members ended."""
        for block, table in zip(self.blocks, tables, strict=True):
            positions = block.positions[block.used]
            table = jax.tree.map(lambda x, used=block.used: np.asarray(x)[:count, used], fill_missing(table))
            if self.history is None:
                self.history = _empty_history(table, epochs, len(self.group.members))
            for column, x in zip(jax.tree.leaves(self.history), jax.tree.leaves(table), strict=True):
                column[first : first + count, positions] = x
            ended, epoch = np.asarray(block.run.ended)[block.used], np.asarray(block.run.epoch)[block.used]
            running = self.ended[positions] == 0
            self.ended[positions] = np.where(running, ended, self.ended[positions])
            self.epoch[positions] = np.where(running, epoch, self.epoch[positions])
            for column in jax.tree.leaves(self.history):
                rows = column[first : first + count, positions]
                after_end = np.arange(first, first + count)[:, None] >= self.epoch[positions][None, :]
                rows[after_end] = _no_value(column.dtype)
                column[first : first + count, positions] = rows

    def copy_runs(self) -> None:
        """Copies every member's run to the host."""
        for block in self.blocks:
            run = jax.tree.map(lambda x, used=block.used: np.asarray(x)[used], block.run)
            if self.runs is None:
                self.runs = jax.tree.map(lambda x: np.zeros((len(self.group.members), *x.shape[1:]), x.dtype), run)
            for kept, x in zip(jax.tree.leaves(self.runs), jax.tree.leaves(run), strict=True):
                kept[block.positions[block.used]] = x

    def outrank(self, positions: np.ndarray) -> None:
        """Ends the members that halving leaves behind, in the state they are in."""
        self.ended[positions] = OUTRANKED
        for block in self.blocks:
            outranked = np.isin(block.positions, positions)
            if outranked.any():
                ended = np.where(outranked, DIVERGED, np.asarray(block.run.ended)).astype(np.int32)
                block.run = block.run._replace(ended=self._to_devices(ended))

    def drop_ended(self) -> None:
        """Packs the running members into fewer blocks where that saves one; else the blocks stay as they are."""
        if -(-len(self.running) // self.size) < len(self.blocks):
            self.copy_runs()
            self.resume_blocks()

    # Checkpoints: the names are those of the files

    def to_save(self, epoch: int) -> dict[str, Any]:
        """What a checkpoint after `epoch` epochs holds."""
        self.copy_runs()
        return {
            "runs": self.runs,
            "ended": self.ended,
            "epoch": self.epoch,
            "history": jax.tree.map(lambda x: x[:epoch], self.history),
            "packing": [block.positions[block.used] for block in self.blocks],
        }

    def saved_like(self, epoch: int, packing: list[np.ndarray]) -> dict[str, Any]:
        """The shapes of what `to_save` returns after `epoch` epochs."""
        self.begin_blocks()
        self.copy_runs()
        block = self.blocks[0]
        arguments = block.run, block.values, block.data, self.held_out, block.key, 0, 1
        table = fill_missing(jax.eval_shape(self.advance, *arguments)[1])
        members = len(self.group.members)
        history = jax.tree.map(lambda x: jax.ShapeDtypeStruct((epoch, members, *x.shape[2:]), x.dtype), table)
        return {"runs": self.runs, "ended": self.ended, "epoch": self.epoch, "history": history, "packing": packing}

    def restore(self, saved: dict[str, Any], epoch: int, epochs: int) -> None:
        """Continues from what was saved, in the same blocks where they fit. Raises ValueError if it is inconsistent."""
        ended, packing = saved["ended"], saved["packing"]
        running = self.own[ended[self.own] == 0]
        packed = np.concatenate([*packing, np.zeros(0, np.int64)])
        highest = STOPPED + len(self.group.common.stop)
        sound = (ended >= OUTRANKED).all() and (ended < highest).all() and (saved["epoch"] <= epoch).all()
        sound &= len(set(packed)) == len(packed) and set(running) <= set(packed) <= set(self.own)
        if not sound or any(len(positions) == 0 for positions in packing):
            raise ValueError("it is inconsistent: its members cannot have ended, or be in blocks, as it says")
        self.runs, self.ended, self.epoch = saved["runs"], ended, saved["epoch"]
        self.history = _empty_history(saved["history"], epochs, len(self.group.members))
        for column, x in zip(jax.tree.leaves(self.history), jax.tree.leaves(saved["history"]), strict=True):
            column[: len(x)] = x
        self.resume_blocks(packing if all(len(positions) <= self.size for positions in packing) else None)

    # Several processes

    def exchange(self) -> None:
        """Sends every process what the others trained."""
        count, processes = len(self.group.members), jax.process_count()
        filling = -(-count // processes) - len(self.own)  # all send equally many
        sent = np.concatenate([self.own, np.repeat(self.own[:1], filling)])
        columns = (self.runs, jax.tree.map(lambda x: np.moveaxis(x, 1, 0), self.history), self.ended, self.epoch)
        received = multihost_utils.process_allgather(jax.tree.map(lambda x: x[sent], columns))
        process, position = np.arange(count) % processes, np.arange(count) // processes
        runs, history, self.ended, self.epoch = jax.tree.map(lambda x: np.asarray(x)[process, position], received)
        self.runs, self.history = runs, jax.tree.map(lambda x: np.moveaxis(x, 0, 1), history)


def _divided(positions: np.ndarray, size: int) -> list[np.ndarray]:
    return [positions[at : at + size] for at in range(0, len(positions), size)]


def _no_value(dtype) -> float:
    """What a history holds where a member has run no epoch: nan, or 0 in integers."""
    return np.nan if np.issubdtype(dtype, np.inexact) else 0


def _empty_history(table: History, epochs: int, members: int) -> History:
    """A history (E, N, ...) with the columns of a table, without values."""
    return jax.tree.map(lambda x: np.full((epochs, members, *x.shape[2:]), _no_value(x.dtype), x.dtype), table)


@functools.partial(cached, size=64)
def compiled_programs(
    make_settings: SettingsFactory, chunk: int, shared: bool, axes: Batch, mesh: Mesh
) -> tuple[Callable, Callable]:
    """The programs that begin and advance a block, jitted; the same ones for the same settings."""
    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    data = Batch(*(split if axis == 0 else whole for axis in axes[:3]))
    begin = jax.vmap(functools.partial(start_member, make_settings))
    advance = jax.shard_map(
        population_program(make_settings.common, make_settings, chunk, shared, axes),
        mesh=mesh,
        in_specs=(split, split, data, whole, whole if shared else split, whole, whole),
        out_specs=(split, PartitionSpec(None, mesh.axis_names)),
        check_vma=False,
    )
    jit = functools.partial(jax.jit, compiler_options=compiler.options(platforms.name(mesh)))
    return jit(begin), jit(advance, donate_argnums=0)
