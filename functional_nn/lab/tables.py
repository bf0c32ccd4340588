"""Tables: how the columns of a CSV file become inputs, decided once on the training file and applied to all others.

`fit` reads a file and decides which columns are inputs, and which of them hold numbers and which words. `read` reads
that file or another one and returns the inputs as numbers: a column of numbers unchanged, a column of words as 0 and 1
for each of its levels. Only these decisions are kept of a file, so that they can be stored with a run.

Letters: Q rows, R inputs.
"""

import functools
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from functional_nn import checks
from functional_nn.lab import dialects, files
from functional_nn.registry import did_you_mean

Header = Literal["auto", "yes", "no"]
Missing = Literal["refuse", "drop", "mean", "indicator"]
Cells = list[tuple[int, str]]  # with their line numbers

_CELLS = 2**19  # cells that are converted at a time
_FEW_LEVELS = 5  # accepted however few rows there are
_NO_NAME = re.compile(r"|Unnamed: \d+(\.\d+)?")  # as pandas writes and reads it
_COUNTS = 10  # this many consecutive integers are hardly measurements
_DATE = re.compile(
    r"\d{1,4}[-/]\d{1,2}[-/]\d{1,4}([ T].*)?|\d{4}-\d{2}|(\d{1,2}\.\d{1,2}\.\d{4}|\d{4}\.\d{1,2}\.\d{1,2})([ T].*)?"
    r"|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[AaPp][Mm])?"
    r"|\d{1,2}[- ][A-Za-z]{3,9}[- ,]+\d{2,4}|[A-Za-z]{3,9} \d{1,2},? \d{4}"
)
# Cells that mean a number but are not written as one: marks of thousands, currencies, percent, hexadecimal digits.
_ALMOST = re.compile(
    r"[$€£¥]?\s*[-+\u2212(]?\s*[$€£¥]?\s*[.,]?\d[\d.,'\u2019\s_]*([eE][-+]?\d+)?\s*[%$€£¥)]?|[-+]?0[xX][0-9a-fA-F]+"
)


class Column(NamedTuple):
    """A column of a table. index: its place in the fitted file. levels: the words it holds; None for numbers.

    indicator: whether an extra input marks missing values.
    """

    name: str
    index: int
    levels: tuple[str, ...] | None = None
    indicator: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the inputs made of the column."""
        made = (self.name,) if self.levels is None else tuple(f"{self.name}={level}" for level in self.levels)
        return made + ((f"{self.name} missing",) if self.indicator else ())


@dataclass(frozen=True)
class Table:
    """How a CSV file is read. `fit` makes one, `plain` turns it into plain data, `table_from` reads that.

    target: None for the last column. width: how many columns the file had. named: whether they had names; then they are
    found by name in another file, in any order and among others. A file without a header must have the columns of the
    first file, or the inputs alone, in the same order. delimiter, decimal: as they were given; "auto" is decided for
    each file. missing: what happens to missing values. weights: the column of each example's weight in training.
    """

    inputs: tuple[Column, ...]
    target: Column | None
    width: int
    named: bool
    delimiter: str = "auto"
    decimal: str = "auto"
    missing: Missing = "refuse"
    weights: Column | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """The R names of the inputs."""
        return tuple(itertools.chain.from_iterable(column.features for column in self.inputs))

    @property
    def marks(self) -> np.ndarray:
        """(R,) bool: the inputs that are 0 or 1 for a word or a missing value."""
        return np.array([c.levels is not None or place > 0 for c in self.inputs for place in range(len(c.features))])

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        columns = {"target": self.target and self.target._asdict(), "weights": self.weights and self.weights._asdict()}
        return self.__dict__ | {"inputs": [column._asdict() for column in self.inputs]} | columns


def table_from(plain: dict[str, Any]) -> Table:
    """The table from its plain data. Raises ValueError, KeyError or TypeError for anything else."""
    inputs = [Column(**column) for column in plain["inputs"]]
    inputs = [column._replace(levels=None if column.levels is None else tuple(column.levels)) for column in inputs]
    given = {name: plain.get(name) for name in ("target", "weights")}  # older runs have no weights
    given = {name: column and Column(**column) for name, column in given.items()}
    table = Table(**plain | {"inputs": tuple(inputs)} | given)
    checks.one_of("table", "missing", table.missing, get_args(Missing))
    return table


def table_of(features: Sequence[str]) -> Table:
    """Columns of numbers called `features`, without further information."""
    named = not all(re.fullmatch(r"column_\d+", name) for name in features)
    places = range(len(features)) if named else (int(name.removeprefix("column_")) for name in features)
    inputs = tuple(Column(name, index) for name, index in zip(features, places, strict=True))
    return Table(inputs, None, len(features) + 1, named)


# Deciding -------------------------------------------------------------------------------------------------------------


def fit(
    path: Path,
    *,
    target: str | int | None,
    header: Header,
    columns: Sequence[str | int],
    drop: Sequence[str | int],
    delimiter: str,
    decimal: str,
    missing: Missing,
    weights: str | int | None = None,
    series: bool = False,
) -> tuple[Table, list[str]]:
    """Decides how the file is read, from the arguments of `datasets.load`. Returns the table and notes for the user
    about columns that number the rows.

    series: whether the target is also one of the inputs, possibly the only one.
    Raises ValueError for invalid arguments, and for a file that can be read in more than one way.
    """
    checks.one_of("table", "header", header, get_args(Header))
    checks.one_of("table", "missing", missing, get_args(Missing))
    if columns and drop:
        raise ValueError("give the columns to use or those to drop, not both")
    dialect = dialects.detect(path, delimiter, decimal)
    first, rows = dialects.first_rows(dialects.rows(path, dialect.delimiter))
    width = _width(first)
    if width < (1 if series else 2):
        expected = "inputs and a target, separated by commas, semicolons, tabs or |"
        raise ValueError(f"only one column; expected {expected}" if width else "empty file")
    line, cells = first[0]
    named = _is_named(header, (target, weights, *columns, *drop), first, width, dialect.decimal)
    names = cells[:width] if named else [f"column_{index}" for index in range(width)]
    if named:
        next(rows)
    left = {_place(names, word, "column") for word in drop}
    at = _place(names, -1 if target is None else target, "target column")
    weighing = None if weights is None else _place(names, weights, "weights column")
    if target is None:
        at = max(set(range(width)) - left - {weighing}, default=at)
    if at == weighing:
        raise ValueError(f"the column {names[at]!r} cannot be both target and weights; choose another one for either")
    if at in left:
        raise ValueError(f"the target column {names[at]!r} cannot be dropped; choose another target")
    used = {_place(names, word, "column") for word in columns} or set(range(width)) - left - {weighing}
    if weighing in used:
        raise ValueError(
            f"the column {names[weighing]!r} holds the weights and cannot be an input; choose other columns"
        )
    used = sorted(used | {at} if series else used - {at})
    if named and len(first) == 1:
        raise ValueError("a header row and no examples")
    seen = _survey(rows, used, len(cells) - width, dialect.decimal)
    notes = []
    if not columns:
        notes, left_out = _of_indices(names, seen, named)
        used = [index for index in used if index not in left_out or (series and index == at)]
    if not used:
        raise ValueError("no input is left; expected at least one column besides the target")
    places = used if series else (*used, at)
    chosen = [names[index] for index in places]
    for index in places:
        if not names[index]:
            raise ValueError(f"line {line}: the column at index {index} has no name; name it, or --drop {index}")
        if chosen.count(names[index]) > 1:
            raise ValueError(f"line {line}: column {names[index]!r} is named twice; expected different names")
    inputs = tuple(_fitted(names[index], index, seen[index], missing) for index in used)
    of_weights = None if weighing is None else Column(names[weighing], weighing)
    return Table(inputs, Column(names[at], at), width, named, delimiter, decimal, missing, of_weights), notes


def _width(first: list[tuple[int, list[str]]]) -> int:
    """How many columns the first rows have, without empty ones at the end, which a delimiter at the end of lines
    makes.
    """
    return max((index + 1 for _, cells in first for index, cell in enumerate(cells) if cell), default=0)


def _is_named(header: Header, words: Sequence[str | int | None], first, width: int, decimal: str) -> bool:
    line, cells = first[0]
    by_name = [w for w in words if isinstance(w, str) and (_index(w) is None or not -width <= _index(w) < width)]
    if header == "no" and by_name:
        raise ValueError(
            f"without a header columns have no names; give an index from {-width} to {width - 1}, got {by_name[0]!r}"
        )
    if header != "auto" or by_name:
        return header != "no"
    named = dialects.is_header(cells[:width], [below[:width] for _, below in first[1:]], decimal)
    if named is None:
        shown = ",".join(cells)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        raise ValueError(
            f"line {line}: cannot tell whether {shown!r} is a header or an example; give --header yes or --header no"
        )
    return named


def _index(word: str | int) -> int | None:
    try:
        return int(word)
    except ValueError:
        return None


def _place(names: Sequence[str], word: str | int, what: str) -> int:
    """The index of the column with a name or an index."""
    last = len(names) - 1
    if isinstance(word, str) and word in names:
        if names.count(word) > 1:
            raise ValueError(f"ambiguous {what} {word!r} (accepted: an index from {-len(names)} to {last})")
        return names.index(word)
    index = _index(word)
    if index is None:
        accepted = f"a name in the first row, or an index from {-len(names)} to {last}"
        raise ValueError(f"unknown {what} {word!r}{did_you_mean(word, names)} (accepted: {accepted})")
    if not -len(names) <= index <= last:
        raise ValueError(f"unknown {what} {index}; expected an index from {-len(names)} to {last}")
    return index % len(names)


class _Seen:
    """What the cells of a column are: numbers, words and gaps, and whether they number the rows."""

    def __init__(self):
        self.numbers, self.gaps, self.words = 0, 0, Counter()
        self.integers, self.counts, self.following = True, True, None

    def add(self, cells: Sequence[str], decimal: str) -> None:
        values = _all_numbers(cells, decimal)
        if values is not None:
            self.numbers += len(values)
            self.integers = self.integers and bool((values == np.floor(values)).all())
            begin = values[0] if self.following is None else self.following
            self.counts = self.counts and bool((values == begin + np.arange(len(values))).all())
            self.following = values[-1] + 1
            return
        self.counts = False
        for cell in cells:
            value = dialects.number(cell, decimal)
            if dialects.missing(cell):
                self.gaps += 1
            elif value is None:
                self.words[cell] += 1
            else:
                self.numbers += 1
                self.integers = self.integers and value.is_integer()


def _survey(rows: dialects.Rows, used: Sequence[int], beyond: int, decimal: str) -> dict[int, _Seen]:
    """The contents of the columns. beyond: how many columns at the end have been empty so far, and must stay empty."""
    seen = {index: _Seen() for index in used}
    for lines, columns in _blocks(rows):
        for index in used:
            seen[index].add(columns[index], decimal)
        for empty in columns[len(columns) - beyond :]:
            for line, cell in zip(lines, empty, strict=True):
                if cell:
                    raise ValueError(f"line {line}: got {cell!r} in a column that has no name and is empty before")
    return seen


def _of_indices(names: Sequence[str], seen: dict[int, _Seen], named: bool) -> tuple[list[str], list[int]]:
    """The notes about columns that number the rows, and those of them that are left out because they have no name."""
    notes, left_out = [], []
    for index, column in seen.items():
        name, integers = names[index], column.numbers > 0 and column.integers and not column.words
        if integers and named and _NO_NAME.fullmatch(name):
            notes.append(f"the column at index {index} has no name and numbers the rows; it is left out")
            left_out.append(index)
        elif integers and column.counts and column.numbers >= _COUNTS:
            leave = f"if it is not a measurement, leave it out with --drop {name if named else index}"
            notes.append(f"column {name!r} numbers the rows; {leave}")
    return notes, left_out


def _fitted(name: str, index: int, seen: _Seen, missing: Missing) -> Column:
    """The column, with numbers or words. Raises ValueError for words that cannot be levels.

    A column with numbers and words counts as numbers, and `read` reports the line of the first word.
    """
    indicator = missing == "indicator" and seen.gaps > 0
    leave = f"leave it out with --drop {name}"
    if not seen.numbers and not seen.words and missing != "refuse":
        raise ValueError(f"column {name!r} has no values; {leave}")
    if seen.numbers or not seen.words or any(map(_ALMOST.fullmatch, seen.words)):
        return Column(name, index, None, indicator)
    levels = tuple(sorted(seen.words))
    dates = [level for level in levels if _DATE.fullmatch(level)]
    if dates:
        raise ValueError(
            f"column {name!r}: dates such as {dates[0]!r} are not supported; {leave}, or convert it to numbers"
        )
    count = seen.words.total()
    if len(levels) > max(_FEW_LEVELS, count / 2):
        raise ValueError(
            f"column {name!r}: {len(levels)} different words in {count} rows, such as {levels[0]!r}, are too many for "
            f"levels; {leave}"
        )
    return Column(name, index, levels, indicator)


# Reading --------------------------------------------------------------------------------------------------------------


class Read(NamedTuple):
    """inputs: (Q, R) float64, nan for missing values. left: how many rows were left out because of a missing value.

    target, answers: the target's name and its Q cells, or None. weights (Q,): of the examples, if requested.
    """

    inputs: np.ndarray
    left: int
    target: str | None
    answers: Cells | None
    decimal: str
    weights: np.ndarray | None = None


def read(
    path: Path,
    table: Table,
    target: str | int | None = None,
    answers: bool = True,
    known: Sequence[str] = (),
    weighted: bool = False,
) -> Read:
    """Reads the file's rows as the table says. target: another column than the table's; answers: whether there is a
    target.

    weighted: also read the weights of the examples, which only the fitted file is sure to have. known: classes, which
    do not count as missing whatever their names are. Rows with a missing value are left out if the table drops them and
    there are answers; without answers, every row is kept. Raises ValueError for cells, levels and columns that the
    table does not allow.
    """
    rows, places, at, name, decimal = _find(path, table, target, answers)
    drops = table.missing == "drop" and answers
    refuses = None if drops or table.missing in ("mean", "indicator") else f"{'drop, ' * answers}mean or indicator"
    data, targets, left = array("d"), [], 0
    weights = array("d") if weighted and table.weights is not None else None
    for lines, columns in _blocks(rows):
        parts = [
            _values(column, columns[place], lines, decimal, refuses)
            for column, place in zip(table.inputs, places, strict=True)
        ]
        block = np.concatenate(parts, axis=1)
        cells = list(zip(lines, columns[at], strict=True)) if answers else []
        counts = np.zeros(0) if weights is None else _weights(table.weights, columns, lines, decimal)
        if drops:
            kept = ~np.isnan(block).any(axis=1)
            counts = counts if weights is None else counts[kept]
            block, cells, left = block[kept], list(itertools.compress(cells, kept)), left + int((~kept).sum())
        data.frombytes(block.tobytes())
        if weights is not None:
            weights.frombytes(counts.tobytes())
        targets += cells
        files.check_room("inputs", len(data) // block.shape[1], block.shape[1])
    inputs = np.frombuffer(data, np.float64).reshape(-1, len(table.features))
    counts = None if weights is None else np.frombuffer(weights, np.float64)
    gone = _missing_targets(targets, known)
    if gone.any() and not drops:
        raise _refused(*targets[int(np.argmax(gone))], name, decimal, "drop")
    if gone.any():
        inputs, targets, left = inputs[~gone], list(itertools.compress(targets, ~gone)), left + int(gone.sum())
        counts = None if counts is None else counts[~gone]
    if not len(inputs):
        raise ValueError(f"no examples: each of {left} rows has a missing value" if left else "no examples")
    return Read(inputs, left, name, targets if answers else None, decimal, counts)


def _weights(column: Column, columns: Sequence[Sequence[str]], lines: Sequence[int], decimal: str) -> np.ndarray:
    """(Q,) weights of the examples. A missing weight is always refused: rows are left out only for missing inputs or
    targets, so that the run's data can be read again without the weights.
    """
    values = [dialects.number(cell, decimal) for cell in columns[column.index]]
    for line, cell, value in zip(lines, columns[column.index], values, strict=True):
        if value is None or not 0 <= value < np.inf:
            raise ValueError(f"line {line}, column {column.name!r}: expected a weight, a number >= 0, got {cell!r}")
    return np.array(values, np.float64)


def _missing_targets(cells: Cells, known: Sequence[str]) -> np.ndarray:
    """(Q,) bool; if all targets are plus or minus, a minus is not a gap."""
    kept = {"-"} if {cell for _, cell in cells} == {"+", "-"} else set(known)
    return np.array([dialects.missing(cell) and cell not in kept for _, cell in cells], bool)


class _Found(NamedTuple):
    """The rows below a header, the places of the inputs and of the target, the target's name, and the decimal mark."""

    rows: dialects.Rows
    places: list[int]
    target: int | None
    name: str | None
    decimal: str


def _find(path: Path, table: Table, target: str | int | None, answers: bool) -> _Found:
    dialect = dialects.detect(path, table.delimiter, table.decimal)
    first, rows = dialects.first_rows(dialects.rows(path, dialect.delimiter))
    if not first:
        raise ValueError("empty file")
    (line, cells), width = first[0], _width(first)
    header = dialects.is_header(cells[:width], [below[:width] for _, below in first[1:]], dialect.decimal)
    names, count = [column.name for column in table.inputs], len(table.inputs)
    numbers = all(dialects.number(name, ".") is not None for name in names)  # then an example may hold all of them
    named = set(names) <= set(cells) and not (numbers and header is False)
    if named:
        next(rows)
        names, own = cells[:width], table.target and table.target.name
        places = [_own_place(column, cells, line) for column in table.inputs]
    elif header or (header is None and table.named) or width not in _widths(table, answers):
        raise ValueError(_absent(table, cells))
    else:
        names, own = [f"column_{index}" for index in range(width)], table.target and table.target.index
        places = list(range(width)) if width == count else [column.index for column in table.inputs]
    if not answers:
        return _Found(rows, places, None, None, dialect.decimal)
    at = _place(names, next((word for word in (target, own) if word is not None), -1), "target column")
    if not named and table.target is None:  # only the inputs' names are known, in order
        places = [index for index in range(width) if index != at]
    if at in places:
        raise ValueError(f"the target column {names[at]!r} is one of the inputs; give the target with --target")
    return _Found(rows, places, at, names[at], dialect.decimal)


def _widths(table: Table, answers: bool) -> set[int]:
    """How many columns a file without a header may have: all of them, if their places are known, or only the inputs."""
    if answers:
        return {table.width}
    placed = not table.named or table.target is not None
    return {len(table.inputs), *([table.width] if placed else [])}


def _own_place(column: Column, cells: Sequence[str], line: int) -> int:
    """The place of the column in the header; if several have its name, its old place."""
    if cells.count(column.name) == 1:
        return cells.index(column.name)
    if cells[column.index : column.index + 1] != [column.name]:
        raise ValueError(f"line {line}: column {column.name!r} is named twice; expected different names")
    return column.index


def _absent(table: Table, cells: Sequence[str]) -> str:
    names = [column.name for column in table.inputs]
    if not table.named:
        return f"expected {table.width} columns without a header, or the {len(names)} inputs alone, got {len(cells)}"
    absent = [name for name in names if name not in cells]
    if not absent:
        return f"expected {table.width} columns, the target among them, or a header, got {len(cells)}"
    return f"expected columns {_listed(names)}; missing {_listed(absent)}{did_you_mean(absent[0], cells)}"


def _blocks(rows: dialects.Rows) -> Iterator[tuple[tuple[int, ...], list[tuple[str, ...]]]]:
    """Some rows at a time: their line numbers and their cells by column."""
    for line, cells in rows:
        some = [(line, cells), *itertools.islice(rows, _CELLS // len(cells))]
        yield tuple(line for line, _ in some), list(zip(*(cells for _, cells in some), strict=True))


def _values(
    column: Column, cells: Sequence[str], lines: Sequence[int], decimal: str, refuses: str | None
) -> np.ndarray:
    """(Q, the column's inputs), nan for missing values; if they are refused, the message names the options that
    accept them.
    """
    if column.levels is None:
        values = _all_numbers(cells, decimal)
        if values is None:
            values = np.array([_value(column, *cell, decimal, refuses) for cell in zip(lines, cells, strict=True)])
        values = values[:, None]
    else:
        places = [_level(column, *cell, refuses) for cell in zip(lines, cells, strict=True)]
        values = np.concatenate([np.eye(len(column.levels)), np.full((1, len(column.levels)), np.nan)])[places]
    return np.concatenate([values, np.isnan(values[:, :1])], axis=1) if column.indicator else values


def _all_numbers(cells: Sequence[str], decimal: str) -> np.ndarray | None:
    """The cells as numbers if all are finite, which is the usual case; repeated cells are converted once."""
    distinct = set(cells)
    plain = decimal == "." and "_" not in "".join(distinct)
    convert = float if plain else functools.partial(dialects.number, decimal=decimal)
    try:
        if 2 * len(distinct) <= len(cells):
            convert = dict(zip(distinct, map(convert, distinct), strict=True)).__getitem__
        found = np.fromiter(map(convert, cells), np.float64, len(cells))
    except (ValueError, TypeError):  # from float, and from a cell that is not a number
        return None
    return found if np.isfinite(found).all() else None


def _value(column: Column, line: int, cell: str, decimal: str, refuses: str | None) -> float:
    if not refuses and dialects.missing(cell):
        return np.nan
    value = dialects.number(cell, decimal)
    if value is None or not np.isfinite(value):
        raise _refused(line, cell, column.name, decimal, refuses)
    return value


def _level(column: Column, line: int, cell: str, refuses: str | None) -> int:
    if cell in column.levels:
        return column.levels.index(cell)
    if not dialects.missing(cell):
        accepted = f"{did_you_mean(cell, column.levels)} (accepted: {_listed(column.levels)})"
        raise ValueError(f"line {line}, column {column.name!r}: unknown level {cell!r}{accepted}")
    if refuses:
        raise _refused(line, cell, column.name, ".", refuses)
    return -1


def _refused(line: int, cell: str, name: str, decimal: str, missing: str | None = None) -> ValueError:
    """The error for a cell that is not a finite number. missing: the options that would accept a missing value."""
    where, value = f"line {line}, column {name!r}", dialects.number(cell, decimal)
    if dialects.missing(cell):
        accepted = f"train with --missing {missing}"
        return ValueError(f"{where}: missing value, got {cell!r} (accepted: {accepted})")
    expected = "a number" if value is None else "a finite number"
    if value is None and any(dialects.number(cell, other) is not None for other in ".,"):
        mark = "comma" if decimal == "," else "point and no mark of thousands (or --decimal comma)"
        expected = f"a number with a decimal {mark}"
    return ValueError(f"{where}: expected {expected}, got {cell!r}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")


# The target -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """The cells of a target: values (Q,) float64, None if they are words; keys: what distinguishes classes.

    A key is the cell's integer or number, however it is written; or its text, for words and for codes: integers with
    leading zeros. codes: whether there are any.
    """

    values: np.ndarray | None
    keys: list[int | float | str]
    codes: bool


def answers_of(read: Read, task: str) -> Answers:
    """The target's cells as `task` requires, or as they are for "auto".

    Raises ValueError, with its line, for a cell of another kind than the others.
    """
    cells = read.answers
    values = [dialects.number(cell, read.decimal) for _, cell in cells]
    words = values.count(None)
    if task != "classification" and words:
        odd = next((at for at, value in enumerate(values) if value is not None), None)
        if task == "auto" and odd is not None and words > len(values) / 2:
            line, cell = cells[odd]
            accepted = "expected a word, like most cells, or --task classification"
            raise ValueError(f"line {line}, column {read.target!r}: {accepted}, got {cell!r}")
        if task == "regression" or odd is not None:
            line, cell = cells[values.index(None)]
            raise _refused(line, cell, read.target, read.decimal)
    for (line, cell), value in zip(cells, values, strict=True):
        if value is not None and not np.isfinite(value):
            raise _refused(line, cell, read.target, read.decimal)
    if words:
        return Answers(None, [cell for _, cell in cells], False)
    keys = [_key(cell, value) for (_, cell), value in zip(cells, values, strict=True)]
    return Answers(np.array(values, np.float64), keys, any(isinstance(key, str) for key in keys))


def _key(cell: str, value: float) -> int | float | str:
    if re.fullmatch(r"[+-]?0\d+", cell):
        return cell
    if dialects.integer(cell):
        return int(cell)  # exact, unlike a float
    return int(value) if value.is_integer() else value
