"""Trajectories and optimizers for the tests of first-order methods."""

import jax
import jax.numpy as jnp
import numpy as np
from cases import relative_error

from functional_nn import optimizers

# Gradients of a bowl about -1/2 under noise that dies away, so that averages of g^2 shrink (amsgrad's maximum acts) and
# signs turn (rprop's steps shrink); of the first element the gradient is always 0.
STEPS, SIZE = 200, 6
_draw = np.random.default_rng(0)
START = _draw.standard_normal(SIZE)
PULL = np.where(np.arange(SIZE) == 0, 0.0, 1.0)
NOISE = (2 * np.exp(-np.arange(STEPS) / 30) + 0.05)[:, None] * _draw.standard_normal((STEPS, SIZE)) * PULL


def gradient(x, noise):
    """Of an array (SIZE,), NumPy's or JAX's."""
    return noise + PULL * (x + 0.5)


def trajectory(optimizer, kept=lambda state: state.params):
    """`kept` of the state after each of 200 updates (STEPS, SIZE), the gradients taken where the optimizer says."""

    def step(state, noise):
        state = optimizer.update(state, gradient(optimizer.point(state), noise))
        return state, kept(state)

    return np.asarray(jax.jit(lambda x: jax.lax.scan(step, optimizer.init(x), jnp.asarray(NOISE))[1])(START))


def written_out(rule, *memory):
    """The trajectory of rule(k, x, g, *memory) -> (x, *memory) in NumPy, k = 1, 2, ..."""
    x, path = START.copy(), []
    for k, noise in enumerate(NOISE, start=1):
        x, *memory = rule(k, x, gradient(x, noise), *memory)
        path.append(x)
    return np.array(path)


def assert_one_trajectory(ours, theirs):
    """The same at every step, and not because nothing moved."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)
    assert relative_error(ours, theirs) <= 1e-12
    assert np.abs(ours[-1, 1:] - START[1:]).min() > 1e-3
    assert (ours[:, 0] == START[0]).all()


def assert_different_trajectories(ours, others):
    """Of an element that moves, nowhere the same: the definitions differ, not the last steps alone."""
    assert (np.abs(ours - others).max(axis=1) > 1e-6).all()


# name -> optimizer from a rate and a weight decay, which only those take that decay weights
METHODS = {name: lambda rate, _, name=name: getattr(optimizers, name)(rate) for name in optimizers.names()} | {
    "adamw": lambda rate, decay: optimizers.adamw(rate, weight_decay=decay),
    # Gradients of one direction only: in all others rounding is what there is, which a small epsilon lets grow.
    "full_matrix_adagrad": lambda rate, _: optimizers.full_matrix_adagrad(rate, 0.01),
    "nesterov, look-ahead": lambda rate, _: optimizers.nesterov(rate, form="look_ahead"),
    "rprop without backtracking": lambda rate, _: optimizers.rprop(rate, backtracking=False),
    "rmsprop, centered": lambda rate, _: optimizers.rmsprop(rate, centered=True),
    "adam, efficient": lambda rate, _: optimizers.adam(rate, order="efficient"),
    "amsgrad of the paper": lambda rate, _: optimizers.amsgrad(rate, bias_correction=False),
}
