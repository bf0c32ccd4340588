"""Large arrays of the host are read where they lie: to every part of training what their copies are.

Letters: Q examples, R inputs, S outputs.
"""

import jax
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import training
from functional_nn.networks import stored
from functional_nn.training import checkpoints, configuration
from functional_nn.training.data import prepare_data
from functional_nn.training.settings import check_settings

pytestmark = pytest.mark.usefixtures("brisk")

Q, R, S = 41, 5, 3
DRAW = np.random.default_rng(2)
LABELS = DRAW.integers(0, S, Q)
NETWORK = fnn.multilayer((R, 4, S), ("tanh", "softmax"))
SETTINGS = {"key": jax.random.key(0), "epochs": 3, "plan": training.minibatch(8)}


def lying(x, offset):
    """The same numbers, so many of them beyond a place that XLA reads from."""
    room = np.empty(x.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset * x.dtype.itemsize
    there = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    there[:] = x
    return there


@pytest.fixture
def all_in_place(monkeypatch):
    monkeypatch.setattr(stored, "LARGE", 1)


def same(a, b) -> bool:
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.sampled(every=8)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint8, np.int16, np.bool_, ">f4", np.int64])
@pytest.mark.parametrize("shape", [(Q, R), (3 * Q,), (Q, 2, 3), (Q, 16)])
def test_rows_are_the_arrays(all_in_place, dtype, shape):
    x = (10 * DRAW.normal(size=shape)).astype(dtype)
    for offset in (0, 1, 3, 7):
        there = lying(x, offset)
        for wanted in (np.float32, np.float64):
            found, expected = stored.in_place(there, wanted), stored.placed(x, wanted)
            assert found.shape == expected.shape and found.dtype == expected.dtype and len(found) == len(expected)
            numbers = np.array([0, len(x) - 1, len(x) // 2, 0], np.int32)
            for rows in (numbers, slice(None), slice(1, 3)):
                assert same(jax.jit(lambda x, rows=rows: x[rows])(found), expected[rows])
                assert found[rows].dtype == expected.dtype
            if np.dtype(dtype) in (wanted, np.uint8):
                place = there.ctypes.data + there.nbytes - found.rest.nbytes
                assert found.rest.unsafe_buffer_pointer() == place
                assert (len(found.first) - 1) * there[0].nbytes < 64
            assert isinstance(found, stored.Rows) == (dtype != np.int64)


def test_small_arrays_and_those_of_jax_are_copied():
    x = np.zeros((stored.LARGE // 8, 1))
    assert isinstance(stored.in_place(x, np.float64), stored.Rows)
    for other in (x[:-1], jax.numpy.asarray(x)):
        assert isinstance(stored.in_place(other, np.float64), jax.Array)


def trained(x, t, **more):
    return fnn.fit(
        NETWORK, more.pop("loss", "cross_entropy"), more.pop("optimizer", "adam(0.05)"), x, t, **SETTINGS | more
    )


X = DRAW.normal(size=(Q, R))
T = np.eye(S)[LABELS]
CASES = {
    "rows": (X, T, {"validation": (X, T), "stop": training.early_stopping(patience=9)}),
    "labels": (X, LABELS.astype(np.uint8), {"class_weights": "balanced", "validation": (X, LABELS)}),
    "weights": (X, T, {"weights": DRAW.uniform(size=Q), "class_weights": [1, 2, 3]}),
    "bytes": ((X > 0).astype(np.uint8), LABELS, {"augment": lambda key, x: x + jax.random.normal(key, x.shape)}),
    "tracked": (X, T, {"track": ("noise_scale", {"mean": lambda params, x, t: (x.mean(), t.sum())})}),
    "importance": (X, T, {"plan": training.importance(8)}),
    "batch": (X, T, {"plan": training.batch()}),
    "second order": (X, T, {"optimizer": "levenberg_marquardt", "loss": "mean_square_error", "plan": None}),
    "kfac": (X, T, {"optimizer": "kfac(minibatches=True)"}),
}


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("case", CASES)
def test_training_on_what_lies_in_place_is_that_on_copies(case, monkeypatch):
    x, t, more = CASES[case]
    copied = trained(x, t, **more)
    monkeypatch.setattr(stored, "LARGE", 1)
    found = trained(lying(x, 3), lying(t, 1), **more)
    assert same(found.history.epoch, copied.history.epoch)
    for a, b in zip(
        jax.tree.leaves((found.params, found.history)), jax.tree.leaves((copied.params, copied.history)), strict=True
    ):
        # float64; another program, in which the compiler may order sums otherwise
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_several_inputs_lie_where_they_are(all_in_place):
    network = fnn.graph(inputs={"p": 2, "q": 3}, layers=[fnn.Layer("output", S, "softmax", sources=("p", "q"))])
    settings = check_settings(network, "cross_entropy", "adam")
    params = network.init(jax.random.key(0))
    given = {"p": np.ascontiguousarray(X[:, :2]), "q": X[:, 2:]}
    data, _ = prepare_data(settings, params, given, LABELS, None, place=stored.in_place)
    assert all(isinstance(x, stored.Rows) for x in data.inputs.values()) and isinstance(data.targets, stored.Labels)
    assert same(stored.whole((data.inputs, data.targets)), (given, T))
    value, right = training.evaluate(network, "cross_entropy", params, given, T)
    data, _ = prepare_data(settings, params, given, LABELS, None)
    again = training.evaluate(network, "cross_entropy", params, data.inputs, data.targets)
    np.testing.assert_allclose((value, right), again, rtol=1e-12)


def test_wrong_targets_are_seen_where_they_lie(all_in_place):
    wrong = T.copy()
    wrong[40, 2] = -1
    with pytest.raises(ValueError, match=r"targets: cross_entropy accepts values >= 0, got -1 at index \(40, 2\)"):
        trained(X, wrong)


def test_a_checkpoint_does_not_care_where_its_data_lie(all_in_place, tmp_path):
    kept = checkpoints.keep(tmp_path)
    trained(lying(X, 0), T, epochs=1, checkpoint=kept)
    resumed = trained(lying(X, 5), T, checkpoint=kept, resume=True)
    assert same(resumed.params, trained(lying(X, 5), T).params)
    other = X.copy()
    other[-1, -1] += 1
    with pytest.raises(training.CheckpointError, match="made with training"):
        trained(lying(other, 5), T, checkpoint=kept, resume=True)


def test_a_run_on_copies_goes_on_where_data_and_labels_lie(monkeypatch, tmp_path):
    kept = checkpoints.keep(tmp_path)
    trained(X, LABELS, epochs=1, checkpoint=kept)
    monkeypatch.setattr(stored, "LARGE", 1)
    resumed = trained(lying(X, 5), LABELS, checkpoint=kept, resume=True)
    assert resumed.history.epoch.tolist() == [1, 2, 3]
    other = LABELS.copy()
    other[-1] = (other[-1] + 1) % S
    with pytest.raises(training.CheckpointError, match="made with training"):
        trained(lying(X, 5), other, checkpoint=kept, resume=True)


def test_a_digest_is_of_all_bytes(all_in_place, monkeypatch):
    copied = configuration.fingerprint(jax.numpy.asarray(X))
    monkeypatch.setattr(configuration, "_BLOCK", 7)
    assert configuration.fingerprint((jax.numpy.asarray(X),)) == copied
    assert configuration.fingerprint(stored.in_place(lying(X, 2), np.float64)) == copied
