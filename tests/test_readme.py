"""The README's Python runs as it stands, top to bottom; its six tasks each alone, their commands in a shell."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from functional_nn.lab import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TASKS = README[README.index("## Six tasks") : README.index("## Add your own")]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_readme_examples_run(capsys):
    names = {}
    for block in blocks("python", README.replace(TASKS, "")):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "agree None" in printed and "third opinion" in printed
    assert names["params"]["layer1"]["weights"]["input"].shape == (32, 64)
    assert names["graph"].output.name == "output"
    assert names["population"].history.training_loss.shape == (5, 12) and "member 7: " in printed
    assert names["result"].status in printed
    assert "log_cosh: agree" in printed and "absolute sums: True" in printed and "sign descent: True" in printed
    assert names["tracked"].history.tracked["absolute_sums"].shape == (3, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the table that the tasks make for themselves."""
    folder = tmp_path_factory.mktemp("tasks")
    in_a_shell(blocks("bash", TASKS)[0], folder)
    assert len((folder / "flowers.csv").read_text().splitlines()) == 151
    return folder


def in_a_shell(commands: str, folder: Path) -> str:
    """What they say, in a shell where the environment is active; every command must end well."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shutil.which("bash"), "-euc", commands],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SAID = {
    "Train on your own CSV": "held out: loss",
    "Check the gradient of an activation of your own": "agree",
    "Get the norm of every example's gradient": "[",
    "Fit a curve by Levenberg-Marquardt": "converged",
}
TASK = {task.partition("\n")[0]: task for task in TASKS.split("\n### ")[1:]}


@pytest.mark.parametrize("name", SAID)
def test_a_task_in_python_stands_alone(name, folder, monkeypatch, capsys):
    (block,) = blocks("python", TASK[name])
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), {})
    assert SAID[name] in capsys.readouterr().out


@pytest.mark.slow
def test_a_csv_is_trained_on_from_the_shell(folder):
    (commands,) = blocks("bash", TASK["Train on your own CSV"])
    assert "held out" in in_a_shell(commands, folder)
    assert (folder / "runs" / "flowers" / "report.html").exists()
    assert len((folder / "predictions.csv").read_text().splitlines()) == 151


@pytest.mark.slow
def test_rates_are_swept_from_the_shell(folder):
    (commands,) = blocks("bash", TASK["Sweep learning rates"])
    assert "learning_rate" in in_a_shell(commands, folder)
    assert len((folder / "runs" / "flowers-sweep" / "results.csv").read_text().splitlines()) == 1 + 7 * 4


@pytest.mark.slow
def test_a_convolutional_network_is_trained_from_the_shell(folder):
    (commands,) = blocks("bash", TASK["Train a convolutional network on pictures"])
    assert "held out" in in_a_shell(commands, folder)
    assert "conv1" in (folder / "runs" / "digits" / "report.html").read_text()


def test_every_command_is_one_that_the_command_line_takes(monkeypatch):
    lines = [line.partition("#")[0] for block in blocks("bash", README) for line in block.splitlines()]
    commands = [words for line in lines for words in line.split("&&") if words.strip().startswith("functional-nn")]
    assert len(commands) >= 12
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        cli._read_words()  # exits where it does not take the words


def test_six_tasks_of_at_most_fifteen_lines():
    assert set(TASK) == {*SAID, "Sweep learning rates", "Train a convolutional network on pictures"}
    for name, task in TASK.items():
        for block in blocks("python", task) + blocks("bash", task):
            assert len([line for line in block.splitlines() if line.strip()]) <= 15, name


def test_readme_names_what_exists():
    named = re.findall(r"`((?:scripts|functional_nn)/[\w/.]+)`", README)
    for path in named + re.findall(r"\]\((results/[^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_readme_links_to_its_own_sections():
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", README, flags=re.DOTALL), re.MULTILINE)
    }
    for link in re.findall(r"\]\(#([^)]+)\)", README):
        assert link in headings, link
