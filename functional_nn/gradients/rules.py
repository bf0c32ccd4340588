"""Learning rules that are no gradient: what to move the parameters along where there is nothing to differentiate.

Letters: Q examples, R inputs, S neurons; p an input, t a target, a = f(n) an output, n = W p + b.

The perceptron rule (Rosenblatt 1958; CSE 475 17.57, Lecture 2) moves a neuron's weights towards the examples that it
wrongly leaves out and away from those that it wrongly takes in,

    hardlim    dW = eta (t - a) p^T,        db = eta (t - a),        t, a in {0, 1}
    hardlims   dW = eta (t - a) p^T / 2,    db = eta (t - a) / 2,    t, a in {-1, +1}: eta t p^T where a is wrong

so it is gradient descent with -(t - a) (or half of it) in the place of the sensitivity s = dF/dn; where the output is
right nothing moves. If some unit weights w, the bias among them, hold every example on its side by a margin g > 0,
t_q w.x_q >= g with x = (p, 1), t = +-1, and no |x_q| is larger than R, then from zero weights, one example an update,
the rule is wrong at most (R / g)^2 times, whatever the order: each mistake adds at least eta g to w.W, and at most
eta^2 R^2 to |W|^2, so that k mistakes mean k eta g <= |W| <= sqrt(k) eta R (Novikoff 1962). `lab.separability` gives R
and g. Where no weights answer all examples rightly the rule never ends, and its weights stay bounded (Minsky and
Papert 1969): `training.termination.cycle` sees them come back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.gradients.backprop import Sweep, contract, loss_value, without_outputs
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params, dtype_of, forward

# Of each threshold neuron: what it tells apart, and by what a - t is multiplied so that a mistake is 1.
_THRESHOLDS = {"hardlim": ((0, 1), 1.0), "hardlims": ((-1, 1), 0.5)}


@dataclass(frozen=True)
class Rule:
    """A `gradient` for `fit` that is none: (network, loss) -> `(params, inputs, targets, ...) -> (F, -change)`.

    with_outputs: the same with the outputs between the two, as `backprop.value_outputs_and_grad`.
    check_targets(network, targets) raises ValueError for concrete ones that it cannot learn.
    """

    name: str
    with_outputs: Callable[[Network, Loss], Callable[..., tuple[Array, Array, Params]]]
    check_targets: Callable[[Network, Array], None]

    def __call__(self, network: Network, loss: Loss) -> Callable[..., tuple[Array, Params]]:
        return without_outputs(self.with_outputs(network, loss))

    def __repr__(self) -> str:
        return f"<rule {self.name}>"


def _perceptron(network: Network, loss: Loss | str) -> Callable[..., tuple[Array, Params]]:
    loss, layer = losses.get(loss), network.output
    _, step = _threshold(network)
    loss.check_outputs(layer.activation)

    def value_outputs_and_change(
        params: Params, inputs: Inputs, targets: Array, weights: Array | None = None, key: Array | None = None
    ):
        inputs = network.prepare(params, inputs)
        targets = network.prepare_targets(inputs, targets, loss, dtype_of(params))
        _check_truths(network, targets)
        weights = network.prepare_weights(inputs, weights)
        trace = forward(network, params, inputs, {}, key)
        outputs = trace.activations[layer.name]
        wrong = loss.scale(step * (outputs - targets), weights)  # (Q, S), in the place of s
        change = contract(network, params, trace, Sweep({layer.name: wrong}, {layer.name: {}}, {}))
        return loss_value(network, loss, trace, targets, weights), outputs, change

    return value_outputs_and_change


def _threshold(network: Network) -> tuple[tuple[int, int], float]:
    """The row of `_THRESHOLDS`. Raises ValueError for a network that the rule cannot train."""
    layer = network.output
    if len(network.layers) != 1:
        raise ValueError(
            f"perceptron: the rule trains a single layer, got {len(network.layers)}; leave out the hidden ones"
        )
    if layer.activation.name not in _THRESHOLDS:
        raise ValueError(
            f"perceptron: layer {layer.name!r} must be of 'hardlim' (targets 0 and 1) or 'hardlims' (-1 and +1), got "
            f"{layer.activation.name!r}"
        )
    return _THRESHOLDS[layer.activation.name]


def _check_truths(network: Network, targets: Array) -> None:
    name, (accepted, _) = network.output.activation.name, _threshold(network)
    index = checks.first(targets, lambda block: ~np.isin(block, accepted)) if checks.is_concrete(targets) else None
    if index is not None:
        told = " and ".join(map(str, accepted))
        raise ValueError(
            f"targets: {name!r} neurons tell {told} apart, got {float(np.asarray(targets)[index]):g} at index {index}"
        )


# Rosenblatt's rule for one layer of hardlim or hardlims neurons, each of which learns by itself. F, the loss's value,
# only tells how far it is: `sum_square_error` of hardlim counts mistakes. Like any gradient, the change is a mean over
# the batch or a sum, as the loss has it. As it is printed:
# `fit(network, "sum_square_error", "gd(1)", ..., gradient="perceptron", plan=stochastic())`.
perceptron = Rule("perceptron", _perceptron, _check_truths)
