"""The contract that users write against: descriptions, parameters, the forward pass, and what bad input gets."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    DTYPES,
    GRAPHS,
    chain,
    fan_out,
    hagan_p32,
    inputs_for,
    random_params,
    reference_forward,
    relative_error,
)

import functional_nn as fnn
from functional_nn import Layer, activations, initializers

KEY = jax.random.key(0)
EPS = np.finfo(np.float64).eps


def shapes(tree):
    return jax.tree.map(lambda x: x.shape, tree)


# Descriptions ---------------------------------------------------------------------------------------------------------


def test_a_chain_has_the_contracts_names_and_shapes():
    network = fnn.multilayer((64, 32, 10), activations=("tanh", "softmax"))
    assert network.inputs == (("input", 64),)
    assert [layer.name for layer in network.layers] == ["layer1", "layer2"]
    assert [layer.sources for layer in network.layers] == [("input",), ("layer1",)]
    assert network.output.size == 10 and network.output is network.layers[-1]
    assert shapes(network.init(KEY)) == {
        "layer1": {"weights": {"input": (32, 64)}, "bias": (32,)},
        "layer2": {"weights": {"layer1": (10, 32)}, "bias": (10,)},
    }
    assert network.apply(network.init(KEY), jnp.ones((5, 64))).shape == (5, 10)


def test_a_graph_has_the_contracts_names_and_shapes():
    network = fnn.graph(
        inputs={"p1": 2, "p2": 3},
        layers=[
            Layer("hidden", 4, activation="tanh", sources=("p1",)),
            Layer("output", 2, activation="linear", sources=("hidden", "p2")),
        ],
    )
    params = network.init(KEY)
    assert shapes(params) == {
        "hidden": {"weights": {"p1": (4, 2)}, "bias": (4,)},
        "output": {"weights": {"hidden": (2, 4), "p2": (2, 3)}, "bias": (2,)},
    }
    inputs = {"p1": jnp.ones((5, 2)), "p2": jnp.ones((5, 3))}
    trace = network.forward(params, inputs)
    assert isinstance(trace, fnn.Trace)
    assert shapes(trace.net_inputs) == {"hidden": (5, 4), "output": (5, 2)}
    assert shapes(trace.activations) == {"p1": (5, 2), "p2": (5, 3), "hidden": (5, 4), "output": (5, 2)}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Layer("output", 4, "tanh", ("p",)), {"weights": {"p": (4, 3)}, "bias": (4,)}),
        (Layer("output", 4, "tanh", "p", bias="shared"), {"weights": {"p": (4, 3)}, "bias": (1,)}),
        (Layer("output", 4, "tanh", ["p"], bias="none"), {"weights": {"p": (4, 3)}}),
        (Layer("output", 4, "prelu", ("p",)), {"weights": {"p": (4, 3)}, "bias": (4,), "learned": {"slope": (4,)}}),
        (
            Layer("output", 4, "prelu(layer)", ("p",)),
            {"weights": {"p": (4, 3)}, "bias": (4,), "learned": {"slope": (1,)}},
        ),
        (Layer("output", 4, "maxout(3)", ("p",)), {"weights": {"p": (12, 3)}, "bias": (12,)}),
        (Layer("output", 4, "maxout(3)", ("p",), bias="shared"), {"weights": {"p": (12, 3)}, "bias": (1,)}),
    ],
)
def test_parameters_follow_the_layer(layer, expected):
    network = fnn.graph(inputs={"p": 3}, layers=[layer])
    params = network.init(KEY)
    assert shapes(params) == {"output": expected}
    assert network.apply(params, jnp.ones((2, 3))).shape == (2, 4)
    assert network.forward(params, jnp.ones((2, 3))).net_inputs["output"].shape == (2, layer.rows)


@pytest.mark.parametrize("graph", GRAPHS)
def test_equal_descriptions_are_equal_and_hash_alike(graph):
    build, _ = GRAPHS[graph]
    one, other = build("maxout(3)", "leaky_relu(0.1)"), build("maxout(3)", "leaky_relu(0.1)")
    assert one == other and hash(one) == hash(other)
    assert one != build("maxout(3)", "leaky_relu(0.2)")
    assert one != build("maxout", "leaky_relu(0.1)") or graph == "one layer"
    with pytest.raises(AttributeError):
        one.layers = ()


def test_a_chain_takes_one_setting_for_all_layers_or_one_for_each():
    together = fnn.multilayer((2, 3, 1), ("tanh", "linear"), bias="shared", initializer="zeros")
    apart = fnn.multilayer((2, 3, 1), ("tanh", "linear"), bias=("shared", "none"), initializer=("zeros", None))
    assert [layer.bias for layer in together.layers] == ["shared", "shared"]
    assert [layer.bias for layer in apart.layers] == ["shared", "none"]
    assert [layer.initializer.name for layer in apart.layers] == [initializers.get("zeros").name, "xavier_uniform"]
    assert fnn.multilayer((2, 3), (activations.tanh,)) == fnn.multilayer([2, 3], ["tanh"])
    assert fnn.multilayer(np.array([2, 3]), ("tanh",)) == fnn.multilayer((2, 3), ("tanh",))


def test_a_chain_is_a_graph():
    layers = [Layer("layer1", 4, "tanh", ("input",)), Layer("layer2", 1, "linear", ("layer1",))]
    assert fnn.graph(inputs={"input": 2}, layers=layers) == fnn.multilayer((2, 4, 1), ("tanh", "linear"))


# The forward pass -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
def test_forward_is_the_reference(graph):
    build, examples = GRAPHS[graph]
    network = build("tanh", "softmax")
    params, inputs = random_params(network, KEY), inputs_for(network, jax.random.key(1), examples)
    trace = network.forward(params, inputs)
    net_inputs, outputs = reference_forward(network, params, inputs)
    assert (
        relative_error(trace.net_inputs, jax.tree.map(np.array, net_inputs, is_leaf=lambda x: isinstance(x, list)))
        <= 1e-12
    )
    assert (
        relative_error(trace.activations, jax.tree.map(np.array, outputs, is_leaf=lambda x: isinstance(x, list)))
        <= 1e-12
    )
    chex.assert_trees_all_equal(network.apply(params, inputs), trace.activations[network.output.name])


def test_hagan_p32_adds_the_contributions_at_the_junction():
    network = hagan_p32("tanh", "linear")
    params, p = random_params(network, KEY), inputs_for(network, jax.random.key(1), 3)
    one, two = params["layer1"], params["layer2"]
    a1 = jnp.tanh(p @ one["weights"]["p1"].T + one["bias"][None, :])
    n2 = p @ two["weights"]["p1"].T + a1 @ two["weights"]["layer1"].T + two["bias"][None, :]
    np.testing.assert_allclose(network.forward(params, p).net_inputs["layer2"], n2, rtol=16 * EPS, atol=16 * EPS)


def test_offsets_are_added_to_the_net_inputs():
    network = fan_out("tanh", "linear")
    params, inputs = random_params(network, KEY), inputs_for(network, jax.random.key(1), 3)
    plain = network.forward(params, inputs)
    offset = jnp.arange(6.0).reshape(3, 2)
    moved = network.forward(params, inputs, {"second": offset})
    np.testing.assert_array_equal(moved.net_inputs["second"], plain.net_inputs["second"] + offset)
    np.testing.assert_array_equal(moved.net_inputs["first"], plain.net_inputs["first"])
    assert not np.allclose(moved.net_inputs["output"], plain.net_inputs["output"])
    chex.assert_trees_all_equal(network.forward(params, inputs, {"second": 0 * offset}), plain)


@pytest.mark.parametrize("offsets", [{"secnd": jnp.zeros((3, 2))}, {"second": jnp.zeros((1, 2))}])
def test_offsets_that_do_not_fit_are_refused(offsets):
    network = fan_out("tanh", "linear")
    with pytest.raises(ValueError, match="offsets"):
        network.forward(random_params(network, KEY), inputs_for(network, KEY, 3), offsets)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_everything_is_computed_in_the_parameters_dtype(dtype):
    network = chain((3, 4, 2), "prelu", "softmax")
    params = network.init(KEY, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    for given in (jnp.ones((5, 3)), np.ones((5, 3), np.float32), np.ones((5, 3), np.int8), np.ones((5, 3), bool)):
        assert {leaf.dtype for leaf in jax.tree.leaves(network.forward(params, given))} == {jnp.dtype(dtype)}


def test_init_is_a_function_of_the_key():
    network = fan_out("tanh", "linear")
    chex.assert_trees_all_equal(network.init(KEY), network.init(KEY))
    for a, b in zip(jax.tree.leaves(network.init(KEY)), jax.tree.leaves(network.init(jax.random.key(1))), strict=True):
        assert a.ndim == 1 or (a != b).all()
    chain_of_equals = network_of_equal_layers().init(KEY)
    assert (chain_of_equals["layer1"]["weights"]["input"] != chain_of_equals["layer2"]["weights"]["layer1"]).all()


def network_of_equal_layers():
    return fnn.multilayer((4, 4, 4), ("tanh", "tanh"))


def test_the_default_dtype_is_jaxs():
    network = fnn.multilayer((2, 1), ("linear",))
    assert network.init(KEY)["layer1"]["bias"].dtype == jnp.float64
    with jax.enable_x64(False):
        assert network.init(KEY)["layer1"]["bias"].dtype == jnp.float32


def test_the_pass_works_under_jit_and_vmap():
    network = hagan_p32("maxout", "softmax")
    members = [random_params(network, jax.random.key(i)) for i in range(3)]
    inputs = inputs_for(network, jax.random.key(1), 4)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    over_params = jax.jit(jax.vmap(network.apply, in_axes=(0, None)))(stacked, inputs)
    assert relative_error(over_params, jnp.stack([network.apply(params, inputs) for params in members])) <= 1e-12
    over_examples = jax.vmap(lambda x: network.apply(members[0], x[None, :])[0])(inputs)
    assert relative_error(over_examples, network.apply(members[0], inputs)) <= 1e-12


# What bad input gets: descriptions ------------------------------------------------------------------------------------


def of(*layers, inputs=None):
    return lambda: fnn.graph(inputs={"p": 2} if inputs is None else inputs, layers=layers)


def multilayer(*given, **named):
    return lambda: fnn.multilayer(*given, **named)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Layer("a", 2, "rleu"), "unknown activation 'rleu'; did you mean 'relu'?"),
        (lambda: Layer("a", 2, initializer="he_norml"), "unknown initializer 'he_norml'; did you mean 'he_normal'?"),
        (lambda: Layer("a", 2, bias="shard"), "layer 'a': unknown bias 'shard'; did you mean 'shared'?"),
        (lambda: Layer("a", 0), "layer 'a': size must be an integer >= 1, got 0"),
        (lambda: Layer("a", -3), "layer 'a': size must be an integer >= 1, got -3"),
        (lambda: Layer("a", 2.0), "layer 'a': size must be an integer >= 1, got 2.0"),
        (lambda: Layer("a", True), "layer 'a': size must be an integer >= 1, got True"),
        (lambda: Layer("a", "2"), "layer 'a': size must be an integer >= 1, got '2'"),
        (lambda: Layer("", 2), "layer name: expected a non-empty string without '/', got ''"),
        (lambda: Layer("a/b", 2), "layer name: expected a non-empty string without '/', got 'a/b'"),
        (lambda: Layer(3, 2), "layer name: expected a non-empty string without '/', got 3"),
        (
            lambda: Layer("a", 2, "tanh", bias="shared", initializer="nguyen_widrow"),
            "layer 'a': initializer 'nguyen_widrow' gives every neuron its own bias",
        ),
        (of(), "a network needs at least one input and one layer, got 1 and 0"),
        (of(Layer("a", 2, sources="p"), inputs={}), "a network needs at least one input and one layer, got 0 and 1"),
        (of(Layer("a", 2, sources="p"), inputs={"p": 0}), "input 'p': size must be an integer >= 1, got 0"),
        (of(Layer("a", 2, sources="p/q"), inputs={"p/q": 1}), "input name: expected a non-empty string without '/'"),
        (of(Layer("a", 2)), "layer 'a' reads nothing; sources must name an input or an earlier layer"),
        (of(Layer("a", 2, sources=("p", "p"))), "layer 'a' reads a source twice: ('p', 'p')"),
        (
            of(Layer("hidden", 2, sources="p"), Layer("output", 1, sources="hiden")),
            "layer 'output' reads 'hiden', which is not an input or an earlier layer: "
            "unknown source 'hiden'; did you mean 'hidden'?",
        ),
        (
            of(Layer("a", 2, sources="b"), Layer("b", 2, sources="p")),
            "layer 'a' reads 'b', which does not come before it",
        ),
        (of(Layer("a", 2, sources=("p", "a"))), "layer 'a' reads 'a', which does not come before it"),
        (
            of(Layer("a", 2, sources="p"), Layer("a", 2, sources="p")),
            "layer 'a': the name is already taken by an input or an earlier layer",
        ),
        (of(Layer("p", 2, sources="p")), "layer 'p': the name is already taken by an input or an earlier layer"),
        (
            of(Layer("a", 2, sources="p"), Layer("b", 2, sources="p"), Layer("c", 1, sources="b")),
            "'a' is not read by any layer, so it cannot reach the output 'c'",
        ),
        (of(Layer("a", 2, sources="p"), inputs={"p": 1, "q": 1}), "'q' is not read by any layer"),
        (multilayer((3,), ()), "sizes: expected the input's size and at least one layer's, got (3,)"),
        (multilayer((), ()), "sizes: expected the input's size and at least one layer's, got ()"),
        (multilayer((3, 2, 1), ("tanh",)), "activations: expected 2, one for each layer, got 1"),
        (multilayer((3, 2, 1), "tanh"), "activations: expected 2, one for each layer, got the single 'tanh'"),
        (multilayer((3, 2), ("tanh",), bias=("none", "none")), "bias: expected 1, one for each layer, got 2"),
        (multilayer((3, 2), ("tanh",), initializer=()), "initializer: expected 1, one for each layer, got 0"),
        (multilayer((3, 0, 1), ("tanh", "tanh")), "layer 'layer1': size must be an integer >= 1, got 0"),
        (multilayer((0, 1), ("tanh",)), "input 'input': size must be an integer >= 1, got 0"),
        (multilayer((3, 2), ("tanhh",)), "unknown activation 'tanhh'; did you mean 'tanh'?"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(build, message):
    with pytest.raises(ValueError) as refusal:
        build()
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_input_named_twice_is_refused():
    with pytest.raises(ValueError, match="input 'p' is named twice"):
        fnn.Network((("p", 1), ("p", 2)), (Layer("a", 1, sources=("p",)),))


# What bad input gets: parameters, inputs, targets ---------------------------------------------------------------------


@pytest.fixture
def two_inputs():
    network = fan_out("prelu", "softmax")
    return network, random_params(network, KEY), inputs_for(network, jax.random.key(1), 4)


def without(tree, *path):
    """A copy of nested dicts in which what stands at `path` is gone."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in tree.items() if key != first}
    return {**tree, first: without(tree[first], *rest)}


def with_leaf(tree, leaf, *path):
    first, *rest = path
    return {**tree, first: with_leaf(tree.get(first, {}), leaf, *rest) if rest else leaf}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: without(p, "first", "bias"), "params: first/bias is missing"),
        (lambda p: without(p, "second"), "params: second/bias is missing"),
        (lambda p: without(p, "second", "weights", "p2"), "params: second/weights/p2 is missing"),
        (lambda p: without(p, "third", "learned", "slope"), "params: third/learned/slope is missing"),
        (lambda p: with_leaf(p, jnp.ones(2), "extra", "bias"), "params: extra/bias is not one of the network"),
        (lambda p: with_leaf(p, jnp.ones(2), "third", "bias"), "params: third/bias is not one of the network"),
        (
            lambda p: with_leaf(p, jnp.ones((2, 4)), "first", "weights", "p1"),
            "params: first/weights/p1 expected shape (4, 2), got (2, 4)",
        ),
        (lambda p: with_leaf(p, jnp.ones(2), "second", "bias"), "params: second/bias expected shape (1,), got (2,)"),
        (lambda p: with_leaf(p, jnp.ones(()), "second", "bias"), "params: second/bias expected shape (1,), got ()"),
        (
            lambda p: with_leaf(p, jnp.ones(4, jnp.float32), "first", "bias"),
            "params: expected one dtype throughout, got float32, float64",
        ),
    ],
)
def test_parameters_of_another_network_are_refused_at_the_first_path(two_inputs, change, message):
    network, params, inputs = two_inputs
    for run in (network.apply, jax.jit(network.apply)):
        with pytest.raises(ValueError) as refusal:
            run(change(params), inputs)
        assert message == str(refusal.value)


@pytest.mark.parametrize("params", [{"first": 1.0}, {"layer1": "weights"}])
def test_parameters_that_are_no_arrays_are_refused(two_inputs, params):
    network, _, inputs = two_inputs
    with pytest.raises(TypeError, match="params: expected a dict of arrays as Network.init returns"):
        network.apply(params, inputs)


def test_no_parameters_are_refused(two_inputs):
    network, _, inputs = two_inputs
    with pytest.raises(ValueError, match="params: first/bias is missing"):
        network.apply({}, inputs)
    with pytest.raises(TypeError, match="params: expected the dict that Network.init returns, got NoneType"):
        network.apply(None, inputs)


ONE_INPUT_MESSAGES = [
    (np.ones((5, 4)), ValueError, "inputs: expected shape (Q, 3), got (5, 4)"),
    (np.ones(3), ValueError, "inputs: expected shape (Q, 3), got (3,)"),
    (np.ones((2, 5, 3)), ValueError, "inputs: expected shape (Q, 3), got (2, 5, 3)"),
    (np.ones((0, 3)), ValueError, "inputs: expected at least one example, got shape (0, 3)"),
    ([[1.0, 2.0, 3.0]], TypeError, "inputs: expected an array of numbers, got list"),
    (np.array([["a", "b", "c"]]), TypeError, "inputs: expected an array of numbers, got dtype <U1"),
    (np.array([[1, 2, None]]), TypeError, "inputs: expected an array of numbers, got dtype object"),
    (
        np.array([[1.0, 2, 3], [4, np.nan, np.inf]]),
        ValueError,
        "inputs: expected finite numbers, got nan at index (1, 1)",
    ),
    (np.array([[1.0, 2, -np.inf]]), ValueError, "inputs: expected finite numbers, got -inf at index (0, 2)"),
    (jnp.full((2, 3), jnp.inf, jnp.bfloat16), ValueError, "inputs: expected finite numbers, got inf at index (0, 0)"),
    ({"inptu": np.ones((5, 3))}, ValueError, "inputs: expected {'input': (Q, 3)}, got ['inptu']"),
    ({"input": np.ones((5, 4))}, ValueError, "inputs['input']: expected shape (Q, 3), got (5, 4)"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), ONE_INPUT_MESSAGES)
def test_wrong_inputs_are_refused(inputs, error, message):
    network = chain((3, 4, 2), "tanh", "linear")
    params = network.init(KEY)
    for run in (network.apply, network.forward, fnn.differentiable(network)):
        with pytest.raises(error) as refusal:
            run(params, inputs)
        assert message == str(refusal.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"p1": (4, 2)}, "inputs: expected {'p1': (Q, 2), 'p2': (Q, 3)}, got ['p1']"),
        ({"p1": (4, 2), "p2": (4, 3), "p3": (4, 1)}, "got ['p1', 'p2', 'p3']"),
        ({"p1": (4, 3), "p2": (4, 3)}, "inputs['p1']: expected shape (Q, 2), got (4, 3)"),
        ({"p1": (4, 2), "p2": (5, 3)}, "inputs: expected the same number of examples in each, got {'p1': 4, 'p2': 5}"),
        ((4, 2), "inputs: expected {'p1': (Q, 2), 'p2': (Q, 3)}, got a single array"),
    ],
)
def test_several_inputs_must_all_be_given_and_fit(two_inputs, inputs, message):
    network, params, _ = two_inputs
    given = jax.tree.map(jnp.ones, inputs, is_leaf=lambda x: isinstance(x, tuple))
    with pytest.raises(ValueError) as refusal:
        network.apply(params, given)
    assert message in str(refusal.value)


def test_a_single_input_may_be_given_by_its_name():
    network = chain((3, 4, 2), "tanh", "linear")
    params, inputs = network.init(KEY), jnp.ones((5, 3))
    chex.assert_trees_all_equal(network.apply(params, inputs), network.apply(params, {"input": inputs}))


@pytest.mark.parametrize("dtype", [np.int32, np.complex128, bool])
def test_parameters_are_floating_point(dtype):
    with pytest.raises(ValueError, match="dtype must be float64, float32, bfloat16 or float16, got"):
        fnn.multilayer((2, 1), ("linear",)).init(KEY, dtype)


def test_float64_needs_64_bits():
    network = fnn.multilayer((2, 1), ("linear",))
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match="dtype float64 needs 64-bit mode, which is off") as refusal:
            network.init(KEY, jnp.float64)
        assert "\n" not in str(refusal.value) and "jax_enable_x64" in str(refusal.value)
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            assert network.init(KEY, dtype)["layer1"]["bias"].dtype == dtype


def test_float64_data_is_taken_by_a_float32_network_while_64_bits_are_off():
    network = fnn.multilayer((2, 1), ("linear",))
    with jax.enable_x64(False):
        assert network.apply(network.init(KEY), np.ones((3, 2))).dtype == jnp.float32


def test_inputs_too_large_for_the_parameters_dtype_are_refused():
    network = chain((3, 2), "tanh", "linear")
    with pytest.raises(ValueError, match=r"inputs: 70000.0 at index \(1, 2\) is too large for float16"):
        network.apply(network.init(KEY, jnp.float16), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 7e4]]))
