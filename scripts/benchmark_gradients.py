#!/usr/bin/env python
"""What one gradient costs by each engine: tracing, compilation, run time, FLOPs and temporary memory.

    python scripts/benchmark_gradients.py --out results/benchmark_gradients

Five engines compute dF/dparams of one chain: the hand-written recursion, the same recursion as the custom_vjp of
`differentiable` under `jax.grad`, `jax.grad` itself, forward mode, and central differences. All take turns in one
process. Times are medians; read the ratios to `jax.grad` next to them. Forward mode needs one pass for each parameter,
differences two: one pass is measured and multiplied by their number.
"""

from statistics import median

import jax
import jax.numpy as jnp

import functional_nn as fnn
from functional_nn.gradients.comparison import Cost, measure_costs
from functional_nn.lab import experiments

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
    """Returns {name: (function of params, inputs, targets; passes needed for a whole gradient)}."""
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
    """Makes a row for each engine, from `rounds` independent measurements in which the engines take turns."""
    network = fnn.multilayer(sizes, ("tanh",) * (len(sizes) - 2) + ("softmax",))
    loss = fnn.losses.cross_entropy()
    params = network.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (batch, sizes[0]))
    targets = fnn.one_hot(jnp.arange(batch) % sizes[-1], sizes[-1])
    named = engines(network, loss, params)
    callables = {name: f for name, (f, _) in named.items()}
    measured: list[dict[str, Cost]] = []
    for _ in range(rounds):
        measured.append({c.name: c for c in measure_costs(callables, params, inputs, targets, repeats=9)})
    rows = []
    for name, (_, passes) in named.items():
        costs, reference = [s[name] for s in measured], [s["jax.grad"] for s in measured]
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
    options = experiments.arguments(__doc__, "results/benchmark_gradients", rounds=7)
    rows = [row for sizes, batch in SIZES for row in measure(sizes, batch, options.rounds)]
    experiments.write(options.out, rows, notes=f"float32, {options.rounds} rounds")


if __name__ == "__main__":
    main()
