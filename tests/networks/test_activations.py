"""Every registered activation against its definition, and its derivatives against autodiff."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import EPS, drawn, outputs_of, summed_like
from cases import ACTIVATIONS, DTYPES, TRAINABLE, reference_activation, relative_error

from functional_nn import activations


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_forward_is_the_definition(name):
    f, n, _, _, theta, _ = drawn(name)
    expected = [reference_activation(f, row, theta) for row in np.asarray(n)]
    # Both sides round a few elementary functions of numbers near 1; 16 eps covers them, and softmax's sum.
    np.testing.assert_allclose(f.forward(n, theta)[0], expected, rtol=16 * EPS, atol=16 * EPS)


@pytest.mark.parametrize("name", TRAINABLE)
def test_pullback_is_the_vjp_of_forward(name):
    f, n, g, _, theta, _ = drawn(name)
    a, vjp = jax.vjp(outputs_of(f), n, theta)
    by_hand, learned = f.pullback(g, n, a, f.forward(n, theta)[1], theta)
    chex.assert_shape(by_hand, n.shape)
    chex.assert_shape([share.left for share in learned.values()], g.shape)
    assert relative_error((by_hand, summed_like(theta, learned)), vjp(g)) <= 1e-12


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", TRAINABLE)
def test_pullback_keeps_the_examples_apart(name):
    f, n, g, _, theta, _ = drawn(name)
    together = f.pullback(g, n, *f.forward(n, theta), theta)
    alone = [f.pullback(g[q : q + 1], x, *f.forward(x, theta), theta) for q, x in enumerate(n[:, None, :])]
    assert relative_error(together, jax.tree.map(lambda *rows: jnp.concatenate(rows), *alone)) <= 1e-12


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", TRAINABLE)
def test_pushforward_is_the_jvp_of_forward(name):
    f, n, _, r, theta, r_theta = drawn(name)
    a, r_a = jax.jvp(outputs_of(f), (n, theta), (r, r_theta))
    assert relative_error(f.pushforward(r, r_theta, n, a, f.forward(n, theta)[1], theta), r_a) <= 1e-12


@pytest.mark.parametrize("name", TRAINABLE)
def test_second_order_is_the_jvp_of_the_vjp(name):
    f, n, g, r, theta, r_theta = drawn(name)

    def automatic_pullback(n, theta):
        return jax.vjp(outputs_of(f), n, theta)[1](g)

    expected = jax.jvp(automatic_pullback, (n, theta), (r, r_theta))[1]
    by_hand, learned = f.second_order(g, r, r_theta, n, *f.forward(n, theta), theta)
    chex.assert_shape(by_hand, n.shape)
    chex.assert_shape([share.left for share in learned.values()], g.shape)
    assert relative_error((by_hand, summed_like(theta, learned)), expected) <= 1e-12


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", TRAINABLE)
def test_second_order_is_the_jvp_of_the_pullback(name):
    f, n, g, r, theta, r_theta = drawn(name, seed=1)

    def pullback(n, theta):
        return f.pullback(g, n, *f.forward(n, theta), theta)

    expected = jax.jvp(pullback, (n, theta), (r, r_theta))[1]
    assert relative_error(f.second_order(g, r, r_theta, n, *f.forward(n, theta), theta), expected) <= 1e-12


@pytest.mark.parametrize("name", ("hardlim", "hardlims"))
def test_nothing_propagates_through_perceptrons(name):
    f = activations.get(name)
    assert f.pullback is None and f.pushforward is None and f.second_order is None and not f.smooth


# Numbers at their limits ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dtype_is_kept_and_large_net_inputs_stay_finite(name, dtype):
    f, n, g, r, theta, r_theta = drawn(name, dtype=dtype)
    large = 1e2 if name in ("glu", "swiglu", "geglu") else 1e4  # of a gate the square is still a float16
    n = (
        n.at[0]
        .set(jnp.asarray(large, dtype))
        .at[1]
        .set(jnp.asarray(-large, dtype))
        .at[2, ::2]
        .set(jnp.asarray(large, dtype))
    )
    n = n.at[3].set(jnp.zeros((), dtype))
    a = f.forward(n, theta)[0]
    results = [a]
    if f.pullback:
        results += jax.tree.leaves(f.pullback(g, n, a, f.forward(n, theta)[1], theta))
        results += jax.tree.leaves(f.pushforward(r, r_theta, n, a, f.forward(n, theta)[1], theta))
        results += jax.tree.leaves(f.second_order(g, r, r_theta, n, a, f.forward(n, theta)[1], theta))
    if f.kink_distance:
        results.append(f.kink_distance(n))
    for result in results:
        assert result.dtype == dtype
        assert np.isfinite(np.asarray(result).astype(np.float64)).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_stays_nan(name):
    f, n, g, _, theta, _ = drawn(name)
    n = n.at[2, 0].set(jnp.nan)
    a = f.forward(n, theta)[0]
    assert np.isnan(a[2, 0])
    assert np.isfinite(np.delete(a, 2, axis=0)).all()


def test_softmax_of_a_masked_class_is_exactly_zero():
    f = activations.get("softmax")
    n = jnp.array([[1.0, -jnp.inf, 2.0], [-jnp.inf, -jnp.inf, 3.0]])
    a = f.forward(n, {})[0]
    by_hand, _ = f.pullback(jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), n, a, f.forward(n, {})[1], {})
    np.testing.assert_array_equal(a == 0, [[False, True, False], [True, True, False]])
    np.testing.assert_array_equal(a[1], [0.0, 0.0, 1.0])
    np.testing.assert_allclose(a[0, ::2], f.forward(n[:1, ::2], {})[0][0], rtol=4 * EPS)
    assert by_hand[0, 1] == 0 and np.isfinite(by_hand).all()
