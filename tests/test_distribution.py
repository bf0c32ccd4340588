"""What is installed: the wheel and the sdist, built here, and the wheel at work in an environment of its own."""

import email
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import functional_nn as fnn

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, **options) -> str:
    """What a command prints; the test fails, with what it said, where the command does."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = run("git", "ls-files", "functional_nn", cwd=ROOT).splitlines()
    assert held == set(listed) and "functional_nn/py.typed" in held


def test_the_wheel_says_whose_it_is_and_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = f"functional_nn-{fnn.__version__}.dist-info"
        about = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert about["Name"] == "functional-nn" and about["Version"] == fnn.__version__
    assert about["License-Expression"] == "Apache-2.0" and about["Author"] == "the functional_nn authors"
    assert about["Requires-Python"] == ">=3.11" and not about.get_all("Project-URL")
    needed = [text for text in about.get_all("Requires-Dist") if "extra ==" not in text]
    assert sorted(re.match(r"[a-z]+", text)[0] for text in needed) == ["jax", "jaxlib", "numpy"]


def test_the_sdist_has_what_is_needed_to_build_and_to_test(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    listed = run("git", "ls-files", "functional_nn", "tests", "scripts", cwd=ROOT).splitlines()
    alone = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert held == {*listed, *alone}


def test_readme_runs_from_the_wheel_in_a_clean_environment(wheel, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    program = tmp_path / "readme.py"
    where = "import functional_nn\nprint(functional_nn.__file__)\n"
    program.write_text(where + "\n".join(blocks))
    clean = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }  # the checkout is not to be seen
    printed = run(python, "-W", "error::DeprecationWarning", program, cwd=tmp_path, env=clean)
    assert Path(printed.splitlines()[0]).is_relative_to(environment)
    refused = subprocess.run([environment / "bin" / "functional-nn"], capture_output=True, text=True)
    assert refused.returncode == 2 and "[lab]" in refused.stderr
