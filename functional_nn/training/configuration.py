"""The configuration of a run, as plain data. A checkpoint stores it, and cannot be resumed with another one."""

import hashlib
import math
import platform
import re
from typing import Any

import jax
import numpy as np

from functional_nn.networks.network import Layer, Network, graph
from functional_nn.networks.stored import Labels, Rows
from functional_nn.training.checkpoints import MADE_OF
from functional_nn.training.contents import digest
from functional_nn.training.records import Batch
from functional_nn.training.settings import Common, Settings

_BLOCK = 2**20  # numbers whose bytes are digested at a time


def describe_run(settings: Settings, training: Batch, held_out: Batch | None, key: Any) -> dict[str, Any]:
    """Returns the configuration of a run of `fit`; as `describe`."""
    return describe(settings, training, held_out, key, settings.optimizer, settings.regularizer)


def describe(
    settings: Common, training: Batch, held_out: Batch | None, key: Any, optimizer: Any = None, regularizer: Any = None
) -> dict[str, Any]:
    """Returns settings by name and arrays by a digest of their bytes: words and numbers only, for JSON.

    optimizer and regularizer are None if each member of a population has its own.
    """
    return {
        "network": _by_name(describe_network(settings.network)),
        "loss": settings.loss.specification,
        "optimizer": _row(optimizer),
        "regularizer": _row(regularizer),
        "plan": _said(settings.plan),
        "stop": [criterion.reason for criterion in settings.stop],
        "gradient": _said(settings.gradient),
        "track": [name for name, _ in settings.track],
        **_augment(settings),
        "training": fingerprint(training[:3]),
        "validation": held_out and fingerprint(held_out[:3]),
        "key": fingerprint(key),
        MADE_OF: made_of(
            network=[_rows(layer) for layer in settings.network.layers],
            loss=settings.loss,
            optimizer=optimizer,
            regularizer=regularizer,
            stop=settings.stop,
            gradient=settings.gradient,
            correct=settings.correct,
            track=settings.track,
            augment=settings.augment or None,
        ),
    }


def _augment(settings: Common) -> dict[str, Any]:
    # left out if there is none, as in older checkpoints
    by_input = {name: [row.specification for row in rows] for name, rows in settings.augment}
    return {"augment": by_input} if by_input else {}


def _rows(layer: Layer) -> tuple:
    """What a layer's digest is made of; connections only if one of them is not dense, as in older digests."""
    return (layer.activation, layer.initializer, *(() if layer.is_dense else layer.connections))


def made_of(**settings: Any) -> dict[str, Any]:
    """Returns digests of settings that names cannot distinguish: functions, masks, constants that are not shown.

    Compiled code differs between versions of Python, so the version is recorded under "python". Settings that could not
    be read completely are listed under "unread".
    """
    digests = {name: digest(value) for name, value in settings.items() if value is not None}
    return {
        "python": list(platform.python_version_tuple()[:2]),
        **{name: text for name, (text, _) in digests.items()},
        "unread": [name for name, (_, whole) in digests.items() if not whole],
    }


def describe_network(network: Network) -> dict[str, Any]:
    """Returns the network as plain data, for JSON: its inputs, and a list of its layers, with names of their parts.

    An input of vectors is described by its size. Connections are listed only where they are not the default.
    """
    layers = []
    for layer in network.layers:
        entry = {
            "name": layer.name,
            "size": layer.size,
            "activation": layer.activation.name,
            "sources": list(layer.sources),
            "bias": layer.bias,
            "initializer": layer.initializer.name,
            "dropout": layer.dropout,
        }
        if not layer.is_dense:
            entry["connections"] = [by.name for by in layer.connections]
        if layer.lengths is not None:
            entry["lengths"] = layer.lengths
        layers.append(entry)
    inputs = {name: shape if isinstance(shape, int) else list(shape) for name, shape in network.inputs}
    return {"inputs": inputs, "layers": layers}


def network_from(description: dict[str, Any]) -> Network:
    """Returns the network that `describe_network` described. Raises ValueError if something is missing or unknown."""
    try:
        layers = [
            Layer(**{name: tuple(x) if name in ("sources", "connections") else x for name, x in layer.items()})
            for layer in description["layers"]
        ]
        return graph(inputs=description["inputs"], layers=layers)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a network's description: {error!r}") from None


def _by_name(description: dict[str, Any]) -> dict[str, Any]:
    """Returns the description with each layer under its name, so that a difference has a readable path."""
    layers = {layer["name"]: {**layer, "sources": ", ".join(layer["sources"])} for layer in description["layers"]}
    for layer in layers.values():
        del layer["name"]
    return {**description, "layers": layers}


def describe_factory(factory: Any) -> Any:
    """Describes what makes a population's optimizers or penalties: a function by its name, or an object."""
    return _said(factory.make) if factory.make else _row(factory.row)


def fingerprint(tree: Any) -> str:
    """Returns a digest of every array's dtype, shape and bytes.

    Arrays that are read in place, and their labels, have the digest of the copies that would be made of them. So a run
    may be resumed with either.
    """

    def in_place(x: Any) -> bool:
        return isinstance(x, Rows) or isinstance(x, Labels) and len(x.shape) == 2

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree, is_leaf=in_place):
        if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = leaf if in_place(leaf) else np.atleast_1d(np.asarray(leaf))
        digest.update(f"{array.dtype}{array.shape}".encode())
        step = max(1, _BLOCK * len(array) // max(1, math.prod(array.shape)))
        for start in range(0, len(array), step):  # in blocks, so that the whole is never copied
            digest.update(np.ascontiguousarray(array[start : start + step]).tobytes())
    return digest.hexdigest()[:16]


def _row(row: Any) -> dict[str, Any] | None:
    return row and {"name": row.name, **_plain(row.constants)}


def _plain(constants: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, bool | int | float | str) else _said(value)
        for name, value in constants.items()
    }


def _said(value: Any) -> str:
    """Returns a value's name or repr, without addresses in memory."""
    name = getattr(value, "__qualname__", None)
    return name or re.sub(r" at 0x[0-9a-f]+", "", repr(value))
