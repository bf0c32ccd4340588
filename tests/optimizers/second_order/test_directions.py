"""Conjugate gradients, BFGS and L-BFGS: their directions, followed step by step in NumPy."""

import numpy as np
import pytest
from second_order_cases import BETAS, QUARTIC, SADDLE, START, STEPS, P, cg, marked, quadratic, trajectory

from functional_nn import optimizers

pytestmark = pytest.mark.usefixtures("brisk")
EXACT = "strong_wolfe(curvature=1e-10)"
EXACTLY = {
    **{f"cg {beta}": cg(beta, "never", line_search=EXACT) for beta in BETAS},
    "cg restarted": cg(restart="gradient", line_search=EXACT),
    "cg powell_beale": cg(restart="powell_beale", line_search=EXACT),
    "bfgs": lambda _: optimizers.bfgs(EXACT),
    "lbfgs": lambda _: optimizers.lbfgs(history=P, line_search=EXACT),
}


@pytest.mark.parametrize("name", marked(EXACTLY, ("cg polak_ribiere_plus", "bfgs")))
def test_conjugate_directions_end_a_quadratic_in_as_many_steps_as_it_has_dimensions(name):
    """Condition 100, exact searches, and one step more to make up for rounding: to 1e-10 of |x*|."""
    for n in (2, 5, 10):
        function = quadratic(n)
        states = trajectory(name, function, np.zeros(P), make=EXACTLY[name])
        errors = np.linalg.norm(states.params - function.center, axis=1) / np.linalg.norm(function.center)
        assert errors[n + 1] <= 1e-10, errors
        assert errors[n - 1] > 1e-3  # not before its time


def conjugate(beta, restart="never"):
    """(points, gradients) -> d_0, d_1, ... of nonlinear conjugate gradients, and at which it restarted."""

    def share(g, before, d):
        y = g - before
        return {
            "fletcher_reeves": g @ g / (before @ before),
            "polak_ribiere": g @ y / (before @ before),
            "polak_ribiere_plus": max(g @ y / (before @ before), 0),
            "hestenes_stiefel": g @ y / (d @ y),
            "dai_yuan": g @ g / (d @ y),
        }[beta]

    def directions(points, gradients):
        d, since, anchor, restarted = -gradients[0], 0, None, []
        found = [d]
        for before, g in zip(gradients[:-1], gradients[1:], strict=True):
            since += 1
            two = -g + share(g, before, d) * d
            again = restart != "never" and (abs(g @ before) >= 0.2 * (g @ g) or since >= P)
            if restart == "powell_beale":  # Powell 1977; t is the number of the first direction until it restarts
                three = two if anchor is None else two + g @ anchor[1] / (anchor[0] @ anchor[1]) * anchor[0]
                again = again or not 0.8 <= -(three @ g) / (g @ g) <= 1.2
                anchor = (d, g - before) if again or anchor is None else anchor
                d = two if again else three
            else:
                d = -g if again else two
            since = 0 if again else since
            d = d if d @ g < 0 else -g
            found.append(d)
            restarted.append(again)
        return found, restarted

    return directions


def broyden_fletcher_goldfarb_shanno(points, gradients):
    """d_k = -B_k g_k, B by Nocedal and Wright's Eq. 6.17 as it is printed, scaled before as Al-Baali 1998 does."""
    B, found = None, [-gradients[0]]
    for k in range(1, len(points)):
        s, y = points[k] - points[k - 1], gradients[k] - gradients[k - 1]
        if B is None:
            B = np.eye(P) * (s @ y) / (y @ y)  # Eq. 6.20
        else:
            B = B * max(1, s @ np.linalg.solve(B, s) / (s @ y))
        V = np.eye(P) - np.outer(y, s) / (s @ y)
        B = V.T @ B @ V + np.outer(s, s) / (s @ y)
        found.append(-B @ gradients[k])
    return found, []


def limited(m):
    """d_k from the dense matrix that the last m pairs make of s'y / y'y I: Eq. 7.19, without a recursion."""

    def directions(points, gradients):
        found = [-gradients[0]]
        for k in range(1, len(points)):
            pairs = [(points[j + 1] - points[j], gradients[j + 1] - gradients[j]) for j in range(max(0, k - m), k)]
            s, y = pairs[-1]
            B = np.eye(P) * (s @ y) / (y @ y)
            for s, y in pairs:
                V = np.eye(P) - np.outer(y, s) / (s @ y)
                B = V.T @ B @ V + np.outer(s, s) / (s @ y)
            found.append(-B @ gradients[k])
        return found, []

    return directions


# name -> (directions, c2 of its search)
TRIED_FIRST = cg(restart="never", line_search="full_step")
DIRECTIONS = {
    **{f"cg {beta}": (conjugate(beta), 0.1) for beta in BETAS},
    "cg restarted": (conjugate("polak_ribiere_plus", "gradient"), 0.1),
    "cg powell_beale": (conjugate("polak_ribiere_plus", "powell_beale"), 0.1),
    "bfgs": (broyden_fletcher_goldfarb_shanno, 0.9),
    "lbfgs": (limited(3), 0.9),
}
DESCENTS = ((QUARTIC, START), (SADDLE, START), (QUARTIC, -3 * START))


@pytest.mark.parametrize("name", marked(DIRECTIONS))
def test_steps_go_along_the_directions_of_the_text(name):
    """As far as strong Wolfe conditions allow; and quasi-Newton's all the way, where they allow that."""
    directions, c2 = DIRECTIONS[name]
    full, restarted = 0, set()
    for function, start in DESCENTS:
        points = trajectory(name, function, start).params
        gradients = [function.gradient(x) for x in points]
        expected, again = directions(points, gradients)
        restarted |= set(again)
        for k in range(STEPS):
            x, d, moved = points[k], expected[k], points[k + 1] - points[k]
            alpha, slope = moved @ d / (d @ d), gradients[k] @ d
            # y is a difference of gradients: what rounding leaves of it turns d
            np.testing.assert_allclose(moved, alpha * d, atol=1e-7 * np.linalg.norm(moved), err_msg=f"step {k}")

            def allowed(step, x=x, d=d, slope=slope, function=function):
                lower = function.value(x + step * d) <= function.value(x) + 1e-4 * step * slope
                return lower and abs(function.gradient(x + step * d) @ d) <= c2 * abs(slope) * (1 + 1e-9)

            assert alpha > 0 and allowed(alpha)
            if k and not name.startswith("cg") and allowed(1.0):
                np.testing.assert_allclose(alpha, 1, rtol=1e-6)
                full += 1
    assert full > 10 or name.startswith("cg")
    assert (restarted == {True, False}) == (name in ("cg restarted", "cg powell_beale"))


@pytest.mark.slow
def test_the_first_step_that_conjugate_gradients_try():
    """A tenth of the largest |x_i| at the start, later what would decrease F by as much as the step before."""
    points = trajectory("cg polak_ribiere_plus", make=TRIED_FIRST).params[:4]
    values, gradients = [QUARTIC.value(x) for x in points], [QUARTIC.gradient(x) for x in points]
    expected, _ = conjugate("polak_ribiere_plus")(points, gradients)
    for k in range(3):
        first = 0.1 * np.abs(points[0]).max() / np.abs(gradients[0]).max()
        if k:
            first = 2.02 * (values[k] - values[k - 1]) / (gradients[k] @ expected[k])
        np.testing.assert_allclose(points[k + 1] - points[k], first * expected[k], rtol=1e-9)


def test_the_betas_give_different_directions():
    """On the points that are followed above, no other's directions would pass for those of the default."""
    for function, start in DESCENTS:
        points = trajectory("cg polak_ribiere_plus", function, start).params
        gradients = [function.gradient(x) for x in points]
        own = conjugate("polak_ribiere_plus")(points, gradients)[0]
        for beta in set(BETAS) - {"polak_ribiere_plus"}:
            others = conjugate(beta)(points, gradients)[0]
            apart = max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(own, others, strict=True))
            assert apart > 1e-3 or beta == "polak_ribiere" and function is QUARTIC and start is START
