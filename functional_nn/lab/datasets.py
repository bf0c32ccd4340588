"""Data sets: five that come with scikit-learn, truth tables, Fashion-MNIST if it is installed, and your own CSV, NPZ
and IDX (MNIST) files.

A file is not trusted. It is read without pickle and its sizes are checked before memory is allocated for them. Whatever
is damaged, ambiguous or not finite is refused with a one-line ValueError that begins with the source. `load` also
returns how the file was read, a `Reading`; `load_as` and `load_inputs` read other files in the same way.

Letters: Q examples, R inputs, S targets, C classes.
"""

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import DTypeLike

from functional_nn.lab import arrays, dialects, files, tables
from functional_nn.lab.tables import Header, Missing, Table
from functional_nn.registry import did_you_mean

__all__ = [
    "MAX_AUTO_CLASSES",
    "NAMES",
    "TRUTH_TABLES",
    "Dataset",
    "Pictures",
    "Reading",
    "Series",
    "Standardizer",
    "fit_min_max",
    "fit_preparation",
    "fit_standardizer",
    "load",
    "load_as",
    "load_inputs",
    "split",
    "split_rows",
]

Task = Literal["auto", "classification", "regression"]

# CSE 475, 17.61: the answers for (0, 0), (0, 1), (1, 0), (1, 1)
TRUTH_TABLES = {"and": (0, 0, 0, 1), "or": (0, 1, 1, 1), "nand": (1, 1, 1, 0), "nor": (1, 0, 0, 0), "xor": (0, 1, 1, 0)}
BUNDLED = ("digits", "iris", "wine", "breast_cancer", "diabetes", *TRUTH_TABLES)
NAMES = (*BUNDLED, "fashion_mnist")
MAX_AUTO_CLASSES = 20  # a column with more different integers is read as measurements

_FORMATS = "a path to a .csv, .csv.gz, .tsv, .npz or IDX file, or to a folder holding an IDX pair"
_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_ROWS = 4096  # rows that are scaled at a time
_SMALLEST_PICTURE = 64  # pixels of a picture that is stored as a row of bytes
_MOST_CHANNELS = 4  # of pictures, if the channels could be the first axis as well as the last

# Xiao, Rasul and Vollgraf 2017; Debian's package has the authors' four files
_FASHION, _FASHION_FOLDER = "FASHION_MNIST", "/usr/share/datasets/fashion-mnist"
_GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# (rows, columns) of grey pictures, (rows, columns, channels) of others
ImageShape = tuple[int, int] | tuple[int, int, int]


class Pictures(NamedTuple):
    """The pixels of pictures, as they were read.

    Attributes:
        divided: whether they were bytes, which have been divided by 255.
        low: the smallest of all pixels, after the division.
        high: the largest of all pixels, after the division.

    Example:
        >>> from functional_nn.lab import datasets
        >>> print(datasets.Pictures(divided=True, low=0.0, high=1.0))
        pictures: bytes divided by 255, from 0 to 1
    """

    divided: bool
    low: float
    high: float

    @property
    def fractions(self) -> bool:
        """Whether the pixels are fractions of full brightness, like a byte divided by 255."""
        return self.divided or (self.low >= 0 and self.high <= 1)

    @property
    def scaled(self) -> bool:
        """Whether the pixels are to be standardized: fractions are not, unless bytes use less than half of their
        range.
        """
        return not self.fractions or (self.divided and self.high <= 0.5)

    def __str__(self) -> str:
        bytes_ = "bytes divided by 255, " if self.divided else ""
        scaled = ", standardized by the mean and deviation of all pixels" if self.scaled else ""
        return f"pictures: {bytes_}from {self.low:.4g} to {self.high:.4g}{scaled}"


class Series(NamedTuple):
    """A table whose rows follow each other in time: an example is a window of rows, its targets are the values that
    follow.

    Attributes:
        window: how many rows an example has.
        horizon: how many of the target's next values are predicted.
        columns: how many inputs a row has.
        target: the number of the column that is predicted.

    Example:
        >>> from functional_nn.lab import datasets
        >>> datasets.Series(window=24, horizon=1, columns=3, target=0).window
        24
    """

    window: int
    horizon: int
    columns: int
    target: int


@dataclass(frozen=True)
class Reading:
    """How a file's contents become inputs and targets: decided on the data trained on, and applied to other files.

    Attributes:
        features: the R names of the inputs.
        task: "classification" or "regression".
        classes: the C class names; empty for regression.
        image_shape: for pictures, (rows, columns) or (rows, columns, channels).
        table: for a CSV file, how its columns are read.
        pictures: for inputs that are pixels, how they are scaled.
        own_test: whether the part that a file keeps for testing is read with the rest.
        series: for examples that are windows of a table's rows.
        tokens: how many different tokens there are; 0 for inputs that are not tokens.

    Example:
        >>> from functional_nn.lab import datasets
        >>> reading = datasets.load("iris").reading
        >>> reading.task, reading.classes
        ('classification', ('setosa', 'versicolor', 'virginica'))
    """

    features: tuple[str, ...]
    task: Literal["classification", "regression"] = "classification"
    classes: tuple[str, ...] = ()
    image_shape: ImageShape | None = None
    table: Table | None = None
    pictures: Pictures | None = None
    own_test: bool = True
    series: Series | None = None
    tokens: int = 0


class Dataset(NamedTuple):
    """Examples as rows.

    Attributes:
        name: the data set's or the file's name.
        inputs: (Q, R) float64; nan for a table's missing value that was not refused. Tokens are integers (Q, T).
        targets: (Q, S) float64. For classification, the one-hot form of `labels`, S being C; if each token has a label,
            the labels (Q, T) themselves.
        labels: (Q,) int64 in 0..C-1; None for regression.
        classes: the C class names; empty for regression.
        features: the R names of the inputs.
        image_shape: for pictures, (rows, columns) or (rows, columns, channels); otherwise None.
        table: for a CSV file, how its columns were read.
        pictures: for inputs that are pixels, how they were scaled.
        own_test: how many of the examples, the last ones, the file itself keeps for testing.
        weights: (Q,) weight of each example in training, if a column of the table holds them.
        series: for examples that are windows of a table's rows.
        tokens: how many different tokens there are; 0 for inputs that are not tokens.
        counted: (Q, T) booleans: which labels are within the length of their sequence.

    Example:
        >>> from functional_nn.lab import datasets
        >>> digits = datasets.load("digits")
        >>> digits.inputs.shape, digits.image_shape, len(digits.classes)
        ((1797, 64), (8, 8), 10)
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    features: tuple[str, ...]
    image_shape: ImageShape | None
    table: Table | None = None
    pictures: Pictures | None = None
    own_test: int = 0
    weights: np.ndarray | None = None
    series: Series | None = None
    tokens: int = 0
    counted: np.ndarray | None = None

    @property
    def task(self) -> Literal["classification", "regression"]:
        """ "classification" or "regression"."""
        return "regression" if self.labels is None else "classification"

    @property
    def reading(self) -> Reading:
        """How the data set was read; `load_as` and `load_inputs` read other files in the same way."""
        return Reading(
            self.features,
            self.task,
            self.classes,
            self.image_shape,
            self.table,
            self.pictures,
            series=self.series,
            tokens=self.tokens,
        )


# Loading --------------------------------------------------------------------------------------------------------------


def load(
    source: str | Path,
    *,
    target: str | int | None = None,
    labels: str | Path | None = None,
    task: Task = "auto",
    header: Header = "auto",
    columns: Sequence[str | int] = (),
    drop: Sequence[str | int] = (),
    delimiter: str = "auto",
    decimal: str = "auto",
    missing: Missing = "refuse",
    weights: str | int | None = None,
    window: int | None = None,
    horizon: int = 1,
    sequences: bool = False,
) -> Dataset:
    r"""Loads a data set by name, or reads one from a CSV, NPZ or IDX file.

    Args:
        source: one of `NAMES`, or a path (a `Path` is never taken for a name). A truth table, such as "xor", is 0/1
            logic; its four examples are both the training and the held-out part. "fashion_mnist" is read from where
            Debian's package installs it, or from the folder in the environment variable FASHION_MNIST.
        target: for a CSV file, the target column by name or index; by default the last, -1.
        labels: for IDX files, the labels file; by default the one named like the images file (`train-images...`,
            `train-labels...`).
        task: what the targets are. "auto" reads words, one-hot rows, IDX labels, and integers with at most
            `MAX_AUTO_CLASSES` and at most Q/2 different values as classes, and other numbers as measurements.
        header: for a CSV file, whether the first row holds names. "auto" decides from the rows below, and refuses a
            file where it cannot.
        columns: for a CSV file, the columns to use as inputs, by name or index; by default all but the target.
        drop: for a CSV file, the columns not to use, by name or index.
        delimiter: for a CSV file, "auto", or comma, semicolon, tab, pipe.
        decimal: for a CSV file, "auto", or point, comma.
        missing: for a CSV file, what to do with missing values (blanks, ?, NA, nan, null and the like): "refuse" the
            file; "drop" their rows; "mean" keeps them as nan, which `fit_preparation` replaces by the mean of the
            training part; "indicator" also adds an input of 0 and 1 that marks them. A missing target is refused or
            dropped.
        weights: for a CSV file, the column, by name or index, with each example's weight in training, a number >= 0. It
            is not an input, and data that is read by `load_as` need not have it.
        window: for a CSV file whose rows follow each other in time, the number of rows in an example. The inputs are
            all inputs and the target of each row, one row after the other; the targets are the next `horizon` values of
            the target column. `split` holds out the end.
        horizon: how many of the target's next values are predicted.
        sequences: whether the integers (Q, T) of an NPZ file are tokens, 0 and above. Labels can then be per token, (Q,
            T); those beyond the `lengths` (Q,) that the file may hold do not count.

    Returns:
        The `Dataset`. A CSV column of words becomes one input of 0 and 1 for each word; dates, and words that are
        nearly all different, are refused. Classes are the target's words or integers: 1, 1.0 and 1e0 are one class, 01
        and 1 are two.

        The keys of an NPZ file are inputs and targets, x and y, X and y, data and target, images and labels, or such a
        pair for training and one for testing (x_train, y_train, x_test, y_test); the first pair found is used. The part
        for testing comes last and is what `split` holds out; likewise for a folder with an IDX training pair and a t10k
        pair. The pixels of digits are divided by 16. Bytes are divided by 255 if they are pictures: (Q, rows, columns),
        (Q, rows, columns, channels), rows with a square number of pixels, or an IDX file. Inputs are always rows of
        numbers; `image_shape` is the shape of one picture.

    Raises:
        ValueError: what cannot be read as requested; the message begins with the source.
        ImportError: a bundled set needs scikit-learn, which is not installed.

    Warns:
        UserWarning: for whatever is left out.

    Example:
        >>> from functional_nn.lab import datasets
        >>> iris = datasets.load("iris")
        >>> iris.task, iris.inputs.shape, iris.targets.shape, iris.classes
        ('classification', (150, 4), (150, 3), ('setosa', 'versicolor', 'virginica'))

        Your own CSV file, whose last column is the target:

        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "flowers.csv"
        >>> _ = path.write_text("length,width,kind\n1.0,2.0,rose\n1.5,1.0,daisy\n1.2,2.1,rose\n1.6,1.1,daisy\n")
        >>> flowers = datasets.load(path)
        >>> flowers.features, flowers.classes, flowers.inputs.shape
        (('length', 'width'), ('daisy', 'rose'), (4, 2))
    """
    if task not in get_args(Task):
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(get_args(Task))}")
    kind = _kind(source, target, labels)
    columns, drop = ((names,) if isinstance(names, str | int) else names for names in (columns, drop))
    of_table = {
        "header": header,
        "columns": tuple(columns),
        "drop": tuple(drop),
        "delimiter": delimiter,
        "decimal": decimal,
        "missing": missing,
        "weights": weights,
    }
    options = of_table | {"window": window}
    given = [name for name, value in options.items() if value not in ("auto", "refuse", (), None)]
    if given and kind != "csv":
        raise ValueError(f"{source}: {given[0]}={options[given[0]]!r} is only for a CSV file")
    with _naming(source):
        _check_series(window, horizon, task, weights, missing)
        if kind == "bundled":
            return _load_bundled(source, task)
        if kind != "csv":
            return _of_arrays(source, kind, labels, task, None, sequences)
        table, notes = tables.fit(Path(source), target=target, **of_table, series=window is not None)
        _warn(source, notes)
        if window is not None:
            return _of_series(source, table, window, horizon)
        return _of_table(source, table, None, task, None)


def load_as(
    source: str | Path, reading: Reading, *, target: str | int | None = None, labels: str | Path | None = None
) -> Dataset:
    """Loads another data set in the way a first one was read: the same task, classes, columns, levels and pixels.

    Args:
        source: as for `load`. A CSV file may have further columns, in any order; classes may be absent.
        reading: the `reading` of the first data set.
        target: the target column of a CSV file, if it is not the one of `reading`.
        labels: for IDX files, the labels file.

    Returns:
        The `Dataset`.

    Raises:
        ValueError: what does not fit `reading`, such as an unknown class or level.

    Example:
        >>> from functional_nn.lab import datasets
        >>> digits = datasets.load("digits")
        >>> datasets.load_as("digits", digits.reading).classes == digits.classes
        True
    """
    kind = _kind(source, target, labels)
    with _naming(source):
        if kind == "bundled":
            dataset = _load_bundled(source, "auto")
        elif kind == "csv":
            dataset = (
                _of_series(source, reading.table, *reading.series[:2])
                if reading.series
                else _of_table(source, _table(reading), target, reading.task, reading)
            )
        else:
            dataset = _of_arrays(source, kind, labels, reading.task, reading)
        _check_like(dataset.inputs, dataset.image_shape, reading, source)
        dataset = dataset._replace(image_shape=reading.image_shape)
        return _of_known_classes(dataset, reading) if kind == "bundled" else dataset


def load_inputs(source: str | Path, reading: Reading) -> np.ndarray:
    """Loads the inputs alone, in the way a first data set was read; targets may be missing.

    Args:
        source: as for `load`.
        reading: the `reading` of the first data set.

    Returns:
        (Q, R) float64.

    Raises:
        ValueError: as `load_as`.

    Example:
        >>> from functional_nn.lab import datasets
        >>> datasets.load_inputs("wine", datasets.load("wine").reading).shape
        (178, 13)
    """
    kind = _kind(source, None, None)
    with _naming(source):
        image = None
        if kind == "bundled":
            dataset = _load_bundled(source, "auto")
            once = len(dataset.inputs) - (dataset.own_test if source in TRUTH_TABLES else 0)
            inputs, image = dataset.inputs[:once], dataset.image_shape
        elif kind == "csv":
            inputs = tables.read(Path(source), _table(reading), answers=False).inputs
            if reading.series:
                inputs = _windows(inputs, reading.series.window)
        else:
            stored = _stored(source, kind, None, False, reading.own_test)
            inputs, image, _ = (
                (_tokens(stored.inputs, reading.tokens), None, None)
                if reading.tokens
                else _pixels(stored, kind, reading)
            )
        _check_like(inputs, image, reading, source)
        return inputs


def pictured(dataset: Dataset) -> Dataset:
    """The data set as one of pictures, including rows with a square number of pixels. Raises ValueError for others."""
    width = dataset.inputs.shape[1]
    side = math.isqrt(width)
    if dataset.image_shape:
        return dataset
    if side * side == width >= _SMALLEST_PICTURE and not (dataset.table and dataset.table.marks.any()):
        return dataset._replace(image_shape=(side, side))
    expected = (
        "expected IDX files or arrays (Q, rows, columns) or (Q, rows, columns, channels), of up to "
        f"{_MOST_CHANNELS} channels, or rows of a square number of pixels, {_SMALLEST_PICTURE} or more"
    )
    raise ValueError(f"{dataset.name} has no pictures: {expected}; got {width} numbers per example")


def _table(reading: Reading) -> Table:
    return reading.table or tables.table_of(reading.features)


def is_table(source: str | Path) -> bool:
    """Whether the file has a CSV file's name."""
    return Path(source).name.lower().endswith(_TABLES)


@contextlib.contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _warn(source: str | Path, notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(f"{source}: {note}", stacklevel=3)


def _kind(
    source: str | Path, target: str | int | None, labels: str | Path | None
) -> Literal["bundled", "csv", "npz", "idx", "folder"]:
    kind = "bundled" if isinstance(source, str) and source in NAMES else _kind_of_file(source)
    if target is not None and kind != "csv":
        raise ValueError(f"{source}: target={target!r} is only for a CSV file")
    if labels is not None and kind not in ("idx", "folder"):
        raise ValueError(f"{source}: labels={str(labels)!r} is only for IDX images")
    return kind


def _kind_of_file(source: str | Path) -> Literal["csv", "npz", "idx", "folder"]:
    path, name = Path(source), Path(source).name.lower()
    if not os.path.exists(path):  # unlike Path.exists, False also for a name that the system cannot hold
        if path.suffix or len(path.parts) > 1 or not isinstance(source, str):
            raise ValueError(f"no file {str(source)!r} (accepted: {', '.join(NAMES)}, or {_FORMATS})")
        hint = did_you_mean(source, NAMES)
        raise ValueError(f"unknown data set {source!r}{hint} (accepted: {', '.join(NAMES)}, or {_FORMATS})")
    if path.is_dir():
        return "folder"
    if is_table(path):
        return "csv"
    if name.endswith(".npz"):
        return "npz"
    with files.reading(path) as file:
        magic = file.read(4)
    if arrays.IDX_NAME.search(name) or (len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in arrays.IDX_DTYPES):
        return "idx"
    raise ValueError(f"{source}: cannot tell its format from its name or first bytes; expected {_FORMATS}")


def _load_bundled(name: str, task: Task) -> Dataset:
    if name in TRUTH_TABLES:
        return _truth_table(name, task)
    if name == "fashion_mnist":
        return _fashion_mnist(name, task)
    from sklearn import datasets  # takes a second to import

    # scikit-learn scales diabetes by all examples, including those that are held out later
    bunch = datasets.load_diabetes(scaled=False) if name == "diabetes" else getattr(datasets, f"load_{name}")()
    known = "regression" if name == "diabetes" else "classification"
    if task not in ("auto", known):
        raise ValueError(f"is a {known} set; task: expected 'auto' or {known!r}, got {task!r}")
    inputs = np.asarray(bunch.data, np.float64) / (16 if name == "digits" else 1)
    features = tuple(map(str, bunch.feature_names))
    if known == "regression":
        return Dataset(name, inputs, np.asarray(bunch.target, np.float64)[:, None], None, (), features, None)
    labels, classes = np.asarray(bunch.target, np.int64), tuple(map(str, bunch.target_names))
    shape, pictures = ((8, 8), Pictures(False, 0.0, 1.0)) if name == "digits" else (None, None)
    targets = _one_hot(labels, classes)
    return Dataset(name, inputs, targets, labels, classes, features, shape, None, pictures)


def _truth_table(name: str, task: Task) -> Dataset:
    if task == "regression":
        raise ValueError(f"is a classification set; task: expected 'auto' or 'classification', got {task!r}")
    inputs = np.array(list(itertools.product((0.0, 1.0), repeat=2)))
    inputs, labels = np.tile(inputs, (2, 1)), np.tile(np.array(TRUTH_TABLES[name], np.int64), 2)
    classes = ("false", "true")
    return Dataset(name, inputs, _one_hot(labels, classes), labels, classes, ("A", "B"), None, own_test=4)


def _fashion_mnist(name: str, task: Task) -> Dataset:
    folder = Path(os.environ.get(_FASHION) or _FASHION_FOLDER)
    if not folder.is_dir():
        raise ValueError(
            f"no folder {str(folder)!r}; apt-get install dataset-fashion-mnist, or set the environment variable "
            f"{_FASHION} to a folder with its four IDX files"
        )
    if task == "regression":
        raise ValueError(f"is a classification set; task: expected 'auto' or 'classification', got {task!r}")
    dataset = _of_arrays(folder, "folder", None, task, None)
    if len(dataset.classes) != len(_GARMENTS) or not dataset.own_test:
        expected = f"images and labels of {len(_GARMENTS)} classes to train on (train-...) and to test (t10k-...)"
        raise ValueError(f"expected {expected} in {str(folder)!r}")
    return dataset._replace(name=name, classes=_GARMENTS)


# Targets --------------------------------------------------------------------------------------------------------------


def _of_table(
    source: str | Path, table: Table, target: str | int | None, task: Task, reading: Reading | None
) -> Dataset:
    known = reading.classes if reading else ()
    read = tables.read(Path(source), table, target, known=known, weighted=reading is None)
    if read.left:
        _warn(source, [f"rows left out because of a missing value: {read.left}"])
    answers = tables.answers_of(read, task)
    if task == "auto":
        classes = answers.values is None or answers.codes or _reads_as_classes(answers.values)
        task = "classification" if classes else "regression"
    about = Path(source).name, read.inputs
    if task == "regression":
        return Dataset(*about, answers.values[:, None], None, (), table.features, None, table, weights=read.weights)
    if answers.values is not None:
        _check_whole(answers.values)
    if reading:
        names = reading.classes
        labels = [
            _known(names, cell if cell in names else str(key), f"line {line}, column {read.target!r}: ")
            for (line, cell), key in zip(read.answers, answers.keys, strict=True)
        ]
    else:
        distinct = sorted(set(answers.keys), key=lambda key: (0 if answers.values is None else float(key), str(key)))
        places = {key: label for label, key in enumerate(distinct)}
        labels, names = [places[key] for key in answers.keys], tuple(map(str, distinct))
    labels = np.array(labels, np.int64)
    targets = _one_hot(labels, names, reading)
    return Dataset(*about, targets, labels, names, table.features, None, table, weights=read.weights)


def _check_series(window: int | None, horizon: int, task: Task, weights: str | int | None, missing: Missing) -> None:
    if window is None:
        if horizon != 1:
            raise ValueError(f"horizon: is only for a series, which needs window=...; got {horizon}")
        return
    for name, value in (("window", window), ("horizon", horizon)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    if task == "classification" or weights is not None or missing == "drop":
        given = "weights" if weights is not None else "task='classification'" if missing != "drop" else "missing='drop'"
        raise ValueError(f"{given}: a series needs all its rows, and predicts numbers")


def _of_series(source: str | Path, table: Table, window: int, horizon: int) -> Dataset:
    """Windows (Q, W R), and the next values of the target (Q, H)."""
    values = tables.read(Path(source), table, answers=False).inputs
    names, target = table.features, table.target.name
    if target not in names:
        raise ValueError(f"column {target!r}: expected numbers to predict, got words")
    if len(values) <= window + horizon:
        raise ValueError(
            f"expected more than {window + horizon} rows, window {window} and horizon {horizon}, got {len(values)}"
        )
    at = names.index(target)
    _check_finite(f"column {target!r}", values[:, at])
    features = tuple(f"{name}[{row - window + 1}]" for row in range(window) for name in names)
    targets = np.lib.stride_tricks.sliding_window_view(values[window:, at], horizon)
    series = Series(window, horizon, len(names), at)
    inputs = _windows(values[:-horizon], window)
    return Dataset(Path(source).name, inputs, targets.copy(), None, (), features, None, table, series=series)


def _windows(values: np.ndarray, window: int) -> np.ndarray:
    """Rows (N, R) as windows (N - W + 1, W R), the earliest row first."""
    if len(values) < window:
        raise ValueError(f"expected at least {window} rows, one window of the series, got {len(values)}")
    files.check_room("windows", len(values), window * values.shape[1])
    cut = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)  # (Q, R, W)
    return np.moveaxis(cut, 2, 1).reshape(len(cut), -1)


def _of_arrays(
    source: str | Path,
    kind: str,
    beside: str | Path | None,
    task: Task,
    reading: Reading | None,
    sequences: bool = False,
) -> Dataset:
    stored = _stored(source, kind, beside, True, reading is None or reading.own_test)
    if stored.left:
        _warn(source, [f"left out {', '.join(stored.left)}"])
    answers, tokens = stored.answers, reading.tokens if reading else 0
    if tokens or (sequences and kind == "npz" and stored.inputs.ndim == 2):
        inputs, image, pictures = _tokens(stored.inputs, tokens), None, None
        tokens = tokens or int(inputs.max(initial=0)) + 1
    else:
        inputs, image, pictures = _pixels(stored, kind, reading)
    if 0 in inputs.shape or 0 in answers.shape:
        raise ValueError(f"holds no data: inputs of shape {inputs.shape}, targets of shape {answers.shape}")
    if answers.dtype.kind == "f":
        _check_finite("targets", answers)
    if tokens and answers.shape == inputs.shape and answers.dtype.kind in "iu":
        return _of_labels_each(source, stored, inputs, tokens, reading)
    if tokens and stored.lengths is not None:
        _counted(stored.lengths, inputs.shape)
        _warn(source, ["lengths are left out: with one label per sequence, all positions are read"])
    if answers.ndim == 2 and answers.shape[1] == 1:
        answers = answers[:, 0]
    if task == "auto":
        task = "classification" if kind != "npz" or _reads_as_classes(answers) else "regression"
    about = {"image_shape": image, "pictures": pictures, "own_test": stored.own_test, "tokens": tokens}
    features = reading.features if reading else _input_names(image or inputs.shape[1:])
    if task == "regression":
        if answers.dtype.kind == "U":
            raise ValueError(f"targets: task 'regression' expects numbers, got {str(answers[0])!r}")
        targets = answers.reshape(len(answers), -1).astype(np.float64)
        return Dataset(Path(source).name, inputs, targets, None, (), features, **about)
    labels, names = _encode(answers)
    if reading:
        used = {label: _known(reading.classes, names[label], "targets: ") for label in np.unique(labels).tolist()}
        labels, names = np.array([used[label] for label in labels.tolist()], np.int64), reading.classes
    return Dataset(Path(source).name, inputs, _one_hot(labels, names, reading), labels, names, features, **about)


def _of_labels_each(
    source: str | Path, stored: arrays.Arrays, inputs: np.ndarray, tokens: int, reading: Reading | None
) -> Dataset:
    """Sequences with one label per token."""
    labels = _tokens(stored.answers, len(reading.classes) if reading else 0, "targets")
    classes = reading.classes if reading else tuple(map(str, range(int(labels.max()) + 1)))
    if len(classes) < 2:
        raise ValueError("targets: expected at least two classes, got only '0'")
    counted = None if stored.lengths is None else _counted(stored.lengths, labels.shape)
    return Dataset(
        Path(source).name,
        inputs,
        labels,
        labels,
        classes,
        _input_names(inputs.shape[1:]),
        None,
        own_test=stored.own_test,
        tokens=tokens,
        counted=counted,
    )


def _tokens(values: np.ndarray, count: int = 0, what: str = "inputs") -> np.ndarray:
    """Integers (Q, T), unchanged, in 0..count-1; if `count` is 0, any that are 0 and above."""
    if values.ndim != 2 or values.dtype.kind not in "iu":
        also = ", or numbers (Q, T, R)" if what == "inputs" else ""
        raise ValueError(f"{what}: expected tokens, integers (Q, T){also}, got {values.dtype} of shape {values.shape}")
    wrong = (values < 0) | (values >= (count or 2**31 - 1))
    if wrong.any():
        index = tuple(map(int, np.unravel_index(np.argmax(wrong), values.shape)))
        accepted = f"0 to {count - 1}" if count else "of 0 and above"
        raise ValueError(f"{what}: expected integers {accepted}, got {values[index]} at index {index}")
    return values


def _counted(lengths: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(Q, T) booleans: which positions are within the length of their sequence."""
    if lengths.shape != shape[:1] or lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths: expected integers of shape {shape[:1]}, got {lengths.dtype} of {lengths.shape}")
    wrong = (lengths < 0) | (lengths > shape[1])
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"lengths: expected 0 to {shape[1]}, the length of the sequences, got {lengths[at]} at index {at}"
        )
    return np.arange(shape[1])[None, :] < lengths[:, None]


def _of_known_classes(dataset: Dataset, reading: Reading) -> Dataset:
    """A bundled set with the reading's classes."""
    if dataset.task != reading.task:
        raise ValueError(f"expected data for {reading.task}, got {dataset.task}")
    if reading.task == "regression":
        return dataset
    places = np.array([_known(reading.classes, name, "targets: ") for name in dataset.classes])
    labels, classes = places[dataset.labels], reading.classes
    return dataset._replace(targets=_one_hot(labels, classes, reading), labels=labels, classes=classes)


def _known(classes: Sequence[str], name: str, where: str) -> int:
    if name not in classes:
        raise ValueError(f"{where}unknown class {name!r}{did_you_mean(name, classes)} (accepted: {', '.join(classes)})")
    return classes.index(name)


def _reads_as_classes(answers: np.ndarray) -> bool:
    if answers.dtype.kind == "U":
        return True
    if answers.ndim == 2:
        return _is_one_hot(answers)
    distinct = np.unique(answers)
    return bool(np.all(distinct == np.floor(distinct))) and len(distinct) <= min(MAX_AUTO_CLASSES, len(answers) / 2)


def _is_one_hot(answers: np.ndarray) -> bool:
    return bool(np.all((answers == 0) | (answers == 1)) and np.all(answers.sum(axis=1) == 1))


def _encode(answers: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (Q,) int64 in 0..C-1 and the C class names, in sorted order of the values in `answers`."""
    if answers.ndim == 2:
        if not _is_one_hot(answers):
            raise ValueError("targets: task 'classification' expects one-hot rows or one label per example")
        return np.argmax(answers, axis=1), tuple(map(str, range(answers.shape[1])))
    distinct, labels = np.unique(answers, return_inverse=True)
    if answers.dtype.kind == "U":
        gaps = [word for word in distinct.tolist() if dialects.missing(word)]
        if gaps and distinct.tolist() != ["+", "-"]:
            index = int(np.argmax(answers == gaps[0]))
            raise ValueError(f"targets: missing value, got {gaps[0]!r} at index {index}")
        return labels, tuple(map(str, distinct))
    _check_whole(distinct)
    # -1 often marks an example without a label
    if answers.dtype.kind == "i" and distinct[0] < 0:
        raise ValueError(f"targets: expected labels of 0 and above, got {distinct[0]} at index {np.argmin(answers)}")
    return labels, tuple(str(int(value)) for value in distinct)


def _check_whole(values: np.ndarray) -> None:
    fractions = values[values != np.floor(values)]
    if len(fractions):
        raise ValueError(f"targets: task 'classification' expects integers or words, got {fractions[0]}")


def _one_hot(labels: np.ndarray, classes: Sequence[str], reading: Reading | None = None) -> np.ndarray:
    """(Q, C) float64. Raises ValueError for a single class, unless the data is read like another set."""
    if reading is None and len(np.unique(labels)) < 2:
        raise ValueError(f"targets: expected at least two classes, got only {classes[labels[0]]!r}")
    files.check_room("targets", len(labels), len(classes))
    return (labels[:, None] == np.arange(len(classes))[None, :]).astype(np.float64)


# Inputs ---------------------------------------------------------------------------------------------------------------


def _stored(source: str | Path, kind: str, labels: str | Path | None, answers: bool, tests: bool) -> arrays.Arrays:
    path, labels = Path(source), None if labels is None else Path(labels)
    if kind == "npz":
        return arrays.read_npz(path, answers)
    return (
        arrays.read_folder(path, labels, answers, tests) if kind == "folder" else arrays.read_idx(path, labels, answers)
    )


def _pixels(
    stored: arrays.Arrays, kind: str, reading: Reading | None
) -> tuple[np.ndarray, ImageShape | None, Pictures | None]:
    """Inputs (Q, R) float64, the shape of a picture as it is stored, and how its pixels were scaled.

    `reading` decides the scaling, if it is given; bytes are divided if it read fractions. Readings of older runs do not
    mention pictures: then the bytes of an IDX file are divided, and those of an archive are not.
    """
    shape, is_bytes = stored.inputs.shape[1:], stored.inputs.dtype == np.uint8
    image = _image_shape(shape, is_bytes)
    if reading is None:
        divided = is_bytes and (kind != "npz" or len(shape) > 1 or image is not None)
    else:
        divided = is_bytes and (reading.pictures.fractions if reading.pictures else kind != "npz")
    flat = stored.inputs.reshape(len(stored.inputs), math.prod(shape))
    inputs = np.divide(flat, 255, dtype=np.float64) if divided else flat.astype(np.float64)
    if stored.inputs.dtype.kind == "f":
        _check_finite("inputs", inputs)
    if reading is not None:
        return inputs, image, reading.pictures
    if not inputs.size or not (divided or len(shape) > 1):
        return inputs, None, None
    return inputs, image, Pictures(divided, float(inputs.min()), float(inputs.max()))


def _image_shape(shape: tuple[int, ...], is_bytes: bool) -> ImageShape | None:
    """Rows, columns and, unless there is only one, channels last; also for rows with a square number of bytes, which
    are almost certainly pictures.
    """
    if len(shape) == 3:
        if 1 in (shape[0], shape[2]):
            return shape[1:] if shape[0] == 1 else shape[:2]
        # otherwise the first axis may be the channels; axes are not moved because of a guess
        return shape if shape[2] <= _MOST_CHANNELS < shape[0] else None
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    if is_bytes and side * side >= _SMALLEST_PICTURE and side * side == shape[0]:
        return side, side
    return shape if len(shape) == 2 else None


def _check_like(inputs: np.ndarray, image: ImageShape | None, reading: Reading, source: str | Path) -> None:
    """Raises ValueError unless there are as many inputs as before, with pictures of the same size and scale."""
    if not len(inputs):
        raise ValueError("no examples")
    if image and reading.image_shape and image != reading.image_shape:
        expected, got = (" x ".join(map(str, shape)) for shape in (reading.image_shape, image))
        raise ValueError(f"expected pictures of {expected}, like those in training, got {got}")
    if inputs.shape[1] != len(reading.features):
        raise ValueError(f"expected {len(reading.features)} inputs, got {inputs.shape[1]}")
    if reading.pictures is None:
        return
    low, high = reading.pictures[1:] if reading.pictures.scaled else (0.0, 1.0)
    least, most, span = float(inputs.min()), float(inputs.max()), high - low
    room = span / 2 if reading.pictures.scaled else 0.1  # fractions have fixed limits
    if least < low - room or most > high + room or 0 < most - least <= span / 8:
        expected = f"pictures from {low:.4g} to {high:.4g}, like those in training"
        raise ValueError(f"expected {expected}, got {least:.4g} to {most:.4g}; scale them alike")
    if 0 < most - least <= span / 2:
        _warn(source, [f"pictures from {least:.4g} to {most:.4g}; those in training were from {low:.4g} to {high:.4g}"])


def _input_names(shape: tuple[int, ...]) -> tuple[str, ...]:
    if len(shape) == 1:
        return tuple(f"input_{index}" for index in range(*shape))
    return tuple("_".join(map(str, ("pixel", *place))) for place in itertools.product(*map(range, shape)))


def _check_finite(what: str, values: np.ndarray) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        index = tuple(map(int, np.unravel_index(np.argmax(wrong), values.shape)))
        raise ValueError(f"{what}: expected finite numbers, got {values[index]} at index {index}")


# Splitting and scaling ------------------------------------------------------------------------------------------------


def split(dataset: Dataset, *, test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Splits a data set into a training and a test part, both shuffled, the same for the same seed.

    Classification is stratified: of each class, `test_fraction` of its examples, rounded, goes to the test part, but at
    least one to each part. If the data set has its own test part, that part is used and the fraction is not. For a
    series the end is held out, in order, and the training part does not reach into it.

    Args:
        dataset: what `load` returned.
        test_fraction: between 0 and 1.
        seed: seed of the shuffling.

    Returns:
        (training, test), each a `Dataset`.

    Raises:
        ValueError: for a fraction outside (0, 1), a class with a single example, or fewer than two examples.

    Example:
        >>> from functional_nn.lab import datasets
        >>> train, test = datasets.split(datasets.load("iris"))
        >>> len(train.inputs), len(test.inputs), test.targets.sum(axis=0).tolist()
        (120, 30, [10.0, 10.0, 10.0])
    """
    training, test = split_rows(dataset, test_fraction=test_fraction, seed=seed)
    return rows(dataset, training), rows(dataset, test)


def split_rows(dataset: Dataset, *, test_fraction: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the examples in the two parts of `split`.

    Args:
        dataset: what `load` returned.
        test_fraction: between 0 and 1.
        seed: seed of the shuffling.

    Returns:
        (training, test), two arrays of integers.

    Raises:
        ValueError: as `split`.

    Example:
        >>> from functional_nn.lab import datasets
        >>> [len(part) for part in datasets.split_rows(datasets.load("iris"), test_fraction=0.5)]
        [75, 75]
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number between 0 and 1, got {test_fraction}")
    count = len(dataset.inputs)
    if count < 2:
        raise ValueError(f"{dataset.name}: expected at least two examples to split, got {count}")
    if dataset.series:
        horizon = dataset.series.horizon
        cut = min(max(count - round(test_fraction * count), horizon), count - 1)
        return np.arange(cut - horizon + 1), np.arange(cut, count)
    one_each = dataset.labels is not None and dataset.labels.ndim == 1
    strata = dataset.labels if one_each else np.zeros(count, np.int64)
    order = np.random.default_rng(seed).permutation(count)
    if dataset.own_test:
        return order[order < count - dataset.own_test], order[order >= count - dataset.own_test]
    in_test = np.zeros(count, bool)
    for stratum in np.unique(strata):
        members = order[strata[order] == stratum]
        if len(members) == 1:
            name = dataset.classes[stratum]
            raise ValueError(
                f"{dataset.name}: class {name!r} has a single example; expected at least one for each part"
            )
        in_test[members[: min(max(round(test_fraction * len(members)), 1), len(members) - 1)]] = True
    return order[~in_test[order]], order[in_test[order]]


def rows(dataset: Dataset, chosen: np.ndarray) -> Dataset:
    """The examples with these numbers."""
    arrays_ = {name: getattr(dataset, name) for name in ("inputs", "targets", "labels", "weights", "counted")}
    arrays_ = {name: None if array is None else array[chosen] for name, array in arrays_.items()}
    return dataset._replace(**arrays_, own_test=0)


class Standardizer(NamedTuple):
    """Shifts and scales each input: (x - mean) / scale. A pytree of arrays.

    Made by `fit_standardizer` (mean 0 and standard deviation 1) or `fit_min_max` (a range, whose middle `mean` becomes
    0).

    Attributes:
        mean: (R,) float64.
        scale: (R,) float64, above 0.
        fill: (R,) float64, the values that replace missing ones (nan); None if there are none.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import datasets
        >>> scale = datasets.fit_standardizer(np.array([[1.0], [3.0]]))
        >>> scale.apply(np.array([[2.0], [5.0]])).tolist(), scale.invert(np.array([[3.0]])).tolist()
        ([[0.0], [3.0]], [[5.0]])
    """

    mean: np.ndarray
    scale: np.ndarray
    fill: np.ndarray | None = None

    def apply(self, inputs: np.ndarray, *, rows: np.ndarray | None = None, dtype: DTypeLike = np.float64) -> np.ndarray:
        """Returns the standardized inputs (Q, R), or only some rows; computed in float64, some rows at a time.

        Args:
            inputs: (Q, R) numbers.
            rows: the numbers of the rows to standardize; by default all.
            dtype: of the result.

        Returns:
            (Q, R) numbers.

        Raises:
            ValueError: unless `inputs` has R columns.
        """
        inputs = self._columns(inputs)
        rows = np.arange(len(inputs)) if rows is None else rows
        scaled = np.empty((len(rows), len(self.mean)), dtype)
        for begin in range(0, len(rows), _ROWS):
            block = inputs[rows[begin : begin + _ROWS]].astype(np.float64)
            if self.fill is not None:
                block = np.where(np.isnan(block), self.fill[None, :], block)
            scaled[begin : begin + _ROWS] = (block - self.mean[None, :]) / self.scale[None, :]
        return scaled

    def invert(self, inputs: np.ndarray) -> np.ndarray:
        """Returns inputs (Q, R), float64, from standardized ones. Raises ValueError unless `inputs` has R columns."""
        return self._columns(inputs).astype(np.float64) * self.scale[None, :] + self.mean[None, :]

    def _columns(self, inputs: np.ndarray) -> np.ndarray:
        inputs = _numbers(inputs)
        if inputs.ndim != 2 or inputs.shape[1] != len(self.mean):
            raise ValueError(f"inputs: expected shape (Q, {len(self.mean)}), got {inputs.shape}")
        return inputs


def fit_standardizer(inputs: np.ndarray) -> Standardizer:
    """Fits the scaling to mean 0 and standard deviation 1 (over Q, not Q - 1) of each column.

    Args:
        inputs: (Q, R) finite numbers. Constant columns get scale 1, so that they become 0.

    Returns:
        The `Standardizer`.

    Raises:
        ValueError: unless `inputs` is a finite matrix with at least one row and one column.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import datasets
        >>> datasets.fit_standardizer(np.array([[1.0, 7.0], [3.0, 7.0]])).scale.tolist()
        [1.0, 1.0]
    """
    inputs = _examples(inputs)
    mean, low, high = inputs.mean(axis=0), inputs.min(axis=0), inputs.max(axis=0)
    # Rounding may leave the mean of a constant column an ulp away from it, and squares of tiny deviations vanish.
    # So the column itself shows whether it is constant, and deviations are squared relative to the largest.
    constant = high == low
    largest = np.where(constant, 1.0, np.maximum(high - mean, mean - low))
    squares = np.zeros_like(mean)
    for begin in range(0, len(inputs), _ROWS):
        deviations = inputs[begin : begin + _ROWS] - mean[None, :]
        squares += np.sum((deviations / largest[None, :]) ** 2, axis=0)
    scale = largest * np.sqrt(squares / len(inputs))
    return Standardizer(mean, np.where(constant, 1.0, scale))


def fit_min_max(inputs: np.ndarray, low: float = -1.0, high: float = 1.0) -> Standardizer:
    """Fits the scaling that maps the smallest and the largest value of each column to `low` and `high`.

    Values of other data beyond them are mapped beyond `low` and `high`.

    Args:
        inputs: (Q, R) finite numbers. Constant columns, and those whose scale float64 cannot hold, get scale 1 and
            become the middle of the range, 0 by default, so that no example differs in them.
        low: the image of the smallest value.
        high: the image of the largest value.

    Returns:
        The `Standardizer`.

    Raises:
        ValueError: unless `inputs` is a finite matrix with at least one row and one column, and low < high are finite.
        TypeError: for entries that are not real numbers.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import datasets
        >>> scale = datasets.fit_min_max(np.array([[1.0, 7.0], [3.0, 7.0]]))
        >>> scale.apply(np.array([[1.0, 7.0], [2.0, 8.0]])).tolist()
        [[-1.0, 0.0], [0.0, 1.0]]
    """
    numbers = all(isinstance(end, int | float | np.integer | np.floating) for end in (low, high))
    if not (numbers and np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"fit_min_max: expected finite low < high, got {low!r} and {high!r}")
    inputs = _examples(inputs)
    least, most = inputs.min(axis=0), inputs.max(axis=0)
    with np.errstate(over="ignore", divide="ignore"):
        scale = (most / 2 - least / 2) / (high / 2 - low / 2)  # halves do not overflow
    constant = ~((scale >= np.finfo(np.float64).tiny) & np.isfinite(scale))  # or nearly: 1 / scale must be finite
    scale = np.where(constant, 1.0, scale)
    middle = np.where(constant, least, least / 2 + most / 2)
    return Standardizer(middle - scale * (low / 2 + high / 2), scale)


def fit_preparation(dataset: Dataset, training: np.ndarray | None = None) -> Standardizer:
    """Fits the scaling with which a network takes a data set's inputs.

    Columns of numbers are standardized, and missing values replaced by their column's mean. Inputs of 0 and 1 for a
    table's words, and those of a truth table, are unchanged. Pixels that are fractions are unchanged too; other pixels
    are scaled by one mean and deviation of all of them, so that pixels which hardly vary are not blown up.

    Args:
        dataset: what `load` returned.
        training: the numbers of the examples to fit it to; by default all.

    Returns:
        The `Standardizer`.

    Raises:
        ValueError: for a column without any value.

    Example:
        >>> from functional_nn.lab import datasets
        >>> wine = datasets.load("wine")
        >>> training, _ = datasets.split_rows(wine)
        >>> datasets.fit_preparation(wine, training).apply(wine.inputs, rows=training).shape
        (142, 13)
    """
    width = dataset.inputs.shape[1]
    mean, scale = np.zeros(width), np.ones(width)
    pictures = dataset.pictures
    unscaled = dataset.name in TRUTH_TABLES if pictures is None else not pictures.scaled  # a folder may be called "xor"
    if unscaled:
        return Standardizer(mean, scale)
    inputs = dataset.inputs if training is None else dataset.inputs[training]
    if dataset.series:  # by column, at every place in a window alike
        window, columns = dataset.series[0], dataset.series.columns
        row = fit_preparation(dataset._replace(inputs=inputs.reshape(-1, columns), series=None))
        return Standardizer(*(None if values is None else np.tile(values, window) for values in row))
    if pictures is not None:
        of_all = fit_standardizer(inputs.reshape(-1, 1))
        return Standardizer(mean + of_all.mean, scale * of_all.scale)
    fill = None
    if dataset.table is not None and dataset.table.missing in ("mean", "indicator"):
        gaps = np.isnan(inputs)
        empty = gaps.all(axis=0)
        if empty.any():
            name = dataset.features[int(np.argmax(empty))]
            raise ValueError(f"{dataset.name}: input {name!r} has no value in the training part; leave it out")
        fill = np.nanmean(inputs, axis=0)
        inputs = np.where(gaps, fill[None, :], inputs)
    numbers = np.full(width, True) if dataset.table is None else ~dataset.table.marks
    if numbers.any():
        fitted = fit_standardizer(inputs[:, numbers])
        mean[numbers], scale[numbers] = fitted.mean, fitted.scale
    return Standardizer(mean, scale, fill)


def _examples(inputs: np.ndarray) -> np.ndarray:
    """Finite numbers (Q, R), float64, with at least one example."""
    inputs = _numbers(inputs).astype(np.float64, copy=False)
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise ValueError(f"inputs: expected shape (Q, R) with at least one example, got {inputs.shape}")
    _check_finite("inputs", inputs)
    return inputs


def _numbers(inputs: np.ndarray) -> np.ndarray:
    if np.ma.is_masked(inputs):
        raise ValueError("inputs: expected numbers, got masked ones; fill them or leave their rows out")
    inputs = np.asarray(inputs)
    if inputs.dtype.kind in "cUS":
        raise TypeError(f"inputs: expected real numbers, got dtype {inputs.dtype}")
    return inputs
