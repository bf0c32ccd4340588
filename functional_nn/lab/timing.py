"""Timing several ways to do the same thing against each other, fairly on a machine that is not always equally fast."""

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import jax

__all__ = ["median_ratio", "timed_in_turns"]

Name = TypeVar("Name", bound=Hashable)


def timed_in_turns(
    calls: Mapping[Name, Callable[[int], Any]],
    rounds: int,
    *,
    loops: int | Mapping[Name, int] = 1,
    back_and_forth: bool = False,
    rest: float = 0.0,
    slow: float = math.inf,
    advance: Callable[[Name], Any] | None = None,
) -> dict[Name, list[float]]:
    """Times calls in turns and returns the seconds of one call, {name: one number for each round}.

    In every round each call has one turn, so that a machine that becomes slower for a while slows all of them. Compare
    them by `median_ratio`. The clock stops when the last result of a turn is computed. Compilation is not left out:
    make every call once before.

    Args:
        calls: {name: call}. A call is given a number, another one each time, which may serve as a seed: 1, 2, ...
        rounds: How many turns each call has.
        loops: How many calls there are in one turn, or that by name; see `loops_for`.
        back_and_forth: Every second round goes through the calls in reverse.
        rest: Seconds to sleep before each turn.
        slow: A call whose turns have taken that many seconds together has no more of them.
        advance: Is called with the name after each turn.

    Returns:
        {name: seconds}, with `rounds` numbers each, fewer where a call was `slow`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functional_nn.lab.timing import median_ratio, timed_in_turns
        >>> x = jnp.ones((64, 64))
        >>> calls = {"matmul": lambda _: x @ x, "add": lambda _: x + x}
        >>> seconds = timed_in_turns(calls, rounds=3, loops={"matmul": 2, "add": 4})
        >>> [len(each) for each in seconds.values()], median_ratio(seconds["add"], seconds["matmul"]) > 0
        ([3, 3], True)
    """
    loops = dict.fromkeys(calls, loops) if isinstance(loops, int) else loops
    most = max(loops.values())
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in reversed(list(calls)) if back_and_forth and number % 2 else list(calls):
            if loops[name] * sum(seconds[name]) >= slow:
                continue
            if rest:
                time.sleep(rest)
            began, first, result = time.perf_counter(), 1 + number * most, None
            for seed in range(first, first + loops[name]):
                result = calls[name](seed)
            jax.block_until_ready(result)
            seconds[name].append((time.perf_counter() - began) / loops[name])
            if advance is not None:
                advance(name)
    return seconds


def loops_for(call: Callable[[int], Any], turn: float, most: int = 50) -> int:
    """Returns how often a compiled call is repeated so that it takes `turn` seconds: 1 to `most` times."""
    began = time.perf_counter()
    jax.block_until_ready(call(0))
    return min(most, max(1, int(turn / (time.perf_counter() - began))))


def median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Returns the median, over the rounds, of the ratio of two results of `timed_in_turns`.

    Rounds in which only one of the two took part are left out.

    Example:
        >>> from functional_nn.lab.timing import median_ratio
        >>> median_ratio([1.0, 4.0, 3.0], [2.0, 4.0, 2.0])
        1.0
    """
    return median(a / b for a, b in zip(seconds, reference, strict=False))
