"""Pooling, channel by channel: the largest number of each window, or of all positions; the mean of those that count.

Max pooling,

    a_p = max over i of n_(p stride + i - padding)        Lecture 2; Zhou and Chellappa 1988

The derivative goes to the largest number, F'(n)^T g: a position receives g_p from every window p of which it is the
largest. Where several tie, as zeros do behind a relu, there is no derivative; they share it equally, as `jnp.max` has
it. Between ties the map is linear, so that its second derivative is 0.

What is the largest is asked of n anew on the way back, behind a barrier: a compiler may compute n twice, in two
fusions, to different last bits, and then nothing is as large as what the forward pass found.

Letters: Q examples, P positions along each axis, P' windows likewise, C channels; n (Q, *P, C), a (Q, *P', C).
"""

import functools
import math

import jax.numpy as jnp
from jax import Array, lax

from functional_nn.networks.activations.activation import Activation, Theta, counted, register
from functional_nn.networks.windows import Window, window_of, with_constants
from functional_nn.registry import cached


@register
@cached
def max_pool(window=None, stride=None, padding="valid") -> Activation:
    """The largest number of each window, (height, width) or a length; windows stand side by side where no stride is
    given. Without a window, that of all positions: (Q, *P, C) -> (Q, C).

    padding as of `connections.conv`; what pads a signal is never the largest. Raises ValueError for sizes that are no
    positive integers; a layer's for a signal that the window cannot go over.

    >>> from functional_nn import activations
    >>> activations.output_shape(activations.max_pool((2, 2)), (28, 28, 6))
    (14, 14, 6)
    """
    if window is None:
        if stride is not None or padding != "valid":
            raise ValueError("max_pool: stride and padding are those of a window, and none is given")
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
        # of every window its elements, (K, Q, *P', C)
        window.check(n.shape[1:])
        window.check_met(n.shape[1:-1])
        return jnp.stack(window.read(n, fill=-jnp.inf))

    def largest(n: Array) -> tuple[list[Array], Array]:
        # of each element of a window, 1 where it is the largest, or one of them, else 0; and how many they are, P'
        parts = window.read(lax.optimization_barrier(n), fill=-jnp.inf)
        most = functools.reduce(lax.max, parts)
        tied = [lax.convert_element_type(lax.eq(part, most), n.dtype) for part in parts]
        return tied, functools.reduce(lax.add, tied)  # 0 of them where the largest is nan

    def pullback(g, n, a, kept, theta):
        tied, count = largest(n)
        share = lax.div(g, count)
        return window.write([lax.mul(one, share) for one in tied], n.shape[1:-1]), {}

    def pushforward(r, r_theta, n, a, kept, theta):
        tied, count = largest(n)
        return sum(one * part for one, part in zip(tied, window.read(r), strict=True)) / count

    def kink_distance(n):
        # of a position to its best rival in a window, the least over the windows that it is in
        parts = met(n)
        best = jnp.sort(jnp.concatenate([jnp.full_like(parts[:1], -jnp.inf), parts]), axis=0)[-2:]
        gaps = [jnp.abs(part - jnp.where(part == best[1], best[0], best[1])) for part in parts]
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
    """The mean over all positions, (Q, *P, C) -> (Q, C); where lengths are told, over those of each example.

    The connection of that name reads all positions, or windows, and needs no layer of its own. Raises ValueError for a
    signal without positions, a layer's.
    """

    def share(n: Array, theta: Theta) -> Array:
        # of each position in the mean, (Q or 1, T, 1)
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
        slopes=lambda n, a, kept, theta: jnp.ones_like(a),  # of the window's shares, the sum
    )
