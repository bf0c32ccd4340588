"""Gradient descent: worked examples."""

import jax
import jax.numpy as jnp
import numpy as np

from functional_nn import optimizers


def test_gradient_descent_is_hagans_first_step():
    """Worked examples 1 and 3: rate 0.01 from the first example; one step at 0.1 from w = b = 0."""
    state = optimizers.gd(0.01).update(optimizers.gd(0.01).init(jnp.zeros(2)), -2 * -1.0 * jnp.array([-1.0, 2.0]))
    np.testing.assert_allclose(state.params, [0.02, -0.04], rtol=1e-15)
    state = optimizers.gd(0.1).update(optimizers.gd(0.1).init(jnp.zeros(2)), jnp.array([-8.0, -3.0]))
    np.testing.assert_allclose(state.params, [0.8, 0.3], rtol=1e-15)


def test_gradient_descent_is_stable_below_two_over_the_largest_eigenvalue():
    """Worked example 2, Hagan P3.3: eigenvalues 10 and 40, so 0.05 is the edge; one program for all rates."""
    a, d, c = jnp.array([[34.0, -12.0], [-12.0, 16.0]]), jnp.array([-10.0, 0.0]), 2.0

    def value(x):
        return c + d @ x + x @ a @ x / 2

    @jax.jit
    @jax.vmap
    def values(rate):  # F at the start and after each of 300 steps
        optimizer = optimizers.gd(rate)

        def step(state, _):
            return (optimizer.update(state, a @ state.params + d), value(state.params))

        return jax.lax.scan(step, optimizer.init(jnp.ones(2)), length=301)[1]

    below, edge, above = values(jnp.array([0.0499, 0.05, 0.06]))
    np.testing.assert_allclose(edge[:4], [5, 2, 1.25, 1.0625], rtol=1e-12)
    np.testing.assert_allclose(edge[50:], 1, rtol=1e-9)  # for ever: the part along [-2, 1] keeps its size
    assert below[-1] < 0.5 and (np.diff(np.asarray(below)[20:]) < 0).all()
    assert above[-1] > 1e80
