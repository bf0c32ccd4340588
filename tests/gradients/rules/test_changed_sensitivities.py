"""Noise, rounding, dropping and clipping of sensitivities: unbiased where they draw, NumPy's where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import (
    EXAMPLES,
    KEY,
    LOSS,
    MLP,
    TINY,
    WEIGHTS,
    as_vector,
    backpropagated,
    backward,
    clip_in_numpy,
    close,
    forward,
    gradients_over_keys,
    mean_error,
    networks,
    numbers,
    sensitivities_over_keys,
    unbiased,
)

import functional_nn as fnn
from functional_nn import rules
from functional_nn.gradients import draws


@networks
@pytest.mark.parametrize("rule", ["noisy(0.3)", "rounded(3)", "rounded(2)", "rounded(1)", "dropped_back(0.4)"])
def test_random_rules_are_unbiased(rule, network):
    """The mean of the whole gradient over keys is the exact one: in every layer, for what is drawn in all above it."""
    data = numbers(network)
    drawn = gradients_over_keys(rule, network, data)
    exact, _ = backward(network, *data[:2], mean_error(data[2]))
    unbiased(drawn, as_vector(exact))
    assert (drawn.std(axis=0) > 0).mean() > 0.9


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rule", ["dropped_back(0.99)", "rounded(2)", "rounded(8)", "noisy(0.1)"])
def test_random_rules_are_unbiased_in_16_bits(rule, dtype):
    """Small numbers next to 0 and one large number: what is 0 stays 0, except under noise."""
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


def test_noise_has_the_size_that_sigma_says():
    """Of the outputs, whose s is known, sigma rms(s): in the mean square within 5 standard errors, alike for each."""
    data, sigma = numbers(MLP), 0.3
    _, exact = backward(MLP, *data[:2], mean_error(data[2]))
    s = exact["layer3"]
    noise = np.asarray(sensitivities_over_keys(f"noisy({sigma})", MLP, data, 20_000)["layer3"]) - s
    size = sigma * np.sqrt((s**2).mean())
    for axis, count in ((0, len(noise)), (None, noise.size)):  # of each number, and of all together: to 1.5 percent
        np.testing.assert_allclose((noise**2).mean(axis=axis) / size**2, 1, rtol=0, atol=5 * np.sqrt(1.94 / count))
    scaled = backpropagated(f"noisy({sigma})", MLP, *data, 5 * np.ones(EXAMPLES))
    np.testing.assert_array_less(np.abs(noise).max(), 6 * size)
    close(
        scaled.sensitivities, backpropagated(f"noisy({sigma})", MLP, *data).sensitivities
    )  # whatever weights all have
    nothing = backpropagated("noisy(0)", MLP, *data)
    close(nothing.gradients, backward(MLP, *data[:2], mean_error(data[2]))[0])


@networks
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_rounding_to_the_nearest_level_is_numpys(bits, network):
    """2^bits - 1 numbers evenly from -max |s| to max |s|; of one bit the sign times the mean size."""
    params, inputs, targets = numbers(network)

    def alter(layer, s):
        if bits == 1:
            return np.sign(s) * np.abs(s).mean()
        unit = np.abs(s).max() / (2 ** (bits - 1) - 1)
        return np.round(s / unit) * unit

    rule = f"rounded({bits}, stochastic=false)"
    found = backpropagated(rule, network, params, inputs, targets, WEIGHTS, None)
    gradient, s = backward(network, params, inputs, mean_error(targets, WEIGHTS), alter=alter)
    close(found.gradients, gradient)
    close(found.sensitivities, s)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_stochastic_rounding_takes_one_of_the_two_nearest_levels(bits):
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


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_traced_number_of_bits_rounds_as_a_concrete_one(bits):
    params, inputs, targets = numbers(TINY)

    def gradient(bits):
        return fnn.value_and_grad(TINY, LOSS, rule=rules.rounded(bits))(params, inputs, targets, None, KEY)[1]

    drawn = jax.jit(jax.vmap(gradient))(jnp.array([bits]))
    close(jax.tree.map(lambda x: x[0], drawn), gradient(bits), 1e-14)


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
def test_sensitivities_of_0_stay_0(rule):
    """s = 0 throughout, where the outputs are the targets: no nan, and no level but 0."""
    network = fnn.multilayer((3, 4, 2), ("tanh", "linear"))
    params, inputs, _ = numbers(network, loss="mean_square_error")
    outputs = np.asarray(network.apply(params, inputs))
    found = fnn.backpropagate(network, "mean_square_error", params, inputs, outputs, None, KEY, rule=rule)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(found.gradients))


def test_dropped_back_keeps_or_zeroes_each_element():
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


@networks
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
def test_clipped_back_bounds_each_example_in_every_layer(weights, network):
    """No dF_q/dn is longer than the bound, and what is not is as it was, whatever the examples' part of F."""
    params, inputs, targets = numbers(network)
    share = np.full(EXAMPLES, 1 / EXAMPLES) if weights is None else weights / weights.sum()
    norm = 0.2
    found = backpropagated(f"clipped_back({norm})", network, params, inputs, targets, weights, None)
    gradient, s = backward(network, params, inputs, mean_error(targets, weights), alter=clip_in_numpy(norm, share))
    close(found.gradients, gradient)
    close(found.sensitivities, s)
    lengths = np.concatenate([np.linalg.norm(x / share[:, None], axis=1) for x in s.values()])
    assert lengths.max() <= norm * (1 + 1e-12) and (lengths > norm * (1 - 1e-12)).any() and lengths.min() < 0.9 * norm


def test_clipped_back_does_not_depend_on_the_other_examples():
    params, inputs, targets = numbers(MLP)
    together = backpropagated("clipped_back(0.2)", MLP, params, inputs, targets, key=None).sensitivities
    alone = jax.jit(lambda x, t: backpropagated("clipped_back(0.2)", MLP, params, x, t, key=None).sensitivities)
    for q in range(3):
        own = alone(inputs["input"][q : q + 1], targets[q : q + 1])
        close(own, {name: EXAMPLES * x[q : q + 1] for name, x in together.items()})
    total = fnn.backpropagate(MLP, "cross_entropy(sum)", params, inputs, targets, rule="clipped_back(0.2)")
    close(total.sensitivities, {name: EXAMPLES * x for name, x in together.items()})
    without = backpropagated("clipped_back(0.2)", MLP, params, inputs, targets, np.r_[np.ones(EXAMPLES - 1), 0.0], None)
    assert (np.asarray(without.sensitivities["layer1"][-1]) == 0).all()  # of weight 0, and no nan
