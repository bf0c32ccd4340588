"""`functional-nn`: info, train, sweep, compare, evaluate, predict, demo.

Bad input ends in one line on standard error and exit 2.
"""

import contextlib
import functools
import io
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

import functional_nn as fnn
from functional_nn import precision
from functional_nn.lab import commands, environment, programs, sweeps

Data = Annotated[str, tyro.conf.Positional]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]

# What train and sweep do where they are not told, the same for both. A batch size of None is 32, or as many as there
# are; a learning rate that is not given is the optimizer's own. The layers are those of a network that has no name.
_OPTIMIZER, _EPOCHS, _BATCH_SIZE = "adam", 50, None
_LAYERS = {"hidden": (128,), "activation": "tanh", "dropout": 0.0}
_SEED, _TEST_FRACTION = 0, 0.2

_INTERRUPTED = 130  # the exit status, as shells have it: 128 and the number of SIGINT


def info() -> None:
    """Versions, devices, dtype and precision in force, and whether the installed compiler computes rightly.

    Example: functional-nn info
    """
    for name, value in environment.describe().items():
        print(f"{name:<20} {value}")
    print(f"{'compiled programs':<20} {jax.config.jax_compilation_cache_dir or 'not kept'}")
    for name, error in environment.known_answers().items():
        right = error < environment.RIGHT_WITHIN
        print(f"{name:<34} {'right' if right else 'WRONG'}, relative error {error:.1e}")
        if not right:
            print(f"  {environment.REMEDY}")


def train(
    data: Data,
    /,
    network: str | None = None,
    hidden: tuple[int, ...] | None = None,
    activation: str | None = None,
    output: str | None = None,
    loss: str | None = None,
    initializer: str | None = None,
    dropout: float | None = None,
    regularizer: str | None = None,
    class_weights: str | None = None,
    label_smoothing: float = 0.0,
    augment: tuple[str, ...] = (),
    optimizer: str = _OPTIMIZER,
    learning_rate: float | None = None,
    epochs: int = _EPOCHS,
    early_stopping: int | None = None,
    stop: tuple[str, ...] = (),
    seconds: float | None = None,
    batch_size: int | None = _BATCH_SIZE,
    shuffle: Literal["each_epoch", "once", "never"] = "each_epoch",
    replacement: bool = False,
    gradient: Literal["manual", "automatic", "perceptron"] = "manual",
    rule: str = "exact",
    track: tuple[Literal["noise_scale", "signal_to_noise", "layer_statistics", "alignment", "rule_noise"], ...] = (),
    dtype: Dtype = "float32",
    seed: int = _SEED,
    test_fraction: float = _TEST_FRACTION,
    target: str | None = None,
    weights: str | None = None,
    labels: Path | None = None,
    task: Literal["auto", "classification", "regression"] = "auto",
    header: Literal["auto", "yes", "no"] = "auto",
    columns: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    delimiter: str = "auto",
    decimal: str = "auto",
    missing: Literal["refuse", "drop", "mean", "indicator"] = "refuse",
    window: int | None = None,
    horizon: int = 1,
    unit: Literal["character", "byte"] | None = None,
    context: int | None = None,
    out: Path | None = None,
    replace: bool = False,
    resume: bool = False,
    log_dir: Path | None = None,
) -> None:
    """Train a network with hand-written gradients, prove them equal to jax.grad's on the way, and write a report.

    Examples: functional-nn train digits --hidden 128 --epochs 50 --out runs/digits
              functional-nn train play.txt --context 64 --epochs 5

    Ctrl-C stops after the epochs under way, a second or so, and keeps them; the same command with --resume goes on, and
    ends as if nothing had happened. A training that diverges is written, too, and the exit status is then 1.

    Args:
        data: digits, iris, wine, breast_cancer, diabetes; a truth table: and, or, nand, nor, xor; fashion_mnist, where
            Debian's dataset-fashion-mnist is installed or FASHION_MNIST names a folder; or a .csv, .npz or IDX file, or
            a folder with an IDX pair; or a .txt file, of which a network of sequences, gru by default, learns to tell
            the next character.
        network: by its name, in the place of --hidden, --activation, --initializer and --dropout: lenet,
            all_convolutional, residual, "residual(3, width=8, norm=batch_norm)", "mlp((128, 64), relu)". One of
            convolutions reads pictures as they are, colours too; rows of a square number of pixels are pictures then.
        hidden: sizes of the hidden layers; none: --hidden with nothing after it; 128 by default.
        activation: of the hidden layers, such as tanh, relu, "leaky_relu(0.1)", "maxout(3)"; tanh by default.
        output: activation of the output layer; by default what suits the loss.
        loss: by default cross_entropy for classes and mean_square_error for numbers.
        initializer: by default what suits each activation.
        dropout: the rate at which hidden neurons are dropped in training; 0 by default.
        regularizer: a penalty on the weights, such as "l2(1e-4)", "l1(1e-5)", "elastic_net(1e-5, 1e-4)".
        class_weights: what an example of each class counts for in training: balanced, so that all classes count alike;
            or NAME=WEIGHT,..., 1 where a class has none. What is held out is measured without.
        label_smoothing: the share of each training example that is given to all classes alike, such as 0.1.
        augment: what training pictures go through, anew in every update: "shift(2)", flip, "cutout(4)", one after the
            other; of a network that reads pictures. What is held out stays as it is.
        optimizer: gd, momentum, nesterov, rprop (with --batch-size 0), adagrad, full_matrix_adagrad (of small
            networks), adadelta, rmsprop, adam, adamax, amsgrad, nadam, adamw; with constants, "momentum(0.1, 0.95)", a
            schedule, "adam(cosine(0.01, 2000))", or one by layer, "gd({layer1: 0.1, others: 0.01})". With
            --batch-size 0 also variable_learning_rate, and of second order newton, levenberg_marquardt and
            bayesian_regularization (for square errors), conjugate_gradient, scaled_conjugate_gradient, bfgs, lbfgs,
            hessian_free, kfac.
        learning_rate: the optimizer's own default where not given.
        epochs: passes over the training data; steps, of a second-order optimizer.
        early_stopping: stop where the held-out loss has not fallen for so many epochs, and keep the best epoch's
            network. It is then chosen by the held-out part, and looks better there than on new data.
        stop: other criteria, with their constants or without: "no_change(1e-4, 5)", "loss_below(0.01)",
            "gradient_below(1e-3)", unchanged, cycle; of the held-out loss, Prechelt's "generalization_loss(5)",
            "progress_quotient(0.5, strip=5)", "successive_increases(3, strip=5)", and early_stopping by its own name.
        seconds: stop after the epochs under way when so many have passed, and write the run.
        batch_size: examples an update, 0 for all at once; by default 32, or as many as there are, and all at once for
            an optimizer that wants it.
        shuffle: mini-batches anew each epoch, made once, or in the data's order.
        replacement: draw each mini-batch from all examples, so that an epoch may see one twice and another not at all.
        gradient: by hand, or jax.grad's for comparison; or in its place the perceptron rule, for a network without
            hidden layers, whose output is then hardlim and whose weights begin at zero; it stops where nothing is
            wrong, or where weights come back to what they were, unless --stop says otherwise. The rule as it is
            printed is
            functional-nn train xor --hidden --gradient perceptron --optimizer "gd(1)" --batch-size 1
        rule: what crosses connections on the way back, in the place of the weights: feedback_alignment,
        direct_feedback,
            "sign_symmetric(random)", kolen_pollack, weight_mirror, "noisy(0.1)", "rounded(4)", "dropped_back(0.5)",
            "clipped_back(1)", surrogate (of hardlim layers); or with no way back at all: local_loss, forward_gradient,
            node_perturbation, weight_perturbation, spsa, evolution_strategy, target_propagation, predictive_coding; by
            layer, "{layer1: noisy(0.1), others: exact}".
        track: what history.csv has more columns for: gradient noise, signal to noise by layer, saturation and the like;
            alignment, the angle between what the rule gives and the exact gradient, which a rule is tracked by where
            nothing else is named; rule_noise, bias and variance of a random one.
        dtype: of parameters and computation; float64 switches 64-bit mode on.
        seed: of the held-out part, and of parameters and batches, which are those that fit has of jax.random.key(SEED).
        test_fraction: held out, stratified by class; of a text or a series the end.
        target: the target column of a CSV file, by name or index; the last by default.
        weights: the column of a CSV file that says what each example counts for in training; it is no input. What is
            held out is measured without, and evaluate and predict do not need it.
        labels: the labels file of an IDX images file, where its name does not tell.
        task: what the targets are, where the file leaves it open.
        header: is a CSV file's first row one of names? By default it is told from the rows below, where it can be.
        columns: the inputs to use of a CSV file, by name or index; by default all but the target.
        drop: the columns not to use.
        delimiter: of a CSV file's cells: comma, semicolon, tab, pipe; by default told from the file, as is decimal.
        decimal: its decimal mark: point, comma.
        missing: what becomes of missing values (blanks, ?, NA, nan and the like): they are refused; their rows are
            dropped; they are taken for the mean of the training part; with indicator an input of 0 and 1 tells, too.
        window: of a CSV file whose rows follow each other in time: how many of them an example is, the target's values
            among them. What is held out is then the end.
        horizon: how many of the target's next values are predicted.
        unit: of a text: character, of a UTF-8 file, by default, or byte, of any.
        context: how many of them a network reads at once; 64 by default.
        out: the run's folder; runs/NAME by default.
        replace: replace a run that is already there, or the checkpoints of one that was interrupted.
        resume: go on from the checkpoints of a run that was interrupted; from the beginning where there are none.
        log_dir: a folder for TensorBoard.
    """
    _use(dtype)
    settings = {name: value for name, value in locals().items() if name not in ("data", "out", "replace", "resume")}
    settings["network"] = commands.default_network(data, settings)
    settings = settings if settings["network"] else _with_layers(settings)
    _ended(commands.train(data, settings, out or Path("runs") / _name(data), replace, resume))


def sweep(
    data: Data,
    /,
    grid: tuple[str, ...] = (),
    random: tuple[str, ...] = (),
    hidden: tuple[int, ...] | None = None,
    activation: str | None = None,
    loss: str | None = None,
    dropout: float | None = None,
    regularizer: str | None = None,
    class_weights: str | None = None,
    optimizer: str = _OPTIMIZER,
    rule: str = "exact",
    epochs: int = _EPOCHS,
    batch_size: int | None = _BATCH_SIZE,
    shuffle: Literal["shared", "independent"] = "shared",
    pad: bool = False,
    halving: str | None = None,
    keep: float = 1 / 3,
    early_stopping: int | None = None,
    stop: tuple[str, ...] = (),
    seconds: float | None = None,
    block: int | None = None,
    budget: int | None = None,
    devices: int | None = None,
    dtype: Literal["float32", "float64"] = "float32",
    seed: int = _SEED,
    test_fraction: float = _TEST_FRACTION,
    target: str | None = None,
    weights: str | None = None,
    labels: Path | None = None,
    task: Literal["auto", "classification", "regression"] = "auto",
    header: Literal["auto", "yes", "no"] = "auto",
    columns: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    delimiter: str = "auto",
    decimal: str = "auto",
    missing: Literal["refuse", "drop", "mean", "indicator"] = "refuse",
    out: Path | None = None,
    replace: bool = False,
    resume: bool = False,
    parquet: bool = False,
    log_dir: Path | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Train a network for every combination of hyperparameters, all of them in a few compiled programs.

    Examples: functional-nn sweep digits --grid learning_rate=log:1e-4:1e-1:12 batch_size=8,32,128 seed=0..15
              functional-nn sweep wine --random 64 learning_rate=log:1e-4:1e-1 width=8,16,32 activation=tanh,relu --pad
              functional-nn sweep iris --grid optimizer=adam,momentum learning_rate=0.01,0.1 --halving 3,9

    What may be swept: the constants of the optimizer (learning_rate, ...), of the regularizer (strength) and of the
    rule (sigma, ...); the rule itself (rule=exact,feedback_alignment,noisy(0.1)); seed, batch_size, initial_scale,
    examples, subset, label_noise; width and depth of the hidden layers, or hidden, the sizes of all of them
    (hidden=64,32-64,64-32); activation, initializer, dropout; and the optimizer itself. A member is what train gives
    with the same settings and --seed, to rounding; one whose seed is swept has a key of its own. Ctrl-C stops after the
    epochs under way and keeps them; the same command with --resume goes on. Where all networks diverge, the exit status
    is 1.

    Several processes, also on several hosts, share the work; start each with its own number, the first host's name and
    a free port:

        functional-nn sweep ... --coordinator host0:4321 --processes 2 --process 0
        functional-nn sweep ... --coordinator host0:4321 --processes 2 --process 1

    Process 0 writes the results. On one host, give each its share of the cores with --devices.

    Args:
        data: as for train.
        grid: NAME=VALUES, every combination: 8,32,128 or tanh,relu (a list), 0..15 (integers, both ends),
            log:1e-4:1e-1:12 and lin:0:1:5 (LOW:HIGH:COUNT).
        random: how many to draw, then NAME=DISTRIBUTION: log:1e-4:1e-1, lin:0:1, 0..99 (integers), tanh,relu (a
            choice). With --grid, every combination of the two.
        hidden: sizes of the hidden layers, where width and depth are not swept; none: --hidden with nothing after it;
            128 by default.
        activation: of the hidden layers; tanh by default.
        loss: by default cross_entropy for classes and mean_square_error for numbers.
        dropout: the rate at which hidden neurons are dropped in training, where it is not swept; 0 by default.
        regularizer: a bare name, whose constants are swept, such as l2 with strength; or with constants, "l2(1e-4)".
        class_weights: balanced, or NAME=WEIGHT,...; as for train.
        optimizer: a bare name, whose constants may be swept; or with constants, "momentum(0.1, 0.95)".
        rule: what crosses connections on the way back, where it is not swept; as for train.
        epochs: passes over the training data.
        batch_size: examples an update, where it is not swept; 0 for all at once; as for train by default.
        shuffle: the same mini-batches for all members, the controlled comparison, or each member's own.
        pad: train networks that differ in width as one program, the narrow ones filled up with zeros.
        halving: after these epochs, as in 3,9,27, only the best go on, by held-out loss.
        keep: the fraction that goes on.
        early_stopping: stop a member whose held-out loss has not fallen for so many epochs; it keeps its last network.
        stop: other criteria; as for train.
        seconds: stop after the epochs under way when so many have passed, and write what there is.
        block: networks that a device trains at a time; by default what suits it.
        budget: memory in MiB; by default half of the machine's, or of a GPU's.
        devices: by default every core of a CPU, or all GPUs.
        dtype: of parameters and computation.
        seed: of everything drawn: parameters, batches, the held-out part, --random.
        test_fraction: held out, stratified by class.
        target: the target column of a CSV file, by name or index; the last by default.
        weights: the column of a CSV file that holds the weights of examples; as for train.
        labels: the labels file of an IDX images file, where its name does not tell.
        task: what the targets are, where the file leaves it open.
        header: of a CSV file, as the next five; see train.
        columns: the inputs to use.
        drop: the columns not to use.
        delimiter: of cells.
        decimal: mark.
        missing: what becomes of missing values.
        out: the sweep's folder; runs/NAME-sweep by default.
        replace: replace a run that is already there, or the checkpoints of one that was interrupted.
        resume: go on from the checkpoints of a sweep that was interrupted; from the beginning where there are none.
        parquet: insist on results.parquet, which is written wherever pyarrow is installed.
        log_dir: a folder for TensorBoard.
        coordinator: HOST:PORT at which process 0 waits for the others.
        processes: how many there are.
        process: this one's number, from 0.
    """
    names = ("data", "out", "replace", "resume", "devices", "coordinator", "processes", "process")
    settings = _with_layers({name: value for name, value in locals().items() if name not in names})
    jax.config.update("jax_enable_x64", dtype == "float64")
    mesh = sweeps.lay_out(devices, coordinator, processes, process)
    _ended(sweeps.sweep(data, settings, out or Path("runs") / f"{_name(data)}-sweep", replace, resume, mesh))


def compare(
    run: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    activations: tuple[str, ...] = (),
    losses: tuple[str, ...] = (),
    dtypes: tuple[Dtype, ...] = ("float64", "float32"),
    sizes: tuple[int, ...] = (5, 4, 3),
    batch: int = 8,
    rule: str = "exact",
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Hand-written gradients against jax.grad: over activations x losses x dtypes, or for one trained network.

    Examples: functional-nn compare --activations tanh relu --losses cross_entropy hinge
              functional-nn compare runs/digits
              functional-nn compare runs/digits --rule feedback_alignment

    Args:
        run: a run's folder; its network is compared on its data, with costs.
        activations: of the hidden layers; all of them by default.
        losses: all of them by default; the output layer's activation is chosen to suit.
        dtypes: to compute in.
        sizes: of the input and every layer.
        batch: examples.
        rule: of a run, what another learning rule would give there: how far it turns from the gradient, by layer.
        seed: of parameters and data.
        out: a folder for agreement.csv, agreement.json and report.html.
    """
    if run is not None:
        agrees = commands.compare_run(run, out, rule)
    elif rule != "exact":
        raise ValueError(f"rule: {rule} is compared with the gradient of a run; give its folder")
    else:
        if "float64" in dtypes:
            _use("float64")
        agrees = commands.compare_grid(activations, losses, dtypes, sizes, batch, seed, out)
    _ended(agrees)


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    data: Data,
    /,
    target: str | None = None,
    labels: Path | None = None,
    part: Literal["all", "held-out"] = "all",
) -> None:
    """Loss and accuracy (or R^2) of a saved run on data with targets, which are read as the run's own were.

    Example: functional-nn evaluate runs/digits digits --part held-out

    Args:
        run: a run's folder.
        data: as for train; a CSV file may have other columns, too, and all in any order.
        target: the target column of a CSV file, by name or index, where it is not called as the run's.
        labels: the labels file of an IDX images file, where its name does not tell.
        part: everything, or only what a run on this data held out.
    """
    commands.evaluate(run, data, target, labels, part)


def predict(
    run: Annotated[Path, tyro.conf.Positional],
    data: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    out: Path | None = None,
    probabilities: bool = False,
    prompt: str | None = None,
    length: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
) -> None:
    """Predictions of a saved run, as CSV: the class and its output for each example, or the numbers; or how a text
    goes on.

    Examples: functional-nn predict runs/iris flowers.csv --out predictions.csv
              functional-nn predict runs/play --prompt "Enter " --length 200 --temperature 0.8

    Args:
        run: a run's folder.
        data: as for train, without targets if you like; a CSV file needs the columns that the run was trained on, and
            may have others.
        out: a file; standard output by default.
        probabilities: a column for each class, too, of its output: a probability, of softmax.
        prompt: what a run on text goes on with, in the place of data.
        length: how many characters, or bytes, follow it.
        temperature: below 1 the likelier ones are drawn more often than they are told.
        seed: of what is drawn.
    """
    if (prompt is None) == (data is None):
        raise ValueError("expected data or, of a run on text, --prompt, one of the two")
    if prompt is None:
        commands.predict(run, data, out, probabilities)
    else:
        commands.continue_text(run, prompt, length, temperature, seed, out)


def demo(
    port: int = 5006,
    address: str = "127.0.0.1",
    browser: bool = True,
    sweep: Path | None = None,
) -> None:
    """Demonstrations in a browser: descent, Adam, backpropagation, convolution, boundaries, populations, text, rules.

    Examples: functional-nn demo
              functional-nn demo --no-browser --port 8000 --sweep runs/digits-sweep

    Args:
        port: where the server listens; the next free one where it is in use.
        address: of which of this machine's; by default only programs on this machine can reach it.
        browser: open one; the address is printed in any case.
        sweep: a sweep's folder, for the page of populations; a small population is trained where none is given.
    """
    from functional_nn.lab import demonstrations  # what it needs is an extra of its own

    _use("float64")
    demonstrations.serve(port, address, browser, sweep)


def _ended(well: bool) -> None:
    """The exit status tells that something was done and found wrong."""
    if not well:
        sys.exit(1)


def _use(dtype: str) -> None:
    """The dtype was asked for on the command line, so that 64-bit mode may be switched on for it."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    precision.available(dtype)


def _with_layers(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {name: value for name, value in _LAYERS.items() if settings[name] is None}


def _name(data: str) -> str:
    return Path(data).resolve().name.lstrip(".").split(".")[0] or "run"


def _later(command):
    """The command with its words read and nothing done yet."""

    @functools.wraps(command)
    def bound(*args, **keywords):
        return functools.partial(command, *args, **keywords)

    return bound


def _read_words():
    """What the words on the command line ask for, or exit: 0 after --help, 2 with one line for what is not accepted."""
    commands_by_name = {f.__name__: _later(f) for f in (info, train, sweep, compare, evaluate, predict, demo)}
    about, complaint = fnn.__doc__.split("\n")[0], io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(commands_by_name, prog="functional-nn", description=about)
    except SystemExit as stop:
        if stop.code:
            # tyro draws a box of several lines; its words are kept
            words = re.sub(r"[\u2500-\u257f]|\x1b\[[0-9;]*m", " ", complaint.getvalue()).split()
            _say(" ".join(words) or "unreadable command line; see --help")
        raise


def _say(message: object) -> None:
    """One line on standard error, whatever is in the message."""
    print("functional-nn:", " ".join(str(message).split()), file=sys.stderr)


def _warned(message, *where, **more) -> None:
    if not programs.heard(str(message)):
        _say(message)


def main() -> None:
    """What the console script does, up to its exit."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned  # without the file and line that it comes from
            _read_words()()
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError) as error:
        _say(error)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        _say(str(stop) or "interrupted; nothing was written")
        sys.exit(_INTERRUPTED)


def script() -> None:
    """The console script, which keeps compiled programs. An interrupted one ends without waiting for what JAX still
    computes, which may crash then.
    """
    programs.keep()
    try:
        main()
    except (SystemExit, KeyboardInterrupt) as stop:  # Ctrl-C again, while the first is dealt with
        if isinstance(stop, SystemExit) and stop.code != _INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(_INTERRUPTED)


if __name__ == "__main__":
    script()
