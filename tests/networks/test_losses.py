"""Every registered loss against its definition and other people's code; its gradient against autodiff of its value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, LOSSES, REFERENCE_LOSSES, reference_loss, relative_error, targets_for
from loss_cases import EPS, EXAMPLES, FUSED, MASKABLE, OUTPUTS, REDUCTIONS, net_inputs, suited

import functional_nn as fnn
from functional_nn import activations, losses

# Values ---------------------------------------------------------------------------------------------------------------


def test_every_loss_has_a_definition_to_be_held_against():
    required = """mean_square_error sum_square_error half_sum_square_error cross_entropy binary_cross_entropy hinge
        multiclass_hinge logistic kullback_leibler symmetric_kullback_leibler bhattacharyya""".split()
    assert set(required) <= set(LOSSES)
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


def test_these_pairs_are_fused():
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
def test_an_output_of_zero_with_target_zero_adds_nothing(name, a, t, expected):
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
