#!/usr/bin/env python
"""48 convolutional networks on the digits in one call: learning rates x kernel sizes x seeds.

    python scripts/population_convolution.py --seeds 4 --epochs 20

Two convolutions of 8 and 16 channels, each with 2 x 2 max pooling, then a softmax layer; Adam, batches of 32. Kernels
of one pixel see no neighbours before pooling: what the larger ones add is what neighbours say. `fit_population` is
given a function from the kernel's size to a network and makes a program for each of the sizes, in which rates and seeds
are lanes. The accuracy is that on a fifth of the training part, after the last epoch; the test part is looked at for
the best rate of each size only. Beside the population, some of its members are trained by `fit` one after the other,
in the same run: what all of them would take so is computed from their mean.

Before JAX is imported, JAX_NUM_CPU_DEVICES is set to the number of cores, over which the population is then laid;
set it to 1 for one core. It says nothing to an accelerator.
"""

import os
import textwrap
import time

os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))

import jax
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import experiments
from functional_nn.lab.plots import STYLE
from functional_nn.lab.progress import progress

# after the lab, which says what to install where it is missing
import matplotlib.pyplot as plt  # isort: skip

KERNELS = (1, 3, 5)
RATES = (0.001, 0.003, 0.01, 0.03)
PLAN = training.minibatch(32)
ALONE = 3  # members of each kernel size that are trained by `fit`, after a first that compiles


def build(kernel: int) -> fnn.Network:
    by = fnn.connections.conv((kernel, kernel), padding=kernel // 2)  # in numbers: 5 x 5 is wider than pool1's 4 x 4
    layers, before = [], "image"
    for number, channels in enumerate((8, 16), start=1):
        conv, pool = f"conv{number}", f"pool{number}"
        layers += [
            fnn.Layer(conv, channels, "relu", ((before, by),)),
            fnn.Layer(pool, channels, fnn.activations.max_pool((2, 2)), ((conv, "identity"),), bias="none"),
        ]
        before = pool
    output = fnn.Layer("output", 10, "softmax", ((before, "full"),))
    return fnn.Network((("image", (8, 8, 1)),), (*layers, output))


def parts(task) -> tuple[tuple, tuple, tuple]:
    """(training, validation, test), each (pictures, targets); `load` has shuffled them."""
    x, rows = task.inputs.reshape(-1, 8, 8, 1), len(task.inputs) * 4 // 5
    test = task.test_inputs.reshape(-1, 8, 8, 1), task.test_targets
    return (x[:rows], task.targets[:rows]), (x[rows:], task.targets[rows:]), test


def train(data: tuple, held_out: tuple, seeds: int, epochs: int, label: str) -> training.Population:
    """Every kernel size with every rate and seed, which differ in that order, the last fastest."""
    members = training.grid(kernel=KERNELS, learning_rate=RATES, seed=range(seeds))
    with progress(label, epochs) as advance:
        return training.fit_population(
            build, "cross_entropy", "adam", members, data, key=jax.random.key(0), epochs=epochs, validation=held_out,
            plan=PLAN, on_chunk=lambda at: advance(at.epoch),
        )  # fmt: skip


def alone(data: tuple, held_out: tuple, epochs: int) -> dict[int, tuple[float, float]]:
    """{kernel: (seconds of a first `fit`, with compilation, and of each later one)}, at one rate."""
    optimizer, found = optimizers.adam(RATES[0]), {}
    for kernel in KERNELS:
        took = []
        for seed in range(1 + ALONE):
            began = time.perf_counter()
            fnn.fit(
                build(kernel), "cross_entropy", optimizer, *data, key=jax.random.key(seed), epochs=epochs,
                plan=PLAN, validation=held_out, chunk=10,
            )  # fmt: skip
            took.append(time.perf_counter() - began)
        found[kernel] = took[0], float(np.mean(took[1:]))
    return found


def table(population: training.Population, test: tuple, seeds: int) -> list[dict]:
    """A row a kernel size and rate; mean and spread over the seeds."""
    shape = len(KERNELS), len(RATES), seeds
    accuracy = np.nan_to_num(population.history.validation_accuracy[-1]).reshape(shape)
    loss = population.history.validation_loss[-1].reshape(shape)
    members, best, rows = np.arange(len(population)).reshape(shape), accuracy.mean(axis=-1).argmax(axis=-1), []
    for i, kernel in enumerate(KERNELS):
        network = population.network(members[i, 0, 0])
        measure = jax.jit(lambda params, network=network: training.evaluate(network, "cross_entropy", params, *test)[1])
        for j, rate in enumerate(RATES):
            tested = [float(measure(population.params(m))) for m in members[i, j]] if j == best[i] else []
            rows.append({
                "kernel": f"{kernel} x {kernel}",
                "parameters": sum(row["parameters"] for row in fnn.presets.layer_rows(network)),
                "rate": rate,
                "validation accuracy": float(accuracy[i, j].mean()),
                "sd": float(accuracy[i, j].std()),
                "lowest": float(accuracy[i, j].min()),
                "highest": float(accuracy[i, j].max()),
                "validation loss": float(loss[i, j].mean()),
                "test accuracy": float(np.mean(tested)) if tested else "",
            })  # fmt: skip
    return rows


def draw(rows: list[dict], population: training.Population, seeds: int):
    """Left: accuracy against the rate, mean and range over seeds. Right: over training, at the best rate."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(KERNELS)))
        history = 100 * population.history.validation_accuracy.reshape(-1, len(KERNELS), len(RATES), seeds)
        for i, (kernel, color) in enumerate(zip(KERNELS, colors, strict=True)):
            own = [row for row in rows if row["kernel"] == f"{kernel} x {kernel}"]
            mean, low, high = (100 * np.array([row[name] for row in own])
                               for name in ("validation accuracy", "lowest", "highest"))  # fmt: skip
            left.plot(RATES, mean, color=color, marker="o", ms=4, label=f"{kernel} x {kernel}")
            left.fill_between(RATES, low, high, color=color, alpha=0.18, lw=0)
            best = history[:, i, mean.argmax()]
            epochs = np.arange(1, len(best) + 1)
            right.plot(epochs, best.mean(1), color=color, label=f"{kernel} x {kernel}, rate {RATES[mean.argmax()]:g}")
            right.fill_between(epochs, best.min(1), best.max(1), color=color, alpha=0.18, lw=0)
        left.set(xscale="log", xlabel="learning rate", ylabel="% right, validation")
        left.set_title("after the last epoch: mean and range over seeds", loc="left")
        right.set(xlabel="epoch", ylabel="% right, validation")
        right.set_title("over training, best rate", loc="left")
        for axis in (left, right):
            axis.legend(fontsize=8, title="kernels", loc="lower right")
    return figure


def notes(rows: list[dict], first, again, one_by_one: dict, epochs: int) -> str:
    each = len(first) // len(KERNELS)
    cold = sum(compiling + (each - 1) * later for compiling, later in one_by_one.values())
    warm = sum(each * later for _, later in one_by_one.values())
    best = max(rows, key=lambda row: row["validation accuracy"])
    single = ", ".join(f"{kernel} x {kernel} {later:.2f} s" for kernel, (_, later) in one_by_one.items())
    paragraphs = [
        f"Best: {best['kernel']} at {best['rate']:g}, {best['validation accuracy']:.2%} +- {best['sd']:.2%} on the "
        f"validation part, {best['test accuracy']:.2%} on the test part.",
        f"{len(first)} networks x {epochs} epochs in {first.seconds:.1f} s, compilation of {len(first.parts)} programs "
        f"included; once more, compiled, {again.seconds:.1f} s.",
        f"One after the other by `fit`, from {ALONE} of each size ({single} each, compiled): {cold:.1f} s for all with "
        f"a compilation for each size, {warm:.1f} s compiled. The population takes {first.seconds / cold:.2f} of that "
        f"with compilation and {again.seconds / warm:.2f} without.",
    ]
    return "\n".join(textwrap.fill(paragraph, 118) for paragraph in paragraphs)


def main() -> None:
    options = experiments.arguments(__doc__, "results/population_convolution", seeds=4, epochs=20)
    data, held_out, test = parts(experiments.load("digits"))
    first = train(data, held_out, options.seeds, options.epochs, "population")
    again = train(data, held_out, options.seeds, options.epochs, "once more")
    one_by_one = alone(data, held_out, options.epochs)
    rows = table(first, test, options.seeds)
    said = notes(rows, first, again, one_by_one, options.epochs)
    experiments.write(options.out, rows, draw(rows, first, options.seeds), said)


if __name__ == "__main__":
    main()
