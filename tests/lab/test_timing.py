"""Calls that are timed against each other take turns, each with its own numbers, and are compared round by round."""

import time

import pytest

from functional_nn.lab import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock.pass_` moves."""

    class Clock:
        now = 0.0

        def pass_(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(time, "sleep", clock.pass_)
    return clock


def test_every_call_has_one_turn_in_every_round(clock):
    order = []

    def call(name, seconds):
        return lambda number: (order.append((name, number)), clock.pass_(seconds))

    seconds = timing.timed_in_turns({"a": call("a", 2.0), "b": call("b", 3.0)}, 2, loops={"a": 1, "b": 2}, rest=10.0)
    assert order == [("a", 1), ("b", 1), ("b", 2), ("a", 3), ("b", 3), ("b", 4)]
    assert seconds == {"a": [2.0, 2.0], "b": [3.0, 3.0]}


def test_every_second_round_may_go_back(clock):
    order = []
    calls = {name: lambda _, name=name: order.append(name) for name in "abc"}
    timing.timed_in_turns(calls, 3, back_and_forth=True, advance=lambda name: order.append(name.upper()))
    assert "".join(order) == "aAbBcC" + "cCbBaA" + "aAbBcC"


def test_a_slow_call_has_fewer_turns_and_at_least_one(clock):
    calls = {
        "slow": lambda _: clock.pass_(9.0),
        "middle": lambda _: clock.pass_(3.0),
        "quick": lambda _: clock.pass_(1.0),
    }
    seconds = timing.timed_in_turns(calls, 5, slow=6.0)
    assert {name: len(own) for name, own in seconds.items()} == {"slow": 1, "middle": 2, "quick": 5}
    assert timing.median_ratio(seconds["slow"], seconds["quick"]) == 9.0


@pytest.mark.parametrize(("seconds", "loops"), [(0.001, 20), (0.03, 3), (5.0, 1)])
def test_a_short_call_is_repeated_until_a_turn_is_long_enough(clock, seconds, loops):
    assert timing.loops_for(lambda _: clock.pass_(seconds), turn=0.1, most=20) == loops
