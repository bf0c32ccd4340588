"""Networks of several widths in one program: the narrow ones are padded with units that do nothing.

The weights into and out of such a unit are 0. What reads it has n + 0 a = n, and what comes back to it is g = 0^T s
= 0, so that its own gradient is 0. Only dF/dw = s a of the weights that read it is not 0, where f(0) is not 0. The
mask sets it to 0, and the weights stay 0.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from functional_nn.gradients import rules
from functional_nn.gradients.backprop import Along
from functional_nn.networks.connections import Connection, Shape
from functional_nn.networks.network import Network, Params
from functional_nn.training.gradient import GRADIENTS, rule_of
from functional_nn.training.initial_parameters import parameter_shapes
from functional_nn.training.settings import Settings


def common_networks(networks: list[Network]) -> list[Network]:
    """For each network the one it is padded to: its hidden layers as wide as the widest of the same structure.

    Raises ValueError where a network has no padded form.
    """
    widest: dict[tuple, tuple] = {}
    structures = [_structure(network) for network in networks]
    for structure, network in zip(structures, networks, strict=True):
        sizes = tuple(layer.size for layer in network.layers)
        widest[structure] = tuple(map(max, sizes, widest.get(structure, sizes)))
    common = {}
    for structure, network in zip(structures, networks, strict=True):
        if structure not in common:
            layers = zip(network.layers, widest[structure], strict=True)
            widened = tuple(dataclasses.replace(layer, size=size) for layer, size in layers)
            common[structure] = Network(network.inputs, widened)
    for structure, network in zip(structures, networks, strict=True):
        if network != common[structure]:
            _check_paddable(network, common[structure])
    return [common[structure] for structure in structures]


def _structure(network: Network) -> tuple:
    """Everything about a network but the sizes of its hidden layers."""
    layers = tuple(dataclasses.replace(layer, size=1) for layer in network.layers)
    return network.inputs, network.output.size, layers


def _check_paddable(network: Network, common: Network) -> None:
    """Raises ValueError where padding would change what the network computes."""
    for layer in network.layers:
        for source, by in layer.reads:
            wide = common.shapes[source], next(other.rows for other in common.layers if other.name == layer.name)
            if not by.pads and not _is_corner(by, (network.shapes[source], layer.rows), wide):
                raise ValueError(
                    f"pad: layer {layer.name!r} reads {source!r} by {by.name}, whose weights in a narrower network "
                    "are not a corner of those in a wider one; use pad=False, which trains each width in its own group"
                )
    for layer in network.layers[:-1]:
        if layer.dropout or not layer.activation.alone:
            reason = "dropout" if layer.dropout else f"activation {layer.activation.name!r}, which mixes neurons"
            raise ValueError(
                f"pad: a layer with {reason} computes something else when units are added; use pad=False, which trains "
                "each width in its own group"
            )


def _is_corner(by: Connection, narrow: tuple[Shape, int], wide: tuple[Shape, int]) -> bool:
    """True if weights in a corner of the wider network's, the rest 0, read exactly what the narrower one reads.

    Tried out: z is linear in x and in w, so that random numbers decide. narrow, wide: the shape that is read, and the
    number of channels.
    """
    if narrow == wide or by.tokens is not None:
        return narrow == wide
    draw, (_, shape), (_, wider) = np.random.default_rng(0), by.shapes(*narrow), by.shapes(*wide)
    x = draw.standard_normal((1, *wide[0]))
    w = None if shape is None else draw.standard_normal(shape)
    padded = None if w is None else np.pad(w, [(0, many - few) for few, many in zip(shape, wider, strict=True)])
    few = np.asarray(by.forward(x[(slice(None), *map(slice, narrow[0]))], w))
    many = np.asarray(by.forward(x, padded))
    return np.allclose(many, np.pad(few, [(0, more - less) for less, more in zip(few.shape, many.shape, strict=True)]))


def check_padded_settings(settings: Settings) -> None:
    """Raises ValueError for settings that read gradients before the mask, and for rules that differ by width."""
    rule = rule_of(settings.gradient)
    known = settings.gradient in GRADIENTS.values() or isinstance(settings.gradient, Along)
    reads = {"importance": settings.plan.importance is not None, "track": settings.track, "gradient": not known}
    for name, present in reads.items():
        if present:
            raise ValueError(f"pad: {name} would also read the padding units; train the widths with pad=False")
    for each in rules.rules_in(rule):
        if not each.pads:
            raise ValueError(
                f"pad: the rule {each.name} draws, or uses instead of weights, other numbers in a wider network; train "
                "the widths with pad=False"
            )


def padding_masks(common: Network, networks: list[Network]) -> Params:
    """(M, ...) booleans: True for a member's own parameters among those of the network it is padded to."""
    masks: Any = jax.tree.map(lambda x: np.zeros((len(networks), *x.shape), bool), parameter_shapes(common))
    for position, network in enumerate(networks):
        for mask, x in zip(jax.tree.leaves(masks), jax.tree.leaves(parameter_shapes(network)), strict=True):
            mask[position][tuple(map(slice, x.shape))] = True
    return masks


def unpadded(network: Network, params: Params) -> Params:
    """One member's parameters in the shapes of its own network."""
    own = jax.tree.map(
        lambda x, like: x[tuple(map(slice, like.shape))], rules.without_feedback(params), parameter_shapes(network)
    )
    return {name: params[name] | x for name, x in own.items()}
