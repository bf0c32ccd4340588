#!/usr/bin/env python
"""The pages' measured numbers come from the tables in results/: this writes them, or says which are out of date.

    python scripts/readme_numbers.py              # after a benchmark: writes README.md and the other PAGES again
    python scripts/readme_numbers.py --check      # writes nothing; shows what is stale, and exits 1 if anything is

Each function under "What is said" is a paragraph, and stands on one of PAGES between `<!-- numbers: NAME -->` and
`<!-- end of numbers -->`, which a reader does not see. To move a paragraph to another file, move its two marks there
and list the file in PAGES. Change the words here, not between the marks.

A number is looked up in results/TABLE.csv, by its column and what its row has in other columns. What a script sums up
itself (a median over the problems that both solve) is read from the notes that it wrote under the table, in
results/TABLE.txt, by a pattern that must match once. Measured numbers have two significant digits, three where the
first is a 1, so that rounding moves none by more than 2.5 %; counts are whole.
"""

import argparse
import contextlib
import csv
import difflib
import math
import os
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "results/README.md", "scripts/pages/demonstrations.md")  # under ROOT
WIDTH = 120
MARK = "<!-- numbers:"
BLOCK = re.compile(MARK + r" (?P<name>\w+) -->\n(?P<text>.*?)(?P<end>(?P<indent> *)<!-- end of numbers -->)", re.DOTALL)
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


class Measured(float):
    """A number that an f-string rounds as all measured numbers are: 0.395 is 0.40, 1.034 is 1.03, 393.6 is 390.

    Counts are written {count:d}, or {count:,d}.
    """

    def __format__(self, spec: str) -> str:
        if spec:
            return format(int(self), spec)
        digits = 3 if f"{float(self):e}".lstrip("-").startswith("1") else 2
        place = digits - 1 - int(f"{float(self):.{digits - 1}e}".partition("e")[2])  # digits after the point
        return f"{round(float(self), place):.{max(place, 0)}f}"


class Tables:
    """The tables of a folder. Where one lacks what is asked of it: a LookupError that names table, column and keys."""

    def __init__(self, folder: Path):
        self.folder = folder

    def rows(self, table: str, column: str | None = None, **keys: str) -> list[dict[str, str]]:
        """The rows with these cells, at least one; a blank in the name of a key's column is written "_"."""
        path = self.folder / f"{table}.csv"
        if not path.exists():
            raise LookupError(f"there is no table {path}")
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
        named = {name.replace(" ", "_"): name for name in columns}
        unknown = [name for name in keys if name not in named] + [column] * (column not in (None, *columns))
        if unknown:
            raise LookupError(f"{path} has no column {unknown[0]!r}, only {', '.join(map(repr, columns))}")
        found = [row for row in rows if all(row[named[name]] == cell for name, cell in keys.items())]
        if not found:
            raise LookupError(f"{path}, column {column!r}: there is no row with {keys}")
        return found

    def row(self, table: str, column: str | None = None, **keys: str) -> dict[str, str]:
        """The one row with these cells."""
        found = self.rows(table, column, **keys)
        if len(found) > 1:
            raise LookupError(f"{self.folder / table}.csv, column {column!r}: {len(found)} rows have {keys}; name one")
        return found[0]

    def column(self, table: str, column: str, **keys: str) -> list[Measured]:
        """The numbers of a column, in the rows with these cells."""
        return [self._number(row, table, column, keys) for row in self.rows(table, column, **keys)]

    def cell(self, table: str, column: str, **keys: str) -> Measured:
        """The number of a column, in the one row with these cells."""
        return self._number(self.row(table, column, **keys), table, column, keys)

    def _number(self, row: dict[str, str], table: str, column: str, keys: dict[str, str]) -> Measured:
        with contextlib.suppress(ValueError):
            if math.isfinite(number := Measured(row[column])):
                return number
        raise LookupError(f"{self.folder / table}.csv, column {column!r}, {keys}: {row[column]!r} is not a number")

    def note(self, table: str, pattern: str) -> list[Measured]:
        """The numbers that stand at each "#" of `pattern`, which otherwise is what the notes say, word for word."""
        path = self.folder / f"{table}.txt"
        if not path.exists():
            raise LookupError(f"there is no table {path}")
        number = r"(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)"
        found = list(re.finditer(re.escape(pattern).replace(re.escape("#"), number), path.read_text(encoding="utf-8")))
        if len(found) != 1:
            raise LookupError(f"{path} says {len(found)} times {pattern!r}, where # is a number; expected once")
        return [Measured(cell.replace(",", "")) for cell in found[0].groups()]

    def cores(self, table: str) -> str:
        """Of the machine that the table was measured on, in words."""
        (count,) = self.note(table, ", cores #,")
        return f"{in_words(count)} core{'s' * (count != 1)}"


def in_words(count: float) -> str:
    return WORDS[int(count)] if count < len(WORDS) else f"{count:d}"


def span(numbers: Iterable[float]) -> str:
    """From the least to the largest."""
    numbers = list(numbers)
    return f"{Measured(min(numbers))} to {Measured(max(numbers))}"


def listed(numbers: Iterable[float]) -> str:
    """One after the other."""
    *most, last = [f"{Measured(number)}" for number in numbers]
    return f"{', '.join(most)} and {last}"


def share(found: float, of: float) -> str:
    return f"all {Measured(of):d}" if found == of else f"{Measured(found):d} of {Measured(of):d}"


# What is said ---------------------------------------------------------------------------------------------------------
# Links are as from ROOT. Words that compare (faster, less) are left out: which they are, the table says next time.


def demo(t: Tables) -> str:
    answered = t.column("demonstrations", "answered ms (median)")
    return f"""{in_words(len(answered)).capitalize()} pages in your browser, computed by the library as you move the
    sliders, without a network. Each answers in a median of {span(answered)} ms on {t.cores("demonstrations")}
    ([demonstrations.txt](results/demonstrations.txt)); `functional-nn demo --sweep runs/digits-sweep` shows a sweep of
    your own."""


def proved(t: Tables) -> str:
    faults = [row for row in t.rows("planted_faults", "mistake") if row["mistake"] != "the right one"]
    caught = sum(row["compare"] == "differ" and bool(row["where"]) for row in faults)
    rows = t.rows("worked_examples")

    def come_out(*provenances: str) -> str:
        of = [row["ok"] == "True" for row in rows if row["provenance"] in provenances]
        return share(sum(of), len(of))

    shifted = sum(float(row["shift"]) != 0 for row in rows)
    mended = sum(row["provenance"] == "printed, mended" for row in rows)
    return f"""It catches and places {share(caught, len(faults))} classic mistakes that were planted on purpose
    ([planted_faults.csv](results/planted_faults.csv)). The library reproduces what the texts print:
    {come_out("printed", "printed, mended")} printed results ({mended} with a slip corrected; {shifted} differ by one in
    the last digit, where the text continues with rounded numbers), {come_out("recomputed")} recomputed from their data,
    {come_out("exercise")} answers to exercises and {come_out("equation")} equations
    ([worked_examples.csv](results/worked_examples.csv))."""


def quantities(t: Tables) -> str:
    table, sizes = "benchmark_quantities", "784-256-128-10"
    ours = t.cell(table, "ours / jax.grad", sizes=sizes, quantity="per_example_norms")
    theirs = t.cell(table, "autodiff / ours", sizes=sizes, quantity="per_example_norms")
    kernel = t.cell(table, "autodiff / ours", sizes=sizes, quantity="tangent_kernel of 64")
    batch = t.row(table, sizes=sizes, quantity="per_example_norms")["batch"]
    return f"""The norms of {batch} examples' gradients take {ours} of the time of one `jax.grad`; `vmap(jax.grad)`
    takes {theirs} times as long as the norms. The tangent kernel through the Jacobian takes {kernel} times as long as
    ours ({sizes}; [benchmark_quantities.txt](results/benchmark_quantities.txt))."""


def population(t: Tables) -> str:
    networks, epochs, seconds = t.note("population_minibatch", "# networks x # epochs in # s")
    plain, step = (
        t.cell("benchmark_populations", "/ fit_population", sizes="64-32-10", trained_by=way)
        for way in ("plain vmap", "jitted step in a loop")
    )
    return f"""{networks:d} networks train for {epochs:d} epochs each in {seconds} s on
    {t.cores("population_minibatch")} ([population_minibatch.txt](results/population_minibatch.txt)); a plain
    `jit(vmap(fit))` costs {plain} times as much, a jitted step in a loop {step} times
    ([benchmark_populations.txt](results/benchmark_populations.txt))."""


def rules(t: Tables) -> str:
    networks, *grid = t.note("benchmark_rules", "\n# networks (# rules x # depths x # seeds), ")
    (seconds,) = t.note("benchmark_rules", ", one call, compilation included: # s;")
    return f"""{networks:d} networks ({grid[0]:d} rules, {grid[1]:d} depths, {grid[2]:d} seeds) in {seconds} s on
    {t.cores("benchmark_rules")} ([benchmark_rules.txt](results/benchmark_rules.txt))."""


def second_order_medians(t: Tables) -> list[Measured]:
    """Our time over SciPy's, optimistix's, and optimistix's inside jit."""
    return [
        t.note("benchmark_second_order", f"\nall / {whose}, by the same test: # (# to #) over # of #;")[0]
        for whose in ("SciPy", "optimistix", "optimistix, in jit")
    ]


def ten_methods(t: Tables) -> str:
    scipys, optimistixs, _ = second_order_medians(t)
    return f"""In the median they take {scipys} of SciPy's time with jitted callbacks, and {optimistixs} of
    optimistix's, to the same end ([benchmark_second_order.txt](results/benchmark_second_order.txt))."""


def tracing(t: Tables) -> str:
    run, trace = (
        span(t.column("benchmark_gradients", column, engine="manual"))
        for column in ("run / jax.grad", "trace / jax.grad")
    )
    return f"""Hand-written reverse mode and `jax.grad` do the same arithmetic, and XLA makes nearly the same program of
    both: expect equal run time (ours is {run} of `jax.grad`'s), not a faster one. What the recursion saves is tracing,
    which takes {trace} of the time: [results/benchmark_gradients.txt](results/benchmark_gradients.txt). The
    gain of writing backpropagation down is another: one sweep leaves the sensitivity of every example in every
    layer."""


def pytorchs_quantities(t: Tables) -> str:
    table, keys = "benchmark_quantities_torch", {"sizes": "784-256-128-10"}

    def times(quantity: str, by: str) -> Measured:
        return t.cell(table, "theirs / ours", quantity=quantity, by=by, **keys)

    norms = times("per_example_norms", "torch.func"), times("per_example_norms", "BackPACK BatchL2Grad")
    variances = times("variance", "torch.func"), times("variance", "BackPACK Variance")
    formed = t.cell("benchmark_quantities", "autodiff / ours", quantity="per_example_gradients", **keys)
    batch = t.row(table, quantity="gradient", **keys)["batch"]
    return f"""PyTorch's ways to the same quantities, relative to ours ({keys["sizes"]}, {batch} examples): norms by
    torch.func take {norms[0]} times as long, by BackPACK, which does not form the gradients either (Goodfellow 2015,
    arXiv 1510.01799), {norms[1]} times; variances {listed(variances)} times; KFAC by BackPACK
    {times("kfac", "BackPACK KFAC")} times; one gradient by eager PyTorch {times("gradient", "torch.autograd")} times.
    Where the examples' gradients themselves are formed, `vmap(jax.grad)` takes {formed} of our time:
    [results/benchmark_quantities_torch.txt](results/benchmark_quantities_torch.txt)."""


def convolutions(t: Tables) -> str:
    networks = ("LeNet", "32-64 channels", "residual")

    def each(asked: str, column: str, table: str = "benchmark_blocks") -> list[Measured]:
        return [t.cell(table, column, network=network, asked=asked) for network in networks]

    gradient = each("gradient", "ours / autodiff")
    together = t.cell("benchmark_blocks", "ours / autodiff", network="LeNet", asked="gradients of 32")
    return f"""Convolutional networks on pictures of 28 x 28, compared with the same written plainly in `jax.lax`:
    one gradient takes {gradient[0]} (LeNet), {gradient[1]} (32-64 channels) and {gradient[2]} (residual, group norm) of
    `jax.value_and_grad`'s time, norms of all examples' gradients {listed(each("norms", "ours / autodiff"))} of
    `vmap(jax.grad)`'s, which is {listed(each("norms", "ours / gradient"))} of one gradient; tracing takes
    {span(each("gradient", "trace / autodiff"))}; 32 LeNets {together} of `jit(vmap(...))`:
    [results/benchmark_blocks.txt](results/benchmark_blocks.txt). One gradient takes eager PyTorch
    {listed(each("gradient", "theirs / ours", "benchmark_blocks_torch"))} of our time, norms by torch.func
    {listed(each("norms", "theirs / ours", "benchmark_blocks_torch"))}:
    [results/benchmark_blocks_torch.txt](results/benchmark_blocks_torch.txt)."""


def sequences(t: Tables) -> str:
    transformers = ("transformer 64 x 2", "transformer 128 x 4")
    networks = (*transformers, "lstm", "elman")

    def each(asked: str, column: str, of: tuple[str, ...] = networks) -> list[Measured]:
        return [t.cell("benchmark_blocks_sequences", column, network=network, asked=asked) for network in of]

    gradient = each("gradient", "ours / autodiff")
    return f"""Sequences of 96 tokens, compared with the same written plainly: one gradient takes {gradient[0]}
    (transformer 64 x 2, 32 tokens), {gradient[1]} (128 x 4, 64), {gradient[2]} (LSTM of 64 neurons, 64 steps)
    and {gradient[3]} (tanh) of `jax.value_and_grad`'s time, norms of all sequences' gradients
    {listed(each("norms", "ours / gradient"))} of one such gradient, clipped ones
    {listed(each("clipped", "ours / gradient", transformers))} of the transformers'; tracing
    {listed(each("gradient", "trace / autodiff"))}:
    [results/benchmark_blocks_sequences.txt](results/benchmark_blocks_sequences.txt)."""


def character_model(t: Tables) -> str:
    table = "transformer"
    parameters, *_ = t.note(table, ": # parameters, batches of # windows")
    updates, *_ = t.note(table, "\ntransformer, # updates: # bits a held-out character after # minutes")
    ours = {"model": f"transformer, {int(updates)} updates"}
    bits, minutes, processor = (
        t.cell(table, column, **ours) for column in ("bits a character", "minutes", "processor minutes")
    )
    gzip, gram, xz = (
        t.cell(table, "bits a character", model=model)
        for model in ("gzip, held out alone", "3-gram", "xz, added to the rest")
    )
    return f"""A transformer of {parameters:,d} parameters reads the standard library's source to {bits} bits a held-out
    character in {minutes} minutes ({processor} of processor); gzip takes {gzip} bits, a 3-gram {gram}, xz that has read
    the rest {xz}: [results/transformer.txt](results/transformer.txt)."""


def training(t: Tables) -> str:
    table, small, large = "benchmark_training", ("64-32-10", "64-128-10"), "784-256-128-10"
    networks = " and ".join(small)

    def each(trained_by: str, column: str, sizes: Iterable[str] = small) -> str:
        return listed([t.cell(table, column, sizes=size, trained_by=trained_by) for size in sizes])

    def pictures(trained_by: str) -> Measured:
        return t.cell(table, "/ products", sizes=large, trained_by=trained_by)

    ours, theirs = (t.row(f"{table}_kernels", sizes=small[0], fit_of=of) for of in ("this commit", "the commit before"))
    kinds = ("product", "fusion", "copy", "other")
    made, before = (Measured(sum(int(row[kind]) for kind in kinds)) for row in (ours, theirs))
    return f"""With the program already compiled, 50 epochs of digits by `fit` take
    {each("fit, again", "/ jitted step")} ({networks}) of the time of a jitted step in a Python loop, and
    {each("fit, again", "/ scikit-learn")} of scikit-learn's; the first run, compilation included, takes
    {each("fit, first", "/ jitted step")} of the loop's. An update of 64-32-10 is {made:d} kernels, before it was
    {before:d}. An epoch of Fashion-MNIST, {large} in batches of 128 by Adam, takes {pictures("fit, again")} times what
    its products alone take, eager PyTorch {pictures("PyTorch eager")} and scikit-learn
    {pictures("scikit-learn MLPClassifier")} times: [results/benchmark_training.txt](results/benchmark_training.txt)."""


def larger_than_memory(t: Tables) -> str:
    table = "larger_than_memory"
    file = {"run": "file in chunks"}
    size, peak, before = (t.cell(table, f"{column}, MiB", **file) for column in ("data", "peak", "before"))
    arrays = {"run": "arrays of float32, 784 an example"}
    beyond, own = t.cell(table, "beyond / data", **arrays), t.cell(table, "data, MiB", **arrays)
    return f"""A file of {size:d} MiB trains within {peak:d} MiB, {before:d} of them Python, JAX and the compiled
    program; {own:d} MiB of float32 in memory take {beyond} times their size, themselves included:
    [larger_than_memory.txt](results/larger_than_memory.txt)."""


def populations(t: Tables) -> str:
    table, small, large = "benchmark_populations", {"sizes": "64-32-10"}, {"sizes": "64-128-64-10"}

    def costs(sizes: dict[str, str]) -> list[Measured]:
        ways = ("plain vmap", "jitted step in a loop", "PyTorch eager, 1 thread", "floor")
        return [t.cell(table, "/ fit_population", trained_by=way, **sizes) for way in ways]

    ours, larger = (t.row(table, trained_by="fit_population", **sizes) for sizes in (small, large))
    plain, step, pytorch, floor = costs(small)
    us, counts = (t.column("benchmark_populations_sizes", column, **small) for column in ("us", "networks"))
    apart = Measured(100 * (max(us) - min(us)) / (max(us) + min(us)))
    return f"""Per update and network, over a population of {ours["networks"]} networks 64-32-10 in batches of
    {ours["batch"]}: a plain `jit(vmap(fit))` of the same costs {plain} times as much, a jitted step in a loop {step}
    times, eager PyTorch {pytorch} times, the bare arithmetic {floor}; over one of 64-128-64-10 in batches of
    {larger["batch"]}, where the products themselves take most of the time, {listed(costs(large))}:
    [results/benchmark_populations.txt](results/benchmark_populations.txt). From {min(counts):d} to {max(counts):d}
    networks the cost of each is the same within +-{apart} %:
    [results/benchmark_populations_sizes.txt](results/benchmark_populations_sizes.txt)."""


def standard_functions(t: Tables) -> str:
    pairs = {
        "levenberg_marquardt": "lm",
        "bfgs": "BFGS",
        "lbfgs": "L-BFGS-B",
        "conjugate_gradient": "CG",
        "newton": "Newton-CG",
    }
    found = [t.note("standard_functions", f"\n{us} / {them}: # (# to #) over # of #") for us, them in pairs.items()]
    lm, bfgs, lbfgs, cg, newton = (ratio for ratio, *_ in found)
    return f"""On {found[0][-1]:d} functions of More, Garbow and Hillstrom from the published starts, the ratio of our
    evaluations to SciPy's is in the median {lm} for Levenberg-Marquardt, {bfgs} BFGS, {lbfgs} L-BFGS, {cg}
    conjugate gradients, {newton} Newton (against Newton-CG):
    [results/standard_functions.txt](results/standard_functions.txt)."""


def cutest(t: Tables) -> str:
    pairs = {"newton": "trust-exact", "bfgs": "BFGS", "lbfgs": "L-BFGS-B", "conjugate_gradient": "CG"}
    problems, _, most = t.note("cutest", "\n# problems of # to # variables;")

    def solved(ours: str) -> list[str]:
        return [f"{t.cell('cutest', 'solved', solver=solver):d}" for solver in (ours, f"SciPy {pairs[ours]}")]

    newton, bfgs, lbfgs, cg = map(solved, pairs)
    time = [
        t.note("cutest", f"\n{ours} / SciPy {theirs}, of the # that both solve, medians: evaluations #, time #\n")[-1]
        for ours, theirs in pairs.items()
    ]
    return f"""CUTEst has {problems:d} unconstrained problems of at most {most:d} variables. With default settings
    Newton solves {newton[0]} (SciPy's trust-exact {newton[1]}), BFGS {bfgs[0]} ({bfgs[1]}), L-BFGS {lbfgs[0]}
    ({lbfgs[1]}), conjugate gradients {cg[0]} ({cg[1]}), in {listed(time)} of SciPy's time, compiled:
    [results/cutest.txt](results/cutest.txt)."""


def nist(t: Tables) -> str:
    ours, strict, loose = (
        t.note("nist_strd", f"\n{who}: 6 digits or more in # of # runs") for who in ("ours", "SciPy", "SciPy, 1e-8")
    )
    to_strict, to_loose = (
        t.note("nist_strd", f"ours / {who}, median of the # in which both have 6 digits: #")[-1]
        for who in ("SciPy", "SciPy, 1e-8")
    )
    least = min(t.note("nist_strd", "\nleast digits, curve_fit: #, digits of standard errors: #"))
    return f"""On NIST's certified regressions Levenberg-Marquardt, nothing tuned, finds 6 digits or more in
    {share(*ours)} runs, with {to_strict} of the residual evaluations of MINPACK at tolerances of 1e-15
    ({share(*strict)}), and {to_loose} of those at 1e-8 ({share(*loose)}); `curve_fit` has at least {least} digits of
    every parameter and standard error: [results/nist_strd.txt](results/nist_strd.txt)."""


def second_order(t: Tables) -> str:
    scipys, optimistixs, in_jit = second_order_medians(t)
    problem = "network 1-15-1, 40 examples, 256 starts, "
    lanes, on_one = (
        span(t.column("benchmark_second_order", "ours / it", problem=problem + on, solved_by="minimize, 256 times"))
        for on in ("2 devices", "1 device")
    )
    return f"""Compiled, side by side, to the same end, our methods take in the median {scipys} of SciPy's time with
    jitted callbacks and {optimistixs} of optimistix's ({in_jit} where both are called inside `jit`); 256 starts of
    Levenberg-Marquardt by `restarts` {lanes} of one after the other on two devices, {on_one} on one:
    [results/benchmark_second_order.txt](results/benchmark_second_order.txt)."""


def hagan_menhaj(t: Tables) -> str:
    cg, bp = "CG (FR, golden section)", "BP (variable rate)"

    def times(method: str, column: str) -> str:
        return span(t.column("hagan_menhaj", column, method=method))

    return f"""On problems like Hagan and Menhaj's, Fletcher-Reeves conjugate gradients take {times(cg, "time/LM")}
    times Levenberg-Marquardt's time to the goal, and gradient descent with a variable rate {times(bp, "time/LM")} times
    ({times(cg, "flops/LM")} times, and {times(bp, "flops/LM")} times its flops):
    [results/hagan_menhaj.txt](results/hagan_menhaj.txt)."""


def second_order_digits(t: Tables) -> str:
    def over_adam(loss: str, to: str) -> Measured:
        lbfgs, adam = (
            t.cell("second_order_digits", f"s to {to}", loss=loss, method=method)
            for method in ("lbfgs", "adam, batches of 32")
        )
        return Measured(lbfgs / adam)

    entropy, square = (
        [over_adam(loss, to) for to in ("0.01", "0.0001")] for loss in ("cross_entropy", "mean_square_error")
    )
    return f"""On digits, L-BFGS brings cross-entropy to a hundredth and to 1e-4 in {listed(entropy)} of tuned
    mini-batch Adam's time, and square error in {listed(square)}:
    [results/second_order_digits.txt](results/second_order_digits.txt)."""


TEXTS = (
    demo,
    proved,
    quantities,
    population,
    rules,
    ten_methods,
    tracing,
    pytorchs_quantities,
    convolutions,
    sequences,
    character_model,
    training,
    larger_than_memory,
    populations,
    standard_functions,
    cutest,
    nist,
    second_order,
    hagan_menhaj,
    second_order_digits,
)


# Into the pages -------------------------------------------------------------------------------------------------------


def written(page: str, folder: str, tables: Tables) -> str:
    """The page with each text between its marks made again; `folder` is the page's, seen from ROOT."""
    texts = {text.__name__: text for text in TEXTS}
    results = os.path.relpath("results", folder or ".")

    def made(block: re.Match) -> str:
        name, indent = block["name"], block["indent"]
        words = " ".join(texts[name](tables).split()).replace("](results/", f"]({results}/")
        lines = textwrap.wrap(
            words,
            WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return f"{MARK} {name} -->\n" + "\n".join(lines) + f"\n{block['end']}"

    return BLOCK.sub(made, page)


def check_marks(pages: dict[str, str]) -> None:
    """Each text stands on one page, once, each mark has its end, and there are no others."""
    texts = [text.__name__ for text in TEXTS]
    names = [block["name"] for page in pages.values() for block in BLOCK.finditer(page)]
    if len(names) != sum(page.count(MARK) for page in pages.values()):
        raise LookupError(f"a mark '{MARK} NAME -->' does not stand at the end of its line, or has no end")
    if unknown := set(names).difference(texts):
        raise LookupError(f"there is no text {unknown.pop()!r}, only {', '.join(texts)}")
    for name in texts:
        if (found := names.count(name)) != 1:
            raise LookupError(f"the text {name!r} stands {found} times on {', '.join(pages)}; expected once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; show what is stale, and exit 1 if any is")
    parser.add_argument("--results", type=Path, help="the folder of the tables; default OUT/results")
    parser.add_argument("--out", type=Path, default=ROOT, help="the folder that has the pages; default this checkout")
    options = parser.parse_args()
    tables = Tables(options.results or options.out / "results")
    before = {page: (options.out / page).read_text(encoding="utf-8") for page in PAGES}
    try:
        check_marks(before)
        after = {page: written(text, os.path.dirname(page), tables) for page, text in before.items()}
    except LookupError as error:
        sys.exit(f"{parser.prog}: {error}")
    stale = [page for page in PAGES if before[page] != after[page]]
    for page in stale:
        old, new = before[page].splitlines(keepends=True), after[page].splitlines(keepends=True)
        sys.stdout.writelines(difflib.unified_diff(old, new, page, f"{page}, from the tables", n=0))
        if not options.check:
            (options.out / page).write_text(after[page], encoding="utf-8")
    if stale and options.check:
        sys.exit(f"stale: {', '.join(stale)}; python scripts/readme_numbers.py writes what the tables give")


if __name__ == "__main__":
    main()
