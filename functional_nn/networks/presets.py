"""Networks by name, for inputs and outputs of any size, and the table of what a network is made of.

    fnn.presets.get("lenet")((28, 28, 1), 10)        # called with the shape of one example, and how many outputs
    fnn.presets.get("residual(depth=3, norm=layer_norm)")((32, 32, 3), 10)
    fnn.presets.get("transformer(layers=2)")(32, 96, tokens=96, each_position=True)       # of 32 characters, the next
    fnn.presets.get("gru")((40, 1), 10)                                                   # of a series, its class

Letters: P positions along each axis of a signal, C channels, T positions of a sequence. `mlp` reads vectors, the
networks for pictures signals (*P, C) of one to three axes; what they write as k x k below is as long along every axis
that there is. Those for sequences read (T, C), or (T,) of tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from functional_nn import checks
from functional_nn.networks import activations, connections
from functional_nn.networks.activations import Activation
from functional_nn.networks.connections import Connection
from functional_nn.networks.network import Layer, Network, multilayer, param_shapes
from functional_nn.networks.windows import Shape
from functional_nn.registry import Described, Registry


@dataclass(frozen=True)
class Preset(Described):
    """preset(inputs, outputs, output="softmax") -> Network.

    inputs: the shape of one example, (*P, C), or R of vectors; outputs: how many neurons the output layer has, output:
    its activation. pictures: does it read signals with positions? sequences: does it read them in order? Such a one
    takes also tokens: how many there are, where inputs are integers, T or (T,); each_position: has it outputs at each
    position, which know nothing of later ones, or one for all; lengths: does it read an input "lengths" (Q,), how many
    positions of each example count? Raises ValueError for inputs that it cannot read.
    """

    name: str
    build: Callable[..., Network] = field(repr=False)
    pictures: bool = True
    sequences: bool = False

    def __call__(
        self,
        inputs: Shape | int,
        outputs: int,
        output: Activation | str = "softmax",
        *,
        tokens: int | None = None,
        each_position: bool = False,
        lengths: bool = False,
    ) -> Network:
        told = {"tokens": tokens, "each_position": each_position, "lengths": lengths}
        for name in ("each_position", "lengths"):
            if not isinstance(told[name], bool):
                raise ValueError(f"{self.name}: {name} must be True or False, got {told[name]!r}")
        shape = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        if not shape or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in shape):
            raise ValueError(f"{self.name}: inputs must be a shape of integers >= 1, or one of them, got {inputs!r}")
        if self.sequences:
            if len(shape) != (2 if tokens is None else 1):
                reads = "sequences (T, channels), or T of tokens=..." if tokens is None else "T tokens"
                raise ValueError(f"{self.name} reads {reads}; got {shape}")
        elif any(told.values()):
            wrong = next(name for name, value in told.items() if value)
            raise ValueError(f"{self.name} reads no sequences, which {wrong} is for; {_of_sequences()} do")
        elif self.pictures and not 2 <= len(shape) <= 4:
            raise ValueError(
                f"{self.name} reads signals (*positions, channels), pictures (H, W, C) for one; got {shape}"
            )
        try:
            return self.build(shape, outputs, output, **(told if self.sequences else {}))
        except ValueError as error:
            raise ValueError(f"{self.name} of {shape}: {error}") from None


_registry: Registry[Preset] = Registry("network", Preset)
register, names, get, knows = _registry.register, _registry.names, _registry.get, _registry.knows


@register
def mlp(hidden=(128,), activation: str = "tanh", dropout: float = 0.0) -> Preset:
    """Dense layers, as `multilayer` has them; of a signal the first reads all positions, by `full`."""
    sizes = _sizes("mlp", "hidden", hidden)

    def build(shape, outputs, output):
        functions = (activation,) * len(sizes) + (output,)
        chain = multilayer((math.prod(shape), *sizes, outputs), functions, dropout=dropout)
        if len(shape) == 1:
            return chain
        first = Layer(
            "layer1", chain.layers[0].size, functions[0], (("input", "full"),), dropout=chain.layers[0].dropout
        )
        return Network((("input", shape),), (first, *chain.layers[1:]))

    return Preset(f"mlp({sizes}, {activation}, {dropout})", build, pictures=False)


@register
def lenet(channels=(6, 16), hidden=(120, 84), activation: str = "relu", dropout: float = 0.0) -> Preset:
    """Two convolutions, each followed by 2 x 2 max pooling, then dense layers: LeNet-5, LeCun et al. 1998, Fig. 2.

    Kernels are 5 x 5, the second without padding, so that 28 x 28 becomes 14 x 14 and 5 x 5; of signals shorter than
    20, as the digits of 8 x 8 are, 3 x 3, and both padded. Of the paper are the sizes; relu and max pooling are what
    followed. dropout: of the dense hidden layers.
    """
    channels = _counts("lenet", "channels", channels)
    if len(channels) != 2:
        raise ValueError(f"lenet: channels must be two, one for each convolution, got {channels}")
    hidden = _sizes("lenet", "hidden", hidden)

    def build(shape, outputs, output):
        axes = len(shape) - 1
        small = min(shape[:-1]) < 20
        first, second = _conv(axes, 3 if small else 5), _conv(axes, 3 if small else 5, padded=small)
        pool = activations.max_pool((2,) * axes)
        layers = [
            Layer("conv1", channels[0], activation, (("image", first),)),
            Layer("pool1", channels[0], pool, (("conv1", "identity"),), bias="none"),
            Layer("conv2", channels[1], activation, (("pool1", second),)),
            Layer("pool2", channels[1], pool, (("conv2", "identity"),), bias="none"),
        ]
        by = "full"
        for number, size in enumerate(hidden, start=1):
            layers.append(Layer(f"dense{number}", size, activation, ((layers[-1].name, by),), dropout=dropout))
            by = "dense"
        layers.append(Layer("output", outputs, output, ((layers[-1].name, by),)))
        return Network((("image", shape),), tuple(layers))

    return Preset(f"lenet({channels}, {hidden}, {activation}, {dropout})", build)


@register
def all_convolutional(channels=(16, 32), activation: str = "relu") -> Preset:
    """Convolutions alone: pairs of 3 x 3, the second of each with stride 2 in place of pooling, a 1 x 1 to one channel
    a class, and the mean over all positions: Springenberg et al. 2015 (arXiv 1412.6806), All-CNN-C.
    """
    channels = _counts("all_convolutional", "channels", channels)

    def build(shape, outputs, output):
        axes, layers = len(shape) - 1, []
        for number, size in enumerate(channels, start=1):
            before = layers[-1].name if layers else "image"
            layers.append(Layer(f"conv{number}", size, activation, ((before, _conv(axes, 3)),)))
            layers.append(Layer(f"down{number}", size, activation, ((f"conv{number}", _conv(axes, 3, stride=2)),)))
        layers.append(Layer("classes", outputs, "linear", ((layers[-1].name, _conv(axes, 1)),)))
        layers.append(Layer("output", outputs, output, (("classes", "mean_pool"),), bias="none"))
        return Network((("image", shape),), tuple(layers))

    return Preset(f"all_convolutional({channels}, {activation})", build)


@register
def residual(
    depth: int = 2, width: int = 16, norm: str = "group_norm", stages: int = 2, activation: str = "relu"
) -> Preset:
    """A convolution, stages of `depth` residual blocks, the mean over all positions, and a dense layer: He et al. 2016
    (arXiv 1512.03385), Fig. 2 and Sec. 4.2.

    A block adds to what it reads two 3 x 3 convolutions of it, each normalized by `norm` ("group_norm", "batch_norm",
    "layer_norm", "rms_norm", with constants or without, or "none"). width: channels of the first stage; each further
    one halves the positions and doubles the channels, and there a 1 x 1 convolution reads what is added to.
    """
    depth, width = checks.integer("residual", "depth", depth, 1), checks.integer("residual", "width", width, 1)
    stages = checks.integer("residual", "stages", stages, 1)
    normalized = None if norm == "none" else activations.get(norm)
    if normalized is not None and normalized.alone:
        raise ValueError(f"residual: norm must be 'none' or a normalization such as 'group_norm(4)', got {norm!r}")

    def convolution(name: str, size: int, reads: str, by: Connection, active: str | None = None) -> list[Layer]:
        # active: the layer that the activation is of, where normalization has taken its place
        if normalized is None:
            return [Layer(name, size, activation if active else "linear", ((reads, by),))]
        layers = [Layer(name, size, normalized, ((reads, by),), bias="none")]
        return [*layers, Layer(active, size, activation, ((name, "identity"),), bias="none")] if active else layers

    def build(shape, outputs, output):
        axes = len(shape) - 1
        layers = convolution("stem", width, "image", _conv(axes, 3), "stem_active")
        for number in range(1, stages * depth + 1):
            block, before, stage = f"block{number}", layers[-1].name, (number - 1) // depth
            size, down = width * 2**stage, stage > 0 and (number - 1) % depth == 0
            inner = convolution(
                f"{block}_conv1", size, before, _conv(axes, 3, stride=2 if down else 1), f"{block}_active"
            )
            outer = convolution(f"{block}_conv2", size, inner[-1].name, _conv(axes, 3))
            added = ((outer[-1].name, "identity"), (before, _conv(axes, 1, stride=2) if down else "identity"))
            layers += [*inner, *outer, Layer(block, size, activation, added, bias="none")]
        layers.append(Layer("pool", size, "linear", ((layers[-1].name, "mean_pool"),), bias="none"))
        layers.append(Layer("output", outputs, output, ("pool",)))
        return Network((("image", shape),), tuple(layers))

    return Preset(f"residual({depth}, {width}, {norm}, {stages}, {activation})", build)


# Sequences ------------------------------------------------------------------------------------------------------------


def _of_sequences() -> str:
    return ", ".join(name for name in names() if _registry.get(name).sequences)


def _read_sequence(tokens: int | None) -> tuple[str, Connection]:
    return "sequence", connections.dense if tokens is None else connections.embedding(tokens)


def _of_sequence(shape: Shape, layers: list[Layer], lengths: bool) -> Network:
    return Network((("sequence", shape), *((("lengths", ()),) if lengths else ())), tuple(layers))


@register
def transformer(
    layers: int = 2,
    heads: int = 2,
    width: int = 64,
    hidden: int | None = None,
    positions: str = "learned",
    norm: str = "layer_norm",
    activation: str = "gelu",
    dropout: float = 0.0,
) -> Preset:
    """Blocks of attention and of two dense layers at each position, each added to what it reads, normalized: Vaswani et
    al. 2017, with the norms before each part and one at the end (Radford et al. 2019, Sec. 2.3).

    width: channels throughout; hidden: of the dense layers between, 4 width where not given; activation: theirs, such
    as "swiglu". positions: "learned" (one for each of T), "sinusoidal", "rotary" or "none". dropout: of attention's
    outputs and of the hidden layers. Attention reads without a bias: softmax does not see one of the keys, so that its
    gradient is rounding alone, of which Adam would make steps; the norm before has a shift. With outputs at each
    position it is causal; else their mean is read.
    """
    layers, heads, width = (
        checks.integer("transformer", name, value, 1)
        for name, value in {"layers": layers, "heads": heads, "width": width}.items()
    )
    hidden = 4 * width if hidden is None else checks.integer("transformer", "hidden", hidden, 1)
    checks.one_of("transformer", "positions", positions, ("learned", "sinusoidal", "rotary", "none"))
    if width % heads:
        raise ValueError(f"transformer: heads={heads} must divide width={width}")

    def build(shape, outputs, output, tokens, each_position, lengths):
        count = "lengths" if lengths else None
        attends = activations.attention(heads, causal=each_position, rotary=positions == "rotary")
        found = [
            Layer(
                "embedding",
                width,
                "sinusoidal" if positions == "sinusoidal" else "linear",
                (_read_sequence(tokens),),
                bias="per_position" if positions == "learned" else "per_neuron",
            )
        ]

        def normalized(name: str) -> Layer:
            return Layer(name, width, norm, ((found[-1].name, "identity"),), bias="none")

        for number in range(1, layers + 1):
            block, before = f"block{number}", found[-1].name
            found.append(normalized(f"{block}_norm1"))
            found.append(
                Layer(
                    f"{block}_attention", width, attends, (found[-1].name,), bias="none", dropout=dropout, lengths=count
                )
            )
            added = f"{block}_mixed"
            found.append(Layer(added, width, "linear", (found[-1].name, (before, "identity"))))
            found.append(normalized(f"{block}_norm2"))
            found.append(Layer(f"{block}_hidden", hidden, activation, (found[-1].name,), dropout=dropout))
            found.append(Layer(block, width, "linear", (found[-1].name, (added, "identity"))))
        found.append(normalized("norm"))
        if not each_position:
            found.append(Layer("mean", width, "mean_pool", (("norm", "identity"),), bias="none", lengths=count))
        found.append(Layer("output", outputs, output, (found[-1].name,)))
        return _of_sequence(shape, found, lengths)

    name = f"transformer({layers}, {heads}, {width}, {hidden}, {positions}, {norm}, {activation}, {dropout})"
    return Preset(name, build, sequences=True)


def _recurrent(name: str, cell: Activation, width: int, layers: int, dropout: float) -> Preset:
    """`layers` recurrent layers, each reading the states of the one before; the last state is read, or each of them."""

    def build(shape, outputs, output, tokens, each_position, lengths):
        found, reads = [], _read_sequence(tokens)
        for number in range(1, layers + 1):
            count = "lengths" if lengths else None
            found.append(Layer(f"state{number}", width, cell, (reads,), dropout=dropout, lengths=count))
            reads = found[-1].name
        if not each_position:
            found.append(Layer("last", width, "linear", ((reads, connections.take(-1)),), bias="none"))
        found.append(Layer("output", outputs, output, (found[-1].name,)))
        return _of_sequence(shape, found, lengths)

    return Preset(name, build, sequences=True)


@register
def elman(width: int = 64, layers: int = 1, activation: str = "tanh", dropout: float = 0.0) -> Preset:
    """Layers that read their own state of the position before: Elman 1990. dropout: of the states that are read above.

    With outputs at each position these are read from its state; else from the last, that of an example's length.
    """
    width, layers = checks.integer("elman", "width", width, 1), checks.integer("elman", "layers", layers, 1)
    name = f"elman({width}, {layers}, {activation}, {dropout})"
    return _recurrent(name, activations.recurrent(activation), width, layers, dropout)


@register
def gru(width: int = 64, layers: int = 1, dropout: float = 0.0) -> Preset:
    """The same of gated recurrent units: Cho et al. 2014 (arXiv 1406.1078)."""
    width, layers = checks.integer("gru", "width", width, 1), checks.integer("gru", "layers", layers, 1)
    return _recurrent(f"gru({width}, {layers}, {dropout})", activations.gru(), width, layers, dropout)


@register
def lstm(width: int = 64, layers: int = 1, dropout: float = 0.0) -> Preset:
    """The same of long short-term memory: Hochreiter and Schmidhuber 1997, Gers et al. 2000."""
    width, layers = checks.integer("lstm", "width", width, 1), checks.integer("lstm", "layers", layers, 1)
    return _recurrent(f"lstm({width}, {layers}, {dropout})", activations.lstm(), width, layers, dropout)


def _conv(axes: int, kernel: int, stride: int = 1, padded: bool = True) -> Connection:
    # zeros told in numbers: so that a kernel may be longer than a short signal
    return connections.conv((kernel,) * axes, stride=stride, padding=kernel // 2 if padded else 0)


def _sizes(owner: str, name: str, given: Any) -> tuple[int, ...]:
    given = tuple(given) if isinstance(given, tuple | list) else (given,)
    return tuple(checks.integer(owner, name, size, 1) for size in given)


def _counts(owner: str, name: str, given: Any) -> tuple[int, ...]:
    found = _sizes(owner, name, given)
    if not found:
        raise ValueError(f"{owner}: {name} must be at least one integer, got none")
    return found


# What a network is made of --------------------------------------------------------------------------------------------


def layer_rows(network: Network) -> list[dict[str, Any]]:
    """One plain dict a layer: layer, reads, activation, shape of one example's outputs, parameters, flops.

    reads: its sources and by what, "image by conv((5, 5))"; a bare name is read by `dense`. parameters: numbers that
    are learned; flops: additions and multiplications of its weights with one example on the way forward.
    """
    learned: dict[str, int] = dict.fromkeys((layer.name for layer in network.layers), 0)
    for path, shape in param_shapes(network).items():
        name, kind, *_ = path.split("/")
        learned[name] += 0 if kind == "statistics" else math.prod(shape)
    rows = []
    for layer in network.layers:
        n, flops = network.net_shapes[layer.name], 0
        for source, by in layer.weighted:
            flops += 2 * math.prod(n) * by.fans(by.shapes(network.shapes[source], layer.rows)[1])[0]
        reads = (source if by is connections.dense else f"{source} by {by.name}" for source, by in layer.reads)
        rows.append(
            {
                "layer": layer.name,
                "reads": ", ".join(reads),
                "activation": layer.activation.name,
                "shape": network.shapes[layer.name],
                "parameters": learned[layer.name],
                "flops": flops,
            }
        )
    return rows


def summary(network: Network) -> str:
    """A table of the layers, what they read, their shapes, parameters and FLOPs of one example, and the sums.

    >>> import functional_nn as fnn
    >>> table = fnn.presets.summary(fnn.presets.get("lenet")((8, 8, 1), 10))
    >>> table.splitlines()[-1].split()
    ['in', 'all', '19,754', '71,760']
    """
    header = ("layer", "reads", "activation", "shape", "parameters", "FLOPs")
    found = layer_rows(network)
    sums = [f"{sum(row[name] for row in found):,}" for name in ("parameters", "flops")]
    lines = [header]
    for row in found:
        shape = " x ".join(map(str, row["shape"]))
        lines.append(
            (row["layer"], row["reads"], row["activation"], shape, f"{row['parameters']:,}", f"{row['flops']:,}")
        )
    lines.append(("in all", "", "", "", *sums))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    pad = [str.ljust] * 4 + [str.rjust] * 2
    return "\n".join(
        "  ".join(fit(cell, width) for fit, cell, width in zip(pad, line, widths, strict=True)).rstrip()
        for line in lines
    )
