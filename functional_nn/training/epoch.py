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
from functional_nn.training.tracking import StateFunction, ValidationMetric


def start_run(settings: Settings, params: Params, training: Batch | None = None) -> Run:
    """Returns a run before its first update. training: the data, which a second-order method reads."""
    zero, dtype = jnp.zeros((), jnp.int32), precision.default()

    def first_problem() -> Problem:  # of the first batch, in the data's order
        data = taken((training.inputs, training.targets, training.weights), slice(settings.plan.size))
        return of_batch(settings.network, settings.loss, settings.regularizer)(*data)

    state = settings.optimizer.begin(params, first_problem)
    memories = tuple(criterion.begin(state.params) for criterion in settings.stop)
    restores = any(criterion.score for criterion in settings.stop)
    best = Best(state.params, zero, precision.largest(dtype)) if restores else None
    return Run(state, memories, best, zero, zero, zero, jnp.zeros((), dtype))


class EpochFunctions(NamedTuple):
    """The functions that an epoch of one run is made of.

    Attributes:
        draw: (key, epoch, state, training) -> draws: what the epoch's updates read, each array (U, ...).
        update: (state, row of draws, training) -> (state, Metrics): one update.
        judge: (search, before, state, metrics) -> (Search, done): after a pass of `search.limit` updates over the
            epoch. done: all updates of the epoch were made, or the first that is not finite is known.
        close: (run, state, metrics, search, training, held_out) -> (Run, History): the epoch's end, and its row. It is
            `summarize`, then `end`.
        summarize: (metrics, search, training) -> EpochSummary, of these updates; by itself where an epoch is trained
            on in several chunks of data.
        end: (run, state, summary, training, held_out) -> (Run, History); `summary.failed` counts over the whole run.
    """

    draw: Callable
    update: Callable
    judge: Callable
    close: Callable
    summarize: Callable
    end: Callable


class Search(NamedTuple):
    """A search for the last finite update of an epoch.

    All updates are made in one pass, and none of them waits for its loss or norm. Only if one was not finite, or the
    result is not, is there another pass over the epoch.

    Attributes:
        low: this many updates are known to be finite, int32.
        high: the update of this number is known not to be finite, or it is beyond the last.
        limit: how many updates the next pass makes.
    """

    low: Array
    high: Array
    limit: Array

    @classmethod
    def begin(cls, updates: int, shape: tuple[int, ...] = ()) -> "Search":
        """Before the first pass, which makes all updates."""
        return cls(*(jnp.full(shape, number, jnp.int32) for number in (0, updates + 1, updates)))


class EpochSummary(NamedTuple):
    """What an epoch's updates came to, as scalars.

    Attributes:
        metrics: of all updates together.
        shown: the loss of the last update that was tried.
        failed: the number of the update that was not made, 0 where all were.
    """

    metrics: Metrics
    shown: Array
    failed: Array


def epoch_functions(settings: Settings, examples: int, dtype) -> EpochFunctions:
    """Returns the functions of an epoch, for data of that many examples and of that dtype."""
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
    validation_metrics = {name: f.function for name, f in settings.track if isinstance(f, ValidationMetric)}
    updates, dtype = plan.updates(examples), at_least_float32(dtype)
    counts = plan.counts(examples)
    share = jnp.asarray(counts / counts.sum(), dtype)  # of the epoch's examples
    numbers = np.arange(1, updates + 1, dtype=np.int32)

    def draw(key, epoch, state, training: Batch):
        own_keys = keys.updates(key, epoch, updates) if random or settings.augment else None
        if plan.importance is not None:
            at = optimizer.point(state), training.inputs, training.targets
            drawn = plan.draw(key, epoch, quantities.per_example_norms(network, loss, *at))
            indices, weights, scales = drawn.indices, drawn.weights, drawn.scales
        else:
            indices, weights, scales = plan.indices(key, epoch, examples), plan.weights(examples), plan.scales(examples)
            if training.weights is not None:
                # A mean loss divides a batch's gradient by the weights that happen to be in it. Dividing by their
                # average instead makes the estimate unbiased.
                own = training.weights[indices]
                weights = own if weights is None else own * losses.spread(weights.astype(own.dtype), own.shape)
                positions = math.prod(own.shape[2:])
                expected = jnp.asarray(counts * positions, own.dtype) * jnp.mean(training.weights)
                present = jnp.sum(weights, axis=tuple(range(1, own.ndim))) / expected
                scales = present if scales is None else scales.astype(own.dtype) * present
        # a sum over b examples is already b / B of one over B
        return indices, weights, None if loss.reduction == "sum" else scales, own_keys

    def update(state, row, training: Batch):
        picked, example_weights, scale, own_key = row
        data = training.inputs, training.targets
        # all examples, in their order, need no copy
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
        # A finite gradient may still have made the parameters infinite; bisection finds the update that did.
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
        over_epoch = Metrics(total, weight, right, jnp.sum(metrics.gradient_norm) / seen.astype(dtype))
        return EpochSummary(over_epoch, metrics.loss[seen - 1], jnp.where(search.high <= updates, search.high, 0))

    def close(run: Run, state, metrics: Metrics, search: Search, training: Batch, held_out: Batch | None):
        summary = summarize(metrics, search, training)
        failed = jnp.where(summary.failed > 0, run.epoch * updates + summary.failed, 0)
        return end(run, state, summary._replace(failed=failed), training, held_out)

    def end(run: Run, state, summary: EpochSummary, training: Batch, held_out: Batch | None):
        done, broken, shown, metrics = run.epoch, summary.failed > 0, summary.shown, summary.metrics
        total = jnp.where(broken, jnp.where(jnp.isfinite(shown), jnp.nan, shown), metrics.loss)
        validation_loss = validation_accuracy = None
        tracked = measure_tracked(settings, training, state, done + 1)
        if held_out is not None:
            validation_loss, validation_accuracy, measured = measure(
                laid_out, loss, state.params, held_out, settings.correct, validation_metrics
            )
            tracked |= measured
        columns = (total, metrics.accuracy, metrics.gradient_norm, validation_loss, validation_accuracy)
        columns = (None if x is None else jnp.asarray(x, dtype) for x in columns)
        row = History(done + 1, *columns, tracked)

        state = optimizer.observe(state, row.training_loss if held_out is None else row.validation_loss)
        judged = [
            criterion.judge(memory, row, state.params) for criterion, memory in zip(stop, run.memories, strict=True)
        ]
        ended = optimizer.ended(state)
        for i in reversed(range(len(stop))):
            ended = jnp.where(judged[i][1], STOPPED + i, ended)
        best = run.best
        if best is not None:
            score = scores[0](row).astype(best.score.dtype)  # nan and infinity are not below the best
            latest = Best(state.params, done + 1, score)
            best = choose(~broken & (score < best.score), latest, best)
        run = Run(
            state,
            tuple(memory for memory, _ in judged),
            best,
            done + 1,
            jnp.where(broken, DIVERGED, ended),
            summary.failed,
            shown.astype(run.shown.dtype),
        )
        return run, row

    return EpochFunctions(draw, update, judge, close, summarize, end)


def measure_tracked(settings: Settings, training: Batch, state: Any, epoch: Array) -> dict[str, Any]:
    """Measures what is tracked on the training data or in the state. A random rule draws the same in every run."""
    network, track, params = settings.network, settings.track, state.params
    names = tuple(name for name, function in track if function is None)
    measured = {}
    if names:
        rule = rule_of(settings.gradient)
        measured = quantities.compute(
            network,
            settings.loss,
            params,
            training.inputs,
            training.targets,
            names,
            weights=training.weights,
            rule=rule,
            rule_key=keys.tracked(epoch) if rules.is_random(rule) else None,
        )
    inputs = training.inputs if len(network.inputs) > 1 else training.inputs[network.inputs[0][0]]
    for name, function in track:
        if function is not None and not isinstance(function, ValidationMetric):
            reads = (state,) if isinstance(function, StateFunction) else (params, *whole((inputs, training.targets)))
            try:
                measured[name] = jax.tree.map(jnp.asarray, function(*reads))
            except Exception as error:
                error.add_note(f"while measuring {name!r}, which fit was asked to track, inside a compiled program")
                raise
    return measured


def is_finite(metrics: Metrics) -> Array:
    """True for each update whose loss and gradient are finite."""
    return jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.gradient_norm)


def _as_finite(before: Params, params: Params) -> Array:
    """True if every number is finite, or the same infinity as before: a bias of -inf may mask a class."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True)
    return functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(x) | (x == old)) for old, x in pairs))


def choose(condition: Array, new: Any, old: Any) -> Any:
    """Returns one tree or the other, by a scalar."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
