"""Adam: the algorithm in NumPy, and its two orders."""

import jax.numpy as jnp
import numpy as np
from first_order_cases import SIZE, assert_different_trajectories, assert_one_trajectory, trajectory, written_out

from functional_nn import optimizers


def test_adams_orders_differ_by_where_epsilon_stands():
    """The efficient order with epsilon-hat is the corrected one with epsilon-hat / sqrt(1 - b2^k); Kingma and Ba, 2."""
    b1, b2 = 0.8, 0.95

    def corrected(k, x, g, m, v, epsilon_at):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return x - 0.01 * m / (1 - b1**k) / (np.sqrt(v / (1 - b2**k)) + epsilon_at(k)), m, v, epsilon_at

    def by_hand(epsilon_at):
        return written_out(corrected, *np.zeros((2, SIZE)), epsilon_at)

    first = trajectory(optimizers.adam(0.01, b1, b2, 1e-2))
    second = trajectory(optimizers.adam(0.01, b1, b2, 1e-2, order="efficient"))
    assert_one_trajectory(first, by_hand(lambda k: 1e-2))
    assert_one_trajectory(second, by_hand(lambda k: 1e-2 / np.sqrt(1 - b2**k)))
    assert_different_trajectories(first, second)
    negligible = trajectory(optimizers.adam(0.01, b1, b2, 1e-30))
    assert_one_trajectory(trajectory(optimizers.adam(0.01, b1, b2, 1e-30, order="efficient")), negligible)


def test_adam_is_the_algorithm_written_out():
    """Kingma and Ba 2015, Algorithm 1, in floats; the first step is the rate times the sign of the gradient."""
    rate, b1, b2, epsilon = 0.1, 0.9, 0.99, 1e-8
    optimizer, x, m, v = optimizers.adam(rate, b1, b2, epsilon), 1.0, 0.0, 0.0
    state = optimizer.init(jnp.array(x))
    for t, g in enumerate((2.0, -1.0, 0.5, 3.0), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x = x - rate * (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + epsilon)
        state = optimizer.update(state, jnp.array(g))
        np.testing.assert_allclose((state.params, state.first_moment, state.second_moment), (x, m, v), rtol=1e-14)
        assert t > 1 or abs(x - 0.9) < 1e-8
    assert state.step == 4
