#!/usr/bin/env python
"""How few bits may a sensitivity have? Training by rounded sensitivities of 1 to 8 bits, next to exact ones; digits.

    python scripts/low_precision_backward.py --seeds 6 --epochs 20 --out results/low_precision_backward

On the backward pass only, each layer's sensitivities are rounded to 2^bits - 1 numbers, evenly spaced from the largest
|s| to its negative (with one bit, to these two). Stochastic rounding changes nothing on average (Gupta et al. 2015).
Rounding to the nearest makes 0 of what is below half a step, and with one bit gives the sign times the mean size. The
networks have three hidden layers of 32 tanh neurons, batches of 32 and momentum 0.9; the learning rate is that of seven
with the best mean accuracy on held-out pictures. Errors on the test part are compared with the exact rule's seed by
seed, since a seed's initial weights and batches are the same under every rule. Beyond 2.6 standard errors they differ
(which one in twenty of sixteen comparisons does by chance).
"""

import jax
import numpy as np
from learning_rules import DEEP, LAST, at_best_rate, at_end, data_of, network_of, standard_error

from functional_nn import training
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

BITS = (1, 2, 3, 4, 5, 6, 7, 8)
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
BEYOND = 2.6  # standard errors: Student's 95 % of 6 seeds
WAYS = {"stochastic": BLUE, "nearest": VERMILION}


def train(data: list, seeds: int, epochs: int) -> tuple[training.Population, list[tuple[str, int]]]:
    """Trains members by setting (way, bits), the exact rule first, rate and seed. Returns them, and the settings."""
    settings = [("exact", 0), *((way, bits) for way in WAYS for bits in BITS)]
    grids = [
        training.grid(
            rule="rounded" if bits else "exact",
            bits=max(bits, 1),
            stochastic=way != "nearest",
            learning_rate=RATES,
            seed=range(seeds),
        )
        for way, bits in settings
    ]
    with progress("low precision", epochs) as advance:
        population = training.fit_population(
            network_of(DEEP),
            "cross_entropy",
            "momentum",
            {name: np.concatenate([grid[name] for grid in grids]) for name in grids[0]},
            data[0],
            key=jax.random.key(0),
            epochs=epochs,
            validation=data[1],
            plan=training.minibatch(32),
            shuffle="independent",
            track=("alignment",),
            on_chunk=lambda at: advance(at.epoch),
        )
    return population, settings


def table(population: training.Population, settings: list, data: list, seeds: int) -> list[dict]:
    members, rows, exact = np.arange(len(population)).reshape(len(settings), -1, seeds), [], None
    for (way, bits), own in zip(settings, members, strict=True):
        found = at_best_rate(population, own, data)
        error = 100 * (1 - found.test)
        exact = error if exact is None else exact  # the first
        behind, angles = error - exact, at_end(found).mean(axis=1)
        rows.append(
            {
                "rounded": way,
                "bits": bits or "",
                "rate": found.rate,
                "held out %": 100 * float(found.held_out.mean()),
                "test error %": float(error.mean()),
                "sd": float(error.std(ddof=1)),
                "above exact": float(behind.mean()),
                "se": standard_error(behind),
                **{f"angle, layer{i}": float(angle) for i, angle in enumerate(angles, start=1)},
            }
        )
    return rows


def draw(rows: list[dict]):
    """Draws test error, and the angle of each hidden layer's gradient, against bits."""
    exact, *others = rows
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained")
        left.axhspan(*(exact["test error %"] + exact["sd"] * np.array([-1, 1])), color="grey", alpha=0.2, lw=0)
        left.axhline(exact["test error %"], color="grey", lw=1, label="exact (band: sd over seeds)")
        for place, (way, color) in enumerate(WAYS.items()):
            own = [r for r in others if r["rounded"] == way]
            bits = np.array([r["bits"] for r in own])
            left.errorbar(
                bits + 0.1 * place,
                [r["test error %"] for r in own],
                [r["sd"] for r in own],
                fmt="o-",
                ms=4,
                color=color,
                capsize=2,
                label=way,
            )
            for layer, line in zip(range(1, DEEP + 1), ("-", "--", ":"), strict=True):
                right.plot(
                    bits,
                    [r[f"angle, layer{layer}"] for r in own],
                    line,
                    marker=".",
                    color=color,
                    label=f"{way}, layer{layer}",
                )
        left.set(xlabel="bits of a sensitivity", ylabel="test error, %", yscale="log")
        left.set_yticks([2, 5, 10, 20, 50, 90], [2, 5, 10, 20, 50, 90])
        left.minorticks_off()
        right.set(xlabel="bits of a sensitivity", ylabel="angle to the exact gradient, degrees", ylim=(0, None))
        for axis in (left, right):
            axis.set_xticks(BITS)
            axis.legend(fontsize=9)
    return figure


def notes(rows: list[dict], seeds: int, epochs: int, seconds: float) -> str:
    exact, *others = rows
    lines = [
        f"{seeds} seeds, {epochs} epochs; above exact: the test error less the exact rule's, seed by seed, with its "
        f"standard error; angles in degrees between a layer's gradient, over all training pictures, and the exact "
        f"one, means of the last {LAST} epochs. Trained in {seconds:.0f} seconds."
    ]
    for way in WAYS:
        worse = [str(r["bits"]) for r in others if r["rounded"] == way and r["above exact"] > BEYOND * r["se"]]
        better = [str(r["bits"]) for r in others if r["rounded"] == way and r["above exact"] < -BEYOND * r["se"]]
        lines.append(
            f"{way}: worse than exact ({exact['test error %']:.2f} %), beyond {BEYOND} standard errors, with "
            f"{', '.join(worse) or 'no number of'} bits; better with {', '.join(better) or 'no number of'} bits."
        )
    edge = [f"{r['rounded']} {r['bits']} {r['rate']:g}" for r in rows if experiments.at_edge(r["rate"], RATES)]
    lines.append(f"The best rate is the first or the last tried for: {'; '.join(edge) or 'none'}.")
    return "\n".join(lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/low_precision_backward", seeds=6, epochs=20)
    data = data_of("digits")
    population, settings = train(data, options.seeds, options.epochs)
    rows = table(population, settings, data, options.seeds)
    experiments.write(options.out, rows, draw(rows), notes(rows, options.seeds, options.epochs, population.seconds))


if __name__ == "__main__":
    main()
