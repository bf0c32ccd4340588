"""The page of decision boundaries: its training is `fit`'s, its field is the network's, and it runs while watched."""

import jax
import numpy as np
import pytest
from bokeh.document import Document

import functional_nn as fnn
from functional_nn.lab.demonstrations import boundary, classifier, plane
from functional_nn.lab.demonstrations.classifier import Choice
from functional_nn.lab.demonstrations.page import Live

FIRST = Choice()


def fitted(choice, rate, epochs):
    """The same training by `fit` alone, from the same weights with the same batches."""
    network, found = classifier.network(choice), classifier.data(choice.data)
    plan = fnn.training.minibatch(choice.batch_size) if choice.batch_size else fnn.training.batch()
    optimizer = choice.optimizer if choice.second_order else f"{choice.optimizer}({rate})"
    return fnn.fit(
        network,
        choice.loss,
        optimizer,
        found.inputs[0],
        found.targets[0],
        epochs=epochs,
        plan=plan,
        key=jax.random.key(0),
        params=network.init(jax.random.key(choice.seed)),
        validation=(found.inputs[1], found.targets[1]),
    )


@pytest.mark.parametrize(
    "choice",
    [Choice(batch_size=0), pytest.param(Choice(optimizer="lbfgs").suited, marks=pytest.mark.slow)],
    ids=lambda choice: choice.optimizer,
)
def test_training_in_any_portions_equals_fit(choice):
    """All examples at once, so that no batches are drawn: 7 epochs are 5 and 2 of fit's."""
    now = classifier.advance(classifier.advance(classifier.begin(choice, 0.05), 0.05, 5), 0.05, 2)
    wanted = fitted(choice, 0.05, 7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), now.params, wanted.params)
    np.testing.assert_allclose(now.history.validation_loss, wanted.history.validation_loss, rtol=1e-9)
    assert now.history.epoch.tolist() == list(range(1, 8))


def test_the_rate_may_change_during_training():
    """Nothing else restarts: with a rate of zero the network does not change, and then it continues."""
    now = classifier.advance(classifier.begin(FIRST, 0.05), 0.05, 3)
    still = classifier.advance(now, 0.0, 3)
    jax.tree.map(np.testing.assert_array_equal, still.params, now.params)
    assert classifier.advance(still, 0.05, 10).history.training_loss[-1] < now.history.training_loss[-1]


def test_the_field_equals_the_networks_outputs():
    now = classifier.begin(Choice(hidden=(3, 2)), 0.1)
    field, axis = classifier.field(now), classifier.axis()
    point = np.array([[axis[7], axis[40]]])
    trace = classifier.network(now.choice).forward(now.params, point)
    assert field.outputs[40, 7] == pytest.approx(float(trace.activations["layer3"][0, 0]))
    assert [each.shape for each in field.net_inputs] == [(3, 91, 91), (2, 91, 91)]
    np.testing.assert_allclose(field.net_inputs[1][:, 40, 7], trace.net_inputs["layer2"][0])
    weights, bias = now.params["layer1"]["weights"]["input"], now.params["layer1"]["bias"]
    for x, y in zip(*plane.lines(field.net_inputs[0][:1]).values(), strict=True):
        np.testing.assert_allclose(np.stack([x, y], axis=1) @ weights[0] + bias[0], 0, atol=1e-12)


@pytest.mark.parametrize("name", classifier.DATA)
def test_the_data_are_balanced_and_inside(name):
    found = classifier.data(name)
    assert found.inputs.shape == (2, 200, 2) and found.targets.shape == (2, 200, 1)
    assert set(np.unique(found.targets)) == {0, 1} and 0.4 < found.targets.mean() < 0.6
    assert (np.abs(found.inputs) < 1.75).all() and (np.abs(found.inputs) < classifier.WINDOW[1]).mean() > 0.99


def test_what_suits_an_optimizer():
    assert Choice(optimizer="levenberg_marquardt").suited.loss == "mean_square_error"
    assert Choice(optimizer="newton").suited.batch_size == Choice(optimizer="rprop").suited.batch_size == 0
    assert FIRST.suited == FIRST


@pytest.mark.parametrize(
    "text", ["", "0", "8, x", "4 4 4 4", "25", "-3", "2.5", "8,,8", "8,", "08", "8, 0", "8.0", "1e1", "٨", "8 4 4 4"]
)
def test_invalid_hidden_neurons_are_refused(text):
    with pytest.raises(ValueError, match="expected 1 to 3 integers from 1 to 24, as in 8 or 8, 8, got"):
        classifier.hidden_sizes(text)


@pytest.mark.parametrize(
    ("text", "sizes"), [("8", (8,)), ("8,4", (8, 4)), ("8, 4", (8, 4)), (" 8  4;2 ", (8, 4, 2)), ("24", (24,))]
)
def test_hidden_neurons(text, sizes):
    assert classifier.hidden_sizes(text) == sizes


@pytest.mark.parametrize("rate", [-1.0, float("inf")])
def test_invalid_rates_are_refused(rate):
    with pytest.raises(ValueError, match="learning.rate"):
        classifier.check_rate(FIRST.optimizer, rate)


def test_an_answer_for_an_older_network_is_ignored(monkeypatch):
    """It arrived after another network was chosen, and training does not continue from it."""
    asked = []
    monkeypatch.setattr(Live, "ask", lambda self, question: asked.append(question))
    page = boundary._Page(Document())
    page.show(boundary.answer(asked[-1]))
    page.ask(1)
    page.new_weights()
    count = len(asked)
    page.show(boundary.answer(asked[-2]))
    page.ask(1)
    assert page.now is None and len(asked) == count
    page.show(boundary.answer(asked[-1]))
    assert page.now.choice.seed == 1


# In a browser ---------------------------------------------------------------------------------------------------------


def epochs(page):
    return len(page.data("curves")["x"])


def test_it_learns_visibly_and_stops_on_request(visit):
    page = visit("decision-boundary")
    assert epochs(page) == 0 and "Press Train" in page.status()
    assert page.get("go", "label") == "Train"
    page.focus("go", "button")
    page.press(" ")
    page.until(
        lambda: page.script_with_view("return view('go').shadow_el.activeElement?.textContent") == "Stop"
    )  # by keyboard, too
    page.until(lambda: epochs(page) >= 60 and page.data("curves")["training"][-1] < 0.1)
    page.press(" ")
    page.until(lambda: page.get("go", "active") is False and page.get("go", "label") == "Train")
    count = page.until(lambda: not page.get("go", "active") and epochs(page))
    assert epochs(page) - count <= 5  # a picture may have been on its way
    assert len(page.data("boundary")["xs"]) >= 1 and len(page.data("units")["xs"]) >= 2


def test_a_step_of_levenberg_marquardt(visit):
    page = visit("decision-boundary")
    page.set("optimizer", "value", "levenberg_marquardt")
    page.until(lambda: page.get("loss", "value") == "mean_square_error" and "Press Train" in page.status(), 120)
    page.focus("step", "button")
    page.press("Enter")
    page.until(lambda: epochs(page) == 1)
    wanted = fitted(Choice(optimizer="levenberg_marquardt").suited, None, 1)
    assert page.data("curves")["held_out"][0] == pytest.approx(float(wanted.history.validation_loss[0]), abs=1e-6)


def test_bad_input_changes_nothing_and_divergence_is_named(visit):
    page = visit("decision-boundary")
    page.changed(lambda: page.type("hidden", "8, many"), page.status)
    assert page.status_kind() == "refuses" and "got '8, many'; the last valid value stays" in page.status()
    page.changed(lambda: page.type("rate", "-0,1"), page.status)
    assert (
        page.status_kind() == "refuses"
        and "learning_rate must be" in page.status()
        and "the last valid value stays" in page.status()
    )
    assert page.box("hidden")[0] == "8, many" and page.box("rate")[0] == "-0,1"
    page.set("activation", "value", "linear")  # with the last good ones; what was refused is still there
    page.until(lambda: "2 - 6 - 1 linear" in page.status() and "Press Train" in page.status())
    assert page.box("hidden")[1] and page.box("rate")[1]
    page.set("loss", "value", "mean_square_error")
    page.type("hidden", "6")
    page.type("rate", "1e308")
    page.until(lambda: page.box("hidden")[1] == page.box("rate")[1] == "")
    page.until(lambda: "linear" in page.status() and "Press Train" in page.status())
    page.set("speed", "value", 20)
    page.focus("go", "button")
    page.press("Enter")
    page.until(lambda: epochs(page) > 0 or page.status_kind() == "warns")
    page.until(lambda: page.get("go", "label") == "Train")  # it has stopped by itself
    assert "was not made" in page.status()
