"""The results of a population: one table with one row per member, histories, parameters, and a member's run alone.

Letters: N members, E epochs.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_nn import checks
from functional_nn.gradients.comparison import ulp_distance
from functional_nn.networks.network import Inputs, Network, Params
from functional_nn.training.loop import FitResult, fit
from functional_nn.training.members import Group
from functional_nn.training.padding import unpadded
from functional_nn.training.records import COMPLETED, DIVERGED, STOPPED, History, Run

_METRICS = ("training_loss", "training_accuracy", "gradient_norm", "validation_loss", "validation_accuracy")
OUTRANKED = -1  # `ended` of members that halving has left behind


class Drift(NamedTuple):
    """How far a member of a population is from the same training alone. Returned by `Population.drift`.

    Attributes:
        member: Its number.
        epoch: The first epoch whose training loss differs, None where none does.
        ulps: (E,), the floating-point numbers between the two training losses, by epoch.
        params_ulps: The most floating-point numbers between two parameters at the end.
        relative: The norm of the difference of all parameters at the end, relative to that of the run alone.
        why: The same in words.

    Example:
        >>> import numpy as np, functional_nn as fnn
        >>> drift = fnn.training.Drift(3, None, np.zeros(5), 0.0, 0.0, "bitwise equal to `fit` alone")
        >>> print(drift)
        member 3: bitwise equal to `fit` alone
    """

    member: int
    epoch: int | None
    ulps: np.ndarray
    params_ulps: float
    relative: float
    why: str

    def __str__(self) -> str:
        return f"member {self.member}: {self.why}"


class TrainedGroup(NamedTuple):
    """A group after training, in NumPy arrays.

    Attributes:
        group: The members, N of them.
        runs: Their last states, (N, ...).
        history: (E, N).
        ended: (N,), how each ended.
        epoch: (N,), the epochs each ran.
    """

    group: Group
    runs: Run
    history: History
    ended: np.ndarray
    epoch: np.ndarray


@dataclass(frozen=True, repr=False)
class Population:
    """The trained members of a population. Returned by `fit_population`.

    Attributes:
        hyperparameters: {name: (N,)}.
        status: (N,), "completed", "diverged", "halved", the name of the criterion that stopped the member, or
            "stopped" or "seconds" where `on_chunk` or the time limit ended the population.
        epochs: (N,), the epochs each member ran.
        history: As in `FitResult`, but each array is (E, N): nan, or 0 in integers, after a member's end.
        seconds: The time taken, compilation included.
        shuffle: "shared" or "independent", as it was given.
        key: The population's key.
        groups: The members that shared a program, a `TrainedGroup` for each program.

    Example:
        >>> import jax, functional_nn as fnn
        >>> population = fnn.training.fit_population(
        ...     fnn.multilayer((2, 1), ("sigmoid",)),
        ...     "binary_cross_entropy",
        ...     "gd",
        ...     {"learning_rate": [0.1, 0.5]},
        ...     (jax.numpy.eye(2), jax.numpy.array([[0.0], [1.0]])),
        ...     key=jax.random.key(0),
        ...     epochs=2,
        ... )
        >>> len(population), len(population.groups), population.best()
        (2, 1, 1)
        >>> population.params(1)["layer1"]["weights"]["input"].shape
        (1, 2)
        >>> list(population.table())[:4]
        ['member', 'learning_rate', 'status', 'epochs']
    """

    hyperparameters: dict[str, np.ndarray]
    status: np.ndarray
    epochs: np.ndarray
    history: History
    seconds: float
    shuffle: str
    key: Any
    groups: tuple[TrainedGroup, ...]

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{count} {name}" for name, count in zip(*np.unique(self.status, return_counts=True), strict=True)
        )
        programs = "program" if len(self.groups) == 1 else "programs"
        return f"<population of {len(self)}: {counts}; {len(self.groups)} {programs}, {self.seconds:.1f} s>"

    # One row per member

    def table(self) -> dict[str, np.ndarray]:
        """Returns a table of columns (N,), one row per member.

        The columns are: member, the hyperparameters, status, epochs, updates, the metrics of the last epoch, and the
        lowest validation loss with its epoch (the training loss, where there is no validation data).
        """
        last = np.maximum(self.epochs - 1, 0), np.arange(len(self))
        monitor = self._default_monitor
        scores = getattr(self.history, monitor)
        comparable = np.where(np.isnan(scores), np.inf, scores)
        best = comparable.argmin(axis=0)
        return {
            "member": np.arange(len(self)),
            **self.hyperparameters,
            "status": self.status,
            "epochs": self.epochs,
            "updates": self._updates(),
            **{name: getattr(self.history, name)[last] for name in _METRICS},
            f"best_{monitor}": scores[best, np.arange(len(self))],
            "best_epoch": np.where(np.isfinite(comparable).any(axis=0), best + 1, 0),
        }

    @property
    def _default_monitor(self) -> str:
        return "training_loss" if np.isnan(self.history.validation_loss).all() else "validation_loss"

    def _updates(self) -> np.ndarray:
        """(N,), the updates that each member made."""
        updates = np.zeros(len(self), np.int64)
        for trained in self.groups:
            failed = np.asarray(trained.runs.failed)
            complete = trained.epoch * trained.group.updates
            updates[trained.group.members] = np.where(failed > 0, failed - 1, complete)
        return updates

    def best(self, monitor: str | None = None) -> int:
        """Returns the number of the best member.

        It is the one whose parameters, as `params` returns them, have the lowest loss or the highest accuracy. Members
        that diverged or were left behind by halving do not count.

        Args:
            monitor: "validation_loss" (the default with validation data), "training_loss" (the default without) or
                "validation_accuracy".

        Raises:
            ValueError: For another monitor, and if no member has a finite one.
        """
        monitor = self._default_monitor if monitor is None else monitor
        checks.one_of("best", "monitor", monitor, ("validation_loss", "training_loss", "validation_accuracy"))
        scores = getattr(self.history, monitor)[self._params_epoch() - 1, np.arange(len(self))].astype(np.float64)
        scores = -scores if monitor == "validation_accuracy" else scores
        judged = np.isfinite(scores) & ~np.isin(self.status, ("diverged", "halved"))
        if not judged.any():
            raise ValueError(f"best: no member has a finite {monitor.replace('_', ' ')}")
        return int(np.where(judged, scores, np.inf).argmin())

    def _params_epoch(self) -> np.ndarray:
        """(N,), the epoch after which each member had the parameters that `params` returns: the best or the last."""
        epochs = np.maximum(self.epochs, 1)
        for trained in self.groups:
            if trained.runs.best is not None:
                best, members = np.asarray(trained.runs.best.epoch), trained.group.members
                epochs[members] = np.where(best > 0, best, epochs[members])
        return epochs

    def to_csv(self, path: Path | str) -> None:
        """Writes the table to a CSV file."""
        table = self.table()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table)
            writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))

    def save_history(self, path: Path | str) -> None:
        """Writes every metric's history to a compressed .npz file: arrays (E, N) by name, tracked ones as
        "tracked/name".
        """
        tracked = {f"tracked/{path}": x for path, x in checks.by_path(self.history.tracked).items()}
        np.savez_compressed(path, **{name: getattr(self.history, name) for name in ("epoch", *_METRICS)}, **tracked)

    # A member

    def _locate(self, member: int) -> tuple[TrainedGroup, int]:
        """A member's group and its position there. Raises ValueError for a number that no member has."""
        member = checks.integer("", "member", member, 0)
        for trained in self.groups:
            positions = np.flatnonzero(trained.group.members == member)
            if positions.size:
                return trained, int(positions[0])
        raise ValueError(f"member must be 0 to {len(self) - 1}, got {member}")

    def network(self, member: int) -> Network:
        """Returns the member's network."""
        trained, position = self._locate(member)
        return trained.group.networks[position]

    def params(self, member: int) -> Params:
        """Returns the member's parameters as NumPy arrays: those of its best epoch where a criterion restores them,
        else the last.
        """
        trained, position = self._locate(member)
        best = trained.runs.best
        tree = trained.runs.state.params if best is None or best.epoch[position] == 0 else best.params
        return unpadded(trained.group.networks[position], jax.tree.map(lambda x: x[position], tree))

    def data(self, member: int) -> tuple[Any, Any]:
        """Returns (inputs, targets) as the member was trained on them: its subset, with its wrong targets."""
        inputs, targets, _ = self._data(member)
        return inputs, targets

    def _data(self, member: int) -> tuple[Inputs, Any, Any]:
        """(inputs, targets, weights or None)."""
        trained, position = self._locate(member)
        batch, axes = trained.group.data_of(np.array([position])), trained.group.data.axes
        columns = [x if axis is None else jax.tree.map(lambda x: x[0], x) for x, axis in zip(batch, axes, strict=True)]
        inputs, targets, weights = columns[:3]
        return (inputs if len(inputs) > 1 else next(iter(inputs.values()))), targets, weights

    def initial_params(self, member: int) -> Params:
        """Returns the member's parameters before the first update."""
        trained, position = self._locate(member)
        params = jax.tree.map(lambda x: jnp.asarray(x[0]), trained.group.initial(np.array([position])))
        return unpadded(trained.group.networks[position], params)

    def solo(self, member: int) -> FitResult:
        """Runs the member's training alone, by `fit`, for as many epochs as it ran, and returns the result."""
        trained, position = self._locate(member)
        group = trained.group
        constants = {name: column[member].item() for name, column in self.hyperparameters.items()}
        choice = int(group.values["choice"][position]) if "choice" in group.values else 0
        settings = group.make_settings({"constants": constants, "choice": choice})
        inputs, targets, weights = self._data(member)
        validation = group.held_out and group.held_out[:3]
        if validation and len(validation[0]) == 1:
            validation = next(iter(validation[0].values())), *validation[1:]
        track = [name for name, _ in settings.track]
        if any(function is not None for _, function in settings.track):
            track = dict(settings.track)
        return fit(
            group.networks[position],
            settings.loss,
            settings.optimizer,
            inputs,
            targets,
            key=self.key if self.shuffle == "shared" else group.keys[position],
            epochs=max(1, int(trained.epoch[position])),
            plan=settings.plan,
            validation=validation,
            params=self.initial_params(member),
            weights=weights,
            regularizer=settings.regularizer,
            stop=settings.stop,
            gradient=settings.gradient,
            correct=settings.correct,
            track=track,
            augment=dict(settings.augment),
        )

    def drift(self, member: int) -> Drift:
        """Runs the member alone and returns, in floating-point numbers, how far the two runs differ."""
        trained, position = self._locate(member)
        alone, epochs = self.solo(member), int(trained.epoch[position])
        ulps = _ulps_apart(trained.history.training_loss[:epochs, position], alone.history.training_loss[:epochs])
        params = jax.tree.leaves(self.params(member))
        others = [np.asarray(x) for x in jax.tree.leaves(alone.params)]
        params_ulps = max(float(_ulps_apart(a, b).max()) for a, b in zip(params, others, strict=True))

        def wide(tree):
            return np.concatenate([np.asarray(x, np.float64).ravel() for x in tree])

        size = np.linalg.norm(wide(others))
        relative = float(np.linalg.norm(wide(params) - wide(others)) / (size or 1.0))
        differs = np.flatnonzero(ulps > 0)
        epoch = int(differs[0]) + 1 if differs.size else None
        return Drift(
            member=member,
            epoch=epoch,
            ulps=ulps,
            params_ulps=params_ulps,
            relative=relative,
            why=_drift_in_words(epoch, ulps, params_ulps, relative),
        )

    @classmethod
    def from_groups(
        cls,
        hyperparameters: Mapping[str, np.ndarray],
        groups: Sequence[TrainedGroup],
        *,
        shuffle: str,
        key: Any,
        seconds: float,
        unended: str,
    ) -> "Population":
        """Puts the groups together, with the members in order. unended: the status of members that nothing ended."""
        count = len(next(iter(hyperparameters.values())))
        status, epochs = np.full(count, "", "U32"), np.zeros(count, np.int64)
        history = _empty([trained.history for trained in groups], count)
        for trained in groups:
            members, stop = trained.group.members, trained.group.common.stop
            names = {COMPLETED: unended, DIVERGED: "diverged", OUTRANKED: "halved"}
            names |= {STOPPED + i: criterion.name for i, criterion in enumerate(stop)}
            status[members] = [names[int(ended)] for ended in trained.ended]
            epochs[members] = trained.epoch
            _write_columns(history, trained.history, members)
        return cls(
            hyperparameters=dict(hyperparameters),
            status=status,
            epochs=epochs,
            history=history,
            seconds=seconds,
            shuffle=shuffle,
            key=key,
            groups=tuple(groups),
        )


# The histories of all groups in one -----------------------------------------------------------------------------------


def _children(tree: Any) -> dict[Any, Any] | None:
    """The children of a dict or NamedTuple by name; None for an array."""
    return tree._asdict() if hasattr(tree, "_asdict") else tree if isinstance(tree, dict) else None


def _empty(histories: list, count: int) -> Any:
    """A history (E, count, ...) with room for every column that any of them has, as large as in any: nan, or 0 in
    integers.
    """
    present = [each for each in histories if each is not None]
    if not present:
        return None
    if _children(present[0]) is None:
        shape = tuple(map(max, zip(*(each.shape[2:] for each in present), strict=True)))
        no_value = 0 if present[0].dtype.kind in "biu" else np.nan
        return np.full((len(present[0]), count, *shape), no_value, present[0].dtype)
    names = dict.fromkeys(name for each in present for name in _children(each))
    columns = {name: _empty([_children(each).get(name) for each in present], count) for name in names}
    return type(present[0])(**columns) if hasattr(present[0], "_asdict") else columns


def _write_columns(history: Any, group_history: Any, members: np.ndarray) -> None:
    """Writes a group's history into the columns of its members, (E, members, ...)."""
    if group_history is None:
        return
    children = _children(group_history)
    if children is None:
        places = np.ix_(np.arange(len(group_history)), members, *map(np.arange, group_history.shape[2:]))
        history[places] = group_history
        return
    for name, child in children.items():
        _write_columns(_children(history)[name], child, members)


# Drift ----------------------------------------------------------------------------------------------------------------


def _ulps_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """ulps between the two; 0 where both are nan."""
    return np.where(np.isnan(a) & np.isnan(b), 0.0, ulp_distance(a, b))


def _drift_in_words(epoch: int | None, ulps: np.ndarray, params_ulps: float, relative: float) -> str:
    if epoch is None and params_ulps == 0:
        return "bitwise equal to `fit` alone"
    losses = (
        "its training losses are bitwise those of `fit` alone"
        if epoch is None
        else (f"differs from `fit` alone since epoch {epoch}, by {ulps[epoch - 1]:.0f} ulps of the training loss there")
    )
    return (
        f"{losses}; at the end the parameters differ by {relative:.1e} relatively, and one of them by "
        f"{params_ulps:.3g} ulps. Both runs do the same arithmetic in another order: products of many networks at once "
        "are summed in other blocks, and traced constants are rounded before they are used. Training amplifies each "
        "such rounding, the more the larger the learning rate is, so equal bits cannot be expected."
    )
