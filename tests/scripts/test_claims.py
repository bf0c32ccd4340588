"""The verdict on a claim follows from its data, and no seed chooses its own rate."""

import types

import jax
import numpy as np
import pytest
from scripts.running import load, run

from functional_nn import optimizers


@pytest.fixture(scope="module")
def claims():
    return load("claims")


@pytest.mark.parametrize(
    ("claimed", "values", "said"),
    [
        ("> 6", np.linspace(6.1, 9, 11), "holds"),
        ("> 6", np.linspace(0.5, 5.9, 11), "contradicted"),
        ("> 6", np.linspace(5, 7, 11), "undecided"),
        ("< 0.05", np.linspace(0, 0.04, 11), "holds"),
        ("< 0.05", np.linspace(0.06, 0.1, 11), "contradicted"),
        ("> 1", np.ones(11), "contradicted"),  # no more than 1
        ("< 1", np.ones(11), "contradicted"),
        ("> 6", np.full(4, 9.0), "undecided"),  # too few for 90 %
        ("> 6", np.array([9.0] * 6 + [np.nan] * 5), "undecided"),  # five may be anything
        ("< 6", np.array([1.0] * 6 + [np.nan] * 5), "undecided"),
        ("> 6", np.array([9.0] * 9 + [np.nan] * 2), "holds"),  # whatever two are
        ("> 1", 1.0, "contradicted"),  # an exact number
        ("> 1", 1.5, "holds"),
    ],
)
def test_the_verdict_follows_from_the_interval_of_the_median(claims, claimed, values, said):
    assert claims.judge("a finding", claimed, values)["verdict"] == said


def test_values_known_by_bounds_are_judged_by_the_bounds(claims):
    lower, upper = np.full(11, 4.0), np.full(11, np.inf)
    assert claims.judge("ratio", "> 3", lower, upper)["verdict"] == "holds"
    assert claims.judge("ratio", "> 6", lower, upper)["verdict"] == "undecided"


@pytest.mark.oracle
@pytest.mark.parametrize("count", [5, 8, 11, 13, 16, 40])
def test_the_interval_of_the_median_equals_scipys(claims, count):
    from scipy.stats import quantile_test

    values = np.random.default_rng(count).normal(size=count)
    interval = quantile_test(values, p=0.5).confidence_interval(0.9)
    assert claims.interval(values) == (np.median(values), *interval)


def test_each_seed_has_the_rate_that_is_best_for_the_others(claims):
    scores = np.array([[3.0, 3, 3, 3], [2, 2, 2, np.nan], [1, 1, 9, 9]])  # (rates, seeds)
    assert claims.best_by_others(scores).tolist() == [1, 1, 2, 2]  # medians of the others: 2 and 9; 2 and 1
    scores[:, 0] = [0, 99, 99]
    assert claims.best_by_others(scores)[0] == 1


def test_updates_to_a_loss_are_interpolated_between_epochs(claims):
    epoch = np.arange(10)
    loss = np.stack([np.exp(-0.7 * (epoch + 0.5)), np.full(10, np.nan), np.full(10, 0.01)])
    least, most = claims.updates_to(np.exp(-3.0), loss)
    an_epoch = claims.TRAINED_ON // claims.BATCH
    np.testing.assert_allclose(least, np.array([3 / 0.7, 10, 0.5]) * an_epoch, rtol=1e-12)
    np.testing.assert_allclose(most, np.array([3 / 0.7, np.inf, 0.5]) * an_epoch, rtol=1e-12)


def test_smoothness_is_one_for_pictures_and_zero_for_noise(claims):
    row, column = np.indices((8, 8))
    assert claims.smoothness((-1.0) ** (row + column)) == pytest.approx(-1)
    assert claims.smoothness(row + column + 0.0) > 0.7
    assert abs(claims.smoothness(np.random.default_rng(0).normal(size=(500, 8, 8))).mean()) < 0.03


def test_momentum_without_memory_contradicts_the_claim(claims, tmp_path, monkeypatch):
    rows = run(claims, tmp_path / "table", monkeypatch, "--only", "f", "--seeds", "2")
    assert [row["verdict"] for row in rows] == ["contradicted", *["holds"] * 12]  # eta / (1 - 0) is no more than eta
    forgets = types.SimpleNamespace(momentum=lambda rate, decay: optimizers.gd(rate))
    monkeypatch.setattr(claims, "optimizers", forgets)
    rows = run(claims, tmp_path / "table", monkeypatch, "--only", "f", "--seeds", "2")
    assert {row["verdict"] for row in rows} == {"contradicted"}


@pytest.mark.parametrize("given", [("--only", "a,z"), ("--seeds", "1"), ("--epochs", "0")])
def test_wrong_arguments_are_refused(claims, given, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(claims, tmp_path / "table", monkeypatch, *given)
    assert "expected" in capsys.readouterr().err


@pytest.mark.slow
def test_claims_run_small(claims, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RATES", np.array([0.25, 0.5]))
    with jax.enable_x64(False):
        rows = run(claims, tmp_path / "table", monkeypatch, "--only", "g,j", "--seeds", "2", "--epochs", "1")
    assert {row["claim"] for row in rows} == set("gj") and {row["verdict"] for row in rows} == {"undecided"}
    assert (tmp_path / "table.png").exists() and "Held equal" in (tmp_path / "table.txt").read_text()
