"""Rules for one layer, which are older than backpropagation: the perceptron, Widrow and Hoff's, Hebb's.

Letters: Q examples, R inputs, S neurons; p an input, t a target, a = f(n) an output, n = W p + b. Each is written as
descent, dW = -eta s p^T and db = -eta s, with something else in the place of the sensitivity s = dF/dn; of a batch what
the examples add is summed, or averaged, as the loss has it. F, the loss's value, only tells how far it is.

    perceptron     s = a - t of hardlim, t in {0, 1}; half of it of hardlims, t in {-1, +1}
    delta          s = n - t of linear and hardlims neurons: the error before the threshold
    hebb           s = -t, or -a where it is unsupervised, less what decays

The perceptron rule (Rosenblatt 1958; CSE 475 17.57, Lecture 2) moves a neuron's weights towards the examples that it
wrongly leaves out and away from those that it wrongly takes in; where the output is right nothing moves. If some unit
weights w, the bias among them, hold every example on its side by a margin g > 0, t_q w.x_q >= g with x = (p, 1), t =
+-1, and no |x_q| is larger than R, then from zero weights, one example an update, the rule is wrong at most (R / g)^2
times, whatever the order: each mistake adds at least eta g to w.W, and at most eta^2 R^2 to |W|^2, so that k mistakes
mean k eta g <= |W| <= sqrt(k) eta R (Novikoff 1962). `lab.separability` gives R and g. Where no weights answer all
examples rightly the rule never ends, and its weights stay bounded (Minsky and Papert 1969):
`training.termination.cycle` sees them come back.

The delta rule (Widrow and Hoff 1960, LMS) goes down the squares of n - t, also where a threshold follows: it has a
minimum where no weights answer all examples rightly. Hebb's (1949) makes a connection stronger where both its ends are
active; supervised, from zero weights and for orthonormal inputs, one pass stores every pair: W p_q = t_q.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.gradients import rules
from functional_nn.gradients.backprop import Backpropagation, Request, Sweep, contract
from functional_nn.gradients.rules import Rule
from functional_nn.networks.network import Layer, Network, Trace, forward

# Of each threshold neuron: what it tells apart, and by what a - t is multiplied so that a mistake is 1.
_THRESHOLDS = {"hardlim": ((0, 1), 1.0), "hardlims": ((-1, 1), 0.5)}


def _one_layer(
    put: Callable[[Layer, Trace, Array], Array], decay: Any = 0.0, check_targets: Callable | None = None
) -> Callable:
    """The method that puts something in the place of s, (Q, S), in a network of a single layer."""

    def method(request: Request) -> Backpropagation:
        network, layer = request.network, request.network.output
        if check_targets is not None:
            check_targets(network, request.targets)
        trace = forward(network, request.params, request.inputs, {}, request.key)
        s = request.loss.scale(put(layer, trace, request.targets), request.weights)
        change = contract(network, request.params, trace, Sweep({layer.name: s}, {layer.name: {}}, {}))
        if not (isinstance(decay, float) and decay == 0):
            own, moved = request.params[layer.name]["weights"], change[layer.name]["weights"]
            change[layer.name]["weights"] = {
                source: moved[source] + jnp.asarray(decay, w.dtype) * w for source, w in own.items()
            }
        return request.result(trace, change, {layer.name: s})

    return method


def _check_single(owner: str, accepted: tuple[str, ...] | None, told: str) -> Callable[[Network, Layer], None]:
    def check(network: Network, layer: Layer) -> None:
        if len(network.layers) != 1:
            raise ValueError(
                f"{owner}: the rule trains a single layer, got {len(network.layers)}; leave out the hidden ones"
            )
        if accepted is not None and layer.activation.name not in accepted:
            raise ValueError(f"{owner}: layer {layer.name!r} must be of {told}, got {layer.activation.name!r}")

    return check


def _check_truths(network: Network, targets: Array) -> None:
    name = network.output.activation.name
    accepted, _ = _THRESHOLDS[name]
    index = checks.first(targets, lambda block: ~np.isin(block, accepted)) if checks.is_concrete(targets) else None
    if index is not None:
        told = " and ".join(map(str, accepted))
        raise ValueError(
            f"targets: {name!r} neurons tell {told} apart, got {float(np.asarray(targets)[index]):g} at index {index}"
        )


def _mistakes(layer: Layer, trace: Trace, targets: Array) -> Array:
    return _THRESHOLDS[layer.activation.name][1] * (trace.activations[layer.name] - targets)


# As it is printed: `fit(network, "sum_square_error", "gd(1)", ..., rule="perceptron", plan=stochastic())`, and
# `sum_square_error` of hardlim counts mistakes.
perceptron = rules.register(
    Rule(
        "perceptron",
        method=_one_layer(_mistakes, check_targets=_check_truths),
        check=_check_single("perceptron", tuple(_THRESHOLDS), "'hardlim' (targets 0 and 1) or 'hardlims' (-1 and +1)"),
        check_targets=_check_truths,
        has_derivatives=False,
    )
)

delta = rules.register(
    Rule(
        "delta",
        method=_one_layer(lambda layer, trace, targets: trace.net_inputs[layer.name] - targets),
        check=_check_single("delta", ("linear", "hardlims"), "'linear' or 'hardlims' (targets -1 and +1)"),
        has_derivatives=False,
    )
)


@rules.register
def hebb(supervised: bool = True, decay: float = 0.0) -> Rule:
    """dW = eta (t p^T - decay W), or with a in the place of t where it is not supervised; the bias, which reads a 1,
    moves by t or a. Hebb 1949; with decay, as it is usually written, the weights stay bounded.

    Raises ValueError for a decay < 0.
    """
    supervised = checks.boolean("hebb", "supervised", supervised)
    decay = checks.constant("hebb", "decay", decay, *checks.NON_NEGATIVE)

    def active(layer: Layer, trace: Trace, targets: Array) -> Array:
        return -(targets if supervised else trace.activations[layer.name])

    told = [] if supervised else ["supervised=false"]
    if not (isinstance(decay, float) and decay == 0):
        told.append(f"decay={rules.number(decay)}")
    return Rule(
        f"hebb({', '.join(told)})" if told else "hebb",
        method=_one_layer(active, decay),
        check=_check_single("hebb", None, ""),
        has_derivatives=False,
    )
