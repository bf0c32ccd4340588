#!/usr/bin/env python
"""All optimizers on three data sets, each at its best learning rate.

    python scripts/optimizer_race.py --seeds 8 --epochs 30

Each optimizer is tried at nine rates, half a decade apart, around its default. The rate with the lowest median loss on
a validation part, a fifth of the training set, is kept. Results are measured on the test set, which takes no part in
any choice. All rates and seeds of an optimizer and a data set train in one compiled program. Batches have 32 examples;
rprop, which needs the full batch, makes one update an epoch and has five times the epochs. At the end the optimizer
with the lowest validation loss on digits is trained on the whole training set, from new seeds.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, GREY, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

HIDDEN = {
    "digits": 128,
    "breast_cancer": 16,
    "diabetes": 16,
}  # one layer of relu, which is best on digits' validation part
LONGER, FURTHER_SEEDS = 5, 5
FACTORS = 10.0 ** np.arange(-2, 2.5, 0.5)
# With networks of this size, the full matrix of every member would take hundreds of megabytes.
NAMES = [name for name in fnn.optimizers.names() if name != "full_matrix_adagrad"]
OPTIMIZERS = {name: getattr(fnn.optimizers, name) for name in NAMES} | {
    # Where the training data are fitted exactly, signs stop changing and steps grow to the largest, by default 50.
    "rprop short steps": lambda rate: fnn.optimizers.rprop(rate, largest=rate),
    "nesterov look_ahead": partial(fnn.optimizers.nesterov, form="look_ahead"),
    "rmsprop centered": partial(fnn.optimizers.rmsprop, centered=True),
}
FAMILIES = {
    "one rate for all": (BLACK, ("gd", "momentum", "nesterov", "nesterov look_ahead")),
    "signs": (GREEN, ("rprop", "rprop short steps")),
    "squared gradients": (VERMILION, ("adagrad", "adadelta", "rmsprop", "rmsprop centered")),
    "both moments": (BLUE, ("adam", "adamax", "amsgrad", "nadam", "adamw")),
}


def rates_of(label: str) -> np.ndarray:
    """Returns the grid around the default of the first argument, the rate (for rprop a first step far below it)."""
    default = next(iter(inspect.signature(OPTIMIZERS[label]).parameters.values())).default
    return ((3e-3 if label.startswith("rprop") else default) * FACTORS).astype(np.float32)


def train(task, label: str, rates, keys, epochs: int, *judged_on):
    """Returns training loss (rates, seeds, epochs), and (loss, accuracy) (rates, seeds) on each pair of `judged_on`."""
    make, loss = OPTIMIZERS[label], fnn.losses.get(task.loss)
    sizes = (task.inputs.shape[1], HIDDEN[task.name], task.targets.shape[1])
    network = fnn.multilayer(sizes, ("relu", task.output))
    plan = fnn.training.minibatch(32)
    if make(1e-3).full_batch:
        plan, epochs = fnn.training.batch(), LONGER * epochs

    def member(rate, key, inputs, targets, judged_on):
        fitted = fnn.training.pure_fit(network, loss, make(rate), epochs=epochs, plan=plan)(key, inputs, targets)
        judged = [fnn.training.evaluate(network, loss, fitted.params, *data) for data in judged_on]
        return fitted.history.training_loss, judged

    # With one axis of members, and the data as arguments, it compiles in two thirds of the time.
    rate, seed = (index.ravel() for index in np.indices((len(rates), len(keys))))
    program = jax.jit(jax.vmap(member, (0, 0, None, None, None)))
    members = program(jnp.asarray(rates)[rate], keys[seed], task.inputs, task.targets, judged_on)
    return jax.tree.map(lambda x: np.asarray(x).reshape(len(rates), len(keys), *x.shape[1:]), members)


def race(task, label: str, keys, epochs: int) -> dict:
    """Chooses the rate by validation. Returns its results on the test set, by seed."""
    (inputs, targets), held_out = task.divided(len(task.inputs) * 4 // 5)
    part, rates = task._replace(inputs=inputs, targets=targets), rates_of(label)
    curves, ((validation, _), (loss, score)) = train(part, label, rates, keys, epochs, held_out, task.test)
    if task.loss == "mean_square_error":
        score = 1 - loss / np.var(task.test_targets)  # R^2
    best = int(experiments.best_rate(validation))
    return {
        "optimizer": label,
        "rate": float(rates[best]),
        "at_edge": experiments.at_edge(rates[best], rates),
        "validation": float(experiments.medians(validation[best])),
        "curve": np.median(curves[best], axis=0),
        "loss": loss[best],
        "score": score[best],
    }


def draw(results: dict[str, list[dict]]):
    """Draws test scores, medians and quartiles over the seeds; and below them the training loss, medians."""
    color = {label: c for c, members in FAMILIES.values() for label in members}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(results), figsize=(4.2 * len(results), 7.4), layout="constrained", height_ratios=(1.5, 1)
        )
        for (dots, curves), (name, found) in zip(axes.T, results.items(), strict=True):
            found = sorted(found, key=lambda run: (np.median(run["score"]), -np.median(run["loss"])))
            for place, run in enumerate(found):
                shade = color.get(run["optimizer"], GREY)
                low, middle, high = np.quantile(run["score"], (0.25, 0.5, 0.75))
                dots.plot((low, high), (place, place), color=shade, lw=2.5, alpha=0.4)
                dots.plot(middle, place, "o", color=shade, ms=5)
                curves.plot(np.arange(1, len(run["curve"]) + 1), run["curve"], color=shade, lw=1.1, alpha=0.8)
            dots.set_yticks(range(len(found)), [run["optimizer"] for run in found], fontsize=8, parse_math=False)
            dots.set(title=name, xlabel="test R²" if name == "diabetes" else "test accuracy")
            curves.set(xscale="log", yscale="log", xlabel="epoch")
            curves.set_ylim(bottom=max(1e-5, curves.get_ylim()[0]))
        axes[1, 0].set_ylabel("training loss")
        lines = [plt.Line2D([], [], color=c, marker="o", label=family) for family, (c, _) in FAMILIES.items()]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return figure


def main() -> None:
    options = experiments.arguments(__doc__, "results/optimizer_race", seeds=8, epochs=30)
    key, further = jax.random.split(jax.random.key(0))
    keys, results, done = jax.random.split(key, options.seeds), {}, 0
    with progress("race", len(HIDDEN) * len(OPTIMIZERS)) as advance:
        for name in HIDDEN:
            task, results[name] = experiments.load(name), []
            for label in OPTIMIZERS:
                advance(done, f"{name}, {label}")
                results[name].append(race(task, label, keys, options.epochs))
                done += 1
    rows = []
    for name, found in results.items():
        for run in sorted(found, key=lambda run: run["validation"]):
            low, middle, high = np.quantile(run["score"], (0.25, 0.5, 0.75))
            rows.append(
                {
                    "data": name,
                    "optimizer": run["optimizer"],
                    "best rate": run["rate"],
                    "edge": "edge" if run["at_edge"] else "",
                    "validation loss": run["validation"],
                    "test loss": float(np.median(run["loss"])),
                    "score 25 %": low,
                    "score": middle,
                    "score 75 %": high,
                }
            )
    winner, task = min(results["digits"], key=lambda run: run["validation"]), experiments.load("digits")
    _, ((_, accuracy),) = train(
        task, winner["optimizer"], [winner["rate"]], jax.random.split(further, FURTHER_SEEDS), options.epochs, task.test
    )
    notes = (
        f"The best of digits by validation loss, {winner['optimizer']} at {winner['rate']:.3g}, trained on the whole "
        f"training set from {FURTHER_SEEDS} further seeds:\nmean test accuracy {accuracy.mean():.2%} "
        f"({', '.join(f'{a:.2%}' for a in accuracy[0])}).\n\nscore: test accuracy, of diabetes R^2, median and "
        f"quartiles over {options.seeds} seeds; edge: the best rate is the grid's first or last.\n"
        f"{options.epochs} epochs of batches of 32; rprop: {LONGER * options.epochs} of the full batch."
    )
    experiments.write(options.out, rows, draw(results), notes)


if __name__ == "__main__":
    main()
