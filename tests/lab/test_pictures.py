"""Pictures on every scale: what is divided or standardized, and what a run takes of another file; parts for testing."""

import json
import warnings

import numpy as np
import pytest
from lab.test_datasets import check_invariants, idx_bytes, npz_bytes, write

from functional_nn.lab import runs
from functional_nn.lab.datasets import Reading, fit_preparation, load, load_as, load_inputs, split, split_rows

LABELS = np.arange(24) % 3
BYTES = np.random.default_rng(2).integers(0, 256, (24, 8, 8)).astype(np.uint8)
BYTES[:, 0] = 0  # a margin
BYTES[0, 1, 0] = 255
DIM = BYTES // 16  # 0 to 15, as the digits of scikit-learn
STORED = {
    "bytes": BYTES,
    "channel last": BYTES[..., None],
    "channel first": BYTES[:, None],
    "rows of bytes": BYTES.reshape(24, 64),
    "unit": BYTES / 255,
    "unit float32": (BYTES / 255).astype(np.float32),
    "0 to 255": BYTES.astype(np.float64),
    "integers": BYTES.astype(np.int64),
    "16 bits": BYTES.astype(np.uint16) * 257,
    "negative": BYTES / 127.5 - 1,
    "0 to 15": DIM.astype(np.int64),
    "0 to 15 in bytes": DIM,
    "bits": BYTES > 127,
    "bits in bytes": (BYTES > 127).astype(np.uint8),
}
FRACTIONS = ("bytes", "channel last", "channel first", "rows of bytes", "unit", "unit float32")


def saved(folder, name, **others):
    return write(folder / f"{name}.npz", npz_bytes(x=STORED[name], y=LABELS) if not others else npz_bytes(**others))


def as_json(reading):
    return runs.reading_from(json.loads(json.dumps(runs.plain_reading(reading))))


@pytest.mark.parametrize("name", STORED)
def test_pixels_are_fractions_or_standardized(tmp_path, name):
    """Bytes are divided by 255, as in an IDX file; what is no fraction then, or only a dim one, is standardized."""
    dataset = load(saved(tmp_path, name))
    check_invariants(dataset)
    divided = STORED[name].dtype == np.uint8
    flat = STORED[name].reshape(24, 64).astype(np.float64) / (255 if divided else 1)
    assert np.array_equal(dataset.inputs, flat) and dataset.image_shape == (8, 8)
    assert dataset.features[:2] == ("pixel_0_0", "pixel_0_1") and dataset.pictures.divided == divided
    training, held_out = split_rows(dataset)
    scale = fit_preparation(dataset, training)
    stays = name in FRACTIONS or name == "bits"
    mean, deviation = (0, 1) if stays else (flat[training].mean(), flat[training].std())
    for rows in (training, held_out):
        assert np.allclose(scale.apply(dataset.inputs, rows=rows), (flat[rows] - mean) / deviation, atol=1e-12)
    said = str(dataset.pictures)
    assert ("divided by 255" in said) == divided and ("standardized" in said) == (not stays)


def test_bytes_of_an_archive_are_those_of_an_idx_file(tmp_path):
    images = write(tmp_path / "a-images.idx", idx_bytes(BYTES))
    write(tmp_path / "a-labels.idx", idx_bytes(LABELS.astype(np.uint8)))
    stored = load(images)
    for name in ("bytes", "channel last", "rows of bytes"):
        dataset = load(saved(tmp_path, name))
        assert np.array_equal(dataset.inputs, stored.inputs) and dataset.reading == stored.reading


@pytest.mark.parametrize(
    ("shape", "divided", "image"),
    [
        ((64,), True, (8, 8)),
        ((784,), True, (28, 28)),
        ((63,), False, None),
        ((49,), False, None),  # so few bytes may be a table's
        ((8, 8, 3), True, (8, 8, 3)),
        ((5, 6, 4), True, (5, 6, 4)),
        ((8, 8, 5), True, None),
        ((3, 8, 8), True, None),  # channels first, or three rows
        ((2, 3), True, (2, 3)),
        ((2, 3, 1), True, (2, 3)),
        ((1, 2, 3), True, (2, 3)),
    ],
)
def test_which_bytes_are_pictures(tmp_path, shape, divided, image):
    values = np.random.default_rng(0).integers(0, 256, (6, *shape)).astype(np.uint8)
    dataset = load(write(tmp_path / "a.npz", npz_bytes(x=values, y=np.arange(6) % 2)))
    check_invariants(dataset)
    assert np.array_equal(dataset.inputs, values.reshape(6, -1) / (255 if divided else 1))
    assert dataset.image_shape == image and (dataset.pictures is not None) == divided
    if not divided:  # a table of numbers, standardized by column
        assert np.allclose(fit_preparation(dataset).apply(dataset.inputs).mean(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("other", STORED)
@pytest.mark.parametrize("own", STORED)
def test_another_file_is_read_on_the_same_scale_or_refused(tmp_path, own, other):
    """Each file holds the same pictures: a network sees of them what it saw, to what the coarser file has lost."""
    dataset = load(saved(tmp_path, own))
    reading = as_json(dataset.reading)
    assert reading == dataset.reading
    path = saved(tmp_path, other)
    alike = (*FRACTIONS, "bits") if own in (*FRACTIONS, "bits") else ()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            inputs = load_inputs(path, reading)
        except ValueError as error:
            assert other != own and other not in alike and str(error).startswith(f"{path}: expected pictures from")
            with pytest.raises(ValueError, match="expected pictures from"):
                load_as(path, reading)
            return
        assert np.array_equal(load_as(path, reading).inputs, inputs)
    lost = 0.51 if "bits" in own + other else 1 / 16 if "15" in own + other else 1e-6
    assert told or np.abs(inputs - dataset.inputs).max() <= lost * np.ptp(dataset.inputs)
    assert not told or (other != own and other not in alike)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_inputs_that_were_not_pictures_stay_so(tmp_path, dtype):
    """Nor of runs of older versions, which divided no bytes of an archive, and those of an IDX file."""
    reading = Reading(
        tuple(f"input_{i}" for i in range(64)), classes=("0", "1", "2"), image_shape=(8, 8), own_test=False
    )
    path = write(tmp_path / "a.npz", npz_bytes(x=BYTES.astype(dtype), y=LABELS))
    assert np.array_equal(load_inputs(path, reading), BYTES.reshape(24, 64))
    images = write(tmp_path / "a-images.idx", idx_bytes(BYTES))
    assert np.array_equal(load_inputs(images, reading), BYTES.reshape(24, 64) / 255)


@pytest.mark.parametrize(
    ("low", "high", "refused", "told"),
    [
        (0, 1, False, False),
        (0.1, 0.9, False, False),
        (0, 0, False, False),
        (0, 0.4, False, True),
        (0, 0.06, True, False),
        (0, 16, True, False),
        (-1, 1, True, False),
        (-0.5, 0.5, True, False),
        (0, 1.05, False, False),
        (0, 1.2, True, False),
    ],
)
def test_a_range_unlike_the_runs_gives_a_warning(tmp_path, low, high, refused, told):
    reading = load(saved(tmp_path, "unit")).reading
    values = np.full((2, 8, 8), low, np.float64)
    values[:, 1] = high
    path = write(tmp_path / "a.npz", npz_bytes(x=values))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if refused:
            with pytest.raises(
                ValueError, match=r"expected pictures from 0 to 1, like those in training, got .* scale them alike"
            ):
                load_inputs(path, reading)
        else:
            assert np.array_equal(load_inputs(path, reading), values.reshape(2, 64))
    assert bool(warned) == told


def test_digits_are_on_their_own_scale(tmp_path):
    """Divided by 16 where they are bundled, and not in a file."""
    digits = load("digits")
    assert fit_preparation(digits).apply(digits.inputs).tolist() == digits.inputs.tolist()
    for values in (digits.inputs * 16, (digits.inputs * 16).astype(np.uint8)):
        path = write(tmp_path / "a.npz", npz_bytes(x=values.reshape(-1, 8, 8)))
        with pytest.raises(ValueError, match="expected pictures from 0 to 1"):
            load_inputs(path, digits.reading)
    path = write(tmp_path / "a.npz", npz_bytes(x=digits.inputs.reshape(-1, 8, 8)))
    assert np.array_equal(load_inputs(path, digits.reading), digits.inputs)
    features = ",".join(digits.features)
    path = write(tmp_path / "a.csv", f"{features}\n" + ",".join(["16"] * 64) + "\n")
    with pytest.raises(ValueError, match="expected pictures from 0 to 1"):
        load_inputs(path, digits.reading)


def test_inputs_alone(tmp_path):
    """Under the names of a pair or as the only array; of images no labels are asked for."""
    reading, expected = load(saved(tmp_path, "bytes")).reading, BYTES.reshape(24, 64) / 255
    for contents in ({"x": BYTES}, {"inputs": BYTES}, {"arr_0": BYTES}, {"mine": BYTES}, {"X": BYTES, "z": LABELS}):
        assert np.array_equal(load_inputs(write(tmp_path / "a.npz", npz_bytes(**contents)), reading), expected)
    assert np.array_equal(load_inputs(write(tmp_path / "some-images", idx_bytes(BYTES)), reading), expected)
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train-images-idx3-ubyte", idx_bytes(BYTES))
    assert np.array_equal(load_inputs(tmp_path / "folder", reading), expected)
    for contents, message in (
        ({"a": BYTES, "b": LABELS}, "expected the keys inputs, x, X, .*; or a single array; found a, b"),
        ({"x": LABELS}, "x: expected numbers of rank 2 or more"),
        ({"x": BYTES[:, 1:]}, "expected pictures of 8 x 8, like those in training, got 7 x 8"),
    ):
        with pytest.raises(ValueError, match=message):
            load_inputs(write(tmp_path / "a.npz", npz_bytes(**contents)), reading)


# Parts for testing ----------------------------------------------------------------------------------------------------

NAMES = [
    ("x_train", "y_train", "x_test", "y_test"),  # Keras
    ("X_train", "y_train", "X_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
    ("training_images", "training_labels", "test_images", "test_labels"),
    ("train_x", "train_y", "test_x", "test_y"),
    ("train_data", "train_labels", "test_data", "test_labels"),
    ("inputs_train", "targets_train", "inputs_test", "targets_test"),
    ("x", "y", "x_test", "y_test"),
]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("column", [False, True])
def test_the_part_for_testing_is_held_out(tmp_path, names, column):
    labels = LABELS[:, None] if column else LABELS
    arrays = dict(zip(names, (BYTES[:15], labels[:15], BYTES[15:], labels[15:]), strict=True))
    dataset = load(write(tmp_path / "a.npz", npz_bytes(**arrays)))
    check_invariants(dataset)
    assert dataset.own_test == 9 and np.array_equal(dataset.inputs, BYTES.reshape(24, 64) / 255)
    assert dataset.labels.tolist() == LABELS.tolist()
    orders = []
    for seed, fraction in ((0, 0.2), (1, 0.5)):
        training, test = split_rows(dataset, seed=seed, test_fraction=fraction)
        assert sorted(training.tolist()) == list(range(15)) and sorted(test.tolist()) == list(range(15, 24))
        orders.append(training.tolist())
    assert orders[0] != orders[1], "shuffled, as every training part"
    part = split(dataset)[1]
    assert part.own_test == 0 and len(split(part)[1].inputs) < 9
    path = tmp_path / "a.npz"
    assert load_as(path, as_json(dataset.reading)).own_test == 9
    assert np.array_equal(load_inputs(path, dataset.reading), dataset.inputs)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_test": (BYTES / 255)[15:]}, r"x_test: expected uint8 .* got float64"),
        (
            {"x_test": BYTES[15:, 1:]},
            r"x_test: expected uint8 of shape \(..., 8, 8\), .* got uint8 of shape \(..., 7, 8\)",
        ),
        ({"y_test": np.array(["a"] * 9)}, "y_test: expected int64 of shape .* got <U1"),
        ({"y_test": LABELS[16:]}, "expected as many targets as inputs, got 9 inputs and 8 targets"),
        ({"x_test": BYTES[0, 0]}, "x_test: expected numbers of rank 2 or more"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path, changed, message):
    whole = {"x_train": BYTES[:15], "y_train": LABELS[:15], "x_test": BYTES[15:], "y_test": LABELS[15:]}
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "a.npz", npz_bytes(**whole | changed)))


def test_a_part_that_is_left_out_is_named(tmp_path):
    parts = {"train": slice(0, 12), "val": slice(12, 15), "test": slice(15, 24)}
    arrays = {f"{part}_images": BYTES[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": LABELS[rows] for part, rows in parts.items()}
    with pytest.warns(UserWarning, match="a.npz: left out val_images, val_labels"):
        assert len(load(write(tmp_path / "a.npz", npz_bytes(**arrays))).inputs) == 21
