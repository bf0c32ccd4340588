"""Data on the command line: how a file was read goes with its run; predictions keep every digit and need no targets."""

import csv
import io
import json
import shutil
import types
import warnings

import numpy as np
import pytest
from lab.test_cli import ONE_EPOCH, call, check_refused, table

from functional_nn.lab import commands, datasets, runs

AGREE = types.SimpleNamespace(
    verdict="agree", total=types.SimpleNamespace(relative=0.0), to_csv=lambda path: None, to_json=lambda path: None
)
COLOURS = ("red", "green", "blue")


def parsed(said):
    assert said.code == 0, said
    return list(csv.DictReader(io.StringIO(said.out)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of data, with runs on it: (folder, {name: what was said})."""
    folder, said = tmp_path_factory.mktemp("data"), {}
    draw = np.random.default_rng(4)
    x = draw.normal(size=(30, 2)).round(3)
    cells = [(i, "" if i % 6 == 0 else a, COLOURS[i % 3], b, "pqr"[i % 3]) for i, (a, b) in enumerate(x.tolist())]
    table(folder / "things.csv", ("", "size", "colour", "b", "kind"), cells)
    seconds = [(a, b, f"{1.7e9 + 3600 * (a + 2 * b):.1f}") for a, b in draw.normal(size=(40, 2)).round(4).tolist()]
    table(folder / "seconds.csv", ("a", "b", "seconds"), seconds)
    pixels, labels = draw.integers(0, 256, (30, 4, 4)).astype(np.uint8), np.arange(30) % 3
    np.savez(folder / "bytes.npz", x_train=pixels[:20], y_train=labels[:20], x_test=pixels[20:], y_test=labels[20:])
    np.savez(folder / "unit.npz", x=pixels / 255)
    np.savez(folder / "large.npz", x=pixels.astype(float))
    trained = {
        "things": ("things.csv", "--missing", "indicator"),
        "seconds": ("seconds.csv", "--columns", "a", "b", "--batch-size", 0),
        "bytes": ("bytes.npz",),
    }
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.filterwarnings("default", ".*numbers the rows")
        patch.setattr(commands.pages, "trained", lambda *given: "")  # test_cli.py has the tests of pages and gradients
        patch.setattr(commands.fnn, "compare", lambda *given, **named: AGREE)
        for name, (source, *words) in trained.items():
            said[name] = call("train", folder / source, *ONE_EPOCH[:3], *words, "--out", folder / "runs" / name)
    return folder, said


def config_of(folder, name):
    return json.loads((folder / "runs" / name / "config.json").read_text())


@pytest.mark.slow
def test_left_out_rows_are_reported_in_one_line(made):
    folder, said = made
    assert (
        said["things"].err == f"functional-nn: {folder}/things.csv: the column at index 0 has no name and numbers "
        "the rows; it is left out\n"
    )
    assert {said[name].code for name in said} == {0} and said["seconds"].err == said["bytes"].err == ""


def test_fewer_examples_than_a_batch_are_one_batch(made):
    """24 rows to train on, and nothing said of batches: as `fit` has it, not refused."""
    folder, _ = made
    assert config_of(folder, "things")["batch_size"] == 24 and config_of(folder, "bytes")["batch_size"] == 20
    check_refused(
        call(
            "train",
            folder / "things.csv",
            "--missing",
            "mean",
            *ONE_EPOCH[:3],
            "--batch-size",
            25,
            "--drop",
            0,
            "--out",
            folder / "new",
        ),
        "1 to 24",
        "got 25",
    )


def test_a_full_batch_method_gets_all_examples(made, monkeypatch):
    plans = []
    monkeypatch.setattr(commands.fnn, "fit", lambda *given, plan, **named: plans.append(plan) or exit(0))
    for optimizer in ("lbfgs", "rprop", "adam"):
        call("train", made[0] / "seconds.csv", "--hidden", "--optimizer", optimizer, "--out", made[0] / "new")
    assert [plan.size for plan in plans] == [None, None, 32]


def test_a_run_stores_how_its_table_is_read(made, tmp_path):
    """Another file with other columns, in another order and dialect, without the target, gives the same predictions."""
    folder, _ = made
    run = runs.load(str(folder / "runs" / "things"))
    dataset = datasets.load_as(folder / "things.csv", run.reading)
    assert dataset.features == ("size", "size missing", "colour=blue", "colour=green", "colour=red", "b")
    outputs = np.asarray(run.network.apply(run.params, run.inputs.apply(dataset.inputs)))
    whole = call("predict", folder / "runs/things", folder / "things.csv")
    rows = parsed(whole)
    assert [row["class"] for row in rows] == ["pqr"[c] for c in outputs.argmax(axis=1)]
    assert [np.float32(row["output"]) for row in rows] == outputs.max(axis=1).tolist()
    with (folder / "things.csv").open() as file:
        cells = list(csv.DictReader(file))
    lines = [f"{row['b']};note;{row['colour']};{row['size'] or 'NA'}".replace(".", ",") for row in cells]
    (tmp_path / "other.csv").write_text("\r\n".join(["\ufeffb;more;colour;size", *lines]), encoding="utf-8")
    assert call("predict", folder / "runs/things", tmp_path / "other.csv") == whole
    some = [(row["kind"], row["b"], row["colour"], row["size"]) for row in cells if row["kind"] == "q"]
    for chosen in (some, some[:1]):
        path = table(tmp_path / "some.csv", ("kind", "b", "colour", "size"), chosen)
        said = call("evaluate", folder / "runs/things", path)
        right = np.mean([outputs[3 * i + 1].argmax() == 1 for i in range(len(chosen))])
        assert said.out.startswith(f"some.csv ({len(chosen)} examples)") and said.err == ""
        assert float(said.out.split()[-1]) == pytest.approx(right, rel=1e-6)


def test_all_outputs_are_written_on_request(made, tmp_path):
    folder, _ = made
    words = ("predict", folder / "runs/things", folder / "things.csv")
    assert call(*words, "--probabilities", "--out", tmp_path / "p.csv").out == ""
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    plain = parsed(call(*words))
    assert list(rows[0]) == ["class", "output", "p", "q", "r"]
    for row, short in zip(rows, plain, strict=True):
        outputs = {name: float(row[name]) for name in "pqr"}
        assert {name: row[name] for name in short} == short and row["output"] == row[row["class"]]
        assert sum(outputs.values()) == pytest.approx(1, abs=1e-6) and max(outputs, key=outputs.get) == row["class"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("b,colour,size\n1,purple,2\n", ("line 2, column 'colour': unknown level 'purple'", "blue, green, red")),
        ("b,colours,size\n1,red,2\n", ("missing colour", "did you mean 'colours'?")),
        ("b,colour,size\n1,red,two\n", ("line 2, column 'size': expected a number, got 'two'",)),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(made, tmp_path, text, said):
    (tmp_path / "new.csv").write_text(text)
    check_refused(call("predict", made[0] / "runs/things", tmp_path / "new.csv"), *said)


def test_predictions_keep_every_digit(made):
    """Of seconds since 1970, to be told apart to less than one: six digits would make all of them one number."""
    folder, _ = made
    run = runs.load(folder / "runs" / "seconds")
    inputs = datasets.load_inputs(folder / "seconds.csv", run.reading)
    outputs = np.asarray(run.network.apply(run.params, run.inputs.apply(inputs)), np.float64)
    found = [
        float(row["prediction"]) for row in parsed(call("predict", folder / "runs/seconds", folder / "seconds.csv"))
    ]
    assert found == run.targets.invert(outputs)[:, 0].tolist() and len(set(found)) == 40
    said = call("evaluate", folder / "runs/seconds", folder / "seconds.csv").out
    truth = np.loadtxt(folder / "seconds.csv", delimiter=",", skiprows=1)[:, 2]
    assert float(said.split()[-1]) == pytest.approx(np.sqrt(np.mean((np.array(found) - truth) ** 2)), rel=1e-12)
    held_out = config_of(folder, "seconds")["results"]["held out"]
    assert f"root mean square error {held_out['root mean square error']}\n" in made[1]["seconds"].out


def test_the_test_part_of_a_file_is_held_out(made):
    folder, said = made
    results = config_of(folder, "bytes")["results"]["held out"]
    assert f"held out (10 examples, its own test part): loss {results['loss']}, " in said["bytes"].out
    words = call("evaluate", folder / "runs/bytes", folder / "bytes.npz", "--part", "held-out").out
    assert words == f"bytes.npz (10 examples): loss {results['loss']}, accuracy {results['accuracy']}\n"


def test_pictures_are_predicted_on_the_scale_of_the_run(made):
    folder, _ = made
    whole = call("predict", folder / "runs/bytes", folder / "bytes.npz")
    assert len(parsed(whole)) == 30 and call("predict", folder / "runs/bytes", folder / "unit.npz") == whole
    said = call("predict", folder / "runs/bytes", folder / "large.npz")
    check_refused(said, "expected pictures from 0 to 1", "got 0 to 255")


def test_outputs_that_are_not_finite_are_refused_as_predictions(made, tmp_path):
    run = shutil.copytree(made[0] / "runs/seconds", tmp_path / "run")
    with np.load(run / "parameters.npz") as archive:
        np.savez(run / "parameters.npz", **{name: np.full_like(archive[name], np.nan) for name in archive})
    check_refused(call("predict", run, made[0] / "seconds.csv"), "outputs for example 0 are not finite")


@pytest.mark.parametrize("name", ["seconds", "bytes"])
def test_runs_of_older_versions_are_read(made, tmp_path, name):
    """They say nothing of tables, pictures and parts for testing."""
    folder, _ = made
    source = folder / {"seconds": "seconds.csv", "bytes": "unit.npz"}[name]
    run = shutil.copytree(folder / "runs" / name, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    for key in ("table", "pictures", "own_test"):
        del config[key]
    del config["inputs"]["fill"]
    (run / "config.json").write_text(json.dumps(config))
    assert call("predict", run, source) == call("predict", folder / "runs" / name, source)
    if name == "seconds":
        for words in ((), ("--part", "held-out")):
            assert call("evaluate", run, source, *words) == call("evaluate", folder / "runs" / name, source, *words)


@pytest.mark.slow
def test_a_sweep_reads_data_like_train(made):
    """And has the same batches by default, of 24 rows."""
    folder, _ = made
    words = ("--grid", "seed=0,1", "--hidden", "--epochs", 1, "--missing", "mean", "--drop", 0, "--devices", 1)
    said = call("sweep", folder / "things.csv", *words, "--out", folder / "runs" / "swept")
    assert said.code == 0 and said.err == "" and config_of(folder, "swept")["table"]["missing"] == "mean"
    rows = parsed(call("predict", folder / "runs/swept", folder / "things.csv"))
    assert len(rows) == 30 and {row["class"] for row in rows} <= set("pqr")
    table = csv.DictReader(io.StringIO((folder / "runs/swept/results.csv").read_text()))
    assert {row["updates"] for row in table} == {"1"}
