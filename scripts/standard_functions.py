#!/usr/bin/env python
"""The standard functions of unconstrained optimization: which methods arrive, and at what cost, next to SciPy's.

    python scripts/standard_functions.py --steps 2000 --out results/standard_functions

The problems of More, Garbow and Hillstrom (ACM TOMS 7(1), 1981; MGH): sums of squares with a standard start and
published minima. A method solves one if it ends at a published minimum, within 1e-5 of its value, or below 1e-8 where
that is 0. All run until the largest |dF/dx_i| is at most 1e-8: at 1e-6 some stop on flat functions (Osborne 1, Biggs
EXP6, Powell badly scaled) before F is so near. SciPy's `lm` and Newton-CG have no such test of their own, and are
stopped by it from outside, whenever the point has moved; their other tolerances are as small as SciPy takes them. Where
rounding keeps the gradient above the tolerance (Meyer, Brown-Dennis), each must notice that F falls no further.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments, require

try:
    import scipy
    from scipy.optimize import least_squares
    from scipy.optimize import minimize as scipy_minimize
except ImportError:
    require("bench", "scipy")
    raise

TOLERANCE = 1e-8  # of the largest |dF/dx_i|
LEAST = 1e-15  # the smallest tolerance for MINPACK, which takes none below the machine epsilon
PAIRS = {
    "levenberg_marquardt": "lm",
    "newton": "Newton-CG",
    "bfgs": "BFGS",
    "lbfgs": "L-BFGS-B",
    "conjugate_gradient": "CG",
    "scaled_conjugate_gradient": "CG",
}


class StandardFunction(NamedTuple):
    """F(x) = sum_i residuals(x)_i^2, the paper's standard start, and the values of F in which a descent may end.

    residuals: (n,) -> (m,). minima: as published, with local ones; the function's docstring says which are at infinity.
    """

    name: str
    residuals: Callable[[jax.Array], jax.Array]
    start: tuple[float, ...]
    minima: tuple[float, ...]

    def value(self, x):
        """Returns F(x), a scalar."""
        return jnp.sum(self.residuals(x) ** 2)


def rosenbrock(x):
    """MGH 1; minimum at (1, 1)."""
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def freudenstein_roth(x):
    """MGH 2; (5, 4), and the local (11.41..., -0.8968...), where most methods end from the standard start."""
    first = -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1]
    return jnp.stack([first, -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]])


def powell_badly_scaled(x):
    """MGH 3; (1.098...e-5, 9.106...)."""
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def brown_badly_scaled(x):
    """MGH 4; (1e6, 2e-6)."""
    return jnp.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x):
    """MGH 5; (3, 0.5). F also falls towards 0.4520... at (-inf, 1)."""
    return np.array([1.5, 2.25, 2.625]) - x[0] * (1 - x[1] ** np.array([1.0, 2, 3]))


def jennrich_sampson(x):
    """MGH 6, m = 10; x1 = x2 = 0.2578..."""
    i = np.arange(1.0, 11)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def helical_valley(x):
    """MGH 7; (1, 0, 0). The paper's arctan(x2 / x1) / 2 pi, plus 1/2 where x1 < 0, jumps on x1 = 0 > x2. Here
    the angle is measured from the x2 axis, which gives the same values and is smooth everywhere else.
    """
    turns = 0.25 - jnp.arctan2(x[0], x[1]) / (2 * jnp.pi)
    return jnp.stack([10 * (x[2] - 10 * turns), 10 * (jnp.hypot(x[0], x[1]) - 1), x[2]])


BARD = np.array([0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39])


def bard(x):
    """MGH 8; also 17.4286... at (0.8406..., -inf, -inf)."""
    u = np.arange(1.0, 16)
    v = 16 - u
    return BARD - (x[0] + u / (v * x[1] + np.minimum(u, v) * x[2]))


GAUSSIAN = np.array([0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989])


def gaussian(x):
    """MGH 9."""
    t = (8 - np.arange(1.0, 16)) / 2
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - np.append(GAUSSIAN, GAUSSIAN[-2::-1])


MEYER = np.array(
    [34780.0, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872]
)


def meyer(x):
    """MGH 10; its parameters differ by six orders of magnitude, its curvatures by twelve and more."""
    return x[0] * jnp.exp(x[1] / (45 + 5 * np.arange(1.0, 17) + x[2])) - MEYER


def gulf(x):
    """MGH 11, m = 99; (50, 25, 1.5). The paper prints y_i m i x2, where it means y_i minus x2."""
    t = np.arange(1.0, 100) / 100
    y = 25 + (-50 * np.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


def box(x):
    """MGH 12, m = 10; (1, 10, 1), (10, 1, -1), and x1 = x2 with x3 = 0."""
    t = np.arange(1.0, 11) / 10
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (np.exp(-t) - np.exp(-10 * t))


def powell_singular(x):
    """MGH 13; the origin, where the Hessian is singular."""
    mixed = (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2
    return jnp.stack([x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3]), *mixed])


def wood(x):
    """MGH 14; (1, 1, 1, 1)."""
    first = 10 * (x[1] - x[0] ** 2), 1 - x[0], 90**0.5 * (x[3] - x[2] ** 2), 1 - x[2]
    return jnp.stack([*first, 10**0.5 * (x[1] + x[3] - 2), (x[1] - x[3]) / 10**0.5])


KOWALIK = np.array([0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246])


def kowalik_osborne(x):
    """MGH 15; also 1.02734e-3 at (inf, -14.07..., -inf, -inf)."""
    u = np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
    return KOWALIK - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x):
    """MGH 16, m = 20."""
    t = np.arange(1.0, 21) / 5
    return (x[0] + t * x[1] - np.exp(t)) ** 2 + (x[2] + x[3] * np.sin(t) - np.cos(t)) ** 2


OSBORNE_1 = np.array(
    [
        0.844,
        0.908,
        0.932,
        0.936,
        0.925,
        0.908,
        0.881,
        0.850,
        0.818,
        0.784,
        0.751,
        0.718,
        0.685,
        0.658,
        0.628,
        0.603,
        0.580,
        0.558,
        0.538,
        0.522,
        0.506,
        0.490,
        0.478,
        0.467,
        0.457,
        0.448,
        0.438,
        0.431,
        0.424,
        0.420,
        0.414,
        0.411,
        0.406,
    ]
)


def osborne_1(x):
    """MGH 17, NIST's MGH17 from its second start. Flat far away, such as 0.0245... with x5 at infinity."""
    t = 10 * np.arange(33.0)
    return OSBORNE_1 - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


def biggs_exp6(x):
    """MGH 18, m = 13; (1, 10, 1, 5, 4, 3) with F = 0. The published 5.65565e-3 is the least where x1 = x5, x3 = x6, as
    at the standard start; gradients keep that. It is a saddle of F itself, which rounding may leave.
    """
    t = np.arange(1.0, 14) / 10
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


OSBORNE_2 = np.array(
    [
        1.366,
        1.191,
        1.112,
        1.013,
        0.991,
        0.885,
        0.831,
        0.847,
        0.786,
        0.725,
        0.746,
        0.679,
        0.608,
        0.655,
        0.616,
        0.606,
        0.602,
        0.626,
        0.651,
        0.724,
        0.649,
        0.649,
        0.694,
        0.644,
        0.624,
        0.661,
        0.612,
        0.558,
        0.533,
        0.495,
        0.500,
        0.423,
        0.395,
        0.375,
        0.372,
        0.391,
        0.396,
        0.405,
        0.428,
        0.429,
        0.523,
        0.562,
        0.607,
        0.653,
        0.672,
        0.708,
        0.633,
        0.668,
        0.645,
        0.632,
        0.591,
        0.559,
        0.597,
        0.625,
        0.739,
        0.710,
        0.729,
        0.720,
        0.636,
        0.581,
        0.428,
        0.292,
        0.162,
        0.098,
        0.054,
    ]
)


def osborne_2(x):
    """MGH 19: a decay and three Gaussians."""
    t = np.arange(65.0) / 10
    peaks = [x[1 + k] * jnp.exp(-((t - x[8 + k]) ** 2) * x[5 + k]) for k in range(3)]
    return OSBORNE_2 - (x[0] * jnp.exp(-t * x[4]) + sum(peaks))


def watson(x):
    """MGH 20, for the paper's n = 6."""
    t, j = np.arange(1.0, 30)[:, None] / 29, np.arange(float(len(x)))[None, :]
    derivative = j * t ** np.maximum(j - 1, 0) @ x
    return jnp.concatenate([derivative - (t**j @ x) ** 2 - 1, jnp.stack([x[0], x[1] - x[0] ** 2 - 1])])


def extended_rosenbrock(x):
    """MGH 21, n even."""
    return jnp.concatenate([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def penalty_1(x):
    """MGH 23."""
    return jnp.append(1e-5**0.5 * (x - 1), jnp.sum(x**2) - 0.25)


def variably_dimensioned(x):
    """MGH 25; (1, ..., 1)."""
    weighted = np.arange(1.0, len(x) + 1) @ (x - 1)
    return jnp.append(x - 1, jnp.stack([weighted, weighted**2]))


def trigonometric(x):
    """MGH 26; 0, and for n = 10 the local 2.79506e-5, where most methods end from the standard start. There are more,
    such as 4.4736e-7 and 4.2186e-5, which are not published.
    """
    i = np.arange(1.0, len(x) + 1)
    return len(x) - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)


def broyden_tridiagonal(x):
    """MGH 30."""
    return (3 - 2 * x) * x - jnp.append(0.0, x[:-1]) - 2 * jnp.append(x[1:], 0.0) + 1


def chebyquad(x):
    """MGH 35, m = n: the means over x of the shifted Chebyshev T_1 to T_n, less their integrals from 0 to 1."""
    polynomials = [jnp.ones_like(x), 2 * x - 1]
    for _ in x[1:]:
        polynomials.append(2 * (2 * x - 1) * polynomials[-1] - polynomials[-2])
    integrals = [0.0 if i % 2 else -1 / (i**2 - 1) for i in range(1, len(x) + 1)]
    return jnp.mean(jnp.stack(polynomials[1:]), axis=1) - np.array(integrals)


FUNCTIONS = (
    StandardFunction("Rosenbrock", rosenbrock, (-1.2, 1), (0,)),
    StandardFunction("Freudenstein-Roth", freudenstein_roth, (0.5, -2), (0, 48.98425)),
    StandardFunction("Powell badly scaled", powell_badly_scaled, (0, 1), (0,)),
    StandardFunction("Brown badly scaled", brown_badly_scaled, (1, 1), (0,)),
    StandardFunction("Beale", beale, (1, 1), (0,)),
    StandardFunction("Jennrich-Sampson", jennrich_sampson, (0.3, 0.4), (124.362,)),
    StandardFunction("helical valley", helical_valley, (-1, 0, 0), (0,)),
    StandardFunction("Bard", bard, (1, 1, 1), (8.21487e-3, 17.4286)),
    StandardFunction("Gaussian", gaussian, (0.4, 1, 0), (1.12793e-8,)),
    StandardFunction("Meyer", meyer, (0.02, 4000, 250), (87.9458,)),
    StandardFunction("Gulf", gulf, (5, 2.5, 0.15), (0,)),
    StandardFunction("Box 3-D", box, (0, 10, 20), (0,)),
    StandardFunction("Powell singular", powell_singular, (3, -1, 0, 1), (0,)),
    StandardFunction("Wood", wood, (-3, -1, -3, -1), (0,)),
    StandardFunction("Kowalik-Osborne", kowalik_osborne, (0.25, 0.39, 0.415, 0.39), (3.07505e-4, 1.02734e-3)),
    StandardFunction("Brown-Dennis", brown_dennis, (25, 5, -5, -1), (85822.2,)),
    StandardFunction("Osborne 1", osborne_1, (0.5, 1.5, -1, 0.01, 0.02), (5.46489e-5,)),
    StandardFunction("Biggs EXP6", biggs_exp6, (1, 2, 1, 1, 1, 1), (0, 5.65565e-3)),
    StandardFunction("Osborne 2", osborne_2, (1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5), (4.01377e-2,)),
    StandardFunction("Watson, n = 6", watson, (0,) * 6, (2.28767e-3,)),
    StandardFunction("extended Rosenbrock, n = 10", extended_rosenbrock, (-1.2, 1) * 5, (0,)),
    StandardFunction("penalty I, n = 4", penalty_1, (1, 2, 3, 4), (2.24997e-5,)),
    StandardFunction(
        "variably dimensioned, n = 10", variably_dimensioned, tuple(1 - j / 10 for j in range(1, 11)), (0,)
    ),
    StandardFunction("trigonometric, n = 10", trigonometric, (0.1,) * 10, (0, 2.79506e-5)),
    StandardFunction("Broyden tridiagonal, n = 10", broyden_tridiagonal, (-1,) * 10, (0,)),
    StandardFunction("Chebyquad, n = 8", chebyquad, tuple(j / 9 for j in range(1, 9)), (3.51687e-3,)),
)


class Run(NamedTuple):
    """Where a method ended, and its cost. matrices: Jacobians or Hessians."""

    F: float
    status: str
    iterations: int
    values: int
    gradients: int
    matrices: int


def reached(F: float, minima: tuple[float, ...]) -> float | None:
    """Returns the published minimum that F is at, if any."""
    near = [m for m in minima if abs(F - m) <= (1e-5 * m if m else 1e-8)]
    return near[0] if near else None


def ours(function: StandardFunction, method, steps: int) -> Run:
    """Solves by a method of functional_nn, with derivatives by autodiff."""
    squares = method.name == "levenberg_marquardt"
    problem = fnn.optimizers.problem_from(
        **({"residuals": function.residuals} if squares else {"function": function.value})
    )
    solution = fnn.optimizers.minimize(
        problem, method, jnp.array(function.start, float), steps=steps, gradient_tolerance=TOLERANCE
    )
    counts = solution.counts
    # A product with the Hessian costs as much as a gradient, and counts as one.
    spent = [
        int(x) for x in (counts.evaluations + counts.products, counts.gradients + counts.products, counts.matrices)
    ]
    return Run(float(solution.value), solution.status, int(solution.steps), *spent)


def minpack(function: StandardFunction, steps: int) -> Run:
    """Solves by SciPy's lm, which is MINPACK's lmder, scaled by the Jacobian's columns; a Jacobian an iteration."""
    residuals, jacobian = jax.jit(function.residuals), jax.jit(jax.jacfwd(function.residuals))
    count, last = {"residuals": 0, "Jacobians": 0}, {}

    def counted(name, function):
        def evaluate(x):
            if not np.array_equal(last.get(name), x):  # SciPy evaluates the start twice
                count[name], last[name] = count[name] + 1, x.copy()
            return function(x)

        return evaluate

    def jacobian_or_end(x):
        J = np.asarray(jacobian(x))
        if np.max(np.abs(2 * J.T @ np.asarray(residuals(x)))) <= TOLERANCE:
            raise StopIteration(x.copy())
        return J

    try:
        solution = least_squares(
            counted("residuals", residuals),
            function.start,
            counted("Jacobians", jacobian_or_end),
            method="lm",
            x_scale="jac",
            ftol=LEAST,
            xtol=LEAST,
            gtol=LEAST,
            max_nfev=10 * steps,
        )
        x, status = solution.x, "change" if solution.success else "budget"
    except StopIteration as stopped:
        x, status = stopped.value, "gradient"
    return Run(
        float(function.value(x)), status, count["Jacobians"], count["residuals"], count["Jacobians"], count["Jacobians"]
    )


def scipys(function: StandardFunction, method: str, steps: int) -> Run:
    """Solves by a method of SciPy's `minimize`, with gradient and Hessian by autodiff."""
    gradient = jax.jit(jax.grad(function.value))

    def flat(x) -> bool:
        return float(jnp.max(jnp.abs(gradient(x)))) <= TOLERANCE

    def end(intermediate_result):
        if flat(intermediate_result.x):
            raise StopIteration

    newton = method == "Newton-CG"
    own = {"xtol": LEAST} if newton else {"gtol": TOLERANCE}
    if method == "L-BFGS-B":
        own |= {"ftol": 0.0, "maxcor": 10, "maxfun": 50 * steps}
    solution = scipy_minimize(
        jax.jit(function.value),
        np.array(function.start, float),
        method=method,
        jac=gradient,
        hess=jax.jit(jax.hessian(function.value)) if newton else None,
        callback=end if newton else None,
        options={"maxiter": steps} | own,
    )
    status = {1: "budget", 2: "search_failed", 3: "diverged"}.get(solution.status, "change")
    status = "gradient" if flat(solution.x) else status
    return Run(float(solution.fun), status, solution.nit, solution.nfev, solution.njev, solution.get("nhev", 0))


def compare(function: StandardFunction, steps: int) -> list[dict]:
    """Makes a row for each method, ours and SciPy's."""
    rows, theirs = [], {}
    with np.errstate(all="ignore"), warnings.catch_warnings():  # SciPy's may try points where F overflows
        warnings.simplefilter("ignore")
        for other in dict.fromkeys(PAIRS.values()):
            theirs[other] = minpack(function, steps) if other == "lm" else scipys(function, other, steps)
    for name, other in PAIRS.items():
        method = getattr(fnn.optimizers, name)()
        runs = {"ours": ours(function, method, steps), "SciPy": theirs[other]}
        ends = {who: reached(run.F, function.minima) for who, run in runs.items()}
        row = {"function": function.name, "method": name, "SciPy's": other}
        row |= {f"minimum, {who}": "-" if end is None else f"{end:g}" for who, end in ends.items()}
        rows.append(row | {f"{what}, {who}": getattr(run, what) for what in Run._fields for who, run in runs.items()})
    return rows


def notes(rows: list[dict]) -> str:
    lines = [
        "minimum: the published one that was reached, - if none. values: evaluations of F (lm: of the residuals) and",
        "products with the Hessian; below",
        "their ratio, ours / SciPy's, median (and range), over those of the functions that both solve",
    ]
    for name, other in PAIRS.items():
        own = [row for row in rows if row["method"] == name]
        both = [row for row in own if "-" not in (row["minimum, ours"], row["minimum, SciPy"])]
        ratios = [row["values, ours"] / row["values, SciPy"] for row in both]
        ratio = f"{np.median(ratios):.3g} ({min(ratios):.2g} to {max(ratios):.2g})" if ratios else "-"
        lines.append(f"{name} / {other}: {ratio} over {len(both)} of {len(own)}")
        for who in ("ours", "SciPy"):
            missed = [row["function"] for row in own if row[f"minimum, {who}"] == "-"]
            lines += [f"    {who}: not {'; '.join(missed)}"] if missed else []
    lines.append(f"SciPy {scipy.__version__}: BFGS, L-BFGS-B and CG with its defaults, lm with x_scale jac")
    return "\n".join(lines)


def main() -> None:
    experiments.start(x64=True)
    options = experiments.arguments(__doc__, "results/standard_functions", steps=2000)
    rows = [row for function in FUNCTIONS for row in compare(function, options.steps)]
    experiments.write(options.out, rows, notes=notes(rows))


if __name__ == "__main__":
    main()
