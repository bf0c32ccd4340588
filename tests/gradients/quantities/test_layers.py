"""Statistics of layers: means, deviations, saturated and dead neurons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantity_cases import LOSS, NETWORK, each_sensitivity

import functional_nn as fnn
from functional_nn import quantities


def test_layer_statistics_are_their_definitions(data):
    found = quantities.layer_statistics(NETWORK, LOSS, *data, block=2)
    trace = NETWORK.forward(*data[:2])
    pair = LOSS.fused_with(NETWORK.output.activation)
    s = each_sensitivity(NETWORK, lambda trace: pair.value(trace.net_inputs["output"], data[2]), *data[:2])
    for name in (layer.name for layer in NETWORK.layers):
        a, own = np.asarray(trace.activations[name]), found[name]
        np.testing.assert_allclose([own.activation_mean, own.activation_deviation], [a.mean(), a.std()], rtol=1e-10)
        assert own.sensitivity == pytest.approx(np.sqrt((s[name] ** 2).mean()), rel=1e-10)
        assert own.ratio == pytest.approx(np.sqrt((s[name] ** 2).mean() / (s["output"] ** 2).mean()), rel=1e-10)


def test_saturated_and_dead_units_are_counted():
    network = fnn.multilayer((1, 4, 4, 2, 2), ("tanh", "relu", "maxout", "softmax"))
    params = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0)))
    params["layer1"]["bias"] = jnp.array([0.0, 5.0, -5.0, 1.0])  # two of four saturate
    params["layer2"]["bias"] = jnp.array([-1.0, 1.0, 1.0, 1.0])  # one of four never answers
    params["layer2"]["weights"]["layer1"] = params["layer2"]["weights"]["layer1"].at[1, 0].set(3.0)
    params["layer1"]["weights"]["input"] = jnp.array([[-1.0], [0.0], [0.0], [0.0]])
    params["layer4"]["bias"] = jnp.array([20.0, 0.0])
    x, t = jnp.array([[1.0], [-1.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])  # layer 2's second answers once
    found = quantities.layer_statistics(network, LOSS, params, x, t)
    assert [float(found[f"layer{m}"].dead) for m in (1, 2, 3, 4)] == [0, 0.25, 0, 0]
    assert [float(found[f"layer{m}"].saturated) for m in (1, 2, 3, 4)] == [0.5, 3 / 8, 0, 1]
    strict = quantities.layer_statistics(network, LOSS, params, x, t, saturation=0.5)
    assert strict["layer1"].saturated == 1  # 1 - tanh(1)^2 = 0.42 as well
