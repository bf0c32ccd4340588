"""The members of a population: from a row of hyperparameters to a network, settings, data and initial parameters.

Numbers that an optimizer or a penalty is made of become traced arrays, so that any number of settings is one program.
What a program's shapes depend on (network, batch size, number of examples) and words divide the members into groups.

A narrow network is filled up with units whose weights, in and out, are 0. What reads such a unit has n + 0 a = n; back
comes g = 0^T s = 0, so that its own gradient is 0. Only dF/dw = s a of the weights that read it is not, where f(0) is
not 0: the mask takes it out, and the zeros stay.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import optimizers, precision, registry
from functional_nn.gradients import rules
from functional_nn.gradients.backprop import Along, value_and_grad
from functional_nn.networks import stored
from functional_nn.networks.activations import learned_at_start
from functional_nn.networks.connections import Connection, Shape
from functional_nn.networks.initializers import draws_by_place, in_corner
from functional_nn.networks.network import Layer, Network, Params, abstract_params
from functional_nn.networks.stored import Windows
from functional_nn.optimizers import first_order, regularizers, second_order
from functional_nn.optimizers.optimizer import Optimizer
from functional_nn.training import augmentation, keys
from functional_nn.training.data import prepare_data
from functional_nn.training.gradient import GRADIENTS, gradient_by_rule, rule_of
from functional_nn.training.minibatches import BatchPlan, batch, minibatch
from functional_nn.training.records import Batch
from functional_nn.training.settings import Common, Settings, check_settings, choose_plan

OWN = ("seed", "batch_size", "initial_scale", "examples", "subset", "label_noise", "rule")


@dataclass(frozen=True)
class Factory:
    """An optimizer or a penalty, made of those hyperparameters that it takes; or one that is made already."""

    make: Callable | None
    row: Any = None
    names: tuple[str, ...] = ()

    def __call__(self, values: Mapping[str, Any]) -> Any:
        return self.make(**{name: values[name] for name in self.names if name in values}) if self.make else self.row


@dataclass(frozen=True)
class Maker:
    """One member's settings: make(values) with `values` those of a lane, traced or not.

    common: what they are for all members. rule: where its constants are hyperparameters, what makes it of them. fixed:
    words and other hyperparameters that are compiled in.
    """

    common: Common
    candidates: tuple[Factory, ...]
    regularizer: Factory
    rule: Factory
    fixed: tuple[tuple[str, Any], ...]

    def __call__(self, values: Mapping[str, Any]) -> Settings:
        given = dict(self.fixed) | values["constants"]
        optimizer = _optimizer(self.candidates, given, values.get("choice"))
        common = self.common
        if not given.keys().isdisjoint(self.rule.names):
            plain = value_and_grad if isinstance(common.gradient, Along) else common.gradient
            common = dataclasses.replace(common, gradient=gradient_by_rule(plain, self.rule(given)))
        return common.settings(optimizer=optimizer, regularizer=self.regularizer(given), mask=values.get("mask"))


def _optimizer(candidates: Iterable[Factory], given: Mapping[str, Any], choice: Any) -> Optimizer:
    """The one that a member trains with, made of its hyperparameters; of several the one with that number."""
    made = [candidate(given) for candidate in candidates]
    return made[0] if len(made) == 1 else optimizers.choose(choice, made)


class Group(NamedTuple):
    """Members that one program trains.

    ids (N,): their numbers in the population; networks: each one's own; values: {"constants": {name: (N,)}, "choice":
    (N,), "mask": their padding}, the last two where needed; keys (N,): each one's own; data: what they train on, with
    a leading axis (N, ...) where `axes` says 0; scales (N,).
    """

    ids: np.ndarray
    networks: tuple[Network, ...]
    make: Maker
    values: dict[str, Any]
    keys: Array
    scales: np.ndarray
    data: "Data"
    held_out: Batch | None

    @property
    def network(self) -> Network:
        """The one that is compiled: as wide as the widest, where members are padded."""
        return self.make.common.network

    def initial(self, places: np.ndarray) -> Params:
        """The initial parameters of the members at these places of the group, (M, ...)."""
        keys, scales = self.keys[places], self.scales[places]
        if "mask" not in self.values:
            rule = rule_of(self.make.common.gradient)
            return _draw(self.network, rule if rules.learns(rule) else rules.exact)(keys, scales)
        own = [self.networks[place] for place in places]
        corners = corners_of(self.network, own) if draws_by_place(keys[0]) else None
        if corners is not None:
            masks = jax.tree.map(lambda x: x[places], self.values["mask"])
            return _draw_in_corners(self.network)(keys, scales, masks, corners)
        filled = jax.tree.map(lambda x: np.zeros((len(places), *x.shape), x.dtype), shapes(self.network))
        for network in dict.fromkeys(own):  # each is drawn for all, so that it compiles for one number of members
            at = np.flatnonzero([one == network for one in own])
            for column, x in zip(jax.tree.leaves(filled), jax.tree.leaves(_draw(network)(keys, scales)), strict=True):
                column[(at, *map(slice, x.shape[1:]))] = np.asarray(x)[at]
        return filled


class Data(NamedTuple):
    """What members train on: `examples` of the whole, whose weights are those of its examples, where they have any.

    rows: which, (n,) for all members or (N, n) of each; None for all of them. label_noise (N,), or None.
    """

    whole: Batch
    rows: np.ndarray | None
    label_noise: np.ndarray | None
    examples: int

    @property
    def axes(self) -> Batch:
        """0 for what each member has its own of, else None."""
        own = 0 if self.rows is not None and self.rows.ndim == 2 else None
        return Batch(own, own if self.label_noise is None else 0, None if self.whole.weights is None else own)

    def of(self, places: np.ndarray, keys: Array, signs: bool) -> Batch:
        """The data of the members at these places: their own (M, n, ...), or what all share (n, ...)."""
        inputs, targets, weights = self.whole[:3]
        if self.rows is not None:
            rows = self.rows if self.rows.ndim == 1 else self.rows[places]
            inputs, targets, weights = jax.tree.map(lambda x: x[rows], (inputs, targets, weights))
        if self.label_noise is not None:
            axis = 0 if self.rows is not None and self.rows.ndim == 2 else None
            disturb = jax.vmap(functools.partial(_disturbed, signs=signs), (0, axis, 0))
            noise = jnp.asarray(self.label_noise[places], targets.dtype)
            targets = jax.jit(disturb)(keys[places], targets, noise)
        return Batch(inputs, targets, weights)


# From hyperparameters to groups ---------------------------------------------------------------------------------------


def grouped(
    network: Network | Callable[..., Network],
    optimizer: Any,
    regularizer: Any,
    columns: dict[str, np.ndarray],
    data: tuple,
    validation: tuple | None,
    *,
    weights: tuple[Any, Any],
    epochs: int,
    key: Array,
    plan: BatchPlan | None,
    rule: Any,
    settings: dict[str, Any],
    static: Sequence[str],
    pad: bool,
) -> list[Group]:
    """The groups of a population with these hyperparameters, every one checked. weights: of examples, of classes.
    Raises as `fit_population`.
    """
    makers = _candidates(optimizer)
    penalty = _factory("regularizer", regularizers, regularizer)
    of_rule = _rules(rule, columns)
    of_network = () if isinstance(network, Network) else _parameters("network", network)
    own = (*OWN, *(("optimizer",) if len(makers) > 1 else ()))
    if len(makers) > 1 and "optimizer" not in columns:
        raise ValueError(
            f"hyperparameters: a race needs 'optimizer', words of which each is one of {', '.join(makers)}"
        )
    accepted = {"the population": own, "the network": of_network, "the regularizer": penalty.names}
    accepted["the optimizer"] = tuple(dict.fromkeys(name for maker in makers.values() for name in maker.names))
    accepted["the rule"] = tuple(dict.fromkeys(name for maker in of_rule.values() for name in maker.names))
    for name in columns:
        takers = [taker for taker, names in accepted.items() if name in names]
        if name == "seed":  # a member's is that of its rule, too
            takers = [taker for taker in takers if taker != "the rule"]
        if name == "optimizer" and not takers:
            raise ValueError(
                "hyperparameters: for 'optimizer' to differ, give optimizer={name: ..., name: ...}, a race"
            )
        if not takers:
            everything = [name for names in accepted.values() for name in names]
            raise ValueError("hyperparameters: " + registry.unknown("name", name, everything))
        if len(takers) > 1:
            raise ValueError(f"hyperparameters: {name!r} is taken by {' and by '.join(takers)}; rename one of them")
    for taker, make in (
        ("network", network if of_network else None),
        ("regularizer", penalty.make),
        *(("optimizer", maker.make) for maker in makers.values()),
        *(("rule", maker.make) for maker in of_rule.values()),
    ):
        missing = [name for name in _required(make) if name not in columns]
        if missing:
            raise ValueError(f"hyperparameters: the {taker} needs {missing[0]!r}, which is not among them")
    _check_own(columns, makers)

    if isinstance(static, str):
        raise TypeError(f"static: expected a list of names, got {static!r}")
    for name in static:
        if name not in columns:
            raise ValueError("static: " + registry.unknown("hyperparameter", name, columns))
    count = len(next(iter(columns.values())))
    compiled_in = {*of_network, *static, "batch_size", "examples"}
    compiled_in |= {name for name, column in columns.items() if column.dtype.kind in "Ub" and name != "optimizer"}
    compiled_in |= _shaping(of_rule, columns)
    rows = [{name: column[i].item() for name, column in columns.items()} for i in range(count)]
    networks = _built(network, of_network, rows)
    compiled = _common(networks) if pad else networks
    members: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        fixed = tuple((name, row[name]) for name in row if name in compiled_in)
        members.setdefault((compiled[i], *_not_of(fixed, of_network)), []).append(i)

    own_keys, built = _keys(key, columns, count), []
    for (shape, *fixed), ids in members.items():
        first, given = rows[ids[0]], dict(fixed)
        own_rule = of_rule[str(first.get("rule", ""))]
        _check_made((*makers.values(), penalty, own_rule), rows, ids)
        settled = check_settings(
            shape,
            optimizer=_optimizer(makers.values(), first, _choice(first, makers)),
            regularizer=penalty(first),
            rule=own_rule(first),
            plan=_plan(plan, given),
            **settings,
        )
        training, held_out = prepare_data(settled, shapes(shape), *data, validation, *weights)
        own_data = _data(training, given.get("examples"), columns, np.array(ids), key)
        noise, classes = own_data.label_noise, training.targets.shape[-1] > 1 or settled.loss.targets == "signs"
        if classes and noise is not None and noise.max() > 1:
            raise ValueError(f"hyperparameters: label_noise of classes must be a share, 0 to 1, got {noise.max()}")
        settled = choose_plan(settled, own_data.examples, training.weights is not None, epochs)
        augmentation.check_shapes(settled.augment, training.inputs, settled.plan.size or own_data.examples)
        values = _traced((*makers.values(), penalty, own_rule), columns, np.array(ids), compiled_in)
        if len(makers) > 1:
            values["choice"] = np.array([_choice(rows[i], makers) for i in ids], np.int32)
        if pad and any(networks[i] != shape for i in ids):
            _check_exact(settled)
            values["mask"] = _masks(shape, [networks[i] for i in ids])
        named = tuple((name, value) for name, value in fixed if name not in OWN)
        maker = Maker(settled.common, tuple(makers.values()), penalty, own_rule, named)
        scales = columns["initial_scale"][ids] if "initial_scale" in columns else np.ones(len(ids))
        scales = scales.astype(precision.default())
        built.append(
            Group(
                np.array(ids),
                tuple(networks[i] for i in ids),
                maker,
                values,
                own_keys[np.array(ids)],
                scales,
                own_data,
                held_out,
            )
        )
    return built


def _candidates(optimizer: Any) -> dict[str, Factory]:
    if isinstance(optimizer, Mapping):
        if len(optimizer) < 2:
            raise ValueError(f"optimizer: expected at least two to choose from, got {len(optimizer)}")
        return {str(name): _factory("optimizer", first_order, one) for name, one in optimizer.items()}
    return {"": _factory("optimizer", first_order, optimizer)}


def _factory(kind: str, module: Any, given: Any) -> Factory:
    """What makes the rows of a registry: a bare name, a function; or a row, for which nothing is left to be chosen."""
    if module is first_order and second_order.knows(given):
        raise ValueError(
            f"optimizer: populations train with first-order methods, got {given!r}; training.best_of and "
            "optimizers.restarts run many starts of a second-order one"
        )
    if given is None or isinstance(given, Optimizer | regularizers.Regularizer | rules.Rule | Mapping):
        return Factory(None, module.get(given) if isinstance(given, Mapping) else given)
    if isinstance(given, str) and ("(" in given or "{" in given):
        return Factory(None, module.get(given))
    make = module.factory(given) if isinstance(given, str) else given
    if isinstance(given, str) and not inspect.signature(make).parameters:  # a row without constants
        return Factory(None, module.get(given))
    if not callable(make):
        raise TypeError(f"{kind}: expected a name, an object or a function of hyperparameters, got {given!r}")
    return Factory(make, None, _parameters(kind, make))


def _parameters(kind: str, function: Callable) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise TypeError(f"{kind}: expected a function of hyperparameters, got {function!r}") from None
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def _required(function: Callable | None) -> list[str]:
    """What it cannot be called without."""
    parameters = inspect.signature(function).parameters.values() if function else ()
    return [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _check_own(columns: dict[str, np.ndarray], makers: dict[str, Factory]) -> None:
    whole = {"seed": 0, "batch_size": 0, "examples": 1, "subset": 0}
    for name, least in whole.items():
        column = columns.get(name)
        if column is not None and (column.dtype.kind not in "iu" or column.min() < least or column.max() >= 2**32):
            wrong = (
                column.max().item()
                if column.dtype.kind in "iu" and column.min() >= least
                else _offending(column, least)
            )
            raise ValueError(f"hyperparameters: {name} must be integers from {least} to {2**32 - 1}, got {wrong!r}")
    for name in ("initial_scale", "label_noise"):
        column = columns.get(name)
        if column is not None and (column.dtype.kind not in "iuf" or column.min() < 0):
            raise ValueError(f"hyperparameters: {name} must be numbers >= 0, got {_offending(column, 0)}")
    for chosen in columns.get("optimizer", ()):
        if str(chosen) not in makers:
            raise ValueError("hyperparameters: " + registry.unknown("optimizer", str(chosen), makers))


def _offending(column: np.ndarray, least: int) -> Any:
    wrong = column.dtype.kind not in "iuf" or column.dtype.kind == "f" and least != 0
    return column[0].item() if wrong else column[np.argmin(column)].item()


def _built(network, names: tuple[str, ...], rows: list[dict]) -> list[Network]:
    """Each member's network, made once for each combination of what it depends on."""
    if isinstance(network, Network):
        return [network] * len(rows)
    made: dict[tuple, Network] = {}
    for i, row in enumerate(rows):
        values = {name: row[name] for name in names if name in row}
        place = tuple(values.items())
        if place not in made:
            with _of_member(i, values):
                made[place] = network(**values)
            if not isinstance(made[place], Network):
                raise TypeError(f"network: expected a function that gives a Network, got {made[place]!r}")
    return [made[tuple((name, row[name]) for name in names if name in row)] for row in rows]


class _of_member:
    """Errors raised inside say which member they are about."""

    def __init__(self, number: int, values: Mapping[str, Any]):
        self.number, self.values = number, values

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, ValueError | TypeError):
            said = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
            raise type(error)(f"member {self.number} ({said}): {error}") from None


def _check_made(factories: Sequence[Factory], rows: list[dict], ids: list[int]) -> None:
    """Makes all that a group is made of once, from concrete numbers, so that each of them is checked as one."""
    seen = set()
    for i in ids:
        taken = {name for factory in factories for name in factory.names}
        constants = {name: value for name, value in rows[i].items() if name not in OWN or name in taken}
        place = tuple(constants.items())
        if place not in seen:
            seen.add(place)
            with _of_member(i, constants):
                for factory in factories:
                    factory(constants)


def _not_of(fixed: tuple, names: Sequence[str]) -> tuple:
    return tuple((name, value) for name, value in fixed if name not in names)


def _choice(row: Mapping[str, Any], makers: dict[str, Factory]) -> int:
    return list(makers).index(str(row["optimizer"])) if "optimizer" in row else 0


def _plan(plan: BatchPlan | None, given: Mapping[str, Any]) -> BatchPlan | None:
    if "batch_size" not in given:
        return plan
    if given["batch_size"] == 0:
        return batch()
    if plan is None or plan.size is None:
        return minibatch(given["batch_size"])
    return dataclasses.replace(plan, size=given["batch_size"])


def _keys(key: Array, columns: dict[str, np.ndarray], count: int) -> Array:
    """Each member's own key: the population's, with its seed folded in where it has one."""
    if "seed" not in columns:
        return jnp.broadcast_to(key, (count, *key.shape))
    return jax.vmap(functools.partial(keys.member, key))(jnp.asarray(columns["seed"].astype(np.uint32)))


def _traced(factories: Iterable[Factory], columns, ids, compiled_in) -> dict[str, Any]:
    used = {name for factory in factories for name in factory.names} - compiled_in
    constants = {}
    for name in columns:
        if name in used:
            column = columns[name][ids]
            whole = np.uint32 if name == "seed" else np.int32
            constants[name] = np.asarray(column, whole if column.dtype.kind in "iu" else precision.default())
    return {"constants": constants}


def _rules(rule: Any, columns: dict[str, np.ndarray]) -> dict[str, Factory]:
    """What makes each of the rules that "rule" names, or the one of all members, under "". Raises as `rules.get`."""
    if "rule" not in columns:
        return {"": _factory("rule", rules, rule)}
    if rule != "exact":
        raise ValueError("hyperparameters: 'rule' is one of them, so that rule=... has no place beside it")
    words = columns["rule"]
    if words.dtype.kind != "U":
        raise ValueError(f"hyperparameters: rule must be words such as 'feedback_alignment', got {words[0].item()!r}")
    return {str(word): _factory("rule", rules, str(word)) for word in dict.fromkeys(words.tolist())}


def _shaping(of_rule: dict[str, Factory], columns: dict[str, np.ndarray]) -> set[str]:
    """Integers of a rule that cannot be traced, such as numbers of steps: tried out."""
    found = set()
    for factory in of_rule.values():
        given = {name: columns[name][0] for name in factory.names if name in columns}
        for name in given:
            if given[name].dtype.kind in "iu":
                others = {other: value.item() for other, value in given.items() if other != name}
                try:
                    jax.eval_shape(lambda x, n=name, o=others, f=factory: f(o | {n: x}) and None, given[name])
                except (TypeError, ValueError):
                    found.add(name)
    return found


# Initial parameters, padding ------------------------------------------------------------------------------------------


def shapes(network: Network) -> Params:
    """Its parameters as shapes."""
    return abstract_params(network, precision.default())


@functools.lru_cache(maxsize=256)
def _draw(network: Network, rule: rules.Rule | rules.ByLayer = rules.exact) -> Callable:
    """(keys, scales) -> initial parameters (M, ...), as `fit` draws them, their weights multiplied by the scale; and
    what the rule learns beside them.
    """

    def one(key, scale):
        params = _scaled(network.init(keys.parameters(key)), scale)
        return rules.begin(rule, network, params, keys.parameters(key))

    return jax.jit(jax.vmap(one))


def _scaled(params: Params, scale: Array) -> Params:
    params = lax.optimization_barrier(params)  # or the compiler joins the scale with a factor of the draw's own
    return jax.tree.map(
        lambda acts, w: w * scale.astype(w.dtype) if acts else w, regularizers.penalized(params), params
    )


@functools.lru_cache(maxsize=256)
def _draw_in_corners(network: Network) -> Callable:
    """(keys, scales, masks, corners) -> the same of narrower networks, each bitwise what it draws by itself, filled up
    with zeros: one program for all widths.
    """

    def one(key, scale, mask, corners):
        layers = tuple(
            dataclasses.replace(layer, initializer=in_corner(layer.initializer, *corners[layer.name]))
            if layer.name in corners
            else layer
            for layer in network.layers
        )
        params = _scaled(Network(network.inputs, layers).init(keys.parameters(key)), scale)
        return jax.tree.map(lambda x, own: jnp.where(own, x, 0), params, mask)

    return jax.jit(jax.vmap(one))


def corners_of(network: Network, narrow: Sequence[Network]) -> dict[str, tuple] | None:
    """{layer: (fan-in (M,), spread (M,), columns (M, fan-in of the wide))} of narrower networks, as `in_corner` takes
    them, of all layers whose weights are drawn with numbers of neurons that differ. None where what such a layer begins
    with is not drawn each by itself.
    """
    found = {}
    for number, layer in enumerate(network.layers):
        own = [each.layers[number] for each in narrow]
        drawn = [(one.rows, *network.fans(one)) for network, one in zip(narrow, own, strict=True)]
        wide = (layer.rows, *network.fans(layer))
        if all(one == wide for one in drawn):
            continue
        if layer.activation.parameters and not all(_learned_in_corner(layer, one.size) for one in own):
            return None
        if not wide[1]:  # without weights
            continue
        columns = [_columns(each[1:3], wide[1:3]) for each in drawn]
        if layer.initializer.each is None or any(one is None for one in columns):
            return None
        fan_ins = np.array([sum(fans.values()) for _, _, fans, _ in drawn], np.int32)
        spreads = [layer.initializer.each.spread(int(into), one[3]) for into, one in zip(fan_ins, drawn, strict=True)]
        found[layer.name] = fan_ins, np.array(spreads), np.array(columns, np.int32)
    return found


def _learned_in_corner(layer: Layer, size: int) -> bool:
    """Are the learned parameters that a narrower layer begins with a corner of this one's?"""
    if layer.activation.drawn is not None:
        return False
    few, many = (learned_at_start(layer.activation, count, precision.default()) for count in (size, layer.size))
    return all(np.array_equal(x, many[name][tuple(map(slice, x.shape))]) for name, x in few.items())


def _columns(own: tuple[dict[str, Shape], dict[str, int]], wide: tuple[dict[str, Shape], dict[str, int]]) -> np.ndarray:
    """Of each column of the wide layer's weights, as they are drawn, the number of the narrower one's that stands
    there; where none does, any. None where weights of which some are read at a time are of another number of those.
    """
    (shapes, fans), (wide_shapes, wide_fans), found, drawn = own, wide, [], 0
    for source, shape in shapes.items():
        wider, fan = wide_shapes[source][1:], wide_fans[source]
        if math.prod(wider) == fan:
            places = np.minimum(np.indices(wider).reshape(len(wider), -1), np.array(shape[1:])[:, None] - 1)
            found.append(drawn + np.ravel_multi_index(tuple(places), shape[1:]))
        elif (shape[1:], fans[source]) == (wider, fan):
            found.append(drawn + np.arange(fan))
        else:
            return None
        drawn += fans[source]
    return np.concatenate(found)


def _common(networks: list[Network]) -> list[Network]:
    """Each network's shape with its hidden layers as wide as the widest that is otherwise alike."""
    widest: dict[tuple, tuple] = {}
    kinds = [_kind(network) for network in networks]
    for kind, network in zip(kinds, networks, strict=True):
        sizes = tuple(layer.size for layer in network.layers)
        widest[kind] = tuple(map(max, sizes, widest.get(kind, sizes)))
    common = {}
    for kind, network in zip(kinds, networks, strict=True):
        if kind not in common:
            layers = zip(network.layers, widest[kind], strict=True)
            widened = tuple(dataclasses.replace(layer, size=size) for layer, size in layers)
            common[kind] = Network(network.inputs, widened)
    for kind, network in zip(kinds, networks, strict=True):
        if network != common[kind]:
            _check_paddable(network, common[kind])
    return [common[kind] for kind in kinds]


def _kind(network: Network) -> tuple:
    layers = tuple(dataclasses.replace(layer, size=1) for layer in network.layers)
    return network.inputs, network.output.size, layers


def _check_paddable(network: Network, common: Network) -> None:
    for layer in network.layers:
        for source, by in layer.reads:
            wide = common.shapes[source], next(own.rows for own in common.layers if own.name == layer.name)
            if not by.pads and not _is_corner(by, (network.shapes[source], layer.rows), wide):
                raise ValueError(
                    f"pad: layer {layer.name!r} reads {source!r} by {by.name}, of which a narrower network's weights "
                    "are no corner; train the widths in groups of their own, pad=False"
                )
    for layer in network.layers[:-1]:
        if layer.dropout or not layer.activation.alone:
            what = "dropout" if layer.dropout else f"activation {layer.activation.name!r}, which mixes neurons,"
            raise ValueError(
                f"pad: a layer of {what} is not the same network with more units beside it; train the widths in "
                "groups of their own, pad=False"
            )


def _is_corner(by: Connection, own: tuple[Shape, int], wide: tuple[Shape, int]) -> bool:
    """Does w in a corner of the wider network's, the rest 0, read what the narrower one's reads, and nothing else?

    Tried out: z is linear in x and in w, so that random numbers tell. own, wide: what is read, and channels.
    """
    if own == wide or by.tokens is not None:
        return own == wide
    draw, (_, shape), (_, wider) = np.random.default_rng(0), by.shapes(*own), by.shapes(*wide)
    x = draw.standard_normal((1, *wide[0]))
    w = None if shape is None else draw.standard_normal(shape)
    padded = None if w is None else np.pad(w, [(0, many - few) for few, many in zip(shape, wider, strict=True)])
    few = np.asarray(by.forward(x[(slice(None), *map(slice, own[0]))], w))
    many = np.asarray(by.forward(x, padded))
    return np.allclose(many, np.pad(few, [(0, more - less) for less, more in zip(few.shape, many.shape, strict=True)]))


def _check_exact(settings: Settings) -> None:
    """Refuses what reads gradients before what is filled up is taken out of them, and rules that it would change."""
    rule = rule_of(settings.gradient)
    known = settings.gradient in GRADIENTS.values() or isinstance(settings.gradient, Along)
    reads = {"importance": settings.plan.importance is not None, "track": settings.track, "gradient": not known}
    for name, given in reads.items():
        if given:
            raise ValueError(f"pad: {name} would see the units that fill a network up; train the widths with pad=False")
    for own in rules.rules_in(rule):
        if not own.pads:
            raise ValueError(
                f"pad: what the rule {own.name} draws, or puts in the place of weights, is another in a wider network; "
                "train the widths with pad=False"
            )


def unpadded(network: Network, params: Params) -> Params:
    """One member's parameters in its own network's shapes."""
    own = jax.tree.map(
        lambda x, like: x[tuple(map(slice, like.shape))], rules.without_feedback(params), shapes(network)
    )
    return {name: params[name] | x for name, x in own.items()}


def _masks(common: Network, networks: list[Network]) -> Params:
    """(M, ...) booleans: True for what is a member's own among the parameters of the wider network."""
    masks = jax.tree.map(lambda x: np.zeros((len(networks), *x.shape), bool), shapes(common))
    for at, network in enumerate(networks):
        for mask, x in zip(jax.tree.leaves(masks), jax.tree.leaves(shapes(network)), strict=True):
            mask[at][tuple(map(slice, x.shape))] = True
    return masks


# Data -----------------------------------------------------------------------------------------------------------------


def _data(training: Batch, examples: int | None, columns, ids, key: Array) -> Data:
    whole = len(training.targets)
    own = [name for name in ("examples", "subset", "label_noise") if name in columns]
    if own and any(isinstance(x, Windows) for x in training.inputs.values()):
        raise ValueError(f"hyperparameters: {own[0]} chooses among examples or labels; a stream is read whole by all")
    if examples is not None and examples > whole:
        raise ValueError(f"hyperparameters: examples must be at most {whole}, the training examples, got {examples}")
    noise = columns["label_noise"][ids] if "label_noise" in columns else None
    if noise is not None:
        training = training._replace(targets=stored.whole(training.targets))
    examples = examples or whole
    rows = None
    if "subset" in columns or examples < whole:
        subsets = columns["subset"][ids] if "subset" in columns else np.zeros(1, np.int64)
        chosen = {
            s: np.asarray(jax.random.permutation(keys.subset(key, int(s)), whole))[:examples]
            for s in np.unique(subsets)
        }
        rows = np.stack([chosen[s] for s in subsets]) if "subset" in columns else chosen[0]
    return Data(training, rows, noise, examples)


def _disturbed(key: Array, targets: Array, noise: Array, signs: bool) -> Array:
    """Targets (n, *P, S) of which a share `noise` is of another class, at every position where there are any; of
    numbers, Gaussian noise of that many deviations.

    signs: True for +-1 in a single column, where the other class is the other sign.
    """
    key = keys.labels(key)
    whole, width = targets, targets.shape[-1]
    targets = targets.reshape(-1, width)
    examples = len(targets)
    order_key, shift_key = keys.other_classes(key)
    rank = jnp.argsort(jax.random.permutation(order_key, examples))
    wrong = (rank < jnp.round(noise * examples).astype(rank.dtype))[:, None]
    if width > 1 or signs:
        if width == 1:
            return jnp.where(wrong, -targets, targets).reshape(whole.shape)
        shift = jax.random.randint(shift_key, (examples, 1), 1, width)
        columns = (jnp.arange(width)[None, :] - shift) % width
        return jnp.where(wrong, jnp.take_along_axis(targets, columns, axis=1), targets).reshape(whole.shape)
    return whole + noise * jnp.std(whole) * jax.random.normal(key, whole.shape, whole.dtype)
