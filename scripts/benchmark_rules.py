#!/usr/bin/env python
"""What a learning rule costs: a step next to the exact one; and 1000 networks, rules x depths x seeds, in one call.

    python scripts/benchmark_rules.py --out results/benchmark_rules

A step is the gradient by the rule and Adam's update, compiled as one program. All rules of a network take turns in one
process; the ratio to the exact step is the median over --rounds. Then `fit_population` trains five rules x five depths
x forty --seeds on digits, 20 --epochs, in one call, compilation included. It spreads the networks over all CPU cores;
the environment variable JAX_NUM_CPU_DEVICES sets another number.
"""

import functools
import time
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import datasets, experiments
from functional_nn.lab.timing import median_ratio, timed_in_turns

ONE_SWEEP = (
    "exact",
    "feedback_alignment",
    "direct_feedback",
    "sign_symmetric",
    "sign_symmetric(random)",
    "sign_symmetric(fixed)",
    "kolen_pollack",
    "noisy(0.1)",
    "rounded(4)",
    "rounded(4, stochastic=false)",
    "dropped_back(0.5)",
    "clipped_back(1)",
    "surrogate",
)
OTHERS = (
    "weight_mirror",
    "local_loss",
    "forward_gradient",
    "weight_perturbation",
    "node_perturbation",
    "spsa",
    "target_propagation",
    "predictive_coding",
)
COLUMNS = ("network", "batch", "rule", "step us", "step / exact", "compile ms", "temporary KiB")
RULES = ("exact", "feedback_alignment", "direct_feedback", "sign_symmetric", "noisy(0.1)")
DEPTHS, SEEDS, EPOCHS = 5, 40, 20
LOOPS = 20  # steps that are timed together


def chain(*sizes: int) -> fnn.Network:
    return fnn.multilayer(sizes, ("tanh",) * (len(sizes) - 2) + ("softmax",))


NETWORKS = {
    "64-64-64-10": (chain(64, 64, 64, 10), 32),
    "784-256-128-10": (chain(784, 256, 128, 10), 128),
    "lenet": (fnn.presets.get("lenet")((28, 28, 1), 10), 32),
}


def steps(network: fnn.Network, batch: int, rounds: int, name: str) -> list[dict]:
    """Makes a row for each rule that is defined for the network."""
    dense = name != "lenet"
    x = jax.random.normal(jax.random.key(1), (batch, *network.shapes[network.inputs[0][0]]))
    data = training.Batch({network.inputs[0][0]: x}, fnn.one_hot(jnp.arange(batch) % 10, 10))
    optimizer, key = optimizers.adam(1e-3), jax.random.key(2)
    programs, compiling, calls = {}, {}, {}
    for rule in (*ONE_SWEEP, *(OTHERS if dense else ())):
        params = fnn.rules.begin(rule, network, network.init(jax.random.key(0)), key)
        step = training.train_step(network, "cross_entropy", optimizer, rule=rule)
        given = optimizer.init(params), data._replace(key=key)
        began = time.perf_counter()
        program = jax.jit(step).lower(*given).compile()
        compiling[rule] = time.perf_counter() - began
        programs[rule], calls[rule] = program, functools.partial(one_step, program, given)
        calls[rule](0)
    seconds = timed_in_turns(calls, rounds, loops=LOOPS)
    rows = []
    for rule, program in programs.items():
        temporary = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
        figures = (
            f"{1e6 * median(seconds[rule]):.4g}",
            f"{median_ratio(seconds[rule], seconds['exact']):.3f}",
            f"{1e3 * compiling[rule]:.0f}",
            f"{temporary / 1024:.0f}",
        )
        rows.append(dict(zip(COLUMNS, (name, batch, rule, *figures), strict=True)))
    return rows


def one_step(program, given: tuple, _: int):
    return program(*given)


def population(epochs: int, seeds: int) -> str:
    """Trains the population by one call, and says what that took."""
    digits = datasets.load("digits")
    training_part, held_out = datasets.split(digits, test_fraction=0.2, seed=0)
    scaled = [(np.asarray(some.inputs) / 16, np.asarray(some.labels)) for some in (training_part, held_out)]
    members = training.grid(rule=list(RULES), depth=list(range(1, DEPTHS + 1)), seed=range(seeds), learning_rate=[3e-3])
    began = time.perf_counter()
    found = training.fit_population(
        lambda depth: chain(64, *[32] * depth, 10),
        "cross_entropy",
        "adam",
        members,
        scaled[0],
        key=jax.random.key(0),
        epochs=epochs,
        validation=scaled[1],
    )
    seconds = time.perf_counter() - began
    accuracy = found.history.validation_accuracy[-1].reshape(len(RULES), DEPTHS, seeds).mean(axis=-1)
    lines = [
        f"{len(found)} networks ({len(RULES)} rules x {DEPTHS} depths x {seeds} seeds), {epochs} epochs of "
        f"{len(scaled[0][1])} digits, one call, compilation included: {seconds:.0f} s; mean held-out accuracy",
        "",
        "  ".join(["rule".rjust(20), *(f"depth {depth}" for depth in range(1, DEPTHS + 1))]),
    ]
    for rule, row in zip(RULES, accuracy, strict=True):
        lines.append("  ".join([rule.rjust(20), *(f"{value:7.3f}" for value in row)]))
    return "\n".join(lines)


def main() -> None:
    experiments.start(all_cores=True)
    defaults = {"rounds": 25, "epochs": EPOCHS, "seeds": SEEDS}
    parser = experiments.parser(__doc__, "results/benchmark_rules", **defaults)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default all")
    options = parser.parse_args()
    rows = [row for name in options.networks for row in steps(*NETWORKS[name], options.rounds, name)]
    notes = [population(options.epochs, options.seeds), "", f"float32, {options.rounds} rounds"]
    experiments.write(options.out, rows, notes="\n".join(notes))


if __name__ == "__main__":
    main()
