"""What the tests of losses share: losses with outputs and targets that suit them."""

import jax
import jax.numpy as jnp
import numpy as np
from cases import LOSSES, generator, targets_for

from functional_nn import activations, losses

EPS = np.finfo(np.float64).eps
EXAMPLES, OUTPUTS = 5, 4
REDUCTIONS = ("mean", "sum")
FUSED = tuple((name, output) for name in LOSSES for output in losses.get(name).fused)
MASKABLE = tuple((name, output) for name, output in FUSED if losses.get(name).targets != "positive")


def net_inputs(seed=0, dtype=jnp.float64):
    return jnp.asarray(2 * generator(jax.random.key(seed)).standard_normal((EXAMPLES, OUTPUTS)), dtype)


def suited_outputs(loss, seed=0, dtype=jnp.float64):
    """Outputs (Q, S) in the range that the loss needs."""
    name = {"real": "linear", "unit interval": "sigmoid", "distribution": "softmax"}[loss.needs]
    return activations.get(name).forward(net_inputs(seed, dtype), {})[0]


def suited(name, reduction, dtype=jnp.float64):
    """(loss, outputs, targets, weights)"""
    loss = losses.get(f"{name}({reduction})")
    weights = jnp.asarray(generator(jax.random.key(7)).uniform(0.5, 2, EXAMPLES), dtype)
    targets = targets_for(loss, jax.random.key(1), EXAMPLES, OUTPUTS, dtype)
    return loss, suited_outputs(loss, dtype=dtype), targets, weights
