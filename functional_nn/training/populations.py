"""Populations: thousands of networks in one compiled program, over all devices of a mesh.

Letters: N members, M lanes of a block, E epochs. Members that share a compiled shape form a group (`members.py`). A
group is trained in blocks of lanes, side by side in one program (`population_program`), small enough for a CPU's
caches or as large as an accelerator's memory; `chunk` epochs a call. Between the calls live what belongs to the
outside: members that have ended are dropped, halving, checkpoints, progress.
"""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from functional_nn import checks, compiler, platforms
from functional_nn.gradients import rules
from functional_nn.gradients.views import said_bytes
from functional_nn.networks.network import Network
from functional_nn.networks.stored import Windows
from functional_nn.registry import cached
from functional_nn.training import checkpoints, keys, search
from functional_nn.training.checkpoints import MADE_OF, Checkpoint, CheckpointError, Checkpoints
from functional_nn.training.configuration import describe, describe_factory, fingerprint, made_of
from functional_nn.training.epoch import start_run
from functional_nn.training.evaluation import copied_size, evaluation_block
from functional_nn.training.gradient import rule_of
from functional_nn.training.interruption import checkpoint_to_resume, interruptible, stop_requested
from functional_nn.training.members import Group, Maker, grouped, shapes
from functional_nn.training.minibatches import BatchPlan
from functional_nn.training.program import population_program
from functional_nn.training.records import DIVERGED, STOPPED, Batch, History, Run, fill_missing
from functional_nn.training.results import OUTRANKED, Part, Population
from functional_nn.training.search import Halving


class Progress(NamedTuple):
    """Where a population is: epoch of epochs, members running and ended, the best so far, and what is left.

    best: (member, its score), None before there is one; updates_per_second: of all members together, over the last
    chunk; seconds_left: at this rate, of the epochs left for those that run.
    """

    epoch: int
    epochs: int
    running: int
    ended: int
    best: tuple[int, float] | None
    updates_per_second: float
    seconds_left: float


def fit_population(
    network: Network | Callable[..., Network],
    loss: Any,
    optimizer: Any,
    hyperparameters: Mapping[str, Any],
    data: tuple | Windows,
    *,
    key: Array,
    epochs: int,
    validation: tuple | Windows | None = None,
    weights: Array | None = None,
    class_weights: Any = None,
    plan: BatchPlan | None = None,
    regularizer: Any = None,
    stop: Any = (),
    gradient: Any = "manual",
    rule: Any = "exact",
    correct: Callable | None = None,
    track: Any = (),
    augment: Any = (),
    shuffle: Literal["shared", "independent"] = "shared",
    static: Sequence[str] = (),
    pad: bool = False,
    halving: Halving | None = None,
    chunk: int = 10,
    block: int | None = None,
    budget: int | None = None,
    mesh: Mesh | None = None,
    checkpoint: Checkpoints | None = None,
    resume: bool = False,
    on_chunk: Callable[[Progress], bool | None] | None = None,
    seconds: float | None = None,
) -> Population:
    """Trains N members at once: `fit` for each row of `hyperparameters`, a dict of arrays (N,), `grid` or the like.

    data: (inputs, targets), or `fnn.windows(...)`, as in `fit`, as are validation, weights, class_weights, plan,
    regularizer, stop, gradient, rule, correct, track and augment.
    hyperparameters may name
      - what `optimizer` takes: it is a bare name ("adam"), a function (`lambda learning_rate: ...`), or {name: either}
        for a race, in which "optimizer" is a hyperparameter and numbers go to all methods that take them;
      - what `regularizer` takes, likewise ("l2" takes strength);
      - "rule", words as `fit` takes them ("exact", "feedback_alignment", "noisy(0.1)"), and what these take where a
      word
        is a bare name, or `rule` a function (`lambda sigma: rules.noisy(sigma)`); a member's seed is its rule's, too,
        so that members of other seeds have other random matrices;
      - what `network` takes, where it is a function: `lambda width, depth: fnn.multilayer(...)`;
      - "seed" of the member; "batch_size" (0: all examples); "initial_scale", which multiplies the initial weights;
        "examples", how many of the training examples it sees, and "subset", which random ones; "label_noise", the share
        of its targets that are wrong (of numeric targets: noise in standard deviations).
    Numbers of optimizer and regularizer are traced, so that all settings are one program; words, and the names in
    `static`, are compiled in. Members of other batch sizes, numbers of examples or networks are programs of their own;
    pad=True makes networks that differ in the widths of hidden layers one program, narrow ones filled up with zeros.

    A member's key is `key`, with its seed folded in where it has one. shuffle: "shared", the same batches (and dropped
    neurons, and augmented inputs) for all members, the controlled comparison, drawn from `key`; or "independent", from
    the member's own.
    Every member is what `fit` gives alone, to rounding: `Population.solo(member)` runs it, `drift(member)` compares.

    halving: `search.successive_halving(...)`. chunk: epochs a call of the compiled program. block: lanes a device and
    call, by default what suits it; budget: bytes of memory, by default half of the machine's, or of the accelerator's.
    mesh: the devices, by default all of this process; members are padded to fill them. With several processes
    (`jax.distributed.initialize`) each trains its part, and all get the whole result. checkpoint:
    `checkpoints.keep(folder)`, saved after chunks; resume=True goes on from its newest. Ctrl-C then saves and raises
    KeyboardInterrupt. on_chunk(Progress) is called after every chunk; where it gives True the population stops there,
    as it does after the first chunk that ends beyond `seconds`.

    Raises ValueError or TypeError, before anything is compiled, for hyperparameters of unequal lengths, unknown names,
    values that are refused (saying which member's), and a block beyond the memory budget; CheckpointError for
    checkpoints of other settings.
    """
    began = time.perf_counter()
    checks.prng_key("key", key)
    checks.integer("", "epochs", epochs, 1)
    checks.integer("", "chunk", chunk, 1)
    checks.one_of("fit_population", "shuffle", shuffle, ("shared", "independent"))
    for name, value, kind in (
        ("halving", halving, Halving),
        ("checkpoint", checkpoint, Checkpoints),
        ("mesh", mesh, Mesh),
    ):
        if not (value is None or isinstance(value, kind)):
            raise TypeError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
    if seconds is not None:
        seconds = checks.constant("fit_population", "seconds", seconds, *checks.POSITIVE)
    if not (on_chunk is None or callable(on_chunk)):
        raise TypeError(f"on_chunk: expected a function of Progress, got {type(on_chunk).__name__}")
    if not all(
        map(checks.is_concrete, jax.tree.leaves((hyperparameters, data, weights, class_weights, validation, key)))
    ):
        raise ValueError("fit_population is not pure and cannot be traced by jit, vmap or grad; use training.pure_fit")
    if resume and checkpoint is None:
        raise ValueError("resume: expected checkpoint=checkpoints.keep(folder) to resume from")
    data = (data, None) if isinstance(data, Windows) else data
    if not (isinstance(data, tuple | list) and len(data) == 2):
        given = f"{type(data).__name__} of {len(data)}" if hasattr(data, "__len__") else type(data).__name__
        raise TypeError(f"data: expected a pair (inputs, targets), got {given}")
    columns = search.normalized(hyperparameters)
    mesh = _mesh(mesh)
    settings = {
        "loss": loss,
        "stop": stop,
        "gradient": gradient,
        "correct": correct,
        "track": track,
        "augment": augment,
    }
    groups = grouped(
        network,
        optimizer,
        regularizer,
        columns,
        tuple(data),
        validation,
        weights=(weights, class_weights),
        epochs=epochs,
        key=key,
        plan=plan,
        rule=rule,
        settings=settings,
        static=static,
        pad=pad,
    )
    if halving is not None:
        _check_halving(halving, epochs, validation)
    if min(len(group.ids) for group in groups) < jax.process_count():
        raise ValueError(
            f"{jax.process_count()} processes: expected at least as many members of each program, got "
            f"{min(len(group.ids) for group in groups)}"
        )
    plan_key = keys.plan(key)
    with platforms.aimed_at(mesh):
        lanes_of = planned(groups, block, budget, mesh, epochs)
        trained = [
            _Lanes(group, own, min(chunk, epochs), mesh, shuffle == "shared", plan_key)
            for group, own in zip(groups, lanes_of, strict=True)
        ]
        population = _Training(trained, columns, epochs, chunk, halving, checkpoint, on_chunk, shuffle, key)
        population.run(resume, math.inf if seconds is None else began + seconds)
    return population.result(time.perf_counter() - began)


# Memory ---------------------------------------------------------------------------------------------------------------


def _mesh(mesh: Mesh | None) -> Mesh:
    if mesh is None:
        return Mesh(np.array(jax.local_devices()), ("members",))
    foreign = [device for device in mesh.devices.flat if device.process_index != jax.process_index()]
    if foreign:
        raise ValueError(
            "mesh: a population is divided among processes, each of which lays its part over its own devices; expected "
            f"a mesh of jax.local_devices(), got {foreign[0]} of process {foreign[0].process_index}"
        )
    return Mesh(mesh.devices, mesh.axis_names)  # whatever its axes' types


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def lane_bytes(group: Group) -> tuple[int, int, int]:
    """What one member keeps, what an update goes through, and what an epoch takes, in bytes: estimates from shapes."""
    network, plan = group.network, group.make.common.plan
    rule = rule_of(group.make.common.gradient)
    params = jax.eval_shape(lambda params: rules.begin(rule, network, params, jax.random.key(0)), shapes(network))
    run = jax.eval_shape(functools.partial(_start, group.make), _first_lane(group.values), params)
    item = np.dtype(jax.tree.leaves(params)[0].dtype).itemsize
    examples, own = group.data.examples, group.data.axes
    judged = 0
    if group.held_out is not None:
        judged = min(len(group.held_out.targets), evaluation_block(network, jax.tree.leaves(params)[0].dtype))
    widths, sizes, copied = network.trace_size, network.sizes, copied_size(network)
    own_columns = (own.inputs == 0) * sum(sizes[name] for name, _ in network.inputs) + (own.targets == 0) * sizes[
        network.output.name
    ]
    update = _bytes(run) + _bytes(params) + item * (plan.size or examples) * (3 * widths + 2 * copied)
    return _bytes(run) + item * examples * own_columns, update, update + item * judged * (widths + copied)


def _start(make: Maker, values, params) -> Run:
    return start_run(make(values), params)


def _first_lane(values: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), values)


def default_budget(mesh: Mesh) -> int:
    """Half of an accelerator's memory, or of the machine's."""
    statistics = mesh.devices.flat[0].memory_stats() or {}
    whole = statistics.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // 2


def planned(groups: list[Group], block: int | None, budget: int | None, mesh: Mesh, epochs: int) -> list[int]:
    """How many lanes of each group a device trains at a time. Raises ValueError where they do not fit the budget."""
    budget = default_budget(mesh) if budget is None else checks.integer("", "budget", budget, 1)
    block = block if block is None else checks.integer("", "block", block, 1)
    devices, suited = mesh.size, platforms.here()
    sharing = devices if suited.one_memory else 1
    sizes = [lane_bytes(group) for group in groups]
    members = sum(len(group.ids) for group in groups)
    history = 8 * epochs * len(History._fields)
    data = max(_bytes(group.data.whole) for group in groups)
    kept = sum(len(group.ids) * (own + history) for group, (own, _, _) in zip(groups, sizes, strict=True))
    lanes_of = []
    for group, (_, update, working) in zip(groups, sizes, strict=True):
        room, share = budget - data - kept, -(-len(group.ids) // devices)
        fits = room // (sharing * working)
        asked = min(share, block or 1)
        if asked > fits:
            needed = data + kept + sharing * working * asked
            over = f"take {said_bytes(needed)}, {said_bytes(needed - budget)} above the budget of {said_bytes(budget)}"
            if fits >= 1:
                raise ValueError(f"block: {asked} lanes a device {over}; block={fits} fits")
            few = (budget - data - sharing * working) * members // kept
            raise ValueError(f"{members} members {over}; {f'{few} of them fit' if few > 0 else 'not even one fits'}")
        most = block or (fits if suited.lanes is None else min(suited.lanes // update + 1, fits))
        blocks = -(-share // most)
        lanes_of.append(-(-share // blocks))  # as even as it goes
    return lanes_of


def _check_halving(halving: Halving, epochs: int, validation: Any) -> None:
    if halving.rungs[-1] >= epochs:
        raise ValueError(f"halving: the last rung must come before the last epoch, {epochs}, got {halving.rungs[-1]}")
    if validation is None and halving.monitor != "training_loss":
        raise ValueError(f"halving: {halving.monitor} needs validation=(inputs, targets)")


# Training -------------------------------------------------------------------------------------------------------------


@dataclass
class _Block:
    """Lanes in training: `ids` says whose place of the group each is, -1 for those that only fill up."""

    ids: np.ndarray
    run: Run
    values: Any
    data: Batch
    key: Array


class _Lanes:
    """A group, its blocks on the devices, and what is known of its members on the host."""

    def __init__(self, group: Group, lanes_a_device: int, length: int, mesh: Mesh, shared: bool, plan_key: Array):
        self.group, self.length, self.mesh, self.shared, self.plan_key = group, length, mesh, shared, plan_key
        self.size = lanes_a_device * mesh.size
        common = dataclasses.replace(group.make.common, columns=platforms.here().columns)
        make = dataclasses.replace(group.make, common=common)
        self.begin, self.advance = _programs(make, length, shared, group.data.axes, mesh)
        count, process = len(group.ids), jax.process_index()
        self.own = np.arange(count)[process :: jax.process_count()]  # each process trains its part
        self.runs: Run | None = None  # (N, ...) on the host, as they last were
        self.history: History | None = None  # (E, N, ...)
        self.ended = np.zeros(count, np.int64)
        self.epoch = np.zeros(count, np.int64)
        self.blocks: list[_Block] = []
        self.held_out, self.key = self.place((group.held_out, plan_key), False)
        self.common: Batch | None = None  # what all members' data have in common

    def place(self, tree: Any, axis: bool = True) -> Any:
        spec = PartitionSpec(self.mesh.axis_names) if axis else PartitionSpec()
        return jax.device_put(tree, NamedSharding(self.mesh, spec))

    def block(self, ids: np.ndarray, runs: Callable[[np.ndarray, Any], Run]) -> _Block:
        """These places in lanes; runs(places, values) gives each one's Run. A block is filled up with its first."""
        full = np.concatenate([ids, np.full(self.size - len(ids), ids[0])])
        filling = np.arange(self.size) >= len(ids)
        values = jax.tree.map(lambda v: v[full], self.group.values)
        run = runs(full, values)
        run = run._replace(ended=np.where(filling, DIVERGED, np.asarray(run.ended)).astype(np.int32))
        key = self.key
        if not self.shared:
            key = self.place(jax.vmap(keys.plan)(self.group.keys[full]))
        return _Block(np.where(filling, -1, full), self.place(run), self.place(values), self.data(full), key)

    def data(self, places: np.ndarray) -> Batch:
        """What the members at these places train on; what they have in common is placed once."""
        own = self.group.data.axes
        if self.common is None or 0 in own:
            data = self.group.data.of(places, self.group.keys, self.group.make.common.loss.targets == "signs")
            placed = Batch(*(self.place(x, axis == 0) for x, axis in zip(data[:3], own, strict=False)))
            self.common = self.common or placed
        shared = zip(own, self.common, self.common if 0 not in own else placed, strict=True)
        return Batch(*(common if axis is None else fresh for axis, common, fresh in shared))

    def begin_blocks(self) -> None:
        def fresh(places, values):
            return self.begin(self.place(values), self.place(self.group.initial(places)))

        self.blocks = [self.block(ids, fresh) for ids in _divided(self.own, self.size)]

    def resume_blocks(self, packing: Sequence[np.ndarray] | None = None) -> None:
        """Blocks of the members that go on, from their runs on the host."""
        going = self.own[self.ended[self.own] == 0]
        packing = _divided(going, self.size) if packing is None else packing
        self.blocks = [self.block(ids, lambda at, _: jax.tree.map(lambda x: x[at], self.runs)) for ids in packing]

    def train(self, first: int, count: int) -> list[History]:
        """Starts `count` epochs of every block; what is given back is not ready yet."""
        tables = []
        for one in self.blocks:
            one.run, table = self.advance(one.run, one.values, one.data, self.held_out, one.key, first, count)
            tables.append(table)
        return tables

    def take(self, tables: list[History], first: int, count: int, epochs: int) -> None:
        """Waits for the blocks and keeps what they report."""
        for one, table in zip(self.blocks, tables, strict=True):
            at = one.ids >= 0
            places = one.ids[at]
            table = jax.tree.map(lambda x, at=at: np.asarray(x)[:count, at], fill_missing(table))
            if self.history is None:
                self.history = _empty(table, epochs, len(self.group.ids))
            for column, x in zip(jax.tree.leaves(self.history), jax.tree.leaves(table), strict=True):
                column[first : first + count, places] = x
            ended = np.asarray(one.run.ended)[at]
            running = self.ended[places] == 0
            self.ended[places] = np.where(running, ended, self.ended[places])
            self.epoch[places] = np.where(running, np.asarray(one.run.epoch)[at], self.epoch[places])
            for column in jax.tree.leaves(self.history):  # what a member has not run is no number
                rows, missing = column[first : first + count, places], _missing(column.dtype)
                late = np.arange(first, first + count)[:, None] >= self.epoch[places][None, :]
                rows[late] = missing
                column[first : first + count, places] = rows

    def harvest(self) -> None:
        """Copies every lane's run to the host."""
        for one in self.blocks:
            at = one.ids >= 0
            run = jax.tree.map(lambda x, at=at: np.asarray(x)[at], one.run)
            if self.runs is None:
                self.runs = jax.tree.map(lambda x: np.zeros((len(self.group.ids), *x.shape[1:]), x.dtype), run)
            for kept, x in zip(jax.tree.leaves(self.runs), jax.tree.leaves(run), strict=True):
                kept[one.ids[at]] = x

    def outrank(self, places: np.ndarray) -> None:
        """Members that halving leaves behind: they end here, frozen as they are."""
        self.ended[places] = OUTRANKED
        for one in self.blocks:
            gone = np.isin(one.ids, places)
            if gone.any():
                ended = np.where(gone, DIVERGED, np.asarray(one.run.ended)).astype(np.int32)
                one.run = one.run._replace(ended=self.place(ended))

    def drop(self) -> None:
        """Takes the ended out of the lanes where that saves a block; else they stay as they are."""
        going = int((self.ended[self.own] == 0).sum())
        if -(-going // self.size) < len(self.blocks):
            self.harvest()
            self.resume_blocks()

    @property
    def updates(self) -> int:
        return self.group.make.common.plan.updates(self.group.data.examples)

    def to_save(self, epoch: int) -> dict[str, Any]:
        self.harvest()
        return {
            "runs": self.runs,
            "ended": self.ended,
            "epoch": self.epoch,
            "history": jax.tree.map(lambda x: x[:epoch], self.history),
            "packing": [one.ids[one.ids >= 0] for one in self.blocks],
        }

    def saved_like(self, epoch: int, blocks: list[np.ndarray]) -> dict[str, Any]:
        """The shapes of what `to_save` gives after `epoch` epochs."""
        self.begin_blocks()
        self.harvest()
        one = self.blocks[0]
        table = fill_missing(
            jax.eval_shape(self.advance, one.run, one.values, one.data, self.held_out, one.key, 0, 1)[1]
        )
        members = len(self.group.ids)
        history = jax.tree.map(lambda x: jax.ShapeDtypeStruct((epoch, members, *x.shape[2:]), x.dtype), table)
        return {"runs": self.runs, "ended": self.ended, "epoch": self.epoch, "history": history, "packing": blocks}

    def restore(self, saved: dict[str, Any], epoch: int, epochs: int) -> None:
        """Goes on from what was saved, in the same lanes where there are as many. Raises ValueError for nonsense."""
        ended, packing, going = saved["ended"], saved["packing"], self.own[saved["ended"][self.own] == 0]
        packed = np.concatenate([*packing, np.zeros(0, np.int64)])
        highest = STOPPED + len(self.group.make.common.stop)
        sound = (ended >= OUTRANKED).all() and (ended < highest).all() and (saved["epoch"] <= epoch).all()
        sound &= len(set(packed)) == len(packed) and set(going) <= set(packed) <= set(self.own)
        if not sound or any(len(ids) == 0 for ids in packing):
            raise ValueError("its members cannot have ended, or stand in lanes, as it says")
        self.runs, self.ended, self.epoch = saved["runs"], ended, saved["epoch"]
        self.history = _empty(saved["history"], epochs, len(self.group.ids))
        for column, x in zip(jax.tree.leaves(self.history), jax.tree.leaves(saved["history"]), strict=True):
            column[: len(x)] = x
        self.resume_blocks(packing if all(len(ids) <= self.size for ids in packing) else None)


def _divided(ids: np.ndarray, size: int) -> list[np.ndarray]:
    return [ids[at : at + size] for at in range(0, len(ids), size)]


def _missing(dtype) -> float:
    return np.nan if np.issubdtype(dtype, np.inexact) else 0


def _empty(table: History, epochs: int, members: int) -> History:
    return jax.tree.map(lambda x: np.full((epochs, members, *x.shape[2:]), _missing(x.dtype), x.dtype), table)


@functools.partial(cached, size=64)
def _programs(make: Maker, length: int, shared: bool, axes: Batch, mesh: Mesh) -> tuple[Callable, Callable]:
    """The compiled programs, the same ones for the same settings."""
    member, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def laid(axis):
        return member if axis == 0 else whole

    begin = jax.vmap(functools.partial(_start, make))
    advance = jax.shard_map(
        population_program(make.common, make, length, shared, axes),
        mesh=mesh,
        in_specs=(member, member, Batch(*map(laid, axes[:3])), whole, whole if shared else member, whole, whole),
        out_specs=(member, PartitionSpec(None, mesh.axis_names)),
        check_vma=False,
    )
    jit = functools.partial(jax.jit, compiler_options=compiler.options(platforms.name(mesh)))
    return jit(begin), jit(advance, donate_argnums=0)


class _Training:
    """The loop over chunks, on the host."""

    def __init__(self, trained, columns, epochs, chunk, halving, checkpoint, on_chunk, shuffle, key):
        self.trained: list[_Lanes] = trained
        self.columns, self.epochs, self.chunk, self.halving = columns, epochs, chunk, halving
        self.checkpoint, self.on_chunk, self.shuffle, self.key = checkpoint, on_chunk, shuffle, key
        self.count = len(next(iter(columns.values())))
        self.epoch = 0
        self.asked: str | None = None  # why it stopped before all had ended

    def run(self, resume: bool, until: float) -> None:
        saved = None
        if self.checkpoint is not None:
            saved = self.begun(resume)
        if saved is None:
            for one in self.trained:
                one.begin_blocks()
        else:
            self.restore(*saved)
        chunks = 0
        with interruptible(self.checkpoint is not None) as interrupted:
            while self.epoch < self.epochs and (jax.process_count() > 1 or self.running) and self.asked is None:
                began = time.perf_counter()
                count = min(self.chunk, self.epochs - self.epoch, self.next_rung - self.epoch)
                working = [(one, int((one.ended[one.own] == 0).sum())) for one in self.trained]
                tables = [(one, one.train(self.epoch, count)) for one, _ in working]
                for one, own in tables:
                    one.take(own, self.epoch, count, self.epochs)
                self.epoch += count
                if self.halving is not None and self.epoch in self.halving.rungs and self.epoch < self.epochs:
                    self.halve()
                for one in self.trained:
                    one.drop()
                chunks += 1
                last = self.epoch >= self.epochs or not self.running
                due = self.checkpoint is not None and (self.checkpoint.due(chunks) or last)
                if due:
                    self.save()
                told = None
                if self.on_chunk:
                    updates = count * sum(own * one.updates for one, own in working)
                    told = self.on_chunk(self.progress(updates, time.perf_counter() - began))
                self.asked = stop_requested(told, time.perf_counter() > until)
                if self.checkpoint is not None and not due and (interrupted() or self.asked):
                    self.save()
                if interrupted() and not last:
                    raise KeyboardInterrupt(f"after epoch {self.epoch}; saved in {self.checkpoint.folder}")
        for one in self.trained:
            one.harvest()
        if jax.process_count() > 1:
            self.exchange()

    def begun(self, resume: bool) -> tuple[int, Checkpoint] | None:
        """Where to go on from: the newest checkpoint, of several processes the newest that all of them have."""
        if jax.process_count() == 1:
            return checkpoint_to_resume(self.checkpoint, resume)
        own = self.checkpoint.folder / f"process{jax.process_index()}"
        self.checkpoint = dataclasses.replace(self.checkpoint, folder=own)
        saved = checkpoint_to_resume(self.checkpoint, resume)
        common = int(multihost_utils.process_allgather(np.array(saved[0] if saved else 0)).min())
        return (common, self.checkpoint.at(common)) if common else None

    @property
    def running(self) -> int:
        return sum(int((one.ended[one.own] == 0).sum()) for one in self.trained)

    @property
    def next_rung(self) -> int:
        rungs = self.halving.rungs if self.halving is not None else ()
        return min((rung for rung in rungs if rung > self.epoch), default=self.epochs)

    def latest(self, monitor: str) -> np.ndarray:
        """(N,), each member's score in its last epoch, lowest is best; nan for the diverged, and other processes'."""
        scores = np.full(self.count, np.nan)
        for one in self.trained:
            if one.history is not None:
                at = np.maximum(one.epoch - 1, 0), np.arange(len(one.epoch))
                column = np.asarray(getattr(one.history, monitor)[at], np.float64)
                column = -column if monitor == "validation_accuracy" else column
                scores[one.group.ids] = np.where((one.ended != DIVERGED) & (one.epoch > 0), column, np.nan)
        return scores

    def halve(self) -> None:
        going = np.zeros(self.count, bool)
        for one in self.trained:
            going[one.group.ids[one.own]] = one.ended[one.own] == 0
        scores = np.where(going, self.latest(self.halving.monitor), np.nan)
        if jax.process_count() > 1:
            every = multihost_utils.process_allgather(scores)  # nan but for each process's own
            scores = np.where(np.isnan(every).all(axis=0), np.nan, np.nanmax(np.nan_to_num(every, nan=-np.inf), axis=0))
        judged = np.flatnonzero(~np.isnan(scores))
        survivors = np.zeros(self.count, bool)
        survivors[judged] = self.halving.survivors(scores[judged]) if judged.size else False
        for one in self.trained:
            own = one.own[one.ended[one.own] == 0]
            one.outrank(own[~survivors[one.group.ids[own]]])

    def progress(self, updates: int, seconds: float) -> Progress:
        monitor = self.halving.monitor if self.halving else "validation_loss"
        if all(one.group.held_out is None for one in self.trained) and monitor != "training_loss":
            monitor = "training_loss"
        scores = self.latest(monitor)
        best = None
        if not np.isnan(scores).all():
            member = int(np.nanargmin(scores))
            best = member, float(-scores[member] if monitor == "validation_accuracy" else scores[member])
        left = sum(int((one.ended[one.own] == 0).sum()) * one.updates for one in self.trained)
        rate = max(updates, 1) / seconds
        running = self.running
        ended = sum(len(one.own) for one in self.trained) - running
        return Progress(self.epoch, self.epochs, running, ended, best, rate, (self.epochs - self.epoch) * left / rate)

    def configuration(self) -> dict[str, Any]:
        """What a checkpoint must have been made with to be continued."""
        first = self.trained[0].group.make
        return {
            "kind": "a population",
            "hyperparameters": {
                name: fingerprint(np.char.encode(c) if c.dtype.kind == "U" else c) for name, c in self.columns.items()
            },
            "members": self.count,
            "shuffle": self.shuffle,
            "halving": repr(self.halving),
            "optimizer": [describe_factory(factory) for factory in first.candidates],
            "regularizer": describe_factory(first.regularizer),
            MADE_OF: made_of(
                optimizer=[factory.make or factory.row for factory in first.candidates],
                regularizer=first.regularizer.make or first.regularizer.row,
            ),
            "process": jax.process_index(),
            "processes": jax.process_count(),
            "groups": {
                str(i): describe(one.group.make.common, one.group.data.whole, one.group.held_out, one.plan_key)
                for i, one in enumerate(self.trained)
            },
        }

    def save(self) -> None:
        tree = {"groups": [one.to_save(self.epoch) for one in self.trained]}
        self.checkpoint.save(self.epoch, tree, self.configuration())

    def restore(self, epoch: int, saved: Checkpoint) -> None:
        checkpoints.check_config(saved, self.configuration())
        if epoch > self.epochs:
            raise ValueError(f"resume: the newest checkpoint is after epoch {epoch}, beyond epochs={self.epochs}")
        like = []
        for place, one in enumerate(self.trained):
            under = f"groups/{place}/packing/"
            packed = [np.zeros(np.shape(x), np.int64) for path, x in saved.leaves.items() if path.startswith(under)]
            like.append(one.saved_like(epoch, packed))
        tree = checkpoints.restore(saved, {"groups": like})
        for one, own in zip(self.trained, tree["groups"], strict=True):
            try:
                one.restore(own, epoch, self.epochs)
            except ValueError as error:
                raise CheckpointError(f"checkpoint {saved.path}: {error}") from None
        self.epoch = epoch

    def exchange(self) -> None:
        """Every process gets what the others trained."""
        for one in self.trained:
            count, processes = len(one.group.ids), jax.process_count()
            missing = -(-count // processes) - len(one.own)  # all send as many
            mine = np.concatenate([one.own, np.repeat(one.own[:1], missing)])
            columns = (one.runs, jax.tree.map(lambda x: np.moveaxis(x, 1, 0), one.history), one.ended, one.epoch)
            sent = jax.tree.map(lambda x, mine=mine: x[mine], columns)
            every = jax.tree.map(np.asarray, multihost_utils.process_allgather(sent))
            turn, place = np.arange(count) % processes, np.arange(count) // processes
            every = jax.tree.map(lambda x, at=(turn, place): x[at], every)
            runs, history, one.ended, one.epoch = every
            one.runs, one.history = runs, jax.tree.map(lambda x: np.moveaxis(x, 0, 1), history)

    def result(self, seconds: float) -> Population:
        parts = [Part(one.group, one.runs, one.history, one.ended, one.epoch) for one in self.trained]
        return Population.of(self.columns, parts, self.shuffle, self.key, seconds, self.asked or "completed")
