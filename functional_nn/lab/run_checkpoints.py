"""Checkpoints of a run in progress, in a hidden folder next to the run's folder until that is written."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from functional_nn.training import checkpoints


@contextlib.contextmanager
def checkpointed(
    out: Path, replace: bool, resume: bool, what: str, every: int = 1
) -> Iterator[tuple[checkpoints.Checkpoints, bool]]:
    """Yields the checkpoints of `what`, such as "sweep", and whether there are some to resume from.

    They are in .NAME.checkpoints, next to the folder `out`, and are deleted when all went well. `resume` continues from
    those that exist. Without it, `replace` starts again: the old ones are deleted when the first new one is written.

    every: chunks of epochs between two checkpoints. Raises ValueError if there are checkpoints and neither option is
    given, and KeyboardInterrupt with the way to continue if there is something to continue from.
    """
    own = folder = out.with_name(f".{out.name}.checkpoints")
    if jax.process_count() > 1:
        own = folder / f"process{jax.process_index()}"  # where `fit_population` keeps this process' checkpoints
    kept, aside = checkpoints.keep(own, last=2), own.with_name(f"{own.name}-old")
    if kept.numbers() and not resume:
        if not replace:
            raise ValueError(
                f"{str(own)!r} holds checkpoints of an interrupted {what}; continue it with --resume, or start again "
                "with --replace"
            )
        own.rename(aside)
    try:
        yield checkpoints.keep(folder, last=2, every=every), bool(kept.numbers())
    except KeyboardInterrupt:
        done = kept.numbers()
        if not done:
            raise
        raise KeyboardInterrupt(
            f"interrupted; saved after epoch {done[-1]}: the same command with --resume continues from there"
        ) from None
    finally:
        if aside.exists() and not kept.numbers():
            shutil.rmtree(own, ignore_errors=True)
            aside.rename(own)
        shutil.rmtree(aside, ignore_errors=True)
        if not kept.numbers():
            with contextlib.suppress(OSError):  # it does not exist, or holds something else
                own.rmdir()
    shutil.rmtree(own, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process' checkpoints are still in it
        folder.rmdir()
