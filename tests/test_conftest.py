"""What conftest does to tests.

`sampled(every=n)` keeps the same cases fast when others are added, and at least one of each test; names that a test
registers are gone after it.
"""

import pytest
from sampling import fast_cases

from functional_nn import activations
from functional_nn.registry import Registry, temporarily

NAMES = [f"test_law[{number}-relu]" for number in range(200)]


def test_about_one_in_n_cases_is_fast():
    assert 30 < len(fast_cases(NAMES, 5)) < 50
    assert fast_cases(NAMES, 1) == set(NAMES)


def test_a_new_case_changes_no_other():
    fast = fast_cases(NAMES, 5)
    assert fast_cases(NAMES[::-1], 5) == fast
    assert fast_cases([*NAMES, "test_law[new]"], 5) - {"test_law[new]"} == fast
    assert fast_cases(NAMES[50:], 5) == fast - set(NAMES[:50])


def test_each_test_keeps_a_fast_case():
    for every in (1, 2, 101, 10**6):
        assert fast_cases(NAMES[:3], every)


class Case:
    """What the hook reads of a pytest item."""

    def __init__(self, test, case, every):
        self.name, self.nodeid = f"{test}[{case}]", f"tests/test_x.py::{test}[{case}]"
        self.marks, self.added = {"sampled": [type("Mark", (), {"kwargs": {"every": every}})]} if every else {}, []

    def iter_markers(self, name):
        return self.marks.get(name, [])

    def add_marker(self, name):
        self.added.append(name)


def test_the_hook_marks_the_other_cases_slow(pytestconfig):
    items = [Case(test, case, every) for test, every in (("a", 3), ("b", 50), ("c", None)) for case in range(9)]
    (conftest,) = (p for p in pytestconfig.pluginmanager.get_plugins() if hasattr(p, "room_for_programs"))
    conftest.pytest_collection_modifyitems(items)
    fast = [item.name for item in items if not item.added]
    for test, every in (("a", 3), ("b", 50)):
        names = [item.name for item in items if item.name.startswith(test)]
        assert {name for name in fast if name.startswith(test)} == fast_cases(names, every)
    assert sum(name.startswith("c") for name in fast) == 9


REGISTERED = "only_in_this_test"


@pytest.mark.parametrize("time", ["first", "again"])
def test_names_are_gone_after_the_test_that_registers_them(time):
    assert REGISTERED not in activations.names()
    activations.register(activations.elementwise(REGISTERED, lambda n: n, lambda n, a: n))
    assert REGISTERED in activations.names()


def test_a_registry_restores_itself_after_an_error():
    numbers = Registry("number", float)
    numbers.add("one", lambda: 1.0, aliases=("unit",))
    with pytest.raises(KeyError), temporarily():
        numbers.add("two", lambda: 2.0, aliases=("pair",))
        assert numbers.get("pair") == 2
        raise KeyError
    assert numbers.names() == ("one",) and numbers.knows("unit") and not numbers.knows("pair")
