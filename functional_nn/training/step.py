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
from functional_nn.optimizers.optimizer import BatchFunctions, Optimizer
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
    loss: Loss | str,
    optimizer: Optimizer | SecondOrder | str,
    gradient: Gradient = value_and_grad,
    correct: Correct | None = None,
    regularizer: Regularizer | None = None,
    mask: Any = None,
    rule: rules.Given = "exact",
) -> Callable[[Any, Batch], tuple[Any, Metrics]]:
    """Returns one update of training as a pure function, for a loop of your own.

    The step is not compiled: use `jax.jit`, `jax.vmap` or `jax.lax.scan` on it.

    Args:
        network: a description made by `multilayer` or `graph`.
        loss: one of `fnn.losses`, or its name.
        optimizer: one of `fnn.optimizers`, of first or second order, or its name.
        gradient: `fnn.value_and_grad`, `training.clipped(...)`, or your own (network, loss) -> value_and_grad.
        correct: (outputs, targets) -> (Q,), True where an example is right. By default the loss's own rule.
        regularizer: its gradient is added; see `fnn.optimizers.regularizers`.
        mask: booleans in the parameters' structure. Where False, the gradient is 0 and the parameter is not updated.
        rule: a learning rule as in `fit`. If it learns parameters itself, these must be in `params`; see
            `fnn.rules.begin`.

    Returns:
        `(state, batch) -> (state, metrics)`: the optimizer's state, a `training.Batch` with inputs by name, and
        `training.Metrics` measured before the update.

    Raises:
        ValueError: by the step, if a network with dropout or a random gradient gets no key in its batch.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> from functional_nn import training
        >>> network, adam = fnn.multilayer((2, 1), ("linear",)), fnn.optimizers.adam(0.1)
        >>> step = jax.jit(training.train_step(network, "mean_square_error", adam))
        >>> batch = training.Batch({"input": jnp.eye(2)}, jnp.ones((2, 1)))
        >>> state, first = step(adam.init(network.init(jax.random.key(0))), batch)
        >>> state, second = step(state, batch)
        >>> int(state.step), bool(second.loss < first.loss)
        (2, True)
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
        """Metrics of a second-order step. value and flat are the problem's, with the penalty; F is returned without
        it. The state of a method holds no outputs, so they are computed here.
        """
        outputs = forward(network, params, batch.inputs, {}).activations[network.output.name]
        counted = count_correct(correct, outputs, batch.targets, batch.weights)
        penalty = 0 if regularizer is None else regularizer.value(params).astype(value.dtype)
        return Metrics(value - penalty, *counted, jnp.linalg.norm(flat))

    step = optimizer.training_step(BatchFunctions(along_gradient, problem, metrics))
    if any(layer.activation.running for layer in network.layers):
        return _renewing(network, optimizer, step)
    return step


def _renewing(network: Network, optimizer: Optimizer, step: Callable) -> Callable:
    """Returns the step with running statistics renewed by the batch; no optimizer updates them."""

    def renewing(state, batch: Batch):
        # the gradient makes the same forward pass: the compiler makes it once
        trace = forward(network, optimizer.point(state), batch.inputs, {}, batch.key)
        params = renewed(network, iterate(state), trace)
        after, metrics = step(with_iterate(state, params), batch)
        return with_iterate(after, with_statistics(iterate(after), params)), metrics

    return renewing


def _norm(grads: Params) -> Array:
    leaves = jax.tree.leaves(grads)
    dtype = at_least_float32(leaves[0].dtype)
    return jnp.sqrt(sum(reductions.total(leaf.astype(dtype) ** 2) for leaf in leaves))
