"""Registries: names that users type (`"tanh"`, `"maxout(3)"`, `"cross_entropy"`), and the rows they stand for."""

import contextlib
import difflib
import inspect
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

from functional_nn.rows import Constants, FrozenMapping, _make, cached

__all__ = [
    "FrozenMapping",
    "Registry",
    "_make",  # pickles of earlier versions find it and FrozenMapping here
    "did_you_mean",
    "mapping",
    "split",
    "temporarily",
    "unknown",
]

Row = TypeVar("Row")

_QUOTES = re.compile(r"'[^']*'|\"[^\"]*\"")
_QUOTED = re.compile(r"(['\"])(.*)\1")  # a name that is more than a word
_SPECIFICATION = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*")


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """Returns the hint "; did you mean 'relu'?", or "" if no accepted name is close."""
    nearest = difflib.get_close_matches(given, list(accepted), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def unknown(kind: str, given: str, accepted: Iterable[str]) -> str:
    """Returns the one-line message for a name that is not registered, with the closest name that is."""
    accepted = sorted(accepted)
    return f"unknown {kind} {given!r}{did_you_mean(given, accepted)} (accepted: {', '.join(accepted)})"


class Registry(Generic[Row]):
    """Factories by name: `get("leaky_relu(0.1)")` calls the factory `leaky_relu` with 0.1.

    Args:
        kind: the field's word for what is registered ("activation"), with which every message begins.
        row: the type of what the factories return.

    Example:
        >>> from functional_nn.registry import Registry
        >>> powers = Registry("power", float)
        >>> @powers.register
        ... def square(x: float = 2.0) -> float:
        ...     return x**2
        >>> powers.get("square(3.0)"), powers.names()
        (9.0, ('square',))
    """

    _all: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self, kind: str, row: type[Row]) -> None:
        self.kind, self.row = kind, row
        self._factories: dict[str, Callable[..., Row]] = {}
        self._aliases: dict[str, str] = {}
        Registry._all.add(self)

    def add(self, name: str, factory: Callable[..., Row], aliases: tuple[str, ...] = ()) -> None:
        """Registers `factory` under `name` and `aliases`.

        Args:
            name: an identifier.
            factory: a function that returns a row.
            aliases: further names for it.

        Raises:
            ValueError: a name is taken or is not an identifier.
        """
        for new in (name, *aliases):
            if new in self._factories or new in self._aliases:
                raise ValueError(f"{self.kind} {new!r} is already registered; choose another name")
            if not new.isidentifier():
                raise ValueError(f"{self.kind} name {new!r} is not an identifier")
        self._factories[name] = factory
        self._aliases.update(dict.fromkeys(aliases, name))

    def register(self, factory: Callable[Constants, Row]) -> Callable[Constants, Row]:
        """Registers a factory under its own name. A decorator.

        Args:
            factory: a function that returns a row.

        Returns:
            The factory, its results cached: equal constants return the same row, so that a program which was compiled
            for it is used again.

        Raises:
            ValueError: the name is taken.

        Example:
            >>> from functional_nn import registry, training
            >>> with registry.temporarily():  # so that this example leaves no name behind
            ...     @training.termination.register
            ...     def low(threshold: float = 0.1):
            ...         return training.loss_below(threshold)
            ...     "low" in training.termination.names()
            True
        """
        same = cached(factory)
        self.add(factory.__name__, same)
        return same

    @contextlib.contextmanager
    def temporarily(self) -> Iterator[None]:
        """A context after which the registry is as it was: names registered inside are removed.

        Example:
            >>> from functional_nn.registry import Registry
            >>> numbers = Registry("number", float)
            >>> with numbers.temporarily():
            ...     numbers.add("half", lambda: 0.5)
            >>> numbers.names()
            ()
        """
        before = dict(self._factories), dict(self._aliases)
        try:
            yield
        finally:
            self._factories, self._aliases = before

    def names(self) -> tuple[str, ...]:
        """Returns the registered names in the order in which they were added, without aliases.

        Example:
            >>> from functional_nn import training
            >>> "early_stopping" in training.termination.names()
            True
        """
        return tuple(self._factories)

    def knows(self, specification: str | Row) -> bool:
        """Returns True for a row, and for text that begins with a registered name.

        Example:
            >>> from functional_nn import training
            >>> [training.termination.knows(text) for text in ("early_stopping(patience=5)", "early")]
            [True, False]
        """
        if not isinstance(specification, str):
            return isinstance(specification, self.row)
        name = specification.partition("(")[0].strip()
        return name in self._factories or name in self._aliases

    def factory(self, name: str) -> Callable[..., Row]:
        """Returns the factory registered under a bare name or alias.

        Raises:
            ValueError: the name is unknown; the message suggests the closest one.
        """
        name = self._aliases.get(name, name)
        if name not in self._factories:
            raise ValueError(unknown(self.kind, name, (*self._factories, *self._aliases)))
        return self._factories[name]

    def get(self, specification: str | Row) -> Row:
        """Returns the row that a name stands for.

        Args:
            specification: a name, or a name with arguments such as `maxout(3)`. Arguments are numbers, true and false,
                words, names with arguments, tuples such as in `conv((3, 3))`, and mappings such as in
                `gd({layer1: 0.1, others: 0.01})`. A row is returned unchanged.

        Raises:
            ValueError: the name is unknown, or the factory refuses the arguments. The message suggests the closest
                name, or lists the factory's arguments.
            TypeError: neither a name nor a row.

        Example:
            >>> from functional_nn import training
            >>> training.termination.get("early_stopping(patience=5)").name
            'early_stopping'
        """
        if isinstance(specification, self.row):
            return specification
        if not isinstance(specification, str):
            expected = self.row.__name__
            article = "an" if expected[0] in "AEIOU" else "a"
            raise TypeError(f"{self.kind}: expected a name or {article} {expected}, got {type(specification).__name__}")
        unquoted = _QUOTES.sub("", specification)
        for (opening, closing), what in (("()", "parentheses"), ("{}", "braces")):
            if unquoted.count(opening) != unquoted.count(closing):
                hint = did_you_mean(specification, (*self._factories, *self._aliases))
                raise ValueError(f"{self.kind} {specification!r}: the {what} do not match{hint}")
        match = _SPECIFICATION.fullmatch(specification)
        name = match.group(1) if match else specification
        factory = self.factory(name)
        positional, keywords = _arguments((match.group(2) if match else "") or "")
        try:
            inspect.signature(factory).bind(*positional, **keywords)
        except TypeError as error:
            bare = (p.replace(annotation=p.empty) for p in inspect.signature(factory).parameters.values())
            accepted = ", ".join(map(str, bare))
            raise ValueError(f"{self.kind} {specification!r}: {error} (accepted: {name}({accepted}))") from None
        row = factory(*positional, **keywords)
        if not isinstance(row, self.row):
            raise TypeError(
                f"{self.kind} {name!r}: its function must return a {self.row.__name__}, got {type(row).__name__}"
            )
        return row


@contextlib.contextmanager
def temporarily() -> Iterator[None]:
    """A context after which all registries are as they were: names registered inside are removed.

    Example:
        >>> import functional_nn as fnn
        >>> from functional_nn import registry
        >>> cubic = fnn.activations.elementwise("cubic", lambda n: n**3, lambda n, a: 3 * n**2)
        >>> with registry.temporarily():
        ...     cubic = fnn.activations.register(cubic)
        ...     "cubic" in fnn.activations.names()
        True
        >>> "cubic" in fnn.activations.names()
        False
    """
    with contextlib.ExitStack() as stack:
        for each in tuple(Registry._all):
            stack.enter_context(each.temporarily())
        yield


# The arguments in a specification -------------------------------------------------------------------------------------


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    positional, keywords = [], {}
    for argument in filter(None, map(str.strip, split(text))):
        key, equals, value = argument.partition("=")
        if equals and key.strip().isidentifier():
            keywords[key.strip()] = _literal(value)
        else:
            positional.append(_literal(argument))
    return positional, keywords


def split(text: str, at: str = ",") -> list[str]:
    """Splits text at commas outside parentheses, braces and quotes: "1, f(2, 3)" has two pieces."""
    pieces, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += {"(": 1, ")": -1, "{": 1, "}": -1}.get(character, 0)
        if character == at and depth == 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


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
    """Returns the mapping that text such as "{layer1: 0.1, others: {bias: 1, weights: 2}}" describes.

    Raises:
        ValueError: the text is not of this form, or a name occurs twice.
    """
    entries: dict[str, Any] = {}
    for entry in split(text[1:-1]) if text[1:-1].strip() else ():
        name, *rest = split(entry, ":")
        name, value = _QUOTED.sub(r"\2", name.strip()), ":".join(rest)
        if not (name and value.strip()) or name in entries or not text.endswith("}"):
            raise ValueError(f"expected {{name: value, ...}}, each name once, got {text}")
        entries[name] = _literal(value)
    return entries
