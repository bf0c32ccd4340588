"""Second-order methods: each followed step by step in NumPy, what all leave as it was, and how they end.

Letters: P parameters, N residuals. One compiled program a method, of numbers that stand in the data, serves most tests:
its trajectory on two families of functions, from whose points NumPy says where the next one should have been.
"""

import functools
import gc
import inspect
import weakref
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

import functional_nn as fnn
from functional_nn import optimizers
from functional_nn.optimizers import levenberg_marquardt, line_searches, minimize, problem_from, second_order
from functional_nn.optimizers.second_order import many_starts, minimization

P, N, STEPS = 10, 12, 12
EPS = np.finfo(float).eps


pytestmark = pytest.mark.usefixtures("brisk")


# Two families of functions --------------------------------------------------------------------------------------------


class Bowl(NamedTuple):
    """F = e'A e / 2 + q sum e^4 + slope sum e, e = x - center. sign: of the derivatives as they are told; with -1 every
    method is led astray.
    """

    A: np.ndarray
    center: np.ndarray
    q: float = 0.0
    slope: float = 0.0
    sign: float = 1.0

    def value(self, x):
        e = x - self.center
        return e @ self.A @ e / 2 + self.q * np.sum(e**4) + self.slope * np.sum(e)

    def gradient(self, x):
        e = x - self.center
        return self.A @ e + 4 * self.q * e**3 + self.slope

    def hessian(self, x):
        return self.A + np.diag(12 * self.q * (x - self.center) ** 2)


class Curve(NamedTuple):
    """r = u + q u^2 - t, u = B x (N,); F = r'r."""

    B: np.ndarray
    t: np.ndarray
    q: float = 0.0

    def residuals(self, x):
        u = self.B @ x
        return u + self.q * u**2 - self.t

    def jacobian(self, x):
        return (1 + 2 * self.q * (self.B @ x))[:, None] * self.B

    def value(self, x):
        return self.residuals(x) @ self.residuals(x)

    def gradient(self, x):
        return 2 * self.jacobian(x).T @ self.residuals(x)


TRACED = []  # one entry each time that JAX looks into `bowl`


def bowl(x, A, center, q, slope, sign):
    TRACED.append(x.shape)
    e = x - center
    value = e @ A @ e / 2 + q * jnp.sum(e**4) + slope * jnp.sum(e)
    return value + (sign - 1) * (value - jax.lax.stop_gradient(value))


def curve(x, B, t, q):
    u = B @ x
    return u + q * u**2 - t


def of(data):
    """The problem of these numbers."""
    if isinstance(data, Bowl):
        return problem_from(bowl, data=tuple(data))
    return problem_from(residuals=curve, data=tuple(data))


def spectral(values, seed=0):
    """A symmetric matrix of these eigenvalues."""
    vectors, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return vectors @ np.diag(values) @ vectors.T


def quadratic(n):
    """A quadratic of condition 100 in the first n coordinates, in which all happens from the start 0."""
    A, center = np.eye(P), np.zeros(P)
    A[:n, :n] = spectral(np.linspace(1, 100, n), n)
    center[:n] = np.random.default_rng(n).standard_normal(n)
    return Bowl(A, center)


DRAW = np.random.default_rng(7)
QUARTIC = Bowl(spectral(np.geomspace(1, 30, P), 1), DRAW.standard_normal(P), 0.7)
SADDLE = Bowl(spectral(np.linspace(-3, 8, P), 2), DRAW.standard_normal(P), 0.5)
START = DRAW.standard_normal(P)
BENT = Curve(DRAW.standard_normal((N, P)) / 3, DRAW.standard_normal(N), 0.8)
TALL, WIDE = 100, 40  # enough parameters for the stopping rule of Hessian-free to cut conjugate gradients short
LONG = Curve(DRAW.standard_normal((TALL, WIDE)) / 10, DRAW.standard_normal(TALL), 1.0)


# Programs -------------------------------------------------------------------------------------------------------------

EXACT = "strong_wolfe(curvature=1e-10)"
BETAS = ("fletcher_reeves", "polak_ribiere", "polak_ribiere_plus", "hestenes_stiefel", "dai_yuan")


def cg(*args, **constants):
    return lambda _: optimizers.conjugate_gradient(*args, **constants)


def lm(**constants):
    return lambda mu: levenberg_marquardt(mu, **constants)


# name -> the method from its (traced) constant, where it has one
BOWLS = {
    "newton": lambda damping: optimizers.newton(damping, globalization="line_search"),
    "newton, trust region": optimizers.newton,
    "newton_cg": lambda _: optimizers.newton_cg(),
    "newton, saddle-free": lambda damping: optimizers.newton(damping, saddle_free=True),
    **{f"cg {beta}": cg(beta, "never") for beta in BETAS},
    "cg restarted": cg(restart="gradient"),
    "cg powell_beale": cg(restart="powell_beale"),
    "scaled_conjugate_gradient": optimizers.scaled_conjugate_gradient,
    "bfgs": lambda _: optimizers.bfgs(),
    "lbfgs": lambda _: optimizers.lbfgs(history=3),
}
CURVES = {
    "lm gain": lm(scaling="identity"),
    "lm factor": lm(rule="factor", scaling="identity"),
    "lm scaled qr": lm(scaling="marquardt", solver="qr"),
    "lm samples": lm(rule="factor", space="samples"),
    "lm scaled factor": lm(scaling="marquardt", rule="factor"),
    "lm qr": lm(scaling="identity", solver="qr"),
    "lm gain samples": lm(space="samples"),
    "bayesian_regularization": optimizers.bayesian_regularization,
    "hessian_free": optimizers.hessian_free,
}
METHODS = BOWLS | CURVES
CONSTANT = dict.fromkeys(("newton", "newton, trust region", "newton, saddle-free"), 0.0)
CONSTANT |= {"scaled_conjugate_gradient": 1e-6, "hessian_free": 1.0}
# a function of each method's own, and where it begins
OWN = dict.fromkeys(BOWLS, (QUARTIC, START)) | dict.fromkeys(CURVES, (BENT, START))
OWN["hessian_free"] = LONG, np.resize(START, WIDE)
SLOW = (
    *(f"cg {beta}" for beta in BETAS if beta != "polak_ribiere_plus"),
    "newton, saddle-free",
    "newton_cg",
    "cg restarted",
    "lm samples",
    "lm scaled factor",
    "lm qr",
    "lm gain samples",
)


def marked(names, fast=()):
    """Cases of which only those not SLOW, or those in `fast`, are in the fast suite."""

    def slow(name):
        return name not in fast if fast else name in SLOW

    return [pytest.param(name, marks=pytest.mark.slow if slow(name) else ()) for name in names]


over_methods = pytest.mark.parametrize("name", marked(METHODS))


@functools.cache
def trajectory_of(make, steps=STEPS):
    """Compiled (x, data, constant) -> State, after 0, 1, ... updates."""

    def run(x, data, constant):
        return followed(make(constant), of(data), x, steps)

    return jax.jit(run)


def followed(method, problem, params, steps):
    start = method.init(params, problem)

    def one(state, _):
        state = method.update(state, problem)
        return state, state

    _, states = jax.lax.scan(one, start, length=steps)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, states)


def trajectory(name, function=None, x=None, constant=None, make=None):
    """The states of a method, NumPy throughout; on its own function, with its default constant, where none is given."""
    own, start = OWN[name]
    constant = CONSTANT.get(name, 1e-3) if constant is None else constant
    data = jax.tree.map(lambda each: np.asarray(each, float), own if function is None else function)
    run = trajectory_of(make or METHODS[name])
    return jax.tree.map(np.asarray, run(jnp.asarray(start if x is None else x), data, jnp.asarray(constant)))


def running(states, function, least=1e-6):
    """The numbers of the steps that begin where there is still a way to go."""
    return [k for k, x in enumerate(states.params[:-1]) if np.linalg.norm(function.gradient(x)) > least]


# What every method does -----------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=2)
@over_methods
def test_values_and_gradients_are_those_of_the_points(name):
    """And none is higher than the one before; of Bayesian regularization that holds of another function."""
    function, start = OWN[name]
    states = trajectory(name)
    values = [function.value(x) for x in states.params]
    np.testing.assert_allclose(states.value, values, rtol=1e-11, atol=1e-15)
    if name != "bayesian_regularization":
        gradients = np.array([function.gradient(x) for x in states.params])
        np.testing.assert_allclose(states.gradient, gradients, rtol=1e-9, atol=1e-11)
        assert (np.diff(values) <= 4 * EPS * np.abs(values[1:])).all()
        assert values[-1] < 0.5 * values[0]
    np.testing.assert_array_equal(states.step, np.arange(STEPS + 1))
    assert (states.params[0] == start).all()


@over_methods
def test_at_the_minimum_nothing_breaks(name):
    """From the minimum itself, where every direction is 0, and from a point next to it."""
    function = quadratic(5) if name in BOWLS else OWN[name][0]._replace(q=0.0, t=0 * OWN[name][0].t)
    minimum = function.center if name in BOWLS else np.zeros(len(OWN[name][1]))
    for x in (minimum, minimum + 1e-9):
        states = trajectory(name, function, x)
        for leaf in jax.tree.leaves((states.params, states.value, states.gradient)):
            assert np.isfinite(leaf).all()
        assert (states.value <= function.value(x) * (1 + 1e-9)).all()
        if x is minimum:
            assert (states.params == minimum).all()


@over_methods
def test_length_is_of_the_move_tried(name):
    """Relative to where it began; and of a move that was not made something was expected."""
    function, _ = OWN[name]
    states = trajectory(name)
    assert states.length[0] == states.expected[0] == 0
    for k in running(states, function):
        moved = np.linalg.norm(states.params[k + 1] - states.params[k])
        if moved:
            np.testing.assert_allclose(states.length[k + 1], moved / np.linalg.norm(states.params[k]), rtol=1e-6)
        else:
            assert states.expected[k + 1] > 0 and states.length[k + 1] > 0


# Quadratics -----------------------------------------------------------------------------------------------------------

EXACTLY = {
    **{f"cg {beta}": cg(beta, "never", line_search=EXACT) for beta in BETAS},
    "cg restarted": cg(restart="gradient", line_search=EXACT),
    "cg powell_beale": cg(restart="powell_beale", line_search=EXACT),
    "bfgs": lambda _: optimizers.bfgs(EXACT),
    "lbfgs": lambda _: optimizers.lbfgs(history=P, line_search=EXACT),
}


@pytest.mark.parametrize("name", marked(EXACTLY, ("cg polak_ribiere_plus", "bfgs")))
def test_conjugate_directions_end_a_quadratic_in_as_many_steps_as_it_has_dimensions(name):
    """Condition 100, exact searches, and one step more to make up for rounding: to 1e-10 of |x*|."""
    for n in (2, 5, 10):
        function = quadratic(n)
        states = trajectory(name, function, np.zeros(P), make=EXACTLY[name])
        errors = np.linalg.norm(states.params - function.center, axis=1) / np.linalg.norm(function.center)
        assert errors[n + 1] <= 1e-10, errors
        assert errors[n - 1] > 1e-3  # not before its time


@pytest.mark.parametrize("name", marked(("newton", "newton, trust region", "newton, saddle-free")))
def test_newton_ends_a_quadratic_in_one_step(name):
    for n in (2, 5, 10):
        states = trajectory(name, quadratic(n), np.zeros(P))
        np.testing.assert_allclose(states.params[1], quadratic(n).center, atol=1e-12)
        assert (states.counts.matrices[1], states.counts.gradients[1], states.damped[1]) == (1, 2, 0)


@pytest.mark.parametrize("name", marked([name for name in CURVES if name.startswith("lm")]))
def test_gauss_newton_ends_linear_least_squares_in_one_step(name):
    """Levenberg-Marquardt with hardly any damping gives the pseudo-inverse's solution. Among the samples J J^T is
    singular here, N > P, and only damping makes it solvable: mu / lambda_min of J^T J away.
    """
    mu, near = (1e-7, 1e-5) if "samples" in name else (1e-14, 1e-10)
    states = trajectory(name, BENT._replace(q=0.0), constant=mu)
    np.testing.assert_allclose(states.params[1], np.linalg.lstsq(BENT.B, BENT.t)[0], rtol=near, atol=near)


# Directions, by hand --------------------------------------------------------------------------------------------------


def conjugate(beta, restart="never"):
    """(points, gradients) -> d_0, d_1, ... of nonlinear conjugate gradients, and at which it restarted."""

    def share(g, before, d):
        y = g - before
        return {
            "fletcher_reeves": g @ g / (before @ before),
            "polak_ribiere": g @ y / (before @ before),
            "polak_ribiere_plus": max(g @ y / (before @ before), 0),
            "hestenes_stiefel": g @ y / (d @ y),
            "dai_yuan": g @ g / (d @ y),
        }[beta]

    def directions(points, gradients):
        d, since, anchor, restarted = -gradients[0], 0, None, []
        found = [d]
        for before, g in zip(gradients[:-1], gradients[1:], strict=True):
            since += 1
            two = -g + share(g, before, d) * d
            again = restart != "never" and (abs(g @ before) >= 0.2 * (g @ g) or since >= P)
            if restart == "powell_beale":  # Powell 1977; t is the number of the first direction until it restarts
                three = two if anchor is None else two + g @ anchor[1] / (anchor[0] @ anchor[1]) * anchor[0]
                again = again or not 0.8 <= -(three @ g) / (g @ g) <= 1.2
                anchor = (d, g - before) if again or anchor is None else anchor
                d = two if again else three
            else:
                d = -g if again else two
            since = 0 if again else since
            d = d if d @ g < 0 else -g
            found.append(d)
            restarted.append(again)
        return found, restarted

    return directions


def broyden_fletcher_goldfarb_shanno(points, gradients):
    """d_k = -B_k g_k, B by Nocedal and Wright's Eq. 6.17 as it is printed, scaled before as Al-Baali 1998 does."""
    B, found = None, [-gradients[0]]
    for k in range(1, len(points)):
        s, y = points[k] - points[k - 1], gradients[k] - gradients[k - 1]
        if B is None:
            B = np.eye(P) * (s @ y) / (y @ y)  # Eq. 6.20
        else:
            B = B * max(1, s @ np.linalg.solve(B, s) / (s @ y))
        V = np.eye(P) - np.outer(y, s) / (s @ y)
        B = V.T @ B @ V + np.outer(s, s) / (s @ y)
        found.append(-B @ gradients[k])
    return found, []


def limited(m):
    """d_k from the dense matrix that the last m pairs make of s'y / y'y I: Eq. 7.19, without a recursion."""

    def directions(points, gradients):
        found = [-gradients[0]]
        for k in range(1, len(points)):
            pairs = [(points[j + 1] - points[j], gradients[j + 1] - gradients[j]) for j in range(max(0, k - m), k)]
            s, y = pairs[-1]
            B = np.eye(P) * (s @ y) / (y @ y)
            for s, y in pairs:
                V = np.eye(P) - np.outer(y, s) / (s @ y)
                B = V.T @ B @ V + np.outer(s, s) / (s @ y)
            found.append(-B @ gradients[k])
        return found, []

    return directions


# name -> (directions, c2 of its search)
TRIED_FIRST = cg(restart="never", line_search="full_step")
DIRECTIONS = {
    **{f"cg {beta}": (conjugate(beta), 0.1) for beta in BETAS},
    "cg restarted": (conjugate("polak_ribiere_plus", "gradient"), 0.1),
    "cg powell_beale": (conjugate("polak_ribiere_plus", "powell_beale"), 0.1),
    "bfgs": (broyden_fletcher_goldfarb_shanno, 0.9),
    "lbfgs": (limited(3), 0.9),
}
DESCENTS = ((QUARTIC, START), (SADDLE, START), (QUARTIC, -3 * START))


@pytest.mark.parametrize("name", marked(DIRECTIONS))
def test_steps_go_along_the_directions_of_the_text(name):
    """As far as strong Wolfe conditions allow; and quasi-Newton's all the way, where they allow that."""
    directions, c2 = DIRECTIONS[name]
    full, restarted = 0, set()
    for function, start in DESCENTS:
        points = trajectory(name, function, start).params
        gradients = [function.gradient(x) for x in points]
        expected, again = directions(points, gradients)
        restarted |= set(again)
        for k in range(STEPS):
            x, d, moved = points[k], expected[k], points[k + 1] - points[k]
            alpha, slope = moved @ d / (d @ d), gradients[k] @ d
            # y is a difference of gradients: what rounding leaves of it turns d
            np.testing.assert_allclose(moved, alpha * d, atol=1e-7 * np.linalg.norm(moved), err_msg=f"step {k}")

            def allowed(step, x=x, d=d, slope=slope, function=function):
                lower = function.value(x + step * d) <= function.value(x) + 1e-4 * step * slope
                return lower and abs(function.gradient(x + step * d) @ d) <= c2 * abs(slope) * (1 + 1e-9)

            assert alpha > 0 and allowed(alpha)
            if k and not name.startswith("cg") and allowed(1.0):
                np.testing.assert_allclose(alpha, 1, rtol=1e-6)
                full += 1
    assert full > 10 or name.startswith("cg")
    assert (restarted == {True, False}) == (name in ("cg restarted", "cg powell_beale"))


@pytest.mark.slow
def test_what_conjugate_gradients_try_first():
    """A tenth of the largest |x_i| at the start, later what would decrease F by as much as the step before."""
    points = trajectory("cg polak_ribiere_plus", make=TRIED_FIRST).params[:4]
    values, gradients = [QUARTIC.value(x) for x in points], [QUARTIC.gradient(x) for x in points]
    expected, _ = conjugate("polak_ribiere_plus")(points, gradients)
    for k in range(3):
        first = 0.1 * np.abs(points[0]).max() / np.abs(gradients[0]).max()
        if k:
            first = 2.02 * (values[k] - values[k - 1]) / (gradients[k] @ expected[k])
        np.testing.assert_allclose(points[k + 1] - points[k], first * expected[k], rtol=1e-9)


def test_the_betas_are_told_apart():
    """On the points that are followed above, no other's directions would pass for those of the default."""
    for function, start in DESCENTS:
        points = trajectory("cg polak_ribiere_plus", function, start).params
        gradients = [function.gradient(x) for x in points]
        own = conjugate("polak_ribiere_plus")(points, gradients)[0]
        for beta in set(BETAS) - {"polak_ribiere_plus"}:
            others = conjugate(beta)(points, gradients)[0]
            apart = max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(own, others, strict=True))
            assert apart > 1e-3 or beta == "polak_ribiere" and function is QUARTIC and start is START


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
    beside = SADDLE.center + 1e-3 * START
    for function, start, scale in ((QUARTIC, START, 1e-6), (SADDLE, START, 1e-2), (SADDLE, beside, 1e-6)):
        states = trajectory("scaled_conjugate_gradient", function, start, scale)
        for k, (x, lam) in enumerate(moller(function, start, scale, STEPS)):
            np.testing.assert_allclose(states.params[k], x, rtol=1e-6, atol=1e-7, err_msg=f"step {k}")
            np.testing.assert_allclose(states.memory.scale[k], lam, rtol=1e-5)
        stood = (np.diff(states.params, axis=0) == 0).all(axis=1)
        refused, damped = refused + stood.sum(), damped + states.damped[-1]
        np.testing.assert_array_equal(states.counts.gradients, 1 + np.arange(STEPS + 1))
        # the curvature along a direction is asked for once
        np.testing.assert_array_equal(np.diff(states.counts.products), ~np.append(False, stood[:-1]))
    assert refused > 0 and damped > 0


# Newton's method ------------------------------------------------------------------------------------------------------


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


# Levenberg-Marquardt --------------------------------------------------------------------------------------------------

LM = {
    "lm gain": ("gain", False),
    "lm factor": ("factor", False),
    "lm scaled qr": ("gain", True),
    "lm samples": ("factor", False),
    "lm scaled factor": ("factor", True),
    "lm qr": ("gain", False),
    "lm gain samples": ("gain", False),
}
TWICE = BENT._replace(B=BENT.B[:, np.arange(P) // 2])  # every column stands there twice: J has rank P / 2
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
            foretold = r @ r - (r + J @ delta) @ (r + J @ delta)
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
                expected, following = mu * max(0.1, 1 - (2 * fall / foretold - 1) ** 3), 2  # Nielsen 1999, Eq. 2.5
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
            foretold = -delta @ (2 * (J.T @ r + ratio * x) + J.T @ (J @ delta) + ratio * delta)
            x, last, F = states.params[k + 1], F, states.value[k + 1]
            settled = waits > 0 and (last - F if made else foretold) <= 1e-4 * last
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
    """Where Levenberg-Marquardt has ended no step lowers F: the first fit ends, and the search goes on."""
    fitted = minimize(of(BENT), "levenberg_marquardt", START)
    found = minimize(of(BENT), "bayesian_regularization", fitted.params)
    assert int(found.state.memory.waits) == 0
    assert float(found.value) > float(fitted.value)
    assert found.status in ("gradient", "change", "search_failed", "no_evidence")
    alpha, beta, _ = found.state.memory.evidence
    assert float(jnp.max(jnp.abs(found.gradient))) <= 1e-6 * float(alpha / beta) * float(jnp.linalg.norm(found.params))


def test_data_that_determine_nothing_are_told():
    """Targets at right angles to all that the parameters can give: gamma goes to 0, and the end is no "gradient"."""
    noise = Curve(BENT.B, BENT.t - BENT.B @ np.linalg.lstsq(BENT.B, BENT.t)[0])
    found = minimize(of(noise), "bayesian_regularization", START)
    assert float(found.state.memory.evidence.gamma) < 0.5
    assert found.status == "no_evidence" and int(found.ended) == 7
    assert found.reason.startswith("converged, but the data determine no parameter: gamma is 0")
    lanes = jax.jit(
        jax.vmap(lambda data: minimize(of(data), "bayesian_regularization", START, path=False)),
    )(jax.tree.map(lambda a, b: jnp.stack([jnp.asarray(a, float), jnp.asarray(b, float)]), noise, BENT))
    assert lanes.status[0] == "no_evidence" and lanes.status[1] != "no_evidence"


# Hessian-free ---------------------------------------------------------------------------------------------------------


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


# How they end ---------------------------------------------------------------------------------------------------------

FAR = 60  # steps that a run may make


@functools.cache
def ended(make):
    """Compiled (starts, data, constants) -> Solution: `minimize` in lanes, each with its own of everything."""

    def one(x, data, constant):
        return minimize(of(data), make(constant), x, steps=FAR, gradient_tolerance=1e-6)

    return jax.jit(jax.vmap(one))


def lanes(name, runs):
    """Solution, NumPy throughout, of one lane for each (function, start, constant)."""
    functions, starts, constants = zip(*runs, strict=True)
    data = jax.tree.map(lambda *each: np.stack(np.broadcast_arrays(*each)).astype(float), *functions)
    found = ended(METHODS[name])(np.stack(starts), data, np.array(constants))
    return jax.tree.map(np.asarray, found)


LANES = {
    "bfgs": [(QUARTIC, START, 0.0), (QUARTIC, -START, 0.0), (SADDLE, START, 0.0), (quadratic(5), START, 0.0)],
    # traced constants: each lane has a mu of its own
    "lm gain": [(BENT, START, 1e-3), (BENT, START, 1.0), (BENT, -2 * START, 1e-6), (BENT._replace(q=0.0), START, 1e-3)],
    "hessian_free": [(LONG._replace(q=0.1), OWN["hessian_free"][1], damping) for damping in (1.0, 1e-4, 100.0, 1.0)],
    "newton": [(QUARTIC, START, 0.0), (QUARTIC, START, 2.0), (SADDLE, START, 0.5), (quadratic(5), START, 0.0)],
}
for _name in METHODS.keys() - LANES.keys():
    function, start = OWN[_name]
    function = function._replace(q=0.1)  # bent so little that some end soon
    # J J^T is singular, N > P: by the time that mu is small, rounding leads each its own way
    constant = 1e3 if "samples" in _name else CONSTANT.get(_name, 1e-3)
    LANES[_name] = [(function, k * start, constant * times) for k, times in ((1, 1), (3, 1), (0.5, 100), (-1, 1))]
over_lanes = pytest.mark.parametrize("name", marked(METHODS, ("bfgs", "lm gain")))


@pytest.mark.newest
@over_lanes
def test_lanes_are_what_they_are_alone(name):
    """Each lane's path and end are those of the same steps made one by one, and nothing stands after its end."""
    found, several = lanes(name, LANES[name]), set()
    for i, (function, start, constant) in enumerate(LANES[name]):
        alone = trajectory(name, function, start, constant)
        last = min(int(found.steps[i]), STEPS)
        path = jax.tree.map(lambda column, i=i: column[i], found.path)
        # rounding grows along a path that bends: to the sixth digit it is the same
        np.testing.assert_allclose(path.value[:last], alone.value[1 : last + 1], rtol=1e-6, atol=1e-12)
        norms = np.linalg.norm(alone.gradient[1 : last + 1], axis=1)
        np.testing.assert_allclose(path.gradient_norm[:last], norms, rtol=1e-5, atol=1e-6)
        passes = sum(getattr(alone.counts, each) for each in alone.counts._fields)
        # one decision that rounding turns moves the counts of all steps after it, not what these take
        taken = np.diff(path.passes[:last]) == np.diff(passes[1 : last + 1])
        assert last < 2 or taken.mean() >= 0.8
        steps = int(found.steps[i])
        assert np.isfinite(path.value[:steps]).all() and np.isnan(path.value[steps:]).all()
        assert (path.passes[steps:] == 0).all() and found.counts.passes[i] == path.passes[steps - 1]
        assert found.value[i] == path.value[steps - 1] == found.state.value[i]
        np.testing.assert_allclose(found.value[i], function.value(found.params[i]), rtol=1e-11, atol=1e-15)
        several.add(steps)
    assert len(several) > 1 or name == "bayesian_regularization"  # some did stand still while others went on


@over_lanes
def test_a_lane_that_is_nan_leaves_the_others_as_they_are(name):
    """Bitwise; and ends as diverged before its first step, its parameters what they were."""
    runs = LANES[name]
    healthy = lanes(name, runs)
    broken = lanes(name, [*runs[:1], (runs[1][0], np.full_like(runs[1][1], np.nan), runs[1][2]), *runs[2:]])
    for whole, with_nan in zip(jax.tree.leaves(healthy), jax.tree.leaves(broken), strict=True):
        np.testing.assert_array_equal(whole[[0, 2, 3]], with_nan[[0, 2, 3]])
    assert list(broken.status == "diverged") == [False, True, False, False]
    assert broken.steps[1] == 0 and np.isnan(broken.params[1]).all()
    assert broken.best.value == min(broken.value[[0, 2, 3]])


@over_lanes
def test_what_minimize_says_is_so(name):
    """Of each lane's status: the largest |dF/dx_i|, or the steps."""
    found = lanes(name, LANES[name])
    for i in range(len(LANES[name])):
        largest = np.abs(found.gradient[i]).max()
        assert (found.status[i] == "gradient") == (largest <= 1e-6)
        assert (found.steps[i] == FAR) == (found.status[i] == "budget") or found.status[i] == "gradient"
        assert found.status[i] in ("gradient", "budget", "change", "search_failed")
    assert (found.status == "gradient").sum() >= 1


def test_a_singular_matrix_ends_no_run():
    """mu far below what rounding leaves of a singular J'J, which no Cholesky factor has: mu is to grow, and the minimum
    to be reached.
    """
    runs = [(TWICE, START, mu) for mu in (1e-25, 1e-18, 1e-3)]
    found = lanes("lm gain", [*runs, runs[-1]])
    assert list(found.status[:3]) == ["gradient"] * 3, found.status
    np.testing.assert_allclose(found.value, found.value[-1], rtol=1e-9)
    assert list(found.damped > 0) == [True, True, False, False]


# statuses, each from the same program: bfgs on a bowl
def run(function=QUARTIC, start=START, steps=STEPS, **limits):
    data = jax.tree.map(lambda each: np.asarray(each, float), function)
    return minimize(of(data), "bfgs", start, steps=steps, **({"gradient_tolerance": 0.0} | limits))


def test_every_status_is_met():
    """Each with what it says, at the first step of which that is true."""
    rising = QUARTIC._replace(sign=-1.0)
    whole = run()
    assert whole.status == "budget" and int(whole.steps) == STEPS
    path = jax.tree.map(np.asarray, whole.path)

    goal = run(goal=float(path.value[4]))
    assert goal.status == "goal" and int(goal.steps) == 5

    flat = run(gradient_tolerance=5.0)
    k = int(flat.steps)
    points = [START, *(np.asarray(run(evaluations=int(n)).params) for n in path.passes[:k])]
    largest = [np.abs(QUARTIC.gradient(x)).max() for x in points]
    assert flat.status == "gradient" and largest[k] <= 5.0 < min(largest[:k])

    shares = -np.diff(path.value) / path.value[:-1]
    still = run(change_tolerance=float(np.sort(shares)[2]) * 1.0001)
    k = int(still.steps)
    assert still.status == "change" and shares[k - 2] <= np.sort(shares)[2] * 1.001

    for most in (1, 4, 7):
        spent = run(evaluations=most)
        k = int(spent.steps)
        assert spent.status == "budget" and int(spent.counts.evaluations) >= most
        assert k == 0 or k == 1 or path.passes[k - 2] < most

    failed = run(rising)
    assert failed.status == "search_failed"
    assert (np.asarray(failed.params) == START).all()
    np.testing.assert_allclose(failed.value, rising.value(START), rtol=1e-14)

    for found in (goal, flat, still, spent, failed):
        number = second_order.STATUSES.index(found.status)
        assert found.reason == second_order.REASONS[number] and int(found.ended) == number
        assert repr(found).endswith("; ".join(filter(None, (found.reason, found.advice))) + ">")
    with pytest.raises(ValueError, match="params: expected finite numbers, got inf at index"):
        run(start=np.full(P, np.inf))
    with pytest.raises(ValueError, match="params: <problem bowl> is not finite at the start: F = .*start elsewhere"):
        run(start=np.full(P, 1e200))


def decay(u, x, y, unit, sizes):
    """y = b1 exp(-b2 x) + b3, b = sizes u, all of it in another unit."""
    b = u * sizes
    return unit * (b[0] * jnp.exp(-b[1] * x) + b[2]) - y


def decay_squared(*args):
    return jnp.sum(decay(*args) ** 2)


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
def test_single_precision_bears_any_unit_of_f(name):
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


def test_no_change_is_said_of_a_step_that_was_damped():
    """A rate constant of 1e10 beside an exponent: unscaled, no step moves it in single precision."""
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


@pytest.mark.parametrize("name", ["bfgs", "levenberg_marquardt"])
def test_at_a_minimum_there_is_nothing_to_do(name):
    """Exactly there, F = 0 or not, no step is made; from its own end a run ends at once."""
    for t in (0.0, np.array([1.0, -1.0])):
        problem = problem_from(residuals=lambda x, t: jnp.concatenate([x - 3, t]), data=(jnp.zeros(2) + t,))
        found = minimize(problem, name, jnp.array([3.0, 3.0]))
        assert (found.status, int(found.steps)) == ("gradient", 0)
    rosen = problem_from(residuals=lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0], 0.1 * x[0]]))
    first = minimize(rosen, name, jnp.array([-1.2, 1.0]))
    again = minimize(rosen, name, first.params)
    assert first.status == again.status == "gradient" and int(again.steps) <= 2


def test_a_function_that_is_dropped_goes_with_its_programs():
    """After 32 more; here those are only names, so that nothing is compiled."""

    class Held:
        data = np.ones(2)

    held = Held()
    gone = weakref.ref(held)

    def shifted(x, held=held):
        return jnp.sum((x - held.data) ** 2)

    minimize(problem_from(shifted), "conjugate_gradient", jnp.zeros(2), steps=3)
    second_order.restarts(problem_from(shifted), "conjugate_gradient", np.zeros((2, 2)), steps=3)
    del held, shifted
    for i in range(32):
        problem_from(lambda x, i=i: i)
        for program in (minimization._compiled, many_starts._in_turn_program):
            program(i, "", optimizers.get("bfgs"), 1, jax.make_mesh((1,), ("lanes",)))
    gc.collect()
    assert gone() is None


FLAGGED = {
    **{f"bfgs {search}": optimizers.bfgs(search) for search in line_searches.names()},
    "lbfgs": optimizers.lbfgs(),
    "conjugate_gradient": optimizers.conjugate_gradient(),
    "newton": optimizers.newton(),
    "levenberg_marquardt": levenberg_marquardt(),
    "lm singular": levenberg_marquardt(1e-25, scaling="identity"),
    "hessian_free": optimizers.hessian_free(),
    "scaled_conjugate_gradient": optimizers.scaled_conjugate_gradient(),
    "variable_learning_rate": optimizers.variable_learning_rate(),
}


@pytest.mark.newest
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("bfgs strong_wolfe", "lm singular") else pytest.mark.slow)
        for name in FLAGGED
    ],
)
def test_jax_debug_nans_and_infs_let_finite_runs_pass(name):
    """Alone, in lanes, and from several starts; what a user sees after the end is nan all the same."""
    rows = (10.0, 1.0, 0.1)
    problem = problem_from(
        residuals=lambda x: jnp.stack([rows[0] * (x[1] - x[0] ** 2), rows[1] - x[0], rows[2] * x[0]])
    )
    starts = np.array([[-1.2, 1.0], [0.5, 0.5]])
    with jax.debug_nans(True), jax.debug_infs(True):
        found = minimize(problem, FLAGGED[name], starts[0], steps=150)
        jax.jit(jax.vmap(lambda x: minimize(problem, FLAGGED[name], x, steps=30)))(starts)
        for block in (1, 2):
            second_order.restarts(problem, FLAGGED[name], starts, steps=30, block=block)
    steps = int(found.steps)
    assert np.isfinite(found.path.value[:steps]).all() and np.isnan(found.path.value[steps:]).all()


def test_a_second_call_of_the_same_shapes_compiles_nothing():
    """Limits are data; one that is given judges otherwise than its default, so that it is given in both."""
    run(change_tolerance=1e-12)
    TRACED.clear()
    run(SADDLE, 2 * START, goal=-1.0, gradient_tolerance=1e-3, change_tolerance=1e-9, evaluations=100)
    assert TRACED == []
    jax.eval_shape(of(SADDLE).value, START)
    assert TRACED != []  # the list does tell


def test_restarts_are_minimize_from_each_start():
    """One after another, and in fewer lanes than starts, which are refilled; one start is nan."""
    mild, starts = BENT._replace(q=0.1), np.stack([START * k for k in (1, 3, np.nan, 0.5)])
    expected = lanes("lm gain", [(mild, start, 1e-3) for start in starts])
    for block in (None, 2):
        found = second_order.restarts(
            of(mild),
            levenberg_marquardt(1e-3, scaling="identity"),
            starts,
            block=block,
            chunk=3,
            steps=FAR,
            gradient_tolerance=1e-6,
        )
        np.testing.assert_array_equal(found.status, expected.status)
        np.testing.assert_allclose(found.params, expected.params, atol=1e-6)  # as near as the tolerance brings them
        assert found.status[2] == "diverged" and len(set(found.steps.tolist())) == 4  # ended one by one
        assert np.abs(found.steps - expected.steps).max() <= 1
        for field in ("values", "matrices"):
            assert np.abs(getattr(found.counts, field) - getattr(expected.counts, field)).max() <= 1
        assert float(found.best.value) == np.nanmin(found.value)
        np.testing.assert_array_equal(found.best.params, found.params[np.nanargmin(found.value)])
        assert found.path is None and found.state is None
    with pytest.raises(ValueError, match="best: expected several runs side by side"):
        _ = found.best.best


# Parameters of any kind -----------------------------------------------------------------------------------------------


KINDS = {"float32": (jnp.float32,) * 2, "bfloat16": (jnp.bfloat16,) * 2, "both": (jnp.float32, jnp.bfloat16)}


def mixed(dtype, other):
    return {"a": jnp.ones((2, 3), dtype), "b": jnp.asarray(2.0, other), "c": [jnp.zeros((1, 1, 2), dtype)]}


def hills(params, shift):
    leaves = [leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(params)]
    e = jnp.concatenate(leaves) - shift.astype(jnp.float32)
    return jnp.concatenate([e, 0.5 * e**2])


@pytest.mark.parametrize("name", second_order.names())
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_leaves_structure_shapes_and_dtypes(name, kind):
    """Of the state, so that it can be carried through a loop; and it computes in at least float32."""
    params, problem = mixed(*KINDS[kind]), problem_from(residuals=hills, data=(jnp.ones(()),))
    if name == "kfac":
        if kind == "both":
            return  # a network's parameters are of one dtype
        network = fnn.multilayer((2, 3, 1), ("tanh", "linear"))
        params = network.init(jax.random.key(0), dtype=KINDS[kind][0])
        problem = fnn.training.problem(network, "mean_square_error", np.ones((4, 2)), np.ones((4, 1)))
    method = optimizers.get(name)
    state = jax.eval_shape(method.init, params, problem)
    after = jax.eval_shape(method.update, state, problem)

    def kinds(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert kinds(after) == kinds(state)
    assert kinds(state.params) == kinds(params)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.value, state.gradient))} == {jnp.dtype("float32")}


def test_single_precision_reaches_the_minimum():
    """Arrays of several shapes, one of them in another dtype than the rest, come back as they were."""
    params = mixed(*KINDS["both"])
    found = minimize(
        problem_from(residuals=hills, data=(jnp.full((), 0.75),)), "bfgs", params, steps=100, gradient_tolerance=1e-5
    )
    assert found.status == "gradient"
    for leaf, given in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        assert (leaf.shape, leaf.dtype) == (given.shape, given.dtype)
        # F is flat at its minimum: where |dF/dx| <= 1e-5, so is 2 |x - x*|; 0.75 is a number of bfloat16's
        np.testing.assert_allclose(np.asarray(leaf, float), 0.75, atol=5e-6)


# Networks -------------------------------------------------------------------------------------------------------------

SINE = fnn.multilayer((1, 4, 1), ("tanh", "linear"))  # 13 parameters
FEW = np.linspace(-1, 1, 7)[:, None]


def of_network(network, loss, inputs, targets, make, params, steps):
    """The states on a network's problem, NumPy throughout."""
    problem = fnn.training.problem(network, loss, jnp.asarray(inputs), jnp.asarray(targets))
    run = jax.jit(lambda params: followed(make, problem, params, steps))
    return jax.tree.map(np.asarray, run(params))


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
    for one, other in zip(*(jax.tree.leaves(each.params) for each in states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8)
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


@pytest.mark.slow
def test_hessian_free_takes_the_hessian_of_what_is_no_sum_of_squares():
    """log cosh along a bent valley, which has no Gauss-Newton matrix here; with it, it is refused."""

    def valley(x):
        return 1 + jnp.log(jnp.cosh(3 * (x[1] - x[0] ** 2))) + jnp.log(jnp.cosh(1 - x[0]))

    found = minimize(problem_from(valley), optimizers.hessian_free(curvature="hessian"), jnp.array([-1.2, 1.0]))
    assert found.status == "gradient" and int(found.counts.products) > 0
    np.testing.assert_allclose(found.params, 1, atol=1e-3)
    with pytest.raises(ValueError, match="has no Gauss-Newton matrix"):
        minimize(problem_from(valley), "hessian_free", jnp.array([-1.2, 1.0]))


def test_kfac_is_martens_and_grosses():
    """Each step of one layer, (2, 3), tanh: the inverse of the Kronecker product as a matrix, and the best multiples of
    the proposal and of the last step under the exact G.
    """
    network = fnn.multilayer((2, 3), ("tanh",))
    draw = np.random.default_rng(3)
    x, t, loss = draw.standard_normal((6, 2)), np.tanh(draw.standard_normal((6, 3))), "half_sum_square_error"
    states = of_network(network, loss, x, t, optimizers.kfac(0.3), network.init(jax.random.key(0)), 8)
    W, b = states.params["layer1"]["weights"]["input"], states.params["layer1"]["bias"]
    flat = np.concatenate([W, b[:, :, None]], axis=2).reshape(len(W), -1)  # (S, A) in rows
    homogeneous = np.append(x, np.ones((6, 1)), axis=1)

    def known(k):
        a = np.tanh(homogeneous @ np.concatenate([W[k], b[k][:, None]], axis=1).T)
        slopes = 1 - a**2
        J = np.einsum("qs,qr,st->qstr", slopes, homogeneous, np.eye(3)).reshape(18, 9)
        r = (a - t).reshape(-1)
        return r @ r / 2, J.T @ r, J.T @ J, homogeneous.T @ homogeneous / 6, np.diag((slopes**2).sum(axis=0))

    lam, before, factors, accepted = 0.3, np.zeros(9), None, []
    for k in range(8):
        F, g, G, *own = known(k)
        np.testing.assert_allclose(states.value[k], F, rtol=1e-12)
        if k == 0 or accepted[-1]:
            old = min(1 - 1 / (k + 1), 0.95)
            factors = own if k == 0 else [old * f + (1 - old) * new for f, new in zip(factors, own, strict=True)]
        A, S = factors
        pi = np.sqrt((np.trace(A) / 3) / (np.trace(S) / 3))
        inverse = np.linalg.inv(np.kron(S + lam**0.5 / pi * np.eye(3), A + pi * lam**0.5 * np.eye(3)))
        proposal, B = -inverse @ g, G + lam * np.eye(9)
        basis = np.stack([proposal, before], axis=1)[:, : 2 if before.any() else 1]
        delta = basis @ np.linalg.solve(basis.T @ B @ basis, -basis.T @ g)
        moved = flat[k + 1] - flat[k]
        trial = homogeneous @ (flat[k] + delta).reshape(3, 3).T
        after = np.sum((np.tanh(trial) - t) ** 2) / 2
        accepted.append(bool(after < F))
        np.testing.assert_allclose(moved, delta if accepted[-1] else 0, atol=1e-9, err_msg=f"step {k}")
        ratio = (after - F) / (g @ delta + delta @ G @ delta / 2)
        lam *= (0.95 if ratio > 0.75 else 1 / 0.95 if ratio < 0.25 else 1) if accepted[-1] else 4
        np.testing.assert_allclose(states.memory.damping[k + 1], lam, rtol=1e-9)
        before = delta if accepted[-1] else 0 * delta
    assert sum(accepted) >= 6
    np.testing.assert_array_equal(np.diff(states.counts.products), 2)


# Names and refusals ---------------------------------------------------------------------------------------------------


def test_names_are_the_public_functions():
    names = second_order.names()
    assert sorted(names) == [
        "bayesian_regularization",
        "bfgs",
        "conjugate_gradient",
        "hessian_free",
        "kfac",
        "lbfgs",
        "levenberg_marquardt",
        "newton",
        "newton_cg",
        "scaled_conjugate_gradient",
        "variable_learning_rate",
    ]
    for name in names:
        assert optimizers.get(name) is getattr(optimizers, name)()
    assert optimizers.get("lbfgs(history=5)") is optimizers.lbfgs(5)
    exact = optimizers.get("bfgs(line_search=strong_wolfe(curvature=0.1))")
    assert exact.constants["line_search"] is optimizers.line_searches.strong_wolfe(curvature=0.1)
    assert not set(names) & set(optimizers.names())


def refusal(build, error=ValueError):
    with pytest.raises(error) as refused:
        build()
    assert "\n" not in str(refused.value)
    return str(refused.value)


NAN, INF = float("nan"), float("inf")
POSITIVE = ("a finite number > 0", (0.0, -1.0, NAN, INF, None))
SHARE = ("in (0, 1)", (0.0, 1.0, NAN, None))
DECAY = ("in [0, 1)", (1.0, -0.1, NAN, None))
WORDS = {
    "beta": ("fast",),
    "restart": ("always", None),
    "rule": ("gain",),
    "scaling": (True,),
    "space": ("sample",),
    "solver": ("svd",),
    "preconditioner": ("diagonal",),
    "curvature": ("fisher",),
    "globalization": ("none",),
}
# what each constant accepts, and what not; one that is not here has no test
ACCEPTED = {
    **dict.fromkeys(("mu", "largest", "radius", "scale", "tolerance", "learning_rate"), POSITIVE),
    "decrease": SHARE,
    "increase": ("a number > 1", (1.0, 0.5, NAN, None)),
    **dict.fromkeys(("warm", "decay"), DECAY),
    **dict.fromkeys(("budget", "history", "iterations"), ("an integer >= 1", (0, 1.5, True))),
    **dict.fromkeys(("saddle_free", "minibatches", "momentum", "wait", "geodesic"), ("True or False", ("yes", 1))),
}
NON_NEGATIVE = ("a finite number >= 0", (-1.0, NAN, INF, None))
DAMPING = {"newton": NON_NEGATIVE, "hessian_free": POSITIVE, "kfac": POSITIVE}


@pytest.mark.parametrize("name", second_order.names())
def test_constants_out_of_range_are_refused(name):
    make = getattr(optimizers, name)
    for constant in inspect.signature(make).parameters:
        if constant == "line_search":
            assert "unknown line search 'wolf'" in refusal(lambda: make(line_search="wolf"))
            continue
        if constant in WORDS:
            for wrong in WORDS[constant]:
                assert f"{name}: {constant} must be '" in refusal(lambda c=constant, w=wrong: make(**{c: w}))
            continue
        accepted, wrongs = DAMPING[name] if constant == "damping" else ACCEPTED[constant]
        if (name, constant) == ("variable_learning_rate", "tolerance"):
            accepted, wrongs = NON_NEGATIVE
        if (name, constant) == ("levenberg_marquardt", "mu"):  # None: by the rule
            wrongs = [wrong for wrong in wrongs if wrong is not None]
        for wrong in wrongs:
            message = refusal(lambda c=constant, w=wrong: make(**{c: w}))
            assert message == f"{name}: {constant} must be {accepted}, got {wrong!r}"


PLAIN = problem_from(bowl, data=tuple(quadratic(2)))
NETWORKS = fnn.training.problem(SINE, "mean_square_error", FEW, FEW)
PARAMS = SINE.init(jax.random.key(0))
REFUSED = {
    "budget of newton": (
        lambda: minimize(PLAIN, optimizers.newton(budget=799), START),
        "newton: a matrix for 10 parameters would take 800 bytes, above the budget of 799; use lbfgs, "
        "conjugate_gradient or hessian_free, which need none, or allow it with budget=800",
    ),
    "budget of bfgs": (lambda: minimize(PLAIN, optimizers.bfgs(budget=799), START), "would take 800 bytes"),
    "budget among the samples": (
        lambda: minimize(NETWORKS, levenberg_marquardt(budget=7 * 7 * 8 - 1), PARAMS),
        "would take 392 bytes",
    ),
    "budget among the parameters": (
        lambda: minimize(NETWORKS, levenberg_marquardt(budget=400, space="parameters"), PARAMS),
        "would take 1352 bytes",
    ),
    "no residuals": (
        lambda: minimize(PLAIN, "levenberg_marquardt", START),
        "levenberg_marquardt: <problem bowl> has no residuals whose squares sum to F; use a square error without "
        "regularizer",
    ),
    "no Gauss-Newton": (lambda: minimize(PLAIN, "hessian_free", START), "has no Gauss-Newton matrix; use problem_from"),
    "no layers": (lambda: minimize(PLAIN, "kfac", START), "kfac: <problem bowl> has no layers to take"),
    "samples scaled": (
        lambda: levenberg_marquardt(space="samples", scaling="marquardt"),
        "levenberg_marquardt: space='samples' solves with J J^T",
    ),
    "samples by QR": (
        lambda: levenberg_marquardt(scaling="identity", space="samples", solver="qr"),
        "got 'identity' and 'qr'",
    ),
    "first order": (
        lambda: minimize(PLAIN, "adam(0.1)", START),
        "minimize: adam(0.1) is a first-order method, which `fit` runs",
    ),
    "first order, made": (lambda: minimize(PLAIN, optimizers.gd(), START), "minimize: gd is a first-order method"),
    "a name": (lambda: minimize(PLAIN, "lbfg", START), "unknown optimizer 'lbfg'; did you mean 'lbfgs'?"),
    "a constant": (lambda: optimizers.get("newton(dampin=1)"), "got an unexpected keyword argument 'dampin'"),
    "no problem": (
        lambda: minimize(lambda x: x @ x, "bfgs", START),
        "problem: expected one from optimizers.problem_from(function) or training.problem(network, ...), got function",
    ),
    "parameters": (lambda: minimize(PLAIN, "bfgs", "start"), "bfgs: params: expected an array of numbers, got str"),
    "sparse parameters": (
        lambda: minimize(PLAIN, "bfgs", scipy.sparse.eye(2)),
        "bfgs: params: expected an array of numbers, got scipy's",
    ),
    "optax": (
        lambda: minimize(PLAIN, optax.adam(0.1), START),
        "minimize: method: expected one of conjugate_gradient, ",
    ),
    "optax, what to do": (
        lambda: minimize(PLAIN, optax.adam(0.1), START),
        "by optimizers.from_optax(...), which `fit` runs",
    ),
    "a dictionary for residuals": (
        lambda: minimize(problem_from(residuals=lambda x: {"a": x}), "levenberg_marquardt", START),
        "problem_from: expected the function to return residuals as an array, got dict",
    ),
    "sparse residuals": (
        lambda: minimize(problem_from(residuals=lambda x: scipy.sparse.eye(2)), "levenberg_marquardt", START),
        "problem_from: residuals: expected an array of numbers, got scipy's",
    ),
    "goal": (lambda: minimize(PLAIN, "bfgs", START, goal=NAN), "minimize: goal must be a number, got nan"),
    "two functions": (lambda: problem_from(bowl, residuals=curve), "problem_from: expected one function"),
    "no function": (lambda: problem_from(), "problem_from: expected one function"),
    "a vector for F": (
        lambda: minimize(problem_from(lambda x: x), "bfgs", START),
        "problem_from: expected the function to return a scalar, got shape (10,)",
    ),
    "F for residuals": (
        lambda: minimize(problem_from(residuals=lambda x: x @ x), "levenberg_marquardt", START),
        "problem_from: expected an array of residuals, got one number",
    ),
    "integers": (lambda: minimize(PLAIN, "bfgs", np.arange(10)), "bfgs: params: "),
    "nothing": (lambda: minimize(PLAIN, "bfgs", {}), "bfgs: params: expected at least one array"),
    "steps": (lambda: minimize(PLAIN, "bfgs", START, steps=0), "minimize: steps must be an integer >= 1, got 0"),
    "evaluations": (lambda: minimize(PLAIN, "bfgs", START, evaluations=0), "minimize: evaluations must be an integer"),
    "tolerance": (
        lambda: minimize(PLAIN, "bfgs", START, gradient_tolerance=-1.0),
        "minimize: gradient_tolerance must be a finite",
    ),
    "path": (lambda: minimize(PLAIN, "bfgs", START, path=1), "minimize: path must be True or False, got 1"),
    "starts": (
        lambda: second_order.restarts(PLAIN, "bfgs", {"a": np.ones((2, 3)), "b": np.ones((3, 3))}),
        "starts: expected a leading axis of the same length in every array, got [(2,), (3,)]",
    ),
    "block": (lambda: second_order.restarts(PLAIN, "bfgs", START[None], block=0), "restarts: block must be an integer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_line(case):
    build, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as refused:
        build()
    assert message in str(refused.value) and "\n" not in str(refused.value)
