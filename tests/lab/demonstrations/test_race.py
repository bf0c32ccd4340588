"""The race of optimizers: each lane against optax, and a visitor who changes lanes."""

import jax
import numpy as np
import optax
import pytest

from functional_nn.lab.demonstrations import race, surfaces
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
        ("gd", optax.sgd(10.0)), ("momentum", optax.sgd(10.0, 0.9)), ("adam", optax.adam(0.1)),
        ("adamax", optax.adamax(0.1)),
    ],
)  # fmt: skip
def test_each_lane_is_optax_s(name, optimizer):
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


def test_a_lane_takes_another_optimizer_and_constants(visit):
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
    page.changed(lambda: page.type("constant-0-2", "2"), page.said)
    assert page.kind() == "refuses" and "nadam: b2 must be" in page.said() and last_points(page) == before
    page.type("constant-0-0", "0,1")  # is taken, with the last good b2
    wanted = surfaces.descend(TWO, TWO.start, 400, "nadam", constants | {"learning_rate": 0.1})
    page.until(lambda: np.allclose(last_points(page)[0], wanted.points[-1], atol=1e-6))
    assert page.box("constant-0-2")[0] == "2" and "b2 must be" in page.box("constant-0-2")[1]


def test_one_that_diverges_is_named(visit):
    page = visit("adam")
    page.set("surface", "value", EQ315.name)
    page.until(lambda: page.get("constant-0-0", "value") == str(EQ315.rate))
    page.until(lambda: page.said().startswith("Lowest"))
    page.type("constant-0-0", "0.3")
    page.until(lambda: page.said().startswith("gd diverges. Lowest after 400 updates: "))
    assert page.kind() == "warns"
