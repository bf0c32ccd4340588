"""The parts of a kernel's gradient add up, and the convolutional scripts run."""

import jax
import numpy as np
import pytest
from scripts.running import load, read, run

import functional_nn as fnn


@pytest.fixture(scope="module")
def convolution():
    return load("convolution")


@pytest.mark.slow
def test_the_parts_of_right_and_wrong_labels_add_up_to_the_gradient(convolution):
    """Right and wrong labels' parts to the gradient of the mean loss."""
    x, labels, wrong = np.random.default_rng(0).normal(size=(6, 8, 8, 1)), np.arange(6) % 3, np.arange(6) < 3
    given = (labels + wrong) % 3
    pictures = convolution.Pictures(x, np.eye(3)[labels], x, np.eye(3)[labels], ("a", "b", "c"))
    network = pictures.network()
    params = network.init(jax.random.key(0))
    norms = {"gradient norm": np.arange(6.0)[None, None] % 5}
    found = convolution.kernels_of(pictures, convolution.Searched(norms, given[None], wrong[None], None, None, params))
    whole = fnn.value_and_grad(network, "cross_entropy")(params, x, np.eye(3)[given])[1]["conv1"]["weights"]["image"]
    np.testing.assert_allclose(found.right + found.wrong, whole[..., 0], rtol=1e-10, atol=1e-12)
    assert found.suspect == 4 and found.kernels.shape == (6, 3, 3)


@pytest.mark.slow
def test_convolution_runs_small(convolution, tmp_path, monkeypatch):
    small = convolution.Recipe("lenet((2, 2), (4,))", 20, 0.003, augment=("shift(1)",))
    monkeypatch.setattr(convolution, "EPOCHS", {"digits": 20})
    monkeypatch.setattr(convolution, "RECIPES", {"small": small})
    with jax.enable_x64(False):
        rows = run(convolution, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert len(rows) == 6  # kernels
    for name in ("agreement", "wrong_labels", "digits"):
        assert (tmp_path / f"table_{name}.txt").exists()
    assert {row["agrees"] for row in read(tmp_path / "table_agreement.csv")} == {"yes"}
    assert (tmp_path / "table.png").exists() and (tmp_path / "table_wrong_labels.png").exists()


@pytest.mark.slow
def test_a_population_of_convolutions_runs_small(tmp_path, monkeypatch):
    module = load("population_convolution")
    module.KERNELS, module.RATES, module.ALONE = (1, 3), (0.003, 0.01), 1
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert [row["kernel"] for row in rows] == ["1 x 1"] * 2 + ["3 x 3"] * 2
    assert sum(row["test accuracy"] != "" for row in rows) == 2 and (tmp_path / "table.png").exists()
