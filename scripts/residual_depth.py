#!/usr/bin/env python
"""Do residuals and normalization let depth train? Sensitivities by block and short training, of 2 to 16 blocks; digits.

    python scripts/residual_depth.py --seeds 3 --epochs 4 --out results/residual_depth

A block is two 3 x 3 convolutions, each normalized or not (He et al. 2016, Fig. 2). A residual network adds the block's
input to them; the plain one is the same network, with the same initial weights, without these additions. On the
backward pass a plain block multiplies sensitivities by its own derivative J, so that they change by about one factor a
block. A residual block multiplies by 1 + J, so that they cannot vanish but can grow. Yang et al. 2019 (arXiv
1902.08129): in plain networks batch normalization itself makes them grow with depth, whatever the initial weights.

Each network then learns some digits for a few epochs by mini-batch gradient descent, at the best of four rates. Every
update takes loss, gradient and sensitivities from one backward sweep; the sensitivities of the first update are those
at initial weights.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLACK, BLUE, GREEN, VERMILION
from functional_nn.lab.plots import STYLE, plt
from functional_nn.lab.progress import progress

DEPTHS, WIDTH, EXAMPLES, BATCH = (2, 4, 8, 16), 8, 384, 16
NORMS = {"none": BLACK, "group_norm(4)": BLUE, "layer_norm": GREEN, "batch_norm": VERMILION}
RATES = (0.03, 0.1, 0.3, 1.0)
KINDS = {"plain": "--", "residual": "-"}
CHANCE = np.log(10)  # the cross-entropy of ten equally likely classes
HARDLY = 0.95  # of chance: a network with a higher loss has hardly learned


def network(kind: str, norm: str, depth: int) -> fnn.Network:
    """A network for 8 x 8 pictures. In a plain one, each block's sum leaves out what the block reads."""
    built = fnn.presets.get(f"residual(depth={depth}, width={WIDTH}, norm={norm}, stages=1)")((8, 8, 1), 10)
    if kind == "residual":
        return built
    layers = (
        dataclasses.replace(layer, sources=layer.sources[:1], connections=layer.connections[:1])
        for layer in built.layers
    )
    return fnn.Network(built.inputs, tuple(layers))


def measure(network: fnn.Network, task, starts, orders) -> tuple[np.ndarray, np.ndarray]:
    """Returns ||dF/dn|| of each block's sum (rates, seeds, updates, blocks), and the loss (rates, seeds, updates), both
    on the batch of each update, before it.

    starts: the parameters of each seed. orders (seeds, updates, BATCH): the examples of its batches.
    """
    x, t = jnp.asarray(task.inputs[:EXAMPLES].reshape(-1, 8, 8, 1)), jnp.asarray(task.targets[:EXAMPLES])
    blocks = [layer.name for layer in network.layers if layer.name.removeprefix("block").isdigit()]

    def train(rate, start, order):
        optimizer = fnn.optimizers.gd(rate)

        def update(state, batch):
            found = fnn.backpropagate(network, task.loss, state.params, x[batch], t[batch])
            norms = jnp.stack([jnp.linalg.norm(found.sensitivities[name]) for name in blocks])
            return optimizer.update(state, found.gradients), (norms, found.value)

        return jax.lax.scan(update, optimizer.init(start), order)[1]

    def each_seed(rate):
        # One after another: under vmap, different kernels become grouped convolutions, which are slow on CPU.
        return jax.lax.map(lambda seed: train(rate, *seed), (starts, orders))

    return jax.tree.map(np.asarray, jax.jit(lambda rates: jax.lax.map(each_seed, rates))(jnp.array(RATES)))


def first_over_last(norms: np.ndarray) -> np.ndarray:
    """Returns the first block's norm over the last's (seeds,), from (seeds, blocks); nan where the last is 0."""
    return norms[:, 0] / np.where(norms[:, -1] > 0, norms[:, -1], np.nan)


def row(kind: str, norm: str, depth: int, norms: np.ndarray, losses: np.ndarray, epochs: int) -> dict:
    """Makes a row of medians over the seeds; training is at the rate of the lowest loss in the last epoch."""
    by_epoch = np.nan_to_num(losses, nan=np.inf).reshape(*losses.shape[:2], epochs, -1).mean(axis=-1)
    best = int(experiments.best_rate(by_epoch[..., -1]))
    ratios, last = first_over_last(norms[0, :, 0]), by_epoch[best, :, -1]
    ratio = float(np.median(ratios))
    return {
        "kind": kind,
        "norm": norm,
        "blocks": depth,
        "first": float(np.median(norms[0, :, 0, 0])),
        "last": float(np.median(norms[0, :, 0, -1])),
        "first / last": ratio,
        "lowest": float(ratios.min()),
        "highest": float(ratios.max()),
        "factor a block": ratio ** (1 / (depth - 1)),
        "after training": float(np.median(first_over_last(norms[best, :, -1]))),
        "best rate": RATES[best],
        "loss, first epoch": float(np.median(by_epoch[best, :, 0])),
        "last epoch": float(np.median(last)),
        "least": float(last.min()),
        "most": float(last.max()),
    }


def draw(rows: list[dict], profiles: dict):
    """Draws norms by block at the largest depth, plain and residual; the ratio and the loss against depth."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(12, 8.4), layout="constrained")
        for axis, kind in zip(axes[0], KINDS, strict=True):
            for norm, color in NORMS.items():
                found = profiles[kind, norm]
                blocks = range(1, found.shape[1] + 1)
                axis.plot(blocks, np.median(found, axis=0), KINDS[kind], color=color, marker=".", label=norm)
                axis.fill_between(blocks, found.min(axis=0), found.max(axis=0), color=color, alpha=0.15, lw=0)
            axis.set(
                yscale="log", xlabel="block (the last is nearest the output)", title=f"{kind}, {len(blocks)} blocks"
            )
        axes[0, 0].set_ylabel(r"$\|\partial F/\partial n\|$ of the block's sum, initial weights")
        axes[0, 1].sharey(axes[0, 0])
        for kind, norm in profiles:
            own = [r for r in rows if (r["kind"], r["norm"]) == (kind, norm)]
            style = {"color": NORMS[norm], "ls": KINDS[kind], "marker": "."}
            axes[1, 0].plot([r["blocks"] for r in own], [r["first / last"] for r in own], **style)
            axes[1, 1].plot([r["blocks"] for r in own], [r["last epoch"] for r in own], **style)
        axes[1, 0].set(yscale="log")
        for axis in axes[1]:
            axis.set(xscale="log", xlabel="blocks")
            axis.set_xticks(DEPTHS, DEPTHS)
            axis.minorticks_off()
        axes[1, 0].set(ylabel="first block's over the last's", title="sensitivities at the start, first over last")
        axes[1, 1].set(ylabel="training loss", title="loss in the last epoch, each at its best rate")
        axes[1, 1].axhline(CHANCE, color="grey", lw=1, ls=":")
        axes[1, 1].set_ylim(bottom=0)
        handles = [plt.Line2D([], [], color=color, label=norm) for norm, color in NORMS.items()]
        handles += [plt.Line2D([], [], color="grey", ls=style, label=kind) for kind, style in KINDS.items()]
        handles.append(plt.Line2D([], [], color="grey", lw=1, ls=":", label="ln 10: chance"))
        figure.legend(handles=handles, loc="outside right center")
    return figure


def notes(rows: list[dict], epochs: int) -> str:
    """Says what the rows show for the largest depth, and from the smallest to it."""
    found = {(r["kind"], r["norm"], r["blocks"]): r for r in rows}
    least, most = DEPTHS[0], DEPTHS[-1]
    lines = [
        "first, last: median over seeds of ||dF/dn|| of the first and the last block's sum, at initial weights; "
        "lowest, highest: of their ratio; after training: the ratio at the last update, nan where the last block's are "
        f"all 0. Training: {epochs} epochs of {EXAMPLES // BATCH} updates; losses are means over an epoch's batches; "
        f"chance is ln 10 = {CHANCE:.4g}."
    ]
    for kind in KINDS:
        factors = ", ".join(f"{norm} {found[kind, norm, most]['factor a block']:.3g}" for norm in NORMS)
        ends = ", ".join(f"{norm} {found[kind, norm, most]['first / last']:.3g}" for norm in NORMS)
        lines.append(f"{kind}, {most} blocks: factor a block towards the input {factors}; in all {ends}.")
    for norm in NORMS:
        losses, starts, ends = (
            "; ".join(
                f"{kind} {found[kind, norm, least][what]:.3g} to {found[kind, norm, most][what]:.3g}" for kind in KINDS
            )
            for what in ("last epoch", "first / last", "after training")
        )
        lines.append(
            f"{norm}, from {least} to {most} blocks: loss in epoch {epochs} {losses}. First over last, initial "
            f"weights: {starts}; after training: {ends}."
        )
    alone, both = (
        ", ".join(f"{norm} {found[kind, norm, most]['last epoch']:.3g}" for norm in NORMS if norm != "none")
        for kind in KINDS
    )
    neither, residuals = (found[kind, "none", most]["last epoch"] for kind in KINDS)
    lines.append(
        f"Loss with {most} blocks: neither residuals nor normalization {neither:.3g}; residuals alone {residuals:.3g}; "
        f"normalization alone {alone}; both {both}."
    )
    deepest = [r for r in rows if r["blocks"] == most]
    hardly, deeper = (
        ", ".join(f"{r['kind']} {r['norm']}" for r in deepest if holds(r)) or "none"
        for holds in (
            lambda r: not r["last epoch"] <= HARDLY * CHANCE,
            lambda r: r["most"] < found[r["kind"], r["norm"], least]["least"],
        )
    )
    lines.append(f"With {most} blocks these hardly learn (above {HARDLY:.0%} of chance): {hardly}.")
    lines.append(f"With {most} blocks these end lower than with {least}, whichever the seeds: {deeper}.")
    edge = ", ".join(f"{r['kind']} {r['norm']} {r['blocks']}" for r in rows if r["best rate"] == RATES[-1])
    lines.append(f"Where the largest rate is the best, a larger one may be better still: {edge or 'nowhere'}.")
    best = min(deepest, key=lambda r: r["last epoch"])
    lines.append(f"The lowest loss with {most} blocks is {best['kind']} {best['norm']}'s, {best['last epoch']:.3g}.")
    return "\n".join(lines)


def main() -> None:
    options = experiments.arguments(__doc__, "results/residual_depth", seeds=3, epochs=4)
    task, found, profiles = experiments.load("digits"), {}, {}
    keys = jax.random.split(jax.random.key(0), options.seeds)
    shuffled = jax.random.split(jax.random.key(1), (options.seeds, options.epochs))
    orders = jax.vmap(jax.vmap(lambda key: jax.random.permutation(key, EXAMPLES)))(shuffled)
    orders = orders.reshape(options.seeds, -1, BATCH)
    with progress("residual depth", len(KINDS) * len(NORMS) * len(DEPTHS)) as advance:
        for norm in NORMS:
            for depth in DEPTHS:
                starts = jax.vmap(network("residual", norm, depth).init)(keys)  # plain networks have the same
                for kind in KINDS:
                    advance(len(found), f"{kind}, {norm}, {depth} blocks")
                    measured = measure(network(kind, norm, depth), task, starts, orders)
                    found[kind, norm, depth] = row(kind, norm, depth, *measured, options.epochs)
                    profiles[kind, norm] = measured[0][0, :, 0]  # those of the largest depth, which comes last, remain
    rows = [found[kind, norm, depth] for kind in KINDS for norm in NORMS for depth in DEPTHS]
    experiments.write(options.out, rows, draw(rows, profiles), notes(rows, options.epochs))


if __name__ == "__main__":
    main()
