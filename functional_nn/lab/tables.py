"""Tables: what the columns of a CSV file become, decided once on the file that is trained on, alike for every other.

`fit` goes through a file and decides which columns are inputs, which of them hold numbers and which words; `read` goes
through that file or another and gives the inputs as numbers: a column of numbers as it is, a column of words as 0 and 1
for each of its levels. Nothing but these decisions is kept of a file, so that they can be written down with a run.

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

_CELLS = 2**19  # that are converted at a time
_FEW_LEVELS = 5  # as many are accepted however few the rows
_NO_NAME = re.compile(r"|Unnamed: \d+(\.\d+)?")  # as pandas writes and reads it
_COUNTS = 10  # rows, from which on consecutive integers are hardly measurements
_DATE = re.compile(
    r"\d{1,4}[-/]\d{1,2}[-/]\d{1,4}([ T].*)?|\d{4}-\d{2}|(\d{1,2}\.\d{1,2}\.\d{4}|\d{4}\.\d{1,2}\.\d{1,2})([ T].*)?"
    r"|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[AaPp][Mm])?"
    r"|\d{1,2}[- ][A-Za-z]{3,9}[- ,]+\d{2,4}|[A-Za-z]{3,9} \d{1,2},? \d{4}"
)
# What is meant as a number and not written as one: marks of thousands, units of money, percent, hexadecimal digits.
_ALMOST = re.compile(
    r"[$€£¥]?\s*[-+\u2212(]?\s*[$€£¥]?\s*[.,]?\d[\d.,'\u2019\s_]*([eE][-+]?\d+)?\s*[%$€£¥)]?|[-+]?0[xX][0-9a-fA-F]+"
)


class Column(NamedTuple):
    """A column of a table. index: its place in the file that was fitted. levels: the words it holds; None: numbers.

    indicator: an input of its own tells where a value is missing.
    """

    name: str
    index: int
    levels: tuple[str, ...] | None = None
    indicator: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the inputs that are made of it."""
        made = (self.name,) if self.levels is None else tuple(f"{self.name}={level}" for level in self.levels)
        return made + ((f"{self.name} missing",) if self.indicator else ())


@dataclass(frozen=True)
class Table:
    """How a CSV file is read. `fit` makes one, `plain` writes it down, `table_from` reads it back.

    target: None for the last column. width: how many columns the file had. named: they had names, by which they are
    found in another file, in any order and among others; a file without a header has the columns of the first file, or
    the inputs alone, in its order. delimiter, decimal: as they were given; "auto" is told from each file anew.
    missing: what becomes of missing values. weights: the column that says what each example counts for in training.
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
        """(R,) bool: the inputs that are 0 or 1 for what a column holds."""
        return np.array([c.levels is not None or place > 0 for c in self.inputs for place in range(len(c.features))])

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        columns = {"target": self.target and self.target._asdict(), "weights": self.weights and self.weights._asdict()}
        return self.__dict__ | {"inputs": [column._asdict() for column in self.inputs]} | columns


def table_from(plain: dict[str, Any]) -> Table:
    """The table that `plain` wrote down. Raises ValueError, KeyError or TypeError for anything else."""
    inputs = [Column(**column) for column in plain["inputs"]]
    inputs = [column._replace(levels=None if column.levels is None else tuple(column.levels)) for column in inputs]
    given = {name: plain.get(name) for name in ("target", "weights")}  # older runs know of no weights
    given = {name: column and Column(**column) for name, column in given.items()}
    table = Table(**plain | {"inputs": tuple(inputs)} | given)
    checks.one_of("table", "missing", table.missing, get_args(Missing))
    return table


def table_of(features: Sequence[str]) -> Table:
    """Columns of numbers called `features`, of which nothing else is known."""
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
    """How the file is read, by `datasets.load`'s words; and what the user should know: of columns that number the rows.

    series: the target is one of the inputs, too, and may be the only one.
    Raises ValueError for words it does not know, and for a file that can be read in more ways than one.
    """
    checks.one_of("table", "header", header, get_args(Header))
    checks.one_of("table", "missing", missing, get_args(Missing))
    if columns and drop:
        raise ValueError("give the columns to use or those to drop, not both")
    dialect = dialects.settle(path, delimiter, decimal)
    first, rows = dialects.looked_at(dialects.rows(path, dialect.delimiter))
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
        raise ValueError(f"the target column {names[at]!r} cannot hold the weights, too; give another of the two")
    if at in left:
        raise ValueError(f"the target column {names[at]!r} cannot be dropped; give another target")
    used = {_place(names, word, "column") for word in columns} or set(range(width)) - left - {weighing}
    if weighing in used:
        raise ValueError(f"the column {names[weighing]!r} holds the weights and cannot be an input; give other columns")
    used = sorted(used | {at} if series else used - {at})
    if named and len(first) == 1:
        raise ValueError("a header row and no examples")
    seen = _survey(rows, used, len(cells) - width, dialect.decimal)
    notes = []
    if not columns:
        notes, left_out = _of_indices(names, seen, named)
        used = [index for index in used if index not in left_out or (series and index == at)]
    if not used:
        raise ValueError("no input is left; expected at least one column beside the target")
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
    """How many columns the first rows have, without empty ones at the end, which a mark at the end of lines makes."""
    return max((index + 1 for _, cells in first for index, cell in enumerate(cells) if cell), default=0)


def _is_named(header: Header, words: Sequence[str | int | None], first, width: int, decimal: str) -> bool:
    line, cells = first[0]
    by_name = [w for w in words if isinstance(w, str) and (_index(w) is None or not -width <= _index(w) < width)]
    if header == "no" and by_name:
        raise ValueError(
            f"without a header columns are given by index, from {-width} to {width - 1}, got {by_name[0]!r}"
        )
    if header != "auto" or by_name:
        return header != "no"
    told = dialects.is_header(cells[:width], [below[:width] for _, below in first[1:]], decimal)
    if told is None:
        shown = ",".join(cells)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        raise ValueError(
            f"line {line}: cannot tell whether {shown!r} is a header or an example; say so with --header yes or "
            "--header no"
        )
    return told


def _index(word: str | int) -> int | None:
    try:
        return int(word)
    except ValueError:
        return None


def _place(names: Sequence[str], word: str | int, what: str) -> int:
    """The index of the column that a name, or else an index, gives."""
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
    """What the columns are. beyond: how many at the end have been empty so far, and must stay so."""
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
    """What is said of columns that number the rows, and which of them, having no name, are left out."""
    notes, left_out = [], []
    for index, column in seen.items():
        name, integers = names[index], column.numbers > 0 and column.integers and not column.words
        if integers and named and _NO_NAME.fullmatch(name):
            notes.append(f"the column at index {index} has no name and numbers the rows: left out")
            left_out.append(index)
        elif integers and column.counts and column.numbers >= _COUNTS:
            leave = f"where it is no measurement, leave it out with --drop {name if named else index}"
            notes.append(f"column {name!r} numbers the rows; {leave}")
    return notes, left_out


def _fitted(name: str, index: int, seen: _Seen, missing: Missing) -> Column:
    """The column, of numbers or words. Raises ValueError for words that are no levels.

    Where numbers and words are mixed it is one of numbers, and `read` says at which line the first word stands.
    """
    indicator = missing == "indicator" and seen.gaps > 0
    leave = f"leave it out with --drop {name}"
    if not seen.numbers and not seen.words and missing != "refuse":
        raise ValueError(f"column {name!r}: holds no value; {leave}")
    if seen.numbers or not seen.words or any(map(_ALMOST.fullmatch, seen.words)):
        return Column(name, index, None, indicator)
    levels = tuple(sorted(seen.words))
    dates = [level for level in levels if _DATE.fullmatch(level)]
    if dates:
        raise ValueError(f"column {name!r}: dates such as {dates[0]!r} are not read; {leave}, or make numbers of it")
    count = seen.words.total()
    if len(levels) > max(_FEW_LEVELS, count / 2):
        raise ValueError(
            f"column {name!r}: {len(levels)} different words in {count} rows, such as {levels[0]!r}, are too many for "
            f"levels; {leave}"
        )
    return Column(name, index, levels, indicator)


# Reading --------------------------------------------------------------------------------------------------------------


class Read(NamedTuple):
    """inputs: (Q, R) float64, nan where a value is missing. left: how many rows were left out because one was.

    target, answers: the target's name and its Q cells, or None. weights (Q,): of the examples, where asked for.
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
    """The file's rows as the table says. target: another column than the table's; answers: whether there is one.

    weighted: the weights of the examples, too, which only the file that was fitted has for certain. known: classes,
    which are no gaps whatever they are called. Rows with a missing value are left out where the table drops them and
    there are answers: without, every row has to give something. Raises ValueError for cells, levels and columns that
    the table does not allow.
    """
    rows, places, at, name, decimal = _find(path, table, target, answers)
    drops = table.missing == "drop" and answers
    refuses = None if drops or table.missing in ("mean", "indicator") else f"{'drop, ' * answers}mean or indicator"
    data, told, left = array("d"), [], 0
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
        told += cells
        files.check_room("inputs", len(data) // block.shape[1], block.shape[1])
    inputs = np.frombuffer(data, np.float64).reshape(-1, len(table.features))
    counts = None if weights is None else np.frombuffer(weights, np.float64)
    gone = _missing_targets(told, known)
    if gone.any() and not drops:
        raise _refused(*told[int(np.argmax(gone))], name, decimal, "drop")
    if gone.any():
        inputs, told, left = inputs[~gone], list(itertools.compress(told, ~gone)), left + int(gone.sum())
        counts = None if counts is None else counts[~gone]
    if not len(inputs):
        raise ValueError(f"no examples: a value is missing in each of {left} rows" if left else "no examples")
    return Read(inputs, left, name, told if answers else None, decimal, counts)


def _weights(column: Column, columns: Sequence[Sequence[str]], lines: Sequence[int], decimal: str) -> np.ndarray:
    """(Q,) what the examples count for. One that is missing is refused whatever becomes of other missing values:
    rows are left out for what a network sees, so that the run's data can be read again without the weights.
    """
    values = [dialects.number(cell, decimal) for cell in columns[column.index]]
    for line, cell, value in zip(lines, columns[column.index], values, strict=True):
        if value is None or not 0 <= value < np.inf:
            raise ValueError(f"line {line}, column {column.name!r}: expected a weight, a number >= 0, got {cell!r}")
    return np.array(values, np.float64)


def _missing_targets(cells: Cells, known: Sequence[str]) -> np.ndarray:
    """(Q,) bool; a minus beside a plus is no gap."""
    kept = {"-"} if {cell for _, cell in cells} == {"+", "-"} else set(known)
    return np.array([dialects.missing(cell) and cell not in kept for _, cell in cells], bool)


class _Found(NamedTuple):
    """The rows below a header, the places of the inputs, of the target and its name, and the decimal mark."""

    rows: dialects.Rows
    places: list[int]
    target: int | None
    name: str | None
    decimal: str


def _find(path: Path, table: Table, target: str | int | None, answers: bool) -> _Found:
    dialect = dialects.settle(path, table.delimiter, table.decimal)
    first, rows = dialects.looked_at(dialects.rows(path, dialect.delimiter))
    if not first:
        raise ValueError("empty file")
    (line, cells), width = first[0], _width(first)
    told = dialects.is_header(cells[:width], [below[:width] for _, below in first[1:]], dialect.decimal)
    names, count = [column.name for column in table.inputs], len(table.inputs)
    numbers = all(dialects.number(name, ".") is not None for name in names)  # then an example may hold them all
    named = set(names) <= set(cells) and not (numbers and told is False)
    if named:
        next(rows)
        names, own = cells[:width], table.target and table.target.name
        places = [_own_place(column, cells, line) for column in table.inputs]
    elif told or (told is None and table.named) or width not in _widths(table, answers):
        raise ValueError(_absent(table, cells))
    else:
        names, own = [f"column_{index}" for index in range(width)], table.target and table.target.index
        places = list(range(width)) if width == count else [column.index for column in table.inputs]
    if not answers:
        return _Found(rows, places, None, None, dialect.decimal)
    at = _place(names, next((word for word in (target, own) if word is not None), -1), "target column")
    if not named and table.target is None:  # all that is known are the inputs' names, in order
        places = [index for index in range(width) if index != at]
    if at in places:
        raise ValueError(f"the target column {names[at]!r} is one of the inputs; say which it is with --target")
    return _Found(rows, places, at, names[at], dialect.decimal)


def _widths(table: Table, answers: bool) -> set[int]:
    """How many columns a file without a header may have: all of them, where their places are known, or the inputs."""
    if answers:
        return {table.width}
    placed = not table.named or table.target is not None
    return {len(table.inputs), *([table.width] if placed else [])}


def _own_place(column: Column, cells: Sequence[str], line: int) -> int:
    """Where the header has the column: of several that are called so, the one in its old place."""
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
    """(Q, the column's inputs), nan for missing values; those are refused with the words that would take them."""
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
    """The cells, where all are finite numbers: quickly, for most columns are, and each of few different ones once."""
    distinct = set(cells)
    plain = decimal == "." and "_" not in "".join(distinct)
    convert = float if plain else functools.partial(dialects.number, decimal=decimal)
    try:
        if 2 * len(distinct) <= len(cells):
            convert = dict(zip(distinct, map(convert, distinct), strict=True)).__getitem__
        found = np.fromiter(map(convert, cells), np.float64, len(cells))
    except (ValueError, TypeError):  # float's, and that of a cell that is no number
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
    """What is said of a cell that is no finite number. missing: what would take it where there is none."""
    where, value = f"line {line}, column {name!r}", dialects.number(cell, decimal)
    if dialects.missing(cell):
        accepted = f"--missing {missing}, to train on rows like this"
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
    """What the cells of a target are: values (Q,) float64, None where they are words; keys: what tells classes apart.

    A key is the cell's integer or number, however it is written; or its text, of words, and of codes: integers with
    zeros before them. codes: are there any?
    """

    values: np.ndarray | None
    keys: list[int | float | str]
    codes: bool


def answers_of(read: Read, task: str) -> Answers:
    """The target's cells as `task` asks, or as they are where that is "auto".

    Raises ValueError, with its line, for a cell of another kind than the others.
    """
    cells = read.answers
    values = [dialects.number(cell, read.decimal) for _, cell in cells]
    words = values.count(None)
    if task != "classification" and words:
        odd = next((at for at, value in enumerate(values) if value is not None), None)
        if task == "auto" and odd is not None and words > len(values) / 2:
            line, cell = cells[odd]
            accepted = "expected a word, as most are, or --task classification"
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
        return int(cell)  # whole, where a float is not
    return int(value) if value.is_integer() else value
