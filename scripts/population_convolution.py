#!/usr/bin/env python
"""48 convolutional networks on the digits in one call: learning rates x kernel sizes x seeds.

    python scripts/population_convolution.py --seeds 4 --epochs 20

Two convolutions of 8 and 16 channels, each with 2 x 2 max pooling, then a softmax layer; Adam, batches of 32. Kernels
of one pixel see no neighbours before pooling, so that the larger ones show what neighbours add. `fit_population` is
given a function from the kernel's size to a network, and compiles one program for each size, in which rates and seeds
train together. The accuracy is that on a fifth of the training part, after the last epoch; the test part is used for
the best rate of each size only. In the same run, some of the members are also trained by `fit` one after the other;
from these the time of all of them is computed. All CPU cores are used; the environment variable JAX_NUM_CPU_DEVICES
sets another number.
"""

import time
from typing import NamedTuple

import jax
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import experiments
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

KERNELS = (1, 3, 5)
RATES = (0.001, 0.003, 0.01, 0.03)
PLAN = training.minibatch(32)
ALONE = 3  # members of each kernel size that are trained by `fit`, after two that may compile


def build(kernel: int) -> fnn.Network:
    by = fnn.connections.conv((kernel, kernel), padding=kernel // 2)  # numbers, as 5 x 5 is wider than pool1's 4 x 4
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


def data_of(task) -> tuple[tuple, tuple, tuple]:
    """Returns training, validation and test part, each as (pictures, targets)."""
    parts = *task.divided(len(task.inputs) * 4 // 5), task.test
    return tuple((inputs.reshape(-1, 8, 8, 1), targets) for inputs, targets in parts)


def train(data: tuple, held_out: tuple, seeds: int, epochs: int, label: str) -> training.Population:
    """Trains every kernel size with every rate and seed; seeds vary fastest."""
    members = training.grid(kernel=KERNELS, learning_rate=RATES, seed=range(seeds))
    with progress(label, epochs) as advance:
        return training.fit_population(
            build,
            "cross_entropy",
            "adam",
            members,
            data,
            key=jax.random.key(0),
            epochs=epochs,
            validation=held_out,
            plan=PLAN,
            on_chunk=lambda at: advance(at.epoch),
        )


class FitSeconds(NamedTuple):
    """Seconds of one `fit`: the first, with compilation; the first at another rate; the mean of later ones."""

    first: float
    other_rate: float
    later: float


def time_fits(data: tuple, held_out: tuple, epochs: int) -> dict[int, FitSeconds]:
    """Times `fit` for each kernel size."""
    found = {}
    for kernel in KERNELS:
        took = []
        for rate, seed in ((RATES[0], 0), (RATES[1], 0), *((RATES[1], seed) for seed in range(1, ALONE + 1))):
            began = time.perf_counter()
            fnn.fit(
                build(kernel),
                "cross_entropy",
                optimizers.adam(rate),
                *data,
                key=jax.random.key(seed),
                epochs=epochs,
                plan=PLAN,
                validation=held_out,
            )
            took.append(time.perf_counter() - began)
        found[kernel] = FitSeconds(took[0], took[1], float(np.mean(took[2:])))
    return found


def table(population: training.Population, test: tuple, seeds: int) -> list[dict]:
    """Makes a row for each kernel size and rate: mean and spread over the seeds."""
    shape = len(KERNELS), len(RATES), seeds
    accuracy = np.nan_to_num(population.history.validation_accuracy[-1]).reshape(shape)
    loss = population.history.validation_loss[-1].reshape(shape)
    members, best, rows = (
        np.arange(len(population)).reshape(shape),
        experiments.best_rate(-accuracy.mean(axis=-1, keepdims=True)),
        [],
    )
    for i, kernel in enumerate(KERNELS):
        network = population.network(members[i, 0, 0])
        measure = jax.jit(lambda params, network=network: training.evaluate(network, "cross_entropy", params, *test)[1])
        for j, rate in enumerate(RATES):
            tested = [float(measure(population.params(m))) for m in members[i, j]] if j == best[i] else []
            rows.append(
                {
                    "kernel": f"{kernel} x {kernel}",
                    "parameters": experiments.parameter_count(network),
                    "rate": rate,
                    "validation accuracy": float(accuracy[i, j].mean()),
                    "sd": float(accuracy[i, j].std()),
                    "lowest": float(accuracy[i, j].min()),
                    "highest": float(accuracy[i, j].max()),
                    "validation loss": float(loss[i, j].mean()),
                    "test accuracy": float(np.mean(tested)) if tested else "",
                }
            )
    return rows


def draw(rows: list[dict], population: training.Population, seeds: int):
    """Draws wrong answers against the rate, mean and range over seeds; and over training, at the best rate."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
        colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(KERNELS)))
        accuracy = population.history.validation_accuracy.reshape(-1, len(KERNELS), len(RATES), seeds)
        wrong = 100 * np.maximum(1 - np.nan_to_num(accuracy), 1e-3)  # 0 is not on a logarithmic axis
        for i, (kernel, color) in enumerate(zip(KERNELS, colors, strict=True)):
            label = f"{kernel} x {kernel}"
            best = max((row for row in rows if row["kernel"] == label), key=lambda row: row["validation accuracy"])
            over = wrong[:, i, RATES.index(best["rate"])]
            epochs = np.arange(1, len(over) + 1)
            for axis, x, values, name in (
                (left, RATES, wrong[-1, i], label),
                (right, epochs, over, f"{label}, rate {best['rate']:g}"),
            ):
                axis.plot(x, values.mean(1), color=color, marker=".", label=name)
                axis.fill_between(x, values.min(1), values.max(1), color=color, alpha=0.18, lw=0)
        left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="% wrong, validation")
        left.set_title("after the last epoch: mean and range over seeds", loc="left")
        right.set(xlabel="epoch")
        right.set_title("over training, best rate", loc="left")
        for axis in (left, right):
            axis.legend(fontsize=8, title="kernels", loc="center right", bbox_to_anchor=(1, 0.66))
    return figure


def notes(rows: list[dict], first, again, one_by_one: dict[int, FitSeconds], epochs: int) -> str:
    each, rates = len(first) // len(KERNELS), len(RATES)
    cold = sum(fit.first + (rates - 1) * fit.other_rate + (each - rates) * fit.later for fit in one_by_one.values())
    warm = sum(each * fit.later for fit in one_by_one.values())
    best = max(rows, key=lambda row: row["validation accuracy"])
    single = "; ".join(
        f"{kernel} x {kernel} {fit.first:.1f}, {fit.other_rate:.1f} and {fit.later:.2f} s"
        for kernel, fit in one_by_one.items()
    )
    lines = [
        f"Best: {best['kernel']} at {best['rate']:g}, {best['validation accuracy']:.2%} +- {best['sd']:.2%} on the "
        f"validation part, {best['test accuracy']:.2%} on the test part.",
        f"{len(first)} networks x {epochs} epochs in {first.seconds:.1f} s, compilation of {len(first.groups)} "
        f"programs included; once more, compiled, {again.seconds:.1f} s.",
        f"By `fit`, the first network of a size, the first at another rate, and a later one: {single}. One after the "
        f"other that makes {cold:.1f} s for all {len(first)}, and {warm:.1f} s were all compiled. The population takes "
        f"{first.seconds / cold:.2f} of that with compilation and {again.seconds / warm:.2f} without.",
    ]
    return experiments.paragraphs(*lines)


def main() -> None:
    experiments.start(all_cores=True)
    options = experiments.arguments(__doc__, "results/population_convolution", seeds=4, epochs=20)
    data, held_out, test = data_of(experiments.load("digits"))
    first = train(data, held_out, options.seeds, options.epochs, "population")
    again = train(data, held_out, options.seeds, options.epochs, "once more")
    one_by_one = time_fits(data, held_out, options.epochs)
    rows = table(first, test, options.seeds)
    said = notes(rows, first, again, one_by_one, options.epochs)
    experiments.write(options.out, rows, draw(rows, first, options.seeds), said)


if __name__ == "__main__":
    main()
