"""Sequences on the command line: texts, series of a table, and tokens of an NPZ file; their runs are used again."""

import csv
import io
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from lab.test_cli import call, check_refused, table

import functional_nn as fnn
from functional_nn.lab import commands, datasets, runs

DRAW = np.random.default_rng(0)
PLAY = "".join(DRAW.choice(list("to be ör"), 400))
SERIES = np.column_stack([np.arange(40.0) ** 2, DRAW.normal(size=40), 3 + 0.1 * np.arange(40)])
TOKENS, EACH, LENGTHS = DRAW.integers(0, 4, (20, 5)), DRAW.integers(0, 3, (20, 5)), DRAW.integers(1, 6, 20)
GRU = "gru(width=4)"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of data, with a run on a text, one on a series, and one on tokens that each have a label."""
    folder = tmp_path_factory.mktemp("sequences")
    (folder / "play.txt").write_text(PLAY)
    table(folder / "series.csv", ("square", "noise", "load"), SERIES.tolist())
    table(folder / "single.csv", ("load",), SERIES[:, 2:].tolist())
    np.savez(folder / "one.npz", x=TOKENS, y=TOKENS.sum(axis=1) > 7)
    np.savez(folder / "each.npz", x=TOKENS, y=EACH, lengths=LENGTHS)
    with pytest.MonkeyPatch.context() as patch:  # test_cli.py has the tests of costs and opinions
        compare, few = commands.fnn.compare, {"costs": False, "second_opinions": False}
        patch.setattr(commands.fnn, "compare", lambda *given, **named: compare(*given, **named | few))
        patch.setattr(commands.pages, "_opinions", lambda agreement: "")
        for name, *words in (
            ("play.txt", "--context", 4, "--network", GRU),
            ("series.csv", "--window", 5, "--horizon", 2, "--columns", "noise", "--hidden"),
            ("each.npz", "--network", "elman(width=3)"),
        ):
            said = call("train", folder / name, *words, "--epochs", 1, "--out", folder / name.partition(".")[0])
            assert said.code == 0, said
            for owner, what, stub in ONE_WILL_DO:  # of the text everything is made
                patch.setattr(owner, what, stub)
    return folder


def untrained(*given, params, **named):
    nothing = [np.zeros(1)] * 5
    history = fnn.training.History(np.ones(1, int), *nothing)
    return fnn.training.FitResult(SimpleNamespace(params=params), history, "completed", "", None)


def nothing_compared(*given, **named):
    total, written = SimpleNamespace(relative=0.0), lambda path: None
    return SimpleNamespace(verdict="agree", total=total, to_csv=written, to_json=written)


ONE_WILL_DO = (
    (commands.fnn, "fit", untrained),
    (commands.fnn, "compare", nothing_compared),
    (commands.fnn.comparison, "monitor", lambda *given: lambda params: ()),
    (commands.pages, "trained", lambda *given: ""),
)


@pytest.fixture
def given(monkeypatch):
    """What `fit` would be given, in place of training."""

    def fit(network, loss, optimizer, inputs, targets, **named):
        found.update(named, network=network, inputs=inputs, targets=targets)
        raise ValueError("that will do")

    found = {}
    monkeypatch.setattr(commands.fnn, "fit", fit)
    monkeypatch.setattr(commands.fnn.comparison, "monitor", lambda *given: lambda params: ())
    return found


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_a_text_stores_its_vocabulary_and_reports_bits(made):
    run, config = runs.load(made / "play"), json.loads((made / "play/config.json").read_text())
    assert config["classes"] == sorted(set(PLAY)) and (config["unit"], config["context"]) == ("character", 4)
    assert run.network == fnn.presets.get(GRU)(4, 7, tokens=7, each_position=True)
    held_out = config["results"]["held out"]
    assert math.isclose(held_out["bits per character"], held_out["loss"] / math.log(2), abs_tol=1e-6)
    said = call("evaluate", made / "play", made / "play.txt", "--part", "held-out")
    bits = f"bits per character {held_out['bits per character']}"
    assert said.out == f"play.txt (19 examples): loss {held_out['loss']}, {bits}, accuracy {held_out['accuracy']}\n"
    assert (made / "play/report.html").is_file() and (made / "play/agreement.json").is_file()


def test_a_text_is_continued(made, tmp_path):
    words = ("predict", made / "play", "--prompt", "to be ör", "--length", 9)
    said = call(*words)
    assert said.code == 0 and said.out.startswith("to be ör") and len(said.out) == 8 + 9 + 1
    assert call(*words).out == said.out != call(*words, "--seed", 1).out
    call(*words, "--out", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == said.out
    with jax.enable_x64(False):
        run = runs.load(made / "play")
        last = np.array([run.config["classes"].index(c) for c in "e ör"], np.int32)  # of more, the context
        drawn = fnn.generate(run.network, run.params, last, jax.random.key(0), count=9)
    assert said.out == "to be ör" + "".join(run.config["classes"][token] for token in drawn) + "\n"


def test_a_text_is_read_as_windows_of_the_context(made, tmp_path, given):
    words = ("train", made / "play.txt", "--out", tmp_path / "a")
    check_refused(call(*words, "--unit", "byte"), "that will do")
    assert given["network"] == fnn.presets.get("gru")(64, 256, tokens=256, each_position=True)
    (held_out, _), stream = given["validation"], np.frombuffer(PLAY.encode(), np.uint8)
    tokens = np.concatenate([given["inputs"].tokens, held_out.tokens])
    assert tokens.tolist() == stream.tolist() and len(held_out.tokens) == round(0.2 * len(stream))
    assert given["targets"] is None and given["inputs"].context == held_out.context == 64


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "play.txt", "--context", 100), "play.txt: the held-out end of its text has 80 characters"),
        (("train", "play.txt", "--hidden", 3), "hidden: network 'gru' has its own layers"),
        (
            ("train", "play.txt", "--network", "lenet"),
            "a text needs `train` (not `sweep`) and a network of sequences, such as --network gru",
        ),
        (("train", "play.txt", "--target", "x"), "target: "),
        (("train", "play.txt", "--label-smoothing", 0.1), "label_smoothing: "),
        (("train", "iris", "--context", 3), "context: is only for a .txt file, and iris is not one; got 3"),
        (
            ("sweep", "play.txt", "--grid", "learning_rate=0.1,0.2"),
            "a text needs `train` (not `sweep`) and a network of sequences",
        ),
        (("predict", "play"), "expected either data or, for a run on text, --prompt"),
        (("predict", "play", "play.txt"), "is a run on text, which continues a text; give the text with --prompt"),
        (("predict", "play", "--prompt", "to bx"), "prompt: character 'x' at 4 is not in the vocabulary, the 7 chara"),
        (("predict", "play", "--prompt", ""), "prompt: expected at least one character, got none"),
        (("predict", "play", "--prompt", "t", "--length", 0), "length must be an integer >= 1, got 0"),
        (("predict", "series", "--prompt", "to"), "prompt: expected a run on text, but "),
        (("evaluate", "play", "play.txt", "--target", "x"), "play.txt: target and labels are not for a text; got 'x'"),
        (("evaluate", "play", "other.txt"), "other.txt: character 'q' at 0 is not in the vocabulary"),
    ],
)
def test_what_does_not_fit_a_text_is_refused(made, tmp_path, monkeypatch, words, says):
    (made / "other.txt").write_text("quite")
    monkeypatch.chdir(made)
    out = ("--out", tmp_path / "a") if words[0] in ("train", "sweep") else ()
    check_refused(call(*words, *out), says)


# Series ---------------------------------------------------------------------------------------------------------------


def test_windows_of_a_series_are_what_a_loop_makes(made):
    found = datasets.load(made / "series.csv", target="load", columns=("noise",), window=5, horizon=2)
    for q in range(40 - 6):
        assert found.inputs[q].tolist() == SERIES[q : q + 5, 1:].ravel().tolist()
        assert found.targets[q].tolist() == SERIES[q + 5 : q + 7, 2].tolist()
    assert len(found.inputs) == 34 and found.features[:2] == ("noise[-4]", "load[-4]") and found.task == "regression"
    training, held_out = datasets.split_rows(found, test_fraction=0.2)
    assert held_out.tolist() == list(range(27, 34)) and training.tolist() == list(range(26))
    assert training[-1] + 5 + 2 == held_out[0] + 5  # no row is told in both parts
    scale = datasets.fit_preparation(found, training)
    noise = np.concatenate([SERIES[q : q + 5, 1] for q in training])
    np.testing.assert_allclose(scale.mean[::2], noise.mean(), rtol=1e-12)
    np.testing.assert_allclose(scale.scale[::2], noise.std(), rtol=1e-12)


def test_a_run_on_a_series_is_used_again(made, tmp_path):
    run = runs.load(made / "series")
    assert run.reading == datasets.load(made / "series.csv", columns=("noise",), window=5, horizon=2).reading
    assert call("evaluate", made / "series", made / "series.csv", "--part", "held-out").out.startswith("series.csv (7 ")
    said = call("predict", made / "series", table(tmp_path / "new.csv", ("load", "noise"), SERIES[:8, [2, 1]].tolist()))
    rows = list(csv.reader(io.StringIO(said.out)))
    assert rows[0] == ["prediction", "prediction1"] and len(rows) == 1 + 4  # the last window's future is not known yet
    windows = np.stack([SERIES[q : q + 5, 1:].ravel() for q in range(4)])
    with jax.enable_x64(False):
        outputs = run.network.apply(run.params, run.inputs.apply(windows, dtype=np.float32))
    np.testing.assert_allclose(np.array(rows[1:], float), run.targets.invert(outputs), rtol=1e-6)


def test_a_network_of_sequences_reads_rows_of_a_series_in_order(made, tmp_path, given):
    call("train", made / "single.csv", "--window", 6, "--network", GRU, "--out", tmp_path / "a")
    assert given["network"] == fnn.presets.get(GRU)((6, 1), 1, output="linear")
    assert given["inputs"].shape == (27, 6, 1) and given["targets"].shape == (27, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("series.csv", "--window", 50), "series.csv: expected more than 51 rows, window 50 and horizon 1, got"),
        (("series.csv", "--window", 0), "series.csv: window must be an integer >= 1, got 0"),
        (("series.csv", "--horizon", 3), "horizon: is only for a series"),
        (("series.csv", "--window", 3, "--missing", "drop"), "missing='drop': a series needs all its rows"),
        (("series.csv", "--window", 3, "--task", "classification"), "task='classification': a series needs all"),
        (("iris", "--window", 3), "iris: window=3 is only for a CSV file"),
        (("iris", "--network", "gru"), "network 'gru' reads sequences: expected a .txt file, a CSV file with --window"),
    ],
)
def test_an_invalid_series_is_refused(made, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(made)
    check_refused(call("train", *words, "--out", tmp_path / "a"), says)


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_a_label_for_each_token_counts_within_its_sequence(made):
    config = json.loads((made / "each/config.json").read_text())
    assert (config["tokens"], config["inputs"], config["classes"]) == (4, None, ["0", "1", "2"])
    run, counted = runs.load(made / "each"), np.arange(5)[None, :] < LENGTHS[:, None]
    with jax.enable_x64(False):
        outputs = np.asarray(run.network.apply(run.params, TOKENS), np.float64)
    losses = -np.log(np.take_along_axis(outputs, EACH[..., None], axis=2)[..., 0])
    said = call("evaluate", made / "each", made / "each.npz").out
    loss = float(said.partition("loss ")[2].partition(",")[0])
    assert math.isclose(loss, losses[counted].mean(), rel_tol=1e-5)  # float32
    rows = list(csv.reader(io.StringIO(call("predict", made / "each", made / "each.npz").out)))
    assert rows[0] == [f"class{t}" for t in range(5)] and np.array_equal(
        np.array(rows[1:], int), outputs.argmax(axis=2)
    )


def test_one_label_per_sequence_is_a_class(made, tmp_path, given):
    call("train", made / "one.npz", "--network", GRU, "--out", tmp_path / "a")
    assert given["network"] == fnn.presets.get(GRU)(5, 2, tokens=4)
    assert given["inputs"].shape == (16, 5) and given["inputs"].dtype.kind == "i" and given["targets"].shape == (16, 2)
    call("train", made / "one.npz", "--hidden", "--out", tmp_path / "a")
    assert given["inputs"].dtype == np.float32  # numbers, to a network that is not for sequences


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": TOKENS - 1, "y": EACH}, "inputs: expected integers of 0 and above, got -1 at index ("),
        ({"x": TOKENS / 2, "y": EACH}, "inputs: expected tokens, integers (Q, T), or numbers (Q, T, R), got float64"),
        ({"x": TOKENS, "y": EACH - 1}, "targets: expected integers of 0 and above, got -1 at index ("),
        (
            {"x": TOKENS, "y": EACH, "lengths": LENGTHS + 5},
            "lengths: expected 0 to 5, the length of the sequences, got ",
        ),
        ({"x": TOKENS, "y": EACH, "lengths": LENGTHS[:3]}, "lengths: expected integers of shape (20,), got int64 of"),
    ],
)
def test_invalid_tokens_are_refused(tmp_path, arrays, says):
    np.savez(tmp_path / "bad.npz", **arrays)
    check_refused(call("train", tmp_path / "bad.npz", "--network", GRU, "--out", tmp_path / "a"), says)
