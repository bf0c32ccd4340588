r"""Normalization: net inputs minus their mean, over their deviation, with a learned gain and shift of each channel.

Letters: Q examples, P positions, C channels, G groups of them; n `(Q, *P, C)`; g = dF/da, r a tangent of n. For a set
of M numbers, mu and v are their mean and variance, and <.> is a mean over the set:

.. math::

    x = \frac{n - \mu}{\sigma}, \qquad \sigma = \sqrt{v + \epsilon}, \qquad a = \mathrm{gain} \cdot x + \mathrm{shift}

The rows differ in the set:

    - layer_norm: the channels of one position (Ba, Kiros and Hinton 2016);
    - rms_norm: the same, with mu = 0 and without a shift (Zhang and Sennrich 2019);
    - group_norm: a group's channels at all positions (Wu and He 2018);
    - batch_norm: a channel at all positions of all examples (Ioffe and Szegedy 2015).

Backward. Each n_i changes x_i, and through mu and v all numbers of its set, since dmu/dn_i = 1/M and
dsigma/dn_i = x_i / M. With h = gain g = dF/dx,

.. math::

    \begin{aligned}
    \frac{\partial x_j}{\partial n_i} &= \frac{1}{\sigma} \left(\delta_{ij} - \frac{1}{M} - \frac{x_i x_j}{M}\right) \\
    s_i = \frac{\partial F}{\partial n_i} &= \frac{h_i - \langle h \rangle - x_i \langle h x \rangle}{\sigma} =: (L h)_i
    \end{aligned}

without <h> where there is no mu. L is symmetric, so that x changes by R{x} = L r along r, and

.. math::

    R\{a\} = \mathrm{gain} \, R\{x\} + R\{\mathrm{gain}\} \, x + R\{\mathrm{shift}\}

An example adds the sums of g x and of g over positions to dF/dgain and dF/dshift. Second order, at fixed g, from
R{1/sigma} = -<x r> / sigma^2 and R{h} = g R{gain}:

.. math::

    R\{s\} = L R\{h\} - \frac{R\{x\} \langle h x \rangle + x \langle h R\{x\} \rangle}{\sigma}
        - s \frac{\langle x r \rangle}{\sigma}, \qquad R\{g x\} = g R\{x\}

`kept` is x and 1 / sigma. Means are taken in at least float32.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks
from functional_nn.networks.activations.activation import Activation, Running, Theta, get, register
from functional_nn.networks.connections import Factors, Shape
from functional_nn.precision import wide
from functional_nn.reductions import over_positions
from functional_nn.rows import cached, remember


class _Set(NamedTuple):
    """The numbers by whose mean and variance a number is normalized.

    groups: of channels, None where each channel is by itself. positions, examples: does the set contain all of them?
    centred: is the mean subtracted?
    """

    groups: int | None = 1
    positions: bool = False
    examples: bool = False
    centred: bool = True

    def check_channels(self, channels: int) -> None:
        """Raises ValueError if the groups do not divide the channels."""
        if self.groups and channels % self.groups:
            raise ValueError(f"needs channels that {self.groups} groups divide, got {channels}")

    def check(self, name: str, n: Shape) -> None:
        """Raises ValueError for net inputs `(Q, *P, C)` without such sets."""
        self.check_channels(n[-1])
        if self.examples and self.count(n) == 1:
            raise ValueError(
                f"{name} needs more than one number of each channel, got a single example without positions"
            )

    def count(self, n: Shape) -> int:
        """M, how many numbers a set of net inputs `(Q, *P, C)` has."""
        several = (n[0] if self.examples else 1) * (math.prod(n[1:-1]) if self.positions else 1)
        return several * (n[-1] // self.groups if self.groups else 1)

    def sums(self, x: Array) -> Array:
        """(Q, C) over the positions, where they are in the set; else x."""
        if not self.positions or x.ndim == 2:
            return x
        return over_positions(x.reshape(len(x), -1, x.shape[-1]))

    def mean(self, x: Array, sums: Array | None = None) -> Array:
        """<x>, with 1 for axes that are in the set; computed from its `sums` if they are passed."""
        found = self.sums(x) if sums is None else sums
        if self.examples:
            found = lax.expand_dims(lax.reduce_sum(found, (0,)), (0,))
        if self.groups == 1:
            found = lax.expand_dims(lax.reduce_sum(found, (found.ndim - 1,)), (found.ndim - 1,))
        elif self.groups is not None:
            grouped = lax.reshape(found, (*found.shape[:-1], self.groups, found.shape[-1] // self.groups))
            total = lax.reduce_sum(grouped, (grouped.ndim - 1,))
            total = lax.broadcast_in_dim(total, grouped.shape, range(total.ndim))
            found = lax.reshape(total, found.shape)
        found = found / self.count(x.shape)
        return lax.expand_dims(found, range(1, 1 + x.ndim - found.ndim))

    def centre(self, x: Array) -> Array:
        return x - self.mean(x) if self.centred else x


class _Normalized(NamedTuple):
    """x and 1 / sigma; mean and variance, where running statistics need them."""

    x: Array
    inverse: Array
    mean: Array | None = None
    variance: Array | None = None


def _normalization(
    name: str, over: _Set, epsilon: float, statistics: Callable | None = None, running: Running | None = None
) -> Activation:
    def forward(n, theta):
        over.check(name, n.shape)
        numbers = wide(n)
        mean = over.mean(numbers) if over.centred else None
        centred = numbers if mean is None else numbers - mean
        variance = over.mean(centred * centred)
        inverse = lax.rsqrt(variance + epsilon)
        x = (centred * inverse).astype(n.dtype)
        kept = _Normalized(x, inverse, *((mean, variance) if running else ()))
        return _scaled(x, theta), kept

    def linear(h, kept):
        # L h, and <h x>
        x = wide(kept.x)
        along = over.mean(h * x)
        return (over.centre(h) - x * along) * kept.inverse, along

    def pullback(g, n, a, kept, theta):
        # L h, its two means from the sums for gain and shift
        gain, x = theta["gain"], wide(kept.x)
        h, gains, shifts = wide(g * _per_channel(gain, g)), over.sums(wide(g) * x), over.sums(wide(g))

        def weighed(sums):
            return over.mean(h, sums * _per_channel(wide(gain), sums))

        centred = h - weighed(shifts) if over.centred else h
        s = (centred - x * weighed(gains)) * kept.inverse
        return s.astype(g.dtype), _shares(gains.astype(g.dtype), shifts.astype(g.dtype), theta)

    def pushforward(r, r_theta, n, a, kept, theta):
        r_x = linear(wide(r), kept)[0].astype(r.dtype)
        return r_x * _per_channel(theta["gain"], r) + _scaled(kept.x, r_theta)

    def second_order(g, r, r_theta, n, a, kept, theta):
        x, h = wide(kept.x), wide(g * _per_channel(theta["gain"], g))
        s, along = linear(h, kept)
        r_x, stretch = linear(wide(r), kept)  # <x r>
        r_s = linear(wide(g * _per_channel(r_theta["gain"], g)), kept)[0]
        gains = over.sums(wide(g) * r_x).astype(g.dtype)
        r_s = r_s - (r_x * along + x * over.mean(h * r_x) + s * stretch) * kept.inverse
        return r_s.astype(g.dtype), _shares(gains, jnp.zeros_like(gains), theta)

    def slopes(n, a, kept, theta):
        # L_ii, scaled
        own = 1 - (float(over.centred) + wide(kept.x) ** 2) / over.count(n.shape)
        return _per_channel(theta["gain"], n) * (own * kept.inverse).astype(a.dtype)

    def parameters(size: int, dtype) -> Theta:
        over.check_channels(size)
        gain = {"gain": jnp.ones(size, dtype)}
        return gain | ({"shift": jnp.zeros(size, dtype)} if over.centred else {})

    return Activation(
        name,
        forward,
        pullback,
        pushforward,
        second_order,
        slopes=slopes,
        parameters=parameters,
        initializer="he_normal",
        statistics=statistics,
        running=running,
    )


def _per_channel(x: Array, like: Array) -> Array:
    return lax.expand_dims(x, range(like.ndim - 1))


def _scaled(x: Array, theta: Theta) -> Array:
    # gain x + shift
    a = x * _per_channel(theta["gain"], x)
    return a + _per_channel(theta["shift"], x) if "shift" in theta else a


def _shares(gain: Array, shift: Array, theta: Theta) -> dict[str, Factors]:
    shares = {"gain": Factors(gain, None), "shift": Factors(shift, None)}
    return {name: share for name, share in shares.items() if name in theta}


def _epsilon(name: str, epsilon: float) -> float:
    return checks.constant(name, "epsilon", epsilon, *checks.POSITIVE)


@register
@cached
def layer_norm(epsilon: float = 1e-5) -> Activation:
    """Normalizes the channels of each position by their own mean and deviation.

    Learned: gain (C,) from 1, shift (C,) from 0. Ba, Kiros and Hinton 2016 (arXiv 1607.06450), with the sets of a
    transformer. Over all positions, too, it is group_norm(1).

    Args:
        epsilon: > 0, added to the variance.

    Raises:
        ValueError: epsilon is not > 0.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> theta = {"gain": jnp.ones(3), "shift": jnp.zeros(3)}
        >>> a, kept = fnn.activations.layer_norm().forward(jnp.array([[1.0, 2.0, 3.0]]), theta)
        >>> print(a.round(2))
        [[-1.22  0.    1.22]]
    """
    return _normalization(f"layer_norm({_epsilon('layer_norm', epsilon)})", _Set(), epsilon)


@register
@cached
def rms_norm(epsilon: float = 1e-5) -> Activation:
    """Divides the channels of each position by their root mean square; no mean is subtracted.

    Learned: gain (C,) from 1. Zhang and Sennrich 2019 (arXiv 1910.07467), Eq. 4.

    Args:
        epsilon: > 0, added to the mean square.

    Raises:
        ValueError: epsilon is not > 0.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> a, kept = fnn.activations.rms_norm().forward(jnp.array([[2.0, -2.0]]), {"gain": jnp.ones(2)})
        >>> print(a.round(2))
        [[ 1. -1.]]
    """
    return _normalization(f"rms_norm({_epsilon('rms_norm', epsilon)})", _Set(centred=False), epsilon)


@register
@cached
def group_norm(groups: int = 8, epsilon: float = 1e-5) -> Activation:
    """Normalizes groups of channels, each at all positions, by their own mean and deviation.

    Learned: gain (C,) from 1, shift (C,) from 0. Wu and He 2018 (arXiv 1803.08494), Eq. 1-7; with as many groups as
    channels it is instance norm.

    Args:
        groups: G, which divides the channels.
        epsilon: > 0, added to the variance.

    Raises:
        ValueError: groups is not a positive integer or epsilon is not > 0. A layer raises it if groups do not divide
            its channels.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.activations.group_norm(4)
        <activation group_norm(4, 1e-05)>
    """
    groups = checks.integer("group_norm", "groups", groups, 1)
    name = f"group_norm({groups}, {_epsilon('group_norm', epsilon)})"
    return _normalization(name, _Set(groups=groups, positions=True), epsilon)


@register
@cached
def batch_norm(decay: float = 0.9, epsilon: float = 1e-5) -> Activation:
    """Normalizes each channel by its mean and deviation over all positions of all examples of the batch.

    Learned: gain (C,) from 1, shift (C,) from 0. Ioffe and Szegedy 2015 (arXiv 1502.03167), Alg. 1.

    An example's output depends on the others of its batch, so that no example has a derivative by itself: gradients,
    Hessian products and `compare` are defined, per-example quantities are not. Weights of examples do not weigh the
    mean and variance. The examples that fill up a last mini-batch count in them, since they are examples of the data.

    Running statistics are in the parameters, under "statistics": mean and variance (C,), the latter that of Alg. 2,
    M / (M - 1) times the batch's, and count (1,). `fit` updates them with every batch, m <- m + rate (batch's - m) with
    rate = max(1 - decay, 1 / (count + 1)): a plain average at first, so that their start has no influence, then an
    exponential one. `network.apply`, `evaluate` and held-out losses use them instead of the batch;
    `fnn.inference_mode(network)` is the network that does. Its outputs are nan before any batch.

    Args:
        decay: in [0, 1), of the running statistics. (PyTorch's momentum is 1 - decay.)
        epsilon: > 0, added to the variance.

    Raises:
        ValueError: decay is not in [0, 1) or epsilon is not > 0; for a batch of one example without positions.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("batch_norm(0.99)", "softmax"))
        >>> sorted(network.init(jax.random.key(0))["layer1"]["statistics"])
        ['count', 'mean', 'variance']
    """
    decay = checks.constant("batch_norm", "decay", decay, lambda v: (v >= 0) & (v < 1), "in [0, 1)")
    name = f"batch_norm({decay}, {_epsilon('batch_norm', epsilon)})"
    batch = _Set(groups=None, positions=True, examples=True)

    def after(statistics: Theta, kept: _Normalized) -> Theta:
        many = batch.count(kept.x.shape)
        seen = {"mean": kept.mean, "variance": kept.variance * (many / (many - 1))}
        count = statistics["count"]
        # where the plain average ends, at the latest where the dtype cannot count further
        longest = min(math.ceil(1 / (1 - decay)), 2 ** (jnp.finfo(count.dtype).nmant + 1))
        rate = jnp.where(count < longest, jnp.maximum(1 - decay, 1 / (wide(count) + 1)), 1 - decay)

        def moved(name):
            old = wide(statistics[name])
            return (old + rate * (seen[name].reshape(old.shape) - old)).astype(statistics[name].dtype)

        return {"mean": moved("mean"), "variance": moved("variance"), "count": jnp.minimum(count + 1, longest)}

    running = Running(after, _by_statistics(f"{name} by its statistics", epsilon))
    remember(running.inference, _inference_of, (name,))
    return _normalization(name, batch, epsilon, _no_statistics, running)


def _no_statistics(size: int, dtype) -> Theta:
    zeros = jnp.zeros(size, dtype)
    return {"mean": zeros, "variance": zeros, "count": jnp.zeros(1, dtype)}


def _inference_of(name: str) -> Activation:
    return get(name).running.inference


def _by_statistics(name: str, epsilon: float) -> Activation:
    """gain (n - mean) / sqrt(variance + epsilon) + shift, with mean and variance that are not learned."""

    def forward(n, theta):
        mean, variance, count = (wide(lax.stop_gradient(theta[each])) for each in ("mean", "variance", "count"))
        inverse = jnp.where(count > 0, lax.rsqrt(variance + epsilon), jnp.nan)  # nan: no batch yet
        mean, inverse = _per_channel(mean, n), _per_channel(inverse, n)
        x = ((wide(n) - mean) * inverse).astype(n.dtype)
        return _scaled(x, theta), _Normalized(x, inverse.astype(n.dtype))

    def pullback(g, n, a, kept, theta):
        return g * _per_channel(theta["gain"], g) * kept.inverse, _shares(g * kept.x, g, theta)

    def pushforward(r, r_theta, n, a, kept, theta):
        return r * _per_channel(theta["gain"], r) * kept.inverse + _scaled(kept.x, r_theta)

    def second_order(g, r, r_theta, n, a, kept, theta):
        bent = g * _per_channel(r_theta["gain"], g) * kept.inverse
        return bent, _shares(g * r * kept.inverse, jnp.zeros_like(g), theta)

    def parameters(size: int, dtype) -> Theta:
        return {"gain": jnp.ones(size, dtype), "shift": jnp.zeros(size, dtype)}

    return Activation(
        name,
        forward,
        pullback,
        pushforward,
        second_order,
        parameters=parameters,
        initializer="he_normal",
        alone=True,
        statistics=_no_statistics,
    )
