"""The training loop: one compiled program of a fixed number of epochs, called until all are done.

Letters: Q examples, R inputs, S outputs, E epochs. Epochs run inside compiled scans (`program.py`), `chunk` of them a
call. What belongs to the outside (saving, logging, stopping) happens between the calls (`session.py`). One program
serves a run of any length, and every later run of the same network, loss, optimizer and plan.
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
from jax.typing import ArrayLike

from functional_nn import checks, compiler, platforms
from functional_nn.gradients import rules
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params
from functional_nn.networks.stored import Windows, in_place, placed
from functional_nn.optimizers.optimizer import Optimizer
from functional_nn.optimizers.regularizers import Regularizer
from functional_nn.optimizers.second_order import SecondOrder
from functional_nn.rows import cached
from functional_nn.training import augmentation, keys, logs, streams
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
from functional_nn.training.records import Batch, Best, Correct, History, Run, blank_after_end
from functional_nn.training.session import Session
from functional_nn.training.settings import Settings, check_settings, choose_plan, settings_among, with_plan
from functional_nn.training.termination import Criterion
from functional_nn.training.tracking import Track


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        state: the optimizer's last finite state.
        history: a `History`, one value an epoch.
        status: "completed", "diverged" (a loss or gradient was not finite), the name of the criterion that stopped the
            run, "stopped" (by on_chunk), "seconds" (the time was over), or a second-order method's own, one of
            `second_order.STATUSES`.
        reason: the same in words, with the number of the update if it diverged.
        best: the parameters of the best epoch, None unless a criterion restores them.

    Example:
        >>> import jax, numpy as np, functional_nn as fnn
        >>> network, x, t = fnn.multilayer((2, 1), ("linear",)), np.eye(2), np.ones((2, 1))
        >>> result = fnn.fit(network, "mean_square_error", "gd(0.1)", x, t, key=jax.random.key(0), epochs=3)
        >>> result.status, result.reason
        ('completed', 'all 3 epochs')
        >>> result.params["layer1"]["bias"].shape
        (1,)
    """

    state: Any
    history: History
    status: str
    reason: str
    best: Best | None

    @property
    def params(self) -> Params:
        """The trained parameters: those of the best epoch if a criterion restores them, else the last."""
        return self.state.params if self.best is None or int(self.best.epoch) == 0 else self.best.params

    def __repr__(self) -> str:
        columns = {name.replace("_", " "): getattr(self.history, name) for name in _SHOWN}
        last = [f"{name} {x:.6g}" for name, column in columns.items() for x in column[-1:] if np.isfinite(x)]
        return f"<{self.status}, {self.reason}: {', '.join(last) or 'no epoch was run'}>"


class Outcome(NamedTuple):
    """What the function that `pure_fit` returns gives back: arrays only.

    Attributes:
        params: as in `FitResult`.
        state: the optimizer's last finite state.
        history: a `History` of E epochs, after the end nan, or 0 in integers. With `jax_debug_nans`, which stops at
            every nan, the last row is repeated instead, and columns of nan are None.
        epochs: how many were run, int32.
        ended: 0 completed, 1 diverged, 2 + i stopped by the i-th criterion, below 0 by a second-order method, with its
            status.
        failed: the number of the update that was not finite, 0 if there was none.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> from functional_nn import training
        >>> network = fnn.multilayer((2, 1), ("linear",))
        >>> train = training.pure_fit(network, "mean_square_error", "gd(0.1)", epochs=3)
        >>> outcome = jax.jit(train)(jax.random.key(0), jnp.eye(2), jnp.ones((2, 1)))
        >>> int(outcome.epochs), int(outcome.ended), outcome.history.training_loss.shape
        (3, 0, (3,))
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
    targets: ArrayLike | None = None,
    *,
    key: Array,
    epochs: int,
    plan: BatchPlan | None = None,
    validation: tuple[Any, ...] | Windows | None = None,
    params: Params | None = None,
    weights: ArrayLike | None = None,
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
    log: logs.Log = (),
    seconds: float | None = None,
    mesh: Mesh | None = None,
    checkpoint: Checkpoints | None = None,
    resume: bool = False,
) -> FitResult:
    """Trains a network and returns its last state, the history of every epoch, and how the run ended.

    The same arguments and the same key return the same result, bit for bit on the same machine. One program is
    compiled, whatever `epochs` is. It is kept for later runs with the same network, loss, optimizer, plan and settings;
    a wrapped optimizer must be the same object.

    Args:
        network: a description made by `fnn.multilayer` or `fnn.graph`.
        loss: one of `fnn.losses`, or its name, such as "cross_entropy".
        optimizer: one of `fnn.optimizers`, of first or second order, or its name, such as "adam(0.01)". For a
            second-order one, an epoch is one step on all examples (or on each mini-batch, if it was made with
            minibatches=True), and the run also ends when the method has converged or finds no lower point.
        inputs: `(Q, *P, R)` for Q examples, or `{name: (Q, *P, R)}`. For a long stream of tokens
            `fnn.windows(tokens, context)`, which brings its own targets and is kept as one copy. For data larger than
            memory `training.chunks(...)`; see *Data larger than memory* below.
        targets: `(Q, *P, S)`, or integer labels `(Q, *P)`. None if the inputs bring their own.
        key: for the initial parameters (unless `params` are given), the batches, dropout and augmentation.
        epochs: how many to run at most.
        plan: how batches are made: `training.batch()`, `minibatch(32)`, `stochastic()` or `importance(32)`. The default
            is `minibatch(32)`, smaller if there are fewer examples, or `batch()` if the optimizer needs it.
        validation: (inputs, targets) or (inputs, targets, weights), measured after every epoch; or `fnn.windows(...)`.
        params: the initial parameters. By default they are drawn from `key`. Training on from earlier parameters starts
            everything else again: moments, schedules and, with the same key, the same batches.
        weights: (Q,), what each example counts for in the loss, its gradient and the accuracy; or `(Q, *P)` for each
            position of the outputs, 0 where it is masked. A mean loss divides by their sum. Of a mini-batch it divides
            by what that sum is on average, so that the gradient is an unbiased estimate.
        class_weights: "balanced", or a weight for each class, multiplied with `weights`; see `fnn.class_weights`. They
            do not apply to the validation data.
        regularizer: one of `fnn.optimizers.regularizers`, or its name, such as "l2(0.001)"; its gradient is added.
        stop: criteria that end the run early: those of `training.termination`, or their names, such as
            "early_stopping(patience=5)", "no_change" or "generalization_loss(5)"; one or several.
        gradient: "manual", the hand-written one; "automatic", that of `jax.grad`; `training.clipped(1.0)`; your own
            function (network, loss) -> value_and_grad; or "perceptron", the learning rule for one layer of hardlim or
            hardlims neurons.
        rule: an alternative backward rule: one of `fnn.rules` for all layers, or {layer: rule}, such as
            "feedback_alignment(0)". What it learns besides the parameters is stored with them, under "feedback". It is
            drawn from `key` unless `params` contain it.
        correct: (outputs, targets) -> (Q,), True where an example is right. For outputs with positions each position is
            a row. The default is the loss's own rule; `fnn.losses.largest` compares the largest outputs.
        track: what else is measured after each epoch, for `history.tracked`: names of `fnn.quantities`, such as
            ("noise_scale",); or {name: function of (params, inputs, targets)}, on all training examples; or a tuple of
            both. `training.of_state` wraps a function of the optimizer's state, `training.of_validation` a metric of
            the validation data.
        augment: changes the inputs of each training batch at random, newly in every update: names of
            `training.augmentation`, such as ("shift(2)", "flip"), or functions (key, x) -> x of a batch `(B, *P, R)`,
            applied one after the other; or {input: these}. Validation and tracked data are not augmented.
        chunk: how many epochs one call of the compiled program runs.
        on_chunk: (state, history so far), called after every chunk of epochs, outside the compiled program. The run
            stops there if it returns True.
        log: where the numbers of each epoch are sent: a sink such as `training.logs.csv("history.csv")`, any function
            of new rows, or several of them. They are called after every chunk of epochs; see `training.logs`.
        seconds: the run stops after the first chunk that ends beyond this time, compilation included.
        mesh: devices over which the examples of every batch are laid, with a copy of the parameters on each (data
            parallelism). The result is the same to rounding. Batch sizes must be multiples of the number of devices.
        checkpoint: `training.checkpoints.keep(folder)`: saves the run after chunks and at the end. Ctrl-C then stops
            after the current chunk, saves, and raises KeyboardInterrupt.
        resume: True to continue from the newest checkpoint there, bitwise as if the run had never stopped, also with
            more `epochs`. It starts from the beginning if there is no checkpoint.

    Returns:
        A `FitResult`: `params`, `history`, `state`, `status` and `reason`.

    Raises:
        ValueError: for data or settings that do not fit together, before anything is compiled; and if `fit` is traced
            by `jit`, `vmap` or `grad` (use `training.pure_fit` there).
        TypeError: for arguments of the wrong type, before anything is compiled.
        CheckpointError: for checkpoints of another network, data or settings, and for broken ones.
        KeyboardInterrupt: after Ctrl-C, when the run is saved.

    Note:
        **Divergence.** An update whose loss, gradient or result is not finite is not made. The run stops there, keeps
        the last finite state, and its reason names the update. A parameter that is infinite from the start, such as a
        bias of -inf that masks a class, may stay so.

        **Large arrays.** On CPU, NumPy arrays of 64 MiB and more are read in place, not copied: do not change them
        until `fit` returns.

        **Data larger than memory.** The next of `training.chunks` is read and copied to the device while one trains.
        Settings that need all examples at once are refused: batch(), importance() and replacement, optimizers that need
        them, tracked quantities and functions of the data, class_weights="balanced". If a mean loss has weights, all
        data are read once before the first update. After each chunk of data, also within an epoch, the run may be
        saved, and Ctrl-C and `seconds` take effect; on_chunk is still called after `chunk` epochs, and sinks after each
        epoch. Data that are refused when they are read, such as nan, raise an error with the example's number, after
        what was trained until then is saved. There are two programs, one for a chunk and one for an epoch's end, and
        one more for a last chunk of another size.

    Example:
        >>> import jax, numpy as np, functional_nn as fnn
        >>> network = fnn.multilayer((2, 8, 1), activations=("tanh", "sigmoid"))
        >>> x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> xor = np.array([[0.0], [1.0], [1.0], [0.0]])
        >>> settings = {"plan": fnn.training.batch(), "chunk": 200}
        >>> result = fnn.fit(network, "binary_cross_entropy", "adam(0.1)", x, xor, key=jax.random.key(0), epochs=200,
        ...     **settings)
        >>> result.status, len(result.history.epoch)
        ('completed', 200)
        >>> network.apply(result.params, x).round().ravel().tolist()
        [0.0, 1.0, 1.0, 0.0]
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
    sinks = logs.check_sinks(log)
    settings = check_settings(**settings_among(locals()))
    params = initial_params(settings, key, params)
    if isinstance(inputs, Chunks):
        for name, value in (("targets", targets), ("weights", weights)):
            if value is not None:
                raise ValueError(f"{name}: chunks bring their own; give None")
    data = inputs, targets, validation, weights, class_weights

    def late() -> bool:
        return seconds is not None and time.monotonic() - began > seconds

    with logs.opened(sinks, resume) as sinks:
        session = Session(epochs, chunk, on_chunk, late, checkpoint, resume, sinks)
        if isinstance(inputs, Chunks):
            return _fit_chunks(settings, inputs, params, key, validation, class_weights, mesh, session)
        return _fit_arrays(settings, data, params, key, mesh, session)


def _fit_arrays(
    settings: Settings, data: tuple[Any, ...], params: Params, key: Array, mesh: Mesh | None, session: Session
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
        table = jax.eval_shape(advance, run, training, held_out, plan_key, 1)[1]
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), table)

    resumed = session.restore(settings, {"run": run}, row)
    if resumed is not None:
        run = put(resumed[1]["run"])
    with session.running():
        while session.continues(run):
            count = min(length, session.epochs - int(run.epoch))
            run, rows, ran = advance(run, training, held_out, plan_key, count)
            session.add(rows, int(ran))
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
        row = jax.eval_shape(end, run, nothing, training, held_out)[1]
        session.add(jax.tree.map(lambda x: np.zeros((0, *x.shape), x.dtype), row), 0)
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
                    session.add(jax.tree.map(lambda x: np.asarray(x)[None], row), 1)
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
    """Returns `fit` as a pure function of arrays, which may be jitted and vmapped.

    It may be vmapped over keys, learning rates, strengths or data. Constants of the optimizer and the regularizer may
    be traced numbers: `jit(vmap(lambda rate, key: pure_fit(network, loss, adam(rate), epochs=50)(key, x, t)))`. One
    member that has ended is no longer updated while the others continue. The function supports
    forward-mode but not reverse-mode differentiation.

    Args:
        network: this and the other arguments are those of `fit`.
        loss: as in `fit`.
        optimizer: as in `fit`.
        epochs: how many to run at most, a Python integer.
        plan: as in `fit`.
        regularizer: as in `fit`.
        stop: as in `fit`.
        gradient: as in `fit`.
        rule: as in `fit`.
        correct: as in `fit`.
        track: as in `fit`.
        augment: as in `fit`.

    Returns:
        `(key, inputs, targets=None, validation=None, params=None, weights=None, class_weights=None) -> Outcome`: the
        same training as `fit` with the same settings and key, to rounding. A member that diverged has nan or infinity
        in its history, which `argmin` may take for the lowest.

    Raises:
        ValueError: for settings that do not fit together; the function that is returned raises it for data, too.
        TypeError: for arguments of the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> from functional_nn import training
        >>> network, x, t = fnn.multilayer((2, 1), ("linear",)), jnp.eye(2), jnp.ones((2, 1))
        >>> def last_loss(rate):
        ...     train = training.pure_fit(network, "mean_square_error", fnn.optimizers.gd(rate), epochs=3)
        ...     return train(jax.random.key(0), x, t).history.training_loss[-1]
        >>> jax.jit(jax.vmap(last_loss))(jnp.array([0.1, 0.2])).shape
        (2,)
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
    """Returns the compiled start and program of a run, the same ones for the same settings."""
    jit = _for_platform(settings)
    return jit(functools.partial(start_run, settings)), jit(run_program(settings, length))


@functools.partial(cached, size=32)
def compiled_for_chunks(settings: Settings) -> tuple[Callable, Callable, Callable]:
    """Returns the same for a run on chunks: its start, a chunk, and the end of an epoch."""
    programs = functools.partial(start_run, settings), chunk_program(settings), end_program(settings)
    return tuple(map(_for_platform(settings), programs))


def _for_platform(settings: Settings) -> Callable[[Callable], Callable]:
    """Returns `jax.jit` with the options of the platform that the settings are for."""
    aimed, options = platforms.aimed_at(settings.mesh), compiler.options(platforms.name(settings.mesh))
    return lambda function: jax.jit(aimed(function), compiler_options=options)


def initial_params(settings: Settings, key: Array, params: Params | None = None) -> Params:
    """Returns the initial parameters, drawn unless given, with those that the learning rule adds."""
    params_key = keys.parameters(key)
    params = settings.network.init(params_key) if params is None else params
    return rules.begin(rule_of(settings.gradient), settings.network, params, params_key)
