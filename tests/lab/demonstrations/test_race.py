"""The race of optimizers: each racer against optax, and a visitor who changes racers."""

import jax
import numpy as np
import optax
import pytest
from bokeh.document import Document
from markupsafe import escape

from functional_nn.lab.demonstrations import race, surfaces
from functional_nn.lab.demonstrations.page import Live
from functional_nn.lab.demonstrations.race import Question
from functional_nn.optimizers import names

EQ315, _, TWO, ADAM = surfaces.surfaces().values()


def by_optax(surface, start, steps, optimizer):
    """The last point of an optax optimizer with jax.grad."""
    gradient = jax.grad(surface.value)

    def update(carry, _):
        x, state = carry
        change, state = optimizer.update(gradient(x), state, x)
        return (x + change, state), None

    x = np.array(start, float)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        return np.asarray(jax.jit(lambda x: jax.lax.scan(update, (x, optimizer.init(x)), None, steps)[0][0])(x))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("gd", optax.sgd(10.0)),
        ("momentum", optax.sgd(10.0, 0.9)),
        ("adam", optax.adam(0.1)),
        ("adamax", optax.adamax(0.1)),
    ],
)
def test_each_path_equals_optaxs(name, optimizer):
    path = surfaces.descend(TWO, TWO.start, 150, name, race.constants(name, TWO))
    np.testing.assert_allclose(path.points[-1], by_optax(TWO, TWO.start, 150, optimizer), atol=1e-6)


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("name", names())
def test_every_optimizer_can_race(name):
    """With what the page offers at first, none goes wrong."""
    assert set(surfaces.constants_of(name)) == set(race.constants(name, TWO))
    path = surfaces.descend(TWO, TWO.start, 50, name, race.constants(name, TWO))
    assert np.isfinite(path.values).all() and path.values[-1] < path.values[0]


def test_constants_are_refused_by_name():
    with pytest.raises(ValueError, match="adam: b1 must be"):
        race.answer(Question(TWO.name, 10, TWO.start, (("adam", {"learning_rate": 0.1, "b1": 1.5}), None)))


def last_points(page):
    return [[(page.data(f"path-{i}")[axis] or [None])[-1] for axis in ("x", "y")] for i in range(4)]


def test_four_start_from_one_click(visit):
    page = visit("adam")
    ends = page.changed(lambda: page.click("main", 2.0, 9.0), lambda: last_points(page))
    start = [page.data("path-3")[axis][0] for axis in ("x", "y")]
    np.testing.assert_allclose(start, (2, 9), atol=0.1)
    assert all([page.data(f"path-{i}")[axis][0] for axis in ("x", "y")] == start for i in range(4))
    np.testing.assert_allclose(ends[3], by_optax(TWO, start, 400, optax.adam(0.1)), atol=1e-6)
    np.testing.assert_allclose(ends[0], by_optax(TWO, start, 400, optax.sgd(10.0)), atol=1e-6)
    values = page.data("values-3")
    assert values["x"][-1] == 400 and values["y"][-1] == pytest.approx(float(TWO.value(np.array(ends[3]))), rel=1e-6)


def test_a_racer_takes_another_optimizer_and_constants(visit):
    page = visit("adam")
    page.set("optimizer-0", "value", "nadam")
    page.until(lambda: [page.get(f"constant-0-{i}", "title") for i in range(3)] == ["learning_rate", "b1", "b2"])
    constants = {"learning_rate": 0.2, "b1": 0.9, "b2": 0.99, "epsilon": 1e-8}
    wanted = surfaces.descend(TWO, TWO.start, 400, "nadam", constants)
    page.type("constant-0-0", "0,2")
    page.type("constant-0-2", "0.99")
    page.until(lambda: np.allclose(last_points(page)[0], wanted.points[-1], atol=1e-6))
    page.set("optimizer-1", "value", "none")
    page.until(lambda: last_points(page)[1] == [None, None])
    before = last_points(page)
    page.changed(lambda: page.type("constant-0-2", "2"), page.status)
    assert page.status_kind() == "refuses" and "nadam: b2 must be" in page.status() and last_points(page) == before
    page.type("constant-0-0", "0,1")  # is taken, with the last good b2
    wanted = surfaces.descend(TWO, TWO.start, 400, "nadam", constants | {"learning_rate": 0.1})
    page.until(lambda: np.allclose(last_points(page)[0], wanted.points[-1], atol=1e-6))
    assert page.box("constant-0-2")[0] == "2" and "b2 must be" in page.box("constant-0-2")[1]


def test_one_that_diverges_is_named(visit):
    page = visit("adam")
    page.set("surface", "value", EQ315.name)
    page.until(lambda: page.get("constant-0-0", "value") == str(EQ315.rate))
    page.until(lambda: page.status().startswith("Lowest"))
    page.type("constant-0-0", "0.3")
    page.until(lambda: page.status().startswith("gd diverges. Lowest after 400 updates: "))
    assert page.status_kind() == "warns"


# The presets ----------------------------------------------------------------------------------------------------------

FLAT, NARROW, LARGE, ADAM_CAUGHT, GD_CAUGHT = race.PRESETS
NAMES = ("gd", "momentum", "rmsprop", "adam")
GOAL = 1e-3


def sigmoid(n):
    return 1 / (1 + np.exp(-n))


def in_numpy(surface, x):
    """F of Hagan's Eq. 3.15 and of the two 1-2-1 networks, complex x allowed."""
    if surface == EQ315.name:
        return sum((t - x @ p) ** 2 for p, t in zip([(-1, 2), (2, -1), (0, -1), (-1, 0)], [-1, -1, 1, 1], strict=True))
    p = np.linspace(-2, 2, 41)
    if surface == TWO.name:
        first, second, target = sigmoid(10 * p + x[0]), sigmoid(5 * p + x[1]), (sigmoid(10 * p - 5), sigmoid(5 * p + 5))
    else:
        first, second = x[1] * sigmoid(x[0] * p - 5), sigmoid(10 * p + 5)
        target = sigmoid(10 * p - 5), second
    return np.sum((sigmoid(sum(target) - 1) - sigmoid(first + second - 1)) ** 2)


def slopes(surface, x):
    """Its gradient, by complex steps."""
    return np.array([in_numpy(surface, x + 1e-30j * unit).imag / 1e-30 for unit in np.eye(2)])


def path_in_numpy(preset, name, steps):
    x, m, v = np.array(preset.start), np.zeros(2), np.zeros(2)
    rate, points = preset.rates[NAMES.index(name)], [np.array(preset.start)]
    for k in range(1, steps + 1):
        g = slopes(preset.surface, x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        adam = m / (1 - 0.9**k) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
        x = x - rate * (g if name == "gd" else adam)
        points.append(x)
    return np.array(points)


def answered(preset):
    """The paths of a preset, by optimizer."""
    return dict(zip(NAMES, race.answer(preset.question).paths, strict=True))


def gd_reaches(preset, rate):
    surface = surfaces.surfaces()[preset.surface]
    return surfaces.reached(surfaces.descend(surface, preset.start, 600, "gd", {"learning_rate": rate}), GOAL)


@pytest.mark.parametrize("preset", race.PRESETS, ids=lambda preset: preset.name)
def test_a_presets_paths_equal_numpys(preset):
    """Adam's whole path, and gradient descent's first 100 updates."""
    paths = answered(preset)
    np.testing.assert_allclose(paths["adam"].points, path_in_numpy(preset, "adam", 400), atol=1e-6)
    np.testing.assert_allclose(paths["gd"].points[:101], path_in_numpy(preset, "gd", 100), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ([3, 2, 1], None),
        ([3, 0.5, 2, 0.5, 0.4], 3),
        ([0.5, 0.5], 0),
        ([3, np.nan, 0.5], 2),
        ([0.5, np.nan], None),
        ([1, 1], None),
    ],
)
def test_when_a_goal_is_reached(values, first):
    assert surfaces.reached(surfaces.Path(np.zeros((len(values), 2)), np.array(values, float)), 1.0) == first


def test_the_first_preset_shows_adam_ahead():
    """In one basin: no stable rate lets gradient descent reach in 600 updates what Adam reaches in 200."""
    assert FLAT.question == Question(
        TWO.name, 400, TWO.start, tuple((name, race.constants(name, TWO)) for name in NAMES)
    )
    paths = answered(FLAT)
    assert surfaces.reached(paths["adam"], GOAL) < 200 and surfaces.reached(paths["rmsprop"], GOAL) < 200
    np.testing.assert_allclose(paths["adam"].points[-1], TWO.stationary[0].x, atol=1e-6)
    assert surfaces.reached(paths["gd"], GOAL) is surfaces.reached(paths["momentum"], GOAL) is None
    limit = surfaces.bend(TWO, np.array(TWO.stationary[0].x)).stable_rate
    assert [gd_reaches(FLAT, rate) for rate in (1.0, 10.0, 30.0, 50.0, limit, 2 * limit, 5 * limit)] == [None] * 7
    # It creeps, downhill, towards the same minimum.
    assert surfaces.verdict(paths["gd"]) == "still falling"
    along = np.diff(paths["gd"].points[:, 1])
    assert (along < 0).all() and (along > -0.01 * 0.1).all()
    across = np.abs(paths["gd"].points[100:, 0] - TWO.stationary[0].x[0])
    assert (across < 0.01).all()
    # Adam's steps along the valley are about as long as its rate, though the slope is as small at first.
    assert slopes(TWO.name, np.array(FLAT.start))[1] < 1e-4
    assert (np.abs(np.diff(paths["adam"].points[:100], axis=0)) > 0.05).all(axis=1).mean() > 0.9


def test_a_narrow_valley():
    """Adam at dl3aa's rate is six times as fast as gradient descent at any."""
    paths, (low, high) = answered(NARROW), surfaces.bend(ADAM, np.array(ADAM.stationary[0].x)).eigenvalues
    adam = surfaces.reached(paths["adam"], GOAL)
    assert high > 100 * low and adam < 100
    found = [gd_reaches(NARROW, rate) or np.inf for rate in (0.1, 1.0, 1.5, 1.6, 1.65, 1.7, 1.8, 2.5, 5.0)]
    assert min(found) == surfaces.reached(paths["gd"], GOAL) > 6 * adam
    changes = {name: np.sign(path.points[1:] - path.points[:-1]) for name, path in paths.items()}
    along, across = (changes["gd"][1:] != changes["gd"][:-1]).sum(axis=0)
    assert along == 0 and across > 50  # from side to side, on the same way along
    signs = np.sign([slopes(ADAM.name, x) for x in paths["adam"].points[:adam]])
    along, across = (signs[1:] != signs[:-1]).sum(axis=0)
    assert along == 0 and across >= 3
    along, across = np.abs(np.diff(paths["adam"].points[:adam], axis=0))[-adam // 2 :].mean(axis=0)
    assert along > 0.5 * 0.1 and along > 5 * across


def test_a_large_rate():
    paths, bend = answered(LARGE), surfaces.bend(EQ315, np.array(EQ315.stationary[0].x))
    assert len(set(LARGE.rates)) == 1 and LARGE.rates[0] > 1.9 * bend.stable_rate
    assert [surfaces.verdict(paths[name]) for name in NAMES] == ["diverges", "diverges", "oscillates", "converged"]
    assert surfaces.reached(paths["rmsprop"], GOAL) is None
    assert gd_reaches(LARGE, 0.8 * bend.stable_rate) < surfaces.reached(paths["adam"], GOAL) / 3


@pytest.mark.parametrize(("preset", "caught", "free"), [(ADAM_CAUGHT, "adam", "gd"), (GD_CAUGHT, "gd", "adam")])
def test_a_local_minimum(preset, caught, free):
    paths, (least, local, _) = answered(preset), TWO.stationary
    np.testing.assert_allclose(paths[caught].points[-1], local.x, atol=1e-3)
    np.testing.assert_allclose(paths[free].points[-1], least.x, atol=1e-3)
    assert surfaces.verdict(paths[caught]) == "stopped moving" and local.kind == "local minimum"
    first = np.abs(np.diff(paths["adam"].points[:4], axis=0))
    np.testing.assert_allclose(first, 0.1, rtol=0.02)  # whatever the slopes


def test_presets_are_chosen_and_left(monkeypatch):
    """Each sets every control; another control makes it the visitor's own; the way back leads to the preset."""
    asked = []
    monkeypatch.setattr(Live, "ask", lambda self, question: asked.append(question))
    page = race._Page(Document())
    assert asked == [FLAT.question] and page.preset.value == FLAT.name
    for preset in (*race.PRESETS[::-1], NARROW, ADAM_CAUGHT):
        before = len(asked)
        page.preset.value = preset.name
        assert asked[before:] == ([preset.question] if preset.question != asked[before - 1] else [])
        surface = surfaces.surfaces()[preset.surface]
        assert page.start.boxes[0].input.title.endswith(surface.labels[0])
        seen, window = (page.plotted.x_range, page.plotted.y_range), preset.window or surface.window
        assert [(each.start, each.end) for each in seen] == list(window)
        assert [(each.reset_start, each.reset_end) for each in seen] == list(surface.window)
        assert all(low <= x <= high for x, (low, high) in zip(preset.start, window, strict=True))
        found = race.answer(preset.question)
        page.show(found)
        assert str(escape(preset.lesson)) in page.lesson.text
        assert page.status.model.text.count("from update") == sum(
            surfaces.reached(path, GOAL) is not None for path in found.paths
        )
    page.steps.value = 300
    assert page.preset.value == "your own" and asked[-1] == ADAM_CAUGHT.question._replace(steps=300)
    page.show(race.answer(asked[-1]))
    assert all(str(escape(preset.lesson)) not in page.lesson.text for preset in race.PRESETS)
    assert "2/λmax = 55.28" in page.lesson.text
    page.racers[0].choice.value = "none"
    page.preset.value = ADAM_CAUGHT.name
    assert asked[-1] == ADAM_CAUGHT.question
    page.steps.value = 300
    page.steps.value = 400
    assert page.preset.value == ADAM_CAUGHT.name


def test_a_preset_in_a_browser(visit):
    page = visit("adam")
    page.until(lambda: "with adam from update 167" in page.status() and "not with gd, momentum" in page.status())
    page.set("preset", "value", ADAM_CAUGHT.name)
    page.until(lambda: "not with rmsprop, adam" in page.status())
    assert "local minimum" in page.get("lesson", "text")
    page.set("steps", "value", 300)
    page.until(lambda: page.get("preset", "value") == "your own")
