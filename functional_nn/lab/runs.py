"""A run's folder: config.json, history.csv, parameters.npz, figures, the comparison, report.html.

`load` reads one back; `save_network` and `load_network` do so for a network alone, however it was trained. A folder is
written under another name and renamed when it is complete, so that what carries the run's name is whole.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import checks, precision
from functional_nn.gradients.comparison import finite_or_none
from functional_nn.lab import tables
from functional_nn.lab.datasets import Dataset, Pictures, Reading, Series, Standardizer
from functional_nn.networks.network import abstract_params, param_shapes
from functional_nn.training.configuration import describe_network, network_from

CONFIG, PARAMETERS = "config.json", "parameters.npz"
_REQUIRED = (
    "data",
    "task",
    "network",
    "loss",
    "dtype",
    "classes",
    "features",
    "inputs",
    "targets",
    "seed",
    "test_fraction",
    "target",
    "labels",
)


class Run(NamedTuple):
    """What a saved run needs to be used again.

    inputs: how they are scaled, None of tokens; targets: how regression outputs are, None for classification; reading:
    how its data was read, and other data is to be.
    """

    config: dict[str, Any]
    network: fnn.Network
    loss: fnn.Loss
    params: dict
    inputs: Standardizer | None
    targets: Standardizer | None
    reading: Reading


def check_free(out: Path, replace: bool) -> None:
    """Raises ValueError where `out` holds something that would be lost; with `replace`, only what is not a run."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG).is_file():
        raise ValueError(f"output {str(out)!r} exists and is not a run's folder; choose another with --out")
    if not replace:
        raise ValueError(f"output folder {str(out)!r} already holds a run; choose another with --out, or --replace it")


@contextlib.contextmanager
def writing(out: Path, replace: bool) -> Iterator[Path]:
    """A fresh folder that becomes `out` if all goes well and vanishes if not. Raises as `check_free`."""
    check_free(out, replace)
    made = [folder for folder in out.parents if not folder.exists()]  # innermost first
    out.parent.mkdir(parents=True, exist_ok=True)
    tag = f"{os.getpid()}-{time.monotonic_ns()}"
    partial, old = out.with_name(f".{out.name}-{tag}"), out.with_name(f".{out.name}-{tag}-old")
    partial.mkdir()
    try:
        yield partial
        check_free(out, replace)
        if out.exists():
            out.rename(old)
        try:
            partial.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):  # somebody else's files are in it by now
                    folder.rmdir()


def save(folder: Path, config: dict[str, Any], params: dict) -> None:
    """Writes config.json and parameters.npz (arrays by path; 16-bit floats widened to float32, which is exact)."""
    (folder / CONFIG).write_text(json.dumps(finite_or_none(config), indent=2) + "\n")
    paths = jax.tree_util.tree_leaves_with_path(params)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in paths}
    arrays = {path: x.astype(np.float32) if x.itemsize < 4 else x for path, x in arrays.items()}
    np.savez(folder / PARAMETERS, **arrays)


def save_network(
    folder: str | Path,
    network: fnn.Network,
    params: dict,
    *,
    inputs: Standardizer | None = None,
    targets: Standardizer | None = None,
    replace: bool = False,
) -> None:
    """Writes a network and its parameters into a folder of their own, for `load_network`.

    inputs, targets: how these are scaled, of a network that reads one input of R numbers and gives S, for
    `load_scalings`. Raises ValueError where the folder holds something (as `check_free`), where the parameters are not
    the network's or of several dtypes, where a scaling has another number of columns, and for an activation,
    initializer or connection that is not registered, so that its name is not enough.
    """
    description = describe_network(network)
    if network_from(description) != network:
        raise ValueError(
            "the network is not what its names stand for; register its own activations, connections and initializers"
        )
    own = fnn.rules.without_feedback(params)  # what a rule has learned beside them is kept, too
    checks.same_shapes("params", checks.shapes(own), param_shapes(network), "the network's")
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    if len(dtypes) != 1:
        raise ValueError(f"params: expected one dtype, got {', '.join(dtypes)}")
    scaled = {"inputs": inputs, "targets": targets}
    for name, scaling in scaled.items():
        if scaling is not None:
            check_scaling(name, scaling, network)
    told = {name: scaling and plain_scaling(scaling) for name, scaling in scaled.items()}
    with writing(Path(folder), replace) as partial:
        save(partial, {"network": description, "dtype": dtypes[0]} | told, params)


def check_scaling(name: Literal["inputs", "targets"], scaling: Standardizer, network: fnn.Network) -> None:
    """Raises ValueError unless it scales what the network reads, one input of R numbers, or its outputs."""
    if name == "inputs" and len(network.inputs) > 1:
        raise ValueError(f"inputs: a scaling is for a network of one input, got {len(network.inputs)}")
    width = network.sizes[network.inputs[0][0] if name == "inputs" else network.output.name]
    if np.shape(scaling.mean) != (width,) or np.shape(scaling.scale) != (width,):
        raise ValueError(f"{name}: expected a scaling of {width} columns, got {np.size(scaling.mean)}")


def plain_scaling(scaling: Standardizer) -> dict[str, Any]:
    """For JSON, as a configuration has it."""
    return {name: None if x is None else np.asarray(x).tolist() for name, x in scaling._asdict().items()}


def load_network(folder: str | Path) -> tuple[fnn.Network, dict]:
    """The network and the parameters in a folder that `save_network` wrote, or a run's. Raises ValueError as `load`."""
    folder = Path(folder)
    config = _json(folder, ("network", "dtype"))
    try:
        network, dtype = network_from(config["network"]), precision.available(config["dtype"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: not a network's configuration ({error})") from None
    return network, _parameters(folder, network, dtype)


def load_scalings(folder: str | Path) -> tuple[Standardizer | None, Standardizer | None]:
    """How inputs and targets are scaled for the network in a folder that `save_network` wrote, or a run's; None for
    what is not scaled. Raises ValueError as `load`.
    """
    folder = Path(folder)
    config = _json(folder, ("network",))
    try:
        return standardizers({"inputs": None, "targets": None} | config)  # older folders have none
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: not a network's configuration ({error})") from None


def configuration(folder: str | Path) -> dict[str, Any]:
    """A run's config.json. Raises ValueError where the folder is not a run's."""
    return _json(Path(folder), _REQUIRED)


def _json(folder: Path, required: tuple[str, ...]) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{str(folder)!r} is not a run's folder: it has no {CONFIG}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG}: not JSON ({error})") from None
    missing = [key for key in required if key not in config] if isinstance(config, dict) else required
    if missing:
        raise ValueError(f"{folder / CONFIG}: not a run's configuration; {missing[0]!r} is missing")
    return config


def standardizers(config: dict[str, Any]) -> tuple[Standardizer | None, Standardizer | None]:
    """How the configuration scales inputs, None of tokens, and, for regression, targets. Raises KeyError, TypeError,
    ValueError.
    """

    def read(scaling):
        mean, scale = (np.array(scaling[name], np.float64) for name in ("mean", "scale"))
        fill = scaling.get("fill")  # older runs have none
        return Standardizer(mean, scale, None if fill is None else np.array(fill, np.float64))

    return config["inputs"] and read(config["inputs"]), config["targets"] and read(config["targets"])


def plain_reading(reading: Reading) -> dict[str, Any]:
    """A data set's reading for JSON, by the names in a configuration; `reading_from` reads it back."""
    return {
        "task": reading.task,
        "classes": list(reading.classes),
        "features": list(reading.features),
        "image_shape": reading.image_shape,
        "table": reading.table and reading.table.plain(),
        "pictures": reading.pictures and reading.pictures._asdict(),
        "own_test": reading.own_test,
        "tokens": reading.tokens,
        "series": reading.series and reading.series._asdict(),
    }


def reading_from(config: dict[str, Any]) -> Reading:
    """How the run's data was read. Raises KeyError, TypeError, ValueError for what is no configuration."""
    table, pictures, shape, series = (config.get(name) for name in ("table", "pictures", "image_shape", "series"))
    return Reading(
        tuple(config["features"]),
        config["task"],
        tuple(config["classes"]),
        shape and tuple(shape),
        table and tables.table_from(table),
        pictures and Pictures(**pictures),
        config.get("own_test", False),  # older versions knew of no such part
        series and Series(**series),
        config.get("tokens", 0),
    )


def load(folder: str | Path) -> Run:
    """Reads a run back. Raises ValueError where the folder is not a run's, or its parameters are not its network's."""
    folder = Path(folder)
    config = configuration(folder)
    try:
        network = network_from(config["network"])
        loss = fnn.losses.get(config["loss"])
        dtype = precision.available(config["dtype"])
        inputs, targets = standardizers(config)
        reading = reading_from(config)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: not a run's configuration ({error})") from None
    return Run(config, network, loss, _parameters(folder, network, dtype), inputs, targets, reading)


def _parameters(folder: Path, network: fnn.Network, dtype) -> dict:
    like = abstract_params(network, jnp.float32)
    try:
        with (folder / PARAMETERS).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = []
            for path, leaf in checks.by_path(like).items():
                value = archive[path if path in archive else checks.once(path)]
                if value.shape != leaf.shape:
                    raise ValueError(f"{path} expected shape {leaf.shape}, got {value.shape}")
                found.append(jnp.asarray(value, dtype))
            params = jax.tree.unflatten(jax.tree.structure(like), found)  # also of a layer that has no weights
            for path in archive.files:  # what a learning rule has learned beside them
                layer, *rest = path.split("/")
                if layer in params and rest[:1] == ["feedback"]:
                    params[layer].setdefault("feedback", {})["/".join(rest[1:])] = jnp.asarray(archive[path], dtype)
            return params
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for damaged files
        raise ValueError(f"{folder / PARAMETERS}: not this run's parameters ({error})") from None


def encode(config: dict[str, Any], loss: fnn.Loss, dataset: Dataset) -> np.ndarray:
    """Targets (Q, S) for the run's outputs: classes in the run's order, coded as its loss wants them, of positions the
    labels (Q, T); or raw columns.

    Raises ValueError for another task, or a class the run does not know.
    """
    if dataset.task != config["task"]:
        raise ValueError(f"{dataset.name}: expected data for {config['task']}, got {dataset.task}")
    if dataset.task == "regression":
        return dataset.targets
    known = config["classes"]
    unknown = sorted(set(dataset.classes) - set(known))
    if unknown:
        raise ValueError(f"{dataset.name}: unknown class {unknown[0]!r} (accepted: {', '.join(known)})")
    numbers = np.array([known.index(name) for name in dataset.classes])[dataset.labels]
    if numbers.ndim > 1:  # of each position; `fit` codes them batch by batch
        return numbers
    return code(loss, np.eye(len(known))[numbers])


def code(loss: fnn.Loss, one_hot: np.ndarray) -> np.ndarray:
    """One-hot rows as the loss wants its targets: -1 and +1 for hinge and logistic."""
    return 2 * one_hot - 1 if loss.targets == "signs" else one_hot
