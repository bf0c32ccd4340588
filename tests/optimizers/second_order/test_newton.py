"""Newton's method: quadratics in one step, damping, saddles."""

import numpy as np
import pytest
from second_order_cases import (
    EPS,
    QUARTIC,
    SADDLE,
    START,
    STEPS,
    Bowl,
    P,
    marked,
    quadratic,
    running,
    spectral,
    trajectory,
)

pytestmark = pytest.mark.usefixtures("brisk")


@pytest.mark.parametrize("name", marked(("newton", "newton, trust region", "newton, saddle-free")))
def test_newton_ends_a_quadratic_in_one_step(name):
    for n in (2, 5, 10):
        states = trajectory(name, quadratic(n), np.zeros(P))
        np.testing.assert_allclose(states.params[1], quadratic(n).center, atol=1e-12)
        assert (states.counts.matrices[1], states.counts.gradients[1], states.damped[1]) == (1, 2, 0)


def newton_runs(name):
    flat = Bowl(np.zeros((P, P)), np.zeros(P), 0.7)
    yield QUARTIC, START, 0.0
    yield QUARTIC, START, 2.5
    yield SADDLE, START, 0.0
    yield SADDLE, START, 1.0
    yield SADDLE, SADDLE.center + 1e-3 * START, 0.0
    yield flat, np.where(np.arange(P) < 4, 0, START), 0.0  # singular: no curvature in 4 directions
    yield Bowl(spectral([*np.linspace(1, 5, P - 2), 0, 0], 3), START, 0.0), 0 * START, 0.0  # singular everywhere


def test_newton_adds_what_makes_the_hessian_positive():
    """s solves (H + (alpha + tau) I) s = -t g, t from the search: tau 0 where that is positive definite, as Nocedal and
    Wright's Alg. 3.3 finds it where not; every such step is counted.
    """
    shifted = 0
    for function, start, alpha in newton_runs("newton"):
        states = trajectory("newton", function, start, alpha)
        assert np.isfinite(states.params).all() and (np.diff(states.value) <= 4 * EPS * abs(states.value[1:])).all()
        for k in running(states, function):
            x, s = states.params[k], states.params[k + 1] - states.params[k]
            H, g = function.hessian(x), function.gradient(x)
            lowest = np.linalg.eigvalsh(H)[0] + alpha
            (plus, t), *_ = np.linalg.lstsq(np.stack([s, g], axis=1), -H @ s)
            tau = plus - alpha
            error = H @ s + plus * s + t * g
            assert np.linalg.norm(error) <= 1e-8 * np.linalg.norm(H @ s)
            assert 0 < t <= 1 + 1e-9
            small = EPS**0.5 * np.abs(H).max()
            damped = states.damped[k + 1] - states.damped[k]
            if lowest > small:
                assert abs(tau) <= 1e-7 * np.abs(H).max() and damped == 0
            elif lowest < -small:
                # by a factor of 10 at a time, or to where the diagonal is positive
                assert -lowest < tau <= max(10 * -lowest, -2 * (np.diag(H).min() + alpha)) * 1.01 and damped == 1
            else:
                assert tau <= 100 * small
            full = x + s / t
            enough = function.value(full) <= function.value(x) + 1e-4 * (s / t) @ g
            assert abs(t - 1) < 1e-6 or not enough
            shifted += damped
    assert shifted > 5


@pytest.mark.slow
def test_saddle_free_newton_takes_the_size_of_every_eigenvalue():
    """s = -t |H + alpha I|^-1 g."""
    damped = 0
    for function, start, alpha in newton_runs("newton, saddle-free"):
        states = trajectory("newton, saddle-free", function, start, alpha)
        assert np.isfinite(states.params).all() and (np.diff(states.value) <= 4 * EPS * abs(states.value[1:])).all()
        for k in running(states, function):
            x, s = states.params[k], states.params[k + 1] - states.params[k]
            values, vectors = np.linalg.eigh(function.hessian(x) + alpha * np.eye(P))
            counted = states.damped[k + 1] - states.damped[k]
            if np.abs(values).min() > 1e-6:
                d = -vectors @ (vectors.T @ function.gradient(x) / np.abs(values))
                np.testing.assert_allclose(s, s @ d / (d @ d) * d, atol=1e-8 * np.linalg.norm(s))
                assert 0 < s @ d / (d @ d) <= 1 + 1e-9
                assert counted == (values[0] < 0)
                damped += counted
    assert damped > 3


@pytest.mark.parametrize("name", marked(("newton", "newton, saddle-free")))
def test_newton_leaves_a_saddle(name):
    """A thousandth away from it, where Newton's own step would go back; F falls below the saddle's 0 and the gradient
    vanishes elsewhere.
    """
    states = trajectory(name, SADDLE, SADDLE.center + 1e-3 * START)
    assert states.value[-1] < -1
    assert np.linalg.norm(states.params[-1] - SADDLE.center) > 1
    assert states.damped[-1] > 0
    # Newton's method as it is printed stays: where F is a quadratic, its step ends at the saddle
    printed = np.linalg.solve(
        SADDLE.hessian(SADDLE.center + 1e-3 * START), SADDLE.gradient(SADDLE.center + 1e-3 * START)
    )
    assert np.linalg.norm(1e-3 * START - printed) < 1e-4


def test_without_any_curvature_newton_steps_along_the_gradient():
    """F = sum x: the Hessian is 0, which no multiple of its size makes positive."""
    states = trajectory("newton", Bowl(np.zeros((P, P)), np.zeros(P), slope=1.0))
    assert np.isfinite(states.params).all() and (np.diff(states.value) < 0).all()
    moved = np.diff(states.params, axis=0)
    np.testing.assert_allclose(moved, np.repeat(moved[:, :1], P, axis=1))
    assert states.damped[-1] == STEPS
