"""Orbax as the back end: the same resuming, bitwise."""

import jax
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import training

pytest.importorskip("orbax.checkpoint")
pytestmark = pytest.mark.filterwarnings("default")  # Orbax's own are not ours to mend

from functional_nn.lab import orbax  # noqa: E402

X = np.random.default_rng(0).normal(size=(12, 3))
T = np.eye(2)[(X.sum(axis=1) > 0).astype(int)]
NETWORK = fnn.multilayer((3, 2), ("softmax",))


def train(**settings):
    return fnn.fit(NETWORK, "cross_entropy", "adam", X, T, key=jax.random.key(0), chunk=2, **settings)


def test_a_run_resumed_by_orbax_is_bitwise_the_uninterrupted_one(tmp_path):
    kept = orbax.keep(tmp_path / "run", last=2)
    train(epochs=5, checkpoint=kept)
    assert kept.numbers() == (4, 5)
    resumed, whole = train(epochs=8, checkpoint=kept, resume=True), train(epochs=8)
    jax.tree.map(np.testing.assert_array_equal, (resumed.state, resumed.history), (whole.state, whole.history))
    with pytest.raises(training.CheckpointError, match="made with loss"):
        fnn.fit(
            NETWORK, "mean_square_error", "adam", X, T, key=jax.random.key(0), epochs=9, checkpoint=kept, resume=True
        )
    for file in (tmp_path / "run" / "8").rglob("*"):
        if file.is_file():
            file.write_bytes(b"broken")
    with pytest.raises(training.CheckpointError):
        kept.at(8)
