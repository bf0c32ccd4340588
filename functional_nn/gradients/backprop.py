r"""Backpropagation by hand: the sensitivity recursion over a feedforward graph, and the gradient that it yields.

Letters: Q examples, S neurons of a layer, R of the source it reads. :math:`s^m = \partial F / \partial n^m` (Q, S) is
the sensitivity of layer m (Hagan Eq. 3.38), :math:`a^m` its outputs, :math:`g^m = \partial F / \partial a^m`. One
backward pass has three steps.

Start: :math:`s^M`, from the loss and the last layer (Eq. 3.50, E3.5, E3.6).

Recursion (Eq. 3.47 and 3.49; P3.2 and E3.4 for graphs), over the layers l that read m:

.. math:: \begin{aligned} g^m &= \sum_l s^l W^{(l,m)} \\ s^m &= F'(n^m)^T g^m \end{aligned}

Contraction (Eq. 3.39, 3.40):

.. math:: \frac{\partial F}{\partial W^{(m,j)}} = (s^m)^T a^j, \qquad
   \frac{\partial F}{\partial b^m} = \sum_q s^m_q

These products are those of dense layers. For another connection they are its `back` and its `outer`; for a signal with
positions, `(Q, *P, S)`, everything has these axes in the middle, and a bias sums over them too.

What crosses a connection on the way back, s W above, is a parameter: a learning rule (`fnn.rules`) replaces it.
Jacobians, curvature and `differentiable` are always exact.

Nothing here differentiates automatically. The old weights are used throughout: parameters move afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

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

    Attributes:
        sensitivities: `{layer: dF/dn (Q, *P, S)}`; `(Q, *P, S k)` for maxout.
        learned: {layer: {name: Factors}}, each example's part of dF by a learned activation parameter.
        output_gradients: `{name: dF/da (Q, *P, S)}` of every layer that another reads, and, on request, of the
            network's inputs, dF/dp `(Q, *P, R)`.
    """

    sensitivities: dict[str, Array]
    learned: dict[str, dict[str, Factors]]
    output_gradients: dict[str, Array]


class Backpropagation(NamedTuple):
    """The result of `backpropagate`.

    Attributes:
        value: F.
        gradients: dF/dparams, in the parameters' structure.
        sensitivities: `{layer: dF/dn (Q, *P, S)}`.
        input_gradients: `{input: dF/dp (Q, *P, R)}` on request, else {}.
        trace: The forward pass.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x = network.init(jax.random.key(0)), jnp.ones((5, 3))
        >>> found = fnn.backpropagate(network, "cross_entropy", params, x, jnp.arange(5) % 2)
        >>> found.gradients["layer1"]["weights"]["input"].shape, found.trace.activations["layer2"].shape
        ((4, 3), (5, 2))
    """

    value: Array
    gradients: Params
    sensitivities: dict[str, Array]
    input_gradients: dict[str, Array]
    trace: Trace


def backpropagate(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
    key: Array | None = None,
    *,
    input_gradients: bool = False,
    rule: rules.Given = "exact",
) -> Backpropagation:
    """Computes the loss, its gradient and every sensitivity, from one forward and one backward pass.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters. Inputs, targets and weights are converted to their dtype, which the results have; tokens
            stay integers.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        weights: Weights of the examples (Q,), or of the outputs' positions `(Q, *P)`, with 0 where they are masked; or
            None.
        key: Random key for the neurons that dropout drops, none if None (the mask is in the trace), and for what a
            random rule draws.
        input_gradients: Whether to compute dF/dp, by name of the input; tokens are left out.
        rule: What crosses connections on the way back: a rule of `fnn.rules` for all layers, or {layer: rule}. Its
            result replaces dF/dn and dF/dparams.

    Returns:
        A `Backpropagation`.

    Raises:
        ValueError: For shapes that do not match, concrete data that are not finite, a layer without derivative
            (hardlim), a loss that needs probabilities over a layer that returns something else, a rule that the network
            does not support, and a random rule without a key.
        TypeError: For arguments of other types.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x = network.init(jax.random.key(0)), jnp.ones((5, 3))
        >>> found = fnn.backpropagate(network, "cross_entropy", params, x, jnp.arange(5) % 2, input_gradients=True)
        >>> found.sensitivities["layer1"].shape, found.input_gradients["input"].shape
        ((5, 4), (5, 3))
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
    """The arguments of `backpropagate`, checked and prepared, for a rule that makes the whole gradient by itself."""

    network: Network
    loss: Loss
    params: Params
    inputs: dict[str, Array]
    targets: Array
    weights: Array | None
    key: Array | None

    @property
    def share(self) -> Array:
        """Each example's share of F: what its own F_q counts for, (Q,)."""
        return shares(self.loss, len(self.targets), self.weights, dtype_of(self.params))

    @property
    def positions(self) -> Array | None:
        """Weight of each position of the outputs in its example, `(Q, *P)`, 1 on average; None if all are equal."""
        if self.weights is None or self.weights.ndim == 1:
            return None
        mean = jnp.mean(self.weights.reshape(len(self.weights), -1), axis=1)
        return factors.over_rows(self.weights, 1 / losses.positive(mean))

    def value(self, trace: Trace) -> Array:
        """Returns F for the result of a forward pass."""
        return loss_value(self.network, self.loss, trace, self.targets, self.weights)

    def result(self, trace: Trace, gradients: Params, s: dict[str, Array] | None = None) -> Backpropagation:
        """Returns what a method returns: F and outputs are those of the trace; s where the method has sensitivities."""
        return Backpropagation(self.value(trace), gradients, s or {}, {}, trace)


def value_and_grad(
    network: Network, loss: Loss | str, rule: rules.Given = "exact"
) -> Callable[..., tuple[Array, Params]]:
    """Returns a function that computes the loss and its gradient by hand, equal to autodiff's of `objective`.

    Args:
        network: The network.
        loss: A loss, or its name.
        rule: What crosses connections on the way back, as in `backpropagate`; its result replaces dF/dparams.

    Returns:
        `(params, inputs, targets, weights=None, key=None) -> (F, dF/dparams)`.

    Raises:
        ValueError: At once, for a layer without derivative, a loss that does not suit the output layer, and a rule that
            the network does not support.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> value, gradient = fnn.value_and_grad(network, "cross_entropy")(params, x, t)
        >>> value.shape, gradient["layer1"]["weights"]["input"].shape
        ((), (4, 3))
        >>> fnn.compare(network, "cross_entropy", params, x, t).verdict  # against automatic differentiation
        'agree'
    """
    return without_outputs(value_outputs_and_grad(network, loss, rule))


def value_outputs_and_grad(
    network: Network, loss: Loss | str, rule: rules.Given = "exact"
) -> Callable[..., tuple[Array, Array, Params]]:
    """Returns the same function with the outputs (Q, S) that F was measured on: (F, outputs, dF/dparams)."""
    loss, rule = losses.get(loss), rules.get(rule)
    check_trainable(network, rule)
    loss.check_outputs(network.output.activation)

    def value_outputs_and_gradients(
        params: Params, inputs: Inputs, targets: ArrayLike, weights: ArrayLike | None = None, key: Array | None = None
    ):
        result = backpropagate(network, loss, params, inputs, targets, weights, key, rule=rule)
        return result.value, result.trace.activations[network.output.name], result.gradients

    return value_outputs_and_gradients


# Training steps call this one, so that metrics need no second forward pass.
value_and_grad.with_outputs = value_outputs_and_grad


@dataclass(frozen=True)
class Along:
    """`value_and_grad` by one rule, as training calls it: (network, loss) -> (F, gradients)."""

    rule: Rule | rules.ByLayer

    @property
    def random(self) -> bool:
        """True if a key is needed at every update."""
        return rules.is_random(self.rule)

    def __call__(self, network: Network, loss: Loss | str) -> Callable[..., tuple[Array, Params]]:
        return value_and_grad(network, loss, self.rule)

    def with_outputs(self, network: Network, loss: Loss | str) -> Callable[..., tuple[Array, Array, Params]]:
        """Returns the same with the outputs between the two."""
        return value_outputs_and_grad(network, loss, self.rule)

    def __repr__(self) -> str:
        return rules.written(self.rule)


def without_outputs(with_outputs: Callable[..., tuple[Array, Array, Params]]) -> Callable[..., tuple[Array, Params]]:
    """Returns a function's (F, outputs, gradients) as (F, gradients)."""

    def value_and_gradients(
        params: Params, inputs: Inputs, targets: ArrayLike, weights: ArrayLike | None = None, key: Array | None = None
    ):
        value, _, gradients = with_outputs(params, inputs, targets, weights, key)
        return value, gradients

    return value_and_gradients


def sensitivities(
    network: Network, loss: Loss | str, params: Params, inputs: Inputs, targets: ArrayLike
) -> dict[str, Array]:
    r"""Computes the sensitivities :math:`s^m = \partial F / \partial n^m` of all layers (Hagan Eq. 3.38).

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.

    Returns:
        `{layer: (Q, *P, S)}`; `(Q, *P, S k)` for maxout.

    Raises:
        ValueError: As `backpropagate`.
        TypeError: As `backpropagate`.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x = network.init(jax.random.key(0)), jnp.ones((5, 3))
        >>> s = fnn.sensitivities(network, "cross_entropy", params, x, jnp.arange(5) % 2)
        >>> {name: array.shape for name, array in s.items()}
        {'layer1': (5, 4), 'layer2': (5, 2)}
    """
    return backpropagate(network, loss, params, inputs, targets).sensitivities


def objective(network: Network, loss: Loss | str) -> Callable[..., Array]:
    """Returns the loss as a plain JAX function without a hand-written derivative, for `jax.grad` and the like.

    Args:
        network: The network.
        loss: A loss, or its name.

    Returns:
        `(params, inputs, targets, weights=None, key=None) -> F`.

    Raises:
        ValueError: For a loss that does not suit the output layer.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0)))
        >>> round(float(fnn.objective(network, "cross_entropy")(params, jnp.ones((5, 3)), jnp.arange(5) % 2)), 4)
        0.6931
    """
    both = value_and_outputs(network, loss)

    def value(
        params: Params, inputs: Inputs, targets: ArrayLike, weights: ArrayLike | None = None, key: Array | None = None
    ) -> Array:
        return both(params, inputs, targets, weights, key)[0]

    return value


def value_and_outputs(network: Network, loss: Loss | str) -> Callable[..., tuple[Array, Array]]:
    """Returns the same function with the outputs (Q, S): (F, outputs)."""
    loss = losses.get(loss)
    loss.check_outputs(network.output.activation)

    def both(
        params: Params, inputs: Inputs, targets: ArrayLike, weights: ArrayLike | None = None, key: Array | None = None
    ):
        inputs = network.prepare(params, inputs)
        targets = network.prepare_targets(inputs, targets, loss, dtype_of(params))
        weights = network.prepare_weights(inputs, weights)
        trace = forward(network, params, inputs, {}, key)
        return loss_value(network, loss, trace, targets, weights), trace.activations[network.output.name]

    return both


def differentiable(network: Network) -> Callable[[Params, Inputs], Array]:
    """Returns `network.apply` with the hand-written recursion as its reverse derivative (`jax.custom_vjp`).

    `jax.grad` of any program around it runs the sensitivity recursion, and may be applied again. Forward mode
    (`jax.jvp`) is not available through a custom VJP; take it of `network.apply`.

    Args:
        network: The network.

    Returns:
        `(params, inputs) -> outputs`.

    Raises:
        ValueError: For a layer without derivative.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "linear"))
        >>> params, x = network.init(jax.random.key(0)), jnp.ones((5, 3))
        >>> f = fnn.differentiable(network)
        >>> bool(jnp.array_equal(f(params, x), network.apply(params, x)))
        True
    """
    check_trainable(network)
    given, network = network, inference_mode(network)

    @jax.custom_vjp
    def apply(params, inputs):
        return forward(network, params, inputs, {}).activations[network.output.name]

    def apply_forward(params, inputs):
        trace = forward(network, params, inputs, {})
        return trace.activations[network.output.name], (params, trace)

    def apply_backward(residuals, g):
        params, trace = residuals
        swept = sweep(network, params, trace, pullback(network.output, params, trace, g), input_gradients=True)
        # integers have no derivative; JAX has a dtype for that
        of_tokens = {name: np.zeros(trace.activations[name].shape, jax.dtypes.float0) for name in network.tokens}
        return contract(network, params, trace, swept), of_inputs(network, swept) | of_tokens

    apply.defvjp(apply_forward, apply_backward)

    def checked(params: Params, inputs: Inputs) -> Array:
        check_statistics(given, params)
        return apply(params, network.prepare(params, inputs))

    return checked


# The heart ------------------------------------------------------------------------------------------------------------

Start = tuple[Array, dict[str, Factors]]  # s^m and the learned parameters' share of each example


def loss_value(network: Network, loss: Loss, trace: Trace, targets: Array, weights: Array | None) -> Array:
    """Returns F, from net inputs where loss and output layer are fused."""
    return loss.reduce(example_losses(network, loss, trace, targets), weights)


def example_losses(network: Network, loss: Loss, trace: Trace, targets: Array) -> Array:
    """Returns F_q (Q,), also fused; for outputs with positions, the value at each, `(Q, *P)`."""
    name = network.output.name
    fused = loss.fused_with(network.output.activation)
    if fused:
        return at_positions(fused.value, trace.net_inputs[name], targets)
    return at_positions(loss.example_value, trace.activations[name], targets)


def start(network: Network, loss: Loss, params: Params, trace: Trace, targets: Array, weights: Array | None) -> Start:
    """Returns s^M (Eq. 3.50): fused with the output layer (E3.5) if the loss has the pair, else its pullback (E3.6)."""
    name = network.output.name
    fused = loss.fused_with(network.output.activation)
    if fused:
        return loss.scale(at_positions(fused.gradient, trace.net_inputs[name], targets), weights), {}
    return pullback(network.output, params, trace, loss.gradient(trace.activations[name], targets, weights))


class WayBack(NamedTuple):
    """A learning rule on its way. of_layer: {layer: its rule}; place(layer), edge(...): what the rule sees there."""

    of_layer: dict[str, Rule]
    place: Callable[[Layer], Place]
    edge: Callable[..., Edge]


def way_back(
    rule: Rule | rules.ByLayer, network: Network, params: Params, trace: Trace, key: Array | None, share: Callable
) -> WayBack | None:
    """Returns a rule on its way, None for the exact gradient. share() -> (Q,): each example's share of F."""
    of_layer = rules.of_layers(rule, network)
    if of_layer is None:
        return None
    stream = None if key is None else draws.of_key(key)

    def stream_of(*names: str) -> draws.Stream | None:
        return None if stream is None else draws.inside(stream, *names)

    def place(layer: Layer) -> Place:
        return Place(layer, params[layer.name], trace, share, stream_of(layer.name))

    def edge(layer: Layer, source: str, by: Connection, errors: Array) -> Edge:
        own = params[layer.name]
        learned = own.get("feedback", {}).get(source)
        signal = trace.activations[source]
        return Edge(layer, source, by, own["weights"][source], signal, errors, learned, stream_of(layer.name, source))

    return WayBack(of_layer, place, edge)


def shares(loss: Loss, examples: int, weights: Array | None, dtype) -> Array:
    """Returns each example's share of F, (Q,): its weight, or for a mean its part of all weights.

    It is 0 where the weights are all 0, as in `Loss.reduce`.
    """
    if weights is None:
        return jnp.full(examples, 1 / examples if loss.reduction == "mean" else 1, at_least_float32(dtype))
    own = jnp.mean(weights.reshape(examples, -1), axis=1)
    return own / losses.positive(jnp.sum(own)) if loss.reduction == "mean" else own


def sweep(
    network: Network,
    params: Params,
    trace: Trace,
    started: Start,
    input_gradients: bool = False,
    way: WayBack | None = None,
) -> Sweep:
    """Runs the recursion from s^M to the inputs: a layer adds s W, or its rule's product, to the g of its sources."""
    errors = []  # s^M comes first

    def pull(layer: Layer, g: Array | None) -> Start:
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
        return source in params or (input_gradients and source not in network.tokens)  # layers have parameters

    return recursion(network, pull, carry, reaches)


def recursion(network: Network, pull: Callable, carry: Callable, reaches: Callable[[str], bool]) -> Sweep:
    """Runs back through the graph with derivatives, or with the changes of derivatives.

    pull(layer, g) -> (s, {name: of its learned parameters}), across its activation; g is None at the output.
    carry(layer, source, by, s) -> what of s reaches a source through a connection. reaches(source): whether that is
    needed.
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
    """Returns dF/dp by name of the input, from a sweep with `input_gradients`."""
    return {name: swept.output_gradients[name] for name, _ in network.inputs if name not in network.tokens}


def pullback(layer: Layer, params: Params, trace: Trace, g: Array) -> Start:
    """Returns s = F'(n)^T g across one layer's activation (Eq. 3.46), and its dropout mask where it has one."""
    name = layer.name
    n, a = trace.net_inputs[name], trace.activations[name]
    if name in trace.dropped:
        mask, a = trace.dropped[name]
        g = g * mask
    return layer.activation.pullback(g, n, a, trace.kept.get(name), theta(layer, params[name], trace.activations))


def contract(network: Network, params: Params, trace: Trace, swept: Sweep, way: WayBack | None = None) -> Params:
    """Returns the gradient from sensitivities and trace (Eq. 3.39, 3.40), in the parameters' structure."""
    gradients = {}
    for layer in network.layers:
        own, s = params[layer.name], swept.sensitivities[layer.name]
        gradient = {"weights": {source: by.outer(s, trace.activations[source]) for source, by in layer.weighted}}
        if layer.bias != "none":
            gradient["bias"] = factors.total(Factors(s, None), own["bias"], layer.total)
        if swept.learned[layer.name]:
            shares = swept.learned[layer.name].items()
            gradient["learned"] = {name: factors.total(f, own["learned"][name], layer.total) for name, f in shares}
        if way is not None and way.of_layer[layer.name].learn is not None:
            gradient = way.of_layer[layer.name].learn(way.place(layer), gradient)
        gradients[layer.name] = gradient | {name: no_gradient(x) for name, x in own.items() if name not in gradient}
    return gradients


def no_gradient(tree: Any) -> Any:
    """Returns zeros: for statistics, which are not trained, and for what another rule learns."""
    return jax.tree.map(jnp.zeros_like, tree)


def check_trainable(network: Network, rule: Rule | rules.ByLayer = rules.exact) -> Network:
    """Returns the network as the way back sees it.

    Raises ValueError where an activation has no derivative to propagate through and the rule supplies none, and where
    the rule does not support the network.
    """
    rules.of_layers(rule, network)
    network = rules.rewritten(rule, network)
    if all(own.has_derivatives for own in rules.rules_in(rule)):
        for layer in network.layers:
            if layer.activation.pullback is None:
                raise ValueError(
                    f"layer {layer.name!r}: {layer.activation.name!r} has no derivative, so nothing can be trained "
                    "through it; use a differentiable activation such as 'sigmoid' or 'tanh', rule='surrogate', which "
                    "supplies a derivative, or train a single layer of it with fit's gradient='perceptron'"
                )
    return network
