"""Constants of optimizers: numbers, schedules of the step, and mappings by the names of layers and parameters.

A constant is a Python number, a traced array (so that `vmap` can sweep it), a schedule of the step, or the name of a
schedule. Any constant of an elementwise method may also be a mapping from names of layers to such constants, or to
mappings of the names below, to any depth. The name "others" is for everything that the mapping does not name::

    gd({"layer1": 0.1, "others": "cosine(0.01, 1000)"})
    adam({"layer1": {"weights": 1e-3, "bias": 1e-2}, "others": {"bias": 0.0, "others": 1e-4}})

`init`, which receives the parameters, refuses a name that the parameters do not have, and a parameter without a value
(inside `freeze`, only the trained parameters count).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, registry
from functional_nn.optimizers import schedules
from functional_nn.rows import FrozenMapping

Constant = float | Array | Callable[[Array], Array] | str | Mapping[str, Any]

_OTHERS = "others"  # in a mapping: everything that it does not name


# Values at a step -----------------------------------------------------------------------------------------------------


def at_step(constant: Constant, step: Array) -> Any:
    """Returns the constant at a step: the value of a schedule, a number as it is."""
    if isinstance(constant, FrozenMapping):
        return FrozenMapping({name: at_step(value, step) for name, value in constant.items()})
    return constant(step) if callable(constant) else constant


def of_each_array(constant: Any, params: Any) -> list:
    """Returns the constant of each array, in the order of the parameters' leaves."""

    def of(path):
        value = constant
        for name in path:
            if isinstance(value, FrozenMapping):
                value = value[name if name in value else _OTHERS]
        return value

    return [of(path) for path in _paths(params)]


def _paths(params: Any) -> list[tuple[str, ...]]:
    """Returns the names that lead to each array, such as ("layer1", "weights", "input")."""

    def name_of(key):
        return jax.tree_util.keystr((key,), simple=True)

    return [tuple(map(name_of, path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def in_dtype(value: float | Array, dtype: np.dtype) -> float | Array:
    """Returns a constant ready for arithmetic in `dtype`; Python floats take that dtype by themselves."""
    return value if isinstance(value, float) else jnp.asarray(value, dtype)


# Checks ---------------------------------------------------------------------------------------------------------------


def non_negative(optimizer: str, name: str, value: Constant) -> Any:
    """Returns the constant. Raises ValueError unless it is a finite number >= 0."""
    return checked(optimizer, name, value, *checks.NON_NEGATIVE)


def positive(optimizer: str, name: str, value: Constant) -> Any:
    """Returns the constant. Raises ValueError unless it is a finite number > 0."""
    # 0 / 0 where a gradient has always been zero
    return checked(optimizer, name, value, *checks.POSITIVE)


def decay_rate(optimizer: str, name: str, value: Constant) -> Any:
    """Returns the constant. Raises ValueError unless it is in [0, 1)."""
    return checked(optimizer, name, value, lambda v: (v >= 0) & (v < 1), "in [0, 1)")


def checked(optimizer: str, name: str, value: Any, accepts: Callable, accepted: str) -> Any:
    """Returns the constant, by name where it is a mapping; the name of a schedule becomes the schedule.

    Raises ValueError for a number that is not `accepted`. Of a schedule only the first value is checked.
    """
    if isinstance(value, Mapping):
        return _by_name(checked, optimizer, name, value, accepts, accepted)
    if isinstance(value, str) and not value.strip().replace(".", "", 1).isdigit():  # not a number in quotes
        value = schedules.get(value)
    if isinstance(value, schedules.Schedule):
        first = value(0)
        if checks.is_concrete(first) and not accepts(np.asarray(first)):
            raise ValueError(f"{optimizer}: {name} must be {accepted}, got {value}, which begins with {float(first):g}")
    if callable(value):
        return value
    return checks.constant(optimizer, name, value, accepts, accepted)


def initial_value(optimizer: str, name: str, value: Any, accepts: Callable, accepted: str) -> Any:
    """Returns a checked constant that a state starts with, which cannot be a schedule. Raises as `checked`."""
    if isinstance(value, Mapping):
        return _by_name(initial_value, optimizer, name, value, accepts, accepted)
    return checks.constant(optimizer, name, value, accepts, accepted)


def _by_name(check: Callable, optimizer: str, name: str, values: Mapping, *accepted: Any) -> FrozenMapping:
    """Checks constants by names of layers and parameters, each under a label that says which one it is."""
    if not values or not all(isinstance(key, str) for key in values):
        raise ValueError(
            f'{optimizer}: {name} must be one value, or values by name such as {{"layer1": ..., "others": ...}}, got '
            f"{dict(values)}"
        )
    below = f"{name}/" if " of " in name else f"{name} of "
    return FrozenMapping({key: check(optimizer, below + key, value, *accepted) for key, value in values.items()})


def one_for_all(check: Callable, owner: str, name: str, value: Any) -> Any:
    """Returns the constant as `check` does. Raises ValueError for a mapping: it is one for all parameters."""
    if isinstance(value, Mapping):
        raise ValueError(f"{owner}: {name} must be one value for all parameters, got {dict(value)}")
    return check(owner, name, value)


def check_names(label: str, values: FrozenMapping, params: Any) -> None:
    """Raises ValueError for a name that leads to no parameters, and for parameters that no name leads to."""
    known: dict[tuple, set] = {}  # place in the mapping -> the names that parameters have there
    wrong = []
    paths = _paths(params)
    for path in paths:
        value: Any = values
        place: tuple[str, ...] = ()
        for depth, name in enumerate(path, 1):
            if not isinstance(value, FrozenMapping):
                break
            known.setdefault(place, set()).add(name)
            key = name if name in value else _OTHERS
            if key not in value:
                wrong.append(f'{label}: {"/".join(path[:depth])} has no value; name it, or give "others" one')
                break
            value, place = value[key], (*place, key)
        else:
            if isinstance(value, FrozenMapping):
                wrong.append(
                    f"{label}: {'/'.join(path) or 'the parameter'} is one array, expected one value, got {value}"
                )
    _check_known(label, values, (), known, paths)
    if wrong:
        raise ValueError(wrong[0])


def _check_known(label: str, values: FrozenMapping, place: tuple, known: dict[tuple, set], paths: list) -> None:
    """Raises ValueError for the first name below `place` that no parameters have."""
    for name, value in values.items():
        names = known.get(place, set())
        if _OTHERS in place and not names:  # every layer is named: "others" may have what any parameters have there
            names = {path[len(place)] for path in paths if len(path) > len(place)}
        if name not in names and name != _OTHERS and names:
            kind = f"parameter of {'/'.join(place)}" if place else "layer"
            raise ValueError(f"{label}: {registry.unknown(kind, name, {*names, _OTHERS})}")
        if isinstance(value, FrozenMapping):
            _check_known(label, value, (*place, name), known, paths)
