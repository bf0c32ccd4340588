"""What the research scripts stand on: data as a network takes them, words, and files that say where they come from."""

import csv
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from lab.test_report import check_self_contained

from functional_nn.lab import datasets, experiments


@pytest.mark.parametrize(
    ("name", "loss", "output", "widths"),
    [("digits", "cross_entropy", "softmax", (64, 10)), ("diabetes", "mean_square_error", "linear", (10, 1))],
)
def test_tasks_are_the_fixed_split_scaled_by_its_training_part(name, loss, output, widths):
    task = experiments.load(name)
    training, test = datasets.split(datasets.load(name))
    assert (task.loss, task.output) == (loss, output)
    assert task.inputs.shape == (len(training.inputs), widths[0]) and task.targets.shape[1] == widths[1]
    assert task.test[0].shape == (len(test.inputs), widths[0]) and task.test[1].shape[1] == widths[1]
    assert {x.dtype for x in (task.inputs, task.targets, *task.test)} == {np.dtype("float32")}
    if name == "digits":
        np.testing.assert_allclose(task.test_inputs, test.inputs)
        assert task.inputs.min() == 0 and task.inputs.max() == 1
    else:
        for part in (task.inputs, task.targets):
            np.testing.assert_allclose(
                (part.mean(axis=0), part.std(axis=0)), np.array([[0.0], [1.0]]) * np.ones((2, part.shape[1])), atol=1e-5
            )
        mean, scale = training.inputs.mean(axis=0), training.inputs.std(axis=0)
        np.testing.assert_allclose(task.test_inputs, (test.inputs - mean) / scale, atol=1e-5)


def words(monkeypatch, *given, **defaults):
    monkeypatch.setattr(sys, "argv", ["script.py", *given])
    return experiments.arguments("What it does.", "results/script", **defaults)


def test_a_scripts_options_have_defaults_and_are_integers(monkeypatch):
    options = words(monkeypatch, "--epochs", "3", seeds=8, epochs=50)
    assert (options.seeds, options.epochs, str(options.out)) == (8, 3, "results/script")


@pytest.mark.parametrize("wrong", ["0", "-1", "2.5", "many"])
def test_invalid_counts_are_refused(monkeypatch, capsys, wrong):
    with pytest.raises(SystemExit) as left:
        words(monkeypatch, "--seeds", wrong, seeds=8)
    assert left.value.code == 2 and "--seeds" in capsys.readouterr().err


def test_a_table_and_its_picture_say_where_they_come_from(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/somewhere/scripts/script.py", "--seeds", "2"])
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    rows = [{"name": "ours", "loss": 0.123456789}, {"name": "theirs", "loss": np.float32(2)}]
    experiments.write(tmp_path / "new" / "table", rows, figure, "What was found.\n")
    plt.close(figure)
    text = (tmp_path / "new" / "table.txt").read_text()
    assert text.startswith("python scripts/script.py --seeds 2\n")
    assert "0.1235" in text and "What was found." in text and "measured on: functional_nn" in text
    assert "somewhere" not in text and text.split("\n", 2)[2].strip() in capsys.readouterr().out
    with (tmp_path / "new" / "table.csv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [0.123456789, 2.0]
    assert (tmp_path / "new" / "table.png").read_bytes()[:4] == b"\x89PNG"
    page = check_self_contained((tmp_path / "new" / "table.html").read_text(encoding="utf-8"))
    assert page.within("td")[:5] == ["ours", "0.1235", "theirs", "2", "command"]
    assert [cell["data-value"] for cell in page.all("td") if "data-value" in cell] == ["0.123456789", "2.0"]
    assert "python scripts/script.py --seeds 2" in page.within("td") and "environment.jax" in page.within("td")
    assert page.within("h1") == ["functional_nn: table"] and "What was found." in page.within("p")
    assert page.all("svg")[0]["aria-label"] == "Figure of the table below. script.py"


@pytest.mark.parametrize(
    ("source", "about"),
    [
        ('"""What it\nmeasures.\n\nMore."""\nx = 1\n', "What it measures."),
        ("x = 1\n", "own.py"),
        ("x = (\n", "own.py"),
        ('"""Of <b> & "so"."""', 'Of <b> & "so".'),
    ],
)
def test_a_page_describes_itself_with_the_scripts_docstring(monkeypatch, tmp_path, source, about):
    script = tmp_path / "own.py"
    script.write_text(source)
    monkeypatch.setattr(sys, "argv", [str(script)])
    for alternative, said in (("", f"Figure of the table below. {about}"), ("A line.", "A line.")):
        experiments.write(tmp_path / "a_table", [{"n": 1}], plt.figure(), alternative=alternative)
        page = check_self_contained((tmp_path / "a_table.html").read_text(encoding="utf-8"))
        assert page.all("svg")[0]["aria-label"] == said and about in page.within("p")
        assert page.within("title") == ["functional_nn: a table"]
    assert plt.get_fignums() == []


def test_a_table_without_a_picture_has_a_page(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["nowhere.py"])
    experiments.write(tmp_path / "table", [{"n": 1}])
    page = check_self_contained((tmp_path / "table.html").read_text(encoding="utf-8"))
    assert not page.all("svg") and not (tmp_path / "table.png").exists()
