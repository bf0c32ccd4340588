#!/usr/bin/env python
"""The adding problem: which recurrent networks add two numbers that are far back, and how far sensitivities reach.

    python scripts/adding_problem.py --seeds 3 --updates 3000 --out results/adding_problem

Hochreiter and Schmidhuber 1997, Experiment 4, as Le et al. 2015 (arXiv 1504.00941) state it. A sequence has T steps.
Each has a number from [0, 1) and a marker, which is 1 at two steps, one in each half, and 0 elsewhere. After the last
step the network should return the sum of the two marked numbers. Always returning 1, the mean, has a mean square error
of 1/6. Each network has one recurrent layer: tanh (Elman 1990), a GRU or an LSTM. It is trained by Adam, on new
sequences in every update, with the gradient's norm clipped to 1 (Pascanu et al. 2013), at the best of three rates.

s_t = dF/dn_t is the sensitivity of step t, through all the steps after it. Its norm is measured before training and
after, for each t, as the root of the mean square over 500 test sequences of ||dF_q/dn_t||, F_q the error of one.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

LENGTHS, WIDTH, BATCH, TESTED, EVERY = (10, 30, 100), 32, 32, 500, 100
RATES, LARGEST = (0.001, 0.003, 0.01), 1.0  # of the gradient's norm
NETWORKS = {"tanh": "elman", "GRU": "gru", "LSTM": "lstm"}
COLORS = {"tanh": VERMILION, "GRU": BLUE, "LSTM": GREEN}
MEAN, SOLVED = 1 / 6, 0.01  # mean square errors
LEAST = 1e-16  # of the norms drawn


def sequences(key: Array, count: int, T: int) -> tuple[Array, Array]:
    """Draws (numbers and markers (count, T, 2), sums (count, 1)), new ones for every key."""
    number_key, *half_keys = jax.random.split(key, 3)
    numbers = jax.random.uniform(number_key, (count, T))
    halves = ((0, T // 2), (T // 2, T))
    marked = [jax.random.randint(key, (count, 1), *ends) for key, ends in zip(half_keys, halves, strict=True)]
    markers = sum((jnp.arange(T)[None, :] == place).astype(numbers.dtype) for place in marked)
    return jnp.stack([numbers, markers], axis=-1), jnp.sum(numbers * markers, axis=1, keepdims=True)


def network(name: str, T: int) -> fnn.Network:
    return fnn.presets.get(f"{NETWORKS[name]}(width={WIDTH})")((T, 2), 1, output="linear")


def measured(network: fnn.Network, params: dict, test: tuple[Array, Array]) -> tuple[Array, Array]:
    """Returns the mean square error, and the norms of s_t (T,)."""
    found = fnn.backpropagate(network, "mean_square_error", params, *test)
    s = found.sensitivities["state1"] * len(test[1])  # of one example's error, not of the mean
    return found.value, jnp.sqrt(jnp.mean(jnp.sum(s**2, axis=-1), axis=0))


def train(network: fnn.Network, test: tuple[Array, Array], updates: int, rate: Array, key: Array):
    """Returns each update's loss, and the test errors and norms of s_t at the start and every EVERY updates."""
    value_and_grad = fnn.value_and_grad(network, "mean_square_error")
    optimizer = fnn.optimizers.clip_by_global_norm(fnn.optimizers.adam(rate), LARGEST)
    start, stream = jax.random.split(key)

    def update(state, key):
        value, gradients = value_and_grad(state.params, *sequences(key, BATCH, len(test[0][0])))
        return optimizer.update(state, gradients), value

    def some(state, keys):
        found = measured(network, state.params, test)
        state, values = jax.lax.scan(update, state, keys)
        return state, (values, *found)

    # The updates after the last measurement are unused, but a separate measurement would be compiled a second time.
    keys = jax.random.split(stream, (updates // EVERY + 1, EVERY))
    _, (values, errors, norms) = jax.lax.scan(some, optimizer.init(network.init(start)), keys)
    return values[:-1].reshape(-1), errors, norms


def row(name: str, network: fnn.Network, losses: np.ndarray, errors: np.ndarray, norms: np.ndarray) -> dict:
    """Makes a row from (rates, seeds, ...), at the rate whose last tenth of updates has the lowest median loss."""
    last = losses[..., -losses.shape[-1] // 10 :].mean(axis=-1)
    best = experiments.best_rate(last)
    errors, norms = errors[best], norms[best]
    ratios = norms[..., 0] / norms[..., -1]
    return {
        "network": name,
        "T": norms.shape[-1],
        "parameters": experiments.parameter_count(network),
        "best rate": RATES[best],
        "error": float(np.median(errors[:, -1])),
        "least": float(errors[:, -1].min()),
        "most": float(errors[:, -1].max()),
        "solved": f"{np.sum(errors.min(axis=1) < SOLVED)} of {len(errors)}",
        "updates to it": float(np.median(reached(errors))),
        "s_1 / s_T, start": float(np.median(ratios[:, 0])),
        "end": float(np.median(ratios[:, -1])),
    }


def reached(errors: np.ndarray) -> np.ndarray:
    """Returns updates to the first error below SOLVED (seeds,), infinite where none is; errors (seeds, checks)."""
    below = errors < SOLVED
    return np.where(below.any(axis=1), EVERY * below.argmax(axis=1), np.inf)


def draw(rows: list[dict], found: dict):
    """Draws a row of panels for each length: errors by update, and norms of s_t by t at the start and at the end."""
    with plt.rc_context(STYLE):
        count = len(LENGTHS)
        figure, axes = plt.subplots(count, 3, squeeze=False, figsize=(12.5, 3.3 * count), layout="constrained")
        for of_length, T in zip(axes, LENGTHS, strict=True):
            for name, color in COLORS.items():
                best = next(RATES.index(row["best rate"]) for row in rows if (row["network"], row["T"]) == (name, T))
                _, errors, norms = (values[best] for values in found[name, T])
                updates, steps = EVERY * np.arange(errors.shape[1]), np.arange(1, T + 1)
                panels = ((updates, errors), (steps, norms[:, 0]), (steps, norms[:, -1]))
                for axis, (x, each) in zip(of_length, panels, strict=True):
                    axis.plot(x, each.T, color=color, lw=0.7, alpha=0.5)
                    axis.plot(x, np.median(each, axis=0), color=color, lw=2)
            left, start, end = of_length
            left.axhline(MEAN, color="grey", lw=1, ls=":")
            left.axhline(SOLVED, color="grey", lw=1, ls="--")
            left.set(yscale="log", ylim=(1e-5, 3), ylabel=f"T = {T}\n\nmean square error, test")
            start.set(ylabel=r"norm of $s_t = \partial F / \partial n_t$")
            for axis in (start, end):
                axis.set(yscale="log", ylim=(LEAST, 30))
        for axis, title in zip(
            axes[0], ("learning", "sensitivities at the start", "sensitivities at the end"), strict=True
        ):
            axis.set_title(title)
        for axis, label in zip(axes[-1], ("updates", "t", "t"), strict=True):
            axis.set_xlabel(label)
        handles = [plt.Line2D([], [], color=color, lw=2, label=name) for name, color in COLORS.items()]
        handles.append(plt.Line2D([], [], color="grey", lw=1, ls=":", label="1/6: always the mean"))
        handles.append(plt.Line2D([], [], color="grey", lw=1, ls="--", label=f"{SOLVED}: solved"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def notes(rows: list[dict], found: dict, updates: int) -> str:
    """Says what the rows show for each length."""
    text = [
        f"error: of {TESTED} test sequences after {updates} updates of {BATCH} new sequences, median, least and most "
        f"of the seeds; always the mean has {MEAN:.4g}. solved: seeds that were below {SOLVED} at one of the "
        f"measurements, every {EVERY} updates; updates to it: their median, inf where half or more have not. "
        "s_1 / s_T: the norm at the first step over that at the last, median over the seeds."
    ]
    for T in LENGTHS:
        each = [row for row in rows if row["T"] == T]
        said = "; ".join(
            f"{row['network']} {row['error']:.3g} (solved by {row['solved']}), s_1 / s_T from "
            f"{row['s_1 / s_T, start']:.2g} to {row['end']:.2g}"
            for row in each
        )
        text.append(f"T = {T}: {said}.")
    T = LENGTHS[-1]
    listed = ", ".join(
        f"{row['network']} {row['s_1 / s_T, start'] ** (1 / (T - 1)):.3g} to {row['end'] ** (1 / (T - 1)):.3g}"
        for row in rows
        if row["T"] == T
    )
    text.append(f"T = {T}, the factor by which norms change at each step back, from the start to the end: {listed}.")
    lowest = {name: min(float(np.median(errors[:, -1])) for errors in found[name, T][1]) for name in NETWORKS}
    listed = ", ".join(f"{name} {error:.3g}" for name, error in lowest.items())
    text.append(f"T = {T}, the lowest median error at any of the rates {', '.join(map(str, RATES))}: {listed}.")
    return experiments.paragraphs(*text)


def main() -> None:
    options = experiments.arguments(__doc__, "results/adding_problem", seeds=3, updates=3000)
    if options.updates % EVERY:
        raise SystemExit(f"--updates: expected a multiple of {EVERY}, got {options.updates}")
    keys, found, rows = jax.random.split(jax.random.key(0), options.seeds), {}, []
    with progress("adding problem", len(NETWORKS) * len(LENGTHS)) as advance:
        for T in LENGTHS:
            test = sequences(jax.random.key(1), TESTED, T)
            for name in NETWORKS:
                advance(len(rows), f"{name}, T = {T}")
                built = network(name, T)
                run = jax.jit(partial(train, built, test, options.updates))
                each = [[jax.tree.map(np.asarray, run(jnp.asarray(rate), key)) for key in keys] for rate in RATES]
                found[name, T] = tuple(np.array([[result[i] for result in seeds] for seeds in each]) for i in range(3))
                rows.append(row(name, built, *found[name, T]))
    experiments.write(options.out, rows, draw(rows, found), notes(rows, found, options.updates))


if __name__ == "__main__":
    main()
