"""Every quantity equals its autodiff definition: what one backward sweep gives, against one example, one output and one
column at a time.

The definitions below see a network only through `jax.grad`, `jax.jacobian` and `jax.hessian` of plain JAX, flatten
what they find to matrices (Q, P) and (Q, S, P), and go on in NumPy. What meets many shapes only once is compiled whole:
that takes a third of the time that its operations take one by one.
"""

import dataclasses
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    GRAPHS,
    OUTPUT_PAIRS,
    PROVED,
    chain,
    inputs_for,
    problem,
    random_params,
    reference_gradient,
    relative_error,
)
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn import quantities
from functional_nn.gradients import views

TOLERANCE = 1e-10
MAX_NORM = 0.3

# one network whose layers have all that layers may have, for what needs no product of cases
NETWORK = fnn.graph(
    inputs={"p1": 2, "p2": 3},
    layers=[
        fnn.Layer("first", 4, "tanh", ("p1",)),
        fnn.Layer("second", 2, "prelu(layer)", ("first", "p2"), bias="shared"),
        fnn.Layer("third", 4, "prelu", ("second", "first", "p1"), bias="none"),
        fnn.Layer("fourth", 2, "maxout", ("third",)),
        fnn.Layer("output", 3, "softmax", ("fourth", "first", "p2")),
    ],
)
LOSS = fnn.losses.cross_entropy()
KEY = jax.random.key(7)


# Definitions ----------------------------------------------------------------------------------------------------------


def rows(tree, lead=1):
    """A tree of (Q, ..., *shape) as one NumPy array (Q, ..., P), in `ravel_pytree`'s order."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def each_gradient(network, loss, params, inputs, targets):
    """(Q, P): jax.grad of one example's loss after the other."""
    objective = fnn.objective(network, fnn.losses.get(f"{loss.name}(sum)"))

    def alone(params, x, t):
        return objective(params, jax.tree.map(lambda v: v[None], x), t[None])

    return rows(jax.jit(jax.vmap(jax.grad(alone), (None, 0, 0)))(params, inputs, targets))


def each_jacobian(network, read, params, inputs):
    """(Q, S, P): jax.jacobian of the last layer's outputs or net inputs."""

    def alone(params, x):
        trace = network.forward(params, jax.tree.map(lambda v: v[None], x))
        return getattr(trace, {"outputs": "activations"}.get(read, read))[network.output.name][0]

    return rows(jax.jit(jax.vmap(jax.jacrev(alone), (None, 0)))(params, inputs), 2)


def each_curvature(network, loss, read, params, inputs, targets):
    """(Q, S, S): jax.hessian of one example's loss by the outputs or net inputs of the last layer."""
    name = network.output.name

    def value(x, t):
        if read == "net_inputs":
            return loss.fused_with(network.output.activation).value(x[None], t[None])[0]
        return loss.example_value(x[None], t[None])[0]

    def curvature(params, inputs, targets):
        trace = network.forward(params, inputs)
        read_at = (trace.net_inputs if read == "net_inputs" else trace.activations)[name]
        return jax.vmap(jax.hessian(value))(read_at, targets)

    return np.asarray(jax.jit(curvature)(params, inputs, targets))


def each_sensitivity(network, function, params, inputs):
    """{layer: d function(trace) / dn}, from autodiff by an offset of zeros; function gives (Q,) or (Q, S)."""
    count = len(jax.tree.leaves(inputs)[0])
    zeros = {layer.name: jnp.zeros((count, layer.rows)) for layer in network.layers}
    found = jax.jit(jax.jacrev(lambda offsets: function(network.forward(params, inputs, offsets))))(zeros)
    # d of example q by the offset of example q
    return {name: np.asarray(jnp.einsum("q...qs->q...s", value)) for name, value in found.items()}


def share_of(loss, weights):
    """(part (Q,), share (Q,)) by hand: the parts sum to 1; the shares make up F."""
    weights = np.asarray(weights, np.float64)
    part = weights / weights.sum()
    return part, part if loss.reduction == "mean" else weights


def definitions(network, loss, params, inputs, targets, weights=None):
    """{name: what the quantity is}, NumPy arrays that are flat in the parameters."""
    count = len(targets)
    part, share = share_of(loss, np.ones(count) if weights is None else weights)
    g = each_gradient(network, loss, params, inputs, targets)
    norms = np.linalg.norm(g, axis=1)
    mean = part @ g
    of, _ = loss.convex_in(network.output.activation)
    J = each_jacobian(network, "outputs", params, inputs)
    Jn = each_jacobian(network, "net_inputs", params, inputs)
    V = Jn if of == "net_inputs" else J
    H = each_curvature(network, loss, of, params, inputs, targets)
    G = np.einsum("q,qcp,qcd,qdr->pr", share, V, H, V)
    objective = fnn.objective(network, loss)
    weighing = () if weights is None else (weights,)
    gradient, input_gradients = jax.jit(jax.grad(objective, (0, 1)))(params, inputs, targets, *weighing)
    return {
        "per_example_gradients": g,
        "per_example_norms": norms,
        "inner_products": g @ g.T,
        "input_gradients": input_gradients,
        "gradient": flat(gradient),
        "clipped_gradient": (share * np.minimum(1, MAX_NORM / np.maximum(norms, 1e-300))) @ g,
        "second_moment": part @ g**2,
        "variance": part @ (g - mean) ** 2,
        "jacobian": J,
        "tangent_kernel": np.einsum("qcp,rdp->qrcd", J, J),
        "tangent_kernel_trace": np.einsum("qcp,rcp->qr", J, J),
        "gauss_newton_diagonal": np.diag(G),
        "gauss_newton": G,
    }


def measured(network, loss, params, inputs, targets, weights=None, **settings):
    """The same of ours, flattened likewise."""
    names = (
        "per_example_gradients",
        "per_example_norms",
        "inner_products",
        "input_gradients",
        "gradient",
        "second_moment",
        "clipped_gradient",
        "variance",
        "jacobian",
        "tangent_kernel",
        "tangent_kernel_trace",
        "gauss_newton_diagonal",
        "gauss_newton",
    )

    @jax.jit
    def compute(params, inputs, targets, weights):
        return quantities.compute(
            network, loss, params, inputs, targets, names, weights=weights, max_norm=MAX_NORM, **settings
        )

    found = compute(params, inputs, targets, weights)
    lead = {"per_example_gradients": 1, "jacobian": 2}
    whole = {"per_example_norms", "inner_products", "tangent_kernel", "tangent_kernel_trace", "gauss_newton"}
    return {
        name: value
        if name in whole
        else dict_of_inputs(network, value)
        if name == "input_gradients"
        else rows(value, lead[name])
        if name in lead
        else flat(value)
        for name, value in found.items()
    }


def dict_of_inputs(network, found):
    return found if len(network.inputs) > 1 else found[network.inputs[0][0]]


def assert_equal(found, expected, tolerance=TOLERANCE):
    for name, value in expected.items():
        error = relative_error(jax.tree.map(np.asarray, found[name]), jax.tree.map(np.asarray, value))
        assert error <= tolerance, (name, error)


# Equal to their definitions -------------------------------------------------------------------------------------------


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
CASES += [pytest.param(*case, id="-".join(case), marks=pytest.mark.slow) for case in covering()]


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
            given = problem(network, loss_, 2, examples)
            assert_equal(measured(network, loss_, *given), definitions(network, loss_, *given))


@pytest.fixture(scope="module")
def given():
    return problem(NETWORK, LOSS, 3, 5)


@pytest.fixture(scope="module")
def expected(given):
    return definitions(NETWORK, LOSS, *given)


def test_a_network_of_all_kinds_of_layers(given, expected):
    assert_equal(measured(NETWORK, LOSS, *given), expected)


@pytest.mark.parametrize("block", [pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.slow
def test_blocks_change_nothing(given, expected, block):
    """Three blocks of two, or two of three, for five examples: the sixth is a filler."""
    assert_equal(measured(NETWORK, LOSS, *given, block=block), expected)


@pytest.mark.parametrize(
    ("reduction", "block"), [("mean", None), ("sum", None), pytest.param("sum", 2, marks=pytest.mark.slow)]
)
def test_weights_count(given, reduction, block):
    loss = fnn.losses.cross_entropy(reduction)
    weights = jnp.array([0.5, 2.0, 0.0, 1.0, 3.0])
    expected = definitions(NETWORK, loss, *given, weights)
    del expected["input_gradients"], expected["jacobian"]  # those of an example of weight 0 are 0, the others have none
    assert_equal(measured(NETWORK, loss, *given, weights, block=block), expected)


@pytest.mark.slow
def test_an_example_of_weight_0_is_not_there(given):
    params, inputs, targets = given
    few = jax.tree.map(lambda x: x[:3], inputs), targets[:3]
    weights = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])
    names = ("clipped_gradient", "noise_scale", "kflr", "layer_statistics")
    asked = {"max_norm": MAX_NORM, "noise_multiplier": 1.5, "key": KEY}
    of = jax.jit(lambda *args, weights=None: quantities.compute(NETWORK, LOSS, *args, names, weights=weights, **asked))
    padded, alone = of(*given, weights=weights), of(params, *few)
    for name in names:
        assert relative_error(padded[name], alone[name]) <= 1e-12


@pytest.mark.slow
def test_jit_and_vmap_and_32_bits(given, expected):
    """One compiled program over a population, in float32, against float64."""
    params, inputs, targets = given
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
def test_half_precision_keeps_squares_in_32_bits(given, dtype):
    """Squares of gradients of 1e-5 are nothing in float16."""
    params, inputs, targets = given
    small = jax.tree.map(lambda x: x.astype(dtype), params)
    names = ("per_example_norms", "variance", "clipped_gradient")
    found = jax.jit(lambda *args: quantities.compute(NETWORK, LOSS, *args, names, max_norm=1.0))(small, inputs, targets)
    exact = quantities.compute(NETWORK, LOSS, params, inputs, targets, ("per_example_norms", "variance"))
    assert found["per_example_norms"].dtype == jnp.float32
    for name in exact:
        assert relative_error(found[name], exact[name]) < 0.05
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found["clipped_gradient"]))


def test_per_example_gradients_against_the_complex_step(given):
    """A second source that owes nothing to JAX: one example and one parameter at a time."""
    params, inputs, targets = given
    found = quantities.per_example_gradients(NETWORK, LOSS, *given)
    for q in (0, 4):
        one = jax.tree.map(lambda x, q=q: x[q : q + 1], inputs), targets[q : q + 1]
        expected = reference_gradient(NETWORK, fnn.losses.cross_entropy("sum"), params, *one)
        assert relative_error(jax.tree.map(lambda x, q=q: x[q], found), expected) <= 1e-12


def test_several_at_once_are_each_alone(given):
    for name in ("per_example_norms", "variance", "kflr", "layer_statistics", "noise_scale", "per_example_losses"):
        together = quantities.compute(NETWORK, LOSS, *given, (name, "gradient"))[name]
        chex.assert_trees_all_equal(together, getattr(quantities, name)(NETWORK, LOSS, *given))


def test_the_sweep_is_made_once(given, monkeypatch):
    count = []
    sweep = views.backprop.sweep
    monkeypatch.setattr(views.backprop, "sweep", lambda *args: count.append(1) or sweep(*args))
    names = ("gradient", "per_example_norms", "variance", "inner_products", "noise_scale", "layer_statistics")
    quantities.compute(NETWORK, LOSS, *given, names)
    assert len(count) == 1
    quantities.compute(NETWORK, LOSS, *given, ("jacobian", "tangent_kernel", "tangent_kernel_trace"))
    assert len(count) == 2


def test_layer_norms_make_up_the_norm(given):
    found = quantities.compute(NETWORK, LOSS, *given, ("per_example_layer_norms", "per_example_gradients"))
    for name, norms in found["per_example_layer_norms"].items():
        expected = np.linalg.norm(rows(found["per_example_gradients"][name]), axis=1)
        np.testing.assert_allclose(norms, expected, rtol=1e-12)


def test_losses_are_the_objectives(given):
    found = quantities.per_example_losses(NETWORK, LOSS, *given)
    assert jnp.mean(found) == pytest.approx(float(fnn.objective(NETWORK, LOSS)(*given)), rel=1e-14)
    unfused = quantities.per_example_losses(NETWORK, "mean_square_error", *given)
    a = NETWORK.apply(*given[:2])
    chex.assert_trees_all_close(unfused, jnp.mean((a - given[2]) ** 2, axis=1), rtol=1e-14)


@pytest.mark.slow
# Options --------------------------------------------------------------------------------------------------------------
def test_the_kernel_between_two_batches(given):
    params, inputs, _ = given
    others = inputs_for(NETWORK, jax.random.key(5), 7)
    for of, block in (("outputs", 1024), ("net_inputs", 3)):
        J, K = (each_jacobian(NETWORK, of, params, x) for x in (inputs, others))
        full, trace = jax.jit(
            lambda params, of=of, block=block: [
                ask(NETWORK, None, params, inputs, others=others, of=of, block=block)
                for ask in (quantities.tangent_kernel, quantities.tangent_kernel_trace)
            ]
        )(params)
        assert relative_error(full, np.einsum("qcp,rdp->qrcd", J, K)) <= TOLERANCE
        assert relative_error(trace, np.einsum("qcp,rcp->qr", J, K)) <= TOLERANCE


def test_the_jacobian_of_the_net_inputs_of_maxout_and_prelu():
    for output in ("maxout", "prelu"):
        network = chain((3, 4, 2), "tanh", output)
        params, inputs, _ = problem(network, "mean_square_error")
        found = quantities.jacobian(network, None, params, inputs, of="net_inputs")
        assert relative_error(rows(found, 2), each_jacobian(network, "net_inputs", params, inputs)) <= TOLERANCE


def test_clipping_leaves_small_gradients_alone(given):
    whole = quantities.gradient(NETWORK, LOSS, *given)
    assert relative_error(quantities.clipped_gradient(NETWORK, LOSS, *given, max_norm=1e6), whole) <= 1e-12
    assert relative_error(whole, fnn.value_and_grad(NETWORK, LOSS)(*given)[1]) <= 1e-12
    small = quantities.clipped_gradient(NETWORK, LOSS, *given, max_norm=1e-3)
    assert np.linalg.norm(flat(small)) <= 1e-3 * (1 + 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_noise_has_the_deviation_it_is_said_to_have(given, reduction):
    """sigma max_norm on the sum; 1/Q of it on a mean."""
    loss = fnn.losses.cross_entropy(reduction)
    asked = {"max_norm": 0.5, "noise_multiplier": 2.0}
    still = flat(quantities.clipped_gradient(NETWORK, loss, *given, max_norm=0.5))
    draw = jax.jit(lambda key: quantities.clipped_gradient(NETWORK, loss, *given, key=key, **asked))
    noise = np.stack([flat(draw(key)) - still for key in jax.random.split(KEY, 60)])
    expected = 1.0 / (5 if reduction == "mean" else 1)
    # The standard error of a deviation from n numbers is sigma / sqrt(2 n); five of them.
    assert abs(noise.std() / expected - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 * expected / np.sqrt(noise.size)
    assert len({float(x) for x in noise[0]}) == noise.shape[1]  # no two parameters share theirs


def test_an_example_that_overflows_is_not_silently_left_out():
    """|g|^2 is beyond float32, whose largest number is 3.4e38."""
    network = chain((3, 2), "linear", "linear")
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), network.init(KEY))
    x, t = jnp.ones((2, 3), jnp.float32), jnp.array([[1.0, 0.0], [1e25, 0.0]], jnp.float32)
    found = quantities.clipped_gradient(network, "mean_square_error", params, x, t, max_norm=1.0)
    assert not np.isfinite(flat(found)).all()


def test_an_example_without_gradient_is_not_divided_by():
    network = chain((2, 1), "linear", "linear")
    params = {"layer1": {"weights": {"input": jnp.zeros((1, 2))}, "bias": jnp.zeros(1)}}
    x, t = jnp.ones((2, 2)), jnp.array([[0.0], [1.0]])
    clipped = quantities.clipped_gradient(network, "sum_square_error", params, x, t, max_norm=1.0)
    assert np.isfinite(flat(clipped)).all() and np.linalg.norm(flat(clipped)) == pytest.approx(1)


# Noise ----------------------------------------------------------------------------------------------------------------


def test_noise_scale_and_signal_to_noise_are_their_definitions(given):
    params, *_ = given
    found = quantities.compute(NETWORK, LOSS, *given, ("noise_scale", "signal_to_noise"))
    g = each_gradient(NETWORK, LOSS, *given)
    where = flat(
        {name: jax.tree.map(lambda x, i=i: jnp.full_like(x, i), params[name]) for i, name in enumerate(params)}
    )
    noise = found["noise_scale"]
    for i, name in [(None, None), *enumerate(params)]:
        own = g if i is None else g[:, where == i]
        trace = own.var(axis=0, ddof=1).sum()
        signal = (own.mean(axis=0) ** 2).sum() - trace / len(g)
        one = noise.total if i is None else noise.layers[name]
        np.testing.assert_allclose([one.noise, one.signal], [trace, signal], rtol=1e-10)
        assert one.scale == pytest.approx(trace / signal, rel=1e-9) if signal > 0 else np.isinf(one.scale)
        if i is not None:
            ratio = np.linalg.norm(own.mean(axis=0)) / np.sqrt(own.var(axis=0).sum())
            assert found["signal_to_noise"][name] == pytest.approx(ratio, rel=1e-9)


def test_noise_and_signal_are_unbiased(given):
    """Over all pairs of five examples, the mean of what two give is what all ten pairs' population is."""
    params, inputs, targets = given
    pairs = [(i, j) for i in range(5) for j in range(i)]
    g = each_gradient(NETWORK, LOSS, *given)

    def of(pair):
        return quantities.noise_scale(NETWORK, LOSS, params, *jax.tree.map(lambda x: x[pair], (inputs, targets))).total

    found = jax.jit(jax.vmap(of))(jnp.array(pairs))
    # drawn without replacement: the mean inner product of two different examples, and the variance with ddof = 1
    products = g @ g.T
    assert jnp.mean(found.signal) == pytest.approx((products.sum() - np.trace(products)) / 20, rel=1e-9)
    assert jnp.mean(found.noise) == pytest.approx(g.var(axis=0, ddof=1).sum(), rel=1e-9)


def test_equal_examples_have_no_variance():
    network = chain((3, 4, 2), "tanh", "softmax")
    params, inputs, targets = problem(network, "cross_entropy", 0, 1)
    same = [jnp.tile(x, (6, 1)) for x in (inputs, targets)]
    found = quantities.variance(network, "cross_entropy", params, *same)
    # two roundings of g^2 each way, with |g| < 2; and nothing below 0, of which a deviation could not be taken
    assert flat(found).min() >= 0 and flat(found).max() <= 4 * 4 * 1.2e-16
    assert quantities.noise_scale(network, "cross_entropy", params, *same).total.noise >= 0


# Kronecker factors and samples ----------------------------------------------------------------------------------------


def kronecker_definition(network, loss, params, inputs, targets):
    """{layer: (A, B)} from autodiff's sensitivities and the forward pass."""
    of, _ = loss.convex_in(network.output.activation)
    H = each_curvature(network, loss, of, params, inputs, targets)
    read = {"outputs": "activations"}.get(of, of)
    J = each_sensitivity(network, lambda trace: getattr(trace, read)[network.output.name], params, inputs)
    trace = network.forward(params, inputs)
    share = 1 if loss.reduction == "sum" else 1 / len(targets)
    factors = {}
    for layer in network.layers:
        columns = [np.asarray(trace.activations[source]) for source in layer.sources]
        columns += [np.ones((len(targets), 1))] * (layer.bias == "per_neuron")
        a, s = np.concatenate(columns, axis=1), J[layer.name]
        factors[layer.name] = a.T @ a / len(targets), share * np.einsum("qcs,qcd,qdt->st", s, H, s)
    return factors


@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy(mean)",
        "mean_square_error(sum)",
        pytest.param("bhattacharyya(mean)", marks=pytest.mark.slow),
    ],
)
def test_kronecker_factors_are_their_definitions(given, loss):
    loss = fnn.losses.get(loss)
    found = quantities.kflr(NETWORK, loss, *given, block=3)
    for name, (A, B) in kronecker_definition(NETWORK, loss, *given).items():
        assert relative_error(found[name].activations, A) <= TOLERANCE
        assert relative_error(found[name].sensitivities, B) <= TOLERANCE
    whole = np.asarray(quantities.gauss_newton(NETWORK, loss, *given))
    order = flat({name: jax.tree.map(jnp.zeros_like, own) for name, own in given[0].items()}).size
    positions = jax.tree.unflatten(*_numbered(given[0]))
    assert len(whole) == order
    alone = {name: own.others for name, own in found.items()}
    for at, block in (
        (positions["second"]["bias"], alone["second"]["bias"]),
        (positions["second"]["learned"]["slope"], alone["second"]["learned"]["slope"]),
        (positions["third"]["learned"]["slope"], alone["third"]["learned"]["slope"]),
    ):
        assert relative_error(block, whole[np.ix_(np.asarray(at, int), np.asarray(at, int))]) <= TOLERANCE


def _numbered(params):
    vector, unravel = ravel_pytree(params)
    leaves, structure = jax.tree.flatten(unravel(jnp.arange(vector.size, dtype=vector.dtype)))
    return structure, leaves


def test_one_example_and_one_layer_are_a_kronecker_product_exactly():
    """A single example's block is B (x) A, whatever it is an average of otherwise."""
    network = chain((3, 2), "tanh", "softmax")
    params, inputs, targets = problem(network, "cross_entropy", 0, 1)
    found = quantities.kflr(network, "cross_entropy", params, inputs, targets)["layer1"]
    whole = np.asarray(quantities.gauss_newton(network, "cross_entropy", params, inputs, targets))
    kronecker = np.kron(found.sensitivities, found.activations).reshape(2, 4, 2, 4)
    assert relative_error(whole[2:, 2:], kronecker[:, :3, :, :3].reshape(6, 6)) <= TOLERANCE
    assert relative_error(whole[:2, :2], kronecker[:, 3, :, 3]) <= TOLERANCE  # the bias stands first


def test_samples_tend_to_what_they_estimate(given):
    """The mean of many single samples is within five of its standard errors; and they do vary."""
    exact = {
        "diagonal": quantities.gauss_newton_diagonal(NETWORK, LOSS, *given),
        "factors": {name: f._replace(activations=None) for name, f in quantities.kflr(NETWORK, LOSS, *given).items()},
    }

    def sampled(key):
        asked = ("sampled_gauss_newton_diagonal", "kfac")
        found = quantities.compute(NETWORK, LOSS, *given, asked, key=key, samples=2)
        return {
            "diagonal": found["sampled_gauss_newton_diagonal"],
            "factors": {name: f._replace(activations=None) for name, f in found["kfac"].items()},
        }

    draws = rows(jax.jit(jax.vmap(sampled))(jax.random.split(KEY, 2000)))
    error = draws.std(axis=0) / np.sqrt(len(draws))
    apart = np.abs(draws.mean(axis=0) - flat(exact))
    assert (apart <= 5 * error + 1e-14).all()
    assert (error[flat(exact) != 0] > 0).mean() > 0.9


def test_samples_do_not_depend_on_the_blocks(given):
    asked = {"key": KEY, "samples": 3}
    whole = quantities.kfac(NETWORK, LOSS, *given, **asked)
    assert relative_error(quantities.kfac(NETWORK, LOSS, *given, block=2, **asked), whole) <= 1e-12


@pytest.mark.parametrize(
    ("output", "loss"), [pair for pair in OUTPUT_PAIRS if pair[0] in ("softmax", "sigmoid", "linear")]
)
def test_gauss_newton_is_positive_semidefinite(output, loss):
    """Whether the loss is convex in the net inputs of a fused pair or not."""
    network = chain((3, 4, 3), "tanh", output)
    found = np.asarray(quantities.gauss_newton(network, loss, *problem(network, loss)))
    assert np.array_equal(found, found.T) or relative_error(found, found.T) <= 1e-15
    eigenvalues = np.linalg.eigvalsh(found)
    assert eigenvalues[0] >= -1e-14 * max(eigenvalues[-1], 1)


def test_the_diagonal_keeps_its_digits_where_softmax_saturates():
    """p (1 - p) of p = 1 - 1e-12: as a difference of two squares there would be four digits left of it."""
    network = chain((1, 3), "tanh", "softmax")
    params = {"layer1": {"weights": {"input": jnp.array([[27.6], [0.0], [0.3]])}, "bias": jnp.zeros(3)}}
    x, t = jnp.ones((1, 1)), jnp.array([[1.0, 0.0, 0.0]])
    found = quantities.gauss_newton_diagonal(network, "cross_entropy", params, x, t)["layer1"]["bias"]
    e = np.exp(np.array([0.0, -27.6, -27.3]))
    expected = np.array([e[0] * (e[1] + e[2]), e[1] * (e[0] + e[2]), e[2] * (e[0] + e[1])]) / e.sum() ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["kfac", "sampled_gauss_newton_diagonal", "kflr", "gauss_newton_diagonal"])
def test_no_root_of_many_outputs_is_formed(name):
    """Of 512 examples of 1200 outputs it would take 2.7 GiB."""
    network = fnn.multilayer((20, 1200), ("softmax",))

    def float32(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    params = jax.tree.map(lambda x: float32(*x.shape), jax.eval_shape(network.init, KEY))
    options = {"key": KEY} if name in ("kfac", "sampled_gauss_newton_diagonal") else {}

    def measure(params, x, t):
        return getattr(quantities, name)(network, "cross_entropy", params, x, t, **options)

    compiled = jax.jit(measure).lower(params, float32(512, 20), float32(512, 1200)).compile()
    numbers = compiled.memory_analysis().temp_size_in_bytes / (512 * 1200 * 4)
    assert numbers < (8 if options else 4 * views.COLUMNS)


@pytest.mark.sampled(every=3)  # either of both, each once
@pytest.mark.parametrize("combined", [True, False])
@pytest.mark.parametrize("block", [None, 3])
def test_columns_some_at_a_time_are_all_columns(combined, block):
    """Of 37 outputs, in NumPy: H = diag(p) - p p^T of each example; by the loss's own combinations of its root, and by
    the root of some examples after others.
    """
    loss = fnn.losses.cross_entropy()
    if not combined:
        pair = loss.fused["softmax"]
        without = dataclasses.replace(pair.curvature, combine=None)
        loss = dataclasses.replace(loss, fused={"softmax": dataclasses.replace(pair, curvature=without)})
    network, draw = fnn.multilayer((3, 37), ("softmax",)), np.random.default_rng(5)
    x, t = draw.standard_normal((10, 3)), np.eye(37)[draw.integers(0, 37, 10)]
    params = network.init(KEY)
    own = params["layer1"]
    n = x @ np.asarray(own["weights"]["input"]).T + np.asarray(own["bias"])
    p = np.exp(n) / np.exp(n).sum(axis=1, keepdims=True)
    H = p[:, :, None] * np.eye(37) - p[:, :, None] * p[:, None, :]
    asked = ("kflr", "gauss_newton_diagonal", "gauss_newton")
    found = quantities.compute(network, loss, params, x, t, asked, block=block)
    assert relative_error(found["kflr"]["layer1"].sensitivities, H.mean(axis=0)) <= 1e-12
    diagonal = np.einsum("qs,qr->sr", p * (1 - p), x**2) / 10
    assert relative_error(found["gauss_newton_diagonal"]["layer1"]["weights"]["input"], diagonal) <= 1e-12
    J = np.einsum("st,qr->qstr", np.eye(37), x).reshape(10, 37, -1)
    J = np.concatenate([np.broadcast_to(np.eye(37), (10, 37, 37)), J], axis=2)  # the bias stands first
    assert relative_error(found["gauss_newton"], np.einsum("qsp,qst,qtr->pr", J, H, J) / 10) <= 1e-12

    # a sample is random signs on the root sqrt(p_c) (e_c - p), by the numbers of the examples
    signs = [jax.random.rademacher(jax.random.fold_in(KEY, q), (2, 37), jnp.float64) for q in range(10)]
    V = np.sqrt(p)[:, :, None] * (np.eye(37) - p[:, None, :])
    s = np.einsum("qkc,qcs->qks", np.array(signs), V)
    kfac = quantities.kfac(network, loss, params, x, t, key=KEY, samples=2, block=block)
    assert relative_error(kfac["layer1"].sensitivities, np.einsum("qks,qkt->st", s, s) / 20) <= 1e-12


# Statistics -----------------------------------------------------------------------------------------------------------


def test_layer_statistics_are_their_definitions(given):
    found = quantities.layer_statistics(NETWORK, LOSS, *given, block=2)
    trace = NETWORK.forward(*given[:2])
    pair = LOSS.fused_with(NETWORK.output.activation)
    s = each_sensitivity(NETWORK, lambda trace: pair.value(trace.net_inputs["output"], given[2]), *given[:2])
    for name in (layer.name for layer in NETWORK.layers):
        a, own = np.asarray(trace.activations[name]), found[name]
        np.testing.assert_allclose([own.activation_mean, own.activation_deviation], [a.mean(), a.std()], rtol=1e-10)
        assert own.sensitivity == pytest.approx(np.sqrt((s[name] ** 2).mean()), rel=1e-10)
        assert own.ratio == pytest.approx(np.sqrt((s[name] ** 2).mean() / (s["output"] ** 2).mean()), rel=1e-10)


def test_saturated_and_dead_units_are_counted():
    network = fnn.multilayer((1, 4, 4, 2, 2), ("tanh", "relu", "maxout", "softmax"))
    params = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0)))
    params["layer1"]["bias"] = jnp.array([0.0, 5.0, -5.0, 1.0])  # two of four saturate
    params["layer2"]["bias"] = jnp.array([-1.0, 1.0, 1.0, 1.0])  # one of four never answers
    params["layer2"]["weights"]["layer1"] = params["layer2"]["weights"]["layer1"].at[1, 0].set(3.0)
    params["layer1"]["weights"]["input"] = jnp.array([[-1.0], [0.0], [0.0], [0.0]])
    params["layer4"]["bias"] = jnp.array([20.0, 0.0])
    x, t = jnp.array([[1.0], [-1.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])  # layer 2's second answers once
    found = quantities.layer_statistics(network, LOSS, params, x, t)
    assert [float(found[f"layer{m}"].dead) for m in (1, 2, 3, 4)] == [0, 0.25, 0, 0]
    assert [float(found[f"layer{m}"].saturated) for m in (1, 2, 3, 4)] == [0.5, 3 / 8, 0, 1]
    strict = quantities.layer_statistics(network, LOSS, params, x, t, saturation=0.5)
    assert strict["layer1"].saturated == 1  # 1 - tanh(1)^2 = 0.42 as well


# What is refused ------------------------------------------------------------------------------------------------------

REFUSED = [
    ("per_example_norm", {}, ValueError, "unknown quantity 'per_example_norm'; did you mean 'per_example_norms'?"),
    ("clipped_gradient", {}, ValueError, "clipped_gradient needs max_norm=..."),
    ("kfac", {}, ValueError, "kfac needs key=..."),
    ("kfac", {"key": None}, ValueError, "kfac needs key=..."),
    ("clipped_gradient", {"maxnorm": 1.0}, TypeError, "did you mean 'max_norm'?"),
    ("jacobian", {"of": np.ones(2)}, ValueError, "jacobian: of must be 'outputs' or 'net_inputs'"),
    ("variance", {"budget": 0}, ValueError, "compute: budget must be an integer >= 1, got 0"),
    ("variance", {"weights": jnp.zeros(5)}, ValueError, "weights: expected at least one above 0, got none"),
    ("noise_scale", {"weights": jnp.eye(5)[0]}, ValueError, "noise_scale: expected at least two examples, got 1"),
    ("tangent_kernel", {"others": 3.0}, ValueError, "others: inputs: expected"),
    ("tangent_kernel", {"others": {}}, ValueError, "others: inputs: expected"),
    ("variance", {"max_norm": 1.0}, TypeError, "variance: unknown option 'max_norm'"),
    ("clipped_gradient", {"maxnorm": 1.0, "max_norm": 1.0}, TypeError, "did you mean 'max_norm'?"),
    ("clipped_gradient", {"max_norm": 0.0}, ValueError, "max_norm must be a finite number > 0, got 0.0"),
    (
        "clipped_gradient",
        {"max_norm": -1},
        ValueError,
        "clipped_gradient: max_norm must be a finite number > 0, got -1",
    ),
    ("clipped_gradient", {"max_norm": float("nan")}, ValueError, "max_norm must be a finite number > 0, got nan"),
    ("clipped_gradient", {"max_norm": 1.0, "noise_multiplier": -1.0}, ValueError, "noise_multiplier must be"),
    ("clipped_gradient", {"max_norm": 1.0, "noise_multiplier": 1.0}, ValueError, "noise needs key="),
    ("kfac", {"key": 3}, TypeError, "key: expected a single key"),
    ("kfac", {"key": KEY, "samples": 0}, ValueError, "kfac: samples must be an integer >= 1, got 0"),
    ("jacobian", {"of": "output"}, ValueError, "jacobian: of must be 'outputs' or 'net_inputs', got 'output'"),
    ("jacobian", {"budget": 1000}, ValueError, "jacobian would take"),
    ("gauss_newton", {"budget": 1000}, ValueError, "curvature.gauss_newton_vector_product"),
    ("per_example_gradients", {"budget": 1000}, ValueError, "per_example_norms"),
    ("tangent_kernel", {"budget": 1000}, ValueError, "tangent_kernel_trace is smaller"),
    ("variance", {"block": 0}, ValueError, "block must be an integer >= 1, got 0"),
    ("variance", {"weights": -jnp.ones(5)}, ValueError, "weights: expected numbers >= 0"),
    ("tangent_kernel", {"others": {"p1": jnp.ones((2, 2))}}, ValueError, "others: inputs: expected"),
    ("layer_statistics", {"saturation": -1.0}, ValueError, "layer_statistics: saturation must be a finite number >= 0"),
]


@pytest.mark.parametrize(("name", "asked", "error", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_answered_is_refused(given, name, asked, error, message):
    with pytest.raises(error) as refusal:
        quantities.compute(NETWORK, LOSS, *given, (name,), **asked)
    assert message in str(refusal.value)


def test_names_may_come_from_a_generator(given):
    assert list(quantities.compute(NETWORK, LOSS, *given, (name for name in ["per_example_norms"]))) == [
        "per_example_norms"
    ]


@pytest.mark.parametrize("names", ["variance", ()])
def test_names_are_a_sequence(given, names):
    with pytest.raises(ValueError, match="names: expected the quantities asked for, such as"):
        quantities.compute(NETWORK, LOSS, *given, names)


def test_loss_and_targets_may_be_left_out_only_where_nothing_reads_them(given):
    params, inputs, targets = given
    assert quantities.tangent_kernel_trace(NETWORK, None, params, inputs).shape == (5, 5)
    for loss, t, what in ((None, targets, "loss"), (LOSS, None, "targets")):
        with pytest.raises(ValueError, match=f"{what}: variance cannot do without"):
            quantities.compute(NETWORK, loss, params, inputs, t, ("jacobian", "variance"))


def test_a_budget_says_how_much_is_needed(given):
    with pytest.raises(ValueError) as refusal:
        quantities.jacobian(NETWORK, None, *given[:2], budget=2048)
    size = sum(x.size for x in jax.tree.leaves(given[0]))
    needed = 5 * 3 * size * 8
    assert f"jacobian would take {needed / 1024:.4g} KiB of memory, above the budget of 2 KiB" in str(refusal.value)
    assert f"budget={needed}" in str(refusal.value)
    quantities.jacobian(NETWORK, None, *given[:2], budget=needed)


def test_a_loss_that_does_not_admit_a_quantity_says_why(given):
    own = fnn.Loss("quartic", "mean", lambda a, t: jnp.sum((a - t) ** 4, -1), lambda a, t: 4 * (a - t) ** 3)
    assert np.isfinite(flat(quantities.variance(NETWORK, own, *given))).all()
    with pytest.raises(ValueError, match="loss 'quartic' has no second derivative with a root, which Gauss-Newton"):
        quantities.gauss_newton_diagonal(NETWORK, own, *given)
    network = chain((2, 3, 2), "hardlim", "softmax")
    with pytest.raises(ValueError, match="layer 'layer1': 'hardlim' has no derivative"):
        quantities.jacobian(network, None, network.init(KEY), jnp.ones((4, 2)))
    for name in ("alignment", "per_example_norms"):  # a rule that needs no derivative has none to compare with
        with pytest.raises(ValueError, match="layer 'layer1': 'hardlim' has no derivative"):
            quantities.compute(
                network,
                "cross_entropy",
                network.init(KEY),
                jnp.ones((4, 2)),
                jnp.array([0, 1, 0, 1]),
                (name,),
                rule="weight_perturbation",
                rule_key=KEY,
            )
    with pytest.raises(ValueError, match="needs outputs that are"):
        quantities.variance(
            chain((2, 3), "tanh", "linear"), "cross_entropy", *problem(chain((2, 3), "tanh", "linear"), "cross_entropy")
        )
    with pytest.raises(ValueError, match="noise_scale: expected at least two examples, got 1"):
        quantities.noise_scale(NETWORK, LOSS, given[0], *jax.tree.map(lambda x: x[:1], given[1:]))


def test_a_quantity_of_ones_own():
    """Known to `compute` with its options, in blocks, beside the others; its name is taken once."""
    name = "own_losses"

    @quantities.register()
    def own_losses(view, *, power=1.0):
        """F_q to a power, (Q,)."""
        return backprop.example_losses(view.network, view.loss, view.trace, view.examples.targets) ** power

    network = fnn.multilayer((3, 2), ("tanh",))
    given = network, "mean_square_error", network.init(jax.random.key(0)), np.eye(3), np.ones((3, 2))
    wanted = quantities.per_example_losses(*given)
    np.testing.assert_allclose(own_losses(*given, power=2.0, block=2), wanted**2, rtol=1e-12)
    found = quantities.compute(*given, ("per_example_losses", name))
    np.testing.assert_array_equal(found[name], found["per_example_losses"])
    with pytest.raises(ValueError, match=f"quantity '{name}' is already registered; choose another name"):
        quantities.register()(own_losses)


def test_every_quantity_says_what_it_takes():
    for name in quantities.names():
        function = getattr(quantities, name)
        assert function.__doc__ and function.__name__ == name
        parameters = list(inspect.signature(function).parameters)
        assert parameters[:5] == ["network", "loss", "params", "inputs", "targets"]
        assert parameters[-5:] == ["weights", "block", "budget", "rule", "rule_key"]
