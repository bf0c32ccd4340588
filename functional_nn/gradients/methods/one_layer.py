r"""Rules for one layer that are older than backpropagation: the perceptron, Widrow and Hoff's, Hebb's.

Letters: Q examples, R inputs, S neurons; p an input, t a target, a = f(n) an output, n = W p + b. Each rule is written
as descent, :math:`dW = -\eta s p^T` and :math:`db = -\eta s`, with something else instead of the sensitivity
s = dF/dn. Over a batch the examples' parts are summed or averaged, as the loss does. F, the loss's value, only reports
progress.

==============  ===================================================================================
rule            s
==============  ===================================================================================
`perceptron`    a - t for hardlim, t in {0, 1}; half of that for hardlims, t in {-1, +1}
`delta`         n - t for linear and hardlims neurons: the error before the threshold
`hebb`          -t, or -a if unsupervised, less a decay
==============  ===================================================================================

The perceptron rule (Rosenblatt 1958; CSE 475 17.57, Lecture 2) moves a neuron's weights towards the examples that it
wrongly excludes, and away from those that it wrongly includes; where the output is right nothing moves. Suppose some
unit weights w, the bias among them, hold every example on its side by a margin g > 0: :math:`t_q w \cdot x_q \ge g`
with x = (p, 1), :math:`t = \pm 1`, and no :math:`\lVert x_q \rVert` is larger than R. Then from zero weights, one
example an update, the rule is wrong at most :math:`(R / g)^2` times, whatever the order: each mistake adds at least
:math:`\eta g` to :math:`w \cdot W`, and at most :math:`\eta^2 R^2` to :math:`\lVert W \rVert^2`, so that k mistakes
(Novikoff 1962) imply

.. math:: k \, \eta \, g \le \lVert W \rVert \le \sqrt{k} \, \eta \, R

`lab.separability` computes R and g. If no weights answer all examples correctly the rule never ends, and its weights
stay bounded (Minsky and Papert 1969): `training.termination.cycle` detects that they return.

The delta rule (Widrow and Hoff 1960, LMS) descends the squares of n - t, also where a threshold follows: it has a
minimum even if no weights answer all examples correctly. Hebb's rule (1949) strengthens a connection where both its
ends are active. Supervised, from zero weights and for orthonormal inputs, one pass stores every pair: :math:`W p_q =
t_q`.
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

__all__ = ["delta", "hebb", "perceptron"]

# For each threshold neuron: its two classes, and the factor of a - t that makes a mistake 1.
_THRESHOLDS = {"hardlim": ((0, 1), 1.0), "hardlims": ((-1, 1), 0.5)}


def _one_layer(
    sensitivity: Callable[[Layer, Trace, Array], Array], decay: Any = 0.0, check_targets: Callable | None = None
) -> Callable:
    """Returns the method that uses `sensitivity(layer, trace, targets)` (Q, S) as s, in a network of one layer."""

    def method(request: Request) -> Backpropagation:
        network, layer = request.network, request.network.output
        if check_targets is not None:
            check_targets(network, request.targets)
        trace = forward(network, request.params, request.inputs, {}, request.key)
        s = request.loss.scale(sensitivity(layer, trace, request.targets), request.weights)
        change = contract(network, request.params, trace, Sweep({layer.name: s}, {layer.name: {}}, {}))
        if not (isinstance(decay, float) and decay == 0):
            own, moved = request.params[layer.name]["weights"], change[layer.name]["weights"]
            change[layer.name]["weights"] = {
                source: moved[source] + jnp.asarray(decay, w.dtype) * w for source, w in own.items()
            }
        return request.result(trace, change, {layer.name: s})

    return method


def _check_single(owner: str, accepted: tuple[str, ...] | None, wording: str) -> Callable[[Network, Layer], None]:
    def check(network: Network, layer: Layer) -> None:
        if len(network.layers) != 1:
            raise ValueError(
                f"{owner}: the rule trains a single layer, got {len(network.layers)}; leave out the hidden ones"
            )
        if accepted is not None and layer.activation.name not in accepted:
            raise ValueError(f"{owner}: layer {layer.name!r} must be of {wording}, got {layer.activation.name!r}")

    return check


def _check_truths(network: Network, targets: Array) -> None:
    name = network.output.activation.name
    accepted, _ = _THRESHOLDS[name]
    index = checks.first(targets, lambda block: ~np.isin(block, accepted)) if checks.is_concrete(targets) else None
    if index is not None:
        classes = " and ".join(map(str, accepted))
        raise ValueError(
            f"targets: {name!r} neurons tell {classes} apart, "
            f"got {float(np.asarray(targets)[index]):g} at index {index}"
        )


def _mistakes(layer: Layer, trace: Trace, targets: Array) -> Array:
    return _THRESHOLDS[layer.activation.name][1] * (trace.activations[layer.name] - targets)


#: The perceptron rule, for a single layer of hardlim or hardlims neurons; the loss "sum_square_error" of hardlim counts
#: mistakes: `fit(network, "sum_square_error", "gd(1)", ..., rule="perceptron", plan=stochastic())`.
perceptron = rules.register(
    Rule(
        "perceptron",
        method=_one_layer(_mistakes, check_targets=_check_truths),
        check=_check_single("perceptron", tuple(_THRESHOLDS), "'hardlim' (targets 0 and 1) or 'hardlims' (-1 and +1)"),
        check_targets=_check_truths,
        has_derivatives=False,
    )
)

#: The delta rule, for a single layer of linear or hardlims neurons.
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
    """Returns Hebb's rule, dW = eta (t p^T - decay W); a replaces t if it is not supervised.

    The bias, which reads a 1, moves by t or a. With decay, as the rule is usually written, the weights stay bounded.

    Args:
        supervised: Whether targets or the layer's own outputs are learned.
        decay: Number >= 0.

    Returns:
        The rule.

    Raises:
        ValueError: For a decay < 0.

    References:
        Hebb 1949, The Organization of Behavior.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((2, 1), ("linear",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.array([[1.0, 2.0]]), jnp.array([[3.0]])
        >>> step = fnn.value_and_grad(network, "sum_square_error", rule="hebb")
        >>> step(params, x, t)[1]["layer1"]["weights"]["input"].tolist()
        [[-3.0, -6.0]]
    """
    supervised = checks.boolean("hebb", "supervised", supervised)
    decay = checks.constant("hebb", "decay", decay, *checks.NON_NEGATIVE)

    def active(layer: Layer, trace: Trace, targets: Array) -> Array:
        return -(targets if supervised else trace.activations[layer.name])

    arguments = [] if supervised else ["supervised=false"]
    if not (isinstance(decay, float) and decay == 0):
        arguments.append(f"decay={rules.number(decay)}")
    return Rule(
        f"hebb({', '.join(arguments)})" if arguments else "hebb",
        method=_one_layer(active, decay),
        check=_check_single("hebb", None, ""),
        has_derivatives=False,
    )
