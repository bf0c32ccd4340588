"""Compilers that are known to compute wrongly, the cure, which is applied at import, and the optimization level.

From jaxlib 0.10.2 on, XLA's CPU compiler fuses some batched products with a constant operand into programs that return
wrong numbers, off by two thirds or by 1e27 (jax issues 39103, 39257, 40412). A flag keeps each product separate, which
cures it without a loss of speed that was measured. XLA reads its flags once, when JAX first computes something.
"""

import logging
import os
import warnings
from importlib import metadata

import jax

# each tried on a CPU; 0.10.0 and 0.10.1 are correct
_WRONG = ("0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1")
_OPTION = "--xla_cpu_experimental_ynn_fusion_type"
CURE = f"{_OPTION}=individual_dot"
_LEVEL = "xla_backend_optimization_level"


class CompilerWarning(UserWarning):
    """The installed compiler computes wrongly, and it was too late to prevent it."""


def make_safe() -> None:
    """Sets the flag for this process and those it starts, if the compiler needs it, and logs that.

    If XLA has started already, it is too late, and a CompilerWarning says so. Nothing is done for versions not known to
    be wrong, since XLA stops at a flag that it does not know; nor if the user has set the same flag, or excluded CPUs.
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
    """Returns `jax.jit`'s compiler_options for a training program on that platform.

    By default a quarter of the time that XLA spends on a CPU with LLVM is for the third optimization level, with which
    such programs run no faster than with the second. None if the user has set the level, or has asked for few
    optimizations.
    """
    chosen = _LEVEL in os.environ.get("XLA_FLAGS", "") or jax.config.values["jax_disable_most_optimizations"]
    return {_LEVEL: 2} if platform == "cpu" and not chosen else None


def _started() -> bool:
    """Returns True if XLA has read its flags. JAX then refuses another number of devices, which is how this finds
    out.
    """
    devices = jax.config.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", max(devices, 0) + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", devices)
    return False
