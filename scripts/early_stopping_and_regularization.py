#!/usr/bin/env python
"""Over- and under-fitting against the number of hidden units, and what regularization does about it.

    python scripts/early_stopping_and_regularization.py --seeds 8 --epochs 100

64-H-10 tanh/softmax networks learn the digits from 150 examples with Adam. L2 and L1 strengths and dropout rates are
tried at 64 hidden units. For each method the setting with the lowest loss on a validation part of 400 other examples
counts. No regularization, early stopping and that L2 are then tried at all sizes, and the networks of 64 hidden units
are pruned by magnitude and re-trained (CSE 475, 19.71.1). Losses are reported on the usual test part, by which nothing
was chosen. All methods start from the same parameters and see the same batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import training
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress
from functional_nn.optimizers import regularizers

EXAMPLES, VALIDATION = 150, 400
HIDDEN, MIDDLE = (1, 2, 4, 8, 16, 32, 64, 128, 256), 64
STRENGTHS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
DROPOUT, PATIENCE = (0.25, 0.5), 10
FRACTIONS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.98)
RETRAINED = 2  # epochs: "one of two iterations ... can recover any loss in performance", CSE 475
LOSS, OPTIMIZER = fnn.losses.cross_entropy(), fnn.optimizers.adam(0.01)
COLORS = {"none": BLACK, "L2": BLUE, "L1": PURPLE, "dropout": GREEN, "early stopping": VERMILION}


class Member(NamedTuple):
    """A trained network: (loss, accuracy) on the three parts of the data, epochs, history and parameters."""

    training: tuple
    validation: tuple
    test: tuple
    epochs: jax.Array
    history: training.History | None
    params: dict


def load() -> tuple:
    """Returns training, validation and test part: pairs of inputs (Q, 64) and targets (Q, 10)."""
    task = experiments.load("digits")
    used = task._replace(inputs=task.inputs[: EXAMPLES + VALIDATION], targets=task.targets[: EXAMPLES + VALIDATION])
    return *used.divided(EXAMPLES), task.test


def network(hidden: int, dropout: float = 0.0) -> fnn.Network:
    return fnn.multilayer((64, hidden, 10), activations=("tanh", "softmax"), dropout=dropout)


def start(hidden: int, net: fnn.Network, keys) -> dict:
    """Returns initial parameters of `hidden` units, (seeds, ...), padded with zeros to those of the larger `net`.

    The padding stays zero in training: the other units' outputs are tanh(0) = 0, and no sensitivity reaches them.
    """
    small, full = (jax.vmap(each.init)(keys) for each in (network(hidden), net))
    return jax.tree.map(
        lambda s, f: jnp.pad(s, [(0, b - a) for a, b in zip(s.shape, f.shape, strict=True)]), small, full
    )


def train(net, data, options, settings=((MIDDLE, 0.0, 0.0),), stop=()) -> Member:
    """Trains networks (settings, seeds) in one compiled program. A setting is (hidden units, L1, L2)."""
    keys = jax.random.split(jax.random.key(0), options.seeds)

    def member(params, l1, l2, key):
        penalty = regularizers.elastic_net(l1, l2)
        fit = training.pure_fit(net, LOSS, OPTIMIZER, epochs=options.epochs, regularizer=penalty, stop=stop)
        outcome = fit(key, *data[0], data[1], params)
        return Member(*measure(net, outcome.params, data), outcome.epochs, outcome.history, outcome.params)

    hidden, l1, l2 = zip(*settings, strict=True)
    starts = jax.tree.map(lambda *rows: jnp.stack(rows), *(start(h, net, keys) for h in hidden))
    over_seeds = jax.vmap(member, in_axes=(0, None, None, 0))
    over_settings = jax.vmap(over_seeds, in_axes=(0, 0, 0, None))
    return jax.tree.map(np.asarray, jax.jit(over_settings)(starts, jnp.asarray(l1), jnp.asarray(l2), keys))


def measure(net, params, data) -> list:
    return [training.evaluate(net, LOSS, params, *part) for part in data]


def prune(net, params, data, options) -> dict[str, Member]:
    """Prunes and re-trains networks (fractions, seeds). Raises AssertionError unless the pruned weights are zero."""

    def member(fraction, params, key):
        masks = regularizers.magnitude_masks(params, fraction)
        optimizer = fnn.optimizers.keep_pruned(OPTIMIZER, masks)
        after = training.pure_fit(net, LOSS, optimizer, epochs=RETRAINED)(key, *data[0], params=params)
        states = {"pruned": (regularizers.prune(params, masks), 0), "re-trained": (after.params, after.epochs)}
        return {name: Member(*measure(net, p, data), epochs, None, p) for name, (p, epochs) in states.items()}

    keys = jax.random.split(jax.random.key(1), options.seeds)
    over_fractions = jax.vmap(jax.vmap(member, in_axes=(None, 0, 0)), in_axes=(0, None, None))
    found = jax.jit(over_fractions)(jnp.asarray(FRACTIONS), params, keys)
    weights = net.layers[0].size * (64 + 10)
    expected = np.floor(np.float32(FRACTIONS) * np.float32(weights)) / weights
    for name, members in found.items():
        zeros = jax.vmap(jax.vmap(regularizers.sparsity))(members.params)
        if not np.allclose(zeros, expected[:, None], rtol=0, atol=0.1 / weights):
            raise AssertionError(f"{name}: exact zeros {np.asarray(zeros)[:, 0]}, expected {expected}")
    return jax.tree.map(np.asarray, found)


def row(method: str, setting: str, hidden: int, members: Member, i: int) -> dict:
    """Makes a row of medians and quartiles over the seeds, for the i-th setting."""
    losses, accuracies = (np.percentile(column[i], (50, 25, 75)) for column in members.test)
    return {
        "method": method,
        "setting": setting,
        "hidden": hidden,
        "training loss": np.median(members.training[0][i]),
        "validation loss": np.median(members.validation[0][i]),
        **dict(zip(("test loss", "loss q1", "loss q3"), losses, strict=True)),
        "training accuracy": np.median(members.training[1][i]),
        **dict(zip(("test accuracy", "accuracy q1", "accuracy q3"), accuracies, strict=True)),
        "epochs": np.median(members.epochs[i]),
    }


def study(data, options, advance) -> tuple[list[dict], dict[str, Member]]:
    """Returns all rows, and the runs at MIDDLE whose loss curves are drawn."""
    middle, widest = network(MIDDLE), network(max(HIDDEN))
    advance(0, "L1 and L2")
    penalties = [("none", 0.0), *((name, s) for name in ("L2", "L1") for s in STRENGTHS)]
    members = train(middle, data, options, [(MIDDLE, s * (n == "L1"), s * (n == "L2")) for n, s in penalties])
    rows = [row(name, f"{s:g}", MIDDLE, members, i) for i, (name, s) in enumerate(penalties)]
    plain = jax.tree.map(lambda x: x[0], members)
    for done, rate in enumerate(DROPOUT, start=1):
        advance(done, "dropout")
        rows.append(row("dropout", f"{rate:g}", MIDDLE, train(network(MIDDLE, rate), data, options), 0))
    advance(1 + len(DROPOUT), "hidden units")
    sizes = [(h, 0.0, s) for s in (0.0, float(best_of(rows, "L2")["setting"])) for h in HIDDEN if h != MIDDLE]
    members = train(widest, data, options, sizes)
    rows += [row("L2" if s else "none", f"{s:g}", h, members, i) for i, (h, _, s) in enumerate(sizes)]
    advance(2 + len(DROPOUT), "early stopping")
    stopped = train(widest, data, options, [(h, 0.0, 0.0) for h in HIDDEN], training.early_stopping(PATIENCE))
    rows += [row("early stopping", f"{PATIENCE}", h, stopped, i) for i, h in enumerate(HIDDEN)]
    advance(3 + len(DROPOUT), "pruning")
    for name, members in prune(middle, plain.params, data, options).items():
        rows += [row(name, f"{fraction:g}", MIDDLE, members, i) for i, fraction in enumerate(FRACTIONS)]
    stopped = jax.tree.map(lambda x: x[HIDDEN.index(MIDDLE)], stopped)
    return rows, {"none": plain, "early stopping": stopped}


def best_of(rows: list[dict], method: str) -> dict:
    """Returns the method's setting at MIDDLE with the lowest validation loss."""
    return min((r for r in rows if r["method"] == method and r["hidden"] == MIDDLE), key=lambda r: r["validation loss"])


def by_size(rows: list[dict], method: str, setting: str) -> list[dict]:
    """Returns one setting's rows, by hidden units."""
    return sorted((r for r in rows if (r["method"], r["setting"]) == (method, setting)), key=lambda r: r["hidden"])


def band(axis, x, rows, column, quartiles, **style) -> None:
    """Draws the median of `column` over x, and the quartiles in a lighter shade."""
    axis.plot(x, [r[column] for r in rows], marker=".", **style)
    axis.fill_between(x, *([r[q] for r in rows] for q in quartiles), color=style["color"], alpha=0.15, linewidth=0)


def picture(rows: list[dict], curves: dict[str, Member]) -> plt.Figure:
    chosen = {method: best_of(rows, method) for method in COLORS}
    spread = {"test loss": ("loss q1", "loss q3"), "test accuracy": ("accuracy q1", "accuracy q3")}
    names = {"none": "no regularization", "dropout": f"dropout, rate {chosen['dropout']['setting']}"}
    names |= {"L2": f"L2, {chosen['L2']['setting']}", "early stopping": f"early stopping, patience {PATIENCE}"}
    with plt.rc_context(STYLE):
        figure, (sizes, others) = plt.subplots(2, 3, figsize=(13, 7.4), layout="constrained")
        for axis, column in zip(sizes, ("training loss", *spread), strict=True):
            for method in ("none", "L2", "early stopping"):
                of = by_size(rows, method, chosen[method]["setting"])
                band(
                    axis,
                    HIDDEN,
                    of,
                    column,
                    spread.get(column, (column,) * 2),
                    color=COLORS[method],
                    label=names[method],
                )
            axis.set(xscale="log", xlabel="hidden units")
            axis.set_xticks(HIDDEN, HIDDEN)
            axis.set_xticks([], minor=True)
        sizes[0].set(yscale="log", ylabel="cross-entropy")
        sizes[1].set(yscale="log", ylabel="cross-entropy", yticks=(0.3, 0.4, 0.6, 1, 2))
        sizes[1].yaxis.set_major_formatter("{x:g}")
        sizes[1].set_yticks([], minor=True)
        sizes[2].set(ylabel="accuracy", ylim=(0, 1))
        for axis, title in zip(sizes, ("a  training loss", "b  test loss", "c  test accuracy"), strict=True):
            axis.set_title(f"{title} against hidden units", loc="left")
            axis.legend(fontsize=8)

        strengths, epochs, sparsity = others
        for method in ("L2", "L1"):
            of = [r for r in rows if r["method"] == method and r["hidden"] == MIDDLE]
            band(strengths, STRENGTHS, of, "test loss", spread["test loss"], color=COLORS[method], label=method)
        for method, dashes in (("none", "-"), ("dropout", "--"), ("early stopping", "-.")):
            loss = chosen[method]["test loss"]
            strengths.axhline(loss, color=COLORS[method], linestyle=dashes, label=names[method])
        strengths.set(xscale="log", yscale="log", xlabel="strength of the penalty", ylabel="test cross-entropy")
        strengths.yaxis.set_major_formatter("{x:.2f}")
        strengths.yaxis.set_minor_formatter("{x:.2f}")
        strengths.set_title(f"d  test loss of methods, {MIDDLE} hidden units", loc="left")
        strengths.legend(fontsize=8)

        history, stopped = curves["none"].history, curves["early stopping"]
        x = np.arange(1, history.training_loss.shape[-1] + 1)
        for values, style, label in (
            (history.training_loss, ":", "training"),
            (history.validation_loss, "-", "validation"),
        ):
            epochs.plot(x, np.median(values, axis=0), color=COLORS["none"], linestyle=style, label=f"{label}, median")
        best = 1 + np.nanargmin(stopped.history.validation_loss, axis=-1)
        for when, style, label in ((best, "-", "best epoch, restored"), (stopped.epochs, "--", "stopped")):
            epochs.axvline(np.median(when), color=COLORS["early stopping"], linestyle=style, label=label)
            epochs.axvspan(*np.percentile(when, (25, 75)), color=COLORS["early stopping"], alpha=0.12, linewidth=0)
        epochs.set(xscale="log", yscale="log", xlabel="epoch", ylabel="cross-entropy")
        epochs.set_title(f"e  early stopping, {MIDDLE} hidden units", loc="left")
        epochs.legend(fontsize=8)

        for method, color in (("pruned", ORANGE), ("re-trained", BLUE)):
            of = [r for r in rows if r["method"] == method]
            label = method if method == "pruned" else f"pruned, re-trained for {RETRAINED} epochs"
            band(sparsity, FRACTIONS, of, "test accuracy", spread["test accuracy"], color=color, label=label)
        sparsity.set(xlabel="share of weights that are zero", ylabel="test accuracy", ylim=(0, 1))
        sparsity.set_title(f"f  pruning by magnitude, {MIDDLE} hidden units", loc="left")
        sparsity.legend(fontsize=8, loc="lower left")
    return figure


def notes(rows: list[dict]) -> str:
    """Says the findings, from the rows."""
    lines = [f"medians and quartiles of the seeds; digits, {EXAMPLES} examples; of each method the best on validation:"]
    for method in COLORS:
        best = best_of(rows, method)
        lines.append(
            f"{method} {best['setting']}: test loss {best['test loss']:.3f}, accuracy {best['test accuracy']:.3f}"
        )
    lines.append("loss against hidden units:")
    for method, setting in (
        ("none", "0"),
        ("L2", best_of(rows, "L2")["setting"]),
        ("early stopping", f"{PATIENCE}"),
    ):
        of = by_size(rows, method, setting)
        low = min(of, key=lambda r: r["test loss"])
        ends = " and ".join(f"{r['test loss']:.3f} at {r['hidden']}" for r in (of[0], of[-1]))
        lines.append(
            f"{method} {setting}: lowest test loss {low['test loss']:.3f} at {low['hidden']} hidden units; {ends}"
        )
    whole = next(r for r in rows if r["method"] == "pruned")["test accuracy"]
    for method in ("pruned", "re-trained"):
        held = [r["setting"] for r in rows if r["method"] == method and r["test accuracy"] >= whole - 0.02]
        lines.append(
            f"{method}: accuracy within 0.02 of the unpruned {whole:.3f} up to a share {held[-1] if held else '-'}"
        )
    return "\n".join(lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/early_stopping_and_regularization", seeds=8, epochs=100)
    with progress("programs", 4 + len(DROPOUT)) as advance:
        rows, curves = study(load(), options, advance)
    experiments.write(options.out, rows, picture(rows, curves), notes(rows))


if __name__ == "__main__":
    main()
