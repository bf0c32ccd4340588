"""Saving and resuming: a checkpoint is one file, written whole or not at all, and checked when it is read.

The file is a zip archive in which nothing is compressed and nothing is pickled. `manifest.json` lists its contents.
Each leaf is a one-dimensional uint8 array that `np.load` can read: its bytes, so that bfloat16 and nan come back bit
for bit.
"""

import json
import math
import os
import re
import stat
import struct
import time
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_nn import checks

__all__ = ["Checkpoint", "CheckpointError", "Checkpoints", "keep", "read", "restore", "write"]

_FORMAT, _VERSION = "functional_nn checkpoint", 1
_MANIFEST = "manifest.json"
MADE_OF = "made of"  # in a configuration: the digests of its settings
_FIELDS = {"path", "dtype", "shape", "key", "entry", "crc32"}
_DTYPES = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (
        *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.float16, jnp.bfloat16, np.float32, np.float64, np.complex64, np.complex128),
    )
}
_KEYS = ("threefry2x32", "rbg", "unsafe_rbg")
_HEADER_SIZE = 128
_NAME = re.compile(r"checkpoint-([0-9]{8,})\.npz")
_TEMPORARY = re.compile(r"\.checkpoint-[0-9]{8,}\.npz\.([0-9]{1,9})\.([0-9]+)\.tmp")
_IMPORTED = time.monotonic_ns()


class CheckpointError(ValueError):
    """Raised for a file that is no whole checkpoint, or one of another network, data or settings."""


class Checkpoint(NamedTuple):
    """The contents of one file. Returned by `read`.

    Attributes:
        config: the configuration it was written with.
        leaves: {path in the tree: NumPy array or typed PRNG key}.
        path: of the file.

    Example:
        >>> import pathlib
        >>> from functional_nn.training import checkpoints
        >>> checkpoints.Checkpoint({}, {}, pathlib.Path("run/checkpoint-00000010.npz")).path.name
        'checkpoint-00000010.npz'
    """

    config: dict[str, Any]
    leaves: dict[str, Any]
    path: Path


# One file -------------------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], tree: Any, config: dict[str, Any]) -> None:
    """Writes a tree and a configuration to a file.

    An earlier file of that name is kept until the new one is whole and on the disk. Missing folders are made.

    Args:
        path: of the file.
        tree: of arrays, numbers and typed PRNG keys.
        config: a dict that JSON can represent, without nan and infinity.

    Raises:
        ValueError: if JSON cannot represent the configuration.
        TypeError: for leaves that are not numbers.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from functional_nn.training import checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "mine.npz")
        ...     checkpoints.write(path, {"weights": np.ones((2, 3))}, {"note": "mine"})
        ...     checkpoints.read(path).config
        {'note': 'mine'}
    """
    path = Path(path)
    leaves = {name: _stored(name, leaf) for name, leaf in _by_path(tree).items()}
    manifest = {"format": _FORMAT, "version": _VERSION, "config": _json_config(config), "leaves": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        with open(temporary, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for number, (name, (data, key)) in enumerate(leaves.items()):
                    raw = data.reshape(-1).view(np.uint8)
                    entry = f"{number}.npy"
                    with archive.open(zipfile.ZipInfo(entry), "w", force_zip64=True) as out:
                        out.write(_header(raw.size))
                        out.write(raw)
                    described = {"path": name, "dtype": data.dtype.name, "shape": data.shape, "key": key}
                    manifest["leaves"].append(described | {"entry": entry, "crc32": zlib.crc32(raw)})
                archive.writestr(zipfile.ZipInfo(_MANIFEST), json.dumps(manifest, allow_nan=False))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, is on the disk
    finally:
        os.close(folder)


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a file that `write` wrote.

    Nothing in the file is executed, and no size in it is used before it agrees with the size of the file.

    Args:
        path: of the file.

    Returns:
        A `Checkpoint`; `restore` gives its leaves the structure of a tree.

    Raises:
        CheckpointError: for every file that is not exactly what `write` wrote.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from functional_nn.training import checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "mine.npz")
        ...     checkpoints.write(path, {"weights": np.ones((2, 3))}, {})
        ...     checkpoints.read(path).leaves["weights"].shape
        (2, 3)
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise CheckpointError("not a regular file")
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            config, leaves = _contents(archive, os.fstat(file.fileno()).st_size)
    except Exception as error:  # for a broken file, zipfile, json and numpy may raise nearly anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refused(path, reason or type(error).__name__) from error
    return Checkpoint(config, leaves, path)


def restore(checkpoint: Checkpoint, like: Any) -> Any:
    """Returns the leaves of a checkpoint in the structure of a tree.

    Args:
        checkpoint: returned by `read`.
        like: a tree of arrays or ShapeDtypeStructs, such as that which was written.

    Returns:
        A tree like `like` of NumPy arrays and typed PRNG keys.

    Raises:
        CheckpointError: naming the first three paths that are missing, unknown, or of another shape or dtype.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from functional_nn.training import checkpoints
        >>> tree = {"weights": np.ones((2, 3)), "step": np.int32(7)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "mine.npz")
        ...     checkpoints.write(path, tree, {})
        ...     int(checkpoints.restore(checkpoints.read(path), tree)["step"])
        7
    """
    expected, leaves = _by_path(like), dict(checkpoint.leaves)
    for path in expected.keys() - leaves.keys():
        if checks.former_path(path) in leaves:
            leaves[path] = leaves.pop(checks.former_path(path))
    differing = []
    for path in expected | leaves:
        wanted = _kind(expected[path]) if path in expected else "nothing"
        found = _kind(leaves[path]) if path in leaves else "nothing"
        if wanted != found:
            differing.append(f"{path or 'the array'}: expected {wanted}, found {found}")
    if differing:
        raise _refused(checkpoint.path, _first_three(differing))
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in expected])


def check_config(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """Raises CheckpointError naming the first three settings, such as "plan/size", that differ from the file's.

    Under `MADE_OF` are digests by setting; "python", the version for which they are valid; and "unread", the settings
    that could not be read completely. Warns about settings that cannot be compared.
    """
    made_with, digests = _without_digests(checkpoint.config)
    now, own_digests = _without_digests(_json_config(config))
    made_with, now = _settings(made_with), _settings(now)
    differing, unsure = [], []
    for place, own in own_digests.items():
        found = digests.get(place)
        if found is None or found.get("python") != own["python"]:
            unsure += own.keys() - {"python", "unread"}
            continue
        unsure += {*own["unread"], *found["unread"]}
        for name in sorted((own.keys() | found.keys()) - {"python", "unread"}):
            if own.get(name) != found.get(name):
                path = "/".join([*place, name])
                if not any(
                    _is_under(path, other) and made_with.get(other) != now.get(other) for other in now | made_with
                ):
                    differing.append(f"made with another {path}, by its functions, arrays or constants")
    if unsure and not differing:
        names = ", ".join(sorted(set(unsure)))
        warnings.warn(
            f"{checkpoint.path}: it is not known whether it was made with the same settings: {names}", stacklevel=3
        )
    for path in made_with | now:
        if path not in made_with:
            differing.append(f"made without {path}, now {_brief(now[path])}")
        elif path not in now:
            differing.append(f"made with {path} = {_brief(made_with[path])}, now without")
        elif made_with[path] != now[path]:
            then, own = made_with[path], now[path]
            same = os.path.commonprefix([repr(then), repr(own)])
            differing.append(f"made with {path} = {_brief(then, len(same))}, now {_brief(own, len(same))}")
    if differing:
        raise _refused(checkpoint.path, _first_three(differing))


def _without_digests(config: dict[str, Any], place: tuple[str, ...] = ()) -> tuple[dict, dict[tuple[str, ...], dict]]:
    """Returns the configuration without its digests, and the digests by their place in it."""
    plain, found = {}, {}
    for name, value in config.items():
        if name == MADE_OF:
            found[place] = value
        elif isinstance(value, dict):
            plain[name], inner = _without_digests(value, (*place, name))
            found |= inner
        else:
            plain[name] = value
    return plain, found


def _is_under(path: str, other: str) -> bool:
    return other == path or other.startswith(f"{path}/")


def _stored(name: str, leaf: Any) -> tuple[np.ndarray, str | None]:
    """Returns the leaf as a contiguous array of a known dtype and, if it is a key, its implementation."""
    key = None
    if _is_key(leaf):
        key, leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
        if key not in _KEYS:
            raise TypeError(f"{name or 'the tree'}: expected a key of {', '.join(_KEYS)}, got {key}")
    data = np.asarray(leaf)
    if data.dtype.name not in _DTYPES:
        given = f"dtype {data.dtype}" if hasattr(leaf, "dtype") else type(leaf).__name__
        raise TypeError(f"{name or 'the tree'}: expected an array of {', '.join(_DTYPES)}, got {given}")
    return np.asarray(data, _DTYPES[data.dtype.name], order="C"), key


def _header(size: int) -> bytes:
    """Returns the .npy header, version 1.0, of `size` bytes: the only kind that is written or read."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}"
    length = _HEADER_SIZE - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"


def _contents(archive: zipfile.ZipFile, file_size: int) -> tuple[dict, dict[str, Any]]:
    entries = {info.filename: info for info in archive.infolist()}
    _demand(len(entries) == len(archive.infolist()), "an entry appears twice")
    for name, info in entries.items():
        plain = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
        _demand(plain, f"entry {name!r} is compressed")
    _demand(sum(info.file_size for info in entries.values()) <= file_size, "its entries are larger than the file")
    _demand(_MANIFEST in entries, f"there is no {_MANIFEST}")
    manifest = json.loads(archive.read(_MANIFEST).decode(), parse_constant=_no_number)
    _demand(isinstance(manifest, dict) and manifest.get("format") == _FORMAT, f"{_MANIFEST} is not a {_FORMAT}'s")
    version = manifest.get("version")
    _demand(type(version) is int and version == _VERSION, f"version {_brief(version)}, expected {_VERSION}")
    config, described = manifest.get("config"), manifest.get("leaves")
    _demand(isinstance(config, dict) and isinstance(described, list), f"{_MANIFEST} has no config or no leaves")
    names = {f"{number}.npy" for number in range(len(described))}
    _demand(entries.keys() == names | {_MANIFEST}, f"its entries are not the {len(described)} that {_MANIFEST} lists")
    leaves = {}
    for number, leaf in enumerate(described):
        _demand(isinstance(leaf, dict) and leaf.keys() == _FIELDS, f"leaf {number} is not described")
        path = leaf["path"]
        _demand(isinstance(path, str) and path not in leaves, f"leaf {number} has the path {_brief(path)}")
        _demand(leaf["entry"] == f"{number}.npy", f"leaf {path!r} is in entry {_brief(leaf['entry'])}")
        leaves[path] = _leaf(archive, entries[f"{number}.npy"], leaf)
    return config, leaves


def _leaf(archive: zipfile.ZipFile, info: zipfile.ZipInfo, leaf: dict) -> Any:
    name, dtype, shape, key = repr(leaf["path"]), leaf["dtype"], leaf["shape"], leaf["key"]
    _demand(isinstance(dtype, str) and dtype in _DTYPES, f"leaf {name} has the dtype {_brief(dtype)}")
    proper = isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**63 for n in shape)
    _demand(proper, f"leaf {name} has the shape {_brief(shape)}")
    size = math.prod(shape) * _DTYPES[dtype].itemsize
    _demand(info.file_size == _HEADER_SIZE + size, f"leaf {name} is not {dtype} of shape {_brief(tuple(shape))}")
    entry = archive.read(info)
    _demand(entry[:_HEADER_SIZE] == _header(size), f"leaf {name} is not an array of {size} bytes")
    raw = np.frombuffer(entry, np.uint8)[_HEADER_SIZE:]
    _demand(zlib.crc32(raw) == leaf["crc32"], f"leaf {name} is not what was written")
    _demand(dtype != "bool" or raw.max(initial=0) <= 1, f"leaf {name} holds what is neither True nor False")
    data = raw.copy().view(_DTYPES[dtype]).reshape(shape)
    if key is None:
        return data
    _demand(key in _KEYS, f"leaf {name} is a key of {_brief(key)}")
    return jax.random.wrap_key_data(data, impl=key)


def _demand(right: bool, reason: str) -> None:
    if not right:
        raise CheckpointError(reason)


def _no_number(name: str):
    raise CheckpointError(f"{_MANIFEST} holds {name}, which JSON does not")


def _refused(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(" ".join(f"checkpoint {path}: {reason}".split()))


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = checks.by_path(tree)
    if len(leaves) != len(jax.tree.leaves(tree)):
        raise ValueError("two leaves of the tree have the same path; use names without '/'")
    return leaves


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> str:
    """Returns the leaf's dtype and shape, such as "float32 (64, 32)"."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype.name} {tuple(leaf.shape)}"


def _json_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration as it comes back from JSON, tuples as lists."""
    if not isinstance(config, dict):
        raise ValueError(f"config: expected a dict, got {type(config).__name__}")
    try:
        return json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"config: expected a dict that JSON can represent; {error}") from None


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a nested configuration by their path; lists are values."""
    flat, rest = {}, list(config.items())
    while rest:
        path, value = rest.pop(0)
        if isinstance(value, dict) and value:
            rest = [(f"{path}/{name}", inner) for name, inner in value.items()] + rest
        else:
            flat[path] = value
    return flat


def _brief(value: Any, same: int = 0) -> str:
    """Returns at most sixty characters of a value's repr; a common beginning of `same` characters is shortened."""
    text = repr(value)
    if len(text) > 60 and same > 40:
        text = f"...{text[same - 20 :]}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_three(differing: list[str]) -> str:
    more = len(differing) - 3
    return "; ".join(differing[:3]) + (f"; and {more} more" if more > 0 else "")


# A folder of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoints:
    """The newest checkpoints of one training, in one folder. Made by `keep`.

    Attributes:
        folder: where they are.
        last: how many are kept.
        every: how many chunks of epochs there are from one to the next.

    Example:
        >>> import pathlib
        >>> from functional_nn.training import checkpoints
        >>> kept = checkpoints.Checkpoints(pathlib.Path("run"), last=3, every=2)
        >>> [chunk for chunk in range(1, 7) if kept.due(chunk)]
        [2, 4, 6]
    """

    folder: Path
    last: int
    every: int

    def check(self) -> None:
        """Makes the folder. Raises OSError if no file can be written to it."""
        probe = self._file(0).with_name(f".{self._file(0).name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(f"checkpoint: {str(self.folder)!r} cannot be written to: {error.strerror}") from None

    def due(self, chunk: int) -> bool:
        """Returns True if a checkpoint is saved after this chunk of epochs.

        Args:
            chunk: the number of the chunk just done, counted from 1.
        """
        return checks.integer("due", "chunk", chunk, 1) % self.every == 0

    def numbers(self) -> tuple[int, ...]:
        """Returns the numbers of the checkpoints in the folder, whole or not, in ascending order."""
        if not self.folder.is_dir():
            return ()
        names = {path.name for path in self.folder.iterdir() if not path.is_dir()}
        numbers = sorted(int(match.group(1)) for match in map(_NAME.fullmatch, names) if match)
        return tuple(number for number in numbers if self._file(number).name in names)

    def save(self, number: int, tree: Any, config: dict[str, Any]) -> None:
        """Writes a checkpoint as `write` does, then removes all but the newest `last`.

        The one just written is always kept, also among newer ones of an earlier training.

        Args:
            number: how many epochs (or chunks of data) are done; part of the file's name.
            tree: as in `write`.
            config: as in `write`.
        """
        write(self._file(checks.integer("save", "number", number, 0)), tree, config)
        others = [other for other in self.numbers() if other != number]
        for old in others[: max(0, len(others) + 1 - self.last)]:
            self._file(old).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if match and not _being_written(*map(int, match.groups())):
                path.unlink(missing_ok=True)

    def newest(self) -> tuple[int, Checkpoint] | None:
        """Returns the number and the contents of the newest checkpoint that is whole; None if there is no file.

        Warns about newer ones that are broken. Raises CheckpointError if there are files and none of them is whole.
        """
        numbers = self.numbers()
        for number in reversed(numbers):
            try:
                return number, read(self._file(number))
            except CheckpointError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
        if numbers:
            raise _refused(self.folder, f"none of the {len(numbers)} files in this folder is whole")
        return None

    def at(self, number: int) -> Checkpoint:
        """Returns the checkpoint of that number.

        Args:
            number: one of `numbers`.

        Raises:
            CheckpointError: if the file is missing or not whole.
        """
        return read(self._file(number))

    def _file(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number:08d}.npz"


def keep(folder: str | os.PathLike[str], last: int = 3, every: int = 1) -> Checkpoints:
    """Keeps the checkpoints of a training in a folder, for `fit(checkpoint=...)` and `fit_population`.

    Args:
        folder: where they are written; made when training starts.
        last: how many of the newest are kept.
        every: how many chunks of epochs there are from one to the next. One is also saved at the end.

    Returns:
        Checkpoints for `fit(checkpoint=...)`, from which `resume=True` continues.

    Raises:
        ValueError: for last < 1, every < 1, and a folder that is a file.
        TypeError: if `folder` is not a path.

    Example:
        >>> import tempfile, jax, numpy as np, functional_nn as fnn
        >>> from functional_nn.training import checkpoints
        >>> network, data = fnn.multilayer((2, 1), ("linear",)), (np.eye(2), np.ones((2, 1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     settings = {"key": jax.random.key(0), "checkpoint": checkpoints.keep(folder)}
        ...     first = fnn.fit(network, "mean_square_error", "gd(0.1)", *data, epochs=2, **settings)
        ...     whole = fnn.fit(network, "mean_square_error", "gd(0.1)", *data, epochs=3, resume=True, **settings)
        >>> len(first.history.epoch), len(whole.history.epoch)
        (2, 3)
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"keep: folder must be a path, got {type(folder).__name__}")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"keep: folder must be a folder, got the file {os.fspath(folder)!r}")
    return Checkpoints(Path(folder), checks.integer("keep", "last", last, 1), checks.integer("keep", "every", every, 1))


def _being_written(pid: int, began: int) -> bool:
    """Returns True if a temporary file may still be being written, by its process and its monotonic clock."""
    if pid == os.getpid():  # in a container, an earlier run often had the same id
        return _IMPORTED <= began <= time.monotonic_ns()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
