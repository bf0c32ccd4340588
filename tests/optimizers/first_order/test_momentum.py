"""Momentum and Nesterov's: their recursions in NumPy, and where definitions differ."""

import jax.numpy as jnp
import numpy as np
from first_order_cases import (
    NOISE,
    SIZE,
    START,
    assert_different_trajectories,
    assert_one_trajectory,
    gradient,
    trajectory,
    written_out,
)

from functional_nn import optimizers


def test_momentum_keeps_the_rates_its_changes_were_made_with():
    """Of optax and PyTorch, the whole average is multiplied by the latest rate."""

    def rate(k):
        return 0.1 * 0.5 ** (k // 20)

    def ours(k, x, g, change):
        change = 0.9 * change - rate(k - 1) * g
        return x + change, change

    def theirs(k, x, g, average):
        average = 0.9 * average + g
        return x - rate(k - 1) * average, average

    reached = trajectory(optimizers.momentum("step(0.1, 20, 0.5)", 0.9))
    assert_one_trajectory(reached, written_out(ours, np.zeros(SIZE)))
    theirs = written_out(theirs, np.zeros(SIZE))
    np.testing.assert_allclose(reached[:20], theirs[:20], rtol=1e-12)  # until the rate changes for the first time
    assert_different_trajectories(reached[20:], theirs[20:])


def test_nesterovs_forms_are_one_trajectory():
    """The look-ahead form by its equations; y = w + alpha v, its points, are the gradient form's parameters."""
    alpha, eta = 0.8, 0.05
    w, v, path = START.copy(), np.zeros(SIZE), []
    for noise in NOISE:
        v = alpha * v - eta * gradient(w + alpha * v, noise)  # Sutskever et al. 2013, Eq. 3
        w = w + v  # Eq. 4
        path.append(np.stack([w, w + alpha * v]))
    path = np.array(path)

    optimizer = optimizers.nesterov(eta, alpha, form="look_ahead")
    ahead = trajectory(optimizer, lambda state: jnp.stack([state.params, optimizer.point(state)]))
    assert_one_trajectory(ahead[:, 0], path[:, 0])
    assert_one_trajectory(ahead[:, 1], path[:, 1])
    assert_one_trajectory(trajectory(optimizers.nesterov(eta, alpha)), ahead[:, 1])
    assert_different_trajectories(ahead[:, 0], ahead[:, 1])


def test_momentum_is_the_recursion_written_out():
    optimizer, w, change = optimizers.momentum(0.1, 0.9), 1.0, 0.0
    state = optimizer.init(jnp.array(w))
    for g in (2.0, -1.0, 0.5, 3.0):
        change = -0.1 * g + 0.9 * change
        w = w + change
        state = optimizer.update(state, jnp.array(g))
        np.testing.assert_allclose((state.params, state.change), (w, change), rtol=1e-15)
