"""Activation: a forward map with hand-written derivatives; and the registry of those with names."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from functional_nn.networks.connections import Factors, Shape
from functional_nn.registry import Registry
from functional_nn.rows import Constants, Described, documented, remember

Theta = dict[str, Array]
Range = Literal["real", "unit interval", "distribution"]


class Running(NamedTuple):
    """How an activation that mixes examples remembers its batches, so that it can later do without them.

    Attributes:
        after: after(statistics, kept) returns the statistics after one more batch, of which the forward map kept
            `kept`.
        inference: the activation that uses the statistics instead of the batch.

    Example:
        >>> from functional_nn import activations
        >>> activations.batch_norm().running.inference.alone
        True
    """

    after: Callable[[Theta, Any], Theta]
    inference: "Activation"


@dataclass(frozen=True)
class Activation(Described):
    """A transfer function with its derivatives: what a layer does to its net inputs.

    Most are made by `elementwise`, which needs f, f' and f''. An activation that mixes neurons or positions, or that
    learns parameters, is made directly, and `register` gives it a name. `comparison.compare_activation` proves its
    derivatives equal to autodiff's.

    Letters: Q examples, P positions, N net inputs, S neurons; n net inputs `(Q, *P, N)`, a outputs `(Q, *P, S)`, g =
    dF/da, r a tangent of n, theta the learned parameters by name, r_theta their tangents.

    Attributes:
        name: how it is shown, and under what it is registered.
        forward: forward(n, theta) -> (a, kept). kept is what the derivatives use again, and is put in the trace; None
            for most.
        pullback: pullback(g, n, a, kept, theta) -> (F'(n)^T g `(Q, *P, N)`, {name: dF_q/dtheta as `Factors`}). None for
            functions through which nothing can be trained (hardlim). A learned parameter's derivative of each example
            is a pair of factors, as a weight's is. Factors(left, None) is the derivative itself, for each neuron `(Q,
            *P, S)`; a parameter that several positions or neurons share gets the sum.
        pushforward: pushforward(r, r_theta, n, a, kept, theta) -> R{a} = F'(n) r + ... `(Q, *P, S)`.
        second_order: second_order(g, r, r_theta, n, a, kept, theta) -> R{pullback} at fixed g:
            ((F''(n) r)^T g, {name: Factors}). None for functions without a second derivative.
        kink_distance: kink_distance(n) -> how far each net input is from a kink or a tie `(Q, *P, N)`; None for a
            smooth function. An activation that keeps something is called as kink_distance(n, kept).
        slopes: slopes(n, a, kept, theta) -> da_i/dn_i `(Q, *P, S)`; None where pullbacks can compute it.
        parameters: parameters(size, dtype) -> theta at the start of training; None if nothing is learned.
        drawn: drawn(size, dtype, key) -> the entries of theta that start at random.
        pieces: how many net inputs a neuron has: N = S pieces.
        gives: the range of the outputs, which losses check: "real", each in the "unit interval", or each row a
            "distribution".
        initializer: the name of the initializer that a layer uses by default.
        alone: True if each neuron's output depends on its own net inputs alone, as for `elementwise` and maxout.
            Padding and saturation need it.
        by_length: True if it reads theta["lengths"] (Q,), where present: how many of an example's positions count.
        through_time: True if its pullback goes through the positions from the last one on. A fault then shows first at
            the latest position that it reaches.
        cuts: True if its derivatives are cut off on purpose, so that they are not those of the values.
        statistics: statistics(size, dtype) -> {name: array} before any batch, of what is measured during training. They
            are in the parameters and in theta, but are not learned; `running` updates them.
        running: how the statistics are updated and used; None if there are none.

    Example:
        Softmax with an inverse temperature of 2, which mixes the neurons of a row:

        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> def forward(n, theta):
        ...     e = jnp.exp(2 * n)
        ...     return e / jnp.sum(e, axis=-1, keepdims=True), None
        >>> def product(x, a):  # 2 (diag(a) - a a^T) x, the Jacobian of each row times x; it is symmetric
        ...     return 2 * a * (x - jnp.sum(a * x, axis=-1, keepdims=True))
        >>> sharp = fnn.Activation(
        ...     "sharp_softmax",
        ...     forward,
        ...     pullback=lambda g, n, a, kept, theta: (product(g, a), {}),
        ...     pushforward=lambda r, r_theta, n, a, kept, theta: product(r, a),
        ...     second_order=None,  # networks train without it, but have no Hessian
        ...     gives="distribution",
        ... )
        >>> fnn.multilayer((3, 2), (sharp,)).output.activation
        <activation sharp_softmax>
    """

    name: str
    forward: Callable[[Array, Theta], tuple[Array, Any]]
    pullback: Callable | None
    pushforward: Callable | None
    second_order: Callable | None
    kink_distance: Callable[..., Array] | None = None
    slopes: Callable[[Array, Array, Any, Theta], Array] | None = None
    parameters: Callable[[int, DTypeLike], Theta] | None = None
    drawn: Callable[[int, DTypeLike, Array], Theta] | None = None
    pieces: int = 1
    gives: Range = "real"
    initializer: str = "xavier_uniform"
    alone: bool = False
    by_length: bool = False
    through_time: bool = False
    cuts: bool = False
    statistics: Callable[[int, DTypeLike], Theta] | None = None
    running: Running | None = None

    def __repr__(self) -> str:
        return f"<activation {self.name}>"

    @property
    def smooth(self) -> bool:
        """True if the function has a derivative everywhere."""
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
    """Returns a custom activation that acts on each neuron alone: a_i = f(n_i).

    Args:
        name: how it is shown, and under what `register` lists it.
        forward: f(n), `(Q, *P, S)` -> `(Q, *P, S)`.
        derivative: f'(n, a), of net inputs and outputs, of the same shape; whichever of the two is convenient is used.
        second_derivative: f''(n, a). Without it networks train, but have no Hessian.
        kink_distance: how far each n is from a point without a derivative; None for a smooth function.
        gives: the range of the outputs: "real" or "unit interval". Losses of probabilities need the latter.
        initializer: the name of the initializer that a layer uses by default.

    Returns:
        The `Activation`, to be used in a layer as it is. `register` gives it a name.

    Raises:
        TypeError: f or a derivative is not a function.

    Example:
        >>> import functional_nn as fnn
        >>> cubic = fnn.activations.elementwise(
        ...     "cubic", forward=lambda n: n**3, derivative=lambda n, a: 3 * n**2, second_derivative=lambda n, a: 6 * n
        ... )
        >>> fnn.multilayer((3, 4, 2), (cubic, "softmax")).layers[0].activation
        <activation cubic>
    """
    functions = {"forward": forward, "derivative": derivative, "second_derivative": second_derivative}
    for role, function in functions.items():
        if not (callable(function) or (role, function) == ("second_derivative", None)):
            raise TypeError(f"activation {name!r}: {role} must be a function of arrays, got {function!r}")

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


def by_forward_derivative(forward: Callable, pullback: Callable) -> Callable:
    """The second-order action as `jax.jvp` of the hand-written pullback, for rows where it would be long by hand."""

    def second_order(g, r, r_theta, n, a, kept, theta):
        def pulled_back(n, learned):
            own = theta | learned
            return pullback(g, n, *forward(n, own), own)

        learned = {name: theta[name] for name in r_theta}
        (_, shares), (r_s, r_shares) = jax.jvp(pulled_back, (n, learned), (r, r_theta))
        return r_s, {name: _change(f, r_shares[name]) for name, f in shares.items()}

    return second_order


def _change(f: Factors, moved: Factors) -> Factors:
    # R{sum_t left_t right_t^T}: both products, concatenated as further positions
    if f.right is None:
        return moved
    left = jnp.concatenate([moved.left, f.left], axis=1)
    return Factors(left, jnp.concatenate([f.right, moved.right], axis=1))


@functools.lru_cache(maxsize=256)
def output_shape(activation: Activation, n: Shape) -> Shape:
    """Returns the shape of one example's outputs.

    Args:
        activation: an `Activation`.
        n: the shape of one example's net inputs, `(*P, N)`.

    Raises:
        ValueError: the activation cannot read such a signal.

    Example:
        >>> from functional_nn import activations
        >>> activations.output_shape(activations.max_pool((2, 2)), (28, 28, 6))
        (14, 14, 6)
    """

    def outputs(n):
        return activation.forward(n, started(activation, n.shape[-1] // activation.pieces, n.dtype))[0]

    return jax.eval_shape(outputs, jax.ShapeDtypeStruct((2, *n), jnp.float32)).shape[1:]


@functools.lru_cache(maxsize=256)
def kept_size(activation: Activation, n: Shape) -> int:
    """Returns how many numbers of one example are kept, for net inputs `(*P, N)`."""
    if activation.alone:
        return 0
    theta = started(activation, n[-1] // activation.pieces, jnp.float32)
    kept = jax.eval_shape(lambda n: activation.forward(n, theta)[1], jax.ShapeDtypeStruct((2, *n), jnp.float32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(kept)) // 2


def counted(theta: Theta, positions: int) -> Array | None:
    """Returns which positions of each example count by its length, (Q, T); None without lengths."""
    if "lengths" not in theta:
        return None
    return jnp.arange(positions, dtype=theta["lengths"].dtype)[None, :] < theta["lengths"][:, None]


def started(activation: Activation, size: int, dtype: DTypeLike, key: Array | None = None) -> Theta:
    """Returns theta at the start of training, statistics included. Random entries are drawn from the key, or a
    fixed one.
    """
    theta = learned_at_start(activation, size, dtype, key) if activation.parameters else {}
    return theta | (activation.statistics(size, dtype) if activation.statistics else {})


def learned_at_start(activation: Activation, size: int, dtype: DTypeLike, key: Array | None = None) -> Theta:
    """Returns the learned entries of theta at the start of training."""
    theta = activation.parameters(size, dtype)
    if activation.drawn is None:
        return theta
    return theta | activation.drawn(size, dtype, jax.random.key(0) if key is None else key)


@functools.lru_cache(maxsize=256)
def mixes(activation: Activation, n: Shape) -> tuple[bool, bool]:
    """Returns (examples, neurons): whether an output depends on another example's net inputs, and on another neuron's.

    This is found by trying it, on net inputs `(*P, N)` of one example.
    """
    draw = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():  # also while a program is traced
        theta = started(activation, n[-1] // activation.pieces, jnp.float32)
        x = draw.standard_normal((3, *n)).astype(np.float32)
        other_example, other_neuron = x.copy(), x.copy()
        other_example[0] += 1
        other_neuron[..., : activation.pieces] += 1
        a, with_example, with_neuron = (
            np.asarray(activation.forward(jnp.asarray(own), theta)[0]) for own in (x, other_example, other_neuron)
        )

    def apart(x, y):
        return not np.allclose(x, y, rtol=1e-5, atol=1e-6, equal_nan=True)

    return apart(a[1:], with_example[1:]), apart(a[..., 1:], with_neuron[..., 1:])


def mixes_examples(activation: Activation, n: Shape) -> bool:
    """Returns True if an example's output depends on others of its batch, for net inputs `(*P, N)`."""
    return not activation.alone and (activation.running is not None or mixes(activation, n)[0])


def check_examples_apart(activation: Activation, n: Shape) -> None:
    """Raises ValueError for an activation that mixes examples, through which no single example has a derivative."""
    if mixes_examples(activation, n):
        instead = ", or use fnn.inference_mode(network), with its running statistics" if activation.running else ""
        raise ValueError(
            f"activation {activation.name!r} mixes examples: its outputs depend on other rows of the batch, so that "
            "F is not a sum over examples, and per-example quantities are undefined; the gradient is defined, by "
            f"value_and_grad{instead}"
        )


_registry: Registry[Activation] = Registry("activation", Activation)


def names() -> tuple[str, ...]:
    """Returns the names of the registered activations.

    Example:
        >>> from functional_nn import activations
        >>> activations.names()[:3]
        ('linear', 'sigmoid', 'tanh')
    """
    return _registry.names()


def get(activation: str | Activation) -> Activation:
    """Returns the activation that a name stands for.

    Args:
        activation: a name such as "tanh", a name with constants such as "leaky_relu(0.1)" or "max_pool((2, 2))", or an
            `Activation`, which is returned unchanged.

    Raises:
        ValueError: the name is unknown (the message suggests the closest one), or its constants are refused.
        TypeError: neither a name nor an activation.

    Example:
        >>> from functional_nn import activations
        >>> activations.get("leaky_relu(0.1)")
        <activation leaky_relu(0.1)>
    """
    return _registry.get(activation)


@overload
def register(activation: Activation, *, aliases: tuple[str, ...] = (), doc: str | None = None) -> Activation: ...


@overload
def register(
    activation: Callable[Constants, Activation], *, aliases: tuple[str, ...] = ()
) -> Callable[Constants, Activation]: ...


def register(
    activation: Activation | Callable[..., Activation], *, aliases: tuple[str, ...] = (), doc: str | None = None
) -> Activation | Callable[..., Activation]:
    """Gives an activation, or a function that makes activations from constants, a name. Also a decorator.

    Afterwards the name may be used wherever an activation is expected: in `Layer`, `multilayer`, `get` and on the
    command line.

    Args:
        activation: an `Activation`, registered under its `name`; or a function of constants that returns one,
            registered under the function's name and called as in "name(0.5)".
        aliases: further names.
        doc: the docstring of an `Activation`, which `help` shows; a function has its own.

    Returns:
        What was passed.

    Raises:
        ValueError: a name is taken or is not an identifier.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> @fnn.activations.register
        ... def scaled_tanh(scale: float = 1.0) -> fnn.Activation:
        ...     return fnn.activations.elementwise(
        ...         f"scaled_tanh({scale})",
        ...         forward=lambda n: scale * jnp.tanh(n),
        ...         derivative=lambda n, a: (scale**2 - a**2) / scale,
        ...     )
        >>> network = fnn.multilayer((3, 4, 2), ("scaled_tanh(1.7)", "softmax"))
        >>> network.layers[0].activation
        <activation scaled_tanh(1.7)>
    """
    if isinstance(activation, Activation):
        _registry.add(activation.name, lambda: activation, aliases)
        remember(activation, _named, (activation.name,))
        if doc is not None:
            documented(activation, doc)
    else:
        _registry.add(activation.__name__, activation, aliases)
    return activation


def _named(name: str) -> Activation:
    return get(name)
