"""Backpropagation by hand: the sensitivity recursion over a feedforward graph, and the gradient it gives.

Letters: Q examples, S neurons of a layer, R of the source it reads. s^m = dF/dn^m (Q, S) is the sensitivity of layer
m (Hagan Eq. 3.38), a^m its outputs, g^m = dF/da^m. One pass, in three steps:

    start        s^M, from the loss and the last layer                        Eq. 3.50, E3.5, E3.6
    recursion    g^m = sum over the layers l that read m of s^l W^(l,m)       Eq. 3.47; P3.2 and E3.4 for graphs
                 s^m = F'(n^m)^T g^m                                          Eq. 3.49
    contraction  dF/dW^(m,j) = s^m^T a^j,  dF/db^m = sum_q s^m                Eq. 3.39, 3.40

Here the products are those of dense layers; of another connection they are its `back` and its `outer`, and of a signal
with positions, (Q, *P, S), everything has these axes between, over which a bias adds up, too.

Nothing here differentiates automatically. The old weights are used throughout: parameters move afterwards.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn.gradients import factors
from functional_nn.networks import losses
from functional_nn.networks.connections import Connection, Factors
from functional_nn.networks.losses import Loss, at_positions
from functional_nn.networks.network import (
    Inputs,
    Layer,
    Network,
    Params,
    Trace,
    check_statistics,
    dtype_of,
    forward,
    inference_mode,
    theta,
    weights_of,
)


class Sweep(NamedTuple):
    """One backward pass.

    sensitivities: {layer: dF/dn (Q, *P, S)}, (Q, *P, S k) for maxout; learned: {layer: {name: Factors}}, what each
    example adds to dF/d of a learned activation parameter; output_gradients: {name: dF/da (Q, *P, S)} of every layer
    that another reads, and of the network's inputs, dF/dp (Q, *P, R), where asked for.
    """

    sensitivities: dict[str, Array]
    learned: dict[str, dict[str, Factors]]
    output_gradients: dict[str, Array]


class Backpropagation(NamedTuple):
    """Everything `backpropagate` gives: F, dF/dparams in the parameters' structure, dF/dn, dF/dp, and the trace."""

    value: Array
    gradients: Params
    sensitivities: dict[str, Array]
    input_gradients: dict[str, Array]
    trace: Trace


def backpropagate(
    network: Network,
    loss: Loss,
    params: Params,
    inputs: Inputs,
    targets: Array,
    weights: Array | None = None,
    key: Array | None = None,
    *,
    input_gradients: bool = False,
) -> Backpropagation:
    """The loss, its gradient and every sensitivity, from one forward and one backward pass.

    inputs (Q, *P, R), or {name: (Q, *P, R)}; targets (Q, *P, S), or integer classes (Q, *P); weights (Q,) of the
    examples, or (Q, *P) of the outputs' positions, 0 where they are masked, or None; all but tokens are converted to
    the parameters' dtype, which the results have. key: draws the neurons that layers with dropout drop, none where
    None; the mask stays in the trace. input_gradients: also dF/dp, by name of the input, tokens left out.
    Raises ValueError for shapes that do not match, non-finite concrete data, a layer without derivative (hardlim),
    and a loss whose outputs must be probabilities over a layer that gives something else.
    """
    loss = losses.get(loss)
    check_trainable(network)
    loss.check_outputs(network.output.activation)
    inputs = network.prepare(params, inputs)
    targets = network.prepare_targets(inputs, targets, loss, dtype_of(params))
    weights = network.prepare_weights(inputs, weights)
    trace = forward(network, params, inputs, {}, key)
    started = start(network, loss, params, trace, targets, weights)
    swept = sweep(network, params, trace, started, input_gradients)
    return Backpropagation(
        loss_value(network, loss, trace, targets, weights),
        contract(network, params, trace, swept),
        swept.sensitivities,
        of_inputs(network, swept) if input_gradients else {},
        trace,
    )


def value_and_grad(network: Network, loss: Loss) -> Callable[..., tuple[Array, Params]]:
    """`(params, inputs, targets, weights=None, key=None) -> (F, dF/dparams)`, by hand: autodiff's of `objective`.

    Refused at once: a layer without derivative, and a loss that does not suit the output layer (ValueError).
    """
    return without_outputs(value_outputs_and_grad(network, loss))


def value_outputs_and_grad(network: Network, loss: Loss) -> Callable[..., tuple[Array, Array, Params]]:
    """The same with the outputs (Q, S) that F was measured on: (F, outputs, dF/dparams)."""
    loss = losses.get(loss)
    check_trainable(network)
    loss.check_outputs(network.output.activation)

    def value_outputs_and_gradients(
        params: Params, inputs: Inputs, targets: Array, weights: Array | None = None, key: Array | None = None
    ):
        result = backpropagate(network, loss, params, inputs, targets, weights, key)
        return result.value, result.trace.activations[network.output.name], result.gradients

    return value_outputs_and_gradients


# What a training step asks for, so that its metrics need no forward pass of their own.
value_and_grad.with_outputs = value_outputs_and_grad


def without_outputs(of_three: Callable[..., tuple[Array, Array, Params]]) -> Callable[..., tuple[Array, Params]]:
    """A function's (F, outputs, gradients) as (F, gradients)."""

    def value_and_gradients(
        params: Params, inputs: Inputs, targets: Array, weights: Array | None = None, key: Array | None = None
    ):
        value, _, gradients = of_three(params, inputs, targets, weights, key)
        return value, gradients

    return value_and_gradients


def sensitivities(network: Network, loss: Loss, params: Params, inputs: Inputs, targets: Array) -> dict[str, Array]:
    """s^m = dF/dn^m by layer, (Q, *P, S) each ((Q, *P, S k) for maxout): Hagan Eq. 3.38. Raises as `backpropagate`."""
    return backpropagate(network, loss, params, inputs, targets).sensitivities


def objective(network: Network, loss: Loss) -> Callable[..., Array]:
    """`(params, inputs, targets, weights=None, key=None) -> F`, plain JAX without a hand-written derivative."""
    both = value_and_outputs(network, loss)

    def value(
        params: Params, inputs: Inputs, targets: Array, weights: Array | None = None, key: Array | None = None
    ) -> Array:
        return both(params, inputs, targets, weights, key)[0]

    return value


def value_and_outputs(network: Network, loss: Loss) -> Callable[..., tuple[Array, Array]]:
    """The same with the outputs (Q, S): (F, outputs)."""
    loss = losses.get(loss)
    loss.check_outputs(network.output.activation)

    def both(params: Params, inputs: Inputs, targets: Array, weights: Array | None = None, key: Array | None = None):
        inputs = network.prepare(params, inputs)
        targets = network.prepare_targets(inputs, targets, loss, dtype_of(params))
        weights = network.prepare_weights(inputs, weights)
        trace = forward(network, params, inputs, {}, key)
        return loss_value(network, loss, trace, targets, weights), trace.activations[network.output.name]

    return both


def differentiable(network: Network) -> Callable[[Params, Inputs], Array]:
    """`network.apply` whose reverse derivative is the recursion above, installed as its `jax.custom_vjp`.

    `jax.grad` of any program around it runs our sensitivities, and may be taken again. Forward mode (`jax.jvp`) is
    not available through a custom VJP; take it of `network.apply`.
    """
    check_trainable(network)
    whole, network = network, inference_mode(network)

    @jax.custom_vjp
    def apply(params, inputs):
        return forward(network, params, inputs, {}).activations[network.output.name]

    def apply_forward(params, inputs):
        trace = forward(network, params, inputs, {})
        return trace.activations[network.output.name], (params, trace)

    def apply_backward(residuals, g):
        params, trace = residuals
        swept = sweep(network, params, trace, pullback(network.output, params, trace, g), input_gradients=True)
        # of integers there is nothing to say, and JAX has a type for that
        nothing = {name: np.zeros(trace.activations[name].shape, jax.dtypes.float0) for name in network.tokens}
        return contract(network, params, trace, swept), of_inputs(network, swept) | nothing

    apply.defvjp(apply_forward, apply_backward)

    def checked(params: Params, inputs: Inputs) -> Array:
        check_statistics(whole, params)
        return apply(params, network.prepare(params, inputs))

    return checked


# The heart ------------------------------------------------------------------------------------------------------------

Started = tuple[Array, dict[str, Factors]]  # s^m and the learned parameters' share of each example


def loss_value(network: Network, loss: Loss, trace: Trace, targets: Array, weights: Array | None) -> Array:
    """F, from net inputs where loss and output layer are fused."""
    return loss.reduce(example_losses(network, loss, trace, targets), weights)


def example_losses(network: Network, loss: Loss, trace: Trace, targets: Array) -> Array:
    """F_q (Q,), likewise; of outputs with positions what is found at each, (Q, *P)."""
    name = network.output.name
    fused = loss.fused_with(network.output.activation)
    if fused:
        return at_positions(fused.value, trace.net_inputs[name], targets)
    return at_positions(loss.example_value, trace.activations[name], targets)


def start(network: Network, loss: Loss, params: Params, trace: Trace, targets: Array, weights: Array | None) -> Started:
    """s^M (Eq. 3.50): fused with the output layer (E3.5) where the loss has the pair, else F'(n^M)^T dF/da (E3.6)."""
    name = network.output.name
    fused = loss.fused_with(network.output.activation)
    if fused:
        return loss.scale(at_positions(fused.gradient, trace.net_inputs[name], targets), weights), {}
    return pullback(network.output, params, trace, loss.gradient(trace.activations[name], targets, weights))


def sweep(
    network: Network,
    params: Params,
    trace: Trace,
    started: Started,
    input_gradients: bool = False,
) -> Sweep:
    """The recursion, from s^M down to the inputs: each layer adds s W into the g of all it reads."""

    def pull(layer: Layer, g: Array | None) -> Started:
        return started if layer is network.output else pullback(layer, params, trace, g)

    def carry(layer: Layer, source: str, by: Connection, s: Array) -> Array:
        # dense: (Q, S) (S, R), Eq. 3.47
        return by.back(s, weights_of(params[layer.name], source, by), trace.activations[source])

    def reaches(source: str) -> bool:
        return source in params or (input_gradients and source not in network.tokens)  # what has parameters is a layer

    return recursion(network, pull, carry, reaches)


def recursion(network: Network, pull: Callable, carry: Callable, reaches: Callable[[str], bool]) -> Sweep:
    """The way back through the graph, whatever goes it: derivatives, or the changes of derivatives.

    pull(layer, g) -> (s, {name: of its learned parameters}), across its activation; g is None at the output.
    carry(layer, source, by, s) -> what of s reaches a source, by a connection. reaches(source): is that asked for?
    """
    s, learned, g = {}, {}, {}
    for layer in reversed(network.layers):
        name = layer.name
        s[name], learned[name] = pull(layer, g.get(name))
        for source, by in layer.reads:
            if reaches(source):
                back = carry(layer, source, by, s[name])
                g[source] = g[source] + back if source in g else back  # fan-out: E3.4
    forward_order = [layer.name for layer in network.layers]
    return Sweep({name: s[name] for name in forward_order}, {name: learned[name] for name in forward_order}, g)


def of_inputs(network: Network, swept: Sweep) -> dict[str, Array]:
    """dF/dp by name of the input, from a sweep that was asked for it."""
    return {name: swept.output_gradients[name] for name, _ in network.inputs if name not in network.tokens}


def pullback(layer: Layer, params: Params, trace: Trace, g: Array) -> Started:
    """s = F'(n)^T g across one layer's activation (Eq. 3.46), and its dropout mask where it has one."""
    name = layer.name
    n, a = trace.net_inputs[name], trace.activations[name]
    if name in trace.dropped:
        mask, a = trace.dropped[name]
        g = g * mask
    return layer.activation.pullback(g, n, a, trace.kept.get(name), theta(layer, params[name], trace.activations))


def contract(network: Network, params: Params, trace: Trace, swept: Sweep) -> Params:
    """The gradient from sensitivities and trace (Eq. 3.39, 3.40), in the parameters' structure."""
    gradients = {}
    for layer in network.layers:
        own, s = params[layer.name], swept.sensitivities[layer.name]
        found = {"weights": {source: by.outer(s, trace.activations[source]) for source, by in layer.weighted}}
        if layer.bias != "none":
            found["bias"] = factors.total(Factors(s, None), own["bias"], layer.total)
        if swept.learned[layer.name]:
            shares = swept.learned[layer.name].items()
            found["learned"] = {name: factors.total(f, own["learned"][name], layer.total) for name, f in shares}
        if "statistics" in own:  # which nothing is learned of
            found["statistics"] = jax.tree.map(jnp.zeros_like, own["statistics"])
        gradients[layer.name] = found
    return gradients


def check_trainable(network: Network) -> None:
    """Raises ValueError where an activation has no derivative to propagate through."""
    for layer in network.layers:
        if layer.activation.pullback is None:
            raise ValueError(
                f"layer {layer.name!r}: {layer.activation.name!r} has no derivative, so nothing can be trained through "
                "it; use a differentiable activation such as 'sigmoid' or 'tanh', or train a single layer of it with "
                "fit's gradient='perceptron'"
            )
