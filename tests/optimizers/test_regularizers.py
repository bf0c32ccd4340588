"""Penalties and pruning: gradients by hand against jax.grad and against sums in NumPy, counts that are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, chain, random_params
from hypothesis import given, settings
from hypothesis import strategies as st

import functional_nn as fnn
from functional_nn.optimizers import regularizers

PARAMS = {
    "layer1": {
        "weights": {"p1": jnp.array([[0.5, -1.25], [0.0, -0.0]]), "p2": jnp.array([[2.0], [-0.75]])},
        "bias": jnp.array([0.25, -3.0]),
        "learned": {"slope": jnp.array([0.5])},
    },
    "layer2": {"weights": {"layer1": jnp.array([[-0.125, 1.5]])}, "bias": jnp.array([0.0])},
}
PENALTIES = ("l2(0.3)", "l1(0.3)", "elastic_net(0.2, 0.3)")


def in_numpy(specification, w):
    """(Omega, dOmega/dw) of an array, with sign(0) = 0."""
    first, second = {"l2(0.3)": (0, 0.3), "l1(0.3)": (0.3, 0), "elastic_net(0.2, 0.3)": (0.2, 0.3)}[specification]
    w = np.asarray(w, np.float64)
    return (first * np.abs(w) + second * w**2).sum(), first * np.sign(w) + 2 * second * w


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("biases", [False, True], ids=["weights", "biases too"])
@pytest.mark.parametrize("specification", PENALTIES)
def test_values_and_gradients_are_the_definitions(specification, biases):
    """Biases and learned slopes are spared, or taken in on request."""
    name, _, constants = specification.partition("(")
    regularizer = getattr(regularizers, name)(*map(float, constants[:-1].split(",")), biases=biases)
    acts = {path: biases or "weights" in path for path in leaves(PARAMS)}
    expected = {path: in_numpy(specification, w) if acts[path] else (0.0, 0 * w) for path, w in leaves(PARAMS).items()}
    np.testing.assert_allclose(regularizer.value(PARAMS), sum(value for value, _ in expected.values()), rtol=1e-14)
    gradient = regularizer.gradient(PARAMS)
    assert jax.tree.structure(gradient) == jax.tree.structure(PARAMS)
    for path, g in leaves(gradient).items():
        np.testing.assert_allclose(g, expected[path][1], rtol=1e-15)
        assert acts[path] or not np.any(g)
    assert leaves(regularizers.penalized(PARAMS, biases)) == acts


@pytest.mark.parametrize("specification", PENALTIES)
def test_gradients_are_jax_grads_of_the_value(specification):
    """In all four dtypes, at exact zeros of both signs; one program for all."""
    regularizer = regularizers.get(specification)
    params = {np.dtype(d).name: jax.tree.map(lambda x, d=d: x.astype(d), PARAMS) for d in DTYPES}
    both = jax.jit(
        lambda params: {d: (regularizer.gradient(p), jax.grad(regularizer.value)(p)) for d, p in params.items()}
    )(params)
    for name, (ours, theirs) in both.items():
        for path, g in leaves(ours).items():
            assert g.dtype.name == name
            rounding = 2 * float(jnp.finfo(g.dtype).eps)
            g, automatic = (np.asarray(x).astype(np.float64) for x in (g, leaves(theirs)[path]))
            np.testing.assert_allclose(g, automatic, rtol=rounding, atol=0)
            if "p1" in path:
                assert (g[1] == 0).all() and (g[0] != 0).all()


@settings(max_examples=15)
@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), st.floats(0, 10))
def test_elastic_net_is_the_sum_of_its_parts(weights, strength):
    w = jnp.array(weights)  # a tree without "weights" is penalized whole
    net, first, second = (
        regularizers.elastic_net(strength, 0.5),
        regularizers.l1(strength),
        regularizers.l2(0.5),
    )
    np.testing.assert_allclose(net.value(w), first.value(w) + second.value(w), rtol=1e-14)
    np.testing.assert_allclose(net.gradient(w), first.gradient(w) + second.gradient(w), rtol=1e-14)


def test_learned_slopes_of_a_network_are_spared():
    params = random_params(chain((2, 3, 1), "prelu", "linear"), jax.random.key(0))
    gradient = regularizers.l2(1.0).gradient(params)
    np.testing.assert_array_equal(gradient["layer1"]["learned"]["slope"], np.zeros(3))
    np.testing.assert_array_equal(gradient["layer1"]["bias"], 0 * params["layer1"]["bias"])
    np.testing.assert_array_equal(gradient["layer1"]["weights"]["input"], 2 * params["layer1"]["weights"]["input"])


def test_strengths_can_be_swept():
    sweep = jax.jit(jax.vmap(lambda s: regularizers.elastic_net(s, 2 * s).gradient(PARAMS)))(jnp.array([0.1, 0.7]))
    for i, s in enumerate((0.1, 0.7)):
        alone = regularizers.elastic_net(s, 2 * s).gradient(PARAMS)
        for path, g in leaves(alone).items():
            np.testing.assert_allclose(leaves(sweep)[path][i], g, rtol=1e-15)


# Pruning --------------------------------------------------------------------------------------------------------------


def weights_of(tree):
    return {path: np.asarray(leaf) for path, leaf in leaves(tree).items() if "weights" in path}


def masks_by_sorting(arrays, fraction):
    """The floor(fraction * count) smallest of all arrays together go, the first of equals first; in pure Python."""
    places = [(abs(float(w[i])), n, i) for n, w in enumerate(arrays) for i in np.ndindex(w.shape)]
    masks = [np.ones(w.shape, bool) for w in arrays]
    for _, n, i in sorted(places)[: int(np.floor(fraction * len(places)))]:
        masks[n][i] = False
    return masks


TIED = {
    "a": {"weights": {"input": jnp.array([[1.0, -2.0, 0.0], [2.0, 1.0, -1.0]])}, "bias": jnp.array([0.0, 0.1])},
    "b": {"weights": {"a": jnp.array([[-1.0, 1.0, -0.0, 3.0]])}},
}


@pytest.mark.parametrize("params", [TIED, PARAMS], ids=["ties", "several sources"])
def test_masks_are_those_of_sorting(params):
    """Every fraction, both scopes, ties among them; one program, the fraction traced."""
    arrays = weights_of(params)
    both = jax.jit(lambda f: [regularizers.magnitude_masks(params, f, scope) for scope in ("network", "layer")])
    for fraction in (0.0, 0.1, 0.25, 0.3, 0.5, 0.55, 0.75, 0.9, 0.999):
        network, layer = both(fraction)
        expected = dict(zip(arrays, masks_by_sorting(list(arrays.values()), fraction), strict=True))
        for path, mask in leaves(network).items():
            np.testing.assert_array_equal(mask, expected.get(path, np.ones(mask.shape, bool)))  # biases stay
        for path, mask in leaves(layer).items():
            of_layer = masks_by_sorting([arrays[path]], fraction)[0] if path in arrays else np.ones(mask.shape, bool)
            np.testing.assert_array_equal(mask, of_layer)
    eager = regularizers.magnitude_masks(params, 0.55)
    assert all(map(np.array_equal, jax.tree.leaves(eager), jax.tree.leaves(both(0.55)[0])))


@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_pruning_zeroes_the_share_asked_for(dtype):
    network = fnn.multilayer((5, 4, 5), activations=("tanh", "linear"))
    params = random_params(network, jax.random.key(3), dtype)
    assert regularizers.sparsity(params) == 0
    pruned = jax.jit(lambda p: regularizers.prune(p, regularizers.magnitude_masks(p, 0.6)))(params)
    np.testing.assert_allclose(regularizers.sparsity(pruned), 24 / 40, rtol=1e-6)
    zeros = kept = 0
    for path, x in leaves(pruned).items():
        x, was = np.asarray(x), np.asarray(leaves(params)[path])
        assert x.dtype == was.dtype and ((x == 0) | (x == was)).all()
        if "weights" in path:
            zeros, kept = zeros + (x == 0).sum(), kept + (x != 0).sum()
        else:
            np.testing.assert_array_equal(x, was)
    assert (zeros, kept) == (24, 16)


def test_zeros_of_biases_are_not_counted():
    tree = {"layer1": {"weights": {"input": jnp.array([[0.0, 1.0], [-0.0, 2.0]])}, "bias": jnp.zeros(7)}}
    assert regularizers.sparsity(tree) == 0.5


# Names and refusals ---------------------------------------------------------------------------------------------------


def test_equal_constants_give_the_same_regularizer():
    assert set(regularizers.names()) == {"l1", "l2", "elastic_net"}
    assert regularizers.get("elastic_net(0.1, 0.2)") is regularizers.elastic_net(0.1, 0.2)
    assert repr(regularizers.l2(0.1)) == "<regularizer l2(strength=0.1, biases=False)>"


STRENGTH = "a finite number >= 0"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: regularizers.l2(-0.1), f"l2: strength must be {STRENGTH}, got -0.1"),
        (lambda: regularizers.l2(float("nan")), f"l2: strength must be {STRENGTH}, got nan"),
        (lambda: regularizers.l1(float("inf")), f"l1: strength must be {STRENGTH}, got inf"),
        (lambda: regularizers.l1("a"), f"l1: strength must be {STRENGTH}, got 'a'"),
        (lambda: regularizers.elastic_net(-1.0, 0.1), f"elastic_net: l1 must be {STRENGTH}, got -1.0"),
        (lambda: regularizers.elastic_net(1.0, None), f"elastic_net: l2 must be {STRENGTH}, got None"),
        (lambda: regularizers.get("l3(0.1)"), "unknown regularizer 'l3'; did you mean 'l2'?"),
        (lambda: regularizers.get("l2"), "missing a required argument: 'strength'"),
        (lambda: regularizers.magnitude_masks(PARAMS, 1.0), "magnitude_masks: fraction must be in [0, 1), got 1.0"),
        (lambda: regularizers.magnitude_masks(PARAMS, -0.1), "magnitude_masks: fraction must be in [0, 1), got -0.1"),
        (
            lambda: regularizers.magnitude_masks(PARAMS, float("nan")),
            "magnitude_masks: fraction must be in [0, 1), got nan",
        ),
        (
            lambda: regularizers.magnitude_masks(PARAMS, 0.5, "global"),
            "magnitude_masks: scope must be 'network' or 'layer', got 'global'",
        ),
    ],
)
def test_constants_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError) as refused:
        build()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_are_told_by_their_place_whatever_layers_are_called():
    """A layer called "weights", which reads one called "bias"; and trees that are no network's."""
    network = fnn.graph(
        inputs={"p": 2},
        layers=[
            fnn.Layer("bias", 3, "tanh", "p"),
            fnn.Layer("weights", 2, "prelu", ("bias", "p")),
            fnn.Layer("out", 1, "linear", "weights"),
        ],
    )
    marked = regularizers.penalized(network.init(jax.random.key(0)))
    assert marked == {
        "bias": {"weights": {"p": True}, "bias": False},
        "weights": {"weights": {"bias": True, "p": True}, "bias": False, "learned": {"slope": False}},
        "out": {"weights": {"weights": True}, "bias": False},
    }
    x = jnp.ones(2)
    learned = {"layer": {"weights": {"p": x}, "learned": {"weights": x, "bias": x}}}
    assert regularizers.penalized(learned) == {
        "layer": {"weights": {"p": True}, "learned": {"weights": False, "bias": False}}
    }
    assert regularizers.penalized({"weights": x, "bias": x}) == {"weights": True, "bias": False}
    assert regularizers.penalized({"a": {"weights": [x, x], "b": x}}) == {"a": {"weights": [True, True], "b": False}}
    assert regularizers.penalized([x, x]) == [True, True]
