"""Pictures of a run, as matplotlib figures."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from functional_nn.training import History

TRAINING, HELD_OUT = "#2a6fbb", "#d1602b"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "functional_nn",  # equal data give an equal file
}


def learning_curves(history: History) -> Figure:
    """Loss, accuracy (where there is one) and gradient norm against epochs."""
    panels = [("loss", history.training_loss, history.validation_loss)]
    if not np.isnan(history.training_accuracy).all():
        panels.append(("error rate", 1 - history.training_accuracy, 1 - history.validation_accuracy))
    panels.append(("gradient norm", history.gradient_norm, None))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.0), layout="constrained")
        for axis, (name, training, held_out) in zip(np.atleast_1d(axes), panels, strict=True):
            curves = [("training", TRAINING, training)]
            if held_out is not None:
                curves.append(("held out", HELD_OUT, held_out))
            _log_curves(axis, history.epoch, curves)
            axis.set(xlabel="epoch", title=name)
    return figure


def _log_curves(axis, x: np.ndarray, curves: Sequence[tuple[str, str, np.ndarray]]) -> None:
    """(label, color, values) on a log scale; zeros, which it cannot show, are open marks on its lower edge."""
    positive = np.concatenate([y[np.isfinite(y) & (y > 0)] for _, _, y in curves])
    if positive.size:
        axis.set_yscale("log", nonpositive="mask")
    for label, color, y in curves:
        shown = np.where(y > 0, y, np.nan) if positive.size else y
        axis.plot(x, shown, color=color, label=label, marker="." if len(x) < 3 else None)
        zeros = x[y == 0]
        if positive.size and zeros.size:
            axis.plot(zeros, np.full(zeros.size, positive.min() / 2), "o", mfc="none", mec=color, ms=3)
    if len(curves) > 1:
        axis.legend()


def gradient_agreement(
    epochs: Sequence[int], errors: dict[str, Sequence[float]], bounds: Sequence[float], unit: float
) -> Figure:
    """||manual - auto|| / ||auto|| by parameter over training, under the derived bound and above the unit roundoff."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
        colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, len(errors)))
        floor = unit / 8  # exactly equal gradients are drawn here
        for color, (name, values) in zip(colors, errors.items(), strict=True):
            axis.plot(epochs, np.maximum(values, floor), color=color, marker=".", label=name)
        axis.plot(epochs, bounds, color="#b00020", linestyle="--", label="derived bound")
        axis.axhline(unit, color="grey", linestyle=":", label="unit roundoff")
        axis.set(yscale="log", xlabel="epoch", ylabel="relative difference", title="hand-written against jax.grad")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """How often class (row) was taken for class (column)."""
    side = 1.6 + 0.34 * len(classes)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
        wrong = counts - np.diag(np.diag(counts))
        axis.imshow(
            wrong,
            cmap="Oranges",
            vmin=0,
            vmax=2 * max(1, wrong.max()),  # dark enough to see, light enough to read on
        )
        for row, column in np.argwhere(counts > 0):
            weight = "normal" if row == column else "bold"
            axis.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, fontweight=weight)
        ticks = range(len(classes))
        axis.set_xticks(ticks, classes, rotation=90 if max(map(len, classes)) > 3 else 0, parse_math=False)
        axis.set_yticks(ticks, classes, parse_math=False)
        axis.set(xlabel="taken for", ylabel="is")
    return figure


def images(inputs: np.ndarray, shape: tuple[int, int], captions: Sequence[str]) -> Figure:
    """A strip of images (Q, rows * columns) with a caption each."""
    columns = min(10, len(inputs))
    rows = -(-len(inputs) // columns)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (0.95 * columns, 1.25 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, pixels, caption in zip(axes.flat, inputs, captions, strict=False):
            axis.imshow(pixels.reshape(shape), cmap="gray_r")
            axis.set_title(caption, fontsize=8, parse_math=False)
    return figure
