"""A loss for every layer: a linear head on its outputs tells the targets, and its error goes no further back.

Nokland and Eidnes 2019 (arXiv 1901.06656), the prediction loss. Each hidden layer that has parameters has a head, its
outputs times V and a bias, under the network's own output function and loss; what comes back through V is its g. The
output layer learns by its own error, as always. The heads are learned with the rest, and only serve to teach.
"""

import jax.numpy as jnp

from functional_nn.gradients import draws, rules
from functional_nn.gradients.backprop import Backpropagation, Request, Sweep, contract, pullback, start
from functional_nn.gradients.rules import Rule
from functional_nn.networks.connections import Connection, dense, full
from functional_nn.networks.network import Layer, Network, Trace, forward, plus_bias


@rules.register
def local_loss() -> Rule:
    """Each layer by a loss of its own: nothing crosses a connection on the way back. See `methods.local_loss`.

    Raises ValueError for a layer whose signal has other positions than the outputs.
    """
    return Rule("local_loss", begin=_begin, check=_check, method=_method)


def _has_head(network: Network, layer: Layer) -> bool:
    parameters = layer.weighted or layer.bias != "none" or layer.activation.parameters
    return layer is not network.output and bool(parameters)


def _reader(network: Network, layer: Layer) -> Connection:
    """How the head reads: at each position where the outputs have the same ones, else the whole signal."""
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
            told = plus_bias(by.forward(a, own["head"]), {"bias": own["head_bias"]})
            # the output layer's start, of the head's net inputs in the place of its own
            shown, kept = output.activation.forward(told, {})
            at_head = Trace({output.name: told}, {output.name: shown}, {}, {} if kept is None else {output.name: kept})
            error, _ = start(network, loss, params, at_head, request.targets, request.weights)
            s[name], learned[name] = pullback(layer, params, trace, by.back(error, own["head"], a))
            over = tuple(range(error.ndim - 1))
            heads[name] = {"head": by.outer(error, a), "head_bias": jnp.sum(error, axis=over)}
        else:
            s[name], learned[name] = jnp.zeros_like(trace.net_inputs[name]), {}
    gradients = contract(network, params, trace, Sweep(s, learned, {}))
    for name, found in heads.items():
        gradients[name]["feedback"] = found
    return request.result(trace, gradients, s)
