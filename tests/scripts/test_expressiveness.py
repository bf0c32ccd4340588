"""Networks of 2 and 3 layers are compared at equal numbers of parameters."""

import pytest
from scripts.running import load, run

from functional_nn.lab import experiments


@pytest.fixture
def expressiveness(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # which it sets
    return load("expressiveness")


def test_each_network_of_three_layers_has_one_of_two_with_as_many_parameters(expressiveness):
    for inputs, every in expressiveness.HIDDEN.items():
        count = {}
        for hidden in every:
            sizes = (inputs, *hidden, 1)
            count[hidden] = sum((R + 1) * S for R, S in zip(sizes, sizes[1:], strict=False))
            assert experiments.parameter_count(expressiveness.network_of(inputs, hidden)) == count[hidden]
        two, three = ([n for hidden, n in count.items() if len(hidden) == depth] for depth in (1, 2))
        assert three and set(three) <= set(two) and len(set(two)) == len(two)


@pytest.mark.parametrize(
    ("flat", "deep", "said"),
    [
        ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "less with 13 (0.5 and 0.2)"),
        ((0.4, 0.5, 0.6), (0.7, 0.8, 0.9), "more with 13 (0.5 and 0.8)"),
        ((0.4, 0.5, 0.6), (0.1, 0.2, 0.4), "no clear difference with 13 (0.5 and 0.2)"),
        ((0.4, 0.5, 0.6), (0.6, 0.8, 0.9), "no clear difference with 13 (0.5 and 0.8)"),
        ((7e-5, 8e-5, 9e-5), (1e-5, 2e-5, 3e-5), "no clear difference with 13 (0.0001 and 0.0001)"),
    ],
)
def test_networks_differ_where_the_middle_halves_of_their_starts_do_not_overlap(flat, deep, said, expressiveness):
    def row(layers, parameters, low, middle, high):
        grid = {"on grid": middle, "on grid 25 %": low, "on grid 75 %": high}
        own = grid | {"everywhere": 1.0, "everywhere 25 %": 1.0, "everywhere 75 %": 1.0}
        return {"target": "bump", "layers": layers, "parameters": parameters, **own}

    rows = [row(1, 2, 0.9, 0.9, 0.9), row(2, 13, *flat), row(3, 13, *deep)]
    lines = expressiveness.verdicts(rows).splitlines()
    assert lines[0] == "bump: 1 layer 0.9 on grid, 1 everywhere"
    assert lines[1] == f"    3 layers and 2 on grid: {said}"
    assert lines[2] == "    3 layers and 2 everywhere: no clear difference with 13 (1 and 1)"


@pytest.mark.slow
def test_expressiveness_runs_small(expressiveness, tmp_path, monkeypatch):
    """One neuron makes a step and neither a bump nor a disc, which two layers make."""
    few = {1: ((), (4,), (2, 2)), 2: ((), (6,), (3, 3))}
    for name, small in (("HIDDEN", few), ("DRAWN", few), ("CELLS", {1: 40, 2: 12})):
        monkeypatch.setattr(expressiveness, name, small)
    rows = run(expressiveness, tmp_path / "table", monkeypatch, "--seeds", "3", "--steps", "60")
    error = {(row["target"], int(row["layers"])): float(row["lowest on grid"]) for row in rows}
    assert len(error) == len(rows) == 12
    assert error["step", 1] < 0.01 and error["bump", 1] > 0.4 and error["disc", 1] > 0.4
    assert error["bump", 2] < 0.1 and error["disc", 2] < 0.1
    assert (tmp_path / "table.png").exists() and "3 layers and 2" in (tmp_path / "table.txt").read_text()
