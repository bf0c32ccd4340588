#!/usr/bin/env python
"""CUTEst's unconstrained problems: how many each method solves with its default settings, and how soon.

    python scripts/cutest.py --most 50 --out results/cutest
    python scripts/cutest.py --least 51 --most 10000 --large --out results/cutest_large

The problems are those that `sif2jax` has written in JAX (Gould, Orban and Toint 2015). Each solver begins where CUTEst
says, in 64 bits, with its own default tolerances and budget, and has exact derivatives, SciPy's by jitted functions. A
problem is solved by whoever ends within 1e-6 max(1, |F*|) of F*, the lowest value that any solver here found. The
performance profile (Dolan and More 2002) of a solver at tau is the share of problems that it solves at a cost of at
most tau times the cheapest solver's; its area is that below the profile over log2 tau, from 1 to 2^10, of 1 at best.
Costs are evaluations of F, with its gradient or without (of large problems products with the Hessian as well, each as
one), and seconds of a whole call that is compiled already, the least of `turns`. What compiling takes is a column of
its own: the first call less a later one.

Rows are written as they come. Begun again, the script goes on after the last; --anew drops what is there.
"""

import argparse
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

jax.config.update("jax_enable_x64", True)  # before the first array: all solvers are compared in it

import functional_nn as fnn  # noqa: E402
from functional_nn.lab import experiments, plots, require  # noqa: E402

require("bench", "scipy", "sif2jax")

import scipy  # noqa: E402
import sif2jax  # noqa: E402
from scipy.optimize import minimize as scipy_minimize  # noqa: E402

try:
    import optimistix
except ImportError:
    optimistix = None

CLOSE = 1e-6  # of F, to the lowest found
LONG = 2.0  # seconds of a call after which it is not measured again
OCTAVES = 10  # of a profile
OWN = 1e-8  # of optimistix's tolerances, which have no default
STEPS = 4000  # of optimistix, likewise

SMALL = {
    "newton": "trust-exact", "bfgs": "BFGS", "lbfgs": "L-BFGS-B", "conjugate_gradient": "CG"
}  # fmt: skip
LARGE = {"lbfgs": "L-BFGS-B"}
OPTIMISTIXS = {"bfgs": "BFGS", "lbfgs": "LBFGS", "conjugate_gradient": "NonlinearCG"}


class Case(NamedTuple):
    """A problem on vectors: value(x (n,)) -> F, and the start (n,)."""

    name: str
    value: Callable[[jax.Array], jax.Array]
    start: jax.Array


class Ended(NamedTuple):
    """Where a solver ended, in its own words too, and what it asked for; products and matrices are with the Hessian."""

    x: Any
    status: str
    iterations: int
    evaluations: int
    products: int
    matrices: int


def cases(least: int, most: int) -> list[Case]:
    """The unconstrained problems of so many variables, the smallest first; one of a name."""
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

    def made(case: Case):
        problem = fnn.optimizers.problem_from(case.value)

        def run() -> Ended:
            found = fnn.optimizers.minimize(problem, method, case.start)
            asked = found.counts
            return Ended(
                found.params, found.status, int(found.steps), int(asked.evaluations), int(asked.products),
                int(asked.matrices),
            )  # fmt: skip

        return run

    return made


def by_scipy(name: str) -> Callable:
    def made(case: Case):
        program = jax.jit(jax.value_and_grad(case.value))
        count = {"products": 0}

        def with_gradient(x):
            value, gradient = program(x)
            return float(value), np.asarray(gradient)

        asks = {}
        if name == "trust-exact":
            hessian = jax.jit(jax.hessian(case.value))
            asks = {"hess": lambda x: np.asarray(hessian(x))}
        elif name in ("Newton-CG", "trust-krylov"):
            product = jax.jit(lambda x, v: jax.jvp(jax.grad(case.value), (x,), (v,))[1])

            def multiply(x, v):
                count["products"] += 1
                return np.asarray(product(x, v))

            asks = {"hessp": multiply}

        def run() -> Ended:
            count["products"] = 0
            try:
                found = scipy_minimize(with_gradient, np.asarray(case.start), method=name, jac=True, **asks)
            except (ValueError, np.linalg.LinAlgError) as error:  # trust-exact does not survive a Hessian that is nan
                return Ended(np.full(case.start.size, np.nan), type(error).__name__, 0, 0, count["products"], 0)
            return Ended(
                found.x, f"{found.status}", int(found.nit), int(found.nfev), count["products"],
                int(found.get("nhev", 0)) if name == "trust-exact" else 0,
            )  # fmt: skip

        return run

    return made


def by_optimistix(name: str) -> Callable:
    def made(case: Case):
        solver = getattr(optimistix, name)(rtol=OWN, atol=OWN)

        @jax.jit
        def solve(x):
            found = optimistix.minimise(lambda x, args: case.value(x), solver, x, max_steps=STEPS, throw=False)
            return found.value, found.stats["num_steps"], found.result == optimistix.RESULTS.successful

        def run() -> Ended:
            x, steps, good = solve(case.start)
            steps = int(steps)  # of F one each
            return Ended(x, "converged" if good else "failed", steps, steps, 0, 0)

        return run

    return made


def solvers(large: bool) -> dict[str, Callable]:
    """By name: "newton" is ours, "SciPy BFGS" SciPy's."""
    pairs = LARGE if large else SMALL
    found = {name: by_us(name) for name in pairs}
    found |= {f"SciPy {name}": by_scipy(name) for name in dict.fromkeys(pairs.values())}
    if optimistix:
        found |= {f"optimistix {other}": by_optimistix(other) for ours, other in OPTIMISTIXS.items() if ours in pairs}
    return found


# What is measured -----------------------------------------------------------------------------------------------------


def measured(case: Case, name: str, made: Callable, turns: int) -> dict:
    """One row."""
    run = made(case)
    value = jax.jit(case.value)
    with np.errstate(all="ignore"), warnings.catch_warnings():  # some try points where F overflows
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        ended = run()
        first = time.perf_counter() - began
        seconds = []
        for _ in range(turns):
            began = time.perf_counter()
            ended = run()
            seconds.append(time.perf_counter() - began)
            if sum(seconds) > LONG:
                break
    F = float(value(jnp.asarray(ended.x)))
    asked = ended._asdict() | {"x": None}
    del asked["x"]
    return {"problem": case.name, "variables": case.start.size, "solver": name, "F": F} | asked | {
        "ms": 1e3 * min(seconds), "compiling, s": max(first - min(seconds), 0.0)
    }  # fmt: skip


def resumed(path: Path) -> list[dict]:
    """The rows that are there, numbers as numbers."""
    if not path.exists():
        return []
    whole = ("variables", "iterations", "evaluations", "products", "matrices")
    with path.open(encoding="utf-8") as file:
        return [
            {key: int(x) if key in whole else float(x) if key in ("F", "ms", "compiling, s") else x
             for key, x in row.items()}
            for row in csv.DictReader(file)
        ]  # fmt: skip


def added(path: Path, row: dict) -> None:
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--least", type=int, default=1)
    parser.add_argument("--most", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--solvers", default="")
    parser.add_argument("--problems", default="")
    parser.add_argument("--out", type=Path, default=Path("results/cutest"))
    options = parser.parse_args()
    path = options.out.with_suffix(".csv")
    rows = resumed(path)
    done = {(row["problem"], row["solver"]) for row in rows}
    of = solvers(options.large)
    names = options.solvers.split(",") if options.solvers else list(of)
    for case in cases(options.least, options.most):
        if options.problems and case.name not in options.problems.split(","):
            continue
        for name in names:
            if (case.name, name) in done:
                continue
            row = measured(case, name, of[name], options.turns)
            added(path, row)
            print(
                row["problem"],
                row["variables"],
                name,
                row["F"],
                row["status"],
                row["evaluations"],
                f"{row['ms']:.3g} ms",
                f"{row['compiling, s']:.2f} s",
                flush=True,
            )
        jax.clear_caches()


if __name__ == "__main__":
    main()
