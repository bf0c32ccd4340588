#!/usr/bin/env python
"""What gradients and norms of convolutional networks, transformers and recurrences cost, next to autodiff of the same
networks written plainly.

    python scripts/benchmark_blocks.py --rounds 7 --out results/benchmark_blocks
    python scripts/benchmark_blocks.py --only transformer lstm        # some of them

Each row has one quantity of one network: by functional_nn; by jax's transformations of the same network in a few lines
of jax.lax, written as an expert would; and jax.value_and_grad of those lines. The three take turns, round after round.
Read the ratios, which are medians over the rounds. The targets, and whether they were met, are below the table. Where
PyTorch is installed, benchmark_blocks_torch.py then makes a second table.
"""

import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from benchmark_quantities import AGREEMENT, check, compiled, relative_difference, timed, torch_table
from jax import lax

import functional_nn as fnn
from functional_nn import quantities
from functional_nn.lab import experiments
from functional_nn.lab.timing import median_ratio
from functional_nn.networks.network import for_lanes

LOSS = fnn.losses.cross_entropy()
POPULATION = 32
TOKENS = 96


# The same networks, written plainly -----------------------------------------------------------------------------------


def conv(x, w, stride=1, padding=0):
    """Convolves x (Q, H, W, R) with w (h, w, R, S), in the order that XLA's fast kernels take."""
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
    """Our parameters in the form that `lenet` takes."""
    rows = [(own["weights"], own["bias"]) for own in params.values() if own["weights"]]
    return [(jnp.moveaxis(next(iter(w.values())), 0, -1), b) for w, b in rows]


def residual_parameters(params) -> list:
    """Our parameters in the form that `residual` takes."""

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
    """Causal self-attention, with the three products in one."""
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
    """Our parameters in the form that `transformer` takes."""

    def dense(name):
        return next(iter(params[name]["weights"].values())).T, params[name]["bias"]

    def normalized(name):
        return params[name]["learned"]["gain"], params[name]["learned"]["shift"]

    def block(name):
        qkv = params[f"{name}_attention"]["weights"][f"{name}_norm1"].T
        rest = dense(f"{name}_mixed"), normalized(f"{name}_norm2"), dense(f"{name}_hidden"), dense(name)
        return normalized(f"{name}_norm1"), qkv, *rest

    blocks = [block(name) for name in params if name.startswith("block") and "_" not in name]
    return [dense("embedding"), *blocks, (*normalized("norm"), *dense("output"))]


def recurrent_parameters(params) -> tuple:
    """Our parameters in the form that `lstm` and `elman` take."""
    own, learned, output = params["state1"], params["state1"]["learned"], params["output"]
    states = [learned[name] for name in ("initial", "initial_cell") if name in learned]
    dense = output["weights"]["state1"].T
    return own["weights"]["sequence"].T, own["bias"], learned["recurrent"].T, *states, dense, output["bias"]


# What is measured -----------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A network, the same network in plain functions, and the number of examples: of pictures with one-hot classes, or
    of sequences of tokens with the next token at each position.
    """

    name: str
    network: fnn.Network
    plain: Callable[[Any, jax.Array], jax.Array]
    converted: Callable[[Any], Any]
    examples: int

    def batch(self) -> tuple:
        """Returns (params, inputs, targets), float32."""
        ((name, shape),) = self.network.inputs
        if name in self.network.tokens:
            draw = jax.random.randint(jax.random.key(1), (self.examples, shape + 1), 0, TOKENS)
            targets = fnn.one_hot(
                draw[:, :-1] // 2 + draw[:, 1:] // 2, TOKENS, jnp.float32
            )  # half determined by the token
            return self.network.init(jax.random.key(0), jnp.float32), draw[:, :-1], targets
        inputs = jax.random.normal(jax.random.key(1), (self.examples, *shape), jnp.float32)
        # The classes depend on the inputs, so that the mean gradient is larger than its noise.
        targets = fnn.one_hot(jnp.argmax(inputs[:, :10, 0, 0], axis=1), 10, jnp.float32)
        return self.network.init(jax.random.key(0), jnp.float32), inputs, targets

    def objective(self, params, inputs, targets):
        """Returns F of the plain network, from parameters in its own form."""
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(self.plain(params, inputs)), axis=-1))


def problems() -> list[Problem]:
    """Returns the networks of the table."""
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
    """What is computed, by us and by autodiff, each a function of its own arguments."""

    quantity: str
    ours: Callable
    autodiff: Callable


def rows_of(p: Problem, max_norm: float) -> list[Row]:
    """Everything that is computed of one network. Autodiff takes the parameters of the plain form."""
    half = p.examples // 2

    def per_example(params, inputs, targets):
        return jax.vmap(lambda x, t: jax.grad(p.objective)(params, x[None], t[None]))(inputs, targets)

    def norms(*batch):
        squares = (jnp.sum(g.reshape(p.examples, -1) ** 2, axis=1) for g in jax.tree.leaves(per_example(*batch)))
        return jnp.sqrt(sum(squares))

    def clipped(*batch):
        gradients = per_example(*batch)
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
    """Returns the median seconds of tracing, each time of a new function, so that no cache helps."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.jit(lambda *given: function(*given)).trace(*args)
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def measured(p: Problem, rounds: int, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """Makes a row for each quantity of one network."""
    batch = p.batch()
    plainly = (p.converted(batch[0]), *batch[1:])
    max_norm = float(jnp.median(quantities.per_example_norms(p.network, LOSS, *batch)))
    gradient = compiled(jax.value_and_grad(p.objective), plainly)
    rows = []
    for row in rows_of(p, max_norm):
        ours, auto = compiled(row.ours, batch), compiled(row.autodiff, plainly)
        result, expected = ours.call(*batch), auto.call(*plainly)
        error = _difference(p, row, result, expected)
        rows.append(_row(p, row, batch, plainly, ours, auto, gradient, error, rounds))
        advance(f"{p.name} {row.quantity}")
    return rows


def _difference(p: Problem, row: Row, result, expected) -> float:
    # Gradients are compared in the plain form's order.
    if row.quantity == "gradient":
        result = result[0], p.converted(result[1])
    elif row.quantity == "clipped":
        result = p.converted(result)
    return check(f"{row.quantity} of {p.name}", result, expected)


def _row(p, row, batch, plainly, ours, auto, gradient, error, rounds) -> dict[str, Any]:
    calls = {
        "ours": functools.partial(ours.call, *batch),
        "autodiff": functools.partial(auto.call, *plainly),
        "gradient": functools.partial(gradient.call, *plainly),
    }
    seconds = timed(calls, rounds)
    tracing = traced(row.ours, batch, rounds), traced(row.autodiff, plainly, rounds)

    def mib(count):
        return count / 2**20

    return dict(
        zip(
            COLUMNS,
            (
                p.name,
                p.examples,
                row.quantity,
                1e3 * median(seconds["ours"]),
                1e3 * median(seconds["autodiff"]),
                median_ratio(seconds["ours"], seconds["autodiff"]),
                median_ratio(seconds["ours"], seconds["gradient"]),
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
    """Measures the gradients of many networks of one shape on one batch, as populations compute them on a CPU: as many
    side by side as its fast memory holds, which for networks of this size is one, and so one after the other.
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
    # By network: where a net input is within rounding of a kink, the two ways may take different sides of it.
    each = [
        relative_difference(*(jax.tree.map(lambda x, i=i: x[i], tree) for tree in (found, expected)))
        for i in range(POPULATION)
    ]
    if not median(each) <= AGREEMENT / 10:
        raise AssertionError(f"{row.quantity}: the two ways are {median(each):.2g} apart; nothing was timed")
    gradient = gradient._replace(call=lambda *_: single())
    return _row(p, row, batch, plainly, ours, auto, gradient, median(each), rounds)


# Targets --------------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A bound on a column, in the rows of one quantity and of networks whose names begin like one of `networks`."""

    text: str
    quantity: str
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
    """Writes a line for each target: the number of each network that it is set for, and whether it is met."""
    lines = []
    for target in TARGETS:
        said = []
        for row in rows:
            exact = row["asked"] == target.quantity or (
                target.quantity[-1] in "=f" and row["asked"].startswith(target.quantity)
            )
            if exact and row["network"].startswith(target.networks):
                value = row[target.column]
                said.append(f"{row['network']}: {value:.3g} {'met' if value <= target.bound else 'MISSED'}")
        if said:
            lines.append(f"  {target.text} <= {target.bound:g}; " + ", ".join(said))
    return lines


def main() -> None:
    parser = experiments.parser(__doc__, "results/benchmark_blocks", rounds=7)
    parser.add_argument("--only", nargs="+", default=[], help="words of the networks' names; default all of them")
    options = parser.parse_args()
    names = [p.name for p in problems()]
    for word in options.only:
        if not any(word in name for name in names):
            parser.error(f"--only: no network has {word!r} in its name; there are {', '.join(names)}")
    rows, every = [], [p for p in problems() if not options.only or any(word in p.name for word in options.only)]
    with experiments.counted("measuring", 4 * len(every) + (not options.only)) as advance:
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
        "fit_population takes networks of this size on a CPU; gradient next to it is one network's, apart the median",
        "of the networks (of some a net input is within rounding of a kink).",
        "",
        "targets:",
        *verdicts(rows),
    ]
    experiments.write(options.out, rows, notes="\n".join(notes))
    torch_table(__file__, options, "torch")


if __name__ == "__main__":
    main()
