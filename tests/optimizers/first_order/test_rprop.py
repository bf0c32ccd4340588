"""Rprop: the papers' algorithms in NumPy, its bounds, and batches."""

import numpy as np
import pytest
from cases import relative_error
from first_order_cases import METHODS, NOISE, PULL, SIZE, START, STEPS, assert_one_trajectory, trajectory
from refusals import refusal

from functional_nn import optimizers


def riedmiller_and_braun(backtracking, initial=0.1, decrease=0.5, increase=1.2, smallest=1e-6, largest=50.0):
    """The 1993 paper's algorithm, one weight and one number at a time; Delta is the step size, last the gradient."""
    path = np.zeros((STEPS, SIZE))
    for i in range(SIZE):
        x, size, last, change = START[i], initial, 0.0, 0.0
        for k in range(STEPS):
            g = float(NOISE[k, i] + PULL[i] * (x + 0.5))
            sign = float(g > 0) - float(g < 0)
            if last * g > 0:
                size = min(size * increase, largest)
                change, last = -sign * size, g
            elif last * g < 0:
                size = max(size * decrease, smallest)
                change, last = (-change if backtracking else 0.0), 0.0
            else:
                change, last = -sign * size, g
            x += change
            path[k, i] = x
    return path


@pytest.mark.parametrize("constants", [{}, {"initial": 0.02, "decrease": 0.3, "increase": 1.5, "largest": 0.05}])
def test_rprop_takes_back_the_step_after_a_change_of_sign(constants):
    theirs = {name if name != "initial" else "initial_step": value for name, value in constants.items()}
    ours = trajectory(optimizers.rprop(**theirs))
    assert_one_trajectory(ours, riedmiller_and_braun(True, **constants))
    without = trajectory(optimizers.rprop(**theirs, backtracking=False))
    assert_one_trajectory(without, riedmiller_and_braun(False, **constants))
    assert relative_error(ours, without) > 1e-3


def test_only_rprop_requires_whole_batches():
    assert [name for name in METHODS if METHODS[name](0.1, 0.0).full_batch] == ["rprop", "rprop without backtracking"]
    assert not optimizers.rprop(minibatches=True).full_batch
    assert optimizers.accumulate(optimizers.rprop(), 2).full_batch
    assert optimizers.clip_by_value(optimizers.rprop(), 1.0).full_batch


def test_the_bounds_of_rprop_are_in_order():
    between = "rprop: initial_step must be between smallest = {} and largest = {}, got {}"
    assert refusal(lambda: optimizers.rprop(100.0)) == between.format(1e-06, 50.0, 100.0)
    assert refusal(lambda: optimizers.rprop(1e-8)) == between.format(1e-06, 50.0, 1e-08)
    assert refusal(lambda: optimizers.rprop(0.1, smallest=0.5, largest=0.2)) == between.format(0.5, 0.2, 0.1)
