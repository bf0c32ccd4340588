"""A network measured on data, in blocks: its loss, its accuracy, metrics of your own, and its confusion matrix.

Letters: Q examples, S outputs, P positions.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from functional_nn import checks, platforms
from functional_nn.gradients.backprop import example_losses, loss_value
from functional_nn.gradients.views import Examples, in_blocks
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params, check_statistics, forward, inference_mode
from functional_nn.networks.stored import Windows, in_place, whole
from functional_nn.precision import at_least_float32
from functional_nn.training.data import prepare_batch
from functional_nn.training.records import Batch, Correct, share

Metric = Callable[[Array, Array], ArrayLike]  # (outputs, targets) -> (Q,) numbers or booleans


@overload
def evaluate(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs | Windows,
    targets: ArrayLike | None = None,
    correct: Correct | None = None,
    *,
    weights: ArrayLike | None = None,
    class_weights: Any = None,
    metrics: None = None,
) -> tuple[Array, Array]: ...


@overload
def evaluate(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs | Windows,
    targets: ArrayLike | None = None,
    correct: Correct | None = None,
    *,
    weights: ArrayLike | None = None,
    class_weights: Any = None,
    metrics: Mapping[str, Metric],
) -> tuple[Array, Array, dict[str, Array]]: ...


def evaluate(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs | Windows,
    targets: ArrayLike | None = None,
    correct: Correct | None = None,
    *,
    weights: ArrayLike | None = None,
    class_weights: Any = None,
    metrics: Mapping[str, Metric] | None = None,
) -> tuple[Array, Array] | tuple[Array, Array, dict[str, Array]]:
    """Measures the loss, the accuracy and metrics of your own over all examples.

    The examples are measured in blocks, so the memory needed does not grow with their number. No neuron is dropped;
    batch normalization uses its running statistics.

    Args:
        network: a description made by `multilayer` or `graph`.
        loss: one of `fnn.losses`, or its name.
        params: the network's parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`, or `fnn.windows(...)`, which brings its own targets.
        targets: `(Q, *P, S)`, or integer labels `(Q, *P)`. With positions, every position counts.
        correct: (outputs, targets) -> (Q,), True where an example is right. By default the loss's own rule.
        weights: (Q,) of the examples, or `(Q, *P)` of the positions.
        class_weights: "balanced", or a weight for each class; see `fnn.class_weights`.
        metrics: {name: (outputs (Q, S), targets (Q, S)) -> (Q,)}, a number or boolean for each example. Integer labels
            come one-hot; of outputs with positions, each position is a row.

    Returns:
        `(F, accuracy)`, two scalars. accuracy is nan for a loss without right answers. With metrics,
        `(F, accuracy, {name: average})`, each an average by the examples' weights.

    Raises:
        ValueError: as `fnn.backpropagate`, and for a metric that returns another shape than (Q,).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> from functional_nn import training
        >>> network = fnn.multilayer((3, 3), ("softmax",))
        >>> params = {"layer1": {"weights": {"input": jnp.eye(3)}, "bias": jnp.zeros(3)}}
        >>> x, labels = jnp.eye(3), jnp.array([0, 1, 0])
        >>> value, accuracy = training.evaluate(network, "cross_entropy", params, x, labels)
        >>> round(float(accuracy), 2)
        0.67
        >>> def sure(outputs, targets):
        ...     return outputs.max(axis=1) > 0.5
        >>> training.evaluate(network, "cross_entropy", params, x, labels, metrics={"sure": sure})[2]["sure"].tolist()
        1.0
    """
    loss = losses.get(loss)
    loss.check_outputs(network.output.activation)
    loss.check_classes(network.output.size)
    check_statistics(network, params)
    for name, function in (metrics or {}).items():
        if not callable(function):
            raise TypeError(f"metrics: expected a function of outputs and targets for {name!r}, got {function!r}")
    data = prepare_batch(network, loss, params, inputs, targets, weights, class_weights, in_place)
    value, accuracy, measured = measure(network, loss, params, data, correct, metrics or {})
    if accuracy is None:
        accuracy = np.asarray(np.nan, at_least_float32(value.dtype))
    return (value, accuracy) if metrics is None else (value, accuracy, measured)


def confusion_matrix(
    network: Network,
    params: Params,
    inputs: Inputs | Windows,
    targets: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    threshold: float = 0.5,
) -> np.ndarray:
    """Counts how many examples of each class the network takes for each class.

    The class of an example is its largest output. The examples are measured in blocks.

    Args:
        network: a classifier of S outputs; one output stands for two classes.
        params: its parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`, or `fnn.windows(...)`, which brings its own targets.
        targets: integer labels `(Q, *P)`, or one-hot `(Q, *P, S)`. With positions, every position counts.
        weights: (Q,) of the examples, or `(Q, *P)` of the positions.
        threshold: of one output: above it, outputs and targets are of class 1, else of class 0. Give 0.0 where
            targets are -1 and 1.

    Returns:
        (S, S), or (2, 2) for one output: rows are the true classes, columns the predicted ones. int64 counts, or
        float64 sums of the weights.

    Raises:
        ValueError: for shapes that do not match, and for labels beyond the classes.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> from functional_nn import training
        >>> network = fnn.multilayer((2, 2), ("softmax",))
        >>> params = {"layer1": {"weights": {"input": jnp.eye(2)}, "bias": jnp.zeros(2)}}
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> training.confusion_matrix(network, params, x, jnp.array([0, 1, 1])).tolist()
        [[1, 0], [1, 1]]
    """
    threshold = checks.constant("confusion_matrix", "threshold", threshold, np.isfinite, "a finite number")
    check_statistics(network, params)
    each = len(network.shapes[network.output.name])
    if network.output.size == 1 and np.ndim(targets) == each and np.asarray(targets).dtype.kind in "biu":
        losses.check_labels(targets, 2)
        targets = np.asarray(targets)[..., None]
    # square errors accept every kind of target
    data = prepare_batch(network, losses.get("mean_square_error"), params, inputs, targets, weights, place=in_place)
    true, predicted = _classes(network, params, data, threshold)
    if data.weights is not None:
        weights = np.asarray(losses.spread(data.weights, true.shape), np.float64)
    return confusion_counts(true, predicted, max(2, network.output.size), weights)


def confusion_counts(
    labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """(C, C): how many of each class (row) were taken for each class (column); int64, or float64 sums of weights.

    labels and predicted: integers 0 to C - 1, and weights, of one shape.

    >>> confusion_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    counts = np.zeros((classes, classes), np.int64 if weights is None else np.float64)
    np.add.at(counts, (np.asarray(labels), np.asarray(predicted)), 1 if weights is None else weights)
    return counts


def _classes(network: Network, params: Params, data: Batch, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The true and the predicted class of each example or position, `(Q, *P)` int32."""
    network = inference_mode(network)

    def class_of(x: Array) -> Array:
        classes = x[..., 0] > threshold if x.shape[-1] == 1 else jnp.argmax(x, axis=-1)
        return classes.astype(jnp.int32)

    def of_block(some: Examples) -> tuple[Any, Any]:
        outputs = forward(network, params, some.inputs, {}).activations[network.output.name]
        return (class_of(some.targets), class_of(outputs)), ()

    numbers = jnp.arange(len(data.targets), dtype=jnp.int32)
    examples = Examples(data.inputs, data.targets, jnp.ones(numbers.shape), numbers)
    true, predicted = in_blocks(of_block, examples, evaluation_block(network, data.targets.dtype))[0]
    return np.asarray(true), np.asarray(predicted)


def evaluation_block(network: Network, dtype) -> int:
    """How many examples are measured at once."""
    return max(
        1, platforms.here().evaluated // (np.dtype(dtype).itemsize * (network.trace_size + copied_size(network)))
    )


@functools.lru_cache(maxsize=256)
def copied_size(network: Network) -> int:
    """How many numbers of one example a convolution copies at most.

    It copies where it is made a product of windows side by side; 0 where all is read in place.
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


def measure(
    network: Network,
    loss: Loss,
    params: Params,
    data: Batch,
    correct: Correct | None,
    metrics: Mapping[str, Metric] | None = None,
) -> tuple[Array, Array | None, dict[str, Array]]:
    """F, the accuracy or None where there are no right answers, and the averages of metrics, of prepared data."""
    correct, network = correct or loss.correct, inference_mode(network)
    examples = len(data.targets)
    block = evaluation_block(network, data.targets.dtype)

    def traced(inputs):
        trace = forward(network, params, inputs, {})
        return trace, trace.activations[network.output.name]

    def totals(outputs: Array, targets: Array, weights: Array | None) -> dict[str, Array]:
        return {
            name: _total(f"metrics: {name!r}", function, outputs, targets, weights)
            for name, function in (metrics or {}).items()
        }

    if examples <= block:
        data = whole(data)
        trace, outputs = traced(data.inputs)
        weight, right = count_correct(correct, outputs, data.targets, data.weights)
        value = loss_value(network, loss, trace, data.targets, data.weights)
        sums = totals(outputs, data.targets, data.weights)
        return value, share(right, weight), jax.tree.map(lambda x: x / weight, sums)

    def of_block(some: Examples):
        trace, outputs = traced(some.inputs)
        each = example_losses(network, loss, trace, some.targets).astype(some.part.dtype)
        weight, right = count_correct(correct, outputs, some.targets, some.part)
        own = losses.spread(some.part, each.shape)
        # examples that only fill up a block weigh nothing, whatever their loss is
        value = jnp.sum(jnp.where(own > 0, each * own, 0))
        return (), (value, weight, right, totals(outputs, some.targets, some.part))

    wide = at_least_float32(data.targets.dtype)
    part = jnp.ones(examples, wide) if data.weights is None else data.weights
    numbers = jnp.arange(examples, dtype=jnp.int32)
    _, (total, weight, right, sums) = in_blocks(of_block, Examples(data.inputs, data.targets, part, numbers), block)
    value = total / jnp.where(weight > 0, weight, 1) if loss.reduction == "mean" else total
    value = value * loss.of_all(math.prod(data.targets.shape[1:-1]))
    return value.astype(data.targets.dtype), share(right, weight), jax.tree.map(lambda x: x / weight, sums)


def count_correct(
    correct: Correct | None, outputs: Array, targets: Array, weights: Array | None
) -> tuple[Array, Array | None]:
    """The weight of all examples and that of the right ones, None without `correct`. Without weights, their numbers.

    Of outputs with positions every position is one.
    """
    dtype, each = at_least_float32(outputs.dtype), outputs.shape[:-1]
    spread = None if weights is None else losses.spread(weights.astype(dtype), each)
    weight = jnp.asarray(math.prod(each), dtype) if spread is None else jnp.sum(spread)
    return weight, None if correct is None else _total("correct", correct, outputs, targets, weights)


def _total(name: str, function: Metric, outputs: Array, targets: Array, weights: Array | None) -> Array:
    """The sum of what a function of rows says of every example, or position, by its weight."""
    dtype, each = at_least_float32(outputs.dtype), outputs.shape[:-1]

    def of_rows(a: Array, t: Array) -> Array:
        values = jnp.asarray(function(a, t))
        if values.shape != a.shape[:1]:
            of = "example" if len(each) == 1 else "position"
            raise ValueError(f"{name}: expected shape {a.shape[:1]}, one value for each {of}, got {values.shape}")
        return values

    values = losses.at_positions(of_rows, outputs, targets)
    if weights is None:
        return jnp.sum(values.astype(jnp.int32 if values.dtype == bool else dtype)).astype(dtype)
    weights = losses.spread(weights.astype(dtype), each)
    if values.dtype != bool:  # what weighs nothing may be nan
        values = jnp.where(weights > 0, values, 0)
    return jnp.sum(values.astype(dtype) * weights)
