"""The networks on MNIST-1D are its authors', and their rate is chosen on the held-out part."""

import types

import jax
import numpy as np
import pytest
from scripts.running import load, run

import functional_nn as fnn


@pytest.fixture(scope="module")
def mnist_1d():
    return load("mnist_1d")


def test_networks_have_as_many_parameters_as_the_authors(mnist_1d):
    """As many parameters as the log of their notebook tells."""
    sizes = {
        of: sum(row["parameters"] for row in fnn.presets.layer_rows(network))
        for of, network in mnist_1d.NETWORKS.items()
        if not of[1]
    }
    assert sizes == {
        ("linear", ""): 410,
        ("dense", ""): 15210,
        ("convolutional", ""): 5210,
        ("recurrent", ""): 5134 - 2 * 18 + 2 * 6,
    }  # without second biases, with states to start from
    assert [mnist_1d.verdict(points) for points in (-2.1, -2, 2, 2.1)] == ["LOWER", *["as printed"] * 2, "higher"]


def test_the_rate_has_the_highest_mean_accuracy_on_the_held_out_part(mnist_1d, monkeypatch):
    """Of rates by the mean over seeds of each one's best epoch."""
    monkeypatch.setattr(mnist_1d, "RATES", (0.1, 0.2))
    accuracy = np.array([[0.3, 0.9, 0.5, 0.6], [0.4, 0.1, 0.8, 0.7]])  # (epochs, rates x seeds)
    population = types.SimpleNamespace(history=types.SimpleNamespace(validation_accuracy=accuracy))
    rate, members, highest = mnist_1d.chosen(population, 2)
    assert rate == 0.2 and members.tolist() == [2, 3] and highest.tolist() == [0.8, 0.7]


@pytest.mark.slow
def test_mnist_1d_runs_small(mnist_1d, tmp_path, monkeypatch):
    pytest.importorskip("mnist1d")
    few = {of: mnist_1d.NETWORKS[of] for of in (("linear", ""), ("recurrent", ""))}
    monkeypatch.setattr(mnist_1d, "NETWORKS", few)
    with jax.enable_x64(False):
        rows = run(mnist_1d, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert [row["places"] for row in rows] == ["as they are"] * 2 + ["shuffled"] * 2
    assert all(float(row["test %"]) > 15 for row in rows) and (tmp_path / "table.png").exists()


def test_the_recurrent_network_reads_the_signal_from_both_ends(mnist_1d):
    x = np.arange(80.0).reshape(2, 40)
    read = mnist_1d.as_read(mnist_1d.recurrent(), x)
    assert read["signal"].shape == read["reversed"].shape == (2, 40, 1)
    assert (read["signal"][..., 0] == x).all() and (read["reversed"][:, ::-1, 0] == x).all()
    assert list(mnist_1d.as_read(mnist_1d.dense(), x)) == ["signal"]
