"""Sums over the examples: the gradient, clipped or not, second moments and variance."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn import checks
from functional_nn.gradients import factors
from functional_nn.gradients.quantities.declaring import Whole, register
from functional_nn.gradients.quantities.per_example import norms
from functional_nn.gradients.views import View
from functional_nn.networks.network import Params
from functional_nn.precision import wide

Number = float | Array


def second_moments(factored: Params, part: Array | None, params: Params) -> Params:
    return factors.shaped(factors.each(functools.partial(factors.second_moment, part=part), factored), params)


@register(adds=True)
def gradient(view: View) -> Params:
    """Returns dF/dparams, as `value_and_grad` does, without what a rule's `learn` adds (decay, feedback weights).

    Returns:
        The gradient, in the parameters' structure.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> found = fnn.quantities.gradient(network, "cross_entropy", *data)
        >>> exact = fnn.value_and_grad(network, "cross_entropy")(*data)[1]
        >>> bool(jnp.allclose(found["layer1"]["bias"], exact["layer1"]["bias"]))
        True
    """
    return view.contract(view.share)


def clip(view: View, max_norm: Number) -> Params:
    """Returns the sum that `clipped_gradient` is, before its noise."""
    lengths = norms(view)
    # An example that has overflowed would be scaled down to nothing: nan says so, and stops a run.
    scale = view.share * jnp.where(jnp.isfinite(lengths), jnp.minimum(1, max_norm / lengths), jnp.nan)
    signals = any(len(shape) > 1 for shape in view.network.net_shapes.values())
    return view.contract_formed(scale) if signals else view.contract_again(scale)


def add_noise(clipped: Params, shares: Array, max_norm: Number, noise_multiplier: Number, key: Array | None) -> Params:
    """Adds Gaussian noise to a clipped gradient in which the examples have shares (Q,) of F."""
    if checks.is_concrete(noise_multiplier) and noise_multiplier == 0:
        return clipped
    if key is None:
        raise ValueError("clipped_gradient: noise needs key=jax.random.key(...)")
    # One example can move the sum by max_norm times its share of F: the unit of the noise.
    deviation = noise_multiplier * max_norm * jnp.max(shares)
    leaves, structure = jax.tree.flatten(clipped)
    noised = [
        g + deviation.astype(g.dtype) * jax.random.normal(leaf_key, g.shape, g.dtype)
        for g, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    return jax.tree.unflatten(structure, noised)


def _noised(clipped: Params, whole: Whole, *, max_norm: Number, noise_multiplier: Number, key: Array | None) -> Params:
    return add_noise(clipped, whole.examples.part * whole.total, max_norm, noise_multiplier, key)


@register(adds=True, finish=_noised)
def clipped_gradient(
    view: View, *, max_norm: Number, noise_multiplier: Number = 0.0, key: Array | None = None
) -> Params:
    """Returns the gradient of F with every example's gradient scaled down to at most `max_norm`, and noise on request.

    The privacy that noise affords is not accounted for.

    Args:
        max_norm: Largest norm of an example's gradient, > 0.
        noise_multiplier: sigma >= 0: Gaussian noise of deviation sigma max_norm is added (over Q, for a mean loss).
        key: Random key for the noise.

    Returns:
        The sum, in the parameters' structure. It is nan where some `|g_q|` is not finite; its square overflows in
        float32 from 1.8e19 on.

    Raises:
        ValueError: For max_norm <= 0, noise_multiplier < 0, and noise without a key.

    References:
        Abadi et al. 2016 (arXiv 1607.00133), Alg. 1.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> found = fnn.quantities.clipped_gradient(network, "cross_entropy", *data, max_norm=0.1)
        >>> bool(jnp.linalg.norm(jax.flatten_util.ravel_pytree(found)[0]) <= 0.1)
        True
    """
    return clip(view, max_norm)


@register(adds=True)
def second_moment(view: View) -> Params:
    """Returns the mean of every squared element of the examples' gradients, (s^2)^T a^2 / Q.

    Returns:
        The mean of g_q^2, elementwise, in the parameters' structure; at least float32.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.second_moment(network, "cross_entropy", *data)["layer1"]["weights"]["input"].shape
        (4, 3)
    """
    return second_moments(view.gradients, view.part, view.params)


def _variance(moments: tuple[Params, Params], whole: Whole) -> Params:
    second, first = moments
    # Rounding may leave a number below 0 where all examples agree.
    return jax.tree.map(lambda m2, m: jnp.maximum(m2 - wide(m) ** 2, 0), second, first)


@register(adds=True, finish=_variance)
def variance(view: View) -> tuple[Params, Params]:
    """Returns the variance of the examples' gradients, elementwise.

    It is the mean of g_q^2 less the square of the mean of g_q. The relative error of that difference is the error of
    g_q^2 times mean^2 / variance: in float32, a mean of a thousand deviations leaves one digit of it. The same holds of
    `noise_scale` and `signal_to_noise`.

    Returns:
        The variance, in the parameters' structure; at least float32.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.variance(network, "cross_entropy", *data)["layer1"]["bias"].shape
        (4,)
    """
    return second_moments(view.gradients, view.part, view.params), view.contract(view.part)
