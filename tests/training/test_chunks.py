"""Training on data that are read in chunks: every example once an epoch, in an order that the key alone decides, and
otherwise what `fit` does in memory.

Letters: Q examples, C chunks an epoch, B the batch size.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import zipfile

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.training import checkpoints, keys, loop, minibatches, streams

pytestmark = pytest.mark.usefixtures("brisk")

Q, R, S, B = 103, 4, 3, 8
DRAW = np.random.default_rng(5)
X = DRAW.normal(size=(Q, R)).astype(np.float32)
T = np.abs(X[:, :S]).argmax(axis=1).astype(np.int8)
W = DRAW.uniform(0.1, 2, Q).astype(np.float32)
NETWORK = fnn.multilayer((R, 6, S), ("tanh", "softmax"))
DROPPING = fnn.multilayer((R, 6, S), ("tanh", "softmax"), dropout=0.2)
OPTIMIZER = optimizers.adam(optimizers.schedules.cosine(0.02, steps=30))
KEY = jax.random.key(3)
chunks = training.chunks


def train(data, network=NETWORK, optimizer=OPTIMIZER, **more):
    data = data if isinstance(data, tuple) else (data,)
    settings = {"key": KEY, "epochs": 3, "plan": training.minibatch(B)}
    return fnn.fit(network, "cross_entropy", optimizer, *data, **settings | more)


def chunked(size=24, **more):
    return chunks(X, T, **{"size": size, "strip": 5} | more)


def same(a, b) -> bool:
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def orders(data, plan, key=KEY, epochs=2):
    """The examples of each chunk of each epoch, in the order in which they are read."""
    into = streams.cut(data, plan)

    def read(at):
        return data.read(streams.pieces(data, into, plan, keys.plan(key), at))

    return [[read((epoch, chunk)) for chunk in range(into.count)] for epoch in range(epochs)]


# The order ------------------------------------------------------------------------------------------------------------


@given(
    examples=st.integers(1, 200),
    batch=st.integers(1, 20),
    size=st.integers(1, 60),
    strip=st.integers(1, 70),
    shuffle=st.sampled_from(["each_epoch", "once", "never"]),
)
@hypothesis.settings(max_examples=40)
def test_an_epoch_has_every_example_once(examples, batch, size, strip, shuffle):
    batch = min(batch, examples)
    numbers = np.arange(examples)
    data = chunks(numbers, numbers, size=max(size, batch), strip=strip)
    plan = training.minibatch(batch, shuffle=shuffle)
    into = streams.cut(data, plan)
    first, second = orders(data, plan)
    for epoch in (first, second):
        assert len(epoch) == into.count
        assert sorted(np.concatenate([x for x, _, _ in epoch])) == list(numbers)
        assert all((np.diff(x) > 0).all() for x, _, _ in epoch)  # in the data's order
        assert all(len(x) == into.size and into.size % batch == 0 for x, _, _ in epoch[:-1])
        assert batch <= len(epoch[-1][0]) < into.size + batch
    assert sum(plan.updates(len(x)) for x, _, _ in first) == plan.updates(examples)
    for chunk in range(into.count):
        before = sum(plan.updates(len(x)) for x, _, _ in first[:chunk])
        assert into.made(plan, (2, chunk)) == 2 * plan.updates(examples) + before
    if shuffle == "never":
        assert same(np.concatenate([x for x, _, _ in second]), numbers)
    assert shuffle == "each_epoch" or same(first, second)


def test_the_order_is_known_by_key_and_epoch():
    first, second = orders(chunked(), training.minibatch(B))
    assert same(orders(chunked(), training.minibatch(B)), [first, second])
    assert not same(first[0][0], second[0][0])
    assert not same(orders(chunked(), training.minibatch(B), jax.random.key(4))[0][0][0], first[0][0])


def by_hand(weights=None, epochs=2, size=24, strip=5):
    """Adam's state after an order that is written down here, an update after the other."""
    plan_key, step = keys.plan(KEY), jax.jit(training.train_step(NETWORK, "cross_entropy", OPTIMIZER))
    state = OPTIMIZER.init(NETWORK.init(keys.parameters(KEY)))
    for epoch in range(epochs):
        strips = [np.arange(Q)[at : at + strip] for at in range(0, Q, strip)]
        order = np.asarray(minibatches.permutation(keys.strips(plan_key, epoch), len(strips)))
        laid = np.concatenate([strips[i] for i in order])
        for number, chunk in enumerate([laid[:24], laid[24:48], laid[48:72], laid[72:]]):  # 96 to 102: less than B
            chunk = np.sort(chunk)
            own = np.asarray(minibatches.permutation(keys.epoch(plan_key, epoch * 4 + number), len(chunk)))
            for start in range(0, len(chunk), B):
                picked = chunk[own[start : start + B]]
                given, scale = None, None
                if weights is not None:
                    given = weights[picked].astype(np.float64)
                    scale = np.asarray(given.mean() / weights.astype(np.float64).mean())
                targets = np.eye(S)[T[picked]]
                batch = training.Batch({"input": X[picked].astype(np.float64)}, targets, given, None, scale)
                state, _ = step(state, batch)
    return state


@pytest.mark.parametrize("weights", [None, W])
def test_chunks_are_trained_on_in_the_order_that_is_stated(weights):
    found = train(chunked(weights=weights), epochs=2)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(by_hand(weights).params), strict=True):
        # float64; an incomplete batch is filled up, and weights are averaged, in float32 by nobody but in another order
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("last", ["kept", "weighted", "dropped"])
@pytest.mark.parametrize("weights", [None, W])
def test_what_is_one_chunk_is_trained_on_as_in_memory_bit_for_bit(last, weights):
    more = {
        "plan": training.minibatch(B, last=last),
        "validation": (X[:20], T[:20]),
        "epochs": 6,
        "stop": (training.early_stopping(2), "loss_below(1e-9)"),
    }
    whole = train((X, T), DROPPING, weights=weights, **more)
    one = train(chunks(X, T, weights), DROPPING, **more)
    assert same((one.state, one.history, one.best), (whole.state, whole.history, whole.best))
    assert (one.status, one.reason) == (whole.status, whole.reason)


def test_the_history_of_chunks_is_that_of_all_updates():
    """With a rate of 0 every update sees the same parameters, so that an epoch's columns are those of all examples."""
    for weights in (None, W):
        held_out = (X, T) if weights is None else (X, T, weights)
        found = train(chunked(weights=weights), optimizer="gd(1e-30)", validation=held_out, epochs=2).history
        # sums of 103 terms in another order
        np.testing.assert_allclose(found.training_loss, found.validation_loss, rtol=1e-12)
        np.testing.assert_allclose(found.training_accuracy, found.validation_accuracy, rtol=1e-12)
    summed = fnn.losses.cross_entropy(reduction="sum")
    a, b = (
        fnn.fit(NETWORK, summed, "gd(1e-30)", *data, key=KEY, epochs=1, plan=training.minibatch(B)).history
        for data in ((chunked(),), (X, T))
    )
    np.testing.assert_allclose(a.training_loss, b.training_loss, rtol=1e-12)


def test_data_sorted_by_class_are_learnt_as_shuffled_ones():
    draw = np.random.default_rng(0)
    t = draw.integers(0, S, 600)
    x = draw.normal(size=(600, R)) + 1.5 * np.eye(S, R)[t]
    order = np.argsort(t, kind="stable")

    def lost(*data, shuffle="each_epoch"):
        plan = training.minibatch(10, shuffle=shuffle)
        found = train(data, optimizer="gd(0.1)", epochs=6, plan=plan, validation=(x, t))
        return found.history.validation_loss[-1]

    whole, (a, b) = lost(x, t), (x[order], t[order])
    assert lost(chunks(a, b, size=100, strip=5)) < 1.02 * whole
    # whole chunks of neighbours, and no shuffling at all, are worse: the data are such that it matters
    assert lost(chunks(a, b, size=100, strip=100)) > 1.08 * whole
    assert lost(chunks(a, b, size=100), shuffle="never") > 1.3 * whole


# Where the data are ---------------------------------------------------------------------------------------------------


class Rows:
    """What is no array but gives rows, as HDF5's data sets do."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def __getitem__(self, rows):
        return self.x[rows]


class Items:
    """Chunks that are made when they are asked for."""

    def __init__(self, length):
        self.bounds = [(at, min(at + length, Q)) for at in range(0, Q, length)]
        self.asked, self.threads = [], set()

    def __len__(self):
        return len(self.bounds)

    def __getitem__(self, number):
        self.asked.append(number)
        self.threads.add(threading.current_thread())
        start, stop = self.bounds[number]
        return X[start:stop], T[start:stop]


def test_wherever_the_data_are_they_are_one_training(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "t.npy", T)
    np.savez(tmp_path / "both.npz", inputs=X, targets=T)
    np.save(tmp_path / "columns.npy", np.asfortranarray(X))
    members = training.mapped(tmp_path / "both.npz")
    whole = train(chunked())
    for x, t in [
        (tmp_path / "x.npy", str(tmp_path / "t.npy")),
        (np.load(tmp_path / "x.npy", mmap_mode="r"), np.load(tmp_path / "t.npy", mmap_mode="c")),
        (members["inputs"], members["targets"]),
        (tmp_path / "columns.npy", T),
        (Rows(X), jax.numpy.asarray(T)),
        (X.astype(">f4"), T),
        ({"input": X}, T),
    ]:
        assert same(train(chunks(x, t, size=24, strip=5)).state, whole.state)


def test_a_sequence_of_chunks_is_read_item_by_item_in_another_thread():
    items = Items(24)
    found = train(chunks(items), epochs=2)
    assert same(found.state, train(chunks(X, T, size=24, strip=24), epochs=2).state)
    assert sorted(items.asked) == sorted([0, 4, *2 * [0, 1, 2, 3, 4]])  # two for their shapes, and each once an epoch
    assert len(items.threads) == 2
    # chunks of several items, and of parts of them, each of which is read once
    for size in (48, 32):
        items = Items(24)
        found = train(chunks(items, size=size), epochs=1)
        assert same(found.state, train(chunks(X, T, size=size, strip=24), epochs=1).state)
        assert len(items.asked) == 2 + 5
    listed = [(X[at : at + 24], T[at : at + 24]) for at in range(0, Q, 24)]
    assert same(train(chunks(listed), epochs=2).state, train(chunks(Items(24)), epochs=2).state)


def test_the_next_chunk_is_read_while_one_trains(monkeypatch):
    """Here each chunk but the last trains until the next one is asked for: for ever, where it is not before its end."""
    items, waited, compiled = Items(24), [], loop.compiled_for_chunks

    def waiting(settings):
        begin, advance, end = compiled(settings)

        def until_the_next_is_read(*given):
            wanted, late = 2 + 1 + len(waited) + 1, time.monotonic() + 20  # two for their shapes, and the first
            while len(items.asked) < wanted and len(waited) < 7 and time.monotonic() < late:
                time.sleep(0.01)
            waited.append(len(items.asked) >= wanted)
            return advance(*given)

        return begin, until_the_next_is_read, end

    monkeypatch.setattr(loop, "compiled_for_chunks", waiting)
    found = train(chunks(items), epochs=2)  # four chunks an epoch
    assert waited[:3] == [True] * 3 and int(found.state.step) == 26


TWO_DEVICES = """
import jax, numpy as np, functional_nn as fnn
from functional_nn import training
x, t = np.random.default_rng(0).normal(size=(103, 4)).astype(np.float32), np.arange(103) % 3
data, network = training.chunks(x, t, size=24), fnn.multilayer((4, 6, 3), ("tanh", "softmax"))
found = [
    fnn.fit(network, "cross_entropy", "adam(0.02)", data,
            key=jax.random.key(0), epochs=2, plan=training.minibatch(8), validation=(x, t), mesh=mesh)
    for mesh in (None, jax.sharding.Mesh(np.array(jax.devices()), ("examples",)))
]
assert len(jax.devices()) == 2
for a, b in zip(*(jax.tree.leaves((each.params, each.history)) for each in found), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)  # float32, sums in another order
"""


@pytest.mark.slow
def test_chunks_are_laid_over_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_several_inputs_and_weights_come_along():
    network = fnn.graph(inputs={"p": 2, "q": 2}, layers=[fnn.Layer("output", S, "softmax", sources=("p", "q"))])
    parts = {"p": X[:, :2], "q": X[:, 2:]}
    whole = train((parts, T), network, weights=W)
    assert same(train(chunks(parts, T, W), network).state, whole.state)
    listed = [
        ({n: x[at : at + 24] for n, x in parts.items()}, T[at : at + 24], W[at : at + 24]) for at in range(0, Q, 24)
    ]
    a = train(chunks(listed), network)
    assert same(a.state, train(chunks(parts, T, W, size=24, strip=24), network).state)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64, np.bool_])
def test_numbers_become_what_fit_makes_of_them(dtype):
    x = (X * 10).astype(dtype)
    assert same(train(chunks(x, T)).state, train((x, T)).state)


def test_classes_weigh_what_they_are_given():
    of_class = [1.0, 0.5, 3.0]
    a = train(chunked(), class_weights=of_class)
    b = train(chunked(weights=np.asarray(of_class, np.float32)[T]))
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)  # float64, the mean of the weights rounded to float32 in both


def test_chunks_are_pickled_by_the_paths_they_were_given(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "t.npy", T)
    listed = [(X[at : at + 24], T[at : at + 24]) for at in range(0, Q, 24)]
    for data, limit in ((chunks(tmp_path / "x.npy", tmp_path / "t.npy", size=24), 1500), (chunks(listed), 10**5)):
        pickled = pickle.dumps(data)
        assert len(pickled) < limit
        assert same(orders(pickle.loads(pickled), training.minibatch(B)), orders(data, training.minibatch(B)))


def test_memory_of_a_private_copy_is_not_given_back(tmp_path):
    np.save(tmp_path / "t.npy", T)
    changed = np.load(tmp_path / "t.npy", mmap_mode="c")
    changed[:] = (T + 1) % S
    data = chunks(X, changed, size=24)
    for _ in range(2):
        assert same(data.read([(0, Q)])[1], (T + 1) % S)


# Ends, saved and resumed ----------------------------------------------------------------------------------------------


STEP = training.of_state(lambda state: state.step)


def remembered(data=None, **more):
    """Everything that has to be remembered: moments, a best epoch, criteria, noise, an epoch that is not over."""
    more = {"validation": (X[:20], T[:20]), "stop": (training.early_stopping(30), "loss_below(1e-9)")} | more
    more |= {"track": {"step": STEP}}
    return train(chunked(weights=W) if data is None else data, DROPPING, **more)


def test_a_run_resumes_bitwise_after_any_chunk(tmp_path):
    whole = remembered()
    kept = checkpoints.keep(tmp_path / "all", last=100)
    assert same(remembered(checkpoint=kept).history, whole.history)
    assert kept.numbers() == tuple(range(1, 13))
    assert whole.history.tracked["step"].tolist() == [13, 26, 39]
    for number in (1, 4, 6, 11, 12):
        folder = tmp_path / str(number)
        folder.mkdir()
        name = f"checkpoint-{number:08d}.npz"
        (folder / name).write_bytes((tmp_path / "all" / name).read_bytes())
        again = remembered(checkpoint=checkpoints.keep(folder), resume=True)
        assert same((again.state, again.history, again.best), (whole.state, whole.history, whole.best))
        assert (again.status, again.reason) == (whole.status, whole.reason)
    more = remembered(checkpoint=kept, resume=True, epochs=4)
    assert same(more.state, remembered(epochs=4).state)


def test_ctrl_c_saves_within_an_epoch(tmp_path):
    kept = checkpoints.keep(tmp_path, every=100)

    class Interrupting(Items):
        def __getitem__(self, number):
            # after two for their shapes, five for a sample, and two chunks: the third is read, while the second trains
            if len(self.asked) == 9:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(number)

    with pytest.raises(KeyboardInterrupt, match="after epoch 0 and 2 of 4 chunks of the next; saved in"):
        train(chunks(Interrupting(24)), checkpoint=kept)
    assert kept.numbers() == (2,)
    found = train(chunks(Items(24)), checkpoint=kept, resume=True)
    assert same(found.state, train(chunks(Items(24))).state)


def test_a_checkpoint_knows_its_data_and_settings(tmp_path):
    kept = checkpoints.keep(tmp_path)
    train(chunked(), epochs=1, checkpoint=kept)
    other = X.copy()
    other[Q - 1] += 1
    for data, more, says in [
        (chunks(other, T, size=24, strip=5), {}, "training"),
        (chunked(32), {}, "chunks/size"),
        (chunked(strip=4), {}, "chunks/strip"),
        (chunked(), {"class_weights": [1, 2, 3]}, "class_weights"),
        ((X, T), {}, "kind"),
    ]:
        with pytest.raises(training.CheckpointError, match=says):
            train(data, checkpoint=kept, resume=True, **more)
    train(chunked(), epochs=3, checkpoint=kept, resume=True)
    with pytest.raises(ValueError, match="resume: the newest checkpoint is after epoch 3, beyond epochs=2"):
        train(chunked(), epochs=2, checkpoint=kept, resume=True)
    with pytest.raises(ValueError, match="resume: expected checkpoint="):
        train(chunked(), resume=True)


@pytest.mark.parametrize("size", [24, Q])
def test_an_update_that_diverges_is_not_made(size):
    """Example 50's targets make its loss infinite: the update that meets it is told, and the state before it kept."""
    network, plan = fnn.multilayer((R, S), ("linear",)), training.minibatch(B)
    targets = DRAW.normal(size=(Q, S))
    targets[50] = 1e200
    data = chunks(X, targets, size=size, strip=5)
    settings = {"key": KEY, "epochs": 3, "plan": plan, "validation": (X, X[:, :S])}
    found = fnn.fit(network, "mean_square_error", "gd(0.01)", data, **settings)
    step = jax.jit(training.train_step(network, "mean_square_error", "gd(0.01)"))
    state = optimizers.gd(0.01).init(network.init(keys.parameters(KEY)))
    batches = [
        (x[picked].astype(float), t[picked])
        for number, (x, t, _) in enumerate(orders(data, plan, epochs=1)[0])
        for picked in np.asarray(plan.indices(keys.plan(KEY), number, len(x)))
    ]
    made = next(i for i, (_, t) in enumerate(batches) if (t == 1e200).any())
    for x, t in batches[:made]:
        state, _ = step(state, training.Batch({"input": x}, t))
    assert 0 < made < len(batches) - 1
    assert found.reason == f"update {made + 1}, in epoch 1, was not made: its loss was inf"
    assert found.history.training_loss.tolist() == [np.inf] and np.isfinite(found.history.validation_loss).all()
    for a, b in zip(jax.tree.leaves(found.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)  # float64, some ten updates


@pytest.mark.parametrize("last", range(8, 13))
def test_the_gradient_norm_of_an_epoch_that_diverged_is_the_mean_of_the_updates_tried(last):
    """Of any chunk's, as in memory: data that are one strip and stay in their order are the same batches."""
    network, plan = fnn.multilayer((R, S), ("linear",)), training.minibatch(B, shuffle="never")
    huge = optimizers.gd(lambda step: jax.numpy.where(step >= last, 1.7e308, 0.01))  # an infinite result
    settings = {"key": KEY, "epochs": 1, "plan": plan}
    targets = 10 * X[:, :S]
    found, expected = (
        fnn.fit(network, "mean_square_error", huge, *data, **settings)
        for data in ((chunks(X, targets, size=24, strip=Q),), (X, targets))
    )
    assert found.reason == expected.reason and "its gradient or its result was not finite" in found.reason
    np.testing.assert_allclose(found.history.gradient_norm, expected.history.gradient_norm, rtol=1e-12)


@pytest.mark.parametrize("size", [24, Q])
def test_an_update_with_an_infinite_result_is_searched_for(size):
    found = train(chunked(size), optimizer=optimizers.gd(lambda k: jax.numpy.where(k == 17, jax.numpy.inf, 0.01)))
    assert found.reason == "update 18, in epoch 2, was not made: its gradient or its result was not finite"
    assert int(found.state.step) == 17 and len(found.history.epoch) == 2
    still = train(chunked(size), optimizer=optimizers.gd(lambda k: jax.numpy.where(k >= 17, 0, 0.01)), epochs=2)
    assert same(found.params, still.params)


def test_criteria_callbacks_and_time_end_a_run():
    stopped = train(chunked(), stop="loss_below(10)")
    assert (stopped.status, len(stopped.history.epoch)) == ("loss_below", 1)
    told = []
    asked = train(
        chunked(), chunk=2, epochs=9, on_chunk=lambda state, history: told.append(len(history.epoch)) or len(told) == 2
    )
    assert (asked.status, told) == ("stopped", [2, 4])
    late = train(chunked(), epochs=10**6, seconds=1e-6)
    assert late.reason == "after epoch 0 and 1 of 4 chunks of the next: the time given by seconds was over"
    assert len(late.history.epoch) == 0 and int(late.state.step) == 3
    assert repr(late) == f"<seconds, {late.reason}: no epoch was run>"


# What does not fit ----------------------------------------------------------------------------------------------------


def spoilt(at, value=np.nan):
    x = X.copy()
    x[at] = value
    return x


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            lambda: chunks(spoilt((77, 2)), T, size=24, strip=5),
            r"example 77: inputs: expected finite numbers, "
            r"got nan at index \(0, 2\)",
        ),
        (lambda: chunks(spoilt(0), T, size=Q), r"example 0: inputs: expected finite"),
        (lambda: chunks(spoilt([102, 50]), T, size=Q), r"example 50: inputs: expected finite"),
        (lambda: chunks(X, np.where(np.arange(Q) == 60, 9, T), size=24, strip=5), "example 60: .*labels: exp"),
        (lambda: chunks(X, T, np.where(np.arange(Q) == 60, -1, W), size=24, strip=5), "example 60: weights:"),
        (
            lambda: chunks(X, T, np.arange(Q) < 3, size=24, strip=24),
            "weights: expected at least one above 0 in every chunk, got none among 24 examples",
        ),
        (lambda: chunks(X[:, :3], T), r"inputs: expected shape \(Q, 4\), got \(103, 3\)"),
        (lambda: chunks({"other": X}, T), r"inputs: expected {'input': \(Q, 4\)}, got \['other'\]"),
        (lambda: chunks(X, X), r"targets: expected shape \(103, 3\) to match the outputs, got \(103, 4\)"),
        (lambda: chunks(X, T, size=5), "chunks: a chunk has 5 examples, fewer than a batch of 8"),
        (
            lambda: chunks([(X[:50], T[:50]), (X[50:99], T[50:99]), (X[:50], T[:50])]),
            "chunks: item 1 has 49 examples, expected 50",
        ),
        (
            lambda: chunks([(X[:50], T[:50]), (X[:50], T[:50].astype(int)), (X[:50], T[:50])]),
            r"chunks: item 1: expected examples of inputs float32 \(4,\), targets int8 \(\), as in item 0, got inputs "
            r"float32 \(4,\), targets int64 \(\)",
        ),
        (lambda: chunks([(X[:50], T[:50]), (X[:50, :2], T[:50]), (X[:50], T[:50])]), "chunks: item 1: expec"),
        (lambda: chunks([(X[:50], T[:50]), (X[:50], T[:50], W[:50]), (X[:50], T[:50])]), "chunks: item 1: ex"),
    ],
)
def test_what_is_wrong_with_a_chunk_is_said_when_it_is_read(data, says):
    with pytest.raises(ValueError, match=says):
        train(data(), epochs=1)


def test_what_is_trained_on_before_a_bad_chunk_is_saved(tmp_path):
    kept = checkpoints.keep(tmp_path, every=100)
    items = [(X[at : at + 24], T[at : at + 24]) for at in range(0, 96, 24)]
    order = np.asarray(minibatches.permutation(keys.strips(keys.plan(KEY), 0), 4))
    items[order[2]] = (spoilt(slice(None))[:24], T[:24])
    with pytest.raises(ValueError, match=rf"inputs: expected .* a chunk of examples from number {24 * order[2]} on"):
        train(chunks(items), checkpoint=kept, epochs=1)
    assert kept.numbers() == (2,)


class Foreign(Rows):
    """An array of another library, whose dtypes are none of NumPy's."""

    def __init__(self):
        self.shape, self.dtype = (Q,), object()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: chunks([]), ValueError, "chunks: expected at least one item, got none"),
        (lambda: chunks(iter([])), TypeError, "chunks: expected arrays, paths .* got list_iterator"),
        (lambda: chunks([X, T]), TypeError, r"chunks: item 0: expected \(inputs, targets\) or .* got ndarray"),
        (lambda: chunks([(X,)]), TypeError, "chunks: item 0: expected .* got tuple of 1"),
        (
            lambda: chunks([(X, T[:9])]),
            ValueError,
            "chunks: item 0: expected one or more examples, the same number in each, got {'inputs': 103, 'targets': 9}",
        ),
        (lambda: chunks([(X[:9], T[:9]), (X, T)]), ValueError, "chunks: the last item has 103 examples, the f"),
        (lambda: chunks([(X, T)], strip=3), ValueError, "strip: in a sequence of chunks"),
        (lambda: chunks([(X, T)], None, W), ValueError, "weights: in a sequence of chunks"),
        (lambda: chunks(X), TypeError, "chunks: targets: expected an array, mapped or not, .* got None"),
        (lambda: chunks(X, T[:5]), ValueError, "chunks: expected one or more examples, the same number in each, got"),
        (lambda: chunks(X[:0], T[:0]), ValueError, "chunks: expected one or more examples"),
        (lambda: chunks({}, T), ValueError, "chunks: inputs: expected one or more arrays by name, got none"),
        (lambda: chunks(X, np.array(["a"] * Q)), TypeError, "chunks: targets: expected an array of numb"),
        (lambda: chunks(np.ma.masked_greater(X, 2), T), ValueError, "chunks: inputs: masked at index"),
        (lambda: chunks(Rows(X.astype(str)), T), TypeError, "chunks: inputs: expected an array of numb"),
        (lambda: chunks(X, Foreign()), TypeError, "chunks: targets: expected an array of numbers, got .*Foreign"),
        (lambda: chunks(X, jax.random.split(KEY, Q)), TypeError, "chunks: targets: expected an array of numbers, got"),
        (lambda: chunks(X, np.float32(3)), ValueError, "chunks: targets: expected examples along the first"),
        (lambda: chunks(X, T, size=0), ValueError, "chunks: size must be an integer >= 1, got 0"),
        (lambda: chunks(X, T, strip=1.5), ValueError, "chunks: strip must be an integer >= 1, got 1.5"),
        (lambda: train(chunked(), optimizer="levenberg_marquardt"), ValueError, "chunks: levenberg_marquardt steps"),
        (lambda: train(chunked(), plan=training.batch()), ValueError, r"plan: batch\(\) takes all examples at once"),
        (lambda: train(chunked(), plan=training.importance(8)), ValueError, r"plan: importance\(\) measures all"),
        (lambda: train(chunked(), plan=training.minibatch(8, replacement=True)), ValueError, "plan: replacement=True"),
        (lambda: train(chunked(), track=("noise_scale",)), ValueError, "track: 'noise_scale' is measured on all"),
        (lambda: train(chunked(), class_weights="balanced"), ValueError, "class_weights: 'balanced' counts all labels"),
        (lambda: train((chunked(), T)), ValueError, "targets: chunks bring their own; give None"),
        (lambda: train(chunked(), weights=W), ValueError, "weights: chunks bring their own; give None"),
        (lambda: train((X, T), validation=chunked()), TypeError, "validation: expected a pair"),
        (lambda: training.evaluate(NETWORK, "cross_entropy", NETWORK.init(KEY), chunked()), TypeError, "inputs: ex"),
    ],
)
def test_wrong_data_and_settings_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_files_that_cannot_be_mapped_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "small.npz", x=X)
    np.savez(tmp_path / "objects.npz", x=np.array([None]))
    np.save(tmp_path / "objects.npy", np.array([None]))
    (tmp_path / "broken.npz").write_bytes(b"PK and nothing")
    (tmp_path / "text.npy").write_bytes(b"1, 2, 3")
    with zipfile.ZipFile(tmp_path / "none.npz", "w") as archive:
        archive.writestr("x.txt", "1")
    for name, says in [
        ("small", "'x' is compressed and cannot be mapped; save it by np.savez"),
        ("objects", "'x' holds Python objects"),
        ("broken", "expected an NPZ file; File is not a zip file"),
        ("none", "expected an NPZ file, which holds arrays; it holds none"),
    ]:
        with pytest.raises(ValueError, match=says):
            training.mapped(tmp_path / f"{name}.npz")
    for name, says in [
        ("objects.npy", "inputs: .*objects.npy is no NPY file that can be mapped: Array can't be memory-mapped"),
        ("text.npy", "inputs: .*text.npy is no NPY file that can be mapped"),
        ("small.npz", r"inputs: .*small.npz holds several arrays; training.mapped\(path\) returns them by name"),
    ]:
        with pytest.raises(ValueError, match=says):
            chunks(tmp_path / name, T)
    with pytest.raises(FileNotFoundError):
        chunks(tmp_path / "nowhere.npy", T)


def test_members_of_a_file_are_what_was_saved(tmp_path):
    saved = {"rows": X, "columns": np.asfortranarray(X), "none": X[:0], "one": np.float64(3), "bytes": T.view(np.uint8)}
    np.savez(tmp_path / "all.npz", **saved)
    found = training.mapped(tmp_path / "all.npz")
    assert found.keys() == saved.keys() and all(same(found[name], saved[name]) for name in saved)
    assert isinstance(found["rows"], np.memmap) and not found["rows"].flags.writeable
