"""Moller's scaled conjugate gradients, followed step by step in NumPy."""

import numpy as np
import pytest
from second_order_cases import QUARTIC, SADDLE, START, STEPS, P, trajectory

pytestmark = pytest.mark.usefixtures("brisk")


def moller(function, x, scale, steps):
    """Moller 1993, p. 530, in his letters, with the product itself for s_k; (x_k, lambda_k) before each step. A p that
    does not lead down is replaced by r, as with every method here.
    """
    p = r = -function.gradient(x)
    lam, lam_bar, success, made, path = scale, 0.0, True, 0, [(x, scale)]
    for _ in range(steps):
        p = p if p @ r > 0 else r
        square = p @ p
        if success:
            delta = p @ function.hessian(x) @ p
        delta += (lam - lam_bar) * square  # 3
        if delta <= 0:  # 4
            lam_bar = 2 * (lam - delta / square)
            delta, lam = -delta + lam * square, lam_bar
        mu = p @ r  # 5
        alpha = mu / delta
        fall = 2 * delta * (function.value(x) - function.value(x + alpha * p)) / mu**2  # 6
        if fall >= 0:  # 7
            x = x + alpha * p
            following = -function.gradient(x)
            lam_bar, success, made = 0.0, True, made + 1
            p = following if made % P == 0 else following + (following @ following - following @ r) / mu * p
            r = following
            if fall >= 0.75:
                lam = lam / 4
        else:
            lam_bar, success = lam, False
        if fall < 0.25:  # 8
            lam = lam + delta * (1 - fall) / square
        path.append((x, lam))
    return path


def test_scaled_conjugate_gradient_is_mollers():
    """Step by step, the same points and the same lambda, steps refused and indefinite ones among them."""
    refused = damped = 0
    near_saddle = SADDLE.center + 1e-3 * START
    for function, start, scale in ((QUARTIC, START, 1e-6), (SADDLE, START, 1e-2), (SADDLE, near_saddle, 1e-6)):
        states = trajectory("scaled_conjugate_gradient", function, start, scale)
        for k, (x, lam) in enumerate(moller(function, start, scale, STEPS)):
            np.testing.assert_allclose(states.params[k], x, rtol=1e-6, atol=1e-7, err_msg=f"step {k}")
            np.testing.assert_allclose(states.memory.scale[k], lam, rtol=1e-5)
        unmoved = (np.diff(states.params, axis=0) == 0).all(axis=1)
        refused, damped = refused + unmoved.sum(), damped + states.damped[-1]
        np.testing.assert_array_equal(states.counts.gradients, 1 + np.arange(STEPS + 1))
        # the curvature along a direction is asked for once
        np.testing.assert_array_equal(np.diff(states.counts.products), ~np.append(False, unmoved[:-1]))
    assert refused > 0 and damped > 0
