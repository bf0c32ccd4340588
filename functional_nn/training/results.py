"""What a population gives: one tidy table, a row a member; histories; parameters; and a member's run alone, compared.

Letters: N members, E epochs.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_nn import checks
from functional_nn.gradients.comparison import ulp_distance
from functional_nn.networks.network import Network, Params
from functional_nn.training.loop import FitResult, fit
from functional_nn.training.members import Group, unpadded
from functional_nn.training.records import COMPLETED, DIVERGED, STOPPED, History, Run

_METRICS = ("training_loss", "training_accuracy", "gradient_norm", "validation_loss", "validation_accuracy")
OUTRANKED = -1  # `ended` of members that halving has left behind


class Drift(NamedTuple):
    """How far a member's lane is from the same training alone.

    epoch: the first whose training loss differs, None where none does; ulps (E,): floating-point numbers between the
    two losses, by epoch; params_ulps: the most between two parameters at the end; relative: ||lane - alone|| over
    ||alone||, of all parameters there; why: in words.
    """

    member: int
    epoch: int | None
    ulps: np.ndarray
    params_ulps: float
    relative: float
    why: str

    def __str__(self) -> str:
        return f"member {self.member}: {self.why}"


class Part(NamedTuple):
    """A group and what became of it: runs (N, ...), history (E, N), ended and epoch (N,), NumPy throughout."""

    group: Group
    runs: Run
    history: History
    ended: np.ndarray
    epoch: np.ndarray


@dataclass(frozen=True, repr=False)
class Population:
    """The outcome of `fit_population`.

    hyperparameters: {name: (N,)}. status (N,): "completed", "diverged", "halved", the criterion that stopped it, or
    "stopped" or "seconds", where `on_chunk` or the time was what ended the population.
    epochs (N,): how many each ran. history: as of `fit`, each array (E, N): nan, or 0 in integers, after a member's
    end. seconds: of everything, compilation included.
    """

    hyperparameters: dict[str, np.ndarray]
    status: np.ndarray
    epochs: np.ndarray
    history: History
    seconds: float
    shuffle: str
    key: Any
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{count} {name}" for name, count in zip(*np.unique(self.status, return_counts=True), strict=True)
        )
        programs = "program" if len(self.parts) == 1 else "programs"
        return f"<population of {len(self)}: {counts}; {len(self.parts)} {programs}, {self.seconds:.1f} s>"

    # A row a member

    def table(self) -> dict[str, np.ndarray]:
        """Columns (N,): member, hyperparameters, status, epochs and updates run, metrics of the last epoch, and the
        lowest validation loss with its epoch (training loss, where there is no validation data).
        """
        last = np.maximum(self.epochs - 1, 0), np.arange(len(self))
        monitor = "training_loss" if np.isnan(self.history.validation_loss).all() else "validation_loss"
        scores = getattr(self.history, monitor)
        found = np.where(np.isnan(scores), np.inf, scores)
        return {
            "member": np.arange(len(self)),
            **self.hyperparameters,
            "status": self.status,
            "epochs": self.epochs,
            "updates": self._updates(),
            **{name: getattr(self.history, name)[last] for name in _METRICS},
            f"best_{monitor}": scores[found.argmin(axis=0), np.arange(len(self))],
            "best_epoch": np.where(np.isfinite(found).any(axis=0), found.argmin(axis=0) + 1, 0),
        }

    def _updates(self) -> np.ndarray:
        updates = np.zeros(len(self), np.int64)
        for part in self.parts:
            an_epoch = part.group.make.common.plan.updates(part.group.data.examples)
            made = part.epoch * an_epoch
            failed = np.asarray(part.runs.failed)
            updates[part.group.ids] = np.where(failed > 0, failed - 1, made)
        return updates

    def best(self, monitor: str | None = None) -> int:
        """The member whose `params` are best: lowest "validation_loss" (where there is validation data) or
        "training_loss", highest "validation_accuracy", in their epoch. Raises ValueError for another word, and where
        none is finite. Members that diverged or were left behind by halving do not count.
        """
        if monitor is None:
            monitor = "training_loss" if np.isnan(self.history.validation_loss).all() else "validation_loss"
        checks.one_of("best", "monitor", monitor, ("validation_loss", "training_loss", "validation_accuracy"))
        scores = getattr(self.history, monitor)[self._reported() - 1, np.arange(len(self))].astype(np.float64)
        scores = -scores if monitor == "validation_accuracy" else scores
        judged = np.isfinite(scores) & ~np.isin(self.status, ("diverged", "halved"))
        if not judged.any():
            raise ValueError(f"best: no member has a finite {monitor.replace('_', ' ')}")
        return int(np.where(judged, scores, np.inf).argmin())

    def _reported(self) -> np.ndarray:
        """(N,), the epoch after which each member had the parameters that `params` gives: the best one, or the last."""
        epochs = np.maximum(self.epochs, 1)
        for part in self.parts:
            if part.runs.best is not None:
                best = np.asarray(part.runs.best.epoch)
                epochs[part.group.ids] = np.where(best > 0, best, epochs[part.group.ids])
        return epochs

    def to_csv(self, path: Path | str) -> None:
        """The table."""
        table = self.table()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table)
            writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))

    def save_history(self, path: Path | str) -> None:
        """Every metric's history, arrays (E, N) by name, in one compressed .npz file."""
        tracked = {f"tracked/{path}": x for path, x in checks.by_path(self.history.tracked).items()}
        np.savez_compressed(path, **{name: getattr(self.history, name) for name in ("epoch", *_METRICS)}, **tracked)

    # A member

    def _place(self, member: int) -> tuple[Part, int]:
        member = checks.integer("", "member", member, 0)
        for part in self.parts:
            found = np.flatnonzero(part.group.ids == member)
            if found.size:
                return part, int(found[0])
        raise ValueError(f"member must be 0 to {len(self) - 1}, got {member}")

    def network(self, member: int) -> Network:
        """Its own network."""
        part, place = self._place(member)
        return part.group.networks[place]

    def params(self, member: int) -> Params:
        """Its parameters, NumPy arrays: those of its best epoch where a criterion restores them, else the last."""
        part, place = self._place(member)
        best = part.runs.best
        tree = part.runs.state.params if best is None or best.epoch[place] == 0 else best.params
        return unpadded(part.group.networks[place], jax.tree.map(lambda x: x[place], tree))

    def data(self, member: int) -> tuple[Any, Any]:
        """(inputs, targets) as it was trained on: its subset, its wrong labels."""
        return self._data(member)[:2]

    def _data(self, member: int) -> tuple[Any, Any, Any]:
        """(inputs, targets, weights or None)."""
        part, place = self._place(member)
        group, axes = part.group, part.group.data.axes
        own = group.data.of(np.array([place]), group.keys, group.make.common.loss.targets == "signs")
        found = [x if axis is None else jax.tree.map(lambda x: x[0], x) for x, axis in zip(own, axes, strict=True)]
        inputs, targets, weights = found[:3]
        return (inputs if len(inputs) > 1 else next(iter(inputs.values()))), targets, weights

    def initial_params(self, member: int) -> Params:
        """What it began with."""
        part, place = self._place(member)
        params = jax.tree.map(lambda x: jnp.asarray(x[0]), part.group.initial(np.array([place])))
        return unpadded(part.group.networks[place], params)

    def solo(self, member: int) -> FitResult:
        """The same training alone, by `fit`, for as many epochs as it ran."""
        part, place = self._place(member)
        group = part.group
        fixed = {name: column[member].item() for name, column in self.hyperparameters.items()}
        choice = int(group.values["choice"][place]) if "choice" in group.values else 0
        settings = group.make({"constants": fixed, "choice": choice})
        inputs, targets, weights = self._data(member)
        held_out = group.held_out and group.held_out[:3]
        if held_out and len(held_out[0]) == 1:
            held_out = next(iter(held_out[0].values())), *held_out[1:]
        track = [name for name, _ in settings.track]
        if any(function is not None for _, function in settings.track):
            track = dict(settings.track)
        return fit(
            group.networks[place],
            settings.loss,
            settings.optimizer,
            inputs,
            targets,
            key=self.key if self.shuffle == "shared" else group.keys[place],
            epochs=max(1, int(part.epoch[place])),
            plan=settings.plan,
            validation=held_out,
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
        """Runs the member alone and says, in ulps, where that parts from its lane."""
        part, place = self._place(member)
        alone, epochs = self.solo(member), int(part.epoch[place])
        lane = part.history.training_loss[:epochs, place]
        ulps = _apart(lane, alone.history.training_loss[:epochs])
        params = jax.tree.leaves(self.params(member))
        others = [np.asarray(x) for x in jax.tree.leaves(alone.params)]
        params_ulps = max(float(_apart(a, b).max()) for a, b in zip(params, others, strict=True))

        def wide(tree):
            return np.concatenate([np.asarray(x, np.float64).ravel() for x in tree])

        size = np.linalg.norm(wide(others))
        relative = float(np.linalg.norm(wide(params) - wide(others)) / (size or 1.0))
        differs = np.flatnonzero(ulps > 0)
        epoch = int(differs[0]) + 1 if differs.size else None
        return Drift(member, epoch, ulps, params_ulps, relative, _why(epoch, ulps, params_ulps, relative))

    @classmethod
    def of(cls, hyperparameters, parts, shuffle: str, key: Any, seconds: float, unended: str) -> "Population":
        """The groups put together, members in order; `unended`: the status of those that nothing ended."""
        count = len(next(iter(hyperparameters.values())))
        status, epochs = np.full(count, "", "U32"), np.zeros(count, np.int64)
        history = _blank([part.history for part in parts], count)
        for part in parts:
            ids, stop = part.group.ids, part.group.make.common.stop
            names = {COMPLETED: unended, DIVERGED: "diverged", OUTRANKED: "halved"}
            names |= {STOPPED + i: criterion.name for i, criterion in enumerate(stop)}
            status[ids] = [names[int(ended)] for ended in part.ended]
            epochs[ids] = part.epoch
            _fill(history, part.history, ids)
        return cls(dict(hyperparameters), status, epochs, history, seconds, shuffle, key, tuple(parts))


def _named(tree: Any) -> dict[Any, Any] | None:
    """What stands in a dict or a NamedTuple by name; None for an array."""
    return tree._asdict() if hasattr(tree, "_asdict") else tree if isinstance(tree, dict) else None


def _blank(histories: list, count: int) -> Any:
    """A history with room for what any of them has, (E, count, ...): what some have not, and where others are larger,
    is nan there, or 0 of integers.
    """
    given = [each for each in histories if each is not None]
    if not given or _named(given[0]) is None:
        shape = tuple(map(max, zip(*(each.shape[2:] for each in given), strict=True)))
        blank = np.nan if given and given[0].dtype.kind not in "biu" else 0
        return np.full((len(given[0]), count, *shape), blank, given[0].dtype) if given else None
    names = dict.fromkeys(name for each in given for name in _named(each))
    found = {name: _blank([_named(each).get(name) for each in given], count) for name in names}
    return type(given[0])(**found) if hasattr(given[0], "_asdict") else found


def _fill(history: Any, of: Any, ids: np.ndarray) -> None:
    """Writes a group's history into the members' columns, (E, ids, ...)."""
    if of is None:
        return
    named = _named(of)
    if named is None:
        places = np.ix_(np.arange(len(of)), ids, *map(np.arange, of.shape[2:]))
        history[places] = of
        return
    for name, own in named.items():
        _fill(_named(history)[name], own, ids)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """ulps between the two; 0 where both are nan."""
    return np.where(np.isnan(a) & np.isnan(b), 0.0, ulp_distance(a, b))


def _why(epoch: int | None, ulps: np.ndarray, params_ulps: float, relative: float) -> str:
    if epoch is None and params_ulps == 0:
        return "bitwise what `fit` gives alone"
    began = (
        "its training losses are bitwise those of `fit` alone"
        if epoch is None
        else (f"parts from `fit` alone in epoch {epoch}, by {ulps[epoch - 1]:.0f} ulps of the training loss")
    )
    return (
        f"{began}; at the end parameters differ by {relative:.1e} relatively, one by {params_ulps:.3g} ulps. The two "
        "are the same arithmetic in another order: products of many networks at once are summed in other blocks, and "
        "constants that are traced are rounded before they are used. Each such rounding is then amplified by training "
        "itself, the more the larger the learning rate, so that nobody should expect the same bits."
    )
