"""Checkpoints written by Orbax, for file systems that many hosts share. Needs the extra `orbax`.

`fit` and `fit_population` use them like those of `checkpoints.keep`, which needs no extra and writes one file by one
process. Here the files are in Orbax's own formats and are checked by Orbax; functional_nn checks that the leaves are
the required ones.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from functional_nn import checks
from functional_nn.lab import install
from functional_nn.training.checkpoints import Checkpoint, CheckpointError, Checkpoints

__all__ = [
    "OrbaxCheckpoints",
    "keep",
]


def keep(folder: str | os.PathLike, last: int = 3, every: int = 1) -> "OrbaxCheckpoints":
    """Keeps checkpoints in a folder, one subfolder each, written by Orbax.

    Args:
        folder: the folder; it is made when the first checkpoint is written.
        last: how many of the newest checkpoints to keep.
        every: chunks of epochs between two checkpoints.

    Returns:
        The `OrbaxCheckpoints`, for the `checkpoint` argument of `fit` and `fit_population`.

    Raises:
        ImportError: if Orbax is not installed.
        ValueError: as `checkpoints.keep`.

    Example:
        >>> import functional_nn as fnn
        >>> from functional_nn.lab import orbax
        >>> kept = orbax.keep("/shared/run7", last=2)  # doctest: +SKIP
        >>> result = fnn.fit(network, loss, optimizer, x, t, checkpoint=kept)  # doctest: +SKIP
    """
    try:
        import orbax.checkpoint  # noqa: F401
    except ImportError:
        raise ImportError(f"Orbax checkpoints need their extra; {install('orbax')}") from None
    folder = Path(folder).absolute()
    return OrbaxCheckpoints(folder, checks.integer("keep", "last", last, 1), checks.integer("keep", "every", every, 1))


@dataclass(frozen=True)
class OrbaxCheckpoints(Checkpoints):
    """Checkpoints in a folder, written by Orbax; made by `keep`.

    Example:
        >>> from functional_nn.lab import orbax
        >>> orbax.keep("/shared/run7").numbers()  # doctest: +SKIP
        (10, 20, 30)
    """

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=self.last, create=True, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self.folder, options=options)

    def numbers(self) -> tuple[int, ...]:
        """Returns the numbers of the finished checkpoints, in rising order."""
        if not self.folder.is_dir():
            return ()
        with self._manager() as manager:
            return tuple(sorted(manager.all_steps()))

    def save(self, number: int, tree: Any, config: dict) -> None:
        """Writes the checkpoint `number`; Orbax removes all but the newest `last`."""
        import orbax.checkpoint as ocp

        leaves = {path.replace("/", "."): np.asarray(leaf) for path, leaf in checks.by_path(tree).items()}
        names = list(checks.by_path(tree))
        with self._manager() as manager:
            items = ocp.args.Composite(
                leaves=ocp.args.StandardSave(leaves),
                config=ocp.args.JsonSave({"config": json.loads(json.dumps(config)), "paths": names}),
            )
            manager.save(number, args=items, force=True)

    def newest(self) -> tuple[int, Checkpoint] | None:
        """Returns the newest finished checkpoint and its number, or None if there is none."""
        numbers = self.numbers()
        return (numbers[-1], self.at(numbers[-1])) if numbers else None

    def at(self, number: int) -> Checkpoint:
        """Returns the checkpoint with that number. Raises CheckpointError if Orbax cannot read it."""
        import orbax.checkpoint as ocp

        path = self.folder / str(number)
        try:
            with self._manager() as manager:
                items = ocp.args.Composite(leaves=ocp.args.StandardRestore(), config=ocp.args.JsonRestore())
                read = manager.restore(number, args=items)
            leaves = {name: np.asarray(read["leaves"][name.replace("/", ".")]) for name in read["config"]["paths"]}
            return Checkpoint(read["config"]["config"], leaves, path)
        except Exception as error:  # Orbax, TensorStore and JSON each raise their own
            raise CheckpointError(f"checkpoint {path}: {str(error).splitlines()[0]}") from error
