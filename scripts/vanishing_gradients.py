#!/usr/bin/env python
"""Why gradients vanish: sensitivities ||s^m|| by layer in deep chains, and at an output that is sure and wrong; digits.

    python scripts/vanishing_gradients.py --seeds 8 --epochs 20 --out results/vanishing_gradients

Each step of the recursion s^m = F'(n^m) (W^(m+1))^T s^(m+1) (Hagan Eq. 3.47) multiplies by a slope and by weights, so
that s changes by about one factor a layer: below 1 it vanishes, above 1 it explodes. The second part is from blog 001
(Eq. 5, 6): sigmoid outputs with squared error multiply the error by a(1 - a), which is almost 0 where the network is
sure, even if it is wrong; softmax with cross-entropy passes the error a - t on unchanged. All is computed in 64 bits,
since squares of sensitivities underflow in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, ORANGE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress
from functional_nn.training import pure_fit

WIDTH, DEPTHS, EXAMPLES = 64, (4, 8, 16, 32), 256
ACTIVATIONS = ("sigmoid", "tanh", "relu", "elu")
INITIALIZERS = ("zeros", "constant", "normal", "xavier_normal", "he_normal")
PAIRS = {  # output layer and loss, one example's loss summed over its outputs
    "sigmoid, squared error": ("sigmoid", fnn.losses.half_sum_square_error("mean")),
    "sigmoid, cross-entropy": ("sigmoid", fnn.losses.binary_cross_entropy("mean")),
    "softmax, cross-entropy": ("softmax", fnn.losses.cross_entropy("mean")),
}
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
COLORS = (BLACK, VERMILION, ORANGE, BLUE, GREEN)


def sensitivity_norms(task, activation: str, depth: int, seeds: int) -> np.ndarray:
    """Returns ||s^m|| over the examples before training, first layer to output, (initializers, seeds, depth + 1).

    Where the last hidden layer's sensitivities are 0 to rounding (1e-12 of the output's), all hidden layers count as 0:
    the recursion would only carry noise further.
    """
    sizes = (task.inputs.shape[1], *(WIDTH,) * depth, task.targets.shape[1])
    chains = [fnn.multilayer(sizes, (activation,) * depth + (task.output,), initializer=name) for name in INITIALIZERS]
    x, t = task.inputs[:EXAMPLES], task.targets[:EXAMPLES]

    def norms(params):
        s = fnn.sensitivities(chains[0], task.loss, params, x, t)  # the chains differ in `init` only
        return jnp.stack([jnp.linalg.norm(s[layer.name]) for layer in chains[0].layers])

    keys = jax.random.split(jax.random.key(0), seeds)
    starts = jax.tree.map(lambda *parameters: jnp.concatenate(parameters), *(jax.vmap(c.init)(keys) for c in chains))
    found = np.array(jax.jit(lambda starts: jax.lax.map(norms, starts))(starts))
    found[found[:, -2] < 1e-12 * found[:, -1], :-1] = 0
    return found.reshape(len(chains), seeds, depth + 1)


def output_sensitivity(pair: str, n: np.ndarray) -> np.ndarray:
    """Returns ||s^M|| of single examples of class 2 with net inputs n and -n: the larger n, the surer of class 1."""
    activation, loss = PAIRS[pair]
    network = fnn.multilayer((2, 2), (activation,), bias="none")
    params = {"layer1": {"weights": {"input": jnp.eye(2)}}}
    s = fnn.sensitivities(network, loss, params, np.stack([n, -n], axis=1), np.tile([0.0, 1.0], (len(n), 1)))
    return np.linalg.norm(s["layer1"], axis=1) * len(n)  # the loss is a mean


def learning_curves(task, pair: str, deviation: float, seeds: int, epochs: int) -> tuple[float, np.ndarray]:
    """Returns the rate with the lowest mean training error, and the error rates there (seeds, epochs).

    deviation: of the output layer's initial weights; with a large one a network is sure before it has learned.
    """
    activation, loss = PAIRS[pair]
    initializer = ("xavier_normal", fnn.initializers.normal(deviation))
    sizes = (task.inputs.shape[1], 32, task.targets.shape[1])
    network = fnn.multilayer(sizes, ("tanh", activation), initializer=initializer)

    def error(rate, key):
        fit = pure_fit(network, loss, fnn.optimizers.gd(rate), epochs=epochs, correct=fnn.losses.largest)
        return 1 - fit(key, task.inputs, task.targets).history.training_accuracy

    each_seed = jax.vmap(error, in_axes=(None, 0))
    errors = jax.jit(jax.vmap(each_seed, in_axes=(0, None)))(
        jnp.array(RATES), jax.random.split(jax.random.key(1), seeds)
    )
    errors = jnp.nan_to_num(errors, nan=1.0)  # of diverged networks, nothing is right
    best = int(experiments.best_rate(errors[:, :, -1].mean(axis=1)[:, None]))
    return RATES[best], np.asarray(errors[best])


def draw(norms: dict, ratios: dict, curves: dict):
    """Draws norms by layer at the largest depth, first over last hidden layer by depth, and sure and wrong outputs."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplot_mosaic(
            [[f"{row}{k // 3}" for k in range(12)] for row in "ab"] + [[f"c{k // 4}" for k in range(12)]],
            figsize=(13, 9.6),
            layout="constrained",
        )
        for place, activation in enumerate(ACTIVATIONS):
            top, bottom = axes[f"a{place}"], axes[f"b{place}"]
            for color, initializer in zip(COLORS, INITIALIZERS, strict=True):
                label = initializer
                if not np.any(norms[activation, DEPTHS[-1], initializer][:, :-1]):
                    label = f"{initializer} (hidden: 0)"
                values = np.median(norms[activation, DEPTHS[-1], initializer], axis=0)
                top.plot(
                    range(1, len(values) + 1),
                    np.where(values > 0, values, np.nan),
                    color=color,
                    label=label,
                    marker="o" if np.sum(values > 0) == 1 else None,
                )
                shown = [ratios[activation, depth, initializer] for depth in DEPTHS]
                bottom.plot(DEPTHS, shown, ".-", color=color)
            top.set(title=activation, yscale="log", xlabel="layer m (the last is the output)")
            bottom.set(yscale="log", xlabel="hidden layers", xticks=DEPTHS)
        axes["a0"].legend(fontsize=8)  # for both rows
        axes["a0"].set_ylabel(r"$\|s^m\|$")
        axes["b0"].set_ylabel(r"$\|s^1\|$ / $\|s\|$ of the last hidden layer")
        n = np.linspace(0, 20, 81)
        for color, style, pair in zip((COLORS[1], COLORS[3], COLORS[4]), ("-", "-", "--"), PAIRS, strict=True):
            axes["c0"].plot(n, output_sensitivity(pair, n), style, color=color, label=pair)
            for panel, start in (("c1", "usual"), ("c2", "sure")):
                rate, errors = curves[pair, start]
                epochs = range(1, errors.shape[1] + 1)
                axes[panel].plot(epochs, np.median(errors, axis=0), style, color=color, label=f"{pair}, rate {rate:g}")
                axes[panel].fill_between(epochs, errors.min(axis=0), errors.max(axis=0), color=color, alpha=0.15, lw=0)
                axes[panel].set(yscale="log", xlabel="epoch", ylabel="training error rate", title=f"{start} start")
                axes[panel].legend(fontsize=8)
        axes["c0"].set(
            yscale="log",
            xlabel="net inputs n, -n of a wrong and the right class",
            ylabel=r"$\|s^M\|$",
            title="output: the surer, the wronger",
        )
        axes["c0"].legend(fontsize=8, loc="lower left")
    return figure


def main() -> None:
    experiments.start(x64=True)
    options = experiments.arguments(__doc__, "results/vanishing_gradients", seeds=8, epochs=20)
    task, norms, curves = experiments.load("digits"), {}, {}
    starts = {"usual": 0.2, "sure": 3.0}
    total = len(ACTIVATIONS) * len(DEPTHS) + len(PAIRS) * len(starts)
    with progress("vanishing gradients", total) as advance:
        for activation in ACTIVATIONS:
            for depth in DEPTHS:
                advance(len(norms) // len(INITIALIZERS), f"{activation}, {depth} layers")
                found = sensitivity_norms(task, activation, depth, options.seeds)
                norms |= {(activation, depth, name): found[k] for k, name in enumerate(INITIALIZERS)}
        for pair in PAIRS:
            for start, deviation in starts.items():
                advance(len(ACTIVATIONS) * len(DEPTHS) + len(curves), f"{pair}, {start} start")
                curves[pair, start] = learning_curves(task, pair, deviation, options.seeds, options.epochs)
    rows, ratios = [], {}
    for (activation, depth, initializer), values in norms.items():
        first, last = values[:, 0], values[:, -2]
        ratios[activation, depth, initializer] = ratio = float(np.median(first / last)) if last.all() else np.nan
        rows.append(
            {
                "activation": activation,
                "initializer": initializer,
                "hidden layers": depth,
                "first": float(np.median(first)),
                "last hidden": float(np.median(last)),
                "output": float(np.median(values[:, -1])),
                "first / last": ratio,
                "factor a layer": ratio ** (1 / (depth - 1)),
            }
        )
    outputs = [
        {"output and loss": pair, "start": start, "best rate": rate}
        | {f"error in epoch {k + 1}": float(np.median(errors[:, k])) for k in sorted({0, errors.shape[1] - 1})}
        | {f"||s|| at n = {n:g}": float(output_sensitivity(pair, np.array([n]))[0]) for n in (0.0, 10.0, 20.0)}
        for (pair, start), (rate, errors) in curves.items()
    ]
    deepest = [row for row in rows if row["hidden layers"] == DEPTHS[-1]]
    silent = sorted({f"{row['activation']} {row['initializer']}" for row in deepest if row["last hidden"] == 0})
    notes = [
        f"No sensitivity reaches any hidden layer: {', '.join(silent)}. (Weights that are equal for all softmax "
        "outputs add up a - t, which is 0.)"
    ]
    for activation in ACTIVATIONS:
        alive = [row for row in deepest if row["activation"] == activation and row["last hidden"] > 0]
        best = min(alive, key=lambda row: abs(np.log(row["first / last"])))
        factors = ", ".join(f"{row['initializer']} {row['factor a layer']:.3g}" for row in alive)
        notes.append(
            f"{activation}: factor a layer {factors}; {best['initializer']} keeps {best['first / last']:.2g} "
            f"over {DEPTHS[-1]} layers."
        )
    experiments.write(options.out, rows, draw(norms, ratios, curves), "\n".join(notes))
    ended = {run: float(np.median(errors[:, -1])) for run, (_, errors) in curves.items()}
    slower = "; ".join(f"{pair} {ended[pair, 'sure']:.2g} against {ended[pair, 'usual']:.2g}" for pair in PAIRS)
    note = f"Error rate of the last epoch from a sure start, against the usual one: {slower}."
    experiments.write(experiments.sibling(options.out, "outputs"), outputs, notes=note)


if __name__ == "__main__":
    main()
