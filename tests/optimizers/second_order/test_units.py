"""Units of F and of the parameters do not decide where a run converges."""

import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn import optimizers
from functional_nn.optimizers import levenberg_marquardt, minimize, problem_from

pytestmark = pytest.mark.usefixtures("brisk")
ABSCISSA = np.linspace(0, 5, 40)
UNITS = [(unit, sizes) for unit in (1e-12, 1.0, 1e12) for sizes in ((1, 1, 1), (1e-6, 1, 1e6), (1e6, 1e-6, 1))]
UNIT_FREE = {
    "lm": levenberg_marquardt(),
    "lm factor": levenberg_marquardt(rule="factor"),
    "lm qr": levenberg_marquardt(solver="qr"),
    "lm identity": levenberg_marquardt(scaling="identity"),
    **{
        name: optimizers.get(name)
        for name in ("bfgs", "lbfgs", "conjugate_gradient", "newton", "newton_cg", "hessian_free")
    },
    "scaled_conjugate_gradient": optimizers.scaled_conjugate_gradient(),
}


def decay(u, x, y, unit, sizes):
    """y = b1 exp(-b2 x) + b3, b = sizes u, all of it in another unit."""
    b = u * sizes
    return unit * (b[0] * jnp.exp(-b[1] * x) + b[2]) - y


@pytest.mark.parametrize(
    "dtype", [pytest.param(np.float64, id="float64"), pytest.param(np.float32, id="float32", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("lm", "bfgs") else pytest.mark.slow) for name in UNIT_FREE]
)
def test_no_choice_of_units_converges_elsewhere(name, dtype):
    """Of F, of each parameter: the right parameters, or a status that claims nothing; scaled Levenberg-Marquardt finds
    them in all.
    """
    near = 1e-5 if dtype == np.float64 else 3e-3
    statuses = []
    for unit, sizes in UNITS:
        sizes = np.array(sizes)
        y = unit * (2.5 * np.exp(-1.3 * ABSCISSA) + 0.5)
        data = tuple(jnp.asarray(each, dtype) for each in (ABSCISSA, y, unit, sizes))
        start = jnp.asarray(np.array([1.0, 1.0, 0.0]) / sizes, dtype)
        found = minimize(problem_from(residuals=decay, data=data), UNIT_FREE[name], start, steps=200, path=False)
        right = np.abs(np.asarray(found.params, float) * sizes / [2.5, 1.3, 0.5] - 1).max() < near
        assert right or found.status not in ("gradient", "change"), (unit, sizes, found)
        statuses.append(found.status)
    converged = sum(status in ("gradient", "change") for status in statuses)
    assert converged == len(UNITS) if name in ("lm", "lm factor", "lm qr") else converged >= 1


@pytest.mark.parametrize(
    "name", ["bfgs", "lbfgs", *(pytest.param(n, marks=pytest.mark.slow) for n in ("conjugate_gradient", "newton_cg"))]
)
def test_single_precision_works_in_any_unit_of_f(name):
    """F times 1e24, as where data are in other units by 1e12: squares of its gradient are no numbers there."""

    def valley(x, c):
        return c * (100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)

    steps = []
    for c in (1.0, 1e24, 1e-24):
        found = minimize(problem_from(valley, data=(jnp.float32(c),)), name, jnp.array([-1.2, 1.0], jnp.float32))
        assert found.status == "gradient"
        np.testing.assert_allclose(found.params, 1, rtol=1e-3)
        steps.append(int(found.steps))
    assert max(steps) <= min(steps) + 10


def test_a_damped_step_is_not_taken_for_convergence():
    """A rate constant of 1e10 next to an exponent: unscaled, no step moves it in single precision."""
    T = jnp.linspace(300, 1200, 60, dtype=jnp.float32)

    def rate(b, T):
        return b[0] / 1e10 * (T / 300) ** b[1] * jnp.exp(-b[2] / (8.314 * T))

    truth, start = (jnp.array(b, jnp.float32) for b in ((1e10, 0.5, 5e3), (5e9, 0.0, 3e3)))
    problem = problem_from(residuals=lambda b, T, y: rate(b, T) - y, data=(T, rate(truth, T)))
    found = minimize(problem, "levenberg_marquardt", start)
    assert found.status == "gradient"
    np.testing.assert_allclose(found.params, truth, rtol=1e-5)
    unscaled = minimize(problem, levenberg_marquardt(scaling="identity"), start, steps=50)
    assert unscaled.status in ("budget", "search_failed")
