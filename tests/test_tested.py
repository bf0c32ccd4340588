"""The table of what was tested is made from pytest's reports, and README has it."""

import csv
import platform
import re
import sys
import tomllib
from pathlib import Path

import jax
import pytest
import tested

REPORT = '<testsuites><testsuite errors="1" failures="2" skipped="3" tests="10" time="4.6"></testsuite></testsuites>'


def test_readme_names_the_oldest_python_and_jax_that_are_supported():
    project = tomllib.loads((tested.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (jax_version,) = (text for text in project["dependencies"] if text.startswith("jax>="))
    oldest = re.search(r">=([\d.]+)", jax_version)[1]
    text = tested.README.read_text(encoding="utf-8")
    table = text[text.index("<!-- tested -->") : text.index("<!-- end of tested -->")]
    assert re.search(rf"^\| {re.escape(project['requires-python'].removeprefix('>='))}[.\d]* \| {oldest} ", table, re.M)


def test_a_row_has_versions_and_counts(tmp_path, capsys, monkeypatch):
    (tmp_path / "report.xml").write_text(REPORT)
    monkeypatch.setattr(tested, "TABLE", tmp_path / "tested.csv")
    monkeypatch.setattr(tested, "README", tmp_path / "README.md")
    tested.README.write_text("before <!-- tested -->\nold\n<!-- end of tested --> after")
    assert tested.main([f"{sys.prefix}={tmp_path / 'report.xml'}", "--write"]) == 1  # tests failed
    with tested.TABLE.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["Python"], row["jax"]) == (platform.python_version(), jax.__version__)
    assert [row[name] for name in ("passed", "skipped", "failed", "seconds")] == ["4", "3", "3", "5"]
    assert " 4 " in capsys.readouterr().out
    assert "| 4 | 3 | 3 |" in tested.README.read_text() and "old" not in tested.README.read_text()


def test_reports_that_are_not_there_are_named(capsys):
    with pytest.raises(SystemExit):
        tested.main([".venv=nowhere.xml"])
    assert "'nowhere.xml'" in capsys.readouterr().err and Path("nowhere.xml").exists() is False
