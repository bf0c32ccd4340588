"""The training loop: one compiled program of a fixed number of epochs, called until all are done.

Letters: Q examples, R inputs, S outputs, B batch size, U updates an epoch, E epochs. The loop knows one thing: a step
`(state, batch) -> (state, metrics)`. Epochs run inside compiled scans, `chunk` of them a call; what belongs to the
outside (progress, saving) happens between the calls. One program serves a run of any length, and every later run of
the same network, loss, optimizer and plan. Divergence and stopping are data in what the program carries, so that
`pure_fit` may be vmapped: one member that has ended stands still while the others go on.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, optimizers, precision, registry
from functional_nn.gradients import quantities
from functional_nn.gradients.backprop import objective, value_and_grad
from functional_nn.gradients.views import BUDGET, said_bytes
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params, forward
from functional_nn.optimizers import regularizers
from functional_nn.optimizers.first_order import Optimizer
from functional_nn.optimizers.regularizers import Regularizer
from functional_nn.precision import at_least_float32
from functional_nn.training.minibatches import BatchPlan, batch, minibatch
from functional_nn.training.termination import Criterion

Gradient = Callable[[Network, Loss], Callable[..., tuple[Array, Params]]]
Correct = Callable[[Array, Array], Array]  # (outputs, targets) -> (Q,) booleans
Track = Sequence[str] | Mapping[str, Callable[[Params, Inputs, Array], Any]]


class Batch(NamedTuple):
    """inputs {name: (B, R)}, targets (B, S); weights (B,) of the examples, a key for dropout and for gradients that are
    random, a scale of the gradient, each where there is one.
    """

    inputs: dict[str, Array]
    targets: Array
    weights: Array | None = None
    key: Array | None = None
    scale: Array | None = None


class Metrics(NamedTuple):
    """Scalars: the loss, the share of examples classified rightly (nan where that has no sense), ||dF/dparams||."""

    loss: Array
    accuracy: Array
    gradient_norm: Array


class History(NamedTuple):
    """One value an epoch, NumPy arrays (E,).

    training_loss and training_accuracy are those of the epoch's examples, each measured just before the update that
    used it (for `batch`, exactly those before the epoch), with neurons dropped where there is dropout and without the
    regularizer's penalty; gradient_norm, the penalty's gradient included, is the mean over the epoch's updates;
    validation_* are measured after the epoch, no neuron dropped. Each loss has the precision of the parameters. nan
    where there is nothing to say. tracked: {name: what `fit` was asked to track, each of its arrays (E, ...)}, measured
    after the epoch on all training examples.
    """

    epoch: np.ndarray
    training_loss: np.ndarray
    training_accuracy: np.ndarray
    gradient_norm: np.ndarray
    validation_loss: np.ndarray
    validation_accuracy: np.ndarray
    tracked: dict[str, Any] = {}


class Best(NamedTuple):
    """The parameters of the best epoch so far, which that was, and its score (the lowest)."""

    params: Params
    epoch: Array
    score: Array


class Run(NamedTuple):
    """All that training needs to go on, and how it ended: 0 not yet, 1 diverged, 2 + i by the i-th criterion.

    failed: the update, counted from 1 over the whole run, that was not finite and was not made; 0 where none. shown:
    the loss it found.
    """

    state: Any
    memories: tuple
    best: Best | None
    epoch: Array
    ended: Array
    failed: Array
    shown: Array


class FitResult(NamedTuple):
    """The last finite state, the history, and how it ended.

    status: "completed", "diverged" (a loss or gradient was not finite), or the name of the criterion that stopped it;
    reason: the same in words, with the update where it diverged. best: the parameters of the best epoch, where a
    criterion restores them.
    """

    state: Any
    history: History
    status: str
    reason: str
    best: Best | None

    @property
    def params(self) -> Params:
        """The trained parameters: those of the best epoch where a criterion restores them, else the last."""
        return self.state.params if self.best is None else self.best.params


class Outcome(NamedTuple):
    """What `pure_fit` gives: arrays only. params as in `FitResult`; history (E,) with nan after the end, 0 in integers.

    epochs: how many were run, int32; ended: 0 completed, 1 diverged, 2 + i stopped by the i-th criterion; failed: the
    update that was not finite, 0 where all were.
    """

    params: Params
    state: Any
    history: History
    epochs: Array
    ended: Array
    failed: Array


def automatic(network: Network, loss: Loss) -> Callable[..., tuple[Array, Params]]:
    """`jax.value_and_grad` of the objective: the other gradient, for comparisons."""
    return jax.value_and_grad(objective(network, loss))


GRADIENTS: dict[str, Gradient] = {"manual": value_and_grad, "automatic": automatic}


def train_step(
    network: Network,
    loss: Loss,
    optimizer: Optimizer,
    gradient: Gradient = value_and_grad,
    correct: Correct | None = None,
    regularizer: Regularizer | None = None,
) -> Callable:
    """`(state, batch) -> (state, metrics)`, pure, to be compiled by whoever calls it. `correct` as in `fit`.

    The step takes a `training.Batch`, inputs by name. Raises ValueError where a network with dropout, or a gradient
    with noise, gets no key.
    """
    loss, optimizer = losses.get(loss), optimizers.get(optimizer)
    gradients_of = gradient(network, loss)
    needs_key = _needs_key(network, gradient)

    def step(state, batch: Batch):
        if needs_key and batch.key is None:
            what = "network with dropout" if network.drops else "random gradient"
            raise ValueError(f"batch: a {what} needs a key; give Batch(..., key=key)")
        params = optimizer.point(state)
        random = (batch.key,) if needs_key else ()
        value, grads = gradients_of(params, batch.inputs, batch.targets, batch.weights, *random)
        if batch.scale is not None:
            grads = jax.tree.map(lambda g: g * batch.scale.astype(g.dtype), grads)
        if regularizer is not None:
            grads = jax.tree.map(jnp.add, grads, regularizer.gradient(params))
        # The same forward pass as the gradient's; the compiler keeps one of them.
        outputs = forward(network, params, batch.inputs, {}, *random).activations[network.output.name]
        accuracy = _accuracy(correct or loss.correct, outputs, batch.targets, batch.weights)
        return optimizer.update(state, grads), Metrics(value, accuracy, _norm(grads))

    return step


def _needs_key(network: Network, gradient: Gradient) -> bool:
    return network.drops or getattr(gradient, "random", False)


def evaluate(
    network: Network, loss: Loss, params: Params, inputs: Inputs, targets: Array, correct: Correct | None = None
) -> tuple[Array, Array]:
    """(F, accuracy) over all examples at once; accuracy is nan where there are no right answers.

    inputs (Q, R) or {name: (Q, R)}, targets (Q, S); `correct` as in `fit`. Raises ValueError as `backpropagate`.
    """
    loss = losses.get(loss)
    loss.check_outputs(network.output.activation)
    inputs = network.prepare(params, inputs)
    targets = network.prepare_targets(inputs, targets)
    outputs = forward(network, params, inputs, {}).activations[network.output.name]
    return objective(network, loss)(params, inputs, targets), _accuracy(correct or loss.correct, outputs, targets, None)


def fit(
    network: Network,
    loss: Loss | str,
    optimizer: Optimizer | str,
    inputs: Inputs,
    targets: Array,
    *,
    key: Array,
    epochs: int,
    plan: BatchPlan | None = None,
    validation: tuple[Inputs, Array] | None = None,
    params: Params | None = None,
    regularizer: Regularizer | str | None = None,
    stop: Criterion | Sequence[Criterion] = (),
    gradient: Gradient | Literal["manual", "automatic"] = "manual",
    correct: Correct | None = None,
    track: Track = (),
    chunk: int = 10,
    on_chunk: Callable[[Any, History], None] | None = None,
) -> FitResult:
    """Trains `network` on inputs (Q, R) or {name: (Q, R)} and targets (Q, S).

    key: for the initial parameters (unless `params` are given), the batches and dropout. plan: `training.batch()`,
    `minibatch(32)` (the default, smaller where there are fewer examples; `batch()` for a method that needs it),
    `stochastic()` or `importance(32)`. validation: a pair (inputs, targets), measured after every epoch.
    regularizer: its gradient is added. stop: `training.early_stopping(...)`, `no_change`, `gradient_below`,
    `loss_below`, or several of them. gradient: by hand, by `jax.grad`, `training.clipped(1.0)`, or your own
    `(network, loss) -> value_and_grad`. correct(outputs, targets) -> (Q,) says which examples are right,
    `losses.largest` for one; by default the loss's own rule. track: names of `fnn.quantities`, such as
    ("noise_scale",), or functions by name, `{"rate": lambda params, inputs, targets: ...}`; what they give after
    each epoch, on all training examples, stands in `history.tracked`. on_chunk(state, history so far) is called
    after every `chunk` epochs, outside the compiled program.

    Compiles one program, whatever `epochs` is, and keeps it for later runs with the same network, loss, optimizer,
    plan and settings (the same object, where it is a wrapped optimizer). An update whose loss, gradient or result is
    not finite is not made: the run stops there, keeps the last finite state and says which update it was. Training on
    from `params` begins anew with everything else: moments, schedules and, with the same key, batches.

    Raises ValueError or TypeError for data or settings that do not fit, before anything is compiled, and where it is
    itself being traced.
    """
    constants = getattr(optimizer, "constants", {})
    if not all(map(checks.is_concrete, jax.tree.leaves((inputs, targets, key, params, validation, constants)))):
        raise ValueError("fit is not pure and cannot be traced by jit, vmap or grad; use training.pure_fit there")
    for name, value in (("epochs", epochs), ("chunk", chunk)):
        checks.integer("", name, value, 1)
    if not (on_chunk is None or callable(on_chunk)):
        raise TypeError(f"on_chunk: expected a function of state and history, got {type(on_chunk).__name__}")
    checks.prng_key("key", key)
    settings = _settle(network, loss, optimizer, plan, regularizer, stop, gradient, correct, track)
    init_key, plan_key = jax.random.split(key)
    params = network.init(init_key) if params is None else params
    training, held_out = _data(settings, params, inputs, targets, validation)
    settings = _with_plan(settings, len(training.targets))

    start, advance = _compiled(settings, min(chunk, epochs))
    run, tables = start(params), []
    while not int(run.ended) and int(run.epoch) < epochs:
        run, table, ran = advance(run, training, held_out, plan_key, min(chunk, epochs - int(run.epoch)))
        tables.append(jax.tree.map(lambda column, ran=ran: np.asarray(column)[: int(ran)], table))
        if on_chunk:
            on_chunk(run.state, _joined(tables))
    status, reason = _how_it_ended(settings, run)
    return FitResult(run.state, _joined(tables), status, reason, run.best)


def _joined(tables: Sequence[History]) -> History:
    return jax.tree.map(lambda *columns: np.concatenate(columns), *tables)


def pure_fit(
    network: Network,
    loss: Loss | str,
    optimizer: Optimizer | str,
    *,
    epochs: int,
    plan: BatchPlan | None = None,
    regularizer: Regularizer | str | None = None,
    stop: Criterion | Sequence[Criterion] = (),
    gradient: Gradient | Literal["manual", "automatic"] = "manual",
    correct: Correct | None = None,
    track: Track = (),
) -> Callable[..., Outcome]:
    """`fit` as a pure function of arrays, to be jitted and vmapped over keys, rates, strengths or data.

    Gives `(key, inputs, targets, validation=None, params=None) -> Outcome`, the same training as `fit` with the same
    settings and key, to rounding. The optimizer, its constants and the regularizer may be made of traced numbers:
    `jit(vmap(lambda rate, key: pure_fit(network, loss, adam(rate), epochs=50)(key, x, t)))`. A member that diverged
    leaves nan in its history, which `argmin` takes for the lowest. Has forward derivatives, but no reverse ones.
    """
    checks.integer("", "epochs", epochs, 1)
    settings = _settle(network, loss, optimizer, plan, regularizer, stop, gradient, correct, track)

    def train(key, inputs, targets, validation=None, params=None) -> Outcome:
        checks.prng_key("key", key)
        init_key, plan_key = jax.random.split(key)
        params = network.init(init_key) if params is None else params
        training, held_out = _data(settings, params, inputs, targets, validation)
        start, advance = _program(_with_plan(settings, len(training.targets)), epochs)
        run, table, ran = advance(start(params), training, held_out, plan_key, epochs)
        return Outcome(
            run.state.params if run.best is None else run.best.params, run.state, table, ran, run.ended, run.failed
        )  # fmt: skip

    return train


# Settings and data, checked -------------------------------------------------------------------------------------------


class _Settings(NamedTuple):
    """Everything but arrays that a run depends on; hashable, where the user's own callables are."""

    network: Network
    loss: Loss
    optimizer: Optimizer
    plan: BatchPlan | None
    regularizer: Regularizer | None
    stop: tuple[Criterion, ...]
    gradient: Gradient
    correct: Correct | None
    track: tuple[tuple[str, Callable | None], ...]


def _settle(network, loss, optimizer, plan, regularizer, stop, gradient, correct, track) -> _Settings:
    if isinstance(gradient, str) and gradient not in GRADIENTS:
        raise ValueError(registry.unknown("gradient", gradient, GRADIENTS))
    gradient = GRADIENTS[gradient] if isinstance(gradient, str) else gradient
    for name, value, what in (("gradient", gradient, "'manual', 'automatic' or "), ("correct", correct, "")):
        if not callable(value) and (name, value) != ("correct", None):
            raise TypeError(f"{name}: expected {what}a function, got {value!r}")
    if not isinstance(network, Network):
        raise TypeError(f"network: expected fnn.multilayer(...) or fnn.graph(...), got {type(network).__name__}")
    loss, optimizer = losses.get(loss), optimizers.get(optimizer)
    regularizer = None if regularizer is None else regularizers.get(regularizer)
    stop = tuple(stop) if isinstance(stop, tuple | list) else (stop,)
    for criterion in stop:
        if not isinstance(criterion, Criterion):
            raise TypeError(f"stop: expected training.early_stopping(...) or the like, got {criterion!r}")
    if sum(criterion.score is not None for criterion in stop) > 1:
        raise ValueError("stop: only one criterion can restore the best parameters; give the others restore=False")
    if plan is not None and not isinstance(plan, BatchPlan):
        raise TypeError(f"plan: expected training.batch(), minibatch(size) or stochastic(), got {plan!r}")
    return _Settings(network, loss, optimizer, plan, regularizer, stop, gradient, correct, _tracked(track))


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
    track = tuple(track)
    try:
        quantities.check_names(track)
    except ValueError as error:
        raise ValueError(f"track: {error}; or give {{name: function of (params, inputs, targets)}}") from None
    return tuple((name, None) for name in track)


def _with_plan(settings: _Settings, examples: int) -> _Settings:
    """The settings with a plan that suits the data and the optimizer, refused before anything is compiled."""
    optimizer, plan = settings.optimizer, settings.plan
    if plan is None:
        plan = batch() if optimizer.full_batch else minibatch(min(32, examples))
    updates = plan.updates(examples)
    if optimizer.full_batch and updates > 1:
        raise ValueError(
            f"{optimizer.name} compares the signs of successive gradients, which mini-batches make random: use "
            "plan=training.batch() (on the command line, --batch-size 0), or make it with minibatches=True all the "
            f"same; got {updates} batches an epoch"
        )
    return settings._replace(plan=plan)


def _data(settings: _Settings, params, inputs, targets, validation) -> tuple[Batch, Batch | None]:
    training = _checked(settings.network, settings.loss, params, inputs, targets)
    for criterion in settings.stop:
        if criterion.validation and validation is None:
            raise ValueError(f"stop: {criterion.name} needs validation=(inputs, targets)")
        if criterion.accuracy and not (settings.correct or settings.loss.correct):
            raise ValueError(f"stop: {settings.loss.name} knows no right answers to count; give fit correct=...")
    if validation is None:
        return training, None
    if not (isinstance(validation, tuple | list) and len(validation) == 2):
        raise TypeError(f"validation: expected a pair (inputs, targets), got {type(validation).__name__}")
    try:
        return training, _checked(settings.network, settings.loss, params, *validation)
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation {error}") from None


def _checked(network: Network, loss: Loss, params: Params, inputs: Inputs, targets: Array) -> Batch:
    prepared = network.prepare(params, inputs)
    targets = network.prepare_targets(prepared, targets)
    loss.check_targets(targets)
    return Batch(prepared, targets)


def _how_it_ended(settings: _Settings, run: Run) -> tuple[str, str]:
    ended, epoch = int(run.ended), int(run.epoch)
    best = "" if run.best is None else f"; parameters of epoch {int(run.best.epoch)} restored"
    if ended == 0:
        return "completed", f"all {epoch} epochs{best}"
    if ended == 1:
        shown = float(run.shown)
        what = "its gradient or its result was not finite" if np.isfinite(shown) else f"its loss was {shown:g}"
        return "diverged", f"update {int(run.failed)}, in epoch {epoch}, was not made: {what}{best}"
    criterion = settings.stop[ended - 2]
    return criterion.name, f"after epoch {epoch}: {criterion.reason}{best}"


# The program ----------------------------------------------------------------------------------------------------------


def _compiled(settings: _Settings, length: int):
    """The compiled program, the same one for the same settings."""
    try:
        return _kept(settings, length)
    except TypeError:  # the user's own callable cannot be hashed
        return _kept.__wrapped__(settings, length)


@functools.lru_cache(maxsize=32)
def _kept(settings: _Settings, length: int):
    start, advance = _program(settings, length)
    return jax.jit(start), jax.jit(advance)


def _program(settings: _Settings, length: int) -> tuple[Callable, Callable]:
    """start(params) -> Run; advance(run, training, held_out, key, count) -> (Run, table, epochs run).

    `advance` runs up to `count` <= `length` epochs; `count` may be traced, so that a last, shorter chunk compiles
    nothing. The table is a History of arrays (length,).
    """
    network, loss, optimizer, plan, regularizer, stop, gradient, correct, track = settings
    step = train_step(network, loss, optimizer, gradient, correct, regularizer)
    random = _needs_key(network, gradient)
    scores = [criterion.score for criterion in stop if criterion.score]

    def start(params) -> Run:
        zero, infinite = jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf, precision.default())
        state, memories = optimizer.init(params), tuple(criterion.init() for criterion in stop)
        best = Best(state.params, zero, infinite) if scores else None
        return Run(state, memories, best, zero, zero, zero, infinite)

    def advance(run: Run, training: Batch, held_out: Batch | None, key: Array, count) -> tuple[Run, History, Array]:
        examples = training.targets.shape[0]
        dtype = at_least_float32(training.targets.dtype)
        updates, first = plan.updates(examples), run.epoch
        weights, scales = plan.weights(examples), plan.scales(examples)
        if loss.reduction == "sum":
            scales = None  # a sum over b examples is b / B of one over B as it is
        counts = plan.counts(examples)
        share = jnp.asarray(counts / counts.sum(), dtype)  # of the epoch's examples
        noise_key = jax.random.fold_in(key, _NOISE)
        measure = functools.partial(_measure, network, loss, track, training)

        numbers = np.arange(1, updates + 1, dtype=np.int32)

        def update(limit, state, row):
            number, picked, example_weights, scale, drop = row
            example_weights = None if example_weights is None else example_weights.astype(training.targets.dtype)
            data = jax.tree.map(lambda x: x[picked], (training.inputs, training.targets))
            after, metrics = step(state, Batch(*data, example_weights, drop, scale))
            # Known before the update is computed, so that the choice costs no pass over the parameters of its own.
            return _where(number <= limit, after, state), jax.tree.map(lambda m: m.astype(dtype), metrics)

        def epoch(carry):
            # Of this epoch's updates, the first `low` are sound and the first `high` are not. All are made at once;
            # only where they turn out not to be sound, the last finite state is searched for by halving.
            run, table, low, high = carry
            limit = jnp.where(high > updates, updates, (low + high) // 2)
            done = run.epoch
            keys = jax.random.split(jax.random.fold_in(noise_key, done), updates) if random else None
            if plan.importance is None:
                rows = (numbers, plan.indices(key, done, examples), weights, scales, keys)
            else:
                at = optimizer.point(run.state), training.inputs, training.targets
                drawn = plan.draw(key, done, quantities.per_example_norms(network, loss, *at))
                rows = (numbers, drawn.indices, drawn.weights, None if loss.reduction == "sum" else drawn.scales, keys)
            state, metrics = lax.scan(functools.partial(update, limit), run.state, rows)
            broken = ~(jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.gradient_norm)) & (numbers <= limit)
            good = (~jnp.any(broken) & _all_finite(state.params)) | (limit == 0)
            low = jnp.where(good, limit, low)
            high = jnp.where(good, high, jnp.min(jnp.where(broken, numbers, limit)))
            settled, failed = good & (high == low + 1), high <= updates

            total = jnp.sum(metrics.loss) if loss.reduction == "sum" else jnp.sum(metrics.loss * share)
            shown = metrics.loss[jnp.minimum(low, updates - 1)]  # of the update that is not made
            total = jnp.where(failed, jnp.where(jnp.isfinite(shown), jnp.nan, shown), total)
            after = (jnp.nan, jnp.nan)
            if held_out is not None:
                after = evaluate(network, loss, state.params, held_out.inputs, held_out.targets, correct)
            row = (done + 1, total, jnp.sum(metrics.accuracy * share), jnp.mean(metrics.gradient_norm), *after)
            row = jax.tree.map(
                lambda x, column: jnp.asarray(x, column.dtype), History(*row, measure(state.params)), table
            )

            state = optimizer.observe(state, row.training_loss if held_out is None else row.validation_loss)
            judged = [criterion.update(memory, row) for criterion, memory in zip(stop, run.memories, strict=True)]
            ended = jnp.zeros((), jnp.int32)
            for i in reversed(range(len(stop))):
                ended = jnp.where(judged[i][1], 2 + i, ended)
            best = run.best
            if best is not None:
                score = scores[0](row).astype(best.score.dtype)
                latest = Best(state.params, done + 1, score)
                best = _where(~failed & (score < best.score), latest, best)
            after = Run(
                state,
                tuple(memory for memory, _ in judged),
                best,
                done + 1,
                jnp.where(failed, 1, ended),
                jnp.where(failed, done * updates + high, 0),
                shown.astype(run.shown.dtype),
            )
            written = jax.tree.map(lambda column, x: column.at[done - first].set(x), table, row)
            run, table = _where(settled, (after, written), (run, table))
            return run, table, jnp.where(settled, 0, low), jnp.where(settled, updates + 1, high)

        def unfinished(carry):
            run, *_ = carry
            return (run.epoch - first < count) & (run.ended == 0)

        table = History(
            jnp.zeros(length, jnp.int32),
            *(jnp.full(length, jnp.nan, dtype) for _ in History._fields[1:-1]),
            _empty(jax.eval_shape(measure, run.state.params), length),
        )
        none, beyond = jnp.zeros((), jnp.int32), jnp.asarray(updates + 1, jnp.int32)
        run, table, *_ = lax.while_loop(unfinished, epoch, (run, table, none, beyond))
        return run, table, run.epoch - first

    return start, advance


_NOISE = 2**32 - 1  # folded into the key of the batches, where epochs never come so far


def _measure(network: Network, loss: Loss, track, training: Batch, params: Params) -> dict[str, Any]:
    """What is tracked, at `params`."""
    asked = tuple(name for name, function in track if function is None)
    found = quantities.compute(network, loss, params, training.inputs, training.targets, asked) if asked else {}
    inputs = training.inputs if len(network.inputs) > 1 else training.inputs[network.inputs[0][0]]
    for name, function in track:
        if function is not None:
            try:
                found[name] = jax.tree.map(jnp.asarray, function(params, inputs, training.targets))
            except Exception as error:
                error.add_note(f"while measuring {name!r}, which fit was asked to track, inside a compiled program")
                raise
    return found


def _empty(row: dict[str, Any], length: int) -> dict[str, Any]:
    """A table of `length` rows for what is tracked: nan, or 0 where it is of integers."""
    needed = length * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(row))
    if needed > BUDGET:
        raise ValueError(
            f"track: {', '.join(row)} of {length} epochs would take {said_bytes(needed)} of memory, above "
            f"{said_bytes(BUDGET)}; lower chunk, or track what is smaller"
        )
    missing = lambda x: jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0  # noqa: E731
    return jax.tree.map(lambda x: jnp.full((length, *x.shape), missing(x), x.dtype), row)


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _all_finite(params: Params) -> Array:
    return functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)))


def _accuracy(correct: Correct | None, outputs: Array, targets: Array, weights: Array | None) -> Array:
    dtype = at_least_float32(outputs.dtype)
    if correct is None:
        return jnp.full((), jnp.nan, dtype)
    right = correct(outputs, targets).astype(dtype)
    if right.shape != outputs.shape[:1]:
        raise ValueError(f"correct: expected shape {outputs.shape[:1]}, one answer for each example, got {right.shape}")
    if weights is None:
        return jnp.mean(right)
    return jnp.sum(right * weights.astype(dtype)) / jnp.sum(weights.astype(dtype))


def _norm(grads: Params) -> Array:
    leaves = jax.tree.leaves(grads)
    dtype = at_least_float32(leaves[0].dtype)
    return jnp.sqrt(sum(_sum(leaf.astype(dtype) ** 2) for leaf in leaves))


def _sum(x: Array) -> Array:
    # Columns first, as a product with ones: on CPU, XLA adds up a matrix one element at a time, which in a small
    # network's update took as long as its largest product.
    if x.ndim == 2:
        x = lax.dot(jnp.ones(x.shape[0], x.dtype), x, precision=lax.Precision.HIGHEST)
    return jnp.sum(x)
