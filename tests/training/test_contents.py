"""Digests of settings: what an older checkpoint holds still matches after functions have moved or were renamed."""

import csv
from pathlib import Path

import jax.numpy as jnp
import pytest

import functional_nn as fnn
from functional_nn import checks, optimizers, training
from functional_nn.training.contents import digest

KINDS = {
    "activation": fnn.activations,
    "connection": fnn.connections,
    "loss": fnn.losses,
    "initializer": fnn.initializers,
    "rule": fnn.rules,
    "optimizer": optimizers.first_order,
    "second_order": optimizers.second_order,
    "regularizer": optimizers.regularizers,
    "schedule": optimizers.schedules,
    "line_search": optimizers.line_searches,
    "criterion": training.termination,
    "augmentation": training.augmentation,
}
# each name's digest in checkpoints of November 2026, by commit 8ffd751; a new name needs no line
with (Path(__file__).parents[1] / "data" / "digests.csv").open(encoding="utf-8", newline="") as file:
    DIGESTS = list(csv.DictReader(file))


@pytest.mark.parametrize("kind", KINDS)
def test_named_settings_have_the_digests_of_older_checkpoints(kind):
    rows = [row for row in DIGESTS if row["kind"] == kind]
    assert rows
    assert {row["name"]: digest(KINDS[kind].get(row["name"]))[0] for row in rows} == {
        row["name"]: row["digest"] for row in rows
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (lambda: training.clipped(1.0), "4e35e815b67ae7a8"),
        (lambda: fnn.rules.get("{layer1: sign_symmetric, others: exact}"), "4d89d1e9e56cbbb8"),
        (lambda: optimizers.average(optimizers.gd(0.1)), "16b5a609db5d1ee8"),
        (lambda: optimizers.gd({"layer1": 0.1, "others": optimizers.schedules.cosine(0.1, 50)}), "139c783215bfce76"),
        (lambda: optimizers.lbfgs(line_search="strong_wolfe(curvature=0.1)"), "aec57d92e8b36273"),
        (lambda: optimizers.freeze(optimizers.gd(0.1), ("layer1",)), "762909ced8da49ae"),
        (lambda: training.of_state(len), "0d58f40f9f138be2"),
    ],
)
def test_settings_made_of_others_have_the_digests_of_older_checkpoints(settings, expected):
    assert digest(settings()) == (expected, True)


def test_fields_that_were_renamed_are_found_under_their_former_names():
    state = optimizers.bfgs().init({"x": jnp.ones(3)}, optimizers.problem_from(lambda p: (p["x"] ** 2).sum()))
    assert {path for path in checks.by_path(state) if checks.former_path(f"run/{path}") != f"run/{path}"} == {
        "memory/updated"
    }
    assert checks.former_path("run/state/memory/updated") == "run/state/memory/begun"
