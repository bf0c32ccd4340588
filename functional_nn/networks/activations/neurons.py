"""Activations of single neurons, a_i = f(n_i), and softmax and maxout, at each position of a signal by itself.

Letters: Q examples, S neurons, k maxout pieces, N = S k net inputs of a layer (N = S but for maxout).
`n` net inputs (Q, N), `a` activations (Q, S), `g` = dF/da (Q, S), `r` a tangent of n (Q, N), `theta` the layer's
learned activation parameters, `{}` for most, each of shape (S,) or, shared by the layer, (1,). Of a signal the net
inputs are (Q, *P, N), and all of the rows below act at each position.

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
leaky and parametric relu 1 at 0 (`jax.nn.leaky_relu`), elu alpha at 0 and selu its own (`jax.nn.elu`, `jax.nn.selu`),
relu6 and hard_sigmoid 0 at both ends, hard_tanh 1 (`jax.nn` again); tied maxout pieces share the derivative equally
(`jnp.max`).
"""

import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks
from functional_nn.networks.activations.activation import Activation, elementwise, register
from functional_nn.networks.connections import Factors
from functional_nn.registry import cached

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


softplus = register(
    elementwise(
        "softplus",  # log(1 + e^n), a smooth relu: Dugas et al. 2001
        forward=lambda n: jnp.logaddexp(n, 0),
        derivative=lambda n, a: lax.logistic(n),
        second_derivative=lambda n, a: lax.logistic(n) * lax.logistic(-n),
        initializer="he_normal",
    )
)


def _softsign_slope(n):
    return 1 / (1 + jnp.abs(n))


softsign = register(
    elementwise(
        "softsign",  # n / (1 + |n|): Turian, Bergstra and Bengio 2009; f'' jumps at 0, where it is taken to be 0
        forward=lambda n: n / (1 + jnp.abs(n)),
        derivative=lambda n, a: _softsign_slope(n) ** 2,
        second_derivative=lambda n, a: -2 * jnp.sign(n) * _softsign_slope(n) ** 3,
    )
)


def _mish_parts(n):
    # t = tanh(softplus(n)), 1 - t^2, and dsoftplus/dn
    t = jnp.tanh(jnp.logaddexp(n, 0))
    return t, (1 - t) * (1 + t), lax.logistic(n)


def _mish_derivative(n, a):
    t, bend, slope = _mish_parts(n)
    return t + n * slope * bend


def _mish_second_derivative(n, a):
    n = jnp.clip(n, -100, 100)  # beyond, bend or slope is 0 in every dtype, and n times 2 may overflow
    t, bend, slope = _mish_parts(n)
    return bend * slope * (2 + n * (1 - slope - 2 * slope * t))


mish = register(
    elementwise(
        "mish",  # n tanh(softplus(n)): Misra 2019
        forward=lambda n: n * _mish_parts(n)[0],
        derivative=_mish_derivative,
        second_derivative=_mish_second_derivative,
        initializer="he_normal",
    )
)


def _keeping(
    name: str,
    forward: Callable[[Array], tuple[Array, Array]],
    sloped: Callable[[Array, Array, Array, Array], Array],
    second_derivative: Callable[[Array, Array], Array],
) -> Activation:
    """An elementwise row that keeps what its derivatives are made of: forward(n) -> (a, kept), sloped(x, n, a, kept) ->
    x f'(n), multiplied out term by term.

    Of x times a sum XLA on CPU makes one loop with whatever reads the product, such as the sum that a bias gets, and in
    it computes the sum again, number by number: a small transformer's gradient took up to twice as long.
    """
    return Activation(
        name,
        forward=lambda n, theta: forward(n),
        pullback=lambda g, n, a, kept, theta: (sloped(g, n, a, kept), {}),
        pushforward=lambda r, r_theta, n, a, kept, theta: sloped(r, n, a, kept),
        second_order=lambda g, r, r_theta, n, a, kept, theta: (g * second_derivative(n, kept) * r, {}),
        initializer="he_normal",
        alone=True,
    )


def _silu(n):
    opened = lax.logistic(n)
    return n * opened, opened


silu = register(
    _keeping(
        "silu",  # n sigmoid(n): Elfwing, Uchibe and Doya 2018; as swish, Ramachandran, Zoph and Le 2017
        forward=_silu,
        sloped=lambda x, n, a, opened: x * opened + (x * a) * (1 - opened),
        second_derivative=lambda n, opened: lax.logistic(n) * lax.logistic(-n) * (2 - n * lax.tanh(n / 2)),
    ),
    aliases=("swish",),
)

_ROOT_2, _ROOT_2_PI = math.sqrt(2), math.sqrt(2 * math.pi)
_FAR = 20.0  # beyond it gelu is 0 or n to the last bit, in every dtype; n^3 there is still a float16


def _normal_density(n):
    return jnp.exp(-n * n / 2) / _ROOT_2_PI


def _gelu_exact() -> Activation:
    def forward(n):
        below = lax.erfc(-n / _ROOT_2) / 2  # Phi(n): since 1 + erf(n) loses all digits where it is small
        return n * below, below

    def near(n):  # whose square no dtype overflows
        return jnp.clip(n, -2 * _FAR, 2 * _FAR)

    return _keeping(
        "gelu(exact)",
        forward,
        sloped=lambda x, n, a, below: x * below + (x * near(n)) * _normal_density(near(n)),
        second_derivative=lambda n, below: (2 - near(n) * near(n)) * _normal_density(near(n)),
    )


def _gelu_tanh() -> Activation:
    k, c = math.sqrt(2 / math.pi), 0.044715

    def near(n):
        return jnp.clip(n, -_FAR, _FAR)

    def slope(n):  # of the argument of tanh
        return k * (1 + 3 * c * n * n)

    def forward(n):
        t = jnp.tanh(k * (near(n) + c * near(n) ** 3))
        return n * ((1 + t) / 2), t

    def sloped(x, n, a, t):
        return x * ((1 + t) / 2) + (x * near(n)) * ((1 - t) * (1 + t) * slope(near(n)) / 2)

    def second_derivative(n, t):
        n, own = near(n), slope(near(n))
        return (1 - t) * (1 + t) * (own + n * (3 * k * c * n - t * own * own))

    return _keeping("gelu(tanh)", forward, sloped, second_derivative)


@register
@cached
def gelu(form: Literal["exact", "tanh"] = "exact") -> Activation:
    """n Phi(n), Phi the standard normal distribution (Hendrycks and Gimpel 2016), or its approximation by a tanh,
    n (1 + tanh(sqrt(2 / pi) (n + 0.044715 n^3))) / 2, which `jax.nn.gelu` takes by default.
    """
    checks.one_of("gelu", "form", form, ("exact", "tanh"))
    return _gelu_exact() if form == "exact" else _gelu_tanh()


@register
@cached
def celu(alpha: float = 1.0) -> Activation:
    """n for n > 0, alpha (e^(n / alpha) - 1) below, whose slope is 1 at 0 whatever alpha is (Barron 2017)."""
    _finite("celu", "alpha", alpha)
    if alpha <= 0:
        raise ValueError(f"celu: alpha must be a number > 0, got {alpha!r}")
    return elementwise(
        f"celu({alpha})",
        forward=lambda n: jnp.where(n > 0, n, alpha * jnp.expm1(_below(n) / alpha)),
        derivative=lambda n, a: jnp.where(n > 0, 1, a / alpha + 1),
        second_derivative=lambda n, a: jnp.where(n > 0, 0, (a / alpha + 1) / alpha),
        initializer="he_normal",
    )


def _below(n):
    # 0 where it is above: keeps exp from overflowing on the side that is not taken, where 0 inf would be nan
    return jnp.where(n > 0, 0, n)


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
        "relu",  # by lax, of which jit has less to trace than of jnp.where
        forward=lambda n: lax.select(n <= 0, lax.full_like(n, 0), n),
        derivative=lambda n, a: lax.convert_element_type(a > 0, a.dtype),
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
    return elementwise(
        f"elu({alpha})",
        forward=lambda n: jnp.where(n > 0, n, alpha * jnp.expm1(_below(n))),
        derivative=lambda n, a: jnp.where(n > 0, 1, a + alpha),
        second_derivative=lambda n, a: jnp.where(n > 0, 0, a + alpha),
        kink_distance=jnp.abs,
        initializer="he_normal",
    )


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

selu = register(
    elementwise(
        "selu",  # an elu with the constants that keep mean 0 and variance 1: Klambauer et al. 2017, Eq. 2 and 14
        forward=lambda n: _SELU_SCALE * jnp.where(n > 0, n, _SELU_ALPHA * jnp.expm1(_below(n))),
        derivative=lambda n, a: jnp.where(n > 0, _SELU_SCALE, a + _SELU_SCALE * _SELU_ALPHA),
        second_derivative=lambda n, a: jnp.where(n > 0, 0, a + _SELU_SCALE * _SELU_ALPHA),
        kink_distance=jnp.abs,
        initializer="lecun_normal",
    )
)


def _between(name: str, low: float, high: float, slope: float = 1.0, shift: float = 0.0, ends: bool = False, **known):
    """slope n + shift for n from low to high, and what it is at the ends beyond them; ends: is it part of the line?"""

    def inside(n):
        return (n >= low) & (n <= high) if ends else (n > low) & (n < high)

    least, most = slope * low + shift, slope * high + shift

    def forward(n):
        line = n if (slope, shift) == (1, 0) else slope * n + shift
        beyond = jnp.where(n <= low, least, jnp.where(n >= high, most, n))  # nan stays nan
        return jnp.where(inside(n), line, beyond)

    return elementwise(
        name,
        forward=forward,
        derivative=lambda n, a: jnp.where(inside(n), slope, 0.0),
        second_derivative=lambda n, a: jnp.zeros_like(a),
        kink_distance=lambda n: jnp.minimum(jnp.abs(n - low), jnp.abs(n - high)),
        **known,
    )


relu6 = register(_between("relu6", 0.0, 6.0, initializer="he_normal"))  # Krizhevsky 2010

hard_tanh = register(_between("hard_tanh", -1.0, 1.0, ends=True))  # Collobert 2004

hard_sigmoid = register(  # relu6(n + 3) / 6: Howard et al. 2019
    _between("hard_sigmoid", -3.0, 3.0, slope=1 / 6, shift=0.5, gives="unit interval")
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
