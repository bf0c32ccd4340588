"""The benchmarks run, as a small sample."""

import types
from pathlib import Path

import jax
import numpy as np
import pytest
from scripts.running import load, read, run


@pytest.mark.slow
def test_the_benchmark_of_quantities_runs_small(tmp_path, monkeypatch):
    module = load("benchmark_quantities")
    module.SIZES, module.KERNEL = (((64, 8, 10), 16), ((64, 9, 10), 16)), 8
    rows = run(module, tmp_path / "table", monkeypatch, "--rounds", "1")
    assert {row["quantity"] for row in rows} >= {"per_example_norms", "hessian_vector_product", "hessian"}
    said = (tmp_path / "table.txt").read_text()
    assert "variance / one jax.grad" in said and ("met" in said or "MISSED" in said)


@pytest.mark.slow
def test_the_benchmark_runs_small(tmp_path, monkeypatch):
    module = load("benchmark_training")
    module.CASES = (module.Case((64, 8, 10), 32, "digits", 2, 1, True),)
    rows = run(module, tmp_path / "table", monkeypatch, "--rounds", "1")
    assert {row["trained by"] for row in rows} >= {"fit, again", "jitted step in a loop, again", "products"}
    (made,) = read(tmp_path / "table_kernels.csv")
    # forward and weight gradients of two layers, and one layer's sensitivities
    assert int(made["product"]) == 5
    assert int(made["fusion"]) > 5


@pytest.mark.slow
def test_the_accelerators_benchmark_runs_small(tmp_path, monkeypatch):
    module = load("benchmark_accelerator")
    monkeypatch.setattr(module, "CASES", (module.Case((64, 4, 10), 128, 1.0),))
    monkeypatch.setattr(module, "UNROLLED", {"step in a scan, unroll 2": 2})
    monkeypatch.setattr(module, "precisions", lambda: ("default", "highest"))  # as on an accelerator
    given = "--largest", "16", "--side", "16", "--examples", "4", "--epochs", "1", "--rounds", "1"
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, *given)
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(module.PARTS)
    assert all(0 < float(row["per second"]) < np.inf for row in rows) and (tmp_path / "table.png").exists()
    told = (tmp_path / "table.txt").read_text()
    assert "nine tenths of it from 16 on" in told and "highest, updates a second over those of fit" in told


def test_the_notes_say_from_how_many_networks_an_accelerator_is_full(monkeypatch):
    """Of 100, 950 and 1000 networks a second the second is the first with nine tenths; 2 products of 1 TFLOP/s."""
    module = load("benchmark_accelerator")
    case = module.Case((64, 4, 10), 128, 1.0)
    monkeypatch.setattr(module, "CASES", (case,))
    options = types.SimpleNamespace(rounds=1, epochs=1, side=8)
    own = [("arithmetic", "product", 8, 1.0, "TFLOP"), ("arithmetic", "small products in a loop", module.LOOP, 5e5, "")]
    own += [
        ("populations", module.name_of(case), n, rate, "networks") for n, rate in ((16, 100), (64, 950), (256, 1000))
    ]
    ways = {"fit": 10.0, module.LOOPED: 5.0} | dict.fromkeys(module.UNROLLED, 20.0)
    own += [("fit", f"{case.name}, {way}", 128, rate, "updates") for way, rate in ways.items()]
    rows = [module.row(part, what, "highest", number, [rate], unit) for part, what, number, rate, unit in own]
    notes = module.notes(rows, options)
    flops = 1000 * (module.ROWS // 128) * 2 * 128 * (2 * (64 * 4 + 4 * 10) + 4 * 10) / 1e12
    assert f"1e+03 networks/s at most, nine tenths of it from 64 on; {flops:.3g} TFLOP/s, {flops:.2g} of" in notes
    assert "jitted step in a loop 0.5, " in notes and "A small product in a loop takes 2 us." in notes
    assert [module.short(rate) for rate in (12.34, 1234, 1.234e7, 5e12)] == ["12.3", "1.23k", "12.3M", "5T"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what is resident")
def test_fit_adds_less_than_a_copy_of_its_arrays(tmp_path, monkeypatch):
    """64 MiB are 4 chunks or fewer: that they are fewer than the data, the full run shows."""
    module = load("larger_than_memory")
    module.ARRAYS = module.ARRAYS[:1]
    rows = run(module, tmp_path / "table", monkeypatch, "--mebibytes", "200", "--arrays", "100")
    by_name = {row["run"]: row for row in rows}
    assert len(by_name) == 4 and float(by_name["and resumed"]["validation accuracy"]) > 0.9
    assert 1 <= float(rows[0]["beyond / data"]) < 1.9  # a copy would make it 2, and more than that
