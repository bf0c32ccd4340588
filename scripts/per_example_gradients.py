#!/usr/bin/env python
"""Wrong labels found by the norm of each example's gradient, and by its loss, over training; digits.

    python scripts/per_example_gradients.py --seeds 8 --epochs 100 --out results/per_example_gradients

A share of the training digits gets a wrong label, another class at random, and a 64-64-10 tanh/softmax network is
trained on them with Adam. After every epoch all training examples are scored: by the norm of their own gradient (Paul,
Ganguli and Dziugaite 2021, arXiv 2107.07075, call it GraNd); by the part of it that belongs to one layer; by the norm
of the error ||a - t|| (their EL2N, at the net inputs); by the loss; and by the means of loss and norm over all epochs
so far. The table says how well each score ranks the wrong labels first: precision when as many are flagged as were
planted (which is then also the recall), recall among the tenth of all examples with the highest scores, and average
precision, as mean and standard deviation over seeds. Each seed has its own labels and network.
"""

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import training
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, PURPLE, SKY_BLUE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

WRONG, FLAGGED = 0.05, 0.1  # shares of the training examples
EPOCHS = (1, 5, 20, 100)  # in the table
NETWORK, OPTIMIZER = fnn.multilayer((64, 64, 10), ("tanh", "softmax")), fnn.optimizers.adam(0.003)
SCORES = {  # colour and line
    "gradient norm": (BLUE, "-"),
    "norm, hidden layer": (SKY_BLUE, "-"),
    "norm, output layer": (GREEN, "-"),
    "error norm": (PURPLE, "-"),
    "loss": (VERMILION, "-"),
    "gradient norm, mean so far": (BLUE, "--"),
    "loss, mean so far": (VERMILION, "--"),
}
MAIN = ("gradient norm", "loss")


def plant(labels: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels of which some are wrong (Q,), and which these are, (Q,) booleans."""
    random = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[random.choice(len(labels), round(WRONG * len(labels)), replace=False)] = True
    given = np.where(wrong, (labels + random.integers(1, classes, len(labels))) % classes, labels)
    return given, wrong


def scores(params, inputs, targets) -> dict:
    """Returns {name: (Q,)} at `params`, the larger the more suspicious. `fit` tracks it after each epoch."""
    names = ("per_example_norms", "per_example_losses")
    found = fnn.quantities.compute(NETWORK, "cross_entropy", params, inputs, targets, names)
    # The loss is a mean: its sensitivities are 1 / Q times those of each example's own loss. With a bias, the gradient
    # of a layer's parameters is s (a, 1)^T for one example; its norm is that of s times that of (a, 1).
    result = fnn.backpropagate(NETWORK, "cross_entropy", params, inputs, targets)
    layers = [layer.name for layer in NETWORK.layers]
    hidden, output = (len(inputs) * jnp.linalg.norm(result.sensitivities[name], axis=1) for name in layers)

    def layer_norm(s, a):
        return s * jnp.sqrt(1 + jnp.sum(a**2, axis=1))

    return {
        "gradient norm": found["per_example_norms"],
        "norm, hidden layer": layer_norm(hidden, inputs),
        "norm, output layer": layer_norm(output, result.trace.activations[layers[0]]),
        "error norm": output,  # a - t, where softmax and cross-entropy are fused
        "loss": found["per_example_losses"],
    }


def train(inputs, labels: np.ndarray, classes: int, epochs: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Trains on labels (seeds, Q). Returns {score: (seeds, E, Q)}, and the accuracy on these labels (seeds, E)."""

    def member(key, targets):
        fit = training.pure_fit(NETWORK, "cross_entropy", OPTIMIZER, epochs=epochs, track={"scores": scores})
        history = fit(key, inputs, targets).history
        return history.tracked["scores"], history.training_accuracy

    keys = jax.random.split(jax.random.key(0), len(labels))
    found, accuracy = jax.tree.map(np.asarray, jax.jit(jax.vmap(member))(keys, np.eye(classes, dtype="f4")[labels]))
    count = np.arange(1, epochs + 1)[:, None]
    return found | {f"{name}, mean so far": np.cumsum(found[name], axis=1) / count for name in MAIN}, accuracy


def precision(score: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Returns the share of wrong labels among the 1, 2, ... Q examples with the highest scores, (..., Q)."""
    return np.cumsum(ranked(score, wrong), axis=-1) / np.arange(1, wrong.shape[-1] + 1)


def ranked(score: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Returns which labels are wrong (..., Q), from the highest score to the lowest."""
    return np.take_along_axis(np.broadcast_to(wrong, score.shape), np.argsort(-score, axis=-1, kind="stable"), -1)


def average_precision(score: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Returns the mean, over the wrong labels, of the precision down to each."""
    return np.mean(precision(score, wrong), axis=-1, where=ranked(score, wrong))


def table(found: dict, wrong: np.ndarray, epochs: list[int]) -> list[dict]:
    planted, flagged = wrong[0].sum(), round(FLAGGED * wrong.shape[1])
    rows = []
    for name in SCORES:
        for epoch in epochs:
            at, row = found[name][:, epoch - 1], {"score": name, "epoch": epoch}
            for column, value in {
                f"precision at {planted}": precision(at, wrong)[:, planted - 1],
                f"recall at {flagged}": precision(at, wrong)[:, flagged - 1] * flagged / planted,
                "average precision": average_precision(at, wrong),
            }.items():
                row |= {column: float(np.mean(value)), f"{column}, sd": float(np.std(value))}
            rows.append(row)
    return rows


def draw(found: dict, wrong, accuracy, inputs, labels, given, epochs: list[int], best: int):
    """Draws average precision in training, precision against recall, and the digits with the highest norms."""
    planted = wrong[0].sum()
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(13, 8.4), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
        over, curves = above.subplots(1, 2)
        x = range(1, accuracy.shape[1] + 1)
        for name, (color, line) in SCORES.items():
            value = np.array([average_precision(at, wrong) for at in found[name].swapaxes(0, 1)])
            over.plot(x, value.mean(1), line, color=color, label=name, marker="." if len(x) == 1 else None)
            if name in MAIN:
                over.fill_between(x, value.min(1), value.max(1), color=color, alpha=0.15, lw=0)
        over.plot(x, accuracy.mean(0), ":", color="grey", label="accuracy on the labels given")
        over.set(xscale="log", xlabel="epoch", ylabel="average precision")
        over.set_title("wrong labels ranked by each score, mean over seeds", loc="left")
        over.legend(fontsize=8, loc="lower center", ncols=2)
        for name in MAIN:
            for epoch, line in ((best, "-"), (epochs[-1], ":")):
                down = precision(found[name][:, epoch - 1], wrong)
                recall = down * np.arange(1, down.shape[1] + 1) / planted
                grid = np.linspace(0.02, 1, 99)  # each seed's curve, at the same recalls
                read = [np.interp(grid, r, p) for r, p in zip(recall, down, strict=True)]
                label = f"{name}, epoch {epoch}"
                curves.plot(grid, np.mean(read, axis=0), line, color=SCORES[name][0], label=label)
        curves.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
        curves.set_title(f"best epoch by average precision (of {', '.join(map(str, epochs))}) and last", loc="left")
        curves.legend(fontsize=8, loc="lower left")
        below.suptitle(f"highest gradient norms of one network, epoch {best}: label given / true label, wrong in red")
        order = np.argsort(-found["gradient norm"][0, best - 1])
        for axis, q in zip(below.subplots(3, 20).flat, order, strict=False):
            axis.imshow(inputs[q].reshape(8, 8), cmap="gray_r")
            color = "#b00020" if wrong[0, q] else "#333333"
            axis.set_title(f"{given[0, q]} / {labels[q]}", fontsize=9, color=color, pad=2)
            axis.set_axis_off()
    return figure


def main() -> None:
    options = experiments.arguments(__doc__, "results/per_example_gradients", seeds=8, epochs=100)
    task = experiments.load("digits")
    labels, classes = task.targets.argmax(1), task.targets.shape[1]
    given, wrong = map(np.stack, zip(*(plant(labels, classes, seed) for seed in range(options.seeds)), strict=True))
    with progress("training", 1):
        found, accuracy = train(task.inputs, given, classes, options.epochs)
    epochs = sorted({min(epoch, options.epochs) for epoch in EPOCHS})
    rows = table(found, wrong, epochs)
    of = {(row["score"], row["epoch"]): row["average precision"] for row in rows}
    best = max(epochs, key=lambda epoch: of["gradient norm", epoch])
    # Two scores of the same labels and networks: the difference by seed counts.
    lines = [f"{wrong[0].sum()} of {len(labels)} labels are wrong; a random ranking has average precision {WRONG:g}."]
    for epoch in epochs:
        norm, loss = (average_precision(found[name][:, epoch - 1], wrong) for name in MAIN)
        lines.append(
            f"epoch {epoch}: average precision of the gradient norm {norm.mean():.3f}, of the loss {loss.mean():.3f}; "
            f"the loss is better in {np.sum(loss > norm)} of {options.seeds} seeds, by {np.mean(loss - norm):+.3f} on "
            f"average; accuracy on the labels given {accuracy[:, epoch - 1].mean():.3f}"
        )
    highest = max(of, key=of.get)
    lines.append(f"best of the table: {highest[0]} at epoch {highest[1]}, {of[highest]:.3f}.")
    figure = draw(found, wrong, accuracy, task.inputs, labels, given, epochs, best)
    experiments.write(options.out, rows, figure, "\n".join(lines))


if __name__ == "__main__":
    main()
