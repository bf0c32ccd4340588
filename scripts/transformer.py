#!/usr/bin/env python
"""A small transformer learns the Python standard library's own source text: beside gzip, n-grams and `jax.grad`.

    python scripts/transformer.py --updates 8000 --out results/transformer

The text is the modules at the top of the standard library of the Python that runs this, those that are ASCII, so that
a character is a byte; every tenth is held out whole. A network of two blocks of attention reads 64 characters and
predicts each next one.

OUT: bits a held-out character by the network in training, by gzip, bz2 and xz (the held-out modules alone, and what
they add to the compressed modules that the network is trained on), and by n-grams counted in these, interpolated as
Witten and Bell do. The network predicts every character once, from the 33 to 64 before it: windows begin every 32
characters, and of each the latter half counts; the first 33 characters are counted for the compressors alone. Rotary
positions (learned ones were tried) and the rate (0.003 and 0.006 were) were chosen by trainings of 800 updates and the
same held-out modules, from 2.20 to 2.06 bits.
OUT_agreement: `fnn.compare` by layer, before and after training: the hand-written sensitivities and gradients beside
`jax.grad`'s, relatively, and the bound that rounding gives.
OUT_attention: where the heads look. Drawn for a piece of held-out text; and, on average over others, the share that
goes to the character itself, to the one before, and to those that follow an earlier one of the same.
"""

import bz2
import gzip
import hashlib
import lzma
import platform
import sysconfig
import textwrap
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

from matplotlib.ticker import LogLocator  # isort: skip

NETWORK, CONTEXT, BATCH = "transformer(layers=2, heads=4, width=128, positions=rotary)", 64, 32
RATE, DECAY, WARMUP = 0.005, 1e-4, 100  # of Adam and of weights, rising for WARMUP updates, then falling as a cosine
LARGEST = 1.0  # norm of a gradient
MODULES, FIRST, MEASUREMENTS = 1000, 100, 12  # at most so many; the first after so many updates, of so many
ORDERS = range(1, 7)  # of n-grams
COMPRESSORS = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "bz2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}
COMPARED, LOOKED, SHOWN = 4, 256, 34  # windows compared and looked at; characters drawn
MINUTES = 15
PROMPT = "def read"
LOSS = "cross_entropy"


class Source(NamedTuple):
    """Modules to train on and held out, each as a text and as tokens (N,), and the characters there are."""

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
    tokens = (texts.encode(part, "character", classes, "the library") for part in (text, held_out))
    return Source(len(modules), text, held_out, *tokens, classes)


# Bits a character -----------------------------------------------------------------------------------------------------


def compressed(source: Source) -> list[dict]:
    data, rest = source.held_out.encode(), source.text.encode()
    rows = []
    for name, compress in COMPRESSORS.items():
        alone, added = len(compress(data)), len(compress(rest + data)) - len(compress(rest))
        for says, size in (("held out alone", alone), ("added to the rest", added)):
            rows.append(row(f"{name}, {says}", 8 * size / len(data)))
    return rows


def n_grams(tokens: np.ndarray, held_out: np.ndarray, V: int, orders: range) -> list[np.ndarray]:
    """The probability of each held-out token (N,) by n-grams of each order, from 1 on without gaps.

    Interpolated by Witten and Bell 1991, method C: of a context c that N(c) times was followed by T(c) different
    tokens, P(x | c) = (N(cx) + T(c) P(x | c')) / (N(c) + T(c)), c' without its first token; P = 1 / V where none is
    left. The first tokens have shorter contexts.
    """

    def codes(stream: np.ndarray, n: int) -> np.ndarray:
        code = np.zeros(len(stream) - n + 1, np.int64)
        for first in range(n):
            code = code * V + stream[first : len(stream) - n + 1 + first]
        return code

    def looked_up(keys: np.ndarray, values: np.ndarray, of: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(keys, of), len(keys) - 1)
        return np.where(keys[at] == of, values[at], 0)

    p, found = np.full(len(held_out), 1 / V), []
    for n in orders:
        grams, N = np.unique(codes(tokens, n), return_counts=True)
        contexts, starts = np.unique(grams // V, return_index=True)
        T, N_c = np.diff(np.append(starts, len(grams))), np.add.reduceat(N, starts)
        asked = codes(held_out, n)
        of_context = (looked_up(contexts, count, asked // V) for count in (N_c, T))
        N_cx, (N_c, T), lower = looked_up(grams, N, asked), of_context, p[n - 1 :]
        known = N_c > 0
        p = p.copy()
        p[n - 1 :] = np.where(known, (N_cx + T * lower) / np.where(known, N_c + T, 1), lower)
        found.append(p)
    return found


def bits(network: fnn.Network, params, tokens: np.ndarray) -> float:
    """Of every token but the first CONTEXT / 2 + 1, once; what is left at the end, less than a window, is not read."""
    half, losses, counts = CONTEXT // 2, [], []
    for stream in (tokens, tokens[half:]):
        windows = fnn.windows(stream, CONTEXT)
        latter = np.broadcast_to(np.arange(CONTEXT) >= half, windows.shape).astype("f4")
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
    """A row a measurement, with the time so far, of which compilation is a part and measuring none; the parameters."""
    network, method, rows = source.network, optimizer(updates), []
    step, tokens = training.train_step(network, LOSS, method), jnp.asarray(source.tokens)
    marks = np.unique(np.geomspace(min(FIRST, updates), updates, MEASUREMENTS).astype(int)).tolist()

    @jax.jit
    def on(state, first, last):
        def update(number, carry):
            state, total = carry
            # windows from anywhere in the text
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


# Looked into ----------------------------------------------------------------------------------------------------------


def agreement(source: Source, when: str, params) -> tuple[list[dict], fnn.Agreement]:
    """A row a layer: the relative differences of its sensitivity and its gradients, and what rounding may make them."""
    network = source.network
    pieces = source.held_out_tokens[: COMPARED * CONTEXT + 1].astype(np.int32)
    inputs, following = (piece.reshape(COMPARED, CONTEXT) for piece in (pieces[:-1], pieces[1:]))
    found = fnn.compare(network, LOSS, params, inputs, fnn.one_hot(following, len(source.classes)))
    sensitivities = {one.name: one for one in found.sensitivities}
    rows = []
    for layer in network.layers:
        own = [one for one in found.parameters if one.name.split("/")[0] == layer.name]
        said = {"sensitivity": [sensitivities[layer.name]], "gradients": own}
        line = {"parameters": when, "layer": layer.name, "activation": layer.activation.name}
        for name, ones in said.items():
            worst = max(ones, key=lambda one: one.relative / one.bound, default=None)
            line |= {name: worst.relative if ones else "", f"{name}, bound": worst.bound if ones else ""}
        rows.append(line | {"agrees": "yes" if all(one.agrees for ones in said.values() for one in ones) else "NO"})
    return rows, found


def attentions(source: Source, params, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """{layer: probabilities (Q, H, T, T)} of windows (Q, T)."""
    kept = source.network.forward(params, tokens.astype(np.int32)).kept
    return {name: np.asarray(own.probabilities) for name, own in kept.items() if hasattr(own, "probabilities")}


def attention_rows(source: Source, params) -> list[dict]:
    """A row a head: shares of attention, and how far back and how widely it looks; means over held-out positions."""
    windows = np.lib.stride_tricks.sliding_window_view(source.held_out_tokens, CONTEXT)[::CONTEXT][:LOOKED]
    t, rows = np.arange(CONTEXT), []
    # u follows an earlier one of the same as t
    follows = np.zeros((len(windows), CONTEXT, CONTEXT), bool)
    follows[:, :, 1:] = windows[:, :, None] == windows[:, None, :-1]
    follows &= t[None, :] <= t[:, None]
    for layer, p in attentions(source, params, windows).items():
        for head in range(p.shape[1]):
            of = p[:, head, CONTEXT // 2 :]  # (Q, T / 2, T): with something before them
            at = t[CONTEXT // 2 :]
            rows.append(
                {
                    "layer": layer,
                    "head": head + 1,
                    "itself": float(of[:, at - CONTEXT // 2, at].mean()),
                    "the one before": float(of[:, at - CONTEXT // 2, at - 1].mean()),
                    "after the same": float(np.sum(of * follows[:, CONTEXT // 2 :], axis=2).mean()),
                    "characters back": float(np.sum(of * (at[:, None] - t[None, :]), axis=2).mean()),
                    "entropy, bits": float(-np.sum(of * np.log2(np.maximum(of, 1e-30)), axis=2).mean()),
                }
            )
    return rows


# What is written ------------------------------------------------------------------------------------------------------


def draw(rows: list[dict]):
    """Bits a held-out character over the minutes, and beside it what the others take."""
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
        curve.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
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


def piece(source: Source) -> int:
    """Where a piece of held-out text begins that is worth looking at: the first function after the middle."""
    return max(0, source.held_out.find("    def ", len(source.held_out) // 2))


def draw_attention(source: Source, params):
    """A picture a head, layer under layer: from the characters at the side to those below."""
    start = piece(source)
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


def written(source: Source, params) -> str:
    """A text that the network goes on with."""
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
    return "\n".join(textwrap.fill(line, 118) for line in lines) + f"\n\nAfter {PROMPT!r} it writes:\n\n{said}"


def beside(out: Path, name: str) -> Path:
    return out.with_name(f"{out.name}_{name}")


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
        notes(source, rows, written(source, params)),
        "Bits a held-out character in training, and those of compressors and n-grams",
    )

    compared, said = [], []
    for when, at in {"initial": source.network.init(jax.random.key(0)), "trained": params}.items():
        layers, found = agreement(source, when, at)
        compared += layers
        said.append(
            f"{when}: {found.verdict}; the whole gradient {found.total.relative:.1e} apart, bound "
            f"{found.total.bound:.1e}; third opinion: {found.third_opinion.says}; Taylor test: "
            f"{found.taylor.says}."
        )
    said.append(
        f"On {COMPARED} windows; relative differences, float32; of a layer's gradients the one nearest its bound."
    )
    experiments.write(beside(options.out, "agreement"), compared, notes="\n".join(said))

    experiments.write(
        beside(options.out, "attention"),
        attention_rows(source, params),
        draw_attention(source, params),
        f"Means over {CONTEXT // 2} positions of {LOOKED} held-out windows at most; after the same: positions that "
        "follow an earlier one\nof the same character as the one that reads. Drawn: the beginning of a window.",
        "Attention of every head over a piece of held-out text",
    )


if __name__ == "__main__":
    main()
