"""Which hyperparameters to try, {name: (N,) array}, a row for each of N members, and which members go on.

Numbers are int64 or float64; words (the names of activations and initializers) arrays of str, truths of bool.
"""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from functional_nn import checks
from functional_nn.training import keys

_MONITORS = ("validation_loss", "validation_accuracy", "training_loss")


# Grids ----------------------------------------------------------------------------------------------------------------


def grid(**values: Any) -> dict[str, np.ndarray]:
    """Every combination of the values, the last name running fastest; a single number or word is a list of one.

    >>> grid(learning_rate=[0.1, 0.2], seed=range(2))
    {'learning_rate': array([0.1, 0.1, 0.2, 0.2]), 'seed': array([0, 1, 0, 1])}

    Raises ValueError for no names, empty or nested lists, and lists of mixed kinds.
    """
    columns = {name: _column(name, [given] if _is_single(given) else given) for name, given in values.items()}
    if not columns:
        raise ValueError("grid: expected at least one name with its values, got none")
    lengths = [column.size for column in columns.values()]
    places = np.unravel_index(np.arange(math.prod(lengths)), lengths)
    return {name: column[place] for (name, column), place in zip(columns.items(), places, strict=True)}


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """`count` numbers from low to high, each the same multiple of the one before. For grids.

    Raises ValueError unless 0 < low < high and count >= 2.
    """
    low, high = _range("log_spaced", low, high, positive=True)
    return np.geomspace(low, high, checks.integer("log_spaced", "count", count, 2)).tolist()


# Random search (Bergstra and Bengio 2012) -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Uniform:
    """Made by `uniform`."""

    low: float
    high: float

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        share = generator.random(count)
        return np.clip((1 - share) * self.low + share * self.high, self.low, self.high)


@dataclass(frozen=True)
class LogUniform:
    """Made by `log_uniform`."""

    low: float
    high: float

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        share = generator.random(count)
        drawn = np.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
        return np.clip(drawn, self.low, self.high)


@dataclass(frozen=True)
class Integers:
    """Made by `integers`."""

    low: int
    high: int

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return generator.integers(self.low, self.high, size=count, dtype=np.int64, endpoint=True)


@dataclass(frozen=True)
class LogIntegers:
    """Made by `log_integers`."""

    low: int
    high: int

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        drawn = LogUniform(self.low - 0.5, self.high + 0.5).draw(generator, count)
        return np.clip(np.rint(drawn).astype(np.int64), self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """Made by `choice`."""

    values: tuple

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return np.array(self.values)[generator.integers(len(self.values), size=count)]


_Distribution = Uniform | LogUniform | Integers | LogIntegers | Choice


def uniform(low: float, high: float) -> Uniform:
    """Numbers between low and high, all as likely. Raises ValueError unless low < high."""
    return Uniform(*_range("uniform", low, high))


def log_uniform(low: float, high: float) -> LogUniform:
    """Numbers whose logarithm is uniform, such as learning rates. Raises ValueError unless 0 < low < high."""
    return LogUniform(*_range("log_uniform", low, high, positive=True))


def integers(low: int, high: int) -> Integers:
    """Integers from low to high, both among them, all as likely. Raises ValueError unless low < high."""
    return Integers(*_integer_range("integers", low, high, -(2**63), 2**63 - 1))


def log_integers(low: int, high: int) -> LogIntegers:
    """Integers n from low to high, both among them, with probability ~ log((n + 1/2) / (n - 1/2)), nearly 1 / n.

    Raises ValueError unless 1 <= low < high <= 2^53.
    """
    return LogIntegers(*_integer_range("log_integers", low, high, 1, 2**53))


def choice(values: Any) -> Choice:
    """One of the values, all as likely. Raises ValueError as `grid`."""
    return Choice(tuple(_column("choice", values).tolist()))


def random_search(count: int, *, search_seed: int = 0, **distributions: Any) -> dict[str, np.ndarray]:
    """`count` members with every name drawn from its distribution; a number or word is the same for all members.

    A list of length `count` is taken as it is. With the same `search_seed`, the first k members are those of a search
    for k, and what a name draws does not depend on the other names.

    >>> search = random_search(32, learning_rate=log_uniform(1e-4, 1e-1), activation=choice(["tanh", "relu"]))
    >>> search["learning_rate"].shape
    (32,)

    Raises ValueError for no names, count < 1, and lists of another length.
    """
    checks.integer("random_search", "count", count, 1)
    checks.integer("random_search", "search_seed", search_seed, 0)
    if not distributions:
        raise ValueError("random_search: expected at least one name with its distribution, got none")
    columns = {}
    for name, given in distributions.items():
        if isinstance(given, _Distribution):
            columns[name] = given.draw(keys.hyperparameter(search_seed, name), count)
        elif _is_single(given):
            columns[name] = np.repeat(_column(name, [given]), count)
        else:
            columns[name] = _column(name, given)
            if columns[name].size != count:
                raise ValueError(
                    f"{name}: expected {count} values, one a member, got {columns[name].size}; choice(...) draws one"
                )
    return columns


# What is given as hyperparameters -------------------------------------------------------------------------------------


def normalized(hyperparameters: Any) -> dict[str, np.ndarray]:
    """The hyperparameters as arrays (N,), int64, float64, str or bool. Raises ValueError unless all have N >= 1."""
    if not isinstance(hyperparameters, Mapping):
        raise ValueError(f"hyperparameters: expected a dict of lists, got {type(hyperparameters).__name__}")
    if not hyperparameters:
        raise ValueError("hyperparameters: expected at least one name with its values, got none")
    columns = {}
    for name, given in hyperparameters.items():
        if not isinstance(name, str):
            raise ValueError(f"hyperparameters: expected names that are str, got {name!r}")
        columns[name] = _column(name, given)
    lengths = {name: column.size for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"hyperparameters: expected as many values for every name, but {found}")
    return columns


def members(hyperparameters: Any) -> int:
    """N, how many members there are. Raises ValueError as `normalized`."""
    return next(iter(normalized(hyperparameters).values())).size


def concatenate(*hyperparameters: Any) -> dict[str, np.ndarray]:
    """The members of several searches one after another; integers beside floats become floats.

    Raises ValueError where the names differ, or one has words in one search and numbers in another.
    """
    if not hyperparameters:
        raise ValueError("concatenate: expected at least one dict of hyperparameters, got none")
    searches = [normalized(given) for given in hyperparameters]
    for number, search in enumerate(searches):
        if search.keys() != searches[0].keys():
            raise ValueError(
                f"concatenate: expected the names {', '.join(searches[0])}, got {', '.join(search)} in dict {number}"
            )
    columns = {}
    for name in searches[0]:
        parts = [search[name] for search in searches]
        if len({part.dtype.kind == "U" for part in parts}) > 1:
            raise ValueError(f"{name}: expected either numbers or words, got both")
        columns[name] = np.concatenate(parts)
    return columns


# Successive halving (Jamieson and Talwalkar 2016) ---------------------------------------------------------------------


@dataclass(frozen=True)
class Halving:
    """Made by `successive_halving`."""

    rungs: tuple[int, ...]
    keep: float
    monitor: str

    def survivors(self, scores: Any) -> np.ndarray:
        """Which of the n members still running, by their scores, go on: the lowest max(1, floor(keep n)). Bool, (n,).

        The earlier of equals goes on. A score that is not finite does not, except the first where none is finite.
        """
        scores = np.asarray(scores, np.float64)
        if scores.ndim != 1 or scores.size == 0:
            raise ValueError(f"scores: expected shape (n,) with n >= 1, got {scores.shape}")
        finite = np.isfinite(scores)
        count = max(1, math.floor(self.keep * scores.size + 1e-9))  # 0.29 * 100 is below 29
        order = np.argsort(np.where(finite, scores, np.inf), kind="stable")
        going_on = np.zeros(scores.shape, bool)
        going_on[order[: min(count, max(1, finite.sum()))]] = True
        return going_on


def successive_halving(
    rungs: Any,
    keep: float = 1 / 3,
    monitor: Literal["validation_loss", "validation_accuracy", "training_loss"] = "validation_loss",
) -> Halving:
    """After each of the epochs `rungs`, only the best fraction `keep` of the members still running goes on.

    At least one does. Raises ValueError unless the rungs are rising integers >= 1 and keep lies between 0 and 1.
    """
    if isinstance(rungs, str) or not np.iterable(rungs):
        raise ValueError(f"successive_halving: rungs must be a list of epochs, got {rungs!r}")
    rungs = tuple(checks.integer("successive_halving", "each of rungs", rung, 1) for rung in rungs)
    if not rungs or any(later <= earlier for earlier, later in zip(rungs, rungs[1:], strict=False)):
        raise ValueError(f"successive_halving: rungs must be one or more rising epochs, got {rungs}")
    checks.one_of("successive_halving", "monitor", monitor, _MONITORS)
    return Halving(rungs, _fraction("successive_halving", keep), monitor)


def rungs_for(epochs: int, first: int, keep: float = 1 / 3) -> tuple[int, ...]:
    """Rungs below `epochs`, the first at `first`, each 1 / keep times the one before, rounded.

    >>> rungs_for(81, 1)
    (1, 3, 9, 27)

    Raises ValueError unless 1 <= first < epochs and keep lies between 0 and 1.
    """
    checks.integer("rungs_for", "first", first, 1)
    checks.integer("rungs_for", "epochs", epochs, first + 1)
    keep = _fraction("rungs_for", keep)
    rungs = [first]
    while (rung := max(round(rungs[-1] / keep), rungs[-1] + 1)) < epochs:
        rungs.append(rung)
    return tuple(rungs)


# Checks ---------------------------------------------------------------------------------------------------------------


def _is_single(given: Any) -> bool:
    return isinstance(given, str | numbers.Number) or (hasattr(given, "__array__") and np.ndim(given) == 0)


def _column(name: str, given: Any) -> np.ndarray:
    """The values of one name, of shape (N,) with N >= 1: int64, float64, str or bool."""
    if isinstance(given, _Distribution):
        raise ValueError(f"{name}: expected a list, got {given}, which random_search takes")
    if hasattr(given, "__array__"):
        shape = np.shape(given)
        given = np.asarray(given).tolist() if len(shape) == 1 else None
        if given is None:
            raise ValueError(f"{name}: expected a list, of shape (N,), got shape {shape}")
    if not isinstance(given, list | tuple | range):
        raise ValueError(f"{name}: expected a list, got {given!r}")
    items = [item.item() if hasattr(item, "item") and np.ndim(item) == 0 else item for item in given]
    if not items:
        raise ValueError(f"{name}: expected at least one value, got none")
    for item in items:
        if not isinstance(item, int | float | str):
            raise ValueError(f"{name}: expected numbers, words or truths, got {item!r}")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{name}: expected finite numbers, got {item}")
    kinds = {next((kind for kind in (str, bool) if isinstance(item, kind)), float) for item in items}
    if len(kinds) > 1:
        raise ValueError(f"{name}: expected either numbers or words or truths, got a mixture")
    (dtype,) = kinds
    if dtype is float:
        dtype = np.float64 if any(isinstance(item, float) for item in items) else np.int64
    try:
        return np.array(items, dtype)
    except OverflowError:
        raise ValueError(f"{name}: expected integers of at most 64 bits, got {max(items, key=abs)}") from None


def _range(owner: str, low: Any, high: Any, positive: bool = False) -> tuple[float, float]:
    low = float(checks.constant(owner, "low", low, np.isfinite, "a finite number"))
    high = float(checks.constant(owner, "high", high, np.isfinite, "a finite number"))
    if not low < high or (positive and low <= 0):
        raise ValueError(f"{owner}: expected {'0 < ' if positive else ''}low < high, got {low:g} and {high:g}")
    return low, high


def _integer_range(owner: str, low: Any, high: Any, least: int, most: int) -> tuple[int, int]:
    low, high = checks.integer(owner, "low", low, least), checks.integer(owner, "high", high, least)
    if not low < high <= most:
        raise ValueError(f"{owner}: expected low < high <= {most}, got {low} and {high}")
    return low, high


def _fraction(owner: str, keep: Any) -> float:
    return float(checks.constant(owner, "keep", keep, lambda v: (v > 0) & (v < 1), "between 0 and 1"))
