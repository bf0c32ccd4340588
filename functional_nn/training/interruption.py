"""What stops a run between two calls of its program, what it goes on from, and how it ended, in words."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from functional_nn.optimizers.second_order import REASONS, STATUSES
from functional_nn.training.checkpoints import Checkpoint, Checkpoints
from functional_nn.training.records import DIVERGED, STOPPED, Run
from functional_nn.training.settings import Settings

STOP_REQUESTS = {"stopped": "on_chunk asked to stop", "seconds": "its time was over"}


def stop_requested(told: Any, late: bool) -> str | None:
    """The one of `STOP_REQUESTS` that ends the run, or None. If one process is to stop, all do."""
    words = (None, *STOP_REQUESTS)
    array = isinstance(told, np.ndarray | np.generic | jax.Array) and told.dtype == np.bool_ and told.ndim == 0
    true = (array or isinstance(told, bool)) and bool(told)
    asked = words.index("stopped" if true else "seconds" if late else None)
    if jax.process_count() > 1:
        asked = int(multihost_utils.process_allgather(np.array(asked)).max())
    return words[asked]


def checkpoint_to_resume(checkpoint: Checkpoints, resume: bool) -> tuple[int, Checkpoint] | None:
    """The newest checkpoint, to go on from; None where there is none. Raises ValueError where one would be lost, and
    OSError where none can be written.
    """
    checkpoint.check()
    if resume:
        return checkpoint.newest()
    if checkpoint.numbers():
        raise ValueError(
            f"checkpoint: {str(checkpoint.folder)!r} holds checkpoints; go on from them with resume=True, or give "
            "another folder"
        )
    return None


@contextlib.contextmanager
def interruptible(catches: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside is only noted, for whoever asks between chunks; a second one interrupts at once.

    Python lets only the main thread listen; elsewhere, and where `catches` is False, nothing changes.
    """
    noted = []
    if not catches or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number, frame):
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)


def describe_end(settings: Settings, run: Run, asked: str | None, further: str = "") -> tuple[str, str]:
    """further: what is done beyond the last epoch."""
    ended, epoch = int(run.ended), int(run.epoch)
    best = ""
    if run.best is not None:
        restored = int(run.best.epoch)
        best = (
            f"; parameters of epoch {restored} restored"
            if restored
            else ("; what decides which epoch is best was never finite, so that the last parameters stay")
        )
    if ended == 0 and asked is not None:
        return asked, f"after epoch {epoch}{further}: {STOP_REQUESTS[asked]}{best}"
    if ended == 0:
        return "completed", f"all {epoch} epochs{best}"
    if ended == DIVERGED:
        shown = float(run.shown)
        what = "its gradient or its result was not finite" if np.isfinite(shown) else f"its loss was {shown:g}"
        return "diverged", f"update {int(run.failed)}, in epoch {epoch}, was not made: {what}{best}"
    if ended < 0:
        return STATUSES[-ended], f"after epoch {epoch}: {REASONS[-ended]}{best}"
    criterion = settings.stop[ended - STOPPED]
    return criterion.name, f"after epoch {epoch}: {criterion.reason}{best}"
