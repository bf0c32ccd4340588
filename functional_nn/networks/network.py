r"""Layer and Network: a feedforward graph in topological order, as data. Its parameters are a plain pytree apart from
it.

Letters: Q examples, R inputs, S neurons, k pieces a neuron (of maxout), P positions along each axis of a signal.
Batches are rows, and weights are (S_out, S_in) as in the texts. A layer adds what its sources contribute
(Hagan Eq. 3.3; P3.2 for several sources):

.. math::

    n = \sum_{\text{sources}} a_{\text{source}} W_{\text{source}}^T + b, \qquad a = f(n)

Connections other than the dense one may read a signal, `(Q, *P, R)` with channels last, and n is then a signal too,
`(Q, *P', S)`: an image is (Q, height, width, channels), a vector (Q, R).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from functional_nn import checks, precision, registry
from functional_nn.networks import activations, connections, initializers, losses
from functional_nn.networks.activations import Activation
from functional_nn.networks.connections import Connection, Shape, dense
from functional_nn.networks.initializers import Initializer
from functional_nn.networks.losses import Loss
from functional_nn.networks.stored import placed

Bias = Literal["per_neuron", "per_position", "shared", "none"]
Params = dict[str, dict]
Inputs = Array | np.ndarray | Mapping[str, Array | np.ndarray]


class Trace(NamedTuple):
    """What the forward pass computes and the backward pass reads.

    Attributes:
        net_inputs: {layer: `(Q, *P, S)`}; `(Q, *P, S k)` where a neuron has k pieces.
        activations: {layer: `(Q, *P, S)`}, and the network's inputs under their own names, (Q, R): a^0 = p (Hagan Eq.
            3.2). Where neurons were dropped, these are what the next layers read.
        dropped: {layer: Dropped} of the layers in which neurons were dropped.
        kept: {layer: what the derivatives of its activation use again}, of the layers that keep something.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> trace = network.forward(network.init(jax.random.key(0)), jax.numpy.ones((5, 3)))
        >>> trace.net_inputs["layer1"].shape, sorted(trace.activations)
        ((5, 4), ['input', 'layer1', 'layer2'])
    """

    net_inputs: dict[str, Array]
    activations: dict[str, Array]
    dropped: dict[str, "Dropped"]
    kept: Mapping[str, Any] = MappingProxyType({})


class Dropped(NamedTuple):
    """Dropout in one layer.

    Attributes:
        mask: `(Q, *P, S)` of 0 and 1 / (1 - rate).
        activations: f(n) before the mask, of the same shape.
    """

    mask: Array
    activations: Array


@dataclass(frozen=True)
class Layer:
    """One summing junction and its activation: n = sum over sources of W a + b, a = f(n).

    Attributes:
        name: the layer's name in `params`, in `Trace` and in messages; it has no "/".
        size: S, the number of neurons; for a signal the number at each position, which is its channels.
        activation: a name such as "tanh" or "maxout(3)", or an `Activation`.
        sources: names of inputs and earlier layers, whose contributions add; `multilayer` fills them in. A bare name is
            read by `connections.dense`. A pair such as ("image", connections.conv((3, 3))) or ("image", "conv((3, 3))")
            names the connection that reads it.
        bias: "per_neuron" (S,), which all positions share; "per_position" `(*P, S)`; "shared" by the whole layer (1,)
            (Kordecki); or "none".
        initializer: a name or an `Initializer`; by default the one that suits the activation.
        dropout: the rate in [0, 1) at which neurons are dropped in training, which is wherever a key is passed. The
            others are divided by 1 - rate, so that nothing changes where none is dropped (Srivastava et al. 2014,
            section 10).
        connections: the connections of the sources that are bare names; by default all dense.
        lengths: the name of an input, declared with the shape (), whose integers (Q,) are the numbers of positions that
            count in each example. Attention, the recurrences and mean_pool read it. None: all positions count.

    Raises:
        ValueError: the size is < 1, a name is unknown, the initializer does not suit the bias, or the rate is out of
            range.
        TypeError: a source is neither a name nor a pair, or lengths is not a name.

    Example:
        >>> import functional_nn as fnn
        >>> layer = fnn.Layer("hidden", 4, "tanh", sources=("p1", ("image", "conv((3, 3))")), dropout=0.5)
        >>> layer.sources, layer.is_dense
        (('p1', 'image'), False)
    """

    name: str
    size: int
    activation: Activation | str = "linear"
    sources: Sequence[str | tuple[str, Connection | str]] = ()  # a tuple, once checked
    bias: Bias = "per_neuron"
    initializer: Initializer | str | None = None
    dropout: float = 0.0
    connections: tuple[Connection, ...] = field(default=(), repr=False)
    lengths: str | None = None

    def __post_init__(self):
        activation = activations.get(self.activation)
        initializer = initializers.get(self.initializer or activation.initializer)

        def set_field(name, value):
            object.__setattr__(self, name, value)  # the class is frozen

        set_field("activation", activation)
        set_field("initializer", initializer)
        for name, value in zip(("sources", "connections"), _read_by(self), strict=True):
            set_field(name, value)
        rate = checks.constant(
            f"layer {self.name!r}", "dropout", self.dropout, lambda r: (r >= 0) & (r < 1), "in [0, 1)"
        )
        set_field("dropout", rate)
        _check_name("layer", self.name)
        _check_size(f"layer {self.name!r}", self.size)
        _check_learned(self.name, self.size, activation)
        if self.lengths is not None and not activation.by_length:
            raise ValueError(
                f"layer {self.name!r}: {activation.name} does not read lengths; attention, recurrences and mean_pool do"
            )
        if not (self.lengths is None or isinstance(self.lengths, str)):
            raise TypeError(f"layer {self.name!r}: lengths must be the name of an input, got {self.lengths!r}")
        if self.bias not in Bias.__args__:
            raise ValueError(f"layer {self.name!r}: " + registry.unknown("bias", str(self.bias), Bias.__args__))
        if initializer.sets_bias and self.bias == "shared":
            raise ValueError(
                f"layer {self.name!r}: initializer {initializer.name!r} gives every neuron its own bias; "
                "bias must be 'per_neuron', 'per_position' or 'none', got 'shared'"
            )

    def __repr__(self) -> str:
        left_out = {"connections": self.is_dense, "lengths": self.lengths is None}
        shown = [field for field in dataclasses.fields(self) if not left_out.get(field.name)]
        return f"Layer({', '.join(f'{field.name}={vars(self)[field.name]!r}' for field in shown)})"

    @property
    def rows(self) -> int:
        """The number of net inputs of the layer at each position: S, or S k for maxout."""
        return self.size * self.activation.pieces

    @property
    def reads(self) -> tuple[tuple[str, Connection], ...]:
        """Each source with the connection that reads it."""
        return tuple(zip(self.sources, self.connections, strict=True))

    @property
    def is_dense(self) -> bool:
        """True if every source is read by `dense`, which is the default."""
        return all(by is dense for by in self.connections)

    @property
    def weighted(self) -> tuple[tuple[str, Connection], ...]:
        """The pairs of `reads` whose connection has weights."""
        return tuple((source, by) for source, by in self.reads if by.outer is not None)

    def total(self, s: Array) -> Array:
        """Returns sum_q s_q (S,), which the bias gets.

        Args:
            s: sensitivities (Q, S) in the memory order of the layer's connections.
        """
        return self.connections[0].total(s)


@dataclass(frozen=True)
class Network:
    """A feedforward graph: a frozen, hashable description, made by `multilayer` or `graph`. It holds no parameters.

    Attributes:
        inputs: ((name, R), ...) for vectors; the shape `(*P, R)` of one example for signals, `(*P,)` for tokens.
        layers: in an order in which every layer reads only what comes before it; the last is the output.
        shapes: {name: the shape of one example's signal} of all inputs and layers.
        net_shapes: {layer: the shape of one example's net inputs}.
        tokens: {input: the number of different tokens} of the inputs that are integers.
        lengths: the names of the inputs that are numbers of positions, (Q,).

    Raises:
        ValueError: the graph is inconsistent. The message says where.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params = network.init(jax.random.key(0))
        >>> params["layer1"]["weights"]["input"].shape, params["layer1"]["bias"].shape
        ((4, 3), (4,))
        >>> network.apply(params, jax.numpy.ones((5, 3))).shape
        (5, 2)
    """

    inputs: tuple[tuple[str, int | Shape], ...]
    layers: tuple[Layer, ...]
    shapes: Mapping[str, Shape] = field(init=False, repr=False, compare=False)
    net_shapes: Mapping[str, Shape] = field(init=False, repr=False, compare=False)
    tokens: Mapping[str, int] = field(init=False, repr=False, compare=False)
    lengths: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        def set_field(name, value):
            object.__setattr__(self, name, value)  # the class is frozen

        shapes = [(name, _input_shape(name, shape)) for name, shape in self.inputs]
        set_field("inputs", tuple((name, shape[0] if len(shape) == 1 else shape) for name, shape in shapes))
        _check_graph(self.inputs, self.layers)
        set_field("lengths", frozenset(layer.lengths for layer in self.layers if layer.lengths))
        set_field("tokens", _tokens(self.inputs, self.layers))
        set_field("shapes", dict(shapes))
        set_field("net_shapes", {})
        for layer in self.layers:
            n = _net_shape(layer, self.shapes)
            self.net_shapes[layer.name], self.shapes[layer.name] = n, _output_shape(layer, n)
        for name in self.lengths:
            self.tokens[name] = 1 + _longest(name, self.layers, self.net_shapes)

    @property
    def output(self) -> Layer:
        """The layer whose activations are the network's outputs."""
        return self.layers[-1]

    @property
    def sizes(self) -> dict[str, int]:
        """{name: how many numbers one example's signal has} of the inputs and layers."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    @property
    def trace_size(self) -> int:
        """How many numbers one example's trace has: net inputs, outputs, and what activations keep for their
        derivatives.
        """
        signals = (self.shapes[layer.name] for layer in self.layers)
        kept = (activations.kept_size(layer.activation, self.net_shapes[layer.name]) for layer in self.layers)
        return sum(map(math.prod, (*self.net_shapes.values(), *signals))) + sum(kept)

    @property
    def drops(self) -> bool:
        """True if some layer has dropout: training then needs a key for each update."""
        return any(layer.dropout for layer in self.layers)

    def init(self, key: Array, dtype: DTypeLike | None = None) -> Params:
        """Returns parameters at the start of training.

        Args:
            key: a JAX random key.
            dtype: float64, float32, bfloat16 or float16; by default JAX's default float.

        Returns:
            {layer: {"weights": {source: (S, S_source)}, "bias": (S,) or (1,), ...}}. Weights have the shape that their
            connection needs, `(S, *kernel, S_source)` for a convolution. Sources that are read without weights have
            none, and layers without bias have no "bias". Learned parameters of an activation are under "learned", such
            as {"slope": (S,) or (1,)} of prelu; the running statistics of batch_norm are under "statistics".

        Raises:
            ValueError: dtype is float64 and `jax_enable_x64` is off, or it is no float.
        """
        dtype = precision.default() if dtype is None else precision.available(dtype)
        keys = jax.random.split(key, len(self.layers))
        return {layer.name: self._init_layer(layer, key, dtype) for layer, key in zip(self.layers, keys, strict=True)}

    def fans(self, layer: Layer) -> tuple[dict[str, Shape], dict[str, int], int]:
        """Returns the shapes of a layer's weights, its fan-in from each source, and its fan-out.

        Args:
            layer: one of the network's layers.

        Returns:
            {source: shape of its weights}; {source: how many of its numbers reach a net input}, whose sum is the
            layer's fan-in; and the fan-out.
        """
        shapes = {source: by.shapes(self.shapes[source], layer.rows)[1] for source, by in layer.weighted}
        fans = {source: by.fans(shapes[source]) for source, by in layer.weighted}
        fan_out = max((out for _, out in fans.values()), default=layer.rows) // layer.activation.pieces
        return shapes, {source: into for source, (into, _) in fans.items()}, fan_out

    def _init_layer(self, layer: Layer, key: Array, dtype) -> dict:
        shapes, fans, fan_out = self.fans(layer)
        fan_in = sum(fans.values())
        weights, bias = layer.initializer.draw(key, layer.rows, fan_in, fan_out, dtype) if fans else (None, None)
        params, drawn = {"weights": {}}, 0
        for number, (source, shape) in enumerate(shapes.items()):
            columns = slice(drawn, drawn + fans[source])
            drawn, many = columns.stop, math.prod(shape[1:]) // fans[source]
            own = weights[:, columns]
            if many > 1:  # only one of them is read at a time, as in an embedding: each is drawn by itself
                keys = jax.random.split(jax.random.fold_in(key, number), many)

                def draw(key, columns=columns):
                    return layer.initializer.draw(key, layer.rows, fan_in, fan_out, dtype)[0][:, columns]

                own = jnp.moveaxis(jax.vmap(draw)(keys), 0, 1)
            params["weights"][source] = own.reshape(shape)
        if layer.bias != "none":
            bias = jnp.zeros(layer.rows, dtype) if bias is None else bias
            shape = _bias_shape(layer, self.net_shapes[layer.name])
            params["bias"] = bias[:1] if layer.bias == "shared" else jnp.broadcast_to(bias, shape)
        if layer.activation.parameters:
            own = jax.random.fold_in(key, len(layer.reads))  # no source of many columns has this number
            params["learned"] = activations.learned_at_start(layer.activation, layer.size, dtype, own)
        if layer.activation.statistics:
            params["statistics"] = layer.activation.statistics(layer.size, dtype)
        return params

    def apply(self, params: Params, inputs: Inputs) -> Array:
        """Returns the outputs, `(Q, *P, S)`.

        They are those of `inference_mode`: batch normalization uses its running statistics, so that each example's
        outputs do not depend on the others.

        Args:
            params: as `init` returns them.
            inputs: `(Q, *P, R)`, or {name: `(Q, *P, R)`} of several inputs.

        Raises:
            ValueError: as `forward`, and if batch normalization has no running statistics yet.
        """
        check_statistics(self, params)
        return inference_mode(self).forward(params, inputs).activations[self.output.name]

    def forward(
        self, params: Params, inputs: Inputs, offsets: Mapping[str, Array] | None = None, key: Array | None = None
    ) -> Trace:
        """Returns the trace of the forward pass: everything it computed (Hagan Eq. 3.2-3.4).

        Batch normalization uses the batch's own statistics, as in training. Everything is computed in the dtype of the
        parameters, to which the inputs are converted.

        Args:
            params: as `init` returns them.
            inputs: `(Q, *P, R)`, or {name: `(Q, *P, R)`} of several inputs.
            offsets: {layer: `(Q, *P, rows)`}, added to its net inputs. The derivative with respect to an offset of 0 is
                the layer's sensitivity.
            key: draws which neurons are dropped in layers with dropout. Without it none are dropped.

        Raises:
            ValueError: inputs or parameters have wrong names or shapes, or concrete inputs are not finite.
        """
        inputs, offsets = self.prepare(params, inputs), offsets or {}
        examples = next(iter(inputs.values())).shape[0]
        for name, offset in offsets.items():
            if name not in self.net_shapes:
                raise ValueError("offsets: " + registry.unknown("layer", name, self.net_shapes))
            expected = (examples, *self.net_shapes[name])
            if offset.shape != expected:
                raise ValueError(f"offsets[{name!r}]: expected shape {expected}, got {offset.shape}")
        return forward(self, params, inputs, offsets, key)

    def prepare(self, params: Params, inputs: Inputs, place: Callable[[Array, Any], Any] = placed) -> dict[str, Array]:
        """Returns checked inputs by name, `(Q, *P, R)` each, in the dtype of the parameters; tokens as int32.

        Args:
            params: as `init` returns them.
            inputs: `(Q, *P, R)`, or {name: `(Q, *P, R)`} of several inputs.
            place: place(x, dtype) moves numbers to the device; `stored.in_place` leaves large arrays where they are.

        Raises:
            ValueError: as `forward`.
        """
        check_params(self, params)
        dtype = dtype_of(params)
        by_name = inputs if isinstance(inputs, Mapping) else {self.inputs[0][0]: inputs}
        if set(by_name) != {name for name, _ in self.inputs}:
            given = sorted(inputs) if isinstance(inputs, Mapping) else "a single array"
            raise ValueError(f"inputs: expected {_inputs_expected(self)}, got {given}")
        prepared = {}
        for name, _ in self.inputs:
            label = f"inputs[{name!r}]" if isinstance(inputs, Mapping) else "inputs"
            kind = "lengths" if name in self.lengths else "tokens"
            prepared[name] = _batch(label, by_name[name], self.shapes[name], dtype, self.tokens.get(name), kind, place)
        examples = {name: x.shape[0] for name, x in prepared.items()}
        if len(set(examples.values())) > 1:
            raise ValueError(f"inputs: expected the same number of examples in each, got {examples}")
        return prepared

    def prepare_weights(self, inputs: dict[str, Array], weights: Array | np.ndarray | None) -> Array | None:
        """Returns checked weights of the examples, in at least float32. True and False count as 1 and 0.

        Args:
            inputs: as `prepare` returns them.
            weights: (Q,), or one for each position of the outputs, `(Q, *P)`; None is returned unchanged.

        Raises:
            ValueError: the shape is another, or concrete weights are negative, not finite or all 0.
        """
        if weights is None:
            return None
        examples = _count(inputs)
        checks.numeric("weights", weights)
        each = (examples, *self.shapes[self.output.name][:-1])
        if weights.shape not in (each[:1], each):
            positions = f", or {each}, one for each position," if len(each) > 1 else ","
            raise ValueError(f"weights: expected shape {each[:1]}, one for each example{positions} got {weights.shape}")
        checks.finite("weights", weights)
        if checks.is_concrete(weights):
            if (np.asarray(weights) < 0).any():
                raise ValueError(f"weights: expected numbers >= 0, got {np.min(np.asarray(weights))}")
            if not np.asarray(weights).any():
                raise ValueError("weights: expected at least one above 0, got none")
        return jnp.asarray(weights, precision.at_least_float32(_float_of(inputs)))

    def prepare_targets(
        self,
        inputs: dict[str, Array],
        targets: Array | np.ndarray,
        loss: Loss | None = None,
        dtype: DTypeLike | None = None,
        place: Callable[[Array, Any], Any] = placed,
    ) -> Array:
        """Returns checked targets of the shape of the outputs, `(Q, *P, S)`.

        Args:
            inputs: as `prepare` returns them.
            targets: `(Q, *P, S)`, or integer labels `(Q, *P)`, which are coded as `loss` needs them.
            loss: decides how labels are coded; one-hot if None.
            dtype: of the result; by default that of `inputs`, or JAX's default float if all inputs are tokens.
            place: as in `prepare`.

        Raises:
            ValueError: the shape is another, or labels are out of range.
        """
        examples, dtype = _count(inputs), dtype or _float_of(inputs)
        checks.numeric("targets", targets, dtype)
        expected = (examples, *self.shapes[self.output.name])
        if targets.shape == expected[:-1] and targets.dtype.kind in "biu":
            targets = losses.coded(loss, targets, self.output.size)
        if targets.shape != expected:
            labels = targets.dtype.kind in "iu" and self.output.size > 1
            shape = f"({', '.join(['Q', *map(str, expected[1:-1])])}{',' if len(expected) == 2 else ''})"
            hint = f"; integers {shape} are taken for classes, and fnn.one_hot turns them into rows" if labels else ""
            raise ValueError(f"targets: expected shape {expected} to match the outputs, got {targets.shape}{hint}")
        checks.finite("targets", targets)
        return place(targets, dtype)


def _count(inputs: dict[str, Array]) -> int:
    return next(iter(inputs.values())).shape[0]


def _float_of(inputs: dict[str, Array]) -> Any:
    """The dtype of the inputs that are not tokens; JAX's default float where all are tokens."""
    return next((x.dtype for x in inputs.values() if x.dtype.kind not in "iu"), precision.default())


def multilayer(
    sizes: Sequence[int],
    activations: Sequence[str | Activation],
    *,
    bias: Bias | Sequence[Bias] = "per_neuron",
    initializer: str | Initializer | Sequence[str | Initializer | None] | None = None,
    dropout: float | Sequence[float] = 0.0,
) -> Network:
    """Returns a chain of layers, each reading the one before.

    The layers are called layer1, layer2, ...; the input is called input.

    Args:
        sizes: the number of inputs, and the number of neurons of each layer.
        activations: a name or an `Activation` for each layer.
        bias: one for all layers or one for each: "per_neuron", "per_position", "shared" or "none", as in `Layer`.
        initializer: one for all layers or one for each; None takes the one that suits the activation.
        dropout: one rate for each layer; a single rate is that of all layers but the last.

    Returns:
        The `Network`.

    Raises:
        ValueError: the counts do not match, or a layer is refused as in `Layer`.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.multilayer((64, 32, 10), activations=("tanh", "softmax"), dropout=0.2)
        >>> [(layer.name, layer.size, layer.dropout) for layer in network.layers]
        [('layer1', 32, 0.2), ('layer2', 10, 0.0)]
    """
    count = len(sizes) - 1
    if count < 1:
        raise ValueError(f"sizes: expected the input's size and at least one layer's, got {tuple(sizes)}")
    if isinstance(activations, str | Activation):
        raise ValueError(f"activations: expected {count}, one for each layer, got the single {activations!r}")
    if np.ndim(dropout) == 0:
        dropout = (dropout,) * (count - 1) + (0.0,)
    each = {"activations": activations, "bias": bias, "initializer": initializer, "dropout": dropout}
    for name, value in each.items():
        if value is None or isinstance(value, str | Initializer):
            each[name] = (value,) * count
        elif len(value) != count:
            raise ValueError(f"{name}: expected {count}, one for each layer, got {len(value)}")
    names = ["input"] + [f"layer{m}" for m in range(1, count + 1)]
    columns = (each[name] for name in ("activations", "bias", "initializer", "dropout"))
    layers = tuple(
        Layer(name, size, activation, (source,), *rest)
        for name, size, source, activation, *rest in zip(names[1:], sizes[1:], names, *columns, strict=False)
    )
    return Network((("input", sizes[0]),), layers)


def graph(*, inputs: Mapping[str, int | Shape], layers: Sequence[Layer]) -> Network:
    """Returns any feedforward graph of layers.

    Args:
        inputs: {name: R}, or {name: the shape `(*P, R)` of one example}.
        layers: each after the layers it reads; the last layer is the output.

    Returns:
        The `Network`.

    Raises:
        ValueError: a name is used twice, a layer reads what does not exist or comes later, an input or layer is not
            read, or a connection cannot read a signal.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.graph(
        ...     inputs={"image": (8, 8, 1)},
        ...     layers=[
        ...         fnn.Layer("conv", 4, "relu", sources=[("image", "conv((3, 3), stride=2)")]),
        ...         fnn.Layer("deep", 4, "linear", sources=[("conv", "conv((3, 3))")]),
        ...         fnn.Layer("block", 4, "relu", sources=[("deep", "identity"), ("conv", "identity")], bias="none"),
        ...         fnn.Layer("output", 10, "softmax", sources=[("block", "full")]),
        ...     ],
        ... )
        >>> network.shapes["block"]
        (4, 4, 4)
    """
    return Network(tuple(inputs.items()), tuple(layers))


def for_lanes(network: Network, columns: bool) -> Network:
    """Returns the same network with the connections that suit populations; columns: those in the memory order for
    CPUs.
    """

    def suited(by: Connection) -> Connection:
        return by.in_lanes or (by.twin if columns else None) or by

    layers = (dataclasses.replace(layer, connections=tuple(map(suited, layer.connections))) for layer in network.layers)
    return Network(network.inputs, tuple(layers))


def forward(
    network: Network,
    params: Params,
    inputs: dict[str, Array],
    offsets: Mapping[str, Array],
    key: Array | None = None,
) -> Trace:
    """`Network.forward` without its checks, for inputs that `Network.prepare` returned."""
    net_inputs, outputs, dropped, kept = {}, dict(inputs), {}, {}
    for number, layer in enumerate(network.layers):
        name, own = layer.name, params[layer.name]
        terms = [by.forward(outputs[source], weights_of(own, source, by)) for source, by in layer.reads]
        n = plus_bias(sum(terms[1:], start=terms[0]), own)  # Hagan P3.2: whatever enters the junction is just added
        if name in offsets:
            n = n + offsets[name]
        a, keeps = layer.activation.forward(n, theta(layer, own, outputs))
        if layer.lengths is not None:  # one out of range, which is found only here under jit, gives nan as a token does
            outside = outputs[layer.lengths] < 0
            a = jnp.where(jnp.expand_dims(outside, tuple(range(1, a.ndim))), jnp.asarray(jnp.nan, a.dtype), a)
        if keeps is not None:
            kept[name] = keeps
        if layer.dropout and key is not None:
            stays = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - layer.dropout, a.shape)
            mask = jnp.where(stays, jnp.asarray(1 / (1 - layer.dropout), a.dtype), 0)
            dropped[name] = Dropped(mask, a)
            a = a * mask
        net_inputs[name], outputs[name] = n, a
    return Trace(net_inputs, outputs, dropped, kept)


def weights_of(layer_params: dict, source: str, by: Connection) -> Array | None:
    """Returns the weights by which a source is read; None for a connection without weights.

    A layer may read the same source by both kinds of connections.
    """
    return None if by.outer is None else layer_params["weights"][source]


def plus_bias(n: Array, layer_params: dict) -> Array:
    """Returns n + b where the layer has a bias, the same at every position or one for each; else n."""
    if "bias" not in layer_params:
        return n
    bias = layer_params["bias"]
    return n + lax.expand_dims(bias, tuple(range(n.ndim - bias.ndim)))


def theta(layer: Layer, layer_params: dict, signals: Mapping[str, Array] = MappingProxyType({})) -> dict[str, Array]:
    """Returns what the layer's activation reads in addition to its net inputs: {} for most.

    These are its learned parameters, its statistics, and the "lengths" (Q,) of the examples, from the network's
    signals. A tangent has no signals.
    """
    found = layer_params.get("learned", {}) | layer_params.get("statistics", {})
    return found | {"lengths": signals[layer.lengths]} if layer.lengths in signals else found


@functools.lru_cache(maxsize=256)
def inference_mode(network: Network) -> Network:
    """Returns the network as it predicts: batch normalization by its running statistics.

    Each example's outputs then do not depend on the others, so that every per-example quantity is defined. The same
    parameters fit both networks.

    Args:
        network: any network.

    Returns:
        The network for prediction; the network itself if it has no batch normalization.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("batch_norm", "softmax"))
        >>> fnn.inference_mode(network).layers[0].activation.alone
        True
        >>> plain = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> fnn.inference_mode(plain) == plain
        True
    """
    if not any(layer.activation.running for layer in network.layers):
        return network
    layers = (
        dataclasses.replace(layer, activation=layer.activation.running.inference) if layer.activation.running else layer
        for layer in network.layers
    )
    return Network(network.inputs, tuple(layers))


def check_statistics(network: Network, params: Params) -> None:
    """Raises ValueError if batch normalization has seen no batch yet."""
    if inference_mode(network) is network:
        return
    check_params(network, params)
    for layer in network.layers:
        if layer.activation.running:
            count = params[layer.name]["statistics"]["count"]
            if checks.is_concrete(count) and not np.asarray(count).any():
                raise ValueError(
                    f"layer {layer.name!r}: {layer.activation.name} has no running statistics yet, which "
                    "normalize its outputs; train the network with fit, or use the batch's own by network.forward"
                )


def renewed(network: Network, params: Params, trace: Trace) -> Params:
    """Returns the parameters with the running statistics updated by one more batch, whose trace this is."""
    params = dict(params)
    for layer in network.layers:
        if layer.activation.running:
            own = params[layer.name]
            after = layer.activation.running.after(own["statistics"], trace.kept[layer.name])
            params[layer.name] = own | {"statistics": after}
    return params


NOT_MOVED = ("statistics", "feedback")  # parameters of a layer with respect to which F has no derivative


def moved(layer_params: dict) -> dict:
    """Returns the entries of a layer's parameters, or of their gradient, with respect to which F has a derivative."""
    return {name: x for name, x in layer_params.items() if name not in NOT_MOVED}


def dtype_of(params: Params) -> np.dtype:
    """Returns the dtype of the parameters, which is the network's."""
    return jax.tree_util.tree_leaves(params)[0].dtype


# what a learning rule learns, which knows its shapes; the forward pass does not read it
_FEEDBACK = re.compile(r"[^/]+/feedback(/|$)")


def check_params(network: Network, params: Params) -> None:
    """Raises ValueError at the first parameter whose place, shape or dtype is not the network's."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected the dict that Network.init returns, got {type(params).__name__}")
    given = checks.by_path(params)
    try:
        shapes = {path: leaf.shape for path, leaf in given.items() if not _FEEDBACK.match(path)}
    except AttributeError:
        raise TypeError("params: expected a dict of arrays as Network.init returns") from None
    checks.same_shapes("params", shapes, param_shapes(network), "the network")
    for layer in network.layers:
        if not isinstance(params.get(layer.name), Mapping) or "weights" not in params[layer.name]:
            raise ValueError(
                f"params: {layer.name}/weights is missing; a layer without weights has an empty dict there"
            )
    dtypes = {str(leaf.dtype) for leaf in given.values()}
    if len(dtypes) > 1:
        raise ValueError(f"params: expected one dtype throughout, got {', '.join(sorted(dtypes))}")


def param_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} of every parameter, such as "layer1/weights/input"."""
    return checks.shapes(abstract_params(network, jnp.float32))


@functools.lru_cache(maxsize=256)
def abstract_params(network: Network, dtype) -> Params:
    """Returns what `init` returns as shapes and dtypes, without drawing anything."""
    return jax.eval_shape(lambda: network.init(jax.random.key(0), dtype))


def _batch(label: str, x: Array, shape: Shape, dtype, tokens: int | None, kind: str, place: Callable) -> Array:
    checks.numeric(label, x, dtype)
    if x.shape[1:] != shape or x.ndim == 0:
        raise ValueError(f"{label}: expected shape {_of_batch(shape)}, got {x.shape}")
    if x.shape[0] == 0:
        raise ValueError(f"{label}: expected at least one example, got shape {x.shape}")
    if tokens is not None:
        return _tokens_of(label, x, tokens, kind)
    checks.finite(label, x)
    checks.representable(label, x, dtype)
    return place(x, dtype)


def _tokens_of(label: str, x: Array, tokens: int, kind: str) -> Array:
    if x.dtype.kind not in "iu":
        raise ValueError(f"{label}: expected {kind}, integers 0 to {tokens - 1}, got dtype {x.dtype}")
    if checks.is_concrete(x):
        index = checks.first(x, lambda block: (block < 0) | (block >= tokens))
        if index is not None:
            raise ValueError(f"{label}: expected {kind} 0 to {tokens - 1}, got {np.asarray(x)[index]} at index {index}")
    # a number that does not fit into 32 bits would become another token
    return jnp.where((x >= 0) & (x < tokens), jnp.asarray(x).astype(jnp.int32), -1)


def _of_batch(shape: Shape) -> str:
    return f"({', '.join(['Q', *map(str, shape)])}{'' if shape else ','})"


def _inputs_expected(network: Network) -> str:
    return "{" + ", ".join(f"{name!r}: {_of_batch(network.shapes[name])}" for name, _ in network.inputs) + "}"


def _check_name(kind: str, name: str) -> None:
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"{kind} name: expected a non-empty string without '/', got {name!r}")


_LARGEST = 2**31 - 1  # XLA's indices are of 32 bits


def _check_size(label: str, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"{label}: size must be an integer >= 1, got {size!r}")
    if size > _LARGEST:
        raise ValueError(f"{label}: size must be at most {_LARGEST}, got {size}")


def _check_learned(layer: str, size: int, activation: Activation) -> None:
    if activation.parameters:
        try:
            learned = jax.eval_shape(lambda: activations.learned_at_start(activation, size, jnp.float32))
        except ValueError as error:
            raise ValueError(f"layer {layer!r}: its activation {activation.name} {error}") from None
        for name in learned:
            if "/" in name:
                raise ValueError(
                    f"layer {layer!r}: activation {activation.name!r} calls a learned parameter {name!r}; it needs "
                    "another name, since '/' separates names"
                )


def _read_by(layer: Layer) -> tuple[tuple[str, ...], tuple[Connection, ...]]:
    """The names of a layer's sources, and the connection of each, from the pair or from `connections`."""
    given = layer.sources if isinstance(layer.sources, tuple | list) else (layer.sources,)
    for source in (source for source in given if not isinstance(source, str)):
        pair = isinstance(source, tuple | list) and len(source) == 2 and isinstance(source[0], str)
        if not pair or not isinstance(source[1], str | Connection):
            raise TypeError(
                f"layer {layer.name!r}: sources are names, or pairs of a name and a connection such as "
                f"('image', 'conv((3, 3))'), in a list; got {source!r}"
            )
    names = tuple(source if isinstance(source, str) else source[0] for source in given)
    by = (dense,) * len(given) if all(each is dense for each in layer.connections) else tuple(layer.connections)
    if len(by) != len(given):
        raise ValueError(f"layer {layer.name!r}: expected {len(given)} connections, one for each source, got {len(by)}")
    try:
        pairs = zip(given, by, strict=True)
        return names, tuple(connections.get(own if isinstance(source, str) else source[1]) for source, own in pairs)
    except ValueError as error:
        raise ValueError(f"layer {layer.name!r}: {error}") from None


def _input_shape(name: str, shape: int | Sequence[int]) -> Shape:
    _check_name("input", name)
    shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    for size in shape:
        _check_size(f"input {name!r}", size)
    return tuple(map(int, shape))


def _net_shape(layer: Layer, shapes: Mapping[str, Shape]) -> Shape:
    """The shape of a layer's net inputs; ValueError if the shapes that it adds differ."""
    label, entering = f"layer {layer.name!r}", {}
    for source, by in layer.reads:
        try:
            entering[source] = by.shapes(shapes[source], layer.rows)[0]
        except ValueError as error:
            raise ValueError(f"{label} reads {source!r} by {by.name}, which {error}") from None
    shapes_read = ", ".join(f"{source!r} by {by.name} {entering[source]}" for source, by in layer.reads)
    if len(set(entering.values())) > 1:
        raise ValueError(f"{label}: the terms it adds must have one shape, but it gets {shapes_read}")
    shape = entering[layer.sources[0]]
    if shape[-1] != layer.rows:
        pieces = f" of {layer.activation.pieces} pieces" if layer.activation.pieces > 1 else ""
        raise ValueError(f"{label} has {layer.size} neurons{pieces}, but gets {shapes_read}")
    return shape


def _output_shape(layer: Layer, n: Shape) -> Shape:
    """The shape of a layer's outputs."""
    if layer.activation.alone:
        return (*n[:-1], layer.size)
    try:
        return activations.output_shape(layer.activation, n)
    except ValueError as error:
        raise ValueError(f"layer {layer.name!r}: its activation {layer.activation.name} {error}") from None


def _bias_shape(layer: Layer, n: Shape) -> Shape:
    return {"per_neuron": n[-1:], "per_position": n, "shared": (1,)}[layer.bias]


def _tokens(inputs: tuple[tuple[str, int | Shape], ...], layers: tuple[Layer, ...]) -> dict[str, int]:
    """How many different tokens there are, for each input that is read as tokens."""
    counts: dict[str, int] = {}
    lengths = {layer.lengths for layer in layers}
    for name, shape in inputs:
        if (shape == ()) != (name in lengths):
            raise ValueError(
                f"input {name!r}: the shape (), one number an example, is that of lengths, and only of lengths, which "
                f"layers with lengths={name!r} read; got {shape}"
            )
        if name in lengths:
            continue
        limits = {by.tokens for layer in layers for source, by in layer.reads if source == name}
        if limits != {None} and None in limits:
            raise ValueError(f"input {name!r} is read as tokens by one layer and as numbers by another; name it twice")
        if None not in limits:
            counts[name] = min(limits)
    for layer in layers:
        for source, by in layer.reads:
            if by.tokens is not None and source in lengths:
                raise ValueError(
                    f"layer {layer.name!r} reads the lengths {source!r} by {by.name}: they are not a signal"
                )
            if by.tokens is not None and source not in counts:
                raise ValueError(
                    f"layer {layer.name!r} reads {source!r} by {by.name}: only inputs can be integers, not layers"
                )
    return counts


def _longest(name: str, layers: tuple[Layer, ...], net_shapes: Mapping[str, Shape]) -> int:
    """The number of positions of the layers that read these lengths; ValueError if it is not the same in all."""
    positions = {layer.name: math.prod(net_shapes[layer.name][:-1]) for layer in layers if layer.lengths == name}
    if len(set(positions.values())) > 1:
        raise ValueError(
            f"input {name!r}: the layers that read lengths must have equally many positions, got {positions}"
        )
    return next(iter(positions.values()))


def _check_graph(inputs: tuple[tuple[str, int | Shape], ...], layers: tuple[Layer, ...]) -> None:
    """Raises ValueError if names or their order are wrong."""
    if not inputs or not layers:
        raise ValueError(f"a network needs at least one input and one layer, got {len(inputs)} and {len(layers)}")
    known: dict[str, None] = {}
    for name, _ in inputs:
        if name in known:
            raise ValueError(f"input {name!r} is named twice")
        known[name] = None
    later = {layer.name for layer in layers}
    for layer in layers:
        if layer.name in known:
            raise ValueError(f"layer {layer.name!r}: the name is already taken by an input or an earlier layer")
        if not layer.sources:
            raise ValueError(f"layer {layer.name!r} reads nothing; sources must name an input or an earlier layer")
        with_weights = [source for source, _ in layer.weighted]
        if len(set(with_weights)) < len(with_weights) or len(set(layer.reads)) < len(layer.reads):
            raise ValueError(f"layer {layer.name!r} reads a source twice: {layer.sources}")
        for source in layer.sources:
            if source in known:
                continue
            if source in later:
                raise ValueError(f"layer {layer.name!r} reads {source!r}, which does not come before it")
            problem = registry.unknown("source", source, known)
            if connections.knows(source):
                problem = f"a connection is given in a pair with what it reads, as in sources=[('x', {source!r})]"
            raise ValueError(
                f"layer {layer.name!r} reads {source!r}, which is not an input or an earlier layer: {problem}"
            )
        if layer.lengths is not None and layer.lengths not in {name for name, _ in inputs}:
            problem = registry.unknown("input", str(layer.lengths), [name for name, _ in inputs])
            raise ValueError(f"layer {layer.name!r}: lengths must be the name of an input: {problem}")
        known[layer.name] = None
    if layers[-1].dropout:
        raise ValueError(f"layer {layers[-1].name!r}: the output cannot drop neurons; dropout must be 0 there")
    read = {source for layer in layers for source in (*layer.sources, layer.lengths)}
    for name in known:
        if name not in read and name != layers[-1].name:
            raise ValueError(f"{name!r} is not read by any layer, so it cannot reach the output {layers[-1].name!r}")
    if not any(layer.weighted or layer.bias != "none" or layer.activation.parameters for layer in layers):
        raise ValueError("a network needs parameters, and none of these layers has weights or a bias")
