"""Data larger than memory: which examples each chunk has, and reading one while the chunk before it trains.

Letters: Q examples, n those of a chunk, C chunks an epoch, B the batch size, U updates.

How examples are shuffled. The data are cut into strips: runs of neighbours, long enough to be read quickly. Every
epoch draws an order of the strips from the run's key and the epoch, and lays them end to end in that order. The result
is cut into chunks of n examples, a multiple of B; the last chunk has up to n + B - 1. Within a chunk the examples are
in the data's order, and `plan` makes batches of them. The c-th chunk of epoch e, both counted from 0, has the batches
of epoch e C + c of a `fit` on that chunk alone. So each epoch sees every example once, the key alone decides in which
order, and data that fit one chunk are trained on as `fit` trains on them in memory, bit for bit.

Batches mix the strips of one chunk only. If the data are sorted by class, the share of a class in a chunk of k strips
is that of k random draws: with 64 strips and 10 classes of share 0.1 each, it is from 0.03 to 0.17 in 19 chunks of 20.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn.training import keys
from functional_nn.training.chunked_data import Chunks, Piece
from functional_nn.training.minibatches import BatchPlan, permutation
from functional_nn.training.records import Batch
from functional_nn.training.settings import Settings
from functional_nn.training.tracking import StateFunction, ValidationMetric

Place = tuple[int, int]  # (epoch, chunk), both from 0


class Cut(NamedTuple):
    """An epoch's Q examples in C chunks of `size`, a multiple of B; the last has the rest, at least one batch."""

    examples: int
    size: int
    batch: int

    @property
    def count(self) -> int:
        """C."""
        return max(1, -(-(self.examples - self.batch + 1) // self.size))

    def bounds(self, chunk: int) -> Piece:
        """Where the chunk begins and ends in the epoch's order."""
        return chunk * self.size, self.examples if chunk == self.count - 1 else (chunk + 1) * self.size

    def after(self, at: Place) -> Place:
        """The next place."""
        return self.place(self.number(at) + 1)

    def number(self, at: Place) -> int:
        """How many chunks come before this place."""
        return at[0] * self.count + at[1]

    def place(self, number: int) -> Place:
        """The place with this many chunks before it."""
        return divmod(number, self.count)

    def made(self, plan: BatchPlan, at: Place) -> int:
        """How many updates come before this place."""
        return at[0] * plan.updates(self.examples) + at[1] * (self.size // self.batch)

    def progress(self, at: Place) -> str:
        """How much of the next epoch is done, in words; empty if nothing."""
        return f" and {at[1]} of {self.count} chunks of the next" if at[1] else ""


def cut(data: Chunks, plan: BatchPlan) -> Cut:
    """Returns how an epoch is cut into chunks. Raises ValueError if a chunk is smaller than a batch."""
    if data.size < plan.size:
        raise ValueError(
            f"chunks: a chunk has {data.size} examples, fewer than a batch of {plan.size}; give a larger "
            "size, or a smaller batch"
        )
    return Cut(data.examples, data.size // plan.size * plan.size, plan.size)


def pieces(data: Chunks, into: Cut, plan: BatchPlan, plan_key: Array, at: Place) -> list[Piece]:
    """Returns the strips, or parts of strips, that a chunk is made of, in the order they are laid in."""
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
    """Reads chunks in another thread: yields ask(place) -> a function that waits for the chunk and returns it prepared.

    prepare(inputs, targets, weights) -> Batch runs in this thread, since settings of JAX may be local to it.
    """
    with ThreadPoolExecutor(1, "functional_nn reads") as thread:

        def ask(at: Place) -> Callable[[], Batch]:
            found = pieces(data, into, plan, plan_key, at)
            read = thread.submit(data.read, found)
            return lambda: prepare_chunk(read.result(), found, prepare)

        yield ask


def prepare_chunk(read: tuple, found: Sequence[Piece], prepare: Callable[..., Batch]) -> Batch:
    """Returns a chunk that was read, as `prepare` makes it. An error due to one example names the example's number."""
    if read[2] is not None and not np.any(read[2]):
        raise ValueError(
            f"weights: expected at least one above 0 in every chunk, got none among {len(read[2])} examples, from "
            f"number {min(found)[0]} on; with larger chunks, or smaller strips, chunks are more alike"
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

    while high - low > 1:  # the first is found by bisection
        half = (low + high) // 2
        low, high = (low, half) if trouble(low, half) else (half, high)
    if low == 0 and trouble(len(read[1]) - 1, len(read[1])):  # all of them, as with a wrong shape
        raise type(refused)(f"{refused}, in a chunk of examples from number {numbers[0]} on")
    refused = trouble(low, high) or refused
    raise type(refused)(f"example {numbers[low]}: {refused}")


def mean_weight(first: Batch, into: Cut, ask: Callable[[Place], Callable[[], Batch]]) -> Array | None:
    """Returns the mean of all weights, reading all chunks; None without weights, or if there is only one chunk."""
    if first.weights is None or into.count == 1:
        return None
    total, count = 0.0, 0
    for chunk in range(into.count):
        weights = np.asarray(ask((0, chunk))().weights, np.float64)
        total, count = total + weights.sum(), count + weights.size
    return jnp.asarray(total / count, first.weights.dtype)


def describe(data: Chunks, into: Cut, class_weights: Any) -> dict[str, Any]:
    """Returns what a checkpoint records of the chunks, in addition to a sample of them."""
    chunks = {"examples": data.examples, "size": into.size, "strip": data.strip}
    return {"chunks": chunks, "class_weights": None if class_weights is None else repr(class_weights)}


def check_settings_of_chunks(settings: Settings, class_weights: Any) -> None:
    """Raises ValueError for settings that need all of the data at once."""
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
        needs_all = (
            "batch() takes all examples"
            if plan.size is None
            else "importance() measures all gradients"
            if plan.importance is not None
            else "replacement=True draws from all examples"
        )
        raise ValueError(f"plan: {needs_all} at once, and chunks are read one after the other; use minibatch(size)")
    for name, function in settings.track:
        if not isinstance(function, StateFunction | ValidationMetric):
            raise ValueError(
                f"track: {name!r} is measured on all training examples, and chunks are larger than memory; "
                "track training.of_state(...) or training.of_validation(...), or use on_chunk"
            )
