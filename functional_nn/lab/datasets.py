"""Data sets: five that come with scikit-learn, and those read from CSV, NPZ and IDX (MNIST) files.

A file is not trusted: it is read without pickle, its sizes are checked before room is made for them, and whatever is
damaged, ambiguous or not finite is refused with a one-line ValueError that begins with the source.

Letters: Q examples, R inputs, S targets, C classes.
"""

import contextlib
import csv
import gzip
import io
import itertools
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, get_args

import numpy as np

from functional_nn.registry import did_you_mean

Task = Literal["auto", "classification", "regression"]

BUNDLED = ("digits", "iris", "wine", "breast_cancer", "diabetes")
MAX_BYTES = 4 * 2**30  # the largest array, as float64, that a file may ask for
MAX_AUTO_CLASSES = 20  # more distinct integers than this are read as measurements

_FORMATS = "a path to a .csv, .csv.gz, .npz or IDX file, or to a folder holding an IDX pair"
_MISSING = {"", "?", "-", "na", "n/a", "null", "none"}
_NPZ_KEYS = (("inputs", "targets"), ("x", "y"), ("X", "y"), ("data", "target"))
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_NAME = re.compile(r"(-ubyte|\.idx[13]?)(\.gz)?$", re.IGNORECASE)
_IDX_PAIRS = (("images-idx3", "labels-idx1"), ("images.idx3", "labels.idx1"), ("-images", "-labels"))


class Dataset(NamedTuple):
    """Examples as rows. For classification `targets` is the one-hot form of `labels`, and S is C."""

    name: str
    inputs: np.ndarray  # (Q, R) float64
    targets: np.ndarray  # (Q, S) float64
    labels: np.ndarray | None  # (Q,) int64 in 0..C-1; None for regression
    classes: tuple[str, ...]  # C names; empty for regression
    features: tuple[str, ...]  # R names
    image_shape: tuple[int, int] | None  # rows, columns, where an input is a picture

    @property
    def task(self) -> Literal["classification", "regression"]:
        return "regression" if self.labels is None else "classification"


def load(
    source: str | Path,
    *,
    target: str | int | None = None,
    labels: str | Path | None = None,
    task: Task = "auto",
) -> Dataset:
    """The data set that `source` names: one of `BUNDLED`, or a path (a `Path` is never taken for a bundled name).

    `target`: which CSV column is the target: a name, which says that the first row is a header, or an index, -1 being
        the last and the default. Without a name the first row is a header if none of its input cells is a number.
    `labels`: the IDX labels file; without it, the one named like the images file (`train-images*`, `train-labels*`).
    `task`: what the targets are. "auto" reads words, one-hot rows, IDX labels, and integers with at most
        `MAX_AUTO_CLASSES` and at most Q/2 distinct values as classes, and other numbers as measurements.

    NPZ keys are inputs and targets, x and y, X and y, or data and target: the first pair found. Only the pixels of
    digits (by 16) and of IDX bytes (by 255) are scaled. Raises ValueError for what cannot be read as asked, and
    ImportError where a bundled set needs scikit-learn and it is missing.

    >>> iris = load("iris")
    >>> iris.task, iris.inputs.shape, iris.targets.shape, iris.classes
    ('classification', (150, 4), (150, 3), ('setosa', 'versicolor', 'virginica'))
    """
    if task not in get_args(Task):
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(get_args(Task))}")
    kind = "bundled" if isinstance(source, str) and source in BUNDLED else _kind_of_file(source)
    if target is not None and kind != "csv":
        raise ValueError(f"{source}: target={target!r} chooses a column of a CSV file, which this is not")
    if labels is not None and kind not in ("idx", "folder"):
        raise ValueError(f"{source}: labels={str(labels)!r} belongs to IDX images, which this is not")
    if kind == "bundled":
        return _load_bundled(source, task)
    path = Path(source)
    try:
        if kind == "csv":
            return _load_csv(path, target, task)
        if kind == "npz":
            return _load_npz(path, task)
        images = _images_in(path) if kind == "folder" else path
        return _load_idx(path.name, images, _labels_beside(images) if labels is None else Path(labels), task)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def load_inputs(source: str | Path, features: Sequence[str]) -> np.ndarray:
    """Inputs alone, (Q, R) float64, to predict from: of a CSV file the columns called `features`, the rest left out.

    A CSV file without a header must have exactly those columns; anything else is read as `load` does. Raises as
    `load`, and for missing columns.
    """
    if source in BUNDLED or _kind_of_file(source) != "csv":
        return load(source).inputs
    try:
        rows = list(_csv_rows(Path(source)))
        first = rows[0][1] if rows else []
        if set(features) <= set(first):
            columns, rows = [first.index(name) for name in features], rows[1:]
        elif len(first) == len(features) and all(_number(cell) is not None for cell in first):
            columns = list(range(len(features)))
        else:
            missing = [name for name in features if name not in first]
            raise ValueError(f"expected columns {', '.join(features)}; missing {', '.join(missing)}")
        inputs = np.empty((len(rows), len(features)))
        for row, (line, cells) in enumerate(rows):
            for place, column in enumerate(columns):
                number = _number(cells[column])
                if number is None or not math.isfinite(number):
                    raise _refused_cell(line, features[place], cells[column])
                inputs[row, place] = number
        if not rows:
            raise ValueError("no examples")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return inputs


def _kind_of_file(source: str | Path) -> Literal["csv", "npz", "idx", "folder"]:
    path, name = Path(source), Path(source).name.lower()
    if not os.path.exists(path):  # unlike Path.exists, False also for a name that the system cannot hold
        if path.suffix or len(path.parts) > 1 or not isinstance(source, str):
            raise ValueError(f"no file {str(source)!r} (accepted: {', '.join(BUNDLED)}, or {_FORMATS})")
        hint = did_you_mean(source, BUNDLED)
        raise ValueError(f"unknown data set {source!r}{hint} (accepted: {', '.join(BUNDLED)}, or {_FORMATS})")
    if path.is_dir():
        return "folder"
    if name.endswith((".csv", ".csv.gz")):
        return "csv"
    if name.endswith(".npz"):
        return "npz"
    with _reading(path) as file:
        magic = file.read(4)
    if _IDX_NAME.search(name) or (len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in _IDX_DTYPES):
        return "idx"
    raise ValueError(f"{source}: cannot tell its format from its name or first bytes; expected {_FORMATS}")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unzipped where gzip's own mark (not the name, which browsers may keep) says so."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name}: damaged gzip file ({error})") from error


def _check_room(what: str, rows: int, columns: int) -> None:
    wanted = 8 * columns * (rows + 8)  # a column's name takes about the room of eight numbers
    if wanted > MAX_BYTES:
        raise ValueError(f"{what}: {rows} x {columns} numbers need {wanted} bytes; at most {MAX_BYTES} are accepted")


def _check_finite(what: str, values: np.ndarray) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        index = tuple(map(int, np.unravel_index(np.argmax(wrong), values.shape)))
        raise ValueError(f"{what}: expected finite numbers, got {values[index]} at index {index}")


def _load_bundled(name: str, task: Task) -> Dataset:
    from sklearn import datasets  # takes a second, which only these need

    # scikit-learn's own scaling of diabetes is over all examples, those later held out among them.
    bunch = datasets.load_diabetes(scaled=False) if name == "diabetes" else getattr(datasets, f"load_{name}")()
    own = "regression" if name == "diabetes" else "classification"
    if task not in ("auto", own):
        raise ValueError(f"{name}: is a {own} set; task: expected 'auto' or {own!r}, got {task!r}")
    inputs = np.asarray(bunch.data, np.float64) / (16 if name == "digits" else 1)
    features = tuple(map(str, bunch.feature_names))
    if own == "regression":
        return Dataset(name, inputs, np.asarray(bunch.target, np.float64)[:, None], None, (), features, None)
    labels, classes = np.asarray(bunch.target, np.int64), tuple(map(str, bunch.target_names))
    shape = (8, 8) if name == "digits" else None
    return Dataset(name, inputs, _one_hot(labels, len(classes)), labels, classes, features, shape)


def _assemble(
    name: str,
    inputs: np.ndarray,
    answers: np.ndarray,
    task: Task,
    features: tuple[str, ...],
    image_shape: tuple[int, int] | None = None,
) -> Dataset:
    """The one gate for what files hold: inputs (Q, R) float64; answers (Q,) words or numbers, or (Q, S) numbers."""
    if len(inputs) != len(answers):
        raise ValueError(f"expected as many targets as inputs, got {len(inputs)} inputs and {len(answers)} targets")
    if 0 in inputs.shape or 0 in answers.shape:
        raise ValueError(f"holds no data: inputs of shape {inputs.shape}, targets of shape {answers.shape}")
    _check_finite("inputs", inputs)
    if answers.dtype.kind == "f":
        _check_finite("targets", answers)
    if answers.ndim == 2 and answers.shape[1] == 1:
        answers = answers[:, 0]
    if task == "auto":
        task = "classification" if _reads_as_classes(answers) else "regression"
    if task == "regression":
        if answers.dtype.kind == "U":
            raise ValueError(f"targets: task 'regression' expects numbers, got {str(answers[0])!r}")
        targets = answers.reshape(len(answers), -1).astype(np.float64)
        return Dataset(name, inputs, targets, None, (), features, image_shape)
    labels, classes = _encode(answers)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"targets: expected at least two classes, got only {classes[labels[0]]!r}")
    _check_room("targets", len(labels), len(classes))
    return Dataset(name, inputs, _one_hot(labels, len(classes)), labels, classes, features, image_shape)


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
    """Labels (Q,) int64 in 0..C-1 and the C class names, in the sorted order of what `answers` holds."""
    if answers.ndim == 2:
        if not _is_one_hot(answers):
            raise ValueError("targets: task 'classification' expects one-hot rows or one label per example")
        return np.argmax(answers, axis=1), tuple(map(str, range(answers.shape[1])))
    distinct, labels = np.unique(answers, return_inverse=True)
    if answers.dtype.kind == "U":
        return labels, tuple(map(str, distinct))
    fractions = distinct[distinct != np.floor(distinct)]
    if len(fractions):
        raise ValueError(f"targets: task 'classification' expects integers or words, got {fractions[0]}")
    # Stored integers are codes, where -1 marks an example without a label; a CSV cell (a float here) is a name.
    if answers.dtype.kind == "i" and distinct[0] < 0:
        raise ValueError(f"targets: expected labels of 0 and above, got {distinct[0]} at index {np.argmin(answers)}")
    return labels, tuple(str(int(value)) for value in distinct)


def _one_hot(labels: np.ndarray, count: int) -> np.ndarray:
    return (labels[:, None] == np.arange(count)[None, :]).astype(np.float64)


def _input_names(shape: tuple[int, ...]) -> tuple[str, ...]:
    if len(shape) == 2:
        return tuple(f"pixel_{row}_{column}" for row, column in itertools.product(*map(range, shape)))
    return tuple(f"input_{index}" for index in range(math.prod(shape)))


def _load_csv(path: Path, target: str | int | None, task: Task) -> Dataset:
    rows = _csv_rows(path)
    line, first = next(rows, (0, []))
    if not first:
        raise ValueError("empty file")
    if len(first) == 1:
        raise ValueError("only one column; expected inputs and a target, separated by commas")
    column, named = _target_column(first, target)
    others = first[:column] + first[column + 1 :]
    word = any(_number(cell) is None and cell.lower() not in _MISSING for cell in others)
    if named or (word and all(_number(cell) is None for cell in others)):
        names = first
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"line {line}: column {twice[0]!r} is named twice; expected different names")
    else:
        names = [f"column_{index}" for index in range(len(first))]
        rows = itertools.chain([(line, first)], rows)
    inputs, answers = [], []
    for line, cells in rows:
        answers.append((line, cells[column]))
        numbers = np.array([_number(cell) for cell in cells], np.float64)  # None becomes nan
        numbers[column] = 0.0
        if not np.isfinite(numbers).all():
            index = int(np.argmin(np.isfinite(numbers)))
            raise _refused_cell(line, names[index], cells[index])
        inputs.append(np.delete(numbers, column))
        _check_room("inputs", len(inputs), len(numbers))
    if not inputs:
        raise ValueError("a header row and no examples")
    features = tuple(names[:column] + names[column + 1 :])
    return _assemble(path.name, np.stack(inputs), _csv_answers(names[column], answers, task), task, features)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells, blank lines left out. Raises ValueError where a row is not as long as the first."""
    width = None
    with _reading(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)  # strict: else an unclosed quote swallows the rows after it
        try:
            for cells in filter(None, reader):
                width = len(cells) if width is None else width
                if len(cells) != width:
                    raise ValueError(f"line {reader.line_num}: expected {width} cells as at first, got {len(cells)}")
                yield reader.line_num, [cell.strip() for cell in cells]
        except UnicodeDecodeError as error:
            raise ValueError(f"after line {reader.line_num}: expected UTF-8 text, got {error.reason}") from error
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error


def _target_column(first: list[str], target: str | int | None) -> tuple[int, bool]:
    """The column's index, and whether it was given by name, so that `first` must be a header."""
    last = len(first) - 1
    if target is None:
        return last, False
    try:
        index = int(target)
    except ValueError:
        if first.count(target) == 1:
            return first.index(target), True
        problem = "ambiguous" if target in first else "unknown"
        hint = "" if target in first else did_you_mean(target, first)
        accepted = f"a name in the first row, or an index from {-len(first)} to {last}"
        raise ValueError(f"{problem} target column {target!r}{hint} (accepted: {accepted})") from None
    if not -len(first) <= index <= last:
        raise ValueError(f"unknown target column {index}; expected an index from {-len(first)} to {last}")
    return index % len(first), False


def _number(cell: str) -> float | None:
    """None where `cell` is no number; Python's 1_000 is none, for tables do not write that."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _refused_cell(line: int, name: str, cell: str) -> ValueError:
    if cell.lower() in _MISSING:
        return ValueError(f"line {line}, column {name!r}: missing value, got {cell!r}")
    expected = "a number" if _number(cell) is None else "a finite number"
    return ValueError(f"line {line}, column {name!r}: expected {expected}, got {cell!r}")


def _csv_answers(name: str, answers: list[tuple[int, str]], task: Task) -> np.ndarray:
    """(Q,) float64, or words where every cell is one, or where `task` says that they are classes."""
    numbers = [_number(cell) for _, cell in answers]
    words = numbers.count(None)
    refuse_words = task == "regression" or (task == "auto" and words < len(numbers))
    for (line, cell), number in zip(answers, numbers, strict=True):
        unreadable = refuse_words if number is None else not math.isfinite(number)
        if cell == "" or unreadable:
            raise _refused_cell(line, name, cell)
    return np.array([cell for _, cell in answers]) if words else np.array(numbers, np.float64)


def _load_npz(path: Path, task: Task) -> Dataset:
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                found = [name.removesuffix(".npy") for name in archive.namelist()]
                pair = next((pair for pair in _NPZ_KEYS if set(pair) <= set(found)), None)
                if pair is None:
                    accepted = ", ".join(" and ".join(keys) for keys in _NPZ_KEYS)
                    raise ValueError(f"expected the keys {accepted}; found {', '.join(found) or 'none'}")
                inputs, answers = (_read_npy(archive, key) for key in pair)
        except ValueError:
            raise
        except Exception as error:  # zipfile and its codecs raise a dozen kinds for damaged bytes
            raise ValueError(f"damaged or not an NPZ archive ({error})") from error
    if inputs.ndim < 2 or inputs.dtype.kind == "U":
        raise ValueError(f"{pair[0]}: expected numbers of rank 2 or more, got {inputs.dtype} of shape {inputs.shape}")
    if answers.ndim != 1 and (answers.ndim != 2 or answers.dtype.kind == "U"):
        raise ValueError(f"{pair[1]}: expected rank 1, or numbers of rank 2, got {answers.dtype} of {answers.shape}")
    shape = inputs.shape[1:]
    flat = inputs.reshape(len(inputs), math.prod(shape)).astype(np.float64)
    return _assemble(path.name, flat, answers, task, _input_names(shape), shape if len(shape) == 2 else None)


def _read_npy(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """An array of numbers or words, its header checked before its data is read; nothing is ever unpickled."""
    entry = archive.getinfo(f"{key}.npy")
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{key}: expected .npy format 1.0 or 2.0, got {version}")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(member)
        if dtype.kind not in "biufU" or (dtype.kind != "U" and dtype.itemsize > 8):
            raise ValueError(f"{key}: expected numbers of at most 64 bits or words, got dtype {dtype}")
        if any(size < 0 for size in shape):
            raise ValueError(f"{key}: negative shape {shape}")
        _check_room(key, shape[0] if shape else 1, math.prod(shape[1:]) * math.ceil(dtype.itemsize / 8))
        expected, held = math.prod(shape) * dtype.itemsize, entry.file_size - member.tell()
        if held != expected:
            raise ValueError(f"{key}: expected {expected} bytes of data for shape {shape}, got {held}")
        return np.frombuffer(member.read(expected), dtype).reshape(shape, order="F" if fortran_order else "C")


def _load_idx(name: str, images: Path, labels: Path, task: Task) -> Dataset:
    pixels, codes = _read_idx("images", images), _read_idx("labels", labels)
    shape = pixels.shape[1:]
    inputs = pixels.reshape(len(pixels), math.prod(shape)).astype(np.float64) / (255 if pixels.dtype == np.uint8 else 1)
    image_shape = shape if len(shape) == 2 else None
    task = "classification" if task == "auto" else task
    return _assemble(name, inputs, codes, task, _input_names(shape), image_shape)


def _read_idx(role: Literal["images", "labels"], path: Path) -> np.ndarray:
    """The array of an IDX file, which is exactly as long as its header says. Format: Y. LeCun's MNIST page."""
    if not path.is_file():
        raise ValueError(f"{role}: no file {str(path)!r}")
    with _reading(path) as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES or magic[3] == 0:
            expected = "00 00, a type code (08, 09, 0b to 0e) and the rank"
            raise ValueError(f"{role}: not an IDX file; expected {expected} first, got {magic.hex(' ') or 'nothing'}")
        dtype, rank = np.dtype(_IDX_DTYPES[magic[2]]), magic[3]
        if (rank == 1) != (role == "labels"):
            holds = "labels" if rank == 1 else "images"
            raise ValueError(f"{role}: {path.name!r} is mislabelled: its rank is {rank}, so it holds {holds}")
        # A signed byte is one flipped bit from an unsigned one and as long, so that nothing else would show it.
        accepted = "iu" if role == "labels" else "uf" if dtype.itemsize == 1 else "if"
        if dtype.kind not in accepted:
            raise ValueError(f"{role}: type code {magic[2]:02x} ({dtype.name}) is not accepted for {role}")
        sizes = _read_at_most(file, 4 * rank)
        if len(sizes) < 4 * rank:
            raise ValueError(f"{role}: truncated: expected {4 * rank} bytes of sizes, got {len(sizes)}")
        shape = struct.unpack(f">{rank}I", sizes)
        _check_room(role, shape[0], math.prod(shape[1:]))
        expected = math.prod(shape) * dtype.itemsize
        data = _read_at_most(file, expected + 1)
    if len(data) != expected:
        got = f"got {len(data)}" if len(data) < expected else "got more"
        problem = "truncated" if len(data) < expected else "trailing bytes"
        raise ValueError(f"{role}: {problem}: expected {expected} bytes of data for shape {shape}, {got}")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_at_most(file: BinaryIO, limit: int) -> bytes:
    """Up to `limit` bytes, in pieces: one call would make room for a false `limit` before reading anything."""
    data = bytearray()
    while piece := file.read(min(limit - len(data), 2**20)):
        data += piece
    return bytes(data)


def _images_in(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if "images" in path.name and _IDX_NAME.search(path.name))
    candidates = [path for path in found if path.name.startswith("train-images")] or found
    if len(candidates) != 1:
        names = ", ".join(path.name for path in candidates) or "none"
        raise ValueError(f"expected one IDX images file such as train-images-idx3-ubyte, got {names}; give its path")
    return candidates[0]


def _labels_beside(images: Path) -> Path:
    for of_images, of_labels in _IDX_PAIRS:
        if of_images in images.name:
            return images.with_name(images.name.replace(of_images, of_labels))
    raise ValueError(f"no labels file is named like {images.name!r}; give labels=")


def split(dataset: Dataset, *, test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Training and test parts, both shuffled, the same for the same seed.

    Classification is stratified: of each class, `test_fraction` of its examples, rounded, goes to the test part, but
    at least one to either. Raises ValueError for a fraction outside (0, 1), a class with a single example, and fewer
    than two examples.

    >>> train, test = split(load("iris"))
    >>> len(train.inputs), len(test.inputs), test.targets.sum(axis=0).tolist()
    (120, 30, [10.0, 10.0, 10.0])
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number between 0 and 1, got {test_fraction}")
    count = len(dataset.inputs)
    if count < 2:
        raise ValueError(f"{dataset.name}: expected at least two examples to split, got {count}")
    strata = np.zeros(count, np.int64) if dataset.labels is None else dataset.labels
    order = np.random.default_rng(seed).permutation(count)
    in_test = np.zeros(count, bool)
    for stratum in np.unique(strata):
        members = order[strata[order] == stratum]
        if len(members) == 1:
            name = dataset.classes[stratum]
            raise ValueError(
                f"{dataset.name}: class {name!r} has a single example; expected one for each part at least"
            )
        in_test[members[: min(max(round(test_fraction * len(members)), 1), len(members) - 1)]] = True
    return _rows(dataset, order[~in_test[order]]), _rows(dataset, order[in_test[order]])


def _rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    labels = None if dataset.labels is None else dataset.labels[rows]
    return dataset._replace(inputs=dataset.inputs[rows], targets=dataset.targets[rows], labels=labels)


class Standardizer(NamedTuple):
    """Shifts and scales each input to mean 0 and standard deviation 1 over the examples it was fitted to."""

    mean: np.ndarray  # (R,) float64
    scale: np.ndarray  # (R,) float64, above 0

    def apply(self, inputs: np.ndarray) -> np.ndarray:
        """(Q, R) standardised inputs, float64. Raises ValueError unless `inputs` has R columns."""
        return (self._columns(inputs) - self.mean[None, :]) / self.scale[None, :]

    def invert(self, inputs: np.ndarray) -> np.ndarray:
        """(Q, R) inputs, float64, from standardised ones. Raises ValueError unless `inputs` has R columns."""
        return self._columns(inputs) * self.scale[None, :] + self.mean[None, :]

    def _columns(self, inputs: np.ndarray) -> np.ndarray:
        inputs = np.asarray(inputs, np.float64)
        if inputs.ndim != 2 or inputs.shape[1] != len(self.mean):
            raise ValueError(f"inputs: expected shape (Q, {len(self.mean)}), got {inputs.shape}")
        return inputs


def fit_standardizer(inputs: np.ndarray) -> Standardizer:
    """The mean and standard deviation (over Q, not Q - 1) of each column of `inputs` (Q, R); constant columns: scale 1.

    Raises ValueError unless `inputs` is a finite matrix with at least one row and one column.
    """
    inputs = np.asarray(inputs, np.float64)
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise ValueError(f"inputs: expected shape (Q, R) with at least one example, got {inputs.shape}")
    _check_finite("inputs", inputs)
    mean = inputs.mean(axis=0)
    # Rounding leaves the mean of a constant column an ulp away from it, and squares of tiny deviations vanish: so
    # constancy is read off the column itself, and deviations are squared relative to the largest.
    constant = inputs.max(axis=0) == inputs.min(axis=0)
    deviations = inputs - mean[None, :]
    largest = np.where(constant, 1.0, np.abs(deviations).max(axis=0))
    scale = largest * np.sqrt(np.mean((deviations / largest[None, :]) ** 2, axis=0))
    return Standardizer(mean, np.where(constant, 1.0, scale))
