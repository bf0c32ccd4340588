"""How a member's optimizer, penalty and rule are made from its hyperparameters.

A factory is given as a bare name ("adam"), as a function (`lambda learning_rate: ...`) or as an object. An object
leaves nothing to choose.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from functional_nn import optimizers
from functional_nn.gradients import rules
from functional_nn.optimizers import first_order, regularizers, second_order
from functional_nn.optimizers.optimizer import Optimizer


@dataclass(frozen=True)
class Factory:
    """Makes an optimizer, a penalty or a rule from those hyperparameters that it takes.

    make: the function, None where `row`, the finished object, is used as it is. names: of the hyperparameters taken.
    """

    make: Callable | None
    row: Any = None
    names: tuple[str, ...] = ()

    def __call__(self, hyperparameters: Mapping[str, Any]) -> Any:
        if self.make is None:
            return self.row
        return self.make(**{name: hyperparameters[name] for name in self.names if name in hyperparameters})

    @property
    def required(self) -> list[str]:
        """The names without which it cannot be called."""
        return [] if self.make is None else required_names(self.make)


def factory(kind: str, registry: Any, specification: Any) -> Factory:
    """The factory that a name, an object or a function of hyperparameters stands for.

    Raises TypeError for anything else and ValueError for a second-order method. registry: the module that lists the
    names.
    """
    if registry is first_order and second_order.knows(specification):
        raise ValueError(
            f"optimizer: populations train with first-order methods, got {specification!r}; training.best_of and "
            "optimizers.restarts run many starts of a second-order one"
        )
    if specification is None or isinstance(specification, Optimizer | regularizers.Regularizer | rules.Rule | Mapping):
        return Factory(None, registry.get(specification) if isinstance(specification, Mapping) else specification)
    if isinstance(specification, str) and ("(" in specification or "{" in specification):
        return Factory(None, registry.get(specification))
    make = registry.factory(specification) if isinstance(specification, str) else specification
    if isinstance(specification, str) and not inspect.signature(make).parameters:  # a row without constants
        return Factory(None, registry.get(specification))
    if not callable(make):
        raise TypeError(f"{kind}: expected a name, an object or a function of hyperparameters, got {specification!r}")
    return Factory(make, None, parameter_names(kind, make))


def parameter_names(kind: str, function: Callable) -> tuple[str, ...]:
    """The names by which the function can be called. Raises TypeError where it has no signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise TypeError(f"{kind}: expected a function of hyperparameters, got {function!r}") from None
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def required_names(function: Callable) -> list[str]:
    """The names of the parameters that have no default."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


# Optimizers: one, or several of which each member names one -----------------------------------------------------------


def candidate_factories(optimizer: Any) -> dict[str, Factory]:
    """The factories of the optimizers that members choose from, by name; a single one has the name ""."""
    if isinstance(optimizer, Mapping):
        if len(optimizer) < 2:
            raise ValueError(f"optimizer: expected at least two to choose from, got {len(optimizer)}")
        return {str(name): factory("optimizer", first_order, candidate) for name, candidate in optimizer.items()}
    return {"": factory("optimizer", first_order, optimizer)}


def candidate_number(row: Mapping[str, Any], candidates: Iterable[str]) -> int:
    """Which of the candidates a member names."""
    return list(candidates).index(str(row["optimizer"])) if "optimizer" in row else 0


def chosen_optimizer(candidates: Iterable[Factory], hyperparameters: Mapping[str, Any], number: Any) -> Optimizer:
    """The optimizer that a member trains with: the candidate with that number, made from its hyperparameters.

    number: may be traced. Unused where there is one candidate.
    """
    made = [candidate(hyperparameters) for candidate in candidates]
    return made[0] if len(made) == 1 else optimizers.choose(number, made)


# Rules ----------------------------------------------------------------------------------------------------------------


def rule_factories(rule: Any, columns: dict[str, np.ndarray]) -> dict[str, Factory]:
    """The factory of each rule that the hyperparameter "rule" names, or under "" that of all members.

    Raises as `rules.get`.
    """
    if "rule" not in columns:
        return {"": factory("rule", rules, rule)}
    if rule != "exact":
        raise ValueError("hyperparameters: 'rule' is one of them; rule=... cannot be given as well")
    words = columns["rule"]
    if words.dtype.kind != "U":
        raise ValueError(f"hyperparameters: rule must be words such as 'feedback_alignment', got {words[0].item()!r}")
    return {str(word): factory("rule", rules, str(word)) for word in dict.fromkeys(words.tolist())}


def untraceable_names(factories: Iterable[Factory], columns: dict[str, np.ndarray]) -> set[str]:
    """Integer hyperparameters that cannot be traced, such as numbers of steps. Each is tried."""
    untraceable = set()
    for make in factories:
        values = {name: columns[name][0] for name in make.names if name in columns}
        for name, value in values.items():
            if value.dtype.kind in "iu":
                others = {other: x.item() for other, x in values.items() if other != name}
                try:
                    jax.eval_shape(lambda x, f=make, n=name, o=others: f(o | {n: x}) and None, value)
                except (TypeError, ValueError):
                    untraceable.add(name)
    return untraceable
