#!/usr/bin/env python
"""Batch norm backward step by step, by hand, and what each normalization does to the sharpness and the stable rate.

    python scripts/normalisation.py --seeds 2 --measurements 10 --out results/normalisation

The first part is the classic exercise: the computation graph of Ioffe and Szegedy 2015 (arXiv 1502.03167, Alg. 1) on
four numbers. Every derivative is computed by hand in plain NumPy and compared with that of jax.grad, down to the one
formula that they add up to (functional_nn/networks/activations/normalization.py); then the same for layer norm, whose
graph is the same over other numbers.

In the second part a small residual network learns digits by full-batch gradient descent, at half the stable rate 2 /
lambda_max (Hagan P3.3), which is measured every 20 updates: with each normalization, and with none. At the end that
rate is tested at several multiples: does gradient descent shrink a small displacement along the eigenvector, as 1 -
rate lambda_max predicts, and does the loss fall?

Layer norm normalizes each position by itself. Where a picture is blank all its channels are 0, and so is their
deviation; it is then replaced by sqrt(epsilon), so that a shift of the layer before is magnified by 1 / sqrt(epsilon).
The table has the share of the eigenvector that lies in shifts.
"""

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

EPSILON = 1e-5
NUMBERS = {  # net inputs and dF/da of one channel in four examples, or of four channels in one
    "n": np.array([1.0, 2.0, 4.0, 9.0]),
    "g": np.array([0.5, -1.0, 0.25, 2.0]),
}
LEARNED = {  # norm: (gain, shift), of one channel or of four
    "batch_norm": (np.array([1.5]), np.array([-0.5])),
    "layer_norm": (np.array([1.5, 0.5, 2.0, -1.0]), np.array([-0.5, 0.0, 1.0, 0.25])),
}
STEPS = {  # from the output back: the step, and the derivative with respect to it
    "scaled": ("a = gain x + shift", "g"),
    "shift": ("", "sum of g"),
    "gain": ("", "sum of g x"),
    "normalized": ("x = c i", "d_x = g gain"),
    "inverse": ("i = 1 / r", "d_i = sum of d_x c"),
    "root": ("r = sqrt(v + epsilon)", "d_r = -d_i / r^2"),
    "variance": ("v = mean of q", "d_v = d_r / (2 r)"),
    "square": ("q = c^2", "d_q = d_v / M"),
    "centred": ("c = n - m", "d_c = d_x i + 2 c d_q"),
    "mean": ("m = mean of n", "d_m = -sum of d_c"),
    "net inputs": ("n", "s = d_c + d_m / M"),
}
ONE_LINE = "s = (h - <h> - x <h x>) / sigma, h = g gain"

NORMS = {
    "none": BLACK,
    "rms_norm": PURPLE,
    "layer_norm": GREEN,
    "group_norm(4)": BLUE,
    "batch_norm": VERMILION,
}
EXAMPLES, EVERY, PRODUCTS = 256, 20, 20  # EVERY: updates between measurements; PRODUCTS: Lanczos steps of one
FACTORS, UPDATES, FOLLOWED, DISPLACEMENT = (0.5, 0.9, 1.1, 1.5), 60, 5, 1e-3  # of the tests of the stable rate


# The exercise ---------------------------------------------------------------------------------------------------------


def by_hand(n, gain, shift, g, axis: int) -> tuple[dict, dict]:
    """Returns the value of each step of the graph, and dF/d of it. axis: that of the numbers of one set."""
    M = n.shape[axis]
    m = np.sum(n, axis, keepdims=True) / M
    c = n - m
    q = c**2
    v = np.sum(q, axis, keepdims=True) / M
    r = np.sqrt(v + EPSILON)
    i = 1 / r
    x = c * i
    a = gain * x + shift
    d_shift, d_gain = np.sum(g, axis=0), np.sum(g * x, axis=0)  # over the examples
    d_x = g * gain
    d_i = np.sum(d_x * c, axis, keepdims=True)
    d_r = -d_i / r**2
    d_v = d_r / (2 * r)
    d_q = np.broadcast_to(d_v / M, q.shape)
    d_c = d_x * i + 2 * c * d_q  # c is read twice: its derivatives add up
    d_m = -np.sum(d_c, axis, keepdims=True)
    s = d_c + d_m / M
    values = (a, shift, gain, x, i, r, v, q, c, m, n)
    return dict(zip(STEPS, values, strict=True)), dict(
        zip(STEPS, (g, d_shift, d_gain, d_x, d_i, d_r, d_v, d_q, d_c, d_m, s), strict=True)
    )


def one_line(n, gain, g, axis: int) -> np.ndarray:
    """Returns the sensitivities in one formula, to which the steps add up."""

    def mean(x):
        return np.mean(x, axis, keepdims=True)

    sigma = np.sqrt(np.var(n, axis, keepdims=True) + EPSILON)
    x, h = (n - mean(n)) / sigma, g * gain
    return (h - mean(h) - x * mean(h * x)) / sigma


def by_autodiff(values: dict, g, axis: int) -> dict:
    """Returns dF/d of each step by jax.grad, by a zero that is added to its value."""

    def performance(zeros):
        n = values["net inputs"] + zeros["net inputs"]
        m = jnp.mean(n, axis, keepdims=True) + zeros["mean"]
        c = n - m + zeros["centred"]
        q = c**2 + zeros["square"]
        v = jnp.mean(q, axis, keepdims=True) + zeros["variance"]
        r = jnp.sqrt(v + EPSILON) + zeros["root"]
        i = 1 / r + zeros["inverse"]
        x = c * i + zeros["normalized"]
        gain, shift = (values[name] + zeros[name] for name in ("gain", "shift"))
        return jnp.sum(g * (gain[None, :] * x + shift[None, :] + zeros["scaled"]))

    return jax.grad(performance)(jax.tree.map(jnp.zeros_like, values))


def exercise(norm: str) -> list[dict]:
    """Returns the graph of `norm` from the output back, a row for each number; then the formula, and the library."""
    gain, shift = LEARNED[norm]
    shape, axis = ((-1, 1), 0) if norm == "batch_norm" else ((1, -1), 1)
    n, g = (NUMBERS[name].reshape(shape) for name in ("n", "g"))
    values, found = by_hand(n, gain, shift, g, axis)
    with jax.enable_x64(True):
        automatic = jax.tree.map(np.asarray, by_autodiff(jax.tree.map(jnp.asarray, values), jnp.asarray(g), axis))
        row, theta = fnn.activations.get(norm), {"gain": jnp.asarray(gain), "shift": jnp.asarray(shift)}
        a, kept = row.forward(jnp.asarray(n), theta)
        s, learned = row.pullback(jnp.asarray(g), jnp.asarray(n), a, kept, theta)
        ours = {"net inputs": np.asarray(s)} | {k: np.asarray(f.left).sum(axis=0) for k, f in learned.items()}
    lines = [(*STEPS[step], step, values[step], found[step], automatic[step]) for step in STEPS]
    direct = one_line(n, gain, g, axis)
    lines.append(("in one line", ONE_LINE, "net inputs", n, direct, automatic["net inputs"]))
    lines += [("the library's row", "", step, values[step], ours[step], automatic[step]) for step in ours]
    return [
        {
            "norm": norm,
            "step": step,
            "is": forward,
            "dF/d of it": backward,
            "number": k + 1,
            "value": value,
            "by hand": hand,
            "jax.grad": grad,
            "difference": abs(hand - grad),
        }
        for forward, backward, step, *three in lines
        for k, (value, hand, grad) in enumerate(zip(*(np.ravel(each).tolist() for each in three), strict=True))
    ]


# Sharpness ------------------------------------------------------------------------------------------------------------


def network(norm: str) -> fnn.Network:
    """Three convolutions, two of them in a residual block; silu has the second derivative that relu lacks."""
    return fnn.presets.get(f"residual(depth=1, width=8, norm={norm}, stages=1, activation=silu)")((8, 8, 1), 10)


def in_shifts(vector) -> jax.Array:
    """Returns the part of ||x||^2 = 1 that is in the shifts of normalization."""
    shifts = (layer["learned"]["shift"] for layer in vector.values() if "shift" in layer.get("learned", {}))
    return sum((jnp.vdot(shift, shift) for shift in shifts), start=jnp.zeros(()))


def follow(norm: str, task, seeds: int, measurements: int) -> dict[str, np.ndarray]:
    """Trains, and returns arrays with the seeds as their first axis.

    lambda_max and its residual (seeds, measurements + 1); the share of the eigenvector in shifts (seeds, measurements);
    losses before each update (seeds, updates); and at the end the results of the tests (seeds, factors, ...).
    """
    trained = network(norm)
    x, t = jnp.asarray(task.inputs[:EXAMPLES].reshape(-1, 8, 8, 1)), jnp.asarray(task.targets[:EXAMPLES])
    value_and_gradient = fnn.value_and_grad(trained, task.loss)

    def sharpest(params):
        return fnn.curvature.extreme_eigenvalues(
            trained, task.loss, params, x, t, key=jax.random.key(1), steps=PRODUCTS, block=None
        )

    def descend(params, rate, updates):
        optimizer = fnn.optimizers.gd(rate)

        def update(state, _):
            value, gradients = value_and_gradient(state.params, x, t)
            return optimizer.update(state, gradients), value

        state, losses = jax.lax.scan(update, optimizer.init(params), length=updates)
        return state.params, losses

    def stage(params, _):
        found = sharpest(params)
        params, losses = descend(params, 1 / found.largest, EVERY)  # half of 2 / lambda_max
        return params, (found.largest, found.residuals[1], in_shifts(found.largest_vector), losses)

    def tests(params, found, factor):
        rate, vector = factor * 2 / found.largest, found.largest_vector
        displaced = jax.tree.map(lambda p, e: p + DISPLACEMENT * e, params, vector)
        ends = [descend(start, rate, FOLLOWED)[0] for start in (params, displaced)]
        along = sum(jnp.vdot(e, q - p) for p, q, e in zip(*map(jax.tree.leaves, (*ends, vector)), strict=True))
        after, losses = descend(params, rate, UPDATES)
        return jnp.abs(along / DISPLACEMENT) ** (1 / FOLLOWED), losses, sharpest(after).largest / found.largest

    def run(start):
        params, (largest, residual, shifts, losses) = jax.lax.scan(stage, start, length=measurements)
        found = sharpest(params)
        growth, tested, sharper = jax.lax.map(lambda factor: tests(params, found, factor), jnp.array(FACTORS))
        return {
            "largest": jnp.append(largest, found.largest),
            "residual": jnp.append(residual, found.residuals[1]),
            "shifts": shifts,
            "loss": losses.ravel(),
            "growth": growth,
            "tested": tested,
            "sharper": sharper,
        }

    starts = jax.vmap(trained.init)(jax.random.split(jax.random.key(0), seeds))
    return jax.tree.map(np.asarray, jax.jit(lambda starts: jax.lax.map(run, starts))(starts))


def rows_of(norm: str, found: dict[str, np.ndarray]) -> list[dict]:
    rows = []
    for seed, (largest, losses) in enumerate(zip(found["largest"], found["loss"], strict=True)):
        row = {
            "norm": norm,
            "seed": seed,
            "lambda_max before": largest[0],
            "lowest": largest.min(),
            "lambda_max after": largest[-1],
            "residual / lambda_max": (found["residual"][seed] / np.abs(largest)).max(),
            "in shifts before": found["shifts"][seed, 0],
            "stable rate before": 2 / largest[0],
            "stable rate after": 2 / largest[-1],
            "loss before": losses[0],
            "highest in training": losses.max(),
            "loss after": found["tested"][seed, 0, 0],
        }
        for place, factor in enumerate(FACTORS):
            tested = np.nan_to_num(found["tested"][seed, place], nan=np.inf)
            row |= {
                f"growth at {factor:g}": found["growth"][seed, place],
                f"rises at {factor:g}": np.mean(~(tested[1:] <= tested[:-1])),
                f"highest at {factor:g}": tested.max() / tested[0],
                f"last at {factor:g}": tested[-1] / tested[0],
                f"lambda_max at {factor:g}": found["sharper"][seed, place],
            }
        rows.append(row)
    return rows


def draw(runs: dict):
    """Draws lambda_max and the loss in training, and growth of a displacement and loss at multiples of the
    stable rate.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(14.5, 8.4), layout="constrained")
        for norm, color in NORMS.items():
            found = runs[norm]
            at = EVERY * np.arange(found["largest"].shape[1])
            axes[0, 0].plot(at, found["largest"][0], ".-", color=color)
            axes[0, 1].plot(np.arange(at[-1]), found["loss"][0], color=color)
            axes[0, 2].plot(FACTORS, found["growth"][0], "o", color=color, alpha=0.8)
            for axis, factor in zip(axes[1], FACTORS[1:], strict=True):
                tested = found["tested"][0, FACTORS.index(factor)]
                axis.plot(tested / tested[0], color=color)
        factors = np.linspace(0, FACTORS[-1] + 0.1, 200)
        axes[0, 2].plot(factors, np.abs(1 - 2 * factors), color="grey", lw=1, zorder=0)
        axes[0, 2].axhline(1, color="grey", lw=1, ls=":")
        axes[0, 0].set(yscale="log", xlabel="update", title=r"sharpness $\lambda_{max}$ in training")
        axes[0, 1].set(yscale="log", xlabel="update", title=r"loss, at rate $1 / \lambda_{max}$ of the moment")
        axes[0, 2].set(
            xlabel=r"rate / $(2 / \lambda_{max})$",
            title=f"growth an update of a displacement,\nover {FOLLOWED} updates",
        )
        for axis, factor in zip(axes[1], FACTORS[1:], strict=True):
            axis.axhline(1, color="grey", lw=1, ls=":")
            axis.set(xlabel="update after training", title=f"loss / that at the end, {factor:g} x stable rate")
        handles = [plt.Line2D([], [], color=color, label=norm) for norm, color in NORMS.items()]
        handles.append(plt.Line2D([], [], color="grey", lw=1, label=r"$|1 - rate\ \lambda_{max}|$"))
        figure.legend(handles=handles, loc="outside right center")
    return figure


def notes(rows: list[dict]) -> str:
    of = {norm: [r for r in rows if r["norm"] == norm] for norm in NORMS}

    def median(norm, name):
        return float(np.median([r[name] for r in of[norm]]))

    def each(name):
        return ", ".join(f"{norm} {median(norm, name):.3g}" for norm in NORMS)

    lines = [
        "growth: factor an update by which a displacement along the eigenvector grows, |1 - rate lambda_max| on a "
        "quadratic; rises: part of the updates in which the loss rises; highest, last: of the loss, over that at the "
        "end of training; lambda_max at: after them, over that before. Medians over the seeds:",
        f"lambda_max at initial weights: {each('lambda_max before')}; after training: {each('lambda_max after')}.",
        f"Stable rate 2 / lambda_max after training: {each('stable rate after')}. Loss there: {each('loss after')}.",
    ]
    lines.append(f"Of the eigenvector at initial weights there is in shifts: {each('in shifts before')}.")
    none = median("none", "stable rate after")
    larger = [norm for norm in NORMS if norm != "none" and median(norm, "stable rate after") > none]
    lines.append(
        f"After training the stable rate is larger than without normalization for: {', '.join(larger) or 'nothing'}."
    )
    best = min(NORMS, key=lambda norm: median(norm, "loss after"))
    lines.append(f"Each at half its own stable rate, the lowest loss is {best}'s.")
    risen = [f", norm {r['norm']}" for r in rows if not r["highest in training"] <= 1.5 * r["loss before"]]
    lines.append(
        f"A rate is kept for {EVERY} updates, in which lambda_max may outgrow it: on the way the loss rose to more "
        f"than 1.5 times its first value in {len(risen)} of {len(rows)} runs{''.join(risen)}."
    )
    for factor in FACTORS:
        predicted = abs(1 - 2 * factor)
        growths = [r[f"growth at {factor:g}"] for r in rows]
        rises, above = (
            sum(r[f"{what} at {factor:g}"] > least for r in rows) for what, least in (("rises", 0), ("highest", 1))
        )
        ends = sum(not r[f"last at {factor:g}"] < 1 for r in rows)
        sharper = [r[f"lambda_max at {factor:g}"] for r in rows]
        lines.append(
            f"{factor:g} x stable rate: growth {min(growths):.3g} to {max(growths):.3g}, on a quadratic "
            f"{predicted:.3g}; of {len(rows)} runs the loss rises in some update in {rises}, above where it began in "
            f"{above}, and is there after {UPDATES} updates in {ends}; lambda_max is then {min(sharper):.3g} to "
            f"{max(sharper):.3g} times what it was."
        )
    worst = max(r["residual / lambda_max"] for r in rows)
    lines.append(
        f"Lanczos, {PRODUCTS} products: the largest residual is {worst:.1e} of lambda_max, the bound on its error."
    )
    return "\n".join(lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/normalisation", seeds=2, measurements=10)
    steps = [line for norm in LEARNED for line in exercise(norm)]
    worst = max(line["difference"] for line in steps)
    note = f"Largest difference between a derivative by hand and by jax.grad, in float64: {worst:.1e}."
    experiments.write(experiments.sibling(options.out, "backward"), steps, notes=note)
    task, runs = experiments.load("digits"), {}
    with progress("normalization", len(NORMS)) as advance:
        for norm in NORMS:
            advance(len(runs), norm)
            runs[norm] = follow(norm, task, options.seeds, options.measurements)
    rows = [row for norm, found in runs.items() for row in rows_of(norm, found)]
    experiments.write(options.out, rows, draw(runs), notes(rows))


if __name__ == "__main__":
    main()
