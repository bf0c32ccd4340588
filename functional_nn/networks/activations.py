"""Transfer functions a = f(n): each row holds its forward map, its hand-written pullback and its second-order action.

Letters: Q examples, S neurons, k maxout pieces, N = S k net inputs of a layer (N = S but for maxout).
`n` net inputs (Q, N), `a` activations (Q, S), `g` = dF/da (Q, S), `r` a tangent of n (Q, N), `theta` the layer's
learned activation parameters, `{}` for most, each of shape (S,) or, shared by the layer, (1,). An activation maps a
whole example's net inputs: of a signal these are (Q, *P, N), and all of the rows below act at each position.

The pullback is F'(n)^T g of Hagan Eq. 3.46 and 3.49, F'(n) (S, N) the Jacobian of one example's row:

                      F'(n)                                F'(n)^T g            its change along r, at fixed g
    a_i = f(n_i)      diag(f'(n))                          f'(n) g              f''(n) r g
    softmax           diag(a) - a a^T, as                  a (g - a.g)          R{a} (g - a.g) - a (R{a}.g),
                      da_i/dn_j = a_i (delta_ij - a_j)                          R{a} = a (r - a.r)
    maxout            1 at each neuron's largest piece     g there, else 0      0

and theta's share of example q is g_i da_i/dtheta_i, a row like a bias's, at each position. Where the derivative is a
function of the output (sigmoid a (1 - a), tanh 1 - a^2, relu, elu, softmax) it is computed from `a`, and `n` need not
be kept.

At a kink there is no derivative, only a convention, and the texts disagree about it. We take JAX's, so that
`jax.grad` of the forward map agrees exactly: relu'(0) = 0 (as `jax.nn.relu`), the shifted relu likewise 0 at -1,
leaky and parametric relu 1 at 0 (`jax.nn.leaky_relu`), elu alpha at 0 (`jax.nn.elu`); tied maxout pieces share
the derivative equally (`jnp.max`).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn.networks.connections import Factors, Shape
from functional_nn.registry import Described, Registry, cached, remember

Theta = dict[str, Array]
Range = Literal["real", "unit interval", "distribution"]


@dataclass(frozen=True)
class Activation(Described):
    """A transfer function with its derivatives. Usually made by `elementwise` or by one of the factories below.

    forward(n, theta) -> (a, kept)                                          (Q, *P, N) -> (Q, *P, S)
    pullback(g, n, a, kept, theta) -> F'(n)^T g, {name: dF_q/dtheta}        (Q, *P, N), each as `Factors`
    pushforward(r, r_theta, n, a, kept, theta) -> R{a} = F'(n) r + ...      (Q, *P, S)
    second_order(g, r, r_theta, n, a, kept, theta) -> R{pullback} at fixed g: ((F''(n) r)^T g, {name: Factors})
    kink_distance(n) -> how far each net input is from a kink or a tie (Q, *P, N); None for a smooth function
    parameters(size, dtype) -> theta at the start of training

    kept: what the derivatives use again, for the trace; None for most. A learned parameter's share of an example is a
    pair of factors like a weight's; Factors(left, None) is the share itself, of each neuron (Q, *P, S), which what
    serves several positions or neurons gets the sum of.

    `gives` says what the outputs are: "real", each in the "unit interval", or each row a "distribution"; losses ask.
    `alone` says that each neuron's output depends on its own net inputs alone, as of `elementwise` and maxout; what
    looks at single neurons (padding, saturation) asks. `pullback` is None for functions through which nothing can be
    trained (hardlim), `second_order` for those without a second derivative.
    """

    name: str
    forward: Callable[[Array, Theta], Array]
    pullback: Callable | None
    pushforward: Callable | None
    second_order: Callable | None
    kink_distance: Callable[[Array], Array] | None = None
    parameters: Callable[[int, jnp.dtype], Theta] | None = None
    pieces: int = 1
    gives: Range = "real"
    initializer: str = "xavier_uniform"
    alone: bool = False

    def __repr__(self) -> str:
        return f"<activation {self.name}>"

    @property
    def smooth(self) -> bool:
        """True where the function has a derivative everywhere."""
        return self.kink_distance is None


def elementwise(
    name: str,
    forward: Callable[[Array], Array],
    derivative: Callable[[Array, Array], Array],
    second_derivative: Callable[[Array, Array], Array] | None = None,
    *,
    kink_distance: Callable[[Array], Array] | None = None,
    gives: Range = "real",
    initializer: str = "xavier_uniform",
) -> Activation:
    """A transfer function that acts on each neuron alone, from f(n), f'(n, a) and f''(n, a), each (Q, S) -> (Q, S).

    Without f'' networks train, but have no Hessian. Raises TypeError for what is no function.

    >>> from functional_nn import activations
    >>> cubic = activations.elementwise("cubic", lambda n: n**3, lambda n, a: 3 * n**2, lambda n, a: 6 * n)
    """
    for what, function in {
        "forward": forward,
        "derivative": derivative,
        "second_derivative": second_derivative,
    }.items():
        if not (callable(function) or (what, function) == ("second_derivative", None)):
            raise TypeError(f"activation {name!r}: {what} must be a function of arrays, got {function!r}")

    def bent(g, r, r_theta, n, a, kept, theta):
        return g * second_derivative(n, a) * r, {}

    return Activation(
        name,
        forward=lambda n, theta: (forward(n), None),
        pullback=lambda g, n, a, kept, theta: (g * derivative(n, a), {}),
        pushforward=lambda r, r_theta, n, a, kept, theta: derivative(n, a) * r,
        second_order=bent if second_derivative else None,
        kink_distance=kink_distance,
        gives=gives,
        initializer=initializer,
        alone=True,
    )


@functools.lru_cache(maxsize=256)
def output_shape(activation: Activation, n: Shape) -> Shape:
    """Of one example's outputs, for net inputs (*P, N)."""

    def outputs(n):
        theta = activation.parameters(n.shape[-1] // activation.pieces, n.dtype) if activation.parameters else {}
        return activation.forward(n, theta)[0]

    return jax.eval_shape(outputs, jax.ShapeDtypeStruct((1, *n), jnp.float32)).shape[1:]


@functools.lru_cache(maxsize=256)
def mixes(activation: Activation, positions: Shape = ()) -> tuple[bool, bool]:
    """(examples, neurons): does an output depend on another example's net inputs, or on another neuron's? Tried out, on
    signals with these positions.
    """
    size, draw = 3, np.random.default_rng(0)
    with jax.ensure_compile_time_eval():  # also while a program is traced
        theta = activation.parameters(size, jnp.float32) if activation.parameters else {}
        n = draw.standard_normal((3, *positions, size * activation.pieces)).astype(np.float32)
        other_example, other_neuron = n.copy(), n.copy()
        other_example[0] += 1
        other_neuron[..., : activation.pieces] += 1
        a, with_example, with_neuron = (
            np.asarray(activation.forward(jnp.asarray(x), theta)[0]) for x in (n, other_example, other_neuron)
        )
    apart = lambda x, y: not np.allclose(x, y, rtol=1e-5, atol=1e-6, equal_nan=True)  # noqa: E731
    return apart(a[1:], with_example[1:]), apart(a[..., 1:], with_neuron[..., 1:])


def check_examples_apart(activation: Activation, positions: Shape) -> None:
    """Raises ValueError for an activation that mixes examples, through which no example has a derivative of its own."""
    if not activation.alone and mixes(activation, positions)[0]:
        raise ValueError(
            f"activation {activation.name!r} mixes examples: its outputs depend on other rows of the batch, so that "
            "F is no sum over examples, and no quantity of single examples is to be had; the gradient is, by "
            "value_and_grad"
        )


_registry: Registry[Activation] = Registry("activation", Activation)
names, get = _registry.names, _registry.get


def register(activation: Activation | Callable[..., Activation], *, aliases: tuple[str, ...] = ()):
    """Makes an activation, or a factory of activations with constants, known by name; returns it. Also a decorator.

    Raises ValueError where the name is taken.
    """
    if isinstance(activation, Activation):
        _registry.add(activation.name, lambda: activation, aliases)
        remember(activation, _named, (activation.name,))
    else:
        _registry.add(activation.__name__, activation, aliases)
    return activation


def _named(name: str) -> Activation:
    return get(name)


# Smooth rows ---------------------------------------------------------------------------------------------------------

linear = register(
    Activation(
        "linear",
        forward=lambda n, theta: (n, None),
        pullback=lambda g, n, a, kept, theta: (g, {}),
        pushforward=lambda r, r_theta, n, a, kept, theta: r,
        second_order=lambda g, r, r_theta, n, a, kept, theta: (jnp.zeros_like(g), {}),
        alone=True,
    ),
    aliases=("purelin",),
)

sigmoid = register(
    elementwise(
        "sigmoid",
        forward=lax.logistic,
        derivative=lambda n, a: a * (1 - a),
        second_derivative=lambda n, a: a * (1 - a) * (1 - 2 * a),
        gives="unit interval",
    ),
    aliases=("logsig",),
)

tanh = register(
    elementwise(
        "tanh",
        forward=lax.tanh,
        derivative=lambda n, a: (1 - a) * (1 + a),  # 1 - a^2 without its cancellation near saturation
        second_derivative=lambda n, a: -2 * a * (1 - a) * (1 + a),
    ),
    aliases=("tansig",),
)


def largest_in_row(n: Array) -> Array:
    """(Q, N) -> (Q, 1), a constant to take away before exp; of complex n (the complex step) by its real part."""
    return lax.stop_gradient(jnp.max(jnp.real(n), axis=-1, keepdims=True)).astype(n.dtype)


def _softmax(n, theta):
    # The largest net input is taken away first: exp never overflows, and a -inf-masked class gets exactly 0.
    e = jnp.exp(n - largest_in_row(n))
    return e / jnp.sum(e, axis=-1, keepdims=True), None


def _softmax_product(v, a):
    # (diag(a) - a a^T) v, the full Jacobian of one row times v; it is symmetric and never formed
    return a * (v - jnp.sum(a * v, axis=-1, keepdims=True))


def _softmax_second_order(g, r, r_theta, n, a, kept, theta):
    r_a = _softmax_product(r, a)
    return r_a * (g - jnp.sum(a * g, axis=-1, keepdims=True)) - a * jnp.sum(r_a * g, axis=-1, keepdims=True), {}


softmax = register(
    Activation(
        "softmax",
        forward=_softmax,
        pullback=lambda g, n, a, kept, theta: (_softmax_product(g, a), {}),
        pushforward=lambda r, r_theta, n, a, kept, theta: _softmax_product(r, a),
        second_order=_softmax_second_order,
        gives="distribution",
    )
)


# Rows with a kink ----------------------------------------------------------------------------------------------------
# The comparisons are turned so that a nan net input stays nan.

relu = register(
    elementwise(
        "relu",
        forward=lambda n: jnp.where(n <= 0, 0, n),
        derivative=lambda n, a: jnp.where(a > 0, 1.0, 0.0),
        second_derivative=lambda n, a: jnp.zeros_like(a),
        kink_distance=jnp.abs,
        initializer="he_normal",
    ),
    aliases=("poslin",),
)

shifted_relu = register(
    elementwise(
        "shifted_relu",  # max(-1, n), Lecture 2
        forward=lambda n: jnp.where(n <= -1, -1, n),
        derivative=lambda n, a: jnp.where(a > -1, 1.0, 0.0),
        second_derivative=lambda n, a: jnp.zeros_like(a),
        kink_distance=lambda n: jnp.abs(n + 1),
        initializer="he_normal",
    )
)


@register
@cached
def leaky_relu(slope: float = 0.01) -> Activation:
    """n for n >= 0, slope n below (Lecture 2 prints 0.1 in one place and 0.01 in another; the slope is yours)."""
    _finite("leaky_relu", "slope", slope)
    return elementwise(
        f"leaky_relu({slope})",
        forward=lambda n: jnp.where(n >= 0, n, slope * n),
        derivative=lambda n, a: jnp.where(n >= 0, 1.0, slope),  # of n: a non-positive slope hides the sign from a
        second_derivative=lambda n, a: jnp.zeros_like(a),
        kink_distance=jnp.abs,
        initializer="he_normal",
    )


@register
@cached
def elu(alpha: float = 1.0) -> Activation:
    """n for n > 0, alpha (e^n - 1) below (Lecture 2); f' = a + alpha below."""
    _finite("elu", "alpha", alpha)

    def forward(n):
        # The inner `where` keeps exp from overflowing on the side that is not taken, where 0 inf would be nan.
        return jnp.where(n > 0, n, alpha * jnp.expm1(jnp.where(n > 0, 0, n)))

    return elementwise(
        f"elu({alpha})",
        forward=forward,
        derivative=lambda n, a: jnp.where(n > 0, 1, a + alpha),
        second_derivative=lambda n, a: jnp.where(n > 0, 0, a + alpha),
        kink_distance=jnp.abs,
        initializer="he_normal",
    )


@register
@cached
def prelu(share: Literal["neuron", "layer"] = "neuron", start: float = 0.25) -> Activation:
    """Parametric relu: n for n >= 0, mu n below, mu learned, one a neuron or one a layer, 0.25 at first (He 2015).

    Lecture 2 prints max(mu n, n), which is this only for mu <= 1.
    """
    if share not in ("neuron", "layer"):
        raise ValueError(f"prelu: share must be 'neuron' or 'layer', got {share!r}")
    _finite("prelu", "start", start)

    def slope(theta, n):
        return jnp.expand_dims(theta["slope"], tuple(range(n.ndim - 1)))

    return Activation(
        f"prelu({share}, {start})",
        forward=lambda n, theta: (jnp.where(n >= 0, n, slope(theta, n) * n), None),
        pullback=lambda g, n, a, kept, theta: (
            jnp.where(n >= 0, g, slope(theta, n) * g),
            {"slope": Factors(jnp.where(n >= 0, 0, g * n), None)},
        ),
        pushforward=lambda r, r_theta, n, a, kept, theta: jnp.where(
            n >= 0, r, slope(theta, n) * r + slope(r_theta, n) * n
        ),
        second_order=lambda g, r, r_theta, n, a, kept, theta: (
            jnp.where(n >= 0, 0, slope(r_theta, n) * g),
            {"slope": Factors(jnp.where(n >= 0, 0, g * r), None)},
        ),
        kink_distance=jnp.abs,
        parameters=lambda size, dtype: {"slope": jnp.full(size if share == "neuron" else 1, start, dtype)},
        initializer="he_normal",
        alone=True,
    )


@register
@cached
def maxout(pieces: int = 2) -> Activation:
    """The largest of k linear pieces (Lecture 2). A neuron's k net inputs stand side by side: N = S k, neuron first."""
    if not isinstance(pieces, int) or pieces < 2:
        raise ValueError(f"maxout: pieces must be an integer >= 2, got {pieces!r}")

    def split(n):
        return n.reshape(*n.shape[:-1], -1, pieces)

    def share(n, a):
        # the derivative of a over its pieces: 1 for the largest; equal parts for those that tie
        tied = jnp.where(split(n) == a[..., None], 1.0, 0.0).astype(a.dtype)
        return tied / jnp.sum(tied, axis=-1, keepdims=True)

    def kink_distance(n):
        # to the best of the neuron's other pieces, for each piece: 0 where the two largest tie
        best = jnp.sort(split(n), axis=-1)[..., -2:]
        rival = jnp.where(split(n) == best[..., 1:], best[..., :1], best[..., 1:])
        return jnp.abs(split(n) - rival).reshape(n.shape)

    return Activation(
        f"maxout({pieces})",
        forward=lambda n, theta: (jnp.max(split(n), axis=-1), None),
        pullback=lambda g, n, a, kept, theta: ((g[..., None] * share(n, a)).reshape(n.shape), {}),
        pushforward=lambda r, r_theta, n, a, kept, theta: jnp.sum(share(n, a) * split(r), axis=-1),
        second_order=lambda g, r, r_theta, n, a, kept, theta: (jnp.zeros_like(n), {}),
        kink_distance=kink_distance,
        pieces=pieces,
        initializer="he_normal",
        alone=True,
    )


# Perceptrons: nothing to propagate ------------------------------------------------------------------------------------


def _threshold(n):
    return jnp.where(n >= 0, 1, jnp.where(n < 0, 0, n))  # nan stays nan


hardlim = register(
    Activation(
        "hardlim",  # 1 iff n >= 0 (CSE 475, 17.61)
        forward=lambda n, theta: (_threshold(n), None),
        pullback=None,
        pushforward=None,
        second_order=None,
        kink_distance=jnp.abs,
        gives="unit interval",
        alone=True,
    )
)

hardlims = register(
    Activation(
        "hardlims",  # +1 iff n >= 0, else -1 (CSE 475, 17.57)
        forward=lambda n, theta: (2 * _threshold(n) - 1, None),
        pullback=None,
        pushforward=None,
        second_order=None,
        kink_distance=jnp.abs,
        alone=True,
    )
)


def _finite(activation: str, constant: str, value: float) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{activation}: {constant} must be a finite number, got {value!r}")
