"""At a kink the derivative is JAX's convention, and `kink_distance` says how far the kink is."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import EPS, EXAMPLES, KINKED, NEURONS, SMOOTH, drawn, outputs_of, summed_like

from functional_nn import activations


@pytest.mark.parametrize(
    ("name", "kink", "by_jax", "expected"),
    [
        ("relu", 0.0, jax.nn.relu, 0.0),
        ("shifted_relu", -1.0, lambda n: jax.nn.relu(n + 1) - 1, 0.0),
        ("leaky_relu", 0.0, jax.nn.leaky_relu, 1.0),
        ("leaky_relu(-0.5)", 0.0, lambda n: jax.nn.leaky_relu(n, -0.5), 1.0),
        ("elu", 0.0, jax.nn.elu, 1.0),
        ("elu(0.7)", 0.0, lambda n: jax.nn.elu(n, 0.7), 0.7),
        ("selu", 0.0, jax.nn.selu, 1.0507009873554805 * 1.6732632423543772),
        ("celu(0.7)", 0.0, lambda n: jax.nn.celu(n, 0.7), 1.0),
        ("relu6", 0.0, jax.nn.relu6, 0.0),
        ("relu6", 6.0, jax.nn.relu6, 0.0),
        ("hard_tanh", -1.0, jax.nn.hard_tanh, 1.0),
        ("hard_tanh", 1.0, jax.nn.hard_tanh, 1.0),
        ("hard_sigmoid", -3.0, jax.nn.hard_sigmoid, 0.0),
        ("hard_sigmoid", 3.0, jax.nn.hard_sigmoid, 0.0),
    ],
)
def test_at_the_kink_the_derivative_is_jaxs(name, kink, by_jax, expected):
    f = activations.get(name)
    n = jnp.array([[kink, kink if kink else -0.0]])
    by_hand, _ = f.pullback(jnp.ones_like(n), n, *f.forward(n, {}), {})
    automatic = jax.vjp(lambda n: f.forward(n, {})[0], n)[1](jnp.ones_like(n))[0]
    np.testing.assert_array_equal(by_hand, jnp.full_like(n, expected))
    np.testing.assert_array_equal(by_hand, automatic)
    np.testing.assert_array_equal(by_hand, jax.vjp(by_jax, n)[1](jnp.ones_like(n))[0])


@pytest.mark.parametrize("name", ("prelu", "prelu(layer)"))
def test_at_its_kink_prelu_has_slope_one_and_nothing_to_learn(name):
    f, n, g = activations.get(name), jnp.zeros((1, 3)), jnp.array([[1.0, -2.0, 3.0]])
    theta = {"slope": jnp.full(f.parameters(3, jnp.float64)["slope"].shape, 0.3)}
    by_hand, learned = f.pullback(g, n, *f.forward(n, theta), theta)
    np.testing.assert_array_equal(by_hand, g)
    np.testing.assert_array_equal(learned["slope"].left, jnp.zeros_like(g))
    chex.assert_trees_all_equal((by_hand, summed_like(theta, learned)), jax.vjp(outputs_of(f), n, theta)[1](g))


@pytest.mark.parametrize("pieces", [[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [0.0, -1.0, 0.0], [-3.0, 5.0, 4.0]])
def test_tied_maxout_pieces_share_the_derivative(pieces):
    f, n = activations.get("maxout(3)"), jnp.array([pieces])
    by_hand, _ = f.pullback(jnp.ones((1, 1)), n, *f.forward(n, {}), {})
    np.testing.assert_array_equal(by_hand[0], jax.grad(jnp.max)(n[0]))
    np.testing.assert_array_equal(by_hand, jax.vjp(lambda n: f.forward(n, {})[0], n)[1](jnp.ones((1, 1)))[0])


@pytest.mark.parametrize("name", KINKED)
def test_kink_distance_is_zero_at_the_kink_only(name):
    f, n, _, _, _, _ = drawn(name)
    if f.pieces == 1:
        ends = {"shifted_relu": (-1, -1), "relu6": (0, 6), "hard_tanh": (-1, 1), "hard_sigmoid": (-3, 3)}
        kinks = np.array(ends.get(name, (0, 0)), np.float64)
        expected = np.abs(np.asarray(n)[..., None] - kinks).min(axis=-1)
        at_kink = jnp.asarray(kinks)[None]
    else:
        split = np.asarray(n).reshape(EXAMPLES, NEURONS, f.pieces)
        others = [[[max(np.delete(row, i)) for i in range(f.pieces)] for row in rows] for rows in split]
        expected = np.abs(split - np.array(others)).reshape(n.shape)
        at_kink = jnp.full((1, 2 * f.pieces), 0.5)
    np.testing.assert_allclose(f.kink_distance(n), expected, rtol=2 * EPS)
    assert (np.asarray(f.kink_distance(n)) > 0).all()
    np.testing.assert_array_equal(f.kink_distance(at_kink), jnp.zeros_like(at_kink))


def test_kink_distance_of_maxout_sees_ties_for_the_largest_only():
    f = activations.get("maxout(3)")
    n = jnp.array([[2.0, 2.0, 0.0, 3.0, 1.0, 1.0]])
    np.testing.assert_array_equal(f.kink_distance(n), [[0.0, 0.0, 2.0, 2.0, 2.0, 2.0]])


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_have_no_kink_distance(name):
    assert activations.get(name).kink_distance is None
