"""The loop over chunks of epochs in which a population is trained, on the host.

Between the calls of the compiled programs, ended members are dropped, halving takes place, checkpoints are saved and
progress is reported.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from functional_nn.training import checkpoints
from functional_nn.training.checkpoints import MADE_OF, Checkpoint, CheckpointError, Checkpoints
from functional_nn.training.configuration import describe, describe_factory, fingerprint, made_of
from functional_nn.training.group_training import GroupTraining
from functional_nn.training.interruption import checkpoint_to_resume, interruptible, stop_requested
from functional_nn.training.results import Population
from functional_nn.training.search import Halving


class Progress(NamedTuple):
    """The state of a population in training, as `fit_population` passes it to `on_chunk`.

    Attributes:
        epoch: The epochs done.
        epochs: The epochs in all.
        running: How many members are running.
        ended: How many members have ended.
        best: (member, its score) of the best so far, None before any score is known. The score is the monitored metric
            of halving, else the validation loss, or the training loss without validation data.
        updates_per_second: Of all members together, over the last chunk.
        seconds_left: For the epochs left of the running members, at this rate.

    Example:
        >>> import functional_nn as fnn
        >>> progress = fnn.training.Progress(5, 10, 3, 1, (2, 0.25), 1e4, 0.5)
        >>> f"{progress.epoch} of {progress.epochs} epochs, {progress.running} networks"
        '5 of 10 epochs, 3 networks'
    """

    epoch: int
    epochs: int
    running: int
    ended: int
    best: tuple[int, float] | None
    updates_per_second: float
    seconds_left: float


@dataclass(kw_only=True)
class PopulationTraining:
    """A population in training: its groups, the settings of the loop, and how far it has come.

    Attributes:
        epoch: The epochs done.
        stopped: "stopped" or "seconds" where the population was stopped before all members had ended, else None.
    """

    groups: list[GroupTraining]
    columns: dict[str, np.ndarray]
    epochs: int
    chunk: int
    halving: Halving | None
    checkpoint: Checkpoints | None
    on_chunk: Callable[[Progress], bool | None] | None
    shuffle: str
    key: Array
    epoch: int = 0
    stopped: str | None = None

    def run(self, resume: bool, deadline: float) -> None:
        """Trains until all members have ended, or until `time.perf_counter()` is beyond the deadline."""
        saved = None if self.checkpoint is None else self.saved(resume)
        if saved is None:
            for group in self.groups:
                group.begin_blocks()
        else:
            self.restore(*saved)
        chunks = 0
        with interruptible(self.checkpoint is not None) as interrupted:
            while self.epoch < self.epochs and (jax.process_count() > 1 or self.running) and self.stopped is None:
                began = time.perf_counter()
                updates = self.train_chunk()
                chunks += 1
                last = self.epoch >= self.epochs or not self.running
                due = self.checkpoint is not None and (self.checkpoint.due(chunks) or last)
                if due:
                    self.save()
                answer = None
                if self.on_chunk:
                    answer = self.on_chunk(self.progress(updates, time.perf_counter() - began))
                self.stopped = stop_requested(answer, time.perf_counter() > deadline)
                if self.checkpoint is not None and not due and (interrupted() or self.stopped):
                    self.save()
                if interrupted() and not last:
                    raise KeyboardInterrupt(f"after epoch {self.epoch}; saved in {self.checkpoint.folder}")
        for group in self.groups:
            group.copy_runs()
            if jax.process_count() > 1:
                group.exchange()

    def train_chunk(self) -> int:
        """Trains all groups up to the end of the chunk, or the next rung, and returns how many updates were made."""
        count = min(self.chunk, self.epochs - self.epoch, self.next_rung - self.epoch)
        updates = count * sum(len(group.running) * group.group.updates for group in self.groups)
        tables = [group.train(self.epoch, count) for group in self.groups]
        for group, own_tables in zip(self.groups, tables, strict=True):
            group.record(own_tables, self.epoch, count, self.epochs)
        self.epoch += count
        if self.halving is not None and self.epoch in self.halving.rungs and self.epoch < self.epochs:
            self.halve()
        for group in self.groups:
            group.drop_ended()
        return updates

    @property
    def members(self) -> int:
        """N, how many members there are."""
        return len(next(iter(self.columns.values())))

    @property
    def running(self) -> int:
        """How many members of this process have not ended."""
        return sum(len(group.running) for group in self.groups)

    @property
    def next_rung(self) -> int:
        """The next epoch after which members are left behind, or the last epoch."""
        rungs = self.halving.rungs if self.halving is not None else ()
        return min((rung for rung in rungs if rung > self.epoch), default=self.epochs)

    def latest(self, monitor: str) -> np.ndarray:
        """(N,), each member's score in its last epoch, lowest is best; nan for members that diverged, and for those of
        other processes.
        """
        scores = np.full(self.members, np.nan)
        for group in self.groups:
            scores[group.group.members] = group.latest(monitor)
        return -scores if monitor == "validation_accuracy" else scores

    def halve(self) -> None:
        """Ends the members that halving leaves behind."""
        running = np.zeros(self.members, bool)
        for group in self.groups:
            running[group.group.members[group.running]] = True
        scores = np.where(running, self.latest(self.halving.monitor), np.nan)
        if jax.process_count() > 1:
            every = multihost_utils.process_allgather(scores)  # nan except for each process's own
            scores = np.where(np.isnan(every).all(axis=0), np.nan, np.nanmax(np.nan_to_num(every, nan=-np.inf), axis=0))
        judged = np.flatnonzero(~np.isnan(scores))
        survivors = np.zeros(self.members, bool)
        survivors[judged] = self.halving.survivors(scores[judged]) if judged.size else False
        for group in self.groups:
            group.outrank(group.running[~survivors[group.group.members[group.running]]])

    def progress(self, updates: int, seconds: float) -> Progress:
        """The progress after a chunk of that many updates, which took `seconds`."""
        monitor = self.halving.monitor if self.halving else "validation_loss"
        if all(group.group.held_out is None for group in self.groups) and monitor != "training_loss":
            monitor = "training_loss"
        scores = self.latest(monitor)
        best = None
        if not np.isnan(scores).all():
            member = int(np.nanargmin(scores))
            best = member, float(-scores[member] if monitor == "validation_accuracy" else scores[member])
        left = sum(len(group.running) * group.group.updates for group in self.groups)
        rate = max(updates, 1) / seconds
        return Progress(
            epoch=self.epoch,
            epochs=self.epochs,
            running=self.running,
            ended=sum(len(group.own) for group in self.groups) - self.running,
            best=best,
            updates_per_second=rate,
            seconds_left=(self.epochs - self.epoch) * left / rate,
        )

    # Checkpoints: the names are those of the files

    def saved(self, resume: bool) -> tuple[int, Checkpoint] | None:
        """The checkpoint to continue from, and its epoch: of several processes the newest that all of them have."""
        if jax.process_count() == 1:
            return checkpoint_to_resume(self.checkpoint, resume)
        own = self.checkpoint.folder / f"process{jax.process_index()}"
        self.checkpoint = dataclasses.replace(self.checkpoint, folder=own)
        saved = checkpoint_to_resume(self.checkpoint, resume)
        common = int(multihost_utils.process_allgather(np.array(saved[0] if saved else 0)).min())
        return (common, self.checkpoint.at(common)) if common else None

    def configuration(self) -> dict[str, Any]:
        """The settings that a checkpoint must have been made with to be continued."""
        make_settings = self.groups[0].group.make_settings
        candidates, regularizer = make_settings.candidates, make_settings.regularizer
        return {
            "kind": "a population",
            "hyperparameters": {
                name: fingerprint(np.char.encode(c) if c.dtype.kind == "U" else c) for name, c in self.columns.items()
            },
            "members": self.members,
            "shuffle": self.shuffle,
            "halving": repr(self.halving),
            "optimizer": [describe_factory(factory) for factory in candidates],
            "regularizer": describe_factory(regularizer),
            MADE_OF: made_of(
                optimizer=[factory.make or factory.row for factory in candidates],
                regularizer=regularizer.make or regularizer.row,
            ),
            "process": jax.process_index(),
            "processes": jax.process_count(),
            "groups": {
                str(i): describe(
                    training.group.common, training.group.data.whole, training.group.held_out, training.plan_key
                )
                for i, training in enumerate(self.groups)
            },
        }

    def save(self) -> None:
        """Saves a checkpoint."""
        tree = {"groups": [group.to_save(self.epoch) for group in self.groups]}
        self.checkpoint.save(self.epoch, tree, self.configuration())

    def restore(self, epoch: int, saved: Checkpoint) -> None:
        """Continues from a checkpoint. Raises CheckpointError for one of other settings, or an inconsistent one."""
        checkpoints.check_config(saved, self.configuration())
        if epoch > self.epochs:
            raise ValueError(f"resume: the newest checkpoint is after epoch {epoch}, beyond epochs={self.epochs}")
        like = []
        for number, group in enumerate(self.groups):
            under = f"groups/{number}/packing/"
            packing = [np.zeros(np.shape(x), np.int64) for path, x in saved.leaves.items() if path.startswith(under)]
            like.append(group.saved_like(epoch, packing))
        tree = checkpoints.restore(saved, {"groups": like})
        for group, own in zip(self.groups, tree["groups"], strict=True):
            try:
                group.restore(own, epoch, self.epochs)
            except ValueError as error:
                raise CheckpointError(f"checkpoint {saved.path}: {error}") from None
        self.epoch = epoch

    def result(self, seconds: float) -> Population:
        """The trained population."""
        return Population.from_groups(
            self.columns,
            [group.result for group in self.groups],
            shuffle=self.shuffle,
            key=self.key,
            seconds=seconds,
            unended=self.stopped or "completed",
        )
