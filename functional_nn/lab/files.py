"""What every file is read through: unzipped where it is zipped, and never larger in memory than is accepted."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 4 * 2**30  # the largest array, as float64, that a file may ask for


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unzipped where gzip's own mark (not the name, which browsers may keep) says so."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name}: damaged gzip file ({error})") from error


def check_room(what: str, rows: int, columns: int) -> None:
    """Raises ValueError where so many numbers are more than MAX_BYTES."""
    wanted = 8 * columns * (rows + 8)  # a column's name takes about the room of eight numbers
    if wanted > MAX_BYTES:
        raise ValueError(f"{what}: {rows} x {columns} numbers need {wanted} bytes; at most {MAX_BYTES} are accepted")
