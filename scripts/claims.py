#!/usr/bin/env python
"""Claims of the texts, tested: one page, claim beside finding, each with its own small experiment and several seeds.

    python scripts/claims.py --seeds 16 --epochs 40
    python scripts/claims.py --only f,g --out results/claims_f_g

A finding is a number a seed, and what the claim says of it, such as "> 6". The verdict is a rule, not an opinion: the
interval from `low` to `high` holds the median with a confidence of at least 90 % (order statistics, no assumption on
the distribution); the claim "holds" where the whole interval is as claimed, is "contradicted" where none of it is, and
else is "undecided". Where rates are compared, each seed is judged at the rate of the grid that is best by the median of
the other seeds, so that no seed chooses for itself. The loss that chooses is a validation part's, the loss that is
told the test part's.

Before JAX is imported, JAX_NUM_CPU_DEVICES is set to the number of cores, over which the populations are then laid;
set it to 1 for one core. It says nothing to an accelerator.
"""

import argparse
import functools
import math
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import experiments
from functional_nn.lab.plots import STYLE
from functional_nn.lab.progress import progress

# after the lab, which says what to install where it is missing
import matplotlib.pyplot as plt  # isort: skip

TRAINED_ON, BATCH, WIDTH = 1024, 32, 32  # examples that are trained on (the others validate), a batch, a hidden layer
LOSS = fnn.losses.cross_entropy()
RATES = 2.0 ** np.arange(-6, 4)
GOAL = 0.1  # the training loss of claim a
INITIALIZERS = {"sigmoid": "xavier_normal", "tanh": "xavier_normal"}  # the others: he_normal
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
OF_VERDICT = {"holds": "#009E73", "contradicted": "#D55E00", "undecided": "#808080"}

# The rule --------------------------------------------------------------------------------------------------------------


def interval(lower, upper=None) -> tuple[float, float, float]:
    """(median, low, high): the median of the seeds' values and bounds between which the true one lies, at 90 % or more.

    A value known only to lie between two bounds stands in `lower` and `upper`; nan is one of which nothing is known.
    With fewer than 5 values nothing can be said: -inf and inf. (David and Nagaraja 2003, Order Statistics, 7.1.)
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
    """What an interval says of a claim such as "> 6" or "< 0.05"."""
    sense, bound = claimed.split()
    if sense == "<":
        low, high, bound = -high, -low, -float(bound)
    return "holds" if low > float(bound) else "contradicted" if high <= float(bound) else "undecided"


def judged(finding: str, claimed: str, lower, upper=None) -> dict:
    """A row of the table. A single number in `lower` is exact: no seed has a part in it."""
    exact = np.ndim(lower) == 0
    median, low, high = (float(lower),) * 3 if exact else interval(lower, upper)
    found = {"median": median, "low": low, "high": high, "verdict": verdict(claimed, low, high)}
    return {"finding": finding, "claimed": claimed, **found}


# Training at every rate, and the choice of one -------------------------------------------------------------------------


class Runs(NamedTuple):
    """Arrays (rates, seeds, epochs) of one network; training loss as in `History`, the rest after each epoch."""

    rates: np.ndarray
    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    accuracy: np.ndarray

    def best(self, scores: np.ndarray | None = None) -> np.ndarray:
        """(seeds,): for each seed the number of the rate with the lowest median score (rates, seeds) of the others;
        by default the score is the last validation loss.
        """
        scores = np.nan_to_num(self.validation[..., -1] if scores is None else scores, nan=np.inf)
        others = [np.median(np.delete(scores, seed, axis=1), axis=1) for seed in range(scores.shape[1])]
        return np.argmin(others, axis=1)

    def said(self, best: np.ndarray) -> str:
        """The rate that most seeds got, and whether the grid ends there."""
        place = int(np.median(best))
        return f"{self.rates[place]:.2g}" + ("!" if place in (0, len(self.rates) - 1) else "")


def at(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Of values (rates, seeds, ...) each seed's at its rate."""
    return values[best, np.arange(len(best))]


@functools.cache
def digits() -> tuple:
    """Training, validation and test part, pairs of inputs (Q, 64) and targets (Q, 10)."""
    task = experiments.load("digits")
    return *((task.inputs[of], task.targets[of]) for of in (slice(TRAINED_ON), slice(TRAINED_ON, None))), task.test


def network(activation: str, *widths: int) -> fnn.Network:
    """64 inputs, hidden layers of these widths, softmax of 10."""
    initializer = INITIALIZERS.get(activation, "he_normal")
    return fnn.multilayer((64, *widths, 10), (activation,) * len(widths) + ("softmax",), initializer=initializer)


def population(net, rates, seeds: int, epochs: int, optimizer: Any = "gd", *, track=(), batch=BATCH, **columns):
    """Every rate with every seed, the last fastest, all on the same batches."""
    members = training.grid(learning_rate=np.asarray(rates, float), seed=range(seeds))
    members |= {name: np.broadcast_to(values, len(members["seed"])) for name, values in columns.items()}
    if "examples" in columns:
        members["subset"] = members["seed"]
    part, held_out, _ = digits()
    return training.fit_population(net, LOSS, optimizer, members, part, key=jax.random.key(0), epochs=epochs,
                                   validation=held_out, plan=training.minibatch(batch), track=track)  # fmt: skip


def trained(net, rates, seeds: int, epochs: int, optimizer: Any = "gd", **settings) -> Runs:
    test = lambda params, inputs, targets: training.evaluate(net, LOSS, params, *digits()[2])  # noqa: E731
    history = population(net, rates, seeds, epochs, optimizer, track={"test": test}, **settings).history
    columns = history.training_loss, history.validation_loss, *history.tracked["test"]
    return Runs(np.asarray(rates), *(np.asarray(x).T.reshape(len(rates), seeds, epochs) for x in columns))


@functools.cache
def by_activation(activation: str, depth: int, seeds: int, epochs: int) -> Runs:
    """Claims a and b look at the same networks."""
    return trained(network(activation, *(WIDTH,) * depth), RATES, seeds, epochs)


@functools.cache
def statistics(activation: str, rates: tuple[float, ...], seeds: int, epochs: int) -> dict[str, Any]:
    """{layer: LayerStatistics of (rates, seeds, epochs)} of four hidden layers; claims c and d. Rate 0: untrained."""
    net = network(activation, *(WIDTH,) * 4)
    found = population(net, rates, seeds, epochs, track=("layer_statistics",)).history.tracked["layer_statistics"]
    return jax.tree.map(lambda x: np.asarray(x).T.reshape(len(rates), seeds, epochs), found)


def strip(axis, rows: list[dict], scale: str = "log") -> None:
    """Each row's interval, in the colour of its verdict, and a tick at the bound that is claimed."""
    for place, row in enumerate(rows):
        color, bound = OF_VERDICT[row["verdict"]], float(row["claimed"].split()[1])
        known = [x for x in (row["low"], row["high"]) if np.isfinite(x)]
        axis.plot(known, [place] * len(known), color=color, lw=3, solid_capstyle="butt")
        axis.plot(row["median"], place, "o", color=color)
        axis.plot(bound, place, "|", color="black", ms=14)
    axis.set_yticks(range(len(rows)), [textwrap.fill(row["finding"], 38) for row in rows], fontsize=7.5)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xscale=scale, xlabel="median and 90 % interval; | what is claimed")


# The claims ------------------------------------------------------------------------------------------------------------


def updates_to_goal(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Updates until the training loss (..., epochs) is GOAL, as bounds: where it never is, the budget and infinity.

    An epoch's loss is the mean over its updates, and so stands for its middle; between two, log loss is interpolated.
    """
    epochs, log = loss.shape[-1], np.log(np.nan_to_num(loss, nan=np.inf) / GOAL)
    first = np.argmax(log <= 0, axis=-1)[..., None]
    here, before = (np.take_along_axis(log, np.maximum(first - back, 0), -1)[..., 0] for back in (0, 1))
    share = np.divide(here, here - before, out=np.zeros_like(here), where=np.isfinite(before) & (here < before))
    epoch = np.maximum(first[..., 0] + 0.5 - share, 0.5)
    came = (log <= 0).any(axis=-1)
    return tuple(np.where(came, epoch, never) * (TRAINED_ON // BATCH) for never in (epochs, np.inf))


def relu_is_faster(seeds: int, epochs: int, axis) -> list[dict]:
    rows = []
    for depth in (1, 2, 4):
        needed, rates = {}, {}
        for activation in ("relu", "tanh", "sigmoid"):
            runs = by_activation(activation, depth, seeds, epochs)
            least, most = updates_to_goal(runs.training)
            last = np.nan_to_num(runs.training[..., -1], nan=np.inf)
            best = runs.best(np.where(np.isfinite(most), least, least * (1 + last)))
            needed[activation], rates[activation] = (at(least, best), at(most, best)), runs.said(best)
        for other in ("tanh", "sigmoid"):
            ratio = needed[other][0] / needed["relu"][1], needed[other][1] / needed["relu"][0]
            said = f"{depth} hidden: updates of {other} ({rates[other]}) / relu ({rates['relu']})"
            rows += [judged(said, claimed, *ratio) for claimed in ("> 1", "> 6")]
    strip(axis, rows)
    return rows


def never_sigmoid(seeds: int, epochs: int, axis) -> list[dict]:
    rows = []
    for depth in (1, 4):
        runs = {name: by_activation(name, depth, seeds, epochs)
                for name in ("relu", "sigmoid", "tanh", "leaky_relu", "elu", "maxout")}  # fmt: skip
        best = {name: own.best() for name, own in runs.items()}
        loss = {name: at(own.test[..., -1], best[name]) for name, own in runs.items()}
        for name, claimed in {"sigmoid": "> 1", "tanh": "> 1", "leaky_relu": "< 1", "elu": "< 1", "maxout": "< 1"}.items():
            rates = f"{name} ({runs[name].said(best[name])}) / relu ({runs['relu'].said(best['relu'])})"
            rows.append(judged(f"{depth} hidden: test loss of {rates}", claimed, loss[name] / loss["relu"]))
        right = {name: 100 * at(runs[name].accuracy[..., -1], best[name]) for name in ("relu", "sigmoid")}
        rows.append(judged(f"{depth} hidden: test accuracy of relu - sigmoid, points", "> 0",
                           right["relu"] - right["sigmoid"]))  # fmt: skip
        learns = {name: np.max(np.where(runs[name].validation[..., -1] < math.log(10), RATES[:, None], 0), axis=0)
                  for name in ("relu", "tanh")}  # fmt: skip
        rows.append(judged(f"{depth} hidden: highest rate that learns, tanh / relu", "> 1",
                           learns["tanh"] / learns["relu"]))  # fmt: skip
    strip(axis, [row for row in rows if "points" not in row["finding"]])
    return rows


MODERATE, LARGE = 0.1, 1.0


def units(seeds: int, epochs: int, axis) -> list[dict]:
    when = {"untrained": 0, f"rate {MODERATE:g}": 1, f"rate {LARGE:g}": 2}
    names = ("tanh", "relu", "leaky_relu", "elu")
    found = {name: statistics(name, (0.0, MODERATE, LARGE), seeds, epochs) for name in names}
    last = {name: own["layer4"] for name, own in found.items()}
    dead = {name: np.mean([own[f"layer{m}"].dead for m in range(1, 5)], axis=0) for name, own in found.items()}
    off = {name: np.abs(own.activation_mean) / own.activation_deviation for name, own in last.items()}
    rows = []
    for said, place in list(when.items())[:2]:
        rows.append(judged(f"{said}: share of zeros among relu outputs, last hidden layer", "> 0.5",
                           last["relu"].saturated[place, :, -1]))  # fmt: skip
        rows.append(judged(f"{said}: |mean| / deviation of tanh outputs", "< 0.1", off["tanh"][place, :, -1]))
        for name in ("tanh", "elu"):
            ratio = off["relu"][place, :, -1] / off[name][place, :, -1]
            rows.append(judged(f"{said}: |mean| / deviation, relu / {name}", "> 1", ratio))
    for name, claimed in {"relu": "> 0", "leaky_relu": "< 0.001"}.items():
        more = dead[name][2, :, -1] - dead[name][0, :, -1]
        rows.append(judged(f"share of {name} units that died, rate {LARGE:g}", claimed, more))
    more = dead["relu"][1, :, -1] - dead["relu"][0, :, -1]
    rows.append(judged(f"share of relu units that died, rate {MODERATE:g}", "> 0", more))
    epoch = np.arange(1, epochs + 1)
    for color, (name, own) in zip(COLORS, dead.items(), strict=False):
        for (said, place), style in zip(when.items(), (":", "--", "-"), strict=True):
            if name in ("relu", "leaky_relu"):
                axis.plot(epoch, np.median(own[place], axis=0), style, color=color, label=f"{name}, {said}")
    axis.set(xlabel="epoch", ylabel="share of dead units")
    axis.legend(fontsize=8)
    return rows


def wide_near_input(seeds: int, epochs: int, axis) -> list[dict]:
    rows = []
    for activation in ("tanh", "relu"):
        loss, said = {}, {}
        for widths in ((64, 32), (39, 80), (32, 64)):
            net = network(activation, *widths)
            count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0))))
            runs = trained(net, RATES, seeds, epochs)
            best = runs.best()
            loss[widths] = at(runs.test[..., -1], best)
            said[widths] = f"{widths[0]}-{widths[1]} ({count} parameters, rate {runs.said(best)})"
        for widths in ((39, 80), (32, 64)):
            rows.append(judged(f"{activation}: test loss of {said[widths]} / {said[64, 32]}", "> 1",
                               loss[widths] / loss[64, 32]))  # fmt: skip
    for activation in ("sigmoid", "tanh", "relu"):
        found = statistics(activation, (0.0, MODERATE, LARGE), seeds, epochs)
        for place, when in enumerate(("untrained", f"trained at {MODERATE:g}")):
            ratio = found["layer4"].sensitivity[place, :, -1] / found["layer1"].sensitivity[place, :, -1]
            rows.append(judged(f"{activation}, {when}: |s| of hidden layer 4 / layer 1", "> 1", ratio))
    strip(axis, rows)
    return rows


def weights_along(optimizer, gradients: np.ndarray) -> np.ndarray:
    """The weight, from 0, after each of the gradients (seeds, updates) that it is handed whatever it is, float64."""
    with jax.enable_x64(True):
        begun = optimizer.init({"w": jnp.zeros((), jnp.float64)})

        def step(state, g):
            state = optimizer.update(state, {"w": g})
            return state, state.params["w"]

        run = jax.jit(jax.vmap(lambda g: jax.lax.scan(step, begun, g)[1]))
        return np.asarray(run(jnp.asarray(gradients, jnp.float64)))


def rprop_on_batches(seeds: int, epochs: int, axis) -> list[dict]:
    methods = {"gd": optimizers.gd(0.01), "rmsprop": optimizers.rmsprop(0.01),
               "rprop": optimizers.rprop(0.01, minibatches=True)}  # fmt: skip
    generator, rows, net = np.random.default_rng(0), [], network("tanh", WIDTH)
    for odd, said in ((-0.9, "sum 0"), (-1.1, "sum -0.2, so that w should rise")):
        cycle = np.array([0.1] * 9 + [odd])
        streams = np.stack([np.concatenate([generator.permutation(cycle) for _ in range(20)]) for _ in range(seeds)])
        for name, optimizer in methods.items():
            paths = np.pad(weights_along(optimizer, streams), ((0, 0), (1, 0)))
            moved = paths[:, -1] / np.sum(np.abs(np.diff(paths)), axis=1)
            claimed = "< 0" if name == "rprop" else "> -0.05" if odd == -0.9 else "> 0"
            rows.append(judged(f"nine of +0.1, one of {odd} ({said}), {name}: move / path", claimed, moved))
            if odd == -0.9:
                axis.plot(paths[0], color=COLORS[len(rows) - 1], label=f"{name}, one seed")
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set(xlabel="update, in each ten nine of +0.1 and one of -0.9", ylabel="weight")
    axis.legend(fontsize=8)
    steps = 2.0 ** np.arange(-16, -2, 2)
    rprop = lambda learning_rate: optimizers.rprop(learning_rate, minibatches=True)  # noqa: E731
    for batch, length, claimed in ((BATCH, epochs, "> 1"), (TRAINED_ON, 5 * epochs, "< 1")):
        loss, rate = {}, {}
        for name, optimizer, grid in (("rprop", rprop, steps), ("gd", "gd", RATES), ("rmsprop", "rmsprop", steps)):
            runs = trained(net, grid, seeds, length, optimizer, batch=batch)
            best = runs.best(runs.training[..., -1])
            loss[name], rate[name] = at(runs.training[..., -1], best), runs.said(best)
        for other in ("gd", "rmsprop"):
            said = f"digits, batches of {batch}: training loss of rprop ({rate['rprop']}) / {other} ({rate[other]})"
            rows.append(judged(said, claimed, loss["rprop"] / loss[other]))
    return rows


def momentum_rate(seeds: int, epochs: int, axis) -> list[dict]:
    rows, eta, updates = [], 0.01, 4000
    streams = {"constant": np.ones(updates), "equal and opposite": (-1.0) ** np.arange(updates)}
    for color, decay in zip(COLORS, (0.0, 0.5, 0.9, 0.99), strict=False):
        paths = weights_along(optimizers.momentum(eta, decay), np.stack(list(streams.values())))
        effective = np.abs(np.diff(np.pad(paths, ((0, 0), (1, 0))))) / eta
        predicted = 1 / (1 - decay), 1 / (1 + decay)
        for of, steps, limit in zip(streams, effective, predicted, strict=True):
            error = abs(steps[-1] / limit - 1)
            rows.append(judged(f"alpha {decay:g}, {of} gradients: {steps[-1]:.6g} eta, predicted {limit:.6g}; "
                               "relative error", "< 1e-9", error))  # fmt: skip
            axis.plot(np.arange(1, 401), steps[:400], "-" if of == "constant" else ":", color=color,
                      label=f"alpha {decay:g}" if of == "constant" else None)  # fmt: skip
        larger, smaller = np.round(effective[:, -1], 9)  # differences of weights, rounded to what they are good for
        rows.append(judged(f"alpha {decay:g}: effective rate / eta where gradients are constant", "> 1", larger))
        if decay:
            rows.append(judged(f"alpha {decay:g}: the same where they are equal and opposite", "< 1", smaller))
    axis.set(xscale="log", yscale="log", xlabel="update (dotted: equal and opposite gradients)",
             ylabel="|step| / (eta |g|)")  # fmt: skip
    axis.legend(fontsize=8)
    return rows


FREQUENT, RARE, TRUE = 0.9, 0.02, 3.0  # how often the two features are present, and both their weights


def sparse_examples(key) -> tuple:
    """Four thousand examples of two features that are 0 or of random sign, and labels of a logistic model."""
    present, sign, label = jax.random.split(key, 3)
    x = jax.random.bernoulli(present, jnp.array([FREQUENT, RARE]), (4000, 2)) * jax.random.rademacher(
        sign, (4000, 2), jnp.float32
    )
    t = jax.random.bernoulli(label, jax.nn.sigmoid(TRUE * jnp.sum(x, axis=1)))
    return x, t.astype(jnp.float32)[:, None]


def rare_features(seeds: int, epochs: int, axis) -> list[dict]:
    net = fnn.multilayer((2, 1), ("sigmoid",), initializer="zeros", bias="none")
    loss = fnn.losses.binary_cross_entropy("mean")
    grids = {"adagrad": 2.0 ** np.arange(-6, 4), "gd": 2.0 ** np.arange(-4, 6)}
    gradient = fnn.value_and_grad(net, loss)

    def run(make, rate, key):
        """One pass over 2000 examples by tens; the other 2000 judge."""
        x, t = sparse_examples(key)
        state = make(rate).init(net.init(key))

        def step(state, batch):
            state = make(rate).update(state, gradient(state.params, *batch)[1])
            return state, state

        batches = x[:2000].reshape(200, 10, 2), t[:2000].reshape(200, 10, 1)
        last, states = jax.lax.scan(step, state, batches)
        chooses, tells = (training.evaluate(net, loss, last.params, x[of], t[of])[0]
                          for of in (slice(2000, 3000), slice(3000, 4000)))  # fmt: skip
        return states, chooses, tells

    keys, found = jax.random.split(jax.random.key(0), seeds), {}
    for name, make in {"adagrad": optimizers.adagrad, "gd": optimizers.gd}.items():
        over_seeds = jax.vmap(functools.partial(run, make), (None, 0))
        states, chooses, tells = jax.jit(jax.vmap(over_seeds, (0, None)))(jnp.asarray(grids[name], jnp.float32), keys)
        runs = Runs(grids[name], *[np.asarray(chooses)[..., None]] * 2, *[np.asarray(tells)[..., None]] * 2)
        best = runs.best()
        states = jax.tree.map(lambda x, best=best: at(np.asarray(x), best), states)
        found[name] = states, at(runs.test[..., -1], best), runs.said(best)
    (states, loss_adagrad, rate), (plain, loss_gd, rate_gd) = found["adagrad"], found["gd"]
    weights = {name: of.params["layer1"]["weights"]["input"][:, -1, 0] for name, (of, *_) in found.items()}
    total = states.sum_of_squares["layer1"]["weights"]["input"][:, :, 0]  # (seeds, updates, 2)
    effective = 1 / np.sqrt(1e-10 + total)
    rows = [
        judged("rate of the rare feature's weight / the frequent's, after 200 updates", "> 1",
               effective[:, -1, 1] / effective[:, -1, 0]),
        judged(f"rare weight (true: {TRUE:g}) of adagrad ({rate}) - gd ({rate_gd})", "> 0",
               weights["adagrad"][:, 1] - weights["gd"][:, 1]),
        judged(f"test loss of gd ({rate_gd}) / adagrad ({rate})", "> 1", loss_gd / loss_adagrad),
        judged("rate of the frequent weight after 200 updates / after 20", "< 0.5",
               effective[:, -1, 0] / effective[:, 19, 0]),
    ]  # fmt: skip
    for place, name in enumerate(("frequent", "rare")):
        low, middle, high = np.quantile(effective[..., place], (0.25, 0.5, 0.75), axis=0)
        axis.plot(np.arange(1, 201), middle, color=COLORS[place], label=f"{name} feature")
        axis.fill_between(np.arange(1, 201), low, high, color=COLORS[place], alpha=0.2, lw=0)
    axis.set(xscale="log", yscale="log", xlabel="update", ylabel="AdaGrad's rate / eta", ylim=(None, 100))
    axis.legend(fontsize=8)
    for scale in (1.0, 4.0):
        last, rates = {}, {}
        for name in ("adagrad", "rmsprop", "adam"):
            runs = trained(network("tanh", WIDTH), 2.0 ** np.arange(-11, 1), seeds, epochs, name, initial_scale=scale)
            best = runs.best(runs.training[..., -1])
            last[name], rates[name] = at(runs.training[..., -1], best), runs.said(best)
        for other in ("rmsprop", "adam"):
            said = f"digits, initial weights x {scale:g}: training loss of adagrad ({rates['adagrad']}) / "
            rows.append(judged(f"{said}{other} ({rates[other]})", "> 1", last["adagrad"] / last[other]))
    return rows


EXAMPLES, SIZES, NOISE = 256, (4, 16, 64, 256), 0.2


def small_batches(seeds: int, epochs: int, axis) -> list[dict]:
    net, found = network("tanh", WIDTH), {}
    updates = epochs * EXAMPLES // 16  # those of batches of 16 in `epochs`
    for size in SIZES:
        same = max(1, updates * size // EXAMPLES)
        runs = trained(net, RATES, seeds, max(epochs, same), batch=size, examples=EXAMPLES, label_noise=NOISE)
        for budget, length in (("equal updates", same), ("equal epochs", epochs)):
            best = runs.best(runs.validation[..., length - 1])
            found[budget, size] = at(runs.test[..., length - 1], best), at(runs.accuracy[..., length - 1], best)
    rows = []
    for color, budget in zip(COLORS, ("equal updates", "equal epochs"), strict=False):
        count = f"{updates} updates" if budget == "equal updates" else f"{epochs} epochs"
        for large in (64, 256):
            ratio = found[budget, large][0] / found[budget, 4][0]
            rows.append(judged(f"{budget} ({count}): test loss of batches of {large} / of 4", "> 1", ratio))
        points = 100 * (found[budget, 4][1] - found[budget, 256][1])
        rows.append(judged(f"{budget} ({count}): test accuracy of batches of 4 - of 256, points", "> 0", points))
        low, middle, high = np.quantile([found[budget, size][0] for size in SIZES], (0.25, 0.5, 0.75), axis=1)
        axis.plot(SIZES, middle, ".-", color=color, label=f"{budget}, {count}")
        axis.fill_between(SIZES, low, high, color=color, alpha=0.2, lw=0)
    axis.set(xscale="log", xlabel="batch size", ylabel="test loss, quartiles")
    axis.set_xticks(SIZES, SIZES)
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return rows


SCALES = (0.01, 0.1, 1.0, 3.0, 10.0, 30.0)


def lucky_start(seeds: int, epochs: int, axis) -> list[dict]:
    net, parts = network("tanh", WIDTH), digits()
    x, t = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    train = training.pure_fit(net, LOSS, optimizers.gd(0.25), epochs=epochs, plan=training.minibatch(BATCH))

    def accuracy(start, order, split):
        rows = jax.random.permutation(split, len(x))
        a, b = rows[:TRAINED_ON], rows[TRAINED_ON:]
        params = train(order, x[a], t[a], params=net.init(start)).params
        return training.evaluate(net, LOSS, params, x[b], t[b])[1]

    # each of so many base settings is varied in one of the three, 8 times
    keys = jax.random.split(jax.random.key(1), (3, seeds, 8))
    base = jnp.broadcast_to(keys[:, :, :1], keys.shape)
    varied = [jnp.where((jnp.arange(3) == which)[:, None, None], keys, base) for which in range(3)]
    found = jax.jit(jax.vmap(jax.vmap(jax.vmap(accuracy))))(*jnp.stack(varied, axis=1))  # (3, seeds, 8)
    start, order, split = 100 * np.std(np.asarray(found), axis=-1, ddof=1)
    rows = [
        judged("deviation of test accuracy by initial weights, points", "> 1", start),
        judged("the same / by the order of the batches", "> 1", start / order),
        judged("the same / by which examples are trained on", "> 1", start / split),
    ]
    members = training.grid(initial_scale=SCALES, learning_rate=RATES, seed=range(seeds))
    test = lambda params, inputs, targets: training.evaluate(net, LOSS, params, *parts[2])[1]  # noqa: E731
    history = training.fit_population(net, LOSS, "gd", members, parts[0], key=jax.random.key(0), epochs=epochs,
                                      validation=parts[1], plan=training.minibatch(BATCH), track={"test": test},
                                      chunk=epochs).history  # fmt: skip
    shape = len(SCALES), len(RATES), seeds
    validation, tested = history.validation_loss[-1].reshape(shape), history.tracked["test"][-1].reshape(shape)
    right = {}
    for place, scale in enumerate(SCALES):
        runs = Runs(RATES, *[own[place, ..., None] for own in (validation, validation, tested, tested)])
        right[scale] = 100 * at(runs.test[..., -1], runs.best())
    apart = {scale: np.abs(own - np.median(own)) for scale, own in right.items()}
    usual = np.median(apart[1.0])
    for scale in SCALES:
        if scale != 1.0:
            rows.append(judged(f"initial weights x {scale:g}: seeds' distance from their median accuracy / x 1's", "> 1",
                               apart[scale] / usual))  # fmt: skip
    for place, own in enumerate(right.values()):
        axis.plot(np.full(seeds, place), own, "o", color=COLORS[0], alpha=0.5)
    axis.set_xticks(range(len(SCALES)), [f"x {scale:g}" for scale in SCALES])
    axis.set(xlabel="initial weights (1: Xavier), each at its best rate", ylabel="test accuracy, %; one dot a seed")
    rows.append(judged("XOR, 2-2-1 tanh: share of starts that never solve it, by groups of 16", "> 0.05",
                       unsolved(seeds)))  # fmt: skip
    return rows


def unsolved(groups: int) -> np.ndarray:
    """(groups,): of 16 starts each, the share that does not classify XOR after 4000 updates at the grid's best rate."""
    net = fnn.multilayer((2, 2, 1), ("tanh", "sigmoid"), initializer="xavier_normal")
    loss = fnn.losses.binary_cross_entropy("mean")
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    t = np.array([[0], [1], [1], [0]], np.float32)

    def solved(rate, key):
        train = training.pure_fit(net, loss, optimizers.gd(rate), epochs=4000, plan=training.batch())
        return jnp.all((net.apply(train(key, x, t).params, x) > 0.5) == (t > 0.5))

    keys = jax.random.split(jax.random.key(2), 16 * groups)
    rates = jnp.array([0.1, 0.3, 1.0, 3.0])
    failed = 1 - np.asarray(jax.jit(jax.vmap(jax.vmap(solved, (None, 0)), (0, None)))(rates, keys), float)
    failed = failed.reshape(len(rates), groups, 16).mean(axis=-1)
    nothing = failed[..., None]
    return at(failed, Runs(np.asarray(rates), *[nothing] * 4).best())


def smoothness(filters: np.ndarray) -> np.ndarray:
    """Correlation of neighbouring weights in filters (..., 8, 8), 0 for noise: mean product over mean square."""
    filters = filters - filters.mean(axis=(-2, -1), keepdims=True)
    along = [filters[..., 1:, :] * filters[..., :-1, :], filters[..., 1:] * filters[..., :-1]]
    return np.mean([own.mean(axis=(-2, -1)) for own in along], axis=0) / np.mean(filters**2, axis=(-2, -1))


def linear_accuracy(features: tuple, targets: tuple) -> float:
    """Test accuracy, %, of the linear least squares classifier (ridge 1e-2) of (training, test) features (Q, S)."""
    a, b = (np.column_stack([own, np.ones(len(own))]).astype(np.float64) for own in features)
    weights = np.linalg.solve(a.T @ a + 1e-2 * np.eye(a.shape[1]), a.T @ targets[0])
    return 100 * float(np.mean((b @ weights).argmax(axis=1) == targets[1].argmax(axis=1)))


def feature_detectors(seeds: int, epochs: int, axis) -> list[dict]:
    net, (part, _, test), rows = network("tanh", WIDTH), digits(), []
    hidden = jax.jit(lambda params, x: net.forward(params, x).activations["layer1"])
    small = [own[1].argmax(axis=1) < 5 for own in (part, test)]  # the digits 0 to 4
    few = np.flatnonzero(small[0])
    trained_on = {"all digits": part, "the digits 0 to 4": (part[0][few], part[1][few])}
    pictures = {}
    for said, data in trained_on.items():
        members = training.grid(learning_rate=[0.0, 0.25], seed=range(seeds))
        found = training.fit_population(net, LOSS, "gd", members, data, key=jax.random.key(0), epochs=epochs,
                                        plan=training.minibatch(BATCH))  # fmt: skip
        kept = [None, None] if said == "all digits" else [~own for own in small]
        own = [(x[k] if k is not None else x, t[k] if k is not None else t)
               for (x, t), k in zip((part, test), kept, strict=True)]  # fmt: skip
        scores, smooth = [], []
        for member in range(2 * seeds):
            params = found.params(member)
            features = tuple(np.asarray(hidden(params, x)) for x, _ in own)
            scores.append(linear_accuracy(features, tuple(t for _, t in own)))
            filters = params["layer1"]["weights"]["input"].reshape(WIDTH, 8, 8)
            smooth.append(np.median(smoothness(filters)))
            if said == "all digits" and member in (0, seeds):
                pictures[member] = filters
        before, after = np.array(scores).reshape(2, seeds)
        judge = "all digits" if said == "all digits" else "the others, 5 to 9"
        rows.append(judged(f"trained on {said}: linear classifier of {judge} on hidden outputs, trained - random, points",
                           "> 0", after - before))  # fmt: skip
        pixels = linear_accuracy(tuple(x for x, _ in own), tuple(t for _, t in own))
        rows.append(judged(f"trained on {said}: the same, on trained hidden outputs - on pixels ({pixels:.1f} %)", "> 0",
                           after - pixels))  # fmt: skip
        if said == "all digits":
            before, after = np.array(smooth).reshape(2, seeds)
            rows.append(judged("correlation of neighbouring first-layer weights, trained - random", "> 0",
                               after - before))  # fmt: skip
    blocks = []
    for filters in pictures.values():
        filters = filters / np.abs(filters).max(axis=(1, 2), keepdims=True)
        tiles = np.pad(filters, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan).reshape(4, 8, 9, 9)
        blocks.append(tiles.transpose(0, 2, 1, 3).reshape(36, 72)[:-1, :-1])
    axis.imshow(np.vstack([blocks[0], np.full((5, 71), np.nan), blocks[1]]), cmap="RdBu_r", vmin=-1, vmax=1)
    axis.grid(False)
    axis.set_xticks([])
    axis.set_yticks([17, 57], ["untrained", "trained"])
    return rows


class Claim(NamedTuple):
    """Where it stands and what it says, what the experiment holds equal, and the experiment (seeds, epochs, axis)."""

    where: str
    says: str
    held: str
    test: Callable


CLAIMS = {
    "a": Claim(
        'Lecture 2, "Gradient Computation: ReLU"',
        "Converge much faster than sigmoid and tanh in practice (6x faster)",
        f"digits, hidden layers of {WIDTH}, gd, batches of {BATCH}, the same batches and updates; each activation has "
        f"its usual initializer (He for relu, else Xavier) and its best rate. Updates to a training loss of {GOAL}; "
        "what never comes there in the budget counts as the budget at least.",
        relu_is_faster,
    ),
    "b": Claim(
        'Lecture 2, "In Practice"',
        "Use ReLU, be careful with the learning rate; Tryout Leaky ReLU, ELU and Maxout; Tryout Tanh with low "
        "expectation; Never use sigmoid",
        "as a. Test loss and accuracy after the last epoch; maxout has twice the hidden weights.",
        never_sigmoid,
    ),
    "c": Claim(
        'Lecture 2, "Rectified Linear", "Tanh Unit", "ReLU", "Leaky ReLU", "ELU"',
        "Tends to produce units with sparse activities; Not zero-centered; Fragile during training and can \"die\"; "
        "Leaky ReLU: Will not die; tanh: zero-centered; ELU: Almost zero-centered",
        f"digits, four hidden layers of {WIDTH}, the same batches and rates ({MODERATE:g} and {LARGE:g}); "
        "layer_statistics over all training examples. A unit is dead where its slope is 0 on every one of them.",
        units,
    ),
    "d": Claim(
        'Kordecki, "Hidden layers"',
        "We use more neurons near input layer: The later network layers will tend to have larger local gradients than "
        "the earlier layers",
        "digits, each network at its best rate; 64-32 against 39-80 (numbers of parameters within 1 %) and against 32-64 "
        "(the same neurons, fewer parameters). Local gradients are s = dF/dn, four hidden layers of equal width.",
        wide_near_input,
    ),
    "e": Claim(
        'Kordecki, "Rprop"',
        "Why Rprop doesn't work with mini-batches? ... 0.1 on 9 mini-batches, and the gradient of -0.9 on 10th "
        "mini-batch. What we'd like is to those gradients to roughly cancel each other out",
        "one weight, the ten gradients in random order again and again whatever the weight is; then digits, each method "
        "at its best rate or first step, by the training loss of the last epoch.",
        rprop_on_batches,
    ),
    "f": Claim(
        'blog, Eq. 3; Kordecki, "Momentum"',
        "the effective learning rate is eta / (1 - alpha) >> eta for all alpha in [0, 1); where the derivative has "
        "opposite signs on consecutive iterations, the sum shrinks",
        "one weight, 4000 updates, float64: exact numbers, no seeds. At alpha = 0 the rate is eta itself.",
        momentum_rate,
    ),
    "g": Claim(
        'Kordecki, "Adagrad"',
        "smaller updates for parameters associated with frequently occurring features, larger updates for infrequent; "
        "There are case that the effective learning rate is decreased too fast",
        f"logistic regression, features present in {FREQUENT:.0%} and {RARE:.0%} of the examples, equal true weights, "
        "one pass over 2000 examples by tens; then digits. Each method at its best rate, the same batches.",
        rare_features,
    ),
    "h": Claim(
        'Kordecki, "What is a Batch?"',
        "Smaller batch sizes are noisy, offering a regularizing effect and lower generalization error",
        f"digits, {EXAMPLES} examples of which {NOISE:.0%} are labelled wrongly, each seed its own; each batch size at "
        "its best rate. Equal updates give large batches more epochs, equal epochs give small ones more updates: the "
        "two are confounded, so both are told.",
        small_batches,
    ),
    "i": Claim(
        "CSE 475, 19.70.1",
        "It is always feared that performance of the neural networks could be highly dependent on this lucky "
        "initialization. (Is it really true? Did you find so?)",
        "digits, one of initial weights, order of batches and split drawn 8 times while the other two stay; "
        "initial scales each at their best rate.",
        lucky_start,
    ),
    "j": Claim(
        'Kordecki, "Hidden layers"',
        "The hidden neurons act as feature detectors: gradually \"discover\" the salient features that characterize the "
        "training data",
        "the same network, seed by seed, before and after training; linear classifiers by least squares.",
        feature_detectors,
    ),
}
ELSEWHERE = (
    'k. "Training speed: mini-batch > SGD > Gradient Descent" (Lecture 2, "Handwriting Digit Classification"): '
    "scripts/minibatch_experiments.py, results/minibatch_experiments.txt."
)


def summary(rows: list[dict]) -> str:
    """How many findings are as claimed."""
    counts = {name: sum(row["verdict"] == name for row in rows) for name in OF_VERDICT}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def notes(found: dict[str, list[dict]], seeds: int, epochs: int) -> str:
    paragraphs = [
        f"{seeds} seeds, {epochs} epochs. holds: the whole 90 % interval (low, high) of the seeds' median is as claimed; "
        "contradicted: none of it; undecided: some of it. In brackets: the best rate, with ! where the grid ends there.",
    ]
    for letter, rows in found.items():
        claim = CLAIMS[letter]
        paragraphs.append(f'{letter}. "{claim.says}" ({claim.where}): {summary(rows)}. Held equal: {claim.held}')
    return "\n".join(textwrap.fill(paragraph, 118) for paragraph in (*paragraphs, ELSEWHERE))


def chosen(text: str) -> list[str]:
    letters = text.split(",")
    unknown = [letter for letter in letters if letter not in CLAIMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected letters of {','.join(CLAIMS)}, got {unknown[0]!r}")
    return letters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="at least 2, for a verdict at least 5; default 16")
    parser.add_argument("--epochs", type=int, default=40, help="default 40")
    parser.add_argument("--only", type=chosen, default=list(CLAIMS), help=f"such as a,b; default {','.join(CLAIMS)}")
    default = Path("results/claims")
    parser.add_argument("--out", type=Path, default=default, help=f"writes OUT.csv, .txt, .html, .png; default {default}")
    options = parser.parse_args()
    found = {}
    with plt.rc_context(STYLE), progress("claims", len(options.only)) as advance:
        columns = min(2, len(options.only))
        lines = -(-len(options.only) // columns)
        figure, axes = plt.subplots(lines, columns, figsize=(7.5 * columns, 5.2 * lines), layout="constrained",
                                    squeeze=False)  # fmt: skip
        for axis in axes.flat[len(options.only) :]:
            axis.set_axis_off()
        for letter, axis in zip(options.only, axes.flat, strict=False):
            advance(len(found), letter)
            found[letter] = CLAIMS[letter].test(options.seeds, options.epochs, axis)
            says = textwrap.fill(f"{letter}. {CLAIMS[letter].says}", 78)
            axis.set_title(f"{says}\n{summary(found[letter])}", fontsize=9, loc="left")
    rows = [{"claim": letter, **row} for letter, own in found.items() for row in own]
    experiments.write(options.out, rows, figure, notes(found, options.seeds, options.epochs))


if __name__ == "__main__":
    main()
