"""Initial parameters of the members of a group: what `fit` draws for each by itself, times its scale, drawn together.

Letters: M members. Narrow networks that are padded are drawn in a corner of the wide one, by one program for all
widths, where each number is drawn by itself; otherwise by one program a structure.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import precision
from functional_nn.gradients import rules
from functional_nn.networks.activations import learned_at_start
from functional_nn.networks.connections import Shape
from functional_nn.networks.initializers import draws_by_place, in_corner
from functional_nn.networks.network import Layer, Network, Params, abstract_params
from functional_nn.optimizers import regularizers
from functional_nn.training import keys


def parameter_shapes(network: Network) -> Params:
    """The network's parameters as shapes, in the default precision."""
    return abstract_params(network, precision.default())


def member_params(network: Network, member_keys: Array, scales: np.ndarray, rule: rules.Rule | rules.ByLayer) -> Params:
    """Initial parameters (M, ...) of members of one network, with the parameters that the rule learns."""
    return _draw(network, rule if rules.learns(rule) else rules.exact)(member_keys, scales)


def padded_member_params(
    common: Network, networks: Sequence[Network], member_keys: Array, scales: np.ndarray, masks: Params
) -> Params:
    """Initial parameters (M, ...) of narrower networks, each what it draws by itself, padded with zeros.

    common: the network they are padded to; masks: as `padding.padding_masks` returns them.
    """
    corners = corners_of(common, networks) if draws_by_place(member_keys[0]) else None
    if corners is not None:
        return _draw_in_corners(common)(member_keys, scales, masks, corners)
    padded = jax.tree.map(lambda x: np.zeros((len(networks), *x.shape), x.dtype), parameter_shapes(common))
    for network in dict.fromkeys(networks):  # each is drawn for all, so that it compiles for one number of members
        at = np.flatnonzero([other == network for other in networks])
        for leaf, x in zip(jax.tree.leaves(padded), jax.tree.leaves(_draw(network)(member_keys, scales)), strict=True):
            leaf[(at, *map(slice, x.shape[1:]))] = np.asarray(x)[at]
    return padded


@functools.lru_cache(maxsize=256)
def _draw(network: Network, rule: rules.Rule | rules.ByLayer = rules.exact) -> Callable:
    """(keys, scales) -> initial parameters (M, ...), as `fit` draws them, with their weights multiplied by the scale,
    and the parameters that the rule learns.
    """

    def draw_member(key, scale):
        params = _scaled(network.init(keys.parameters(key)), scale)
        return rules.begin(rule, network, params, keys.parameters(key))

    return jax.jit(jax.vmap(draw_member))


def _scaled(params: Params, scale: Array) -> Params:
    params = lax.optimization_barrier(params)  # or the compiler joins the scale with a factor of the draw
    return jax.tree.map(
        lambda acts, w: w * scale.astype(w.dtype) if acts else w, regularizers.penalized(params), params
    )


@functools.lru_cache(maxsize=256)
def _draw_in_corners(network: Network) -> Callable:
    """(keys, scales, masks, corners) -> the same for narrower networks, padded with zeros: one program for all widths.

    Each network's parameters are bitwise what it draws by itself.
    """

    def draw_member(key, scale, mask, corners):
        layers = tuple(
            dataclasses.replace(layer, initializer=in_corner(layer.initializer, *corners[layer.name]))
            if layer.name in corners
            else layer
            for layer in network.layers
        )
        params = _scaled(Network(network.inputs, layers).init(keys.parameters(key)), scale)
        return jax.tree.map(lambda x, own: jnp.where(own, x, 0), params, mask)

    return jax.jit(jax.vmap(draw_member))


class _Fans(NamedTuple):
    """What a layer's weights are drawn for: neurons, the shapes that its sources give, their fan-ins, the fan-out."""

    rows: int
    shapes: dict[str, Shape]
    fan_ins: dict[str, int]
    fan_out: int


def corners_of(network: Network, narrow: Sequence[Network]) -> dict[str, tuple] | None:
    """How the weights of narrower networks lie in those of a wide one, as `initializers.in_corner` takes it.

    Returns {layer: (fan-in (M,), spread (M,), columns (M, fan-in of the wide layer))} for every layer whose number of
    drawn weights differs; None if the numbers of such a layer are not each drawn by themselves.
    """
    corners = {}
    for number, layer in enumerate(network.layers):
        layers = [each.layers[number] for each in narrow]
        fans = [_Fans(own.rows, *each.fans(own)) for each, own in zip(narrow, layers, strict=True)]
        wide = _Fans(layer.rows, *network.fans(layer))
        if all(each == wide for each in fans):
            continue
        if layer.activation.parameters and not all(_learned_in_corner(layer, own.size) for own in layers):
            return None
        if not wide.shapes:  # without weights
            continue
        columns = [_columns(each, wide) for each in fans]
        if layer.initializer.each is None or any(each is None for each in columns):
            return None
        fan_ins = np.array([sum(each.fan_ins.values()) for each in fans], np.int32)
        spreads = [
            layer.initializer.each.spread(int(fan_in), each.fan_out) for fan_in, each in zip(fan_ins, fans, strict=True)
        ]
        corners[layer.name] = fan_ins, np.array(spreads), np.array(columns, np.int32)
    return corners


def _learned_in_corner(layer: Layer, size: int) -> bool:
    """True if a narrower layer's learned parameters are, at the start, a corner of this one's."""
    if layer.activation.drawn is not None:
        return False
    few, many = (learned_at_start(layer.activation, count, precision.default()) for count in (size, layer.size))
    return all(np.array_equal(x, many[name][tuple(map(slice, x.shape))]) for name, x in few.items())


def _columns(narrow: _Fans, wide: _Fans) -> np.ndarray | None:
    """For each column of the wide layer's weights, in the order they are drawn, the number of the narrow layer's column
    that lies there; any number where none does. None if the two read, a part at a time, different numbers of weights.
    """
    columns, before = [], 0
    for source, shape in narrow.shapes.items():
        fan_in, wide_shape, wide_fan_in = narrow.fan_ins[source], wide.shapes[source][1:], wide.fan_ins[source]
        if math.prod(wide_shape) == wide_fan_in:
            indices = np.indices(wide_shape).reshape(len(wide_shape), -1)
            inside = np.minimum(indices, np.array(shape[1:])[:, None] - 1)
            columns.append(before + np.ravel_multi_index(tuple(inside), shape[1:]))
        elif (shape[1:], fan_in) == (wide_shape, wide_fan_in):
            columns.append(before + np.arange(wide_fan_in))
        else:
            return None
        before += fan_in
    return np.concatenate(columns)
