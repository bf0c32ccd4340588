"""What the research scripts share: arguments, data ready for a network, the choice of a rate, tables and figures.

A script first calls `start`, if it needs 64-bit numbers or all cores. It reads its arguments by `arguments`, or adds
its own to `parser`, and ends with `write`. `functional_nn.lab.timing` times several ways to do the same thing against
each other. `functional_nn.lab.palette` has the colours of the figures.
"""

import argparse
import ast
import contextlib
import csv
import itertools
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from matplotlib.figure import Figure

import functional_nn as fnn
from functional_nn.lab import datasets, environment, report
from functional_nn.lab.progress import progress

__all__ = [
    "Chain",
    "Task",
    "arguments",
    "at_edge",
    "best_rate",
    "counted",
    "load",
    "medians",
    "paragraphs",
    "parameter_count",
    "parser",
    "sibling",
    "start",
    "write",
]


# Before anything runs -------------------------------------------------------------------------------------------------


def start(*, x64: bool = False, all_cores: bool = False) -> None:
    """Sets up JAX for a script. Call it after the imports and before the first array.

    Args:
        x64: Computes in 64 bits.
        all_cores: Makes each CPU core a device of its own, so that the members of a population are spread over them.
            Where the environment variable JAX_NUM_CPU_DEVICES is set, that number counts instead: 1 is one core. It
            has no effect on accelerators, nor where JAX already runs.

    Example:
        >>> from functional_nn.lab import experiments
        >>> experiments.start()
    """
    if x64:
        jax.config.update("jax_enable_x64", True)
    if all_cores and "JAX_NUM_CPU_DEVICES" not in os.environ:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(os.cpu_count())  # for the processes that the script starts
        with contextlib.suppress(RuntimeError):  # JAX already runs
            jax.config.update("jax_num_cpu_devices", os.cpu_count())


def parser(description: str, out: str, **defaults: int) -> argparse.ArgumentParser:
    """Returns a parser of a script's arguments, to which the script may add its own.

    Args:
        description: The script's docstring, which --help prints as it is.
        out: The default of --out: a path without an ending.
        defaults: The integer arguments, each 1 or more, with their defaults, such as seeds=8 for --seeds.

    Example:
        >>> from functional_nn.lab import experiments
        >>> options = experiments.parser("What it shows.", "results/table", seeds=8).parse_args(["--seeds", "3"])
        >>> options.seeds, str(options.out)
        (3, 'results/table')
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        made.add_argument(f"--{name}", type=_positive, default=value, help=f"default {value}")
    made.add_argument("--out", type=Path, default=Path(out), help=f"writes OUT.csv, .txt, .html, .png; default {out}")
    return made


def arguments(description: str, out: str, **defaults: int) -> argparse.Namespace:
    """Returns the script's arguments, as `parser` reads them from the command line.

    Args:
        description: See `parser`.
        out: See `parser`.
        defaults: See `parser`.

    Example:
        >>> from functional_nn.lab import experiments
        >>> options = experiments.arguments(__doc__, "results/table", seeds=8)  # doctest: +SKIP
    """
    return parser(description, out, **defaults).parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text}")
    return value


@contextlib.contextmanager
def counted(title: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """Shows progress by a function that is called, after each step, with the name of what was done.

    Args:
        title: What is being done.
        total: The number of steps, where it is known.

    Example:
        >>> from functional_nn.lab import experiments
        >>> with experiments.counted("measuring", 2) as advance:
        ...     advance("the first")
        ...     advance("the second")
    """
    numbers = itertools.count(1)
    with progress(title, total or 1) as bar:
        yield lambda text: bar(next(numbers), text) if total else bar(0, f"{next(numbers)}: {text}")


# Data and networks ----------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A data set ready for a network: the fixed split of 80 and 20 percent, scaled by the training part.

    Attributes:
        name: The data set's.
        inputs: (Q, R), float32.
        targets: (Q, S), float32, one-hot or standardized.
        test_inputs: The inputs of the test part.
        test_targets: The targets of the test part.
        loss: The name of the loss that suits the data.
        output: The name of the output layer's activation that suits the loss.

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

    def divided(self, rows: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Returns the first rows of the training part, and the others, each as (inputs, targets).

        The rows are in random order, so that the others may validate what is trained on the first.
        """
        return (self.inputs[:rows], self.targets[:rows]), (self.inputs[rows:], self.targets[rows:])


@dataclass(frozen=True)
class Chain:
    """What the benchmarks train: tanh layers and a softmax layer, in mini-batches.

    Attributes:
        sizes: The number of inputs, and of each layer's neurons.
        batch: Examples of a mini-batch.

    Example:
        >>> from functional_nn.lab import experiments
        >>> experiments.Chain((64, 32, 10), batch=32).name
        '64-32-10'
    """

    sizes: tuple[int, ...]
    batch: int

    @property
    def name(self) -> str:
        """The sizes, such as "64-32-10"."""
        return "-".join(map(str, self.sizes))

    @property
    def network(self) -> fnn.Network:
        """The network."""
        return fnn.multilayer(self.sizes, ("tanh",) * (len(self.sizes) - 2) + ("softmax",))

    @property
    def plan(self) -> fnn.training.BatchPlan:
        """How the examples are divided into mini-batches."""
        return fnn.training.minibatch(self.batch)


def load(name: str) -> Task:
    """Returns a bundled data set, float32. Pixels stay in [0, 1]; other inputs, and numeric targets, are standardized.

    Args:
        name: One of `datasets.NAMES`.

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


def parameter_count(network: fnn.Network) -> int:
    """Returns the number of weights, biases and other learned numbers.

    Example:
        >>> import functional_nn as fnn
        >>> from functional_nn.lab import experiments
        >>> experiments.parameter_count(fnn.multilayer((64, 32, 10), ("tanh", "softmax")))
        2410
    """
    return sum(row["parameters"] for row in fnn.presets.layer_rows(network))


# The choice of a learning rate ----------------------------------------------------------------------------------------


def medians(scores: ArrayLike) -> np.ndarray:
    """Returns the median over the last axis, the seeds. A seed whose score is nan, as it diverged, counts as infinite.

    Example:
        >>> from functional_nn.lab import experiments
        >>> experiments.medians([[1.0, 3.0, 2.0], [1.0, float("nan"), 5.0]]).tolist()
        [2.0, 5.0]
    """
    scores = np.asarray(scores)
    return np.median(np.where(np.isnan(scores), np.inf, scores), axis=-1)


def best_rate(scores: ArrayLike, ties: ArrayLike | None = None) -> Any:
    """Returns the index of the learning rate with the lowest median score over the seeds.

    Args:
        scores: (..., rates, seeds): what each seed scored at each rate, on data that nothing is reported on.
        ties: Of the same shape: by these, those are chosen from whose scores are the same.

    Returns:
        The index, or where there are leading axes an array of them.

    Example:
        >>> from functional_nn.lab import experiments
        >>> int(experiments.best_rate([[0.5, 0.7], [0.2, 0.4], [0.1, float("nan")]]))
        1
    """
    keys = (medians(scores),) if ties is None else (medians(ties), medians(scores))  # the last key counts first
    return np.lexsort(keys, axis=-1)[..., 0]


def at_edge(rate: float, rates: ArrayLike) -> bool:
    """Says whether a rate is the first or the last of a grid, beyond which a better one may be.

    Example:
        >>> from functional_nn.lab import experiments
        >>> experiments.at_edge(0.1, (0.1, 0.2, 0.3)), experiments.at_edge(0.2, (0.1, 0.2, 0.3))
        (True, False)
    """
    rates = np.asarray(rates)
    return bool(np.isclose(rate, rates[[0, -1]]).any())


# What is written ------------------------------------------------------------------------------------------------------


def paragraphs(*lines: str) -> str:
    """Returns the lines, each wrapped at the width of a table's notes.

    Example:
        >>> from functional_nn.lab import experiments
        >>> experiments.paragraphs("A short one.", "x " * 70).count(chr(10))
        2
    """
    return "\n".join(textwrap.fill(line, 118) for line in lines)


def sibling(out: Path, name: str) -> Path:
    """Returns the path of a script's further table, OUT_name.

    Example:
        >>> from pathlib import Path
        >>> from functional_nn.lab import experiments
        >>> experiments.sibling(Path("results") / "convolution", "digits").name
        'convolution_digits'
    """
    return out.with_name(f"{out.name}_{name}")


def write(
    out: Path,
    rows: Sequence[dict[str, Any]],
    figure: Figure | None = None,
    notes: str = "",
    alternative: str = "",
) -> None:
    """Prints a table, and writes OUT.csv, OUT.txt, OUT.html and OUT.png.

    The text and the page also have the command, the versions and the device. The figure is closed.

    Args:
        out: The path of the files, without an ending; its folder is made.
        rows: One dict a line, all with the same keys. Numbers are printed with four significant digits; the CSV file
            has all digits.
        figure: The picture, if there is one.
        notes: Text below the table.
        alternative: What the figure shows, in words, for those who do not see it. By default the first paragraph of the
            script's docstring.

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
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    sections: list[report.Panel | report.Table] = [report.Table("Table", columns, cells, notes.strip())]
    if figure is not None:
        sections.insert(0, report.Panel("Figure", figure, alternative or f"Figure of the table below. {about}"))
    title = f"functional_nn: {out.stem.replace('_', ' ')}"
    page = report.render(title, about, [], sections, {"command": command, "environment": conditions})
    out.with_suffix(".html").write_text(page, encoding="utf-8")


def _about() -> str:
    """The first paragraph of the script's docstring, or its name."""
    script = Path(sys.argv[0])
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # typed at a prompt, or no Python
        docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
        if docstring:
            return " ".join(docstring.split("\n\n")[0].split())
    return script.name


def _cell(value: Any) -> str | report.Quantity:
    return report.Quantity(_shown(value), float(value)) if isinstance(value, float | np.floating) else str(value)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
