"""Layer and Network: a feedforward graph in topological order, as data; parameters are a plain pytree beside it.

Letters: Q examples, R inputs, S neurons, k pieces a neuron (of maxout), P positions along each axis of a signal.
Batches are rows, weights (S_out, S_in) as in the texts: n = sum over sources of a_source W_source^T, plus b; a = f(n).
(Hagan Eq. 3.3; P3.2 for several sources.) By other connections than the dense one what is read may be a signal, (Q, *P,
R), channels last, and n is one, (Q, *P', S): an image is (Q, height, width, channels), a vector (Q, R).
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

from functional_nn import checks, precision, registry
from functional_nn.networks import activations, connections, initializers, losses
from functional_nn.networks.activations import Activation
from functional_nn.networks.connections import Connection, Shape, dense
from functional_nn.networks.initializers import Initializer
from functional_nn.networks.losses import Loss
from functional_nn.networks.stored import placed

Bias = Literal["per_neuron", "per_position", "shared", "none"]
Params = dict[str, dict]
Inputs = Array | Mapping[str, Array]


class Trace(NamedTuple):
    """What the forward pass leaves behind for the backward one.

    net_inputs: {layer: (Q, *P, S)}, (Q, *P, S k) where a neuron has pieces; activations: the same for the outputs, (Q,
    *P, S), and for the network's inputs under their own names, (Q, R): a^0 = p (Hagan Eq. 3.2). dropped: {layer:
    Dropped} where neurons were dropped; there `activations` are what the next layers read. kept: {layer: what its
    activation's derivatives use again}, where there is any.
    """

    net_inputs: dict[str, Array]
    activations: dict[str, Array]
    dropped: dict[str, "Dropped"]
    kept: dict[str, Any] = MappingProxyType({})


class Dropped(NamedTuple):
    """Dropout in one layer: mask (Q, *P, S) of 0 and 1 / (1 - rate); activations f(n), as large, before it."""

    mask: Array
    activations: Array


@dataclass(frozen=True)
class Layer:
    """One summing junction and its activation: n = sum over sources of W a + b, a = f(n).

    size: S, how many neurons it has; of a signal, how many at each position, its channels.
    sources: names of inputs and earlier layers whose weighted contributions add; filled in for you in a chain. A bare
    name is read by `dense`; ("image", connections.conv((3, 3))) or ("image", "conv((3, 3))") by what stands beside it.
    bias: "per_neuron" (S,), which all positions share, "per_position" (*P, S), "shared" by the whole layer (1,)
    (Kordecki), or "none".
    initializer: a name or an Initializer; by default the activation's own.
    dropout: the rate in [0, 1) at which neurons are dropped in training, that is wherever a key is given; those left
    are divided by 1 - rate, so that nothing changes where none is (Srivastava et al. 2014, section 10).
    connections: by which each source is read, where not told beside it.
    lengths: the input, declared with the shape (), whose integers (Q,) say how many of an example's positions count;
    attention, the recurrences and mean_pool ask; None: all do.
    Raises ValueError for a size < 1, an unknown name, an initializer that the bias does not suit, another rate.
    """

    name: str
    size: int
    activation: Activation | str = "linear"
    sources: tuple[str | tuple[str, Connection | str], ...] = ()
    bias: Bias = "per_neuron"
    initializer: Initializer | str | None = None
    dropout: float = 0.0
    connections: tuple[Connection, ...] = field(default=(), repr=False)
    lengths: str | None = None

    def __post_init__(self):
        activation = activations.get(self.activation)
        initializer = initializers.get(self.initializer or activation.initializer)

        def settle(name, value):
            return object.__setattr__(self, name, value)  # the class is frozen

        settle("activation", activation)
        settle("initializer", initializer)
        for name, value in zip(("sources", "connections"), _read_by(self), strict=True):
            settle(name, value)
        rate = checks.constant(
            f"layer {self.name!r}", "dropout", self.dropout, lambda r: (r >= 0) & (r < 1), "in [0, 1)"
        )
        settle("dropout", rate)
        _check_name("layer", self.name)
        _check_size(f"layer {self.name!r}", self.size)
        _check_learned(self.name, self.size, activation)
        if self.lengths is not None and not activation.by_length:
            raise ValueError(
                f"layer {self.name!r}: {activation.name} asks for no lengths; attention, recurrences and mean_pool do"
            )
        if not (self.lengths is None or isinstance(self.lengths, str)):
            raise TypeError(f"layer {self.name!r}: lengths is the name of an input, got {self.lengths!r}")
        if self.bias not in Bias.__args__:
            raise ValueError(f"layer {self.name!r}: " + registry.unknown("bias", str(self.bias), Bias.__args__))
        if initializer.sets_bias and self.bias == "shared":
            raise ValueError(
                f"layer {self.name!r}: initializer {initializer.name!r} gives every neuron a bias of its own; "
                "bias must be 'per_neuron', 'per_position' or 'none', got 'shared'"
            )

    def __repr__(self) -> str:
        left_out = {"connections": self.is_dense, "lengths": self.lengths is None}
        told = [field for field in dataclasses.fields(self) if not left_out.get(field.name)]
        return f"Layer({', '.join(f'{field.name}={vars(self)[field.name]!r}' for field in told)})"

    @property
    def rows(self) -> int:
        """How many net inputs the layer has, at each position: S, or S k for maxout."""
        return self.size * self.activation.pieces

    @property
    def reads(self) -> tuple[tuple[str, Connection], ...]:
        """Each source, and the connection by which it is read."""
        return tuple(zip(self.sources, self.connections, strict=True))

    @property
    def is_dense(self) -> bool:
        """True where every source is read by `dense`, as where nothing else is told."""
        return all(by is dense for by in self.connections)

    @property
    def weighted(self) -> tuple[tuple[str, Connection], ...]:
        """Of them, those that have weights."""
        return tuple((source, by) for source, by in self.reads if by.outer is not None)

    def total(self, s: Array) -> Array:
        """sum_q s_q, of sensitivities (Q, S) as its connections lay them out."""
        return self.connections[0].total(s)


@dataclass(frozen=True)
class Network:
    """A feedforward graph: a frozen, hashable description. Made by `multilayer` or `graph`.

    inputs: ((name, R), ...) of vectors, or the shape (*P, R) of one example, of tokens (*P,). layers: in an order in
    which every layer reads only what stands before it; the last is the output.
    shapes: {name: of one example's signal} of all inputs and layers; net_shapes: {layer: of its net inputs}; tokens:
    {input: how many it may be}, of the inputs that are integers; lengths: those that are numbers of positions, (Q,).
    Raises ValueError for whatever is wrong with the graph.
    """

    inputs: tuple[tuple[str, int | Shape], ...]
    layers: tuple[Layer, ...]
    shapes: Mapping[str, Shape] = field(init=False, repr=False, compare=False)
    net_shapes: Mapping[str, Shape] = field(init=False, repr=False, compare=False)
    tokens: Mapping[str, int] = field(init=False, repr=False, compare=False)
    lengths: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        def settle(name, value):
            return object.__setattr__(self, name, value)  # the class is frozen

        shapes = [(name, _input_shape(name, shape)) for name, shape in self.inputs]
        settle("inputs", tuple((name, shape[0] if len(shape) == 1 else shape) for name, shape in shapes))
        _check_graph(self.inputs, self.layers)
        settle("lengths", frozenset(layer.lengths for layer in self.layers if layer.lengths))
        settle("tokens", _tokens(self.inputs, self.layers))
        settle("shapes", dict(shapes))
        settle("net_shapes", {})
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
        """How many numbers one example's signal has, by name of the input or layer."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    @property
    def trace_size(self) -> int:
        """How many numbers one example's trace has: net inputs, outputs and what else is kept of all layers."""
        signals = (self.shapes[layer.name] for layer in self.layers)
        kept = (activations.kept_size(layer.activation, self.net_shapes[layer.name]) for layer in self.layers)
        return sum(map(math.prod, (*self.net_shapes.values(), *signals))) + sum(kept)

    @property
    def drops(self) -> bool:
        """True where some layer has dropout: training then needs a key an update."""
        return any(layer.dropout for layer in self.layers)

    def init(self, key: Array, dtype=None) -> Params:
        """Parameters at the start: {layer: {"weights": {source: (S, S_source)}, "bias": (S,) or (1,), ...}}.

        Weights are as their connection has them, of a convolution (S, *kernel, S_source); sources that are read without
        weights have none, layers without bias no "bias". Learned parameters of an activation stand under "learned",
        {"slope": (S,) or (1,)} of prelu, running statistics of batch_norm under "statistics".
        dtype: float64, float32, bfloat16 or float16; JAX's default float where not given. Raises ValueError for
        float64 while `jax_enable_x64` is off.
        """
        dtype = precision.default() if dtype is None else precision.available(dtype)
        keys = jax.random.split(key, len(self.layers))
        return {layer.name: self._init_layer(layer, key, dtype) for layer, key in zip(self.layers, keys, strict=True)}

    def fans(self, layer: Layer) -> tuple[dict[str, Shape], dict[str, int], int]:
        """The shapes of a layer's weights by source, how many of each source's are read at a time, which together are
        the layer's fan-in, and its fan-out.
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
            if many > 1:  # of which one is read at a time, as of an embedding's: each is drawn by itself
                keys = jax.random.split(jax.random.fold_in(key, number), many)

                def one(own):
                    return layer.initializer.draw(own, layer.rows, fan_in, fan_out, dtype)[0][:, columns]  # noqa: B023

                own = jnp.moveaxis(jax.vmap(one)(keys), 0, 1)
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
        """Outputs (Q, *P, S) for inputs (Q, *P, R), or {name: (Q, *P, R)} of several.

        They are those of `inference_mode`: where there is batch normalization, by its running statistics, each
        example's by itself. Raises as `forward`, and ValueError where there are no such statistics yet.
        """
        check_statistics(self, params)
        return inference_mode(self).forward(params, inputs).activations[self.output.name]

    def forward(
        self, params: Params, inputs: Inputs, offsets: Mapping[str, Array] | None = None, key: Array | None = None
    ) -> Trace:
        """The forward pass, with everything it computed on the way (Hagan Eq. 3.2-3.4); batch normalization is by the
        batch's own statistics, as in training.

        Computes in the dtype of the parameters, to which the inputs are converted. offsets: {layer: as large as its net
        inputs, (Q, *P, rows)}, added to them: the derivative with respect to a zero put there is the layer's
        sensitivity. key: draws which neurons are dropped in layers with dropout; none are without it.
        Raises ValueError for inputs or parameters of the wrong names or shapes and for non-finite concrete inputs.
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
        """Checked inputs by name, (Q, *P, R) each, in the parameters' dtype, tokens as int32; see `forward` for what is
        raised. place(x, dtype): how numbers get there; `stored.in_place` leaves large arrays where they are.
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

    def prepare_weights(self, inputs: dict[str, Array], weights: Array | None) -> Array | None:
        """Checked weights of the examples (Q,), or of the positions of the outputs, (Q, *P), in at least float32, or
        None; of True and False, 1 and 0.

        Raises ValueError for another shape, for negative or non-finite concrete weights, and where all are 0.
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
        targets: Array,
        loss: Loss | None = None,
        dtype=None,
        place: Callable[[Array, Any], Any] = placed,
    ) -> Array:
        """Checked targets, as large as the outputs, (Q, *P, S); integer labels (Q, *P) are coded as `loss` wants them.

        dtype: theirs; that of the prepared `inputs` where not given, which do not say it where all are tokens. place as
        in `prepare`. Raises ValueError for another shape, and for labels that are none.
        """
        examples, dtype = _count(inputs), dtype or _float_of(inputs)
        checks.numeric("targets", targets, dtype)
        expected = (examples, *self.shapes[self.output.name])
        if targets.shape == expected[:-1] and targets.dtype.kind in "biu":
            targets = losses.coded(loss, targets, self.output.size)
        if targets.shape != expected:
            labels = targets.dtype.kind in "iu" and self.output.size > 1
            of = f"({', '.join(['Q', *map(str, expected[1:-1])])}{',' if len(expected) == 2 else ''})"
            hint = f"; integers {of} are taken for classes, and fnn.one_hot makes rows of them" if labels else ""
            raise ValueError(f"targets: expected shape {expected} to match the outputs, got {targets.shape}{hint}")
        checks.finite("targets", targets)
        return place(targets, dtype)


def _count(inputs: dict[str, Array]) -> int:
    return next(iter(inputs.values())).shape[0]


def _float_of(inputs: dict[str, Array]) -> Any:
    """The dtype of those that are no tokens; JAX's default float where all are."""
    return next((x.dtype for x in inputs.values() if x.dtype.kind not in "iu"), precision.default())


def multilayer(
    sizes: Sequence[int],
    activations: Sequence[str | Activation],
    *,
    bias: Bias | Sequence[Bias] = "per_neuron",
    initializer: str | Initializer | Sequence[str | Initializer | None] | None = None,
    dropout: float | Sequence[float] = 0.0,
) -> Network:
    """A chain: `multilayer((64, 32, 10), activations=("tanh", "softmax"))` reads 64 inputs and gives 10 outputs.

    Layers are called layer1, layer2, ...; the input is called input. `activations` names one for each layer; `bias`
    and `initializer` may be one for all, or one for each; so may `dropout`, where one for all means all but the last.
    Raises ValueError where the counts do not match.
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
    """Any feedforward graph: `inputs` {name: R, or the shape (*P, R) of one example}, `layers` each after those it
    reads; the last layer is the output.

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

    Raises ValueError for duplicate names, a layer reading what does not exist or comes later, what is not read, and a
    signal that a connection cannot read.
    """
    return Network(tuple(inputs.items()), tuple(layers))


def for_lanes(network: Network, columns: bool) -> Network:
    """The same network, its connections as they suit populations; columns: in the order of memory that does on CPU."""

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
    """`Network.forward` without its checks, for inputs that `Network.prepare` gave."""
    net_inputs, outputs, dropped, kept = {}, dict(inputs), {}, {}
    for number, layer in enumerate(network.layers):
        name, own = layer.name, params[layer.name]
        terms = [by.forward(outputs[source], weights_of(own, source, by)) for source, by in layer.reads]
        n = plus_bias(sum(terms[1:], start=terms[0]), own)  # Hagan P3.2: whatever enters the junction is just added
        if name in offsets:
            n = n + offsets[name]
        a, keeps = layer.activation.forward(n, theta(layer, own, outputs))
        if layer.lengths is not None:  # one out of range, which only a program meets, is lost as little as a token
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
    """Those by which a source is read, None of a connection that has none: a layer may read a source by both kinds."""
    return None if by.outer is None else layer_params["weights"][source]


def plus_bias(n: Array, layer_params: dict) -> Array:
    """n + b, where the layer has a bias: the same at every position, or one for each."""
    if "bias" not in layer_params:
        return n
    bias = layer_params["bias"]
    return n + lax.expand_dims(bias, tuple(range(n.ndim - bias.ndim)))


def theta(layer: Layer, layer_params: dict, signals: Mapping[str, Array] = MappingProxyType({})) -> dict[str, Array]:
    """What the layer's activation reads beside its net inputs, {} for most: what it has learned, what statistics it
    has, and, of the network's signals, the "lengths" (Q,) of the examples. Of a tangent there are no signals.
    """
    found = layer_params.get("learned", {}) | layer_params.get("statistics", {})
    return found | {"lengths": signals[layer.lengths]} if layer.lengths in signals else found


@functools.lru_cache(maxsize=256)
def inference_mode(network: Network) -> Network:
    """The network as it predicts: batch normalization by its running statistics, so that each example is by itself.

    The same parameters serve it, and every quantity of single examples is to be had of it; the network itself, where
    there is no batch normalization.
    """
    if not any(layer.activation.running for layer in network.layers):
        return network
    layers = (
        dataclasses.replace(layer, activation=layer.activation.running.inference) if layer.activation.running else layer
        for layer in network.layers
    )
    return Network(network.inputs, tuple(layers))


def check_statistics(network: Network, params: Params) -> None:
    """Raises ValueError where batch normalization has seen no batch yet."""
    if inference_mode(network) is network:
        return
    check_params(network, params)
    for layer in network.layers:
        if layer.activation.running:
            count = params[layer.name]["statistics"]["count"]
            if checks.is_concrete(count) and not np.asarray(count).any():
                raise ValueError(
                    f"layer {layer.name!r}: {layer.activation.name} has no running statistics yet, by which outputs "
                    "are normalized; train the network with fit, or take the batch's own by network.forward"
                )


def renewed(network: Network, params: Params, trace: Trace) -> Params:
    """The parameters with the running statistics after one batch more, whose trace this is."""
    params = dict(params)
    for layer in network.layers:
        if layer.activation.running:
            own = params[layer.name]
            after = layer.activation.running.after(own["statistics"], trace.kept[layer.name])
            params[layer.name] = own | {"statistics": after}
    return params


NOT_MOVED = ("statistics", "feedback")  # of a layer's parameters: what F has no derivative by


def moved(layer_params: dict) -> dict:
    """Of a layer's parameters, or of a gradient of them, those that F has a derivative by."""
    return {name: x for name, x in layer_params.items() if name not in NOT_MOVED}


def dtype_of(params: Params) -> np.dtype:
    """The parameters', which is the network's."""
    return jax.tree_util.tree_leaves(params)[0].dtype


_LEARNED_BESIDE = re.compile(
    r"[^/]+/feedback(/|$)"
)  # by a learning rule, which knows its shapes; nothing forward reads it


def check_params(network: Network, params: Params) -> None:
    """Raises ValueError at the first parameter whose place, shape or dtype is not the network's."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected the dict that Network.init gives, got {type(params).__name__}")
    given = checks.by_path(params)
    try:
        shapes = {path: leaf.shape for path, leaf in given.items() if not _LEARNED_BESIDE.match(path)}
    except AttributeError:
        raise TypeError("params: expected a dict of arrays as Network.init gives") from None
    checks.same_shapes("params", shapes, param_shapes(network), "the network")
    for layer in network.layers:
        if not isinstance(params.get(layer.name), Mapping) or "weights" not in params[layer.name]:
            raise ValueError(
                f"params: {layer.name}/weights is missing; a layer that has none holds an empty dict there"
            )
    dtypes = {str(leaf.dtype) for leaf in given.values()}
    if len(dtypes) > 1:
        raise ValueError(f"params: expected one dtype throughout, got {', '.join(sorted(dtypes))}")


def param_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its path, such as "layer1/weights/input"."""
    return checks.shapes(abstract_params(network, jnp.float32))


@functools.lru_cache(maxsize=256)
def abstract_params(network: Network, dtype) -> Params:
    """What `init` gives, as shapes and dtypes, nothing drawn."""
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
    # what does not fit into 32 bits would come back as another token
    return jnp.where((x >= 0) & (x < tokens), jnp.asarray(x).astype(jnp.int32), -1)


def _of_batch(shape: Shape) -> str:
    return f"({', '.join(['Q', *map(str, shape)])}{'' if shape else ','})"


def _inputs_expected(network: Network) -> str:
    return "{" + ", ".join(f"{name!r}: {_of_batch(network.shapes[name])}" for name, _ in network.inputs) + "}"


def _check_name(kind: str, name: str) -> None:
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"{kind} name: expected a non-empty string without '/', got {name!r}")


_LARGEST = 2**31 - 1  # what XLA's indices can tell


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
                    "another name, since '/' divides names"
                )


def _read_by(layer: Layer) -> tuple[tuple[str, ...], tuple[Connection, ...]]:
    """Names of the layer's sources, and the connection by which each is read, told beside it or by `connections`."""
    given = layer.sources if isinstance(layer.sources, tuple | list) else (layer.sources,)
    told = [source for source in given if not isinstance(source, str)]
    for source in told:
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
    """Of what enters the layer's junction; raises ValueError where what it reads does not add up."""
    label, entering = f"layer {layer.name!r}", {}
    for source, by in layer.reads:
        try:
            entering[source] = by.shapes(shapes[source], layer.rows)[0]
        except ValueError as error:
            raise ValueError(f"{label} reads {source!r} by {by.name}, which {error}") from None
    told = ", ".join(f"{source!r} by {by.name} {entering[source]}" for source, by in layer.reads)
    if len(set(entering.values())) > 1:
        raise ValueError(f"{label}: what is added must be of one shape, but it gets of {told}")
    shape = entering[layer.sources[0]]
    if shape[-1] != layer.rows:
        pieces = f" of {layer.activation.pieces} pieces" if layer.activation.pieces > 1 else ""
        raise ValueError(f"{label} has {layer.size} neurons{pieces}, but gets of {told}")
    return shape


def _output_shape(layer: Layer, n: Shape) -> Shape:
    """Of the layer's outputs."""
    if layer.activation.alone:
        return (*n[:-1], layer.size)
    try:
        return activations.output_shape(layer.activation, n)
    except ValueError as error:
        raise ValueError(f"layer {layer.name!r}: its activation {layer.activation.name} {error}") from None


def _bias_shape(layer: Layer, n: Shape) -> Shape:
    return {"per_neuron": n[-1:], "per_position": n, "shared": (1,)}[layer.bias]


def _tokens(inputs: tuple[tuple[str, int | Shape], ...], layers: tuple[Layer, ...]) -> dict[str, int]:
    """How many tokens there are, of the inputs that are read as such."""
    found: dict[str, int] = {}
    told = {layer.lengths for layer in layers}
    for name, shape in inputs:
        if (shape == ()) != (name in told):
            raise ValueError(
                f"input {name!r}: the shape (), a number an example, is that of lengths, which layers with lengths="
                f"{name!r} read, and no other; got {shape}"
            )
        if name in told:
            continue
        limits = {by.tokens for layer in layers for source, by in layer.reads if source == name}
        if limits != {None} and None in limits:
            raise ValueError(f"input {name!r} is read as tokens by one layer and as numbers by another; name it twice")
        if None not in limits:
            found[name] = min(limits)
    for layer in layers:
        for source, by in layer.reads:
            if by.tokens is not None and source in told:
                raise ValueError(f"layer {layer.name!r} reads the lengths {source!r} by {by.name}: they are no signal")
            if by.tokens is not None and source not in found:
                raise ValueError(
                    f"layer {layer.name!r} reads {source!r} by {by.name}: only an input is of integers, a layer is not"
                )
    return found


def _longest(name: str, layers: tuple[Layer, ...], net_shapes: Mapping[str, Shape]) -> int:
    """How many positions the layers have that count by these lengths; ValueError where that is not one number."""
    found = {layer.name: math.prod(net_shapes[layer.name][:-1]) for layer in layers if layer.lengths == name}
    if len(set(found.values())) > 1:
        raise ValueError(f"input {name!r}: lengths are of as many positions in each layer that asks, got {found}")
    return next(iter(found.values()))


def _check_graph(inputs: tuple[tuple[str, int | Shape], ...], layers: tuple[Layer, ...]) -> None:
    """Raises ValueError for what is wrong with names and their order."""
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
                problem = f"a connection is told beside what it reads, in a pair, as in sources=[('x', {source!r})]"
            raise ValueError(
                f"layer {layer.name!r} reads {source!r}, which is not an input or an earlier layer: {problem}"
            )
        if layer.lengths is not None and layer.lengths not in {name for name, _ in inputs}:
            problem = registry.unknown("input", str(layer.lengths), [name for name, _ in inputs])
            raise ValueError(f"layer {layer.name!r}: lengths name an input: {problem}")
        known[layer.name] = None
    if layers[-1].dropout:
        raise ValueError(f"layer {layers[-1].name!r}: the output cannot drop neurons; dropout must be 0 there")
    read = {source for layer in layers for source in (*layer.sources, layer.lengths)}
    for name in known:
        if name not in read and name != layers[-1].name:
            raise ValueError(f"{name!r} is read by no layer, so it cannot reach the output {layers[-1].name!r}")
    if not any(layer.weighted or layer.bias != "none" or layer.activation.parameters for layer in layers):
        raise ValueError("a network needs parameters, and none of these layers has weights or a bias")
