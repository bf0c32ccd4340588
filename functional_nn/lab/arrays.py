"""Files that hold arrays: NPZ archives and IDX files (MNIST), as they are stored.

Nothing is unpickled, sizes are checked before memory is allocated, and damaged or ambiguous files are refused.

Letters: Q examples, S targets.
"""

import functools
import itertools
import math
import re
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from functional_nn.lab import files

IDX_NAME = re.compile(r"(-ubyte|\.idx[13]?)(\.gz)?$", re.IGNORECASE)
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_PAIRS = (("images-idx3", "labels-idx1"), ("images.idx3", "labels.idx1"), ("-images", "-labels"))
_PAIRS = (
    ("inputs", "targets"),
    ("x", "y"),
    ("X", "y"),
    ("data", "target"),
    ("images", "labels"),
    ("data", "labels"),
    ("features", "labels"),
    ("X", "Y"),
)
# How other libraries name the training and the test part: Keras, MedMNIST, ...
_PARTS = (("{}_train", "{}_test"), ("train_{}", "test_{}"), ("training_{}", "test_{}"), ("{}", "{}_test"))


class Arrays(NamedTuple):
    """inputs (Q, ...) numbers; answers (Q,) numbers or words, or (Q, S) numbers, or None if they were not requested.

    own_test: how many of the examples, the last ones, the file itself keeps for testing. left: names of unused arrays.
    lengths (Q,): of sequences, if an archive with a single part has an array of that name.
    """

    inputs: np.ndarray
    answers: np.ndarray | None
    own_test: int = 0
    left: tuple[str, ...] = ()
    lengths: np.ndarray | None = None


# NPZ ------------------------------------------------------------------------------------------------------------------


def read_npz(path: Path, answers: bool = True) -> Arrays:
    """The archive's inputs and targets under the first known names; or only its inputs, or its only array."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                found = [name.removesuffix(".npy") for name in archive.namelist()]
                parts = _parts(found, answers)
                stored = [[_read_npy(archive, key) for key in part] for part in parts]
                lengths = _read_npy(archive, "lengths") if "lengths" in found and len(parts) == 1 else None
        except ValueError:
            raise
        except Exception as error:  # zipfile and its codecs raise many kinds for damaged bytes
            raise ValueError(f"damaged or not an NPZ archive ({error})") from error
    for part, arrays in zip(parts, stored, strict=True):
        _check(part, arrays)
    if len(parts) == 1:
        return Arrays(stored[0][0], stored[0][1] if answers else None, lengths=lengths)
    training, test = stored
    joined = [_joined(*pair) for pair in zip(parts[1], training, test, strict=True)]
    left = tuple(name for name in found if name not in itertools.chain(*parts))
    return Arrays(joined[0], joined[1] if answers else None, len(test[0]), left)


@functools.cache
def _names(answers: bool) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Names of inputs and targets, or of inputs: first with separate training and test parts, then as one part."""
    pairs = [pair if answers else pair[:1] for pair in _PAIRS]
    split = (tuple(tuple(map(form.format, pair)) for form in forms) for pair in pairs for forms in _PARTS)
    return (*split, *((pair,) for pair in pairs))


def _parts(found: list[str], answers: bool) -> tuple[tuple[str, ...], ...]:
    for parts in _names(answers):
        if all(name in found for part in parts for name in part):
            return parts
    if len(found) == 1 and not answers:
        return ((found[0],),)
    accepted = ", ".join(" and ".join(parts[0]) for parts in _names(answers) if len(parts) == 1)
    each = "; or each with _train and _test" + ("" if answers else "; or a single array")
    raise ValueError(f"expected the keys {accepted}{each}; found {', '.join(found) or 'none'}")


def _check(part: tuple[str, ...], arrays: list[np.ndarray]) -> None:
    inputs, answers = arrays[0], arrays[-1]
    if inputs.ndim < 2 or inputs.dtype.kind == "U":
        raise ValueError(f"{part[0]}: expected numbers of rank 2 or more, got {inputs.dtype} of shape {inputs.shape}")
    if len(part) == 1:
        return
    if answers.ndim != 1 and (answers.ndim != 2 or answers.dtype.kind == "U"):
        raise ValueError(f"{part[1]}: expected rank 1, or numbers of rank 2, got {answers.dtype} of {answers.shape}")
    if len(inputs) != len(answers):
        raise ValueError(f"expected as many targets as inputs, got {len(inputs)} inputs and {len(answers)} targets")


def _joined(name: str, training: np.ndarray, test: np.ndarray) -> np.ndarray:
    words = training.dtype.kind == test.dtype.kind == "U"
    if training.shape[1:] != test.shape[1:] or not (words or training.dtype == test.dtype):
        expected, got = (f"{x.dtype} of shape (..., {', '.join(map(str, x.shape[1:]))})" for x in (training, test))
        raise ValueError(f"{name}: expected {expected}, like the training part, got {got}")
    return np.concatenate([training, test])


def _read_npy(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """An array of numbers or words; its header is checked before its data is read, and nothing is unpickled."""
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
        files.check_room(key, shape[0] if shape else 1, math.prod(shape[1:]) * math.ceil(dtype.itemsize / 8))
        expected, held = math.prod(shape) * dtype.itemsize, entry.file_size - member.tell()
        if held != expected:
            raise ValueError(f"{key}: expected {expected} bytes of data for shape {shape}, got {held}")
        return np.frombuffer(member.read(expected), dtype).reshape(shape, order="F" if fortran_order else "C")


# IDX ------------------------------------------------------------------------------------------------------------------


def read_folder(folder: Path, labels: Path | None, answers: bool, tests: bool) -> Arrays:
    """The folder's only pair of IDX files, or the training pair and, with `tests`, the test pair (t10k) next to it."""
    found = sorted(path for path in folder.iterdir() if "images" in path.name and IDX_NAME.search(path.name))
    candidates = [path for path in found if path.name.startswith("train-images")] or found
    if len(candidates) != 1:
        names = ", ".join(path.name for path in candidates) or "none"
        raise ValueError(f"expected one IDX images file such as train-images-idx3-ubyte, got {names}; give its path")
    training = read_idx(candidates[0], labels, answers)
    beside = [path for path in found if path.name.startswith("t10k-images") and path != candidates[0]]
    if not tests or labels is not None or len(beside) != 1 or (answers and not _labels_beside(beside[0]).is_file()):
        return training
    test = read_idx(beside[0], None, answers)
    codes = _joined("test labels", training.answers, test.answers) if answers else None
    return Arrays(_joined("test images", training.inputs, test.inputs), codes, len(test.inputs))


def read_idx(images: Path, labels: Path | None, answers: bool) -> Arrays:
    """An images file and its labels, by default from the file with the matching name."""
    if not answers:
        return Arrays(_read_idx("images", images), None)
    beside = _labels_beside(images) if labels is None else labels
    pixels, codes = _read_idx("images", images), _read_idx("labels", beside)
    if len(pixels) != len(codes):
        raise ValueError(f"expected as many targets as inputs, got {len(pixels)} inputs and {len(codes)} targets")
    return Arrays(pixels, codes)


def _read_idx(role: Literal["images", "labels"], path: Path) -> np.ndarray:
    """The array of an IDX file, which must be exactly as long as its header says. Format: Y. LeCun's MNIST page."""
    if not path.is_file():
        raise ValueError(f"{role}: no file {str(path)!r}")
    with files.reading(path) as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_DTYPES or magic[3] == 0:
            expected = "00 00, a type code (08, 09, 0b to 0e) and the rank"
            raise ValueError(f"{role}: not an IDX file; expected {expected} first, got {magic.hex(' ') or 'nothing'}")
        dtype, rank = np.dtype(IDX_DTYPES[magic[2]]), magic[3]
        if (rank == 1) != (role == "labels"):
            holds = "labels" if rank == 1 else "images"
            raise ValueError(f"{role}: {path.name!r} is mislabelled: its rank is {rank}, so it holds {holds}")
        # A signed byte is one flipped bit from an unsigned one and equally long, so no other check would notice it.
        accepted = "iu" if role == "labels" else "uf" if dtype.itemsize == 1 else "if"
        if dtype.kind not in accepted:
            raise ValueError(f"{role}: type code {magic[2]:02x} ({dtype.name}) is not accepted for {role}")
        sizes = _read_at_most(file, 4 * rank)
        if len(sizes) < 4 * rank:
            raise ValueError(f"{role}: truncated: expected {4 * rank} bytes of sizes, got {len(sizes)}")
        shape = struct.unpack(f">{rank}I", sizes)
        files.check_room(role, shape[0], math.prod(shape[1:]))
        expected = math.prod(shape) * dtype.itemsize
        data = _read_at_most(file, expected + 1)
    if len(data) != expected:
        got = f"got {len(data)}" if len(data) < expected else "got more"
        problem = "truncated" if len(data) < expected else "trailing bytes"
        raise ValueError(f"{role}: {problem}: expected {expected} bytes of data for shape {shape}, {got}")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_at_most(file: BinaryIO, limit: int) -> bytearray:
    """Up to `limit` bytes, in pieces: a single call would allocate memory for a false `limit` before reading
    anything.
    """
    data = bytearray()
    while piece := file.read(min(limit - len(data), 2**20)):
        data += piece
    return data


def _labels_beside(images: Path) -> Path:
    for of_images, of_labels in _IDX_PAIRS:
        if of_images in images.name:
            return images.with_name(images.name.replace(of_images, of_labels))
    raise ValueError(f"no labels file has a name like {images.name!r}; give labels=")
