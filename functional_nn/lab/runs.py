"""Saves runs and networks in folders, and loads them.

A run's folder holds config.json, history.csv, parameters.npz, figures, the comparison of gradients and report.html.
`load` reads it; `save_network` and `load_network` do the same for a network alone, however it was trained. A folder is
written under another name and renamed when it is complete, so that a folder with the run's name is always whole.
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
from jax.typing import DTypeLike

import functional_nn as fnn
from functional_nn import checks, precision
from functional_nn.gradients.comparison import finite_or_none
from functional_nn.lab import tables
from functional_nn.lab.datasets import Dataset, Pictures, Reading, Series, Standardizer
from functional_nn.networks.network import abstract_params, param_shapes
from functional_nn.training.configuration import describe_network, network_from

__all__ = [
    "Run",
    "configuration",
    "load",
    "load_network",
    "load_scalings",
    "save_network",
]

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
    """A saved run, ready to be used.

    Attributes:
        config: the run's config.json.
        network: the trained network.
        loss: the loss it was trained with.
        params: its parameters.
        inputs: how inputs are scaled; None for tokens.
        targets: how regression outputs are scaled; None for classification.
        reading: how its data was read; `datasets.load_as` reads other data in the same way.

    Example:
        >>> from functional_nn.lab import runs
        >>> run = runs.load("runs/digits")  # doctest: +SKIP
        >>> run.network.apply(run.params, run.inputs.apply(images)).shape  # doctest: +SKIP
        (360, 10)
    """

    config: dict[str, Any]
    network: fnn.Network
    loss: fnn.Loss
    params: dict
    inputs: Standardizer | None
    targets: Standardizer | None
    reading: Reading


def check_free(out: Path, replace: bool) -> None:
    """Raises ValueError if `out` holds something that would be lost; with `replace`, only if it is not a run."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG).is_file():
        raise ValueError(f"output {str(out)!r} exists and is not a run's folder; choose another with --out")
    if not replace:
        raise ValueError(f"output folder {str(out)!r} already holds a run; choose another with --out, or --replace it")


@contextlib.contextmanager
def writing(out: Path, replace: bool) -> Iterator[Path]:
    """Yields a new folder that becomes `out` if all goes well, and is deleted if not. Raises as `check_free`."""
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
                with contextlib.suppress(OSError):  # it holds other files by now
                    folder.rmdir()


def save(folder: Path, config: dict[str, Any], params: dict) -> None:
    """Writes config.json and parameters.npz (arrays by path; 16-bit floats are widened to float32, which is exact)."""
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
    """Writes a network and its parameters into a folder, for `load_network`.

    Args:
        folder: the folder.
        network: its activations, initializers and connections must be registered, so that their names are enough.
        params: its parameters, all of one dtype.
        inputs: how inputs are scaled, for `load_scalings`; only for a network with one input of R numbers.
        targets: how the S outputs are scaled, for `load_scalings`.
        replace: whether to replace a run that is in the folder.

    Raises:
        ValueError: if the folder holds something that would be lost, if the parameters are not the network's or have
            several dtypes, if a scaling has another number of columns, or if a name in the network is not registered.

    Example:
        >>> import pathlib, tempfile
        >>> import jax
        >>> import functional_nn as fnn
        >>> from functional_nn.lab import runs
        >>> network = fnn.multilayer((4, 3), ("softmax",))
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "network"
        >>> runs.save_network(folder, network, network.init(jax.random.key(0)))
        >>> loaded, params = runs.load_network(folder)
        >>> loaded == network, params["layer1"]["bias"].shape
        (True, (3,))
    """
    description = describe_network(network)
    if network_from(description) != network:
        raise ValueError(
            "the network cannot be rebuilt from its names; register your own activations, connections and initializers"
        )
    shapes = checks.shapes(fnn.rules.without_feedback(params))  # a rule's feedback weights are saved too
    checks.same_shapes("params", shapes, param_shapes(network), "the network's")
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    if len(dtypes) != 1:
        raise ValueError(f"params: expected one dtype, got {', '.join(dtypes)}")
    scaled = {"inputs": inputs, "targets": targets}
    for name, scaling in scaled.items():
        if scaling is not None:
            check_scaling(name, scaling, network)
    scalings = {name: scaling and plain_scaling(scaling) for name, scaling in scaled.items()}
    with writing(Path(folder), replace) as partial:
        save(partial, {"network": description, "dtype": dtypes[0]} | scalings, params)


def check_scaling(name: Literal["inputs", "targets"], scaling: Standardizer, network: fnn.Network) -> None:
    """Raises ValueError unless the scaling fits what it scales: one input of R numbers, or the outputs."""
    if name == "inputs" and len(network.inputs) > 1:
        raise ValueError(f"inputs: a scaling needs a network with one input, got {len(network.inputs)}")
    width = network.sizes[network.inputs[0][0] if name == "inputs" else network.output.name]
    if np.shape(scaling.mean) != (width,) or np.shape(scaling.scale) != (width,):
        raise ValueError(f"{name}: expected a scaling of {width} columns, got {np.size(scaling.mean)}")


def plain_scaling(scaling: Standardizer) -> dict[str, Any]:
    """A scaling for JSON, as in a configuration."""
    return {name: None if x is None else np.asarray(x).tolist() for name, x in scaling._asdict().items()}


def load_network(folder: str | Path) -> tuple[fnn.Network, dict]:
    """Loads the network and the parameters from a folder that `save_network` wrote, or from a run's folder.

    Args:
        folder: the folder.

    Returns:
        (network, params).

    Raises:
        ValueError: as `load`.

    Example:
        >>> from functional_nn.lab import runs
        >>> network, params = runs.load_network("runs/digits")  # doctest: +SKIP
    """
    folder = Path(folder)
    config = _json(folder, ("network", "dtype"))
    try:
        network, dtype = network_from(config["network"]), precision.available(config["dtype"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: not a network's configuration ({error})") from None
    return network, _parameters(folder, network, dtype)


def load_scalings(folder: str | Path) -> tuple[Standardizer | None, Standardizer | None]:
    """Loads how inputs and targets are scaled, from a folder that `save_network` wrote or from a run's folder.

    Args:
        folder: the folder.

    Returns:
        (inputs, targets); None for what is not scaled.

    Raises:
        ValueError: as `load`.

    Example:
        >>> from functional_nn.lab import runs
        >>> inputs, targets = runs.load_scalings("runs/digits")  # doctest: +SKIP
    """
    folder = Path(folder)
    config = _json(folder, ("network",))
    try:
        return standardizers({"inputs": None, "targets": None} | config)  # older folders have none
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: not a network's configuration ({error})") from None


def configuration(folder: str | Path) -> dict[str, Any]:
    """Returns a run's config.json.

    Args:
        folder: the run's folder.

    Returns:
        The configuration as plain data.

    Raises:
        ValueError: if the folder is not a run's.

    Example:
        >>> from functional_nn.lab import runs
        >>> runs.configuration("runs/digits")["dtype"]  # doctest: +SKIP
        'float32'
    """
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
    """How the configuration scales inputs (None for tokens) and targets (None for classes). Raises KeyError, TypeError
    or ValueError for what is not a configuration.
    """

    def read(scaling: dict[str, Any]) -> Standardizer:
        mean, scale = (np.array(scaling[name], np.float64) for name in ("mean", "scale"))
        fill = scaling.get("fill")  # older runs have none
        return Standardizer(mean, scale, None if fill is None else np.array(fill, np.float64))

    return config["inputs"] and read(config["inputs"]), config["targets"] and read(config["targets"])


def plain_reading(reading: Reading) -> dict[str, Any]:
    """A data set's reading for JSON, by the names in a configuration; `reading_from` reads it."""
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
    """How the run's data was read. Raises KeyError, TypeError or ValueError for what is not a configuration."""
    table, pictures, shape, series = (config.get(name) for name in ("table", "pictures", "image_shape", "series"))
    return Reading(
        tuple(config["features"]),
        config["task"],
        tuple(config["classes"]),
        shape and tuple(shape),
        table and tables.table_from(table),
        pictures and Pictures(**pictures),
        config.get("own_test", False),  # runs of older versions do not have it
        series and Series(**series),
        config.get("tokens", 0),
    )


def load(folder: str | Path) -> Run:
    """Loads a run from its folder.

    Args:
        folder: the run's folder.

    Returns:
        The `Run`.

    Raises:
        ValueError: if the folder is not a run's, or if its parameters are not its network's.

    Example:
        >>> from functional_nn.lab import runs
        >>> run = runs.load("runs/digits")  # doctest: +SKIP
    """
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


def _parameters(folder: Path, network: fnn.Network, dtype: DTypeLike) -> dict:
    like = abstract_params(network, jnp.float32)
    try:
        with (folder / PARAMETERS).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            leaves = []
            for path, leaf in checks.by_path(like).items():
                value = archive[path if path in archive else checks.former_path(path)]
                if value.shape != leaf.shape:
                    raise ValueError(f"{path} expected shape {leaf.shape}, got {value.shape}")
                leaves.append(jnp.asarray(value, dtype))
            params = jax.tree.unflatten(jax.tree.structure(like), leaves)  # also a layer without weights
            for path in archive.files:  # the feedback weights of a learning rule
                layer, *rest = path.split("/")
                if layer in params and rest[:1] == ["feedback"]:
                    params[layer].setdefault("feedback", {})["/".join(rest[1:])] = jnp.asarray(archive[path], dtype)
            return params
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged files
        raise ValueError(f"{folder / PARAMETERS}: not this run's parameters ({error})") from None


def encode(config: dict[str, Any], loss: fnn.Loss, dataset: Dataset) -> np.ndarray:
    """Targets (Q, S) for the run's outputs: classes in the run's order, coded as its loss expects them; labels (Q, T)
    for one class per position; columns of numbers unchanged.

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
    if numbers.ndim > 1:  # one label per position; `fit` codes them batch by batch
        return numbers
    return code(loss, np.eye(len(known))[numbers])


def code(loss: fnn.Loss, one_hot: np.ndarray) -> np.ndarray:
    """One-hot rows as the loss expects its targets: -1 and +1 for hinge and logistic."""
    return 2 * one_hot - 1 if loss.targets == "signs" else one_hot
