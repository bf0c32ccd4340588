"""The laboratory: data sets, the command line, plots, reports and demonstrations around the library.

All of it needs the extra `lab`; importing any of it without raises MissingExtra.
"""

import importlib.util
import sys
from pathlib import Path


class MissingExtra(ImportError):
    """What is missing and the command that installs it, in one line."""


def install(extra: str) -> str:
    """The command that installs an extra: from the checkout that is running, or else from wherever the user has one."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f'pip install -e "{checkout}[{extra}]"'
    return f'pip install ".[{extra}]", in a checkout of functional_nn'


def require(extra: str, *modules: str) -> None:
    """Raises MissingExtra unless all `modules`, which are of the extra, are there.

    A command or script that this ends prints that line alone, and its exit status is 2.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        if not hasattr(sys, "ps1"):  # who types at a prompt stays there
            sys.excepthook = _in_one_line
        raise MissingExtra(f"not installed: {', '.join(missing)}; {install(extra)}")


def _in_one_line(kind, error, trace):
    if not isinstance(error, MissingExtra):
        return sys.__excepthook__(kind, error, trace)
    print(error, file=sys.stderr)
    raise SystemExit(2)


require("lab", "jinja2", "latex2mathml", "matplotlib", "rich", "sklearn", "tyro")
