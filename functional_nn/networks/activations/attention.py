"""Attention: every position reads a mean of all, weighed by how well its query meets their keys.

Letters: Q examples, P positions along each axis, T of them in all, H heads, d = S / H numbers a head has of each of
query, key and value; n (Q, *P, 3 S) holds them in three blocks, [query | key | value], of S each; of one head

    x_tu = q_t . k_u / sqrt(d),    p_t = softmax over u of x_tu,    a_t = sum_u p_tu v_u

(Vaswani et al. 2017, Eq. 1; the heads stand side by side in a). A sum over u is over all positions, where `causal` over
those up to t, where lengths are told over those of the example; of positions beyond, p and a are 0.

Backward. p_t is a softmax's output, so that dp_tu/dx_tw = p_tu (delta_uw - p_tw); with g_t = dF/da_t

    dF/dv_u = sum_t p_tu g_t
    dF/dp_tu = g_t . v_u,    dF/dx_tu = p_tu (g_t . v_u - sum_w p_tw g_t . v_w) =: y_tu
    dF/dq_t = sum_u y_tu k_u / sqrt(d),    dF/dk_u = sum_t y_tu q_t / sqrt(d).

What is masked has p_tu = 0, and so y_tu = 0: nothing comes back from it. Along r = (r_q, r_k, r_v), each line changes
as a product does:

    R{x_tu} = (r_q,t . k_u + q_t . r_k,u) / sqrt(d),    R{p_tu} = p_tu (R{x_tu} - sum_w p_tw R{x_tw})
    R{a_t} = sum_u R{p_tu} v_u + p_tu r_v,u
    R{y_tu} = R{p_tu} (g_t . v_u - sum_w p_tw g_t . v_w)
              + p_tu (g_t . r_v,u - sum_w p_tw g_t . r_v,w + R{p_tw} g_t . v_w),    g fixed.

A number that is added to all keys adds the same to all scores of a query, which softmax does not see: without rotary
positions a bias of the keys has no part in a, and its derivative is 0, or what rounding makes of it.

Rotary positions turn q_t and k_u, pair by pair of their numbers, by angles in proportion to t and u, so that their
product knows u - t alone (Su et al. 2021, Eq. 15); a turn's adjoint is the turn back.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.networks.activations.activation import Activation, Theta, counted, register
from functional_nn.networks.activations.neurons import largest_in_row
from functional_nn.precision import at_least_float32
from functional_nn.registry import cached


class Attended(NamedTuple):
    """probabilities: p (Q, H, T, T), of each query's position a row, in at least float32."""

    probabilities: Array


class _Heads(NamedTuple):
    """Query, key and value of every head, (Q, H, T, d) each, as they meet."""

    query: Array
    key: Array
    value: Array


@register
@cached
def attention(heads: int = 1, causal: bool = False, rotary: bool = False) -> Activation:
    """Scaled dot-product attention of a signal to itself, (Q, *P, 3 S) -> (Q, *P, S): three pieces a neuron.

    The layer's weights (3 S, R) hold those of queries, keys and values one under the other. heads: H, which divides S.
    causal: no position reads a later one. rotary: with rotary positions, of base 10000, the first half of a head's
    numbers paired with the second. Positions along several axes are taken row by row. The probabilities stay in the
    trace: `trace.kept[layer].probabilities`. Raises ValueError unless heads is a positive integer; a layer's where they
    do not divide its neurons, or rotary needs an even number of them a head.

    >>> from functional_nn import activations
    >>> activations.output_shape(activations.attention(2), (5, 24))
    (5, 8)
    """
    heads = checks.integer("attention", "heads", heads, 1)
    for name, value in {"causal": causal, "rotary": rotary}.items():
        if not isinstance(value, bool):
            raise ValueError(f"attention: {name} must be True or False, got {value!r}")

    return _attention(heads, causal, rotary)


@functools.cache  # one row, whatever integer heads is
def _attention(heads: int, causal: bool, rotary: bool) -> Activation:
    def split(n: Array) -> _Heads:
        return _Heads(*_turned(_blocks(n, heads), 1 if rotary else 0))

    def joined(of_heads: _Heads, n: Array) -> Array:
        # each block turned back, and where n has it
        x = jnp.stack(_turned(of_heads, -1 if rotary else 0))  # (3, Q, H, T, d)
        return lax.transpose(x, (1, 3, 0, 2, 4)).reshape(n.shape)

    def forward(n, theta):
        _check(heads, rotary, n.shape)
        q, k, v = split(n)
        seen, empty = _seen(q.shape[2], causal, theta), "lengths" in theta
        p = _softmax(_meet(q, k) / math.sqrt(q.shape[-1]), seen, empty)
        return _side_by_side(_mean(p, v), n), Attended(p)

    def pullback(g, n, a, kept, theta):
        (q, k, v), p, g = split(n), kept.probabilities, _of_heads(g, heads)
        y = _softmax_product(_meet(g, v), p) / math.sqrt(q.shape[-1])
        return joined(_Heads(_mean(y, k), _gathered(y, q), _gathered(p, g)), n), {}

    def moved(r, n, kept):
        # R{p}, and r of the heads
        (q, k, _), p, r = split(n), kept.probabilities, split(r)
        return _softmax_product((_meet(r.query, k) + _meet(q, r.key)) / math.sqrt(q.shape[-1]), p), r

    def pushforward(r, r_theta, n, a, kept, theta):
        r_p, r = moved(r, n, kept)
        return _side_by_side(_mean(r_p, split(n).value) + _mean(kept.probabilities, r.value), n)

    def second_order(g, r, r_theta, n, a, kept, theta):
        r_p, r = moved(r, n, kept)
        (q, k, v), p, g = split(n), kept.probabilities, _of_heads(g, heads)
        met = _meet(g, v)
        through = met - _dot(p, met)
        r_met = _meet(g, r.value)
        y = p * through / math.sqrt(q.shape[-1])
        r_y = (r_p * through + p * (r_met - _dot(p, r_met) - _dot(r_p, met))) / math.sqrt(q.shape[-1])
        bent = _Heads(_mean(r_y, k) + _mean(y, r.key), _gathered(r_y, q) + _gathered(y, r.query), _gathered(r_p, g))
        return joined(bent, n), {}

    return Activation(
        f"attention({heads}, {causal}, {rotary})",
        forward,
        pullback,
        pushforward,
        second_order,
        pieces=3,
        by_length=True,
    )


def _check(heads: int, rotary: bool, n: tuple[int, ...]) -> None:
    neurons = n[-1] // 3
    if len(n) < 3:
        raise ValueError(f"needs a signal with positions, got shape {n[1:]}")
    if neurons % heads:
        raise ValueError(f"has {heads} heads, which do not divide {neurons} neurons")
    if rotary and neurons // heads % 2:
        raise ValueError(f"turns pairs of numbers, and a head has {neurons // heads} of {neurons} neurons")


# Between a signal and its heads ---------------------------------------------------------------------------------------


def _blocks(n: Array, heads: int) -> Array:
    """(Q, *P, 3 S) -> (3, Q, H, T, d)."""
    return lax.transpose(n.reshape(len(n), -1, 3, heads, n.shape[-1] // 3 // heads), (2, 0, 3, 1, 4))


def _of_heads(x: Array, heads: int) -> Array:
    """(Q, *P, S) -> (Q, H, T, d)."""
    return lax.transpose(x.reshape(len(x), -1, heads, x.shape[-1] // heads), (0, 2, 1, 3))


def _side_by_side(x: Array, n: Array) -> Array:
    """(Q, H, T, d) -> (Q, *P, S), the positions those of n."""
    return lax.transpose(x, (0, 2, 1, 3)).reshape(*n.shape[:-1], -1)


def _turned(x, direction: int):
    """Queries and keys (Q, H, T, d) turned by the angles of their positions, or back (-1); as they are (0)."""
    query, key, value = x
    if direction == 0:
        return query, key, value
    cosine, sine = (jnp.asarray(table, query.dtype)[None, None] for table in _angles(*query.shape[2:]))

    def turn(x: Array) -> Array:
        first, second = jnp.split(x, 2, axis=-1)
        own = direction * sine
        return jnp.concatenate([first * cosine - second * own, second * cosine + first * own], axis=-1)

    return turn(query), turn(key), value


@functools.lru_cache(maxsize=64)
def _angles(positions: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    # t 10000^(-2 i / d), i = 0 .. d/2 - 1 (Su et al. 2021, Eq. 15): cosines and sines (T, d / 2)
    angles = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    return np.cos(angles), np.sin(angles)


# Products of each example's heads -------------------------------------------------------------------------------------


def _product(x: Array, y: Array, over_x: int, over_y: int, dtype=None) -> Array:
    return lax.dot_general(x, y, (((over_x,), (over_y,)), ((0, 1), (0, 1))), preferred_element_type=dtype)


def _meet(x: Array, y: Array) -> Array:
    """x_t . y_u (Q, H, T, T), in at least float32: what 16 bits leave of it is no difference, and may be no number."""
    return _product(x, y, 3, 3, at_least_float32(x.dtype))


def _mean(p: Array, y: Array) -> Array:
    """sum_u p_tu y_u (Q, H, T, d)."""
    return _product(p.astype(y.dtype), y, 3, 2)


def _gathered(p: Array, x: Array) -> Array:
    """sum_t p_tu x_t (Q, H, T, d), at u."""
    return _product(p.astype(x.dtype), x, 2, 2)


def _dot(x: Array, y: Array) -> Array:
    """The sum over the last axis, which stays."""
    return jnp.sum(x * y, axis=-1, keepdims=True)


def _softmax_product(x: Array, p: Array) -> Array:
    """(diag(p) - p p^T) x of each row, softmax's Jacobian, which is symmetric."""
    return p * (x - _dot(p, x))


def _seen(positions: int, causal: bool, theta: Theta) -> Array | None:
    """Which positions u each t reads, (1, 1, T, T) or (Q, 1, T, T); None where all read all."""
    seen = jnp.asarray(np.tri(positions, dtype=bool))[None, None] if causal else None
    counts = counted(theta, positions)
    if counts is None:
        return seen
    both = (counts[:, :, None] & counts[:, None, :])[:, None]
    return both if seen is None else both & seen


def _softmax(x: Array, seen: Array | None, empty: bool) -> Array:
    """Of each row, over what is seen of it. empty: there may be rows of which nothing is, and they are 0."""
    if seen is not None:
        x = jnp.where(seen, x, jnp.asarray(jnp.finfo(x.dtype).min, x.dtype))
    e = jnp.exp(x - largest_in_row(x))
    if not empty:
        return e / jnp.sum(e, axis=-1, keepdims=True)
    e = jnp.where(seen, e, 0)
    total = jnp.sum(e, axis=-1, keepdims=True)
    return e / jnp.where(total == 0, 1, total)
