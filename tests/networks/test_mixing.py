"""Activations that mix neurons or examples, learn parameters, or have no second derivative."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ACTIVATIONS

import functional_nn as fnn
from functional_nn import activations, connections


def _normalized(axis):
    """(n - mean) / deviation over neurons, or over examples: no function of one neuron, or of one example."""

    def forward(n, theta):
        n = n - jnp.mean(n, axis=axis, keepdims=True)
        return n / jnp.sqrt(jnp.mean(n**2, axis=axis, keepdims=True) + 1e-3), None

    def pullback(g, n, a, kept, theta):
        return jax.vjp(lambda n: forward(n, theta)[0], n)[1](g)[0], {}

    def pushforward(r, r_theta, n, a, kept, theta):
        return jax.jvp(lambda n: forward(n, theta)[0], (n,), (r,))[1]

    def second_order(g, r, r_theta, n, a, kept, theta):
        return jax.jvp(lambda n: pullback(g, n, a, kept, theta)[0], (n,), (r,))[1], {}

    return fnn.Activation(f"normalized({axis})", forward, pullback, pushforward, second_order)


OVER_NEURONS, OVER_EXAMPLES = _normalized(1), _normalized(0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_alone_if_no_output_depends_on_another_neuron(name):
    activation = activations.get(name)
    examples, neurons = activations.mixes(activation, (3 * activation.pieces,))
    assert not examples and neurons == (not activation.alone) == (name == "softmax")


def test_mixing_is_detected():
    assert activations.mixes(OVER_NEURONS, (3,)) == (False, True)
    assert activations.mixes(OVER_EXAMPLES, (3,)) == (True, False)
    for activation in (OVER_NEURONS, OVER_EXAMPLES):
        assert fnn.comparison.compare_activation(activation).verdict == "agree"
    lying = dataclasses.replace(OVER_NEURONS, alone=True)
    with pytest.raises(ValueError, match="says alone=True, but a neuron's output depends on other neurons'"):
        fnn.comparison.compare_activation(lying)


def test_what_looks_at_single_examples_refuses_those_that_are_mixed():
    network = fnn.multilayer((2, 3, 1), (OVER_EXAMPLES, "linear"))
    params, x, t = network.init(jax.random.key(0)), jnp.eye(2), jnp.ones((2, 1))
    assert fnn.compare(network, "mean_square_error", params, x, t, second_opinions=False, jit=False).verdict == "agree"
    for quantity in (fnn.quantities.per_example_norms, jax.jit(fnn.quantities.variance, static_argnums=(0, 1))):
        with pytest.raises(ValueError, match="mixes examples: .* per-example quantities are undefined"):
            quantity(network, "mean_square_error", params, x, t)


def test_padding_needs_activations_of_single_neurons():
    def build(width):
        return fnn.multilayer((2, width, 1), (OVER_NEURONS, "linear"))

    data = jnp.ones((4, 2)), jnp.ones((4, 1))
    with pytest.raises(ValueError, match="pad: a layer with activation 'normalized.1.', which mixes neurons"):
        fnn.training.fit_population(
            build, "mean_square_error", "gd", {"width": [2, 3]}, data, key=jax.random.key(0), epochs=1, pad=True
        )


@pytest.mark.parametrize("hidden", [OVER_NEURONS, "softmax", "maxout(2)", "tanh"])
def test_saturation_is_of_each_neurons_own_slope(hidden):
    network = fnn.multilayer((2, 3, 1), (hidden, "linear"))
    params = network.init(jax.random.key(0))
    x, t = np.random.default_rng(0).normal(size=(5, 2)), np.ones((5, 1))
    limit = 0.3
    layer, n = network.layers[0], network.forward(params, x).net_inputs["layer1"]
    jacobian = jax.jit(jax.jacobian(lambda n: layer.activation.forward(n, {})[0]))
    slopes = np.einsum("qiqik->qi", jacobian(n).reshape(5, 3, 5, 3, -1))
    statistics = functools.partial(fnn.quantities.layer_statistics, network, "mean_square_error", saturation=limit)
    found = jax.jit(statistics)(params, x, t)["layer1"]
    assert float(found.saturated) == pytest.approx(np.mean(np.abs(slopes) < limit), abs=1e-12)


def test_an_activation_without_second_derivative_trains_and_has_no_hessian():
    bent = activations.elementwise("bent", lambda n: n**3, lambda n, a: 3 * n**2)
    assert fnn.comparison.compare_activation(bent).verdict == "agree"
    network = fnn.multilayer((2, 3, 1), (bent, "linear"))
    params, x, t = network.init(jax.random.key(0)), jnp.eye(2), jnp.ones((2, 1))
    assert fnn.compare(network, "mean_square_error", params, x, t, second_opinions=False, jit=False).verdict == "agree"
    with pytest.raises(ValueError, match="layer 'layer1': 'bent' has no second derivative, which Hessians need"):
        fnn.curvature.hessian(network, "mean_square_error", params, x, t)
    fnn.curvature.products(network, "mean_square_error", params, x, t, "gauss_newton")(params)


def test_a_learned_parameter_has_a_name_without_a_slash():
    clash = dataclasses.replace(activations.get("tanh"), parameters=lambda size, dtype: {"a/b": jnp.ones(size, dtype)})
    with pytest.raises(ValueError, match="layer 'x': activation 'tanh' calls a learned parameter 'a/b'; it needs an"):
        fnn.Layer("x", 2, clash)


@pytest.mark.parametrize("name", ["weights", "bias"])
def test_a_learned_parameter_may_have_the_name_of_another(name):
    """Both have a place of their own: a shift called "bias", a layer with a bias, all gradients right."""

    def share(g):
        return {name: connections.Factors(g, None)}

    shifted = fnn.Activation(
        "shifted",
        lambda n, theta: (jnp.tanh(n) + theta[name][None, :], None),
        lambda g, n, a, kept, theta: (g * (1 - jnp.tanh(n) ** 2), share(g)),
        lambda r, r_theta, n, a, kept, theta: r * (1 - jnp.tanh(n) ** 2) + r_theta[name][None, :],
        lambda g, r, r_theta, n, a, kept, theta: (
            -2 * g * r * jnp.tanh(n) * (1 - jnp.tanh(n) ** 2),
            share(jnp.zeros_like(g)),
        ),
        parameters=lambda size, dtype: {name: jnp.full(size, 0.5, dtype)},
    )
    assert fnn.comparison.compare_activation(shifted).verdict == "agree"
    network = fnn.graph(
        inputs={"p": 3},
        layers=[fnn.Layer("first", 4, shifted, ("p",)), fnn.Layer("second", 2, "softmax", ("first",))],
    )
    params = network.init(jax.random.key(0), jnp.float64)
    assert params["first"]["learned"][name].shape == (4,) and params["first"]["bias"].shape == (4,)
    x, t = jnp.linspace(-1, 1, 15).reshape(5, 3), jnp.arange(5) % 2
    assert fnn.compare(network, fnn.losses.cross_entropy(), params, x, t).verdict == "agree"
    norms = fnn.quantities.per_example_norms(network, "cross_entropy", params, x, t)
    each = fnn.quantities.per_example_gradients(network, "cross_entropy", params, x, t)
    squares = sum(jnp.sum(leaf.reshape(5, -1) ** 2, axis=1) for leaf in jax.tree.leaves(each))
    np.testing.assert_allclose(norms**2, squares, rtol=1e-12)
