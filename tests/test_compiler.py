"""Compilers that are known to compute wrongly are cured before they start, or the user is warned."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn import compiler
from functional_nn.optimizers import minimize, problem_from

pytestmark = pytest.mark.newest


@pytest.fixture
def installed(monkeypatch):
    """A process with this jaxlib and these flags, in which XLA has started or not."""

    def pretend(version, flags=None, started=False, platforms=None):
        monkeypatch.setattr(compiler.metadata, "version", lambda name: version)
        monkeypatch.setattr(compiler, "_started", lambda: started)
        monkeypatch.setattr(compiler.jax, "default_backend", lambda: platforms or "cpu")
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if flags is not None:
            monkeypatch.setenv("XLA_FLAGS", flags)
        compiler.make_safe()
        return os.environ.get("XLA_FLAGS")

    return pretend


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0", "0.12.0.1"])
def test_a_wrong_compiler_gets_the_flag_and_a_log_message(installed, caplog, version):
    assert installed(version) == compiler.CURE
    (message,) = caplog.messages
    assert version in message and compiler.CURE in message


def test_existing_flags_are_kept(installed, caplog):
    assert installed("0.11.1", "--xla_dump_to=x") == f"--xla_dump_to=x {compiler.CURE}"
    caplog.clear()
    own = "--xla_cpu_experimental_ynn_fusion_type=all"
    assert installed("0.11.1", own) == own and not caplog.messages  # the user's choice, or a parent process's


@pytest.mark.parametrize("version", ["0.10.0", "0.10.1", "0.13.0"])
def test_other_compilers_are_left_unchanged(installed, caplog, version):
    """XLA stops at flags that it does not know, so that untested versions get none."""
    assert installed(version) is None and not caplog.messages


def test_where_xla_has_started_it_is_too_late(installed):
    with pytest.warns(
        compiler.CompilerWarning, match="0.12.0 computes some products wrongly .* import functional_nn fir"
    ):
        assert installed("0.12.0", started=True) is None
    assert installed("0.12.0", started=True, platforms="gpu") is None


def test_importing_does_not_start_xla_which_is_detected():
    program = (
        "import functional_nn, jax, jax.numpy as jnp; from functional_nn.compiler import _started as s;"
        "print(s(), s(), jax.config.jax_num_cpu_devices); jnp.ones(2); print(s(), len(jax.devices()))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False", "-1", "True", "1"]


@pytest.fixture
def optimized():
    """Sets whether JAX is configured for few optimizations."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    yield lambda wanted: jax.config.update(name, not wanted)
    jax.config.update(name, before)


def test_training_is_compiled_at_the_second_level_by_default(optimized, monkeypatch):
    jax.devices()  # XLA starts here, with the flags that the other tests of this process need
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    optimized(True)
    second = compiler.options("cpu")
    assert compiler.options("gpu") is None and list(second.values()) == [2]
    twice = jax.jit(lambda x: x + x, compiler_options=second)  # this XLA knows the option
    assert twice(1.5) == 3
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x --{next(iter(second))}=3")
    assert compiler.options("cpu") is None
    monkeypatch.delenv("XLA_FLAGS")
    optimized(False)
    assert compiler.options("cpu") is None


# What the compiler in use gives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 3, 8])
def test_batched_products_with_a_constant_are_numpys(width):
    """jax issue 39103. The suite imports the library before XLA starts, so that what is known to be wrong is right."""
    rows = np.linspace(-1, 1, 4096 * width, dtype=np.float32).reshape(-1, width)
    constant = np.full((width, width), 0.1, np.float32)
    found = jax.jit(jax.vmap(lambda e: jnp.sum((e @ constant) * e)))(rows)
    expected = np.sum((rows.astype(np.float64) @ constant) * rows, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["newton", "bfgs"])
def test_minimize_in_lanes_with_a_constant_matrix(method):
    """x' A x / 2 - b' x from many b at once; A, uniform but for its diagonal, is a constant of the program."""
    A = np.full((3, 3), 0.1) + np.diag([0.4, 0.9, 1.9])
    b = np.linspace(-1, 1, 64 * 3).reshape(64, 3)

    def of(b):
        problem = problem_from(lambda x: jnp.vdot(x, jnp.asarray(A) @ x) / 2 - jnp.vdot(b, x))
        return minimize(problem, method, jnp.zeros(3), steps=30, path=False).params

    np.testing.assert_allclose(jax.jit(jax.vmap(of))(b), np.linalg.solve(A, b.T).T, rtol=1e-5, atol=1e-6)
