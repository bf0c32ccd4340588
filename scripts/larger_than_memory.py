#!/usr/bin/env python
"""The memory that training takes: `fit` on arrays relative to their size, and on a file of 4 GiB that is read in
chunks.

    python scripts/larger_than_memory.py --mebibytes 4096 --out results/larger_than_memory

Each run is a process of its own. The table has the most memory that it ever had resident (VmHWM, which includes pages
of mapped files). "before" is the process before it has any data: Python, JAX, this library, and the same network
trained once on a few examples. Arrays are made in memory and given to `fit`, so that the peak holds them and whatever
`fit` adds: the column is the peak beyond "before" over their bytes. The file is made in a temporary folder, sorted by
class: ten classes, each with a mean of 784 numbers, and noise. It is read by `training.chunks` for one epoch in batches
of 256, and validated on 2000 examples that are not in it. The last two runs are one that is stopped after its first
chunk, and one, in another process, that continues from its checkpoint: its parameters must be those of the
uninterrupted run, by their digest, or the script fails.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import functional_nn as fnn
from functional_nn import training
from functional_nn.lab import experiments

MIB = 2**20
CLASSES, HELD_OUT = 10, 2000
PLAN = training.minibatch(256)
# dtype, numbers an example
ARRAYS = (("float32", 784), ("float16", 784), ("uint8", 784), ("float64", 784), ("float32", 100))


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
        return
    args = experiments.arguments(__doc__, "results/larger_than_memory", mebibytes=4096, arrays=400)
    rows = []

    def run(name: str, size: int, *words: str) -> dict:
        command = [sys.executable, __file__, "measure", *map(str, words)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        ratio = (found["peak"] - found["before"]) / size
        rows.append(
            {
                "run": name,
                "data, MiB": size / MIB,
                "before, MiB": found["before"] / MIB,
                "peak, MiB": found["peak"] / MIB,
                "beyond / data": ratio,
                "seconds": found["seconds"],
                "validation accuracy": found["accuracy"],
            }
        )
        return found

    for dtype, numbers in ARRAYS:
        size = args.arrays * MIB
        run(f"arrays of {dtype}, {numbers} an example", size, "arrays", dtype, numbers, size)
    with tempfile.TemporaryDirectory() as folder:
        size = args.mebibytes * MIB
        write_file(Path(folder), size // (4 * 784))
        whole = run("file in chunks", size, "chunks", folder)
        run("the same, stopped", size, "chunks", folder, "stopped")
        resumed = run("and resumed", size, "chunks", folder, "resumed")
    if resumed["digest"] != whole["digest"]:
        raise SystemExit("the resumed run ends with other parameters than the uninterrupted one")
    experiments.write(args.out, rows, notes=NOTES)


NOTES = """
beyond / data: of arrays, the peak less "before", over their bytes: 1 is the arrays alone. float64 is trained on in
float32, of which there is a copy; the order of an epoch is drawn in some 100 bytes an example, which is much compared
with its 100 numbers, and another program is compiled. The resumed run's parameters are bit for bit the uninterrupted
one's.
"""


def examples_of(labels: np.ndarray, numbers: int, seed: int) -> np.ndarray:
    """Returns examples (Q, R), float32, of these classes."""
    means = np.random.default_rng(0).normal(size=(CLASSES, numbers)).astype(np.float32)
    noise = np.random.default_rng([1, seed]).standard_normal((len(labels), numbers), np.float32)
    return 4 * noise + means[labels]


def as_dtype(inputs: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the numbers in that dtype; bytes are clipped to 0 to 255."""
    return (inputs if dtype.kind == "f" else np.clip(inputs, 0, 255)).astype(dtype)


def write_file(folder: Path, examples: int) -> None:
    """Writes the file, sorted by class, piece by piece."""
    labels = np.sort(np.random.default_rng(2).integers(0, CLASSES, examples)).astype(np.uint8)
    np.save(folder / "labels.npy", labels)
    with open(folder / "inputs.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (examples, 784)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, examples, 8192):
            file.write(examples_of(labels[start : start + 8192], 784, 1 + start).astype("<f4", copy=False).data)


def measure(kind: str, *words: str) -> None:
    """Makes one run in this process, and prints what it took."""
    numbers = int(words[1]) if kind == "arrays" else 784
    network = fnn.multilayer((numbers, 64, CLASSES), ("relu", "softmax"))
    dtype = np.dtype(words[0] if kind == "arrays" else "float32")
    few = np.random.default_rng(3).integers(0, CLASSES, HELD_OUT)
    held_out = as_dtype(examples_of(few, numbers, 0), dtype), few

    def train(*data, **options) -> training.FitResult:
        return fnn.fit(
            network,
            "cross_entropy",
            "adam",
            *data,
            key=jax.random.key(0),
            epochs=1,
            plan=PLAN,
            validation=held_out,
            **options,
        )

    train(*held_out)
    before, options = resident("VmRSS"), {}
    if kind == "arrays":
        examples = int(words[2]) // (dtype.itemsize * numbers)
        labels = np.random.default_rng(2).integers(0, CLASSES, examples).astype(np.uint8)
        inputs = np.empty((examples, numbers), dtype)
        for start in range(0, examples, 1024):
            inputs[start : start + 1024] = as_dtype(
                examples_of(labels[start : start + 1024], numbers, 1 + start), dtype
            )
        data = inputs, labels
    else:
        folder, mode = Path(words[0]), words[1:]
        data = (training.chunks(folder / "inputs.npy", folder / "labels.npy"),)
        if mode:
            options = {
                "checkpoint": training.checkpoints.keep(folder / "kept"),
                "resume": mode == ("resumed",),
                "seconds": 1e-9 if mode == ("stopped",) else None,
            }
    began = time.perf_counter()
    result = train(*data, **options)
    seconds, accuracy = time.perf_counter() - began, result.history.validation_accuracy
    digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(result.params))).hexdigest()
    print(
        json.dumps(
            {
                "before": before,
                "peak": resident("VmHWM"),
                "seconds": seconds,
                "digest": digest,
                "accuracy": float(accuracy[-1]) if len(accuracy) else float("nan"),
            }
        )
    )


def resident(which: str) -> int:
    """Returns the bytes of this process that are in memory, or the most that were, as Linux reports them."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[which].split()[0])


if __name__ == "__main__":
    main()
