#!/usr/bin/env python
"""What per-example, curvature and tangent-kernel quantities cost, next to autodiff's own way and to one gradient.

    python scripts/benchmark_quantities.py --rounds 7 --out results/benchmark_quantities

Each row has one quantity: by `functional_nn.quantities` or `curvature`; by jax's transformations, written as an expert
would; and one jax.grad. The three take turns, round after round. Read the ratios, which are medians over the rounds.
The targets, and whether they were met, are below the table. Where PyTorch and BackPACK are installed,
benchmark_quantities_torch.py then makes a second table.
"""

import argparse
import functools
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn import curvature, quantities
from functional_nn.gradients.quantities import Noise, NoiseScale
from functional_nn.lab import experiments
from functional_nn.lab.timing import loops_for, median_ratio, timed_in_turns

SIZES = (((64, 32, 10), 32), ((784, 256, 128, 10), 128), ((784, 1024, 1024, 10), 128))
KERNEL, JACOBIAN = 64, 16  # examples of the tangent kernel and of the Jacobian, whose results grow fast
LARGEST_HESSIAN = 5000  # parameters
TURN = 0.03  # seconds; a shorter call is repeated in a turn
SLOW = 6.0  # seconds; a call whose turns take longer has fewer of them, at least one
# Relative difference of each array, in float32. Both ways round sums of up to 1024 terms, and differences of such sums;
# a wrong formula is wrong in the first digit.
AGREEMENT = 1e-3
LOSS = fnn.losses.cross_entropy()


# What is measured -----------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A chain, its parameters, a batch, a direction in the parameters' space, and the median norm of a gradient."""

    network: fnn.Network
    params: Any
    inputs: jax.Array
    targets: jax.Array
    vector: Any
    max_norm: float

    @property
    def name(self) -> str:
        return "-".join(str(size) for size in self.network.sizes.values())

    @property
    def batch(self) -> tuple:
        return self.params, self.inputs, self.targets


def problem(sizes: Sequence[int], batch: int) -> Problem:
    network = fnn.multilayer(tuple(sizes), ("tanh",) * (len(sizes) - 2) + ("softmax",))
    params = network.init(jax.random.key(0), jnp.float32)
    inputs = jax.random.normal(jax.random.key(1), (batch, sizes[0]), jnp.float32)
    # The classes depend on the inputs, so that the mean gradient is larger than its noise.
    targets = fnn.one_hot(jnp.argmax(inputs[:, : sizes[-1]], axis=1), sizes[-1], jnp.float32)
    keys = jax.random.split(jax.random.key(2), len(jax.tree.leaves(params)))
    drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, jax.tree.leaves(params), strict=True)]
    vector = jax.tree.unflatten(jax.tree.structure(params), drawn)
    # Every second example is clipped.
    max_norm = float(jnp.median(quantities.per_example_norms(network, LOSS, params, inputs, targets)))
    return Problem(network, params, inputs, targets, vector, max_norm)


class Row(NamedTuple):
    """A quantity by us and by autodiff (None if it has none), both functions of `args`; or why it is skipped."""

    quantity: str
    ours: Callable | None
    autodiff: Callable | None
    args: tuple = ()
    skipped: str = ""


def rows_of(p: Problem) -> list[Row]:
    """Every quantity, computed in two ways."""
    network, params, inputs = p.network, p.params, p.inputs
    objective, examples = fnn.objective(network, LOSS), len(inputs)
    few, for_kernel = inputs[:JACOBIAN], kernel_inputs(p)
    auto = Autodiff(network, objective, p.max_norm)

    def ours(name, **options):
        return lambda *batch: getattr(quantities, name)(network, LOSS, *batch, **options)

    def without_loss(name):
        return lambda params, inputs: getattr(quantities, name)(network, None, params, inputs)

    def hessian_product(params, inputs, targets, vector):
        return curvature.hessian_vector_product(network, LOSS, params, inputs, targets, vector)

    def hessian(*batch):
        return curvature.hessian(network, LOSS, *batch)

    half = max(1, examples // 2)
    key = jax.random.key(4)
    with_key = (*p.batch, key)
    count = sum(x.size for x in jax.tree.leaves(params))
    large = "" if count <= LARGEST_HESSIAN else f"{count}^2 numbers are {_gigabytes(4 * count**2)}"
    return [
        Row("gradient", ours("gradient"), jax.grad(objective), p.batch),
        Row("per_example_norms", ours("per_example_norms"), auto.norms, p.batch),
        Row(f"per_example_norms, block={half}", ours("per_example_norms", block=half), auto.norms, p.batch),
        Row("clipped_gradient", ours("clipped_gradient", max_norm=p.max_norm), auto.clipped, p.batch),
        Row("variance", ours("variance"), auto.variance, p.batch),
        Row("second_moment", ours("second_moment"), auto.second_moment, p.batch),
        Row("noise_scale", ours("noise_scale"), auto.noise_scale, p.batch),
        Row("per_example_gradients", ours("per_example_gradients"), auto.gradients, p.batch),
        Row(f"jacobian of {len(few)}", without_loss("jacobian"), auto.jacobian, (params, few)),
        Row(f"tangent_kernel of {KERNEL}", without_loss("tangent_kernel"), auto.kernel, (params, for_kernel)),
        Row(
            f"tangent_kernel_trace of {KERNEL}",
            without_loss("tangent_kernel_trace"),
            auto.kernel_trace,
            (params, for_kernel),
        ),
        Row("gauss_newton_diagonal", ours("gauss_newton_diagonal"), auto.gauss_newton_diagonal, p.batch),
        Row("sampled_gauss_newton_diagonal", _keyed(ours, "sampled_gauss_newton_diagonal"), None, with_key),
        Row("kfac", _keyed(ours, "kfac"), None, with_key),
        Row("kflr", ours("kflr"), None, p.batch),
        Row("hessian_vector_product", hessian_product, auto.hessian_product, (*p.batch, p.vector)),
        Row("hessian", hessian, auto.hessian, p.batch, large),
    ]


def kernel_inputs(p: Problem) -> jax.Array:
    return jax.random.normal(jax.random.key(3), (KERNEL, p.inputs.shape[1]), jnp.float32)


def _keyed(ours: Callable, name: str) -> Callable:
    return lambda *given: ours(name, key=given[-1])(*given[:-1])


class Autodiff:
    """The same quantities by jax's own transformations."""

    def __init__(self, network: fnn.Network, objective: Callable, max_norm: float):
        self.network, self.objective, self.max_norm = network, objective, max_norm

    def gradients(self, params, inputs, targets):
        def of_example(x, t):
            return jax.grad(self.objective)(params, x[None], t[None])

        return jax.vmap(of_example)(inputs, targets)

    def norms(self, *batch):
        return jnp.sqrt(sum(_square_norms(self.gradients(*batch)).values()))

    def clipped(self, *batch):
        gradients = self.gradients(*batch)
        norms = jnp.sqrt(sum(_square_norms(gradients).values()))
        scale = jnp.minimum(1, self.max_norm / norms) / len(norms)
        return jax.tree.map(lambda g: jnp.tensordot(scale, g, 1), gradients)

    def second_moment(self, *batch):
        return jax.tree.map(lambda g: jnp.mean(g**2, axis=0), self.gradients(*batch))

    def variance(self, *batch):
        return jax.tree.map(lambda g: jnp.mean(g**2, axis=0) - jnp.mean(g, axis=0) ** 2, self.gradients(*batch))

    def noise_scale(self, *batch):
        gradients = self.gradients(*batch)
        squares = {name: jnp.mean(square) for name, square in _square_norms(gradients).items()}
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)
        mean_squares = {name: sum(jnp.sum(g**2) for g in jax.tree.leaves(own)) for name, own in mean.items()}
        examples = len(batch[1])

        def noise(square, square_of_mean):
            trace = (square - square_of_mean) / (1 - 1 / examples)
            signal = square_of_mean - trace / examples
            return Noise(jnp.where(signal > 0, trace / signal, jnp.inf), signal, trace)

        layers = {name: noise(squares[name], mean_squares[name]) for name in squares}
        return NoiseScale(noise(sum(squares.values()), sum(mean_squares.values())), layers)

    def jacobian(self, params, inputs):
        def of_example(x):
            return jax.jacrev(lambda params: self.network.apply(params, x[None])[0])(params)

        return jax.vmap(of_example)(inputs)

    def kernel(self, params, inputs):
        def products(j):
            j = j.reshape(*j.shape[:2], -1)
            return jnp.einsum("qip,rjp->qrij", j, j)

        return sum(map(products, jax.tree.leaves(self.jacobian(params, inputs))))

    def kernel_trace(self, params, inputs):
        def products(j):
            j = j.reshape(len(j), -1)
            return j @ j.T

        return sum(map(products, jax.tree.leaves(self.jacobian(params, inputs))))

    def gauss_newton_diagonal(self, params, inputs, targets):
        last = self.network.output.name

        def net_inputs(params, x):
            return self.network.forward(params, x[None]).net_inputs[last][0]

        def of_example(example):
            x, t = example
            j = jax.jacrev(net_inputs)(params, x)
            h = jax.hessian(lambda n: -jnp.sum(t * jax.nn.log_softmax(n)))(net_inputs(params, x))
            return jax.tree.map(lambda j: jnp.sum(j * jnp.tensordot(h, j, 1), axis=0), j)

        # A few examples at a time: the Jacobians of all would take gigabytes.
        found = lax.map(of_example, (inputs, targets), batch_size=8)
        return jax.tree.map(lambda d: jnp.mean(d, axis=0), found)

    def hessian_product(self, params, inputs, targets, vector):
        return jax.jvp(lambda p: jax.grad(self.objective)(p, inputs, targets), (params,), (vector,))[1]

    def hessian(self, params, inputs, targets):
        flat, unravel = ravel_pytree(params)
        return jax.hessian(lambda x: self.objective(unravel(x), inputs, targets))(flat)


def _square_norms(gradients) -> dict[str, jax.Array]:
    # {layer: (Q,)} of per-example gradients
    def square(g):
        return jnp.sum(g.reshape(len(g), -1) ** 2, axis=1)

    return {name: sum(map(square, jax.tree.leaves(own))) for name, own in gradients.items()}


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.3g} GiB"


# Measuring ------------------------------------------------------------------------------------------------------------


class Program(NamedTuple):
    """A compiled function and its arguments; seconds of compiling; bytes of temporaries, and with the results."""

    call: Callable
    args: tuple
    compile_seconds: float
    temporary: int
    peak: int


def compiled(function: Callable, args: tuple) -> Program:
    lowered = jax.jit(lambda *given: function(*given)).lower(*args)  # a new function: nothing is cached
    began = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - began
    memory = program.memory_analysis()
    temporary = memory.temp_size_in_bytes
    return Program(program, args, seconds, temporary, temporary + memory.output_size_in_bytes)


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call, by name and round; the calls take turns, back and forth."""
    numbered = {name: functools.partial(_unnumbered, call) for name, call in calls.items()}
    for call in numbered.values():
        jax.block_until_ready(call(0))  # lays out memory and fills caches
    loops = {name: loops_for(call, TURN) for name, call in numbered.items()}
    return timed_in_turns(numbered, rounds, loops=loops, back_and_forth=True, slow=SLOW)


def _unnumbered(call: Callable[[], Any], _: int) -> Any:
    return call()


def relative_difference(found, expected) -> float:
    """Returns the largest relative difference, in norm, between corresponding arrays of two trees."""

    @jax.jit
    def relative(a, b):
        difference = jnp.where(a == b, 0, a - b)  # infinities agree
        size = jnp.linalg.norm(jnp.ravel(b))
        return jnp.linalg.norm(jnp.ravel(difference)) / jnp.where(size == 0, 1, size)

    found, expected = (jax.tree.leaves(tree) for tree in (found, expected))
    return max(float(relative(jnp.asarray(a), jnp.asarray(b))) for a, b in zip(found, expected, strict=True))


def check(what: str, found, expected) -> float:
    error = relative_difference(found, expected)
    if not error <= AGREEMENT:
        raise AssertionError(f"{what}: the two ways are {error:.2g} apart, which is not rounding; nothing was timed")
    return error


COLUMNS = (
    "sizes",
    "batch",
    "quantity",
    "ours ms",
    "autodiff ms",
    "autodiff / ours",
    "ours / jax.grad",
    "compile s",
    "autodiff compile s",
    "temp KiB",
    "autodiff temp KiB",
    "temp / jax.grad",
    "peak KiB",
    "autodiff peak KiB",
    "peak / jax.grad",
    "apart",
)


def measure(p: Problem, rounds: int, advance: Callable[[str], None]) -> tuple[list[dict], list[str]]:
    """Makes a row for each quantity, and a line for each that was skipped."""
    gradient = compiled(jax.grad(fnn.objective(p.network, LOSS)), p.batch)
    measured, skipped = [], []
    for row in rows_of(p):
        if row.skipped:
            skipped.append(f"{row.quantity} of {p.name} not measured: {row.skipped}")
        else:
            measured.append(_measured(p, row, gradient, rounds))
        advance(f"{p.name} {row.quantity}")
    return measured, skipped


def _measured(p: Problem, row: Row, gradient: Program, rounds: int) -> dict[str, Any]:
    programs = {"ours": compiled(row.ours, row.args), "jax.grad": gradient}
    if row.autodiff:
        programs["autodiff"] = compiled(row.autodiff, row.args)
        found, expected = (programs[name].call(*row.args) for name in ("ours", "autodiff"))
        error = check(f"{row.quantity} of {p.name}", found, expected)
        del found, expected  # a gigabyte each
    seconds = timed(
        {name: functools.partial(program.call, *program.args) for name, program in programs.items()}, rounds
    )
    ours, auto = programs["ours"], programs.get("autodiff")

    def kib(count):
        return count / 1024

    return dict(
        zip(
            COLUMNS,
            (
                p.name,
                len(p.inputs),
                row.quantity,
                1e3 * median(seconds["ours"]),
                1e3 * median(seconds["autodiff"]) if auto else "-",
                median_ratio(seconds["autodiff"], seconds["ours"]) if auto else "-",
                median_ratio(seconds["ours"], seconds["jax.grad"]),
                ours.compile_seconds,
                auto.compile_seconds if auto else "-",
                kib(ours.temporary),
                kib(auto.temporary) if auto else "-",
                ours.temporary / gradient.temporary,
                kib(ours.peak),
                kib(auto.peak) if auto else "-",
                ours.peak / gradient.peak,
                error if auto else "-",
            ),
            strict=True,
        )
    )


# Targets --------------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A bound on a column of one quantity's rows, or on its inverse. at: the sizes for which it is set."""

    text: str
    quantity: str
    column: str
    bound: float
    at_least: bool = False
    at: str = "all sizes"
    inverse: bool = False


NORMS, CLIPPED, KERNELS = "per_example_norms", "clipped_gradient", f"tangent_kernel of {KERNEL}"
TARGETS = (
    Target("norms / one jax.grad", NORMS, "ours / jax.grad", 1.2, at="middle"),
    Target("norms by vmap(grad) / norms", NORMS, "autodiff / ours", 50, at_least=True, at="middle"),
    Target("clipped / one jax.grad", CLIPPED, "ours / jax.grad", 1.3),
    Target("variance / one jax.grad", "variance", "ours / jax.grad", 1.4),
    Target("through the Jacobian / tangent kernel", KERNELS, "autodiff / ours", 50, at_least=True),
    Target("per-example gradients / vmap(grad)", "per_example_gradients", "autodiff / ours", 1.0, inverse=True),
    Target("Hessian-vector product / jvp(grad)", "hessian_vector_product", "autodiff / ours", 1.05, inverse=True),
    Target("temporaries of norms / gradient's", NORMS, "temp / jax.grad", 1.5, at="two larger"),
    Target("peak of norms / gradient's", NORMS, "peak / jax.grad", 1.5, at="two larger"),
    Target("temporaries of clipped / gradient's", CLIPPED, "temp / jax.grad", 1.5, at="two larger"),
    Target("peak of clipped / gradient's", CLIPPED, "peak / jax.grad", 1.5, at="two larger"),
)


def verdicts(rows: list[dict], names: list[str]) -> list[str]:
    """Writes a line for each target: the number at each size that it is set for, and whether it is met."""
    sizes = {"all sizes": names, "middle": [names[len(names) // 2]], "two larger": names[-2:]}
    lines = []
    for target in TARGETS:
        said = []
        for row in rows:
            if row["quantity"] == target.quantity and row["sizes"] in sizes[target.at]:
                value = 1 / row[target.column] if target.inverse else row[target.column]
                met = value >= target.bound if target.at_least else value <= target.bound
                said.append(f"{row['sizes']}: {value:.3g} {'met' if met else 'MISSED'}")
        sign = ">=" if target.at_least else "<="
        lines.append(f"  {target.text} {sign} {target.bound:g}; " + ", ".join(said))
    return lines


def notes(rows: list[dict], names: list[str], skipped: list[str], rounds: int) -> str:
    return "\n".join(
        [
            f"float32, {rounds} rounds; tanh, softmax, cross_entropy. All times are of compiled programs.",
            "jax.grad: of the whole batch, also next to Jacobian and kernels, which are of the stated examples.",
            "autodiff: vmap(jax.grad), vmap(jacrev), jvp of jax.grad, jax.hessian, and what is made of them;",
            "gauss_newton_diagonal by jacrev and hessian, eight examples at a time. clipped_gradient: at median norm.",
            f"kfac, sampled_gauss_newton_diagonal: one sample. What would take over {SLOW:g} s has fewer rounds.",
            "temp: the compiler's temporaries; peak: with the results. They differ for a gradient: the compiler keeps",
            "activations and sensitivities in the buffers of its results until those are written; only what finds no",
            "room there is temporary. Norms have no such room: their results are a number an example.",
            f"apart: the largest relative difference of the two ways, of any array; above {AGREEMENT:g}, not timed.",
            *skipped,
            "",
            "targets:",
            *verdicts(rows, names),
        ]
    )


def torch_table(script: str, options: argparse.Namespace, *packages: str) -> None:
    """Runs the script of the same name that ends in _torch, if all packages are installed.

    It has a process of its own: PyTorch's threads keep spinning between calls, which would slow whatever is timed next.
    """
    if not all(importlib.util.find_spec(name) for name in packages):
        print(f"not installed: {', '.join(packages)}; there is no second table")
        return
    path = Path(script)
    words = ["--ours", f"{options.out}.csv", "--out", f"{options.out}_torch", "--rounds", str(options.rounds)]
    subprocess.run([sys.executable, path.with_name(f"{path.stem}_torch.py"), *words], check=True)


def main() -> None:
    options = experiments.arguments(__doc__, "results/benchmark_quantities", rounds=7)
    rows, skipped, names = [], [], []
    problems = [problem(*size) for size in SIZES]
    with experiments.counted("measuring", sum(len(rows_of(p)) for p in problems)) as advance:
        for p in problems:
            names.append(p.name)
            measured, left_out = measure(p, options.rounds, advance)
            rows += measured
            skipped += left_out
    experiments.write(options.out, rows, notes=notes(rows, names, skipped, options.rounds))
    torch_table(__file__, options, "torch", "backpack")


if __name__ == "__main__":
    main()
