"""`functional-nn sweep`: its syntax, what it refuses and writes, how it resumes; and figures of any results."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.test_cli import call, check_refused
from lab.test_report import check_self_contained

from functional_nn.lab import equations, plots, report, sweeps
from functional_nn.training import checkpoints, grid, search

GRID = ("learning_rate=0.01,0.1", "batch_size=40", "seed=0..3")
ITS = ("sweep", "iris", "--grid", *GRID, "--hidden", 3, "--epochs", 4)
FILES = {
    "config.json",
    "results.csv",
    "history.npz",
    "parameters.npz",
    "report.html",
    "parallel_coordinates.png",
    "learning_rates.png",
    "quantile_bands.png",
}


# The syntax -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("batch_size=8,32,128", [8, 32, 128]),
        ("seed=0..3", [0, 1, 2, 3]),
        ("seed=-1..0,7", [-1, 0, 7]),
        ("learning_rate=1e-2", [0.01]),
        ("width=lin:2:8:4", [2, 4, 6, 8]),
        ("width=log:1:4:9", [1, 2, 3, 4]),
        ("label_noise=lin:0:1:3", [0.0, 0.5, 1.0]),
        ("activation=tanh, leaky_relu(0.1)", ["tanh", "leaky_relu(0.1)"]),
        ("initializer=uniform(-1, 1),xavier", ["uniform(-1, 1)", "xavier"]),
        ("hidden=64,32-64, none", ["64", "32-64", "none"]),
    ],
)
def test_lists_and_ranges(word, values):
    found = sweeps.grid_values(*word.split("=", 1))
    assert found == values and [type(v) for v in found] == [type(v) for v in values]


@given(st.floats(1e-6, 1), st.floats(1.5, 1e6), st.integers(2, 40))
def test_spaced_numbers_keep_their_distance(low, ratio, count):
    values = sweeps.grid_values("learning_rate", f"log:{low!r}:{low * ratio!r}:{count}")
    assert len(values) == count and values[0] == low and np.allclose(values[-1], low * ratio)
    assert np.allclose(np.diff(np.log(values)), np.log(ratio) / (count - 1))
    values = sweeps.grid_values("strength", f"lin:{low!r}:{low * ratio!r}:{count}")
    assert len(values) == count and np.allclose(np.diff(values), low * (ratio - 1) / (count - 1))


@given(st.integers(-50, 50), st.integers(0, 50))
def test_ranges_of_integers_have_both_ends(low, more):
    assert sweeps.grid_values("seed", f"{low}..{low + more}") == list(range(low, low + more + 1))


@pytest.mark.parametrize(
    ("word", "made"),
    [
        ("learning_rate=log:1:10", search.log_uniform(1.0, 10.0)),
        ("learning_rate=lin:-1:10", search.uniform(-1.0, 10.0)),
        ("width=log:8:128", search.log_integers(8, 128)),
        ("depth=lin:1:4", search.integers(1, 4)),
        ("seed=0..99", search.integers(0, 99)),
        ("activation=tanh,relu,relu", search.choice(["tanh", "relu", "relu"])),
        ("seed=3", 3),
        ("hidden=64,32-64", search.choice(["64", "32-64"])),
        ("hidden=64", "64"),
    ],
)
def test_distributions(word, made):
    assert sweeps.distribution(*word.split("=", 1)) == made


def test_a_grid_of_random_settings_is_every_combination():
    drawn = search.random_search(3, search_seed=5, learning_rate=search.log_uniform(1e-3, 1.0))
    found = sweeps.hyperparameters(["seed=0..1"], ["3", "learning_rate=log:1e-3:1"], 5)
    assert found["seed"].tolist() == [0, 1] * 3
    assert found["learning_rate"].tolist() == np.repeat(drawn["learning_rate"], 2).tolist()
    alone = sweeps.hyperparameters([], ["3", "learning_rate=log:1e-3:1"], 5)
    assert alone["learning_rate"].tolist() == drawn["learning_rate"].tolist()
    every = sweeps.hyperparameters(["seed=0..2", "width=4,8"], [], 0)
    expected = grid(seed=range(3), width=[4, 8])
    assert {name: values.tolist() for name, values in every.items()} == {n: v.tolist() for n, v in expected.items()}


@pytest.mark.slow
def test_whole_networks_are_hyperparameters(tmp_path):
    """Each shape is the network that `train --hidden` makes of it."""
    said = call("sweep", "iris", "--grid", "hidden=3,2-3,none", "--epochs", 1, "--out", tmp_path / "a")
    with (tmp_path / "a" / "results.csv").open() as file:
        rows = {row["hidden"]: row for row in csv.DictReader(file)}
    assert said.code == 0 and list(rows) == ["3", "2-3", "none"]
    call("train", "iris", "--hidden", 2, 3, "--epochs", 1, "--out", tmp_path / "b")
    with (tmp_path / "b" / "history.csv").open() as file:
        (alone,) = csv.DictReader(file)
    assert np.isclose(float(rows["2-3"]["validation_loss"]), float(alone["validation_loss"]), rtol=1e-5)


# What is refused ------------------------------------------------------------------------------------------------------


def refused(*words, at="--grid"):
    return (at, *words)


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ((), ("nothing to sweep", "--grid", "--random")),
        (refused("learning_rate"), ("NAME=VALUES", "'learning_rate'")),
        (refused("learning_rate="), ("NAME=VALUES",)),
        (refused("1=2"), ("'1=2'",)),
        (refused("seed=1", "seed=2"), ("seed is given twice",)),
        (refused("seed=1,1"), ("1 is given twice",)),
        (refused("seed=1,,2"), ("between the commas",)),
        (refused("seed=3..1"), ("a <= b",)),
        (refused("learning_rate=1e-4..1e-1"), ("log:LOW:HIGH",)),
        (refused("learning_rate=lgo:1:2:3"), ("did you mean 'log'?",)),
        (refused("learning_rate=log:1:2"), ("log:LOW:HIGH:COUNT", "lin:LOW:HIGH:COUNT")),
        (refused("learning_rate=log:a:2:3"), ("log:LOW:HIGH:COUNT",)),
        (refused("learning_rate=log:0:2:3"), ("learning_rate=log:0:2:3", "0 < low < high")),
        (refused("learning_rate=lin:2:2:3"), ("low < high",)),
        (refused("learning_rate=log:1:2:1.5"), ("COUNT", "1.5")),
        (refused("seed=0..99999999"), ("at most 1000000",)),
        (refused("seed=0..9999", "subset=0..9999"), ("at most 1000000 members", "100000000")),
        (refused("learning_rate=nan"), ("finite",)),
        (refused("activation=tanh,3"), ("expected only numbers, only words",)),
        (refused("learning_rat=0.1"), ("did you mean 'learning_rate'?",)),
        (refused("widht=4"), ("did you mean 'width'?",)),
        (refused("strength=0.1"), ("unknown name 'strength'",)),
        (refused("activation=rleu"), ("did you mean 'relu'?",)),
        (refused("optimizer=adam,momentm"), ("did you mean 'momentum'?",)),
        (refused("optimizer=adm"), ("did you mean 'adam'?",)),
        (refused("learning_rate=-1"), ("learning_rate", "-1")),
        (refused("width=0"), ("member 0 (width=0)", "size")),
        (refused("hidden=8,4_8"), ("hidden=4_8: expected sizes of layers, as in 64 or 64-32, or none",)),
        (refused("hidden=8,0"), ("hidden=0: expected sizes of layers",)),
        (refused("hidden=8,4-8", "width=8"), ("hidden already gives all layer sizes; expected no width",)),
        (refused("hidden=8,4-8", "depth=1"), ("hidden already gives all layer sizes; expected no depth",)),
        (refused("depth=-1"), ("depth must be an integer >= 0",)),
        (refused("batch_size=500"), ("1 to 120", "500")),
        ((*refused("depth=1,2"), "--hidden", 3, 4), ("depth needs one width", "got 3 4")),
        (refused("x", "seed=1..2", at="--random"), ("count first", "'x'")),
        (refused("4", at="--random"), ("NAME=VALUES", "got none")),
        (refused("4", "seed=log:1:2:3", at="--random"), ("log:LOW:HIGH", "as in log:1e-4:1e-1")),
        (refused("4", "seed=2..2", at="--random"), ("low < high",)),
        (("--random", 4, "seed=1..2", "--grid", "seed=3"), ("both --grid and --random",)),
        (
            (*refused("learning_rate=0.1"), "--optimizer", "adam(0.01)"),
            ("is given with constants, but learning_rate is swept", "'adam'"),
        ),
        ((*refused("seed=1"), "--optimizer", "adm"), ("did you mean 'adam'?",)),
        ((*refused("seed=1"), "--regularizer", "l2"), ("strength",)),
        ((*refused("seed=1"), "--regularizer", "l3(1)"), ("did you mean 'l2'?",)),
        ((*refused("seed=1"), "--loss", "hnge"), ("did you mean 'hinge'?",)),
        ((*refused("seed=1"), "--halving", "3,x"), ("3,9,27", "'3,x'")),
        ((*refused("seed=1"), "--halving", "3,1"), ("increasing",)),
        ((*refused("seed=1"), "--halving", "30", "--epochs", 30), ("last rung", "30")),
        ((*refused("seed=1"), "--halving", "3", "--keep", 1.5), ("keep", "1.5")),
        ((*refused("seed=1"), "--early-stopping", 0), ("patience", "got 0")),
        ((*refused("seed=1"), "--epochs", 0), ("epochs", "got 0")),
        ((*refused("seed=1"), "--block", 0), ("block", "got 0")),
        ((*refused("seed=1"), "--budget", 0), ("budget", "got 0")),
        ((*refused("seed=1"), "--devices", 0), ("devices", "got 0")),
        ((*refused("seed=1"), "--devices", 4096), ("devices must be 1 to", "4096")),
        ((*refused("seed=1"), "--seed", -1), ("seed", "-1")),
        ((*refused("seed=1"), "--dtype", "float16"), ("float16",)),
        ((*refused("seed=1"), "--processes", 2), ("--coordinator",)),
        ((*refused("seed=1"), "--bogus"), ("--bogus",)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_sweep_refuses_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, words, texts):
    monkeypatch.chdir(tmp_path)
    check_refused(call("sweep", "iris", *words, "--out", "new/run"), *texts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "module"), [("--parquet", "pyarrow"), ("--log-dir=events", "tensorboardX")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, option, module):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sweeps.importlib.util, "find_spec", lambda name: None)
    check_refused(call(*ITS, option, "--out", "new"), module, "pip install")
    assert not list(tmp_path.iterdir())


# What it writes -------------------------------------------------------------------------------------------------------


def read_table(folder):
    return list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep's folder, what was said, and the population behind it."""
    out, kept = tmp_path_factory.mktemp("sweep") / "runs" / "iris", []
    fit = sweeps.fnn.training.fit_population
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps.fnn.training, "fit_population", lambda *a, **k: kept.append(fit(*a, **k)) or kept[0])
        said = call(*ITS, "--out", out)
    return out, said, kept[0]


def test_a_sweep_writes_all_its_files(trained):
    out, said, population = trained
    assert said.code == 0 and said.err == "", "no progress and no warning without a terminal"
    assert {path.name for path in out.iterdir()} - {"results.parquet"} == FILES
    assert [path.name for path in out.parent.iterdir()] == ["iris"], "no checkpoints stay"
    best = population.best()
    assert "8 networks" in said.out and "8 completed" in said.out and f"best: member {best} (" in said.out
    assert str(out / "report.html") in said.out
    config = json.loads((out / "config.json").read_text())
    assert config["members"] == 8 and config["results"]["best"] == best and config["grid"] == list(GRID)
    assert config["hyperparameters"] == {"learning_rate": [0.01, 0.1], "batch_size": [40], "seed": [0, 1, 2, 3]}


def test_the_table_and_histories_are_the_populations(trained):
    out, _, population = trained
    table = population.table()
    rows = read_table(out)
    assert list(rows[0]) == list(table) and len(rows) == 8
    for name, column in table.items():
        assert [type(v)(row[name]) for row, v in zip(rows, column.tolist(), strict=True)] == column.tolist()
    with np.load(out / "history.npz") as archive:
        assert np.array_equal(archive["validation_loss"], population.history.validation_loss)
    assert np.isfinite(table["validation_accuracy"]).all() and population.epochs.tolist() == [4] * 8


def test_the_best_member_is_a_run(trained):
    out, _, population = trained
    said = call("evaluate", out, "iris", "--part", "held-out").out
    table, best = population.table(), population.best()
    numbers = [float(part.split()[-1]) for part in said.split(":")[1].split(",")]
    assert np.allclose(numbers, [table["validation_loss"][best], table["validation_accuracy"][best]], rtol=1e-5)


def test_the_best_member_is_compared_like_a_run(trained, tmp_path):
    """Its configuration is a sweep's, of which one optimizer is not known to be the member's."""
    assert call("compare", trained[0], "--out", tmp_path / "a").code == 0
    page = check_self_contained((tmp_path / "a/report.html").read_text(encoding="utf-8"))
    assert "The loss, cross_entropy(mean)" in page.within("dt") and not any(
        "update" in text for text in page.within("dt")
    )


@pytest.mark.parametrize(
    ("given", "columns", "names"),
    [
        ("adam", {}, ["adam"]),
        ("adam(order=efficient)", {"seed": np.arange(2)}, ["adam(order=efficient)"]),
        ("adam", {"optimizer": np.array(["gd", "momentum(0.1)", "gd"])}, ["gd", "momentum(0.1)"]),
        ("mine", {}, []),
    ],
)
def test_the_rules_are_those_of_the_optimizers_that_took_part(given, columns, names):
    rules = dict(sweeps._rules(given, columns))
    assert list(rules) == names
    for name, rule in rules.items():
        assert rule == equations.optimizer(name, {"order": "efficient"} if "efficient" in name else None)


def test_all_examples_are_the_largest_batch():
    """On the page, too: "all" is sorted after the largest number."""
    cells = [sweeps._cell(value, "batch_size") for value in (0, 8)] + [sweeps._cell("tanh", "activation")]
    assert cells == [report.Quantity("all", np.inf), report.Quantity("8", 8), "tanh"]


def test_the_page_stands_alone_and_ranks_the_members(trained):
    out, _, population = trained
    html = (out / "report.html").read_text(encoding="utf-8")
    page = check_self_contained(html)
    assert len(page.all("svg")) == 3 and page.within("dt") == ["adam"] and equations.optimizer("adam") in html
    order = np.argsort(population.table()["validation_loss"], kind="stable")
    cells = page.within("td")
    assert [int(cell) for cell in cells[: 8 * 7 : 7]] == order.tolist()
    best = population.table()["validation_accuracy"][order[0]]
    assert f"{100 * best:.2f} %" in page.within("strong") and cells[56:59] == ["completed", "8", "100.0 %"]


def test_nothing_is_overwritten(trained, tmp_path):
    out, _, _ = trained
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    check_refused(call(*ITS, "--out", out), "already holds a run")
    check_refused(call("sweep", "iris", "--grid", "learning_rat=1", "--replace", "--out", out), "learning_rate")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_checkpoints_of_an_interrupted_sweep(trained, tmp_path, monkeypatch):
    """They are kept, the message says how to continue, and the resumed sweep equals an uninterrupted one."""
    out, _, _ = trained
    save = checkpoints.Checkpoints.save

    def interrupted(self, number, *rest):
        save(self, number, *rest)
        if number == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", interrupted)
    said = call(*ITS, "--out", tmp_path / "b")
    assert said.code == 130 and said.err.count("\n") == 1 and "--resume" in said.err
    monkeypatch.undo()
    hidden = tmp_path / ".b.checkpoints"
    assert [path.name for path in tmp_path.iterdir()] == [hidden.name]
    before = {path.name: path.read_bytes() for path in hidden.iterdir()}
    check_refused(call(*ITS, "--out", tmp_path / "b"), "--resume", "--replace")
    check_refused(call("sweep", "iris", "--grid", "seeds=1", "--replace", "--out", tmp_path / "b"), "'seed'")
    check_refused(call(*ITS, "--resume", "--seed", 3, "--out", tmp_path / "b"), "checkpoint")
    assert {path.name: path.read_bytes() for path in hidden.iterdir()} == before
    assert call(*ITS, "--resume", "--out", tmp_path / "b").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b/results.csv").read_bytes() == (out / "results.csv").read_bytes()


@pytest.mark.slow
def test_one_diverged_network_of_another_kind(tmp_path):
    words = ("diabetes", "--hidden", "--grid", "learning_rate=1e300", "--optimizer", "gd", "--epochs", 2)
    said = call("sweep", *words, "--batch-size", 0, "--dtype", "float64", "--out", tmp_path / "d")
    assert said.code == 1 and said.err == "" and "1 diverged" in said.out and "best: none" in said.out
    assert not (tmp_path / "d/parameters.npz").exists()
    assert json.loads((tmp_path / "d/config.json").read_text())["results"]["best"] is None
    check_self_contained((tmp_path / "d/report.html").read_text())


def test_sweep_help_has_examples():
    said = call("sweep", "--help")
    assert said.code == 0 and "functional-nn sweep" in said.out.split("Example")[1] and said.err == ""
    assert "--process 1" in said.out


# Figures --------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def draw(figure):
    figure.draw_without_rendering()  # what its layout warns of shows here
    return figure


COLUMNS = {
    "a product": grid(learning_rate=[1e-3, 1e-2, 1e-1], batch_size=[0, 8], seed=range(4)),
    "one member": grid(learning_rate=[0.1]),
    "one value": grid(learning_rate=[0.1] * 6),
    "words and zeros": grid(activation=["tanh", "relu", "$a_b$"], strength=[0.0, 1e-3], seed=range(5)),
    "random": search.random_search(
        150, learning_rate=search.log_uniform(1e-4, 1), width=search.log_integers(2, 64), x=search.uniform(-1, 1)
    ),
}
LOSSES = {
    "spread": lambda n: np.geomspace(0.1, 10, n),
    "equal": lambda n: np.full(n, 0.5),
    "zeros": lambda n: np.zeros(n),
    "some zeros": lambda n: np.arange(n) % 3 * 0.1,
    "negative": lambda n: np.linspace(-2, 1, n),
    "blown up": lambda n: np.geomspace(1, 1e38, n),
    "tiny": lambda n: np.geomspace(1e-300, 1e-290, n),
    "none": lambda n: np.full(n, np.nan),
    "half": lambda n: np.where(np.arange(n) % 2, np.nan, 1.0),
}


def some(names, usual):
    """All losses with the first name, those that differ most with the others."""
    return [(name, losses) for name in names for losses in (LOSSES if name == usual else ("blown up", "half"))]


@pytest.mark.parametrize(("name", "losses"), some(COLUMNS, "a product"))
def test_every_member_has_its_line(name, losses):
    columns, values = COLUMNS[name], LOSSES[losses](len(next(iter(COLUMNS[name].values()))))
    diverged = np.arange(len(values)) == 1
    axis = draw(plots.parallel_coordinates(columns, values, diverged)).axes[0]
    lines = np.array(axis.collections[0].get_segments())
    assert lines.shape == (len(values), len(columns) + 1, 2) and np.isfinite(lines).all()
    lost = diverged | ~np.isfinite(values)
    assert (lines[:, -1, 1] > 1).sum() == lost.sum() and (lines[:, -1, 1] >= 0).all()
    if losses == "spread":  # the best is drawn last, and lowest
        assert lines[-1, -1, 1] == lines[:, -1, 1].min()
    if name == "a product":  # 0, all examples, is the largest batch
        assert [text.get_text() for text in axis.texts if text.get_text() in ("8", "all")] == ["8", "all"]
    texts = [text.get_text() for text in axis.texts]
    assert set(columns) <= set(texts) and ("diverged" in texts) == lost.any()


@pytest.mark.parametrize(("name", "losses"), some(["a product", "one member", "random"], "a product"))
def test_medians_against_learning_rates(name, losses):
    columns, values = COLUMNS[name], LOSSES[losses](len(COLUMNS[name]["learning_rate"]))
    diverged = np.zeros(len(values), bool)
    curves = ("batch_size", columns["batch_size"]) if "batch_size" in columns else (None, None)
    found = plots.rate_quartiles(columns["learning_rate"], values, diverged, curves=curves)
    draw(plots.rate_curves(found))
    scores = np.where(np.isfinite(values), values, np.inf)
    if name == "a product":
        for (_, size), quartiles in found.quartiles.items():
            for rate, (first, median, third) in zip(found.rates, quartiles, strict=True):
                own = scores[(columns["learning_rate"] == rate) & (columns["batch_size"] == size)]
                assert first <= median <= third
                with np.errstate(invalid="ignore"):
                    expected = np.median(own)
                assert median == pytest.approx(expected) or (np.isnan(expected) and median == np.inf)
    if name == "random":
        assert len(found.rates) <= 16 and (np.diff(found.rates) > 0).all()


@pytest.mark.parametrize(("shape", "losses"), some([(1, 1), (5, 1), (5, 40)], (5, 40)))
def test_bands_contain_their_shares(losses, shape):
    values = np.broadcast_to(LOSSES[losses](shape[1]), shape).copy()
    axis = draw(plots.quantile_bands([("all", values), ("again", values)])).axes[0]
    median = axis.lines[0].get_ydata()
    assert len(median) == shape[0]
    if losses in ("spread", "equal", "half", "some zeros", "negative") and shape[1] > 1:
        assert np.allclose(median, np.nanmedian(values, axis=1))


# In processes of their own --------------------------------------------------------------------------------------------


def start(folder, *words):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    command = [sys.executable, "-m", "functional_nn.lab.cli", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


@pytest.mark.slow
def test_a_resumed_sweep_equals_an_uninterrupted_one(tmp_path):
    words = ("sweep", "digits", "--grid", "learning_rate=0.001,0.01", "seed=0..15", "batch_size=16", "--epochs", 60)
    whole = start(tmp_path, *words, "--out", "whole")
    assert whole.communicate(timeout=200)[1] == "" and whole.returncode == 0
    cut = start(tmp_path, *words, "--out", "cut")
    while not list(tmp_path.glob(".cut.checkpoints/checkpoint-*.npz")) and cut.poll() is None:
        time.sleep(0.01)
    cut.send_signal(signal.SIGINT)
    _, said = cut.communicate(timeout=60)
    assert cut.returncode == 130 and said.count("\n") == 1 and "--resume" in said, said
    assert not (tmp_path / "cut").exists()
    resumed = start(tmp_path, *words, "--out", "cut", "--resume")
    assert resumed.communicate(timeout=200)[1] == "" and resumed.returncode == 0
    assert (tmp_path / "cut/results.csv").read_bytes() == (tmp_path / "whole/results.csv").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_two_processes_give_the_same_table(tmp_path):
    words = (
        "sweep",
        "iris",
        "--grid",
        "learning_rate=log:1e-3:1e-1:3",
        "seed=0..4",
        "batch_size=8,40",
        "--epochs",
        9,
        "--halving",
        3,
        "--keep",
        0.5,
        "--devices",
        1,
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ("--out", "two", "--coordinator", f"localhost:{port}", "--processes", 2, "--process")
    runs = [start(tmp_path, *words, *together, i) for i in (0, 1)] + [start(tmp_path, *words, "--out", "one")]
    for run in runs:
        said = run.communicate(timeout=200)
        assert run.returncode == 0, said
    one, two = (read_table(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 30 and {row["status"] for row in one} == {"halved", "completed"}
    for a, b in zip(one, two, strict=True):
        for name in a:
            if name == "status":
                assert a[name] == b[name]
            else:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_a_sweep_leaves_no_settings_behind():
    assert jax.config.jax_enable_x64


def test_parquet_is_the_table(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {"member": np.arange(2), "status": np.array(["completed", "halved"]), "loss": np.array([0.5, np.nan])}
    sweeps.write_parquet(table, tmp_path / "table.parquet")
    read = parquet.read_table(tmp_path / "table.parquet").to_pydict()
    assert read["status"] == ["completed", "halved"] and read["member"] == [0, 1] and read["loss"][0] == 0.5
