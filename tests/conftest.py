"""One floor for all tests: 64 bits, no silent promotion of dtypes or ranks, the same hypothesis examples every time."""

import os
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("FUNCTIONAL_NN_CACHE", "off")  # commands that are tested keep nothing in the user's folder

import jax
import pytest
from hypothesis import HealthCheck, settings

import functional_nn  # noqa: F401  (before anything starts the compiler)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Speed is not what these examples test: an operation compiles the first time it meets a shape.
settings.register_profile(
    "functional_nn", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("functional_nn")


MAPS = Path("/proc/self/maps")  # where Linux lists what a process has mapped into memory


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Programs that are compiled stay in memory, each mapped in several pieces, and of pieces Linux allows a process
    65530: one more and XLA's compiler crashes. Before that all are dropped; what is asked for again is compiled again.
    """
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def names_as_they_were():
    """What a test lists under a name of its own is gone after it: other tests go through all names there are."""
    registries = [
        module._registry
        for name, module in tuple(sys.modules.items())
        if name.startswith("functional_nn.") and hasattr(module, "_registry")
    ]
    tables = [table for registry in registries for table in (registry._factories, registry._aliases)]
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        if len(table) != len(kept):
            table.clear()
            table.update(kept)


@pytest.fixture(scope="module")
def brisk():
    """What a module compiles runs for milliseconds: a third of the compiler's time goes where it would pay in hours."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`sampled(every=n)`: of a test's cases each n-th is fast, the others are left to the slow suite."""
    met = {}
    for item in items:
        for mark in item.iter_markers("sampled"):
            case = met.setdefault(item.function, 0)
            met[item.function] += 1
            if case % mark.kwargs["every"]:
                item.add_marker("slow")
