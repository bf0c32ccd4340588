r"""Pooling, channel by channel: the largest number of each window or of all positions, and the mean of those that
count.

Max pooling (Lecture 2; Zhou and Chellappa 1988):

.. math::

    a_p = \max_i \, n_{p \cdot \mathrm{stride} + i - \mathrm{padding}}

The derivative goes to the largest number: in F'(n)^T g a position receives g_p from every window p of which it is the
largest. Where several tie, as zeros do after a relu, there is no derivative; they share it equally, as in `jnp.max`.
Between ties the map is linear, so that its second derivative is 0.

The backward pass finds the largest again from n, behind a barrier: a compiler may compute n twice, in two fusions, to
different last bits, and then no number equals the maximum of the forward pass.

Letters: Q examples, P positions along each axis, P' windows along each axis, C channels; n `(Q, *P, C)`, a `(Q, *P',
C)`.
"""

import functools
import math

import jax.numpy as jnp
from jax import Array, lax

from functional_nn.networks.activations.activation import Activation, Theta, counted, register
from functional_nn.networks.windows import Padding, Sizes, Window, window_of, with_constants
from functional_nn.rows import cached


@register
@cached
def max_pool(window: Sizes | None = None, stride: Sizes | None = None, padding: Padding = "valid") -> Activation:
    """The largest number of each window, or of all positions: `(Q, *P, C)` -> `(Q, *P', C)` or (Q, C).

    It is used with an identity connection: `Layer("pool", 6, max_pool((2, 2)), sources=[("conv", "identity")],
    bias="none")`.

    Args:
        window: (height, width), or a length for signals of one axis; None takes all positions.
        stride: the step from one window to the next, one for each axis or one for all; by default the window's size.
        padding: as in `connections.conv`. Padding is never the largest.

    Raises:
        ValueError: sizes are not positive integers, or stride and padding are given without a window. A layer raises it
            for a signal that the window does not fit.

    Example:
        >>> from functional_nn import activations
        >>> activations.output_shape(activations.max_pool((2, 2)), (28, 28, 6))
        (14, 14, 6)
    """
    if window is None:
        if stride is not None or padding != "valid":
            raise ValueError("max_pool: stride and padding belong to a window, and none is given")
        return _of_all_positions()
    return _of_windows(window_of("max_pool", "window", window, window if stride is None else stride, 1, padding))


@functools.cache
def _of_windows(window: Window) -> Activation:
    name = with_constants(
        "max_pool",
        window.size,
        {"stride": window.size, "padding": "valid"},
        stride=window.stride,
        padding=window.padding,
    )

    def met(n: Array) -> Array:
        # the elements of every window, (K, Q, *P', C)
        window.check(n.shape[1:])
        window.check_met(n.shape[1:-1])
        return jnp.stack(window.read(n, fill=-jnp.inf))

    def largest(n: Array) -> tuple[list[Array], Array]:
        # for each element of a window 1 if it is the largest, or one of them, else 0; and how many are, P'
        elements = window.read(lax.optimization_barrier(n), fill=-jnp.inf)
        most = functools.reduce(lax.max, elements)
        tied = [lax.convert_element_type(lax.eq(element, most), n.dtype) for element in elements]
        return tied, functools.reduce(lax.add, tied)  # 0 of them where the largest is nan

    def pullback(g, n, a, kept, theta):
        tied, count = largest(n)
        share = lax.div(g, count)
        return window.write([lax.mul(is_largest, share) for is_largest in tied], n.shape[1:-1]), {}

    def pushforward(r, r_theta, n, a, kept, theta):
        tied, count = largest(n)
        return sum(is_largest * x for is_largest, x in zip(tied, window.read(r), strict=True)) / count

    def kink_distance(n):
        # from a position to its best rival in a window, the least over the windows that contain it
        elements = met(n)
        best = jnp.sort(jnp.concatenate([jnp.full_like(elements[:1], -jnp.inf), elements]), axis=0)[-2:]
        gaps = [jnp.abs(element - jnp.where(element == best[1], best[0], best[1])) for element in elements]
        return window.write(gaps, n.shape[1:-1], combine=jnp.minimum, empty=jnp.inf)

    return _pooling(name, lambda n: lax.reduce_max(met(n), (0,)), pullback, pushforward, kink_distance)


@functools.cache
def _of_all_positions() -> Activation:
    def positions(n: Array) -> tuple[int, ...]:
        if n.ndim < 3:
            raise ValueError(f"needs a signal with positions, got shape {n.shape[1:]}")
        return tuple(range(1, n.ndim - 1))

    def along(n: Array, x: Array) -> Array:
        return jnp.expand_dims(x, positions(n))

    def share(n):
        n = lax.optimization_barrier(n)
        tied = jnp.where(n == jnp.max(n, axis=positions(n), keepdims=True), 1, 0).astype(n.dtype)
        return tied / jnp.sum(tied, axis=positions(n), keepdims=True)

    def pushforward(r, r_theta, n, a, kept, theta):
        return jnp.sum(share(n) * r, axis=positions(n))

    def kink_distance(n):
        best = jnp.sort(n.reshape(n.shape[0], -1, n.shape[-1]), axis=1)
        most = along(n, best[:, -1])
        rival = along(n, best[:, -2]) if best.shape[1] > 1 else jnp.full_like(most, -jnp.inf)
        return jnp.abs(n - jnp.where(n == most, rival, most))

    return _pooling(
        "max_pool",
        lambda n: jnp.max(n, axis=positions(n)),
        lambda g, n, a, kept, theta: (along(n, g) * share(n), {}),
        pushforward,
        kink_distance,
    )


@register
@cached
def mean_pool() -> Activation:
    """The mean over all positions, `(Q, *P, C)` -> (Q, C); with lengths, over the positions of each example that
    count.

    The connection of the same name reads all positions, or windows, and needs no layer of its own.

    Raises:
        ValueError: raised by a layer for a signal without positions.

    Example:
        >>> from functional_nn import activations
        >>> activations.output_shape(activations.mean_pool(), (28, 28, 6))
        (6,)
    """

    def share(n: Array, theta: Theta) -> Array:
        # the weight of each position in the mean, (Q or 1, T, 1)
        if n.ndim < 3:
            raise ValueError(f"needs a signal with positions, got shape {n.shape[1:]}")
        positions = math.prod(n.shape[1:-1])
        counts = counted(theta, positions)
        if counts is None:
            return jnp.full((1, positions, 1), 1 / positions, n.dtype)
        own = 1 / jnp.maximum(theta["lengths"], 1).astype(n.dtype)
        return jnp.where(counts, own[:, None], 0)[..., None]

    def mean(n, theta, like):
        return jnp.sum(n.reshape(len(n), -1, n.shape[-1]) * share(like, theta), axis=1)

    def pullback(g, n, a, kept, theta):
        return (g[:, None, :] * share(n, theta)).reshape(n.shape), {}

    return Activation(
        "mean_pool()",
        forward=lambda n, theta: (mean(n, theta, n), None),
        pullback=pullback,
        pushforward=lambda r, r_theta, n, a, kept, theta: mean(r, theta, n),
        second_order=lambda g, r, r_theta, n, a, kept, theta: (jnp.zeros_like(n), {}),
        by_length=True,
    )


def _pooling(name, forward, pullback, pushforward, kink_distance) -> Activation:
    return Activation(
        name,
        forward=lambda n, theta: (forward(n), None),
        pullback=pullback,
        pushforward=pushforward,
        second_order=lambda g, r, r_theta, n, a, kept, theta: (jnp.zeros_like(n), {}),
        kink_distance=kink_distance,
        slopes=lambda n, a, kept, theta: jnp.ones_like(a),  # the sum of the window's shares
    )
