"""Statistics of each layer: activations, sensitivities, saturation, dead neurons."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn.gradients.quantities.declaring import Whole, register
from functional_nn.gradients.views import View
from functional_nn.networks.activations import Activation, Theta
from functional_nn.networks.network import theta
from functional_nn.precision import wide


class LayerStatistics(NamedTuple):
    """Statistics of one layer, over examples and neurons.

    Attributes:
        activation_mean: Mean of the activations.
        activation_deviation: Standard deviation of the activations.
        sensitivity: Root mean square of dF_q/dn.
        ratio: `sensitivity` over that of the output layer. Below 1 it vanishes on its way back, above 1 it explodes;
            nan where the output's is 0.
        saturated: Fraction of f'(n) whose size is below `saturation`.
        dead: Fraction of neurons whose f'(n) is 0 on every example.

    Example:
        See `layer_statistics`.

        >>> import functional_nn as fnn
        >>> fnn.quantities.LayerStatistics._fields[-2:]
        ('saturated', 'dead')
    """

    activation_mean: Array
    activation_deviation: Array
    sensitivity: Array
    ratio: Array
    saturated: Array
    dead: Array


def _statistics(sums: dict[str, dict], whole: Whole, *, saturation: float) -> dict[str, LayerStatistics]:
    output = sums[whole.network.output.name]["sensitivity"]
    found = {}
    for name, own in sums.items():
        deviation = jnp.sqrt(jnp.maximum(own["square"] - own["mean"] ** 2, 0))
        found[name] = LayerStatistics(
            own["mean"],
            deviation,
            jnp.sqrt(own["sensitivity"]),
            jnp.sqrt(own["sensitivity"] / output),
            own["saturated"],
            jnp.mean(jnp.where(own["alive"] == 0, 1.0, 0.0).astype(deviation.dtype)),
        )
    return found


def _own_slopes(activation: Activation, n: Array, a: Array, kept: Any, theta: Theta) -> Array:
    """Returns da_i/dn_i `(Q, *P, S)`, neuron by neuron where the activation has no `slopes` and mixes neurons."""
    if activation.slopes is not None:
        return jnp.broadcast_to(activation.slopes(n, a, kept, theta), a.shape)

    def of_each(g):
        return activation.pullback(g, n, a, kept, theta)[0].reshape(*a.shape, -1).sum(axis=-1)

    if activation.alone:
        return of_each(jnp.ones_like(a))
    shape = a.shape[1:]
    units = jnp.eye(math.prod(shape), dtype=a.dtype).reshape(-1, *shape)
    over = tuple(range(1, a.ndim))
    own = lax.map(lambda unit: jnp.sum(of_each(jnp.broadcast_to(unit, a.shape)) * unit[None], axis=over), units)
    return own.T.reshape(a.shape)


@register(adds=True, finish=_statistics)
def layer_statistics(view: View, *, saturation: float = 0.01) -> dict[str, dict]:
    """Returns statistics of every layer: activations, sensitivities, saturation, dead neurons.

    f'(n) is da_i/dn_i of each neuron; for maxout and max_pool, which never saturate, the sum over pieces and windows.

    Args:
        saturation: A neuron counts as saturated where `|f'(n)|` is below this.

    Returns:
        {layer: LayerStatistics}.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> float(fnn.quantities.layer_statistics(network, "cross_entropy", *data)["layer2"].ratio)
        1.0
    """
    found = {}
    for layer in view.network.layers:
        n, a, s = (
            view.trace.net_inputs[layer.name],
            view.trace.activations[layer.name],
            view.swept.sensitivities[layer.name],
        )
        kept, own = view.trace.kept.get(layer.name), theta(layer, view.params[layer.name], view.trace.activations)
        slope = _own_slopes(layer.activation, n, a, kept, own)
        over = tuple(range(1, a.ndim))

        def mean(x):
            return jnp.sum(jnp.mean(wide(x), axis=tuple(range(1, x.ndim))) * view.part)

        found[layer.name] = {
            "mean": mean(a),
            "square": mean(wide(a) ** 2),
            "sensitivity": mean(wide(s) ** 2),
            "saturated": mean(jnp.where(jnp.abs(slope) < saturation, 1.0, 0.0).astype(a.dtype)),
            # a neuron of a signal is alive where it is at any position
            "alive": jnp.sum((slope != 0) & jnp.expand_dims(view.part > 0, over), axis=tuple(range(a.ndim - 1))),
        }
    return found
