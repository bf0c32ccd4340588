"""The Jacobian of the outputs by the parameters, and the tangent kernel."""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from functional_nn.gradients import factors
from functional_nn.gradients.quantities.declaring import Whole, register
from functional_nn.gradients.quantities.per_example import paired
from functional_nn.gradients.views import Examples, LastLayer, View, in_blocks, prepare, swept_from
from functional_nn.networks.network import Inputs, Network, Params


@register(
    reads_loss=False,
    elements=lambda whole, of: whole.count * width(whole.network, of) * whole.size,
    instead="tangent_kernel and the Gauss-Newton products of curvature never form it; or give fewer examples",
)
def jacobian(view: View, *, of: LastLayer = "outputs") -> Params:
    """Returns the Jacobian of the outputs by the parameters; `loss` and `targets` may be None.

    It is swept back from the unit vectors: the Marquardt sensitivities of Hagan's NND2, ch. 12 (there of the errors
    t - a, which turns the sign).

    Args:
        of: "outputs", or the last layer's "net_inputs".

    Returns:
        d(outputs)/dparams in the parameters' structure, with `(Q, *P, S)` in front.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.jacobian(network, None, *data[:2])["layer1"]["weights"]["input"].shape
        (6, 2, 4, 3)
    """
    lead = (len(view.part), *swept_from(view.network, of))
    return factors.shaped(factors.each(factors.formed, view.jacobian(of)), view.params, lead)


def width(network: Network, of: LastLayer) -> int:
    return math.prod(swept_from(network, of))


def _kernel(products: Callable, factored: Params, whole: Whole, others: Inputs | None, of: LastLayer) -> Array:
    """Returns products of all pairs of the examples' Jacobians and the others'."""
    if others is None:
        return paired(products, factored, factored, whole.block)

    def measure(some):
        return (View(whole.network, None, whole.params, some).jacobian(of), None)

    return paired(products, factored, in_blocks(measure, _others(whole, others), whole.block)[0], whole.block)


def _others(whole: Whole, others: Inputs) -> Examples:
    try:
        return prepare(whole.network, None, whole.params, others, None, None)[0]
    except (TypeError, ValueError) as error:
        raise type(error)(f"others: {error}") from None


def _other_count(whole: Whole, others: Inputs | None) -> int:
    return whole.count if others is None else len(_others(whole, others).part)


def _tangent_kernel(factored: Params, whole: Whole, *, others: Inputs | None, of: LastLayer) -> Array:
    kernel = jnp.swapaxes(_kernel(factors.kernel_products, factored, whole, others, of), 1, 2)
    shape = swept_from(whole.network, of)
    return kernel.reshape(*kernel.shape[:2], *shape, *shape)


@register(
    reads_loss=False,
    finish=_tangent_kernel,
    elements=lambda whole, others, of: whole.count * _other_count(whole, others) * width(whole.network, of) ** 2,
    instead="tangent_kernel_trace is smaller by the square of the number of outputs; or give fewer examples",
)
def tangent_kernel(view: View, *, others: Inputs | None = None, of: LastLayer = "outputs") -> Params:
    """Returns the empirical tangent kernel :math:`J(x) J(x')^T` without forming J; `loss` and `targets` may be None.

    Args:
        others: The inputs x'; `inputs` themselves by default.
        of: As in `jacobian`.

    Returns:
        (Q, Q', S, S), or `(Q, Q', *P, S, *P, S)`.

    References:
        Jacot et al. 2018 (arXiv 1806.07572).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.tangent_kernel(network, None, *data[:2]).shape
        (6, 6, 2, 2)
    """
    return view.jacobian(of)


@register(
    reads_loss=False,
    finish=functools.partial(_kernel, factors.traced_products),
    elements=lambda whole, others, of: whole.count * _other_count(whole, others),
    instead="give fewer examples",
)
def tangent_kernel_trace(view: View, *, others: Inputs | None = None, of: LastLayer = "outputs") -> Params:
    """Returns the trace of the tangent kernel over the outputs, sum_i dJ_i(x) . dJ_i(x').

    Args:
        others: The inputs x'; `inputs` themselves by default.
        of: As in `jacobian`.

    Returns:
        (Q, Q').

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.tangent_kernel_trace(network, None, *data[:2], others=jnp.ones((4, 3))).shape
        (6, 4)
    """
    return view.jacobian(of)
