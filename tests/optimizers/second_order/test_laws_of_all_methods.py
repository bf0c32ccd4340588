"""Laws of all second-order methods: values and gradients, minima, structure and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from second_order_cases import BOWLS, EPS, METHODS, OWN, STEPS, marked, quadratic, running, trajectory

import functional_nn as fnn
from functional_nn import optimizers
from functional_nn.optimizers import minimize, problem_from, second_order

pytestmark = pytest.mark.usefixtures("brisk")
over_methods = pytest.mark.parametrize("name", marked(METHODS))


@pytest.mark.sampled(every=2)
@over_methods
def test_values_and_gradients_are_those_of_the_points(name):
    """And none is higher than the one before; of Bayesian regularization that holds of another function."""
    function, start = OWN[name]
    states = trajectory(name)
    values = [function.value(x) for x in states.params]
    np.testing.assert_allclose(states.value, values, rtol=1e-11, atol=1e-15)
    if name != "bayesian_regularization":
        gradients = np.array([function.gradient(x) for x in states.params])
        np.testing.assert_allclose(states.gradient, gradients, rtol=1e-9, atol=1e-11)
        assert (np.diff(values) <= 4 * EPS * np.abs(values[1:])).all()
        assert values[-1] < 0.5 * values[0]
    np.testing.assert_array_equal(states.step, np.arange(STEPS + 1))
    assert (states.params[0] == start).all()


@over_methods
def test_at_the_minimum_nothing_breaks(name):
    """From the minimum itself, where every direction is 0, and from a point next to it."""
    function = quadratic(5) if name in BOWLS else OWN[name][0]._replace(q=0.0, t=0 * OWN[name][0].t)
    minimum = function.center if name in BOWLS else np.zeros(len(OWN[name][1]))
    for x in (minimum, minimum + 1e-9):
        states = trajectory(name, function, x)
        for leaf in jax.tree.leaves((states.params, states.value, states.gradient)):
            assert np.isfinite(leaf).all()
        assert (states.value <= function.value(x) * (1 + 1e-9)).all()
        if x is minimum:
            assert (states.params == minimum).all()


@over_methods
def test_length_is_of_the_move_tried(name):
    """Relative to where it began; and of a move that was not made something was expected."""
    function, _ = OWN[name]
    states = trajectory(name)
    assert states.length[0] == states.expected[0] == 0
    for k in running(states, function):
        moved = np.linalg.norm(states.params[k + 1] - states.params[k])
        if moved:
            np.testing.assert_allclose(states.length[k + 1], moved / np.linalg.norm(states.params[k]), rtol=1e-6)
        else:
            assert states.expected[k + 1] > 0 and states.length[k + 1] > 0


KINDS = {"float32": (jnp.float32,) * 2, "bfloat16": (jnp.bfloat16,) * 2, "both": (jnp.float32, jnp.bfloat16)}


def mixed(dtype, other):
    return {"a": jnp.ones((2, 3), dtype), "b": jnp.asarray(2.0, other), "c": [jnp.zeros((1, 1, 2), dtype)]}


def hills(params, shift):
    leaves = [leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(params)]
    e = jnp.concatenate(leaves) - shift.astype(jnp.float32)
    return jnp.concatenate([e, 0.5 * e**2])


@pytest.mark.parametrize("name", second_order.names())
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_leaves_structure_shapes_and_dtypes(name, kind):
    """Of the state, so that it can be carried through a loop; and it computes in at least float32."""
    params, problem = mixed(*KINDS[kind]), problem_from(residuals=hills, data=(jnp.ones(()),))
    if name == "kfac":
        if kind == "both":
            return  # a network's parameters are of one dtype
        network = fnn.multilayer((2, 3, 1), ("tanh", "linear"))
        params = network.init(jax.random.key(0), dtype=KINDS[kind][0])
        problem = fnn.training.problem(network, "mean_square_error", np.ones((4, 2)), np.ones((4, 1)))
    method = optimizers.get(name)
    state = jax.eval_shape(method.init, params, problem)
    after = jax.eval_shape(method.update, state, problem)

    def kinds(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert kinds(after) == kinds(state)
    assert kinds(state.params) == kinds(params)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.value, state.gradient))} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_single_precision_reaches_the_minimum():
    """Arrays of several shapes, one of them in another dtype than the rest, come back as they were."""
    params = mixed(*KINDS["both"])
    found = minimize(
        problem_from(residuals=hills, data=(jnp.full((), 0.75),)), "bfgs", params, steps=100, gradient_tolerance=1e-5
    )
    assert found.status == "gradient"
    for leaf, given in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        assert (leaf.shape, leaf.dtype) == (given.shape, given.dtype)
        # F is flat at its minimum: where |dF/dx| <= 1e-5, so is 2 |x - x*|; 0.75 is a number of bfloat16's
        np.testing.assert_allclose(np.asarray(leaf, float), 0.75, atol=5e-6)
