"""Reads networks that MATLAB's shallow neural network functions saved, and writes networks that MATLAB can load.

SciPy does not read MATLAB's network objects, so the numbers of a network are saved as a struct of cells. This line of
MATLAB writes the file that `read` takes, for a fitnet, patternnet, feedforwardnet, cascadeforwardnet or perceptron
`net`::

    s = struct('IW', {net.IW}, 'LW', {net.LW}, 'b', {net.b}, ...
        'transferFcn', {cellfun(@(l) l.transferFcn, net.layers, 'UniformOutput', false)}, ...
        'inputFcns', {net.inputs{1}.processFcns}, 'inputSettings', {net.inputs{1}.processSettings}, ...
        'outputFcns', {net.outputs{end}.processFcns}, 'outputSettings', {net.outputs{end}.processSettings});
    save('net.mat', '-struct', 's', '-v7')

These lines read a file that `write` wrote. MATLAB computes the settings of its process functions itself, from example
data: the two columns of inputRange are mapped to -1 and 1::

    s = load('net.mat'); n = numel(s.b);
    net = network(1, n, true(n, 1), ~cellfun('isempty', s.IW), ~cellfun('isempty', s.LW), [false(1, n - 1) true]);
    for i = 1:n, net.layers{i}.size = numel(s.b{i}); net.layers{i}.transferFcn = s.transferFcn{i}; end
    net.inputs{1}.processFcns = s.inputFcns; net.outputs{n}.processFcns = s.outputFcns;
    net = configure(net, s.inputRange, s.outputRange);
    net.IW = s.IW; net.LW = s.LW; net.b = s.b;

Letters: R inputs, S outputs. MATLAB's examples are columns. `IW{i,1}` (S_i, R) are the weights with which layer i reads
the inputs, `LW{i,j}` (S_i, S_j) those with which it reads layer j, `b{i}` (S_i, 1) is its bias: the same as here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.io
from jax.typing import DTypeLike

from functional_nn import checks, precision
from functional_nn.lab import runs
from functional_nn.lab.datasets import Standardizer
from functional_nn.networks.network import Layer, Network, Params, check_params, graph
from functional_nn.registry import did_you_mean

__all__ = [
    "ACTIVATIONS",
    "PROCESSES",
    "Saved",
    "read",
    "write",
]

# satlin(n) is hard_sigmoid(6 n - 3): its layers' weights and biases are changed so, and changed back
ACTIVATIONS = {
    "purelin": "linear",
    "logsig": "sigmoid",
    "tansig": "tanh",
    "softmax": "softmax",
    "poslin": "relu",
    "hardlim": "hardlim",
    "hardlims": "hardlims",
    "satlin": "hard_sigmoid",
    "satlins": "hard_tanh",
    "elliotsig": "softsign",
}
PROCESSES = ("removeconstantrows", "mapminmax", "mapstd")
_NAMES = {name: function for function, name in ACTIVATIONS.items()}
_REQUIRED = ("IW", "LW", "b", "transferFcn")
_AT_ZERO = ("linear", "tanh", "relu", "hard_tanh", "softsign")  # activations that are 0 at 0
_MOST_ROWS = 10**7  # of a process function, so that a file cannot take all memory
_HOW = "help(functional_nn.lab.matlab) shows the lines of MATLAB that write them"


class Saved(NamedTuple):
    """A network that was read: `targets.invert(network.apply(params, inputs.apply(x)))` is MATLAB's net(x')'.

    Attributes:
        network: its layers are called layer1, layer2, ...; its input is called input.
        params: its parameters.
        inputs: how inputs are scaled, in the user's own columns; by 1 where MATLAB does not change them.
        targets: how targets are scaled, in the same way.

    Example:
        >>> from functional_nn.lab import matlab
        >>> saved = matlab.read("net.mat")  # doctest: +SKIP
        >>> saved.network.apply(saved.params, saved.inputs.apply(x)).shape  # doctest: +SKIP
        (150, 3)
    """

    network: Network
    params: Params
    inputs: Standardizer
    targets: Standardizer


def read(path: str | Path, dtype: DTypeLike | None = None) -> Saved:
    """Reads a network from a `.mat` file that MATLAB wrote with the line above, or that `write` wrote.

    If removeconstantrows removed an input, the network has weights of 0 for it, so that it takes the user's own
    columns; if it removed an output, the network returns the constant.

    Args:
        path: the file.
        dtype: dtype of the parameters; by default JAX's default float.

    Returns:
        The network, its parameters and its scalings: `Saved`.

    Raises:
        ValueError: for another format, a missing field, shapes that do not fit, a transfer or process function without
            a counterpart here, layers that read later ones, several inputs, or delays. The message begins with the
            path.

    Example:
        >>> import pathlib, tempfile
        >>> import jax
        >>> import functional_nn as fnn
        >>> from functional_nn.lab import matlab
        >>> network = fnn.multilayer((4, 3, 2), ("tanh", "linear"))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.mat"
        >>> matlab.write(path, network, network.init(jax.random.key(0)))
        >>> matlab.read(path).network == network
        True
    """
    path, dtype = Path(path), precision.default() if dtype is None else precision.available(dtype)
    try:
        return _network(_fields(path), dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write(
    path: str | Path,
    network: Network,
    params: Params,
    inputs: Standardizer | None = None,
    targets: Standardizer | None = None,
    *,
    replace: bool = False,
) -> None:
    """Writes a network and its scalings as a `.mat` file, for `read` and for MATLAB with the lines above.

    Dropout is not written, because MATLAB has none; neither are the layers' names.

    Args:
        path: the file.
        network: one input of R numbers, dense connections, activations in `ACTIVATIONS`.
        params: its parameters.
        inputs: how inputs are scaled; None if they are not.
        targets: how targets are scaled; None if they are not.
        replace: whether to replace a file that exists.

    Raises:
        ValueError: if the file exists and `replace` is False; for a network that MATLAB cannot represent (several
            inputs, signals, connections other than dense ones, other activations); for a scaling with another number of
            columns or with values for missing ones; and, as `Network.apply`, for parameters that are not the network's.

    Example:
        >>> import pathlib, tempfile
        >>> import jax
        >>> import functional_nn as fnn
        >>> from functional_nn.lab import matlab
        >>> network = fnn.multilayer((2, 1), ("sigmoid",))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.mat"
        >>> matlab.write(path, network, network.init(jax.random.key(0)))
        >>> path.exists()
        True
    """
    path = Path(path)
    if path.exists() and not replace:
        raise ValueError(f"{str(path)!r} exists; give another path, or replace=True")
    check_params(network, params)
    fields = _grids(network, params)
    sizes = {"input": network.sizes[network.inputs[0][0]], "output": network.output.size}
    for name, given, scaling in (("input", "inputs", inputs), ("output", "targets", targets)):
        if scaling is not None:
            runs.check_scaling(given, scaling, network)
            if scaling.fill is not None:
                raise ValueError(f"{given}: mapminmax cannot fill missing values; got a scaling with fill=...")
        fields |= _settings_fields(name, scaling, sizes[name])
    scipy.io.savemat(path, fields, appendmat=False, oned_as="column")


# Reading --------------------------------------------------------------------------------------------------------------


def _fields(path: Path) -> dict[str, np.ndarray]:
    """The variables of the file by name, or the fields of its only struct."""
    try:
        found = scipy.io.loadmat(path, appendmat=False)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from None
    except NotImplementedError:
        raise ValueError("is of version 7.3, which SciPy does not read; save it with '-v7'") from None
    except Exception as error:  # SciPy raises many kinds for damaged files and for other formats
        raise ValueError(f"not a .mat file that SciPy reads ({error})") from None
    fields = {name: value for name, value in found.items() if not name.startswith("__")}
    structs = [value for value in fields.values() if "IW" in (getattr(value.dtype, "names", None) or ())]
    if "IW" not in fields and len(structs) == 1:
        if structs[0].size != 1:
            raise ValueError(
                f"expected one struct, got {structs[0].size}: struct(...) makes a single struct only if cells are in "
                "braces, {net.IW}"
            )
        fields = {name: structs[0].flat[0][name] for name in structs[0].dtype.names}
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        given = ", ".join(fields) or "nothing"
        raise ValueError(f"expected {', '.join(_REQUIRED)}; {missing[0]} is missing, got {given}; {_HOW}")
    return fields


def _cells(fields: Mapping[str, Any], name: str, shape: tuple[int, int] | None = None) -> np.ndarray:
    """A field that is a cell array, of the given shape; an empty one if the field does not exist."""
    value = fields.get(name, np.empty((0, 0), object))
    if not isinstance(value, np.ndarray) or value.ndim != 2 or (value.dtype != object and value.size):
        kind = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"{name}: expected a cell array, got {kind}; {_HOW}")
    if shape is not None and value.shape != shape:
        raise ValueError(
            f"{name}: expected {' x '.join(map(str, shape))} cells, got {' x '.join(map(str, value.shape))}"
        )
    return value


def _matrix(name: str, value: Any) -> np.ndarray:
    """Finite real numbers, (rows, columns)."""
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "biuf":
        kind = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"{name}: expected a matrix of real numbers, got {kind}")
    checks.finite(name, value)
    return value.astype(np.float64)


def _words(fields: Mapping[str, Any], name: str) -> list[str]:
    """A cell array of words."""
    words = []
    for cell in _cells(fields, name).ravel():
        value = np.asarray(cell)
        if value.dtype.kind != "U" or value.size != 1:
            raise ValueError(f"{name}: expected cells of a word each, got {value.dtype} of shape {value.shape}")
        words.append(str(value.item()))
    return words


def _known(name: str, word: str, accepted: Any) -> str:
    if word not in accepted:
        hint = did_you_mean(word, accepted)
        raise ValueError(f"{name}: {word!r} has no counterpart here{hint} (accepted: {', '.join(accepted)})")
    return word


def _network(fields: Mapping[str, Any], dtype: DTypeLike) -> Saved:
    columns = _cells(fields, "IW").shape[1]
    count = len(_cells(fields, "IW"))
    if columns != 1 or not count:
        raise ValueError(f"IW: expected cells of layers x 1, for one input, got {count} x {columns}")
    IW, LW, b = _cells(fields, "IW"), _cells(fields, "LW", (count, count)), _cells(fields, "b", (count, 1))
    functions = _words(fields, "transferFcn")
    if len(functions) != count:
        raise ValueError(f"transferFcn: expected {count}, one for each layer, got {len(functions)}")
    names = [ACTIVATIONS[_known("transferFcn", function, ACTIVATIONS)] for function in functions]
    weights, biases, sizes = [], [], {}
    for i in range(count):
        grid = {"input": (f"IW{{{i + 1},1}}", IW[i, 0])}
        grid |= {f"layer{j + 1}": (f"LW{{{i + 1},{j + 1}}}", LW[i, j]) for j in range(count)}
        grid = {source: (name, _matrix(name, value)) for source, (name, value) in grid.items() if np.size(value)}
        later = next((grid[source][0] for j in range(i, count) if (source := f"layer{j + 1}") in grid), None)
        if later:
            raise ValueError(f"{later}: layer {i + 1} reads itself or a later layer; expected a feedforward network")
        if not grid:
            raise ValueError(f"layer {i + 1}: has no weights; IW and LW are empty (is the net configured?)")
        offset = _matrix(f"b{{{i + 1},1}}", b[i, 0]).ravel() if np.size(b[i, 0]) else None
        sizes[f"layer{i + 1}"] = size = len(next(iter(grid.values()))[1])
        for source, (name, W) in grid.items():
            sizes.setdefault(source, W.shape[1])
            if W.shape != (size, sizes[source]):
                raise ValueError(f"{name}: expected shape {(size, sizes[source])}, got {W.shape}")
        if offset is not None and offset.shape != (size,):
            raise ValueError(f"b{{{i + 1},1}}: expected {size} numbers, got {len(offset)}")
        weights.append({source: W for source, (_, W) in grid.items()})
        biases.append(offset)
    if "input" not in sizes:
        raise ValueError("IW: no layer reads the inputs")
    inputs, read = _processed(fields, "input", sizes["input"])
    targets, given = _processed(fields, "output", sizes[f"layer{count}"])
    _widen_inputs(weights, read, len(inputs.mean))
    biases[-1] = _widen_outputs(weights[-1], biases[-1], names[-1], given, len(targets.mean))
    layers, params = [], {}
    for i, (by_source, offset, name) in enumerate(zip(weights, biases, names, strict=True), start=1):
        size = len(next(iter(by_source.values())))
        if name == "hard_sigmoid":
            by_source = {source: 6 * W for source, W in by_source.items()}
            offset = 6 * (np.zeros(size) if offset is None else offset) - 3
        bias = "none" if offset is None else "per_neuron"
        layers.append(Layer(f"layer{i}", size, name, tuple(by_source), bias))
        params[f"layer{i}"] = {"weights": {source: jnp.asarray(W, dtype) for source, W in by_source.items()}}
        if offset is not None:
            params[f"layer{i}"]["bias"] = jnp.asarray(offset, dtype)
    return Saved(graph(inputs={"input": len(inputs.mean)}, layers=layers), params, inputs, targets)


def _widen_inputs(weights: list[dict[str, np.ndarray]], kept: np.ndarray, width: int) -> None:
    """Adds weights of 0 for the rows that were removed."""
    for by_source in weights:
        if "input" in by_source:
            wide = np.zeros((len(by_source["input"]), width))
            wide[:, kept] = by_source["input"]
            by_source["input"] = wide


def _widen_outputs(
    weights: dict[str, np.ndarray], bias: np.ndarray | None, activation: str, kept: np.ndarray, width: int
) -> np.ndarray | None:
    """Adds outputs of 0, which the scaling turns into the constant, for the rows that were removed; returns the
    bias.
    """
    if len(kept) == width:
        return bias
    if activation not in _AT_ZERO:
        raise ValueError(
            f"outputFcns: removeconstantrows removed {width - len(kept)} of {width} outputs, which a layer of "
            f"{_NAMES[activation]} cannot restore as 0 (accepted: {', '.join(_NAMES[name] for name in _AT_ZERO)})"
        )
    for source, W in weights.items():
        weights[source] = np.zeros((width, W.shape[1]))
        weights[source][kept] = W
    wide = np.zeros(width)
    wide[kept] = 0 if bias is None else bias
    return None if bias is None else wide


def _processed(fields: Mapping[str, Any], of: str, rows: int) -> tuple[Standardizer, np.ndarray]:
    """How all rows that the user gives are scaled, and the numbers of the `rows` rows that the network has.

    Each step maps y, (x - mean) / scale of the rows that are kept, to (y - center) / width.
    """
    functions, settings = _words(fields, f"{of}Fcns"), _cells(fields, f"{of}Settings").ravel()
    if len(functions) != len(settings):
        raise ValueError(f"{of}Settings: expected {len(functions)}, one for each of {of}Fcns, got {len(settings)}")
    steps = [
        _Settings(f"{of}Settings{{{number}}}, {_known(f'{of}Fcns', name, PROCESSES)}", own)
        for number, (name, own) in enumerate(zip(functions, settings, strict=True), start=1)
    ]
    whole = rows
    if steps:
        given = steps[0].number("xrows")
        if given != round(given) or not 1 <= given <= _MOST_ROWS:
            raise ValueError(f"{steps[0].name}: xrows: expected an integer from 1 to {_MOST_ROWS}, got {given:g}")
        whole = int(given)
    mean, scale, kept = np.zeros(whole), np.ones(whole), np.arange(whole)
    for name, step in zip(functions, steps, strict=True):
        if step.number("xrows") != len(kept):
            raise ValueError(f"{step.name}: xrows: expected {len(kept)}, got {step.number('xrows'):g}")
        if step.has("no_change") and step.number("no_change"):
            continue
        if name == "removeconstantrows":
            stays, goes = (step.places(which, len(kept)) for which in ("keep", "remove"))
            if sorted([*stays, *goes]) != list(range(len(kept))):
                raise ValueError(f"{step.name}: keep and remove: expected each row of {len(kept)} in one of them")
            gone = kept[goes]
            mean[gone] += scale[gone] * step.values("value", len(goes))
            kept = kept[stays]
            continue
        center, width = step.affine(name, len(kept))
        mean[kept] += scale[kept] * center
        scale[kept] *= width
    if len(kept) != rows:
        raise ValueError(
            f"{of}Settings: {len(kept)} rows are left after them, but the weights are for {rows}; networks with delays "
            "are not supported"
        )
    return Standardizer(mean, scale), kept


class _Settings:
    """A process function's struct, read field by field."""

    def __init__(self, name: str, value: Any):
        if not isinstance(value, np.ndarray) or not value.dtype.names or value.size != 1:
            raise ValueError(f"{name}: expected a struct, got {getattr(value, 'dtype', type(value).__name__)}")
        self.name, self.fields = name, value.flat[0]

    def has(self, field: str) -> bool:
        return field in self.fields.dtype.names

    def values(self, field: str, count: int) -> np.ndarray:
        """`count` numbers; a single one stands for all."""
        if not self.has(field):
            raise ValueError(f"{self.name}: field {field!r} is missing")
        found = _matrix(f"{self.name}: {field}", self.fields[field]).ravel()
        if len(found) not in (1, count):
            raise ValueError(f"{self.name}: {field}: expected {count} numbers, got {len(found)}")
        return np.broadcast_to(found, (count,))

    def number(self, field: str) -> float:
        return float(self.values(field, 1)[0])

    def places(self, field: str, count: int) -> np.ndarray:
        """Row numbers, from 0."""
        if not self.has(field):
            raise ValueError(f"{self.name}: field {field!r} is missing")
        found = _matrix(f"{self.name}: {field}", self.fields[field]).ravel()
        if not (np.isin(found, np.arange(1, count + 1))).all():
            raise ValueError(f"{self.name}: {field}: expected row numbers from 1 to {count}, got {found.tolist()}")
        return found.astype(np.int64) - 1

    def affine(self, function: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """center and width of (y - center) / width = (y - xoffset) gain + ymin, or + ymean. Older versions of MATLAB
        store the values from which xoffset and gain are computed.
        """
        shift = self.values("ymin" if function == "mapminmax" else "ymean", count)
        if self.has("gain"):
            offset, gain = self.values("xoffset", count), self.values("gain", count)
        elif function == "mapminmax":
            offset, most = self.values("xmin", count), self.values("xmax", count)
            constant = offset == most  # y = x there, as in MATLAB
            gain = np.where(constant, 1, (self.values("ymax", count) - shift) / np.where(constant, 1, most - offset))
            offset = np.where(constant, shift, offset)
        else:
            offset, deviation = self.values("xmean", count), self.values("xstd", count)
            constant = deviation == 0
            gain = np.where(constant, 1, self.values("ystd", count) / np.where(constant, 1, deviation))
            offset = np.where(constant, shift, offset)
        if not (gain > np.finfo(np.float64).tiny).all():
            why = " (its inverse overflows)" if gain.min() > 0 else ""
            raise ValueError(f"{self.name}: gain: expected numbers above 0, got {gain.min():g}{why}")
        return offset - shift / gain, 1 / gain


# Writing --------------------------------------------------------------------------------------------------------------


def _cell(values: list[Any], shape: tuple[int, int]) -> np.ndarray:
    grid = np.empty(shape, object)
    for place, value in zip(np.ndindex(*shape), values, strict=True):
        grid[place] = value
    return grid


def _grids(network: Network, params: Params) -> dict[str, np.ndarray]:
    """IW, LW, b and transferFcn. Raises ValueError for what they cannot hold."""
    if len(network.inputs) != 1 or not isinstance(network.inputs[0][1], int):
        shapes = ", ".join(f"{name} {shape}" for name, shape in network.inputs)
        raise ValueError(f"network: expected one input of R numbers, as MATLAB's networks have here, got {shapes}")
    source, names = network.inputs[0][0], [layer.name for layer in network.layers]
    count, none = len(names), np.zeros((0, 0))
    IW, LW, b, functions = [], [], [], []
    for layer in network.layers:
        function = _NAMES.get(layer.activation.name)
        if not layer.is_dense or layer.lengths or function is None:
            raise ValueError(
                f"network: layer {layer.name!r} has no counterpart in MATLAB: expected dense connections and an "
                f"activation of {', '.join(_NAMES)}, got {layer.activation.name} by "
                f"{', '.join(by.name for by in layer.connections)}"
            )

        def wide(x: Any) -> np.ndarray:
            return np.asarray(x).astype(np.float64)  # also from bfloat16

        weights = {name: wide(W) for name, W in params[layer.name]["weights"].items()}
        bias = np.zeros(layer.size) + wide(params[layer.name].get("bias", np.zeros(1)))  # a shared bias is repeated
        if layer.activation.name == "hard_sigmoid":
            weights, bias = {name: W / 6 for name, W in weights.items()}, bias / 6 + 0.5
        IW.append(weights.get(source, none))
        LW += [weights.get(name, none) for name in names]
        b.append(bias[:, None])
        functions.append(function)
    return {
        "IW": _cell(IW, (count, 1)),
        "LW": _cell(LW, (count, count)),
        "b": _cell(b, (count, 1)),
        "transferFcn": _cell(functions, (count, 1)),
    }


def _settings_fields(of: str, scaling: Standardizer | None, rows: int) -> dict[str, np.ndarray]:
    """The scaling as mapminmax's settings, and the range from which MATLAB computes the same; empty for None."""
    if scaling is None:
        empty = np.empty((1, 0), object)
        return {f"{of}Fcns": empty, f"{of}Settings": empty, f"{of}Range": np.zeros((rows, 2))}
    mean, scale = (np.asarray(x, np.float64)[:, None] for x in scaling[:2])
    least, most = mean - scale, mean + scale
    settings = {
        "name": "mapminmax",
        "xrows": float(rows),
        "xmax": most,
        "xmin": least,
        "xrange": most - least,
        "yrows": float(rows),
        "ymax": 1.0,
        "ymin": -1.0,
        "yrange": 2.0,
        "gain": 1 / scale,
        "xoffset": least,
        "no_change": False,
    }
    return {
        f"{of}Fcns": _cell(["mapminmax"], (1, 1)),
        f"{of}Settings": _cell([settings], (1, 1)),
        f"{of}Range": np.concatenate([least, most], axis=1),
    }
