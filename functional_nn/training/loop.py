"""The training loop: one compiled program of a fixed number of epochs, called until all are done.

Letters: Q examples, R inputs, S outputs, E epochs. Epochs run inside compiled scans (`program.py`), `chunk` of them a
call; what belongs to the outside (progress, saving) happens between the calls. One program serves a run of any length,
and every later run of the same network, loss, optimizer and plan. `pure_fit` may be vmapped: one member that has ended
no longer changes while the others go on.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from functional_nn import checks, compiler, platforms
from functional_nn.gradients import rules
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params
from functional_nn.networks.stored import Windows, in_place, placed
from functional_nn.optimizers.first_order import Optimizer
from functional_nn.optimizers.regularizers import Regularizer
from functional_nn.optimizers.second_order import SecondOrder
from functional_nn.registry import cached
from functional_nn.training import augmentation, keys, streams
from functional_nn.training.augmentation import Augment
from functional_nn.training.checkpoints import Checkpoints
from functional_nn.training.chunked_data import Chunks
from functional_nn.training.configuration import describe_run
from functional_nn.training.data import check_learnable, prepare_batch, prepare_data
from functional_nn.training.devices import check_mesh, replicate
from functional_nn.training.epoch import choose, start_run
from functional_nn.training.gradient import Gradient, rule_of
from functional_nn.training.interruption import describe_end
from functional_nn.training.minibatches import BatchPlan
from functional_nn.training.program import chunk_program, end_program, no_progress, run_program
from functional_nn.training.records import Batch, Best, Correct, History, Run, blank_after_end, fill_missing
from functional_nn.training.session import Session
from functional_nn.training.settings import Settings, check_settings, choose_plan, settings_among, with_plan
from functional_nn.training.termination import Criterion
from functional_nn.training.tracking import Track


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
    settings = check_settings(**settings_among(locals()))
    params = initial_params(settings, key, params)
    session = Session(
        epochs, chunk, on_chunk, lambda: seconds is not None and time.monotonic() - began > seconds, checkpoint, resume
    )
    if isinstance(inputs, Chunks):
        for name, value in (("targets", targets), ("weights", weights)):
            if value is not None:
                raise ValueError(f"{name}: chunks bring their own; give None")
        return _fit_chunks(settings, inputs, params, key, validation, class_weights, mesh, session)
    data = inputs, targets, validation, weights, class_weights
    return _fit_arrays(settings, data, params, key, mesh, session)


def _fit_arrays(
    settings: Settings, data: tuple, params: Params, key: Array, mesh: Mesh | None, session: Session
) -> FitResult:
    """`fit` on data in memory: each call of the compiled program runs several epochs."""
    training, held_out = prepare_data(settings, params, *data, in_place if mesh is None else placed)
    settings.optimizer.check_start(params)
    settings, plan_key = with_plan(settings, training, session.epochs), keys.plan(key)
    put = jax.device_put
    if mesh is not None:
        divided = check_mesh(mesh, settings.plan.size or len(training.targets), settings.optimizer)
        settings = dataclasses.replace(settings, mesh=divided)
        put = functools.partial(replicate, mesh=divided)
        params, training, held_out, plan_key = put((params, training, held_out, plan_key))

    def config() -> dict[str, Any]:
        return {"kind": "a run of fit", **describe_run(settings, training, held_out, key)}

    session.open(config, lambda number: (number, 0))
    length = min(session.chunk, session.epochs)
    begin, advance = compiled(settings, length)
    run = begin(params, training)

    def row() -> History:
        table = fill_missing(jax.eval_shape(advance, run, training, held_out, plan_key, 1)[1])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), table)

    resumed = session.restore(settings, {"run": run}, row)
    if resumed is not None:
        run = put(resumed[1]["run"])
    with session.running():
        while session.continues(run):
            count = min(length, session.epochs - int(run.epoch))
            run, rows, ran = advance(run, training, held_out, plan_key, count)
            session.history.add(jax.tree.map(lambda column, ran=int(ran): np.asarray(column)[:ran], fill_missing(rows)))
            session.after_chunk(run, int(run.epoch), {"run": run})
    return _result(settings, run, session)


def _fit_chunks(
    settings: Settings,
    data: Chunks,
    params: Params,
    key: Array,
    validation: Any,
    class_weights: Any,
    mesh: Mesh | None,
    session: Session,
) -> FitResult:
    """`fit` on data in chunks: a call of the compiled program for each, and one more at the end of an epoch."""
    streams.check_settings_of_chunks(settings, class_weights)
    settings.optimizer.check_start(params)
    settings = choose_plan(settings, data.examples, data.weighted or class_weights is not None, session.epochs)
    plan, into, plan_key = settings.plan, streams.cut(data, settings.plan), keys.plan(key)
    put = jax.device_put
    if mesh is not None:
        settings = dataclasses.replace(settings, mesh=check_mesh(mesh, plan.size, settings.optimizer))
        put = functools.partial(replicate, mesh=settings.mesh)

    def prepare(inputs, targets, weights, given=params) -> Batch:
        batch = prepare_batch(settings.network, settings.loss, given, inputs, targets, weights, class_weights)
        check_learnable(settings, batch)
        return put(batch)

    with streams.reading(data, into, plan, plan_key, prepare) as ask:
        at, training = (0, 0), ask((0, 0))()
        _, held_out = prepare_data(settings, params, training.inputs, training.targets, validation, training.weights)
        augmentation.check_shapes(settings.augment, training.inputs, plan.size)

        def config() -> dict[str, Any]:
            return {
                "kind": "a run of fit on chunks",
                **streams.describe(data, into, class_weights),
                **describe_run(settings, Batch(*data.sample()), held_out, key),
            }

        session.open(config, into.place)
        mean = streams.mean_weight(training, into, ask) if settings.loss.reduction == "mean" else None
        params, held_out, plan_key = put((params, held_out, plan_key))
        begin, advance, end = compiled_for_chunks(settings)
        run, nothing = begin(params, training), no_progress(settings, training)
        row = fill_missing(jax.eval_shape(end, run, nothing, training, held_out)[1])
        session.history.add(jax.tree.map(lambda x: np.zeros((0, *x.shape), x.dtype), row))
        tree = {"run": run, "so_far": nothing}
        at, tree = session.restore(settings, tree, lambda: row) or (at, tree)
        run, so_far = put((tree["run"], tree["so_far"]))
        fresh = 0  # epochs that this call has closed
        if session.continues(run) and at != (0, 0) and into.count > 1:
            training = ask(at)()

        with session.running():
            while session.continues(run):
                number, made, at = into.number(at), into.made(plan, at), into.after(at)
                # asked for before the device has work to do, after which it would draw the order
                ready = ask(at) if into.count > 1 and at[0] < session.epochs else lambda same=training: same
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
                    session.history.add(jax.tree.map(lambda x: np.asarray(x)[None], fill_missing(row)))
                    at, so_far, fresh = (int(run.epoch), 0), nothing, fresh + 1
                training = upcoming
                reports = closes and (fresh % session.chunk == 0 or not session.continues(run))
                session.after_chunk(
                    run,
                    into.number(at),
                    {"run": run, "so_far": so_far},
                    reports=reports,
                    trouble=trouble,
                    partly=into.progress(at),
                )
    return _result(settings, run, session, into.progress(at))


def _result(settings: Settings, run: Run, session: Session, partly: str = "") -> FitResult:
    status, reason = describe_end(settings, run, session.stopped, partly)
    return FitResult(run.state, session.history.rows, status, reason, run.best)


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
    checked = check_settings(**settings_among(locals()))

    def train(key, inputs, targets=None, validation=None, params=None, weights=None, class_weights=None) -> Outcome:
        checks.prng_key("key", key)
        params = initial_params(checked, key, params)
        training, held_out = prepare_data(checked, params, inputs, targets, validation, weights, class_weights)
        settings = with_plan(checked, training, epochs)
        run, table, ran = run_program(settings, epochs, alone=False)(
            start_run(settings, params, training), training, held_out, keys.plan(key), epochs
        )
        params = run.state.params
        if run.best is not None:
            params = choose(run.best.epoch > 0, run.best.params, params)
        if not jax.config.jax_debug_nans:
            table = blank_after_end(table, ran)
        return Outcome(params, run.state, table, ran, run.ended, run.failed)

    return train


# The program, compiled ------------------------------------------------------------------------------------------------


@functools.partial(cached, size=32)
def compiled(settings: Settings, length: int) -> tuple[Callable, Callable]:
    """The compiled program, the same one for the same settings."""
    jit = _for_platform(settings)
    return jit(functools.partial(start_run, settings)), jit(run_program(settings, length))


@functools.partial(cached, size=32)
def compiled_for_chunks(settings: Settings) -> tuple[Callable, Callable, Callable]:
    """The same of a run on chunks: its begin, a chunk and the end of an epoch."""
    made = functools.partial(start_run, settings), chunk_program(settings), end_program(settings)
    return tuple(map(_for_platform(settings), made))


def _for_platform(settings: Settings) -> Callable[[Callable], Callable]:
    """`jax.jit`, as it suits the platform that the settings are for."""
    there, options = platforms.aimed_at(settings.mesh), compiler.options(platforms.name(settings.mesh))
    return lambda function: jax.jit(there(function), compiler_options=options)


def initial_params(settings: Settings, key: Array, params: Params | None = None) -> Params:
    """The parameters at the start, or those given, with what the rule learns beside them."""
    own = keys.parameters(key)
    params = settings.network.init(own) if params is None else params
    return rules.begin(rule_of(settings.gradient), settings.network, params, own)
