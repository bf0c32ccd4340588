"""Of the presets' networks, gradients are PyTorch's to 1e-10, in float64; recurrences and attention are its own."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error

import functional_nn as fnn
from functional_nn.gradients import factors

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


def recurrent_of_torch(kind, own, weights, bias, inputs, size):
    """torch.nn's layer with these parameters in its places, and what it gives for a first state."""
    module = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM, "recurrent": torch.nn.RNN}[kind](
        inputs, size, batch_first=True, dtype=torch.float64
    )
    given = {"weight_ih_l0": weights, "weight_hh_l0": own["recurrent"], "bias_ih_l0": bias}
    given["bias_hh_l0"] = torch.zeros_like(bias)
    if kind == "lstm":  # whose forget gate gets 1 more here
        given["bias_hh_l0"][size : 2 * size] = 1

    def outputs(x):
        states = [own[name].expand(1, len(x), size) for name in ("initial", "initial_cell") if name in own]
        first = tuple(states) if kind == "lstm" else states[0]
        return torch.func.functional_call(module, given, (x, first))[0]

    return outputs


@pytest.mark.parametrize("kind", ["recurrent", "gru", "lstm"])
def test_recurrences_are_pytorchs(kind):
    """Their states, and the derivatives by the inputs and by every parameter."""
    f, draw, (Q, T, R, S) = fnn.activations.get(kind), np.random.default_rng(0), (3, 7, 4, 5)
    theta = {name: draw.standard_normal(x.shape) for name, x in f.parameters(S, np.float64).items()}
    x, weights, bias = (draw.standard_normal(s) for s in ((Q, T, R), (f.pieces * S, R), (f.pieces * S,)))
    g = draw.standard_normal((Q, T, S))

    n = jnp.asarray(x @ weights.T + bias)
    a, kept = f.forward(n, theta)
    s, shares = f.pullback(jnp.asarray(g), n, a, kept, theta)
    learned = {name: np.asarray(factors.total(shares[name], jnp.asarray(theta[name]))) for name in theta}
    found = np.asarray(s @ weights), np.einsum("qtk,qtr->kr", s, x), np.asarray(s.sum((0, 1))), learned
    theirs = x, weights, bias, theta = jax.tree.map(
        lambda x: torch.tensor(x, requires_grad=True), (x, weights, bias, theta)
    )
    out = recurrent_of_torch(kind, theta, weights, bias, R, S)(x)
    np.testing.assert_allclose(a, out.detach().numpy(), rtol=1e-12, atol=1e-13)
    expected = torch.autograd.grad((out * torch.tensor(g)).sum(), jax.tree.leaves(theirs))
    assert relative_error(jax.tree.leaves(found), [x.numpy() for x in expected]) <= 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_pytorchs_with_lengths_and_without(causal):
    """torch.nn.MultiheadAttention, its last product the identity; where nothing is seen it has nan, and we 0."""
    draw, (Q, T, S, H) = np.random.default_rng(0), (3, 6, 8, 2)
    f, x, w, b = (
        fnn.activations.attention(H, causal),
        *(draw.standard_normal(s) for s in ((Q, T, S), (3 * S, S), 3 * S)),
    )
    g, lengths = draw.standard_normal((Q, T, S)), np.array([6, 3, 4], np.int32)
    counts = np.arange(T) < lengths[:, None]
    n = jnp.asarray(x @ w.T + b)
    a, kept = f.forward(n, {"lengths": jnp.asarray(lengths)})
    s, _ = f.pullback(jnp.asarray(g), n, a, kept, {"lengths": jnp.asarray(lengths)})
    module = torch.nn.MultiheadAttention(S, H, batch_first=True, dtype=torch.float64)
    t = {name: torch.tensor(v, requires_grad=True) for name, v in {"x": x, "w": w, "b": b}.items()}
    given = {"in_proj_weight": t["w"], "in_proj_bias": t["b"], "out_proj.weight": torch.eye(S, dtype=torch.float64)}
    given["out_proj.bias"] = torch.zeros(S, dtype=torch.float64)
    later = torch.triu(torch.ones(T, T, dtype=bool), 1) if causal else None
    out, p = torch.func.functional_call(
        module,
        given,
        (t["x"],) * 3,
        {"key_padding_mask": torch.tensor(~counts), "attn_mask": later, "average_attn_weights": False},
    )
    seen = counts[..., None]
    np.testing.assert_allclose(np.where(seen, out.detach(), 0), a, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(p.detach().numpy() * seen[:, None], kept.probabilities, rtol=1e-12, atol=1e-14)
    expected = torch.autograd.grad((out * torch.tensor(g * seen)).sum(), [t["x"], t["w"], t["b"]])
    found = s @ w, np.einsum("qtk,qtr->kr", s, x), s.sum((0, 1))
    assert relative_error(jax.tree.leaves(found), [x.numpy() for x in expected]) <= 1e-12
