#!/usr/bin/env python
"""What training costs: one `fit`, the same training as a jitted step in a Python loop, and others' on the same data.

    python scripts/benchmark_training.py --out results/benchmark_training
    python scripts/benchmark_training.py --before FOLDER     # beside fit of another checkout, such as a git worktree

Digits in batches of 32 by Adam, the same batches in the first two; and, where Debian's dataset-fashion-mnist is, its
60,000 pictures in batches of 128. All take turns, round after round; what to read are the ratios, medians over the
rounds. "first" is the first call, compilation included; "again" a call with the same settings and another key, which
compiles nothing. "products" are an update's matrix products, one after the other in one compiled loop, and nothing
else. scikit-learn's MLPClassifier trains the same layers at the same rate. PyTorch (eager) takes part where it is
installed. A second table, OUT_kernels, has what the compiled loop of an update is made of.
"""

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.progress import progress
from functional_nn.training import Batch, keys, loop
from functional_nn.training.data import prepare_data
from functional_nn.training.settings import check_settings, with_plan

# after the lab, which says what to install where it is missing
from sklearn.metrics import log_loss  # isort: skip
from sklearn.neural_network import MLPClassifier  # isort: skip

try:
    import torch

    torch.set_num_threads(1)  # enough for such layers; more would go on spinning in the turns of the others
except ImportError:
    torch = None

RATE = 1e-3
LOSS = "cross_entropy"


@dataclass(frozen=True)
class Case(experiments.Chain):
    """A network with its data; turn: trainings in a row, so that what the one before left in the caches counts less."""

    data: str
    epochs: int
    turn: int
    firsts: bool  # are first calls measured, too?


CASES = (
    Case((64, 32, 10), 32, "digits", 50, 3, True),
    Case((64, 128, 10), 32, "digits", 50, 3, True),
    Case((784, 256, 128, 10), 128, "fashion_mnist", 1, 1, False),
)
Train = Callable[[int], Callable[[], float]]  # seed -> what measures the loss on the training set afterwards


def measured(case: Case, params, x, t) -> float:
    return float(fnn.training.evaluate(case.network, LOSS, params, x, t)[0])


def by_fit(case: Case, x, t, keep: bool) -> Train:
    """By `fit`: compiled programs kept from call to call, or never seen before."""

    def train(seed):
        # adam's epsilon tells the settings of one first call from the next, so that each of them compiles
        optimizer = fnn.optimizers.adam(RATE, epsilon=1e-8 if keep else 1e-8 + 1e-15 * (1 + seed))
        key = jax.random.key(seed)
        result = fnn.fit(case.network, LOSS, optimizer, x, t, key=key, epochs=case.epochs, plan=case.plan)
        return lambda: measured(case, result.params, x, t)

    return train


@contextlib.contextmanager
def before(folder: Path | None, number: int) -> Iterator[Train | None]:
    """`by_fit` of the checkout in that folder, in a process of its own that trains when it is told to; None without."""
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
    """How this script is run in another checkout."""
    return {
        "args": [sys.executable, __file__, word, str(number)],
        "env": os.environ | {"PYTHONPATH": str(folder)},
        "stdout": subprocess.PIPE,
        "text": True,
    }


def work(case: Case) -> None:
    """The other side of `before`: seeds come in, losses go out."""
    task = experiments.load(case.data)
    train = by_fit(case, task.inputs, task.targets, keep=True)
    for line in sys.stdin:
        print(train(int(line))(), flush=True)


def by_steps(case: Case, x, t, keep: bool) -> Train:
    """The same updates as a jitted step called from Python, batches cut out inside it."""
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
        return lambda: measured(case, state.params, x, t)

    return train


def by_products(case: Case, x, t) -> Train:
    """No training: an update's products, of rows as they lie, made as often. What they give are the next weights, so
    that none is left out.
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
        model = MLPClassifier(
            case.sizes[1:-1],
            activation="tanh",
            batch_size=case.batch,
            learning_rate_init=RATE,
            alpha=0.0,
            max_iter=case.epochs,
            tol=0.0,
            n_iter_no_change=case.epochs + 1,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged after so many epochs, which nobody asked for
            model.fit(x, labels)
        return lambda: float(log_loss(labels, model.predict_proba(x)))

    return train


def by_torch(case: Case, x, t) -> Train:
    x, labels = torch.tensor(x), torch.tensor(t.argmax(axis=1))

    def train(seed):
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(*pair) for pair in pairwise(case.sizes)]
        between = [part for layer in layers for part in (layer, torch.nn.Tanh())][:-1]
        model = torch.nn.Sequential(*between)
        optimizer, measure = torch.optim.Adam(model.parameters(), RATE), torch.nn.CrossEntropyLoss()
        for _ in range(case.epochs):
            for rows in torch.randperm(len(x)).split(case.batch):
                optimizer.zero_grad()
                loss = measure(model(x[rows]), labels[rows])
                loss.backward()
                optimizer.step()
        return lambda: measure(model(x), labels).item()

    return train


def compare(case: Case, earlier: Train | None, rounds: int, advance: Callable) -> list[dict]:
    """A row a way of training; seconds are medians over rounds in which the ways take turns."""
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
    seconds, losses = {name: [] for name in ways}, {}
    for number in range(rounds):
        for name, train in ways.items():
            times = 1 if name.endswith("first") else case.turn
            began = time.perf_counter()
            for i in range(times):
                loss_after = train(case.turn * number + i)
            seconds[name].append((time.perf_counter() - began) / times)
            losses[name] = loss_after()
            advance(f"{case.name}: {name}")
    updates = case.epochs * case.plan.updates(len(task.inputs))

    def ratio(name, to):
        return median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))

    return [
        {
            "sizes": case.name,
            "batch": case.batch,
            "trained by": name,
            "seconds": median(own),
            "us an update": 1e6 * median(own) / updates,
            "/ products": ratio(name, "products"),
            "/ jitted step": ratio(name, STEPS.format("first" if name.endswith("first") else "again")),
            "/ scikit-learn": ratio(name, "scikit-learn MLPClassifier"),
            "training loss": losses[name],
        }
        for name, own in seconds.items()
    ]


# What an update is made of --------------------------------------------------------------------------------------------


def kernels(case: Case) -> dict[str, int]:
    """How many kernels the compiled loop of an update has, by kind, from the compiler's own text."""
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
    """The kinds of kernels in the loop that has the most products."""
    bodies = re.findall(r"^%?[\w.\-]+ \(.*?\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    found = []
    for body in bodies:
        lines = [line.split(", metadata")[0].split(" = ", 1) for line in body.splitlines() if " = " in line]
        kinds = [_kind(name, said) for name, said in lines]
        found.append([kind for kind in kinds if kind])
    return max(found, key=lambda kinds: (kinds.count("product"), len(kinds)))


def _kind(name: str, said: str) -> str | None:
    operation = re.search(r"[\])}] ([a-z\-]+)\(", said)
    if operation is None or operation[1] in ("parameter", "constant", "get-tuple-element", "tuple", "bitcast"):
        return None
    if operation[1] == "dot" or "ynn_fusion" in name or "kind=kCustom" in said:
        return "product"
    return operation[1] if operation[1] in ("fusion", "copy") else "other"


STEPS = "jitted step in a loop, {}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--before", type=Path, help="a checkout whose fit takes its turns, too")
    parser.add_argument("--sizes", nargs="*", help="such as 64-32-10; default all")
    for word in ("--worker", "--kernels"):  # what a process of another checkout is to do, of the case with that number
        parser.add_argument(word, type=int, help=argparse.SUPPRESS)
    out = Path("results/benchmark_training")
    parser.add_argument("--out", type=Path, default=out, help=f"writes OUT.csv, .txt and .html; default {out}")
    options = parser.parse_args()
    # no path of this machine goes into the tables
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
    count, rows = [0], []
    with progress("training", 1) as bar:

        def advance(name):
            count[0] += 1
            bar(0, f"{count[0]}: {name}")

        for case in cases:
            with before(options.before, CASES.index(case)) as earlier:
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
    made = [{"sizes": case.name, "fit of": "this commit", **kernels(case)} for case in cases]
    if options.before is not None:
        for case in cases:
            run = subprocess.run(**_elsewhere(options.before, "--kernels", CASES.index(case)), check=True)
            made.append({"sizes": case.name, "fit of": "the commit before", **json.loads(run.stdout.splitlines()[-1])})
    experiments.write(
        options.out.with_name(f"{options.out.name}_kernels"),
        made,
        notes="Kernels in the compiled loop of one update; a fusion is one kernel of several elementwise operations.",
    )


if __name__ == "__main__":
    main()
