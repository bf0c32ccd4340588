"""What an activation is: a forward map with its derivatives by hand, and the registry of those with names."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn.networks.connections import Factors, Shape
from functional_nn.registry import Described, Registry, remember

Theta = dict[str, Array]
Range = Literal["real", "unit interval", "distribution"]


class Running(NamedTuple):
    """How an activation that mixes examples remembers its batches, so that it can do without them later.

    after(statistics, kept) -> the statistics after one batch more, of which `kept` is what the forward map kept;
    inference: the activation that reads them in the batch's place.
    """

    after: Callable[[Theta, Any], Theta]
    inference: "Activation"


@dataclass(frozen=True)
class Activation(Described):
    """A transfer function with its derivatives. Usually made by `elementwise` or by one of the factories.

    forward(n, theta) -> (a, kept)                                          (Q, *P, N) -> (Q, *P, S)
    pullback(g, n, a, kept, theta) -> F'(n)^T g, {name: dF_q/dtheta}        (Q, *P, N), each as `Factors`
    pushforward(r, r_theta, n, a, kept, theta) -> R{a} = F'(n) r + ...      (Q, *P, S)
    second_order(g, r, r_theta, n, a, kept, theta) -> R{pullback} at fixed g: ((F''(n) r)^T g, {name: Factors})
    slopes(n, a, kept, theta) -> da_i/dn_i (Q, *P, S); None where pullbacks may tell it
    kink_distance(n) -> how far each net input is from a kink or a tie (Q, *P, N); None for a smooth function. One that
    keeps something is given it, too: kink_distance(n, kept)
    parameters(size, dtype) -> theta at the start of training; drawn(size, dtype, key) -> those of it that are random

    kept: what the derivatives use again, for the trace; None for most. A learned parameter's share of an example is a
    pair of factors like a weight's; Factors(left, None) is the share itself, of each neuron (Q, *P, S), which what
    serves several positions or neurons gets the sum of.

    `gives` says what the outputs are: "real", each in the "unit interval", or each row a "distribution"; losses ask.
    `alone` says that each neuron's output depends on its own net inputs alone, as of `elementwise` and maxout; what
    looks at single neurons (padding, saturation) asks. by_length: it reads theta["lengths"] (Q,), where there is any:
    how many of an example's positions count. through_time: its pullback goes through the positions from the last, so
    that a fault is seen first at the latest of those it reaches. cuts: its derivatives are cut off on purpose, so that
    they are not those of the values. statistics(size, dtype) -> {name: array}, before any
    batch, of what was seen in training: they stand in the parameters and in theta, but are not learned; `running`
    renews them.
    `pullback` is None for functions through which nothing can be trained (hardlim), `second_order` for those without a
    second derivative.
    """

    name: str
    forward: Callable[[Array, Theta], Array]
    pullback: Callable | None
    pushforward: Callable | None
    second_order: Callable | None
    kink_distance: Callable[..., Array] | None = None
    slopes: Callable[[Array, Array, Any, Theta], Array] | None = None
    parameters: Callable[[int, jnp.dtype], Theta] | None = None
    drawn: Callable[[int, jnp.dtype, Array], Theta] | None = None
    pieces: int = 1
    gives: Range = "real"
    initializer: str = "xavier_uniform"
    alone: bool = False
    by_length: bool = False
    through_time: bool = False
    cuts: bool = False
    statistics: Callable[[int, jnp.dtype], Theta] | None = None
    running: Running | None = None

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


def by_forward_derivative(forward: Callable, pullback: Callable) -> Callable:
    """The second-order action as `jax.jvp` of the hand-written pullback, for rows of which it would be long by hand."""

    def second_order(g, r, r_theta, n, a, kept, theta):
        def pulled_back(n, learned):
            own = theta | learned
            return pullback(g, n, *forward(n, own), own)

        learned = {name: theta[name] for name in r_theta}
        (_, shares), (r_s, r_shares) = jax.jvp(pulled_back, (n, learned), (r, r_theta))
        return r_s, {name: _change(f, r_shares[name]) for name, f in shares.items()}

    return second_order


def _change(f: Factors, moved: Factors) -> Factors:
    # R{sum_t left_t right_t^T}: both products side by side, as more positions
    if f.right is None:
        return moved
    left = jnp.concatenate([moved.left, f.left], axis=1)
    return Factors(left, jnp.concatenate([f.right, moved.right], axis=1))


@functools.lru_cache(maxsize=256)
def output_shape(activation: Activation, n: Shape) -> Shape:
    """Of one example's outputs, for net inputs (*P, N)."""

    def outputs(n):
        return activation.forward(n, started(activation, n.shape[-1] // activation.pieces, n.dtype))[0]

    return jax.eval_shape(outputs, jax.ShapeDtypeStruct((2, *n), jnp.float32)).shape[1:]


@functools.lru_cache(maxsize=256)
def kept_size(activation: Activation, n: Shape) -> int:
    """How many numbers of one example are kept, for net inputs (*P, N)."""
    if activation.alone:
        return 0
    theta = started(activation, n[-1] // activation.pieces, jnp.float32)
    kept = jax.eval_shape(lambda n: activation.forward(n, theta)[1], jax.ShapeDtypeStruct((2, *n), jnp.float32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(kept)) // 2


def counted(theta: Theta, positions: int) -> Array | None:
    """Which positions of each example count by its length, (Q, T); None where no lengths are told."""
    if "lengths" not in theta:
        return None
    return jnp.arange(positions, dtype=theta["lengths"].dtype)[None, :] < theta["lengths"][:, None]


def started(activation: Activation, size: int, dtype, key: Array | None = None) -> Theta:
    """theta at the start of training; what is random of it is drawn from the key, from a fixed one where None."""
    theta = learned_at_start(activation, size, dtype, key) if activation.parameters else {}
    return theta | (activation.statistics(size, dtype) if activation.statistics else {})


def learned_at_start(activation: Activation, size: int, dtype, key: Array | None = None) -> Theta:
    """Of that, what is learned."""
    theta = activation.parameters(size, dtype)
    if activation.drawn is None:
        return theta
    return theta | activation.drawn(size, dtype, jax.random.key(0) if key is None else key)


@functools.lru_cache(maxsize=256)
def mixes(activation: Activation, n: Shape) -> tuple[bool, bool]:
    """(examples, neurons): does an output depend on another example's net inputs, or on another neuron's? Tried out, on
    net inputs (*P, N) of one example.
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
    """Does an example's output depend on the others of its batch, for net inputs (*P, N)?"""
    return not activation.alone and (activation.running is not None or mixes(activation, n)[0])


def check_examples_apart(activation: Activation, n: Shape) -> None:
    """Raises ValueError for an activation that mixes examples, through which no example has a derivative of its own."""
    if mixes_examples(activation, n):
        instead = ", or take it of fnn.inference_mode(network), by its running statistics" if activation.running else ""
        raise ValueError(
            f"activation {activation.name!r} mixes examples: its outputs depend on other rows of the batch, so that "
            "F is no sum over examples, and no quantity of single examples is to be had; the gradient is, by "
            f"value_and_grad{instead}"
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
