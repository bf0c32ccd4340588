"""Checkpoints written by Orbax, for file systems that many hosts share: the extra `orbax`.

The same to `fit` and `fit_population` as `checkpoints.keep`, which needs nothing: one file by one process. Here Orbax's
own formats are on the disk, and its own checks in force; ours are that the leaves are those asked for.
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


def keep(folder: str | os.PathLike, last: int = 3, every: int = 1) -> "OrbaxCheckpoints":
    """As `checkpoints.keep`, a folder a checkpoint. Raises ImportError without the extra, else as that."""
    try:
        import orbax.checkpoint  # noqa: F401
    except ImportError:
        raise ImportError(f"Orbax checkpoints need their extra; {install('orbax')}") from None
    folder = Path(folder).absolute()
    return OrbaxCheckpoints(folder, checks.integer("keep", "last", last, 1), checks.integer("keep", "every", every, 1))


@dataclass(frozen=True)
class OrbaxCheckpoints(Checkpoints):
    """Made by `keep`."""

    def _manager(self):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=self.last, create=True, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self.folder, options=options)

    def numbers(self) -> tuple[int, ...]:
        """The numbers of the checkpoints that were finished, in rising order."""
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
        """The newest finished checkpoint and its number; None where there is none."""
        numbers = self.numbers()
        return (numbers[-1], self.at(numbers[-1])) if numbers else None

    def at(self, number: int) -> Checkpoint:
        """The checkpoint with that number. Raises CheckpointError where Orbax cannot read it."""
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
