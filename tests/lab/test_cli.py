"""The command line from its words to its files: what it writes, what it says, and what it refuses in one line."""

import contextlib
import csv
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from lab.test_report import check_self_contained

import functional_nn as fnn
from functional_nn.lab import cli, commands, datasets, equations, pages, runs

FILES = {
    "config.json",
    "history.csv",
    "parameters.npz",
    "agreement.csv",
    "agreement.json",
    "learning_curves.png",
    "gradient_agreement.png",
    "report.html",
}
COLUMNS = "epoch,training_loss,training_accuracy,gradient_norm,validation_loss,validation_accuracy"


class Said(tuple):
    code = property(lambda self: self[0])
    out = property(lambda self: self[1])
    err = property(lambda self: self[2])


def call(*words):
    """Exit code, standard output and standard error; 64-bit mode starts off, as in a new process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["functional-nn", *map(str, words)])
        jax.config.update("jax_enable_x64", False)
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code or 0
        finally:
            jax.config.update("jax_enable_x64", True)
    return Said((code, out.getvalue(), err.getvalue()))


def check_refused(said, *texts):
    assert said.code == 2, said
    assert said.err.startswith("functional-nn: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    assert "Traceback" not in said.err
    for text in texts:
        assert text in said.err


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype("u1").tobytes()


def table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([*([header] if header else []), *rows])
    return path


ONE_EPOCH = ("--hidden", "--epochs", 1, "--batch-size", 0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder of data and finished runs: (folder, {name: what was said})."""
    folder, said = tmp_path_factory.mktemp("lab"), {}
    draw = np.random.default_rng(0)
    x = draw.normal(size=(24, 2)).round(3)
    kinds = np.where(x[:, 0] > 0, "<script>alert(1)</script>", "a & b")
    table(folder / "kinds.csv", ("a", "b", "kind"), [(*row, kind) for row, kind in zip(x, kinds, strict=True)])
    np.savez(folder / "numbers.npz", inputs=x, targets=np.stack([x[:, 0] + 2 * x[:, 1], x[:, 0]], axis=1) * 100)
    (folder / "toy").mkdir()
    pixels, labels = draw.integers(0, 256, (12, 3, 3)), np.arange(12) % 2
    (folder / "toy" / "train-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
    (folder / "toy" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    trained = {
        "iris": ("iris", "--hidden", 3, "--epochs", 2, "--seed", 1),
        "kinds": (folder / "kinds.csv", *ONE_EPOCH),
        "numbers": (folder / "numbers.npz", *ONE_EPOCH, "--dtype", "float64", "--optimizer", "gd(0.3)"),
        "toy": (folder / "toy", *ONE_EPOCH, "--test-fraction", 0.5, "--track", "noise_scale"),
        "diverged": (
            "diabetes",
            "--hidden",
            2,
            "--activation",
            "relu",
            "--epochs",
            3,
            "--optimizer",
            "gd",
            "--learning-rate",
            1e30,
        ),
    }
    compare = commands.fnn.compare  # the costs of both programs are measured in one run only
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        # test_plots.py has the tests of this one
        warnings.filterwarnings("ignore", "Data has no positive values")
        for name, words in trained.items():
            if name != "iris":
                patch.setattr(
                    commands.fnn, "compare", lambda *given, **named: compare(*given, **named | {"costs": False})
                )
            said[name] = call("train", *words, "--out", folder / "runs" / name)
    return folder, said


NAMES = ("iris", "kinds", "numbers", "toy", "diverged")


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("name", NAMES)
def test_train_writes_all_its_files(lab, name):
    folder, said = lab
    run = folder / "runs" / name
    assert said[name].code == (name == "diverged"), said[name]
    assert said[name].err == "", "no progress and no warning without a terminal"
    assert {path.name for path in run.iterdir()} == FILES and str(run / "report.html") in said[name].out
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in run.glob("*.png"))
    assert {path.name for path in run.parent.iterdir()} == set(NAMES), "no partial folder stays"
    config = json.loads((run / "config.json").read_text())
    assert config["environment"]["jax"] == jax.__version__ and config["command"].startswith("functional-nn train ")
    assert config["network"] and config["optimizer"]["name"] and config["results"]["status"] in said[name].out
    agreement = json.loads((run / "agreement.json").read_text())
    assert agreement["verdict"] in said[name].out


@pytest.mark.parametrize(("name", "epochs"), [("iris", 2), ("kinds", 1), ("numbers", 1), ("toy", 1), ("diverged", 1)])
def test_history_has_one_row_per_epoch(lab, name, epochs):
    text = (lab[0] / "runs" / name / "history.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    tracked = ["noise_scale/total/scale", "noise_scale/layers/layer1/noise"] if name == "toy" else []
    assert set(tracked) <= set(rows[0]) and (tracked or text.splitlines()[0] == COLUMNS)
    assert text.startswith(COLUMNS) and [row["epoch"] for row in rows] == [str(e + 1) for e in range(epochs)]
    for row in rows:
        numbers = {name: float(value) for name, value in row.items()}
        classes = name in ("iris", "kinds", "toy")
        assert 0 <= numbers["training_accuracy"] <= 1 if classes else np.isnan(numbers["validation_accuracy"])
        assert np.isfinite(numbers["training_loss"]) == (name != "diverged")


@pytest.mark.parametrize("name", NAMES)
def test_the_report_stands_alone(lab, name):
    html = (lab[0] / "runs" / name / "report.html").read_text(encoding="utf-8")
    page = check_self_contained(html)
    figures = {"iris": (4,), "kinds": (4,), "numbers": (5,), "toy": (5, 6), "diverged": (5,)}
    assert len(page.all("svg")) in figures[name]
    numbers = name in ("numbers", "diverged")
    shown = ("Outputs against targets", "Errors") if numbers else ("Receiver operating characteristics",)
    assert set(shown) <= set(page.within("h2"))
    config = json.loads((lab[0] / "runs" / name / "config.json").read_text())
    (update,) = (words for words in page.within("dt") if words.startswith("The update, "))
    optimizer = config["optimizer"]
    assert update.startswith(f"The update, {optimizer['name']}: learning_rate {optimizer['learning_rate']:g}")
    assert equations.optimizer(optimizer["name"]) in html and equations.loss(config["loss"]) in html
    assert equations.start(config["loss"], config["network"]["layers"][-1]["activation"]) in html
    assert {equations.recursion(step) in html for step in ("forward", "recursion", "contraction")} == {True}


def test_the_report_says_what_was_predicted_and_tracked(lab):
    pages = {name: (lab[0] / "runs" / name / "report.html").read_text(encoding="utf-8") for name in ("numbers", "toy")}
    page = check_self_contained(pages["numbers"])
    held_out = json.loads((lab[0] / "runs/numbers/config.json").read_text())["results"]["held out"]
    (said,) = (svg["aria-label"] for svg in page.all("svg") if svg["aria-label"].startswith("Predicted against true"))
    assert f"R^2 {held_out['R^2']:.3g}" in said and "Held-out examples, predicted and true" in page.within("h2")
    history = list(csv.DictReader(io.StringIO((lab[0] / "runs/toy/history.csv").read_text())))
    page = check_self_contained(pages["toy"])
    (said,) = (svg["aria-label"] for svg in page.all("svg") if svg["aria-label"].startswith("Over the epochs"))
    assert f"scale ends at {float(history[-1]['noise_scale/total/scale']):.3g} (total)" in said
    assert "Tracked: noise scale" in page.within("h2")


def test_the_report_shows_the_training_state_of_methods_that_have_one():
    losses = np.array([3.0, 2.0, 2.5])
    history = fnn.training.History(*[np.arange(1, 4)] * 3, np.ones(3), losses, losses, {"mu": np.geomspace(1, 4, 3)})
    (panel,) = pages._training_state(history, ("mu",), False, "step")
    assert panel.alternative == (
        "The gradient norm ends at 1; mu ends at 4; at the end the held-out loss had not improved for 1 step."
    )
    assert [axis.get_ylabel() for axis in panel.figure.axes] == ["gradient norm", "mu", "failures"]
    assert len(pages._training_state(history, (), True, "epoch")) == 1
    assert not pages._training_state(history, (), False, "epoch") and not pages._tracked(history, ("mu",))
    plt.close("all")


@pytest.mark.parametrize("name", commands._STATE)
def test_tracked_state_of_an_optimizer_exists(name):
    problem = fnn.optimizers.problem_from(residuals=lambda x: x - jnp.arange(3.0))
    state = fnn.optimizers.get(name).init(jnp.zeros(3), problem)
    for function in commands._STATE[name].values():
        assert function(state).shape == () and np.isfinite(function(state))


def test_curves_that_are_not_drawn_are_named():
    values = np.arange(3.0)
    tracked = {"rate": values, "own": {"layers": {f"layer{i}": {"noise": values} for i in range(10, 24)}}}
    history = fnn.training.History(*[np.arange(1, 4)] * 6, tracked)
    panels = pages._tracked(history)
    assert {panel.title for panel in panels} == {"Tracked: rate", "Tracked: own"}
    (own,) = (panel for panel in panels if panel.title == "Tracked: own")
    assert "layer21" in own.alternative and own.caption.endswith("Not drawn: layer22, layer23.")
    assert len(own.figure.axes) == 1 and len(own.figure.axes[0].lines) == 12
    plt.close("all")


@pytest.mark.slow
def test_a_report_of_second_order_counts_steps(tmp_path):
    words = ("--hidden", "--optimizer", "levenberg_marquardt(scaling=marquardt)", "--batch-size", 0, "--epochs", 3)
    assert call("train", "diabetes", *words, "--out", tmp_path / "a").code == 0
    html = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    page = check_self_contained(html)
    assert any(text.startswith("for 3 steps") for text in page.within("span")) and " in 3 steps" in html
    rule = equations.optimizer("levenberg_marquardt", {"scaling": "marquardt"})
    assert rule in html and rule != equations.optimizer("levenberg_marquardt")


def test_a_diverged_run_says_so(lab):
    folder, said = lab
    assert "diverged after 1 epochs" in said["diverged"].out
    assert json.loads((folder / "runs/diverged/config.json").read_text())["results"]["status"] == "diverged"
    assert "diverged" in (folder / "runs/diverged/report.html").read_text()


def test_a_diverged_run_is_not_a_wrong_gradient(lab):
    assert "differ, " not in lab[1]["diverged"].out


def test_the_configuration_of_a_diverged_run_is_json(lab):
    def refuse(name):
        raise ValueError(name)

    json.loads((lab[0] / "runs/diverged/config.json").read_text(), parse_constant=refuse)


# Evaluate, predict, compare -------------------------------------------------------------------------------------------


def outputs(folder, name, inputs):
    run = runs.load(folder / "runs" / name)
    return run, np.asarray(run.network.apply(run.params, run.inputs.apply(inputs)), np.float64)


def test_predicted_classes_are_those_of_the_network(lab):
    folder, _ = lab
    dataset = datasets.load("iris")
    said = call("predict", folder / "runs/iris", "iris")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    run, found = outputs(folder, "iris", dataset.inputs)
    assert said.code == 0 and [row["class"] for row in rows] == [dataset.classes[c] for c in found.argmax(axis=1)]
    assert [float(np.float32(row["output"])) for row in rows] == found.max(axis=1).tolist()
    right = np.mean(found.argmax(axis=1) == dataset.labels)
    assert float(call("evaluate", folder / "runs/iris", "iris").out.split()[-1]) == pytest.approx(right, rel=1e-6)


def test_predicted_numbers_are_in_the_datas_own_units(lab):
    folder, _ = lab
    said = call("predict", folder / "runs/numbers", folder / "numbers.npz")
    assert said.out.splitlines()[0] == "prediction,prediction1"
    rows = np.loadtxt(io.StringIO(said.out), skiprows=1, delimiter=",")
    dataset = datasets.load(folder / "numbers.npz")
    run, found = outputs(folder, "numbers", dataset.inputs)
    config = run.config["targets"]
    assert np.array_equal(rows, found * np.array(config["scale"]) + np.array(config["mean"]))
    error = np.sqrt(np.mean((rows - dataset.targets) ** 2))
    words = call("evaluate", folder / "runs/numbers", folder / "numbers.npz").out
    assert float(words.rsplit(" ", 1)[1]) == pytest.approx(error, rel=1e-12)


def test_held_out_is_what_training_held_out(lab):
    folder, said = lab
    words = call("evaluate", folder / "runs/iris", "iris", "--part", "held-out").out
    results = json.loads((folder / "runs/iris/config.json").read_text())["results"]["held out"]
    assert words.startswith("iris (30 examples)")
    assert words.endswith(f": loss {results['loss']}, accuracy {results['accuracy']}\n")


def test_columns_are_found_by_name_and_others_left_out(lab, tmp_path):
    folder, _ = lab
    dataset = datasets.load(folder / "kinds.csv")
    rows = [("note", b, "", a) for a, b in dataset.inputs]
    plain = call("predict", folder / "runs/kinds", table(tmp_path / "plain.csv", None, dataset.inputs.tolist()))
    named = call("predict", folder / "runs/kinds", table(tmp_path / "named.csv", ("word", "b", "none", "a"), rows))
    whole = call("predict", folder / "runs/kinds", folder / "kinds.csv", "--out", tmp_path / "out.csv")
    assert plain.code == named.code == whole.code == 0 and whole.out == ""
    assert plain.out == named.out == (tmp_path / "out.csv").read_text() and plain.out.count("\n") == 25
    again = call("predict", folder / "runs/kinds", folder / "kinds.csv", "--out", tmp_path / "out.csv")
    check_refused(again, "out.csv' exists")


def test_evaluate_finds_columns_by_name(lab, tmp_path):
    folder, _ = lab
    with (folder / "kinds.csv").open() as file:
        rows = [(b, a, kind) for a, b, kind in csv.reader(file)]
    swapped = table(tmp_path / "kinds.csv", None, rows)
    expected = call("evaluate", folder / "runs/kinds", folder / "kinds.csv").out
    assert call("evaluate", folder / "runs/kinds", swapped).out == expected


def test_compare_of_a_run(lab, tmp_path):
    said = call("compare", lab[0] / "runs/kinds", "--out", tmp_path / "a")
    assert said.code == 0 and "agree" in said.out and "layer1/bias" in said.out
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"agreement.csv", "agreement.json", "report.html"}
    assert str(tmp_path / "a/report.html") in said.out
    html = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    page = check_self_contained(html)
    assert page.within("strong")[0] == "agree" and {"layer1/bias", "manual", "automatic"} <= set(page.within("td"))
    assert f"functional-nn compare {lab[0] / 'runs/kinds'} --out {tmp_path / 'a'}"[:157] in html
    assert equations.recursion("recursion") in html and "environment.jax" in page.within("td")


def agreement_of(relative, bound, verdict):
    total = types.SimpleNamespace(relative=relative, bound=bound)
    right = types.SimpleNamespace(says="right")
    return types.SimpleNamespace(total=total, verdict=verdict, taylor=right, third_opinion=right)


def test_the_page_of_a_grid_has_one_row_per_combination(monkeypatch, tmp_path):
    """Its numbers are sorted by their value, and what differs is red."""
    found = iter([(1e-8, 1e-6, "agree"), (0.5, 1e-6, "differ"), (1e-3, 0.2, "inconclusive"), (2e-8, 1e-6, "agree")])
    monkeypatch.setattr(commands.fnn, "compare", lambda *given, **named: agreement_of(*next(found)))
    words = ("--activations", "tanh", "relu", "--losses", "hinge", "logistic", "--dtypes", "float32", "--seed", 3)
    said = call("compare", *words, "--out", tmp_path / "a")
    assert said.code == 1 and f"report: {tmp_path / 'a/report.html'}" in said.out
    html = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    page = check_self_contained(html)
    assert page.within("strong") == ["2 of 4", "1", "1", "5.0e-01"] and page.within("td").count("relu") == 2
    assert [cell.get("class") for cell in page.all("td") if "class" in cell] == ["good", "bad", "good"]
    values = [cell["data-value"] for cell in page.all("td") if "data-value" in cell]
    assert values[:2] == ["1e-08", "1e-06"] and len(values) == 8
    assert equations.recursion("contraction") in html and {"seed", "3", "environment.device"} <= set(page.within("td"))


@pytest.mark.parametrize("words", [("compare",), ("compare", "{lab}/runs/iris")], ids=["grid", "run"])
def test_compare_overwrites_no_page(lab, tmp_path, words):
    (tmp_path / "report.html").write_text("mine")
    check_refused(call(*(word.format(lab=lab[0]) for word in words), "--out", tmp_path), "report.html", "--out")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_compare_of_a_grid(tmp_path):
    words = ("--activations", "tanh", "--losses", "hinge", "mean_square_error", "--dtypes", "float32")
    said = call("compare", *words, "--sizes", 2, 2, "--batch", 2, "--out", tmp_path)
    rows = json.loads((tmp_path / "agreement.json").read_text())
    assert said.code == 0 and [row["loss"] for row in rows] == ["hinge", "mean_square_error"]
    with (tmp_path / "agreement.csv").open() as file:
        written = list(csv.DictReader(file))
    for row, same in zip(rows, written, strict=True):  # every digit of both
        assert {name: str(value) for name, value in row.items()} == same
        assert isinstance(row["relative"], float) and f"{row['bound']:.1e}" in said.out
    assert said.out.count("\n") == 4 and all(row["verdict"] in said.out for row in rows)


def test_compare_exits_with_its_verdict(monkeypatch):
    monkeypatch.setattr(commands, "compare_grid", lambda *a: False)
    assert call("compare").code == 1


def test_a_float64_run_in_a_fresh_process(lab):
    folder, _ = lab
    words = ("evaluate", folder / "runs/numbers", folder / "numbers.npz")
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    command = [sys.executable, "-m", "functional_nn.lab.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == call(*words).out


def test_an_interrupted_command_writes_nothing(monkeypatch, tmp_path):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.fnn, "fit", interrupt)
    said = call("train", "iris", *ONE_EPOCH, "--out", tmp_path / "run")
    assert said.code == 130 and said.err.count("\n") == 1 and not list(tmp_path.iterdir())


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["info", "train", "compare", "evaluate", "predict"])
def test_help_gives_an_example(command):
    said = call(command, "--help")
    assert said.code == 0 and f"functional-nn {command}" in said.out.split("Example")[1] and said.err == ""


def test_info():
    said = call("info")
    assert said.code == 0 and jax.__version__ in said.out and said.out.count("right, relative error") == 2


# What is refused ------------------------------------------------------------------------------------------------------

BAD_FILES = {
    "empty.csv": b"",
    "header.csv": b"a,b,c\n",
    "nan.csv": b"a,k\n1,x\nnan,y\n",
    "ragged.csv": b"a,k\n1,x\n2\n",
    "one.csv": b"a,k\n1,x\n2,x\n",
    "binary.csv": b"\xff\xfe\x00",
    "broken.npz": b"PK\x03\x04",
    "plain.bin": b"hello",
    "a-images-idx3-ubyte": b"hello",
    "b-images-idx3-ubyte": idx_bytes(np.zeros((4, 2, 2)))[:-1],
    "c-images-idx3-ubyte": idx_bytes(np.zeros(4)),
}


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("irs",), ("'irs'", "did you mean 'iris'?")),
        (("nowhere.csv",), ("no file 'nowhere.csv'",)),
        (("iris", "--activation", "rleu"), ("'rleu'", "did you mean 'relu'?")),
        (("iris", "--activation", "hardlim"), ("'hardlim'", "'layer1'")),
        (("iris", "--activation", "maxout(0)"), ("pieces", "got 0")),
        (("iris", "--output", "linear"), ("'linear'", "'softmax'")),
        (("iris", "--loss", "cross_entrpy"), ("did you mean 'cross_entropy'?",)),
        (("iris", "--optimizer", "adm"), ("did you mean 'adam'?",)),
        (("iris", "--optimizer", "gd(1,2,3)"), ("gd(1,2,3)", "accepted")),
        (("iris", "--optimizer", "gd(0.1)", "--learning-rate", 0.1), ("learning rate",)),
        (("iris", "--learning-rate", "nan"), ("learning_rate", "nan")),
        (("iris", "--initializer", "xaver"), ("'xaver'", "did you mean")),
        (("iris", "--hidden", 0), ("size must be an integer >= 1, got 0",)),
        (("iris", "--hidden", -3), ("got -3",)),
        (("iris", "--epochs", 0), ("epochs", "got 0")),
        (("iris", "--batch-size", 1000), ("1 to 120", "got 1000")),
        (("iris", "--batch-size", -1), ("batch size", "got -1")),
        (("iris", "--test-fraction", 1.5), ("test_fraction", "1.5")),
        (("iris", "--task", "regression"), ("classification", "'regression'")),
        (("iris", "--target", "a"), ("'a'", "CSV")),
        (("iris", "--labels", "a"), ("'a'", "IDX")),
        (("diabetes", "--loss", "hinge"), ("targets", "-1 or +1")),
        (("iris", "--seed", -1), ("seed", "-1")),
        (("iris", "--seed", 10**20), ("seed",)),
        (("iris", "--dtype", "float63"), ("float63",)),
        (("iris", "--hidden", "x"), ("x",)),
        (("iris", "--bogus"), ("--bogus",)),
        *(((name,), (name,)) for name in BAD_FILES),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_train_refuses_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, words, texts):
    monkeypatch.chdir(tmp_path)
    for name, contents in BAD_FILES.items():
        (tmp_path / name).write_bytes(contents)
    before = set(tmp_path.rglob("*"))
    check_refused(call("train", *words, "--out", "new/run"), *texts)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("what", ["run", "folder", "file"])
def test_train_overwrites_nothing(lab, tmp_path, what, replace):
    out = tmp_path / "out"
    if what == "run":
        shutil.copytree(lab[0] / "runs/kinds", out)
    elif what == "folder":
        out.mkdir()
    if what != "run":
        (out / "thesis.txt" if what == "folder" else out).write_text("precious")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    activation = "rleu" if what == "run" and replace else "tanh"
    words = ("train", "iris", *ONE_EPOCH, "--activation", activation, "--hidden", 2, "--out", out)
    check_refused(call(*words, *(["--replace"] if replace else [])))
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("compare", "{lab}/nowhere"), ("nowhere", "config.json")),
        (("evaluate", "{lab}/nowhere", "iris"), ("nowhere", "config.json")),
        (("predict", "{lab}/toy", "iris"), ("toy", "config.json")),
        (("evaluate", "{lab}/runs/iris", "wine"), ("expected 4 inputs, got 13",)),
        (("predict", "{lab}/runs/iris", "wine"), ("expected 4 inputs, got 13",)),
        (("evaluate", "{lab}/runs/diverged", "iris"), ("expected 10 inputs, got 4",)),
        (("predict", "{lab}/runs/numbers", "{lab}/numbers.npz", "--probabilities"), ("classes", "numbers")),
        (("evaluate", "{lab}/runs/kinds", "{lab}/numbers.npz"), ("targets",)),
        (("predict", "{lab}/runs/iris", "{lab}/kinds.csv"), ("missing",)),
        (("predict", "{lab}/runs/kinds", "{lab}/kinds.csv", "--out", "{lab}/no/where.csv"), ("where.csv",)),
        (("compare", "--losses", "hnge"), ("did you mean 'hinge'?",)),
        (("compare", "--activations", "rleu"), ("did you mean 'relu'?",)),
        (("compare", "--activations", "hardlim", "--losses", "hinge"), ("'hardlim'",)),
        (("compare", "--batch", 0), ("batch", "got 0")),
        (("compare", "--sizes", 3), ("sizes",)),
        (("compare", "--dtypes", "--out", "{lab}/none"), ("dtypes",)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_others_refuse_in_one_line(lab, words, texts):
    check_refused(call(*(str(word).format(lab=lab[0]) for word in words)), *texts)


def test_the_command_line_leaves_no_settings_behind():
    assert jax.config.jax_enable_x64 and jnp.zeros(()).dtype == jnp.float64
