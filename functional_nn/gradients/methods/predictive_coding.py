r"""Predictive coding: activities settle between prediction and loss, then weights learn.

Letters: :math:`x^m` the activity of a layer `(Q, *P, S)`, :math:`\mu^m = f(\sum W x^j + b)` the prediction of its
sources, :math:`e^m = x^m - \mu^m`, :math:`\pi` the precision, :math:`\rho` the rate of inference. Whittington and
Bogacz 2017 (Neural Computation 29, 1229), on any graph.

Energy of each example, with the sum over the hidden layers:

.. math:: E = F(\mu^M) + \frac{\pi}{2} \sum_m \lVert e^m \rVert^2

Inference, `steps` times, from :math:`x^m = \mu^m`:

.. math:: \begin{aligned}
   x^m &\leftarrow x^m - \frac{\rho}{\pi} \frac{\partial E}{\partial x^m} \\
   \frac{\partial E}{\partial x^m} &= \pi e^m + \mathrm{what\ the\ layers\ that\ read\ } m \mathrm{\ send\ back}
   \end{aligned}

Learning: :math:`\partial E / \partial W` at the x that inference reached.

With :math:`-\pi e^m` instead of :math:`g^m`, both are the recursion of `backprop` with x instead of the activations:
where inference has come to rest, that is what is sent back. So a stiff network (:math:`\pi \to \infty`), whose x stay
at :math:`\mu`, learns by the exact gradient (Millidge et al. 2020, arXiv 2006.04182, by another limit). The output's
activity is not free: F replaces its error. Dropout drops the same neurons throughout.
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

__all__ = ["predictive_coding"]


@rules.register
def predictive_coding(steps: int = 20, rate: float = 0.1, precision: float = 1.0) -> Rule:
    """Returns the rule of predictive coding: gradients of the energy at the activities that inference reaches.

    `help(fnn.methods.predictive_coding)` has the equations.

    Args:
        steps: Number of steps of inference, >= 1.
        rate: Rate of inference, > 0, in units of 1 / precision. It settles below 2 over the largest eigenvalue of 1 +
            (the weights' products).
        precision: Precision of the predictions, > 0, against the loss; the larger, the nearer to the exact gradient.

    Returns:
        The rule.

    Raises:
        ValueError: For steps < 1, and for a rate or a precision <= 0.

    References:
        Whittington and Bogacz 2017 (Neural Computation 29, 1229).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="predictive_coding(2)")
        >>> step(params, x, t)[1]["layer1"]["bias"].shape
        (4,)
    """
    steps = checks.integer("predictive_coding", "steps", steps, 1)
    rate = checks.constant("predictive_coding", "rate", rate, *checks.POSITIVE)
    precision = checks.constant("predictive_coding", "precision", precision, *checks.POSITIVE)
    constants = map(rules.number, (steps, rate, precision))
    return Rule(f"predictive_coding({', '.join(constants)})", method=_method(steps, rate, precision))


def _method(steps: int, rate: Any, precision: Any) -> Callable[[Request], Backpropagation]:
    def method(request: Request) -> Backpropagation:
        network, params, output = request.network, request.params, request.network.output
        first = forward(network, params, request.inputs, {}, request.key)
        stiffness, step = (jnp.asarray(value, dtype_of(params)) for value in (precision, rate))
        each = dataclasses.replace(request.loss, reduction="sum")  # F_q of each example

        def differentiated(x: dict[str, Array]) -> tuple[Trace, dict[str, Array], Sweep]:
            """Returns the predictions from x, the errors e^m, and dE/dn^m with what of it is sent back."""
            trace = _predicted(request, first, x)
            errors = {name: own - trace.activations[name] for name, own in x.items()}
            started = start(network, each, params, trace, request.targets, request.positions)

            def pull(layer: Layer, g: Array | None):
                return started if layer is output else pullback(layer, params, trace, -stiffness * errors[layer.name])

            def carry(layer: Layer, source: str, by: Connection, s: Array) -> Array:
                return by.back(s, weights_of(params[layer.name], source, by), trace.activations[source])

            return trace, errors, recursion(network, pull, carry, lambda source: source in params)

        def infer(x, _):
            _, errors, sent = differentiated(x)
            return {
                name: own - step * (errors[name] + sent.output_gradients[name] / stiffness) for name, own in x.items()
            }, None

        x = {layer.name: first.activations[layer.name] for layer in network.layers if layer is not output}
        x, _ = lax.scan(infer, x, None, length=steps)
        trace, _, swept = differentiated(x)
        s = {name: factors.over_rows(own, request.share) for name, own in swept.sensitivities.items()}
        learned = factors.each(lambda f: factors.scaled(f, request.share), swept.learned)
        read = trace._replace(activations=trace.activations | x)
        gradients = contract(network, params, read, Sweep(s, learned, {}))
        return request.result(first, gradients, s)

    return method


def _predicted(request: Request, first: Trace, x: dict[str, Array]) -> Trace:
    """Returns the layers' predictions, with x instead of hidden outputs; what was dropped stays dropped."""
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
