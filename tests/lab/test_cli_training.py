"""What train and sweep share: interruption, stopping, weights, logs, defaults; both train like `fit`."""

import csv
import inspect
import os
import signal
import subprocess
import sys
import time
import types
import warnings

import jax
import numpy as np
import pytest
from lab.test_cli import call, check_refused, table

import functional_nn as fnn
from functional_nn.lab import cli, commands, datasets, equations, pages, runs
from functional_nn.training import checkpoints

QUICK = ("iris", "--hidden", 3, "--epochs", 4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reports, and the comparison after training, are tested elsewhere."""
    monkeypatch.setattr(pages, "trained", lambda *given: "the page")
    compare = fnn.compare
    few = {"costs": False, "second_opinions": False}
    monkeypatch.setattr(commands.fnn, "compare", lambda *given, **named: compare(*given, **named | few))


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """A table with a column of weights, before the target, in which two examples of three count for nothing."""
    folder, draw = tmp_path_factory.mktemp("weighted"), np.random.default_rng(0)
    x, w = draw.normal(size=(60, 2)).round(3), np.arange(60) % 3 == 0
    rows = [(*row, int(count), "yes" if row[0] > 0.5 else "no") for row, count in zip(x, w, strict=True)]
    return table(folder / "data.csv", ("a", "b", "w", "kind"), rows)


def fitted(monkeypatch, module=fnn, name="fit"):
    """What was given to `fit` (or `fit_population`), and what came of it, as it is called."""
    given, fit = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: given.append((k, fit(*a, **k))) or given[-1][1])
    return given


def interrupt_at(monkeypatch, epoch, times=1):
    save = checkpoints.Checkpoints.save

    def interrupted(self, number, *rest):
        save(self, number, *rest)
        for _ in range(times if number == epoch else 0):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", interrupted)


# Interrupted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, times):
    words, watched = ("train", *QUICK), []
    monkeypatch.setattr(pages, "trained", lambda *given: watched.append(given[2]) or "the page")
    assert call(*words, "--out", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, times)
        said = call(*words, "--out", tmp_path / "cut")
    assert said.code == 130 and said.err.count("\n") == 1 and "after epoch 2" in said.err and "--resume" in said.err
    hidden = tmp_path / ".cut.checkpoints"
    assert {path.name for path in tmp_path.iterdir()} == {"whole", hidden.name}
    before = {path.name: path.read_bytes() for path in hidden.iterdir()}
    check_refused(call(*words, "--out", tmp_path / "cut"), "of an interrupted run", "--resume", "--replace")
    check_refused(call(*words, "--activation", "rleu", "--replace", "--out", tmp_path / "cut"), "'relu'")
    check_refused(call(*words, "--resume", "--seed", 3, "--out", tmp_path / "cut"), "checkpoint")
    assert {path.name: path.read_bytes() for path in hidden.iterdir()} == before
    said = call(*words, "--resume", "--out", tmp_path / "cut")
    assert said.code == 0 and said.err == "" and "since it was resumed" in said.out
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cut"}, "no checkpoints stay"
    for name in ("history.csv", "parameters.npz", "agreement.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    if times == 1:  # a second Ctrl-C does not wait for what is watched
        assert watched[1] == watched[0] and [epoch for epoch, _ in watched[0]] == [0, 1, 2, 3, 4]


def test_a_run_that_is_interrupted_while_it_is_written(tmp_path, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pages, "trained", interrupt)
        said = call("train", *QUICK, "--out", tmp_path / "a")
    assert said.code == 130 and "saved after epoch 4" in said.err
    assert [path.name for path in tmp_path.iterdir()] == [".a.checkpoints"]
    said = call("train", *QUICK, "--out", tmp_path / "a", "--resume")
    assert said.code == 0 and "completed after 4 epochs" in said.out


def test_replace_starts_from_the_beginning(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        assert call("train", *QUICK, "--out", tmp_path / "a").code == 130
    assert call("train", *QUICK, "--seed", 1, "--replace", "--out", tmp_path / "a").code == 0
    assert runs.configuration(tmp_path / "a")["seed"] == 1 and [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_an_interrupted_process_ends_quickly(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    words = ("train", "digits", "--epochs", "100000", "--out", "cut")
    command = [sys.executable, "-m", "functional_nn.lab.cli", *words]
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".cut.checkpoints")) and run.poll() is None:
        time.sleep(0.01)
    time.sleep(1)  # it is compiling now, or training
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and said.count("\n") == 1 and "--resume" in said, said
    assert time.monotonic() - began < 20 and list(tmp_path.glob(".cut.checkpoints/checkpoint-*.npz"))


@pytest.mark.parametrize("interrupted", [SystemExit(130), KeyboardInterrupt()])
def test_an_interrupted_script_leaves_nothing_running(monkeypatch, interrupted):
    def main():
        raise interrupted

    ended, heard = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cli, "main", main)
    monkeypatch.setattr(cli.os, "_exit", ended.append)
    try:
        cli.script()
    finally:
        signal.signal(signal.SIGINT, heard)
    assert ended == [130]


def test_chunks_are_short():
    """In time: about a second of a slow machine at most."""
    gd, wide = fnn.optimizers.get("gd"), fnn.multilayer((784, 512, 10), ("tanh", "softmax"))
    assert commands._chunk(wide, gd, 60000, 32, 100) == 1
    assert commands._chunk(fnn.multilayer((4, 3), ("softmax",)), gd, 120, 32, 100) == 10
    assert 1 < commands._chunk(fnn.multilayer((64, 10), ("softmax",)), gd, 1437, 32, 100_000) < 1000
    assert commands._chunk(fnn.multilayer((4, 3), ("softmax",)), fnn.optimizers.get("newton"), 120, 0, 100) == 1


# When it stops --------------------------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_epoch(tmp_path, monkeypatch):
    given = fitted(monkeypatch)
    words = ("iris", "--hidden", 8, "--learning-rate", 0.3, "--epochs", 60, "--early-stopping", 2)
    said = call("train", *words, "--out", tmp_path / "a")
    (_, result), config = given[0], runs.configuration(tmp_path / "a")
    assert result.status == "early_stopping" == config["results"]["status"] and config["early_stopping"] == 2
    losses = result.history.validation_loss
    assert int(np.argmin(losses)) == len(losses) - 3, "the lowest is two epochs before the end"
    assert config["results"]["held out"]["loss"] == pytest.approx(losses.min(), rel=1e-5)
    assert said.code == 0 and "which chose the epoch" in said.out and result.reason in said.out


def test_the_page_says_what_the_held_out_part_chose():
    result = types.SimpleNamespace(best=types.SimpleNamespace(epoch=3))
    assert pages._choice({"early_stopping": None}, result) == "The held-out part was not used to choose anything."
    assert "that of epoch 3" in pages._choice({"early_stopping": 2}, result)
    by_name = {"early_stopping": None, "stop": ["unchanged", "generalization_loss(5)"]}
    assert "that of epoch 3" in pages._choice(by_name, result)
    not_restored = pages._choice(by_name, types.SimpleNamespace(best=None))
    assert not_restored.startswith("The held-out part chose when to stop. So")
    assert "not used" in pages._choice({"early_stopping": None, "stop": ["cycle"]}, types.SimpleNamespace(best=None))


def test_criteria_are_given_by_name(tmp_path, monkeypatch):
    given = fitted(monkeypatch)
    criteria = ("generalization_loss(1)", "no_change(1e-9, 3)")
    words = ("iris", "--hidden", 8, "--learning-rate", 0.3, "--epochs", 60, "--stop", *criteria)
    said = call("train", *words, "--replacement", "--batch-size", 20, "--out", tmp_path / "a")
    (asked, result), config = given[0], runs.configuration(tmp_path / "a")
    assert asked["stop"] == list(map(fnn.training.termination.get, criteria)) and config["stop"] == list(criteria)
    assert asked["plan"] == fnn.training.minibatch(20, replacement=True) and config["replacement"] is True
    assert result.status == "generalization_loss" and int(result.best.epoch) < len(result.history.epoch)
    assert said.code == 0 and result.reason in said.out


def test_a_sweeps_criteria_keep_the_last_network(tmp_path, monkeypatch):
    given = fitted(monkeypatch, fnn.training, "fit_population")
    call("sweep", *QUICK, "--grid", "seed=0..1", "--stop", "generalization_loss(0)", "--out", tmp_path / "a")
    (asked, population) = given[0]
    assert [criterion.name for criterion in asked["stop"]] == ["generalization_loss"]
    assert population.groups[0].runs.best is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stop", "no_chnge"), "unknown criterion 'no_chnge'; did you mean 'no_change'"),
        (("--stop", "loss_below"), "missing a required argument: 'goal'"),
        (("--early-stopping", 3, "--stop", "generalization_loss"), "give the others restore=false, as in"),
        (("--replacement", "--batch-size", 0), "replacement: expected a batch size above 0, got 0"),
        (("--replacement", "--shuffle", "once"), "expected shuffle='each_epoch' and last='kept', got 'once'"),
        (("--gradient", "perceptron"), "perceptron rule trains a single layer; give --hidden with nothing after it"),
    ],
)
def test_criteria_and_batches_that_do_not_fit_are_refused(tmp_path, words, message):
    check_refused(call("train", *QUICK, *words, "--out", tmp_path / "a"), message)
    assert not (tmp_path / "a").exists()


# The perceptron rule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("and", "loss_below", "one layer can be right about (at most so many mistakes): false (51), true (51)"),
        ("xor", "cycle", "no weights of one layer are right about: false, true"),
    ],
)
def test_the_perceptron_rule_learns_a_truth_table_or_reports_that_no_weights_exist(tmp_path, name, status, told):
    rule = ("--hidden", "--gradient", "perceptron", "--optimizer", "gd(1)", "--batch-size", 1, "--shuffle", "never")
    said = call("train", name, *rule, "--out", tmp_path / "a")
    config, network = runs.configuration(tmp_path / "a"), runs.load(tmp_path / "a").network
    assert said.code == 0 and config["results"]["status"] == status and told in said.out
    assert network.output.activation.name == "hardlim" and config["loss"] == "sum_square_error(sum)"
    assert (config["results"]["held out"]["accuracy"] == 1) == (name == "and")
    assert "jax.grad" not in said.out and not (tmp_path / "a" / "agreement.csv").exists()
    (judged,) = call("evaluate", tmp_path / "a", name).out.splitlines()
    assert judged.startswith(f"{name} (4 examples): ")
    if name == "and":
        predicted = call("predict", tmp_path / "a", "and").out.split()
        assert predicted == ["class,output", "false,1.0", "false,1.0", "false,1.0", "true,1.0"]


# Learning rules -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    """A run by a rule that learns feedback weights in addition to the parameters."""
    folder = tmp_path_factory.mktemp("ruled") / "a"
    return folder, call("train", *QUICK, "--hidden", 3, "--rule", "kolen_pollack", "--out", folder)


@pytest.mark.slow
def test_a_run_by_a_rule_reports_its_angle_to_the_gradient(ruled):
    folder, said = ruled
    assert said.code == 0 and "hand-written against jax.grad: agree" in said.out
    assert runs.configuration(folder)["rule"] == "kolen_pollack"
    with (folder / "history.csv").open() as file:
        (*_, row) = csv.DictReader(file)
    assert -1 <= float(row["alignment/layer1/gradient_cosine"]) <= 1
    html = (folder / "report.html").read_text()
    assert "learning rule kolen_pollack" in html and equations.rule("kolen_pollack") in html


def test_feedback_weights_are_saved_and_not_used_forward(ruled):
    folder, _ = ruled
    run = runs.load(folder)
    assert run.params["layer2"]["feedback"]["layer1"].shape == run.params["layer2"]["weights"]["layer1"].shape
    assert call("evaluate", folder, QUICK[0]).code == call("predict", folder, QUICK[0]).code == 0


def test_another_rule_is_compared_with_a_runs_gradient(ruled, tmp_path):
    said = call("compare", ruled[0], "--rule", "sign_symmetric", "--out", tmp_path / "a")
    assert said.code == 0 and "another rule, not an error: sign_symmetric(uniform)" in said.out
    assert "degrees" in said.out and "DIFFERS" not in said.out
    html = (tmp_path / "a" / "report.html").read_text()
    assert "The direction of sign_symmetric(uniform), compared with the gradient" in html
    check_refused(call("compare", "--rule", "sign_symmetric"), "sign_symmetric can be compared only with", "folder")


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("--rule", "noisy(-1)"), ("noisy: sigma must be a finite number >= 0, got -1",)),
        (("--rule", "rounded(0)"), ("rounded: bits must be an integer >= 1, got 0",)),
        (("--rule", "{layer7: noisy(0.1)}"), ("rule: unknown layer 'layer7'", "layer1")),
        (("--rule", "feedback"), ("unknown rule 'feedback'; did you mean",)),
        (("--rule", "noisy(0.1)", "--gradient", "automatic"), ("rule: noisy(0.1) is a hand-written way back",)),
    ],
)
def test_rules_that_do_not_fit_are_refused(tmp_path, words, messages):
    check_refused(call("train", *QUICK, *words, "--out", tmp_path / "a"), *messages)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_rules_are_swept(tmp_path):
    words = ("--hidden", 3, "--grid", "rule=exact,{layer2: noisy(0.1)},dropped_back(0.2)", "--out", tmp_path / "a")
    said = call("sweep", *QUICK, *words)
    assert said.code == 0 and "3 completed" in said.out
    with (tmp_path / "a" / "results.csv").open() as file:
        assert [row["rule"] for row in csv.DictReader(file)] == ["exact", "{layer2: noisy(0.1)}", "dropped_back(0.2)"]


def test_regression_has_no_classes_to_separate(tmp_path):
    words = ("diabetes", "--hidden", "--gradient", "perceptron", "--out", tmp_path / "a")
    check_refused(call("train", *words), "targets: 'hardlim' neurons tell 0 and 1 apart, got")


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("command", [("train",), ("sweep", "--grid", "learning_rate=0.1")])
def test_seconds_limit_the_time(tmp_path, command):
    words = (command[0], *QUICK, *command[1:], "--seconds", 1e-3, "--out", tmp_path / "a")
    said = call(*words)
    assert said.code == 0 and "seconds" in said.out and [path.name for path in tmp_path.iterdir()] == ["a"]
    status = runs.configuration(tmp_path / "a")["results"]["status"]
    assert status in ("seconds", {"seconds": 1})


def test_a_sweep_whose_members_all_diverge_exits_with_1(tmp_path):
    words = ("diabetes", "--hidden", "--grid", "learning_rate=1e30", "--optimizer", "gd", "--epochs", 2)
    said = call("sweep", *words, "--batch-size", 0, "--out", tmp_path / "a")
    assert said.code == 1 and said.err == "" and "best: none" in said.out and (tmp_path / "a/report.html").is_file()


# Weights --------------------------------------------------------------------------------------------------------------


def test_weights_count_only_in_training(weighted, tmp_path, monkeypatch):
    given = fitted(monkeypatch)
    words = (weighted, "--hidden", "--epochs", 2, "--weights", "w", "--class-weights", "yes=3")
    assert call("train", *words, "--out", tmp_path / "a").code == 0
    (named, _), config = given[0], runs.configuration(tmp_path / "a")
    assert named["class_weights"] == {1: 3.0} and config["class_weights"] == "yes=3" and config["weights"] == "w"
    assert config["features"] == ["a", "b"] and config["classes"] == ["no", "yes"]
    dataset = datasets.load(weighted, weights="w")
    training, _ = datasets.split(dataset)
    assert np.array_equal(named["weights"], training.weights) and set(dataset.weights) == {0, 1}
    # other data need not have the column
    with weighted.open() as file:
        plain = table(tmp_path / "plain.csv", None, [(a, b, kind) for a, b, _, kind in csv.reader(file)])
    expected = config["results"]["held out"]
    for data in (weighted, plain):
        said = call("evaluate", tmp_path / "a", data, "--part", "held-out")
        assert said.out.endswith(f": loss {expected['loss']}, accuracy {expected['accuracy']}\n"), said
    assert call("predict", tmp_path / "a", plain).out == call("predict", tmp_path / "a", weighted).out


def test_an_example_of_weight_zero_is_like_a_missing_one(weighted, tmp_path):
    """Full batches: the same network comes of the others alone."""
    words = ("--hidden", "--epochs", 3, "--batch-size", 0, "--optimizer", "gd(0.1)")
    assert call("train", weighted, *words, "--weights", "w", "--out", tmp_path / "a").code == 0
    run, (training, _) = runs.load(tmp_path / "a"), datasets.split(datasets.load(weighted, weights="w"))
    at = training.weights > 0
    with jax.enable_x64(False):
        x, t = run.inputs.apply(training.inputs[at], dtype=np.float32), training.targets[at].astype(np.float32)
        alone = fnn.fit(
            run.network, "cross_entropy", "gd(0.1)", x, t, key=jax.random.key(0), epochs=3, plan=fnn.training.batch()
        )
        for own, other in zip(jax.tree.leaves(run.params), jax.tree.leaves(alone.params), strict=True):
            assert np.allclose(own, other, rtol=1e-4, atol=1e-6)


def test_a_sweep_takes_the_same_weights(weighted, tmp_path, monkeypatch):
    given = fitted(monkeypatch, fnn.training, "fit_population")
    words = (weighted, "--hidden", "--epochs", 1, "--weights", "w", "--class-weights", "balanced")
    assert call("sweep", *words, "--grid", "learning_rate=0.1", "--out", tmp_path / "a").code == 0
    named, config = given[0][0], runs.configuration(tmp_path / "a")
    assert named["class_weights"] == "balanced" == config["class_weights"] and config["weights"] == "w"
    assert np.array_equal(named["weights"], datasets.split(datasets.load(weighted, weights="w"))[0].weights)


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("--class-weights", "yse=2"), ("'yse'", "did you mean 'yes'?", "no, yes")),
        (("--class-weights", "yes=-1"), ("NAME=WEIGHT", ">= 0", "'yes=-1'")),
        (("--class-weights", "yes=inf"), ("'yes=inf'",)),
        (("--class-weights", "even"), ("balanced", "'even'")),
        (("--class-weights", "yes=1,yes=2"), ("'yes' is given twice",)),
        (("--weights", "ww"), ("weights column 'ww'", "did you mean 'w'?")),
        (("--weights", "kind"), ("line 2", "'kind'", "a number >= 0")),
        (("--weights", "a"), ("line ", "'a'", "a number >= 0")),
        (("--weights", "w", "--columns", "a", "w"), ("'w' holds the weights",)),
        (("--weights", "w", "--target", "w"), ("the column 'w' cannot be both",)),
        (("--early-stopping", 0), ("patience", "got 0")),
        (("--seconds", 0), ("seconds", "got 0")),
        (("--dropout", 1.5), ("dropout", "1.5")),
        (("--dropout", 0.1, "--hidden"), ("dropout", "hidden")),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_both_refuse_in_one_line_and_leave_nothing(weighted, tmp_path, command, words, texts):
    grid = ("--grid", "learning_rate=0.1") if command == "sweep" else ()
    check_refused(call(command, weighted, *grid, "--epochs", 1, *words, "--out", tmp_path / "a"), *texts)
    assert not list(tmp_path.iterdir())


def test_data_without_columns_or_classes_takes_no_weights(tmp_path):
    check_refused(call("train", "iris", "--weights", "w", "--out", tmp_path / "a"), "weights='w'", "CSV")
    check_refused(call("train", "diabetes", "--class-weights", "balanced", "--out", tmp_path / "a"), "not classes")


def test_rows_left_out_take_their_weights_along(tmp_path):
    rows = [(i, "?" if i % 5 == 0 else 1, i, ("yes", "no", "")[i % 3]) for i in range(30)]
    data = table(tmp_path / "data.csv", ("a", "b", "w", "kind"), rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = datasets.load(data, weights="w", missing="drop")
        assert datasets.load_as(data, dataset.reading).weights is None
    assert np.array_equal(dataset.weights, dataset.inputs[:, 0]) and len(dataset.weights) == 16


# Dropout, logs --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dropout_is_swept(tmp_path):
    words = ("iris", "--hidden", 4, "--epochs", 2)
    assert call("sweep", *words, "--grid", "dropout=0,0.5", "--out", tmp_path / "a").code == 0
    assert call("sweep", *words, "--grid", "seed=0", "--dropout", 0.5, "--out", tmp_path / "b").code == 0
    with (tmp_path / "a/results.csv").open() as file:
        assert [float(row["dropout"]) for row in csv.DictReader(file)] == [0, 0.5]
    assert runs.load(tmp_path / "b").network.layers[0].dropout == 0.5
    check_refused(call("sweep", *words, "--grid", "dropot=0,0.5", "--out", tmp_path / "c"), "did you mean 'dropout'?")
    check_refused(call("sweep", *words, "--grid", "dropout=0,2", "--out", tmp_path / "c"), "dropout=2", "got 2")


def test_the_log_has_every_epoch(tmp_path, monkeypatch):
    """With a stand-in for tensorboardX, which is an extra."""
    written, folders = [], []

    class Writer:
        def __init__(self, folder):
            folders.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, step, float(value)))

        def flush(self): ...

        def close(self): ...

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    said = call("train", *QUICK, "--log-dir", tmp_path / "log", "--out", tmp_path / "a")
    assert said.code == 0 and folders == [str(tmp_path / "log")]
    with (tmp_path / "a/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [(name, int(row["epoch"]), float(row[name])) for row in rows for name in row if name != "epoch"]
    assert len(expected) == 20
    for (name, step, value), (own, epoch, number) in zip(sorted(written), sorted(expected), strict=True):
        assert (name, step) == (own, epoch) and value == pytest.approx(number, rel=1e-6)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    check_refused(call("train", *QUICK, "--log-dir", tmp_path / "log", "--out", tmp_path / "b"), "pip install")


# One set of defaults, one key -----------------------------------------------------------------------------------------


def test_train_and_sweep_have_the_same_defaults():
    one, other = (inspect.signature(command).parameters for command in (cli.train, cli.sweep))
    differing = {name for name in one.keys() & other.keys() if one[name].default != other[name].default}
    assert differing == {"shuffle"}, "of one run and of a population, these are different things"


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_is_the_key_of_fit(tmp_path, seed):
    """And a sweep's member is what train gives."""
    words = (*QUICK, "--seed", seed)
    assert call("train", *words, "--out", tmp_path / "a").code == 0
    assert call("sweep", *words, "--grid", "optimizer=adam", "--out", tmp_path / "b").code == 0
    run, swept = runs.load(tmp_path / "a"), runs.load(tmp_path / "b")
    training, _ = datasets.split(datasets.load("iris"), seed=seed)
    with jax.enable_x64(False):
        x, t = run.inputs.apply(training.inputs, dtype=np.float32), training.targets.astype(np.float32)
        alone = fnn.fit(run.network, "cross_entropy", "adam", x, t, key=jax.random.key(seed), epochs=4)
        expected = jax.tree.map(np.asarray, alone.params)
    for a, b, c in zip(*map(jax.tree.leaves, (run.params, expected, swept.params)), strict=True):
        assert np.array_equal(a, b) and np.allclose(a, c, rtol=1e-4, atol=1e-5)


# What is said ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("always")
def test_warnings_and_errors_are_one_line_each(monkeypatch):
    def warn(*given):
        warnings.warn("the first\nof two", fnn.compiler.CompilerWarning, stacklevel=1)
        raise ValueError("wrong\n  throughout")

    monkeypatch.setattr(commands, "evaluate", warn)
    said = call("evaluate", "a", "iris")
    assert said.code == 2
    assert said.err == "functional-nn: the first of two\nfunctional-nn: wrong throughout\n"


def test_a_sample_without_a_mistake_does_not_end_the_perceptron_rule(tmp_path, monkeypatch):
    given = fitted(monkeypatch)
    rule = ("--hidden", "--gradient", "perceptron", "--optimizer", "gd(1)", "--batch-size", 1)
    call("train", "nor", *rule, "--replacement", "--epochs", 5, "--out", tmp_path / "a")
    assert [criterion.name for criterion in given[0][0]["stop"]] == ["cycle"]
