"""The compiled programs of training: of one run, of a population of runs side by side, and of a chunk of data.

Letters: M lanes, U updates an epoch. `epoch_functions` are what an epoch of one run is made of. `run_program` puts them
together for one run. `population_program` vmaps each of them, for lanes that are all in the same epoch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from functional_nn.gradients.views import BUDGET, said_bytes
from functional_nn.precision import at_least_float32
from functional_nn.training.epoch import EpochSummary, Search, choose, epoch_functions, is_finite
from functional_nn.training.records import Batch, History, Metrics, Run
from functional_nn.training.settings import Common, Settings


def run_program(settings: Settings, length: int, alone: bool = True) -> Callable:
    """Returns the program of one run: advance(run, training, held_out, key, count) -> (Run, table, epochs run).

    It runs up to `count` <= `length` epochs. `count` may be traced, so that a last, shorter chunk compiles nothing.
    table is a History of arrays (length,). After the end its rows are 0, or, if not `alone`, repeat the last row.

    Args:
        settings: the run's.
        length: how many epochs a call runs at most.
        alone: False if the program is to be vmapped.
    """
    walk = update_until_limit if alone else update_all

    def advance(run: Run, training: Batch, held_out: Batch | None, key: Array, count):
        own = epoch_functions(settings, *training.targets.shape[:1], training.targets.dtype)
        updates = settings.plan.updates(training.targets.shape[0])
        first = run.epoch

        def epoch(carry):
            run, table, metrics, search = carry
            draws = own.draw(key, run.epoch, run.state, training)
            update = functools.partial(own.update, training=training)
            state, metrics = walk(update, search.limit, run.state, metrics, draws)
            search, done = own.judge(search, run.state, state, metrics)
            after, row = own.close(run, state, metrics, search, training, held_out)
            written = set_row(table, row, run.epoch - first)
            run, table, search = lax.cond(  # choosing each array by itself takes longer to compile
                done, lambda: (after, written, Search.begin(updates)), lambda: (run, table, search)
            )
            return run, table, metrics, search

        def unfinished(carry):
            run, *_ = carry
            return (run.epoch - first < count) & (run.ended == 0)

        metrics, search = blank_metrics(settings, training, updates), Search.begin(updates)
        table = _table(jax.eval_shape(own.close, run, run.state, metrics, search, training, held_out)[1], length)
        run, table, *_ = lax.while_loop(unfinished, epoch, (run, table, metrics, search))
        ran = run.epoch - first
        if alone:
            return run, table, ran
        written = jnp.minimum(jnp.arange(length, dtype=ran.dtype), jnp.maximum(ran - 1, 0))
        return run, jax.tree.map(lambda column: column[written], table), ran

    return advance


def population_program(
    common: Common, make: Callable[[Any], Settings], length: int, shared: bool, axes: Batch
) -> Callable:
    """Returns the program of M runs side by side: advance(run, values, training, held_out, key, first, count) -> (Run,
    table).

    Every array of `run` and `values` has a leading axis of lanes (M, ...); those of the table have it as their second
    axis. All lanes that have not ended are in epoch `first`. A lane that has ended is left bitwise unchanged, and its
    rows are 0.

    Args:
        common: the settings that all lanes have in common.
        make: a lane's values -> its settings, which differ in traced numbers only.
        length: how many epochs a call runs at most.
        shared: True if all lanes draw the same batches and noise, from one key; else there are keys (M,).
        axes: for each array of the training data 0 if each lane has its own, else None.
    """
    plan = common.plan

    def advance(run: Run, values, training: Batch, held_out: Batch | None, key: Array, first, count):
        examples = training.targets.shape[0 if axes.targets is None else 1]
        dtype = training.targets.dtype
        updates = plan.updates(examples)
        drawn = 0 if plan.importance is not None else None
        # weights of examples, if there are any, follow the indices
        weighed = drawn if training.weights is None or (shared and axes.weights is None) else 0
        stream = (drawn if shared else 0, weighed, weighed, None if shared else 0)  # indices, weights, scale, key

        def each(part: str, *over: Any, out: Any = 0) -> Callable:
            """Returns one of `EpochFunctions`, vmapped over lanes with their own settings."""
            return jax.vmap(
                lambda value, *rest: getattr(epoch_functions(make(value), examples, dtype), part)(*rest),
                (0, *over),
                out,
            )

        update, judge = each("update", 0, stream, axes), each("judge", 0, 0, 0, 1)
        close = each("close", 0, 0, 1, 0, axes, None)

        def draw(clock, state):
            if shared and weighed is None:  # every lane draws the same
                return epoch_functions(make(jax.tree.map(lambda v: v[0], values)), examples, dtype).draw(
                    key, clock, None, training
                )
            out = tuple(None if axis is None else 1 for axis in stream)  # updates lead
            return each("draw", None if shared else 0, None, 0, axes, out=out)(values, key, clock, state, training)

        def epoch(carry):
            clock, run, table, metrics, search = carry
            going = run.ended == 0
            limit = jnp.where(going, search.limit, 0)
            state, metrics = update_all(
                lambda state, row: update(values, state, row, training),
                limit,
                run.state,
                metrics,
                draw(clock, run.state),
            )
            search, done = judge(values, search, run.state, state, metrics)
            after, row = close(values, run, state, metrics, search, training, held_out)
            done = jnp.all(done | ~going)
            row = jax.vmap(choose)(going, row, jax.tree.map(jnp.zeros_like, row))
            after = jax.vmap(choose)(going, after, run)
            written, restarted = set_row(table, row, clock - first), Search.begin(updates, going.shape)
            run, table, search = choose(done, (after, written, restarted), (run, table, search))
            return clock + done.astype(clock.dtype), run, table, metrics, search

        def unfinished(carry):
            clock, run, *_ = carry
            return (clock - first < count) & jnp.any(run.ended == 0)

        search = Search.begin(updates, run.ended.shape)
        metrics = blank_metrics(common, training, updates, *run.ended.shape)
        blanks = values, run, run.state, metrics, search, training, held_out
        table = _table(jax.eval_shape(close, *blanks)[1], length)
        clock = jnp.asarray(first, jnp.int32)
        _, run, table, *_ = lax.while_loop(unfinished, epoch, (clock, run, table, metrics, search))
        return run, table

    return advance


# A pass over an epoch: (update, limit, state, metrics, draws) -> (state, metrics). The metrics of updates up to the
# `limit`-th replace those of an earlier pass.


def update_until_limit(update: Callable, limit: Array, state: Any, metrics: Metrics, draws: Any) -> tuple[Any, Metrics]:
    """Ends with the `limit`-th update or the first that is not finite, so that no earlier state has to be kept."""
    limit = limit.astype(jnp.uint32)  # the compiler does not test whether unsigned numbers are below 0

    def step(carry):
        i, state, metrics, _ = carry
        state, found = update(state, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), draws))
        return i + 1, state, set_row(metrics, found, i), is_finite(found)

    begin = jnp.zeros((), jnp.uint32), state, metrics, jnp.asarray(True)
    _, state, metrics, _ = lax.while_loop(lambda carry: (carry[0] < limit) & carry[3], step, begin)
    return state, metrics


def update_all(update: Callable, limit: Array, state: Any, metrics: Metrics, draws: Any) -> tuple[Any, Metrics]:
    """Makes all updates and keeps no result beyond the `limit`-th; for lanes, each of which has its own limit (M,)."""
    numbers = jnp.arange(1, len(metrics.loss) + 1, dtype=jnp.int32)
    choose_state = jax.vmap(choose) if limit.ndim else choose

    def step(state, numbered):
        number, row = numbered
        after, found = update(state, row)
        # the condition is known before the update is computed, so the choice costs no extra pass over the parameters
        return choose_state(number <= limit, after, state), found

    state, found = lax.scan(step, state, (numbers, draws))
    made = numbers.reshape(-1, *(1,) * limit.ndim) <= limit[None]
    return state, jax.tree.map(lambda new, old: jnp.where(made, new, old), found, metrics)


def blank_metrics(settings: Common, training: Batch, *shape: int) -> Metrics:
    """Returns metrics, all 0, of a shape: (U,) for an epoch's updates, (U, M) for those of lanes."""
    column = jnp.zeros(shape, at_least_float32(training.targets.dtype))
    return Metrics(column, column, column if settings.correct or settings.loss.correct else None, column)


def _table(row: History, length: int) -> History:
    """Returns a table of `length` such rows, all 0."""
    needed = length * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(row.tracked))
    if needed > BUDGET:
        raise ValueError(
            f"track: {', '.join(row.tracked)} of {length} epochs would take {said_bytes(needed)} of memory, above "
            f"{said_bytes(BUDGET)}; lower chunk, or track what is smaller"
        )
    return jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), row)


def set_row(table: History, row: History, at: Array) -> History:
    """Returns the table with `row` at that place."""
    return jax.tree.map(lambda column, x: lax.dynamic_update_index_in_dim(column, x, at, 0), table, row)


# Data in chunks -------------------------------------------------------------------------------------------------------


class EpochProgress(NamedTuple):
    """What the chunks of an epoch came to so far.

    Attributes:
        metrics: of all their updates together, scalars.
        updates: how many were made.
    """

    metrics: Metrics
    updates: Array


def no_progress(settings: Settings, training: Batch) -> EpochProgress:
    """Returns the progress before an epoch's first chunk."""
    return EpochProgress(blank_metrics(settings, training), jnp.zeros((), jnp.int32))


def chunk_program(settings: Settings) -> Callable:
    """Returns the program of one chunk of data: advance(run, so_far, training, key, number, made, mean) -> (Run,
    so_far).

    number is the chunk's, and its random numbers are drawn as for an epoch of that number. made is how many updates the
    run made before it. mean is the average of all examples' weights, or None for the chunk's own. `run.failed` is the
    update that was not made, if any.
    """
    plan, loss = settings.plan, settings.loss

    def advance(
        run: Run, so_far: EpochProgress, training: Batch, key: Array, number, made, mean
    ) -> tuple[Run, EpochProgress]:
        own = epoch_functions(settings, training.targets.shape[0], training.targets.dtype)
        updates = plan.updates(training.targets.shape[0])
        draws = own.draw(key, number, run.state, training)
        if mean is not None and loss.reduction == "mean":
            indices, weights, scales, own_keys = draws
            scales = scales * (jnp.mean(training.weights) / mean.astype(scales.dtype))
            draws = indices, weights, scales, own_keys
        update = functools.partial(own.update, training=training)

        def attempt(carry):  # as an epoch of `run_program`
            _, metrics, search, _ = carry
            state, metrics = update_until_limit(update, search.limit, run.state, metrics, draws)
            return state, metrics, *own.judge(search, run.state, state, metrics)

        first = run.state, blank_metrics(settings, training, updates), Search.begin(updates), jnp.asarray(False)
        state, metrics, search, _ = lax.while_loop(lambda carry: ~carry[-1], attempt, first)
        summary = own.summarize(metrics, search, training)
        failed = jnp.where(summary.failed > 0, made + summary.failed, 0)
        tried = jnp.minimum(search.high, updates)
        so_far = _add_progress(so_far, summary.metrics, tried, loss.reduction == "sum")
        run = run._replace(state=state, failed=failed, shown=summary.shown.astype(run.shown.dtype))
        return run, so_far

    return advance


def _add_progress(so_far: EpochProgress, found: Metrics, updates: Array, summed: bool) -> EpochProgress:
    """Adds a chunk's metrics. A mean moves by the chunk's share, so that the first chunk's is kept bit for bit."""
    before, count = so_far.metrics, so_far.updates + updates
    weight = before.weight + found.weight
    part = updates.astype(weight.dtype) / count.astype(weight.dtype)  # of integers, JAX makes it a float32
    loss = before.loss + (found.loss if summed else (found.loss - before.loss) * (found.weight / weight))
    right = None if found.right is None else before.right + found.right
    norm = before.gradient_norm + (found.gradient_norm - before.gradient_norm) * part
    return EpochProgress(Metrics(loss, weight, right, norm), count)


def end_program(settings: Settings) -> Callable:
    """Returns the program of an epoch's end: end(run, so_far, training, held_out) -> (Run, the epoch's row).

    training is the epoch's last chunk; nothing is measured on it.
    """

    def end(run: Run, so_far: EpochProgress, training: Batch, held_out: Batch | None) -> tuple[Run, History]:
        own = epoch_functions(settings, training.targets.shape[0], training.targets.dtype)
        return own.end(run, run.state, EpochSummary(so_far.metrics, run.shown, run.failed), training, held_out)

    return end
