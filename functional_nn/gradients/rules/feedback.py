"""Rules that use another matrix instead of W in the backward pass: fixed, of W's signs, or learned."""

import math
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.gradients import draws
from functional_nn.gradients.draws import Stream
from functional_nn.gradients.rules.lookup import (
    Given,
    as_int,
    check_initialized,
    exact,
    get,
    number,
    of_layers,
    register,
    written,
)
from functional_nn.gradients.rules.rule import Edge, Place, Rule
from functional_nn.networks.connections import Shape
from functional_nn.networks.network import Layer, Network, Params


def feedback_weights(
    network: Network, rule: Given, params: Params, key: Array | None = None
) -> dict[str, dict[str, Array]]:
    """Returns the matrices that replace W on the way back.

    Args:
        network: The network.
        rule: The rule.
        params: Parameters, with what the rule learns.
        key: The update's random key, for a rule that draws B again at every update.

    Returns:
        {layer: {source: B}}, for connections that something is sent back by; for direct feedback B is (S^M, R), from
        the outputs.

    Raises:
        ValueError: For a rule without such matrices, for one that draws without a key, and if what it learns is missing
            among the parameters.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((4, 3, 2), ("tanh", "softmax"))
        >>> params = network.init(jax.random.key(0))
        >>> fnn.rules.feedback_weights(network, "feedback_alignment(0)", params)["layer2"]["layer1"].shape
        (2, 3)
    """
    rule = get(rule)
    by_layer, shown = of_layers(rule, network) or {}, {}
    check_initialized(rule, network, params)
    stream = None if key is None else draws.of_key(key)
    for layer in network.layers:
        for source, by in layer.weighted:
            own = by_layer.get(layer.name, exact)
            matrix = own.weights or own.direct
            if source not in params or matrix is None:
                continue
            if own.random and own.begin is None and stream is None:
                raise ValueError(f"rule: {own.name} draws at every update; give key=jax.random.key(...)")
            w = params[layer.name]["weights"][source]
            x = jnp.zeros((1, *network.shapes[source]), w.dtype)
            errors = jnp.zeros((1, *network.net_shapes[network.output.name]), w.dtype)
            learned = params[layer.name].get("feedback", {}).get(source)
            own_stream = None if stream is None else draws.inside(stream, layer.name, source)
            edge = Edge(layer, source, by, w, x, errors, learned, own_stream)
            shown.setdefault(layer.name, {})[source] = matrix(edge)
    if not shown:
        raise ValueError(f"rule: {written(rule)} has no feedback weights")
    return shown


def _seed(owner: str, value: Any) -> Any:
    return value if not checks.is_concrete(value) else checks.integer(owner, "seed", as_int(value), 0)


def glorot(fan_in: int, fan_out: int) -> float:
    """Returns the deviation of Glorot and Bengio's weights (2010), which keeps the size of what passes through."""
    return math.sqrt(2 / (fan_in + fan_out))


def drawn(stream: Stream, shape: Shape, deviation: float, dtype) -> Array:
    """Returns random weights: uniform, as Lillicrap and Nokland drew them."""
    return draws.uniform(stream, shape, dtype) * np.asarray(math.sqrt(3) * deviation, dtype)


@register
def feedback_alignment(seed: int = 0, scale: float = 1.0) -> Rule:
    """Returns the rule g = s B instead of s W, with B random and fixed.

    B is uniform with mean 0 and the deviation of Glorot's weights, times `scale`. It is drawn again at every update
    from the seed and the names of layer and source alone, so that nothing is stored. At every position of a signal, and
    in a convolution, B is used where W is.

    Args:
        seed: Integer >= 0.
        scale: Number > 0.

    Returns:
        The rule.

    Raises:
        ValueError: For a seed < 0 and a scale <= 0.

    References:
        Lillicrap, Cownden, Tweed and Akerman 2016 (Nat. Commun. 7, 13276), Eq. 3.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> value, gradient = fnn.value_and_grad(network, "cross_entropy", rule="feedback_alignment(0)")(params, x, t)
        >>> gradient["layer1"]["bias"].shape
        (4,)
    """
    seed = _seed("feedback_alignment", seed)
    scale = checks.constant("feedback_alignment", "scale", scale, *checks.POSITIVE)

    def weights(edge: Edge) -> Array:
        w = edge.weights
        stream = draws.inside(draws.of_seed(seed), *edge.name)
        return _scaled(drawn(stream, w.shape, glorot(*edge.connection.fans(w.shape)), w.dtype), scale)

    return Rule(_name("feedback_alignment", seed, scale), weights=weights)


def _name(name: str, seed: Any, scale: Any) -> str:
    return f"{name}({number(seed)}{'' if isinstance(scale, float) and scale == 1 else f', {number(scale)}'})"


def _scaled(x: Array, scale: Any) -> Array:
    return x if isinstance(scale, float) and scale == 1 else x * jnp.asarray(scale, x.dtype)


def places_of(network: Network, source: str, owner: str) -> Literal["whole", "each"]:
    """Returns how errors of the outputs are matched to a layer's signal `(*P, R)`.

    "whole" takes the whole signal, where the outputs have no positions; "each" takes each position by itself, where
    both have the same ones. Raises ValueError where they differ.
    """
    of, out = network.shapes[source], network.net_shapes[network.output.name]
    if len(out) == 1:
        return "whole"
    if of[:-1] == out[:-1]:
        return "each"
    raise ValueError(
        f"rule: {owner} brings the output's error to {source!r}, but the output has positions {out[:-1]} and "
        f"{source!r} has {of[:-1]}, so errors cannot be matched to positions"
    )


@register
def direct_feedback(seed: int = 0, scale: float = 1.0) -> Rule:
    """Returns the rule g = s^M B: every layer that is read through weights gets the output's sensitivity directly.

    Each has its own matrix B (S^M, R), random and fixed as in `feedback_alignment`; nothing goes from layer to layer.
    If the outputs have no positions, every position of a signal has its own part of B; if they have the same positions,
    all use the same B.

    Args:
        seed: Integer >= 0.
        scale: Number > 0.

    Returns:
        The rule.

    Raises:
        ValueError: For a seed < 0, a scale <= 0, and a signal with other positions than the outputs'.

    References:
        Nokland 2016 (arXiv 1609.01596), Eq. 7.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> value, gradient = fnn.value_and_grad(network, "cross_entropy", rule="direct_feedback(0)")(params, x, t)
        >>> gradient["layer1"]["bias"].shape
        (4,)
    """
    seed = _seed("direct_feedback", seed)
    scale = checks.constant("direct_feedback", "scale", scale, *checks.POSITIVE)

    def matrix(edge: Edge) -> Array:
        shape, stream = edge.direct_shape, draws.inside(draws.of_seed(seed), *edge.name)
        return _scaled(drawn(stream, shape, glorot(*shape), edge.signal.dtype), scale)

    def check(network: Network, layer: Layer) -> None:
        for source, _ in layer.weighted:
            if source not in network.tokens and source in {own.name for own in network.layers}:
                places_of(network, source, "direct_feedback")

    return Rule(_name("direct_feedback", seed, scale), direct=matrix, check=check)


@register
def sign_symmetric(magnitude: Literal["uniform", "random", "fixed"] = "uniform", seed: int = 0) -> Rule:
    """Returns the rule g = s B, where B has the signs of W.

    Args:
        magnitude: Sizes of B. "uniform": all equal to the deviation of Glorot's weights (uSF). "random": drawn again
            for every batch (brSF). "fixed": drawn once (frSF), uniform between 0 and twice their mean.
        seed: Integer >= 0, for "fixed".

    Returns:
        The rule.

    Raises:
        ValueError: For another magnitude, and a seed < 0.

    References:
        Liao, Leibo and Poggio 2016 (arXiv 1510.05067), Sec. 3; the three are named as by Moskovitz et al. 2018.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> value, gradient = fnn.value_and_grad(network, "cross_entropy", rule="sign_symmetric")(params, x, t)
        >>> gradient["layer1"]["bias"].shape
        (4,)
    """
    checks.one_of("sign_symmetric", "magnitude", magnitude, ("uniform", "random", "fixed"))
    seed = _seed("sign_symmetric", seed)

    def weights(edge: Edge) -> Array:
        w = edge.weights
        deviation = glorot(*edge.connection.fans(w.shape))
        if magnitude == "uniform":
            return jnp.sign(w) * np.asarray(deviation, w.dtype)
        stream = edge.stream if magnitude == "random" else draws.inside(draws.of_seed(seed), *edge.name)
        return jnp.sign(w) * jnp.abs(drawn(stream, w.shape, deviation, w.dtype))

    arguments = magnitude if magnitude != "fixed" else f"fixed, {number(seed)}"
    return Rule(f"sign_symmetric({arguments})", weights=weights, random=magnitude == "random")


def _begin_like_weights(network: Network, layer: Layer, stream: Stream, dtype) -> dict[str, Array]:
    """Returns B for each connection that something is sent back by, drawn as `feedback_alignment` draws."""
    own = {layer.name for layer in network.layers}
    learned = {}
    for source, by in layer.weighted:
        if source in own:
            shape = by.shapes(network.shapes[source], layer.rows)[1]
            learned[source] = drawn(draws.inside(stream, source), shape, glorot(*by.fans(shape)), dtype)
    return learned


@register
def kolen_pollack(decay: float = 1e-3) -> Rule:
    """Returns the rule g = s B, where B is learned: W and B move by the same dF/dW, and both decay.

    The gradients are dW + decay W and dW + decay B. Under `gd` with rate eta, every update multiplies W - B by
    1 - eta decay, whatever the data. Methods that rescale the gradient shrink it too, at another pace.

    Args:
        decay: Number >= 0.

    Returns:
        The rule. It learns B, which `begin` adds to the parameters.

    Raises:
        ValueError: For a decay < 0.

    References:
        Kolen and Pollack 1994; Akrout et al. 2019 (arXiv 1904.05391), Eq. 16 and 17.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> params = fnn.rules.begin("kolen_pollack", network, params, jax.random.key(1))
        >>> value, gradient = fnn.value_and_grad(network, "cross_entropy", rule="kolen_pollack")(params, x, t)
        >>> gradient["layer2"]["feedback"]["layer1"].shape
        (2, 4)
    """
    decay = checks.constant("kolen_pollack", "decay", decay, *checks.NON_NEGATIVE)

    def learn(place: Place, gradients: dict) -> dict:
        own, moved = place.params.get("feedback", {}), gradients["weights"]

        def decayed(x):
            return x * jnp.asarray(decay, x.dtype)

        learned = {source: moved[source] + decayed(b) for source, b in own.items()}
        kept = {source: moved[source] + decayed(place.params["weights"][source]) for source in own}
        return gradients | {"weights": moved | kept} | ({"feedback": learned} if own else {})

    return Rule(
        f"kolen_pollack({number(decay)})", weights=lambda edge: edge.feedback, begin=_begin_like_weights, learn=learn
    )


@register
def weight_mirror(rate: float = 1.0, samples: int = 16) -> Rule:
    """Returns the rule g = s B, where B is learned from noise.

    White noise x, `samples` examples of it, enters each connection. The correlation of x with what comes out, z = x *
    W, estimates W weight by weight. The gradient of B is rate (B - that estimate).

    Args:
        rate: Number > 0.
        samples: Integer >= 1.

    Returns:
        The rule. It learns B, which `begin` adds to the parameters, and it draws at every update.

    Raises:
        ValueError: For a rate <= 0 and samples < 1.

    References:
        Akrout et al. 2019 (arXiv 1904.05391), Eq. 7 and 8, with the decay for which B converges to W itself, and
        without the activation between.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> params = fnn.rules.begin("weight_mirror", network, params, jax.random.key(1))
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="weight_mirror")
        >>> value, gradient = step(params, x, t, None, jax.random.key(2))
        >>> gradient["layer2"]["feedback"]["layer1"].shape
        (2, 4)
    """
    rate = checks.constant("weight_mirror", "rate", rate, *checks.POSITIVE)
    samples = checks.integer("weight_mirror", "samples", samples, 1)

    def learn(place: Place, gradients: dict) -> dict:
        learned = {}
        for source, by in place.layer.weighted:
            if source not in place.params.get("feedback", {}):
                continue
            w, b = place.params["weights"][source], place.params["feedback"][source]
            shape = (samples, *place.trace.activations[source].shape[1:])
            x = draws.signs(draws.inside(place.stream, source), shape, w.dtype)
            z = by.forward(x, w)
            uses = by.outer(jnp.ones_like(z), jnp.ones_like(x))  # how many products each weight is in
            learned[source] = jnp.asarray(rate, w.dtype) * (b - by.outer(z, x) / uses)
        return gradients | ({"feedback": learned} if learned else {})

    return Rule(
        f"weight_mirror({number(rate)}, {samples})",
        weights=lambda edge: edge.feedback,
        begin=_begin_like_weights,
        learn=learn,
        random=True,
    )
