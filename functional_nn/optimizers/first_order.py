"""First-order methods as pairs of pure functions: `init(params) -> state` and `update(state, grads) -> state`.

The state carries the parameters and the step; constants are Python numbers, or traced arrays so that `vmap` can sweep
them. Parameters keep their dtype; averages of gradients are kept in at least float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.precision import at_least_float32
from functional_nn.registry import Registry

State = Any


class Optimizer(NamedTuple):
    """init(params) -> state; update(state, grads) -> state, with `state.params` and `state.step` in every state.

    constants: the rates and decays it was made with, by name.
    """

    name: str
    init: Callable[[Any], State]
    update: Callable[[State, Any], State]
    constants: dict[str, Any]


_registry: Registry[Optimizer] = Registry("optimizer", Optimizer)
names, get = _registry.names, _registry.get


def register(factory: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Makes a factory of optimizers known by its name. A decorator. Raises ValueError where the name is taken."""
    _registry.add(factory.__name__, factory)
    return factory


class GDState(NamedTuple):
    """params; step: updates made so far, int32 scalar."""

    params: Any
    step: Array


@register
def gd(learning_rate: float = 0.1) -> Optimizer:
    """Gradient descent, x_(k+1) = x_k - alpha g_k: Hagan Eq. 3.14. Raises ValueError unless the rate is >= 0."""
    learning_rate = _non_negative("gd", "learning_rate", learning_rate)

    def init(params):
        return GDState(params, _first_step())

    def update(state, grads):
        return GDState(
            jax.tree.map(lambda x, g: _moved(x, -learning_rate * _wide(g)), state.params, grads), state.step + 1
        )

    return Optimizer("gd", init, update, {"learning_rate": learning_rate})


class MomentumState(NamedTuple):
    """params; step; change: Delta w of the last step, in the parameters' structure."""

    params: Any
    step: Array
    change: Any


@register
def momentum(learning_rate: float = 0.1, decay: float = 0.9) -> Optimizer:
    """Delta w_t = -eta g_t + alpha Delta w_(t-1), w_(t+1) = w_t + Delta w_t: blog 001 Eq. 3, Kordecki.

    `decay` is alpha, in [0, 1); at 0 this is gradient descent. Raises ValueError for constants out of range.
    """
    learning_rate = _non_negative("momentum", "learning_rate", learning_rate)
    decay = _decay("momentum", "decay", decay)

    def init(params):
        return MomentumState(params, _first_step(), jax.tree.map(_zeros, params))

    def update(state, grads):
        change = jax.tree.map(lambda d, g: decay * d - learning_rate * _wide(g), state.change, grads)
        return MomentumState(jax.tree.map(_moved, state.params, change), state.step + 1, change)

    return Optimizer("momentum", init, update, {"learning_rate": learning_rate, "decay": decay})


class AdamState(NamedTuple):
    """params; step; first_moment, second_moment: averages of g and g^2, in the parameters' structure."""

    params: Any
    step: Array
    first_moment: Any
    second_moment: Any


@register
def adam(learning_rate: float = 1e-3, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> Optimizer:
    """Adam: Kingma and Ba 2015, Alg. 1; Hagan Eq. 3.29-3.33 (whose 3.33 prints v_(i+1) for v_(k+1)).

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; x = x - alpha m^ / (sqrt(v^) + epsilon), where m^ = m / (1 - b1^k)
    and v^ = v / (1 - b2^k) at step k = 1, 2, ... Raises ValueError for constants out of range.
    """
    learning_rate = _non_negative("adam", "learning_rate", learning_rate)
    b1, b2 = _decay("adam", "b1", b1), _decay("adam", "b2", b2)
    epsilon = _non_negative("adam", "epsilon", epsilon)

    def init(params):
        return AdamState(params, _first_step(), jax.tree.map(_zeros, params), jax.tree.map(_zeros, params))

    def update(state, grads):
        step = state.step + 1
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * _wide(g), state.first_moment, grads)  # Eq. 3.29
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * _wide(g) ** 2, state.second_moment, grads)  # Eq. 3.30

        def moved(x, m, v):
            k = step.astype(m.dtype)
            unbiased_m, unbiased_v = m / (1 - b1**k), v / (1 - b2**k)  # Eq. 3.31, 3.32
            return _moved(x, -learning_rate * unbiased_m / (jnp.sqrt(unbiased_v) + epsilon))  # Eq. 3.33

        return AdamState(jax.tree.map(moved, state.params, first, second), step, first, second)

    constants = {"learning_rate": learning_rate, "b1": b1, "b2": b2, "epsilon": epsilon}
    return Optimizer("adam", init, update, constants)


def _first_step() -> Array:
    return jnp.zeros((), jnp.int32)


def _zeros(x: Array) -> Array:
    return jnp.zeros(x.shape, at_least_float32(x.dtype))


def _wide(g: Array) -> Array:
    return g.astype(at_least_float32(g.dtype))


def _moved(x: Array, change: Array) -> Array:
    return (x.astype(change.dtype) + change).astype(x.dtype)


def _non_negative(optimizer: str, constant: str, value):
    return _checked(optimizer, constant, value, lambda v: (v >= 0) & np.isfinite(v), "a finite number >= 0")


def _decay(optimizer: str, constant: str, value):
    return _checked(optimizer, constant, value, lambda v: (v >= 0) & (v < 1), "in [0, 1)")


def _checked(optimizer: str, constant: str, value, accepts, accepted: str):
    """The constant itself: a Python float for every plain number, arrays and tracers as they are."""
    if not checks.is_concrete(value):
        return value
    try:
        right = np.all(accepts(np.asarray(value, np.float64)))
    except (TypeError, ValueError):
        right = False
    if not right:
        raise ValueError(f"{optimizer}: {constant} must be {accepted}, got {value!r}")
    return value if isinstance(value, jax.Array) else float(value)
