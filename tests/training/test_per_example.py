"""Training with what one sweep gives: clipped gradients, batches drawn by norm, quantities in the history."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error

import functional_nn as fnn
from functional_nn import quantities, training

KEY = jax.random.key(0)
NETWORK = fnn.multilayer((3, 5, 2), ("tanh", "softmax"))
LOSS = fnn.losses.cross_entropy()
X = jnp.asarray(np.random.default_rng(0).standard_normal((11, 3)))
T = jnp.asarray(np.eye(2)[(np.asarray(X)[:, 0] > 0.3).astype(int)])
PARAMS = NETWORK.init(jax.random.key(1))


def fit(**changes):
    settings = {"key": KEY, "epochs": 3, "params": PARAMS, "plan": training.batch()} | changes
    return fnn.fit(settings.pop("network", NETWORK), settings.pop("loss", LOSS), "gd(0.5)", X, T, **settings)


# Clipping -------------------------------------------------------------------------------------------------------------


def test_clipped_training_takes_clipped_steps():
    """Against gradients taken, measured and scaled one example at a time."""
    result, params = fit(gradient=training.clipped(0.2)), PARAMS
    for _ in range(3):
        alone = [jax.grad(fnn.objective(NETWORK, LOSS))(params, X[q : q + 1], T[q : q + 1]) for q in range(len(X))]
        norms = [float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(one)))) for one in alone]
        scaled = [jax.tree.map(lambda g, n=n: g * min(1, 0.2 / n), one) for one, n in zip(alone, norms, strict=True)]
        params = jax.tree.map(lambda p, *g: p - 0.5 * sum(g) / len(X), params, *scaled)
    assert max(norms) > 0.2
    assert relative_error(result.params, params) <= 1e-12


def test_a_bound_that_nothing_reaches_changes_nothing():
    chex.assert_trees_all_close(fit(gradient=training.clipped(1e6)).params, fit().params, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.slow
def test_noise_is_drawn_anew_at_every_update_and_from_the_key():
    noisy = training.clipped(0.2, noise_multiplier=1.0)
    one, again, other = fit(gradient=noisy), fit(gradient=noisy, chunk=1), fit(gradient=noisy, key=jax.random.key(5))
    chex.assert_trees_all_equal(one.params, again.params)
    assert relative_error(one.params, other.params) > 1e-3
    still = training.clipped(0.2)
    first = jax.tree.map(jnp.subtract, fit(gradient=noisy, epochs=1).params, fit(gradient=still, epochs=1).params)
    later = jax.tree.map(jnp.subtract, one.params, fit(gradient=still).params)
    assert relative_error(jax.tree.map(lambda x: x / 3, later), first) > 0.1


def test_the_gradient_under_dropout_has_the_mask_of_its_key():
    network = fnn.multilayer((3, 50, 2), ("tanh", "softmax"), dropout=0.5)
    params = network.init(KEY)
    value, found = training.clipped(1e6, 1e-12)(network, LOSS)(params, X, T, None, KEY)
    expected_value, expected = fnn.value_and_grad(network, LOSS)(params, X, T, None, KEY)
    assert relative_error(found, expected) <= 1e-4 and float(value) == pytest.approx(float(expected_value), rel=1e-12)
    assert relative_error(found, fnn.value_and_grad(network, LOSS)(params, X, T)[1]) > 0.1


@pytest.mark.slow
def test_training_under_dropout_and_a_bound_that_nothing_reaches():
    network = fnn.multilayer((3, 50, 2), ("tanh", "softmax"), dropout=0.5)
    params = network.init(KEY)
    whole = fit(network=network, params=params, gradient=training.clipped(1e6), plan=training.minibatch(4))
    manual = fit(network=network, params=params, plan=training.minibatch(4))
    chex.assert_trees_all_close(whole.params, manual.params, rtol=1e-10)


@pytest.mark.slow
def test_bounds_may_be_swept():
    """One program over bounds: each is its own run."""

    def member(bound):
        train = training.pure_fit(NETWORK, LOSS, "gd(0.5)", epochs=3, gradient=training.clipped(bound))
        return train(KEY, X, T, params=PARAMS).params

    bounds = jnp.array([0.1, 10.0])
    found = jax.jit(jax.vmap(member))(bounds)
    alone = fit(gradient=training.clipped(0.1), plan=None).params
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], found), alone, rtol=1e-10)
    assert relative_error(jax.tree.map(lambda x: x[1], found), alone) > 1e-3


def test_clipping_refuses():
    for bound in (0, -1.0, float("inf"), "1"):
        with pytest.raises(ValueError, match="clipped: max_norm must be a finite number > 0, got"):
            training.clipped(bound)
    with pytest.raises(ValueError, match="clipped: noise_multiplier must be a finite number >= 0, got -1"):
        training.clipped(1.0, -1)
    step = training.train_step(NETWORK, LOSS, "gd", training.clipped(1.0, 0.5))
    with pytest.raises(ValueError, match=r"batch: a random gradient needs a key; give Batch\(..., key=key\)"):
        step(fnn.optimizers.gd().init(PARAMS), training.Batch({"input": X}, T))


# Batches drawn by norm ------------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_batches_drawn_by_norm_are_followed(reduction):
    """Against the plan's own draws: each update follows (1/B) sum_b w_b g_b, or that sum where the loss is one."""
    plan, loss = training.importance(4), fnn.losses.cross_entropy(reduction)
    result = fnn.fit(NETWORK, loss, "gd(0.1)", X, T, key=KEY, epochs=2, params=PARAMS, plan=plan)
    params, plan_key = PARAMS, jax.random.split(KEY)[1]
    for epoch in range(2):
        drawn = plan.draw(plan_key, epoch, quantities.per_example_norms(NETWORK, LOSS, params, X, T))
        assert drawn.indices.shape == (3, 4)
        for rows, weights in zip(drawn.indices, drawn.weights, strict=True):
            g = quantities.per_example_gradients(NETWORK, LOSS, params, X[rows], T[rows])
            step = jax.tree.map(lambda g, w=weights: jnp.tensordot(w, g, 1) / (4 if reduction == "mean" else 1), g)
            params = jax.tree.map(lambda p, d: p - 0.1 * d, params, step)
    assert relative_error(result.params, params) <= 1e-12
    assert np.isfinite(result.history.training_loss).all()


def test_a_run_by_norm_that_diverges_keeps_its_last_finite_state():
    network = fnn.multilayer((3, 2), ("linear",))
    plan = training.importance(4)
    result = fnn.fit(network, "mean_square_error", "gd(1e100)", X, T, key=KEY, epochs=3, plan=plan)
    assert result.status == "diverged" and "was not made" in result.reason
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


# The history ----------------------------------------------------------------------------------------------------------


def test_what_is_tracked_is_measured_after_each_epoch_on_all_examples():
    seen = []
    result = fit(
        plan=training.minibatch(4),
        chunk=2,
        track=("noise_scale", "per_example_norms", "layer_statistics"),
        on_chunk=lambda state, history: seen.append((state.params, history.tracked)),
    )
    tracked = result.history.tracked
    assert tracked["per_example_norms"].shape == (3, 11) and isinstance(tracked["per_example_norms"], np.ndarray)
    assert tracked["noise_scale"].layers["layer2"].signal.shape == (3,)
    for params, so_far in [*seen, (result.params, tracked)]:
        expected = quantities.compute(NETWORK, LOSS, params, X, T, tuple(tracked))
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[-1], so_far), expected, rtol=1e-10)
    untracked = fit(plan=training.minibatch(4), chunk=2)
    chex.assert_trees_all_equal(untracked.params, result.params)
    assert untracked.history.tracked == {}


@pytest.mark.slow
def test_functions_of_ones_own_are_tracked_too():
    def own(params, inputs, targets):
        assert inputs.shape == (11, 3) and targets.shape == (11, 2)
        return {"rate": fnn.curvature.stable_rate(NETWORK, LOSS, params, inputs, targets, key=KEY), "count": 3}

    result = fit(track={"own": own})
    assert result.history.tracked["own"]["count"].tolist() == [3, 3, 3]
    expected = fnn.curvature.stable_rate(NETWORK, LOSS, result.params, X, T, key=KEY)
    assert result.history.tracked["own"]["rate"][-1] == pytest.approx(float(expected), rel=1e-10)
    outcome = jax.jit(training.pure_fit(NETWORK, LOSS, "gd(0.5)", epochs=3, plan=training.batch(), track={"own": own}))(
        KEY, X, T, params=PARAMS
    )
    np.testing.assert_allclose(outcome.history.tracked["own"]["rate"], result.history.tracked["own"]["rate"], rtol=1e-8)


def test_what_the_optimizers_state_has_is_tracked_too():
    """Levenberg-Marquardt's mu, after every epoch, beside a function of the parameters."""
    x = jnp.linspace(-1, 1, 9)[:, None]
    network, seen = fnn.multilayer((1, 2, 1), ("tanh", "linear")), []
    track = {
        "mu": training.of_state(lambda state: state.memory.mu),
        "bias": lambda params, x, t: params["layer2"]["bias"],
    }
    result = fnn.fit(
        network,
        "mean_square_error",
        "levenberg_marquardt",
        x,
        jnp.sin(3 * x),
        key=KEY,
        epochs=4,
        chunk=1,
        track=track,
        on_chunk=lambda state, history: seen.append((float(state.memory.mu), float(state.params["layer2"]["bias"][0]))),
    )
    mu, bias = np.array(seen).T
    np.testing.assert_array_equal(result.history.tracked["mu"], mu)
    np.testing.assert_array_equal(result.history.tracked["bias"][:, 0], bias)
    assert len(set(mu)) > 1
    with pytest.raises(TypeError, match="of_state: expected a function of the optimizer's state, got str"):
        training.of_state("mu")


@pytest.mark.parametrize(
    ("track", "error", "message"),
    [
        (("noise_scal",), ValueError, "track: unknown quantity 'noise_scal'; did you mean 'noise_scale'?"),
        (("kfac",), ValueError, "track: kfac needs key=...; or give {name: function of (params, inputs, targets)}"),
        ("noise_scale", TypeError, "track: expected names of quantities, such as ('noise_scale',)"),
        (None, TypeError, "track: expected names of quantities, such as ('noise_scale',), or functions, got None"),
        ({"rate": 3}, TypeError, "track: expected a function of (params, inputs, targets) for 'rate', got 3"),
    ],
)
def test_what_cannot_be_tracked_is_refused(track, error, message):
    with pytest.raises(error) as refusal:
        fit(track=track)
    assert message in str(refusal.value)


@pytest.mark.slow
def test_a_function_that_fails_is_named():
    with pytest.raises(jax.errors.ConcretizationTypeError) as refusal:
        fit(track={"mine": lambda params, inputs, targets: float(inputs[0, 0])})
    assert refusal.value.__notes__[0].startswith("while measuring 'mine', which fit was asked to track")


def test_a_history_that_would_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(training.program, "BUDGET", 1000)
    with pytest.raises(ValueError, match="track: per_example_norms of 100 epochs would take .* lower chunk"):
        fit(track=("per_example_norms",), epochs=100, chunk=100)
