#!/usr/bin/env python
"""What a learning rule costs: a step beside the exact one; and 1000 networks, rules x depths x seeds, in one call.

    python scripts/benchmark_rules.py --out results/benchmark_rules

A step is the gradient by the rule and Adam's update, compiled whole; all rules of a network run in turns in one
process, and each ratio to the exact step is the median over the rounds. Then `fit_population` trains five rules x
five depths x forty seeds on digits, 20 epochs, in one call, compilation included.

Before JAX is imported, JAX_NUM_CPU_DEVICES is set to the number of cores, over which the population is then laid.
"""

import argparse
import csv
import time
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import datasets, environment, experiments

ONE_SWEEP = (
    "exact",
    "feedback_alignment",
    "direct_feedback",
    "sign_symmetric",
    "sign_symmetric(random)",
    "sign_symmetric(fixed)",
    "kolen_pollack",
    "noisy(0.1)",
    "rounded(4)",
    "rounded(4, stochastic=false)",
    "dropped_back(0.5)",
    "clipped_back(1)",
    "surrogate",
)
OTHERS = (
    "weight_mirror",
    "local_loss",
    "forward_gradient",
    "weight_perturbation",
    "node_perturbation",
    "spsa",
    "target_propagation",
    "predictive_coding",
)
COLUMNS = ("network", "batch", "rule", "step us", "step / exact", "compile ms", "temporary KiB")
RULES = ("exact", "feedback_alignment", "direct_feedback", "sign_symmetric", "noisy(0.1)")
DEPTHS, SEEDS, EPOCHS = 5, 40, 20
LOOPS = 20  # steps that are timed together


def chain(*sizes: int) -> fnn.Network:
    return fnn.multilayer(sizes, ("tanh",) * (len(sizes) - 2) + ("softmax",))


NETWORKS = {
    "64-64-64-10": (chain(64, 64, 64, 10), 32),
    "784-256-128-10": (chain(784, 256, 128, 10), 128),
    "lenet": (fnn.presets.get("lenet")((28, 28, 1), 10), 32),
}


def steps(network: fnn.Network, batch: int, rounds: int, name: str) -> list[dict]:
    """A row a rule, of those that the network has a meaning for."""
    dense = name != "lenet"
    x = jax.random.normal(jax.random.key(1), (batch, *network.shapes[network.inputs[0][0]]))
    data = training.Batch({network.inputs[0][0]: x}, fnn.one_hot(jnp.arange(batch) % 10, 10))
    optimizer, key = optimizers.adam(1e-3), jax.random.key(2)
    programs, compiling = {}, {}
    for rule in (*ONE_SWEEP, *(OTHERS if dense else ())):
        params = fnn.rules.begin(rule, network, network.init(jax.random.key(0)), key)
        step = training.train_step(network, "cross_entropy", optimizer, rule=rule)
        given = optimizer.init(params), data._replace(key=key)
        began = time.perf_counter()
        program = jax.jit(step).lower(*given).compile()
        compiling[rule] = time.perf_counter() - began
        programs[rule] = program, given
    seconds: dict[str, list] = {rule: [] for rule in programs}
    for _ in range(rounds):
        for rule, (program, given) in programs.items():
            began = time.perf_counter()
            for _ in range(LOOPS):
                after = program(*given)
            jax.block_until_ready(after)
            seconds[rule].append((time.perf_counter() - began) / LOOPS)
    ratios = {rule: [x / y for x, y in zip(own, seconds["exact"], strict=True)] for rule, own in seconds.items()}
    rows = []
    for rule, (program, _) in programs.items():
        temporary = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
        figures = (
            f"{1e6 * median(seconds[rule]):.4g}",
            f"{median(ratios[rule]):.3f}",
            f"{1e3 * compiling[rule]:.0f}",
            f"{temporary / 1024:.0f}",
        )
        rows.append(dict(zip(COLUMNS, (name, batch, rule, *figures), strict=True)))
    return rows


def population(epochs: int, seeds: int) -> str:
    """One call, and what it took."""
    digits = datasets.load("digits")
    part, held_out = datasets.split(digits, test_fraction=0.2, seed=0)
    scaled = [(np.asarray(some.inputs) / 16, np.asarray(some.labels)) for some in (part, held_out)]
    members = training.grid(rule=list(RULES), depth=list(range(1, DEPTHS + 1)), seed=range(seeds), learning_rate=[3e-3])
    began = time.perf_counter()
    found = training.fit_population(
        lambda depth: chain(64, *[32] * depth, 10),
        "cross_entropy",
        "adam",
        members,
        scaled[0],
        key=jax.random.key(0),
        epochs=epochs,
        validation=scaled[1],
    )
    seconds = time.perf_counter() - began
    accuracy = found.history.validation_accuracy[-1].reshape(len(RULES), DEPTHS, seeds).mean(axis=-1)
    lines = [
        f"{len(found)} networks ({len(RULES)} rules x {DEPTHS} depths x {seeds} seeds), {epochs} epochs of "
        f"{len(scaled[0][1])} digits, one call, compilation included: {seconds:.0f} s; mean held-out accuracy",
        "",
        "  ".join(["rule".rjust(20), *(f"depth {depth}" for depth in range(1, DEPTHS + 1))]),
    ]
    for rule, row in zip(RULES, accuracy, strict=True):
        lines.append("  ".join([rule.rjust(20), *(f"{value:7.3f}" for value in row)]))
    return "\n".join(lines)


def main() -> None:
    experiments.start(all_cores=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="in each all rules take turns (default 25)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of the population (default {EPOCHS})")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"of the population (default {SEEDS})")
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS), help="by default all")
    parser.add_argument("--out", type=Path, help="also write OUT.csv and OUT.txt, with what they were measured on")
    options = parser.parse_args()
    rows = [row for name in options.networks for row in steps(*NETWORKS[name], options.rounds, name)]
    widths = [max(len(c), *(len(str(row[c])) for row in rows)) if rows else len(c) for c in COLUMNS]
    cells = [COLUMNS, *(tuple(str(row[c]) for c in COLUMNS) for row in rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    measured_on = ", ".join(f"{name} {value}" for name, value in environment.describe().items())
    lines += ["", population(options.epochs, options.seeds)]
    lines += ["", f"float32, {options.rounds} rounds; measured on: {measured_on}"]
    print("\n".join(lines))
    if options.out:
        command = f"python scripts/benchmark_rules.py --rounds {options.rounds} --out {options.out}\n\n"
        options.out.with_suffix(".txt").write_text(command + "\n".join(lines) + "\n")
        with options.out.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
