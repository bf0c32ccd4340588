#!/usr/bin/env python
"""The gradient noise scale tr(Sigma) / |G|^2 during training, and whether it predicts the batch size that pays; digits.

    python scripts/gradient_noise.py --seeds 5 --epochs 30 --out results/gradient_noise

McCandlish, Kaplan, Amodei et al. 2018 (arXiv 1812.06162): the gradient of a batch of B examples has as much noise as
signal where B is the noise scale. Below it, twice the batch needs half the updates; above it, hardly fewer. Three
parts: (a) the scale's two terms from batches drawn without replacement, whose means must be those of the full data at
any B (that of their quotient is not); (b) the scale during training, of all parameters and by layer; (c) updates and
examples until a stated training loss, by batch size, each at its own best rate of a grid. To (c) the paper's law is
fitted: (updates / S - 1)(examples / E - 1) = 1, that is updates = S + E / B, with a critical batch size E / S that the
scale should predict. The paper derives that for the best rate in every update; here the rate of `gd` is constant. All
parts use one network.
"""

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import training
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

NETWORK = fnn.multilayer((64, 64, 10), ("tanh", "softmax"))
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1438)  # the last is all examples: gradient descent
RATES = np.array([2.0**k for k in range(-6, 3)], np.float32)
GOAL = 0.1  # training loss
CHECKED, DRAWS = (2, 8, 32, 128, 512), 2000  # batch sizes and the batches of each, for (a)
WATCHED = {"gradient descent": (1438, 0.5, 10), "batches of 32": (32, 0.25, 1)}  # size, rate, times --epochs; for (b)
TERMS = ("noise", "signal")
COLORS = {"whole": BLACK, "layer1": BLUE, "layer2": VERMILION}


def run(task, size: int, rates, keys, epochs: int, track=()):
    """Trains in one compiled program. Returns the outcome (rates, seeds, ...)."""
    # The incomplete last batch is left out, so that all batches have B examples; its examples come in another epoch.
    plan = training.minibatch(size, last="dropped") if size < len(task.inputs) else training.batch()

    def member(rate, key):
        optimizer = fnn.optimizers.gd(rate)
        fit = training.pure_fit(NETWORK, task.loss, optimizer, epochs=epochs, plan=plan, track=track)
        return fit(key, task.inputs, task.targets, (task.inputs, task.targets))  # the loss on all, after each epoch

    return jax.jit(jax.vmap(jax.vmap(member, (None, 0)), (0, None)))(jnp.asarray(rates), keys)


def noise_scale(task, params, inputs=None, targets=None) -> fnn.quantities.NoiseScale:
    x, t = (task.inputs, task.targets) if inputs is None else (inputs, targets)
    return fnn.quantities.noise_scale(NETWORK, task.loss, params, x, t)


def check(task, points: dict) -> list[dict]:
    """(a): at given parameters, means over batches divided by the value on all examples, and their standard errors."""
    x, t = jnp.asarray(task.inputs), jnp.asarray(task.targets)

    def estimates(params, size, keys):
        def estimate(key):
            some = jax.random.choice(key, len(x), (size,), replace=False)
            return noise_scale(task, params, x[some], t[some]).total

        return jax.lax.map(estimate, keys)

    rows, measure = [], jax.jit(estimates, static_argnums=1)
    for name, params in points.items():
        full = noise_scale(task, params).total
        for size in CHECKED:
            noise = jax.tree.map(np.asarray, measure(params, size, jax.random.split(jax.random.key(size), DRAWS)))
            row = {"parameters": name, "batch": size, "scale, full": float(full.scale)}
            for term in TERMS:
                ratio = getattr(noise, term) / float(getattr(full, term))
                row |= {f"{term} / full": float(ratio.mean()), f"{term}, se": float(ratio.std() / DRAWS**0.5)}
            row["median scale / full"] = float(np.median(noise.scale) / full.scale)
            row["signal lost"] = float(np.mean(np.isinf(noise.scale)))  # the share of batches with signal <= 0
            rows.append(row)
    return rows


def watch(task, keys, name: str, epochs: int) -> dict[str, np.ndarray]:
    """(b): by seed, from before training on, (seeds, E + 1): loss, and the noise scale of each layer and the whole."""
    size, rate, longer = WATCHED[name]
    # Quantities are tracked after each epoch only. `pure_fit` initializes the same parameters from the same key.
    start = [NETWORK.init(jax.random.split(key)[0]) for key in keys]
    before = [(training.evaluate(NETWORK, task.loss, p, *task[1:3])[0], noise_scale(task, p)) for p in start]
    history = run(task, size, np.array([rate]), keys, epochs * longer, track=("noise_scale",)).history
    after = jax.tree.map(lambda x: x[0], (history.validation_loss, history.tracked["noise_scale"]))
    first = jax.tree.map(lambda *x: jnp.stack(x)[:, None], *before)
    loss, scale = jax.tree.map(lambda *x: np.concatenate(x, axis=1), first, after)
    whole = {"loss": loss, "signal": scale.total.signal, "noise": scale.total.noise, "whole": scale.total.scale}
    return whole | {layer: noise.scale for layer, noise in scale.layers.items()}


def epochs_to(goal: float, loss: np.ndarray) -> np.ndarray:
    """Returns epochs (...) until the loss (..., E + 1), from before training on, is `goal`; inf where it never is.

    Between the ends of epochs the logarithm of the loss is interpolated linearly.
    """
    reached = loss <= goal
    after = np.maximum(reached.argmax(-1), 1)
    above, below = (np.log(np.take_along_axis(loss, at[..., None], -1))[..., 0] for at in (after - 1, after))
    back = np.where(above > below, (np.log(goal) - below) / np.where(above > below, above - below, 1), 0)
    return np.where(reached.any(-1), after - back, np.inf)


def tradeoff(task, keys, start, epochs: int, advance) -> tuple[list[dict], np.ndarray]:
    """(c): returns rows, and updates until the loss is GOAL (sizes, seeds), at the rate with the lowest median.

    start (seeds,): the loss before training.
    """
    examples, rows, updates = len(task.inputs), [], []
    for size in BATCHES:
        advance(3 + len(rows), f"batches of {size}")
        budget = epochs + epochs * size // 256  # gradient descent has one update an epoch
        loss = np.asarray(run(task, size, RATES, keys, budget).history.validation_loss)
        before = np.broadcast_to(start[None, :, None], (*loss.shape[:2], 1))
        needed = epochs_to(GOAL, np.nan_to_num(np.concatenate([before, loss], -1), nan=np.inf))
        best = int(experiments.best_rate(needed))
        updates.append(needed[best] * (examples // size))
        middle = float(np.median(updates[-1]))
        rows.append(
            {
                "batch": size,
                "best rate": float(RATES[best]),
                "epochs": float(np.median(needed[best])),
                "updates": middle,
                "fewest": float(updates[-1].min()),
                "most": float(updates[-1].max()),
                "examples": middle * size,
            }
        )
    return rows, np.stack(updates)


def law(updates: np.ndarray) -> tuple[float, float]:
    """Fits updates = S + E / B (sizes,) by least squares of the relative error; nan where fewer than two
    reached GOAL.
    """
    reached = np.isfinite(updates)
    if reached.sum() < 2:
        return np.nan, np.nan
    u, B = updates[reached], np.array(BATCHES)[reached]
    S, E = np.linalg.lstsq(np.stack([1 / u, 1 / (B * u)], axis=1), np.ones(len(u)), rcond=None)[0]
    return float(S), float(E)


def scale_until_goal(run: dict) -> np.ndarray:
    """Returns mean noise over mean signal until the loss was GOAL (the paper's App. A.1), (seeds,)."""
    way = run["loss"] > GOAL
    return np.mean(run["noise"], axis=1, where=way) / np.mean(run["signal"], axis=1, where=way)


def draw(checked: list[dict], watched: dict, rows: list[dict], fitted, critical):
    """Draws (a) ratios to the full data; (b) scales against the falling loss; (c) updates and examples by
    batch size.
    """
    with plt.rc_context(STYLE):
        figure, ((a, b), (c, d)) = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
        for k, name in enumerate(dict.fromkeys(row["parameters"] for row in checked)):
            of = [row for row in checked if row["parameters"] == name]
            size = [row["batch"] * 1.1 ** (2 * k - 1) for row in of]  # side by side
            for term, color in (("noise", BLUE), ("signal", VERMILION)):
                mean, error = ([row[f"{term}{column}"] for row in of] for column in (" / full", ", se"))
                a.errorbar(
                    size,
                    mean,
                    2 * np.array(error),
                    fmt="os"[k],
                    mfc=(color, "none")[k],
                    color=color,
                    capsize=2,
                    label=f"{term}, {name}",
                )
        a.axhline(1, color="grey", lw=1)
        a.set(xscale="log", xlabel="batch size", ylabel="mean over batches / full data", ylim=(-0.5, 2.5))
        for (name, of), line in zip(watched.items(), ("-", ":"), strict=True):
            for layer, color in COLORS.items():
                scale = np.median(of[layer], axis=0)  # inf where the signal is lost, which is not drawn
                b.plot(np.median(of["loss"], axis=0), scale, line, color=color, label=f"{layer}, {name}")
        b.axvline(GOAL, color="grey", lw=1)
        b.set(xscale="log", yscale="log", xlabel="training loss", ylabel="noise scale, examples")
        b.invert_xaxis()
        before = float(np.median(watched["gradient descent"]["whole"][:, 0]))
        c.axvline(before, color=GREEN, ls="--", label=f"noise scale before training, {before:.3g}")
        for (name, of), line in zip(watched.items(), ("-", ":"), strict=True):
            mean = float(np.median(scale_until_goal(of)))
            c.axvline(mean, color=VERMILION, ls=line, label=f"noise scale on the way, {name}, {mean:.3g}")
        reached, (S, E) = [row for row in rows if np.isfinite(row["updates"])], fitted
        if reached:
            size, updates, low, high = (
                np.array([r[k] for r in reached]) for k in ("batch", "updates", "fewest", "most")
            )
            c.errorbar(
                size,
                updates,
                np.nan_to_num([updates - low, high - updates], posinf=0),
                fmt="o",
                color="black",
                capsize=2,
                label="median, range of seeds",
            )
            d.plot(updates * size, updates, "o", color="black")
            for row in reached:
                place = {"xy": (row["examples"], row["updates"]), "xytext": (6, 4), "textcoords": "offset points"}
                d.annotate(f"{row['batch']}", **place, fontsize=8)
        if np.isfinite(critical).all():
            fine = np.geomspace(1, BATCHES[-1], 100)
            c.plot(fine, S + E / fine, color=BLUE, label=f"S + E / B, S = {S:.3g}, E = {E:.3g}")
            c.axvspan(*critical[1:], color=BLUE, alpha=0.15, lw=0)
            c.axvline(critical[0], color=BLUE, ls="--", label=f"E / S = {critical[0]:.3g}, range of seeds")
            d.plot(S * fine + E, S + E / fine, color=BLUE)
        c.set(xlabel="batch size B", ylabel=f"updates to loss {GOAL}")
        d.set(xlabel=f"examples to loss {GOAL}", ylabel=f"updates to loss {GOAL}")
        for axis in (c, d) if reached else ():
            axis.set(xscale="log", yscale="log")
        titles = (
            "a  unbiased: noise and signal, ± 2 se",
            f"b  noise scale in training (grey: loss {GOAL})",
            "c  updates, at the best rate of each B",
            "d  the tradeoff (numbers: B)",
        )
        for axis, title in zip((a, b, c, d), titles, strict=True):
            axis.set_title(title, loc="left")
        for axis in (a, b, c):
            axis.legend(fontsize=8, frameon=axis is c, framealpha=0.9)  # lines run behind it
    return figure


def notes(checked, watched, rows, fitted, critical) -> str:
    z = np.array([abs(row[f"{term} / full"] - 1) / row[f"{term}, se"] for row in checked for term in TERMS])
    medians, lost = [row["median scale / full"] for row in checked], max(checked, key=lambda row: row["signal lost"])
    lines = [
        f"(a) of {z.size} means of noise and signal over {DRAWS} batches, {np.sum(z > 2)} are more than 2 standard "
        f"errors from the full data's, the farthest {z.max():.1f}. The scale of single batches is no such estimate: "
        f"its median is {min(medians):.2f} to {max(medians):.2f} times the full data's, and up to "
        f"{lost['signal lost']:.0%} of the batches (those of {lost['batch']}, {lost['parameters']}) find no signal."
    ]
    for name, of in watched.items():
        loss, whole, way = np.median(of["loss"], axis=0), np.median(of["whole"], axis=0), scale_until_goal(of)
        last = int(np.argmax(loss <= GOAL)) if np.any(loss <= GOAL) else -1
        lines.append(
            f"(b) {name}: noise scale {whole[0]:.3g} before training, {whole[last]:.3g} at loss {loss[last]:.2g}; mean "
            f"noise / mean signal on the way {np.median(way):.3g} (seeds {way.min():.3g} to {way.max():.3g}), "
            f"{np.median(way) / critical[0]:.2g} times the critical batch size."
        )
        if np.isinf(whole).any():
            lines[-1] += (
                f" From loss {loss[np.isinf(whole).argmax()]:.2g} on the examples are too few to find a signal."
            )
    S, E = fitted
    reached = [row for row in rows if np.isfinite(row["updates"])]
    errors = [abs(row["updates"] / (S + E / row["batch"]) - 1) for row in reached]
    lines.append(
        f"(c) updates = {S:.3g} + {E:.4g} / B is within {max(errors, default=np.nan):.0%} of the medians; critical "
        f"batch size E / S = {critical[0]:.3g} (fits by seed: {critical[1]:.3g} to {critical[2]:.3g})."
    )
    edge = [str(row["batch"]) for row in reached if experiments.at_edge(row["best rate"], RATES)]
    return "\n".join(lines + ([f"Best rate at the grid's edge: batches of {', '.join(edge)}."] if edge else []))


def main() -> None:
    options = experiments.arguments(__doc__, "results/gradient_noise", seeds=5, epochs=30)
    task, keys = experiments.load("digits"), jax.random.split(jax.random.key(0), options.seeds)
    with progress("gradient noise", 3 + len(BATCHES)) as advance:
        watched = {name: watch(task, keys, name, options.epochs) for name in WATCHED}
        advance(2, "the scale from batches")
        start = NETWORK.init(jax.random.split(keys[0])[0])
        one_epoch = jax.tree.map(lambda p: p[0, 0], run(task, 32, np.array([0.25]), keys[:1], 1).params)
        checked = check(task, {"before training": start, "after one epoch": one_epoch})
        before = watched["gradient descent"]["loss"][:, 0]
        rows, updates = tradeoff(task, keys, before, options.epochs, advance)
    fitted = law(np.median(updates, axis=1))
    by_seed = [E / S for S, E in map(law, updates.T)]
    critical = fitted[1] / fitted[0], min(by_seed), max(by_seed)
    during = [
        {"run": name, "epoch": int(epoch)} | {column: float(np.median(of[column][:, epoch])) for column in of}
        for name, of in watched.items()
        for epoch in np.unique(np.geomspace(1, of["loss"].shape[1], 12).astype(int) - 1)
    ]
    said = notes(checked, watched, rows, fitted, critical)
    experiments.write(options.out, rows, draw(checked, watched, rows, fitted, critical), said)
    for name, of in (("estimates", checked), ("training", during)):
        experiments.write(experiments.sibling(options.out, name), of)


if __name__ == "__main__":
    main()
