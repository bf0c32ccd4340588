r"""Weights and biases at the start of training.

An initializer draws all weights of one summing junction as one matrix, however many sources they come from, so that
fan-in is the true number of incoming connections: `draw(key, rows, fan_in, fan_out, dtype)` returns the weights
(rows, fan_in) and the bias (rows,). Rows are neurons (neurons times pieces for maxout), fan_out is the number of
neurons. Draws are made in at least float32 and then rounded to the requested dtype.

Where the variances come from: let R = fan_in, S = fan_out, and let the weights be independent with mean 0. Then forward
n_i is a sum of R terms w_ij a_j, and backward g_j is a sum of S terms w_ij s_i:

.. math::

    \mathrm{Var}(n) = R \, \mathrm{Var}(w) \, E[a^2], \qquad \mathrm{Var}(g) = S \, \mathrm{Var}(w) \, E[s^2]

Var(w) = 1 / R keeps the size of what goes forward, 1 / S of what comes back, and 2 / (R + S) is between the two. relu
halves the mean square, E[relu(n)^2] = E[n^2] / 2 for n symmetric about 0, which needs 2 / R. The uniform distribution
on [-l, l] has variance l^2 / 3.
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
from functional_nn.registry import Registry
from functional_nn.rows import Constants, Described

__all__ = [
    "Initializer",
    "constant",
    "get",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "names",
    "nguyen_widrow",
    "normal",
    "register",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

_FEW, _MANY = 4096, 2**20  # weights drawn for several shapes at once, and the most that are drawn in this way
Draw = Callable[[Array, int, int, int, jnp.dtype], tuple[Array, Array]]


class Each(NamedTuple):
    """Weights that are each drawn independently; biases are 0.

    Attributes:
        weights: weights(key, shape, spread, dtype) -> array.
        spread: spread(fan_in, fan_out) -> the deviation or the limit.
    """

    weights: Callable[[Array, tuple[int, ...], float | Array, jnp.dtype], Array]
    spread: Callable[[int, int], float]


@dataclass(frozen=True)
class Initializer(Described):
    """A rule for the parameters of a layer at the start.

    Attributes:
        name: how it is shown.
        draw: draw(key, rows, fan_in, fan_out, dtype) -> (weights (rows, fan_in), bias (rows,)).
        sets_bias: True if its biases differ between neurons, so that a layer cannot share one.
        each: set if it draws each weight independently, so that one program draws for layers of many widths
            (`in_corner`).

    Example:
        A custom initializer, whose weights are +1 or -1:

        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> def draw(key, rows, fan_in, fan_out, dtype):
        ...     return jax.random.rademacher(key, (rows, fan_in), dtype), jnp.zeros(rows, dtype)
        >>> signs = fnn.initializers.Initializer("signs", draw)
        >>> fnn.multilayer((3, 4, 2), ("tanh", "softmax"), initializer=signs).layers[0].initializer
        <initializer signs>
    """

    name: str
    draw: Draw
    sets_bias: bool = False
    each: Each | None = None

    def __repr__(self) -> str:
        return f"<initializer {self.name}>"


_registry: Registry[Initializer] = Registry("initializer", Initializer)


def names() -> tuple[str, ...]:
    """Returns the names of the registered initializers.

    Example:
        >>> from functional_nn import initializers
        >>> "he_normal" in initializers.names()
        True
    """
    return _registry.names()


def get(initializer: str | Initializer) -> Initializer:
    """Returns the initializer that a name stands for.

    Args:
        initializer: a name such as "he_normal", a name with constants such as "normal(0.2)", or an `Initializer`,
            which is returned unchanged.

    Raises:
        ValueError: the name is unknown (the message suggests the closest one), or its constants are refused.
        TypeError: neither a name nor an initializer.

    Example:
        >>> from functional_nn import initializers
        >>> initializers.get("normal(0.2)")
        <initializer normal(0.2)>
    """
    return _registry.get(initializer)


def register(factory: Callable[Constants, Initializer]) -> Callable[Constants, Initializer]:
    """Gives a function that makes initializers from constants its name. A decorator.

    Args:
        factory: a function that returns an `Initializer`.

    Returns:
        The function, its results cached.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> @fnn.initializers.register
        ... def eye(scale: float = 1.0) -> fnn.initializers.Initializer:
        ...     def draw(key, rows, fan_in, fan_out, dtype):
        ...         return scale * jnp.eye(rows, fan_in, dtype=dtype), jnp.zeros(rows, dtype)
        ...
        ...     return fnn.initializers.Initializer(f"eye({scale})", draw)
        >>> fnn.multilayer((3, 3), ("relu",), initializer="eye(0.5)").layers[0].initializer
        <initializer eye(0.5)>
    """
    return _registry.register(factory)


def _zero_bias(name: str, each: Each) -> Initializer:
    def draw(key, rows, fan_in, fan_out, dtype):
        drawn = _drawn(each, key, (rows, fan_in), each.spread(fan_in, fan_out), at_least_float32(dtype))
        bias = jax.device_put(np.zeros(rows, dtype)) if checks.is_concrete(drawn) else jnp.zeros(rows, dtype)
        return drawn.astype(dtype), bias

    return Initializer(name, draw, each=each)


def _drawn(each: Each, key: Array, shape: tuple[int, int], spread: float, dtype) -> Array:
    """The weights. Where nothing is traced each shape would be a program to compile, a fifth of a second. Instead they
    are the first of a fixed number of draws that layers of many shapes share; the values are the same.
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
        # The draw itself has a factor sqrt(2), with which the compiler would combine the deviation: the weights would
        # differ by a rounding from those that are drawn without compiling.
        return deviation * lax.optimization_barrier(jax.random.normal(key, shape, dtype))

    return _zero_bias(name, Each(weights, lambda fan_in, fan_out: math.sqrt(variance(fan_in, fan_out))))


def _uniform(name: str, variance: Callable[[int, int], float]) -> Initializer:
    def weights(key, shape, limit, dtype):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    # a uniform variable on [-l, l] has variance l^2 / 3
    return _zero_bias(name, Each(weights, lambda fan_in, fan_out: math.sqrt(3 * variance(fan_in, fan_out))))


def draws_by_place(key: Array) -> bool:
    """Returns True if what this key draws for an entry depends only on the entry's number, so that a larger array
    begins with the draws of a smaller one. This holds for JAX's default kind of key, unless JAX is configured
    otherwise.
    """
    return str(jax.random.key_impl(key)) == "threefry2x32" and jax.config.jax_threefry_partitionable


def in_corner(initializer: Initializer, fan_in: Array, spread: Array, columns: Array) -> Initializer:
    """Returns an initializer for a wide layer that draws, bitwise, the weights of a narrower one.

    They are those that `initializer`, which has `each`, draws for the narrower layer, with keys that `draws_by_place`:
    in the first rows, and in each column the narrower layer's column whose number is in `columns` (wide fan-in,).
    fan_in, spread and columns may be traced. The other rows have no meaning.
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
    """Every weight and bias 0: the neurons of a layer then stay the same (CSE 475 19.70.1).

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("zeros")
        <initializer constant(0.0)>
    """
    return constant(0.0)


@register
def constant(value: float = 0.1) -> Initializer:
    """Every weight `value`, every bias 0.

    Args:
        value: a finite number.

    Raises:
        ValueError: value is not a finite number.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("constant(0.5)")
        <initializer constant(0.5)>
    """
    if not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(f"constant: value must be a finite number, got {value!r}")
    each = Each(lambda key, shape, spread, dtype: jnp.full(shape, spread, dtype), lambda fan_in, fan_out: value)
    return _zero_bias(f"constant({value})", each)


@register
def normal(deviation: float = 0.1) -> Initializer:
    """Weights from N(0, deviation^2), whatever the fan-in; biases 0.

    Args:
        deviation: > 0.

    Raises:
        ValueError: deviation is not a positive number.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("normal(0.2)")
        <initializer normal(0.2)>
    """
    _positive("normal", "deviation", deviation)
    return _normal(f"normal({deviation})", lambda fan_in, fan_out: deviation**2)


@register
def uniform(limit: float = 0.1) -> Initializer:
    """Weights from the uniform distribution on [-limit, limit], whatever the fan-in; biases 0.

    Args:
        limit: > 0.

    Raises:
        ValueError: limit is not a positive number.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("uniform(0.2)")
        <initializer uniform(0.2)>
    """
    _positive("uniform", "limit", limit)
    return _uniform(f"uniform({limit})", lambda fan_in, fan_out: limit**2 / 3)


@register
def xavier_uniform() -> Initializer:
    """Uniform weights of variance 2 / (fan_in + fan_out): Glorot and Bengio 2010, Eq. 16.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("xavier_uniform")
        <initializer xavier_uniform>
    """
    return _uniform("xavier_uniform", lambda fan_in, fan_out: 2 / (fan_in + fan_out))


@register
def xavier_normal() -> Initializer:
    """Normal weights of variance 2 / (fan_in + fan_out): Glorot and Bengio 2010, Eq. 12.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("xavier_normal")
        <initializer xavier_normal>
    """
    return _normal("xavier_normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out))


@register
def he_uniform() -> Initializer:
    """Uniform weights of variance 2 / fan_in: He et al. 2015.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("he_uniform")
        <initializer he_uniform>
    """
    return _uniform("he_uniform", lambda fan_in, fan_out: 2 / fan_in)


@register
def he_normal() -> Initializer:
    """Normal weights of variance 2 / fan_in: He et al. 2015, Eq. 10.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("he_normal")
        <initializer he_normal>
    """
    return _normal("he_normal", lambda fan_in, fan_out: 2 / fan_in)


@register
def lecun_uniform() -> Initializer:
    """Uniform weights of variance 1 / fan_in: LeCun et al. 1998, Eq. 16.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("lecun_uniform")
        <initializer lecun_uniform>
    """
    return _uniform("lecun_uniform", lambda fan_in, fan_out: 1 / fan_in)


@register
def lecun_normal() -> Initializer:
    """Normal weights of variance 1 / fan_in: LeCun et al. 1998, Eq. 16.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("lecun_normal")
        <initializer lecun_normal>
    """
    return _normal("lecun_normal", lambda fan_in, fan_out: 1 / fan_in)


@register
def nguyen_widrow() -> Initializer:
    """Weights and biases for sigmoid-like layers whose inputs are in [-1, 1]: Nguyen and Widrow 1990.

    Each row of weights has length 0.7 S^(1/R) in a random direction. The biases are spread evenly over that length,
    with the sign of the row's first weight, so that the neurons' active regions tile the inputs. (The paper draws the
    biases at random; evenly spaced, they cover the region without gaps.) It needs a bias per neuron, or none.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.initializers.get("nguyen_widrow")
        <initializer nguyen_widrow>
    """

    def draw(key, rows, fan_in, fan_out, dtype):
        wide = at_least_float32(dtype)
        length = 0.7 * rows ** (1 / fan_in)
        weights = jax.random.uniform(key, (rows, fan_in), wide, -1, 1)
        weights = length * weights / jnp.linalg.norm(weights, axis=1, keepdims=True)
        bias = length * (jnp.linspace(-1, 1, rows, dtype=wide) if rows > 1 else jnp.zeros(1, wide))
        return weights.astype(dtype), (bias * jnp.sign(weights[:, 0])).astype(dtype)

    return Initializer("nguyen_widrow", draw, sets_bias=True)
