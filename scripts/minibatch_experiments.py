#!/usr/bin/env python
"""Gradient descent, mini-batch and stochastic training on digits: loss against epochs, updates and seconds.

    python scripts/minibatch_experiments.py --seeds 5 --epochs 40

The claim under test (Lecture 2, "Handwriting Digit Classification"): training is fastest with mini-batches, then with
single examples, and slowest with gradient descent. All use one network and one rule, `gd`. Each regime has the learning
rate of a common grid that takes the fewest epochs (median over the seeds) to a stated training loss, which is measured
over the whole training set after each epoch. Seconds are those of runs of a compiled `fit` that trains and does nothing
else, with the regimes taking turns. Gradient descent, with one update an epoch, has more epochs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress
from functional_nn.lab.timing import timed_in_turns

TARGET, ACCURACY = 0.05, 0.95  # the training loss and the test accuracy to be reached
RATES = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0], np.float32)
NETWORK = fnn.multilayer((64, 64, 10), ("tanh", "softmax"))


class Regime(NamedTuple):
    """The examples of one update, the most epochs as a multiple of --epochs, and the line in the picture."""

    plan: fnn.training.BatchPlan
    longer: int
    color: str
    line: str = "-"


REGIMES = {
    "gradient descent": Regime(fnn.training.batch(), 20, BLUE),
    "mini-batch": Regime(fnn.training.minibatch(32), 1, VERMILION),
    "mini-batch, made once": Regime(fnn.training.minibatch(32, shuffle="once"), 1, PURPLE, "--"),
    "stochastic": Regime(fnn.training.stochastic(), 1, GREEN),
}


def train(task, plan, rates, keys, epochs: int, validation):
    """Trains in one compiled program. Returns the outcome (rates, seeds, ...)."""

    def member(rate, key):
        make = fnn.training.pure_fit(NETWORK, task.loss, fnn.optimizers.gd(rate), epochs=epochs, plan=plan)
        return make(key, task.inputs, task.targets, validation)

    return jax.jit(jax.vmap(jax.vmap(member, (None, 0)), (0, None)))(jnp.asarray(rates), keys)


def first_epoch(reached) -> np.ndarray:
    """Returns the number, from 1, of the first epoch (last axis) where `reached` is true; inf where none is."""
    reached = np.asarray(reached)
    return np.where(reached.any(-1), reached.argmax(-1) + 1.0, np.inf)


def measure(task, regime: Regime, keys, epochs: int) -> dict:
    """Returns the best rate and, there, the loss (seeds, epochs), epochs to the two goals, and test accuracy."""
    loss = np.asarray(
        train(task, regime.plan, RATES, keys, epochs, (task.inputs, task.targets)).history.validation_loss
    )
    needed = first_epoch(loss <= TARGET)
    best = experiments.best_rate(needed, ties=loss[..., -1])
    test = train(task, regime.plan, RATES[best : best + 1], keys, epochs, task.test).history.validation_accuracy[0]
    return {
        "rate": float(RATES[best]),
        "loss": loss[best],
        "to_loss": np.median(needed[best]),
        "to_accuracy": np.median(first_epoch(test >= ACCURACY)),
        "accuracy": float(np.median(test[:, -1])),
    }


def seconds_an_epoch(task, found: dict[str, dict], keys, epochs: int) -> dict[str, float]:
    """Returns medians over rounds, one for each seed, in which each regime trains once by a compiled `fit`."""

    def timed(name, regime):
        count = epochs * regime.longer

        def call(number):
            key, optimizer = keys[max(0, number - 1)], fnn.optimizers.gd(found[name]["rate"])
            fnn.fit(
                NETWORK,
                task.loss,
                optimizer,
                task.inputs,
                task.targets,
                key=key,
                epochs=count,
                plan=regime.plan,
                params=NETWORK.init(key),
                chunk=count,
            )

        return call

    calls = {name: timed(name, regime) for name, regime in REGIMES.items()}
    for call in calls.values():
        call(0)  # compiles
    seconds = timed_in_turns(calls, len(keys))
    return {name: float(np.median(own)) / epochs / REGIMES[name].longer for name, own in seconds.items()}


def draw(found: dict[str, dict], seconds: dict[str, float], examples: int):
    """Draws the median loss over the seeds, and its quartiles, against epochs (and examples), updates and seconds."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained", sharey=True)
        for name, regime in REGIMES.items():
            loss = found[name]["loss"]
            epoch = np.arange(1, loss.shape[1] + 1)
            for axis, unit in zip(axes, (1, regime.plan.updates(examples), seconds[name]), strict=True):
                axis.plot(epoch * unit, np.median(loss, 0), regime.line, color=regime.color, label=name)
                axis.fill_between(
                    epoch * unit, *np.quantile(loss, (0.25, 0.75), 0), color=regime.color, alpha=0.2, lw=0
                )
        for axis, label in zip(axes, ("epochs", "updates", "seconds"), strict=True):
            axis.axhline(TARGET, color="grey", linestyle=":")
            axis.set(xscale="log", yscale="log", xlabel=label)
        above = axes[0].secondary_xaxis("top", functions=(lambda x: x * examples, lambda x: x / examples))
        above.set_xlabel("examples seen")
        axes[0].set_ylabel("training loss")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(REGIMES))
    return figure


def verdict(rows: dict[str, dict]) -> str:
    """Says whether the claimed order was measured, in each sense."""
    claimed, says = ["mini-batch", "stochastic", "gradient descent"], []
    for sense in ("epochs", "examples", "updates", "seconds"):
        needed = {name: rows[name][sense] for name in claimed}
        order = sorted(claimed, key=needed.get)
        strict = needed[order[0]] < needed[order[1]] < needed[order[2]]
        answer = "holds" if strict and order == claimed else "fails"
        if np.isinf(needed[order[-1]]):
            answer = "is open, as not all reached it"
        says.append(f"in {sense} it {answer} ({', '.join(f'{name} {needed[name]:.3g}' for name in order)})")
    return (
        f"The claim is that mini-batch reaches a training loss of {TARGET} before stochastic, and that "
        "before gradient descent:\n" + ";\n".join(says) + "."
    )


def main() -> None:
    options = experiments.arguments(__doc__, "results/minibatch_experiments", seeds=5, epochs=40)
    task = experiments.load("digits")
    keys, examples = jax.random.split(jax.random.key(0), options.seeds), len(task.inputs)
    found = {}
    with progress("regimes", len(REGIMES)) as advance:
        for name, regime in REGIMES.items():
            advance(len(found), name)
            found[name] = measure(task, regime, keys, options.epochs * regime.longer)
    seconds = seconds_an_epoch(task, found, keys, options.epochs)
    rows = {}
    for name, own in found.items():
        updates = REGIMES[name].plan.updates(examples)
        rows[name] = {
            "regime": name,
            "batch": REGIMES[name].plan.size or examples,
            "best rate": own["rate"],
            "epochs": own["to_loss"],
            "examples": own["to_loss"] * examples,
            "updates": own["to_loss"] * updates,
            "seconds": own["to_loss"] * seconds[name],
            "epochs to 95 %": own["to_accuracy"],
            "seconds to 95 %": own["to_accuracy"] * seconds[name],
            "ms an epoch": 1e3 * seconds[name],
            "test accuracy": own["accuracy"],
        }
    at_edge = [name for name, own in found.items() if experiments.at_edge(own["rate"], RATES)]
    notes = (
        f"{verdict(rows)}\n\nepochs, examples, updates and seconds: until the training loss is {TARGET}, medians over "
        f"{options.seeds} seeds (inf: never);\n95 % is accuracy on the test set; test accuracy: after the last epoch."
        + (f"\nBest rate at the grid's edge: {', '.join(at_edge)}." if at_edge else "")
    )
    experiments.write(options.out, list(rows.values()), draw(found, seconds, examples), notes)


if __name__ == "__main__":
    main()
