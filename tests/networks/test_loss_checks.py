"""What losses accept and refuse: targets, outputs and names; which answers are correct."""

import dataclasses
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOSSES, targets_for
from loss_cases import EPS, EXAMPLES, OUTPUTS, net_inputs

from functional_nn import activations, checks, losses

# Answers, targets and outputs -----------------------------------------------------------------------------------------


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
def test_valid_targets_are_accepted(name):
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
def test_invalid_targets_are_refused(name, targets, message):
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


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("cross_entrpy", ValueError, "unknown loss 'cross_entrpy'; did you mean 'cross_entropy'?"),
        ("cross_entropy(median)", ValueError, "cross_entropy: reduction must be 'mean' or 'sum', got 'median'"),
        ("cross_entropy(mean, 2)", ValueError, "too many positional arguments"),
        (None, TypeError, "loss: expected a name or a Loss, got NoneType"),
    ],
)
def test_other_things_than_losses_are_refused(given, error, message):
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
