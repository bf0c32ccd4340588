"""The variable learning rate: Hagan's three rules written out in NumPy, on his quadratic and on a small network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.optimizers import minimize, problem_from

NAN = float("nan")


def by_the_rules(value, gradient, x, steps, rate=0.01, increase=1.05, decrease=0.7, tolerance=0.04, decay=0.9):
    """NND2, ch. 12, in its words: x, F and the rate after each step, and what became of it."""
    error, momentum, change, path = value(x), 0.0, np.zeros_like(x), []
    for _ in range(steps):
        update = momentum * change - (1 - momentum) * rate * gradient(x)
        new = value(x + update)
        if not np.isfinite(new) or new > error + tolerance * abs(error):
            what, rate, momentum = "refused", rate * decrease, 0.0  # the update is discarded
        else:
            what, rate = ("falls", rate * increase) if new < error else ("rises", rate)
            x, error, change, momentum = x + update, new, update, decay
        path.append((x, error, rate, what))
    return [np.array(column) for column in zip(*path, strict=True)]


# Hagan's quadratic ----------------------------------------------------------------------------------------------------

A, D, C = np.array([[12.0, -8], [-8, 12]]), np.array([4.0, 4]), 4.0  # Eq. 3.15
START, STEPS = np.array([-1, -2.95]), 40  # later F is rounding, and so is what is made of it


def quadratic(x, shift=0.0):
    return x @ A @ x / 2 + D @ x + C - shift


def slope(x):
    return A @ x + D


def followed(method, problem, x):
    def one(state, _):
        state = method.update(state, problem)
        return state, state

    return jax.lax.scan(one, method.init(x, problem), length=STEPS)[1]


# (rate, increase, decrease, tolerance, decay), and what is taken from F: then it is negative where it is low
LANES = [
    (0.01, 1.05, 0.7, 0.04, 0.9, 0.0),
    (0.3, 1.05, 0.7, 0.04, 0.9, 0.0),
    (0.3, 1.1, 0.5, 0.5, 0.6, 0.0),
    (5.0, 1.05, 0.7, 0.0, 0.9, 0.0),
    (0.03, 1.2, 0.7, 0.04, 0.0, 0.0),
    (0.3, 1.05, 0.7, 0.04, 0.9, 20.0),
]


@pytest.fixture(scope="module")
def lanes():
    """The states of all lanes, side by side in one program of traced constants, and one more that begins at nan."""

    def run(x, rate, increase, decrease, tolerance, decay, shift):
        method = optimizers.variable_learning_rate(rate, increase, decrease, tolerance, decay)
        return followed(method, problem_from(quadratic, data=(shift,)), x)

    starts = np.array([START] * len(LANES) + [[NAN, 0.0]])
    states = jax.jit(jax.vmap(run))(starts, *map(np.array, zip(*LANES, LANES[0], strict=True)))
    return jax.tree.map(np.asarray, states)


@pytest.mark.parametrize("lane", range(len(LANES)))
def test_it_follows_the_rules_on_hagans_quadratic(lanes, lane):
    *constants, shift = LANES[lane]
    x, error, rate, what = by_the_rules(lambda x: quadratic(x, shift), slope, START, STEPS, *constants)
    states = jax.tree.map(lambda column: column[lane], lanes)
    np.testing.assert_allclose(states.params, x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(states.value, error, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(states.memory.rate, rate, rtol=1e-12)
    np.testing.assert_allclose(states.gradient, x @ A + D, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(states.counts.gradients, 2 + np.arange(STEPS))
    assert not states.status.any() and not any(getattr(states.counts, each).any() for each in ("values", "products"))
    refused = np.diff(states.params, axis=0, prepend=START[None]).any(axis=1) == 0
    np.testing.assert_array_equal(refused, what == "refused")
    assert (states.expected[refused] > 0).all() and (states.expected[~refused] == 0).all()
    assert (states.length > 0).all()


def test_every_rule_is_met():
    """The runs above: where no rise is tolerated, F never rises."""
    found = [by_the_rules(lambda x, s=shift: quadratic(x, s), slope, START, STEPS, *c)[3] for *c, shift in LANES]
    assert {what for whats in found for what in whats} == {"falls", "rises", "refused"}
    assert [set(whats) for whats, lane in zip(found, LANES, strict=True) if lane[3] == 0] == [{"falls", "refused"}]
    assert {"rises", "refused"} < set(found[-1])  # where F is below 0, too


def test_a_lane_that_begins_at_nan_makes_no_step(lanes):
    """And ends as diverged; the others, above, are what they are."""
    assert np.isnan(lanes.params[-1, :, 0]).all() and (lanes.params[-1, :, 1] == 0).all()
    assert (lanes.status[-1] == optimizers.second_order.STATUSES.index("diverged")).all()


# A network ------------------------------------------------------------------------------------------------------------

NETWORK = fnn.multilayer((1, 3, 1), ("tanh", "linear"))
X = np.linspace(-2, 2, 17)[:, None]
T = np.sin(2 * X)


def unpacked(x):
    return x[:3, None], x[3:6], x[6:9][None, :], x[9:]


def mean_square(x):
    W1, b1, W2, b2 = unpacked(x)
    return np.mean((np.tanh(X @ W1.T + b1) @ W2.T + b2 - T) ** 2)


def its_gradient(x):
    W1, b1, W2, b2 = unpacked(x)
    a = np.tanh(X @ W1.T + b1)
    s2 = 2 * (a @ W2.T + b2 - T) / len(X)
    s1 = s2 @ W2 * (1 - a**2)
    return np.concatenate([(s1.T @ X).ravel(), s1.sum(0), (s2.T @ a).ravel(), s2.sum(0)])


def as_params(x):
    W1, b1, W2, b2 = unpacked(x)
    return {"layer1": {"weights": {"input": W1}, "bias": b1}, "layer2": {"weights": {"layer1": W2}, "bias": b2}}


def test_a_network_is_trained_by_the_rules():
    """By `minimize` and by `fit`; and its default leaves the error far lower."""
    start = np.random.default_rng(0).standard_normal(10) / 2
    x, error, rate, what = by_the_rules(mean_square, its_gradient, start, 200, rate=1.0)
    assert set(what) == {"falls", "rises", "refused"}
    problem = training.problem(NETWORK, "mean_square_error", X, T)
    method = optimizers.variable_learning_rate(1.0)
    found = minimize(problem, method, as_params(start), steps=200)
    np.testing.assert_allclose(found.path.value, error, rtol=1e-12)
    np.testing.assert_allclose(found.state.memory.rate, rate[-1], rtol=1e-12)

    def same(ours, theirs):
        return np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)

    jax.tree.map(same, found.params, as_params(x[-1]))
    assert (found.status, int(found.counts.evaluations), int(found.damped)) == ("budget", 201, 0)
    plan = training.batch()
    fitted = fnn.fit(
        NETWORK,
        "mean_square_error",
        method,
        X,
        T,
        key=jax.random.key(0),
        epochs=200,
        plan=plan,
        params=as_params(start),
    )
    np.testing.assert_allclose(fitted.history.training_loss[1:], error[:-1], rtol=1e-12)  # of where an epoch begins
    jax.tree.map(same, fitted.params, found.params)
    assert error[-1] < 0.1 * mean_square(start)


# How it ends ----------------------------------------------------------------------------------------------------------


def test_how_it_ends():
    """At the minimum of the quadratic; at a goal; where the rate moves nothing."""

    def run(rate, goal, tolerance):
        method = optimizers.variable_learning_rate(rate)
        return minimize(problem_from(quadratic), method, START, goal=goal, gradient_tolerance=tolerance, path=False)

    lanes = [(0.01, -np.inf, 1e-6), (0.01, 1.0, 0.0), (1e-30, -np.inf, 0.0)]
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(*map(np.array, zip(*lanes, strict=True))))
    assert list(found.status) == ["gradient", "goal", "search_failed"] and found.steps[2] == 1
    assert found.reason[2].endswith("or the rate moves nothing") and (found.params[2] == START).all()
    np.testing.assert_allclose(found.params[0], [-1, -1], atol=1e-6)
    steps = int(found.steps[1])
    _, error, *_ = by_the_rules(quadratic, slope, START, steps)
    assert error[-1] <= 1.0 < error[:-1].min()


def test_the_rate_stays_finite_where_f_falls_without_end():
    method = optimizers.variable_learning_rate(increase=1e30)
    states = jax.jit(lambda x: followed(method, problem_from(lambda x: -x.sum()), x))(jnp.zeros(1, jnp.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states))
    assert states.value[-1] < -1e38 and set(np.diff(states.params[:, 0]) == 0) == {True, False}


def test_its_name_and_constants():
    method = optimizers.get("variable_learning_rate(0.1, decay=0.5)")
    assert method is optimizers.variable_learning_rate(0.1, decay=0.5) and method.full_batch
    assert repr(method) == (
        "<optimizer variable_learning_rate(learning_rate=0.1, increase=1.05, decrease=0.7, tolerance=0.04, decay=0.5)>"
    )
