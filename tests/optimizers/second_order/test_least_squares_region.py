"""Levenberg-Marquardt by a trust region: its steps in NumPy, every unit, bounds, robust losses, and what goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers
from functional_nn.optimizers import levenberg_marquardt, minimize, problem_from
from functional_nn.optimizers.second_order.least_squares_region import damping

pytestmark = pytest.mark.usefixtures("brisk")
X = np.linspace(0, 5, 40)
TRUTH, START = np.array([2.5, 1.3, 0.5]), np.array([1.0, 1.0, 0.0])
Y = TRUTH[0] * np.exp(-TRUTH[1] * X) + TRUTH[2]
NOISY = Y + 0.05 * np.random.default_rng(0).standard_normal(X.size)


def decay(b, x, y, unit=1.0, sizes=1.0):
    """y = b1 exp(-b2 x) + b3, b in units of `sizes`, y in units of 1 / `unit`."""
    b = b * sizes
    return unit * (b[0] * jnp.exp(-b[1] * x) + b[2] - y)


def fitted(method="levenberg_marquardt", y=Y, start=START, dtype=float, **settings):
    data = tuple(jnp.asarray(each, dtype) for each in (X, y, *settings.pop("units", ())))
    given = {key: settings.pop(key) for key in ("bounds", "loss", "loss_scale") if key in settings}
    problem = problem_from(residuals=decay, data=data, **given)
    return minimize(problem, method, jnp.asarray(start, dtype), **settings)


@pytest.mark.newest
@pytest.mark.parametrize("method", [levenberg_marquardt(), levenberg_marquardt(solver="cholesky")])
def test_steps_are_mores(method):
    """From each of its own states: delta solves (J'J + mu D^2) delta = -J'r with |D delta| = Delta or mu = 0, F tells
    whether it is made, and Delta follows the ratio.
    """
    problem = problem_from(residuals=decay, data=(jnp.asarray(X), jnp.asarray(NOISY)))
    jacobian = jax.jit(jax.jacfwd(decay))
    state, D, seen = method.init(jnp.array([9.0, -0.5, 5.0]), problem), np.zeros(3), set()
    for _ in range(12):
        x, radius = np.asarray(state.params), float(state.memory.radius)
        r, J = np.asarray(decay(x, X, NOISY)), np.asarray(jacobian(x, X, NOISY))
        D = np.maximum(D, np.linalg.norm(J, axis=0))
        np.testing.assert_allclose(state.memory.scale, D, rtol=1e-12)
        following = method.update(state, problem)
        mu = float(following.memory.mu)
        delta = np.linalg.lstsq(np.vstack([J, np.sqrt(mu) * np.diag(D)]), np.append(-r, np.zeros(3)))[0]
        length = np.linalg.norm(D * delta)
        assert length <= 1.1 * radius if mu == 0 else 0.9 * radius <= length <= 1.1 * radius
        predicted = r @ r - np.sum((r + J @ delta) ** 2)
        with np.errstate(over="ignore"):
            fall = r @ r - np.sum(np.asarray(decay(x + delta, X, NOISY)) ** 2)
        ratio = fall / predicted
        moved = np.asarray(following.params) - x
        if abs(fall) < 1e-10 * (r @ r):
            break
        np.testing.assert_allclose(moved, delta if ratio > 1e-4 else 0, rtol=1e-6, atol=1e-9)
        after = float(following.memory.radius)
        seen.add("poor" if ratio <= 0.25 else "good" if ratio >= 0.75 else "fair")
        if ratio <= 0.25:
            assert 0.099 * min(radius, length) <= after <= 0.501 * radius
        elif ratio >= 0.75:
            np.testing.assert_allclose(after / length, 4 if bool(following.memory.outward) else 2, rtol=1e-6)
        state = following
    assert {"poor", "good"} <= seen


@pytest.mark.parametrize("radius", [1e-3, 0.3, 2.0, 1e3])
def test_the_damping_solves_the_secular_equation(radius):
    """|p(mu)| is the radius to a tenth, or mu is 0; singular or not."""
    draw = np.random.default_rng(1)
    for lowest in (1.0, 1e-9, 0.0):
        s = np.append(np.abs(draw.standard_normal(5)) + 0.1, lowest)
        slopes = s * draw.standard_normal(6)
        determined = s > 1e-12
        mu = float(damping(jnp.asarray(s**2), jnp.asarray(slopes), jnp.asarray(radius), jnp.asarray(determined)))
        whole, length = (np.linalg.norm(slopes[determined] / (s[determined] ** 2 + each)) for each in (0, mu))
        assert whole <= 1.1 * radius if mu == 0 else mu > 0 and abs(length - radius) <= 0.1 * radius < 0.1 * whole


UNITS = [(u, s) for u in (1e-12, 1.0, 1e12) for s in ((1, 1, 1), (1e-12, 1, 1), (1, 1e12, 1e-12))]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "method", [levenberg_marquardt(), pytest.param(levenberg_marquardt(geodesic=True), marks=pytest.mark.slow)]
)
def test_units_change_nothing(method, dtype):
    """All data times 1e-12 or 1e12, a parameter times 1e12: as many steps, and the same parameters to rounding."""
    steps, found = set(), []
    for unit, sizes in UNITS:
        sizes = np.array(sizes, float)
        solution = fitted(method, NOISY, START / sizes, dtype, units=(unit, sizes), path=False)
        steps.add((int(solution.steps), solution.status))
        found.append(np.asarray(solution.params, float) * sizes)
    assert len({status for _, status in steps}) == 1
    if dtype == np.float64:
        assert len(steps) == 1
        np.testing.assert_allclose(found, np.broadcast_to(found[0], (len(UNITS), 3)), rtol=1e-9)
    else:
        np.testing.assert_allclose(found, np.broadcast_to(found[0], (len(UNITS), 3)), rtol=1e-3)


def test_geodesic_acceleration_bends_the_step():
    """a solves (J'J + mu D^2) a = -J'r'' with r'' by differences; along a curved valley fewer steps are needed."""

    def valley(x):
        return jnp.stack([1e3 * (x[1] - x[0] ** 2), 1 - x[0]])

    problem, start = problem_from(residuals=valley), jnp.array([-1.2, 1.0])
    state = levenberg_marquardt(geodesic=True).init(start, problem)
    after = levenberg_marquardt(geodesic=True).update(state, problem)
    J, r, x = np.asarray(jax.jacfwd(valley)(start)), np.asarray(valley(start)), np.asarray(start)
    D, mu = np.linalg.norm(J, axis=0), float(after.memory.mu)
    A = J.T @ J + mu * np.diag(D**2)
    delta = -np.linalg.solve(A, J.T @ r)
    bent = (np.asarray(valley(x + 1e-3 * delta)) - 2 * r + np.asarray(valley(x - 1e-3 * delta))) / 1e-6
    a = -np.linalg.solve(A, J.T @ bent)
    short = 2 * np.linalg.norm(D * a) <= 0.75 * np.linalg.norm(D * delta)
    wanted = delta + a / 2 if short else delta
    if np.sum(np.asarray(valley(x + wanted)) ** 2) < r @ r:
        np.testing.assert_allclose(np.asarray(after.params) - x, wanted, rtol=1e-5)
    plain, bent = (minimize(problem, levenberg_marquardt(geodesic=g), start) for g in (False, True))
    assert int(bent.steps) < int(plain.steps) and bent.status == plain.status == "gradient"
    assert int(bent.counts.products) == int(bent.steps)


def test_bounds_are_kept_and_where_they_hold_the_rest_is_a_minimum():
    """b2 <= 1 holds it at 1: the others solve the least squares problem that is left."""

    def within(lower, upper):
        return tuple(jnp.asarray(b, float) for b in (lower, upper))

    found = fitted(y=NOISY, bounds=within([-np.inf] * 3, [np.inf, 1.0, np.inf]))
    assert found.status == "gradient" and found.params[1] == 1.0
    A = np.stack([np.exp(-X), np.ones_like(X)], axis=1)
    np.testing.assert_allclose(np.delete(found.params, 1), np.linalg.lstsq(A, NOISY)[0], rtol=1e-8)
    inside = fitted(y=NOISY, bounds=within([0.0, 0.0, -1.0], [10.0] * 3))
    np.testing.assert_allclose(inside.params, fitted(y=NOISY).params, rtol=1e-6)
    tight = fitted(y=NOISY, bounds=within([0.9] * 3, [2.0] * 3), start=np.ones(3))
    assert (tight.params >= 0.9).all() and (tight.params <= 2).all() and tight.params[2] == 0.9
    scipy = pytest.importorskip("scipy.optimize")
    lower, upper = [0.0, 0.0, 0.52], [2.0, 1.2, 9.0]
    residuals = jax.jit(lambda b: decay(b, X, NOISY))
    theirs = scipy.least_squares(
        lambda b: np.asarray(residuals(b)), [1.0, 1.0, 1.0], bounds=(lower, upper), ftol=1e-15, xtol=1e-15, gtol=1e-15
    )
    ours = fitted(y=NOISY, bounds=within(lower, upper), start=np.ones(3))
    np.testing.assert_allclose(ours.value, 2 * theirs.cost, rtol=1e-8)
    np.testing.assert_allclose(ours.params, theirs.x, atol=1e-5)


def test_what_a_bound_holds_is_not_said_to_be_undetermined():
    """At x <= 0.5 the residuals still tell both parameters; without a word of data, the last one they do not."""

    def residuals(x, t):
        return x[:2] - t

    problem = problem_from(residuals=residuals, data=(jnp.array([3.0, 4.0]),), bounds=(0.0, 0.5))
    assert minimize(problem, "levenberg_marquardt", jnp.array([0.0, 0.5])).advice == ""
    assert "parameters 2 apart" in minimize(problem, "levenberg_marquardt", jnp.array([0.0, 0.5, 0.1])).advice


def test_nothing_to_fit_and_nothing_to_fit_to():
    with pytest.raises(ValueError, match="params: expected at least one number, got shapes"):
        minimize(problem_from(residuals=lambda x: x - 1), "levenberg_marquardt", jnp.zeros(0))
    with pytest.raises(ValueError, match=r"expected at least one residual, got shape \(0,\)"):
        minimize(problem_from(residuals=lambda x: x[:0]), "levenberg_marquardt", jnp.ones(2))


def test_within_any_bounds_the_projected_gradient_goes_to_zero():
    """From 40 starts, in boxes that are large and small: nothing inside that F would still fall along."""

    def residuals(b, A, y):
        return jnp.concatenate([jnp.tanh(A @ b) - y, 0.3 * jnp.sin(b) + 0.1 * b**2])

    @jax.jit
    def solved(start, A, y, lower, upper):
        problem = problem_from(residuals=residuals, data=(A, y), bounds=(lower, upper))
        return minimize(problem, "levenberg_marquardt", start, path=False)

    draw, held = np.random.default_rng(1), 0
    for _ in range(40):
        A, y = draw.standard_normal((8, 5)) * draw.choice([0.1, 1, 10]), draw.standard_normal(8)
        lower, upper = (sign * draw.random(5) * draw.choice([0.1, 1, 3]) for sign in (-1, 1))
        found = solved(lower + (upper - lower) * draw.random(5), A, y, lower, upper)
        x = np.asarray(found.params)
        assert (x >= lower).all() and (x <= upper).all() and found.status in ("gradient", "change")
        held += int(((x == lower) | (x == upper)).sum())
        projected = np.clip(x - np.asarray(found.gradient), lower, upper) - x
        np.testing.assert_allclose(projected, 0, atol=1e-4)
    assert held > 20


@pytest.mark.oracle
@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy"])
def test_robust_losses_are_scipys(loss):
    """Ten wrong data: SciPy's F and parameters; and the truth is nearer than by squares."""
    scipy = pytest.importorskip("scipy.optimize")
    y = NOISY.copy()
    y[::4] += 3.0
    found = fitted(y=y, loss=loss, loss_scale=0.1)
    theirs = scipy.least_squares(
        lambda b: np.asarray(decay(b, X, y)),
        START,
        loss=loss,
        f_scale=0.1,
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
        max_nfev=5000,
    )
    np.testing.assert_allclose(found.value, 2 * theirs.cost, rtol=1e-6)
    np.testing.assert_allclose(found.params, theirs.x, rtol=1e-3)
    assert np.linalg.norm(found.params - TRUTH) < 0.3 * np.linalg.norm(fitted(y=y).params - TRUTH)


SAID = {
    "more parameters than data": (lambda b: jnp.stack([b[0] * b[1] - 2, b[1] + b[2] - 1]), (1.0, 1.0, 1.0)),
    "a parameter without influence": (lambda b: jnp.stack([b[0] - 1, b[1] - 2, b[0] * b[1]]), (3.0, 3.0, 7.0)),
    "singular": (lambda b: jnp.stack([b[0] + b[1] - 1, 2 * (b[0] + b[1]) - 1, b[2] - 1.0]), (3.0, 3.0, 7.0)),
    "nan beyond": (lambda b: jnp.stack([jnp.log(b[0]), jnp.sqrt(b[1]) - 2, b[2] - b[0]]), (9.0, 0.01, 1.0)),
    "from 0": (lambda b: jnp.stack([b[0] - 1, 10 * (b[1] - b[0] ** 2), b[2] - 5]), (0.0, 0.0, 0.0)),
    "no slope at all": (lambda b: jnp.stack([1.0 + 0 * b[0], 2.0 + 0 * b[1], b[2] * 0]), (1.0, 1.0, 1.0)),
}


@pytest.mark.sampled(every=2)
@pytest.mark.newest
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", SAID)
def test_what_goes_wrong_is_finite_and_said(case, dtype):
    residuals, start = SAID[case]
    found = minimize(problem_from(residuals=residuals), "levenberg_marquardt", jnp.asarray(start, dtype))
    assert np.isfinite(found.params).all() and np.isfinite(found.value) and found.status in ("gradient", "change")
    best = {"a parameter without influence": None, "singular": 0.2, "no slope at all": 5.0}.get(case, 0.0)
    if best is not None:
        np.testing.assert_allclose(found.value, best, atol=1e-6, rtol=1e-5)
    if case in ("a parameter without influence", "no slope at all"):
        assert found.params[2] == start[2]
    if case in ("a parameter without influence", "singular"):
        assert int(found.damped) == int(found.steps)  # each of whose steps left a direction alone
    left = {"a parameter without influence": "2", "singular": "0, 1", "more parameters than data": "0, 1, 2"}
    if case in left:
        assert f"the residuals do not tell parameters {left[case]} apart" in found.advice
    else:
        assert ("no parameter moves F" in found.advice) if case == "no slope at all" else found.advice == ""


def test_large_problems_and_networks_keep_the_other_rules():
    wide = jnp.zeros(257)
    state = levenberg_marquardt().init(wide, problem_from(residuals=lambda b: b - 1))
    assert hasattr(state.memory, "growth")
    network = fnn.multilayer((1, 2, 1), ("tanh", "linear"))
    problem = fnn.training.problem(network, "mean_square_error", np.ones((9, 1)), np.ones((9, 1)))
    params = network.init(jax.random.key(0))
    assert hasattr(levenberg_marquardt().init(params, problem).memory, "growth")
    trusted = levenberg_marquardt(rule="trust_region")
    assert hasattr(trusted.init(params, problem).memory, "radius")
    x = np.linspace(-1, 1, 30)[:, None]
    sine = fnn.training.problem(network, "mean_square_error", x, np.sin(2 * x))
    for method in (trusted, levenberg_marquardt(geodesic=True)):
        assert float(minimize(sine, method, params, steps=200).value) < 1e-3


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: levenberg_marquardt(1e-3, rule="trust_region"), ValueError, "a trust region finds mu itself"),
        (lambda: levenberg_marquardt(geodesic=True, rule="factor"), ValueError, "geodesic=True goes with rule='trust"),
        (lambda: problem_from(residuals=decay, bounds=1.0), TypeError, "bounds: expected a pair"),
        (lambda: problem_from(residuals=decay, bounds=(2.0, 1.0)), ValueError, "expected lower <= upper everywhere"),
        (lambda: problem_from(lambda b: b @ b, loss="huber"), ValueError, "loss='huber' is of residuals"),
        (lambda: problem_from(residuals=decay, loss="l1"), ValueError, "problem_from: loss must be 'linear' or"),
        (lambda: problem_from(residuals=decay, loss_scale=0.0), ValueError, "loss_scale must be a finite number > 0"),
        (lambda: fitted(bounds=(np.zeros(4), 1.0)), ValueError, "broadcast to the parameters'"),
        (
            lambda: fitted("bfgs", bounds=(0.0, 9.0)),
            ValueError,
            "bfgs: <problem decay> has bounds, which only leven",
        ),
        (lambda: fitted(levenberg_marquardt(rule="factor"), bounds=(0.0, 9.0)), ValueError, "has bounds"),
        (lambda: fitted(bounds=(0.5, 9.0)), ValueError, "params: 0 of parameter 2 is outside its bounds, 0.5 to 9"),
    ],
)
def test_what_is_refused(build, error, message):
    with pytest.raises(error) as refused:
        build()
    assert message in str(refused.value)


def test_lanes_and_restarts_take_bounds():
    problem = problem_from(residuals=decay, data=(jnp.asarray(X), jnp.asarray(NOISY)), bounds=(0.0, 9.0))
    starts = np.array([[1.0, 1.0, 0.1], [5.0, 0.3, 1.0]])
    found = optimizers.restarts(problem, "levenberg_marquardt", starts)
    lanes = jax.vmap(lambda start: minimize(problem, "levenberg_marquardt", start, path=False))(jnp.asarray(starts))
    for params in (*found.params, *lanes.params):
        np.testing.assert_allclose(params, fitted(y=NOISY).params, rtol=1e-6)
