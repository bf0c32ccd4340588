"""Several runs side by side, by `vmap` and by `restarts`, are those run alone."""

import jax
import numpy as np
import pytest
from second_order_cases import (
    BENT,
    CONSTANT,
    FAR,
    LONG,
    METHODS,
    OWN,
    QUARTIC,
    SADDLE,
    START,
    STEPS,
    marked,
    problem_of,
    quadratic,
    side_by_side,
    trajectory,
)

from functional_nn.optimizers import levenberg_marquardt, second_order

pytestmark = pytest.mark.usefixtures("brisk")
RUNS = {
    "bfgs": [(QUARTIC, START, 0.0), (QUARTIC, -START, 0.0), (SADDLE, START, 0.0), (quadratic(5), START, 0.0)],
    # traced constants: each run has its own mu
    "lm gain": [(BENT, START, 1e-3), (BENT, START, 1.0), (BENT, -2 * START, 1e-6), (BENT._replace(q=0.0), START, 1e-3)],
    "hessian_free": [(LONG._replace(q=0.1), OWN["hessian_free"][1], damping) for damping in (1.0, 1e-4, 100.0, 1.0)],
    "newton": [(QUARTIC, START, 0.0), (QUARTIC, START, 2.0), (SADDLE, START, 0.5), (quadratic(5), START, 0.0)],
}


for _name in METHODS.keys() - RUNS.keys():
    function, start = OWN[_name]
    function = function._replace(q=0.1)  # bent so little that some end soon
    # J J^T is singular, N > P: by the time that mu is small, rounding leads each its own way
    constant = 1e3 if "samples" in _name else CONSTANT.get(_name, 1e-3)
    RUNS[_name] = [(function, k * start, constant * times) for k, times in ((1, 1), (3, 1), (0.5, 100), (-1, 1))]


over_runs = pytest.mark.parametrize("name", marked(METHODS, ("bfgs", "lm gain")))


@pytest.mark.newest
@over_runs
def test_runs_side_by_side_are_those_run_alone(name):
    """The path and end of each run are those of the same steps made one by one, and there is nothing after its end."""
    found, several = side_by_side(name, RUNS[name]), set()
    for i, (function, start, constant) in enumerate(RUNS[name]):
        alone = trajectory(name, function, start, constant)
        last = min(int(found.steps[i]), STEPS)
        path = jax.tree.map(lambda column, i=i: column[i], found.path)
        # rounding grows along a path that bends: to the sixth digit it is the same
        np.testing.assert_allclose(path.value[:last], alone.value[1 : last + 1], rtol=1e-6, atol=1e-12)
        norms = np.linalg.norm(alone.gradient[1 : last + 1], axis=1)
        np.testing.assert_allclose(path.gradient_norm[:last], norms, rtol=1e-5, atol=1e-6)
        passes = sum(getattr(alone.counts, each) for each in alone.counts._fields)
        # one decision that rounding turns moves the counts of all steps after it, not what these take
        taken = np.diff(path.passes[:last]) == np.diff(passes[1 : last + 1])
        assert last < 2 or taken.mean() >= 0.8
        steps = int(found.steps[i])
        assert np.isfinite(path.value[:steps]).all() and np.isnan(path.value[steps:]).all()
        assert (path.passes[steps:] == 0).all() and found.counts.passes[i] == path.passes[steps - 1]
        assert found.value[i] == path.value[steps - 1] == found.state.value[i]
        np.testing.assert_allclose(found.value[i], function.value(found.params[i]), rtol=1e-11, atol=1e-15)
        several.add(steps)
    assert len(several) > 1 or name == "bayesian_regularization"  # some ended while others continued


@over_runs
def test_a_run_that_is_nan_leaves_the_others_unchanged(name):
    """Bitwise; and ends as diverged before its first step, its parameters what they were."""
    runs = RUNS[name]
    healthy = side_by_side(name, runs)
    broken = side_by_side(name, [*runs[:1], (runs[1][0], np.full_like(runs[1][1], np.nan), runs[1][2]), *runs[2:]])
    for whole, with_nan in zip(jax.tree.leaves(healthy), jax.tree.leaves(broken), strict=True):
        np.testing.assert_array_equal(whole[[0, 2, 3]], with_nan[[0, 2, 3]])
    assert list(broken.status == "diverged") == [False, True, False, False]
    assert broken.steps[1] == 0 and np.isnan(broken.params[1]).all()
    assert broken.best.value == min(broken.value[[0, 2, 3]])


@over_runs
def test_the_status_is_true_of_every_run(name):
    """The status of each run says whether the largest |dF/dx_i|, or the steps."""
    found = side_by_side(name, RUNS[name])
    for i in range(len(RUNS[name])):
        largest = np.abs(found.gradient[i]).max()
        assert (found.status[i] == "gradient") == (largest <= 1e-6)
        assert (found.steps[i] == FAR) == (found.status[i] == "budget") or found.status[i] == "gradient"
        assert found.status[i] in ("gradient", "budget", "change", "search_failed")
    assert (found.status == "gradient").sum() >= 1


def test_restarts_are_minimize_from_each_start():
    """One after another, and fewer side by side than there are starts; one start is nan."""
    mild, starts = BENT._replace(q=0.1), np.stack([START * k for k in (1, 3, np.nan, 0.5)])
    expected = side_by_side("lm gain", [(mild, start, 1e-3) for start in starts])
    for block in (None, 2):
        found = second_order.restarts(
            problem_of(mild),
            levenberg_marquardt(1e-3, scaling="identity"),
            starts,
            block=block,
            chunk=3,
            steps=FAR,
            gradient_tolerance=1e-6,
        )
        np.testing.assert_array_equal(found.status, expected.status)
        np.testing.assert_allclose(found.params, expected.params, atol=1e-6)  # as near as the tolerance brings them
        assert found.status[2] == "diverged" and len(set(found.steps.tolist())) == 4  # ended one by one
        assert np.abs(found.steps - expected.steps).max() <= 1
        for field in ("values", "matrices"):
            assert np.abs(getattr(found.counts, field) - getattr(expected.counts, field)).max() <= 1
        assert float(found.best.value) == np.nanmin(found.value)
        np.testing.assert_array_equal(found.best.params, found.params[np.nanargmin(found.value)])
        assert found.path is None and found.state is None
    with pytest.raises(ValueError, match="best: expected several runs side by side"):
        _ = found.best.best
