"""Backpropagation by hand: the sensitivity recursion over a feedforward graph, and the gradient it gives.

Letters: Q examples, S neurons of a layer, R of the source it reads. s^m = dF/dn^m (Q, S) is the sensitivity of layer
m (Hagan Eq. 3.38), a^m its outputs, g^m = dF/da^m. One pass, in three steps:

    start        s^M, from the loss and the last layer                        Eq. 3.50, E3.5, E3.6
    recursion    g^m = sum over the layers l that read m of s^l W^(l,m)       Eq. 3.47; P3.2 and E3.4 for graphs
                 s^m = F'(n^m)^T g^m                                          Eq. 3.49
    contraction  dF/dW^(m,j) = s^m^T a^j,  dF/db^m = sum_q s^m                Eq. 3.39, 3.40

Here the products are those of dense layers; of another connection they are its `back` and its `outer`, and of a signal
with positions, (Q, *P, S), everything has these axes between, over which a bias adds up, too.

What crosses a connection on the way back, s W above, is a parameter: a learning rule (`rules`) puts something else
there. Jacobians, curvature and `differentiable` are always exact.

Nothing here differentiates automatically. The old weights are used throughout: parameters move afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.gradients import draws, factors, rules
from functional_nn.gradients.rules import Edge, Place, Rule
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
from functional_nn.precision import at_least_float32


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
    rule: rules.Given = "exact",
) -> Backpropagation:
    """The loss, its gradient and every sensitivity, from one forward and one backward pass.

    inputs (Q, *P, R), or {name: (Q, *P, R)}; targets (Q, *P, S), or integer classes (Q, *P); weights (Q,) of the
    examples, or (Q, *P) of the outputs' positions, 0 where they are masked, or None; all but tokens are converted to
    the parameters' dtype, which the results have. key: draws the neurons that layers with dropout drop, none where
    None, the mask stays in the trace; and what a random rule draws. input_gradients: also dF/dp, by name of the input,
    tokens left out. rule: what crosses connections on the way back, one of `fnn.rules` for all layers or {layer: rule};
    what it gives stands in the place of dF/dn and dF/dparams.
    Raises ValueError for shapes that do not match, non-finite concrete data, a layer without derivative (hardlim), a
    loss whose outputs must be probabilities over a layer that gives something else, a rule that the network has no
    meaning for, and a random one without key.
    """
    loss, rule = losses.get(loss), rules.get(rule)
    network = check_trainable(network, rule)
    loss.check_outputs(network.output.activation)
    inputs = network.prepare(params, inputs)
    targets = network.prepare_targets(inputs, targets, loss, dtype_of(params))
    weights = network.prepare_weights(inputs, weights)
    rules.check_initialized(rule, network, params)
    if rules.is_random(rule):
        if key is None:
            raise ValueError(f"rule: {rules.written(rule)} draws at every update; give key=jax.random.key(...)")
        checks.prng_key("key", key)
    method = rules.method_of(rule)
    if method is not None:
        if input_gradients:
            raise ValueError(f"input_gradients: the rule {rules.written(rule)} has no way back to the inputs")
        return method(Request(network, loss, params, inputs, targets, weights, key))
    trace = forward(network, params, inputs, {}, key)
    started = start(network, loss, params, trace, targets, weights)
    way = way_back(rule, network, params, trace, key, lambda: shares(loss, len(targets), weights, dtype_of(params)))
    swept = sweep(network, params, trace, started, input_gradients, way)
    return Backpropagation(
        loss_value(network, loss, trace, targets, weights),
        contract(network, params, trace, swept, way),
        swept.sensitivities,
        of_inputs(network, swept) if input_gradients else {},
        trace,
    )


class Request(NamedTuple):
    """What `backpropagate` was given, checked and prepared: for a rule that makes the whole gradient by itself."""

    network: Network
    loss: Loss
    params: Params
    inputs: dict[str, Array]
    targets: Array
    weights: Array | None
    key: Array | None

    @property
    def share(self) -> Array:
        """What each example's own F_q counts for in F, (Q,)."""
        return shares(self.loss, len(self.targets), self.weights, dtype_of(self.params))

    @property
    def positions(self) -> Array | None:
        """What each position of the outputs counts for in its example, (Q, *P), 1 on average; None if all do alike."""
        if self.weights is None or self.weights.ndim == 1:
            return None
        mean = jnp.mean(self.weights.reshape(len(self.weights), -1), axis=1)
        return factors.over_rows(self.weights, 1 / losses.positive(mean))

    def value(self, trace: Trace) -> Array:
        """F of what that forward pass gives."""
        return loss_value(self.network, self.loss, trace, self.targets, self.weights)

    def result(self, trace: Trace, gradients: Params, s: dict[str, Array] | None = None) -> Backpropagation:
        """What a method gives back: F and outputs are those of the trace; s where it has sensitivities."""
        return Backpropagation(self.value(trace), gradients, s or {}, {}, trace)


def value_and_grad(network: Network, loss: Loss, rule: rules.Given = "exact") -> Callable[..., tuple[Array, Params]]:
    """`(params, inputs, targets, weights=None, key=None) -> (F, dF/dparams)`, by hand: autodiff's of `objective`.

    rule: as in `backpropagate`; what it gives stands in the place of dF/dparams.
    Refused at once: a layer without derivative, a loss that does not suit the output layer, and a rule that does not
    suit the network (ValueError).
    """
    return without_outputs(value_outputs_and_grad(network, loss, rule))


def value_outputs_and_grad(
    network: Network, loss: Loss, rule: rules.Given = "exact"
) -> Callable[..., tuple[Array, Array, Params]]:
    """The same with the outputs (Q, S) that F was measured on: (F, outputs, dF/dparams)."""
    loss, rule = losses.get(loss), rules.get(rule)
    check_trainable(network, rule)
    loss.check_outputs(network.output.activation)

    def value_outputs_and_gradients(
        params: Params, inputs: Inputs, targets: Array, weights: Array | None = None, key: Array | None = None
    ):
        result = backpropagate(network, loss, params, inputs, targets, weights, key, rule=rule)
        return result.value, result.trace.activations[network.output.name], result.gradients

    return value_outputs_and_gradients


# What a training step asks for, so that its metrics need no forward pass of their own.
value_and_grad.with_outputs = value_outputs_and_grad


@dataclass(frozen=True)
class Along:
    """`value_and_grad` by one rule, as what trains asks for a gradient: (network, loss) -> (F, gradients)."""

    rule: Rule | rules.ByLayer

    @property
    def random(self) -> bool:
        """True where a key is needed at every update."""
        return rules.is_random(self.rule)

    def __call__(self, network: Network, loss: Loss) -> Callable[..., tuple[Array, Params]]:
        return value_and_grad(network, loss, self.rule)

    def with_outputs(self, network: Network, loss: Loss) -> Callable[..., tuple[Array, Array, Params]]:
        """The same with the outputs between the two."""
        return value_outputs_and_grad(network, loss, self.rule)

    def __repr__(self) -> str:
        return rules.written(self.rule)


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


class WayBack(NamedTuple):
    """A learning rule on its way: of_layer {layer: its rule}; place(layer), edge(...): what the rule sees there."""

    of_layer: dict[str, Rule]
    place: Callable[[Layer], Place]
    edge: Callable[..., Edge]


def way_back(
    rule: Rule | rules.ByLayer, network: Network, params: Params, trace: Trace, key: Array | None, share: Callable
) -> WayBack | None:
    """None for the exact gradient. share() -> (Q,): what each F_q counts for in F."""
    of_layer = rules.of_layers(rule, network)
    if of_layer is None:
        return None
    stream = None if key is None else draws.of_key(key)

    def drawn(*names):
        return None if stream is None else draws.inside(stream, *names)

    def place(layer: Layer) -> Place:
        return Place(layer, params[layer.name], trace, share, drawn(layer.name))

    def edge(layer: Layer, source: str, by: Connection, errors: Array) -> Edge:
        own = params[layer.name]
        learned = own.get("feedback", {}).get(source)
        signal = trace.activations[source]
        return Edge(layer, source, by, own["weights"][source], signal, errors, learned, drawn(layer.name, source))

    return WayBack(of_layer, place, edge)


def shares(loss: Loss, examples: int, weights: Array | None, dtype) -> Array:
    """What each example's own F_q counts for in F, (Q,): its weight, or of a mean its part of all weights,
    0 where these are all 0, as in `Loss.reduce`.
    """
    if weights is None:
        return jnp.full(examples, 1 / examples if loss.reduction == "mean" else 1, at_least_float32(dtype))
    own = jnp.mean(weights.reshape(examples, -1), axis=1)
    return own / losses.positive(jnp.sum(own)) if loss.reduction == "mean" else own


def sweep(
    network: Network,
    params: Params,
    trace: Trace,
    started: Started,
    input_gradients: bool = False,
    way: WayBack | None = None,
) -> Sweep:
    """The recursion, from s^M down to the inputs: each layer adds s W, or what its rule puts there, into the g of all
    it reads.
    """
    errors = []  # s^M, the first that is found

    def pull(layer: Layer, g: Array | None) -> Started:
        s, learned = started if layer is network.output else pullback(layer, params, trace, g)
        if way is None:
            return s, learned
        rule = way.of_layer[layer.name]
        s = s if rule.alter is None else rule.checked("alter", rule.alter(way.place(layer), s), s.shape, s.dtype)
        errors.append(s)
        return s, learned

    def carry(layer: Layer, source: str, by: Connection, s: Array) -> Array:
        w = weights_of(params[layer.name], source, by)
        if way is not None and w is not None and way.of_layer[layer.name].crosses:
            return way.of_layer[layer.name].cross(way.edge(layer, source, by, errors[0]), s)
        return by.back(s, w, trace.activations[source])  # dense: (Q, S) (S, R), Eq. 3.47

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


def contract(network: Network, params: Params, trace: Trace, swept: Sweep, way: WayBack | None = None) -> Params:
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
        if way is not None and way.of_layer[layer.name].learn is not None:
            found = way.of_layer[layer.name].learn(way.place(layer), found)
        gradients[layer.name] = found | {name: unmoved(x) for name, x in own.items() if name not in found}
    return gradients


def unmoved(tree: Any) -> Any:
    """Zeros: of statistics, of which nothing is learned, and of what another rule than the one at hand learns."""
    return jax.tree.map(jnp.zeros_like, tree)


def check_trainable(network: Network, rule: Rule | rules.ByLayer = rules.exact) -> Network:
    """The network as the way back takes it. Raises ValueError where an activation has no derivative to propagate
    through, and none is put in its place, and where the rule has no meaning for the network.
    """
    rules.of_layers(rule, network)
    network = rules.rewritten(rule, network)
    if all(own.has_derivatives for own in rules.rules_in(rule)):
        for layer in network.layers:
            if layer.activation.pullback is None:
                raise ValueError(
                    f"layer {layer.name!r}: {layer.activation.name!r} has no derivative, so nothing can be trained "
                    "through it; use a differentiable activation such as 'sigmoid' or 'tanh', rule='surrogate', which "
                    "puts another in its place, or train a single layer of it with fit's gradient='perceptron'"
                )
    return network
