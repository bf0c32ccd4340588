#!/usr/bin/env python
"""What an accelerator does in a second: populations, fit, quantities, Levenberg-Marquardt, and bare arithmetic.

    python scripts/benchmark_accelerator.py --out results/benchmark_accelerator

For those who have a GPU or a TPU: the authors of this library have measured nothing on one. A row of the table is a
rate, `per second` of what `unit` says. Whole calls of compiled programs are timed; the rate is the median over rounds
in which all ways of a part take turns. `number` is the number of networks, examples or starts. Products have JAX's
default precision, in which accelerators round the factors (TF32, bfloat16), or the highest, full float32, which CPUs
and Levenberg-Marquardt always have.

    arithmetic     a product of SIDE x SIDE matrices; a pass over memory; small products one after another in a loop
    populations    networks trained by Adam on digits, more and more of them until the rate no longer grows
    fit            updates of one network by `fit`, by a jitted step called from Python, and by the bare step in a scan,
                   with and without unrolling, which shows whether unrolling pays there
    quantities     examples of a batch, for a dense and a convolutional network, next to the gradient of the batch
    restarts       starts of Levenberg-Marquardt, with at most 50 steps, in lanes or one after another on each device

A CPU takes minutes for --largest 256 --side 1024 --examples 64 --epochs 2 --rounds 3. Flags are XLA's own: try
XLA_FLAGS=--xla_gpu_enable_command_buffer=+WHILE, which gives loops of small kernels to CUDA in one piece. Populations
and restarts run on all devices, everything else on the first.
"""

import functools
import math
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_populations import CASES, RATE, ROWS, Case, by_population, by_steps
from jax import lax

import functional_nn as fnn
from functional_nn import optimizers, platforms, quantities, training
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.timing import loops_for, timed_in_turns
from functional_nn.training import Batch

LOSS = fnn.losses.cross_entropy()
LOOP = 1000  # small products one after another in a loop
TURN = 0.1  # seconds; what is shorter is called several times in a turn, at most 20 times
LOOPED, UNROLLED = "jitted step in a loop", {f"step in a scan, unroll {n}": n for n in (1, 8)}
NUMBERS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)  # of networks and of starts, up to --largest
LM_STEPS = 50
COLORS = (BLUE, VERMILION, GREEN, PURPLE, SKY_BLUE, ORANGE)


def precisions() -> tuple[str, ...]:
    """The precisions of products that are measured: a CPU has one."""
    return ("highest",) if jax.default_backend() == "cpu" else ("default", "highest")


def row(part: str, what: str, precision: str, number: int, rates: list[float], unit: str) -> dict[str, Any]:
    """Makes a line of the table."""
    return {
        "part": part,
        "what": what,
        "precision": precision,
        "number": number,
        "per second": median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "unit": unit,
    }


def timed(function: Callable, *given: Any) -> Callable:
    """Returns a call of the compiled function, which ignores the seed that it is given."""
    compiled = jax.jit(function)
    return lambda _: jax.block_until_ready(compiled(*given))


def measured(part: str, ways: dict[tuple, tuple[Callable, float, str]], options, advance: Callable) -> list[dict]:
    """Makes a row for each way. ways: {(what, precision, number): (call(seed), amount of `unit` in a call, unit)}."""

    def timed_call(way):
        def call(seed):
            advance(f"{part}: {', '.join(map(str, way))}")
            with jax.default_matmul_precision("highest" if way[1] == "highest" else None):
                return ways[way][0](seed)

        return call

    calls = {way: timed_call(way) for way in ways}
    for call in calls.values():
        call(0)  # compiles
    loops = {way: loops_for(call, TURN, most=20) for way, call in calls.items()}
    seconds = timed_in_turns(calls, options.rounds, loops=loops)
    return [row(part, *way, [amount / each for each in seconds[way]], unit) for way, (_, amount, unit) in ways.items()]


# The parts ------------------------------------------------------------------------------------------------------------


def arithmetic(options, advance: Callable) -> list[dict]:
    side = options.side
    x = jax.random.normal(jax.random.key(0), (side, side))
    half = x.astype(jnp.bfloat16)
    small = jnp.eye(16) * 0.99
    much = jnp.ones(min(side**2, 2**26))
    ways = {
        ("product", precision, side): (timed(jnp.matmul, x, x), 2 * side**3 / 1e12, "TFLOP")
        for precision in precisions()
    }
    ways["product of bfloat16", "default", side] = timed(jnp.matmul, half, half), 2 * side**3 / 1e12, "TFLOP"
    ways["memory", "", much.size] = timed(lambda x: x + 1, much), 2 * much.nbytes / 1e9, "GB"
    loop = timed(lambda x: lax.fori_loop(0, LOOP, lambda _, y: x @ y, x), small)
    ways["small products in a loop", "highest", LOOP] = loop, LOOP, "products"
    return measured("arithmetic", ways, options, advance)


def populations(options, advance: Callable) -> list[dict]:
    x, t = digits()
    ways = {}
    for case in CASES:
        for precision in precisions():
            for size in numbers(options, least=16):
                call = by_population(case, x, t, options.epochs, size)
                ways[name_of(case), precision, size] = call, size, "networks"
    return measured("populations", ways, options, advance)


def fit(options, advance: Callable) -> list[dict]:
    x, t = digits()
    ways = {}
    for case in CASES:
        updates = options.epochs * ROWS // case.batch
        for precision in precisions():
            calls = {
                "fit": by_fit(case, x, t, options.epochs),
                LOOPED: by_steps(case, x, t, options.epochs),
            }
            calls |= {way: by_scan(case, x, t, options.epochs, n) for way, n in UNROLLED.items()}
            for way, call in calls.items():
                ways[f"{case.name}, {way}", precision, case.batch] = call, updates, "updates"
    return measured("fit", ways, options, advance)


def by_fit(case: Case, x, t, epochs: int) -> Callable:
    optimizer = optimizers.adam(RATE)

    def train(seed):
        fnn.fit(
            case.network, LOSS, optimizer, x, t, key=jax.random.key(seed), epochs=epochs, plan=case.plan, chunk=epochs
        )

    return train


def by_scan(case: Case, x, t, epochs: int, unroll: int) -> Callable:
    """The same updates, and nothing else."""
    optimizer = optimizers.adam(RATE)
    step = training.train_step(case.network, LOSS, optimizer)
    x, t = jnp.asarray(x), jnp.asarray(t)

    @jax.jit
    def train(key, x, t):
        def update(state, rows):
            return step(state, Batch({"input": x[rows]}, t[rows]))[0], None

        def epoch(state, number):
            return lax.scan(update, state, case.plan.indices(key, number, len(x)), unroll=unroll)

        return lax.scan(epoch, optimizer.init(case.network.init(key)), jnp.arange(epochs))[0]

    return lambda seed: jax.block_until_ready(train(jax.random.key(seed), x, t))


def of_examples(options, advance: Callable) -> list[dict]:
    draw, count = np.random.default_rng(0), options.examples
    networks = {
        "784-256-128-10": (fnn.multilayer((784, 256, 128, 10), ("tanh", "tanh", "softmax")), (784,)),
        "LeNet": (fnn.presets.get("lenet")((28, 28, 1), 10), (28, 28, 1)),
    }
    named = {"per_example_norms": {}, "clipped_gradient": {"max_norm": 1.0}, "variance": {}, "tangent_kernel_trace": {}}
    t = fnn.one_hot(jnp.arange(count) % 10, 10)
    ways = {}
    for name, (network, shape) in networks.items():
        given = network.init(jax.random.key(0)), jnp.asarray(draw.random((count, *shape)), jnp.float32), t
        functions = {"gradient": fnn.value_and_grad(network, LOSS)}
        for wanted, constants in named.items():
            functions[wanted] = functools.partial(quantity, network, wanted, constants)
        for wanted, function in functions.items():
            for precision in precisions():
                ways[f"{name}, {wanted}", precision, count] = timed(function, *given), count, "examples"
    return measured("quantities", ways, options, advance)


def quantity(network, name, constants, params, x, t):
    return quantities.compute(network, LOSS, params, x, t, (name,), budget=2**40, **constants)


def restarts(options, advance: Callable) -> list[dict]:
    """Hagan and Menhaj's sine, 1-15-1."""
    network = fnn.multilayer((1, 15, 1), ("tanh", "linear"))
    x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    t = (0.5 + 0.25 * np.sin(3 * np.pi * x)).astype(np.float32)
    problem, method = training.problem(network, "mean_square_error", x, t), optimizers.levenberg_marquardt()
    ways = {}

    def by_restarts(count, block):
        draw = jax.jit(jax.vmap(network.init))

        def run(seed):
            starts = draw(jax.random.split(jax.random.key(seed), count))
            optimizers.restarts(problem, method, starts, steps=LM_STEPS, block=block, chunk=LM_STEPS)

        return run

    for count in numbers(options, least=16):
        ways["restarts, lanes", "highest", count] = by_restarts(count, count), count, "starts"
        if count <= 256:
            ways["restarts, one by one", "highest", count] = by_restarts(count, 1), count, "starts"
    return measured("restarts", ways, options, advance)


def digits() -> tuple[np.ndarray, np.ndarray]:
    task = experiments.load("digits")
    return task.inputs[:ROWS], task.targets[:ROWS]


def numbers(options, least: int) -> list[int]:
    return [number for number in NUMBERS if least <= number <= options.largest]


def name_of(case: Case) -> str:
    return f"{case.name}, batch {case.batch}"


PARTS = {
    "arithmetic": arithmetic,
    "populations": populations,
    "fit": fit,
    "quantities": of_examples,
    "restarts": restarts,
}


# The picture and the notes --------------------------------------------------------------------------------------------


def draw(rows: list[dict]):
    """Draws a panel for each part."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
        for axis, part in zip(axes.flat, PARTS, strict=False):
            own = [row for row in rows if row["part"] == part]
            (curves if part in ("populations", "restarts") else bars)(axis, own)
            axis.set_title(part, fontsize=11)
        device = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
        said = "filled, solid: default precision\nhollow, dashed: highest"
        axes.flat[-1].axis("off")
        axes.flat[-1].text(0, 1, f"{device}\n\n{said}", va="top")
    return figure


def curves(axis, rows: list[dict]) -> None:
    """Draws rates against the number."""
    names = list(dict.fromkeys(row["what"] for row in rows))
    for name, precision in dict.fromkeys((row["what"], row["precision"]) for row in rows):
        own = [row for row in rows if (row["what"], row["precision"]) == (name, precision)]
        color, full = COLORS[names.index(name)], precision == "default"
        axis.plot(
            [row["number"] for row in own],
            [row["per second"] for row in own],
            "-" if full else "--",
            color=color,
            marker="o",
            markersize=4,
            markerfacecolor=color if full else "white",
            label=f"{name}, {precision}",
        )
    unit = rows[0]["unit"]
    axis.set(xscale="log", yscale="log", xlabel=unit, ylabel=f"{unit} a second")
    axis.set_xticks(*[sorted({row["number"] for row in rows})] * 2)
    axis.set_xticks([], minor=True)
    axis.legend(fontsize=7)


def bars(axis, rows: list[dict]) -> None:
    """Draws rates as shares of the largest with their unit and network, and writes each rate next to its bar."""

    def kind(row):
        return (row["unit"], row["what"].split(", ")[:-1][:1])

    labels = list(dict.fromkeys(row["what"] for row in rows))
    for place, label in enumerate(labels):
        own = [row for row in rows if row["what"] == label]
        for number, row in enumerate(own):
            most = max(other["per second"] for other in rows if kind(other) == kind(row))
            at, share = place + 0.4 * (number - (len(own) - 1) / 2), row["per second"] / most
            color = COLORS[0] if row["precision"] == "default" else "white"
            axis.barh(at, share, 0.36, facecolor=color, edgecolor=COLORS[0])
            axis.text(share + 0.02, at, f"{short(row['per second'])} {row['unit']}", va="center", fontsize=6.5)
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.4), xlabel="a second, relative to the highest of its kind")
    axis.grid(axis="y", visible=False)


def short(rate: float) -> str:
    """1234567 as 1.23M."""
    power = 0 if rate < 1000 else min(4, int(math.log10(rate) // 3))
    return f"{rate / 1000**power:.3g}{('', 'k', 'M', 'G', 'T')[power]}"


def notes(rows: list[dict], options) -> str:
    """Says from how many networks the rate hardly grows, its share of the arithmetic, and how `fit` compares."""
    devices = 1 if platforms.here().one_memory else jax.local_device_count()  # a product is spread over cores anyway
    rates = {(row["what"], row["precision"], row["number"]): row["per second"] for row in rows}
    said = [
        f"{options.epochs} epochs of {ROWS} rows, {options.rounds} rounds, {jax.device_count()} devices. The settings "
        f"that the library has for this platform, measured or not: {platforms.here()}.",
        "",
    ]
    for case in CASES:
        for precision in precisions():
            own = [row for row in rows if (row["what"], row["precision"]) == (name_of(case), precision)]
            most = max(row["per second"] for row in own)
            first = next(row["number"] for row in own if row["per second"] >= 0.9 * most)
            flops = most * options.epochs * (ROWS // case.batch) * case.operations / 1e12
            share = flops / rates["product", precision, options.side] / devices
            said.append(
                f"{name_of(case)}, {precision}: {most:.3g} networks/s at most, nine tenths of it from {first} on; "
                f"{flops:.3g} TFLOP/s, {share:.2g} of the large product's."
            )
    for case in CASES:
        for precision in precisions():
            updates = {way: rates[f"{case.name}, {way}", precision, case.batch] for way in ("fit", LOOPED, *UNROLLED)}
            ratios = ", ".join(f"{way} {rate / updates['fit']:.3g}" for way, rate in updates.items() if way != "fit")
            said.append(f"{case.name}, batch {case.batch}, {precision}, updates a second over those of fit: {ratios}.")
    small = rates["small products in a loop", "highest", LOOP]
    return "\n".join([*said, f"A small product in a loop takes {1e6 / small:.3g} us."])


def main() -> None:
    options = experiments.arguments(
        __doc__, "results/benchmark_accelerator", rounds=5, epochs=20, largest=16384, side=8192, examples=2048
    )
    if options.largest < 16:
        raise SystemExit("--largest: expected 16 networks or more")
    experiments.start(all_cores=True)
    rows = []
    with experiments.counted("measuring") as advance:
        for part in PARTS.values():
            rows += part(options, advance)
    experiments.write(options.out, rows, draw(rows), notes(rows, options))


if __name__ == "__main__":
    main()
