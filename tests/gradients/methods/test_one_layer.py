"""Rules of one layer, against their loops in NumPy: the perceptron's, within Novikoff's bound and round in circles for
XOR; Widrow and Hoff's, down to the least squares; Hebb's, which stores pairs.
"""

import jax
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import training
from functional_nn.gradients.methods.one_layer import perceptron
from functional_nn.training import fit, fit_population, stochastic

KEY = jax.random.key(0)
TABLE = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
GATES = {"AND": [0, 0, 0, 1], "OR": [0, 1, 1, 1], "NAND": [1, 1, 1, 0], "NOR": [1, 0, 0, 0], "XOR": [0, 1, 1, 0]}
LOGIC = {"hardlim": 0.0, "hardlims": -1.0}  # what stands for false
ENDS = (training.loss_below(0.0), training.cycle())


def gate(name, false):
    """Inputs (4, 2) and targets (4, 1) in the logic of `false` and 1."""
    return np.where(TABLE, 1.0, false), np.where(np.array(GATES[name])[:, None], 1.0, false)


def rosenblatt(activation, weights, bias, inputs, targets, rate, epochs):
    """(weights, bias, mistakes of each epoch) of the rule as it is printed, one example after the other."""
    low, step = (0.0, 1.0) if activation == "hardlim" else (-1.0, 0.5)
    mistakes = []
    for _ in range(epochs):
        wrong = 0
        for p, t in zip(inputs, targets, strict=True):
            a = np.where(weights @ p + bias >= 0, 1.0, low)
            weights, bias = weights + rate * step * np.outer(t - a, p), bias + rate * step * (t - a)
            wrong += int((t != a).any())
        mistakes.append(wrong)
    return weights, bias, mistakes


def learn(activation, name, rate=1, epochs=200, **changes):
    network = fnn.multilayer((2, 1), (activation,))
    settings = {"key": KEY, "epochs": epochs, "plan": stochastic(shuffle="never"), "stop": ENDS, "chunk": 200}
    settings |= {"gradient": "perceptron", "params": jax.tree.map(np.zeros_like, network.init(KEY))} | changes
    return fit(network, "sum_square_error", f"gd({rate})", *gate(name, LOGIC[activation]), **settings)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("activation", LOGIC)
def test_it_is_rosenblatts_loop_and_says_how_it_ends(activation, name):
    result = learn(activation, name)
    p, t = gate(name, LOGIC[activation])
    epochs = len(result.history.epoch)
    weights, bias, mistakes = rosenblatt(activation, np.zeros((1, 2)), np.zeros(1), p, t, 1, epochs)
    np.testing.assert_allclose(result.params["layer1"]["weights"]["input"], weights, atol=1e-12)
    np.testing.assert_allclose(result.params["layer1"]["bias"], bias, atol=1e-12)
    each = 1 if activation == "hardlim" else 4  # the square of what a mistake is off by
    np.testing.assert_array_equal(result.history.training_loss, each * np.array(mistakes))
    if name == "XOR":
        assert result.status == "cycle" and "come back to those of an earlier epoch" in result.reason
        *_, later = rosenblatt(activation, weights, bias, p, t, 1, 10_000)
        assert min(later) > 0, "and so it goes on"
    else:
        assert result.status == "loss_below" and mistakes[-1] == 0 < mistakes[0]
        outputs = fnn.multilayer((2, 1), (activation,)).apply(result.params, p)
        np.testing.assert_array_equal(outputs, t)


@pytest.mark.parametrize("activation", LOGIC)
def test_any_start_any_batch_and_any_weights(activation):
    """Several neurons, real inputs and mini-batches: the mean over a batch of what each example adds, by its weight."""
    draw = np.random.default_rng(1)
    network = fnn.multilayer((4, 3), (activation,))
    p, low = draw.normal(size=(12, 4)), LOGIC[activation]
    t, w = np.where(draw.normal(size=(12, 3)) > 0, 1.0, low), draw.uniform(0.5, 2, 12)
    params = network.init(KEY)
    weights, bias = np.asarray(params["layer1"]["weights"]["input"]), draw.normal(size=3)
    params["layer1"]["bias"] = bias
    for loss, share in (("mean_square_error", w / w.sum()), ("sum_square_error", w)):
        value, change = jax.jit(fnn.value_and_grad(network, loss, rule="perceptron"))(params, p, t, w)
        a = np.where(p @ weights.T + bias >= 0, 1.0, low)
        wrong = share[:, None] * (a - t) * (1 if activation == "hardlim" else 0.5)
        np.testing.assert_allclose(change["layer1"]["weights"]["input"], wrong.T @ p, rtol=0, atol=1e-12)
        np.testing.assert_allclose(change["layer1"]["bias"], wrong.sum(axis=0), rtol=0, atol=1e-12)
        size = 1 / 3 if loss == "mean_square_error" else 1
        np.testing.assert_allclose(value, size * share @ ((t - a) ** 2).sum(axis=1), rtol=1e-12)


def test_novikoffs_bound_holds_in_any_order_and_at_any_rate():
    """From zero weights, on random separable data: no more than (R / g)^2 mistakes, whatever the shuffle."""
    pytest.importorskip("scipy")
    from functional_nn.lab.separability import separability

    draw = np.random.default_rng(2)
    p = draw.normal(size=(60, 3))
    n = p @ draw.normal(size=3) + 0.3
    p, t = p[np.abs(n) > 0.2], (n[np.abs(n) > 0.2] >= 0).astype(float)[:, None]
    known = separability(p, t)
    network = fnn.multilayer((3, 1), ("hardlim",), initializer="zeros")
    rates = np.repeat([0.01, 1.0, 7.3], 4)
    population = fit_population(
        network,
        "sum_square_error",
        "gd",
        {"learning_rate": rates, "seed": np.arange(12)},
        (p, t),
        key=KEY,
        epochs=300,
        plan=stochastic(),
        shuffle="independent",
        gradient="perceptron",
        stop=ENDS,
        chunk=300,
    )
    mistakes = np.nansum(population.history.training_loss, axis=0)
    assert known.separable and set(population.status) == {"loss_below"}
    assert 0 < mistakes.min() and mistakes.max() <= known.bound < np.inf


def test_it_is_told_from_a_gradient_where_one_is_needed():
    network = fnn.multilayer((2, 1), ("hardlim",))
    with pytest.raises(ValueError, match="'hardlim' has no derivative, .* with fit's gradient='perceptron'"):
        fnn.value_and_grad(network, "sum_square_error")
    assert repr(perceptron) == "<rule perceptron>" and training.gradient.GRADIENTS["perceptron"].rule is perceptron


@pytest.mark.parametrize(
    ("network", "loss", "targets", "message"),
    [
        (fnn.multilayer((2, 3, 1), ("tanh", "hardlim")), "sum_square_error", 1, "perceptron: the rule trains a single"),
        (fnn.multilayer((2, 1), ("sigmoid",)), "sum_square_error", 1, "layer 'layer1' must be of 'hardlim' .* 'sigm"),
        (fnn.multilayer((2, 1), ("hardlim",)), "sum_square_error", -1, "'hardlim' neurons tell 0 and 1 apart, got -1"),
        (fnn.multilayer((2, 1), ("hardlims",)), "sum_square_error", 0, "'hardlims' neurons tell -1 and 1 apart, got 0"),
        (fnn.multilayer((2, 1), ("hardlims",)), "binary_cross_entropy", 1, "needs outputs that are numbers in"),
    ],
)
def test_what_it_cannot_learn_is_refused(network, loss, targets, message):
    p, t = np.where(TABLE, 1.0, 0.0), np.array([[1.0], [1.0], [targets], [1.0]])
    settings = {"key": KEY, "epochs": 1, "gradient": "perceptron"}
    with pytest.raises(ValueError, match=message) as refusal:
        fit(network, loss, "gd(1)", p, t, **settings)
    assert "\n" not in str(refusal.value)
    if targets < 1:
        right = np.where(t == targets, 1.0, t)
        with pytest.raises(ValueError, match=f"validation targets: .*got {targets} at index"):
            fit(network, loss, "gd(1)", p, right, validation=(p, t), **settings)


def test_a_second_order_method_does_not_take_it():
    network = fnn.multilayer((2, 1), ("hardlim",))
    with pytest.raises(
        ValueError, match="gradient: newton requires exact derivatives, which the perceptron rule does not compute"
    ):
        fit(
            network,
            "sum_square_error",
            "newton",
            *gate("AND", 0.0),
            key=KEY,
            epochs=1,
            gradient="perceptron",
            plan=training.batch(),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": training.importance(2)}, "plan: importance[(][)] needs derivatives"),
        ({"track": ("noise_scale",)}, "track: 'noise_scale' needs derivatives"),
        ({"gradient": training.clipped(1.0)}, "layer 'layer1': 'hardlim' has no derivative"),
    ],
)
def test_options_that_need_derivatives_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        learn("hardlim", "AND", **changes)


def test_in_any_order_xor_ends_as_a_cycle_and_not_as_at_rest():
    """An epoch that undoes all that it did leaves the parameters as they were before it."""
    network = fnn.multilayer((2, 1), ("hardlim",), initializer="zeros")
    found = fit_population(
        network,
        "sum_square_error",
        "gd(1)",
        {"seed": range(32)},
        gate("XOR", 0.0),
        key=KEY,
        epochs=200,
        plan=stochastic(),
        shuffle="independent",
        gradient="perceptron",
        stop=(*ENDS, training.unchanged()),
        chunk=200,
    )
    assert set(found.status) == {"cycle"}


# Widrow and Hoff's ----------------------------------------------------------------------------------------------------


def regression(seed=3, examples=12):
    """Inputs (Q, 3), signs and real targets (Q, 2), and a start that is not at zero."""
    draw = np.random.default_rng(seed)
    p, t = draw.normal(size=(examples, 3)), draw.normal(size=(examples, 2))
    return p, t, np.sign(t), {"layer1": {"weights": {"input": draw.normal(size=(2, 3))}, "bias": draw.normal(size=2)}}


@pytest.mark.parametrize("activation", ["linear", "hardlims"])
def test_delta_is_the_lms_loop_of_widrow_and_hoff(activation):
    """One example after the other, dW = eta (t - n) p^T: the error before the threshold where there is one."""
    p, real, signs, params = regression()
    t = signs if activation == "hardlims" else real
    network = fnn.multilayer((3, 2), (activation,))
    result = fit(
        network,
        "sum_square_error",
        "gd(0.05)",
        p,
        t,
        key=KEY,
        epochs=3,
        plan=stochastic(shuffle="never"),
        params=params,
        rule="delta",
    )
    weights, bias = params["layer1"]["weights"]["input"], params["layer1"]["bias"]
    losses = []
    for _ in range(3):
        losses.append(0.0)
        for x, wanted in zip(p, t, strict=True):
            n = weights @ x + bias
            shown = n if activation == "linear" else np.where(n >= 0, 1.0, -1.0)
            losses[-1] += ((wanted - shown) ** 2).sum()
            weights, bias = weights + 0.05 * np.outer(wanted - n, x), bias + 0.05 * (wanted - n)
    np.testing.assert_allclose(result.params["layer1"]["weights"]["input"], weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.params["layer1"]["bias"], bias, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.history.training_loss, losses, rtol=1e-12)


@pytest.mark.parametrize("activation", ["linear", "hardlims"])
def test_delta_comes_to_rest_at_the_least_squares(activation):
    """Of all examples at once: where |W p + b - t|^2 is smallest, also where a threshold follows and none is right."""
    p, real, signs, params = regression()
    t = signs if activation == "hardlims" else real
    step = jax.jit(fnn.value_and_grad(fnn.multilayer((3, 2), (activation,)), "mean_square_error", rule="delta"))
    extended = np.column_stack([p, np.ones(len(p))])
    rate = 1 / np.linalg.eigvalsh(extended.T @ extended / len(p)).max()
    for _ in range(400):
        params = jax.tree.map(lambda x, g: x - rate * np.asarray(g), params, step(params, p, t)[1])
    solution = np.linalg.lstsq(extended, t, rcond=None)[0].T
    found = np.column_stack([params["layer1"]["weights"]["input"], params["layer1"]["bias"]])
    np.testing.assert_allclose(found, solution, rtol=0, atol=1e-12)


# Hebb's ---------------------------------------------------------------------------------------------------------------


def test_hebb_stores_pairs_of_orthonormal_inputs_in_one_pass():
    """W = T P^T, so that W p_q = t_q: from zero weights, one example after the other, at rate 1."""
    draw = np.random.default_rng(5)
    p, t = np.linalg.qr(draw.normal(size=(5, 5)))[0][:4], draw.normal(size=(4, 3))
    network = fnn.multilayer((5, 3), ("linear",), bias="none", initializer="zeros")
    result = fit(network, "sum_square_error", "gd(1)", p, t, key=KEY, epochs=1, plan=stochastic(), rule="hebb")
    weights = np.asarray(result.params["layer1"]["weights"]["input"])
    np.testing.assert_allclose(weights, t.T @ p, rtol=0, atol=1e-14)
    np.testing.assert_allclose(network.apply(result.params, p), t, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rule", ["hebb", "hebb(decay=0.3)", "hebb(supervised=false)", "hebb(false, 0.3)"])
@pytest.mark.parametrize("loss", ["mean_square_error", "sum_square_error"])
def test_hebbs_change_is_the_product_of_both_ends_less_what_decays(rule, loss):
    p, t, _, params = regression()
    draw = np.random.default_rng(6)
    w = draw.uniform(0.5, 2, len(p))
    share = w / w.sum() if loss == "mean_square_error" else w
    _, change = fnn.value_and_grad(fnn.multilayer((3, 2), ("tanh",)), loss, rule=rule)(params, p, t, w)
    weights, bias = params["layer1"]["weights"]["input"], params["layer1"]["bias"]
    above = np.tanh(p @ weights.T + bias) if "false" in rule else t
    decay = 0.3 if "0.3" in rule else 0.0
    expected = sum(-q * np.outer(a, x) for q, a, x in zip(share, above, p, strict=True)) + decay * weights
    np.testing.assert_allclose(change["layer1"]["weights"]["input"], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(change["layer1"]["bias"], -(share @ above), rtol=0, atol=1e-12)


def test_hebbs_weights_stay_bounded_where_they_decay():
    """Unsupervised and without decay they grow for ever; with it they end below the largest |a p| / decay."""
    p, t, _, params = regression()
    lengths = {}
    for decay in (0.0, 0.5):
        step = jax.jit(
            fnn.value_and_grad(fnn.multilayer((3, 2), ("tanh",)), "mean_square_error", rule=f"hebb(false, {decay})")
        )
        own = params
        for _ in range(50):
            own = jax.tree.map(lambda x, g: x - 0.5 * np.asarray(g), own, step(own, p, t)[1])
        lengths[decay] = np.linalg.norm(own["layer1"]["weights"]["input"], axis=1)
    assert (lengths[0.5] <= np.linalg.norm(p, axis=1).max() / 0.5).all()
    assert (lengths[0.0] > 3 * lengths[0.5]).all()


@pytest.mark.parametrize(
    ("network", "rule", "message"),
    [
        (fnn.multilayer((2, 3, 1), ("tanh", "linear")), "delta", "delta: the rule trains a single layer, got 2; leave"),
        (fnn.multilayer((2, 1), ("tanh",)), "delta", "layer 'layer1' must be of 'linear' or 'hardlims' .* 'tanh'"),
        (fnn.multilayer((2, 3, 1), ("tanh", "linear")), "hebb", "hebb: the rule trains a single layer, got 2; leave"),
        (fnn.multilayer((2, 1), ("tanh",)), "hebb(true, -1)", "hebb: decay must be a finite number >= 0, got -1"),
        (fnn.multilayer((2, 1), ("tanh",)), "hebb(2)", "hebb: supervised must be True or False, got 2"),
    ],
)
def test_rules_of_one_layer_say_what_they_cannot_take(network, rule, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fnn.value_and_grad(network, "sum_square_error", rule=rule)
    assert "\n" not in str(refusal.value)


def test_hebbs_rules_of_different_constants_have_different_names():
    names = {fnn.rules.get(rule).name for rule in ("hebb", "hebb(false)", "hebb(decay=0.3)", "hebb(false, 0.3)")}
    assert len(names) == 4
