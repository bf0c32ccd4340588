"""What a learning rule is: its parts, and the place and the connection that they see."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn.gradients.draws import Stream
from functional_nn.networks.connections import Connection, Shape
from functional_nn.networks.network import Layer, Network, Trace
from functional_nn.rows import Described


class Place(NamedTuple):
    """A layer on the way back, as a rule sees it: its sensitivity is known.

    Attributes:
        layer: The layer.
        params: Its parameters.
        trace: The forward pass.
        share: share() returns each example's share of F, (Q,).
        stream: Random numbers of this update and layer; None where no key was given.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> def squashed(place, s):
        ...     return s * jnp.abs(place.trace.activations[place.layer.name])
        >>> fnn.Rule("squashed", alter=squashed)
        <rule squashed>
    """

    layer: Layer
    params: dict[str, Any]
    trace: Trace
    share: Callable[[], Array]
    stream: Stream | None


class Edge(NamedTuple):
    """A connection with weights on the way back, as a rule sees it.

    Attributes:
        layer: The layer that reads through the connection.
        source: Name of the layer or input that it reads.
        connection: The connection.
        weights: W.
        signal: What was read through it, `(Q, *P, R)`.
        errors: s^M `(Q, *P, S^M)`, where the way back began.
        feedback: What the rule has learned for this connection; None where it learns nothing.
        stream: As in `Place`.

    Example:
        >>> import functional_nn as fnn
        >>> doubled = fnn.Rule("doubled", weights=lambda edge: 2 * edge.weights)
        >>> doubled.name
        'doubled'
    """

    layer: Layer
    source: str
    connection: Connection
    weights: Array
    signal: Array
    errors: Array | None
    feedback: Array | None
    stream: Stream | None

    def back(self, s: Array, weights: Array | None = None) -> Array:
        """Returns what of s `(Q, *P', S)` reaches the source, `(Q, *P, R)`, by W or by the given matrix instead."""
        return self.connection.back(s, self.weights if weights is None else weights, self.signal)

    @property
    def name(self) -> tuple[str, str]:
        """Layer and source, which identify the connection."""
        return self.layer.name, self.source

    @property
    def direct_shape(self) -> Shape:
        """Shape (S^M, R) of a matrix from the outputs to the source.

        R counts the whole signal, or one position of it where the outputs have positions too.
        """
        signal = self.signal.shape
        return self.errors.shape[-1], math.prod(signal[1:]) if self.errors.ndim == 2 else signal[-1]


@dataclass(frozen=True)
class Rule(Described):
    """A learning rule. Parts that are not given are as in the exact gradient.

    Attributes:
        name: How the rule is written.
        weights: weights(edge) -> B, as large as W, which replaces W on the way back.
        direct: direct(edge) -> B (S^M, R): g = s^M B, straight from the outputs.
        carry: carry(edge, s) -> g `(Q, *P, R)`: what of s reaches the source, where no matrix describes it. At most one
            of `weights`, `direct` and `carry` may be given.
        alter: alter(place, s) -> s, for every layer, before its own gradient is made from s and before s goes further
            back.
        rewrite: rewrite(layer) -> Layer: the layer as the way back sees it, with the same outputs.
        begin: begin(network, layer, stream, dtype) -> {name: array}: the initial value of what the rule learns in
            addition to the layer's parameters.
        learn: learn(place, gradients) -> gradients of the layer, with those of what the rule learns under "feedback".
        check: check(network, layer) raises ValueError for a layer that the rule does not support.
        method: method(request) -> Backpropagation: the whole gradient, for a rule without a way back along the
            connections. `request` is a `gradients.backprop.Request`.
        random: True if the rule draws at every update, so that it needs a key.
        pads: True if padding a network with zeros does not change what the rule does.
        has_derivatives: False if the rule trains networks without derivatives (hardlim).
        check_targets: check_targets(network, targets) raises ValueError for concrete targets that the rule cannot
            learn.

    Raises:
        ValueError: If parts are given that exclude each other.

    Example:
        >>> import functional_nn as fnn
        >>> network = fnn.multilayer((4, 3, 2), ("tanh", "softmax"))
        >>> damped = fnn.Rule("damped", carry=lambda edge, s: 0.9 * edge.back(s))
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule=damped)
    """

    name: str
    weights: Callable[[Edge], Array] | None = None
    direct: Callable[[Edge], Array] | None = None
    carry: Callable[[Edge, Array], Array] | None = None
    alter: Callable[[Place, Array], Array] | None = None
    rewrite: Callable[[Layer], Layer] | None = None
    begin: Callable[..., dict[str, Any]] | None = None
    learn: Callable[[Place, dict[str, Any]], dict[str, Any]] | None = None
    check: Callable[[Network, Layer], None] | None = None
    method: Callable[..., Any] | None = None
    random: bool = False
    pads: bool = False
    has_derivatives: bool = True
    check_targets: Callable[[Network, Array], None] | None = None

    def __post_init__(self):
        parts = ("weights", "direct", "carry", "alter", "rewrite", "learn")
        given = [name for name in parts if getattr(self, name) is not None]
        if len(given) > 1 and given[1] in parts[:3]:
            raise ValueError(
                f"rule {self.name!r}: give one of weights, direct and carry, got {given[0]} and {given[1]}"
            )
        if self.method is not None and given:
            raise ValueError(
                f"rule {self.name!r}: a method makes the whole gradient, so it cannot be combined with {given[0]}"
            )

    def __repr__(self) -> str:
        return f"<rule {self.name}>"

    @property
    def crosses(self) -> bool:
        """True if something other than the exact gradient crosses connections."""
        return any(each is not None for each in (self.weights, self.direct, self.carry))

    def cross(self, edge: Edge, s: Array) -> Array:
        """Returns what of s `(Q, *P', S)` reaches the source, `(Q, *P, R)`. Raises ValueError for other shapes."""
        signal, errors = edge.signal, edge.errors
        if self.direct is not None:
            b = self.checked("direct", self.direct(edge), edge.direct_shape, errors.dtype)
            return jnp.tensordot(errors, b, 1).reshape(signal.shape)
        if self.carry is not None:
            return self.checked("carry", self.carry(edge, s), signal.shape, s.dtype)
        return edge.back(s, self.checked("weights", self.weights(edge), edge.weights.shape, s.dtype))

    def checked(self, part: str, result: Any, shape: Shape, dtype: Any) -> Array:
        """Returns the result of a part of the rule.

        Raises ValueError if it has another shape, which might be broadcast, or another dtype, which the gradient would
        take.
        """
        if np.shape(result) != shape:
            raise ValueError(f"rule {self.name!r}: {part} must return shape {shape}, got {np.shape(result)}")
        if result.dtype != dtype:
            raise ValueError(f"rule {self.name!r}: {part} must return {dtype}, got {result.dtype}")
        return result
