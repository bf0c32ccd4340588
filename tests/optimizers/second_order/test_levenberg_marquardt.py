"""Levenberg-Marquardt without a trust region, followed step by step in NumPy, in both spaces."""

import jax
import numpy as np
import pytest
from second_order_cases import (
    BENT,
    CURVES,
    FEW,
    SINE,
    START,
    STEPS,
    TWICE,
    P,
    marked,
    of_network,
    running,
    side_by_side,
    trajectory,
)

import functional_nn as fnn
from functional_nn.optimizers import levenberg_marquardt

pytestmark = pytest.mark.usefixtures("brisk")


@pytest.mark.parametrize("name", marked([name for name in CURVES if name.startswith("lm")]))
def test_gauss_newton_ends_linear_least_squares_in_one_step(name):
    """Levenberg-Marquardt with hardly any damping gives the pseudo-inverse's solution. Among the samples J J^T is
    singular here, N > P, and only damping makes it solvable: mu / lambda_min of J^T J away.
    """
    mu, near = (1e-7, 1e-5) if "samples" in name else (1e-14, 1e-10)
    states = trajectory(name, BENT._replace(q=0.0), constant=mu)
    np.testing.assert_allclose(states.params[1], np.linalg.lstsq(BENT.B, BENT.t)[0], rtol=near, atol=near)


LM = {
    "lm gain": ("gain", False),
    "lm factor": ("factor", False),
    "lm scaled qr": ("gain", True),
    "lm samples": ("factor", False),
    "lm scaled factor": ("factor", True),
    "lm qr": ("gain", False),
    "lm gain samples": ("gain", False),
}
LEAST_SQUARES = ((BENT, START, 1e-3), (BENT, 4 * START, 1e-6), (BENT, -2 * START, 1e-3), (TWICE, START, 1e-3))


@pytest.mark.newest
@pytest.mark.parametrize("name", marked(LM))
def test_levenberg_marquardt_step_by_step(name):
    """The step, whether it is made, mu and what it will be multiplied by: in NumPy, from each of its own states."""
    rule, scaled = LM[name]
    made_any, mus = set(), []
    for function, start, first in LEAST_SQUARES:
        states = trajectory(name, function, start, first)
        assert np.isfinite(states.params).all() and (np.diff(states.value) <= 0).all()
        diagonals = np.array([np.sum(function.jacobian(x) ** 2, axis=0) for x in states.params])
        J = function.jacobian(states.params[0])
        own = (np.sum(J**2, axis=1) if name.endswith("samples") else diagonals[0]).max()  # of J J' or of J'J
        mu, growth = first * (own if rule == "gain" and not scaled else 1), 2 if rule == "gain" else 10
        np.testing.assert_allclose(states.memory.mu[0], mu, rtol=1e-9)
        for k in running(states, function):
            x, mu = states.params[k], states.memory.mu[k]
            r, J = function.residuals(x), function.jacobian(x)
            D = np.sqrt(diagonals[: k + 1].max(axis=0)) if scaled else np.ones(P)
            if scaled:
                np.testing.assert_allclose(states.memory.scale[k], D**2, rtol=1e-9)
            delta, *_ = np.linalg.lstsq(np.vstack([J, np.sqrt(mu) * np.diag(D)]), np.append(-r, np.zeros(P)))
            fall = function.value(x) - function.value(x + delta)
            predicted = r @ r - (r + J @ delta) @ (r + J @ delta)
            # (J'J + mu I)^-1 as it is solved: its condition number is at most that of J'J + mu I
            near = 1e-13 * (np.linalg.norm(J, 2) ** 2 + mu * max(D) ** 2) / (mu * min(D) ** 2)
            if near > 1e-5 or abs(fall) < 1e-12 * function.value(x):
                continue
            made = fall > 0
            moved = states.params[k + 1] - x
            np.testing.assert_allclose(moved, delta if made else 0, atol=(1e-11 + near) * np.linalg.norm(delta))
            if rule == "factor":
                expected, following = mu * (0.1 if made else 10), 10
            elif made:
                expected, following = mu * max(0.1, 1 - (2 * fall / predicted - 1) ** 3), 2  # Nielsen 1999, Eq. 2.5
            else:
                expected, following = mu * growth, 2 * growth
            np.testing.assert_allclose(states.memory.mu[k + 1], expected, rtol=1e-6 + near)
            assert states.memory.growth[k + 1] == following
            growth = following
            made_any.add(bool(made))
            mus.append(expected / mu)
        made = (np.diff(states.params, axis=0) != 0).any(axis=1)
        np.testing.assert_array_equal(states.counts.values, 1 + np.arange(STEPS + 1))
        np.testing.assert_array_equal(np.diff(states.counts.matrices), made)
    assert made_any == {True, False}
    assert len({round(float(np.log(mu)), 6) for mu in mus}) > (1 if rule == "factor" else 4)


@pytest.mark.parametrize("name", marked(LM))
def test_a_jacobian_without_full_rank_is_damped(name):
    """Of two columns that are the same, both move by as much: the shortest step."""
    states = trajectory(name, TWICE)
    moved = states.params - START
    np.testing.assert_allclose(moved[:, ::2], moved[:, 1::2], atol=1e-6)
    assert states.value[-1] < 0.5 * states.value[0]


def test_a_singular_matrix_ends_no_run():
    """mu far below what rounding leaves of a singular J'J, which no Cholesky factor has: mu is to grow, and the minimum
    to be reached.
    """
    runs = [(TWICE, START, mu) for mu in (1e-25, 1e-18, 1e-3)]
    found = side_by_side("lm gain", [*runs, runs[-1]])
    assert list(found.status[:3]) == ["gradient"] * 3, found.status
    np.testing.assert_allclose(found.value, found.value[-1], rtol=1e-9)
    assert list(found.damped > 0) == [True, True, False, False]


@pytest.mark.parametrize("rule", ["factor", pytest.param("gain_ratio", marks=pytest.mark.slow)])
def test_samples_give_the_parameters_steps(rule):
    """Fewer residuals than parameters: (J'J + mu I)^-1 J'r = J' (J J' + mu I)^-1 r, step by step."""

    def steps(space, mu=1e-3):
        method = levenberg_marquardt(mu, rule=rule, space=space)
        return of_network(SINE, "sum_square_error", FEW, np.sin(3 * FEW), method, SINE.init(jax.random.key(1)), 20)

    states = [steps("samples"), steps("parameters")]
    if rule == "gain_ratio":  # which begins in units of another matrix: from the same mu
        first = [float(each.memory.mu[0]) for each in states]
        states[0] = steps("samples", 1e-3 * first[1] / first[0])
    assert states[0].memory.matrix.shape[1:] == (7, 7) and states[1].memory.matrix.shape[1:] == (13, 13)
    for samples, parameters in zip(*(jax.tree.leaves(each.params) for each in states), strict=True):
        np.testing.assert_allclose(samples, parameters, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(states[0].value, states[1].value, rtol=1e-8)
    assert states[0].value[-1] < 0.1 * states[0].value[0]


def test_the_smaller_space_is_taken():
    """auto: among the samples only where those are fewer, and D is the identity; shapes alone tell."""

    def problem(q):
        return fnn.training.problem(SINE, "mean_square_error", np.ones((q, 1)), np.ones((q, 1)))

    params = SINE.init(jax.random.key(0))
    for q, constants, shape in (
        (7, {}, (7, 7)),
        (13, {}, (13, 13)),
        (40, {}, (13, 13)),
        (7, {"space": "parameters"}, (13, 13)),
        (7, {"scaling": "marquardt"}, (13, 13)),
        (7, {"solver": "qr"}, (7, 13)),
        (40, {"space": "samples"}, (40, 40)),
    ):
        state = jax.eval_shape(levenberg_marquardt(**constants).init, params, problem(q))
        assert state.memory.matrix.shape == shape, (q, constants)
