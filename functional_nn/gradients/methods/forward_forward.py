"""The forward-forward algorithm: two passes, of data and of what only looks like it, and no way back.

Hinton 2022 (arXiv 2212.13345). The network reads the class as an input of its own, "label": of the positive pass it is
the target, of the negative one another class, drawn anew at every update. Each hidden layer with weights is to have
much goodness G = mean a^2 in the first and little in the second, by a loss of its own,

    softplus(threshold - G(positive)) + softplus(G(negative) - threshold)         Eq. 1, as a logistic loss

whose gradient goes into the layer's own weights and no further. What it reads should not tell how good the layer before
it is, only in which direction: put an `rms_norm` without parameters of its own between two layers. The output layer
learns by its error from the activities of a third pass, whose label is neutral, 1 / classes everywhere (section 3.3);
it is what `network.apply` predicts of a neutral label, and what F is measured on.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn import checks
from functional_nn.gradients import draws, factors, rules
from functional_nn.gradients.backprop import Backpropagation, Request, Sweep, contract, pullback, start
from functional_nn.gradients.rules import Rule
from functional_nn.networks.network import Layer, Network, Trace, forward


@rules.register
def forward_forward(threshold: float = 1.0, label: str = "label") -> Rule:
    """Each hidden layer by its goodness on data and on wrong labels; see `methods.forward_forward`.

    label: the input that the class enters by, (C,), C the number of outputs; what is given there is not read in
    training, and is to be `neutral(Q, C)` where the network predicts. Raises ValueError for a threshold <= 0, and for a
    network without such an input or with outputs that are no classes.
    """
    threshold = checks.constant("forward_forward", "threshold", threshold, *checks.POSITIVE)

    def check(network: Network, layer: Layer) -> None:
        expected = network.shapes[network.output.name]
        if len(expected) > 1 or expected[0] < 2 or dict(network.inputs).get(label) != expected[0]:
            given = {name: network.shapes[name] for name, _ in network.inputs}
            raise ValueError(
                f"rule: forward_forward needs an input {label!r} of the classes, {expected} as the outputs, got {given}"
            )

    told = rules.number(threshold) + ("" if label == "label" else f", {label}")
    return Rule(f"forward_forward({told})", check=check, method=_method(threshold, label), random=True)


def neutral(examples: int, classes: int) -> Array:
    """The label that says nothing, (Q, C): 1 / C everywhere."""
    return jnp.full((examples, classes), 1 / classes)


def _method(threshold: Any, label: str) -> Callable[[Request], Backpropagation]:
    def method(request: Request) -> Backpropagation:
        network, params, classes = request.network, request.params, request.network.output.size
        told = jnp.argmax(request.targets, axis=-1)
        drawn = draws.bits(draws.inside(draws.of_key(request.key), "label"), told.shape) >> 1
        wrong = (told + 1 + (drawn % jnp.uint32(classes - 1)).astype(told.dtype)) % classes
        dtype = request.targets.dtype
        labels = {
            "positive": jax.nn.one_hot(told, classes, dtype=dtype),
            "negative": jax.nn.one_hot(wrong, classes, dtype=dtype),
            "neutral": jnp.full_like(request.targets, 1 / classes),
        }
        traces = {
            name: forward(network, params, request.inputs | {label: x}, {}, request.key) for name, x in labels.items()
        }
        found = {
            name: contract(network, params, trace, _swept(request, trace, sign, threshold))
            for (name, trace), sign in zip(traces.items(), (-1, 1, 0), strict=True)
        }
        gradients = jax.tree.map(lambda *each: sum(each[1:], start=each[0]), *found.values())
        trace = traces["neutral"]
        return request.result(trace, gradients)

    return method


def _swept(request: Request, trace: Trace, sign: int, threshold: Any) -> Sweep:
    """Each layer's s of its own goodness, of which the positive pass (sign -1) is to have more and the negative less;
    of the neutral one, 0, that of the output layer alone.
    """
    s, learned = {}, {}
    for layer in request.network.layers:
        name = layer.name
        if layer is request.network.output and sign == 0:
            s[name], learned[name] = start(
                request.network, request.loss, request.params, trace, request.targets, request.weights
            )
        elif layer is request.network.output or sign == 0 or not layer.weighted:
            s[name], learned[name] = jnp.zeros_like(trace.net_inputs[name]), {}
        else:
            a = trace.activations[name]
            size = math.prod(a.shape[1:])
            goodness = jnp.sum(a.reshape(len(a), -1) ** 2, axis=1) / size
            # d softplus(sign (G - threshold)) / dG
            slope = sign * jax.nn.sigmoid(sign * (goodness - jnp.asarray(threshold, a.dtype)))
            g = factors.over_rows(a * (2 / size), slope * request.share.astype(a.dtype))
            s[name], learned[name] = pullback(layer, request.params, trace, g)
    return Sweep(s, learned, {})
