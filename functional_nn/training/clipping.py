"""Gradients that are clipped example by example before they are summed, as in differentially private SGD."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax import Array

from functional_nn import checks
from functional_nn.gradients import quantities, rules
from functional_nn.gradients.backprop import check_trainable, loss_value, without_outputs
from functional_nn.gradients.views import View, prepare
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params
from functional_nn.training import keys


@dataclass(frozen=True)
class Clipped:
    """A gradient for `fit` that is clipped example by example. Returned by `clipped`.

    Attributes:
        max_norm: The norm that each example's gradient is scaled down to.
        noise_multiplier: The standard deviation of the noise in units of `max_norm`.
        rule: The backward rule.
    """

    max_norm: Any
    noise_multiplier: Any
    rule: rules.Rule | rules.ByLayer = rules.exact

    @property
    def random(self) -> bool:
        """True if every update needs a key."""
        return rules.is_random(self.rule) or not checks.is_concrete(self.noise_multiplier) or self.noise_multiplier > 0

    def __call__(self, network: Network, loss: Loss | str) -> Callable[..., tuple[Array, Params]]:
        """Returns `(params, inputs, targets, weights=None, key=None) -> (F, clipped gradient)`, as `value_and_grad`."""
        return without_outputs(self.with_outputs(network, loss))

    def with_outputs(self, network: Network, loss: Loss | str) -> Callable[..., tuple[Array, Array, Params]]:
        """Returns the same function with the outputs as well: (F, outputs, clipped gradient)."""
        loss = losses.get(loss)
        network = check_trainable(network, self.rule)
        if rules.method_of(self.rule) or rules.learns(self.rule):
            raise ValueError(
                f"rule: {rules.written(self.rule)} has no gradient of each example, which could be clipped; use a rule "
                "that changes what crosses a connection, such as 'feedback_alignment'"
            )

        def value_outputs_and_gradients(
            params: Params, inputs: Inputs, targets: Array, weights: Array | None = None, key: Array | None = None
        ):
            examples, total = prepare(network, loss, params, inputs, targets, weights)
            view = View(network, loss, params, examples, total, key=key, rule=self.rule)
            noise_key = None if key is None else keys.gradient_noise(key)
            gradients = quantities.clip(view, self.max_norm)
            gradients = quantities.add_noise(gradients, view.share, self.max_norm, self.noise_multiplier, noise_key)
            value = loss_value(network, loss, view.trace, examples.targets, weights)
            return value, view.trace.activations[network.output.name], gradients

        return value_outputs_and_gradients


def clipped(max_norm: Any, noise_multiplier: Any = 0.0) -> Clipped:
    """Returns a gradient that is clipped example by example, for `fit(gradient=...)`: DP-SGD.

    Every example's gradient is scaled down to a norm of at most `max_norm`, and the gradients are summed. Gaussian
    noise with the standard deviation `noise_multiplier * max_norm` is added to the sum, which a mean loss divides by
    the batch size. `quantities.clipped_gradient` computes the same gradient outside of training.

    Privacy is not accounted for: the accounting of the paper holds for batches drawn by Poisson sampling, which those
    of `fit` are not.

    Args:
        max_norm: The largest norm of an example's gradient, > 0.
        noise_multiplier: The standard deviation of the noise in units of `max_norm`, >= 0. 0 (default) adds none.

    Raises:
        ValueError: For `max_norm` <= 0 and `noise_multiplier` < 0.

    References:
        Abadi et al. 2016, Deep Learning with Differential Privacy, arXiv 1607.00133, Alg. 1.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((2, 1), ("linear",))
        >>> params = network.init(jax.random.key(0))
        >>> gradient = fnn.training.clipped(0.5)(network, "sum_square_error")
        >>> value, grads = gradient(params, jax.numpy.ones((1, 2)), jax.numpy.full((1, 1), 9.0))
        >>> norm = sum(float((g**2).sum()) for g in jax.tree.leaves(grads)) ** 0.5
        >>> round(norm, 5)
        0.5
    """
    return Clipped(
        checks.constant("clipped", "max_norm", max_norm, *checks.POSITIVE),
        checks.constant("clipped", "noise_multiplier", noise_multiplier, *checks.NON_NEGATIVE),
    )
