#!/usr/bin/env python
"""The cliff in the error surface of one recurrent neuron, and gradient descent there with and without clipping.

    python scripts/cliffs.py --steps 400 --starts 15 --out results/cliffs

Pascanu, Mikolov and Bengio 2013 (arXiv 1211.5063, Sec. 2.3 and 3.2, Fig. 6): x_t = w sigmoid(x_(t-1)) + b, x_0 = 0.5,
with no other input; the error is (sigmoid(x_50) - 0.7)^2. It is small on one side of a line and large on the other,
since over 50 steps the smallest difference brings the neuron to another fixed point. At that line gradients explode.
One step of gradient descent that meets the wall leads far away; where the gradient's norm is clipped, it does not.

The library has that neuron as `recurrent("sigmoid")`, whose state is h_t = sigmoid(x_t): U is w, the bias is b, all
inputs are 0, and the initial state is fixed at sigmoid(0.5). Gradients are computed by backpropagation through time,
and compared with jax.grad's at every step of the descent that is drawn. Methods and clipping are the library's too.
Once a descent has met the wall it depends on the last digits, so many starts are counted.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, VERMILION
from functional_nn.lab.plots import STYLE, plt

T, TARGET, LOSS = 50, 0.7, "sum_square_error"
NETWORK = fnn.graph(
    inputs={"nothing": (T, 1)},
    layers=[
        fnn.Layer("neuron", 1, 'recurrent("sigmoid")', ("nothing",)),
        fnn.Layer("last", 1, "linear", (("neuron", fnn.connections.take(-1)),), bias="none"),
    ],
)
RATES, LARGEST = (0.1, 0.3, 1.0), (None, 1.0, 0.3, 0.1)  # norms that gradients are clipped to; None: not clipped
DRAWN, RATE, CLIPPED, STEPS = (5.0, -2.0), 1.0, 0.3, 100
WHOLE, NEAR = ((3.0, 7.5), (-4.0, 2.8)), ((3.3, 5.2), (-2.6, -1.5))  # the ranges of w and b in the picture
STARTS = ((4.0, 7.0), (-4.0, -1.5))  # the ranges of w and b of the starts that are counted
SOLVED, THROWN = 0.001, 1.5  # the error; the length of a step
COLORS = {None: VERMILION, CLIPPED: BLUE}


def data() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((1, T, 1)), np.full((1, 1), TARGET)


def as_params(p: jax.Array) -> dict:
    """Returns the network's parameters for p = (w, b)."""
    w, b = p
    initial = jax.nn.sigmoid(jnp.full(1, 0.5))
    learned = {"recurrent": w[None, None], "initial": initial}
    neuron = {"weights": {"nothing": jnp.zeros((1, 1))}, "bias": b[None], "learned": learned}
    return {"neuron": neuron, "last": {"weights": {}}}


def value_and_grad(p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns F and dF/d(w, b) by hand; all other parameters are fixed."""
    value, gradient = fnn.value_and_grad(NETWORK, LOSS)(as_params(p), *data())
    return value, jnp.stack([gradient["neuron"]["learned"]["recurrent"][0, 0], gradient["neuron"]["bias"][0]])


def automatic(p: jax.Array) -> jax.Array:
    """Returns dF/d(w, b) by jax.grad."""
    return jax.grad(lambda p: fnn.objective(NETWORK, LOSS)(as_params(p), *data()))(p)


@partial(jax.jit, static_argnames=("largest", "steps"))
def descend(rate: jax.Array, largest: float | None, steps: int, starts: jax.Array):
    """Descends from starts (N, 2). Returns points (N, steps + 1, 2), and F and dF/d(w, b), not clipped, at each."""
    method = fnn.optimizers.gd(rate)
    if largest is not None:
        method = fnn.optimizers.clip_by_global_norm(method, largest)

    def step(state, _):
        value, gradient = value_and_grad(state.params)
        return method.update(state, gradient), (state.params, value, gradient)

    return jax.vmap(lambda start: jax.lax.scan(step, method.init(start), length=steps + 1)[1])(starts)


def lattice(region, counts: tuple[int, int]) -> np.ndarray:
    """Returns points (counts of w, counts of b, 2) on a region."""
    axes = [np.linspace(*ends, count) for ends, count in zip(region, counts, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def differences(points: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Returns ||by hand - automatic|| / ||automatic|| at each point."""
    other = np.asarray(jax.jit(jax.vmap(automatic))(points))
    return np.linalg.norm(gradients - other, axis=-1) / np.linalg.norm(other, axis=-1)


def row(rate: float, largest: float | None, points: np.ndarray, F: np.ndarray, gradients: np.ndarray) -> dict:
    """Describes the first start's descent, and counts how many of the others reach the valley or are thrown off."""
    norms = np.linalg.norm(gradients, axis=-1)
    longest = np.linalg.norm(np.diff(points, axis=1), axis=-1).max(axis=1)
    return {
        "rate": rate,
        "clipped to": "no" if largest is None else largest,
        "F": F[0, -1],
        "w": points[0, -1, 0],
        "b": points[0, -1, 1],
        "largest gradient": norms[0].max(),
        "at step": int(norms[0].argmax()),
        "longest step": longest[0],
        "from jax.grad": differences(points[0], gradients[0]).max(),
        f"% below {SOLVED}": 100 * np.mean(F[1:, -1] < SOLVED),
        "median F": np.median(F[1:, -1]),
        "% thrown": 100 * np.mean(longest[1:] > THROWN),
        "largest gradient of all": norms[1:].max(),
    }


def draw(drawn: dict):
    """Draws the surface, the norm of its gradient near the cliff, and both descents; below, norms and
    errors by step.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
        for axis, region, norm in zip(axes[0], (WHOLE, NEAR), (False, True), strict=True):
            at = lattice(region, (301, 301))
            F, gradients = jax.jit(jax.vmap(jax.vmap(value_and_grad)))(at)
            values = np.log10(np.linalg.norm(gradients, axis=-1)) if norm else np.asarray(F)
            levels = np.linspace(-3, 3, 25) if norm else np.linspace(0, 0.5, 26)
            filled = axis.contourf(
                *np.moveaxis(at, -1, 0), values, levels, cmap="Greys", extend="both" if norm else "neither"
            )
            figure.colorbar(filled, ax=axis, label=r"$\log_{10}\|\partial F/\partial(w, b)\|$" if norm else "F")
            for largest, color in COLORS.items():
                points = drawn[largest][0][: STEPS + 1]
                axis.plot(*points.T, color=color, marker=".", ms=5, lw=1)
            axis.plot(*DRAWN, color=COLORS[None], marker="*", ms=13, zorder=5)
            axis.set(xlim=region[0], ylim=region[1], xlabel="w", ylabel="b")
            axis.grid(False)
        axes[0, 0].set_title("the error, and two descents from the star")
        axes[0, 1].set_title("near the cliff: the norm of the gradient")
        for largest, color in COLORS.items():
            _, F, gradients = (each[: STEPS + 1] for each in drawn[largest])
            label = "not clipped" if largest is None else f"clipped to {largest}"
            axes[1, 0].plot(np.linalg.norm(gradients, axis=-1), color=color, marker=".", lw=1, label=label)
            axes[1, 1].plot(F, color=color, marker=".", lw=1, label=label)
        axes[1, 0].axhline(CLIPPED, color="grey", ls="--", lw=1, label="clipped above")
        axes[1, 0].set(title="norm of the gradient, before it is clipped")
        axes[1, 1].set(title="error F")
        for axis in axes[1]:
            axis.set(yscale="log", xlabel="step")
            axis.legend(title=f"rate {RATE:g}")
    return figure


def notes(rows: list[dict], steps: int, starts: int) -> str:
    (w, b), ((w0, w1), (b0, b1)) = DRAWN, STARTS
    worst = max(row["from jax.grad"] for row in rows)
    text = [
        f"F, w, b: after {steps} steps from w = {w:g}, b = {b:g}; largest gradient: of its norms on the way, before "
        "they are clipped; from jax.grad: the largest relative difference on the way, "
        f"{worst:.1g} in all. % below {SOLVED} and the columns after it: of {starts**2} starts, w from {w0:g} to "
        f"{w1:g} and b from {b0:g} to {b1:g}; thrown: those that made a step longer than {THROWN:g}."
    ]
    for rate in RATES:
        own = [row for row in rows if row["rate"] == rate]
        said = "; ".join(
            f"{'unclipped' if row['clipped to'] == 'no' else 'clipped to ' + str(row['clipped to'])} "
            f"{row[f'% below {SOLVED}']:.0f} % ({row['% thrown']:.0f} % thrown)"
            for row in own
        )
        text.append(f"Rate {rate:g}, starts that end below {SOLVED}: {said}.")
    return experiments.paragraphs(*text)


def main() -> None:
    experiments.start(x64=True)
    options = experiments.arguments(__doc__, "results/cliffs", steps=400, starts=15)
    starts = np.concatenate([[DRAWN], lattice(STARTS, (options.starts,) * 2).reshape(-1, 2)])
    found = {
        (rate, largest): tuple(map(np.asarray, descend(jnp.asarray(rate), largest, options.steps, starts)))
        for rate in RATES
        for largest in LARGEST
    }
    rows = [row(*setting, *descents) for setting, descents in found.items()]
    drawn = {largest: tuple(each[0] for each in found[RATE, largest]) for largest in COLORS}
    experiments.write(options.out, rows, draw(drawn), notes(rows, options.steps, options.starts))


if __name__ == "__main__":
    main()
