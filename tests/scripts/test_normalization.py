"""Batch and layer norm by hand, step by step, equal autodiff."""

import jax
import numpy as np
import pytest
from scripts.running import load, run


@pytest.fixture(scope="module")
def normalisation():
    return load("normalisation")


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
def test_each_step_of_a_norm_backward_equals_autodiff(normalisation, norm):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows = normalisation.exercise(norm)
    assert {row["step"] for row in rows} == set(normalisation.STEPS)
    assert {row["is"] for row in rows} >= {"in one line", "the library's row"}
    for row in rows:  # a dozen roundings of float64 of numbers up to 4
        assert row["difference"] < 1e-14, row
    s = [row["by hand"] for row in rows if row["is"] == "in one line"]
    x = [row["value"] for row in rows if row["step"] == "normalized"]
    # neither a shift of all numbers nor, but for epsilon, a stretch moves the output
    assert abs(sum(s)) < 1e-14 and abs(np.dot(s, x)) < 1e-5


def test_without_the_path_through_the_variance_one_step_is_wrong(normalisation, monkeypatch):
    whole = normalisation.by_hand

    def forgets_the_variance(*given):
        values, found = whole(*given)
        return values, found | {"centred": found["normalized"] * values["inverse"]}

    monkeypatch.setattr(normalisation, "by_hand", forgets_the_variance)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        wrong = {row["step"] for row in normalisation.exercise("batch_norm") if row["difference"] > 1e-14}
    assert wrong == {"centred"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual_depth", "normalisation"])
def test_normalization_runs_small(name, tmp_path, monkeypatch):
    module = load(name)
    small = {"DEPTHS": (2, 3), "EXAMPLES": 64, "RATES": (0.1, 0.3), "PRODUCTS": 4, "EVERY": 2, "UPDATES": 3}
    for what, value in small.items():
        if hasattr(module, what):
            monkeypatch.setattr(module, what, value)
    monkeypatch.setattr(module, "NORMS", {norm: module.NORMS[norm] for norm in ("none", "batch_norm")})
    length = {"residual_depth": "--epochs", "normalisation": "--measurements"}[name]
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", length, "2")
    assert {row["norm"] for row in rows} == {"none", "batch_norm"}
    assert (tmp_path / "table.png").exists() and (tmp_path / "table.txt").exists()
