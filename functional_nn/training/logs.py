"""Telemetry: where `fit(log=...)` sends the numbers of each epoch while it trains.

A sink is a function of a sequence of rows, `{column: number}`, one for each new epoch: "epoch", "training_loss",
"training_accuracy", "gradient_norm", "validation_loss" and "validation_accuracy" where they are measured, then what is
tracked, by name. `fit` calls its sinks between chunks of epochs, outside the compiled program: after every `chunk`
epochs, or, for data in chunks, after every epoch. Any function is a sink. An object may also have these methods:

- `check(resume)` is called before anything is compiled. It raises an error if the sink cannot be used.
- `resume(rows)` is called when a run continues from a checkpoint, with all rows up to there.
- `close()` is called once at the end, also when `fit` raises an error.

Ready-made sinks are `csv` and `function` here, and `functional_nn.lab.events.tensorboard`. In a run of several
processes only the first one calls its sinks.

>>> import jax, numpy as np, functional_nn as fnn
>>> network, losses = fnn.multilayer((2, 1), ("linear",)), []
>>> def log(rows):
...     losses.extend(row["training_loss"] for row in rows)
>>> data, settings = (np.eye(2), np.ones((2, 1))), {"key": jax.random.key(0), "epochs": 3}
>>> result = fnn.fit(network, "mean_square_error", "gd(0.1)", *data, **settings, log=log)
>>> len(losses), losses[0] > losses[2]
(3, True)
"""

import contextlib
import csv as _csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from functional_nn import checks
from functional_nn.training.records import History

__all__ = ["Csv", "Sink", "csv", "function"]

Row = Mapping[str, int | float]


@runtime_checkable
class Sink(Protocol):
    """A function of new rows. It may also have `check(resume)`, `resume(rows)` and `close()`; see `training.logs`.

    Example:
        >>> from functional_nn.training import logs
        >>> isinstance(logs.function(print), logs.Sink)
        True
    """

    def __call__(self, rows: Sequence[Row], /) -> Any:
        """Takes the rows of the epochs since the last call."""


class Csv:
    """A sink that writes a CSV file. Made by `csv`.

    Example:
        >>> from functional_nn.training import logs
        >>> logs.csv("history.csv")
        <log to history.csv>
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: Any = None
        self._columns: list[str] = []

    def __repr__(self) -> str:
        return f"<log to {self.path}>"

    def check(self, resume: bool) -> None:
        """Raises FileExistsError if the file exists and the run does not resume, or it is no log of `fit`.

        Args:
            resume: whether `fit` was called with resume=True.
        """
        if not self.path.exists():
            if not self.path.absolute().parent.is_dir():
                raise FileNotFoundError(
                    f"log: {str(self.path.parent)!r} is not a folder; make it, or give another path"
                )
            return
        if not resume:
            raise FileExistsError(
                f"log: {str(self.path)!r} exists; give another path, remove it, or continue the run that wrote it "
                "with resume=True"
            )
        with open(self.path, newline="", encoding="utf-8") as file:
            header = next(_csv.reader(file), [])
        if header[:2] != ["epoch", "training_loss"] and header:
            raise FileExistsError(f"log: {str(self.path)!r} exists and is not a log that fit wrote; give another path")

    def resume(self, rows: Sequence[Row]) -> None:
        """Rewrites the file with the rows up to the checkpoint. Later rows are dropped.

        Args:
            rows: of all epochs before the checkpoint.
        """
        self.close()
        self._open()
        self(rows)

    def __call__(self, rows: Sequence[Row]) -> None:
        """Writes rows and flushes the file.

        Args:
            rows: of the new epochs.
        """
        if not rows:
            return
        if self._file is None:
            self._open()
        writer = _csv.writer(self._file, lineterminator="\n")
        if not self._columns:
            self._columns = list(rows[0])
            writer.writerow(self._columns)
        writer.writerows([row[name] for name in self._columns] for row in rows)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._columns = None, []

    def _open(self) -> None:
        self._file = open(self.path, "w", newline="", encoding="utf-8")


def csv(path: str | os.PathLike[str]) -> Csv:
    """Writes the rows to a CSV file, flushed after each chunk of epochs.

    The file is made when the first rows come. A run that continues with `resume=True` keeps the rows up to its
    checkpoint and drops later ones, so that the file is the one that a run without a stop would have written.

    Args:
        path: of the file, in a folder that exists.

    Returns:
        A sink for `fit(log=...)`. `fit` raises FileExistsError if the file exists and the run does not resume.

    Raises:
        TypeError: if `path` is not a path.

    Example:
        >>> import pathlib, tempfile, jax, numpy as np, functional_nn as fnn
        >>> from functional_nn.training import logs
        >>> network, data = fnn.multilayer((2, 1), ("linear",)), (np.eye(2), np.ones((2, 1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "history.csv")
        ...     settings = {"key": jax.random.key(0), "epochs": 3, "log": logs.csv(path)}
        ...     result = fnn.fit(network, "mean_square_error", "gd(0.1)", *data, **settings)
        ...     lines = path.read_text().splitlines()
        >>> lines[0], len(lines)
        ('epoch,training_loss,gradient_norm', 4)
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"logs.csv: path must be a path, got {type(path).__name__}")
    return Csv(Path(path))


def function(of_row: Callable[[Row], Any]) -> Sink:
    """Calls a function with each new row, such as `print` or `wandb.log`.

    A function of all new rows at once is a sink as it is.

    Args:
        of_row: a function of one row, `{column: number}`. What it returns is not used.

    Returns:
        A sink for `fit(log=...)`.

    Raises:
        TypeError: if `of_row` is not callable.

    Example:
        >>> import jax, numpy as np, functional_nn as fnn
        >>> from functional_nn.training import logs
        >>> network, data = fnn.multilayer((2, 1), ("linear",)), (np.eye(2), np.ones((2, 1)))
        >>> log, epochs = logs.function(lambda row: epochs.append(row["epoch"])), []
        >>> settings = {"key": jax.random.key(0), "epochs": 3, "log": log}
        >>> result = fnn.fit(network, "mean_square_error", "gd(0.1)", *data, **settings)
        >>> epochs
        [1, 2, 3]
    """
    if not callable(of_row):
        raise TypeError(f"logs.function: expected a function of a row, got {type(of_row).__name__}")

    def sink(rows: Sequence[Row]) -> None:
        for row in rows:
            of_row(row)

    return sink


# What fit asks of them ------------------------------------------------------------------------------------------------


Log = Sink | Sequence[Sink]


def check_sinks(log: Log) -> tuple[Sink, ...]:
    """Returns the sinks of `fit(log=...)`, one or several. Raises TypeError for what is none."""
    sinks = tuple(log) if isinstance(log, tuple | list) else (log,)
    for sink in sinks:
        if not callable(sink) or isinstance(sink, type):
            raise TypeError(
                f"log: expected a function of rows, such as logs.csv(path), or several of them, got {sink!r}"
            )
    return sinks


@contextlib.contextmanager
def opened(sinks: Sequence[Sink], resume: bool) -> Iterator[Sequence[Sink]]:
    """Yields the sinks, checked, and closes all of them at the end. No sinks in processes other than the first."""
    if jax.process_index() != 0:
        yield ()
        return
    with contextlib.ExitStack() as stack:
        for sink in sinks:
            if hasattr(sink, "check"):
                sink.check(resume)
        for sink in sinks:
            if hasattr(sink, "close"):
                stack.callback(sink.close)
        yield sinks


def measured_columns(row: History) -> tuple[str, ...]:
    """Returns the columns that a compiled program measures: those of its table that are not None."""
    return tuple(name for name, column in row._asdict().items() if name != "tracked" and column is not None)


def rows_of(history: History, measured: Sequence[str]) -> list[Row]:
    """Returns a history as rows: the measured columns, and every scalar that is tracked, nested ones as "name/key"."""
    columns = {name: getattr(history, name) for name in measured}
    for path, column in checks.by_path(history.tracked).items():
        if np.ndim(column) == 1:
            columns[f"tracked/{path}" if path in columns else path] = column
    lists = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, numbers, strict=True)) for numbers in zip(*lists, strict=True)]
