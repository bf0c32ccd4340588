#!/usr/bin/env python
"""One threshold neuron and the perceptron rule: which logic functions it can be, with which weights, and how fast it
learns.

    python scripts/perceptrons.py --out results/perceptrons

CSE 475, 17.57 and 17.61, asks: which weights give AND and OR? Are they the only ones? Is it possible without a bias?
Which give NAND and NOR? And in -1/+1 logic? All weights that answer rightly are a cone, whose rays are computed here.
The rule is run from zero weights in many random orders, and its mistakes are compared with Novikoff's bound (R /
margin)^2. XOR has no weights at all: under the rule, the weights come back to earlier ones.
"""

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import training
from functional_nn.gradients.backprop import Along
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.separability import separability

TABLE = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
FUNCTIONS = {"AND": [0, 0, 0, 1], "OR": [0, 1, 1, 1], "NAND": [1, 1, 1, 0], "NOR": [1, 0, 0, 0], "XOR": [0, 1, 1, 0]}
LOGICS = {"0/1": ("hardlim", 0.0), "-1/+1": ("hardlims", -1.0)}  # the neuron, and the number for false
COLORS = dict(zip(FUNCTIONS, (BLUE, VERMILION, GREEN, PURPLE, "#555555"), strict=True))
DIRECTIONS = 200_000  # random ones; the share that answers rightly is counted
EPOCHS = 300


def examples(name: str, false: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs (4, 2) and targets (4, 1)."""
    return np.where(TABLE, 1.0, false), np.where(np.array(FUNCTIONS[name])[:, None], 1.0, false)


def train(name: str, logic: str, bias: bool, orders: int) -> training.Population:
    """Trains by the rule from zero weights at rate 1, one example an update, in so many random orders."""
    activation, false = LOGICS[logic]
    network = fnn.multilayer((2, 1), (activation,), bias="per_neuron" if bias else "none", initializer="zeros")
    stop = (training.loss_below(0), training.cycle(), training.unchanged())
    return training.fit_population(
        network,
        "sum_square_error",
        "gd(1)",
        {"seed": range(orders)},
        examples(name, false),
        key=jax.random.key(0),
        epochs=EPOCHS,
        plan=training.stochastic(),
        shuffle="independent",
        gradient="perceptron",
        stop=stop,
        chunk=EPOCHS,
    )


def row_of(name: str, logic: str, bias: bool, orders: int) -> dict:
    _, false = LOGICS[logic]
    known = separability(*examples(name, false), bias)
    directions = np.random.default_rng(0).normal(size=(DIRECTIONS, 2 + bias))
    population = train(name, logic, bias, orders)
    mistakes = np.nansum(population.history.training_loss, axis=0) / (1 if false == 0 else 4)
    ended = {
        "loss_below": "all right",
        "cycle": "came back",
        "unchanged": "unchanged by an epoch, and wrong",
        "completed": f"went on for {EPOCHS} epochs",
    }
    counts = {text: int((population.status == status).sum()) for status, text in ended.items()}
    rays = " ".join("(" + " ".join(f"{x:g}" for x in ray) + ")" for ray in known.cone().rays)
    return {
        "logic": logic,
        "function": name,
        "bias": "yes" if bias else "no",
        "solutions": "yes" if known.separable else "none",
        "rays (w1 w2 b)": rays,
        "share of directions": float(known.answers(directions).mean()),
        "margin": known.margin,
        "R": known.radius,
        "(R/margin)^2": known.bound,
        "median mistakes": float(np.median(mistakes)),
        "most mistakes": int(mistakes.max()),
        "ended": ", ".join(f"{count} {text}" for text, count in counts.items() if count),
    }


def draw(rows: list[dict]) -> plt.Figure:
    """Draws all weights of each function for a bias of -1 or +1; mistakes and their bound; and XOR's weights."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(16, 4.2), layout="constrained")
        side = np.linspace(-3, 3, 600)  # no point is on a boundary, which belongs to one side
        plane = np.stack(np.meshgrid(side, side), axis=-1)
        for axis, (logic, (_, false)) in zip(axes, LOGICS.items(), strict=False):
            regions: dict[bytes, list[str]] = {}  # in -1/+1 logic two functions share one, with opposite biases
            for name in ("AND", "OR", "NAND", "NOR"):
                known = separability(*examples(name, false))
                for b in (-1.0, 1.0):
                    right = known.answers(np.concatenate([plane, np.full((*plane.shape[:2], 1), b)], axis=-1))
                    if right.any():
                        names = regions.setdefault(right.tobytes(), [])
                        names.append(f"{name}\nb = {b:+.0f}")
                        if len(names) == 1:
                            axis.contourf(side, side, right, levels=[0.5, 1.5], colors=[COLORS[name]], alpha=0.35)
            for right, names in regions.items():
                inside = plane[np.frombuffer(right, bool).reshape(plane.shape[:2])]
                at = inside[np.abs(inside).max(axis=-1) < 2.5].mean(axis=0)
                axis.annotate("\n".join(names), at, ha="center", va="center", fontsize=7)
            axis.set(xlabel="$w_1$", ylabel="$w_2$", aspect="equal", title=f"weights that answer rightly, {logic}")
        bounded = [row for row in rows if np.isfinite(row["(R/margin)^2"])]
        place = np.arange(len(bounded))
        axes[2].bar(place, [row["(R/margin)^2"] for row in bounded], color="0.85", label="(R / margin)$^2$")
        axes[2].bar(place, [row["most mistakes"] for row in bounded], color=VERMILION, width=0.5, label="most")
        axes[2].plot(place, [row["median mistakes"] for row in bounded], "k_", ms=14, label="median")
        axes[2].set_xticks(place, [f"{row['function']}\n{row['logic']}" for row in bounded], fontsize=7)
        axes[2].set(ylabel="mistakes", title="mistakes before all is right, and their bound")
        axes[2].legend()
        for name in ("AND", "XOR"):
            axes[3].step(*path(name), "-", color=COLORS[name], where="post", label=name)
        axes[3].set(xlabel="example, one after the other", ylabel="$|(w_1, w_2, b)|$", title="0/1 logic, a fixed order")
        axes[3].legend()
    return figure


def path(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the norm of the weights, example by example in a fixed order."""
    network, (p, t) = fnn.multilayer((2, 1), ("hardlim",), initializer="zeros"), examples(name, 0.0)
    step = training.train_step(network, "sum_square_error", fnn.optimizers.gd(1), Along(fnn.rules.get("perceptron")))

    def update(state, q):
        state, _ = step(state, training.Batch({"input": p[q][None]}, t[q][None]))
        return state, jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(state.params)))

    p, t = jnp.asarray(p), jnp.asarray(t)
    start = fnn.optimizers.gd(1).init(network.init(jax.random.key(0)))
    norms = jax.lax.scan(update, start, jnp.arange(60) % 4)[1]
    return np.arange(61), np.concatenate([[0], norms])


def main() -> None:
    experiments.start(x64=True)
    options = experiments.arguments(__doc__, "results/perceptrons", orders=64)
    rows = [
        row_of(name, logic, bias, options.orders) for bias in (True, False) for logic in LOGICS for name in FUNCTIONS
    ]
    experiments.write(options.out, rows, draw(rows))


if __name__ == "__main__":
    main()
