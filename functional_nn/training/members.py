"""The members of a population: from a row of hyperparameters to a network, settings, data and initial parameters.

Numbers that an optimizer, a penalty or a rule is made of become traced arrays, so that any number of values is one
program. Everything else on which a program depends (network, batch size, number of examples, words) divides the members
into groups.

Letters: N members of a group, M of them at a time.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import precision, registry
from functional_nn.gradients.backprop import Along, value_and_grad
from functional_nn.networks.network import Network, Params
from functional_nn.optimizers import regularizers
from functional_nn.training import augmentation, keys, padding
from functional_nn.training.data import prepare_data
from functional_nn.training.factories import (
    Factory,
    candidate_factories,
    candidate_number,
    chosen_optimizer,
    factory,
    parameter_names,
    required_names,
    rule_factories,
    untraceable_names,
)
from functional_nn.training.gradient import gradient_by_rule, rule_of
from functional_nn.training.initial_parameters import member_params, padded_member_params, parameter_shapes
from functional_nn.training.member_data import MemberData, member_data
from functional_nn.training.minibatches import BatchPlan, batch, minibatch
from functional_nn.training.records import Batch
from functional_nn.training.settings import Common, Settings, check_settings, choose_plan

# Hyperparameters that the population itself takes.
POPULATION_NAMES = ("seed", "batch_size", "initial_scale", "examples", "subset", "label_noise", "rule")


@dataclass(frozen=True)
class SettingsFactory:
    """Makes one member's settings from its values, traced or not: {"constants": {name: value}, "choice": the number of
    its optimizer, "mask": its padding}, the last two where the group has them.

    Attributes:
        common: The settings that all members of the group share.
        candidates: The factories of the optimizers that members choose from.
        regularizer: The factory of the penalty.
        rule: The factory of the rule. Used where constants of the rule are hyperparameters.
        compiled_in: Words, and other hyperparameters that are not traced, as (name, value).
    """

    common: Common
    candidates: tuple[Factory, ...]
    regularizer: Factory
    rule: Factory
    compiled_in: tuple[tuple[str, Any], ...]

    def __call__(self, values: Mapping[str, Any]) -> Settings:
        hyperparameters = dict(self.compiled_in) | values["constants"]
        common = self.common
        if not hyperparameters.keys().isdisjoint(self.rule.names):
            plain = value_and_grad if isinstance(common.gradient, Along) else common.gradient
            common = dataclasses.replace(common, gradient=gradient_by_rule(plain, self.rule(hyperparameters)))
        return common.settings(
            optimizer=chosen_optimizer(self.candidates, hyperparameters, values.get("choice")),
            regularizer=self.regularizer(hyperparameters),
            mask=values.get("mask"),
        )


class Group(NamedTuple):
    """Members that one program trains.

    Attributes:
        members: (N,), their numbers in the population.
        networks: Each member's network.
        make_settings: Makes a member's settings.
        values: The arrays that it makes them from, each with a leading axis (N, ...).
        keys: (N,), each member's key.
        scales: (N,), the factors of their initial weights.
        data: The data they train on.
        held_out: The validation data, None where there are none.
    """

    members: np.ndarray
    networks: tuple[Network, ...]
    make_settings: SettingsFactory
    values: dict[str, Any]
    keys: Array
    scales: np.ndarray
    data: MemberData
    held_out: Batch | None

    @property
    def common(self) -> Common:
        """The settings that all members share."""
        return self.make_settings.common

    @property
    def network(self) -> Network:
        """The network that is compiled: as wide as the widest, where members are padded."""
        return self.common.network

    @property
    def updates(self) -> int:
        """How many updates an epoch has."""
        return self.common.plan.updates(self.data.examples)

    def data_of(self, positions: np.ndarray) -> Batch:
        """The data of the members at these positions in the group, as `MemberData.of`."""
        return self.data.of(positions, self.keys, self.common.loss.targets == "signs")

    def initial(self, positions: np.ndarray) -> Params:
        """The initial parameters of the members at these positions in the group, (M, ...)."""
        member_keys, scales = self.keys[positions], self.scales[positions]
        if "mask" not in self.values:
            return member_params(self.network, member_keys, scales, rule_of(self.common.gradient))
        masks = jax.tree.map(lambda x: x[positions], self.values["mask"])
        networks = [self.networks[position] for position in positions]
        return padded_member_params(self.network, networks, member_keys, scales, masks)


@dataclass(frozen=True, kw_only=True, eq=False)
class Specification:
    """What a population trains: the arguments of `fit_population` that decide its programs, as they were given.

    columns: the hyperparameters as `search.normalized` returns them. data: (inputs, targets). settings: loss, stop,
    gradient, correct, track and augment, as `fit` takes them.
    """

    network: Network | Callable[..., Network]
    optimizer: Any
    columns: dict[str, np.ndarray]
    data: tuple[Any, Any]
    key: Array
    epochs: int
    settings: dict[str, Any]
    validation: Any = None
    weights: Any = None
    class_weights: Any = None
    plan: BatchPlan | None = None
    regularizer: Any = None
    rule: Any = "exact"
    static: Sequence[str] = ()
    pad: bool = False

    @functools.cached_property
    def candidates(self) -> dict[str, Factory]:
        """The factories of the optimizers that members choose from, by name."""
        return candidate_factories(self.optimizer)

    @functools.cached_property
    def penalty(self) -> Factory:
        """The factory of the regularizer."""
        return factory("regularizer", regularizers, self.regularizer)

    @functools.cached_property
    def rules(self) -> dict[str, Factory]:
        """The factories of the rules that members name."""
        return rule_factories(self.rule, self.columns)

    @functools.cached_property
    def network_names(self) -> tuple[str, ...]:
        """The hyperparameters that the network takes."""
        return () if isinstance(self.network, Network) else parameter_names("network", self.network)

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Each member's hyperparameters."""
        count = len(next(iter(self.columns.values())))
        return [{name: column[i].item() for name, column in self.columns.items()} for i in range(count)]

    @property
    def races(self) -> bool:
        """True where members choose among several optimizers."""
        return len(self.candidates) > 1

    @functools.cached_property
    def compiled_in(self) -> set[str]:
        """The hyperparameters that are compiled in, and divide the members into groups."""
        words = {name for name, column in self.columns.items() if column.dtype.kind in "Ub" and name != "optimizer"}
        untraceable = untraceable_names(self.rules.values(), self.columns)
        return {*self.network_names, *self.static, "batch_size", "examples"} | words | untraceable


def grouped(specification: Specification) -> list[Group]:
    """The groups of a population, with everything checked. Raises as `fit_population`."""
    _check_names(specification)
    _check_population_values(specification.columns, specification.candidates)
    _check_static(specification)
    rows, networks = specification.rows, _networks(specification)
    compiled = padding.common_networks(networks) if specification.pad else networks
    positions: dict[tuple, list[int]] = {}
    for member, row in enumerate(rows):
        fixed = [(name, row[name]) for name in row if name in specification.compiled_in]
        others = tuple((name, value) for name, value in fixed if name not in specification.network_names)
        positions.setdefault((compiled[member], others), []).append(member)
    member_keys = _member_keys(specification.key, specification.columns, len(rows))
    return [
        _group(specification, network, dict(fixed), np.array(members), networks, member_keys)
        for (network, fixed), members in positions.items()
    ]


def _group(
    specification: Specification,
    network: Network,
    fixed: dict[str, Any],
    members: np.ndarray,
    networks: list[Network],
    member_keys: Array,
) -> Group:
    """The group of these members.

    network: the one that is compiled; fixed: the hyperparameters that are compiled in; networks and member_keys: of all
    members of the population.
    """
    columns, rows = specification.columns, specification.rows
    candidates, penalty = tuple(specification.candidates.values()), specification.penalty
    first = rows[members[0]]
    rule = specification.rules[str(first.get("rule", ""))]
    factories = (*candidates, penalty, rule)
    _check_made(factories, rows, members)
    settings = check_settings(
        network,
        optimizer=chosen_optimizer(candidates, first, candidate_number(first, specification.candidates)),
        regularizer=penalty(first),
        rule=rule(first),
        plan=_plan(specification.plan, fixed),
        **specification.settings,
    )
    training, held_out = prepare_data(
        settings,
        parameter_shapes(network),
        *specification.data,
        specification.validation,
        specification.weights,
        specification.class_weights,
    )
    data = member_data(training, fixed.get("examples"), columns, members, specification.key)
    noise, classes = data.label_noise, training.targets.shape[-1] > 1 or settings.loss.targets == "signs"
    if classes and noise is not None and noise.max() > 1:
        raise ValueError(f"hyperparameters: label_noise of classes must be a share, 0 to 1, got {noise.max()}")
    settings = choose_plan(settings, data.examples, training.weights is not None, specification.epochs)
    augmentation.check_shapes(settings.augment, training.inputs, settings.plan.size or data.examples)
    values: dict[str, Any] = {"constants": _traced_constants(factories, columns, members, specification.compiled_in)}
    if specification.races:
        choices = [candidate_number(rows[member], specification.candidates) for member in members]
        values["choice"] = np.array(choices, np.int32)
    own_networks = tuple(networks[member] for member in members)
    if specification.pad and any(own != network for own in own_networks):
        padding.check_padded_settings(settings)
        values["mask"] = padding.padding_masks(network, list(own_networks))
    scales = columns["initial_scale"][members] if "initial_scale" in columns else np.ones(len(members))
    named = tuple((name, value) for name, value in fixed.items() if name not in POPULATION_NAMES)
    return Group(
        members=members,
        networks=own_networks,
        make_settings=SettingsFactory(settings.common, candidates, penalty, rule, named),
        values=values,
        keys=member_keys[members],
        scales=scales.astype(precision.default()),
        data=data,
        held_out=held_out,
    )


# What members differ in -----------------------------------------------------------------------------------------------


def _networks(specification: Specification) -> list[Network]:
    """Each member's network, made once for each combination of the hyperparameters that it takes."""
    network, rows = specification.network, specification.rows
    if isinstance(network, Network):
        return [network] * len(rows)
    made: dict[tuple, Network] = {}
    networks = []
    for member, row in enumerate(rows):
        values = {name: row[name] for name in specification.network_names if name in row}
        combination = tuple(values.items())
        if combination not in made:
            with _errors_name_member(member, values):
                made[combination] = network(**values)
            if not isinstance(made[combination], Network):
                raise TypeError(f"network: expected a function that returns a Network, got {made[combination]!r}")
        networks.append(made[combination])
    return networks


def _plan(plan: BatchPlan | None, hyperparameters: Mapping[str, Any]) -> BatchPlan | None:
    """The population's plan, with a member's batch size where it has one."""
    if "batch_size" not in hyperparameters:
        return plan
    if hyperparameters["batch_size"] == 0:
        return batch()
    if plan is None or plan.size is None:
        return minibatch(hyperparameters["batch_size"])
    return dataclasses.replace(plan, size=hyperparameters["batch_size"])


def _member_keys(key: Array, columns: dict[str, np.ndarray], count: int) -> Array:
    """Each member's key (N,): the population's, with the member's seed folded in where it has one."""
    if "seed" not in columns:
        return jnp.broadcast_to(key, (count, *key.shape))
    return jax.vmap(functools.partial(keys.member, key))(jnp.asarray(columns["seed"].astype(np.uint32)))


def _traced_constants(
    factories: Sequence[Factory], columns: dict[str, np.ndarray], members: np.ndarray, compiled_in: set[str]
) -> dict[str, np.ndarray]:
    """The numbers that the factories take and that are not compiled in, {name: (N,)}."""
    taken = {name for make in factories for name in make.names} - compiled_in
    constants = {}
    for name in columns:
        if name in taken:
            column = columns[name][members]
            whole = np.uint32 if name == "seed" else np.int32
            constants[name] = np.asarray(column, whole if column.dtype.kind in "iu" else precision.default())
    return constants


# Checks ---------------------------------------------------------------------------------------------------------------


def _check_names(specification: Specification) -> None:
    """Raises ValueError unless each hyperparameter is taken by exactly one thing, and everything required is there."""
    columns, candidates, rules = specification.columns, specification.candidates, specification.rules
    population_names = (*POPULATION_NAMES, *(("optimizer",) if specification.races else ()))
    if specification.races and "optimizer" not in columns:
        raise ValueError(f"hyperparameters: a race needs 'optimizer', whose words are among {', '.join(candidates)}")
    accepted = {
        "the population": population_names,
        "the network": specification.network_names,
        "the regularizer": specification.penalty.names,
        "the optimizer": tuple(dict.fromkeys(name for make in candidates.values() for name in make.names)),
        "the rule": tuple(dict.fromkeys(name for make in rules.values() for name in make.names)),
    }
    for name in columns:
        takers = [taker for taker, names in accepted.items() if name in names]
        if name == "seed":  # a member's seed is its rule's, too
            takers = [taker for taker in takers if taker != "the rule"]
        if name == "optimizer" and not takers:
            raise ValueError("hyperparameters: to vary 'optimizer', give optimizer={name: ..., name: ...}, a race")
        if not takers:
            everything = [known for names in accepted.values() for known in names]
            raise ValueError("hyperparameters: " + registry.unknown("name", name, everything))
        if len(takers) > 1:
            raise ValueError(f"hyperparameters: {name!r} is taken by {' and by '.join(takers)}; rename one of them")
    required = {
        "network": required_names(specification.network) if specification.network_names else [],
        "regularizer": specification.penalty.required,
        "optimizer": [name for make in candidates.values() for name in make.required],
        "rule": [name for make in rules.values() for name in make.required],
    }
    for taker, names in required.items():
        missing = [name for name in names if name not in columns]
        if missing:
            raise ValueError(f"hyperparameters: the {taker} needs {missing[0]!r}, which is not among them")


def _check_static(specification: Specification) -> None:
    if isinstance(specification.static, str):
        raise TypeError(f"static: expected a list of names, got {specification.static!r}")
    for name in specification.static:
        if name not in specification.columns:
            raise ValueError("static: " + registry.unknown("hyperparameter", name, specification.columns))


def _check_population_values(columns: dict[str, np.ndarray], candidates: dict[str, Factory]) -> None:
    """Raises ValueError for values of the population's own hyperparameters that are out of range."""
    lowest = {"seed": 0, "batch_size": 0, "examples": 1, "subset": 0}
    for name, least in lowest.items():
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
        if str(chosen) not in candidates:
            raise ValueError("hyperparameters: " + registry.unknown("optimizer", str(chosen), candidates))


def _offending(column: np.ndarray, least: int) -> Any:
    """The value to show in a message: the first where the dtype is wrong, else the lowest."""
    wrong = column.dtype.kind not in "iuf" or column.dtype.kind == "f" and least != 0
    return column[0].item() if wrong else column[np.argmin(column)].item()


def _check_made(factories: Sequence[Factory], rows: list[dict[str, Any]], members: np.ndarray) -> None:
    """Makes each member's optimizers, penalty and rule once from concrete numbers, which they check."""
    taken = {name for make in factories for name in make.names}
    checked = set()
    for member in members:
        constants = {name: x for name, x in rows[member].items() if name not in POPULATION_NAMES or name in taken}
        combination = tuple(constants.items())
        if combination not in checked:
            checked.add(combination)
            with _errors_name_member(member, constants):
                for make in factories:
                    make(constants)


@contextlib.contextmanager
def _errors_name_member(member: int, values: Mapping[str, Any]) -> Iterator[None]:
    """Errors raised inside say which member they are about."""
    try:
        yield
    except (ValueError, TypeError) as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise type(error)(f"member {member} ({shown}): {error}") from None
