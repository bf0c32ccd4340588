"""What training refuses: one line, before anything is compiled, that says what was given and what is accepted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers as O
from functional_nn import training as T

KEY = jax.random.key(0)
NETWORK = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
LINEAR = fnn.multilayer((3, 2), ("linear",))
X = np.random.default_rng(0).standard_normal((8, 3))
Y = np.eye(2)[np.arange(8) % 2]
PARAMS = NETWORK.init(KEY)
MASKS = O.regularizers.magnitude_masks(PARAMS, 0.5)


def fit(network=NETWORK, loss="cross_entropy", optimizer="gd", x=X, y=Y, **changes):
    return fnn.fit(network, loss, optimizer, x, y, **{"key": KEY, "epochs": 1} | changes)


REFUSED = {
    # words for booleans
    "word": (lambda: O.get("rprop(backtracking=no)"), "rprop: backtracking must be True or False, got 'no'"),
    "number for bool": (lambda: O.get("rprop(minibatches=3)"), "rprop: minibatches must be True or False, got 3"),
    "l2 biases": (lambda: O.regularizers.get("l2(0.1, 3)"), "l2: biases must be True or False, got 3"),
    "restore": (lambda: T.early_stopping(restore="no"), "early_stopping: restore must be True or False, got 'no'"),
    "True for a rate": (lambda: O.adam(True), "adam: learning_rate must be a finite number >= 0, got True"),
    "text for a rate": (lambda: O.adam("0.01"), "adam: learning_rate must be a finite number >= 0, got '0.01'"),
    "parentheses": (lambda: O.get("adam(0.01"), r"optimizer 'adam\(0.01': the parentheses do not match"),
    # schedules that begin out of range
    "decay": (lambda: O.momentum(0.1, O.schedules.constant(2.0)), "which begins with 2"),
    "b1": (lambda: O.get("adam(0.01, b1=constant(1.0))"), r"adam: b1 must be in \[0, 1\), got constant"),
    # what has no right answers
    "accuracy": (
        lambda: fit(
            LINEAR, "mean_square_error", validation=(X, Y), stop=T.early_stopping(2, monitor="validation_accuracy")
        ),
        "stop: mean_square_error has no rule for right answers; give fit correct=",
    ),
    "complex inputs": (lambda: fit(x=X + 1j), "inputs: expected real numbers, got dtype complex128"),
    "complex targets": (lambda: fit(y=Y + 1j), "targets: expected real numbers, got dtype complex128"),
    "key": (lambda: fit(key=0), r"key: expected a single key such as jax.random.key\(0\), got int"),
    "keys": (lambda: fit(key=jax.random.split(KEY, 2)), r"key: expected a single key .* of shape \(2,\)"),
    "no network": (lambda: fit("net"), r"network: expected fnn.multilayer\(...\) or fnn.graph\(...\), got str"),
    "gradient": (lambda: fit(gradient=3), "gradient: expected 'manual', 'automatic' or a function, got 3"),
    "correct": (lambda: fit(correct="largest"), "correct: expected a function, got 'largest'"),
    "correct's shape": (lambda: fit(correct=lambda o, t: o), r"correct: expected shape \(8,\), one value for each"),
    "on_chunk": (lambda: fit(on_chunk=3), "on_chunk: expected a function of state and history, got int"),
    "stop None": (lambda: fit(stop=None), "stop: expected training.early_stopping"),
    "stop uncalled": (lambda: fit(stop=T.early_stopping), "stop: expected training.early_stopping"),
    "stop a word": (lambda: fit(stop="early"), "stop: expected training.early_stopping.* got 'early'"),
    "validation": (lambda: fit(validation=(None, None)), "validation inputs: expected an array of numbers"),
    "pure validation": (
        lambda: T.pure_fit(NETWORK, "cross_entropy", "gd", epochs=1)(KEY, X, Y, X),
        r"validation: expected a pair \(inputs, targets\), got ndarray",
    ),
    "best_of's words": (
        lambda: T.best_of(2, NETWORK, "cross_entropy", "gd", X, Y, key=KEY, epochs=1, chunk=3),
        "best_of: expected plan, .*, augment in addition to its own arguments, got chunk=",
    ),
    "traced": (lambda: jax.jit(lambda rate: fit(optimizer=O.gd(rate)).history)(0.1), "use training.pure_fit there"),
    "traced data": (lambda: jax.jit(lambda x: fit(x=x).params)(X), "fit is not pure and cannot be traced"),
    "no key for dropout": (
        lambda: T.train_step(fnn.multilayer((3, 4, 2), ("tanh", "softmax"), dropout=0.5), "cross_entropy", "gd")(
            O.gd().init(PARAMS), T.Batch({"input": X}, Y)
        ),
        r"batch: a network with dropout needs a key; give Batch\(..., key=key\)",
    ),
    "a plan": (lambda: T.BatchPlan(0), "batch size must be an integer >= 1, got 0"),
    # wrappers, masks and states
    "a wrapped nothing": (lambda: O.average(None), "optimizer: expected a name or an Optimizer, got NoneType"),
    "a wrapped factory": (lambda: O.clip_by_value(O.adam, 1.0), "optimizer: expected a name or an Optimizer, got"),
    "make": (lambda: O.reduce_on_plateau("adam", 0.1), "reduce_on_plateau: make must be a function"),
    "all frozen": (lambda: O.freeze("gd", ["layer1", "layer2"]).init(PARAMS), "freeze: nothing is left to train"),
    "masks of another": (
        lambda: O.keep_pruned("gd", MASKS).init(fnn.multilayer((3, 5, 2), ("tanh", "softmax")).init(KEY)),
        r"masks: layer1/bias expected shape \(5,\), got \(4,\)",
    ),
    "masks left out": (
        lambda: O.keep_pruned("gd", {"layer1": MASKS["layer1"]}).init(PARAMS),
        "masks: layer2/bias is missing",
    ),
    "masks of floats": (lambda: O.keep_pruned("gd", PARAMS).init(PARAMS), "masks: layer1/bias expected booleans"),
    "no weights": (lambda: O.regularizers.magnitude_masks({}, 0.5), "magnitude_masks: params: expected at least one"),
    "params for a state": (lambda: O.adam().update(PARAMS, PARAMS), "adam: expected the AdamState that init returns"),
    "value and gradient": (
        lambda: O.adam().update(O.adam().init(PARAMS), (1.0, PARAMS)),
        "grads: expected the structure of the parameters, got a tuple",
    ),
    "integers": (lambda: O.adam().init({"w": jnp.arange(3)}), "adam: params: w expected an array of real numbers"),
    "a single array for two": (
        lambda: fnn.graph(inputs={"a": 1, "b": 2}, layers=[fnn.Layer("o", 1, "linear", ("a", "b"))]).apply(
            {"o": {"weights": {"a": jnp.ones((1, 1)), "b": jnp.ones((1, 2))}, "bias": jnp.ones(1)}}, X
        ),
        "got a single array",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name):
    build, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message) as refusal:
        build()
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_names_do_wherever_an_optimizer_or_a_loss_does():
    value, _ = T.evaluate(NETWORK, "cross_entropy", PARAMS, X, Y)
    assert np.isfinite(value)
    for wrap in (lambda o: O.clip_by_value(o, 1.0), O.average, lambda o: O.accumulate(o, 2)):
        assert fit(optimizer=wrap("adam(0.01)")).status == "completed"
    assert O.get("rprop(minibatches=false)").full_batch and not O.get("rprop(minibatches=true)").full_batch


def test_thresholds_may_be_traced():
    def member(least, tolerance):
        stop = (T.early_stopping(1, least=least), T.no_change(tolerance, 1))
        return T.pure_fit(NETWORK, "cross_entropy", "gd", epochs=4, stop=stop)(KEY, X, Y, (X, Y)).epochs

    epochs = jax.jit(jax.vmap(member))(jnp.array([10.0, 1e-9]), jnp.array([1e-12, 1e-12]))
    assert epochs.tolist() == [2, 4]


def test_pruned_parameters_are_what_comes_back_from_a_run_that_never_improved():
    masks = O.regularizers.magnitude_masks(start := LINEAR.init(KEY), 0.5)
    result = fit(
        LINEAR,
        "mean_square_error",
        O.keep_pruned(O.gd(1e308), masks),
        params=start,
        plan=T.batch(),
        epochs=9,
        validation=(X, Y),
        stop=T.early_stopping(3),
    )
    assert result.status == "diverged" and int(result.best.epoch) == 0
    assert float(O.regularizers.sparsity(result.params)) == 0.5
