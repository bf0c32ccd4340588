"""AdaGrad, diagonal: where definitions differ."""

import numpy as np
from first_order_cases import SIZE, assert_different_trajectories, assert_one_trajectory, trajectory, written_out

from functional_nn import optimizers


def test_epsilon_of_adagrad_stands_inside_the_root():
    """Duchi's and optax's; PyTorch's stands outside. The sum starts at 0 by default, as PyTorch's."""

    def by_hand(epsilon_inside):
        def rule(k, x, g, total):
            total = total + g**2
            return x - 0.1 * g / (np.sqrt(total + 0.01) if epsilon_inside else np.sqrt(total) + 0.01), total

        return written_out(rule, np.zeros(SIZE))

    ours = trajectory(optimizers.adagrad(0.1, 0.01))
    assert_one_trajectory(ours, by_hand(epsilon_inside=True))
    assert_different_trajectories(ours, by_hand(epsilon_inside=False))
