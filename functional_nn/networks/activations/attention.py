r"""Attention: every position reads a mean of all positions, weighted by how well its query matches their keys.

Letters: Q examples, P positions along each axis, T of them in all, H heads, d = S / H numbers of each of query, key and
value in a head; n `(Q, *P, 3 S)` holds them in three blocks, [query | key | value], of S each. For one head (Vaswani et
al. 2017, Eq. 1; the heads are concatenated in a)

.. math::

    x_{tu} = \frac{q_t \cdot k_u}{\sqrt{d}}, \qquad p_t = \mathrm{softmax}_u(x_{tu}), \qquad a_t = \sum_u p_{tu} v_u

A sum over u is over all positions; with `causal` over those up to t; with lengths over those of the example. Of
positions beyond, p and a are 0.

Backward. p_t is a softmax's output, so that :math:`\partial p_{tu} / \partial x_{tw} = p_{tu} (\delta_{uw} - p_{tw})`.
With :math:`g_t = \partial F / \partial a_t`,

.. math::

    \begin{aligned}
    \frac{\partial F}{\partial v_u} &= \sum_t p_{tu} g_t \\
    \frac{\partial F}{\partial p_{tu}} &= g_t \cdot v_u, \qquad
    \frac{\partial F}{\partial x_{tu}} = p_{tu} \left(g_t \cdot v_u - \sum_w p_{tw} \, g_t \cdot v_w\right) =: y_{tu} \\
    \frac{\partial F}{\partial q_t} &= \frac{1}{\sqrt{d}} \sum_u y_{tu} k_u, \qquad
    \frac{\partial F}{\partial k_u} = \frac{1}{\sqrt{d}} \sum_t y_{tu} q_t
    \end{aligned}

A masked position has p_tu = 0, and so y_tu = 0: nothing comes back from it. Along r = (r_q, r_k, r_v), each line
changes as a product does, with g fixed:

.. math::

    \begin{aligned}
    R\{x_{tu}\} &= \frac{r_{q,t} \cdot k_u + q_t \cdot r_{k,u}}{\sqrt{d}}, \qquad
    R\{p_{tu}\} = p_{tu} \left(R\{x_{tu}\} - \sum_w p_{tw} R\{x_{tw}\}\right) \\
    R\{a_t\} &= \sum_u R\{p_{tu}\} v_u + p_{tu} r_{v,u} \\
    R\{y_{tu}\} &= R\{p_{tu}\} \left(g_t \cdot v_u - \sum_w p_{tw} \, g_t \cdot v_w\right)
        + p_{tu} \left(g_t \cdot r_{v,u} - \sum_w p_{tw} \, g_t \cdot r_{v,w} + R\{p_{tw}\} \, g_t \cdot v_w\right)
    \end{aligned}

A number that is added to all keys adds the same to all scores of a query, which softmax ignores: without rotary
positions a bias of the keys has no effect on a, and its derivative is 0, or what rounding makes of it.
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
from functional_nn.rows import cached


class Attended(NamedTuple):
    """What attention keeps.

    Attributes:
        probabilities: p (Q, H, T, T), each row those of one query's position, in at least float32.
    """

    probabilities: Array


class _Heads(NamedTuple):
    """Query, key and value of every head, (Q, H, T, d) each, as their products take them."""

    query: Array
    key: Array
    value: Array


@register
@cached
def attention(heads: int = 1, causal: bool = False, rotary: bool = False) -> Activation:
    """Scaled dot-product attention of a signal to itself, `(Q, *P, 3 S)` -> `(Q, *P, S)`: three net inputs a neuron.

    The layer's weights (3 S, R) hold those of queries, keys and values in three blocks. Positions along several axes
    are taken row by row. The probabilities stay in the trace: `trace.kept[layer].probabilities`.

    Args:
        heads: H, which divides S.
        causal: no position reads a later one.
        rotary: with rotary positions, of base 10000: the first half of a head's numbers is paired with the second.

    Raises:
        ValueError: heads is not a positive integer. A layer raises it if heads do not divide its neurons, or if rotary
            needs an even number of them a head.

    Example:
        >>> from functional_nn import activations
        >>> activations.output_shape(activations.attention(2), (5, 24))
        (5, 8)
    """
    heads = checks.integer("attention", "heads", heads, 1)
    for name, value in {"causal": causal, "rotary": rotary}.items():
        if not isinstance(value, bool):
            raise ValueError(f"attention: {name} must be True or False, got {value!r}")

    return _attention(heads, causal, rotary)


@functools.cache  # one row, whichever type of integer heads is
def _attention(heads: int, causal: bool, rotary: bool) -> Activation:
    def split(n: Array) -> _Heads:
        return _Heads(*_turned(_blocks(n, heads), 1 if rotary else 0))

    def joined(of_heads: _Heads, n: Array) -> Array:
        # each block turned back, and put where n has it
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
    """`(Q, *P, 3 S)` -> (3, Q, H, T, d)."""
    return lax.transpose(n.reshape(len(n), -1, 3, heads, n.shape[-1] // 3 // heads), (2, 0, 3, 1, 4))


def _of_heads(x: Array, heads: int) -> Array:
    """`(Q, *P, S)` -> (Q, H, T, d)."""
    return lax.transpose(x.reshape(len(x), -1, heads, x.shape[-1] // heads), (0, 2, 1, 3))


def _side_by_side(x: Array, n: Array) -> Array:
    """(Q, H, T, d) -> `(Q, *P, S)`, the positions those of n."""
    return lax.transpose(x, (0, 2, 1, 3)).reshape(*n.shape[:-1], -1)


def _turned(x, direction: int):
    """Queries and keys (Q, H, T, d) turned by the angles of their positions, back by them (-1), or unchanged (0)."""
    query, key, value = x
    if direction == 0:
        return query, key, value
    cosine, sine = (jnp.asarray(table, query.dtype)[None, None] for table in _angles(*query.shape[2:]))

    def turn(x: Array) -> Array:
        first, second = jnp.split(x, 2, axis=-1)
        turned = direction * sine
        return jnp.concatenate([first * cosine - second * turned, second * cosine + first * turned], axis=-1)

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
    """x_t . y_u (Q, H, T, T), in at least float32: in 16 bits their differences would be lost, or overflow."""
    return _product(x, y, 3, 3, at_least_float32(x.dtype))


def _mean(p: Array, y: Array) -> Array:
    """sum_u p_tu y_u (Q, H, T, d)."""
    return _product(p.astype(y.dtype), y, 3, 2)


def _gathered(p: Array, x: Array) -> Array:
    """sum_t p_tu x_t (Q, H, T, d), at u."""
    return _product(p.astype(x.dtype), x, 2, 2)


def _dot(x: Array, y: Array) -> Array:
    """The sum over the last axis, which is kept."""
    return jnp.sum(x * y, axis=-1, keepdims=True)


def _softmax_product(x: Array, p: Array) -> Array:
    """(diag(p) - p p^T) x of each row: the Jacobian of softmax, which is symmetric."""
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
    """Of each row, over the positions that are seen. empty: there may be rows where none is, which are 0."""
    if seen is not None:
        x = jnp.where(seen, x, jnp.asarray(jnp.finfo(x.dtype).min, x.dtype))
    e = jnp.exp(x - largest_in_row(x))
    if not empty:
        return e / jnp.sum(e, axis=-1, keepdims=True)
    e = jnp.where(seen, e, 0)
    total = jnp.sum(e, axis=-1, keepdims=True)
    return e / jnp.where(total == 0, 1, total)
