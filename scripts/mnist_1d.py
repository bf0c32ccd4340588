#!/usr/bin/env python
"""MNIST-1D: softmax regression, a dense, a convolutional and a recurrent network, next to the numbers of its authors.

    python scripts/mnist_1d.py --seeds 4 --epochs 100

Greydanus and Kobak 2020 (arXiv 2011.14439): ten patterns of 12 points, scaled, sheared, shifted and noisy, make signals
of 40; 4000 to train on and 1000 to test. Their README prints 32 % of test signals right for logistic regression, 68 %
for a dense network, 94 % for a convolutional one and 91 % for a GRU; and 32, 68, 56 and 57 % where the 40 places are
shuffled, in the same way in all signals, so that neighbours say nothing. The networks here are theirs (`models.py` of
their repository): 40-10; 40-100-100-10 with the first hidden layer added to the second; three convolutions of 25
channels and stride 2; a GRU of 6 neurons from the start of the signal and one from its end, with an output layer that
reads all their 2 x 40 states. As theirs, they use relu, cross-entropy, Adam and batches of 100; the learning rate falls
to 0 along a cosine. The dense one, wider, and the convolutional one are also trained with dropout, which theirs do not
have. Their GRU has a second bias for each gate and starts from 0; ours has one, and learns its initial state.

The learning rate (of three) and each network's best epoch are chosen on the last 800 of the 4000 signals, which are not
trained on; the test part takes no part in any choice. Rates and seeds are trained in one program (`fit_population`), on
all CPU cores; the environment variable JAX_NUM_CPU_DEVICES sets another number.
"""

import jax
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import experiments, require
from functional_nn.lab.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

TRAINED_ON, BATCH = 3200, 100  # signals of the 4000 to train on; the others choose rate and epoch
RATES = (0.003, 0.01, 0.03)
DATA = {"as they are": False, "shuffled": True}  # places
PRINTED = {  # % of test signals right: places as they are, and shuffled
    "linear": (32, 32),
    "dense": (68, 68),
    "convolutional": (94, 56),
    "recurrent": (91, 57),
}
NOTEBOOK = {  # one run, from the log in quickstart.ipynb
    "linear": 31.5,
    "dense": 64.6,
    "convolutional": 92.3,
    "recurrent": 92.1,
}
NEAR = 2  # points below what is printed that count as the same
COLORS = {"linear": BLUE, "dense": ORANGE, "convolutional": GREEN, "recurrent": PURPLE}


def dense(width: int = 100, dropout: float = 0.0) -> fnn.Network:
    return fnn.graph(
        inputs={"signal": 40},
        layers=[
            fnn.Layer("hidden1", width, "relu", ("signal",), dropout=dropout),
            fnn.Layer("hidden2", width, "relu", ("hidden1",), dropout=dropout),
            fnn.Layer("sum", width, "linear", (("hidden1", "identity"), ("hidden2", "identity")), bias="none"),
            fnn.Layer("output", 10, "softmax", ("sum",)),
        ],
    )


def convolutional(dropout: float = 0.0) -> fnn.Network:
    halving = fnn.connections.conv(3, stride=2, padding=1)
    return fnn.graph(
        inputs={"signal": (40, 1)},
        layers=[
            fnn.Layer("conv1", 25, "relu", (("signal", fnn.connections.conv(5, stride=2, padding=1)),)),
            fnn.Layer("conv2", 25, "relu", (("conv1", halving),), dropout=dropout),
            fnn.Layer("conv3", 25, "relu", (("conv2", halving),), dropout=dropout),
            fnn.Layer("output", 10, "softmax", (("conv3", "full"),)),
        ],
    )


def recurrent(width: int = 6) -> fnn.Network:
    """A GRU from each end of the signal, which is given twice: also reversed."""
    ways = (("forwards", "signal"), ("backwards", "reversed"))
    return fnn.graph(
        inputs={"signal": (40, 1), "reversed": (40, 1)},
        layers=[
            *(fnn.Layer(name, width, "gru", (source,)) for name, source in ways),
            fnn.Layer("output", 10, "softmax", tuple((name, "full") for name, _ in ways)),
        ],
    )


NETWORKS = {  # by the authors' name, and by what is added to theirs
    ("linear", ""): fnn.multilayer((40, 10), ("softmax",)),
    ("dense", ""): dense(),
    ("dense", "256 wide, dropout 0.3"): dense(256, 0.3),
    ("convolutional", ""): convolutional(),
    ("convolutional", "dropout 0.2"): convolutional(0.2),
    ("recurrent", ""): recurrent(),
}


def signals(shuffled: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {part: (signals (Q, 40), labels (Q,))} for "training", "held out" and "test", the same every time."""
    require("bench", "mnist1d")
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.shuffle_seq = shuffled
    dataset = make_dataset(settings)
    x, labels = dataset["x"].astype("f4"), dataset["y"].astype("i4")
    own = {"training": slice(TRAINED_ON), "held out": slice(TRAINED_ON, None)}
    test = dataset["x_test"].astype("f4"), dataset["y_test"].astype("i4")
    return {part: (x[rows], labels[rows]) for part, rows in own.items()} | {"test": test}


def as_read(network: fnn.Network, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns signals (Q, 40) in the form of the network's inputs."""
    ways = {name: x[:, ::-1] if name == "reversed" else x for name, _ in network.inputs}
    return {name: way.reshape(-1, *network.shapes[name]) for name, way in ways.items()}


def train(name: str, network: fnn.Network, by_part: dict, seeds: int, epochs: int) -> training.Population:
    """Trains every rate with every seed; seeds vary fastest."""
    steps = epochs * -(-len(by_part["training"][0]) // BATCH)
    held = {part: (as_read(network, x), labels) for part, (x, labels) in by_part.items()}
    with progress(name, epochs) as advance:
        return training.fit_population(
            network,
            "cross_entropy",
            lambda rate: optimizers.adam(optimizers.schedules.cosine(rate, steps=steps)),
            training.grid(rate=RATES, seed=range(seeds)),
            held["training"],
            key=jax.random.key(0),
            epochs=epochs,
            validation=held["held out"],
            plan=training.minibatch(BATCH),
            stop=training.early_stopping(patience=epochs, monitor="validation_accuracy"),
            on_chunk=lambda at: advance(at.epoch),
        )


def chosen(population: training.Population, seeds: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the best rate by the mean over seeds, its members (seeds,), and their highest held-out accuracies."""
    highest = np.nanmax(population.history.validation_accuracy, axis=0).reshape(len(RATES), seeds)
    best = highest.mean(axis=1).argmax()
    return RATES[best], best * seeds + np.arange(seeds), highest[best]


def row(data: str, name: str, added: str, population: training.Population, by_part: dict, seeds: int) -> dict:
    rate, members, held_out = chosen(population, seeds)
    network = population.network(members[0])
    x, labels = by_part["test"]
    x = as_read(network, x)
    measure = jax.jit(lambda params: training.evaluate(network, "cross_entropy", params, x, labels)[1])
    test = 100 * np.array([measure(population.params(member)) for member in members])
    printed = PRINTED[name][list(DATA).index(data)]
    best = np.nanargmax(population.history.validation_accuracy[:, members], axis=0) + 1
    return {
        "places": data,
        "network": name,
        "added": added,
        "parameters": experiments.parameter_count(network),
        "rate": rate,
        "epoch": float(np.median(best)),
        "held out %": 100 * float(held_out.mean()),
        "test %": float(test.mean()),
        "sd": float(test.std()),
        "lowest": float(test.min()),
        "highest": float(test.max()),
        "printed %": printed,
        "their log %": NOTEBOOK[name] if data == "as they are" else "",
        "verdict": verdict(test.mean() - printed),
        "seconds": population.seconds,
    }


def verdict(points: float) -> str:
    """Says how a difference from the printed number counts."""
    if abs(points) <= NEAR:
        return "as printed"
    return "higher" if points > 0 else "LOWER"


def draw(rows: list[dict], curves: dict, by_part: dict):
    """Draws a signal of each class, held-out accuracy over training, and test accuracy next to the printed numbers."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 7), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1, 2.6))
        x, labels = by_part["training"]
        for digit, axis in enumerate(above.subplots(1, 10, sharey=True)):
            axis.plot(x[labels == digit][:3].T, lw=1)
            axis.set_title(str(digit), fontsize=9)
            axis.set(xticks=(0, 20, 39))
        above.suptitle("three training signals of each class", fontsize=10)
        left, right = below.subplots(1, 2)
        for (name, added), accuracy in curves.items():
            epochs = np.arange(1, len(accuracy) + 1)
            label = f"{name}, {added}" if added else name
            left.plot(epochs, 100 * accuracy.mean(1), "--" if added else "-", color=COLORS[name], label=label)
            left.fill_between(
                epochs, *(100 * f(accuracy, axis=1) for f in (np.min, np.max)), color=COLORS[name], alpha=0.15, lw=0
            )
        left.set(xlabel="epoch", ylabel="% right", ylim=(0, 100))
        left.set_title("held-out part, places as they are", loc="left")
        left.legend(fontsize=8, loc="lower right")
        for place, row in enumerate(rows):
            right.bar(place, row["test %"], color=COLORS[row["network"]], alpha=0.5 if row["added"] else 0.9)
            right.errorbar(
                place,
                row["test %"],
                np.abs([[row[end] - row["test %"]] for end in ("lowest", "highest")]),
                color="black",
                capsize=4,
                lw=1,
            )
            right.plot([place - 0.42, place + 0.42], [row["printed %"]] * 2, color=VERMILION, lw=2.5)
            right.text(place, 3, f"{row['test %']:.1f}", ha="center", fontsize=9)
        right.plot([], [], color=VERMILION, lw=2.5, label="printed by the authors")
        names = [", ".join(filter(None, (row["network"], row["added"]))) for row in rows]
        right.set_xticks(range(len(rows)), names, fontsize=8, rotation=35, ha="right")
        for number, data in enumerate(DATA):
            right.text((number + 0.5) * len(NETWORKS) - 0.5, 103, f"places {data}", ha="center", fontsize=9)
        right.set(ylabel="% right", ylim=(0, 122))
        right.set_title("test part; here and left: mean and range over seeds", loc="left")
        right.legend(fontsize=8, loc="upper right")
    return figure


def main() -> None:
    experiments.start(all_cores=True)
    options = experiments.arguments(__doc__, "results/mnist_1d", seeds=4, epochs=100)
    rows, curves, shown = [], {}, None
    for data, shuffled in DATA.items():
        by_part = signals(shuffled)
        shown = shown or by_part
        for (name, added), network in NETWORKS.items():
            population = train(f"{name} {added}, {data}", network, by_part, options.seeds, options.epochs)
            rows.append(row(data, name, added, population, by_part, options.seeds))
            members = chosen(population, options.seeds)[1]
            if not shuffled:
                curves[name, added] = population.history.validation_accuracy[:, members]
    above = sum(row["verdict"] != "LOWER" for row in rows)
    edges = [
        ", ".join(filter(None, (row["network"], row["added"], row["places"])))
        for row in rows
        if experiments.at_edge(row["rate"], RATES)
    ]
    text = [
        f"{above} of {len(rows)} networks come within {NEAR} points of what Greydanus and Kobak print, or above it, "
        f"trained on {TRAINED_ON} of the 4000 signals; each number is the mean of {options.seeds} seeds.",
        f"seconds: of {len(RATES) * options.seeds} networks and {options.epochs} epochs, with compilation; epoch: the "
        "median of the best ones. printed %: in their README, of the network without what is added; their log %: where "
        "the one run ends that their notebook (quickstart.ipynb) keeps, trained on all 4000.",
        f"The best rate is the first or the last tried for: {'; '.join(edges) or 'none'}.",
    ]
    experiments.write(options.out, rows, draw(rows, curves, shown), experiments.paragraphs(*text))


if __name__ == "__main__":
    main()
