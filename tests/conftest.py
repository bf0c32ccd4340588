"""Settings of all tests: 64 bits, no silent promotion of dtypes or ranks, the same hypothesis examples every time."""

import collections
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("FUNCTIONAL_NN_CACHE", "off")  # tested commands keep nothing in the user's folder

import jax
import pytest
from hypothesis import HealthCheck, settings
from sampling import fast_cases

from functional_nn import registry  # before anything starts the compiler

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# These examples do not test speed: an operation compiles the first time it meets a shape.
settings.register_profile(
    "functional_nn", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("functional_nn")


MAPS = Path("/proc/self/maps")  # where Linux lists what a process has mapped into memory


collect_ignore = ["typing"]  # read by mypy, not run


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Drops compiled programs before Linux's limit on memory mappings is reached.

    Compiled programs stay in memory, each mapped in several pieces. Linux allows a process 65530 pieces; beyond that
    XLA's compiler crashes. A program that is needed again is compiled again.
    """
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


class EverywhereInTheSuite:
    """A plugin, since fixtures of this file do not reach the doctests of the package."""

    @pytest.fixture(autouse=True)
    def names_as_they_were(self):
        """Removes the names that a test registered, since other tests go through all registered names."""
        with registry.temporarily():
            yield


def pytest_configure(config):
    config.pluginmanager.register(EverywhereInTheSuite())


@pytest.fixture(scope="module")
def brisk():
    """Compiles a module's programs, which run for milliseconds, without the optimizations that pay off over hours."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`sampled(every=n)`: about one in n of a test's cases is fast, the others are left to the slow suite."""
    cases = collections.defaultdict(list)
    for item in items:
        for mark in item.iter_markers("sampled"):
            cases[item.nodeid.partition("[")[0], mark.kwargs["every"]].append(item)
    for (_, every), sampled in cases.items():
        fast = fast_cases((item.name for item in sampled), every)
        for item in sampled:
            if item.name not in fast:
                item.add_marker("slow")
