"""The command line `functional-nn`: info, train, sweep, compare, evaluate, predict, demo.

Bad input ends in one line on standard error and exit status 2.
"""

import contextlib
import functools
import inspect
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

# The defaults of train and sweep, the same for both. A batch size of None is 32, or the number of examples if that is
# smaller; a learning rate that is not given is the optimizer's own. The layers are for networks without a name.
_OPTIMIZER, _EPOCHS, _BATCH_SIZE = "adam", 50, None
_LAYERS = {"hidden": (128,), "activation": "tanh", "dropout": 0.0}
_SEED, _TEST_FRACTION = 0, 0.2

_INTERRUPTED = 130  # the exit status, as in shells: 128 plus the number of SIGINT
_FIRST_STEPS = (
    "To train on your own CSV file, whose last column is the target, and to see the result:",
    "    functional-nn train flowers.csv",
    "Then open runs/flowers/report.html. `functional-nn COMMAND --help` explains a command and lists its options.",
)


def info() -> None:
    """Print versions, devices, dtype and precision, and check that the installed compiler computes correctly.

    Example (in a shell):

        functional-nn info
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
    """Train a network on a file or a data set, check its gradients against jax.grad, and write a report.

    Examples (in a shell), the first two on your own CSV file:

        functional-nn train flowers.csv
        functional-nn train flowers.csv --target species --hidden 16 --epochs 100 --out runs/flowers
        functional-nn train digits --hidden 128 --epochs 50
        functional-nn train play.txt --context 64 --epochs 5

    A CSV file has one example per row. Its last column is the target, unless --target names another one, and all other
    columns are inputs. Columns of words are turned into inputs of 0 and 1. If the target holds words, or integers with
    few different values, the network predicts classes; otherwise it predicts numbers (--task decides). A fifth of the
    rows is held out to measure the network. Open report.html in the run's folder to see the results, and use the
    trained network with `functional-nn predict runs/flowers new.csv`.

    Ctrl-C stops after the current epochs, within about a second, and keeps them. The same command with --resume
    continues from there and ends with the same result as an uninterrupted run. A training that diverges is also
    written; the exit status is then 1.

    Args:
        data: a .csv, .npz or IDX file; a folder with an IDX pair; a .txt file, on which a network of sequences (gru by
            default) learns to predict the next character; or the name of a data set: digits, iris, wine, breast_cancer,
            diabetes; a truth table: and, or, nand, nor, xor; fashion_mnist (needs Debian's dataset-fashion-mnist, or
            FASHION_MNIST set to a folder).
        network: a network by name, instead of --hidden, --activation, --initializer and --dropout: lenet,
            all_convolutional, residual, "residual(3, width=8, norm=batch_norm)", "mlp((128, 64), relu)". Convolutional
            networks read pictures in their own shape, colours included; rows with a square number of pixels are then
            read as pictures.
        hidden: sizes of the hidden layers, 128 by default; --hidden with nothing after it means no hidden layer.
        activation: activation of the hidden layers, such as tanh, relu, "leaky_relu(0.1)", "maxout(3)"; tanh by
            default.
        output: activation of the output layer; by default the one that suits the loss.
        loss: by default cross_entropy for classes and mean_square_error for numbers.
        initializer: by default the one that suits each activation.
        dropout: the probability with which hidden neurons are dropped in training; 0 by default.
        regularizer: a penalty on the weights, such as "l2(1e-4)", "l1(1e-5)", "elastic_net(1e-5, 1e-4)".
        class_weights: the weight of the examples of each class in training: balanced, so that all classes count the
            same, or NAME=WEIGHT,..., where classes that are not named have weight 1. The held-out part is measured
            without weights.
        label_smoothing: the share of each training label that is spread evenly over all classes, such as 0.1.
        augment: random changes of the training pictures, drawn again for every update and applied in this order:
            "shift(2)", flip, "cutout(4)". Needs a network that reads pictures. The held-out part is not changed.
        optimizer: gd, momentum, nesterov, rprop (needs --batch-size 0), adagrad, full_matrix_adagrad (for small
            networks), adadelta, rmsprop, adam, adamax, amsgrad, nadam, adamw; with constants, "momentum(0.1, 0.95)";
            with a schedule, "adam(cosine(0.01, 2000))"; or one by layer, "gd({layer1: 0.1, others: 0.01})". With
            --batch-size 0 also variable_learning_rate, and the second-order methods newton, levenberg_marquardt and
            bayesian_regularization (for square errors), conjugate_gradient, scaled_conjugate_gradient, bfgs, lbfgs,
            hessian_free, kfac.
        learning_rate: by default the optimizer's own.
        epochs: passes over the training data; for a second-order optimizer, steps.
        early_stopping: stop when the held-out loss has not fallen for this many epochs, and keep the network of the
            best epoch. Because the held-out part chose it, the network looks better there than on new data.
        stop: other stopping criteria, with or without constants: "no_change(1e-4, 5)", "loss_below(0.01)",
            "gradient_below(1e-3)", unchanged, cycle; on the held-out loss, Prechelt's "generalization_loss(5)",
            "progress_quotient(0.5, strip=5)", "successive_increases(3, strip=5)", and early_stopping by its name.
        seconds: stop after this many seconds, at the end of the current epochs, and write the run.
        batch_size: examples per update, 0 for all at once; by default 32 (or all examples if there are fewer), and all
            at once for an optimizer that needs it.
        shuffle: new mini-batches in each epoch, the same ones in all epochs, or mini-batches in the data's order.
        replacement: draw each mini-batch from all examples, so that an epoch may use one example twice and another not
            at all.
        gradient: the hand-written gradient, or jax.grad's for comparison. perceptron uses the perceptron rule instead,
            for a network without hidden layers: its output is hardlim and its weights start at zero. It stops when no
                example
            is wrong, or when the weights return to an earlier value, unless --stop says otherwise. The textbook rule is
            functional-nn train xor --hidden --gradient perceptron --optimizer "gd(1)" --batch-size 1
        rule: the learning rule: what is used on the way back instead of the weights: feedback_alignment,
            direct_feedback, "sign_symmetric(random)", kolen_pollack, weight_mirror, "noisy(0.1)", "rounded(4)",
            "dropped_back(0.5)", "clipped_back(1)", surrogate (for hardlim layers); or a rule without a backward pass:
            local_loss, forward_gradient, node_perturbation, weight_perturbation, spsa, evolution_strategy,
            target_propagation, predictive_coding; or one by layer, "{layer1: noisy(0.1), others: exact}".
        track: further columns of history.csv: noise_scale (gradient noise), signal_to_noise by layer, layer_statistics
            (saturation and the like), alignment (the angle between the rule's direction and the exact gradient; tracked
            for a rule by default), rule_noise (bias and variance of a random rule).
        dtype: dtype of parameters and computation; float64 switches 64-bit mode on.
        seed: seed of the held-out part, the parameters and the batches; fit draws the same from jax.random.key(SEED).
        test_fraction: the fraction that is held out, stratified by class; for a text or a series, its end.
        target: the target column of a CSV file, by name or index; the last column by default.
        weights: the column of a CSV file with each example's weight in training. It is not an input. The held-out part
            is measured without weights, and evaluate and predict do not need the column.
        labels: the labels file of an IDX images file, if its name does not follow from the images file's name.
        task: whether the targets are classes or numbers, if the file does not make that clear.
        header: whether the first row of a CSV file holds names. By default this is found out from the rows below.
        columns: the columns of a CSV file to use as inputs, by name or index; by default all but the target.
        drop: the columns not to use.
        delimiter: what separates a CSV file's cells: comma, semicolon, tab, pipe; by default found out from the file.
        decimal: the decimal mark of a CSV file: point, comma; by default found out from the file.
        missing: what to do with missing values (blanks, ?, NA, nan and the like): refuse the file, drop their rows,
            replace them by the mean of the training part, or also add an input of 0 and 1 that says where they are
            (indicator).
        window: for a CSV file whose rows follow each other in time: the number of rows in an example, the target's past
            values included. The end of the file is then held out.
        horizon: how many of the target's next values are predicted.
        unit: the tokens of a text: character (the default; the file must be UTF-8) or byte (any file).
        context: how many tokens of a text the network reads at once; 64 by default.
        out: the run's folder; runs/NAME by default.
        replace: replace an existing run, or the checkpoints of an interrupted one.
        resume: continue from the checkpoints of an interrupted run; start from the beginning if there are none.
        log_dir: a folder for TensorBoard.
    """
    _use(dtype)
    settings = {name: value for name, value in locals().items() if name not in ("data", "out", "replace", "resume")}
    settings["network"] = commands.default_network(data, settings)
    settings = settings if settings["network"] else _with_layers(settings)
    _exit_unless(commands.train(data, settings, out or Path("runs") / _name(data), replace, resume))


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

    Examples (in a shell):

        functional-nn sweep digits --grid learning_rate=log:1e-4:1e-1:12 batch_size=8,32,128 seed=0..15
        functional-nn sweep wine --random 64 learning_rate=log:1e-4:1e-1 width=8,16,32 activation=tanh,relu --pad
        functional-nn sweep iris --grid optimizer=adam,momentum learning_rate=0.01,0.1 --halving 3,9

    What can be swept: the optimizer and its constants (learning_rate, ...); the constants of the regularizer
    (strength); the learning rule and its constants (rule=exact,feedback_alignment,noisy(0.1); sigma, ...); seed,
    batch_size, initial_scale, examples, subset, label_noise; width and depth of the hidden layers, or hidden, the sizes
    of all of them (hidden=64,32-64,64-32); activation, initializer, dropout.

    Each member is the network that train returns with the same settings and --seed, up to rounding; if the seed is
    swept, each member has its own. Ctrl-C stops after the current epochs and keeps them; the same command with --resume
    continues. If all networks diverge, the exit status is 1.

    Several processes, on one or several hosts, can share the work. Start each with its own number, the first host's
    name and a free port:

        functional-nn sweep ... --coordinator host0:4321 --processes 2 --process 0
        functional-nn sweep ... --coordinator host0:4321 --processes 2 --process 1

    Process 0 writes the results. On one host, give each its share of the cores with --devices.

    Args:
        data: a file or the name of a data set, as for train.
        grid: NAME=VALUES, every combination: 8,32,128 or tanh,relu (a list), 0..15 (integers, both ends included),
            log:1e-4:1e-1:12 and lin:0:1:5 (LOW:HIGH:COUNT).
        random: how many members to draw, then NAME=DISTRIBUTION: log:1e-4:1e-1, lin:0:1, 0..99 (integers), tanh,relu
            (one of a list). With --grid, every combination of the two.
        hidden: sizes of the hidden layers, if width and depth are not swept; 128 by default; --hidden with nothing
            after it means no hidden layer.
        activation: activation of the hidden layers; tanh by default.
        loss: by default cross_entropy for classes and mean_square_error for numbers.
        dropout: the probability with which hidden neurons are dropped in training, if it is not swept; 0 by default.
        regularizer: a name alone, whose constants can be swept, such as l2 with strength; or with constants,
            "l2(1e-4)".
        class_weights: balanced, or NAME=WEIGHT,...; as for train.
        optimizer: a name alone, whose constants can be swept; or with constants, "momentum(0.1, 0.95)".
        rule: the learning rule, if it is not swept; as for train.
        epochs: passes over the training data.
        batch_size: examples per update, if it is not swept; 0 for all at once; the default is as for train.
        shuffle: the same mini-batches for all members, which makes a controlled comparison, or each member's own.
        pad: train networks of different widths as one program; the narrow ones are padded with zeros.
        halving: after each of these epochs, as in 3,9,27, only the best members by held-out loss continue.
        keep: the fraction of members that continues.
        early_stopping: stop a member whose held-out loss has not fallen for this many epochs; it keeps its last
            network.
        stop: other stopping criteria; as for train.
        seconds: stop after this many seconds, at the end of the current epochs, and write the results so far.
        block: networks that a device trains at a time; by default chosen for the device.
        budget: memory in MiB; by default half of the machine's, or of a GPU's.
        devices: how many to use; by default every core of a CPU, or all GPUs.
        dtype: dtype of parameters and computation.
        seed: seed of everything that is drawn: parameters, batches, the held-out part, --random.
        test_fraction: the fraction that is held out, stratified by class.
        target: the target column of a CSV file, by name or index; the last column by default.
        weights: the column of a CSV file with each example's weight; as for train.
        labels: the labels file of an IDX images file, if its name does not follow from the images file's name.
        task: whether the targets are classes or numbers, if the file does not make that clear.
        header: whether the first row of a CSV file holds names; as for train.
        columns: the columns of a CSV file to use as inputs.
        drop: the columns not to use.
        delimiter: what separates a CSV file's cells; as for train.
        decimal: the decimal mark of a CSV file; as for train.
        missing: what to do with missing values; as for train.
        out: the sweep's folder; runs/NAME-sweep by default.
        replace: replace an existing run, or the checkpoints of an interrupted one.
        resume: continue from the checkpoints of an interrupted sweep; start from the beginning if there are none.
        parquet: fail if results.parquet cannot be written; it is written whenever pyarrow is installed.
        log_dir: a folder for TensorBoard.
        coordinator: HOST:PORT at which process 0 waits for the others.
        processes: the number of processes.
        process: this process' number, from 0.
    """
    names = ("data", "out", "replace", "resume", "devices", "coordinator", "processes", "process")
    settings = _with_layers({name: value for name, value in locals().items() if name not in names})
    jax.config.update("jax_enable_x64", dtype == "float64")
    mesh = sweeps.lay_out(devices, coordinator, processes, process)
    _exit_unless(sweeps.sweep(data, settings, out or Path("runs") / f"{_name(data)}-sweep", replace, resume, mesh))


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
    """Compare hand-written gradients with jax.grad, for activations x losses x dtypes or for one trained network.

    Examples (in a shell):

        functional-nn compare --activations tanh relu --losses cross_entropy hinge
        functional-nn compare runs/digits
        functional-nn compare runs/digits --rule feedback_alignment

    Args:
        run: a run's folder; its network is compared on its own data, and the costs of both gradients are measured.
        activations: activations of the hidden layers; all of them by default.
        losses: all of them by default; each gets an output activation that suits it.
        dtypes: dtypes to compute in.
        sizes: sizes of the input and of every layer.
        batch: number of examples.
        rule: for a run, another learning rule: the angle between its direction and the gradient is measured by layer.
        seed: seed of parameters and data.
        out: a folder for agreement.csv, agreement.json and report.html.
    """
    if run is not None:
        agrees = commands.compare_run(run, out, rule)
    elif rule != "exact":
        raise ValueError(f"rule: {rule} can be compared only with the gradient of a run; give the run's folder")
    else:
        if "float64" in dtypes:
            _use("float64")
        agrees = commands.compare_grid(activations, losses, dtypes, sizes, batch, seed, out)
    _exit_unless(agrees)


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    data: Data,
    /,
    target: str | None = None,
    labels: Path | None = None,
    part: Literal["all", "held-out"] = "all",
) -> None:
    """Measure the loss and accuracy (or R^2) of a saved run on data with targets, which is read as the run's own data
    was.

    Example (in a shell):

        functional-nn evaluate runs/digits digits --part held-out

    Args:
        run: a run's folder.
        data: a file or the name of a data set, as for train; a CSV file may have further columns, in any order.
        target: the target column of a CSV file, by name or index, if its name is not that of the run's target.
        labels: the labels file of an IDX images file, if its name does not follow from the images file's name.
        part: all of the data, or only the part that a run on this data held out.
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
    """Write the predictions of a saved run as CSV (the class and its output, or the numbers), or continue a text.

    Examples (in a shell):

        functional-nn predict runs/iris flowers.csv --out predictions.csv
        functional-nn predict runs/play --prompt "Enter " --length 200 --temperature 0.8

    Args:
        run: a run's folder.
        data: a file or the name of a data set, as for train; targets may be missing. A CSV file needs the columns that
            the run was trained on, and may have others.
        out: a file to write; standard output by default.
        probabilities: also write a column with the output of each class, which is a probability if the output is
            softmax.
        prompt: the beginning of a text that a run on text continues, instead of data.
        length: how many characters, or bytes, to add.
        temperature: below 1, likely tokens are drawn more often than their probability; above 1, less often.
        seed: seed of the draws.
    """
    if (prompt is None) == (data is None):
        raise ValueError("expected either data or, for a run on text, --prompt")
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
    """Open demonstrations in a browser: descent, Adam, backpropagation, convolution, boundaries, populations, text,
    rules.

    Examples (in a shell):

        functional-nn demo
        functional-nn demo --no-browser --port 8000 --sweep runs/digits-sweep

    Args:
        port: the server's port; if it is in use, the next free one.
        address: the address to listen at; by default only programs on this machine can reach it.
        browser: open a browser; the server's address is printed in any case.
        sweep: a sweep's folder to show on the page of populations; without it a small population is trained.
    """
    from functional_nn.lab import demonstrations  # needs an extra of its own

    _use("float64")
    demonstrations.serve(port, address, browser, sweep)


def _exit_unless(well: bool) -> None:
    """Exits with status 1 unless all went well: something was done and found wrong."""
    if not well:
        sys.exit(1)


def _use(dtype: str) -> None:
    """Makes a dtype that was given on the command line available: float64 switches 64-bit mode on."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    precision.available(dtype)


def _with_layers(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {name: value for name, value in _LAYERS.items() if settings[name] is None}


def _name(data: str) -> str:
    return Path(data).resolve().name.lstrip(".").split(".")[0] or "run"


def _later(command, whole: bool):
    """The command with its arguments bound, to be run later; its help says all of it, or its first paragraph alone."""

    @functools.wraps(command)
    def bound(*args, **keywords):
        return functools.partial(command, *args, **keywords)

    # tyro keeps the line breaks inside an argument's text
    text = re.sub(r"\n {8,}", " ", inspect.getdoc(command))
    bound.__doc__ = text if whole else text.partition("\n")[0]
    bound.__signature__ = inspect.signature(command)
    del bound.__wrapped__  # whose docstring tyro would read
    return bound


def _read_words():
    """Returns the command to run, or exits: with 0 after --help, with 2 and one line for what is not accepted."""
    functions = (info, train, sweep, compare, evaluate, predict, demo)
    commands_by_name = {f.__name__: _later(f, f.__name__ in sys.argv[1:2]) for f in functions}
    about, complaint = "\n\n".join([fnn.__doc__.split("\n")[0], *_FIRST_STEPS]), io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(commands_by_name, prog="functional-nn", description=about)
    except SystemExit as stop:
        if stop.code:
            # tyro draws a box of several lines; only its words are kept
            words = re.sub(r"[\u2500-\u257f]|\x1b\[[0-9;]*m", " ", complaint.getvalue()).split()
            _say(" ".join(words) or "unreadable command line; see --help")
        raise


def _say(message: object) -> None:
    """Prints the message as one line on standard error."""
    print("functional-nn:", " ".join(str(message).split()), file=sys.stderr)


def _warned(message, *where, **more) -> None:
    if not programs.heard(str(message)):
        _say(message)


def main() -> None:
    """Does what the console script does, up to its exit."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned  # without the file and line of its origin
            _read_words()()
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError) as error:
        _say(error)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        _say(str(stop) or "interrupted; nothing was written")
        sys.exit(_INTERRUPTED)


def script() -> None:
    """The console script: keeps compiled programs, and ends an interrupted one without waiting for what JAX still
    computes, which may crash then.
    """
    programs.keep()
    try:
        main()
    except (SystemExit, KeyboardInterrupt) as stop:  # a second Ctrl-C, during the handling of the first
        if isinstance(stop, SystemExit) and stop.code != _INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(_INTERRUPTED)


if __name__ == "__main__":
    script()
