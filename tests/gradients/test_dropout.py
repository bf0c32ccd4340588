"""Dropout: its mask is in the trace, so the recursion through it is exact, and without a key there is none."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, problem, relative_error

import functional_nn as fnn

KEY = jax.random.key(7)
X = np.random.default_rng(0).standard_normal((12, 3))
T = np.eye(2)[(X[:, 0] > 0).astype(int)]


def fan_out(hidden, rates=(0.5, 0.25)):
    """`first` feeds two layers, of which the second drops neurons of its own."""
    return fnn.graph(
        inputs={"p": 3},
        layers=[
            fnn.Layer("first", 6, hidden, ("p",), dropout=rates[0]),
            fnn.Layer("second", 5, hidden, ("first", "p"), bias="shared", dropout=rates[1]),
            fnn.Layer("output", 2, "softmax", ("second", "first")),
        ],
    )


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("hidden", ["tanh", "relu", "prelu", "maxout(2)", "softmax"])
def test_manual_is_automatic_under_the_same_mask(hidden):
    network, loss = fan_out(hidden), fnn.losses.cross_entropy()
    params, inputs, targets = problem(network, "cross_entropy", examples=8)
    value, grads = fnn.value_and_grad(network, loss)(params, inputs, targets, None, KEY)
    expected_value, expected = jax.value_and_grad(fnn.objective(network, loss))(params, inputs, targets, None, KEY)
    assert float(value) == float(expected_value)
    assert relative_error(grads, expected) <= 1e-12
    without = fnn.value_and_grad(network, loss)(params, inputs, targets)[1]
    assert relative_error(grads, without) > 1e-2  # the mask is there


@pytest.mark.slow
def test_compare_proves_it_too():
    network = fan_out("tanh")
    params, inputs, targets = problem(network, "cross_entropy", examples=8)
    agreement = fnn.compare(network, "cross_entropy", params, inputs, targets, jit=False)
    assert agreement.verdict == "agree" and agreement.third_opinion.says == "both are right"

    def undropped(network, loss, *given, key):  # a recursion that forgets the mask on its way back
        result = fnn.backpropagate(network, loss, *given, key=key)
        trace = result.trace._replace(dropped={})
        swept = fnn.gradients.backprop.sweep(
            network, given[0], trace, fnn.gradients.backprop.start(network, loss, given[0], trace, given[2], None)
        )
        return result._replace(sensitivities=swept.sensitivities)

    wrong = fnn.compare(network, fnn.losses.cross_entropy(), params, inputs, targets, manual=undropped, jit=False)
    assert wrong.verdict == "differ" and wrong.where.startswith("second")


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_the_mask_is_the_traces(dtype):
    network = fan_out("tanh")
    trace = network.forward(network.init(KEY, dtype), X, key=KEY)
    assert set(trace.dropped) == {"first", "second"}
    for (mask, before), rate in ((trace.dropped["first"], 0.5), (trace.dropped["second"], 0.25)):
        assert mask.dtype == before.dtype == dtype
        assert set(np.unique(np.asarray(mask, np.float64))) == {0.0, float(jnp.asarray(1 / (1 - rate), dtype))}
    mask, before = trace.dropped["first"]
    chex.assert_trees_all_equal(trace.activations["first"], before * mask)


def test_a_rate_is_the_share_that_is_dropped_and_the_mean_stays():
    network = fnn.multilayer((3, 400, 2), ("sigmoid", "softmax"), dropout=0.3)
    mask, _ = network.forward(network.init(KEY), np.tile(X, (10, 1)), key=KEY).dropped["layer1"]
    # 48,000 draws: deviations of the share 0.0021 and of the mean 0.0030; five of each
    assert abs(float((mask == 0).mean()) - 0.3) < 0.0105 and abs(float(mask.mean()) - 1) < 0.015


def test_without_a_key_nothing_is_dropped():
    dropping, plain = fan_out("tanh"), fan_out("tanh", (0.0, 0.0))
    params = dropping.init(KEY)
    chex.assert_trees_all_equal(dropping.apply(params, X), plain.apply(params, X))
    assert dropping.drops and not plain.drops
    assert plain.forward(params, X, key=KEY).dropped == {}


def test_layers_examples_and_keys_are_dropped_independently():
    network = fnn.multilayer((3, 40, 40, 2), ("tanh", "tanh", "softmax"), dropout=0.5)
    params = network.init(KEY)
    one, other = (network.forward(params, X, key=jax.random.key(seed)).dropped for seed in (1, 2))
    assert (one["layer1"].mask != one["layer2"].mask).any() and (one["layer1"].mask != other["layer1"].mask).any()
    assert (one["layer1"].mask[0] != one["layer1"].mask[1]).any()


def run(network, **changes):
    settings = {"key": KEY, "epochs": 4, "plan": fnn.training.minibatch(4)} | changes
    return fnn.fit(network, "cross_entropy", "momentum(0.1)", X, T, **settings)


@pytest.mark.slow
def test_fit_drops_other_neurons_at_every_update_and_never_in_validation():
    network = fnn.multilayer((3, 20, 2), ("tanh", "softmax"), dropout=0.5)
    result = run(network, validation=(X, T))
    value, _ = fnn.training.evaluate(network, fnn.losses.cross_entropy(), result.params, X, T)
    assert result.history.validation_loss[-1] == pytest.approx(float(value), rel=1e-12)
    automatic = run(network, gradient="automatic", validation=(X, T))
    chex.assert_trees_all_close(result.params, automatic.params, rtol=1e-9, atol=1e-12)
    # nothing is learned at rate 0: equal batches whose loss differs have met different masks
    without = run(network, epochs=6, plan=fnn.training.batch(), params=network.init(KEY))
    frozen = fnn.fit(network, "cross_entropy", "gd(0)", X, T, key=KEY, epochs=6, plan=fnn.training.batch())
    assert len(set(frozen.history.training_loss)) == 6 and len(set(without.history.training_loss)) == 6


def test_chunks_do_not_change_a_bit_of_it():
    network = fnn.multilayer((3, 5, 2), ("tanh", "softmax"), dropout=0.5)
    chex.assert_trees_all_equal(run(network, chunk=1).state, run(network, chunk=3).state)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan"), "half"])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match=r"layer 'h': dropout must be in \[0, 1\), got"):
        fnn.Layer("h", 3, dropout=rate)


def test_an_output_that_drops_is_refused():
    with pytest.raises(ValueError, match="layer 'layer1': the output cannot drop neurons"):
        fnn.multilayer((3, 2), ("softmax",), dropout=[0.5])
    with pytest.raises(ValueError, match="dropout: expected 2, one for each layer, got 1"):
        fnn.multilayer((3, 4, 2), ("tanh", "softmax"), dropout=[0.5])
