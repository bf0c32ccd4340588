"""Data larger than memory: read from files, or made, a chunk at a time, while the chunk before it trains.

Letters: Q examples, n those of a chunk, C chunks an epoch, B the batch size, U updates.

How examples are shuffled: the data are cut into strips, runs of neighbours as long as they are quick to read. Every
epoch draws an order of the strips from the run's key and the epoch, lays them end to end in that order, and cuts what
comes of it into chunks of n examples, a multiple of B (the last has up to n + B - 1). Of a chunk, whose examples stand
in the data's order, the batches are those that `plan` makes of so many: those of epoch e C + c of a `fit` on the
chunk alone, for the c-th chunk of epoch e, both from 0. So each epoch sees every example once, what it sees is known by
the key alone, and data that are one chunk are trained on as `fit` trains on them in memory, bit for bit.

Batches are mixed of the strips of one chunk. Of data sorted by class, a chunk of k strips has a class in the share that
k draws have it in: with 64 strips, 10 classes and shares of 0.1, each is from 0.03 to 0.17 in 19 chunks of 20.
"""

import functools
import math
import mmap
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.training import keys
from functional_nn.training.minibatches import BatchPlan, permutation
from functional_nn.training.program import (
    Batch,
    Found,
    History,
    Metrics,
    OfState,
    Run,
    Search,
    Settings,
    as_far_as,
    blank,
    parts,
)

BYTES = 64 * 2**20  # of a chunk, as it is stored
STRIPS = 64  # of a chunk: of so many bytes, each is one that a disk reads nearly as fast as its neighbours
_SAMPLED = 8  # places of the data by which a checkpoint knows them, and examples at each

_NAMES = ("inputs", "targets", "weights")

Place = tuple[int, int]  # (epoch, chunk), both from 0
Piece = tuple[int, int]  # examples from the first, up to but without the second


# The data -------------------------------------------------------------------------------------------------------------


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


# The order in which it is read ----------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """An epoch's Q examples in C chunks of `size`, a multiple of B; the last has the rest, a batch at least."""

    examples: int
    size: int
    batch: int

    @property
    def count(self) -> int:
        """C."""
        return max(1, -(-(self.examples - self.batch + 1) // self.size))

    def bounds(self, chunk: int) -> Piece:
        """Where in the epoch's order that chunk begins and ends."""
        return chunk * self.size, self.examples if chunk == self.count - 1 else (chunk + 1) * self.size

    def after(self, at: Place) -> Place:
        """The next."""
        return self.place(self.number(at) + 1)

    def number(self, at: Place) -> int:
        """How many chunks come before."""
        return at[0] * self.count + at[1]

    def place(self, number: int) -> Place:
        """Where the chunk is before which so many come."""
        return divmod(number, self.count)

    def made(self, plan: BatchPlan, at: Place) -> int:
        """How many updates are made before."""
        return at[0] * plan.updates(self.examples) + at[1] * (self.size // self.batch)

    def said(self, at: Place) -> str:
        """What is done of an epoch, if anything."""
        return f" and {at[1]} of {self.count} chunks of the next" if at[1] else ""


def cut(data: Chunks, plan: BatchPlan) -> Cut:
    """Raises ValueError where a chunk is smaller than a batch."""
    if data.size < plan.size:
        raise ValueError(
            f"chunks: a chunk has {data.size} examples, fewer than a batch of {plan.size}; give a larger "
            "size, or a smaller batch"
        )
    return Cut(data.examples, data.size // plan.size * plan.size, plan.size)


def pieces(data: Chunks, into: Cut, plan: BatchPlan, plan_key: Array, at: Place) -> list[Piece]:
    """Which examples that chunk of that epoch is of, as strips or parts of such, in the order in which they are laid
    end to end.
    """
    epoch, chunk = at
    low, high = into.bounds(chunk)
    strips = -(-data.examples // data.strip)
    order = np.arange(strips)
    if plan.shuffle != "never":
        own = keys.strips(plan_key, epoch if plan.shuffle == "each_epoch" else 0)
        order = np.asarray(permutation(own, strips), np.int64)
    lengths = np.minimum(data.strip, data.examples - order * data.strip)
    ends = np.cumsum(lengths)
    found = []
    for i in range(int(np.searchsorted(ends, low, side="right")), strips):
        start, stop, first = int(ends[i] - lengths[i]), int(ends[i]), int(order[i]) * data.strip
        if start >= high:
            break
        found.append((first + max(low, start) - start, first + min(high, stop) - start))
    return found


@contextmanager
def reading(
    data: Chunks, into: Cut, plan: BatchPlan, plan_key: Array, prepare: Callable[..., Batch]
) -> Iterator[Callable[[Place], Callable[[], Batch]]]:
    """Has chunks read in another thread: ask(place) -> a function that waits for the chunk and gives it prepared.

    prepare(inputs, targets, weights) -> Batch; JAX is left to this thread, of which its settings are.
    """
    with ThreadPoolExecutor(1, "functional_nn reads") as thread:

        def ask(at: Place) -> Callable[[], Batch]:
            found = pieces(data, into, plan, plan_key, at)
            read = thread.submit(data.read, found)
            return lambda: prepared(read.result(), found, prepare)

        yield ask


def prepared(read: tuple, found: Sequence[Piece], prepare: Callable[..., Batch]) -> Batch:
    """A chunk that was read, as `prepare` makes it; what it refuses is said with the number of the example, where it is
    one's fault.
    """
    if read[2] is not None and not np.any(read[2]):
        raise ValueError(
            f"weights: expected at least one above 0 in every chunk, got none among {len(read[2])} examples, from "
            f"number {min(found)[0]} on; larger chunks, or smaller strips, are more alike"
        )
    try:
        return prepare(*read)
    except (TypeError, ValueError) as error:
        refused = error
    numbers, low, high = np.concatenate([np.arange(*piece) for piece in sorted(found)]), 0, len(read[1])

    def trouble(start: int, stop: int) -> Exception | None:
        try:
            prepare(*jax.tree.map(lambda x: x[start:stop], read))
        except (TypeError, ValueError) as error:
            return error
        return None

    while high - low > 1:  # the first is found by halves
        half = (low + high) // 2
        low, high = (low, half) if trouble(low, half) else (half, high)
    if low == 0 and trouble(len(read[1]) - 1, len(read[1])):  # all of them, as for their shape
        raise type(refused)(f"{refused}, in a chunk of examples from number {numbers[0]} on")
    refused = trouble(low, high) or refused
    raise type(refused)(f"example {numbers[low]}: {refused}")


def mean_weight(first: Batch, into: Cut, ask: Callable[[Place], Callable[[], Batch]]) -> Array | None:
    """The mean of all examples' weights, for which all chunks are read; None where there are none, or one chunk."""
    if first.weights is None or into.count == 1:
        return None
    total, count = 0.0, 0
    for chunk in range(into.count):
        weights = np.asarray(ask((0, chunk))().weights, np.float64)
        total, count = total + weights.sum(), count + weights.size
    return jnp.asarray(total / count, first.weights.dtype)


def describe(data: Chunks, into: Cut, class_weights: Any) -> dict[str, Any]:
    """What a checkpoint is to know of the chunks, beside a sample of them."""
    chunks = {"examples": data.examples, "size": into.size, "strip": data.strip}
    return {"chunks": chunks, "class_weights": None if class_weights is None else repr(class_weights)}


# The program of a chunk -----------------------------------------------------------------------------------------------


class SoFar(NamedTuple):
    """Of the epoch's chunks that are done: their metrics, scalars, and how many updates these are of."""

    metrics: Metrics
    updates: Array


def nothing(settings: Settings, training: Batch) -> SoFar:
    """Before an epoch's first chunk."""
    return SoFar(blank(settings, training), jnp.zeros((), jnp.int32))


def chunk_program(settings: Settings) -> Callable:
    """advance(run, so far, training, key, number, made, mean) -> (Run, so far), of one chunk's updates.

    number: of the chunk, by which its batches and what else is random are drawn as an epoch's; made: the updates of the
    run before it. mean: of all examples' weights, or None for the chunk's own. `run.failed` tells of an update that was
    not made.
    """
    plan, loss = settings.plan, settings.loss

    def advance(run: Run, so_far: SoFar, training: Batch, key: Array, number, made, mean) -> tuple[Run, SoFar]:
        own = parts(settings, training.targets.shape[0], training.targets.dtype)
        updates = plan.updates(training.targets.shape[0])
        rows = own.rows(key, number, run.state, training)
        if mean is not None and loss.reduction == "mean":
            indices, weights, scales, own_keys = rows
            scales = scales * (jnp.mean(training.weights) / mean.astype(scales.dtype))
            rows = indices, weights, scales, own_keys
        update = functools.partial(own.update, training=training)

        def attempt(carry):  # as an epoch of `program`
            _, metrics, search, _ = carry
            state, metrics = as_far_as(update, search.limit, run.state, metrics, rows)
            return state, metrics, *own.judge(search, run.state, state, metrics)

        first = run.state, blank(settings, training, updates), Search.begin(updates), jnp.asarray(False)
        state, metrics, search, _ = lax.while_loop(lambda carry: ~carry[-1], attempt, first)
        found = own.over(metrics, search, training)
        failed = jnp.where(found.failed > 0, made + found.failed, 0)
        tried = jnp.minimum(search.high, updates)
        so_far = _and(so_far, found.metrics, tried, loss.reduction == "sum")
        run = run._replace(state=state, failed=failed, shown=found.shown.astype(run.shown.dtype))
        return run, so_far

    return advance


def _and(so_far: SoFar, found: Metrics, updates: Array, summed: bool) -> SoFar:
    """Sums are added; means are moved by the new ones' part, so that a first is what it is, bit for bit."""
    before, count = so_far.metrics, so_far.updates + updates
    weight = before.weight + found.weight
    part = updates.astype(weight.dtype) / count.astype(weight.dtype)  # of integers, JAX makes it a float32
    loss = before.loss + (found.loss if summed else (found.loss - before.loss) * (found.weight / weight))
    right = None if found.right is None else before.right + found.right
    norm = before.gradient_norm + (found.gradient_norm - before.gradient_norm) * part
    return SoFar(Metrics(loss, weight, right, norm), count)


def end_program(settings: Settings) -> Callable:
    """end(run, so far, training, held_out) -> (Run, History): the epoch's end, and its row. training: its last chunk,
    of which nothing is measured.
    """

    def end(run: Run, so_far: SoFar, training: Batch, held_out: Batch | None) -> tuple[Run, History]:
        own = parts(settings, training.targets.shape[0], training.targets.dtype)
        return own.end(run, run.state, Found(so_far.metrics, run.shown, run.failed), training, held_out)

    return end


def check(settings: Settings, class_weights: Any) -> None:
    """Raises ValueError for settings that look at all of the data at once."""
    optimizer, plan = settings.optimizer, settings.plan
    if isinstance(class_weights, str):
        raise ValueError(
            f"class_weights: {class_weights!r} counts all labels at once, and chunks are read one after "
            "the other; give a weight for each class"
        )
    if optimizer.full_batch:
        raise ValueError(
            f"chunks: {optimizer.name} steps on all examples at once, which are larger than memory; "
            "use a method that takes mini-batches, such as 'adam'"
        )
    if plan is not None and (plan.size is None or plan.importance is not None or plan.replacement):
        asked = (
            "batch() takes all examples"
            if plan.size is None
            else "importance() measures all gradients"
            if plan.importance is not None
            else "replacement=True draws from all examples"
        )
        raise ValueError(f"plan: {asked} at once, and chunks are read one after the other; use minibatch(size)")
    for name, function in settings.track:
        if not isinstance(function, OfState):
            raise ValueError(
                f"track: {name!r} is measured on all training examples, and chunks are larger than memory; "
                "training.of_state(...) may be tracked, and on_chunk called"
            )
