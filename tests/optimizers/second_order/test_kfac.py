"""K-FAC, followed step by step in NumPy."""

import jax
import numpy as np
import pytest
from second_order_cases import of_network

import functional_nn as fnn
from functional_nn import optimizers

pytestmark = pytest.mark.usefixtures("brisk")


def test_kfac_is_martens_and_grosses():
    """Each step of one layer, (2, 3), tanh: the inverse of the Kronecker product as a matrix, and the best multiples of
    the proposal and of the last step under the exact G.
    """
    network = fnn.multilayer((2, 3), ("tanh",))
    draw = np.random.default_rng(3)
    x, t, loss = draw.standard_normal((6, 2)), np.tanh(draw.standard_normal((6, 3))), "half_sum_square_error"
    states = of_network(network, loss, x, t, optimizers.kfac(0.3), network.init(jax.random.key(0)), 8)
    W, b = states.params["layer1"]["weights"]["input"], states.params["layer1"]["bias"]
    flat = np.concatenate([W, b[:, :, None]], axis=2).reshape(len(W), -1)  # (S, A) in rows
    homogeneous = np.append(x, np.ones((6, 1)), axis=1)

    def known(k):
        a = np.tanh(homogeneous @ np.concatenate([W[k], b[k][:, None]], axis=1).T)
        slopes = 1 - a**2
        J = np.einsum("qs,qr,st->qstr", slopes, homogeneous, np.eye(3)).reshape(18, 9)
        r = (a - t).reshape(-1)
        return r @ r / 2, J.T @ r, J.T @ J, homogeneous.T @ homogeneous / 6, np.diag((slopes**2).sum(axis=0))

    lam, before, factors, accepted = 0.3, np.zeros(9), None, []
    for k in range(8):
        F, g, G, *own = known(k)
        np.testing.assert_allclose(states.value[k], F, rtol=1e-12)
        if k == 0 or accepted[-1]:
            old = min(1 - 1 / (k + 1), 0.95)
            factors = own if k == 0 else [old * f + (1 - old) * new for f, new in zip(factors, own, strict=True)]
        A, S = factors
        pi = np.sqrt((np.trace(A) / 3) / (np.trace(S) / 3))
        inverse = np.linalg.inv(np.kron(S + lam**0.5 / pi * np.eye(3), A + pi * lam**0.5 * np.eye(3)))
        proposal, B = -inverse @ g, G + lam * np.eye(9)
        basis = np.stack([proposal, before], axis=1)[:, : 2 if before.any() else 1]
        delta = basis @ np.linalg.solve(basis.T @ B @ basis, -basis.T @ g)
        moved = flat[k + 1] - flat[k]
        trial = homogeneous @ (flat[k] + delta).reshape(3, 3).T
        after = np.sum((np.tanh(trial) - t) ** 2) / 2
        accepted.append(bool(after < F))
        np.testing.assert_allclose(moved, delta if accepted[-1] else 0, atol=1e-9, err_msg=f"step {k}")
        ratio = (after - F) / (g @ delta + delta @ G @ delta / 2)
        lam *= (0.95 if ratio > 0.75 else 1 / 0.95 if ratio < 0.25 else 1) if accepted[-1] else 4
        np.testing.assert_allclose(states.memory.damping[k + 1], lam, rtol=1e-9)
        before = delta if accepted[-1] else 0 * delta
    assert sum(accepted) >= 6
    np.testing.assert_array_equal(np.diff(states.counts.products), 2)
