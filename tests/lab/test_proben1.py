"""PROBEN1's files are read as they are written, and those that are none are refused; its script runs on one, whole."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts.running import load, run

import functional_nn as fnn
from functional_nn.lab import datasets, proben1
from functional_nn.training import History

COUNTS = {
    "bool_in": 1,
    "real_in": 2,
    "bool_out": 2,
    "real_out": 0,
    "training_examples": 2,
    "validation_examples": 1,
    "test_examples": 1,
}
ROWS = ["1 0.5 -0.25 1 0", "0 1e-3 2 0 1", "1 0 0 0 1", "0 .5 1. 1 0"]


def written(path, rows=ROWS, header=None, **counts):
    lines = header or [f"{name}={value}" for name, value in (COUNTS | counts).items()]
    path.write_text("\n".join([*lines, *rows]) + "\n")
    return path


def test_a_problem_is_read_as_it_is_written(tmp_path):
    problem = proben1.read(written(tmp_path / "toy1.dt"))
    assert problem.name == "toy1" and problem.classes
    np.testing.assert_array_equal(problem.inputs, [[1, 0.5, -0.25], [0, 1e-3, 2], [1, 0, 0], [0, 0.5, 1]])
    np.testing.assert_array_equal(problem.targets, [[1, 0], [0, 1], [0, 1], [1, 0]])
    assert [part.tolist() for part in problem.parts] == [[0, 1], [2], [3]]


def test_gzipped_files_windows_line_ends_and_empty_lines_are_read(tmp_path):
    text = written(tmp_path / "toy.dt").read_text().replace("\n", "\r\n") + "\r\n\r\n"
    (tmp_path / "toy.dt.gz").write_bytes(gzip.compress(text.encode()))
    problem = proben1.read(str(tmp_path / "toy.dt.gz"))
    assert problem.name == "toy" and problem.inputs.shape == (4, 3)


@pytest.mark.parametrize(
    ("counts", "rows", "classes"),
    [
        ({"bool_out": 0, "real_out": 2}, ROWS, False),
        ({"real_in": 3, "bool_out": 1}, ROWS, False),  # one boolean is no class of several
        ({}, ["1 0 0 1 1", *ROWS[1:]], False),  # both
    ],
)
def test_classes_are_one_of_several_booleans(counts, rows, classes, tmp_path):
    assert proben1.read(written(tmp_path / "toy.dt", rows, **counts)).classes == classes


HEADER = [f"{name}={value}" for name, value in COUNTS.items()]
BAD = {
    "empty": (lambda path: path.write_text(""), r"line 1: expected bool_in=..., got ''"),
    "order": (lambda path: written(path, header=HEADER[::-1]), "line 1: expected bool_in=..., got 'test_examples=1'"),
    "name": (
        lambda path: written(path, header=["bool_inn=1", *HEADER[1:]]),
        "line 1: expected bool_in=..., got 'bool_inn=1'; did you mean 'bool_in'",
    ),
    "short": (lambda path: written(path, [], header=HEADER[:3]), "line 4: expected real_out=..., got ''"),
    "count": (lambda path: written(path, real_in=-2), "line 2: real_in: expected a count, got '-2'"),
    "word": (lambda path: written(path, real_in="two"), "line 2: real_in: expected a count, got 'two'"),
    "no outputs": (lambda path: written(path, bool_out=0), "expected at least one input, one output and one training"),
    "underscore": (lambda path: written(path, ["1 0 1_0 0 1", *ROWS[1:]]), "line 8: expected .*, got '1_0'"),
    "few numbers": (
        lambda path: written(path, ["1 0 0 1", *ROWS[1:]]),
        "line 8: expected 3 inputs and 2 outputs, got 4 numbers",
    ),
    "no number": (
        lambda path: written(path, [ROWS[0], "0 ? 0 0 1", *ROWS[2:]]),
        r"line 9: expected finite numbers, got '\?'",
    ),
    "nan": (lambda path: written(path, ["1 nan 0 1 0", *ROWS[1:]]), "line 8: expected finite numbers, got 'nan'"),
    "more": (lambda path: written(path, [*ROWS, ROWS[0]]), "line 12: expected 4 examples, .*, got more"),
    "fewer": (lambda path: written(path, ROWS[:3]), "expected 4 examples, as the header says, got 3"),
    "boolean": (
        lambda path: written(path, [*ROWS[:3], "0.5 0 0 1 0"]),
        "example 4: expected 0 or 1 for a boolean, got 0.5 at number 1",
    ),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "expected text, got bytes that are none"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"bool_in=1")[:-9]), "damaged gzip file"),
    "huge": (lambda path: written(path, training_examples=10**15), "examples: .* at most"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_problem_is_refused_with_its_line(name, tmp_path):
    path = tmp_path / "toy.dt"
    BAD[name][0](path)
    with pytest.raises(ValueError, match=BAD[name][1]) as refused:
        proben1.read(path)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none.dt: cannot be read"):
        proben1.read(tmp_path / "none.dt")


def test_the_squared_error_percentage_is_the_papers():
    """E = 100 (o_max - o_min) / (N P) sum (o - t)^2, by a loop."""
    t, a = np.random.default_rng(0).normal(size=(2, 7, 3))
    total = sum((a[p, i] - t[p, i]) ** 2 for p in range(7) for i in range(3))
    assert proben1.squared_error_percentage(t, a, -1, 3) == pytest.approx(100 * 4 / (3 * 7) * total, rel=1e-12)


# The script -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")  # which it sets
        yield load("proben1")


@pytest.fixture(scope="module")
def cancer(tmp_path_factory):
    """scikit-learn's breast cancer, in PROBEN1's format: inputs between 0 and 1, half for training."""
    found = datasets.load("breast_cancer")
    x = (datasets.fit_min_max(found.inputs, 0, 1).apply(found.inputs)).round(6)
    order = np.random.default_rng(0).permutation(len(x))
    header = [f"{name}={n}" for name, n in zip(proben1.HEADER, (0, 30, 2, 0, 285, 142, 142), strict=True)]
    rows = [" ".join(f"{n:g}" for n in row) for row in np.concatenate([x, found.targets], axis=1)[order]]
    path = tmp_path_factory.mktemp("proben1") / "cancer.dt"
    path.write_text("\n".join([*header, *rows]) + "\n")
    return path


def test_layers_read_all_earlier_ones_unless_switched_off(script):
    def made(*given):
        return script.network(*given, "softsign", "sigmoid")

    assert [layer.sources for layer in made("8+4", 9, 2, True).layers] == [
        ("input",),
        ("input", "layer1"),
        ("input", "layer1", "layer2"),
    ]
    assert [layer.sources for layer in made("8+4", 9, 2, False).layers] == [("input",), ("layer1",), ("layer2",)]
    assert [(layer.size, layer.activation.name) for layer in made("8+4", 9, 2, True).layers] == [
        (8, "softsign"),
        (4, "softsign"),
        (2, "sigmoid"),
    ]
    (linear,) = made("linear", 9, 2, True).layers
    assert (linear.size, linear.activation.name, linear.sources) == (2, "linear", ("input",))
    params = made("32", 200, 2, True).init(jax.random.key(0))
    for leaf in jax.tree.leaves(params):
        assert 0.2 < np.abs(leaf).max() <= 0.5 and len(np.unique(leaf)) == leaf.size


def test_rprops_first_steps_differ_by_weight_and_run(script):
    params = [script.network("8", 20, 2, True, "softsign", "linear").init(jax.random.key(k)) for k in range(2)]
    states = jax.jit(jax.vmap(script.rprop().init))(jax.tree.map(lambda *x: jnp.stack(x), *params))
    steps = np.concatenate([np.asarray(x).reshape(2, -1) for x in jax.tree.leaves(states.step_size)], axis=1)
    assert 0.05 <= steps.min() < 0.06 and 0.19 < steps.max() <= 0.2
    assert len(np.unique(steps)) == steps.size
    np.testing.assert_allclose(steps.mean(axis=1), 0.125, atol=4 * 0.15 / np.sqrt(12 * steps.shape[1]))


def test_every_quantity_is_the_papers(script, cancer, monkeypatch):
    """Of a history that is made up: errors in percent, and epochs, at the epochs where they belong."""
    problem = proben1.read(cancer)
    losses = np.array([[0.4, 0.5], [0.2, 0.3], [0.3, 0.25], [np.nan, 0.26]])
    history = History(np.arange(1, 5), losses / 2, losses, losses, losses, losses)
    zero = {"layer1": {"weights": {"input": np.zeros((2, 30))}, "bias": np.array([0.25, 0.75])}}

    class Population:
        epochs = np.array([3, 4])
        params = staticmethod(lambda member: zero)

    Population.history = history
    asked = {}
    monkeypatch.setattr(
        script.training, "fit_population", lambda net, *given, **named: asked.update(named) or Population
    )
    found = script.study(problem, "linear", script.Setting(2, 9, True, "softsign", "linear"))
    t = problem.targets[problem.parts.test]
    right = t[:, 1].mean()
    np.testing.assert_allclose(found["training error"], [10, 12.5])
    np.testing.assert_allclose(found["validation error"], [20, 25])
    np.testing.assert_allclose(found["overfit"], [50, 4])
    np.testing.assert_allclose(found["test error"], 100 * (right * 0.25**2 + (1 - right) * 0.75**2))
    np.testing.assert_allclose(found["test classification error"], 100 * (1 - right))
    assert found["total epochs"].tolist() == [3, 4] and found["relevant epochs"].tolist() == [2, 3]
    assert [criterion.name for criterion in asked["stop"]] == ["generalization_loss", "progress_below"]


def test_the_script_reproduces_the_papers_table(script, cancer, tmp_path, monkeypatch):
    """Each of its runs stops by GL5 or P5, and the paper's numbers are next to the measured ones."""
    with (tmp_path / "paper.csv").open("w") as file:
        file.write("problem,network,quantity,mean,deviation\ncancer,linear,test error,7,0.5\ncancer,9,overfit,1,1\n")
    with jax.enable_x64(False):
        rows = run(
            script,
            tmp_path / "table",
            monkeypatch,
            str(cancer),
            "--networks",
            "linear",
            "--runs",
            "3",
            "--epochs",
            "400",
            "--paper",
            str(tmp_path / "paper.csv"),
        )
    found = {row["quantity"]: row for row in rows}
    assert list(found) == list(script.QUANTITIES) and {row["runs"] for row in rows} == {"3"}
    mean = {name: float(row["mean"]) for name, row in found.items()}
    # a linear network knows the classes: far below the 25 % of one that always says 1/2, and wrong less than in 37 %
    assert 3 < mean["training error"] < 12 and 3 < mean["test error"] < 14 and mean["test classification error"] < 12
    assert mean["relevant epochs"] <= mean["total epochs"] <= 400
    assert float(found["test error"]["away"]) == pytest.approx((mean["test error"] - 7) / 0.5)
    assert np.isnan(float(found["overfit"]["away"]))
    assert (tmp_path / "table.png").exists() and "Of 1 numbers of the paper" in (tmp_path / "table.txt").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("problem,network,quantity,mean\n", "deviation is missing"),
        ("problem,network,quantity,mean,deviation\na,4,test eror,1,1\n", "unknown quantity 'test eror'; did you mean"),
        ("problem,network,quantity,mean,deviation\na,4,overfit,one,1\n", "line 2: expected numbers for mean"),
    ],
)
def test_an_invalid_table_of_the_paper_is_refused(script, text, said, tmp_path):
    (tmp_path / "paper.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        script.read_paper(tmp_path / "paper.csv")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--networks", "8-4"), "expected linear, or sizes of hidden layers such as 8+4, got '8-4'"),
        (("--runs", "1"), "--runs: expected an integer >= 2, got 1"),
        (("--activation", "softsin"), "did you mean 'softsign'"),
        (("--paper", "none.csv"), "none.csv"),
        ((), "none.dt: cannot be read"),
    ],
)
def test_the_script_refuses_in_one_line(script, cancer, given, said, capsys):
    with pytest.raises(SystemExit) as left:
        script.main([*([str(cancer)] if given else ["none.dt"]), *given])
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_rows_have_mean_and_deviation_of_the_runs(script):
    (row,) = script.rows_of("a", "4", {"overfit": np.array([1.0, 2.0, 6.0]), "test error": np.full(3, np.nan)}, {})
    assert (row["mean"], row["deviation"]) == (3.0, pytest.approx(np.std([1, 2, 6], ddof=1)))
    assert fnn.losses.get("mean_square_error").reduction == "mean"  # of outputs and examples: E is 100 times this
