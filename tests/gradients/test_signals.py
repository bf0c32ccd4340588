"""Backpropagation through signals is autodiff's: over every connection x activation x graph, however it is run.

Gradients and sensitivities are compared; of these `jax.grad` gives one by an offset of zeros that is added to each net
input.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import PROVED, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from signal_cases import CONNECTIONS, GRAPHS, images, random_network, series, signal_problem, texts

import functional_nn as fnn
from functional_nn import quantities
from functional_nn.gradients.backprop import loss_value

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
# network, loss: of images, of tokens with classes at each position, of numbers at each position
NETWORKS = {
    "images": (images(), "cross_entropy"),
    "texts": (texts(), "cross_entropy"),
    "series": (series(), "sum_square_error(mean, positions=sum)"),
}


def of_networks(fast):
    """One of them fast, the others left to the slow suite."""
    names = [name if name == fast else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
    return pytest.mark.parametrize("name", names)


def by_hand_and_automatically(network, loss, params, inputs, targets):
    """Twice {"value", "gradients", "sensitivities"}."""
    dtype = jax.tree.leaves(params)[0].dtype
    zeros = {name: jnp.zeros((len(targets), *n), dtype) for name, n in network.net_shapes.items()}

    def objective(params, offsets, inputs, targets):
        prepared, own = network.prepare(params, inputs), fnn.losses.get(loss)
        trace = network.forward(params, prepared, offsets)
        return loss_value(network, own, trace, network.prepare_targets(prepared, targets, own, dtype), None)

    def both(params, inputs, targets):
        found = fnn.backpropagate(network, loss, params, inputs, targets)
        value, (gradients, s) = jax.value_and_grad(objective, (0, 1))(params, zeros, inputs, targets)
        manual = {"value": found.value, "gradients": found.gradients, "sensitivities": found.sensitivities}
        return manual, {"value": value, "gradients": gradients, "sensitivities": s}

    # XLA on CPU, in the fast tests' settings, may compute a net input that a mean goes into twice, once with a fused
    # multiplication: jax.grad of the largest of two such finds none that is as large, and divides 0 by 0; ours does not
    # (and so may that of a window's largest)
    reads = [
        (by.name.partition("(")[0], layer.activation.pieces) for layer in network.layers for by in layer.connections
    ]
    compiled = all(name != "mean_pool" or pieces == 1 for name, pieces in reads)
    compiled = compiled and not any(layer.activation.name.startswith("max_pool") for layer in network.layers)
    return (jax.jit(both) if compiled else both)(params, inputs, targets)


def assert_agree(network, loss, seed=0, dtypes=("float64", "float32"), examples=4):
    for dtype in dtypes:
        given = signal_problem(network, loss, seed, examples, dtype)
        manual, expected = by_hand_and_automatically(network, loss, *given)
        for what, value in manual.items():
            assert relative_error(value, expected[what]) <= TOLERANCE[dtype], (what, dtype)


@pytest.mark.sampled(every=101)
@pytest.mark.parametrize("activation", PROVED)
@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_manual_is_automatic(graph, connection, activation):
    assert_agree(GRAPHS[graph](connection, activation), "cross_entropy")


@pytest.mark.slow
@settings(max_examples=1)
@given(st.integers(0, 10**6))
def test_manual_is_automatic_on_random_convolutional_graphs(seed):
    assert_agree(*_random(seed), seed=seed)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.integers(0, 10**6))
def test_manual_is_automatic_on_many_random_convolutional_graphs(seed):
    assert_agree(*_random(seed), seed=seed)


def _random(seed):
    network = random_network(np.random.default_rng(seed))
    return network, {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy"}.get(
        network.output.activation.name, "mean_square_error"
    )


@of_networks("texts")
def test_compiled_eager_and_many_at_once_agree(name):
    network, loss = NETWORKS[name]
    params, inputs, targets = signal_problem(network, loss)
    other, _, _ = signal_problem(network, loss, seed=1)
    gradient = fnn.value_and_grad(network, loss)
    eager = gradient(params, inputs, targets)
    both = jax.tree.map(lambda *x: jnp.stack(x), params, other)
    many = jax.jit(jax.vmap(gradient, (0, None, None)))(both, inputs, targets)
    assert relative_error(jax.jit(gradient)(params, inputs, targets), eager) <= 1e-13
    assert relative_error(jax.tree.map(lambda x: x[0], many), eager) <= 1e-13
    assert relative_error(jax.tree.map(lambda x: x[1], many), gradient(other, inputs, targets)) <= 1e-13


@of_networks("texts")
def test_a_program_around_the_network_has_its_derivative_by_hand(name):
    """By parameters and inputs, twice over; of tokens there is none, which JAX says by float0."""
    network, loss = NETWORKS[name]
    params, inputs, _ = signal_problem(network, loss)
    inputs = inputs if isinstance(inputs, dict) else {network.inputs[0][0]: inputs}
    numbers = {key: x for key, x in inputs.items() if key not in network.tokens}
    by_hand = fnn.differentiable(network)

    def gradient(apply):
        def program(params, numbers):
            return jnp.sum(jnp.sin(apply(params, inputs | numbers)))

        return jax.grad(program, (0, 1))

    def slope(apply):  # of the gradient's length, which goes back through the recursion itself
        return jax.grad(lambda p: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(apply)(p, numbers))))(params)

    @jax.jit
    def found():
        return [(gradient(apply)(params, numbers), slope(apply)) for apply in (by_hand, network.apply)]

    manual, automatic = found()
    assert relative_error(manual[0], automatic[0]) <= 1e-12
    assert relative_error(manual[1], automatic[1]) <= 1e-11
    outputs, back = jax.vjp(by_hand, params, inputs)
    given = back(jnp.ones_like(outputs))[1]
    for key in network.tokens:
        assert given[key].dtype == jax.dtypes.float0 and given[key].shape == inputs[key].shape


@of_networks("series")
def test_third_opinions_are_of_one_mind(name):
    """The complex step, which knows no derivative of a convolution at all, and the Taylor remainder."""
    network, loss = NETWORKS[name]
    a = fnn.compare(network, loss, *signal_problem(network, loss))
    assert (a.verdict, a.where, a.third_opinion.says) == ("agree", None, "both are right"), str(a)
    assert a.third_opinion.method == "complex step" and a.third_opinion.manual_error <= 1e-13
    assert a.taylor.says == "right" and a.total.relative <= 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_complex_step_over_every_connection(connection):
    a = fnn.compare(network := GRAPHS["fan-out"](connection, "tanh"), "cross_entropy", *signal_problem(network))
    assert (a.verdict, a.third_opinion.method) == ("agree", "complex step"), str(a)
    assert a.third_opinion.manual_error <= 1e-13


def ring(size, turned=1):
    """z_t = sum_i W_i x_(t + i), around: a row of a user's own. turned=-1 is a mistake on its way back."""

    def windows(x):
        return jnp.concatenate([jnp.roll(x, -i, axis=1) for i in range(size)], axis=-1)

    def back(s, w, like):
        parts = jnp.split(s @ w, size, axis=-1)
        return sum(jnp.roll(part, turned * i, axis=1) for i, part in enumerate(parts))

    return fnn.connections.Connection(
        f"ring({size})",
        shapes=lambda x, channels: ((x[0], channels), (channels, size * x[1])),
        forward=lambda x, w: windows(x) @ w.T,
        back=back,
        outer=lambda s, x: jnp.einsum("qts,qtk->sk", s, windows(x)),
        unfold=lambda s, x: (s, windows(x)),
    )


@pytest.mark.slow  # the README has one
def test_a_row_of_ones_own_has_all_that_the_others_have():
    """One row, and nothing else: gradient, third opinions, norms; and its mistakes are found and placed."""

    def network(row):
        layers = [
            fnn.Layer("first", 3, "tanh", [("p", row)]),
            fnn.Layer("second", 3, "tanh", [("first", row)]),
            fnn.Layer("output", 3, "softmax", [("second", "full")]),
        ]
        return fnn.graph(inputs={"p": (5, 2)}, layers=layers)

    right, wrong = ring(3), ring(3, turned=-1)
    assert fnn.comparison.compare_connection(right, (7, 2)).verdict == "agree"
    found = fnn.comparison.compare_connection(wrong, (7, 2))
    apart = [row["name"] for row in found.rows() if not row["error"] <= row["allowed"]]
    assert found.verdict == "differ" and apart == ["total", "adjoint in x", "back"]
    given = "cross_entropy", *signal_problem(network(right))

    def by_mistake(_, *own):
        return fnn.backpropagate(network(wrong), *own)

    a = fnn.compare(network(right), *given)
    b = fnn.compare(network(right), *given, manual=by_mistake, second_opinions=False)
    assert (a.verdict, a.third_opinion.method) == ("agree", "complex step"), str(a)
    assert b.verdict == "differ" and b.where.startswith("first: dF/dn")

    @jax.jit
    def measure(*own):
        names = ("per_example_gradients", "per_example_norms")
        return quantities.compute(network(right), given[0], *own, names)

    found = measure(*given[1:])
    g = jax.tree.leaves(found["per_example_gradients"])
    squares = sum(np.sum(np.square(own), axis=tuple(range(1, own.ndim))) for own in g)
    np.testing.assert_allclose(found["per_example_norms"] ** 2, squares, rtol=1e-12)
