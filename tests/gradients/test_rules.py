"""The perceptron rule: against Rosenblatt's loop in NumPy, within Novikoff's bound, and round in circles for XOR."""

import jax
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import training
from functional_nn.gradients.rules import perceptron
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
        value, change = jax.jit(perceptron(network, fnn.losses.get(loss)))(params, p, t, w)
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
        network, "sum_square_error", "gd", {"learning_rate": rates, "seed": np.arange(12)}, (p, t), key=KEY,
        epochs=300, plan=stochastic(), shuffle="independent", gradient="perceptron", stop=ENDS, chunk=300,
    )  # fmt: skip
    mistakes = np.nansum(population.history.training_loss, axis=0)
    assert known.separable and set(population.status) == {"loss_below"}
    assert 0 < mistakes.min() and mistakes.max() <= known.bound < np.inf


def test_it_is_told_from_a_gradient_where_one_is_needed():
    network = fnn.multilayer((2, 1), ("hardlim",))
    with pytest.raises(ValueError, match="'hardlim' has no derivative, .* with fit's gradient='perceptron'"):
        fnn.value_and_grad(network, "sum_square_error")
    assert repr(perceptron) == "<rule perceptron>" and training.program.GRADIENTS["perceptron"].rule is perceptron


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
        ValueError, match="gradient: newton asks for derivatives; what the perceptron rule trains has none"
    ):
        fit(network, "sum_square_error", "newton", *gate("AND", 0.0), key=KEY, epochs=1, gradient="perceptron",
            plan=training.batch())  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": training.importance(2)}, "plan: importance[(][)] asks for derivatives"),
        ({"track": ("noise_scale",)}, "track: 'noise_scale' asks for derivatives"),
        ({"gradient": training.clipped(1.0)}, "layer 'layer1': 'hardlim' has no derivative"),
    ],
)
def test_what_asks_for_derivatives_is_refused_beside_it(changes, message):
    with pytest.raises(ValueError, match=message):
        learn("hardlim", "AND", **changes)


def test_in_any_order_xor_ends_as_a_cycle_and_not_as_at_rest():
    """An epoch that undoes all that it did leaves the parameters as they were before it."""
    network = fnn.multilayer((2, 1), ("hardlim",), initializer="zeros")
    found = fit_population(
        network, "sum_square_error", "gd(1)", {"seed": range(32)}, gate("XOR", 0.0), key=KEY, epochs=200,
        plan=stochastic(), shuffle="independent", gradient="perceptron", stop=(*ENDS, training.unchanged()), chunk=200,
    )  # fmt: skip
    assert set(found.status) == {"cycle"}
