"""Networks of signals: shapes, parameters, random graphs proved, and what bad input gets."""

import copy
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, generator, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

import functional_nn as fnn
from functional_nn import Layer
from functional_nn.networks.network import for_lanes

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)


def shapes(tree):
    return jax.tree.map(lambda x: x.shape, tree)


def residual():
    """A convolutional network with an image and a vector, in which every kind of connection and bias is met."""
    return fnn.graph(
        inputs={"image": (5, 6, 2), "vector": 3},
        layers=[
            Layer("conv", 4, "tanh", sources=[("image", "conv((3, 2), stride=(2, 1))")]),
            Layer("deep", 4, "sigmoid", sources=[("conv", "conv((3, 3), groups=2)")], bias="per_position"),
            Layer("block", 4, "prelu", sources=[("deep", "identity"), ("conv", "identity")], bias="none"),
            Layer("pool", 4, "linear", sources=[("block", "mean_pool((2, 2), stride=1, padding=same)")], bias="shared"),
            Layer("corner", 4, "tanh", sources=[("pool", "take((-1, 0))"), "vector"], bias="none"),
            Layer("output", 3, "softmax", sources=[("pool", "full"), "corner"]),
        ],
    )


def tagger():
    """Tokens in, a class for every position out."""
    return fnn.graph(
        inputs={"text": 6},
        layers=[
            Layer("columns", 4, sources=[("text", "embedding(5)")], bias="none"),
            Layer("hidden", 4, "tanh", sources=[("columns", "conv(3)")]),
            Layer("output", 3, "softmax", sources=["hidden"]),
        ],
    )


def data(network, examples=4, classes=3):
    """(inputs by name, classes of the examples or of their positions)."""
    inputs = {
        name: DRAW.integers(network.tokens[name], size=(examples, *network.shapes[name]))
        if name in network.tokens
        else DRAW.normal(size=(examples, *network.shapes[name]))
        for name, _ in network.inputs
    }
    return inputs, DRAW.integers(classes, size=(examples, *network.shapes[network.output.name][:-1]))


def parameters(network, key=KEY):
    """With nothing at zero; weights shrink with what reaches a neuron. Drawn by NumPy, which compiles nothing."""
    draw = generator(key)

    def drawn(x):
        return jnp.asarray(draw.standard_normal(x.shape) / math.sqrt(max(1, math.prod(x.shape[1:]))))

    return jax.tree.map(drawn, jax.eval_shape(network.init, KEY))


# Shapes ---------------------------------------------------------------------------------------------------------------


def test_a_network_knows_the_shape_of_every_signal():
    network = residual()
    layers = {
        "conv": (3, 6, 4),
        "deep": (3, 6, 4),
        "block": (3, 6, 4),
        "pool": (3, 6, 4),
        "corner": (4,),
        "output": (3,),
    }
    assert network.shapes == {"image": (5, 6, 2), "vector": (3,)} | layers and network.net_shapes == layers
    assert network.sizes == {name: math.prod(shape) for name, shape in network.shapes.items()}
    assert network.tokens == {} and tagger().tokens == {"text": 5}
    assert tagger().shapes == {"text": (6,), "columns": (6, 4), "hidden": (6, 4), "output": (6, 3)}
    trace = jax.eval_shape(network.forward, parameters(network), data(network)[0])
    assert shapes(trace.net_inputs) == {name: (4, *shape) for name, shape in network.net_shapes.items()}
    assert shapes(trace.activations) == {name: (4, *shape) for name, shape in network.shapes.items()}


def test_an_input_is_a_size_or_a_shape():
    def of(shape, by="full"):
        return fnn.graph(inputs={"x": shape}, layers=[Layer("output", 2, sources=[("x", by)])])

    assert of(5) == of((5,)) == of([5]) == of(np.int64(5)) and of(5).inputs == (("x", 5),)
    assert of((4, 5)) == of([np.int64(4), 5]) and of((4, 5)).inputs == (("x", (4, 5)),)
    assert of((4, 5)) != of((5, 4)) and of((4, 5)) != of(20)
    chain = fnn.multilayer(((4, 5), 3, 2), ("tanh", "linear"))  # a dense chain, at every position the same
    assert chain.shapes == {"input": (4, 5), "layer1": (4, 3), "layer2": (4, 2)}
    images = DRAW.integers(256, size=(2, 4, 5)).astype(np.uint8)
    params = of((4, 5)).init(KEY)
    np.testing.assert_array_equal(of((4, 5)).apply(params, images), of((4, 5)).apply(params, images.astype(float)))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Layer("a", 4, sources="x"), {"weights": {"x": (4, 3)}, "bias": (4,)}),
        (Layer("a", 4, sources=[("x", "full")]), {"weights": {"x": (4, 60)}, "bias": (4,)}),
        (Layer("a", 4, sources=[("x", "conv((3, 2))")]), {"weights": {"x": (4, 3, 2, 3)}, "bias": (4,)}),
        (Layer("a", 6, sources=[("x", "conv((3, 2), groups=3)")], bias="none"), {"weights": {"x": (6, 3, 2, 1)}}),
        (
            Layer("a", 4, sources=[("x", "conv((3, 2), stride=2)")], bias="per_position"),
            {"weights": {"x": (4, 3, 2, 3)}, "bias": (2, 3, 4)},
        ),
        (Layer("a", 4, sources=[("x", "conv((1, 1))")], bias="shared"), {"weights": {"x": (4, 1, 1, 3)}, "bias": (1,)}),
        (
            Layer("a", 4, "maxout(2)", sources=[("x", "conv((2, 2), padding=valid)")], bias="per_position"),
            {"weights": {"x": (8, 2, 2, 3)}, "bias": (3, 4, 8)},
        ),
        (
            Layer("a", 3, "prelu", sources=[("x", "identity")]),
            {"weights": {}, "bias": (3,), "learned": {"slope": (3,)}},
        ),
        (
            Layer("a", 3, "prelu(layer)", sources=[("x", "mean_pool")], bias="none"),
            {"weights": {}, "learned": {"slope": (1,)}},
        ),
        (Layer("a", 3, sources=[("x", "take((0, -1))")], bias="per_position"), {"weights": {}, "bias": (3,)}),
        (Layer("a", 3, sources=[("x", "mean_pool((2, 2))")], bias="per_position"), {"weights": {}, "bias": (2, 2, 3)}),
    ],
)
def test_parameters_follow_the_connection(layer, expected):
    """And gradients have their shapes, whoever takes them."""
    network = fnn.graph(inputs={"x": (4, 5, 3)}, layers=[layer])
    params = network.init(KEY)
    assert shapes(params) == {"a": expected}
    x = DRAW.normal(size=(2, 4, 5, 3))
    outputs = jax.eval_shape(network.apply, params, x)
    assert outputs.shape == (2, *network.shapes["a"])
    by_hand = jax.eval_shape(fnn.value_and_grad(network, "sum_square_error"), params, x, outputs)[1]
    assert shapes(by_hand) == {"a": expected}


def test_all_sources_of_a_junction_are_added():
    """n_p = W (x_p, x_p+1) + y_p + b_p, of a convolution, a residual and a bias at each position."""
    layer = Layer("a", 3, sources=[("x", "conv(2, padding=valid)"), ("y", "identity")], bias="per_position")
    network = fnn.graph(inputs={"x": (5, 2), "y": (4, 3)}, layers=[layer])
    params, (inputs, _) = parameters(network), data(network)
    own, x = jax.tree.map(np.asarray, params["a"]), inputs["x"]
    windows = np.stack([x[:, :-1], x[:, 1:]], axis=2).reshape(4, 4, 4)
    expected = windows @ own["weights"]["x"].reshape(3, 4).T + inputs["y"] + own["bias"]
    np.testing.assert_allclose(network.forward(params, inputs).net_inputs["a"], expected, rtol=1e-13, atol=1e-14)


# Initializers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "sources", "initializer", "variance"),
    [
        ({"x": (5, 5, 8)}, [("x", "conv((3, 3))")], "he_normal", 2 / 72),
        ({"x": (5, 5, 8)}, [("x", "conv((3, 3))")], "xavier_uniform", 2 / (72 + 9 * 64)),
        ({"x": (5, 5, 8)}, [("x", "conv((3, 3), groups=8)")], "lecun_normal", 1 / 9),  # each reads one channel
        ({"x": (5, 5, 8)}, [("x", "conv((3, 3), groups=8)")], "xavier_normal", 2 / (9 + 9 * 8)),
        ({"x": (5, 5, 8)}, [("x", "full")], "lecun_uniform", 1 / 200),
        ({"x": (5, 8)}, ["x"], "lecun_normal", 1 / 8),
        ({"x": 5}, [("x", "embedding(50)")], "xavier_normal", 2 / (1 + 64)),
        ({"x": (5, 64), "y": (5, 8)}, [("x", "identity"), ("y", "conv(3)")], "lecun_normal", 1 / 24),
        ({"x": (5, 8), "y": 5}, [("x", "conv(2)"), ("y", "embedding(50)")], "lecun_normal", 1 / 17),
    ],
)
def test_weights_are_drawn_for_what_reaches_a_neuron(inputs, sources, initializer, variance):
    """Of all sources together; sqrt(2 / draws) is the deviation of a normal's variance, and more than a uniform's."""
    network = fnn.graph(inputs=inputs, layers=[Layer("a", 64, sources=sources, initializer=initializer)])
    for weights in network.init(KEY)["a"]["weights"].values():
        assert abs(float(jnp.mean(weights**2)) / variance - 1) <= 5 * np.sqrt(2 / weights.size)
        assert len(np.unique(weights)) == weights.size


# Dropout and dtypes ---------------------------------------------------------------------------------------------------


def test_dropout_drops_channels_of_positions_each_by_itself():
    layers = [
        Layer("a", 8, "tanh", sources=[("x", "conv((3, 3))")], dropout=0.25),
        Layer("b", 2, sources=[("a", "full")]),
    ]
    network = fnn.graph(inputs={"x": (6, 6, 1)}, layers=layers)
    params, (x, _) = parameters(network), data(network, 10)
    trace = network.forward(params, x, key=KEY)
    mask = np.asarray(trace.dropped["a"].mask)
    assert mask.shape == (10, 6, 6, 8) and set(np.unique(mask)) == {0, 1 / 0.75}
    for axes in ((0,), (1, 2), (3,)):  # of no example, position or channel all fall together
        share = (mask == 0).mean(axis=axes)
        assert abs(share.mean() - 0.25) <= 5 * np.sqrt(0.25 * 0.75 / mask.size) and share.std() > 0
    np.testing.assert_array_equal(trace.activations["a"], trace.dropped["a"].activations * mask)
    assert network.forward(params, x).dropped == {}
    targets = DRAW.normal(size=(10, 2))
    by_hand = jax.jit(fnn.value_and_grad(network, "mean_square_error"))(params, x, targets, None, KEY)[1]
    automatic = jax.jit(jax.grad(fnn.objective(network, "mean_square_error")))(params, x, targets, None, KEY)
    assert relative_error(by_hand, automatic) <= 1e-12


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("build", [residual, tagger], ids=lambda build: build.__name__)
def test_signals_keep_the_parameters_dtype(build, dtype):
    network = build()
    params, (inputs, labels) = network.init(KEY, dtype), data(network)
    gradient = jax.eval_shape(fnn.value_and_grad(network, "cross_entropy"), params, inputs, labels)
    trace = jax.eval_shape(network.forward, params, inputs)
    numbers = {name: a for name, a in trace.activations.items() if name not in network.tokens}
    assert {x.dtype for x in jax.tree.leaves((params, gradient, trace.net_inputs, numbers))} == {jnp.dtype(dtype)}
    assert {trace.activations[name].dtype for name in network.tokens} <= {jnp.dtype("int32")}


# Proofs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [residual, tagger], ids=lambda build: build.__name__)
def test_by_hand_is_automatic(build):
    """Gradients, and what reaches the inputs that are numbers; in columns they are the same."""
    check_against_autodiff(build())


def check_against_autodiff(network, seed=0):
    loss, params = fnn.losses.cross_entropy(), parameters(network, jax.random.key(seed))
    inputs, labels = data(network)
    numbers = {name: jnp.asarray(x) for name, x in inputs.items() if name not in network.tokens}

    @jax.jit
    def both(params, numbers):
        def objective(params, numbers):
            return fnn.objective(network, loss)(params, inputs | numbers, labels)

        by_hand = (
            fnn.backpropagate(own, loss, params, inputs | numbers, labels, input_gradients=True)
            for own in (network, for_lanes(network, True), for_lanes(network, False))
        )
        found = [(own.gradients, own.input_gradients) for own in by_hand]
        return found, jax.grad(objective, (0, 1))(params, numbers)

    by_hand, automatic = both(params, numbers)
    for found in by_hand:
        assert relative_error(found, automatic) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("build", [residual, tagger], ids=lambda build: build.__name__)
def test_every_opinion_is_that_signals_are_right(build, dtype):
    network = build()
    params = jax.tree.map(lambda x: x.astype(dtype), parameters(network))
    agreement = fnn.compare(network, "cross_entropy", params, *data(network))
    assert agreement.verdict == "agree" and agreement.third_opinion.says == "both are right"
    assert agreement.taylor.says == "right"


@st.composite
def graphs(draw):
    """Chains and graphs of convolutions, pooling, residuals and dense layers on signals of one or two axes."""

    def pick(*of):
        return draw(st.sampled_from(of))

    inputs = {"x": (*(draw(st.integers(2, 5)) for _ in range(pick(1, 2))), pick(2, 4))}
    known, layers, unread = dict(inputs), [], set(inputs)
    for number in range(draw(st.integers(1, 4))):
        name, source = f"layer{number}", pick(*known)
        *positions, channels = known[source]
        size, bias = pick(2, 4), pick("per_neuron", "per_position", "shared", "none")

        def each(most, positions=positions):
            return tuple(draw(st.integers(1, min(most, p))) for p in positions)

        conv = f"conv({each(3)}, stride={each(2)}, padding={pick('same', 'valid', 1)}, groups={pick(1, 2)})"
        kind = pick("conv", "conv", "pool", "residual", "dense")
        if kind == "conv":
            sources = [(source, conv)]
        elif kind == "pool":
            size = channels
            sources = [(source, f"mean_pool({each(3)}, stride={each(2)}, padding={pick('same', 'valid')})")]
        elif kind == "residual":
            size = channels
            alike = [other for other in known if known[other][:-1] == known[source][:-1] and other != source]
            sources = [(source, "identity"), *((other, f"conv({each(3)})") for other in alike[-1:])]
        else:
            sources = [source]
        layer = Layer(name, size, pick("tanh", "sigmoid", "relu", "prelu"), sources=sources, bias=bias)
        made = fnn.graph(
            inputs={other: known[other] for other in layer.sources},
            layers=[layer] + ([] if layer.weighted or bias != "none" else [Layer("end", 1, sources=[name])]),
        )
        known[name] = made.shapes[name]
        layers.append(layer)
        unread = (unread - set(layer.sources)) | {name}
    everywhere = len(unread) == 1 and draw(st.booleans())
    sources = [next(iter(unread))] if everywhere else [(name, "full") for name in sorted(unread)]
    return fnn.graph(inputs=inputs, layers=[*layers, Layer("output", 3, "softmax", sources=sources)])


@settings(max_examples=3)
@given(graphs(), st.integers(0, 2**16))
def test_random_graphs_by_hand_are_automatic(network, seed):
    check_against_autodiff(network, seed)


@pytest.mark.slow
@settings(max_examples=25)
@given(graphs(), st.integers(0, 2**16))
def test_random_graphs_agree(network, seed):
    """Within what rounding makes of each of them."""
    params, (inputs, labels) = parameters(network, jax.random.key(seed)), data(network, 3)
    agreement = fnn.compare(network, "cross_entropy", params, inputs, labels, second_opinions=False)
    assert agreement.verdict == "agree", agreement.where


def test_tokens_are_learned_from():
    """Each token has its class, whatever its neighbours: columns of the embedding change until all are right."""
    network = tagger()
    x = DRAW.integers(5, size=(12, 6))
    labels = np.array([0, 1, 2, 1, 0])[x]
    found = fnn.fit(network, "cross_entropy", "adam(0.1)", x, labels, key=KEY, epochs=40)
    assert (np.argmax(network.apply(found.params, x), axis=-1) == labels).all()


# Descriptions ---------------------------------------------------------------------------------------------------------


def test_descriptions_are_equal_however_connections_are_given_and_survive_copies():
    conv = fnn.connections.conv((3, 3), stride=2)
    ways = [
        Layer("a", 4, "tanh", sources=[("x", "conv((3, 3), stride=2)"), ("y", "full")]),
        Layer("a", 4, "tanh", sources=(("x", conv), ("y", fnn.connections.full))),
        Layer("a", 4, "tanh", sources=(["x", conv], ["y", "full"])),
        Layer("a", 4, "tanh", sources=("x", "y"), connections=(conv, fnn.connections.full)),
    ]
    assert len(set(ways)) == 1 and ways[0].sources == ("x", "y") and ways[0].connections[0] is conv
    for other in ("conv((3, 3), stride=1)", "conv((3, 3), stride=2, padding=valid)", "dense"):
        assert Layer("a", 4, "tanh", sources=[("x", other), ("y", "full")]) != ways[0]
    for network in (residual(), tagger(), for_lanes(residual(), True), for_lanes(residual(), False)):
        for again in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network), copy.copy(network)):
            assert again == network and hash(again) == hash(network)
            assert (again.shapes, again.net_shapes, again.tokens) == (
                network.shapes,
                network.net_shapes,
                network.tokens,
            )
    lanes = {residual(), for_lanes(residual(), True), for_lanes(residual(), False)}
    assert residual() == residual() and len(lanes) == 3


# What bad input gets --------------------------------------------------------------------------------------------------


def one(*sources, size=4, activation="linear", **inputs):
    return lambda: fnn.graph(inputs=inputs, layers=[Layer("a", size, activation, sources=sources)])


PAIRS = "layer 'a': sources are names, or pairs of a name and a connection such as ('image', 'conv((3, 3))'), in a list"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            one(("x", "conv((3, 3))"), x=5),
            "layer 'a' reads 'x' by conv((3, 3)), which needs a signal (P, Q, channels), got shape (5,)",
        ),
        (one(("x", "conv(3)"), x=(4, 4, 1)), "which needs a signal (P, channels), got shape (4, 4, 1)"),
        (
            one(("x", "conv((3, 3))"), x=(2, 8, 1)),
            "layer 'a' reads 'x' by conv((3, 3)), which has a window over (3, 3) positions, larger than the signal's "
            "(2, 8); padding given as numbers allows it",
        ),
        (
            one(("x", "conv(3, dilation=2, padding=1)"), x=(2, 1)),
            "which has a window over 5 positions, larger than the signal's 4, padding included",
        ),
        (
            one(("x", "conv(3, stride=9)"), x=(8, 1)),
            "which has a stride of 9 positions, larger than the signal's 8",
        ),
        (one(("x", "conv(3, groups=2)"), x=(8, 3)), "reads 3 channels, which groups=2 does not divide"),
        (one(("x", "conv(3, groups=2)"), size=3, x=(8, 2)), "gives 3 channels, which groups=2 does not divide"),
        (
            one(("x", "mean_pool(3)"), x=(2, 4)),
            "layer 'a' reads 'x' by mean_pool(3), which has a window over 3 positions, larger than the signal's 2",
        ),
        (
            one(("x", "mean_pool(2, stride=1, padding=2)"), x=(4, 4)),
            "which has windows that meet nothing but padding, over positions (4,)",
        ),
        (one(("x", "mean_pool((2, 2), stride=8, padding=5)"), x=(1, 1, 4)), "windows that meet nothing but padding"),
        (one(("x", "mean_pool"), x=4), "which needs a signal with positions, got shape (4,)"),
        (one(("x", "take(4)"), x=(4, 4)), "which has position 4, outside the signal's (4,)"),
        (one(("x", "take(0)"), x=(4, 4, 4)), "which needs a signal with 1 axes of positions, got shape (4, 4, 4)"),
        (one(("x", "identity"), x=(8, 2)), "layer 'a' has 4 neurons, but gets 'x' by identity (8, 2)"),
        (
            one(("x", "identity"), activation="maxout(2)", x=(8, 4)),
            "layer 'a' has 4 neurons of 2 pieces, but gets 'x' by identity (8, 4)",
        ),
        (
            one(("x", "identity"), ("y", "identity"), x=(8, 4), y=(7, 4)),
            "layer 'a': the terms it adds must have one shape, but it gets 'x' by identity (8, 4), 'y' by identity",
        ),
        (one(("x", "identity"), "y", x=(8, 4), y=4), "it gets 'x' by identity (8, 4), 'y' by dense (4,)"),
        (
            lambda: fnn.graph(
                inputs={"x": 3}, layers=[Layer("h", 4, sources="x"), Layer("a", 4, sources=[("h", "embedding(5)")])]
            ),
            "layer 'a' reads 'h' by embedding(5): only inputs can be integers, not layers",
        ),
        (
            lambda: fnn.graph(
                inputs={"x": 3},
                layers=[Layer("h", 4, sources=[("x", "embedding(5)")]), Layer("a", 4, sources=[("h", "full"), "x"])],
            ),
            "input 'x' is read as tokens by one layer and as numbers by another; name it twice",
        ),
        (
            lambda: fnn.graph(
                inputs={"x": (3, 4)}, layers=[Layer("a", 4, "tanh", sources=[("x", "identity")], bias="none")]
            ),
            "a network needs parameters, and none of these layers has weights or a bias",
        ),
        (one("x", x=()), "input 'x': the shape (), one number an example, is that of lengths"),
        (one("x", x=(3, 0)), "input 'x': size must be an integer >= 1, got 0"),
        (one("x", x=(3, 2.0)), "input 'x': size must be an integer >= 1, got 2.0"),
        (
            one("x", "conv(3)", x=(3, 2)),
            "a connection is given in a pair with what it reads, as in sources=[('x', 'conv",
        ),
        (one(("x", "cnv(3)"), x=(3, 2)), "unknown connection 'cnv'; did you mean 'conv'?"),
        (one("x", fnn.connections.full, x=3), f"{PAIRS}; got <connection full>"),
        (one(("x", "full", "y"), x=3), f"{PAIRS}; got ('x', 'full', 'y')"),
        (one(("x", 3), x=3), f"{PAIRS}; got ('x', 3)"),
        (one((fnn.connections.full, "x"), x=3), f"{PAIRS}; got (<connection full>, 'x')"),
        (lambda: Layer("a", 4, sources=3), f"{PAIRS}; got 3"),
        (lambda: Layer("a", 4, sources={"x": "full"}), f"{PAIRS}; got {{'x': 'full'}}"),
        (
            lambda: Layer("a", 4, sources=("x", "y"), connections=(fnn.connections.full,)),
            "layer 'a': expected 2 connections, one for each source, got 1",
        ),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(build, message):
    with pytest.raises((ValueError, TypeError)) as refusal:
        build()
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


TEXT, LABELS = np.zeros((4, 6), int), np.zeros((4, 6), int)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((TEXT + 5,), "inputs: expected tokens 0 to 4, got 5 at index (0, 0)"),
        ((np.where(np.arange(6) < 5, TEXT, -1),), "inputs: expected tokens 0 to 4, got -1 at index (0, 5)"),
        (({"text": TEXT + 5},), "inputs['text']: expected tokens 0 to 4, got 5 at index (0, 0)"),
        ((TEXT * 1.0,), "inputs: expected tokens, integers 0 to 4, got dtype float64"),
        ((TEXT > 0,), "inputs: expected tokens, integers 0 to 4, got dtype bool"),
        ((TEXT[:, :5],), "inputs: expected shape (Q, 6), got (4, 5)"),
        ((TEXT, LABELS[:, :5]), "targets: expected shape (4, 6, 3) to match the outputs, got (4, 5); integers (Q, 6)"),
        ((TEXT, LABELS[0]), "targets: expected shape (4, 6, 3) to match the outputs, got (6,)"),
        ((TEXT, LABELS * 1.0), "targets: expected shape (4, 6, 3) to match the outputs, got (4, 6)"),
        ((TEXT, np.ones((4, 5, 3))), "targets: expected shape (4, 6, 3) to match the outputs, got (4, 5, 3)"),
        ((TEXT, LABELS + 3), "labels: expected 0 to 2, got 3 at index (0, 0)"),
        ((TEXT, LABELS, np.ones(6)), "weights: expected shape (4,), one for each example, or (4, 6), one for each pos"),
        ((TEXT, LABELS, np.ones((4, 6, 1))), "one for each position, got (4, 6, 1)"),
        ((TEXT, LABELS, LABELS - 1), "weights: expected numbers >= 0, got -1"),
        ((TEXT, LABELS, LABELS), "weights: expected at least one above 0, got none"),
    ],
)
def test_wrong_data_is_refused_in_one_line(given, message):
    network = tagger()
    inputs, targets, weights = (*given, *(LABELS, None)[len(given) - 1 :])
    with pytest.raises(ValueError) as refusal:
        fnn.value_and_grad(network, "cross_entropy")(parameters(network), inputs, targets, weights)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_token_out_of_range_gives_nan_where_it_cannot_be_refused():
    network = tagger()
    params, x = parameters(network), np.array([[0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 5], [-1, 0, 0, 0, 0, 0]])
    outputs = jax.jit(network.apply)(params, x)
    lost = np.isnan(outputs).all(axis=-1)  # by windows of three, its neighbour, too
    np.testing.assert_array_equal(lost, [[False] * 6, [False] * 4 + [True] * 2, [True] * 2 + [False] * 4])
    assert np.isfinite(outputs[0]).all()
    with pytest.raises(ValueError, match="inputs: expected tokens, integers 0 to 4, got dtype float64"):
        jax.jit(network.apply)(params, x * 1.0)
