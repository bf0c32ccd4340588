"""Line searches: the conditions each promises, recomputed in NumPy; what it asks; and failure, which is a state."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn.optimizers import line_searches
from functional_nn.optimizers.line_searches import Line, Point, backtracking, golden_section, strong_wolfe


@pytest.fixture(scope="module", autouse=True)
def optimized():
    """XLA gives up `_once`'s barrier before it fuses. Without LLVM's passes, phi(a) is then two values in two fusions
    where golden section's points are as near to the minimum as each other, and its bracket shrinks no further.
    """
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Phi(NamedTuple):
    """phi(a) = polynomial(a + shift) + dip -a / (a^2 + 2) + barrier -log(1 - a) + ripple sin(wave a); `beyond` from the
    step `wall` on. slope: phi'(0) as the search is given it, where that is wrong. Numbers, so that one program serves
    them all.
    """

    polynomial: tuple[float, ...]  # the constant first
    shift: float = 0.0
    dip: float = 0.0
    barrier: float = 0.0
    ripple: float = 0.0
    wall: float = np.inf
    beyond: float = np.nan
    slope: float = np.nan

    def numbers(self):
        """(13,)."""
        return np.array([*self.polynomial, *[0.0] * (6 - len(self.polynomial)), *self[1:]])


WAVE = 6 * np.pi


def phi_of(numbers, a, np):
    """phi and phi' by those numbers, with NumPy or jnp."""
    polynomial, (shift, dip, barrier, ripple, wall, beyond, _) = numbers[:6], numbers[6:]
    value, slope = polynomial[5], 0.0 * polynomial[5]
    for coefficient in polynomial[4::-1]:  # Horner
        slope = slope * (a + shift) + value
        value = value * (a + shift) + coefficient
    inside = np.where(a < 1, 1 - a, 1.0)
    value = value - dip * a / (a**2 + 2) - barrier * np.log(inside) + ripple * np.sin(WAVE * a)
    slope = slope + dip * (a**2 - 2) / (a**2 + 2) ** 2 + barrier / inside + ripple * WAVE * np.cos(WAVE * a)
    out = (a >= wall) & (a > 0)
    return np.where(out, beyond, value), np.where(out, beyond, slope)


FUNCTIONS = {
    "parabola": Phi((2.25, -3, 1)),
    "steep parabola": Phi((0, -10, 1e4)),
    "quartic": Phi((-2, -1, 0, 0, 1), shift=-2),
    # More and Thuente 1994, Sec. 5, functions 1 and 2, and like their third
    "one dip": Phi((0,), dip=1),
    "flat, then a valley": Phi((0, 0, 0, 0, -2, 1), shift=0.004),
    "oscillating": Phi((1, -2, 1), ripple=-0.05),
    "a wall of nan": Phi((0, -3), barrier=1, wall=1),
    "a wall of infinity": Phi((0, 0, 1), shift=-0.25, wall=0.3, beyond=np.inf),
}
# nothing lower ahead, though the slope at 0 says so
HOPELESS = {
    "rises": Phi((0, 1), slope=-1),
    "nan ahead": Phi((0, -1), wall=0),
    "infinite ahead": Phi((0, -1), wall=0, beyond=np.inf),
}
ALL = {name: made.numbers() for name, made in (FUNCTIONS | HOPELESS).items()}
FIRST = (1e-6, 0.1, 1.0, 2.3, 1e3)  # steps tried first
# where the minimum is, of functions that have a single one ahead
MINIMA = {
    "parabola": 1.5,
    "steep parabola": 5e-4,
    "quartic": 2 + 0.25 ** (1 / 3),
    "one dip": 2**0.5,
    "flat, then a valley": 1.6 - 0.004,
    "a wall of nan": 2 / 3,
    "a wall of infinity": 0.25,
}
UNEVEN = 0.7  # the second element of the gradient: any number, to tell whose gradient it is


def line(numbers, note=None):
    """The line of a function; note(what, step) is called when it is asked, not when it is compiled."""

    def point(step):
        value, slope = phi_of(numbers, step, jnp)
        return Point(step, value, slope, jnp.stack([slope, UNEVEN + step]))

    def asked(what, step, answer):
        if note is not None:
            jax.debug.callback(functools.partial(note, what), step, ordered=True)
        return answer

    start = point(jnp.zeros(()))
    given_slope = jnp.where(jnp.isnan(numbers[-1]), start.slope, numbers[-1])
    return Line(
        lambda step: asked("value", step, point(step).value),
        lambda step: asked("gradient", step, point(step)),
        start._replace(slope=given_slope),
    )


# name -> the search, of two (traced) constants
SEARCHES = {
    "full_step": lambda c1, c2: line_searches.full_step(),
    "backtracking": lambda c1, c2: backtracking(c1),
    "golden_section": lambda c1, c2: golden_section(c2),
    "strong_wolfe": lambda c1, c2: strong_wolfe(c1, c2, evaluations=60),
}
# of each search: (c1, c2)
CONSTANTS = {
    "full_step": [(0.5, 0.5)],
    "backtracking": [(1e-4, 0.5), (0.3, 0.5)],
    "golden_section": [(0.5, 1e-8), (0.5, 1e-2)],
    "strong_wolfe": [(1e-4, 0.9), (1e-4, 0.1), (0.01, 1e-4), (1e-4, 1e-10)],
}
SEEN = []  # (what, step) of each question to a search that `compiled` made


def compiled(make):
    """(numbers, first step, c1, c2) -> Found, and the Point at 0; its questions are appended to SEEN."""

    def run(numbers, first, c1, c2):
        asked = line(numbers, lambda what, step: SEEN.append((what, float(step))))
        return make(c1, c2).search(asked, first), asked.start

    return jax.jit(run)


class Case(NamedTuple):
    """A search from the step `first` on a function of that name: what it found, NumPy throughout; where from; and what
    it asked.
    """

    name: str
    first: float
    c1: float
    c2: float
    found: line_searches.SearchResult
    start: Point
    asked: tuple

    @property
    def step(self):
        return float(self.found.point.step)


def searched(run, constants=((0.5, 0.5),)):
    """Every function, from every first step, with each of the constants."""
    cases = []
    for name in ALL:
        for first in FIRST:
            for both in constants:
                SEEN.clear()
                found, start = jax.tree.map(np.asarray, run(ALL[name], first, *both))
                jax.effects_barrier()
                cases.append(Case(name, first, *both, found, start, tuple(SEEN)))
    return cases


@functools.cache
def cases(search):
    return searched(compiled(SEARCHES[search]), CONSTANTS[search])


def phi(name, step):
    with np.errstate(all="ignore"):
        return float(phi_of(ALL[name], np.float64(step), np)[0])


def slope(name, step):
    """phi'; at 0, what the search was given."""
    given_slope = (FUNCTIONS | HOPELESS)[name].slope
    with np.errstate(all="ignore"):
        if step == 0 and np.isfinite(given_slope):
            return given_slope
        return float(phi_of(ALL[name], np.float64(step), np)[1])


def rounding(name):
    """What the searches allow F to be off by: a few units in the last place of F at the start."""
    return 8 * np.finfo(float).eps * abs(phi(name, 0.0))


over_searches = pytest.mark.parametrize("search", SEARCHES)


# What was found -------------------------------------------------------------------------------------------------------


@over_searches
def test_the_point_is_on_the_line(search):
    """value, slope and gradient are those of its step."""
    for case in cases(search):
        at = case.found.point
        np.testing.assert_allclose(at.value, phi(case.name, case.step), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(at.slope, slope(case.name, case.step), rtol=1e-9, atol=1e-12)
        if case.found.found:
            np.testing.assert_array_equal(at.gradient, [at.slope, UNEVEN + at.step])


@over_searches
def test_nothing_found_is_the_start_to_the_last_bit(search):
    missed = [case for case in cases(search) if not case.found.found]
    rising = {"rises"} if search == "full_step" else set()
    assert {case.name for case in missed} >= set(HOPELESS) - rising
    for case in missed:
        for ours, starts in zip(case.found.point, case.start, strict=True):
            np.testing.assert_array_equal(ours, starts)
        assert case.start.step == 0 and case.start.value == phi(case.name, 0)


@over_searches
def test_something_lower_ahead_is_found_from_any_first_step(search):
    """By all but the one that makes no search; and where there is nothing, nothing is found."""
    for case in cases(search):
        if search == "full_step":
            assert bool(case.found.found) == np.isfinite(phi(case.name, case.first))
            assert case.step == (case.first if case.found.found else 0)
        else:
            assert bool(case.found.found) == (case.name in FUNCTIONS), case
            assert not case.found.found or phi(case.name, case.step) < phi(case.name, 0)


def test_backtracking_decreases_enough():
    """Armijo's condition at the step found; and where the first step meets it, that is the one."""
    first_taken = 0
    for case in cases("backtracking"):

        def enough(step):
            return phi(case.name, 0) + case.c1 * step * slope(case.name, 0)  # noqa: B023

        if case.found.found:
            assert 0 < case.step <= case.first
            assert phi(case.name, case.step) <= enough(case.step) + rounding(case.name), case
        if phi(case.name, case.first) <= enough(case.first):
            assert case.step == case.first
            first_taken += 1
    assert 0 < first_taken < len(cases("backtracking"))


def test_backtracking_is_dennis_and_schnabels():
    """Alg. A6.3.1 with parabolas alone, in NumPy: the same steps in the same order, and the last one's gradient."""
    several = 0
    for case in cases("backtracking"):
        name, step, steps = case.name, case.first, [("gradient", case.first)]
        if name not in FUNCTIONS:
            continue
        while not phi(name, step) <= phi(name, 0) + case.c1 * step * slope(name, 0) + rounding(name) / 2:
            rise = phi(name, step) - phi(name, 0) - step * slope(name, 0)
            parabola = -slope(name, 0) * step**2 / (2 * rise) if np.isfinite(rise) else 0
            step = float(np.clip(parabola, step / 10, step / 2))
            steps.append(("value", step))
        if len(steps) > 1:
            steps.append(("gradient", step))
            several += 1
        assert [what for what, _ in case.asked] == [what for what, _ in steps]
        np.testing.assert_allclose([s for _, s in case.asked], [s for _, s in steps], rtol=1e-9)
    assert several > 10


def test_strong_wolfe_meets_both_conditions():
    """Nocedal and Wright Eq. 3.7; of the slope, as it is where the step moves by some units of its last place."""
    for case in cases("strong_wolfe"):
        name, step = case.name, case.step
        if not case.found.found:
            continue
        assert step > 0
        assert phi(name, step) <= phi(name, 0) + case.c1 * step * slope(name, 0) + rounding(name), case
        bend = abs(slope(name, step * (1 + 1e-6)) - slope(name, step * (1 - 1e-6))) / 2e-6
        assert abs(slope(name, step)) <= case.c2 * abs(slope(name, 0)) + 16 * np.finfo(float).eps * bend, case


def test_golden_section_finds_the_minimum():
    """As near as the tolerance, times the step, or as values tell: where F rises by a few units of its last place."""
    met = set()
    for case in cases("golden_section"):
        if case.name not in MINIMA:
            continue
        minimum, tolerance = MINIMA[case.name], case.c2
        bend = (slope(case.name, minimum + 1e-6) - slope(case.name, minimum - 1e-6)) / 2e-6  # phi''
        last = np.finfo(float).eps * np.abs(ALL[case.name][:6]).max()  # of the terms that phi is the sum of
        assert abs(case.step - minimum) <= tolerance * minimum * 1.01 + np.sqrt(2 * 8 * last / bend), case
        met.add(case.name)
    assert met == set(MINIMA)


# What was asked -------------------------------------------------------------------------------------------------------


@over_searches
def test_counts_are_of_the_questions_asked(search):
    """Each question that the compiled program asks calls back, and is counted here."""
    for case in cases(search):
        asked = [what for what, _ in case.asked]
        assert (case.found.values, case.found.gradients) == (asked.count("value"), asked.count("gradient")), case
        assert case.asked[0][1] == case.first
        assert case.step in (0, *(step for what, step in case.asked if what == "gradient"))


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda *_: golden_section(evaluations=5), 5),
        (lambda *_: strong_wolfe(curvature=1e-10, evaluations=3), 3),
        (lambda *_: backtracking(evaluations=3), 3),
    ],
    ids=["golden_section", "strong_wolfe", "backtracking"],
)
@pytest.mark.sampled(every=3)
def test_no_more_is_asked_than_allowed(make, most):
    """The gradient at the end apart; and what is lower by then is taken."""
    spent = 0
    for case in searched(compiled(make)):
        steps = [step for _, step in case.asked]
        assert len(set(steps)) <= most and len(steps) <= most + 1
        lower = [step for step in steps if phi(case.name, step) < phi(case.name, 0)]
        assert bool(case.found.found) == (case.step in lower)
        spent += len(set(steps)) == most
    assert spent > 10


# One by one, and side by side -----------------------------------------------------------------------------------------


@over_searches
@pytest.mark.sampled(every=2)
def test_lanes_are_what_they_are_alone(search):
    """Each ends by itself, whatever the others do. To rounding: XLA fuses otherwise."""
    alone = cases(search)
    rows = [jnp.asarray(np.array([[case.first, case.c1, case.c2][i] for case in alone])) for i in range(3)]

    def make(numbers, first, c1, c2):
        return SEARCHES[search](c1, c2).search(line(numbers), first)

    together = jax.jit(jax.vmap(make))(jnp.asarray(np.array([ALL[case.name] for case in alone])), *rows)
    np.testing.assert_array_equal(together.found, [case.found.found for case in alone])
    near = {"golden_section": 1e-6, "strong_wolfe": 1e-6}.get(search, 1e-9)  # a search magnifies a last place's change
    np.testing.assert_allclose(together.point.step, [case.step for case in alone], rtol=near)
    for field in ("values", "gradients"):
        same = np.asarray(getattr(together, field)) == [getattr(case.found, field) for case in alone]
        assert same.mean() >= 0.9


def test_single_precision_stays_single():
    for name in SEARCHES:

        def search(first, name=name):
            parabola = Line(
                lambda a: (a - 1) ** 2,
                lambda a: Point(a, (a - 1) ** 2, 2 * (a - 1), 2 * (a - 1)[None]),
                Point(jnp.zeros_like(first), jnp.ones_like(first), -2 * jnp.ones_like(first), -2 * first[None]),
            )
            return line_searches.get(name).search(parabola, first).point

        shapes = jax.eval_shape(search, jnp.float32(1.7))
        assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


# Names and refusals ---------------------------------------------------------------------------------------------------


def test_names_are_the_public_functions():
    assert line_searches.names() == tuple(SEARCHES)
    for name in line_searches.names():
        assert line_searches.get(name) is getattr(line_searches, name)()
    assert line_searches.get("strong_wolfe(curvature=0.1)") is strong_wolfe(curvature=0.1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: backtracking(0.0), "backtracking: decrease must be in (0, 1), got 0.0"),
        (lambda: backtracking(1.0), "backtracking: decrease must be in (0, 1), got 1.0"),
        (lambda: backtracking(evaluations=0), "backtracking: evaluations must be an integer >= 1, got 0"),
        (lambda: golden_section(float("nan")), "golden_section: tolerance must be in (0, 1), got nan"),
        (lambda: golden_section(growth=1.0), "golden_section: growth must be a finite number > 1, got 1.0"),
        (lambda: golden_section(evaluations=2), "golden_section: evaluations must be an integer >= 3, got 2"),
        (lambda: strong_wolfe(decrease=-1.0), "strong_wolfe: decrease must be in (0, 1), got -1.0"),
        (lambda: strong_wolfe(curvature=2), "strong_wolfe: curvature must be in (0, 1), got 2"),
        (lambda: strong_wolfe(evaluations=1.5), "strong_wolfe: evaluations must be an integer >= 1, got 1.5"),
        (lambda: line_searches.get("wolfe"), "unknown line search 'wolfe'; did you mean 'strong_wolfe'?"),
    ],
)
def test_bad_constants_are_refused(build, message):
    with pytest.raises(ValueError) as refused:
        build()
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
