"""Every quantity equals its autodiff definition: one example, one output and one column at a time."""

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import GRAPHS, OUTPUT_PAIRS, PROVED, problem, random_params, relative_error
from quantity_cases import KEY, LOSS, MAX_NORM, NETWORK, assert_equal, definitions, measured

import functional_nn as fnn
from functional_nn import quantities
from functional_nn.gradients import views

# Every loss once, and every family of activations in the hidden layers and in the output, on the graph that has
# everything. Run eagerly, and in few shapes: what costs is to compile each operation the first time it meets a shape.
SAMPLE = [
    ("tanh", "softmax", "cross_entropy(mean)"),
    ("tanh", "sigmoid", "cross_entropy(sum)"),
    ("sigmoid", "sigmoid", "binary_cross_entropy(sum)"),
    ("elu", "softmax", "kullback_leibler(mean)"),
    ("prelu", "softmax", "symmetric_kullback_leibler(sum)"),
    ("maxout", "softmax", "bhattacharyya(mean)"),
    ("softmax", "linear", "mean_square_error(mean)"),
    ("relu", "tanh", "sum_square_error(sum)"),
    ("prelu(layer)", "maxout", "half_sum_square_error(mean)"),
    ("leaky_relu", "prelu", "hinge(mean)"),
    ("shifted_relu", "elu", "multiclass_hinge(sum)"),
    ("linear", "prelu(layer)", "logistic(mean)"),
]


def covering():
    """Each (output, loss) pair once, graph and hidden activation going round; and both reductions."""
    graphs = [name for name in GRAPHS if name != "width one"]  # there softmax is constantly 1, the rest rounding of 0
    for i, (output, loss) in enumerate(OUTPUT_PAIRS):
        yield graphs[i % len(graphs)], PROVED[(3 * i + 1) % len(PROVED)], output, f"{loss}({('mean', 'sum')[i % 2]})"


CASES = [
    pytest.param("fan-out and skip", *case, id="-".join(case), marks=() if i % 8 == 0 else pytest.mark.slow)
    for i, case in enumerate(SAMPLE)
]


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(("graph", "hidden", "output", "loss"), CASES)
def test_quantities_are_their_definitions(graph, hidden, output, loss):
    network, loss = GRAPHS[graph][0](hidden, output), fnn.losses.get(loss)
    params, inputs, targets = problem(network, loss, 1, 5)
    assert_equal(measured(network, loss, params, inputs, targets), definitions(network, loss, params, inputs, targets))


@pytest.mark.slow
@pytest.mark.parametrize("graph", [name for name in GRAPHS if name != "width one"])
@pytest.mark.parametrize("output", PROVED)
def test_quantities_are_their_definitions_for_the_full_product(graph, output):
    build, examples = GRAPHS[graph]
    for i, loss in enumerate(loss for f, loss in OUTPUT_PAIRS if f == output):
        for hidden in (PROVED[i % len(PROVED)], "tanh", "sigmoid"):
            network, loss_ = build(hidden, output), fnn.losses.get(loss)
            data = problem(network, loss_, 2, examples)
            assert_equal(measured(network, loss_, *data), definitions(network, loss_, *data))


def test_quantities_of_a_network_with_all_kinds_of_layers(data, expected):
    assert_equal(measured(NETWORK, LOSS, *data), expected)


@pytest.mark.parametrize("block", [pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.slow
def test_blocks_change_nothing(data, expected, block):
    """Three blocks of two, or two of three, for five examples: the sixth is a filler."""
    assert_equal(measured(NETWORK, LOSS, *data, block=block), expected)


@pytest.mark.parametrize(
    ("reduction", "block"), [("mean", None), ("sum", None), pytest.param("sum", 2, marks=pytest.mark.slow)]
)
def test_weights_enter_every_sum(data, reduction, block):
    loss = fnn.losses.cross_entropy(reduction)
    weights = jnp.array([0.5, 2.0, 0.0, 1.0, 3.0])
    expected = definitions(NETWORK, loss, *data, weights)
    del expected["input_gradients"], expected["jacobian"]  # those of an example of weight 0 are 0, the others have none
    assert_equal(measured(NETWORK, loss, *data, weights, block=block), expected)


@pytest.mark.slow
def test_an_example_of_weight_0_does_not_count(data):
    params, inputs, targets = data
    few = jax.tree.map(lambda x: x[:3], inputs), targets[:3]
    weights = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])
    names = ("clipped_gradient", "noise_scale", "kflr", "layer_statistics")
    options = {"max_norm": MAX_NORM, "noise_multiplier": 1.5, "key": KEY}
    of = jax.jit(
        lambda *args, weights=None: quantities.compute(NETWORK, LOSS, *args, names, weights=weights, **options)
    )
    padded, alone = of(*data, weights=weights), of(params, *few)
    for name in names:
        assert relative_error(padded[name], alone[name]) <= 1e-12


@pytest.mark.slow
def test_jit_and_vmap_and_32_bits(data, expected):
    """One compiled program over a population, in float32, against float64."""
    params, inputs, targets = data
    other = random_params(NETWORK, jax.random.key(11))
    names = ("per_example_norms", "clipped_gradient", "variance", "tangent_kernel", "gauss_newton_diagonal", "kflr")

    def both(params):
        return quantities.compute(NETWORK, LOSS, params, inputs, targets, names, max_norm=MAX_NORM)

    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]).astype(jnp.float32), params, other)
    found = jax.jit(jax.vmap(both))(stacked)
    for member, one in enumerate((params, other)):
        apart = relative_error(jax.tree.map(lambda x, m=member: x[m], found), both(one))
        assert apart <= 1e-5  # about 100 roundings of 6e-8 in each number, in the norm over all of them
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_half_precision_keeps_squares_in_32_bits(data, dtype):
    """Squares of gradients of 1e-5 are nothing in float16."""
    params, inputs, targets = data
    small = jax.tree.map(lambda x: x.astype(dtype), params)
    names = ("per_example_norms", "variance", "clipped_gradient")
    found = jax.jit(lambda *args: quantities.compute(NETWORK, LOSS, *args, names, max_norm=1.0))(small, inputs, targets)
    exact = quantities.compute(NETWORK, LOSS, params, inputs, targets, ("per_example_norms", "variance"))
    assert found["per_example_norms"].dtype == jnp.float32
    for name in exact:
        assert relative_error(found[name], exact[name]) < 0.05
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found["clipped_gradient"]))


def test_quantities_together_are_each_alone(data):
    for name in ("per_example_norms", "variance", "kflr", "layer_statistics", "noise_scale", "per_example_losses"):
        together = quantities.compute(NETWORK, LOSS, *data, (name, "gradient"))[name]
        chex.assert_trees_all_equal(together, getattr(quantities, name)(NETWORK, LOSS, *data))


def test_each_sweep_runs_once(data, monkeypatch):
    count = []
    sweep = views.backprop.sweep
    monkeypatch.setattr(views.backprop, "sweep", lambda *args: count.append(1) or sweep(*args))
    names = ("gradient", "per_example_norms", "variance", "inner_products", "noise_scale", "layer_statistics")
    quantities.compute(NETWORK, LOSS, *data, names)
    assert len(count) == 1
    quantities.compute(NETWORK, LOSS, *data, ("jacobian", "tangent_kernel", "tangent_kernel_trace"))
    assert len(count) == 2
