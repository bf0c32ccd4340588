"""Penalties Omega(params) with their gradients by hand, and pruning by magnitude.

J' = J + Omega (Lecture 2; CSE 475, 19.71.1). Penalties act on weights: whatever lies under "weights" in a network's
parameters. Biases and learned slopes are spared unless `biases` is true; a tree without "weights" is penalized whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.optimizers.first_order import in_dtype
from functional_nn.precision import at_least_float32
from functional_nn.registry import Described, Registry


@dataclass(frozen=True)
class Regularizer(Described):
    """value(params) -> Omega, a scalar; gradient(params) -> dOmega/dparams, in the parameters' structure and dtype.

    constants: what it was made with, by name.
    """

    name: str
    value: Callable[[Any], Array]
    gradient: Callable[[Any], Any]
    constants: dict[str, Any] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        return f"<regularizer {self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})>"


_registry: Registry[Regularizer] = Registry("regularizer", Regularizer)
register, names, get = _registry.register, _registry.names, _registry.get
factory = _registry.factory


@register
def l2(strength: float, biases: bool = False) -> Regularizer:
    """Omega = lambda sum w^2, gradient 2 lambda w (CSE 475 prints neither lambda nor the 2).

    Raises ValueError, as all do, unless lambda, the `strength`, is a finite number >= 0.
    """
    strength = _strength("l2", "strength", strength)
    return _penalty("l2", {"strength": strength}, biases, lambda w, s: s * w**2, lambda w, s: 2 * s * w)


@register
def l1(strength: float, biases: bool = False) -> Regularizer:
    """Omega = lambda sum |w|, gradient lambda sign(w), with sign(0) = 0: a weight that is zero is not moved."""
    strength = _strength("l1", "strength", strength)
    return _penalty("l1", {"strength": strength}, biases, lambda w, s: s * _size(w), lambda w, s: s * jnp.sign(w))


@register
def elastic_net(l1: float, l2: float, biases: bool = False) -> Regularizer:
    """Omega = lambda_1 sum |w| + lambda_2 sum w^2: Zou and Hastie 2005."""
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
    """Which arrays of the parameters a penalty acts on: Python booleans in their structure. Statistics are none, nor is
    what a learning rule learns beside them.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [tuple(map(_key, path)) for path, _ in leaves]
    # What holds "weights" with something below them is a layer, also one that is itself called "weights".
    layers = {path[:i] for path in paths for i in range(len(path) - 1) if path[i] == "weights"}

    def acts(path):  # what an activation learns is none, whatever it is called
        return any(
            k == "weights" and path[: i + 1] not in layers and "learned" not in path[1:i] for i, k in enumerate(path)
        )

    weights = list(map(acts, paths))
    if biases or not any(weights):
        return structure.unflatten([not {"statistics", "feedback"} & set(path[:-1]) for path in paths])
    return structure.unflatten(weights)


def _key(entry) -> Any:
    return getattr(entry, "key", getattr(entry, "name", None))


def _penalty(name: str, constants: dict[str, Any], biases: bool, element, derivative) -> Regularizer:
    """The sum of element(w, *constants) over the penalized weights, and derivative(w, *constants) of each."""
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


def _strength(regularizer: str, name: str, value):
    return checks.constant(regularizer, name, value, *checks.NON_NEGATIVE)


# Pruning: the L0 norm -------------------------------------------------------------------------------------------------


def magnitude_masks(params: Any, fraction: float, scope: Literal["network", "layer"] = "network") -> Any:
    """Booleans in the parameters' structure: False for the `fraction` of weights nearest to zero (CSE 475, 19.71.1).

    Exactly floor(fraction * count) weights are marked, over the whole network or within each array of weights; of
    equal magnitudes the first go. Biases stay. Raises ValueError for a fraction outside [0, 1) or an unknown scope.
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
    kept = iter(kept)
    masks = [
        next(kept).reshape(w.shape) if acts else jnp.ones(w.shape, bool) for w, acts in zip(leaves, chosen, strict=True)
    ]
    return structure.unflatten(masks)


def _largest(magnitudes: Array, fraction) -> Array:
    rank = jnp.argsort(jnp.argsort(magnitudes, stable=True))
    return rank >= jnp.floor(fraction * magnitudes.size).astype(rank.dtype)


def prune(params: Any, masks: Any) -> Any:
    """The parameters, or gradients, with exact zeros where the mask is False.

    Raises ValueError at the first path where the masks do not match, TypeError for masks that are not booleans.
    """
    checks.same_shapes("masks", checks.shapes(masks), checks.shapes(params), "the parameters'")
    for path, mask in checks.by_path(masks).items():
        dtype = str(getattr(mask, "dtype", type(mask).__name__))
        if dtype != "bool":
            raise TypeError(f"masks: {path or 'the array'} expected booleans, got {dtype}")
    return jax.tree.map(lambda x, keep: jnp.where(keep, x, jnp.zeros_like(x)), params, masks)


def sparsity(params: Any) -> Array:
    """The share of weights that are exactly zero, biases not counted: a scalar."""
    chosen = zip(jax.tree.leaves(params), jax.tree.leaves(penalized(params)), strict=True)
    zeros = [(w == 0).ravel() for w, acts in chosen if acts]
    return jnp.mean(jnp.concatenate(zeros).astype(jnp.float32))
