"""Training on a long stream: windows cut batch by batch are to every part of training what arrays of them are.

Letters: N tokens, Q windows, T the context, V tokens there are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import platforms, training
from functional_nn.networks.stored import Labels
from functional_nn.training import checkpoints, keys, program
from functional_nn.training.data import prepare_data
from functional_nn.training.epoch import start_run
from functional_nn.training.settings import check_settings, with_plan

T, V = 6, 11
STREAM = np.random.default_rng(1).integers(0, V, 150).astype(np.uint8)
HELD_OUT = STREAM[::-1][:40].copy()
NETWORK = fnn.graph(
    inputs={"text": T},
    layers=[
        fnn.Layer("embedded", 5, "tanh", [("text", f"embedding({V})")]),
        fnn.Layer("output", V, "softmax", ["embedded"]),
    ],
)
SETTINGS = {"key": jax.random.key(0), "epochs": 4, "plan": training.minibatch(7)}


def arrays(stream):
    """The same as arrays: inputs and labels (Q, T)."""
    count = (len(stream) - 1) // T
    return tuple(np.stack([stream[q * T + at :][:T] for q in range(count)]).astype(np.int32) for at in (0, 1))


def one_hot(stream):
    x, labels = arrays(stream)
    return x, np.asarray(fnn.one_hot(labels, V))


def same(a, b):
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def fitted(data, validation=None, **more):
    return fnn.fit(NETWORK, "cross_entropy", "adam(0.02)", *data, validation=validation, **SETTINGS | more)


@pytest.fixture(scope="module")
def by_windows():
    return fitted((fnn.windows(STREAM, T),), fnn.windows(HELD_OUT, T), **WHOLE)


WHOLE = {"stop": training.early_stopping(patience=2), "track": ("noise_scale", {"mean": lambda p, x, t: t.mean()})}


def test_windows_and_one_hot_rows_are_one_training_bit_for_bit(by_windows):
    alike = fitted(one_hot(STREAM), one_hot(HELD_OUT), **WHOLE)
    assert same(by_windows.params, alike.params) and same(by_windows.history, alike.history)
    assert by_windows.status == alike.status
    np.testing.assert_allclose(by_windows.history.tracked["mean"], 1 / V)


def test_integer_labels_of_positions_are_one_training_with_rows_class_weights_included():
    found = [fitted(given(STREAM), class_weights="balanced", epochs=1) for given in (arrays, one_hot)]
    assert same(found[0].params, found[1].params) and same(found[0].history, found[1].history)


def test_evaluation_in_blocks_is_that_of_arrays(by_windows, monkeypatch):
    loss = fnn.losses.cross_entropy()
    expected = training.evaluate(NETWORK, loss, by_windows.params, *one_hot(STREAM))
    monkeypatch.setattr(platforms, "CPU", platforms.CPU._replace(evaluated=7 * 8 * NETWORK.trace_size))
    in_blocks = training.evaluate(NETWORK, loss, by_windows.params, fnn.windows(STREAM, T))
    # sums of so many terms in another order
    np.testing.assert_allclose(in_blocks, expected, rtol=len(STREAM) * np.finfo(in_blocks[0].dtype).eps)


def test_the_program_holds_the_stream_as_it_is_and_never_all_targets():
    settings = check_settings(NETWORK, "cross_entropy", "adam", plan=training.minibatch(3))
    params = NETWORK.init(jax.random.key(0))
    for data in ((fnn.windows(STREAM, T), None), arrays(STREAM)):
        ready, _ = prepare_data(settings, params, *data, None)
        settled = with_plan(settings, ready, 1)
        run = start_run(settled, params)
        traced = jax.make_jaxpr(program.run_program(settled, 1))(run, ready, None, keys.plan(jax.random.key(0)), 1)
        count = len(ready.targets)
        largest = max(v.aval.size for v in every_variable(traced.jaxpr))
        assert largest < count * T * V / 2 and isinstance(ready.targets, Labels)
    ready, _ = prepare_data(settings, params, fnn.windows(STREAM, T), None, None)
    (x,), (t,) = jax.tree.leaves(ready.inputs), jax.tree.leaves(ready.targets)
    assert x is t and x.dtype == np.uint8 and x.shape == STREAM.shape


def every_variable(jaxpr):
    yield from (v for equation in jaxpr.eqns for v in equation.outvars)
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from every_variable(inner)


def test_a_run_on_a_stream_resumes_and_notices_another_stream(tmp_path):
    kept = checkpoints.keep(tmp_path / "kept")
    data = (fnn.windows(STREAM, T),)
    more = {"validation": fnn.windows(HELD_OUT, T), "chunk": 2}
    fitted(data, **more | {"epochs": 2}, checkpoint=kept)
    resumed = fitted(data, **more, checkpoint=kept, resume=True)
    assert same(resumed.params, fitted(data, **more).params)
    other = STREAM.copy()
    other[-2] = (other[-2] + 1) % V
    with pytest.raises(training.CheckpointError, match="training"):
        fitted((fnn.windows(other, T),), **more, checkpoint=kept, resume=True)


@pytest.mark.slow
def test_a_population_and_a_pure_program_read_a_stream():
    windows, held_out = fnn.windows(STREAM, T), fnn.windows(HELD_OUT, T)
    population = training.fit_population(
        NETWORK, "cross_entropy", "adam", {"learning_rate": [0.01, 0.02]}, windows, validation=held_out, **SETTINGS
    )
    settings = {name: SETTINGS[name] for name in ("epochs", "plan")}
    pure = jax.jit(training.pure_fit(NETWORK, "cross_entropy", "adam(0.02)", **settings))
    alone, outcome = population.solo(1), pure(SETTINGS["key"], windows, None, held_out)
    for history in (outcome.history, population.history):
        for name in ("training_loss", "validation_loss"):
            found = np.asarray(getattr(history, name))
            found = found if found.ndim == 1 else found[:, 1]
            # the same arithmetic in another order, through 4 epochs of training
            np.testing.assert_allclose(found, getattr(alone.history, name), rtol=1e-5)


def test_a_stream_is_read_whole_by_all_of_a_population():
    with pytest.raises(
        ValueError,
        match="subset needs examples and targets of their own, which windows of a stream do not have",
    ):
        training.fit_population(NETWORK, "cross_entropy", "adam", {"subset": [0, 1]}, WINDOWS, **SETTINGS)


@pytest.mark.slow
def test_label_noise_takes_integer_labels_of_positions_as_it_takes_rows():
    columns = {"label_noise": [0.0, 0.5], "examples": [12, 12]}
    found = [
        training.fit_population(NETWORK, "cross_entropy", "adam", columns, given(STREAM), **SETTINGS)
        for given in (arrays, one_hot)
    ]
    assert same(found[0].history, found[1].history)


WIDE = fnn.graph(inputs={"x": 2}, layers=[fnn.Layer("output", 2, "softmax", ["x"])])
WINDOWS = fnn.windows(STREAM, T)


@pytest.mark.parametrize(
    ("network", "data", "more", "says"),
    [
        (NETWORK, (WINDOWS, STREAM), {}, "targets: windows of a stream bring their own targets"),
        (NETWORK, (WINDOWS,), {"class_weights": "balanced"}, "class_weights: windows of a stream bring their own"),
        (NETWORK, (fnn.windows(STREAM, 5),), {}, r"inputs: windows of 5 tokens .* got tokens of shape \(6,\) and outp"),
        (WIDE, (fnn.windows(STREAM, 2),), {}, r"inputs: windows of 2 tokens .* got inputs of shape \(2,\)"),
        (NETWORK, (fnn.windows(STREAM + 3, T),), {}, "inputs: expected tokens 0 to 10, got 1[123] at index"),
        (NETWORK, (WINDOWS,), {"validation": fnn.windows(STREAM + 3, T)}, "validation inputs: expected tokens 0 to 10"),
        (NETWORK, (arrays(STREAM)[0], arrays(STREAM)[1] + 3), {}, r"labels: expected 0 to 10, got 1[123] at index \("),
    ],
)
def test_what_does_not_fit_is_refused(network, data, more, says):
    with pytest.raises(ValueError, match=says):
        fnn.fit(network, "cross_entropy", "adam", *data, **SETTINGS | more)


def test_a_stream_is_no_array():
    params = NETWORK.init(jax.random.key(0))
    with pytest.raises(TypeError, match="inputs: expected an array of numbers, got functional_nn's Windows"):
        NETWORK.apply(params, WINDOWS)
    with pytest.raises(TypeError, match="targets: expected an array of numbers, got NoneType"):
        fitted((jnp.zeros((3, T), jnp.int32),))
