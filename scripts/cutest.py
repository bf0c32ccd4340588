#!/usr/bin/env python
"""CUTEst's unconstrained problems: how many each method solves with its default settings, and how soon.

    python scripts/cutest.py --out results/cutest
    python scripts/cutest.py --least 51 --most 10000 --large --turns 1 --out results/cutest_large

The problems are those that `sif2jax` has in JAX (Gould, Orban and Toint 2015), with --least to --most variables. Each
solver starts where CUTEst says, in 64 bits, with its own default tolerances and budget, and has exact derivatives,
SciPy's by jitted functions. A solver solves a problem if it ends within 1e-6 max(1, |F*|) of F*, the lowest value that
any of them found. In the columns "strictly", F must also have fallen to F* from its start except for a millionth of the
way (More and Wild 2009).

The performance profile (Dolan and More 2002) of a solver at tau is the share of problems that it solves at no more than
tau times the cost of the cheapest solver. Its area is that below it over log2 tau, from 1 to 2^10, at best 1. The cost
is the number of evaluations of F, with its gradient or without, plus products and matrices of the Hessian, one each; or
the seconds of a whole compiled call, the least of --turns. What compiling takes is a column of its own.

Each run is added to OUT_runs.csv when it ends; a script that is started again continues after the last. Methods for
large problems (--large) are others: those that form no matrix.
"""

import csv
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn.lab import experiments, require
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

try:
    import scipy
    from scipy.optimize import minimize as scipy_minimize
except ImportError:
    require("bench", "scipy")
    raise
try:
    import optimistix
except ImportError:
    optimistix = None

CLOSE = 1e-6  # relative distance of F from the lowest found
LONG = 2.0  # seconds; a call that takes longer is not measured again
OCTAVES = 10  # the length of a profile
OWN = 1e-8  # optimistix's tolerances, which have no default
STEPS = 4000  # optimistix's budget, which has none either

SMALL = {"newton": "trust-exact", "bfgs": "BFGS", "lbfgs": "L-BFGS-B", "conjugate_gradient": "CG"}
LARGE = {"newton_cg": "Newton-CG", "lbfgs": "L-BFGS-B", "hessian_free(curvature=hessian)": "trust-krylov"}
OPTIMISTIXS = {"bfgs": "BFGS", "lbfgs": "LBFGS", "conjugate_gradient": "NonlinearCG"}
INTEGERS = ("variables", "iterations", "evaluations", "products", "matrices")  # columns of OUT_runs.csv
REALS = ("F", "F at the start", "ms", "compiling, s")


class Case(NamedTuple):
    """A problem on vectors: value(x (n,)) -> F, and the start (n,)."""

    name: str
    value: Callable[[jax.Array], jax.Array]
    start: jax.Array


class Ended(NamedTuple):
    """Where a solver ended, its status, and what it evaluated. Products and matrices are of the Hessian."""

    x: Any
    status: str
    iterations: int
    evaluations: int
    products: int
    matrices: int


def cases(least: int, most: int) -> list[Case]:
    """Returns the unconstrained problems with so many variables, the smallest first; one for each name."""
    require("bench", "sif2jax")
    import sif2jax

    found = {}
    for problem in sif2jax.unconstrained_minimisation_problems:
        shapes = jax.tree.leaves(jax.eval_shape(lambda problem=problem: problem.y0))
        if least <= sum(leaf.size for leaf in shapes) <= most:
            start, unravel = ravel_pytree(problem.y0)

            def value(x, problem=problem, unravel=unravel):
                return jnp.asarray(problem.objective(unravel(x), problem.args)).reshape(())

            found[problem.name] = Case(problem.name, value, start.astype(float))
    return sorted(found.values(), key=lambda case: (case.start.size, case.name))


# The solvers: case -> (() -> Ended) -----------------------------------------------------------------------------------


def by_us(name: str) -> Callable:
    method = fnn.optimizers.second_order.get(name)

    def prepare(case: Case):
        problem = fnn.optimizers.problem_from(case.value)

        @jax.jit  # like optimistix's
        def solve(x):
            found = fnn.optimizers.minimize(problem, method, x, path=False)
            counts = found.counts
            return found.params, found.ended, found.steps, counts.evaluations, counts.products, counts.matrices

        def run() -> Ended:
            x, ended, *counts = jax.device_get(solve(case.start))
            return Ended(x, fnn.optimizers.second_order.STATUSES[ended], *map(int, counts))

        return run

    return prepare


def by_scipy(name: str) -> Callable:
    def prepare(case: Case):
        program = jax.jit(jax.value_and_grad(case.value))
        count = {"products": 0}

        def with_gradient(x):
            value, gradient = program(x)
            return float(value), np.asarray(gradient)

        second_derivatives = {}
        if name == "trust-exact":
            hessian = jax.jit(jax.hessian(case.value))
            second_derivatives = {"hess": lambda x: np.asarray(hessian(x))}
        elif name in ("Newton-CG", "trust-krylov"):
            product = jax.jit(lambda x, v: jax.jvp(jax.grad(case.value), (x,), (v,))[1])

            def multiply(x, v):
                count["products"] += 1
                return np.asarray(product(x, v))

            second_derivatives = {"hessp": multiply}

        def run() -> Ended:
            count["products"] = 0
            try:
                found = scipy_minimize(
                    with_gradient, np.asarray(case.start), method=name, jac=True, **second_derivatives
                )
            except (ValueError, np.linalg.LinAlgError) as error:  # trust-exact fails where the Hessian is nan
                return Ended(np.full(case.start.size, np.nan), type(error).__name__, 0, 0, count["products"], 0)
            return Ended(
                found.x,
                f"{found.status}",
                int(found.nit),
                int(found.nfev),
                count["products"],
                int(found.get("nhev", 0)) if name == "trust-exact" else 0,
            )

        return run

    return prepare


def by_optimistix(name: str) -> Callable:
    def prepare(case: Case):
        solver = getattr(optimistix, name)(rtol=OWN, atol=OWN)

        @jax.jit
        def solve(x):
            found = optimistix.minimise(lambda x, args: case.value(x), solver, x, max_steps=STEPS, throw=False)
            return found.value, found.stats["num_steps"], found.result == optimistix.RESULTS.successful

        def run() -> Ended:
            x, steps, good = solve(case.start)
            steps = int(steps)  # each evaluates F once
            return Ended(x, "converged" if good else "failed", steps, steps, 0, 0)

        return run

    return prepare


def solvers(large: bool) -> dict[str, Callable]:
    """Returns solvers by name: "newton" is ours, "SciPy BFGS" SciPy's."""
    pairs = LARGE if large else SMALL
    found = {name: by_us(name) for name in pairs}
    found |= {f"SciPy {name}": by_scipy(name) for name in dict.fromkeys(pairs.values())}
    if optimistix:
        found |= {f"optimistix {other}": by_optimistix(other) for ours, other in OPTIMISTIXS.items() if ours in pairs}
    return found


# What is measured -----------------------------------------------------------------------------------------------------


def measure(case: Case, name: str, prepare: Callable, turns: int) -> dict:
    """Makes a row of OUT_runs.csv."""
    run, value = prepare(case), jax.jit(case.value)
    with np.errstate(all="ignore"), warnings.catch_warnings():  # some try points where F overflows
        warnings.simplefilter("ignore")
        seconds = []
        for _ in range(1 + turns):
            began = time.perf_counter()
            ended = run()
            seconds.append(time.perf_counter() - began)
            if sum(seconds[1:]) > LONG:
                break
    least = min(seconds[1:])
    return {
        "problem": case.name,
        "variables": case.start.size,
        "solver": name,
        "F": float(value(jnp.asarray(ended.x))),
        "F at the start": float(value(case.start)),
        "status": ended.status,
        "iterations": ended.iterations,
        "evaluations": ended.evaluations,
        "products": ended.products,
        "matrices": ended.matrices,
        "ms": 1e3 * least,
        "compiling, s": max(seconds[0] - least, 0.0),
    }


def read_rows(path: Path) -> list[dict]:
    """Returns the rows of an earlier run, if there are any."""
    if not path.exists():
        return []
    read = dict.fromkeys(INTEGERS, int) | dict.fromkeys(REALS, float)
    with path.open(encoding="utf-8") as file:
        return [{key: read.get(key, str)(x) for key, x in row.items()} for row in csv.DictReader(file)]


def append_row(path: Path, row: dict) -> None:
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


class Judged(NamedTuple):
    """By solver and problem (S, N): whether it was solved, whether strictly, and the cost."""

    solved: np.ndarray
    strictly: np.ndarray
    evaluations: np.ndarray
    ms: np.ndarray


def judge(rows: list[dict], names: list[str]) -> Judged:
    """Judges the problems that every solver has run on."""
    by = {(row["problem"], row["solver"]): row for row in rows}
    problems = [p for p in dict.fromkeys(row["problem"] for row in rows) if all((p, name) in by for name in names)]
    table = [[by[problem, name] for problem in problems] for name in names]
    F = np.array([[row["F"] for row in line] for line in table])
    F = np.where(np.isfinite(F), F, np.inf)
    best = F.min(axis=0)
    first = np.array([row["F at the start"] for row in table[0]])
    evaluations = np.array([[row["evaluations"] + row["products"] + row["matrices"] for row in line] for line in table])
    ms = np.array([[row["ms"] for row in line] for line in table])
    with np.errstate(invalid="ignore"):  # in problems that nobody solves
        above = F - best
        return Judged(above <= CLOSE * np.maximum(1, np.abs(best)), above <= CLOSE * (first - best), evaluations, ms)


def profile(cost: np.ndarray, solved: np.ndarray) -> np.ndarray:
    """Returns log2 of the cost over the cheapest solver's (S, N), sorted; infinite where a problem is not solved."""
    cost = np.where(solved, np.maximum(cost, np.finfo(float).tiny), np.inf)
    least = cost.min(axis=0)
    with np.errstate(invalid="ignore"):  # in problems that nobody solves
        ratio = np.where(np.isfinite(cost), np.log2(cost / least), np.inf)
    return np.sort(ratio, axis=1)


def areas(ratios: np.ndarray) -> np.ndarray:
    """Returns the areas below the profiles (S, N), from tau = 1 to 2^OCTAVES, as shares."""
    return np.clip(OCTAVES - ratios, 0, None).mean(axis=1) / OCTAVES


def draw(found: Judged, names: list[str]):
    """Draws both profiles of every solver: ours solid, SciPy's dashed, optimistix's dotted."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
        for axis, cost, what in zip(
            axes, (found.evaluations, found.ms), ("evaluations", "time, compiled"), strict=True
        ):
            for name, ratios in zip(names, profile(cost, found.solved), strict=True):
                finite = np.append(np.minimum(ratios[np.isfinite(ratios)], OCTAVES), OCTAVES)
                share = np.append(np.arange(1, finite.size), finite.size - 1) / len(ratios)
                line = "--" if name.startswith("SciPy") else ":" if name.startswith("optimistix") else "-"
                axis.step(finite, share, line, where="post", label=name)
            axis.set(xlabel=f"log2 of {what} / the least", xlim=(0, OCTAVES), ylim=(0, 1))
        axes[0].set_ylabel("share of problems solved")
        axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def summary(rows: list[dict], found: Judged, names: list[str]) -> list[dict]:
    """Makes a row for each solver."""
    by_evaluations, by_time = areas(profile(found.evaluations, found.solved)), areas(profile(found.ms, found.solved))
    table = []
    for k, name in enumerate(names):
        own = [row for row in rows if row["solver"] == name]
        table.append(
            {
                "solver": name,
                "problems": found.solved.shape[1],
                "solved": int(found.solved[k].sum()),
                "strictly": int(found.strictly[k].sum()),
                "area, evaluations": float(by_evaluations[k]),
                "area, time": float(by_time[k]),
                "median evaluations": float(np.median(found.evaluations[k])),
                "median ms": float(np.median(found.ms[k])),
                "median compiling, s": float(np.median([row["compiling, s"] for row in own])),
            }
        )
    return table


def notes(rows: list[dict], found: Judged, names: list[str]) -> str:
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    sizes = [row["variables"] for row in rows]
    lines = [f"{len(problems)} problems of {min(sizes)} to {max(sizes)} variables; SciPy {scipy.__version__}"]
    for name, other in (SMALL | LARGE).items():
        if name in names and f"SciPy {other}" in names:
            us, them = names.index(name), names.index(f"SciPy {other}")
            both = found.solved[us] & found.solved[them]
            if both.any():
                evaluations, ms = (
                    np.median(cost[us][both] / cost[them][both]) for cost in (found.evaluations, found.ms)
                )
                lines.append(
                    f"{name} / SciPy {other}, of the {both.sum()} that both solve, medians: evaluations "
                    f"{evaluations:.3g}, time {ms:.3g}"
                )
    return "\n".join(lines)


def main() -> None:
    experiments.start(x64=True)
    parser = experiments.parser(__doc__, "results/cutest", least=1, most=50, turns=3)
    parser.add_argument("--large", action="store_true", help="methods that form no matrix")
    parser.add_argument("--problems", help="such as BEALE,ROSENBR; default all of these sizes")
    parser.add_argument("--solvers", help='such as "newton,SciPy BFGS"; default all')
    options = parser.parse_args()
    path, available = options.out.with_name(f"{options.out.stem}_runs.csv"), solvers(options.large)
    names = options.solvers.split(",") if options.solvers else list(available)
    unknown = [name for name in names if name not in available]
    if unknown:
        parser.error(f"--solvers: expected some of {', '.join(available)}, got {unknown[0]}")
    rows = read_rows(path)
    done = {(row["problem"], row["solver"]) for row in rows}
    chosen = options.problems.split(",") if options.problems else None
    wanted = [case for case in cases(options.least, options.most) if chosen is None or case.name in chosen]
    if not wanted:
        parser.error("no problem of that name and size")
    with progress("problems", len(wanted)) as advance:
        for number, case in enumerate(wanted, 1):
            for name in names:
                if (case.name, name) not in done:
                    row = measure(case, name, available[name], options.turns)
                    append_row(path, row)
                    rows.append(row)
            jax.clear_caches()
            advance(number, case.name)
    rows = [row for row in rows if row["problem"] in {case.name for case in wanted}]
    found = judge(rows, names)
    experiments.write(options.out, summary(rows, found, names), draw(found, names), notes(rows, found, names))


if __name__ == "__main__":
    main()
