r"""Penalties :math:`\Omega` of the parameters, with hand-written gradients, and pruning by magnitude.

.. math:: J' = J + \Omega(\mathrm{params})

(Lecture 2; CSE 475, 19.71.1). Penalties act on weights: everything under "weights" in a network's parameters. Biases
and learned slopes are left out unless `biases` is true; a tree without "weights" is penalized as a whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.optimizers.constants import in_dtype
from functional_nn.precision import at_least_float32
from functional_nn.registry import Registry
from functional_nn.rows import Constants, Described


@dataclass(frozen=True)
class Regularizer(Described):
    """A penalty with its gradient.

    Attributes:
        name: Its name, as in `regularizers.get`.
        value: value(params) returns Omega, a scalar.
        gradient: gradient(params) returns dOmega/dparams, in the parameters' structure and dtype.
        constants: The constants that it was made with, by name.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn.optimizers import regularizers
        >>> float(regularizers.get("l2(0.5)").value(jnp.array([1.0, 2.0])))
        2.5
    """

    name: str
    value: Callable[[Any], Array]
    gradient: Callable[[Any], Any]
    constants: dict[str, Any] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        return f"<regularizer {self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})>"


__all__ = [
    "Regularizer",
    "elastic_net",
    "factory",
    "get",
    "l1",
    "l2",
    "magnitude_masks",
    "names",
    "penalized",
    "prune",
    "register",
    "sparsity",
]

_registry: Registry[Regularizer] = Registry("regularizer", Regularizer)


def register(factory: Callable[Constants, Regularizer]) -> Callable[Constants, Regularizer]:
    """Gives a function that returns a regularizer its name. A decorator.

    Afterwards the name may be used wherever a regularizer is expected. Equal constants
    return the same object, so that compiled programs are used again.

    Args:
        factory: The function; its name is the name of the regularizer, and its arguments are the constants.

    Returns:
        The same function, its results cached.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> from functional_nn.optimizers import regularizers
        >>> @regularizers.register
        ... def doubled(strength: float):
        ...     return regularizers.l2(2 * strength)
        >>> regularizers.get("doubled(0.5)")
        <regularizer l2(strength=1.0, biases=False)>
    """
    return _registry.register(factory)


def names() -> tuple[str, ...]:
    """Returns the names of the registered regularizers.

    Example:
        >>> from functional_nn.optimizers import regularizers
        >>> "l2" in regularizers.names()
        True
    """
    return _registry.names()


def factory(name: str) -> Callable[..., Regularizer]:
    """Returns the function with this bare name.

    Args:
        name: A name without arguments.

    Returns:
        The function that returns the regularizer for its constants.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> from functional_nn.optimizers import regularizers
        >>> regularizers.factory("l2") is regularizers.l2
        True
    """
    return _registry.factory(name)


def get(regularizer: str | Regularizer) -> Regularizer:
    """Returns the regularizer with this name.

    Args:
        regularizer: A name, with arguments where wanted, such as "l2(0.01)"; a regularizer is returned as it is.

    Returns:
        The regularizer.

    Raises:
        ValueError: The name is unknown, or its arguments are refused.
        TypeError: It is neither a name nor a regularizer.

    Example:
        >>> from functional_nn.optimizers import regularizers
        >>> regularizers.get("l2(0.01)")
        <regularizer l2(strength=0.01, biases=False)>
    """
    return _registry.get(regularizer)


@register
def l2(strength: float, biases: bool = False) -> Regularizer:
    r"""The sum of squared weights.

    .. math:: \Omega = \lambda \sum w^2, \qquad \frac{\partial \Omega}{\partial w} = 2 \lambda w

    Warning:
        CSE 475 prints neither :math:`\lambda` nor the 2.

    Args:
        strength: :math:`\lambda`, >= 0.
        biases: Whether biases are penalized, too.

    Returns:
        The regularizer.

    Raises:
        ValueError: A strength is not a finite number >= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn.optimizers import regularizers
        >>> params = {"layer1": {"weights": {"input": jnp.array([[3.0, -1.0]])}, "bias": jnp.ones(1)}}
        >>> penalty = regularizers.l2(0.5)
        >>> float(penalty.value(params)), penalty.gradient(params)["layer1"]["weights"]["input"].tolist()
        (5.0, [[3.0, -1.0]])
    """
    strength = _strength("l2", "strength", strength)
    return _penalty("l2", {"strength": strength}, biases, lambda w, s: s * w**2, lambda w, s: 2 * s * w)


@register
def l1(strength: float, biases: bool = False) -> Regularizer:
    r"""The sum of the magnitudes of the weights.

    .. math::
        \Omega = \lambda \sum \lvert w \rvert, \qquad
        \frac{\partial \Omega}{\partial w} = \lambda \, \mathrm{sign}(w)

    At 0 the gradient is 0, so that a weight that is zero does not move.

    Args:
        strength: :math:`\lambda`, >= 0.
        biases: Whether biases are penalized, too.

    Returns:
        The regularizer.

    Raises:
        ValueError: A strength is not a finite number >= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn.optimizers import regularizers
        >>> params = {"layer1": {"weights": {"input": jnp.array([[3.0, -1.0]])}, "bias": jnp.ones(1)}}
        >>> penalty = regularizers.l1(0.5)
        >>> float(penalty.value(params)), penalty.gradient(params)["layer1"]["weights"]["input"].tolist()
        (2.0, [[0.5, -0.5]])
    """
    strength = _strength("l1", "strength", strength)
    return _penalty("l1", {"strength": strength}, biases, lambda w, s: s * _size(w), lambda w, s: s * jnp.sign(w))


@register
def elastic_net(l1: float, l2: float, biases: bool = False) -> Regularizer:
    r"""The sum of an L1 and an L2 penalty.

    .. math:: \Omega = \lambda_1 \sum \lvert w \rvert + \lambda_2 \sum w^2

    Args:
        l1: :math:`\lambda_1`, >= 0.
        l2: :math:`\lambda_2`, >= 0.
        biases: Whether biases are penalized, too.

    Returns:
        The regularizer.

    Raises:
        ValueError: A strength is not a finite number >= 0.

    References:
        Zou and Hastie 2005.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn.optimizers import regularizers
        >>> params = {"layer1": {"weights": {"input": jnp.array([[3.0, -1.0]])}, "bias": jnp.ones(1)}}
        >>> penalty = regularizers.elastic_net(0.5, 0.5)
        >>> float(penalty.value(params)), penalty.gradient(params)["layer1"]["weights"]["input"].tolist()
        (7.0, [[3.5, -1.5]])
    """
    constants = {"l1": _strength("elastic_net", "l1", l1), "l2": _strength("elastic_net", "l2", l2)}
    return _penalty(
        "elastic_net",
        constants,
        biases,
        lambda w, s1, s2: s1 * _size(w) + s2 * w**2,
        lambda w, s1, s2: s1 * jnp.sign(w) + 2 * s2 * w,
    )


def _size(w: Array) -> Array:
    return w * jnp.sign(w)  # |w|, in a form whose automatic derivative at zero is 0; that of jnp.abs is 1


def penalized(params: Any, biases: bool = False) -> Any:
    """Returns which arrays a penalty acts on, as Python booleans in the parameters' structure.

    It never acts on running statistics, nor on the feedback weights that a learning rule learns.

    Args:
        params: A network's parameters.
        biases: Whether biases are penalized, too.

    Returns:
        Booleans in the parameters' structure.

    Example:
        >>> from functional_nn.optimizers import regularizers
        >>> regularizers.penalized({"layer1": {"weights": {"input": 1.0}, "bias": 0.0}})
        {'layer1': {'bias': False, 'weights': {'input': True}}}
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [tuple(map(_key, path)) for path, _ in leaves]
    # A node that holds "weights" with something below them is a layer, even if its own name is "weights".
    layers = {path[:i] for path in paths for i in range(len(path) - 1) if path[i] == "weights"}

    def acts(path):  # not on what an activation learns, whatever its name
        return any(
            k == "weights" and path[: i + 1] not in layers and "learned" not in path[1:i] for i, k in enumerate(path)
        )

    weights = list(map(acts, paths))
    if biases or not any(weights):
        return structure.unflatten([not {"statistics", "feedback"} & set(path[:-1]) for path in paths])
    return structure.unflatten(weights)


def _key(entry: Any) -> Any:
    return getattr(entry, "key", getattr(entry, "name", None))


def _penalty(
    name: str, constants: dict[str, Any], biases: bool, element: Callable, derivative: Callable
) -> Regularizer:
    """Returns the sum of `element(w, *constants)` over the penalized weights, with the derivative of each."""
    checks.boolean(name, "biases", biases)

    def with_strengths(w):
        wide = w.astype(at_least_float32(w.dtype))
        return wide, *(in_dtype(strength, wide.dtype) for strength in constants.values())

    def value(params):
        chosen = zip(jax.tree.leaves(penalized(params, biases)), jax.tree.leaves(params), strict=True)
        terms = [(w.dtype, jnp.sum(element(*with_strengths(w)))) for acts, w in chosen if acts]
        return sum(term for _, term in terms).astype(terms[0][0])

    def gradient(params):
        return jax.tree.map(
            lambda acts, w: derivative(*with_strengths(w)).astype(w.dtype) if acts else jnp.zeros_like(w),
            penalized(params, biases),
            params,
        )

    return Regularizer(name, value, gradient, constants | {"biases": biases})


def _strength(regularizer: str, name: str, value: Any) -> Any:
    return checks.constant(regularizer, name, value, *checks.NON_NEGATIVE)


# Pruning: the L0 norm -------------------------------------------------------------------------------------------------


def magnitude_masks(params: Any, fraction: float, scope: Literal["network", "layer"] = "network") -> Any:
    """Returns masks that are False for the weights nearest to zero.

    Exactly floor(fraction * count) weights are marked; among equal magnitudes the first go. Biases are kept.

    Args:
        params: A network's parameters.
        fraction: The share of weights to be pruned, in [0, 1).
        scope: "network": the smallest over all weights. "layer": that share of each array of weights.

    Returns:
        Booleans in the parameters' structure.

    Raises:
        ValueError: The fraction is out of range, the scope is unknown, or there are no parameters.

    References:
        CSE 475, 19.71.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn.optimizers import regularizers
        >>> regularizers.magnitude_masks(jnp.array([3.0, -0.1, 0.5, 2.0]), 0.5).tolist()
        [True, False, False, True]
    """
    fraction = checks.constant("magnitude_masks", "fraction", fraction, lambda v: (v >= 0) & (v < 1), "in [0, 1)")
    checks.one_of("magnitude_masks", "scope", scope, ("network", "layer"))
    leaves, structure = jax.tree.flatten(params)
    if not leaves:
        raise ValueError("magnitude_masks: params: expected at least one array")
    chosen = jax.tree.leaves(penalized(params))
    weights = [jnp.abs(w).ravel() for w, acts in zip(leaves, chosen, strict=True) if acts]
    if scope == "network":
        sizes = np.cumsum([w.size for w in weights])[:-1].tolist()
        kept = jnp.split(_largest(jnp.concatenate(weights), fraction), sizes)
    else:
        kept = [_largest(w, fraction) for w in weights]
    following = iter(kept)
    masks = [
        next(following).reshape(w.shape) if acts else jnp.ones(w.shape, bool)
        for w, acts in zip(leaves, chosen, strict=True)
    ]
    return structure.unflatten(masks)


def _largest(magnitudes: Array, fraction: float | Array) -> Array:
    rank = jnp.argsort(jnp.argsort(magnitudes, stable=True))
    return rank >= jnp.floor(fraction * magnitudes.size).astype(rank.dtype)


def prune(params: Any, masks: Any) -> Any:
    """Returns the parameters, or gradients, with exact zeros where the mask is False.

    Args:
        params: Parameters or gradients.
        masks: Booleans in the same structure and shapes, as from `magnitude_masks`.

    Returns:
        The pruned tree.

    Raises:
        ValueError: The masks do not match; the message names the first path.
        TypeError: The masks are not booleans.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn.optimizers import regularizers
        >>> regularizers.prune(jnp.array([3.0, -0.1]), jnp.array([True, False])).tolist()
        [3.0, 0.0]
    """
    checks.same_shapes("masks", checks.shapes(masks), checks.shapes(params), "the parameters'")
    for path, mask in checks.by_path(masks).items():
        dtype = str(getattr(mask, "dtype", type(mask).__name__))
        if dtype != "bool":
            raise TypeError(f"masks: {path or 'the array'} expected booleans, got {dtype}")
    return jax.tree.map(lambda x, keep: jnp.where(keep, x, jnp.zeros_like(x)), params, masks)


def sparsity(params: Any) -> Array:
    """Returns the share of weights that are exactly zero, without biases.

    Args:
        params: A network's parameters.

    Returns:
        A float32 scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn.optimizers import regularizers
        >>> float(regularizers.sparsity(jnp.array([3.0, 0.0, 0.0, 1.0])))
        0.5
    """
    chosen = zip(jax.tree.leaves(params), jax.tree.leaves(penalized(params)), strict=True)
    zeros = [(w == 0).ravel() for w, acts in chosen if acts]
    return jnp.mean(jnp.concatenate(zeros).astype(jnp.float32))
