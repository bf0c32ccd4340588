"""One update of training: `train_step`, for methods of first and of second order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn import optimizers, reductions
from functional_nn.gradients import rules
from functional_nn.gradients.backprop import value_and_grad
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Network, Params, forward, renewed
from functional_nn.optimizers.first_order import Asked, Optimizer
from functional_nn.optimizers.regularizers import Regularizer
from functional_nn.optimizers.second_order import SecondOrder
from functional_nn.optimizers.wrappers import iterate, with_iterate, with_statistics
from functional_nn.precision import at_least_float32
from functional_nn.training.evaluation import count_correct
from functional_nn.training.gradient import Gradient, gradient_by_rule, needs_key, with_outputs
from functional_nn.training.problems import of_batch
from functional_nn.training.records import Batch, Correct, Metrics


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
    loss, optimizer, gradient = losses.get(loss), optimizers.get(optimizer), gradient_by_rule(gradient, rule)
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
            counted = count_correct(correct, outputs, batch.targets, batch.weights)
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
        counted = count_correct(correct, outputs, batch.targets, batch.weights)
        penalty = 0 if regularizer is None else regularizer.value(params).astype(value.dtype)
        return Metrics(value - penalty, *counted, jnp.linalg.norm(flat))

    step = optimizer.lifted(Asked(along_gradient, problem, metrics))
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


def _norm(grads: Params) -> Array:
    leaves = jax.tree.leaves(grads)
    dtype = at_least_float32(leaves[0].dtype)
    return jnp.sqrt(sum(reductions.total(leaf.astype(dtype) ** 2) for leaf in leaves))
