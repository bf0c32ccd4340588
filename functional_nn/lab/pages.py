"""The pages of runs and comparisons: figures, tables and equations, each with its explanation."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import checks
from functional_nn.lab import environment, equations, measures, plots, report, runs
from functional_nn.lab.datasets import Dataset
from functional_nn.lab.texts import Text

_MOST_PERCENTAGES = 6  # classes, up to which a confusion matrix has room for percentages
_MOST_CURVES, _MOST_ARRAYS, _MOST_TARGETS, _MOST_LAYERS, _MOST_KERNELS = 12, 16, 6, 60, 40  # in one figure
Parts = dict[str, tuple[np.ndarray, np.ndarray]]  # targets and outputs (Q, S) by the part's name
_DIRECTIONS = {"manual": "hand-written gradient", "automatic": "automatic gradient", "perceptron": "perceptron rule"}


def trained(
    config: dict[str, Any],
    result: fnn.training.FitResult,
    watched: Sequence[tuple[int, Sequence[Any]]],
    agreement: fnn.Agreement | None,
    summary: dict[str, Any],
    held_out: Dataset | Text,
    outputs: np.ndarray | None,
    seconds: float,
    resumed: bool,
    monitored: int,
    folder: Path,
    network: fnn.Network,
    fitted: Parts | None = None,
    state: Sequence[str] = (),
) -> str:
    """The page of a trained run. Its two main figures are also saved in the folder, as pictures.

    watched: (epoch, differences of the two gradients on the `monitored` examples); empty, and no agreement, if the
    network was trained by a rule that is not a gradient. outputs: (Q, S) of the held-out part; None for outputs at
    every position. fitted: the training part's targets and outputs, scaled as for the network, if they are numbers.
    state: the names of tracked quantities of the optimizer's state.
    """
    second_order = fnn.optimizers.second_order.knows(config["optimizer"]["name"])
    unit = "step" if second_order else "epoch"
    epochs = _plural(len(result.history.epoch), unit)
    figures = {"learning_curves": plots.learning_curves(result.history, unit)}
    if watched:
        figures["gradient_agreement"] = _agreement_figure(watched, config["dtype"], unit)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
    since = "since it was resumed" if resumed else "compilation included"
    history = result.history
    curves = (
        "A step is one step of the method on all training examples. Training values are measured before each step, "
        "held-out values after it. "
        if second_order
        else "Training values are measured on each mini-batch just before its update, held-out values after the epoch. "
    )
    parts = [
        report.Panel(
            "Learning curves",
            figures["learning_curves"],
            f"Training loss goes from {history.training_loss[0]:.3g} to {history.training_loss[-1]:.3g} in "
            f"{epochs}; held-out loss ends at {history.validation_loss[-1]:.3g}.",
            curves + _changes(config) + _choice(config, result) + " Open circles: exactly zero." + _separable(summary),
        ),
        *([_watched_panel(figures["gradient_agreement"], watched, monitored)] if watched else []),
        *([] if outputs is None else _examples(config, held_out, outputs, summary["held out"], fitted)),
        *_network(network, result.params),
        *_training_state(history, state, _stops_by_validation(config), unit),
        *_tracked(history, state),
        *([_agreement_table("Agreement after training", agreement), _costs_table(agreement)] if agreement else []),
        _equations(config),
    ]
    measured = list(summary["held out"].items())
    facts = [
        (f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4g}", f"held-out {name}")
        for name, value in measured
    ]
    if agreement:
        facts.append((f"{agreement.total.relative:.1e}", f"relative difference from jax.grad ({agreement.verdict})"))
    facts.append((f"{seconds:.1f} s", f"for {epochs}, {since} ({result.status})"))
    return report.render(
        f"functional_nn: {Path(config['data']).name}",
        f"A network {_layers(config)}, {config['loss']}, trained by {config['optimizer']['name']} with the "
        f"{_direction(config)} in {config['dtype']}.",
        facts,
        parts,
        config,
    )


def _direction(config: dict[str, Any]) -> str:
    """What the network was trained with, in words."""
    rule = config.get("rule", "exact")  # runs of older versions do not have it
    return _DIRECTIONS[config["gradient"]] if rule == "exact" else f"learning rule {rule}"


def _separable(summary: dict[str, Any]) -> str:
    """What threshold neurons can separate, if that was tested."""
    sentence = summary.get("separability", "")
    return sentence and f" {sentence[0].upper()}{sentence[1:]}."


def _watched_panel(figure: Any, watched: Sequence[tuple[int, Sequence[Any]]], monitored: int) -> report.Panel:
    largest = max(d.relative for _, differences in watched for d in differences)
    arrays = len(watched[0][1])
    return report.Panel(
        "Hand-written gradient against jax.grad during training",
        figure,
        f"Relative difference by parameter during training, at most {largest:.1e}.",
        f"Both gradients are computed by separate compiled programs, on the same {monitored} training examples. The "
        "dashed bound is the largest relative difference that rounding alone explains. It grows where large terms "
        "cancel. Points on the lowest line are equal to the last bit."
        + (f" The {_MOST_ARRAYS} of {arrays} arrays that differ most are drawn." if arrays > _MOST_ARRAYS else ""),
    )


def _changes(config: dict[str, Any]) -> str:
    """How the training part was changed, in words."""
    augment, rate = config["augment"], config["label_smoothing"]
    pictures = f"Training pictures are changed at random in every update: {', '.join(augment)}. " if augment else ""
    return pictures + (f"A share of {rate:g} of each training label is spread over all classes. " if rate else "")


def _choice(config: dict[str, Any], result: fnn.training.FitResult) -> str:
    """What was chosen by the held-out part, in words."""
    if not _stops_by_validation(config):
        return "The held-out part was not used to choose anything."
    best = 0 if result.best is None else int(result.best.epoch)
    kept = f"; the network is that of epoch {best}" if best else ""
    return f"The held-out part chose when to stop{kept}. So the network looks better on it than it will on new data."


def _stops_by_validation(config: dict[str, Any]) -> bool:
    criteria = map(fnn.training.termination.get, config.get("stop", ()))  # runs of older versions do not have it
    return config["early_stopping"] is not None or any(criterion.validation for criterion in criteria)


def compared(folder: Path, run: runs.Run, agreement: fnn.Agreement, examples: int) -> str:
    """The page that compares the two gradients of a saved run on `examples` of its training examples."""
    total, config = agreement.total, run.config
    facts = [
        (agreement.verdict, f"{agreement.rule or 'hand-written gradient'} and jax.grad"),
        (f"{total.relative:.1e}", "relative difference"),
        (f"{total.bound:.1e}", "largest difference that rounding explains"),
    ]
    formulas = report.Equations("The equations", _network_equations(config), equations.OF_LAYERS)
    parts = [*_angles_table(agreement), _agreement_table("Agreement", agreement), _costs_table(agreement), formulas]
    return report.render(
        f"functional_nn: gradients of {folder.name}",
        f"A trained network {_layers(config)}, {config['loss']}, in {config['dtype']}, on {examples} of its training "
        "examples: its hand-written gradient against jax.grad.",
        facts,
        parts,
        {"run": str(folder), **environment.provenance(), "the run's own": config},
    )


def compared_grid(rows: list[dict[str, str]], totals: Sequence[fnn.comparison.Difference], made_of: dict) -> str:
    """The page that compares the gradients over activations, losses and dtypes; made_of: the settings, shown at the
    end.
    """
    agree = sum(row["verdict"] == "agree" for row in rows)
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("inconclusive", "differ")}
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    facts = [
        (f"{agree} of {len(rows)}", "combinations agree"),
        *((str(count), verdict) for verdict, count in counts.items() if count),
    ]
    for dtype in dtypes:
        found = [total.relative for row, total in zip(rows, totals, strict=True) if row["dtype"] == dtype]
        facts.append((f"{np.max(found):.1e}", f"largest relative difference in {dtype}"))
    cells = [
        [
            report.Quantity(row[name], getattr(total, name)) if name in ("relative", "bound") else row[name]
            for name in row
        ]
        for row, total in zip(rows, totals, strict=True)
    ]
    table = report.Table(
        "Every combination",
        list(rows[0]),
        cells,
        "relative: ||manual - automatic|| / ||automatic|| of the whole gradient. bound: the largest relative "
        "difference that rounding explains. Taylor: the hand-written gradient against differences of the objective. "
        "third opinion: which of the two gradients agrees with a third one, computed in float64.",
    )
    sizes = " - ".join(map(str, made_of["sizes"]))
    return report.render(
        "functional_nn: hand-written gradients against jax.grad",
        f"Networks {sizes} with random parameters, {_plural(made_of['batch'], 'random example')}: every combination of "
        "the chosen hidden activations, losses and dtypes.",
        facts,
        [table, report.Equations("The equations", _backpropagation(equations.recursion("start")), equations.OF_LAYERS)],
        made_of | environment.provenance(),
    )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _layers(config: dict[str, Any]) -> str:
    shape = next(iter(config["network"]["inputs"].values()))
    width = plots.size_text(shape) if isinstance(shape, list) else shape
    if config.get("preset"):  # the report draws its graph
        return f"{config['preset']} of {_plural(len(config['network']['layers']), 'layer')} on {width} inputs"

    def read(layer):
        return "".join(f" by {by}" for by in layer.get("connections", ()) if by != "dense")

    layers = (f"{x['size']} {x['activation']}{read(x)}" for x in config["network"]["layers"])
    return f"{width} - " + " - ".join(layers)


def _network(network: fnn.Network, params: Any) -> list[report.Panel | report.Table]:
    """The network's graph, unless it is a chain of dense layers; a table of its layers; and the kernels of the first
    convolution, if they can be shown.
    """
    rows, parts = fnn.presets.layer_rows(network), []
    names = [name for name, _ in network.inputs] + [layer.name for layer in network.layers]
    chain = all(layer.sources == (before,) for before, layer in zip(names, network.layers, strict=False))
    if len(names) <= _MOST_LAYERS and not (chain and all(layer.is_dense for layer in network.layers)):
        reads = (
            f"{layer.name} ({plots.size_text(network.shapes[layer.name])}) reads "
            + " and ".join(f"{source} by {by.name}" for source, by in layer.reads)
            for layer in network.layers
        )
        caption = "Inputs are at the top; blue layers have weights."
        parts.append(report.Panel("The network", plots.network(network), "; ".join(reads) + ".", caption))
    count, flops = (sum(row[name] for row in rows) for name in ("parameters", "flops"))
    cells = [
        (
            row["layer"],
            plots.size_text(row["shape"]),
            *(report.Quantity(f"{row[name]:,}", row[name]) for name in ("parameters", "flops")),
            row["activation"],
            row["reads"],
        )
        for row in rows
    ]
    caption = f"{count:,} parameters; {flops:,} FLOPs per example in the forward pass. Shapes are for one example."
    header = ("layer", "shape", "parameters", "FLOPs", "activation", "reads")
    parts.append(report.Table("Layers", header, cells, caption))
    return parts + _kernels(network, params)


def _kernels(network: fnn.Network, params: Any) -> list[report.Panel]:
    """A figure of the kernels that read an input with one channel, or three."""
    inputs = {name for name, _ in network.inputs}
    for layer in network.layers:
        for source, _ in layer.weighted:
            weights = np.asarray(params[layer.name]["weights"][source], np.float32)
            if source in inputs and weights.ndim == 4 and weights.shape[3] in (1, 3) and weights[0].size > 3:
                shown, size = weights[:_MOST_KERNELS], plots.size_text(weights.shape[1:3])
                more = f" The first {len(shown)} of {len(weights)}." if len(weights) > len(shown) else ""
                colors = (
                    "Orange is above 0, purple below 0, all on one scale."
                    if weights.shape[3] == 1
                    else "Weights of red, green and blue are shown in these colours, grey is 0, all on one scale."
                )
                figure, words = plots.kernels(shown), f"The {len(shown)} kernels of {size} pixels in {layer.name}."
                return [report.Panel(f"Kernels of {layer.name}", figure, words, colors + more)]
    return []


def _agreement_table(title: str, agreement: fnn.Agreement) -> report.Table:
    return report.Table(
        title,
        ("array", "verdict", "relative difference", "bound", "largest", "ulps", "at"),
        [_agreement_row(row, agreement.rule) for row in agreement.rows()],
        "Rows dF/dn are sensitivities, from the output layer back. largest: the largest difference of one element; at: "
        "where it is. ulps: the largest number of floating-point numbers between two elements. " + _opinions(agreement),
    )


def _angles_table(agreement: fnn.Agreement) -> list[report.Table]:
    """How far a rule's direction is from the gradient, by layer; nothing for the gradient itself."""
    if not agreement.angles:
        return []
    rows = [
        (
            angle.name,
            *(
                report.Quantity("-" if np.isnan(x) else f"{x:.4g}", x)
                for x in (angle.degrees, angle.ratio, angle.sensitivity_degrees, angle.sensitivity_ratio)
            ),
        )
        for angle in agreement.angles
    ]
    return [
        report.Table(
            f"The direction of {agreement.rule}, compared with the gradient",
            ("layer", "degrees from the gradient", "length / gradient's", "degrees from dF/dn", "length / dF/dn's"),
            rows,
            "Below 90 degrees a small step of gradient descent with the rule lowers the loss; at 90 it does not.",
        )
    ]


def _costs_table(agreement: fnn.Agreement) -> report.Table:
    def cells(cost):
        yield cost.name
        seconds = {"trace": cost.trace_seconds, "compile": cost.compile_seconds}
        for value in seconds.values():
            yield report.Quantity(f"{1e3 * value:.1f} ms", value)
        yield report.Quantity(f"{1e6 * cost.run_seconds:.0f} us", cost.run_seconds)
        yield report.Quantity(f"{cost.flops:.3g}", cost.flops)
        yield report.Quantity(f"{cost.temporary_bytes / 1024:.0f} KiB", cost.temporary_bytes)

    return report.Table(
        "Cost of one gradient",
        ("gradient", "trace", "compile", "run", "FLOPs", "temporaries"),
        [list(cells(cost)) for cost in agreement.costs],
        "Both were timed in turns on one machine. XLA compiles both to nearly the same program.",
    )


def _equations(config: dict[str, Any]) -> report.Equations:
    """The equations of a run's network and, if it is known, of its optimizer's update."""
    rows, caption, optimizer = _network_equations(config), [equations.OF_LAYERS], config["optimizer"]
    rule = equations.optimizer(optimizer["name"], optimizer)
    if rule:
        constants = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in optimizer.items()
            if name != "name"
        )
        rows.append((f"The update, {optimizer['name']}: {constants}", rule))
        caption.append(equations.OF_UPDATES)
    if config["gradient"] == "automatic":
        caption.append("The network was trained with jax.grad, which computes the same without the recursion.")
    if config["regularizer"]:
        caption.append(f"{config['regularizer']} adds its own gradient.")
    return report.Equations("The equations", rows, " ".join(caption))


def _network_equations(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """Activations, loss and, if all layers are dense, the recursion; those without an equation are left out."""
    layers, loss = config["network"]["layers"], config["loss"]
    places: dict[str, list[str]] = {}
    for layer in layers:
        places.setdefault(layer["activation"], []).append(layer["name"])
    rows = [(f"{name}, in {', '.join(at)}", equations.activation(name)) for name, at in places.items()]
    rows.append((f"The loss, {loss}", equations.loss(loss)))
    shown = [(words, formula) for words, formula in rows if formula]
    rule = config["gradient"] if config.get("gradient") == "perceptron" else config.get("rule", "exact")
    if rule != "exact" and equations.rule(rule):
        shown.append((f"The rule {rule}, used instead of the exact gradient", equations.rule(rule)))
    if rule == "perceptron":
        return shown
    if any("connections" in layer for layer in layers):
        return shown
    return shown + _backpropagation(equations.start(loss, layers[-1]["activation"]))


def _backpropagation(start: Any) -> list[tuple[str, Any]]:
    return [
        ("Forward, from the inputs to layer M", equations.recursion("forward")),
        ("The start of the recursion, in layer M", start),
        ("The recursion, from layer M back", equations.recursion("recursion")),
        (
            "The gradient, a product of sensitivities and the forward pass's activations",
            equations.recursion("contraction"),
        ),
    ]


def _tracked(history: fnn.training.History, but: Sequence[str] = ()) -> list[report.Panel]:
    """A figure for each tracked quantity except `but`, with a panel for each number, by layer."""
    quantities: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for path, values in checks.by_path(history.tracked).items():
        quantity, *places = path.split("/")
        if quantity in but:
            continue
        places = [place for place in places if place != "layers"]
        measure = places.pop() if len(places) > 1 else quantity
        quantities.setdefault(quantity, {}).setdefault(measure, {})["/".join(places)] = values
    panels = []
    for quantity, numbers in quantities.items():
        curves = list(dict.fromkeys(name for measure in numbers.values() for name in measure))
        shown = {
            measure: {name: values for name, values in found.items() if name in curves[:_MOST_CURVES]}
            for measure, found in numbers.items()
        }
        ends = "; ".join(
            f"{measure} ends at " + ", ".join(f"{values[-1]:.3g} ({name})" for name, values in found.items())
            for measure, found in shown.items()
        )
        left = curves[_MOST_CURVES:]
        panels.append(
            report.Panel(
                f"Tracked: {quantity.replace('_', ' ')}",
                plots.tracked(history.epoch, shown),
                f"Over the epochs, {ends}.",
                "Measured after each epoch on all training examples; all numbers are in history.csv."
                + (f" Not drawn: {', '.join(left)}." if left else ""),
            )
        )
    return panels


def _agreement_figure(watched, dtype: str, unit: str):
    epochs = [epoch for epoch, _ in watched]

    def relative(d):
        return math.nan if d.vanishes else d.relative  # a gradient of 0 has no relative difference

    errors = {d.name: [relative(found[i]) for _, found in watched] for i, d in enumerate(watched[0][1])}
    total, *arrays = errors
    largest = sorted(arrays, key=lambda name: np.max(np.nan_to_num(errors[name], nan=-1.0)))[1 - _MOST_ARRAYS :]
    errors = {name: values for name, values in errors.items() if name == total or name in largest}
    bounds = [differences[0].bound for _, differences in watched]
    return plots.gradient_agreement(epochs, errors, bounds, float(jnp.finfo(dtype).eps) / 2, unit)


def _agreement_row(row: dict[str, Any], rule: str | None) -> tuple[str | report.Quantity, ...]:
    name = f"dF/dn {row['name']}" if row["kind"] == "sensitivity" else row["name"]
    numbers = (report.Quantity(f"{row[column]:.1e}", row[column]) for column in ("relative", "bound", "largest"))
    ulps = report.Quantity(f"{row['ulps']:.3g}", row["ulps"])
    return (name, fnn.comparison.mark(row, rule), *numbers, ulps, str(row["index"]))


def _opinions(a: fnn.Agreement) -> str:
    third, taylor = a.third_opinion, a.taylor
    if third is None or taylor is None:
        return f"Differences come from {a.rule}, which is another rule; they are not errors." if a.rule else ""
    return (
        f"Third opinion, in float64 by {third.method}: {third.says} (manual {third.manual_error:.0e}, automatic "
        f"{third.automatic_error:.0e}). Taylor test: {taylor.says}, slope {taylor.slope:.2f} (2: correct gradient; "
        "1: wrong gradient)."
    )


def _examples(
    config, held_out: Dataset, outputs: np.ndarray, measured: dict[str, float], fitted: Parts | None
) -> list[report.Panel]:
    """For classes: the confusion matrix, characteristics and, for images, misclassified examples. For numbers:
    predictions against targets, and the errors of both parts.
    """
    if config["task"] != "classification":
        _, scaled = runs.standardizers(config)
        both = {name: tuple(map(scaled.invert, pair)) for name, pair in (fitted or {}).items()}
        both["held out"] = held_out.targets, scaled.invert(outputs)
        return [_predictions(config, held_out, outputs, measured), *_errors(both)]
    classes, guessed = held_out.classes, outputs.argmax(axis=1)
    counts = measures.confusion_counts(held_out.labels, guessed, len(classes))
    wrong, few = np.flatnonzero(guessed != held_out.labels), len(classes) <= _MOST_PERCENTAGES
    percentages = " Below each number: its share of all examples; at the edges: recall and precision." if few else ""
    panels = [
        report.Panel(
            "Held-out examples, class by class",
            plots.confusion(counts, classes, percentages=few),
            f"Confusion matrix: {len(guessed) - len(wrong)} of {len(guessed)} on the diagonal.",
            "Rows: the true class; columns: the class with the largest output." + percentages,
        )
    ]
    if len(classes) <= _MOST_CURVES:
        areas = [measures.characteristic(held_out.labels == c, outputs[:, c]).area for c in range(len(classes))]
        listed = ", ".join(f"{name} {area:.4g}" for name, area in zip(classes, areas, strict=True))
        panels.append(
            report.Panel(
                "Receiver operating characteristics",
                plots.roc(held_out.labels, outputs, classes),
                f"Areas under the curves of the classes, on the held-out examples: {listed}.",
                "Each class against all others, for every threshold on the class's own output.",
            )
        )
    if held_out.image_shape and len(wrong):
        shown = wrong[:20]
        captions = [f"{classes[held_out.labels[q]]} as {classes[guessed[q]]}" for q in shown]
        panels.append(
            report.Panel(
                "Misclassified examples",
                plots.images(held_out.inputs[shown], held_out.image_shape, captions),
                f"The images of {len(shown)} misclassified examples: " + "; ".join(captions) + ".",
                f"{len(wrong)} of {len(guessed)} held-out examples"
                + (", the first 20 shown." if len(wrong) > 20 else "."),
            )
        )
    return panels


def _errors(parts: Parts) -> list[report.Panel]:
    """Figures of predicted numbers in the data's own units."""
    lines = {name: measures.fitted_line(*pair) for name, pair in parts.items()}
    correlations = ", ".join(f"{line.correlation:.4f} ({name})" for name, line in lines.items())
    with np.errstate(over="ignore"):  # for a run that diverged
        sizes = ", ".join(f"{np.sqrt(np.mean((a - t) ** 2)):.4g} ({name})" for name, (t, a) in parts.items())
    return [
        report.Panel(
            "Outputs against targets",
            plots.regression(parts),
            f"Correlations R of targets and outputs: {correlations}.",
            "All targets together, in their own units. Dotted line: outputs equal targets; solid line: best fit.",
        ),
        report.Panel(
            "Errors",
            plots.error_histogram(parts),
            f"Histogram of the errors, whose root mean squares are {sizes}.",
            "Targets minus outputs, stacked by part.",
        ),
    ]


def _training_state(history: fnn.training.History, state: Sequence[str], stops: bool, unit: str) -> list[report.Panel]:
    """For methods with a state to show, or if the held-out loss decides when to stop."""
    if not (state or stops):
        return []
    shown = {name: history.tracked[name] for name in state}
    failures = int(measures.validation_failures(history.validation_loss)[-1])
    ends = "".join(f"{name} ends at {values[-1]:.3g}; " for name, values in shown.items())
    return [
        report.Panel(
            "State of the training",
            plots.training_state(history, shown, unit),
            f"The gradient norm ends at {history.gradient_norm[-1]:.3g}; {ends}at the end the held-out loss had not "
            f"improved for {_plural(failures, unit)}.",
            f"Failures: the number of {unit}s since the held-out loss was last at a new minimum.",
        )
    ]


def _predictions(config, held_out: Dataset, outputs: np.ndarray, measured: dict[str, float]) -> report.Panel:
    _, scaled = runs.standardizers(config)
    width = held_out.targets.shape[1]
    names = [config["target"] or "target"] if width == 1 else [f"target {i}" for i in range(width)]
    drawn = slice(_MOST_TARGETS)
    return report.Panel(
        "Held-out examples, predicted and true",
        plots.predictions(held_out.targets[:, drawn], scaled.invert(outputs)[:, drawn], names[drawn]),
        f"Predicted against true values of {len(outputs)} held-out examples: R^2 {measured['R^2']:.3g}, root mean "
        f"square error {measured['root mean square error']:.4g}.",
        f"R^2 {measured['R^2']:.3g} over all targets, in the data's own units. On the dotted line predictions equal "
        "targets." + (f" The first {_MOST_TARGETS} of {width} targets." if width > _MOST_TARGETS else ""),
    )
