"""Every public name has a docstring with an example that runs, and types; what lacks one is seen."""

import types
from typing import NamedTuple

import public_names
import pytest

NAMES = public_names.names()


def test_every_public_module_says_what_is_public():
    assert list(public_names.without_list()) == []
    assert len(NAMES) > 300


def test_every_public_name_has_a_docstring_an_example_and_types():
    assert [line for path, held in NAMES.items() for line in public_names.lacks(path, held)] == []


def bare(x):
    pass


def untyped(x) -> None:
    """Typed but for x.

    >>> untyped(1)
    """


def without_example(x: int) -> None:
    """A docstring."""


class Record(NamedTuple):
    """A record.

    >>> Record(1).x
    1
    """

    x: int

    def method(self):
        pass


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (bare, ["no docstring", "no type of x", "no type of what it returns"]),
        (untyped, ["no type of x"]),
        (without_example, ["no example"]),
        (Record, ["no docstring", "no type of what it returns"]),
        (KeyError, []),
    ],
)
def test_what_a_name_lacks_is_seen(held, expected):
    assert [line.partition(": ")[2] for line in public_names.lacks("name", held)] == expected


def test_a_public_module_without_a_list_is_seen(monkeypatch):
    root, inner = types.ModuleType("root"), types.ModuleType("root.inner")
    root.__all__, root.inner = ["inner"], inner
    monkeypatch.setattr(public_names, "ROOTS", (root,))
    assert list(public_names.without_list()) == ["root.inner: no __all__"]
