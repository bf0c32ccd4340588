"""Data larger than memory, given a chunk at a time: arrays mapped into memory, or items that are made.

Letters: Q examples.
"""

import math
import mmap
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from functional_nn import checks

BYTES = 64 * 2**20  # of a chunk, as it is stored
STRIPS = 64  # of a chunk: of so many bytes, each is one that a disk reads nearly as fast as its neighbours
_SAMPLED = 8  # places of the data by which a checkpoint knows them, and examples at each

_NAMES = ("inputs", "targets", "weights")

Place = tuple[int, int]  # (epoch, chunk), both from 0
Piece = tuple[int, int]  # examples from the first, up to but without the second


@dataclass(frozen=True, eq=False)
class Chunks:
    """Data in chunks, in the place of a `fit`'s inputs and targets. Made by `chunks`.

    examples: Q; size: of a chunk, before it is made a multiple of the batch size; strip: of neighbours that stay
    together.
    """

    examples: int
    size: int
    strip: int
    like: tuple  # (inputs, targets, weights or None): of each array one row's shape, and the dtype
    part: Callable[[int, int], tuple]  # the examples of a strip, from the first up to the second: views, where it can

    @property
    def weighted(self) -> bool:
        """Does each example have a weight?"""
        return self.like[2] is not None

    def __repr__(self) -> str:
        return f"<chunks of {self.size} of {self.examples} examples, in strips of {self.strip}>"

    def read(self, pieces: Sequence[Piece]) -> tuple:
        """Copies of the examples of these pieces, (inputs, targets, weights or None) in the data's order."""
        count = sum(stop - start for start, stop in pieces)
        into = jax.tree.map(lambda x: np.empty((count, *x.shape), x.dtype.newbyteorder("=")), self.like)
        order = sorted(range(len(pieces)), key=pieces.__getitem__)
        lengths = [pieces[i][1] - pieces[i][0] for i in order]
        place = dict(zip(order, np.cumsum([0, *lengths[:-1]]).tolist(), strict=True))
        for i, (start, stop) in enumerate(pieces):  # as they were laid out: what is left of the last begins the next
            for to, x in zip(jax.tree.leaves(into), jax.tree.leaves(self.part(start, stop)), strict=True):
                to[place[i] : place[i] + stop - start] = x
                _release(x)
        return into

    def sample(self) -> tuple:
        """A few examples from all over the data."""
        strips = -(-self.examples // self.strip)
        starts = sorted({round(i * (strips - 1) / (_SAMPLED - 1)) * self.strip for i in range(_SAMPLED)})
        ends = [min(self.examples, start + min(self.strip, _SAMPLED)) for start in starts]
        return self.read(list(zip(starts, ends, strict=True)))


def chunks(
    inputs: Any, targets: Any = None, weights: Any = None, *, size: int | None = None, strip: int | None = None
) -> Chunks:
    """Data larger than memory for `fit`, in the place of inputs and targets: read a chunk at a time, while the chunk
    before it trains.

    inputs (Q, *P, R), or {name: such}, targets (Q, *P, S) or labels (Q, *P), and weights as in `fit`: each a path to an
    NPY file; an array, mapped into memory (`np.load(path, mmap_mode="r")`, `training.mapped` for NPZ files) or not; or
    whatever has a shape, a dtype and rows x[a:b]. Or in the place of all three a sequence of chunks, with a length and
    items (inputs, targets) or (inputs, targets, weights), arrays or paths, each of as many examples, but for the last,
    which may have fewer. Items are read in another thread, and again in every epoch: each is to be the same every time.
    Numbers stay as they are stored until they are on the device, where they become the parameters' dtype, as in `fit`.

    size: examples in a chunk, rounded down to whole batches; by default as many as take 64 MiB as they are stored, or
    as an item has. There are up to three chunks in memory at a time: one trains, one comes, and a copy of it.
    strip: examples that stay neighbours, in the file and in their chunk; by default a 64th of a chunk, or an item. Each
    epoch draws the order of the strips, lays them end to end, cuts that into chunks and shuffles each chunk, see
    `training.streams`. Smaller strips mix more, larger ones are read faster; with strip=1 every example is drawn
    from all, and drawing takes some 100 bytes for each. Items are mixed where a chunk is of several: give a `size` that
    is larger than theirs.

    >>> import numpy as np
    >>> from functional_nn import training
    >>> training.chunks(np.zeros((1000, 4), np.float32), np.zeros(1000, np.int8), size=256)
    <chunks of 256 of 1000 examples, in strips of 4>

    Raises TypeError for what is none of these, ValueError for arrays whose numbers of examples differ, for none at all,
    and for a size or strip < 1. What can only be seen when it is read, as nan or another shape, is refused then.
    """
    for name, value in (("size", size), ("strip", strip)):
        if value is not None:
            checks.integer("chunks", name, value, 1)
    if targets is None and not isinstance(inputs, str | os.PathLike | Mapping) and not _is_array(inputs):
        return _of_items(inputs, weights, size, strip)
    try:
        part = _OfArrays(inputs, targets, weights)
    except (TypeError, ValueError) as error:
        raise type(error)(f"chunks: {error}") from None
    like, examples = jax.tree.map(_row, part.opened), _examples(part.opened)
    size = min(examples, size or max(1, BYTES // max(1, _bytes(like))))
    strip = strip or max(1, size // STRIPS)
    return Chunks(examples, size, strip, like, part)


class _OfArrays:
    """Parts of arrays; where these were given as paths, a copy in another process opens them again."""

    def __init__(self, *given: Any):
        self.given, self.opened = given, _all_opened(*given)

    def __reduce__(self):
        return type(self), self.given

    def __call__(self, start: int, stop: int) -> tuple:
        return jax.tree.map(lambda x: x[start:stop], self.opened)


class _OfItems:
    """Parts of a sequence's items, all but the last of `length` examples. The last read is kept: two chunks may
    need it.
    """

    def __init__(self, items: Any, like: tuple, length: int, examples: int):
        self.given, self.held = (items, like, length, examples), (None, None)

    def __reduce__(self):
        return type(self), self.given

    def __call__(self, start: int, stop: int) -> tuple:
        items, like, length, examples = self.given
        number = start // length
        kept, item = self.held
        if kept != number:
            item, self.held = None, (None, None)  # before there is another
            item = _item(items, number, like)
            wanted = min(length, examples - number * length)
            if _examples(item) != wanted:
                raise ValueError(f"chunks: item {number} has {_examples(item)} examples, expected {wanted}")
            self.held = number, item
        return jax.tree.map(lambda x: x[start - number * length : stop - number * length], item)


def _of_items(items: Any, weights: Any, size: int | None, strip: int | None) -> Chunks:
    if not all(hasattr(items, name) for name in ("__len__", "__getitem__")):
        raise TypeError(
            "chunks: expected arrays, paths to NPY files, or a sequence of (inputs, targets), which has a length and "
            f"items and can be read again in every epoch; got {type(items).__name__}"
        )
    if weights is not None or strip is not None:
        given = "strip" if weights is None else "weights"
        raise ValueError(f"{given}: of a sequence of chunks each brings its own: strips are items, weights their third")
    if not len(items):
        raise ValueError("chunks: expected at least one item, got none")
    first = _item(items, 0, None)
    like, length = jax.tree.map(_row, first), _examples(first)
    count = len(items)
    last = first if count == 1 else _item(items, count - 1, like)
    if _examples(last) > length:
        raise ValueError(f"chunks: the last item has {_examples(last)} examples, the first {length}; it may have fewer")
    examples = (count - 1) * length + _examples(last)
    return Chunks(examples, min(examples, size or length), length, like, _OfItems(items, like, length, examples))


def mapped(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file by name, mapped into memory where they stand in it: read-only, and read when needed.

    Raises ValueError for members that are compressed, as `np.savez_compressed` and not `np.savez` makes them, which
    have no place to map; for Python objects; and for what is no NPZ file.
    """
    found = {}
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    found[info.filename[:-4]] = _member(Path(path), file, info)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: expected an NPZ file; {error}") from None
    if not found:
        raise ValueError(f"{path}: expected an NPZ file, which holds arrays; there are none")
    return found


def _member(path: Path, file: Any, info: zipfile.ZipInfo) -> np.ndarray:
    where = f"{path}: {info.filename[:-4]!r}"
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            f"{where} is compressed and cannot be mapped; save it by np.savez, or unzip the file and give the paths of "
            "the NPY files that it holds"
        )
    file.seek(info.header_offset)
    header = file.read(30)  # of the zip format: the sizes of a name and of what else is before the data
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{where} holds Python objects, which cannot be mapped")
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _all_opened(inputs: Any, targets: Any, weights: Any = None) -> tuple:
    """(inputs, targets, weights or None), of as many examples each."""
    if isinstance(inputs, Mapping) and not inputs:
        raise ValueError("inputs: expected one or more arrays by name, got none")
    opened = (
        {name: _opened(f"inputs[{name!r}]", x) for name, x in inputs.items()}
        if isinstance(inputs, Mapping)
        else _opened("inputs", inputs),
        _opened("targets", targets),
        None if weights is None else _opened("weights", weights),
    )
    counts = {label: int(x.shape[0]) for label, x in checks.by_path(dict(zip(_NAMES, opened, strict=True))).items()}
    if len(set(counts.values())) > 1 or not _examples(opened):
        raise ValueError(f"expected one or more examples, as many in each, got {counts}")
    return opened


def _opened(label: str, x: Any) -> Any:
    """What `chunks` takes for an array, with a shape, a dtype and rows."""
    if isinstance(x, str | os.PathLike):
        path = Path(x)
        if path.suffix == ".npz":
            raise ValueError(f"{label}: {path} holds several arrays; training.mapped(path) gives them by name")
        try:
            x = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{label}: {path} is no NPY file that can be mapped: {error}") from None
    if not _is_array(x):
        raise TypeError(
            f"{label}: expected an array, mapped or not, or the path of an NPY file, got "
            f"{'None' if x is None else type(x).__name__}"
        )
    if isinstance(x, np.ndarray | jax.Array) or not _is_dtype(x.dtype):
        checks.numeric(label, x)
    elif not (jax.dtypes.issubdtype(x.dtype, np.number) or x.dtype == np.bool_):
        raise TypeError(f"{label}: expected an array of numbers, got dtype {x.dtype}")
    if not x.shape:
        raise ValueError(f"{label}: expected examples along the first axis, got shape ()")
    return x


def _item(items: Any, number: int, like: tuple | None) -> tuple:
    """That item as (inputs, targets, weights or None), checked to be like the first."""
    given = items[number]
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        of = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise TypeError(
            f"chunks: item {number}: expected (inputs, targets) or (inputs, targets, weights), got "
            f"{type(given).__name__}{of}"
        )
    try:
        item = _all_opened(*given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"chunks: item {number}: {error}") from None
    if like is not None:
        own, first = (
            ", ".join(f"{label} {row}" for label, row in checks.by_path(dict(zip(_NAMES, tree, strict=True))).items())
            for tree in (jax.tree.map(_row, item), like)
        )
        if own != first:
            raise ValueError(f"chunks: item {number}: expected examples of {first}, as in item 0, got {own}")
    return item


def _is_array(x: Any) -> bool:
    return all(hasattr(x, name) for name in ("shape", "dtype", "__getitem__"))


def _is_dtype(dtype: Any) -> bool:
    """Is it one of NumPy's?"""
    try:
        np.dtype(dtype)
    except TypeError:
        return False
    return True


def _examples(opened: tuple) -> int:
    return int(opened[1].shape[0])


@dataclass(frozen=True)
class Row:
    """One example's shape, and its dtype as it is stored, which may be none of JAX's."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def _row(x: Any) -> Row:
    return Row(tuple(x.shape[1:]), np.dtype(x.dtype))


def _bytes(like: tuple) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(like))


def _release(x: Any) -> None:
    """Gives back the memory of a mapped file that was read: what is mapped and touched counts as the process's own.

    Of a private copy ("c"), in which something may have been written that is in no file, nothing.
    """
    mode = None
    while isinstance(x, np.ndarray):
        mode = getattr(x, "mode", mode)
        x = x.base
    # "w+" and "r+" are written to the file itself, wherever its pages are
    if isinstance(x, mmap.mmap) and mode in ("r", "r+", "w+") and hasattr(mmap, "MADV_DONTNEED"):
        x.madvise(mmap.MADV_DONTNEED)
