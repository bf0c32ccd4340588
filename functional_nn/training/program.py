"""The compiled program of training: epochs of one run, or of a whole population of runs side by side.

Letters: Q examples, B batch size, U updates an epoch. One run knows one thing: a step `(state, batch) -> (state,
metrics)`. `parts` are what an epoch of one run is made of; `program` strings them together, for a run alone or, each
part vmapped, for lanes that all are in the same epoch. Divergence and stopping are data in what the program carries.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from functional_nn import checks, optimizers, platforms, precision, reductions
from functional_nn.gradients import quantities, rules
from functional_nn.gradients.backprop import (
    Along,
    example_losses,
    loss_value,
    objective,
    value_and_grad,
    value_and_outputs,
)
from functional_nn.gradients.methods.one_layer import perceptron
from functional_nn.gradients.views import BUDGET, Examples, in_blocks, said_bytes
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import (
    Inputs,
    Network,
    Params,
    check_statistics,
    dtype_of,
    for_lanes,
    forward,
    inference_mode,
    renewed,
)
from functional_nn.networks.stored import Labels, Rows, Windows, at_most_32_bits, in_place, placed, taken, whole
from functional_nn.optimizers.optimizer import BatchFunctions, Optimizer
from functional_nn.optimizers.regularizers import Regularizer
from functional_nn.optimizers.second_order import Problem, SecondOrder
from functional_nn.optimizers.wrappers import iterate, with_iterate, with_statistics
from functional_nn.precision import at_least_float32
from functional_nn.training import keys
from functional_nn.training.augmentation import Augmented, augmented
from functional_nn.training.clipping import Clipped
from functional_nn.training.minibatches import BatchPlan
from functional_nn.training.problems import of_batch
from functional_nn.training.termination import Criterion

# May also have `random`, True where it takes a key at every update, and `with_outputs(network, loss)`, see there.
Gradient = Callable[[Network, Loss], Callable[..., tuple[Array, Params]]]
Correct = Callable[[Array, Array], Array]  # (outputs, targets) -> (Q,) booleans

COMPLETED, DIVERGED, STOPPED = 0, 1, 2  # how a run ended; STOPPED + i by the i-th criterion


@dataclass(frozen=True)
class OfState:
    """A function of the optimizer's state, to be tracked in the place of one of (params, inputs, targets)."""

    function: Callable[[Any], Any]

    def __call__(self, state: Any) -> Any:
        return self.function(state)


def of_state(function: Callable[[Any], Any]) -> OfState:
    """For `fit(track={"mu": of_state(lambda state: state.memory.mu)})`: what an optimizer's state has after each epoch,
    such as Levenberg-Marquardt's mu, or Bayesian regularization's `state.memory.evidence.gamma`.

    Raises TypeError for what is no function.
    """
    if not callable(function):
        raise TypeError(f"of_state: expected a function of the optimizer's state, got {type(function).__name__}")
    return OfState(function)


class Batch(NamedTuple):
    """inputs {name: (B, *P, R)}, targets (B, *P, S); weights (B,) of the examples, or (B, *P) of positions; a key for
    dropout and for gradients that are random, a scale of the gradient, each where there is one. A whole data set may
    have `networks.stored` ones in the places of inputs and targets.
    """

    inputs: dict[str, Array]
    targets: Array
    weights: Array | None = None
    key: Array | None = None
    scale: Array | None = None


class Metrics(NamedTuple):
    """Scalars, of one batch. loss: F; weight: the examples' weights in all, which without weights is their number;
    right: of those that are classified rightly, None where that has no sense; gradient_norm: ||dF/dparams||.
    """

    loss: Array
    weight: Array
    right: Array | None
    gradient_norm: Array

    @property
    def accuracy(self) -> Array | None:
        """The share of examples classified rightly, each by its weight."""
        return _share(self.right, self.weight)


class History(NamedTuple):
    """One value an epoch, NumPy arrays (E,).

    training_loss and training_accuracy are those of the epoch's examples, each measured just before the update that
    used it (for `batch`, exactly those before the epoch), augmented, with neurons dropped where there is dropout and
    without the regularizer's penalty; gradient_norm, the penalty's gradient included, is the mean over the epoch's
    updates; validation_* are measured after the epoch, as the data are and no neuron dropped; each example counts by
    its weight. Each loss has the precision of the parameters. nan where there is nothing to say; None within compiled
    programs. tracked: {name: what `fit` was asked to track, each of its arrays (E, ...)}, measured after the epoch on
    all training examples.
    """

    epoch: np.ndarray
    training_loss: np.ndarray
    training_accuracy: np.ndarray | None
    gradient_norm: np.ndarray
    validation_loss: np.ndarray | None
    validation_accuracy: np.ndarray | None
    tracked: dict[str, Any] = {}


class Best(NamedTuple):
    """The parameters of the best epoch so far, which that was, and its score, the lowest; epoch 0 before any score was
    finite: then nothing is best.
    """

    params: Params
    epoch: Array
    score: Array


class Run(NamedTuple):
    """All that training needs to go on, and how it ended: 0 not yet, 1 diverged, 2 + i by the i-th criterion, below 0
    by the second-order method itself, with its status.

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


@dataclass(frozen=True, kw_only=True)
class Common:
    """Everything but arrays that runs side by side have in common; hashable, where the user's own callables are.

    plan: None until it is known how many examples there are (`loop.suited`). mesh: the devices over which each batch is
    laid, None for one. columns: of lanes, whose hand-written gradient and evaluation go through the network
    `for_lanes`, in columns or not; None for a run alone. augment: what each update's inputs go through first.
    """

    network: Network
    loss: Loss
    plan: BatchPlan | None
    stop: tuple[Criterion, ...]
    gradient: Gradient
    correct: Correct | None
    track: tuple[tuple[str, Callable | None], ...]
    mesh: Mesh | None = None
    columns: bool | None = None
    augment: Augmented = ()

    def settings(self, **own: Any) -> "Settings":
        """A run's, with what is its own."""
        return Settings(**_in_common(self), **own)


@dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Everything but arrays that a run depends on: checked by `loop.settle`, and handed on whole. mask as in
    `train_step`.
    """

    optimizer: Optimizer | SecondOrder
    regularizer: Regularizer | None
    mask: Any = None

    @property
    def common(self) -> Common:
        """What is not its own."""
        return Common(**_in_common(self))


def _in_common(settings: Common) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in fields(Common)}


def automatic(network: Network, loss: Loss) -> Callable[..., tuple[Array, Params]]:
    """`jax.value_and_grad` of the objective: the other gradient, for comparisons."""
    return jax.value_and_grad(objective(network, loss))


def _automatic_with_outputs(network: Network, loss: Loss) -> Callable[..., tuple[Array, Array, Params]]:
    differentiated = jax.value_and_grad(value_and_outputs(network, loss), has_aux=True)

    def value_outputs_and_gradients(*data):
        (value, outputs), gradients = differentiated(*data)
        return value, outputs, gradients

    return value_outputs_and_gradients


automatic.with_outputs = _automatic_with_outputs

# Those with names.
GRADIENTS: dict[str, Gradient] = {"manual": value_and_grad, "automatic": automatic, "perceptron": Along(perceptron)}


def along(gradient: Gradient, rule: rules.Given) -> Gradient:
    """The gradient by that rule. Raises ValueError for one that is not by hand, which knows of no rules."""
    rule = rules.get(rule)
    if rules.is_exact(rule):
        return gradient
    if isinstance(gradient, Clipped):
        return dataclasses.replace(gradient, rule=rule)
    if gradient is not value_and_grad:
        raise ValueError(
            f"rule: {rules.written(rule)} is a way back by hand; it goes with gradient='manual' or clipped(...), got "
            f"{next((name for name, known in GRADIENTS.items() if known == gradient), gradient)!r}"
        )
    return Along(rule)


def rule_of(gradient: Gradient) -> rules.Rule | rules.ByLayer:
    """The rule by which a gradient is made."""
    return getattr(gradient, "rule", rules.exact)


def train_step(
    network: Network,
    loss: Loss,
    optimizer: Optimizer | SecondOrder,
    gradient: Gradient = value_and_grad,
    correct: Correct | None = None,
    regularizer: Regularizer | None = None,
    mask: Any = None,
    rule: rules.Given = "exact",
) -> Callable:
    """`(state, batch) -> (state, metrics)`, pure, to be compiled by whoever calls it. `correct` as in `fit`.

    The step takes a `training.Batch`, inputs by name. mask: booleans in the parameters' structure; where False, the
    gradient is 0 and nothing moves. rule: as in `fit`; what it learns is to be in the parameters (`rules.begin`).
    Raises ValueError where a network with dropout, or a gradient with noise, gets no key.
    """
    loss, optimizer, gradient = losses.get(loss), optimizers.get(optimizer), along(gradient, rule)
    correct = correct or loss.correct

    def along_gradient() -> Callable:
        gradients_of, random_step = with_outputs(gradient, network, loss), needs_key(network, gradient)

        def measured(params: Params, batch: Batch) -> tuple[Metrics, Params]:
            if random_step and batch.key is None:
                what = "network with dropout" if network.drops else "random gradient"
                raise ValueError(f"batch: a {what} needs a key; give Batch(..., key=key)")
            random = (batch.key,) if random_step else ()
            value, outputs, grads = gradients_of(params, batch.inputs, batch.targets, batch.weights, *random)
            if batch.scale is not None:
                grads = jax.tree.map(lambda g: g * batch.scale.astype(g.dtype), grads)
            if regularizer is not None:
                grads = jax.tree.map(jnp.add, grads, regularizer.gradient(params))
            if mask is not None:
                grads = jax.tree.map(lambda g, keep: jnp.where(keep, g, 0), grads, mask)
            counted = _counted(correct, outputs, batch.targets, batch.weights)
            return Metrics(value, *counted, _norm(grads)), grads

        return measured

    def problem() -> Callable:
        problem_of = of_batch(network, loss, regularizer)
        return lambda batch: problem_of(batch.inputs, batch.targets, batch.weights)

    def metrics(params: Params, value: Array, flat: Array, batch: Batch) -> Metrics:
        """value, flat: of the problem, so that the penalty is in both; F is told without it. Outputs are in no state of
        a method: they are computed here.
        """
        outputs = forward(network, params, batch.inputs, {}).activations[network.output.name]
        counted = _counted(correct, outputs, batch.targets, batch.weights)
        penalty = 0 if regularizer is None else regularizer.value(params).astype(value.dtype)
        return Metrics(value - penalty, *counted, jnp.linalg.norm(flat))

    step = optimizer.training_step(BatchFunctions(along_gradient, problem, metrics))
    if any(layer.activation.running for layer in network.layers):
        return _renewing(network, optimizer, step)
    return step


def _renewing(network: Network, optimizer: Optimizer, step: Callable) -> Callable:
    """The step, with running statistics renewed by the batch; no optimizer moves them."""

    def renewing(state, batch: Batch):
        # the forward pass that the gradient makes, too: the compiler makes it once
        trace = forward(network, optimizer.point(state), batch.inputs, {}, batch.key)
        params = renewed(network, iterate(state), trace)
        after, metrics = step(with_iterate(state, params), batch)
        return with_iterate(after, with_statistics(iterate(after), params)), metrics

    return renewing


def with_outputs(gradient: Gradient, network: Network, loss: Loss) -> Callable[..., tuple[Array, Array, Params]]:
    """`(params, inputs, targets, weights=None, key=None) -> (F, outputs, gradients)`: what the gradient says itself, by
    its own `with_outputs`, or a user's (F, gradients) and a forward pass for the outputs.
    """
    # what functools.wraps copied from another gradient is not this one's own
    if hasattr(gradient, "with_outputs") and not hasattr(gradient, "__wrapped__"):
        return gradient.with_outputs(network, loss)
    gradients_of = gradient(network, loss)

    def value_outputs_and_gradients(params, inputs, targets, weights=None, *key):
        value, grads = gradients_of(params, inputs, targets, weights, *key)
        outputs = forward(network, params, inputs, {}, *(key or (None,))).activations[network.output.name]
        return value, outputs, grads

    return value_outputs_and_gradients


def needs_key(network: Network, gradient: Gradient) -> bool:
    """True where every update draws something."""
    return network.drops or getattr(gradient, "random", False)


def evaluate(
    network: Network,
    loss: Loss,
    params: Params,
    inputs: Inputs | Windows,
    targets: Array | None = None,
    correct: Correct | None = None,
    *,
    weights: Array | None = None,
    class_weights: Any = None,
) -> tuple[Array, Array]:
    """(F, accuracy) over all examples, measured in blocks; accuracy is nan where there are no right answers. Batch
    normalization is by its running statistics.

    inputs (Q, *P, R) or {name: (Q, *P, R)}, targets (Q, *P, S) or integer labels (Q, *P), of which every position
    counts, or `fnn.windows(...)` in the place of both; `correct`, `weights` and `class_weights` as in `fit`. Raises
    ValueError as `backpropagate`.
    """
    loss = losses.get(loss)
    loss.check_outputs(network.output.activation)
    loss.check_classes(network.output.size)
    check_statistics(network, params)
    data = prepare_batch(network, loss, params, inputs, targets, weights, class_weights, in_place)
    value, accuracy = _evaluate(network, loss, params, data, correct)
    return value, np.asarray(np.nan, at_least_float32(value.dtype)) if accuracy is None else accuracy


def prepare_batch(
    network, loss, params, inputs, targets, weights=None, class_weights=None, place: Callable = placed
) -> Batch:
    """Data as the network and the loss take it, checked; the weights of examples are those of their classes, too.

    Windows of a stream stay what they are, and so do integer labels of positions, of which the classes of a whole data
    set would take as many times their room. place: `in_place`, where large arrays of the host, and their labels,
    are to stay where and what they are.
    """
    stream = _stream(inputs)
    if isinstance(targets, Labels):  # prepared before
        targets = targets.numbers if stream is None else None
    if stream is not None:
        if targets is not None or class_weights is not None:
            given = "class_weights" if targets is None else "targets"
            raise ValueError(f"{given}: windows of a stream bring their targets along, one at each position; give None")
        prepared, coded = _prepare_stream(network, loss, stream, dtype_of(params))
    else:
        prepared = network.prepare(params, inputs, place)
        coded = _labels(network, loss, params, prepared, targets)
        if coded is None:
            coded = network.prepare_targets(prepared, targets, loss, dtype_of(params), place)
    if class_weights is not None:
        if isinstance(coded, Labels):
            of_class = losses.weights_of_labels(coded.numbers, coded.outputs, class_weights)
        else:
            # integers at positions look like rows of classes, unless they are coded
            given = targets if isinstance(coded, Rows) or coded.ndim == 2 else coded
            of_class = losses.class_weights(given, class_weights)
        own = None if weights is None else network.prepare_weights(prepared, weights)
        weights = of_class if own is None else losses.spread(own, of_class.shape) * of_class
    # what one label is coded as, all are
    loss.check_targets(coded[:1] if isinstance(coded, Labels) else targets if isinstance(coded, Rows) else coded)
    return Batch(prepared, coded, network.prepare_weights(prepared, weights))


def _stream(inputs: Any) -> Windows | None:
    given = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    return next((x for x in given if isinstance(x, Windows)), None)


def _labels(network, loss, params, prepared, targets) -> Labels | None:
    """Integer labels (Q, *P) of several classes, checked, where outputs have positions or inputs are read in place;
    None of other targets.
    """
    checks.numeric("targets", targets)
    each = (len(next(iter(prepared.values()))), *network.shapes[network.output.name][:-1])
    outputs = network.output.size
    if targets.shape != each or outputs == 1 or targets.dtype.kind not in "biu":
        return None
    if len(each) == 1 and not any(isinstance(x, Rows) for x in prepared.values()):
        return None
    losses.check_labels(targets, outputs)
    return Labels(at_most_32_bits(targets), loss, outputs, dtype_of(params))


def _prepare_stream(network, loss, stream: Windows, dtype) -> tuple[dict[str, Windows], Labels]:
    """Its windows, and those of the tokens that follow. Raises ValueError where they are not what the network reads
    and tells.
    """
    name, outputs = network.inputs[0][0], network.output.size
    reads, gives = network.shapes[name], network.shapes[network.output.name]
    one = len(network.inputs) == 1 and name in network.tokens
    if not one or reads != (stream.context,) or gives[:-1] != reads or outputs == 1:
        told = "tokens" if one else "inputs"
        raise ValueError(
            f"inputs: windows of {stream.context} tokens are for a network of one input of as many tokens and outputs "
            f"({stream.context}, S) at each, got {told} of shape {reads} and outputs of shape {gives}"
        )
    least = min(network.tokens[name], outputs)
    if checks.is_concrete(stream.tokens):
        index = checks.first(stream.tokens, lambda block: (block < 0) | (block >= least))
        if index is not None:
            found = int(np.asarray(stream.tokens)[index])
            raise ValueError(f"inputs: expected tokens 0 to {least - 1}, got {found} at index {index[0]}")
    tokens = at_most_32_bits(stream.tokens)  # one copy, of which inputs and targets are windows
    following = Windows(tokens, stream.context, 1)
    return {name: Windows(tokens, stream.context)}, Labels(following, loss, outputs, dtype)


def evaluation_block(network: Network, dtype) -> int:
    """How many examples are measured at once."""
    return max(
        1, platforms.here().evaluated // (np.dtype(dtype).itemsize * (network.trace_size + copied_size(network)))
    )


@functools.lru_cache(maxsize=256)
def copied_size(network: Network) -> int:
    """How many numbers of one example a convolution copies where it is made a product of windows side by side, of the
    layer in which they are most; 0 where all is read as it stands.
    """
    most = 0
    for layer in network.layers:
        for source, by in layer.weighted:
            if by.tokens is None:
                like = (
                    jax.ShapeDtypeStruct((1, *shape), jnp.float32)
                    for shape in (network.net_shapes[layer.name], network.shapes[source])
                )
                read = jax.eval_shape(lambda s, x, by=by: by.unfold(s, x)[1], *like).size
                most = max(most, read if read > network.sizes[source] else 0)
    return most


def _evaluate(network, loss, params, data: Batch, correct) -> tuple[Array, Array | None]:
    """F, and the accuracy where there are right answers."""
    correct, network = correct or loss.correct, inference_mode(network)
    examples = len(data.targets)
    block = evaluation_block(network, data.targets.dtype)

    def traced(inputs):
        trace = forward(network, params, inputs, {})
        return trace, trace.activations[network.output.name]

    if examples <= block:
        data = whole(data)
        trace, outputs = traced(data.inputs)
        weight, right = _counted(correct, outputs, data.targets, data.weights)
        value = loss_value(network, loss, trace, data.targets, data.weights)
        return value, _share(right, weight)

    def measure(some: Examples):
        trace, outputs = traced(some.inputs)
        each = example_losses(network, loss, trace, some.targets).astype(some.part.dtype)
        weight, right = _counted(correct, outputs, some.targets, some.part)
        own = losses.spread(some.part, each.shape)
        # what fills a block up weighs nothing, whatever its loss is
        return (), (jnp.sum(jnp.where(own > 0, each * own, 0)), weight, right)

    wide = at_least_float32(data.targets.dtype)
    part = jnp.ones(examples, wide) if data.weights is None else data.weights
    numbers = jnp.arange(examples, dtype=jnp.int32)
    _, (total, weight, right) = in_blocks(measure, Examples(data.inputs, data.targets, part, numbers), block)
    value = total / jnp.where(weight > 0, weight, 1) if loss.reduction == "mean" else total
    value = value * loss.of_all(math.prod(data.targets.shape[1:-1]))
    return value.astype(data.targets.dtype), _share(right, weight)


# What an epoch of one run is made of ----------------------------------------------------------------------------------


def start(settings: Settings, params: Params, training: Batch | None = None) -> Run:
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


class Parts(NamedTuple):
    """rows(key, epoch, state, training) -> what the epoch's updates read, each array (U, ...);
    update(state, row, training) -> (state, Metrics): one update;
    judge(search, before, state, metrics) -> (Search, settled): after a pass of `search.limit` updates over the epoch;
    close(run, state, metrics, search, training, held_out) -> (Run, History): the epoch's end, and its row; of two
    parts, where an epoch is trained on in several chunks: over(metrics, search, training) -> Found, of these updates,
    and end(run, state, found, training, held_out), failed counted over the whole run.
    """

    rows: Callable
    update: Callable
    judge: Callable
    close: Callable
    over: Callable
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


class Found(NamedTuple):
    """Of an epoch's updates: metrics of all of them, scalars; shown: the loss of the last that was tried; failed: which
    was not made, 0 where all were.
    """

    metrics: Metrics
    shown: Array
    failed: Array


def parts(settings: Settings, examples: int, dtype) -> Parts:
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
        laid_out if _by_hand(settings.gradient) else network,
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
        first = jnp.min(jnp.where(~_finite(metrics) & (numbers <= limit), numbers, high))
        broken = first <= limit
        # A finite gradient may still have made the parameters infinite; by which update is searched for by halving.
        good = ~broken & (_as_finite(before.params, state.params) | (limit == 0))
        low, high = jnp.where(good, limit, low), jnp.where(broken, first, jnp.where(good, high, limit))
        limit = jnp.where(broken, first - 1, (low + high) // 2)
        return Search(low, high, limit), good & (high == low + 1)

    def over(metrics: Metrics, search: Search, training: Batch) -> Found:
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
        return Found(found, metrics.loss[seen - 1], jnp.where(search.high <= updates, search.high, 0))

    def close(run: Run, state, metrics: Metrics, search: Search, training: Batch, held_out: Batch | None):
        found = over(metrics, search, training)
        failed = jnp.where(found.failed > 0, run.epoch * updates + found.failed, 0)
        return end(run, state, found._replace(failed=failed), training, held_out)

    def end(run: Run, state, found: Found, training: Batch, held_out: Batch | None):
        done, broken, shown, metrics = run.epoch, found.failed > 0, found.shown, found.metrics
        total = jnp.where(broken, jnp.where(jnp.isfinite(shown), jnp.nan, shown), metrics.loss)
        after = (None, None)
        if held_out is not None:
            after = _evaluate(laid_out, loss, state.params, held_out, settings.correct)
        columns = (total, metrics.accuracy, metrics.gradient_norm, *after)
        columns = (None if x is None else jnp.asarray(x, dtype) for x in columns)
        row = History(done + 1, *columns, _measure(settings, training, state, done + 1))

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
            best = where(~broken & (score < best.score), latest, best)
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

    return Parts(rows, update, judge, close, over, end)


def _by_hand(gradient: Gradient) -> bool:
    """Is it made of the network's connections, so that it may be of a network `for_lanes`?"""
    return gradient is value_and_grad or isinstance(gradient, Along)


# Strung together ------------------------------------------------------------------------------------------------------


def program(settings: Settings, length: int, alone: bool = True) -> Callable:
    """advance(run, training, held_out, key, count) -> (Run, table, epochs run), for one run.

    Runs up to `count` <= `length` epochs; `count` may be traced, so that a last, shorter chunk compiles nothing. The
    table is a History of arrays (length,), after the end 0, and the last row again and again where it is not `alone`.
    alone: not to be vmapped.
    """
    walk = as_far_as if alone else all_of_it

    def advance(run: Run, training: Batch, held_out: Batch | None, key: Array, count):
        own = parts(settings, *training.targets.shape[:1], training.targets.dtype)
        updates = settings.plan.updates(training.targets.shape[0])
        first = run.epoch

        def epoch(carry):
            run, table, metrics, search = carry
            rows = own.rows(key, run.epoch, run.state, training)
            update = functools.partial(own.update, training=training)
            state, metrics = walk(update, search.limit, run.state, metrics, rows)
            search, settled = own.judge(search, run.state, state, metrics)
            after, row = own.close(run, state, metrics, search, training, held_out)
            written = write(table, row, run.epoch - first)
            run, table, search = lax.cond(  # a choice of each array by itself takes longer to compile
                settled, lambda: (after, written, Search.begin(updates)), lambda: (run, table, search)
            )
            return run, table, metrics, search

        def unfinished(carry):
            run, *_ = carry
            return (run.epoch - first < count) & (run.ended == 0)

        metrics, search = blank(settings, training, updates), Search.begin(updates)
        table = _table(jax.eval_shape(own.close, run, run.state, metrics, search, training, held_out)[1], length)
        run, table, *_ = lax.while_loop(unfinished, epoch, (run, table, metrics, search))
        ran = run.epoch - first
        if alone:
            return run, table, ran
        written = jnp.minimum(jnp.arange(length, dtype=ran.dtype), jnp.maximum(ran - 1, 0))
        return run, jax.tree.map(lambda column: column[written], table), ran

    return advance


def lanes(common: Common, make: Callable[[Any], Settings], length: int, shared: bool, axes: Batch) -> Callable:
    """advance(run, values, training, held_out, key, first, count) -> (Run, table), for runs side by side.

    Every array of `run` and `values` has a leading axis of lanes (M, ...), those of the table a second one; make(one
    lane's values) -> its settings, which differ in traced numbers only. axes: 0 or None for what of the training data
    each lane has its own of. shared: one key, so one stream of batches and of noise, for all; else keys (M,). All
    lanes not ended are in epoch `first`; one that has ended stays bitwise as it is, and its rows are 0.
    """
    plan = common.plan

    def advance(run: Run, values, training: Batch, held_out: Batch | None, key: Array, first, count):
        examples = training.targets.shape[0 if axes.targets is None else 1]
        dtype = training.targets.dtype
        updates = plan.updates(examples)
        drawn = 0 if plan.importance is not None else None
        # weights of examples follow the indices, where there are any
        weighed = drawn if training.weights is None or (shared and axes.weights is None) else 0
        stream = (drawn if shared else 0, weighed, weighed, None if shared else 0)  # indices, weights, scale, key

        def each(part: str, *over: Any, out: Any = 0) -> Callable:
            """That part of every lane's epoch, with its own settings."""
            return jax.vmap(
                lambda value, *rest: getattr(parts(make(value), examples, dtype), part)(*rest), (0, *over), out
            )

        update, judge = each("update", 0, stream, axes), each("judge", 0, 0, 0, 1)
        close = each("close", 0, 0, 1, 0, axes, None)

        def rows(clock, state):
            if shared and weighed is None:  # as any lane would draw them
                return parts(make(jax.tree.map(lambda v: v[0], values)), examples, dtype).rows(
                    key, clock, None, training
                )
            out = tuple(None if axis is None else 1 for axis in stream)  # updates lead
            return each("rows", None if shared else 0, None, 0, axes, out=out)(values, key, clock, state, training)

        def epoch(carry):
            clock, run, table, metrics, search = carry
            going = run.ended == 0
            limit = jnp.where(going, search.limit, 0)
            state, metrics = all_of_it(
                lambda state, row: update(values, state, row, training),
                limit,
                run.state,
                metrics,
                rows(clock, run.state),
            )
            search, settled = judge(values, search, run.state, state, metrics)
            after, row = close(values, run, state, metrics, search, training, held_out)
            settled = jnp.all(settled | ~going)
            row = jax.vmap(where)(going, row, jax.tree.map(jnp.zeros_like, row))
            after = jax.vmap(where)(going, after, run)
            written, anew = write(table, row, clock - first), Search.begin(updates, going.shape)
            run, table, search = where(settled, (after, written, anew), (run, table, search))
            return clock + settled.astype(clock.dtype), run, table, metrics, search

        def unfinished(carry):
            clock, run, *_ = carry
            return (clock - first < count) & jnp.any(run.ended == 0)

        search = Search.begin(updates, run.ended.shape)
        metrics = blank(common, training, updates, *run.ended.shape)
        blanks = values, run, run.state, metrics, search, training, held_out
        table = _table(jax.eval_shape(close, *blanks)[1], length)
        clock = jnp.asarray(first, jnp.int32)
        _, run, table, *_ = lax.while_loop(unfinished, epoch, (clock, run, table, metrics, search))
        return run, table

    return advance


# A pass over an epoch: (update, limit, state, metrics, rows) -> (state, metrics), the metrics of updates up to the
# `limit`-th in the place of those of an earlier pass.


def as_far_as(update: Callable, limit: Array, state: Any, metrics: Metrics, rows: Any) -> tuple[Any, Metrics]:
    """Ends with the `limit`-th update, or one that is not finite: nothing has to be chosen, and no state kept."""
    limit = limit.astype(jnp.uint32)  # the compiler does not ask whether such numbers are below 0

    def step(carry):
        i, state, metrics, _ = carry
        state, found = update(state, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), rows))
        return i + 1, state, write(metrics, found, i), _finite(found)

    begin = jnp.zeros((), jnp.uint32), state, metrics, jnp.asarray(True)
    _, state, metrics, _ = lax.while_loop(lambda carry: (carry[0] < limit) & carry[3], step, begin)
    return state, metrics


def all_of_it(update: Callable, limit: Array, state: Any, metrics: Metrics, rows: Any) -> tuple[Any, Metrics]:
    """Makes all updates, and keeps no result beyond the `limit`-th: for lanes, each of which has its own (M,)."""
    numbers = jnp.arange(1, len(metrics.loss) + 1, dtype=jnp.int32)
    choose = jax.vmap(where) if limit.ndim else where

    def step(state, numbered):
        number, row = numbered
        after, found = update(state, row)
        # known before the update is computed, so that the choice costs no pass over the parameters of its own
        return choose(number <= limit, after, state), found

    state, found = lax.scan(step, state, (numbers, rows))
    made = numbers.reshape(-1, *(1,) * limit.ndim) <= limit[None]
    return state, jax.tree.map(lambda new, old: jnp.where(made, new, old), found, metrics)


def blank(settings: Common, training: Batch, *shape: int) -> Metrics:
    """Metrics of that shape before any update is made: (U,) of an epoch's, (U, M) of lanes."""
    column = jnp.zeros(shape, at_least_float32(training.targets.dtype))
    return Metrics(column, column, column if settings.correct or settings.loss.correct else None, column)


def _table(row: History, length: int) -> History:
    """A table of `length` such rows, all 0."""
    needed = length * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(row.tracked))
    if needed > BUDGET:
        raise ValueError(
            f"track: {', '.join(row.tracked)} of {length} epochs would take {said_bytes(needed)} of memory, above "
            f"{said_bytes(BUDGET)}; lower chunk, or track what is smaller"
        )
    return jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), row)


def write(table: History, row: History, at: Array) -> History:
    """The table with `row` at that place."""
    return jax.tree.map(lambda column, x: lax.dynamic_update_index_in_dim(column, x, at, 0), table, row)


def where(condition: Array, new: Any, old: Any) -> Any:
    """One tree or the other, by a scalar."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _measure(settings: Settings, training: Batch, state: Any, epoch: Array) -> dict[str, Any]:
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
            reads = (state,) if isinstance(function, OfState) else (params, *whole((inputs, training.targets)))
            try:
                found[name] = jax.tree.map(jnp.asarray, function(*reads))
            except Exception as error:
                error.add_note(f"while measuring {name!r}, which fit was asked to track, inside a compiled program")
                raise
    return found


def _finite(metrics: Metrics) -> Array:
    return jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.gradient_norm)


def _as_finite(before: Params, params: Params) -> Array:
    """True where every number is finite, or the infinity that it was before: a class may be masked by a bias -inf."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True)
    return functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(x) | (x == old)) for old, x in pairs))


def _counted(correct: Correct | None, outputs: Array, targets: Array, weights: Array | None):
    """The weight of all examples, which without weights is their number, and of those that are right, or None; of
    outputs with positions every position is one.
    """
    dtype, each = at_least_float32(outputs.dtype), outputs.shape[:-1]
    weights = None if weights is None else losses.spread(weights.astype(dtype), each)
    weight = jnp.asarray(math.prod(each), dtype) if weights is None else jnp.sum(weights)
    if correct is None:
        return weight, None

    def answers(a, t):
        right = correct(a, t)
        if right.shape != a.shape[:1]:
            of = "example" if len(each) == 1 else "position"
            raise ValueError(f"correct: expected shape {a.shape[:1]}, one answer for each {of}, got {right.shape}")
        return right

    right = losses.at_positions(answers, outputs, targets)
    if weights is None:
        return weight, jnp.sum(right.astype(jnp.int32) if right.dtype == bool else right).astype(dtype)
    return weight, jnp.sum(right.astype(dtype) * weights)


def _share(right: Array | None, weight: Array) -> Array | None:
    """right / weight, and 1 where all are right: compilers multiply by 1 / weight instead, which may round above 1."""
    return None if right is None else jnp.where(right >= weight, 1, right / weight)


def _norm(grads: Params) -> Array:
    leaves = jax.tree.leaves(grads)
    dtype = at_least_float32(leaves[0].dtype)
    return jnp.sqrt(sum(reductions.total(leaf.astype(dtype) ** 2) for leaf in leaves))
