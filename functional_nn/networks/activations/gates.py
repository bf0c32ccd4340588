r"""Gates, where half of a neuron's net inputs lets the other half through; and positions, told apart by waves.

Letters: Q examples, P positions, S neurons; n `(Q, *P, 2 S)` of a gate, with the two pieces of a neuron adjacent. n_1
opens the gate and n_2 goes through it (Shazeer 2020, arXiv 2002.05202, Eq. 5):

.. math::

    a = f(n_1) \, n_2, \qquad s_1 = f'(n_1) \, n_2 \, g, \qquad s_2 = f(n_1) \, g

and at fixed g, along r,

.. math::

    \begin{aligned}
    R\{a\} &= f'(n_1) \, r_1 n_2 + f(n_1) \, r_2 \\
    R\{s_1\} &= f''(n_1) \, r_1 n_2 \, g + f'(n_1) \, r_2 \, g, \qquad R\{s_2\} = f'(n_1) \, r_1 \, g
    \end{aligned}
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.networks.activations.activation import Activation, register
from functional_nn.networks.activations.neurons import gelu, sigmoid, silu
from functional_nn.rows import cached


def _gate(name: str, opens: Activation) -> Activation:
    """a = f(n_1) n_2, with f an elementwise row."""

    def pieces(n: Array) -> tuple[Array, Array]:
        return n[..., 0::2], n[..., 1::2]

    def together(first: Array, second: Array) -> Array:
        return jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)

    def forward(n, theta):
        first, second = pieces(n)
        opened, kept = opens.forward(first, {})
        return opened * second, (opened, kept)

    def pullback(g, n, a, kept, theta):
        first, second = pieces(n)
        return together(opens.pullback(g * second, first, *kept, {})[0], g * kept[0]), {}

    def pushforward(r, r_theta, n, a, kept, theta):
        (first, second), (r_first, r_second) = pieces(n), pieces(r)
        return opens.pushforward(r_first, {}, first, *kept, {}) * second + kept[0] * r_second

    def second_order(g, r, r_theta, n, a, kept, theta):
        (first, second), (r_first, r_second) = pieces(n), pieces(r)
        bent = opens.second_order(g * second, r_first, {}, first, *kept, {})[0]
        bent = bent + opens.pullback(g * r_second, first, *kept, {})[0]
        return together(bent, g * opens.pushforward(r_first, {}, first, *kept, {})), {}

    return Activation(name, forward, pullback, pushforward, second_order, pieces=2, alone=True)


glu = register(
    _gate("glu", sigmoid),
    doc="""Gated linear unit: a = sigmoid(n_1) n_2, two net inputs a neuron, the gate first.

    Dauphin et al. 2017, Eq. 1.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.glu.forward(jnp.array([[0.0, 3.0]]), {})[0].round(2))
        [[1.5]]
    """,
)

swiglu = register(
    _gate("swiglu", silu),
    doc="""A gate opened by silu: a = silu(n_1) n_2, two net inputs a neuron (Shazeer 2020).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.swiglu.forward(jnp.array([[1.0, 3.0]]), {})[0].round(2))
        [[2.19]]
    """,
)

geglu = register(
    _gate("geglu", gelu()),
    doc="""A gate opened by gelu: a = gelu(n_1) n_2, two net inputs a neuron (Shazeer 2020).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.geglu.forward(jnp.array([[1.0, 3.0]]), {})[0].round(2))
        [[2.52]]
    """,
)


@register
@cached
def sinusoidal(base: float = 10000.0) -> Activation:
    """n plus a wave of its position: sines and cosines of t base^(-2 i / S), alternating (Vaswani et al. 2017, 3.5).

    Positions are told apart in this way without learning anything; a bias "per_position" learns it. It reads signals
    (Q, T, S) of one axis.

    Args:
        base: > 0, the longest wave has about 2 pi base positions.

    Raises:
        ValueError: base is not > 0; a layer raises it for other signals.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.sinusoidal().forward(jnp.zeros((1, 1, 4)), {})[0])  # at position 0
        [[[0. 1. 0. 1.]]]
    """
    return _sinusoidal(float(checks.constant("sinusoidal", "base", base, *checks.POSITIVE)))


@functools.cache  # one row, whichever type of number base is
def _sinusoidal(base: float) -> Activation:
    def forward(n, theta):
        if n.ndim != 3:
            raise ValueError(f"needs a signal (T, channels), got shape {n.shape[1:]}")
        return n + jnp.asarray(_waves(*n.shape[1:], base), n.dtype)[None], None

    return Activation(
        f"sinusoidal({base})",
        forward,
        pullback=lambda g, n, a, kept, theta: (g, {}),
        pushforward=lambda r, r_theta, n, a, kept, theta: r,
        second_order=lambda g, r, r_theta, n, a, kept, theta: (jnp.zeros_like(g), {}),
    )


@functools.lru_cache(maxsize=64)
def _waves(positions: int, size: int, base: float) -> np.ndarray:
    # (T, S): channel 2 i a sine, channel 2 i + 1 the cosine of the same angle
    channel = np.arange(size)
    angles = np.arange(positions)[:, None] * base ** (-(channel - channel % 2) / size)
    return np.where(channel % 2 == 0, np.sin(angles), np.cos(angles))
