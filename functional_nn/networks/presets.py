"""Networks by name, for inputs and outputs of any size, and the table of what a network is made of.

    fnn.presets.get("lenet")((28, 28, 1), 10)        # called with the shape of one example, and how many outputs
    fnn.presets.get("residual(depth=3, norm=layer_norm)")((32, 32, 3), 10)

Letters: P positions along each axis of a signal, C channels. All but `mlp` read signals (*P, C) of one to three axes,
pictures (H, W, C) among them; what they write as k x k below is as long along every axis that there is.
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
    its activation. pictures: does it read signals with positions? Raises ValueError for inputs that it cannot read.
    """

    name: str
    build: Callable[[Shape, int, Activation | str], Network] = field(repr=False)
    pictures: bool = True

    def __call__(self, inputs: Shape | int, outputs: int, output: Activation | str = "softmax") -> Network:
        shape = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        if not shape or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in shape):
            raise ValueError(f"{self.name}: inputs must be a shape of integers >= 1, or one of them, got {inputs!r}")
        if self.pictures and not 2 <= len(shape) <= 4:
            raise ValueError(
                f"{self.name} reads signals (*positions, channels), pictures (H, W, C) for one; got {shape}"
            )
        try:
            return self.build(shape, outputs, output)
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
