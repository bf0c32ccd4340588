"""Second derivatives of losses against autodiff, and their roots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOSSES, relative_error
from loss_cases import EXAMPLES, FUSED, net_inputs, suited

from functional_nn import activations, losses


def curvatures():
    """(name, curvature, value of one example, x, t) for every loss at its outputs and in its fused pairs."""
    for name in LOSSES:
        loss, a, t, _ = suited(name, "mean")
        yield name, loss.curvature, loss.example_value, a, t
        for output, pair in loss.fused.items():
            yield f"{name} over {output}", pair.curvature, pair.value, net_inputs(), t


CURVATURES = [pytest.param(*rest, id=name) for name, *rest in curvatures()]


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize(("curvature", "value", "x", "t"), CURVATURES)
def test_curvature_is_the_hessian_of_the_value(curvature, value, x, t):
    H = jax.vmap(jax.hessian(lambda x, t: value(x[None], t[None])[0]))(x, t)
    r = net_inputs(5)
    assert relative_error(curvature.product(r, x, t), jnp.einsum("qst,qt->qs", H, r)) <= 1e-12
    if curvature.root is not None:
        V = curvature.root(x, t)
        assert relative_error(jnp.einsum("qcs,qct->qst", V, V), H) <= 1e-12
        z = jnp.asarray(np.random.default_rng(6).standard_normal((len(V), 2, V.shape[1])))
        assert relative_error(curvature.combine(z, x, t), jnp.einsum("qkc,qcs->qks", z, V)) <= 1e-12
    if curvature.least_root is not None:
        V = curvature.least_root(x, t)
        assert relative_error(jnp.einsum("qcs,qct->qst", V, V), H) <= 1e-12
        assert V.shape[1] == np.linalg.matrix_rank(H[0]) == x.shape[1] - 1


@pytest.mark.parametrize("name", ["cross_entropy", "kullback_leibler"])
@pytest.mark.parametrize(
    "n",
    [
        [1e4, -1e4, 0, 5],
        [-1e4, 1e4, 0, 5],
        [0, 5, -1e4, 1e4],
        [0, 0, 0, 200],
        [200, 0, 0, 0],
        [0, 30, 0, -30],
        [-200, -200, 1, 0],
        [1, 0, -200, -200],
        [0, -200, -200, 1],
        [17, 0, 0, -9],
        [-9, 0, 1, 17],
        [-40, 40, 39, -41],
    ],
)
def test_the_least_root_of_softmax_is_exact_where_outputs_are_saturated(name, n):
    """Beside a (1 - a) in twice the digits, 1 - a summed from the others: also where a is 1 to the last digit."""
    t = np.asarray([[0.2, 0.5, 0.0, 0.3]])
    curvature = losses.get(name).fused["softmax"].curvature
    V = np.asarray(curvature.least_root(jnp.asarray([n], jnp.float32), jnp.asarray(t, jnp.float32)), np.float64)[0]
    a = np.exp(np.float64(n) - max(n))
    a /= a.sum()
    H = np.diag([p * np.delete(a, i).sum() for i, p in enumerate(a)]) - np.outer(a, a) * (1 - np.eye(4))
    # float32 has no numbers below 1e-38, and e^x as many digits less as x has before its point: 100 eps at 80
    size = np.sqrt(np.diag(H))
    error = np.abs(V.T @ V - H)
    assert (error <= 200 * np.finfo(np.float32).eps * size[:, None] * size[None, :] + 1e-36).all()


def test_every_loss_is_convex_in_something():
    for name in LOSSES:
        for output in ("linear", "sigmoid", "softmax"):
            of, curvature = losses.get(name).convex_in(activations.get(output))
            assert curvature.root is not None
            fused = losses.get(name).fused_with(activations.get(output))
            assert of == ("net_inputs" if fused and fused.curvature.root else "outputs")


@pytest.mark.parametrize(("name", "output"), FUSED)
def test_fused_curvature_is_finite_at_logits_of_ten_thousand(name, output):
    loss, _, t, _ = suited(name, "mean", jnp.float32)
    n = jnp.asarray([[1e4, -1e4, 0.0, 5.0]] * EXAMPLES, jnp.float32)
    curvature = loss.fused[output].curvature
    assert np.isfinite(np.asarray(curvature.product(jnp.ones_like(n), n, t))).all()
    if curvature.root is not None:
        assert np.isfinite(np.asarray(curvature.root(n, t))).all()
    if curvature.least_root is not None:
        assert np.isfinite(np.asarray(curvature.least_root(n, t))).all()
