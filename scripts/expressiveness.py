#!/usr/bin/env python
"""What do more layers and neurons express? A step, a bump, a disc and a checkerboard by 1, 2 and 3 layers.

    python scripts/expressiveness.py --seeds 8 --steps 300 --out results/expressiveness

Lecture 2 says that more layers approximate more complex functions, Kordecki that an MLP can approximate ANY function.
Layers are counted with the output layer: tanh layers, then one sigmoid output, so that 1 layer is one neuron. Each
network of 3 layers has a network of 2 with exactly as many parameters, to be compared with. Targets are 0 and 1 on [-1,
1] or its square:

    step          1 where x > 0.1
    bump          1 where |x - 0.1| < 0.35
    disc          1 where |x| < 0.6
    checkerboard  4 x 4 squares

They are known at the middles of 200 cells, or 32 x 32. Levenberg-Marquardt makes up to --steps steps on the mean square
error, from --seeds starts, all in one program for each network. Errors are roots of mean squares. "on grid", where the
targets were known, shows what the network was able to learn; "everywhere", at points eight or 4 x 4 times as dense,
also shows what it does in the gaps. All CPU cores are used; the environment variable JAX_NUM_CPU_DEVICES sets another
number.
"""

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # its threads spin while they wait, which costs more than a small matrix saves

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

ENOUGH = 1e-4  # the error on the grid at which a start ends
COLORS = {1: BLACK, 2: BLUE, 3: VERMILION}


class Target(NamedTuple):
    """A target: the number of inputs, 1 or 2, and inside(x (Q, R)) -> (Q,) booleans, true where the target is 1."""

    inputs: int
    inside: Callable[[np.ndarray], np.ndarray]


TARGETS = {
    "step": Target(1, lambda x: x[:, 0] > 0.1),
    "bump": Target(1, lambda x: abs(x[:, 0] - 0.1) < 0.35),
    "disc": Target(2, lambda x: (x**2).sum(axis=1) < 0.6**2),
    "checkerboard": Target(2, lambda x: np.floor(2 * x).sum(axis=1) % 2 == 1),
}
# Hidden neurons. h and w-w have equally many parameters where 3 h = w (w + 4) with 1 input, 4 h = w (w + 5) with 2.
HIDDEN = {
    1: ((), (2,), (4,), (2, 2), (7,), (3, 3), (15,), (5, 5)),
    2: ((), (3,), (6,), (3, 3), (9,), (4, 4), (21,), (7, 7), (44,), (11, 11)),
}
CELLS, DENSER = {1: 200, 2: 32}, {1: 8, 2: 4}  # along each input
DRAWN = {1: ((), (4,), (2, 2)), 2: ((), (21,), (7, 7))}  # networks whose outputs are drawn


class Fit(NamedTuple):
    """What the starts came to: errors on the grid and everywhere, the share of the area on the wrong side of 1/2, all
    (seeds,), and the outputs everywhere (seeds, points).
    """

    grid: np.ndarray
    everywhere: np.ndarray
    wrong: np.ndarray
    outputs: np.ndarray


def middles(inputs: int, cells: int) -> np.ndarray:
    """Returns the middles of the cells of [-1, 1]^R, (cells^R, R); the first input changes fastest."""
    line = (np.arange(cells) + 0.5) * 2 / cells - 1
    return np.stack(np.meshgrid(*[line] * inputs), axis=-1).reshape(-1, inputs)


def network_of(inputs: int, hidden: tuple[int, ...]) -> fnn.Network:
    return fnn.multilayer((inputs, *hidden, 1), ("tanh",) * len(hidden) + ("sigmoid",))


def fit(target: Target, hidden: tuple[int, ...], seeds: int, steps: int) -> Fit:
    network, cells = network_of(target.inputs, hidden), CELLS[target.inputs]
    x = middles(target.inputs, cells)
    dense = middles(target.inputs, cells * DENSER[target.inputs])
    t, t_dense = (target.inside(points)[:, None].astype(float) for points in (x, dense))
    starts = jax.vmap(network.init)(jax.random.split(jax.random.key(0), seeds))
    problem = fnn.training.problem(network, "mean_square_error", x, t)
    found = fnn.optimizers.second_order.restarts(problem, "levenberg_marquardt", starts, steps=steps, goal=ENOUGH**2)
    outputs = np.asarray(jax.jit(jax.vmap(network.apply, in_axes=(0, None)))(found.params, dense))
    off = np.abs(outputs - t_dense)[..., 0]
    everywhere = np.sqrt((off**2).mean(axis=1))
    return Fit(np.sqrt(np.asarray(found.value)), everywhere, (off > 0.5).mean(axis=1), outputs[..., 0])


def row(name: str, hidden: tuple[int, ...], found: Fit) -> dict:
    """Makes a row of medians and quartiles over the starts."""
    errors = {}
    for place, values in (("on grid", found.grid), ("everywhere", found.everywhere)):
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        errors |= {place: float(middle), f"{place} 25 %": float(low), f"{place} 75 %": float(high)}
    return {
        "target": name,
        "layers": len(hidden) + 1,
        "hidden": "-".join(map(str, hidden)) or "none",
        "parameters": experiments.parameter_count(network_of(TARGETS[name].inputs, hidden)),
        **errors,
        "lowest on grid": float(found.grid.min()),
        "wrong area": float(np.median(found.wrong)),
    }


def verdicts(rows: list[dict]) -> str:
    """Compares 3 layers with 2 that have as many parameters: they differ where the middle halves of their starts do."""
    lines = []
    for name in dict.fromkeys(r["target"] for r in rows):
        own = [r for r in rows if r["target"] == name]
        two = {r["parameters"]: r for r in own if r["layers"] == 2}
        lines.append(f"{name}: 1 layer {own[0]['on grid']:.2g} on grid, {own[0]['everywhere']:.2g} everywhere")
        for place in ("on grid", "everywhere"):
            said = {"less": [], "more": [], "no clear difference": []}
            for deep in (r for r in own if r["layers"] == 3):
                flat = two[deep["parameters"]]
                low, middle, high = (
                    [max(r[f"{place}{end}"], ENOUGH) for r in (flat, deep)] for end in (" 25 %", "", " 75 %")
                )
                word = "less" if high[1] < low[0] else "more" if low[1] > high[0] else "no clear difference"
                said[word].append(f"{deep['parameters']} ({middle[0]:.2g} and {middle[1]:.2g})")
            found = "; ".join(f"{word} with {', '.join(which)}" for word, which in said.items() if which)
            lines.append(f"    3 layers and 2 {place}: {found}")
    return "\n".join(lines)


NOTES = f"""Errors are roots of mean squares: medians and quartiles over the starts. Everywhere they have a floor, since
nothing says where between two points of the grid the target jumps. Below, 3 layers have less or more error than 2 with
as many parameters where the middle halves of the starts lie apart; {ENOUGH:g} is enough, and less than that no better.
In brackets the medians of 2 layers and of 3.
"""


def middle_of(found: Fit) -> int:
    """Returns the start whose error everywhere is the median (of an even number, the lower of two)."""
    return int(np.argsort(found.everywhere)[(len(found.everywhere) - 1) // 2])


def draw(fits: dict[tuple, Fit], rows: list[dict]):
    """Draws each target, the outputs of 1, 2 and 3 layers from the median start, and errors by number of parameters."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(TARGETS), 5, figsize=(14.5, 11.2), layout="constrained")
        for line, (name, target) in zip(axes, TARGETS.items(), strict=True):
            cells = CELLS[target.inputs] * DENSER[target.inputs]
            dense = middles(target.inputs, cells)
            pictures = [("target", target.inside(dense).astype(float))]
            for hidden in DRAWN[target.inputs]:
                found = fits[name, hidden]
                start, layers = middle_of(found), len(hidden) + 1
                neurons = f", {'-'.join(map(str, hidden))} hidden" if hidden else ""
                title = f"{layers} layer{'s' if hidden else ''}{neurons}: {found.everywhere[start]:.2g}"
                pictures.append((title, found.outputs[start]))
            for axis, (title, values) in zip(line, pictures, strict=False):
                axis.set_title(title, fontsize=10)
                if target.inputs == 1:
                    axis.plot(dense[:, 0], pictures[0][1], color="0.7", lw=3)
                    if title != "target":
                        axis.plot(dense[:, 0], values, color=VERMILION, lw=1.2)
                    axis.set(ylim=(-0.1, 1.1), xticks=(-1, 0, 1), yticks=(0, 1))
                else:
                    axis.imshow(
                        values.reshape(cells, cells),
                        vmin=0,
                        vmax=1,
                        cmap="viridis",
                        origin="lower",
                        extent=(-1, 1, -1, 1),
                    )
                    axis.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
                    axis.grid(False)
            line[0].set_ylabel(name)
            for layers, color in COLORS.items():
                own = [r for r in rows if r["target"] == name and r["layers"] == layers]
                count, label = [r["parameters"] for r in own], f"{layers} layer" + "s" * (layers > 1)
                columns = [[r[f"on grid{end}"] for r in own] for end in ("", " 25 %", " 75 %")]
                middle, low, high = np.maximum(columns, ENOUGH)
                line[-1].errorbar(
                    count,
                    middle,
                    (middle - low, high - middle),
                    fmt="o-",
                    ms=4,
                    lw=1.2,
                    capsize=2,
                    color=color,
                    label=label,
                )
                line[-1].plot(count, [r["everywhere"] for r in own], "o:", ms=3, lw=1, color=color)
            line[-1].set(xscale="log", yscale="log", xlim=(1.5, 300), ylim=(0.7 * ENOUGH, 1))
            line[-1].set_title("error on grid (dotted: everywhere)", fontsize=10)
        axes[-1, -1].set_xlabel("parameters")
        axes[0, -1].legend()
    return figure


def main() -> None:
    experiments.start(x64=True, all_cores=True)
    options = experiments.arguments(__doc__, "results/expressiveness", seeds=8, steps=300)
    fits, rows = {}, []
    every = [(name, hidden) for name, target in TARGETS.items() for hidden in HIDDEN[target.inputs]]
    with progress("fitting", len(every)) as advance:
        for done, (name, hidden) in enumerate(every):
            advance(done, f"{name}, {'-'.join(map(str, hidden)) or 'one neuron'}")
            found = fits[name, hidden] = fit(TARGETS[name], hidden, options.seeds, options.steps)
            rows.append(row(name, hidden, found))
    alternative = "Each target next to the outputs of 1, 2 and 3 layers, and the errors of the table by parameters."
    experiments.write(options.out, rows, draw(fits, rows), NOTES + verdicts(rows), alternative)


if __name__ == "__main__":
    main()
