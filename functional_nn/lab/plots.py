"""Figures of a run or a sweep, made with matplotlib.

Ink is black and the background white; a page replaces them by its own colours (see `report.Panel`). The other colours
are neither dark nor light and can be seen on both.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator

from functional_nn.lab import measures
from functional_nn.networks.network import Network
from functional_nn.training import History

__all__ = [
    "BOUND",
    "HELD_OUT",
    "STYLE",
    "TEST",
    "TRAINING",
    "Rates",
    "confusion",
    "error_histogram",
    "gradient_agreement",
    "images",
    "kernels",
    "learning_curves",
    "network",
    "parallel_coordinates",
    "performance",
    "predictions",
    "quantile_bands",
    "rate_curves",
    "rate_quartiles",
    "regression",
    "roc",
    "tracked",
    "training_state",
]

TRAINING, HELD_OUT, BOUND, TEST = "#2a6fbb", "#d1602b", "#d4405a", "#2c8f5e"
RISING = ListedColormap(plt.get_cmap("plasma")(np.linspace(0.38, 0.75, 256)), "rising")  # purple to orange
_PITCH, _BOX, _LANE = 0.52, 0.27, 0.3  # inches in a network's picture: between layers, a layer's height, between lanes
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "black",
    "grid.alpha": 0.12,
    "legend.frameon": False,
    "svg.hashsalt": "functional_nn",  # equal data give an equal file
}


def learning_curves(history: History, unit: str = "epoch") -> Figure:
    """Plots loss, accuracy (if there is one) and gradient norm against epochs.

    Args:
        history: the history that `fit` returned.
        unit: what a row of the history is, "epoch" or "step".

    Returns:
        The figure.

    Example:
        >>> from functional_nn.lab import plots
        >>> figure = plots.learning_curves(result.history)  # doctest: +SKIP
    """
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
            axis.set(xlabel=unit, title=name)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _log_curves(axis: Axes, x: np.ndarray, curves: Sequence[tuple[str, str, np.ndarray]]) -> None:
    """Draws (label, color, values) on a log scale; zeros, which it cannot show, are open marks on its lower edge."""
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
    epochs: Sequence[int],
    errors: dict[str, Sequence[float]],
    bounds: Sequence[float],
    roundoff: float,
    unit: str = "epoch",
) -> Figure:
    """Plots the relative difference of two gradients over training, by parameter, with its bound and the unit
    roundoff.

    Args:
        epochs: (E,), where they were compared.
        errors: {parameter: (E,) relative differences}.
        bounds: (E,), the bounds.
        roundoff: the unit roundoff.
        unit: what an entry of `epochs` is, "epoch" or "step".

    Returns:
        The figure.

    Example:
        >>> from functional_nn.lab import plots
        >>> figure = plots.gradient_agreement([0, 1], {"layer1 bias": [1e-7, 2e-7]}, [1e-6, 1e-6], 6e-8)
        >>> figure.axes[0].get_yscale()
        'log'
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
        colors = RISING(np.linspace(0, 1, len(errors)))
        floor = roundoff / 8  # exactly equal gradients are drawn here
        for color, (name, values) in zip(colors, errors.items(), strict=True):
            axis.plot(epochs, np.maximum(values, floor), color=color, marker=".", label=name)
        axis.plot(epochs, bounds, color=BOUND, linestyle="--", label="bound")
        axis.axhline(roundoff, color="grey", linestyle=":", label="unit roundoff")
        axis.set(yscale="log", xlabel=unit, ylabel="relative difference", title="hand-written against jax.grad")
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


def performance(history: History, test: np.ndarray | None = None, unit: str = "epoch") -> Figure:
    """Plots the loss of training, validation and test part, and circles the lowest validation loss: MATLAB's
    plotperform.

    Args:
        history: the history that `fit` returned. Without validation, the lowest training loss is circled.
        test: (E,), the loss of the test part after each epoch, such as `history.tracked` has of
            `fit(track={"test": lambda params, x, t: evaluate(...)[0]})`.
        unit: what a row of the history is, "epoch" or "step".

    Returns:
        The figure.

    Example:
        >>> from functional_nn.lab import plots
        >>> figure = plots.performance(result.history)  # doctest: +SKIP
    """
    validated = np.isfinite(history.validation_loss).any()
    curves = [("training", TRAINING, history.training_loss)]
    curves += [("validation", HELD_OUT, history.validation_loss)] if validated else []
    curves += [] if test is None else [("test", TEST, np.asarray(test))]
    which, color, judged = curves[1 if validated else 0]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
        _log_curves(axis, history.epoch, curves)
        axis.set_title("no loss is finite", fontsize=10)
        if np.isfinite(judged).any():
            best = int(np.nanargmin(np.where(np.isfinite(judged), judged, np.nan)))
            at, lowest = history.epoch[best], judged[best]
            axis.axvline(at, color=color, linestyle=":", lw=1)
            if lowest > 0 or axis.get_yscale() == "linear":  # a zero has its open mark already
                axis.plot([at], [lowest], "o", ms=9, mfc="none", mec=color)
            axis.set_title(f"best {which} loss {lowest:.4g}, {unit} {at}", fontsize=10)
        axis.set(xlabel=unit, ylabel="loss")
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def training_state(
    history: History, tracked: Mapping[str, np.ndarray] = MappingProxyType({}), unit: str = "epoch"
) -> Figure:
    """Plots the gradient norm, tracked quantities and validation failures over the epochs: MATLAB's plottrainstate.

    Validation failures are the epochs in a row in which the validation loss has not fallen below its minimum.

    Args:
        history: the history that `fit` returned.
        tracked: {name: (E,)}, such as mu; one panel each.
        unit: what a row of the history is, "epoch" or "step".

    Returns:
        The figure.

    Example:
        >>> from functional_nn.lab import plots
        >>> figure = plots.training_state(result.history)  # doctest: +SKIP
    """
    panels = {"gradient norm": history.gradient_norm, **tracked}
    validated = np.isfinite(history.validation_loss).any()
    rows = len(panels) + validated
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, 1, figsize=(5.6, 0.5 + 1.6 * rows), layout="constrained", sharex=True, squeeze=False
        )
        for axis, (name, values) in zip(axes.flat, panels.items(), strict=False):
            values = np.asarray(values)
            _log_curves(axis, history.epoch, [(name, TRAINING, values)])
            axis.set_ylabel(name, parse_math=False)
            positive = values[np.isfinite(values) & (values > 0)]
            if positive.size and positive.max() > 10 * positive.min():
                axis.yaxis.set_minor_locator(LogLocator(subs=(3,)))  # between powers of ten there is room for one
                axis.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 2)))
        if validated:
            failures = measures.validation_failures(history.validation_loss)
            axes[-1, 0].plot(history.epoch, failures, color=HELD_OUT, marker="D", ms=3, lw=0.8)
            axes[-1, 0].set(ylabel="failures", ylim=(-0.5, max(1, failures.max()) + 0.5))
            axes[-1, 0].yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[-1, 0].set_xlabel(unit)
        axes[-1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str], percentages: bool = False) -> Figure:
    """Plots a confusion matrix: how often each class (row) was taken for each class (column).

    Args:
        counts: (C, C), as from `measures.confusion_counts`.
        classes: the C names.
        percentages: also write each cell's share of all examples, recall next to the rows (the share of the class that
            was found), precision below the columns (the share of those taken for the class that are in it) and accuracy
            in the corner: MATLAB's plotconfusion, transposed.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import measures, plots
        >>> counts = measures.confusion_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
        >>> plots.confusion(counts, ("no", "yes")).axes[0].get_ylabel()
        'true class'
    """
    if percentages:
        return _confusion_with_percentages(counts, classes)
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
        axis.set(xlabel="predicted class", ylabel="true class")
    return figure


def _confusion_with_percentages(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    C, right, total = len(classes), np.diag(counts), counts.sum()
    side = 1.6 + 0.62 * (C + 1)

    def share(part: int, of: int) -> str:
        return f"{100 * part / of:.3g} %" if of else "-"

    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
        shade = np.full((C + 1, C + 1), np.nan)
        shade[:C, :C] = counts - np.diag(right)
        axis.imshow(shade, cmap="Oranges", vmin=0, vmax=2 * max(1, np.nanmax(shade)))
        for row, column in np.ndindex(C, C):
            text = f"{counts[row, column]}\n{share(counts[row, column], total)}"
            weight = "normal" if row == column or not counts[row, column] else "bold"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, fontweight=weight)
        margins = [(i, C, share(right[i], counts[i].sum())) for i in range(C)]
        margins += [(C, i, share(right[i], counts[:, i].sum())) for i in range(C)]
        for row, column, text in [*margins, (C, C, share(right.sum(), total))]:
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=TRAINING)
        axis.axhline(C - 0.5, color="black", lw=0.8)
        axis.axvline(C - 0.5, color="black", lw=0.8)
        turned = 90 if max(map(len, classes)) > 6 else 0
        axis.set_xticks(range(C + 1), [*classes, "recall"], rotation=turned, parse_math=False)
        axis.set_yticks(range(C + 1), [*classes, "precision"], parse_math=False)
        axis.set(xlabel="predicted class", ylabel="true class")
    return figure


def roc(labels: np.ndarray, outputs: np.ndarray, classes: Sequence[str]) -> Figure:
    """Plots the receiver operating characteristic of each class against all others: MATLAB's plotroc.

    Args:
        labels: (Q,) integers 0 to C - 1.
        outputs: (Q, C).
        classes: the C names.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> figure = plots.roc(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), ("no", "yes"))
        >>> figure.axes[0].get_xlabel()
        'false positive rate'
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.4, 4.2), layout="constrained")
        for number, (name, color) in enumerate(zip(classes, _colors(list(classes)), strict=True)):
            found = measures.characteristic(labels == number, outputs[:, number])
            axis.plot(found.false, found.true, color=color, label=f"{name}: area {found.area:.4g}")
        axis.plot([0, 1], [0, 1], color="grey", linestyle=":", lw=1)
        axis.set(xlabel="false positive rate", ylabel="true positive rate")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        legend = axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def images(inputs: np.ndarray, shape: tuple[int, ...], captions: Sequence[str]) -> Figure:
    """Draws a strip of images with a caption each.

    Args:
        inputs: (Q, rows * columns * channels).
        shape: (rows, columns) for grey images, (rows, columns, channels) for others. Three channels are red, green and
            blue, each image scaled from its darkest to its brightest value; otherwise the mean of the channels is
            drawn.
        captions: the Q captions.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> len(plots.images(np.eye(4), (2, 2), "abcd").axes)
        4
    """
    pictures = np.asarray(inputs, float).reshape(len(inputs), *shape)
    if pictures.ndim == 4 and pictures.shape[3] != 3:
        pictures = pictures.mean(axis=3)
    columns = min(10, len(inputs))
    rows = -(-len(inputs) // columns)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (0.95 * columns, 1.25 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, pixels, caption in zip(axes.flat, pictures, captions, strict=False):
            low, high = pixels.min(), pixels.max()
            axis.imshow((pixels - low) / ((high - low) or 1) if pixels.ndim == 3 else pixels, cmap="gray_r")
            axis.set_title(textwrap.fill(caption, 14, break_long_words=False), fontsize=8, parse_math=False)
    return figure


def kernels(weights: np.ndarray) -> Figure:
    """Draws a convolution's kernels on one scale.

    Args:
        weights: (S, rows, columns, channels). Kernels with one channel are purple below 0 and orange above; with three,
            red, green and blue about grey.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> len(plots.kernels(np.ones((3, 5, 5, 1))).axes)
        3
    """
    columns = min(10, len(weights))
    rows = -(-len(weights) // columns)
    largest = np.abs(weights).max() or 1.0
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(
            rows, columns, figsize=(0.8 * columns, 0.8 * rows), layout="constrained", squeeze=False
        )
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, kernel in zip(axes.flat, weights.astype(float), strict=False):
            if kernel.shape[2] == 3:
                axis.imshow(0.5 + kernel / (2 * largest))
            else:
                axis.imshow(kernel[:, :, 0], cmap="PuOr_r", vmin=-largest, vmax=largest)
    return figure


def network(described: Network) -> Figure:
    """Draws a network's inputs and layers from top to bottom, each with its shape; arrows have the connections' names.

    A connection that skips layers is drawn on the left.

    Args:
        described: the network.

    Returns:
        The figure.

    Example:
        >>> import functional_nn as fnn
        >>> from functional_nn.lab import plots
        >>> figure = plots.network(fnn.multilayer((4, 3, 2), ("tanh", "softmax")))
        >>> len(figure.axes)
        1
    """
    shapes = described.shapes
    boxes = [(name, name, False) for name, _ in described.inputs]
    for layer in described.layers:
        function = "" if layer.activation.name == "linear" else f"  {layer.activation.name}"
        boxes.append((layer.name, layer.name + function, bool(layer.weighted)))
    row = {name: number for number, (name, _, _) in enumerate(boxes)}
    half = 0.5 + 0.04 * max(len(text) + 5 + len(size_text(shapes[name])) for name, text, _ in boxes)  # inches
    edges = [(row[source], row[layer.name], by.name) for layer in described.layers for source, by in layer.reads]
    lanes = _arrow_lanes([(start, end) for start, end, _ in edges if end - start > 1])
    beside = (_LANE * (lanes[start, end] + 1) + 0.075 * len(name) for start, end, name in edges if end - start > 1)
    left = -half - 0.15 - max(beside, default=0.0)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        width, height = half + 0.1 - left, _PITCH * (len(boxes) - 1) + _BOX + 0.1
        figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
        axis.set(xlim=(left, half + 0.1), ylim=(-(height - _BOX / 2 - 0.05), _BOX / 2 + 0.05), aspect="equal")
        axis.set_axis_off()
        for number, (name, text, weighted) in enumerate(boxes):
            y, color = -_PITCH * number, TRAINING if weighted else "grey"
            corner, size = (-half, y - _BOX / 2), (2 * half, _BOX)
            about: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.06", "linewidth": 1}
            axis.add_patch(FancyBboxPatch(corner, *size, fc=(*to_rgb(color), 0.16), ec=color, **about))
            axis.text(-half + 0.1, y, text, va="center", fontsize=9, parse_math=False)
            axis.text(half - 0.1, y, size_text(shapes[name]), va="center", ha="right", fontsize=9)
        arrow: dict[str, Any] = {
            "arrowstyle": "-|>",
            "mutation_scale": 9,
            "shrinkA": 0,
            "shrinkB": 0,
            "lw": 0.9,
            "color": "black",
        }
        for start, end, name in edges:
            y, last = -_PITCH * start, -_PITCH * end
            if end - start == 1:
                axis.add_patch(FancyArrowPatch((0, y - _BOX / 2), (0, last + _BOX / 2), **arrow))
                axis.text(0.1, (y + last) / 2, name, va="center", fontsize=8, parse_math=False)
                continue
            out = -half - _LANE * (lanes[start, end] + 1)
            leaves, enters = y - _BOX / 6, last + _BOX / 6
            axis.plot([-half, out, out], [leaves, leaves, enters], color="black", lw=0.9, solid_joinstyle="round")
            axis.add_patch(FancyArrowPatch((out, enters), (-half, enters), **arrow))
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over what comes round further out
            axis.text(out - 0.07, (y + last) / 2, name, va="center", ha="right", fontsize=8, bbox=box, parse_math=False)
    return figure


def _arrow_lanes(arrows: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """The distance of each skipping arrow from the boxes, 0, 1, ...: short arrows are inside, and overlapping ones
    do not share a lane.
    """
    lanes: dict[tuple[int, int], int] = {}
    for start, end in sorted(set(arrows), key=lambda arrow: arrow[1] - arrow[0]):
        beside = {lane for (first, last), lane in lanes.items() if first < end and start < last}
        lanes[start, end] = next(lane for lane in itertools.count() if lane not in beside)
    return lanes


def size_text(shape: Sequence[int]) -> str:
    """A signal's shape as text: 28 x 28 x 1."""
    return " x ".join(map(str, shape))


def _panels(count: int, columns: int, side: float) -> tuple[Figure, list]:
    """A figure of `count` square panels with `side` inches each, at most `columns` side by side."""
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (side * columns, side * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def predictions(targets: np.ndarray, outputs: np.ndarray, names: Sequence[str]) -> Figure:
    """Plots predicted against true values, one panel per column.

    Args:
        targets: (Q, S).
        outputs: (Q, S).
        names: the S names.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> plots.predictions(np.ones((3, 1)), np.zeros((3, 1)), ["load"]).axes[0].get_xlabel()
        'true'
    """
    with plt.rc_context(STYLE):
        figure, axes = _panels(len(names), 3, 3.4)
        for axis, t, a, name in zip(axes, targets.T, outputs.T, names, strict=False):
            known = np.isfinite(t) & np.isfinite(a)
            axis.scatter(t[known], a[known], s=16, color=TRAINING, alpha=0.75, lw=0, rasterized=known.sum() > 2000)
            if known.any():
                axis.axline((t[known][0],) * 2, slope=1, color="black", lw=0.8, linestyle=":")
            else:
                axis.text(0.5, 0.5, "nothing finite", ha="center", va="center", transform=axis.transAxes)
            axis.set(xlabel="true", ylabel="predicted")
            axis.set_title(name, fontsize=10, parse_math=False)
    return figure


def regression(parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Plots outputs against targets with their correlation R and the fitted line, one panel per part: MATLAB's
    plotregression.

    Args:
        parts: {name of the part: (targets (Q, S), outputs (Q, S))}. All columns of a part are drawn together; with
            several parts there is also a panel of all of them.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> t = np.arange(4.0)[:, None]
        >>> plots.regression({"training": (t, 2 * t)}).axes[0].get_title()
        'training: R = 1.0000'
    """
    pairs = {name: tuple(np.ravel(x).astype(np.float64) for x in pair) for name, pair in parts.items()}
    colors = dict(zip(pairs, _part_colors(parts), strict=True)) | {"all": "grey"}
    if len(pairs) > 1:
        pairs["all"] = tuple(np.concatenate(x) for x in zip(*pairs.values(), strict=True))
    with plt.rc_context(STYLE):
        figure, axes = _panels(len(pairs), 2, 3.6)
        for axis, (name, (t, a)) in zip(axes, pairs.items(), strict=True):
            known = np.isfinite(t) & np.isfinite(a)
            t, a = t[known], a[known]
            axis.scatter(t, a, s=14, color=colors[name], alpha=0.6, lw=0, rasterized=t.size > 2000)
            title, label = f"{name}: nothing finite", "output"
            if t.size:
                line = measures.fitted_line(t, a)
                axis.axline((t[0],) * 2, slope=1, color="black", lw=0.8, linestyle=":")
                if np.isfinite(line.slope):
                    ends = np.array([t.min(), t.max()])
                    axis.plot(ends, line.slope * ends + line.offset, color=colors[name], lw=1.2)
                    sign = "-" if line.offset < 0 else "+"
                    label = f"output ~ {line.slope:.3g} target {sign} {abs(line.offset):.3g}"
                title = f"{name}: R = {line.correlation:.4f}"
            axis.set(xlabel="target", ylabel=label)
            axis.set_title(title, fontsize=10, parse_math=False)
    return figure


def error_histogram(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 20) -> Figure:
    """Plots a histogram of the errors, targets - outputs, stacked by part: MATLAB's ploterrhist.

    Args:
        parts: {name of the part: (targets (Q, S), outputs (Q, S))}.
        bins: how many bars.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> t = np.arange(4.0)[:, None]
        >>> plots.error_histogram({"training": (t, 2 * t)}).axes[0].get_xlabel()
        'target - output'
    """
    pairs = [np.stack([np.ravel(x).astype(np.float64) for x in pair]) for pair in parts.values()]
    errors = [t - a for t, a in (pair[:, np.isfinite(pair).all(axis=0)] for pair in pairs)]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
        if any(e.size for e in errors):
            whole = np.concatenate(errors)
            low, high, size = whole.min(), whole.max(), np.abs(whole).max()
            edges = np.linspace(low, high, bins + 1)
            if high - low <= 4 * bins * np.spacing(size):  # they are all one, to rounding
                edges = np.array([low - size / 2 - 0.5, high + size / 2 + 0.5])
            axis.hist(errors, edges, stacked=True, color=_part_colors(parts), label=list(parts), rwidth=0.9)
        axis.axvline(0, color="black", lw=1, linestyle="--", label="no error")
        axis.set(xlabel="target - output", ylabel="how many")
        axis.legend(fontsize=8)
    return figure


def _part_colors(parts: Mapping) -> list[str]:
    """The parts' colours; in order those of training, validation and test."""
    return list(itertools.islice(itertools.cycle((TRAINING, HELD_OUT, TEST)), len(parts)))


def tracked(epochs: np.ndarray, quantities: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Plots tracked quantities over the epochs, one panel per measure.

    Args:
        epochs: (E,).
        quantities: {measure: {name: (E,)}}.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> figure = plots.tracked(np.arange(3), {"noise scale": {"total": np.ones(3)}})
        >>> figure.axes[0].get_title()
        'noise scale'
    """
    columns = min(3, len(quantities))
    rows = -(-len(quantities) // columns)
    names = list(dict.fromkeys(name for curves in quantities.values() for name in curves))
    colors = dict(zip(names, _colors(names), strict=True))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.4 * max(2, columns), 2.6 * rows), layout="constrained", squeeze=False
        )
        for axis in axes.flat[len(quantities) :]:
            axis.remove()
        for axis, (measure, curves) in zip(axes.flat, quantities.items(), strict=False):
            for name, values in curves.items():
                axis.plot(epochs, values, color=colors[name], marker="." if len(epochs) < 3 else None, label=name)
            finite = np.concatenate([values[np.isfinite(values)] for values in curves.values()])
            if finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
                axis.set_yscale("log")
            axis.set_xlabel("epoch")
            axis.set_title(measure, fontsize=10, parse_math=False)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        shown = {}
        for axis in figure.axes:
            shown |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        legend = figure.legend(shown.values(), shown, loc="outside right upper", fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


# Of a sweep -----------------------------------------------------------------------------------------------------------

WORDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito
_FEW = 8  # values that are set out evenly, each with its name


class _Axis(NamedTuple):
    """Where values are on an axis, from 0 to 1, and its labels and their places."""

    places: np.ndarray
    ticks: list[tuple[float, str]]


def parallel_coordinates(
    columns: dict[str, np.ndarray], losses: np.ndarray, diverged: np.ndarray, label: str = "held-out loss"
) -> Figure:
    """Plots one line per member of a sweep, over its hyperparameters to its loss: purple for low, orange for high
    losses.

    Args:
        columns: {hyperparameter: (N,)}.
        losses: (N,).
        diverged: (N,) booleans. These members, and those whose loss is not finite, are grey lines that end above the
            axis.
        label: the name of the loss.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> columns = {"learning_rate": np.array([0.01, 0.1])}
        >>> figure = plots.parallel_coordinates(columns, np.array([1.0, 0.5]), np.zeros(2, bool))
        >>> len(figure.axes)
        1
    """
    lost = diverged | ~np.isfinite(losses)
    loss = _loss_axis(np.where(lost, np.nan, losses))
    score = np.where(lost, np.inf, losses)
    rank = np.argsort(np.argsort(score, kind="stable"), kind="stable") / max(1, len(losses) - 1) - 0.5
    axes = {name: _axis(values, name) for name, values in columns.items()}
    points = [axis.places + _spread(axis.places) * rank for axis in axes.values()]
    points = np.stack([*points, np.where(lost, 1.1, loss.places)], axis=1)
    top = 1.16 if lost.any() else 1.08
    many, colors = len(losses) > 100, RISING(np.nan_to_num(loss.places))
    colors[lost, :3] = 0.6
    colors[:, 3] = np.clip(5 / np.sqrt(len(losses)), 0.12, 0.8)
    width = np.where(score <= np.sort(score)[min(9, len(score) - 1)], 1.6, 0.8)
    colors[np.isfinite(score) & (width > 1), 3] = 1.0
    order = np.argsort(-score, kind="stable")  # the best on top
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axis = plt.subplots(figsize=(max(6.6, 1.5 * (len(axes) + 1)), 3.9), layout="constrained", dpi=150)
        lines = np.stack([np.broadcast_to(np.arange(points.shape[1]), points.shape), points], axis=2)
        axis.add_collection(
            LineCollection(lines[order], colors=colors[order], linewidths=width[order], rasterized=many)
        )
        for x, (name, one) in enumerate([*axes.items(), (label, loss)]):
            last = x == len(axes)
            axis.plot([x, x], [0, 1], color="black", lw=0.8, zorder=3)
            axis.text(x, top, name, ha="center", va="bottom", fontsize=10, fontweight="bold", parse_math=False)
            ticks = [*one.ticks, (1.1, "diverged")] if last and lost.any() else one.ticks
            for y, text in ticks:
                axis.plot([x - 0.02, x + 0.02], [y, y], color="black", lw=0.8, zorder=3)
                box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
                axis.text(x + 0.04, y, text, va="center", fontsize=8, bbox=box, zorder=4, parse_math=False)
        if not lost.all():  # the last axis is the colours' key
            strip, beside = np.linspace(0, 1, 64), (len(axes) - 0.012, len(axes) + 0.012)
            axis.pcolormesh(beside, np.linspace(0, 1, 65), strip[:, None], cmap=RISING, zorder=3.5, rasterized=True)
        axis.set(xlim=(-0.25, len(axes) + 0.35), ylim=(-0.05, top))
        axis.set_axis_off()
    return figure


class Rates(NamedTuple):
    """Quartiles of the loss at different learning rates; `rate_curves` draws them.

    Attributes:
        rates: (R,), the learning rates.
        quartiles: {(panel, curve): (R, 3)}, by the values in which panels and curves differ.
        names: the hyperparameters in which panels and curves differ; None if there is only one.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> plots.Rates(np.array([0.1]), {(0.0, 0.0): np.ones((1, 3))}, (None, None)).rates.shape
        (1,)
    """

    rates: np.ndarray
    quartiles: dict[tuple, np.ndarray]
    names: tuple[str | None, str | None]


def rate_quartiles(
    rates: np.ndarray,
    losses: np.ndarray,
    diverged: np.ndarray,
    panels: tuple[str | None, np.ndarray | None] = (None, None),
    curves: tuple[str | None, np.ndarray | None] = (None, None),
) -> Rates:
    """Computes the quartiles of the loss at each learning rate, for `rate_curves`.

    Args:
        rates: (N,), the members' learning rates. If nearly every member has its own, neighbours are grouped.
        losses: (N,).
        diverged: (N,) booleans. These members, and those whose loss is not finite, count as infinite.
        panels: a hyperparameter and its values (N,), one panel for each value; (None, None) for one panel.
        curves: a hyperparameter and its values (N,), one curve for each value; (None, None) for one curve.

    Returns:
        The `Rates`.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> found = plots.rate_quartiles(np.array([0.1, 0.1, 1.0]), np.array([1.0, 3.0, 2.0]), np.zeros(3, bool))
        >>> found.quartiles[0.0, 0.0].tolist()
        [[1.5, 2.0, 2.5], [2.0, 2.0, 2.0]]
    """
    losses = np.where(diverged | ~np.isfinite(losses), np.inf, losses)
    x, places = _binned(rates)
    whole = np.zeros(len(losses))
    (panel_name, panel_of), (curve_name, curve_of) = (
        (name, whole if values is None else values) for name, values in (panels, curves)
    )
    quartiles = {
        (panel, curve): np.array(
            [_quartiles(losses[(places == i) & (curve_of == curve) & (panel_of == panel)]) for i in range(len(x))]
        )
        for panel in _ordered(panel_of, panel_name)
        for curve in _ordered(curve_of, curve_name)
    }
    return Rates(x, quartiles, (panel_name, curve_name))


def rate_curves(found: Rates, label: str = "held-out loss") -> Figure:
    """Plots the median loss against the learning rate, between its quartiles, and circles each curve's minimum.

    A median beyond the figure is a cross on its upper edge.

    Args:
        found: what `rate_quartiles` returned.
        label: the name of the loss.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> found = plots.rate_quartiles(np.array([0.1, 1.0]), np.array([1.0, 2.0]), np.zeros(2, bool))
        >>> plots.rate_curves(found).axes[0].get_xlabel()
        'learning rate'
    """
    x, quartiles, (panel_name, curve_name) = found
    panel_values, curve_values = (list(dict.fromkeys(values)) for values in zip(*quartiles, strict=True))
    low, high, logarithmic = _limits(np.concatenate([q.ravel() for q in quartiles.values()]))
    colors = _colors(curve_values)
    with plt.rc_context(STYLE):
        columns = min(3, len(panel_values))
        rows = -(-len(panel_values) // columns)
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(7.2 if columns == 1 else 3.6 * columns, 3.6 * rows),
            layout="constrained",
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for axis in axes.flat[len(panel_values) :]:
            axis.remove()
        for axis, panel in zip(axes.flat, panel_values, strict=False):
            for curve, color in zip(curve_values, colors, strict=True):
                q = quartiles[panel, curve]
                known = ~np.isnan(q[:, 1])
                at, (first, median, third) = x[known], np.clip(q[known].T, low, high)
                beyond = q[known, 1] > high
                shown = np.where(beyond, np.nan, median)
                axis.fill_between(at, first, third, color=color, alpha=0.15, lw=0)
                axis.plot(at, shown, color=color, marker=".", label=value_text(curve, curve_name))
                axis.plot(at[beyond], np.full(beyond.sum(), high), "x", color=color)
                if not beyond.all():
                    best = np.nanargmin(shown)
                    axis.plot(at[best], shown[best], "o", ms=8, mfc="none", mec=color)
            axis.set(xscale="log" if (x > 0).all() else "linear", yscale="log" if logarithmic else "linear")
            axis.set(xlabel="learning rate", ylabel=label)
            axis.label_outer()
            pad = (high / low) ** 0.05 if logarithmic else 0.05 * (high - low)
            axis.set_ylim(*((low / pad, high * pad) if logarithmic else (low - pad, high + pad)))
            if panel_name:
                axis.set_title(f"{panel_name} {value_text(panel, panel_name)}", fontsize=10, parse_math=False)
        if len(curve_values) > 1:
            shown = axes[0, 0].get_legend_handles_labels()
            legend = figure.legend(*shown, title=curve_name, loc="outside right center", fontsize=8)
            for text in legend.get_texts():
                text.set_parse_math(False)
    return figure


def quantile_bands(panels: Sequence[tuple[str, np.ndarray]], label: str = "held-out loss") -> Figure:
    """Plots the median of the members' losses over the epochs, with the bands of 25 to 75 % and 10 to 90 %.

    Args:
        panels: (title, losses (E, N)) for each panel; nan is left out.
        label: the name of the loss.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import plots
        >>> plots.quantile_bands([("all members", np.ones((3, 5)))]).axes[0].get_title()
        'all members'
    """
    quantiles = []
    for _, losses in panels:
        rows = [row[np.isfinite(row)] for row in losses]
        quantiles.append(
            np.array([np.quantile(row, (0.1, 0.25, 0.5, 0.75, 0.9)) if row.size else [np.nan] * 5 for row in rows])
        )
    low, high, logarithmic = _limits(np.concatenate([q.ravel() for q in quantiles]))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(max(6.6, 3.8 * len(panels)), 3.4), layout="constrained", sharey=True, squeeze=False
        )
        for axis, (title, losses), q in zip(axes.flat, panels, quantiles, strict=True):
            epochs, q = np.arange(1, len(losses) + 1), np.clip(q.T, low, high)
            one = losses.shape[1] == 1
            if not one:
                axis.fill_between(epochs, q[0], q[4], color=TRAINING, alpha=0.15, lw=0, label="10 to 90 %")
                axis.fill_between(epochs, q[1], q[3], color=TRAINING, alpha=0.3, lw=0, label="25 to 75 %")
            marker = "." if len(epochs) < 3 else None
            axis.plot(epochs, q[2], color=TRAINING, marker=marker, label=None if one else "median")
            if np.isnan(q).all():
                axis.text(0.5, 0.5, "nothing finite", ha="center", va="center", transform=axis.transAxes)
            elif not one and axis is axes[0, -1]:
                axis.legend(fontsize=8)
            axis.set(xlabel="epoch", xlim=(1, max(2, len(epochs))), yscale="log" if logarithmic else "linear")
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.set_title(title, fontsize=10, parse_math=False)
        axes[0, 0].set_ylabel(label)
    return figure


def value_text(value: str | float, name: str | None = None) -> str:
    """A hyperparameter's value as text: "0.01", "tanh", "all"."""
    if isinstance(value, str):
        return str(value)
    return "all" if name == "batch_size" and value == 0 else f"{value:.4g}"


def _ordered(values: np.ndarray, name: str | None) -> list:
    """The distinct values, rising; a batch of all examples is the largest."""
    distinct = np.unique(values).tolist()
    return [*distinct[1:], 0] if name == "batch_size" and distinct[0] == 0 else distinct


def _axis(values: np.ndarray, name: str = "") -> _Axis:
    distinct = np.array(_ordered(values, name))
    if len(distinct) <= _FEW or distinct.dtype.kind == "U":
        at = np.linspace(0, 1, len(distinct)) if len(distinct) > 1 else np.array([0.5])
        places = (values[:, None] == distinct[None, :]).argmax(axis=1)
        return _Axis(at[places], [(y, value_text(v, name)) for y, v in zip(at, distinct.tolist(), strict=True)])
    distinct = np.sort(distinct)
    return _numbers(values.astype(np.float64), distinct[0], distinct[-1], _is_logarithmic(distinct))


def _loss_axis(losses: np.ndarray) -> _Axis:
    if not np.isfinite(losses).any():
        return _Axis(np.full(len(losses), np.nan), [])
    low, high, logarithmic = _limits(losses)
    axis = _numbers(np.clip(losses, low, high), low, high, logarithmic)
    ends = [(y, text) for y, text in axis.ticks if 0.06 < y < 0.94] if len(axis.ticks) > 1 else []
    more = "≥ " if np.nanmax(losses) > high else ""
    return _Axis(axis.places, [(0.0, f"{low:.3g}"), *ends, (1.0, f"{more}{high:.3g}")])


def _numbers(values: np.ndarray, low: float, high: float, logarithmic: bool) -> _Axis:
    turned = np.log10 if logarithmic else lambda v: np.asarray(v, np.float64)
    first, last = float(turned(low)), float(turned(high))
    if logarithmic:
        decades = np.arange(np.ceil(first - 1e-9), np.floor(last + 1e-9) + 1)
        marks = 10.0 ** decades[:: max(1, len(decades) // 6)] if len(decades) > 1 else np.geomspace(low, high, 4)
    else:
        marks = MaxNLocator(5).tick_values(low, high)
    marks = marks[(marks >= low * (1 - 1e-9)) & (marks <= high * (1 + 1e-9))] if low > 0 else marks
    ticks = [(float(turned(v) - first) / (last - first), f"{v:.3g}") for v in marks]
    return _Axis((turned(values) - first) / (last - first), [tick for tick in ticks if -1e-6 <= tick[0] <= 1 + 1e-6])


def _is_logarithmic(distinct: np.ndarray) -> bool:
    """Whether the median of the values is closer to the middle of their logarithms than to that of the range."""
    low, middle, high = (float(v) for v in (distinct[0], np.median(distinct), distinct[-1]))
    if low <= 0:
        return False
    log_off = abs(np.log(middle) - (np.log(low) + np.log(high)) / 2) / np.log(high / low)
    return log_off < abs(middle - (low + high) / 2) / (high - low)


def _limits(losses: np.ndarray) -> tuple[float, float, bool]:
    """Lowest and highest loss to show, and whether on a log scale; diverging members do not set the scale."""
    finite = losses[np.isfinite(losses)]
    if finite.size == 0:
        return 0.0, 1.0, False
    low, high, quarter = float(finite.min()), float(finite.max()), float(np.quantile(finite, 0.25))
    if low >= 0 and quarter > 0:
        high = min(high, 1e3 * quarter)
        low = max(float(finite[finite > 0].min()), 1e-6 * quarter)  # zeros stand on the lower edge
    if low > 0 and high > 3 * low:
        return low, high, True
    return (low, high, False) if high > low else (low - abs(low) / 10 - 1e-12, high + abs(high) / 10 + 1e-12, False)


def _spread(places: np.ndarray) -> float:
    """How far apart members with the same value are drawn, so that their lines can be told apart."""
    count = len(np.unique(places))
    return 0.0 if count == len(places) else min(0.06, 0.4 / count)


def _binned(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rates, and the number of each member's; if nearly each member has its own rate, bins of equally
    many.
    """
    distinct, places = np.unique(rates, return_inverse=True)
    if len(distinct) <= 24 or 3 * len(distinct) <= len(rates):
        return distinct, places
    bins = np.array_split(np.arange(len(distinct)), int(np.clip(len(rates) // 8, 3, 16)))
    of = np.concatenate([np.full(len(one), i) for i, one in enumerate(bins)])
    return np.array([np.median(distinct[one]) for one in bins]), of[places]


def _quartiles(values: np.ndarray) -> list[float]:
    """Quartiles, interpolated between neighbours; infinity counts as a number, and the quartiles of nothing are nan."""
    if not values.size:
        return [np.nan] * 3
    ordered, found = np.sort(values), []
    for share in (0.25, 0.5, 0.75):
        at = share * (len(ordered) - 1)
        lower, upper = ordered[int(np.floor(at))], ordered[int(np.ceil(at))]
        found.append(float(lower if lower == upper else lower + (upper - lower) * (at % 1)))
    return found


def _colors(values: Sequence) -> list:
    if len(values) == 1:
        return [TRAINING]
    if isinstance(values[0], str) and len(values) <= len(WORDS):
        return list(WORDS[: len(values)])
    return list(RISING(np.linspace(0, 1, len(values))))
