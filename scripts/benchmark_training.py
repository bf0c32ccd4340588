#!/usr/bin/env python
"""What training costs: one `fit`, the same training as a jitted step in a Python loop, and others' on the same data.

    python scripts/benchmark_training.py --out results/benchmark_training

50 epochs of digits in batches of 32 by Adam, the same batches in the first two. All take turns, round after round, in
one process, three trainings a turn; what to read are the ratios, medians over the rounds. "first" is the first call,
compilation included; "again" a call with the same settings and another key, which compiles nothing. scikit-learn's
MLPClassifier trains the same layers at the same rate. PyTorch (eager) takes part where it is installed.
"""

import time
import warnings
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.progress import progress
from functional_nn.training import Batch

# after the lab, which says what to install where it is missing
from sklearn.metrics import log_loss  # isort: skip
from sklearn.neural_network import MLPClassifier  # isort: skip

try:
    import torch

    torch.set_num_threads(1)  # enough for such layers; more would go on spinning in the turns of the others
except ImportError:
    torch = None

BATCH, RATE = 32, 1e-3
PLAN = fnn.training.minibatch(BATCH)
TURN = 3  # trainings in a row, so that what the one before left in the caches counts for a third
LAYERS = ((64, 32, 10), (64, 128, 10))


Train = Callable[[int], Callable[[], float]]  # seed -> what measures the loss on the training set afterwards


def measured(network, params, x, t) -> float:
    return float(fnn.training.evaluate(network, "cross_entropy", params, x, t)[0])


def by_fit(network, x, t, epochs: int, keep: bool) -> Train:
    """By `fit`: compiled programs kept from call to call, or never seen before."""
    loss = fnn.losses.cross_entropy()

    def train(seed):
        # adam's epsilon tells the settings of one first call from the next, so that each of them compiles
        optimizer = fnn.optimizers.adam(RATE, epsilon=1e-8 if keep else 1e-8 + 1e-15 * (1 + seed))
        result = fnn.fit(network, loss, optimizer, x, t, key=jax.random.key(seed), epochs=epochs, plan=PLAN)
        return lambda: measured(network, result.params, x, t)

    return train


def by_steps(network, x, t, epochs: int, keep: bool) -> Train:
    """The same updates as a jitted step called from Python, batches cut out inside it."""
    loss, optimizer = fnn.losses.cross_entropy(), fnn.optimizers.adam(RATE)

    def jitted():
        step = fnn.training.train_step(network, loss, optimizer)

        @jax.jit
        def on_rows(state, x, t, rows, weights):
            return step(state, Batch({"input": x[rows]}, t[rows], weights))

        return on_rows, jax.jit(lambda key, epoch: PLAN.indices(key, epoch, len(x)))

    kept = jitted()
    x, t = jnp.asarray(x), jnp.asarray(t)
    weights = PLAN.weights(len(x))
    weights = np.ones((PLAN.updates(len(x)), BATCH), np.float32) if weights is None else weights

    def train(seed):
        on_rows, indices = kept if keep else jitted()
        init_key, plan_key = jax.random.split(jax.random.key(seed))
        state = optimizer.init(network.init(init_key))
        for epoch in range(epochs):
            rows = np.asarray(indices(plan_key, epoch))
            for own_rows, own_weights in zip(rows, weights, strict=True):
                state, _ = on_rows(state, x, t, own_rows, own_weights)
        jax.block_until_ready(state)
        return lambda: measured(network, state.params, x, t)

    return train


def by_scikit_learn(network, x, t, epochs: int) -> Train:
    labels, hidden = t.argmax(axis=1), tuple(layer.size for layer in network.layers[:-1])

    def train(seed):
        model = MLPClassifier(hidden, activation="tanh", batch_size=BATCH, learning_rate_init=RATE, alpha=0.0,
                              max_iter=epochs, tol=0.0, n_iter_no_change=epochs + 1, random_state=seed)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged after so many epochs, which nobody asked for
            model.fit(x, labels)
        return lambda: float(log_loss(labels, model.predict_proba(x)))

    return train


def by_torch(network, x, t, epochs: int) -> Train:
    sizes = (x.shape[1], *(layer.size for layer in network.layers))
    x, labels = torch.tensor(x), torch.tensor(t.argmax(axis=1))

    def train(seed):
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False)]
        between = [part for layer in layers for part in (layer, torch.nn.Tanh())][:-1]
        model = torch.nn.Sequential(*between)
        optimizer, measure = torch.optim.Adam(model.parameters(), RATE), torch.nn.CrossEntropyLoss()
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                loss = measure(model(x[rows]), labels[rows])
                loss.backward()
                optimizer.step()
        return lambda: measure(model(x), labels).item()

    return train


def compare(sizes: tuple[int, ...], epochs: int, rounds: int, advance: Callable) -> list[dict]:
    """A row a way of training; seconds are medians over rounds in which the ways take turns."""
    task = experiments.load("digits")
    network = fnn.multilayer(sizes, ("tanh",) * (len(sizes) - 2) + ("softmax",))
    data = (network, task.inputs, task.targets, epochs)
    ways = {
        "fit, again": by_fit(*data, keep=True),
        "jitted step in a loop, again": by_steps(*data, keep=True),
        "fit, first": by_fit(*data, keep=False),
        "jitted step in a loop, first": by_steps(*data, keep=False),
        "scikit-learn MLPClassifier": by_scikit_learn(*data),
        **({"PyTorch eager": by_torch(*data)} if torch else {}),
    }
    for name, train in ways.items():
        if name.endswith("again"):
            train(10_000)  # compiles
    seconds, losses = {name: [] for name in ways}, {}
    for number in range(rounds):
        for name, train in ways.items():
            times = 1 if name.endswith("first") else TURN
            began = time.perf_counter()
            for i in range(times):
                loss_after = train(TURN * number + i)
            seconds[name].append((time.perf_counter() - began) / times)
            losses[name] = loss_after()
            advance(name)
    updates = epochs * PLAN.updates(len(task.inputs))
    ratio = lambda name, to: median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))  # noqa: E731
    return [
        {
            "sizes": "-".join(map(str, sizes)),
            "trained by": name,
            "seconds": median(own),
            "us an update": 1e6 * median(own) / updates,
            "/ jitted step": ratio(name, f"jitted step in a loop, {'first' if name.endswith('first') else 'again'}"),
            "/ scikit-learn": ratio(name, "scikit-learn MLPClassifier"),
            "training loss": losses[name],
        }
        for name, own in seconds.items()
    ]


def main() -> None:
    options = experiments.arguments(__doc__, "results/benchmark_training", rounds=5, epochs=50)
    count = [0]
    ways = 6 if torch else 5
    with progress("training", len(LAYERS) * options.rounds * ways) as bar:

        def advance(name):
            count[0] += 1
            bar(count[0], name)

        rows = [row for sizes in LAYERS for row in compare(sizes, options.epochs, options.rounds, advance)]
    experiments.write(
        options.out,
        rows,
        notes=f"digits, {options.epochs} epochs, batches of {BATCH}, Adam at {RATE}, float32, {options.rounds} rounds"
        + (
            f"; PyTorch {torch.__version__}, {torch.get_num_threads()} thread"
            if torch
            else "; without PyTorch; pip install torch"
        ),
    )


if __name__ == "__main__":
    main()
