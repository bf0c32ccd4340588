r"""Difference target propagation: layers get targets instead of errors, through inverses that are learned.

Lee, Zhang, Fischer and Bengio 2015 (arXiv 1412.7525), for a chain of layers with outputs :math:`a^1, \ldots, a^M`, with
:math:`\rho` the rate and :math:`h^m(a) = f(V a + c)`, f that of layer m - 1.

First target (Eq. 8):

.. math:: t^{M-1} = a^{M-1} - \rho \frac{\partial F_q}{\partial a^{M-1}}

Further down (Eq. 15):

.. math:: t^{m-1} = a^{m-1} + h^m(t^m) - h^m(a^m)

A layer's loss, with its target held fixed (Alg. 1):

.. math:: \frac{1}{2 \rho} \lVert a^m - t^m \rVert^2

An inverse's loss for each example, with noise :math:`\epsilon` (Eq. 16):

.. math:: \frac12 \lVert h^m(f^m(a^{m-1} + \epsilon)) - (a^{m-1} + \epsilon) \rVert^2

Divided by the rate, the layer below the output learns by the exact gradient of F, and a deep linear network with exact
inverses by a step closer to Gauss-Newton's. The output layer learns by its own error. V and c are trained with the
rest.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from functional_nn import checks
from functional_nn.gradients import draws, factors, rules
from functional_nn.gradients.backprop import Backpropagation, Request, Sweep, contract, pullback, start
from functional_nn.gradients.rules import Rule
from functional_nn.networks import losses
from functional_nn.networks.connections import dense
from functional_nn.networks.network import Layer, Network, forward, plus_bias

__all__ = ["target_propagation"]


@rules.register
def target_propagation(rate: float = 0.1, noise: float = 0.1) -> Rule:
    """Returns the rule of difference target propagation, for chains of dense layers.

    Its gradients are those of each layer's distance to its target, and of each inverse's reconstruction error.
    `help(fnn.methods.target_propagation)` has the equations.

    Args:
        rate: Rate of the step that makes the first target, > 0.
        noise: Deviation of the noise that inverses learn with, >= 0.

    Returns:
        The rule. It learns the inverses, which `rules.begin` adds to the parameters, and draws at every update. A
        network that is no chain of dense layers, elementwise except for the last, raises ValueError.

    Raises:
        ValueError: For a rate <= 0 and noise < 0.

    References:
        Lee, Zhang, Fischer and Bengio 2015 (arXiv 1412.7525).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network, key = fnn.multilayer((3, 4, 4, 2), ("tanh", "tanh", "softmax")), jax.random.key(1)
        >>> params = fnn.rules.begin("target_propagation", network, network.init(jax.random.key(0)), key)
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="target_propagation")
        >>> sorted(step(params, jnp.ones((5, 3)), jnp.arange(5) % 2, None, key)[1]["layer2"]["feedback"])
        ['inverse', 'inverse_bias']
    """
    rate = checks.constant("target_propagation", "rate", rate, *checks.POSITIVE)
    noise = checks.constant("target_propagation", "noise", noise, *checks.NON_NEGATIVE)
    constants = map(rules.number, (rate, noise))
    return Rule(
        f"target_propagation({', '.join(constants)})",
        begin=_begin,
        check=_check,
        method=_method(rate, noise),
        random=True,
    )


def _check(network: Network, layer: Layer) -> None:
    at = network.layers.index(layer)
    before = network.layers[at - 1].name if at else network.inputs[0][0]
    # the twin has the same weights, in the memory order that populations use on a CPU
    chain = layer.reads in (((before, dense),), ((before, dense.twin),)) and len(network.inputs) == 1
    shape = network.net_shapes[layer.name]
    if len(shape) > 1:
        raise ValueError(f"rule: target_propagation inverts layers of vectors; layer {layer.name!r} has shape {shape}")
    if not chain:
        raise ValueError(
            "rule: target_propagation inverts layer after layer, so that each must read the one before it by dense, "
            f"as in fnn.multilayer; {layer.name!r} reads {', '.join(f'{s!r} by {by.name}' for s, by in layer.reads)}"
        )
    alone = layer.activation.alone and layer.activation.pieces == 1 and not layer.activation.parameters
    if not (alone and not layer.dropout) and layer is not network.output:
        what = "dropout" if layer.dropout else f"activation {layer.activation.name!r}"
        raise ValueError(
            f"rule: target_propagation inverts hidden layers neuron by neuron; layer {layer.name!r} has {what}"
        )


def _begin(network: Network, layer: Layer, stream: draws.Stream, dtype) -> dict:
    if layer is network.layers[0] or layer is network.output:
        return {}
    shape = (network.sizes[layer.sources[0]], layer.size)
    return {
        "inverse": rules.drawn(stream, shape, rules.glorot(*shape), dtype),
        "inverse_bias": jnp.zeros(shape[0], dtype),
    }


def _method(rate: Any, noise: Any) -> Callable[[Request], Backpropagation]:
    def method(request: Request) -> Backpropagation:
        network, loss, params, layers = request.network, request.loss, request.params, request.network.layers
        trace, output = forward(network, params, request.inputs, {}, request.key), network.output
        a = trace.activations
        step = jnp.asarray(rate, a[output.name].dtype)
        stream = draws.of_key(request.key)
        s, learned, inverses = {}, {}, {}
        s[output.name], learned[output.name] = start(network, loss, params, trace, request.targets, request.weights)
        away: Array | None = None  # share (a^m - t^m) / rate, which is dF/da^m of the layer below the output
        for above, layer in zip(layers[:0:-1], layers[-2::-1], strict=True):
            if above is output:
                w = params[above.name]["weights"][layer.name]
                away = dense.back(s[output.name], w, a[layer.name])
            else:
                # a^m - t^m of each example
                per_example = factors.over_rows(away, 1 / losses.positive(request.share)) * step
                inverse = _Inverse(layer, params[above.name]["feedback"])
                moved = inverse(a[above.name] - per_example)[0] - inverse(a[above.name])[0]
                away = factors.over_rows(-moved / step, request.share)
                drawn = draws.normal(draws.inside(stream, above.name), a[layer.name].shape, a[layer.name].dtype)
                inverses[above.name] = _learned(
                    request, above, layer, a[layer.name] + jnp.asarray(noise, drawn.dtype) * drawn
                )
            s[layer.name], learned[layer.name] = pullback(layer, params, trace, away)
        gradients = contract(network, params, trace, Sweep(s, learned, {}))
        for name, inverse_gradient in inverses.items():
            gradients[name]["feedback"] = inverse_gradient
        return request.result(trace, gradients, s)

    return method


class _Inverse:
    """h(a) = f(V a + c), f that of the layer below."""

    def __init__(self, below: Layer, own: dict[str, Array]):
        self.below, self.own = below, own

    def __call__(self, a: Array) -> tuple[Array, Array]:
        n = plus_bias(dense.forward(a, self.own["inverse"]), {"bias": self.own["inverse_bias"]})
        return self.below.activation.forward(n, {})[0], n


def _learned(request: Request, above: Layer, below: Layer, x: Array) -> dict[str, Array]:
    """Returns the gradient of `|h(f(x)) - x|^2` / 2 by V and c, x (Q, S) held fixed."""
    own = request.params[above.name]
    through = above.activation.forward(plus_bias(dense.forward(x, own["weights"][below.name]), own), {})[0]
    back, n = _Inverse(below, own["feedback"])(through)
    s, _ = below.activation.pullback(factors.over_rows(back - x, request.share), n, back, None, {})
    return {"inverse": dense.outer(s, through), "inverse_bias": jnp.sum(s, axis=0)}
