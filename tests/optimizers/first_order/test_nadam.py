"""NAdam: Dozat's algorithm in NumPy, and where definitions differ."""

import numpy as np
from first_order_cases import SIZE, assert_different_trajectories, assert_one_trajectory, trajectory, written_out

from functional_nn import optimizers


def test_momentum_of_nadam_is_constant():
    """Dozat's Alg. 8 with mu = b1; PyTorch's mu grows to it by 0.96^(0.004 k)."""
    b1, b2 = 0.8, 0.95

    def constant(k, x, g, m, v):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (k + 1)) + (1 - b1) * g / (1 - b1**k)
        return x - 0.01 * ahead / (np.sqrt(v / (1 - b2**k)) + 1e-3), m, v

    def pytorch(k, x, g, m, v, product):
        mu, following = (b1 * (1 - 0.5 * 0.96 ** (0.004 * j)) for j in (k, k + 1))
        product = product * mu
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = following * m / (1 - product * following) + (1 - mu) * g / (1 - product)
        return x - 0.01 * ahead / (np.sqrt(v / (1 - b2**k)) + 1e-3), m, v, product

    ours = trajectory(optimizers.nadam(0.01, b1, b2, 1e-3))
    assert_one_trajectory(ours, written_out(constant, *np.zeros((2, SIZE))))
    assert_different_trajectories(ours, written_out(pytorch, *np.zeros((2, SIZE)), 1.0))
