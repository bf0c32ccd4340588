"""`fit(log=...)`: every epoch reaches every sink once, whatever ends the run; a resumed log is the log of one run."""

import csv
import os
import signal
import sys
import types

import jax
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import training
from functional_nn.lab import events
from functional_nn.training import checkpoints, logs, loop

NETWORK = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
LINEAR = fnn.multilayer((3, 3, 1), ("tanh", "linear"))
RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((24, 3)), RNG.integers(0, 2, 24)
SETTINGS = {"key": jax.random.key(0), "epochs": 7, "chunk": 2, "plan": training.minibatch(6)}


def train(inputs=X, targets=T, network=NETWORK, loss="cross_entropy", optimizer="adam(0.05)", **settings):
    return training.fit(network, loss, optimizer, inputs, targets, **SETTINGS | settings)


def in_chunks():
    return training.chunks(X, T, size=12, strip=3)


RUNS = {
    "in memory": lambda **more: train(**more),
    "with validation": lambda **more: train(validation=(X[:5], T[:5]), **more),
    "in chunks": lambda **more: train(in_chunks(), None, **more),
    "of second order": lambda **more: train(
        X, X[:, :1], LINEAR, "mean_square_error", "levenberg_marquardt", **{"plan": training.batch()} | more
    ),
    "stopped by a criterion": lambda **more: train(stop="loss_below(0.69)", **more),
    "stopped by on_chunk": lambda **more: train(on_chunk=lambda state, history: len(history.epoch) == 4, **more),
    "out of time": lambda **more: train(seconds=1e-9, **more),
    "diverged": lambda **more: train(X, 1e200 * X[:, :1], LINEAR, "sum_square_error", "gd(1e200)", **more),
    "tracked": lambda **more: train(track=("noise_scale", {"both": lambda p, x, t: {"a": 1.0, "b": t[0]}}), **more),
}


@pytest.mark.parametrize("kind", RUNS)
def test_every_epoch_is_logged_once(kind):
    """In order, with the numbers of the history; columns that are not measured are left out."""
    calls = []
    result = RUNS[kind](log=[calls.append, lambda rows: None])
    rows = [row for call in calls for row in call]
    assert all(calls) and [row["epoch"] for row in rows] == result.history.epoch.tolist()
    assert {len(row) for row in rows} == {len(rows[0])} and list(rows[0])[:2] == ["epoch", "training_loss"]
    measured = {"epoch", "training_loss", "gradient_norm"}
    measured |= set() if kind in ("of second order", "diverged") else {"training_accuracy"}
    measured |= {"validation_loss", "validation_accuracy"} if kind == "with validation" else set()
    tracked = rows[0].keys() - measured
    assert measured <= rows[0].keys() and bool(tracked) == (kind == "tracked")
    for name in measured:
        np.testing.assert_array_equal([row[name] for row in rows], getattr(result.history, name))
    if kind == "tracked":  # scalars only: t[0] is one-hot
        assert "both/a" in tracked and "both/b" not in tracked
        assert any(name.startswith("noise_scale/") for name in tracked)
    if kind == "in memory":
        assert [len(call) for call in calls] == [2, 2, 2, 1]


@pytest.mark.parametrize("kind", RUNS)
def test_a_csv_file_holds_the_history(kind, tmp_path):
    path = tmp_path / "history.csv"
    result = RUNS[kind](log=logs.csv(path))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == result.history.epoch.tolist()
    np.testing.assert_array_equal([float(row["training_loss"]) for row in rows], result.history.training_loss)


def test_it_is_flushed_after_every_chunk(tmp_path):
    path, lines = tmp_path / "history.csv", []
    train(log=logs.csv(path), on_chunk=lambda state, history: lines.append(len(path.read_text().splitlines())) and None)
    assert lines == [3, 5, 7, 8]


@pytest.mark.parametrize("data", ["in memory", "in chunks"])
@pytest.mark.parametrize("how", ["Ctrl-C", "killed", "on_chunk"])
def test_a_resumed_file_is_that_of_one_run(data, how, tmp_path):
    """Also where it had rows of epochs after the checkpoint, when the run was killed."""
    run, kept = RUNS[data], checkpoints.keep(tmp_path / "kept", every=3)
    whole, path = tmp_path / "whole.csv", tmp_path / "part.csv"
    run(log=logs.csv(whole), epochs=9)

    def on_chunk(state, history):
        if len(history.epoch) < 4:
            return False
        if how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        if how == "killed" and len(history.epoch) > 6:
            raise RuntimeError
        return how == "on_chunk"

    more = {"log": logs.csv(path), "checkpoint": kept, "epochs": 9}
    if how == "on_chunk":
        run(on_chunk=on_chunk, **more)
    else:
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            run(on_chunk=on_chunk, **more)
    assert whole.read_text().startswith(path.read_text()) and path.read_text() != whole.read_text()
    if how == "killed":
        path.write_text(path.read_text() + "99,1.0,1.0,1.0\n")
    run(resume=True, **more)
    assert path.read_text() == whole.read_text()
    run(resume=True, **more)  # it is complete: nothing changes
    assert path.read_text() == whole.read_text()


def test_a_sink_that_fails_loses_nothing(tmp_path):
    """The others get their rows, the run is saved, the error says where; and the run may be resumed."""
    path, kept, seen = tmp_path / "history.csv", checkpoints.keep(tmp_path / "kept", every=100), []

    def full(rows):
        if rows[-1]["epoch"] == 4:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left") as caught:
        train(log=[full, logs.csv(path), seen.extend], checkpoint=kept)
    assert "while logging to <function" in caught.value.__notes__[0] and "after epoch 4" in caught.value.__notes__[0]
    assert kept.numbers() == (4,) and [row["epoch"] for row in seen] == [1, 2, 3, 4]
    result = train(log=[logs.csv(path), seen.extend], checkpoint=kept, resume=True)
    assert [row["epoch"] for row in seen] == result.history.epoch.tolist()
    assert len(path.read_text().splitlines()) == 8


class Recorder:
    """A sink that notes what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, rows):
        self.asked.append(len(rows))

    def check(self, resume):
        self.asked.append(("check", resume))

    def resume(self, rows):
        self.asked.append(("resume", len(rows)))

    def close(self):
        self.asked.append("close")


def test_a_sink_is_checked_first_and_closed_last(tmp_path):
    kept, sink = checkpoints.keep(tmp_path), Recorder()
    train(log=sink, checkpoint=kept, epochs=3)
    assert sink.asked == [("check", False), 2, 1, "close"]
    sink = Recorder()
    train(log=sink, checkpoint=kept, resume=True)
    assert sink.asked == [("check", True), ("resume", 3), 2, 2, "close"]


@pytest.mark.parametrize("where", ["data", "on_chunk", "sink"])
def test_sinks_are_closed_also_when_fit_raises(where):
    sinks = Recorder(), Recorder()

    def broken(*args):
        raise RuntimeError("broken")

    with pytest.raises((ValueError, RuntimeError)):
        if where == "data":
            train(X[:5], log=sinks)
        elif where == "on_chunk":
            train(on_chunk=broken, log=sinks)
        else:
            train(log=[*sinks, broken])
    assert all(sink.asked[-1] == "close" and sink.asked.count("close") == 1 for sink in sinks)


@pytest.mark.parametrize(
    ("log", "more", "error", "says"),
    [
        (5, {}, TypeError, "log: expected a function of rows, such as logs.csv[(]path[)].* got 5"),
        (["history.csv"], {}, TypeError, "log: expected a function of rows.* got 'history.csv'"),
        (Recorder, {}, TypeError, "log: expected a function of rows.* got <class"),
        ("there", {}, FileExistsError, "log: '.*there.csv' exists; give another path, remove it, or continue"),
        ("other", {"resume": True}, FileExistsError, "log: '.*other.csv' exists and is not a log that fit wrote"),
        ("no/folder", {}, FileNotFoundError, "log: '.*no' is not a folder"),
    ],
)
def test_bad_sinks_are_refused_before_anything_is_compiled(log, more, error, says, tmp_path, monkeypatch):
    (tmp_path / "there.csv").write_text("epoch,training_loss\n1,0.5\n")
    (tmp_path / "other.csv").write_text("name,price\nbread,1\n")
    monkeypatch.setattr(loop, "compiled", None)
    if isinstance(log, str):
        log = logs.csv(tmp_path / f"{log}.csv")
    if more:
        more = more | {"checkpoint": checkpoints.keep(tmp_path / "kept")}
    with pytest.raises(error, match=says):
        train(log=log, **more)
    assert (tmp_path / "there.csv").read_text() == "epoch,training_loss\n1,0.5\n"
    assert (tmp_path / "other.csv").read_text() == "name,price\nbread,1\n"


def test_what_makes_sinks_refuses_the_wrong_type():
    with pytest.raises(TypeError, match="logs.csv: path must be a path, got int"):
        logs.csv(5)
    with pytest.raises(TypeError, match="logs.function: expected a function of a row, got int"):
        logs.function(5)


def test_a_refused_run_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        train(X[:5], log=logs.csv(tmp_path / "history.csv"))
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_every_finite_number(tmp_path, monkeypatch):
    """With a stand-in for tensorboardX, which is an extra: steps are epochs, and a resumed run purges later ones."""
    written, made, closed = [], [], []

    class Writer:
        def __init__(self, folder, purge_step=None):
            made.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((step, name, value))

        def flush(self): ...

        def close(self):
            closed.append(1)

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    kept, sink = checkpoints.keep(tmp_path / "kept"), events.tensorboard(tmp_path / "log")
    result = train(track={"odd": lambda p, x, t: np.nan}, log=sink, checkpoint=kept)
    names = ("training_loss", "training_accuracy", "gradient_norm")
    expected = [(e + 1, name, getattr(result.history, name)[e]) for e in range(7) for name in names]
    assert written == expected and made == [(str(tmp_path / "log"), None)] and closed == [1]
    train(track={"odd": lambda p, x, t: np.nan}, log=sink, checkpoint=kept, resume=True, epochs=8)
    assert made[1:] == [(str(tmp_path / "log"), 8)] and {step for step, *_ in written[len(expected) :]} == {8}
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="pip install"):
        events.tensorboard(tmp_path)
