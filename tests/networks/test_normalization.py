"""Normalization against its definition in NumPy and autodiff; batch norm's running statistics against a loop."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, relative_error

import functional_nn as fnn
from functional_nn import activations

EPSILON = 1e-5
# name -> the axes of n (Q, *P, G, C / G) over which a number's mean and deviation are taken, and G
SETS = {
    "layer_norm": (lambda axes: (-1,), 1),
    "rms_norm": (lambda axes: (-1,), 1),
    "group_norm(2)": (lambda axes: (*range(1, axes + 1), -1), 2),
    "group_norm(6)": (lambda axes: (*range(1, axes + 1), -1), 6),  # of six channels: instance norm
    "batch_norm": (lambda axes: tuple(range(axes + 1)), 1),
}
SHAPES = ((6,), (5, 6), (3, 2, 6), (2, 3, 2, 6))
names = pytest.mark.parametrize("name", SETS)


def drawn(shape, examples=3, dtype=jnp.float64):
    return jnp.asarray(2 + 3 * np.random.default_rng(0).standard_normal((examples, *shape)), dtype)


def theta_of(name, dtype=jnp.float64):
    f, draw = activations.get(name), np.random.default_rng(1)
    return {key: jnp.asarray(draw.standard_normal(6), dtype) for key in f.parameters(6, dtype)}


def by_definition(name, n, theta):
    over, groups = SETS[name]
    n = np.asarray(n, np.float64)
    split = n if name == "batch_norm" else n.reshape(*n.shape[:-1], groups, -1)
    axes = over(n.ndim - 2)
    centred = split if name == "rms_norm" else split - split.mean(axis=axes, keepdims=True)
    x = (centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + EPSILON)).reshape(n.shape)
    return np.asarray(theta["gain"]) * x + np.asarray(theta.get("shift", 0))


@pytest.mark.sampled(every=3)
@names
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_the_definition(name, shape):
    n, theta = drawn(shape), theta_of(name)
    np.testing.assert_allclose(
        activations.get(name).forward(n, theta)[0], by_definition(name, n, theta), rtol=1e-12, atol=1e-12
    )


@pytest.mark.sampled(every=6)
@names
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_are_autodiffs(name, shape):
    """Pullback, pushforward and second order, of gain and shift, too; at gains and shifts of all sizes."""
    f, n, theta, draw = activations.get(name), drawn(shape), theta_of(name), np.random.default_rng(2)

    def normal(x):
        return jnp.asarray(draw.standard_normal(x.shape))

    g, r, r_theta = normal(n), normal(n), jax.tree.map(normal, theta)

    def by_hand(n, theta):
        a, kept = f.forward(n, theta)
        s, learned = f.pullback(g, n, a, kept, theta)
        return s, {key: share.left.reshape(-1, 6).sum(axis=0) for key, share in learned.items()}

    def automatic(n, theta):
        return jax.vjp(lambda *x: f.forward(*x)[0], n, theta)[1](g)

    a, kept = f.forward(n, theta)
    assert relative_error(by_hand(n, theta), automatic(n, theta)) <= 1e-12
    along = jax.jvp(lambda *x: f.forward(*x)[0], (n, theta), (r, r_theta))[1]
    assert relative_error(f.pushforward(r, r_theta, n, a, kept, theta), along) <= 1e-12
    bent, learned = f.second_order(g, r, r_theta, n, a, kept, theta)
    found = bent, {key: share.left.reshape(-1, 6).sum(axis=0) for key, share in learned.items()}
    assert relative_error(found, jax.jvp(automatic, (n, theta), (r, r_theta))[1]) <= 1e-12


@names
def test_each_neurons_own_slope(name):
    f, n, theta = activations.get(name), drawn((2, 6)), theta_of(name)
    a, kept = f.forward(n, theta)
    jacobian = jax.jacobian(lambda n: f.forward(n, theta)[0].reshape(-1))(n).reshape(a.size, a.size)
    np.testing.assert_allclose(f.slopes(n, a, kept, theta).reshape(-1), np.diag(jacobian), rtol=1e-11, atol=1e-13)


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@names
def test_dtype_is_kept_and_what_does_not_vary_is_finite(name, dtype):
    """Means are taken in float32 at least: numbers near the largest float16 have squares that are none."""
    f, theta = activations.get(name), theta_of(name, dtype)
    n = drawn((3, 6), 4, dtype).at[0].set(jnp.asarray(3e4, dtype)).at[1].set(0)
    n = jnp.where(name == "batch_norm", jnp.asarray(3e4, dtype), n)  # a constant batch
    a, kept = f.forward(n, theta)
    results = [a, *jax.tree.leaves(f.pullback(jnp.ones_like(n), n, a, kept, theta))]
    results.append(f.pushforward(jnp.ones_like(n), theta, n, a, kept, theta))
    results += jax.tree.leaves(f.second_order(jnp.ones_like(n), n * 0, theta, n, a, kept, theta))
    for result in results:
        assert result.dtype == dtype and np.isfinite(np.asarray(result).astype(np.float64)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("group_norm(0)", "group_norm: groups must be an integer >= 1, got 0"),
        ("layer_norm(0)", "layer_norm: epsilon must be"),
        ("batch_norm(1)", "batch_norm: decay must be in [0, 1), got 1"),
        ("rms_norm(shift=1)", "unexpected keyword argument 'shift'"),
    ],
)
def test_constants_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError) as refusal:
        activations.get(given)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_groups_that_do_not_divide_the_channels_are_refused_where_the_layer_is_described():
    with pytest.raises(ValueError, match="layer 'x': its activation group_norm.3, 1e-05. needs channels that 3 groups"):
        fnn.Layer("x", 8, "group_norm(3)", ("p",))


def test_rows_and_what_stands_in_for_batch_norm_survive_pickle():
    for row in (activations.get("group_norm(2)"), activations.batch_norm(), activations.batch_norm().running.inference):
        assert pickle.loads(pickle.dumps(row)) is row


# Batch norm, which mixes examples -------------------------------------------------------------------------------------


def normalized(activation="batch_norm(0.6)"):
    return fnn.graph(
        inputs={"x": (4, 3)},
        layers=[
            fnn.Layer("conv", 4, activation, [("x", "conv(3)")], bias="none"),
            fnn.Layer("active", 4, "tanh", [("conv", "identity")], bias="none"),
            fnn.Layer("dense", 3, activation, [("active", "full")]),
            fnn.Layer("output", 2, "softmax", ["dense"]),
        ],
    )


NETWORK = normalized()
X, T = np.random.default_rng(3).normal(size=(10, 4, 3)), np.arange(10) % 2
KEY = jax.random.key(1)
fitted = {"key": KEY, "epochs": 3, "plan": fnn.training.minibatch(4)}


@pytest.fixture(scope="module")
def trained():
    return fnn.fit(NETWORK, "cross_entropy", "adam(0.01)", X, T, validation=(X, T), **fitted)


@pytest.mark.slow
def test_compare_and_the_hessian_agree_with_autodiff():
    params = NETWORK.init(KEY)
    agreement = fnn.compare(NETWORK, "cross_entropy", params, X, T, second_opinions=False, jit=False)
    assert agreement.verdict == "agree" and agreement.total.relative <= 1e-12
    vector = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(4).standard_normal(x.shape)), params)
    objective = fnn.objective(NETWORK, "cross_entropy")
    exact = jax.jit(lambda p: jax.jvp(lambda p: jax.grad(objective)(p, X, T), (p,), (vector,))[1])(params)
    # a block of 4 would be another function of the batch: all ten are taken at once
    found = fnn.curvature.hessian_vector_product(NETWORK, "cross_entropy", params, X, T, vector, block=4)
    assert relative_error(found, exact) <= 1e-12


def test_running_statistics_are_those_of_the_batches(trained):
    """Against a loop over the same batches, by the forward pass alone: a plain average first, then decay 0.6."""
    plan, key = fnn.training.minibatch(4), fnn.training.keys.plan(KEY)
    batches = [np.asarray(batch) for epoch in range(3) for batch in np.asarray(plan.indices(key, epoch, 10))]
    optimizer = fnn.optimizers.get("adam(0.01)")
    state = optimizer.init(NETWORK.init(fnn.training.keys.parameters(KEY)))
    gradient = jax.jit(fnn.value_and_grad(NETWORK, "cross_entropy"))
    mean, variance, counts = np.zeros(4), np.zeros(4), fnn.training.minibatch(4).weights(10)
    for number, batch in enumerate(batches):
        n = np.asarray(NETWORK.forward(state.params, X[batch]).net_inputs["conv"]).reshape(-1, 4)
        rate = max(0.4, 1 / (number + 1))
        mean = mean + rate * (n.mean(axis=0) - mean)
        variance = variance + rate * (n.var(axis=0, ddof=1) - variance)
        state = optimizer.update(state, gradient(state.params, X[batch], T[batch], counts[number % 3])[1])
    found = trained.params["conv"]["statistics"]
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found["variance"], variance, rtol=1e-11)
    assert float(found["count"][0]) == 3  # ceil(1 / 0.4), where counting ends
    assert relative_error(trained.params["dense"]["weights"], state.params["dense"]["weights"]) <= 1e-11


def test_outputs_are_by_the_statistics_each_example_by_itself(trained):
    params = trained.params
    whole, alone = NETWORK.apply(params, X), NETWORK.apply(params, X[:1])
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-13)
    own = jax.tree.map(np.asarray, params["conv"])
    n = np.asarray(NETWORK.forward(params, X).net_inputs["conv"])
    x = (n - own["statistics"]["mean"]) / np.sqrt(own["statistics"]["variance"] + EPSILON)
    resting = fnn.inference_mode(NETWORK)
    expected = x * own["learned"]["gain"] + own["learned"]["shift"]
    np.testing.assert_allclose(resting.forward(params, X).activations["conv"], expected, rtol=1e-12, atol=1e-14)
    value, accuracy = fnn.training.evaluate(NETWORK, "cross_entropy", params, X, T)
    np.testing.assert_allclose(value, -np.mean(np.log(np.asarray(whole)[np.arange(10), T])), rtol=1e-13)
    np.testing.assert_allclose(trained.history.validation_loss[-1], value, rtol=1e-13)
    assert accuracy == pytest.approx(trained.history.validation_accuracy[-1], rel=1e-12)


@pytest.mark.slow
def test_the_network_as_it_predicts_has_every_quantity(trained):
    params, resting = trained.params, fnn.inference_mode(NETWORK)
    found = fnn.quantities.compute(
        resting, "cross_entropy", params, X, T, ("per_example_gradients", "per_example_norms", "jacobian", "kflr")
    )
    alone = fnn.objective(resting, "cross_entropy")
    each = jax.jit(jax.vmap(jax.grad(alone), (None, 0, 0)))(params, X[:, None], T[:, None])
    assert relative_error(found["per_example_gradients"], each) <= 1e-12
    squares = sum(np.sum(np.asarray(leaf).reshape(10, -1) ** 2, axis=1) for leaf in jax.tree.leaves(each))
    np.testing.assert_allclose(found["per_example_norms"] ** 2, squares, rtol=1e-12)
    assert relative_error(found["jacobian"], jax.jacobian(NETWORK.apply)(params, X)) <= 1e-12
    assert fnn.compare(resting, "cross_entropy", params, X, T, second_opinions=False, jit=False).verdict == "agree"
    by_hand = jax.grad(lambda p: jnp.sum(fnn.differentiable(NETWORK)(p, X) ** 2))(params)
    assert relative_error(by_hand, jax.grad(lambda p: jnp.sum(NETWORK.apply(p, X) ** 2))(params)) <= 1e-12


REFUSED = {
    "a quantity of single examples": lambda p: fnn.quantities.per_example_norms(NETWORK, "cross_entropy", p, X, T),
    "clipping": lambda p: fnn.fit(NETWORK, "cross_entropy", "gd", X, T, gradient=fnn.training.clipped(1.0), **fitted),
    "tracked noise": lambda p: fnn.fit(NETWORK, "cross_entropy", "gd", X, T, track=("noise_scale",), **fitted),
    "importance": lambda p: fnn.fit(
        NETWORK, "cross_entropy", "gd", X, T, key=KEY, epochs=1, plan=fnn.training.importance(4)
    ),
}


@pytest.mark.parametrize("quantity", REFUSED)
def test_per_example_quantities_are_refused_with_the_reason(quantity):
    with pytest.raises(ValueError, match="'batch_norm.0.6, 1e-05.' mixes examples: .*fnn.inference_mode") as refusal:
        REFUSED[quantity](NETWORK.init(KEY))
    assert "\n" not in str(refusal.value)


def test_second_order_methods_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="layer 'conv': second-order methods evaluate F many times a step"):
        fnn.fit(NETWORK, "cross_entropy", "lbfgs", X, T, key=KEY, epochs=1)


def test_evaluation_before_any_statistics_is_refused():
    params = NETWORK.init(KEY)
    for predict in (
        lambda: NETWORK.apply(params, X),
        lambda: fnn.training.evaluate(NETWORK, "cross_entropy", params, X, T),
    ):
        with pytest.raises(ValueError, match="layer 'conv': batch_norm.0.6, 1e-05. has no running statistics yet"):
            predict()
    assert np.isnan(jax.jit(NETWORK.apply)(params, X)).all()  # under jit, where it cannot raise


def test_a_frozen_layers_statistics_are_renewed():
    frozen = fnn.optimizers.freeze(fnn.optimizers.gd(0.1), ("conv",))
    result = fnn.fit(NETWORK, "cross_entropy", frozen, X, T, validation=(X, T), **fitted)
    assert float(result.params["conv"]["statistics"]["count"][0]) > 0
    assert np.isfinite(result.history.validation_loss).all()


def test_decay_inside_an_average_spares_statistics():
    optax = pytest.importorskip("optax")
    decaying = optax.chain(optax.scale(0.0), optax.add_decayed_weights(0.5), optax.scale(-1.0))
    averaged = fnn.optimizers.average(fnn.optimizers.from_optax(decaying))
    settings = {"key": KEY, "epochs": 1, "plan": fnn.training.batch()}
    found = fnn.fit(NETWORK, "cross_entropy", averaged, X, T, **settings).params["conv"]["statistics"]
    still = fnn.fit(NETWORK, "cross_entropy", "gd(0.0)", X, T, **settings).params["conv"]["statistics"]
    assert relative_error(found, still) <= 1e-12


def test_the_decay_holds_where_the_dtype_cannot_count_further():
    """A bfloat16 counts to 256: from there on the average is the exponential one."""
    running, kept = (
        activations.batch_norm(0.999).running,
        activations.get("batch_norm").forward(drawn((3,), 8), theta_of_three())[1],
    )
    statistics = {"mean": jnp.zeros(3, jnp.bfloat16), "variance": jnp.ones(3, jnp.bfloat16)}
    statistics["count"] = jnp.full(1, 256, jnp.bfloat16)
    narrow = kept._replace(mean=jnp.full((1, 3), 128, jnp.float32), variance=jnp.ones((1, 3), jnp.float32))
    after = running.after(statistics, narrow)
    np.testing.assert_allclose(np.asarray(after["mean"]).astype(float), 0.128, rtol=2**-8)
    assert float(after["count"][0]) == 256


def theta_of_three():
    return {"gain": jnp.ones(3), "shift": jnp.zeros(3), **activations.batch_norm().statistics(3, jnp.float64)}


def test_a_single_example_without_positions_is_refused():
    network = fnn.multilayer((3, 4, 1), ("batch_norm", "linear"))
    params = network.init(KEY)
    with pytest.raises(
        ValueError, match="batch_norm.0.9, 1e-05. needs more than one number of each channel, got a single example"
    ):
        fnn.value_and_grad(network, "mean_square_error")(params, np.ones((1, 3)), np.ones((1, 1)))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: fnn.optimizers.get("adamw(0.01, weight_decay=0.5)"),
        pytest.param(lambda: fnn.optimizers.average(fnn.optimizers.adam(0.01)), marks=pytest.mark.slow),
        pytest.param(lambda: fnn.optimizers.get("nesterov(0.01, form=look_ahead)"), marks=pytest.mark.slow),
        pytest.param(lambda: fnn.optimizers.freeze(fnn.optimizers.adam(0.01), ("dense",)), marks=pytest.mark.slow),
    ],
)
def test_no_optimizer_moves_statistics(optimizer):
    """At a rate of 0 every batch is of the same network, and what decays is not them."""
    still = fnn.fit(NETWORK, "cross_entropy", "gd(0.0)", X, T, **fitted).params
    moved = fnn.fit(NETWORK, "cross_entropy", optimizer(), X, T, regularizer="l2(0.1, biases=true)", **fitted).params
    assert float(moved["conv"]["statistics"]["count"][0]) > 0
    assert np.isfinite(np.asarray(NETWORK.apply(moved, X))).all()
    penalty = fnn.optimizers.regularizers.l2(0.1, biases=True)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(penalty.gradient(still)["conv"]["statistics"]))


def test_a_population_of_them_is_each_by_itself(trained):
    found = fnn.training.fit_population(
        NETWORK,
        "cross_entropy",
        fnn.optimizers.adam,
        {"learning_rate": [0.01, 0.1]},
        (X, T),
        key=KEY,
        epochs=3,
        plan=fnn.training.minibatch(4),
    )
    params = found.params(0)
    assert float(params["conv"]["statistics"]["count"][0]) == 3
    assert np.isfinite(np.asarray(NETWORK.apply(params, X))).all()
