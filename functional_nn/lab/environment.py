"""The conditions of a measurement: versions, devices, precision, and whether the installed compiler computes
correctly.
"""

import functools
import os
import platform
import sys
import warnings
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import precision
from functional_nn.compiler import CURE, CompilerWarning

__all__ = [
    "cores",
    "describe",
    "known_answers",
]

RIGHT_WITHIN = 1e-5  # relative error; known wrong results are off by more than a half


def describe() -> dict[str, str]:
    """Returns versions, device, compiler, dtype and matrix-product precision in force.

    Returns:
        {name: text}.

    Warns:
        CompilerWarning: if the compiler is found to compute wrongly.

    Example:
        >>> from functional_nn.lab import environment
        >>> sorted(environment.describe())[:3]
        ['64-bit mode', 'compiler', 'cores']
    """
    devices = jax.devices()
    return {
        "functional_nn": fnn.__version__,
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "cores": str(cores()),
        "compiler": compiler(),
        "default dtype": str(precision.default()),
        "64-bit mode": "on" if jax.config.jax_enable_x64 else "off",
        "matmul precision": str(jax.config.jax_default_matmul_precision or "default"),
    }


@functools.cache
def compiler() -> str:
    """ "right" or "WRONG", for the product that some compilers get wrong, and the flag that is set; warns if it is
    wrong.
    """
    flag = f" (XLA_FLAGS={CURE})" if CURE in os.environ.get("XLA_FLAGS", "") else ""
    if _product_error() < RIGHT_WITHIN:
        return f"right{flag}"
    warnings.warn(f"the compiler computes wrongly: {REMEDY}", CompilerWarning, stacklevel=3)
    return f"WRONG{flag}"


REMEDY = (
    f"jaxlib {metadata.version('jaxlib')} computes products wrongly that this library uses; set XLA_FLAGS={CURE} "
    "before Python starts, or install another jaxlib (0.10.1 is right), and run `functional-nn info` again"
)


def cores() -> int:
    """Returns how many CPU cores this process may use.

    Example:
        >>> from functional_nn.lab import environment
        >>> environment.cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def provenance() -> dict[str, Any]:
    """The command line that was given, and the conditions it ran under."""
    return {"command": " ".join(["functional-nn", *sys.argv[1:]]), "environment": describe()}


def known_answers() -> dict[str, float]:
    """Measures the errors of compiled programs that some jaxlib versions compile wrongly, against float64 NumPy.

    These are a batched product with a constant operand, multiplied and reduced (jax issue 39103: 0.10.2 on CPU), and
    this library's gradient of a population with constant weights, which contains it. They run in full precision, so
    that the usual rounding of accelerators is not mistaken for the error.

    Returns:
        {program: relative error}. Correct programs are below 1e-5; wrong ones are off by more than a half.

    Example:
        >>> from functional_nn.lab import environment
        >>> list(environment.known_answers())
        ['batched product with a constant', 'gradients of a population']
    """
    return {"batched product with a constant": _product_error(), "gradients of a population": _population_error()}


@precision.full
def _product_error() -> float:
    count, width = 4096, 3
    rows = np.linspace(-1, 1, count * width, dtype=np.float32).reshape(count, width)
    constant = np.full((width, width), 0.1, np.float32)
    product = jax.jit(jax.vmap(lambda e: jnp.sum((e @ constant) * e)))
    expected = np.sum((rows.astype(np.float64) @ constant.astype(np.float64)) * rows, axis=1)
    return _relative(product(rows), expected)


@precision.full
def _population_error() -> float:
    members, examples = 16, 64
    network = fnn.multilayer((5, 4, 3), ("tanh", "linear"), initializer="constant(0.1)")
    params = network.init(jax.random.key(0), jnp.float32)
    x = np.linspace(-1, 1, members * examples * 5, dtype=np.float32).reshape(members, examples, 5)
    t = np.linspace(1, -1, members * examples * 3, dtype=np.float32).reshape(members, examples, 3)
    gradient = fnn.value_and_grad(network, fnn.losses.sum_square_error())
    _, found = jax.jit(jax.vmap(gradient, in_axes=(None, 0, 0)))(params, x, t)
    w1, w2 = np.full((4, 5), np.float64(np.float32(0.1))), np.full((3, 4), np.float64(np.float32(0.1)))
    hidden = np.tanh(x @ w1.T)
    s2 = 2 * (hidden @ w2.T - t)
    s1 = (s2 @ w2) * (1 - hidden**2)
    expected = {
        ("layer1", "weights", "input"): np.swapaxes(s1, 1, 2) @ x,
        ("layer1", "bias"): s1.sum(axis=1),
        ("layer2", "weights", "layer1"): np.swapaxes(s2, 1, 2) @ hidden,
        ("layer2", "bias"): s2.sum(axis=1),
    }
    errors = []
    for path, value in expected.items():
        leaf = found
        for name in path:
            leaf = leaf[name]
        errors.append(_relative(leaf, value))
    return max(errors)


def _relative(found: Any, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))
