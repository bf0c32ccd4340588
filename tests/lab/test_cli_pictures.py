"""Pictures on the command line: networks by name read them as (Q, H, W, C), colours too; their runs are used again."""

import csv
import io
import json

import jax
import numpy as np
import pytest
from lab.test_cli import call, check_refused, idx_bytes, table
from lab.test_report import check_self_contained

import functional_nn as fnn
from functional_nn.lab import commands, datasets, runs

SMALL = "lenet((2, 3), (4,))"
LABELS = np.arange(24) % 3
COLOURS = np.random.default_rng(3).integers(0, 256, (24, 8, 6, 3)).astype(np.uint8)
GREY = np.random.default_rng(4).integers(0, 256, (24, 8, 8)).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of data, with a run on colours that has everything."""
    folder = tmp_path_factory.mktemp("pictures")
    np.savez(folder / "colours.npz", x=COLOURS, y=np.array(["a", "b", "c"])[LABELS])
    np.savez(folder / "grey.npz", x=GREY, y=LABELS)
    np.savez(folder / "floats.npz", x=GREY / 255, y=LABELS)
    np.savez(folder / "rows.npz", x=GREY.reshape(24, 64), y=LABELS)
    pixels = [f"p{i}" for i in range(64)]
    table(folder / "rows.csv", (*pixels, "kind"), np.column_stack([GREY.reshape(24, 64), LABELS]).tolist())
    rows = [("red", *row) for row in np.column_stack([GREY.reshape(24, 64)[:, 1:], LABELS]).tolist()]
    table(folder / "words.csv", (*pixels, "kind"), [("blue", *rows[0][1:]), *rows[1:]])
    words = ("--augment", "shift(1)", "flip", "--label-smoothing", 0.1, "--batch-size", 8, "--epochs", 1)
    with pytest.MonkeyPatch.context() as patch:  # test_cli.py has the tests of costs and opinions
        compare, few = commands.fnn.compare, {"costs": False, "second_opinions": False}
        patch.setattr(commands.fnn, "compare", lambda *given, **named: compare(*given, **named | few))
        patch.setattr(commands.pages, "_opinions", lambda agreement: "")
        said = call("train", folder / "colours.npz", "--network", SMALL, *words, "--out", folder / "run")
    assert said.code == 0, said
    return folder


@pytest.fixture
def given(monkeypatch):
    """What `fit` would be given, in place of training."""

    def fit(network, loss, optimizer, inputs, targets, **named):
        found.update(named, network=network, inputs=np.asarray(inputs), targets=np.asarray(targets))
        raise ValueError("that will do")

    found = {}
    monkeypatch.setattr(commands.fnn, "fit", fit)
    monkeypatch.setattr(commands.fnn.comparison, "monitor", lambda *given: lambda params: ())
    return found


# What a network is given ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", ["grey.npz", "floats.npz", "rows.npz", "rows.csv", "colours.npz"])
def test_pictures_keep_their_shape(made, tmp_path, given, name):
    """As they are stored, bytes divided by 255, and a table's columns standardized, as for any network."""
    check_refused(call("train", made / name, "--network", SMALL, "--out", tmp_path / "a"), "that will do")
    pixels = (COLOURS if name == "colours.npz" else GREY[..., None]) / 255
    training, held_out = datasets.split_rows(datasets.load(made / name))
    if name == "rows.csv":
        pixels = (pixels - pixels[training].mean(axis=0)) / pixels[training].std(axis=0)
    assert given["network"].shapes["image"] == pixels.shape[1:] and given["inputs"].dtype == np.float32
    assert np.allclose(given["inputs"], pixels[training], atol=1e-5)
    assert np.allclose(given["validation"][0], pixels[held_out], atol=1e-5)


def test_digits_are_pictures_for_networks_that_read_pictures(tmp_path, given):
    for network, shape in ((SMALL, (8, 8, 1)), ("mlp((3,), relu)", (64,)), (None, (64,))):
        words = ("--network", network) if network else ("--hidden", 3)
        call("train", "digits", *words, "--output", "softmax", "--out", tmp_path / "a")
        named = given["network"]
        assert given["inputs"].shape[1:] == shape == named.shapes[named.inputs[0][0]]
        made = fnn.presets.get(network)(64 if len(shape) == 1 else shape, 10) if network else None
        assert named == (made or fnn.multilayer((64, 3, 10), ("tanh", "softmax")))


def test_only_training_examples_are_smoothed_and_augmented(made, tmp_path, given):
    """The training part alone."""
    words = ("--network", SMALL, "--label-smoothing", 0.3, "--augment", "shift(1)", "flip")
    call("train", made / "grey.npz", *words, "--out", tmp_path / "a")
    assert given["augment"] == ("shift(1)", "flip")
    assert np.allclose(np.sort(given["targets"]), [0.1, 0.1, 0.8])
    assert np.array_equal(np.unique(given["validation"][1]), [0, 1])


# A run is used again --------------------------------------------------------------------------------------------------


def test_a_run_of_a_named_network_comes_back(made, monkeypatch):
    """What it predicts, in blocks, is what its network gives of all at once."""
    run, config = runs.load(made / "run"), json.loads((made / "run/config.json").read_text())
    assert config["preset"] == SMALL and config["image_shape"] == [8, 6, 3]
    assert config["augment"] == ["shift(1)", "flip"] and config["label_smoothing"] == 0.1
    assert run.network == fnn.presets.get(SMALL)((8, 6, 3), 3)
    assert run.reading == datasets.load(made / "colours.npz").reading
    said = call("evaluate", made / "run", made / "colours.npz", "--part", "held-out")
    assert said.out.endswith(
        f": loss {config['results']['held out']['loss']}, accuracy {config['results']['held out']['accuracy']}\n"
    )
    monkeypatch.setattr(commands, "evaluation_block", lambda *given: 7)
    rows = list(csv.DictReader(io.StringIO(call("predict", made / "run", made / "colours.npz").out)))
    with jax.enable_x64(False):
        outputs = np.asarray(run.network.apply(run.params, (COLOURS / 255).astype(np.float32)))
    assert [row["class"] for row in rows] == [run.config["classes"][c] for c in outputs.argmax(axis=1)]
    assert np.allclose([float(row["output"]) for row in rows], outputs.max(axis=1), atol=1e-5)


def test_pictures_of_another_size_are_refused_with_both(made, tmp_path):
    np.savez(tmp_path / "turned.npz", x=np.swapaxes(COLOURS, 1, 2), y=np.array(["a", "b", "c"])[LABELS])
    for command in "evaluate", "predict":
        said = call(command, made / "run", tmp_path / "turned.npz")
        check_refused(said, "expected pictures of 8 x 6 x 3, like those in training, got 6 x 8 x 3")
    check_refused(call("predict", made / "run", made / "grey.npz"), "of 8 x 6 x 3", "got 8 x 8")
    check_refused(call("evaluate", made / "run", "digits"), "of 8 x 6 x 3", "got 8 x 8")


def test_the_page_shows_the_network(made):
    """Its graph in words and as a picture, a row for each layer, and its kernels."""
    html = (made / "run/report.html").read_text(encoding="utf-8")
    page = check_self_contained(html)
    network = fnn.presets.get(SMALL)((8, 6, 3), 3)
    assert {"The network", "Layers", "Kernels of conv1"} <= set(page.within("h2"))
    words = next(
        svg["aria-label"] for svg in page.all("svg") if "conv1 (8 x 6 x 2) reads image by" in svg["aria-label"]
    )
    assert all(f"{layer.name} (" in words for layer in network.layers)
    rows = fnn.presets.layer_rows(network)
    values = {cell["data-value"] for cell in page.all("td") if "data-value" in cell}
    assert {str(row["flops"]) for row in rows} | {str(row["parameters"]) for row in rows} <= values
    assert (
        f"{SMALL} of {len(rows)} layers on 8 x 6 x 3 inputs" in html
        and "changed at random in every update: shift(1), flip" in html
    )
    assert f"{sum(row['parameters'] for row in rows):,} parameters" in html


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("digits", "--network", "lent"), ("did you mean 'lenet'?",)),
        (
            ("digits", "--network", "lenet", "--hidden", 128),
            ("hidden: network 'lenet'", "its own layers", "--network or --hidden"),
        ),
        (("digits", "--network", "lenet", "--hidden"), ("hidden: network 'lenet'",)),
        (("digits", "--network", "lenet", "--activation", "tanh"), ("activation: network 'lenet'",)),
        (("digits", "--network", "lenet", "--dropout", 0), ("dropout: network 'lenet'",)),
        (("digits", "--network", "lenet", "--initializer", "he"), ("initializer: network 'lenet'",)),
        (("digits", "--network", "lenet", "--gradient", "perceptron"), ("single layer",)),
        (
            ("iris", "--network", "lenet"),
            ("'lenet' reads pictures", "iris has no pictures", "got 4 numbers per example"),
        ),
        (("{made}/words.csv", "--network", "lenet"), ("words.csv has no pictures",)),
        (("digits", "--augment", "flip"), ("rows of 64 numbers", "--network")),
        (("digits", "--network", "mlp((3,))", "--augment", "flip"), ("rows of 64 numbers",)),
        (("digits", "--network", "lenet", "--augment", "flop"), ("did you mean 'flip'?",)),
        (("digits", "--network", "lenet", "--augment", "shift(5)"), ("at least 10 x 10",)),
        (("iris", "--label-smoothing", 1), ("rate", "got 1.0")),
        (("diabetes", "--label-smoothing", 0.1), ("the targets of diabetes are numbers",)),
        (("iris", "--loss", "hinge", "--label-smoothing", 0.1), ("hinge needs targets of -1 and +1",)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_train_refuses_in_one_line(made, tmp_path, words, texts):
    words = [word.format(made=made) if isinstance(word, str) else word for word in words]
    check_refused(call("train", *words, "--out", tmp_path / "a"), *texts)
    assert not list(tmp_path.iterdir())


# Fashion-MNIST --------------------------------------------------------------------------------------------------------


def fashion(folder, classes=10, parts=("train", "t10k")):
    for part in parts:
        labels = np.arange(2 * classes) % classes
        pixels = np.repeat(labels[:, None, None] * 25, 16, axis=1).reshape(-1, 4, 4)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))


def test_fashion_mnist_is_read_from_a_folder(tmp_path, monkeypatch):
    fashion(tmp_path)
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    dataset = datasets.load("fashion_mnist")
    assert dataset.name == "fashion_mnist" and dataset.own_test == 20 and dataset.image_shape == (4, 4)
    assert dataset.classes[0] == "T-shirt/top" and dataset.classes[9] == "Ankle boot"
    assert np.allclose(dataset.inputs[:, 0] * 255, 25 * dataset.labels)
    training, held_out = datasets.split_rows(dataset)
    assert sorted(training) == list(range(20)) and sorted(held_out) == list(range(20, 40))
    again = datasets.load_as("fashion_mnist", dataset.reading)
    assert again.own_test == 20 and np.array_equal(again.targets, dataset.targets)
    assert np.array_equal(datasets.load_inputs("fashion_mnist", dataset.reading), dataset.inputs), (
        "its own test part too"
    )


@pytest.mark.parametrize(
    ("made_of", "message"),
    [
        (
            None,
            "fashion_mnist: no folder '.*none'; apt-get install dataset-fashion-mnist, or .*FASHION_MNIST",
        ),
        ({"classes": 3}, "fashion_mnist: expected images and labels of 10 classes"),
        ({"parts": ("train",)}, r"fashion_mnist: expected .* to test \(t10k"),
        ({"parts": ()}, "fashion_mnist: expected one IDX images file"),
    ],
)
def test_missing_fashion_mnist_is_refused(tmp_path, monkeypatch, made_of, message):
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path / ("none" if made_of is None else "")))
    if made_of is not None:
        fashion(tmp_path, **made_of)
    with pytest.raises(ValueError, match=f"^{message}"):
        datasets.load("fashion_mnist")
