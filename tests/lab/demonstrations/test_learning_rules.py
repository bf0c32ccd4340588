"""The page on learning rules: each side equals `fit` by its rule, its angles are recomputed; a visitor's actions."""

import re

import jax
import numpy as np
import pytest
from bokeh.document import Document

import functional_nn as fnn
from functional_nn.lab import datasets
from functional_nn.lab.demonstrations import classifier, learning_rules, two_networks
from functional_nn.lab.demonstrations.page import Live
from functional_nn.lab.demonstrations.two_networks import DIGITS, Choice, Learner, Question

SMALL = Choice("moons", (4,))


def trained(choice, *rules, epochs, rate=0.02):
    return two_networks.answer(Question(choice, tuple(Learner(rule, rate) for rule in rules), None, epochs)).sides


def examples(task):
    """(inputs, targets) of what is learned from, and of what is held out."""
    if task == DIGITS:
        return [(part.inputs, part.targets) for part in datasets.split(datasets.load("digits"))]
    return list(zip(*classifier.data(task), strict=True))


def fitted(choice, rule, epochs, rate=0.02):
    """The same training by `fit` alone, of the same key."""
    own, held_out = examples(choice.task)
    digits = choice.task == DIGITS
    sizes, last, loss, batch = (
        ((64, 10), "softmax", "cross_entropy", 50) if digits else ((2, 1), "sigmoid", "binary_cross_entropy", 20)
    )
    activations = (choice.activation,) * len(choice.hidden) + (last,)
    network = fnn.multilayer((sizes[0], *choice.hidden, sizes[1]), activations)
    return network, fnn.fit(
        network,
        loss,
        f"{choice.optimizer}({rate})",
        *own,
        key=jax.random.key(choice.seed),
        epochs=epochs,
        plan=fnn.training.minibatch(batch),
        validation=held_out,
        rule=rule,
        correct=None if digits else lambda a, t: ((a > 0.5) == (t > 0.5))[:, 0],
    )


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


# Computed -------------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("choice", "rule"),
    [
        (SMALL, "feedback_alignment(3)"),
        pytest.param(SMALL, "kolen_pollack(0.1)", marks=pytest.mark.slow),
        (Choice("XOR", (4,), "tanh", "momentum", seed=2), "{layer1: noisy(0.5), others: exact}"),
        pytest.param(Choice(DIGITS, (4,)), "direct_feedback(1)", marks=pytest.mark.slow),
    ],
    ids=lambda each: each if isinstance(each, str) else each.task,
)
def test_each_side_in_any_portions_equals_fit(choice, rule):
    """Parameters, learned feedback with them, batches, noise and history: 3 epochs are 2 and 1 of fit's."""
    learners = Learner(rule, 0.02), Learner("exact", 0.02)
    half = two_networks.answer(Question(choice, learners, None, 2))
    now = two_networks.answer(Question(choice, learners, half.sides, 1)).sides
    for side, own in zip(now, (rule, "exact"), strict=True):
        network, wanted = fitted(choice, own, 3)
        np.testing.assert_allclose(flat(side.params), flat(wanted.params), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(side.history.training_loss, wanted.history.training_loss, rtol=1e-9)
        np.testing.assert_allclose(side.history.validation_accuracy, wanted.history.validation_accuracy)
        assert side.measured.epochs.tolist() == [2, 3] or side.measured.epochs.tolist() == [0, 2, 3]
    if choice.task == DIGITS:
        x, t = examples(DIGITS)[1]
        said = np.argmax(network.apply(wanted.params, x), axis=1)
        counts = np.zeros((10, 10), int)
        np.add.at(counts, (np.argmax(t, axis=1), said), 1)
        np.testing.assert_array_equal(now[1].seen, counts)
    else:
        axis = classifier.axis()
        outputs = network.apply(wanted.params, np.array([[axis[7], axis[40]]]))
        assert now[1].seen[40, 7] == pytest.approx(float(outputs[0, 0]))


def test_the_angles_are_those_of_both_gradients():
    """By `jax.grad`, and by feedback alignment whose matrix is read from outside."""
    side = trained(SMALL, "feedback_alignment(3)", "exact", epochs=2)[0]
    (x, t), _ = examples("moons")
    network = two_networks.network(SMALL)
    (B,) = fnn.rules.feedback_weights(network, "feedback_alignment(3)", side.params)["layer2"].values()
    exact = jax.grad(fnn.objective(network, "binary_cross_entropy"))(side.params, x, t)
    trace = network.forward(side.params, x)
    s2 = (trace.activations["layer2"] - t) / len(x)
    s1 = (s2 @ B) * (1 - trace.activations["layer1"] ** 2)
    given = {"layer1": (s1.T @ x, s1.sum(axis=0)), "layer2": (s2.T @ trace.activations["layer1"], s2.sum(axis=0))}
    for i, layer in enumerate(("layer1", "layer2")):
        one, other = flat((exact[layer]["weights"], exact[layer]["bias"])), flat(given[layer])
        norms = np.linalg.norm(one), np.linalg.norm(other)
        angle = np.degrees(np.arccos(np.clip(one @ other / norms[0] / norms[1], -1, 1)))
        np.testing.assert_allclose(side.measured.angles[-1, i], angle, atol=1e-4)
        np.testing.assert_allclose(side.measured.ratios[-1, i], norms[1] / norms[0], rtol=1e-9)
    assert side.measured.angles[-1, 0] > 5 and side.measured.angles[-1, 1] < 1e-4


def test_both_start_alike_and_the_rate_may_change_during_training():
    learners = Learner("exact", 0.02), Learner("sign_symmetric", 0.02)
    start = two_networks.answer(Question(SMALL, learners, None, 0))
    np.testing.assert_array_equal(flat(start.sides[0].params), flat(start.sides[1].params))
    still = two_networks.answer(Question(SMALL, (Learner("exact", 0.0), learners[1]), start.sides, 2)).sides
    np.testing.assert_array_equal(flat(still[0].params), flat(start.sides[0].params))
    assert (flat(still[1].params) != flat(start.sides[1].params)).any()


@pytest.mark.parametrize(
    ("choice", "rule", "said"),
    [
        (SMALL, "perceptron", "perceptron: the rule trains a single layer, got 2"),
        (SMALL, "forward_forward", "rule: forward_forward needs an input 'label'"),
        (SMALL, "{layer9: exact}", "rule: unknown layer 'layer9'"),
        (Choice("moons", (4,), "hardlim"), "feedback_alignment", "layer 'layer1': 'hardlim' has no derivative"),
    ],
)
def test_an_unsupported_rule_is_refused_and_the_other_continues(choice, rule, said):
    other = "surrogate" if choice.activation == "hardlim" else "exact"
    learners = Learner(rule, 0.02), Learner(other, 0.02)
    sides = two_networks.answer(Question(choice, learners, None, 0)).sides
    assert sides[0].startswith(said) and "\n" not in sides[0]
    after = two_networks.answer(Question(choice, learners, sides, 1)).sides
    assert after[0] == sides[0] and len(after[1].history.epoch) == 1


def test_a_network_without_an_exact_gradient_learns_anyway():
    side = trained(Choice("moons", (4,), "hardlim"), "surrogate", "weight_perturbation", epochs=2)[1]
    assert len(side.history.epoch) == 2 and np.isnan(side.measured.angles).all()


@pytest.mark.parametrize("name", fnn.rules.names())
def test_every_rule_is_offered_with_constants_that_it_takes(name):
    text = learning_rules._WRITTEN.get(name, name)
    assert two_networks.read(f" {text} ") == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("noizy(1)", "unknown rule 'noizy'; did you mean 'noisy'?"),
        ("", "unknown rule ''"),
        ("noisy(-1)", "noisy: sigma must be"),
        ("noisy(a)", "noisy"),
        ("noisy", "sigma"),
        ("rounded(0)", "rounded: bits"),
        ("{layer1: noisy(1)", "expected {name: value"),
        ("exact(", "the parentheses do not match"),
        ("{layer1: 3}", "rule"),
        ("{layer1: spsa}", "it cannot be one layer's"),
    ],
)
def test_invalid_rules_are_refused(text, said):
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        two_networks.read(text)
    assert "\n" not in str(refused.value)


def test_another_rate_and_another_task_of_the_plane_compile_nothing():
    trained(SMALL, "exact", "exact", epochs=1)
    of = two_networks._key(SMALL), fnn.rules.exact
    programs = [*two_networks._compiled(*of), two_networks._measures(*of)]
    before = [program._cache_size() for program in programs]
    trained(Choice("XOR", (4,), seed=3), "exact", "exact", epochs=2, rate=0.5)
    assert [program._cache_size() for program in programs] == before and min(before) == 1


def test_the_choice_and_the_box_name_the_same_rule(monkeypatch):
    asked = []
    monkeypatch.setattr(Live, "ask", lambda self, question: asked.append(question))
    page = learning_rules._Page(Document())
    side = page.sides[1]
    assert side.choice.value == "feedback_alignment" and len(asked) == 1
    for name in (*fnn.rules.names(), "by layer"):
        side.choice.value = name
        assert asked[-1].learners[1].rule == side.text.input.value and side.choice.value == name
    side.text.input.value = "rounded(3)"
    assert side.choice.value == "rounded" and asked[-1].learners[1].rule == "rounded(3)"
    count = len(asked)
    side.text.input.value = "rounder(3)"
    assert side.text.refused and len(asked) == count and page.learners[1].rule == "rounded(3)"


def test_an_answer_for_older_networks_is_ignored(monkeypatch):
    """It arrived after others were chosen, and training does not continue from it. An invalid rule keeps its reason."""
    asked = []
    monkeypatch.setattr(Live, "ask", lambda self, question: asked.append(question))
    page = learning_rules._Page(Document())
    page.width.value = "4"
    page.sides[1].text.input.value = "perceptron"
    page.show(two_networks.answer(asked[-1]))
    assert page.now is not None and "leave out the hidden ones" in page.sides[1].text.why.text
    page.ask(1)
    page.task.value = "XOR"
    count = len(asked)
    page.show(two_networks.answer(asked[-2]))
    page.ask(1)
    assert page.now is None and len(asked) == count
    page.sides[1].text.input.value = "noizy"
    page.show(two_networks.answer(asked[-1]))
    assert page.now.question.choice.task == "XOR" and "did you mean" in page.sides[1].text.why.text


# In a browser ---------------------------------------------------------------------------------------------------------


def epochs(page):
    return len(page.data("curves-0")["x"])


@pytest.mark.slow
def test_both_learn_visibly_and_pause_on_request(visit):
    page = visit("learning-rules")
    page.until(lambda: "Press Train" in page.status(), 120)
    assert epochs(page) == 0 and page.data("angles-1")["x"] == [0] and len(page.data("field-0")["image"]) == 1
    page.focus("go", "button")
    page.press(" ")
    page.until(lambda: epochs(page) >= 30, 120)
    page.press(" ")
    count = page.until(lambda: not page.get("go", "active") and epochs(page))
    assert epochs(page) - count <= 5  # a picture may have been on its way
    page.until(lambda: page.data("angles-1")["x"][-1] == epochs(page))
    at = epochs(page)
    sides = trained(Choice(), "exact", "feedback_alignment(0)", epochs=20, rate=0.01)
    for number, side in enumerate(sides):
        losses = page.data(f"curves-{number}")["held_out"][:20]
        np.testing.assert_allclose(losses, side.history.validation_loss, rtol=1e-5)
        where = page.data(f"angles-{number}")["x"].index(20)
        np.testing.assert_allclose(
            [page.data(f"angles-{number}")[str(i)][where] for i in range(3)], side.measured.angles[-1], atol=1e-2
        )
    page.focus("step", "button")
    page.press("Enter")
    page.until(lambda: epochs(page) == at + 5)
    page.focus("again", "button")
    page.press("Enter")
    page.until(lambda: epochs(page) == 0 and "Press Train" in page.status())


def test_a_refusal_is_shown_at_its_box_and_nothing_breaks(visit):
    page = visit("learning-rules")
    page.until(lambda: "Press Train" in page.status(), 120)
    page.type("text-1", "noizy(1)")
    page.until(lambda: "did you mean 'noisy'?" in (page.box("text-1")[1] or ""))
    assert page.status_kind() == "refuses" and "the last valid value stays" in page.status()
    page.type("text-0", "perceptron")
    page.until(lambda: "leave out the hidden ones; there is no training on this side" in (page.box("text-0")[1] or ""))
    assert page.status_kind() == "refuses" and page.data("field-0")["image"] == []
    assert page.get("rule-0", "value") == "perceptron"
    page.focus("step", "button")
    page.press("Enter")  # the other continues, by the last valid rule
    page.until(lambda: page.status().startswith("Held out, after 5 epochs: feedback_alignment(0) "), 120)
    assert page.data("curves-0")["x"] == [] and page.box("text-1")[1]
    page.type("rate-0", "-1")
    page.until(lambda: "learning_rate must be" in (page.box("rate-0")[1] or ""))
    page.set("depth", "value", "0")
    page.until(lambda: "must be of 'hardlim' (targets 0 and 1)" in (page.box("text-0")[1] or ""), 120)
    page.set("rule-0", "value", "hebb")
    page.until(lambda: page.box("text-0") == ("hebb", "") and "left by hebb" in page.status(), 120)
    assert page.box("text-1")[0] == "noizy(1)" and page.box("text-1")[1]


@pytest.mark.slow
def test_digits_are_counted(visit):
    page = visit("learning-rules")
    page.until(lambda: "Press Train" in page.status(), 120)
    page.set("width", "value", "4")
    page.set("task", "value", DIGITS)
    page.until(lambda: page.status().startswith("digits: 64 - 4 - 4 - 10 tanh"), 120)
    assert sum(int(count or 0) for count in page.data("confusion-0")["text"]) == 359
