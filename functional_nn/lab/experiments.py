"""What the research scripts share: their arguments, data sets ready for a network, and tables and pictures on disk."""

import argparse
import ast
import contextlib
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import functional_nn as fnn
from functional_nn.lab import datasets, environment, report

__all__ = [
    "Chain",
    "Task",
    "arguments",
    "load",
    "write",
]


class Task(NamedTuple):
    """A data set as a network takes it: a fixed split of 80 and 20 percent, scaled by the training part.

    Attributes:
        name: the data set's name.
        inputs: (Q, R) float32.
        targets: (Q, S) float32, one-hot or standardized.
        test_inputs: the inputs of the test part.
        test_targets: the targets of the test part.
        loss: the name of the loss that suits it.
        output: the name of the output layer's activation that suits it.

    Example:
        >>> from functional_nn.lab import experiments
        >>> task = experiments.load("iris")
        >>> task.inputs.shape, task.loss, task.output
        ((120, 4), 'cross_entropy', 'softmax')
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
    loss: str
    output: str

    @property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """(test_inputs, test_targets), as `fit` takes its validation data."""
        return self.test_inputs, self.test_targets


@dataclass(frozen=True)
class Chain:
    """What benchmarks train: a chain of tanh layers with a softmax output, in mini-batches.

    Attributes:
        sizes: sizes of the input and of every layer.
        batch: examples per mini-batch.

    Example:
        >>> from functional_nn.lab import experiments
        >>> experiments.Chain((64, 32, 10), batch=32).name
        '64-32-10'
    """

    sizes: tuple[int, ...]
    batch: int

    @property
    def name(self) -> str:
        """The sizes, joined by hyphens."""
        return "-".join(map(str, self.sizes))

    @property
    def network(self) -> fnn.Network:
        """The network."""
        return fnn.multilayer(self.sizes, ("tanh",) * (len(self.sizes) - 2) + ("softmax",))

    @property
    def plan(self) -> fnn.training.BatchPlan:
        """The mini-batches, as `fit` takes them."""
        return fnn.training.minibatch(self.batch)


def load(name: str) -> Task:
    """Loads a bundled data set as a network takes it, in float32.

    Args:
        name: one of `datasets.NAMES`. Pixels in [0, 1] are unchanged; other inputs and numeric targets are
            standardized.

    Returns:
        The `Task`.

    Example:
        >>> from functional_nn.lab import experiments
        >>> experiments.load("iris").test_inputs.shape
        (30, 4)
    """
    dataset = datasets.load(name)
    training, test = datasets.split(dataset)
    x, x_test, t, t_test = training.inputs, test.inputs, training.targets, test.targets
    if dataset.image_shape is None:
        scale = datasets.fit_standardizer(x)
        x, x_test = scale.apply(x), scale.apply(x_test)
    loss, output = "cross_entropy", "softmax"
    if dataset.task == "regression":
        scale = datasets.fit_standardizer(t)
        t, t_test, loss, output = scale.apply(t), scale.apply(t_test), "mean_square_error", "linear"
    x, t, x_test, t_test = (np.asarray(values, np.float32) for values in (x, t, x_test, t_test))
    return Task(name, x, t, x_test, t_test, loss, output)


def arguments(description: str, out: str, **defaults: int) -> argparse.Namespace:
    """Reads a script's command line: --out, and an integer option for each of `defaults`.

    Args:
        description: what the script does, for --help.
        out: the default of --out, a path without a suffix.
        **defaults: the integer options and their defaults, such as seeds=8 and epochs=50.

    Returns:
        The options by name.

    Example:
        >>> from functional_nn.lab import experiments
        >>> options = experiments.arguments(__doc__, "results/minibatch", seeds=8)  # doctest: +SKIP
        >>> options.seeds  # doctest: +SKIP
        8
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=_positive, default=value, help=f"default {value}")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"writes OUT.csv, .txt, .html, .png; default {out}")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text}")
    return value


def write(
    out: Path,
    rows: Sequence[dict[str, Any]],
    figure: Figure | None = None,
    notes: str = "",
    alternative: str = "",
) -> None:
    """Prints a table and writes it as OUT.csv, OUT.txt and OUT.html, with the command, versions and device, and its
    figure as OUT.png.

    Args:
        out: the path without a suffix.
        rows: one dict per line, all with the same keys. Numbers are shown with four significant digits and written in
            full in the CSV file.
        figure: the figure, which is closed.
        notes: text below the table.
        alternative: what the figure shows, in words; by default the first paragraph of the script's docstring.

    Example:
        >>> import pathlib, tempfile
        >>> from functional_nn.lab import experiments
        >>> out = pathlib.Path(tempfile.mkdtemp()) / "table"
        >>> experiments.write(out, [{"rate": 0.1, "loss": 2.0}])  # doctest: +ELLIPSIS
        rate  loss
         0.1     2
        <BLANKLINE>
        measured on: ...
        >>> out.with_suffix(".csv").read_text().splitlines()
        ['rate,loss', '0.1,2.0']
    """
    columns = list(rows[0])
    cells = [columns, *([_shown(row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    conditions = environment.describe()
    measured_on = ", ".join(f"{name} {value}" for name, value in conditions.items())
    text = "\n".join([*lines, "", *([notes.strip(), ""] if notes else []), f"measured on: {measured_on}"])
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    out.with_suffix(".txt").write_text(f"{command}\n\n{text}\n", encoding="utf-8")
    with out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if figure is not None:
        figure.savefig(out.with_suffix(".png"), dpi=130)
    about = _about()
    quantities = [[_cell(row[column]) for column in columns] for row in rows]
    parts: list[report.Panel | report.Table] = [report.Table("Table", columns, quantities, notes.strip())]
    if figure is not None:
        parts.insert(0, report.Panel("Figure", figure, alternative or f"Figure of the table below. {about}"))
    title = f"functional_nn: {out.stem.replace('_', ' ')}"
    page = report.render(title, about, [], parts, {"command": command, "environment": conditions})
    out.with_suffix(".html").write_text(page, encoding="utf-8")


def _about() -> str:
    """The first paragraph of the script's docstring, or its name if it has none."""
    script = Path(sys.argv[0])
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # typed at a prompt, or not a Python file
        found = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
        if found:
            return " ".join(found.split("\n\n")[0].split())
    return script.name


def _cell(value: Any) -> str | report.Quantity:
    return report.Quantity(_shown(value), float(value)) if isinstance(value, float | np.floating) else str(value)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
