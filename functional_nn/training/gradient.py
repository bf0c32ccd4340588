"""The gradient that training follows: one with a name, one by a learning rule, or the user's own."""

import dataclasses
from collections.abc import Callable

import jax
from jax import Array

from functional_nn.gradients import rules
from functional_nn.gradients.backprop import Along, objective, value_and_grad, value_and_outputs
from functional_nn.gradients.methods.one_layer import perceptron
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Network, Params, forward
from functional_nn.training.clipping import Clipped

# A gradient may also have `random`, True if it takes a key at every update, and `with_outputs(network, loss)`, see
# the function of that name.
Gradient = Callable[[Network, Loss], Callable[..., tuple[Array, Params]]]


def automatic(network: Network, loss: Loss) -> Callable[..., tuple[Array, Params]]:
    """`jax.value_and_grad` of the objective, for comparisons with the hand-written gradient."""
    return jax.value_and_grad(objective(network, loss))


def _automatic_with_outputs(network: Network, loss: Loss) -> Callable[..., tuple[Array, Array, Params]]:
    differentiated = jax.value_and_grad(value_and_outputs(network, loss), has_aux=True)

    def value_outputs_and_gradients(*data):
        (value, outputs), gradients = differentiated(*data)
        return value, outputs, gradients

    return value_outputs_and_gradients


automatic.with_outputs = _automatic_with_outputs

# The gradients that have names.
GRADIENTS: dict[str, Gradient] = {"manual": value_and_grad, "automatic": automatic, "perceptron": Along(perceptron)}


def gradient_by_rule(gradient: Gradient, rule: rules.Given) -> Gradient:
    """Returns the gradient made by a learning rule. Raises ValueError for one that is not made by hand."""
    rule = rules.get(rule)
    if rules.is_exact(rule):
        return gradient
    if isinstance(gradient, Clipped):
        return dataclasses.replace(gradient, rule=rule)
    if gradient is not value_and_grad:
        raise ValueError(
            f"rule: {rules.written(rule)} is a hand-written way back; it needs gradient='manual' or clipped(...), got "
            f"{next((name for name, known in GRADIENTS.items() if known == gradient), gradient)!r}"
        )
    return Along(rule)


def rule_of(gradient: Gradient) -> rules.Rule | rules.ByLayer:
    """Returns the learning rule that a gradient is made by."""
    return getattr(gradient, "rule", rules.exact)


def with_outputs(gradient: Gradient, network: Network, loss: Loss) -> Callable[..., tuple[Array, Array, Params]]:
    """Returns `(params, inputs, targets, weights=None, key=None) -> (F, outputs, gradients)`.

    The gradient's own `with_outputs` makes it; for a user's gradient without one, a forward pass adds the outputs.
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
    """Returns True if every update draws random numbers."""
    return network.drops or getattr(gradient, "random", False)


def is_by_hand(gradient: Gradient) -> bool:
    """Returns True if the gradient is made of the network's connections, so that `for_lanes` may replace them."""
    return gradient is value_and_grad or isinstance(gradient, Along)
