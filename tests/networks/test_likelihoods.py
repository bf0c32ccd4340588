"""Likelihoods of losses: normalized, and equal to the loss up to what does not depend on the outputs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, LOSSES, REFERENCE_LOSSES
from loss_cases import EPS, EXAMPLES, OUTPUTS, net_inputs, suited, suited_outputs

import functional_nn as fnn
from functional_nn import activations, losses

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
def test_likelihood_keeps_the_dtype_and_ignores_an_output_of_zero_with_target_zero(name, dtype):
    loss, a, t, _ = suited(name, "sum", dtype)
    log = loss.likelihood.log(a, t)
    assert log.dtype == dtype and np.isfinite(np.asarray(log).astype(float)).all()
    if LIKELIHOODS[name] == "categorical":
        assert loss.likelihood.log(jnp.array([[0.0, 1.0]], dtype), jnp.array([[0.0, 1.0]], dtype)) == 0


def test_a_custom_loss_may_have_a_likelihood():
    def value(a, t):
        return jnp.sum(jnp.abs(a - t), axis=-1)

    laplace = losses.Likelihood(
        "Laplace", "each output the median of its target", lambda a, t: -value(a, t) - np.log(2)
    )
    without = losses.Loss("absolute", "sum", value, lambda a, t: jnp.sign(a - t))
    with_likelihood = dataclasses.replace(without, likelihood=laplace)
    assert without.likelihood is None and with_likelihood.likelihood is laplace
    assert with_likelihood.specification == without.specification and hash(with_likelihood) == hash(
        dataclasses.replace(with_likelihood)
    )
    assert with_likelihood == dataclasses.replace(without, likelihood=laplace) != without
