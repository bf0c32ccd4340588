r"""The forward-forward algorithm: two forward passes, one of data and one of wrong labels, and no way back.

Hinton 2022 (arXiv 2212.13345). The network reads the class as an input of its own, "label". In the positive pass it is
the target, in the negative one another class, drawn again at every update. Each hidden layer with weights should have
much goodness, the mean of :math:`a^2`, in the first and little in the second. Its own loss is, with G the goodness and
:math:`\theta` the threshold (Eq. 1, as a logistic loss)

.. math:: \mathrm{softplus}(\theta - G_{\mathrm{positive}}) + \mathrm{softplus}(G_{\mathrm{negative}} - \theta)

and its gradient goes into the layer's own weights and no further. What the layer reads should not show how good the
layer before it is, only in which direction: put an `rms_norm` without parameters between two layers. The output layer
learns by its error from the activities of a third pass, whose label is neutral, 1 / classes everywhere (section 3.3).
That is what `network.apply` predicts from a neutral label, and what F is measured on.
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

__all__ = ["forward_forward", "neutral"]


@rules.register
def forward_forward(threshold: float = 1.0, label: str = "label") -> Rule:
    """Returns the forward-forward rule: each hidden layer learns from its goodness on data and on wrong labels.

    Args:
        threshold: Goodness that separates the two, > 0.
        label: Name of the input that the class enters by, (C,), with C the number of outputs. Training does not read
            what is given there; where the network predicts it must be `neutral(Q, C)`.

    Returns:
        The rule. It draws at every update.

    Raises:
        ValueError: For a threshold <= 0, and for a network without such an input or whose outputs are no classes.

    References:
        Hinton 2022 (arXiv 2212.13345).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> layers = [fnn.Layer("hidden", 4, "relu", ("x", "label")), fnn.Layer("output", 2, "softmax", ("hidden",))]
        >>> network = fnn.graph(inputs={"x": 3, "label": 2}, layers=layers)
        >>> inputs = {"x": jnp.ones((5, 3)), "label": fnn.methods.forward_forward.neutral(5, 2)}
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="forward_forward")
        >>> found = step(network.init(jax.random.key(0)), inputs, jnp.arange(5) % 2, None, jax.random.key(1))
        >>> found[1]["hidden"]["bias"].shape
        (4,)
    """
    threshold = checks.constant("forward_forward", "threshold", threshold, *checks.POSITIVE)

    def check(network: Network, layer: Layer) -> None:
        expected = network.shapes[network.output.name]
        if len(expected) > 1 or expected[0] < 2 or dict(network.inputs).get(label) != expected[0]:
            given = {name: network.shapes[name] for name, _ in network.inputs}
            raise ValueError(
                f"rule: forward_forward needs an input {label!r} of the classes, {expected} as the outputs, got {given}"
            )

    arguments = rules.number(threshold) + ("" if label == "label" else f", {label}")
    return Rule(f"forward_forward({arguments})", check=check, method=_method(threshold, label), random=True)


def neutral(examples: int, classes: int) -> Array:
    """Returns the label without information: 1 / C everywhere.

    Args:
        examples: Q.
        classes: C.

    Returns:
        (Q, C).

    Example:
        >>> import functional_nn as fnn
        >>> fnn.methods.forward_forward.neutral(1, 4).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    return jnp.full((examples, classes), 1 / classes)


def _method(threshold: Any, label: str) -> Callable[[Request], Backpropagation]:
    def method(request: Request) -> Backpropagation:
        network, params, classes = request.network, request.params, request.network.output.size
        true = jnp.argmax(request.targets, axis=-1)
        drawn = draws.bits(draws.inside(draws.of_key(request.key), "label"), true.shape) >> 1
        wrong = (true + 1 + (drawn % jnp.uint32(classes - 1)).astype(true.dtype)) % classes
        dtype = request.targets.dtype
        labels = {
            "positive": jax.nn.one_hot(true, classes, dtype=dtype),
            "negative": jax.nn.one_hot(wrong, classes, dtype=dtype),
            "neutral": jnp.full_like(request.targets, 1 / classes),
        }
        traces = {
            name: forward(network, params, request.inputs | {label: x}, {}, request.key) for name, x in labels.items()
        }
        by_pass = {
            name: contract(network, params, trace, _swept(request, trace, sign, threshold))
            for (name, trace), sign in zip(traces.items(), (-1, 1, 0), strict=True)
        }
        gradients = jax.tree.map(lambda *each: sum(each[1:], start=each[0]), *by_pass.values())
        trace = traces["neutral"]
        return request.result(trace, gradients)

    return method


def _swept(request: Request, trace: Trace, sign: int, threshold: Any) -> Sweep:
    """Returns each layer's s from its own goodness: the positive pass (sign -1) should have more, the negative less.

    For the neutral pass (0) it is that of the output layer alone.
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
