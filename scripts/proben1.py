#!/usr/bin/env python
"""PROBEN1: linear and multilayer networks by Rprop, stopped by GL5, next to the tables of the report.

    python scripts/proben1.py proben1/cancer/cancer1.dt --networks linear 4 8+4 --paper tables.csv

Prechelt 1994 (technical report 21/94, Karlsruhe). The files are not part of this library: give those that you have. For
each problem and network --runs runs, 2 or more, are trained as one population, from weights and biases drawn from
[-0.5, 0.5], by Rprop on all examples (factors 1.2 and 0.5, first steps drawn from [0.05, 0.2] for each weight, none
above 50). A run ends when the validation error, looked at after every fifth epoch, is 5 % above its lowest (GL5), when
the training progress P5 is below 0.1 per mille, or when the epochs are over. "linear" has no hidden layer; 8+4 has two,
whose neurons compute n / (1 + |n|), and linear outputs. Every layer reads all before it, inputs included, unless
--no-shortcuts is given. Errors are squared error percentages, E = 100 (o_max - o_min) / (N P) sum (o - t)^2; the class
is that of the largest output. The test set is measured at the epoch of the lowest validation error. A deviation is that
of the runs (n - 1).

--paper: the report's numbers, if you have it, as a CSV file with the columns problem, network, quantity, mean and
deviation, named as in the table here. "away" is by how many of the paper's deviations the means differ.

The report was not available here: compare these settings with it, each of which is an option or a constant here.
Training errors are those just before each epoch's update.
"""

import argparse
import csv
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import experiments, plots, proben1
from functional_nn.lab.plots import plt
from functional_nn.lab.progress import progress
from functional_nn.registry import unknown

NETWORKS = ("linear", "2", "4", "8", "16", "24", "32", "2+2", "4+2", "4+4", "8+4", "8+8", "16+8")  # the report's
INITIAL, STEPS, ALPHA, PROGRESS, STRIP = 0.5, (0.05, 0.2), 5.0, 0.1, 5
QUANTITIES = (
    "training error",
    "validation error",
    "test error",
    "test classification error",
    "overfit",
    "total epochs",
    "relevant epochs",
)


def uniform(key, rows, fan_in, fan_out, dtype):
    """Draws weights (rows, fan_in) and biases (rows,) from U(-0.5, 0.5)."""
    drawn = jax.random.uniform(key, (rows, fan_in + 1), dtype, -INITIAL, INITIAL)
    return drawn[:, :-1], drawn[:, -1]


INITIALIZER = fnn.initializers.Initializer("proben1", uniform, sets_bias=True)


def network(name: str, inputs: int, outputs: int, shortcuts: bool, activation: str, output: str) -> fnn.Network:
    """Returns the network of a name: "linear", or the sizes of the hidden layers, such as "8+4"."""
    sizes = [] if name == "linear" else list(map(int, name.split("+")))
    layers, before = [], ["input"]
    for number, size in enumerate([*sizes, outputs], start=1):
        last = number == len(sizes) + 1
        f = ("linear" if name == "linear" else output) if last else activation
        sources = tuple(before if shortcuts else before[-1:])
        layers.append(fnn.Layer(f"layer{number}", size, f, sources, initializer=INITIALIZER))
        before.append(f"layer{number}")
    return fnn.graph(inputs={"input": inputs}, layers=layers)


def rprop() -> optimizers.Optimizer:
    """Riedmiller and Braun's Rprop, with each weight's first step drawn from U(0.05, 0.2)."""
    plain = optimizers.rprop(increase=1.2, decrease=0.5, smallest=0.0, largest=50.0)

    def init(params):
        state = plain.init(params)
        leaves, tree = jax.tree.flatten(params)
        # An optimizer has no key: one is made from a weight, and so differs between runs.
        bits = jax.lax.bitcast_convert_type(leaves[-1].ravel()[0].astype(jnp.float32), jnp.uint32)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(94), bits), len(leaves))
        steps = [jax.random.uniform(key, x.shape, x.dtype, *STEPS) for key, x in zip(keys, leaves, strict=True)]
        return state._replace(step_size=tree.unflatten(steps))

    return dataclasses.replace(plain, init=init)


class Setting(NamedTuple):
    """The settings of all problems."""

    runs: int
    epochs: int
    shortcuts: bool
    activation: str
    output: str


def outputs_range(problem: proben1.Problem) -> tuple[float, float]:
    """Returns o_min and o_max: 0 and 1 for outputs between them, as PROBEN1's are, else their own range."""
    low, high = float(problem.targets.min()), float(problem.targets.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def study(problem: proben1.Problem, name: str, setting: Setting) -> dict[str, np.ndarray]:
    """Trains the runs, and returns every quantity (N,)."""
    (x, t), held_out, (x_test, t_test) = problem.parts.take((problem.inputs, problem.targets))
    net = network(name, x.shape[1], t.shape[1], setting.shortcuts, setting.activation, setting.output)
    population = training.fit_population(
        net,
        "mean_square_error",
        rprop(),
        {"seed": np.arange(setting.runs)},
        (x, t),
        validation=held_out,
        key=jax.random.key(0),
        epochs=setting.epochs,
        plan=training.batch(),
        chunk=50,
        stop=(training.generalization_loss(ALPHA, strip=STRIP), training.progress_below(PROGRESS, STRIP)),
    )
    low, high = outputs_range(problem)
    own, validation = (
        100 * (high - low) * x for x in (population.history.training_loss, population.history.validation_loss)
    )
    apply, found = jax.jit(net.apply), []
    for member in range(setting.runs):
        a = np.asarray(apply(population.params(member), x_test))
        wrong = 100 * np.mean(a.argmax(axis=1) != t_test.argmax(axis=1)) if problem.classes else np.nan
        found.append((proben1.squared_error_percentage(t_test, a, low, high), wrong))
    lowest, last = np.nanmin(validation, axis=0), (population.epochs - 1, np.arange(setting.runs))
    columns = (
        np.nanmin(own, axis=0),
        lowest,
        *np.array(found).T,
        100 * (validation[last] / lowest - 1),
        population.epochs,
        np.nanargmin(validation, axis=0) + 1,
    )
    return dict(zip(QUANTITIES, columns, strict=True))


def read_paper(path: Path) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Returns {(problem, network, quantity): (mean, deviation)}. Raises ValueError if the file is no such table."""
    columns = ("problem", "network", "quantity", "mean", "deviation")
    with path.open(newline="", encoding="utf-8") as file:
        reader, found = csv.DictReader(file), {}
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: expected the columns {', '.join(columns)}; {missing[0]} is missing")
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if row["quantity"] not in QUANTITIES:
                raise ValueError(f"{where}: {unknown('quantity', str(row['quantity']), QUANTITIES)}")
            try:
                mean, deviation = float(row["mean"]), float(row["deviation"])
            except (TypeError, ValueError):
                raise ValueError(
                    f"{where}: expected numbers for mean and deviation, got {row['mean']!r}, {row['deviation']!r}"
                ) from None
            found[row["problem"], row["network"], row["quantity"]] = mean, deviation
    return found


def rows_of(problem: str, name: str, found: dict[str, np.ndarray], paper: dict) -> list[dict]:
    """Makes a row for every quantity: mean and deviation, and the paper's where they are given."""
    rows = []
    for quantity, values in found.items():
        if np.isnan(values).all():
            continue
        mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        row = {"problem": problem, "network": name, "quantity": quantity, "mean": mean, "deviation": deviation}
        if paper:
            theirs, spread = paper.get((problem, name, quantity), (np.nan, np.nan))
            away = (mean - theirs) / spread if spread > 0 else np.nan
            row |= {"paper's mean": theirs, "paper's deviation": spread, "away": away}
        rows.append(row | {"runs": len(values)})
    return rows


def picture(rows: list[dict]) -> plt.Figure:
    """Draws test errors with their deviations by network, and the paper's, in a panel for each problem."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    columns = min(3, len(problems))
    lines = -(-len(problems) // columns)
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(
            lines, columns, figsize=(4.6 * columns, 3.4 * lines), layout="constrained", squeeze=False
        )
        for axis in axes.flat[len(problems) :]:
            axis.remove()
        for axis, problem in zip(axes.flat, problems, strict=False):
            own = [row for row in rows if row["problem"] == problem and row["quantity"] == "test error"]
            at = np.arange(len(own))
            axis.errorbar(
                at,
                [r["mean"] for r in own],
                [r["deviation"] for r in own],
                fmt="o",
                color=plots.TRAINING,
                capsize=3,
                label="here",
            )
            theirs = [(r.get("paper's mean", np.nan), r.get("paper's deviation", np.nan)) for r in own]
            if np.isfinite(theirs).any():
                axis.errorbar(at + 0.2, *np.array(theirs).T, fmt="s", color=plots.HELD_OUT, capsize=3, label="paper")
                axis.legend(fontsize=8)
            axis.set_xticks(at, [r["network"] for r in own], rotation=90 if len(own) > 6 else 0)
            axis.set(xlabel="hidden neurons", ylabel="test error (%)", xlim=(-0.6, len(own) - 0.2))
            axis.set_title(problem, fontsize=10, parse_math=False)
    return figure


def notes(rows: list[dict], setting: Setting) -> str:
    shortcuts = "with" if setting.shortcuts else "without"
    lines = [
        f"Rprop, at most {setting.epochs} epochs, GL{ALPHA:g} or P{STRIP} < {PROGRESS:g} per mille; {setting.runs} "
        f"runs, {shortcuts} shortcuts; hidden {setting.activation}, outputs {setting.output}"
    ]
    away = [abs(row["away"]) for row in rows if np.isfinite(row.get("away", np.nan))]
    if away:
        lines.append(
            f"Of {len(away)} numbers of the paper {sum(x <= 1 for x in away)} are within one of its deviations, and "
            f"{sum(x <= 2 for x in away)} within two; median {np.median(away):.2g}."
        )
    return "\n".join(lines)


def _network(text: str) -> str:
    if text != "linear" and not re.fullmatch(r"[1-9]\d*(\+[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"expected linear, or sizes of hidden layers such as 8+4, got {text!r}")
    return text


def main(given: Sequence[str] | None = None) -> None:
    experiments.start(all_cores=True)
    parser = experiments.parser(__doc__, "results/proben1", runs=10, epochs=3000)
    parser.add_argument("problems", type=Path, nargs="+", metavar="FILE.dt", help="PROBEN1's files")
    parser.add_argument(
        "--networks",
        type=_network,
        nargs="+",
        default=list(NETWORKS),
        metavar="NETWORK",
        help=f"default {' '.join(NETWORKS)}",
    )
    parser.add_argument("--no-shortcuts", action="store_true", help="each layer reads only the one before it")
    parser.add_argument("--activation", default="softsign", help="of hidden neurons; default softsign")
    parser.add_argument("--output", default="linear", choices=("linear", "sigmoid"), help="default linear")
    parser.add_argument("--paper", type=Path, help="the report's tables, as a CSV file")
    options = parser.parse_args(given)
    if options.runs < 2:
        parser.error(f"--runs: expected an integer >= 2, got {options.runs}")
    try:
        fnn.activations.get(options.activation)
        paper = read_paper(options.paper) if options.paper else {}
        problems = [proben1.read(path) for path in options.problems]
        for problem in problems:
            if not all(map(len, problem.parts)):
                raise ValueError(f"{problem.name}: expected validation and test examples, got none of one")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    setting = Setting(options.runs, options.epochs, not options.no_shortcuts, options.activation, options.output)
    rows = []
    with progress("populations", len(problems) * len(options.networks)) as advance:
        for problem in problems:
            for name in options.networks:
                rows += rows_of(problem.name, name, study(problem, name, setting), paper)
                advance(len({(row["problem"], row["network"]) for row in rows}), f"{problem.name}, {name}")
    experiments.write(options.out, rows, picture(rows), notes(rows, setting))


if __name__ == "__main__":
    main()
