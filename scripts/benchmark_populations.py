#!/usr/bin/env python
"""What a population costs, per update and network, next to other ways of training as many networks.

    python scripts/benchmark_populations.py --rounds 5 --out results/benchmark_populations

Every way trains by Adam on digits, with the same rows and batches of one size, nothing left over. All take turns, round
after round, in one process. Whole calls of compiled programs are timed; times are medians over the rounds. Where a way
trains one network at a time, one is trained, several times. `fit_population` spreads its members over all devices, and
they share the batches. The plain vmap of `pure_fit` gives each member its own batches, on one device. The floor is the
arithmetic of an update's matrix products at the speed of a product of 2048 x 2048 matrices on all cores, by NumPy or
XLA, whichever is faster. A second table, OUT_sizes, has the cost against the number of networks, and what is compiled
when.

All CPU cores are used; the environment variable JAX_NUM_CPU_DEVICES sets another number. On accelerators,
benchmark_accelerator.py measures networks a second against their number.
"""

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.timing import median_ratio, timed_in_turns
from functional_nn.training import Batch, fit_population

# after the lab, which says what to install where it is missing
from sklearn.neural_network import MLPClassifier  # isort: skip

try:
    import torch
except ImportError:
    torch = None

ROWS, RATE = 1408, 1e-3  # this number of rows is divisible by batches of 32 and of 128
SIZES = (64, 256, 1024, 4096)
TURN = 3  # trainings in one turn, for ways that train one network
REST = 0.5  # seconds between turns, for threads that spin after their work, as BLAS's do, to go to sleep
SIDE = 2048  # of the matrices whose product measures the machine
COMPILED, SETTINGS = (10, 10_000), 50  # updates of the two programs; settings that should be traced only once
WIDTHS, WIDEST, START = 64, 128, 10  # networks of random widths up to the widest, padded; seconds until they train
OURS, FLOOR = "fit_population", "floor"


@dataclass(frozen=True)
class Case(experiments.Chain):
    """Layers and batch size; the most that fit_population may take relative to the floor, and to a plain vmap."""

    above_floor: float
    of_vmap: float = 0.45

    @property
    def operations(self) -> int:
        """Floating-point operations of an update's products: forward, weight gradients, and sensitivities except those
        of the inputs, which are unused."""
        products = [a * b for a, b in pairwise(self.sizes)]
        return 2 * self.batch * (2 * sum(products) + sum(products[1:]))


CASES = (Case((64, 32, 10), 32, 2.5, 0.35), Case((64, 128, 64, 10), 128, 1.5, 0.45))
LIMITS = {"jitted step": (8, ">="), "PyTorch": (40, ">="), "scikit-learn": (30, ">=")}


# The ways: functions of a seed that train, and return when that is done -----------------------------------------------


def rates_around(count: int) -> np.ndarray:
    return RATE * np.geomspace(0.5, 2, count)


def by_population(case: Case, x, t, epochs: int, networks: int, spent: list[float] | None = None) -> Callable:
    """By `fit_population`. Appends to `spent` the seconds of one network's update, in the training loop alone."""
    members = {"seed": range(networks), "learning_rate": rates_around(networks)}

    def train(seed):
        fit_population(
            case.network,
            "cross_entropy",
            "adam",
            members,
            (x, t),
            key=jax.random.key(seed),
            epochs=epochs,
            chunk=epochs,
            plan=case.plan,
            on_chunk=None if spent is None else lambda at: spent.append(1 / at.updates_per_second),
        )

    return train


def by_vmap(case: Case, x, t, epochs: int, networks: int) -> Callable:
    def member(key, rate, x, t):
        optimizer = fnn.optimizers.adam(rate)
        return fnn.training.pure_fit(case.network, "cross_entropy", optimizer, epochs=epochs, plan=case.plan)(key, x, t)

    program = jax.jit(jax.vmap(member, (0, 0, None, None)))
    rates, x, t = (jnp.asarray(values, jnp.float32) for values in (rates_around(networks), x, t))
    return lambda seed: jax.block_until_ready(program(jax.random.split(jax.random.key(seed), networks), rates, x, t))


def by_steps(case: Case, x, t, epochs: int) -> Callable:
    """By a jitted step called from Python, which takes its batch from the data."""
    optimizer = fnn.optimizers.adam(RATE)
    step = fnn.training.train_step(case.network, fnn.losses.cross_entropy(), optimizer)
    weights = np.ones(case.batch, np.float32)

    @jax.jit
    def on_rows(state, x, t, rows):
        return step(state, Batch({"input": x[rows]}, t[rows], weights))

    indices = jax.jit(lambda key, epoch: case.plan.indices(key, epoch, len(x)))
    x, t = jnp.asarray(x), jnp.asarray(t)

    def train(seed):
        init_key, plan_key = jax.random.split(jax.random.key(seed))
        state = optimizer.init(case.network.init(init_key))
        for epoch in range(epochs):
            for rows in np.asarray(indices(plan_key, epoch)):
                state, _ = on_rows(state, x, t, rows)
        jax.block_until_ready(state)

    return train


def by_scikit_learn(case: Case, x, t, epochs: int) -> Callable:
    labels = t.argmax(axis=1)
    return lambda seed: scikit_learns(case, x, labels, epochs, seed)


def scikit_learns(case: experiments.Chain, x, labels, epochs: int, seed: int) -> MLPClassifier:
    """Trains scikit-learn's classifier, and returns it."""
    model = MLPClassifier(
        case.sizes[1:-1],
        activation="tanh",
        batch_size=case.batch,
        learning_rate_init=RATE,
        alpha=0.0,
        max_iter=epochs,
        tol=0.0,
        n_iter_no_change=epochs + 1,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged after so few epochs
        return model.fit(x, labels)


def by_torch(case: Case, x, t, epochs: int, threads: int) -> Callable:
    x, labels = torch.tensor(x), torch.tensor(t.argmax(axis=1))

    def train(seed):
        torch.set_num_threads(threads)
        torchs(case, x, labels, epochs, seed)

    return train


def torchs(case: experiments.Chain, x, labels, epochs: int, seed: int):
    """Trains the same layers by PyTorch, and returns the module."""
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(*pair) for pair in pairwise(case.sizes)]
    model = torch.nn.Sequential(*[module for layer in layers for module in (layer, torch.nn.Tanh())][:-1])
    optimizer, measure = torch.optim.Adam(model.parameters(), RATE), torch.nn.CrossEntropyLoss()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(case.batch):
            optimizer.zero_grad()
            loss = measure(model(x[rows]), labels[rows])
            loss.backward()
            optimizer.step()
    return model


def products() -> dict[str, Callable]:
    """A large product, by NumPy and by XLA, as functions that ignore their seed."""
    matrix = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
    copy, multiply = jnp.asarray(matrix), jax.jit(jnp.matmul)
    return {"NumPy": lambda _: matrix @ matrix, "XLA": lambda _: jax.block_until_ready(multiply(copy, copy))}


# What is measured -----------------------------------------------------------------------------------------------------


def timed(ways: dict[str, tuple[Callable, int]], rounds: int, advance: Callable) -> dict[str, list[float]]:
    """Seconds of a call, by way and round; ways: {name: (call, how often in a turn)}. The first call compiles."""
    for name, (call, _) in ways.items():
        advance(f"{name}, first")
        call(0)
    calls, loops = ({name: way[k] for name, way in ways.items()} for k in (0, 1))
    return timed_in_turns(calls, rounds, loops=loops, rest=REST, advance=advance)


def compare(case: Case, x, t, options, advance: Callable) -> tuple[list[dict], list[str]]:
    """Makes a row for each way of training, and the lines of the targets."""
    data, networks, spent = (case, x, t, options.epochs), options.networks, []
    ways = {
        OURS: (by_population(*data, networks, spent), 1),
        "plain vmap": (by_vmap(*data, networks), 1),
        "jitted step in a loop": (by_steps(*data), TURN),
        "scikit-learn MLPClassifier": (by_scikit_learn(*data), TURN),
    }
    if torch:
        for threads in sorted({1, os.cpu_count()}):
            ways[f"PyTorch eager, {threads} thread{'s' if threads > 1 else ''}"] = by_torch(*data, threads), TURN
    trained = {name: networks if name in (OURS, "plain vmap") else 1 for name in ways}
    machine = products()
    seconds = timed(ways | {name: (call, TURN) for name, call in machine.items()}, options.rounds, advance)
    updates = options.epochs * ROWS // case.batch
    times = {name: [1e6 * s / updates / trained[name] for s in seconds[name]] for name in ways}
    speeds = {name: 2 * SIDE**3 / median(seconds[name]) for name in machine}
    floor = 1e6 * case.operations / max(speeds.values())
    times[FLOOR] = [floor] * options.rounds

    rows = [
        {
            "sizes": case.name,
            "batch": case.batch,
            "trained by": name,
            "networks": trained.get(name, ""),
            "us": median(own),
            "lowest": min(own),
            "highest": max(own),
            f"/ {OURS}": median_ratio(own, times[OURS]),
            "/ floor": median_ratio(own, times[FLOOR]),
        }
        for name, own in times.items()
    ]
    said = [
        f"{case.name}, batch {case.batch}: {case.operations:,} operations an update; the machine makes "
        + ", ".join(f"{speed / 1e9:.0f} GFLOP/s by {name}" for name, speed in speeds.items())
        + f".\n  In the training loop alone, {OURS} takes {1e6 * median(spent[1:]):.3g} us."
    ]
    for name, (bound, sign) in {"plain vmap": (case.of_vmap, "<="), **LIMITS}.items():
        own = min((other for label, other in times.items() if label.startswith(name)), key=median, default=None)
        if own is None:
            said.append(f"  {name}: not installed, not measured")
        elif sign == "<=":
            said.append(target(f"{OURS} / {name}", median_ratio(times[OURS], own), bound, sign))
        else:
            said.append(target(f"{name} / {OURS}", median_ratio(own, times[OURS]), bound, sign))
    said.append(target(f"{OURS} / floor", median_ratio(times[OURS], times[FLOOR]), case.above_floor, "<="))
    return rows, said


def target(what: str, value: float, bound: float, sign: str) -> str:
    met = value >= bound if sign == ">=" else value <= bound
    return f"  {what} {sign} {bound:g}: {value:.3g} {'met' if met else 'MISSED'}"


def against_number(x, t, options, advance: Callable) -> tuple[list[dict], list[str]]:
    """Measures the cost of one network of the first case against the number of networks."""
    sizes = [size for size in SIZES if size <= options.largest]
    spent = {size: [] for size in sizes}
    ways = {size: (by_population(CASES[0], x, t, options.epochs, size, spent[size]), 1) for size in sizes}
    seconds = timed(ways, options.rounds, advance)
    updates = options.epochs * ROWS // CASES[0].batch
    rows = [
        {
            "sizes": CASES[0].name,
            "batch": CASES[0].batch,
            "networks": size,
            "us": 1e6 * median(seconds[size]) / updates / size,
            "of training": 1e6 * median(spent[size][1:]),
            "seconds": median(seconds[size]),
        }
        for size in sizes
    ]
    said = []
    for column in ("us", "of training"):
        own = [row[column] for row in rows]
        away = (max(own) - min(own)) / (max(own) + min(own))
        said.append(target(f"+- of '{column}' from {sizes[0]} to {sizes[-1]} networks", away, 0.15, "<="))
    return rows, said


def compilation(x, t, rounds: int) -> list[str]:
    """Measures what many updates and many settings cost before anything is trained."""
    case, few = CASES[0], slice(COMPILED[0] * CASES[0].batch)  # an epoch of these rows has COMPILED[0] updates
    seconds = {updates: [] for updates in COMPILED}
    for number in range(rounds):
        for updates in COMPILED:
            train = by_population(case, x[few], t[few], updates // COMPILED[0], jax.device_count())
            jax.clear_caches()
            times = []
            for seed in (2 * number, 2 * number + 1):
                began = time.perf_counter()
                train(seed)
                times.append(time.perf_counter() - began)
            seconds[updates].append(times[0] - times[1])  # the second compiles nothing
    few_updates, many = (seconds[updates] for updates in COMPILED)

    events = []

    def counted(network, loss):
        gradient = fnn.value_and_grad(network, loss)
        return lambda *batch: events.append("traced") or gradient(*batch)

    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: events.append(event.rpartition("/")[2]))
    jax.clear_caches()
    calls = 0
    for rate, b1 in zip(rates_around(SETTINGS), np.linspace(0.8, 0.95, SETTINGS), strict=True):
        events.clear()
        members = {"seed": [0, 1], "learning_rate": [rate, 2 * rate], "b1": [b1, b1]}
        fit_population(
            case.network,
            "cross_entropy",
            "adam",
            members,
            (x[few], t[few]),
            key=jax.random.key(0),
            epochs=1,
            plan=case.plan,
            gradient=counted,
        )
        calls += "traced" in events or "backend_compile_duration" in events
    return [
        target(
            f"compile seconds of {COMPILED[1]:,} updates / of {COMPILED[0]} ({median(many):.2f} / "
            f"{median(few_updates):.2f})",
            median_ratio(many, few_updates),
            1.5,
            "<=",
        ),
        target(f"calls, of {SETTINGS} with other settings, that traced the gradient or compiled", calls, 1, "<="),
    ]


def start_up(x, t, rounds: int) -> str:
    """Measures seconds from the call to the first epoch of networks of random widths, without training itself."""
    widths = np.random.default_rng(0).choice(np.arange(1, WIDEST + 1), WIDTHS, replace=False)
    seconds = []

    def waited(at) -> None:
        trained = WIDTHS * ROWS // CASES[0].batch / at.updates_per_second  # its compilation included
        seconds.append(time.perf_counter() - began - trained)

    for _ in range(rounds):
        jax.clear_caches()
        began = time.perf_counter()
        fit_population(
            lambda width: fnn.multilayer((CASES[0].sizes[0], width, CASES[0].sizes[-1]), ("tanh", "softmax")),
            "cross_entropy",
            "adam",
            {"width": widths, "seed": range(WIDTHS)},
            (x, t),
            key=jax.random.key(0),
            epochs=1,
            chunk=1,
            plan=CASES[0].plan,
            pad=True,
            on_chunk=waited,
        )
    return target(f"seconds before {WIDTHS} random widths padded into one program train", median(seconds), START, "<=")


def main() -> None:
    experiments.start(all_cores=True)
    options = experiments.arguments(
        __doc__, "results/benchmark_populations", rounds=5, epochs=20, networks=256, largest=max(SIZES)
    )
    task = experiments.load("digits")
    x, t = task.inputs[:ROWS], task.targets[:ROWS]
    written = f"{ROWS} rows, {options.epochs} epochs, Adam, {options.rounds} rounds, {jax.device_count()} devices"
    with experiments.counted("measuring") as advance:
        compared = [compare(case, x, t, options, advance) for case in CASES]
        sizes, flat = against_number(x, t, options, advance)
        flat += [*compilation(x, t, options.rounds), start_up(x, t, options.rounds)]
    torch_said = f"; PyTorch {torch.__version__}" if torch else "; without PyTorch; pip install torch"
    notes = [
        f"us: microseconds an update and network, medians over the rounds. {written}{torch_said}.",
        *(line for _, lines in compared for line in ("", *lines)),
    ]
    experiments.write(options.out, [row for rows, _ in compared for row in rows], notes="\n".join(notes))
    notes = [f"us: microseconds an update and network of whole calls, and of training alone. {written}.", "", *flat]
    experiments.write(experiments.sibling(options.out, "sizes"), sizes, notes="\n".join(notes))


if __name__ == "__main__":
    main()
