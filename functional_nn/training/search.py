"""Searches: which hyperparameters to try, and which members of a population continue.

Hyperparameters are {name: array (N,)}, a row for each of N members. Numbers are int64 or float64. Words, such as the
names of activations and initializers, are arrays of str, and truth values arrays of bool.
"""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from functional_nn import checks
from functional_nn.training import keys

__all__ = [
    "Choice",
    "Halving",
    "Integers",
    "LogIntegers",
    "LogUniform",
    "Uniform",
    "choice",
    "concatenate",
    "grid",
    "integers",
    "log_integers",
    "log_spaced",
    "log_uniform",
    "members",
    "normalized",
    "random_search",
    "rungs_for",
    "successive_halving",
    "uniform",
]

_MONITORS = ("validation_loss", "validation_accuracy", "training_loss")


# Grids ----------------------------------------------------------------------------------------------------------------


def grid(**values: Any) -> dict[str, np.ndarray]:
    """Returns every combination of the values, with the last name varying fastest.

    Args:
        **values: For each name a list or array of numbers, words or truth values. A single value is a list of one.

    Returns:
        {name: array (N,)}, N the product of the lengths.

    Raises:
        ValueError: For no names, for empty or nested lists, and for lists of mixed kinds.

    Example:
        >>> from functional_nn.training import search
        >>> search.grid(learning_rate=[0.1, 0.2], seed=range(2))
        {'learning_rate': array([0.1, 0.1, 0.2, 0.2]), 'seed': array([0, 1, 0, 1])}
    """
    columns = {name: _column(name, [value] if _is_single(value) else value) for name, value in values.items()}
    if not columns:
        raise ValueError("grid: expected at least one name with its values, got none")
    lengths = [column.size for column in columns.values()]
    places = np.unravel_index(np.arange(math.prod(lengths)), lengths)
    return {name: column[place] for (name, column), place in zip(columns.items(), places, strict=True)}


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """Returns numbers from low to high of which each is the same multiple of the one before, for grids.

    Args:
        low: The first number, > 0.
        high: The last number, > low.
        count: How many numbers, >= 2.

    Raises:
        ValueError: Unless 0 < low < high and count >= 2.

    Example:
        >>> from functional_nn.training import search
        >>> [round(rate, 6) for rate in search.log_spaced(1e-3, 10, 5)]
        [0.001, 0.01, 0.1, 1.0, 10.0]
    """
    low, high = _range("log_spaced", low, high, positive=True)
    return np.geomspace(low, high, checks.integer("log_spaced", "count", count, 2)).tolist()


# Random search (Bergstra and Bengio 2012) -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Uniform:
    """The uniform distribution between low and high. Returned by `uniform`.

    Attributes:
        low: The lowest value.
        high: The highest value.

    Example:
        >>> from functional_nn.training import search
        >>> search.uniform(0, 1)
        Uniform(low=0.0, high=1.0)
    """

    low: float
    high: float

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Returns `count` values (count,)."""
        share = generator.random(count)
        return np.clip((1 - share) * self.low + share * self.high, self.low, self.high)


@dataclass(frozen=True)
class LogUniform:
    """The distribution of numbers whose logarithm is uniform. Returned by `log_uniform`.

    Attributes:
        low: The lowest value.
        high: The highest value.

    Example:
        >>> from functional_nn.training import search
        >>> search.log_uniform(0.001, 1)
        LogUniform(low=0.001, high=1.0)
    """

    low: float
    high: float

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Returns `count` values (count,)."""
        share = generator.random(count)
        drawn = np.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
        return np.clip(drawn, self.low, self.high)


@dataclass(frozen=True)
class Integers:
    """The uniform distribution of the integers from low to high, both included. Returned by `integers`.

    Attributes:
        low: The lowest value.
        high: The highest value.

    Example:
        >>> from functional_nn.training import search
        >>> search.integers(2, 5)
        Integers(low=2, high=5)
    """

    low: int
    high: int

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Returns `count` values (count,)."""
        return generator.integers(self.low, self.high, size=count, dtype=np.int64, endpoint=True)


@dataclass(frozen=True)
class LogIntegers:
    """The distribution of integers that favours small ones. Returned by `log_integers`.

    Attributes:
        low: The lowest value.
        high: The highest value.

    Example:
        >>> from functional_nn.training import search
        >>> search.log_integers(1, 64)
        LogIntegers(low=1, high=64)
    """

    low: int
    high: int

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Returns `count` values (count,)."""
        drawn = LogUniform(self.low - 0.5, self.high + 0.5).draw(generator, count)
        return np.clip(np.rint(drawn).astype(np.int64), self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """The distribution in which all of several values are equally likely. Returned by `choice`.

    Attributes:
        values: The values.

    Example:
        >>> from functional_nn.training import search
        >>> search.choice(["tanh", "relu"])
        Choice(values=('tanh', 'relu'))
    """

    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Returns `count` values (count,)."""
        return np.array(self.values)[generator.integers(len(self.values), size=count)]


_Distribution = Uniform | LogUniform | Integers | LogIntegers | Choice


def uniform(low: float, high: float) -> Uniform:
    """Returns the distribution of numbers between low and high that are all equally likely, for `random_search`.

    Args:
        low: The lowest number.
        high: The highest number.

    Raises:
        ValueError: Unless low < high, both finite.

    Example:
        >>> from functional_nn.training import search
        >>> momentum = search.random_search(100, momentum=search.uniform(0.5, 0.9))["momentum"]
        >>> bool((momentum >= 0.5).all() and (momentum <= 0.9).all())
        True
    """
    return Uniform(*_range("uniform", low, high))


def log_uniform(low: float, high: float) -> LogUniform:
    """Returns the distribution of numbers whose logarithm is uniform, such as learning rates, for `random_search`.

    Args:
        low: The lowest number, > 0.
        high: The highest number.

    Raises:
        ValueError: Unless 0 < low < high, both finite.

    Example:
        >>> from functional_nn.training import search
        >>> rates = search.random_search(100, rate=search.log_uniform(1e-4, 1e-1))["rate"]
        >>> bool((rates >= 1e-4).all() and (rates <= 1e-1).all())
        True
    """
    return LogUniform(*_range("log_uniform", low, high, positive=True))


def integers(low: int, high: int) -> Integers:
    """Returns the distribution of the integers from low to high that are all equally likely, for `random_search`.

    Args:
        low: The lowest integer, included.
        high: The highest integer, included.

    Raises:
        ValueError: Unless low < high, both of 64 bits.

    Example:
        >>> from functional_nn.training import search
        >>> depths = search.random_search(100, depth=search.integers(1, 4))["depth"]
        >>> sorted(set(depths.tolist()))
        [1, 2, 3, 4]
    """
    return Integers(*_integer_range("integers", low, high, -(2**63), 2**63 - 1))


def log_integers(low: int, high: int) -> LogIntegers:
    """Returns the distribution of integers from low to high whose logarithm is nearly uniform, for `random_search`.

    The integer n has a probability proportional to log((n + 1/2) / (n - 1/2)), nearly 1 / n.

    Args:
        low: The lowest integer, included, >= 1.
        high: The highest integer, included, at most 2^53.

    Raises:
        ValueError: Unless 1 <= low < high <= 2^53.

    Example:
        >>> from functional_nn.training import search
        >>> widths = search.random_search(100, width=search.log_integers(4, 256))["width"]
        >>> int(widths.min()) >= 4 and int(widths.max()) <= 256
        True
    """
    return LogIntegers(*_integer_range("log_integers", low, high, 1, 2**53))


def choice(values: Any) -> Choice:
    """Returns the distribution in which all of the values are equally likely, for `random_search`.

    Args:
        values: A list or array of numbers, words or truth values.

    Raises:
        ValueError: For an empty or nested list, and for values of mixed kinds.

    Example:
        >>> from functional_nn.training import search
        >>> names = search.random_search(50, activation=search.choice(["relu", "tanh"]))["activation"]
        >>> sorted(set(names.tolist()))
        ['relu', 'tanh']
    """
    return Choice(tuple(_column("choice", values).tolist()))


def random_search(count: int, *, search_seed: int = 0, **distributions: Any) -> dict[str, np.ndarray]:
    """Returns hyperparameters drawn at random, each name from its own distribution.

    With the same `search_seed`, the first k members are those of a search with `count` k, and the values of a name do
    not depend on the other names.

    Args:
        count: The number of members, N.
        search_seed: The seed of the draws, 0 by default.
        **distributions: For each name a distribution (`uniform`, `log_uniform`, `integers`, `log_integers` or
            `choice`), a number or word for all members, or a list of N values.

    Returns:
        {name: array (N,)}.

    Raises:
        ValueError: For no names, for `count` < 1, and for lists of another length.

    References:
        Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization.

    Example:
        >>> from functional_nn.training import search
        >>> rates = search.log_uniform(1e-4, 1e-1)
        >>> members = search.random_search(32, learning_rate=rates, activation=search.choice(["tanh", "relu"]))
        >>> members["learning_rate"].shape
        (32,)
    """
    checks.integer("random_search", "count", count, 1)
    checks.integer("random_search", "search_seed", search_seed, 0)
    if not distributions:
        raise ValueError("random_search: expected at least one name with its distribution, got none")
    columns = {}
    for name, values in distributions.items():
        if isinstance(values, _Distribution):
            columns[name] = values.draw(keys.hyperparameter(search_seed, name), count)
        elif _is_single(values):
            columns[name] = np.repeat(_column(name, [values]), count)
        else:
            columns[name] = _column(name, values)
            if columns[name].size != count:
                raise ValueError(
                    f"{name}: expected {count} values, one a member, got {columns[name].size}; choice(...) draws one"
                )
    return columns


# Hyperparameters in general -------------------------------------------------------------------------------------------


def normalized(hyperparameters: Any) -> dict[str, np.ndarray]:
    """Returns hyperparameters as arrays (N,) of int64, float64, str or bool.

    Args:
        hyperparameters: {name: list or array}, all of the same length N >= 1.

    Raises:
        ValueError: For anything else.

    Example:
        >>> from functional_nn.training import search
        >>> search.normalized({"learning_rate": [1, 0.5], "seed": range(2)})
        {'learning_rate': array([1. , 0.5]), 'seed': array([0, 1])}
    """
    if not isinstance(hyperparameters, Mapping):
        raise ValueError(f"hyperparameters: expected a dict of lists, got {type(hyperparameters).__name__}")
    if not hyperparameters:
        raise ValueError("hyperparameters: expected at least one name with its values, got none")
    columns = {}
    for name, values in hyperparameters.items():
        if not isinstance(name, str):
            raise ValueError(f"hyperparameters: expected names that are str, got {name!r}")
        columns[name] = _column(name, values)
    lengths = {name: column.size for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"hyperparameters: expected as many values for every name, but {counts}")
    return columns


def members(hyperparameters: Any) -> int:
    """Returns N, the number of members.

    Args:
        hyperparameters: As in `normalized`.

    Raises:
        ValueError: As `normalized`.

    Example:
        >>> from functional_nn.training import search
        >>> search.members(search.grid(learning_rate=[0.1, 0.2], seed=range(3)))
        6
    """
    return next(iter(normalized(hyperparameters).values())).size


def concatenate(*hyperparameters: Any) -> dict[str, np.ndarray]:
    """Returns the members of several searches, one search after the other.

    Integers become floats where another search has floats under the same name.

    Args:
        *hyperparameters: Each as in `normalized`, with the same names.

    Raises:
        ValueError: If the names differ, or if a name has words in one search and numbers in another.

    Example:
        >>> from functional_nn.training import search
        >>> search.concatenate(search.grid(width=[2, 4]), search.grid(width=[8]))
        {'width': array([2, 4, 8])}
    """
    if not hyperparameters:
        raise ValueError("concatenate: expected at least one dict of hyperparameters, got none")
    searches = [normalized(each) for each in hyperparameters]
    for number, search in enumerate(searches):
        if search.keys() != searches[0].keys():
            raise ValueError(
                f"concatenate: expected the names {', '.join(searches[0])}, got {', '.join(search)} in dict {number}"
            )
    columns = {}
    for name in searches[0]:
        arrays = [search[name] for search in searches]
        if len({array.dtype.kind == "U" for array in arrays}) > 1:
            raise ValueError(f"{name}: expected either numbers or words, got both")
        columns[name] = np.concatenate(arrays)
    return columns


# Successive halving (Jamieson and Talwalkar 2016) ---------------------------------------------------------------------


@dataclass(frozen=True)
class Halving:
    """When members of a population are compared, and how many of them continue. Returned by `successive_halving`.

    Attributes:
        rungs: The epochs after which members are compared.
        keep: The fraction that continues.
        monitor: The metric they are compared by.

    Example:
        >>> from functional_nn.training import search
        >>> search.successive_halving((3, 9)).survivors([0.3, 0.1, 0.2]).tolist()
        [False, True, False]
    """

    rungs: tuple[int, ...]
    keep: float
    monitor: str

    def survivors(self, scores: Any) -> np.ndarray:
        """Returns which of the n running members continue, bool (n,): the max(1, floor(keep n)) lowest scores.

        Of equal scores the earlier one continues. A member whose score is not finite ends, except that the first
        continues if no score is finite.

        Args:
            scores: (n,), lowest is best.

        Raises:
            ValueError: For another shape, and for no scores.
        """
        scores = np.asarray(scores, np.float64)
        if scores.ndim != 1 or scores.size == 0:
            raise ValueError(f"scores: expected shape (n,) with n >= 1, got {scores.shape}")
        finite = np.isfinite(scores)
        count = max(1, math.floor(self.keep * scores.size + 1e-9))  # 0.29 * 100 is below 29
        order = np.argsort(np.where(finite, scores, np.inf), kind="stable")
        survives = np.zeros(scores.shape, bool)
        survives[order[: min(count, max(1, finite.sum()))]] = True
        return survives


def successive_halving(
    rungs: Any,
    keep: float = 1 / 3,
    monitor: Literal["validation_loss", "validation_accuracy", "training_loss"] = "validation_loss",
) -> Halving:
    """Returns a schedule that ends the worse members of a population early, for `fit_population(halving=...)`.

    After each of the epochs in `rungs`, the best fraction `keep` of the running members continues, and at least one
    member. The others end with the status "halved".

    Args:
        rungs: The epochs after which members are compared: increasing integers >= 1, such as `rungs_for` returns.
        keep: The fraction that continues, between 0 and 1.
        monitor: The metric they are compared by: "validation_loss", "validation_accuracy" or "training_loss".

    Raises:
        ValueError: For rungs that are not increasing integers >= 1, `keep` out of range, or an unknown monitor.

    References:
        Jamieson and Talwalkar 2016, Non-stochastic Best Arm Identification and Hyperparameter Optimization.

    Example:
        >>> from functional_nn.training import search
        >>> search.successive_halving(search.rungs_for(30, 3, 0.5), keep=0.5)
        Halving(rungs=(3, 6, 12, 24), keep=0.5, monitor='validation_loss')
    """
    if isinstance(rungs, str) or not np.iterable(rungs):
        raise ValueError(f"successive_halving: rungs must be a list of epochs, got {rungs!r}")
    rungs = tuple(checks.integer("successive_halving", "each of rungs", rung, 1) for rung in rungs)
    if not rungs or any(later <= earlier for earlier, later in zip(rungs, rungs[1:], strict=False)):
        raise ValueError(f"successive_halving: rungs must be one or more increasing epochs, got {rungs}")
    checks.one_of("successive_halving", "monitor", monitor, _MONITORS)
    return Halving(rungs, _fraction("successive_halving", keep), monitor)


def rungs_for(epochs: int, first: int, keep: float = 1 / 3) -> tuple[int, ...]:
    """Returns rungs for `successive_halving`, each 1 / keep times the one before, rounded.

    Args:
        epochs: The epochs to train. All rungs are below it.
        first: The first rung.
        keep: The fraction that continues at each rung.

    Raises:
        ValueError: Unless 1 <= first < epochs and `keep` is between 0 and 1.

    Example:
        >>> from functional_nn.training import search
        >>> search.rungs_for(81, 1)
        (1, 3, 9, 27)
    """
    checks.integer("rungs_for", "first", first, 1)
    checks.integer("rungs_for", "epochs", epochs, first + 1)
    keep = _fraction("rungs_for", keep)
    rungs = [first]
    while (rung := max(round(rungs[-1] / keep), rungs[-1] + 1)) < epochs:
        rungs.append(rung)
    return tuple(rungs)


# Checks ---------------------------------------------------------------------------------------------------------------


def _is_single(value: Any) -> bool:
    return isinstance(value, str | numbers.Number) or (hasattr(value, "__array__") and np.ndim(value) == 0)


def _column(name: str, values: Any) -> np.ndarray:
    """The values of one name, of shape (N,) with N >= 1: int64, float64, str or bool."""
    if isinstance(values, _Distribution):
        raise ValueError(f"{name}: expected a list, got {values}, which random_search takes")
    if hasattr(values, "__array__"):
        if np.ndim(values) != 1:
            raise ValueError(f"{name}: expected a list, of shape (N,), got shape {np.shape(values)}")
        values = np.asarray(values).tolist()
    if not isinstance(values, list | tuple | range):
        raise ValueError(f"{name}: expected a list, got {values!r}")
    items = [item.item() if hasattr(item, "item") and np.ndim(item) == 0 else item for item in values]
    if not items:
        raise ValueError(f"{name}: expected at least one value, got none")
    for item in items:
        if not isinstance(item, int | float | str):
            raise ValueError(f"{name}: expected numbers, words or truth values, got {item!r}")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{name}: expected finite numbers, got {item}")
    kinds = {next((kind for kind in (str, bool) if isinstance(item, kind)), float) for item in items}
    if len(kinds) > 1:
        raise ValueError(f"{name}: expected only numbers, only words or only truth values, got a mixture")
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
