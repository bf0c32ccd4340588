"""Induction: the sequences repeat, and shares of attention are measured where they should be."""

import jax
import numpy as np
import pytest
from scripts.running import load, read, run


@pytest.fixture(scope="module")
def induction():
    return load("induction")


def test_sequences_repeat_with_their_period(induction):
    x, following, period = map(np.asarray, induction.sequences(jax.random.key(0), 8))
    assert x.shape == (8, induction.LENGTH) and (x[:, 1:] == following[:, :-1]).all()
    assert (period >= induction.PERIODS[0]).all() and (period <= induction.PERIODS[1]).all()
    for tokens, P in zip(x, period, strict=True):
        assert (tokens[P:] == tokens[:-P]).all()


def test_a_share_of_attention_is_that_of_one_earlier_position(induction):
    """A head that looks so far back has 1, one that looks everywhere as much as there are positions."""
    T = induction.LENGTH
    back = np.array([1, 5])
    p = np.zeros((2, 2, T, T))
    for q, t in np.ndindex(2, T):
        p[q, 0, t, max(0, t - back[q])] = 1
    p[:, 1] = 1 / T
    counted = np.arange(T)[None, :] >= back[:, None]
    np.testing.assert_allclose(induction.share(p, jax.numpy.asarray(back), counted), (1, 1 / T), rtol=1e-6)
    rows = [{"step": step, "there": there} for step, there in enumerate((0, 1, 0, 1, 1))]
    assert induction.first_step(rows, lambda row: row["there"]) == 3 and np.isnan(
        induction.first_step(rows, lambda row: row["there"] == 0)
    )


@pytest.mark.slow
def test_induction_runs_small(induction, tmp_path, monkeypatch):
    for name, value in {"EVERY": 2, "MEASURED": 8, "CURVED": 4, "PRODUCTS": 4, "BATCH": 4, "WIDTH": 8}.items():
        monkeypatch.setattr(induction, name, value)
    with jax.enable_x64(False):
        rows = run(induction, tmp_path / "table", monkeypatch, "--seeds", "1", "--steps", "4")
    assert [row["layers"] for row in rows] == ["1", "2"] and (tmp_path / "table.png").exists()
    assert len(read(tmp_path / "table_steps.csv")) == 6
