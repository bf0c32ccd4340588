#!/usr/bin/env python
"""Second-order methods and Adam on handwritten digits: training loss against seconds and passes over the data.

    python scripts/second_order_digits.py --seeds 3 --seconds 12

A network 64-10-10 (tanh, softmax; 760 parameters, few enough for Newton's Hessian) learns from all 1437 training
examples at once, in float64: in float32, rounding of the loss would end the line searches, and small eigenvalues could
not be told from 0. Cross-entropy has no residuals, so that Levenberg-Marquardt and Bayesian regularization run on the
mean square error of the same softmax outputs (14370 residuals, a Jacobian of 87 MB), and so do some of the others. The
two losses cannot be compared with each other; test accuracies can. Every method starts from the same parameters. It
ends at a loss of 1e-6, by its own tests, or where twice the evaluations might take more than --seconds; a method that
ends so from the first start is run from that alone. Second-order methods have default constants, or those named; Adam
has the best rate of three.

A pass is one evaluation over the whole training set: of F, its gradient, one product with the Hessian or Gauss-Newton
matrix, a whole Hessian, Jacobian or set of Kronecker factors. A Hessian costs some 400 gradients, which only the
seconds show. Seconds are those of compiled runs: of the whole run, and of one that ends at a loss of 0.01, the least of
several where they are short. Between these they are interpolated by passes, since all steps of a method have a similar
mixture. Adam's epochs all take equally long.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

NETWORK = fnn.multilayer((64, 10, 10), ("tanh", "softmax"))
GOALS, END = (1e-2, 1e-4), 1e-6  # of the training loss
STEPS = 20_000  # the most steps
RATES = np.array([0.01, 0.03, 0.1])
PLANS = {"adam, full batch": (fnn.training.batch(), 2500), "adam, batches of 32": (fnn.training.minibatch(32), 500)}
METHODS = {  # loss: its methods
    "cross_entropy": (
        "newton",
        "newton(saddle_free=True)",
        "newton(damping=0.01, saddle_free=True)",
        "conjugate_gradient",
        "conjugate_gradient('fletcher_reeves')",
        "conjugate_gradient(restart='powell_beale')",
        "scaled_conjugate_gradient",
        "bfgs",
        "lbfgs",
        "hessian_free",
        "hessian_free(damping=0.01)",
        "kfac",
        "kfac(damping=0.01)",
        *PLANS,
    ),
    "mean_square_error": (
        "levenberg_marquardt",
        "bayesian_regularization",
        "lbfgs",
        "hessian_free(damping=0.01)",
        "adam, batches of 32",
    ),
}
LINES = {  # methods that are not named here are in the table alone
    "newton": (BLACK, "-"),
    "newton(damping=0.01, saddle_free=True)": (BLACK, "--"),
    "levenberg_marquardt": (PURPLE, "-"),
    "bayesian_regularization": (PURPLE, "--"),
    "conjugate_gradient": (GREEN, "-"),
    "scaled_conjugate_gradient": (GREEN, "--"),
    "lbfgs": (BLUE, "-"),
    "bfgs": (BLUE, "--"),
    "hessian_free(damping=0.01)": (ORANGE, "-"),
    "kfac(damping=0.01)": (ORANGE, "--"),
    "adam, batches of 32": (VERMILION, "-"),
    "adam, full batch": (VERMILION, "--"),
}


class Curve(NamedTuple):
    """One method from one start: after each step (an epoch of Adam) the loss, seconds and passes so far (steps,).

    gradient: its norm at the end. accuracy: on the test set, when the loss first is GOALS[0] (nan: never) and at the
    end. damped: the number of steps whose matrix had to be damped. status: how it ended.
    """

    loss: np.ndarray
    seconds: np.ndarray
    passes: np.ndarray
    gradient: float
    accuracy: tuple[float, float]
    damped: int
    status: str

    def when(self, goal: float, what: np.ndarray) -> float:
        """Returns `what`, seconds or passes, at the first step with a loss not above the goal; inf if there is none."""
        reached = self.loss <= goal
        return float(what[reached.argmax()]) if reached.any() else np.inf


def timed(call: Callable, times: int = 4):
    """Returns the result of `call`, and its seconds: the least of up to `times` calls within half a second."""
    taken = []
    while len(taken) < times and sum(taken) < 0.5:
        start = time.perf_counter()
        found = jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return found, min(taken)


def accuracy(params, test) -> float:
    return float(fnn.training.evaluate(NETWORK, "cross_entropy", params, *test)[1])


def second_order(loss: str, method: str, data, test, starts, seconds: float) -> tuple[float, list[Curve]]:
    """Returns seconds of compilation, and a curve for each start, or for the first alone if that takes all the time."""
    problem, method = fnn.training.problem(NETWORK, loss, *data), fnn.optimizers.second_order.get(method)

    def solve(start, evaluations: int, goal: float = END):
        return fnn.optimizers.minimize(problem, method, start, steps=STEPS, evaluations=evaluations, goal=goal)

    _, compiled = timed(lambda: solve(starts[0], 1), times=1)
    _, begins = timed(lambda: solve(starts[0], 1))
    most, curves = 8, []
    while True:  # doubles the evaluations until the run ends by itself, or the next might take too long
        found, whole = timed(lambda most=most: solve(starts[0], most), times=1)
        if found.status != "budget" or whole > seconds / 2:
            break
        most *= 2
    for start in starts:
        if curves or whole < 0.5:
            found, whole = timed(lambda start=start: solve(start, most))
        count = int(found.steps)
        losses, passes = np.asarray(found.path.value)[:count], np.asarray(found.path.passes)[:count]
        known, at_goal = {0: begins, passes[-1]: whole}, np.nan
        if losses.min() <= GOALS[0]:
            part, taken = timed(lambda start=start: solve(start, most, GOALS[0]))
            known[int(part.counts.passes)] = min(taken, whole)  # a longer time is due to other work on the machine
            at_goal = accuracy(part.params, test)
        spent = np.interp(passes, sorted(known), [known[each] for each in sorted(known)])
        gradient = float(jnp.linalg.norm(found.gradient))
        right = at_goal, accuracy(found.params, test)
        curves.append(Curve(losses, spent, passes, gradient, right, int(found.damped), found.status))
        if found.status == "budget":
            break
    return compiled - begins, curves


def adam(loss: str, plan, epochs: int, data, test, starts, key) -> tuple[float, list[Curve], float]:
    """The same as `second_order` by Adam, at the rate that reaches the last goal first, by the median; and
    that rate.
    """
    objective, slope = (make(NETWORK, fnn.losses.get(loss)) for make in (fnn.objective, fnn.value_and_grad))
    stop = fnn.training.loss_below(END)  # of the mean over the epoch's batches, each before its update

    def member(rate, start):
        train = fnn.training.pure_fit(
            NETWORK,
            loss,
            fnn.optimizers.adam(rate),
            epochs=epochs,
            plan=plan,
            stop=stop,
            track={"loss": objective},
            correct=fnn.losses.largest,
        )
        return train(key, *data, test, start)

    program = jax.jit(jax.vmap(jax.vmap(member, (None, 0)), (0, None)))
    found = program(RATES, jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts))
    losses = np.asarray(found.history.tracked["loss"])  # (rates, starts, epochs), nan after the end
    reached = losses <= GOALS[-1]
    needed = np.where(reached.any(-1), reached.argmax(-1), np.inf)
    best = experiments.best_rate(needed, ties=np.nanmin(losses, axis=-1))

    def fit():
        result = fnn.fit(
            NETWORK,
            loss,
            fnn.optimizers.adam(RATES[best]),
            *data,
            key=key,
            epochs=epochs,
            plan=plan,
            params=starts[0],
            chunk=epochs,
            stop=stop,
        )
        return result.params, len(result.history.epoch)

    (_, compiled), ((_, count), whole), curves = timed(fit, times=1), timed(fit), []
    for k in range(len(starts)):
        run = jax.tree.map(lambda leaf, k=k: leaf[best, k], found)
        own, right = losses[best, k, : run.epochs], np.asarray(run.history.validation_accuracy)[: run.epochs]
        epoch, first = np.arange(1, len(own) + 1), own <= GOALS[0]
        gradient = np.linalg.norm(np.concatenate([g.ravel() for g in jax.tree.leaves(slope(run.params, *data)[1])]))
        right = float(right[first.argmax()]) if first.any() else np.nan, float(right[-1])
        status = "diverged" if run.failed else "goal" if run.epochs < epochs else "epochs"
        curves.append(Curve(own, epoch * whole / count, epoch, float(gradient), right, 0, status))
    return compiled - whole, curves, float(RATES[best])


def row_of(loss: str, label: str, compiled: float, curves: list[Curve]) -> dict:
    """Makes a row of medians over the starts."""

    def median(values) -> float:
        values = [value for value in values if not np.isnan(value)]
        return float(np.median(values)) if values else np.nan

    return {
        "loss": loss,
        "method": label,
        "starts": len(curves),
        "compile s": compiled,
        **{f"s to {goal:g}": median([c.when(goal, c.seconds) for c in curves]) for goal in GOALS},
        **{f"passes to {goal:g}": median([c.when(goal, c.passes) for c in curves]) for goal in GOALS},
        f"accuracy at {GOALS[0]:g}": median([c.accuracy[0] for c in curves]),
        "accuracy": median([c.accuracy[1] for c in curves]),
        "training loss": median([c.loss[-1] for c in curves]),
        "|gradient|": median([c.gradient for c in curves]),
        "s": median([c.seconds[-1] for c in curves]),
        "steps": median([len(c.loss) for c in curves]),
        "passes": median([c.passes[-1] for c in curves]),
        "damped": median([c.damped for c in curves]),
        "ended": ", ".join(f"{status} {n}" for status, n in Counter(c.status for c in curves).most_common()),
    }


def draw(found: dict[str, dict[str, list[Curve]]]):
    """Draws the training loss from the first start against seconds and passes, a row of panels for each loss."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(found), 2, figsize=(11, 8.4), layout="constrained", sharey="row", sharex="col")
        handles = {}
        for (in_seconds, in_passes), (loss, methods) in zip(axes, found.items(), strict=True):
            for label, (curve, *_) in methods.items():
                if label not in LINES:
                    continue
                color, line = LINES[label]
                style = {"color": color, "linestyle": line, "lw": 1.5, "alpha": 0.9}
                style["marker"] = "." if len(curve.loss) < 60 else None  # each step
                for axis, x in ((in_seconds, curve.seconds), (in_passes, curve.passes)):
                    handles[label] = axis.plot(x, curve.loss, **style)[0]
                    axis.plot(x[-1], curve.loss[-1], "o", color=color, ms=4)
            for axis in (in_seconds, in_passes):
                axis.set(xscale="log", yscale="log")
            in_seconds.set_ylabel(f"training loss: {loss.replace('_', ' ')}")
            in_seconds.set_ylim(bottom=END / 2)
        axes[-1, 0].set_xlabel("seconds, without compilation")
        axes[-1, 1].set_xlabel("passes over the data")
        order = [label for label in LINES if label in handles]
        figure.legend([handles[label] for label in order], order, loc="outside lower center", ncols=3)
    return figure


def notes_of(rows: list[dict], found, rates: dict[str, float], seeds: int) -> str:
    lines = []
    for loss in found:
        own = [row for row in rows if row["loss"] == loss]
        for what in ("s", "passes"):
            for goal in GOALS:
                column = f"{what} to {goal:g}"
                order = [row for row in sorted(own, key=lambda row: row[column]) if np.isfinite(row[column])][:3]
                fastest = "; ".join(f"{row['method']} {row[column]:.3g}" for row in order) or "none"
                lines.append(f"{loss}, fewest {column}: {fastest}")
    lines += [
        "",
        f"Medians over the starts, {seeds} or 1; inf: not reached. accuracy: on the test set, when the training "
        f"loss first is {GOALS[0]:g} (of those that reached it) and at the end.",
        "ended: goal, at a loss of 1e-6; gradient, its largest element within 1.5e-8; budget, the time is over.",
        "passes count alike what costs differently: F, a gradient, a product, a Hessian, a Jacobian.",
        "Best rates: " + "; ".join(f"{name} {rate:g}" for name, rate in rates.items()) + f", of {RATES.tolist()}.",
    ]
    return "\n".join(lines)


def main() -> None:
    experiments.start(x64=True)
    options = experiments.arguments(__doc__, "results/second_order_digits", seeds=3, seconds=12)
    task = experiments.load("digits")
    data, test = jax.tree.map(lambda x: jnp.asarray(x, float), ((task.inputs, task.targets), task.test))
    key, *keys = jax.random.split(jax.random.key(0), 1 + options.seeds)
    starts = [NETWORK.init(key) for key in keys]
    rows, rates, done = [], {}, 0
    found = {loss: {} for loss in METHODS}
    with progress("methods", sum(map(len, METHODS.values()))) as advance:
        for loss, methods in METHODS.items():
            for label in methods:
                advance(done, f"{loss}, {label}")
                if label in PLANS:
                    compiled, curves, rate = adam(loss, *PLANS[label], data, test, starts, key)
                    rates[f"{loss}, {label}"] = rate
                else:
                    compiled, curves = second_order(loss, label, data, test, starts, options.seconds)
                found[loss][label] = curves
                rows.append(row_of(loss, label, compiled, curves))
                done += 1
    experiments.write(options.out, rows, draw(found), notes_of(rows, found, rates, options.seeds))


if __name__ == "__main__":
    main()
