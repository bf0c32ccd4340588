"""The members of a sweep: read from its folder, or trained once by the server's process.

Letters: N members, E epochs.
"""

import csv
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.training import Population

HELD_OUT, TRAINING = "held-out loss", "training loss"


@dataclass(frozen=True, eq=False)
class Members:
    """A population, whose arrays are never changed.

    columns: {hyperparameter that varies: (N,)}; loss (N,), after the last epoch, held-out if that was measured;
    accuracy (N,) or None; lost (N,): diverged, or without a finite loss; curves {HELD_OUT or TRAINING: (E, N)}: members
    that stopped keep their last value, those that diverged are nan from then on.
    """

    source: str
    columns: dict[str, np.ndarray]
    loss: np.ndarray
    accuracy: np.ndarray | None
    lost: np.ndarray
    curves: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.loss)


def members_of(source: str, names: list[str], table: dict[str, np.ndarray], history: dict[str, np.ndarray]) -> Members:
    """The members in a population's table and history; names: of its hyperparameters."""
    diverged, epochs = table["status"] == "diverged", np.maximum(table["epochs"], 1)
    measured = {HELD_OUT: "validation_loss", TRAINING: "training_loss"}
    curves = {}
    for title, name in measured.items():
        losses = np.asarray(history[name], np.float64)
        if np.isfinite(losses).any():
            last = np.where(diverged, len(losses), epochs) - 1
            rows = np.minimum(np.arange(len(losses))[:, None], last[None, :])
            curves[title] = np.take_along_axis(losses, rows, axis=0)
    monitor = next(iter(curves), HELD_OUT)
    loss = np.asarray(table[measured[monitor]], np.float64)
    accuracy = np.asarray(table["validation_accuracy"], np.float64)
    columns = {name: table[name] for name in names if len(np.unique(table[name])) > 1}
    return Members(
        source,
        columns or {"member": np.arange(len(loss))},
        loss,
        accuracy if np.isfinite(accuracy).any() else None,
        diverged | ~np.isfinite(loss),
        curves or {HELD_OUT: np.full((1, len(loss)), np.nan)},
    )


def read(folder: Path) -> Members:
    """Reads a sweep's folder, as `functional-nn sweep` writes it. Raises ValueError if it is not one, or damaged."""
    folder = Path(folder)
    files = {name: folder / name for name in ("results.csv", "history.npz")}
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a sweep's folder: it does not exist")
    for name, path in files.items():
        if not path.is_file():
            raise ValueError(f"{str(folder)!r} is not a sweep's folder: it has no {name}")
    try:
        names, table = _table(files["results.csv"])
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{files['results.csv']}: not a sweep's table ({error})") from None
    try:
        with files["history.npz"].open("rb") as file, np.load(file, allow_pickle=False) as archive:
            history = {name: archive[name] for name in ("training_loss", "validation_loss")}
        for name, losses in history.items():
            if losses.ndim != 2 or losses.shape[1] != len(table["member"]) or not len(losses):
                raise ValueError(f"{name} expected shape (epochs, {len(table['member'])}), got {losses.shape}")
            if losses.dtype.kind != "f":
                raise ValueError(f"{name} expected numbers, got {losses.dtype}")
        if table["epochs"].max() > len(losses):
            raise ValueError(f"expected {table['epochs'].max()} epochs, as in results.csv, got {len(losses)}")
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged files
        raise ValueError(f"{files['history.npz']}: not this sweep's history ({error})") from None
    return members_of(str(folder), names, table, history)


def _table(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The hyperparameters' names, and every column."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    needed = ("member", "status", "epochs", "training_loss", "validation_loss", "validation_accuracy")
    missing = [name for name in needed if name not in header]
    if missing:
        raise ValueError(f"the column {missing[0]!r} is missing")
    if not rows:
        raise ValueError("it has no members")
    uneven = [i for i, row in enumerate(rows, start=2) if len(row) != len(header)]
    if uneven:
        raise ValueError(f"line {uneven[0]}: expected {len(header)} values, got {len(rows[uneven[0] - 2])}")
    table = {name: _column(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}
    if table["epochs"].dtype.kind != "i":
        raise ValueError("epochs: expected integers")
    for name in needed[3:]:
        if table[name].dtype.kind == "U":
            raise ValueError(f"{name}: expected numbers")
    return header[header.index("member") + 1 : header.index("status")], table


def _column(values: tuple[str, ...]) -> np.ndarray:
    """Integers, else numbers, else words."""
    for kind in (np.int64, np.float64):
        try:
            return np.array(values).astype(kind)
        except ValueError:
            continue
    return np.array(values)


def train() -> Population:
    """Trains the population that is shown without a sweep: gradient descent on wine, with rates that are too high."""
    task = experiments.load("wine")
    rates = fnn.training.search.log_spaced(1e-3, 10, 9)
    settings = fnn.training.grid(learning_rate=rates, batch_size=[4, 16, 64], seed=range(4))
    return fnn.training.fit_population(
        fnn.multilayer((13, 8, 3), ("relu", "softmax")),
        task.loss,
        "gd",
        settings,
        (task.inputs, task.targets),
        key=jax.random.key(0),
        epochs=20,
        chunk=20,
        validation=task.test,
        correct=fnn.losses.largest,
    )


_training = threading.Lock()  # so that the first two visitors do not both train it


@functools.cache
def _trained() -> Members:
    population = train()
    history = {name: getattr(population.history, name) for name in ("training_loss", "validation_loss")}
    names = list(population.hyperparameters)
    return members_of("a small population on wine", names, population.table(), history)


_given: list[Members] = []  # the sweep given to `use`, if any


def use(sweep: Path | None) -> None:
    """Shows a sweep's folder from now on; None: the small population. Raises ValueError if it is not a sweep's
    folder.
    """
    _given[:] = [] if sweep is None else [read(sweep)]


def members() -> Members:
    """The members that are shown; the small population is trained if it has to be."""
    if _given:
        return _given[0]
    with _training:
        return _trained()


def warm_up() -> Iterator[None]:
    """Trains the small population, unless a sweep is shown."""
    members()
    yield
