"""A live progress bar on a terminal; nothing is shown if the output is a file or a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = [
    "Advance",
    "progress",
]


class Advance(Protocol):
    """A function that is called with how far the work is, and a short text to show.

    Example:
        >>> from functional_nn.lab.progress import progress
        >>> with progress("training", 10) as advance:
        ...     advance(3, "loss 0.2")
    """

    def __call__(self, done: int, text: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Shows a bar with the remaining time on standard error; it disappears when the work is done.

    Args:
        title: what is done.
        total: how many steps it takes.

    Returns:
        A context manager that yields the function to call after each step, `Advance`.

    Example:
        >>> from functional_nn.lab.progress import progress
        >>> with progress("training", 2) as advance:
        ...     for epoch in range(2):
        ...         advance(epoch + 1, f"epoch {epoch + 1}")
    """
    if not sys.stderr.isatty():
        yield lambda done, text="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    # Output is redirected past the bar only if both are on the terminal; a file gets it unchanged.
    console, both = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=both) as bar:
        task = bar.add_task(title, total=total, text="")
        yield lambda done, text="": bar.update(task, completed=done, text=text)
