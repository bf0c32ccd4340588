#!/usr/bin/env python
"""What training costs: one `fit`, the same training as a jitted step in a Python loop, and other libraries on the same
data.

    python scripts/benchmark_training.py --out results/benchmark_training
    python scripts/benchmark_training.py --before FOLDER     # next to fit of another checkout, such as a git worktree

Digits in batches of 32 by Adam, with the same batches in the first two; and, where Debian's dataset-fashion-mnist is
installed, its 60,000 pictures in batches of 128. All take turns, round after round. Read the ratios, which are medians
over the rounds. "first" is the first call, compilation included; "again" is a call with the same settings and another
key, which compiles nothing. "products" are an update's matrix products, one after the other in one compiled loop, and
nothing else. scikit-learn's MLPClassifier trains the same layers at the same rate. PyTorch (eager) takes part where it
is installed. A second table, OUT_kernels, counts the kernels in the compiled loop of an update.
"""

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_populations import RATE, scikit_learns, torchs
from jax import lax

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.timing import median_ratio, timed_in_turns
from functional_nn.training import Batch, keys, loop
from functional_nn.training.data import prepare_data
from functional_nn.training.settings import check_settings, with_plan

# after the lab, which says what to install where it is missing
from sklearn.metrics import log_loss  # isort: skip

try:
    import torch

    torch.set_num_threads(1)  # enough for such layers; more would keep spinning in the turns of the others
except ImportError:
    torch = None

LOSS = "cross_entropy"


@dataclass(frozen=True)
class Case(experiments.Chain):
    """A network and its data. turn: trainings in one turn, so that what the previous turn left in caches
    counts less.
    """

    data: str
    epochs: int
    turn: int
    firsts: bool  # are first calls measured too?


CASES = (
    Case((64, 32, 10), 32, "digits", 50, 3, True),
    Case((64, 128, 10), 32, "digits", 50, 3, True),
    Case((784, 256, 128, 10), 128, "fashion_mnist", 1, 1, False),
)
Train = Callable[[int], Callable[[], float]]  # trains from a seed; returns a function that measures the training loss


def training_loss(case: Case, params, x, t) -> float:
    return float(fnn.training.evaluate(case.network, LOSS, params, x, t)[0])


def by_fit(case: Case, x, t, keep: bool) -> Train:
    """By `fit`, with compiled programs that are kept from call to call, or new each time."""

    def train(seed):
        # First calls differ in Adam's epsilon, so that each of them compiles.
        optimizer = fnn.optimizers.adam(RATE, epsilon=1e-8 if keep else 1e-8 + 1e-15 * (1 + seed))
        key = jax.random.key(seed)
        result = fnn.fit(case.network, LOSS, optimizer, x, t, key=key, epochs=case.epochs, plan=case.plan)
        return lambda: training_loss(case, result.params, x, t)

    return train


@contextlib.contextmanager
def other_checkout(folder: Path | None, number: int) -> Iterator[Train | None]:
    """Yields `by_fit` of the checkout in that folder, in another process; None without a folder."""
    if folder is None:
        yield None
        return
    worker = subprocess.Popen(**_elsewhere(folder, "--worker", number), stdin=subprocess.PIPE)

    def train(seed):
        print(seed, file=worker.stdin, flush=True)
        loss = float(worker.stdout.readline())
        return lambda: loss

    with worker:
        yield train
        worker.stdin.close()


def _elsewhere(folder: Path, word: str, number: int) -> dict:
    """Returns how this script is run in another checkout."""
    return {
        "args": [sys.executable, __file__, word, str(number)],
        "env": os.environ | {"PYTHONPATH": str(folder)},
        "stdout": subprocess.PIPE,
        "text": True,
    }


def work(case: Case) -> None:
    """The other process of `other_checkout`: reads seeds, and writes losses."""
    task = experiments.load(case.data)
    train = by_fit(case, task.inputs, task.targets, keep=True)
    for line in sys.stdin:
        print(train(int(line))(), flush=True)


def by_steps(case: Case, x, t, keep: bool) -> Train:
    """By a jitted step called from Python, which takes its batch from the data: the same updates."""
    optimizer, plan = fnn.optimizers.adam(RATE), case.plan

    def jitted():
        step = fnn.training.train_step(case.network, LOSS, optimizer)

        @jax.jit
        def on_rows(state, x, t, rows, weights):
            return step(state, Batch({"input": x[rows]}, t[rows], weights))

        return on_rows, jax.jit(lambda key, epoch: plan.indices(key, epoch, len(x)))

    kept = jitted()
    x, t = jnp.asarray(x), jnp.asarray(t)
    weights = plan.weights(len(x))
    weights = np.ones((plan.updates(len(x)), case.batch), np.float32) if weights is None else weights

    def train(seed):
        on_rows, indices = kept if keep else jitted()
        init_key, plan_key = jax.random.split(jax.random.key(seed))
        state = optimizer.init(case.network.init(init_key))
        for epoch in range(case.epochs):
            rows = np.asarray(indices(plan_key, epoch))
            for own_rows, own_weights in zip(rows, weights, strict=True):
                state, _ = on_rows(state, x, t, own_rows, own_weights)
        jax.block_until_ready(state)
        return lambda: training_loss(case, state.params, x, t)

    return train


def by_products(case: Case, x, t) -> Train:
    """No training: an update's products, of the first rows, as often as there are updates. Their results are the next
    weights, so that the compiler leaves none out.
    """
    row, dense = x[: case.batch], fnn.connections.get("dense")
    weights = [jnp.zeros((s, r), jnp.float32) for r, s in pairwise(case.sizes)]
    count = case.epochs * case.plan.updates(len(x))

    @jax.jit
    def products(weights, row):
        def update(_, weights):
            signals = [row]
            for w in weights:
                signals.append(dense.forward(signals[-1], w))
            s, grads = signals[-1], []
            for w, a in zip(reversed(weights), reversed(signals[:-1]), strict=True):
                grads.append(dense.outer(s, a))
                s = dense.back(s, w, a) if a is not row else s
            return grads[::-1]

        return lax.fori_loop(0, count, update, weights)

    def train(seed):
        jax.block_until_ready(products(weights, row))
        return lambda: math.nan

    return train


def by_scikit_learn(case: Case, x, t) -> Train:
    labels = t.argmax(axis=1)

    def train(seed):
        model = scikit_learns(case, x, labels, case.epochs, seed)
        return lambda: float(log_loss(labels, model.predict_proba(x)))

    return train


def by_torch(case: Case, x, t) -> Train:
    x, labels = torch.tensor(x), torch.tensor(t.argmax(axis=1))

    def train(seed):
        model = torchs(case, x, labels, case.epochs, seed)
        return lambda: torch.nn.CrossEntropyLoss()(model(x), labels).item()

    return train


def compare(case: Case, earlier: Train | None, rounds: int, advance: Callable) -> list[dict]:
    """Makes a row for each way of training; seconds are medians over rounds in which the ways take turns."""
    task = experiments.load(case.data)
    data = (case, task.inputs, task.targets)
    ways = {
        "fit, again": by_fit(*data, keep=True),
        **({"fit of the commit before, again": earlier} if earlier else {}),
        STEPS.format("again"): by_steps(*data, keep=True),
        **({"fit, first": by_fit(*data, keep=False)} if case.firsts else {}),
        **({STEPS.format("first"): by_steps(*data, keep=False)} if case.firsts else {}),
        "products": by_products(*data),
        "scikit-learn MLPClassifier": by_scikit_learn(*data),
        **({"PyTorch eager": by_torch(*data)} if torch else {}),
    }
    for name, train in ways.items():
        if not name.endswith("first"):
            train(10_000)  # compiles
    loss_after = {}

    def timed(name):
        def call(seed):
            loss_after[name] = ways[name](seed - 1)

        return call

    seconds = timed_in_turns(
        {name: timed(name) for name in ways},
        rounds,
        loops={name: 1 if name.endswith("first") else case.turn for name in ways},
        advance=lambda name: advance(f"{case.name}: {name}"),
    )
    updates = case.epochs * case.plan.updates(len(task.inputs))

    return [
        {
            "sizes": case.name,
            "batch": case.batch,
            "trained by": name,
            "seconds": median(own),
            "us an update": 1e6 * median(own) / updates,
            "/ products": median_ratio(own, seconds["products"]),
            "/ jitted step": median_ratio(own, seconds[STEPS.format("first" if name.endswith("first") else "again")]),
            "/ scikit-learn": median_ratio(own, seconds["scikit-learn MLPClassifier"]),
            "training loss": loss_after[name](),
        }
        for name, own in seconds.items()
    ]


# The kernels of an update --------------------------------------------------------------------------------------------


def kernels(case: Case) -> dict[str, int]:
    """Counts the kernels in the compiled loop of an update, by kind, from the compiler's own text."""
    task = experiments.load(case.data)
    settings = check_settings(case.network, LOSS, fnn.optimizers.adam(RATE), plan=case.plan)
    params = loop.initial_params(settings, jax.random.key(0))
    training, _ = prepare_data(settings, params, task.inputs, task.targets, None)
    settings = with_plan(settings, training, case.epochs)
    begin, advance = loop.compiled(settings, 1)
    run = begin(params, training)
    text = advance.lower(run, training, None, keys.plan(jax.random.key(0)), 1).compile().as_text()
    found = Counter(innermost(text))
    return {kind: found[kind] for kind in ("product", "fusion", "copy", "other")}


def innermost(text: str) -> list[str]:
    """Returns the kinds of kernels in the loop that has the most products."""
    bodies = re.findall(r"^%?[\w.\-]+ \(.*?\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    loops = []
    for body in bodies:
        lines = [line.split(", metadata")[0].split(" = ", 1) for line in body.splitlines() if " = " in line]
        kinds = [_kind(name, text) for name, text in lines]
        loops.append([kind for kind in kinds if kind])
    return max(loops, key=lambda kinds: (kinds.count("product"), len(kinds)))


def _kind(name: str, text: str) -> str | None:
    operation = re.search(r"[\])}] ([a-z\-]+)\(", text)
    if operation is None or operation[1] in ("parameter", "constant", "get-tuple-element", "tuple", "bitcast"):
        return None
    if operation[1] == "dot" or "ynn_fusion" in name or "kind=kCustom" in text:
        return "product"
    return operation[1] if operation[1] in ("fusion", "copy") else "other"


STEPS = "jitted step in a loop, {}"


def main() -> None:
    parser = experiments.parser(__doc__, "results/benchmark_training", rounds=5)
    parser.add_argument("--before", type=Path, help="a checkout whose fit takes its turns too")
    parser.add_argument("--sizes", nargs="*", help="such as 64-32-10; default all")
    for word in ("--worker", "--kernels"):  # for a process of another checkout: the number of a case
        parser.add_argument(word, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # No path of this machine goes into the tables.
    sys.argv = ["FOLDER" if word == str(options.before) else word for word in sys.argv]
    if options.worker is not None:
        work(CASES[options.worker])
        return
    if options.kernels is not None:
        print(json.dumps(kernels(CASES[options.kernels])))
        return
    cases = [case for case in CASES if not options.sizes or case.name in options.sizes]
    if "fashion_mnist" in (case.data for case in cases):
        try:
            experiments.load("fashion_mnist")
        except ValueError as error:
            print(f"without Fashion-MNIST: {error}", file=sys.stderr)
            cases = [case for case in cases if case.data != "fashion_mnist"]
    rows = []
    with experiments.counted("training") as advance:
        for case in cases:
            with other_checkout(options.before, CASES.index(case)) as earlier:
                rows += compare(case, earlier, options.rounds, advance)
    epochs = ", ".join(f"{case.epochs} of {case.name}" for case in cases)
    experiments.write(
        options.out,
        rows,
        notes=f"Adam at {RATE}, float32; epochs: {epochs}; {options.rounds} rounds"
        + (
            f"; PyTorch {torch.__version__}, {torch.get_num_threads()} thread"
            if torch
            else "; without PyTorch; pip install torch"
        ),
    )
    kernel_rows = [{"sizes": case.name, "fit of": "this commit", **kernels(case)} for case in cases]
    if options.before is not None:
        for case in cases:
            run = subprocess.run(**_elsewhere(options.before, "--kernels", CASES.index(case)), check=True)
            kernel_rows.append(
                {"sizes": case.name, "fit of": "the commit before", **json.loads(run.stdout.splitlines()[-1])}
            )
    experiments.write(
        experiments.sibling(options.out, "kernels"),
        kernel_rows,
        notes="Kernels in the compiled loop of one update; a fusion is one kernel of several elementwise operations.",
    )


if __name__ == "__main__":
    main()
