"""One floor for all tests: 64 bits, no silent promotion of dtypes or ranks, the same hypothesis examples every time."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
from hypothesis import HealthCheck, settings

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Speed is not what these examples test: an operation compiles the first time it meets a shape.
settings.register_profile(
    "functional_nn", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("functional_nn")
