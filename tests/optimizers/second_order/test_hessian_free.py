"""Hessian-free optimization, followed step by step in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from second_order_cases import LONG, OWN, WIDE, trajectory

from functional_nn import optimizers
from functional_nn.optimizers import minimize, problem_from

pytestmark = pytest.mark.usefixtures("brisk")


def martens(function, x, lam, warm, iterations=250, tolerance=5e-4):
    """A step of Martens 2010 without preconditioner, in NumPy: (x, lambda, where it ended, products made)."""
    J, g = function.jacobian(x), function.gradient(x)
    B = 2 * J.T @ J + lam * np.eye(len(x))

    def q(delta):
        return g @ delta + delta @ B @ delta / 2

    delta, past, marked = 0.95 * warm, [], []
    residual = B @ delta + g
    p, past = -residual, [q(delta)]
    marks = {int(np.ceil(1.3**j)) for j in range(1, 1 + int(np.log(iterations) / np.log(1.3)))} | {iterations}
    for i in range(1, iterations + 1):
        Bp = B @ p
        alpha = residual @ residual / (p @ Bp)
        delta, following = delta + alpha * p, residual + alpha * Bp
        p = -following + following @ following / (residual @ residual) * p
        residual = following
        past.append(q(delta))
        if i in marks:
            marked.append(delta)
        k = max(10, i // 10)  # Sec. 4.4
        if i > k and past[i] < 0 and (past[i] - past[i - k]) / past[i] < k * tolerance:
            break
    marked += [delta] if i not in marks else []
    chosen = marked.pop()  # Sec. 4.6: back, as long as F falls
    while marked and function.value(x + marked[-1]) <= function.value(x + chosen):
        chosen = marked.pop()
    model = g @ chosen + chosen @ (2 * J.T @ J) @ chosen / 2
    ratio = (function.value(x + chosen) - function.value(x)) / model
    lam = lam * (2 / 3 if ratio > 0.75 else 3 / 2 if ratio < 0.25 else 1)  # Sec. 4.1
    step = 1.0
    while function.value(x + step * chosen) > function.value(x) + 0.01 * step * g @ chosen:
        rise = function.value(x + step * chosen) - function.value(x) - step * g @ chosen
        step = np.clip(-(g @ chosen) * step**2 / (2 * rise), step / 10, step / 2)
    return x + step * chosen, lam, delta, i + 2


def test_hessian_free_is_martens():
    """The point, lambda and the number of products, from a cold start and from warm ones."""
    counts, ratios = [], set()
    own = OWN["hessian_free"][1]
    for function, start, lam in ((LONG, own, 1.0), (LONG, -3 * own, 1e-3), (LONG._replace(q=0.1), own, 1e-3)):
        states = trajectory("hessian_free", function, start, lam)
        for k in range(8):
            x, products = states.params[k], states.counts.products
            expected = martens(function, x, states.memory.damping[k], states.memory.warm[k])
            np.testing.assert_allclose(states.params[k + 1], expected[0], atol=1e-6 * np.linalg.norm(x))
            np.testing.assert_allclose(states.memory.damping[k + 1], expected[1], rtol=1e-12)
            np.testing.assert_allclose(states.memory.warm[k + 1], expected[2], atol=1e-6 * np.linalg.norm(expected[2]))
            assert products[k + 1] - products[k] == expected[3]
            counts.append(expected[3])
            ratios.add(round(states.memory.damping[k + 1] / states.memory.damping[k], 3))
    assert max(counts) < WIDE and len(set(counts)) > 3  # the rule did end it early
    assert len(ratios) == 3


def test_hessian_free_solves_the_damped_equations():
    """Of a linear model, where strong damping leaves conjugate gradients little to do: (G + lambda I) delta = -g."""
    linear, start = LONG._replace(q=0.0), OWN["hessian_free"][1]
    for lam in (200.0, 1e4):
        states = trajectory("hessian_free", linear, start, lam)
        G = 2 * LONG.B.T @ LONG.B
        delta = np.linalg.solve(G + lam * np.eye(WIDE), -linear.gradient(start))
        moved = states.params[1] - start
        np.testing.assert_allclose(moved, delta, atol=1e-3 * np.linalg.norm(delta))  # its tolerance is 5e-4
        np.testing.assert_allclose(states.memory.damping[1], lam * 2 / 3)  # the model is exact but for lambda


@pytest.mark.slow
def test_hessian_free_uses_the_hessian_of_a_function_without_residuals():
    """log cosh along a bent valley, which has no Gauss-Newton matrix here; with it, it is refused."""

    def valley(x):
        return 1 + jnp.log(jnp.cosh(3 * (x[1] - x[0] ** 2))) + jnp.log(jnp.cosh(1 - x[0]))

    found = minimize(problem_from(valley), optimizers.hessian_free(curvature="hessian"), jnp.array([-1.2, 1.0]))
    assert found.status == "gradient" and int(found.counts.products) > 0
    np.testing.assert_allclose(found.params, 1, atol=1e-3)
    with pytest.raises(ValueError, match="has no Gauss-Newton matrix"):
        minimize(problem_from(valley), "hessian_free", jnp.array([-1.2, 1.0]))
