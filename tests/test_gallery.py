"""scripts/README.md is a gallery of the scripts: each has one entry, and what an entry links to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GALLERY = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^### (\w+)\.py\n(.*?)(?=^###? |\Z)", GALLERY, re.MULTILINE | re.DOTALL))
SCRIPTS = {path.stem for path in (ROOT / "scripts").glob("*.py")}


def test_each_script_has_one_entry():
    assert sorted(re.findall(r"^### (\w+)\.py$", GALLERY, re.MULTILINE)) == sorted(SCRIPTS)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_has_a_line_of_words_and_the_command(name):
    words, command = re.fullmatch(
        r"\n(.+?)\n\n```bash\n(.+?)\n```\n(?:\n!\[[^\]]+\]\(.+?\)\n)?\n*", ENTRIES[name], re.S
    ).groups()
    assert words[0].isupper() and command.split()[:2] == ["python", f"scripts/{name}.py"] and "\n" not in command


@pytest.mark.parametrize("name", ENTRIES)
def test_a_script_that_draws_shows_its_picture(name):
    drawn = (ROOT / "results" / f"{name}.png").exists()
    assert not drawn or f"](../results/{name}.png)" in ENTRIES[name]


def test_what_the_gallery_links_to_exists():
    for link in re.findall(r"\]\(([^)#]+)\)", GALLERY):
        assert (ROOT / "scripts" / link).exists(), link


def test_the_gallery_links_to_its_own_sections():
    sections = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", GALLERY, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", GALLERY)) == sections
