"""Ends of a run: by a criterion, with exactly the best epoch's parameters, or at an update that is not finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers
from functional_nn.training import (
    batch,
    early_stopping,
    fit,
    gradient_below,
    loss_below,
    minibatch,
    no_change,
    pure_fit,
)

KEY = jax.random.key(0)
NETWORK = fnn.multilayer((3, 8, 2), ("tanh", "softmax"))
LINEAR = fnn.multilayer((3, 2), ("linear",))
DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((20, 3))
T = np.eye(2)[DRAW.integers(0, 2, 20)]  # random labels: training on them overfits
HELD_OUT = (DRAW.standard_normal((15, 3)), np.eye(2)[DRAW.integers(0, 2, 15)])


def run(network=NETWORK, loss="cross_entropy", optimizer="adam(0.05)", **changes):
    settings = {"key": KEY, "epochs": 40, "plan": minibatch(8), "validation": HELD_OUT} | changes
    return fit(network, loss, optimizer, X, T, **settings)


# Early stopping -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped():
    return run(stop=early_stopping(patience=4))


def test_early_stopping_waits_for_patience(stopped):
    losses = stopped.history.validation_loss
    best = int(losses.argmin())
    assert stopped.status == "early_stopping" and len(losses) == best + 1 + 4 < 40
    assert f"after epoch {best + 5}: the validation loss has not improved for 4 epochs" in stopped.reason
    assert f"parameters of epoch {best + 1} restored" in stopped.reason
    assert int(stopped.best.epoch) == best + 1 and float(stopped.best.score) == losses[best]


def test_early_stopping_returns_exactly_the_best_epochs_parameters(stopped):
    until_then = run(epochs=int(stopped.best.epoch))
    chex.assert_trees_all_equal(stopped.params, until_then.params)
    after = run(epochs=len(stopped.history.epoch))
    chex.assert_trees_all_equal(stopped.state, after.state)  # the last state is returned too


def test_the_length_of_chunks_does_not_change_when_it_stops(stopped):
    other = run(stop=early_stopping(patience=4), chunk=1)
    chex.assert_trees_all_equal((other.state, other.best), (stopped.state, stopped.best))


def test_the_best_parameters_are_restored_even_if_the_epochs_end_first(stopped):
    result = run(stop=early_stopping(patience=39), epochs=len(stopped.history.epoch))
    assert result.status == "completed" and "restored" in result.reason
    chex.assert_trees_all_equal(result.params, stopped.params)


def test_the_first_of_equal_epochs_is_the_best():
    result = run(optimizer="gd(0)", stop=early_stopping(patience=3))
    assert int(result.best.epoch) == 1 and len(result.history.epoch) == 4


def test_the_last_parameters_stay_without_restoring(stopped):
    result = run(stop=early_stopping(patience=4, restore=False))
    assert result.status == "early_stopping" and result.best is None
    chex.assert_trees_all_equal(result.params, stopped.state.params)


def criterion_run(criterion, column, values):
    """The epoch after which a criterion stops, fed the values of one column one by one."""
    row = dict.fromkeys(fnn.training.History._fields, jnp.asarray(jnp.nan))
    memory = criterion.init()
    for epoch, value in enumerate(values, start=1):
        memory, stop = criterion.update(memory, fnn.training.History(**row | {column: jnp.asarray(float(value))}))
        if stop:
            return epoch
    return None


@pytest.mark.parametrize(
    ("criterion", "column", "values", "epoch"),
    [
        (early_stopping(1), "validation_loss", [3, 2, 2], 3),  # an equal loss is no improvement
        (early_stopping(2), "validation_loss", [3, 4, 2, 5, 1, 2, 3], 7),
        (early_stopping(2), "validation_loss", [3, np.nan, np.nan], 3),
        (early_stopping(2, least=0.5), "validation_loss", [3, 2.6, 2.6], 3),
        (early_stopping(2, least=0.5), "validation_loss", [3, 2.6, 2.4, 2.4], None),
        (early_stopping(2, monitor="validation_accuracy"), "validation_accuracy", [0.5, 0.6, 0.6, 0.5], 4),
        (no_change(0.1, epochs=2), "training_loss", [1.0, 0.5, 0.49, 0.48], 4),
        (no_change(0.1, epochs=2), "training_loss", [1.0, 0.95, 0.85, 0.8, 0.8], 5),  # slow, but it adds up
        (no_change(0.1, epochs=1), "training_loss", [-1.0, -1.5, -1.4], 3),
        (no_change(0.1, epochs=1), "training_loss", [1.0, np.nan, 1.0], None),
        (gradient_below(0.1), "gradient_norm", [1, 0.11, 0.1], 3),
        (loss_below(0.2), "training_loss", [1, np.nan, 0.2], 3),
    ],
)
def test_a_criterion_stops_at_the_expected_epoch(criterion, column, values, epoch):
    assert criterion_run(criterion, column, values) == epoch


def test_the_first_criterion_met_ends_the_run():
    result = run(plan=batch(), optimizer="gd(0.5)", stop=(loss_below(1e-9), gradient_below(0.05)), epochs=400)
    assert result.status == "gradient_below" and "the gradient norm is at most 0.05" in result.reason
    assert result.history.gradient_norm[-1] <= 0.05 < result.history.gradient_norm[-2]


def test_a_run_ends_when_its_loss_no_longer_changes():
    result = run(plan=batch(), optimizer="gd(0)", stop=no_change(epochs=3))
    assert result.status == "no_change" and len(result.history.epoch) == 4


# Divergence -----------------------------------------------------------------------------------------------------------


def gradient_that_fails_at(update, value=np.nan):
    """The hand-written gradient, not finite at one update: the one whose state has that step."""

    def gradient(network, loss):
        right = fnn.value_and_grad(network, loss)

        def failing(params, inputs, targets, weights):
            # the bias counts the updates, at rate 1 and gradient -1 each
            found, grads = right(params, inputs, targets, weights)
            at_update = params["layer1"]["bias"][0] == update - 1
            broken = jax.tree.map(lambda g: jnp.where(at_update, jnp.asarray(value, g.dtype), g * 0), grads)
            broken["layer1"]["bias"] = jnp.where(at_update, value, -jnp.ones(2))
            return found, broken

        return failing

    return gradient


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(("update", "value"), [(1, np.nan), (5, np.inf), (8, np.nan)])
def test_a_gradient_that_is_not_finite_never_enters_the_state(update, value):
    params = jax.tree.map(jnp.zeros_like, LINEAR.init(KEY))
    settings = {"network": LINEAR, "loss": "mean_square_error", "optimizer": "gd(1)", "params": params}
    result = run(
        **settings, gradient=gradient_that_fails_at(update, value), plan=minibatch(5), epochs=6
    )  # 4 updates each
    assert result.status == "diverged"
    assert result.reason.startswith(f"update {update}, in epoch {-(-update // 4)}, was not made: its gradient")
    assert int(result.state.step) == update - 1
    assert (np.asarray(result.params["layer1"]["bias"]) == update - 1).all()
    assert np.isnan(result.history.training_loss[-1]) and len(result.history.epoch) == -(-update // 4)


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        pytest.param(
            optimizer,
            dtype,
            marks=() if "gd" in optimizer or "nesterov" in optimizer and dtype == jnp.float32 else pytest.mark.slow,
        )
        for optimizer in ("gd(1e4)", "momentum(1e4)", "nesterov(1e4)")
        for dtype in (jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16)
    ],
)
@pytest.mark.slow
def test_overflow_keeps_the_last_finite_state(optimizer, dtype):
    params = LINEAR.init(KEY, dtype)
    result = run(LINEAR, "mean_square_error", optimizer, params=params, epochs=200)
    chex.assert_tree_all_finite(jax.tree.map(lambda x: x.astype(jnp.float64), result.state))
    assert result.status == "diverged" and not np.isfinite(result.history.training_loss[-1])
    failed = int(result.reason.split()[1].rstrip(","))
    assert int(result.state.step) == failed - 1 and len(result.history.epoch) == -(-failed // 3)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("update", [2, 3])  # in the middle of an epoch of three, and its last
def test_a_finite_gradient_may_still_overflow_the_parameters(update):
    def rate(step):
        return jnp.where(step == update - 1, 1e308, 1e-9)

    sum_of_squares = fnn.losses.sum_square_error("sum")
    params = jax.tree.map(lambda x: 1e3 * x, LINEAR.init(KEY))
    result = run(LINEAR, sum_of_squares, optimizers.gd(rate), params=params, epochs=4)
    chex.assert_tree_all_finite(result.state)
    assert result.status == "diverged" and int(result.state.step) == update - 1
    assert result.reason.startswith(f"update {update}, in epoch 1, was not made: its gradient or its result")


def test_a_loss_that_is_not_finite_is_shown():
    result = run(LINEAR, "mean_square_error", "gd(1e200)", epochs=5)
    assert "its loss was inf" in result.reason


def test_a_diverged_run_restores_the_best_parameters():
    result = run(
        LINEAR,
        "mean_square_error",
        optimizers.gd(lambda step: jnp.where(step < 9, 0.05, 1e200)),
        stop=early_stopping(30),
        epochs=30,
    )
    assert result.status == "diverged" and int(result.best.epoch) <= 4
    assert np.isfinite(float(result.best.score)) and "restored" in result.reason


# The pure form --------------------------------------------------------------------------------------------------------


def test_pure_fit_equals_fit():
    settings = {"plan": minibatch(8), "stop": early_stopping(4), "regularizer": "l2(1e-3)"}
    solo = run(**settings)
    train = jax.jit(pure_fit(NETWORK, "cross_entropy", "adam(0.05)", epochs=40, **settings))
    outcome = train(KEY, X, T, HELD_OUT)
    assert int(outcome.epochs) == len(solo.history.epoch) and int(outcome.ended) == 2
    chex.assert_trees_all_close(outcome.params, solo.params, rtol=1e-10)
    epochs = int(outcome.epochs)
    np.testing.assert_allclose(outcome.history.training_loss[:epochs], solo.history.training_loss, rtol=1e-10)
    assert np.isnan(outcome.history.training_loss[epochs:]).all()


def test_each_member_of_a_vmap_ends_as_it_would_alone():
    rates = jnp.array([0.05, 1e3, 0.2])

    def member(rate):
        return pure_fit(LINEAR, "mean_square_error", optimizers.gd(rate), epochs=60, plan=batch())(KEY, X, T)

    together = jax.jit(jax.vmap(member))(rates)
    assert together.ended.tolist() == [0, 1, 0] and together.failed[0] == 0 < together.failed[1]
    for i, rate in enumerate((0.05, 1e3, 0.2)):
        alone = run(LINEAR, "mean_square_error", optimizers.gd(rate), plan=batch(), epochs=60, validation=None)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together.params), alone.params, rtol=1e-9)
        assert int(together.epochs[i]) == len(alone.history.epoch)
    chex.assert_tree_all_finite(together.params)


def test_the_compiled_program_is_kept_for_equal_settings():
    traces = []

    def counting(network, loss):
        traces.append(1)
        return fnn.value_and_grad(network, loss)

    for seed, rate in ((0, 0.1), (1, 0.1), (2, 0.1), (3, 0.2)):
        run(optimizer=f"gd({rate})", gradient=counting, key=jax.random.key(seed), epochs=2)
    assert len(traces) == 2, "one for each rate"


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: early_stopping(patience=0), "early_stopping: patience must be an integer >= 1, got 0"),
        (lambda: early_stopping(patience=2.5), "early_stopping: patience must be an integer >= 1, got 2.5"),
        (lambda: early_stopping(least=-1), "early_stopping: least must be a number >= 0, got -1"),
        (lambda: early_stopping(monitor="loss"), "early_stopping: monitor must be 'validation_loss' or"),
        (lambda: no_change(tolerance=0), "no_change: tolerance must be > 0, got 0"),
        (lambda: no_change(epochs=0), "no_change: epochs must be an integer >= 1, got 0"),
        (lambda: gradient_below(-1), "gradient_below: norm must be > 0, got -1"),
        (lambda: loss_below(float("nan")), "loss_below: goal must be a finite number, got nan"),
        (lambda: run(stop=early_stopping(), validation=None), "stop: early_stopping needs validation"),
        (lambda: run(stop=(early_stopping(2), early_stopping(3))), "only one criterion can restore"),
        (lambda: run(optimizer="rprop"), "rprop compares the signs of successive gradients, which mini-batches make"),
        (lambda: run(validation=(HELD_OUT[0][:, :2], HELD_OUT[1])), r"validation inputs: expected shape \(Q, 3\)"),
        (lambda: run(regularizer="l3(1)"), "unknown regularizer 'l3'; did you mean 'l"),
    ],
)
def test_bad_settings_are_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as refusal:
        build()
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_criterion_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"stop: expected training.early_stopping\(...\) or the like, got 'early'"):
        run(stop=("early",))


def test_rprop_uses_all_examples_unless_it_is_given_minibatches():
    assert int(run(optimizer="rprop", plan=None, epochs=3).state.step) == 3
    assert int(run(optimizer="rprop(minibatches=True)", epochs=2).state.step) == 6
    assert int(run(optimizer="rprop", plan=minibatch(20), epochs=2).state.step) == 2  # one batch of all


# Prechelt's criteria, and those of the parameters ---------------------------------------------------------------------


def prechelt(name, training, validation, alpha, strip, strips):
    """The epoch (from 1) after which GL, PQ, P or UP stops, from his definitions, read literally; None where not."""
    for t in range(1, len(validation) + 1):
        loss = 100 * (validation[t - 1] / min(validation[:t]) - 1)
        if name == "generalization_loss" and loss > alpha:
            return t
        if t % strip:
            continue
        own = training[t - strip : t]
        progress = 1000 * (sum(own) / (strip * min(own)) - 1)
        if (name == "progress_quotient" and loss > alpha * progress) or (name == "progress_below" and progress < alpha):
            return t
        ends = [validation[t - 1 - i * strip] for i in range(strips + 1) if t - i * strip >= 1]
        rising = all(later > earlier for later, earlier in zip(ends[:-1], ends[1:], strict=True))
        if name == "successive_increases" and len(ends) == strips + 1 and rising:
            return t
    return None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["generalization_loss", "progress_quotient", "progress_below", "successive_increases"])
def test_prechelts_criteria_stop_where_his_definitions_do(name, seed):
    draw = np.random.default_rng(seed)
    alpha, strip, strips = (2.0, 0.3, 0.0)[seed % 3], (1, 3, 5)[seed % 3], 1 + seed % 2
    alpha = 30 * alpha + 25 if name == "progress_below" else alpha
    training = np.exp(-np.arange(60) / 20) * draw.uniform(0.9, 1.1, 60)
    validation = 0.5 + (np.arange(60) / 40 - 1) ** 2 * draw.uniform(0.95, 1.05, 60)
    given = {
        "generalization_loss": (alpha,),
        "progress_quotient": (alpha, strip),
        "progress_below": (alpha, strip),
        "successive_increases": (strips, strip),
    }[name]
    criterion = getattr(fnn.training, name)(*given)
    memory = criterion.begin(None)
    stopped = None
    for epoch, (own, held_out) in enumerate(zip(training, validation, strict=True), start=1):
        row = dict.fromkeys(fnn.training.History._fields) | {"training_loss": own, "validation_loss": held_out}
        row = fnn.training.History(
            **{key: value if value is None else jnp.asarray(value) for key, value in row.items()}
        )
        memory, stop = criterion.judge(memory, row, None)
        if stop:
            stopped = epoch
            break
    assert stopped == prechelt(name, training, validation, alpha, strip, strips)


@pytest.mark.parametrize(
    ("criterion", "column", "values", "epoch"),
    [
        (fnn.training.generalization_loss(0), "validation_loss", [3, 2, 2, 2.001], 4),
        (fnn.training.generalization_loss(5), "validation_loss", [0.0, 0.0, 1e-9], 3),
        (fnn.training.generalization_loss(5, strip=3), "validation_loss", [1, 9, 4, 2, 9, 4, 1, 1, 4.3], 9),
        (fnn.training.generalization_loss(5), "validation_loss", [np.nan, 2, np.nan, 2.2], 4),
        (fnn.training.generalization_loss(0.5), "validation_loss", [np.inf, np.inf, 2, np.inf], 4),
        (fnn.training.generalization_loss(5), "validation_loss", [np.inf, np.inf, 2, np.inf], 4),
        (fnn.training.progress_below(0.1, strip=2), "training_loss", [1, 0.9, 0.5, 0.5], 4),
        (
            fnn.training.progress_below(0.1, strip=2),
            "training_loss",
            [0.0, 0.0, 0.0],
            None,
        ),  # for losses of 0, progress is undefined
        (fnn.training.progress_below(0.1, strip=1), "training_loss", [np.nan, np.inf, 1.0], 3),
        (fnn.training.successive_increases(1, strip=1), "validation_loss", [np.inf, np.inf, 1, 2], 4),
        (fnn.training.successive_increases(1, strip=2), "validation_loss", [9, 1, 9, 1, 0, 2], 6),
        (fnn.training.successive_increases(2, strip=1), "validation_loss", [1, 2, 1, 2, 3], 5),
    ],
)
def test_prechelts_criteria_stop_as_expected_at_the_edges(criterion, column, values, epoch):
    assert criterion_run(criterion, column, values) == epoch


def test_generalization_loss_restores_the_best_epochs_parameters():
    result = run(stop="generalization_loss(1)")
    losses = result.history.validation_loss
    assert result.status == "generalization_loss" and losses[-1] > 1.01 * losses.min()
    assert int(result.best.epoch) == losses.argmin() + 1
    chex.assert_trees_all_equal(result.params, run(epochs=int(result.best.epoch)).params)


def test_a_method_that_does_not_move_ends_after_one_epoch():
    result = run(optimizer="gd(0)", stop="unchanged")
    assert result.status == "unchanged" and len(result.history.epoch) == 1
    assert result.reason == "after epoch 1: the parameters did not change in an epoch"


def test_unchanged_compares_with_a_fraction_of_the_largest_parameter():
    """Gradient descent on a straight line's slope, whose every step is half of the last one's."""
    network = fnn.multilayer((1, 1), ("linear",), bias="none")
    params = {"layer1": {"weights": {"input": jnp.full((1, 1), 2.0)}}}  # from 2 to 1: 1.5, 1.25, ...
    settings = {"key": KEY, "epochs": 30, "plan": batch(), "params": params}
    x = jnp.ones((1, 1))
    result = fit(network, "half_sum_square_error", "gd(0.5)", x, x, stop=fnn.training.unchanged(0.01, 2), **settings)
    slope = 1 + 0.5 ** np.arange(31)
    small = np.abs(np.diff(slope)) <= 0.01 * slope[1:]
    assert len(result.history.epoch) == int(np.flatnonzero(small[1:] & small[:-1])[0]) + 2 == 8
    exactly = fit(network, "half_sum_square_error", "gd(0.5)", x, x, stop="unchanged", **settings | {"epochs": 99})
    assert exactly.params["layer1"]["weights"]["input"] == 1 and 50 <= len(exactly.history.epoch) <= 56


def test_the_infinite_bias_of_a_masked_class_is_no_change():
    params = LINEAR.init(KEY)
    params["layer1"]["bias"] = jnp.array([0.0, -jnp.inf])
    memory = fnn.training.unchanged().begin(params)
    _, stop = fnn.training.unchanged().judge(memory, None, params)
    assert stop


@pytest.mark.parametrize(("before", "length"), [(0, 1), (0, 4), (3, 5), (7, 2), (2, 9)])
def test_a_cycle_is_found_within_three_times_its_length(before, length):
    criterion = fnn.training.cycle()
    visited = [float(min(t, before + (t - before) % length)) for t in range(200)]
    memory = criterion.begin({"w": jnp.asarray(visited[0])})
    row = fnn.training.History(*[jnp.asarray(1.0)] * len(fnn.training.History._fields))
    for epoch, w in enumerate(visited[1:], start=1):  # noqa: B007
        memory, stop = criterion.judge(memory, row, {"w": jnp.asarray(w)})
        if stop:
            break
    assert stop and before + length <= epoch <= 3 * (before + length)


def test_parameters_at_rest_are_no_cycle():
    """A separable problem: once every example is right, all gradients are zero."""
    criterion = fnn.training.cycle()
    memory, zero = criterion.begin({"w": jnp.asarray(1.0)}), jnp.asarray(0.0)
    row = fnn.training.History(*[zero] * len(fnn.training.History._fields))
    for _ in range(5):
        memory, stop = criterion.judge(memory, row, {"w": jnp.asarray(1.0)})
        assert not stop


def test_criteria_of_the_parameters_stop_members_and_resumed_runs_as_runs_alone(tmp_path):
    x, t = X[:, :1], X[:, 1:2]
    settings = {"key": KEY, "plan": batch(), "stop": ("unchanged(1e-3, 2)", "cycle")}
    network = fnn.multilayer((1, 1), ("linear",))
    rates = np.array([0.1, 0.5])
    population = fnn.training.fit_population(
        network, "mean_square_error", "gd", {"learning_rate": rates}, (x, t), epochs=60, **settings
    )
    alone = [fit(network, "mean_square_error", f"gd({rate})", x, t, epochs=60, **settings) for rate in rates]
    assert [len(run.history.epoch) for run in alone] == population.epochs.tolist()
    assert population.status.tolist() == [run.status for run in alone] == ["unchanged", "unchanged"]
    keep = fnn.training.checkpoints.keep
    again = {"checkpoint": keep(tmp_path / "kept"), "resume": True} | settings
    for epochs in (3, 60):
        resumed = fit(network, "mean_square_error", "gd(0.1)", x, t, epochs=epochs, **again)
    chex.assert_trees_all_equal(resumed.params, alone[0].params)
    assert (resumed.status, len(resumed.history.epoch)) == ("unchanged", len(alone[0].history.epoch))


TEXTS = {
    "no_change": "the training loss changed by less than 0.0001 of itself for 5 epochs",
    "gradient_below(0.1)": "the gradient norm is at most 0.1",
    "loss_below(0.1)": "the training loss is at most 0.1",
    "early_stopping": "the validation loss has not improved for 10 epochs",
    "generalization_loss": "the validation loss is more than 5 % above its lowest",
    "progress_quotient": "the validation loss has risen by more than training still gains in 5 epochs is worth: "
    "the quotient is above 0.5",
    "progress_below": "the training loss, over 5 epochs, was less than 0.1 per mille above its least on the mean",
    "successive_increases": "the validation loss has risen in 3 successive strips of 5 epochs",
    "unchanged": "the parameters did not change in an epoch",
    "cycle": "the parameters have come back to those of an earlier epoch",
}


@pytest.mark.parametrize("specification", TEXTS)
def test_the_text_of_a_criterion_is_that_of_older_checkpoints(specification):
    """Checkpoints hold the text, and refuse a run with another one."""
    criterion = fnn.training.termination.get(specification)
    assert repr(criterion) == f"<criterion {criterion.name}: {TEXTS[specification]}>"


def test_the_text_of_every_criterion_is_known():
    assert {specification.partition("(")[0] for specification in TEXTS} == set(fnn.training.termination.names())


@pytest.mark.parametrize("name", fnn.training.termination.names())
def test_every_criterion_has_a_name(name):
    given = {"gradient_below": "(0.1)", "loss_below": "(0.1)"}.get(name, "")
    criterion = fnn.training.termination.get(name + given)
    assert criterion.name == name and fnn.training.termination.get(criterion) is criterion
    assert criterion is fnn.training.termination.get(name + given), "its compiled programs are used again"
    assert getattr(fnn.training, name)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fnn.training.generalization_loss(-1), "generalization_loss: alpha must be a finite number >= 0"),
        (lambda: fnn.training.progress_quotient(1, strip=0), "progress_quotient: strip must be an integer >= 1, got 0"),
        (lambda: fnn.training.generalization_loss(5, strip=0), "generalization_loss: strip must be an integer >= 1"),
        (lambda: fnn.training.progress_below(0), "progress_below: alpha must be a finite number > 0, got 0"),
        (lambda: fnn.training.progress_below(strip=0), "progress_below: strip must be an integer >= 1, got 0"),
        (lambda: fnn.training.successive_increases(0), "successive_increases: strips must be an integer >= 1, got 0"),
        (lambda: fnn.training.unchanged(-1), "unchanged: tolerance must be a finite number >= 0, got -1"),
        (lambda: fnn.training.unchanged(epochs=0), "unchanged: epochs must be an integer >= 1, got 0"),
        (lambda: fnn.training.termination.get("no_chnge"), "unknown criterion 'no_chnge'; did you mean 'no_change'"),
        (lambda: run(stop="generalization_loss", validation=None), "generalization_loss needs validation"),
    ],
)
def test_bad_criteria_are_refused_in_one_line(build, message):
    test_bad_settings_are_refused_in_one_line(build, message)
