"""Verdicts on learning rules follow from their differences, and estimators err as the theory says."""

import jax
import numpy as np
import pytest
from scripts.running import load, run


@pytest.fixture(scope="module")
def learning_rules():
    return load("learning_rules")


def trained(module, test):
    return module.Trained(0.1, np.asarray(test), np.asarray(test), {}, {})


def test_an_order_is_decided_beyond_the_standard_error_and_open_within(learning_rules):
    """0.9 points apart with a standard error of 0.1: the same, or reversed; with one of 0.9: open."""
    a = np.full(4, 0.9)
    apart = np.array([0.007, 0.009, 0.011, 0.009])
    far = np.array([0.027, -0.009, 0.009, 0.009])
    exact, uniform, direct, alignment = learning_rules.OF_LENET
    tests = {exact: a, uniform: a - apart, direct: a, alignment: a - far}
    found = {("digits", "lenet", rule): trained(learning_rules, test) for rule, test in tests.items()}
    said = learning_rules.order(found, "digits", "lenet")
    assert f"{exact} < {uniform} the same (+0.90, se 0.08)" in said
    assert f"{uniform} < {direct} REVERSED (-0.90, se 0.08)" in said and f"{direct} < {alignment} open (+0.90" in said


def test_feedback_angles_are_below_90_only_if_every_layer_and_seed_is(learning_rules):
    cosine = np.full((5, 3), 0.5)
    low = cosine.copy()
    low[-1, 2] = -0.1  # one seed, in the last epoch
    early = cosine.copy()
    early[0] = -0.1  # long before
    for layer, said in ((cosine, "below 90 everywhere"), (early, "below 90 everywhere"), (low, "NOT below in 1 of 6")):
        own = {"layer1": cosine, "layer2": layer, "layer3": -cosine}  # of the output, where it is exact
        one = learning_rules.Trained(0.1, None, None, own, own)
        sensitivity, gradient = learning_rules.feedback_angles({("digits", "mlp, 2 hidden", "feedback_alignment"): one})
        assert said in sensitivity and said in gradient


@pytest.mark.slow
def test_learning_rules_run_small(learning_rules, tmp_path, monkeypatch):
    some = ("exact", "direct_feedback", "feedback_alignment")
    few = {rule: learning_rules.RULES[rule] for rule in (*some, "forward_gradient")}
    small = {"RULES": few, "OF_DEPTHS": some, "OF_LENET": some, "DEPTHS": (1, 2), "DEEP": 2, "RATES": (0.03, 0.1)}
    for what, value in (small | {"PARTS": {"digits": (64, 32, 32)}}).items():
        monkeypatch.setattr(learning_rules, what, value)
    dense = [job for job in learning_rules.jobs(3) if job.data == "digits" and job.depth]
    monkeypatch.setattr(learning_rules, "jobs", lambda epochs: dense)
    with jax.enable_x64(False):
        rows = run(learning_rules, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "3")
    assert [row["network"] for row in rows] == ["mlp, 1 hidden"] * 3 + ["mlp, 2 hidden"] * 4
    assert all(float(row["largest"]) < 0.1 for row in rows if row["rule"] == "exact")  # rounding's angle
    assert (tmp_path / "table.png").exists() and "BioTorch" in (tmp_path / "table.txt").read_text()


@pytest.mark.slow
def test_low_precision_backward_runs_small(tmp_path, monkeypatch):
    module = load("low_precision_backward")
    module.BITS, module.RATES = (1, 8), (0.03, 0.1)
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    angles = {(row["rounded"], row["bits"]): float(row["angle, layer1"]) for row in rows}
    assert angles["exact", ""] < 0.1 < angles["nearest", "8"] < angles["nearest", "1"]
    assert angles["stochastic", "8"] < angles["stochastic", "1"] and (tmp_path / "table.png").exists()


@pytest.mark.slow
def test_errors_of_gradient_estimators_are_those_of_the_theory(tmp_path, monkeypatch):
    module = load("gradient_estimators")
    module.WIDTHS, module.WIDTH, module.DIRECTIONS, module.EXAMPLES = (2, 4), 4, (1, 8), (4, 16)
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--keys", "200")
    assert len(rows) == 6 * 5 and max(abs(float(row["z"])) for row in rows) < 5
    assert (tmp_path / "table.png").exists()
