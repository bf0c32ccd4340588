r"""Activations of single neurons, a_i = f(n_i), softmax and maxout, at each position of a signal by itself.

Letters: Q examples, S neurons, k maxout pieces, N = S k net inputs of a layer (N = S for all but maxout). `n` are net
inputs (Q, N), `a` activations (Q, S), `g` = dF/da (Q, S), `r` a tangent of n (Q, N), `theta` the layer's learned
activation parameters, `{}` for most, each of shape (S,) or, shared by the layer, (1,). For a signal the net inputs are
`(Q, *P, N)`, and all of the rows below act at each position.

The pullback is the product of Hagan Eq. 3.46 and 3.49, with F'(n) (S, N) the Jacobian of one example's row. For a
function of each neuron alone,

.. math::

    F'(n) = \mathrm{diag}(f'(n)), \qquad F'(n)^T g = f'(n) g, \qquad R\{F'(n)^T g\} = f''(n) \, r g

where R is the change along r at fixed g. For softmax,

.. math::

    \begin{aligned}
    \frac{\partial a_i}{\partial n_j} &= a_i (\delta_{ij} - a_j), \qquad F'(n) = \mathrm{diag}(a) - a a^T \\
    F'(n)^T g &= a (g - a \cdot g) \\
    R\{a\} &= a (r - a \cdot r), \qquad R\{F'(n)^T g\} = R\{a\} (g - a \cdot g) - a (R\{a\} \cdot g)
    \end{aligned}

The Jacobian of maxout is 1 at each neuron's largest piece and 0 elsewhere, so that its second-order action is 0.

The derivative with respect to theta of example q is g_i da_i/dtheta_i, a row as a bias's, at each position. Where the
derivative is a function of the output (sigmoid a (1 - a), tanh 1 - a^2, relu, elu, softmax) it is computed from `a`,
and `n` need not be kept.

At a kink there is no derivative, only a convention, and the texts disagree about it. The conventions here are JAX's, so
that `jax.grad` of the forward map agrees exactly: relu'(0) = 0 (as `jax.nn.relu`), the shifted relu also 0 at -1,
leaky and parametric relu 1 at 0 (`jax.nn.leaky_relu`), elu alpha at 0 and selu its scale (`jax.nn.elu`,
`jax.nn.selu`), relu6 and hard_sigmoid 0 at both ends, hard_tanh 1 (`jax.nn` again); tied maxout pieces share the
derivative equally (`jnp.max`).
"""

import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks
from functional_nn.networks.activations.activation import Activation, elementwise, register
from functional_nn.networks.connections import Factors
from functional_nn.rows import cached

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
    doc="""The identity, a = n. Also called purelin (Hagan, MATLAB).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.linear.forward(jnp.array([[-1.0, 2.0]]), {})[0].round(2))
        [[-1.  2.]]
    """,
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
    doc="""The logistic function, a = 1 / (1 + e^-n), in (0, 1). Also called logsig (Hagan, MATLAB).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.sigmoid.forward(jnp.array([[-1.0, 0.0, 1.0]]), {})[0].round(2))
        [[0.27 0.5  0.73]]
    """,
)

tanh = register(
    elementwise(
        "tanh",
        forward=lax.tanh,
        derivative=lambda n, a: (1 - a) * (1 + a),  # 1 - a^2 without its cancellation near saturation
        second_derivative=lambda n, a: -2 * a * (1 - a) * (1 + a),
    ),
    aliases=("tansig",),
    doc="""The hyperbolic tangent, in (-1, 1). Also called tansig (Hagan, MATLAB).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.tanh.forward(jnp.array([[-1.0, 0.0, 1.0]]), {})[0].round(2))
        [[-0.76  0.    0.76]]
    """,
)


softplus = register(
    elementwise(
        "softplus",
        forward=lambda n: jnp.logaddexp(n, 0),
        derivative=lambda n, a: lax.logistic(n),
        second_derivative=lambda n, a: lax.logistic(n) * lax.logistic(-n),
        initializer="he_normal",
    ),
    doc="""A smooth relu: a = log(1 + e^n) (Dugas et al. 2001).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.softplus.forward(jnp.array([[-1.0, 0.0, 1.0]]), {})[0].round(2))
        [[0.31 0.69 1.31]]
    """,
)


def _softsign_slope(n):
    return 1 / (1 + jnp.abs(n))


softsign = register(
    elementwise(
        "softsign",
        forward=lambda n: n / (1 + jnp.abs(n)),
        derivative=lambda n, a: _softsign_slope(n) ** 2,
        second_derivative=lambda n, a: -2 * jnp.sign(n) * _softsign_slope(n) ** 3,
    ),
    doc="""a = n / (1 + abs(n)), in (-1, 1) (Turian, Bergstra and Bengio 2009).

    f'' jumps at 0, where it is taken to be 0.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.softsign.forward(jnp.array([[-1.0, 0.0, 3.0]]), {})[0].round(2))
        [[-0.5   0.    0.75]]
    """,
)


def _mish_terms(n):
    # t = tanh(softplus(n)), 1 - t^2, and dsoftplus/dn
    t = jnp.tanh(jnp.logaddexp(n, 0))
    return t, (1 - t) * (1 + t), lax.logistic(n)


def _mish_derivative(n, a):
    t, bend, slope = _mish_terms(n)
    return t + n * slope * bend


def _mish_second_derivative(n, a):
    n = jnp.clip(n, -100, 100)  # beyond, bend or slope is 0 in every dtype, and n times 2 may overflow
    t, bend, slope = _mish_terms(n)
    return bend * slope * (2 + n * (1 - slope - 2 * slope * t))


mish = register(
    elementwise(
        "mish",
        forward=lambda n: n * _mish_terms(n)[0],
        derivative=_mish_derivative,
        second_derivative=_mish_second_derivative,
        initializer="he_normal",
    ),
    doc="""a = n tanh(softplus(n)) (Misra 2019).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.mish.forward(jnp.array([[-1.0, 0.0, 1.0]]), {})[0].round(2))
        [[-0.3   0.    0.87]]
    """,
)


def _keeping(
    name: str,
    forward: Callable[[Array], tuple[Array, Array]],
    sloped: Callable[[Array, Array, Array, Array], Array],
    second_derivative: Callable[[Array, Array], Array],
) -> Activation:
    """An elementwise row that keeps what its derivatives need: forward(n) -> (a, kept), sloped(x, n, a, kept) -> x
    f'(n), multiplied out term by term.

    From x times a sum XLA on CPU makes one loop with whatever reads the product, such as the sum for a bias, and
    computes the sum again in it, number by number: the gradient of a small transformer took up to twice as long.
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
        "silu",
        forward=_silu,
        sloped=lambda x, n, a, opened: x * opened + (x * a) * (1 - opened),
        second_derivative=lambda n, opened: lax.logistic(n) * lax.logistic(-n) * (2 - n * lax.tanh(n / 2)),
    ),
    aliases=("swish",),
    doc="""a = n sigmoid(n) (Elfwing, Uchibe and Doya 2018).

    Also called swish (Ramachandran, Zoph and Le 2017).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.silu.forward(jnp.array([[-1.0, 0.0, 1.0]]), {})[0].round(2))
        [[-0.27  0.    0.73]]
    """,
)

_ROOT_2, _ROOT_2_PI = math.sqrt(2), math.sqrt(2 * math.pi)
_FAR = 20.0  # beyond it gelu is 0 or n to the last bit, in every dtype; n^3 there is still a float16


def _normal_density(n):
    return jnp.exp(-n * n / 2) / _ROOT_2_PI


def _gelu_exact() -> Activation:
    def forward(n):
        below = lax.erfc(-n / _ROOT_2) / 2  # Phi(n); 1 + erf(n) loses all digits where it is small
        return n * below, below

    def near(n):  # its square overflows in no dtype
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
    """Gaussian error linear unit: a = n Phi(n), Phi the standard normal distribution (Hendrycks and Gimpel 2016).

    Args:
        form: "exact", or "tanh" for n (1 + tanh(sqrt(2 / pi) (n + 0.044715 n^3))) / 2, which approximates it and is
            what `jax.nn.gelu` computes by default.

    Raises:
        ValueError: another form.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.gelu().forward(jnp.array([[-1.0, 0.0, 1.0]]), {})[0].round(2))
        [[-0.16  0.    0.84]]
    """
    checks.one_of("gelu", "form", form, ("exact", "tanh"))
    return _gelu_exact() if form == "exact" else _gelu_tanh()


@register
@cached
def celu(alpha: float = 1.0) -> Activation:
    """Continuously differentiable elu: n for n > 0, alpha (e^(n / alpha) - 1) below (Barron 2017).

    Args:
        alpha: > 0; the outputs are above -alpha. The slope at 0 is 1 for every alpha.

    Raises:
        ValueError: alpha is not a finite number > 0.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.celu().forward(jnp.array([[-1.0, 0.0, 2.0]]), {})[0].round(2))
        [[-0.63  0.    2.  ]]
    """
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
    # 0 where n > 0: exp must not overflow on the side that is not taken, where 0 inf would be nan
    return jnp.where(n > 0, 0, n)


def largest_in_row(n: Array) -> Array:
    """Returns the largest of each row, (Q, N) -> (Q, 1), a constant to subtract before exp.

    The largest of complex n (from the complex step) is that by its real part.
    """
    return lax.stop_gradient(jnp.max(jnp.real(n), axis=-1, keepdims=True)).astype(n.dtype)


def _softmax(n, theta):
    # The largest net input is subtracted first: exp never overflows, and a -inf-masked class gets exactly 0.
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
    ),
    doc="""a_i = e^(n_i) / sum_j e^(n_j): each row is a distribution over the neurons.

    The largest net input of the row is subtracted first, so that nothing overflows. A class masked with n = -inf gets
    exactly 0.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.softmax.forward(jnp.array([[0.0, 0.0]]), {})[0].round(2))
        [[0.5 0.5]]
    """,
)


# Rows with a kink ----------------------------------------------------------------------------------------------------
# The comparisons are written so that a nan net input stays nan.

relu = register(
    elementwise(
        "relu",  # by lax, which jit traces faster than jnp.where
        forward=lambda n: lax.select(n <= 0, lax.full_like(n, 0), n),
        derivative=lambda n, a: lax.convert_element_type(a > 0, a.dtype),
        second_derivative=lambda n, a: jnp.zeros_like(a),
        kink_distance=jnp.abs,
        initializer="he_normal",
    ),
    aliases=("poslin",),
    doc="""The positive part: n for n > 0, else 0. Also called poslin (Hagan, MATLAB).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.relu.forward(jnp.array([[-1.0, 0.0, 2.0]]), {})[0].round(2))
        [[0. 0. 2.]]
    """,
)

shifted_relu = register(
    elementwise(
        "shifted_relu",
        forward=lambda n: jnp.where(n <= -1, -1, n),
        derivative=lambda n, a: jnp.where(a > -1, 1.0, 0.0),
        second_derivative=lambda n, a: jnp.zeros_like(a),
        kink_distance=lambda n: jnp.abs(n + 1),
        initializer="he_normal",
    ),
    doc="""max(-1, n) (Lecture 2).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.shifted_relu.forward(jnp.array([[-3.0, -0.5, 2.0]]), {})[0].round(2))
        [[-1.  -0.5  2. ]]
    """,
)


@register
@cached
def leaky_relu(slope: float = 0.01) -> Activation:
    """Leaky relu: n for n >= 0, slope n below (Lecture 2).

    Args:
        slope: below 0. Lecture 2 prints 0.1 in one place and 0.01 in another.

    Raises:
        ValueError: slope is not a finite number.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.leaky_relu(0.25).forward(jnp.array([[-1.0, 0.0, 2.0]]), {})[0])
        [[-0.25  0.    2.  ]]
    """
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
    """Exponential linear unit: n for n > 0, alpha (e^n - 1) below, where f' = a + alpha (Lecture 2).

    Args:
        alpha: the outputs are above -alpha.

    Raises:
        ValueError: alpha is not a finite number.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.elu().forward(jnp.array([[-1.0, 0.0, 2.0]]), {})[0].round(2))
        [[-0.63  0.    2.  ]]
    """
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
        "selu",
        forward=lambda n: _SELU_SCALE * jnp.where(n > 0, n, _SELU_ALPHA * jnp.expm1(_below(n))),
        derivative=lambda n, a: jnp.where(n > 0, _SELU_SCALE, a + _SELU_SCALE * _SELU_ALPHA),
        second_derivative=lambda n, a: jnp.where(n > 0, 0, a + _SELU_SCALE * _SELU_ALPHA),
        kink_distance=jnp.abs,
        initializer="lecun_normal",
    ),
    doc="""A scaled elu, whose constants keep mean 0 and variance 1 (Klambauer et al. 2017, Eq. 2 and 14).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.selu.forward(jnp.array([[-1.0, 0.0, 1.0]]), {})[0].round(2))
        [[-1.11  0.    1.05]]
    """,
)


def _between(name: str, low: float, high: float, slope: float = 1.0, shift: float = 0.0, ends: bool = False, **known):
    """slope n + shift for n from low to high, and constant beyond; ends: do the ends have the slope of the line?"""

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


relu6 = register(
    _between("relu6", 0.0, 6.0, initializer="he_normal"),
    doc="""relu that is cut off at 6: min(max(0, n), 6) (Krizhevsky 2010).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.relu6.forward(jnp.array([[-1.0, 2.0, 9.0]]), {})[0].round(2))
        [[0. 2. 6.]]
    """,
)

hard_tanh = register(
    _between("hard_tanh", -1.0, 1.0, ends=True),
    doc="""n between -1 and 1, constant beyond (Collobert 2004).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.hard_tanh.forward(jnp.array([[-3.0, 0.5, 2.0]]), {})[0].round(2))
        [[-1.   0.5  1. ]]
    """,
)

hard_sigmoid = register(
    _between("hard_sigmoid", -3.0, 3.0, slope=1 / 6, shift=0.5, gives="unit interval"),
    doc="""relu6(n + 3) / 6, in [0, 1] (Howard et al. 2019).

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.hard_sigmoid.forward(jnp.array([[-9.0, 0.0, 1.5]]), {})[0].round(2))
        [[0.   0.5  0.75]]
    """,
)


@register
@cached
def prelu(share: Literal["neuron", "layer"] = "neuron", start: float = 0.25) -> Activation:
    """Parametric relu: n for n >= 0, mu n below, mu learned (He et al. 2015).

    Lecture 2 prints max(mu n, n), which is the same only for mu <= 1.

    Args:
        share: "neuron" for one mu a neuron, "layer" for one mu a layer.
        start: mu at the start of training.

    Raises:
        ValueError: another share, or start is not a finite number.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("prelu", "softmax"))
        >>> network.init(jax.random.key(0))["layer1"]["learned"]["slope"].tolist()
        [0.25, 0.25, 0.25, 0.25]
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
    """The largest of k linear pieces (Lecture 2).

    The k net inputs of a neuron are adjacent: N = S k, neuron first.

    Args:
        pieces: k, at least 2.

    Raises:
        ValueError: pieces is not an integer >= 2.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.maxout(2).forward(jnp.array([[1.0, 3.0, -2.0, -5.0]]), {})[0].round(2))
        [[ 3. -2.]]
    """
    if not isinstance(pieces, int) or pieces < 2:
        raise ValueError(f"maxout: pieces must be an integer >= 2, got {pieces!r}")

    def split(n):
        return n.reshape(*n.shape[:-1], -1, pieces)

    def share(n, a):
        # the derivative of a with respect to its pieces: 1 for the largest; tied pieces share it equally
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


# Perceptrons, through which nothing propagates ------------------------------------------------------------------------


def _threshold(n):
    return jnp.where(n >= 0, 1, jnp.where(n < 0, 0, n))  # nan stays nan


hardlim = register(
    Activation(
        "hardlim",
        forward=lambda n, theta: (_threshold(n), None),
        pullback=None,
        pushforward=None,
        second_order=None,
        kink_distance=jnp.abs,
        gives="unit interval",
        alone=True,
    ),
    doc="""The perceptron's step: 1 for n >= 0, else 0 (CSE 475, 17.61). Nothing can be trained through it.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.hardlim.forward(jnp.array([[-1.0, 0.0, 2.0]]), {})[0].round(2))
        [[0. 1. 1.]]
    """,
)

hardlims = register(
    Activation(
        "hardlims",
        forward=lambda n, theta: (2 * _threshold(n) - 1, None),
        pullback=None,
        pushforward=None,
        second_order=None,
        kink_distance=jnp.abs,
        alone=True,
    ),
    doc="""The symmetric step: +1 for n >= 0, else -1 (CSE 475, 17.57). Nothing can be trained through it.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> print(fnn.activations.hardlims.forward(jnp.array([[-1.0, 0.0, 2.0]]), {})[0].round(2))
        [[-1.  1.  1.]]
    """,
)


def _finite(activation: str, constant: str, value: float) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{activation}: {constant} must be a finite number, got {value!r}")
