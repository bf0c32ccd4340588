#!/usr/bin/env python
"""A small transformer learns the source text of Python's standard library, next to gzip and n-grams, and `jax.grad`.

    python scripts/transformer.py --updates 8000 --out results/transformer

The text is the modules at the top of the standard library of the Python that runs this, those that are ASCII, so that a
character is a byte. Every tenth module is held out as a whole. A network of two blocks of attention reads 64 characters
and predicts each next one.

OUT: bits a held-out character by the network in training; by gzip, bz2 and xz (of the held-out modules alone, and of
what they add to the compressed modules that the network is trained on); and by n-grams counted in these, interpolated
as by Witten and Bell. The network predicts every character once, from the 33 to 64 before it: windows begin every 32
characters, and the second half of each counts. The first 33 characters count for the compressors alone. Rotary
positions (learned ones were tried) and the rate (0.003 and 0.006 were) were chosen by trainings of 800 updates and the
same held-out modules, from 2.20 to 2.06 bits.

OUT_agreement: `fnn.compare` by layer, before and after training: the hand-written sensitivities and gradients compared
with `jax.grad`'s, relatively, and the bound from rounding.

OUT_attention: where the heads look. They are drawn for a piece of held-out text; the table has, on average over others,
the share that goes to the character itself, to the one before, and to those that follow an earlier one of the same.
"""

import bz2
import gzip
import hashlib
import lzma
import platform
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import experiments, texts
from functional_nn.lab.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

NETWORK, CONTEXT, BATCH = "transformer(layers=2, heads=4, width=128, positions=rotary)", 64, 32
RATE, DECAY, WARMUP = 0.005, 1e-4, 100  # Adam's rate and weight decay rise for WARMUP updates, then fall as a cosine
LARGEST = 1.0  # the norm to which gradients are clipped
MODULES, FIRST, MEASUREMENTS = 1000, 100, 12  # the most modules; updates to the first of the measurements
ORDERS = range(1, 7)  # of n-grams
COMPRESSORS = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "bz2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}
COMPARED, LOOKED, SHOWN = 4, 256, 34  # windows compared, windows measured, characters drawn
MINUTES = 15
PROMPT = "def read"
LOSS = "cross_entropy"


class Source(NamedTuple):
    """Modules to train on and held-out ones, each as a text and as tokens (N,), and the characters in use."""

    modules: int
    text: str
    held_out: str
    tokens: np.ndarray
    held_out_tokens: np.ndarray
    classes: tuple[str, ...]

    @property
    def network(self) -> fnn.Network:
        V = len(self.classes)
        return fnn.presets.get(NETWORK)(CONTEXT, V, tokens=V, each_position=True)


def load() -> Source:
    files = (path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    modules = [data.decode().replace("\r\n", "\n") for data in files if data.isascii()][:MODULES]
    held_out = "".join(modules[5::10])
    text = "".join(module for number, module in enumerate(modules) if number % 10 != 5)
    classes = tuple(sorted({*text, *held_out}))
    tokens = (texts.encode(each, "character", classes, "the library") for each in (text, held_out))
    return Source(len(modules), text, held_out, *tokens, classes)


# Bits a character -----------------------------------------------------------------------------------------------------


def compressed(source: Source) -> list[dict]:
    data, rest = source.held_out.encode(), source.text.encode()
    rows = []
    for name, compress in COMPRESSORS.items():
        alone, added = len(compress(data)), len(compress(rest + data)) - len(compress(rest))
        for how, size in (("held out alone", alone), ("added to the rest", added)):
            rows.append(row(f"{name}, {how}", 8 * size / len(data)))
    return rows


def n_grams(tokens: np.ndarray, held_out: np.ndarray, V: int, orders: range) -> list[np.ndarray]:
    """Returns the probability of each held-out token (N,) by n-grams of each order, from 1 on without gaps.

    They are interpolated by Witten and Bell 1991, method C. If a context c occurred N(c) times, followed by T(c)
    different tokens, P(x | c) = (N(cx) + T(c) P(x | c')) / (N(c) + T(c)), where c' is c without its first token, and P
    = 1 / V without a context. The first tokens have shorter contexts.
    """

    def codes(stream: np.ndarray, n: int) -> np.ndarray:
        code = np.zeros(len(stream) - n + 1, np.int64)
        for first in range(n):
            code = code * V + stream[first : len(stream) - n + 1 + first]
        return code

    def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, values[at], 0)

    p, found = np.full(len(held_out), 1 / V), []
    for n in orders:
        grams, N = np.unique(codes(tokens, n), return_counts=True)
        contexts, starts = np.unique(grams // V, return_index=True)
        T, N_c = np.diff(np.append(starts, len(grams))), np.add.reduceat(N, starts)
        wanted = codes(held_out, n)
        by_context = (look_up(contexts, count, wanted // V) for count in (N_c, T))
        N_cx, (N_c, T), lower = look_up(grams, N, wanted), by_context, p[n - 1 :]
        known = N_c > 0
        p = p.copy()
        p[n - 1 :] = np.where(known, (N_cx + T * lower) / np.where(known, N_c + T, 1), lower)
        found.append(p)
    return found


def bits(network: fnn.Network, params, tokens: np.ndarray) -> float:
    """Returns bits a token, over all but the first CONTEXT / 2 + 1; an incomplete window at the end is not read."""
    unread, losses, counts = CONTEXT // 2, [], []
    for stream in (tokens, tokens[unread:]):
        windows = fnn.windows(stream, CONTEXT)
        latter = np.broadcast_to(np.arange(CONTEXT) >= unread, windows.shape).astype("f4")
        losses.append(float(training.evaluate(network, LOSS, params, windows, weights=latter)[0]))
        counts.append(len(windows))
    return float(np.average(losses, weights=counts) / np.log(2))


def row(model: str, found: float, minutes: float = np.nan, processor: float = np.nan, training_bits: float = np.nan):
    return {
        "model": model,
        "bits a character": found,
        "minutes": minutes,
        "processor minutes": processor,
        "bits, training": training_bits,
    }


# Training -------------------------------------------------------------------------------------------------------------


def optimizer(updates: int) -> fnn.optimizers.Optimizer:
    warmup = min(WARMUP, updates // 2)

    def falling(highest: float) -> optimizers.schedules.Schedule:
        then = optimizers.schedules.cosine(highest, updates - warmup, highest / 100)
        return optimizers.schedules.linear_warmup(then, warmup)

    decayed = optimizers.decoupled_weight_decay(optimizers.adam(falling(RATE), b2=0.99), falling(DECAY))
    return optimizers.clip_by_global_norm(decayed, LARGEST)


def train(source: Source, updates: int) -> tuple[list[dict], dict]:
    """Trains. Returns a row for each measurement, with the time so far (compilation included), and the parameters."""
    network, method, rows = source.network, optimizer(updates), []
    step, tokens = training.train_step(network, LOSS, method), jnp.asarray(source.tokens)
    marks = np.unique(np.geomspace(min(FIRST, updates), updates, MEASUREMENTS).astype(int)).tolist()

    @jax.jit
    def on(state, first, last):
        def update(number, carry):
            state, total = carry
            # Windows begin anywhere in the text.
            starts = jax.random.randint(jax.random.key(number), (BATCH,), 0, len(tokens) - CONTEXT)
            windows = tokens[starts[:, None] + jnp.arange(CONTEXT + 1)[None, :]]
            batch = training.Batch({"sequence": windows[:, :-1]}, fnn.one_hot(windows[:, 1:], len(source.classes)))
            state, metrics = step(state, batch)
            return state, total + metrics.loss

        state, total = jax.lax.fori_loop(first, last, update, (state, jnp.zeros(())))
        return state, total / (last - first)

    state, spent = method.init(network.init(jax.random.key(0))), np.zeros(2)
    with progress("transformer", updates) as advance:
        for first, last in zip([0, *marks], marks, strict=False):
            began = np.array([time.perf_counter(), time.process_time()])
            state, loss = jax.block_until_ready(on(state, first, last))
            spent += np.array([time.perf_counter(), time.process_time()]) - began
            found = bits(network, state.params, source.held_out_tokens)
            rows.append(row(f"transformer, {last} updates", found, *spent / 60, float(loss) / np.log(2)))
            advance(last, f"{found:.3f} bits a character")
    return rows, state.params


# Agreement and attention ----------------------------------------------------------------------------------------------


def agreement(source: Source, when: str, params) -> tuple[list[dict], fnn.Agreement]:
    """Makes a row for each layer: relative differences of sensitivity and gradients, with the bound from rounding."""
    network = source.network
    pieces = source.held_out_tokens[: COMPARED * CONTEXT + 1].astype(np.int32)
    inputs, following = (piece.reshape(COMPARED, CONTEXT) for piece in (pieces[:-1], pieces[1:]))
    comparison = fnn.compare(network, LOSS, params, inputs, fnn.one_hot(following, len(source.classes)))
    sensitivities = {array.name: array for array in comparison.sensitivities}
    rows = []
    for layer in network.layers:
        own = [array for array in comparison.parameters if array.name.split("/")[0] == layer.name]
        compared = {"sensitivity": [sensitivities[layer.name]], "gradients": own}
        line = {"parameters": when, "layer": layer.name, "activation": layer.activation.name}
        for name, arrays in compared.items():
            worst = max(arrays, key=lambda array: array.relative / array.bound, default=None)
            line |= {name: worst.relative if arrays else "", f"{name}, bound": worst.bound if arrays else ""}
        agrees = all(array.agrees for arrays in compared.values() for array in arrays)
        rows.append(line | {"agrees": "yes" if agrees else "NO"})
    return rows, comparison


def attentions(source: Source, params, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {layer: probabilities (Q, H, T, T)} of windows (Q, T)."""
    kept = source.network.forward(params, tokens.astype(np.int32)).kept
    return {name: np.asarray(own.probabilities) for name, own in kept.items() if hasattr(own, "probabilities")}


def attention_rows(source: Source, params) -> list[dict]:
    """Makes a row for each head: shares of attention, and how far and how widely it looks, over held-out positions."""
    windows = np.lib.stride_tricks.sliding_window_view(source.held_out_tokens, CONTEXT)[::CONTEXT][:LOOKED]
    t, rows = np.arange(CONTEXT), []
    # u follows an earlier character that is the same as that at t
    follows = np.zeros((len(windows), CONTEXT, CONTEXT), bool)
    follows[:, :, 1:] = windows[:, :, None] == windows[:, None, :-1]
    follows &= t[None, :] <= t[:, None]
    for layer, p in attentions(source, params, windows).items():
        for head in range(p.shape[1]):
            half = p[:, head, CONTEXT // 2 :]  # (Q, T / 2, T): positions with many characters before them
            at = t[CONTEXT // 2 :]
            rows.append(
                {
                    "layer": layer,
                    "head": head + 1,
                    "itself": float(half[:, at - CONTEXT // 2, at].mean()),
                    "the one before": float(half[:, at - CONTEXT // 2, at - 1].mean()),
                    "after the same": float(np.sum(half * follows[:, CONTEXT // 2 :], axis=2).mean()),
                    "characters back": float(np.sum(half * (at[:, None] - t[None, :]), axis=2).mean()),
                    "entropy, bits": float(-np.sum(half * np.log2(np.maximum(half, 1e-30)), axis=2).mean()),
                }
            )
    return rows


# The notes and pictures -----------------------------------------------------------------------------------------------


def draw(rows: list[dict]):
    """Draws bits a held-out character over the minutes, and next to it those of compressors and n-grams."""
    own = [r for r in rows if not np.isnan(r["minutes"])]
    rest = sorted((r for r in rows if np.isnan(r["minutes"])), key=lambda r: r["bits a character"])
    shades = {"gzip": VERMILION, "bz2": ORANGE, "xz": PURPLE}
    with plt.rc_context(STYLE):
        figure, (curve, bars) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained", width_ratios=(1.25, 1))
        minutes = [r["processor minutes"] for r in own]
        curve.plot(minutes, [r["bits, training"] for r in own], color="grey", lw=1, label="transformer, training")
        curve.plot(minutes, [r["bits a character"] for r in own], color=BLUE, marker=".", label="transformer, held out")
        for name, color, style in (
            ("gzip, held out alone", shades["gzip"], "--"),
            ("3-gram", GREEN, "-."),
            ("5-gram", GREEN, ":"),
        ):
            level = next(r["bits a character"] for r in rest if r["model"] == name)
            curve.axhline(level, color=color, ls=style, lw=1.2, label=name)
        curve.set(
            xscale="log", xlabel="minutes of training, of processor", ylabel="bits a character", title="in training"
        )
        curve.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
        curve.xaxis.set_major_formatter("{x:g}")
        curve.minorticks_off()
        curve.set_ylim(top=min(5, max(r["bits a character"] for r in own) + 0.3))
        curve.legend()
        every = sorted([own[-1], *rest], key=lambda r: -r["bits a character"])
        colors = [shades.get(r["model"].split(",")[0], GREEN if "gram" in r["model"] else BLUE) for r in every]
        drawn = bars.barh([r["model"] for r in every], [r["bits a character"] for r in every], color=colors)
        bars.bar_label(drawn, fmt="%.2f", padding=3)
        bars.set(xlabel="bits a character", title="held-out modules")
        bars.grid(visible=False)
    return figure


def visible(character: str) -> str:
    return {" ": "\N{OPEN BOX}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"}.get(character, character)


def first_function(source: Source) -> int:
    """Returns where the first function after the middle of the held-out text begins."""
    return max(0, source.held_out.find("    def ", len(source.held_out) // 2))


def draw_attention(source: Source, params):
    """Draws a picture for each head, layer under layer: from the characters at the side to those below."""
    start = first_function(source)
    found = attentions(source, params, source.held_out_tokens[start : start + CONTEXT][None])
    characters = [visible(c) for c in source.held_out[start : start + SHOWN]]
    heads = next(iter(found.values())).shape[1]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(
            len(found), heads, figsize=(5 * heads, 5.2 * len(found)), layout="constrained", squeeze=False
        )
        for line, (layer, p) in zip(axes, found.items(), strict=True):
            for head, axis in enumerate(line):
                drawn = axis.imshow(p[0, head, :SHOWN, :SHOWN], cmap="Blues", vmin=0, vmax=1)
                axis.set_title(f"{layer.removesuffix('_attention')}, head {head + 1}", loc="left")
                axis.set_xticks(range(SHOWN), characters, family="monospace", fontsize=8)
                axis.set_yticks(range(SHOWN), characters, family="monospace", fontsize=8)
                axis.tick_params(length=0)
            line[0].set_ylabel("at this character ...")
        for axis in axes[-1]:
            axis.set_xlabel("... it reads these")
        figure.colorbar(drawn, ax=axes, shrink=0.6, label="probability", pad=0.01)
    return figure


def generated(source: Source, params) -> str:
    """Returns the prompt and the text with which the network continues it."""
    prompt = texts.encode(PROMPT, "character", source.classes, "the prompt")
    tokens = fnn.generate(source.network, params, prompt, jax.random.key(5), count=400, temperature=0.8)
    return PROMPT + texts.decode(np.asarray(tokens), "character", source.classes)


def notes(source: Source, rows: list[dict], sample: str) -> str:
    by = {r["model"]: r["bits a character"] for r in rows}
    own = [r for r in rows if not np.isnan(r["minutes"])]
    last, weights = own[-1], sum(r["parameters"] for r in fnn.presets.layer_rows(source.network))
    lines = [
        f"Python {platform.python_version()}: {source.modules} modules, {len(source.text):,} characters to train on, "
        f"{len(source.held_out):,} held out, {len(source.classes)} different ones (SHA-256 of all "
        f"{hashlib.sha256((source.text + source.held_out).encode()).hexdigest()[:12]}). {NETWORK}: {weights:,} "
        f"parameters, batches of {BATCH} windows of {CONTEXT}.",
        f"{last['model']}: {last['bits a character']:.3f} bits a held-out character after {last['minutes']:.1f} "
        f"minutes ({last['processor minutes']:.1f} of processor; measurements left out).",
    ]
    for rival in ("gzip, held out alone", "gzip, added to the rest", "3-gram", "5-gram", "xz, added to the rest"):
        below = next((r for r in own if r["bits a character"] < by[rival]), None)
        when = (
            "never reached"
            if below is None
            else (f"below after {below['minutes']:.1f} minutes, {below['processor minutes']:.1f} of processor")
        )
        lines.append(f"{rival}, {by[rival]:.3f}: {when}.")
    goal = min(by["gzip, held out alone"], by["3-gram"])
    reached = "reached" if any(r["bits a character"] < goal and r["minutes"] <= MINUTES for r in own) else "MISSED"
    lines.append(f"The goal, gzip and a 3-gram beaten within {MINUTES} minutes, is {reached}.")
    said = "\n".join(f"    | {line}" for line in sample.splitlines())
    return experiments.paragraphs(*lines) + f"\n\nAfter {PROMPT!r} it writes:\n\n{said}"


def main() -> None:
    options = experiments.arguments(__doc__, "results/transformer", updates=8000)
    source = load()
    rows = compressed(source)
    found = n_grams(source.tokens, source.held_out_tokens, len(source.classes), ORDERS)
    for n, p in zip(ORDERS, found, strict=True):
        rows.append(row(f"{n}-gram", float(-np.log2(p[CONTEXT // 2 + 1 :]).mean())))
    own, params = train(source, options.updates)
    rows += own
    experiments.write(
        options.out,
        rows,
        draw(rows),
        notes(source, rows, generated(source, params)),
        "Bits a held-out character in training, and those of compressors and n-grams",
    )

    compared, said = [], []
    for when, at in {"initial": source.network.init(jax.random.key(0)), "trained": params}.items():
        layers, comparison = agreement(source, when, at)
        compared += layers
        said.append(
            f"{when}: {comparison.verdict}; the whole gradient {comparison.total.relative:.1e} apart, bound "
            f"{comparison.total.bound:.1e}; third opinion: {comparison.third_opinion.says}; Taylor test: "
            f"{comparison.taylor.says}."
        )
    said.append(
        f"On {COMPARED} windows; relative differences, float32; of a layer's gradients the one nearest its bound."
    )
    experiments.write(experiments.sibling(options.out, "agreement"), compared, notes="\n".join(said))

    experiments.write(
        experiments.sibling(options.out, "attention"),
        attention_rows(source, params),
        draw_attention(source, params),
        f"Means over {CONTEXT // 2} positions of {LOOKED} held-out windows at most; after the same: positions that "
        "follow an earlier one\nof the same character as the one that reads. Drawn: the beginning of a window.",
        "Attention of every head over a piece of held-out text",
    )


if __name__ == "__main__":
    main()
