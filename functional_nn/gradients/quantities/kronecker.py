"""Kronecker factors of the generalised Gauss-Newton matrix: exact (kflr) and sampled (kfac)."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn.gradients import factors
from functional_nn.gradients.quantities.declaring import Whole, register
from functional_nn.gradients.views import View
from functional_nn.networks.network import Layer


class KroneckerFactors(NamedTuple):
    """Kronecker factors of one layer's block of the Gauss-Newton matrix: about sensitivities (x) activations.

    Attributes:
        activations: (A, A), the mean of a a^T. a holds, for all weighted sources in their order, the K numbers that a
            neuron reads, and then 1 if the layer has a bias per neuron. (0, 0) if the layer has none of these.
        sensitivities: (S, S), the sum over the columns of s s^T; the examples' shares of F are included.
        others: The exact blocks (N, N) of parameters whose derivative is no outer product: a shared bias, a bias per
            position, learned activation parameters. A learned matrix, such as a recurrent one, has its own
            `KroneckerFactors`.

    Example:
        See `kfac` and `kflr`.

        >>> import functional_nn as fnn
        >>> fnn.quantities.KroneckerFactors._fields
        ('activations', 'sensitivities', 'others')
    """

    activations: Array
    sensitivities: Array
    others: dict[str, Any]


Shared = Literal["expand", "reduce"]


def _kronecker(view: View, over: Callable, shared: Shared) -> dict[str, KroneckerFactors]:
    """Factors every layer. over(measure) is the sum of measure(columns) over all columns that are swept back."""

    def of_sensitivities(f):
        summed = shared == "reduce" and factors.is_shared(f)
        return factors.gram(jnp.sum(f.left, axis=-2) if summed else f.left)

    def of_read(x):  # (Q, A), or (Q, T, A)
        part = view.part
        if x.ndim > 2 and shared == "reduce":
            x = jnp.mean(x, axis=1)
        elif x.ndim > 2:
            part = part / x.shape[1]
        return factors.gram(factors.over_rows(x, jnp.sqrt(part)))

    def squares(factored):
        found = {}
        for layer in view.network.layers:
            own = factored[layer.name]
            G = jnp.zeros((0, 0), view.dtype)
            if layer.weighted:
                G = of_sensitivities(own["weights"][layer.weighted[0][0]])
            found[layer.name] = G, factors.each(of_sensitivities, _not_products(layer, own))
        return found

    def with_read(G, f):
        return G if f.right is None else KroneckerFactors(of_read(f.right), G, {})

    found = over(squares)
    for layer in view.network.layers:
        # what is read, as unfolded; net inputs stand for sensitivities, which have the same shape
        n, a = view.trace.net_inputs[layer.name], view.trace.activations
        columns = [by.unfold(n, a[source])[1] for source, by in layer.weighted] or [jnp.zeros_like(n[..., :0])]
        if len({x.shape[:-1] for x in columns}) > 1:
            shared_by = ", ".join(str(math.prod(x.shape[1:-1])) for x in columns)
            raise ValueError(
                f"layer {layer.name!r}: Kronecker factors need weights that as many positions share, whatever the "
                f"source, got {shared_by}; groups of channels count as positions"
            )
        if layer.bias == "per_neuron" and layer.weighted:
            columns.append(jnp.ones_like(columns[0][..., :1]))
        G, others = found[layer.name]
        for name, f in view.swept.learned[layer.name].items():
            others["learned"][name] = with_read(others["learned"][name], f)
        found[layer.name] = KroneckerFactors(of_read(jnp.concatenate(columns, axis=-1)), G, others)
    return found


def _not_products(layer: Layer, own: dict) -> dict:
    """Returns those of a layer's parameters whose derivative is no outer product."""
    with_weights = ("weights", "bias") if layer.weighted and layer.bias == "per_neuron" else ("weights",)
    return {name: part for name, part in own.items() if name not in with_weights}


def _factor_elements(whole: Whole, **options) -> int:
    found = 0
    for layer in whole.network.layers:
        own = whole.params[layer.name]
        read = sum(w.size // len(w) for w in own["weights"].values()) + 1
        alone = jax.tree.leaves(_not_products(layer, own))
        matrices = [
            x for x in jax.tree.leaves(own.get("learned", {})) if x.ndim == 2
        ]  # which have factors of their own
        found += layer.rows**2 + read**2 if layer.weighted else 0
        found += sum(x.size**2 for x in alone if x.size > 1) - sum(x.size**2 for x in matrices)
        found += sum(n**2 for x in matrices for n in x.shape)
    return found


_FEWER_FACTORS = "gauss_newton_diagonal needs no more than the parameters do"


@register(adds=True, elements=_factor_elements, instead=_FEWER_FACTORS)
def kflr(view: View, *, shared: Shared = "expand") -> dict[str, KroneckerFactors]:
    """Returns Kronecker factors of the Gauss-Newton matrix with exact curvature, from S sweeps.

    Args:
        shared: How weights that T positions share are treated. "expand" takes each position as its own example: the
            mean of a_t a_t^T and the sum of s_t s_t^T. "reduce" takes the mean a and the sum of s. Each is exact in a
            deep linear network if everything above the layer reads position by position: "expand" for losses at each
            position, "reduce" for a loss on the mean of the positions. Below another convolution neither is exact.

    Returns:
        {layer: KroneckerFactors}.

    References:
        Botev et al. 2017 (arXiv 1706.03662), Sec. 3; Eschenhagen et al. 2023 (arXiv 2311.00636) for `shared`.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> found = fnn.quantities.kflr(network, "cross_entropy", *data)["layer1"]
        >>> found.activations.shape, found.sensitivities.shape
        ((4, 4), (4, 4))
    """
    return _kronecker(view, view.over_curvature, shared)


@register(adds=True, elements=_factor_elements, instead=_FEWER_FACTORS)
def kfac(view: View, *, key: Array, samples: int = 1, shared: Shared = "expand") -> dict[str, KroneckerFactors]:
    """Returns Kronecker factors of the Gauss-Newton matrix with sampled curvature.

    The curvature is sampled by random signs on the root of H. For a log-likelihood that has the same expectation as the
    sampled targets of the paper.

    Args:
        key: Random key.
        samples: Number of sweeps.
        shared: As in `kflr`.

    Returns:
        {layer: KroneckerFactors}.

    References:
        Martens and Grosse 2015 (arXiv 1503.05671).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> found = fnn.quantities.kfac(network, "cross_entropy", *data, key=jax.random.key(1))["layer2"]
        >>> found.activations.shape, found.sensitivities.shape
        ((5, 5), (2, 2))
    """
    return _kronecker(view, lambda measure: measure(view.sampled_curvature(key, samples)), shared)
