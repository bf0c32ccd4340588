"""The adding problem and the cliff are those of the papers."""

import jax
import numpy as np
import pytest
from scripts.running import load, run


@pytest.fixture(scope="module")
def adding_problem():
    return load("adding_problem")


def test_each_half_of_a_sequence_has_one_marked_number(adding_problem):
    """Two marked, one in each half, and their sum; who always says the mean has the error that is told."""
    x, sums = map(np.asarray, adding_problem.sequences(jax.random.key(0), 4000, 9))
    numbers, markers = x[..., 0], x[..., 1]
    assert x.shape == (4000, 9, 2) and numbers.min() >= 0 and numbers.max() < 1
    assert (markers[:, :4].sum(axis=1) == 1).all() and (markers[:, 4:].sum(axis=1) == 1).all()
    assert set(np.unique(markers)) == {0, 1} and markers.any(axis=0).all()
    np.testing.assert_allclose(sums[:, 0], numbers[markers == 1].reshape(-1, 2).sum(axis=1), rtol=1e-6)
    # within five deviations of the mean of 4000 squares, whose own is sqrt(7) / 30
    assert abs(np.mean((sums - 1) ** 2) - adding_problem.MEAN) < 5 * np.sqrt(7) / 30 / np.sqrt(4000)


def test_updates_to_a_solution_are_those_of_the_first_small_error(adding_problem, monkeypatch):
    monkeypatch.setattr(adding_problem, "EVERY", 50)
    errors = np.array([[0.5, 0.02, 0.005, 0.02], [0.5, 0.3, 0.2, np.nan], [0.001, 1, 1, 1]])
    assert adding_problem.reached(errors).tolist() == [100, np.inf, 0]


@pytest.mark.slow
def test_the_adding_problem_runs_small(adding_problem, tmp_path, monkeypatch):
    for what, small in (("LENGTHS", (5,)), ("WIDTH", 8), ("TESTED", 50), ("RATES", (0.003, 0.03)), ("EVERY", 20)):
        monkeypatch.setattr(adding_problem, what, small)
    with jax.enable_x64(False):
        rows = run(adding_problem, tmp_path / "table", monkeypatch, "--seeds", "2", "--updates", "200")
    assert [(row["network"], row["T"]) for row in rows] == [(name, "5") for name in ("tanh", "GRU", "LSTM")]
    assert all(float(row["error"]) < adding_problem.MEAN for row in rows) and (tmp_path / "table.png").exists()


@pytest.fixture(scope="module")
def cliffs():
    return load("cliffs")


@pytest.mark.parametrize("p", [(5.0, -2.0), (4.3, -2.15), (6.0, -4.0)])
def test_the_neuron_at_the_cliff_equals_pascanus(cliffs, p):
    """Its error and derivatives, forward in time, in his x_t: the network's state is sigmoid(x_t)."""
    sigmoid, (w, b), x, x_w, x_b = lambda x: 1 / (1 + np.exp(-x)), p, 0.5, 0.0, 0.0
    for _ in range(50):
        h = sigmoid(x)
        x, x_w, x_b = w * h + b, h + w * h * (1 - h) * x_w, 1 + w * h * (1 - h) * x_b
    h = sigmoid(x)
    value, gradient = cliffs.value_and_grad(np.array(p))
    expected = 2 * (h - 0.7) * h * (1 - h) * np.array([x_w, x_b])
    np.testing.assert_allclose(value, (h - 0.7) ** 2, rtol=1e-11)  # of 50 steps, each of which may stretch roundings
    np.testing.assert_allclose(gradient, expected, rtol=1e-11)
    assert cliffs.differences(np.array([p]), np.asarray(gradient)[None]) < 1e-12


@pytest.mark.slow
def test_cliffs_run_small(cliffs, tmp_path, monkeypatch):
    monkeypatch.setattr(cliffs, "LARGEST", (None, cliffs.CLIPPED))
    rows = run(cliffs, tmp_path / "table", monkeypatch, "--steps", "60", "--starts", "3")
    assert {row["clipped to"] for row in rows} == {"no", str(cliffs.CLIPPED)}
    for row in rows:
        bound = np.inf if row["clipped to"] == "no" else float(row["clipped to"]) * float(row["rate"])
        assert float(row["longest step"]) <= bound * (1 + 1e-12)
    thrown = {row["clipped to"]: float(row["longest step"]) for row in rows if float(row["rate"]) == cliffs.RATE}
    assert thrown["no"] > 5 and (tmp_path / "table.png").exists()
