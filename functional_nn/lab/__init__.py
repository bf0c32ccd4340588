"""The laboratory: data sets, saved runs, figures, reports and demonstrations around the library, and the command line.

Needs the extra `lab`; importing it without raises `MissingExtra`. The modules are imported when they are first used:

>>> from functional_nn import lab
>>> lab.datasets.load("iris").inputs.shape
(150, 4)
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, TracebackType

_MODULES = (
    "datasets",
    "environment",
    "equations",
    "experiments",
    "matlab",
    "measures",
    "orbax",
    "plots",
    "proben1",
    "progress",
    "report",
    "runs",
    "separability",
    "texts",
)
__all__ = [*_MODULES, "MissingExtra", "require"]


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class MissingExtra(ImportError):
    """An extra is not installed; the message is one line that names what is missing and the command to install it."""


def install(extra: str) -> str:
    """The command that installs an extra: from the running checkout, or else from the user's."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f'pip install -e "{checkout}[{extra}]"'
    return f'pip install ".[{extra}]", in a checkout of functional_nn'


def require(extra: str, *modules: str) -> None:
    """Raises MissingExtra unless all modules of an extra are installed.

    A command or script that is ended by it prints its message alone and exits with status 2.

    Args:
        extra: the extra's name, for the message.
        *modules: names of modules that the extra installs.

    Raises:
        MissingExtra: if one of them is not installed.

    Example:
        >>> from functional_nn import lab
        >>> lab.require("lab", "matplotlib")
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        if not hasattr(sys, "ps1"):  # at an interactive prompt the traceback stays
            sys.excepthook = _in_one_line
        raise MissingExtra(f"not installed: {', '.join(missing)}; {install(extra)}")


def _in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, MissingExtra):
        sys.__excepthook__(kind, error, trace)
        return
    print(error, file=sys.stderr)
    raise SystemExit(2)


require("lab", "jinja2", "latex2mathml", "matplotlib", "rich", "sklearn", "tyro")
