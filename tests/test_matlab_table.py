"""The page for users of MATLAB's shallow networks: every line runs, in its order, and does what it stands for."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import functional_nn as fnn
from functional_nn.lab import matlab

PAGE = (Path(__file__).parents[1] / "scripts" / "pages" / "coming_from" / "matlab.md").read_text()
ROWS = re.findall(r"^\| (.*?) \| (`.*`) \|$", PAGE, re.MULTILINE)
FUNCTIONS = """
    fitnet patternnet feedforwardnet cascadeforwardnet trainlm trainbr trainscg trainrp traincgb traincgf
    traincgp trainbfg traingdx traingd traingdm traingda mapminmax mapstd dividerand divideblock divideint
    divideind max_fail goal min_grad mu mu_dec mu_inc mu_max plotperform plottrainstate plotregression
    ploterrhist plotconfusion plotroc perform sim view confusion roc regression
""".split()

OPTIMIZERS = {
    "traingd": "gd",
    "traingdm": "momentum",
    "traingda": "variable_learning_rate",
    "traingdx": "variable_learning_rate",
    "trainrp": "rprop",
    "traincgf": "conjugate_gradient",
    "traincgp": "conjugate_gradient",
    "traincgb": "conjugate_gradient",
    "trainscg": "scaled_conjugate_gradient",
    "trainbfg": "bfgs",
    "trainbr": "bayesian_regularization",
    "trainlm": "levenberg_marquardt",
}
# whose programs take seconds to compile, and whose siblings are among the others
SLOW = ("traingd", "traingda", "traincgf", "traincgp", "traincgb", "trainscg", "trainbfg", "trainbr")


def lines(row):
    return re.findall(r"`([^`]+)`", row[1])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The names after all lines but those of `SLOW`, and what each line gave: its value, or its first name's."""
    names, gave = {}, {}
    (setup,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(setup, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("table"))
        for row in ROWS:
            for line in () if any(f"`{name}`" in row[0] for name in SLOW) else lines(row):
                gave[line] = run(line, names)
    yield names, gave
    plt.close("all")


def run(line, names):
    assigned = re.match(r"\(*(\w+)[\w, ()]* = ", line)
    if not assigned:
        return eval(line, names)
    exec(line, names)
    return names[assigned[1]]


def test_every_function_has_its_line():
    named = {word for row in ROWS for code in re.findall(r"`([^`]+)`", row[0]) for word in re.findall(r"\w+", code)}
    assert not set(FUNCTIONS) - named
    assert len(re.findall(r"^\| ", PAGE, re.MULTILINE)) == len(ROWS) + 1, "each row but the header's has a line"


def of(function, gave):
    """What the last line of the row gave whose first cell names the function."""
    (row,) = [row for row in ROWS if re.search(rf"`{re.escape(function)}\b", row[0])]
    return gave[lines(row)[-1]]


@pytest.mark.slow
def test_examples_are_divided(ran):
    names, gave = ran
    for how in ("divideind", "divideblock", "divideint", "dividerand"):
        assert sorted(np.concatenate(of(how, gave))) == list(range(442))
    np.testing.assert_array_equal(of("divideind", gave).training, np.arange(300))
    np.testing.assert_array_equal(names["x2"], names["x"][names["parts"].validation])


def test_data_are_scaled_by_the_training_part(ran):
    names, gave = ran
    standard = of("mapstd", gave).apply(names["x1"])
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(standard.std(axis=0), 1, rtol=1e-12)
    for own in (names["p1"], names["y1"]):
        np.testing.assert_allclose([own.min(axis=0), own.max(axis=0)], [[-1] * own.shape[1], [1] * own.shape[1]])
    assert np.abs(names["p3"]).max() > 1  # which the test part knows nothing of
    np.testing.assert_allclose(names["t1_again"], names["t1"], rtol=1e-12)


@pytest.mark.parametrize("function", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in OPTIMIZERS])
def test_every_training_function_trains(ran, function):
    names, gave = ran
    (row,) = [row for row in ROWS if re.search(rf"`{function}`", row[0])]
    (line,) = lines(row)
    assert OPTIMIZERS[function] in line
    result = gave[line] if line in gave else run(line, dict(names))
    history = result.history
    assert history.training_loss[-1] < history.training_loss[0] and result.status != "diverged"
    if function != "trainbr":
        best = result.best
        assert float(best.score) == history.validation_loss.min() == history.validation_loss[int(best.epoch) - 1]
        assert len(history.epoch) == 20 or result.status in ("early_stopping", "loss_below", "gradient_below")


def test_every_training_functions_optimizer_is_known():
    for row in ROWS:
        for name in re.findall(r'train\("([^"]+)"', row[1]):
            assert fnn.optimizers.get(name)


def test_constants_are_those_of_matlab(ran):
    _, gave = ran
    assert {name: of("mu", gave).constants[name] for name in ("mu", "rule", "decrease", "increase", "largest")} == {
        "mu": 1e-3,
        "rule": "factor",
        "decrease": 0.1,
        "increase": 10,
        "largest": 1e10,
    }
    rprop = next(row for row in ROWS if row[0] == "`trainrp`")[1]
    for constant in ("0.07", "decrease=0.5", "increase=1.2", "largest=50"):
        assert constant in rprop


def test_the_criteria_stop(ran):
    assert [criterion.name for criterion in ran[0]["stop"]] == ["early_stopping", "loss_below", "gradient_below"]


def test_networks_are_built(ran):
    names, _ = ran
    assert [layer.sources for layer in names["cascade"].layers] == [("x",), ("x", "a"), ("x", "a", "b")]
    assert [layer.activation.name for layer in names["pattern"].layers] == ["tanh", "softmax"]


def test_results_have_their_functions(ran):
    names, gave = ran
    correlation = np.corrcoef(names["t3"].ravel(), names["predict"](names["x3"]).ravel())[0, 1]
    assert names["line"].correlation == pytest.approx(correlation) and correlation > 0.5
    assert names["fitted"].history.validation_loss.min() == pytest.approx(float(names["loss"]), rel=1e-9)
    assert names["counts"].sum() == 150 and np.trace(names["counts"]) > 130 and names["area"] > 0.99
    figures = [gave[line] for line in gave if line.startswith("plots.")]
    assert len(figures) == 7 and all(isinstance(figure, Figure) for figure in figures)


def test_a_saved_network_comes_back_both_ways(ran):
    names, _ = ran
    predicted = names["predict"](names["x3"])
    own = names["scale_t"].invert(names["net"].apply(names["params"], names["scale_x"].apply(names["x3"])))
    np.testing.assert_array_equal(own, predicted)
    np.testing.assert_allclose(names["y3"], predicted, rtol=1e-10)


def test_transfer_functions_are_named_as_they_are_here():
    said = " ".join(PAGE[PAGE.index("Transfer functions") :].split())
    for function, name in matlab.ACTIVATIONS.items():
        if function != name:
            assert re.search(rf"\b{function}( is)? {name}\b", said) or function == "satlin"
