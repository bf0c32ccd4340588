"""What the tests share of networks on signals: connections crossed with graphs, networks that have a bit of everything,
and data that fits them.

Signals are small, and no two of their axes are of one length, so that none can stand for another.
"""

import jax
import jax.numpy as jnp
import numpy as np
from cases import PROVED, generator

import functional_nn as fnn
from functional_nn import Layer

# Every row, and what its constants may be; kernels of two axes go over images
CONNECTIONS = (
    "dense",
    "full",
    "conv(3)",
    "conv(3, stride=2)",
    "conv(2, padding='valid')",
    "conv(2, padding=((2, 1),))",
    "conv(3, dilation=2)",
    "conv(3, groups=2)",
    "conv((3, 3))",
    "conv((3, 2), stride=(2, 1), dilation=(1, 2), groups=2)",
    "embedding(7)",
    "identity",
    "mean_pool",
    "mean_pool(2)",
    "mean_pool((3, 2), stride=2, padding='same')",
    "take(-2)",
)
SIGNAL, IMAGE, TOKENS = (6, 4), (5, 3, 4), (6,)


def _placed(name):
    """(shape of the input, how the first layer reads it, how the next reads that one): the connection is one of them.

    Tokens are only read from an input; all else is tried between two layers, where something goes back through it.
    """
    by = fnn.connections.get(name)
    if by.tokens:
        return TOKENS, by, fnn.connections.get("conv(3)")
    return (IMAGE if "((" in name.partition("padding")[0] else SIGNAL), fnn.connections.dense, by


def _neurons(by, activation):
    """Of a layer that reads four channels by a connection: one without weights gives as many as it gets."""
    return 4 if by.outer else 4 // fnn.activations.get(activation).pieces


def chain(name, activation):
    shape, first, by = _placed(name)
    return fnn.graph(
        inputs={"p": shape},
        layers=[
            Layer("first", 4, activation, [("p", first)], bias="per_position"),
            Layer("second", _neurons(by, activation), activation, [("first", by)]),
            Layer("output", 3, "softmax", [("second", "full")]),
        ],
    )


def residual(name, activation):
    """`block` adds what the second layer gives, as it is, to what it reads of the first."""
    shape, first, by = _placed(name)
    own = activation if _neurons(by, activation) == 4 else "linear"
    return fnn.graph(
        inputs={"p": shape},
        layers=[
            Layer("first", 4, activation, [("p", first)]),
            Layer("second", 4, own, [("first", by)], bias="shared"),
            Layer("block", 4, "sigmoid", [("second", "identity"), ("first", by)], bias="none"),
            Layer("output", 3, "softmax", [("block", "full")]),
        ],
    )


def fan_out(name, activation):
    """Three read the first layer."""
    shape, first, by = _placed(name)
    return fnn.graph(
        inputs={"p": shape},
        layers=[
            Layer("first", 4, activation, [("p", first)]),
            Layer("left", _neurons(by, activation), activation, [("first", by)]),
            Layer("right", 4, "tanh", [("first", by)]),
            Layer("output", 3, "softmax", [("left", "full"), ("right", "full"), ("first", "full")]),
        ],
    )


def two_inputs(name, activation):
    """A signal and a vector, which enters twice."""
    shape, first, by = _placed(name)
    return fnn.graph(
        inputs={"p": shape, "q": 3},
        layers=[
            Layer("first", 4, activation, [("p", first)]),
            Layer("beside", 2, activation, ["q"]),
            Layer("second", _neurons(by, activation), activation, [("first", by)]),
            Layer("output", 3, "softmax", [("second", "full"), "beside", "q"]),
        ],
    )


GRAPHS = {"chain": chain, "residual": residual, "fan-out": fan_out, "two inputs": two_inputs}


# Networks that have a bit of everything -------------------------------------------------------------------------------


def images(output="softmax", outputs=3):
    """Convolutions, one of them grouped, around a residual; padded means, a learned slope, biases of three kinds."""
    return fnn.graph(
        inputs={"image": (7, 6, 2)},
        layers=[
            Layer("conv1", 4, "tanh", [("image", "conv((3, 3))")]),
            Layer("pool1", 4, "prelu", [("conv1", "mean_pool((3, 2), stride=2, padding='same')")], bias="none"),
            Layer("conv2", 4, "linear", [("pool1", "conv((3, 3), groups=2)")], bias="per_position"),
            Layer("block", 4, "sigmoid", [("conv2", "identity"), ("pool1", "identity")], bias="none"),
            Layer("output", outputs, output, [("block", "full")]),
        ],
    )


def texts():
    """Tokens and numbers, to a class at each position."""
    return fnn.graph(
        inputs={"text": 5, "extra": (5, 2)},
        layers=[
            Layer("embedded", 4, "linear", [("text", "embedding(7)"), "extra"], bias="shared"),
            Layer("conv", 4, "maxout(2)", [("embedded", "conv(3)")]),
            Layer("output", 6, "softmax", ["conv", "embedded"]),
        ],
    )


def series():
    """Numbers at each position, which a skip connection reaches with another kernel; few of them, wide kernels."""
    return fnn.graph(
        inputs={"x": (4, 5)},
        layers=[
            Layer("conv", 6, "tanh", [("x", "conv(3, stride=2)")]),
            Layer("output", 3, "linear", ["conv", ("x", "conv(2, stride=2)")]),
        ],
    )


SEQUENCES = ("attention(2)", "attention(4, True)", "attention(2, True, True)", "gru", "lstm", "recurrent(sigmoid)")
NORMS = ("layer_norm", "rms_norm", "group_norm(2)", "batch_norm")


# Drawn at random ------------------------------------------------------------------------------------------------------


def random_network(draw):
    """Two to four layers of convolutions, means, residuals, norms, pools, attention and recurrences on a signal or an
    image, a vector or a signal out.
    """
    positions = tuple(map(int, draw.integers(4, 8, draw.choice([1, 2]))))
    network = fnn.graph(
        inputs={"p": (*positions, int(draw.choice([1, 2, 4])))},
        layers=[Layer("layer0", 4, _any_activation(draw), [("p", _any_window(draw, positions))])],
    )
    for number in range(1, int(draw.integers(2, 4))):
        before = network.output.name
        *positions, channels = network.shapes[before]
        kind = draw.choice(["conv", "residual", "mean", "norm", "pool", "sequence"])
        activation = _any_activation(draw)
        by, size = _any_window(draw, positions), 4
        if kind == "residual":
            size = channels
            beside = Layer(f"beside{number}", size, activation, [(before, _kernel(draw, positions))])
            network = fnn.graph(inputs=dict(network.inputs), layers=[*network.layers, beside])
            sources, activation = [(beside.name, "identity"), (before, "identity")], "tanh"
        elif kind == "mean" and fnn.activations.get(activation).pieces == 1:  # see test_signals.py
            window, size = tuple(min(2, length) for length in positions), channels
            sources = [(before, fnn.connections.mean_pool(window, stride=1, padding="same"))]
        elif kind == "pool":
            window, size, sources = tuple(min(2, length) for length in positions), channels, [(before, "identity")]
            activation = fnn.activations.max_pool(window, stride=draw.choice([None, 1]))
        elif kind == "sequence":
            sources, activation = [before], draw.choice(SEQUENCES if len(positions) == 1 else SEQUENCES[:3])
        else:
            sources = [(before, by)]
            activation = draw.choice(NORMS) if kind == "norm" else activation
        layer = Layer(f"layer{number}", size, activation, sources)
        network = fnn.graph(inputs=dict(network.inputs), layers=[*network.layers, layer])
    by, layers, before = draw.choice(["full", "mean_pool", "dense"]), list(network.layers), network.output
    if by == "mean_pool":
        layers.append(Layer("mean", before.size, "linear", [(before.name, by)], bias="none"))
        by = "dense"
    output = draw.choice(["softmax", "linear", "sigmoid"])
    layers.append(Layer("output", 3, output, [(layers[-1].name, by)]))
    return fnn.graph(inputs=dict(network.inputs), layers=layers)


def _any_activation(draw):
    return draw.choice(PROVED)


def _kernel(draw, positions, **constants):
    size = tuple(int(draw.integers(1, min(3, length) + 1)) for length in positions)
    return fnn.connections.conv(size, **constants)


def _any_window(draw, positions):
    """A convolution, with a stride, gaps or without padding at times."""
    if draw.integers(3) == 0 and min(positions) > 4:
        return _kernel(draw, positions, dilation=2)
    stride = tuple(int(draw.choice([1, 1, min(2, length)])) for length in positions)
    return _kernel(draw, positions, stride=stride, padding=draw.choice(["same", "same", "valid"]))


# Data -----------------------------------------------------------------------------------------------------------------


def signal_problem(network, loss="cross_entropy", seed=0, examples=4, dtype=jnp.float64):
    """(params, inputs, targets): nothing at 0 or at its starting value, a token that repeats, classes as integers."""
    keys = jax.random.split(jax.random.key(seed), 3)
    draw = generator(keys[1])

    def jittered(x):
        return jnp.asarray(np.asarray(x) + 0.1 * draw.standard_normal(x.shape), dtype)

    params = jax.tree.map(jittered, network.init(keys[0], jnp.float64))
    inputs = {}
    for name, _ in network.inputs:
        shape = (examples, *network.shapes[name])
        if name in network.tokens:
            drawn = draw.integers(network.tokens[name], size=shape)
            drawn[..., min(1, drawn.shape[-1] - 1)] = drawn[..., 0]
            inputs[name] = jnp.asarray(drawn)
        else:
            inputs[name] = jnp.asarray(draw.standard_normal(shape), dtype)
    shape = (examples, *network.shapes[network.output.name])
    if fnn.losses.get(loss).targets == "real":
        targets = jnp.asarray(draw.standard_normal(shape), dtype)
    elif fnn.losses.get(loss).targets == "unit interval":
        targets = jnp.asarray(draw.uniform(0.1, 0.9, shape), dtype)
    else:
        targets = jnp.asarray(draw.integers(shape[-1], size=shape[:-1]))
    return params, inputs if len(inputs) > 1 else inputs[network.inputs[0][0]], targets
