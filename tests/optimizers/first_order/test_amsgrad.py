"""AMSGrad: its three definitions differ."""

import numpy as np
from first_order_cases import SIZE, assert_different_trajectories, assert_one_trajectory, trajectory, written_out

from functional_nn import optimizers


def amsgrad_by_hand(largest_of, b1=0.8, b2=0.9, epsilon=1e-3):
    def rule(k, x, g, m, v, largest):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        if largest_of == "corrected":
            largest = np.maximum(largest, v / (1 - b2**k))
            return x - 0.01 * m / (1 - b1**k) / (np.sqrt(largest) + epsilon), m, v, largest
        largest = np.maximum(largest, v)
        if largest_of == "uncorrected, then corrected":
            return x - 0.01 * m / (1 - b1**k) / (np.sqrt(largest / (1 - b2**k)) + epsilon), m, v, largest
        return x - 0.01 * m / (np.sqrt(largest) + epsilon), m, v, largest

    return written_out(rule, *np.zeros((3, SIZE)))


def test_the_three_amsgrads_differ():
    """With correction, the maximum is of corrected moments (optax); PyTorch corrects the maximum; the paper nothing."""
    ours = trajectory(optimizers.amsgrad(0.01, 0.8, 0.9, 1e-3))
    papers = trajectory(optimizers.amsgrad(0.01, 0.8, 0.9, 1e-3, bias_correction=False))
    pytorch = amsgrad_by_hand("uncorrected, then corrected")
    assert_one_trajectory(ours, amsgrad_by_hand("corrected"))
    assert_one_trajectory(papers, amsgrad_by_hand("uncorrected"))
    assert_different_trajectories(ours, papers)
    np.testing.assert_allclose(ours[0], pytorch[0], rtol=1e-14)  # of one moment, either way, the same maximum
    assert_different_trajectories(ours[5:], pytorch[5:])
