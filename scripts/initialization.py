#!/usr/bin/env python
"""What if all weights start at zero, or at one constant (CSE 475, 19.70.1)? Initial weights and symmetry, on digits.

    python scripts/initialization.py --seeds 8 --epochs 30 --out results/initialization

Hidden units that start alike get equal sensitivities and so equal gradients, and stay alike: a layer of 32 does the
work of one. After every epoch the script counts the distinct rows of (W1, b1), which are farther apart than a
thousandth of the longest, and the rank of the hidden outputs on the test examples. All networks of one activation,
whatever their initial weights, train in one program.
"""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress
from functional_nn.training import pure_fit

HIDDEN, TOLERANCE = 32, 1e-3
ACTIVATIONS = ("sigmoid", "tanh", "relu")
INITIALIZERS = ("zeros", "constant", "normal", "uniform", "lecun_normal", "xavier_normal", "he_normal")
COLORS = (BLACK, VERMILION, ORANGE, SKY_BLUE, GREEN, BLUE, PURPLE)


def distinct_units(params) -> jax.Array:
    """Counts the rows of (W1, b1) that are not within the tolerance of an earlier one."""
    layer = params["layer1"]
    rows = jnp.concatenate([layer["weights"]["input"], layer["bias"][:, None]], axis=1)
    apart = jnp.linalg.norm(rows[:, None] - rows[None], axis=-1) > TOLERANCE * jnp.linalg.norm(rows, axis=-1).max()
    return jnp.sum(jnp.all(apart | ~jnp.tri(len(rows), k=-1, dtype=bool), axis=1))


def histories(task, activation: str, seeds: int, epochs: int) -> dict[str, np.ndarray]:
    """Returns {quantity: (initializers, seeds, epochs + 1)}, from the start on, and then after each epoch."""
    sizes = (task.inputs.shape[1], HIDDEN, task.targets.shape[1])
    networks = [fnn.multilayer(sizes, (activation, task.output), initializer=name) for name in INITIALIZERS]
    network = networks[0]  # they differ in `init` only
    # Gradient descent has no memory: training epoch by epoch is the same as training all epochs at once.
    train = pure_fit(network, task.loss, fnn.optimizers.gd(0.1), epochs=1)

    def accuracy(params, inputs, targets):
        return jnp.mean(fnn.losses.largest(network.apply(params, inputs), targets))

    def measure(params):
        hidden = network.forward(params, task.test_inputs).activations["layer1"]
        rank = jnp.linalg.matrix_rank(hidden, rtol=TOLERANCE)
        training, test = accuracy(params, task.inputs, task.targets), accuracy(params, *task.test)
        return {"units": distinct_units(params), "rank": rank, "training": training, "test": test}

    def run(start, key):
        def epoch(params, key):
            params = train(key, task.inputs, task.targets, params=params).params
            return params, measure(params)

        after = jax.lax.scan(epoch, start, jax.random.split(key, epochs))[1]
        return jax.tree.map(lambda first, rest: jnp.append(first, rest), measure(start), after)

    init_keys, keys = jax.random.split(jax.random.key(0), (2, seeds))
    starts = [jax.vmap(network.init)(init_keys) for network in networks]
    starts = jax.tree.map(lambda *parameters: jnp.stack(parameters), *starts)
    found = jax.jit(jax.vmap(jax.vmap(run), in_axes=(0, None)))(starts, keys)  # the same batches for every initializer
    return {name: np.asarray(values) for name, values in found.items()}


def draw(found):
    """Draws distinct units above and test error below, against epochs; medians over seeds."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(ACTIVATIONS), figsize=(12, 6.4), sharex=True, sharey="row", layout="constrained"
        )
        for (activation, initializer), history in found.items():
            top, bottom = axes[:, ACTIVATIONS.index(activation)]
            place = INITIALIZERS.index(initializer)
            style = {"color": COLORS[place], "lw": 1.6, "label": initializer}
            if initializer == "constant":  # often equal to that of zeros
                style |= {"ls": ":", "lw": 3}
            top.plot(np.median(history["units"], axis=0), **style)
            bottom.plot(1 - np.median(history["test"], axis=0), **style)
            top.set(title=f"{activation} hidden units", yscale="log", ylim=(0.9, 1.3 * HIDDEN))
            top.set_yticks([1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32], minor=False)
            top.minorticks_off()
            bottom.set(xlabel="epoch", yscale="log")
        for axis, activation in zip(axes[0], ACTIVATIONS, strict=True):  # the lines coincide: name them
            ends = {name: int(np.median(found[activation, name]["units"][:, -1])) for name in INITIALIZERS}
            for units in set(ends.values()):
                names = textwrap.fill(", ".join(name for name in INITIALIZERS if ends[name] == units), 34)
                place, side = (-6, "top") if units > HIDDEN / 2 else (6, "bottom")
                axis.annotate(
                    names,
                    (0.5, units),
                    (0, place),
                    xycoords=("axes fraction", "data"),
                    va=side,
                    ha="center",
                    textcoords="offset points",
                    fontsize=9,
                )
        axes[0, 0].set_ylabel(f"distinct hidden units of {HIDDEN}")
        axes[1, 0].set_ylabel("test error rate")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def main() -> None:
    options = experiments.arguments(__doc__, "results/initialization", seeds=8, epochs=30)
    task, found = experiments.load("digits"), {}
    with progress("training", len(ACTIVATIONS)) as advance:
        for done, activation in enumerate(ACTIVATIONS):
            advance(done, activation)
            history = histories(task, activation, options.seeds, options.epochs)
            for place, initializer in enumerate(INITIALIZERS):
                found[activation, initializer] = {name: values[place] for name, values in history.items()}
    rows = []
    for (activation, initializer), history in found.items():
        last = {name: values[:, -1] for name, values in history.items()}
        rows.append(
            {
                "hidden": activation,
                "initializer": initializer,
                "units at start": int(np.median(history["units"][:, 0])),
                "units at end": int(np.median(last["units"])),
                "most units": int(history["units"].max()),
                "rank at end": int(np.median(last["rank"])),
                "training accuracy": float(last["training"].mean()),
                "test accuracy": float(last["test"].mean()),
                "lowest": float(last["test"].min()),
                "highest": float(last["test"].max()),
            }
        )
    alike = [row for row in rows if row["initializer"] in ("zeros", "constant")]
    drawn = [row for row in rows if row not in alike]
    chance = float(np.mean(task.test_targets, axis=0).max())
    stuck = [f"{row['hidden']} {row['initializer']}" for row in alike if row["highest"] <= chance + 1e-6]
    most, least = max(row["most units"] for row in alike), min(row["units at end"] for row in drawn)
    span = [
        f"{min(row['lowest'] for row in some):.3f} to {max(row['highest'] for row in some):.3f}"
        for some in (alike, drawn)
    ]
    notes = (
        f"Zero or constant weights: never more than {most} distinct hidden unit(s) of {HIDDEN}; "
        f"test accuracy {span[0]}; "
        f"no better than always the commonest class ({chance:.3f}): {', '.join(stuck) or 'none'}.\n"
        f"Random weights: at least {least} distinct at the end, test accuracy {span[1]}."
    )
    experiments.write(options.out, rows, draw(found), notes)


if __name__ == "__main__":
    main()
