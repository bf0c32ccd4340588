"""`minimize`: how runs end, and what is compiled and kept."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from second_order_cases import QUARTIC, SADDLE, START, STEPS, TRACED, P, problem_of, run

from functional_nn import optimizers
from functional_nn.optimizers import levenberg_marquardt, line_searches, minimize, problem_from, second_order
from functional_nn.optimizers.second_order import many_starts, minimization

pytestmark = pytest.mark.usefixtures("brisk")


def test_every_status_is_met():
    """Each with what it says, at the first step of which that is true."""
    rising = QUARTIC._replace(sign=-1.0)
    whole = run()
    assert whole.status == "budget" and int(whole.steps) == STEPS
    path = jax.tree.map(np.asarray, whole.path)

    goal = run(goal=float(path.value[4]))
    assert goal.status == "goal" and int(goal.steps) == 5

    flat = run(gradient_tolerance=5.0)
    k = int(flat.steps)
    points = [START, *(np.asarray(run(evaluations=int(n)).params) for n in path.passes[:k])]
    largest = [np.abs(QUARTIC.gradient(x)).max() for x in points]
    assert flat.status == "gradient" and largest[k] <= 5.0 < min(largest[:k])

    shares = -np.diff(path.value) / path.value[:-1]
    still = run(change_tolerance=float(np.sort(shares)[2]) * 1.0001)
    k = int(still.steps)
    assert still.status == "change" and shares[k - 2] <= np.sort(shares)[2] * 1.001

    for most in (1, 4, 7):
        spent = run(evaluations=most)
        k = int(spent.steps)
        assert spent.status == "budget" and int(spent.counts.evaluations) >= most
        assert k == 0 or k == 1 or path.passes[k - 2] < most

    failed = run(rising)
    assert failed.status == "search_failed"
    assert (np.asarray(failed.params) == START).all()
    np.testing.assert_allclose(failed.value, rising.value(START), rtol=1e-14)

    for found in (goal, flat, still, spent, failed):
        number = second_order.STATUSES.index(found.status)
        assert found.reason == second_order.REASONS[number] and int(found.ended) == number
        assert repr(found).endswith("; ".join(filter(None, (found.reason, found.advice))) + ">")
    with pytest.raises(ValueError, match="params: expected finite numbers, got inf at index"):
        run(start=np.full(P, np.inf))
    with pytest.raises(ValueError, match="params: <problem bowl> is not finite at the start: F = .*start elsewhere"):
        run(start=np.full(P, 1e200))


@pytest.mark.parametrize("name", ["bfgs", "levenberg_marquardt"])
def test_at_a_minimum_there_is_nothing_to_do(name):
    """Exactly there, F = 0 or not, no step is made; from its own end a run ends at once."""
    for t in (0.0, np.array([1.0, -1.0])):
        problem = problem_from(residuals=lambda x, t: jnp.concatenate([x - 3, t]), data=(jnp.zeros(2) + t,))
        found = minimize(problem, name, jnp.array([3.0, 3.0]))
        assert (found.status, int(found.steps)) == ("gradient", 0)
    rosen = problem_from(residuals=lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0], 0.1 * x[0]]))
    first = minimize(rosen, name, jnp.array([-1.2, 1.0]))
    again = minimize(rosen, name, first.params)
    assert first.status == again.status == "gradient" and int(again.steps) <= 2


def test_a_function_that_is_deleted_frees_its_programs():
    """After 32 more; here those are only names, so that nothing is compiled."""

    class Held:
        data = np.ones(2)

    held = Held()
    gone = weakref.ref(held)

    def shifted(x, held=held):
        return jnp.sum((x - held.data) ** 2)

    minimize(problem_from(shifted), "conjugate_gradient", jnp.zeros(2), steps=3)
    second_order.restarts(problem_from(shifted), "conjugate_gradient", np.zeros((2, 2)), steps=3)
    del held, shifted
    for i in range(32):
        problem_from(lambda x, i=i: i)
        for program in (minimization._compiled, many_starts._in_turn_program):
            program(i, "", optimizers.get("bfgs"), 1, jax.make_mesh((1,), ("lanes",)))
    gc.collect()
    assert gone() is None


FLAGGED = {
    **{f"bfgs {search}": optimizers.bfgs(search) for search in line_searches.names()},
    "lbfgs": optimizers.lbfgs(),
    "conjugate_gradient": optimizers.conjugate_gradient(),
    "newton": optimizers.newton(),
    "levenberg_marquardt": levenberg_marquardt(),
    "lm singular": levenberg_marquardt(1e-25, scaling="identity"),
    "hessian_free": optimizers.hessian_free(),
    "scaled_conjugate_gradient": optimizers.scaled_conjugate_gradient(),
    "variable_learning_rate": optimizers.variable_learning_rate(),
}


@pytest.mark.sampled(every=2)
@pytest.mark.newest
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("bfgs strong_wolfe", "lm singular") else pytest.mark.slow)
        for name in FLAGGED
    ],
)
def test_jax_debug_nans_and_infs_let_finite_runs_pass(name):
    """Alone, side by side, and from several starts; after the end a user still sees nan."""
    rows = (10.0, 1.0, 0.1)
    problem = problem_from(
        residuals=lambda x: jnp.stack([rows[0] * (x[1] - x[0] ** 2), rows[1] - x[0], rows[2] * x[0]])
    )
    starts = np.array([[-1.2, 1.0], [0.5, 0.5]])
    with jax.debug_nans(True), jax.debug_infs(True):
        found = minimize(problem, FLAGGED[name], starts[0], steps=150)
        jax.jit(jax.vmap(lambda x: minimize(problem, FLAGGED[name], x, steps=30)))(starts)
        for block in (1, 2):
            second_order.restarts(problem, FLAGGED[name], starts, steps=30, block=block)
    steps = int(found.steps)
    assert np.isfinite(found.path.value[:steps]).all() and np.isnan(found.path.value[steps:]).all()


def test_a_second_call_of_the_same_shapes_compiles_nothing():
    """Limits are data; one that is given judges otherwise than its default, so that it is given in both."""
    run(change_tolerance=1e-12)
    TRACED.clear()
    run(SADDLE, 2 * START, goal=-1.0, gradient_tolerance=1e-3, change_tolerance=1e-9, evaluations=100)
    assert TRACED == []
    jax.eval_shape(problem_of(SADDLE).value, START)
    assert TRACED != []  # the list does tell
