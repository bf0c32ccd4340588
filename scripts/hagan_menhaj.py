#!/usr/bin/env python
"""Hagan and Menhaj (1994): Marquardt's algorithm next to conjugate gradients and batch BP with a variable rate.

    python scripts/hagan_menhaj.py --starts 9 --epochs 300000

The claim under test: on networks of up to a few hundred weights LM takes several to tens of times fewer flops to the
goal than conjugate gradients, and these fewer than BP. The paper's flops table is not available here, and nothing is
quoted from it. Its sizes of networks and data, the sine and the first goal are as remembered; the rest is chosen here:
tanh hidden layers (Nguyen and Widrow's weights), a linear output (weights from U(-0.5, 0.5), bias 0), inputs on [-1,
1], and

    sine       1-15-1   40 points    t = 1/2 + 1/4 sin(3 pi x); sum of squares 0.02, and once more a hundredth of that
    square     1-15-1   40 points    t = 1 where |x| < 1/2, else 0; 0.02
    sinc       2-15-1   17 x 17      t = sinc(5 x1) sinc(5 x2), sinc(u) = sin(u) / u; 0.02
    4 inputs   4-50-1   400 uniform  t = sin(2 pi x1) x2^2 x3^3 x4^4 exp(-x1 - x2 - x3 - x4); 0.5 (sum of t^2: 8.2)

LM is the paper's: mu starts at 0.01, times 10 where a step is refused, a tenth where it is made, solved for the
parameters. CG is Fletcher-Reeves by golden section to a hundredth of the step, restarted every P steps and where
gradients are far from orthogonal. Next to it is Polak-Ribiere by a Wolfe search, which the paper did not have. Flops
are XLA's own count of the compiled forward pass, gradient and Jacobian with J'J, with tanh as one, times the number of
evaluations of each; and for LM's equations P^3 / 3 + 2 P^2, which XLA does not see. Sums and inner products of vectors
outside of these are left out.
"""

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # its threads spin while they wait, which spoils times on a busy machine

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, SKY_BLUE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

REPEATS, ENOUGH = 5, 0.3  # a run is timed that often, or until these seconds are spent; the least counts


class Task(NamedTuple):
    """A network (R, hidden, 1), its data x (Q, R), t (Q, 1), and the goal, a sum of squares."""

    sizes: tuple[int, int, int]
    x: Array
    t: Array
    goal: float

    @property
    def network(self):
        return fnn.multilayer(self.sizes, ("tanh", "linear"), initializer=("nguyen_widrow", "uniform(0.5)"))

    @property
    def problem(self):
        return fnn.training.problem(self.network, "sum_square_error", self.x, self.t)


def tasks() -> dict[str, Task]:
    line = jnp.linspace(-1, 1, 40)[:, None]
    wave = 0.5 + 0.25 * jnp.sin(3 * jnp.pi * line)
    square = jnp.where(jnp.abs(line) < 0.5, 1.0, 0.0)
    grid = jnp.stack(jnp.meshgrid(*2 * [jnp.linspace(-1, 1, 17)]), axis=-1).reshape(-1, 2)
    sinc = jnp.prod(jnp.sinc(5 * grid / jnp.pi), axis=1, keepdims=True)  # NumPy's is sin(pi u) / (pi u)
    four = jax.random.uniform(jax.random.key(99), (400, 4), minval=-1, maxval=1)
    product = jnp.sin(2 * jnp.pi * four[:, 0]) * four[:, 1] ** 2 * four[:, 2] ** 3 * four[:, 3] ** 4
    product = (product * jnp.exp(-jnp.sum(four, axis=1)))[:, None]
    return {
        "sine": Task((1, 15, 1), line, wave, 0.02),
        "sine, a hundredth": Task((1, 15, 1), line, wave, 0.0002),
        "square": Task((1, 15, 1), line, square, 0.02),
        "sinc": Task((2, 15, 1), grid, sinc, 0.02),
        "4 inputs": Task((4, 50, 1), four, product, 0.5),
    }


class Trained(NamedTuple):
    """A run: F after each step (steps,), evaluations of anything until then (steps,), and the number of steps."""

    errors: Array
    passes: Array
    steps: Array


def by_library(method) -> Callable[..., Trained]:
    def train(problem, params, steps: int, goal: float) -> Trained:
        found = fnn.optimizers.minimize(problem, method, params, steps=steps, goal=goal)
        return Trained(found.path.value, found.path.passes, found.steps)

    return train


class Prices(NamedTuple):
    """Flops of F; of F with its gradient; of r, J, J'r and J'J; and of solving LM's equations."""

    value: float
    gradient: float
    matrix: float
    solution: float


def prices(task: Task) -> Prices:
    problem, params = task.problem, task.network.init(jax.random.key(0))

    def matrix(params):
        r, J = problem.functions.jacobian(params, problem.data)
        return r, r @ J, J.T @ J

    def flops(function) -> float:
        counted = jax.jit(function).lower(params).compile().cost_analysis()
        return counted["flops"] + counted.get("transcendentals", 0.0)

    P = ravel_pytree(params)[0].size
    return Prices(flops(problem.value), flops(problem.value_and_gradient), flops(matrix), P**3 / 3 + 2 * P**2)


class Method(NamedTuple):
    """A method: train(problem, params, steps, goal); the most steps; flops(prices, steps k, passes until then)."""

    train: Callable[..., Trained]
    most: int
    flops: Callable[[Prices, np.ndarray, np.ndarray], np.ndarray]
    color: str


VARIABLE = fnn.optimizers.variable_learning_rate()  # its defaults are Vogl et al.'s, 1988
LM, CG, BP = "LM", "CG (FR, golden section)", "BP (variable rate)"
METHODS = {
    LM: Method(  # two passes at the start are one Jacobian; then F, and a Jacobian where the step is made
        by_library(
            fnn.optimizers.levenberg_marquardt(mu=0.01, rule="factor", increase=10, decrease=0.1, space="parameters")
        ),
        1000,
        lambda price, k, passes: k * (price.value + price.solution) + (passes - k - 1) * price.matrix,
        VERMILION,
    ),
    CG: Method(  # a gradient at the start and after each search, which evaluates F alone
        by_library(fnn.optimizers.conjugate_gradient("fletcher_reeves", "gradient", "golden_section(tolerance=0.01)")),
        5000,
        lambda price, k, passes: (passes - k - 1) * price.value + (k + 1) * price.gradient,
        BLUE,
    ),
    "CG (PR+, Wolfe)": Method(
        by_library(fnn.optimizers.conjugate_gradient("polak_ribiere_plus", "never")),
        5000,
        lambda price, k, passes: passes * price.gradient,
        SKY_BLUE,
    ),
    BP: Method(
        by_library(VARIABLE),
        2**62,
        lambda price, k, passes: passes * price.gradient,
        GREEN,
    ),
}


class Run(NamedTuple):
    """A run from one start: errors and flops after each step (steps,), all passes, seconds, whether the goal was
    missed.
    """

    errors: np.ndarray
    flops: np.ndarray
    passes: int
    seconds: float
    missed: bool


def measure(task: Task, method: Method, price: Prices, starts: list, epochs: int) -> list[Run]:
    problem, most, runs = task.problem, min(method.most, epochs), []
    train = jax.jit(lambda problem, params: method.train(problem, params, most, task.goal))
    train = train.lower(problem, starts[0]).compile()
    for params in starts:
        seconds = []
        while len(seconds) < REPEATS and sum(seconds) < ENOUGH:
            began = time.perf_counter()
            found = jax.block_until_ready(train(problem, params))
            seconds.append(time.perf_counter() - began)
        made = int(found.steps)
        errors, passes = np.asarray(found.errors)[:made], np.asarray(found.passes)[:made]
        flops = method.flops(price, np.arange(1, made + 1), passes)
        runs.append(Run(errors, flops, int(passes[-1]), min(seconds), not errors[-1] <= task.goal))
    return runs


def quartiles(name: str, values) -> dict[str, float]:
    low, middle, high = np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75))
    return {name: middle, f"{name} 25 %": low, f"{name} 75 %": high}


def row(problem: str, method: str, runs: list[Run], lm: list[Run]) -> dict:
    """Makes a row of medians and quartiles over the starts. A run that missed its goal counts with what it spent."""
    missed = sum(run.missed for run in runs)
    return {
        "problem": problem,
        "method": method,
        "missed": f"{missed} of {len(runs)}",
        **quartiles("epochs", [len(run.errors) for run in runs]),
        "passes": float(np.median([run.passes for run in runs])),
        "Mflop": float(np.median([run.flops[-1] for run in runs])) / 1e6,
        "ms": 1e3 * float(np.median([run.seconds for run in runs])),
        "us/epoch": 1e6 * float(np.median([run.seconds / len(run.errors) for run in runs])),
        "bound": ">=" if 2 * missed >= len(runs) else "",
        **quartiles("flops/LM", [run.flops[-1] / ours.flops[-1] for run, ours in zip(runs, lm, strict=True)]),
        **quartiles("time/LM", [run.seconds / ours.seconds for run, ours in zip(runs, lm, strict=True)]),
    }


def draw(found: dict[str, dict[str, list[Run]]], goals: dict[str, float]):
    """Draws error against epochs and against flops: every start, and the one of median flops in bold."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, len(found), figsize=(3.5 * len(found), 6.6), layout="constrained")
        for column, (problem, by_method) in zip(axes.T, found.items(), strict=True):
            for name, runs in by_method.items():
                middle = np.argsort([run.flops[-1] for run in runs])[len(runs) // 2]
                for place, run in enumerate(runs):
                    shown = np.unique(np.geomspace(1, len(run.errors), 400).astype(int)) - 1
                    bold = {"lw": 2, "zorder": 3, "label": name} if place == middle else {"lw": 0.6, "alpha": 0.45}
                    for axis, x in zip(column, (np.arange(1, len(run.errors) + 1), run.flops / 1e6), strict=True):
                        axis.plot(x[shown], run.errors[shown], color=METHODS[name].color, **bold)
                        axis.plot(x[-1], run.errors[-1], "x" if run.missed else "o", ms=4, color=METHODS[name].color)
            for axis, label in zip(column, ("epochs", "Mflop"), strict=True):
                axis.axhline(goals[problem], color="grey", linestyle=":")
                axis.set(xscale="log", yscale="log", xlabel=label)
            column[0].set_title(problem)
        for axis in axes[:, 0]:
            axis.set_ylabel("sum of squared errors")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS))
    return figure


CHOSEN = f"""Medians over the starts, which are the same for all methods; 25 %, 75 %: quartiles; ratios start by start.
A run that missed its goal within its budget (LM {METHODS[LM].most} steps, CG {METHODS[CG].most}, BP --epochs) counts
with what it spent; >=: half of the runs or more did. epochs: steps tried; passes: evaluations of F, its gradient or its
Jacobian, in all. Times: compiled, the least of up to {REPEATS} runs of each start, LAPACK with one thread; epochs and
flops come out the same again, times as the machine is busy or not. Flops: XLA's count of the compiled pieces, and
P^3 / 3 + 2 P^2 for LM's equations.
Chosen here, as the paper's are not certain: activations, initial weights, all goals but the first, the shapes of square
wave and sinc, the function of four inputs, all inputs' ranges; CG's beta, restarts and search; BP begins with the rate
{VARIABLE.constants["learning_rate"]} and the momentum {VARIABLE.constants["decay"]}.
The paper's flops table is not available here: nothing is quoted from it."""


def verdict(rows: list[dict]) -> str:
    """Says in how many problems the claimed order was measured, and by how much."""
    problems, says = list(dict.fromkeys(r["problem"] for r in rows)), []
    for sense in ("flops", "time"):
        ratio = {(r["problem"], r["method"]): r[f"{sense}/LM"] for r in rows}
        holds = [1 < ratio[problem, CG] < ratio[problem, BP] for problem in problems]
        spans = []
        for method in METHODS:
            each = [ratio[problem, method] for problem in problems]
            if method != LM:
                spans.append(f"{method} {min(each):.3g} to {max(each):.3g}")
        says.append(f"in {sense} it holds in {sum(holds)} of {len(problems)} (times LM's: {'; '.join(spans)})")
    return f"The claimed order is {LM}, then {CG}, then {BP}:\n" + ";\n".join(says) + "."


def notes(rows: list[dict], price: dict[str, Prices], every: dict[str, Task]) -> str:
    lines = []
    for name, task in every.items():
        inputs, hidden, outputs = task.sizes
        P, own = (inputs + 1) * hidden + (hidden + 1) * outputs, price[name]
        spread = float(jnp.sum((task.t - task.t.mean()) ** 2))
        lines.append(
            f"{name}: {'-'.join(map(str, task.sizes))}, P = {P}, {len(task.x)} points, goal {task.goal:g}, where the "
            f"mean of t alone leaves {spread:.3g};\n    flops of F "
            f"{own.value:.4g}, with its gradient {own.gradient:.4g}, of J and J'J {own.matrix:.4g}, of LM's equations "
            f"{own.solution:.4g}"
        )
    return "\n".join([verdict(rows), "", *lines, "", CHOSEN])


def main() -> None:
    experiments.start(x64=True)
    options = experiments.arguments(__doc__, "results/hagan_menhaj", starts=9, epochs=300_000)
    keys, every, found, price, rows = jax.random.split(jax.random.key(0), options.starts), tasks(), {}, {}, []
    with progress("runs", len(every) * len(METHODS)) as advance:
        for name, task in every.items():
            price[name], found[name] = prices(task), {}
            starts = [task.network.init(key) for key in keys]
            for label, method in METHODS.items():
                advance(len(rows), f"{name}, {label}")
                runs = found[name][label] = measure(task, method, price[name], starts, options.epochs)
                rows.append(row(name, label, runs, found[name][LM]))
    figure = draw(found, {name: task.goal for name, task in every.items()})
    experiments.write(options.out, rows, figure, notes(rows, price, every))


if __name__ == "__main__":
    main()
