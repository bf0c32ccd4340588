"""Initial parameters of a padded population: what each narrow network draws by itself, drawn by one program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import activations, initializers, training
from functional_nn.training import initial_parameters, keys, members, padding

pytestmark = [pytest.mark.usefixtures("brisk"), pytest.mark.newest]

KEY, Q = jax.random.key(5), 6
DRAW = np.random.default_rng(0)
PICTURES, VECTORS = DRAW.normal(size=(Q, 5, 5, 2)), DRAW.normal(size=(Q, 3))
TARGETS = np.eye(2)[DRAW.integers(0, 2, Q)]


def chain(initializer=None, activation="tanh"):
    return lambda width: fnn.multilayer(
        (3, width, 2 * width, 2), (activation, "tanh", "softmax"), initializer=initializer
    )


def convolutional(width):
    layers = [
        fnn.Layer("first", width, "relu", [("image", "conv((3, 3))")]),
        fnn.Layer("second", width + 1, "sigmoid", [("first", "conv((2, 2))"), ("image", "conv((4, 4))")]),
        fnn.Layer("pooled", width + 1, "linear", [("second", "mean_pool")], bias="none"),
        fnn.Layer("output", 2, "softmax", ["pooled"], initializer="lecun_normal"),
    ]
    return fnn.graph(inputs={"image": (5, 5, 2)}, layers=layers)


def joined(width):
    """Layers that read several others, of which the first is not always the one that is padded."""
    layers = [
        fnn.Layer("left", width, "relu", ["input"]),
        fnn.Layer("right", 7 - width, "tanh", ["input"], bias="shared", initializer="normal(0.7)"),
        fnn.Layer("both", 3, "sigmoid", ["left", "input", "right"], initializer="xavier_normal"),
        fnn.Layer("output", 2, "softmax", ["both", "left"], initializer="uniform(0.3)"),
    ]
    return fnn.graph(inputs={"input": 3}, layers=layers)


def group(network, widths, seeds=None, key=KEY):
    """The one group of a padded population."""
    columns = {"width": np.array(widths), "seed": np.arange(len(widths)) if seeds is None else np.array(seeds)}
    inputs = PICTURES if network(2).inputs[0][0] == "image" else VECTORS
    settings = {"loss": "cross_entropy", "stop": (), "gradient": "manual", "correct": None, "track": (), "augment": ()}
    specification = members.Specification(
        network=network,
        optimizer="gd(0.1)",
        columns=columns,
        data=(inputs, TARGETS),
        key=key,
        epochs=1,
        settings=settings,
        pad=True,
    )
    (found,) = members.grouped(specification)
    return found


def counting_programs(draw):
    """The result of `draw`, and how many programs were compiled for it."""
    counted = []

    def count(name, seconds, **more):
        counted.append(name)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        return draw(), sum(name.endswith("backend_compile_duration") for name in counted)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def initial_of(found):
    """Each member's initial parameters, in its own shapes."""
    initial = jax.tree.map(np.asarray, found.initial(np.arange(len(found.members))))
    return [
        padding.unpadded(network, jax.tree.map(lambda x, place=place: x[place], initial))
        for place, network in enumerate(found.networks)
    ]


def alone_of(found):
    """The parameters that each member's network draws by itself."""
    return [network.init(keys.parameters(key)) for network, key in zip(found.networks, found.keys, strict=True)]


def check_initial(found):
    """Each member's parameters are bitwise what its own network draws, and the padding is 0."""
    initial = found.initial(np.arange(len(found.members)))
    for place, (own, alone) in enumerate(zip(initial_of(found), alone_of(found), strict=True)):
        jax.tree.map(np.testing.assert_array_equal, own, alone)
        padded = jax.tree.map(lambda x, place=place: x[place], initial)
        nonzero = [sum(int((x != 0).sum()) for x in jax.tree.leaves(tree)) for tree in (padded, alone)]
        assert nonzero[0] == nonzero[1] > 0


@pytest.mark.parametrize(
    "network",
    [
        *map(chain, (None, "he_normal", "xavier_uniform", "normal(0.3)", "constant(0.2)")),
        chain(activation="maxout(2)"),
        chain(activation="prelu"),
        convolutional,
        joined,
    ],
)
def test_a_padded_member_begins_with_the_parameters_of_its_own_network(network):
    found = group(network, [2, 5, 3, 5])
    assert initial_parameters.corners_of(found.network, found.networks) is not None
    check_initial(found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_padded_member_begins_so_in_float32_and_float64(dtype):
    with jax.enable_x64(dtype == "float64"):
        found = group(chain("he_normal"), [2, 5])
        assert found.initial(np.arange(2))["layer1"]["bias"].dtype == dtype
        check_initial(found)


@pytest.mark.parametrize("initializer", ["he_normal", "normal(0.3)", "xavier_uniform"])
def test_scaled_parameters_are_bitwise_the_draws_times_the_scale(initializer):
    """Drawn with others or alone: the compiler must not join the scale with a factor of the draw."""
    found = group(chain(initializer), [2, 5, 7, 3])
    scaled = found._replace(scales=np.array([0.1, 2.0, 0.37, 1.3], found.scales.dtype))
    together, alone = initial_of(scaled), alone_of(found)
    for place, scale in enumerate(scaled.scales):
        single = jax.tree.map(lambda x: x[0], scaled.initial(np.array([place])))
        for own in (together[place], padding.unpadded(found.networks[place], single)):
            for name, layer in own.items():
                for source, w in layer["weights"].items():
                    np.testing.assert_array_equal(w, np.asarray(alone[place][name]["weights"][source]) * scale)


def test_one_program_draws_for_64_widths():
    found = group(chain(), np.arange(8, 136, 2))
    # and a few that split keys and test how they draw
    assert counting_programs(lambda: found.initial(np.arange(64)))[1] <= 10
    own, alone = initial_of(found)[7], found.networks[7].init(keys.parameters(found.keys[7]))
    jax.tree.map(np.testing.assert_array_equal, own, alone)
    others = group(chain(), [134, *range(9, 134, 2)])  # padded to the same network
    assert others.network == found.network and others.networks != found.networks
    assert counting_programs(lambda: others.initial(np.arange(64)))[1] == 0


def numbered(key, rows, fan_in, fan_out, dtype):
    """Weights that depend on their number."""
    return jnp.arange(rows * fan_in, dtype=dtype).reshape(rows, fan_in) / (rows * fan_in), jnp.zeros(rows, dtype)


@pytest.mark.parametrize("initializer", ["nguyen_widrow", initializers.Initializer("numbered", numbered)])
def test_weights_that_depend_on_their_number_are_drawn_by_one_program_a_structure(initializer):
    found = group(chain(initializer), [2, 4, 2])
    assert initial_parameters.corners_of(found.network, found.networks) is None
    for own, alone in zip(initial_of(found), alone_of(found), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-14), own, alone)  # compiled and not


def test_learned_parameters_that_are_not_a_corner_are_drawn_by_one_program_a_structure():
    def slopes(size, dtype):
        return {"slope": jnp.linspace(0.1, 0.9, size, dtype=dtype)}

    prelu = activations.get("prelu")
    leaning = dataclasses.replace(prelu, name="leaning", parameters=slopes)
    found = group(chain(activation=leaning), [2, 4])
    assert initial_parameters.corners_of(found.network, found.networks) is None
    check_initial(found)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_whose_draws_depend_on_the_shape_draw_by_one_program_a_structure(impl):
    """Such keys draw other numbers for several members than for one."""
    key = jax.random.key(0, impl=impl)
    assert not initializers.draws_by_place(key) and initializers.draws_by_place(KEY)
    for place, params in enumerate(initial_of(group(chain(), [2, 4], key=key))):
        assert params["layer1"]["weights"]["input"].shape == (2 + 2 * place, 3)
        assert all((w != 0).all() for layer in params.values() for w in layer["weights"].values())


def test_keys_draw_by_one_program_a_structure_if_jax_is_set_so():
    before = jax.config.jax_threefry_partitionable
    try:
        jax.config.update("jax_threefry_partitionable", False)
        assert not initializers.draws_by_place(KEY)
        check_initial(group(chain(), [2, 4]))
    finally:
        jax.config.update("jax_threefry_partitionable", before)


def test_a_padded_population_begins_with_these_parameters():
    found = training.fit_population(
        chain("he_normal"),
        "cross_entropy",
        "gd(0.1)",
        {"width": [2, 3], "seed": [0, 1]},
        (VECTORS, TARGETS),
        key=KEY,
        epochs=1,
        pad=True,
    )
    for member, width in enumerate((2, 3)):
        alone = chain("he_normal")(width).init(keys.parameters(keys.member(KEY, member)))
        jax.tree.map(np.testing.assert_array_equal, found.initial_params(member), alone)
