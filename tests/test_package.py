"""What the package promises as a whole: floors, the public face, a quiet import, and 32-bit mode."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import functional_nn as fnn

PACKAGE = Path(fnn.__file__).parent
FLOORS = ("networks", "gradients", "optimizers", "training", "lab")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_down_never_up(floor):
    above = FLOORS[FLOORS.index(floor) + 1 :]
    for path in (PACKAGE / floor).glob("*.py"):
        for name in imported(path):
            assert not any(name.startswith(f"functional_nn.{higher}") for higher in above), (path, name)


def test_optimizers_do_not_know_gradients():
    for path in (PACKAGE / "optimizers").glob("*.py"):
        assert not any(name.startswith("functional_nn.gradients") for name in imported(path)), path


def test_the_core_imports_only_its_own_dependencies():
    allowed = {"jax", "numpy", "chex", "functional_nn", *sys.stdlib_module_names}
    for path in PACKAGE.rglob("*.py"):
        if "lab" not in path.parts:
            assert {name.split(".")[0] for name in imported(path)} <= allowed, path


def test_the_public_face_is_whole():
    for name in fnn.__all__:
        assert getattr(fnn, name) is not None
        assert name in ("comparison", "activations") or getattr(fnn, name).__doc__


def test_import_computes_nothing_and_needs_no_extra():
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tyro", "rich", "matplotlib", "sklearn", "jinja2", "optax", "scipy", "torch"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import jax
import jax._src.xla_bridge as bridge
import functional_nn
assert not bridge.backends_are_initialized(), "importing ran a JAX computation"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_command_line_names_its_extra():
    program = "import sys; sys.modules['tyro'] = None; import functional_nn.lab.cli"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2 and re.fullmatch(r'not installed: tyro; pip install -e ".*\[lab\]"\n', done.stderr)


def test_everything_works_in_32_bits():
    with jax.enable_x64(False):
        network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        params = network.init(jax.random.key(0))
        x, t = jnp.ones((6, 3)), fnn.one_hot(jnp.arange(6) % 2, 2)
        assert params["layer1"]["bias"].dtype == jnp.float32
        agreement = fnn.compare(network, fnn.losses.cross_entropy(), params, x, t, jit=False)
        assert agreement.verdict == "agree" and agreement.dtype == "float32"
        result = fnn.fit(
            network, fnn.losses.cross_entropy(), fnn.optimizers.adam(), x, t, key=jax.random.key(0), epochs=2
        )
        assert result.history.training_loss.dtype == jnp.float32
        with pytest.raises(ValueError, match="float64 needs 64-bit mode, which is off"):
            network.init(jax.random.key(0), jnp.float64)
    assert jax.config.jax_enable_x64
