"""Numbers for TensorBoard, written while training runs. Needs the extra `log` (tensorboardX)."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from functional_nn.lab import install
from functional_nn.training.logs import Row

__all__ = ["TensorBoard", "tensorboard"]


class TensorBoard:
    """A sink for `fit(log=...)` that writes TensorBoard events. Made by `tensorboard`.

    Example:
        >>> from functional_nn.lab import events
        >>> events.TensorBoard.__name__
        'TensorBoard'
    """

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(f"writing for TensorBoard needs tensorboardX; {install('log')}") from None
        self.folder = folder
        self._make = SummaryWriter
        self._writer: Any = None

    def __repr__(self) -> str:
        return f"<TensorBoard in {self.folder}>"

    def resume(self, rows: Sequence[Row]) -> None:
        """Hides what was written for epochs after the checkpoint.

        Args:
            rows: of all epochs before the checkpoint.
        """
        self.close()
        self._writer = self._make(str(self.folder), purge_step=len(rows) + 1)

    def __call__(self, rows: Sequence[Row]) -> None:
        """Writes the finite numbers of each row at the step of its epoch.

        Args:
            rows: of the new epochs.
        """
        self.write((row["epoch"], {name: x for name, x in row.items() if name != "epoch"}) for row in rows)

    def write(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Writes the finite numbers of rows.

        Args:
            rows: (step, {name: number}).
        """
        if self._writer is None:
            self._writer = self._make(str(self.folder))
        for step, numbers in rows:
            for name, value in numbers.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file of events."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def tensorboard(folder: str | os.PathLike[str]) -> TensorBoard:
    """Writes the rows of `fit(log=...)` to a folder that TensorBoard reads.

    The folder is made when the first rows come, so that a run that is refused leaves nothing behind. A run that
    continues with `resume=True` hides the numbers written after its checkpoint.

    Args:
        folder: where the events are written.

    Returns:
        A sink.

    Raises:
        ImportError: without the extra `log`.

    Example:
        >>> import importlib.util, tempfile, jax, numpy as np, functional_nn as fnn
        >>> from functional_nn.lab import events
        >>> network, data = fnn.multilayer((2, 1), ("linear",)), (np.eye(2), np.ones((2, 1)))
        >>> def train(folder):
        ...     settings = {"key": jax.random.key(0), "epochs": 3, "log": events.tensorboard(folder)}
        ...     return fnn.fit(network, "mean_square_error", "gd(0.1)", *data, **settings)
        >>> if importlib.util.find_spec("tensorboardX"):
        ...     with tempfile.TemporaryDirectory() as folder:
        ...         result = train(folder)
    """
    return TensorBoard(Path(folder))


@contextlib.contextmanager
def scalars(folder: Path | None) -> Iterator[Callable[[Iterable[tuple[int, Mapping[str, float]]]], None]]:
    """Yields a function that writes rows of (step, {name: number}); it does nothing without a folder.

    Raises ImportError without the extra `log`.
    """
    if folder is None:
        yield lambda rows: None
        return
    with contextlib.closing(tensorboard(folder)) as sink:
        yield sink.write
