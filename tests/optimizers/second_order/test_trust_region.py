"""The subproblem of a trust region against NumPy, Newton's method in one, what no unit changes, and what to do next."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn import optimizers
from functional_nn.optimizers import minimize, problem_from
from functional_nn.optimizers.second_order import trust_region

P = 6
pytestmark = pytest.mark.usefixtures("brisk")


# The subproblem -------------------------------------------------------------------------------------------------------


def best_fall(w, c, radius):
    """How far c'v + v'diag(w)v / 2 can fall in |v| <= radius: its dual, max over mu of -c'c/(w + mu)/2 - mu radius^2/2,
    by ever finer grids; of the hard case as well, where the two are equal, too.
    """
    lowest = max(0.0, -w[0])
    size = np.linalg.norm(c) / radius + np.abs(w).max()
    mu = lowest + np.append(0, size * np.geomspace(1e-16, 1e1, 2000))
    for _ in range(6):
        gaps = w[:, None] + mu
        terms = np.divide(c[:, None] ** 2, gaps, out=np.where(c[:, None] == 0, 0.0, np.inf) + 0 * gaps, where=gaps > 0)
        dual = -terms.sum(axis=0) / 2 - mu * radius**2 / 2
        k = int(np.argmax(dual))
        mu = np.linspace(mu[max(k - 1, 0)], mu[min(k + 1, mu.size - 1)], 400)
    return -dual[k]


def subproblems():
    """(w in rising order, c, radius): convex and not, inside and on the border, hard, nearly hard, and of no size."""
    rng = np.random.default_rng(0)
    for k in range(60):
        w = np.sort(rng.standard_normal(P) + (3 if k % 3 == 0 else 0)) * 10.0 ** rng.integers(-8, 8)
        c = rng.standard_normal(P) * 10.0 ** rng.integers(-8, 8)
        if k % 5 == 1:
            c[0] = 0
        if k % 5 == 2:
            c[0] *= 1e-13
        if k % 10 == 3:
            w[1] = w[0]
            c[:2] = 0
        yield w, c, np.linalg.norm(c) / np.abs(w).max() * 10.0 ** rng.uniform(-2, 2)
    yield np.array([-1.0, 0, 0, 1, 2, 3]), np.zeros(P), 0.5
    yield np.linspace(1, 2, P), np.zeros(P), 0.5


def test_the_subproblem_is_solved_to_its_best_value():
    """To 2e-6 of the fall: |u| may miss the radius by 5e-7 of itself."""
    cases = list(subproblems())
    found = jax.jit(jax.vmap(trust_region.within))(*(np.stack([case[i] for case in cases]) for i in range(3)))
    u, bound = map(np.asarray, found)
    assert 10 < bound.sum() < len(cases) - 5
    for (w, c, radius), v, on_border in zip(cases, u, bound, strict=True):
        length = np.linalg.norm(v)
        assert length <= radius * (1 + 1e-6)
        assert not on_border or length >= radius * (1 - 1e-6)
        fall, most = c @ v - v @ (w * v) / 2, best_fall(w, c, radius)
        assert fall == pytest.approx(most, rel=2e-6, abs=1e-300)


def steihaug(H, g, tolerance, radius):
    """Nocedal and Wright 2006, Alg. 7.2."""
    d, r, p = np.zeros(P), g, -g
    for k in range(2 * P):
        if np.linalg.norm(r) <= tolerance * np.linalg.norm(g):
            return d, k

        def border(d=d, p=p):
            return d + np.roots([p @ p, 2 * d @ p, d @ d - radius**2]).max() * p

        if p @ H @ p <= 0:
            return border(), k + 1
        alpha = r @ r / (p @ H @ p)
        if np.linalg.norm(d + alpha * p) >= radius:
            return border(), k + 1
        d, before = d + alpha * p, r
        r = r + alpha * H @ p
        p = -r + r @ r / (before @ before) * p
    return d, 2 * P


def test_conjugate_gradients_end_where_steihaugs_do():
    rng = np.random.default_rng(1)
    ends = set()

    @jax.jit
    def ours(H, g, radius):
        return trust_region.by_products(lambda v: H @ v, g, 1e-3, 2 * P)(radius)

    for k in range(30):
        H = rng.standard_normal((P, P))
        H = H @ H.T if k % 2 else H + H.T
        g, radius = rng.standard_normal(P), 10.0 ** rng.uniform(-2, 2)
        d, products = steihaug(H, g, 1e-3, radius)
        found = ours(H, g, radius)
        np.testing.assert_allclose(found.step, d, rtol=1e-6, atol=1e-8 * np.linalg.norm(d))
        assert int(found.products) == products
        np.testing.assert_allclose(found.fall, -(g @ d + d @ H @ d / 2), rtol=1e-6)
        assert bool(found.bound) == (np.linalg.norm(d) > radius * (1 - 1e-9))
        ends.add((bool(found.bound), bool(found.damped)))
    assert ends == {(False, False), (True, False), (True, True)}


# Newton in a trust region ---------------------------------------------------------------------------------------------


def saddle(x):
    """At 0 a saddle; minima of -1 at x_0 = +-1."""
    return x[0] ** 4 - 2 * x[0] ** 2 + jnp.sum(x[1:] ** 2)


def test_newton_does_not_end_at_a_saddle_and_others_say_where_they_are():
    start = jnp.zeros(3)
    found = minimize(problem_from(saddle), "newton", start)
    assert found.status == "gradient" and found.advice == ""
    np.testing.assert_allclose(found.value, -1, atol=1e-12)
    other = minimize(problem_from(saddle), "bfgs", start)
    assert other.status == "gradient" and int(other.steps) == 0 and float(other.value) == 0
    assert "a saddle" in other.advice and "use newton" in other.advice and other.advice in repr(other)
    # along the ridge newton_cg comes to it from aside, and has met what bends downward
    aside = minimize(problem_from(lambda x: saddle(x) + 0 * x[0]), "newton_cg", jnp.array([0.0, 1.0, -2.0]))
    assert float(aside.value) == pytest.approx(0, abs=1e-10) and aside.status == "gradient"


def region(x):
    """log: nan outside |x_0| < 1."""
    return -jnp.log(1 - x[0] ** 2) + (x[1] - x[0]) ** 2 - 0.5 * x[0]


@pytest.mark.parametrize("name", ["newton", pytest.param("newton_cg", marks=pytest.mark.slow)])
def test_a_step_into_what_is_no_number_is_made_shorter(name):
    found = minimize(problem_from(region), name, jnp.array([0.9999, 40.0]))
    assert found.status == "gradient"
    x = float(found.params[0])
    np.testing.assert_allclose([2 * x / (1 - x**2), found.params[1]], [0.5, x], rtol=1e-6)


def test_a_parameter_without_influence_stays():
    found = minimize(problem_from(lambda x: (x[0] - 3) ** 2 + jnp.cosh(x[0])), "newton", jnp.array([0.0, 7.0]))
    assert found.status == "gradient" and float(found.params[1]) == 7.0
    slope = 2 * (float(found.params[0]) - 3) + np.sinh(float(found.params[0]))
    assert abs(slope) < 1e-7


# Units ----------------------------------------------------------------------------------------------------------------


def wood(x, unit, sizes):
    """More, Garbow and Hillstrom's 14, F in another unit, each parameter in another."""
    x = x * sizes
    a, b = x[1] - x[0] ** 2, x[3] - x[2] ** 2
    mixed = 10 * (x[1] + x[3] - 2) ** 2 + (x[1] - x[3]) ** 2 / 10
    return unit * (100 * a**2 + (1 - x[0]) ** 2 + 90 * b**2 + (1 - x[2]) ** 2 + mixed)


ALIKE, EACH = (np.ones(4), np.full(4, 1e-12), np.full(4, 1e12)), (np.ones(4), np.array([1, 1e12, 1e-12, 1]))
CLAIMS = {"newton": EACH, "newton_cg": ALIKE, "bfgs": ALIKE, "lbfgs": ALIKE, "conjugate_gradient": ALIKE}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CLAIMS)
def test_the_same_steps_in_all_units(name, dtype):
    """Twelve steps: F by F, to what rounding has grown to, beside which a first step that knew the unit would differ by
    all of it. Squares of gradients as large as 1e24 are no numbers of single precision, where units are 1e-6 and 1e6.
    """
    single = dtype == np.float32
    paths = []
    run = jax.jit(
        lambda x, *data: minimize(problem_from(wood, data=data), name, x, steps=12, gradient_tolerance=0.0).path.value
    )
    for unit in (1.0, 1e-12, 1e12):
        for sizes in CLAIMS[name]:
            of_F, of_x = (each**0.5 if single else each for each in (unit, sizes))
            start = np.array([-3.0, -1.0, -3.0, -1.0]) / of_x
            path = run(*(jnp.asarray(each, dtype) for each in (start, of_F, of_x)))
            paths.append(np.asarray(path, float) / of_F)
    np.testing.assert_allclose(paths[1:], np.broadcast_to(paths[0], np.shape(paths[1:])), rtol=2e-2 if single else 1e-6)


# What to do next ------------------------------------------------------------------------------------------------------


def bowl(x, lift):
    """Least where e^x = 1e6, which no x makes true to the last bit."""
    return jnp.sum((jnp.exp(x) / 1e6 - x) * jnp.arange(1, 4).astype(x.dtype)) + lift


def test_what_to_do_next_is_said_and_true():
    start = jnp.array([15.0, 14.0, 13.0])
    good = minimize(problem_from(bowl, data=(0.0,)), "bfgs", start)
    assert good.status == "gradient" and good.advice == ""
    # the minimum is 1e12 above 0: F is distinguished to 1e-4
    high = minimize(problem_from(bowl, data=(1e12,)), "bfgs", start, gradient_tolerance=0.0)
    assert high.status in ("search_failed", "change") and "rounding error, 0.0002: subtract" in high.advice
    slope = np.abs(np.asarray(high.gradient)).max()
    assert 0 < slope and slope**2 < 2e-4  # F falls by less than g'H^-1 g / 2, with curvatures of 1, 2 and 3
    single = minimize(
        problem_from(bowl, data=(jnp.float32(1e6),)), "bfgs", start.astype(jnp.float32), gradient_tolerance=0.0
    )
    assert single.status in ("search_failed", "change") and "use float64 (jax_enable_x64)" in single.advice
    few = minimize(problem_from(bowl, data=(0.0,)), "bfgs", start, steps=3)
    assert few.status == "budget" and "more steps" in few.advice
    blind = minimize(problem_from(bowl, data=(0.0,)), "bfgs", start, steps=3, path=False)
    assert blind.advice == "continue from params with more steps or evaluations"
    # what is said of other falls, F put in by hand: down a wall, then along a floor that slopes by 1e-6 a step; nowhere
    for values, word in (
        ([9.0, *(1 - 1e-6 * np.arange(20))], "it falls very slowly"),
        ([1.0] * 20, "it has stopped falling"),
    ):
        path = few.path._replace(value=np.array(values))
        assert word in few._replace(path=path, steps=jnp.asarray(len(values))).advice


def wrong_gradient(x):
    """A gradient that is not F's."""
    return jnp.sum(x**2) - 2 * (jnp.sum(x**2) - jax.lax.stop_gradient(jnp.sum(x**2)))


def test_a_gradient_that_is_not_fs_is_said():
    found = minimize(problem_from(wrong_gradient), "bfgs", jnp.array([1.0, 2.0]))
    assert found.status == "search_failed" and "check_grads" in found.advice


def test_where_a_run_left_the_numbers_is_said():
    """Full steps of Newton's method walk out of the region."""
    method = optimizers.newton(line_search="full_step")
    found = jax.jit(lambda x: minimize(problem_from(region), method, x))(jnp.array([3.0, 0.0]))
    assert found.status == "diverged" and "Start elsewhere" in found.advice


def test_lanes_are_told_apart():
    alone = [minimize(problem_from(saddle), "bfgs", start) for start in (jnp.zeros(3), jnp.array([0.5, 1.0, 1.0]))]
    found = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    assert list(found.advice) == [each.advice for each in alone]
    assert "a saddle" in found.advice[0] and found.advice[1] == ""
