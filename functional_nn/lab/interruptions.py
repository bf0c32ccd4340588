"""Training that may be interrupted: its checkpoints lie beside its folder, hidden, until that is written."""

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
    """Checkpoints of `what`, such as "sweep", in .NAME.checkpoints beside its folder `out`, gone when all went well;
    and whether there are some to go on from.

    every: chunks of epochs between two of them. Those that are there already are what `resume` goes on from; without
    it, `replace` begins anew, and they go only when the first new one is written. Raises ValueError where neither is
    given, and KeyboardInterrupt that says how to go on, where there is something to go on from.
    """
    own = folder = out.with_name(f".{out.name}.checkpoints")
    if jax.process_count() > 1:
        own = folder / f"process{jax.process_index()}"  # where `fit_population` then keeps them
    kept, aside = checkpoints.keep(own, last=2), own.with_name(f"{own.name}-old")
    if kept.numbers() and not resume:
        if not replace:
            raise ValueError(
                f"{str(own)!r} holds checkpoints of a {what} that was interrupted; go on with --resume, or begin anew "
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
            f"interrupted; saved after epoch {done[-1]}: the same command with --resume goes on from there"
        ) from None
    finally:
        if aside.exists() and not kept.numbers():
            shutil.rmtree(own, ignore_errors=True)
            aside.rename(own)
        shutil.rmtree(aside, ignore_errors=True)
        if not kept.numbers():
            with contextlib.suppress(OSError):  # it is not there, or holds something else
                own.rmdir()
    shutil.rmtree(own, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process' are still there
        folder.rmdir()
