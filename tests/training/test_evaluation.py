"""Metrics of one's own and the confusion matrix: measured in blocks, as NumPy and scikit-learn have them.

Letters: Q examples, T positions, S outputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

import functional_nn as fnn
from functional_nn import platforms, training

KEY, RNG = jax.random.key(1), np.random.default_rng(0)
NETWORK = fnn.multilayer((2, 3), ("softmax",))
PARAMS = NETWORK.init(KEY)
X, LABELS, WEIGHTS = RNG.standard_normal((23, 2)), RNG.integers(0, 3, 23), RNG.integers(0, 4, 23).astype(float)
VALIDATION = RNG.standard_normal((11, 2)), RNG.integers(0, 3, 11)
TEXT = fnn.graph(
    inputs={"text": 4},
    layers=[
        fnn.Layer("embedded", 3, "linear", [("text", "embedding(5)")]),
        fnn.Layer("output", 5, "softmax", ["embedded"]),
    ],
)
TEXT_PARAMS = TEXT.init(KEY)
TOKENS, NEXT = RNG.integers(0, 5, (9, 4)), RNG.integers(0, 5, (9, 4))
MASK = (RNG.random((9, 4)) > 0.3).astype(float)


@pytest.fixture(params=["at once", "in blocks"])
def blocks(request, monkeypatch):
    """Few examples at a time, the last block filled up."""
    if request.param == "in blocks":
        monkeypatch.setattr(platforms, "CPU", platforms.CPU._replace(evaluated=5 * 8 * NETWORK.trace_size))
        assert training.evaluation.evaluation_block(NETWORK, np.float64) == 5


def top2(outputs, targets):
    return jnp.sum(outputs > jnp.sum(outputs * targets, axis=1, keepdims=True), axis=1) < 2


def error(outputs, targets):
    return jnp.sum(jnp.abs(outputs - targets), axis=1)


# Metrics --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy(sum)"])
def test_metrics_are_weighted_averages(blocks, loss, weights):
    value, accuracy, measured = training.evaluate(
        NETWORK, loss, PARAMS, X, LABELS, weights=weights, metrics={"top2": top2, "error": error}
    )
    outputs, targets = np.asarray(NETWORK.apply(PARAMS, X)), np.eye(3)[LABELS]
    rank = np.argsort(-outputs, axis=1)
    in_top2 = [label in first for label, first in zip(LABELS, rank[:, :2], strict=True)]
    assert measured.keys() == {"top2", "error"} and all(x.shape == () for x in measured.values())
    np.testing.assert_allclose(measured["top2"], np.average(in_top2, weights=weights), rtol=1e-14)
    np.testing.assert_allclose(
        measured["error"], np.average(np.abs(outputs - targets).sum(1), weights=weights), rtol=1e-14
    )
    assert (value, accuracy) == training.evaluate(NETWORK, loss, PARAMS, X, LABELS, weights=weights)


def test_every_position_is_a_row():
    found = training.evaluate(
        TEXT, "cross_entropy", TEXT_PARAMS, TOKENS, NEXT, weights=MASK, metrics={"right": fnn.losses.largest}
    )
    np.testing.assert_allclose(found[2]["right"], found[1], rtol=1e-15)


def test_an_example_without_weight_may_be_nan(blocks):
    def logarithm(outputs, targets):
        return jnp.log(jnp.where(targets[:, 0] > 0, -1.0, 1.0))

    weights = (LABELS != 0).astype(float)
    found = training.evaluate(NETWORK, "cross_entropy", PARAMS, X, LABELS, weights=weights, metrics={"log": logarithm})
    assert found[2]["log"] == 0


@pytest.mark.parametrize(
    ("metrics", "raised", "says"),
    [
        ({"mine": lambda a, t: a}, ValueError, r"metrics: 'mine': expected shape \(23,\), one value for each example"),
        ({"mine": "accuracy"}, TypeError, "metrics: expected a function of outputs and targets for 'mine', got 'acc"),
    ],
)
def test_what_is_no_metric_is_refused(metrics, raised, says):
    with pytest.raises(raised, match=says):
        training.evaluate(NETWORK, "cross_entropy", PARAMS, X, LABELS, metrics=metrics)


# Metrics in training --------------------------------------------------------------------------------------------------


def tracked(**more):
    track = ("noise_scale", {"error": training.of_validation(error), "top2": training.of_validation(top2)})
    return {"key": KEY, "epochs": 3, "validation": VALIDATION, "track": track} | more


@pytest.mark.parametrize("data", ["in memory", "in chunks"])
def test_of_validation_is_evaluate_after_each_epoch(blocks, data):
    settings, kept = tracked(chunk=1), []
    if data == "in chunks":
        settings["track"] = settings["track"][1]
    given = (X, LABELS) if data == "in memory" else (training.chunks(X, LABELS, size=8), None)
    settings["plan"] = training.minibatch(4)
    result = training.fit(
        NETWORK, "cross_entropy", "adam", *given, **settings, on_chunk=lambda state, _: kept.append(state.params)
    )
    for epoch, params in enumerate(kept):
        expected = training.evaluate(
            NETWORK, "cross_entropy", params, *VALIDATION, metrics={"error": error, "top2": top2}
        )[2]
        for name, value in expected.items():
            np.testing.assert_allclose(result.history.tracked[name][epoch], value, rtol=1e-14)
    assert len(kept) == 3 and ("noise_scale" in result.history.tracked) == (data == "in memory")


def test_of_validation_changes_nothing_else():
    plain = training.fit(NETWORK, "cross_entropy", "adam", X, LABELS, **tracked(track=()))
    watched = training.fit(NETWORK, "cross_entropy", "adam", X, LABELS, **tracked())
    both = [(result.params, result.history._replace(tracked={})) for result in (plain, watched)]
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_members_of_a_population_have_it_too():
    settings = tracked()
    alone = training.fit(NETWORK, "cross_entropy", "adam(0.01)", X, LABELS, **settings)
    population = training.fit_population(
        NETWORK, "cross_entropy", "adam", {"learning_rate": np.array([0.01, 0.1])}, (X, LABELS), **settings
    )
    for name in ("error", "top2"):
        np.testing.assert_allclose(population.history.tracked[name][:, 0], alone.history.tracked[name], rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "raised", "says"),
    [
        (lambda: training.of_validation("top2"), TypeError, "of_validation: expected a function of outputs and tar"),
        (
            lambda: training.fit(NETWORK, "cross_entropy", "adam", X, LABELS, **tracked(validation=None)),
            ValueError,
            "track: 'error' is measured on validation data; give validation=",
        ),
        (
            lambda: training.fit(
                NETWORK,
                "cross_entropy",
                "adam",
                X,
                LABELS,
                **tracked(track={"mine": training.of_validation(lambda a, t: a)}),
            ),
            ValueError,
            r"metrics: 'mine': expected shape \(11,\), one value for each example, got \(11, 3\)",
        ),
    ],
)
def test_it_is_refused(call, raised, says):
    with pytest.raises(raised, match=says):
        call()


# The confusion matrix -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coded", [lambda labels: labels, lambda labels: np.eye(3)[labels]])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_confusion_matrix_is_that_of_scikit_learn(blocks, weights, coded):
    found = training.confusion_matrix(NETWORK, PARAMS, X, coded(LABELS), weights)
    guessed = np.argmax(NETWORK.apply(PARAMS, X), axis=1)
    expected = sklearn.metrics.confusion_matrix(LABELS, guessed, sample_weight=weights, labels=range(3))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == (np.int64 if weights is None else np.float64)
    assert not np.array_equal(found, found.T), "rows and columns could not be told apart"


@pytest.mark.parametrize("coded", ["labels", "a column"])
def test_one_output_stands_for_two_classes(coded):
    network = fnn.multilayer((2, 1), ("sigmoid",))
    params, labels = network.init(KEY), (LABELS > 1).astype(int)
    found = training.confusion_matrix(network, params, X, labels if coded == "labels" else labels[:, None])
    guessed = np.asarray(network.apply(params, X))[:, 0] > 0.5
    np.testing.assert_array_equal(found, sklearn.metrics.confusion_matrix(labels, guessed))
    signs = fnn.multilayer((2, 1), ("tanh",))
    found = training.confusion_matrix(signs, params, X, 2.0 * labels[:, None] - 1, threshold=0.0)
    np.testing.assert_array_equal(found, sklearn.metrics.confusion_matrix(labels, guessed))


@pytest.mark.parametrize("weights", [None, MASK, np.arange(9.0)])
def test_every_position_counts(weights):
    found = training.confusion_matrix(TEXT, TEXT_PARAMS, TOKENS, NEXT, weights)
    guessed = np.argmax(TEXT.apply(TEXT_PARAMS, TOKENS), axis=-1)
    spread = None if weights is None else np.broadcast_to(weights.reshape(9, -1), (9, 4)).ravel()
    expected = sklearn.metrics.confusion_matrix(NEXT.ravel(), guessed.ravel(), sample_weight=spread, labels=range(5))
    np.testing.assert_array_equal(found, expected)


def test_a_stream_brings_its_own_targets():
    stream = RNG.integers(0, 5, 13)
    found = training.confusion_matrix(TEXT, TEXT_PARAMS, fnn.windows(stream, 4))
    places = np.arange(3)[:, None] * 4 + np.arange(4)
    np.testing.assert_array_equal(
        found, training.confusion_matrix(TEXT, TEXT_PARAMS, stream[places], stream[places + 1])
    )


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="labels"):
        training.confusion_matrix(NETWORK, PARAMS, X, LABELS + 1)
    with pytest.raises(ValueError, match="targets: expected shape"):
        training.confusion_matrix(NETWORK, PARAMS, X, np.eye(3)[LABELS][:5])
    with pytest.raises(ValueError, match="threshold must be a finite number, got nan"):
        training.confusion_matrix(NETWORK, PARAMS, X, LABELS, threshold=np.nan)
