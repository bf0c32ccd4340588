#!/usr/bin/env python
"""Claims of the texts, tested: each claim next to the finding of its own small experiment, with several seeds.

    python scripts/claims.py --seeds 23 --epochs 30
    python scripts/claims.py --only f,g --out results/claims_f_g

A finding is one number for each seed, and what the claim says about it, such as "> 6". The verdict follows a rule: the
interval from `low` to `high` contains the median with a confidence of at least 90 % (by order statistics, with no
assumption on the distribution). The claim "holds" where the whole interval is as claimed, is "contradicted" where none
of it is, and is "undecided" otherwise. It takes 2 or more seeds, and 5 or more for a verdict. Where rates are compared,
each seed is judged at the rate that is best by the median of the other seeds, so that no seed chooses for itself. Where
a test loss is reported, the validation loss chooses the rate; claims on the speed of training (a, e, second half of g)
choose and report the training loss.

All CPU cores are used; the environment variable JAX_NUM_CPU_DEVICES sets another number.
"""

import argparse
import functools
import itertools
import math
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

TRAINED_ON, BATCH, WIDTH = 1024, 32, 32  # training examples (the others validate), a batch, a hidden layer
LOSS = fnn.losses.cross_entropy()
RATES, MODERATE, LARGE = 2.0 ** np.arange(-5, 4), 0.1, 1.0  # the grid; the rates of claim c
INITIALIZERS = {"sigmoid": "xavier_normal", "tanh": "xavier_normal"}  # the others: he_normal
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE)
OF_VERDICT = {"holds": GREEN, "contradicted": VERMILION, "undecided": "#808080"}

# The rule ------------------------------------------------------------------------------------------------------------


def interval(lower, upper=None) -> tuple[float, float, float]:
    """Returns the median of the seeds' values, and bounds of the true median with a confidence of at least 90 %.

    A value that is only known to be between two bounds is given in `lower` and `upper`; the median is then that of the
    lower bounds. nan is a value of which nothing is known. With fewer than 5 values the bounds are -inf and inf. (David
    and Nagaraja 2003, Order Statistics, 7.1.)
    """
    lower = np.asarray(lower, np.float64)
    upper = lower if upper is None else np.asarray(upper, np.float64)
    tail = np.cumsum([math.comb(lower.size, k) for k in range(lower.size)]) / 2.0**lower.size
    out = int(np.sum(tail <= 0.05))  # the out-th smallest and the out-th largest value are the bounds
    median = float(np.nanmedian(lower)) if np.isfinite(lower).any() else math.nan
    if out == 0:
        return median, -math.inf, math.inf
    low = np.sort(np.nan_to_num(lower, nan=-np.inf, posinf=np.inf, neginf=-np.inf))[out - 1]
    high = np.sort(np.nan_to_num(upper, nan=np.inf, posinf=np.inf, neginf=-np.inf))[-out]
    return median, float(low), float(high)


def verdict(claimed: str, low: float, high: float) -> str:
    """Says whether a claim such as "> 6" or "< 0.05" holds on an interval."""
    sense, bound = claimed.split()
    if sense == "<":
        low, high, bound = -high, -low, -float(bound)
    return "holds" if low > float(bound) else "contradicted" if high <= float(bound) else "undecided"


def judge(finding: str, claimed: str, lower, upper=None) -> dict:
    """Makes a row of the table. A single number in `lower` is exact: no seed takes part in it."""
    exact = np.ndim(lower) == 0
    median, low, high = (float(lower),) * 3 if exact else interval(lower, upper)
    numbers = {"median": median, "low": low, "high": high, "verdict": verdict(claimed, low, high)}
    return {"finding": finding, "claimed": claimed, **numbers}


# Training at every rate, and the choice of one -----------------------------------------------------------------------


def best_by_others(scores: np.ndarray) -> np.ndarray:
    """Returns, for each seed, the index of the rate with the lowest median score (rates, seeds) of the others."""
    return np.array([experiments.best_rate(np.delete(scores, seed, axis=1)) for seed in range(scores.shape[1])])


def at_best(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Returns each seed's values at its rate, from values (rates, seeds, ...)."""
    return values[best, np.arange(len(best))]


def rate_text(rates: np.ndarray, best: np.ndarray) -> str:
    """Writes the median of the seeds' rates, with ! where it is the first or last of the grid."""
    place = int(np.median(best))
    return f"{rates[place]:.2g}" + "!" * (place in (0, len(rates) - 1))


class Runs(NamedTuple):
    """Arrays (rates, seeds, epochs) of one network; training loss as in `History`, the rest after each epoch."""

    rates: np.ndarray
    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    accuracy: np.ndarray

    def last(self, of: str = "test", by: str = "validation") -> tuple[np.ndarray, str]:
        """Returns each seed's last value, at the rate that has the lowest last `by` of the other seeds, and
        that rate.
        """
        best = best_by_others(getattr(self, by)[..., -1])
        return at_best(getattr(self, of)[..., -1], best), rate_text(self.rates, best)


@functools.cache
def digits() -> tuple:
    """Returns training, validation and test part: pairs of inputs (Q, 64) and targets (Q, 10)."""
    task = experiments.load("digits")
    return *task.divided(TRAINED_ON), task.test


def network(activation: str, *widths: int) -> fnn.Network:
    """A chain of 64 inputs, hidden layers of these widths, and a softmax layer of 10."""
    initializer = INITIALIZERS.get(activation, "he_normal")
    return fnn.multilayer((64, *widths, 10), (activation,) * len(widths) + ("softmax",), initializer=initializer)


def population(net, rates, seeds: int, epochs: int, optimizer: Any = "gd", *, data=None, track=(), batch=BATCH, **own):
    """Trains every rate with every seed, which varies fastest, on the same batches. own: further hyperparameters."""
    members = training.grid(learning_rate=np.asarray(rates, float), seed=range(seeds), **own)
    if "examples" in own:
        members["subset"] = members["seed"]
    training_part, held_out, _ = digits()
    return training.fit_population(
        net,
        LOSS,
        optimizer,
        members,
        data or training_part,
        key=jax.random.key(0),
        epochs=epochs,
        validation=held_out,
        plan=training.minibatch(batch),
        track=track,
    )


@functools.cache  # the same function for equal networks, so that a program is compiled once
def test_measure(net) -> Callable:
    return lambda params, inputs, targets: training.evaluate(net, LOSS, params, *digits()[2])


def trained(net, rates, seeds: int, epochs: int, optimizer: Any = "gd", **settings) -> Runs:
    history = population(net, rates, seeds, epochs, optimizer, track={"test": test_measure(net)}, **settings).history
    columns = history.training_loss, history.validation_loss, *history.tracked["test"]
    return Runs(np.asarray(rates), *(np.asarray(x).T.reshape(len(rates), seeds, epochs) for x in columns))


@functools.cache
def by_activation(activation: str, depth: int, seeds: int, epochs: int, optimizer: str = "gd") -> Runs:
    """Trains the networks of claims a and b, for three times the epochs, as sigmoid is slow."""
    rates = {"gd": RATES, "adam": RATES / 64}[optimizer]
    return trained(network(activation, *(WIDTH,) * depth), rates, seeds, 3 * epochs, optimizer)


@functools.cache
def statistics(activation: str, seeds: int, epochs: int) -> dict[str, Any]:
    """Returns {layer: LayerStatistics (3 rates, seeds, epochs)} of four hidden layers; rate 0, the first,
    is untrained.
    """
    net, rates = network(activation, *(WIDTH,) * 4), (0.0, MODERATE, LARGE)
    found = population(net, rates, seeds, epochs, track=("layer_statistics",)).history.tracked["layer_statistics"]
    return jax.tree.map(lambda x: np.asarray(x).T.reshape(len(rates), seeds, epochs), found)


def draw_intervals(axis, rows: list[dict]) -> None:
    """Draws each row's interval in the colour of its verdict, and a tick at the claimed bound."""
    for place, row in enumerate(rows):
        color, bound = OF_VERDICT[row["verdict"]], float(row["claimed"].split()[1])
        known = [x for x in (row["low"], row["high"]) if np.isfinite(x)]
        axis.plot(known, [place] * len(known), color=color, lw=3, solid_capstyle="butt")
        axis.plot(row["median"], place, "o" if np.isfinite(row["high"]) else ">", color=color)
        axis.plot(bound, place, "|", color="black", ms=14)
    axis.set_yticks(range(len(rows)), [textwrap.fill(row["finding"], 38) for row in rows], fontsize=7.5)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xscale="log", xlabel="median (> at least) and interval; | what is claimed")
    axis.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()


def draw_band(axis, x, values: np.ndarray, color: str, label: str, style: str = "-") -> None:
    """Draws median and quartiles over the seeds, the first axis of `values`."""
    low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=0)  # nan: a seed that diverged
    axis.plot(x, middle, style, color=color, label=label)
    axis.fill_between(x, low, high, color=color, alpha=0.2, lw=0)


class Claim(NamedTuple):
    """The claim's place in the texts, its words, and its experiment (seeds, epochs, axis) -> rows, which draws its
    panel. The experiment's docstring says what is held equal.
    """

    where: str
    says: str
    test: Callable


CLAIMS: dict[str, Claim] = {}


def claim(letter: str, where: str, says: str) -> Callable:
    def add(test: Callable) -> Callable:
        CLAIMS[letter] = Claim(where, says, test)
        return test

    return add


# The claims ----------------------------------------------------------------------------------------------------------

GOALS = 0.1, 0.01  # training losses to be reached


def updates_to(goal: float, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns bounds on the updates until the training loss (..., epochs) is `goal`.

    They are equal where it comes there, and else the budget and infinity. An epoch's loss is the mean over its updates,
    and counts at its middle; between two epochs, the logarithm of the loss is interpolated.
    """
    epochs, log = loss.shape[-1], np.log(np.nan_to_num(loss, nan=1e30, posinf=1e30) / goal)
    first = np.argmax(log <= 0, axis=-1)[..., None]
    here, before = (np.take_along_axis(log, np.maximum(first - back, 0), -1)[..., 0] for back in (0, 1))
    since = np.divide(here, here - before, out=np.zeros_like(here), where=here < before)
    epoch, came = first[..., 0] + 0.5 - since, (log <= 0).any(axis=-1)
    return tuple(np.where(came, epoch, never) * (TRAINED_ON // BATCH) for never in (epochs, np.inf))


@claim(
    "a",
    'Lecture 2, "Gradient Computation: ReLU"',
    "Converge much faster than sigmoid and tanh in practice (6x faster)",
)
def relu_is_faster(seeds: int, epochs: int, axis) -> list[dict]:
    """digits, hidden layers of 32, the same batches of 32; each activation with its usual initializer (He for relu,
    else Xavier), at its best rate, for 3 times the epochs. A run that never reaches the training loss counts as at
    least the budget.
    """
    rows = []
    for (depth, optimizer), goal in itertools.product(((1, "gd"), (2, "gd"), (4, "gd"), (4, "adam")), GOALS):
        needed, rates = {}, {}
        for activation in ("relu", "tanh", "sigmoid"):
            runs = by_activation(activation, depth, seeds, epochs, optimizer)
            least, most = updates_to(goal, runs.training)
            # Where all rates fail, the one that comes nearest is taken.
            best = best_by_others(np.where(np.isfinite(most), least, least * (1 + runs.training[..., -1])))
            needed[activation], rates[activation] = (
                (at_best(least, best), at_best(most, best)),
                rate_text(runs.rates, best),
            )
        for other in ("tanh", "sigmoid"):
            ratio = needed[other][0] / needed["relu"][1], needed[other][1] / needed["relu"][0]
            said = f"updates of {other} ({rates[other]}) / relu ({rates['relu']})"
            said = f"{depth} hidden, {optimizer}, loss {goal:g}: {said}"
            rows += [judge(said, claimed, *ratio) for claimed in ("> 1", "> 6")]
    draw_intervals(axis, rows[1::2])
    return rows


@claim(
    "b",
    'Lecture 2, "In Practice"',
    "Use ReLU, be careful with the learning rate; Tryout Leaky ReLU, ELU and Maxout; Tryout Tanh with low expectation; "
    "Never use sigmoid",
)
def never_sigmoid(seeds: int, epochs: int, axis) -> list[dict]:
    """the same as in a, by gd. Loss and accuracy on the test part after the last epoch. Maxout has twice the hidden
    weights.
    """
    rows, claims = [], {"sigmoid": "> 1", "tanh": "> 1", "leaky_relu": "< 1", "elu": "< 1", "maxout": "< 1"}
    for depth in (1, 4):
        runs = {name: by_activation(name, depth, seeds, epochs) for name in ("relu", *claims)}
        loss, right = ({name: own.last(of) for name, own in runs.items()} for of in ("test", "accuracy"))
        for name, claimed in claims.items():
            said = f"{depth} hidden: test loss of {name} ({loss[name][1]}) / relu ({loss['relu'][1]})"
            rows.append(judge(said, claimed, loss[name][0] / loss["relu"][0]))
        said = f"{depth} hidden: test accuracy, relu - sigmoid, points"
        rows.append(judge(said, "> 0", 100 * (right["relu"][0] - right["sigmoid"][0])))
        # The highest rate that learns. Where it is the grid's last, a higher one may learn too.
        least = [
            np.max(RATES[:, None] * (runs[name].validation[..., -1] < math.log(10)), axis=0, initial=RATES[0])
            for name in ("tanh", "relu")
        ]
        most = [np.where(rate == RATES[-1], np.inf, rate) for rate in least]
        said = f"{depth} hidden: highest rate that learns, tanh / relu"
        rows.append(judge(said, "> 1", least[0] / most[1], most[0] / least[1]))
    draw_intervals(axis, [row for row in rows if "points" not in row["finding"]])
    return rows


@claim(
    "c",
    'Lecture 2, "ReLU", "Tanh Unit", "Leaky ReLU", "ELU"',
    'ReLU: Tends to produce units with sparse activities; Not zero-centered; Fragile during training and can "die"; '
    "Leaky ReLU: Will not die; tanh: zero-centered; ELU: Almost zero-centered",
)
def units(seeds: int, epochs: int, axis) -> list[dict]:
    """digits, four hidden layers of 32, the same batches and rates; layer_statistics over the training examples, mean
    and deviation over all units of the last hidden layer. A unit is dead where its slope is 0 on every example.
    """
    found = {name: statistics(name, seeds, epochs) for name in ("tanh", "relu", "leaky_relu", "elu")}
    dead = {name: np.mean([own[f"layer{m}"].dead for m in range(1, 5)], axis=0) for name, own in found.items()}
    last = {name: own["layer4"] for name, own in found.items()}
    rows = []
    for place, when in enumerate(("untrained", f"rate {MODERATE:g}")):
        off = {
            name: np.abs(own.activation_mean[place, :, -1] / own.activation_deviation[place, :, -1])
            for name, own in last.items()
        }
        said = f"{when}: share of zeros among outputs of relu"
        rows.append(judge(said, "> 0.5", last["relu"].saturated[place, :, -1]))
        for name, claimed in {"relu": "> 0.2", "tanh": "< 0.2", "elu": "< 0.2"}.items():
            rows.append(judge(f"{when}: |mean| / deviation of outputs of {name}", claimed, off[name]))
        rows.append(judge(f"{when}: the same, relu / elu", "> 1", off["relu"] / off["elu"]))
    for name, claimed in {"relu": "> 0", "leaky_relu": "< 0.001"}.items():
        for place, rate in ((1, MODERATE), (2, LARGE)):
            said = f"share of {name} units that died in training at rate {rate:g}"
            rows.append(judge(said, claimed, dead[name][place, :, -1] - dead[name][0, :, -1]))
    for color, name in zip(COLORS, ("relu", "leaky_relu"), strict=False):
        for place, rate in ((1, MODERATE), (2, LARGE)):
            draw_band(
                axis, np.arange(1, epochs + 1), dead[name][place], color, f"{name}, rate {rate:g}", "-:"[place % 2]
            )
    axis.set(xlabel="epoch", ylabel="share of dead units")
    axis.legend(fontsize=8)
    return rows


@claim(
    "d",
    'Kordecki, "Hidden layers"',
    "We use more neurons near input layer; The later network layers will tend to have larger local gradients than the "
    "earlier layers",
)
def wide_near_input(seeds: int, epochs: int, axis) -> list[dict]:
    """digits, each network at its best rate; 64-32 against 39-80 (parameters within 1 %) and against 32-64 (as many
    neurons, fewer parameters). Local gradients are s = dF/dn in four hidden layers of equal width.
    """
    rows = []
    for activation in ("tanh", "relu"):
        loss, said = {}, {}
        for widths in ((64, 32), (39, 80), (32, 64)):
            net = network(activation, *widths)
            count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0))))
            loss[widths], rate = trained(net, RATES, seeds, epochs).last()
            said[widths] = f"{widths[0]}-{widths[1]} ({count} parameters, rate {rate})"
        for widths in ((39, 80), (32, 64)):
            ratio = loss[widths] / loss[64, 32]
            rows.append(judge(f"{activation}: test loss of {said[widths]} / {said[64, 32]}", "> 1", ratio))
    for activation in ("sigmoid", "tanh", "relu"):
        found = statistics(activation, seeds, epochs)
        for place, when in enumerate(("untrained", f"trained at {MODERATE:g}")):
            ratio = np.divide(*(found[layer].sensitivity[place, :, -1] for layer in ("layer4", "layer1")))
            rows.append(judge(f"{activation}, {when}: |s| of hidden layer 4 / layer 1", "> 1", ratio))
    draw_intervals(axis, rows)
    return rows


def weights_along(optimizer, gradients: np.ndarray) -> np.ndarray:
    """Returns the weight (seeds, updates + 1), from 0, under given gradients (seeds, updates); float64."""
    with jax.enable_x64(True):
        initial = optimizer.init({"w": jnp.zeros((), jnp.float64)})

        def step(state, g):
            state = optimizer.update(state, {"w": g})
            return state, state.params["w"]

        run = jax.jit(jax.vmap(lambda g: jax.lax.scan(step, initial, g)[1]))
        return np.pad(np.asarray(run(jnp.asarray(gradients, jnp.float64))), ((0, 0), (1, 0)))


@claim(
    "e",
    'Kordecki, "Rprop"',
    "Why Rprop doesn't work with mini-batches? ... 0.1 on 9 mini-batches, and the gradient of -0.9 on 10th mini-batch. "
    "What we'd like is to those gradients to roughly cancel each other out; AdaGrad: used to mitigate this problem",
)
def rprop_on_batches(seeds: int, epochs: int, axis) -> list[dict]:
    """one weight, which is given the ten gradients in random order 20 times, whatever its value; the last ten times
    count. Then digits, each method at its best rate or first step, by the training loss of the last epoch, the same
    batches.
    """
    rprop = functools.partial(optimizers.rprop, minibatches=True)
    methods = {
        "gd": optimizers.gd(0.01),
        "adagrad": optimizers.adagrad(0.01),
        "rmsprop": optimizers.rmsprop(0.01),
        "rmsprop, decay 0.99": optimizers.rmsprop(0.01, 0.99),
        "rprop": rprop(0.01),
    }
    generator, rows = np.random.default_rng(0), []
    for odd in (-0.9, -1.1):
        cycles = np.broadcast_to([0.1] * 9 + [odd], (seeds, 20, 10))
        streams = generator.permuted(cycles, axis=-1).reshape(seeds, -1)
        for color, (name, optimizer) in zip(COLORS, methods.items(), strict=False):
            paths = weights_along(optimizer, streams)
            late = np.diff(paths)[:, 100:]
            share = np.sum(late, axis=1) / np.sum(np.abs(late), axis=1)
            if odd == -0.9:
                axis.plot(paths[0], color=color, label=f"{name}, one seed")
                said = f"nine of +0.1, one of -0.9, {name}: |move| / path"
                rows.append(judge(said, "> 0.05" if name == "rprop" else "< 0.05", np.abs(share)))
            else:
                said = f"nine of +0.1, one of -1.1 (w should rise), {name}: move / path"
                rows.append(judge(said, "< 0" if name == "rprop" else "> 0", share))
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set(xlabel="update, in each ten nine of +0.1 and one of -0.9", ylabel="weight")
    axis.legend(fontsize=8)
    steps = 2.0 ** np.arange(-14, 1, 2)
    contest = {
        "rprop": (steps, lambda learning_rate: rprop(learning_rate)),
        "gd": (RATES, "gd"),
        "rmsprop": (steps, "rmsprop"),
    }
    for batch, length, claimed in ((BATCH, epochs, "> 1"), (TRAINED_ON, 5 * epochs, "< 1")):
        loss = {
            name: trained(network("tanh", WIDTH), rates, seeds, length, optimizer, batch=batch).last(
                "training", "training"
            )
            for name, (rates, optimizer) in contest.items()
        }
        for other in ("gd", "rmsprop"):
            rates = f"rprop ({loss['rprop'][1]}) / {other} ({loss[other][1]})"
            said = f"digits, batches of {batch}: training loss of {rates}"
            rows.append(judge(said, claimed, loss["rprop"][0] / loss[other][0]))
    return rows


@claim(
    "f",
    'blog, Eq. 3; Kordecki, "Momentum"',
    "the effective learning rate is eta / (1 - alpha) >> eta for all alpha in [0, 1); where the derivative has "
    "opposite signs on consecutive iterations, the sum shrinks",
)
def momentum_rate(seeds: int, epochs: int, axis) -> list[dict]:
    """one weight, 4000 updates, float64: exact numbers, no seeds. The gradients are all 1, or 1 and -1 in turn."""
    rows, eta, updates = [], 0.01, 4000
    streams = np.stack([np.ones(updates), (-1.0) ** np.arange(updates)])
    for color, decay in zip(COLORS, (0.0, 0.5, 0.9, 0.99), strict=False):
        effective = np.abs(np.diff(weights_along(optimizers.momentum(eta, decay), streams))) / eta
        effective = np.round(effective, 9)  # differences of weights, rounded to their precision
        constant, opposite = effective[:, -1]
        for steps, style in zip(effective[:, :400], "-:", strict=True):
            axis.plot(np.arange(1, 401), steps, style, color=color, label=f"alpha {decay:g}" if style == "-" else None)
        said = f"alpha {decay:g}, constant gradients: effective rate / eta"
        rows.append(judge(said, "> 1", constant))
        if decay:
            rows.append(judge(f"{said}, over 1 / (1 - alpha): error", "< 1e-8", abs(constant * (1 - decay) - 1)))
            said = f"alpha {decay:g}, equal and opposite gradients: effective rate / eta"
            rows.append(judge(said, "< 1", opposite))
            rows.append(judge(f"{said}, over 1 / (1 + alpha): error", "< 1e-8", abs(opposite * (1 + decay) - 1)))
    axis.set(
        xscale="log", yscale="log", xlabel="update (dotted: equal and opposite gradients)", ylabel="|step| / (eta |g|)"
    )
    axis.legend(fontsize=8)
    return rows


FREQUENT, RARE, TRUE = 0.9, 0.02, 3.0  # how often the two features are present, and the weight of both


def sparse_run(make: Callable, net, rate, key) -> tuple:
    """Returns all states of one pass over 2000 examples by tens, and the losses of two parts of 1000 others.

    A feature is 0 or has a random sign; the label is drawn from a logistic model.
    """
    present, sign, label = jax.random.split(key, 3)
    x = jax.random.bernoulli(present, jnp.array([FREQUENT, RARE]), (4000, 2)).astype(jnp.float32)
    x *= jax.random.rademacher(sign, x.shape, jnp.float32)
    t = jax.random.bernoulli(label, jax.nn.sigmoid(TRUE * jnp.sum(x, axis=1, keepdims=True))).astype(jnp.float32)
    loss, optimizer = fnn.losses.binary_cross_entropy("mean"), make(rate)

    def step(state, batch):
        state = optimizer.update(state, fnn.value_and_grad(net, loss)(state.params, *batch)[1])
        return state, state

    batches = x[:2000].reshape(200, 10, 2), t[:2000].reshape(200, 10, 1)
    last, states = jax.lax.scan(step, optimizer.init(net.init(key)), batches)
    return states, *(training.evaluate(net, loss, last.params, x[of:][:1000], t[of:][:1000])[0] for of in (2000, 3000))


@claim(
    "g",
    'Kordecki, "Adagrad"',
    "smaller updates for parameters associated with frequently occurring features, larger updates for infrequent; "
    "There are case that the effective learning rate is decreased too fast",
)
def rare_features(seeds: int, epochs: int, axis) -> list[dict]:
    """logistic regression on two features, present in 90 % and 2 % of the examples, of equal true weights, one pass
    over 2000 examples by tens; then digits, by the training loss. Each method at its best rate, the same batches.
    """
    net = fnn.multilayer((2, 1), ("sigmoid",), initializer="zeros", bias="none")
    keys, found = jax.random.split(jax.random.key(0), seeds), {}
    for name, make in {"adagrad": optimizers.adagrad, "gd": optimizers.gd}.items():
        rates = 2.0 ** np.arange(-4, 6)
        run = jax.vmap(jax.vmap(functools.partial(sparse_run, make, net), (None, 0)), (0, None))
        states, chooses, reports = jax.tree.map(np.asarray, jax.jit(run)(jnp.asarray(rates, jnp.float32), keys))
        best = best_by_others(chooses)
        found[name] = (
            jax.tree.map(functools.partial(at_best, best=best), states),
            at_best(reports, best),
            rate_text(rates, best),
        )
    of_input = {name: own[0].params["layer1"]["weights"]["input"][:, -1, 0] for name, own in found.items()}
    total = found["adagrad"][0].sum_of_squares["layer1"]["weights"]["input"][:, :, 0]  # (seeds, updates, 2)
    effective, (adagrad, gd) = 1 / np.sqrt(1e-10 + total), (found[name][2] for name in ("adagrad", "gd"))
    rows = [
        judge(
            "rate of the rare feature's weight / the frequent's, after 200 updates",
            "> 1",
            effective[:, -1, 1] / effective[:, -1, 0],
        ),
        judge(
            f"rare weight (true: {TRUE:g}), adagrad ({adagrad}) - gd ({gd})",
            "> 0",
            of_input["adagrad"][:, 1] - of_input["gd"][:, 1],
        ),
        judge(f"test loss of gd ({gd}) / adagrad ({adagrad})", "> 1", found["gd"][1] / found["adagrad"][1]),
    ]
    for place, name in enumerate(("frequent", "rare")):
        draw_band(axis, np.arange(1, 201), effective[..., place], COLORS[place], f"{name} feature")
    axis.set(xscale="log", yscale="log", xlabel="update", ylabel="AdaGrad's rate / eta", ylim=(None, 100))
    axis.legend(fontsize=8)
    for scale in (1.0, 4.0):
        rates = 2.0 ** np.arange(-10, 1)
        loss = {
            name: trained(network("tanh", WIDTH), rates, seeds, epochs, name, initial_scale=scale).last(
                "training", "training"
            )
            for name in ("adagrad", "rmsprop", "adam")
        }
        for other in ("rmsprop", "adam"):
            said = f"digits, initial weights x {scale:g}: training loss of adagrad ({loss['adagrad'][1]}) / {other} "
            rows.append(judge(f"{said}({loss[other][1]})", "> 1", loss["adagrad"][0] / loss[other][0]))
    return rows


@claim(
    "h",
    'Kordecki, "What is a Batch?"',
    "Smaller batch sizes are noisy, offering a regularizing effect and lower generalization error",
)
def small_batches(seeds: int, epochs: int, axis) -> list[dict]:
    """digits, 256 examples of which 20 % are labelled wrongly, each seed its own; each batch size at its best rate.
    Equal updates give large batches more epochs, and equal epochs give small batches more updates. As these are
    confounded, both are reported, and also each run at the epoch with its lowest validation loss.
    """
    found, sizes, examples = {}, (4, 16, 64, 256), 256
    updates = epochs * examples // 16  # those of batches of 16 in `epochs`
    budgets = (f"equal updates, {updates}", f"equal epochs, {epochs}", "each run's best epoch")
    for size in sizes:
        same = max(1, updates * size // examples)
        runs = trained(
            network("tanh", WIDTH),
            2.0 ** np.arange(-8, 3),
            seeds,
            max(epochs, same),
            batch=size,
            examples=examples,
            label_noise=0.2,
        )
        early = np.nan_to_num(runs.validation, nan=np.inf).argmin(axis=-1)
        for budget, epoch in zip(
            budgets, (np.full_like(early, same - 1), np.full_like(early, epochs - 1), early), strict=True
        ):
            chooses, test, right = (
                np.take_along_axis(of, epoch[..., None], -1)[..., 0]
                for of in (runs.validation, runs.test, runs.accuracy)
            )
            best = best_by_others(chooses)
            found[budget, size] = at_best(test, best), 100 * at_best(right, best), rate_text(runs.rates, best)
    rows = []
    for color, budget in zip(COLORS, budgets, strict=False):
        loss, right, rate = ({size: found[budget, size][part] for size in sizes} for part in range(3))
        for large in (64, 256):
            said = f"{budget}: test loss of batches of {large} ({rate[large]}) / of 4 ({rate[4]})"
            rows.append(judge(said, "> 1", loss[large] / loss[4]))
        said = f"{budget}: test accuracy of batches of 4 - of 256, points"
        rows.append(judge(said, "> 0", right[4] - right[256]))
        draw_band(axis, sizes, np.stack(list(loss.values()), axis=1), color, budget)
    axis.set(xscale="log", xlabel="batch size", ylabel="test loss")
    axis.set_xticks(sizes, sizes)
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return rows


@claim(
    "i",
    "CSE 475, 19.70.1",
    "It is always feared that performance of the neural networks could be highly dependent on this lucky "
    "initialization. (Is it really true? Did you find so?)",
)
def lucky_start(seeds: int, epochs: int, axis) -> list[dict]:
    """digits; one of initial weights, order of the batches and split of the data is drawn 8 times while the other two
    are fixed; the deviation over the 8 is one number for each seed. Initial scales are each at their best rate.
    """
    net, scales = network("tanh", WIDTH), (0.01, 0.1, 1.0, 3.0, 10.0)
    x, t = (jnp.concatenate([part[i] for part in digits()]) for i in (0, 1))
    train = training.pure_fit(net, LOSS, optimizers.gd(0.25), epochs=epochs, plan=training.minibatch(BATCH))

    def accuracy(start, order, split):
        rows = jax.random.permutation(split, len(x))
        for_training, others = rows[:TRAINED_ON], rows[TRAINED_ON:]
        params = train(order, x[for_training], t[for_training], params=net.init(start)).params
        return training.evaluate(net, LOSS, params, x[others], t[others])[1]

    keys = jax.random.split(jax.random.key(1), (3, seeds, 8))
    varied = jnp.eye(3, dtype=bool)[:, :, None, None]  # (which varies, which key, seeds, 8)
    keys = jnp.where(varied, keys, keys[:, :, :1])
    found = jax.jit(jax.vmap(jax.vmap(jax.vmap(accuracy))))(*(keys[:, key] for key in range(3)))
    start, order, split = 100 * np.std(np.asarray(found), axis=-1, ddof=1)
    rows = [
        judge("deviation of test accuracy by initial weights, points", "> 1", start),
        judge("the same / by the order of the batches", "> 1", start / order),
        judge("the same / by which examples are trained on", "> 1", start / split),
    ]
    found = {scale: trained(net, RATES, seeds, epochs, initial_scale=scale) for scale in scales}
    loss, right = ({scale: runs.last(of) for scale, runs in found.items()} for of in ("test", "accuracy"))
    apart = {scale: np.abs(own / np.median(own) - 1) for scale, (own, _) in loss.items()}
    for place, (scale, (own, rate)) in enumerate(right.items()):
        axis.plot(np.full(seeds, place), 100 * own, "o", color=COLORS[0], alpha=0.5)
        if scale != 1:
            said = f"initial weights x {scale:g} ({rate})"
            rows += [
                judge(f"{said}: accuracy lost against x 1, points", "> 1", 100 * (right[1.0][0] - own)),
                judge(
                    f"{said}: relative distance from the seeds' median test loss / that of x 1",
                    "> 1",
                    apart[scale] / np.median(apart[1.0]),
                ),
            ]
    axis.set_xticks(range(len(scales)), [f"x {scale:g}" for scale in scales])
    axis.set(xlabel="initial weights (1: Xavier), each at its best rate", ylabel="test accuracy, %; a dot a seed")
    said = "XOR, 2-2-1 tanh: share of starts that never solve it, by groups of 16"
    return [*rows, judge(said, "> 0.05", unsolved(seeds))]


def unsolved(groups: int) -> np.ndarray:
    """Returns the share of 16 starts that 4000 updates do not teach XOR, at the best of four rates, for each group."""
    net = fnn.multilayer((2, 2, 1), ("tanh", "sigmoid"), initializer="xavier_normal")
    loss, rates = fnn.losses.binary_cross_entropy("mean"), jnp.array([0.1, 0.3, 1.0, 3.0])
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    t = np.array([[0], [1], [1], [0]], np.float32)

    def fails(rate, key):
        train = training.pure_fit(net, loss, optimizers.gd(rate), epochs=4000, plan=training.batch())
        return jnp.any((net.apply(train(key, x, t).params, x) > 0.5) != (t > 0.5))

    keys = jax.random.split(jax.random.key(2), 16 * groups)
    failed = np.asarray(jax.jit(jax.vmap(jax.vmap(fails, (None, 0)), (0, None)))(rates, keys), float)
    failed = failed.reshape(len(rates), groups, 16).mean(axis=-1)
    return at_best(failed, best_by_others(failed))


def smoothness(filters: np.ndarray) -> np.ndarray:
    """Returns the mean product of neighbouring weights over the mean square of filters (..., 8, 8), means removed."""
    filters = filters - filters.mean(axis=(-2, -1), keepdims=True)
    neighbours = filters[..., 1:, :] * filters[..., :-1, :], filters[..., 1:] * filters[..., :-1]
    return np.mean([own.mean(axis=(-2, -1)) for own in neighbours], axis=0) / np.mean(filters**2, axis=(-2, -1))


def linear_accuracy(features: tuple, targets: tuple) -> float:
    """Returns the test accuracy, %, of linear least squares (ridge 0.01) on (training, test) features (Q, S)."""
    a, b = (np.column_stack([own, np.ones(len(own))]).astype(np.float64) for own in features)
    weights = np.linalg.solve(a.T @ a + 0.01 * np.eye(a.shape[1]), a.T @ targets[0])
    return 100 * float(np.mean((b @ weights).argmax(axis=1) == targets[1].argmax(axis=1)))


@claim(
    "j",
    'Kordecki, "Hidden layers"',
    'The hidden neurons act as feature detectors: gradually "discover" the salient features that characterize the '
    "training data",
)
def feature_detectors(seeds: int, epochs: int, axis) -> list[dict]:
    """the same 32 hidden neurons before and after training, seed by seed; linear classifiers by least squares."""
    net, (part, _, test) = network("tanh", WIDTH), digits()
    hidden = jax.jit(lambda params, x: net.forward(params, x).activations["layer1"])
    rows, low = [], [targets.argmax(axis=1) < 5 for _, targets in (part, test)]
    every = [np.ones(len(own), bool) for own in low]
    for said, own, others in (("all digits", every, every), ("digits 0 to 4", low, [~few for few in low])):
        data = part[0][own[0]], part[1][own[0]]
        found = population(net, (0.0, 0.25), seeds, epochs, data=data)
        x, t = ([of[i][rows_of] for of, rows_of in zip((part, test), others, strict=True)] for i in (0, 1))
        params = [found.params(member) for member in range(2 * seeds)]
        scores = [linear_accuracy([np.asarray(hidden(each, of)) for of in x], t) for each in params]
        before, after = np.reshape(scores, (2, seeds))
        which = f"trained on {said}, linear classifier of {'digits 5 to 9' if own is low else said}, points: "
        rows.append(judge(f"{which}trained hidden outputs - untrained", "> 0", after - before))
        rows.append(judge(f"{which}trained hidden outputs - pixels", "> 0", after - linear_accuracy(x, t)))
        if own is every:
            filters = np.stack([each["layer1"]["weights"]["input"] for each in params]).reshape(2, seeds, WIDTH, 8, 8)
            before, after = np.median(smoothness(filters), axis=-1)
            rows.append(
                judge("correlation of neighbouring first-layer weights, trained - untrained", "> 0", after - before)
            )
            draw_filters(axis, filters[:, 0])
    return rows


def draw_filters(axis, filters: np.ndarray) -> None:
    """Draws filters (2, 32, 8, 8), each scaled by its largest weight: the untrained ones above the trained."""
    filters = filters / np.abs(filters).max(axis=(-2, -1), keepdims=True)
    tiles = np.pad(filters, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan).reshape(2, 4, 8, 9, 9)
    blocks = np.pad(tiles.swapaxes(2, 3).reshape(2, 36, 72), ((0, 0), (0, 4), (0, 0)), constant_values=np.nan)
    axis.imshow(blocks.reshape(80, 72)[:-5, :-1], cmap="RdBu_r", vmin=-1, vmax=1)
    axis.grid(False)
    axis.set_xticks([])
    axis.set_yticks([17, 57], ["untrained", "trained"])


# The page ------------------------------------------------------------------------------------------------------------

ELSEWHERE = (
    'k. "SGD approaches to the target point faster than gradient descent; Training speed: mini-batch > SGD > Gradient '
    'Descent" (Lecture 2): scripts/minibatch_experiments.py, results/minibatch_experiments.txt.'
)


def summary(rows: list[dict]) -> str:
    """Counts the findings by verdict."""
    counts = {name: sum(row["verdict"] == name for row in rows) for name in OF_VERDICT}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def notes(found: dict[str, list[dict]], seeds: int, epochs: int) -> str:
    lines = [
        f"{seeds} seeds, {epochs} epochs. holds: the whole 90 % interval (low, high) of the seeds' median is as "
        "claimed; contradicted: none of it; undecided: some. In brackets: the best rate, with ! where the grid ends."
    ]
    for letter, rows in found.items():
        where, says, test = CLAIMS[letter]
        held = " ".join(test.__doc__.split())
        lines.append(f'{letter}. "{says}" ({where}): {summary(rows)}. Held equal: {held}')
    lines += [ELSEWHERE] if len(found) == len(CLAIMS) else []
    return experiments.paragraphs(*lines)


def claim_letters(text: str) -> list[str]:
    letters = text.split(",")
    unknown = [letter for letter in letters if letter not in CLAIMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected letters of {','.join(CLAIMS)}, got {unknown[0]!r}")
    return letters


def main() -> None:
    experiments.start(all_cores=True)
    parser = experiments.parser(__doc__, "results/claims", seeds=23, epochs=30)
    parser.add_argument(
        "--only", type=claim_letters, default=list(CLAIMS), help=f"such as a,b; default {','.join(CLAIMS)}"
    )
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds: expected an integer >= 2, got {options.seeds}")
    letters, found, columns = options.only, {}, min(2, len(options.only))
    with plt.rc_context(STYLE), progress("claims", len(letters)) as advance:
        lines = -(-len(letters) // columns)
        size = 7.5 * columns, 5.4 * lines
        figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
        for axis in axes.flat[len(letters) :]:
            axis.set_axis_off()
        for letter, axis in zip(letters, axes.flat, strict=False):
            advance(len(found), letter)
            found[letter] = CLAIMS[letter].test(options.seeds, options.epochs, axis)
            says = textwrap.fill(f"{letter}. {CLAIMS[letter].says}", 76)
            axis.set_title(f"{says}\n{summary(found[letter])}", fontsize=9, loc="left")
    rows = [{"claim": letter, **row} for letter, own in found.items() for row in own]
    experiments.write(options.out, rows, figure, notes(found, options.seeds, options.epochs))


if __name__ == "__main__":
    main()
