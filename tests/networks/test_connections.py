"""Connections are what NumPy says, and their own adjoints; both orders of memory give the same recursion."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn.networks.connections import dense
from functional_nn.networks.network import in_columns
from functional_nn.training import populations

DRAW = np.random.default_rng(0)
A, S, W = DRAW.normal(size=(3, 12, 5)), DRAW.normal(size=(3, 12, 4)), DRAW.normal(size=(3, 4, 5))
EXPECTED = {
    "forward": ((A, W), np.einsum("mqr,msr->mqs", A, W)),
    "back": ((S, W, A), np.einsum("mqs,msr->mqr", S, W)),
    "outer": ((S, A), np.einsum("mqs,mqr->msr", S, A)),
    "total": ((S,), S.sum(axis=1)),
}


@pytest.mark.newest
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("connection", [dense, dense.twin], ids=repr)
@pytest.mark.parametrize("name", EXPECTED)
def test_products_are_numpys(name, connection, dtype):
    arguments, expected = EXPECTED[name]
    arguments = [jnp.asarray(x, dtype) for x in arguments]
    tolerance = 16 * float(jnp.finfo(dtype).eps)
    product = getattr(connection, name)
    found = jax.jit(jax.vmap(product))(*arguments)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=8 * tolerance)
    np.testing.assert_allclose(product(*(x[0] for x in arguments)), expected[0], rtol=tolerance, atol=8 * tolerance)


@pytest.mark.newest
@pytest.mark.parametrize("examples", [1, 2, 7, 8])
def test_totals_of_any_number_of_examples(examples):
    s = DRAW.normal(size=(examples, 3))
    np.testing.assert_allclose(dense.twin.total(jnp.asarray(s)), s.sum(axis=0), rtol=1e-14)


def test_the_recursion_in_columns_is_the_recursion():
    """On a graph that fans out, with two inputs, maxout, a shared bias and a learned slope; a population, compiled."""
    network = fnn.graph(
        inputs={"p": 3, "q": 2},
        layers=[
            fnn.Layer("first", 4, "prelu", ("p",)),
            fnn.Layer("second", 3, "maxout(2)", ("first", "q"), bias="shared"),
            fnn.Layer("output", 2, "softmax", ("second", "first")),
        ],
    )
    loss = fnn.losses.cross_entropy()
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 3))
    inputs = {"p": jnp.asarray(DRAW.normal(size=(8, 3))), "q": jnp.asarray(DRAW.normal(size=(8, 2)))}
    targets = fnn.one_hot(jnp.arange(8) % 2, 2).astype(jnp.float64)
    found, expected = (
        jax.jit(jax.vmap(fnn.value_and_grad(laid_out, loss), (0, None, None)))(params, inputs, targets)
        for laid_out in (in_columns(network), network)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), found, expected)


@pytest.mark.parametrize("connection", [dense, dense.twin], ids=repr)
def test_a_connection_is_bilinear_and_knows_its_adjoints(connection):
    """<s, dx * w> = <back(s, w), dx> and <s, x * dw> = <outer(s, x), dw>, of any dx and dw; it is linear in each."""
    x, dx, s, w, dw = (jnp.asarray(DRAW.normal(size=size)) for size in ((12, 5), (12, 5), (12, 4), (4, 5), (4, 5)))
    z = connection.forward
    np.testing.assert_allclose(jnp.vdot(s, z(dx, w)), jnp.vdot(connection.back(s, w, x), dx), rtol=1e-12)
    np.testing.assert_allclose(jnp.vdot(s, z(x, dw)), jnp.vdot(connection.outer(s, x), dw), rtol=1e-12)
    np.testing.assert_allclose(z(x + 2 * dx, w), z(x, w) + 2 * z(dx, w), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(z(x, w - dw), z(x, w) - z(x, dw), rtol=1e-12, atol=1e-12)


def test_layers_read_by_dense_connections_and_stay_equal_through_copies():
    layer = fnn.Layer("hidden", 4, "tanh", ("p", "q"))
    assert layer.reads == (("p", dense), ("q", dense))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), dataclasses.replace(layer, size=4)):
        assert other == layer and hash(other) == hash(layer) and other.reads == layer.reads
    assert dataclasses.replace(layer, sources="p").reads == (("p", dense),)
    network = fnn.multilayer((3, 2), ("linear",))
    assert in_columns(network).output.reads == (("input", dense.twin),) and in_columns(network) != network
    assert pickle.loads(pickle.dumps(in_columns(network))) == in_columns(network)


def counted(jaxpr, names):
    """How often each of these primitives stands in a program, in the programs inside it, too."""
    found = dict.fromkeys(names, 0)
    for equation in jaxpr.eqns:
        if equation.primitive.name in found:
            found[equation.primitive.name] += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found = {name: found[name] + more for name, more in counted(inner, names).items()}
    return found


def test_dense_programs_stay_what_they_are(monkeypatch):
    """Two layers: 2 products forward, 1 back, 2 outer, 2 totals; a step of `fit` has the forward pass no second time,
    for its metrics, and 2 products more are the validation's. In columns totals are sums, and what a product reads or
    gives is written down: 2 barriers a product forward, 3 one back, 2 an outer one, 1 a total.
    """
    network, loss = fnn.multilayer((5, 4, 3), ("tanh", "softmax")), fnn.losses.cross_entropy()
    names = ("dot_general", "optimization_barrier", "transpose", "while", "scan")
    x, t, key = jnp.ones((16, 5)), fnn.one_hot(jnp.arange(16) % 3, 3), jax.random.key(0)
    gradient = jax.make_jaxpr(fnn.value_and_grad(network, loss))(network.init(key), x, t)
    assert counted(gradient.jaxpr, names) == {**dict.fromkeys(names, 0), "dot_general": 7}
    train = fnn.training.pure_fit(network, loss, "adam", epochs=2, plan=fnn.training.minibatch(4))
    fitted = counted(jax.make_jaxpr(train)(key, x, t, (x, t)).jaxpr, names)
    assert fitted == {"dot_general": 9, "optimization_barrier": 0, "transpose": 0, "while": 1, "scan": 1}
    programs, traced = populations._programs, []

    def spied(*given):
        begin, advance = programs(*given)
        return begin, lambda *data: traced.append(advance.trace(*data).jaxpr) or advance(*data)

    monkeypatch.setattr(populations, "_programs", spied)
    fnn.training.fit_population(
        network, loss, "adam", {"learning_rate": [0.1, 0.2]}, (x, t), key=key, epochs=2, validation=(x, t),
        plan=fnn.training.minibatch(4),
    )  # fmt: skip
    laid_out = {"dot_general": 7, "optimization_barrier": 4 * 2 + 3 + 2 * 2 + 2, "transpose": 20}
    assert counted(traced[0].jaxpr, names) == laid_out | {"while": 1, "scan": 1}
