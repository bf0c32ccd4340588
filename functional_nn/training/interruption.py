"""What stops a run between two calls of its program, where it can continue from, and how it ended, in words."""

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

STOP_REQUESTS = {"stopped": "on_chunk asked to stop", "seconds": "the time given by seconds was over"}


def stop_requested(answer: Any, late: bool) -> str | None:
    """Returns the one of `STOP_REQUESTS` that ends the run, or None. If one process is to stop, all do.

    Args:
        answer: what on_chunk returned; only True, of Python or NumPy or JAX, stops the run.
        late: whether more than the seconds given have passed.
    """
    words = (None, *STOP_REQUESTS)
    array = isinstance(answer, np.ndarray | np.generic | jax.Array) and answer.dtype == np.bool_ and answer.ndim == 0
    true = (array or isinstance(answer, bool)) and bool(answer)
    request = words.index("stopped" if true else "seconds" if late else None)
    if jax.process_count() > 1:
        request = int(multihost_utils.process_allgather(np.array(request)).max())
    return words[request]


def checkpoint_to_resume(checkpoint: Checkpoints, resume: bool) -> tuple[int, Checkpoint] | None:
    """Returns the newest checkpoint and its number, or None if the run starts from the beginning.

    Raises ValueError where a run without `resume` would overwrite checkpoints, and OSError where none can be written.
    """
    checkpoint.check()
    if resume:
        return checkpoint.newest()
    if checkpoint.numbers():
        raise ValueError(
            f"checkpoint: {str(checkpoint.folder)!r} holds checkpoints; continue from them with resume=True, or give "
            "another folder"
        )
    return None


@contextlib.contextmanager
def interruptible(catches: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside is only noted, by the function that is yielded, which then returns True. A second one interrupts.

    Python lets only the main thread handle signals. In other threads, and where `catches` is False, nothing changes.
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


def describe_end(settings: Settings, run: Run, stopped: str | None, partly: str = "") -> tuple[str, str]:
    """Returns the status of a run and its reason, in words.

    Args:
        settings: the run's.
        run: as it ended.
        stopped: the one of `STOP_REQUESTS` that stopped it, or None.
        partly: what was done beyond the last epoch, in words.
    """
    ended, epoch = int(run.ended), int(run.epoch)
    best = ""
    if run.best is not None:
        restored = int(run.best.epoch)
        best = (
            f"; parameters of epoch {restored} restored"
            if restored
            else "; no epoch had a finite score, so the last parameters are kept"
        )
    if ended == 0 and stopped is not None:
        return stopped, f"after epoch {epoch}{partly}: {STOP_REQUESTS[stopped]}{best}"
    if ended == 0:
        return "completed", f"all {epoch} epochs{best}"
    if ended == DIVERGED:
        shown = float(run.shown)
        cause = "its gradient or its result was not finite" if np.isfinite(shown) else f"its loss was {shown:g}"
        return "diverged", f"update {int(run.failed)}, in epoch {epoch}, was not made: {cause}{best}"
    if ended < 0:
        return STATUSES[-ended], f"after epoch {epoch}: {REASONS[-ended]}{best}"
    criterion = settings.stop[ended - STOPPED]
    return criterion.name, f"after epoch {epoch}: {criterion.reason}{best}"
