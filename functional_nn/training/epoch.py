"""What an epoch of one run is made of, as functions that the compiled programs put together.

Letters: Q examples, B batch size, U updates an epoch. One run knows one thing: a step `(state, batch) -> (state,
metrics)`. Divergence and stopping are data in what the program carries.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from functional_nn import precision
from functional_nn.gradients import quantities, rules
from functional_nn.networks import losses
from functional_nn.networks.network import Params, for_lanes
from functional_nn.networks.stored import taken, whole
from functional_nn.optimizers.second_order import Problem
from functional_nn.precision import at_least_float32
from functional_nn.training import keys
from functional_nn.training.augmentation import augmented
from functional_nn.training.evaluation import measure
from functional_nn.training.gradient import is_by_hand, needs_key, rule_of
from functional_nn.training.problems import of_batch
from functional_nn.training.records import DIVERGED, STOPPED, Batch, Best, History, Metrics, Run
from functional_nn.training.settings import Settings
from functional_nn.training.step import train_step
from functional_nn.training.tracking import StateFunction


def start_run(settings: Settings, params: Params, training: Batch | None = None) -> Run:
    """A run before its first update. training: the data, which a second-order method looks at."""
    zero, dtype = jnp.zeros((), jnp.int32), precision.default()

    def first() -> Problem:  # of the first batch, in the data's order
        data = taken((training.inputs, training.targets, training.weights), slice(settings.plan.size))
        return of_batch(settings.network, settings.loss, settings.regularizer)(*data)

    state = settings.optimizer.begin(params, first)
    memories = tuple(criterion.begin(state.params) for criterion in settings.stop)
    restores = any(criterion.score for criterion in settings.stop)
    best = Best(state.params, zero, precision.largest(dtype)) if restores else None
    return Run(state, memories, best, zero, zero, zero, jnp.zeros((), dtype))


class EpochFunctions(NamedTuple):
    """rows(key, epoch, state, training) -> what the epoch's updates read, each array (U, ...);
    update(state, row, training) -> (state, Metrics): one update;
    judge(search, before, state, metrics) -> (Search, settled): after a pass of `search.limit` updates over the epoch;
    close(run, state, metrics, search, training, held_out) -> (Run, History): the epoch's end, and its row; of two
    parts, where an epoch is trained on in several chunks: summarize(metrics, search, training) -> EpochSummary, of
    these updates, and end(run, state, found, training, held_out), failed counted over the whole run.
    """

    rows: Callable
    update: Callable
    judge: Callable
    close: Callable
    summarize: Callable
    end: Callable


class Search(NamedTuple):
    """For the last update of an epoch that is sound, int32: the first `low` are, and the `high`-th is not, or is beyond
    the last. `limit`: how many the next pass over the epoch makes.

    All are made at once, and nothing in an update waits for its loss or norm; only where one was not finite, or the
    result is not, is the epoch gone through again.
    """

    low: Array
    high: Array
    limit: Array

    @classmethod
    def begin(cls, updates: int, shape: tuple[int, ...] = ()) -> "Search":
        """Before the first pass, which makes all."""
        return cls(*(jnp.full(shape, number, jnp.int32) for number in (0, updates + 1, updates)))


class EpochSummary(NamedTuple):
    """Of an epoch's updates: metrics of all of them, scalars; shown: the loss of the last that was tried; failed: which
    was not made, 0 where all were.
    """

    metrics: Metrics
    shown: Array
    failed: Array


def epoch_functions(settings: Settings, examples: int, dtype) -> EpochFunctions:
    """What an epoch is made of, for data of that many examples and of that dtype."""
    network, loss, optimizer, plan, stop = (
        settings.network,
        settings.loss,
        settings.optimizer,
        settings.plan,
        settings.stop,
    )
    laid_out = network if settings.columns is None else for_lanes(network, settings.columns)
    step = train_step(
        laid_out if is_by_hand(settings.gradient) else network,
        loss,
        optimizer,
        settings.gradient,
        correct=settings.correct,
        regularizer=settings.regularizer,
        mask=settings.mask,
    )
    random = needs_key(network, settings.gradient)
    scores = [criterion.score for criterion in stop if criterion.score]
    updates, dtype = plan.updates(examples), at_least_float32(dtype)
    counts = plan.counts(examples)
    share = jnp.asarray(counts / counts.sum(), dtype)  # of the epoch's examples
    numbers = np.arange(1, updates + 1, dtype=np.int32)

    def rows(key, epoch, state, training: Batch):
        own_keys = keys.updates(key, epoch, updates) if random or settings.augment else None
        if plan.importance is not None:
            at = optimizer.point(state), training.inputs, training.targets
            drawn = plan.draw(key, epoch, quantities.per_example_norms(network, loss, *at))
            indices, weights, scales = drawn.indices, drawn.weights, drawn.scales
        else:
            indices, weights, scales = plan.indices(key, epoch, examples), plan.weights(examples), plan.scales(examples)
            if training.weights is not None:
                # A mean loss divides a batch's gradient by the weights that happen to be in it; what is unbiased is
                # the division by what they are on average.
                own = training.weights[indices]
                weights = own if weights is None else own * losses.spread(weights.astype(own.dtype), own.shape)
                positions = math.prod(own.shape[2:])
                expected = jnp.asarray(counts * positions, own.dtype) * jnp.mean(training.weights)
                present = jnp.sum(weights, axis=tuple(range(1, own.ndim))) / expected
                scales = present if scales is None else scales.astype(own.dtype) * present
        # a sum over b examples is b / B of one over B as it is
        return indices, weights, None if loss.reduction == "sum" else scales, own_keys

    def update(state, row, training: Batch):
        picked, example_weights, scale, own_key = row
        data = training.inputs, training.targets
        # all examples, in their order, are there as they are
        data = whole(data) if plan.size is None else taken(data, picked)
        if settings.mesh is not None:
            over = NamedSharding(settings.mesh, PartitionSpec(settings.mesh.axis_names))
            data = lax.with_sharding_constraint(data, over)
        if settings.augment:
            data = augmented(settings.augment, own_key, data[0]), data[1]
        after, metrics = step(state, Batch(*data, example_weights, own_key if random else None, scale))
        return after, jax.tree.map(lambda m: m.astype(dtype), metrics)

    def judge(search: Search, before, state, metrics) -> tuple[Search, Array]:
        low, high, limit = search
        first = jnp.min(jnp.where(~is_finite(metrics) & (numbers <= limit), numbers, high))
        broken = first <= limit
        # A finite gradient may still have made the parameters infinite; by which update is searched for by halving.
        good = ~broken & (_as_finite(before.params, state.params) | (limit == 0))
        low, high = jnp.where(good, limit, low), jnp.where(broken, first, jnp.where(good, high, limit))
        limit = jnp.where(broken, first - 1, (low + high) // 2)
        return Search(low, high, limit), good & (high == low + 1)

    def summarize(metrics: Metrics, search: Search, training: Batch) -> EpochSummary:
        seen = jnp.minimum(search.high, updates)
        metrics = jax.tree.map(lambda column: jnp.where(numbers <= seen, column, 0), metrics)
        weight = jnp.sum(metrics.weight)
        if loss.reduction == "sum":
            total = jnp.sum(metrics.loss)
        elif training.weights is None:
            total = jnp.sum(metrics.loss * share)
        else:
            total = jnp.sum(metrics.loss * metrics.weight) / weight
        right = None if metrics.right is None else jnp.sum(metrics.right)
        found = Metrics(total, weight, right, jnp.sum(metrics.gradient_norm) / seen.astype(dtype))
        return EpochSummary(found, metrics.loss[seen - 1], jnp.where(search.high <= updates, search.high, 0))

    def close(run: Run, state, metrics: Metrics, search: Search, training: Batch, held_out: Batch | None):
        found = summarize(metrics, search, training)
        failed = jnp.where(found.failed > 0, run.epoch * updates + found.failed, 0)
        return end(run, state, found._replace(failed=failed), training, held_out)

    def end(run: Run, state, found: EpochSummary, training: Batch, held_out: Batch | None):
        done, broken, shown, metrics = run.epoch, found.failed > 0, found.shown, found.metrics
        total = jnp.where(broken, jnp.where(jnp.isfinite(shown), jnp.nan, shown), metrics.loss)
        after = (None, None)
        if held_out is not None:
            after = measure(laid_out, loss, state.params, held_out, settings.correct)
        columns = (total, metrics.accuracy, metrics.gradient_norm, *after)
        columns = (None if x is None else jnp.asarray(x, dtype) for x in columns)
        row = History(done + 1, *columns, measure_tracked(settings, training, state, done + 1))

        state = optimizer.observe(state, row.training_loss if held_out is None else row.validation_loss)
        judged = [
            criterion.judge(memory, row, state.params) for criterion, memory in zip(stop, run.memories, strict=True)
        ]
        ended = optimizer.ended(state)
        for i in reversed(range(len(stop))):
            ended = jnp.where(judged[i][1], STOPPED + i, ended)
        best = run.best
        if best is not None:
            score = scores[0](row).astype(best.score.dtype)  # not below the best where it is nan or infinite
            latest = Best(state.params, done + 1, score)
            best = choose(~broken & (score < best.score), latest, best)
        after = Run(
            state,
            tuple(memory for memory, _ in judged),
            best,
            done + 1,
            jnp.where(broken, DIVERGED, ended),
            found.failed,
            shown.astype(run.shown.dtype),
        )
        return after, row

    return EpochFunctions(rows, update, judge, close, summarize, end)


def measure_tracked(settings: Settings, training: Batch, state: Any, epoch: Array) -> dict[str, Any]:
    """What is tracked, at the state's parameters; what a random rule draws for it is the same in every run."""
    network, track, params = settings.network, settings.track, state.params
    asked = tuple(name for name, function in track if function is None)
    found = {}
    if asked:
        rule = rule_of(settings.gradient)
        found = quantities.compute(
            network,
            settings.loss,
            params,
            training.inputs,
            training.targets,
            asked,
            weights=training.weights,
            rule=rule,
            rule_key=keys.tracked(epoch) if rules.is_random(rule) else None,
        )
    inputs = training.inputs if len(network.inputs) > 1 else training.inputs[network.inputs[0][0]]
    for name, function in track:
        if function is not None:
            reads = (state,) if isinstance(function, StateFunction) else (params, *whole((inputs, training.targets)))
            try:
                found[name] = jax.tree.map(jnp.asarray, function(*reads))
            except Exception as error:
                error.add_note(f"while measuring {name!r}, which fit was asked to track, inside a compiled program")
                raise
    return found


def is_finite(metrics: Metrics) -> Array:
    return jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.gradient_norm)


def _as_finite(before: Params, params: Params) -> Array:
    """True where every number is finite, or the infinity that it was before: a class may be masked by a bias -inf."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True)
    return functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(x) | (x == old)) for old, x in pairs))


def choose(condition: Array, new: Any, old: Any) -> Any:
    """One tree or the other, by a scalar."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
