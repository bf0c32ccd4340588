"""Experiments run, as a small sample, and write their table and picture."""

import jax
import pytest
from scripts.running import load, run


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["minibatch_experiments", "vanishing_gradients", "initialization", "early_stopping_and_regularization"]
)
def test_experiments_run_small(name, tmp_path, monkeypatch):
    with jax.enable_x64(False):
        rows = run(load(name), tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert rows and (tmp_path / "table.png").exists() and (tmp_path / "table.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["per_example_gradients", "gradient_noise", "sharpness", "tangent_kernel"])
def test_quantities_run_small(name, tmp_path, monkeypatch):
    module = load(name)
    for what, small in (("WIDTHS", (8, 16)), ("BATCHES", (256, 1438)), ("DRAWS", 20)):
        if hasattr(module, what):
            monkeypatch.setattr(module, what, small)
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert rows and (tmp_path / "table.png").exists() and (tmp_path / "table.txt").exists()


@pytest.mark.slow
def test_the_race_runs_small(tmp_path, monkeypatch):
    module = load("optimizer_race")
    module.OPTIMIZERS = {name: module.OPTIMIZERS[name] for name in ("gd", "adam", "rprop")}
    module.HIDDEN = {"digits": 8, "diabetes": 4}
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert {row["optimizer"] for row in rows} >= {"gd", "adam", "rprop"}
