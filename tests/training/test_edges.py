"""Where training used to be silently wrong: what vanishes, overflows, is masked, never finite, or asked to stop."""

import functools
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

import functional_nn as fnn
from functional_nn import optimizers, platforms, training
from functional_nn.gradients.backprop import value_and_grad
from functional_nn.training import checkpoints, fit
from functional_nn.training.evaluation import evaluation_block
from functional_nn.training.records import History, Table

KEY = jax.random.key(0)
NETWORK = fnn.multilayer((2, 3, 3), ("tanh", "softmax"))
X = np.random.default_rng(0).normal(size=(9, 2))
T = np.eye(3)[(X[:, 0] > 0).astype(int)]
train = functools.partial(fit, NETWORK, "cross_entropy", inputs=X, targets=T, key=KEY, epochs=6)


def masked(network, value):
    """Parameters in which the last class is given no chance."""
    params = network.init(KEY)
    last = network.output.name
    return params | {last: params[last] | {"bias": jnp.array([0.0, 0.0, value])}}


# Infinite, or nearly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam(0.1)", "momentum(0.1)"])
def test_a_class_masked_by_minus_infinity_trains_as_one_masked_by_a_large_number(optimizer):
    wrapped = optimizers.average(optimizers.clip_by_global_norm(optimizer, 1.0))
    infinite, large = (
        train(wrapped, params=masked(NETWORK, value), regularizer="l2(0.01)") for value in (-np.inf, -1e30)
    )
    assert infinite.status == "completed" and np.isneginf(infinite.params["layer2"]["bias"][2])
    np.testing.assert_allclose(infinite.history.training_loss, large.history.training_loss, rtol=1e-12)


def test_what_no_training_can_begin_from_is_named():
    with pytest.raises(ValueError, match=r"params: layer2/bias has nan at index \(2,\)"):
        train("gd", params=masked(NETWORK, np.nan))
    with pytest.raises(ValueError, match=r"params: layer2/bias: expected finite numbers, got -inf at index \(2,\)"):
        train("lbfgs", params=masked(NETWORK, -np.inf))


def test_a_parameter_that_becomes_infinite_is_still_divergence():
    linear = fnn.multilayer((2, 1), ("linear",))
    found = fit(linear, "mean_square_error", "gd(1e200)", X, X[:, :1], key=KEY, epochs=3)
    assert found.status == "diverged"


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_do_not_overflow_in_the_number_of_examples(dtype, weighed):
    """65,520 examples are more than float16 can count."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(70_000, 2)).astype(np.float32)
    t = np.eye(3, dtype=np.float32)[(x[:, 0] > 0).astype(int) + (x[:, 1] > 0)]
    weights = np.full(70_000, 3.0) if weighed else None
    found, exact = (
        value_and_grad(NETWORK, "cross_entropy")(NETWORK.init(KEY, dt), x, t, weights) for dt in (dtype, "float32")
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= 0.02 * np.abs(b).max() + 4e-3 * (dtype == "bfloat16")


# Never finite, never wrong ----------------------------------------------------------------------------------------


def test_where_validation_is_never_finite_the_last_parameters_stay():
    """Hinge of huge scores overflows; nothing was best, so that nothing is restored."""
    line, stop = fnn.multilayer((2, 1), ("linear",)), training.early_stopping(20)
    params = {"layer1": {"weights": {"input": jnp.ones((1, 2))}, "bias": jnp.zeros(1)}}
    data = X, np.sign(X[:, :1])
    far = np.full((1, 2), 1e308), np.array([[-1.0]])
    found = fit(line, "hinge", "gd(0.1)", *data, key=KEY, epochs=4, params=params, validation=far, stop=stop)
    plain = fit(line, "hinge", "gd(0.1)", *data, key=KEY, epochs=4, params=params)
    outcome = training.pure_fit(line, "hinge", "gd(0.1)", epochs=4, stop=stop)(KEY, *data, far, params)
    assert np.isposinf(found.history.validation_loss).all() and int(found.best.epoch) == 0
    assert "no epoch had a finite score, so the last parameters are kept" in found.reason
    for other in (found, outcome):
        assert jax.tree.all(jax.tree.map(np.array_equal, other.params, plain.params))


@pytest.mark.parametrize("size", [5, 41])
def test_accuracies_are_counts(size):
    """Not sums of shares, and no products with 1 / 41, which is rounded: all right was 0.9999999 or 1.0000002."""
    x = np.linspace(-1, 1, 41, dtype=np.float32)[:, None]
    params = {"layer1": {"weights": {"input": jnp.full((1, 1), 9.0, jnp.float32)}, "bias": jnp.zeros(1, jnp.float32)}}
    for right in (7, 41):
        t = np.where(np.arange(41)[:, None] < right, x > 0, x <= 0).astype(np.float32)
        found = fit(
            fnn.multilayer((1, 1), ("sigmoid",)),
            "binary_cross_entropy",
            "gd(1e-6)",
            x,
            t,
            key=KEY,
            epochs=2,
            params=params,
            plan=training.minibatch(size),
            validation=(x, t),
        )
        for column in (found.history.training_accuracy, found.history.validation_accuracy):
            assert (column == 1).all() if right == 41 else np.abs(column * 41 - right).max() < 1e-6


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
def test_one_output_has_no_classes_for_cross_entropy(output):
    network = fnn.multilayer((2, 1), (output,))
    t = (X[:, :1] > 0).astype(float)
    for attempt in (
        lambda: fit(network, "cross_entropy", "gd", X, t, key=KEY, epochs=1),
        lambda: training.evaluate(network, "cross_entropy", network.init(KEY), X, t),
        lambda: training.pure_fit(network, "cross_entropy", "gd", epochs=1),
        lambda: training.fit_population(network, "cross_entropy", "gd", {"seed": [0]}, (X, t), key=KEY, epochs=1),
    ):
        with pytest.raises(ValueError, match="cross_entropy needs at least 2 outputs.* use binary_cross_entropy"):
            attempt()
    with pytest.raises(ValueError, match="'largest' compares outputs with each other, and there is only one"):
        training.evaluate(network, "mean_square_error", network.init(KEY), X, t, fnn.losses.largest)


@pytest.mark.parametrize(
    ("loss", "output", "word"),
    [
        ("cross_entropy", "sigmoid", "never lowers one whose target is 0"),
        ("hinge", "sigmoid", "numbers in .0, 1. only"),
    ],
)
def test_outputs_that_train_to_no_good_end_are_warned_of(loss, output, word):
    t = 2 * T - 1 if loss == "hinge" else T
    with pytest.warns(UserWarning, match=word):
        fit(fnn.multilayer((2, 3), (output,)), loss, "gd", X, t, key=KEY, epochs=1)


# Large data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, np.arange(23.0)])
@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy(sum)"])
def test_what_is_measured_in_blocks_is_what_is_measured_at_once(monkeypatch, loss, weights):
    """23 examples in blocks of 5, the last filled up; of a network of 12 numbers an example."""
    x = np.random.default_rng(1).normal(size=(23, 2))
    t, params = np.eye(3)[np.arange(23) % 3], NETWORK.init(KEY)
    whole = training.evaluate(NETWORK, loss, params, x, t, weights=weights)
    monkeypatch.setattr(platforms, "CPU", platforms.CPU._replace(evaluated=5 * 12 * 8))
    assert evaluation_block(NETWORK, np.float64) == 5
    np.testing.assert_allclose(training.evaluate(NETWORK, loss, params, x, t, weights=weights), whole, rtol=1e-14)


def test_validation_takes_the_memory_of_a_block():
    wide = fnn.multilayer((2, 500, 3), ("tanh", "softmax"))
    shapes = [jax.ShapeDtypeStruct(shape, np.float64) for shape in ((50_000, 2), (50_000, 3))]
    measure = jax.jit(functools.partial(training.evaluate, wide, "cross_entropy"))
    needed = measure.lower(wide.init(KEY), *shapes).compile().memory_analysis().temp_size_in_bytes
    assert needed < 4 * platforms.CPU.evaluated  # at once it took 50,000 x 500 x 8 bytes, twice or more


# Asked to stop ----------------------------------------------------------------------------------------------------


def test_on_chunk_stops_and_the_run_can_go_on(tmp_path):
    kept = checkpoints.keep(tmp_path, every=100)
    stopped = train("adam(0.1)", chunk=2, checkpoint=kept, on_chunk=lambda state, history: history.epoch[-1] >= 4)
    assert (stopped.status, stopped.reason) == ("stopped", "after epoch 4: on_chunk asked to stop")
    assert len(stopped.history.epoch) == 4 and kept.numbers() == (4,)
    resumed, whole = train("adam(0.1)", chunk=2, checkpoint=kept, resume=True), train("adam(0.1)")
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed.params, whole.params))
    for told in (1, None, False, np.ones(2, bool)):  # True alone stops
        assert train("adam(0.1)", chunk=3, on_chunk=lambda *_, told=told: told).status == "completed"
    assert train("adam(0.1)", chunk=3, on_chunk=lambda *_: jnp.bool_(True)).status == "stopped"
    assert train("adam(0.1)", on_chunk=lambda *_: True).status == "completed"  # there was nothing left to stop


def test_seconds_are_a_limit():
    found = train("adam(0.1)", chunk=1, seconds=0.01, on_chunk=lambda *_: time.sleep(0.02))
    assert (
        found.status == "seconds"
        and len(found.history.epoch) == 1
        and found.reason == "after epoch 1: the time given by seconds was over"
    )
    with pytest.raises(ValueError, match="fit: seconds must be a finite number > 0, got 0"):
        train("adam", seconds=0)


def test_a_population_stops_too():
    grid = {"learning_rate": [0.1, 0.2]}
    begin = functools.partial(training.fit_population, NETWORK, "cross_entropy", "gd", grid, (X, T), key=KEY, epochs=6)
    stopped = begin(chunk=2, on_chunk=lambda now: now.epoch >= 4)
    assert stopped.status.tolist() == ["stopped"] * 2 and stopped.epochs.tolist() == [4, 4]
    assert np.isnan(stopped.history.training_loss[4:]).all()
    late = begin(chunk=1, seconds=0.01, on_chunk=lambda now: time.sleep(0.02))
    assert late.status.tolist() == ["seconds"] * 2 and late.epochs.tolist() == [1, 1]


def test_a_result_prints_as_one_line():
    said = repr(train("adam(0.1)", validation=(X, T)))
    assert said.startswith("<completed, all 6 epochs: training loss 0.") and "\n" not in said
    assert "validation accuracy" in said


def test_a_table_grows_in_place():
    """Rows that were given out stay as they are, and a long run copies each row a bounded number of times."""
    table, copied, last, early = Table(), 0, None, None
    for chunk in range(200):
        column = np.arange(10 * chunk, 10 * chunk + 10)
        table.add(
            History(column, *(column.astype(float) + i for i in range(5)), {"norm": column[:, None] * np.ones(3)})
        )
        copied += table.count if table.whole.epoch is not last else 0
        last = table.whole.epoch
        early = table.rows if chunk == 3 else early
    assert table.rows.epoch.tolist() == list(range(2000)) and early.epoch.tolist() == list(range(40))
    np.testing.assert_array_equal(table.rows.tracked["norm"][:, 2], np.arange(2000))
    assert copied < 3 * 2000


# Debugging --------------------------------------------------------------------------------------------------------


def test_jax_debug_nans_and_infs_let_finite_training_pass():
    stop = (training.early_stopping(3), training.no_change(), training.loss_below(0.0))
    plateau = optimizers.reduce_on_plateau(optimizers.adam, 0.1)
    line = fnn.multilayer((2, 1), ("linear",))
    data, regression = (X, T), (X, X[:, :1])
    with jax.debug_nans(True), jax.debug_infs(True):
        found = fit(NETWORK, "cross_entropy", plateau, *data, key=KEY, epochs=20, validation=data, stop=stop)
        assert found.status == "early_stopping" or len(found.history.epoch) == 20
        assert np.isnan(fit(line, "mean_square_error", "gd", *regression, key=KEY, epochs=1).history[2]).all()
        training.fit_population(
            NETWORK,
            "cross_entropy",
            "adam",
            {"seed": [0, 1], "learning_rate": [0.1, 0.2]},
            data,
            key=KEY,
            epochs=5,
            stop=stop[:1],
            validation=data,
        )
        training.best_of(2, line, "mean_square_error", "gd", *regression, key=KEY, epochs=3, stop=stop[1:2])
        training.evaluate(line, "mean_square_error", line.init(KEY), *regression)
        with pytest.raises(FloatingPointError):
            fit(line, "mean_square_error", "gd(1e300)", *regression, key=KEY, epochs=5)


# Words ------------------------------------------------------------------------------------------------------------

tensor = types.new_class(
    "Tensor",
    exec_body=lambda body: body.update(__module__="torch", shape=(9, 2), dtype="torch.float32", numpy=lambda self: X),
)
WORDS = {
    "sparse": (lambda: train("gd", inputs=scipy.sparse.csr_matrix(X)), "inputs: .* scipy's csr_matrix; x.toarray()"),
    "torch": (lambda: train("gd", inputs=tensor()), r"inputs: .* got torch's Tensor; x.numpy\(\) converts it"),
    "masked": (
        lambda: train("gd", inputs=np.ma.masked_less(X, 0)),
        r"inputs: masked at index \(0, 1\); leave out such",
    ),
    "optax": (lambda: train(optax.adam(0.1)), "got GradientTransformation.*; optimizers.from_optax"),
    "optax wrapped": (lambda: optimizers.clip_by_value(optax.adam(0.1), 1.0), "optimizers.from_optax"),
    "line search": (lambda: train(optimizers.from_optax(optax.lbfgs())), "requires more than gradients .*'lbfgs'"),
    "accumulate": (lambda: train(optimizers.accumulate("gd", 50)), "accumulate: .* in 50 updates, but the run has 6"),
    "nothing": (lambda: fnn.activations.elementwise("x", jnp.tanh, None), "'x': derivative must be a function"),
    "track": (lambda: train("gd", track=(["noise_scale"],)), r"track: unknown quantity \"\['noise_scale'\]\""),
}


@pytest.mark.parametrize("case", WORDS)
def test_what_is_wrong_is_said(case):
    attempt, words = WORDS[case]
    with pytest.raises((ValueError, TypeError), match=words), jax.numpy_dtype_promotion("standard"):  # optax wants it
        attempt()


def test_numbers_of_any_kind_are_numbers():
    assert fnn.multilayer((2, 2, 1), ("tanh", "linear"), dropout=np.float32(0.25)).layers[0].dropout == 0.25
    found = train("gd", track=("noise_scale", {"rate": lambda params, inputs, targets: 2.0}), epochs=1)
    assert found.history.tracked["rate"].tolist() == [2.0] and "noise_scale" in found.history.tracked


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="checkpoint: .*file/kept' cannot be written to: Not a directory"):
        train("gd", checkpoint=checkpoints.keep(tmp_path / "file" / "kept"))
