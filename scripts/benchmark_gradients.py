#!/usr/bin/env python
"""What one gradient costs, engine by engine: tracing, compilation, run time, FLOPs and temporary memory.

    python scripts/benchmark_gradients.py --out results/benchmark_gradients

Five engines for dF/dparams of one chain: the hand-written recursion, the same as `differentiable`'s custom_vjp under
`jax.grad`, `jax.grad` itself, forward mode and central differences. All run in turns in one process; times are
medians, and what to read are the ratios to `jax.grad` beside them. Forward mode and differences need one pass (two,
for differences) for every parameter: one pass is measured, and the whole is that times their number.
"""

import argparse
import csv
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp

import functional_nn as fnn
from functional_nn.gradients.comparison import Cost, measure_costs
from functional_nn.lab import environment

SIZES = (((64, 32, 10), 32), ((784, 256, 128, 10), 128), ((784, 1024, 1024, 10), 512))
COLUMNS = (
    "sizes",
    "batch",
    "engine",
    "passes",
    "trace ms",
    "compile ms",
    "run us",
    "run / jax.grad",
    "trace / jax.grad",
    "FLOPs",
    "temporary KiB",
)


def engines(network, loss, params):
    """Name -> (callable of params, inputs, targets; passes needed for a whole gradient)."""
    objective = fnn.objective(network, loss)
    layer_loss = fnn.differentiable(network)
    direction = jax.tree.map(jnp.ones_like, params)
    count = sum(x.size for x in jax.tree.leaves(params))

    def through_custom_vjp(params, inputs, targets):
        return loss.value(layer_loss(params, inputs), targets)

    def forward_mode(params, inputs, targets):
        return jax.jvp(lambda p: objective(p, inputs, targets), (params,), (direction,))

    return {
        "manual": (fnn.value_and_grad(network, loss), 1),
        "custom_vjp": (jax.value_and_grad(through_custom_vjp), 1),
        "jax.grad": (jax.value_and_grad(objective), 1),
        "forward mode": (forward_mode, count),
        "central differences": (objective, 2 * count),
    }


def measure(sizes: tuple[int, ...], batch: int, rounds: int) -> list[dict[str, str]]:
    """A row an engine, from `rounds` independent measurements in which the engines take turns."""
    network = fnn.multilayer(sizes, ("tanh",) * (len(sizes) - 2) + ("softmax",))
    loss = fnn.losses.cross_entropy()
    params = network.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (batch, sizes[0]))
    targets = fnn.one_hot(jnp.arange(batch) % sizes[-1], sizes[-1])
    named = engines(network, loss, params)
    callables = {name: f for name, (f, _) in named.items()}
    seen: list[dict[str, Cost]] = []
    for _ in range(rounds):
        seen.append({c.name: c for c in measure_costs(callables, params, inputs, targets, repeats=9)})
    rows = []
    for name, (_, passes) in named.items():
        costs, reference = [s[name] for s in seen], [s["jax.grad"] for s in seen]
        run = median(c.run_seconds for c in costs) * passes
        ratio = median(c.run_seconds / r.run_seconds for c, r in zip(costs, reference, strict=True)) * passes
        tracing = median(c.trace_seconds / r.trace_seconds for c, r in zip(costs, reference, strict=True))
        figures = (
            passes,
            f"{1e3 * median(c.trace_seconds for c in costs):.2f}",
            f"{1e3 * median(c.compile_seconds for c in costs):.0f}",
            f"{1e6 * run:.4g}",
            f"{ratio:.4g}",
            f"{tracing:.2f}",
            f"{costs[0].flops * passes:.4g}",
            f"{costs[0].temporary_bytes / 1024:.0f}",
        )
        rows.append(dict(zip(COLUMNS, ("-".join(map(str, sizes)), batch, name, *figures), strict=True)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="independent measurements of every size (default 7)")
    parser.add_argument("--out", type=Path, help="also write OUT.csv and OUT.txt, with what they were measured on")
    options = parser.parse_args()
    rows = [row for sizes, batch in SIZES for row in measure(sizes, batch, options.rounds)]
    widths = [max(len(c), *(len(str(row[c])) for row in rows)) for c in COLUMNS]
    cells = [COLUMNS, *(tuple(str(row[c]) for c in COLUMNS) for row in rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    measured_on = ", ".join(f"{name} {value}" for name, value in environment.describe().items())
    lines += ["", f"float32, {options.rounds} rounds; measured on: {measured_on}"]
    print("\n".join(lines))
    if options.out:
        options.out.with_suffix(".txt").write_text(
            f"python scripts/benchmark_gradients.py --rounds {options.rounds}\n\n" + "\n".join(lines) + "\n"
        )
        with options.out.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
