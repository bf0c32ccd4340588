"""Training on gradients that are clipped example by example, as differentially private SGD needs them."""

from dataclasses import dataclass
from typing import Any

from jax import Array

from functional_nn import checks
from functional_nn.gradients import quantities, rules
from functional_nn.gradients.backprop import check_trainable, loss_value, without_outputs
from functional_nn.gradients.views import View, prepare
from functional_nn.networks import losses
from functional_nn.networks.network import Inputs, Params
from functional_nn.training import keys


@dataclass(frozen=True)
class Clipped:
    """A gradient for `fit`. Made by `clipped`."""

    max_norm: Any
    noise_multiplier: Any
    rule: rules.Rule | rules.ByLayer = rules.exact

    @property
    def random(self) -> bool:
        """True where a key is needed at every update."""
        return rules.is_random(self.rule) or not checks.is_concrete(self.noise_multiplier) or self.noise_multiplier > 0

    def __call__(self, network, loss):
        """As `value_and_grad`: `(params, inputs, targets, weights=None, key=None) -> (F, clipped gradient)`."""
        return without_outputs(self.with_outputs(network, loss))

    def with_outputs(self, network, loss):
        """As `value_outputs_and_grad`: the same with the outputs between the two."""
        loss = losses.get(loss)
        network = check_trainable(network, self.rule)
        if rules.method_of(self.rule) or rules.learns(self.rule):
            raise ValueError(
                f"rule: {rules.written(self.rule)} does not come example by example,"
                f" so that nothing can be clipped; use "
                "one that changes what crosses a connection, such as 'feedback_alignment'"
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
    """`fit(..., gradient=clipped(1.0, noise_multiplier=1.1))`: DP-SGD, Abadi et al. 2016 (arXiv 1607.00133), Alg. 1.

    Every example's gradient is scaled down to a norm of at most max_norm before they are summed; then Gaussian noise
    of noise_multiplier max_norm is added to the sum, which a mean loss divides by the batch size. In numbers:
    `quantities.clipped_gradient`. No accounting of privacy is made: it would hold for batches drawn by Poisson
    sampling, and these are not. Raises ValueError for max_norm <= 0 and noise_multiplier < 0.
    """
    return Clipped(
        checks.constant("clipped", "max_norm", max_norm, *checks.POSITIVE),
        checks.constant("clipped", "noise_multiplier", noise_multiplier, *checks.NON_NEGATIVE),
    )
