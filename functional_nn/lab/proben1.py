"""PROBEN1's files, and its measure of errors: Prechelt 1994, "PROBEN1: A Set of Neural Network Benchmark Problems and
Benchmarking Rules", technical report 21/94, Universitaet Karlsruhe.

A `.dt` file has seven lines, name=count, in this order: bool_in, real_in, bool_out, real_out, training_examples,
validation_examples and test_examples. Then comes a line of numbers for each example, first of the training set and last
of the test set: its inputs, boolean and real, and its outputs.

Letters: Q examples, R inputs, S outputs.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from functional_nn.lab import files
from functional_nn.registry import did_you_mean
from functional_nn.training import Division, divide

HEADER = ("bool_in", "real_in", "bool_out", "real_out", "training_examples", "validation_examples", "test_examples")
_MOST_CHARACTERS = 64 * 1024  # of a line of the header, which has some twenty


class Problem(NamedTuple):
    """A problem as its file has it: inputs (Q, R), targets (Q, S), float64, and the numbers of its three sets.

    name: the file's, without .dt. classes: are the outputs boolean, one of them 1 in each example?
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    parts: Division
    classes: bool


def read(path: str | Path) -> Problem:
    """The problem in a `.dt` file, which may be gzipped.

    Raises ValueError, which begins with the path and says the line, for a header line that is missing, unknown or no
    count, a row of other than R + S numbers, a number that is not finite, a boolean that is neither 0 nor 1, and other
    than as many rows as the sets have examples.
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


def _problem(name: str, file) -> Problem:
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
    for number, line in enumerate(file, start=len(HEADER) + 1):
        words = line.decode("ascii").split()
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
    """E = 100 (o_max - o_min) / (N P) sum_p sum_i (o_pi - t_pi)^2, of N outputs and P examples.

    low, high: o_min and o_max, between which the problem's outputs are represented.

    >>> squared_error_percentage(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))
    25.0
    """
    return float(100 * (high - low) * np.mean((np.asarray(outputs, np.float64) - np.asarray(targets, np.float64)) ** 2))
