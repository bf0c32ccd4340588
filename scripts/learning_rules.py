#!/usr/bin/env python
"""Learning rules compared with backpropagation: test errors, and where their gradients point; digits and Fashion-MNIST.

    python scripts/learning_rules.py --seeds 8 --epochs 20 --out results/learning_rules

Every rule trains 3 hidden layers of 32 tanh neurons on the digits and on Fashion-MNIST (Debian's dataset-fashion-mnist;
1920 pictures to train on, 480 to choose a rate by, 2000 to test, halved to 14 x 14 by means of four). Some rules also
train 1 and 5 hidden layers on the digits, and LeNet on both. Batches have 32 examples, momentum is 0.9, and the
learning rate is that of a few with the best mean accuracy on held-out pictures; noisy rules, and those that estimate
the gradient, choose from lower ones. A seed draws initial weights, batches, and the feedback of rules that are given by
their name alone. The --epochs are those of the digits; Fashion-MNIST has half as many. Most of the time is compiling,
one program for each rule and network; two populations are trained at a time.

Bartunov et al. 2018 and Sanfiz and Akrout 2021 ask how far such rules fall behind. The latter's BioTorch prints errors
of LeNet on MNIST: backpropagation 0.91 %, sign symmetry (uniform) 0.94, direct feedback 1.61, feedback alignment 1.70.
Is that the order here? The differences of errors between neighbours, seed by seed, are compared with their standard
error: beyond 2.4 of them (Student's 95 % for 8 seeds) the order is the same or reversed; otherwise it is open.

The alignment is the angle between a rule's gradient, or sensitivity dF/dn, of a layer and the exact one, over all
training pictures. Below 90 degrees a small step lowers the loss (Lillicrap et al. 2016).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

import functional_nn as fnn
from functional_nn import training
from functional_nn.lab import datasets, experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, ORANGE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

RATES, LENET_RATES = (0.003, 0.01, 0.03, 0.1, 0.3), (0.001, 0.003, 0.01, 0.03, 0.1)
RULES = {  # the factor of its rates
    "exact": 1,
    "feedback_alignment": 1,
    "direct_feedback": 1,
    "sign_symmetric(uniform)": 1,
    "sign_symmetric(random)": 1,
    "sign_symmetric(fixed)": 1,
    "kolen_pollack": 1,
    "weight_mirror": 1,
    "local_loss": 1,
    "noisy(1)": 0.1,
    "rounded(2)": 0.1,
    "target_propagation": 1,
    "predictive_coding(10, 0.2)": 1,
    "node_perturbation": 0.1,
    "forward_gradient": 1e-2,
    "weight_perturbation": 1e-2,
}
OF_LENET = ("exact", "sign_symmetric(uniform)", "direct_feedback", "feedback_alignment")
PUBLISHED = dict(zip(OF_LENET, (0.91, 0.94, 1.61, 1.70), strict=True))  # BioTorch, LeNet on MNIST, % of error
DEPTHS, WIDTH = (1, 3, 5), 32
DEEP = 3  # hidden layers that every rule trains; only these rules train other depths:
OF_DEPTHS = (
    "exact",
    "feedback_alignment",
    "direct_feedback",
    "sign_symmetric(uniform)",
    "kolen_pollack",
    "weight_mirror",
    "target_propagation",
)
SIZES = {"digits": (1152, 285, 360), "fashion_mnist": (1920, 480, 2000)}  # pictures: training, held out, test
BEYOND = 2.4  # standard errors
LAST = 3  # the number of epochs that count as the end
COLORS = (BLACK, ORANGE, BLUE, GREEN, VERMILION)


def data_of(name: str, flat: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (pictures (Q, R) or (Q, H, W, 1), one-hot targets) to train on, to choose a rate by, and to test with."""
    training_part, test = datasets.split(datasets.load(name))
    x, x_test = (part.inputs.reshape(-1, *part.image_shape, 1).astype("f4") for part in (training_part, test))
    if name == "fashion_mnist":
        x, x_test = (each.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)) for each in (x, x_test))
    if flat:
        x, x_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    trained, held, tested = SIZES[name]
    t, t_test = training_part.targets.astype("f4"), test.targets.astype("f4")
    held_out = slice(trained, trained + held)
    return [(x[:trained], t[:trained]), (x[held_out], t[held_out]), (x_test[:tested], t_test[:tested])]


def network_of(depth: int, shape: tuple = (64,)) -> fnn.Network:
    """A chain with so many hidden layers; LeNet for depth 0."""
    preset = f"mlp(({f'{WIDTH}, ' * depth}))" if depth else "lenet"
    return fnn.presets.get(preset)(shape, 10)


class Trained(NamedTuple):
    """What one rule came to at its best rate: validation and test accuracy (seeds,), and cosines by layer, (E, seeds)
    each, where they were tracked: of gradients and, where the rule has them, of sensitivities.
    """

    rate: float
    held_out: np.ndarray
    test: np.ndarray
    gradient: dict[str, np.ndarray]
    sensitivity: dict[str, np.ndarray]


class Job(NamedTuple):
    """One population: every rule at every rate and seed. depth 0 is LeNet."""

    data: str
    depth: int
    rules: tuple[str, ...]
    epochs: int

    @property
    def network(self) -> str:
        return f"mlp, {self.depth} hidden" if self.depth else "lenet"

    @property
    def rates(self) -> tuple[float, ...]:
        return RATES if self.depth else LENET_RATES


def jobs(epochs: int) -> list[Job]:
    half = -(-epochs // 2)
    return [
        *(Job("digits", depth, tuple(RULES) if depth == DEEP else OF_DEPTHS, epochs) for depth in DEPTHS),
        Job("digits", 0, OF_LENET, epochs),
        Job("fashion_mnist", DEEP, tuple(RULES), half),
        Job("fashion_mnist", 0, OF_LENET, half),
    ]


def train(job: Job, seeds: int) -> dict[tuple, Trained]:
    """Returns {(data, network, rule): Trained}. Alignment is tracked for dense networks on the digits."""
    data = data_of(job.data, flat=job.depth > 0)
    grids = [
        training.grid(rule=rule, learning_rate=[RULES[rule] * rate for rate in job.rates], seed=range(seeds))
        for rule in job.rules
    ]
    population = training.fit_population(
        network_of(job.depth, data[0][0].shape[1:]),
        "cross_entropy",
        "momentum",
        {name: np.concatenate([grid[name] for grid in grids]) for name in grids[0]},
        data[0],
        key=jax.random.key(0),
        epochs=job.epochs,
        validation=data[1],
        plan=training.minibatch(32),
        shuffle="independent",
        track=("alignment",) if job.data == "digits" and job.depth else (),
        chunk=job.epochs,
    )
    members = np.arange(len(population)).reshape(len(job.rules), len(job.rates), seeds)
    return {
        (job.data, job.network, rule): at_best_rate(population, own, data)
        for rule, own in zip(job.rules, members, strict=True)
    }


def at_best_rate(population: training.Population, members: np.ndarray, data: list) -> Trained:
    """Evaluates the members (rates, seeds) at the rate with the highest mean accuracy on the held-out pictures."""
    accuracy = np.nan_to_num(population.history.validation_accuracy[-1, members])  # 0 for those that diverged
    best = accuracy.mean(axis=1).argmax()
    own, network = members[best], population.network(members[best, 0])
    measure = jax.jit(lambda params: training.evaluate(network, "cross_entropy", params, *data[2])[1])
    test = np.array([float(measure(population.params(member))) for member in own])
    found = population.history.tracked.get("alignment", {})
    angles = [
        {
            name: np.asarray(getattr(layer, kind))[:, own]
            for name, layer in found.items()
            if getattr(layer, kind) is not None
        }
        for kind in ("gradient_cosine", "sensitivity_cosine")
    ]
    rate = float(population.hyperparameters["learning_rate"][own[0]])
    return Trained(rate, accuracy[best], test, *angles)


def degrees(cosine: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def at_end(trained: Trained) -> np.ndarray:
    """Returns the gradients' angles (hidden layers, seeds), by the mean cosine of the last epochs."""
    return degrees(np.stack([x[-LAST:].mean(axis=0) for x in list(trained.gradient.values())[:-1]]))


def table(found: dict[tuple, Trained]) -> list[dict]:
    rows = []
    for (name, network, rule), own in found.items():
        error, exact = 100 * (1 - own.test), 100 * (1 - found[name, network, "exact"].test)
        ends = at_end(own) if own.gradient else None
        behind = error - exact
        rows.append(
            {
                "data": name,
                "network": network,
                "rule": rule,
                "rate": own.rate,
                "held out %": 100 * float(own.held_out.mean()),
                "test error %": float(error.mean()),
                "sd": float(error.std(ddof=1)),
                "above exact": float(behind.mean()),
                "se": standard_error(behind),
                **{
                    column: "" if ends is None else float(summarize(ends))
                    for column, summarize in (
                        ("angle, first layer", lambda x: x[0].mean()),
                        ("last hidden", lambda x: x[-1].mean()),
                        ("largest", np.max),
                    )
                },
            }
        )
    return rows


def standard_error(difference: np.ndarray) -> float:
    """Returns the standard error of the mean."""
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))


def order(found: dict[tuple, Trained], name: str, network: str) -> str:
    """Says for each published rule and the next one whether its error is lower here too."""
    said = []
    for rule, following in zip(OF_LENET, OF_LENET[1:], strict=False):
        difference = 100 * (found[name, network, rule].test - found[name, network, following].test)
        mean, error = difference.mean(), standard_error(difference)
        verdict = "the same" if mean > BEYOND * error else "REVERSED" if mean < -BEYOND * error else "open"
        said.append(f"{rule} < {following} {verdict} ({mean:+.2f}, se {error:.2f})")
    return f"{name}, {network}: {'; '.join(said)}"


def feedback_angles(found: dict[tuple, Trained]) -> list[str]:
    """Says whether feedback alignment's angle falls below 90 degrees in every hidden layer and seed, on digits."""
    said = []
    for (name, network, rule), own in found.items():
        if (name, rule) != ("digits", "feedback_alignment") or network == "lenet":
            continue
        hidden = list(own.sensitivity)[:-1]
        for kind in ("sensitivity", "gradient"):
            ends = np.stack([degrees(getattr(own, kind)[layer][-LAST:]).max(axis=0) for layer in hidden])
            middle = ", ".join(f"{np.median(end):.0f}" for end in ends)
            said.append(
                f"{network}, {kind}, median by hidden layer {middle}; the largest of all seeds {ends.max():.1f}: "
                f"{'below 90 everywhere' if (ends < 90).all() else f'NOT below in {(ends >= 90).sum()} of {ends.size}'}"
            )
    return said


def draw(found: dict[tuple, Trained]):
    """Draws test errors, mean and standard deviation; and the angle of each hidden layer's gradient, 5 layers."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(13, 10), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1))
        names = dict.fromkeys(name for name, _, _ in found)
        for axis, name in zip(above.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
            networks = [*(f"mlp, {depth} hidden" for depth in DEPTHS), "lenet"]
            for place, (network, color) in enumerate(zip(networks, COLORS, strict=False)):
                if (name, network, "exact") not in found:
                    continue
                errors = {
                    rule: 100 * (1 - own.test) for (*setting, rule), own in found.items() if setting == [name, network]
                }
                y = np.array([-list(RULES).index(rule) for rule in errors]) + 0.15 * (1 - place)
                x, spread = (np.array([getattr(e, k)() for e in errors.values()]) for k in ("mean", "std"))
                axis.errorbar(x, y, xerr=np.minimum(spread, 0.9 * x), fmt="o", ms=4, color=color, label=network)
            axis.set(xscale="log", xlabel="test error, %", title=name)
            axis.set_xticks([2, 5, 10, 20, 50, 90], [2, 5, 10, 20, 50, 90])
            axis.minorticks_off()
            axis.set_yticks([-i for i in range(len(RULES))], list(RULES))
            axis.legend(fontsize=9, loc="upper right")
        shown = OF_DEPTHS[1:]
        for axis, rule in zip(below.subplots(1, len(shown), sharey=True), shown, strict=True):
            own = found["digits", f"mlp, {DEPTHS[-1]} hidden", rule]
            for (layer, cosine), color in zip(list(own.gradient.items())[:-1], COLORS, strict=False):
                angle = degrees(cosine)
                epochs = np.arange(1, len(angle) + 1)
                axis.plot(epochs, np.median(angle, axis=1), color=color, label=layer)
                axis.fill_between(epochs, angle.min(axis=1), angle.max(axis=1), color=color, alpha=0.12, lw=0)
            axis.axhline(90, color="grey", lw=1, ls=":")
            axis.set(xlabel="epoch", ylim=(0, 120), yticks=(0, 30, 60, 90, 120))
            axis.set_title(rule, fontsize=9)
        below.axes[0].set_ylabel("angle to the exact gradient, degrees")
        below.axes[0].legend(fontsize=8)
        below.suptitle(f"digits, {DEPTHS[-1]} hidden layers: median and range over seeds", fontsize=10)
    return figure


def notes(rows: list[dict], found: dict[tuple, Trained], seeds: int, epochs: int) -> str:
    settings = list(dict.fromkeys((name, network) for name, network, _ in found))
    lines = [
        f"Each row: {seeds} seeds, {epochs} epochs (Fashion-MNIST half of them), at the rate with the best "
        "mean on held-out pictures. above exact: the error less the exact rule's, seed by seed, with its standard "
        "error. Angles in degrees between a layer's gradient and the exact one, of the mean cosine of the last "
        f"{LAST} epochs; largest: of hidden layers and seeds."
    ]
    for name, network in settings:
        best = sorted(
            (r for r in rows if (r["data"], r["network"]) == (name, network)), key=lambda r: r["test error %"]
        )
        lines.append(
            f"{name}, {network}, from the best: " + ", ".join(f"{r['rule']} {r['test error %']:.1f}" for r in best)
        )
    published = ", ".join(f"{rule} {error}" for rule, error in PUBLISHED.items())
    lines.append(
        f"BioTorch, LeNet on MNIST, prints errors of {published} %. Here (how much higher the second's error is, in "
        f"points; the same or reversed beyond {BEYOND} standard errors):"
    )
    lines += [order(found, *setting) for setting in settings]
    if 1 in DEPTHS:
        lines.append("Of one hidden layer feedback alignment and direct feedback are the same rule, drawn alike.")
    lines.append("Feedback alignment's angles on the digits, the largest of the last epochs of each seed:")
    lines += feedback_angles(found)
    edge = "; ".join(
        f"{r['data']} {r['network']} {r['rule']} {r['rate']:g}"
        for r in rows
        if experiments.at_edge(
            r["rate"], RULES[r["rule"]] * np.array(LENET_RATES if r["network"] == "lenet" else RATES)
        )
    )
    lines.append(f"The best rate is the first or the last tried for: {edge or 'none'}.")
    return experiments.paragraphs(*lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/learning_rules", seeds=8, epochs=20)
    found, todo = {}, jobs(options.epochs)
    with progress("learning rules", len(todo)) as advance, ThreadPoolExecutor(2) as pool:
        for done, own in enumerate(pool.map(lambda job: train(job, options.seeds), todo), start=1):
            found |= own
            advance(done, f"{todo[done - 1].data}, {todo[done - 1].network}")
    rows = table(found)
    experiments.write(options.out, rows, draw(found), notes(rows, found, options.seeds, options.epochs))


if __name__ == "__main__":
    main()
