"""How a CSV file is written: its delimiter, its decimal mark, its missing values, and whether it starts with a
header.

What the file makes clear is found out; what it does not is refused, and the message names the option that says it.
"""

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from functional_nn.lab import files

_SEEN = 200  # rows from which the dialect is found out
_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}
_DECIMALS = {"point": ".", "comma": ","}
_MISSING = {"", "?", "-", ".", "na", "n/a", "#n/a", "#na", "<na>", "nan", "+nan", "-nan", "null", "none", "nil"}
_INTEGER = re.compile(r"[+-]?\d+")
_WITH_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")

Rows = Iterator[tuple[int, list[str]]]


class Dialect(NamedTuple):
    delimiter: str
    decimal: str


def missing(cell: str) -> bool:
    """Whether the cell stands for a missing value."""
    return cell.lower() in _MISSING


def integer(cell: str) -> bool:
    """Whether the cell is written as an integer."""
    return _INTEGER.fullmatch(cell) is not None


def number(cell: str, decimal: str) -> float | None:
    """The cell's number, or None if it is not one. Python's 1_000 is not, because tables do not write numbers that
    way.
    """
    if "_" in cell:
        return None
    if decimal == ",":
        if "." in cell:  # a mark of thousands, or a decimal point
            return None
        cell = cell.replace(",", ".")
    try:
        return float(cell)
    except ValueError:
        return None


def detect(path: Path, delimiter: str, decimal: str) -> Dialect:
    """The two marks: as given (a mark or its name), or found out from the file for "auto".

    Raises ValueError for an invalid name, and if the file's first rows can be read in two ways.
    """
    delimiter, decimal = _DELIMITERS.get(delimiter, delimiter), _DECIMALS.get(decimal, decimal)
    marks = tuple(dict.fromkeys(_DELIMITERS.values()))
    if delimiter not in (*marks, "auto"):
        raise ValueError(f"delimiter must be auto, comma, semicolon, tab or pipe (or the mark), got {delimiter!r}")
    if decimal not in (".", ",", "auto"):
        raise ValueError(f"decimal must be auto, point or comma (or the mark), got {decimal!r}")
    delimiter = _delimiter(path, marks) if delimiter == "auto" else delimiter
    if decimal == "auto":  # in a file with commas between cells, a comma is a decimal mark only if the user says so
        decimal = "." if delimiter == "," else _decimal(path, delimiter)
    return Dialect(delimiter, decimal)


def _delimiter(path: Path, marks: Sequence[str]) -> str:
    """The mark with which all rows have the same length and most cells are numbers or plain words."""
    found: dict[str, list[list[str]]] = {mark: [] for mark in marks}
    for mark in marks:
        with contextlib.suppress(ValueError):
            found[mark].extend(cells for _, cells in itertools.islice(_records(path, mark), _SEEN))
    even = {mark: rows for mark, rows in found.items() if rows and {len(rows[0])} == {*map(len, rows)} != {1}}
    if len(even) < 2:  # if there is none, reading the file will raise the error
        return next(iter(even), "") or max(marks, key=lambda mark: len(found[mark][0]) if found[mark] else 0)

    def plain(cell):
        return any(number(cell, decimal) is not None for decimal in ".,") or not any(mark in cell for mark in marks)

    shares = {mark: sum(map(plain, itertools.chain(*rows))) / sum(map(len, rows)) for mark, rows in even.items()}
    best = [mark for mark in even if shares[mark] == max(shares.values())]
    if len(best) > 1:
        names = " or ".join(name for name, mark in _DELIMITERS.items() if mark in best and name != "\\t")
        raise ValueError(f"its cells could be separated by {names}; say which with --delimiter")
    return best[0]


def _decimal(path: Path, delimiter: str) -> str:
    cells = [cell for _, cells in itertools.islice(_records(path, delimiter), _SEEN) for cell in cells]
    with_comma = [cell for cell in cells if _WITH_COMMA.fullmatch(cell)]
    if not with_comma or any("." in cell and number(cell, ".") is not None for cell in cells):
        return "."
    if all(_THOUSANDS.fullmatch(cell) for cell in with_comma):
        value = with_comma[0].replace(",", ".")
        raise ValueError(f"{with_comma[0]!r} could be {value} (give --decimal comma) or thousands (not supported)")
    return ","


def rows(path: Path, delimiter: str) -> Rows:
    """Line numbers and cells, stripped of blanks; blank rows are left out.

    Raises ValueError for a row that is not as long as the first one, and for a file that is not CSV.
    """
    width = None
    for line, cells in _records(path, delimiter):
        width = len(cells) if width is None else width
        if len(cells) != width:
            raise ValueError(f"line {line}: expected {width} cells as in the first row, got {len(cells)}")
        yield line, cells


def _records(path: Path, delimiter: str) -> Rows:
    with files.reading(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        # strict: otherwise an unclosed quote swallows the rows after it
        reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
        try:
            for cells in reader:
                if len(cells) > 1 or (cells and cells[0].strip()):
                    yield reader.line_num, list(map(str.strip, cells))
        except UnicodeDecodeError as error:
            raise ValueError(f"after line {reader.line_num}: expected UTF-8 text, got {error.reason}") from error
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error


def first_rows(rows: Rows) -> tuple[list[tuple[int, list[str]]], Rows]:
    """The first rows, and an iterator over all of them."""
    first = list(itertools.islice(rows, _SEEN))
    return first, itertools.chain(first, rows)


# Whether a header comes first -----------------------------------------------------------------------------------------


def is_header(first: Sequence[str], below: Sequence[Sequence[str]], decimal: str) -> bool | None:
    """Whether the first row holds names; None if it may be either. below: the rows after it.

    A word is a name if the rows below have numbers in its column, or other words that are repeated; a word that is
    itself repeated below is an example. Numbers are names if they count (0, 1, 2, as pandas writes, or years) or are
    integers while the rows below have none.
    """
    filled = [at for at, cell in enumerate(first) if not missing(cell)]
    numbers = [at for at in filled if number(first[at], decimal) is not None]
    words = [at for at in filled if at not in numbers]
    if not below:
        return bool(words) and not numbers
    columns = [[cell for cell in column if not missing(cell)] for column in zip(*below, strict=True)]
    foreign = [at for at in words if _foreign(first[at], columns[at], decimal)]
    known = [at for at in words if first[at] in columns[at]]
    if not numbers:
        if known and foreign:
            return False if len(known) > len(foreign) else None
        return bool(foreign) or (False if known or not words else None)
    integers = all(integer(first[at]) for at in numbers)
    steps = {number(first[b], decimal) - number(first[a], decimal) for a, b in itertools.pairwise(numbers)}
    counts = integers and steps == {1.0}
    least = 2 if counts else 3 if integers or foreign else 4  # few equal steps could be a coincidence
    evenly = len(steps) == 1 and 0 not in steps and len(numbers) >= least
    if not evenly and not integers:
        return False
    unlike = [at for at in numbers if columns[at] and integer(first[at]) and not any(map(integer, columns[at]))]
    if foreign:
        names = evenly or unlike == numbers or len(foreign) > len(numbers)
        return True if names and not known else None
    if known:
        return False
    if first[0] == "" and counting([row[0] for row in below]):  # an index column, as pandas writes it
        return True
    if counts and len(numbers) > 2 and len(unlike) >= max(2, len(numbers) - 1):
        return True
    return None if evenly or (len(numbers) > 1 and unlike == numbers) else False


def _foreign(word: str, column: Sequence[str], decimal: str) -> bool:
    """Whether the word is of another kind than its column's cells."""
    of_numbers = [number(cell, decimal) is not None for cell in column]
    few = len({*column}) <= len(column) / 2
    return bool(column) and (all(of_numbers) or (few and not any(of_numbers) and word not in column))


def counting(cells: Sequence[str]) -> bool:
    """Whether these are at least two consecutive integers."""
    if len(cells) < 2 or not all(map(integer, cells)):
        return False
    return {int(b) - int(a) for a, b in itertools.pairwise(cells)} == {1}
