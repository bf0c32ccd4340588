"""Functions that others have minimized: More, Garbow and Hillstrom's published minima, and NIST's certified digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nist_strd import problems
from standard_functions import FUNCTIONS, TOLERANCE, reached

from functional_nn import optimizers
from functional_nn.optimizers import levenberg_marquardt, minimize, problem_from

pytestmark = pytest.mark.usefixtures("brisk")
BY_NAME = {function.name: function for function in FUNCTIONS}
METHODS = {
    "levenberg_marquardt": levenberg_marquardt(),
    "bfgs": optimizers.bfgs(),
    "lbfgs": optimizers.lbfgs(),
    "conjugate_gradient": optimizers.conjugate_gradient(),
    "newton": optimizers.newton(),
}
FAST = {("levenberg_marquardt", "Kowalik-Osborne"), ("newton", "Powell badly scaled")}
# curvatures twelve orders of magnitude apart: conjugate gradients creep along its valley (SciPy's do, too)
OUT_OF_REACH = ("conjugate_gradient", "Meyer")


def solved(problem, method, start, **settings):
    run = jax.jit(lambda x: minimize(problem, method, x, path=False, **settings))
    return run(jnp.asarray(start, float))


@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(method, name, marks=() if (method, name) in FAST else pytest.mark.slow)
        for method in METHODS
        for name in BY_NAME
        if (method, name) != OUT_OF_REACH
    ],
)
def test_published_minima_are_reached(method, name):
    """From the standard start: F to five digits, or below 1e-8 where it is 0. Where rounding lets the gradient be no
    smaller, it is found out that nothing lower is to be had.
    """
    function = BY_NAME[name]
    asked = {"residuals": function.residuals} if method == "levenberg_marquardt" else {"function": function.value}
    found = solved(problem_from(**asked), METHODS[method], function.start, steps=2000, gradient_tolerance=TOLERANCE)
    F = float(np.sum(np.square(np.asarray(function.residuals(found.params)))))
    assert reached(F, function.minima) is not None, found
    np.testing.assert_allclose(found.value, F, rtol=1e-6, atol=1e-20)
    assert found.status in ("gradient", "change", "search_failed")


@pytest.mark.slow
def test_what_is_out_of_reach_says_so():
    method, name = OUT_OF_REACH
    found = solved(problem_from(BY_NAME[name].value), METHODS[method], BY_NAME[name].start, steps=500)
    assert found.status in ("budget", "search_failed")
    assert reached(float(found.value), BY_NAME[name].minima) is None and found.advice


NIST = {problem.name: problem for problem in problems()}


@functools.cache
def regression(name):
    """Compiled start -> Solution, by default settings."""
    own = NIST[name]
    problem = problem_from(residuals=lambda b, x, y: own.model(b, x) - y, data=(jnp.asarray(own.x), jnp.asarray(own.y)))
    return jax.jit(lambda start: minimize(problem, "levenberg_marquardt", start, path=False))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("Thurber", "BoxBOD") else pytest.mark.slow) for name in NIST]
)
def test_certified_digits_from_both_starts(name):
    """At least six of every parameter's eleven, and of the residual sum of squares."""
    own = NIST[name]
    for number, start in enumerate(own.starts, start=1):
        found = regression(name)(jnp.asarray(start))
        assert own.digits(found.params) >= 6, (number, found)
        # Lanczos3's residuals are rounding of its own data to five digits: that sum has fewer digits to give
        assert found.status == "gradient"
        np.testing.assert_allclose(found.value, own.residual_sum, rtol=1e-6)
        np.testing.assert_allclose(np.sum((own.model(found.params, own.x) - own.y) ** 2), found.value, rtol=1e-9)
        assert own.digits(start) < 2
