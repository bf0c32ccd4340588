#!/usr/bin/env python
"""Hagan's Figures 3.2-3.4 and P3.3: how optimizers move on the quadratic performance function of a linear neuron.

    python scripts/quadratic_trajectories.py --out results/quadratic_trajectories

The neuron has two weights x and no bias, so that F = c + d'x + x'Ax/2 (Eq. 3.19) can be drawn as contours. Gradient
descent converges while its rate is below 2 / (largest eigenvalue of the Hessian A). Stochastic gradient descent (Figure
3.4) takes one example an update, in random order, from the same start: a noisy version of gradient descent's path.
Newton's method arrives in one step (Eq. 3.28). Gradients, methods and the quadratic model (A, its eigenvalues and the
minimum) are the library's, by hand.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt

NETWORK, LOSS = fnn.multilayer((2, 1), ("linear",), bias="none"), fnn.losses.sum_square_error()
COLORS = (BLUE, VERMILION, GREEN, PURPLE)
PLAN = fnn.training.stochastic()
PRINTED = {  # the texts' words on a problem, and on a run
    "Eq. 3.15": "eigenvalues 4 and 20; GD at 0.01",
    "P3.3": "eigenvalues 10 along (-1, -2) and 40 along (-2, 1); minimum (0.4, 0.3); largest stable rate 0.05",
    ("P3.3", "GD", 0.05): "oscillates along (-2, 1)",
}
RECOMPUTED = {  # from the texts' data, without the library; scripts/worked_examples.py has the digits
    "Eq. 3.15": "eigenvectors (1, 1) and (1, -1); minimum (-1, -1); largest stable rate 0.1",
    "P3.3": "F at 0.05: 5, 2, 1.25, 1.0625, ...",
    ("Eq. 3.15", "GD", 0.01): "(-1.0164, -1.0164), F = 0.00108",
    ("Eq. 3.15", "GD", 0.1): "F = 19.0125 always",
    ("Eq. 3.15", "GD", 0.11): "diverges",
    ("P3.3", "GD", 0.05): "F -> 1",
    ("P3.3", "GD", 0.06): "diverges",
}


class Problem(NamedTuple):
    """Training data; the start of every method; gradient descent's rates (small, near, at and above the largest stable
    one) and that of stochastic descent; and the part of the plane that is drawn: center and half width.
    """

    name: str
    inputs: jax.Array
    targets: jax.Array
    start: tuple[float, float]
    rates: tuple[float, float, float, float]
    stochastic_rate: float
    center: tuple[float, float]
    half_width: float

    def value(self, x):
        """Returns F(x), x = (w_11, w_12), for the contours."""
        return fnn.objective(NETWORK, LOSS)(as_params(x), self.inputs, self.targets)

    def model(self) -> fnn.curvature.QuadraticModel:
        """Returns c, d, A and what follows from them (Eq. 3.19-3.23). As F is quadratic, they are the same
        everywhere.
        """
        return fnn.curvature.quadratic_model(NETWORK, LOSS, as_params(jnp.zeros(2)), self.inputs, self.targets)

    def gradient(self, x, rows=slice(None)):
        """Returns dF/dx by hand, over all examples or some."""
        value_and_grad = fnn.value_and_grad(NETWORK, LOSS)
        return value_and_grad(as_params(x), self.inputs[rows], self.targets[rows])[1]["layer1"]["weights"]["input"][0]


def as_params(x):
    return {"layer1": {"weights": {"input": x[None, :]}}}


def descend(problem: Problem, optimizer, updates: int, plan=None):
    """Returns the points (updates + 1, 2) of a method. plan: the examples of each update, by default all."""
    plan, examples = plan or fnn.training.batch(), len(problem.inputs)
    epoch = plan.updates(examples)

    def update(state, k):
        rows = plan.indices(jax.random.key(0), k // epoch, examples)[k % epoch]
        after = optimizer.update(state, problem.gradient(optimizer.point(state), rows))
        return after, after.params

    start = jnp.array(problem.start)
    points = jax.lax.scan(update, optimizer.init(start), jnp.arange(updates))[1]
    return np.concatenate([start[None], points])


def newton(problem: Problem):
    """Returns the start and the point after one step of Newton's method (2, 2), Eq. 3.28 as it is printed."""
    method = fnn.optimizers.newton(line_search="full_step")
    training = fnn.training.problem(NETWORK, LOSS, problem.inputs, problem.targets)
    before = method.init(as_params(jnp.array(problem.start)), training)
    after = jax.jit(method.update)(before, training)
    return np.concatenate([state.params["layer1"]["weights"]["input"] for state in (before, after)])


def trajectories(problem: Problem) -> dict:
    """Returns {(method, rate): points} of all methods."""
    methods, rate = fnn.optimizers, problem.stochastic_rate
    return {("GD", rate): descend(problem, methods.gd(rate), 100) for rate in problem.rates} | {
        ("SGD", rate): descend(problem, methods.gd(rate), 400, PLAN),
        ("momentum 0.9", 0.01): descend(problem, methods.momentum(0.01, 0.9), 100),
        ("Adam", 0.1): descend(problem, methods.adam(0.1), 100),
        ("Newton", 1.0): newton(problem),
    }


def verdict(F: np.ndarray) -> str:
    """Says how F ended, whose minimum is 0 in both problems, or how it changes in the last tenths."""
    if F[-1] < 1e-3 * F[0]:
        return "converged"
    tenth = len(F) // 10
    ratio = F[-tenth:].max() / F[-2 * tenth : -tenth].max()
    return "oscillates" if abs(ratio - 1) < 1e-6 else "diverges" if ratio > 1 else "still falling"


def shown(x) -> str:
    return "(" + ", ".join(f"{value:.5g}" for value in x) + ")"


def draw(axes, problem: Problem, model: fnn.curvature.QuadraticModel, paths: dict, values: dict) -> None:
    """Draws five panels: eigenvectors and the smallest rate, larger rates, stochastic descent and the smallest rate,
    other methods, and F against the updates.
    """
    (cx, cy), half, minimum = problem.center, problem.half_width, np.asarray(model.minimum)
    x, y = np.linspace(cx - half, cx + half, 121), np.linspace(cy - half, cy + half, 121)
    F = jax.vmap(jax.vmap(problem.value))(jnp.stack(jnp.meshgrid(x, y), axis=-1))
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncol": 2, "fontsize": 8}
    runs = list(paths)
    colors = dict(zip(runs, COLORS + COLORS[1:] + COLORS[:1], strict=True))  # each once in a panel of paths
    panels = (
        ("a small rate", runs[:1], 100),
        ("near, at and over the limit", runs[1:4], 14),
        ("one example an update, nearer", [runs[0], runs[4]], 400),
        ("other methods", runs[5:], 100),
    )
    for axis, (title, group, updates) in zip(axes, panels, strict=False):
        levels = float(F.max()) * np.linspace(0.05, 1, 12) ** 2
        axis.contour(x, y, F, levels=levels, colors="0.75", linewidths=0.7, zorder=0)
        for run in group:
            path = paths[run][: updates + 1]  # paths that diverge are clipped at the panel
            below_others = run[1] if run[0] == "GD" else 0  # large rates below small ones, both below other methods
            axis.plot(
                *path.T,
                "-o",
                color=colors[run],
                ms=2.5,
                lw=1,
                zorder=3 - below_others,
                label=f"{run[0]}, rate {run[1]:g}",
            )
        axis.plot(*minimum, "k+", ms=9)
        axis.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal", xlabel="$w_{1,1}$", title=title)
        axis.legend(**below)
    (mx, my), near = (minimum + problem.start) / 2, 0.6 * abs(minimum - problem.start).max()
    axes[2].set(xlim=(mx - near, mx + near), ylim=(my - near, my + near))  # its steps are short
    eigenvalues, eigenvectors = np.asarray(model.eigenvalues), np.asarray(model.eigenvectors)
    for eigenvalue, vector in zip(eigenvalues, eigenvectors.T, strict=True):  # as long as the half axes of one contour
        away = vector * np.sign((minimum - problem.start) @ vector)
        tip = minimum + away * 0.7 * half * np.sqrt(eigenvalues[0] / eigenvalue)
        axes[0].annotate("", tip, minimum, arrowprops={"arrowstyle": "->", "color": "k"})
        axes[0].annotate(
            rf"$\lambda$ = {eigenvalue:.3g}", tip + 0.12 * half * away, ha="center", va="center", fontsize=9
        )
    axes[0].set_ylabel(f"{problem.name}:  $w_{{1,2}}$")
    for run in runs[:-1]:  # Newton is there after one update
        axes[4].plot(
            values[run], "-" if run[0] == "GD" else "--", color=colors[run], label=f"{run[0]}, rate {run[1]:g}"
        )
    axes[4].set(
        yscale="log", ylim=(1e-8, 1e4), xlim=(0, 100), xlabel="update (SGD: of one example)", ylabel="F", title="error"
    )
    axes[4].legend(**below)


experiments.start(x64=True)  # before the arrays of the problems: the texts' numbers are exact

EQ315 = Problem(
    "Eq. 3.15",
    jnp.array([[-1.0, 2], [2, -1], [0, -1], [-1, 0]]),
    jnp.array([[-1.0], [-1], [1], [1]]),
    (-1.0, -2.95),
    (0.01, 0.09, 0.1, 0.11),
    0.06,
    center=(-1, -1),
    half_width=2.3,
)
P33 = Problem(
    "P3.3",
    jnp.array([[-4.0, 2], [1, 2]]),
    jnp.array([[-1.0], [1]]),
    (1.0, 1.0),
    (0.01, 0.045, 0.05, 0.06),
    0.015,
    center=(0.5, 0.45),
    half_width=1.1,
)


def main() -> None:
    options = experiments.arguments(__doc__, "results/quadratic_trajectories")
    rows, notes = [], []
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 5, figsize=(18.5, 8.8), layout="constrained")
        for problem, line in zip((EQ315, P33), axes, strict=True):
            model, paths = problem.model(), trajectories(problem)
            values = {run: np.asarray(jax.vmap(problem.value)(x)) for run, x in paths.items()}
            draw(line, problem, model, paths, values)
            for (method, rate), x in paths.items():
                F, run = values[method, rate], (problem.name, method, rate)
                rows.append(
                    {
                        "problem": problem.name,
                        "method": method,
                        "rate": rate,
                        "updates": len(x) - 1,
                        "start": shown(x[0]),
                        "end": shown(x[-1]),
                        "F": float(F[-1]),
                        "verdict": verdict(F),
                        "printed": PRINTED.get(run, ""),
                        "recomputed": RECOMPUTED.get(run, ""),
                    }
                )
            eigen = zip(np.asarray(model.eigenvalues), np.asarray(model.eigenvectors).T, strict=True)
            along = [f"{value:.4g} along {shown(z / abs(z).min())}" for value, z in eigen]
            at_limit = ", ".join(f"{F:.6g}" for F in values["GD", problem.rates[2]][:4])
            notes.append(
                f"{problem.name}: eigenvalues {' and '.join(along)}; minimum {shown(model.minimum)}; largest stable "
                f"rate {model.stable_rate:.4g}; GD at {problem.rates[2]}: F = {at_limit}, ...\n"
                f"printed: {PRINTED[problem.name]}\nrecomputed: {RECOMPUTED[problem.name]}"
            )
    experiments.write(options.out, rows, figure, "\n".join(notes))


if __name__ == "__main__":
    main()
