"""What `load` gives for good files and says of bad ones; what `split` and `Standardizer` keep."""

import dataclasses
import gzip
import io
import math
import struct
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from functional_nn.lab import datasets
from functional_nn.lab.datasets import (
    BUNDLED,
    Dataset,
    fit_min_max,
    fit_standardizer,
    load,
    load_as,
    load_inputs,
    split,
)

_TYPE_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pack(contents):
    return gzip.compress(contents, mtime=0)  # no time of day: test names hold these bytes


def idx_bytes(array):
    """The IDX form of `array`, written from the format's description and not with the module's reader."""
    kind = array.dtype.str[1:]
    header = bytes([0, 0, _TYPE_CODES[kind], array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return header + array.astype(">" + kind).tobytes()


def npz_bytes(**contents):
    buffer = io.BytesIO()
    np.savez(buffer, **contents)
    return buffer.getvalue()


def write(path, contents):
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return path


def pictures(count=6, shape=(3, 2)):
    return np.random.default_rng(5).integers(0, 256, (count, *shape)).astype("u1")


def check_invariants(dataset):
    count, inputs = dataset.inputs.shape
    assert dataset.inputs.dtype == dataset.targets.dtype == np.float64
    assert len(dataset.features) == inputs and all(type(name) is str for name in dataset.features)
    assert np.isfinite(dataset.inputs).all() and np.isfinite(dataset.targets).all()
    assert dataset.targets.ndim == 2 and len(dataset.targets) == count
    if dataset.image_shape is not None:
        assert math.prod(dataset.image_shape) == inputs
    if dataset.task == "regression":
        assert dataset.labels is None and dataset.classes == ()
    else:
        assert dataset.labels.dtype == np.int64 and all(type(name) is str for name in dataset.classes)
        assert np.array_equal(dataset.targets, np.eye(len(dataset.classes))[dataset.labels])


# Bundled sets


@pytest.mark.parametrize(
    ("name", "shape", "targets", "first"),
    [
        ("digits", (1797, 64), 10, 5 / 16),  # its third pixel: the first two are margin
        ("iris", (150, 4), 3, 1.4),
        ("wine", (178, 13), 3, 2.43),
        ("breast_cancer", (569, 30), 2, 122.8),
        ("diabetes", (442, 10), 1, 32.1),
    ],
)
def test_bundled(name, shape, targets, first):
    dataset = load(name)
    check_invariants(dataset)
    assert dataset.name == name and dataset.inputs.shape == shape and dataset.targets.shape[1] == targets
    assert dataset.inputs[0, 2] == first
    assert dataset.task == ("regression" if name == "diabetes" else "classification")
    assert dataset.image_shape == ((8, 8) if name == "digits" else None)


def test_digits_lie_between_0_and_1():
    inputs = load("digits").inputs
    assert inputs.min() == 0 and inputs.max() == 1


@pytest.mark.parametrize(("name", "task"), [("iris", "regression"), ("diabetes", "classification")])
def test_bundled_sets_have_one_task(name, task):
    with pytest.raises(ValueError, match=f"{name}: is a .* set; .* got '{task}'"):
        load(name, task=task)


@pytest.mark.parametrize("given", ["digts", "Iris", "whine", "breast-cancer"])
def test_an_unknown_name_gets_the_nearest_one_as_a_hint(given):
    with pytest.raises(
        ValueError, match=rf"unknown data set '{given}'; did you mean '\w+'\? \(accepted: digits, .*IDX"
    ):
        load(given)


def test_an_unknown_name_unlike_all_others_gets_no_hint():
    with pytest.raises(ValueError, match=r"unknown data set 'zzzzzz' \(accepted: digits"):
        load("zzzzzz")


@pytest.mark.parametrize("given", ["missing.csv", "no/such/folder", "x" * 5000 + ".npz", "nul\0.csv"])
def test_missing_files(given):
    with pytest.raises(ValueError, match=r"no file '.*' \(accepted: digits"):
        load(given)


def test_a_path_is_never_a_bundled_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no file 'iris'"):
        load(datasets.Path("iris"))


def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'classify'; expected one of auto, classification, regression"):
        load("iris", task="classify")


@pytest.mark.parametrize("name", ["iris", "a.npz", "a.idx3"])
def test_target_is_for_csv(tmp_path, name):
    source = name if name == "iris" else write(tmp_path / name, b"")
    with pytest.raises(ValueError, match="target='y' is only for a CSV file"):
        load(source, target="y")


@pytest.mark.parametrize("name", ["iris", "a.npz", "a.csv"])
def test_labels_are_for_idx(tmp_path, name):
    source = name if name == "iris" else write(tmp_path / name, b"")
    with pytest.raises(ValueError, match="labels='y' is only for IDX images"):
        load(source, labels="y")


@pytest.mark.parametrize("contents", [b"", b"\0\0", b"hello world", b"\0\0\x0a\x03", b"\0\1\x08\x03", pack(b"a,b")])
def test_unknown_formats(tmp_path, contents):
    with pytest.raises(ValueError, match="cannot tell its format .* expected a path to a .csv"):
        load(write(tmp_path / "data.bin", contents))


# NPZ


@pytest.mark.parametrize("keys", [("inputs", "targets"), ("x", "y"), ("X", "y"), ("data", "target")])
@pytest.mark.parametrize("dtype", ["f8", ">f4", "f2", "i8", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, keys, dtype, order, save):
    inputs = np.asarray(np.random.default_rng(1).integers(0, 9, (6, 3)).astype(dtype), order=order)
    save(tmp_path / "a.npz", extra=np.zeros(1), **dict(zip(keys, (inputs, np.arange(6) % 2), strict=True)))
    dataset = load(str(tmp_path / "a.npz"))
    check_invariants(dataset)
    assert np.array_equal(dataset.inputs, inputs) and dataset.labels.tolist() == [0, 1] * 3
    assert dataset.features == ("input_0", "input_1", "input_2") and dataset.image_shape is None


@pytest.mark.parametrize(
    ("targets", "task", "expected", "classes"),
    [
        (np.array([5, 3, 3, 5]), "auto", [[0, 1], [1, 0], [1, 0], [0, 1]], ("3", "5")),
        (np.array([5, 3, 4, 5]), "auto", [[5], [3], [4], [5]], ()),
        (np.array([5, 3, 4, 5], "u1"), "classification", [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], ("3", "4", "5")),
        (np.array([[5], [3], [3], [5]]), "auto", [[0, 1], [1, 0], [1, 0], [0, 1]], ("3", "5")),
        (np.array([True, False, False, True]), "auto", [[0, 1], [1, 0], [1, 0], [0, 1]], ("0", "1")),
        (np.array(["b", "a", "a", "b"]), "auto", [[0, 1], [1, 0], [1, 0], [0, 1]], ("a", "b")),
        (np.array([0.5, 1, 1, 0.5]), "auto", [[0.5], [1], [1], [0.5]], ()),
        (np.eye(4), "auto", np.eye(4), ("0", "1", "2", "3")),
        (np.eye(5, dtype=bool)[:4], "classification", np.eye(5)[:4], ("0", "1", "2", "3", "4")),
        (np.eye(4), "regression", np.eye(4), ()),
        (np.eye(4) * 0.5, "auto", np.eye(4) * 0.5, ()),
        (np.ones((4, 2)), "auto", np.ones((4, 2)), ()),
        (np.array([[-1, 2]] * 4), "auto", [[-1, 2]] * 4, ()),
    ],
)
def test_npz_targets(tmp_path, targets, task, expected, classes):
    dataset = load(write(tmp_path / "a.npz", npz_bytes(x=np.zeros((4, 2)), y=targets)), task=task)
    check_invariants(dataset)
    assert dataset.targets.tolist() == np.asarray(expected).tolist() and dataset.classes == classes


@pytest.mark.parametrize(("shape", "image_shape"), [((4, 3, 2), (3, 2)), ((4, 3, 2, 2), None)])
def test_npz_flattens(tmp_path, shape, image_shape):
    inputs = np.arange(math.prod(shape)).reshape(shape)
    dataset = load(write(tmp_path / "a.npz", npz_bytes(x=inputs, y=np.array([0, 1, 0, 1]))))
    check_invariants(dataset)
    assert np.array_equal(dataset.inputs.reshape(shape), inputs) and dataset.image_shape == image_shape
    assert dataset.features[1] == ("input_1" if image_shape is None else "pixel_0_1")


def _with(array, index, value):
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("contents", "options", "message"),
    [
        ({"x": np.zeros((2, 2))}, {}, "expected the keys inputs and targets, .*; found x"),
        ({"x_train": np.zeros(1), "y_train": np.zeros(1)}, {}, "found x_train, y_train"),
        ({}, {}, "found none"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, {}, "got 4 inputs and 3 targets"),
        ({"x": np.zeros(4), "y": np.zeros(4)}, {}, "x: expected numbers of rank 2 or more"),
        ({"x": np.zeros(()), "y": np.zeros(4)}, {}, "x: expected numbers of rank 2 or more"),
        ({"x": np.full((4, 2), "a"), "y": np.zeros(4)}, {}, "x: expected numbers of rank 2 or more, got <U1"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(())}, {}, "y: expected rank 1"),
        ({"x": np.zeros((4, 2)), "y": np.zeros((4, 1, 1))}, {}, "y: expected rank 1"),
        ({"x": np.zeros((2, 2)), "y": np.full((2, 2), "a")}, {}, "y: expected rank 1"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, {}, "holds no data"),
        ({"x": np.zeros((4, 0)), "y": np.zeros(4)}, {}, "holds no data"),
        ({"x": np.zeros((4, 2)), "y": np.zeros((4, 0))}, {}, "holds no data"),
        ({"x": _with(np.zeros((4, 2)), (3, 1), np.nan), "y": np.zeros(4)}, {}, r"inputs: .* nan at index \(3, 1\)"),
        ({"x": np.zeros((4, 2)), "y": _with(np.zeros(4), 2, np.inf)}, {}, r"targets: .* inf at index \(2,\)"),
        ({"x": np.zeros((4, 2)), "y": _with(np.zeros((4, 2)), (1, 0), -np.inf)}, {}, r"targets: .* at index \(1, 0\)"),
        ({"x": np.zeros((4, 2)), "y": np.array([0, -1, 0, 0])}, {}, "labels of 0 and above, got -1 at index 1"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4, int)}, {}, "at least two classes, got only '0'"),
        ({"x": np.zeros((4, 2)), "y": np.eye(2)[[1] * 4]}, {}, "at least two classes, got only '1'"),
        ({"x": np.zeros((4, 2)), "y": np.ones((4, 2))}, {"task": "classification"}, "expects one-hot rows"),
        ({"x": np.zeros((2, 2)), "y": np.array(["a", "b"])}, {"task": "regression"}, "expects numbers, got 'a'"),
        ({"x": np.zeros((3, 2)), "y": np.array(["a", "b", "nan"])}, {}, "targets: missing value, got 'nan' at index 2"),
        ({"x": np.zeros((3, 2)), "y": np.array(["a", "", "b"])}, {}, "targets: missing value, got '' at index 1"),
        ({"x": np.zeros((4, 2), complex), "y": np.zeros(4)}, {}, "x: expected numbers .* got dtype complex128"),
        ({"x": np.zeros((4, 2), np.longdouble), "y": np.zeros(4)}, {}, "x: expected numbers of at most 64 bits"),
        ({"x": np.zeros((4, 2)), "y": np.array([b"a"] * 4)}, {}, r"y: .* got dtype \|S1"),
        ({"x": np.zeros((4, 2)), "y": np.array([{}] * 4, object)}, {}, "y: .* got dtype object"),
        ({"x": np.zeros(4, [("a", "f8")]), "y": np.zeros(4)}, {}, "x: expected numbers"),
    ],
)
def test_npz_refused(tmp_path, contents, options, message):
    path = write(tmp_path / "a.npz", npz_bytes(**contents))
    with pytest.raises(ValueError, match=message) as refusal:
        load(path, **options)
    assert str(refusal.value).startswith(f"{path}: ")


def npz_of(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in members.items():
            archive.writestr(f"{name}.npy", contents)
    return buffer.getvalue()


def npy_of(shape, data=b"", version=(1, 0), descr="<f8"):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + data


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy_of((2**40, 2)), f"x: {2**40} x 2 numbers need .* bytes; at most {4 * 2**30}"),
        (npy_of((1, 2**40)), "at most"),
        (npy_of((1, 2**27)), "at most"),  # the numbers would fit, the names of their columns not
        (npy_of((2**29, 8), bytes(64), descr="|u1"), "at most"),  # small as bytes, large as float64
        (npy_of((2, 2), bytes(31)), r"x: expected 32 bytes of data for shape \(2, 2\), got 31"),
        (npy_of((2, 2), bytes(33)), "x: expected 32 bytes .* got 33"),
        (npy_of((10**6, 2), bytes(32)), "x: expected 16000000 bytes .* got 32"),
        (npy_of((-2, -2), bytes(32)), "x: negative shape"),
        (npy_of((2, 2), bytes(32), version=(3, 0)), r"x: expected .npy format 1.0 or 2.0, got \(3, 0\)"),
        (npy_of(("2", 2), bytes(32)), "shape"),
        (b"not an array at all", "magic"),
        (b"", "EOF"),
        (npy_of((2, 2), bytes(32))[:20], "EOF"),
    ],
)
def test_npz_headers_are_read_first(tmp_path, member, message):
    path = write(tmp_path / "a.npz", npz_of(x=member, y=npy_of((2,), bytes(16))))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_npz_format_2(tmp_path):
    data = np.array([[1.0, 2.0], [3.0, 4.0]])
    member = npy_of((2, 2), data.tobytes(), version=(2, 0))
    dataset = load(write(tmp_path / "a.npz", npz_of(x=member, y=npy_of((2,), np.array([0.5, 1.5]).tobytes()))))
    assert np.array_equal(dataset.inputs, data)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_damage_is_refused_or_harmless(tmp_path, save):
    """Cut anywhere: refused. A flipped bit: refused, or a bit that means nothing (a date, an attribute)."""
    rng = np.random.default_rng(3)
    path = tmp_path / "a.npz"
    save(path, x=rng.normal(size=(6, 3)), y=np.arange(6) % 2)
    whole, contents = load(path), path.read_bytes()
    for length in range(len(contents)):
        with pytest.raises(ValueError):
            load(write(path, contents[:length]))
    refused = 0
    for bit in range(8 * len(contents)):
        flipped = bytearray(contents)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            dataset = load(write(path, flipped))
        except ValueError:
            refused += 1
        else:
            assert np.array_equal(dataset.inputs, whole.inputs) and np.array_equal(dataset.targets, whole.targets)
    assert refused > 4 * len(contents)


# IDX


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
        ("my-images.idx", "my-labels.idx"),
        ("my-images", "my-labels"),  # known by its first bytes
        ("my-images.idx3.gz", "my-labels.idx1.gz"),
    ],
)
def test_idx_pairs(tmp_path, images, labels):
    pixels, codes = pictures(), np.array([3, 7, 3, 0, 7, 3], "u1")
    for name, array in ((images, pixels), (labels, codes)):
        contents = idx_bytes(array)
        write(tmp_path / name, pack(contents) if name.endswith(".gz") else contents)
    dataset = load(tmp_path / images)
    check_invariants(dataset)
    assert np.array_equal(dataset.inputs, pixels.reshape(6, 6) / 255)
    assert dataset.labels.tolist() == [1, 2, 1, 0, 2, 1] and dataset.classes == ("0", "3", "7")
    assert dataset.image_shape == (3, 2) and dataset.features[:3] == ("pixel_0_0", "pixel_0_1", "pixel_1_0")


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("label_dtype", ["u1", "i1", "i2", "i4"])
@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 2), (4, 2, 2, 2)])
def test_idx_types(tmp_path, dtype, label_dtype, shape):
    pixels = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    labels = write(tmp_path / "b", idx_bytes(np.array([0, 1, 1, 0], label_dtype)))
    dataset = load(write(tmp_path / "a.idx", idx_bytes(pixels)), labels=labels)
    check_invariants(dataset)
    assert np.array_equal(dataset.inputs, pixels.reshape(4, -1) / (255 if dtype == "u1" else 1))
    assert dataset.image_shape == (shape[1:] if len(shape) == 3 else None)


def test_idx_labels_as_measurements(tmp_path):
    labels = write(tmp_path / "b", idx_bytes(np.arange(6, dtype="u1")))
    path = write(tmp_path / "a.idx", idx_bytes(pictures()))
    assert load(path, labels=labels).classes == tuple("012345")  # labels, although more than Q/2 distinct
    assert load(path, labels=labels, task="regression").targets[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


@in_one_folder
@given(
    pixels=arrays.arrays("u1", arrays.array_shapes(min_dims=3, max_dims=3, max_side=5).filter(lambda s: s[0] > 1)),
    data=st.data(),
    packed=st.booleans(),
)
def test_idx_round_trip(tmp_path, pixels, data, packed):
    codes = data.draw(arrays.arrays("u1", len(pixels)).filter(lambda codes: len(set(codes.tolist())) > 1))
    form = pack if packed else bytes
    labels = write(tmp_path / "labels", form(idx_bytes(codes)))
    dataset = load(write(tmp_path / "a.idx3", form(idx_bytes(pixels))), labels=labels)
    check_invariants(dataset)
    assert np.array_equal(np.rint(dataset.inputs * 255).reshape(pixels.shape), pixels)
    assert [int(dataset.classes[label]) for label in dataset.labels] == codes.tolist()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("role", ["images", "labels"])
def test_idx_truncated_anywhere(tmp_path, role, packed):
    arrays_of = {"images": pictures(), "labels": np.array([0, 1, 0, 1, 0, 1], "u1")}
    paths = {name: write(tmp_path / f"{name}.idx", idx_bytes(array)) for name, array in arrays_of.items()}
    contents = paths[role].read_bytes()
    for cut in (contents[:length] for length in range(len(contents))):
        write(paths[role], pack(cut) if packed else cut)
        with pytest.raises(
            ValueError, match=f"{role}: (not an IDX file|truncated: expected [0-9]+ bytes .* got [0-9]+)"
        ):
            load(paths["images"], labels=paths["labels"])
    for tail in (b"\0", b"\0" * 1000):
        write(paths[role], pack(contents + tail) if packed else contents + tail)
        with pytest.raises(ValueError, match=f"{role}: trailing bytes: expected [0-9]+ bytes .* got more"):
            load(paths["images"], labels=paths["labels"])


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("fill", [0, 1, 100])
def test_idx_images_header_flips_are_refused(tmp_path, dtype, fill):
    """The type, the rank and the sizes are bound to the length: a flipped bit shows, whatever the pixels."""
    pixels = np.full((6, 3, 2), fill, dtype)
    labels = write(tmp_path / "b", idx_bytes(np.array([0, 1] * 3, "u1")))
    contents = idx_bytes(pixels)
    as_long = {16} if dtype in ("i4", "f4") else set()  # 0c to 0d: nothing tells four-byte integers from floats
    for bit in sorted(set(range(8 * 16)) - as_long):
        flipped = bytearray(contents)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            load(write(tmp_path / "a.idx", flipped), labels=labels)


def test_idx_labels_header_flips_are_refused_or_harmless(tmp_path):
    images = write(tmp_path / "a.idx", idx_bytes(pictures()))
    contents = idx_bytes(np.array([0, 9, 5, 1, 9, 0], "u1"))
    labels = write(tmp_path / "b", contents)
    whole = load(images, labels=labels)
    harmless = []
    for bit in range(8 * 8):
        flipped = bytearray(contents)
        flipped[bit // 8] ^= 1 << bit % 8
        write(labels, flipped)
        try:
            dataset = load(images, labels=labels)
        except ValueError:
            continue
        harmless.append(bit)
        assert np.array_equal(dataset.targets, whole.targets) and dataset.classes == whole.classes
    assert harmless == [16]  # 08 to 09: bytes below 128 read the same, signed or not


@pytest.mark.parametrize("which", ["images", "labels"])
def test_idx_gzip_flips_are_refused_or_harmless(tmp_path, which):
    paths = {
        "images": write(tmp_path / "images.idx", pack(idx_bytes(pictures()))),
        "labels": write(tmp_path / "labels.idx", pack(idx_bytes(np.array([0, 1] * 3, "u1")))),
    }
    whole, contents = load(paths["images"], labels=paths["labels"]), paths[which].read_bytes()
    for bit in range(8 * len(contents)):
        flipped = bytearray(contents)
        flipped[bit // 8] ^= 1 << bit % 8
        write(paths[which], flipped)
        try:
            dataset = load(paths["images"], labels=paths["labels"])
        except ValueError:
            continue
        assert np.array_equal(dataset.inputs, whole.inputs) and np.array_equal(dataset.targets, whole.targets)


def _sizes(code, *sizes):
    return bytes([0, 0, code, len(sizes)]) + b"".join(struct.pack(">I", n) for n in sizes)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (b"\0\0\x08\0\x07", None, "images: not an IDX file; expected .* got 00 00 08 00"),
        (b"", None, "images: not an IDX file; .* got nothing"),
        (b"P5 28 28", None, "images: not an IDX file"),
        (None, b"P5 28 28", "labels: not an IDX file"),
        (idx_bytes(np.zeros(6, "u1")), None, "images: 'a.idx' is mislabelled: its rank is 1, so it holds labels"),
        (None, idx_bytes(pictures()), "labels: 'b' is mislabelled: its rank is 3, so it holds images"),
        (idx_bytes(pictures().astype("i1")), None, r"images: type code 09 \(int8\) is not accepted"),
        (None, idx_bytes(np.zeros(6, "f4")), r"labels: type code 0d \(float32\) is not accepted"),
        (None, idx_bytes(np.array([0, 1, 0, 1, 0], "u1")), "got 6 inputs and 5 targets"),
        (None, idx_bytes(np.array([0, 1, 0, 1, -3, 0], "i1")), "labels of 0 and above, got -3 at index 4"),
        (None, idx_bytes(np.zeros(6, "u1")), "at least two classes, got only '0'"),
        (idx_bytes(np.zeros((0, 3, 2), "u1")), idx_bytes(np.zeros(0, "u1")), "holds no data"),
        (idx_bytes(np.zeros((6, 0, 2), "u1")), None, "holds no data"),
        (idx_bytes(_with(np.zeros((6, 2, 2), "f4"), (4, 1, 0), np.nan)), None, r"inputs: .* nan at index \(4, 2\)"),
        (_sizes(0x08, 2**32 - 1, 2**32 - 1, 2**32 - 1), None, "images: .* at most"),
        (_sizes(0x08, *[255] * 255)[:-5], None, "images: truncated: expected 1020 bytes of sizes, got 1015"),
        (pack(_sizes(0x08, 10**5, 50, 50)), None, "images: truncated: expected 250000000 bytes"),
        (None, _sizes(0x08, 2**28), "labels: truncated: expected 268435456 bytes"),
    ],
)
def test_idx_refused(tmp_path, images, labels, message):
    path = write(tmp_path / "a.idx", idx_bytes(pictures()) if images is None else images)
    beside = write(tmp_path / "b", idx_bytes(np.array([0, 1] * 3, "u1")) if labels is None else labels)
    with pytest.raises(ValueError, match=message) as refusal:
        load(path, labels=beside)
    assert str(refusal.value).startswith(f"{path}: ")


def test_idx_false_sizes_take_no_room(tmp_path, monkeypatch):
    """A gzip bomb behind small sizes is left after one byte too many; large sizes before few bytes make no room."""
    asked = []
    original = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or original(self, size))
    labels = write(tmp_path / "b", idx_bytes(np.array([0, 1], "u1")))
    for sizes, tail in (((2, 2, 2), 10**7), ((10**5, 50, 50), 10)):
        path = write(tmp_path / "a.idx", pack(_sizes(0x08, *sizes) + bytes(tail)))
        with pytest.raises(ValueError, match="trailing|truncated"):
            load(path, labels=labels)
    assert asked and min(asked) >= 0 and max(asked) <= 2**20


def test_idx_labels_not_found(tmp_path):
    path = write(tmp_path / "train-images-idx3-ubyte", idx_bytes(pictures()))
    with pytest.raises(ValueError, match="labels: no file '.*train-labels-idx1-ubyte'"):
        load(path)
    with pytest.raises(ValueError, match="labels: no file '.*elsewhere'"):
        load(path, labels=tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="no labels file has a name like 'odd.idx'; give labels="):
        load(write(tmp_path / "odd.idx", idx_bytes(pictures())))


def fill_folder(folder, *names):
    for name in names:
        array = np.array([0, 1] * 3, "u1") if "labels" in name else pictures()
        write(folder / name, idx_bytes(array))


def test_folder(tmp_path):
    """The test pair comes after the training pair, and is held out."""
    train = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    fill_folder(tmp_path, "images.png", *train)
    alone = load(tmp_path)
    check_invariants(alone)
    assert alone.name == tmp_path.name and np.array_equal(alone.inputs, pictures().reshape(6, 6) / 255)
    write(tmp_path / "t10k-images-idx3-ubyte", idx_bytes(pictures(8)[6:]))
    assert len(load(tmp_path).inputs) == 6, "without labels it is no pair"
    write(tmp_path / "t10k-labels-idx1-ubyte", idx_bytes(np.array([1, 0], "u1")))
    both = load(tmp_path)
    assert both.own_test == 2 and np.array_equal(both.inputs[:6], alone.inputs)
    assert both.labels.tolist() == [0, 1] * 3 + [1, 0]
    training, test = split(both)
    assert len(training.inputs) == 6 and sorted(test.inputs.tolist()) == sorted(both.inputs[6:].tolist())
    older = dataclasses.replace(both.reading, own_test=False)
    assert len(load_as(tmp_path, older).inputs) == len(load_inputs(tmp_path, older)) == 6
    write(tmp_path / train[0], b"")
    with pytest.raises(ValueError, match="images: not an IDX file"):
        load(tmp_path)


def test_folder_with_a_single_pair(tmp_path):
    fill_folder(tmp_path, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    assert load(str(tmp_path)).task == "classification"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "expected one IDX images file .* got none"),
        (("labels-idx1-ubyte", "images.png"), "got none"),
        (("a-images-idx3-ubyte", "b-images-idx3-ubyte"), "got a-images-idx3-ubyte, b-images-idx3-ubyte; give its path"),
        (("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"), "got train-images-idx3-ubyte, train-images-"),
        (("t-images-idx3-ubyte",), "labels: no file '.*t-labels-idx1-ubyte'"),
    ],
)
def test_folder_refused(tmp_path, names, message):
    fill_folder(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


# Splitting


def numbered(labels=None, count=None, classes=()):
    """A set whose input is the example's number, so that rows can be followed."""
    count = len(labels) if count is None else count
    inputs = np.arange(count, dtype=np.float64)[:, None]
    if labels is None:
        return Dataset("numbered", inputs, 10 * inputs, None, (), ("n",), None)
    labels = np.asarray(labels, np.int64)
    return Dataset("numbered", inputs, np.eye(len(classes))[labels], labels, classes, ("n",), None)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("counts", [(2, 2), (2, 50), (7, 0, 3), (10, 10, 10), (3, 100, 41), None])
def test_split(fraction, seed, counts):
    if counts is None:
        dataset = numbered(count=57)
    else:
        labels = np.random.default_rng(9).permutation(np.repeat(np.arange(len(counts)), counts))
        dataset = numbered(labels, classes=tuple("abc"[: len(counts)]))
    parts = train, test = split(dataset, test_fraction=fraction, seed=seed)
    rows = [part.inputs[:, 0].astype(int) for part in parts]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(dataset.inputs)))
    for part, chosen in zip(parts, rows, strict=True):
        check_invariants(part)
        assert len(chosen) and np.array_equal(part.targets, dataset.targets[chosen])
        assert part.classes == dataset.classes and part.features == dataset.features
    for stratum, size in enumerate(counts or (57,)):
        tested = len(test.inputs) if counts is None else int((test.labels == stratum).sum())
        assert tested == (min(max(round(fraction * size), 1), size - 1) if size else 0)


def test_split_is_fixed_by_its_seed():
    dataset = load("iris")
    first, again, other = (split(dataset, seed=seed)[1].inputs for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert {*map(tuple, first)} != {*map(tuple, other)}  # other examples, not the same in another order


@pytest.mark.parametrize("name", ["iris", "diabetes"])
def test_split_shuffles_both_parts(name):
    dataset = load(name)
    numbers = dataset._replace(inputs=np.arange(len(dataset.inputs), dtype=np.float64)[:, None], features=("n",))
    for part in split(numbers):
        rows = part.inputs[:, 0]
        assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.5


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 20, float("nan")])
def test_split_fraction_refused(fraction):
    with pytest.raises(ValueError, match="test_fraction: expected a number between 0 and 1, got"):
        split(numbered(count=10), test_fraction=fraction)


def test_split_refused():
    with pytest.raises(ValueError, match="numbered: class 'b' has a single example"):
        split(numbered([0, 0, 1, 0, 2, 2], classes=("a", "b", "c")))
    with pytest.raises(ValueError, match="numbered: expected at least two examples to split, got 1"):
        split(numbered(count=1))


# Standardising


@pytest.mark.parametrize("name", BUNDLED)
def test_standardizer(name):
    inputs = load(name).inputs
    standardizer = fit_standardizer(inputs)
    standard = standardizer.apply(inputs)
    varying = np.ptp(inputs, axis=0) > 0
    assert np.allclose(standard.mean(axis=0), 0, atol=1e-12)
    assert np.allclose(standard.std(axis=0), varying)
    assert np.array_equal(standardizer.scale[~varying], np.ones((~varying).sum()))
    assert np.allclose(standardizer.invert(standard), inputs, rtol=1e-12, atol=1e-12)


@in_one_folder
@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 8), st.integers(1, 3)),
        elements=st.floats(-1e150, 1e150, allow_subnormal=False),
    )
)
def test_standardizer_of_anything(inputs):
    standardizer = fit_standardizer(inputs)
    standard = standardizer.apply(inputs)
    assert standardizer.mean.shape == standardizer.scale.shape == (inputs.shape[1],)
    assert (standardizer.scale > 0).all() and np.isfinite(standard).all()
    largest = np.abs(inputs).max(axis=0, initial=0)
    assert (np.abs(standardizer.invert(standard) - inputs) <= 1e-14 * largest[None, :]).all()


@pytest.mark.parametrize("value", [0.1, 1e-300, 0.0, -1e20])
def test_standardizer_leaves_constant_columns(value):
    standardizer = fit_standardizer(np.full((10, 1), value))
    assert standardizer.scale.tolist() == [1.0]


@pytest.mark.parametrize("size", [1e-200, 1e-8, 1e8, 1e200])
def test_standardizer_at_any_size(size):
    column = size * np.array([[1.0], [2.0], [3.0], [4.0]])
    expected = np.array([-1.5, -0.5, 0.5, 1.5]) / math.sqrt(1.25)
    assert np.allclose(fit_standardizer(column).apply(column)[:, 0], expected)


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (-3, -2.5), (2, 40)])
@pytest.mark.parametrize("name", ["iris", "wine", "diabetes"])
def test_min_max_maps_each_column_to_its_range(name, low, high):
    inputs = load(name).inputs
    scale = fit_min_max(inputs, low, high)
    found = scale.apply(inputs)
    # y = (ymax - ymin) (x - xmin) / (xmax - xmin) + ymin, as mapminmax has it
    least, most = inputs.min(axis=0), inputs.max(axis=0)
    np.testing.assert_allclose(found, (high - low) * (inputs - least) / (most - least) + low, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scale.invert(found), inputs, rtol=1e-12, atol=1e-13)


@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.floats(-1e308, 1e308)))
def test_min_max_of_anything(inputs):
    scale = fit_min_max(inputs)
    assert (scale.scale > 0).all() and np.isfinite(scale.scale).all() and np.isfinite(scale.mean).all()


@pytest.mark.parametrize("value", [0.0, -3.7, 1e300, 5e-324])
def test_min_max_makes_constant_columns_the_middle(value):
    scale = fit_min_max(np.full((4, 1), value), 0, 1)
    assert scale.scale.tolist() == [1.0] and fit_min_max(np.full((4, 1), value)).apply([[value]]).tolist() == [[0.0]]
    assert scale.apply([[value]])[0, 0] == pytest.approx(0.5) or abs(value) > 1e15


@pytest.mark.parametrize(("low", "high"), [(1, 1), (1, -1), (0, np.inf), (np.nan, 1), ("low", 1), ([0, 0], 1)])
def test_a_range_has_two_finite_ends(low, high):
    with pytest.raises(ValueError, match="fit_min_max: expected finite low < high, got"):
        fit_min_max(np.eye(2), low, high)


def test_min_max_of_a_range_that_float64_cannot_scale():
    assert fit_min_max([[0.0, 0.0], [1.0, 5e-324]]).scale.tolist() == [0.5, 1.0]
    for wrong in ([[1j]], [["a"]]):
        with pytest.raises(TypeError, match="inputs: expected real numbers, got dtype"):
            fit_min_max(wrong)


def test_scalings_are_pytrees():
    scale = fit_min_max(np.array([[1.0, 2.0], [3.0, 8.0]]))
    assert jax.tree.leaves(scale)[0].tolist() == [2.0, 5.0] and len(jax.tree.leaves(scale)) == 2


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (2, 3, 1)])
def test_fit_standardizer_shapes_refused(shape):
    with pytest.raises(ValueError, match=r"inputs: expected shape \(Q, R\) with at least one example, got"):
        fit_standardizer(np.zeros(shape))


def test_fit_standardizer_values_refused():
    with pytest.raises(ValueError, match=r"inputs: expected finite numbers, got nan at index \(1, 0\)"):
        fit_standardizer(np.array([[0.0, 1.0], [np.nan, 1.0]]))


@pytest.mark.parametrize("method", ["apply", "invert"])
@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 1), (4, 3, 1)])
def test_standardizer_shapes_refused(method, shape):
    standardizer = fit_standardizer(np.arange(12.0).reshape(4, 3))
    with pytest.raises(ValueError, match=r"inputs: expected shape \(Q, 3\), got"):
        getattr(standardizer, method)(np.zeros(shape))


def test_masked_numbers_are_refused():
    masked = np.ma.masked_invalid([[0.0, 1.0], [np.nan, 1.0]])
    for take in (fit_standardizer, fit_standardizer(np.eye(2)).apply, fit_standardizer(np.eye(2)).invert):
        with pytest.raises(ValueError, match="inputs: expected numbers, got masked ones"):
            take(masked)
    assert np.array_equal(fit_standardizer(np.ma.array(np.eye(2))).mean, [0.5, 0.5])


def test_a_bundled_set_is_read_like_another_one():
    """Its classes by their names, in the order of the other."""
    iris = load("iris")
    reading = dataclasses.replace(iris.reading, classes=("virginica", "setosa", "versicolor"))
    found = load_as("iris", reading)
    check_invariants(found)
    assert [found.classes[label] for label in found.labels] == [iris.classes[label] for label in iris.labels]
    refused = {("setosa", "versicolor"): "unknown class 'virginica'", (): "expected data for regression, got class"}
    for classes, message in refused.items():
        task = "classification" if classes else "regression"
        with pytest.raises(ValueError, match=f"iris: .*{message}"):
            load_as("iris", dataclasses.replace(reading, classes=classes, task=task))
