"""Reads files: gzipped ones are unzipped, and arrays are never larger in memory than is accepted."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 4 * 2**30  # the largest accepted array of a file, as float64


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Yields the file's bytes, unzipped if gzip's magic number (not the name, which browsers may change) says so."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name}: damaged gzip file ({error})") from error


def check_room(what: str, rows: int, columns: int) -> None:
    """Raises ValueError if the numbers need more than MAX_BYTES."""
    wanted = 8 * columns * (rows + 8)  # a column's name takes about as much as eight numbers
    if wanted > MAX_BYTES:
        raise ValueError(f"{what}: {rows} x {columns} numbers need {wanted} bytes; at most {MAX_BYTES} are accepted")
