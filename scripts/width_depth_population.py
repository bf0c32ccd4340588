#!/usr/bin/env python
"""Width against depth on digits: six widths, four depths, several learning rates and seeds, trained by one call.

    python scripts/width_depth_population.py --seeds 8 --epochs 30

tanh layers of equal width and softmax, Adam, batches of 32. `fit_population` is given a function from width and depth
to a network, and compiles one program for each of the 24. For each network the learning rate with the lowest median
validation loss after the last epoch is kept. The validation part is a fifth of the training data; the test set takes no
part in any choice. As a check, all widths of one depth are trained a second time, padded with zeros to the widest
(pad=True), in one program: the losses should agree except for rounding, and the times show what one compilation instead
of six saves. All CPU cores are used; the environment variable JAX_NUM_CPU_DEVICES sets another number.
"""

import jax
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

WIDTHS, DEPTHS, CHECKED_DEPTH = (4, 8, 16, 32, 64, 128), (1, 2, 3, 4), 2
RATES = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064]


def build(width: int, depth: int) -> fnn.Network:
    return fnn.multilayer((64, *[width] * depth, 10), ("tanh",) * depth + ("softmax",))


def train(task, depths, seeds: int, epochs: int, pad: bool = False) -> fnn.training.Population:
    """Trains every depth with every width, rate and seed; seeds vary fastest."""
    jax.clear_caches()  # so that the time of every call includes its compilation
    members = fnn.training.grid(depth=depths, width=WIDTHS, learning_rate=RATES, seed=range(seeds))
    data, held_out = task.divided(len(task.inputs) * 4 // 5)
    with progress("padded" if pad else f"depth {', '.join(map(str, depths))}", epochs) as advance:
        return fnn.training.fit_population(
            build,
            task.loss,
            "adam",
            members,
            data,
            key=jax.random.key(0),
            epochs=epochs,
            validation=held_out,
            pad=pad,
            plan=fnn.training.minibatch(32),
            on_chunk=lambda at: advance(at.epoch),
        )


def evaluate(population, members: np.ndarray, task) -> np.ndarray:
    """Returns (loss, accuracy) on the test set, (2, members), of members with the same network."""
    network = population.network(members[0])
    measure = jax.jit(lambda params: fnn.training.evaluate(network, task.loss, params, *task.test))
    return np.array([measure(population.params(member)) for member in members]).T


def table(population, task, seeds: int) -> list[dict]:
    """Makes a row for each network, at its best rate; medians over the seeds."""
    shape = len(DEPTHS), len(WIDTHS), len(RATES), seeds
    validation = np.nan_to_num(population.history.validation_loss[-1], nan=np.inf).reshape(shape)
    training = population.history.training_loss[-1].reshape(shape)
    members, best = np.arange(len(population)).reshape(shape), experiments.best_rate(validation)
    rows = []
    for at in np.ndindex(best.shape):
        chosen = (*at, best[at])
        loss, accuracy = evaluate(population, members[chosen], task)
        low, middle, high = np.quantile(accuracy, (0.25, 0.5, 0.75))
        rows.append(
            {
                "depth": DEPTHS[at[0]],
                "width": WIDTHS[at[1]],
                "parameters": experiments.parameter_count(population.network(members[chosen][0])),
                "best rate": RATES[best[at]],
                "edge": "edge" if experiments.at_edge(RATES[best[at]], RATES) else "",
                "training loss": float(np.median(training[chosen])),
                "validation loss": float(np.median(validation[chosen])),
                "test loss": float(np.median(loss)),
                "accuracy 25 %": float(low),
                "test accuracy": float(middle),
                "accuracy 75 %": float(high),
            }
        )
    return rows


def draw(rows: list[dict]):
    """Draws test accuracy by width and depth, with numbers of parameters; and losses against these."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.2), layout="constrained", width_ratios=(1.35, 1))
        accuracy = np.array([row["test accuracy"] for row in rows]).reshape(len(DEPTHS), len(WIDTHS))
        lowest = accuracy.max() - 0.08  # below, one colour
        image = left.imshow(accuracy, cmap="viridis", aspect="auto", origin="lower", vmin=max(lowest, accuracy.min()))
        for row in rows:
            at = WIDTHS.index(row["width"]), DEPTHS.index(row["depth"])
            dark = image.norm(row["test accuracy"]) < 0.6
            left.text(
                *at,
                f"{row['test accuracy']:.1%}\n{row['parameters']:,}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
        left.set_xticks(range(len(WIDTHS)), WIDTHS)
        left.set_yticks(range(len(DEPTHS)), DEPTHS)
        left.grid(False)
        left.set(xlabel="width", ylabel="hidden layers", title="median test accuracy, and parameters")
        figure.colorbar(image, ax=left, extend="min" if accuracy.min() < image.norm.vmin else "neither")
        colors = plt.get_cmap("plasma")(np.linspace(0, 0.85, len(DEPTHS)))
        for depth, color in zip(DEPTHS, colors, strict=True):
            own = [row for row in rows if row["depth"] == depth]
            parameters = [row["parameters"] for row in own]
            right.plot(parameters, [row["test loss"] for row in own], color=color, marker=".", label=f"{depth} hidden")
            right.plot(parameters, [row["training loss"] for row in own], "--", color=color, lw=1)
        right.plot([], [], "--", color="grey", lw=1, label="training")
        right.set(xscale="log", yscale="log", xlabel="parameters", title="median test and training loss")
        right.legend(fontsize=8)
    return figure


def notes(rows: list[dict], population, alone, padded, seeds: int, epochs: int) -> str:
    """Says what the numbers show."""
    most = max(rows, key=lambda row: row["test accuracy"])
    chosen = min(rows, key=lambda row: row["validation loss"])
    best_depth = {
        width: min((row for row in rows if row["width"] == width), key=lambda row: row["validation loss"])["depth"]
        for width in WIDTHS
    }
    by_depth = ", ".join(f"{depth} at width {width}" for width, depth in best_depth.items())
    gains = {
        depth: [
            row["test accuracy"] for row in rows if row["depth"] == depth and row["width"] in WIDTHS[:: len(WIDTHS) - 1]
        ]
        for depth in DEPTHS
    }
    widening = ", ".join(f"{low:.1%} to {high:.1%} ({depth})" for depth, (low, high) in gains.items())
    edges = [f"{row['width']} x {row['depth']}" for row in rows if row["edge"]]

    def apart(name: str, epoch: int) -> np.ndarray:
        unpadded, filled = (getattr(p.history, name)[epoch] for p in (alone, padded))
        return np.abs(unpadded - filled) / np.abs(unpadded)

    first, last = (np.maximum(apart("training_loss", epoch), apart("validation_loss", epoch)) for epoch in (0, -1))
    by_rate = ", ".join(
        f"{last[padded.hyperparameters['learning_rate'] == rate].max():.1e} at {rate}" for rate in RATES
    )
    faster = "padded" if padded.seconds < alone.seconds else "grouped"
    ratio = max(padded.seconds, alone.seconds) / min(padded.seconds, alone.seconds)
    lines = [
        f"Lowest validation loss: width {chosen['width']}, {chosen['depth']} hidden, {chosen['parameters']:,} "
        f"parameters, test accuracy {chosen['test accuracy']:.2%}. Highest test accuracy: width {most['width']}, "
        f"{most['depth']} hidden, {most['test accuracy']:.2%}.",
        f"Hidden layers with the lowest validation loss: {by_depth}. From width {WIDTHS[0]} to {WIDTHS[-1]} the test "
        f"accuracy goes from {widening} (hidden layers).",
        f"{len(population)} networks ({len(WIDTHS)} widths, {len(DEPTHS)} depths, {len(RATES)} rates, {seeds} seeds) x "
        f"{epochs} epochs in {population.seconds:.1f} s, compilation of {len(population.groups)} programs included, on "
        f"{jax.device_count()} x {jax.devices()[0].platform}.",
        f"Check, {CHECKED_DEPTH} hidden, {len(padded)} networks: filled up to width {WIDTHS[-1]} "
        f"({len(padded.groups)} program) in {padded.seconds:.1f} s, grouped ({len(alone.groups)} programs) in "
        f"{alone.seconds:.1f} s, both with compilation: {faster} is {ratio:.2g} times as fast. Largest relative "
        f"difference of training and validation losses: {first.max():.1e} after the first epoch; after the last "
        f"{last.max():.1e} ({by_rate}), the median {np.median(last):.1e}. Sums are rounded in another order, which "
        "training amplifies where the rate is large.",
        "test accuracy: median and quartiles over the seeds at the best rate; edge: that is the first or last tried"
        + (f" ({', '.join(edges)}, width x hidden)." if edges else "."),
    ]
    return experiments.paragraphs(*lines)


def main() -> None:
    experiments.start(all_cores=True)
    options = experiments.arguments(__doc__, "results/width_depth_population", seeds=8, epochs=30)
    task, settings = experiments.load("digits"), (options.seeds, options.epochs)
    alone = train(task, [CHECKED_DEPTH], *settings)
    padded = train(task, [CHECKED_DEPTH], *settings, pad=True)
    population = train(task, DEPTHS, *settings)
    rows = table(population, task, options.seeds)
    experiments.write(options.out, rows, draw(rows), notes(rows, population, alone, padded, *settings))


if __name__ == "__main__":
    main()
