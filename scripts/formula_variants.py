#!/usr/bin/env python
"""The texts' formulas as printed, as corrected, and as optax and PyTorch define them, side by side under one `vmap`.

    python scripts/formula_variants.py --steps 1000

Every variant is a small rule (k, x, g, memory) -> (x, memory) over one common memory, chosen by a traced index, so that
all of them are one compiled program. All start at Hagan's (-1, -2.95) on his quadratic, in float64, with the same rate,
decay and epsilon, whatever the defaults of the library or text they come from. The corrected ones must equal
functional_nn's own optimizers to 1e-12, or the script fails. optax's and PyTorch's are written out here from their
sources; neither is imported. Verdicts compare with functional_nn's own optimizer of the family: "same" to 1e-12 for the
first 300 steps, "diverges" where F ends above its start or is not finite, "differs" otherwise.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt

RATE, DECAY, B1, B2, EPSILON = 0.05, 0.9, 0.9, 0.999, 1e-6
TOLERANCE = 1e-12
COMPARED = 300  # steps; later, rounding grows without bound in methods that circle the minimum at a constant rate
START = (-1.0, -2.95)  # dl3gd's, F = 22.815


def objective(x: Array) -> Array:
    """Hagan's F = c + d'x + x'Ax / 2, with curvatures 4 and 20, written from its minimum (-1, -1), to keep
    all digits.
    """
    u, v = x[0] + 1, x[1] + 1
    return 6 * u**2 - 8 * u * v + 6 * v**2


class Memory(NamedTuple):
    """The memory of all rules: an average or change, a sum or average of squares, and one of outer products."""

    first: Array
    second: Array
    outer: Array


Rule = Callable[[Array, Array, Array, Memory], tuple[Array, Memory]]


def inside(g, squares):
    return g / jnp.sqrt(squares + EPSILON)


def outside(g, squares):
    return g / (jnp.sqrt(squares) + EPSILON)


def momentum(of_gradient: float, of_memory: float, applied: float) -> Rule:
    """Delta = of_gradient g + of_memory Delta, x = x + applied Delta."""

    def rule(k, x, g, memory):
        change = of_gradient * g + of_memory * memory.first
        return x + applied * change, memory._replace(first=change)

    return rule


def scaled(kept: float, share: float, divided: Callable = inside, rate: float = RATE, initial: float = 0.0) -> Rule:
    """R = kept R + share g^2, x = x - eta g / sqrt(R): AdaGrad's sums and RMSprop's averages."""

    def rule(k, x, g, memory):
        squares = kept * memory.second + share * g**2
        return x - rate * divided(g, initial + squares), memory._replace(second=squares)

    return rule


def full_matrix_adagrad(k, x, g, memory):
    total = memory.outer + jnp.outer(g, g)
    values, vectors = jnp.linalg.eigh(total)
    return x - RATE * vectors @ inside(vectors.T @ g, jnp.maximum(values, 0)), memory._replace(outer=total)


def adadelta(rate: float) -> Rule:
    def rule(k, x, g, memory):
        squares = DECAY * memory.second + (1 - DECAY) * g**2
        change = jnp.sqrt(memory.first + EPSILON) * inside(g, squares)
        changes = DECAY * memory.first + (1 - DECAY) * change**2  # of the change, before it is multiplied by the rate
        return x - rate * change, memory._replace(first=changes, second=squares)

    return rule


def adam(step: Callable[..., Array]) -> Rule:
    """`step(m, v, 1 - b1^k, 1 - b2^k)` of the two moments, Hagan Eq. 3.29 and 3.30."""

    def rule(k, x, g, memory):
        m, v = B1 * memory.first + (1 - B1) * g, B2 * memory.second + (1 - B2) * g**2
        return x - RATE * step(m, v, 1 - B1**k, 1 - B2**k), memory._replace(first=m, second=v)

    return rule


class Variant(NamedTuple):
    """A formula. own: the optimizer of functional_nn that it must equal, if it is a corrected one."""

    family: str
    name: str
    source: str
    rule: Rule
    own: str = ""


OWN = {
    "momentum": fnn.optimizers.momentum(RATE, DECAY),
    "adagrad": fnn.optimizers.adagrad(RATE, EPSILON),
    "rmsprop": fnn.optimizers.rmsprop(RATE, DECAY, EPSILON),
    "adadelta": fnn.optimizers.adadelta(1.0, DECAY, EPSILON),
    "adam": fnn.optimizers.adam(RATE, B1, B2, EPSILON),
    "adam (efficient)": fnn.optimizers.adam(RATE, B1, B2, EPSILON, order="efficient"),
}
VARIANTS = (
    Variant("momentum", "D = -eta g + alpha D, x + D", "blog Eq. 3; Kordecki", momentum(-RATE, DECAY, 1), "momentum"),
    Variant("momentum", "D = eta g + gamma D, x - D", "CSE 475 19.70.2", momentum(RATE, DECAY, -1)),
    Variant("momentum", "D = g + gamma D, x - eta D", "optax, PyTorch", momentum(1, DECAY, -RATE)),
    Variant("momentum", "D = -eta g + alpha D, x - D", "mixed: blog's D, CSE's step", momentum(-RATE, DECAY, -1)),
    Variant("momentum", "D = eta g - gamma D, x - D", "mixed: CSE's D, blog's memory", momentum(RATE, -DECAY, -1)),
    Variant("adagrad", "diagonal", "corrected", scaled(1, 1), "adagrad"),
    Variant("adagrad", "full matrix G^(-1/2)", "Kordecki, as printed", full_matrix_adagrad),
    Variant("adagrad", "G begins at 0.1", "optax", scaled(1, 1, initial=0.1)),
    Variant("adagrad", "epsilon outside", "PyTorch", scaled(1, 1, outside)),
    Variant("rmsprop", "R + (1-gamma) g^2", "corrected; optax", scaled(DECAY, 1 - DECAY), "rmsprop"),
    Variant("rmsprop", "R + gamma g^2", "Kordecki, as printed", scaled(DECAY, DECAY)),
    Variant(
        "rmsprop",
        "R + gamma g^2, 3 eta",
        "printed, rate mended",
        scaled(DECAY, DECAY, rate=RATE * (DECAY / (1 - DECAY)) ** 0.5),
    ),
    Variant("rmsprop", "epsilon outside", "PyTorch", scaled(DECAY, 1 - DECAY, outside)),
    Variant("adadelta", "RMS[D] / RMS[g]", "Zeiler; optax, PyTorch at rate 1", adadelta(1.0), "adadelta"),
    Variant("adadelta", "eta / RMS[g]", "Kordecki's first form", scaled(DECAY, 1 - DECAY)),
    Variant("adadelta", "eta RMS[D] / RMS[g]", "optax, PyTorch at rate eta", adadelta(RATE)),
    Variant(
        "adam",
        "Eq. 3.31-3.33",
        "Hagan; Kingma and Ba; optax",
        adam(lambda m, v, c1, c2: m / c1 / (jnp.sqrt(v / c2) + EPSILON)),
        "adam",
    ),
    Variant(
        "adam",
        "Eq. 3.34 righted",
        "Kingma and Ba, section 2",
        adam(lambda m, v, c1, c2: jnp.sqrt(c2) / c1 * outside(m, v)),
        "adam (efficient)",
    ),
    Variant(
        "adam",
        "Eq. 3.34 upside down",
        "Hagan, as printed",
        adam(lambda m, v, c1, c2: c1 / jnp.sqrt(c2) * outside(m, v)),
    ),
    Variant(
        "adam",
        "sqrt(v) / sqrt(1-b2^k)",
        "PyTorch",
        adam(lambda m, v, c1, c2: m / c1 / (jnp.sqrt(v) / jnp.sqrt(c2) + EPSILON)),
    ),
)
ON_CONTOURS = ("diagonal", "full matrix G^(-1/2)", "Eq. 3.31-3.33", "Eq. 3.34 upside down")


def trajectories(steps: int) -> np.ndarray:
    """Returns x at steps 0 ... `steps` of all variants, (variants, steps + 1, 2), by one scan under one vmap."""
    rules, start = [variant.rule for variant in VARIANTS], jnp.asarray(START)
    empty = Memory(jnp.zeros(2), jnp.zeros(2), jnp.zeros((2, 2)))

    def run(which):
        def step(carry, k):
            x, memory = carry
            return lax.switch(which, rules, k, x, jax.grad(objective)(x), memory), x

        return lax.scan(step, (start, empty), jnp.arange(1.0, steps + 2))[1]

    return np.asarray(jax.jit(jax.vmap(run))(jnp.arange(len(rules))))


def own_trajectory(optimizer: fnn.optimizers.Optimizer, steps: int) -> np.ndarray:
    """Returns the same (steps + 1, 2) for one of functional_nn's optimizers."""

    def step(state, _):
        return optimizer.update(state, jax.grad(objective)(state.params)), state.params

    return np.asarray(lax.scan(step, optimizer.init(jnp.asarray(START)), length=steps + 1)[1])


def difference(found: np.ndarray, own: np.ndarray) -> float:
    """Returns the largest ||x_k - own_k|| / ||own_k|| of the first steps."""
    found, own = found[:COMPARED], own[:COMPARED]
    return float(np.max(np.linalg.norm(found - own, axis=-1) / np.linalg.norm(own, axis=-1)))


def examine(paths: np.ndarray, own: dict[str, np.ndarray]) -> list[dict]:
    """Makes a row for each variant. Raises AssertionError where a corrected one differs from functional_nn's own."""
    rows = []
    for variant, path in zip(VARIANTS, paths, strict=True):
        apart = {name: difference(path, theirs) for name, theirs in own.items()}
        if variant.own and not apart[variant.own] <= TOLERANCE:
            raise AssertionError(f"{variant.name}: {apart[variant.own]:.1e} from functional_nn's {variant.own}")
        values = jax.vmap(objective)(path)
        end, from_own = float(values[-1]), apart[variant.family]
        first_step, own_first = (np.linalg.norm(x[1] - x[0]) for x in (path, own[variant.family]))
        rows.append(
            {
                "family": variant.family,
                "variant": variant.name,
                "source": variant.source,
                "first step / own": first_step / own_first,
                "final F": end,
                "difference": from_own,
                "verdict": "same" if from_own <= TOLERANCE else "differs" if end <= values[0] else "diverges",
                "equals our": ", ".join(name for name, value in apart.items() if value <= TOLERANCE) or "-",
            }
        )
    return rows


def picture(paths: np.ndarray) -> plt.Figure:
    """Draws F against the step, a panel for each family, with later variants thinner on top; and paths on contours."""
    colors = (BLUE, ORANGE, GREEN, VERMILION, PURPLE)
    dashes = ("-", (0, (5, 2)), (0, (2, 2)), "-.", (0, (1, 1.5)))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(13.5, 7.6), layout="constrained")
        families = itertools.groupby(zip(VARIANTS, paths, strict=True), lambda pair: pair[0].family)
        for axis, (family, members) in zip(axes.flat, families, strict=False):
            for i, (variant, path) in enumerate(members):
                values, label = jax.vmap(objective)(path), f"{variant.name}  ({variant.source})"
                values = np.where(values < 1e-18, 1e-18, np.fmin(values, 1e9))  # outside the picture, like nan
                style = {"color": colors[i], "linestyle": dashes[i], "linewidth": 4.2 - 0.8 * i}
                axis.plot(np.arange(1, len(path) + 1), values, **style, label=label)
            lowest = min(1e-1, max(1e-16, axis.dataLim.y0 / 3))
            axis.set(title=family, xlabel="step (1: the start)", ylabel="F", xscale="log", yscale="log")
            axis.set(xlim=(1, len(path)), ylim=(lowest, 1e3))
        x, y = np.meshgrid(np.linspace(-3.2, 1.2, 160), np.linspace(-3.4, 0.6, 160))
        axis = axes[1, 2]
        axis.contour(x, y, objective((x, y)), np.geomspace(0.05, 60, 10), colors="0.8", linewidths=0.8)
        shown = [(variant, path) for variant, path in zip(VARIANTS, paths, strict=True) if variant.name in ON_CONTOURS]
        for color, (variant, path) in zip(colors, shown, strict=False):
            axis.plot(
                *path.T, ".-", color=color, linewidth=1.2, markersize=3, label=f"{variant.family}: {variant.name}"
            )
        axis.set(title="paths over the contours of F", aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
        for axis in axes.flat:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8)
    return figure


def notes(rows: list[dict]) -> str:
    """Says what all had in common, what the columns mean, and the counts."""
    counts = Counter(row["verdict"] for row in rows)
    largest = float(np.linalg.eigvalsh(jax.hessian(objective)(jnp.asarray(START)))[-1])
    with_it, against_it = 2 * (1 + DECAY) / largest, 2 * (1 - DECAY) / largest
    return f"""
rate {RATE}, decay of all averages {DECAY} (Adam's {B1} and {B2}), epsilon {EPSILON}; from {START} in float64
first step / own: length of the first step in units of functional_nn's; difference: the largest relative one of the
first {COMPARED} steps from functional_nn's optimizer of the family; equals our: which of functional_nn's it is
{", ".join(f"{verdict} {count}" for verdict, count in counts.items())} of {len(rows)}
momentum is stable up to rate {with_it:.3g} here; with its memory's sign turned, up to {against_it:.3g}
"""


def main() -> None:
    experiments.start(x64=True)
    options = experiments.arguments(__doc__, "results/formula_variants", steps=1000)
    paths = trajectories(options.steps)
    own = {name: own_trajectory(optimizer, options.steps) for name, optimizer in OWN.items()}
    rows = examine(paths, own)
    experiments.write(options.out, rows, picture(paths), notes(rows))


if __name__ == "__main__":
    main()
