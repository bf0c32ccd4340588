"""What crosses a connection on the way back, against a recursion in NumPy that is told the papers' equations.

Letters as in `rules`: W what a connection has, B what stands in its place, s = dF/dn, s^M that of the outputs.
Of signals, whose connections and activations are proved elsewhere, a rule is held against `jax.grad` of a network in
which each connection has, for what it sends back, another matrix (`Crossed`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import (
    EXAMPLES,
    KEY,
    LOSS,
    MLP,
    NETWORKS,
    SKIP,
    TINY,
    WEIGHTS,
    backward,
    close,
    edges,
    flat,
    forward,
    mean_error,
    numbers,
    over_keys,
    tree,
    unbiased,
)
from signal_cases import signal_problem

import functional_nn as fnn
from functional_nn import rules, training
from functional_nn.gradients import draws
from functional_nn.networks.network import plus_bias, theta, weights_of

networks = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)

# every rule that goes the way back along the connections
ONE_SWEEP = (
    "feedback_alignment(0)",
    "direct_feedback(0)",
    "sign_symmetric",
    "sign_symmetric(random)",
    "sign_symmetric(fixed)",
    "kolen_pollack",
    "weight_mirror",
    "noisy(0.1)",
    "rounded(4)",
    "rounded(1)",
    "rounded(4, stochastic=false)",
    "dropped_back(0.5)",
    "clipped_back(0.1)",
    "surrogate",
)


def found_by(rule, network, params, inputs, targets, weights=None, key=KEY):
    return fnn.backpropagate(network, LOSS, params, inputs, targets, weights, key, rule=rule)


def gradients_over_keys(rule, network, data, count=2000):
    """(K, P) of so many keys, in the order of `flat`."""
    step = fnn.value_and_grad(network, LOSS, rule=rule)
    return flat(over_keys(lambda key: step(*data, None, key)[1], count))


def one(gradient):
    """A gradient as (P,), in the order of `flat`."""
    return flat(jax.tree.map(lambda x: x[None], gradient))[0]


# A matrix in the place of W -------------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize(
    "rule",
    [
        "feedback_alignment(3)",
        "feedback_alignment(3, 0.5)",
        "direct_feedback(3)",
        "direct_feedback(1, 2.0)",
        "sign_symmetric",
        "sign_symmetric(fixed, 4)",
    ],
)
def test_what_crosses_is_the_matrix_that_is_shown(rule, network):
    """g = s B, and of direct feedback g = s^M B; all else as always. B is told by `feedback_weights`, of every edge."""
    params, inputs, targets = numbers(network)
    shown = rules.feedback_weights(network, rule, params)
    assert {(layer, source) for layer, own in shown.items() for source in own} == edges(network)
    direct = rule.startswith("direct")

    def cross(layer, source, s, errors):
        return (errors if direct else s) @ np.asarray(shown[layer][source])

    found = found_by(rule, network, params, inputs, targets, WEIGHTS, None)
    gradient, s = backward(network, params, inputs, mean_error(targets, WEIGHTS), cross)
    close(found.gradients, gradient)
    close(found.sensitivities, s)
    outputs = forward(network, params, inputs)[1][network.output.name]
    expected = -(WEIGHTS / WEIGHTS.sum()) @ np.sum(targets * np.log(outputs), axis=1)
    np.testing.assert_allclose(found.value, expected, rtol=1e-13)


WIDE = fnn.multilayer((3, 150, 100, 40), ("tanh", "tanh", "softmax"))


@pytest.mark.parametrize("rule", ["feedback_alignment", "direct_feedback"])
def test_random_matrices_are_uniform_as_glorots_and_each_its_own(rule):
    """Mean 0, deviation sqrt(2 / (numbers that are read + neurons that read)), within 5 standard errors."""
    params = WIDE.init(KEY)
    first, other, scaled = (rules.feedback_weights(WIDE, f"{rule}({how})", params) for how in ("0", "1", "0, 0.25"))
    again = rules.feedback_weights(WIDE, f"{rule}(0)", WIDE.init(jax.random.key(1)))
    outputs = {"layer2": 100, "layer3": 40} if rule == "feedback_alignment" else {"layer2": 40, "layer3": 40}
    for layer, source, reads in (("layer2", "layer1", 150), ("layer3", "layer2", 100)):
        b = np.asarray(first[layer][source])
        assert b.shape == (outputs[layer], reads) and b.dtype == np.float64
        deviation = np.sqrt(2 / sum(b.shape))
        assert np.abs(b).max() <= np.sqrt(3) * deviation
        assert abs(b.mean()) < 5 * deviation / np.sqrt(b.size)
        assert abs((b**2).mean() / deviation**2 - 1) < 5 * np.sqrt((9 / 5 - 1) / b.size)  # fourth moment 9/5
        np.testing.assert_array_equal(again[layer][source], b)  # of seed and names alone
        np.testing.assert_allclose(scaled[layer][source], b / 4, rtol=1e-15)
        assert abs(np.corrcoef(b.ravel(), np.asarray(other[layer][source]).ravel())[0, 1]) < 5 / np.sqrt(b.size)
    short = min(first["layer2"]["layer1"].size, first["layer3"]["layer2"].size)
    one, two = (np.asarray(first[layer][source]).ravel()[:short] for layer, source in sorted(edges(WIDE)))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(short)


def test_a_traced_seed_draws_what_the_number_draws():
    params, inputs, targets = numbers(MLP)

    def gradient(seed):
        rule = rules.feedback_alignment(seed)
        return fnn.value_and_grad(MLP, LOSS, rule=rule)(params, inputs, targets)[1]

    drawn = jax.jit(jax.vmap(gradient))(jnp.arange(3))
    for seed in range(3):
        close(jax.tree.map(lambda x, at=seed: x[at], drawn), gradient(seed), 1e-14)


def crossing(rule, w, key=KEY):
    """B, read off a linear network: there s^1 = s^2 B, and s^2 is made the unit matrix."""
    size, reads = w.shape
    network = fnn.multilayer((1, reads, size), ("linear", "linear"))
    params = network.init(KEY)
    params["layer2"]["weights"]["layer1"] = jnp.asarray(w)
    inputs = np.ones((size, 1))
    outputs = network.apply(params, inputs)
    found = fnn.backpropagate(
        network, "half_sum_square_error", params, inputs, outputs - np.eye(size), None, key, rule=rule
    )
    np.testing.assert_allclose(found.sensitivities["layer2"], np.eye(size), rtol=0, atol=1e-14)
    return np.asarray(found.sensitivities["layer1"])


def test_a_matrix_that_is_drawn_anew_is_shown_of_each_key():
    params, inputs, targets = numbers(SKIP)
    shown = rules.feedback_weights(SKIP, "sign_symmetric(random)", params, KEY)
    gradient, _ = backward(
        SKIP, params, inputs, mean_error(targets), lambda layer, source, s, errors: s @ np.asarray(shown[layer][source])
    )
    close(found_by("sign_symmetric(random)", SKIP, params, inputs, targets).gradients, gradient)


def test_sign_symmetric_has_the_signs_of_w_and_sizes_of_its_own():
    w = np.random.default_rng(1).normal(size=(60, 90))
    w[3, 5] = 0.0
    deviation = np.sqrt(2 / 150)
    np.testing.assert_allclose(crossing("sign_symmetric", w), np.sign(w) * deviation, rtol=0, atol=1e-15)
    other = jax.random.key(21)
    random, fixed = (crossing(f"sign_symmetric({kind})", w) for kind in ("random", "fixed"))
    for b in (random, fixed):
        np.testing.assert_array_equal(np.sign(b), np.sign(w))
        sizes = np.abs(b[w != 0])
        assert sizes.max() <= np.sqrt(3) * deviation  # uniform from 0, of the mean square that Glorot's weights have
        assert abs((sizes**2).mean() / deviation**2 - 1) < 5 * np.sqrt((9 / 5 - 1) / sizes.size)
    np.testing.assert_allclose(crossing("sign_symmetric(random)", w), random, rtol=1e-14)
    anew = np.abs(crossing("sign_symmetric(random)", w, other) - random)
    assert (anew > 1e-9)[w != 0].mean() > 0.99  # for every batch
    np.testing.assert_allclose(crossing("sign_symmetric(fixed)", w, other), fixed, rtol=1e-14)
    assert (np.abs(crossing("sign_symmetric(fixed, 1)", w) - fixed) > 1e-9)[w != 0].mean() > 0.99
    turned = crossing("sign_symmetric(fixed)", -w)
    np.testing.assert_allclose(turned, -fixed, rtol=1e-14)  # the sizes stay where the signs change


# Feedback that is learned ---------------------------------------------------------------------------------------------


def begun(rule, network, seed=0):
    """Parameters with what the rule learns beside them, in NumPy's arrays, inputs, targets."""
    params, inputs, targets = numbers(network, seed)
    return jax.tree.map(np.asarray, rules.begin(rule, network, params, KEY)), inputs, targets


@networks
@pytest.mark.parametrize("rule", ["kolen_pollack(0.03)", "weight_mirror(0.5, 4)"])
def test_learned_feedback_begins_as_large_as_the_weights_and_is_what_crosses(rule, network):
    params, inputs, targets = begun(rule, network)
    learned = {(layer, source) for layer, own in params.items() for source in own.get("feedback", {})}
    assert learned == edges(network)
    for layer, source in learned:
        assert params[layer]["feedback"][source].shape == params[layer]["weights"][source].shape
    shown = rules.feedback_weights(network, rule, params)
    close(shown, tree({(layer, source): params[layer]["feedback"][source] for layer, source in learned}), 0)
    again = rules.begin(rule, network, params, jax.random.key(5))
    close(again, params, 0)  # what is there stays
    found = found_by(rule, network, params, inputs, targets, WEIGHTS)
    _, s = backward(
        network,
        params,
        inputs,
        mean_error(targets, WEIGHTS),
        lambda layer, source, s, errors: s @ params[layer]["feedback"][source],
    )
    close(found.sensitivities, s)


@networks
def test_kolen_and_pollack_move_both_by_the_same_and_let_both_decay(network):
    """Akrout et al. 2019, Eq. 16 and 17: dW = -eta (s a^T + lambda W), dB = -eta (s a^T + lambda B)."""
    decay = 0.03
    params, inputs, targets = begun(f"kolen_pollack({decay})", network)
    found = found_by(f"kolen_pollack({decay})", network, params, inputs, targets, WEIGHTS)
    gradient, _ = backward(
        network,
        params,
        inputs,
        mean_error(targets, WEIGHTS),
        lambda layer, source, s, errors: s @ params[layer]["feedback"][source],
    )
    for layer, source in edges(network):
        own, moved = params[layer], gradient[layer]["weights"]
        gradient[layer].setdefault("feedback", {})[source] = moved[source] + decay * own["feedback"][source]
        moved[source] = moved[source] + decay * own["weights"][source]
    close(found.gradients, gradient)


def test_under_gradient_descent_the_difference_of_both_shrinks_by_the_same_factor_at_every_update():
    """W - B is multiplied by 1 - eta lambda, whatever the data, until nothing but rounding is left of it."""
    rate, decay = 0.4, 0.5
    rule = f"kolen_pollack({decay})"
    first, inputs, targets = begun(rule, TINY)
    gradient_of = fnn.value_and_grad(TINY, LOSS, rule=rule)

    def update(params, at):
        part = {"input": jax.lax.dynamic_slice_in_dim(inputs["input"], at, 2)}
        _, gradient = gradient_of(params, part, jax.lax.dynamic_slice_in_dim(targets, at, 2))
        params = jax.tree.map(lambda x, g: x - rate * g, params, gradient)
        return params, params["layer2"]

    _, path = jax.jit(lambda params: jax.lax.scan(update, params, jnp.arange(160) % 5))(first)
    difference = np.asarray(path["weights"]["layer1"]) - np.asarray(path["feedback"]["layer1"])
    start = first["layer2"]["weights"]["layer1"] - first["layer2"]["feedback"]["layer1"]
    factors = (1 - rate * decay) ** np.arange(1, 161)
    np.testing.assert_allclose(difference, factors[:, None, None] * start, rtol=0, atol=1e-14)
    np.testing.assert_allclose(path["feedback"]["layer1"][-1], path["weights"]["layer1"][-1], rtol=0, atol=1e-14)
    assert np.linalg.norm(path["weights"]["layer1"][-1]) > 0.01  # neither is all gone


def test_a_weight_mirror_draws_its_feedback_to_the_weights():
    """On average the gradient of B is rate (B - W); of dense weights its variance is derived: a sample's z_i x_j is
    W_ij and the sum of W_ik x_k x_j over the others, whose squares' mean is the sum of W_ik^2.
    """
    rate, samples, count = 0.5, 4, 4000
    rule = f"weight_mirror({rate}, {samples})"
    data = begun(rule, SKIP)
    params = data[0]
    step = fnn.value_and_grad(SKIP, LOSS, rule=rule)
    drawn = over_keys(lambda key: step(*data, None, key)[1], count)
    for layer, source in edges(SKIP):
        w, b = params[layer]["weights"][source], params[layer]["feedback"][source]
        found = np.asarray(drawn[layer]["feedback"][source])
        variance = rate**2 * ((w**2).sum(axis=1, keepdims=True) - w**2) / samples
        allowed = 5 * np.sqrt(variance / count)
        assert (np.abs(found.mean(axis=0) - rate * (b - w)) <= allowed).all()
        np.testing.assert_allclose(found.var(axis=0), variance, rtol=0.2)
    kept = jax.tree.map(lambda x: x[:2], drawn)
    gradient, _ = backward(
        SKIP,
        params,
        data[1],
        mean_error(data[2]),
        lambda layer, source, s, errors: s @ params[layer]["feedback"][source],
    )
    for number in range(2):  # the weights learn as under any B
        own = jax.tree.map(lambda x, at=number: x[at], kept)
        close({name: own[name]["weights"] for name in own}, {name: gradient[name]["weights"] for name in gradient})


def test_a_weight_mirror_of_a_convolution_counts_how_often_each_weight_has_met_noise():
    """With zeros at the edge: outer weights of a kernel meet fewer positions, and still are what B is drawn to."""
    network = fnn.graph(
        inputs={"x": (5, 2)},
        layers=[
            fnn.Layer("one", 2, "tanh", (("x", "dense"),)),
            fnn.Layer("two", 3, "tanh", (("one", "conv(3)"),)),
            fnn.Layer("output", 2, "softmax", (("two", "full"),)),
        ],
    )
    params, x, t = signal_numbers(network)
    params = rules.begin("weight_mirror", network, params, KEY)
    step = jax.jit(fnn.value_and_grad(network, LOSS, rule="weight_mirror(1, 1000)"))
    drawn = [step(params, x, t, None, jax.random.key(seed))[1] for seed in range(16)]
    for layer, source in (("two", "one"), ("output", "two")):
        own = params[layer]
        found = np.stack([np.asarray(gradient[layer]["feedback"][source]).ravel() for gradient in drawn])
        expected = np.asarray(own["feedback"][source]) - np.asarray(own["weights"][source])
        assert found.std(axis=0).max() < 0.2  # so that a mean of the wrong count of meetings would be seen
        unbiased(found, expected.ravel(), 6)


# Another s ------------------------------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize("rule", ["noisy(0.3)", "rounded(3)", "rounded(2)", "rounded(1)", "dropped_back(0.4)"])
def test_what_is_drawn_anew_changes_nothing_on_average(rule, network):
    """The mean of the whole gradient over keys is the exact one: in every layer, for what is drawn in all above it."""
    data = numbers(network)
    drawn = gradients_over_keys(rule, network, data)
    exact, _ = backward(network, *data[:2], mean_error(data[2]))
    unbiased(drawn, one(exact))
    assert (drawn.std(axis=0) > 0).mean() > 0.9


def sensitivities_over_keys(rule, network, data, count=2000):
    """{layer: (K, Q, S)}."""
    return over_keys(lambda key: found_by(rule, network, *data, key=key).sensitivities, count)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rule", ["dropped_back(0.99)", "rounded(2)", "rounded(8)", "noisy(0.1)"])
def test_what_is_drawn_changes_nothing_on_average_in_16_bits_either(rule, dtype):
    """Small numbers beside 0 and one that is large: nothing that is 0 becomes anything but by noise, which is there."""
    s = jnp.full((1000, 200), 1e-4, dtype).at[::2].set(0).at[0, 0].set(1e-3)
    place = rules.Place(MLP.layers[0], {}, None, None, draws.of_key(KEY))
    found = np.asarray(rules.get(rule).alter(place, s), np.float64)
    own, kept = np.asarray(s, np.float64)[1::2], found[1::2]
    error = kept.std() / np.sqrt(kept.size)
    assert abs(kept.mean() - own.mean()) < 5 * error + 1e-3 * own.mean()
    if "noisy" in rule:
        assert 0.09 < found[2::2].std() / np.sqrt(np.mean(np.asarray(s, np.float64) ** 2)) < 0.11
    else:
        assert not found[2::2].any()


def test_noise_is_of_the_size_that_is_told():
    """Of the outputs, whose s is known, sigma rms(s): in the mean square within 5 standard errors, alike for each."""
    data, sigma = numbers(MLP), 0.3
    _, exact = backward(MLP, *data[:2], mean_error(data[2]))
    s = exact["layer3"]
    noise = np.asarray(sensitivities_over_keys(f"noisy({sigma})", MLP, data, 20_000)["layer3"]) - s
    size = sigma * np.sqrt((s**2).mean())
    for axis, count in ((0, len(noise)), (None, noise.size)):  # of each number, and of all together: to 1.5 percent
        np.testing.assert_allclose((noise**2).mean(axis=axis) / size**2, 1, rtol=0, atol=5 * np.sqrt(1.94 / count))
    scaled = found_by(f"noisy({sigma})", MLP, data[0], data[1], data[2], 5 * np.ones(EXAMPLES))
    np.testing.assert_array_less(np.abs(noise).max(), 6 * size)
    close(scaled.sensitivities, found_by(f"noisy({sigma})", MLP, *data).sensitivities)  # whatever weights all have
    nothing = found_by("noisy(0)", MLP, *data)
    close(nothing.gradients, backward(MLP, *data[:2], mean_error(data[2]))[0])


@networks
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_rounded_to_the_nearest_is_numpys(bits, network):
    """2^bits - 1 numbers evenly from -max |s| to max |s|; of one bit the sign times the mean size."""
    params, inputs, targets = numbers(network)

    def alter(layer, s):
        if bits == 1:
            return np.sign(s) * np.abs(s).mean()
        unit = np.abs(s).max() / (2 ** (bits - 1) - 1)
        return np.round(s / unit) * unit

    rule = f"rounded({bits}, stochastic=false)"
    found = found_by(rule, network, params, inputs, targets, WEIGHTS, None)
    gradient, s = backward(network, params, inputs, mean_error(targets, WEIGHTS), alter=alter)
    close(found.gradients, gradient)
    close(found.sensitivities, s)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_rounded_by_chance_is_one_of_the_two_levels_beside_it(bits):
    data = numbers(MLP)
    _, exact = backward(MLP, *data[:2], mean_error(data[2]))
    s, drawn = exact["layer3"], np.asarray(sensitivities_over_keys(f"rounded({bits})", MLP, data, 500)["layer3"])
    largest = np.abs(s).max()
    if bits == 1:
        deviation = np.sqrt(largest**2 - s**2)
        np.testing.assert_allclose(np.abs(drawn), largest, rtol=1e-12)
    else:
        unit = largest / (2 ** (bits - 1) - 1)
        beyond = s / unit - np.floor(s / unit)  # the chance of the upper one
        deviation = unit * np.sqrt(beyond * (1 - beyond))
        levels = drawn / unit
        np.testing.assert_allclose(levels, np.round(levels), rtol=0, atol=1e-9)
        assert np.abs(levels).max() <= 2 ** (bits - 1) - 1 + 1e-9
        assert (np.abs(drawn - s) < unit * (1 + 1e-12)).all()
        largest_of = np.abs(s) == largest  # a level itself, which stays
        np.testing.assert_allclose(drawn[:, largest_of], np.broadcast_to(s[largest_of], drawn[:, largest_of].shape))
    unbiased(drawn.reshape(len(drawn), -1), s.ravel(), deviation=deviation.ravel())


@pytest.mark.parametrize(
    "rule",
    [
        "rounded(4)",
        "rounded(1)",
        "rounded(4, stochastic=false)",
        "rounded(1, false)",
        "noisy(0.1)",
        "dropped_back(0.5)",
        "clipped_back(1)",
    ],
)
def test_nothing_is_left_nothing(rule):
    """s = 0 throughout, where the outputs are the targets: no nan, and no level beside 0."""
    network = fnn.multilayer((3, 4, 2), ("tanh", "linear"))
    params, inputs, _ = numbers(network, loss="mean_square_error")
    outputs = np.asarray(network.apply(params, inputs))
    found = fnn.backpropagate(network, "mean_square_error", params, inputs, outputs, None, KEY, rule=rule)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(found.gradients))


def test_dropped_back_leaves_each_number_whole_or_not_at_all():
    rate, data = 0.4, numbers(MLP)
    _, exact = backward(MLP, *data[:2], mean_error(data[2]))
    found = {name: np.asarray(x) for name, x in sensitivities_over_keys(f"dropped_back({rate})", MLP, data).items()}
    s, drawn = exact["layer3"], found["layer3"]
    gone = drawn == 0
    np.testing.assert_allclose(drawn[~gone], np.broadcast_to(s / (1 - rate), drawn.shape)[~gone], rtol=1e-12)
    assert np.abs(gone.mean(axis=0) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / len(drawn))
    # what goes further back is made of what is left
    w, (_, a) = data[0]["layer3"]["weights"]["layer2"], forward(MLP, *data[:2])
    g = drawn @ w * (a["layer2"] * (1 - a["layer2"]))
    stays = found["layer2"] != 0
    np.testing.assert_allclose(found["layer2"][stays], (g / (1 - rate))[stays], rtol=1e-10)


def clip_in_numpy(norm, share):
    def alter(layer, s):
        lengths = np.linalg.norm(s / share[:, None], axis=1)  # of dF_q/dn
        return s * np.minimum(1, norm / lengths)[:, None]

    return alter


@networks
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
def test_clipped_back_shortens_each_examples_own_in_every_layer(weights, network):
    """No dF_q/dn is longer than the bound, and what is not is as it was, whatever the examples' part of F."""
    params, inputs, targets = numbers(network)
    share = np.full(EXAMPLES, 1 / EXAMPLES) if weights is None else weights / weights.sum()
    norm = 0.2
    found = found_by(f"clipped_back({norm})", network, params, inputs, targets, weights, None)
    gradient, s = backward(network, params, inputs, mean_error(targets, weights), alter=clip_in_numpy(norm, share))
    close(found.gradients, gradient)
    close(found.sensitivities, s)
    lengths = np.concatenate([np.linalg.norm(x / share[:, None], axis=1) for x in s.values()])
    assert lengths.max() <= norm * (1 + 1e-12) and (lengths > norm * (1 - 1e-12)).any() and lengths.min() < 0.9 * norm


def test_clipped_back_does_not_see_the_batch_that_an_example_is_in():
    params, inputs, targets = numbers(MLP)
    together = found_by("clipped_back(0.2)", MLP, params, inputs, targets, key=None).sensitivities
    alone = jax.jit(lambda x, t: found_by("clipped_back(0.2)", MLP, params, x, t, key=None).sensitivities)
    for q in range(3):
        own = alone(inputs["input"][q : q + 1], targets[q : q + 1])
        close(own, {name: EXAMPLES * x[q : q + 1] for name, x in together.items()})
    total = fnn.backpropagate(MLP, "cross_entropy(sum)", params, inputs, targets, rule="clipped_back(0.2)")
    close(total.sensitivities, {name: EXAMPLES * x for name, x in together.items()})
    without = found_by("clipped_back(0.2)", MLP, params, inputs, targets, np.r_[np.ones(EXAMPLES - 1), 0.0], None)
    assert (np.asarray(without.sensitivities["layer1"][-1]) == 0).all()  # of weight 0, and no nan


# A derivative where there is none -------------------------------------------------------------------------------------

STEPS = fnn.multilayer((3, 5, 4, 2), ("hardlim", "hardlims", "softmax"))


@pytest.mark.parametrize("slope", [1.0, 2.5])
def test_a_surrogate_stands_where_a_derivative_is_missing(slope):
    """s = g h / (1 + slope |n|)^2: Zenke and Ganguli 2018, Eq. 5, h the height of the step; the outputs stay steps."""
    params, inputs, targets = numbers(STEPS)

    def fast(height):
        return lambda n, a: height / (1 + slope * np.abs(n)) ** 2

    gradient, s = backward(
        STEPS, params, inputs, mean_error(targets), slopes={"hardlim": fast(1.0), "hardlims": fast(2.0)}
    )
    found = found_by(f"surrogate({slope})", STEPS, params, inputs, targets, key=None)
    close(found.gradients, gradient)
    close(found.sensitivities, s)
    for name, a in forward(STEPS, params, inputs)[1].items():
        np.testing.assert_allclose(found.trace.activations[name], a, rtol=1e-14)
    assert set(np.unique(found.trace.activations["layer1"])) <= {0.0, 1.0}
    # where there is a derivative, it stays
    smooth = numbers(MLP)
    close(found_by(f"surrogate({slope})", MLP, *smooth).gradients, backward(MLP, *smooth[:2], mean_error(smooth[2]))[0])


def test_a_network_of_thresholds_is_trained_by_a_surrogate():
    """XOR of two threshold layers, which no single layer knows."""
    network = fnn.multilayer((2, 8, 2), ("hardlims", "softmax"))
    x = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    t = np.eye(2)[[0, 1, 1, 0]]
    step = jax.jit(fnn.value_and_grad(network, LOSS, rule="surrogate"))
    params = network.init(KEY)
    for _ in range(300):
        value, gradient = step(params, x, t)
        params = jax.tree.map(lambda w, g: np.asarray(w) - 0.5 * np.asarray(g), params, gradient)
    assert value < 0.05
    np.testing.assert_array_equal(np.argmax(network.apply(params, x), axis=1), [0, 1, 1, 0])


# One's own, and by layer ----------------------------------------------------------------------------------------------


@pytest.fixture
def damped_in_tests():
    @rules.register
    def damped_in_tests(factor=0.5):
        return fnn.Rule(f"damped_in_tests({factor})", carry=lambda edge, s: factor * edge.back(s))

    return damped_in_tests


@networks
def test_a_rule_of_ones_own_goes_by_its_name(network, damped_in_tests):
    params, inputs, targets = numbers(network)

    def cross(layer, source, s, errors):
        return 0.9 * s @ params[layer]["weights"][source]

    for rule in ("damped_in_tests(0.9)", damped_in_tests(0.9), {"others": "damped_in_tests(factor=0.9)"}):
        found = found_by(rule, network, params, inputs, targets, key=None)
        close(found.gradients, backward(network, params, inputs, mean_error(targets), cross)[0])
    assert damped_in_tests(0.9) is rules.get("damped_in_tests(0.9)") and "damped_in_tests" in rules.names()
    with pytest.raises(ValueError, match="rule 'damped_in_tests' is already registered"):
        rules.register(fnn.Rule("damped_in_tests"))


def test_a_rule_that_changes_s_sees_layer_trace_and_parameters():
    """The three parts that may stand together: s changed by what the layer gave, and gradients changed afterwards."""
    rule = fnn.Rule(
        "own",
        weights=lambda edge: 2 * edge.weights,
        alter=lambda place, s: s * place.trace.activations[place.layer.name] * place.share()[:, None],
        learn=lambda place, found: jax.tree.map(lambda x: 3 * x, found),
    )
    params, inputs, targets = numbers(MLP)
    share = WEIGHTS / WEIGHTS.sum()
    a = forward(MLP, params, inputs)[1]
    gradient, _ = backward(
        MLP,
        params,
        inputs,
        mean_error(targets, WEIGHTS),
        lambda layer, source, s, errors: 2 * s @ params[layer]["weights"][source],
        lambda layer, s: s * a[layer] * share[:, None],
    )
    close(found_by(rule, MLP, params, inputs, targets, WEIGHTS).gradients, jax.tree.map(lambda x: 3 * x, gradient))


@pytest.mark.parametrize(
    "given",
    [
        {"second": "feedback_alignment(3)", "output": "direct_feedback(1)", "others": "damped_in_tests(0.5)"},
        {"output": "feedback_alignment(3)"},
        "{second: feedback_alignment(3), output: direct_feedback(1), others: damped_in_tests(0.5)}",
    ],
)
@pytest.mark.usefixtures("damped_in_tests")
def test_a_layers_rule_is_that_of_what_it_sends_back(given):
    params, inputs, targets = numbers(SKIP)
    named = given if isinstance(given, dict) else dict(rules.get(given))
    shown = {
        "feedback": rules.feedback_weights(SKIP, "feedback_alignment(3)", params),
        "direct": rules.feedback_weights(SKIP, "direct_feedback(1)", params),
    }

    def cross(layer, source, s, errors):
        rule = named.get(layer, named.get("others", "exact"))
        rule = rule if isinstance(rule, str) else rule.name
        if rule.startswith("feedback"):
            return s @ np.asarray(shown["feedback"][layer][source])
        if rule.startswith("direct"):
            return errors @ np.asarray(shown["direct"][layer][source])
        return (0.5 if rule.startswith("damped") else 1) * s @ params[layer]["weights"][source]

    found = found_by(given, SKIP, params, inputs, targets, key=None)
    close(found.gradients, backward(SKIP, params, inputs, mean_error(targets), cross)[0])


def test_by_layer_other_layers_s_stays():
    params, inputs, targets = numbers(MLP)
    share = np.full(EXAMPLES, 1 / EXAMPLES)
    clip = clip_in_numpy(0.2, share)

    def alter(layer, s):
        return clip(layer, s) if layer == "layer2" else s

    found = found_by({"layer2": "clipped_back(0.2)"}, MLP, params, inputs, targets, key=None)
    close(found.gradients, backward(MLP, params, inputs, mean_error(targets), alter=alter)[0])
    steps = numbers(STEPS)
    apart = found_by({"layer1": "surrogate(2)", "layer2": "surrogate"}, STEPS, *steps, key=None)
    slopes = {"hardlim": lambda n, a: 1 / (1 + 2 * np.abs(n)) ** 2, "hardlims": lambda n, a: 2 / (1 + np.abs(n)) ** 2}
    close(apart.gradients, backward(STEPS, *steps[:2], mean_error(steps[2]), slopes=slopes)[0])
    with pytest.raises(ValueError, match="layer 'layer1': 'hardlim' has no derivative"):
        found_by({"layer2": "surrogate"}, STEPS, *steps)


# What stays -----------------------------------------------------------------------------------------------------------


@networks
def test_the_exact_rule_is_the_gradient_as_it_always_was(network):
    """The same program, to the letter, and the same bits."""
    data = numbers(network)
    plain, named = fnn.value_and_grad(network, LOSS), fnn.value_and_grad(network, LOSS, rule="exact")
    layers = fnn.value_and_grad(network, LOSS, rule={"others": "exact"})
    text = str(jax.make_jaxpr(plain)(*data))
    assert str(jax.make_jaxpr(named)(*data)) == text == str(jax.make_jaxpr(layers)(*data))
    found, again = plain(*data), named(*data)
    assert all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (found, again)), strict=True))
    close(found[1], backward(network, *data[:2], mean_error(data[2]))[0])
    assert str(jax.make_jaxpr(fnn.value_and_grad(network, LOSS, rule="feedback_alignment"))(*data)) != text


@pytest.mark.parametrize("rule", ONE_SWEEP)
def test_compiled_and_side_by_side_a_rule_is_what_it_is_alone(rule):
    """Under jit and vmap over parameters, with one key."""
    several = [begun(rule, TINY, seed)[0] for seed in range(2)]
    _, inputs, targets = numbers(TINY)
    step = fnn.value_and_grad(TINY, LOSS, rule=rule)
    stacked = jax.tree.map(lambda *x: np.stack(x), *several)
    lanes = jax.jit(jax.vmap(step, (0, None, None, None, None)))(stacked, inputs, targets, None, KEY)
    for number, params in enumerate(several):
        value, gradient = step(params, inputs, targets, None, KEY)
        lane = jax.tree.map(lambda x, at=number: x[at], lanes)
        np.testing.assert_allclose(lane[0], value, rtol=1e-13)
        close(lane[1], gradient, 1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rule", ONE_SWEEP)
def test_a_rule_keeps_the_dtype(rule, dtype):
    """In 32 bits the numbers are float64's to rounding, unless they are rounded or drawn by a comparison."""
    params, inputs, targets = begun(rule, TINY)
    low = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, inputs, targets))
    value, gradient = fnn.value_and_grad(TINY, LOSS, rule=rule)(*low, None, KEY)
    for x in jax.tree.leaves((value, gradient)):
        assert x.dtype == dtype and np.isfinite(np.asarray(x, np.float64)).all()
    if dtype == jnp.float32 and not rule.startswith(("rounded", "dropped", "weight_mirror")):
        wide = fnn.value_and_grad(TINY, LOSS, rule=rule)(params, inputs, targets, None, KEY)[1]
        close(gradient, wide, 1e-5)


@pytest.mark.parametrize("rule", ["feedback_alignment(3)", "direct_feedback(3)", "clipped_back(0.2)"])
def test_what_is_dropped_forwards_is_dropped_on_the_way_back(rule):
    network = fnn.multilayer((3, 5, 4, 2), ("tanh", "sigmoid", "softmax"), dropout=(0.5, 0.25, 0))
    params, inputs, targets = numbers(network)
    found = found_by(rule, network, params, inputs, targets)
    masks = {name: np.asarray(own.mask) for name, own in found.trace.dropped.items()}
    assert {name: set(np.unique(mask)) for name, mask in masks.items()} == {"layer1": {0, 2}, "layer2": {0, 4 / 3}}
    plain = {name: jax.tree.map(np.asarray, x) for name, x in found.trace.net_inputs.items()}
    a = {"input": inputs["input"]}
    for layer, f in (("layer1", np.tanh), ("layer2", lambda n: 1 / (1 + np.exp(-n)))):
        a[layer] = f(plain[layer]) * masks[layer]
    shown = None if rule.startswith("clipped") else rules.feedback_weights(network, rule, params)
    clip = clip_in_numpy(0.2, np.full(EXAMPLES, 1 / EXAMPLES)) if shown is None else lambda layer, s: s
    outputs = np.asarray(found.trace.activations["layer3"])
    s = {"layer3": clip("layer3", (outputs - targets) / EXAMPLES)}
    for layer, source in (("layer3", "layer2"), ("layer2", "layer1")):
        b = params[layer]["weights"][source] if shown is None else np.asarray(shown[layer][source])
        g = (s["layer3"] if rule.startswith("direct") else s[layer]) @ b
        f = np.tanh(plain[source]) if source == "layer1" else 1 / (1 + np.exp(-plain[source]))
        slope = 1 - f**2 if source == "layer1" else f * (1 - f)
        s[source] = clip(source, g * masks[source] * slope)
    close(found.sensitivities, s)
    for layer, source in (("layer1", "input"), ("layer2", "layer1"), ("layer3", "layer2")):
        close(found.gradients[layer]["weights"][source], s[layer].T @ a[source])


# Signals --------------------------------------------------------------------------------------------------------------

PRESETS = {
    "lenet": fnn.presets.get("lenet((2, 3), (5,), tanh)")((6, 6, 1), 3),
    "residual": fnn.presets.get("residual(depth=1, width=4, stages=1, norm=group_norm(2))")((4, 4, 2), 3),
    "transformer": fnn.presets.get("transformer(1, 2, 4, 6)")(5, 3, tokens=6),
}
# connections of every kind, several sources, what has no weights, and positions that are fewer further up
SIGNAL = fnn.graph(
    inputs={"x": (6, 2)},
    layers=[
        fnn.Layer("conv", 4, "tanh", (("x", "conv(3)"),)),
        fnn.Layer("attention", 4, "attention(2)", (("conv", "dense"),), bias="none"),
        fnn.Layer("block", 4, "layer_norm", (("attention", "identity"), ("conv", "conv(3)")), bias="none"),
        fnn.Layer("pool", 4, "max_pool(2)", (("block", "identity"),), bias="none"),
        fnn.Layer("strided", 3, "tanh", (("block", "conv(2, stride=2)"), ("pool", "dense"))),
        fnn.Layer("output", 3, "softmax", (("strided", "full"), ("attention", "full"))),
    ],
)


def signal_numbers(network):
    """(params, {name: inputs}, one-hot targets) of three examples."""
    params, inputs, targets = signal_problem(network, LOSS, examples=3)
    return params, {network.inputs[0][0]: inputs}, jax.nn.one_hot(targets, network.output.size, dtype=np.float64)


def crossed(network, params, inputs, targets, shown, direct):
    """F, whose derivative `jax.grad` takes as the rule says: z = W x as a value, W's derivative that of x held fixed,
    x's that of B x with B held fixed; of direct feedback x's is s^M B, from a term s^M B x that adds nothing to F.
    """
    still = jax.lax.stop_gradient
    a, met = dict(inputs), []
    for layer in network.layers:
        own, terms = params[layer.name], []
        for source, by in layer.reads:
            x, w = a[source], weights_of(own, source, by)
            b = shown.get(layer.name, {}).get(source)
            if b is None:
                terms.append(by.forward(x, w))
                continue
            terms.append(by.forward(still(x), w))
            if direct:
                met.append((x, b))
            else:
                through = by.forward(x, still(b))
                terms[-1] = terms[-1] + through - still(through)
        n = plus_bias(sum(terms[1:], start=terms[0]), own)
        a[layer.name], _ = layer.activation.forward(n, theta(layer, own, a))
    value = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(n, axis=-1), axis=-1))
    errors = still(jax.nn.softmax(n, axis=-1) - targets) / len(targets)
    beside = sum((jnp.sum(x.reshape(len(x), -1) * (errors @ b)) for x, b in met), start=0.0)
    return value + beside - still(beside)


crossed_and_gradient = jax.jit(jax.value_and_grad(crossed, 1), static_argnums=(0, 5))


@pytest.mark.parametrize("rule", ["feedback_alignment(3)", "sign_symmetric", "direct_feedback(3)"])
def test_across_convolutions_attention_and_residuals_it_is_jax_grad_with_other_matrices(rule):
    params, inputs, targets = signal_numbers(SIGNAL)
    shown = rules.feedback_weights(SIGNAL, rule, params)
    direct = rule.startswith("direct")
    found = jax.jit(fnn.value_and_grad(SIGNAL, LOSS, rule=rule))(params, inputs, targets)
    expected = crossed_and_gradient(SIGNAL, params, inputs, targets, shown, direct)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    close(found[1], expected[1], 1e-11)


@pytest.mark.parametrize("name", PRESETS)
def test_rules_go_the_way_back_through_presets_a_layer_each(name):
    """All of them in one program: the value is the network's, the gradient finite and another than the exact one."""
    network = PRESETS[name]
    params, inputs, targets = signal_numbers(network)
    given = [(layer.name, ONE_SWEEP[number % len(ONE_SWEEP)]) for number, layer in enumerate(network.layers[::-1])]
    rule = dict(given)
    own = rules.begin(rule, network, params, KEY)

    def both(own):
        step = fnn.value_and_grad(network, LOSS, rule=rule)
        return step(own, inputs, targets, None, KEY), fnn.value_and_grad(network, LOSS)(own, inputs, targets)

    (value, gradient), (expected, exact) = jax.jit(both)(own)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    assert jax.tree.structure(gradient) == jax.tree.structure(own)
    for layer, found in rules.without_feedback(gradient).items():
        if not jax.tree.leaves(found):
            continue
        x, y = (
            flat(jax.tree.map(lambda leaf: leaf[None], tree))
            for tree in (found, {name: exact[layer][name] for name in found})
        )
        assert np.isfinite(x).all()
        assert layer == network.output.name or np.linalg.norm(x - y) > 1e-6 * np.linalg.norm(y), layer


@pytest.mark.slow  # a program of fifteen backward passes each
@pytest.mark.parametrize("name", PRESETS)
def test_every_rule_goes_the_way_back_through_presets(name):
    """The value is the network's, the gradient finite, and another than the exact one unless all have derivatives."""
    network = PRESETS[name]
    params, inputs, targets = signal_numbers(network)
    own = {rule: rules.begin(rule, network, params, KEY) for rule in ("exact", *ONE_SWEEP)}

    def all_rules(own):  # in one program, whose forward pass they share
        found = {}
        for rule, params in own.items():
            value, gradient = fnn.value_and_grad(network, LOSS, rule=rule)(params, inputs, targets, None, KEY)
            assert jax.tree.structure(gradient) == jax.tree.structure(params)
            found[rule] = (
                value,
                jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(rules.without_feedback(gradient))]),
            )
        return found

    found = jax.jit(all_rules)(own)
    value, exact = found.pop("exact")
    for rule, (given, gradient) in found.items():
        np.testing.assert_allclose(given, value, rtol=1e-13)
        assert np.isfinite(gradient).all(), rule
        same = np.linalg.norm(gradient - exact) < 1e-9 * np.linalg.norm(exact)
        assert same == (rule == "surrogate"), rule


def test_direct_feedback_has_a_matrix_for_each_position_or_one_for_all_that_the_outputs_share():
    """Outputs with positions of their own: errors of each position go to that position, by the same B."""
    network = fnn.graph(
        inputs={"x": (5, 2)},
        layers=[
            fnn.Layer("conv", 4, "tanh", (("x", "conv(3)"),)),
            fnn.Layer("output", 3, "softmax", (("conv", "dense"),)),
        ],
    )
    params, x, t = signal_numbers(network)
    shown = rules.feedback_weights(network, "direct_feedback", params)["output"]["conv"]
    assert shown.shape == (3, 4)
    found = fnn.backpropagate(network, LOSS, params, x, t, rule={"others": "direct_feedback"})
    g = np.asarray(found.sensitivities["output"]) @ np.asarray(shown)
    close(found.sensitivities["conv"], g * (1 - np.asarray(found.trace.activations["conv"]) ** 2))
    whole = rules.feedback_weights(SIGNAL, "direct_feedback", signal_numbers(SIGNAL)[0])
    assert whole["output"]["strided"].shape == (3, 3 * 3) and whole["attention"]["conv"].shape == (3, 6 * 4)


def test_direct_feedback_refuses_positions_that_the_outputs_do_not_have():
    network = fnn.graph(
        inputs={"x": (6, 2)},
        layers=[
            fnn.Layer("one", 3, "tanh", (("x", "conv(3)"),)),
            fnn.Layer("output", 2, "softmax", (("one", "conv(2, stride=2)"),)),
        ],
    )
    with pytest.raises(
        ValueError,
        match=r"direct_feedback brings the output's error to 'one', but the output has positions \(3,\) "
        r"and 'one' has \(6,\), so that there is no telling which error belongs where",
    ):
        fnn.value_and_grad(network, LOSS, rule="direct_feedback")


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("feedback_alignmnet", r"unknown rule 'feedback_alignmnet'; did you mean 'feedback_alignment'\?"),
        ("feedback_alignment(-1)", "feedback_alignment: seed must be an integer >= 0, got -1"),
        ("feedback_alignment(0, 0)", "feedback_alignment: scale must be a finite number > 0, got 0"),
        ("direct_feedback(0.5)", "direct_feedback: seed must be an integer >= 0, got 0.5"),
        ("sign_symmetric(even)", "sign_symmetric: magnitude must be 'uniform' or 'random' or 'fixed', got 'even'"),
        ("kolen_pollack(-1)", "kolen_pollack: decay must be a finite number >= 0, got -1"),
        ("weight_mirror(0)", "weight_mirror: rate must be a finite number > 0, got 0"),
        ("weight_mirror(1, 0)", "weight_mirror: samples must be an integer >= 1, got 0"),
        ("noisy(-0.1)", "noisy: sigma must be a finite number >= 0, got -0.1"),
        ("noisy", r"rule 'noisy': missing a required argument: 'sigma' \(accepted: noisy\(sigma\)\)"),
        ("rounded(0)", "rounded: bits must be an integer >= 1, got 0"),
        ("rounded(2.5)", "rounded: bits must be an integer >= 1, got 2.5"),
        ("rounded(25)", "rounded: bits must be at most 24, got 25"),
        ("rounded(4, 3)", "rounded: stochastic must be True or False, got 3"),
        ("dropped_back(1)", r"dropped_back: rate must be in \[0, 1\), got 1"),
        ("clipped_back(0)", "clipped_back: norm must be a finite number > 0, got 0"),
        ("surrogate(-2)", "surrogate: slope must be a finite number > 0, got -2"),
        ({"layer7": "noisy(0.1)"}, r"rule: unknown layer 'layer7'.*accepted: layer1, layer2, layer3, others"),
        ({"layer1": "spsa"}, "rule: spsa makes the gradient of all layers at once; it cannot be one layer's"),
        ({}, "rule: expected one rule, or rules by layer such as"),
        ({1: "exact"}, "rule: expected one rule, or rules by layer such as"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line(rule, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fnn.value_and_grad(MLP, LOSS, rule=rule)
    assert "\n" not in str(refusal.value)


def test_what_a_rule_needs_and_is_not_given_is_asked_for():
    params, inputs, targets = numbers(MLP)
    for rule in ("noisy(0.1)", "rounded(2)", "dropped_back(0.1)", "sign_symmetric(random)", {"layer1": "noisy(0.1)"}):
        with pytest.raises(ValueError, match="rule: .* draws at every update; give key=jax.random.key") as refusal:
            fnn.value_and_grad(MLP, LOSS, rule=rule)(params, inputs, targets)
        assert "\n" not in str(refusal.value)
    for rule in ("kolen_pollack", "weight_mirror"):
        with pytest.raises(
            ValueError, match=rf"params: the rule {rule}.* learns layer2/feedback, .* rules.begin"
        ) as refusal:
            found_by(rule, MLP, params, inputs, targets)
        assert "\n" not in str(refusal.value)
        wrong = begun(rule, MLP)[0]
        wrong["layer2"]["feedback"]["layer1"] = np.zeros((2, 2))
        with pytest.raises(ValueError, match=r"learns layer2/feedback, expected shapes .*\(4, 5\).* got .*\(2, 2\)"):
            found_by(rule, MLP, wrong, inputs, targets)
    with pytest.raises(ValueError, match="rule: exact puts nothing in the place of the weights"):
        rules.feedback_weights(MLP, "exact", params)
    with pytest.raises(ValueError, match="rule: sign_symmetric.* draws at every update; give key"):
        rules.feedback_weights(MLP, "sign_symmetric(random)", params)
    with pytest.raises(TypeError, match="rule: expected a name or a Rule, got int"):
        fnn.value_and_grad(MLP, LOSS, rule=3)


def test_learned_feedback_that_is_not_there_is_not_shown_and_what_takes_anothers_place_is_told():
    params, inputs, targets = numbers(MLP)
    with pytest.raises(ValueError, match=r"kolen_pollack.* learns layer2/feedback, .* got {}; rules.begin\(.* params,"):
        rules.feedback_weights(MLP, "kolen_pollack", params)
    others = begun("kolen_pollack", MLP)[0]
    with pytest.raises(ValueError, match=r"target_prop.* rules.begin\(.*, rules.without_feedback\(params\), key\)"):
        found_by("target_propagation", MLP, others, inputs, targets)
    found_by("target_propagation", MLP, begun("target_propagation", MLP)[0], inputs, targets)


@pytest.mark.parametrize(
    "part, gives, message",
    [
        ("weights", lambda edge: jnp.zeros((7, 7)), r"weights is to give shape \(2, 4\), got \(7, 7\)"),
        ("direct", lambda edge: jnp.zeros((2, 9)), r"direct is to give shape \(2, 4\), got \(2, 9\)"),
        ("carry", lambda edge, s: s[:, :1], r"carry is to give shape \(6, 4\), got \(6, 1\)"),
        ("alter", lambda place, s: s.sum(axis=0), r"alter is to give shape \(6, 2\), got \(2,\)"),
    ],
)
def test_a_rule_of_ones_own_that_gives_another_shape_is_told_so(part, gives, message):
    params, inputs, targets = numbers(TINY)
    rule = fnn.Rule("own", **{part: gives})
    with pytest.raises(ValueError, match=f"rule 'own': {message}"):
        fnn.value_and_grad(TINY, LOSS, rule=rule)(params, inputs, targets)


@pytest.mark.parametrize("part", ["alter", "carry"])
def test_a_rule_of_ones_own_that_gives_another_dtype_is_told_so(part):
    gives = {"alter": lambda place, s: s.astype(jnp.float32), "carry": lambda edge, s: edge.back(s).astype(jnp.float32)}
    with pytest.raises(ValueError, match=f"rule 'own': {part} is to give float64, got float32"):
        fnn.value_and_grad(TINY, LOSS, rule=fnn.Rule("own", **{part: gives[part]}))(*numbers(TINY))


def test_what_draws_says_so_and_is_given_a_key():
    params, inputs, targets = numbers(TINY)
    silent = fnn.Rule("silent", alter=lambda place, s: s * draws.signs(place.stream, s.shape, s.dtype))
    with pytest.raises(ValueError, match="stream: there is none to draw from; .* says random=True"):
        fnn.value_and_grad(TINY, LOSS, rule=silent)(params, inputs, targets)
    with pytest.raises(TypeError, match="key: expected a single key"):
        fnn.value_and_grad(TINY, LOSS, rule="noisy(0.1)")(params, inputs, targets, None, 3)


@pytest.mark.parametrize("rule", ["weight_perturbation", "spsa", "node_perturbation", "finite_differences"])
def test_small_steps_are_not_gone_in_16_bits(rule):
    params, inputs, targets = numbers(TINY)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    with pytest.raises(ValueError, match=f"rule: {rule} goes a small step, which bfloat16 does not tell"):
        fnn.value_and_grad(TINY, LOSS, rule=rule)(params, inputs, targets, None, KEY)


def test_a_function_that_makes_no_rule_is_told_so():
    @rules.register
    def nothing_in_tests():
        pass

    with pytest.raises(TypeError, match="rule 'nothing_in_tests': its function is to give a Rule, got NoneType"):
        fnn.value_and_grad(TINY, LOSS, rule="nothing_in_tests")


@pytest.mark.parametrize("rule", ["node_perturbation", "predictive_coding", "clipped_back(1)", "target_propagation"])
def test_where_no_example_counts_nothing_moves(rule):
    """As of the exact gradient, where weights are traced: they are refused where they are known."""
    params, inputs, targets = begun(rule, TINY)[0], *numbers(TINY)[1:]
    gradient = jax.jit(fnn.value_and_grad(TINY, LOSS, rule=rule))
    value, found = gradient(params, inputs, targets, jnp.zeros(EXAMPLES), KEY)
    assert value == 0 and all(not np.any(x) for x in jax.tree.leaves(found))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_traced_bits_round_as_the_number_does(bits):
    params, inputs, targets = numbers(TINY)

    def gradient(bits):
        return fnn.value_and_grad(TINY, LOSS, rule=rules.rounded(bits))(params, inputs, targets, None, KEY)[1]

    drawn = jax.jit(jax.vmap(gradient))(jnp.array([bits]))
    close(jax.tree.map(lambda x: x[0], drawn), gradient(bits), 1e-14)


def test_a_rule_is_told_one_thing_of_each_kind():
    crossing = {"weights": lambda edge: edge.weights, "carry": lambda edge, s: s}
    with pytest.raises(ValueError, match="rule 'two': give one of weights, direct and carry, got weights and carry"):
        fnn.Rule("two", **crossing)
    with pytest.raises(ValueError, match="rule 'two': a method makes the whole gradient, so that alter has no place"):
        fnn.Rule("two", method=lambda asked: None, alter=lambda place, s: s)
    with pytest.raises(
        ValueError, match="rule: feedback_alignment.* is a hand-written way back; it needs gradient='man"
    ):
        training.fit(
            MLP, LOSS, "gd", *numbers(MLP)[1:], key=KEY, epochs=1, gradient="automatic", rule="feedback_alignment"
        )


@pytest.mark.parametrize("name", rules.names())
def test_a_rules_name_makes_it_again(name):
    """As it is written it is read; what differs in a constant is written otherwise."""
    needs = {"noisy": "0.1", "rounded": "4", "dropped_back": "0.5", "clipped_back": "1"}
    rule = rules.get(f"{name}({needs[name]})" if name in needs else name)
    assert rules.get(rule.name).name == rule.name


@pytest.mark.parametrize(
    "written",
    [
        "feedback_alignment(1234567)",
        "direct_feedback(3, 0.33333333)",
        "sign_symmetric(fixed, 12345678)",
        "noisy(0.123456789)",
        "spsa(directions=1000001)",
        "evolution_strategy(population=1000002)",
        "predictive_coding(1234567, 0.1, 1)",
        "forward_forward(1, tag)",
        "hebb(decay=0.12345678)",
        "target_propagation(0.12345678, 0.1)",
    ],
)
def test_a_rule_is_written_with_all_its_digits(written):
    assert rules.get(written).name == written


# Random numbers that a backward pass can afford -----------------------------------------------------------------------

COUNT = 200_000
STREAM = draws.of_seed(7)
MOMENTS = {  # of the first four powers
    "uniform": (draws.uniform, (0, 1 / 3, 0, 1 / 5)),
    "normal": (draws.normal, (0, 1, 0, 3)),
    "nearly_normal": (draws.nearly_normal, (0, 1, 0, 2.94)),
    "signs": (draws.signs, (0, 1, 0, 1)),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", MOMENTS)
def test_draws_have_the_moments_that_they_are_told_to_have(name, dtype):
    draw, expected = MOMENTS[name]
    x = draw(STREAM, (COUNT,), dtype)
    assert x.dtype == dtype
    x = np.asarray(x, np.float64)
    for power, moment in enumerate(expected, start=1):
        error = np.std(x**power) / np.sqrt(COUNT)
        slack = 0.01 if (name, power) == ("nearly_normal", 4) else 0  # which is told to three digits
        assert abs(np.mean(x**power) - moment) <= 5 * error + slack, power
    if name == "uniform":
        assert -1 < x.min() < -0.9999 and 0.9999 < x.max() < 1
    if name == "nearly_normal":
        assert np.abs(x).max() <= 5.9


def test_nearly_normal_is_within_three_thousandths_of_the_normal_distribution():
    scipy = pytest.importorskip("scipy.stats")
    for draw, bound in ((draws.nearly_normal, 0.003), (draws.normal, 0.0)):
        distance = scipy.kstest(np.asarray(draw(STREAM, (COUNT,), np.float64)), "norm").statistic
        assert distance < bound + 1.95 / np.sqrt(COUNT)  # beyond which one sample in a thousand goes by itself


def test_draws_are_the_hash_that_is_told():
    """C. Wellons' lowbias32 in NumPy, twice, of the place and of the two words."""

    def mixed(x):
        x = np.asarray(x, np.uint32)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
        return x ^ (x >> np.uint32(16))

    stream = draws.Stream(jnp.uint32(12345), jnp.uint32(987654321))
    expected = mixed(mixed(np.arange(12, dtype=np.uint32) ^ np.uint32(12345)) + np.uint32(987654321)).reshape(3, 4)
    np.testing.assert_array_equal(draws.bits(stream, (3, 4)), expected)
    np.testing.assert_allclose(draws.uniform(stream, (3, 4), np.float64), (expected + 0.5) / 2.0**31 - 1, rtol=1e-15)


def uncorrelated(x, y):
    x, y = (np.asarray(z).ravel() for z in (x, y))
    assert abs(np.mean(x * y)) / np.sqrt(np.mean(x**2) * np.mean(y**2)) < 5 / np.sqrt(x.size)


def test_draws_know_nothing_of_their_neighbours_nor_of_other_streams():
    shape = (400, 250)
    x = np.asarray(draws.uniform(STREAM, shape, np.float64))
    for lag in (1, 2, 3, 4, 16, 250):
        uncorrelated(x.ravel()[lag:], x.ravel()[:-lag])
        uncorrelated(x.ravel()[lag:] ** 2 - 1 / 3, x.ravel()[:-lag] ** 2 - 1 / 3)
    uncorrelated(x[:, 1:], x[:, :-1])
    others = [draws.of_seed(seed) for seed in (8, 6, 7 + 2**31, 7 + 2**40)]
    others += [draws.inside(STREAM, name) for name in ("layer1", "layer2", 0, 1)]
    others += [draws.inside(STREAM, "layer1", "layer2"), draws.inside(STREAM, "layer2", "layer1")]
    others += [draws.of_key(jax.random.key(seed)) for seed in (0, 1)]
    every = [x, *(np.asarray(draws.uniform(own, shape, np.float64)) for own in others)]
    for at, one_of in enumerate(every):
        for other in every[:at]:
            uncorrelated(one_of, other)
    assert len({tuple(map(int, own)) for own in (STREAM, *others)}) == len(every)


def test_the_first_draws_of_many_streams_are_as_good_as_many_draws_of_one():
    """Keys and seeds that follow one another: of each only a few numbers are drawn, a layer's or an update's."""
    of_keys = over_keys(lambda key: draws.uniform(draws.inside(draws.of_key(key), "layer1"), (4,), np.float64), 20_000)
    of_seeds = jax.vmap(lambda seed: draws.uniform(draws.of_seed(seed), (4,), np.float64))(jnp.arange(20_000))
    of_numbers = jax.vmap(lambda n: draws.uniform(draws.inside(STREAM, n), (4,), np.float64))(
        jnp.arange(20_000, dtype=jnp.uint32)
    )
    for x in map(np.asarray, (of_keys, of_seeds, of_numbers)):
        assert (np.abs(x.mean(axis=0)) < 5 * np.sqrt(1 / 3 / len(x))).all()
        assert (np.abs((x**2).mean(axis=0) - 1 / 3) < 5 * np.sqrt((1 / 5 - 1 / 9) / len(x))).all()
        uncorrelated(x[1:], x[:-1])
        for at in range(1, 4):
            uncorrelated(x[:, at], x[:, at - 1])


def test_draws_are_the_same_in_lanes_traced_and_alone():
    seeds = jnp.arange(3)
    for draw, _ in MOMENTS.values():

        def of_seed(seed, draw=draw):
            return draw(draws.inside(draws.of_seed(seed), "layer1", 3), (2, 5), np.float64)

        lanes = jax.jit(jax.vmap(of_seed))(seeds)
        for seed in range(3):
            np.testing.assert_allclose(lanes[seed], of_seed(seed), rtol=1e-15)
            np.testing.assert_allclose(lanes[seed], of_seed(jnp.uint32(seed)), rtol=1e-15)
