#!/usr/bin/env python
"""The quantities of benchmark_quantities.py by PyTorch (torch.func) and BackPACK, next to ours.

    python scripts/benchmark_quantities_torch.py --ours results/benchmark_quantities.csv

Needs torch and backpack-for-pytorch, in whichever build suits the machine. What ours cost is read from the first
script's table, which was measured in another process. Every way is checked against ours before it is timed.
"""

import argparse
import csv
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
from benchmark_quantities import JACOBIAN, KERNEL, Problem, check, kernel_inputs, problem, rows_of, timed

from functional_nn import quantities
from functional_nn.lab import environment, experiments, require
from functional_nn.lab.timing import median_ratio


class Theirs(NamedTuple):
    """A quantity by PyTorch (torch.func) or BackPACK. comparable(result) is a list like `as_list` of ours, or None for
    random estimates.
    """

    quantity: str
    by: str
    run: Callable[[], Any]
    comparable: Callable[[Any], list] | None


def as_list(tree: Any) -> list:
    """Lists arrays in PyTorch's order: weights and bias by layer; Kronecker factors without the bias's row."""
    if not isinstance(tree, dict):
        return jax.tree.leaves(tree)
    arrays = []
    for own in tree.values():
        if isinstance(own, quantities.KroneckerFactors):
            arrays += [own.sensitivities, own.activations[:-1, :-1]]
        else:
            arrays += [*own["weights"].values(), own["bias"]]
    return arrays


def torch_ways(p: Problem) -> list[Theirs]:
    """Every quantity by PyTorch and BackPACK; the first is one plain gradient."""
    import backpack
    import torch
    from backpack import extensions
    from torch.func import functional_call, grad, jacrev, jvp, vmap

    def tensor(array):
        return torch.from_numpy(np.array(array))

    def model():
        arrays, modules = as_list(p.params), []
        for weights, bias in zip(arrays[::2], arrays[1::2], strict=True):
            layer = torch.nn.Linear(weights.shape[1], weights.shape[0])
            with torch.no_grad():
                layer.weight.copy_(tensor(weights))
                layer.bias.copy_(tensor(bias))
            modules += [layer, torch.nn.Tanh()]
        return torch.nn.Sequential(*modules[:-1])

    plain, measured, count = model(), torch.nn.CrossEntropyLoss(), len(p.inputs)
    params = {name: value.detach() for name, value in plain.named_parameters()}
    vector = dict(zip(params, map(tensor, as_list(p.vector)), strict=True))
    inputs, labels = tensor(p.inputs), tensor(p.targets).argmax(dim=1)
    few, for_kernel = inputs[:JACOBIAN], tensor(kernel_inputs(p))

    def gradient():
        return torch.autograd.grad(measured(plain(inputs), labels), list(plain.parameters()))

    def objective(params, x, t):
        return measured(functional_call(plain, params, (x,)), t)

    each = vmap(grad(lambda params, x, t: objective(params, x[None], t[None])), in_dims=(None, 0, 0))

    def gradients():
        return list(each(params, inputs, labels).values())

    def norms_of(gradients):
        return torch.sqrt(sum(g.flatten(1).square().sum(dim=1) for g in gradients))

    def clipped():
        found = gradients()
        scale = torch.clamp(p.max_norm / norms_of(found), max=1) / count
        return [torch.tensordot(scale, g, 1) for g in found]

    def variance():
        return [g.square().mean(dim=0) - g.mean(dim=0).square() for g in gradients()]

    def outputs(params, x):
        return torch.softmax(functional_call(plain, params, (x[None],))[0], dim=0)

    def jacobian(x):
        return list(vmap(jacrev(outputs), in_dims=(None, 0))(params, x).values())

    def kernel():
        flat = [j.flatten(2) for j in jacobian(for_kernel)]
        return sum(torch.einsum("qip,rjp->qrij", j, j) for j in flat)

    def product():
        return jvp(lambda params: grad(objective)(params, inputs, labels), (params,), (vector,))[1]

    extended, extended_loss = backpack.extend(model()), backpack.extend(torch.nn.CrossEntropyLoss())
    parameters = list(extended.parameters())

    def by_backpack(quantity, name, comparable):
        extension = getattr(extensions, name)()

        def run():
            for parameter in parameters:
                parameter.grad = None
            with backpack.backpack(extension):
                extended_loss(extended(inputs), labels).backward()
            return [getattr(parameter, extension.savefield) for parameter in parameters]

        return Theirs(quantity, f"BackPACK {name}", run, comparable)

    def scaled(scale):  # with a mean loss, BackPACK's gradient of one example is 1/N of ours
        return lambda found: [scale * x for x in found]

    def factors(found):  # of the weights; a bias repeats the first of them
        return [factor for factors in found[::2] for factor in factors]

    def func(quantity, run, comparable=list):
        return Theirs(quantity, "torch.func", run, comparable)

    return [
        Theirs("gradient", "torch.autograd", gradient, list),
        func("per_example_norms", lambda: norms_of(gradients()), lambda found: [found]),
        by_backpack("per_example_norms", "BatchL2Grad", lambda found: [count * torch.sqrt(sum(found))]),
        func("clipped_gradient", clipped),
        func("variance", variance),
        by_backpack("variance", "Variance", scaled(count**2)),
        func("second_moment", lambda: [g.square().mean(dim=0) for g in gradients()]),
        by_backpack("second_moment", "SumGradSquared", scaled(count)),
        func("per_example_gradients", gradients),
        by_backpack("per_example_gradients", "BatchGrad", scaled(count)),
        func(f"jacobian of {len(few)}", lambda: jacobian(few)),
        func(f"tangent_kernel of {KERNEL}", kernel, lambda found: [found]),
        by_backpack("gauss_newton_diagonal", "DiagGGNExact", scaled(1)),
        by_backpack("sampled_gauss_newton_diagonal", "DiagGGNMC", None),
        by_backpack("kfac", "KFAC", None),
        by_backpack("kflr", "KFLR", factors),
        func("hessian_vector_product", product, lambda found: list(found.values())),
    ]


def _with_threads(run: Callable, threads: int) -> Callable:
    import torch

    def call():
        torch.set_num_threads(threads)
        return run()

    return call


def at_its_best(run: Callable) -> tuple[Callable, int]:
    """Returns `run` with one thread or one for each core, whichever is faster, and the number of threads."""
    cores = int(environment.describe()["cores"])
    choices = {threads: _with_threads(run, threads) for threads in {1, cores}}
    began = time.perf_counter()
    choices[cores]()
    if time.perf_counter() - began > 1:  # large products, which use all cores well
        return choices[cores], cores
    seconds = {threads: min(times) for threads, times in timed(choices, 2).items()}
    best = min(seconds, key=seconds.get)
    return choices[best], best


def torch_arguments(description: str, first: str) -> argparse.Namespace:
    """The arguments of a script whose table goes with that of the script whose --out is `first`."""
    parser = experiments.parser(description, f"{first}_torch", rounds=7)
    parser.add_argument("--ours", type=Path, default=Path(f"{first}.csv"), help="the first script's table")
    return parser.parse_args()


def main() -> None:
    options = torch_arguments(__doc__, "results/benchmark_quantities")
    require("torch backpack-for-pytorch", "torch", "backpack")
    with options.ours.open(encoding="utf-8") as file:
        ours = {(row["sizes"], int(row["batch"]), row["quantity"]): row for row in csv.DictReader(file)}

    import torch

    # PyTorch warns at every call that BackPACK hooks into modules whose inputs need no gradient.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    table = []
    for name, batch in dict.fromkeys((sizes, batch) for sizes, batch, _ in ours):
        p = problem([int(size) for size in name.split("-")], batch)
        functions = {row.quantity: row for row in rows_of(p)}
        ways = torch_ways(p)
        gradient, _ = at_its_best(ways[0].run)
        for way in ways:
            error = "-"
            if way.comparable:
                mine = functions[way.quantity]
                expected = as_list(jax.jit(mine.ours)(*mine.args))
                found = [np.asarray(x.detach()) for x in way.comparable(way.run())]
                error = check(f"{way.quantity} of {p.name} by {way.by}", found, expected)
                del found, expected  # a gigabyte each
            call, threads = at_its_best(way.run)
            seconds = timed({"theirs": call, "gradient": gradient}, options.rounds)
            own, milliseconds = ours[name, batch, way.quantity], 1e3 * median(seconds["theirs"])
            table.append(
                {
                    "sizes": name,
                    "batch": batch,
                    "quantity": way.quantity,
                    "by": way.by,
                    "threads": threads,
                    "theirs ms": milliseconds,
                    "ours ms": float(own["ours ms"]),
                    "theirs / ours": milliseconds / float(own["ours ms"]),
                    "theirs / torch gradient": median_ratio(seconds["theirs"], seconds["gradient"]),
                    "ours / jax.grad": float(own["ours / jax.grad"]),
                    "apart": error,
                }
            )
    versions = f"PyTorch {torch.__version__}, eager, backpack-for-pytorch {metadata.version('backpack-for-pytorch')}"
    notes = "\n".join(
        [
            f"float32, {options.rounds} rounds; {versions}; in a process of its own, after ours.",
            "threads: one or as many as there are cores, whichever is faster in this row. ours: of the first table.",
            "theirs / torch gradient: taking turns with one plain loss and torch.autograd.grad.",
            "apart: the largest relative difference between theirs and ours, of any array; - for random estimates.",
        ]
    )
    experiments.write(options.out, table, notes=notes)


if __name__ == "__main__":
    main()
