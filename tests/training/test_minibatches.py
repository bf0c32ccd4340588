"""Plans of batches: every example once an epoch, the same batches for the same key, and the fixed orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_nn.training import BatchPlan, batch, importance, minibatch, stochastic

KEY = jax.random.key(3)
SHUFFLES = ("each_epoch", "once", "never")
PLANS = {
    "batch": batch(),
    "stochastic": stochastic(),
    "stochastic in order": stochastic(shuffle="never"),
    **{
        f"minibatch of {size}, {shuffle}": minibatch(size, shuffle=shuffle)
        for size in (1, 4, 10)
        for shuffle in SHUFFLES
    },
}


def counted(plan, indices, examples):
    """How often each example counts in an epoch: the weights, added up by example."""
    weights = plan.weights(examples)
    weights = np.ones(indices.shape) if weights is None else weights
    return np.bincount(np.ravel(indices), weights=np.ravel(weights), minlength=examples)


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("examples", [10, 11, 12, 13])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_example_counts_once_in_every_epoch(plan, examples):
    for epoch in range(3):
        indices = plan.indices(KEY, epoch, examples)
        size = plan.size or examples
        assert indices.dtype == jnp.int32
        assert indices.shape == (plan.updates(examples), size) == (-(-examples // size), size)
        np.testing.assert_array_equal(counted(plan, indices, examples), np.ones(examples))


@given(st.integers(1, 40), st.data())
def test_an_incomplete_last_batch_is_filled_with_weight_zero(examples, data):
    size = data.draw(st.integers(1, examples))
    plan = minibatch(size, shuffle="never")
    weights, updates = plan.weights(examples), plan.updates(examples)
    missing = updates * size - examples
    assert 0 <= missing < size
    if missing == 0:
        assert weights is None
    else:
        assert weights.shape == (updates, size) and weights.dtype == np.float32
        assert (weights[:-1] == 1).all()
        assert (weights[-1] == np.repeat([1, 0], [size - missing, missing])).all()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_batches_are_a_function_of_key_and_epoch(plan):
    first = plan.indices(KEY, 2, 11)
    np.testing.assert_array_equal(first, plan.indices(jax.random.key(3), 2, 11))
    compiled = jax.jit(lambda key, epoch: plan.indices(key, epoch, 11))(KEY, jnp.int32(2))
    np.testing.assert_array_equal(first, compiled)


@pytest.mark.parametrize("size", [1, 4])
def test_each_epoch_is_shuffled_again(size):
    plan = minibatch(size)
    epochs = [tuple(np.ravel(plan.indices(KEY, epoch, 50))) for epoch in range(4)]
    assert len(set(epochs)) == 4
    assert tuple(np.ravel(plan.indices(jax.random.key(4), 0, 50))) not in epochs


def test_once_keeps_the_batches_of_the_first_epoch():
    plan = minibatch(4, shuffle="once")
    first = plan.indices(KEY, 0, 50)
    for epoch in range(1, 4):
        np.testing.assert_array_equal(plan.indices(KEY, epoch, 50), first)
    assert (np.ravel(first)[:50] != np.arange(50)).any()
    assert (plan.indices(jax.random.key(4), 0, 50) != first).any()


@pytest.mark.parametrize("plan", [minibatch(4, shuffle="never"), batch(), stochastic(shuffle="never")])
def test_never_keeps_the_order_of_the_data(plan):
    for key in (KEY, jax.random.key(4)):
        np.testing.assert_array_equal(np.ravel(plan.indices(key, 1, 50))[:50], np.arange(50))


def test_every_example_reaches_every_position():
    """Over many epochs every example comes first, and on average in the middle."""
    order = np.stack([np.ravel(stochastic().indices(KEY, epoch, 6)) for epoch in range(300)])
    assert {int(i) for i in order[:, 0]} == set(range(6))
    # the mean of 300 places, each uniform on 0..5: deviation sqrt(35/12/300) = 0.1; six of them, five deviations
    np.testing.assert_allclose(order.argsort(axis=1).mean(axis=0), 2.5, atol=0.5)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("examples", [1, 2, 3, 5, 64, 65, 1437])
def test_orders_are_permutations_for_any_number_of_examples(examples):
    order = np.ravel(stochastic().indices(KEY, 0, examples))
    np.testing.assert_array_equal(np.sort(order), np.arange(examples))


def test_every_permutation_is_equally_likely():
    """4,800 orders of four examples over the 24 possible: chi-square with 23 degrees of freedom, at 1 in 100,000."""
    keys = jax.random.split(jax.random.key(11), 4800)
    orders = np.asarray(jax.vmap(lambda key: stochastic().indices(key, 0, 4)[:, 0])(keys))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and ((counts - 200) ** 2 / 200).sum() < 67.2


def test_equal_random_bits_leave_no_neighbours_in_order():
    """Equal random bits would leave small numbers first: of 300 orders, half have the smaller of two first."""
    keys = jax.random.split(KEY, 300)
    order = np.asarray(jax.vmap(lambda key: stochastic().indices(key, 0, 1437)[:, 0])(keys)).argsort(axis=1)
    share = (order[:, ::2][:, :718] < order[:, 1::2]).mean()  # 215,400 pairs: deviation 0.0011, five of them
    assert abs(share - 0.5) < 0.0055


def test_equal_plans_are_equal_values():
    assert minibatch(4) == minibatch(np.int64(4)) and hash(minibatch(4)) == hash(minibatch(4))
    assert minibatch(4) != minibatch(4, shuffle="once")
    assert stochastic() == minibatch(1)
    assert batch().updates(7) == 1 and batch().weights(7) is None


def test_an_incomplete_last_batch_may_be_dropped():
    plan = minibatch(4, last="dropped")
    assert plan.updates(11) == 2 and plan.weights(11) is None and plan.scales(11) is None
    epochs = [np.ravel(plan.indices(KEY, epoch, 11)) for epoch in range(8)]
    assert all(len(set(order)) == 8 for order in epochs)
    assert len({frozenset(order) for order in epochs}) > 1, "not the same examples every time"
    np.testing.assert_array_equal(epochs[0], np.ravel(minibatch(4).indices(KEY, 0, 11))[:8])


def test_a_weighted_last_batch_is_scaled_by_its_size():
    kept, weighted = minibatch(4), minibatch(4, last="weighted")
    np.testing.assert_array_equal(weighted.counts(11), [4, 4, 3])
    np.testing.assert_array_equal(weighted.scales(11), np.float32([1, 1, 0.75]))
    assert kept.scales(11) is None and weighted.scales(12) is None
    np.testing.assert_array_equal(kept.indices(KEY, 1, 11), weighted.indices(KEY, 1, 11))


@pytest.mark.parametrize("last", ["always", "", None])
def test_an_unknown_last_is_refused(last):
    with pytest.raises(ValueError, match=f"last must be 'kept', 'dropped' or 'weighted', got {last!r}"):
        minibatch(4, last=last)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None, "4"])
def test_a_size_that_is_not_a_positive_integer_is_refused(size):
    with pytest.raises(ValueError, match=f"batch size must be an integer >= 1, got {size!r}"):
        minibatch(size)


@pytest.mark.parametrize("shuffle", ["always", "", None, True])
def test_an_unknown_shuffle_is_refused(shuffle):
    message = f"shuffle must be 'each_epoch', 'once' or 'never', got {shuffle!r}"
    for build in (lambda: minibatch(4, shuffle=shuffle), lambda: stochastic(shuffle=shuffle)):
        with pytest.raises(ValueError, match=message):
            build()


def test_a_batch_larger_than_the_data_is_refused():
    for ask in (
        lambda: minibatch(8).updates(7),
        lambda: minibatch(8).indices(KEY, 0, 7),
        lambda: minibatch(8).weights(7),
    ):
        with pytest.raises(ValueError, match="batch size must be 1 to 7, the number of examples, got 8"):
            ask()
    assert minibatch(7).updates(7) == 1


# Drawn by norm --------------------------------------------------------------------------------------------------------

NORMS = jnp.array([0.0, 1.0, 2.0, 7.0])


def test_examples_are_drawn_by_norm_and_weighted_by_the_inverse_probability():
    plan = importance(500, uniform=0.2)
    probability = 0.8 * np.array([0, 0.1, 0.2, 0.7]) + 0.05
    drawn = jax.vmap(lambda epoch: plan.draw(KEY, epoch, jnp.tile(NORMS, 250)))(jnp.arange(20))
    which = np.asarray(drawn.indices).ravel()
    count = which.size
    assert count == 20 * 2 * 500 and which.max() < 1000
    share = np.bincount(which % 4, minlength=4) / count
    assert (np.abs(share - probability) < 5 * np.sqrt(probability * (1 - probability) / count)).all()
    np.testing.assert_allclose(drawn.weights, (1 / (4 * probability))[np.asarray(drawn.indices) % 4], rtol=1e-12)
    np.testing.assert_allclose(drawn.scales, np.asarray(drawn.weights).mean(axis=-1), rtol=1e-12)
    assert len({tuple(row) for row in np.asarray(drawn.indices).reshape(40, -1)}) == 40  # no two updates alike


def test_weighted_draws_are_unbiased_and_have_the_least_variance_for_the_norms():
    values = np.array([3.0, -1.0, 4.0, 7.0])
    probability = 0.9 * np.asarray(NORMS) / 10 + 0.1 / 4
    weights = 1 / (4 * probability)
    assert (probability * weights * values).sum() == pytest.approx(values.mean(), rel=1e-12)
    drawn = importance(4).draw(KEY, 0, NORMS)
    np.testing.assert_allclose(drawn.weights, weights[np.asarray(drawn.indices)], rtol=1e-12)
    by_norm = (probability * (weights * np.asarray(NORMS)) ** 2).sum()
    assert by_norm < (np.asarray(NORMS) ** 2).mean()


def test_all_examples_are_equally_likely_if_every_gradient_is_zero():
    drawn = importance(3).draw(KEY, 0, jnp.zeros(10))
    np.testing.assert_array_equal(drawn.weights, np.ones((4, 3)))


def test_importance_refuses_bad_arguments():
    for uniform in (0, -0.1, 1.1, float("nan"), "0.1"):
        with pytest.raises(ValueError, match=r"importance: uniform must be in \(0, 1\], got"):
            importance(4, uniform=uniform)
    with pytest.raises(ValueError, match="batch size must be an integer >= 1, got 0"):
        importance(0)
    with pytest.raises(ValueError, match="importance: batch size must be an integer >= 1, got None"):
        BatchPlan(None, importance=0.1)
    with pytest.raises(ValueError, match="batch size must be 1 to 4, the number of examples, got 5"):
        importance(5).draw(KEY, 0, NORMS)


# With replacement -----------------------------------------------------------------------------------------------------


def test_with_replacement_every_example_is_drawn_from_all():
    """Counts of an example in an epoch are binomial: their mean is 1 and their variance (U B) (1 / Q) (1 - 1 / Q)."""
    plan, examples, epochs = minibatch(4, replacement=True), 10, 2000
    indices = jax.vmap(lambda epoch: plan.indices(KEY, epoch, examples))(jnp.arange(epochs))
    assert indices.shape == (epochs, 3, 4) and indices.dtype == jnp.int32, "ceil(10 / 4) whole batches"
    assert plan.weights(examples) is None and plan.scales(examples) is None
    np.testing.assert_array_equal(plan.counts(examples), [4, 4, 4])
    counts = np.stack([np.bincount(row, minlength=examples) for row in np.asarray(indices).reshape(epochs, -1)])
    variance = 12 * 0.1 * 0.9
    assert np.abs(counts.mean(axis=0) - 1.2).max() < 5 * np.sqrt(variance / epochs)
    assert abs(counts.var() / variance - 1) < 5 * np.sqrt(2 / (epochs * examples))


def test_with_replacement_each_epoch_draws_again_and_reproducibly():
    plan = stochastic(replacement=True)
    first, again, other = (np.asarray(plan.indices(KEY, epoch, 20)) for epoch in (0, 0, 1))
    assert first.shape == (20, 1) and (first == again).all() and (first != other).any()
    assert plan != stochastic() and "replacement=True" in repr(plan)
    assert repr(minibatch(4)) == "BatchPlan(size=4, shuffle='each_epoch', last='kept', importance=None)", (
        "checkpoints of older versions hold this text"
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: minibatch(4, shuffle="once", replacement=True), "expected shuffle='each_epoch' and last='kept', got"),
        (lambda: minibatch(4, last="dropped", replacement=True), "expected shuffle='each_epoch' and last='kept', got"),
        (lambda: BatchPlan(None, replacement=True), "replacement: expected batches of a size"),
        (lambda: BatchPlan(4, importance=0.1, replacement=True), "replacement: expected batches of a size"),
        (lambda: minibatch(4, replacement=1), "minibatch: replacement must be True or False, got 1"),
        (lambda: minibatch(11, replacement=True).indices(KEY, 0, 10), "batch size must be 1 to 10"),
    ],
)
def test_arguments_that_conflict_with_replacement_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
