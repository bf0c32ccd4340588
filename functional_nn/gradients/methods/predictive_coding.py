"""Predictive coding: activities settle between what is predicted from below and what the loss asks, then weights learn.

Letters: x^m the activity of a layer (Q, *P, S), mu^m = f(sum W x^j + b) what its sources predict, e^m = x^m - mu^m.
Whittington and Bogacz 2017 (Neural Computation 29, 1229), on any graph:

    energy        E = F(mu^M) + precision / 2 sum over the hidden layers of |e^m|^2     of each example
    inference     x^m <- x^m - rate / precision dE/dx^m,  `steps` times, from x^m = mu^m
                  dE/dx^m = precision e^m + what the layers that read m send back of dE/dn
    learning      dE/dW at the x that were found

With -precision e^m in the place of g^m, both are the recursion of `backprop` with x in the place of the activations:
where inference has come to rest that is what is sent back, so that a stiff network (precision to infinity), whose x
stay at mu, learns by the exact gradient (Millidge et al. 2020, arXiv 2006.04182, by another limit). The output's
activity is not free: F stands in the place of its error. Hidden layers with dropout drop what they drop throughout.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks
from functional_nn.gradients import factors, rules
from functional_nn.gradients.backprop import (
    Backpropagation,
    Request,
    Sweep,
    contract,
    pullback,
    recursion,
    start,
)
from functional_nn.gradients.rules import Rule
from functional_nn.networks.connections import Connection
from functional_nn.networks.network import Dropped, Layer, Trace, dtype_of, forward, plus_bias, theta, weights_of


@rules.register
def predictive_coding(steps: int = 20, rate: float = 0.1, precision: float = 1.0) -> Rule:
    """Gradients of the energy at the activities that `steps` of inference find; see `methods.predictive_coding`.

    precision: of the predictions, against the loss; the larger, the nearer to the exact gradient. rate: of inference,
    in units of 1 / precision: below 2 over the largest eigenvalue of 1 + (the weights' products), it settles. Raises
    ValueError for steps < 1, and for a rate or a precision <= 0.
    """
    steps = checks.integer("predictive_coding", "steps", steps, 1)
    rate = checks.constant("predictive_coding", "rate", rate, *checks.POSITIVE)
    precision = checks.constant("predictive_coding", "precision", precision, *checks.POSITIVE)
    given = map(rules.number, (steps, rate, precision))
    return Rule(f"predictive_coding({', '.join(given)})", method=_method(steps, rate, precision))


def _method(steps: int, rate: Any, precision: Any) -> Callable[[Request], Backpropagation]:
    def method(request: Request) -> Backpropagation:
        network, params, output = request.network, request.params, request.network.output
        first = forward(network, params, request.inputs, {}, request.key)
        stiffness, step = (jnp.asarray(value, dtype_of(params)) for value in (precision, rate))
        each = dataclasses.replace(request.loss, reduction="sum")  # of an example its own F_q

        def differentiated(x: dict[str, Array]) -> tuple[Trace, dict[str, Array], Sweep]:
            """What x predicts, the errors e^m, and dE/dn^m with what of it is sent back."""
            trace = _predicted(request, first, x)
            errors = {name: own - trace.activations[name] for name, own in x.items()}
            started = start(network, each, params, trace, request.targets, request.positions)

            def pull(layer: Layer, g: Array | None):
                return started if layer is output else pullback(layer, params, trace, -stiffness * errors[layer.name])

            def carry(layer: Layer, source: str, by: Connection, s: Array) -> Array:
                return by.back(s, weights_of(params[layer.name], source, by), trace.activations[source])

            return trace, errors, recursion(network, pull, carry, lambda source: source in params)

        def settle(x, _):
            _, errors, sent = differentiated(x)
            return {
                name: own - step * (errors[name] + sent.output_gradients[name] / stiffness) for name, own in x.items()
            }, None

        x = {layer.name: first.activations[layer.name] for layer in network.layers if layer is not output}
        x, _ = lax.scan(settle, x, None, length=steps)
        trace, _, found = differentiated(x)
        s = {name: factors.over_rows(own, request.share) for name, own in found.sensitivities.items()}
        learned = factors.each(lambda f: factors.scaled(f, request.share), found.learned)
        read = trace._replace(activations=trace.activations | x)
        gradients = contract(network, params, read, Sweep(s, learned, {}))
        return request.result(first, gradients, s)

    return method


def _predicted(request: Request, first: Trace, x: dict[str, Array]) -> Trace:
    """What the layers predict of what they read, x in the place of hidden layers' outputs; what was dropped stays."""
    read = dict(request.inputs) | x
    net_inputs, outputs, dropped, kept = {}, dict(request.inputs), {}, {}
    for layer in request.network.layers:
        name, own = layer.name, request.params[layer.name]
        terms = [by.forward(read[source], weights_of(own, source, by)) for source, by in layer.reads]
        net_inputs[name] = plus_bias(sum(terms[1:], start=terms[0]), own)
        a, keeps = layer.activation.forward(net_inputs[name], theta(layer, own, read))
        if keeps is not None:
            kept[name] = keeps
        if name in first.dropped:
            dropped[name] = Dropped(first.dropped[name].mask, a)
            a = a * dropped[name].mask
        outputs[name] = a
    return Trace(net_inputs, outputs, dropped, kept)
