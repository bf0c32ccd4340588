"""The character model and its rivals predict every held-out character once."""

import jax
import numpy as np
import pytest
from scripts.running import load, read, run

import functional_nn as fnn


@pytest.fixture(scope="module")
def transformer():
    return load("transformer")


def test_n_grams_equal_a_slow_count_by_witten_and_bell(transformer):
    """Beside a slow count; the held-out text has tokens and contexts that the other has not."""
    text, held_out, V = [0, 1, 0, 2, 0, 1, 1, 0, 1, 0, 2, 2, 1, 0], [1, 0, 2, 3, 1, 0, 1, 2, 0, 1], 4

    def p(context, token):
        shorter = 1 / V if not context else p(context[1:], token)
        n = len(context)
        after = [text[i + n] for i in range(len(text) - n) if text[i : i + n] == context]
        first = 1 / V if not context else shorter
        return (after.count(token) + len(set(after)) * first) / (len(after) + len(set(after))) if after else shorter

    found = transformer.n_grams(np.array(text), np.array(held_out), V, range(1, 4))
    for n, of_order in enumerate(found):
        expected = [p(held_out[max(0, i - n) : i], token) for i, token in enumerate(held_out)]
        np.testing.assert_allclose(of_order, expected, rtol=1e-12)
        assert np.isclose(sum(p([0, 1][:n], token) for token in range(V)), 1)


def test_every_held_out_character_is_predicted_once(transformer, monkeypatch):
    """From half a context before it and more: beside a loop, by a network that knows the token and its place."""
    monkeypatch.setattr(transformer, "CONTEXT", 4)
    reads = [("sequence", "embedding(3)")]
    network = fnn.graph(inputs={"sequence": (4,)}, layers=[fnn.Layer("output", 3, "softmax", reads, "per_position")])
    W, b = np.random.default_rng(0).normal(size=(3, 3)), np.random.default_rng(1).normal(size=(4, 3))
    tokens, losses = np.array([0, 2, 1, 1, 0, 2, 2, 1, 0, 1, 1, 2, 0], np.uint8), []
    for at in range(3, 13):  # the token at `at` follows 3 or 4 of its window
        begin = (at - 3) // 2 * 2
        n = W[:, tokens[at - 1]] + b[at - 1 - begin]
        losses.append(np.log2(np.exp(n).sum()) - n[tokens[at]] / np.log(2))
    params = {"output": {"weights": {"sequence": jax.numpy.array(W)}, "bias": jax.numpy.array(b)}}
    np.testing.assert_allclose(transformer.bits(network, params, tokens), np.mean(losses), rtol=1e-6)


@pytest.mark.slow
def test_the_transformer_runs_small(transformer, tmp_path, monkeypatch):
    small = {"NETWORK": "transformer(layers=1, heads=2, width=8)", "CONTEXT": 40, "MODULES": 6, "FIRST": 30}
    for name, value in {**small, "MEASUREMENTS": 2, "COMPARED": 2, "LOOKED": 8, "ORDERS": range(1, 6)}.items():
        monkeypatch.setattr(transformer, name, value)
    with jax.enable_x64(False):
        rows = run(transformer, tmp_path / "table", monkeypatch, "--updates", "60")
    bits = {row["model"]: float(row["bits a character"]) for row in rows}
    assert bits["transformer, 60 updates"] < bits["transformer, 30 updates"] < np.log2(128)
    assert bits["3-gram"] < bits["2-gram"] < bits["1-gram"] and bits["gzip, added to the rest"] < 3
    assert {row["agrees"] for row in read(tmp_path / "table_agreement.csv")} == {"yes"}
    assert len(read(tmp_path / "table_attention.csv")) == 2
    assert (tmp_path / "table.png").exists() and (tmp_path / "table_attention.png").exists()
