"""Networks by name, for inputs and outputs of any size, and the table of what a network is made of.

A preset is called with the shape of one example and the number of outputs::

    fnn.presets.get("lenet")((28, 28, 1), 10)
    fnn.presets.get("residual(depth=3, norm=layer_norm)")((32, 32, 3), 10)
    fnn.presets.get("transformer(layers=2)")(32, 96, tokens=96, each_position=True)       # the next of 96 characters
    fnn.presets.get("gru")((40, 1), 10)                                                   # the class of a series

Letters: P positions along each axis of a signal, C channels, T positions of a sequence. `mlp` reads vectors; the
networks for pictures read signals `(*P, C)` of one to three axes, and a kernel of k x k below has length k along every
axis of the signal. Those for sequences read (T, C), or (T,) tokens.
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
from functional_nn.networks.windows import Shape, Sizes
from functional_nn.registry import Registry
from functional_nn.rows import Constants, Described

__all__ = [
    "Preset",
    "all_convolutional",
    "elman",
    "get",
    "gru",
    "knows",
    "layer_rows",
    "lenet",
    "lstm",
    "mlp",
    "names",
    "register",
    "residual",
    "summary",
    "transformer",
]


@dataclass(frozen=True)
class Preset(Described):
    """A function that makes a network for given inputs and outputs: preset(inputs, outputs, output="softmax") ->
    Network.

    Attributes:
        name: how it is shown.
        build: build(shape, outputs, output, ...) -> Network.
        pictures: True if it reads signals with positions.
        sequences: True if it reads them in order.

    Example:
        >>> import functional_nn as fnn
        >>> preset = fnn.presets.get("lenet")
        >>> preset((28, 28, 1), 10).shapes["pool2"]
        (5, 5, 16)
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
        """Returns the network.

        Args:
            inputs: the shape of one example, `(*P, C)`, or R for vectors.
            outputs: how many neurons the output layer has.
            output: the activation of the output layer.
            tokens: for sequences: how many different tokens there are, where inputs are integers, T or (T,).
            each_position: for sequences: whether it has outputs at each position, which do not depend on later
                positions, or one for all.
            lengths: for sequences: whether it reads an input "lengths" (Q,), how many positions of each example count.

        Raises:
            ValueError: it cannot read such inputs.
        """
        of_sequences = {"tokens": tokens, "each_position": each_position, "lengths": lengths}
        for name in ("each_position", "lengths"):
            if not isinstance(of_sequences[name], bool):
                raise ValueError(f"{self.name}: {name} must be True or False, got {of_sequences[name]!r}")
        shape = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        if not shape or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in shape):
            raise ValueError(f"{self.name}: inputs must be a shape of integers >= 1, or one of them, got {inputs!r}")
        if self.sequences:
            if len(shape) != (2 if tokens is None else 1):
                reads = "sequences (T, channels), or T of tokens=..." if tokens is None else "T tokens"
                raise ValueError(f"{self.name} reads {reads}; got {shape}")
        elif any(of_sequences.values()):
            wrong = next(name for name, value in of_sequences.items() if value)
            raise ValueError(f"{self.name} reads no sequences, which {wrong} is for; {_sequence_presets()} do")
        elif self.pictures and not 2 <= len(shape) <= 4:
            raise ValueError(
                f"{self.name} reads signals (*positions, channels), such as pictures (H, W, C); got {shape}"
            )
        try:
            return self.build(shape, outputs, output, **(of_sequences if self.sequences else {}))
        except ValueError as error:
            raise ValueError(f"{self.name} of {shape}: {error}") from None


_registry: Registry[Preset] = Registry("network", Preset)


def names() -> tuple[str, ...]:
    """Returns the names of the registered presets.

    Example:
        >>> from functional_nn import presets
        >>> presets.names()[:2]
        ('mlp', 'lenet')
    """
    return _registry.names()


def knows(specification: str | Preset) -> bool:
    """Returns True for a preset, and for text that begins with the name of one.

    Args:
        specification: text such as "lenet", or a `Preset`.

    Example:
        >>> from functional_nn import presets
        >>> presets.knows("lenet"), presets.knows("iris")
        (True, False)
    """
    return _registry.knows(specification)


def get(preset: str | Preset) -> Preset:
    """Returns the preset that a name stands for.

    Args:
        preset: a name such as "lenet", a name with constants such as "mlp((64, 32), dropout=0.2)", or a `Preset`, which
            is returned unchanged.

    Raises:
        ValueError: the name is unknown (the message suggests the closest one), or its constants are refused.
        TypeError: neither a name nor a preset.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.presets.get("mlp((64, 32))")(10, 3).sizes
        {'input': 10, 'layer1': 64, 'layer2': 32, 'layer3': 3}
    """
    return _registry.get(preset)


def register(factory: Callable[Constants, Preset]) -> Callable[Constants, Preset]:
    """Gives a function that makes presets from constants its name. A decorator.

    Args:
        factory: a function that returns a `Preset`.

    Returns:
        The function, its results cached.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> import functional_nn as fnn
        >>> @fnn.presets.register
        ... def perceptron(activation: str = "sigmoid") -> fnn.presets.Preset:
        ...     def build(shape, outputs, output):
        ...         return fnn.multilayer((*shape, outputs), (activation,))
        ...
        ...     return fnn.presets.Preset(f"perceptron({activation})", build, pictures=False)
        >>> fnn.presets.get("perceptron(tanh)")(4, 1).output.activation
        <activation tanh>
    """
    return _registry.register(factory)


@register
def mlp(hidden: Sizes = (128,), activation: str = "tanh", dropout: float = 0.0) -> Preset:
    """Dense layers, as in `multilayer`. For a signal the first layer reads all positions, by `full`.

    Args:
        hidden: the sizes of the hidden layers.
        activation: of the hidden layers.
        dropout: the rate of the hidden layers.

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.presets.get("mlp((16, 8))")(4, 3)
        >>> [layer.name for layer in network.layers]
        ['layer1', 'layer2', 'layer3']
    """
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
def lenet(
    channels: Sizes = (6, 16), hidden: Sizes = (120, 84), activation: str = "relu", dropout: float = 0.0
) -> Preset:
    """Two convolutions, each followed by 2 x 2 max pooling, then dense layers: LeNet-5, LeCun et al. 1998, Fig. 2.

    Kernels are 5 x 5, the second without padding, so that 28 x 28 becomes 14 x 14 and 5 x 5. For signals shorter than
    20, such as the digits of 8 x 8, they are 3 x 3, and both padded. The sizes are the paper's; relu and max pooling
    came later.

    Args:
        channels: of the two convolutions.
        hidden: the sizes of the dense hidden layers.
        activation: of the convolutions and the hidden layers.
        dropout: the rate of the dense hidden layers.

    Raises:
        ValueError: channels are not two, or a size is not a positive integer.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.presets.get("lenet(hidden=(32,))")((8, 8, 1), 10)
        >>> [layer.name for layer in network.layers]
        ['conv1', 'pool1', 'conv2', 'pool2', 'dense1', 'output']
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
def all_convolutional(channels: Sizes = (16, 32), activation: str = "relu") -> Preset:
    """Convolutions only: Springenberg et al. 2015 (arXiv 1412.6806), All-CNN-C.

    Pairs of 3 x 3 convolutions, the second of each with stride 2 instead of pooling; a 1 x 1 convolution to one channel
    a class; and the mean over all positions.

    Args:
        channels: of each pair.
        activation: of the convolutions.

    Raises:
        ValueError: channels are empty or not positive integers.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.presets.get("all_convolutional(channels=8)")((8, 8, 1), 10)
        >>> [layer.name for layer in network.layers]
        ['conv1', 'down1', 'classes', 'output']
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
    """A residual network: He et al. 2016 (arXiv 1512.03385), Fig. 2 and Sec. 4.2.

    A convolution, stages of `depth` residual blocks, the mean over all positions, and a dense layer. A block adds to
    what it reads two 3 x 3 convolutions of it, each normalized.

    Args:
        depth: blocks a stage.
        width: channels of the first stage. Each further stage halves the positions and doubles the channels; there a 1
            x 1 convolution reads what the block adds to.
        norm: "group_norm", "batch_norm", "layer_norm" or "rms_norm", with constants or without, or "none".
        stages: how many there are.
        activation: of the blocks.

    Raises:
        ValueError: a number is not a positive integer, or norm is not a normalization.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.presets.get("residual(depth=1, stages=1, norm=none)")((8, 8, 1), 10)
        >>> [layer.name for layer in network.layers]
        ['stem', 'block1_conv1', 'block1_conv2', 'block1', 'pool', 'output']
    """
    depth, width = checks.integer("residual", "depth", depth, 1), checks.integer("residual", "width", width, 1)
    stages = checks.integer("residual", "stages", stages, 1)
    normalized = None if norm == "none" else activations.get(norm)
    if normalized is not None and normalized.alone:
        raise ValueError(f"residual: norm must be 'none' or a normalization such as 'group_norm(4)', got {norm!r}")

    def convolution(name: str, size: int, reads: str, by: Connection, active: str | None = None) -> list[Layer]:
        # active: the layer with the activation, where normalization has taken its place
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


def _sequence_presets() -> str:
    return ", ".join(name for name in names() if _registry.get(name).sequences)


def _read_sequence(tokens: int | None) -> tuple[str, Connection]:
    return "sequence", connections.dense if tokens is None else connections.embedding(tokens)


def _sequence_network(shape: Shape, layers: list[Layer], lengths: bool) -> Network:
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
    """Blocks of attention and of two dense layers at each position: Vaswani et al. 2017.

    Each adds to what it reads. Normalization comes before each of the two, and once at the end (Radford et al. 2019,
    Sec. 2.3). With outputs at each position attention is causal; else the mean over the positions is read.

    Attention has no bias: softmax ignores a bias of the keys, so that its gradient is rounding error, which Adam would
    turn into steps; the normalization before it has a shift.

    Args:
        layers: how many blocks.
        heads: of attention, which divide `width`.
        width: channels throughout.
        hidden: channels between the two dense layers of a block; 4 width by default.
        positions: "learned" (one for each of T), "sinusoidal", "rotary" or "none".
        norm: the normalization.
        activation: of the hidden layers, such as "gelu" or "swiglu".
        dropout: the rate of attention's outputs and of the hidden layers.

    Raises:
        ValueError: a number is not a positive integer, heads do not divide width, or positions has another value.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.presets.get("transformer(layers=1, width=8, hidden=16)")(32, 5, tokens=5, each_position=True)
        >>> network.shapes["output"]  # a distribution over the 5 tokens at each of 32 positions
        (32, 5)
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
        stack = [
            Layer(
                "embedding",
                width,
                "sinusoidal" if positions == "sinusoidal" else "linear",
                (_read_sequence(tokens),),
                bias="per_position" if positions == "learned" else "per_neuron",
            )
        ]

        def normalized(name: str) -> Layer:
            return Layer(name, width, norm, ((stack[-1].name, "identity"),), bias="none")

        for number in range(1, layers + 1):
            block, before = f"block{number}", stack[-1].name
            stack.append(normalized(f"{block}_norm1"))
            stack.append(
                Layer(
                    f"{block}_attention", width, attends, (stack[-1].name,), bias="none", dropout=dropout, lengths=count
                )
            )
            added = f"{block}_mixed"
            stack.append(Layer(added, width, "linear", (stack[-1].name, (before, "identity"))))
            stack.append(normalized(f"{block}_norm2"))
            stack.append(Layer(f"{block}_hidden", hidden, activation, (stack[-1].name,), dropout=dropout))
            stack.append(Layer(block, width, "linear", (stack[-1].name, (added, "identity"))))
        stack.append(normalized("norm"))
        if not each_position:
            stack.append(Layer("mean", width, "mean_pool", (("norm", "identity"),), bias="none", lengths=count))
        stack.append(Layer("output", outputs, output, (stack[-1].name,)))
        return _sequence_network(shape, stack, lengths)

    name = f"transformer({layers}, {heads}, {width}, {hidden}, {positions}, {norm}, {activation}, {dropout})"
    return Preset(name, build, sequences=True)


def _recurrent(name: str, cell: Activation, width: int, layers: int, dropout: float) -> Preset:
    """`layers` recurrent layers, each reading the states of the one before; the last state is read, or each of
    them.
    """

    def build(shape, outputs, output, tokens, each_position, lengths):
        stack, reads = [], _read_sequence(tokens)
        for number in range(1, layers + 1):
            count = "lengths" if lengths else None
            stack.append(Layer(f"state{number}", width, cell, (reads,), dropout=dropout, lengths=count))
            reads = stack[-1].name
        if not each_position:
            stack.append(Layer("last", width, "linear", ((reads, connections.take(-1)),), bias="none"))
        stack.append(Layer("output", outputs, output, (stack[-1].name,)))
        return _sequence_network(shape, stack, lengths)

    return Preset(name, build, sequences=True)


@register
def elman(width: int = 64, layers: int = 1, activation: str = "tanh", dropout: float = 0.0) -> Preset:
    """Layers that read their own state of the position before: Elman 1990.

    With outputs at each position these are read from its state; else from the last state, which is that at an example's
    length.

    Args:
        width: neurons of each layer.
        layers: how many; each reads the states of the one before.
        activation: of the states.
        dropout: the rate of the states, where the next layer reads them.

    Raises:
        ValueError: width or layers is not a positive integer.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.presets.get("elman(width=4, layers=2)")((10, 1), 3)
        >>> [layer.name for layer in network.layers]
        ['state1', 'state2', 'last', 'output']
    """
    width, layers = checks.integer("elman", "width", width, 1), checks.integer("elman", "layers", layers, 1)
    name = f"elman({width}, {layers}, {activation}, {dropout})"
    return _recurrent(name, activations.recurrent(activation), width, layers, dropout)


@register
def gru(width: int = 64, layers: int = 1, dropout: float = 0.0) -> Preset:
    """Gated recurrent units, connected as in `elman`: Cho et al. 2014 (arXiv 1406.1078).

    Args:
        width: neurons of each layer.
        layers: how many; each reads the states of the one before.
        dropout: the rate of the states, where the next layer reads them.

    Raises:
        ValueError: width or layers is not a positive integer.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.presets.get("gru(width=4)")((10, 1), 3)
        >>> [layer.name for layer in network.layers]
        ['state1', 'last', 'output']
    """
    width, layers = checks.integer("gru", "width", width, 1), checks.integer("gru", "layers", layers, 1)
    return _recurrent(f"gru({width}, {layers}, {dropout})", activations.gru(), width, layers, dropout)


@register
def lstm(width: int = 64, layers: int = 1, dropout: float = 0.0) -> Preset:
    """Long short-term memory, connected as in `elman`: Hochreiter and Schmidhuber 1997, Gers et al. 2000.

    Args:
        width: neurons of each layer.
        layers: how many; each reads the states of the one before.
        dropout: the rate of the states, where the next layer reads them.

    Raises:
        ValueError: width or layers is not a positive integer.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.presets.get("lstm(width=4)")((10, 1), 3)
        >>> [layer.name for layer in network.layers]
        ['state1', 'last', 'output']
    """
    width, layers = checks.integer("lstm", "width", width, 1), checks.integer("lstm", "layers", layers, 1)
    return _recurrent(f"lstm({width}, {layers}, {dropout})", activations.lstm(), width, layers, dropout)


def _conv(axes: int, kernel: int, stride: int = 1, padded: bool = True) -> Connection:
    # padding as numbers, so that a kernel may be longer than a short signal
    return connections.conv((kernel,) * axes, stride=stride, padding=kernel // 2 if padded else 0)


def _sizes(owner: str, name: str, given: Any) -> tuple[int, ...]:
    given = tuple(given) if isinstance(given, tuple | list) else (given,)
    return tuple(checks.integer(owner, name, size, 1) for size in given)


def _counts(owner: str, name: str, given: Any) -> tuple[int, ...]:
    sizes = _sizes(owner, name, given)
    if not sizes:
        raise ValueError(f"{owner}: {name} must be at least one integer, got none")
    return sizes


# What a network is made of --------------------------------------------------------------------------------------------


def layer_rows(network: Network) -> list[dict[str, Any]]:
    """Returns one plain dict a layer: layer, reads, activation, shape, parameters, flops.

    Args:
        network: any network.

    Returns:
        For each layer: its name; what it "reads" and by which connection, such as "image by conv((5, 5))", where a bare
        name is read by `dense`; its "activation"; the "shape" of one example's outputs; how many "parameters" it
        learns; and the "flops", additions and multiplications of its weights with one example on the way forward.

    Example:
        >>> import functional_nn as fnn
        >>> rows = fnn.presets.layer_rows(fnn.multilayer((3, 4, 2), ("tanh", "softmax")))
        >>> rows[0]["reads"], rows[0]["parameters"], rows[0]["flops"]
        ('input', 16, 24)
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
    """Returns a table of the layers: what they read, their shapes, parameters and FLOPs of one example, and the sums.

    Args:
        network: any network.

    Example:
        >>> import functional_nn as fnn
        >>> table = fnn.presets.summary(fnn.presets.get("lenet")((8, 8, 1), 10))
        >>> table.splitlines()[-1].split()
        ['in', 'all', '19,754', '71,760']
    """
    header = ("layer", "reads", "activation", "shape", "parameters", "FLOPs")
    table = layer_rows(network)
    sums = [f"{sum(row[name] for row in table):,}" for name in ("parameters", "flops")]
    lines = [header]
    for row in table:
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
