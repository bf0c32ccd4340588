"""A network measured on data: its loss, its accuracy."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import platforms
from functional_nn.gradients.backprop import example_losses, loss_value
from functional_nn.gradients.views import Examples, in_blocks
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params, check_statistics, forward, inference_mode
from functional_nn.networks.stored import Windows, in_place, whole
from functional_nn.precision import at_least_float32
from functional_nn.training.data import prepare_batch
from functional_nn.training.records import Batch, Correct, share


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
    value, accuracy = measure(network, loss, params, data, correct)
    return value, np.asarray(np.nan, at_least_float32(value.dtype)) if accuracy is None else accuracy


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


def measure(network, loss, params, data: Batch, correct) -> tuple[Array, Array | None]:
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
        weight, right = count_correct(correct, outputs, data.targets, data.weights)
        value = loss_value(network, loss, trace, data.targets, data.weights)
        return value, share(right, weight)

    def measure(some: Examples):
        trace, outputs = traced(some.inputs)
        each = example_losses(network, loss, trace, some.targets).astype(some.part.dtype)
        weight, right = count_correct(correct, outputs, some.targets, some.part)
        own = losses.spread(some.part, each.shape)
        # what fills a block up weighs nothing, whatever its loss is
        return (), (jnp.sum(jnp.where(own > 0, each * own, 0)), weight, right)

    wide = at_least_float32(data.targets.dtype)
    part = jnp.ones(examples, wide) if data.weights is None else data.weights
    numbers = jnp.arange(examples, dtype=jnp.int32)
    _, (total, weight, right) = in_blocks(measure, Examples(data.inputs, data.targets, part, numbers), block)
    value = total / jnp.where(weight > 0, weight, 1) if loss.reduction == "mean" else total
    value = value * loss.of_all(math.prod(data.targets.shape[1:-1]))
    return value.astype(data.targets.dtype), share(right, weight)


def count_correct(correct: Correct | None, outputs: Array, targets: Array, weights: Array | None):
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
