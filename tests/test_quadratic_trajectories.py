"""The quadratic's pictures: one start for every method; stochastic descent is a noisy version of gradient descent."""

import jax
import numpy as np
import pytest
import quadratic_trajectories as script

PROBLEMS = {problem.name: problem for problem in (script.EQ315, script.P33)}


def users_own():
    """JAX as a user of the script has it: without strict promotion."""
    return jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")


@pytest.fixture(scope="module", params=PROBLEMS)
def drawn(request):
    """A problem and its paths {method: points}, gradient descent's at the smallest rate."""
    problem, (dtypes, ranks) = PROBLEMS[request.param], users_own()
    with dtypes, ranks:
        paths = script.trajectories(problem)
    return problem, {method: path for (method, rate), path in paths.items() if (method, rate) != ("GD", rate)} | {
        "GD": paths["GD", problem.rates[0]]
    }


def cosines(path):
    """Of the angles between successive steps that can be seen: as long as a hundredth of the path's extent."""
    steps = np.diff(path, axis=0)
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    units = (steps / np.maximum(lengths, 1e-300))[lengths[:, 0] > 0.01 * np.ptp(path, axis=0).max()]
    return np.sum(units[1:] * units[:-1], axis=1)


def aside(path, chord):
    """How far the path leaves the line from its start along the chord, in lengths of the chord: 0 if it is straight."""
    return np.abs((path - path[0]) @ [-chord[1], chord[0]]).max() / (chord @ chord)


def test_every_method_starts_where_gradient_descent_does(drawn):
    problem, paths = drawn
    assert set(paths) == {"GD", "SGD", "momentum 0.9", "Adam", "Newton"}
    for path in paths.values():
        np.testing.assert_array_equal(path[0], problem.start)


def test_stochastic_descent_is_a_noisy_version_of_gradient_descent(drawn):
    problem, paths = drawn
    minimum = np.linalg.lstsq(problem.inputs, problem.targets[:, 0], rcond=None)[0]
    np.testing.assert_allclose(paths["SGD"][-1], minimum, atol=1e-9)
    chord = minimum - problem.start
    assert aside(paths["SGD"], chord) > 0.1
    # gradient descent turns little by little; this at right angles and more, several times, and yet stays near its path
    assert cosines(paths["GD"]).min() > 0.8
    assert np.sum(cosines(paths["SGD"]) < 0.1) >= 5
    away = np.linalg.norm(paths["SGD"][:, None] - paths["GD"][None], axis=2).min(axis=1)
    assert away.max() < 0.35 * np.linalg.norm(chord)


def test_each_update_is_of_one_example_in_random_order(drawn):
    problem, paths = drawn
    p, t = np.asarray(problem.inputs), np.asarray(problem.targets)[:, 0]
    x, orders = paths["SGD"][: 5 * len(p) + 1], []
    for before, after in zip(x[:-1], x[1:], strict=True):
        every = before + 2 * problem.stochastic_rate * (t - p @ before)[:, None] * p  # Eq. 3.27, of each example
        orders.append(int(np.argmin(np.abs(every - after).max(axis=1))))
        np.testing.assert_allclose(after, every[orders[-1]], atol=1e-12)
    epochs = np.reshape(orders, (5, len(p)))
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(len(p)), epochs.shape))
    assert len(set(map(tuple, epochs))) > 1


def test_newton_is_there_in_one_step(drawn):
    problem, paths = drawn
    minimum = np.linalg.lstsq(problem.inputs, problem.targets[:, 0], rcond=None)[0]
    assert len(paths["Newton"]) == 2
    np.testing.assert_allclose(paths["Newton"][1], minimum, atol=1e-12)
