"""Rows that know how they were made: copied, pickled and cached by the function and the constants that made them.

A row is a frozen description with a name: an activation, a connection, a loss, an optimizer. `cached` makes a factory
return the same row for the same constants, so that a program which was compiled for the row is used again.
"""

import copy
import copyreg
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

__all__ = ["Constants", "Described", "FrozenMapping", "cached", "documented", "made_by", "remember"]

Row = TypeVar("Row")
Constants = ParamSpec("Constants")

_PLAIN = re.compile(r"\w([\w .-]*\w)?")  # a name that needs no quotes


class Described:
    """A frozen row that knows how it was made.

    A copy is the row itself. Unpickling makes the row again, by the same function with the same constants, so that it
    is identical to the row which that process knows by the name.
    """

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict) -> Any:
        return self

    def __reduce__(self) -> tuple:
        made = made_by(self)
        if made is None:  # made directly from functions, which pickle must find or carry
            return copyreg.__newobj__, (type(self),), vars(self)  # type: ignore[attr-defined]
        factory, args, keywords = made
        return _make, (factory, args, keywords)


def made_by(row: Any) -> tuple[Callable, tuple, dict[str, Any]] | None:
    """Returns the function that made a row, with its arguments; None for other objects and rows made directly."""
    return vars(row).get("_made_by") if isinstance(row, Described) else None


def _make(factory: Callable, args: tuple, keywords: dict[str, Any]) -> Any:
    return factory(*args, **keywords)


def remember(row: Row, factory: Callable, args: tuple = (), keywords: Mapping[str, Any] = MappingProxyType({})) -> Row:
    """Returns the row, after recording in it once what made it. The first record, of the innermost factory, counts."""
    if isinstance(row, Described) and "_made_by" not in vars(row):
        object.__setattr__(row, "_made_by", (factory, args, dict(keywords)))
    return row


def documented(row: Row, text: str) -> Row:
    """Returns the row, after giving it a docstring, which `help` shows instead of its class's."""
    object.__setattr__(row, "__doc__", inspect.cleandoc(text))
    return row


def cached(factory: Callable[Constants, Row], size: int | None = None) -> Callable[Constants, Row]:
    """Returns `factory`, which then returns the same object for the same constants, however they are passed.

    A program that `jit` compiled for a row is therefore used again. Rows record what made them.

    Args:
        factory: the function to cache. Results for unhashable arguments, such as arrays, are not cached.
        size: how many results are kept, the latest; None keeps all.

    Returns:
        The caching function, with the signature and the docstring of `factory`.

    Example:
        >>> from functional_nn import activations
        >>> activations.leaky_relu() is activations.leaky_relu(slope=0.01)
        True
    """
    signature = inspect.signature(factory)
    rows = functools.lru_cache(maxsize=size, typed=True)(factory)

    @functools.wraps(factory)
    def same(*args: Any, **keywords: Any) -> Row:
        given = signature.bind(*map(_frozen, args), **{name: _frozen(x) for name, x in keywords.items()})
        bound = copy.copy(given)
        bound.arguments = dict(given.arguments)
        bound.apply_defaults()
        try:
            hash((bound.args, *bound.kwargs.values()))
        except TypeError:  # an array, a tracer, a callable of the user's: nothing to remember it by
            row = factory(*bound.args, **bound.kwargs)
        else:
            row = rows(*bound.args, **bound.kwargs)
        return remember(row, same, given.args, given.kwargs)

    same.remembers = factory  # type: ignore[attr-defined]
    return same


class FrozenMapping(Mapping):
    """A hashable mapping, in the order of its names; mappings inside it are frozen too.

    Two are equal if names, values and the types of the values are, since a function may refuse True and accept 1. It
    is hashable if its values are. Its text is what `Registry.get` reads.

    Example:
        >>> FrozenMapping({"others": 0.01, "layer1": 0.1})
        {layer1: 0.1, others: 0.01}
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        def frozen(value: Any) -> Any:
            return FrozenMapping(value) if isinstance(value, Mapping) else _frozen(value)

        self._values = {name: frozen(values[name]) for name in sorted(values, key=str)}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _typed(self) -> tuple:
        return tuple((name, type(value), value) for name, value in self._values.items())

    def __eq__(self, other: object) -> bool:
        return self._typed() == other._typed() if isinstance(other, FrozenMapping) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._typed())

    def __repr__(self) -> str:
        quoted = (name if _PLAIN.fullmatch(str(name)) else repr(name) for name in self._values)
        return f"{{{', '.join(f'{name}: {value}' for name, value in zip(quoted, self._values.values(), strict=True))}}}"

    def __reduce__(self) -> tuple:
        return FrozenMapping, (self._values,)


def _frozen(value: Any) -> Any:
    """A list as a tuple, and a mapping of hashable values as a FrozenMapping; everything else unchanged."""
    if isinstance(value, Mapping):
        frozen = FrozenMapping(value)
        try:
            hash(frozen)
        except TypeError:  # holds arrays, such as masks: a copy, since the caller may change the mapping later
            return _copied(value)
        return frozen
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _copied(value: Any) -> Any:
    """A tree whose dicts are copied, also the empty ones of layers without weights."""
    return {name: _copied(entry) for name, entry in value.items()} if type(value) is dict else value
