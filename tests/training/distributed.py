"""What several devices and processes train, for test_devices.py: distributed.py OUT [COORDINATOR COUNT NUMBER]"""

import sys

import jax
import numpy as np

import functional_nn as fnn
from functional_nn import training


def main(out: str, *coordinator: str) -> None:
    if coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator[0], *map(int, coordinator[1:]))
    generator = np.random.default_rng(0)
    x = generator.normal(size=(22, 3)).astype(np.float32)
    t = np.eye(2, dtype=np.float32)[generator.integers(0, 2, 22)]
    network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
    settings = {"key": jax.random.key(0), "validation": (x, t), "plan": training.minibatch(6)}

    columns = training.grid(learning_rate=[0.01, 0.1], seed=range(3))
    population = training.fit_population(
        network,
        "cross_entropy",
        "adam",
        columns,
        (x, t),
        epochs=6,
        chunk=2,
        halving=training.successive_halving((2, 4), keep=0.5),
        **settings,
    )
    mesh = jax.make_mesh((len(jax.devices()),), ("examples",))
    alone = fnn.fit(network, "cross_entropy", "adam", x, t, epochs=6, mesh=mesh, **settings)

    if mesh.size > 1:
        try:
            fnn.fit(
                network,
                "cross_entropy",
                "adam",
                x,
                t,
                epochs=1,
                mesh=mesh,
                key=jax.random.key(0),
                plan=training.minibatch(7),
            )
        except ValueError as error:
            assert "batches of 7 examples do not divide evenly over 2 devices" in str(error)
        else:
            raise AssertionError("uneven batches were not refused")

    np.savez(
        out,
        losses=population.history.validation_loss,
        epochs=population.epochs,
        status=population.status,
        params=np.stack([population.params(m)["layer1"]["weights"]["input"] for m in range(6)]),
        alone=alone.history.validation_loss,
        devices=len(jax.devices()),
        processes=jax.process_count(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
