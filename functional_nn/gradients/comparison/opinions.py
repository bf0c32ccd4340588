"""Which of two gradients is right, from values of the objective alone; and where there is no derivative."""

import functools
import math
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn.gradients.comparison.bound import SAYS_LITTLE, Examination, flat, generator
from functional_nn.gradients.comparison.records import KinkAudit, TaylorTest, ThirdOpinion
from functional_nn.gradients.roundings import unit_roundoff
from functional_nn.networks.network import Network, Params, dtype_of, forward
from functional_nn.rows import cached


def opinions(
    examination: Examination, objective: Callable, part: Callable, count: int
) -> tuple[ThirdOpinion, TaylorTest]:
    """Returns the third opinion and the Taylor test on a part of both results, along `count` directions."""
    gradients = [part(tree) for tree in (examination.manual, examination.automatic)]
    # Where gradients overflow, as after a divergence, infinities meet on the way to "inconclusive".
    with np.errstate(over="ignore", invalid="ignore"):
        third = _third_opinion(objective, examination, gradients, count, examination.total(part).bound)
        return third, _taylor_test(objective, examination, gradients[0], count)


def _directions(key, tree, count: int) -> list[np.ndarray]:
    """Returns `count` random directions as arrays (count, ...) in the tree's order, each as long as the tree itself."""
    leaves = [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(tree)]
    draw = generator(key, 2)
    drawn = [draw.standard_normal((count, *x.shape)) for x in leaves]
    length = np.sqrt(sum(np.sum(d.reshape(count, -1) ** 2, axis=1) for d in drawn))
    size = np.sqrt(sum(np.sum(x[np.isfinite(x)] ** 2) for x in leaves)) or 1.0
    return [d * (size / length).reshape(-1, *[1] * (d.ndim - 1)) for d in drawn]


def _dot(directions: list[np.ndarray], tree) -> np.ndarray:
    """Returns g'd for every direction, in float64: (count,)."""
    leaves = [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(tree)]
    return sum(np.sum((d * x).reshape(len(d), -1), axis=1) for d, x in zip(directions, leaves, strict=True))


def _along(objective, args, directions, jit: bool):
    """Returns h -> F(x + h d) for all directions at once, (count,) NumPy; h may be complex."""
    x, structure = jax.tree.flatten(args[0])
    batched = _over_directions(objective, len(args) - 1, jit)

    def values(h):
        dtype = jnp.complex128 if isinstance(h, complex) else x[0].dtype
        points = [jnp.asarray(np.asarray(a).astype(d.dtype) + h * d, dtype) for a, d in zip(x, directions, strict=True)]
        found = batched(jax.tree.unflatten(structure, points), *args[1:])
        return np.asarray(found).astype(np.result_type(dtype, np.float64))

    return values


@functools.partial(cached, size=32)
def _over_directions(objective: Callable, others: int, jit: bool) -> Callable:
    """Returns the objective of many first arguments at once; the same function for the same objective."""
    batched = jax.vmap(objective, in_axes=(0, *(None,) * others))
    return jax.jit(batched) if jit else batched


def _third_opinion(
    objective: Callable, examination: Examination, gradients: list, count: int, bound: float
) -> ThirdOpinion:
    args, key, jit = examination.args, examination.key, examination.jit
    directions = _directions(key, args[0], count)
    claimed = [_dot(directions, g) for g in gradients]
    with jax.enable_x64(True):
        # integers are tokens
        exact = jax.tree.map(
            lambda x: x if x.dtype.kind in "iu" else jnp.asarray(np.asarray(x).astype(np.float64)), args
        )
        values = _along(objective, exact, directions, jit)
        fine, coarse = 2.0**-12, 2.0**-11
        slopes = [(values(h) - values(-h)) / (2 * h) for h in (coarse, fine)]
        extrapolated = (4 * slopes[1] - slopes[0]) / 3  # Richardson: the error in h^2 is taken away
        derivative, method = extrapolated, "central differences"
        size = np.linalg.norm(extrapolated) or 1.0
        noise = np.finfo(np.float64).eps * np.max(np.abs(values(0.0))) / fine
        accuracy = (np.linalg.norm(slopes[1] - extrapolated) + noise * math.sqrt(count)) / size
        try:
            imaginary = values(1e-30j).imag / 1e-30
        except (TypeError, ValueError, NotImplementedError):  # an objective that is not written for complex numbers
            imaginary = np.full(count, np.nan)
        # Taken only where it confirms the differences: abs, max or a kink make an objective blind to imaginary parts.
        if np.linalg.norm(imaginary - extrapolated) <= 10 * accuracy * size:
            derivative, method, accuracy = imaginary, "complex step", 16 * np.finfo(np.float64).eps
    size = np.linalg.norm(derivative)
    errors = [float(np.linalg.norm(c - derivative) / size) if size > 0 else float(np.linalg.norm(c)) for c in claimed]
    right = [error <= max(bound, 10 * accuracy) for error in errors]
    says = {
        (True, True): "both are right",
        (False, True): "the manual gradient is wrong",
        (True, False): "the automatic gradient is wrong",
        (False, False): "neither is right",
    }[tuple(right)]
    if not np.isfinite(size) or (max(bound, 10 * accuracy) > SAYS_LITTLE and all(right)):
        says = "inconclusive"
    return ThirdOpinion(method, says, errors[0], errors[1], float(accuracy))


def _taylor_test(objective: Callable, examination: Examination, gradient: Any, count: int) -> TaylorTest:
    args, key, unit, jit = examination.args, examination.key, examination.unit, examination.jit
    directions = _directions(key, args[0], count)
    values = _along(objective, args, directions, jit)
    start, linear = values(0.0), _dot(directions, gradient)
    # The uncertainty of F itself: its change under moves of the size of a rounding, and its own last place.
    jitter = np.max([np.abs(values(sign * 4 * unit) - start) - 4 * unit * np.abs(linear) for sign in (1, -1)], axis=0)
    noise = 8 * np.maximum(jitter, unit * np.abs(start)) + np.finfo(np.float64).tiny
    steps = 4.0 ** -np.arange(1, 13)
    remainders = np.array([np.abs(values(h) - start - h * linear) for h in steps])  # (steps, directions)
    slopes = []
    for direction, floor in enumerate(noise):
        r = remainders[:, direction]
        usable = (
            int(np.argmin(r > 8 * floor)) if (r <= 8 * floor).any() else len(r)
        )  # down to the first one in the noise
        if usable >= 3:
            local = np.log(r[: usable - 1] / r[1:usable]) / np.log(4)
            slopes.append(float(np.median(local[-2:])))
        elif usable == 0 and steps[0] * abs(linear[direction]) > 1e3 * floor:
            slopes.append(2.0)  # no remainder at all: F is linear along d, with this gradient
    slope = median(slopes) if slopes else math.nan
    says = "inconclusive"
    if len(slopes) >= max(1, count // 2):
        says = "right" if slope > 1.7 else "wrong" if slope < 1.3 else "inconclusive"
    return TaylorTest(says, slope, count, len(slopes))


def zero_offsets(network: Network, params: Params, targets: Array) -> dict[str, Array]:
    return {name: jnp.zeros((len(targets), *n), dtype_of(params)) for name, n in network.net_shapes.items()}


def audit_kinks(network, loss, automatically, params, inputs, targets) -> tuple[tuple[KinkAudit, ...], float]:
    """Counts net inputs at a kink, and measures how the gradient changes when they are pushed off it, either way."""
    trace = forward(network, params, inputs, {})
    audits, push = [], zero_offsets(network, params, targets)
    sites = []
    for layer in network.layers:
        kept = (trace.kept[layer.name],) if layer.name in trace.kept else ()
        sites.append((layer.name, layer.activation.kink_distance, (trace.net_inputs[layer.name], *kept)))
    output = network.output
    sites.append((f"{loss.name} at {output.name}", loss.kink_distance, (trace.activations[output.name], targets)))
    unit = unit_roundoff(targets.dtype)
    for (name, distance, at), layer in zip(sites, (*network.layers, output), strict=True):
        if distance is None:
            continue
        gap = np.asarray(distance(*at)).astype(np.float64)
        scale = max(1.0, float(np.max(np.abs(np.asarray(at[0]).astype(np.float64)), initial=0.0)))
        audits.append(KinkAudit(name, int(np.sum(gap == 0)), int(np.sum(gap <= 8 * unit * scale)), gap.size))
        # Tied elements are pushed by different amounts: pieces of one maxout neuron, numbers of one window.
        order = 1 + np.arange(layer.rows) % layer.activation.pieces
        if not layer.activation.alone:
            order = 1 + np.random.default_rng(0).random(gap.shape)
        at_kink = np.repeat(gap == 0, layer.rows // gap.shape[-1], axis=-1)
        push[layer.name] += jnp.asarray(at_kink * order * 4 * unit * scale, targets.dtype)
    if not any(audit.at_kink for audit in audits):
        return tuple(audits), 0.0
    unmoved = flat(automatically(params, inputs, targets)["parameters"])
    changes = []
    for sign in (1, -1):
        offsets = jax.tree.map(lambda x, sign=sign: sign * x, push)
        changes.append(np.linalg.norm(flat(automatically(params, inputs, targets, offsets)["parameters"]) - unmoved))
    norm = np.linalg.norm(unmoved)
    return tuple(audits), float(max(changes) / norm) if norm > 0 else math.inf * max(changes) if max(changes) else 0.0
