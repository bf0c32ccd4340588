"""Rules by name and by layer, and the parameters that rules learn."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax import Array

from functional_nn import checks, registry, rows
from functional_nn.gradients import draws
from functional_nn.gradients.rules.rule import Rule
from functional_nn.networks.network import Network, Params
from functional_nn.registry import Registry
from functional_nn.rows import FrozenMapping

_registry: Registry[Rule] = Registry("rule", Rule)


def names() -> tuple[str, ...]:
    """Returns the names of all rules, those of `fnn.methods` included.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.rules.names()[:2]
        ('exact', 'feedback_alignment')
    """
    return _registry.names()


def factory(name: str) -> Callable[..., Rule]:
    """Returns the function behind a rule's bare name. Raises ValueError for an unknown name."""
    return _registry.factory(name)


def knows(specification: str | Rule) -> bool:
    """Returns whether this is a rule, or begins with a registered name."""
    return _registry.knows(specification)


_OTHERS = "others"


ByLayer = FrozenMapping  # {layer: Rule}, with "others"


Given = str | Rule | Mapping[str, str | Rule]
Registered = TypeVar("Registered", bound=Rule | Callable[..., Rule])


def register(rule: Registered) -> Registered:
    """Makes a rule, or a function that returns one, known by its name. Also a decorator.

    The same constants give the same rule, so that what was compiled for it is used again.

    Args:
        rule: A `Rule`, or a function of constants that returns one.

    Returns:
        The rule, or the function with its results cached.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> import functional_nn as fnn
        >>> from functional_nn import registry
        >>> with registry.temporarily():  # so that this example leaves no name behind
        ...     @fnn.rules.register
        ...     def tripled(factor=3.0):
        ...         return fnn.Rule(f"tripled({factor})", carry=lambda edge, s: factor * edge.back(s))
        ...     fnn.rules.get("tripled(2)") is tripled(2)
        True
    """
    if isinstance(rule, Rule):
        rows.remember(rule, _named, (rule.name,))
        _registry.add(rule.name, lambda: rule)
        return cast(Registered, rule)
    return cast(Registered, _registry.register(rule))


def _named(name: str) -> Rule:
    return _registry.get(name)


#: The exact gradient, what `jax.grad` computes.
exact = register(Rule("exact", pads=True))


def get(rule: Given) -> Rule | ByLayer:
    """Returns the rule, or the rules by layer, that a specification names.

    Args:
        rule: A name with constants ("rounded(8)"), a `Rule`, a mapping {layer: rule} ({"layer1": "noisy(0.1)"}), or
            that mapping as a string, as on the command line.

    Returns:
        A `Rule`, or a frozen mapping {layer: Rule}.

    Raises:
        ValueError: For an unknown name, constants that the rule refuses, an empty mapping, and a rule for one layer
            that makes the whole gradient.
        TypeError: For anything else.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.rules.get("rounded(8)") is fnn.rules.rounded(8)
        True
        >>> fnn.rules.get("{layer1: noisy(0.1)}")["layer1"]
        <rule noisy(0.1)>
    """
    if isinstance(rule, str) and rule.strip().startswith("{"):
        rule = registry.mapping(rule.strip())
    if not isinstance(rule, Mapping):
        return _registry.get(rule)
    if not rule or not all(isinstance(name, str) for name in rule):
        raise ValueError(f'rule: expected one rule, or rules by layer such as {{"layer1": "noisy(0.1)"}}, got {rule!r}')
    by_layer = {name: _registry.get(own) for name, own in rule.items()}
    for own in by_layer.values():
        if own.method is not None:
            raise ValueError(f"rule: {own.name} makes the gradient of all layers at once; it cannot be one layer's")
    return ByLayer(by_layer)


def written(rule: Rule | ByLayer) -> str:
    """Returns the specification of a rule, or of rules by layer."""
    if isinstance(rule, Rule):
        return rule.name
    return f"{{{', '.join(f'{name}: {own.name}' for name, own in rule.items())}}}"


def _remembered(function: Callable) -> Callable:
    """Caches the function's results by rule and network, unless the rule holds numbers that are being traced."""
    kept = functools.lru_cache(maxsize=256)(function)

    @functools.wraps(function)
    def same(rule, network):
        sources = [rows.made_by(own) for own in rules_in(rule)]
        concrete = all(map(checks.is_concrete, jax.tree.leaves([source[1:] for source in sources if source])))
        return (kept if concrete else function)(rule, network)

    return same


@_remembered
def of_layers(rule: Rule | ByLayer, network: Network) -> Mapping[str, Rule] | None:
    """Returns {layer: its rule}, or None if all are exact.

    Raises ValueError for a layer that does not exist, and for one that its rule does not support.
    """
    layers = [layer.name for layer in network.layers]
    if isinstance(rule, Rule):
        by_layer = dict.fromkeys(layers, rule)
    else:
        for name in rule:
            if name not in layers and name != _OTHERS:
                raise ValueError("rule: " + registry.unknown("layer", name, [*layers, _OTHERS]))
        by_layer = {name: rule.get(name, rule.get(_OTHERS, exact)) for name in layers}
    for layer in network.layers:
        own = by_layer[layer.name]
        if own.check is not None:
            own.check(network, layer)
    return None if set(by_layer.values()) == {exact} else by_layer


def rules_in(rule: Rule | ByLayer) -> tuple[Rule, ...]:
    """Returns all rules in it."""
    return (rule,) if isinstance(rule, Rule) else tuple(rule.values())


def is_exact(rule: Rule | ByLayer) -> bool:
    """Returns whether it is the exact gradient, however written."""
    return set(rules_in(rule)) == {exact}


def method_of(rule: Rule | ByLayer) -> Callable | None:
    """Returns the method that makes the whole gradient; None for a rule with a way back."""
    return rule.method if isinstance(rule, Rule) else None


def is_random(rule: Rule | ByLayer) -> bool:
    """Returns whether it draws at every update."""
    return any(own.random for own in rules_in(rule))


def learns(rule: Rule | ByLayer) -> bool:
    """Returns whether it learns something in addition to the network's parameters."""
    return any(own.begin is not None for own in rules_in(rule))


@_remembered
def rewritten(rule: Rule | ByLayer, network: Network) -> Network:
    """Returns the network as the way back sees it, with the same outputs; itself for most rules."""
    by_layer = of_layers(rule, network)
    if by_layer is None or not any(own.rewrite for own in by_layer.values()):
        return network
    layers = (
        by_layer[layer.name].rewrite(layer) if by_layer[layer.name].rewrite else layer for layer in network.layers
    )
    return Network(network.inputs, tuple(layers))


def begin(rule: Given, network: Network, params: Params, key: Array) -> Params:
    """Adds the initial value of what a rule learns to the parameters, as params[layer]["feedback"].

    `fit` does this by itself; call it in a training loop of your own.

    Args:
        rule: The rule.
        network: The network.
        params: Its parameters. Feedback that is there already is kept.
        key: Random key for the initial value; each layer draws separately.

    Returns:
        The extended parameters; `params` itself for a rule that learns nothing.

    Raises:
        ValueError: As `get`, and for a network that the rule does not support.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params = fnn.rules.begin("kolen_pollack", network, network.init(jax.random.key(0)), jax.random.key(1))
        >>> params["layer2"]["feedback"]["layer1"].shape
        (2, 4)
    """
    rule = get(rule)
    if not learns(rule):
        return params
    by_layer, stream, extended = of_layers(rule, network), draws.of_key(key), dict(params)
    for layer in network.layers:
        own, row = params[layer.name], by_layer[layer.name]
        if row.begin is not None and "feedback" not in own:
            dtype = jax.tree.leaves(params)[0].dtype
            learned = row.begin(network, layer, draws.inside(stream, layer.name), dtype)
            if learned:
                extended[layer.name] = own | {"feedback": learned}
    return extended


def check_initialized(rule: Rule | ByLayer, network: Network, params: Params) -> None:
    """Raises ValueError if what the rule learns is missing among the parameters, or has another shape."""
    if not learns(rule):
        return
    extended = jax.eval_shape(lambda params: begin(rule, network, without_feedback(params), jax.random.key(0)), params)
    for layer in network.layers:
        expected = checks.shapes(extended[layer.name].get("feedback", {}))
        given = checks.shapes(params[layer.name].get("feedback", {}))
        if given != expected:
            # `begin` keeps existing feedback, so another rule's has to be removed first
            own = "rules.without_feedback(params)" if given else "params"
            raise ValueError(
                f"params: the rule {written(rule)} learns {layer.name}/feedback, expected shapes {expected}, "
                f"got {given}; rules.begin(rule, network, {own}, key) adds it"
            )


def without_feedback(params: Params) -> Params:
    """Returns the network's own parameters, without what a rule has learned.

    Args:
        params: Parameters, with or without feedback.

    Returns:
        {layer: parameters}.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params = fnn.rules.begin("kolen_pollack", network, network.init(jax.random.key(0)), jax.random.key(1))
        >>> sorted(fnn.rules.without_feedback(params)["layer2"])
        ['bias', 'weights']
    """
    return {layer: {name: x for name, x in own.items() if name != "feedback"} for layer, own in params.items()}


def number(value: Any) -> str:
    """Returns a rule's constant as it is written in its name, with all its digits; "..." while it is traced."""
    if not isinstance(value, int | float):
        return "..."
    short = f"{value:g}"
    return short if isinstance(value, float) and float(short) == value else repr(value)


def as_int(value: Any) -> Any:
    # a population member's number is an array of shape ()
    whole = isinstance(value, np.ndarray | jax.Array) and value.shape == () and value.dtype.kind in "iu"
    return int(value) if whole and checks.is_concrete(value) else value
