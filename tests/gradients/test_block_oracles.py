"""Of the presets' networks, gradients are PyTorch's to 1e-10, in float64."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error

import functional_nn as fnn

with warnings.catch_warnings():  # of what PyTorch finds on import
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle

NETWORKS = {
    "lenet": (28, 28, 1),
    "all_convolutional((4, 6))": (10, 9, 3),
    "residual(2, 4, group_norm(2))": (8, 8, 2),
    "residual(1, 4, layer_norm)": (7, 8, 1),
    "residual(1, 4, batch_norm, 3)": (8, 8, 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_pytorchs(name):
    from benchmark_blocks_torch import gradients, tensors

    network, draw = fnn.presets.get(name)(NETWORKS[name], 10), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.1 * draw.standard_normal(x.shape), network.init(jax.random.key(0), jnp.float64)
    )
    inputs, targets = draw.standard_normal((6, *NETWORKS[name])), draw.integers(10, size=6)
    ours = jax.jit(fnn.value_and_grad(network, "cross_entropy"))(params, inputs, targets)[1]
    theirs = gradients(network, tensors(params), torch.tensor(inputs), torch.tensor(targets))
    assert relative_error(jax.tree.leaves(ours), [x.numpy() for x in theirs]) <= 1e-10
