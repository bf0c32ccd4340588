"""Data larger than memory: arrays in files, mapped into memory, or a sequence of chunks that are made when needed.

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
STRIPS = 64  # in a chunk: a disk reads a strip of 1/64 of `BYTES` nearly as fast as it reads neighbouring strips
_SAMPLED = 8  # places at which a checkpoint samples the data, and examples at each

_NAMES = ("inputs", "targets", "weights")

Piece = tuple[int, int]  # examples from the first number up to, but without, the second


@dataclass(frozen=True, eq=False)
class Chunks:
    """Data in chunks, for `fit` to read instead of arrays. Made by `chunks`.

    Attributes:
        examples: Q.
        size: of a chunk, before it is rounded down to whole batches.
        strip: how many neighbours stay together.
        like: (inputs, targets, weights or None): of each array, one row's shape and dtype.
        part: (first, end) -> the examples of a strip from the first up to, but without, the end; views where possible.

    Example:
        >>> import numpy as np
        >>> from functional_nn import training
        >>> data = training.chunks(np.zeros((1000, 4), np.float32), np.zeros(1000, np.int8), size=256)
        >>> data.examples, data.weighted
        (1000, False)
    """

    examples: int
    size: int
    strip: int
    like: tuple[Any, ...]
    part: Callable[[int, int], tuple[Any, ...]]

    @property
    def weighted(self) -> bool:
        """True if each example has a weight."""
        return self.like[2] is not None

    def __repr__(self) -> str:
        return f"<chunks of {self.size} of {self.examples} examples, in strips of {self.strip}>"

    def read(self, pieces: Sequence[Piece]) -> tuple[Any, ...]:
        """Returns copies of the examples of these pieces: (inputs, targets, weights or None), in the data's order."""
        count = sum(stop - start for start, stop in pieces)
        into = jax.tree.map(lambda x: np.empty((count, *x.shape), x.dtype.newbyteorder("=")), self.like)
        order = sorted(range(len(pieces)), key=pieces.__getitem__)
        lengths = [pieces[i][1] - pieces[i][0] for i in order]
        place = dict(zip(order, np.cumsum([0, *lengths[:-1]]).tolist(), strict=True))
        for i, (start, stop) in enumerate(
            pieces
        ):  # as they were laid out: the rest of the last strip begins the next chunk
            for to, x in zip(jax.tree.leaves(into), jax.tree.leaves(self.part(start, stop)), strict=True):
                to[place[i] : place[i] + stop - start] = x
                _release(x)
        return into

    def sample(self) -> tuple[Any, ...]:
        """Returns a few examples from all over the data."""
        strips = -(-self.examples // self.strip)
        starts = sorted({round(i * (strips - 1) / (_SAMPLED - 1)) * self.strip for i in range(_SAMPLED)})
        ends = [min(self.examples, start + min(self.strip, _SAMPLED)) for start in starts]
        return self.read(list(zip(starts, ends, strict=True)))


def chunks(
    inputs: Any, targets: Any = None, weights: Any = None, *, size: int | None = None, strip: int | None = None
) -> Chunks:
    """Describes data larger than memory for `fit`, which reads a chunk of it while the chunk before it trains.

    Each array is a path to an NPY file; an array, mapped into memory (`np.load(path, mmap_mode="r")`, or
    `training.mapped` for NPZ files) or not; or any object with a shape, a dtype and rows `x[a:b]`. Instead of all three
    arrays, a sequence of chunks may be given. Numbers are kept as they are stored until they are on the device, where
    they are converted to the parameters' dtype, as in `fit`.

    Each epoch draws an order of strips of neighbours, lays them end to end, cuts them into chunks and shuffles each
    chunk; see `functional_nn.training.streams`. Up to three chunks are in memory at a time: the one that trains, the
    next, and a copy of it.

    Args:
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`. Or a sequence of chunks, with a length and items (inputs,
            targets) or (inputs, targets, weights) of arrays or paths. All items have the same number of examples,
            except that the last may have fewer. Items are read in another thread, again in every epoch, and must be
            the same each time.
        targets: `(Q, *P, S)`, or integer labels `(Q, *P)`; None if `inputs` is a sequence of chunks.
        weights: as in `fit`; None if all count alike, or if `inputs` is a sequence of chunks.
        size: examples in a chunk, rounded down to whole batches. The default is as many as take 64 MiB as they are
            stored, or as many as an item has. To mix several items, give a size larger than theirs.
        strip: examples that stay neighbours. The default is 1/64 of a chunk, or an item. Smaller strips mix more,
            larger ones are read faster. With strip=1 every example is drawn from all; drawing takes about 100 bytes
            for each.

    Returns:
        Data for `fit(network, loss, optimizer, data, key=..., epochs=...)`.

    Raises:
        TypeError: for unsupported types.
        ValueError: for arrays whose numbers of examples differ, for no examples, and for a size or strip below 1.
            Errors that are only seen when a chunk is read, such as nan, are raised then, by `fit`.

    Example:
        >>> import numpy as np
        >>> from functional_nn import training
        >>> training.chunks(np.zeros((1000, 4), np.float32), np.zeros(1000, np.int8), size=256)
        <chunks of 256 of 1000 examples, in strips of 4>
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
    """Parts of arrays. A copy in another process opens arrays that were given as paths again."""

    def __init__(self, *given: Any):
        self.given, self.opened = given, _all_opened(*given)

    def __reduce__(self):
        return type(self), self.given

    def __call__(self, start: int, stop: int) -> tuple[Any, ...]:
        return jax.tree.map(lambda x: x[start:stop], self.opened)


class _OfItems:
    """Parts of a sequence's items, all but the last of `length` examples.

    The item that was read last is kept, since two chunks may need it.
    """

    def __init__(self, items: Any, like: tuple[Any, ...], length: int, examples: int):
        self.given, self.held = (items, like, length, examples), (None, None)

    def __reduce__(self):
        return type(self), self.given

    def __call__(self, start: int, stop: int) -> tuple[Any, ...]:
        items, like, length, examples = self.given
        number = start // length
        kept, item = self.held
        if kept != number:
            item, self.held = None, (None, None)  # freed before the next is read
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
        raise ValueError(f"{given}: in a sequence of chunks the strips are its items, and weights the third of each")
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


def mapped(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Maps the arrays of an NPZ file into memory, read-only: their numbers are read from the file when needed.

    Args:
        path: of a file that `np.savez` wrote.

    Returns:
        {name: array}.

    Raises:
        ValueError: if the arrays are compressed, as `np.savez_compressed` writes them, or are Python objects; and if
            the file is no NPZ file.

    Example:
        >>> import tempfile, numpy as np
        >>> from functional_nn import training
        >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        ...     np.savez(file.name, x=np.arange(6).reshape(3, 2))
        ...     training.mapped(file.name)["x"][1].tolist()
        [2, 3]
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
        raise ValueError(f"{path}: expected an NPZ file, which holds arrays; it holds none")
    return found


def _member(path: Path, file: Any, info: zipfile.ZipInfo) -> np.ndarray:
    where = f"{path}: {info.filename[:-4]!r}"
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            f"{where} is compressed and cannot be mapped; save it by np.savez, or unzip the file and give the paths of "
            "the NPY files that it holds"
        )
    file.seek(info.header_offset)
    header = file.read(30)  # of the zip format, with the sizes of the name and the extra field before the data
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{where} holds Python objects, which cannot be mapped")
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _all_opened(inputs: Any, targets: Any, weights: Any = None) -> tuple[Any, ...]:
    """Returns (inputs, targets, weights or None), checked to have the same number of examples."""
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
        raise ValueError(f"expected one or more examples, the same number in each, got {counts}")
    return opened


def _opened(label: str, x: Any) -> Any:
    """Returns the array, opened if it was given as a path: an object with a shape, a dtype and rows."""
    if isinstance(x, str | os.PathLike):
        path = Path(x)
        if path.suffix == ".npz":
            raise ValueError(f"{label}: {path} holds several arrays; training.mapped(path) returns them by name")
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


def _item(items: Any, number: int, like: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """Returns an item as (inputs, targets, weights or None), checked to be like the first."""
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
    """Returns True for a dtype that NumPy knows."""
    try:
        np.dtype(dtype)
    except TypeError:
        return False
    return True


def _examples(opened: tuple[Any, ...]) -> int:
    return int(opened[1].shape[0])


@dataclass(frozen=True)
class Row:
    """One example's shape, and its dtype as it is stored, which JAX may not have."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def _row(x: Any) -> Row:
    return Row(tuple(x.shape[1:]), np.dtype(x.dtype))


def _bytes(like: tuple[Any, ...]) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(like))


def _release(x: Any) -> None:
    """Frees the memory of a mapped file that was read: pages that were touched count as the process's own.

    A private copy (mode "c") is left unchanged, since it may hold numbers that are in no file.
    """
    mode = None
    while isinstance(x, np.ndarray):
        mode = getattr(x, "mode", mode)
        x = x.base
    # "w+" and "r+" are written to the file itself, wherever its pages are
    if isinstance(x, mmap.mmap) and mode in ("r", "r+", "w+") and hasattr(mmap, "MADV_DONTNEED"):
        x.madvise(mmap.MADV_DONTNEED)
