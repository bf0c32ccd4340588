#!/usr/bin/env python
"""The largest eigenvalue of the Hessian along gradient descent: does it rise to 2 / rate and stay there? Digits.

    python scripts/sharpness.py --seeds 2 --epochs 4000 --out results/sharpness

On a quadratic, gradient descent moves away where lambda_max > 2 / rate (Hagan P3.3). On networks Cohen et al. 2021
(arXiv 2103.00065) found that lambda_max (the sharpness) rises by itself until it reaches 2 / rate. Then it hovers there
while the loss continues to fall, though not in every update: the edge of stability. Here a 64-32-32-10 tanh network
with linear outputs and half the squared error learns all digits by full-batch gradient descent at several rates.
Gradient descent has no memory, so that `fit` may stop every few epochs for a measurement and continue from the
parameters. lambda_max is computed by Lanczos from Hessian-vector products; its residual shows that it has converged.
"""

import jax
import numpy as np

import functional_nn as fnn
from functional_nn import training
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

NETWORK = fnn.multilayer((64, 32, 32, 10), ("tanh", "tanh", "linear"))
LOSS = fnn.losses.half_sum_square_error("mean")
RATES = {0.12: VERMILION, 0.1: ORANGE, 0.08: GREEN, 0.06: BLUE, 0.03: PURPLE}
EVERY, STEPS = 20, 20  # epochs between measurements; Lanczos steps of one
NEAR = 0.95  # of 2 / rate: from here on lambda_max counts as being there


def follow(task, rate: float, seed: int, epochs: int) -> dict:
    """Trains. Returns the loss before each epoch (E,); at every EVERY-th epoch lambda_max and its residual (M,)."""

    @jax.jit
    def sharpness(params):
        found = fnn.curvature.extreme_eigenvalues(
            NETWORK, LOSS, params, task.inputs, task.targets, key=jax.random.key(1), steps=STEPS, block=None
        )
        return found.largest, found.residuals[1]

    key, optimizer = jax.random.key(seed), fnn.optimizers.gd(rate)
    params, losses, measured, epoch = NETWORK.init(key), [], [], 0
    while True:
        measured.append((epoch, *map(float, sharpness(params))))
        if epoch >= epochs:
            break
        result = fnn.fit(
            NETWORK,
            LOSS,
            optimizer,
            task.inputs,
            task.targets,
            key=key,
            params=params,
            epochs=min(EVERY, epochs - epoch),
            chunk=EVERY,
            plan=training.batch(),
        )
        losses.append(result.history.training_loss)
        params, epoch = result.params, epoch + len(result.history.epoch)
        if result.status == "diverged":
            break
    accuracy = float(training.evaluate(NETWORK, LOSS, params, *task.test, correct=fnn.losses.largest)[1])
    at, largest, residuals = map(np.array, zip(*measured, strict=True))
    return {
        "loss": np.concatenate(losses),
        "at": at,
        "largest": largest,
        "ratio": largest * rate / 2,
        "residual": residuals / np.abs(largest),
        "status": result.status,
        "test accuracy": accuracy,
    }


def row(rate: float, seed: int, run: dict) -> dict:
    """Makes a row about the last quarter of training and the way there. ratio: lambda_max * rate / 2."""
    late, ratio = run["at"] >= 0.75 * run["at"][-1], run["ratio"]
    below = np.flatnonzero(ratio < NEAR)
    since = 0 if below.size == 0 else below[-1] + 1  # from this measurement on it stays near or above
    rises = np.diff(run["loss"][3 * len(run["loss"]) // 4 :]) > 0
    return {
        "rate": rate,
        "seed": seed,
        "2 / rate": 2 / rate,
        "lambda_max before": run["largest"][0],
        "lowest": run["largest"].min(),
        "after": run["largest"][-1],
        "ratio, last quarter": ratio[late].mean(),
        "its sd": ratio[late].std(),
        "its largest": ratio[late].max(),
        f"above {NEAR:g} from epoch": int(run["at"][since]) if since < len(ratio) else "never",
        "loss rises, last quarter": float(np.mean(rises)) if rises.size else np.nan,
        "largest residual / lambda_max": run["residual"].max(),
        "loss": run["loss"][-1],
        "test accuracy": run["test accuracy"],
        "ended": run["status"],
    }


def draw(runs: dict):
    """Draws loss, lambda_max and 2 / rate against epochs; lambda_max against rate times epochs; for the first seed."""
    with plt.rc_context(STYLE):
        figure, (loss, sharpness, flow) = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
        for rate, color in RATES.items():
            run = runs[rate, 0]
            loss.plot(run["loss"], color=color, lw=1, label=f"rate {rate:g}")
            sharpness.plot(run["at"], run["largest"], color=color)
            sharpness.axhline(2 / rate, color=color, ls="--", lw=1)
            flow.plot(run["at"] * rate, run["largest"], color=color)
        sharpness.plot([], [], color="grey", label=r"$\lambda_{max}$")
        sharpness.plot([], [], color="grey", ls="--", lw=1, label="2 / rate, in each rate's colour")
        top = 1.15 * max(2 / rate for rate in RATES)
        loss.set(yscale="log", xlabel="epoch", ylabel="training loss", title="loss before each update")
        sharpness.set(xlabel="epoch", ylabel="largest eigenvalue of the Hessian", ylim=(0, top), title="sharpness")
        flow.set(xlabel="rate x epochs", ylim=(0, top), title="sharpness in the time of the gradient flow")
        loss.legend()
        sharpness.legend()
    return figure


def notes(rows: list[dict]) -> str:
    lines = ["ratio: lambda_max * rate / 2, 1 at the edge of stability; means and ranges over the seeds, last quarter:"]
    for rate in RATES:
        own = [r for r in rows if r["rate"] == rate]
        ratios, since = [r["ratio, last quarter"] for r in own], {r[f"above {NEAR:g} from epoch"] for r in own}
        from_epoch = ", ".join(sorted(map(str, since)))
        lines.append(
            f"rate {rate:g}: {np.mean(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f}), within a run ± "
            f"{max(r['its sd'] for r in own):.4f}; for good above {NEAR:g} from epoch: {from_epoch}; "
            f"the loss rises in {np.mean([r['loss rises, last quarter'] for r in own]):.0%} of the updates"
        )
    at_edge = [r for r in rows if abs(r["ratio, last quarter"] - 1) <= 1 - NEAR]
    if at_edge:
        far = max(abs(r["ratio, last quarter"] - 1) for r in at_edge)
        lines.append(f"{len(at_edge)} of {len(rows)} runs end at the edge, with a mean ratio within {far:.2%} of 1.")
    steeper = [r for r in rows if r["after"] > r["lowest"] * 1.05]
    lines.append(f"lambda_max first falls and then rises by more than 5 % in {len(steeper)} of {len(rows)} runs.")
    worst = max(r["largest residual / lambda_max"] for r in rows)
    lines.append(
        f"Lanczos, {STEPS} products: the largest residual is {worst:.1e} of lambda_max, the bound on its error."
    )
    return "\n".join(lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/sharpness", seeds=2, epochs=4000)
    task, runs = experiments.load("digits"), {}
    with progress("gradient descent", len(RATES) * options.seeds) as advance:
        for rate in RATES:
            for seed in range(options.seeds):
                advance(len(runs), f"rate {rate:g}, seed {seed}")
                runs[rate, seed] = follow(task, rate, seed, options.epochs)
    rows = [row(*which, run) for which, run in runs.items()]
    experiments.write(options.out, rows, draw(runs), notes(rows))


if __name__ == "__main__":
    main()
