"""The training loop: one compiled program of a fixed number of epochs, called until all are done.

Letters: Q examples, R inputs, S outputs, E epochs. Epochs run inside compiled scans (`program.py`), `chunk` of them a
call; what belongs to the outside (progress, saving) happens between the calls. One program serves a run of any length,
and every later run of the same network, loss, optimizer and plan. `pure_fit` may be vmapped: one member that has ended
no longer changes while the others go on.
"""

import contextlib
import dataclasses
import functools
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from functional_nn import checks, compiler, optimizers, platforms, registry
from functional_nn.gradients import quantities, rules
from functional_nn.gradients.backprop import Along, check_trainable, value_and_grad
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params
from functional_nn.networks.stored import Windows, in_place, placed, whole
from functional_nn.optimizers import regularizers
from functional_nn.optimizers.first_order import Optimizer
from functional_nn.optimizers.regularizers import Regularizer
from functional_nn.optimizers.second_order import REASONS, STATUSES, SecondOrder
from functional_nn.registry import cached
from functional_nn.training import augmentation, keys, streams, termination
from functional_nn.training.augmentation import Augment
from functional_nn.training.checkpoints import Checkpoint, CheckpointError, Checkpoints, check_config, restore
from functional_nn.training.configuration import describe
from functional_nn.training.minibatches import BatchPlan, batch, minibatch
from functional_nn.training.program import (
    DIVERGED,
    GRADIENTS,
    STOPPED,
    Batch,
    Best,
    Correct,
    Gradient,
    History,
    Run,
    Settings,
    along,
    prepare_batch,
    program,
    rule_of,
    start,
    where,
)
from functional_nn.training.streams import Chunks
from functional_nn.training.termination import Criterion

Track = Sequence[str | Mapping[str, Callable]] | Mapping[str, Callable[[Params, Inputs, Array], Any]]


class FitResult(NamedTuple):
    """The last finite state, the history, and how it ended.

    status: "completed", "diverged" (a loss or gradient was not finite), the name of the criterion that stopped it,
    "stopped" where `on_chunk` asked for it, "seconds" where these were over, or one of `second_order.STATUSES`; reason:
    the same in words, with the update where it diverged. best: the parameters of the best epoch, where a criterion
    restores them.
    """

    state: Any
    history: History
    status: str
    reason: str
    best: Best | None

    @property
    def params(self) -> Params:
        """The trained parameters: those of the best epoch where a criterion restores them, else the last."""
        return self.state.params if self.best is None or int(self.best.epoch) == 0 else self.best.params

    def __repr__(self) -> str:
        columns = {name.replace("_", " "): getattr(self.history, name) for name in _SHOWN}
        last = [f"{name} {x:.6g}" for name, column in columns.items() for x in column[-1:] if np.isfinite(x)]
        return f"<{self.status}, {self.reason}: {', '.join(last) or 'no epoch was run'}>"


class Outcome(NamedTuple):
    """What `pure_fit` gives: arrays only. params as in `FitResult`; history (E,) with nan after the end, 0 in integers.
    Where jax_debug_nans is on, which stops at every nan, the last row again and again, and None for columns of nan.

    epochs: how many were run, int32; ended: 0 completed, 1 diverged, 2 + i stopped by the i-th criterion, below 0 by
    a second-order method, with its status; failed: the update that was not finite, 0 where all were.
    """

    params: Params
    state: Any
    history: History
    epochs: Array
    ended: Array
    failed: Array


_SHOWN = ("training_loss", "training_accuracy", "validation_loss", "validation_accuracy")


def fit(
    network: Network,
    loss: Loss | str,
    optimizer: Optimizer | SecondOrder | str,
    inputs: Inputs | Windows | Chunks,
    targets: Array | None = None,
    *,
    key: Array,
    epochs: int,
    plan: BatchPlan | None = None,
    validation: tuple | Windows | None = None,
    params: Params | None = None,
    weights: Array | None = None,
    class_weights: Any = None,
    regularizer: Regularizer | str | None = None,
    stop: Criterion | str | Sequence[Criterion | str] = (),
    gradient: Gradient | Literal["manual", "automatic", "perceptron"] = "manual",
    rule: rules.Given = "exact",
    correct: Correct | None = None,
    track: Track = (),
    augment: Augment = (),
    chunk: int = 10,
    on_chunk: Callable[[Any, History], bool | None] | None = None,
    seconds: float | None = None,
    mesh: Mesh | None = None,
    checkpoint: Checkpoints | None = None,
    resume: bool = False,
) -> FitResult:
    """Trains `network` on inputs (Q, *P, R) or {name: (Q, *P, R)} and targets (Q, *P, S), or integer labels (Q, *P).

    A long stream of tokens is given as `fnn.windows(tokens, context)` in the place of both, and of `validation`: there
    is one copy of it, and a batch's windows and the tokens that follow are made in the compiled step. Data larger than
    memory are given as `training.chunks(...)` in the place of inputs, targets and weights: see there and below. On CPU,
    NumPy arrays of 64 MiB and more are read where they lie, not copied: leave them as they are until `fit` is done.
    optimizer: of first or of second order. Of the second, an epoch is a step on all examples (on each mini-batch, for
    those made with minibatches=True), the run also ends where the method says that it has converged or found nothing
    lower, and `state` is a `second_order.State` with counts of what was asked.
    key: for the initial parameters (unless `params` are given), the batches, dropout and augmentation. plan:
    `training.batch()`, `minibatch(32)` (the default, smaller where there are fewer examples; `batch()` for a method
    that needs it), `stochastic()` or `importance(32)`. validation: (inputs, targets) or (inputs, targets, weights),
    measured after every epoch. weights (Q,): what each example counts for, in the loss, its gradient and the accuracy,
    or each position of the outputs, (Q, *P), 0 where it is masked; a mean divides by their sum, a mini-batch's by what
    that is on average, so that its gradient is an unbiased estimate.
    class_weights: the same by class, "balanced" or one for each: see `fnn.class_weights`; times `weights`, where both
    are given. They do not weigh the validation.
    regularizer: its gradient is added. stop: one of the criteria of `training.termination`, several of them, or
    their names: `early_stopping(patience=5)`, "no_change", "generalization_loss(5)". gradient: by hand, by
    `jax.grad`, `training.clipped(1.0)`, your own `(network, loss) -> value_and_grad`, or in its place "perceptron",
    the rule for one layer of hardlim or hardlims neurons. rule: by hand by another way back than the exact one, one of
    `fnn.rules` for all layers or {layer: rule}, such as "feedback_alignment(0)"; what it learns beside the parameters
    stands in them, under "feedback", and is drawn from `key` unless `params` hold it. correct(outputs, targets) -> (Q,)
    says which examples are right, or, asked of all rows of signals, which positions, `losses.largest` for one; by
    default the loss's own rule. track: names of `fnn.quantities`, such as ("noise_scale",), or functions by name,
    `{"rate": lambda params, inputs, targets: ...}`, or a tuple of both; what they give after each epoch, on all
    training examples, stands in `history.tracked`; and so does what `training.of_state` reads in the optimizer's state.
    augment: what the inputs of each training batch go through, anew in every update: names of `training.augmentation`,
    such as ("shift(2)", "flip"), or your own functions (key, x) -> x of a batch (B, *P, R), one after the other;
    {input: these} where several have pictures. The history's training columns are of what was trained on; what is
    validated or tracked is not augmented. on_chunk(state, history so far) is called after every `chunk` epochs, outside
    the compiled program; where it gives True the run stops there.
    seconds: the run stops after the first chunk that ends beyond them, compilation included.
    mesh: lays the examples of every batch over its devices, parameters on each, so that the compiler sums their
    sensitivities' contributions: data parallelism, the same training to rounding. Batches must divide evenly.
    checkpoint: `checkpoints.keep(folder)`, saved after chunks and at the end; resume=True goes on from the newest one
    there, bitwise as if it had never stopped (also with more `epochs`). Ctrl-C then saves and raises KeyboardInterrupt.

    Of `training.chunks`, the next is read and copied to the device while one trains. What looks at all examples at once
    is refused: plan=batch(), importance() and replacement, methods that need them, tracked quantities and functions of
    the data, class_weights="balanced". Where a mean loss has weights, these are read through once before the first
    update, with all else. Checkpoints are saved each `every` chunks of data, Ctrl-C heard and seconds looked at after
    each, also within an epoch, whose updates so far then stay; on_chunk is called after `chunk` epochs, as always. What
    is refused of a chunk, as nan, is refused when it is read, with the example's number; what is trained on until then
    is saved. There are two programs, for a chunk and for an epoch's end, and one more for a last chunk of another size.

    Compiles one program, whatever `epochs` is, and keeps it for later runs with the same network, loss, optimizer,
    plan and settings (the same object, where it is a wrapped optimizer). An update whose loss, gradient or result is
    not finite is not made: the run stops there, keeps the last finite state and says which update it was. A parameter
    that is infinite from the start, as the bias -inf of a class that is masked, may stay so. Training on
    from `params` begins anew with everything else: moments, schedules and, with the same key, batches.

    Raises ValueError or TypeError for data or settings that do not fit, before anything is compiled, and where it is
    itself being traced; CheckpointError for checkpoints of another network, data or settings, and for broken ones.
    """
    constants = getattr(optimizer, "constants", {})
    if not all(
        map(
            checks.is_concrete,
            jax.tree.leaves((inputs, targets, weights, class_weights, key, params, validation, constants)),
        )
    ):
        raise ValueError("fit is not pure and cannot be traced by jit, vmap or grad; use training.pure_fit there")
    began = time.monotonic()
    for name, value in (("epochs", epochs), ("chunk", chunk)):
        checks.integer("", name, value, 1)
    if seconds is not None:
        seconds = checks.constant("fit", "seconds", seconds, *checks.POSITIVE)
    if not (on_chunk is None or callable(on_chunk)):
        raise TypeError(f"on_chunk: expected a function of state and history, got {type(on_chunk).__name__}")
    checks.prng_key("key", key)
    if resume and checkpoint is None:
        raise ValueError("resume: expected checkpoint=checkpoints.keep(folder) to resume from")
    settings = settle(
        network,
        loss,
        optimizer,
        plan=plan,
        regularizer=regularizer,
        stop=stop,
        gradient=gradient,
        rule=rule,
        correct=correct,
        track=track,
        augment=augment,
    )
    params = initial(settings, key, params)
    if isinstance(inputs, Chunks):
        for name, value in (("targets", targets), ("weights", weights)):
            if value is not None:
                raise ValueError(f"{name}: chunks bring their own; give None")
        return _fit_chunks(
            settings,
            inputs,
            params,
            key,
            epochs,
            validation,
            class_weights,
            chunk,
            on_chunk,
            lambda: seconds is not None and time.monotonic() - began > seconds,
            mesh,
            checkpoint,
            resume,
        )
    plan_key = keys.plan(key)
    place = in_place if mesh is None else placed
    training, held_out = prepared(settings, params, inputs, targets, validation, weights, class_weights, place)
    settings.optimizer.check_start(params)
    settings = with_plan(settings, training, epochs)
    if mesh is not None:
        divided = _divides(mesh, settings.plan.size or len(training.targets), settings.optimizer)
        settings = dataclasses.replace(settings, mesh=divided)
        params, training, held_out, plan_key = _everywhere((params, training, held_out, plan_key), settings.mesh)

    begin, advance = _compiled(settings, min(chunk, epochs))
    run, table, chunks, asked = begin(params, training), Table(), 0, None
    config = saved = None
    if checkpoint is not None:
        config = {
            "kind": "a run of fit",
            **describe(settings, training, held_out, key, settings.optimizer, settings.regularizer),
        }
        saved = begun(checkpoint, resume)
    if saved is not None:
        done, found = saved
        check_config(found, config)
        if done > epochs:
            raise ValueError(f"resume: the newest checkpoint is after epoch {done}, beyond epochs={epochs}")
        row = filled(jax.eval_shape(advance, run, training, held_out, plan_key, 1)[1])
        history = jax.tree.map(lambda x: jax.ShapeDtypeStruct((done, *x.shape[1:]), x.dtype), row)
        tree = restore(found, {"run": run, "history": history})
        _check_end(settings, tree["run"], done, found)
        run = jax.device_put(tree["run"]) if mesh is None else _everywhere(tree["run"], settings.mesh)
        table.add(tree["history"])
    with interruptible(checkpoint is not None) as interrupted:
        while not int(run.ended) and int(run.epoch) < epochs and asked is None:
            run, rows, ran = advance(run, training, held_out, plan_key, min(chunk, epochs - int(run.epoch)))
            table.add(jax.tree.map(lambda column, ran=int(ran): np.asarray(column)[:ran], filled(rows)))
            chunks += 1
            ends = bool(int(run.ended)) or int(run.epoch) >= epochs
            due = checkpoint is not None and (checkpoint.due(chunks) or ends)
            if due:
                _save(checkpoint, int(run.epoch), {"run": run, "history": table.rows}, config)
            told = on_chunk and on_chunk(run.state, table.rows)
            asked = None if ends else stopped_by(told, seconds is not None and time.monotonic() - began > seconds)
            if checkpoint is not None and not due and (interrupted() or asked):
                _save(checkpoint, int(run.epoch), {"run": run, "history": table.rows}, config)
            if interrupted() and not ends:
                raise KeyboardInterrupt(f"after epoch {int(run.epoch)}; saved in {checkpoint.folder}")
    status, reason = how_it_ended(settings, run, asked)
    return FitResult(run.state, table.rows, status, reason, run.best)


def _fit_chunks(
    settings: Settings,
    data: Chunks,
    params: Params,
    key: Array,
    epochs: int,
    validation: Any,
    class_weights: Any,
    chunk: int,
    on_chunk: Callable | None,
    late: Callable[[], bool],
    mesh: Mesh | None,
    checkpoint: Checkpoints | None,
    resume: bool,
) -> FitResult:
    """`fit` on data in chunks: a call of the compiled program for each, and one more at the end of an epoch."""
    streams.check(settings, class_weights)
    settings.optimizer.check_start(params)
    settings = suited(settings, data.examples, data.weighted or class_weights is not None, epochs)
    plan, into, plan_key = settings.plan, streams.cut(data, settings.plan), keys.plan(key)
    put = jax.device_put
    if mesh is not None:
        settings = dataclasses.replace(settings, mesh=_divides(mesh, plan.size, settings.optimizer))
        put = functools.partial(_everywhere, mesh=settings.mesh)

    def prepare(inputs, targets, weights, given=params) -> Batch:
        batch = prepare_batch(settings.network, settings.loss, given, inputs, targets, weights, class_weights)
        _check_learnable(settings, batch)
        return put(batch)

    with streams.reading(data, into, plan, plan_key, prepare) as ask:
        at, training = (0, 0), ask((0, 0))()
        _, held_out = prepared(settings, params, training.inputs, training.targets, validation, training.weights)
        augmentation.check_shapes(settings.augment, training.inputs, plan.size)
        mean = streams.mean_weight(training, into, ask) if settings.loss.reduction == "mean" else None
        params, held_out, plan_key = put((params, held_out, plan_key))
        begin, advance, end = _compiled_for_chunks(settings)
        run, nothing = begin(params, training), streams.nothing(settings, training)
        row = filled(jax.eval_shape(end, run, nothing, training, held_out)[1])
        tree = {"run": run, "so_far": nothing, "history": jax.tree.map(lambda x: np.zeros((0, *x.shape), x.dtype), row)}
        config = None
        if checkpoint is not None:
            config = {
                "kind": "a run of fit on chunks",
                **streams.describe(data, into, class_weights),
                **describe(settings, Batch(*data.sample()), held_out, key, settings.optimizer, settings.regularizer),
            }
            saved = begun(checkpoint, resume)
            if saved is not None:
                number, found = saved
                check_config(found, config)
                at = into.place(number)
                if at > (epochs, 0):
                    raise ValueError(f"resume: the newest checkpoint is after epoch {at[0]}, beyond epochs={epochs}")
                history = jax.tree.map(lambda x: jax.ShapeDtypeStruct((at[0], *x.shape), x.dtype), row)
                tree = restore(found, tree | {"history": history})
                _check_end(settings, tree["run"], at[0], found)
        run, so_far, table = *put((tree["run"], tree["so_far"])), Table()
        table.add(tree["history"])
        going, asked, chunks, fresh = not int(run.ended) and at[0] < epochs, None, 0, 0
        if going and at != (0, 0) and into.count > 1:
            training = ask(at)()

        def save():
            number = into.number(at)
            _save(checkpoint, number, {"run": run, "so_far": so_far, "history": table.rows}, config)

        with interruptible(checkpoint is not None) as interrupted:
            while going and asked is None:
                number, made, at = into.number(at), into.made(plan, at), into.after(at)
                # asked for before the device has work to do, after which it would draw the order
                ready = ask(at) if into.count > 1 and at[0] < epochs else lambda same=training: same
                run, so_far = advance(run, so_far, training, plan_key, number, made, mean)
                upcoming = trouble = None
                try:
                    upcoming = ready()  # is read and copied to the device while the other trains
                except Exception as error:  # what is trained on until here is kept
                    trouble = error
                ready = None  # which holds what was read
                closes = at[1] == 0 or int(run.failed) > 0
                if closes:
                    run, row = end(run, so_far, training, held_out)
                    table.add(jax.tree.map(lambda x: np.asarray(x)[None], filled(row)))
                    at, so_far, fresh = (int(run.epoch), 0), nothing, fresh + 1
                training, chunks = upcoming, chunks + 1
                going = not int(run.ended) and at[0] < epochs
                due = checkpoint is not None and (checkpoint.due(chunks) or not going)
                if due:
                    save()
                told = on_chunk and closes and (fresh % chunk == 0 or not going) and on_chunk(run.state, table.rows)
                asked = stopped_by(told, late()) if going else None
                if checkpoint is not None and not due and (interrupted() or asked or trouble):
                    save()
                if going and interrupted():
                    raise KeyboardInterrupt(f"after epoch {at[0]}{into.said(at)}; saved in {checkpoint.folder}")
                if going and trouble is not None and asked is None:
                    raise trouble
    status, reason = how_it_ended(settings, run, asked, into.said(at))
    return FitResult(run.state, table.rows, status, reason, run.best)


def _save(checkpoint: Checkpoints, number: int, tree: dict[str, Any], config: dict[str, Any]) -> None:
    if jax.process_index() == 0:  # every process has the same
        checkpoint.save(number, tree, config)


def _check_end(settings: Settings, run: Run, done: int, found: Checkpoint) -> None:
    if int(run.epoch) != done or not -len(STATUSES) < int(run.ended) < STOPPED + len(settings.stop):
        raise CheckpointError(f"checkpoint {found.path}: its run cannot have ended as it says")


ASKED = {"stopped": "on_chunk asked to stop", "seconds": "its time was over"}


def stopped_by(told: Any, late: bool) -> str | None:
    """Which of `ASKED` ends the run: what on_chunk gave is True, or it is late. Where any process stops, all do."""
    words = (None, *ASKED)
    array = isinstance(told, np.ndarray | np.generic | jax.Array) and told.dtype == np.bool_ and told.ndim == 0
    true = (array or isinstance(told, bool)) and bool(told)
    asked = words.index("stopped" if true else "seconds" if late else None)
    if jax.process_count() > 1:
        asked = int(multihost_utils.process_allgather(np.array(asked)).max())
    return words[asked]


def filled(table: History) -> History:
    """A compiled program's table with nan in the columns that have nothing to say."""
    like = table.training_loss
    nothing = None if isinstance(like, jax.ShapeDtypeStruct) else np.full(like.shape, np.nan, like.dtype)
    columns = {name: like if nothing is None else nothing for name, x in table._asdict().items() if x is None}
    return table._replace(**columns)


def _missing_after(table: History, ran: Array) -> History:
    """A compiled program's table with nan after the end, 0 in integers, and in columns that have nothing to say."""
    late = jnp.arange(len(table.epoch), dtype=ran.dtype) >= ran

    def column(x):
        missing = jnp.asarray(jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0, x.dtype)
        return jnp.where(late.reshape(-1, *[1] * (x.ndim - 1)), missing, x)

    nothing = {name: jnp.full_like(table.training_loss, jnp.nan) for name, x in table._asdict().items() if x is None}
    return jax.tree.map(column, table)._replace(**nothing)


class Table:
    """A history that grows. Its memory is doubled when it is full, so that a row costs the same in a long run."""

    def __init__(self):
        self.count, self.whole = 0, None

    def add(self, rows: History) -> None:
        """Appends rows (n, ...)."""
        count = self.count + len(rows.epoch)
        if self.whole is None:
            self.whole = jax.tree.map(np.array, rows)
        elif count > len(self.whole.epoch):
            self.whole = jax.tree.map(lambda x: np.resize(x, (2 * count, *x.shape[1:])), self.whole)
        for column, x in zip(jax.tree.leaves(self.whole), jax.tree.leaves(rows), strict=True):
            column[self.count : count] = x
        self.count = count

    @property
    def rows(self) -> History:
        """All rows so far, (E, ...): what is given out is not written to again."""
        return jax.tree.map(lambda x: x[: self.count], self.whole)


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    """Arrays of which every device of the mesh, in whichever process, has the whole."""
    all_of_it, placed = NamedSharding(mesh, PartitionSpec()), {}

    def place(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        if id(x) not in placed:  # a stream is read in two places, and has one copy
            placed[id(x)] = x, jax.make_array_from_process_local_data(all_of_it, np.asarray(x), x.shape)
        return placed[id(x)][1]

    return jax.tree.map(place, tree)


def _divides(mesh: Mesh, size: int, optimizer: Optimizer | SecondOrder) -> Mesh:
    if optimizer.one_device:
        raise ValueError(f"mesh: {optimizer.name} runs on one device; first-order methods take a mesh")
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh: expected a jax.sharding.Mesh, got {type(mesh).__name__}")
    if size % mesh.size:
        raise ValueError(
            f"mesh: batches of {size} examples do not divide evenly over {mesh.size} devices; choose a batch size that "
            f"is a multiple of {mesh.size}"
        )
    return Mesh(mesh.devices, mesh.axis_names)  # whatever its axes' types: the compiler is to lay out the rest


def pure_fit(
    network: Network,
    loss: Loss | str,
    optimizer: Optimizer | SecondOrder | str,
    *,
    epochs: int,
    plan: BatchPlan | None = None,
    regularizer: Regularizer | str | None = None,
    stop: Criterion | str | Sequence[Criterion | str] = (),
    gradient: Gradient | Literal["manual", "automatic", "perceptron"] = "manual",
    rule: rules.Given = "exact",
    correct: Correct | None = None,
    track: Track = (),
    augment: Augment = (),
) -> Callable[..., Outcome]:
    """`fit` as a pure function of arrays, to be jitted and vmapped over keys, rates, strengths or data.

    Gives `(key, inputs, targets=None, validation=None, params=None, weights=None, class_weights=None) -> Outcome`, the
    same training as `fit` with the same settings and key, to rounding. The optimizer, its constants and the regularizer
    may be made of traced numbers:
    `jit(vmap(lambda rate, key: pure_fit(network, loss, adam(rate), epochs=50)(key, x, t)))`.
    A member that diverged leaves nan or infinity in its history, which `argmin` may take for the lowest. Has forward
    derivatives, but no reverse ones.
    """
    checks.integer("", "epochs", epochs, 1)
    settled = settle(
        network,
        loss,
        optimizer,
        plan=plan,
        regularizer=regularizer,
        stop=stop,
        gradient=gradient,
        rule=rule,
        correct=correct,
        track=track,
        augment=augment,
    )

    def train(key, inputs, targets=None, validation=None, params=None, weights=None, class_weights=None) -> Outcome:
        checks.prng_key("key", key)
        params = initial(settled, key, params)
        training, held_out = prepared(settled, params, inputs, targets, validation, weights, class_weights)
        settings = with_plan(settled, training, epochs)
        run, table, ran = program(settings, epochs, alone=False)(
            start(settings, params, training), training, held_out, keys.plan(key), epochs
        )
        params = run.state.params
        if run.best is not None:
            params = where(run.best.epoch > 0, run.best.params, params)
        if not jax.config.jax_debug_nans:
            table = _missing_after(table, ran)
        return Outcome(params, run.state, table, ran, run.ended, run.failed)

    return train


# Saved and interrupted ------------------------------------------------------------------------------------------------


def begun(checkpoint: Checkpoints, resume: bool) -> tuple[int, Checkpoint] | None:
    """The newest checkpoint, to go on from; None where there is none. Raises ValueError where one would be lost, and
    OSError where none can be written.
    """
    checkpoint.check()
    if resume:
        return checkpoint.newest()
    if checkpoint.numbers():
        raise ValueError(
            f"checkpoint: {str(checkpoint.folder)!r} holds checkpoints; go on from them with resume=True, or give "
            "another folder"
        )
    return None


@contextlib.contextmanager
def interruptible(catches: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside is only noted, for whoever asks between chunks; a second one interrupts at once.

    Python lets only the main thread listen; elsewhere, and where `catches` is False, nothing changes.
    """
    noted = []
    if not catches or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number, frame):
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)


# Settings and data, checked -------------------------------------------------------------------------------------------


def initial(settings: Settings, key: Array, params: Params | None = None) -> Params:
    """The parameters at the start, or those given, with what the rule learns beside them."""
    own = keys.parameters(key)
    params = settings.network.init(own) if params is None else params
    return rules.begin(rule_of(settings.gradient), settings.network, params, own)


def settle(
    network,
    loss,
    optimizer,
    *,
    plan=None,
    regularizer=None,
    stop=(),
    gradient="manual",
    rule="exact",
    correct=None,
    track=(),
    augment=(),
) -> Settings:
    """The settings of `fit`, checked; what of them goes with the data is checked by `prepared` and `suited`."""
    if isinstance(gradient, str) and gradient not in GRADIENTS:
        raise ValueError(registry.unknown("gradient", gradient, GRADIENTS))
    gradient = GRADIENTS[gradient] if isinstance(gradient, str) else gradient
    for name, value, what in (("gradient", gradient, "'manual', 'automatic' or "), ("correct", correct, "")):
        if not callable(value) and (name, value) != ("correct", None):
            raise TypeError(f"{name}: expected {what}a function, got {value!r}")
    if not isinstance(network, Network):
        raise TypeError(f"network: expected fnn.multilayer(...) or fnn.graph(...), got {type(network).__name__}")
    gradient = along(gradient, rule)
    if gradient is value_and_grad or hasattr(gradient, "rule"):
        check_trainable(network, rule_of(gradient))
    loss, optimizer = losses.get(loss), optimizers.get(optimizer)
    loss.check_classes(network.output.size)
    doubt = loss.doubt(network.output.activation.gives)
    if doubt is not None:
        warnings.warn(doubt, stacklevel=3)
    regularizer = None if regularizer is None else regularizers.get(regularizer)
    stop = tuple(stop) if isinstance(stop, tuple | list) else (stop,)
    for criterion in stop:
        if not termination.knows(criterion):
            names = f" (names: {', '.join(termination.names())})" if isinstance(criterion, str) else ""
            raise TypeError(f"stop: expected training.early_stopping(...) or the like, got {criterion!r}{names}")
    stop = tuple(map(termination.get, stop))
    if sum(criterion.score is not None for criterion in stop) > 1:
        raise ValueError("stop: only one criterion can restore the best parameters; give the others restore=False")
    if plan is not None and not isinstance(plan, BatchPlan):
        raise TypeError(f"plan: expected training.batch(), minibatch(size) or stochastic(), got {plan!r}")
    return Settings(
        network=network,
        loss=loss,
        optimizer=optimizer,
        plan=plan,
        regularizer=regularizer,
        stop=stop,
        gradient=gradient,
        correct=correct,
        track=_tracked(track),
        augment=augmentation.settled(augment, {name: network.shapes[name] for name, _ in network.inputs}),
    )


def _tracked(track: Track) -> tuple[tuple[str, Callable | None], ...]:
    """(name, function) of all that is tracked; a quantity of the library has no function."""
    if isinstance(track, Mapping):
        for name, function in track.items():
            if not callable(function):
                raise TypeError(
                    f"track: expected a function of (params, inputs, targets) for {name!r}, got {function!r}"
                )
        return tuple(track.items())
    if isinstance(track, str) or not isinstance(track, Iterable):
        raise TypeError(f"track: expected names of quantities, such as ('noise_scale',), or functions, got {track!r}")
    names = tuple(name for name in track if not isinstance(name, Mapping))
    try:
        quantities.check_names(names)
    except ValueError as error:
        raise ValueError(f"track: {error}; or give {{name: function of (params, inputs, targets)}}") from None
    functions = [_tracked(each) for each in track if isinstance(each, Mapping)]
    return sum(functions, start=tuple((name, None) for name in names))


def with_plan(settings: Settings, training: Batch, epochs: int) -> Settings:
    """The settings with a plan that suits the data and the optimizer, refused before anything is compiled."""
    settings = suited(settings, len(training.targets), training.weights is not None, epochs)
    augmentation.check_shapes(settings.augment, training.inputs, settings.plan.size or len(training.targets))
    return settings


def suited(settings: Settings, examples: int, weighted: bool, epochs: int) -> Settings:
    """The same for so many examples."""
    optimizer, plan = settings.optimizer, settings.plan
    if plan is None:
        plan = batch() if optimizer.full_batch else minibatch(min(32, examples))
    updates = plan.updates(examples)
    if weighted and plan.importance is not None:
        raise ValueError("weights: importance() draws and weighs examples itself; use minibatch(size) with weights")
    rule = rule_of(settings.gradient)
    _check_rule(rule, settings, plan)
    by_hand = settings.gradient is value_and_grad
    optimizer.check_gradient(by_hand, rules.written(rule) if isinstance(settings.gradient, Along) else None)
    optimizer.check_plan(plan, updates, epochs)
    if settings.augment and optimizer.full_batch:
        raise ValueError(
            f"augment: {optimizer.name} builds each step on the last, of the same examples, and augmented ones are "
            "others in every update; use a method that takes mini-batches, such as 'adam'"
        )
    return dataclasses.replace(settings, plan=plan)


def _check_rule(rule: rules.Rule | rules.ByLayer, settings: Settings, plan: BatchPlan) -> None:
    """Refuses what asks for derivatives beside a rule that trains what has none."""
    layers = rules.rewritten(rule, settings.network).layers
    if all(layer.activation.pullback is not None for layer in layers):
        return
    asked = [f"track: {name!r}" for name, function in settings.track if function is None]
    asked += ["plan: importance()"] if plan.importance is not None else []
    if asked:
        raise ValueError(f"{asked[0]} asks for derivatives, and what the {rules.written(rule)} rule trains has none")


def prepared(
    settings: Settings, params, inputs, targets, validation, weights=None, class_weights=None, place: Callable = placed
) -> tuple[Batch, Batch | None]:
    network, loss = settings.network, settings.loss
    training = prepare_batch(network, loss, params, inputs, targets, weights, class_weights, place)
    _check_learnable(settings, training)
    for criterion in settings.stop:
        if criterion.validation and validation is None:
            raise ValueError(f"stop: {criterion.name} needs validation=(inputs, targets)")
        if criterion.accuracy and not (settings.correct or settings.loss.correct):
            raise ValueError(f"stop: {settings.loss.name} knows no right answers to count; give fit correct=...")
    if validation is None:
        return training, None
    validation = (validation, None) if isinstance(validation, Windows) else validation
    pair = isinstance(validation, tuple | list) and len(validation) in (2, 3)
    each = len(network.shapes[network.output.name])  # (Q, *P), as many axes as one example's outputs
    if not pair or (len(validation) == 3 and np.ndim(validation[2]) > each):
        given = f"{type(validation).__name__}{f' of {len(validation)}' if isinstance(validation, tuple | list) else ''}"
        raise TypeError(f"validation: expected a pair (inputs, targets), got {given}; weights (Q,) may be third")
    try:
        held_out = prepare_batch(network, loss, params, *validation, place=place)
        _check_learnable(settings, held_out)
        return training, held_out
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation {error}") from None


def _check_learnable(settings: Settings, data: Batch) -> None:
    for own in rules.rules_in(rule_of(settings.gradient)):
        if own.check_targets is not None:
            own.check_targets(settings.network, whole(data.targets))


def how_it_ended(settings: Settings, run: Run, asked: str | None, further: str = "") -> tuple[str, str]:
    """further: what is done beyond the last epoch."""
    ended, epoch = int(run.ended), int(run.epoch)
    best = ""
    if run.best is not None:
        restored = int(run.best.epoch)
        best = (
            f"; parameters of epoch {restored} restored"
            if restored
            else ("; what decides which epoch is best was never finite, so that the last parameters stay")
        )
    if ended == 0 and asked is not None:
        return asked, f"after epoch {epoch}{further}: {ASKED[asked]}{best}"
    if ended == 0:
        return "completed", f"all {epoch} epochs{best}"
    if ended == DIVERGED:
        shown = float(run.shown)
        what = "its gradient or its result was not finite" if np.isfinite(shown) else f"its loss was {shown:g}"
        return "diverged", f"update {int(run.failed)}, in epoch {epoch}, was not made: {what}{best}"
    if ended < 0:
        return STATUSES[-ended], f"after epoch {epoch}: {REASONS[-ended]}{best}"
    criterion = settings.stop[ended - STOPPED]
    return criterion.name, f"after epoch {epoch}: {criterion.reason}{best}"


# The program, compiled ------------------------------------------------------------------------------------------------


@functools.partial(cached, size=32)
def _compiled(settings: Settings, length: int) -> tuple[Callable, Callable]:
    """The compiled program, the same one for the same settings."""
    jit = _for_platform(settings)
    return jit(functools.partial(start, settings)), jit(program(settings, length))


@functools.partial(cached, size=32)
def _compiled_for_chunks(settings: Settings) -> tuple[Callable, Callable, Callable]:
    """The same of a run on chunks: its begin, a chunk and the end of an epoch."""
    made = functools.partial(start, settings), streams.chunk_program(settings), streams.end_program(settings)
    return tuple(map(_for_platform(settings), made))


def _for_platform(settings: Settings) -> Callable[[Callable], Callable]:
    """`jax.jit`, as it suits the platform that the settings are for."""
    there, options = platforms.aimed_at(settings.mesh), compiler.options(platforms.name(settings.mesh))
    return lambda function: jax.jit(there(function), compiler_options=options)
