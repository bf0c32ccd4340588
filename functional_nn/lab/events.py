"""Numbers for TensorBoard, while they come in."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from functional_nn.lab import install


@contextlib.contextmanager
def scalars(folder: Path | None) -> Iterator[Callable[[Iterable[tuple[int, Mapping[str, float]]]], None]]:
    """A function that writes rows of (step, {name: number}); of nothing, without a folder.

    The folder is made with the first row, so that a command that is refused leaves nothing. Raises ImportError without
    the extra `log`.
    """
    if folder is None:
        yield lambda rows: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ImportError(f"--log-dir needs tensorboardX; {install('log')}") from None
    made = []

    def write(rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        if not made:
            made.append(SummaryWriter(str(folder)))
        for step, numbers in rows:
            for name, value in numbers.items():
                made[0].add_scalar(name, value, step)
        made[0].flush()

    try:
        yield write
    finally:
        for writer in made:
            writer.close()
