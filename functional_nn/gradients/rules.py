"""Learning rules: what crosses a connection on the way back, as a parameter of the recursion.

Letters: Q examples, S neurons of a layer, R of what it reads, s = dF/dn and g = dF/da as in `backprop`, W the weights
of a connection, B what stands in their place on the way back, M the output layer. The rows, and who described them:

    exact               g = s W                                         what `jax.grad` gives
    feedback_alignment  g = s B, B random and fixed                     Lillicrap et al. 2016 (Nat. Commun. 7, 13276)
    direct_feedback     g = s^M B, B random and fixed                   Nokland 2016 (arXiv 1609.01596), Eq. 7
    sign_symmetric      g = s B, B of the signs of W                    Liao, Leibo and Poggio 2016 (1510.05067), Sec. 3
    kolen_pollack       g = s B, B learned: dB = dW, and both decay     Akrout et al. 2019 (1904.05391), Eq. 16 and 17
    weight_mirror       g = s B, B learned of noise that W lets through the same, Eq. 7 and 8
    noisy               s and noise
    rounded             s in few bits                                   Gupta et al. 2015 (1502.02551)
    dropped_back        some of s
    clipped_back        s_q no longer than a bound, in every layer
    surrogate           s = g f~'(n), f~' where f has no derivative     Zenke and Ganguli 2018 (1705.11146), Eq. 5

A connection without weights (a residual, pooling) is crossed exactly by all of them. Rules that need no way back, or
have one of their own, stand in `gradients.methods` and in the same list. Under {layer: rule} a rule is that of what is
sent back *by* the layer named, and of its own s; "others" names the rest, which is exact where nothing is said.

A rule of one's own is a line; `register` a function that makes it, and it is known by its name:

>>> import functional_nn as fnn
>>> damped = fnn.Rule("damped", carry=lambda edge, s: 0.9 * edge.back(s))
>>> network = fnn.multilayer((4, 3, 2), ("tanh", "softmax"))
>>> gradient = fnn.value_and_grad(network, "cross_entropy", rule={"layer2": damped})
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, precision, reductions, registry
from functional_nn.gradients import draws, factors
from functional_nn.gradients.draws import Stream
from functional_nn.networks.connections import Connection, Shape
from functional_nn.networks.network import Layer, Network, Params, Trace
from functional_nn.registry import Described, FrozenMapping, Registry


class Place(NamedTuple):
    """A layer on the way back, as a rule sees it: its sensitivity is known.

    share(): what each example's own F_q counts for in F, (Q,). stream: random numbers of this update and layer, None
    where no key was given.
    """

    layer: Layer
    params: dict[str, Any]
    trace: Trace
    share: Callable[[], Array]
    stream: Stream | None


class Edge(NamedTuple):
    """A connection with weights on the way back, as a rule sees it.

    weights: W; signal (Q, *P, R): what was read through it; errors (Q, *P, S^M): s^M, where the way back began;
    feedback: what the rule has learned for this connection, None where it learns nothing; stream as in `Place`.
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
        """What of s (Q, *P', S) reaches the source, (Q, *P, R), by W or by what is given in its place."""
        return self.connection.back(s, self.weights if weights is None else weights, self.signal)

    @property
    def name(self) -> tuple[str, str]:
        """What tells it from every other connection of the network."""
        return self.layer.name, self.source

    @property
    def direct_shape(self) -> Shape:
        """(S^M, R) of a matrix from the outputs: R numbers of the whole signal, or at each position where the outputs
        have positions, too.
        """
        signal = self.signal.shape
        return self.errors.shape[-1], math.prod(signal[1:]) if self.errors.ndim == 2 else signal[-1]


@dataclass(frozen=True)
class Rule(Described):
    """A learning rule. Whatever is not given is as in the exact gradient.

    weights(edge) -> B, as large as W, which stands in its place on the way back;
    direct(edge) -> B (S^M, R): g = s^M B, from the outputs, in the place of what s would bring;
    carry(edge, s) -> g (Q, *P, R): what of s reaches the source; where no matrix says it. One of these three at most;
    alter(place, s) -> s: of every layer, before its own gradient is made of it and before it goes further back;
    rewrite(layer) -> Layer: the layer as the way back is to take it, its outputs the same;
    begin(network, layer, stream, dtype) -> {name: array}: what is learned beside the layer's parameters, at the start;
    learn(place, gradients) -> gradients: of the layer, as they come out of the contraction, with those of what the rule
    learns under "feedback";
    check(network, layer): raises ValueError for a layer that the rule has no meaning for;
    method(asked) -> backprop.Backpropagation: the whole gradient, of a rule without a way back along the connections;
    check_targets(network, targets): raises ValueError for concrete targets that it cannot learn.

    random: it draws at every update, so that a key is needed. pads: of a network filled up with zeros it makes the
    same. has_derivatives: False where networks without derivative (hardlim) are what it trains.
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
    method: Callable | None = None
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
            raise ValueError(f"rule {self.name!r}: a method makes the whole gradient, so that {given[0]} has no place")

    def __repr__(self) -> str:
        return f"<rule {self.name}>"

    @property
    def crosses(self) -> bool:
        """Does something else cross connections than the exact gradient?"""
        return any(each is not None for each in (self.weights, self.direct, self.carry))

    def cross(self, edge: Edge, s: Array) -> Array:
        """What of s (Q, *P', S) reaches the source, (Q, *P, R). Raises ValueError for arrays of other shapes."""
        signal, errors = edge.signal, edge.errors
        if self.direct is not None:
            b = self.like("direct", self.direct(edge), edge.direct_shape, errors.dtype)
            return jnp.tensordot(errors, b, 1).reshape(signal.shape)
        if self.carry is not None:
            return self.like("carry", self.carry(edge, s), signal.shape, s.dtype)
        return edge.back(s, self.like("weights", self.weights(edge), edge.weights.shape, s.dtype))

    def like(self, part: str, found: Any, shape: Shape, dtype) -> Array:
        """What a part of the rule gave. Raises ValueError where it is of another shape, which might be broadcast, or of
        another dtype, which the gradient would take.
        """
        if np.shape(found) != shape:
            raise ValueError(f"rule {self.name!r}: {part} is to give shape {shape}, got {np.shape(found)}")
        if found.dtype != dtype:
            raise ValueError(f"rule {self.name!r}: {part} is to give {dtype}, got {found.dtype}")
        return found


_registry: Registry[Rule] = Registry("rule", Rule)
names, factory, knows = _registry.names, _registry.factory, _registry.knows
_OTHERS = "others"

ByLayer = FrozenMapping  # {layer: Rule}, with "others"
Given = str | Rule | Mapping[str, str | Rule]


def register(rule: Rule | Callable[..., Rule]):
    """Makes a rule, or a function that makes one of constants, known by its name; gives it back. Also a decorator.

    The same constants give the same rule, so that what was compiled for it serves again. Raises ValueError where the
    name is taken.
    """
    if isinstance(rule, Rule):
        registry.remember(rule, _named, (rule.name,))
        _registry.add(rule.name, lambda: rule)
        return rule
    return _registry.register(rule)


def _named(name: str) -> Rule:
    return _registry.get(name)


def get(rule: Given) -> Rule | ByLayer:
    """The rule, or {layer: rule}, that is meant: "rounded(8)", `rules.rounded(8)`, {"layer1": "noisy(0.1)"}, or that
    written in a word, as on the command line. Raises ValueError and TypeError as `Registry.get`.
    """
    if isinstance(rule, str) and rule.strip().startswith("{"):
        rule = registry.mapping(rule.strip())
    if not isinstance(rule, Mapping):
        return _registry.get(rule)
    if not rule or not all(isinstance(name, str) for name in rule):
        raise ValueError(f'rule: expected one rule, or rules by layer such as {{"layer1": "noisy(0.1)"}}, got {rule!r}')
    found = {name: _registry.get(own) for name, own in rule.items()}
    for own in found.values():
        if own.method is not None:
            raise ValueError(f"rule: {own.name} makes the gradient of all layers at once; it cannot be one layer's")
    return ByLayer(found)


def said(rule: Rule | ByLayer) -> str:
    """As it is written."""
    if isinstance(rule, Rule):
        return rule.name
    return f"{{{', '.join(f'{name}: {own.name}' for name, own in rule.items())}}}"


def _remembered(function: Callable) -> Callable:
    """The function, its results kept by rule and network, unless the rule is made of numbers that are being traced."""
    kept = functools.lru_cache(maxsize=256)(function)

    @functools.wraps(function)
    def same(rule, network):
        given = [registry.made_by(own) for own in every(rule)]
        concrete = all(map(checks.is_concrete, jax.tree.leaves([made[1:] for made in given if made])))
        return (kept if concrete else function)(rule, network)

    return same


@_remembered
def of_layers(rule: Rule | ByLayer, network: Network) -> Mapping[str, Rule] | None:
    """{layer: its rule}; None where all are exact. Raises ValueError for a layer that does not exist, and for one that
    its rule has no meaning for.
    """
    layers = [layer.name for layer in network.layers]
    if isinstance(rule, Rule):
        found = dict.fromkeys(layers, rule)
    else:
        for name in rule:
            if name not in layers and name != _OTHERS:
                raise ValueError("rule: " + registry.unknown("layer", name, [*layers, _OTHERS]))
        found = {name: rule.get(name, rule.get(_OTHERS, exact)) for name in layers}
    for layer in network.layers:
        own = found[layer.name]
        if own.check is not None:
            own.check(network, layer)
    return None if set(found.values()) == {exact} else found


def every(rule: Rule | ByLayer) -> tuple[Rule, ...]:
    """All rules in it."""
    return (rule,) if isinstance(rule, Rule) else tuple(rule.values())


def is_exact(rule: Rule | ByLayer) -> bool:
    """Is it the exact gradient, in whatever words?"""
    return set(every(rule)) == {exact}


def method_of(rule: Rule | ByLayer) -> Callable | None:
    """What makes the whole gradient, of a rule without a way back."""
    return rule.method if isinstance(rule, Rule) else None


def is_random(rule: Rule | ByLayer) -> bool:
    """Does it draw at every update?"""
    return any(own.random for own in every(rule))


def learns(rule: Rule | ByLayer) -> bool:
    """Does it learn something beside the network's parameters?"""
    return any(own.begin is not None for own in every(rule))


@_remembered
def rewritten(rule: Rule | ByLayer, network: Network) -> Network:
    """The network as the way back is to take it, with the same outputs; itself for most rules."""
    found = of_layers(rule, network)
    if found is None or not any(own.rewrite for own in found.values()):
        return network
    layers = (found[own.name].rewrite(own) if found[own.name].rewrite else own for own in network.layers)
    return Network(network.inputs, tuple(layers))


def begin(rule: Given, network: Network, params: Params, key: Array) -> Params:
    """The parameters with what the rule learns beside them, params[layer]["feedback"], at its start; what is there
    already stays. The parameters themselves for a rule that learns nothing. key: draws it, apart for every layer.
    """
    rule = get(rule)
    if not learns(rule):
        return params
    found, stream, after = of_layers(rule, network), draws.of_key(key), dict(params)
    for layer in network.layers:
        own, row = params[layer.name], found[layer.name]
        if row.begin is not None and "feedback" not in own:
            dtype = jax.tree.leaves(params)[0].dtype
            learned = row.begin(network, layer, draws.inside(stream, layer.name), dtype)
            if learned:
                after[layer.name] = own | {"feedback": learned}
    return after


def check_begun(rule: Rule | ByLayer, network: Network, params: Params) -> None:
    """Raises ValueError where what the rule learns is missing among the parameters, or of another shape."""
    if not learns(rule):
        return
    whole = jax.eval_shape(lambda params: begin(rule, network, without_feedback(params), jax.random.key(0)), params)
    for layer in network.layers:
        expected = checks.shapes(whole[layer.name].get("feedback", {}))
        given = checks.shapes(params[layer.name].get("feedback", {}))
        if given != expected:
            # what is there stays, so that another rule's has to go first
            own = "rules.without_feedback(params)" if given else "params"
            raise ValueError(
                f"params: the rule {said(rule)} learns {layer.name}/feedback, expected shapes {expected}, got {given}; "
                f"rules.begin(rule, network, {own}, key) puts it there"
            )


def without_feedback(params: Params) -> Params:
    """The network's own parameters alone."""
    return {layer: {name: x for name, x in own.items() if name != "feedback"} for layer, own in params.items()}


def feedback_weights(
    network: Network, rule: Given, params: Params, key: Array | None = None
) -> dict[str, dict[str, Array]]:
    """{layer: {source: B}}: what stands in the place of W on the way back, of connections that something is sent back
    by; of direct feedback (S^M, R), from the outputs. key: that of the update, of a rule that draws B anew at each.
    Raises ValueError for a rule that puts nothing there, for one that draws without key, and where what it learns is
    missing among the parameters.

    >>> import jax, functional_nn as fnn
    >>> network = fnn.multilayer((4, 3, 2), ("tanh", "softmax"))
    >>> params = network.init(jax.random.key(0))
    >>> fnn.rules.feedback_weights(network, "feedback_alignment(0)", params)["layer2"]["layer1"].shape
    (2, 3)
    """
    rule = get(rule)
    found, shown = of_layers(rule, network) or {}, {}
    check_begun(rule, network, params)
    stream = None if key is None else draws.of_key(key)
    for layer in network.layers:
        for source, by in layer.weighted:
            own = found.get(layer.name, exact)
            matrix = own.weights or own.direct
            if source not in params or matrix is None:
                continue
            if own.random and own.begin is None and stream is None:
                raise ValueError(f"rule: {own.name} draws at every update; give key=jax.random.key(...)")
            w = params[layer.name]["weights"][source]
            x = jnp.zeros((1, *network.shapes[source]), w.dtype)
            errors = jnp.zeros((1, *network.net_shapes[network.output.name]), w.dtype)
            learned = params[layer.name].get("feedback", {}).get(source)
            drawn = None if stream is None else draws.inside(stream, layer.name, source)
            edge = Edge(layer, source, by, w, x, errors, learned, drawn)
            shown.setdefault(layer.name, {})[source] = matrix(edge)
    if not shown:
        raise ValueError(f"rule: {said(rule)} puts nothing in the place of the weights")
    return shown


# The rows -------------------------------------------------------------------------------------------------------------

exact = register(Rule("exact", pads=True))


def _seed(owner: str, value: Any) -> Any:
    return value if not checks.is_concrete(value) else checks.integer(owner, "seed", _as_int(value), 0)


def _as_int(value: Any) -> Any:
    # a member's number comes as an array of one
    whole = isinstance(value, np.ndarray | jax.Array) and value.shape == () and value.dtype.kind in "iu"
    return int(value) if whole and checks.is_concrete(value) else value


def number(value: Any) -> str:
    """A rule's constant as it is written in its name, with all its digits; "..." where it is traced."""
    if not isinstance(value, int | float):
        return "..."
    short = f"{value:g}"
    return short if isinstance(value, float) and float(short) == value else repr(value)


def glorot(fan_in: int, fan_out: int) -> float:
    """The deviation of weights as Glorot and Bengio 2010 draw them: what goes through has about the same size."""
    return math.sqrt(2 / (fan_in + fan_out))


def drawn(stream: Stream, shape: Shape, deviation: float, dtype) -> Array:
    """Random weights: uniform, as Lillicrap and Nokland drew them."""
    return draws.uniform(stream, shape, dtype) * np.asarray(math.sqrt(3) * deviation, dtype)


@register
def feedback_alignment(seed: int = 0, scale: float = 1.0) -> Rule:
    """g = s B in the place of s W: B uniform, of mean 0 and of the deviation that Glorot's weights have, times `scale`,
    and the same for ever. It is drawn anew at every update, from the seed and the names of layer and source alone, so
    that nothing is stored; at every position of a signal, and in a convolution, it stands where W stands.

    Lillicrap, Cownden, Tweed and Akerman 2016, Eq. 3. Raises ValueError for a seed < 0 and a scale <= 0.
    """
    seed = _seed("feedback_alignment", seed)
    scale = checks.constant("feedback_alignment", "scale", scale, *checks.POSITIVE)

    def weights(edge: Edge) -> Array:
        w = edge.weights
        stream = draws.inside(draws.of_seed(seed), *edge.name)
        return _scaled(drawn(stream, w.shape, glorot(*edge.connection.fans(w.shape)), w.dtype), scale)

    return Rule(_written("feedback_alignment", seed, scale), weights=weights)


def _written(name: str, seed: Any, scale: Any) -> str:
    return f"{name}({number(seed)}{'' if isinstance(scale, float) and scale == 1 else f', {number(scale)}'})"


def _scaled(x: Array, scale: Any) -> Array:
    return x if isinstance(scale, float) and scale == 1 else x * jnp.asarray(scale, x.dtype)


def places_of(network: Network, source: str, owner: str) -> Literal["whole", "each"]:
    """How outputs and a layer's signal (*P, R) are matched: the "whole" signal, where the outputs have no positions, or
    "each" position by itself, where both have the same. Raises ValueError where they have others.
    """
    of, out = network.shapes[source], network.net_shapes[network.output.name]
    if len(out) == 1:
        return "whole"
    if of[:-1] == out[:-1]:
        return "each"
    raise ValueError(
        f"rule: {owner} brings the output's error to {source!r}, but the output has positions {out[:-1]} and "
        f"{source!r} has {of[:-1]}, so that there is no telling which error belongs where"
    )


@register
def direct_feedback(seed: int = 0, scale: float = 1.0) -> Rule:
    """g = s^M B: each layer that is read through weights gets the output's sensitivity, by a matrix (S^M, R) of its
    own, random and fixed as in `feedback_alignment`; nothing goes from layer to layer. Of a signal every position has
    its own part of B where the outputs have no positions, and the same B where they have the same ones.

    Nokland 2016, Eq. 7. Raises ValueError for a seed < 0, a scale <= 0, and a signal with other positions than the
    outputs': it has no meaning there.
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

    return Rule(_written("direct_feedback", seed, scale), direct=matrix, check=check)


@register
def sign_symmetric(magnitude: Literal["uniform", "random", "fixed"] = "uniform", seed: int = 0) -> Rule:
    """g = s B, B of the signs that W has. magnitude: "uniform", all of the deviation of Glorot's weights (uSF);
    "random", drawn anew for every batch (brSF); "fixed", drawn once (frSF): uniform between 0 and twice their mean.

    Liao, Leibo and Poggio 2016, Sec. 3; the three as Moskovitz et al. 2018 name them. Raises ValueError for other
    words.
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

    told = magnitude if magnitude != "fixed" else f"fixed, {number(seed)}"
    return Rule(f"sign_symmetric({told})", weights=weights, random=magnitude == "random")


def _begin_like_weights(network: Network, layer: Layer, stream: Stream, dtype) -> dict[str, Array]:
    """B for each connection that something is sent back by, drawn as `feedback_alignment` draws."""
    own = {layer.name for layer in network.layers}
    found = {}
    for source, by in layer.weighted:
        if source in own:
            shape = by.shapes(network.shapes[source], layer.rows)[1]
            found[source] = drawn(draws.inside(stream, source), shape, glorot(*by.fans(shape)), dtype)
    return found


@register
def kolen_pollack(decay: float = 1e-3) -> Rule:
    """g = s B, B learned beside W: both are moved by the same, dF/dW, and both decay, so that they become one another.

    Their gradients are dW + decay W and dW + decay B. Under `gd` of rate eta the difference W - B is multiplied by
    1 - eta decay at every update, whatever the data; under methods that scale what they are given it shrinks likewise,
    at another pace. Kolen and Pollack 1994; Akrout et al. 2019, Eq. 16 and 17. Raises ValueError for a decay < 0.
    """
    decay = checks.constant("kolen_pollack", "decay", decay, *checks.NON_NEGATIVE)

    def learn(place: Place, found: dict) -> dict:
        own, moved = place.params.get("feedback", {}), found["weights"]

        def shrunk(x):
            return x * jnp.asarray(decay, x.dtype)

        learned = {source: moved[source] + shrunk(b) for source, b in own.items()}
        kept = {source: moved[source] + shrunk(place.params["weights"][source]) for source in own}
        return found | {"weights": moved | kept} | ({"feedback": learned} if own else {})

    return Rule(
        f"kolen_pollack({number(decay)})", weights=lambda edge: edge.feedback, begin=_begin_like_weights, learn=learn
    )


@register
def weight_mirror(rate: float = 1.0, samples: int = 16) -> Rule:
    """g = s B, B learned of noise: white noise x, `samples` examples of it, enters each connection, and what comes out,
    z = x * W, tells W by its correlation with x, weight by weight. The gradient of B is rate (B - that).

    Akrout et al. 2019, Eq. 7 and 8, with the decay that makes W itself what B is drawn to, and without the activation
    between. Raises ValueError for a rate <= 0 and samples < 1.
    """
    rate = checks.constant("weight_mirror", "rate", rate, *checks.POSITIVE)
    samples = checks.integer("weight_mirror", "samples", samples, 1)

    def learn(place: Place, found: dict) -> dict:
        learned = {}
        for source, by in place.layer.weighted:
            if source not in place.params.get("feedback", {}):
                continue
            w, b = place.params["weights"][source], place.params["feedback"][source]
            shape = (samples, *place.trace.activations[source].shape[1:])
            x = draws.signs(draws.inside(place.stream, source), shape, w.dtype)
            z = by.forward(x, w)
            met = by.outer(jnp.ones_like(z), jnp.ones_like(x))  # how many products each weight was in
            learned[source] = jnp.asarray(rate, w.dtype) * (b - by.outer(z, x) / met)
        return found | ({"feedback": learned} if learned else {})

    return Rule(
        f"weight_mirror({number(rate)}, {samples})",
        weights=lambda edge: edge.feedback,
        begin=_begin_like_weights,
        learn=learn,
        random=True,
    )


@register
def noisy(sigma: float) -> Rule:
    """s + sigma rms(s) noise: of a layer's sensitivities, in units of their root mean square over the batch, so that it
    means the same for every loss and batch; independent, and all but normal (`draws.nearly_normal`). Unbiased.

    Raises ValueError for sigma < 0.
    """
    sigma = checks.constant("noisy", "sigma", sigma, *checks.NON_NEGATIVE)

    def alter(place: Place, s: Array) -> Array:
        wide = precision.wide(s)  # the squares of 16-bit numbers may be 0
        size = jnp.sqrt(reductions.total(wide**2) / s.size) * jnp.asarray(sigma, wide.dtype)
        return (wide + size * draws.nearly_normal(place.stream, s.shape, wide.dtype)).astype(s.dtype)

    return Rule(f"noisy({number(sigma)})", alter=alter, random=True)


@register
def rounded(bits: int, stochastic: bool = True) -> Rule:
    """s in so many bits: 2^bits - 1 numbers, evenly from -m to m and 0 among them, m the layer's largest |s|; of one
    bit, the two m and -m. stochastic: to one of the two that are nearest, so that on average nothing is changed; else
    to the nearest, of one bit to the sign of s, times its mean size.

    Gupta et al. 2015 (arXiv 1502.02551); Wen et al. 2017 (1705.07878), of one and a half bits. Raises ValueError for
    bits < 1 and above 24.
    """
    stochastic = checks.boolean("rounded", "stochastic", stochastic)
    bits = _as_int(bits)
    if checks.is_concrete(bits):
        bits = checks.integer("rounded", "bits", bits, 1)
        if bits > 24:
            raise ValueError(f"rounded: bits must be at most 24, got {bits}")

    def alter(place: Place, s: Array) -> Array:
        wide = precision.wide(s)  # chances of 16 bits are not even
        between = draws.uniform(place.stream, s.shape, wide.dtype) if stochastic else None
        return round_to_bits(wide, bits, between).astype(s.dtype)

    name = f"rounded({bits if isinstance(bits, int) else '...'}{'' if stochastic else ', stochastic=false'})"
    # the mean size, which one bit takes, is over neurons that fill a layer up, too
    pads = not stochastic and isinstance(bits, int) and bits > 1
    return Rule(name, alter=alter, random=stochastic, pads=pads)


def round_to_bits(s: Array, bits: Any, between: Array | None) -> Array:
    """What `rounded` makes of s; between: uniform from -1 to 1, which decides, or None for the nearest."""
    largest = reductions.largest(jnp.abs(s))
    scale = jnp.where(largest > 0, largest, 1)

    def one_bit() -> Array:
        if between is None:
            return jnp.sign(s) * (reductions.total(jnp.abs(s)) / s.size)
        return jnp.where(s > between * scale, scale, -scale)

    def more(steps: Array) -> Array:  # on either side of 0
        at = s * (steps / scale)
        at = jnp.round(at) if between is None else jnp.floor(at + (between / 2 + 0.5))
        return at * (scale / steps)

    if isinstance(bits, int):
        found = one_bit() if bits == 1 else more(jnp.asarray(2 ** (bits - 1) - 1, s.dtype))
    else:
        steps = jnp.exp2(jnp.asarray(bits, s.dtype) - 1) - 1
        found = jnp.where(steps > 0, more(jnp.where(steps > 0, steps, 1)), one_bit())
    return jnp.where(largest > 0, found, 0)


@register
def dropped_back(rate: float) -> Rule:
    """Each number of s with probability `rate` 0, those left divided by 1 - rate: on average nothing is changed. Both
    the layer's own gradient and what goes further back see what is left.

    Raises ValueError for a rate outside [0, 1).
    """
    rate = checks.constant("dropped_back", "rate", rate, lambda r: (r >= 0) & (r < 1), "in [0, 1)")

    def alter(place: Place, s: Array) -> Array:
        wide = precision.wide(s)  # of 16 bits, 1 - rate and the chance to stay are not the same
        own = jnp.asarray(rate, wide.dtype)
        stays = draws.uniform(place.stream, s.shape, wide.dtype) >= 2 * own - 1
        return (wide * jnp.where(stays, 1 / (1 - own), 0)).astype(s.dtype)

    return Rule(f"dropped_back({number(rate)})", alter=alter, random=True)


@register
def clipped_back(norm: float) -> Rule:
    """Of each example, and in every layer, s no longer than `norm`: scaled down where dF_q/dn, the sensitivity of the
    example's own loss, is longer, so that the batch's size does not matter. What is scaled goes further back scaled.

    Raises ValueError for a norm <= 0.
    """
    norm = checks.constant("clipped_back", "norm", norm, *checks.POSITIVE)

    def alter(place: Place, s: Array) -> Array:
        length = jnp.sqrt(factors.row_squares(s))
        allowed = jnp.asarray(norm, length.dtype) * place.share().astype(length.dtype)
        scale = jnp.where(length > allowed, allowed / jnp.where(length > 0, length, 1), 1)
        return factors.over_rows(s, scale)

    return Rule(f"clipped_back({number(norm)})", alter=alter, pads=True)


@register
def surrogate(slope: float = 1.0) -> Rule:
    """s = g h / (1 + slope |n|)^2 in layers whose activation has no derivative, h the height of its step: 1 of hardlim,
    2 of hardlims. Layers that have one keep theirs. So networks of threshold neurons are trained.

    Zenke and Ganguli 2018, Eq. 5, where slope is beta. Raises ValueError for a slope <= 0.
    """
    slope = checks.constant("surrogate", "slope", slope, *checks.POSITIVE)

    def rewrite(layer: Layer) -> Layer:
        activation = layer.activation
        if activation.pullback is not None:
            return layer
        height = _height(activation)

        def pullback(g, n, a, kept, theta):
            return g * np.asarray(height, n.dtype) / (1 + jnp.asarray(slope, n.dtype) * jnp.abs(n)) ** 2, {}

        return dataclasses.replace(layer, activation=dataclasses.replace(activation, pullback=pullback))

    return Rule(f"surrogate({number(slope)})", rewrite=rewrite, pads=True)


def _height(activation: Any) -> float:
    with jax.ensure_compile_time_eval():  # also while a program is traced
        low, high = activation.forward(jnp.array([[-1.0, 1.0]], jnp.float32), {})[0][0]
        return float(high - low)
