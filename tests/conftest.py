"""One floor for all tests: 64 bits, no silent promotion of dtypes or ranks, the same hypothesis examples every time."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
from hypothesis import HealthCheck, settings

import functional_nn  # noqa: F401 (before anything starts the compiler)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Speed is not what these examples test: an operation compiles the first time it meets a shape.
settings.register_profile(
    "functional_nn", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("functional_nn")


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
