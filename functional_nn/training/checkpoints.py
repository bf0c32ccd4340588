"""Save and resume: a checkpoint is one file, written whole or not at all, and read with suspicion.

The file is a zip in which nothing is compressed and nothing pickled: `manifest.json` says what there is, and each leaf
is a one-dimensional uint8 array that `np.load` reads too: its bytes, so that bfloat16 and nan come back bit for bit.
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

_FORMAT, _VERSION = "functional_nn checkpoint", 1
_MANIFEST = "manifest.json"
MADE_OF = "made of"  # in a configuration: digests of what its settings are made of
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
    """A file that is not a whole checkpoint, or not the one that is asked for."""


class Checkpoint(NamedTuple):
    """config: as it was given; leaves: arrays and typed keys by path; path: of the file they were read from."""

    config: dict
    leaves: dict[str, Any]
    path: Path


# One file -------------------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike, tree: Any, config: dict) -> None:
    """Writes a tree of arrays, numbers and typed PRNG keys, and a JSON configuration, to the file `path`.

    The file that was there stays until the new one is whole and on the disk. Folders are made. Raises ValueError for a
    configuration that JSON does not hold, nan and infinity among them, TypeError for leaves that are not numbers.
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


def read(path: str | os.PathLike) -> Checkpoint:
    """What `write` wrote. Raises CheckpointError for every file that is not exactly that.

    Nothing in the file is run, and no size it states is believed before it agrees with the file's own.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise CheckpointError("not a regular file")
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            config, leaves = _contents(archive, os.fstat(file.fileno()).st_size)
    except Exception as error:  # a broken file makes zipfile, json and numpy raise nearly anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refused(path, reason or type(error).__name__) from error
    return Checkpoint(config, leaves, path)


def restore(checkpoint: Checkpoint, like: Any) -> Any:
    """The leaves as NumPy arrays and typed keys, in the structure of `like`: a tree of arrays or ShapeDtypeStructs.

    Raises CheckpointError naming the first three paths that are missing, unknown, or of another shape or dtype.
    """
    expected, leaves = _by_path(like), dict(checkpoint.leaves)
    for path in expected.keys() - leaves.keys():
        if checks.once(path) in leaves:
            leaves[path] = leaves.pop(checks.once(path))
    differing = []
    for path in expected | leaves:
        wanted = _kind(expected[path]) if path in expected else "nothing"
        found = _kind(leaves[path]) if path in leaves else "nothing"
        if wanted != found:
            differing.append(f"{path or 'the array'}: expected {wanted}, found {found}")
    if differing:
        raise _refused(checkpoint.path, _first_three(differing))
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in expected])


def check_config(checkpoint: Checkpoint, config: dict) -> None:
    """Raises CheckpointError naming the first three settings, as in "plan/size", that are not those of the file.

    What stands under `MADE_OF` are digests by setting, with "python", the version they hold for, and "unread", settings
    that they do not tell the whole of. Warns where these cannot be compared.
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
            f"{checkpoint.path}: whether these are what it was made with cannot be told: {names}", stacklevel=3
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


def _without_digests(config: dict, place: tuple[str, ...] = ()) -> tuple[dict, dict[tuple[str, ...], dict]]:
    """The configuration without its digests, and these by their place in it."""
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
    """The leaf as a contiguous array of a known dtype, and the implementation where it is a key."""
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
    """The .npy header, version 1.0, of `size` bytes: the only one that is written or read."""
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
    """The leaf's dtype and shape, as in "float32 (64, 32)"."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype.name} {tuple(leaf.shape)}"


def _json_config(config: dict) -> dict:
    """The configuration as it comes back from JSON: tuples as lists."""
    if not isinstance(config, dict):
        raise ValueError(f"config: expected a dict, got {type(config).__name__}")
    try:
        return json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"config: expected what JSON holds; {error}") from None


def _settings(config: dict) -> dict[str, Any]:
    """The values of a nested configuration by their path, lists whole."""
    flat, rest = {}, list(config.items())
    while rest:
        path, value = rest.pop(0)
        if isinstance(value, dict) and value:
            rest = [(f"{path}/{name}", inner) for name, inner in value.items()] + rest
        else:
            flat[path] = value
    return flat


def _brief(value: Any, same: int = 0) -> str:
    """Sixty characters of it at most, with what comes after the first `same` of them."""
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
    """The newest checkpoints of one training, in one folder. Made by `keep`."""

    folder: Path
    last: int
    every: int

    def check(self) -> None:
        """Raises OSError where no file can be written to the folder, which is made."""
        probe = self._file(0).with_name(f".{self._file(0).name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(f"checkpoint: {str(self.folder)!r} cannot be written to: {error.strerror}") from None

    def due(self, chunk: int) -> bool:
        """True where the chunk of epochs just done, counted from 1, ends with a checkpoint."""
        return checks.integer("due", "chunk", chunk, 1) % self.every == 0

    def numbers(self) -> tuple[int, ...]:
        """The numbers of the checkpoints there are, whole or not, in rising order."""
        if not self.folder.is_dir():
            return ()
        names = {path.name for path in self.folder.iterdir() if not path.is_dir()}
        numbers = sorted(int(match.group(1)) for match in map(_NAME.fullmatch, names) if match)
        return tuple(number for number in numbers if self._file(number).name in names)

    def save(self, number: int, tree: Any, config: dict) -> None:
        """Writes the checkpoint `number`, the epochs done, as `write` does; then removes all but the newest `last`.

        The one just written always stays, also among newer ones of an earlier training.
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
        """The newest checkpoint that is whole, and its number; None where there is no file.

        Warns of those newer that are broken. Raises CheckpointError where there are files and none of them is whole.
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
        """The checkpoint with that number. Raises CheckpointError where it is not there, or not whole."""
        return read(self._file(number))

    def _file(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number:08d}.npz"


def keep(folder: str | os.PathLike, last: int = 3, every: int = 1) -> Checkpoints:
    """Checkpoints in `folder`, made if need be: one each `every` chunks of epochs, of which the newest `last` stay.

    Raises ValueError for last < 1, every < 1, and a `folder` that is a file.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"keep: folder must be a path, got {type(folder).__name__}")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"keep: folder must be a folder, got the file {os.fspath(folder)!r}")
    return Checkpoints(Path(folder), checks.integer("keep", "last", last, 1), checks.integer("keep", "every", every, 1))


def _being_written(pid: int, began: int) -> bool:
    """Whether the writer of a temporary file, known by its process and its monotonic clock, may still be at it."""
    if pid == os.getpid():  # in a container an earlier run often had the same id
        return _IMPORTED <= began <= time.monotonic_ns()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
