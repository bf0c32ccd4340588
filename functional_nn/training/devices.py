"""Data laid over the devices of a mesh."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from functional_nn.optimizers.optimizer import Optimizer
from functional_nn.optimizers.second_order import SecondOrder


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the arrays with a whole copy on every device of the mesh, in every process."""
    everywhere, placed = NamedSharding(mesh, PartitionSpec()), {}

    def place(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        if id(x) not in placed:  # a stream is read in two places, and has one copy
            placed[id(x)] = x, jax.make_array_from_process_local_data(everywhere, np.asarray(x), x.shape)
        return placed[id(x)][1]

    return jax.tree.map(place, tree)


def check_mesh(mesh: Mesh, size: int, optimizer: Optimizer | SecondOrder) -> Mesh:
    """Returns the mesh, its axes' types left to the compiler. Raises where batches of `size` cannot be laid over it."""
    if optimizer.one_device:
        raise ValueError(f"mesh: {optimizer.name} runs on one device; first-order methods take a mesh")
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh: expected a jax.sharding.Mesh, got {type(mesh).__name__}")
    if size % mesh.size:
        raise ValueError(
            f"mesh: batches of {size} examples do not divide evenly over {mesh.size} devices; choose a batch size that "
            f"is a multiple of {mesh.size}"
        )
    return Mesh(mesh.devices, mesh.axis_names)
