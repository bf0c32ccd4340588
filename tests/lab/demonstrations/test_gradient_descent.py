"""The page on gradient descent: a visitor's actions, and the library's numbers against independent ones."""

import jax
import numpy as np
import pytest
from bokeh.document import Document

import functional_nn as fnn
from functional_nn.lab.demonstrations import gradient_descent, surfaces
from functional_nn.lab.demonstrations.gradient_descent import Question
from functional_nn.lab.demonstrations.page import Live
from functional_nn.training import batch, stochastic

EQ315, P33, TWO, ADAM = surfaces.surfaces().values()


def fitted(surface, start, steps, rate, plan=None):
    """The last point by `fit`, which knows nothing of the demonstrations; both weights of a linear neuron."""
    params = {"layer1": {"weights": {"input": np.array([start], float)}}}
    plan = plan or batch()
    updates = plan.updates(len(surface.targets))
    assert steps % updates == 0
    found = fnn.fit(
        surface.network,
        "sum_square_error",
        fnn.optimizers.gd(rate),
        surface.inputs,
        surface.targets,
        params=params,
        key=jax.random.key(0),
        epochs=steps // updates,
        plan=plan,
    )
    return np.asarray(found.params["layer1"]["weights"]["input"][0])


# Computed -------------------------------------------------------------------------------------------------------------


def test_paths_equal_the_texts_numbers():
    """Worked examples 1 and 2, and stochastic gradient descent's first four steps."""
    path = surfaces.descend(EQ315, (-1, -2.95), 100, "gd", {"learning_rate": 0.01})
    assert path.values[0] == pytest.approx(22.815) and path.values[-1] == pytest.approx(0.00108, rel=3e-3)
    np.testing.assert_allclose(path.points[-1], -1.0164, atol=5e-5)
    at_limit = surfaces.descend(EQ315, (-1, -2.95), 600, "gd", {"learning_rate": 0.1})
    assert at_limit.values[-1] == pytest.approx(19.0125)
    in_order = surfaces.descend(EQ315, (0, 0), 4, "gd", {"learning_rate": 0.01}, stochastic(shuffle="never"))
    printed = [(0, 0), (0.02, -0.04), (-0.0232, -0.0184), (-0.0232, -0.038032), (-0.042736, -0.038032)]
    np.testing.assert_allclose(in_order.points, printed, atol=1e-12)
    p33 = surfaces.descend(P33, (1, 1), 3, "gd", {"learning_rate": 0.05})
    np.testing.assert_allclose(p33.values, [5, 2, 1.25, 1.0625])


@pytest.mark.parametrize(
    ("surface", "start", "rate", "how"),
    [
        (EQ315, (-1, -2.95), 0.01, "still falling"),
        (EQ315, (-1, -2.95), 0.09, "converged"),
        (EQ315, (-1, -2.95), 0.1, "oscillates"),
        (EQ315, (-1, -2.95), 0.11, "diverges"),
        (EQ315, (-1, -2.95), 1e6, "diverges"),
        (EQ315, (-1, -2.95), 1e300, "diverges"),
        (P33, (1, 1), 0.05, "oscillates"),
        (P33, (1, 1), 0.06, "diverges"),
        (EQ315, (-1, -2.95), 0.0, "stopped moving"),
    ],
)
def test_the_verdict_on_a_path(surface, start, rate, how):
    path = surfaces.descend(surface, start, 100, "gd", {"learning_rate": rate})
    assert surfaces.verdict(path) == how
    assert len(path.points) == len(path.values) == 101 and np.isfinite(path.values[path.last])


@pytest.mark.parametrize("surface", [EQ315, P33, TWO, ADAM], ids=lambda s: s.name)
def test_the_hessian_and_the_marked_points(surface):
    """Against jax.hessian; at the stationary points the gradient is zero and the eigenvalues' signs say which kind."""
    hessian_of, gradient = jax.jit(jax.hessian(surface.value)), jax.jit(jax.grad(surface.value))
    for point in (surface.start, *(known.x for known in surface.stationary)):
        bend, hessian = surfaces.bend(surface, np.array(point)), hessian_of(np.array(point))
        np.testing.assert_allclose(
            bend.eigenvectors @ np.diag(bend.eigenvalues) @ bend.eigenvectors.T, hessian, atol=1e-9
        )
        largest = np.linalg.eigvalsh(hessian)[1]
        assert bend.stable_rate == (pytest.approx(2 / largest) if largest > 0 else np.inf)
    for known in surface.stationary:
        bend = surfaces.bend(surface, np.array(known.x))
        away = np.linalg.norm(gradient(np.array(known.x))) / np.abs(bend.eigenvalues).max()
        assert away < 1e-3  # what is marked is rounded
        assert surface.value(np.array(known.x)) == pytest.approx(known.value, abs=1e-4)
        assert (bend.eigenvalues[0] < 0 < bend.eigenvalues[1]) == (known.kind == "saddle")
        assert (bend.eigenvalues > 0).all() == (known.kind != "saddle")
    assert surface.grid[2].shape == (101, 101)
    np.testing.assert_allclose(surface.grid[2][3, 7], surface.value(np.array([surface.grid[0][7], surface.grid[1][3]])))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rate": -0.1}, "learning_rate must be a finite number >= 0, got -0.1"),
        ({"rate": float("nan")}, "learning_rate"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 601}, "steps must be 1 to 600, got 601"),
        ({"start": (float("inf"), 0.0)}, "start: expected two finite numbers"),
    ],
)
def test_invalid_input_is_refused(given, said):
    question = Question(EQ315.name, "all examples (batch)", 0.01, 10, (0.0, 0.0))
    with pytest.raises(ValueError, match=said):
        gradient_descent.answer(question._replace(**given))


def test_labels_of_eigenvectors_are_within_the_drawing(monkeypatch):
    """Of paths that end inside; whichever sign the eigenvectors have."""
    monkeypatch.setattr(Live, "ask", lambda self, question: None)
    page = gradient_descent._Page(Document())
    for surface in (EQ315, P33, TWO, ADAM):
        page.surface.value = surface.name
        page.show(
            gradient_descent.answer(Question(surface.name, "all examples (batch)", surface.rate, 100, surface.start))
        )
        shown = page.names.data
        for axis, (low, high) in zip("xy", surface.window, strict=True):
            assert ((low < shown[axis]) & (shown[axis] < high)).all()
        assert (shown["align"] == np.where(shown["x"] < np.mean(surface.window[0]), "left", "right")).all()


# In a browser ---------------------------------------------------------------------------------------------------------


def last_point(page):
    path = page.data("path")
    return path["x"][-1], path["y"][-1]


def test_a_click_sets_the_start(visit):
    page = visit("gradient-descent")
    np.testing.assert_allclose(last_point(page), fitted(EQ315, EQ315.start, 100, 0.01), atol=1e-6)
    end = page.changed(lambda: page.click("main", 1.0, -2.0), lambda: last_point(page))
    start = page.data("path")["x"][0], page.data("path")["y"][0]
    np.testing.assert_allclose(start, (1.0, -2.0), atol=0.02)  # a pixel
    np.testing.assert_allclose(end, fitted(EQ315, start, 100, 0.01), atol=1e-6)
    assert tuple(float(page.get(f"start-{i}", "value")) for i in range(2)) == pytest.approx(start, abs=1e-12)


def test_the_sliders_move_by_keyboard(visit):
    page = visit("gradient-descent")
    page.focus("rate-0", ".noUi-handle")
    page.changed(lambda: page.press("ArrowRight", 10), lambda: last_point(page))
    page.until(lambda: page.get("rate-0", "value") == pytest.approx(0.02))
    page.until(lambda: page.get("typed-rate", "value") == "0.02")  # which follows the slider
    page.until(lambda: "0.02 is below 2/λmax = 0.1" in page.status())
    np.testing.assert_allclose(last_point(page), fitted(EQ315, EQ315.start, 100, 0.02), atol=1e-6)
    page.focus("steps", ".noUi-handle")
    page.changed(lambda: page.press("ArrowLeft", 4), lambda: last_point(page))
    page.until(lambda: len(page.data("path")["x"]) == 97)
    np.testing.assert_allclose(last_point(page), fitted(EQ315, EQ315.start, 96, 0.02), atol=1e-6)


def test_stochastic_descent_on_another_surface(visit):
    page = visit("gradient-descent")
    page.changed(lambda: page.set("surface", "value", P33.name), lambda: page.get("rate-1", "visible"))
    page.until(lambda: page.data("names")["text"] == ["λ = 10", "λ = 40"])
    page.set("examples", "value", "one at a time, in order (stochastic)")
    wanted = fitted(P33, (1, 1), 100, 0.01, stochastic(shuffle="never"))
    page.until(lambda: np.allclose(last_point(page), wanted, atol=1e-6))
    page.focus("rate-1", ".noUi-handle")
    page.press("End")
    page.until(lambda: page.get("rate-1", "value") == 0.15 and page.status_kind() == "warns")
    assert not page.get("rate-0", "visible")


def test_divergence_is_named_and_clipped_and_bad_input_refused(visit):
    page = visit("gradient-descent")
    page.changed(lambda: page.type("typed-rate", "1e6"), page.status)
    page.until(lambda: page.status_kind() == "warns")
    assert page.status().startswith("Diverges: the rate 1e+06 is above 2/λmax = 0.1")
    assert all(abs(value) < 1000 for axis in ("x", "y") for value in page.data("path")[axis])
    page.changed(lambda: page.type("typed-rate", "-1"), page.status)
    assert page.status_kind() == "refuses" and "learning_rate must be a finite number >= 0, got -1" in page.status()
    assert page.box("typed-rate")[0] == "-1" and "got -1" in page.box("typed-rate")[1]
    assert len(page.data("path")["x"]) == 1  # what was seen stays
    page.type("typed-rate", "0,01")
    page.until(lambda: page.status_kind() == "" and page.box("typed-rate") == ("0.01", ""))
    page.type("start-0", "zero")
    page.type("start-1", "0,05")
    page.until(lambda: page.data("path")["y"][0] == 0.05 and page.data("path")["x"][0] == -1)
    assert page.box("start-0")[0] == "zero" and "got 'zero'" in page.box("start-0")[1]
    before = last_point(page)
    page.changed(lambda: page.click("main", -4.3, 0), page.status)  # on the axis, beside the frame
    assert page.status_kind() == "refuses" and "outside the plot" in page.status() and last_point(page) == before
