"""A saving run for test_killed.py to kill: killed.py FOLDER EPOCHS OUT; resumes where the last one was killed."""

import sys

import jax
import numpy as np

import functional_nn as fnn
from functional_nn import training


def main(folder: str, epochs: str, out: str) -> None:
    jax.config.update("jax_compilation_cache_dir", folder + "-compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    generator = np.random.default_rng(0)
    x = generator.normal(size=(24, 3)).astype(np.float32)
    t = np.eye(2, dtype=np.float32)[generator.integers(0, 2, 24)]
    network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
    kept = training.checkpoints.keep(folder, last=2)
    population = training.fit_population(
        network,
        "cross_entropy",
        "adam",
        training.grid(learning_rate=[0.01, 0.1], seed=range(4)),
        (x, t),
        key=jax.random.key(0),
        epochs=int(epochs),
        chunk=1,
        plan=training.minibatch(6),
        validation=(x, t),
        stop=training.early_stopping(1000),
        checkpoint=kept,
        resume=True,
        block=4,
        on_chunk=lambda progress: print(progress.epoch, flush=True),
    )
    np.savez(
        out,
        losses=population.history.training_loss,
        params=population.groups[0].runs.state.params["layer1"]["weights"]["input"],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
