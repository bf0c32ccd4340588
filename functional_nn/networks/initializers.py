"""Weights and biases at the start of training.

An initializer draws all weights that meet at one summing junction as one matrix, whatever number of sources they
come from, so that fan-in is the true number of incoming connections: `draw(key, rows, fan_in, fan_out, dtype)`
gives the weights (rows, fan_in) and the bias (rows,). Rows are neurons (neurons times pieces for maxout), fan_out
the number of neurons. Draws are made in at least float32 and then rounded to the dtype asked for.

Where the variances come from: let R = fan_in, S = fan_out, and the weights be independent, of mean 0. Then

    forward    n_i = sum of R terms w_ij a_j      Var(n) = R Var(w) E[a^2]
    back       g_j = sum of S terms w_ij s_i      Var(g) = S Var(w) E[s^2]

so that Var(w) = 1 / R keeps the size of what goes forward, 1 / S of what comes back, and 2 / (R + S) stands between the
two. relu halves the mean square, E[relu(n)^2] = E[n^2] / 2 for n symmetric about 0: 2 / R. U(-l, l) has variance l^2/3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.precision import at_least_float32
from functional_nn.registry import Described, Registry

_FEW, _MANY = 4096, 2**20  # of weights that are drawn for several shapes; more are drawn as many as they are
Draw = Callable[[Array, int, int, int, jnp.dtype], tuple[Array, Array]]


class Each(NamedTuple):
    """Weights of which each is drawn by itself, by weights(key, shape, spread, dtype), spread(fan_in, fan_out); biases
    are 0.
    """

    weights: Callable[[Array, tuple[int, ...], float | Array, jnp.dtype], Array]
    spread: Callable[[int, int], float]


@dataclass(frozen=True)
class Initializer(Described):
    """A rule for the parameters of a layer; `sets_bias` where the biases it gives differ between neurons; `each` where
    it draws each weight by itself, so that one program draws for layers of many widths (`in_corner`).
    """

    name: str
    draw: Draw
    sets_bias: bool = False
    each: Each | None = None

    def __repr__(self) -> str:
        return f"<initializer {self.name}>"


_registry: Registry[Initializer] = Registry("initializer", Initializer)
register, names, get = _registry.register, _registry.names, _registry.get


def _zero_bias(name: str, each: Each) -> Initializer:
    def draw(key, rows, fan_in, fan_out, dtype):
        drawn = _drawn(each, key, (rows, fan_in), each.spread(fan_in, fan_out), at_least_float32(dtype))
        bias = jax.device_put(np.zeros(rows, dtype)) if checks.is_concrete(drawn) else jnp.zeros(rows, dtype)
        return drawn.astype(dtype), bias

    return Initializer(name, draw, each=each)


def _drawn(each: Each, key: Array, shape: tuple[int, int], spread: float, dtype) -> Array:
    """The weights. Where nothing is traced each shape would be a program to compile, a fifth of a second: instead the
    first are taken of as many as layers of many shapes have drawn, which are the same.
    """
    count, many = math.prod(shape), _FEW
    if not checks.is_concrete(key) or count > _MANY or not draws_by_place(key):
        return each.weights(key, shape, spread, dtype)
    while many < count:
        many *= 4
    drawn = each.weights(key, (many,), spread, dtype)
    if not checks.is_concrete(drawn):  # the key is a constant of what is traced
        return drawn[:count].reshape(shape)
    return jax.device_put(jax.device_get(drawn)[:count].reshape(shape))


def _normal(name: str, variance: Callable[[int, int], float]) -> Initializer:
    def weights(key, shape, deviation, dtype):
        # The draw has a factor of its own, sqrt(2), with which the compiler would join the deviation: by a rounding
        # other weights than where nothing is compiled.
        return deviation * lax.optimization_barrier(jax.random.normal(key, shape, dtype))

    return _zero_bias(name, Each(weights, lambda fan_in, fan_out: math.sqrt(variance(fan_in, fan_out))))


def _uniform(name: str, variance: Callable[[int, int], float]) -> Initializer:
    def weights(key, shape, limit, dtype):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    # a uniform variable on [-l, l] has variance l^2 / 3
    return _zero_bias(name, Each(weights, lambda fan_in, fan_out: math.sqrt(3 * variance(fan_in, fan_out))))


def draws_by_place(key: Array) -> bool:
    """Does what this key draws for a place in an array depend on nothing but the place's number, so that a larger array
    begins with a smaller one's draws? So it is by JAX's own kind of key, unless JAX is told otherwise.
    """
    return str(jax.random.key_impl(key)) == "threefry2x32" and jax.config.jax_threefry_partitionable


def in_corner(initializer: Initializer, fan_in: Array, spread: Array, columns: Array) -> Initializer:
    """What draws for a layer, bitwise, the weights that `initializer`, which has `each`, draws for a narrower one, by
    keys that `draws_by_place`: in the first of its rows, and in each of its columns that one of the narrower layer's
    whose number `columns` (fan-in of the wide,) has. All three may be traced. What is in other rows means nothing.
    """

    def draw(key, rows, wide_fan_in, fan_out, dtype):
        wide = at_least_float32(dtype)
        drawn = initializer.each.weights(key, (rows * wide_fan_in,), spread.astype(wide), wide)
        places = jnp.arange(rows, dtype=columns.dtype)[:, None] * fan_in + columns[None, :]
        return drawn[places].astype(dtype), jnp.zeros(rows, dtype)

    return Initializer(f"{initializer.name} in a corner", draw)


def _positive(initializer: str, constant: str, value: float) -> None:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{initializer}: {constant} must be a positive number, got {value!r}")


@register
def zeros() -> Initializer:
    """Every weight and bias 0: nothing tells the neurons of a layer apart (CSE 475 19.70.1)."""
    return constant(0.0)


@register
def constant(value: float = 0.1) -> Initializer:
    """Every weight `value`, every bias 0."""
    if not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(f"constant: value must be a finite number, got {value!r}")
    each = Each(lambda key, shape, spread, dtype: jnp.full(shape, spread, dtype), lambda fan_in, fan_out: value)
    return _zero_bias(f"constant({value})", each)


@register
def normal(deviation: float = 0.1) -> Initializer:
    """Weights from N(0, deviation^2), whatever the fan-in."""
    _positive("normal", "deviation", deviation)
    return _normal(f"normal({deviation})", lambda fan_in, fan_out: deviation**2)


@register
def uniform(limit: float = 0.1) -> Initializer:
    """Weights from U(-limit, limit), whatever the fan-in."""
    _positive("uniform", "limit", limit)
    return _uniform(f"uniform({limit})", lambda fan_in, fan_out: limit**2 / 3)


@register
def xavier_uniform() -> Initializer:
    """Variance 2 / (fan_in + fan_out), uniform: Glorot and Bengio 2010, Eq. 16."""
    return _uniform("xavier_uniform", lambda fan_in, fan_out: 2 / (fan_in + fan_out))


@register
def xavier_normal() -> Initializer:
    """Variance 2 / (fan_in + fan_out), normal: Glorot and Bengio 2010, Eq. 12."""
    return _normal("xavier_normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out))


@register
def he_uniform() -> Initializer:
    """Variance 2 / fan_in, uniform: He et al. 2015."""
    return _uniform("he_uniform", lambda fan_in, fan_out: 2 / fan_in)


@register
def he_normal() -> Initializer:
    """Variance 2 / fan_in, normal: He et al. 2015, Eq. 10."""
    return _normal("he_normal", lambda fan_in, fan_out: 2 / fan_in)


@register
def lecun_uniform() -> Initializer:
    """Variance 1 / fan_in, uniform: LeCun et al. 1998, Eq. 16."""
    return _uniform("lecun_uniform", lambda fan_in, fan_out: 1 / fan_in)


@register
def lecun_normal() -> Initializer:
    """Variance 1 / fan_in, normal: LeCun et al. 1998, Eq. 16."""
    return _normal("lecun_normal", lambda fan_in, fan_out: 1 / fan_in)


@register
def nguyen_widrow() -> Initializer:
    """Nguyen and Widrow 1990, for sigmoid-like layers whose inputs lie in [-1, 1].

    Each row of weights has length 0.7 S^(1/R) in a random direction, and the biases are spread evenly over that
    length, with the sign of the row's first weight, so that the neurons' active regions tile the inputs. (The paper
    draws the biases at random; evenly spaced, they cover the region without gaps.) Needs a bias per neuron or none.
    """

    def draw(key, rows, fan_in, fan_out, dtype):
        wide = at_least_float32(dtype)
        length = 0.7 * rows ** (1 / fan_in)
        weights = jax.random.uniform(key, (rows, fan_in), wide, -1, 1)
        weights = length * weights / jnp.linalg.norm(weights, axis=1, keepdims=True)
        bias = length * (jnp.linspace(-1, 1, rows, dtype=wide) if rows > 1 else jnp.zeros(1, wide))
        return weights.astype(dtype), (bias * jnp.sign(weights[:, 0])).astype(dtype)

    return Initializer("nguyen_widrow", draw, sets_bias=True)
