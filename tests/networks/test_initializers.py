"""The laws that weights follow at the start of training, and the defaults that suit each activation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, TRAINABLE

import functional_nn as fnn
from functional_nn import activations, initializers
from functional_nn.precision import at_least_float32

KEY = jax.random.key(0)
ROWS, FAN_IN, FAN_OUT = 300, 400, 150  # as of a maxout layer of two pieces: rows and neurons differ
COUNT = ROWS * FAN_IN

# the variance of each initializer, and its distribution
VARIANCES = {
    "normal(0.3)": (0.3**2, "normal"),
    "uniform(0.3)": (0.3**2 / 3, "uniform"),
    "xavier_uniform": (2 / (FAN_IN + FAN_OUT), "uniform"),
    "xavier_normal": (2 / (FAN_IN + FAN_OUT), "normal"),
    "he_uniform": (2 / FAN_IN, "uniform"),
    "he_normal": (2 / FAN_IN, "normal"),
    "lecun_uniform": (1 / FAN_IN, "uniform"),
    "lecun_normal": (1 / FAN_IN, "normal"),
}


def draw(name, rows=ROWS, fan_in=FAN_IN, fan_out=FAN_OUT, dtype=jnp.float64, key=KEY):
    return initializers.get(name).draw(key, rows, fan_in, fan_out, dtype)


# Laws -----------------------------------------------------------------------------------------------------------------


def test_every_initializer_is_covered_here():
    covered = {name.partition("(")[0] for name in VARIANCES} | {"zeros", "constant", "nguyen_widrow"}
    assert covered == set(initializers.names())


@pytest.mark.parametrize("name", VARIANCES)
def test_weights_have_the_variance_of_the_text(name):
    variance, law = VARIANCES[name]
    weights, bias = (np.asarray(x) for x in draw(name))
    kurtosis = {"normal": 3, "uniform": 9 / 5}[law]
    # Of COUNT draws the mean deviates by sqrt(variance / COUNT), the variance by variance sqrt((kurtosis - 1) / COUNT);
    # five of those. The kurtosis itself tells the two laws apart by far more than its error.
    assert abs(weights.mean()) <= 5 * np.sqrt(variance / COUNT)
    assert abs(weights.var() / variance - 1) <= 5 * np.sqrt((kurtosis - 1) / COUNT)
    assert abs((weights**4).mean() / variance**2 - kurtosis) <= 0.15
    if law == "uniform":
        limit = np.sqrt(3 * variance)
        # the largest of COUNT uniform draws falls short of the limit by limit / COUNT in the mean
        assert limit * (1 - 20 / COUNT) <= np.abs(weights).max() <= limit
    np.testing.assert_array_equal(bias, np.zeros(ROWS))


@pytest.mark.parametrize("name", VARIANCES)
def test_draws_do_not_repeat_themselves(name):
    weights = np.asarray(draw(name)[0])
    assert len(np.unique(weights)) == COUNT
    # The correlation of two rows of FAN_IN independent draws deviates by 1 / sqrt(FAN_IN); six of those for the
    # largest of 299.
    neighbours = [np.corrcoef(weights[i], weights[i + 1])[0, 1] for i in range(ROWS - 1)]
    assert np.abs(neighbours).max() <= 6 / np.sqrt(FAN_IN)


@pytest.mark.parametrize(
    ("name", "value"), [("zeros", 0.0), ("constant", 0.1), ("constant(-2)", -2.0), ("constant(0)", 0.0)]
)
def test_constants_are_constant(name, value):
    weights, bias = draw(name)
    np.testing.assert_array_equal(weights, np.full((ROWS, FAN_IN), value))
    np.testing.assert_array_equal(bias, np.zeros(ROWS))


@pytest.mark.parametrize(("rows", "fan_in"), [(5, 1), (8, 2), (20, 3), (100, 10), (1, 4)])
def test_nguyen_widrow_rows_have_their_length_and_biases_their_spread(rows, fan_in):
    weights, bias = (np.asarray(x) for x in draw("nguyen_widrow", rows, fan_in, rows))
    length = 0.7 * rows ** (1 / fan_in)
    np.testing.assert_allclose(np.linalg.norm(weights, axis=1), length, rtol=8 * np.finfo(float).eps)
    spread = length * np.linspace(-1, 1, rows) if rows > 1 else np.zeros(1)
    np.testing.assert_allclose(bias, spread * np.sign(weights[:, 0]), rtol=8 * np.finfo(float).eps, atol=1e-15)


def test_nguyen_widrow_tiles_the_inputs():
    """Of one input: the neurons' centres -b/w are evenly spaced over [-1, 1]."""
    weights, bias = draw("nguyen_widrow", 9, 1, 9)
    np.testing.assert_allclose(np.sort(np.ravel(-bias / weights[:, 0])), np.linspace(-1, 1, 9), atol=1e-15)


@pytest.mark.parametrize("rows", [2, 50])
def test_nguyen_widrow_directions_have_no_preference(rows):
    weights = np.concatenate(
        [np.asarray(draw("nguyen_widrow", rows, 4, rows, key=key)[0]) for key in jax.random.split(KEY, 40)]
    )
    directions = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    # A coordinate of a random direction in R^4 has variance 1/4; five deviations of the mean of 40 rows of them.
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=5 * 0.5 / np.sqrt(40 * rows))


# In a network ---------------------------------------------------------------------------------------------------------


def test_fan_in_counts_all_sources_of_a_junction():
    layers = [fnn.Layer("output", 200, "linear", ("p1", "p2", "p3"), initializer="lecun_normal")]
    network = fnn.graph(inputs={"p1": 300, "p2": 80, "p3": 20}, layers=layers)
    weights = network.init(KEY)["output"]["weights"]
    for source, width in network.inputs:
        assert weights[source].shape == (200, width)
        # variance 1/400 whatever the source's own width; sqrt(2 / draws) is the deviation of a normal's variance
        assert abs(float(jnp.var(weights[source])) * 400 - 1) <= 5 * np.sqrt(2 / (200 * width))


def test_fan_out_counts_neurons_and_not_pieces():
    network = fnn.multilayer((100, 200), ("maxout(3)",), initializer="xavier_normal")
    weights = network.init(KEY)["layer1"]["weights"]["input"]
    assert weights.shape == (600, 100)
    assert abs(float(jnp.var(weights)) * (100 + 200) / 2 - 1) <= 5 * np.sqrt(2 / weights.size)


@pytest.mark.parametrize("bias", ["per_neuron", "none"])
def test_nguyen_widrow_in_a_network(bias):
    network = fnn.multilayer((2, 6, 1), ("tanh", "linear"), bias=bias, initializer=("nguyen_widrow", None))
    params = network.init(KEY)["layer1"]
    np.testing.assert_allclose(np.linalg.norm(params["weights"]["input"], axis=1), 0.7 * np.sqrt(6), rtol=1e-15 * 8)
    assert ("bias" in params) == (bias == "per_neuron")


@pytest.mark.parametrize("name", TRAINABLE)
def test_each_activation_has_a_suitable_default(name):
    base = name.partition("(")[0]
    like_relu = base in "relu shifted_relu leaky_relu prelu elu maxout softplus silu mish gelu celu relu6".split()
    expected = "lecun_normal" if base == "selu" else "he_normal" if like_relu else "xavier_uniform"
    assert activations.get(name).initializer == expected
    assert fnn.Layer("one", 2, name).initializer is initializers.get(expected)


def test_the_variance_of_the_activations_survives_many_layers():
    """What He and Xavier are for: through ten wide layers nothing explodes and nothing dies."""
    inputs = jax.random.normal(KEY, (64, 256))
    for activation, low, high in [("relu", 0.5, 2.0), ("tanh", 0.05, 1.0)]:
        network = fnn.multilayer((256,) * 11, (activation,) * 10)
        outputs = network.apply(network.init(KEY), inputs)
        assert low <= float(jnp.mean(outputs**2)) <= high


# Dtypes, keys, names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", initializers.names())
def test_dtype_is_the_requested_one(name, dtype):
    weights, bias = draw(name, 6, 5, 6, dtype)
    assert weights.dtype == bias.dtype == dtype
    assert weights.shape == (6, 5) and bias.shape == (6,)
    assert np.isfinite(np.asarray(weights).astype(float)).all()


@pytest.mark.parametrize("name", [*VARIANCES, "nguyen_widrow"])
def test_draws_in_sixteen_bits_are_draws_in_thirty_two_rounded(name):
    wide, narrow = draw(name, 20, 10, 20, jnp.float32)[0], draw(name, 20, 10, 20, jnp.bfloat16)[0]
    np.testing.assert_array_equal(wide.astype(jnp.bfloat16), narrow)


@pytest.mark.parametrize("name", [*VARIANCES, "nguyen_widrow"])
def test_draws_are_a_function_of_the_key(name):
    first, again, other = (draw(name, 20, 10, 20, key=key)[0] for key in (KEY, jax.random.key(0), jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize("name", [*initializers.names(), *VARIANCES, "constant(-2)"])
def test_equal_choices_are_the_same_object(name):
    assert initializers.get(name) is initializers.get(name)
    assert initializers.get(initializers.get(name)) is initializers.get(name)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("he_norml", ValueError, "unknown initializer 'he_norml'; did you mean 'he_normal'?"),
        ("xavier", ValueError, "unknown initializer 'xavier'; did you mean 'xavier_"),
        ("constant(nan)", ValueError, "constant: value must be a finite number, got nan"),
        ("constant(big)", ValueError, "constant: value must be a finite number, got 'big'"),
        ("normal(0)", ValueError, "normal: deviation must be a positive number, got 0"),
        ("normal(-1)", ValueError, "normal: deviation must be a positive number, got -1"),
        ("uniform(inf)", ValueError, "uniform: limit must be a positive number, got inf"),
        ("uniform(1, 2)", ValueError, "too many positional arguments"),
        ("he_normal(2)", ValueError, "too many positional arguments"),
        (0.1, TypeError, "initializer: expected a name or an Initializer, got float"),
    ],
)
def test_other_things_than_initializers_are_refused(given, error, message):
    with pytest.raises(error) as refusal:
        initializers.get(given)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_new_initializer_is_a_few_lines():
    @initializers.register
    def identity():
        return initializers.Initializer(
            "identity",
            lambda key, rows, fan_in, fan_out, dtype: (jnp.eye(rows, fan_in, dtype=dtype), jnp.ones(rows, dtype)),
        )

    network = fnn.multilayer((3, 3), ("linear",), initializer="identity")
    np.testing.assert_array_equal(network.apply(network.init(KEY), jnp.eye(3)), np.eye(3) + 1)


def test_a_name_that_is_taken_is_refused():
    def he_normal():
        raise AssertionError

    with pytest.raises(ValueError, match="initializer 'he_normal' is already registered"):
        initializers.register(he_normal)


# Compiled and not, wide and narrow ------------------------------------------------------------------------------------


@pytest.mark.newest
@pytest.mark.sampled(every=4)
@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (64, 65)])  # 64 x 64 are drawn at a time
@pytest.mark.parametrize("name", ["normal(0.3)", "he_normal", "uniform(0.3)", "xavier_uniform", "constant(0.2)"])
def test_weights_drawn_each_by_itself_are_the_same_however_they_are_drawn(name, dtype, shape):
    initializer, dtype = initializers.get(name), jnp.dtype(dtype)

    def drawn(key):
        return initializer.draw(key, *shape, 5, dtype)[0]

    wide = at_least_float32(dtype)
    each = initializer.each
    simply = each.weights(KEY, shape, each.spread(shape[1], 5), wide).astype(dtype)
    ways = [drawn(KEY), jax.jit(drawn)(KEY), jax.jit(lambda: drawn(KEY))(), jax.vmap(drawn)(KEY[None])[0]]
    for way in ways:
        np.testing.assert_array_equal(way, simply)
        assert way.dtype == dtype


def test_layers_of_many_shapes_are_drawn_by_one_program():
    compiled = []

    def count(name, seconds, fun_name=None, **more):
        compiled.extend([fun_name] if name.endswith("backend_compile_duration") else [])

    first = draw("xavier_uniform", 17, 19)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        others = [draw("xavier_uniform", rows, 31)[0] for rows in range(40, 50)]
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert compiled == [] and first[0].shape == (17, 19) and [len(x) for x in others] == list(range(40, 50))
