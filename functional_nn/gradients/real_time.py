"""Real-time recurrent learning: the gradient forward in time, of which nothing has to be kept.

Letters: Q examples, T positions of the outputs, P parameters in all, v a direction among them.

Backpropagation through time goes through the sequence and then back through all of it. Williams and Zipser 1989 go
forward alone: with each state they carry what it would change by, were a parameter moved, the influence matrix
dh_t/dv for every v, which obeys the recurrence itself, differentiated:

    dh_t/dv = dh_t/dv, h_(t-1) held, + (dh_t/dh_(t-1)) dh_(t-1)/dv

and that is the R-operator's forward pass (`curvature.push_forward`) along v, whose scan carries it. With s_t = dF/dn_t
at the output, of its own position alone,

    dF/dv = sum_t s_t . R{n_t}

a sum to which each position adds what is known when it is reached. It costs P forward passes: a second opinion on small
networks, by another way than everything else here, and of networks of any kind.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from functional_nn.gradients import backprop
from functional_nn.gradients.curvature import push_forward
from functional_nn.gradients.views import BUDGET, View, check_budget, prepare
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params

_AT_ONCE = 64  # directions that are pushed forward side by side


class RealTime(NamedTuple):
    """gradients: dF/dparams in the parameters' structure; by_position: what each position of the outputs adds to them,
    with its axes in front, (*P, *shape) each.
    """

    gradients: Params
    by_position: Params


def real_time_gradient(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: Array,
    weights: Array | None = None,
    *,
    budget: int = BUDGET,
) -> RealTime:
    """dF/dparams, forward in time: for small networks.

    Raises ValueError as `backpropagate`, and where what the positions add would take more than `budget` bytes.

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
        moved = push_forward(network, params, trace, unravel(direction))
        r = (moved.net_inputs if fused else moved.activations)[name]
        return jnp.sum(s * r, axis=(0, -1))  # (*P,)

    added = lax.map(along, jnp.eye(flat.size, dtype=flat.dtype), batch_size=_AT_ONCE)  # (P, *P)
    added = jnp.moveaxis(added, 0, -1)
    each = jax.vmap(unravel)(added.reshape(-1, flat.size))
    by_position = jax.tree.map(lambda x: x.reshape(*positions, *x.shape[1:]), each)
    return RealTime(unravel(jnp.sum(added, axis=tuple(range(len(positions))))), by_position)
