#!/usr/bin/env python
"""What gradients and norms of convolutional networks, transformers and recurrences cost, next to autodiff of the same
networks written plainly.

    python scripts/benchmark_blocks.py --rounds 7 --out results/benchmark_blocks
    python scripts/benchmark_blocks.py --only transformer lstm        # a look at some of them

Each row: one thing asked of one network by functional_nn, the same by jax's transformations of the network in a few
lines of jax.lax, as one who knows them would write it, and jax.value_and_grad of those; the three take turns, round
after round. What to read are the ratios, medians over the rounds. The targets, and what became of them, stand below the
table. Where PyTorch is installed, benchmark_blocks_torch.py goes on with a second table.
"""

import argparse
import functools
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from benchmark_quantities import AGREEMENT, apart, check, compiled, in_turns, ratio
from jax import lax

import functional_nn as fnn
from functional_nn import quantities
from functional_nn.lab import experiments
from functional_nn.lab.progress import progress
from functional_nn.networks.network import for_lanes

LOSS = fnn.losses.cross_entropy()
POPULATION = 32
TOKENS = 96


# The same networks, written plainly -----------------------------------------------------------------------------------


def conv(x, w, stride=1, padding=0):
    """x (Q, H, W, R), w (h, w, R, S) in the order that XLA's fast kernels take."""
    edges = [(padding, padding)] * 2
    return lax.conv_general_dilated(x, w, (stride, stride), edges, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def group_norm(x, gain, shift, groups):
    split = x.reshape(*x.shape[:3], groups, -1)
    mean = jnp.mean(split, axis=(1, 2, 4), keepdims=True)
    variance = jnp.var(split, axis=(1, 2, 4), keepdims=True)
    return ((split - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape) * gain + shift


def lenet(params, x, paddings=(2, 0)):
    for (w, b), padding in zip(params[:2], paddings, strict=True):
        x = pool(jax.nn.relu(conv(x, w, padding=padding) + b))
    x = x.reshape(len(x), -1)
    for w, b in params[2:-1]:
        x = jax.nn.relu(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


def residual(params, x, groups=4):
    (w, *affine), *blocks, (dense, bias) = params
    x = jax.nn.relu(group_norm(conv(x, w, padding=1), *affine, groups))
    for first, second, down in blocks:
        stride = 1 if down is None else 2
        inner = jax.nn.relu(group_norm(conv(x, first[0], stride, padding=1), *first[1:], groups))
        outer = group_norm(conv(inner, second[0], padding=1), *second[1:], groups)
        x = jax.nn.relu(outer + (x if down is None else conv(x, down, stride)))
    return jnp.mean(x, axis=(1, 2)) @ dense + bias


def lenet_parameters(params) -> list:
    """Ours as `lenet` takes them."""
    rows = [(own["weights"], own["bias"]) for own in params.values() if own["weights"]]
    return [(jnp.moveaxis(next(iter(w.values())), 0, -1), b) for w, b in rows]


def residual_parameters(params) -> list:
    """Ours as `residual` takes them."""

    def kernel(name, source=0):
        return jnp.moveaxis(list(params[name]["weights"].values())[source], 0, -1)

    def normalized(name):
        return kernel(name), params[name]["learned"]["gain"], params[name]["learned"]["shift"]

    blocks = []
    for name in [name for name in params if name.startswith("block") and "_" not in name]:
        down = kernel(name) if params[name]["weights"] else None
        blocks.append((normalized(f"{name}_conv1"), normalized(f"{name}_conv2"), down))
    return [normalized("stem"), *blocks, (kernel("output"), params["output"]["bias"])]


def layer_norm(x, gain, shift):
    mean, variance = jnp.mean(x, axis=-1, keepdims=True), jnp.var(x, axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * gain + shift


def attend(x, heads, w):
    """Causal self-attention, the three products in one."""
    q, k, v = jnp.split((x @ w).reshape(*x.shape[:2], -1, x.shape[-1] // heads), 3, axis=2)  # (Q, T, H, d)
    scores = jnp.einsum("qthd,quhd->qhtu", q, k) / q.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    p = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    return jnp.einsum("qhtu,quhd->qthd", p, v).reshape(x.shape)


def transformer(params, x, heads):
    (table, places), *blocks, (gain, shift, w, b) = params
    x = table[x] + places
    for norm1, qkv, mixed, norm2, first, second in blocks:
        x = x + attend(layer_norm(x, *norm1), heads, qkv) @ mixed[0] + mixed[1]
        x = x + jax.nn.gelu(layer_norm(x, *norm2) @ first[0] + first[1], approximate=False) @ second[0] + second[1]
    return layer_norm(x, gain, shift) @ w + b


def lstm(params, x):
    table, b, u, h, m, dense, bias = params

    def step(carry, entering):
        h, m = carry
        i, p, c, o = jnp.split(entering + h @ u, 4, axis=-1)
        m = jax.nn.sigmoid(p + 1) * m + jax.nn.sigmoid(i) * jnp.tanh(c)
        h = jax.nn.sigmoid(o) * jnp.tanh(m)
        return (h, m), h

    first = tuple(jnp.broadcast_to(each, (len(x), len(each))) for each in (h, m))
    _, states = lax.scan(step, first, jnp.swapaxes(table[x] + b, 0, 1))
    return jnp.swapaxes(states, 0, 1) @ dense + bias


def elman(params, x):
    table, b, u, h, dense, bias = params

    def step(h, entering):
        h = jnp.tanh(entering + h @ u)
        return h, h

    _, states = lax.scan(step, jnp.broadcast_to(h, (len(x), len(h))), jnp.swapaxes(table[x] + b, 0, 1))
    return jnp.swapaxes(states, 0, 1) @ dense + bias


def transformer_parameters(params) -> list:
    """Ours as `transformer` takes them."""

    def dense(name):
        return next(iter(params[name]["weights"].values())).T, params[name]["bias"]

    def normalized(name):
        return params[name]["learned"]["gain"], params[name]["learned"]["shift"]

    def of_block(name):
        qkv = params[f"{name}_attention"]["weights"][f"{name}_norm1"].T
        rest = dense(f"{name}_mixed"), normalized(f"{name}_norm2"), dense(f"{name}_hidden"), dense(name)
        return normalized(f"{name}_norm1"), qkv, *rest

    blocks = [of_block(name) for name in params if name.startswith("block") and "_" not in name]
    return [dense("embedding"), *blocks, (*normalized("norm"), *dense("output"))]


def recurrent_parameters(params) -> tuple:
    """Ours as `lstm` and `elman` take them."""
    own, learned, output = params["state1"], params["state1"]["learned"], params["output"]
    states = [learned[name] for name in ("initial", "initial_cell") if name in learned]
    dense = output["weights"]["state1"].T
    return own["weights"]["sequence"].T, own["bias"], learned["recurrent"].T, *states, dense, output["bias"]


# What is measured -----------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A network, the same in plain functions, and a batch of pictures with their classes, one-hot, or of tokens with
    the next ones.
    """

    name: str
    network: fnn.Network
    plain: Callable[[Any, jax.Array], jax.Array]
    converted: Callable[[Any], Any]
    examples: int

    def batch(self) -> tuple:
        """(params, inputs, targets), float32."""
        ((name, shape),) = self.network.inputs
        if name in self.network.tokens:
            draw = jax.random.randint(jax.random.key(1), (self.examples, shape + 1), 0, TOKENS)
            targets = fnn.one_hot(draw[:, :-1] // 2 + draw[:, 1:] // 2, TOKENS, jnp.float32)  # which a token half tells
            return self.network.init(jax.random.key(0), jnp.float32), draw[:, :-1], targets
        inputs = jax.random.normal(jax.random.key(1), (self.examples, *shape), jnp.float32)
        # classes that the inputs say something about, so that a mean gradient stands out from the noise
        targets = fnn.one_hot(jnp.argmax(inputs[:, :10, 0, 0], axis=1), 10, jnp.float32)
        return self.network.init(jax.random.key(0), jnp.float32), inputs, targets

    def objective(self, params, inputs, targets):
        """F of the plain network, from its own parameters."""
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(self.plain(params, inputs)), axis=-1))


def problems() -> list[Problem]:
    """The networks of the table."""
    return pictures() + sequences()


def pictures() -> list[Problem]:
    """Convolutional networks."""
    wide = fnn.presets.get("lenet((32, 64), (128,))")((28, 28, 1), 10)
    deep = fnn.presets.get("residual(1, 16, group_norm(4))")((28, 28, 1), 10)

    return [
        Problem("LeNet", fnn.presets.get("lenet")((28, 28, 1), 10), lenet, lenet_parameters, 64),
        Problem("32-64 channels", wide, lenet, lenet_parameters, 128),
        Problem("residual", deep, residual, residual_parameters, 64),
    ]


def sequences() -> list[Problem]:
    """Transformers and recurrences, with the next token at each position."""

    def tokens(name, positions):
        return fnn.presets.get(name)(positions, TOKENS, tokens=TOKENS, each_position=True)

    def attends(heads):
        return functools.partial(transformer, heads=heads), transformer_parameters

    return [
        Problem("transformer 64 x 2", tokens("transformer(2, 2, 64)", 32), *attends(2), 32),
        Problem("transformer 128 x 4", tokens("transformer(4, 4, 128)", 64), *attends(4), 16),
        Problem("lstm", tokens("lstm(64)", 64), lstm, recurrent_parameters, 32),
        Problem("elman", tokens("elman(64)", 64), elman, recurrent_parameters, 32),
    ]


class Row(NamedTuple):
    """What is asked, by us and by autodiff, each a function of its own arguments."""

    asked: str
    ours: Callable
    autodiff: Callable


def rows_of(p: Problem, max_norm: float) -> list[Row]:
    """All that is asked of one network; autodiff of its plain form, whose parameters it takes."""
    half = p.examples // 2

    def of_one(params, inputs, targets):
        return jax.vmap(lambda x, t: jax.grad(p.objective)(params, x[None], t[None]))(inputs, targets)

    def norms(*batch):
        squares = (jnp.sum(g.reshape(p.examples, -1) ** 2, axis=1) for g in jax.tree.leaves(of_one(*batch)))
        return jnp.sqrt(sum(squares))

    def clipped(*batch):
        gradients = of_one(*batch)
        squares = (jnp.sum(g.reshape(p.examples, -1) ** 2, axis=1) for g in jax.tree.leaves(gradients))
        scale = jnp.minimum(1, max_norm / jnp.sqrt(sum(squares))) / p.examples
        return jax.tree.map(lambda g: jnp.tensordot(scale, g, 1), gradients)

    def ours(name, **options):
        return lambda *batch: getattr(quantities, name)(p.network, LOSS, *batch, **options)

    return [
        Row("gradient", fnn.value_and_grad(p.network, LOSS), jax.value_and_grad(p.objective)),
        Row("norms", ours("per_example_norms"), norms),
        Row(f"norms, block={half}", ours("per_example_norms", block=half), norms),
        Row("clipped", ours("clipped_gradient", max_norm=max_norm), clipped),
    ]


COLUMNS = (
    "network",
    "examples",
    "asked",
    "ours ms",
    "autodiff ms",
    "ours / autodiff",
    "ours / gradient",
    "trace ms",
    "autodiff trace ms",
    "trace / autodiff",
    "compile s",
    "autodiff compile s",
    "temp MiB",
    "autodiff temp MiB",
    "temp / gradient",
    "apart",
)


def traced(function: Callable, args: tuple, rounds: int) -> float:
    """Seconds that tracing it takes, the median; each time a new function, so that nothing is remembered."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.jit(lambda *given: function(*given)).trace(*args)
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def measured(p: Problem, rounds: int, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each thing asked of one network."""
    batch = p.batch()
    plainly = (p.converted(batch[0]), *batch[1:])
    max_norm = float(jnp.median(quantities.per_example_norms(p.network, LOSS, *batch)))
    gradient = compiled(jax.value_and_grad(p.objective), plainly)
    found = []
    for row in rows_of(p, max_norm):
        ours, auto = compiled(row.ours, batch), compiled(row.autodiff, plainly)
        result, expected = ours.call(*batch), auto.call(*plainly)
        found.append(_row(p, row, batch, plainly, ours, auto, gradient, _apart(p, row, result, expected), rounds))
        advance(f"{p.name} {row.asked}")
    return found


def _apart(p: Problem, row: Row, result, expected) -> float:
    # gradients in the plain form's order
    if row.asked == "gradient":
        result = result[0], p.converted(result[1])
    elif row.asked == "clipped":
        result = p.converted(result)
    return check(f"{row.asked} of {p.name}", result, expected)


def _row(p, row, batch, plainly, ours, auto, gradient, error, rounds) -> dict[str, Any]:
    calls = {
        "ours": functools.partial(ours.call, *batch),
        "autodiff": functools.partial(auto.call, *plainly),
        "gradient": functools.partial(gradient.call, *plainly),
    }
    seconds = in_turns(calls, rounds)
    tracing = traced(row.ours, batch, rounds), traced(row.autodiff, plainly, rounds)

    def mib(count):
        return count / 2**20

    return dict(
        zip(
            COLUMNS,
            (
                p.name,
                p.examples,
                row.asked,
                1e3 * median(seconds["ours"]),
                1e3 * median(seconds["autodiff"]),
                ratio(seconds["ours"], seconds["autodiff"]),
                ratio(seconds["ours"], seconds["gradient"]),
                1e3 * tracing[0],
                1e3 * tracing[1],
                tracing[0] / tracing[1],
                ours.compile_seconds,
                auto.compile_seconds,
                mib(ours.temporary),
                mib(auto.temporary),
                ours.temporary / gradient.temporary,
                error,
            ),
            strict=True,
        )
    )


def of_population(p: Problem, rounds: int) -> dict[str, Any]:
    """The gradients of many networks of one shape on one batch, as populations take them on a CPU: so many side by side
    as its memory is quick for, which of networks of this size is one, and these one after the other.
    """
    params, *data = p.batch()
    keys = jax.random.split(jax.random.key(3), POPULATION)
    many = jax.vmap(lambda key: p.network.init(key, jnp.float32))(keys)
    batch, plainly = (many, *data), (jax.vmap(p.converted)(many), *data)
    by_hand = fnn.value_and_grad(for_lanes(p.network, True), LOSS)
    row = Row(
        f"gradients of {POPULATION}",
        lambda many, *data: lax.map(lambda params: by_hand(params, *data), many),
        jax.vmap(jax.value_and_grad(p.objective), (0, None, None)),
    )
    ours, auto = compiled(row.ours, batch), compiled(row.autodiff, plainly)
    gradient = compiled(jax.value_and_grad(p.objective), (p.converted(params), *data))
    single = functools.partial(gradient.call, p.converted(params), *data)
    result, expected = ours.call(*batch), auto.call(*plainly)
    found = result[0], jax.vmap(p.converted)(result[1])
    # of each network: where a net input is within rounding of a kink, the two ways may decide it differently
    each = [apart(*(jax.tree.map(lambda x, i=i: x[i], tree) for tree in (found, expected))) for i in range(POPULATION)]
    if not median(each) <= AGREEMENT / 10:
        raise AssertionError(f"{row.asked}: the two ways are {median(each):.2g} apart; nothing was timed")
    gradient = gradient._replace(call=lambda *_: single())
    return _row(p, row, batch, plainly, ours, auto, gradient, median(each), rounds)


# Targets --------------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """At most `bound` in a column of the rows of what is asked, of networks whose names begin so."""

    said: str
    asked: str
    column: str
    bound: float
    networks: tuple[str, ...] = ("",)


_PICTURES, _SEQUENCES = ("LeNet", "32-64 channels", "residual"), ("transformer", "lstm", "elman")
TARGETS = (
    Target("gradient / autodiff's", "gradient", "ours / autodiff", 1.03, _PICTURES),
    Target("gradient / autodiff's", "gradient", "ours / autodiff", 1.05, _SEQUENCES),
    Target("tracing a gradient / autodiff's", "gradient", "trace / autodiff", 0.5),
    Target("norms / vmap(grad)'s", "norms", "ours / autodiff", 1.0, _PICTURES),
    Target("norms / vmap(grad)'s", "norms", "ours / autodiff", 1 / 1.2, ("transformer",)),
    Target("clipped / vmap(grad)'s", "clipped", "ours / autodiff", 1.0, _PICTURES),
    Target("norms / one gradient", "norms", "ours / gradient", 1.3, ("LeNet",)),
    Target("norms / one gradient", "norms", "ours / gradient", 0.9, ("transformer",)),
    Target("norms / one gradient", "norms", "ours / gradient", 1.2, ("lstm", "elman")),
    Target("clipped / one gradient", "clipped", "ours / gradient", 1.3, ("LeNet",)),
    Target("clipped / one gradient", "clipped", "ours / gradient", 1.6, ("transformer",)),
    Target("memory of norms / a gradient's", "norms", "temp / gradient", 1.0, ("transformer",)),
    Target("memory of norms in two blocks / a gradient's", "norms, block=", "temp / gradient", 2.0, _PICTURES),
    Target(f"{POPULATION} LeNets / jit(vmap(...)) of autodiff", "gradients of", "ours / autodiff", 0.7),
)


def verdicts(rows: list[dict]) -> list[str]:
    """A line a target: the number of each network it is set for, and met or missed."""
    lines = []
    for target in TARGETS:
        said = []
        for row in rows:
            exact = row["asked"] == target.asked or (target.asked[-1] in "=f" and row["asked"].startswith(target.asked))
            if exact and row["network"].startswith(target.networks):
                value = row[target.column]
                said.append(f"{row['network']}: {value:.3g} {'met' if value <= target.bound else 'MISSED'}")
        if said:
            lines.append(f"  {target.said} <= {target.bound:g}; " + ", ".join(said))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns that each way has (default 7)")
    default = Path("results/benchmark_blocks")
    parser.add_argument("--only", nargs="+", default=[], help="words of the networks' names; default all of them")
    parser.add_argument("--out", type=Path, default=default, help=f"writes OUT.csv and OUT.txt; default {default}")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    names = [p.name for p in problems()]
    for word in options.only:
        if not any(word in name for name in names):
            parser.error(f"--only: no network has {word!r} in its name; there are {', '.join(names)}")
    rows, every = [], [p for p in problems() if not options.only or any(word in p.name for word in options.only)]
    with progress("measuring", 4 * len(every) + (not options.only)) as bar:
        count = [0]

        def advance(name):
            count[0] += 1
            bar(count[0], name)

        for p in every:
            rows += measured(p, options.rounds, advance)
        if not options.only:
            rows.append(of_population(every[0]._replace(examples=32), options.rounds))
            advance("population")
    notes = [
        f"float32, {options.rounds} rounds; pictures of 28 x 28, ten classes, relu, max pooling; the residual network",
        "is residual(1, 16, group_norm(4)). Sequences: 96 tokens, the next at each position; T = 32 and 2 heads of the",
        "first transformer, T = 64 and 4 heads of the second, T = 64 and 64 neurons of the recurrences. Their",
        "embeddings and positions are counted in. All run times are of compiled programs.",
        "autodiff: jax.value_and_grad, and vmap(jax.grad) with what is made of it, of the plain form; gradient:",
        "jax.value_and_grad of the whole batch.",
        "trace: what jit takes to trace it. temp: the compiler's temporaries. apart: the largest relative difference",
        f"of the two ways, of any array; above {AGREEMENT:g} nothing is timed. clipped: at the median norm.",
        f"gradients of {POPULATION}: of as many networks, on one batch, by us one after the other in one program, as",
        "fit_population takes networks of this size on a CPU; gradient beside it is one network's, apart the median of",
        "the networks (of some a net input is within rounding of a kink).",
        "",
        "targets:",
        *verdicts(rows),
    ]
    experiments.write(options.out, rows, notes="\n".join(notes))
    if importlib.util.find_spec("torch"):
        # In a process of its own: PyTorch's threads go on spinning between calls, in the turns of whatever is timed.
        script = Path(__file__).with_name("benchmark_blocks_torch.py")
        words = ["--ours", f"{options.out}.csv", "--out", f"{options.out}_torch", "--rounds", str(options.rounds)]
        subprocess.run([sys.executable, script, *words], check=True)
    else:
        print("PyTorch is not installed here: no second table")


if __name__ == "__main__":
    main()
