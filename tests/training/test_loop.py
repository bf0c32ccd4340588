"""`fit`: one program, the same numbers however it is cut, and a history that says what it claims."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error

import functional_nn as fnn
from functional_nn.training import Batch, batch, clipped, evaluate, fit, minibatch, stochastic, train_step
from functional_nn.training.gradient import GRADIENTS, with_outputs

KEY = jax.random.key(0)
NETWORK = fnn.multilayer((3, 5, 2), ("tanh", "softmax"))
LOSS = fnn.losses.cross_entropy()
X = np.random.default_rng(0).standard_normal((23, 3))
T = np.eye(2)[(X[:, 0] + X[:, 1] ** 2 > 0.5).astype(int)]


def run(**changes):
    settings = {"key": KEY, "epochs": 6, "plan": minibatch(8), "chunk": 4, "validation": (X[:7], T[:7])} | changes
    optimizer = settings.pop("optimizer", fnn.optimizers.adam(0.01))
    return fit(settings.pop("network", NETWORK), settings.pop("loss", LOSS), optimizer, X, T, **settings)


@pytest.fixture(scope="module")
def result():
    return run()


def by_hand(plan, epochs, learning_rate=0.01):
    """The same training as a plain Python loop over jax.grad, in the order the plan gives."""
    init_key, plan_key = jax.random.split(KEY)
    state = fnn.optimizers.adam(learning_rate).init(NETWORK.init(init_key))
    objective, losses, norms = fnn.objective(NETWORK, LOSS), [], []
    for epoch in range(epochs):
        rows, weights = plan.indices(plan_key, epoch, len(X)), plan.weights(len(X))
        total, epoch_norms = 0.0, []
        for update, row in enumerate(np.asarray(rows)):
            kept = row if weights is None else row[weights[update] == 1]
            value, grads = jax.value_and_grad(objective)(state.params, X[kept], T[kept])
            total += float(value) * len(kept) / len(X)
            epoch_norms.append(float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))))
            state = fnn.optimizers.adam(learning_rate).update(state, grads)
        losses.append(total)
        norms.append(np.mean(epoch_norms))
    return state, losses, norms


@pytest.mark.newest
def test_fit_is_the_loop_it_claims_to_be(result):
    # 6 epochs of 3 updates, the last batch of each incomplete; rounding through Adam's division stays below 1e-9
    state, losses, norms = by_hand(minibatch(8), 6)
    chex.assert_trees_all_close(result.params, state.params, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.history.training_loss, losses, rtol=1e-10)
    np.testing.assert_allclose(result.history.gradient_norm, norms, rtol=1e-9)
    assert int(result.state.step) == 18 and result.status == "completed"
    assert result.history.epoch.tolist() == [1, 2, 3, 4, 5, 6]


def test_validation_is_measured_after_the_epoch(result):
    value, accuracy = evaluate(NETWORK, LOSS, result.params, X[:7], T[:7])
    assert result.history.validation_loss[-1] == pytest.approx(float(value), rel=1e-12)
    assert result.history.validation_accuracy[-1] == float(accuracy)


@pytest.mark.newest
@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("chunk", [1, 6, 100])
def test_chunks_do_not_change_a_bit(result, chunk):
    other = run(chunk=chunk)
    chex.assert_trees_all_equal(other.state, result.state)
    for mine, theirs in zip(other.history, result.history, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.newest
def test_manual_and_automatic_gradients_train_alike(result):
    other = run(gradient="automatic")
    chex.assert_trees_all_close(other.params, result.params, rtol=1e-9, atol=1e-12)


def own(network, loss):
    return jax.value_and_grad(fnn.objective(network, loss))


@functools.wraps(fnn.value_and_grad)
def halved(network, loss):
    """It takes over what the other says of itself, and gives another gradient."""
    gradients_of = fnn.value_and_grad(network, loss)

    def value_and_gradients(*data):
        value, grads = gradients_of(*data)
        return value, jax.tree.map(lambda g: g / 2, grads)

    return value_and_gradients


@pytest.mark.parametrize("gradient", [*GRADIENTS.values(), clipped(0.1), clipped(0.1, 0.5), own, halved])
def test_every_gradient_comes_with_the_outputs_it_was_taken_at(gradient):
    """With neurons dropped, too; a user's own is told them by a forward pass, the library's say them."""
    network, loss, t = fnn.multilayer((3, 5, 2), ("tanh", "softmax"), dropout=0.4), LOSS, T
    if gradient is GRADIENTS["perceptron"]:
        network, loss = fnn.multilayer((3, 2), ("hardlim",)), fnn.losses.get("sum_square_error")
    params, w = network.init(KEY), np.linspace(1, 2, len(X))
    value, outputs, grads = with_outputs(gradient, network, loss)(params, {"input": X}, t, w, KEY)
    trace = network.forward(params, X, key=KEY)
    chex.assert_trees_all_equal((value, grads), gradient(network, loss)(params, {"input": X}, t, w, KEY))
    np.testing.assert_array_equal(outputs, trace.activations[network.output.name])
    np.testing.assert_allclose(loss.value(outputs, t, w), value, rtol=1e-12)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", ["adam(0.01)", "rprop", "lbfgs", "levenberg_marquardt", "kfac(minibatches=true)"])
def test_the_step_of_every_method_is_what_an_epoch_of_one_batch_makes(name):
    """Methods of either order are asked the same: a start, a step, and whether it ends the run."""
    network, loss, method = fnn.multilayer((3, 4, 2), ("tanh", "linear")), "mean_square_error", fnn.optimizers.get(name)
    params = network.init(KEY)
    state = method.begin(params, lambda: fnn.training.problem(network, loss, X, T))
    found = run(network=network, loss=loss, optimizer=method, plan=batch(), epochs=1, params=params)
    state, metrics = jax.jit(train_step(network, loss, method))(state, Batch({"input": X}, T))
    chex.assert_trees_all_close(state.params, found.params, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(metrics.loss, found.history.training_loss[0], rtol=1e-12)
    np.testing.assert_allclose(metrics.gradient_norm, found.history.gradient_norm[0], rtol=1e-9)
    assert int(method.ended(state)) == 0 and found.status == "completed"


def test_fifty_epochs_trace_the_step_once():
    traces = []

    def counting(network, loss):
        gradient = fnn.value_and_grad(network, loss)

        def counted(*args):
            traces.append(1)
            return gradient(*args)

        return counted

    run(epochs=53, gradient=counting, chunk=10)
    assert len(traces) == 1


def test_callbacks_come_between_chunks():
    seen = []
    run(epochs=9, on_chunk=lambda state, history: seen.append((int(state.step), len(history.epoch))))
    assert seen == [(12, 4), (24, 8), (27, 9)]


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(("plan", "steps"), [(batch(), 2), (stochastic(), 46), (minibatch(8, shuffle="once"), 6)])
def test_plans_make_their_number_of_updates(plan, steps):
    assert int(run(plan=plan, epochs=2).state.step) == steps


def test_batch_history_is_the_loss_before_the_update():
    result = run(plan=batch(), epochs=1)
    init_key, _ = jax.random.split(KEY)
    expected = fnn.objective(NETWORK, LOSS)(NETWORK.init(init_key), X, T)
    assert result.history.training_loss[0] == pytest.approx(float(expected), rel=1e-12)


def test_sum_losses_add_up_over_the_epoch():
    mean, total = (
        run(optimizer=fnn.optimizers.gd(0.0)),
        run(loss=fnn.losses.cross_entropy("sum"), optimizer=fnn.optimizers.gd(0.0)),
    )
    np.testing.assert_allclose(total.history.training_loss, mean.history.training_loss * len(X), rtol=1e-12)


def test_a_sum_is_the_mean_at_a_rate_divided_by_the_batch_size():
    """Kordecki: the two accumulations are one training, at learning rates that differ by the factor B."""
    mean = run(optimizer=fnn.optimizers.momentum(0.2), plan=minibatch(8, last="weighted"))
    total = run(optimizer=fnn.optimizers.momentum(0.2 / 8), plan=minibatch(8), loss=fnn.losses.cross_entropy("sum"))
    chex.assert_trees_all_close(mean.params, total.params, rtol=1e-10)
    kept = run(optimizer=fnn.optimizers.momentum(0.2))
    assert relative_error(kept.params, mean.params) > 1e-3  # a last batch that is kept counts for more


def test_a_weighted_epoch_of_gradients_is_the_whole_gradient():
    """At rates too small to move, the changes of a weighted epoch add up to U times the full batch's, b / B each."""
    params = NETWORK.init(KEY)
    whole = fnn.value_and_grad(NETWORK, LOSS)(params, X, T)[1]
    after = run(optimizer=fnn.optimizers.gd(1e-9), plan=minibatch(8, last="weighted"), params=params, epochs=1).params
    moved = jax.tree.map(lambda new, old: (old - new) / (1e-9 * len(X) / 8), after, params)
    assert relative_error(moved, whole) < 1e-5  # the differences of nearly equal numbers


def test_a_dropped_batch_is_not_seen():
    result = run(plan=minibatch(8, last="dropped"), epochs=3, optimizer=fnn.optimizers.gd(0.0))
    assert int(result.state.step) == 6
    init_key, plan_key = jax.random.split(KEY)
    for epoch, found in enumerate(result.history.training_loss):
        rows = np.ravel(minibatch(8, last="dropped").indices(plan_key, epoch, len(X)))
        expected = fnn.objective(NETWORK, LOSS)(NETWORK.init(init_key), X[rows], T[rows])
        assert found == pytest.approx(float(expected), rel=1e-12)


def test_a_regularizer_adds_its_gradient_and_leaves_the_loss():
    l2 = fnn.optimizers.regularizers.l2(0.05)
    result = run(regularizer=l2, optimizer=fnn.optimizers.gd(0.1), plan=batch(), epochs=2)
    params = NETWORK.init(jax.random.split(KEY)[0])

    def penalized(p):
        return fnn.objective(NETWORK, LOSS)(p, X, T) + l2.value(p)

    for loss, norm in zip(result.history.training_loss, result.history.gradient_norm, strict=True):
        grads = jax.grad(penalized)(params)
        assert loss == pytest.approx(float(fnn.objective(NETWORK, LOSS)(params, X, T)), rel=1e-12)
        assert norm == pytest.approx(float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))), rel=1e-12)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    chex.assert_trees_all_close(result.params, params, rtol=1e-12)


def test_gradients_are_taken_where_the_optimizer_looks():
    """Nesterov's look-ahead through `fit`: the same weights as its other form, told where it takes its gradients."""
    ahead = run(optimizer=fnn.optimizers.nesterov(0.1, 0.8, "look_ahead"), plan=batch(), epochs=5)
    told = run(optimizer=fnn.optimizers.nesterov(0.1, 0.8), plan=batch(), epochs=5)
    moved = jax.tree.map(lambda w, v: w + 0.8 * v, ahead.state.params, ahead.state.change)
    chex.assert_trees_all_close(moved, told.params, rtol=1e-12)


def test_the_average_is_what_is_measured_and_returned():
    result = run(optimizer=fnn.optimizers.average(fnn.optimizers.gd(0.3)))
    value, _ = evaluate(NETWORK, LOSS, result.params, X[:7], T[:7])
    assert result.history.validation_loss[-1] == pytest.approx(float(value), rel=1e-12)
    raw = run(optimizer=fnn.optimizers.gd(0.3))
    chex.assert_trees_all_close(result.state.inner.params, raw.params, rtol=1e-12)
    assert relative_error(result.params, raw.params) > 1e-3


@pytest.mark.slow
def test_the_plateau_hears_the_validation_loss():
    make = fnn.optimizers.gd
    result = run(optimizer=fnn.optimizers.reduce_on_plateau(make, 1e-9, patience=1, tolerance=0.5), epochs=9)
    # nothing ever falls by half, so: the first epoch, then a tenth at every second one after it
    assert float(result.state.learning_rate) == pytest.approx(1e-9 * 0.1**4, rel=1e-6)
    result = run(optimizer=fnn.optimizers.reduce_on_plateau(make, 0.1, tolerance=0.0))
    assert float(result.state.best) == result.history.validation_loss.min()
    result = run(optimizer=fnn.optimizers.reduce_on_plateau(make, 0.1, tolerance=0.0), validation=None)
    assert float(result.state.best) == result.history.training_loss.min()


def test_divergence_stops_the_run_and_is_named():
    result = run(
        network=fnn.multilayer((3, 2), ("linear",)),
        loss=fnn.losses.mean_square_error(),
        optimizer=fnn.optimizers.gd(1e200),
        epochs=50,
    )
    assert result.status == "diverged"
    assert len(result.history.epoch) < 50
    assert not np.isfinite(result.history.training_loss[-1])
    assert np.isnan(result.history.training_accuracy).all()  # a regression has no right answers


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_training_stays_in_its_dtype_and_learns(dtype):
    params = NETWORK.init(KEY, dtype)
    result = run(params=params, epochs=20, optimizer=fnn.optimizers.momentum(0.2))
    assert all(x.dtype == dtype for x in jax.tree.leaves(result.params))
    assert result.history.training_loss[-1] < 0.8 * result.history.training_loss[0]


def test_correct_may_be_given():
    right = run(correct=lambda outputs, targets: jnp.ones(outputs.shape[0], bool))
    assert (right.history.training_accuracy == 1).all() and (right.history.validation_accuracy == 1).all()


def test_several_inputs():
    network = fnn.graph(
        inputs={"p1": 1, "p2": 2},
        layers=[fnn.Layer("h", 3, "tanh", ("p1",)), fnn.Layer("o", 2, "softmax", ("h", "p2"))],
    )
    result = fit(network, LOSS, fnn.optimizers.gd(0.5), {"p1": X[:, :1], "p2": X[:, 1:]}, T, key=KEY, epochs=30)
    assert result.history.training_loss[-1] < result.history.training_loss[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"chunk": 2.5}, "chunk must be an integer >= 1, got 2.5"),
        ({"plan": minibatch(24)}, "batch size must be 1 to 23"),
        ({"gradient": "manaul"}, "unknown gradient 'manaul'; did you mean 'manual'"),
        ({"validation": (X[:, :2], T)}, r"validation inputs: expected shape \(Q, 3\)"),
        ({"validation": (X, T[:, :1])}, r"validation targets: expected shape \(23, 2\)"),
        ({"loss": dataclasses.replace(LOSS, targets="signs")}, r"accepts -1 or \+1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (X[:5], T, r"targets: expected shape \(5, 2\) to match the outputs, got \(23, 2\)"),
        (np.where(np.arange(69).reshape(23, 3) == 31, np.nan, X), T, r"inputs: .* got nan at index \(10, 1\)"),
        (X, np.where(np.arange(46).reshape(23, 2) == 7, np.inf, T), r"targets: .* got inf at index \(3, 1\)"),
        (X[:0], T[:0], "at least one example"),
    ],
)
def test_bad_data_is_refused(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        fit(NETWORK, LOSS, fnn.optimizers.gd(), inputs, targets, key=KEY, epochs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": X}, r"validation: expected a pair \(inputs, targets\), got ndarray"),
        ({"validation": (X, T, T)}, "validation: expected a pair"),
        ({"plan": 32}, r"plan: expected training.batch\(\), minibatch\(size\) or stochastic\(\), got 32"),
        ({"loss": fnn.losses.cross_entropy}, "loss: expected a name or a Loss, got function"),
        ({"optimizer": fnn.optimizers.adam}, "optimizer: expected a name or an Optimizer, got function"),
    ],
)
def test_things_of_another_kind_are_refused(changes, message):
    with pytest.raises(TypeError, match=message):
        run(**changes)


def test_names_do_for_loss_and_optimizer():
    assert run(loss="cross_entropy", optimizer="gd(0.1)", epochs=1).status == "completed"
