#!/usr/bin/env python
"""Levenberg-Marquardt on NIST's certified regressions: how many digits, and at what cost, next to SciPy's MINPACK.

    python scripts/nist_strd.py --steps 2000 --out results/nist_strd

Twelve data sets of the Statistical Reference Datasets (tests/data/nist_strd), each from NIST's two starts: the first
far away, the second near. Digits are those of the parameter that has fewest, by the log of its relative error from the
certified value, at most the 11 that NIST certifies. Both have the exact Jacobian in 64 bits. Ours has no argument but
the problem and the start. MINPACK runs twice, with its tolerances at 15 digits and at SciPy's default, 1e-8, at which
it stops short of 6 digits on some problems. From the first start of BoxBOD it ends on a plateau, F = 9771.5, with b2
growing without bound. `curve_fit` solves each problem too, and its standard errors are compared with NIST's.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments, require

try:
    import scipy
    from scipy.optimize import least_squares
except ImportError:
    require("bench", "scipy")
    raise

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "nist_strd"
CERTIFIED = 11  # digits that NIST gives
TOLERANCES = {"SciPy": 1e-15, "SciPy, 1e-8": 1e-8}  # relative; MINPACK takes none below the machine epsilon


class NistProblem(NamedTuple):
    """A regression of N observations on n parameters: y = model(b, x) + e.

    x, y (N,); starts (2, n); certified (n,), their standard deviations, and the residual sum of squares; level: NIST's
    lower, average or higher difficulty.
    """

    name: str
    model: Callable[[jax.Array, jax.Array], jax.Array]
    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    certified: np.ndarray
    deviations: np.ndarray
    residual_sum: float
    level: str

    def digits(self, b) -> float:
        """Returns the digits of the worst parameter: minus the log of its relative error, 0 to 11."""
        with np.errstate(divide="ignore"):  # all digits are right
            each = -np.log10(np.abs(np.asarray(b) - self.certified) / np.abs(self.certified))
        return float(np.clip(np.nan_to_num(each, nan=0.0), 0, CERTIFIED).min())


def enso(b, x):
    """A mean, the year's cycle, and two cycles of unknown length: b4 and b7 months."""

    def cycle(period, cosine, sine):
        return cosine * jnp.cos(2 * jnp.pi * x / period) + sine * jnp.sin(2 * jnp.pi * x / period)

    return b[0] + cycle(12.0, b[1], b[2]) + cycle(b[3], b[4], b[5]) + cycle(b[6], b[7], b[8])


def gauss(b, x):
    """Two Gaussians on an exponential baseline."""
    peaks = b[2] * jnp.exp(-((x - b[3]) ** 2) / b[4] ** 2) + b[5] * jnp.exp(-((x - b[6]) ** 2) / b[7] ** 2)
    return b[0] * jnp.exp(-b[1] * x) + peaks


def kirby(b, x):
    return (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2)


def lanczos(b, x):
    return b[0] * jnp.exp(-b[1] * x) + b[2] * jnp.exp(-b[3] * x) + b[4] * jnp.exp(-b[5] * x)


def thurber(b, x):
    return (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def saturation(b, x):
    return b[0] * (1 - jnp.exp(-b[1] * x))


MODELS = {
    "BoxBOD": saturation,
    "Chwirut2": lambda b, x: jnp.exp(-b[0] * x) / (b[1] + b[2] * x),
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": enso,
    "Gauss1": gauss,
    "Kirby2": kirby,
    "Lanczos3": lanczos,
    "MGH17": lambda b, x: b[0] + b[1] * jnp.exp(-x * b[3]) + b[2] * jnp.exp(-x * b[4]),
    "Misra1a": saturation,
    "Rat42": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)),
    "Roszman1": lambda b, x: b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / jnp.pi,
    "Thurber": thurber,
}


def table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file, without lines that begin with #."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def problems(folder: Path = FOLDER) -> tuple[NistProblem, ...]:
    """Returns all problems of MODELS, from the tables in `folder`, in float64."""
    certified, built = table(folder / "certified.csv"), []
    sums = {row["dataset"]: row for row in table(folder / "residual_sums.csv")}
    for name, model in MODELS.items():
        data, own = table(folder / f"{name}.csv"), [row for row in certified if row["dataset"] == name]
        y, x = (np.array([float(row[key]) for row in data]) for key in ("y", "x"))
        columns = ("start1", "start2", "certified", "standard_deviation")
        first, second, values, deviations = (np.array([float(row[key]) for row in own]) for key in columns)
        residual_sum, level = float(sums[name]["residual_sum_of_squares"]), sums[name]["level"]
        built.append(NistProblem(name, model, x, y, np.stack([first, second]), values, deviations, residual_sum, level))
    return tuple(built)


def ours(problem: NistProblem, start, steps: int) -> dict:
    """Solves by functional_nn's Levenberg-Marquardt. Returns digits, how it ended, and its cost."""

    def residuals(b, x, y):
        return problem.model(b, x) - y

    solution = fnn.optimizers.minimize(
        fnn.optimizers.problem_from(residuals=residuals, data=(jnp.asarray(problem.x), jnp.asarray(problem.y))),
        "levenberg_marquardt",
        jnp.asarray(start),
        steps=steps,
    )
    return {
        "digits": problem.digits(solution.params),
        "status": solution.status,
        "iterations": int(solution.steps),
        "residuals": int(solution.counts.values),
        "Jacobians": int(solution.counts.matrices),
    }


def curve(problem: NistProblem, start) -> dict:
    """Returns the digits of `curve_fit`'s parameters and of its standard errors."""
    found = fnn.optimizers.curve_fit(lambda x, *b: problem.model(jnp.stack(b), x), problem.x, problem.y, start)
    errors = problem._replace(certified=problem.deviations).digits(found.standard_errors)
    return {"digits, curve_fit": problem.digits(found.params), "digits of standard errors": errors}


def scipys(problem: NistProblem, start, steps: int, tolerance: float) -> dict:
    """Solves by SciPy's MINPACK, lmder. It evaluates one Jacobian an iteration, when the point has moved."""

    def residuals(b):
        return problem.model(b, problem.x) - problem.y

    with np.errstate(all="ignore"):  # it may try points where the model overflows
        solution = least_squares(
            jax.jit(residuals),
            start,
            jax.jit(jax.jacfwd(residuals)),
            method="lm",
            x_scale="jac",
            ftol=tolerance,
            xtol=tolerance,
            gtol=tolerance,
            max_nfev=steps,
        )
    status = {0: "too many", 1: "gtol", 2: "ftol", 3: "xtol", 4: "both"}.get(solution.status, "failed")
    return {
        "digits": problem.digits(solution.x),
        "status": status,
        "iterations": int(solution.njev),
        "residuals": int(solution.nfev),
        "Jacobians": int(solution.njev),
    }


def notes(rows: list[dict]) -> str:
    lines = []
    for who in ("ours", *TOLERANCES):
        digits, levels = [row[f"digits, {who}"] for row in rows], {}
        for row in rows:
            levels.setdefault(row["level"], []).append(row[f"digits, {who}"])
        by_level = "; ".join(f"{level} {sum(d >= 6 for d in of)} of {len(of)}" for level, of in levels.items())
        spent = sum(row[f"residuals, {who}"] for row in rows), sum(row[f"Jacobians, {who}"] for row in rows)
        lines.append(
            f"{who}: 6 digits or more in {sum(d >= 6 for d in digits)} of {len(rows)} runs ({by_level}), median "
            f"{np.median(digits):.1f}; {spent[0]} residual and {spent[1]} Jacobian evaluations in all"
        )
    for who in TOLERANCES:
        both = [row for row in rows if min(row["digits, ours"], row[f"digits, {who}"]) >= 6]
        if both:
            ratios = [row["residuals, ours"] / row[f"residuals, {who}"] for row in both]
            lines.append(
                f"residual evaluations, ours / {who}, median of the {len(both)} in which both have 6 digits: "
                f"{np.median(ratios):.3g}"
            )
    least = {key: min(row[key] for row in rows) for key in ("digits, curve_fit", "digits of standard errors")}
    lines.append("least " + ", ".join(f"{key}: {value:.1f}" for key, value in least.items()))
    lines.append(f"SciPy {scipy.__version__}: least_squares, method lm, x_scale jac, tolerances 1e-15 and 1e-8")
    return "\n".join(lines)


def main() -> None:
    experiments.start(x64=True)
    options = experiments.arguments(__doc__, "results/nist_strd", steps=2000)
    rows = []
    for problem in problems():
        for k, start in enumerate(problem.starts):
            found = {"ours": ours(problem, start, options.steps)}
            found |= {who: scipys(problem, start, options.steps, tolerance) for who, tolerance in TOLERANCES.items()}
            columns = {f"{what}, {who}": run[what] for what in found["ours"] for who, run in found.items()}
            row = {"data set": problem.name, "level": problem.level, "start": k + 1} | columns
            rows.append(row | curve(problem, start))
    experiments.write(options.out, rows, notes=notes(rows))


if __name__ == "__main__":
    main()
