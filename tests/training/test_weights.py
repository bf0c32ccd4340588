"""Weights of examples and classes in training: an example of weight 2 is two, and a batch's gradient is fair."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import training
from functional_nn.gradients.backprop import value_and_grad
from functional_nn.training import batch, evaluate, fit, minibatch, stochastic

compute_sample_weight = pytest.importorskip("sklearn.utils.class_weight").compute_sample_weight
KEY = jax.random.key(0)
NETWORK = fnn.multilayer((3, 4, 3), ("tanh", "softmax"))
DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((24, 3))
LABELS = np.repeat([0, 1, 2], (14, 8, 2))
T = np.eye(3)[LABELS]
WEIGHTS = DRAW.integers(0, 4, 24).astype(np.float64)
PARAMS = NETWORK.init(jax.random.key(7))
train = functools.partial(fit, NETWORK, key=KEY, params=PARAMS, epochs=4)


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize(("optimizer", "reduction"), [("gd(0.01)", "mean"), ("gd(0.01)", "sum"), ("lbfgs", "mean")])
def test_an_example_of_weight_k_is_k_examples(optimizer, reduction):
    loss = f"cross_entropy({reduction})"
    times = np.repeat(np.arange(24), WEIGHTS.astype(int))
    weighed = train(loss, optimizer, X, T, weights=WEIGHTS, plan=batch(), validation=(X, T, WEIGHTS))
    repeated = train(loss, optimizer, X[times], T[times], plan=batch(), validation=(X[times], T[times]))
    chex.assert_trees_all_close(weighed.params, repeated.params, rtol=1e-9)
    for mine, theirs in zip(weighed.history[:6], repeated.history[:6], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)
    np.testing.assert_allclose(
        evaluate(NETWORK, loss, weighed.params, X, T, weights=WEIGHTS),
        evaluate(NETWORK, loss, weighed.params, X[times], T[times]),
        rtol=1e-12,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("plan", [stochastic(shuffle="never"), minibatch(5, shuffle="never", last="weighted")])
def test_the_batches_of_an_epoch_make_the_whole_gradient(plan, reduction):
    """Moves so small that all gradients are taken at one point: of a mean their average, of a sum their sum."""
    loss = fnn.losses.cross_entropy(reduction)
    rate = 1e-9
    moved = fit(
        NETWORK, loss, fnn.optimizers.gd(rate), X, T, key=KEY, params=PARAMS, epochs=1, weights=WEIGHTS, plan=plan
    )
    _, whole = value_and_grad(NETWORK, loss)(PARAMS, X, T, WEIGHTS)
    share = plan.size / len(X) if reduction == "mean" else 1
    step = jax.tree.map(lambda a, b: share * (a - b) / rate, PARAMS, moved.params)
    chex.assert_trees_all_close(step, whole, rtol=1e-6, atol=2e-6)


def test_a_batch_that_weighs_nothing_moves_nothing():
    weights = np.where(np.arange(24) < 4, 0.0, 1.0)
    found = train("cross_entropy", "gd(0.1)", X, T, weights=weights, plan=minibatch(4, shuffle="never"))
    assert found.status == "completed" and np.isfinite(found.history.training_loss).all()


def test_class_weights_are_weights():
    balanced = compute_sample_weight("balanced", LABELS)
    np.testing.assert_allclose(fnn.class_weights(T), balanced)
    np.testing.assert_allclose(fnn.class_weights(LABELS), balanced)
    np.testing.assert_allclose(fnn.class_weights(2 * T - 1, {2: 5.0}), np.where(LABELS == 2, 5, 1))
    np.testing.assert_allclose(fnn.class_weights(T, [1, 2, 3]), LABELS + 1)
    np.testing.assert_allclose(fnn.class_weights(T[:, :1]), compute_sample_weight("balanced", LABELS == 0))
    np.testing.assert_allclose(fnn.class_weights(2 * T[:, :1] - 1), compute_sample_weight("balanced", LABELS == 0))
    by_class = train("cross_entropy", "adam(0.1)", X, T, class_weights="balanced", weights=WEIGHTS)
    by_example = train("cross_entropy", "adam(0.1)", X, T, weights=balanced * WEIGHTS)
    chex.assert_trees_all_close(by_class.params, by_example.params, rtol=1e-9)
    assert not np.allclose(by_class.history.training_loss, train("cross_entropy", "adam(0.1)", X, T).history[1])


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize(
    ("shuffle", "columns"),
    [
        ("shared", {}),
        ("shared", {"subset": [0, 1], "examples": [12, 12]}),
        ("independent", {"label_noise": [0.0, 0.2]}),
    ],
)
def test_members_are_weighed_as_they_would_be_alone(shuffle, columns):
    population = training.fit_population(
        NETWORK,
        "cross_entropy",
        "gd",
        {"learning_rate": [0.1, 0.2], "seed": [0, 1]} | columns,
        (X, T),
        key=KEY,
        epochs=2,
        plan=minibatch(5),
        weights=WEIGHTS + 0.5,
        class_weights="balanced",
        shuffle=shuffle,
    )
    for member in range(2):
        assert population.drift(member).relative < 1e-12
        alone = fit(
            NETWORK,
            "cross_entropy",
            fnn.optimizers.gd([0.1, 0.2][member]),
            *population.data(member),
            epochs=2,
            key=KEY,
            plan=minibatch(5),
            params=population.initial_params(member),
        )
        assert not np.allclose(population.history.training_loss[:, member], alone.history.training_loss)


def test_pure_fit_and_best_of_weigh_too():
    settings = {"weights": WEIGHTS, "class_weights": "balanced"}
    outcome = jax.jit(
        lambda x, t, w: training.pure_fit(NETWORK, "cross_entropy", "gd(0.1)", epochs=3)(
            KEY, x, t, weights=w, class_weights="balanced"
        )
    )(X, T, WEIGHTS)
    alone = fit(NETWORK, "cross_entropy", "gd(0.1)", X, T, key=KEY, epochs=3, **settings)
    chex.assert_trees_all_close(outcome.params, alone.params, rtol=1e-9)
    best = training.best_of(2, NETWORK, "cross_entropy", "gd(0.1)", X, T, key=KEY, epochs=3, **settings)
    value, _ = evaluate(NETWORK, "cross_entropy", best.params, X, T, **settings)
    assert float(value) == pytest.approx(best.losses.min())
    judged = training.best_of(
        2, NETWORK, "cross_entropy", "gd(0.1)", X, T, key=KEY, epochs=3, **settings, validation=(X, T, WEIGHTS)
    )
    value, _ = evaluate(NETWORK, "cross_entropy", judged.params, X, T, weights=WEIGHTS)
    assert float(value) == pytest.approx(judged.losses.min())


def test_integer_labels_are_classes():
    rows = train("cross_entropy", "gd(0.1)", X, T, validation=(X, T))
    numbers = train("cross_entropy", "gd(0.1)", X, LABELS, validation=(X, LABELS.astype(np.uint8)))
    chex.assert_trees_all_equal(rows.params, numbers.params)
    assert evaluate(NETWORK, "cross_entropy", rows.params, X, jnp.asarray(LABELS)) == pytest.approx(
        (rows.history.validation_loss[-1], rows.history.validation_accuracy[-1])
    )
    one = fnn.multilayer((3, 1), ("sigmoid",))
    signs = fnn.multilayer((3, 1), ("linear",))
    for network, loss, column in (
        (one, "binary_cross_entropy", T[:, :1]),
        (signs, "hinge", 2 * T[:, :1] - 1),
    ):
        value, _ = value_and_grad(network, loss)(network.init(KEY), X, LABELS == 0)
        assert value == value_and_grad(network, loss)(network.init(KEY), X, column)[0]


REFUSED = {
    "a weight a column": ({"weights": T}, ValueError, "weights: expected shape"),
    "a negative weight": ({"weights": -WEIGHTS}, ValueError, "weights: expected numbers >= 0, got -"),
    "no weight": ({"weights": 0 * WEIGHTS}, ValueError, "weights: expected at least one above 0"),
    "a list": ({"weights": [1.0] * 24}, TypeError, "weights: expected an array of numbers, got list"),
    "too few classes": ({"class_weights": [1, 2]}, ValueError, "class_weights: expected 3, one for each class, got 2"),
    "an unknown class": ({"class_weights": {3: 1.0}}, ValueError, "expected classes 0 to 2, got 3"),
    "a word": ({"class_weights": "even"}, ValueError, "expected 'balanced', or a weight for each of 3 classes"),
    "a negative class": ({"class_weights": [1, 2, -1]}, ValueError, "class 2 must be a finite number >= 0, got -1"),
    "importance": ({"weights": WEIGHTS, "plan": training.importance(4)}, ValueError, "importance.. draws and weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_weights_are_refused(case):
    changes, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        train("cross_entropy", "gd", X, T, **changes)


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match="labels: expected 0 to 2, got 3 at index 1"):
        train("cross_entropy", "gd", X[:2], np.array([0, 3]))
    with pytest.raises(ValueError, match=r"got \(24, 1\); integers \(Q,\) are taken for classes, and fnn.one_hot"):
        train("cross_entropy", "gd", X, LABELS[:, None])
    with pytest.raises(ValueError, match=r"targets: expected shape \(24, 1\) to match the outputs, got \(24,\)"):
        fit(fnn.multilayer((3, 1), ("linear",)), "mean_square_error", "gd", X, LABELS, key=KEY, epochs=1)
