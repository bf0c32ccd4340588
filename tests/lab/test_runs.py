"""A run's folder gives back what was put into it, appears whole or not at all, and refuses what is damaged."""

import gc
import json
import pickle
import shutil
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_params

import functional_nn as fnn
from functional_nn.lab import pages, runs
from functional_nn.lab.datasets import Dataset, Standardizer, fit_min_max, fit_standardizer

NETWORKS = {
    "chain": fnn.multilayer((3, 4, 2), ("tanh", "linear")),
    "named activations": fnn.multilayer((3, 4, 3, 2, 2), ("leaky_relu(0.1)", "prelu", "maxout(3)", "softmax")),
    "initializers": fnn.multilayer((3, 2, 1), ("elu(0.7)", "prelu(layer)"), initializer=("constant(0.1)", "zeros")),
    "graph": fnn.graph(
        inputs={"p1": 2, "an input": 3},
        layers=[
            fnn.Layer("first", 4, "relu", ("p1",)),
            fnn.Layer("second", 2, "maxout", ("first", "an input"), bias="shared"),
            fnn.Layer("third", 4, "sigmoid", ("second", "first", "p1"), bias="none"),
            fnn.Layer("out.put", 3, "softmax", ("third", "first", "an input")),
        ],
    ),
}
DTYPES = ("float64", "float32", "bfloat16", "float16")


def configuration(network, dtype="float32", **others):
    config = {
        "task": "classification",
        "network": runs.describe_network(network),
        "loss": "cross_entropy(mean)",
        "dtype": dtype,
        "classes": ["x", "y"],
        "inputs": {"mean": [0.1, -1e-300, 3.0], "scale": [1 / 3, 1e300, 2.0]},
        "targets": None,
        "features": ["a", "b", "c"],
        "data": "iris",
        "target": None,
        "labels": None,
        "seed": 0,
        "test_fraction": 0.2,
    }
    return config | others


def whole(folder, network=NETWORKS["chain"], dtype="float32", **others):
    """A saved run in `folder`, with its parameters."""
    folder.mkdir()
    params = random_params(network, jax.random.key(3), jnp.dtype(dtype))
    runs.save(folder, configuration(network, dtype, **others), params)
    return params


# Round trips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_from_its_description(name):
    description = runs.describe_network(NETWORKS[name])
    assert runs.network_from(json.loads(json.dumps(description))) == NETWORKS[name]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_comes_back_to_the_last_bit(tmp_path, name, dtype):
    params = whole(tmp_path / "run", NETWORKS[name], dtype)
    run = runs.load(tmp_path / "run")
    assert run.network == NETWORKS[name]
    assert jax.tree.structure(run.params) == jax.tree.structure(params)
    for found, saved in zip(jax.tree.leaves(run.params), jax.tree.leaves(params), strict=True):
        assert found.dtype == saved.dtype == jnp.dtype(dtype)
        assert np.asarray(found).tobytes() == np.asarray(saved).tobytes()
    assert run.config == configuration(NETWORKS[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite_come_back_too(tmp_path, dtype):
    """A run that diverged can be looked at: inf, nan, -0 and the smallest numbers keep their place and sign."""
    network = fnn.multilayer((6, 1), ("linear",), bias="none")
    smallest = np.nextafter(jnp.dtype(dtype).type(0), jnp.dtype(dtype).type(1))
    values = jnp.asarray(np.array([np.inf, -np.inf, np.nan, -0.0, smallest, 1.0]), dtype)[None, :]
    (tmp_path / "run").mkdir()
    runs.save(tmp_path / "run", configuration(network, dtype), {"layer1": {"weights": {"input": values}}})
    found = runs.load(tmp_path / "run").params["layer1"]["weights"]["input"]
    assert np.asarray(found).tobytes() == np.asarray(values).tobytes()


def test_the_scales_and_the_loss_come_back(tmp_path):
    whole(tmp_path / "run", loss="mean_square_error(sum)", targets={"mean": [0.1], "scale": [1e-7]})
    run = runs.load(tmp_path / "run")
    assert run.inputs.mean.tolist() == [0.1, -1e-300, 3.0] and run.inputs.scale.tolist() == [1 / 3, 1e300, 2.0]
    assert run.targets.mean.tolist() == [0.1] and run.targets.scale.tolist() == [1e-7]
    assert (run.loss.name, run.loss.reduction) == ("mean_square_error", "sum")


# Writing --------------------------------------------------------------------------------------------------------------


def contents(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def fill(folder):
    (folder / runs.CONFIG).write_text("new")
    (folder / "deep").mkdir()


@pytest.mark.parametrize("before", ["nothing", "no parent", "empty folder", "run"])
def test_a_run_appears_when_it_is_complete(tmp_path, before):
    out = tmp_path / "parent" / "run"
    if before != "no parent":
        out.parent.mkdir()
    if before in ("empty folder", "run"):
        out.mkdir()
    if before == "run":
        whole(out / "x")
        (out / "x" / runs.CONFIG).rename(out / runs.CONFIG)
    old = contents(out) if out.exists() else None
    with runs.writing(out, replace=before == "run") as folder:
        fill(folder)
        assert (contents(out) if out.exists() else None) == old, "what was there stays until the new run is whole"
    assert contents(out) == {runs.CONFIG: b"new", "deep": False}
    assert [path.name for path in out.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("before", ["nothing", "empty folder", "run"])
def test_a_failure_leaves_what_was_there(tmp_path, before, error):
    out = tmp_path / "run"
    if before == "run":
        whole(out)
    elif before == "empty folder":
        out.mkdir()
    old = contents(tmp_path)
    with pytest.raises(error), runs.writing(out, replace=True) as folder:
        fill(folder)
        raise error
    assert contents(tmp_path) == old


def test_a_failure_leaves_no_parents_behind(tmp_path):
    with pytest.raises(ValueError), runs.writing(tmp_path / "a" / "b" / "run", replace=False):
        raise ValueError
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "failing",
    [1, 2],
)
def test_a_failing_rename_leaves_the_older_run(tmp_path, monkeypatch, failing):
    whole(tmp_path / "run")
    old, calls, original = contents(tmp_path), [], type(tmp_path).rename

    def rename(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise PermissionError(13, "Permission denied")
        return original(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", rename)
    with pytest.raises(PermissionError), runs.writing(tmp_path / "run", replace=True) as folder:
        fill(folder)
    assert {path: data for path, data in contents(tmp_path).items() if data is not False} == {
        path: data for path, data in old.items() if data is not False
    }


def test_a_folder_taken_meanwhile_is_refused(tmp_path):
    """Another program that writes to the same place in the meantime keeps what it wrote."""
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="already holds a run"), runs.writing(out, replace=False) as folder:
        fill(folder)
        whole(out)
    assert runs.load(out).network == NETWORKS["chain"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def occupy(out, what):
    if what == "file":
        out.write_text("precious")
    elif what == "run":
        whole(out)
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("precious")


@pytest.mark.parametrize(
    ("what", "replace", "message"),
    [
        ("file", False, "exists and is not a run's folder; choose another"),
        ("file", True, "exists and is not a run's folder; choose another"),
        ("folder", False, "exists and is not a run's folder; choose another"),
        ("folder", True, "exists and is not a run's folder; choose another"),
        ("run", False, "already holds a run; choose another .* or --replace it"),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path, what, replace, message):
    occupy(tmp_path / "run", what)
    old, entered = contents(tmp_path), []
    for attempt in (runs.check_free, runs.writing):
        with pytest.raises(ValueError, match=message):
            with attempt(tmp_path / "run", replace):
                entered.append(attempt)
    assert not entered and contents(tmp_path) == old


# Damage ---------------------------------------------------------------------------------------------------------------


def check_refused(folder, match=None):
    with pytest.raises(ValueError, match=match) as refusal:
        runs.load(folder)
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    whole(folder, fnn.multilayer((3, 2), ("linear",)))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # its own test is below
def test_truncated_parameters_are_refused(copy):
    data = (copy / runs.PARAMETERS).read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        (copy / runs.PARAMETERS).write_bytes(data[:length])
        check_refused(copy, "not this run's parameters")
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # its own test is below
def test_flipped_parameters_are_refused_or_harmless(copy):
    data = (copy / runs.PARAMETERS).read_bytes()
    right = runs.load(copy)
    refused = 0
    for bit in range(0, 8 * len(data), 5):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (copy / runs.PARAMETERS).write_bytes(flipped)
        try:
            found = runs.load(copy)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and "not this run's parameters" in str(error), bit
        else:
            pairs = zip(jax.tree.leaves(found.params), jax.tree.leaves(right.params), strict=True)
            assert all(np.array_equal(x, y) for x, y in pairs), bit
    assert refused > 100
    gc.collect()


def test_damaged_parameters_are_closed(copy):
    (copy / runs.PARAMETERS).write_bytes((copy / runs.PARAMETERS).read_bytes()[:100])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check_refused(copy)
        gc.collect()
    assert not warned


class _Dangerous:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def _archive(**arrays):
    def write(path):
        np.savez(path, **arrays)

    return write


def _pickled_member(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("layer1/bias.npy", pickle.dumps(_Dangerous()))


_B, _W = "layer1/bias", "layer1/weights/input"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("not an archive"),
        lambda path: path.write_bytes(pickle.dumps(_Dangerous())),
        _pickled_member,
        _archive(**{_B: np.array([_Dangerous(), 0], object), _W: np.zeros((2, 3))}),
        _archive(),
        _archive(**{_B: np.zeros(2)}),
        _archive(**{_B: np.zeros(2), _W: np.zeros((3, 2))}),
        _archive(**{_B: np.zeros(2), _W: np.zeros((4, 3))}),
        _archive(**{_B: np.array(["a", "b"]), _W: np.zeros((2, 3))}),
    ],
    ids=["none", "text", "pickle", "pickled member", "objects", "empty", "missing", "transposed", "taller", "words"],
)
def test_foreign_parameters_are_refused(copy, write):
    write(copy / runs.PARAMETERS)
    check_refused(copy, "not this run's parameters")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", "not json", '{"a": 1} trailing', "\0"])
def test_a_foreign_configuration_is_refused(copy, text):
    (copy / runs.CONFIG).write_text(text)
    check_refused(copy)


def test_a_refused_network_names_its_file(copy):
    (copy / runs.CONFIG).write_text('{"network": {}}')
    check_refused(copy)


def test_a_configuration_nested_too_deep_is_refused(copy):
    (copy / runs.CONFIG).write_text("[" * 200_000)
    check_refused(copy)


def _changed(config, path, value):
    *above, last = path.split(".")
    for name in above:
        config = config[int(name) if name.isdigit() else name]
    if value is KeyError:
        del config[last]
    else:
        config[last] = value


def check_change_refused(copy, path, value):
    config = json.loads((copy / runs.CONFIG).read_text())
    _changed(config, path, value)
    (copy / runs.CONFIG).write_text(json.dumps(config))
    check_refused(copy)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((path, KeyError) for path in ("network", "loss", "dtype", "inputs", "inputs.mean", "targets")),
        *((path, KeyError) for path in ("network.inputs", "network.layers", "network.layers.0.sources")),
        ("network", None),
        ("network.layers", [1]),
        ("network.inputs", ["input"]),
        ("network.layers.0.sources", None),
        ("network.layers.0.colour", "red"),
        ("loss", 5),
        ("inputs", [1]),
        ("targets", "none"),
        ("targets", {"mean": [0.0]}),
    ],
)
def test_a_configuration_without_its_parts_is_refused(copy, path, value):
    check_change_refused(copy, path, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("network.layers.0.size", 3),
        ("network.layers.0.size", "2"),
        ("network.layers.0.size", 0),
        ("network.layers.0.activation", "thnh"),
        ("network.layers.0.sources", ["nowhere"]),
        ("network.inputs.input", 4),
        ("loss", "cross_entrpy"),
        ("dtype", "int32"),
        ("dtype", "float63"),
        ("inputs.mean", ["a", "b", "c"]),
    ],
)
def test_a_configuration_of_something_else_is_refused(copy, path, value):
    check_change_refused(copy, path, value)


@pytest.mark.parametrize("missing", ["task", "classes", "features", "test_fraction", "seed", "data", "target"])
def test_a_configuration_without_later_fields_is_refused(copy, missing):
    config = json.loads((copy / runs.CONFIG).read_text())
    others = {"features": ["a", "b", "c"], "test_fraction": 0.2, "seed": 0, "data": "iris", "target": None}
    config |= others
    del config[missing]
    (copy / runs.CONFIG).write_text(json.dumps(config))
    check_refused(copy)


def test_truncated_configurations_are_refused(copy):
    data = (copy / runs.CONFIG).read_bytes().rstrip()
    for length in range(0, len(data), 9):
        (copy / runs.CONFIG).write_bytes(data[:length])
        check_refused(copy, "not JSON")


@pytest.mark.parametrize("place", ["no folder", "file", "other folder"])
def test_a_folder_that_is_not_a_run_is_refused(tmp_path, place):
    if place == "file":
        (tmp_path / "run").write_text("")
    elif place == "other folder":
        (tmp_path / "run").mkdir()
    check_refused(tmp_path / "run", "is not a run's folder: it has no config.json")


def test_float64_is_refused_while_64_bits_are_off(tmp_path):
    whole(tmp_path / "run", dtype="float64")
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ValueError, match="float64 needs 64-bit mode"):
            runs.load(tmp_path / "run")
    finally:
        jax.config.update("jax_enable_x64", True)


# Targets --------------------------------------------------------------------------------------------------------------


def flowers(classes, labels):
    labels = np.array(labels)
    return Dataset("flowers", np.zeros((len(labels), 1)), np.eye(len(classes))[labels], labels, classes, ("a",), None)


@pytest.mark.parametrize("name", fnn.losses.names())
def test_classes_are_coded_in_the_order_of_the_run(name):
    """Data with the classes in another order, or fewer of them, mean the same classes."""
    config, loss = {"task": "classification", "classes": ["rose", "lily", "iris"]}, fnn.losses.get(name)
    whole = runs.encode(config, loss, flowers(("rose", "lily", "iris"), [0, 1, 2, 1]))
    low = -1 if name in ("hinge", "logistic") else 0
    assert whole.tolist() == [[1, low, low], [low, 1, low], [low, low, 1], [low, 1, low]]
    assert np.array_equal(runs.encode(config, loss, flowers(("iris", "rose", "lily"), [1, 2, 0, 2])), whole)
    assert np.array_equal(runs.encode(config, loss, flowers(("lily", "rose"), [1, 0, 0])), whole[[0, 1, 3]])


def test_measurements_are_not_coded():
    targets = np.arange(6.0).reshape(3, 2)
    dataset = Dataset("d", np.zeros((3, 1)), targets, None, (), ("a",), None)
    found = runs.encode({"task": "regression", "classes": []}, fnn.losses.get("mean_square_error"), dataset)
    assert np.array_equal(found, targets)


def test_unknown_classes_and_tasks_are_refused():
    config, loss = {"task": "classification", "classes": ["rose", "lily"]}, fnn.losses.get("cross_entropy")
    with pytest.raises(ValueError, match=r"flowers: unknown class 'iris' \(accepted: rose, lily\)"):
        runs.encode(config, loss, flowers(("iris", "rose"), [0, 1]))
    with pytest.raises(ValueError, match="flowers: expected data for regression, got classification"):
        runs.encode(config | {"task": "regression"}, loss, flowers(("rose", "lily"), [0, 1]))


# A network alone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_alone_comes_back_to_the_last_bit(tmp_path, name, dtype):
    params = random_params(NETWORKS[name], jax.random.key(3), jnp.dtype(dtype))
    runs.save_network(str(tmp_path / "mine" / "network"), NETWORKS[name], params)
    for folder in (tmp_path / "mine" / "network", str(tmp_path / "mine" / "network")):
        network, found = runs.load_network(folder)
        assert network == NETWORKS[name] and jax.tree.structure(found) == jax.tree.structure(params)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_scalings_are_saved_with_the_network(tmp_path):
    """To the last bit, so that what is predicted of the user's own rows is the same."""
    draw = np.random.default_rng(0)
    x, t = draw.normal(size=(20, 3)) / 3 + 1e5, draw.normal(size=(20, 2)) * 1e-9
    network, inputs, targets = NETWORKS["chain"], fit_min_max(x), fit_standardizer(t)
    params = network.init(jax.random.key(0))
    runs.save_network(tmp_path / "network", network, params, inputs=inputs, targets=targets)
    found = runs.load_scalings(tmp_path / "network")
    for read, given in zip(found, (inputs, targets), strict=True):
        assert isinstance(read, Standardizer) and read.fill is None
        assert read.mean.tobytes() == given.mean.tobytes() and read.scale.tobytes() == given.scale.tobytes()
    again, own = runs.load_network(tmp_path / "network")
    predicted = found[1].invert(again.apply(own, found[0].apply(x)))
    np.testing.assert_array_equal(predicted, targets.invert(network.apply(params, inputs.apply(x))))


def test_what_is_not_scaled_comes_back_as_none(tmp_path):
    network = NETWORKS["chain"]
    runs.save_network(tmp_path / "a", network, network.init(jax.random.key(0)))
    assert runs.load_scalings(tmp_path / "a") == (None, None)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({"network": config["network"]}))  # of an older version
    assert runs.load_scalings(tmp_path / "a") == (None, None)
    (tmp_path / "a" / "config.json").write_text(json.dumps({"network": config["network"], "inputs": {"mean": 1}}))
    with pytest.raises(ValueError, match="not a network's configuration"):
        runs.load_scalings(tmp_path / "a")


@pytest.mark.parametrize(
    ("network", "scaled", "said"),
    [
        ("chain", {"inputs": 2}, "inputs: expected a scaling of 3 columns, got 2"),
        ("chain", {"targets": 3}, "targets: expected a scaling of 2 columns, got 3"),
        ("graph", {"inputs": 2}, "inputs: a scaling needs a network with one input, got 2"),
    ],
)
def test_a_scaling_of_other_columns_is_refused(network, scaled, said, tmp_path):
    network, scaled = NETWORKS[network], {name: fit_min_max(np.eye(width)) for name, width in scaled.items()}
    with pytest.raises(ValueError, match=said):
        runs.save_network(tmp_path / "a", network, network.init(jax.random.key(0)), **scaled)
    assert not (tmp_path / "a").exists()


SIGNALS = fnn.graph(
    inputs={"image": (5, 5, 1), "words": 3},
    layers=[
        fnn.Layer("first", 2, "prelu", [("image", "conv((3, 3), stride=2)")], bias="per_position"),
        fnn.Layer("block", 2, "relu", [("first", "identity"), ("first", "conv((3, 3))")], bias="none"),
        fnn.Layer("pooled", 2, "linear", [("block", "mean_pool")], bias="none"),
        fnn.Layer("read", 2, "linear", [("words", "embedding(4)")]),
        fnn.Layer("output", 3, "softmax", [("read", "full"), "pooled"]),
    ],
)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_network_of_signals_comes_back_and_can_be_used(tmp_path, dtype):
    """Also layers that have no weights: their parameters are a place with nothing in it."""
    params = SIGNALS.init(jax.random.key(0), dtype)
    runs.save_network(tmp_path / "network", SIGNALS, params)
    network, found = runs.load_network(tmp_path / "network")
    assert network == SIGNALS and jax.tree.structure(found) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, params))
    inputs = {"image": np.ones((2, 5, 5, 1)), "words": np.array([[0, 1, 2], [3, 3, 3]])}
    np.testing.assert_array_equal(network.apply(found, inputs), SIGNALS.apply(params, inputs))


def test_parameters_of_an_older_version_are_read(tmp_path):
    """Learned parameters of an activation used to be next to the layer's own."""
    network = NETWORKS["named activations"]
    params = random_params(network, jax.random.key(3))
    runs.save_network(tmp_path / "network", network, params)
    with np.load(tmp_path / "network" / runs.PARAMETERS) as archive:
        older = {path.replace("/learned/", "/"): archive[path] for path in archive}
    assert "layer2/slope" in older
    np.savez(tmp_path / "network" / runs.PARAMETERS, **older)
    assert jax.tree.all(jax.tree.map(np.array_equal, runs.load_network(tmp_path / "network")[1], params))


def test_a_page_names_the_connections_of_layers():
    config = {"network": runs.describe_network(SIGNALS), "loss": "cross_entropy(mean)"}
    assert pages._layers(config).startswith("5 x 5 x 1 - 2 prelu(neuron, 0.25) by conv((3, 3), stride=(2, 2)) - 2 relu")
    recursion = [words for words, _ in pages._network_equations(config) if "recursion" in words]
    dense = [
        words for words, _ in pages._network_equations(config | {"network": runs.describe_network(NETWORKS["chain"])})
    ]
    assert not recursion and any("recursion" in words for words in dense)


def test_a_run_is_read_by_the_name_of_its_folder(tmp_path):
    params = whole(tmp_path / "run")
    for folder in (tmp_path / "run", str(tmp_path / "run")):
        network, found = runs.load_network(folder)
        assert network == runs.load(folder).network and runs.configuration(folder)["task"] == "classification"
        assert jax.tree.all(jax.tree.map(np.array_equal, found, params))


def test_a_network_overwrites_nothing(tmp_path):
    network = NETWORKS["chain"]
    params = random_params(network, jax.random.key(0))
    runs.save_network(tmp_path / "a", network, params)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="already holds a run"):
        runs.save_network(tmp_path / "a", network, params)
    occupy(tmp_path / "b", "folder")
    with pytest.raises(ValueError, match="is not a run's folder"):
        runs.save_network(tmp_path / "b", network, params, replace=True)
    assert {path: data for path, data in contents(tmp_path).items() if path.startswith("a")} == before
    runs.save_network(tmp_path / "a", network, jax.tree.map(jnp.zeros_like, params), replace=True)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(runs.load_network(tmp_path / "a")[1]))


def test_parameters_that_do_not_fit_the_network_are_refused(tmp_path):
    network = NETWORKS["chain"]
    params = random_params(network, jax.random.key(0))
    own = fnn.activations.elementwise("tanh", lambda n: 2 * n, lambda n, a: 2 + 0 * n, lambda n, a: 0 * n)
    mixed = params | {"layer1": jax.tree.map(lambda x: x.astype(jnp.float32), params["layer1"])}
    for given, message in (
        ((network, {"layer1": params["layer1"]}), "params: layer2/bias is missing"),
        ((network, jax.tree.map(lambda x: x[:1], params)), "expected shape"),
        ((network, mixed), "params: expected one dtype, got float32, float64"),
        ((fnn.multilayer((3, 4, 2), (own, "linear")), params), "cannot be rebuilt from its names"),
    ):
        with pytest.raises(ValueError, match=message):
            runs.save_network(tmp_path / "a", *given)
    assert contents(tmp_path) == {}
    runs.save_network(tmp_path / "a", network, params)
    check_refused(tmp_path / "a", "not a run's configuration; 'data' is missing")
