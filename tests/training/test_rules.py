"""Learning rules in training: what they learn is begun, saved and gone on with; in populations a rule is a column."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.training import checkpoints, search

KEY = jax.random.key(7)
NETWORK = fnn.multilayer((3, 4, 5, 2), ("tanh", "sigmoid", "softmax"))
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(20, 3))
Y = (X.sum(axis=1) > 0).astype(int)


def fit(network=NETWORK, optimizer="gd(0.1)", **settings):
    return training.fit(network, "cross_entropy", optimizer, X, Y, **({"key": KEY, "epochs": 4, "chunk": 2} | settings))


def train(hyperparameters, network=NETWORK, **settings):
    given = {"key": KEY, "epochs": 3, "plan": training.minibatch(5)} | settings
    return training.fit_population(network, "cross_entropy", "gd", hyperparameters, (X, Y), **given)


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b))


def test_fit_is_the_rule_s_own_steps():
    """Full batches of gradient descent, against the rule's gradient taken by hand update after update."""
    rule = "kolen_pollack(0.05)"
    result = fit(rule=rule, plan=training.batch())
    own = training.keys.parameters(KEY)
    params = fnn.rules.begin(rule, NETWORK, NETWORK.init(own), own)
    gradient = jax.jit(fnn.value_and_grad(NETWORK, "cross_entropy", rule))
    for loss in result.history.training_loss:
        value, grads = gradient(params, X, Y)
        np.testing.assert_allclose(value, loss, rtol=1e-12)
        params = jax.tree.map(lambda x, g: x - 0.1 * g, params, grads)
    assert set(result.params["layer3"]) == {"weights", "bias", "feedback"}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-14), result.params, params)
    NETWORK.apply(result.params, X)  # nothing forward reads the feedback


def test_a_step_of_one_s_own_loop_takes_a_rule():
    optimizer, rule = optimizers.gd(0.1), "noisy(0.5)"
    step = jax.jit(training.train_step(NETWORK, "cross_entropy", optimizer, rule=rule))
    state, batch = optimizer.init(NETWORK.init(KEY)), training.Batch({"input": jnp.asarray(X)}, fnn.one_hot(Y, 2))
    one, other = (step(state, batch._replace(key=jax.random.key(seed)))[0].params for seed in (0, 1))
    assert not equal(one, other)
    with pytest.raises(ValueError, match="random gradient needs a key"):
        step(state, batch)


def test_a_rule_is_gone_on_with(tmp_path):
    """What it has learned is in the checkpoint, bitwise; and another rule is another training."""
    settings = {"rule": "weight_mirror", "optimizer": "adam"}
    whole = fit(**settings)
    fit(**settings, epochs=2, checkpoint=checkpoints.keep(tmp_path))
    assert equal(fit(**settings, checkpoint=checkpoints.keep(tmp_path), resume=True).state, whole.state)
    with pytest.raises(checkpoints.CheckpointError, match=r"made with gradient = 'weight_mirror\(1, 16\)', now"):
        fit(**settings | {"rule": "weight_mirror(2)"}, checkpoint=checkpoints.keep(tmp_path), resume=True)


def test_gradients_are_clipped_by_a_rule_example_by_example():
    """Against each example's gradient by the rule, taken alone and scaled."""
    network, rule = NETWORK, "feedback_alignment(3)"
    clipped = training.gradient.gradient_by_rule(training.clipped(0.2), rule)
    params = network.init(KEY)
    _, found = jax.jit(clipped(network, fnn.losses.get("cross_entropy")))(params, X, Y)
    alone = jax.jit(fnn.value_and_grad(network, "cross_entropy", rule))
    total = jax.tree.map(np.zeros_like, params)
    for x, y in zip(X, Y, strict=True):
        _, g = alone(params, x[None], np.array([y]))
        norm = np.sqrt(sum(np.sum(np.asarray(leaf) ** 2) for leaf in jax.tree.leaves(g)))
        scale = min(1, 0.2 / norm) / len(X)
        total = jax.tree.map(lambda t, leaf, scale=scale: t + scale * np.asarray(leaf), total, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), found, total)
    with pytest.raises(ValueError, match="kolen_pollack.* has no gradient of each example"):
        fit(gradient=training.clipped(1.0), rule="kolen_pollack")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "feedback_alignmet"}, "unknown rule 'feedback_alignmet'; did you mean 'feedback_alignment'"),
        ({"rule": {"layer9": "noisy(0.1)"}}, "rule: unknown layer 'layer9'; did you mean 'layer3'"),
        ({"rule": {"layer1": "spsa"}}, "rule: spsa makes the gradient of all layers at once"),
        ({"rule": "noisy(-1)"}, "noisy: sigma must be a finite number >= 0, got -1"),
        ({"rule": "rounded(0)"}, "rounded: bits must be an integer >= 1, got 0"),
        ({"rule": "noisy(0.1)", "gradient": "automatic"}, "rule: noisy.* got 'automatic'"),
        ({"rule": "noisy(0.1)", "optimizer": "newton"}, "newton requires exact derivatives, which the noisy"),
        ({"rule": "perceptron"}, "perceptron: the rule trains a single layer, got 3"),
        ({"rule": "forward_forward"}, "needs an input 'label' of the classes"),
        ({"network": fnn.multilayer((3, 4, 2), ("hardlim", "softmax"))}, "'hardlim' has no derivative"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, said):
    with pytest.raises(ValueError, match=said) as refused:
        fit(**settings)
    assert "\n" not in str(refused.value)


# Populations ----------------------------------------------------------------------------------------------------------

WORDS = ["exact", "feedback_alignment", "kolen_pollack", "noisy", "forward_gradient"]


@pytest.fixture(scope="module")
def main():
    columns = search.grid(rule=WORDS, seed=[0, 5])
    columns |= {"learning_rate": np.full(10, 0.1), "sigma": np.tile([0.2, 0.4], 5)}
    return train(columns, track=("alignment",))


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("member", range(1, 10, 2))
def test_a_member_is_what_fit_gives_alone(main, member):
    drift = main.drift(member)
    assert drift.relative < 1e-10, drift


def test_a_member_s_seed_is_that_of_its_matrices(main):
    """So that repeats with other seeds are independent; told by what `fit` gives with the rule written out."""
    settings = {"plan": training.minibatch(5), "epochs": 3, "optimizer": "gd(0.1)", "params": main.initial_params(3)}
    right, wrong = (fit(**settings, rule=f"feedback_alignment({seed})").history.training_loss for seed in (5, 0))
    np.testing.assert_allclose(main.history.training_loss[:, 3], right, rtol=1e-10)
    assert abs(main.history.training_loss[-1, 3] - wrong[-1]) > 1e-4


def test_groups_that_track_other_things_stand_in_one_table(main):
    """A forward gradient has no sensitivities to be aligned; what it has stands beside the others'."""
    found = main.history.tracked["alignment"]["layer1"]
    assert found.gradient_cosine.shape == found.sensitivity_cosine.shape == (3, 10)
    assert np.isfinite(found.gradient_cosine).all() and np.isfinite(found.sensitivity_cosine[:, :8]).all()
    assert np.isnan(found.sensitivity_cosine[:, 8:]).all()
    np.testing.assert_allclose(found.gradient_cosine[:, :2], 1, rtol=1e-12)


def test_depths_that_track_by_layer_stand_in_one_table():
    def deep(depth):
        return fnn.multilayer((3, *[4] * depth, 2), ("tanh",) * depth + ("softmax",))

    columns = {"depth": [1, 2], "learning_rate": [0.1, 0.1], "rule": ["noisy(0.1)", "exact"]}
    found = train(columns, deep, track=("alignment", "per_example_norms")).history.tracked
    assert np.isnan(found["alignment"]["layer3"].gradient_ratio[:, 0]).all()
    assert np.isfinite(found["alignment"]["layer3"].gradient_ratio[:, 1]).all()
    assert found["per_example_norms"].shape == (3, 2, 20) and np.isfinite(found["per_example_norms"]).all()


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("rule", ["target_propagation", "predictive_coding", "local_loss", "node_perturbation"])
def test_a_rule_with_a_way_of_its_own_trains_a_population(rule):
    """Whose networks are laid out in another order of memory than those that `fit` takes."""
    assert train({"learning_rate": [0.1], "rule": [rule]}).drift(0).relative < 1e-10


def test_a_function_of_hyperparameters_makes_a_rule():
    columns = {"learning_rate": [0.1, 0.1], "share": [0.0, 0.5]}
    population = train(columns, rule=lambda share: fnn.rules.dropped_back(share))
    assert population.drift(1).relative < 1e-10
    plain = train({"learning_rate": [0.1]})
    np.testing.assert_allclose(population.history.training_loss[:, 0], plain.history.training_loss[:, 0], rtol=1e-12)
    assert abs(population.history.training_loss[-1, 1] - plain.history.training_loss[-1, 0]) > 1e-6


@pytest.mark.slow
def test_whole_numbers_that_shape_a_program_are_compiled_in():
    columns = {"learning_rate": [0.1] * 2, "rule": ["forward_gradient"] * 2, "directions": [1, 3]}
    population = train(columns)
    assert len(population.groups) == 2
    assert population.drift(1).relative < 1e-10


def chain(width):
    return fnn.multilayer((3, width, 2), ("relu", "softmax"))


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("rule", "rtol"),
    # a number half-way between two of so many bits may go either way: by 2^-19 of the largest
    [("clipped_back(0.05)", 1e-12), ("rounded(20, stochastic=false)", 2**-19)],
)
def test_what_pads_a_network_changes_no_rule_that_says_so(rule, rtol):
    columns = {"width": [3, 5], "learning_rate": [0.1, 0.1]}
    padded, apart = (train(columns, chain, rule=rule, pad=pad) for pad in (True, False))
    np.testing.assert_allclose(padded.history.training_loss, apart.history.training_loss, rtol=rtol)


@pytest.mark.parametrize(
    "rule", ["feedback_alignment", "direct_feedback", "sign_symmetric", "noisy(0.1)", "spsa", "rounded(1, false)"]
)
def test_padding_says_no_where_a_rule_would_be_another(rule):
    with pytest.raises(ValueError, match="pad: the rule .* other numbers in a wider network"):
        train({"width": [3, 5], "learning_rate": [0.1, 0.1]}, chain, rule=rule, pad=True)


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({"rule": ["noisy"]}, {}, "the rule needs 'sigma', which is not among them"),
        ({"rule": [3]}, {}, "rule must be words such as 'feedback_alignment', got 3"),
        ({"rule": ["exact"]}, {"rule": "noisy(0.1)"}, "rule=... cannot be given as well"),
        ({"rule": ["noisy"], "sigma": [-1.0]}, {}, "member 0 .*noisy: sigma must be a finite number >= 0, got -1"),
        ({"sigma": [0.1]}, {}, "unknown name 'sigma'"),
    ],
)
def test_a_population_refuses_in_one_line(columns, settings, said):
    with pytest.raises(ValueError, match=said):
        train({"learning_rate": [0.1]} | columns, **settings)
