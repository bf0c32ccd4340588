#!/usr/bin/env python
"""When does a network learn to copy? Two layers of attention, and their gradients while an induction head forms.

    python scripts/induction.py --seeds 3 --steps 1000 --out results/induction

Sequences of random tokens repeat with a period of 12 to 24, different for each sequence. From then on the next token is
known, but only to a network that looks up what came after the same token before: an induction head. It takes two layers
(Olsson et al. 2022, arXiv 2209.11895): a head of the first that reads the token before, so that each position knows
what it follows, and one of the second that looks for positions that follow a token like its own. The networks here have
attention and nothing else: no hidden layers, and 1 (which cannot do it) or 2 layers of attention. Each update draws new
sequences, so that nothing can be memorized.

OUT_steps has, every few updates and on sequences of their own: losses where the sequence repeats and where it does not;
each network's best head's share of attention on the token after the same one, a period before (induction), and on the
token before; the norms of the examples' own gradients; the gradient's noise scale; and the extreme eigenvalues of the
Hessian; all by hand. OUT says when the head appears, and how these quantities change then.
"""

import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, ORANGE, VERMILION
from functional_nn.lab.plots import STYLE, plt

TOKENS, LENGTH, PERIODS = 64, 48, (12, 24)  # the shortest and the longest
WIDTH, HEADS, LAYERS = 64, 2, (1, 2)
BATCH, RATE, WARMUP, EVERY = 32, 0.002, 50, 25  # EVERY: updates between measurements
MEASURED, CURVED, PRODUCTS = 256, 64, 20  # sequences of a measurement, and of its eigenvalues; Lanczos steps
LOSS = "cross_entropy"
CHANCE = np.log(TOKENS)


def network(layers: int) -> fnn.Network:
    """Layers of attention with rotary positions, each normalized before and added to its input."""
    built = [fnn.Layer("embedding", WIDTH, "linear", (("tokens", f"embedding({TOKENS})"),), bias="none")]
    for number in range(1, layers + 1):
        before = built[-1].name
        built += [
            fnn.Layer(f"norm{number}", WIDTH, "rms_norm", ((before, "identity"),), bias="none"),
            fnn.Layer(f"attention{number}", WIDTH, f"attention({HEADS}, True, True)", (f"norm{number}",)),
            fnn.Layer(f"mixed{number}", WIDTH, "linear", (f"attention{number}", (before, "identity"))),
        ]
    built.append(fnn.Layer("norm", WIDTH, "rms_norm", ((built[-1].name, "identity"),), bias="none"))
    built.append(fnn.Layer("output", TOKENS, "softmax", ("norm",)))
    return fnn.graph(inputs={"tokens": (LENGTH,)}, layers=built)


def sequences(key, count: int):
    """Draws tokens (Q, T), the next of each (Q, T), and the periods (Q,) with which random tokens repeat."""
    period_key, token_key = jax.random.split(key)
    period = jax.random.randint(period_key, (count,), PERIODS[0], PERIODS[1] + 1)
    tokens = jax.random.randint(token_key, (count, PERIODS[1]), 0, TOKENS)
    tokens = jnp.take_along_axis(tokens, jnp.arange(LENGTH + 1)[None, :] % period[:, None], axis=1)
    return tokens[:, :-1], tokens[:, 1:], period


def share(probabilities, back, counted):
    """Returns each head's mean probability of the position `back` (Q,) before, at positions `counted` (Q, T).

    probabilities: (Q, H, T, T).
    """
    at = jnp.maximum(jnp.arange(LENGTH)[None, :] - back[:, None], 0)
    each = jnp.take_along_axis(probabilities, at[:, None, :, None], axis=3)[..., 0]  # (Q, H, T)
    return jnp.mean(each, axis=(0, 2), where=counted[:, None, :])


def measure(described: fnn.Network, params) -> dict:
    """Measures losses, shares of attention by layer, gradients and curvature on MEASURED sequences."""
    x, following, period = sequences(jax.random.key(1), MEASURED)
    t, again = fnn.one_hot(following, TOKENS), jnp.arange(LENGTH)[None, :] >= period[:, None]
    trace = described.forward(params, x)
    losses = -jnp.take_along_axis(jnp.log(trace.activations["output"]), following[..., None], axis=2)[..., 0]
    found = {"loss, new": jnp.mean(losses, where=~again), "loss, again": jnp.mean(losses, where=again)}
    for name, back, counted in (
        ("previous", jnp.ones_like(period), jnp.broadcast_to(jnp.arange(LENGTH) > 0, again.shape)),
        ("induction", period - 1, again),
    ):
        for layer in (1, 2):
            kept = trace.kept.get(f"attention{layer}")
            found[f"{name}, layer {layer}"] = (
                jnp.nan if kept is None else jnp.max(share(kept.probabilities, back, counted))
            )
    names = ("per_example_norms", "noise_scale")
    quantities = fnn.quantities.compute(described, LOSS, params, x, t, names)
    low, middle, high = jnp.quantile(quantities["per_example_norms"], jnp.array([0.1, 0.5, 0.9]))
    noise = quantities["noise_scale"].total
    extremes = fnn.curvature.extreme_eigenvalues(
        described, LOSS, params, x[:CURVED], t[:CURVED], key=jax.random.key(2), steps=PRODUCTS
    )
    return found | {
        "norm": middle,
        "norm, 10 %": low,
        "norm, 90 %": high,
        "gradient": jnp.sqrt(jnp.maximum(noise.signal, 0)),
        "noise scale": noise.scale,
        "lambda_max": extremes.largest,
        "lambda_min": extremes.smallest,
        "residual": extremes.residuals[1] / extremes.largest,
    }


@cache  # compiled once for all seeds
def programs(layers: int):
    """Returns three functions for a network: its first state, EVERY updates, and a measurement."""
    described, schedule = network(layers), optimizers.schedules.linear_warmup(RATE, WARMUP)
    optimizer = optimizers.clip_by_global_norm(optimizers.adam(schedule, b2=0.99), 1.0)
    step = training.train_step(described, LOSS, optimizer)

    def update(state, key):
        x, following, _ = sequences(key, BATCH)
        return step(state, training.Batch({"tokens": x}, fnn.one_hot(following, TOKENS)))[0], None

    def on(state, key):
        return jax.lax.scan(update, state, jax.random.split(key, EVERY))[0]

    def start(key):
        return optimizer.init(described.init(key))

    return start, jax.jit(on), jax.jit(lambda state: measure(described, state.params))


def follow(layers: int, seed: int, steps: int, advance) -> list[dict]:
    """Trains, and makes a row for each measurement, from initial weights on."""
    start, on, measured = programs(layers)
    key, rows = jax.random.key(seed), []
    state = start(key)
    for number in range(0, steps + 1, EVERY):
        found = {name: float(value) for name, value in measured(state).items()}
        rows.append({"layers": layers, "seed": seed, "step": number} | found)
        advance(f"{layers} layers, seed {seed}, step {number}")
        state = on(state, jax.random.fold_in(key, number))
    return rows


def first_step(rows: list[dict], holds) -> float:
    """Returns the step of the first row from which on `holds` is true; nan where it is not at the end."""
    held = [holds(r) for r in rows]
    since = len(held) - held[::-1].index(False) if False in held else 0
    return rows[since]["step"] if since < len(rows) else np.nan


def summary(rows: list[dict]) -> dict:
    """Makes a row for one training: when the heads appear, when the loss falls, and when quantities are extreme."""
    last = rows[-1]
    out = {
        "layers": last["layers"],
        "seed": last["seed"],
        "loss, new": last["loss, new"],
        "loss, again": last["loss, again"],
    }

    def above_half(name):
        return lambda r: r["layers"] > 1 and r[name] > last[name] / 2

    heads = {
        "previous, layer 1": last["previous, layer 1"],
        "previous, from step": first_step(rows, above_half("previous, layer 1")),
        "induction, layer 2": last["induction, layer 2"],
        "induction, from step": first_step(rows, above_half("induction, layer 2")),
        "loss halved at step": first_step(rows, lambda r: r["loss, again"] < CHANCE / 2),
    }
    late = rows[1:]  # without the initial weights
    peaks = {f"{name} peaks at": max(late, key=lambda r: r[name])["step"] for name in ("norm", "lambda_max")}
    return out | heads | peaks | {"noise scale lowest at": min(late, key=lambda r: r["noise scale"])["step"]}


def draw(every: dict[tuple, list[dict]], steps: int):
    """Draws losses, attention, norms, curvature and noise against the step; a line for each seed."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(5, 1, figsize=(9.5, 14), sharex=True, layout="constrained")
        losses, attention, norms, curvature, noise = axes
        for (layers, seed), rows in every.items():
            at = [r["step"] for r in rows]

            def column(name, rows=rows):
                return np.array([r[name] for r in rows])

            def label(text, seed=seed):
                return text if seed == 0 else None

            if layers == 1:
                losses.plot(at, column("loss, again"), color="grey", lw=1, label=label("repeated, 1 layer"))
                continue
            style = {"lw": 1.8 if seed == 0 else 0.8}
            losses.plot(at, column("loss, again"), color=BLUE, **style, label=label("repeated, 2 layers"))
            losses.plot(at, column("loss, new"), color=ORANGE, **style, label=label("new tokens, 2 layers"))
            attention.plot(
                at,
                column("induction, layer 2"),
                color=BLUE,
                **style,
                label=label("layer 2, on the token after the same one (induction)"),
            )
            attention.plot(
                at, column("previous, layer 1"), color=VERMILION, **style, label=label("layer 1, on the token before")
            )
            norms.plot(at, column("norm"), color=BLUE, **style, label=label("an example's: median"))
            if seed == 0:
                norms.fill_between(
                    at,
                    column("norm, 10 %"),
                    column("norm, 90 %"),
                    color=BLUE,
                    alpha=0.15,
                    lw=0,
                    label="an example's: 10 % to 90 %",
                )
            norms.plot(at, column("gradient"), color=VERMILION, **style, label=label("their mean's, less its noise"))
            curvature.plot(at, column("lambda_max"), color=BLUE, **style, label=label(r"$\lambda_{max}$"))
            curvature.plot(at, -column("lambda_min"), color=VERMILION, **style, label=label(r"$-\lambda_{min}$"))
            scale = np.where(np.isfinite(column("noise scale")), column("noise scale"), np.nan)
            noise.plot(at, scale, color=BLUE, **style, label=label("noise scale"))
        losses.axhline(CHANCE, color="grey", ls=":", lw=1, label=f"chance: ln {TOKENS}")
        noise.axhline(BATCH, color="grey", ls=":", lw=1, label="batch size")
        appears = summary(every[2, 0])["induction, from step"]
        for axis in axes:
            if not np.isnan(appears):
                axis.axvline(appears, color="grey", lw=0.8)
            axis.legend(fontsize=8)
        losses.set(ylabel="loss, nats a token", ylim=(0, None))
        attention.set(ylabel="share of attention", ylim=(0, 1))
        norms.set(ylabel="norm of the gradient", yscale="log")
        curvature.set(ylabel="eigenvalue of the Hessian", yscale="log")
        noise.set(
            ylabel="noise scale, sequences", yscale="log", ylim=(BATCH / 2, None), xlabel="update", xlim=(0, steps)
        )
        noise.set_yticks((20, 50, 100, 200, 500), (20, 50, 100, 200, 500))
        noise.minorticks_off()
        losses.set_title(
            "two layers of attention learn to copy; thick and the line, where its induction head is half there: seed 0",
            loc="left",
            fontsize=10,
        )
    return figure


def notes(summaries: list[dict], every: dict[tuple, list[dict]]) -> str:
    lines = [
        "Steps from which on, to the end, a head gives more than half of what it gives at the end: one of layer 1 to "
        "the token before (previous), one of layer 2 to the token after the same one (induction); and from which on "
        f"the loss where tokens repeat is below half of ln {TOKENS} = {CHANCE:.3g}, nan where it is not at the end. "
        f"Measured every {EVERY} updates on {MEASURED} sequences; the noise scale is infinite where noise hides the "
        "mean gradient."
    ]
    names, ratios = ("norm", "lambda_max", "lambda_min", "noise scale"), []
    for row in summaries:
        if row["layers"] == 1:
            lines.append(f"1 layer, seed {row['seed']}: {row['loss, again']:.3g} where tokens repeat, at the end.")
            continue
        rows = every[2, row["seed"]]
        appears = row["induction, from step"]
        said = f"2 layers, seed {row['seed']}: {row['loss, again']:.3g} where tokens repeat"
        if np.isnan(appears):
            lines.append(f"{said}; no induction head.")
            continue
        at = next(number for number, r in enumerate(rows) if r["step"] == appears)
        plateau, then = rows[max(1, at // 2)], rows[at]
        ratios.append([then[name] / plateau[name] for name in names])
        moved = "; ".join(f"{name} {plateau[name]:.3g}, {then[name]:.3g}, {rows[-1][name]:.3g}" for name in names)
        lines.append(
            f"{said}; the head is there from step {appears}. At steps {plateau['step']} (half way), {appears} "
            f"and {rows[-1]['step']}: {moved}."
        )
    if ratios:
        said = "; ".join(
            f"{name} {min(of):.2g} to {max(of):.2g} times"
            for name, of in zip(names, zip(*ratios, strict=True), strict=True)
        )
        lines.append(f"When the head is there, relative to half way to it, over seeds: {said}.")
    worst = max(r["residual"] for rows in every.values() for r in rows)
    lines.append(f"Lanczos, {PRODUCTS} products: the residual of lambda_max is {worst:.1%} of it at most.")
    return experiments.paragraphs(*lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/induction", seeds=3, steps=1000)
    every, began = {}, time.perf_counter()
    trainings = [(layers, seed) for layers in LAYERS for seed in range(options.seeds)]
    with experiments.counted("induction", len(trainings) * (options.steps // EVERY + 1)) as advance:
        for layers, seed in trainings:
            every[layers, seed] = follow(layers, seed, options.steps, advance)
    steps = [row for rows in every.values() for row in rows]
    experiments.write(experiments.sibling(options.out, "steps"), steps)
    summaries = [summary(rows) for rows in every.values()]
    said = f"{notes(summaries, every)}\nEverything together, with compilation: {time.perf_counter() - began:.0f} s."
    experiments.write(
        options.out,
        summaries,
        draw(every, options.steps),
        said,
        "Losses, attention, gradient norms, curvature and noise scale against the update",
    )


if __name__ == "__main__":
    main()
