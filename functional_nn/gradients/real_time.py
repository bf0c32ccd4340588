r"""Real-time recurrent learning: the gradient computed forward in time, so that nothing of the past is kept.

Letters: Q examples, T positions of the outputs, P parameters in all, v a direction among them.

Backpropagation through time goes through the sequence and then back through all of it. Williams and Zipser 1989 go
forward only. With each state they carry its change per change of a parameter, the influence matrix
:math:`\partial h_t / \partial v` for every v, which obeys the recurrence, differentiated:

.. math:: \frac{\partial h_t}{\partial v} = \left. \frac{\partial h_t}{\partial v} \right|_{h_{t-1}}
   + \frac{\partial h_t}{\partial h_{t-1}} \frac{\partial h_{t-1}}{\partial v}

That is the R-operator's forward pass (`curvature.push_forward`) along v, whose scan carries it. With
:math:`s_t = \partial F / \partial n_t` at the output, of its own position alone,

.. math:: \frac{\partial F}{\partial v} = \sum_t s_t \cdot R\{n_t\}

so that each position adds what is known when it is reached. It costs P forward passes: a second opinion on small
networks of any kind, computed in another way than everything else here.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from functional_nn.gradients import backprop
from functional_nn.gradients.curvature import push_forward
from functional_nn.gradients.views import BUDGET, View, check_budget, prepare
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params

_AT_ONCE = 64  # directions that are pushed forward together


class RealTime(NamedTuple):
    """The gradient, and each position's part of it.

    Attributes:
        gradients: dF/dparams, in the parameters' structure.
        by_position: What each position of the outputs adds, with the positions' axes in front: `(*P, *shape)` each.

    Example:
        See `real_time_gradient`.

        >>> from functional_nn.gradients.real_time import RealTime
        >>> RealTime._fields
        ('gradients', 'by_position')
    """

    gradients: Params
    by_position: Params


def real_time_gradient(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    budget: int = BUDGET,
) -> RealTime:
    """Computes dF/dparams forward in time (real-time recurrent learning), for small networks.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        weights: Weights of the examples (Q,), or of the outputs' positions `(Q, *P)`.
        budget: Bytes that the positions' parts may take.

    Returns:
        A `RealTime`.

    Raises:
        ValueError: As `backpropagate`, and if the positions' parts would take more than `budget` bytes.

    References:
        Williams and Zipser 1989 (Neural Computation 1, 270).

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.presets.get("elman(3)")(5, 4, tokens=4, each_position=True)
        >>> params, x = network.init(jax.random.key(0)), jax.numpy.array([[0, 1, 2, 3, 0]])
        >>> found = fnn.real_time_gradient(network, "cross_entropy", params, x, (x + 1) % 4)
        >>> found.by_position["state1"]["learned"]["recurrent"].shape
        (5, 3, 3)
    """
    loss = losses.get(loss)
    backprop.check_trainable(network)
    flat, unravel = ravel_pytree(params)
    positions = network.shapes[network.output.name][:-1]
    check_budget(
        "real_time_gradient", flat.size * math.prod(positions) * flat.dtype.itemsize, budget, "use value_and_grad"
    )
    examples, total = prepare(network, loss, params, inputs, targets, weights, apart=False)
    view, name = View(network, loss, params, examples, total), network.output.name
    weights = network.prepare_weights(examples.inputs, weights)
    trace, fused = view.trace, loss.fused_with(network.output.activation)
    if fused:
        s, _ = backprop.start(network, loss, params, trace, examples.targets, weights)
    else:
        s = loss.gradient(trace.activations[name], examples.targets, weights)

    def along(direction: Array) -> Array:
        tangents = push_forward(network, params, trace, unravel(direction))
        r = (tangents.net_inputs if fused else tangents.activations)[name]
        return jnp.sum(s * r, axis=(0, -1))  # (*P,)

    added = lax.map(along, jnp.eye(flat.size, dtype=flat.dtype), batch_size=_AT_ONCE)  # (P, *P)
    added = jnp.moveaxis(added, 0, -1)
    each = jax.vmap(unravel)(added.reshape(-1, flat.size))
    by_position = jax.tree.map(lambda x: x.reshape(*positions, *x.shape[1:]), each)
    return RealTime(unravel(jnp.sum(added, axis=tuple(range(len(positions))))), by_position)
