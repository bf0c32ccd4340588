"""What the command line does, once its words are read: data in, a trained or compared network and its files out."""

import csv
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import checks, precision
from functional_nn.lab import datasets, environment, pages, runs
from functional_nn.lab.datasets import Dataset, Standardizer
from functional_nn.lab.progress import progress

_MONITORED = 256  # examples on which the two gradients are compared all through training


def train(source: str, settings: dict[str, Any], out: Path, replace: bool) -> None:
    """Trains on `source` and writes the run's folder. Raises ValueError for whatever does not fit, writing nothing."""
    runs.check_free(out, replace)
    task = prepare(source, settings)
    loss, config, (x, t), (x_test, t_test) = task.loss, task.config, task.training, task.validation
    network = build_network(task.dataset, settings, loss)
    optimizer = _optimizer(settings["optimizer"], settings["learning_rate"])
    regularizer = settings["regularizer"] and fnn.optimizers.regularizers.get(settings["regularizer"])
    config |= {
        "network": runs.describe_network(network),
        "optimizer": {"name": optimizer.name, **_plain(optimizer.constants)},
        **{name: settings[name] for name in ("regularizer", "gradient", "epochs", "batch_size", "shuffle")},
        "track": list(settings["track"]),
    }
    plan = batch_plan(settings["batch_size"], settings["shuffle"])

    key = jax.random.key(settings["seed"])
    params = network.init(jax.random.fold_in(key, 1), config["dtype"])
    monitor = fnn.comparison.monitor(network, loss, x[:_MONITORED], t[:_MONITORED])
    watched = [(0, monitor(params))]

    with runs.writing(out, replace) as folder:
        began = time.perf_counter()
        with progress(f"training on {task.dataset.name}", settings["epochs"]) as advance:

            def on_chunk(state, history):
                watched.append((int(history.epoch[-1]), monitor(state.params)))
                advance(int(history.epoch[-1]), f"loss {history.training_loss[-1]:.4g}")

            result = fnn.fit(
                network, loss, optimizer, x, t, key=key, epochs=settings["epochs"], plan=plan, params=params,
                validation=(x_test, t_test), regularizer=regularizer, gradient=settings["gradient"],
                correct=right_answers(task.dataset.task), track=settings["track"],
                chunk=max(1, settings["epochs"] // 10), on_chunk=on_chunk,
            )  # fmt: skip
        seconds = time.perf_counter() - began
        agreement = fnn.compare(network, loss, result.params, x[:_MONITORED], t[:_MONITORED], costs=True)
        summary = measures(config, network, loss, result.params, x_test, t_test)
        summary = {"status": result.status, "reason": result.reason, "seconds": round(seconds, 2), "held out": summary}
        runs.save(folder, config | {"results": summary}, result.params)
        _write_history(folder / "history.csv", result.history)
        agreement.to_csv(folder / "agreement.csv")
        agreement.to_json(folder / "agreement.json")
        outputs = np.asarray(network.apply(result.params, x_test), np.float64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a class name in letters that matplotlib's font has not got
            page = pages.trained(
                config,
                result,
                watched,
                agreement,
                summary,
                task.held_out,
                outputs,
                seconds,
                len(x[:_MONITORED]),
                folder,
            )
        (folder / "report.html").write_text(page, encoding="utf-8")

    measured = ", ".join(f"{name} {value:.4g}" for name, value in summary["held out"].items())
    print(f"{task.dataset.name}: {result.status} after {len(result.history.epoch)} epochs in {seconds:.1f} s")
    if result.status != "completed":
        print(result.reason)
    print(f"held out ({len(x_test)} examples): {measured}")
    print(f"hand-written against jax.grad: {agreement.verdict}, relative difference {agreement.total.relative:.1e}")
    print(f"report: {out / 'report.html'}")


def compare_run(folder: Path, out: Path | None) -> bool:
    """Compares the gradients of a saved run on its training data; prints the whole record. True where they agree."""
    _check_new(out)
    run = _open(folder)
    dataset = _reload(run.config)
    training, _ = datasets.split(dataset, test_fraction=run.config["test_fraction"], seed=run.config["seed"])
    x, t = _arrays(run.config, run.loss, training)
    agreement = fnn.compare(run.network, run.loss, run.params, x[:_MONITORED], t[:_MONITORED], costs=True)
    print(agreement)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        agreement.to_csv(out / "agreement.csv")
        agreement.to_json(out / "agreement.json")
        _write_page(out, pages.compared(folder, run, agreement, len(x[:_MONITORED])))
    return agreement.verdict != "differ"


def compare_grid(
    activations: Sequence[str],
    losses: Sequence[str],
    dtypes: Sequence[str],
    sizes: Sequence[int],
    batch: int,
    seed: int,
    out: Path | None,
) -> bool:
    """Compares over activations x losses x dtypes; prints a line each. True where none differ."""
    if batch < 1:
        raise ValueError(f"batch must be an integer >= 1, got {batch}")
    if not dtypes:
        raise ValueError("dtypes: expected at least one of float64, float32, bfloat16, float16")
    _check_new(out)
    named = [fnn.activations.get(name) for name in activations or fnn.activations.names()]
    named = [activation for activation in named if activation.pullback or activations]
    chosen = [fnn.losses.get(name) for name in losses or fnn.losses.names()]
    suited = {"real": "linear", "unit interval": "sigmoid", "distribution": "softmax"}
    networks = {
        (f, loss): fnn.multilayer(sizes, (f,) * (len(sizes) - 2) + (suited[loss.needs],))
        for f in named
        for loss in chosen
    }
    for (_, loss), network in networks.items():
        fnn.value_and_grad(network, loss)  # refuses what cannot be trained, before anything is printed
    cases = [(f, loss, dtype) for f, loss in networks for dtype in dtypes]
    rows, totals = [], []
    header = ("activation", "loss", "dtype", "relative", "bound", "verdict", "Taylor", "third opinion")
    line = "{:<20}{:<28}{:<10}{:>9}{:>9}  {:<14}{:<14}{}"
    print(line.format(*header))
    with progress("comparing", len(cases)) as advance:
        for number, (activation, loss, dtype) in enumerate(cases):
            network = networks[activation, loss]
            keys = jax.random.split(jax.random.key(seed), 3)
            x = jax.random.normal(keys[1], (batch, sizes[0]))
            t = _random_targets(loss, keys[2], batch, sizes[-1])
            a = fnn.compare(network, loss, network.init(keys[0], dtype), x, t, jit=False)
            opinions = (a.verdict, a.taylor.says, a.third_opinion.says)
            row = (activation.name, loss.name, dtype, f"{a.total.relative:.1e}", f"{a.total.bound:.1e}", *opinions)
            rows.append(dict(zip(header, row, strict=True)))
            totals.append(a.total)
            print(line.format(*row))
            advance(number + 1)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "agreement.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (out / "agreement.json").write_text(json.dumps(rows, indent=2) + "\n")
        made_of = {"sizes": list(sizes), "batch": batch, "seed": seed}
        _write_page(out, pages.compared_grid(rows, totals, made_of))
    return all(row["verdict"] != "differ" for row in rows)


def evaluate(folder: Path, source: str, target: str | None, labels: Path | None, part: str) -> None:
    """Prints loss and accuracy, or R^2 and root mean square error, of a saved run."""
    run = _open(folder)
    if target is None and source.endswith((".csv", ".csv.gz")):
        target = run.config["target"]
    dataset = datasets.load(source, target=target, labels=labels, task=run.config["task"])
    if part == "held-out":
        _, dataset = datasets.split(dataset, test_fraction=run.config["test_fraction"], seed=run.config["seed"])
    x, t = _arrays(run.config, run.loss, dataset)
    measured = measures(run.config, run.network, run.loss, run.params, x, t)
    print(
        f"{dataset.name} ({len(x)} examples): " + ", ".join(f"{name} {value:.6g}" for name, value in measured.items())
    )


def predict(folder: Path, source: str, out: Path | None) -> None:
    """Writes a row an example: the class and its output, or the predicted numbers in the data's own units."""
    run = _open(folder)
    inputs = datasets.load_inputs(source, run.config["features"])
    if inputs.shape[1] != len(run.config["features"]):
        raise ValueError(f"{source}: expected {len(run.config['features'])} inputs, got {inputs.shape[1]}")
    outputs = np.asarray(run.network.apply(run.params, run.inputs.apply(inputs)), np.float64)
    if run.config["task"] == "classification":
        best = outputs.argmax(axis=1)
        header = ("class", "output")
        rows = [(run.config["classes"][c], f"{outputs[q, c]:.6g}") for q, c in enumerate(best)]
    else:
        header = tuple(f"prediction{i}" if i else "prediction" for i in range(outputs.shape[1]))
        rows = [tuple(f"{value:.6g}" for value in row) for row in run.targets.invert(outputs)]
    if not out:
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
        return
    if out.exists():
        raise ValueError(f"output {str(out)!r} exists; choose another with --out")
    with out.open("x", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _check_new(out: Path | None) -> None:
    for name in ("agreement.csv", "agreement.json", "report.html"):
        if out and (out / name).exists():
            raise ValueError(f"output {str(out / name)!r} exists; choose another folder with --out")


def _write_page(out: Path, page: str) -> None:
    (out / "report.html").write_text(page, encoding="utf-8")
    print(f"report: {out / 'report.html'}")


def _open(folder: Path) -> runs.Run:
    """The run, with 64-bit mode switched on where it was trained in it."""
    if runs.configuration(folder).get("dtype") == "float64":
        jax.config.update("jax_enable_x64", True)
    return runs.load(folder)


# From settings to a configuration -------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """What a run is trained on: (inputs, targets) as the network takes them; config: how they came to be."""

    dataset: Dataset
    held_out: Dataset
    loss: fnn.Loss
    config: dict[str, Any]
    training: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]


def prepare(source: str, settings: dict[str, Any]) -> Prepared:
    """Loads, splits and scales as the settings say. Raises ValueError for what does not fit."""
    if not 0 <= settings["seed"] < 2**32:
        raise ValueError(f"seed must be an integer from 0 to {2**32 - 1}, got {settings['seed']}")
    dataset = datasets.load(source, target=settings["target"], labels=settings["labels"], task=settings["task"])
    training, held_out = datasets.split(dataset, test_fraction=settings["test_fraction"], seed=settings["seed"])
    loss = fnn.losses.get(settings["loss"] or _suitable_loss(dataset.task))
    config = _configuration(source, settings, dataset, training, loss)
    arrays = (_arrays(config, loss, part) for part in (training, held_out))
    return Prepared(dataset, held_out, loss, config, *arrays)


def _suitable_loss(task: str) -> str:
    return "cross_entropy" if task == "classification" else "mean_square_error"


def build_network(dataset: Dataset, settings: dict[str, Any], loss: fnn.Loss) -> fnn.Network:
    """The layers that the settings name, between the data's inputs and targets. Raises ValueError."""
    suited = {"real": "linear", "unit interval": "softmax", "distribution": "softmax"}[loss.needs]
    suited = next(iter(loss.fused), suited)  # the output layer the loss is fused with, where there is one
    last = settings["output"] or suited
    sizes = (dataset.inputs.shape[1], *settings["hidden"], dataset.targets.shape[1])
    functions = (settings["activation"],) * len(settings["hidden"]) + (last,)
    network = fnn.multilayer(sizes, functions, initializer=settings["initializer"], dropout=settings["dropout"])
    loss.check_outputs(network.output.activation)
    fnn.value_and_grad(network, loss)  # refuses what cannot be trained, before any work is done
    return network


def batch_plan(size: int, shuffle: str = "each_epoch") -> fnn.training.BatchPlan:
    """Batches of `size` examples; 0 for all at once."""
    return fnn.training.minibatch(size, shuffle=shuffle) if size else fnn.training.batch()


def _optimizer(name: str, learning_rate: float | None) -> fnn.optimizers.Optimizer:
    if learning_rate is None:
        return fnn.optimizers.get(name)
    if "(" in name:
        raise ValueError(f"optimizer {name!r} has constants of its own; give the learning rate there")
    return fnn.optimizers.get(f"{name}(learning_rate={learning_rate!r})")


def _configuration(source, settings, dataset, training, loss) -> dict[str, Any]:
    """The data and how it is prepared, resolved, as plain data; the rest of a run's configuration is added to it."""
    scaled = dataset.image_shape is None  # pixels come in [0, 1] and stay there
    inputs = datasets.fit_standardizer(training.inputs) if scaled else _unscaled(training.inputs.shape[1])
    targets = datasets.fit_standardizer(training.targets) if dataset.task == "regression" else None
    plain = lambda s: {"mean": s.mean.tolist(), "scale": s.scale.tolist()}  # noqa: E731
    return {
        "data": source if source in datasets.BUNDLED else str(Path(source).resolve()),
        "task": dataset.task,
        "loss": loss.specification,
        **{name: settings[name] for name in ("dtype", "seed", "test_fraction", "target")},
        "labels": settings["labels"] and str(settings["labels"]),
        "classes": list(dataset.classes),
        "features": list(dataset.features),
        "image_shape": dataset.image_shape,
        "inputs": plain(inputs),
        "targets": plain(targets) if targets else None,
        **environment.provenance(),
    }


def _plain(constants: dict[str, Any]) -> dict[str, Any]:
    """Constants for JSON: numbers and words as they are, schedules as they are written."""
    return {name: value if isinstance(value, bool | float | str) else repr(value) for name, value in constants.items()}


def _unscaled(width: int) -> Standardizer:
    return Standardizer(np.zeros(width), np.ones(width))


def _reload(config: dict[str, Any]) -> Dataset:
    labels = config["labels"] and Path(config["labels"])
    return datasets.load(config["data"], target=config["target"], labels=labels, task=config["task"])


def _arrays(config, loss, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as the network takes them."""
    inputs, targets = runs.standardizers(config)
    dataset = _by_name(dataset, config["features"])
    t = runs.encode(config, loss, dataset)
    return inputs.apply(dataset.inputs), targets.apply(t) if targets else t


def _by_name(dataset: Dataset, features: Sequence[str]) -> Dataset:
    """The data with its inputs in the order of `features`, by name where a CSV file names its columns."""
    own = list(dataset.features)
    named = dataset.name.endswith((".csv", ".csv.gz")) and not own[0].startswith("column_")
    if named and set(own) == set(features):
        return dataset._replace(inputs=dataset.inputs[:, [own.index(name) for name in features]])
    if named or len(own) != len(features):
        raise ValueError(f"{dataset.name}: expected the inputs {', '.join(features)}; got {', '.join(own)}")
    return dataset


def _random_targets(loss: fnn.Loss, key: jax.Array, examples: int, width: int) -> jax.Array:
    if loss.targets in ("real", "unit interval"):
        return jax.random.uniform(key, (examples, width))
    if loss.targets in ("non-negative", "distribution", "positive"):
        return jax.nn.softmax(jax.random.normal(key, (examples, width)))
    return jnp.asarray(runs.code(loss, np.eye(width)[np.arange(examples) % width]), precision.default())


# What is measured -----------------------------------------------------------------------------------------------------


def right_answers(task: str):
    """What `fit` calls correct: None for numbers."""
    # one rule for every loss: the class with the largest output
    return fnn.losses.largest if task == "classification" else None


def measures(config, network, loss, params, x, t) -> dict[str, float]:
    """Loss and accuracy, or loss, R^2 and root mean square error in the data's own units."""
    value, accuracy = fnn.training.evaluate(network, loss, params, x, t, right_answers(config["task"]))
    measured = {"loss": float(value)}
    if config["task"] == "classification":
        return measured | {"accuracy": float(accuracy)}
    outputs = np.asarray(network.apply(params, x), np.float64)
    error, spread = np.mean((outputs - t) ** 2), np.mean((t - t.mean(axis=0)) ** 2)
    spread = spread if spread > 0 else np.nan  # a constant target: nothing to explain
    _, scaled = runs.standardizers(config)
    own_units = scaled.invert(outputs) - scaled.invert(t)
    return measured | {
        "R^2": float(1 - error / spread),
        "root mean square error": float(np.sqrt(np.mean(own_units**2))),
    }


def _write_history(path: Path, history: fnn.training.History) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = history._asdict() | checks.by_path(history.tracked)  # "noise_scale/total/scale"
        del columns["tracked"]
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
