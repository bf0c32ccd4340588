"""What surrounds the compiled program of one `fit`: its history, saving, reporting and stopping between two calls."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from functional_nn.optimizers.second_order import STATUSES
from functional_nn.training import logs
from functional_nn.training.checkpoints import Checkpoint, CheckpointError, Checkpoints, check_config, restore
from functional_nn.training.interruption import checkpoint_to_resume, interruptible, stop_requested
from functional_nn.training.records import STOPPED, History, Run, Table, fill_missing
from functional_nn.training.settings import Settings
from functional_nn.training.streams import Place


class Session:
    """One call of `fit`, seen from outside the compiled program.

    Attributes:
        history: the rows so far.
        stopped: one of `interruption.STOP_REQUESTS` where the run was asked to stop, else None.
    """

    def __init__(
        self,
        epochs: int,
        chunk: int,
        on_chunk: Callable[[Any, History], bool | None] | None,
        late: Callable[[], bool],
        checkpoint: Checkpoints | None,
        resume: bool,
        sinks: Sequence[logs.Sink] = (),
    ):
        self.epochs, self.chunk, self.on_chunk, self.late = epochs, chunk, on_chunk, late
        self.checkpoint, self.resume, self.sinks = checkpoint, resume, sinks
        self.history, self.stopped = Table(), None
        self._config: dict[str, Any] = {}
        self._saved: tuple[Place, Checkpoint] | None = None
        self._measured: tuple[str, ...] = ()
        self._chunks = self._logged = 0
        self._interrupted: Callable[[], bool] = lambda: False

    def open(self, config: Callable[[], dict[str, Any]], place: Callable[[int], Place]) -> None:
        """Opens the checkpoints, before anything is compiled.

        Args:
            config: returns what the run is made of, as `configuration.describe` does.
            place: maps a checkpoint's number to where the run then was.
        """
        if self.checkpoint is None:
            return
        self._config = config()
        found = checkpoint_to_resume(self.checkpoint, self.resume)
        if found is None:
            return
        number, checkpoint = found
        check_config(checkpoint, self._config)
        at = place(number)
        if at > (self.epochs, 0):
            raise ValueError(f"resume: the newest checkpoint is after epoch {at[0]}, beyond epochs={self.epochs}")
        self._saved = at, checkpoint

    def restore(
        self, settings: Settings, tree: dict[str, Any], row: Callable[[], History]
    ) -> tuple[Place, dict[str, Any]] | None:
        """Returns where the run continues, and from what; None where it starts from the beginning.

        Args:
            settings: the run's.
            tree: the arrays at the start of a run, which those of the checkpoint must be like.
            row: returns the shapes of one epoch's history, as the compiled program has it.
        """
        if self._saved is None:
            return None
        (at, checkpoint), self._saved = self._saved, None
        shapes = row()
        self._measured = logs.measured_columns(shapes)
        history = jax.tree.map(lambda x: jax.ShapeDtypeStruct((at[0], *x.shape), x.dtype), fill_missing(shapes))
        tree = restore(checkpoint, tree | {"history": history})
        run = tree["run"]
        if int(run.epoch) != at[0] or not -len(STATUSES) < int(run.ended) < STOPPED + len(settings.stop):
            raise CheckpointError(f"checkpoint {checkpoint.path}: its run cannot have ended as it says")
        self.history.add(tree.pop("history"))
        rows, self._logged = logs.rows_of(self.history.rows, self._measured), at[0]
        for sink in self.sinks:
            if hasattr(sink, "resume"):
                sink.resume(rows)
        return at, tree

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Ctrl-C inside is noted until the next chunk is done, where there are checkpoints."""
        with interruptible(self.checkpoint is not None) as self._interrupted:
            yield

    def continues(self, run: Run) -> bool:
        """Returns True until the run has ended, all epochs are done, or it was asked to stop."""
        return not self._has_ended(run) and self.stopped is None

    def add(self, rows: History, count: int) -> None:
        """Appends the first `count` rows of a compiled program's table to the history."""
        self._measured = logs.measured_columns(rows)
        self.history.add(jax.tree.map(lambda column: np.asarray(column)[:count], fill_missing(rows)))

    def after_chunk(
        self,
        run: Run,
        number: int,
        tree: dict[str, Any],
        *,
        reports: bool = True,
        trouble: Exception | None = None,
        partly: str = "",
    ) -> None:
        """Logs, saves, reports, and finds out whether the run is to stop.

        If a sink raises an error, the run is saved first, where there are checkpoints.

        Args:
            run: as it is now.
            number: the checkpoint's, if one is saved.
            tree: what is saved, besides the history.
            reports: whether on_chunk is called.
            trouble: an error of reading the next chunk of data; raised here after saving, unless the run stops anyway.
            partly: what was done beyond the last epoch, in words.
        """
        self._chunks += 1
        ends, failure = self._has_ended(run), self._log()
        due = self.checkpoint is not None and (self.checkpoint.due(self._chunks) or ends or failure is not None)
        if due:
            self._save(number, tree)
        if failure is not None:
            raise failure
        answer = self.on_chunk(run.state, self.history.rows) if self.on_chunk and reports else None
        self.stopped = None if ends else stop_requested(answer, self.late())
        if self.checkpoint is not None and not due and (self._interrupted() or self.stopped or trouble):
            self._save(number, tree)
        if ends:
            return
        if self._interrupted():
            raise KeyboardInterrupt(f"after epoch {int(run.epoch)}{partly}; saved in {self.checkpoint.folder}")
        if trouble is not None and self.stopped is None:
            raise trouble

    def _has_ended(self, run: Run) -> bool:
        return bool(int(run.ended)) or int(run.epoch) >= self.epochs

    def _log(self) -> Exception | None:
        """Sends the new rows to every sink; returns the first error that one of them raised."""
        if self._logged == self.history.count:
            return None
        new = jax.tree.map(lambda x: x[self._logged :], self.history.rows)
        rows, self._logged, failure = logs.rows_of(new, self._measured), self.history.count, None
        for sink in self.sinks:
            try:
                sink(rows)
            except Exception as error:
                error.add_note(f"while logging to {sink!r} after epoch {self.history.count}")
                failure = failure or error
        return failure

    def _save(self, number: int, tree: dict[str, Any]) -> None:
        if jax.process_index() == 0:  # every process has the same
            self.checkpoint.save(number, tree | {"history": self.history.rows}, self._config)
