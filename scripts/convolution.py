#!/usr/bin/env python
"""Convolutional networks examined: gradients by hand and by jax.grad, wrong labels found, kernels, and digits at 99 %.

    python scripts/convolution.py --seeds 5
    python scripts/convolution.py --full --out results/convolution_full

Four studies of `presets.get("lenet")`, on the digits (8 x 8) and on Fashion-MNIST (28 x 28; Debian's package
dataset-fashion-mnist; 4000 pictures to train on and 2000 to test, drawn at random; --full takes all; half of --seeds,
rounded up):

OUT_agreement: `fnn.compare` by layer, before and after training: sensitivities and gradients of weights and biases
compared with `jax.grad`'s, relatively, and the bound from rounding. Before training the biases are 0, so that black
pixels put net inputs on the kink of relu, where a third opinion has no derivative.

OUT_wrong_labels: one label in twenty is replaced by another class at random, and the network is trained on them with
Adam. All training pictures are ranked by the norm of their own gradient, and by their loss. The table has the share of
wrong labels among the highest, when as many are flagged as were planted, and the share expected by chance.

OUT: kernels of the first layer after that training; the parts of their gradient that come from pictures with right and
with wrong labels (opposite where the loss is lowest, since they add up to nothing there); and the gradient of the most
suspicious picture's own loss.

OUT_digits: test accuracy on the digits after a plain training, and after one with wider layers, dropout, smoothed
labels and randomly shifted pictures. Its constants were chosen on three random fifths of the training part, not on the
test part.
"""

import time
from typing import NamedTuple

import jax
import numpy as np
from per_example_gradients import WRONG, average_precision, plant, precision

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import datasets, experiments, plots
from functional_nn.lab.palette import BLUE, VERMILION
from functional_nn.lab.plots import plt
from functional_nn.lab.progress import progress

LENET = "lenet"
COMPARED = 32  # pictures
RATE, BATCH = 0.002, 32  # of Adam, falling to 0 along a cosine, where labels are wrong
EPOCHS = {"digits": 20, "fashion_mnist": 8}
TABLE = {"digits": (1, 5, 10, 20), "fashion_mnist": (1, 2, 4, 8)}
SUBSET, SUBSET_TEST, MOST_AT_ONCE = 4000, 2000, 4000  # pictures
SCORES = {"gradient norm": BLUE, "loss": VERMILION}
GOAL = 0.99  # accuracy on the digits


class Recipe(NamedTuple):
    """How the digits are trained: network, epochs, Adam's first rate, smoothing of labels, augmentation."""

    network: str
    epochs: int
    rate: float
    smoothing: float = 0.0
    augment: tuple[str, ...] = ()


RECIPES = {
    "plain": Recipe("lenet", 40, 0.003),
    "smoothed, shifted": Recipe("lenet", 120, 0.003, 0.1, ("shift(1)",)),
    "and wider, dropout": Recipe("lenet((16, 32), (120, 84), relu, 0.3)", 120, 0.003, 0.1, ("shift(1)",)),
}


class Pictures(NamedTuple):
    """A data set: inputs (Q, H, W, 1), one-hot targets (Q, C), those to test with, and the names of the classes."""

    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
    classes: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        return self.targets.argmax(1)

    def network(self, preset: str = LENET) -> fnn.Network:
        return fnn.presets.get(preset)(self.inputs.shape[1:], len(self.classes))


def load(name: str, full: bool) -> Pictures:
    """Returns a data set's fixed split, in random order; the first of each part of Fashion-MNIST, unless `full`."""
    arrays = []
    for part, most in zip(datasets.split(datasets.load(name)), (SUBSET, SUBSET_TEST), strict=True):
        rows = slice(None if full or name == "digits" else most)
        arrays += [part.inputs[rows].reshape(-1, *part.image_shape, 1).astype("f4"), part.targets[rows].astype("f4")]
    return Pictures(*arrays, part.classes)


def cosine(rate: float, pictures: Pictures, epochs: int) -> fnn.optimizers.Optimizer:
    steps = epochs * -(-len(pictures.inputs) // BATCH)
    return optimizers.adam(optimizers.schedules.cosine(rate, steps=steps))


# By hand against automatic --------------------------------------------------------------------------------------------


def agreement(name: str, when: str, pictures: Pictures, params) -> tuple[list[dict], fnn.Agreement]:
    """Makes a row for each layer: relative differences of sensitivity and gradients, with the bound from rounding."""
    network = pictures.network()
    comparison = fnn.compare(network, "cross_entropy", params, pictures.inputs[:COMPARED], pictures.targets[:COMPARED])
    sensitivities = {array.name: array for array in comparison.sensitivities}
    rows = []
    for layer in network.layers:
        by_array = {"sensitivity": sensitivities[layer.name]}
        for array in comparison.parameters:
            name_of_layer, kind, *_ = array.name.split("/")
            if name_of_layer == layer.name:
                by_array[kind] = array
        row = {"data": name, "parameters": when, "layer": layer.name}
        for kind in ("sensitivity", "weights", "bias"):
            array = by_array.get(kind)
            row |= {kind: array.relative if array else "", f"{kind}, bound": array.bound if array else ""}
        rows.append(row | {"agrees": "yes" if all(array.agrees for array in by_array.values()) else "NO"})
    return rows, comparison


# Wrong labels ---------------------------------------------------------------------------------------------------------


class Searched(NamedTuple):
    """Training with wrong labels. scores: {name: (seeds, E, Q)}. given: the labels (seeds, Q). wrong: which of them are
    wrong. accuracy: on the given labels (seeds, E); test_accuracy: (seeds, E). params: the first seed's.
    """

    scores: dict[str, np.ndarray]
    given: np.ndarray
    wrong: np.ndarray
    accuracy: np.ndarray
    test_accuracy: np.ndarray
    params: dict


def search(name: str, pictures: Pictures, seeds: int, epochs: int) -> Searched:
    """Trains a network for each seed, which has its own wrong labels."""
    network, optimizer, classes = pictures.network(), cosine(RATE, pictures, epochs), len(pictures.classes)
    given, wrong = map(np.stack, zip(*(plant(pictures.labels, classes, s) for s in range(seeds)), strict=True))
    results = []
    with progress(f"wrong labels, {name}", seeds) as advance:
        for seed in range(seeds):
            results.append(
                fnn.fit(
                    network,
                    "cross_entropy",
                    optimizer,
                    pictures.inputs,
                    np.eye(classes, dtype="f4")[given[seed]],
                    key=jax.random.key(seed),
                    epochs=epochs,
                    plan=training.minibatch(BATCH),
                    chunk=epochs,
                    validation=(pictures.test_inputs, pictures.test_targets),
                    track=("per_example_norms", "per_example_losses"),
                )
            )
            advance(seed + 1)
    tracked = zip(SCORES, ("per_example_norms", "per_example_losses"), strict=True)
    scores = {score: np.stack([result.history.tracked[quantity] for result in results]) for score, quantity in tracked}
    accuracies = (
        np.stack([getattr(result.history, f"{part}_accuracy") for result in results])
        for part in ("training", "validation")
    )
    return Searched(scores, given, wrong, *accuracies, results[0].params)


def found_rows(name: str, searched: Searched, epochs: tuple[int, ...]) -> list[dict]:
    planted, rows = searched.wrong[0].sum(), []
    for epoch in epochs:
        for score in SCORES:
            at = searched.scores[score][:, epoch - 1]
            found, average = precision(at, searched.wrong)[:, planted - 1], average_precision(at, searched.wrong)
            rows.append(
                {
                    "data": name,
                    "epoch": epoch,
                    "ranked by": score,
                    "planted": int(planted),
                    "found among as many": float(found.mean()),
                    "sd": float(found.std()),
                    "by chance": WRONG,
                    "average precision": float(average.mean()),
                    "average precision, sd": float(average.std()),
                    "accuracy, labels given": float(searched.accuracy[:, epoch - 1].mean()),
                    "test accuracy": float(searched.test_accuracy[:, epoch - 1].mean()),
                }
            )
    return rows


def best_epoch(searched: Searched, epochs: tuple[int, ...]) -> int:
    norms = searched.scores["gradient norm"]
    return max(epochs, key=lambda epoch: average_precision(norms[:, epoch - 1], searched.wrong).mean())


def draw_wrong_labels(of: dict[str, tuple[Pictures, Searched]], epochs: dict[str, tuple[int, ...]]):
    """Draws, for each data set, precision over training and down the ranking, and the pictures with the
    largest norms.
    """
    with plt.rc_context(plots.STYLE):
        figure = plt.figure(figsize=(13, 4.9 * len(of)), layout="constrained")
        panels = figure.subfigures(len(of), 1, squeeze=False)[:, 0]
        for panel, (name, (pictures, searched)) in zip(panels, of.items(), strict=True):
            left, right = panel.subfigures(1, 2, width_ratios=(1.05, 1))
            over, down = left.subplots(1, 2)
            planted, best = searched.wrong[0].sum(), best_epoch(searched, epochs[name])
            x = np.arange(1, searched.accuracy.shape[1] + 1)
            for score, color in SCORES.items():
                value = precision(searched.scores[score], searched.wrong[:, None])[:, :, planted - 1]
                over.plot(x, value.mean(0), color=color, marker=".", label=score)
                over.fill_between(x, value.min(0), value.max(0), color=color, alpha=0.15, lw=0)
                curve = precision(searched.scores[score][:, best - 1], searched.wrong).mean(0)
                down.plot(np.arange(1, len(curve) + 1), curve, color=color, label=score)
            for axis in (over, down):
                axis.axhline(WRONG, color="grey", ls=":", label="chance")
                axis.set(ylim=(0, 1.02))
            down.axvline(planted, color="grey", lw=0.8)
            over.set(xlabel="epoch", ylabel=f"wrong among the {planted} highest")
            down.set(xlabel=f"flagged (line: as many as are wrong, {planted})", ylabel="wrong among them", xscale="log")
            over.set_title(f"{name}: over training", loc="left")
            down.set_title(f"epoch {best}", loc="left")
            over.legend(fontsize=8, loc="lower right")
            right.suptitle("highest gradient norms of one network: label given / true, red where wrong", fontsize=9)
            order = np.argsort(-searched.scores["gradient norm"][0, best - 1])
            short = [label.split("/")[0].split()[-1] for label in pictures.classes]
            for axis, q in zip(right.subplots(4, 8).flat, order, strict=False):
                axis.imshow(pictures.inputs[q, :, :, 0], cmap="gray_r")
                wrong, labels = searched.wrong[0, q], (searched.given[0, q], pictures.labels[q])
                said = (" / " if max(map(len, short)) < 3 else "\n/ ").join(short[label] for label in labels)
                axis.set_title(said, fontsize=7, color="#b00020" if wrong else "#333333", pad=2)
                axis.set_axis_off()
    return figure


# Kernels --------------------------------------------------------------------------------------------------------------


class Kernels(NamedTuple):
    """Kernels of the first layer after training (S, height, width), and gradients: the parts of the mean loss's
    gradient from pictures with right and with wrong labels, which add up to it; and the gradient of one picture's own
    loss.
    """

    kernels: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    single: np.ndarray
    suspect: int  # the index of that picture


def kernels_of(pictures: Pictures, searched: Searched) -> Kernels:
    """Returns the kernels of the first seed's network. Their gradients are of the first pictures,
    MOST_AT_ONCE at most.
    """
    network, some = pictures.network(), slice(MOST_AT_ONCE)
    targets = np.eye(len(pictures.classes), dtype="f4")[searched.given[0]]
    gradient = jax.jit(fnn.value_and_grad(network, "cross_entropy"))

    def first(tree) -> np.ndarray:
        return np.asarray(tree["conv1"]["weights"]["image"])[..., 0]

    def contribution(rows: np.ndarray, total: int) -> np.ndarray:
        return len(rows) / total * first(gradient(searched.params, pictures.inputs[rows], targets[rows])[1])

    suspect, wrong = int(np.argmax(searched.scores["gradient norm"][0, -1])), searched.wrong[0, some]
    both = (contribution(np.flatnonzero(which), len(wrong)) for which in (~wrong, wrong))
    return Kernels(first(searched.params), *both, contribution(np.array([suspect]), 1), suspect)


def kernel_rows(name: str, found: Kernels) -> list[dict]:
    """Makes a row for each kernel: its norm, and those of its gradients."""

    def norm(x):
        return np.linalg.norm(x.reshape(len(x), -1), axis=1)

    columns = {
        "norm": found.kernels,
        "gradient": found.right + found.wrong,
        "by right labels": found.right,
        "by wrong labels": found.wrong,
        "by the most suspicious": found.single,
    }
    norms = {column: norm(values) for column, values in columns.items()}
    return [
        {"data": name, "kernel": k} | {column: float(values[k]) for column, values in norms.items()}
        for k in range(len(found.kernels))
    ]


def draw_kernels(of: dict[str, tuple[Pictures, Searched, Kernels]]):
    """Draws kernels as small pictures, with their gradients below; the two parts of one sum have one scale."""
    with plt.rc_context(plots.STYLE | {"axes.grid": False}):
        figure = plt.figure(figsize=(9.5, 5.6 * len(of)), layout="constrained")
        panels = figure.subfigures(len(of), 1, squeeze=False)[:, 0]
        for panel, (name, (pictures, searched, found)) in zip(panels, of.items(), strict=True):
            count = len(found.kernels)
            axes = panel.subplots(4, count + 1, width_ratios=[1] * count + [1.5])
            panel.suptitle(
                f"{name}, first layer after {searched.accuracy.shape[1]} epochs; purple below 0, orange above"
            )
            rows = {
                "kernels": found.kernels,
                "gradient,\nright labels": found.right,
                "gradient,\nwrong labels": found.wrong,
                "gradient,\none picture": found.single,
            }
            sizes = {said: np.abs(values).max() for said, values in rows.items()}
            shared = max(np.abs(found.right).max(), np.abs(found.wrong).max())
            for line, (said, values) in zip(axes, rows.items(), strict=True):
                largest = (shared if "labels" in said else sizes[said]) or 1.0
                for axis, kernel in zip(line, values, strict=False):
                    axis.imshow(kernel, cmap="PuOr_r", vmin=-largest, vmax=largest)
                    axis.set(xticks=(), yticks=())
                line[0].set_ylabel(said, fontsize=9)
                line[-1].set_axis_off()
                line[-1].text(0.5, 0.5, f"largest {sizes[said]:.2g}", ha="center", va="center", fontsize=9)
            last = axes[3, -1]
            last.texts[0].remove()
            last.imshow(pictures.inputs[found.suspect, :, :, 0], cmap="gray_r")
            given, label = (pictures.classes[y[found.suspect]] for y in (searched.given[0], pictures.labels))
            last.set_title(f"given {given}, is {label};\nlargest {np.abs(found.single).max():.2g}", fontsize=8)
    return figure


# The digits at 99 % ---------------------------------------------------------------------------------------------------


def digits_row(name: str, recipe: Recipe, pictures: Pictures, seeds: int, epochs: int) -> dict:
    """Makes a row with the accuracy on the test part after the last epoch, over seeds."""
    network, began = pictures.network(recipe.network), time.perf_counter()
    targets = fnn.smooth_labels(pictures.targets, recipe.smoothing)
    optimizer, accuracy = cosine(recipe.rate, pictures, epochs), []
    with progress(f"digits, {name}", seeds) as advance:
        for seed in range(seeds):
            result = fnn.fit(
                network,
                "cross_entropy",
                optimizer,
                pictures.inputs,
                targets,
                key=jax.random.key(seed),
                epochs=epochs,
                plan=training.minibatch(BATCH),
                augment=recipe.augment,
                chunk=epochs,
            )
            test = pictures.test_inputs, pictures.test_targets
            accuracy.append(float(training.evaluate(network, "cross_entropy", result.params, *test)[1]))
            advance(seed + 1)
    return {
        "training": name,
        "network": recipe.network,
        "parameters": experiments.parameter_count(network),
        "epochs": epochs,
        "smoothing": recipe.smoothing,
        "augment": " ".join(recipe.augment),
        "seeds": seeds,
        "test accuracy": float(np.mean(accuracy)),
        "lowest": min(accuracy),
        "highest": max(accuracy),
        "seconds": time.perf_counter() - began,
    }


# What is written ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = experiments.parser(__doc__, "results/convolution", seeds=5)
    parser.add_argument("--epochs", type=int, help="the most epochs of any training; default what suits each")
    parser.add_argument("--full", action="store_true", help="all of Fashion-MNIST")
    options = parser.parse_args()
    if (options.epochs or 1) < 1:
        parser.error(f"--epochs: expected an integer >= 1, got {options.epochs}")

    def most(epochs):
        return min(epochs, options.epochs or epochs)

    began = time.perf_counter()
    every = {name: load(name, options.full) for name in EPOCHS}
    searched = {
        name: search(name, pictures, options.seeds if name == "digits" else -(-options.seeds // 2), most(EPOCHS[name]))
        for name, pictures in every.items()
    }
    rows, agreements = [], []
    for name, pictures in every.items():
        start = pictures.network().init(jax.random.key(0))
        for when, params in {"initial": start, "trained": searched[name].params}.items():
            own, comparison = agreement(name, when, pictures, params)
            rows += own
            agreements.append(
                f"{name}, {when}: {comparison.verdict}; the whole gradient {comparison.total.relative:.1e} apart, "
                f"bound {comparison.total.bound:.1e}; third opinion: {comparison.third_opinion.says}; Taylor test: "
                f"{comparison.taylor.says}."
            )
    notes = experiments.paragraphs(*agreements, f"On {COMPARED} pictures of each; relative differences, float32.")
    experiments.write(experiments.sibling(options.out, "agreement"), rows, notes=notes)

    epochs = {name: tuple(sorted({most(epoch) for epoch in TABLE[name]})) for name in every}
    rows = [row for name in every for row in found_rows(name, searched[name], epochs[name])]
    lines = []
    for name in every:
        best = best_epoch(searched[name], epochs[name])
        at = {row["ranked by"]: row for row in rows if (row["data"], row["epoch"]) == (name, best)}
        norm, loss = at["gradient norm"], at["loss"]
        lines.append(
            f"{name}, epoch {best} (the norm's best): of the {norm['planted']} pictures with the highest gradient norm "
            f"{norm['found among as many']:.0%} have a wrong label, of those with the highest loss "
            f"{loss['found among as many']:.0%}, of as many at random {WRONG:.0%}."
        )
    both = {name: (every[name], searched[name]) for name in every}
    experiments.write(
        experiments.sibling(options.out, "wrong_labels"),
        rows,
        draw_wrong_labels(both, epochs),
        experiments.paragraphs(*lines),
        "Share of wrong labels among the pictures with the highest gradient norm and loss, and those pictures",
    )

    found = {name: kernels_of(*both[name]) for name in every}
    rows = [row for name in every for row in kernel_rows(name, found[name])]
    lines = []
    for name, kernels in found.items():
        right, wrong = (float(np.linalg.norm(part)) for part in (kernels.right, kernels.wrong))
        turned = float(np.sum(kernels.right * kernels.wrong) / (right * wrong))
        lines.append(
            f"{name}: {WRONG:.0%} wrong labels pull at the first layer with a norm of {wrong:.2g}, the right ones with "
            f"{right:.2g}; the cosine between the two is {turned:.2f}."
        )
    experiments.write(
        options.out,
        rows,
        draw_kernels({name: (*both[name], found[name]) for name in every}),
        experiments.paragraphs(*lines),
        "Kernels of the first layer and their gradients, as small pictures",
    )

    rows = [
        digits_row(name, recipe, every["digits"], options.seeds, most(recipe.epochs))
        for name, recipe in RECIPES.items()
    ]
    last = rows[-1]
    reached = "reached" if last["test accuracy"] >= GOAL else "MISSED"
    notes = experiments.paragraphs(
        f"{last['training']}: {last['test accuracy']:.2%} of {len(every['digits'].test_inputs)} test pictures, mean of "
        f"{options.seeds} seeds; the goal of {GOAL:.0%} is {reached}.",
        f"Everything together, with compilation: {time.perf_counter() - began:.0f} s.",
    )
    experiments.write(experiments.sibling(options.out, "digits"), rows, notes=notes)


if __name__ == "__main__":
    main()
