"""What is missing is named with what installs it, in one line; every --help shows an example."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from functional_nn import lab
from functional_nn.lab import cli, orbax

ROOT = Path(__file__).parents[2]
LAB, BENCH, DEMO = (f'pip install -e "{ROOT}[{extra}]"' for extra in ("lab", "bench", "demo"))


def without(refused: set[str], program: str):
    """What a Python does with the program where these packages are not installed."""
    hidden = f"import runpy, sys; sys.path.insert(0, 'scripts'); sys.modules.update(dict.fromkeys({refused!r}))\n"
    return subprocess.run([sys.executable, "-c", hidden + program], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("refused", "program", "said"),
    [
        ({"sklearn", "rich"}, "from functional_nn.lab.cli import main; main()", f"rich, sklearn; {LAB}"),
        ({"matplotlib"}, "runpy.run_path('scripts/sharpness.py')", f"matplotlib; {LAB}"),
        ({"scipy"}, "runpy.run_path('scripts/nist_strd.py')", f"scipy; {BENCH}"),
        (
            {"bokeh"},
            "sys.argv[1:] = ['demo']; runpy.run_module('functional_nn.lab.cli', run_name='__main__')",
            f"bokeh; {DEMO}",
        ),
    ],
)
def test_a_program_without_its_extra_says_one_line(refused, program, said):
    done = without(refused, program)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.removeprefix("functional-nn: ") == f"not installed: {said}\n"


def test_a_caller_can_catch_the_missing_extra():
    program = """
try:
    import functional_nn.lab.plots
except ImportError as error:
    print(error)
try:
    1 / 0
except ZeroDivisionError:
    raise KeyError("another error keeps its traceback")
"""
    done = without({"jinja2"}, program)
    assert done.returncode == 1 and done.stdout == f"not installed: jinja2; {LAB}\n"
    assert "Traceback" in done.stderr and "KeyError" in done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_scripts_import_optional_packages_after_require(name):
    """So that the three above stand for all; what a script does without is imported in a try."""
    source = (ROOT / "scripts" / f"{name}.py").read_text()
    found = [re.search(rf"^(?:import|from) {package}\b", source, re.MULTILINE) for package in ("matplotlib", "sklearn")]
    after = [match.start() for match in found if match]
    assert not after or source.index("from functional_nn.lab") < min(after)
    for package in ("scipy", "optax", "optimistix", "torch"):
        match = re.search(rf"^(?:import|from) {package}\b", source, re.MULTILINE)
        assert not match or "require(" in source[: match.start()], package


def test_require_names_only_what_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    lab.require("nothing", "json", "csv")
    with pytest.raises(ImportError, match=r"^not installed: no_such_package; pip install .*\[it\]"):
        lab.require("it", "json", "no_such_package")


def test_the_command_that_installs_an_extra_names_an_existing_one(monkeypatch, tmp_path):
    """The package is on no index: a checkout is, or has to be brought."""
    told = shlex.split(lab.install("lab"))
    assert told[:3] == ["pip", "install", "-e"] and Path(told[3].removesuffix("[lab]"), "pyproject.toml").is_file()
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "site-packages" / "functional_nn" / "lab" / "__init__.py"))
    assert lab.install("lab") == 'pip install ".[lab]", in a checkout of functional_nn'
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = [*(ROOT / "functional_nn").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    named = set(re.findall(r"(?:require|install)\(['\"](\w+)['\"]", "".join(path.read_text() for path in sources)))
    assert {"lab", "demo", "bench", "test", "tables", "log", "orbax"} <= named <= set(extras)
    assert not any("functional-nn[" in path.read_text() for path in sources)


def test_the_hook_is_not_set_at_a_prompt(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    before = sys.excepthook
    with pytest.raises(lab.MissingExtra):
        lab.require("it", "no_such_package")
    assert sys.excepthook is before


def test_the_smaller_extras_name_themselves(monkeypatch, tmp_path):
    """orbax here; tables and log on the command line: test_sweeps.py."""
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r'pip install -e ".*\[orbax\]"'):
        orbax.keep(tmp_path)


# Help -----------------------------------------------------------------------------------------------------------------


def said_by(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["functional-nn", *words, "--help"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    return capsys.readouterr().out


def test_every_command_shows_an_example(monkeypatch, capsys):
    everything = said_by(monkeypatch, capsys)
    assert "functional-nn train flowers.csv" in everything
    commands = re.findall(r"^\W*([a-z]+)\s{2,}[A-Z]", everything, re.MULTILINE)
    assert {"info", "train", "sweep", "compare", "evaluate", "predict"} <= set(commands)
    for command in commands:
        example = rf"Examples? \(in a shell\).*\s+functional-nn {command}\b"
        assert re.search(example, said_by(monkeypatch, capsys, command)), command


def test_the_examples_are_taken(monkeypatch):
    source = (ROOT / "functional_nn" / "lab" / "cli.py").read_text()
    examples = re.findall(r"^ +(?:Examples?: )?(functional-nn (?!sweep \.)\S.*)$", source, re.MULTILINE)
    assert len(examples) >= 10
    for example in examples:
        monkeypatch.setattr(sys, "argv", shlex.split(example))
        cli._read_words()  # exits where it does not take the words


@pytest.mark.parametrize("script", ["run", "test"])
def test_the_two_commands_show_an_example_and_set_nothing_up(script):
    done = subprocess.run([ROOT / "scripts" / script, "--help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and re.search(rf"Examples?: scripts/{script}\b", done.stdout) and not done.stderr
