"""A loss for every layer: a linear head on its outputs predicts the targets, and its error goes no further back.

Nokland and Eidnes 2019 (arXiv 1901.06656), the prediction loss. Each hidden layer that has parameters has a head: its
outputs times V and a bias, under the network's own output function and loss. What comes back through V is the layer's
g. The output layer learns from its own error, as always. The heads are trained with the rest, and serve training only.
"""

import jax.numpy as jnp

from functional_nn.gradients import draws, rules
from functional_nn.gradients.backprop import Backpropagation, Request, Sweep, contract, pullback, start
from functional_nn.gradients.rules import Rule
from functional_nn.networks.connections import Connection, dense, full
from functional_nn.networks.network import Layer, Network, Trace, forward, plus_bias

__all__ = ["local_loss"]


@rules.register
def local_loss() -> Rule:
    """Returns the rule of local losses: each layer learns from its own loss, and sends nothing back.

    Returns:
        The rule. It learns the heads, which `rules.begin` adds to the parameters. A layer whose signal has other
        positions than the outputs raises ValueError.

    References:
        Nokland and Eidnes 2019 (arXiv 1901.06656), the prediction loss.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params = fnn.rules.begin("local_loss", network, network.init(jax.random.key(0)), jax.random.key(1))
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="local_loss")
        >>> sorted(step(params, jnp.ones((5, 3)), jnp.arange(5) % 2)[1]["layer1"]["feedback"])
        ['head', 'head_bias']
    """
    return Rule("local_loss", begin=_begin, check=_check, method=_method)


def _has_head(network: Network, layer: Layer) -> bool:
    parameters = layer.weighted or layer.bias != "none" or layer.activation.parameters
    return layer is not network.output and bool(parameters)


def _reader(network: Network, layer: Layer) -> Connection:
    """Returns how the head reads: at each position if the outputs have the same ones, else the whole signal."""
    whole = rules.places_of(network, layer.name, "local_loss") == "whole"
    return full if whole and len(network.shapes[layer.name]) > 1 else dense


def _check(network: Network, layer: Layer) -> None:
    if _has_head(network, layer):
        _reader(network, layer)
    if network.output.activation.parameters:
        raise ValueError(
            "rule: local_loss gives every layer a head like the output, whose activation "
            f"{network.output.activation.name!r} has learned parameters; use one without"
        )


def _begin(network: Network, layer: Layer, stream: draws.Stream, dtype) -> dict:
    if not _has_head(network, layer):
        return {}
    rows = network.output.rows
    _, shape = _reader(network, layer).shapes(network.shapes[layer.name], rows)
    head = rules.drawn(stream, shape, rules.glorot(*shape), dtype)
    return {"head": head, "head_bias": jnp.zeros(rows, dtype)}


def _method(request: Request) -> Backpropagation:
    network, loss, params = request.network, request.loss, request.params
    trace, output = forward(network, params, request.inputs, {}, request.key), network.output
    s, learned, heads = {}, {}, {}
    for layer in network.layers:
        name = layer.name
        if layer is output:
            s[name], learned[name] = start(network, loss, params, trace, request.targets, request.weights)
        elif _has_head(network, layer):
            own, by, a = params[name]["feedback"], _reader(network, layer), trace.activations[name]
            n = plus_bias(by.forward(a, own["head"]), {"bias": own["head_bias"]})
            # the output layer's start, from the head's net inputs instead of its own
            predicted, kept = output.activation.forward(n, {})
            at_head = Trace({output.name: n}, {output.name: predicted}, {}, {} if kept is None else {output.name: kept})
            error, _ = start(network, loss, params, at_head, request.targets, request.weights)
            s[name], learned[name] = pullback(layer, params, trace, by.back(error, own["head"], a))
            over = tuple(range(error.ndim - 1))
            heads[name] = {"head": by.outer(error, a), "head_bias": jnp.sum(error, axis=over)}
        else:
            s[name], learned[name] = jnp.zeros_like(trace.net_inputs[name]), {}
    gradients = contract(network, params, trace, Sweep(s, learned, {}))
    for name, head in heads.items():
        gradients[name]["feedback"] = head
    return request.result(trace, gradients, s)
