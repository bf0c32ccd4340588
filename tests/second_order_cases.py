"""Functions, methods and their trajectories for the tests of second-order methods.

Letters: P parameters, N residuals. One compiled program a method, of numbers that are data, serves most tests: its
trajectory on two families of functions, from whose points NumPy says where the next one should have been.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers
from functional_nn.optimizers import levenberg_marquardt, minimize, problem_from

P, N, STEPS = 10, 12, 12
EPS = np.finfo(float).eps


class Bowl(NamedTuple):
    """F = e'A e / 2 + q sum e^4 + slope sum e, with e = x - center.

    sign: of the derivatives that a method sees; with -1 every method is misled.
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


def problem_of(data):
    """The problem of these numbers."""
    if isinstance(data, Bowl):
        return problem_from(bowl, data=tuple(data))
    return problem_from(residuals=curve, data=tuple(data))


def spectral(values, seed=0):
    """A symmetric matrix of these eigenvalues."""
    vectors, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return vectors @ np.diag(values) @ vectors.T


def quadratic(n):
    """A quadratic of condition 100 in the first n coordinates, in which the whole run from the start 0 stays."""
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


@functools.cache
def trajectory_of(make, steps=STEPS):
    """Compiled (x, data, constant) -> State, after 0, 1, ... updates."""

    def run(x, data, constant):
        return followed(make(constant), problem_of(data), x, steps)

    return jax.jit(run)


def followed(method, problem, params, steps):
    start = method.init(params, problem)

    def update(state, _):
        state = method.update(state, problem)
        return state, state

    _, states = jax.lax.scan(update, start, length=steps)
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


TWICE = BENT._replace(B=BENT.B[:, np.arange(P) // 2])  # every column stands there twice: J has rank P / 2
FAR = 60  # steps that a run may make


@functools.cache
def runs_of(make):
    """Compiled (starts, data, constants) -> Solution: `minimize` of several runs, each with its own of all three."""

    def run_one(x, data, constant):
        return minimize(problem_of(data), make(constant), x, steps=FAR, gradient_tolerance=1e-6)

    return jax.jit(jax.vmap(run_one))


def side_by_side(name, runs):
    """Solution, NumPy throughout, of one run for each (function, start, constant)."""
    functions, starts, constants = zip(*runs, strict=True)
    data = jax.tree.map(lambda *each: np.stack(np.broadcast_arrays(*each)).astype(float), *functions)
    found = runs_of(METHODS[name])(np.stack(starts), data, np.array(constants))
    return jax.tree.map(np.asarray, found)


# statuses, each from the same program: bfgs on a bowl
def run(function=QUARTIC, start=START, steps=STEPS, **limits):
    data = jax.tree.map(lambda each: np.asarray(each, float), function)
    return minimize(problem_of(data), "bfgs", start, steps=steps, **({"gradient_tolerance": 0.0} | limits))


SINE = fnn.multilayer((1, 4, 1), ("tanh", "linear"))  # 13 parameters
FEW = np.linspace(-1, 1, 7)[:, None]


def of_network(network, loss, inputs, targets, make, params, steps):
    """The states on a network's problem, NumPy throughout."""
    problem = fnn.training.problem(network, loss, jnp.asarray(inputs), jnp.asarray(targets))
    run = jax.jit(lambda params: followed(make, problem, params, steps))
    return jax.tree.map(np.asarray, run(params))
