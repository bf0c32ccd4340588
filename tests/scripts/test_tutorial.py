"""The tutorial agrees with the texts and with autodiff, and notices a wrong recursion."""

import numpy as np
import pytest
from scripts.running import load, run


def test_every_number_agrees_with_a_text_or_autodiff(tmp_path, monkeypatch):
    rows = run(load("tutorial"), tmp_path / "table", monkeypatch)
    assert [int(row["section"]) for row in rows] == sorted(int(row["section"]) for row in rows)
    assert {row["section"] for row in rows} == set("1234567") and {row["agrees"] for row in rows} == {"yes"}
    assert (tmp_path / "table.png").exists()
    # what Kordecki prints has four digits; what no text prints says so
    assert {row["allowed"] for row in rows if row["whose"] == "Kordecki"} == {"5e-05"}
    recomputed = {row["by hand"] for row in rows if row["whose"] == "recomputed"}
    assert {"19.0125", "0.593245", "0.592452"} <= recomputed and "text" not in {row["whose"] for row in rows}


def test_gates_are_sorted_topologically_in_any_order():
    module = load("tutorial")
    gates = [module.relu_layer(3, 2), list(module.ANY_FUNCTION)]
    for order in range(3):
        for some in gates:
            shuffled = [some[i] for i in np.random.default_rng(order).permutation(len(some))]
            written = {wire for gate in some for wire in gate.writes}
            inputs = {wire for gate in some for wire in gate.reads} - written
            found = module.ComputationalGraph(shuffled, inputs).nodes_topologically_sorted()
            assert sorted(map(id, found)) == sorted(map(id, some))
            for place, gate in enumerate(found):
                earlier = {wire for other in found[:place] for wire in other.writes}
                assert set(gate.reads) & written <= earlier
    circle = [module.Add("x b", "a"), module.Copy("a", "b loss")]
    with pytest.raises(ValueError, match=r"wires \['x', 'b'\] are written by no gate, or by one that waits for them"):
        module.ComputationalGraph(circle, ("x",)).forward({"x": 1.0})


class FirstReader:
    """A copy gate that forgets all but one of those who read it."""

    def __init__(self, reads, writes):
        self.reads, self.writes = reads.split(), writes.split()

    def forward(self, x):
        return (x,) * len(self.writes)

    def backward(self, *g):
        return g[:1]


def no_slope(params, outputs, s):
    found = [s]
    for W, _ in params[:0:-1]:
        found.append(found[-1] @ W)
    return found[::-1]


def last_reader_only(weights, outputs, t):
    s, g = {"4": 2 * (outputs["4"] - t)}, {}
    for layer in reversed(("1", "2", "3", "4")):
        if layer != "4":
            s[layer] = (1 - outputs[layer] ** 2) * g[layer]
        g |= {source: s[layer] @ W for (reader, source), W in weights.items() if reader == layer}
    return s, g["p"]


@pytest.mark.parametrize(
    ("section", "name", "wrong"),
    [
        ("a_batch", "batch_sensitivities", no_slope),
        ("a_graph", "graph_sensitivities", last_reader_only),
        ("a_network_of_gates", "Copy", FirstReader),
        ("likelihood_to_loss", "product", lambda x: 1 / (1 + x[0] ** 2 + x[1] ** 2)),
    ],
)
def test_a_wrong_recursion_exits_with_an_error(section, name, wrong, tmp_path, monkeypatch):
    module = load("tutorial")
    monkeypatch.setattr(module, name, wrong)
    monkeypatch.setattr(module, "SECTIONS", (getattr(module, section),))
    with pytest.raises(SystemExit) as left:
        run(module, tmp_path / "table", monkeypatch)
    assert left.value.code == 1 and "NO" in (tmp_path / "table.txt").read_text()
