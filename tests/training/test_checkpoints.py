"""Checkpoints: what is written comes back bit for bit, what is broken is refused, what is killed stays whole."""

import io
import itertools
import json
import math
import os
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn.training import checkpoints
from functional_nn.training.checkpoints import CheckpointError, keep, read, restore, write

CONFIG = {"epochs": {"plan": [64, 32], "count": 10}, "rate": 0.1, "name": "tanh", "none": None, "shuffle": True}
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)


class State(NamedTuple):
    params: Any
    step: Any
    moments: Any


def same(found, expected):
    """The same structure, and leaves of the same dtype, shape and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if hasattr(other, "dtype") and jax.dtypes.issubdtype(other.dtype, jax.dtypes.prng_key):
            assert one.dtype == other.dtype
            one, other = np.asarray(jax.random.key_data(one)), jax.random.key_data(other)
        other = np.asarray(other)
        assert type(one) is np.ndarray and one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def every_bit_pattern(dtype):
    """Random bits: nan with payloads, subnormal numbers and infinities among them; and -0.0."""
    dtype = jnp.dtype(dtype)
    if dtype.kind == "b":
        return np.array([[True, False, True]])
    bits = np.random.default_rng(3).bytes(60 * dtype.itemsize)
    array = np.frombuffer(bits, dtype).reshape(3, 4, 5).copy()
    array[0, 0, 0] = -0.0 if dtype.kind not in "iu" else 0
    if dtype.kind not in "biu":
        array[0, 0, 1] = np.nan
        array.view(np.uint8)[0, 0, dtype.itemsize] ^= 1  # a payload
    return array


# What comes back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    array = every_bit_pattern(dtype)
    tree = {"numpy": array, "jax": jnp.asarray(array), "strided": array.T[::2], "one": array[:1, :1].ravel()[0]}
    tree |= {"empty": array[:0], "no axes": jnp.asarray(array.ravel()[0]), "reversed": array[::-1]}
    write(tmp_path / "a.npz", tree, CONFIG)
    same(restore(read(tmp_path / "a.npz"), tree), tree)
    if dtype not in ("bool", "int8", "uint8", "bfloat16"):
        swapped = array.astype(array.dtype.newbyteorder(">"))
        write(tmp_path / "a.npz", swapped, CONFIG)
        same(restore(read(tmp_path / "a.npz"), swapped), swapped.astype(dtype))


def test_keys_come_back(tmp_path):
    tree = {impl: jax.random.key(3, impl=impl) for impl in ("threefry2x32", "rbg", "unsafe_rbg")}
    tree |= {"many": jax.random.split(jax.random.key(1), (2, 3)), "raw": jax.random.PRNGKey(0)}
    write(tmp_path / "a.npz", tree, {})
    found = restore(read(tmp_path / "a.npz"), jax.eval_shape(lambda: tree))
    same(found, tree)
    assert jax.random.normal(found["many"][1, 2]) == jax.random.normal(tree["many"][1, 2])


TREES = {
    "an array": np.arange(3.0),
    "nothing": None,
    "numbers": {"integer": 3, "float": 0.1, "truth": True, "scalar": np.float32(2)},
    "a state": State({"layer1": {"weights": {"p 1": jnp.ones((2, 3))}, "bias": None}}, jnp.int32(4), ((), [np.eye(2)])),
    "odd names": {"": np.zeros(1), "schön": np.ones(2), '"\n\\': np.zeros(3), "long" * 300: np.zeros(0)},
    "many": [np.full(2, i) for i in range(300)],
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_every_structure_comes_back(tmp_path, tree):
    write(tmp_path / "new" / "folders" / "a.npz", tree, CONFIG)
    checkpoint = read(str(tmp_path / "new" / "folders" / "a.npz"))
    assert checkpoint.config == CONFIG
    same(restore(checkpoint, tree), jax.tree.map(np.asarray, tree))


def test_a_sharded_array_comes_back(tmp_path):
    mesh = jax.make_mesh((1,), ("members",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("members"))
    tree = jax.device_put(jnp.arange(6.0), sharding)
    write(tmp_path / "a.npz", tree, {})
    same(restore(read(tmp_path / "a.npz"), tree), tree)


def test_what_comes_back_can_be_changed_and_is_aligned(tmp_path):
    write(tmp_path / "a.npz", np.arange(3.0), {})
    array = read(tmp_path / "a.npz").leaves[""]
    assert array.flags.aligned
    array += 1
    np.testing.assert_array_equal(array, [1, 2, 3])


def test_numpy_reads_the_bytes_too(tmp_path):
    write(tmp_path / "a.npz", {"b": np.arange(3.0), "a": np.zeros((0, 2))}, {})
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        arrays = [np.load(io.BytesIO(archive.read(f"{i}.npy")), allow_pickle=False) for i in range(2)]
    assert all(array.dtype == np.uint8 for array in arrays)
    np.testing.assert_array_equal(arrays[1].view(np.float64), np.arange(3.0))
    assert arrays[0].size == 0


def test_the_same_tree_gives_the_same_file(tmp_path):
    for name in ("a.npz", "b.npz"):
        write(tmp_path / name, TREES["a state"], CONFIG)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_what_cannot_be_kept_is_refused_and_nothing_is_written(tmp_path):
    for tree, config, error, message in (
        ({"a": np.array([None])}, {}, TypeError, "a: expected an array of bool, .*, got dtype object"),
        ({"a": {"b": "word"}}, {}, TypeError, "a/b: expected an array of bool, .*, got str"),
        ({"a": 2**70}, {}, TypeError, "a: expected an array of bool, .*, got int"),
        ({"a": np.array("x")}, {}, TypeError, "got dtype <U1"),
        ({"a": jnp.zeros(2, jnp.float8_e5m2)}, {}, TypeError, "got dtype float8_e5m2"),
        ({"a/b": 1, "a": {"b": 2}}, {}, ValueError, "two leaves of the tree have the same path"),
        (1, {"a": math.nan}, ValueError, "config: expected a dict that JSON can represent"),
        (1, {"a": [math.inf]}, ValueError, "config: expected a dict that JSON can represent"),
        (1, {"a": np.zeros(2)}, ValueError, "config: expected a dict that JSON can represent; .* ndarray"),
        (1, [1], ValueError, "config: expected a dict, got list"),
    ):
        with pytest.raises(error, match=message):
            write(tmp_path / "a.npz", tree, config)
    assert not list(tmp_path.iterdir())


# What does not fit ----------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    tree = {"layer1": {"weights": np.zeros((16, 64), np.float32), "bias": np.zeros(16)}, "key": jax.random.key(0)}
    write(tmp_path / "a.npz", tree, CONFIG)
    return read(tmp_path / "a.npz"), tree


REFUSED = {
    "another shape": (
        {"layer1": {"weights": jax.ShapeDtypeStruct((32, 64), jnp.float32)}},
        "layer1/weights: expected float32 (32, 64), found float32 (16, 64)",
    ),
    "another dtype": (
        {"layer1": {"bias": np.zeros(16, np.int64)}},
        "layer1/bias: expected int64 (16,), found float64 (16,)",
    ),
    "missing": ({"extra": 1.5}, "extra: expected float64 (), found nothing"),
    "unknown": ({"key": None}, "key: expected nothing, found key<fry> ()"),
    "another kind of key": ({"key": jax.random.key(0, impl="rbg")}, "key: expected key<rbg> (), found key<fry> ()"),
    "a key for numbers": ({"key": np.zeros(2, np.uint32)}, "key: expected uint32 (2,), found key<fry> ()"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_restore_names_what_differs(kept, change, message):
    checkpoint, tree = kept
    like = tree | change | {"layer1": tree["layer1"] | change.get("layer1", {})}
    with pytest.raises(CheckpointError) as caught:
        restore(checkpoint, like)
    assert str(caught.value) == f"checkpoint {checkpoint.path}: {message}"


def test_restore_names_three(kept):
    with pytest.raises(CheckpointError) as caught:
        restore(kept[0], {"a": 1, "b": {}, "key": jax.random.key(0), "layer1": np.zeros(2)})
    assert str(caught.value).endswith(
        "a.npz: a: expected int64 (), found nothing; layer1: expected float64 (2,), found nothing; "
        "layer1/bias: expected nothing, found float64 (16,); and 1 more"
    )


def test_another_configuration_is_refused(kept):
    checkpoint, _ = kept
    checkpoints.check_config(checkpoint, CONFIG)
    checkpoints.check_config(checkpoint, CONFIG | {"epochs": {"plan": (64, 32), "count": 10}})
    for change, message in (
        ({"rate": 0.2}, "made with rate = 0.1, now 0.2"),
        ({"epochs": {"plan": [64], "count": 10}}, "made with epochs/plan = [64, 32], now [64]"),
        ({"epochs": {"plan": [64, 32]}}, "made with epochs/count = 10, now without"),
        ({"new": {"a": 1}}, "made without new/a, now 1"),
        (
            {"name": "x" * 99, "rate": 1, "none": 0, "epochs": 3},
            "made with epochs/plan = [64, 32], now without; made with epochs/count = 10, now without; "
            "made with rate = 0.1, now 1; and 3 more",
        ),
    ):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.check_config(checkpoint, CONFIG | change)
        assert str(caught.value) == f"checkpoint {checkpoint.path}: {message}"


# What is broken -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A file whose leaves are all of one size, so that nothing but the checks tells one from another."""
    tree = {"a": np.arange(2.0), "b": np.arange(2.0) + 5, "c": np.arange(4, dtype=np.float32), "k": jax.random.key(2)}
    write(tmp_path / "small.npz", tree, {"rate": 0.1})
    return tmp_path / "small.npz", tree


def refused_or_right(path, tree):
    """True where the file is refused; fails where anything but what was written comes back."""
    try:
        checkpoint = read(path)
    except CheckpointError as error:
        assert str(error).startswith(f"checkpoint {path}: ") and "\n" not in str(error)
        return True
    assert checkpoint.config == {"rate": 0.1}
    same(restore(checkpoint, tree), tree)
    return False


def test_flipped_bits_are_seen(small):
    path, tree = small
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for bit in rng.choice(8 * len(whole), 500, replace=False):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        refused += refused_or_right(path, tree)
    assert refused > 300


def test_truncated_files_are_refused(small):
    path, tree = small
    whole = path.read_bytes()
    for length in np.random.default_rng(1).choice(len(whole), 100, replace=False):
        path.write_bytes(whole[:length])
        assert refused_or_right(path, tree), length
    path.write_bytes(whole[100:])
    assert refused_or_right(path, tree)
    path.write_bytes(whole)
    assert not refused_or_right(path, tree)


def test_overwritten_stretches_are_seen(small):
    """A block of the file in another's place, as a file system may leave it."""
    path, tree = small
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(100):
        length = int(rng.integers(1, 200))
        source, target = rng.integers(0, len(whole) - length, 2)
        broken = bytearray(whole)
        broken[target : target + length] = whole[source : source + length]
        path.write_bytes(broken)
        refused_or_right(path, tree)


def parts(path):
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(entries.pop("manifest.json")), entries


def forge(path, manifest, entries, compression=zipfile.ZIP_STORED):
    manifest = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in [
            *(entries.items() if isinstance(entries, dict) else entries),
            ("manifest.json", manifest),
        ]:
            archive.writestr(name, content)


def npy(array, **settings):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **settings)
    return buffer.getvalue()


def leaf_with(**changes):
    def change(manifest, entries):
        manifest["leaves"][0] |= changes
        return manifest, entries

    return change


def manifest_with(**changes):
    return lambda manifest, entries: (manifest | changes, entries)


def entry_with(content, **changes):
    def change(manifest, entries):
        manifest["leaves"][0] |= {"crc32": zlib.crc32(content[128:])} | changes
        return manifest, entries | {"0.npy": content}

    return change


def swapped(manifest, entries):
    return manifest, entries | {"0.npy": entries["1.npy"], "1.npy": entries["0.npy"]}


def redirected(manifest, entries):
    manifest["leaves"][0]["entry"] = "1.npy"
    return manifest, entries


def without_a_field(manifest, entries):
    del manifest["leaves"][0]["crc32"]
    return manifest, entries


def renamed(manifest, entries):
    return manifest, {{"0.npy": "zero.npy"}.get(name, name): content for name, content in entries.items()}


def same_path_twice(manifest, entries):
    manifest["leaves"][1]["path"] = "a"
    return manifest, entries


class Pickled:
    def __reduce__(self):
        return os.abort, ()


OBJECTS = npy(np.array([Pickled(), Pickled()], object), allow_pickle=True)
FORGED = {
    "pickled objects": (entry_with(OBJECTS), "leaf 'a' is not float64 of shape"),
    "a pickle of the right size": (entry_with(OBJECTS[:144].ljust(144)), "leaf 'a' is not an array of 16 bytes"),
    "a header of another dtype": (entry_with(npy(np.arange(2.0))), "leaf 'a' is not an array of 16 bytes"),
    "a header of another shape": (entry_with(npy(np.zeros((4, 4), np.uint8))), "leaf 'a' is not an array of 16 bytes"),
    "object as dtype": (leaf_with(dtype="object"), "leaf 'a' has the dtype 'object'"),
    "a list as dtype": (leaf_with(dtype=["f8"]), r"leaf 'a' has the dtype \['f8'\]"),
    "a huge shape": (leaf_with(shape=[2**40]), "leaf 'a' is not float64 of shape"),
    "a shape beyond 64 bits": (leaf_with(shape=[2**63]), "leaf 'a' has the shape"),
    "a shape whose size wraps around to its own": (leaf_with(shape=[2**32, 2**32, 2]), "leaf 'a' is not float64"),
    "a shape with too many axes": (leaf_with(shape=[1] * 100 + [2]), "checkpoint"),
    "an empty but huge shape": (entry_with(npy(np.zeros(0, np.uint8)), shape=[0, 2**62, 2**62]), "checkpoint"),
    "a negative shape": (leaf_with(shape=[-2]), r"leaf 'a' has the shape \[-2\]"),
    "two negative sizes": (leaf_with(shape=[-2, -1]), "leaf 'a' has the shape"),
    "a fraction as shape": (leaf_with(shape=[2.0]), "leaf 'a' has the shape"),
    "a truth as shape": (leaf_with(shape=[2, True]), "leaf 'a' has the shape"),
    "a number as shape": (leaf_with(shape=2), "leaf 'a' has the shape 2"),
    "another dtype of the same size": (leaf_with(dtype="float32"), "leaf 'a' is not float32 of shape"),
    "truths that are neither": (leaf_with(dtype="bool", shape=[16]), "leaf 'a' holds what is neither True nor False"),
    "a key that is none": (leaf_with(key="threefry2x32"), "checkpoint"),
    "an unknown key": (leaf_with(key="md5"), "leaf 'a' is a key of 'md5'"),
    "a list as key": (leaf_with(key=["rbg"]), r"leaf 'a' is a key of \['rbg'\]"),
    "a path that is none": (leaf_with(path=3), "leaf 0 has the path 3"),
    "a path twice": (same_path_twice, "leaf 1 has the path 'a'"),
    "an entry swapped": (swapped, "leaf 'a' is not what was written"),
    "an entry redirected": (redirected, "leaf 'a' is in entry '1.npy'"),
    "an entry renamed": (renamed, "its entries are not the 4 that manifest.json lists"),
    "an entry missing": (lambda m, e: (m, {n: c for n, c in e.items() if n != "2.npy"}), "its entries are not the 4"),
    "an entry too many": (lambda m, e: (m, e | {"4.npy": b""}), "its entries are not the 4 that"),
    "a leaf without its crc": (without_a_field, "leaf 0 is not described"),
    "a leaf that is a list": (manifest_with(leaves=[[]] * 4), "leaf 0 is not described"),
    "leaves that are none": (manifest_with(leaves=None), "manifest.json has no config or no leaves"),
    "a config that is none": (manifest_with(config=[]), "manifest.json has no config or no leaves"),
    "a later version": (manifest_with(version=2), "version 2, expected 1"),
    "a version that is a truth": (manifest_with(version=True), "version True, expected 1"),
    "another format": (manifest_with(format="x"), "manifest.json is not a functional_nn checkpoint's"),
    "a list as manifest": (lambda m, e: ([m], e), "manifest.json is not a functional_nn checkpoint's"),
    "nan in the config": (manifest_with(config={"a": math.nan}), "manifest.json holds NaN"),
    "deeply nested JSON": (lambda m, e: (b"[" * 200_000, e), "recursion"),
    "broken JSON": (lambda m, e: (b'{"format": ', e), "Expecting value"),
    "a number of many digits": (lambda m, e: (b'{"version": ' + b"9" * 10_000 + b"}", e), "checkpoint"),
    "bytes as manifest": (lambda m, e: (b"\xff\xfe\x00", e), "decode"),
    "an empty manifest": (lambda m, e: (b"", e), "Expecting value"),
}


@pytest.mark.parametrize("change, message", FORGED.values(), ids=FORGED)
def test_forged_files_are_refused(small, change, message):
    path, _ = small
    forge(path, *change(*parts(path)))
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"checkpoint {path}: ") and "\n" not in str(caught.value)


def test_a_forgery_that_changes_nothing_is_read(small):
    path, tree = small
    forge(path, *parts(path))
    assert not refused_or_right(path, tree)


def test_compressed_encrypted_and_doubled_entries_are_refused(small):
    path, _ = small
    manifest, entries = parts(path)
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        forge(path, manifest, entries, compression)
        with pytest.raises(CheckpointError, match="is compressed"):
            read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forge(path, manifest, [*entries.items(), ("0.npy", entries["1.npy"])])
    with pytest.raises(CheckpointError, match="an entry appears twice"):
        read(path)
    forge(path, manifest, entries)
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02") + 8] |= 1  # "encrypted", in the first entry of the directory
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="encrypted"):
        read(path)


def test_what_is_no_zip_file_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "whole", 1, {})
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    os.mkfifo(tmp_path / "pipe")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    messages = {
        "not a zip file": ("empty", "text", "array.npy"),
        "not a regular file": ("folder", "link", "pipe"),
        "there is no manifest.json": ("arrays.npz",),
        "No such file or directory": ("absent",),
    }
    for name, message in ((name, message) for message, names in messages.items() for name in names):
        with pytest.raises(CheckpointError, match=f"checkpoint {tmp_path / name}: .*{message}"):
            read(tmp_path / name)


def bomb(path):
    """100 MB of zeros in 100 KB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("manifest.json", "w") as out:
            for _ in range(100):
                out.write(bytes(1_000_000))


def overlapping(path):
    """100 leaves, whole and of half a megabyte each, in little more than that: each lies in the one before."""
    block, leaves, entries = bytes(500_000), [], []
    for number in reversed(range(100)):
        content = npy(np.frombuffer(block, np.uint8))
        leaf = {"path": str(number), "dtype": "uint8", "shape": [len(block)], "key": None, "entry": f"{number}.npy"}
        leaves.insert(0, leaf | {"crc32": zlib.crc32(block)})
        info = zipfile.ZipInfo(f"{number}.npy")
        info.CRC, info.file_size, info.compress_size = zlib.crc32(content), len(content), len(content)
        entries.insert(0, info)
        block = info.FileHeader() + content
    entries[0].header_offset = 0
    for outer, inner in itertools.pairwise(entries):
        inner.header_offset = outer.header_offset + len(outer.FileHeader()) + 128
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.npy", content)
        archive.filelist += entries[1:]
        manifest = {"format": "functional_nn checkpoint", "version": 1, "config": {}, "leaves": leaves}
        archive.writestr("manifest.json", json.dumps(manifest))


def oversized(path):
    """Entries that state 2 GB."""
    write(path, np.zeros(2), {})
    content = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x01\x02", 20), (b"PK\x03\x04", 18)):
        at = content.find(magic) + place
        content[at : at + 8] = (2**31 - 1).to_bytes(4, "little") * 2
    path.write_bytes(content)


def vast_directory(path):
    write(path, np.zeros(2), {})
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x05\x06") + 12
    content[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(content)


def huge_shape(path):
    write(path, np.zeros(2), {})
    forge(path, *leaf_with(shape=[2**27])(*parts(path)))


def huge_keys(path):
    write(path, jax.random.key(0), {})
    forge(path, *leaf_with(shape=[2**27, 2])(*parts(path)))


def nested(path):
    forge(path, b"[" * 1_000_000, {})


MEMORY = {
    bomb: "entry 'manifest.json' is compressed",
    overlapping: "its entries are larger than the file",
    oversized: "its entries are larger than the file",
    vast_directory: "checkpoint .*forged.npz: ",  # then zipfile's own words
    huge_shape: "leaf '' is not float64 of shape",
    huge_keys: "leaf '' is not uint32 of shape",
    nested: "recursion",
}


@pytest.mark.parametrize("make, message", MEMORY.items())
def test_no_forged_file_takes_memory(tmp_path, make, message):
    path = tmp_path / "forged.npz"
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message):
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000 + 3 * path.stat().st_size


# What is interrupted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["full", "interrupted"])
@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_an_interrupted_write_leaves_the_older_file(tmp_path, monkeypatch, function, error):
    kept = keep(tmp_path, last=1)
    kept.save(1, {"a": np.zeros(3)}, {})
    before = (tmp_path / "checkpoint-00000001.npz").read_bytes()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        for number in (1, 2):
            with pytest.raises(type(error)):
                kept.save(number, {"a": np.ones(3)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001.npz"]
    assert (tmp_path / "checkpoint-00000001.npz").read_bytes() == before


def test_a_name_is_given_only_to_what_is_on_the_disk(tmp_path, monkeypatch):
    """The order of the calls: the file to the disk, then its name, then the folder to the disk."""
    calls, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    write(tmp_path / "a.npz", np.zeros(3), {})
    assert calls[1:] == ["replace", str(tmp_path)]
    assert calls[0].startswith(f"{tmp_path}/.a.npz.{os.getpid()}.")


KILLED = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
import numpy as np
from functional_nn.training import checkpoints

warnings.simplefilter("ignore")  # of forking where JAX is imported: what is forked here never runs a JAX computation
folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
kept, random, counts = checkpoints.keep(folder, last=2), random.Random(seed), {"left": 0, "numbers": []}

def tree(number):
    return {"a": np.full(40_000, number), "b": [np.full((100, 100), number, np.float32), np.full(3, number)]}

for _ in range(kills):
    writer = os.fork()
    if writer == 0:
        found = kept.newest()
        number = found[0] if found else 0
        while True:
            number += 1
            kept.save(number, tree(number), {"number": number})
    time.sleep(random.uniform(0, 0.1))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    counts["left"] += any(path.name.startswith(".") for path in folder.iterdir())
    warnings.simplefilter("error")  # a broken one that is left out is a failure too
    found = kept.newest()
    warnings.simplefilter("ignore")
    if found is None:
        assert not kept.numbers() and not counts["numbers"]
        continue
    number, checkpoint = found
    restored = checkpoints.restore(checkpoint, tree(0))
    assert checkpoint.config == {"number": number}
    assert all((leaf == number).all() for leaf in (restored["a"], *restored["b"])), number
    assert number >= max(counts["numbers"], default=0), "an earlier one came back"
    assert len(kept.numbers()) <= 3
    counts["numbers"].append(number)
kept.save(number + 1, tree(number + 1), {})
assert sorted(path.name for path in folder.iterdir()) == [f"checkpoint-{n:08d}.npz" for n in (number, number + 1)]
print(json.dumps(counts))
"""


def kill(folder, kills):
    folder.mkdir()
    command = [sys.executable, "-c", KILLED, str(folder), str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["numbers"][-1] > len(counts["numbers"]), "hardly anything was written"
    return counts


def test_a_killed_writer_leaves_whole_checkpoints(tmp_path):
    kill(tmp_path / "kept", 3)


@pytest.mark.slow
def test_a_writer_killed_100_times_leaves_whole_checkpoints(tmp_path):
    counts = kill(tmp_path / "kept", 100)
    assert counts["left"] > 20, "the kills seldom came while a file was written"


# A folder of them -----------------------------------------------------------------------------------------------------


def test_the_newest_stay(tmp_path):
    kept = keep(tmp_path / "run" / "kept", last=3)
    assert kept.numbers() == () and kept.newest() is None
    for number in (0, 2, 5, 9, 100_000_000):
        kept.save(number, {"a": np.full(3, number)}, {"number": number})
    assert kept.numbers() == (5, 9, 100_000_000)
    number, checkpoint = kept.newest()
    assert number == 100_000_000 and checkpoint.config == {"number": number}
    assert (checkpoint.leaves["a"] == number).all()
    assert len(list(kept.folder.iterdir())) == 3


@pytest.mark.parametrize("last, left", [(1, (4,)), (2, (4, 9)), (3, (4, 8, 9)), (9, (4, 7, 8, 9))])
def test_the_one_just_written_stays_among_newer_ones(tmp_path, last, left):
    for number in (7, 8, 9):
        keep(tmp_path, last=3).save(number, 1, {})
    keep(tmp_path, last=last).save(4, 1, {})
    assert keep(tmp_path).numbers() == left


def test_other_files_are_let_alone(tmp_path):
    names = ("checkpoint-1.npz", "checkpoint-000000001.npz", "checkpoint-00000001.npz.bak", ".hidden", "results.csv")
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / "checkpoint-00000007.npz").mkdir()
    kept = keep(tmp_path, last=1)
    kept.save(3, 1, {})
    kept.save(4, 1, {})
    assert kept.numbers() == (4,)
    assert {path.name for path in tmp_path.iterdir()} == {*names, *(f"checkpoint-0000000{n}.npz" for n in (4, 7))}


def test_a_broken_newest_is_left_out_with_a_warning(tmp_path):
    kept = keep(tmp_path)
    for number in (1, 2, 3):
        kept.save(number, np.full(2, number), {})
    (tmp_path / "checkpoint-00000003.npz").write_bytes(b"PK")
    with pytest.warns(UserWarning, match="left out: checkpoint .*00000003.npz: File is not a zip file"):
        number, checkpoint = kept.newest()
    assert number == 2 and (checkpoint.leaves[""] == 2).all()
    for other in (1, 2):
        (tmp_path / f"checkpoint-0000000{other}.npz").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="none of the 3 files in this folder is whole"):
        kept.newest()


def test_what_dead_writers_left_is_cleared_away(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = keep(tmp_path)
    stale = (f"{dead.pid}.5", f"{os.getpid()}.5", f"{os.getpid()}.{2**63}")
    now = checkpoints.time.monotonic_ns()
    alive = (f"{os.getppid()}.5", f"{os.getpid()}.{now}", "1.5")
    for owner in (*stale, *alive):
        (tmp_path / f".checkpoint-00000001.npz.{owner}.tmp").touch()
    kept.save(1, 1, {})
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == {f".checkpoint-00000001.npz.{owner}.tmp" for owner in alive}


def test_checkpoints_are_due_each_so_many_chunks():
    assert [keep("x", every=3).due(chunk) for chunk in range(1, 8)] == [False, False, True] * 2 + [False]
    assert all(keep("x").due(chunk) for chunk in range(1, 5))


def test_keep_is_a_plain_value_and_refuses(tmp_path):
    assert keep("x") == keep(checkpoints.Path("x"), last=3, every=1) and hash(keep("x"))
    (tmp_path / "file").touch()
    for build, error, message in (
        (lambda: keep("x", last=0), ValueError, "keep: last must be an integer >= 1, got 0"),
        (lambda: keep("x", every=1.5), ValueError, "keep: every must be an integer >= 1, got 1.5"),
        (lambda: keep(3), TypeError, "keep: folder must be a path, got int"),
        (lambda: keep(tmp_path / "file"), ValueError, "keep: folder must be a folder, got the file"),
        (lambda: keep(tmp_path).save(-1, 1, {}), ValueError, "save: number must be an integer >= 0, got -1"),
        (lambda: keep(tmp_path).due(0), ValueError, "due: chunk must be an integer >= 1, got 0"),
    ):
        with pytest.raises(error, match=message):
            build()
