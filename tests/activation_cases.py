"""What the tests of activations share: net inputs and learned parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from cases import ACTIVATIONS, generator

from functional_nn import activations

SMOOTH = tuple(name for name in ACTIVATIONS if activations.get(name).smooth)
KINKED = tuple(name for name in ACTIVATIONS if not activations.get(name).smooth)
EPS = np.finfo(np.float64).eps
EXAMPLES, NEURONS = 7, 4


def drawn(name, seed=0, dtype=jnp.float64):
    """(f, n, g, r, theta, r_theta): an activation, net inputs, dF/da, and tangents of n and theta, all at random."""
    f = activations.get(name)
    draw = generator(jax.random.key(seed))

    def normal(*shape):
        return jnp.asarray(draw.standard_normal(shape), dtype)

    theta = f.parameters(NEURONS, dtype) if f.parameters else {}
    theta, r_theta = ({key: 1.5 * normal(*value.shape) for key, value in theta.items()} for _ in range(2))
    wide, narrow = (EXAMPLES, NEURONS * f.pieces), (EXAMPLES, NEURONS)
    return f, 2 * normal(*wide), normal(*narrow), normal(*wide), theta, r_theta


def summed_like(theta, contributions):
    """Shares (Q, S) as autodiff gives them: summed over the examples, and over neurons that share one."""
    return {
        key: jnp.sum(c.left, axis=0 if theta[key].shape[0] == c.left.shape[1] else None).reshape(-1)
        for key, c in contributions.items()
    }


def outputs_of(f):
    """Its forward map without what it keeps."""
    return lambda n, theta: f.forward(n, theta)[0]
