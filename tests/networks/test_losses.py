"""Every registered loss against its definition and other people's code; its gradient against autodiff of its value."""

import dataclasses
import math
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, LOSSES, REFERENCE_LOSSES, generator, reference_loss, relative_error, targets_for

import functional_nn as fnn
from functional_nn import activations, checks, losses

EPS = np.finfo(np.float64).eps
DRAW = np.random.default_rng(0)
EXAMPLES, OUTPUTS = 5, 4
REDUCTIONS = ("mean", "sum")
FUSED = tuple((name, output) for name in LOSSES for output in losses.get(name).fused)
MASKABLE = tuple((name, output) for name, output in FUSED if losses.get(name).targets != "positive")


def net_inputs(seed=0, dtype=jnp.float64):
    return jnp.asarray(2 * generator(jax.random.key(seed)).standard_normal((EXAMPLES, OUTPUTS)), dtype)


def suited_outputs(loss, seed=0, dtype=jnp.float64):
    """Outputs (Q, S) in the range that the loss needs."""
    name = {"real": "linear", "unit interval": "sigmoid", "distribution": "softmax"}[loss.needs]
    return activations.get(name).forward(net_inputs(seed, dtype), {})[0]


def suited(name, reduction, dtype=jnp.float64):
    """(loss, outputs, targets, weights)"""
    loss = losses.get(f"{name}({reduction})")
    weights = jnp.asarray(generator(jax.random.key(7)).uniform(0.5, 2, EXAMPLES), dtype)
    targets = targets_for(loss, jax.random.key(1), EXAMPLES, OUTPUTS, dtype)
    return loss, suited_outputs(loss, dtype=dtype), targets, weights


# Values ---------------------------------------------------------------------------------------------------------------


def test_every_loss_has_a_definition_to_be_held_against():
    asked = """mean_square_error sum_square_error half_sum_square_error cross_entropy binary_cross_entropy hinge
        multiclass_hinge logistic kullback_leibler symmetric_kullback_leibler bhattacharyya""".split()
    assert set(asked) <= set(LOSSES)
    assert set(LOSSES) == set(REFERENCE_LOSSES)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_value_is_the_definition(name, reduction, weighted):
    loss, a, t, weights = suited(name, reduction)
    weights = weights if weighted else None
    # Each side rounds once for every one of the Q S terms and their sums; the terms are of order 1.
    expected = reference_loss(loss, np.asarray(a), np.asarray(t), weights)
    np.testing.assert_allclose(loss.value(a, t, weights), expected, rtol=4 * EXAMPLES * OUTPUTS * EPS)


@pytest.mark.parametrize("name", LOSSES)
def test_default_reduction_is_the_texts(name):
    expected = "sum" if name in ("sum_square_error", "half_sum_square_error") else "mean"
    assert losses.get(name).reduction == expected


def test_worked_example_9():
    p, q = jnp.array([[0.5, 0.5]]), jnp.array([[0.9, 0.1]])
    assert round(float(losses.kullback_leibler().value(q, p)), 4) == 0.5108
    assert round(float(losses.kullback_leibler().value(p, q)), 4) == 0.3681
    assert round(float(losses.bhattacharyya().value(q, p)), 4) == 0.1116
    assert round(float(losses.symmetric_kullback_leibler().value(q, p)), 4) == round(0.510826 + 0.368064, 4)


@pytest.mark.parametrize("name", ["kullback_leibler", "symmetric_kullback_leibler", "bhattacharyya"])
def test_a_distance_is_zero_from_itself_only(name):
    loss, a, t, _ = suited(name, "sum")
    np.testing.assert_allclose(loss.value(a, a), 0, atol=EXAMPLES * OUTPUTS * EPS)
    assert loss.value(a, t) > 0.01


@pytest.mark.oracle
@pytest.mark.parametrize("reduction", REDUCTIONS)
class TestOracles:
    """The same numbers from optax, SciPy and scikit-learn. Their own rounding is of the size of ours."""

    rtol = 8 * EXAMPLES * OUTPUTS * EPS

    def test_optax(self, reduction):
        import optax

        n, reduce = net_inputs(), {"mean": jnp.mean, "sum": jnp.sum}[reduction]
        for name, output, rows in [
            ("cross_entropy", "softmax", lambda t: optax.losses.softmax_cross_entropy(n, t)),
            ("binary_cross_entropy", "sigmoid", lambda t: optax.losses.sigmoid_binary_cross_entropy(n, t).sum(axis=1)),
            ("kullback_leibler", "softmax", lambda t: optax.losses.kl_divergence(jax.nn.log_softmax(n), t)),
            ("hinge", None, lambda t: optax.losses.hinge_loss(n, t).sum(axis=1)),
            ("sum_square_error", None, lambda t: optax.losses.squared_error(n, t).sum(axis=1)),
            ("half_sum_square_error", None, lambda t: optax.losses.l2_loss(n, t).sum(axis=1)),
            ("mean_square_error", None, lambda t: optax.losses.squared_error(n, t).mean(axis=1)),
            ("logistic", None, lambda t: optax.losses.sigmoid_binary_cross_entropy(n, (t + 1) / 2).sum(axis=1)),
        ]:
            loss = losses.get(f"{name}({reduction})")
            t = targets_for(loss, jax.random.key(3), EXAMPLES, OUTPUTS)
            value = loss.reduce(loss.fused[output].value(n, t)) if output else loss.value(n, t)
            np.testing.assert_allclose(value, reduce(rows(t)), rtol=self.rtol, err_msg=name)

    def test_scipy(self, reduction):
        from scipy.special import rel_entr

        reduce = {"mean": np.mean, "sum": np.sum}[reduction]
        loss, a, t, _ = suited("kullback_leibler", reduction)
        np.testing.assert_allclose(loss.value(a, t), reduce(rel_entr(t, a).sum(axis=1)), rtol=self.rtol)
        loss, a, t, _ = suited("symmetric_kullback_leibler", reduction)
        both_ways = (rel_entr(t, a) + rel_entr(a, t)).sum(axis=1)
        np.testing.assert_allclose(loss.value(a, t), reduce(both_ways), rtol=self.rtol)

    def test_scikit_learn(self, reduction):
        from sklearn.metrics import log_loss

        labels = np.array([0, 3, 1, 2, 0])
        a = np.asarray(activations.get("softmax").forward(net_inputs(), {})[0])
        expected = log_loss(labels, a, normalize=reduction == "mean", labels=range(OUTPUTS))
        value = losses.cross_entropy(reduction).value(jnp.asarray(a), fnn.one_hot(labels, OUTPUTS))
        np.testing.assert_allclose(value, expected, rtol=self.rtol)


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_grad_of_value(name, reduction, weighted):
    loss, a, t, weights = suited(name, reduction)
    weights = weights if weighted else None
    gradient = loss.gradient(a, t, weights)
    assert gradient.shape == a.shape
    assert relative_error(gradient, jax.grad(loss.value)(a, t, weights)) <= 1e-12


@pytest.mark.parametrize(("name", "output"), FUSED)
def test_fused_pair_is_the_composition(name, output):
    loss, f, n = losses.get(name), activations.get(output), net_inputs()
    t = targets_for(loss, jax.random.key(1), EXAMPLES, OUTPUTS)
    a = f.forward(n, {})[0]
    s, _ = f.pullback(loss.example_gradient(a, t), n, a, None, {})
    assert relative_error(loss.fused[output].value(n, t), loss.example_value(a, t)) <= 1e-12
    assert relative_error(loss.fused[output].gradient(n, t), s) <= 1e-12


@pytest.mark.parametrize(("name", "output"), FUSED)
def test_fused_gradient_is_the_grad_of_the_fused_value(name, output):
    loss, n = losses.get(name), net_inputs()
    t = targets_for(loss, jax.random.key(1), EXAMPLES, OUTPUTS)
    automatic = jax.grad(lambda n: jnp.sum(loss.fused[output].value(n, t)))(n)
    assert relative_error(loss.fused[output].gradient(n, t), automatic) <= 1e-12


def test_the_issue_asks_for_these_pairs():
    assert ("cross_entropy", "softmax") in FUSED and ("binary_cross_entropy", "sigmoid") in FUSED
    assert losses.cross_entropy().fused_with(activations.get("softmax")) is losses.cross_entropy().fused["softmax"]
    assert losses.cross_entropy().fused_with(activations.get("sigmoid")) is None


def log_softmax(n):
    """By its definition, in extended precision."""
    n = np.asarray(n).astype(np.longdouble)
    n = n - n.max(axis=1, keepdims=True)
    return n - np.log(np.exp(n).sum(axis=1, keepdims=True))


def log_sigmoid(n):
    n = np.asarray(n).astype(np.longdouble)
    return np.minimum(n, 0) - np.log1p(np.exp(-np.abs(n)))


# F_q of the fused pairs from log-probabilities, where exp(log_a) may underflow to the 0 that it is
FROM_LOGITS = {
    "cross_entropy": lambda n, t: -(t * log_softmax(n)).sum(axis=1),
    "binary_cross_entropy": lambda n, t: -(t * log_sigmoid(n) + (1 - t) * log_sigmoid(-n)).sum(axis=1),
    "kullback_leibler": lambda n, t: (t * (np.log(np.where(t == 0, 1, t)) - log_softmax(n))).sum(axis=1),
    "symmetric_kullback_leibler": lambda n, t: ((t - np.exp(log_softmax(n))) * (np.log(t) - log_softmax(n))).sum(
        axis=1
    ),
    "bhattacharyya": lambda n, t: (
        -np.logaddexp.reduce((np.log(t, where=t > 0, out=np.full_like(t, -np.inf)) + log_softmax(n)) / 2, axis=1)
    ),
}
# dF_q/dn in the limit where one logit towers over the rest: a is one-hot
AT_THE_LIMIT = {
    "cross_entropy": lambda a, t, n: a * t.sum(axis=1, keepdims=True) - t,
    "binary_cross_entropy": lambda a, t, n: np.exp(log_sigmoid(n)) - t,
    "kullback_leibler": lambda a, t, n: a * t.sum(axis=1, keepdims=True) - t,
    "bhattacharyya": lambda a, t, n: (a - np.exp(_normalised((np.log(t) + log_softmax(n)) / 2))) / 2,
    "symmetric_kullback_leibler": lambda a, t, n: a - t,
}


def _normalised(x):
    return x - np.logaddexp.reduce(x, axis=1)[:, None]


@pytest.mark.sampled(every=9)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(("name", "output"), FUSED)
def test_fused_pair_is_exact_at_logits_of_ten_thousand(name, output, dtype):
    loss = losses.get(name)
    n = jnp.asarray([[1e4, 0, -1e4, 3], [0, 1e4, 2, -1e4], [-1e4, -1e4, -1e4, 1e4]], dtype)
    t = jnp.asarray([[0.25, 0.25, 0.375, 0.125], [0.5, 0.25, 0.125, 0.125], [0.5, 0.125, 0.25, 0.125]], dtype)
    wide_n, wide_t = np.asarray(n).astype(np.longdouble), np.asarray(t).astype(np.longdouble)
    a = np.eye(4)[[0, 1, 3]]
    value = loss.fused[output].value(n, t)
    gradient = loss.fused[output].gradient(n, t)
    automatic = jax.grad(lambda n: jnp.sum(loss.fused[output].value(n, t)))(n)
    # Of order S roundings of numbers no larger than the value, or than 1.
    eps = 8 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(value).astype(float), FROM_LOGITS[name](wide_n, wide_t).astype(float), rtol=eps
    )
    expected = AT_THE_LIMIT[name](a, wide_t, wide_n).astype(float)
    np.testing.assert_allclose(np.asarray(gradient).astype(float), expected, rtol=eps, atol=eps)
    np.testing.assert_allclose(np.asarray(automatic).astype(float), expected, rtol=eps, atol=eps)
    assert value.dtype == gradient.dtype == dtype


@pytest.mark.sampled(every=9)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(("name", "output"), MASKABLE)
def test_a_masked_class_with_target_zero_counts_as_absent(name, output, dtype):
    loss = losses.get(name)
    n = jnp.asarray([[1.0, -np.inf, -2.0, 0.5], [1e4, -np.inf, -1e4, 0.0]], dtype)
    t = jnp.asarray([[0.25, 0.0, 0.5, 0.25], [1.0, 0.0, 0.0, 0.0]], dtype)
    rest, t_rest = (jnp.asarray(np.delete(np.asarray(x), 1, axis=1)) for x in (n, t))
    pair = loss.fused[output]
    eps = 8 * float(jnp.finfo(dtype).eps)

    def wide(x):
        return np.asarray(x).astype(float)

    np.testing.assert_allclose(wide(pair.value(n, t)), wide(pair.value(rest, t_rest)), rtol=eps)
    for gradient in (pair.gradient(n, t), jax.grad(lambda n: jnp.sum(pair.value(n, t)))(n)):
        assert (wide(gradient)[:, 1] == 0).all()
        np.testing.assert_allclose(np.delete(wide(gradient), 1, axis=1), wide(pair.gradient(rest, t_rest)), atol=eps)


@pytest.mark.parametrize(
    ("name", "a", "t", "expected"),
    [
        ("cross_entropy", [[0.0, 1.0]], [[0.0, 1.0]], [[0.0, -1.0]]),
        ("binary_cross_entropy", [[0.0, 1.0]], [[0.0, 1.0]], [[1.0, -1.0]]),
        ("kullback_leibler", [[0.0, 1.0]], [[0.0, 1.0]], [[0.0, -1.0]]),
        ("bhattacharyya", [[0.5, 0.5]], [[0.0, 1.0]], [[0.0, -1.0]]),
    ],
)
def test_where_the_target_asks_for_nothing_an_output_of_zero_costs_nothing(name, a, t, expected):
    loss, a, t = losses.get(name), jnp.array(a), jnp.array(t)
    assert np.isfinite(loss.value(a, t))
    np.testing.assert_allclose(loss.gradient(a, t), expected, rtol=8 * EPS)
    np.testing.assert_allclose(jax.grad(loss.value)(a, t), expected, rtol=8 * EPS)


# Reductions and weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_mean_is_the_sum_over_the_number_of_examples(name):
    mean, a, t, _ = suited(name, "mean")
    total = losses.get(f"{name}(sum)")
    np.testing.assert_allclose(mean.value(a, t), total.value(a, t) / EXAMPLES, rtol=4 * EPS)
    np.testing.assert_allclose(mean.gradient(a, t), total.gradient(a, t) / EXAMPLES, rtol=4 * EPS)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_one_are_no_weights(name, reduction):
    loss, a, t, _ = suited(name, reduction)
    ones = jnp.ones(EXAMPLES)
    np.testing.assert_allclose(loss.value(a, t, ones), loss.value(a, t), rtol=EXAMPLES * EPS)
    np.testing.assert_allclose(loss.gradient(a, t, ones), loss.gradient(a, t), rtol=4 * EPS)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_of_zero_drops_the_example(name, reduction):
    loss, a, t, weights = suited(name, reduction)
    if loss.needs == "real":
        a = a.at[2].set(jnp.where(t[2] == 1, -1e30, 1e30))  # however large its error
    kept = jnp.array([0, 1, 3, 4])
    weights = weights.at[2].set(0.0)
    # Only the order of the sum over the examples may differ.
    np.testing.assert_allclose(
        loss.value(a, t, weights), loss.value(a[kept], t[kept], weights[kept]), rtol=EXAMPLES * EPS
    )
    gradient = loss.gradient(a, t, weights)
    np.testing.assert_array_equal(gradient[2], jnp.zeros(OUTPUTS))
    np.testing.assert_allclose(gradient[kept], loss.gradient(a[kept], t[kept], weights[kept]), rtol=EXAMPLES * EPS)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_integer_weight_repeats_an_example(reduction):
    loss, a, t, _ = suited("cross_entropy", reduction)
    weights = jnp.array([1.0, 3.0, 0.0, 2.0, 1.0])
    repeated = jnp.repeat(jnp.arange(EXAMPLES), jnp.array([1, 3, 0, 2, 1]))
    np.testing.assert_allclose(loss.value(a, t, weights), loss.value(a[repeated], t[repeated]), rtol=8 * EPS)


# Dtypes and kinks -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_dtype_is_kept(name, reduction, dtype):
    loss, a, t, weights = suited(name, reduction, dtype)
    results = [loss.value(a, t), loss.gradient(a, t), loss.value(a, t, weights), loss.gradient(a, t, weights)]
    # weights come in the dtype of the batch plan, whatever the network's
    results += [loss.value(a, t, weights.astype(jnp.float32)), loss.gradient(a, t, weights.astype(jnp.float32))]
    for pair in loss.fused.values():
        results += [pair.value(a, t), pair.gradient(a, t)]
    for result in results:
        assert result.dtype == dtype
        assert np.isfinite(np.asarray(result).astype(float)).all()


def test_sums_of_many_examples_are_not_kept_in_sixteen_bits():
    a, t = jnp.ones((4096, 1), jnp.bfloat16), jnp.zeros((4096, 1), jnp.bfloat16)
    assert losses.mean_square_error().value(a, t) == 1  # 256 + 1 is 256 in bfloat16
    assert losses.sum_square_error().value(a, t) == 4096


@pytest.mark.parametrize("t", [1.0, -1.0])
def test_hinge_at_its_kink_is_flat(t):
    loss, a, t = losses.hinge(), jnp.array([[t]]), jnp.array([[t]])
    assert loss.kink_distance(a, t) == 0 and not loss.smooth
    assert loss.gradient(a, t) == 0 == jax.grad(loss.value)(a, t)
    assert loss.gradient(a - t / 8, t) == -t == jax.grad(loss.value)(a - t / 8, t)


def test_multiclass_hinge_at_its_kink_is_flat():
    loss, a, t = losses.multiclass_hinge(), jnp.array([[1.0, 2.0, 0.0]]), jnp.array([[0.0, 1.0, 0.0]])
    assert loss.kink_distance(a, t)[0, 0] == 0 and not loss.smooth
    assert loss.kink_distance(a, t)[0, 2] == 1
    np.testing.assert_array_equal(loss.gradient(a, t), jnp.zeros((1, 3)))
    np.testing.assert_array_equal(jax.grad(loss.value)(a, t), jnp.zeros((1, 3)))


@pytest.mark.parametrize("name", [name for name in LOSSES if not losses.get(name).smooth])
def test_kink_distance_is_how_far_the_outputs_may_move(name):
    loss, a, t, _ = suited(name, "sum")
    distance = np.asarray(loss.kink_distance(a, t))
    assert (distance > 0).all()
    nudged = a + 0.4 * distance.min() * jnp.where(a > 0, 1.0, -1.0)  # a margin is a difference of two outputs
    np.testing.assert_array_equal(loss.gradient(nudged, t), loss.gradient(a, t))


def test_smooth_losses_say_so():
    assert {name for name in LOSSES if not losses.get(name).smooth} == {"hinge", "multiclass_hinge"}


# What is right, what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "a", "t", "expected"),
    [
        ("cross_entropy", [[0.1, 0.9], [0.6, 0.4]], [[0, 1], [0, 1]], [True, False]),
        ("multiclass_hinge", [[-1, 4], [3, -2]], [[0, 1], [0, 1]], [True, False]),
        ("binary_cross_entropy", [[0.7], [0.7], [0.2]], [[1], [0], [0]], [True, False, True]),
        ("hinge", [[0.7], [-0.7], [-0.2]], [[1], [1], [-1]], [True, False, True]),
        ("logistic", [[0.7, -1], [0.7, 1]], [[1, -1], [1, -1]], [True, False]),
    ],
)
def test_correct_tells_which_examples_are_right(name, a, t, expected):
    np.testing.assert_array_equal(losses.get(name).correct(jnp.array(a, float), jnp.array(t, float)), expected)


@pytest.mark.parametrize("name", ["mean_square_error", "sum_square_error", "half_sum_square_error"])
def test_regression_has_no_right_or_wrong(name):
    assert losses.get(name).correct is None


@pytest.mark.parametrize("name", LOSSES)
def test_targets_with_a_meaning_are_accepted(name):
    for seed in range(5):
        losses.get(name).check_targets(targets_for(name, jax.random.key(seed), EXAMPLES, OUTPUTS, jnp.bfloat16))


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("cross_entropy", [[0.5, -0.1]], r"targets: cross_entropy accepts values >= 0, got -0.1 at index \(0, 1\)"),
        ("binary_cross_entropy", [[0.0], [1.5]], r"values in \[0, 1\], got 1.5 at index \(1, 0\)"),
        ("binary_cross_entropy", [[-1.0], [1.0]], r"got -1 at index \(0, 0\)"),
        ("kullback_leibler", [[0.5, 0.5], [0.5, 0.4]], r"rows >= 0 that sum to 1, got 0.5 at index \(1, 0\)"),
        ("kullback_leibler", [[1.5, -0.5]], r"got -0.5 at index \(0, 1\)"),
        ("bhattacharyya", [[0.5, 0.4]], "rows >= 0 that sum to 1"),
        ("symmetric_kullback_leibler", [[1.0, 0.0]], r"rows > 0 that sum to 1, got 0 at index \(0, 1\)"),
        ("symmetric_kullback_leibler", [[0.5, 0.4]], "rows > 0 that sum to 1"),
        ("hinge", [[1.0], [0.0]], r"hinge accepts -1 or \+1, got 0 at index \(1, 0\)"),
        ("logistic", [[0.5]], r"logistic accepts -1 or \+1, got 0.5"),
        ("multiclass_hinge", [[1.0, 1.0]], "rows with a single 1, the rest 0, got 1"),
        ("multiclass_hinge", [[0.0, 1.0], [0.5, 0.5]], r"got 0.5 at index \(1, 0\)"),
        ("multiclass_hinge", [[-1.0, 1.0]], r"got -1 at index \(0, 0\)"),
    ],
)
def test_targets_without_a_meaning_are_refused(name, targets, message):
    with pytest.raises(ValueError, match=message):
        losses.get(name).check_targets(jnp.array(targets))
    jax.jit(lambda t: losses.get(name).check_targets(t))(jnp.array(targets))  # values are not known while tracing


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("cross_entropy", "linear", r"cross_entropy needs outputs that are numbers in \[0, 1\]"),
        ("cross_entropy", "tanh", "'tanh' gives real numbers; use 'softmax' or 'sigmoid'"),
        ("binary_cross_entropy", "relu", "use 'softmax' or 'sigmoid'"),
        ("kullback_leibler", "sigmoid", r"'sigmoid' gives numbers in \[0, 1\]; use 'softmax'"),
        ("symmetric_kullback_leibler", "linear", "use 'softmax'"),
        ("bhattacharyya", "sigmoid", "use 'softmax'"),
    ],
)
def test_outputs_that_are_no_probabilities_are_refused(name, output, message):
    with pytest.raises(ValueError, match=message) as refusal:
        losses.get(name).check_outputs(activations.get(output))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", LOSSES)
def test_softmax_suits_every_loss(name):
    losses.get(name).check_outputs(activations.get("softmax"))


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
def test_labels_that_are_none_are_refused(labels, message):
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
        ([0, 1], 0.1, r"targets: expected shape \(Q, C\), .* got \(2,\); fnn.one_hot\(labels, C\) makes rows"),
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


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("cross_entrpy", ValueError, "unknown loss 'cross_entrpy'; did you mean 'cross_entropy'?"),
        ("cross_entropy(median)", ValueError, "cross_entropy: reduction must be 'mean' or 'sum', got 'median'"),
        ("cross_entropy(mean, 2)", ValueError, "too many positional arguments"),
        (None, TypeError, "loss: expected a name or a Loss, got NoneType"),
    ],
)
def test_what_is_not_a_loss_is_refused(given, error, message):
    with pytest.raises(error) as refusal:
        losses.get(given)
    assert message in str(refusal.value)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_choices_are_the_same_object(name):
    factory = getattr(losses, name)
    assert factory("sum") is factory("sum") is losses.get(f"{name}(sum)")
    assert factory("sum") is not factory("mean")
    assert losses.get(factory("sum")) is factory("sum")
    assert hash(factory("sum")) == hash(factory("sum"))


@pytest.mark.parametrize("name", LOSSES)
def test_equal_choices_are_the_same_object_however_they_are_given(name):
    factory = getattr(losses, name)
    default = factory().reduction
    assert factory() is factory(default) is factory(reduction=default) is losses.get(f"{name}(reduction={default})")


def test_a_new_loss_is_a_few_lines():
    @losses.register
    def quartic(reduction="mean"):
        return losses.Loss(
            "quartic", reduction, lambda a, t: jnp.sum((a - t) ** 4, axis=-1), lambda a, t: 4 * (a - t) ** 3
        )

    loss, a, t = losses.get("quartic(sum)"), net_inputs(0), net_inputs(1)
    assert "quartic" in losses.names() and quartic("sum") is loss
    chex.assert_trees_all_close(loss.gradient(a, t), jax.grad(loss.value)(a, t), rtol=8 * EPS)


def test_a_loss_whose_name_is_taken_is_refused():
    with pytest.raises(ValueError, match="loss 'hinge' is already registered"):

        @losses.register
        def hinge(reduction="mean"):
            raise AssertionError


def test_only_the_registered_activation_is_fused():
    """A function of one's own that is called softmax too keeps its own forward map and derivative."""
    loss, softmax = losses.cross_entropy(), activations.get("softmax")
    assert loss.fused_with(softmax) is loss.fused["softmax"]
    assert loss.fused_with(activations.get("sigmoid")) is None
    assert loss.fused_with(dataclasses.replace(softmax, pullback=lambda g, n, a, kept, theta: (g, {}))) is None


def test_labels_out_of_range_are_nan_where_they_cannot_be_refused():
    rows = jax.jit(lambda labels: losses.one_hot(labels, 3))(jnp.array([0, 3, -1]))
    assert rows[0].tolist() == [1, 0, 0] and jnp.isnan(rows[1:]).all()


# Second derivatives ---------------------------------------------------------------------------------------------------


def curvatures():
    """(name, curvature, value of one example, x, t) for every loss at its outputs and in its fused pairs."""
    for name in LOSSES:
        loss, a, t, _ = suited(name, "mean")
        yield name, loss.curvature, loss.example_value, a, t
        for output, pair in loss.fused.items():
            yield f"{name} over {output}", pair.curvature, pair.value, net_inputs(), t


CURVATURES = [pytest.param(*rest, id=name) for name, *rest in curvatures()]


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize(("curvature", "value", "x", "t"), CURVATURES)
def test_curvature_is_the_hessian_of_the_value(curvature, value, x, t):
    H = jax.vmap(jax.hessian(lambda x, t: value(x[None], t[None])[0]))(x, t)
    r = net_inputs(5)
    assert relative_error(curvature.product(r, x, t), jnp.einsum("qst,qt->qs", H, r)) <= 1e-12
    if curvature.root is not None:
        V = curvature.root(x, t)
        assert relative_error(jnp.einsum("qcs,qct->qst", V, V), H) <= 1e-12
        z = jnp.asarray(np.random.default_rng(6).standard_normal((len(V), 2, V.shape[1])))
        assert relative_error(curvature.combine(z, x, t), jnp.einsum("qkc,qcs->qks", z, V)) <= 1e-12
    if curvature.least_root is not None:
        V = curvature.least_root(x, t)
        assert relative_error(jnp.einsum("qcs,qct->qst", V, V), H) <= 1e-12
        assert V.shape[1] == np.linalg.matrix_rank(H[0]) == x.shape[1] - 1


@pytest.mark.parametrize("name", ["cross_entropy", "kullback_leibler"])
@pytest.mark.parametrize(
    "n",
    [
        [1e4, -1e4, 0, 5],
        [-1e4, 1e4, 0, 5],
        [0, 5, -1e4, 1e4],
        [0, 0, 0, 200],
        [200, 0, 0, 0],
        [0, 30, 0, -30],
        [-200, -200, 1, 0],
        [1, 0, -200, -200],
        [0, -200, -200, 1],
        [17, 0, 0, -9],
        [-9, 0, 1, 17],
        [-40, 40, 39, -41],
    ],
)
def test_the_least_root_of_softmax_is_exact_where_outputs_are_saturated(name, n):
    """Beside a (1 - a) in twice the digits, 1 - a summed from the others: also where a is 1 to the last digit."""
    t = np.asarray([[0.2, 0.5, 0.0, 0.3]])
    curvature = losses.get(name).fused["softmax"].curvature
    V = np.asarray(curvature.least_root(jnp.asarray([n], jnp.float32), jnp.asarray(t, jnp.float32)), np.float64)[0]
    a = np.exp(np.float64(n) - max(n))
    a /= a.sum()
    H = np.diag([p * np.delete(a, i).sum() for i, p in enumerate(a)]) - np.outer(a, a) * (1 - np.eye(4))
    # float32 has no numbers below 1e-38, and e^x as many digits less as x has before its point: 100 eps at 80
    size = np.sqrt(np.diag(H))
    error = np.abs(V.T @ V - H)
    assert (error <= 200 * np.finfo(np.float32).eps * size[:, None] * size[None, :] + 1e-36).all()


def test_every_loss_is_convex_in_something():
    for name in LOSSES:
        for output in ("linear", "sigmoid", "softmax"):
            of, curvature = losses.get(name).convex_in(activations.get(output))
            assert curvature.root is not None
            fused = losses.get(name).fused_with(activations.get(output))
            assert of == ("net_inputs" if fused and fused.curvature.root else "outputs")


@pytest.mark.parametrize(("name", "output"), FUSED)
def test_fused_curvature_is_finite_at_logits_of_ten_thousand(name, output):
    loss, _, t, _ = suited(name, "mean", jnp.float32)
    n = jnp.asarray([[1e4, -1e4, 0.0, 5.0]] * EXAMPLES, jnp.float32)
    curvature = loss.fused[output].curvature
    assert np.isfinite(np.asarray(curvature.product(jnp.ones_like(n), n, t))).all()
    if curvature.root is not None:
        assert np.isfinite(np.asarray(curvature.root(n, t))).all()
    if curvature.least_root is not None:
        assert np.isfinite(np.asarray(curvature.least_root(n, t))).all()


# Likelihoods ----------------------------------------------------------------------------------------------------------

LIKELIHOODS = {
    "mean_square_error": "Normal",
    "sum_square_error": "Normal",
    "half_sum_square_error": "Normal",
    "binary_cross_entropy": "Bernoulli",
    "logistic": "Bernoulli",
    "cross_entropy": "categorical",
    "kullback_leibler": "categorical",
}
EVENTS = {  # every target that one output, or three classes, may have
    "one-hot": np.eye(3),
    "non-negative": np.eye(3),
    "distribution": np.eye(3),
    "unit interval": np.array([[0.0], [1.0]]),
    "signs": np.array([[-1.0], [1.0]]),
}


def test_losses_say_which_likelihood_they_are_of():
    found = {name: losses.get(name).likelihood for name in LOSSES}
    assert {name: likelihood.name for name, likelihood in found.items() if likelihood} == LIKELIHOODS
    assert str(found["binary_cross_entropy"]) == (
        "<likelihood Bernoulli: each output the probability that its target is 1>"
    )


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_loss_is_minus_the_logarithm_but_for_what_no_output_moves(name):
    loss, a, t, _ = suited(name, "sum")
    other = suited_outputs(loss, seed=1)
    constant = [loss.example_value(x, t) + loss.likelihood.log(x, t) for x in (a, other)]
    assert constant[0].shape == (EXAMPLES,)
    np.testing.assert_allclose(constant[0], constant[1], rtol=1e-12, atol=1e-12)
    assert np.abs(loss.example_value(a, t) - loss.example_value(other, t)).min() > 1e-3


@pytest.mark.parametrize("name", [name for name, family in LIKELIHOODS.items() if family != "Normal"])
def test_probabilities_of_all_targets_sum_to_1(name):
    loss = losses.get(name)
    events = jnp.asarray(EVENTS[loss.targets])
    for a in suited_outputs(loss)[:, : events.shape[1]]:
        a = a / a.sum() if events.shape[1] > 1 else a
        logs = loss.likelihood.log(jnp.tile(a, (len(events), 1)), events)
        np.testing.assert_allclose(np.exp(logs).sum(), 1, rtol=8 * EPS)


@pytest.mark.parametrize("name", [name for name, family in LIKELIHOODS.items() if family == "Normal"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_density_over_all_targets_integrates_to_1(name, outputs):
    """By the rectangle rule, which is exact to rounding for a Normal whose tails lie inside."""
    line = np.linspace(-9, 9, 181)
    t = jnp.asarray(np.stack(np.meshgrid(*[line] * outputs), axis=-1).reshape(-1, outputs))
    a = jnp.broadcast_to(jnp.array([0.3, -0.7])[:outputs], t.shape)
    total = np.exp(losses.get(name).likelihood.log(a, t)).sum() * 0.1**outputs
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def _unexplained(name):
    """Is there k(t) with sum_t k(t) exp(-F_q(a, t)) = 1 for all a? How far from 1 the best k stays."""
    loss = losses.get(name)
    events, draw = EVENTS[loss.targets], np.random.default_rng(4)
    a = draw.dirichlet(np.ones(3), 40) if events.shape[1] > 1 else draw.uniform(0.05, 0.95, (40, 1))
    values = np.array([[REFERENCE_LOSSES[name](row, list(t)) for t in events] for row in a])
    k = np.linalg.lstsq(np.exp(-values), np.ones(40), rcond=None)[0]
    return np.abs(np.exp(-values) @ k - 1).max()


@pytest.mark.parametrize("name", [name for name in LOSSES if losses.get(name).targets in EVENTS])
def test_a_loss_of_classes_has_a_likelihood_where_there_is_one(name):
    assert (_unexplained(name) < 1e-12) == (losses.get(name).likelihood is not None)


@pytest.mark.oracle
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_is_scipys(name):
    from scipy import stats

    loss, a, t, _ = suited(name, "sum")
    if LIKELIHOODS[name] == "categorical":  # events, not shares
        t = fnn.one_hot(np.array([0, 3, 1, 2, 0]), OUTPUTS)
        a = activations.get("softmax").forward(net_inputs(), {})[0]
    if name == "binary_cross_entropy":
        t = jnp.round(t)
    scale = {"half_sum_square_error": 1, "sum_square_error": np.sqrt(1 / 2), "mean_square_error": np.sqrt(OUTPUTS / 2)}
    theirs = {
        "Normal": lambda a, t: stats.norm.logpdf(t, loc=a, scale=scale[name]).sum(axis=1),
        "categorical": lambda a, t: np.array(
            [stats.multinomial.logpmf(ti, 1, ai) for ai, ti in zip(a, t, strict=True)]
        ),
        "Bernoulli": lambda a, t: (
            stats.bernoulli.logpmf((t + 1) / 2, 1 / (1 + np.exp(-a)))
            if name == "logistic"
            else stats.bernoulli.logpmf(t, a)
        ).sum(axis=1),
    }[LIKELIHOODS[name]]
    np.testing.assert_allclose(loss.likelihood.log(a, t), theirs(np.asarray(a), np.asarray(t)), rtol=1e-12)


def test_counts_are_draws_in_their_order_and_shares_their_expectation():
    """(2, 1) is one of the sequences aab, aba, baa; shares (2/3, 1/3) are a third of its logarithm."""
    a, log = jnp.array([[0.7, 0.3]]), losses.cross_entropy().likelihood.log
    np.testing.assert_allclose(np.exp(log(a, jnp.array([[2.0, 1.0]]))), 0.7 * 0.7 * 0.3, rtol=8 * EPS)
    np.testing.assert_allclose(log(a, jnp.array([[2 / 3, 1 / 3]])), np.log(0.7 * 0.7 * 0.3) / 3, rtol=8 * EPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_keeps_the_dtype_and_an_output_of_zero_where_nothing_is_asked(name, dtype):
    loss, a, t, _ = suited(name, "sum", dtype)
    log = loss.likelihood.log(a, t)
    assert log.dtype == dtype and np.isfinite(np.asarray(log).astype(float)).all()
    if LIKELIHOODS[name] == "categorical":
        assert loss.likelihood.log(jnp.array([[0.0, 1.0]], dtype), jnp.array([[0.0, 1.0]], dtype)) == 0


def test_a_loss_of_ones_own_may_give_its_likelihood_or_none():
    def value(a, t):
        return jnp.sum(jnp.abs(a - t), axis=-1)

    laplace = losses.Likelihood(
        "Laplace", "each output the median of its target", lambda a, t: -value(a, t) - np.log(2)
    )
    silent = losses.Loss("absolute", "sum", value, lambda a, t: jnp.sign(a - t))
    said = dataclasses.replace(silent, likelihood=laplace)
    assert silent.likelihood is None and said.likelihood is laplace
    assert said.specification == silent.specification and hash(said) == hash(dataclasses.replace(said))
    assert said == dataclasses.replace(silent, likelihood=laplace) != silent


# Checks of large targets ----------------------------------------------------------------------------------------------


def test_large_targets_are_checked_in_little_memory():
    """What is wrong is found wherever it is, and only a block of numbers is looked at at once."""
    targets = np.zeros((300_000, 10), np.float32)
    targets[:, 3] = 1
    tracemalloc.start()
    losses.get("multiclass_hinge").check_targets(targets)
    checks.finite("targets", targets)
    checks.representable("targets", targets, jnp.float16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # of 12e6 bytes of data; in one piece it took 300e6
    targets[299_999, 9] = 2
    with pytest.raises(ValueError, match=r"rows with a single 1, the rest 0, got 0 at index \(299999, 0\)"):
        losses.get("multiclass_hinge").check_targets(targets)
    with pytest.raises(ValueError, match=r"targets: 70000.0 at index \(7, 7\) is too large for float16"):
        checks.representable("targets", np.where(np.arange(100).reshape(10, 10) == 77, 7e4, 0), np.dtype(np.float16))


# Positions ------------------------------------------------------------------------------------------------------------

PLACES = (2, 3)  # two axes of positions
MASK = DRAW.uniform(size=(EXAMPLES, *PLACES)) < 0.6
WEIGHINGS = {
    "none": None,
    "examples": DRAW.uniform(0.5, 2, EXAMPLES),
    "counts": np.array([1, 0, 2, 1, 3]),
    "positions": DRAW.uniform(0.5, 2, (EXAMPLES, *PLACES)),
    "mask": MASK,
    "an example masked": MASK & (np.arange(EXAMPLES) != 2)[:, None, None],
}


def shares(loss, weights):
    """dF/dF_qp (Q, T) of F = sum_q w_q F_q, over sum_q w_q for "mean", where w_q is the mean of w_qp over positions and
    F_q = sum_p w_qp F_qp / sum_p w_qp, times T for positions "sum".
    """
    count = math.prod(PLACES)
    weights = np.ones(EXAMPLES) if weights is None else weights.astype(float)
    each = weights.reshape(EXAMPLES, -1) * np.ones((1, count))
    of_example = each.mean(axis=1)
    found = np.zeros((EXAMPLES, count))
    for q in np.flatnonzero(of_example):
        found[q] = of_example[q] * each[q] / each[q].sum() * (count if loss.positions == "sum" else 1)
    return found / of_example.sum() if loss.reduction == "mean" else found


def at_places(loss, seed=0):
    """Outputs and targets (Q, *P, S) that suit the loss."""
    rows = EXAMPLES * math.prod(PLACES)
    n = jnp.asarray(2 * generator(jax.random.key(seed)).standard_normal((rows, OUTPUTS)))
    f = activations.get({"real": "linear", "unit interval": "sigmoid", "distribution": "softmax"}[loss.needs])
    both = f.forward(n, {})[0], targets_for(loss, jax.random.key(1), rows, OUTPUTS)
    return tuple(x.reshape(EXAMPLES, *PLACES, OUTPUTS) for x in both)


@pytest.mark.parametrize("weighing", WEIGHINGS)
@pytest.mark.parametrize("positions", REDUCTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["cross_entropy", "mean_square_error", "multiclass_hinge"])
def test_value_and_gradient_over_positions_are_the_definition(name, reduction, positions, weighing):
    loss = losses.get(f"{name}({reduction}, positions={positions})")
    assert loss is getattr(losses, name)(reduction, positions=positions)
    (a, t), weights = at_places(loss), WEIGHINGS[weighing]
    each = shares(loss, weights).ravel()
    rows = [np.asarray(x).reshape(-1, OUTPUTS) for x in (a, t)]
    found = np.array([REFERENCE_LOSSES[name](*pair) for pair in zip(*rows, strict=True)])
    given = None if weights is None else jnp.asarray(weights, jnp.float64)
    np.testing.assert_allclose(loss.value(a, t, given), each @ found, rtol=1e-13)
    expected = each[:, None] * np.asarray(loss.example_gradient(*map(jnp.asarray, rows)))
    np.testing.assert_allclose(loss.gradient(a, t, given), expected.reshape(a.shape), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("weighing", ["none", "positions"])
@pytest.mark.parametrize("positions", REDUCTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_loss_over_positions_is_a_loss_of_its_examples(reduction, positions, weighing):
    """sum_q w_q F_q over sum_q w_q, of the F_q that quantities of single examples are told."""
    loss = losses.mean_square_error(reduction, positions=positions)
    (a, t), weights = at_places(loss), WEIGHINGS[weighing]
    found = losses.at_positions(loss.example_value, a, t)
    weights = jnp.ones((EXAMPLES, *PLACES)) if weights is None else jnp.asarray(weights)
    of_examples = weights.mean(axis=(1, 2))
    each = loss.of_example(found, weights / of_examples[:, None, None])
    expected = jnp.sum(of_examples * each) / (jnp.sum(of_examples) if reduction == "mean" else 1)
    np.testing.assert_allclose(loss.value(a, t, weights), expected, rtol=1e-13)
    if weighing == "none":
        np.testing.assert_allclose(loss.of_example(found), each, rtol=1e-13)


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


def test_a_loss_says_its_positions_where_they_are_summed():
    loss = losses.get("cross_entropy(sum, positions=sum)")
    assert loss.specification == "cross_entropy(sum, positions=sum)" and losses.get(loss.specification) is loss
    assert losses.cross_entropy(positions="mean") is losses.cross_entropy() != losses.cross_entropy(positions="sum")
    assert losses.cross_entropy().specification == "cross_entropy(mean)"


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=lambda dtype: dtype.__name__)
def test_a_mean_over_many_positions_is_not_kept_in_sixteen_bits(dtype):
    a, t = jnp.ones((2, 4096, 1), dtype), jnp.zeros((2, 4096, 1), dtype)
    for weights in (None, jnp.ones((2, 4096), jnp.float32), jnp.ones(2, jnp.float32)):
        value = losses.mean_square_error().value(a, t, weights)
        assert value == 1 and value.dtype == dtype
        gradient = losses.mean_square_error("sum", positions="sum").gradient(a, t, weights)
        assert gradient.dtype == dtype and (gradient == 2).all()
