"""Names that users type (`"tanh"`, `"maxout(3)"`, `"cross_entropy"`) and the rows they stand for."""

import copy
import copyreg
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")

_QUOTES = re.compile(r"'[^']*'|\"[^\"]*\"")
_QUOTED = re.compile(r"(['\"])(.*)\1")  # a name that is more than a word
_PLAIN = re.compile(r"\w([\w .-]*\w)?")  # a name that needs no quotes
_SPECIFICATION = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*")


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """The hint "; did you mean 'relu'?", or nothing where no accepted name is near."""
    nearest = difflib.get_close_matches(given, list(accepted), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def unknown(kind: str, given: str, accepted: Iterable[str]) -> str:
    """The one-line message for a name that nobody registered, with the nearest known one."""
    accepted = sorted(accepted)
    return f"unknown {kind} {given!r}{did_you_mean(given, accepted)} (accepted: {', '.join(accepted)})"


class Described:
    """A frozen row that knows how it was made. A copy is the row itself; unpickled, it is made again, by the same
    function of the same constants, so that it is what that process knows by its name.
    """

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        made = made_by(self)
        if made is None:  # by hand, of functions that pickle must find or carry
            return copyreg.__newobj__, (type(self),), vars(self)
        factory, args, keywords = made
        return _make, (factory, args, keywords)


def made_by(row: Any) -> tuple[Callable, tuple, dict[str, Any]] | None:
    """The function that a row was made by, and what it was given; None for what is no row, or was made by hand."""
    return vars(row).get("_made_by") if isinstance(row, Described) else None


def _make(factory: Callable, args: tuple, keywords: dict[str, Any]) -> Any:
    return factory(*args, **keywords)


def remember(row: Row, factory: Callable, args: tuple = (), keywords: Mapping[str, Any] = MappingProxyType({})) -> Row:
    """The row, told once what it was made by; the innermost function that makes it is the one that counts."""
    if isinstance(row, Described) and "_made_by" not in vars(row):
        object.__setattr__(row, "_made_by", (factory, args, dict(keywords)))
    return row


def cached(factory: Callable[..., Row], size: int | None = None) -> Callable[..., Row]:
    """`factory`, giving the same object for the same constants however they are given: what `jit` compiled stays good.

    size: how many are remembered, the latest; None for all. Rows are told what they were made by.

    >>> from functional_nn import activations
    >>> activations.leaky_relu() is activations.leaky_relu(slope=0.01)
    True
    """
    signature = inspect.signature(factory)
    rows = functools.lru_cache(maxsize=size, typed=True)(factory)

    @functools.wraps(factory)
    def same(*args, **keywords):
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

    same.remembers = factory
    return same


class FrozenMapping(Mapping):
    """A mapping that rows can be remembered by, in the order of its names; a mapping in it is frozen, too.

    Equal to another where names and values are, and the types of the values: what refuses True takes 1. Hashable where
    its values are. Written as `Registry.get` reads it.

    >>> FrozenMapping({"others": 0.01, "layer1": 0.1})
    {layer1: 0.1, others: 0.01}
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping):
        def frozen(value):
            return FrozenMapping(value) if isinstance(value, Mapping) else _frozen(value)

        self._values = {name: frozen(values[name]) for name in sorted(values, key=str)}

    def __getitem__(self, name):
        return self._values[name]

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)

    def _typed(self) -> tuple:
        return tuple((name, type(value), value) for name, value in self._values.items())

    def __eq__(self, other):
        return self._typed() == other._typed() if isinstance(other, FrozenMapping) else NotImplemented

    def __hash__(self):
        return hash(self._typed())

    def __repr__(self):
        said = (name if _PLAIN.fullmatch(str(name)) else repr(name) for name in self._values)
        return f"{{{', '.join(f'{name}: {value}' for name, value in zip(said, self._values.values(), strict=True))}}}"

    def __reduce__(self):
        return FrozenMapping, (self._values,)


def _frozen(value: Any) -> Any:
    """A list as the tuple, and a mapping of what has a hash as the mapping, that it can be remembered by."""
    if isinstance(value, Mapping):
        frozen = FrozenMapping(value)
        try:
            hash(frozen)
        except TypeError:  # of arrays, such as masks: given on as it came, and not as it may become
            return _copied(value)
        return frozen
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _copied(value: Any) -> Any:
    """A tree whose dicts are its own, also the empty ones: of a layer that has no weights."""
    return {name: _copied(own) for name, own in value.items()} if type(value) is dict else value


class Registry(Generic[Row]):
    """Factories by name; `get("leaky_relu(0.1)")` calls the factory `leaky_relu` with 0.1.

    `kind` is the field's word for what is listed ("activation"), which begins every message; `row` is its type.
    """

    def __init__(self, kind: str, row: type[Row]):
        self.kind, self.row = kind, row
        self._factories: dict[str, Callable[..., Row]] = {}
        self._aliases: dict[str, str] = {}

    def add(self, name: str, factory: Callable[..., Row], aliases: tuple[str, ...] = ()) -> None:
        """Lists `factory` under `name` (and `aliases`). Raises ValueError where a name is taken."""
        for new in (name, *aliases):
            if new in self._factories or new in self._aliases:
                raise ValueError(f"{self.kind} {new!r} is already registered; choose another name")
            if not new.isidentifier():
                raise ValueError(f"{self.kind} name {new!r} is not an identifier")
        self._factories[name] = factory
        self._aliases.update(dict.fromkeys(aliases, name))

    def register(self, factory: Callable[..., Row]) -> Callable[..., Row]:
        """Lists a factory under its own name and gives it back, its results cached. A decorator.

        Equal constants give the same row, so that what was compiled for it serves again. Raises ValueError where the
        name is taken.
        """
        same = cached(factory)
        self.add(factory.__name__, same)
        return same

    def names(self) -> tuple[str, ...]:
        """The registered names, aliases left out, in the order they were added."""
        return tuple(self._factories)

    def knows(self, specification: str | Row) -> bool:
        """Is it a row, or does it begin with a registered name?"""
        if not isinstance(specification, str):
            return isinstance(specification, self.row)
        name = specification.partition("(")[0].strip()
        return name in self._factories or name in self._aliases

    def factory(self, name: str) -> Callable[..., Row]:
        """The function behind a bare name. Raises ValueError as `get`."""
        name = self._aliases.get(name, name)
        if name not in self._factories:
            raise ValueError(unknown(self.kind, name, (*self._factories, *self._aliases)))
        return self._factories[name]

    def get(self, specification: str | Row) -> Row:
        """The row that `specification` names: a bare name, or a name with arguments as in `maxout(3)`; rows pass.

        Arguments are numbers, true and false, words, names with arguments, tuples of such, as in `conv((3, 3))`, and
        mappings of names to them, as in `gd({layer1: 0.1, others: 0.01})`.

        Raises ValueError for an unknown name (with the nearest known one) and for arguments the factory refuses,
        TypeError for anything but a name or a row.
        """
        if isinstance(specification, self.row):
            return specification
        if not isinstance(specification, str):
            row = self.row.__name__
            article = "an" if row[0] in "AEIOU" else "a"
            raise TypeError(f"{self.kind}: expected a name or {article} {row}, got {type(specification).__name__}")
        unquoted = _QUOTES.sub("", specification)
        for (opening, closing), what in (("()", "parentheses"), ("{}", "braces")):
            if unquoted.count(opening) != unquoted.count(closing):
                hint = did_you_mean(specification, (*self._factories, *self._aliases))
                raise ValueError(f"{self.kind} {specification!r}: the {what} do not match{hint}")
        match = _SPECIFICATION.fullmatch(specification)
        name = match.group(1) if match else specification
        factory = self.factory(name)
        positional, keywords = _arguments(match.group(2) or "")
        try:
            inspect.signature(factory).bind(*positional, **keywords)
        except TypeError as error:
            bare = (p.replace(annotation=p.empty) for p in inspect.signature(factory).parameters.values())
            accepted = ", ".join(map(str, bare))
            raise ValueError(f"{self.kind} {specification!r}: {error} (accepted: {name}({accepted}))") from None
        row = factory(*positional, **keywords)
        if not isinstance(row, self.row):
            expected = self.row.__name__
            raise TypeError(f"{self.kind} {name!r}: its function is to give a {expected}, got {type(row).__name__}")
        return row


def _arguments(text: str) -> tuple[list, dict]:
    positional, keywords = [], {}
    for part in filter(None, map(str.strip, split(text))):
        key, equals, value = part.partition("=")
        if equals and key.strip().isidentifier():
            keywords[key.strip()] = _literal(value)
        else:
            positional.append(_literal(part))
    return positional, keywords


def split(text: str, at: str = ",") -> list[str]:
    """The parts between commas that stand in no parentheses, braces or quotes: "1, f(2, 3)" has two."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += {"(": 1, ")": -1, "{": 1, "}": -1}.get(character, 0)
        if character == at and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _literal(text: str) -> bool | int | float | str | dict | tuple:
    text = text.strip()
    if text.startswith("{"):
        return mapping(text)
    if text.startswith("(") and text.endswith(")"):
        return tuple(map(_literal, filter(None, map(str.strip, split(text[1:-1])))))
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return text.strip("'\"")


def mapping(text: str) -> dict[str, Any]:
    """What "{layer1: 0.1, others: {bias: 1, weights: 2}}" says."""
    found = {}
    for part in split(text[1:-1]) if text[1:-1].strip() else ():
        name, *rest = split(part, ":")
        name, value = _QUOTED.sub(r"\2", name.strip()), ":".join(rest)
        if not (name and value.strip()) or name in found or not text.endswith("}"):
            raise ValueError(f"expected {{name: value, ...}}, each name once, got {text}")
        found[name] = _literal(value)
    return found
