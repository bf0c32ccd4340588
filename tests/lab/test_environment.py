"""What a number was measured on is told, a wrong compiler is caught, and progress shows on terminals only."""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn.lab import environment
from functional_nn.lab.progress import progress


def test_describe_tells_where_and_how():
    found = environment.describe()
    assert {"functional_nn", "jax", "jaxlib", "numpy", "python", "device", "cores"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["jax"] == jax.__version__ and found["functional_nn"] == fnn.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and int(found["cores"]) >= 1
    assert found["default dtype"] == "float64" and found["64-bit mode"] == "on"
    assert found["matmul precision"] == "default"


def test_describe_follows_the_settings():
    jax.config.update("jax_enable_x64", False)
    try:
        with jax.default_matmul_precision("highest"):
            found = environment.describe()
    finally:
        jax.config.update("jax_enable_x64", True)
    assert (found["default dtype"], found["64-bit mode"], found["matmul precision"]) == ("float32", "off", "highest")


def test_known_answers_are_known():
    found = environment.known_answers()
    assert len(found) == 2 and all(0 <= error < 1e-6 for error in found.values())


@pytest.mark.parametrize("factor", [1 + 1e-4, 0.0, -1.0, 2.0, np.nan])
def test_a_wrong_program_is_caught(monkeypatch, factor):
    """Both answers move as far as the programs' results are off: nothing in the check hides it."""
    vmap = jax.vmap

    def wrong_vmap(function, *args, **kwargs):
        return vmap(lambda *x: jax.tree.map(lambda y: y * jnp.asarray(factor, y.dtype), function(*x)), *args, **kwargs)

    monkeypatch.setattr(environment.jax, "vmap", wrong_vmap)
    found = environment.known_answers()
    for error in found.values():
        assert not error < 1e-5  # the command line's question, which nan does not pass either
        assert np.isnan(factor) or error == pytest.approx(abs(factor - 1), rel=1e-2)


@pytest.mark.parametrize("path", [("layer1", "bias"), ("layer1", "weights", "input"), ("layer2", "weights", "layer1")])
def test_one_wrong_gradient_among_right_ones_is_caught(monkeypatch, path):
    original = fnn.value_and_grad

    def wrong(network, loss):
        def gradient(*args):
            value, grads = original(network, loss)(*args)
            place = grads
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = place[path[-1]] * jnp.asarray(1.01, place[path[-1]].dtype)
            return value, grads

        return gradient

    monkeypatch.setattr(environment.fnn, "value_and_grad", wrong)
    assert environment.known_answers()["gradients of a population"] == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(
    ("found", "expected", "relative"),
    [([3.0, 4.0], [3.0, 4.0], 0), ([3.0, 4.5], [3.0, 4.0], 0.1), ([0, 0], [3, 4], 1), ([-3, -4], [3, 4], 2)],
)
def test_relative(found, expected, relative):
    assert environment._relative(jnp.asarray(found), np.array(expected)) == pytest.approx(relative)


# Progress -------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stdout", [io.StringIO, Terminal])
@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
def test_progress_shows_on_terminals_only(monkeypatch, stdout, stderr):
    out, err = stdout(), stderr()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with progress("a long title", 3) as advance:
        advance(1)
        advance(3, "loss 0.25")
        print("a result")
    if stderr is io.StringIO:
        assert err.getvalue() == "" and out.getvalue() == "a result\n"
    else:
        assert "a long title" in err.getvalue() and "loss 0.25" in err.getvalue() and "3/3" in err.getvalue()
        assert "a result" in (err if stdout is Terminal else out).getvalue() or "a result" in out.getvalue()
        assert "a long title" not in out.getvalue()
    assert sys.stdout is out and sys.stderr is err


@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_progress_lets_errors_through(monkeypatch, stderr, error):
    monkeypatch.setattr(sys, "stderr", stderr())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(error), progress("title", 1):
        raise error


def test_known_answers_use_full_precision():
    """As an accelerator's are by default; a CPU refuses TF32, so that every product of it would be seen."""
    with jax.default_matmul_precision("TF32_TF32_F32"):
        with pytest.raises(ValueError, match="not supported by dot_general on CPU"):
            jax.jit(jnp.matmul)(jnp.eye(2), jnp.eye(2))
        errors = environment.known_answers()
    assert max(errors.values()) < environment.RIGHT_WITHIN
