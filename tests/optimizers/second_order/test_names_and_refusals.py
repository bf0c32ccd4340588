"""Names of second-order methods, and the arguments that are refused."""

import inspect

import jax
import numpy as np
import optax
import pytest
import scipy.sparse
from refusals import refusal
from second_order_cases import FEW, SINE, START, bowl, curve, quadratic

import functional_nn as fnn
from functional_nn import optimizers
from functional_nn.optimizers import levenberg_marquardt, minimize, problem_from, second_order

pytestmark = pytest.mark.usefixtures("brisk")


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
def test_bad_arguments_are_refused_in_one_line(case):
    build, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as refused:
        build()
    assert message in str(refused.value) and "\n" not in str(refused.value)
