"""`fit` saved, stopped, interrupted and resumed; and its batches laid over devices."""

import os
import re
import signal
import warnings

import jax
import numpy as np
import optax
import pytest

import functional_nn as fnn
from functional_nn import optimizers, rows, training
from functional_nn.training import checkpoints, configuration

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
    def same(x, y):
        return np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True)

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
        ({"plan": training.minibatch(6, replacement=True)}, "now ...*importance=None, replacement=True"),
        ({"key": jax.random.key(1)}, "made with key = "),
        ({"regularizer": "l2(0.1)"}, "regularizer"),
    ):
        with pytest.raises(training.CheckpointError, match=message):
            train(checkpoint=kept, resume=True, **settings)
    with pytest.raises(
        ValueError, match="holds checkpoints; continue from them with resume=True, or give another folder"
    ):
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


# Changes that names do not show ---------------------------------------------------------------------------------------


def _masks(fraction):
    return optimizers.regularizers.magnitude_masks(NETWORK.init(jax.random.key(1)), fraction)


def _own_gradient(factor):
    def gradient(network, loss):
        by_hand = fnn.value_and_grad(network, loss)

        def scaled(*args):
            value, grads = by_hand(*args)
            return value, jax.tree.map(lambda g: factor * g, grads)

        return scaled

    return gradient


_RATE = [0.01]  # a global that a schedule reads


def _by_global(step):
    return _RATE[0]


CHANGES = {
    "from_optax": ("optimizer", *(optimizers.from_optax(optax.adam(rate)) for rate in (0.01, 1.0))),
    "a chain": ("optimizer", *(optimizers.from_optax(optax.chain(optax.clip(c), optax.sgd(0.1))) for c in (1.0, 2.0))),
    "a schedule": ("optimizer", optimizers.adam(lambda k: 0.01), optimizers.adam(lambda k: 1.0)),
    "keep_pruned": ("optimizer", *(optimizers.keep_pruned("adam", _masks(f)) for f in (0.5, 0.9))),
    "plateau": (
        "optimizer",
        *(optimizers.reduce_on_plateau(lambda r, d=d: optimizers.momentum(r, d), 0.1) for d in (0.5, 0.9)),
    ),
    "gradient": ("gradient", _own_gradient(1.0), _own_gradient(2.0)),
    "least": ("stop", *((training.early_stopping(30, least=least),) for least in (0.0, 0.1))),
    "restore": ("stop", *((training.early_stopping(30, restore=restore),) for restore in (True, False))),
    "correct": ("correct", fnn.losses.largest, lambda a, t: a[:, 0] > 0.5),
    "track": ("track", *({"it": lambda p, x, t, c=c: c} for c in (1.0, 2.0))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_not_continued_with_something_else(name):
    """What a checkpoint is compared by; the digests alone, since everything else is the same."""
    what, one, other = CHANGES[name]
    found = [configuration.made_of(**{what: value}) for value in (one, one, other)]
    assert found[0] == found[1] != found[2] and found[0]["unread"] == []


def test_the_refusal_says_what_is_another(tmp_path):
    kept = checkpoints.keep(tmp_path)
    plain = {"stop": (), "track": (), "validation": None, "epochs": 2, "checkpoint": kept}
    train(**plain, gradient=_own_gradient(1.0), correct=lambda a, t: a[:, 0] > 0.5)
    with pytest.raises(
        checkpoints.CheckpointError, match="made with another gradient, by its functions, arrays or con"
    ):
        train(**plain, gradient=_own_gradient(2.0), correct=lambda a, t: a[:, 0] > 0.5, resume=True)
    found = train(**plain | {"epochs": 3}, gradient=_own_gradient(1.0), correct=lambda a, t: a[:, 0] > 0.5, resume=True)
    assert len(found.history.epoch) == 3


def test_globals_are_part_of_a_function(monkeypatch):
    before = configuration.made_of(gradient=_by_global)
    monkeypatch.setitem(globals(), "_RATE", [0.5])
    assert configuration.made_of(gradient=_by_global) != before


@pytest.mark.parametrize(
    "listed", [optimizers, optimizers.second_order, fnn.activations, fnn.losses, optimizers.schedules]
)
def test_what_the_library_lists_is_read_whole(listed):
    """The functions, which populations are given, and the rows that they make; none is taken for another."""
    names = listed.names()
    factories = [getattr(listed, name, None) or listed.get(name) for name in names]
    found = [configuration.made_of(it=factory) for factory in factories]
    assert all(each["unread"] == [] for each in found) and len({each["it"] for each in found}) == len(names)
    rows = [listed.get(name) for name in names if listed is not optimizers.schedules]
    assert all(configuration.made_of(it=row)["unread"] == [] for row in rows)


def _factory(power):
    @rows.cached
    def mine(rate=0.1):
        return optimizers.Optimizer("mine", lambda params: params, lambda state, grads: rate**power, {"rate": rate})

    return mine


def test_factories_of_ones_own_are_read_and_told_apart():
    """Both are called `mine` and differ in what they close over, which their rows do, too."""
    for made in (lambda factory: factory, lambda factory: factory(), lambda factory: factory(0.1)):
        one, same, other = (configuration.made_of(it=made(_factory(power))) for power in (1, 1, 2))
        assert one == same != other and one["unread"] == []


def test_what_cannot_be_compared_is_said_to_be_so(tmp_path):
    """Of checkpoints from before there were digests, from another Python, and of objects that show nothing."""
    now = {"optimizer": "adam", checkpoints.MADE_OF: configuration.made_of(correct=fnn.losses.largest)}
    assert configuration.made_of(track=re.compile("a"))["unread"] == ["track"]
    for made_with, warns in (
        (now, False),
        ({"optimizer": "adam"}, True),
        (now | {checkpoints.MADE_OF: now[checkpoints.MADE_OF] | {"python": ["2", "7"]}}, True),
        (now | {checkpoints.MADE_OF: now[checkpoints.MADE_OF] | {"unread": ["correct"]}}, True),
    ):
        file = checkpoints.Checkpoint(made_with, {}, tmp_path)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            checkpoints.check_config(file, now)
        assert [("made with the same settings: correct" in str(w.message)) for w in said] == [True] * warns


def test_a_population_is_not_continued_with_another_optimizer(tmp_path):
    kept = checkpoints.keep(tmp_path)
    grid = {"learning_rate": [0.1, 0.2]}

    def go_on(decay, **settings):
        def make(learning_rate):
            return optimizers.momentum(learning_rate, decay)

        network = fnn.multilayer((3, 2), ("softmax",))
        return training.fit_population(
            network, "cross_entropy", make, grid, (X, T), key=jax.random.key(0), chunk=1, checkpoint=kept, **settings
        )

    go_on(0.5, epochs=1)
    with pytest.raises(checkpoints.CheckpointError, match="made with another optimizer"):
        go_on(0.9, epochs=2, resume=True)
    assert go_on(0.5, epochs=2, resume=True).epochs.tolist() == [2, 2]
