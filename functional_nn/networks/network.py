"""Layer and Network: a feedforward graph in topological order, as data; parameters are a plain pytree beside it.

Letters: Q examples, R inputs, S neurons, k maxout pieces. Batches are rows, weights (S_out, S_in) as in the texts:
n = sum over sources of a_source W_source^T, plus b; a = f(n). (Hagan Eq. 3.3; P3.2 for several sources.)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, precision, registry
from functional_nn.networks import activations, initializers, losses
from functional_nn.networks.activations import Activation
from functional_nn.networks.connections import Connection, dense
from functional_nn.networks.initializers import Initializer
from functional_nn.networks.losses import Loss

Bias = Literal["per_neuron", "shared", "none"]
Params = dict[str, dict]
Inputs = Array | Mapping[str, Array]


class Trace(NamedTuple):
    """What the forward pass leaves behind for the backward one.

    net_inputs: {layer: (Q, S), (Q, S k) for maxout}; activations: the same for the outputs, (Q, S), and for the
    network's inputs under their own names, (Q, R): a^0 = p (Hagan Eq. 3.2). dropped: {layer: Dropped} where neurons
    were dropped; there `activations` are what the next layers read.
    """

    net_inputs: dict[str, Array]
    activations: dict[str, Array]
    dropped: dict[str, "Dropped"]


class Dropped(NamedTuple):
    """Dropout in one layer: mask (Q, S) of 0 and 1 / (1 - rate); activations f(n) (Q, S), before it."""

    mask: Array
    activations: Array


@dataclass(frozen=True)
class Layer:
    """One summing junction and its activation: n = sum over sources of W a + b, a = f(n).

    sources: names of inputs and earlier layers whose weighted contributions add; filled in for you in a chain.
    bias: "per_neuron" (S,), "shared" by the whole layer (1,) (Kordecki), or "none".
    initializer: a name or an Initializer; by default the activation's own.
    dropout: the rate in [0, 1) at which neurons are dropped in training, that is wherever a key is given; those left
    are divided by 1 - rate, so that nothing changes where none is (Srivastava et al. 2014, section 10).
    connections: by which each source is read, dense where not given.
    Raises ValueError for a size < 1, an unknown name, an initializer that the bias does not suit, another rate.
    """

    name: str
    size: int
    activation: Activation | str = "linear"
    sources: tuple[str, ...] = ()
    bias: Bias = "per_neuron"
    initializer: Initializer | str | None = None
    dropout: float = 0.0
    connections: tuple[Connection, ...] = field(default=(), repr=False)

    def __post_init__(self):
        activation = activations.get(self.activation)
        initializer = initializers.get(self.initializer or activation.initializer)
        settle = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 (the class is frozen)
        settle("activation", activation)
        settle("initializer", initializer)
        settle("sources", (self.sources,) if isinstance(self.sources, str) else tuple(self.sources))
        if all(connection is dense for connection in self.connections):
            settle("connections", (dense,) * len(self.sources))
        rate = checks.constant(
            f"layer {self.name!r}", "dropout", self.dropout, lambda r: (r >= 0) & (r < 1), "in [0, 1)"
        )
        settle("dropout", rate)
        _check_name("layer", self.name)
        _check_size(f"layer {self.name!r}", self.size)
        _check_learned(self.name, activation)
        if self.bias not in ("per_neuron", "shared", "none"):
            raise ValueError(f"layer {self.name!r}: " + registry.unknown("bias", str(self.bias), Bias.__args__))
        if initializer.sets_bias and self.bias == "shared":
            raise ValueError(
                f"layer {self.name!r}: initializer {initializer.name!r} gives every neuron a bias of its own; "
                "bias must be 'per_neuron' or 'none', got 'shared'"
            )

    @property
    def rows(self) -> int:
        """How many net inputs the layer has: S, or S k for maxout."""
        return self.size * self.activation.pieces

    @property
    def reads(self) -> tuple[tuple[str, Connection], ...]:
        """Each source, and the connection by which it is read."""
        return tuple(zip(self.sources, self.connections, strict=True))

    def total(self, s: Array) -> Array:
        """sum_q s_q, of sensitivities (Q, S) as its connections lay them out."""
        return self.connections[0].total(s)


@dataclass(frozen=True)
class Network:
    """A feedforward graph: a frozen, hashable description. Made by `multilayer` or `graph`.

    inputs: ((name, R), ...); layers: in an order in which every layer reads only what stands before it; the last is
    the output. Raises ValueError for whatever is wrong with the graph.
    """

    inputs: tuple[tuple[str, int], ...]
    layers: tuple[Layer, ...]
    sizes: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "sizes", _check_graph(self.inputs, self.layers))

    @property
    def output(self) -> Layer:
        """The layer whose activations are the network's outputs."""
        return self.layers[-1]

    @property
    def drops(self) -> bool:
        """True where some layer has dropout: training then needs a key an update."""
        return any(layer.dropout for layer in self.layers)

    def init(self, key: Array, dtype=None) -> Params:
        """Parameters at the start: {layer: {"weights": {source: (S, S_source)}, "bias": (S,) or (1,), ...}}.

        Layers without bias have no "bias"; learned activations add theirs (prelu: "slope", (S,) or (1,)).
        dtype: float64, float32, bfloat16 or float16; JAX's default float where not given. Raises ValueError for
        float64 while `jax_enable_x64` is off.
        """
        dtype = precision.default() if dtype is None else precision.available(dtype)
        keys = jax.random.split(key, len(self.layers))
        return {layer.name: self._init_layer(layer, key, dtype) for layer, key in zip(self.layers, keys, strict=True)}

    def _init_layer(self, layer: Layer, key: Array, dtype) -> dict:
        widths = [self.sizes[source] for source in layer.sources]
        weights, bias = layer.initializer.draw(key, layer.rows, sum(widths), layer.size, dtype)
        columns = jnp.split(weights, np.cumsum(widths)[:-1].tolist(), axis=1)
        params = {"weights": dict(zip(layer.sources, columns, strict=True))}
        if layer.bias != "none":
            params["bias"] = bias if layer.bias == "per_neuron" else bias[:1]
        if layer.activation.parameters:
            params |= layer.activation.parameters(layer.size, dtype)
        return params

    def apply(self, params: Params, inputs: Inputs) -> Array:
        """Outputs (Q, S) for inputs (Q, R), or {name: (Q, R)} where there are several. Raises as `forward`."""
        return self.forward(params, inputs).activations[self.output.name]

    def forward(
        self, params: Params, inputs: Inputs, offsets: Mapping[str, Array] | None = None, key: Array | None = None
    ) -> Trace:
        """The forward pass, with everything it computed on the way (Hagan Eq. 3.2-3.4).

        Computes in the dtype of the parameters, to which the inputs are converted. offsets: {layer: (Q, rows)} added
        to net inputs: the derivative with respect to a zero put there is the layer's sensitivity. key: draws which
        neurons are dropped in layers with dropout; none are without it.
        Raises ValueError for inputs or parameters of the wrong names or shapes and for non-finite concrete inputs.
        """
        inputs, offsets = self.prepare(params, inputs), offsets or {}
        examples = next(iter(inputs.values())).shape[0]
        rows = {layer.name: layer.rows for layer in self.layers}
        for name, offset in offsets.items():
            if name not in rows:
                raise ValueError("offsets: " + registry.unknown("layer", name, rows))
            if offset.shape != (examples, rows[name]):
                raise ValueError(f"offsets[{name!r}]: expected shape {(examples, rows[name])}, got {offset.shape}")
        return forward(self, params, inputs, offsets, key)

    def prepare(self, params: Params, inputs: Inputs) -> dict[str, Array]:
        """Checked inputs by name, (Q, R) each, in the parameters' dtype; see `forward` for what is raised."""
        check_params(self, params)
        dtype = jax.tree_util.tree_leaves(params)[0].dtype
        by_name = inputs if isinstance(inputs, Mapping) else {self.inputs[0][0]: inputs}
        if set(by_name) != {name for name, _ in self.inputs}:
            given = sorted(inputs) if isinstance(inputs, Mapping) else "a single array"
            raise ValueError(f"inputs: expected {_inputs_expected(self)}, got {given}")
        prepared = {}
        for name, width in self.inputs:
            label = f"inputs[{name!r}]" if isinstance(inputs, Mapping) else "inputs"
            prepared[name] = _batch(label, by_name[name], width, dtype)
        examples = {name: x.shape[0] for name, x in prepared.items()}
        if len(set(examples.values())) > 1:
            raise ValueError(f"inputs: expected the same number of examples in each, got {examples}")
        return prepared

    def prepare_weights(self, inputs: dict[str, Array], weights: Array | None) -> Array | None:
        """Checked weights of the examples (Q,), in at least float32, or None.

        Raises ValueError for another shape, for negative or non-finite concrete weights, and where all are 0.
        """
        if weights is None:
            return None
        x = next(iter(inputs.values()))
        checks.numeric("weights", weights)
        if weights.shape != x.shape[:1]:
            raise ValueError(f"weights: expected shape {x.shape[:1]}, one for each example, got {weights.shape}")
        checks.finite("weights", weights)
        if checks.is_concrete(weights):
            if (np.asarray(weights) < 0).any():
                raise ValueError(f"weights: expected numbers >= 0, got {np.min(np.asarray(weights))}")
            if not np.asarray(weights).any():
                raise ValueError("weights: expected at least one above 0, got none")
        return jnp.asarray(weights, precision.at_least_float32(x.dtype))

    def prepare_targets(self, inputs: dict[str, Array], targets: Array, loss: Loss | None = None) -> Array:
        """Checked targets (Q, S) in the dtype of the prepared `inputs`; integer labels (Q,) are coded as `loss` wants
        them. Raises ValueError for another shape, and for labels that are none.
        """
        x = next(iter(inputs.values()))
        checks.numeric("targets", targets, x.dtype)
        expected = (x.shape[0], self.output.size)
        if targets.shape == expected[:1] and targets.dtype.kind in "biu":
            targets = losses.coded(loss, targets, self.output.size)
        if targets.shape != expected:
            labels = targets.dtype.kind in "iu" and self.output.size > 1
            hint = "; integers (Q,) are taken for classes, and fnn.one_hot makes rows of them" if labels else ""
            raise ValueError(f"targets: expected shape {expected} to match the outputs, got {targets.shape}{hint}")
        checks.finite("targets", targets)
        return jnp.asarray(targets, x.dtype)


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


def graph(*, inputs: Mapping[str, int], layers: Sequence[Layer]) -> Network:
    """Any feedforward graph: `inputs` {name: R}, `layers` each after those it reads; the last layer is the output.

    Raises ValueError for duplicate names, a layer reading what does not exist or comes later, or what is not read.
    """
    return Network(tuple(inputs.items()), tuple(layers))


def in_columns(network: Network) -> Network:
    """The same network, its connections in the order of memory that suits populations on CPU."""
    layers = (
        dataclasses.replace(layer, connections=tuple(by.twin or by for by in layer.connections))
        for layer in network.layers
    )
    return Network(network.inputs, tuple(layers))


def forward(
    network: Network,
    params: Params,
    inputs: dict[str, Array],
    offsets: Mapping[str, Array],
    key: Array | None = None,
) -> Trace:
    """`Network.forward` without its checks, for inputs that `Network.prepare` gave."""
    net_inputs, outputs, dropped = {}, dict(inputs), {}
    for number, layer in enumerate(network.layers):
        layer_params = params[layer.name]
        terms = [by.forward(outputs[source], layer_params["weights"][source]) for source, by in layer.reads]
        n = sum(terms[1:], start=terms[0])  # Hagan P3.2: whatever enters the summing junction is just added
        if layer.bias != "none":
            n = n + layer_params["bias"][None, :]
        if layer.name in offsets:
            n = n + offsets[layer.name]
        a = layer.activation.forward(n, theta(layer, layer_params))
        if layer.dropout and key is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - layer.dropout, a.shape)
            mask = jnp.where(kept, jnp.asarray(1 / (1 - layer.dropout), a.dtype), 0)
            dropped[layer.name] = Dropped(mask, a)
            a = a * mask
        net_inputs[layer.name], outputs[layer.name] = n, a
    return Trace(net_inputs, outputs, dropped)


def theta(layer: Layer, layer_params: dict) -> dict[str, Array]:
    """The learned parameters of the layer's activation, {} for most."""
    if not layer.activation.parameters:
        return {}
    return {name: value for name, value in layer_params.items() if name not in ("weights", "bias")}


def check_params(network: Network, params: Params) -> None:
    """Raises ValueError at the first parameter whose place, shape or dtype is not the network's."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected the dict that Network.init gives, got {type(params).__name__}")
    given = checks.by_path(params)
    try:
        shapes = {path: leaf.shape for path, leaf in given.items()}
    except AttributeError:
        raise TypeError("params: expected a dict of arrays as Network.init gives") from None
    checks.same_shapes("params", shapes, param_shapes(network), "the network")
    dtypes = {str(leaf.dtype) for leaf in given.values()}
    if len(dtypes) > 1:
        raise ValueError(f"params: expected one dtype throughout, got {', '.join(sorted(dtypes))}")


def param_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its path, such as "layer1/weights/input"."""
    shapes = {}
    for layer in network.layers:
        for source in layer.sources:
            shapes[f"{layer.name}/weights/{source}"] = (layer.rows, network.sizes[source])
        if layer.bias != "none":
            shapes[f"{layer.name}/bias"] = (layer.rows,) if layer.bias == "per_neuron" else (1,)
        if layer.activation.parameters:
            learned = jax.eval_shape(lambda layer=layer: layer.activation.parameters(layer.size, jnp.float32))
            shapes |= {f"{layer.name}/{name}": value.shape for name, value in learned.items()}
    return shapes


def _batch(label: str, x: Array, width: int, dtype) -> Array:
    checks.numeric(label, x, dtype)
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"{label}: expected shape (Q, {width}), got {x.shape}")
    if x.shape[0] == 0:
        raise ValueError(f"{label}: expected at least one example, got shape {x.shape}")
    checks.finite(label, x)
    checks.representable(label, x, dtype)
    if x.dtype.kind in "biu" and x.dtype.itemsize <= 2:  # bytes go to the device as they are, and are widened there
        return jnp.asarray(x).astype(dtype)
    return jnp.asarray(x, dtype)


def _inputs_expected(network: Network) -> str:
    return "{" + ", ".join(f"{name!r}: (Q, {width})" for name, width in network.inputs) + "}"


def _check_name(kind: str, name: str) -> None:
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"{kind} name: expected a non-empty string without '/', got {name!r}")


_LARGEST = 2**31 - 1  # what XLA's indices can tell


def _check_size(label: str, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"{label}: size must be an integer >= 1, got {size!r}")
    if size > _LARGEST:
        raise ValueError(f"{label}: size must be at most {_LARGEST}, got {size}")


def _check_learned(layer: str, activation: Activation) -> None:
    if activation.parameters:
        for name in jax.eval_shape(lambda: activation.parameters(1, jnp.float32)):
            if name in ("weights", "bias") or "/" in name:
                raise ValueError(
                    f"layer {layer!r}: activation {activation.name!r} calls a learned parameter {name!r}; it needs "
                    "another name, since 'weights' and 'bias' are the layer's own and '/' divides names"
                )


def _check_graph(inputs: tuple[tuple[str, int], ...], layers: tuple[Layer, ...]) -> dict[str, int]:
    """Sizes by name, in topological order; raises ValueError for what is wrong with the graph."""
    if not inputs or not layers:
        raise ValueError(f"a network needs at least one input and one layer, got {len(inputs)} and {len(layers)}")
    sizes: dict[str, int] = {}
    for name, size in inputs:
        _check_name("input", name)
        _check_size(f"input {name!r}", size)
        if name in sizes:
            raise ValueError(f"input {name!r} is named twice")
        sizes[name] = size
    later = {layer.name for layer in layers}
    for layer in layers:
        if layer.name in sizes:
            raise ValueError(f"layer {layer.name!r}: the name is already taken by an input or an earlier layer")
        if not layer.sources:
            raise ValueError(f"layer {layer.name!r} reads nothing; sources must name an input or an earlier layer")
        if len(set(layer.sources)) < len(layer.sources):
            raise ValueError(f"layer {layer.name!r} reads a source twice: {layer.sources}")
        for source in layer.sources:
            if source in sizes:
                continue
            if source in later:
                raise ValueError(f"layer {layer.name!r} reads {source!r}, which does not come before it")
            problem = registry.unknown("source", source, sizes)
            raise ValueError(
                f"layer {layer.name!r} reads {source!r}, which is not an input or an earlier layer: {problem}"
            )
        sizes[layer.name] = layer.size
    if layers[-1].dropout:
        raise ValueError(f"layer {layers[-1].name!r}: the output cannot drop neurons; dropout must be 0 there")
    read = {source for layer in layers for source in layer.sources}
    for name in sizes:
        if name not in read and name != layers[-1].name:
            raise ValueError(f"{name!r} is read by no layer, so it cannot reach the output {layers[-1].name!r}")
    return sizes
