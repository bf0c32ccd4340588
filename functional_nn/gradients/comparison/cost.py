"""What a callable costs: seconds to trace, to compile and to run, FLOPs and temporary memory."""

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax

from functional_nn.gradients.comparison.records import Cost


def measure_costs(
    callables: dict[str, Callable[..., Any]], *args: Any, repeats: int = 7, inner_seconds: float = 0.02
) -> tuple[Cost, ...]:
    """Measures what each of several callables costs on the same arguments.

    Tracing and running are timed in turns, so that a change of the machine's speed affects all callables alike.

    Args:
        callables: The functions by name; each is compiled by `jax.jit`.
        *args: Their arguments.
        repeats: Times are medians over so many repetitions.
        inner_seconds: Seconds that one repetition runs each program for, at least.

    Returns:
        One `Cost` for each callable, in their order.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> costs = fnn.comparison.measure_costs({"sine": jnp.sin}, jnp.ones(4), repeats=1, inner_seconds=1e-4)
        >>> [cost.name for cost in costs]
        ['sine']
    """
    programs, compile_seconds = {}, {}
    trace_times: dict[str, list[float]] = {name: [] for name in callables}
    run_times: dict[str, list[float]] = {name: [] for name in callables}

    def trace(f):
        return jax.jit(lambda *a: f(*a)).trace(*args)  # a new function each time: nothing is remembered

    for name, f in callables.items():
        lowered = trace(f).lower()
        began = time.perf_counter()
        programs[name] = lowered.compile()
        compile_seconds[name] = time.perf_counter() - began
    began = time.perf_counter()
    jax.block_until_ready([program(*args) for program in programs.values()])
    loops = max(1, int(inner_seconds * len(programs) / (time.perf_counter() - began)))

    def in_turns(times, measure):
        for repeat in range(repeats):
            for name in list(callables) if repeat % 2 else reversed(callables):
                began = time.perf_counter()
                measure(name)
                times[name].append(time.perf_counter() - began)

    def run(name):
        for _ in range(loops):
            result = programs[name](*args)
        jax.block_until_ready(result)

    in_turns(trace_times, lambda name: trace(callables[name]))
    in_turns(run_times, run)

    def cost(name):
        analysis, memory = programs[name].cost_analysis() or {}, programs[name].memory_analysis()
        temporary = getattr(memory, "temp_size_in_bytes", 0)
        flops = float(analysis.get("flops", math.nan))
        return Cost(
            name, median(trace_times[name]), compile_seconds[name], median(run_times[name]) / loops, flops, temporary
        )

    return tuple(cost(name) for name in callables)
