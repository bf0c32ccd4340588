#!/usr/bin/env python
"""The gradients and norms of benchmark_blocks.py by PyTorch and torch.func, next to ours.

    python scripts/benchmark_blocks_torch.py --ours results/benchmark_blocks.csv

Needs torch, in whichever build suits the machine. What ours cost is read from the first script's table, which was
measured in another process. Every way is checked against ours before it is timed. PyTorch runs a network from its
description, in channels-first order; the parameters stay in our order, and so do the gradients.
"""

import csv
import re
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import numpy as np
from benchmark_blocks import LOSS, pictures
from benchmark_quantities import check, timed
from benchmark_quantities_torch import at_its_best, torch_arguments

import functional_nn as fnn
from functional_nn import quantities
from functional_nn.lab import experiments, require
from functional_nn.lab.timing import median_ratio


def apply(network: fnn.Network, params: Any, x: Any) -> Any:
    """Computes the last layer's net inputs (Q, S) by PyTorch, from our parameters and x (Q, H, W, C), all tensors.

    Batch normalization uses the batch's own statistics.
    """
    import torch
    from torch.nn import functional

    signals = {network.inputs[0][0]: x.movedim(-1, 1)}  # channels first
    for layer in network.layers:
        own, n = params[layer.name], 0
        for source, by in layer.reads:
            read = signals[source]
            w = own["weights"].get(source) if by.outer else None
            n = n + _read(by.name, read, w)
        if "bias" in own:
            n = n + own["bias"].reshape(1, -1, *[1] * (n.ndim - 2))
        learned = own.get("learned", {})
        if layer is network.output:
            return n
        name, constants = layer.activation.name.partition("(")[0], layer.activation.name
        if name == "relu":
            a = torch.relu(n)
        elif name == "linear":
            a = n
        elif name == "max_pool":
            a = functional.max_pool2d(n, 2)
        elif name == "group_norm":
            a = functional.group_norm(n, int(re.search(r"\d+", constants)[0]), learned["gain"], learned["shift"], 1e-5)
        elif name == "layer_norm":
            over = functional.layer_norm(n.movedim(1, -1), n.shape[1:2], learned["gain"], learned["shift"], 1e-5)
            a = over.movedim(-1, 1)
        elif name == "batch_norm":
            a = functional.batch_norm(n, None, None, learned["gain"], learned["shift"], training=True, eps=1e-5)
        else:
            raise ValueError(f"{constants} has no PyTorch form here")
        signals[layer.name] = a
    raise AssertionError("the output is among the layers")


def _read(name: str, x: Any, w: Any) -> Any:
    from torch.nn import functional

    kind = name.partition("(")[0]
    if kind == "conv":
        stride = re.search(r"stride=\((\d+)", name)
        padding = re.search(r"padding=(\d+)", name)
        constants = {"stride": int(stride[1]) if stride else 1, "padding": int(padding[1]) if padding else 0}
        return functional.conv2d(x, w.movedim(-1, 1), **constants)
    if kind == "full":
        return functional.linear(x.movedim(1, -1).flatten(1), w)
    if kind == "dense":
        return functional.linear(x, w)
    if kind == "mean_pool":
        return x.mean(dim=(2, 3))
    if kind == "identity":
        return x
    raise ValueError(f"{name} has no PyTorch form here")


def tensors(tree: Any) -> Any:
    """Returns the tree as tensors that require gradients."""
    import torch

    return jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), tree)


def gradients(network: fnn.Network, params: Any, x: Any, targets: Any) -> list:
    """Returns the mean cross-entropy's gradients, in the order of our parameters' leaves; zeros where there is none."""
    import torch

    leaves = jax.tree.leaves(params)
    value = torch.nn.functional.cross_entropy(apply(network, params, x), targets)
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def _ways(network: fnn.Network, params: Any, x: Any, targets: Any) -> dict[str, dict[str, Callable]]:
    """Returns {quantity: {by: function}}."""
    import torch
    from torch.func import grad, vmap

    free = jax.tree.map(lambda leaf: leaf.detach(), params)

    def objective(params, x, t):
        return torch.nn.functional.cross_entropy(apply(network, params, x[None]), t[None])

    each = vmap(grad(objective), in_dims=(None, 0, 0))

    def norms_of(found):
        return torch.sqrt(sum(g.flatten(1).square().sum(dim=1) for g in found))

    return {
        "gradient": {"torch.autograd": lambda: gradients(network, params, x, targets)},
        "norms": {"torch.func": lambda: norms_of(jax.tree.leaves(each(free, x, targets)))},
    }


def main() -> None:
    options = torch_arguments(__doc__, "results/benchmark_blocks")
    require("torch>=2", "torch")
    with options.ours.open(encoding="utf-8") as file:
        ours = {(row["network"], row["asked"]): row for row in csv.DictReader(file)}

    import torch

    # torch.func warns of what it finds slow.
    warnings.filterwarnings("ignore", category=UserWarning)
    table = []
    for p in pictures():
        params, inputs, targets = p.batch()
        given = tensors(params), torch.tensor(np.asarray(inputs)), torch.tensor(np.asarray(targets)).argmax(dim=1)
        expected = {
            "gradient": jax.tree.leaves(fnn.value_and_grad(p.network, LOSS)(params, inputs, targets)[1]),
            "norms": [quantities.per_example_norms(p.network, LOSS, params, inputs, targets)],
        }
        ways = _ways(p.network, *given)
        gradient, _ = at_its_best(ways["gradient"]["torch.autograd"])
        for asked, by in ((asked, by) for asked, several in ways.items() for by in several.items()):
            found = by[1]()
            found = [np.asarray(x.detach()) for x in (found if isinstance(found, list) else [found])]
            error = check(f"{asked} of {p.name} by {by[0]}", found, expected[asked])
            call, threads = at_its_best(by[1])
            seconds = timed({"theirs": call, "gradient": gradient}, options.rounds)
            own, milliseconds = float(ours[p.name, asked]["ours ms"]), 1e3 * median(seconds["theirs"])
            table.append(
                {
                    "network": p.name,
                    "examples": p.examples,
                    "asked": asked,
                    "by": by[0],
                    "threads": threads,
                    "theirs ms": milliseconds,
                    "ours ms": own,
                    "theirs / ours": milliseconds / own,
                    "theirs / torch gradient": median_ratio(seconds["theirs"], seconds["gradient"]),
                    "apart": error,
                }
            )
    notes = "\n".join(
        [
            f"float32, {options.rounds} rounds; PyTorch {torch.__version__}, eager; in its own process, after ours.",
            "threads: one or as many as there are cores, whichever is faster in this row. ours: of the first table.",
            "theirs / torch gradient: taking turns with one plain loss and torch.autograd.grad.",
            "apart: the largest relative difference between theirs and ours, of any array.",
        ]
    )
    experiments.write(options.out, table, notes=notes)


if __name__ == "__main__":
    main()
