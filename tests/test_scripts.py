"""The research scripts run, and what they write is what the texts say; the long ones as a small sample."""

import csv
import importlib.util
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers
from functional_nn.lab import experiments

SCRIPTS = Path(__file__).parents[1] / "scripts"
ALL = sorted(path.stem for path in SCRIPTS.glob("*.py"))


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module, out, monkeypatch, *given):
    """The rows a script writes. Users run it as it comes: without strict promotion, in its own precision."""
    monkeypatch.setattr(sys, "argv", [module.__file__, *given, "--out", str(out)])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        module.main()
    return read(out.with_suffix(".csv"))


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_help_shows_an_example(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", "--help"])
    with pytest.raises(SystemExit) as left:
        load(name).main()
    said = capsys.readouterr().out
    assert left.value.code == 0 and f"python scripts/{name}.py" in said and ("--out" in said or "--csv" in said)


def test_the_tutorial_agrees_with_the_texts_and_autodiff(tmp_path, monkeypatch):
    rows = run(load("tutorial"), tmp_path / "table", monkeypatch)
    assert [int(row["section"]) for row in rows] == sorted(int(row["section"]) for row in rows)
    assert {row["section"] for row in rows} == set("1234567") and {row["agrees"] for row in rows} == {"yes"}
    assert (tmp_path / "table.png").exists()
    # what Kordecki prints has four digits; what no text prints says so
    assert {row["allowed"] for row in rows if row["whose"] == "Kordecki"} == {"5e-05"}
    recomputed = {row["by hand"] for row in rows if row["whose"] == "recomputed"}
    assert {"19.0125", "0.593245", "0.592452"} <= recomputed and "text" not in {row["whose"] for row in rows}


def test_gates_are_sorted_by_their_wiring():
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


def one_reader(weights, outputs, t):
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
        ("a_graph", "graph_sensitivities", one_reader),
        ("a_network_of_gates", "Copy", FirstReader),
        ("likelihood_to_loss", "product", lambda x: 1 / (1 + x[0] ** 2 + x[1] ** 2)),
    ],
)
def test_the_tutorial_fails_where_its_recursion_is_wrong(section, name, wrong, tmp_path, monkeypatch):
    module = load("tutorial")
    monkeypatch.setattr(module, name, wrong)
    monkeypatch.setattr(module, "SECTIONS", (getattr(module, section),))
    with pytest.raises(SystemExit) as left:
        run(module, tmp_path / "table", monkeypatch)
    assert left.value.code == 1 and "NO" in (tmp_path / "table.txt").read_text()


@pytest.mark.slow
def test_trajectories_are_the_texts(tmp_path, monkeypatch):
    """Worked examples 1 and 2: 0.00108 at 0.01, 19.0125 for ever at the limit, 1 in P3.3, and what lies beyond."""
    rows = run(load("quadratic_trajectories"), tmp_path / "table", monkeypatch)
    found = {(row["problem"], row["method"], float(row["rate"])): row for row in rows}
    for key, F in {
        ("Eq. 3.15", "GD", 0.01): 0.00108,
        ("Eq. 3.15", "GD", 0.1): 19.0125,
        ("P3.3", "GD", 0.05): 1.0,
    }.items():
        assert float(found[key]["F"]) == pytest.approx(F, rel=5e-3)
    verdicts = {key[:1] + key[2:]: row["verdict"] for key, row in found.items() if key[1] == "GD"}
    assert verdicts == {
        ("Eq. 3.15", 0.01): "converged",
        ("Eq. 3.15", 0.09): "converged",
        ("Eq. 3.15", 0.1): "oscillates",
        ("Eq. 3.15", 0.11): "diverges",
        ("P3.3", 0.01): "converged",
        ("P3.3", 0.045): "converged",
        ("P3.3", 0.05): "oscillates",
        ("P3.3", 0.06): "diverges",
    }
    assert all(float(row["F"]) < 1e-20 for row in rows if row["method"] == "Newton")


@pytest.mark.slow
def test_printed_formulas_differ_as_the_errata_say(tmp_path, monkeypatch):
    rows = run(load("formula_variants"), tmp_path / "table", monkeypatch, "--steps", "320")
    first = {(row["family"], row["variant"]): float(row["first step / own"]) for row in rows}
    verdict = {(row["family"], row["variant"]): row["verdict"] for row in rows}
    # at k = 1: Eq. 3.34 upside down is (1 - b1) / (1 - b2) = 100 times the right rate over sqrt, that is 10
    assert first["adam", "Eq. 3.34 upside down"] == pytest.approx(10, rel=1e-4)
    assert first["rmsprop", "R + gamma g^2"] == pytest.approx(1 / 3, rel=1e-4)  # sqrt(0.1 / 0.9)
    assert first["adagrad", "full matrix G^(-1/2)"] == pytest.approx(np.sqrt(0.5), rel=1e-3)
    assert verdict["momentum", "D = -eta g + alpha D, x - D"] == "diverges"
    assert verdict["momentum", "D = eta g + gamma D, x - D"] == "same"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["minibatch_experiments", "vanishing_gradients", "initialization", "early_stopping_and_regularization"]
)
def test_experiments_run_small(name, tmp_path, monkeypatch):
    with jax.enable_x64(False):
        rows = run(load(name), tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert rows and (tmp_path / "table.png").exists() and (tmp_path / "table.txt").exists()


@pytest.fixture(scope="module")
def claims():
    return load("claims")


@pytest.mark.parametrize(
    ("claimed", "values", "said"),
    [
        ("> 6", np.linspace(6.1, 9, 11), "holds"),
        ("> 6", np.linspace(0.5, 5.9, 11), "contradicted"),
        ("> 6", np.linspace(5, 7, 11), "undecided"),
        ("< 0.05", np.linspace(0, 0.04, 11), "holds"),
        ("< 0.05", np.linspace(0.06, 0.1, 11), "contradicted"),
        ("> 1", np.ones(11), "contradicted"),  # no more than 1
        ("< 1", np.ones(11), "contradicted"),
        ("> 6", np.full(4, 9.0), "undecided"),  # too few for 90 %
        ("> 6", np.array([9.0] * 6 + [np.nan] * 5), "undecided"),  # five may be anything
        ("< 6", np.array([1.0] * 6 + [np.nan] * 5), "undecided"),
        ("> 6", np.array([9.0] * 9 + [np.nan] * 2), "holds"),  # whatever two are
        ("> 1", 1.0, "contradicted"),  # an exact number
        ("> 1", 1.5, "holds"),
    ],
)
def test_a_claims_verdict_is_what_its_data_say(claims, claimed, values, said):
    assert claims.judge("a finding", claimed, values)["verdict"] == said


def test_a_claim_of_what_was_never_reached_is_judged_by_its_bounds(claims):
    lower, upper = np.full(11, 4.0), np.full(11, np.inf)
    assert claims.judge("ratio", "> 3", lower, upper)["verdict"] == "holds"
    assert claims.judge("ratio", "> 6", lower, upper)["verdict"] == "undecided"


@pytest.mark.oracle
@pytest.mark.parametrize("count", [5, 8, 11, 13, 16, 40])
def test_a_claims_interval_is_scipys(claims, count):
    from scipy.stats import quantile_test

    values = np.random.default_rng(count).normal(size=count)
    interval = quantile_test(values, p=0.5).confidence_interval(0.9)
    assert claims.interval(values) == (np.median(values), *interval)


def test_no_seed_of_a_claim_chooses_its_own_rate(claims):
    scores = np.array([[3.0, 3, 3, 3], [2, 2, 2, np.nan], [1, 1, 9, 9]])  # (rates, seeds)
    assert claims.best_by_others(scores).tolist() == [1, 1, 2, 2]  # medians of the others: 2 and 9; 2 and 1
    scores[:, 0] = [0, 99, 99]
    assert claims.best_by_others(scores)[0] == 1


def test_a_claims_updates_to_a_loss(claims):
    epoch = np.arange(10)
    loss = np.stack([np.exp(-0.7 * (epoch + 0.5)), np.full(10, np.nan), np.full(10, 0.01)])
    least, most = claims.updates_to(np.exp(-3.0), loss)
    an_epoch = claims.TRAINED_ON // claims.BATCH
    np.testing.assert_allclose(least, np.array([3 / 0.7, 10, 0.5]) * an_epoch, rtol=1e-12)
    np.testing.assert_allclose(most, np.array([3 / 0.7, np.inf, 0.5]) * an_epoch, rtol=1e-12)


def test_a_claims_smoothness_tells_pictures_from_noise(claims):
    row, column = np.indices((8, 8))
    assert claims.smoothness((-1.0) ** (row + column)) == pytest.approx(-1)
    assert claims.smoothness(row + column + 0.0) > 0.7
    assert abs(claims.smoothness(np.random.default_rng(0).normal(size=(500, 8, 8))).mean()) < 0.03


def test_momentum_without_its_memory_contradicts_the_claim(claims, tmp_path, monkeypatch):
    rows = run(claims, tmp_path / "table", monkeypatch, "--only", "f", "--seeds", "2")
    assert [row["verdict"] for row in rows] == ["contradicted", *["holds"] * 12]  # eta / (1 - 0) is no more than eta
    forgets = types.SimpleNamespace(momentum=lambda rate, decay: optimizers.gd(rate))
    monkeypatch.setattr(claims, "optimizers", forgets)
    rows = run(claims, tmp_path / "table", monkeypatch, "--only", "f", "--seeds", "2")
    assert {row["verdict"] for row in rows} == {"contradicted"}


@pytest.mark.parametrize("given", [("--only", "a,z"), ("--seeds", "1"), ("--epochs", "0")])
def test_claims_refuse_what_they_cannot_do(claims, given, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(claims, tmp_path / "table", monkeypatch, *given)
    assert "expected" in capsys.readouterr().err


@pytest.mark.slow
def test_claims_run_small(claims, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RATES", np.array([0.25, 0.5]))
    with jax.enable_x64(False):
        rows = run(claims, tmp_path / "table", monkeypatch, "--only", "g,j", "--seeds", "2", "--epochs", "1")
    assert {row["claim"] for row in rows} == set("gj") and {row["verdict"] for row in rows} == {"undecided"}
    assert (tmp_path / "table.png").exists() and "Held equal" in (tmp_path / "table.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["per_example_gradients", "gradient_noise", "sharpness", "tangent_kernel"])
def test_quantities_run_small(name, tmp_path, monkeypatch):
    module = load(name)
    for what, small in (("WIDTHS", (8, 16)), ("BATCHES", (256, 1438)), ("DRAWS", 20)):
        if hasattr(module, what):
            monkeypatch.setattr(module, what, small)
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert rows and (tmp_path / "table.png").exists() and (tmp_path / "table.txt").exists()


@pytest.mark.slow
def test_the_benchmark_of_quantities_runs_small(tmp_path, monkeypatch):
    module = load("benchmark_quantities")
    module.SIZES, module.KERNEL = (((64, 8, 10), 16), ((64, 9, 10), 16)), 8
    rows = run(module, tmp_path / "table", monkeypatch, "--rounds", "1")
    assert {row["quantity"] for row in rows} >= {"per_example_norms", "hessian_vector_product", "hessian"}
    said = (tmp_path / "table.txt").read_text()
    assert "variance / one jax.grad" in said and ("met" in said or "MISSED" in said)


@pytest.mark.slow
def test_the_race_runs_small(tmp_path, monkeypatch):
    module = load("optimizer_race")
    module.OPTIMIZERS = {name: module.OPTIMIZERS[name] for name in ("gd", "adam", "rprop")}
    module.HIDDEN = {"digits": 8, "diabetes": 4}
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert {row["optimizer"] for row in rows} >= {"gd", "adam", "rprop"}


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
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # which it sets
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


def test_an_accelerators_table_says_where_it_is_full(monkeypatch):
    """Of 100, 950 and 1000 networks a second the second is the first with nine tenths; 2 products of 1 TFLOP/s."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
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
def test_memory_is_measured_small(tmp_path, monkeypatch):
    """64 MiB are 4 chunks or fewer: that they are fewer than the data, the full run shows."""
    module = load("larger_than_memory")
    module.ARRAYS = module.ARRAYS[:1]
    rows = run(module, tmp_path / "table", monkeypatch, "--mebibytes", "200", "--arrays", "100")
    by_name = {row["run"]: row for row in rows}
    assert len(by_name) == 4 and float(by_name["and resumed"]["validation accuracy"]) > 0.9
    assert 1 <= float(rows[0]["beyond / data"]) < 1.9  # a copy would make it 2, and more than that


@pytest.fixture
def mnist_1d(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # which it sets
    return load("mnist_1d")


def test_networks_on_mnist_1d_are_its_authors(mnist_1d):
    """As many parameters as the log of their notebook tells."""
    sizes = {
        of: sum(row["parameters"] for row in fnn.presets.layer_rows(network))
        for of, network in mnist_1d.NETWORKS.items()
        if not of[1]
    }
    assert sizes == {
        ("linear", ""): 410,
        ("dense", ""): 15210,
        ("convolutional", ""): 5210,
        ("recurrent", ""): 5134 - 2 * 18 + 2 * 6,
    }  # without second biases, with states to start from
    assert [mnist_1d.verdict(points) for points in (-2.1, -2, 2, 2.1)] == ["LOWER", *["as printed"] * 2, "higher"]


def test_signals_are_given_both_ways(mnist_1d):
    x = np.arange(80.0).reshape(2, 40)
    read = mnist_1d.as_read(mnist_1d.recurrent(), x)
    assert read["signal"].shape == read["reversed"].shape == (2, 40, 1)
    assert (read["signal"][..., 0] == x).all() and (read["reversed"][:, ::-1, 0] == x).all()
    assert list(mnist_1d.as_read(mnist_1d.dense(), x)) == ["signal"]


def test_the_rate_on_mnist_1d_is_the_held_out_parts(mnist_1d, monkeypatch):
    """Of rates by the mean over seeds of each one's best epoch."""
    monkeypatch.setattr(mnist_1d, "RATES", (0.1, 0.2))
    accuracy = np.array([[0.3, 0.9, 0.5, 0.6], [0.4, 0.1, 0.8, 0.7]])  # (epochs, rates x seeds)
    population = types.SimpleNamespace(history=types.SimpleNamespace(validation_accuracy=accuracy))
    rate, members, highest = mnist_1d.chosen(population, 2)
    assert rate == 0.2 and members.tolist() == [2, 3] and highest.tolist() == [0.8, 0.7]


@pytest.mark.slow
def test_mnist_1d_runs_small(mnist_1d, tmp_path, monkeypatch):
    pytest.importorskip("mnist1d")
    few = {of: mnist_1d.NETWORKS[of] for of in (("linear", ""), ("recurrent", ""))}
    monkeypatch.setattr(mnist_1d, "NETWORKS", few)
    with jax.enable_x64(False):
        rows = run(mnist_1d, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert [row["places"] for row in rows] == ["as they are"] * 2 + ["shuffled"] * 2
    assert all(float(row["test %"]) > 15 for row in rows) and (tmp_path / "table.png").exists()


@pytest.fixture(scope="module")
def convolution():
    return load("convolution")


@pytest.mark.slow
def test_parts_of_a_kernels_gradient_add_up(convolution):
    """Right and wrong labels' parts to the gradient of the mean loss."""
    x, labels, wrong = np.random.default_rng(0).normal(size=(6, 8, 8, 1)), np.arange(6) % 3, np.arange(6) < 3
    given = (labels + wrong) % 3
    pictures = convolution.Pictures(x, np.eye(3)[labels], x, np.eye(3)[labels], ("a", "b", "c"))
    network = pictures.network()
    params = network.init(jax.random.key(0))
    norms = {"gradient norm": np.arange(6.0)[None, None] % 5}
    found = convolution.kernels_of(pictures, convolution.Searched(norms, given[None], wrong[None], None, None, params))
    whole = fnn.value_and_grad(network, "cross_entropy")(params, x, np.eye(3)[given])[1]["conv1"]["weights"]["image"]
    np.testing.assert_allclose(found.right + found.wrong, whole[..., 0], rtol=1e-10, atol=1e-12)
    assert found.suspect == 4 and found.kernels.shape == (6, 3, 3)


@pytest.mark.slow
def test_convolution_runs_small(convolution, tmp_path, monkeypatch):
    small = convolution.Recipe("lenet((2, 2), (4,))", 20, 0.003, augment=("shift(1)",))
    monkeypatch.setattr(convolution, "EPOCHS", {"digits": 20})
    monkeypatch.setattr(convolution, "RECIPES", {"small": small})
    with jax.enable_x64(False):
        rows = run(convolution, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert len(rows) == 6  # kernels
    for name in ("agreement", "wrong_labels", "digits"):
        assert (tmp_path / f"table_{name}.txt").exists()
    assert {row["agrees"] for row in read(tmp_path / "table_agreement.csv")} == {"yes"}
    assert (tmp_path / "table.png").exists() and (tmp_path / "table_wrong_labels.png").exists()


@pytest.mark.slow
def test_a_population_of_convolutions_runs_small(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # which it sets
    module = load("population_convolution")
    module.KERNELS, module.RATES, module.ALONE = (1, 3), (0.003, 0.01), 1
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    assert [row["kernel"] for row in rows] == ["1 x 1"] * 2 + ["3 x 3"] * 2
    assert sum(row["test accuracy"] != "" for row in rows) == 2 and (tmp_path / "table.png").exists()


@pytest.fixture(scope="module")
def transformer():
    return load("transformer")


def test_n_grams_are_witten_and_bells(transformer):
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


@pytest.fixture(scope="module")
def induction():
    return load("induction")


def test_sequences_come_again_after_their_period(induction):
    x, following, period = map(np.asarray, induction.sequences(jax.random.key(0), 8))
    assert x.shape == (8, induction.LENGTH) and (x[:, 1:] == following[:, :-1]).all()
    assert (period >= induction.PERIODS[0]).all() and (period <= induction.PERIODS[1]).all()
    for tokens, P in zip(x, period, strict=True):
        assert (tokens[P:] == tokens[:-P]).all()


def test_shares_of_attention_are_those_of_the_position_so_far_back(induction):
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


@pytest.fixture
def expressiveness(monkeypatch):
    for name in ("JAX_NUM_CPU_DEVICES", "OPENBLAS_NUM_THREADS"):  # which it sets for JAX and its children
        monkeypatch.setenv(name, "1")
    return load("expressiveness")


def test_three_layers_have_a_network_of_two_with_as_many_parameters(expressiveness):
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
def test_layers_differ_where_the_middle_halves_of_their_starts_lie_apart(flat, deep, said, expressiveness):
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


@pytest.fixture(scope="module")
def normalisation():
    return load("normalisation")


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
def test_a_norm_step_by_step_is_what_autodiff_finds(normalisation, norm):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows = normalisation.exercise(norm)
    assert {row["step"] for row in rows} == set(normalisation.STEPS)
    assert {row["is"] for row in rows} >= {"in one line", "the library's row"}
    for row in rows:  # a dozen roundings of float64 of numbers up to 4
        assert row["difference"] < 1e-14, row
    s = [row["by hand"] for row in rows if row["is"] == "in one line"]
    x = [row["value"] for row in rows if row["step"] == "normalized"]
    # neither a shift of all numbers nor, but for epsilon, a stretch moves the output
    assert abs(sum(s)) < 1e-14 and abs(np.dot(s, x)) < 1e-5


def test_a_norm_step_by_step_needs_both_ways_back(normalisation, monkeypatch):
    whole = normalisation.by_hand

    def forgets_the_variance(*given):
        values, found = whole(*given)
        return values, found | {"centred": found["normalized"] * values["inverse"]}

    monkeypatch.setattr(normalisation, "by_hand", forgets_the_variance)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        wrong = {row["step"] for row in normalisation.exercise("batch_norm") if row["difference"] > 1e-14}
    assert wrong == {"centred"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual_depth", "normalisation"])
def test_normalization_runs_small(name, tmp_path, monkeypatch):
    module = load(name)
    small = {"DEPTHS": (2, 3), "EXAMPLES": 64, "RATES": (0.1, 0.3), "PRODUCTS": 4, "EVERY": 2, "UPDATES": 3}
    for what, value in small.items():
        if hasattr(module, what):
            monkeypatch.setattr(module, what, value)
    monkeypatch.setattr(module, "NORMS", {norm: module.NORMS[norm] for norm in ("none", "batch_norm")})
    length = {"residual_depth": "--epochs", "normalisation": "--measurements"}[name]
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", length, "2")
    assert {row["norm"] for row in rows} == {"none", "batch_norm"}
    assert (tmp_path / "table.png").exists() and (tmp_path / "table.txt").exists()


@pytest.fixture(scope="module")
def adding_problem():
    return load("adding_problem")


def test_sequences_of_the_adding_problem(adding_problem):
    """Two marked, one in each half, and their sum; who always says the mean has the error that is told."""
    x, sums = map(np.asarray, adding_problem.sequences(jax.random.key(0), 4000, 9))
    numbers, markers = x[..., 0], x[..., 1]
    assert x.shape == (4000, 9, 2) and numbers.min() >= 0 and numbers.max() < 1
    assert (markers[:, :4].sum(axis=1) == 1).all() and (markers[:, 4:].sum(axis=1) == 1).all()
    assert set(np.unique(markers)) == {0, 1} and markers.any(axis=0).all()
    np.testing.assert_allclose(sums[:, 0], numbers[markers == 1].reshape(-1, 2).sum(axis=1), rtol=1e-6)
    # within five deviations of the mean of 4000 squares, whose own is sqrt(7) / 30
    assert abs(np.mean((sums - 1) ** 2) - adding_problem.MEAN) < 5 * np.sqrt(7) / 30 / np.sqrt(4000)


def test_updates_until_the_adding_problem_is_solved(adding_problem, monkeypatch):
    monkeypatch.setattr(adding_problem, "EVERY", 50)
    errors = np.array([[0.5, 0.02, 0.005, 0.02], [0.5, 0.3, 0.2, np.nan], [0.001, 1, 1, 1]])
    assert adding_problem.reached(errors).tolist() == [100, np.inf, 0]


@pytest.mark.slow
def test_the_adding_problem_runs_small(adding_problem, tmp_path, monkeypatch):
    for what, small in (("LENGTHS", (5,)), ("WIDTH", 8), ("TESTED", 50), ("RATES", (0.003, 0.03)), ("EVERY", 20)):
        monkeypatch.setattr(adding_problem, what, small)
    with jax.enable_x64(False):
        rows = run(adding_problem, tmp_path / "table", monkeypatch, "--seeds", "2", "--updates", "200")
    assert [(row["network"], row["T"]) for row in rows] == [(name, "5") for name in ("tanh", "GRU", "LSTM")]
    assert all(float(row["error"]) < adding_problem.MEAN for row in rows) and (tmp_path / "table.png").exists()


@pytest.fixture(scope="module")
def cliffs():
    return load("cliffs")


@pytest.mark.parametrize("p", [(5.0, -2.0), (4.3, -2.15), (6.0, -4.0)])
def test_the_neuron_at_the_cliff_is_pascanus(cliffs, p):
    """Its error and derivatives, forward in time, in his x_t: the network's state is sigmoid(x_t)."""
    sigmoid, (w, b), x, x_w, x_b = lambda x: 1 / (1 + np.exp(-x)), p, 0.5, 0.0, 0.0
    for _ in range(50):
        h = sigmoid(x)
        x, x_w, x_b = w * h + b, h + w * h * (1 - h) * x_w, 1 + w * h * (1 - h) * x_b
    h = sigmoid(x)
    value, gradient = cliffs.value_and_grad(np.array(p))
    expected = 2 * (h - 0.7) * h * (1 - h) * np.array([x_w, x_b])
    np.testing.assert_allclose(value, (h - 0.7) ** 2, rtol=1e-11)  # of 50 steps, each of which may stretch roundings
    np.testing.assert_allclose(gradient, expected, rtol=1e-11)
    assert cliffs.differences(np.array([p]), np.asarray(gradient)[None]) < 1e-12


@pytest.mark.slow
def test_cliffs_run_small(cliffs, tmp_path, monkeypatch):
    monkeypatch.setattr(cliffs, "LARGEST", (None, cliffs.CLIPPED))
    rows = run(cliffs, tmp_path / "table", monkeypatch, "--steps", "60", "--starts", "3")
    assert {row["clipped to"] for row in rows} == {"no", str(cliffs.CLIPPED)}
    for row in rows:
        bound = np.inf if row["clipped to"] == "no" else float(row["clipped to"]) * float(row["rate"])
        assert float(row["longest step"]) <= bound * (1 + 1e-12)
    thrown = {row["clipped to"]: float(row["longest step"]) for row in rows if float(row["rate"]) == cliffs.RATE}
    assert thrown["no"] > 5 and (tmp_path / "table.png").exists()


@pytest.fixture(scope="module")
def learning_rules():
    return load("learning_rules")


def trained(module, test):
    return module.Trained(0.1, np.asarray(test), np.asarray(test), {}, {})


def test_an_order_of_rules_is_what_their_differences_allow(learning_rules):
    """0.9 points apart with a standard error of 0.1: the same, or reversed; with one of 0.9: open."""
    a = np.full(4, 0.9)
    apart = np.array([0.007, 0.009, 0.011, 0.009])
    far = np.array([0.027, -0.009, 0.009, 0.009])
    exact, uniform, direct, alignment = learning_rules.OF_LENET
    tests = {exact: a, uniform: a - apart, direct: a, alignment: a - far}
    found = {("digits", "lenet", rule): trained(learning_rules, test) for rule, test in tests.items()}
    said = learning_rules.order(found, "digits", "lenet")
    assert f"{exact} < {uniform} the same (+0.90, se 0.08)" in said
    assert f"{uniform} < {direct} REVERSED (-0.90, se 0.08)" in said and f"{direct} < {alignment} open (+0.90" in said


def test_a_feedback_angle_must_be_small_in_every_layer_and_seed(learning_rules):
    cosine = np.full((5, 3), 0.5)
    low = cosine.copy()
    low[-1, 2] = -0.1  # one seed, in the last epoch
    early = cosine.copy()
    early[0] = -0.1  # long before
    for layer, said in ((cosine, "below 90 everywhere"), (early, "below 90 everywhere"), (low, "NOT below in 1 of 6")):
        own = {"layer1": cosine, "layer2": layer, "layer3": -cosine}  # of the output, where it is exact
        one = learning_rules.Trained(0.1, None, None, own, own)
        sensitivity, gradient = learning_rules.feedback_angles({("digits", "mlp, 2 hidden", "feedback_alignment"): one})
        assert said in sensitivity and said in gradient


@pytest.mark.slow
def test_learning_rules_run_small(learning_rules, tmp_path, monkeypatch):
    some = ("exact", "direct_feedback", "feedback_alignment")
    few = {rule: learning_rules.RULES[rule] for rule in (*some, "forward_gradient")}
    small = {"RULES": few, "OF_DEPTHS": some, "OF_LENET": some, "DEPTHS": (1, 2), "DEEP": 2, "RATES": (0.03, 0.1)}
    for what, value in (small | {"PARTS": {"digits": (64, 32, 32)}}).items():
        monkeypatch.setattr(learning_rules, what, value)
    dense = [job for job in learning_rules.jobs(3) if job.data == "digits" and job.depth]
    monkeypatch.setattr(learning_rules, "jobs", lambda epochs: dense)
    with jax.enable_x64(False):
        rows = run(learning_rules, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "3")
    assert [row["network"] for row in rows] == ["mlp, 1 hidden"] * 3 + ["mlp, 2 hidden"] * 4
    assert all(float(row["largest"]) < 0.1 for row in rows if row["rule"] == "exact")  # rounding's angle
    assert (tmp_path / "table.png").exists() and "BioTorch" in (tmp_path / "table.txt").read_text()


@pytest.mark.slow
def test_low_precision_backward_runs_small(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))  # it imports its neighbour
    module = load("low_precision_backward")
    module.BITS, module.RATES = (1, 8), (0.03, 0.1)
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--seeds", "2", "--epochs", "2")
    angles = {(row["rounded"], row["bits"]): float(row["angle, layer1"]) for row in rows}
    assert angles["exact", ""] < 0.1 < angles["nearest", "8"] < angles["nearest", "1"]
    assert angles["stochastic", "8"] < angles["stochastic", "1"] and (tmp_path / "table.png").exists()


@pytest.mark.slow
def test_gradient_estimators_are_as_far_off_as_derived(tmp_path, monkeypatch):
    module = load("gradient_estimators")
    module.WIDTHS, module.WIDTH, module.DIRECTIONS, module.EXAMPLES = (2, 4), 4, (1, 8), (4, 16)
    with jax.enable_x64(False):
        rows = run(module, tmp_path / "table", monkeypatch, "--keys", "200")
    assert len(rows) == 6 * 5 and max(abs(float(row["z"])) for row in rows) < 5
    assert (tmp_path / "table.png").exists()


@pytest.fixture(scope="module")
def cutest():
    return load("cutest")


def test_profiles_are_dolan_and_mores(cutest):
    """Two solvers on four problems, one of which nobody solves: F = 0 reached at costs of 1 and 2, 4 and 1, 3 and -."""
    costs = {"ours": (1, 4, 3, 9), "SciPy BFGS": (2, 1, 7, 9)}
    ends = {"ours": (0.0, 0.0, 1e-7, np.nan), "SciPy BFGS": (0.0, 1e-7, 1e-3, np.inf)}
    rows = [
        {
            "problem": f"P{k}",
            "variables": k + 1,
            "solver": name,
            "F": ends[name][k],
            "F at the start": 1.0,
            "evaluations": costs[name][k] - 1,
            "products": 0,
            "matrices": 1,
            "ms": 2.0 * costs[name][k],
            "compiling, s": 1.0,
        }
        for k in range(4)
        for name in costs
    ]
    names = list(costs)
    found = cutest.judge(rows[:6], names)
    np.testing.assert_array_equal(found.solved, [[True, True, True], [True, True, False]])
    assert found.evaluations.tolist() == [[1, 4, 3], [2, 1, 7]]
    ratios = cutest.profile(found.evaluations, found.solved)
    np.testing.assert_array_equal(ratios, [[0, 0, 2], [0, 1, np.inf]])
    np.testing.assert_allclose(cutest.areas(ratios), [(10 + 10 + 8) / 30, (10 + 9) / 30])
    with_none = cutest.judge(rows, names)
    assert not with_none.solved[:, 3].any()
    assert [row["solved"] for row in cutest.summary(rows, with_none, names)] == [3, 2]
    # strictly: 1e-7 above the best of all, after a fall of 1, is within a millionth; 2e-3 of a fall of 1e3 is not
    far = [row | {"F at the start": 1e3, "F": 5 + row["F"] * 2e4} for row in rows[:6]]
    np.testing.assert_array_equal(cutest.judge(far, names).strictly, [[True] * 3, [True, False, False]])


@pytest.mark.slow
def test_cutest_runs_small_and_goes_on(cutest, tmp_path, monkeypatch):
    pytest.importorskip("sif2jax")
    given = ("--problems", "ROSENBR", "--turns", "1", "--most", "2", "--solvers")
    few = run(cutest, tmp_path / "table", monkeypatch, *given, "newton,SciPy BFGS")
    assert [(row["solver"], row["solved"]) for row in few] == [("newton", "1"), ("SciPy BFGS", "1")]
    before = (tmp_path / "table_runs.csv").read_text()
    more = run(cutest, tmp_path / "table", monkeypatch, *given, "newton,bfgs,SciPy BFGS")
    assert len(more) == 3 and (tmp_path / "table_runs.csv").read_text().startswith(before)
    assert (tmp_path / "table.png").exists()
