"""AdaGrad with the full matrix: its formula, rounding, and budget."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error
from first_order_cases import (
    NOISE,
    SIZE,
    START,
    assert_different_trajectories,
    assert_one_trajectory,
    trajectory,
    written_out,
)
from refusals import refusal

from functional_nn import optimizers


def after(optimizer, x, gradients):
    """The parameters after each of some updates."""

    def step(state, g):
        state = optimizer.update(state, g)
        return state, state.params

    return jax.lax.scan(step, optimizer.init(x), gradients)[1]


def full_matrix(epsilon):
    """Kordecki's formula by the singular values of all gradients so far, one a row: G itself is never formed."""

    def rule(k, x, g, rows):
        rows = [*rows, g]
        _, singular, V = np.linalg.svd(np.array(rows), full_matrices=False)
        return x - 0.1 * V.T @ (V @ g / np.sqrt(epsilon + singular**2)), rows

    return written_out(rule, [])


def test_adagrad_with_the_full_matrix_is_kordeckis_formula():
    """At its default epsilon only to what rounding of G, whose first updates are singular, leaves of it."""
    ours = trajectory(optimizers.full_matrix_adagrad(0.1, 0.01))
    assert_one_trajectory(ours, full_matrix(0.01))
    assert_different_trajectories(ours[1:], trajectory(optimizers.adagrad(0.1, 0.01))[1:])
    near = trajectory(optimizers.full_matrix_adagrad(0.1))
    np.testing.assert_allclose(near, full_matrix(1e-8), rtol=1e-10, atol=1e-10)
    assert (near[:, 0] == START[0]).all()


def test_the_full_matrix_has_no_preferred_axes():
    """Of gradients turned by Q the steps are those turned by Q; the diagonal's are not."""
    Q = np.linalg.qr(np.random.default_rng(4).standard_normal((SIZE, SIZE)))[0]
    turned = {}
    for make in (optimizers.full_matrix_adagrad, optimizers.adagrad):
        run = jax.jit(partial(after, make(0.1, 0.01)))
        plain, other = (np.asarray(run(jnp.zeros(SIZE), g)) for g in (NOISE, NOISE @ Q.T))
        turned[make] = np.allclose(other, plain @ Q.T, rtol=0, atol=1e-12)
    assert list(turned.values()) == [True, False]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_eigenvalues_below_zero_by_rounding_count_as_rounding(dtype):
    """One gradient over and over: every other eigenvalue of G is 0, and comes out with either sign. Each update is then
    along g, eta / sqrt(k) long.
    """
    g = jnp.asarray(np.random.default_rng(5).standard_normal(40) * 1e5, dtype)
    optimizer = optimizers.full_matrix_adagrad(1.0)
    state = jax.eval_shape(optimizer.init, g)
    assert state.matrix.dtype == jnp.float32
    path = np.asarray(jax.jit(partial(after, optimizer))(jnp.zeros_like(g), jnp.stack([g] * 20)).astype(jnp.float64))
    G = np.outer(*[np.asarray(g, np.float32)] * 2)
    assert np.linalg.eigvalsh(G).min() < -1e-8  # below -epsilon: its root would be nan
    direction = np.asarray(g, np.float64) / np.linalg.norm(np.asarray(g, np.float64))
    expected = -np.cumsum(1 / np.sqrt(np.arange(1, 21)))[:, None] * direction
    assert relative_error(path, expected) < (1e-3 if dtype == jnp.float32 else 0.05)


def test_the_matrix_has_a_budget():
    """Over all arrays together, in the dtype of what is computed."""
    params = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(4, jnp.bfloat16)}
    message = (
        "full_matrix_adagrad: the matrix of 10 parameters would take 400 bytes, above the budget of 399, which has "
        "room for 9; use adagrad, which keeps the diagonal, or allow it with budget=400"
    )
    assert refusal(lambda: optimizers.full_matrix_adagrad(budget=399).init(params)) == message
    assert optimizers.full_matrix_adagrad(budget=400).init(params).matrix.shape == (10, 10)
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    assert "would take 800 bytes" in refusal(lambda: optimizers.full_matrix_adagrad(budget=799).init(wide))
    largest = jax.ShapeDtypeStruct((4096,), jnp.float32), jax.ShapeDtypeStruct((4097,), jnp.float32)
    jax.eval_shape(optimizers.full_matrix_adagrad().init, largest[0])
    assert "has room for 4096" in refusal(lambda: jax.eval_shape(optimizers.full_matrix_adagrad().init, largest[1]))


def test_parameters_without_a_gradient_change_nothing_for_the_full_matrix():
    """As in the padding of a network: the same steps, to rounding, with and without them."""
    g = NOISE[:12]
    wide = jnp.concatenate([g, jnp.zeros((12, 50))], axis=1)
    optimizer = optimizers.full_matrix_adagrad(0.1)
    alone, padded = (after(optimizer, jnp.zeros(each.shape[1]), each) for each in (g, wide))
    np.testing.assert_allclose(padded[:, :SIZE], alone, rtol=1e-6, atol=1e-9)
    assert (padded[:, SIZE:] == 0).all()
