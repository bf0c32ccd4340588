"""`fit` saved, stopped, interrupted and resumed; and its batches laid over devices."""

import os
import signal

import jax
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import training
from functional_nn.training import checkpoints

NETWORK = fnn.multilayer((3, 4, 2), ("tanh", "softmax"), dropout=0.2)
DRAW = np.random.default_rng(3)
X, T = DRAW.normal(size=(20, 3)), np.eye(2)[DRAW.integers(0, 2, 20)]
EPOCHS = 9
STOP = (training.early_stopping(30), training.loss_below(1e-9))


def train(network=NETWORK, **settings):
    """Everything that has to be remembered: moments, a best epoch, criteria, noise, tracked columns."""
    defaults = {"key": jax.random.key(0), "epochs": EPOCHS, "chunk": 2, "plan": training.minibatch(6), "stop": STOP}
    defaults |= {"validation": (X, T), "track": ("noise_scale",)}
    return fnn.fit(network, "cross_entropy", "adam(0.05)", X, T, **(defaults | settings))


def equal(a, b) -> bool:
    same = lambda x, y: np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True)  # noqa: E731
    return jax.tree.all(jax.tree.map(same, a, b))


@pytest.fixture(scope="module")
def whole():
    return train()


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(whole, tmp_path):
    kept = checkpoints.keep(tmp_path, last=2)
    first = train(epochs=5, checkpoint=kept)
    assert len(first.history.epoch) == 5 and kept.numbers() == (4, 5)
    resumed = train(checkpoint=kept, resume=True)
    assert equal((resumed.state, resumed.history, resumed.best), (whole.state, whole.history, whole.best))
    assert (resumed.status, resumed.reason) == (whole.status, whole.reason)
    again = train(checkpoint=kept, resume=True)
    assert equal(again.history, whole.history) and kept.numbers() == (7, 9)


def test_resuming_where_nothing_is_yet_begins(whole, tmp_path):
    found = train(checkpoint=checkpoints.keep(tmp_path / "new"), resume=True)
    assert equal(found.state, whole.state)


def test_ctrl_c_saves_and_stops(whole, tmp_path):
    kept = checkpoints.keep(tmp_path, every=100)  # so that only being interrupted makes it save

    def interrupt(state, history):
        if len(history.epoch) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after epoch 4; saved in"):
        train(checkpoint=kept, on_chunk=interrupt)
    assert kept.numbers() == (4,) and signal.getsignal(signal.SIGINT) is before
    assert equal(train(checkpoint=kept, resume=True).state, whole.state)


def test_a_broken_newest_checkpoint_leaves_the_one_before(whole, tmp_path):
    kept = checkpoints.keep(tmp_path)
    train(epochs=6, checkpoint=kept)
    newest = tmp_path / "checkpoint-00000006.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="left out: checkpoint .*00000006.npz"):
        resumed = train(checkpoint=kept, resume=True)
    assert equal(resumed.state, whole.state)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    kept = checkpoints.keep(tmp_path)
    train(epochs=2, checkpoint=kept)
    file = tmp_path / "checkpoint-00000002.npz"
    before = file.read_bytes()
    other = fnn.multilayer((3, 5, 2), ("tanh", "softmax"), dropout=0.2)
    for settings, message in (
        ({"network": other}, "made with network/layers/layer1/size = 4, now 5"),
        ({"plan": training.minibatch(5)}, "made with plan = .*size=6"),
        ({"key": jax.random.key(1)}, "made with key = "),
        ({"regularizer": "l2(0.1)"}, "regularizer"),
    ):
        with pytest.raises(training.CheckpointError, match=message):
            train(checkpoint=kept, resume=True, **settings)
    with pytest.raises(ValueError, match="holds checkpoints; go on from them with resume=True, or give another folder"):
        train(checkpoint=kept)
    with pytest.raises(ValueError, match="resume: the newest checkpoint is after epoch 2, beyond epochs=1"):
        train(epochs=1, checkpoint=kept, resume=True)
    with pytest.raises(ValueError, match="resume: expected checkpoint="):
        train(resume=True)
    assert file.read_bytes() == before


def test_batches_over_a_mesh_are_the_same_training(whole):
    mesh = jax.make_mesh((1,), ("examples",))
    laid = train(mesh=mesh)
    np.testing.assert_allclose(laid.history.training_loss, whole.history.training_loss, rtol=1e-12)


def test_what_is_no_mesh_is_refused():
    with pytest.raises(TypeError, match="mesh: expected a jax.sharding.Mesh, got int"):
        train(mesh=2)
