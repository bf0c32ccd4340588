#!/usr/bin/env python
"""How the best learning rate grows with the batch size: 1536 networks on digits, trained by one call.

    python scripts/population_minibatch.py --seeds 16 --epochs 30
    python scripts/population_minibatch.py --optimizer adam --out results/population_minibatch_adam

Does it grow linearly (Goyal et al. 2017, for gradient descent) or as the square root (Krizhevsky 2014; Malladi et al.
2022, for Adam)? One `fit_population` trains networks 64-32-10, tanh and softmax, with eight batch sizes, twelve
learning rates and --seeds seeds. The best rate has the lowest validation loss after the last epoch, by medians over the
seeds. It is read off a parabola through the lowest point of the grid and its neighbours (logarithms of both); intervals
come from bootstrap draws of the seeds. Validation uses a part of the training data; the test set takes no part in any
choice. All networks see as many examples, so that small batches make more updates. All CPU cores are used; the
environment variable JAX_NUM_CPU_DEVICES sets another number.
"""

import jax
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

NETWORK = fnn.multilayer((64, 32, 10), ("tanh", "softmax"))
BATCH_SIZES = 2 ** np.arange(1, 9)
TRAINED_ON = 1024  # rows, which every batch size divides, so that no batch is smaller; the others validate
STEP = np.sqrt(2)  # between rates, so that both rules lead from one rate of the grid to another
RATES = {"gd": STEP ** np.arange(-8, 4), "adam": STEP ** np.arange(-18, -6)}
RULES = {"square-root": 0.5, "linear": 1.0}  # best rate ~ batch size ** this
DRAWS, INSIDE = 2000, (0.025, 0.975)  # of the bootstrap
MINUTES = 2  # the target for 1536 networks and 30 epochs on two cores


def train(task, optimizer: str, seeds: int, epochs: int) -> fnn.training.Population:
    """Trains every batch size with every rate and seed; seeds vary fastest."""
    members = fnn.training.grid(batch_size=BATCH_SIZES, learning_rate=RATES[optimizer], seed=range(seeds))
    data, held_out = task.divided(TRAINED_ON)
    with progress("training", epochs) as advance:
        return fnn.training.fit_population(
            NETWORK,
            task.loss,
            optimizer,
            members,
            data,
            key=jax.random.key(0),
            epochs=epochs,
            validation=held_out,
            on_chunk=lambda at: advance(at.epoch, f"{at.updates_per_second:.3g} updates/s"),
        )


def log_best_rate(rates: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Returns where the loss (..., rates) is lowest, by a parabola; at an edge or next to inf, the grid's own rate."""
    at = loss.argmin(axis=-1)
    inner = np.clip(at, 1, len(rates) - 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, middle, high = (
            np.log(np.take_along_axis(loss, (inner + step)[..., None], -1)[..., 0]) for step in (-1, 0, 1)
        )
        offset = (low - high) / (2 * (low - 2 * middle + high))
    return np.log(rates)[at] + np.where((at == inner) & np.isfinite(offset), offset, 0) * np.log(STEP)


def slope(log_rates: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Fits the slope of log rate (sizes, ...) against log batch size, by least squares."""
    x = np.log(sizes) - np.log(sizes).mean()
    return np.tensordot(x, log_rates, 1) / (x @ x)


def test_accuracy(population, members: np.ndarray, task) -> np.ndarray:
    accuracy = jax.jit(lambda params: fnn.training.evaluate(NETWORK, task.loss, params, *task.test)[1])
    return np.array([accuracy(population.params(member)) for member in members])


def measure_rules(loss: np.ndarray) -> dict[str, float]:
    """Returns, by rule, the median change of the loss (sizes, rates) when batch and rate are raised together.

    Only rates below the best of their batch sizes count, before and after: above them training is unstable.
    """
    best, changes = loss.argmin(axis=-1), {}
    for name, power in RULES.items():
        steps = round(2 * power)
        changes[name] = np.concatenate(
            [
                np.abs(np.log(after[steps : end + steps] / before[:end]))
                for before, after, end in zip(loss, loss[1:], np.minimum(best[:-1], best[1:] - steps), strict=False)
                if end > 0
            ]
            or [[np.nan]]
        )
    return {name: float(np.expm1(np.median(own))) for name, own in changes.items()}


def draw(rates, loss, log_best, interval, middle: float):
    """Draws validation loss against the rate, medians and quartiles; and the best rate against the batch size."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", width_ratios=(1.25, 1))
        colors = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(BATCH_SIZES)))
        for size, own, color, at in zip(BATCH_SIZES, loss, colors, log_best, strict=True):
            own = np.nan_to_num(own, nan=1e30, posinf=1e30)
            low, median, high = np.quantile(own, (0.25, 0.5, 0.75), axis=-1)
            left.plot(rates, median, color=color, marker=".", ms=4, label=str(size))
            left.fill_between(rates, low, high, color=color, alpha=0.2, lw=0)
            left.axvline(np.exp(at), 0, 0.03, color=color, lw=2)
        lowest, highest = experiments.medians(loss).min(), np.nan_to_num(experiments.medians(loss)[:, 0]).max()
        left.set(
            xscale="log",
            yscale="log",
            xlabel="learning rate (marks: the best)",
            ylabel="validation loss",
            ylim=(0.6 * lowest, 8 * highest),
        )
        left.xaxis.set_minor_formatter("")  # its labels would overlap
        left.legend(title="batch size", fontsize=8, ncols=2)
        best, (low, high) = np.exp(log_best), np.exp(interval)
        right.errorbar(
            BATCH_SIZES,
            best,
            np.maximum([best - low, high - best], 0),
            color=BLACK,
            marker="o",
            lw=0,
            elinewidth=1.5,
            label="best rate, 95 %",
            zorder=3,
        )
        for (name, power), color in zip(RULES.items(), (BLUE, VERMILION), strict=True):
            right.plot(
                BATCH_SIZES,
                best[0] * (BATCH_SIZES / BATCH_SIZES[0]) ** power,
                "--",
                color=color,
                label=f"{name}, from the smallest batch",
            )
        fitted = np.exp(log_best.mean()) * (BATCH_SIZES / np.exp(np.log(BATCH_SIZES).mean())) ** middle
        right.plot(BATCH_SIZES, fitted, color="grey", label=f"fitted, slope {middle:.2f}")
        right.set(
            xscale="log",
            yscale="log",
            xlabel="batch size",
            ylabel="best learning rate",
            ylim=(0.6 * min(low.min(), fitted.min()), 4 * max(high.max(), best[0])),
        )
        right.set_xticks(BATCH_SIZES, BATCH_SIZES)
        right.minorticks_off()
        right.legend(fontsize=8, loc="upper left")
    return figure


def verdict(middle: float, low: float, high: float) -> str:
    """Says which rule a slope is nearer to, and which of them its interval contains."""
    nearer = min(RULES, key=lambda name: abs(RULES[name] - middle))
    outside = "below both" if high < min(RULES.values()) else "above both" if low > max(RULES.values()) else ""
    possible = [name for name, power in RULES.items() if low <= power <= high]
    within = f"the interval contains {' and '.join(possible)}" if possible else "the interval contains neither"
    return f"slope {middle:.2f} ({low:.2f} to {high:.2f}), nearer to {nearer}; {outside or within}"


def notes(population, optimizer: str, slopes: dict[str, np.ndarray], changes, rows: list[dict], epochs: int) -> str:
    """Says what the numbers show."""
    found = [f"{sizes}: {verdict(float(own[0]), *np.quantile(own[1:], INSIDE))}." for sizes, own in slopes.items()]
    closer = min(changes, key=changes.get)
    by_rule = " and ".join(f"{change:.1%} by the {name} rule" for name, change in changes.items())
    near = [f"{row['best rate'] / row['learns up to']:.2g} (batch size {row['batch size']})" for row in rows]
    edges = [str(row["batch size"]) for row in rows if experiments.at_edge(row["of the grid"], RATES[optimizer])]
    target = ""
    if len(population) == 1536 and epochs == 30:
        target = f" (target below {60 * MINUTES} s: {'met' if population.seconds < 60 * MINUTES else 'MISSED'})"
    lines = [
        "Below the best rates, doubling the batch and raising the rate with it changes the validation loss by a median "
        f"of {by_rule}: there training is nearer to the {closer} rule. The best rate is {near[0]} to {near[-1]} of the "
        "highest of the grid that learns at all. "
        + (
            f"WARNING: that of batch size {', '.join(edges)} is the grid's first or last; read no slope from it."
            if edges
            else "None is the grid's first or last."
        ),
        f"{len(population)} networks x {epochs} epochs in {population.seconds:.1f} s, compilation of "
        f"{len(population.groups)} programs included, on {jax.device_count()} x {jax.devices()[0].platform}{target}.",
        f"{TRAINED_ON} rows are trained on, the others of the training set validate. Equal epochs are equal numbers of "
        f"examples, not of updates: batches of {BATCH_SIZES[0]} make {BATCH_SIZES[-1] // BATCH_SIZES[0]} times the "
        f"updates of batches of {BATCH_SIZES[-1]}, which need a larger rate to come as far at all.",
        f"2.5 %, 97.5 % and what stands in brackets: {DRAWS} bootstrap draws of the seeds. learns up to: the highest "
        "rate of the grid whose validation loss is below log 10, that of guessing. validation loss and test accuracy: "
        "at the best rate of the grid. All are medians over the seeds.",
    ]
    head = f"Slope of log(best rate) against log(batch size), {optimizer}; square-root is 1/2, linear is 1:"
    return "\n".join([head, *found, "", experiments.paragraphs(*lines)])


def main() -> None:
    experiments.start(all_cores=True)
    parser = experiments.parser(__doc__, "results/population_minibatch", seeds=16, epochs=30)
    parser.add_argument("--optimizer", choices=RATES, default="gd", help="default gd")
    options = parser.parse_args()
    task, rates = experiments.load("digits"), RATES[options.optimizer]
    population = train(task, options.optimizer, options.seeds, options.epochs)

    shape = len(BATCH_SIZES), len(rates), options.seeds
    loss = population.history.validation_loss[-1].reshape(shape)
    drawn = np.random.default_rng(0).integers(options.seeds, size=(DRAWS, options.seeds))
    log_best = log_best_rate(rates, experiments.medians(loss))
    again = log_best_rate(rates, np.moveaxis(experiments.medians(loss[..., drawn]), -1, 1))  # (sizes, draws)
    both = np.column_stack([log_best, again])
    middle = len(BATCH_SIZES) // 2
    slopes = {
        f"all, {BATCH_SIZES[0]} to {BATCH_SIZES[-1]}": slope(both, BATCH_SIZES),
        f"small, {BATCH_SIZES[0]} to {BATCH_SIZES[middle - 1]}": slope(both[:middle], BATCH_SIZES[:middle]),
        f"large, {BATCH_SIZES[middle]} to {BATCH_SIZES[-1]}": slope(both[middle:], BATCH_SIZES[middle:]),
    }
    best = experiments.medians(loss).argmin(axis=-1)
    interval = np.quantile(again, INSIDE, axis=-1)
    members = np.arange(len(population)).reshape(shape)
    rows = [
        {
            "batch size": int(size),
            "updates an epoch": TRAINED_ON // int(size),
            "best rate": float(np.exp(log_best[i])),
            "2.5 %": float(np.exp(interval[0, i])),
            "97.5 %": float(np.exp(interval[1, i])),
            "of the grid": float(rates[best[i]]),
            "learns up to": float(rates[experiments.medians(loss)[i] < np.log(10)].max(initial=rates[0])),
            "validation loss": float(experiments.medians(loss)[i, best[i]]),
            "test accuracy": float(np.median(test_accuracy(population, members[i, best[i]], task))),
        }
        for i, size in enumerate(BATCH_SIZES)
    ]
    said = notes(population, options.optimizer, slopes, measure_rules(experiments.medians(loss)), rows, options.epochs)
    fitted = float(next(iter(slopes.values()))[0])
    experiments.write(options.out, rows, draw(rates, loss, log_best, interval, fitted), said)


if __name__ == "__main__":
    main()
