"""Compilers known to compute wrongly, what is done about it as the library is imported, and how hard they are to try.

From jaxlib 0.10.2 on, XLA's CPU compiler fuses some batched products with a constant operand into programs that give
other numbers, off by two thirds or by 1e27 (jax issues 39103, 39257, 40412). A flag keeps each product by itself, which
cures it at no loss of speed that was seen. XLA reads its flags once, as it starts, when JAX first computes something.
"""

import logging
import os
import warnings
from importlib import metadata

import jax

# each tried on a CPU; 0.10.0 and 0.10.1 are right
_WRONG = ("0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1")
_OPTION = "--xla_cpu_experimental_ynn_fusion_type"
CURE = f"{_OPTION}=individual_dot"
_LEVEL = "xla_backend_optimization_level"


class CompilerWarning(UserWarning):
    """The installed compiler computes wrongly, and nothing could be done about it."""


def make_safe() -> None:
    """Sets the flag for this process and those it starts, where the compiler needs it; a word on standard error.

    Where XLA has started already, it is too late: a CompilerWarning says so. Nothing is done for versions not known to
    be wrong, since XLA stops at a flag that it does not know; nor where the user has set the same flag, or left CPUs
    out.
    """
    version = metadata.version("jaxlib")
    flags = os.environ.get("XLA_FLAGS", "")
    platforms = jax.config.jax_platforms
    if version not in _WRONG or _OPTION in flags or (platforms and "cpu" not in platforms):
        return
    if not _started():
        os.environ["XLA_FLAGS"] = f"{flags} {CURE}".strip()
        logging.getLogger("functional_nn").warning(
            f"jaxlib {version} computes some products wrongly on CPU; XLA_FLAGS={CURE}, set for this process, cures it"
        )
    elif jax.default_backend() == "cpu":
        warnings.warn(
            f"jaxlib {version} computes some products wrongly on CPU, and JAX had computed something before "
            f"functional_nn was imported; import functional_nn first, or set XLA_FLAGS={CURE}",
            CompilerWarning,
            stacklevel=3,
        )


def options(platform: str) -> dict[str, int] | None:
    """`jax.jit`'s compiler_options for a program of training, on that platform.

    Of what XLA has LLVM do by default on a CPU a quarter of the time is for the third level, by which such programs run
    no faster than by the second. None where the user has set the level, or has asked for next to no optimizations.
    """
    told = _LEVEL in os.environ.get("XLA_FLAGS", "") or jax.config.values["jax_disable_most_optimizations"]
    return {_LEVEL: 2} if platform == "cpu" and not told else None


def _started() -> bool:
    """Has XLA read its flags? Then JAX refuses another number of devices, which is asked for only to be told so."""
    devices = jax.config.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", max(devices, 0) + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", devices)
    return False
