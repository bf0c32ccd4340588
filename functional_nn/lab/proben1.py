"""PROBEN1's files and its measure of errors.

A `.dt` file has seven lines, name=count, in this order: bool_in, real_in, bool_out, real_out, training_examples,
validation_examples and test_examples. Then comes one line of numbers per example, the training set first and the test
set last: the inputs, boolean and real, and the outputs.

Letters: Q examples, R inputs, S outputs.

References:
    Prechelt 1994, "PROBEN1: A Set of Neural Network Benchmark Problems and Benchmarking Rules", technical report 21/94,
    Universitaet Karlsruhe.
"""

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from functional_nn.lab import files
from functional_nn.registry import did_you_mean
from functional_nn.training import Division, divide

__all__ = [
    "HEADER",
    "Problem",
    "read",
    "squared_error_percentage",
]

HEADER = ("bool_in", "real_in", "bool_out", "real_out", "training_examples", "validation_examples", "test_examples")
_MOST_CHARACTERS = 64 * 1024  # of a line of the header, which has some twenty


class Problem(NamedTuple):
    """A problem as its file has it.

    Attributes:
        name: the file's name without .dt.
        inputs: (Q, R) float64.
        targets: (Q, S) float64.
        parts: the numbers of the examples in the training, validation and test sets.
        classes: whether the outputs are boolean with exactly one 1 in each example.

    Example:
        >>> from functional_nn.lab import proben1
        >>> problem = proben1.read("cancer1.dt")  # doctest: +SKIP
        >>> problem.inputs.shape, len(problem.parts.training)  # doctest: +SKIP
        ((699, 9), 350)
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    parts: Division
    classes: bool


def read(path: str | Path) -> Problem:
    r"""Reads a problem from a `.dt` file.

    Args:
        path: the file, which may be gzipped.

    Returns:
        The `Problem`.

    Raises:
        ValueError: for a header line that is missing, unknown or not a count; a row that does not have R + S numbers; a
            number that is not finite; a boolean that is neither 0 nor 1; or a number of rows other than the header's.
            The message begins with the path and names the line.

    Example:
        >>> import pathlib, tempfile
        >>> from functional_nn.lab import proben1
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "and.dt"
        >>> header = [f"{name}={count}" for name, count in zip(proben1.HEADER, (2, 0, 1, 0, 2, 1, 1))]
        >>> _ = path.write_text("\n".join([*header, "0 0 0", "0 1 0", "1 0 0", "1 1 1"]))
        >>> proben1.read(path).targets.ravel().tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    path = Path(path)
    try:
        with files.reading(path) as file:
            return _problem(path.name.removesuffix(".gz").removesuffix(".dt"), file)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected text, got bytes that are none") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _problem(name: str, file: BinaryIO) -> Problem:
    counts = {}
    for number, field in enumerate(HEADER, start=1):
        line = file.readline(_MOST_CHARACTERS).decode("ascii").strip()
        word, equals, value = (part.strip() for part in line.partition("="))
        if word != field or not equals:
            hint = did_you_mean(word, HEADER) if word and word not in HEADER else ""
            raise ValueError(f"line {number}: expected {field}=..., got {line[:60]!r}{hint}")
        if not value.isdecimal():
            raise ValueError(f"line {number}: {field}: expected a count, got {value[:60]!r}")
        counts[field] = int(value)
    inputs, outputs, sizes = (
        sum(counts[field] for field in HEADER[:2]),
        sum(counts[field] for field in HEADER[2:4]),
        [counts[field] for field in HEADER[4:]],
    )
    if not (inputs and outputs and sizes[0]):
        raise ValueError("expected at least one input, one output and one training example, got none")
    examples, width = sum(sizes), inputs + outputs
    files.check_room("examples", examples, width)
    rows = np.empty((examples, width))
    found = 0
    for number, row in enumerate(file, start=len(HEADER) + 1):
        words = row.decode("ascii").split()
        if not words:
            continue
        if found == examples:
            raise ValueError(f"line {number}: expected {examples} examples, as the header says, got more")
        if len(words) != width:
            raise ValueError(f"line {number}: expected {inputs} inputs and {outputs} outputs, got {len(words)} numbers")
        rows[found] = [_number(number, word) for word in words]
        found += 1
    if found < examples:
        raise ValueError(f"expected {examples} examples, as the header says, got {found}")
    logical = np.r_[: counts["bool_in"], inputs : inputs + counts["bool_out"]]
    wrong = np.argwhere(~np.isin(rows[:, logical], (0, 1)))
    if wrong.size:
        row, column = wrong[0]
        value = rows[row, logical[column]]
        raise ValueError(
            f"example {row + 1}: expected 0 or 1 for a boolean, got {value:g} at number {logical[column] + 1}"
        )
    x, t = rows[:, :inputs], rows[:, inputs:]
    classes = counts["real_out"] == 0 and outputs > 1 and bool((t.sum(axis=1) == 1).all())
    ends = np.cumsum(sizes)
    parts = divide(examples, by=(range(ends[0]), range(ends[0], ends[1]), range(ends[1], ends[2])))
    return Problem(name, x, t, parts, classes)


def _number(line: int, word: str) -> float:
    try:
        value = np.nan if "_" in word else float(word)  # which Python reads, and no other reader of these files
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"line {line}: expected finite numbers, got {word[:60]!r}")
    return value


def squared_error_percentage(targets: np.ndarray, outputs: np.ndarray, low: float = 0.0, high: float = 1.0) -> float:
    r"""Computes PROBEN1's squared error percentage.

    .. math::

        E = 100 \, \frac{o_{\max} - o_{\min}}{N P} \sum_{p} \sum_{i} (o_{pi} - t_{pi})^2

    with N outputs and P examples.

    Args:
        targets: (P, N).
        outputs: (P, N).
        low: o_min, the lower end of the range in which the problem's outputs are represented.
        high: o_max, the upper end.

    Returns:
        E, a percentage.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import proben1
        >>> proben1.squared_error_percentage(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))
        25.0
    """
    return float(100 * (high - low) * np.mean((np.asarray(outputs, np.float64) - np.asarray(targets, np.float64)) ** 2))
