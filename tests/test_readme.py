"""README's Python runs as it stands, top to bottom; its commands are known; its links and paths exist; it is short."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from functional_nn.lab import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "scripts" / "README.md",
    ROOT / "results" / "README.md",
    *sorted((ROOT / "scripts" / "pages").rglob("*.md")),
]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_readme_examples_run(capsys):
    names = {}
    for block in blocks("python", README):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert ": agree" in printed and "third opinion" in printed and "member 7: " in printed
    assert names["params"]["layer1"]["weights"]["input"].shape == (32, 64)
    assert names["kernel"].shape == (16, 16, 10, 10)
    assert names["population"].history.training_loss.shape == (5, 12)
    assert abs(float(names["fit"].params[1]) - 1.3) < 1e-3


def test_readme_is_short():
    assert len(README.splitlines()) <= 170


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_the_command_line_takes(page, monkeypatch):
    lines = [line.partition("#")[0] for block in blocks("bash", page.read_text()) for line in block.splitlines()]
    commands = [words for line in lines for words in line.split("&&") if words.strip().startswith("functional-nn")]
    assert page.name != "command_line.md" or len(commands) >= 12
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        cli._read_words()  # exits where it does not take the words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_exists(page):
    for path in re.findall(r"`((?:scripts|functional_nn)/[\w/.]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_every_script_is_in_the_gallery():
    gallery = (ROOT / "scripts" / "README.md").read_text()
    for path in (ROOT / "scripts").glob("*.py"):
        assert path.name in gallery, path.name


def test_readme_links_to_what_exists():
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", README, flags=re.DOTALL), re.MULTILINE)
    }
    for path, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", README):
        assert (ROOT / path).exists() if path else anchor in headings, path or anchor
