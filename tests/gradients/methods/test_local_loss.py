"""A loss for every layer, against `jax.grad` of all of them together, each with what it reads held fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import KEY, LOSS, MLP, NETWORKS, TINY, WEIGHTS, close, numbers
from signal_cases import signal_problem

import functional_nn as fnn
from functional_nn import rules
from functional_nn.networks.network import plus_bias, theta, weights_of


def initialized(network, seed=0):
    """(params with heads, whose biases are not at 0, inputs, targets)."""
    params, inputs, targets = numbers(network, seed)
    return with_heads(network, params), inputs, targets


def with_heads(network, params):
    params = jax.tree.map(np.asarray, rules.begin("local_loss", network, params, KEY))
    draw = np.random.default_rng(4)
    for own in params.values():
        if "feedback" in own:
            own["feedback"]["head_bias"] = draw.normal(size=own["feedback"]["head_bias"].shape)
    return params


def losses(network, params, inputs, targets, weights, whole):
    """The cross-entropy of the output and of every head, each of its layer alone; whole: of all that a layer gives in
    one vector, or position by position.
    """
    held = jax.lax.stop_gradient
    share = jnp.full(len(targets), 1 / len(targets)) if weights is None else weights / weights.sum()

    def of(n):
        by_position = jnp.sum(-targets * jax.nn.log_softmax(n, axis=-1), axis=-1)
        return jnp.sum(share * by_position.reshape(len(share), -1).mean(axis=1))

    a, found = dict(inputs), []
    for layer in network.layers:
        own = params[layer.name]
        terms = [by.forward(held(a[source]), weights_of(own, source, by)) for source, by in layer.reads]
        n = plus_bias(sum(terms[1:], start=terms[0]), own)
        a[layer.name], _ = layer.activation.forward(n, theta(layer, own, a))
        if layer is network.output:
            found.append(of(n))
        elif "feedback" in own:
            read = a[layer.name].reshape(len(targets), -1) if whole else a[layer.name]
            found.append(of(plus_bias(read @ own["feedback"]["head"].T, {"bias": own["feedback"]["head_bias"]})))
    return sum(found[1:], start=found[0]), found[-1]


def expected_of(network, params, inputs, targets, weights=None, whole=True):
    (_, value), gradient = jax.jit(
        jax.value_and_grad(lambda own: losses(network, own, inputs, targets, weights, whole), has_aux=True)
    )(params)
    return value, gradient


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_each_layer_learns_by_its_own_head_alone(network, weights):
    params, inputs, targets = initialized(network)
    heads = {layer for layer, own in params.items() if "feedback" in own}
    assert heads == {layer.name for layer in network.layers} - {network.output.name}
    found = fnn.value_and_grad(network, LOSS, rule="local_loss")(params, inputs, targets, weights)
    value, gradient = expected_of(network, params, inputs, targets, weights)
    np.testing.assert_allclose(found[0], value, rtol=1e-14)
    close(found[1], gradient)


SIGNALS = {
    "convolutions, the output a vector": fnn.graph(
        inputs={"x": (6, 2)},
        layers=[
            fnn.Layer("conv", 4, "tanh", (("x", "conv(3)"),)),
            fnn.Layer("pool", 4, "max_pool(2)", (("conv", "identity"),), bias="none"),
            fnn.Layer("norm", 4, "layer_norm", (("pool", "identity"),), bias="none"),
            fnn.Layer("output", 3, "softmax", (("norm", "full"),)),
        ],
    ),
    "outputs at each position": fnn.graph(
        inputs={"x": (5, 2)},
        layers=[
            fnn.Layer("conv", 4, "tanh", (("x", "conv(3)"),)),
            fnn.Layer("output", 3, "softmax", (("conv", "dense"),)),
        ],
    ),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_heads_read_the_whole_signal_or_each_position_as_the_outputs_are(name):
    network = SIGNALS[name]
    params, x, t = signal_problem(network, LOSS, examples=3)
    params, whole = with_heads(network, params), "vector" in name
    reads = {"conv": 24, "norm": 12} if whole else {"conv": 4}  # a pool has nothing to learn
    assert {layer: own["feedback"]["head"].shape for layer, own in params.items() if "feedback" in own} == {
        layer: (3, count) for layer, count in reads.items()
    }
    found = fnn.value_and_grad(network, LOSS, rule="local_loss")(params, x, t)
    value, gradient = expected_of(network, params, {"x": x}, jax.nn.one_hot(t, 3, dtype=np.float64), None, whole)
    np.testing.assert_allclose(found[0], value, rtol=1e-13)
    close(found[1], gradient, 1e-12)


def test_the_output_layer_learns_as_always_and_others_do_not_see_it():
    params, inputs, targets = initialized(MLP)
    step, exact = fnn.value_and_grad(MLP, LOSS, rule="local_loss"), fnn.value_and_grad(MLP, LOSS)
    found = step(params, inputs, targets)[1]
    close(found["layer3"], exact(params, inputs, targets)[1]["layer3"])
    params["layer3"]["weights"]["layer2"] = -params["layer3"]["weights"]["layer2"]
    again = step(params, inputs, targets)[1]
    for layer in ("layer1", "layer2"):
        close(again[layer], found[layer], 0)


def test_heads_begin_as_glorots_weights_and_without_bias():
    network = fnn.multilayer((3, 200, 40), ("tanh", "softmax"))
    own = rules.begin("local_loss", network, network.init(KEY), KEY)["layer1"]["feedback"]
    head, deviation = np.asarray(own["head"]), np.sqrt(2 / 240)
    assert head.shape == (40, 200) and (np.asarray(own["head_bias"]) == 0).all()
    assert np.abs(head).max() <= np.sqrt(3) * deviation
    assert abs((head**2).mean() / deviation**2 - 1) < 5 * np.sqrt(0.8 / head.size)


def test_dropout_is_the_forward_passes():
    network = fnn.multilayer((3, 6, 2), ("tanh", "softmax"), dropout=(0.5, 0))
    params, inputs, targets = initialized(network)
    found = fnn.backpropagate(network, LOSS, params, inputs, targets, None, KEY, rule="local_loss")
    mask, n = np.asarray(found.trace.dropped["layer1"].mask), np.asarray(found.trace.net_inputs["layer1"])
    own = params["layer1"]["feedback"]
    at_head = (np.tanh(n) * mask) @ own["head"].T + own["head_bias"]
    shown = np.exp(at_head) / np.exp(at_head).sum(axis=1, keepdims=True)
    error = (shown - targets) / len(targets)
    close(found.sensitivities["layer1"], (error @ own["head"]) * mask * (1 - np.tanh(n) ** 2))
    close(found.gradients["layer1"]["feedback"]["head"], error.T @ (np.tanh(n) * mask))


def test_what_it_has_no_meaning_for_is_refused():
    signal = fnn.graph(
        inputs={"x": (6, 2)},
        layers=[
            fnn.Layer("one", 3, "tanh", (("x", "conv(3)"),)),
            fnn.Layer("output", 2, "softmax", (("one", "conv(2, stride=2)"),)),
        ],
    )
    with pytest.raises(
        ValueError, match=r"rule: local_loss brings the output's error to 'one', but the output has pos"
    ):
        fnn.value_and_grad(signal, LOSS, rule="local_loss")
    learned = fnn.multilayer((3, 4, 2), ("tanh", "prelu"))
    with pytest.raises(ValueError, match="rule: local_loss gives every layer a head like the output, .* 'prelu"):
        fnn.value_and_grad(learned, "mean_square_error", rule="local_loss")
    with pytest.raises(ValueError, match=r"local_loss learns layer1/feedback, expected shapes .*head"):
        fnn.value_and_grad(TINY, LOSS, rule="local_loss")(*numbers(TINY))
