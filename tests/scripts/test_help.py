"""Every script's --help shows its command."""

import sys

import pytest
from scripts.running import SCRIPTS, load


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_help_shows_an_example(name, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # else a script sets it, for all later tests too
    monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", "--help"])
    with pytest.raises(SystemExit) as left:
        load(name).main()
    printed = capsys.readouterr().out
    assert left.value.code == 0 and f"python scripts/{name}.py" in printed
    assert any(option in printed for option in ("--out", "--csv", "--write"))
