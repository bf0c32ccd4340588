"""The page of backpropagation: Kordecki's printed numbers, the recursion in NumPy, and what a visitor does."""

import re
from xml.etree import ElementTree

import jax
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn.lab.demonstrations import backpropagation, explanations, one_example
from functional_nn.lab.demonstrations.one_example import Entry, Step

KORDECKI, P32, E34, SOFTMAX, RELU = EXAMPLES = tuple(one_example.examples().values())
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)

# Worked example 6, in our orientation
GRADIENTS = {
    ("1", "p"): [[0.001984, 0.007936, 0.009920], [0.000404, 0.001617, 0.002021]],
    ("2", "1"): [[0.076535, 0.077188], [0.118279, 0.119288]],
    ("1",): [0.002388],
    ("2",): [0.197457],
}
UPDATED = {
    ("1", "p"): [[0.099980, 0.299921, 0.499901], [0.199996, 0.399984, 0.599980]],
    ("2", "1"): [[0.699235, 0.899228], [0.798817, 0.098807]],
    ("1",): [0.499976],
    ("2",): [0.498025],
}


def parts(params):
    """{(layer, source): W, (layer,): b}."""
    weights = {(layer, source): W for layer, own in params.items() for source, W in own["weights"].items()}
    return weights | {(layer,): own["bias"] for layer, own in params.items()}


def answer(example, **changes):
    return one_example.answer(example.start._replace(**changes))[1]


# Computed -------------------------------------------------------------------------------------------------------------


def test_kordeckis_numbers():
    found = answer(KORDECKI)
    printed = {
        "F": (found.value, 0.593245),
        "F after": (found.updated_value, 0.592452),
        "n1": (found.net_inputs["1"], [4.3, 5.3]),
        "n2": (found.net_inputs["2"], [2.086159, 1.388794]),
        "a1": (found.activations["1"], [0.986613, 0.995033]),
        "a2": (found.activations["2"], [0.889551, 0.8004]),
        "g1": (found.received["1"], [0.150209, 0.081805]),
    }
    for name, (computed, expected) in printed.items():
        np.testing.assert_allclose(computed, expected, atol=5e-7, err_msg=name)
    for tree, expected in ((found.gradients, GRADIENTS), (found.updated, UPDATED)):
        for place, values in expected.items():
            np.testing.assert_allclose(parts(tree)[place], values, atol=5e-7, err_msg=str(place))


FUNCTIONS = {
    "linear": (lambda n: n, lambda n: np.eye(len(n))),
    "tanh": (np.tanh, lambda n: np.diag(1 - np.tanh(n) ** 2)),
    "sigmoid": (lambda n: 1 / (1 + np.exp(-n)), lambda n: np.diag(np.exp(-n) / (1 + np.exp(-n)) ** 2)),
    "relu": (lambda n: np.maximum(n, 0), lambda n: np.diag((n > 0) * 1.0)),
    "softmax": (
        lambda n: np.exp(n) / np.exp(n).sum(),
        lambda n: np.diag(np.exp(n) / np.exp(n).sum()) - np.outer(np.exp(n), np.exp(n)) / np.exp(n).sum() ** 2,
    ),
}
LOSSES = {
    "half_sum_square_error": (lambda a, t: np.sum((t - a) ** 2) / 2, lambda a, t: a - t),
    "sum_square_error": (lambda a, t: np.sum((t - a) ** 2), lambda a, t: 2 * (a - t)),
    "cross_entropy": (lambda a, t: -np.sum(t * np.log(a)), lambda a, t: -t / a),
}


@each_example
def test_every_number_against_the_recursion_in_numpy(example):
    found, t = answer(example), np.array(example.targets)
    value, slope = LOSSES[example.loss.name]
    a, n, g = {"p": np.array(example.inputs)}, {}, {}
    for layer in example.network.layers:
        own = example.params[layer.name]
        n[layer.name] = sum(W @ a[source] for source, W in own["weights"].items()) + own["bias"]
        a[layer.name] = FUNCTIONS[layer.activation.name][0](n[layer.name])
    output = example.network.output.name
    g[output] = slope(a[output], t)
    np.testing.assert_allclose(found.value, value(a[output], t), rtol=1e-12)
    np.testing.assert_allclose(found.loss_gradient, g[output], rtol=1e-12)
    for layer in reversed(example.network.layers):
        name = layer.name
        slopes = FUNCTIONS[layer.activation.name][1](n[name]).T
        s = slopes @ g[name]
        np.testing.assert_allclose(found.slopes[name], slopes, atol=1e-12)
        for computed, expected in ((found.net_inputs, n[name]), (found.activations, a[name])):
            np.testing.assert_allclose(computed[name], expected, rtol=1e-12)
        for sensitivities in (found.sensitivities, found.automatic_sensitivities):
            np.testing.assert_allclose(sensitivities[name], s, atol=1e-12)
        if name != output:
            np.testing.assert_allclose(found.received[name], g[name], atol=1e-12)
        for source, W in example.params[name]["weights"].items():
            g[source] = g.get(source, 0) + W.T @ s
            for gradients in (found.gradients, found.automatic):
                np.testing.assert_allclose(gradients[name]["weights"][source], np.outer(s, a[source]), atol=1e-12)
        bias = s if len(example.params[name]["bias"]) == len(s) else [s.sum()]
        np.testing.assert_allclose(found.gradients[name]["bias"], bias, atol=1e-12)
    for place, old in parts(example.params).items():
        moved = old - example.rate * parts(found.gradients)[place]
        np.testing.assert_allclose(parts(found.updated)[place], moved, atol=1e-14)


def test_an_inactive_relu_passes_nothing_back():
    found = answer(RELU)
    assert found.net_inputs["1"][1] < 0 and found.sensitivities["1"][1] == 0 and found.received["1"][1] != 0


@each_example
def test_steps_and_what_they_show(example):
    """Each value is shown from its own step on; every step has words, an equation and numbers."""
    question, found = one_example.answer(example.start)
    every = one_example.steps(example.network)
    count = len(example.network.layers)
    assert len(every) == len(set(every)) == 5 * count + 1
    names = [name for name, S in example.network.sizes.items() for _ in range(S)]
    for at, step in enumerate(every):
        seen = {step.kind: set() for step in every}
        for each in every[: at + 1]:
            seen[each.kind].add(each.layer)
        nodes = backpropagation.nodes(example, question, found, at)
        for name, value, net, back in zip(names, nodes["value"], nodes["net"], nodes["back"], strict=True):
            assert (value != "") == (name == "p" or name in seen["activations"])
            assert (net != "") == (name in seen["net inputs"])
            assert (back != "") == (name in seen["start"] | seen["sensitivities"])
        explained = explanations.explain(example, question, found, step)
        assert explained.words and "<math" in explained.equation and "<math" in explained.numbers
        arrows = backpropagation.flow(example, at)
        right = np.array(arrows["x1"]) > np.array(arrows["x0"])
        assert (
            right.size == 0
            if step.kind not in ("net inputs", "derivatives by the activations")
            else (right.size > 0 and (right == step.forward).all())
        )
    assert every[0] == Step("net inputs", "1") and every[-1] == Step("update")
    rows = str(explanations.comparison(example, found)).count("<tr>") - 3  # headers
    assert rows == len(example.entries) + sum(layer.size for layer in example.network.layers)


def tokens(numbers):
    """What stands in an equation, in order: matrices, numbers, operators, and "symbol" for all else."""
    for math in re.findall("<math.*?</math>", str(numbers)):
        for element in ElementTree.fromstring(math)[0]:
            tag, text = element.tag.rpartition("}")[2], element.text
            if tag == "mtable":
                yield np.array([[float("".join(cell.itertext()).replace("−", "-")) for cell in row] for row in element])
            elif tag == "mn":
                yield float(text)
            elif tag == "mo":
                yield text
            elif tag == "msup" and element[0].text == "10":
                yield 10.0 ** float("".join(element[1].itertext()).replace("−", "-"))
            else:
                yield "symbol"


def evaluated(side):
    """A sum of products, read from left to right; None where there are symbols in it."""
    total, product, sign = 0.0, None, 1.0
    if "symbol" in [each for each in side if isinstance(each, str)]:
        return None
    for before, each in zip(["+", *side], side, strict=False):
        if isinstance(each, str):
            if each == "−" and isinstance(before, str) and before == "(":
                product = -1.0 if product is None else -product
            elif each in "+−":
                total = total if product is None else total + sign * product
                product, sign = None, -1.0 if each == "−" else 1.0
        else:
            both = np.ndim(product) == np.ndim(each) == 2
            product = each if product is None else product @ each if both else product * each
    return total + sign * product


@each_example
def test_the_equations_hold_for_their_numbers(example):
    """Read back from the MathML: both sides of every = and <-, as far as they are numbers."""
    question, found = one_example.answer(example.start)
    for step in one_example.steps(example.network):
        compared = 0
        for line in str(explanations.explain(example, question, found, step).numbers).split("</p>"):
            sides = [[]]
            for token in tokens(line):
                if isinstance(token, str) and token in "=←":
                    sides.append([])
                else:
                    sides[-1].append(token)
            values = [value for side in sides if side and (value := evaluated(side)) is not None]
            for value in values[:-1]:
                np.testing.assert_allclose(value, values[-1], atol=2e-5, err_msg=f"{step}: {line}")
                compared += 1
        assert compared or step.kind in ("activations", "loss"), step


def test_contributions_of_several_readers_are_added():
    question, found = one_example.answer(E34.start)
    step = Step("derivatives by the activations", "1")
    sent = [question.params[m]["weights"]["1"].T @ found.sensitivities[m] for m in ("2", "3")]
    np.testing.assert_allclose(found.received["1"], sum(sent), rtol=1e-12)
    assert all(np.abs(each).min() > 0.1 for each in sent)
    _, pairs = backpropagation.active(E34.network, step)
    assert pairs == {("1", "2"), ("1", "3")}
    assert "layer 2 and layer 3" in explanations.explain(E34, question, found, step).words


@each_example
def test_a_click_means_the_number_or_the_edge_or_the_neuron(example):
    for entry, (x, y) in backpropagation.labels(example, 160).items():
        assert backpropagation.clicked(example, x + 0.02, y - 0.02, (160, 100)) == entry
    for i, end in enumerate(backpropagation.spots(example)["2"]):
        own = Entry("2", 0 if example is KORDECKI else i)  # whose bias is shared
        assert backpropagation.clicked(example, *end, (160, 100)) == own
    assert backpropagation.clicked(example, 0.5, 40.0, (160, 100)) is None
    if example is KORDECKI:  # away from its number, and from where edges cross
        assert backpropagation.clicked(example, 1.8, 0.5, (160, 100)) == Entry("2", 0, "1", 0)


def test_changing_a_parameter_changes_no_other():
    entry = Entry("2", 1, "1", 0)
    changed = entry.put(KORDECKI.params, 9.0)
    assert entry.of(changed) == 9.0 and entry.of(KORDECKI.params) == 0.8
    before, after = (np.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (KORDECKI.params, changed))
    assert (before != after).sum() == 1


@each_example
@pytest.mark.parametrize("wide", [60, 90, 120, 160, 400])
def test_numbers_of_edges_are_clear_of_each_other_and_of_neurons(example, wide):
    """With columns so many pixels apart; where those are too near, a number is drawn upon its neuron."""
    neurons = np.concatenate(list(backpropagation.spots(example).values()))
    unit = [wide, 350 / (np.ptp(neurons[:, 1]) + 1.26)]  # as the page lays it
    places = np.array(list(backpropagation.labels(example, wide).values())) * unit
    apart = np.abs(places[:, None] - places[None, :]) + 1e3 * np.eye(len(places))[:, :, None]
    assert ((apart[:, :, 0] > 20) | (apart[:, :, 1] > 12)).all()
    if wide >= 160:
        assert np.linalg.norm(places[:, None] - neurons[None, :] * unit, axis=2).min() > 22 + 15


@pytest.mark.parametrize(
    ("example", "changes", "said"),
    [
        (SOFTMAX, {"targets": (-1.0, 1.0, 1.0)}, "targets: cross_entropy accepts"),
        (KORDECKI, {"rate": -1.0}, "learning_rate"),
        (KORDECKI, {"rate": float("nan")}, "learning_rate"),
    ],
)
def test_invalid_input_is_refused(example, changes, said):
    with pytest.raises(ValueError, match=said):
        one_example.check(example.start._replace(**changes))


def test_changes_compile_nothing():
    example = KORDECKI
    answer(example)
    program = one_example._program(example.network, example.loss)
    compiled = program._cache_size()
    answer(example, inputs=(2.0, -1.0, 0.5), rate=3.0, params=jax.tree.map(lambda x: x * 2, example.params))
    assert program._cache_size() == compiled


# In a browser ---------------------------------------------------------------------------------------------------------


# Puts the keyboard on the slider of steps, if it is there already.
_HAS_FOCUS = """
const part = view("step")?.shadow_el.querySelector(".noUi-handle");
part?.focus();
return Boolean(part)
"""


def shown(page):
    """All numbers next to the drawing and in the tables, as they are displayed."""
    text = page.script("""
        const texts = [];
        (function walk(root) {
          for (const e of root.querySelectorAll("mn, td")) texts.push(e.textContent);
          for (const e of root.querySelectorAll("*")) if (e.shadowRoot) walk(e.shadowRoot);
        })(document);
        return texts""")
    return [float(each) for each in text if each.replace(".", "", 1).replace("-", "", 1).replace("e", "").isdigit()]


def test_kordeckis_numbers_are_read_on_the_page(visit):
    """Step by step, by keyboard."""
    page, read = visit("backpropagation"), []
    page.focus("next", "button")
    for step in range(1, 12):
        page.until(lambda step=step: page.status().startswith(f"Step {step} of 11"))
        read += shown(page)
        page.press("Enter")
    printed = [
        4.3,
        5.3,
        0.986613,
        0.995033,
        2.086159,
        1.388794,
        0.889551,
        0.8004,
        0.593245,
        0.592452,
        0.150209,
        0.081805,
    ]
    printed += [x for table in (GRADIENTS, UPDATED) for values in table.values() for x in np.ravel(values)]
    for number in printed:
        assert np.abs(np.array(read) - number).min() <= 1.01e-6, number
    assert page.get("step", "value") == 11


def test_an_edge_is_clicked_and_its_weight_changed(visit):
    page = visit("backpropagation")
    edges = page.data("edges")
    at = edges["entry"].index("a¹₁ → a²₂")
    page.until(lambda: len(page.data("edges")["x0"]) == 10)
    x, y = (0.8 * edges[f"{axis}0"][at] + 0.2 * edges[f"{axis}1"][at] for axis in "xy")
    page.changed(lambda: page.click("drawing", x, y), lambda: page.get("entry", "value"))
    assert page.get("entry", "value") == "a¹₁ → a²₂" and page.get("value", "value") == "0.8"
    page.changed(lambda: page.type("value", "-0,25"), lambda: page.data("edges")["gradient"])
    page.until(lambda: page.box("value") == ("-0.25", ""))
    params = jax.tree.map(np.array, KORDECKI.params)
    params["2"]["weights"]["1"][1, 0] = -0.25
    x, t = np.array([KORDECKI.inputs]), np.array([KORDECKI.targets])
    gradient = jax.grad(fnn.objective(KORDECKI.network, KORDECKI.loss))(params, x, t)
    order = [gradient["1"]["weights"]["p"], gradient["2"]["weights"]["1"]]
    np.testing.assert_allclose(page.data("edges")["gradient"], np.concatenate([g.ravel() for g in order]), atol=1e-6)
    assert page.data("edges")["weight"][at] == -0.25 and page.data("edges")["dash"][at] == "dashed"


def test_updates_by_keyboard_are_those_of_gradient_descent(visit):
    page = visit("backpropagation")
    page.set("example", "value", E34.name)
    page.until(lambda: page.status().startswith("Step 1 of 21"))
    page.until(lambda: page.script_with_view(_HAS_FOCUS))  # the example's own slider has come
    page.press("End")
    page.until(lambda: page.status().startswith("Step 21 of 21, the update"))
    for count in (1, 2):
        page.focus("update", "button")
        page.press(" ")
        page.until(lambda count=count: f"after {count} update" in page.status())
        assert page.status().startswith("Step 1 of 21")
    optimizer, params = fnn.optimizers.gd(0.1), E34.params
    for _ in range(2):
        state = optimizer.init(params)
        grads = jax.grad(fnn.objective(E34.network, E34.loss))(params, np.array([E34.inputs]), np.array([E34.targets]))
        params = optimizer.update(state, grads).params
    weights = [entry.of(params) for entry in E34.entries if entry.source]
    np.testing.assert_allclose(page.data("edges")["weight"], weights, atol=1e-6)
    page.focus("again", "button")
    page.changed(lambda: page.press("Enter"), page.status)
    page.until(lambda: np.allclose(page.data("edges")["weight"], [e.of(E34.params) for e in E34.entries if e.source]))


def test_refused_texts_stay_while_the_last_valid_values_count(visit):
    page = visit("backpropagation")
    before = page.until(lambda: page.data("nodes")["a"])
    bad = {
        "inputs": ("1, 4,5", "could be 3 or 2 numbers"),
        "targets": ("0,05", "expected 2 finite numbers"),
        "rate": ("-0,01", "learning_rate must be a finite number >= 0, got -0.01"),
        "value": ("1,000", "thousands"),
    }
    for name, (text, why) in bad.items():
        page.changed(lambda name=name, text=text: page.type(name, text), page.status)
        assert page.status_kind() == "refuses" and why in page.status() and page.data("nodes")["a"] == before
    for name, (text, why) in bad.items():  # all of them, still
        assert page.box(name)[0] == text and why in page.box(name)[1]
    page.focus("update", "button")  # uses the valid values; the refused text stays
    page.changed(lambda: page.press(" "), lambda: page.data("nodes")["a"])
    page.until(lambda: "after 1 update" in page.status())
    assert page.box("value")[0] == "1,000" and page.box("value")[1]
    for name, text, shown in (
        ("inputs", "1 4 5", "1, 4, 5"),
        ("targets", "0,05 0,1", "0.05, 0.1"),
        ("rate", "0,02", "0.02"),
        ("value", "0,3", "0.3"),
    ):
        page.type(name, text)
        page.until(lambda name=name, shown=shown: page.box(name) == (shown, ""))
    page.until(lambda: page.status_kind() == "")
    params = KORDECKI.start._replace(rate=0.01)
    params = KORDECKI.entries[0].put(one_example.answer(params)[1].updated, 0.3)
    wanted = answer(KORDECKI, params=params, targets=(0.05, 0.1), rate=0.02)
    page.until(lambda: np.allclose(page.data("nodes")["a"][3:], [*wanted.activations["1"], *wanted.activations["2"]]))
    weights = [entry.of(wanted.gradients) for entry in KORDECKI.entries if entry.source]
    np.testing.assert_allclose(page.data("edges")["gradient"], weights, atol=1e-6)
