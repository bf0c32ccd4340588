"""Losses of outputs with positions, masked and weighted."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, REFERENCE_LOSSES, generator, targets_for
from loss_cases import EXAMPLES, OUTPUTS, REDUCTIONS

from functional_nn import activations, losses

DRAW = np.random.default_rng(0)
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
    """sum_q w_q F_q over sum_q w_q, with the F_q that per-example quantities use."""
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
