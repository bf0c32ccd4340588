"""Every registered activation against its definition; its hand-written derivatives against autodiff of the forward."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ACTIVATIONS, DTYPES, TRAINABLE, generator, reference_activation, relative_error

import functional_nn as fnn
from functional_nn import activations, connections

SMOOTH = tuple(name for name in ACTIVATIONS if activations.get(name).smooth)
KINKED = tuple(name for name in ACTIVATIONS if not activations.get(name).smooth)
EPS = np.finfo(np.float64).eps
EXAMPLES, NEURONS = 7, 4


def drawn(name, seed=0, dtype=jnp.float64):
    """(f, n, g, r, theta, r_theta): an activation, net inputs, dF/da, and tangents of n and theta, all at random."""
    f = activations.get(name)
    draw = generator(jax.random.key(seed))

    def normal(*shape):
        return jnp.asarray(draw.standard_normal(shape), dtype)

    theta = f.parameters(NEURONS, dtype) if f.parameters else {}
    theta, r_theta = ({key: 1.5 * normal(*value.shape) for key, value in theta.items()} for _ in range(2))
    wide, narrow = (EXAMPLES, NEURONS * f.pieces), (EXAMPLES, NEURONS)
    return f, 2 * normal(*wide), normal(*narrow), normal(*wide), theta, r_theta


def summed_like(theta, contributions):
    """Shares (Q, S) as autodiff gives them: summed over the examples, and over neurons that share one."""
    return {
        key: jnp.sum(c.left, axis=0 if theta[key].shape[0] == c.left.shape[1] else None).reshape(-1)
        for key, c in contributions.items()
    }


# The forward map and its derivatives ----------------------------------------------------------------------------------


def outputs_of(f):
    """Its forward map without what it keeps."""
    return lambda n, theta: f.forward(n, theta)[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_forward_is_the_definition(name):
    f, n, _, _, theta, _ = drawn(name)
    expected = [reference_activation(f, row, theta) for row in np.asarray(n)]
    # Both sides round a few elementary functions of numbers near 1; 16 eps covers them, and softmax's sum.
    np.testing.assert_allclose(f.forward(n, theta)[0], expected, rtol=16 * EPS, atol=16 * EPS)


@pytest.mark.parametrize("name", TRAINABLE)
def test_pullback_is_the_vjp_of_forward(name):
    f, n, g, _, theta, _ = drawn(name)
    a, vjp = jax.vjp(outputs_of(f), n, theta)
    by_hand, learned = f.pullback(g, n, a, f.forward(n, theta)[1], theta)
    chex.assert_shape(by_hand, n.shape)
    chex.assert_shape([share.left for share in learned.values()], g.shape)
    assert relative_error((by_hand, summed_like(theta, learned)), vjp(g)) <= 1e-12


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", TRAINABLE)
def test_pullback_keeps_the_examples_apart(name):
    f, n, g, _, theta, _ = drawn(name)
    together = f.pullback(g, n, *f.forward(n, theta), theta)
    alone = [f.pullback(g[q : q + 1], x, *f.forward(x, theta), theta) for q, x in enumerate(n[:, None, :])]
    assert relative_error(together, jax.tree.map(lambda *rows: jnp.concatenate(rows), *alone)) <= 1e-12


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", TRAINABLE)
def test_pushforward_is_the_jvp_of_forward(name):
    f, n, _, r, theta, r_theta = drawn(name)
    a, r_a = jax.jvp(outputs_of(f), (n, theta), (r, r_theta))
    assert relative_error(f.pushforward(r, r_theta, n, a, f.forward(n, theta)[1], theta), r_a) <= 1e-12


@pytest.mark.parametrize("name", TRAINABLE)
def test_second_order_is_the_jvp_of_the_vjp(name):
    f, n, g, r, theta, r_theta = drawn(name)

    def automatic_pullback(n, theta):
        return jax.vjp(outputs_of(f), n, theta)[1](g)

    expected = jax.jvp(automatic_pullback, (n, theta), (r, r_theta))[1]
    by_hand, learned = f.second_order(g, r, r_theta, n, *f.forward(n, theta), theta)
    chex.assert_shape(by_hand, n.shape)
    chex.assert_shape([share.left for share in learned.values()], g.shape)
    assert relative_error((by_hand, summed_like(theta, learned)), expected) <= 1e-12


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", TRAINABLE)
def test_second_order_is_the_jvp_of_the_pullback(name):
    f, n, g, r, theta, r_theta = drawn(name, seed=1)

    def pullback(n, theta):
        return f.pullback(g, n, *f.forward(n, theta), theta)

    expected = jax.jvp(pullback, (n, theta), (r, r_theta))[1]
    assert relative_error(f.second_order(g, r, r_theta, n, *f.forward(n, theta), theta), expected) <= 1e-12


@pytest.mark.parametrize("name", ("hardlim", "hardlims"))
def test_perceptrons_have_nothing_to_propagate(name):
    f = activations.get(name)
    assert f.pullback is None and f.pushforward is None and f.second_order is None and not f.smooth


# Kinks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kink", "by_jax", "expected"),
    [
        ("relu", 0.0, jax.nn.relu, 0.0),
        ("shifted_relu", -1.0, lambda n: jax.nn.relu(n + 1) - 1, 0.0),
        ("leaky_relu", 0.0, jax.nn.leaky_relu, 1.0),
        ("leaky_relu(-0.5)", 0.0, lambda n: jax.nn.leaky_relu(n, -0.5), 1.0),
        ("elu", 0.0, jax.nn.elu, 1.0),
        ("elu(0.7)", 0.0, lambda n: jax.nn.elu(n, 0.7), 0.7),
        ("selu", 0.0, jax.nn.selu, 1.0507009873554805 * 1.6732632423543772),
        ("celu(0.7)", 0.0, lambda n: jax.nn.celu(n, 0.7), 1.0),
        ("relu6", 0.0, jax.nn.relu6, 0.0),
        ("relu6", 6.0, jax.nn.relu6, 0.0),
        ("hard_tanh", -1.0, jax.nn.hard_tanh, 1.0),
        ("hard_tanh", 1.0, jax.nn.hard_tanh, 1.0),
        ("hard_sigmoid", -3.0, jax.nn.hard_sigmoid, 0.0),
        ("hard_sigmoid", 3.0, jax.nn.hard_sigmoid, 0.0),
    ],
)
def test_at_the_kink_the_derivative_is_jaxs(name, kink, by_jax, expected):
    f = activations.get(name)
    n = jnp.array([[kink, kink if kink else -0.0]])
    by_hand, _ = f.pullback(jnp.ones_like(n), n, *f.forward(n, {}), {})
    automatic = jax.vjp(lambda n: f.forward(n, {})[0], n)[1](jnp.ones_like(n))[0]
    np.testing.assert_array_equal(by_hand, jnp.full_like(n, expected))
    np.testing.assert_array_equal(by_hand, automatic)
    np.testing.assert_array_equal(by_hand, jax.vjp(by_jax, n)[1](jnp.ones_like(n))[0])


@pytest.mark.parametrize("name", ("prelu", "prelu(layer)"))
def test_at_its_kink_prelu_has_slope_one_and_nothing_to_learn(name):
    f, n, g = activations.get(name), jnp.zeros((1, 3)), jnp.array([[1.0, -2.0, 3.0]])
    theta = {"slope": jnp.full(f.parameters(3, jnp.float64)["slope"].shape, 0.3)}
    by_hand, learned = f.pullback(g, n, *f.forward(n, theta), theta)
    np.testing.assert_array_equal(by_hand, g)
    np.testing.assert_array_equal(learned["slope"].left, jnp.zeros_like(g))
    chex.assert_trees_all_equal((by_hand, summed_like(theta, learned)), jax.vjp(outputs_of(f), n, theta)[1](g))


@pytest.mark.parametrize("pieces", [[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [0.0, -1.0, 0.0], [-3.0, 5.0, 4.0]])
def test_tied_maxout_pieces_share_the_derivative(pieces):
    f, n = activations.get("maxout(3)"), jnp.array([pieces])
    by_hand, _ = f.pullback(jnp.ones((1, 1)), n, *f.forward(n, {}), {})
    np.testing.assert_array_equal(by_hand[0], jax.grad(jnp.max)(n[0]))
    np.testing.assert_array_equal(by_hand, jax.vjp(lambda n: f.forward(n, {})[0], n)[1](jnp.ones((1, 1)))[0])


@pytest.mark.parametrize("name", KINKED)
def test_kink_distance_is_zero_at_the_kink_only(name):
    f, n, _, _, _, _ = drawn(name)
    if f.pieces == 1:
        ends = {"shifted_relu": (-1, -1), "relu6": (0, 6), "hard_tanh": (-1, 1), "hard_sigmoid": (-3, 3)}
        kinks = np.array(ends.get(name, (0, 0)), np.float64)
        expected = np.abs(np.asarray(n)[..., None] - kinks).min(axis=-1)
        at_kink = jnp.asarray(kinks)[None]
    else:
        split = np.asarray(n).reshape(EXAMPLES, NEURONS, f.pieces)
        others = [[[max(np.delete(row, i)) for i in range(f.pieces)] for row in rows] for rows in split]
        expected = np.abs(split - np.array(others)).reshape(n.shape)
        at_kink = jnp.full((1, 2 * f.pieces), 0.5)
    np.testing.assert_allclose(f.kink_distance(n), expected, rtol=2 * EPS)
    assert (np.asarray(f.kink_distance(n)) > 0).all()
    np.testing.assert_array_equal(f.kink_distance(at_kink), jnp.zeros_like(at_kink))


def test_kink_distance_of_maxout_sees_ties_for_the_largest_only():
    f = activations.get("maxout(3)")
    n = jnp.array([[2.0, 2.0, 0.0, 3.0, 1.0, 1.0]])
    np.testing.assert_array_equal(f.kink_distance(n), [[0.0, 0.0, 2.0, 2.0, 2.0, 2.0]])


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_have_no_kink_distance(name):
    assert activations.get(name).kink_distance is None


# Numbers at their limits ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dtype_is_kept_and_large_net_inputs_stay_finite(name, dtype):
    f, n, g, r, theta, r_theta = drawn(name, dtype=dtype)
    large = 1e2 if name in ("glu", "swiglu", "geglu") else 1e4  # of a gate the square is still a float16
    n = (
        n.at[0]
        .set(jnp.asarray(large, dtype))
        .at[1]
        .set(jnp.asarray(-large, dtype))
        .at[2, ::2]
        .set(jnp.asarray(large, dtype))
    )
    n = n.at[3].set(jnp.zeros((), dtype))
    a = f.forward(n, theta)[0]
    results = [a]
    if f.pullback:
        results += jax.tree.leaves(f.pullback(g, n, a, f.forward(n, theta)[1], theta))
        results += jax.tree.leaves(f.pushforward(r, r_theta, n, a, f.forward(n, theta)[1], theta))
        results += jax.tree.leaves(f.second_order(g, r, r_theta, n, a, f.forward(n, theta)[1], theta))
    if f.kink_distance:
        results.append(f.kink_distance(n))
    for result in results:
        assert result.dtype == dtype
        assert np.isfinite(np.asarray(result).astype(np.float64)).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_stays_nan(name):
    f, n, g, _, theta, _ = drawn(name)
    n = n.at[2, 0].set(jnp.nan)
    a = f.forward(n, theta)[0]
    assert np.isnan(a[2, 0])
    assert np.isfinite(np.delete(a, 2, axis=0)).all()


def test_softmax_gives_a_masked_class_exactly_nothing():
    f = activations.get("softmax")
    n = jnp.array([[1.0, -jnp.inf, 2.0], [-jnp.inf, -jnp.inf, 3.0]])
    a = f.forward(n, {})[0]
    by_hand, _ = f.pullback(jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), n, a, f.forward(n, {})[1], {})
    np.testing.assert_array_equal(a == 0, [[False, True, False], [True, True, False]])
    np.testing.assert_array_equal(a[1], [0.0, 0.0, 1.0])
    np.testing.assert_allclose(a[0, ::2], f.forward(n[:1, ::2], {})[0][0], rtol=4 * EPS)
    assert by_hand[0, 1] == 0 and np.isfinite(by_hand).all()


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_lists_what_the_issue_asks_for():
    asked = "linear sigmoid tanh relu shifted_relu leaky_relu prelu elu maxout softmax hardlim hardlims".split()
    asked += "gelu silu softplus softsign selu mish relu6 celu hard_tanh hard_sigmoid".split()
    asked += "max_pool layer_norm rms_norm group_norm batch_norm".split()
    assert set(asked) <= set(activations.names())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_get_gives_back_what_a_name_stands_for(name):
    f = activations.get(name)
    assert activations.get(f) is f
    assert activations.get(name) is f
    again = activations.get(f.name)
    assert (again.name, again.pieces, again.gives) == (f.name, f.pieces, f.gives)


@pytest.mark.parametrize(
    ("alias", "name"),
    [("logsig", "sigmoid"), ("tansig", "tanh"), ("purelin", "linear"), ("poslin", "relu"), ("swish", "silu")],
)
def test_aliases_are_the_same_function(alias, name):
    assert activations.get(alias) is activations.get(name)


@pytest.mark.parametrize(
    ("specification", "at_minus_one"),
    [
        ("leaky_relu", -0.01),
        ("leaky_relu(0.1)", -0.1),
        ("leaky_relu(slope=0.1)", -0.1),
        (" leaky_relu( slope = 0.1 ) ", -0.1),
        ("elu(2)", 2 * np.expm1(-1)),
        ("elu(alpha=2)", 2 * np.expm1(-1)),
    ],
)
def test_constants_are_read_from_the_name(specification, at_minus_one):
    np.testing.assert_allclose(
        activations.get(specification).forward(-jnp.ones((1, 1)), {})[0], [[at_minus_one]], rtol=4 * EPS
    )


def test_maxout_reads_its_pieces_and_prelu_what_shares_a_slope():
    assert activations.get("maxout").pieces == 2
    assert activations.get("maxout(3)").pieces == 3
    np.testing.assert_array_equal(activations.get("prelu").parameters(3, jnp.float32)["slope"], jnp.full(3, 0.25))
    np.testing.assert_array_equal(
        activations.get("prelu(layer, 0.5)").parameters(3, jnp.float32)["slope"], jnp.full(1, 0.5)
    )


@pytest.mark.parametrize("factory", [activations.leaky_relu, activations.elu])
def test_equal_constants_are_the_same_object(factory):
    assert factory(0.1) is factory(0.1)
    assert factory(0.1) is not factory(0.2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("leaky_relu", "leaky_relu(0.01)"),
        ("leaky_relu(0.1)", "leaky_relu(slope=0.1)"),
        ("elu", "elu(1.0)"),
        ("maxout", "maxout(2)"),
        ("prelu", "prelu(neuron, 0.25)"),
    ],
)
def test_equal_constants_are_the_same_object_however_they_are_given(one, other):
    assert activations.get(one) is activations.get(other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rleu", "unknown activation 'rleu'; did you mean 'relu'?"),
        ("sigmod", "did you mean 'sigmoid'?"),
        ("logsg", "did you mean 'logsig'?"),
        ("max_out(3)", "did you mean 'maxout'?"),
        ("qqqqqq", "unknown activation 'qqqqqq' (accepted: "),
        ("", "unknown activation ''"),
        ("leaky_relu(", "did you mean 'leaky_relu'?"),
        ("tanh(3)", "activation 'tanh(3)': too many positional arguments"),
        ("leaky_relu(1, 2)", "too many positional arguments (accepted: leaky_relu(slope"),
        ("leaky_relu(slop=1)", "unexpected keyword argument 'slop'"),
        ("leaky_relu(nan)", "leaky_relu: slope must be a finite number, got nan"),
        ("leaky_relu(steep)", "leaky_relu: slope must be a finite number, got 'steep'"),
        ("elu(inf)", "elu: alpha must be a finite number, got inf"),
        ("celu(0)", "celu: alpha must be a number > 0, got 0"),
        ("gelu(erf)", "gelu: form must be 'exact' or 'tanh', got 'erf'"),
        ("prelu(both)", "prelu: share must be 'neuron' or 'layer', got 'both'"),
        ("prelu(layer, nan)", "prelu: start must be a finite number"),
        ("maxout(1)", "maxout: pieces must be an integer >= 2, got 1"),
        ("maxout(2.5)", "maxout: pieces must be an integer >= 2, got 2.5"),
        ("maxout(-3)", "maxout: pieces must be an integer >= 2, got -3"),
    ],
)
def test_what_is_not_an_activation_is_refused(given, message):
    with pytest.raises(ValueError) as refusal:
        activations.get(given)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_only_names_and_activations_are_accepted():
    with pytest.raises(TypeError, match="activation: expected a name or an Activation, got int"):
        activations.get(3)


def test_a_count_that_is_not_an_integer_is_refused_whatever_was_made_before():
    activations.maxout(2)
    with pytest.raises(ValueError, match="pieces must be an integer"):
        activations.maxout(2.0)


# A new one ------------------------------------------------------------------------------------------------------------


def test_a_new_activation_is_a_few_lines():
    activations.register(
        activations.elementwise("cubic", lambda n: n**3, lambda n, a: 3 * n**2, lambda n, a: 6 * n), aliases=("cube",)
    )
    assert "cubic" in activations.names() and activations.get("cube") is activations.get("cubic")
    f, n, g, r, _, _ = drawn("cubic")
    a, vjp = jax.vjp(lambda n: f.forward(n, {})[0], n)
    np.testing.assert_allclose(f.pullback(g, n, a, f.forward(n, {})[1], {})[0], vjp(g)[0], rtol=8 * EPS)
    assert fnn.Layer("one", 3, "cubic", ("p",)).activation is f


def test_a_new_factory_is_known_with_its_constants():
    @activations.register
    def power(exponent: int = 2):
        return activations.elementwise(
            f"power({exponent})",
            lambda n: n**exponent,
            lambda n, a: exponent * n ** (exponent - 1),
            lambda n, a: exponent * (exponent - 1) * n ** (exponent - 2),
        )

    assert activations.get("power(3)").name == "power(3)"
    np.testing.assert_array_equal(activations.get("power(3)").forward(jnp.full((1, 1), 2.0), {})[0], [[8.0]])


@pytest.mark.parametrize("taken", ["tanh", "tansig"])
def test_a_name_that_is_taken_is_refused(taken):
    with pytest.raises(ValueError, match=f"activation '{taken}' is already registered"):
        activations.register(activations.elementwise(taken, jnp.sin, lambda n, a: jnp.cos(n), lambda n, a: -a))
    with pytest.raises(ValueError, match="already registered"):
        activations.register(
            activations.elementwise("fresh", jnp.sin, lambda n, a: jnp.cos(n), lambda n, a: -a), aliases=(taken,)
        )
    assert "fresh" not in activations.names()


def test_a_name_that_is_no_identifier_is_refused():
    with pytest.raises(ValueError, match="activation name 'my tanh' is not an identifier"):
        activations.register(activations.elementwise("my tanh", jnp.tanh, lambda n, a: 1 - a**2, lambda n, a: a))


# Neurons and examples that are not by themselves ----------------------------------------------------------------------


def _normalized(axis):
    """(n - mean) / deviation over neurons, or over examples: no function of one neuron, or of one example."""

    def forward(n, theta):
        n = n - jnp.mean(n, axis=axis, keepdims=True)
        return n / jnp.sqrt(jnp.mean(n**2, axis=axis, keepdims=True) + 1e-3), None

    def pullback(g, n, a, kept, theta):
        return jax.vjp(lambda n: forward(n, theta)[0], n)[1](g)[0], {}

    def pushforward(r, r_theta, n, a, kept, theta):
        return jax.jvp(lambda n: forward(n, theta)[0], (n,), (r,))[1]

    def second_order(g, r, r_theta, n, a, kept, theta):
        return jax.jvp(lambda n: pullback(g, n, a, kept, theta)[0], (n,), (r,))[1], {}

    return fnn.Activation(f"normalized({axis})", forward, pullback, pushforward, second_order)


OVER_NEURONS, OVER_EXAMPLES = _normalized(1), _normalized(0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_alone_is_what_it_says(name):
    activation = activations.get(name)
    examples, neurons = activations.mixes(activation, (3 * activation.pieces,))
    assert not examples and neurons == (not activation.alone) == (name == "softmax")


def test_mixing_is_found_out():
    assert activations.mixes(OVER_NEURONS, (3,)) == (False, True)
    assert activations.mixes(OVER_EXAMPLES, (3,)) == (True, False)
    for activation in (OVER_NEURONS, OVER_EXAMPLES):
        assert fnn.comparison.compare_activation(activation).verdict == "agree"
    lying = dataclasses.replace(OVER_NEURONS, alone=True)
    with pytest.raises(ValueError, match="says alone=True, but a neuron's output depends on other neurons'"):
        fnn.comparison.compare_activation(lying)


def test_what_looks_at_single_examples_refuses_those_that_are_mixed():
    network = fnn.multilayer((2, 3, 1), (OVER_EXAMPLES, "linear"))
    params, x, t = network.init(jax.random.key(0)), jnp.eye(2), jnp.ones((2, 1))
    assert fnn.compare(network, "mean_square_error", params, x, t, second_opinions=False, jit=False).verdict == "agree"
    for quantity in (fnn.quantities.per_example_norms, jax.jit(fnn.quantities.variance, static_argnums=(0, 1))):
        with pytest.raises(ValueError, match="mixes examples: .* no quantity of single examples is to be had"):
            quantity(network, "mean_square_error", params, x, t)


def test_padding_asks_whether_each_neuron_is_alone():
    def build(width):
        return fnn.multilayer((2, width, 1), (OVER_NEURONS, "linear"))

    data = jnp.ones((4, 2)), jnp.ones((4, 1))
    with pytest.raises(ValueError, match="pad: a layer with activation 'normalized.1.', which mixes neurons"):
        fnn.training.fit_population(
            build, "mean_square_error", "gd", {"width": [2, 3]}, data, key=jax.random.key(0), epochs=1, pad=True
        )


@pytest.mark.parametrize("hidden", [OVER_NEURONS, "softmax", "maxout(2)", "tanh"])
def test_saturation_is_of_each_neurons_own_slope(hidden):
    network = fnn.multilayer((2, 3, 1), (hidden, "linear"))
    params = network.init(jax.random.key(0))
    x, t = np.random.default_rng(0).normal(size=(5, 2)), np.ones((5, 1))
    limit = 0.3
    layer, n = network.layers[0], network.forward(params, x).net_inputs["layer1"]
    jacobian = jax.jit(jax.jacobian(lambda n: layer.activation.forward(n, {})[0]))
    slopes = np.einsum("qiqik->qi", jacobian(n).reshape(5, 3, 5, 3, -1))
    statistics = functools.partial(fnn.quantities.layer_statistics, network, "mean_square_error", saturation=limit)
    found = jax.jit(statistics)(params, x, t)["layer1"]
    assert float(found.saturated) == pytest.approx(np.mean(np.abs(slopes) < limit), abs=1e-12)


def test_an_activation_without_second_derivative_trains_and_has_no_hessian():
    bent = activations.elementwise("bent", lambda n: n**3, lambda n, a: 3 * n**2)
    assert fnn.comparison.compare_activation(bent).verdict == "agree"
    network = fnn.multilayer((2, 3, 1), (bent, "linear"))
    params, x, t = network.init(jax.random.key(0)), jnp.eye(2), jnp.ones((2, 1))
    assert fnn.compare(network, "mean_square_error", params, x, t, second_opinions=False, jit=False).verdict == "agree"
    with pytest.raises(ValueError, match="layer 'layer1': 'bent' has no second derivative, which Hessians need"):
        fnn.curvature.hessian(network, "mean_square_error", params, x, t)
    fnn.curvature.products(network, "mean_square_error", params, x, t, "gauss_newton")(params)


def test_a_learned_parameter_has_a_name_without_a_slash():
    clash = dataclasses.replace(activations.get("tanh"), parameters=lambda size, dtype: {"a/b": jnp.ones(size, dtype)})
    with pytest.raises(ValueError, match="layer 'x': activation 'tanh' calls a learned parameter 'a/b'; it needs an"):
        fnn.Layer("x", 2, clash)


@pytest.mark.parametrize("name", ["weights", "bias"])
def test_a_learned_parameter_may_have_the_name_of_another(name):
    """Both have a place of their own: a shift called "bias", a layer with a bias, all gradients right."""

    def share(g):
        return {name: connections.Factors(g, None)}

    shifted = fnn.Activation(
        "shifted",
        lambda n, theta: (jnp.tanh(n) + theta[name][None, :], None),
        lambda g, n, a, kept, theta: (g * (1 - jnp.tanh(n) ** 2), share(g)),
        lambda r, r_theta, n, a, kept, theta: r * (1 - jnp.tanh(n) ** 2) + r_theta[name][None, :],
        lambda g, r, r_theta, n, a, kept, theta: (
            -2 * g * r * jnp.tanh(n) * (1 - jnp.tanh(n) ** 2),
            share(jnp.zeros_like(g)),
        ),
        parameters=lambda size, dtype: {name: jnp.full(size, 0.5, dtype)},
    )
    assert fnn.comparison.compare_activation(shifted).verdict == "agree"
    network = fnn.graph(
        inputs={"p": 3},
        layers=[fnn.Layer("first", 4, shifted, ("p",)), fnn.Layer("second", 2, "softmax", ("first",))],
    )
    params = network.init(jax.random.key(0), jnp.float64)
    assert params["first"]["learned"][name].shape == (4,) and params["first"]["bias"].shape == (4,)
    x, t = jnp.linspace(-1, 1, 15).reshape(5, 3), jnp.arange(5) % 2
    assert fnn.compare(network, fnn.losses.cross_entropy(), params, x, t).verdict == "agree"
    norms = fnn.quantities.per_example_norms(network, "cross_entropy", params, x, t)
    each = fnn.quantities.per_example_gradients(network, "cross_entropy", params, x, t)
    squares = sum(jnp.sum(leaf.reshape(5, -1) ** 2, axis=1) for leaf in jax.tree.leaves(each))
    np.testing.assert_allclose(norms**2, squares, rtol=1e-12)
