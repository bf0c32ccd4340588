"""The training loop: one compiled program of a fixed number of epochs, called until all are done.

Letters: Q examples, R inputs, S outputs, B batch size, U updates an epoch, E epochs. The loop knows one thing: a step
`(state, batch) -> (state, metrics)`. Epochs run inside compiled scans, `chunk` of them a call; what belongs to the
outside (progress, stopping, saving) happens between the calls. One program serves a run of any length.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import optimizers, registry
from functional_nn.gradients.backprop import objective, value_and_grad
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params, forward
from functional_nn.optimizers.first_order import Optimizer
from functional_nn.precision import at_least_float32
from functional_nn.training.minibatches import BatchPlan, minibatch

Gradient = Callable[[Network, Loss], Callable[..., tuple[Array, Params]]]
Correct = Callable[[Array, Array], Array]  # (outputs, targets) -> (Q,) booleans


class Batch(NamedTuple):
    """inputs {name: (B, R)}, targets (B, S), weights (B,) of the examples or None."""

    inputs: dict[str, Array]
    targets: Array
    weights: Array | None = None


class Metrics(NamedTuple):
    """Scalars: the loss, the share of examples classified rightly (nan where that has no sense), ||dF/dparams||."""

    loss: Array
    accuracy: Array
    gradient_norm: Array


class History(NamedTuple):
    """One value an epoch, NumPy arrays (E,).

    training_loss and training_accuracy are those of the epoch's examples, each measured just before the update that
    used it (for `batch`, exactly those before the epoch); gradient_norm is the mean over the epoch's updates;
    validation_* are measured after the epoch. nan where there is nothing to say.
    """

    epoch: np.ndarray
    training_loss: np.ndarray
    training_accuracy: np.ndarray
    gradient_norm: np.ndarray
    validation_loss: np.ndarray
    validation_accuracy: np.ndarray


class FitResult(NamedTuple):
    """The last state, the history, and how it ended: "completed", or "diverged" (the epoch's loss was not finite)."""

    state: Any
    history: History
    status: Literal["completed", "diverged"]

    @property
    def params(self) -> Params:
        """The trained parameters."""
        return self.state.params


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
) -> Callable:
    """`(state, batch) -> (state, metrics)`, pure, to be compiled by whoever calls it. `correct` as in `fit`."""
    gradients_of = gradient(network, loss)

    def step(state, batch: Batch):
        value, grads = gradients_of(state.params, batch.inputs, batch.targets, batch.weights)
        # The same forward pass as the gradient's; the compiler keeps one of them.
        outputs = forward(network, state.params, batch.inputs, {}).activations[network.output.name]
        accuracy = _accuracy(correct or loss.correct, outputs, batch.targets, batch.weights)
        return optimizer.update(state, grads), Metrics(value, accuracy, _norm(grads))

    return step


def evaluate(
    network: Network, loss: Loss, params: Params, inputs: Inputs, targets: Array, correct: Correct | None = None
) -> tuple[Array, Array]:
    """(F, accuracy) over all examples at once; accuracy is nan where there are no right answers.

    inputs (Q, R) or {name: (Q, R)}, targets (Q, S); `correct` as in `fit`. Raises ValueError as `backpropagate`.
    """
    loss.check_outputs(network.output.activation)
    inputs = network.prepare(params, inputs)
    targets = network.prepare_targets(inputs, targets)
    outputs = forward(network, params, inputs, {}).activations[network.output.name]
    return objective(network, loss)(params, inputs, targets), _accuracy(correct or loss.correct, outputs, targets, None)


def fit(
    network: Network,
    loss: Loss,
    optimizer: Optimizer,
    inputs: Inputs,
    targets: Array,
    *,
    key: Array,
    epochs: int,
    plan: BatchPlan | None = None,
    validation: tuple[Inputs, Array] | None = None,
    params: Params | None = None,
    gradient: Gradient | Literal["manual", "automatic"] = "manual",
    correct: Correct | None = None,
    chunk: int = 10,
    on_chunk: Callable[[Any, History], None] | None = None,
) -> FitResult:
    """Trains `network` on inputs (Q, R) or {name: (Q, R)} and targets (Q, S).

    key: for the initial parameters (unless `params` are given) and the batches. plan: `training.batch()`,
    `minibatch(32)` (the default, smaller where there are fewer examples) or `stochastic()`. validation: a pair
    (inputs, targets), measured after every epoch. gradient: by hand, by `jax.grad`, or your own
    `(network, loss) -> value_and_grad`. correct(outputs, targets) -> (Q,) says which examples are right,
    `losses.largest` for one; by default the loss's own rule. on_chunk(state, history so far) is called after every
    `chunk` epochs, outside the compiled program.

    Compiles one program, whatever `epochs` is. Stops after the first epoch whose loss is not finite. Raises
    ValueError for data or settings that do not fit, before anything is compiled.
    """
    for name, value in (("epochs", epochs), ("chunk", chunk)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    if isinstance(gradient, str) and gradient not in GRADIENTS:
        raise ValueError(registry.unknown("gradient", gradient, GRADIENTS))
    gradient = GRADIENTS.get(gradient, gradient) if isinstance(gradient, str) else gradient

    loss, optimizer = losses.get(loss), optimizers.get(optimizer)
    if plan is not None and not isinstance(plan, BatchPlan):
        raise TypeError(f"plan: expected training.batch(), minibatch(size) or stochastic(), got {plan!r}")
    if validation is not None and not (isinstance(validation, tuple | list) and len(validation) == 2):
        raise TypeError(f"validation: expected a pair (inputs, targets), got {type(validation).__name__}")

    init_key, plan_key = jax.random.split(key)
    params = network.init(init_key) if params is None else params
    training = _checked(network, loss, params, inputs, targets)
    held_out = None
    if validation is not None:
        try:
            held_out = _checked(network, loss, params, *validation)
        except ValueError as error:
            raise ValueError(f"validation {error}") from None
    plan = plan or minibatch(min(32, training.targets.shape[0]))
    plan.updates(training.targets.shape[0])  # refuses a batch larger than the data before anything is compiled

    step = train_step(network, loss, optimizer, gradient, correct)
    evaluation = functools.partial(evaluate, network, loss, correct=correct)
    run = jax.jit(functools.partial(_run_chunk, step, evaluation, loss.reduction, plan, min(chunk, epochs)))
    state, rows, done = optimizer.init(params), [], 0
    while done < epochs:
        count = min(chunk, epochs - done)
        state, table, ran = run(state, training, held_out, plan_key, done, count)
        rows.append(jax.tree.map(lambda column, ran=ran: np.asarray(column)[: int(ran)], table))
        done += int(ran)
        history = History(*(np.concatenate(columns) for columns in zip(*rows, strict=True)))
        if on_chunk:
            on_chunk(state, history)
        if not np.isfinite(history.training_loss[-1]):
            return FitResult(state, history, "diverged")
    return FitResult(state, history, "completed")


def _run_chunk(step, evaluation, reduction, plan, length, state, training, held_out, key, first, count):
    """Up to `length` epochs from epoch `first`: `count` is traced, so that the last, shorter chunk compiles nothing."""
    examples = training.targets.shape[0]
    dtype = at_least_float32(training.targets.dtype)
    filled = plan.weights(examples)
    counts = np.array([examples]) if plan.size is None else np.full(plan.updates(examples), plan.size)
    counts = counts if filled is None else filled.sum(axis=1, dtype=np.float64)
    share = jnp.asarray(counts / examples, dtype)  # of the epoch's examples, by update

    def update(state, batch):
        rows, weights = batch
        weights = None if weights is None else weights.astype(training.targets.dtype)
        picked = jax.tree.map(lambda x: x[rows], (training.inputs, training.targets))
        return step(state, Batch(*picked, weights))

    def epoch(carry):
        done, state, table = carry
        state, metrics = lax.scan(update, state, (plan.indices(key, first + done, examples), filled))
        metrics = jax.tree.map(lambda m: m.astype(dtype), metrics)
        total = jnp.sum(metrics.loss) if reduction == "sum" else jnp.sum(metrics.loss * share)
        after = (jnp.nan, jnp.nan)
        if held_out is not None:
            after = evaluation(state.params, held_out.inputs, held_out.targets)
        row = (first + done + 1, total, jnp.sum(metrics.accuracy * share), jnp.mean(metrics.gradient_norm), *after)
        table = History(
            *(column.at[done].set(jnp.asarray(x, column.dtype)) for column, x in zip(table, row, strict=True))
        )
        return done + 1, state, table

    def unfinished(carry):
        done, _, table = carry
        return (done < count) & ((done == 0) | jnp.isfinite(table.training_loss[done - 1]))

    table = History(jnp.zeros(length, jnp.int32), *(jnp.full(length, jnp.nan, dtype) for _ in History._fields[1:]))
    ran, state, table = lax.while_loop(unfinished, epoch, (jnp.zeros((), jnp.int32), state, table))
    return state, table, ran


def _checked(network: Network, loss: Loss, params: Params, inputs: Inputs, targets: Array) -> Batch:
    prepared = network.prepare(params, inputs)
    targets = network.prepare_targets(prepared, targets)
    loss.check_targets(targets)
    return Batch(prepared, targets)


def _accuracy(correct: Correct | None, outputs: Array, targets: Array, weights: Array | None) -> Array:
    dtype = at_least_float32(outputs.dtype)
    if correct is None:
        return jnp.full((), jnp.nan, dtype)
    right = correct(outputs, targets).astype(dtype)
    if weights is None:
        return jnp.mean(right)
    return jnp.sum(right * weights.astype(dtype)) / jnp.sum(weights.astype(dtype))


def _norm(grads: Params) -> Array:
    leaves = jax.tree.leaves(grads)
    dtype = at_least_float32(leaves[0].dtype)
    return jnp.sqrt(sum(jnp.sum(leaf.astype(dtype) ** 2) for leaf in leaves))
