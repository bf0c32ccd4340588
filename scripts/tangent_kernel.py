#!/usr/bin/env python
"""How far training moves a network's tangent kernel, by width, and what the kernel has learned; digits.

    python scripts/tangent_kernel.py --seeds 3 --epochs 4000 --out results/tangent_kernel

The tangent kernel k(x, x') = sum_i dJ_i(x) . dJ_i(x') (Jacot et al. 2018, arXiv 1806.07572) of 64-H-10 tanh networks
with linear outputs, before and after training. They learn 400 digits with half the squared error, to a stated training
loss, by gradient descent at half of 2 / lambda_max before training. Where the initial weights give every neuron a net
input of order 1 at any width (lecun_normal, variance 1 / fan-in), wide networks are predicted to keep their kernel
("lazy" training). xavier_normal, which also counts the fan-out, starts wide hidden layers with smaller weights.

change: ||K' - K|| / ||K||, Frobenius; size: ||K'|| / ||K||; turn: 1 - the cosine between K and K'. alignment: the
cosine between the kernel and the targets' T T^T, both centred (Cortes et al. 2012). rank: (sum of the eigenvalues)^2 /
sum of their squares, centred. accuracy: on the test part, of the network, and of ridge regression with each kernel,
which fits the training examples closer than the network does, as that stops at the stated loss.
"""

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import training
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

EXAMPLES, WIDTHS = 400, (16, 32, 64, 128, 256, 512, 1024)
STARTS = {"lecun_normal": BLUE, "xavier_normal": VERMILION}
LOSS, GOAL = fnn.losses.half_sum_square_error("mean"), 0.05  # the training loss at which training stops
RIDGE = 1e-4  # relative to the mean of the kernel's diagonal
SHARE, STEPS = 0.5, 20  # the rate, as a share of the largest stable one; Lanczos steps for that


def centred(K: np.ndarray) -> np.ndarray:
    """Returns the kernel of features less their mean over the examples."""
    return K - K.mean(0) - K.mean(1)[:, None] + K.mean()


def alignment(K: np.ndarray, t: np.ndarray) -> float:
    K, T = centred(K), centred(t @ t.T)
    return float(np.sum(K * T) / np.linalg.norm(K) / np.linalg.norm(T))


def spectrum(K: np.ndarray) -> np.ndarray:
    """Returns the eigenvalues of the centred kernel, the largest first."""
    return np.maximum(np.linalg.eigvalsh(centred(K))[::-1], 0)


def rank(K: np.ndarray) -> float:
    values = spectrum(K)
    return float(values.sum() ** 2 / np.sum(values**2))


def regression_accuracy(K: np.ndarray, K_test: np.ndarray, t: np.ndarray, t_test: np.ndarray) -> float:
    """Returns the test accuracy of ridge regression. K: training examples (Q, Q); K_test: test by training (Q', Q)."""
    mean = t.mean(0)
    solved = np.linalg.solve(K + RIDGE * np.trace(K) / len(K) * np.eye(len(K)), t - mean)
    return float(np.mean((K_test @ solved + mean).argmax(1) == t_test.argmax(1)))


def load():
    """Returns the digits as (training inputs, targets), (test inputs, targets), with standardized pixels.

    Pixels are centred since the mean digit alone would give K an eigenvalue that dwarfs the others, and a small rate.
    """
    task = experiments.load("digits")
    mean = task.inputs.mean(0)
    scale = np.std(task.inputs - mean)
    x, x_test = ((inputs - mean) / scale for inputs in (task.inputs, task.test_inputs))
    return (x[:EXAMPLES], task.targets[:EXAMPLES]), (x_test, task.test_targets)


def train(initializer: str, width: int, data, test, seeds: int, epochs: int) -> dict[str, np.ndarray]:
    """Trains. Returns by seed the kernels K, K' (2, Q, Q), those of test by training examples (2, Q', Q),
    and losses.
    """
    network = fnn.multilayer((64, width, 10), ("tanh", "linear"), initializer=initializer)

    def member(key, data, test):
        init_key, fit_key, lanczos_key = jax.random.split(key, 3)
        start = network.init(init_key)
        stable = fnn.curvature.stable_rate(network, LOSS, start, *data, key=lanczos_key, steps=STEPS)
        fit = training.pure_fit(
            network,
            LOSS,
            fnn.optimizers.gd(SHARE * stable),
            epochs=epochs,
            plan=training.batch(),
            stop=training.loss_below(GOAL),
        )
        outcome = fit(fit_key, *data, params=start)

        def kernel(inputs):
            def at(p):
                return fnn.quantities.tangent_kernel_trace(network, None, p, inputs, others=data[0])

            return jnp.stack([at(start), at(outcome.params)])

        loss = training.evaluate(network, LOSS, outcome.params, *data)[0]
        right = training.evaluate(network, LOSS, outcome.params, *test, correct=fnn.losses.largest)[1]
        return {
            "kernels": kernel(data[0]),
            "of test": kernel(test[0]),
            "accuracy": right,
            "epochs": outcome.epochs,
            "loss": loss,
        }

    keys = jax.random.split(jax.random.key(0), seeds)
    found = jax.jit(jax.vmap(member, in_axes=(0, None, None)))(keys, data, test)
    return jax.tree.map(lambda values: np.asarray(values, np.float64), found)  # the regression is badly conditioned


def measure(found: dict[str, np.ndarray], t, t_test) -> list[dict]:
    """Computes the quantities that the docstring names, one dict for each seed."""
    measured = []
    for i, (before, after) in enumerate(found["kernels"]):
        sizes = np.linalg.norm(before), np.linalg.norm(after)
        row = {
            "change": np.linalg.norm(after - before) / sizes[0],
            "size": sizes[1] / sizes[0],
            "turn": 1 - np.sum(before * after) / sizes[0] / sizes[1],
        }
        for when, K, K_test in zip(("before", "after"), (before, after), found["of test"][i], strict=True):
            row |= {
                f"alignment {when}": alignment(K, t),
                f"rank {when}": rank(K),
                f"accuracy, kernel {when}": regression_accuracy(K, K_test, t, t_test),
            }
        row |= {"accuracy, network": found["accuracy"][i], "epochs": found["epochs"][i], "loss": found["loss"][i]}
        measured.append({name: float(value) for name, value in row.items()})
    return measured


def draw(by_seed: dict, kernels: dict, labels: np.ndarray):
    """Draws two kernels before and after training, sorted by class; and the measurements against width."""
    shown = [(start, width) for start in STARTS for width in (WIDTHS[0], WIDTHS[-1])]
    order = np.argsort(labels, kind="stable")[::4]  # every fourth example
    edges = np.flatnonzero(np.diff(labels[order])) + 0.5
    middles = (np.r_[0, edges] + np.r_[edges, len(order)]) / 2
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(14, 8.2), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        axes = above.subplots(1, 4)
        for axis, (which, when) in zip(axes, [(w, k) for w in (shown[0], shown[1]) for k in (0, 1)], strict=True):
            K = centred(kernels[which][when])[np.ix_(order, order)]
            size = np.sqrt(np.diag(K))
            drawn = axis.imshow(K / size[:, None] / size, cmap="RdBu_r", vmin=-1, vmax=1)
            axis.set_xticks(middles, range(10))
            axis.set_yticks(middles, range(10))
            axis.grid(False)
            axis.set_title(f"{which[0]}, width {which[1]}, {('before', 'after')[when]}", fontsize=10)
        above.colorbar(drawn, ax=axes, label="centred kernel, as a cosine", shrink=0.8)
        change, aligned, accuracy, values = below.subplots(1, 4)
        for start, color in STARTS.items():
            panels = (
                (change, (("change", "-", start),)),
                (aligned, (("alignment before", ":", f"{start}, before"), ("alignment after", "-", f"{start}, after"))),
                (
                    accuracy,
                    (
                        ("accuracy, kernel before", ":", f"{start}, kernel before"),
                        ("accuracy, kernel after", "--", f"{start}, kernel after"),
                        ("accuracy, network", "-", f"{start}, network"),
                    ),
                ),
            )
            for axis, lines in panels:
                for column, line, label in lines:
                    values_by_width = np.array([[row[column] for row in by_seed[start, width]] for width in WIDTHS])
                    axis.plot(WIDTHS, values_by_width.mean(1), line, color=color, marker=".", label=label)
                    if line == "-":
                        axis.fill_between(
                            WIDTHS, values_by_width.min(1), values_by_width.max(1), color=color, alpha=0.15, lw=0
                        )
        for width, color in ((WIDTHS[0], GREEN), (WIDTHS[-1], BLUE)):
            for when, line in enumerate((":", "-")):
                found = spectrum(kernels[shown[0][0], width][when])
                label = f"width {width}, {('before', 'after')[when]}"
                values.plot(range(1, 101), (found / found.sum())[:100], line, color=color, label=label)
        change.set(yscale="log", title="relative change of the kernel")
        aligned.set(title="alignment with the targets")
        accuracy.set(title="test accuracy")
        for axis in (change, aligned, accuracy):
            axis.set(xscale="log", xlabel="width")
            axis.set_xticks(WIDTHS, WIDTHS)
            axis.set_xticks([], minor=True)
        values.set(
            xscale="log", yscale="log", xlabel="number", title=f"spectrum, {shown[0][0]}", ylabel="eigenvalue / sum"
        )
        for axis in (change, aligned, accuracy, values):
            axis.legend(fontsize=7.5, handlelength=3)
    return figure


def notes(rows: list[dict], by_seed: dict) -> str:
    lines = [
        f"means over {len(next(iter(by_seed.values())))} seeds; slope: of log change by log width, down to the least"
    ]
    for start in STARTS:
        own = [row for row in rows if row["start"] == start]
        changes = np.array([row["change"] for row in own])
        down = int(changes.argmin()) + 1
        slope = np.polyfit(np.log(WIDTHS[:down]), np.log(changes[:down]), 1)[0] if down > 1 else np.nan
        least = own[down - 1]
        lines.append(
            f"{start}: change {changes[0]:.3g} at width {WIDTHS[0]}, {changes[-1]:.3g} at {WIDTHS[-1]}, slope "
            f"{slope:+.2f}; least {least['change']:.3g}, at {least['width']}. Without its size, 1 - cosine: "
            f"{own[0]['turn']:.2g} and {own[-1]['turn']:.2g}."
        )
        for row in (own[0], own[-1]):
            lines.append(
                f"  width {row['width']}: alignment {row['alignment before']:.3f} -> {row['alignment after']:.3f}, "
                f"rank {row['rank before']:.1f} -> {row['rank after']:.1f}; test accuracy: kernel "
                f"{row['accuracy, kernel before']:.3f} -> {row['accuracy, kernel after']:.3f}, network "
                f"{row['accuracy, network']:.3f}"
            )
    pairs = [row for of in by_seed.values() for row in of]
    for first, second in (
        ("accuracy, kernel after", "accuracy, kernel before"),
        ("accuracy, kernel after", "accuracy, network"),
    ):
        gains = np.array([row[first] - row[second] for row in pairs])
        lines.append(
            f"{first} less {second}: {gains.mean():+.4f} on average, higher in {np.sum(gains > 0)} of "
            f"{len(gains)}, lower in {np.sum(gains < 0)} runs."
        )
    late = sum(row["loss"] > 1.01 * GOAL for row in pairs)
    lines.append(f"{late} of {len(pairs)} runs did not reach the loss {GOAL}." if late else f"All reached {GOAL}.")
    return "\n".join(lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/tangent_kernel", seeds=3, epochs=4000)
    data, test = load()
    by_seed, kernels = {}, {}
    with progress("tangent kernels", len(STARTS) * len(WIDTHS)) as advance:
        for start in STARTS:
            for width in WIDTHS:
                advance(len(by_seed), f"{start}, width {width}")
                found = train(start, width, data, test, options.seeds, options.epochs)
                by_seed[start, width] = measure(found, data[1], test[1])
                kernels[start, width] = found["kernels"][0]
    rows = [
        {"start": start, "width": width} | {name: float(np.mean([row[name] for row in of])) for name in of[0]}
        for (start, width), of in by_seed.items()
    ]
    experiments.write(options.out, rows, draw(by_seed, kernels, data[1].argmax(1)), notes(rows, by_seed))


if __name__ == "__main__":
    main()
