#!/usr/bin/env python
"""When does a network learn to copy? Two layers of attention, and their gradients while an induction head forms.

    python scripts/induction.py --seeds 3 --steps 1000 --out results/induction

Sequences of random tokens begin again after a period of 12 to 24, another for each: what follows is then known, but
only to who looks up what came after the same token before, an induction head. It takes two layers (Olsson et al. 2022,
arXiv 2209.11895): a head of the first that reads the token before, so that each position knows what it follows, and
one of the second that looks for positions that follow a token like its own. The networks here have attention and
nothing else: no hidden layers, 1 (which cannot do it) or 2 of attention. Each update draws new sequences, so that
nothing can be learnt by heart.

OUT_steps has, every few updates and on sequences of their own, losses where the sequence repeats and where it does
not, each network's best head's share of attention on the token after the same one, a period before (induction), and on
the token before; the norms of the examples' own gradients, the gradient's noise scale and the extreme eigenvalues of
the Hessian: all by hand. OUT says when the head appears, and what they do then.
"""

import textwrap
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
from functional_nn.lab.progress import progress

TOKENS, LENGTH, PERIODS = 64, 48, (12, 24)  # the shortest and the longest
WIDTH, HEADS, LAYERS = 64, 2, (1, 2)
BATCH, RATE, WARMUP, EVERY = 32, 0.002, 50, 25  # updates between measurements
MEASURED, CURVED, PRODUCTS = 256, 64, 20  # sequences of a measurement, of its eigenvalues, and products of these
LOSS = "cross_entropy"
CHANCE = np.log(TOKENS)


def network(layers: int) -> fnn.Network:
    """Attention with rotary positions, each added to what it reads, normalized before."""
    found = [fnn.Layer("embedding", WIDTH, "linear", (("tokens", f"embedding({TOKENS})"),), bias="none")]
    for number in range(1, layers + 1):
        before = found[-1].name
        found += [
            fnn.Layer(f"norm{number}", WIDTH, "rms_norm", ((before, "identity"),), bias="none"),
            fnn.Layer(f"attention{number}", WIDTH, f"attention({HEADS}, True, True)", (f"norm{number}",)),
            fnn.Layer(f"mixed{number}", WIDTH, "linear", (f"attention{number}", (before, "identity"))),
        ]
    found.append(fnn.Layer("norm", WIDTH, "rms_norm", ((found[-1].name, "identity"),), bias="none"))
    found.append(fnn.Layer("output", TOKENS, "softmax", ("norm",)))
    return fnn.graph(inputs={"tokens": (LENGTH,)}, layers=found)


def sequences(key, count: int):
    """Tokens (Q, T), what follows each (Q, T), and the periods (Q,) after which random tokens come again."""
    of_period, of_tokens = jax.random.split(key)
    period = jax.random.randint(of_period, (count,), PERIODS[0], PERIODS[1] + 1)
    tokens = jax.random.randint(of_tokens, (count, PERIODS[1]), 0, TOKENS)
    tokens = jnp.take_along_axis(tokens, jnp.arange(LENGTH + 1)[None, :] % period[:, None], axis=1)
    return tokens[:, :-1], tokens[:, 1:], period


def share(probabilities, back, counted):
    """(H,): the mean probability (Q, H, T, T) of the position `back` (Q,) before, at positions `counted` (Q, T)."""
    at = jnp.maximum(jnp.arange(LENGTH)[None, :] - back[:, None], 0)
    there = jnp.take_along_axis(probabilities, at[:, None, :, None], axis=3)[..., 0]  # (Q, H, T)
    return jnp.mean(there, axis=(0, 2), where=counted[:, None, :])


def measure(described: fnn.Network, params) -> dict:
    """Losses, shares of attention by layer, and what gradients and curvature are, of MEASURED sequences."""
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


@cache
def programs(layers: int):
    """Of a network: its first state by a key, EVERY updates, and a measurement, compiled once for all seeds."""
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
    """A row a measurement, from initial weights on."""
    start, on, measured = programs(layers)
    key, rows = jax.random.key(seed), []
    state = start(key)
    for number in range(0, steps + 1, EVERY):
        found = {name: float(value) for name, value in measured(state).items()}
        rows.append({"layers": layers, "seed": seed, "step": number} | found)
        advance(f"{layers} layers, seed {seed}, step {number}")
        state = on(state, jax.random.fold_in(key, number))
    return rows


def first(rows: list[dict], holds) -> float:
    """The step of the first row from which on `holds`, up to the last; nan where it does not at the end."""
    held = [holds(r) for r in rows]
    since = len(held) - held[::-1].index(False) if False in held else 0
    return rows[since]["step"] if since < len(rows) else np.nan


def summary(rows: list[dict]) -> dict:
    """Of one training: when the heads are there, when the loss falls, and where the quantities have their extremes."""
    last = rows[-1]
    out = {
        "layers": last["layers"],
        "seed": last["seed"],
        "loss, new": last["loss, new"],
        "loss, again": last["loss, again"],
    }

    def half(name):
        return lambda r: r["layers"] > 1 and r[name] > last[name] / 2

    there = {
        "previous, layer 1": last["previous, layer 1"],
        "previous, from step": first(rows, half("previous, layer 1")),
        "induction, layer 2": last["induction, layer 2"],
        "induction, from step": first(rows, half("induction, layer 2")),
        "loss halved at step": first(rows, lambda r: r["loss, again"] < CHANCE / 2),
    }
    late = rows[1:]  # not the first, of initial weights
    peaks = {f"{name} peaks at": max(late, key=lambda r: r[name])["step"] for name in ("norm", "lambda_max")}
    return out | there | peaks | {"noise scale lowest at": min(late, key=lambda r: r["noise scale"])["step"]}


def draw(every: dict[tuple, list[dict]], steps: int):
    """Losses, attention, norms, curvature and noise against the step, one under the other; a line a seed."""
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
    for one in summaries:
        if one["layers"] == 1:
            lines.append(f"1 layer, seed {one['seed']}: {one['loss, again']:.3g} where tokens repeat, at the end.")
            continue
        rows = every[2, one["seed"]]
        appears = one["induction, from step"]
        said = f"2 layers, seed {one['seed']}: {one['loss, again']:.3g} where tokens repeat"
        if np.isnan(appears):
            lines.append(f"{said}; no induction head.")
            continue
        at = next(number for number, r in enumerate(rows) if r["step"] == appears)
        plateau, there = rows[max(1, at // 2)], rows[at]
        ratios.append([there[name] / plateau[name] for name in names])
        moved = "; ".join(f"{name} {plateau[name]:.3g}, {there[name]:.3g}, {rows[-1][name]:.3g}" for name in names)
        lines.append(
            f"{said}; the head is there from step {appears}. At steps {plateau['step']} (half way), {appears} "
            f"and {rows[-1]['step']}: {moved}."
        )
    if ratios:
        said = "; ".join(
            f"{name} {min(of):.2g} to {max(of):.2g} times"
            for name, of in zip(names, zip(*ratios, strict=True), strict=True)
        )
        lines.append(f"When the head is there, beside half way to it, over seeds: {said}.")
    worst = max(r["residual"] for rows in every.values() for r in rows)
    lines.append(f"Lanczos, {PRODUCTS} products: the residual of lambda_max is {worst:.1%} of it at most.")
    return "\n".join(textwrap.fill(line, 118) for line in lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/induction", seeds=3, steps=1000)
    every, done, began = {}, 0, time.perf_counter()
    of = [(layers, seed) for layers in LAYERS for seed in range(options.seeds)]
    with progress("induction", len(of) * (options.steps // EVERY + 1)) as advance:

        def further(text: str) -> None:
            nonlocal done
            done += 1
            advance(done, text)

        for which in of:
            every[which] = follow(*which, options.steps, further)
    steps = [row for rows in every.values() for row in rows]
    experiments.write(options.out.with_name(f"{options.out.name}_steps"), steps)
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
