#!/usr/bin/env python
"""What second-order methods cost next to SciPy's and optimistix's: same problem, same start, stopped by the same test.

    python scripts/benchmark_second_order.py --rounds 7 --out results/benchmark_second_order

All take turns, round after round, in one process, in 64 bits. Whole calls of compiled programs are timed. Read the
ratios, which are medians over the rounds. A run ends as soon as F is at the goal, or the largest |dF/dx_i| at the
tolerance. `minimize` and SciPy's BFGS, L-BFGS-B and CG have that test themselves. optimistix's solvers are given it in
place of their own. SciPy's other methods are stopped by it from inside their callbacks, at the first point that passes.
NIST's regressions are solved a second time with each solver's own tests, all at 1e-8. One function then judges where
each solver ended; those that ended elsewhere are in no ratio.

SciPy's callbacks are jitted value_and_grad, Jacobian and Hessian; two problems are also given to it in pure NumPy. "in
jit": called by a jitted function of the user's, which returns the parameters alone; for optimistix that is the fast
way. The last rows solve one problem from many starts: `restarts` with its lanes on all cores (JAX_NUM_CPU_DEVICES sets
another number) and, in another process, on one device, next to `minimize` for one start after the other. optimistix
under `vmap` and SciPy in a loop solve some of the starts, and their time is scaled up. LAPACK has one thread, which is
fastest for everyone with matrices so small.
"""

import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import nist_strd
import numpy as np
import standard_functions
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn.lab import experiments, install, require
from functional_nn.lab.timing import loops_for, median_ratio, timed_in_turns

try:
    import scipy
    from scipy.optimize import least_squares, rosen, rosen_der, rosen_hess
    from scipy.optimize import minimize as scipy_minimize
except ImportError:
    require("bench", "scipy")
    raise
try:
    import lineax
    import optimistix
except ImportError:
    optimistix = None

experiments.start(x64=True, all_cores=True)  # here, for the process of `on_one_device`, which imports this

STEPS = 5000
OWN = 1e-8  # the tolerance of each solver's own tests, where these stop it
CLOSE = 1e-6  # relative difference of F within which a certified or published minimum is reached
ROUNDING = 1e-9  # relative difference between two programs' values of F
TURN = 0.02  # seconds; a shorter call is repeated in a turn
NIST = ("ENSO", "Gauss1", "Kirby2", "MGH17", "Rat42", "Thurber")
STANDARD = ("Watson, n = 6", "Chebyquad, n = 8")
SCIPYS = {
    "levenberg_marquardt": ("lm",),
    "bfgs": ("BFGS",),
    "lbfgs": ("L-BFGS-B",),
    "conjugate_gradient": ("CG",),
    "newton": ("Newton-CG", "trust-exact"),
}
OPTIMISTIXS = {
    "levenberg_marquardt": "LevenbergMarquardt",
    "bfgs": "BFGS",
    "lbfgs": "LBFGS",
    "conjugate_gradient": "NonlinearCG",
}
GOALS, LANE_STEPS = (1e-4, 1e-6, 1e-8), 500  # of many starts
EACH = {"optimistix, vmap": 8, "SciPy lm": 32}  # only every 8th, every 32nd start is solved
OURS, JIT = "ours", ", in jit"


class Test(NamedTuple):
    """What stops a run. goal: F at or below it; tolerance: of the largest |dF/dx_i|; own: of each solver's own tests.
    end: F where a run should end, unless that is the goal.
    """

    goal: float = -np.inf
    tolerance: float = 0.0
    own: float = 0.0
    end: float = 0.0

    def __str__(self) -> str:
        if self.own:
            return f"own, {self.own:g}"
        return f"F <= {self.goal:.6g}" if np.isfinite(self.goal) else f"|g| <= {self.tolerance:g}"

    def passed(self, F: float, slope: float) -> bool:
        """Says whether a run that ended there reached what it should."""
        if np.isfinite(self.goal):
            return F <= self.goal * (1 + ROUNDING)
        near = abs(F - self.end) <= CLOSE * max(self.end, 1e-2)
        return near and (bool(self.own) or slope <= self.tolerance * (1 + CLOSE))


class Case(NamedTuple):
    """A problem: function(params, *data) -> residuals (N,) where `squares`, else F. problem: the same for ours. starts:
    by name. by_numpy: F and its derivatives, or residuals and Jacobian, in pure NumPy, for SciPy.
    """

    name: str
    function: Callable
    squares: bool
    data: tuple
    problem: fnn.optimizers.Problem
    method: fnn.optimizers.SecondOrder
    starts: dict[str, Any]
    tests: tuple[Test, ...]
    scaled: bool = False
    by_numpy: tuple[Callable, ...] = ()

    def value(self, params):
        """F, a scalar."""
        found = self.function(params, *self.data)
        return jnp.vdot(found, found) if self.squares else found


class Way(NamedTuple):
    """A solver: run(start, test) -> its result; read(result) -> params, and the number of evaluations of F, None if it
    is unknown.
    """

    run: Callable
    read: Callable


# The ways -------------------------------------------------------------------------------------------------------------


def by_us(case: Case, in_jit: bool = False) -> Way:
    def solve(problem, start, goal, tolerance, own):
        return fnn.optimizers.minimize(
            problem,
            case.method,
            start,
            steps=STEPS,
            goal=goal,
            gradient_tolerance=tolerance,
            change_tolerance=own,
            path=False,
        )

    if in_jit:
        program = jax.jit(lambda *given: solve(*given).params)
        return Way(lambda start, test: program(case.problem, start, *test[:3]), lambda found: (found, None))
    return Way(
        lambda start, test: solve(case.problem, start, *test[:3]),
        lambda found: (found.params, int(found.counts.evaluations)),
    )


def stopping(case: Case):
    """Returns optimistix's solver with the stopping test of `Test`: a class of (goal, tolerance, own).

    It has the linear solver of ours.
    """
    squares, solver = case.squares, case.method.constants.get("solver")
    factor = 2 if squares else 1  # of residuals, it minimizes half the sum of squares

    class Stopping(getattr(optimistix, OPTIMISTIXS[case.method.name])):
        goal: Any
        tolerance: Any

        def __init__(self, goal, tolerance, own):
            linear = {"linear_solver": lineax.Normal(lineax.Cholesky())} if solver == "cholesky" else {}
            super().__init__(rtol=own, atol=own, **linear)
            self.goal, self.tolerance = goal, tolerance

        def terminate(self, fn, y, args, options, state, tags):
            stops = factor * state.f_info.as_min() <= self.goal
            if not squares:
                stops |= optimistix.max_norm(state.f_info.grad) <= self.tolerance
            return (state.terminate | stops) & ~state.first_step, state.result

    return Stopping


def by_optimistix(case: Case, in_jit: bool = False) -> Way:
    solver = stopping(case)
    minimizes = optimistix.least_squares if case.squares else optimistix.minimise

    def function(params, data):
        return case.function(params, *data)

    def solve(start, data, *test):
        return minimizes(function, solver(*test), start, data, max_steps=STEPS, throw=False)

    if in_jit:
        program = jax.jit(lambda *given: solve(*given).value)
        return Way(lambda start, test: program(start, case.data, *test[:3]), lambda found: (found, None))
    return Way(
        # as arrays: numbers would be compiled into the program
        lambda start, test: solve(start, case.data, *(jnp.asarray(each) for each in test[:3])),
        lambda found: (found.value, int(found.stats["num_steps"])),
    )


def by_scipy(case: Case, method: str, steps: int = STEPS, by_numpy: bool = False) -> Way:
    """A method of SciPy. Its callbacks raise StopIteration with the first point that passes the test."""
    first, unravel = ravel_pytree(next(iter(case.starts.values())))
    count = [0]

    def at(x):
        return case.function(unravel(x), *case.data)

    def compiled(function):
        program = jax.jit(function)
        return lambda x: np.asarray(program(x))

    def squares(x0, test):
        def watched(x):
            count[0] += 1
            r = residuals(x)
            if r @ r <= test.goal:
                raise StopIteration(x.copy())
            return np.append(r, np.zeros(few)) if few else r

        def slopes(x):
            J = jacobian(x)
            return np.concatenate([J, np.zeros((few, x.size))]) if few else J

        own = max(test.own, 1e-15)  # MINPACK takes none below the machine epsilon
        scale = "jac" if case.scaled else 1.0
        return least_squares(
            watched, x0, slopes, method="lm", x_scale=scale, ftol=own, xtol=own, gtol=own, max_nfev=steps
        ).x

    def scalar(x0, test):
        stopped_here = method in ("Newton-CG", "trust-exact")  # they have no such test, or one of another norm

        def watched(x):
            count[0] += 1
            F, g = with_gradient(x)
            if F <= test.goal or (stopped_here and np.abs(g).max() <= test.tolerance):
                raise StopIteration(x.copy())
            return F, g

        own = {
            "BFGS": {"gtol": test.tolerance},
            "CG": {"gtol": test.tolerance},
            "trust-exact": {"gtol": 0.0},
            "L-BFGS-B": {"gtol": test.tolerance, "ftol": 0.0, "maxcor": 10, "maxfun": 10 * steps},
            "Newton-CG": {"xtol": 1e-15},
        }[method]
        return scipy_minimize(
            watched,
            x0,
            method=method,
            jac=True,
            hess=hessian if stopped_here else None,
            options={"maxiter": steps} | own,
        ).x

    if case.squares:
        few = max(0, first.size - jax.eval_shape(at, first).size)  # MINPACK requires N >= P: zeros are added
        residuals, jacobian = case.by_numpy if by_numpy else (compiled(at), compiled(jax.jacfwd(at)))
        solve = squares
    elif by_numpy:
        value, gradient, hessian = case.by_numpy
        with_gradient, solve = lambda x: (value(x), gradient(x)), scalar
    else:
        program, hessian = jax.jit(jax.value_and_grad(at)), compiled(jax.hessian(at))
        with_gradient, solve = lambda x: tuple(map(np.asarray, program(x))), scalar

    def run(start, test):
        count[0] = 0
        try:
            return solve(np.asarray(ravel_pytree(start)[0]), test)
        except StopIteration as stopped:
            return stopped.value

    return Way(run, lambda x: (unravel(x), count[0]))


def ways_of(case: Case) -> dict[str, Way]:
    ways = {OURS: by_us(case)}
    for method in SCIPYS[case.method.name]:
        ways[f"SciPy {method}"] = by_scipy(case, method)
        if case.by_numpy:
            ways[f"SciPy {method}, NumPy callbacks"] = by_scipy(case, method, by_numpy=True)
    if optimistix and case.method.name in OPTIMISTIXS:
        ways |= {"optimistix": by_optimistix(case)}
        ways |= {OURS + JIT: by_us(case, in_jit=True), "optimistix" + JIT: by_optimistix(case, in_jit=True)}
    return ways


# The problems ---------------------------------------------------------------------------------------------------------


def thurber(problem: nist_strd.NistProblem) -> tuple[Callable, Callable]:
    """Residuals and Jacobian in pure NumPy."""
    x = problem.x
    powers = np.stack([np.ones_like(x), x, x**2, x**3], axis=1)

    def fraction(b):
        below = 1 + powers[:, 1:] @ b[4:]
        return powers @ b[:4] / below, below

    def jacobian(b):
        value, below = fraction(b)
        return np.concatenate([powers, -value[:, None] * powers[:, 1:]], axis=1) / below[:, None]

    return lambda b: fraction(b)[0] - problem.y, jacobian


def nist() -> list[Case]:
    method = fnn.optimizers.levenberg_marquardt()
    cases = []
    for problem in nist_strd.problems():
        if problem.name not in NIST:
            continue

        def residuals(b, x, y, model=problem.model):
            return model(b, x) - y

        end, data = problem.residual_sum, (jnp.asarray(problem.x), jnp.asarray(problem.y))
        ours = fnn.optimizers.problem_from(residuals=residuals, data=data)
        cases.append(
            Case(
                problem.name,
                residuals,
                True,
                data,
                ours,
                method,
                {f"start {k + 1}": jnp.asarray(start) for k, start in enumerate(problem.starts)},
                (Test(goal=(1 + CLOSE) * end), Test(own=OWN, end=end)),
                scaled=True,
                by_numpy=thurber(problem) if problem.name == "Thurber" else (),
            )
        )
    return cases


def network_case(sizes, x, t, method, goal: float, seeds=(0,)) -> Case:
    network = fnn.multilayer(sizes, ("tanh", "linear"))
    x, t = jnp.asarray(x, float), jnp.asarray(t, float)
    squares = method.name == "levenberg_marquardt"

    def function(params, x, t):
        r = (network.apply(params, x) - t).reshape(-1) / t.size**0.5
        return r if squares else jnp.vdot(r, r)

    return Case(
        f"network {'-'.join(map(str, sizes))}, {len(x)} examples",
        function,
        squares,
        (x, t),
        fnn.training.problem(network, "mean_square_error", x, t),
        method,
        {f"seed {seed}": network.init(jax.random.key(seed), float) for seed in seeds},
        (Test(goal=goal),),
    )


def sine(goal: float, seeds=(0,)) -> Case:
    x = jnp.linspace(-1, 1, 40)[:, None]
    method = fnn.optimizers.levenberg_marquardt()
    return network_case((1, 15, 1), x, 0.5 + 0.25 * jnp.sin(3 * jnp.pi * x), method, goal, seeds)


def waves() -> Case:
    x = jax.random.uniform(jax.random.key(7), (200, 2), float, -1, 1)
    t = jnp.sin(jnp.pi * x[:, :1]) * jnp.cos(jnp.pi * x[:, 1:])
    return network_case((2, 15, 1), x, t, fnn.optimizers.levenberg_marquardt(), 1e-4, (0, 1))


def smooth(method: fnn.optimizers.SecondOrder, hidden: int = 14, goal: float = 0.2) -> list[Case]:
    """Returns the problems of BFGS, L-BFGS, conjugate gradients and Newton's method."""

    def rosenbrock(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    functions = [("Rosenbrock, n = 10", rosenbrock, np.zeros(10), 0.0, (rosen, rosen_der, rosen_hess))]
    functions += [
        (each.name, each.value, each.start, each.minima[0], ())
        for each in standard_functions.FUNCTIONS
        if each.name in STANDARD
    ]
    cases = [
        Case(
            name,
            function,
            False,
            (),
            fnn.optimizers.problem_from(function),
            method,
            {"": jnp.asarray(start, float)},
            (Test(tolerance=1e-6, end=end),),
            by_numpy=by_numpy,
        )
        for name, function, start, end, by_numpy in functions
    ]
    task = experiments.load("diabetes")
    return [*cases, network_case((10, hidden, 1), task.inputs, task.targets, method, goal, (0, 1))]


# What is measured -----------------------------------------------------------------------------------------------------


def solve_case(case: Case, rounds: int, advance: Callable) -> list[dict]:
    """Makes a row for each start, test and way."""
    judge = jax.jit(jax.value_and_grad(case.value))
    rows, ways = [], ways_of(case)
    for where, start in case.starts.items():
        for test in case.tests:
            ends, calls, first, fresh = {}, {}, {}, not rows
            for name, way in ways.items():
                began = time.perf_counter()
                params, evaluations = way.read(jax.block_until_ready(way.run(start, test)))
                first[name] = time.perf_counter() - began if fresh else "-"
                F, slope = judge(params)
                ends[name] = float(F), float(jnp.max(jnp.abs(ravel_pytree(slope)[0]))), evaluations
                calls[name] = functools.partial(run_way, way, start, test)
            loops = {name: loops_for(call, TURN) for name, call in calls.items()}
            seconds = timed_in_turns(calls, rounds, loops=loops)
            advance(f"{case.method.name}: {case.name}")
            reached = {name: test.passed(F, slope) for name, (F, slope, _) in ends.items()}
            for name, (F, _, evaluations) in ends.items():
                us = OURS + JIT if name.endswith(JIT) else OURS
                both = name != us and reached[name] and reached[us]
                rows.append(
                    {
                        "method": case.method.name,
                        "problem": ", ".join(filter(None, (case.name, where))),
                        "stopped by": str(test),
                        "solved by": name,
                        "ms": 1e3 * median(seconds[name]),
                        "ours / it": median_ratio(seconds[us], seconds[name]) if both else "-",
                        "evaluations": "-" if evaluations is None else evaluations,
                        "F": F,
                        "reached": "yes" if reached[name] else "NO",
                        "first call, s": first[name],
                    }
                )
    return rows


def run_way(way: Way, start, test: Test, _: int):
    return jax.block_until_ready(way.run(start, test))


def from_many_starts(count: int, rounds: int) -> list[dict]:
    """Makes a row for each goal and way of solving from `count` starts; with several devices, others take part too."""
    case = sine(GOALS[-1], range(count))
    listed = list(case.starts.values())
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *listed)
    limits = {"steps": LANE_STEPS, "gradient_tolerance": 0.0, "change_tolerance": 0.0}

    def restarts(goal):
        return fnn.optimizers.restarts(case.problem, case.method, together, goal=goal, **limits).params

    def one_by_one(goal):
        return [
            fnn.optimizers.minimize(case.problem, case.method, start, goal=goal, path=False, **limits).params
            for start in listed
        ]

    calls = {"restarts": restarts, f"minimize, {count} times": one_by_one}
    several = jax.device_count() > 1
    if several:
        calls |= {"optimistix, vmap": optimistix_vmap(case, together)} if optimistix else {}
        way = by_scipy(case, "lm", LANE_STEPS)
        calls["SciPy lm"] = lambda goal: [
            way.read(way.run(start, Test(goal=goal)))[0] for start in listed[:: EACH["SciPy lm"]]
        ]
    values, rows, first = jax.jit(jax.vmap(case.value)), [], {}
    for name, call in calls.items():
        began = time.perf_counter()
        jax.block_until_ready(call(GOALS[0]))
        first[name] = time.perf_counter() - began
    for goal in GOALS:
        ends = {}
        timed = {name: functools.partial(solve_all, name, call, goal, ends) for name, call in calls.items()}
        seconds = {name: EACH.get(name, 1) * np.array(own) for name, own in timed_in_turns(timed, rounds).items()}
        for name, end in ends.items():
            F = np.asarray(values(jax.tree.map(lambda *x: jnp.stack(x), *end) if isinstance(end, list) else end))
            rows.append(
                {
                    "method": case.method.name,
                    "problem": f"{case.name}, {count} starts, {jax.device_count()} device{'s' if several else ''}",
                    "stopped by": str(Test(goal=goal)),
                    "solved by": name,
                    "ms": 1e3 * median(seconds[name]),
                    "ours / it": "-" if name == "restarts" else median_ratio(seconds["restarts"], seconds[name]),
                    "evaluations": "-",
                    "F": float(F.min()),
                    "reached": f"{(F <= goal * (1 + ROUNDING)).sum()} of {len(F)}",
                    "first call, s": first.pop(name, "-"),
                }
            )
    return rows


def solve_all(name: str, call: Callable, goal: float, ends: dict, _: int) -> None:
    ends[name] = jax.block_until_ready(call(goal))


def optimistix_vmap(case: Case, starts) -> Callable:
    """Returns a function of the goal that solves from every 8th start in one program."""
    solver, data = stopping(case), case.data

    def lane(start, goal):
        return optimistix.least_squares(
            lambda params, data: case.function(params, *data),
            solver(goal, 0.0, 0.0),
            start,
            data,
            max_steps=LANE_STEPS,
            throw=False,
        ).value

    program = jax.jit(jax.vmap(lane, (0, None)))
    some = jax.tree.map(lambda x: x[:: EACH["optimistix, vmap"]], starts)
    return lambda goal: program(some, goal)


def on_one_device(count: int, rounds: int) -> list[dict]:
    """Runs `from_many_starts` in a process with one device."""
    before, os.environ["JAX_NUM_CPU_DEVICES"] = os.environ["JAX_NUM_CPU_DEVICES"], "1"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows = pool.apply(from_many_starts, (count, rounds))
    os.environ["JAX_NUM_CPU_DEVICES"] = before
    return rows


# The notes --------------------------------------------------------------------------------------------------------


def summary(rows: list[dict]) -> list[str]:
    """Says the median ratios, over the problems that both solve, and what was not reached."""
    said, families = [], {}
    for name in dict.fromkeys(row["solved by"] for row in rows if not row["solved by"].startswith(OURS)):
        who, _, how = name.partition(", ")
        family = ", ".join(filter(None, (who.split()[0], how)))
        for method in dict.fromkeys(row["method"] for row in rows if row["solved by"] == name):
            for own in (False, True):
                of = [row for row in rows if (row["method"], row["solved by"]) == (method, name)]
                of = [row["ours / it"] for row in of if row["stopped by"].startswith("own") == own]
                if not own:
                    families.setdefault(family, []).extend(of)
                if of:
                    said.append(f"{method} / {name}{', own tests' if own else ''}: {shown(of)}")
    said.append("")
    for family, of in families.items():
        said.append(f"all / {family}, by the same test: {shown(of)}; target < 1: {met(counted(of) < 1)}")
    missed = [row for row in rows if row["reached"] == "NO" and not row["solved by"].endswith(JIT)]
    return said + [
        f"did not reach it: {row['solved by']}, {row['method']} of {row['problem']}, {row['stopped by']}: "
        f"F = {row['F']:.8g}"
        for row in missed
    ]


def counted(ratios: list) -> float:
    """Returns the median of those that are numbers, nan if none is."""
    return float(np.median([r for r in ratios if r != "-"] or [np.nan]))


def shown(ratios: list) -> str:
    numbers = [r for r in ratios if r != "-"]
    among = f" ({min(numbers):.2g} to {max(numbers):.2g})" if numbers else ""
    return f"{counted(ratios):.3g}{among} over {len(numbers)} of {len(ratios)}"


def met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def summary_of_lanes(rows: list[dict]) -> list[str]:
    said = []
    for row in rows:
        if row["solved by"] != "restarts":
            line = f"restarts / {row['solved by']}, {row['problem'].rpartition(', ')[2]}, {row['stopped by']}: "
            target = f"; target <= 0.5: {met(row['ours / it'] <= 0.5)}" if "times" in row["solved by"] else ""
            said.append(f"{line}{row['ours / it']:.3g}{target}")
    return said


def main() -> None:
    options = experiments.arguments(__doc__, "results/benchmark_second_order", rounds=7, starts=256)
    few = max(1, options.rounds // 2)  # rounds, where each takes long
    make = fnn.optimizers
    cases = [*nist(), sine(1e-6, (0, 1)), waves()]
    for method in (make.bfgs(), make.lbfgs(), make.conjugate_gradient()):
        cases += smooth(method)
    cases += smooth(make.newton(), hidden=5, goal=0.35)  # Hessians of 61 rows
    rows = []
    with experiments.counted("solving", sum(len(case.starts) * len(case.tests) for case in cases) + 2) as advance:
        with np.errstate(all="ignore"):  # SciPy may try points where F overflows
            for case in cases:
                rows += solve_case(case, options.rounds, advance)
            lanes = from_many_starts(options.starts, few)
            advance("many starts")
            lanes += on_one_device(options.starts, few)
            advance("many starts on one device")
    other = (
        f"optimistix {optimistix.__version__}"
        if optimistix
        else f"optimistix is not installed, its rows are left out; {install('bench')}"
    )
    notes = [
        "ms: of a whole call, median over the rounds; ours / it: median ratio, - where one of the two ended elsewhere;",
        "evaluations: of F, for lm of the residuals; first call: with compilation.",
        "Ours / theirs, median (and range) over the problems that both solve:",
        "",
        *summary(rows),
        "",
        *summary_of_lanes(lanes),
        "",
        f"{options.rounds} rounds, {few} of many starts; SciPy {scipy.__version__}; {other}",
    ]
    experiments.write(options.out, [*rows, *lanes], notes="\n".join(notes))


if __name__ == "__main__":
    main()
