"""The commands of the command line: from arguments to a trained or compared network and its files."""

import csv
import dataclasses
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import checks, precision
from functional_nn.gradients.comparison import finite_or_none
from functional_nn.lab import datasets, environment, events, pages, runs, texts
from functional_nn.lab.datasets import Dataset
from functional_nn.lab.progress import progress
from functional_nn.lab.run_checkpoints import checkpointed
from functional_nn.lab.texts import Text
from functional_nn.networks.connections import Shape
from functional_nn.networks.network import dtype_of
from functional_nn.registry import did_you_mean
from functional_nn.training import keys
from functional_nn.training.checkpoints import Checkpoints
from functional_nn.training.evaluation import evaluation_block

_TABLE_SETTINGS = ("target", "header", "columns", "drop", "delimiter", "decimal", "missing", "weights")
_NOT_FOR_TEXT = {
    "target": None,
    "weights": None,
    "labels": None,
    "task": "auto",
    "header": "auto",
    "columns": (),
    "drop": (),
    "delimiter": "auto",
    "decimal": "auto",
    "missing": "refuse",
    "class_weights": None,
    "label_smoothing": 0.0,
    "augment": (),
    "window": None,
    "horizon": 1,
}
# what is tracked of the state of methods that judge their own steps, by the method's name
_STATE = {
    "levenberg_marquardt": {"mu": fnn.training.of_state(lambda state: state.memory.mu)},
    "bayesian_regularization": {
        "mu": fnn.training.of_state(lambda state: state.memory.mu),
        "effective parameters": fnn.training.of_state(lambda state: state.memory.evidence.gamma),
    },
    "variable_learning_rate": {"rate": fnn.training.of_state(lambda state: state.memory.rate)},
}
_CONTEXT = 64  # tokens of a text that a network reads at once
_TRAINING_SETTINGS = ("regularizer", "gradient", "rule", "epochs", "shuffle", "replacement", "early_stopping")
_MONITORED = 256  # examples on which the two gradients are compared during training
_MONITORED_TOKENS = 1024  # the same for a text
_MOST_SEPARATED = 2000  # examples, up to which separability by one layer is tested
_SAVED = 50  # checkpoints of a run, about, not counting those at an interruption and at its end
_OPERATIONS, _UPDATE = 2e9, 3e-5  # operations per second, and the overhead of an update in seconds, of a slow machine


def train(source: str, settings: dict[str, Any], out: Path, replace: bool, resume: bool = False) -> bool:
    """Trains on `source` and writes the run's folder. Returns False if the training diverged.

    Raises ValueError for whatever does not fit, and then writes nothing.
    """
    runs.check_free(out, replace)
    _check_network(settings)
    task = _smoothed(prepare(source, settings), settings["label_smoothing"])
    loss, config, (x, t), held_out = task.loss, task.config, task.training, task.validation
    network = build_network(task, settings)
    _check_augment(settings["augment"], network)
    optimizer = _optimizer(settings["optimizer"], settings["learning_rate"])
    regularizer = settings["regularizer"] and fnn.optimizers.regularizers.get(settings["regularizer"])
    config |= {
        "network": runs.describe_network(network),
        "preset": settings["network"],
        "optimizer": {"name": optimizer.name, **_plain(optimizer.constants)},
        **{name: settings[name] for name in _TRAINING_SETTINGS},
        "stop": list(settings["stop"]),
        "track": list(settings["track"] or _default_tracking(settings, network)),
        "label_smoothing": settings["label_smoothing"],
        "augment": list(settings["augment"]),
    }
    size = settings["batch_size"]
    if size is None:  # the same default as `fit`
        size = 0 if optimizer.full_batch else min(32, len(x))
    config["batch_size"], plan = size, batch_plan(size, settings["shuffle"], settings["replacement"])

    state = _STATE.get(optimizer.name, {})
    key, epochs = jax.random.key(settings["seed"]), settings["epochs"]
    params = network.init(keys.parameters(key), config["dtype"])  # `fit` draws the same, in the default dtype
    chunk = _chunk(network, optimizer, len(x), size, epochs)
    every = max(1, epochs // (_SAVED * chunk))
    log = () if settings["log_dir"] is None else (events.tensorboard(settings["log_dir"]),)
    with (
        checkpointed(out, replace, resume, "run", every) as (kept, resumed),
        progress(f"training on {task.held_out.name}", epochs) as advance,
    ):
        # threshold neurons have no derivative to compare with
        proved = all(layer.activation.pullback for layer in network.layers)
        monitor = fnn.comparison.monitor(network, loss, *task.watched) if proved else None
        watch = _Watch(monitor, epochs // 10, kept, resumed)
        watch(0, params)
        began = time.perf_counter()

        def on_chunk(state, history):
            epoch = int(history.epoch[-1])
            watch(epoch, state.params)
            advance(epoch, f"loss {history.training_loss[-1]:.4g}")

        result = fnn.fit(
            network,
            loss,
            optimizer,
            x,
            t,
            key=key,
            epochs=epochs,
            plan=plan,
            params=params,
            validation=held_out,
            weights=task.weights,
            class_weights=task.class_weights,
            regularizer=regularizer,
            stop=criteria(settings, restore=True),
            gradient=settings["gradient"],
            rule=settings["rule"],
            correct=right_answers(task.held_out.task),
            track=(*config["track"], state),
            augment=settings["augment"],
            chunk=chunk,
            on_chunk=on_chunk,
            log=log,
            seconds=settings["seconds"],
            checkpoint=kept,
            resume=resumed,
        )
        watch(len(result.history.epoch), result.state.params, last=True)
        seconds = time.perf_counter() - began
        with runs.writing(out, replace) as folder:
            agreement, summary = _write(folder, task, network, result, watch.found, seconds, resumed, tuple(state))

    print_pictures(task)
    since = " since it was resumed" if resumed else ""
    print(f"{task.held_out.name}: {result.status} after {len(result.history.epoch)} epochs in {seconds:.1f} s{since}")
    if result.status != "completed" or result.best is not None:
        print(result.reason)
    part = ", the whole table, as in training" if source in datasets.TRUTH_TABLES else ", its own test part"
    end = isinstance(task.held_out, Text) or task.held_out.series
    part = ", the end" if end else part if task.own_test else ""
    which = part + (", which chose the epoch" if result.best is not None else "")
    print(f"held out ({len(held_out[0])} examples{which}): {measured_text(summary['held out'])}")
    if is_perceptron(settings):
        print(summary["separability"])
    if agreement is not None:
        total = agreement.total
        print(f"hand-written against jax.grad: {agreement.verdict}, relative difference {total.relative:.1e}")
    print(f"report: {out / 'report.html'}")
    return result.status != "diverged"


def _write(
    folder: Path, task, network, result, watched, seconds: float, resumed: bool, state: tuple[str, ...]
) -> tuple[fnn.Agreement | None, dict]:
    """Writes all files of a trained run. Returns the comparison of its gradients after training (None if they were not
    compared) and its results.
    """
    config, loss, x_test = task.config, task.loss, task.validation[0]
    agreement = None
    if watched:
        agreement = fnn.compare(network, loss, result.params, *task.watched, costs=True)
        agreement.to_csv(folder / "agreement.csv")
        agreement.to_json(folder / "agreement.json")
    summary = measures(config, network, loss, result.params, *task.validation)
    summary = {"status": result.status, "reason": result.reason, "seconds": round(seconds, 2), "held out": summary}
    if is_perceptron(config):
        summary["separability"] = _separable(task)
    runs.save(folder, config | {"results": summary}, result.params)
    _write_history(folder / "history.csv", result.history)
    outputs = fitted = None  # outputs at every position may not fit into memory
    if len(network.shapes[network.output.name]) == 1:
        outputs = outputs_of(network, result.params, x_test).astype(np.float64)
        if config["task"] == "regression":
            x, t = task.training
            fitted = {"training": (np.asarray(t, np.float64), outputs_of(network, result.params, x).astype(np.float64))}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a class name in letters that matplotlib's font lacks
        page = pages.trained(
            config,
            result,
            watched,
            agreement,
            summary,
            task.held_out,
            outputs,
            seconds,
            resumed,
            len(task.watched[0]),
            folder,
            network,
            fitted,
            state,
        )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return agreement, summary


def _chunk(network, optimizer, examples: int, size: int, epochs: int) -> int:
    """Epochs per call of the compiled program: about a second on a slow machine, so that Ctrl-C is heard, and at most
    a tenth of all epochs. A step of a second-order method may take long, so its calls have one step each.
    """
    if fnn.optimizers.second_order.knows(optimizer.name):
        return 1
    forward = sum(row["flops"] for row in fnn.presets.layer_rows(network))
    # the backward pass takes twice as many operations as the forward pass
    epoch = 3 * forward * examples / _OPERATIONS + examples / (size or examples) * _UPDATE
    return max(1, min(epochs // 10, int(1 / epoch)))


class _Watch:
    """Compares the hand-written gradient with jax.grad's on the same data during training.

    `found` is [(epoch, differences)]; it stays empty without a monitor. It is stored next to the checkpoints, so that a
    resumed run has all of it.
    """

    def __init__(self, monitor: Callable | None, every: int, kept: Checkpoints, resumed: bool):
        self.monitor, self.every, self.found = monitor, max(1, every), []
        self.path = kept.folder / "watched.json"
        done = kept.numbers()
        if resumed and self.path.is_file():
            for epoch, differences in json.loads(self.path.read_text()):
                if epoch <= done[-1]:
                    rows = [row | {"index": tuple(row["index"])} for row in differences]
                    self.found.append((epoch, tuple(fnn.comparison.Difference(**row) for row in rows)))

    def __call__(self, epoch: int, params: Any, last: bool = False) -> None:
        before = self.found[-1][0] if self.found else -self.every
        if self.monitor is None or epoch <= before or not (last or epoch // self.every > before // self.every):
            return
        self.found.append((epoch, self.monitor(params)))
        if self.path.parent.is_dir():  # `fit` makes it
            plain = [(epoch, [dataclasses.asdict(row) for row in differences]) for epoch, differences in self.found]
            self.path.write_text(json.dumps(plain))


def compare_run(folder: Path, out: Path | None, rule: str = "exact") -> bool:
    """Compares the gradients of a saved run, or another learning rule with its gradient, on the run's training data.

    Prints the whole record. Returns False if the gradients differ.
    """
    _check_new(out)
    run = _open(folder)
    if _is_text_run(run):
        text, _ = texts.split(
            _load_text_like(run, run.config["data"]), run.config["context"], run.config["test_fraction"]
        )
        x, t = _watched(texts.windows(text, run.config["context"]), None)
    else:
        labels = run.config["labels"] and Path(run.config["labels"])
        dataset = _load_like(run, run.config["data"], None, labels)
        training, _ = datasets.split(dataset, test_fraction=run.config["test_fraction"], seed=run.config["seed"])
        x, t = _watched(*_arrays(run.config, run.loss, training, _input_shape(run.network)))
    agreement = fnn.compare(run.network, run.loss, run.params, x, t, rule=rule, costs=True)
    print(agreement)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        agreement.to_csv(out / "agreement.csv")
        agreement.to_json(out / "agreement.json")
        _write_page(out, pages.compared(folder, run, agreement, len(x)))
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
    """Compares over activations x losses x dtypes and prints one line each. Returns True if none differ."""
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
        whole = [row | {"relative": a.relative, "bound": a.bound} for row, a in zip(rows, totals, strict=True)]
        with (out / "agreement.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(whole)
        (out / "agreement.json").write_text(json.dumps(finite_or_none(whole), indent=2) + "\n")
        made_of = {"sizes": list(sizes), "batch": batch, "seed": seed}
        _write_page(out, pages.compared_grid(rows, totals, made_of))
    return all(row["verdict"] != "differ" for row in rows)


def evaluate(folder: Path, source: str, target: str | None, labels: Path | None, part: str) -> None:
    """Prints loss and accuracy, or R^2 and root mean square error, of a saved run."""
    run = _open(folder)
    if _is_text_run(run):
        if target is not None or labels is not None:
            raise ValueError(f"{source}: target and labels are not for a text; got {target or str(labels)!r}")
        text, context = _load_text_like(run, source), run.config["context"]
        text = texts.split(text, context, run.config["test_fraction"])[1] if part == "held-out" else text
        texts.check_context(text, context)
        windows = texts.windows(text, context)
        measured = measures(run.config, run.network, run.loss, run.params, windows, None)
        print(f"{text.name} ({len(windows)} examples): {measured_text(measured)}")
        return
    dataset = _load_like(run, source, target, labels)
    if part == "held-out" or source in datasets.TRUTH_TABLES:  # either part of a truth table is the whole
        _, dataset = datasets.split(dataset, test_fraction=run.config["test_fraction"], seed=run.config["seed"])
    arrays = _arrays(run.config, run.loss, dataset, _input_shape(run.network))
    measured = measures(run.config, run.network, run.loss, run.params, *arrays, dataset.counted)
    print(f"{dataset.name} ({len(dataset.inputs)} examples): {measured_text(measured)}")


def continue_text(folder: Path, prompt: str, length: int, temperature: float, seed: int, out: Path | None) -> None:
    """Writes the prompt and the text with which a run on text continues it.

    Raises ValueError for other runs, for an empty prompt and for characters that the run does not know.
    """
    run = _open(folder)
    if not _is_text_run(run):
        raise ValueError(f"prompt: expected a run on text, but {str(folder)!r} is a run on {run.config['task']}")
    if not prompt:
        raise ValueError("prompt: expected at least one character, got none")
    if length < 1:
        raise ValueError(f"length must be an integer >= 1, got {length}")
    _check_new_file(out)
    unit, classes = run.config["unit"], run.config["classes"]
    tokens = texts.encode(prompt, unit, classes, "prompt").astype(np.int32)[-run.config["context"] :]
    key = jax.random.key(_seed(seed))
    following = fnn.generate(run.network, run.params, tokens, key, count=length, temperature=temperature)
    text = prompt + texts.decode(following, unit, classes)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def predict(folder: Path, source: str, out: Path | None, probabilities: bool) -> None:
    """Writes one row per example: the class and its output, or the predicted numbers in the data's own units.

    probabilities: also write the outputs of all classes, one column each.
    """
    run = _open(folder)
    if _is_text_run(run):
        raise ValueError(f"{str(folder)!r} is a run on text, which continues a text; give the text with --prompt")
    classes = run.config["classes"]
    if probabilities and not classes:
        raise ValueError("probabilities: expected a run on classes, but this one predicts numbers")
    inputs = _scaled(run.config, datasets.load_inputs(source, run.reading), _input_shape(run.network))
    outputs = outputs_of(run.network, run.params, inputs)
    if not np.isfinite(outputs.astype(np.float64)).all():
        row = int(np.argmin(np.isfinite(outputs.astype(np.float64)).reshape(len(outputs), -1).all(axis=1)))
        raise ValueError(f"{source}: the network's outputs for example {row} are not finite")
    if classes and outputs.ndim > 2:
        if probabilities:
            raise ValueError("probabilities: expected one class per example, but this run predicts one per position")
        header = tuple(f"class{t}" for t in range(outputs.shape[1]))
        rows = [tuple(classes[c] for c in best) for best in outputs.argmax(axis=2)]
    elif classes:
        best = outputs.argmax(axis=1)
        # a class called "class" or "output" would hide that column
        names = [f"output {name}" if name in ("class", "output") else name for name in classes if probabilities]
        header = ("class", "output", *names)
        rows = [
            (classes[c], _exact(row[c]), *map(_exact, row[: len(names)])) for c, row in zip(best, outputs, strict=True)
        ]
    else:
        header = tuple(f"prediction{i}" if i else "prediction" for i in range(outputs.shape[1]))
        rows = [tuple(map(_exact, row)) for row in run.targets.invert(outputs)]
    if not out:
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
        return
    _check_new_file(out)
    with out.open("x", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _check_new_file(out: Path | None) -> None:
    if out and out.exists():
        raise ValueError(f"output {str(out)!r} exists; choose another with --out")


def _exact(value: Any) -> str:
    """The shortest text that reads back as the number in its own dtype; 16-bit numbers are written as float32,
    exactly.
    """
    return str(value if value.itemsize >= 4 else np.float32(value))


def measured_text(measured: dict[str, float]) -> str:
    """The measured numbers in one line, with all their digits."""
    return ", ".join(f"{name} {value}" for name, value in measured.items())


def _load_like(run: runs.Run, source: str, target: str | None, labels: Path | None) -> Dataset:
    """The data, read as the run's own data was."""
    if target is None and run.reading.table is None and datasets.is_table(source):
        target = run.config["target"]  # runs of older versions stored nothing else about a table
    return datasets.load_as(source, run.reading, target=target, labels=labels)


def _check_new(out: Path | None) -> None:
    for name in ("agreement.csv", "agreement.json", "report.html"):
        if out and (out / name).exists():
            raise ValueError(f"output {str(out / name)!r} exists; choose another folder with --out")


def _write_page(out: Path, page: str) -> None:
    (out / "report.html").write_text(page, encoding="utf-8")
    print(f"report: {out / 'report.html'}")


def _open(folder: Path) -> runs.Run:
    """The run; 64-bit mode is switched on if it was trained in it."""
    if runs.configuration(folder).get("dtype") == "float64":
        jax.config.update("jax_enable_x64", True)
    return runs.load(folder)


# From settings to a configuration -------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """What a run is trained on: (inputs, targets) as the network takes them, and in `config` how they were made.

    held_out: the held-out part as it was read; own_test: whether the data set itself sets that part aside. For a text,
    training and validation are (windows, None); validation may have weights as its third entry. weights, class_weights:
    of the training examples, as `fit` takes them.
    """

    held_out: Dataset
    own_test: bool
    loss: fnn.Loss
    config: dict[str, Any]
    training: tuple[Any, np.ndarray | None]
    validation: tuple
    weights: np.ndarray | None
    class_weights: Any

    @property
    def watched(self) -> tuple[np.ndarray, np.ndarray]:
        """Training examples on which the two gradients are compared."""
        return _watched(*self.training)


def _watched(x: Any, t: np.ndarray | None) -> tuple[Any, Any]:
    """The first examples; for windows of a text, arrays of tokens and of the tokens that follow."""
    if t is not None:
        return x[:_MONITORED], t[:_MONITORED]
    few = slice(max(1, _MONITORED_TOKENS // x.context))
    return x[few], dataclasses.replace(x, offset=1)[few]


def _seed(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to {2**32 - 1}, got {seed}")
    return seed


def prepare(source: str, settings: dict[str, Any]) -> Prepared:
    """Loads, splits and scales the data as the settings say. Raises ValueError for what does not fit."""
    _seed(settings["seed"])
    if texts.is_text(source):
        return _prepare_text(source, settings)
    for name in ("unit", "context"):
        if settings.get(name) is not None:
            raise ValueError(f"{name}: is only for a .txt file, and {source} is not one; got {settings[name]!r}")
    reading = {name: settings[name] for name in _TABLE_SETTINGS} | {
        name: settings[name] for name in ("window", "horizon") if name in settings
    }
    preset = fnn.presets.get(settings["network"]) if settings.get("network") else None
    sequences = preset is not None and preset.sequences
    dataset = datasets.load(source, labels=settings["labels"], task=settings["task"], sequences=sequences, **reading)
    shape = dataset.inputs.shape[1:]
    if dataset.series and (sequences or (preset and preset.pictures)):
        shape = dataset.series.window, dataset.series.columns
    elif sequences and not dataset.tokens:
        shape = dataset.image_shape or ()
        if len(shape) != 2:
            raise ValueError(
                f"network {settings['network']!r} reads sequences: expected a .txt file, a CSV file with --window, or "
                f"arrays (Q, T) of integers or (Q, T, R) of numbers; got {dataset.name}"
            )
    elif not sequences and preset and preset.pictures:
        try:
            dataset = datasets.pictured(dataset)
        except ValueError as error:
            raise ValueError(f"network {settings['network']!r} reads pictures: {error}") from None
        shape = (*dataset.image_shape, 1)[:3]  # (rows, columns, channels)
    parts = datasets.split_rows(dataset, test_fraction=settings["test_fraction"], seed=settings["seed"])
    loss = fnn.losses.get(settings["loss"] or _suitable_loss(dataset.task, settings))
    config = _configuration(source, settings, dataset, parts[0], loss)
    training, validation = (_arrays(config, loss, dataset, shape, rows) for rows in parts)
    weights = None if dataset.weights is None else dataset.weights[parts[0]]
    if dataset.counted is not None:
        weights, validation = dataset.counted[parts[0]], (*validation, dataset.counted[parts[1]])
    weighing = weights, _class_weights(settings["class_weights"], dataset)
    held_out = datasets.rows(dataset, parts[1])
    return Prepared(held_out, dataset.own_test > 0, loss, config, training, validation, *weighing)


def default_network(source: str, settings: dict[str, Any]) -> str | None:
    """The network's name, if none is given: for a text a recurrent network, otherwise none (layers are described)."""
    return "gru" if settings["network"] is None and texts.is_text(source) else settings["network"]


def _prepare_text(source: str, settings: dict[str, Any]) -> Prepared:
    """A text as windows, its end held out. Raises ValueError for settings that do not fit a text."""
    for name, otherwise in _NOT_FOR_TEXT.items():
        if settings.get(name, otherwise) != otherwise:
            raise ValueError(f"{name}: is not for a text such as {source}; got {settings[name]!r}")
    preset = fnn.presets.get(settings["network"]) if settings.get("network") else None
    if preset is None or not preset.sequences:
        raise ValueError(
            f"{source}: a text needs `train` (not `sweep`) and a network of sequences, such as --network gru; got "
            f"{settings.get('network')!r}"
        )
    unit, context = settings["unit"] or "character", settings["context"]
    context = _CONTEXT if context is None else context
    whole = texts.load(source, unit)
    parts = texts.split(whole, context, settings["test_fraction"])
    loss = fnn.losses.get(settings["loss"] or _suitable_loss("text", settings))
    config = {
        **_data_configuration(source, settings, loss),
        **runs.plain_reading(datasets.Reading((), "text", whole.classes, own_test=False)),
        "inputs": None,
        "targets": None,
        "unit": unit,
        "context": context,
        **environment.provenance(),
    }
    each = ((texts.windows(part, context), None) for part in parts)
    return Prepared(parts[1], False, loss, config, *each, None, None)


def _is_text_run(run: runs.Run) -> bool:
    return run.config["task"] == "text"


def _load_text_like(run: runs.Run, source: str) -> Text:
    """A text, read as the run's own text was."""
    return texts.load(source, run.config["unit"], run.config["classes"])


def _class_weights(text: str | None, dataset: Dataset) -> str | dict[int, float] | None:
    """Returns "balanced", or {number of a class: weight} from "NAME=WEIGHT,...". Raises ValueError otherwise."""
    if text is None or (text == "balanced" and dataset.task == "classification"):
        return text
    if dataset.task != "classification":
        raise ValueError(f"class_weights: the targets of {dataset.name} are numbers, not classes; got {text!r}")
    weights: dict[int, float] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.rpartition("="))
        try:
            weight = float(number) if equals else np.nan
        except ValueError:
            weight = np.nan
        if not 0 <= weight < np.inf:
            accepted = "balanced, or NAME=WEIGHT,... with numbers >= 0"
            raise ValueError(f"class_weights: expected {accepted}, got {part!r}")
        if name not in dataset.classes:
            known = f"{did_you_mean(name, dataset.classes)} (accepted: {', '.join(dataset.classes)})"
            raise ValueError(f"class_weights: unknown class {name!r}{known}")
        if dataset.classes.index(name) in weights:
            raise ValueError(f"class_weights: class {name!r} is given twice")
        weights[dataset.classes.index(name)] = weight
    return weights


def _smoothed(task: Prepared, rate: float) -> Prepared:
    """The same with smoothed training labels. Raises ValueError if there are no classes, or if the targets are -1 and
    +1.
    """
    if rate == 0:
        return task
    if task.held_out.task != "classification":
        raise ValueError(f"label_smoothing: the targets of {task.held_out.name} are numbers, not classes; got {rate}")
    if isinstance(task.held_out, Dataset) and task.held_out.labels.ndim > 1:
        raise ValueError(
            f"label_smoothing: expected one label per example, {task.held_out.name} has one per position; got {rate}"
        )
    if task.loss.targets == "signs":
        raise ValueError(f"label_smoothing: {task.loss.name} needs targets of -1 and +1; got {rate}")
    x, t = task.training
    return task._replace(training=(x, np.asarray(fnn.smooth_labels(t, rate))))


def _check_augment(augment: Sequence[str], network: fnn.Network) -> None:
    """Raises ValueError for what training would refuse, before any work is done."""
    shape = _input_shape(network)
    if augment and len(shape) == 1:
        raise ValueError(
            f"augment: needs pictures, but this network reads rows of {shape[0]} numbers; choose a --network that reads"
            " pictures, such as lenet"
        )
    fnn.training.augmentation.by_input(augment, {name: network.shapes[name] for name, _ in network.inputs})


def criteria(settings: dict[str, Any], restore: bool) -> list[fnn.training.Criterion]:
    """The criteria that stop a network before its last epoch; without `restore`, none of them restores earlier
    parameters.
    """
    patience, named = settings["early_stopping"], settings["stop"]
    if is_perceptron(settings) and patience is None and not named:
        # an epoch drawn with replacement may have missed the examples that are wrong
        named = ("cycle",) if settings["replacement"] else ("loss_below(0)", "cycle", "unchanged")
    chosen = [] if patience is None else [fnn.training.early_stopping(patience)]
    chosen += map(fnn.training.termination.get, named)
    if restore and sum(criterion.score is not None for criterion in chosen) > 1:
        raise ValueError(
            "stop: only one criterion can restore the best epoch's network; give the others restore=false, as in "
            '"generalization_loss(5, restore=false)"'
        )
    return chosen if restore else [dataclasses.replace(criterion, score=None) for criterion in chosen]


def is_perceptron(settings: dict[str, Any]) -> bool:
    """Whether the network learns by the perceptron rule; those of a sweep do not."""
    return "perceptron" in (settings.get("gradient"), settings.get("rule"))


def _default_tracking(settings: dict[str, Any], network: fnn.Network) -> tuple[str, ...]:
    """What is tracked if nothing is named: for a learning rule its angle to the gradient, if there is a gradient."""
    exact = settings["rule"] == "exact" or any(layer.activation.pullback is None for layer in network.layers)
    return () if exact else ("alignment",)


def _separable(task: Prepared) -> str:
    """Says for which classes one threshold neuron can separate all training examples from those of the other classes.

    If the rule is trained under the assumptions of Novikoff's bound, the largest possible number of mistakes is added.
    """
    from functional_nn.lab.separability import separability  # SciPy's optimizers take a quarter of a second to import

    (x, t), classes, config = task.training, task.held_out.classes, task.config
    if len(x) > _MOST_SEPARATED:
        return f"whether one layer can be right was not tested: more than {_MOST_SEPARATED} training examples"
    layer = config["network"]["layers"][0]
    bounded = (
        layer["initializer"] == fnn.initializers.zeros().name
        and config["optimizer"]["name"] == "gd"
        and config["batch_size"] == 1
    )
    bounded = bounded and not (config["regularizer"] or config["class_weights"] or config["weights"])
    can, cannot = [], []
    for name, column in zip(classes, t.T, strict=True):
        found = separability(x, column)
        most = math.floor(found.bound * (1 + 1e-6)) if found.margin > 0 else None  # with room for float32's rounding
        (can if found.separable else cannot).append(f"{name} ({most})" if bounded and most else name)
    mistakes = " (at most so many mistakes)" if bounded and can else ""
    sentences = [f"one layer can be right about{mistakes}: {', '.join(can)}"] if can else []
    return "; ".join(sentences + ([f"no weights of one layer are right about: {', '.join(cannot)}"] if cannot else []))


def print_pictures(task: Prepared) -> None:
    """Prints how pixels were scaled, unless they are used as they are."""
    pictures = None if isinstance(task.held_out, Text) else task.held_out.pictures
    if pictures and (pictures.divided or pictures.scaled):
        print(pictures)


def _suitable_loss(task: str, settings: dict[str, Any]) -> str:
    if is_perceptron(settings):
        return "sum_square_error"  # counts mistakes
    return "mean_square_error" if task == "regression" else "cross_entropy"


def build_network(task: Prepared, settings: dict[str, Any]) -> fnn.Network:
    """The network that the settings describe, with the data's inputs and targets. Raises ValueError."""
    loss, (x, t) = task.loss, task.training
    suited = {"real": "linear", "unit interval": "softmax", "distribution": "softmax"}[loss.needs]
    suited = next(iter(loss.fused), suited)  # the output layer the loss is fused with, where there is one
    if is_perceptron(settings):
        suited = "hardlim"
    last = settings["output"] or suited
    if isinstance(task.held_out, Text):
        preset, tokens = fnn.presets.get(settings["network"]), task.held_out.vocabulary
        network = preset((task.config["context"],), tokens, output=last, tokens=tokens, each_position=True)
    elif task.held_out.tokens:
        preset, classes = fnn.presets.get(settings["network"]), task.held_out.classes
        each = bool(classes) and task.held_out.labels.ndim > 1
        outputs = len(classes) or t.shape[1]
        network = preset(x.shape[1:], outputs, output=last, tokens=task.held_out.tokens, each_position=each)
    elif settings.get("network"):
        inputs = x.shape[1:] if x.ndim > 2 else x.shape[1]
        network = fnn.presets.get(settings["network"])(inputs, t.shape[1], output=last)
    else:
        network = _chain(x.shape[1], t.shape[1], last, settings)
    loss.check_outputs(network.output.activation)
    if settings.get("rule"):  # each member of a sweep has its own
        rule = "perceptron" if is_perceptron(settings) else settings["rule"]
        fnn.value_and_grad(network, loss, rule)  # refuses what cannot be trained, before any work is done
    return network


def _chain(inputs: int, outputs: int, last: str, settings: dict[str, Any]) -> fnn.Network:
    if settings["dropout"] and not settings["hidden"]:
        raise ValueError(f"dropout: drops hidden neurons, but there is no hidden layer; got {settings['dropout']}")
    initializer = settings["initializer"] or ("zeros" if is_perceptron(settings) else None)
    if is_perceptron(settings) and settings["hidden"]:
        raise ValueError("gradient: the perceptron rule trains a single layer; give --hidden with nothing after it")
    sizes = (inputs, *settings["hidden"], outputs)
    functions = (settings["activation"],) * len(settings["hidden"]) + (last,)
    return fnn.multilayer(sizes, functions, initializer=initializer, dropout=settings["dropout"])


def _check_network(settings: dict[str, Any]) -> None:
    """Raises ValueError if a network is named and its layers are described too."""
    if settings["network"] is None:
        return
    fnn.presets.get(settings["network"])
    given = [name for name in ("hidden", "activation", "initializer", "dropout") if settings[name] is not None]
    if given:
        raise ValueError(
            f"{given[0]}: network {settings['network']!r} has its own layers; leave out --network or --{given[0]}"
        )


def batch_plan(size: int, shuffle: str = "each_epoch", replacement: bool = False) -> fnn.training.BatchPlan:
    """Batches of `size` examples, 0 meaning all at once. Raises ValueError if all are to be drawn with replacement."""
    if not size and replacement:
        raise ValueError("replacement: expected a batch size above 0, got 0, which means all examples at once")
    return fnn.training.minibatch(size, shuffle=shuffle, replacement=replacement) if size else fnn.training.batch()


def _optimizer(name: str, learning_rate: float | None) -> fnn.optimizers.Optimizer:
    if learning_rate is None:
        return fnn.optimizers.get(name)
    if "(" in name:
        raise ValueError(f"optimizer {name!r} is given with constants; give the learning rate among them")
    return fnn.optimizers.get(f"{name}(learning_rate={learning_rate!r})")


def _configuration(source, settings, dataset, training, loss) -> dict[str, Any]:
    """The data and its preparation as plain data; the rest of a run's configuration is added to it.

    training: the numbers of the examples to train on.
    """
    inputs = None if dataset.tokens else datasets.fit_preparation(dataset, training)
    targets = datasets.fit_standardizer(dataset.targets[training]) if dataset.task == "regression" else None
    return {
        **_data_configuration(source, settings, loss),
        **runs.plain_reading(dataset.reading),
        "inputs": inputs and runs.plain_scaling(inputs),
        "targets": targets and runs.plain_scaling(targets),
        **environment.provenance(),
    }


def _data_configuration(source: str, settings: dict[str, Any], loss: fnn.Loss) -> dict[str, Any]:
    """The part of a configuration that comes first."""
    return {
        "data": source if source in datasets.NAMES else str(Path(source).resolve()),
        "loss": loss.specification,
        **{name: settings[name] for name in ("dtype", "seed", "test_fraction", "target", "weights", "class_weights")},
        "labels": settings["labels"] and str(settings["labels"]),
    }


def _plain(constants: dict[str, Any]) -> dict[str, Any]:
    """Constants for JSON: numbers and words unchanged, schedules as text."""
    return {name: value if isinstance(value, bool | float | str) else repr(value) for name, value in constants.items()}


def _arrays(
    config, loss, dataset: Dataset, shape: Shape, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of all examples, or of `rows`, as the network takes them; shape: of one example's inputs."""
    _, targets = runs.standardizers(config)
    t = runs.encode(config, loss, dataset)
    if targets and t.shape[1] != len(targets.mean):
        raise ValueError(f"{dataset.name}: expected {len(targets.mean)} targets per example, got {t.shape[1]}")
    t = t if rows is None else t[rows]
    return _scaled(config, dataset.inputs, shape, rows), targets.apply(t) if targets else t


def _scaled(config, inputs: np.ndarray, shape: Shape, rows: np.ndarray | None = None) -> np.ndarray:
    """Inputs (Q, *shape) as the network takes them, no wider than it needs."""
    scale, _ = runs.standardizers(config)
    if scale is None:  # tokens
        return inputs if rows is None else inputs[rows]
    dtype = np.float64 if config["dtype"] == "float64" else np.float32
    return scale.apply(inputs, rows=rows, dtype=dtype).reshape(-1, *shape)


def _input_shape(network: fnn.Network) -> Shape:
    """The shape of one example's inputs; the networks of runs have one input."""
    return network.shapes[network.inputs[0][0]]


def _random_targets(loss: fnn.Loss, key: jax.Array, examples: int, width: int) -> jax.Array:
    if loss.targets in ("real", "unit interval"):
        return jax.random.uniform(key, (examples, width))
    if loss.targets in ("non-negative", "distribution", "positive"):
        return jax.nn.softmax(jax.random.normal(key, (examples, width)))
    return jnp.asarray(runs.code(loss, np.eye(width)[np.arange(examples) % width]), precision.default())


# What is measured -----------------------------------------------------------------------------------------------------


def right_answers(task: str):
    """The rule by which `fit` counts correct outputs; None for numbers."""
    # the same rule for every loss: the class with the largest output
    return None if task == "regression" else fnn.losses.largest


def outputs_of(network: fnn.Network, params: Any, inputs: np.ndarray) -> np.ndarray:
    """`network.apply` in blocks, because the signals between layers may be much larger than inputs and outputs."""
    block = evaluation_block(network, dtype_of(params))
    starts = range(0, len(inputs), block)
    return np.concatenate([np.asarray(network.apply(params, inputs[start : start + block])) for start in starts])


def measures(config, network, loss, params, x, t, weights=None) -> dict[str, float]:
    """Loss and accuracy; or loss, R^2 and root mean square error in the data's own units."""
    correct = right_answers(config["task"])
    value, accuracy = fnn.training.evaluate(network, loss, params, x, t, correct, weights=weights)
    value, accuracy = (float(_exact(np.asarray(x)[()])) for x in (value, accuracy))  # 0.98, not 0.9800000190734863
    measured = {"loss": value}
    if config["task"] == "text":
        nats = loss.specification == "cross_entropy(mean)"  # per position
        bits = {f"bits per {config['unit']}": round(value / math.log(2), 6)} if nats else {}
        return measured | bits | {"accuracy": accuracy}
    if config["task"] == "classification":
        return measured | {"accuracy": accuracy}
    outputs = outputs_of(network, params, x).astype(np.float64)
    error, spread = np.mean((outputs - t) ** 2), np.mean((t - t.mean(axis=0)) ** 2)
    spread = spread if spread > 0 else np.nan  # a constant target: nothing to explain
    _, scaled = runs.standardizers(config)
    errors = scaled.invert(outputs) - scaled.invert(t)  # in the data's own units
    return measured | {
        "R^2": float(1 - error / spread),
        "root mean square error": float(np.sqrt(np.mean(errors**2))),
    }


def _write_history(path: Path, history: fnn.training.History) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = _columns(history)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def _columns(history: fnn.training.History) -> dict[str, np.ndarray]:
    """The history's columns (E,) by name; those of tracked quantities by path, "noise_scale/total/scale"."""
    columns = history._asdict() | checks.by_path(history.tracked)
    del columns["tracked"]
    return columns
