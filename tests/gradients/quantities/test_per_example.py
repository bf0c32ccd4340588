"""Per-example gradients, their norms by layer, and per-example losses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import reference_gradient, relative_error
from quantity_cases import LOSS, NETWORK, rows

import functional_nn as fnn
from functional_nn import quantities


def test_per_example_gradients_against_the_complex_step(data):
    """A second source that owes nothing to JAX: one example and one parameter at a time."""
    params, inputs, targets = data
    found = quantities.per_example_gradients(NETWORK, LOSS, *data)
    for q in (0, 4):
        one = jax.tree.map(lambda x, q=q: x[q : q + 1], inputs), targets[q : q + 1]
        expected = reference_gradient(NETWORK, fnn.losses.cross_entropy("sum"), params, *one)
        assert relative_error(jax.tree.map(lambda x, q=q: x[q], found), expected) <= 1e-12


def test_layer_norms_are_norms_of_the_layers_gradients(data):
    found = quantities.compute(NETWORK, LOSS, *data, ("per_example_layer_norms", "per_example_gradients"))
    for name, norms in found["per_example_layer_norms"].items():
        expected = np.linalg.norm(rows(found["per_example_gradients"][name]), axis=1)
        np.testing.assert_allclose(norms, expected, rtol=1e-12)


def test_per_example_losses_average_to_the_objective(data):
    found = quantities.per_example_losses(NETWORK, LOSS, *data)
    assert jnp.mean(found) == pytest.approx(float(fnn.objective(NETWORK, LOSS)(*data)), rel=1e-14)
    unfused = quantities.per_example_losses(NETWORK, "mean_square_error", *data)
    a = NETWORK.apply(*data[:2])
    chex.assert_trees_all_close(unfused, jnp.mean((a - data[2]) ** 2, axis=1), rtol=1e-14)
