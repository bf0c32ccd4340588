"""RMSprop: the texts' recursions in NumPy, and where definitions differ."""

import numpy as np
from first_order_cases import SIZE, assert_different_trajectories, assert_one_trajectory, trajectory, written_out

from functional_nn import optimizers


def rmsprop_by_hand(epsilon_inside):
    def rule(k, x, g, r):
        r = 0.7 * r + 0.3 * g**2
        return x - 0.02 * g / (np.sqrt(r + 1e-2) if epsilon_inside else np.sqrt(r) + 1e-2), r

    return written_out(rule, np.zeros(SIZE))


def test_epsilon_of_rmsprop_stands_inside_the_root():
    """Kordecki's and optax's; PyTorch's stands outside."""
    ours = trajectory(optimizers.rmsprop(0.02, 0.7, 1e-2))
    assert_one_trajectory(ours, rmsprop_by_hand(epsilon_inside=True))
    assert_different_trajectories(ours, rmsprop_by_hand(epsilon_inside=False))


def test_centered_rmsprop_is_graves():
    """Eq. 38-45 without momentum: the average of squares less the square of the average."""

    def rule(k, x, g, n, mean):
        n, mean = 0.7 * n + 0.3 * g**2, 0.7 * mean + 0.3 * g
        return x - 0.01 * g / np.sqrt(n - mean**2 + 1e-2), n, mean

    ours = trajectory(optimizers.rmsprop(0.01, 0.7, 1e-2, centered=True))
    assert_one_trajectory(ours, written_out(rule, np.zeros(SIZE), np.zeros(SIZE)))
