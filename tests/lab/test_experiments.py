"""The research scripts have data ready for a network, checked arguments, and files that say where they come from."""

import csv
import os
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
def test_a_task_is_the_fixed_split_scaled_by_its_training_part(name, loss, output, widths):
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


def parsed(monkeypatch, *given, **defaults):
    monkeypatch.setattr(sys, "argv", ["script.py", *given])
    return experiments.arguments("What it does.", "results/script", **defaults)


def test_arguments_have_defaults(monkeypatch):
    options = parsed(monkeypatch, "--epochs", "3", seeds=8, epochs=50)
    assert (options.seeds, options.epochs, str(options.out)) == (8, 3, "results/script")


@pytest.mark.parametrize("wrong", ["0", "-1", "2.5", "many"])
def test_counts_below_one_are_refused(monkeypatch, capsys, wrong):
    with pytest.raises(SystemExit) as left:
        parsed(monkeypatch, "--seeds", wrong, seeds=8)
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
def test_a_page_begins_with_the_scripts_docstring(monkeypatch, tmp_path, source, about):
    script = tmp_path / "own.py"
    script.write_text(source)
    monkeypatch.setattr(sys, "argv", [str(script)])
    for alternative, label in (("", f"Figure of the table below. {about}"), ("A line.", "A line.")):
        experiments.write(tmp_path / "a_table", [{"n": 1}], plt.figure(), alternative=alternative)
        page = check_self_contained((tmp_path / "a_table.html").read_text(encoding="utf-8"))
        assert page.all("svg")[0]["aria-label"] == label and about in page.within("p")
        assert page.within("title") == ["functional_nn: a table"]
    assert plt.get_fignums() == []


def test_a_table_without_a_picture_has_a_page(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["nowhere.py"])
    experiments.write(tmp_path / "table", [{"n": 1}])
    page = check_self_contained((tmp_path / "table.html").read_text(encoding="utf-8"))
    assert not page.all("svg") and not (tmp_path / "table.png").exists()


def test_a_task_is_divided_into_its_first_rows_and_the_others():
    task = experiments.load("digits")
    (x, t), (x_others, t_others) = task.divided(1000)
    assert len(x) == len(t) == 1000 and len(x_others) == len(t_others) == 438
    np.testing.assert_array_equal(np.concatenate([x, x_others]), task.inputs)
    np.testing.assert_array_equal(np.concatenate([t, t_others]), task.targets)


def test_the_best_rate_has_the_lowest_median_and_a_seed_that_diverged_counts_as_infinite():
    scores = np.array([[3.0, 3, 3], [1, np.nan, np.nan], [2, 2, 9]])
    assert experiments.best_rate(scores) == 2
    assert experiments.best_rate(np.stack([scores, scores[::-1]])).tolist() == [2, 0]
    assert experiments.best_rate(np.full((3, 2), np.inf), ties=[[2, 2], [1, 1], [np.nan, 1]]) == 1
    assert experiments.best_rate([[1.0], [1.0]], ties=[[5.0], [5.0]]) == 0


def test_all_cores_are_used_unless_a_number_is_set(monkeypatch):
    updated = {}
    monkeypatch.setattr(experiments.jax.config, "update", updated.__setitem__)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    experiments.start(all_cores=True)
    assert updated == {} and os.environ["JAX_NUM_CPU_DEVICES"] == "1"
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    experiments.start(x64=True, all_cores=True)
    assert updated == {"jax_enable_x64": True, "jax_num_cpu_devices": os.cpu_count()}
    assert os.environ["JAX_NUM_CPU_DEVICES"] == str(os.cpu_count())


def test_where_jax_already_runs_its_devices_stay(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # so that the end of the test restores it
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setattr(experiments.os, "cpu_count", lambda: 64)
    devices = experiments.jax.device_count()
    experiments.start(all_cores=True)
    assert experiments.jax.device_count() == devices


@pytest.mark.parametrize(("total", "shown"), [(2, [(1, "a"), (2, "b")]), (None, [(0, "1: a"), (0, "2: b")])])
def test_steps_are_counted(monkeypatch, total, shown):
    calls = []

    @experiments.contextlib.contextmanager
    def bar(title, count):
        assert title == "measuring" and count == (total or 1)
        yield lambda done, text: calls.append((done, text))

    monkeypatch.setattr(experiments, "progress", bar)
    with experiments.counted("measuring", total) as advance:
        advance("a")
        advance("b")
    assert calls == shown
