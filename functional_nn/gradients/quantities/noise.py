"""Noise of the gradient over random examples: the noise scale, and signal to noise by layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.gradients.quantities.declaring import Whole, register
from functional_nn.gradients.quantities.per_example import layer_squares
from functional_nn.gradients.views import View
from functional_nn.networks.network import Params
from functional_nn.precision import wide


class Noise(NamedTuple):
    r"""Signal and noise of a gradient over random examples; both estimates are unbiased.

    A batch of `scale` examples has as much noise as signal.

    Attributes:
        scale: noise / signal; inf where the signal is lost in the noise.
        signal: :math:`\lVert G \rVert^2`.
        noise: :math:`\mathrm{tr}(\Sigma)`.

    Example:
        See `noise_scale`.

        >>> import functional_nn as fnn
        >>> fnn.quantities.Noise(scale=2.0, signal=1.0, noise=2.0).scale
        2.0
    """

    scale: Array
    signal: Array
    noise: Array


class NoiseScale(NamedTuple):
    """The `Noise` of the whole gradient, and of each layer.

    Attributes:
        total: Of the whole gradient.
        layers: {layer: Noise}.

    Example:
        See `noise_scale`.

        >>> import functional_nn as fnn
        >>> fnn.quantities.NoiseScale._fields
        ('total', 'layers')
    """

    total: Noise
    layers: dict[str, Noise]


def _square(tree: Params) -> Array:
    return sum(jnp.sum(wide(leaf) ** 2) for leaf in jax.tree.leaves(tree))


def _layer_moments(view: View) -> tuple[dict[str, Array], Params]:
    """Returns {layer: mean `|g_q|^2`}, and the mean of g_q."""
    part = view.part
    return {name: jnp.sum(n * part) for name, n in layer_squares(view.gradients).items()}, view.contract(part)


def _noise_scale(moments: tuple[dict[str, Array], Params], whole: Whole) -> NoiseScale:
    part = whole.examples.part
    counted = np.count_nonzero(part) if checks.is_concrete(part) else whole.count
    if counted < 2:
        raise ValueError(f"noise_scale: expected at least two examples, got {counted}")
    squares, mean = moments
    of_mean = {name: _square(own) for name, own in mean.items()}
    inverse_count = jnp.sum(whole.examples.part**2)  # 1 / Q, with equal weights

    def noise(square: Array, square_of_mean: Array) -> Noise:
        trace = jnp.maximum(square - square_of_mean, 0) / (1 - inverse_count)  # rounding may leave a number below 0
        signal = square_of_mean - trace * inverse_count
        return Noise(jnp.where(signal > 0, trace / jnp.where(signal > 0, signal, 1), jnp.inf), signal, trace)

    layers = {name: noise(squares[name], of_mean[name]) for name in squares}
    return NoiseScale(noise(sum(squares.values()), sum(of_mean.values())), layers)


@register(adds=True, finish=_noise_scale)
def noise_scale(view: View) -> tuple[dict[str, Array], Params]:
    r"""Estimates the gradient noise scale :math:`\mathrm{tr}(\Sigma) / \lVert G \rVert^2` from the batch.

    Returns:
        A `NoiseScale`: total, and by layer.

    Raises:
        ValueError: For a single example.

    References:
        McCandlish et al. 2018 (arXiv 1812.06162), Eq. 2.9 and App. A.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> found = fnn.quantities.noise_scale(network, "cross_entropy", *data)
        >>> sorted(found.layers), bool(found.total.noise > 0)
        (['layer1', 'layer2'], True)
    """
    return _layer_moments(view)


def _signal_to_noise(moments: tuple[dict[str, Array], Params], whole: Whole) -> dict[str, Array]:
    squares, mean = moments
    of_mean = {name: _square(own) for name, own in mean.items()}
    return {name: jnp.sqrt(of_mean[name] / jnp.maximum(squares[name] - of_mean[name], 0)) for name in squares}


@register(adds=True, finish=_signal_to_noise)
def signal_to_noise(view: View) -> tuple[dict[str, Array], Params]:
    """Returns, for each layer, the norm of the mean gradient over the standard deviation of the examples' gradients.

    Returns:
        {layer: ratio}; inf where all examples agree, nan for a layer without gradient.

    References:
        Shwartz-Ziv and Tishby 2017 (arXiv 1703.00810).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> bool(fnn.quantities.signal_to_noise(network, "cross_entropy", *data)["layer2"] < 10)
        True
    """
    return _layer_moments(view)
