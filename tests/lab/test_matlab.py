"""Files in the shapes that MATLAB writes are read as what they compute, by NumPy here; and what is written is read."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

import functional_nn as fnn
from functional_nn.lab import datasets, matlab

FUNCTIONS = {
    "purelin": lambda n: n,
    "logsig": lambda n: 1 / (1 + np.exp(-n)),
    "tansig": lambda n: 2 / (1 + np.exp(-2 * n)) - 1,
    "softmax": lambda n: np.exp(n) / np.exp(n).sum(axis=0),
    "poslin": lambda n: np.maximum(n, 0),
    "hardlim": lambda n: (n >= 0) * 1.0,
    "hardlims": lambda n: 2.0 * (n >= 0) - 1,
    "satlin": lambda n: np.clip(n, 0, 1),
    "satlins": lambda n: np.clip(n, -1, 1),
    "elliotsig": lambda n: n / (1 + np.abs(n)),
}


def cell(values, shape=None):
    """A cell array, a row unless a shape is given."""
    grid = np.empty(shape or (1, len(values)), object)
    for place, value in zip(np.ndindex(*grid.shape), values, strict=True):
        grid[place] = value
    return grid


def minmax(x, low=-1.0, high=1.0):
    """mapminmax's settings for x (rows, examples), as MATLAB has them."""
    least, most = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    return {
        "name": "mapminmax",
        "xrows": float(len(x)),
        "xmax": most,
        "xmin": least,
        "xrange": most - least,
        "yrows": float(len(x)),
        "ymax": high,
        "ymin": low,
        "yrange": high - low,
        "gain": (high - low) / (most - least),
        "xoffset": least,
        "no_change": False,
    }


def std(x, mean=0.0, deviation=1.0):
    at, spread = x.mean(axis=1, keepdims=True), x.std(axis=1, ddof=1, keepdims=True)
    return {
        "name": "mapstd",
        "xrows": float(len(x)),
        "yrows": float(len(x)),
        "xmean": at,
        "xstd": spread,
        "ymean": mean,
        "ystd": deviation,
        "gain": deviation / spread,
        "xoffset": at,
        "no_change": False,
    }


def constant_rows(x):
    gone = np.flatnonzero((x == x[:, :1]).all(axis=1))
    kept = np.setdiff1d(np.arange(len(x)), gone)
    return {
        "max_range": 0.0,
        "keep": 1.0 + kept[None],
        "remove": 1.0 + gone[None],
        "value": x[gone, :1],
        "xrows": float(len(x)),
        "yrows": float(len(kept)),
        "constants": x[gone, :1],
        "no_change": not gone.size,
    }


def column(settings, name):
    return np.reshape(settings[name], (-1, 1))


def applied(functions, settings, x):
    for function, own in zip(functions, settings, strict=True):
        if own["no_change"]:
            continue
        if function == "removeconstantrows":
            x = x[own["keep"].ravel().astype(int) - 1]
        else:
            x = (x - column(own, "xoffset")) * column(own, "gain") + (own.get("ymin", own.get("ymean")))
    return x


def reversed_(functions, settings, y):
    for function, own in list(zip(functions, settings, strict=True))[::-1]:
        if own["no_change"]:
            continue
        if function == "removeconstantrows":
            whole = np.empty((int(own["xrows"]), y.shape[1]))
            whole[own["keep"].ravel().astype(int) - 1] = y
            whole[own["remove"].ravel().astype(int) - 1] = own["value"]
            y = whole
        else:
            y = (y - own.get("ymin", own.get("ymean"))) / column(own, "gain") + column(own, "xoffset")
    return y


class Toolbox:
    """A network as MATLAB holds it, with random weights: IW, LW, b and process settings."""

    def __init__(self, sizes, functions, cascade=False, inputs=(), outputs=(), seed=0, biases=True):
        draw = np.random.default_rng(seed)
        self.x = draw.normal(size=(sizes[0], 20)) * 10 ** draw.uniform(-2, 2, (sizes[0], 1)) + 5
        self.t = draw.normal(size=(sizes[-1], 20)) * 3 - 7
        if "removeconstantrows" in inputs:
            self.x[::2] = 4.0
        if "removeconstantrows" in outputs:
            self.t[0] = 2.5
        self.fcns, self.settings = {"input": list(inputs), "output": list(outputs)}, {"input": [], "output": []}
        self.rows = {}
        for of, data in (("input", self.x), ("output", self.t)):
            for function in self.fcns[of]:
                make = {"removeconstantrows": constant_rows, "mapminmax": minmax, "mapstd": std}[function]
                self.settings[of].append(make(data))
                data = applied([function], self.settings[of][-1:], data)
            self.rows[of] = len(data)
        sizes = [self.rows["input"], *sizes[1:-1], self.rows["output"]]
        count = len(functions)
        self.functions, none = functions, np.zeros((0, 0))

        def normal(*shape):
            return draw.normal(size=shape)

        self.IW = [normal(sizes[i + 1], sizes[0]) if i == 0 or cascade else none for i in range(count)]
        self.LW = [
            [normal(sizes[i + 1], sizes[j + 1]) if j == i - 1 or (cascade and j < i) else none for j in range(count)]
            for i in range(count)
        ]
        self.b = [normal(size, 1) if biases else none for size in sizes[1:]]

    def __call__(self, x):
        first, outputs = applied(self.fcns["input"], self.settings["input"], x), []
        for i, function in enumerate(self.functions):
            n = self.b[i] if self.b[i].size else 0.0
            n = n + (self.IW[i] @ first if self.IW[i].size else 0.0)
            for j in range(i):
                n = n + (self.LW[i][j] @ outputs[j] if self.LW[i][j].size else 0.0)
            outputs.append(FUNCTIONS[function](n))
        return reversed_(self.fcns["output"], self.settings["output"], outputs[-1])

    @property
    def fields(self):
        count = len(self.functions)
        return {
            "IW": cell(self.IW, (count, 1)),
            "LW": cell(sum(self.LW, []), (count, count)),
            "b": cell(self.b, (count, 1)),
            "transferFcn": cell(self.functions, (count, 1)),
            **{f"{of}Fcns": cell(self.fcns[of]) for of in self.fcns},
            **{f"{of}Settings": cell(self.settings[of]) for of in self.settings},
        }

    def save(self, path, **others):
        scipy.io.savemat(path, self.fields | others)
        return path


DEFAULT = ("removeconstantrows", "mapminmax")
NETWORKS = {
    "fitnet": Toolbox((3, 5, 2), ("tansig", "purelin"), inputs=("mapminmax",), outputs=("mapminmax",)),
    "patternnet": Toolbox((5, 4, 3), ("tansig", "softmax"), inputs=DEFAULT),
    "cascade": Toolbox((4, 3, 2, 2), ("logsig", "tansig", "purelin"), True, DEFAULT, DEFAULT),
    "mapstd": Toolbox((2, 3, 1), ("elliotsig", "purelin"), inputs=("mapstd",), outputs=("mapstd", "mapminmax")),
    "three steps": Toolbox((5, 3, 2), ("poslin", "satlins"), True, (*DEFAULT, "mapstd"), ("mapstd",)),
    "saturating": Toolbox((2, 4, 2, 2), ("satlin", "satlin", "satlin"), True, biases=False),
    "perceptron": Toolbox((2, 3, 1), ("hardlims", "hardlim")),
}


def predicted(saved, x):
    return saved.targets.invert(np.asarray(saved.network.apply(saved.params, saved.inputs.apply(x.T)))).T


@pytest.mark.parametrize("name", NETWORKS)
def test_a_read_network_computes_what_matlab_computes(name, tmp_path):
    net = NETWORKS[name]
    saved = matlab.read(net.save(tmp_path / "net.mat"))
    x = np.random.default_rng(1).normal(size=net.x.shape) * net.x.std(axis=1, keepdims=True) + net.x
    np.testing.assert_allclose(predicted(saved, x), net(x), rtol=1e-12, atol=1e-12)


def test_a_chain_is_multilayer_and_a_cascade_reads_all_earlier_layers(tmp_path):
    saved = matlab.read(NETWORKS["fitnet"].save(tmp_path / "net.mat"))
    assert saved.network == fnn.multilayer((3, 5, 2), ("tanh", "linear"))
    layers = matlab.read(NETWORKS["cascade"].save(tmp_path / "net.mat")).network.layers
    assert [layer.sources for layer in layers] == [
        ("input",),
        ("input", "layer1"),
        ("input", "layer1", "layer2"),
    ]


def test_every_transfer_function_matches_its_name():
    assert set(FUNCTIONS) == set(matlab.ACTIVATIONS)
    n = np.linspace(-2, 2, 9)[:, None]
    for function, name in matlab.ACTIVATIONS.items():
        given = 6 * n - 3 if function == "satlin" else n
        found = fnn.activations.get(name).forward(jnp.asarray(given), {})[0]
        np.testing.assert_allclose(found, FUNCTIONS[function](n.T).T, rtol=1e-14, atol=1e-15)


def test_a_struct_in_a_variable_is_read_too(tmp_path):
    net = NETWORKS["fitnet"]
    scipy.io.savemat(tmp_path / "net.mat", {"s": net.fields, "other": 1.0})
    np.testing.assert_allclose(predicted(matlab.read(tmp_path / "net.mat"), net.x), net(net.x), rtol=1e-12)


def test_settings_of_older_versions_have_no_gain(tmp_path):
    net = NETWORKS["mapstd"]
    older = {
        of: [{name: x for name, x in own.items() if name not in ("gain", "xoffset")} for own in net.settings[of]]
        for of in net.settings
    }
    scipy.io.savemat(tmp_path / "net.mat", net.fields | {f"{of}Settings": cell(older[of]) for of in older})
    np.testing.assert_allclose(predicted(matlab.read(tmp_path / "net.mat"), net.x), net(net.x), rtol=1e-12)


def test_without_process_functions_nothing_is_scaled(tmp_path):
    net = Toolbox((2, 2), ("purelin",))
    fields = {name: net.fields[name] for name in ("IW", "LW", "b", "transferFcn")}
    scipy.io.savemat(tmp_path / "net.mat", fields)
    saved = matlab.read(tmp_path / "net.mat", "float32")
    assert saved.params["layer1"]["bias"].dtype == jnp.float32
    np.testing.assert_array_equal(saved.inputs.apply(net.x.T), net.x.T)
    np.testing.assert_allclose(predicted(saved, net.x), net(net.x), rtol=1e-4)


# Written, and read ----------------------------------------------------------------------------------------------------

GRAPH = fnn.graph(
    inputs={"p": 3},
    layers=[
        fnn.Layer("hidden", 4, "hard_sigmoid", ("p",), bias="shared"),
        fnn.Layer("deep", 2, "relu", ("hidden",), bias="none"),
        fnn.Layer("output", 2, "softsign", ("deep", "p")),
    ],
)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("network", [fnn.multilayer((3, 4, 2), ("tanh", "softmax")), GRAPH])
def test_a_written_network_is_read_back(network, dtype, tmp_path):
    params = jax.tree.map(lambda x: x + x.dtype.type(0.25), network.init(jax.random.key(0), dtype))
    x = np.random.default_rng(0).normal(size=(9, 3)) + 3
    scalings = datasets.fit_min_max(x), datasets.fit_standardizer(x[:, :2] * 7)
    matlab.write(tmp_path / "net.mat", network, params, *scalings)
    saved = matlab.read(tmp_path / "net.mat", dtype)
    tolerance = 10 * float(jnp.finfo(dtype).eps)
    for given, found in zip(scalings, saved[2:], strict=True):
        np.testing.assert_allclose(found.mean, given.mean, rtol=1e-13)
        np.testing.assert_allclose(found.scale, given.scale, rtol=1e-13)

    def wide(tree):
        return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])

    if network is not GRAPH:
        np.testing.assert_array_equal(wide(saved.params), wide(params))  # each is a float64 on the way
    inputs = jnp.asarray(scalings[0].apply(x), dtype)
    found, expected = (np.asarray(net.apply(p, inputs), np.float64) for net, p in ((saved[:2], (network, params))))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_written_fields_have_matlabs_shapes(tmp_path):
    """IW, LW and b are cells of columns, by a NumPy forward that knows MATLAB's equations alone."""
    params = GRAPH.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(9, 3))
    scale = datasets.fit_min_max(x)
    matlab.write(tmp_path / "net.mat", GRAPH, params, scale)
    found = scipy.io.loadmat(tmp_path / "net.mat")
    assert found["IW"].shape == (3, 1) and found["LW"].shape == (3, 3) and found["LW"][0, 0].shape == (0, 0)
    assert [b.shape for b in found["b"].ravel()] == [(4, 1), (2, 1), (2, 1)]
    assert [str(f.item()) for f in found["transferFcn"].ravel()] == ["satlin", "poslin", "elliotsig"]
    p = np.stack([np.interp(row, ends, (-1, 1)) for row, ends in zip(x.T, found["inputRange"], strict=True)])
    a1 = FUNCTIONS["satlin"](found["IW"][0, 0] @ p + found["b"][0, 0])
    a2 = FUNCTIONS["poslin"](found["LW"][1, 0] @ a1)
    a3 = FUNCTIONS["elliotsig"](found["IW"][2, 0] @ p + found["LW"][2, 1] @ a2 + found["b"][2, 0])
    np.testing.assert_allclose(GRAPH.apply(params, scale.apply(x)).T, a3, rtol=1e-12)
    assert found["outputFcns"].size == 0 and found["outputRange"].shape == (2, 2)


def test_the_lines_of_matlab_are_the_pages_too():
    page = (Path(__file__).parents[2] / "scripts" / "pages" / "coming_from" / "matlab.md").read_text()
    blocks = re.findall(r"```matlab\n(.*?)```", page, re.DOTALL)

    def plain(text):
        return " ".join(text.split())

    assert len(blocks) == 2 and all(plain(block) in plain(matlab.__doc__) for block in blocks)


# Refused --------------------------------------------------------------------------------------------------------------


def changed(**fields):
    return lambda path: NETWORKS["cascade"].save(path, **fields)


def without(name):
    def save(path):
        scipy.io.savemat(path, {key: x for key, x in NETWORKS["fitnet"].fields.items() if key != name})

    return save


def settings(**others):
    """The cascade's file with other settings of its inputs' mapminmax; None takes a field away."""
    own = NETWORKS["cascade"].settings["input"]
    new = {name: x for name, x in (own[1] | others).items() if x is not None}
    return changed(inputSettings=cell([own[0], new]))


CASCADE = NETWORKS["cascade"]
BAD = {
    "text": (lambda path: path.write_text("IW = 3"), "not a .mat file that SciPy reads"),
    "7.3": (lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\x00\x02IM"), "version 7.3"),
    "cut": (lambda path: path.write_bytes(CASCADE.save(path).read_bytes()[:900]), r"cannot be read \(could not read"),
    "another": (lambda path: scipy.io.savemat(path, {"net": 1.0}), "IW is missing, got net; .* the lines of MATLAB"),
    "no b": (without("b"), "expected IW, LW, b, transferFcn; b is missing, got IW, LW, transferFcn"),
    "no braces": (
        lambda path: scipy.io.savemat(path, {"s": np.zeros((2, 1), [("IW", object)])}),
        "expected one struct, got 2",
    ),
    "no cells": (changed(IW=np.ones((3, 1))), "IW: expected a cell array, got float64"),
    "two inputs": (changed(IW=cell([np.ones((3, 2))] * 6, (3, 2))), "expected cells of layers x 1, .*, got 3 x 2"),
    "LW": (changed(LW=cell([np.ones((3, 3))], (1, 1))), "LW: expected 3 x 3 cells, got 1 x 1"),
    "functions": (changed(transferFcn=cell(["tansig"])), "transferFcn: expected 3, one for each layer, got 1"),
    "radbas": (
        changed(transferFcn=cell(["radbas", "tansig", "purelin"])),
        "transferFcn: 'radbas' has no counterpart here.* \\(accepted: purelin, logsig",
    ),
    "tansg": (changed(transferFcn=cell(["tansg", "tansig", "purelin"])), "'tansg' .*did you mean 'tansig'"),
    "numbers": (changed(transferFcn=cell([1.0, 2.0, 3.0])), "transferFcn: expected cells of a word each, got"),
    "shapes": (
        changed(b=cell([np.ones((9, 1)), *CASCADE.b[1:]], (3, 1))),
        r"b\{1,1\}: expected 3 numbers, got 9",
    ),
    "columns": (
        changed(IW=cell([np.ones((3, 2)), np.ones((2, 5)), CASCADE.IW[2]], (3, 1))),
        r"IW\{2,1\}: expected shape \(2, 2\), got \(2, 5\)",
    ),
    "feedback": (
        changed(LW=cell([np.ones((3, 2)) if k == 1 else x for k, x in enumerate(sum(CASCADE.LW, []))], (3, 3))),
        r"LW\{1,2\}: layer 1 reads itself or a later layer",
    ),
    "nan": (changed(b=cell([np.full((3, 1), np.nan), *CASCADE.b[1:]], (3, 1))), r"b\{1,1\}: expected finite numbers"),
    "complex": (changed(b=cell([np.full((3, 1), 1j), *CASCADE.b[1:]], (3, 1))), r"b\{1,1\}: expected .* real numbers"),
    "no weights": (changed(IW=cell([np.zeros((3, 0))] * 3, (3, 1))), "layer 1: has no weights"),
    "process": (changed(inputFcns=cell(["removeconstantrows", "processpca"])), "inputFcns: 'processpca' has no"),
    "settings": (changed(inputSettings=cell([])), "inputSettings: expected 2, one for each of inputFcns, got 0"),
    "no gain": (settings(xmax=None, gain=None), r"inputSettings\{2\}, mapminmax: field 'xmax' is missing"),
    "gain": (settings(gain=-1.0), "mapminmax: gain: expected numbers above 0, got -1"),
    "offsets": (settings(xoffset=np.ones((5, 1))), "mapminmax: xoffset: expected 2 numbers, got 5"),
    "subnormal": (settings(gain=1e-310), r"mapminmax: gain: expected numbers above 0, got 1e-310 \(its inverse"),
    "all memory": (
        changed(inputFcns=cell(["mapminmax"]), inputSettings=cell([CASCADE.settings["input"][1] | {"xrows": 1e12}])),
        r"inputSettings\{1\}, mapminmax: xrows: expected an integer from 1 to 10000000, got 1e\+12",
    ),
    "xrows": (settings(xrows=7.0), "mapminmax: xrows: expected 2, got 7"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_file_is_refused_in_one_line(name, tmp_path):
    path = tmp_path / "net.mat"
    BAD[name][0](path)
    with pytest.raises(ValueError, match=BAD[name][1]) as refused:
        matlab.read(path)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


def test_delays_are_recognized_by_rows_that_do_not_fit(tmp_path):
    net = Toolbox((2, 3, 1), ("tansig", "purelin"), inputs=("mapminmax",))
    net.IW[0] = np.ones((3, 4))  # two delays of two rows
    with pytest.raises(ValueError, match="2 rows are left after them, but the weights are for 4; .* delays"):
        matlab.read(net.save(tmp_path / "net.mat"))


def test_a_removed_output_needs_a_function_that_is_0_at_0(tmp_path):
    net = Toolbox((2, 3, 2), ("tansig", "logsig"), outputs=DEFAULT)
    with pytest.raises(ValueError, match="removed 1 of 2 outputs, which a layer of logsig cannot restore as 0"):
        matlab.read(net.save(tmp_path / "net.mat"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        matlab.read(tmp_path / "none.mat")


@pytest.mark.parametrize(
    ("network", "scalings", "said"),
    [
        (fnn.multilayer((3, 2), ("gelu",)), (), "layer 'layer1' has no counterpart in MATLAB: .* got gelu"),
        (
            fnn.graph(inputs={"a": 1, "b": 2}, layers=[fnn.Layer("c", 1, "tanh", ("a", "b"))]),
            (),
            "expected one input of R numbers, as MATLAB's networks have here, got a 1, b 2",
        ),
        (
            fnn.graph(inputs={"a": (4, 1)}, layers=[fnn.Layer("c", 1, "tanh", [("a", "full")])]),
            (),
            r"as MATLAB's networks have here, got a \(4, 1\)",
        ),
        (
            fnn.multilayer((3, 2), ("tanh",)),
            (datasets.fit_min_max(np.eye(2)),),
            "inputs: expected a scaling of 3 columns, got 2",
        ),
        (
            fnn.multilayer((3, 2), ("tanh",)),
            (datasets.fit_min_max(np.eye(3))._replace(fill=np.ones(3)),),
            "inputs: mapminmax cannot fill missing values",
        ),
    ],
)
def test_networks_that_matlab_cannot_represent_are_refused(network, scalings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        matlab.write(tmp_path / "net.mat", network, network.init(jax.random.key(0)), *scalings)
    assert not (tmp_path / "net.mat").exists()


def test_a_file_is_replaced_only_on_request(tmp_path):
    network = fnn.multilayer((3, 2), ("tanh",))
    (tmp_path / "net.mat").write_text("mine")
    with pytest.raises(ValueError, match="exists; give another path, or replace=True"):
        matlab.write(tmp_path / "net.mat", network, network.init(jax.random.key(0)))
    matlab.write(tmp_path / "net.mat", network, network.init(jax.random.key(0)), replace=True)
    assert matlab.read(tmp_path / "net.mat").network == network
