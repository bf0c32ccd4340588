"""Transformers and recurrent networks: gradients are autodiff's, masked, with dropout, at one position and at many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error
from signal_cases import signal_problem

import functional_nn as fnn

V = 7
PRESETS = (
    "transformer(2, 2, 4)",
    "transformer(1, 2, 8, positions=rotary, activation=swiglu, norm=rms_norm, dropout=0.3)",
    "transformer(1, 1, 4, positions=sinusoidal, activation=geglu)",
    "elman(4, layers=2, dropout=0.2)",
    "gru(4)",
    "lstm(3, layers=2)",
)


@pytest.mark.sampled(every=87)
@pytest.mark.parametrize("positions", [5, 1, 64])
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("each_position", [True, False], ids=["each", "one"])
@pytest.mark.parametrize("tokens", [V, None], ids=["tokens", "numbers"])
@pytest.mark.parametrize("name", PRESETS)
def test_gradients_are_autodiffs(name, tokens, each_position, lengths, positions):
    """With neurons dropped where there is dropout, in both precisions."""
    told = {"tokens": tokens, "each_position": each_position, "lengths": lengths}
    network = fnn.presets.get(name)(positions if tokens else (positions, 3), V, **told)
    key = jax.random.key(3) if network.drops else None

    @jax.jit
    def both(params, inputs, targets):
        by_hand = fnn.value_and_grad(network, "cross_entropy")(params, inputs, targets, None, key)
        automatic = jax.value_and_grad(fnn.objective(network, "cross_entropy"))(params, inputs, targets, None, key)
        return by_hand, automatic

    for dtype, tolerance in {"float64": 1e-12, "float32": 1e-5}.items():
        found, expected = both(*signal_problem(network, dtype=dtype))
        assert relative_error(found, expected) <= tolerance, dtype
        # by layer, too: none is lost next to a larger one
        for layer in network.layers:
            assert relative_error(found[1][layer.name], expected[1][layer.name]) <= 10 * tolerance, (dtype, layer.name)


@pytest.mark.parametrize("name", [PRESETS[0], pytest.param("lstm(3)", marks=pytest.mark.slow)])
def test_of_a_batch_many_networks_have_each_its_own_gradient(name):
    network = fnn.presets.get(name)(5, V, tokens=V, each_position=True)
    one, other = (signal_problem(network, seed=seed) for seed in (0, 1))
    gradient = fnn.value_and_grad(network, "cross_entropy")
    both = jax.tree.map(lambda *x: jnp.stack(x), one[0], other[0])
    many = jax.jit(jax.vmap(gradient, (0, None, None)))(both, *one[1:])
    for lane, params in enumerate((one[0], other[0])):
        assert relative_error(jax.tree.map(lambda x: x[lane], many), gradient(params, *one[1:])) <= 1e-12  # noqa: B023


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["transformer(1, 2, 4, activation=swiglu)", pytest.param("gru(3)", marks=pytest.mark.slow)]
)
def test_compare_agrees_and_its_other_opinions_do(name):
    network = fnn.presets.get(name)(4, V, tokens=V, each_position=True, lengths=True)
    found = fnn.compare(network, "cross_entropy", *signal_problem(network))
    assert (found.verdict, found.where, found.third_opinion.says) == ("agree", None, "both are right"), str(found)
    assert found.third_opinion.method == "complex step" and found.taylor.says == "right"


# Text ---------------------------------------------------------------------------------------------------------------


def counting(T=6):
    """A transformer that has learned to count: 0 1 2 3 4 0 1 ..."""
    network = fnn.presets.get("gru(8)")(T, 5, tokens=5, each_position=True)
    starts = np.arange(40) % 5
    inputs = (starts[:, None] + np.arange(T)) % 5
    settings = {"optimizer": fnn.optimizers.adam(learning_rate=0.03), "epochs": 150, "key": jax.random.key(0)}
    return network, fnn.fit(network, "cross_entropy", inputs=inputs, targets=(inputs + 1) % 5, **settings).params


def test_what_was_learned_is_generated():
    network, params = counting()
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        fnn.generate(network, params, np.array([2, 3]), key, count=11, temperature=0), (np.arange(11) + 4) % 5
    )
    drawn = fnn.generate(network, params, np.array([[0], [3]]), key, count=9, temperature=0.3)
    assert drawn.shape == (2, 9) and drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, (np.arange(9) + np.array([[1], [4]])) % 5)
    warm = [fnn.generate(network, params, np.array([0]), jax.random.key(s), count=50, temperature=9.0) for s in (1, 2)]
    assert not np.array_equal(*warm) and set(np.ravel(warm)) == set(range(5))


def test_tokens_are_drawn_as_often_as_the_network_says():
    network = fnn.presets.get("elman(3)")(4, 3, tokens=3, each_position=True)
    params, prompt = network.init(jax.random.key(4)), np.tile([[0, 2, 1]], (4000, 1))
    whole = np.concatenate([prompt, np.zeros((4000, 1), int)], axis=1)
    expected = np.asarray(network.apply(params, whole[:1]))[0, 2]
    drawn = np.ravel(fnn.generate(network, params, prompt, jax.random.key(0), count=1))
    # four standard deviations of a count of 4000
    assert (abs(np.bincount(drawn, minlength=3) / 4000 - expected) <= 4 * np.sqrt(expected / 4000)).all()


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "prompt: expected at least one token"),
        ([0, 1, 2, 3, 4, 0, 1], {}, "prompt: expected at most 6 tokens, which are the network's positions, got 7"),
        ([0, 7], {}, r"prompt: expected tokens 0 to 4, got 7 at index \(1,\)"),
        ([2**32 + 1], {}, "prompt: expected tokens 0 to 4, got 4294967297"),
        ([0], {"count": 0}, "generate: count must be an integer >= 1"),
        ([0], {"temperature": -1.0}, "generate: temperature must be"),
    ],
)
def test_prompts_that_are_refused(prompt, settings, message):
    network = fnn.presets.get("gru(2)")(6, 5, tokens=5, each_position=True)
    with pytest.raises(ValueError, match=message):
        fnn.generate(network, network.init(jax.random.key(0)), np.array(prompt, int), jax.random.key(0), **settings)


def test_networks_that_are_refused():
    key, prompt = jax.random.key(0), np.array([0])
    ahead = fnn.graph(
        inputs={"text": 4},
        layers=[
            fnn.Layer("first", 4, "attention(2)", [("text", "embedding(3)")]),
            fnn.Layer("output", 3, "softmax", ["first"]),
        ],
    )
    with pytest.raises(ValueError, match="generate needs a causal network"):
        fnn.generate(ahead, ahead.init(key), prompt, key)
    one = fnn.presets.get("gru(2)")(4, 3, tokens=3)
    with pytest.raises(ValueError, match=r"generate needs outputs \(4, 3\) of softmax or linear"):
        fnn.generate(one, one.init(key), prompt, key)
    numbers = fnn.presets.get("gru(2)")((4, 1), 3, each_position=True)
    with pytest.raises(ValueError, match="generate needs a network that reads one sequence of tokens"):
        fnn.generate(numbers, numbers.init(key), prompt, key)
    with pytest.raises(ValueError, match=r"inputs: expected shape \(Q, 4\), got \(1, 9\)"):
        ahead.apply(ahead.init(key), np.zeros((1, 9), int))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fnn.presets.get("transformer(heads=3)"), "transformer: heads=3 must divide width=64"),
        (lambda: fnn.presets.get("transformer(positions=relative)"), "transformer: .*positions"),
        (lambda: fnn.presets.get("lenet")((8, 8, 1), 3, tokens=4), "reads no sequences, which tokens is for"),
        (lambda: fnn.presets.get("gru")(8, 3), r"gru\(64, 1, 0.0\) reads sequences \(T, channels\), or T of tokens"),
        (lambda: fnn.presets.get("gru")((8, 2), 3, tokens=3), "reads T tokens; got"),
        (lambda: fnn.presets.get("lstm(width=0)"), "lstm: width must be an integer >= 1, got 0"),
    ],
)
def test_presets_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Forward in time ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["elman(3)", *(pytest.param(n, marks=pytest.mark.slow) for n in PRESETS)])
def test_the_gradient_forward_in_time_is_the_one_back_through_time(name):
    network = fnn.presets.get(name)(5, 4, tokens=4, each_position=True, lengths=True)
    params, inputs, targets = signal_problem(network)
    weights = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 5)))
    given = params, inputs, targets, weights
    found = jax.jit(lambda *given: fnn.real_time_gradient(network, "cross_entropy", *given))(*given)
    back = fnn.value_and_grad(network, "cross_entropy")
    expected = jax.jit(back)(*given)[1]
    assert relative_error(found.gradients, expected) <= 1e-12
    # what position 2 adds is the gradient of its own loss; the mean is over all weights
    at = jnp.zeros_like(weights).at[:, 2].set(weights[:, 2])
    alone = jax.jit(back)(*given[:3], at)[1]
    share = float(jnp.sum(at) / jnp.sum(weights))
    added = jax.tree.map(lambda x: x[2], found.by_position)
    assert relative_error(added, jax.tree.map(lambda x: share * x, alone)) <= 1e-12


def test_the_gradient_forward_in_time_of_a_large_network_is_refused():
    network = fnn.presets.get("lstm(200)")(50, 10, tokens=10, each_position=True)
    params, x = network.init(jax.random.key(0), jnp.float32), np.zeros((2, 50), int)
    with pytest.raises(ValueError, match="real_time_gradient would take .* above the budget"):
        fnn.real_time_gradient(network, "cross_entropy", params, x, x, budget=10**6)


@pytest.mark.slow
def test_compare_says_where_derivatives_are_cut_off_on_purpose():
    network = fnn.graph(
        inputs={"x": (6, 2)},
        layers=[
            fnn.Layer("state", 3, "gru(truncate=2)", ["x"]),
            fnn.Layer("output", 2, "softmax", ["state"]),
        ],
    )
    found = fnn.compare(network, "cross_entropy", *signal_problem(network))
    assert found.verdict == "agree" and found.taylor.says == "inconclusive"
    assert found.third_opinion.says.startswith("state: derivatives are cut off on purpose")
