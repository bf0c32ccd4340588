"""Bayesian regularization, followed step by step in NumPy, and on a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from second_order_cases import BENT, START, STEPS, TWICE, Curve, N, P, problem_of, trajectory

import functional_nn as fnn
from functional_nn import optimizers
from functional_nn.optimizers import minimize

pytestmark = pytest.mark.usefixtures("brisk")


def at_once(mu):
    return optimizers.bayesian_regularization(mu, wait=False)


@pytest.mark.parametrize("wait", [False, True])
def test_bayesian_regularization_step_by_step(wait):
    """(beta A + alpha I + beta mu I) delta = -(beta J'r + alpha x); and after it gamma by the trace, alpha and beta:
    Foresee and Hagan 1997. With `wait`, only after a first fit under a light penalty.
    """
    made_any, waited = set(), []
    cases = ((BENT, START), (BENT, 3 * START), (TWICE, START), (BENT._replace(q=0.0), START))
    for function, start in cases if wait else cases[:3]:
        states = trajectory("bayesian_regularization", function, start, 5e-3, None if wait else at_once)
        evidence = states.memory.evidence
        x, F = start, function.value(start)
        gamma = min(P, N / 2)
        waits, beta = 100 * wait, (N - gamma) / (2 * F)
        curved = np.sum(function.jacobian(x) ** 2) / P
        light = 1e-2 * min(curved, min(F, function.value(np.zeros(P))) / (x @ x))
        alpha = light * beta
        for k in range(STEPS):
            assert states.memory.waits[k] == waits
            waited.append(waits > 0)
            np.testing.assert_allclose(evidence.gamma[k], gamma, rtol=1e-7)
            if not waits:
                alpha, beta = gamma / (2 * x @ x), (N - gamma) / (2 * F)
            np.testing.assert_allclose((evidence.alpha[k], evidence.beta[k]), (alpha, beta), rtol=1e-7)
            r, J, mu = function.residuals(x), function.jacobian(x), states.memory.mu[k]
            np.testing.assert_allclose(states.gradient[k], 2 * (J.T @ r + alpha / beta * x), rtol=1e-6, atol=1e-9)
            whole = beta * J.T @ J + (alpha + beta * mu) * np.eye(P)
            delta = -np.linalg.solve(whole, beta * J.T @ r + alpha * x)
            before, after = (beta * function.value(z) + alpha * z @ z for z in (x, x + delta))
            moved = states.params[k + 1] - x
            # at a minimum rounding decides
            made = after < before if abs(after - before) > 1e-13 * before else moved.any()
            made_any.add(bool(made))
            near = 1e-9 * np.linalg.norm(delta) + 1e-12 * np.linalg.norm(x)
            np.testing.assert_allclose(moved, delta if made else 0, atol=near)
            ratio = alpha / beta
            predicted = -delta @ (2 * (J.T @ r + ratio * x) + J.T @ (J @ delta) + ratio * delta)
            x, last, F = states.params[k + 1], F, states.value[k + 1]
            settled = waits > 0 and (last - F if made else predicted) <= 1e-4 * last
            below = waits > 0 and made and F <= alpha / beta * x @ x
            before, waits = waits, 0 if below else max(waits - (25 if settled else int(made)), 0)
            if waits and settled:
                alpha = alpha / 10
            if (made and not waits) or (before and not waits):
                A = function.jacobian(x).T @ function.jacobian(x)
                gamma = P - 2 * alpha * np.trace(np.linalg.inv(2 * beta * A + 2 * alpha * np.eye(P)))
    assert True in made_any
    assert set(waited) == ({True, False} if wait else {False})


def test_evidence_of_a_minimum_of_f_is_estimated_there():
    """Where Levenberg-Marquardt has ended no step lowers F: the first fit ends, and the search continues."""
    fitted = minimize(problem_of(BENT), "levenberg_marquardt", START)
    found = minimize(problem_of(BENT), "bayesian_regularization", fitted.params)
    assert int(found.state.memory.waits) == 0
    assert float(found.value) > float(fitted.value)
    assert found.status in ("gradient", "change", "search_failed", "no_evidence")
    alpha, beta, _ = found.state.memory.evidence
    assert float(jnp.max(jnp.abs(found.gradient))) <= 1e-6 * float(alpha / beta) * float(jnp.linalg.norm(found.params))


def test_data_that_determine_no_parameter_end_as_no_evidence():
    """Targets at right angles to all that the parameters can give: gamma goes to 0, and the end is no "gradient"."""
    noise = Curve(BENT.B, BENT.t - BENT.B @ np.linalg.lstsq(BENT.B, BENT.t)[0])
    found = minimize(problem_of(noise), "bayesian_regularization", START)
    assert float(found.state.memory.evidence.gamma) < 0.5
    assert found.status == "no_evidence" and int(found.ended) == 7
    assert found.reason.startswith("converged, but the data determine no parameter: gamma is 0")
    both = jax.jit(
        jax.vmap(lambda data: minimize(problem_of(data), "bayesian_regularization", START, path=False)),
    )(jax.tree.map(lambda a, b: jnp.stack([jnp.asarray(a, float), jnp.asarray(b, float)]), noise, BENT))
    assert both.status[0] == "no_evidence" and both.status[1] != "no_evidence"


def test_bayesian_regularization_keeps_a_network_from_noise():
    """A sine under noise, 1-20-1: of 61 parameters the data determine a few; alpha and beta satisfy their equations,
    with J written out; and the test error is below that of Levenberg-Marquardt.
    """
    network = fnn.multilayer((1, 20, 1), ("tanh", "linear"))
    x = np.linspace(-1, 1, 41)[:, None]
    t = np.sin(np.pi * x) + 0.1 * np.random.default_rng(0).standard_normal(x.shape)
    problem, start = fnn.training.problem(network, "sum_square_error", x, t), network.init(jax.random.key(0))

    def fitted(name, steps):
        """The solution, and from its parameters in NumPy (W1, b1, W2, b2) -> outputs."""
        found = minimize(problem, name, start, steps=steps, path=False)
        (W1, b1), (W2, b2) = (
            (np.asarray(own["weights"][source]), np.asarray(own["bias"]))
            for own, source in zip(found.params.values(), ("input", "layer1"), strict=True)
        )
        return found, (W1, b1, W2, b2), lambda x: np.tanh(x @ W1.T + b1) @ W2.T + b2

    found, (W1, b1, W2, b2), outputs = fitted("bayesian_regularization", 300)
    assert found.status == "gradient"
    alpha, beta, gamma = (float(each) for each in found.state.memory.evidence)
    a = np.tanh(x @ W1.T + b1)
    s = (1 - a**2) * W2
    J, r = np.concatenate([s * x, s, a, np.ones((41, 1))], axis=1), (outputs(x) - t)[:, 0]
    flat = np.concatenate([W1.ravel(), b1, W2.ravel(), b2])
    inverse = np.linalg.inv(2 * beta * J.T @ J + 2 * alpha * np.eye(61))
    np.testing.assert_allclose(gamma, 61 - 2 * alpha * np.trace(inverse), rtol=1e-5)
    np.testing.assert_allclose(alpha, gamma / (2 * flat @ flat), rtol=1e-9)
    np.testing.assert_allclose(beta, (41 - gamma) / (2 * r @ r), rtol=1e-9)
    np.testing.assert_allclose(beta * J.T @ r + alpha * flat, 0, atol=1e-5)  # the gradient's tolerance, times beta
    assert 4 < gamma < 20
    assert 0.5 < (1 / (2 * beta)) / 0.1**2 < 2  # beta has found the noise, whose variance is 1 / 2 beta

    _, _, overfitted = fitted("levenberg_marquardt", 500)
    fine = np.linspace(-1, 1, 200)[:, None]
    error, worse = (np.mean((f(fine) - np.sin(np.pi * fine)) ** 2) for f in (outputs, overfitted))
    assert error < 0.5 * worse
