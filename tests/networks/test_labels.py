"""Integer labels: one-hot rows, smoothed, coded as a loss needs them, and weights by class."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import OUTPUTS, REDUCTIONS, suited_outputs

import functional_nn as fnn
from functional_nn import losses

DRAW = np.random.default_rng(0)


def test_one_hot_puts_a_single_one_in_each_row():
    np.testing.assert_array_equal(fnn.one_hot(np.array([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])
    assert fnn.one_hot([1], 2).dtype == jnp.float64
    assert fnn.one_hot([1], 2, jnp.bfloat16).dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.jit(lambda y: fnn.one_hot(y, 3))(jnp.array([1])), [[0, 1, 0]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3, 1], "labels: expected 0 to 2, got 3 at index 1"),
        ([0, 1, -1], "labels: expected 0 to 2, got -1 at index 2"),
        (
            [0.0, 1.0],
            r"labels: expected integers of shape \(Q,\), or with positions \(Q, T\), got float64 of shape \(2,\)",
        ),
        (
            [[0], [1]],
            r"labels: expected integers of shape \(Q,\), or with positions \(Q, T\), got int64 of shape \(2, 1\)",
        ),
    ],
)
def test_invalid_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        fnn.one_hot(jnp.array(labels), 3)


@pytest.mark.oracle
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.9])
def test_smoothed_labels_are_those_of_optax(rate):
    import optax

    rows = fnn.one_hot(np.array([[2, 0, 3], [1, 1, 0]]), 4)  # (Q, T, C)
    np.testing.assert_array_max_ulp(fnn.smooth_labels(rows, rate), optax.smooth_labels(rows, rate), 1)


def test_smoothed_labels_train_and_count_as_the_labels_they_were():
    labels, a = np.array([2, 0, 3, 1, 1]), suited_outputs(losses.get("cross_entropy"))
    rows = fnn.one_hot(labels, OUTPUTS)
    smoothed = fnn.smooth_labels(rows, 0.2)
    np.testing.assert_allclose(smoothed, [[0.85 if i == label else 0.05 for i in range(4)] for label in labels])
    for name in ("cross_entropy", "kullback_leibler", "symmetric_kullback_leibler", "bhattacharyya"):
        loss = losses.get(name)
        loss.check_targets(smoothed)
        np.testing.assert_array_equal(loss.correct(a, smoothed), loss.correct(a, rows))

    # H(q', p) = (1 - rate) H(q, p) + rate H(u, p): Szegedy et al. 2016, sec. 7
    def value(t):
        return np.asarray(losses.cross_entropy().example_value(a, t))

    np.testing.assert_allclose(value(smoothed), 0.8 * value(rows) + 0.2 * value(jnp.full(rows.shape, 0.25)), rtol=1e-14)
    # one column says two classes: what two would say of the second
    pair = fnn.one_hot(np.array([0, 1]), 2)
    np.testing.assert_array_equal(fnn.smooth_labels(pair[:, 1:], 0.1), fnn.smooth_labels(pair, 0.1)[:, 1:])
    assert fnn.smooth_labels(np.eye(3, dtype=int), 0.1).dtype == jnp.float64
    assert jax.jit(fnn.smooth_labels)(jnp.eye(3, dtype=jnp.bfloat16), 0.1).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("targets", "rate", "message"),
    [
        ([[0.0, 1.0]], 1.0, r"smooth_labels: rate must be in \[0, 1\), got 1.0"),
        ([[0.0, 1.0]], -0.1, r"rate must be in \[0, 1\), got -0.1"),
        ([0, 1], 0.1, r"targets: expected shape \(Q, C\), .* got \(2,\); fnn.one_hot\(labels, C\) turns"),
        ([[1.0, 1.0]], 0.1, r"smooth_labels accepts rows >= 0 that sum to 1, got 1 at index \(0, 0\)"),
        ([[1.0], [-1.0]], 0.1, r"smooth_labels accepts values in \[0, 1\], got -1 at index \(1, 0\)"),
    ],
)
def test_what_cannot_be_smoothed_is_refused(targets, rate, message):
    with pytest.raises(ValueError, match=message):
        fnn.smooth_labels(jnp.array(targets), rate)


def test_one_hot_in_float64_needs_64_bits():
    with jax.enable_x64(False), pytest.raises(ValueError, match="64-bit mode, which is off"):
        fnn.one_hot(np.array([0], np.int32), 2, jnp.float64)


def test_labels_out_of_range_are_nan_where_they_cannot_be_refused():
    rows = jax.jit(lambda labels: losses.one_hot(labels, 3))(jnp.array([0, 3, -1]))
    assert rows[0].tolist() == [1, 0, 0] and jnp.isnan(rows[1:]).all()


def tagger(output="softmax", outputs=3):
    """(network, parameters, inputs): a class, or so many numbers, for each of five positions."""
    network = fnn.graph(inputs={"x": (5, 2)}, layers=[fnn.Layer("output", outputs, output, sources=["x"])])
    return network, network.init(jax.random.key(0)), DRAW.normal(size=(4, 5, 2))


@pytest.mark.parametrize("positions", REDUCTIONS)
@pytest.mark.parametrize("mask", [None, DRAW.uniform(size=(4, 5)) < 0.7])
def test_labels_of_positions_are_one_hot_rows_of_them(mask, positions):
    """Fused with softmax, by a mask: minus the mean of ln a of what is right; and its derivative, (a - t) over Q T."""
    network, params, x = tagger()
    labels, loss = DRAW.integers(3, size=(4, 5)), losses.cross_entropy(positions=positions)
    found = [
        fnn.backpropagate(network, loss, params, x, t, mask)
        for t in (labels, labels.astype(np.uint8), fnn.one_hot(labels, 3), np.eye(3, dtype=int)[labels])
    ]
    for other in found[1:]:
        chex.assert_trees_all_equal(other, found[0])
    n = x @ np.asarray(params["output"]["weights"]["x"]).T
    a = np.exp(n) / np.exp(n).sum(axis=-1, keepdims=True)
    kept = np.ones((4, 5)) if mask is None else mask.astype(float)
    each = kept / kept.sum() * (5 if positions == "sum" else 1)
    right = np.take_along_axis(a, labels[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found[0].value, -(each * np.log(right)).sum(), rtol=1e-13)
    expected = each[..., None] * (a - np.eye(3)[labels])
    np.testing.assert_allclose(found[0].sensitivities["output"], expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(
    ("loss", "output", "coded"),
    [
        ("binary_cross_entropy", "sigmoid", (0.0, 1.0)),
        ("hinge", "linear", (-1.0, 1.0)),
        ("logistic", "linear", (-1.0, 1.0)),
    ],
)
def test_labels_of_positions_for_a_single_output(loss, output, coded):
    network, params, x = tagger(output, 1)
    labels = DRAW.integers(2, size=(4, 5))
    value = fnn.objective(network, loss)
    expected = value(params, x, np.array(coded)[labels][..., None])
    assert value(params, x, labels) == value(params, x, labels.astype(bool)) == expected
    with pytest.raises(ValueError, match=r"labels: expected 0 to 1, got 2 at index \(0, 0\)"):
        value(params, x, np.full_like(labels, 2))
    with pytest.raises(ValueError, match=r"targets: expected shape \(4, 5, 1\) to match the outputs, got \(4, 5\)"):
        fnn.objective(network, "mean_square_error")(params, x, labels)


def test_one_hot_of_positions():
    labels = np.array([[0, 2, 1], [1, 1, 0]])
    np.testing.assert_array_equal(fnn.one_hot(labels, 3), np.eye(3)[labels])
    assert fnn.one_hot(labels[None], 3, jnp.float32).shape == (1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"labels: expected 0 to 1, got 2 at index \(0, 1\)"):
        fnn.one_hot(labels, 2)
    lost = jax.jit(fnn.one_hot, static_argnums=1)(labels, 2)
    np.testing.assert_array_equal(np.isnan(lost).all(axis=-1), labels == 2)


def test_class_weights_of_positions():
    labels = np.array([[0, 2, 0], [0, 2, 1]])
    weights = fnn.class_weights(fnn.one_hot(labels, 3))
    np.testing.assert_allclose(weights, np.array([6 / (3 * 3), 6 / (3 * 1), 6 / (3 * 2)])[labels])
    given = fnn.class_weights(fnn.one_hot(labels, 3), {2: 5.0})
    np.testing.assert_array_equal(given, np.array([1.0, 1.0, 5.0])[labels])
    np.testing.assert_array_equal(
        fnn.class_weights((labels == 2)[..., None] * 1.0, [1, 3]), np.array([1, 1, 3])[labels]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cross_entropy(positions=max)", "cross_entropy: positions must be 'mean' or 'sum', got 'max'"),
        (
            "cross_entropy(sum, sum)",
            "too many positional arguments (accepted: cross_entropy(reduction='mean', positions=",
        ),
    ],
)
def test_positions_are_a_mean_or_a_sum(given, message):
    with pytest.raises(ValueError) as refusal:
        losses.get(given)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
