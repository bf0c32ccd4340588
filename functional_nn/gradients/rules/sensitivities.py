"""Rules that change sensitivities: noise, few bits, dropout, clipping, and a derivative where there is none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, precision, reductions
from functional_nn.gradients import draws, factors
from functional_nn.gradients.rules.lookup import as_int, number, register
from functional_nn.gradients.rules.rule import Place, Rule
from functional_nn.networks.network import Layer


@register
def noisy(sigma: float) -> Rule:
    """Returns the rule s + sigma rms(s) noise, which is unbiased.

    The noise of a layer's sensitivities is in units of their root mean square over the batch, so that sigma means the
    same for every loss and batch. It is independent and nearly normal.

    Args:
        sigma: Number >= 0.

    Returns:
        The rule. It draws at every update.

    Raises:
        ValueError: For sigma < 0.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="noisy(0.1)")
        >>> value, gradient = step(params, x, t, None, jax.random.key(2))
        >>> gradient["layer1"]["bias"].shape
        (4,)
    """
    sigma = checks.constant("noisy", "sigma", sigma, *checks.NON_NEGATIVE)

    def alter(place: Place, s: Array) -> Array:
        wide = precision.wide(s)  # the squares of 16-bit numbers may be 0
        size = jnp.sqrt(reductions.total(wide**2) / s.size) * jnp.asarray(sigma, wide.dtype)
        return (wide + size * draws.nearly_normal(place.stream, s.shape, wide.dtype)).astype(s.dtype)

    return Rule(f"noisy({number(sigma)})", alter=alter, random=True)


@register
def rounded(bits: int, stochastic: bool = True) -> Rule:
    """Returns the rule that keeps s in a few bits.

    There are 2^bits - 1 levels, evenly spaced from -m to m with 0 among them, m being the layer's largest `|s|`; one
    bit has the two levels m and -m.

    Args:
        bits: Integer from 1 to 24.
        stochastic: True rounds to one of the two nearest levels at random, which is unbiased. False rounds to the
            nearest; one bit then takes the sign of s, times the mean of `|s|`.

    Returns:
        The rule. It draws at every update if it is stochastic.

    Raises:
        ValueError: For bits < 1 and above 24.

    References:
        Gupta et al. 2015 (arXiv 1502.02551); Wen et al. 2017 (arXiv 1705.07878), for one and a half bits.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> value, gradient = fnn.value_and_grad(network, "cross_entropy", rule="rounded(4, false)")(params, x, t)
        >>> gradient["layer1"]["bias"].shape
        (4,)
    """
    stochastic = checks.boolean("rounded", "stochastic", stochastic)
    bits = as_int(bits)
    if checks.is_concrete(bits):
        bits = checks.integer("rounded", "bits", bits, 1)
        if bits > 24:
            raise ValueError(f"rounded: bits must be at most 24, got {bits}")

    def alter(place: Place, s: Array) -> Array:
        wide = precision.wide(s)  # 16 bits do not resolve the probabilities
        between = draws.uniform(place.stream, s.shape, wide.dtype) if stochastic else None
        return round_to_bits(wide, bits, between).astype(s.dtype)

    name = f"rounded({bits if isinstance(bits, int) else '...'}{'' if stochastic else ', stochastic=false'})"
    # one bit takes the mean size, which also runs over neurons that pad a layer
    pads = not stochastic and isinstance(bits, int) and bits > 1
    return Rule(name, alter=alter, random=stochastic, pads=pads)


def round_to_bits(s: Array, bits: Any, between: Array | None) -> Array:
    """Rounds s as `rounded` does; between: uniform from -1 to 1, which decides, or None for the nearest."""
    largest = reductions.largest(jnp.abs(s))
    scale = jnp.where(largest > 0, largest, 1)

    def one_bit() -> Array:
        if between is None:
            return jnp.sign(s) * (reductions.total(jnp.abs(s)) / s.size)
        return jnp.where(s > between * scale, scale, -scale)

    def several_bits(steps: Array) -> Array:  # steps on either side of 0
        at = s * (steps / scale)
        at = jnp.round(at) if between is None else jnp.floor(at + (between / 2 + 0.5))
        return at * (scale / steps)

    if isinstance(bits, int):
        rounded_values = one_bit() if bits == 1 else several_bits(jnp.asarray(2 ** (bits - 1) - 1, s.dtype))
    else:
        steps = jnp.exp2(jnp.asarray(bits, s.dtype) - 1) - 1
        rounded_values = jnp.where(steps > 0, several_bits(jnp.where(steps > 0, steps, 1)), one_bit())
    return jnp.where(largest > 0, rounded_values, 0)


@register
def dropped_back(rate: float) -> Rule:
    """Returns the rule that sets each element of s to 0 with probability `rate` and divides the others by 1 - rate.

    It is unbiased. Both the layer's own gradient and what goes further back see the result.

    Args:
        rate: Number in [0, 1).

    Returns:
        The rule. It draws at every update.

    Raises:
        ValueError: For a rate outside [0, 1).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="dropped_back(0.5)")
        >>> value, gradient = step(params, x, t, None, jax.random.key(2))
        >>> gradient["layer1"]["bias"].shape
        (4,)
    """
    rate = checks.constant("dropped_back", "rate", rate, lambda r: (r >= 0) & (r < 1), "in [0, 1)")

    def alter(place: Place, s: Array) -> Array:
        wide = precision.wide(s)  # in 16 bits, 1 - rate and the probability of staying differ
        own = jnp.asarray(rate, wide.dtype)
        stays = draws.uniform(place.stream, s.shape, wide.dtype) >= 2 * own - 1
        return (wide * jnp.where(stays, 1 / (1 - own), 0)).astype(s.dtype)

    return Rule(f"dropped_back({number(rate)})", alter=alter, random=True)


@register
def clipped_back(norm: float) -> Rule:
    """Returns the rule that keeps every example's s no longer than `norm`, in every layer.

    It is scaled down where dF_q/dn, the sensitivity of the example's own loss, is longer, so that the size of the batch
    does not matter. What goes further back is scaled too.

    Args:
        norm: Number > 0.

    Returns:
        The rule.

    Raises:
        ValueError: For a norm <= 0.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> value, gradient = fnn.value_and_grad(network, "cross_entropy", rule="clipped_back(0.1)")(params, x, t)
        >>> gradient["layer1"]["bias"].shape
        (4,)
    """
    norm = checks.constant("clipped_back", "norm", norm, *checks.POSITIVE)

    def alter(place: Place, s: Array) -> Array:
        length = jnp.sqrt(factors.row_squares(s))
        allowed = jnp.asarray(norm, length.dtype) * place.share().astype(length.dtype)
        scale = jnp.where(length > allowed, allowed / jnp.where(length > 0, length, 1), 1)
        return factors.over_rows(s, scale)

    return Rule(f"clipped_back({number(norm)})", alter=alter, pads=True)


@register
def surrogate(slope: float = 1.0) -> Rule:
    """Returns the rule that puts a derivative where an activation has none.

    Networks of threshold neurons can be trained with it. In a layer without derivative s = g h / (1 + slope `|n|`)^2,
    with h the height of the step: 1 for hardlim, 2 for hardlims. Layers that have a derivative keep it.

    Args:
        slope: Number > 0.

    Returns:
        The rule.

    Raises:
        ValueError: For a slope <= 0.

    References:
        Zenke and Ganguli 2018 (arXiv 1705.11146), Eq. 5, where the slope is beta.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("hardlim", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> value, gradient = fnn.value_and_grad(network, "cross_entropy", rule="surrogate")(params, x, t)
        >>> gradient["layer1"]["bias"].shape
        (4,)
    """
    slope = checks.constant("surrogate", "slope", slope, *checks.POSITIVE)

    def rewrite(layer: Layer) -> Layer:
        activation = layer.activation
        if activation.pullback is not None:
            return layer
        height = _height(activation)

        def pullback(g, n, a, kept, theta):
            return g * np.asarray(height, n.dtype) / (1 + jnp.asarray(slope, n.dtype) * jnp.abs(n)) ** 2, {}

        return dataclasses.replace(layer, activation=dataclasses.replace(activation, pullback=pullback))

    return Rule(f"surrogate({number(slope)})", rewrite=rewrite, pads=True)


def _height(activation: Any) -> float:
    with jax.ensure_compile_time_eval():  # also while a program is traced
        low, high = activation.forward(jnp.array([[-1.0, 1.0]], jnp.float32), {})[0][0]
        return float(high - low)
