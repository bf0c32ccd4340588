"""Gradients without a way back: right on average, and off by as much as is derived, over many keys.

Letters as in `estimators`: P parameters in all, g the exact gradient, v a random direction, N of them, k the fourth
moment of v's numbers. Along one direction what is found is (g.v) v, so that v itself can be read off it.
"""

import jax
import numpy as np
import pytest
from cases import relative_error
from rule_cases import (
    EXAMPLES,
    KEY,
    LOSS,
    TINY,
    WEIGHTS,
    backward,
    close,
    flat,
    mean_error,
    numbers,
    over_keys,
    unbiased,
)

import functional_nn as fnn
from functional_nn.gradients import draws

COUNT = 3000
DATA = numbers(TINY)
EXACT, SENSITIVITIES = backward(TINY, *DATA[:2], mean_error(DATA[2]))


def one(gradient):
    return flat(jax.tree.map(lambda x: np.asarray(x)[None], gradient))[0]


G = one(EXACT)
P = G.size
DRAWN = {}


def drawn_by(rule):
    """(K, P), made once."""
    if rule not in DRAWN:
        step = fnn.value_and_grad(TINY, LOSS, rule=rule)
        DRAWN[rule] = flat(over_keys(lambda key: step(*DATA, None, key)[1], COUNT))
    return DRAWN[rule]


# rule, its N, the fourth moment of v's numbers, and how far its step bends it, relative to g
ESTIMATORS = [
    ("forward_gradient", 1, 3, 1e-12),
    ("forward_gradient(directions=19)", 19, 3, 1e-12),
    ("weight_perturbation(sigma=1e-6)", 1, 3, 1e-4),
    ("spsa(c=1e-4)", 1, 1, 1e-6),
    ("spsa(c=1e-4, directions=3)", 3, 1, 1e-6),
    ("evolution_strategy(population=4, sigma=1e-4)", 2, 3, 1e-6),
]


@pytest.mark.parametrize(("rule", "directions", "fourth", "bent"), ESTIMATORS)
def test_it_is_right_on_average_and_its_variance_is_the_derived_one(rule, directions, fourth, bent):
    """E = g, and the sum over the parameters of the variance (P - 2 + k) |g|^2 / N, each within 5 standard errors."""
    drawn = drawn_by(rule)
    unbiased(drawn, G)
    squares = ((drawn - G) ** 2).sum(axis=1)
    expected = (P - 2 + fourth) * (G @ G) / directions
    assert abs(squares.mean() - expected) < 5 * squares.std() / np.sqrt(COUNT) + bent * expected
    assert squares.std() / np.sqrt(COUNT) < 0.06 * expected  # so that k = 1 and 3 are distinguished from P = 26 on
    # of every single number: E[(g.v)^2 v_i^2] - g_i^2 = |g|^2 + (k - 2) g_i^2
    each = (G @ G + (fourth - 2) * G**2) / directions
    np.testing.assert_allclose(drawn.var(axis=0) / each, 1, rtol=0, atol=0.45)


@pytest.mark.parametrize(("rule", "directions", "fourth", "bent"), [case for case in ESTIMATORS if case[1] == 1])
def test_along_one_direction_it_is_the_derivative_there_times_the_direction(rule, directions, fourth, bent):
    drawn = drawn_by(rule)
    slope = drawn @ G  # (g.v)^2
    assert (slope > -bent).all()
    usable = slope > 1e-4 * (G @ G)
    v = drawn[usable] / np.sqrt(slope[usable])[:, None]
    np.testing.assert_allclose((v @ G) ** 2, slope[usable], rtol=max(1e-10, 100 * bent))
    if fourth == 1:
        np.testing.assert_allclose(np.abs(v), 1, rtol=1e-4)
    else:
        lengths = (v**2).sum(axis=1)  # of P normal numbers; a little more of those that are usable
        assert abs(lengths.mean() - P) < 5 * lengths.std() / np.sqrt(len(v)) + 1


def test_spsa_of_a_quadratic_is_the_same_whatever_the_step():
    """There (F(w + c v) - F(w - c v)) / 2c is g.v itself: signs times one number, at a step of 0.5, too."""
    network, loss = fnn.multilayer((3, 2), ("linear",)), "half_sum_square_error"
    params, inputs, targets = numbers(network, loss=loss)
    a = inputs["input"] @ params["layer1"]["weights"]["input"].T + params["layer1"]["bias"]
    gradient = np.concatenate([(a - targets).sum(axis=0), ((a - targets).T @ inputs["input"]).ravel()])
    for c in (0.5, 1e-2):
        found = fnn.value_and_grad(network, loss, rule=f"spsa(c={c})")(params, inputs, targets, None, KEY)[1]["layer1"]
        found = np.concatenate([found["bias"], np.ravel(found["weights"]["input"])])
        slope = np.abs(found[0])
        np.testing.assert_allclose(np.abs(found), slope, rtol=1e-12)
        np.testing.assert_allclose(np.abs(gradient @ np.sign(found)), slope, rtol=1e-9)


def test_an_evolution_strategy_gives_the_gradient_of_what_a_gaussian_has_smoothed():
    """Of one weight, E[F'(w + sigma v)] by Gauss and Hermite's nodes; far from F'(w), at a sigma that wide."""
    network, loss, sigma, w = fnn.multilayer((1, 1), ("tanh",), bias="none"), "half_sum_square_error", 0.8, 0.7
    params = {"layer1": {"weights": {"input": np.array([[w]])}}}

    def slope_at(w):
        return (np.tanh(w) - -0.5) * (1 - np.tanh(w) ** 2)

    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    smoothed = weights @ slope_at(w + sigma * nodes) / weights.sum()
    for rule in (f"evolution_strategy(2, {sigma})", f"weight_perturbation({sigma})"):
        step = fnn.value_and_grad(network, loss, rule=rule)
        drawn = flat(over_keys(lambda key: step(params, np.ones((1, 1)), np.full((1, 1), -0.5), None, key)[1], 20_000))  # noqa: B023
        unbiased(drawn, np.array([smoothed]))
        assert abs(slope_at(w) - smoothed) > 10 * drawn.std() / np.sqrt(len(drawn))


def test_a_threshold_is_learned_through_by_values_alone():
    """F = [w + sigma v >= 0] of one neuron: E[F v / sigma] is the normal density of w / sigma, over sigma."""
    network, sigma, w = fnn.multilayer((1, 1), ("hardlim",), bias="none"), 0.5, 0.3
    params = {"layer1": {"weights": {"input": np.array([[w]])}}}
    expected = np.exp(-((w / sigma) ** 2) / 2) / np.sqrt(2 * np.pi) / sigma
    for rule in (f"weight_perturbation({sigma})", f"evolution_strategy(2, {sigma})", f"node_perturbation({sigma})"):
        step = fnn.value_and_grad(network, "sum_square_error", rule=rule)
        drawn = flat(over_keys(lambda key: step(params, np.ones((1, 1)), np.zeros((1, 1)), None, key)[1], 20_000))  # noqa: B023
        unbiased(drawn, np.array([expected]))
    with pytest.raises(ValueError, match="'hardlim' has no derivative"):
        fnn.value_and_grad(network, "sum_square_error", rule="forward_gradient")


@pytest.mark.parametrize(("rule", "directions"), [("node_perturbation(1e-6)", 1), ("node_perturbation(1e-6, 3)", 3)])
def test_node_perturbation_moves_each_examples_net_inputs(rule, directions):
    """E = dF_q/dn of all layers at once, and the variance summed over all M net inputs (M + 1) |s_q|^2 / N, of each
    example by itself.
    """
    params, inputs, targets = DATA

    def of_key(key):
        return fnn.backpropagate(TINY, LOSS, *DATA, WEIGHTS, key, rule=rule)[1:3]

    gradients, s = over_keys(of_key, COUNT)
    exact, expected = backward(TINY, params, inputs, mean_error(targets, WEIGHTS))
    unbiased(flat(gradients), one(exact))
    unbiased(flat(s), np.concatenate([expected[name].ravel() for name in ("layer1", "layer2")]))
    s, expected = (
        np.concatenate([np.asarray(own[name]) for name in ("layer1", "layer2")], -1) for own in (s, expected)
    )
    squares = ((s - expected) ** 2).sum(axis=2)  # (K, Q)
    derived = (expected.shape[1] + 1) * (expected**2).sum(axis=1) / directions
    assert (np.abs(squares.mean(axis=0) - derived) < 5 * squares.std(axis=0) / np.sqrt(COUNT) + 1e-4 * derived).all()
    centred = s - s.mean(axis=0)
    together = np.einsum("kqm,krm->qr", centred, centred) / COUNT  # examples' noise has nothing to do with one another
    allowed = 6 * np.sqrt(np.outer(derived, derived) / COUNT)
    assert (np.abs(together - np.diag(np.diag(together))) < allowed).all()


# Parameter by parameter -----------------------------------------------------------------------------------------------


LEARNED = fnn.multilayer((2, 3, 2), ("prelu", "prelu"), dropout=(0.5, 0))


def test_finite_differences_are_the_gradient_to_the_square_of_their_step():
    """By default a step of 6e-6, whose square and eps / step leave 1e-9; halved from 0.02, a quarter of the error."""
    names = ("finite_differences", "finite_differences(0.02)", "finite_differences(0.01)")
    steps = {rule: fnn.value_and_grad(TINY, LOSS, rule=rule) for rule in names}
    own = jax.jit(lambda *data: {rule: step(*data)[1] for rule, step in steps.items()})(*DATA)
    errors = {rule: relative_error(gradient, EXACT) for rule, gradient in own.items()}
    assert errors["finite_differences"] < 1e-9
    np.testing.assert_allclose(errors["finite_differences(0.02)"] / errors["finite_differences(0.01)"], 4, rtol=0.01)


def test_what_is_dropped_stays_dropped_whatever_is_moved():
    """And learned parameters, of the outputs' activation too, are moved like the rest."""
    params, inputs, targets = numbers(LEARNED, loss="mean_square_error")
    exact = fnn.value_and_grad(LEARNED, "mean_square_error")
    moved = fnn.value_and_grad(LEARNED, "mean_square_error", rule="finite_differences")
    both = jax.jit(lambda key: [each(params, inputs, targets, None, key) for each in (exact, moved)])
    for seed in range(2):
        (value, gradient), found = both(jax.random.key(seed))
        np.testing.assert_allclose(found[0], value, rtol=1e-14)
        assert relative_error(found[1], gradient) < 1e-8
    plain = fnn.multilayer((2, 3, 2), ("prelu", "prelu"))
    step = fnn.value_and_grad(plain, "mean_square_error", rule="forward_gradient")
    drawn = flat(over_keys(lambda key: step(params, inputs, targets, None, key)[1], COUNT))
    unbiased(drawn, one(fnn.value_and_grad(plain, "mean_square_error")(params, inputs, targets)[1]))


@pytest.mark.parametrize("rule", ["finite_differences", "weight_perturbation", "forward_gradient", "node_perturbation"])
def test_what_other_rules_learn_has_no_gradient(rule):
    params = fnn.rules.begin("kolen_pollack", TINY, DATA[0], KEY)
    gradient = fnn.value_and_grad(TINY, LOSS, rule=rule)(params, *DATA[1:], None, KEY)[1]
    assert (np.asarray(gradient["layer2"]["feedback"]["layer1"]) == 0).all()
    assert all((np.asarray(x) != 0).all() for x in jax.tree.leaves(fnn.rules.without_feedback(gradient)))


def test_an_update_has_directions_of_its_own():
    """The same of the same key, others of another; directions of one key are apart."""
    step = jax.jit(fnn.value_and_grad(TINY, LOSS, rule="forward_gradient"))
    first, again, other = (one(step(*DATA, None, jax.random.key(seed))[1]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert abs(first @ other) < 0.9 * np.linalg.norm(first) * np.linalg.norm(other)
    stream = draws.of_key(KEY)
    v = np.stack([np.asarray(draws.normal(draws.inside(stream, n), (1000,), np.float64)) for n in range(4)])
    assert (np.abs(np.corrcoef(v) - np.eye(4)) < 5 / np.sqrt(1000)).all()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("forward_gradient(0)", "forward_gradient: directions must be an integer >= 1, got 0"),
        ("weight_perturbation(0)", "weight_perturbation: sigma must be a finite number > 0, got 0"),
        ("weight_perturbation(0.1, 0)", "weight_perturbation: directions must be an integer >= 1, got 0"),
        ("spsa(-1)", "spsa: c must be a finite number > 0, got -1"),
        (
            "evolution_strategy(3)",
            "population must be even, since each direction is taken both ways, got 3",
        ),
        ("evolution_strategy(0)", "evolution_strategy: population must be an integer >= 2, got 0"),
        ("evolution_strategy(2, 0)", "evolution_strategy: sigma must be a finite number > 0, got 0"),
        ("node_perturbation(0)", "node_perturbation: sigma must be a finite number > 0, got 0"),
        ("finite_differences(0)", "finite_differences: step must be a finite number > 0, got 0"),
    ],
)
def test_steps_and_counts_are_checked(rule, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fnn.value_and_grad(TINY, LOSS, rule=rule)
    assert "\n" not in str(refusal.value)


def test_estimators_need_a_key_and_have_no_input_gradients():
    for rule in ("forward_gradient", "weight_perturbation", "spsa", "evolution_strategy", "node_perturbation"):
        with pytest.raises(ValueError, match=f"rule: {rule} draws at every update; give key="):
            fnn.value_and_grad(TINY, LOSS, rule=rule)(*DATA)
        with pytest.raises(ValueError, match=f"input_gradients: the rule {rule} has no way back to the inputs"):
            fnn.backpropagate(TINY, LOSS, *DATA, None, KEY, input_gradients=True, rule=rule)


def test_examples_count_by_their_weights():
    assert len(WEIGHTS) == EXAMPLES
    found = fnn.value_and_grad(TINY, LOSS, rule="finite_differences")(*DATA, WEIGHTS)[1]
    close(found, backward(TINY, *DATA[:2], mean_error(DATA[2], WEIGHTS))[0], 1e-8)
