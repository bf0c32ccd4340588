"""Adadelta: Zeiler's algorithm in NumPy."""

import numpy as np
from first_order_cases import SIZE, assert_one_trajectory, trajectory, written_out

from functional_nn import optimizers


def test_adadelta_is_zeilers_algorithm():
    def rule(k, x, g, squares, changes):
        squares = 0.7 * squares + 0.3 * g**2
        change = -np.sqrt(changes + 1e-3) / np.sqrt(squares + 1e-3) * g
        return x + change, squares, 0.7 * changes + 0.3 * change**2

    assert_one_trajectory(
        trajectory(optimizers.adadelta(decay=0.7, epsilon=1e-3)), written_out(rule, *np.zeros((2, SIZE)))
    )
