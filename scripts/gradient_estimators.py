#!/usr/bin/env python
"""Gradients without backpropagation: how their error grows with the number of parameters, next to the theory; digits.

    python scripts/gradient_estimators.py --keys 1000 --out results/gradient_estimators

Five rules estimate the gradient g from losses alone, or from one directional derivative. The error of a single
estimate, |g_hat - g|^2 / |g|^2, is measured over many keys, at initial weights and on one batch of Q examples. Theory:

    forward_gradient, weight_perturbation, evolution_strategy    (P + 1) / N     P parameters, N normal directions
    spsa                                                         (P - 1) / N     directions of signs
    node_perturbation    sum_q sum_m (S_m |d_q|^2 + |d_q^m|^2) (|a_q^(m-1)|^2 + 1) / (Q^2 N |g|^2)

In the last, each example q has its own v, and (d_q.v) v estimates d_q = dF_q/dn of all neurons together. For normal v,
E[((d.v) v_i - d_i)^2] = |d|^2 + d_i^2. Layer m's S_m neurons contribute S_m |d|^2 + |d^m|^2, times the squares of what
its weights and bias read. That is about (neurons / Q) mean |g_q|^2 / |g|^2: examples share no noise, so that the error
of the mean falls with Q, fully where the batch is larger than the gradient's noise scale (below it |g|^2 falls too).
The error of the other rules grows with each parameter, whatever Q. Rules that take a finite step also have errors from
curvature along it, and from rounding, which the lines leave out. All rules get the same keys: those that draw the same
directions have correlated errors.

Three sweeps: the width of the hidden layer, and with it P; the number of directions; the number of examples.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, ORANGE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

WIDTHS, DIRECTIONS, EXAMPLES = (2, 8, 32, 128, 512), (1, 4, 16, 64), (4, 16, 64, 256)
WIDTH, BATCH = 32, 64  # where another quantity is swept
AT_ONCE = 8  # keys in one batch of the computation
RULES = {  # with N directions
    "forward_gradient": "forward_gradient(directions={N})",
    "weight_perturbation": "weight_perturbation(directions={N})",
    "spsa": "spsa(directions={N})",
    "evolution_strategy": "evolution_strategy(population={2N})",
    "node_perturbation": "node_perturbation(directions={N})",
}
COLORS = (BLACK, ORANGE, BLUE, GREEN, VERMILION)
SWEPT = {"width": "parameters", "directions": "directions", "examples": "examples"}


def network_of(width: int) -> fnn.Network:
    return fnn.multilayer((64, width, 10), ("tanh", "softmax"))


@functools.cache
def errors_of(rule: str, width: int, examples: int, keys: int) -> tuple[np.ndarray, float, int]:
    """Returns |g_hat - g|^2 / |g|^2 of each key (keys,); the mean that the theory predicts for node perturbation with
    one direction; and the number of parameters.
    """
    task, network = experiments.load("digits"), network_of(width)
    x, t = jnp.asarray(task.inputs[:examples]), jnp.asarray(task.targets[:examples])
    params = network.init(jax.random.key(0))

    def square(tree):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))

    @jax.jit
    def measure(keys):
        exact = fnn.backpropagate(network, "cross_entropy", params, x, t)  # of the mean: d_q is Q times a row
        s, read = exact.sensitivities, exact.trace.activations
        whole = sum(jnp.sum(own**2, axis=1) for own in s.values())  # |d_q / Q|^2
        node = sum(
            jnp.sum(
                (layer.size * whole + jnp.sum(s[layer.name] ** 2, axis=1))
                * (1 + jnp.sum(read[layer.sources[0]] ** 2, axis=1))
            )
            for layer in network.layers
        )

        def error(key):
            found = fnn.backpropagate(network, "cross_entropy", params, x, t, key=key, rule=rule).gradients
            return square(jax.tree.map(jnp.subtract, found, exact.gradients))

        return jax.lax.map(error, keys, batch_size=AT_ONCE) / square(exact.gradients), node / square(exact.gradients)

    found, node = measure(jax.random.split(jax.random.key(1), keys))
    return np.asarray(found, np.float64), float(node), experiments.parameter_count(network)


def row(swept: str, name: str, width: int, directions: int, examples: int, keys: int) -> dict:
    rule = RULES[name].replace("{N}", str(directions)).replace("{2N}", str(2 * directions))
    found, node, P = errors_of(rule, width, examples, keys)
    expected = {"node_perturbation": node, "spsa": P - 1}.get(name, P + 1) / directions
    mean, error = found.mean(), found.std(ddof=1) / np.sqrt(len(found))
    return {
        "swept": swept,
        "rule": name,
        "hidden": width,
        "neurons": width + 10,
        "parameters": P,
        "directions": directions,
        "examples": examples,
        "measured": float(mean),
        "se": float(error),
        "theory": float(expected),
        "measured / theory": float(mean / expected),
        "z": float((mean - expected) / error),
    }


def slope(rows: list[dict], swept: str, name: str) -> float:
    """Returns d log measured / d log of what is swept."""
    own = [r for r in rows if (r["swept"], r["rule"]) == (swept, name)]
    return float(np.polyfit(*(np.log([r[column] for r in own]) for column in (SWEPT[swept], "measured")), 1)[0])


def draw(rows: list[dict]):
    """Draws measurements (marks, with two standard errors) and theory (lines), for each sweep."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13, 4.8), sharey=True, layout="constrained")
        for axis, (swept, column) in zip(axes, SWEPT.items(), strict=True):
            for number, (name, color) in enumerate(zip(RULES, COLORS, strict=True)):
                own = [r for r in rows if (r["swept"], r["rule"]) == (swept, name)]
                x, measured, se, theory = (np.array([r[c] for r in own]) for c in (column, "measured", "se", "theory"))
                axis.plot(x, theory, color=color, lw=1)
                aside = x * 1.06 ** (number - 1.5 if number < 4 else 0)  # the first four coincide
                axis.errorbar(aside, measured, 2 * se, fmt="o", ms=4, color=color, capsize=2, label=name)
            axis.set(xscale="log", yscale="log", xlabel=column)
        axes[0].set(ylabel=r"$|\hat g - g|^2 / |g|^2$", title=f"1 direction, {BATCH} examples")
        axes[1].set_title(f"{WIDTH} hidden neurons, {BATCH} examples")
        axes[2].set_title(f"{WIDTH} hidden neurons, 1 direction")
        for axis, ticks in ((axes[1], DIRECTIONS), (axes[2], EXAMPLES)):
            axis.set_xticks(ticks, ticks)
            axis.minorticks_off()
        handles, labels = axes[0].get_legend_handles_labels()
        handles.append(plt.Line2D([], [], color="grey", lw=1))
        figure.legend(handles, [*labels, "theory"], loc="outside lower center", ncols=6)
    return figure


def notes(rows: list[dict], keys: int) -> str:
    far = [r for r in rows if abs(r["z"]) > 3]
    lines = [
        f"measured: mean of {keys} keys, and se its standard error; z: (measured - theory) / se. {len(rows)} settings: "
        f"{sum(abs(r['z']) < 2 for r in rows)} within 2 standard errors, {len(far)} beyond 3"
        + (
            ": "
            + ", ".join(
                f"{r['rule']} P {r['parameters']} N {r['directions']} Q {r['examples']} "
                f"({r['measured / theory']:.3g} of theory)"
                for r in far
            )
            if far
            else ""
        )
        + "."
    ]
    for swept, column in SWEPT.items():
        found = ", ".join(f"{name} {slope(rows, swept, name):.2f}" for name in RULES)
        lines.append(f"The error goes like {column} to the power: {found}.")
    widest = {r["rule"]: r for r in rows if r["swept"] == "width" and r["hidden"] == WIDTHS[-1]}
    P, many = widest["spsa"]["parameters"], widest["forward_gradient"]["measured"]
    node = widest["node_perturbation"]["measured"]
    lines.append(
        f"With {P} parameters one forward gradient is off by {np.sqrt(many):.3g} lengths of g, one node perturbation "
        f"of {BATCH} examples by {np.sqrt(node):.3g}: {many / node:.3g} times fewer directions for the same error."
    )
    return "\n".join(lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/gradient_estimators", keys=1000)
    settings = [("width", width, 1, BATCH) for width in WIDTHS]
    settings += [("directions", WIDTH, directions, BATCH) for directions in DIRECTIONS]
    settings += [("examples", WIDTH, 1, examples) for examples in EXAMPLES]
    rows = []
    with progress("gradient estimators", len(settings) * len(RULES)) as advance:
        for setting in settings:
            for name in RULES:
                advance(len(rows), f"{name}, {setting[0]}")
                rows.append(row(setting[0], name, *setting[1:], options.keys))
    experiments.write(options.out, rows, draw(rows), notes(rows, options.keys))


if __name__ == "__main__":
    main()
