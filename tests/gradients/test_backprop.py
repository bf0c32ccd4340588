"""The hand-written gradient equals autodiff's, over every activation, loss, graph and dtype; and is written by hand.

Everything runs eagerly unless compiling is the point: tracing and compiling a network costs a hundred times its run.
"""

import ast
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    GRAPHS,
    LOSSES,
    OUTPUT_PAIRS,
    PROVED,
    admitted,
    chain,
    fan_out,
    generator,
    hagan_p32,
    inputs_for,
    norm,
    problem,
    random_params,
    reference_forward,
    reference_gradient,
    reference_objective,
    relative_error,
    targets_for,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import functional_nn as fnn
from functional_nn import networks
from functional_nn.gradients import backprop

UNDEFINED_AT_WIDTH_ONE = ("softmax", "binary_cross_entropy")  # a softmax of one class is 1, and ln(1 - 1) is -inf
TOLERANCE = {jnp.float64: 1e-12, jnp.float32: 1e-5}  # the issue's, relative to the gradient's norm
SMOOTH = tuple(name for name in PROVED if fnn.activations.get(name).smooth)
SMOOTH_PAIRS = tuple(
    (output, loss) for output, loss in OUTPUT_PAIRS if output in SMOOTH and fnn.losses.get(loss).smooth
)


def manual_and_automatic(network, loss, *arguments):
    """((F, dF/dparams) by hand, the same by autodiff)"""
    return (
        fnn.value_and_grad(network, loss)(*arguments),
        jax.value_and_grad(fnn.objective(network, loss))(*arguments),
    )


def assert_agree(network, loss, dtype=jnp.float64, examples=4, seed=0):
    params, inputs, targets = problem(network, loss, seed, examples, dtype)
    (value, gradients), (value_auto, automatic) = manual_and_automatic(network, loss, params, inputs, targets)
    chex.assert_trees_all_equal_shapes_and_dtypes((value, gradients), (value_auto, params))
    assert relative_error(value, value_auto) <= TOLERANCE[dtype]
    assert relative_error(gradients, automatic) <= TOLERANCE[dtype]


# Manual against automatic ---------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=34)
@pytest.mark.parametrize("hidden", PROVED)
@pytest.mark.parametrize("output", PROVED)
def test_manual_is_automatic_for_every_activation_output_and_loss(output, hidden):
    """On a small graph with two inputs, fan-out, a skip and a shared bias."""
    network = fnn.graph(
        inputs={"p1": 2, "p2": 3},
        layers=[
            fnn.Layer("first", 4, hidden, ("p1",)),
            fnn.Layer("second", 2, hidden, ("first", "p2"), bias="shared"),
            fnn.Layer("output", 3, output, ("first", "second", "p1")),
        ],
    )
    for loss in LOSSES:
        if admitted(loss, output):
            assert_agree(network, fnn.losses.get(loss))


def covering(graphs):
    """(graph, hidden, output, loss, reduction): on every graph each (output, loss) pair once and each hidden
    activation several times, and both reductions; which meets which shifts from graph to graph."""
    for shift, graph in enumerate(graphs):
        for i, (output, loss) in enumerate(OUTPUT_PAIRS):
            if graph == "width one" and (output, loss) == UNDEFINED_AT_WIDTH_ONE:
                continue
            yield graph, PROVED[(i + shift) % len(PROVED)], output, loss, ("mean", "sum")[(i + shift) % 2]


def by_graph_and_output(cases):
    """The same cases, those of one graph and one output activation together."""
    grouped = {}
    for graph, hidden, output, loss, reduction in cases:
        grouped.setdefault((graph, output), []).append((hidden, f"{loss}({reduction})"))
    return [(*key, tuple(rest)) for key, rest in grouped.items()]


def on_every_graph():
    """Every graph in float64; the one that has everything with all combinations, and sampled in float32."""
    for graph, output, combinations in by_graph_and_output(covering(GRAPHS)):
        for dtype in TOLERANCE:
            whole = graph == "fan-out and skip"
            marks = pytest.mark.slow if dtype == jnp.float32 and not (whole and output in ("linear", "softmax")) else ()
            some = combinations if whole else combinations[len(graph) % 2 :: 2]  # the slow product has them all
            yield pytest.param(graph, output, some, dtype, id=f"{graph}-{output}-{dtype.__name__}", marks=marks)


@pytest.mark.sampled(every=13)
@pytest.mark.parametrize(("graph", "output", "combinations", "dtype"), list(on_every_graph()))
def test_manual_is_automatic_on_every_graph(graph, output, combinations, dtype):
    build, examples = GRAPHS[graph]
    for hidden, loss in combinations:
        assert_agree(build(hidden, output), fnn.losses.get(loss), dtype, examples)


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("hidden", PROVED)
@pytest.mark.parametrize("output", PROVED)
def test_manual_is_automatic_for_the_full_product(output, hidden, graph):
    build, examples = GRAPHS[graph]
    for loss in LOSSES:
        if graph == "width one" and (output, loss) == UNDEFINED_AT_WIDTH_ONE:
            continue
        if admitted(loss, output):
            for dtype in TOLERANCE:
                assert_agree(build(hidden, output), fnn.losses.get(loss), dtype, examples, seed=1)


@st.composite
def random_graphs(draw):
    """Any feedforward graph: layers read inputs and earlier layers at random; the output reads what no layer reads."""
    size = st.sampled_from([1, 3])
    inputs = {f"p{i}": draw(size) for i in range(draw(st.integers(1, 2)))}
    hidden = [f"h{i}" for i in range(draw(st.integers(0, 3)))]
    output, loss = draw(st.sampled_from(OUTPUT_PAIRS))
    layers, known = [], list(inputs)
    for name in (*hidden, "output"):
        sources = draw(st.lists(st.sampled_from(known), min_size=1, unique=True))
        if name == "output":
            read = {source for layer in layers for source in layer.sources} | set(sources)
            sources += [source for source in known if source not in read]
        layers.append(
            fnn.Layer(
                name,
                draw(st.just(3) if name == "output" and (output, loss) == UNDEFINED_AT_WIDTH_ONE else size),
                output if name == "output" else draw(st.sampled_from(PROVED)),
                tuple(sources),
                bias=draw(st.sampled_from(["per_neuron", "shared", "none"])),
            )
        )
        known.append(name)
    reduction = draw(st.sampled_from(["mean", "sum"]))
    return fnn.graph(inputs=inputs, layers=layers), fnn.losses.get(f"{loss}({reduction})")


@settings(max_examples=60)
@given(random_graphs(), st.sampled_from([1, 3]), st.booleans(), st.integers(0, 2**16))
@pytest.mark.slow
def test_manual_is_automatic_on_random_graphs(graph_and_loss, examples, weighted, seed):
    network, loss = graph_and_loss
    params, inputs, targets = problem(network, loss, seed, examples)
    weights = (jnp.asarray(generator(jax.random.key(seed)).uniform(0.5, 2, examples)),) if weighted else ()
    manual, automatic = manual_and_automatic(network, loss, params, inputs, targets, *weights)
    chex.assert_trees_all_equal_shapes_and_dtypes(manual, automatic)
    assert relative_error(manual[1], automatic[1]) <= 1e-12
    assert relative_error(manual[0], automatic[0]) <= 1e-12


# Third opinions -------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(("output", "loss"), SMOOTH_PAIRS)
def test_complex_step_agrees_on_smooth_networks(output, loss):
    """Im F(x + i h d) / h = F'(x) d, to rounding: no difference is taken."""
    loss = fnn.losses.get(loss)
    for hidden in SMOOTH:
        network = fan_out(hidden, output)
        params, inputs, targets = problem(network, loss)
        direction = random_params(network, jax.random.key(9))
        stepped = jax.tree.map(lambda x, d: lax.complex(x, 1e-30 * d), params, direction)
        slope = fnn.objective(network, loss)(stepped, inputs, targets).imag / 1e-30
        gradients = fnn.value_and_grad(network, loss)(params, inputs, targets)[1]
        along = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True))
        assert abs(along - slope) <= 1e-12 * norm(gradients) * norm(direction)


REFERENCED = [
    (graph, PROVED[(3 * i + j) % len(PROVED)], output, loss)
    for j, graph in enumerate(("two layers", "P3.2", "fan-out and skip", "shared bias"))
    for i, (output, loss) in enumerate(OUTPUT_PAIRS)
    if i % 4 == j
]


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(("graph", "hidden", "output", "loss"), REFERENCED)
def test_the_neuron_by_neuron_reference_agrees(graph, hidden, output, loss):
    """Each pair of output and loss once, against code that shares no line with the package."""
    build, examples = GRAPHS[graph]
    network, loss = build(hidden, output), fnn.losses.get(loss)
    params, inputs, targets = problem(network, loss, seed=2, examples=examples)
    weights = jnp.asarray([1.0, 0.5, 0.0, 2.0])
    value, gradients = fnn.value_and_grad(network, loss)(params, inputs, targets, weights)
    reference = params, inputs, targets, weights
    np.testing.assert_allclose(value, reference_objective(network, loss, *reference), rtol=1e-12)
    assert relative_error(gradients, reference_gradient(network, loss, *reference)) <= 1e-12


@pytest.mark.parametrize("hidden", PROVED)
def test_the_trace_is_the_reference_forward_pass(hidden):
    network = fan_out(hidden, "softmax")
    params, inputs, targets = problem(network, fnn.losses.cross_entropy())
    net_inputs, activations = reference_forward(network, params, inputs)
    trace = fnn.backpropagate(network, fnn.losses.cross_entropy(), params, inputs, targets).trace
    for given_by, expected in ((trace.net_inputs, net_inputs), (trace.activations, activations)):
        assert set(given_by) == set(expected)
        assert relative_error(given_by, {name: np.array(rows) for name, rows in expected.items()}) <= 1e-12


@pytest.mark.newest
@pytest.mark.parametrize("initializer", ["constant(0.5)", "zeros"])
@pytest.mark.parametrize(("output", "loss"), [("softmax", "cross_entropy"), ("linear", "mean_square_error")])
@pytest.mark.parametrize("captured", [False, True])
def test_compiled_is_the_reference_even_for_constant_weights(initializer, output, loss, captured):
    """jaxlib 0.10.2 compiled products with constant uniform operands wrongly (jax issue 39103)."""
    network = fnn.multilayer((3, 8, 8, 4), ("tanh", "sigmoid", output), initializer=initializer)
    loss = fnn.losses.get(loss)
    params = network.init(jax.random.key(0))
    inputs = inputs_for(network, jax.random.key(1), 8)
    targets = targets_for(loss, jax.random.key(2), 8, 4)
    value_and_grad = fnn.value_and_grad(network, loss)
    if captured:  # as compile-time constants
        value, gradients = jax.jit(lambda inputs, targets: value_and_grad(params, inputs, targets))(inputs, targets)
    else:
        value, gradients = jax.jit(value_and_grad)(params, inputs, targets)
    np.testing.assert_allclose(value, reference_objective(network, loss, params, inputs, targets), rtol=1e-12)
    assert relative_error(gradients, reference_gradient(network, loss, params, inputs, targets)) <= 1e-12


# Sensitivities and input gradients ------------------------------------------------------------------------------------


def offset_gradients(network, loss, params, inputs, targets):
    """dF/d(a zero added to every n^m): the sensitivities by autodiff."""
    trace = network.forward(params, inputs)
    zeros = jax.tree.map(jnp.zeros_like, trace.net_inputs)

    def value(offsets):
        outputs = network.forward(params, inputs, offsets).activations[network.output.name]
        return loss.value(outputs, targets)

    return jax.grad(value)(zeros)


@pytest.mark.parametrize(
    ("graph", "hidden"), [(g, f) for i, g in enumerate(GRAPHS) for j, f in enumerate(PROVED) if (i + j) % 3 == 0]
)
def test_sensitivities_are_the_gradients_of_zero_offsets(graph, hidden):
    build, examples = GRAPHS[graph]
    output, loss = OUTPUT_PAIRS[(7 * PROVED.index(hidden)) % len(OUTPUT_PAIRS)]
    network, loss = build(hidden, output), fnn.losses.get(loss)
    params, inputs, targets = problem(network, loss, examples=examples)
    s = fnn.sensitivities(network, loss, params, inputs, targets)
    expected = offset_gradients(network, loss, params, inputs, targets)
    assert list(s) and set(s) == {layer.name for layer in network.layers}
    for name in s:  # each layer on its own
        assert s[name].shape == expected[name].shape
        assert norm(s[name] - expected[name]) <= 1e-12 * max(norm(expected[name]), norm(expected))


@pytest.mark.parametrize("graph", GRAPHS)
def test_sensitivities_stand_in_the_order_of_the_layers(graph):
    network = GRAPHS[graph][0]("tanh", "softmax")
    found = fnn.sensitivities(network, "cross_entropy", *problem(network, "cross_entropy", 0, GRAPHS[graph][1]))
    assert list(found) == [layer.name for layer in network.layers]


@pytest.mark.parametrize("graph", GRAPHS)
def test_input_gradients_are_autodiffs(graph):
    build, examples = GRAPHS[graph]
    network, loss = build("tanh", "softmax"), fnn.losses.kullback_leibler()
    if graph == "width one":
        network, loss = build("tanh", "sigmoid"), fnn.losses.binary_cross_entropy()
    params, inputs, targets = problem(network, loss, examples=examples)
    by_hand = fnn.backpropagate(network, loss, params, inputs, targets, input_gradients=True).input_gradients
    automatic = jax.grad(fnn.objective(network, loss), argnums=1)(params, inputs, targets)
    named = automatic if isinstance(automatic, dict) else {network.inputs[0][0]: automatic}
    assert relative_error(by_hand, named) <= 1e-12
    assert norm(by_hand) > 0
    assert fnn.backpropagate(network, loss, params, inputs, targets).input_gradients == {}


def test_backpropagate_gives_what_the_shorter_functions_give():
    network, loss = fan_out("tanh", "softmax"), fnn.losses.cross_entropy()
    params, inputs, targets = problem(network, loss)
    result = fnn.backpropagate(network, loss, params, inputs, targets)
    assert isinstance(result, fnn.Backpropagation)
    chex.assert_trees_all_equal(
        (result.value, result.gradients), fnn.value_and_grad(network, loss)(params, inputs, targets)
    )
    chex.assert_trees_all_equal(result.sensitivities, fnn.sensitivities(network, loss, params, inputs, targets))
    chex.assert_trees_all_equal(result.trace, network.forward(params, inputs))
    np.testing.assert_allclose(result.value, fnn.objective(network, loss)(params, inputs, targets), rtol=1e-15)


# Example weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("output", "loss"), [("softmax", "cross_entropy"), ("linear", "hinge"), ("prelu", "logistic")])
def test_a_weight_of_zero_drops_the_example(output, loss, reduction):
    network, loss = hagan_p32("tanh", output), fnn.losses.get(f"{loss}({reduction})")
    params, inputs, targets = problem(network, loss)
    kept = jnp.array([0, 2, 3])
    weights = jnp.array([1.0, 0.0, 2.0, 0.5])
    step = fnn.value_and_grad(network, loss)
    dropped, rest = step(params, inputs, targets, weights), step(params, inputs[kept], targets[kept], weights[kept])
    assert relative_error(dropped, rest) <= 1e-12
    manual, automatic = manual_and_automatic(network, loss, params, inputs, targets, weights)
    assert relative_error(manual, automatic) <= 1e-12
    plain, ones = step(params, inputs, targets), step(params, inputs, targets, jnp.ones(4))
    assert relative_error(ones, plain) <= 1e-12


@pytest.mark.parametrize("weights", [jnp.ones(1), jnp.ones(3), jnp.ones((4, 1)), jnp.full(4, jnp.nan), [1.0] * 4])
def test_weights_that_do_not_fit_the_examples_are_refused(weights):
    network, loss = hagan_p32("tanh", "linear"), fnn.losses.mean_square_error()
    params, inputs, targets = problem(network, loss)
    with pytest.raises((ValueError, TypeError), match="^weights: "):
        fnn.value_and_grad(network, loss)(params, inputs, targets, weights)


# The recursion as the network's own derivative ------------------------------------------------------------------------


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("graph", "hidden"), [(g, ("tanh", "prelu", "maxout(3)", "softmax")[i % 4]) for i, g in enumerate(GRAPHS)]
)
@pytest.mark.slow
def test_differentiable_is_apply_with_our_derivative(graph, hidden):
    build, examples = GRAPHS[graph]
    network = build(hidden, "elu(0.7)")
    params = random_params(network, jax.random.key(0))
    inputs = inputs_for(network, jax.random.key(1), examples)

    def program(apply):
        """Something no loss of ours is: the network twice, its outputs fed to other functions, a penalty."""

        def value(params, inputs):
            outputs = apply(params, inputs)
            moved = apply(jax.tree.map(lambda x: 0.9 * x, params), inputs)
            return jnp.sum(jnp.sin(outputs) * moved) + sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

        return value

    f = fnn.differentiable(network)
    np.testing.assert_array_equal(f(params, inputs), network.apply(params, inputs))
    by_hand = jax.grad(program(f), argnums=(0, 1))(params, inputs)
    automatic = jax.grad(program(network.apply), argnums=(0, 1))(params, inputs)
    assert relative_error(by_hand, automatic) <= 1e-12


def test_differentiable_runs_our_recursion(monkeypatch):
    network = hagan_p32("tanh", "linear")
    params, inputs = random_params(network, jax.random.key(0)), inputs_for(network, jax.random.key(1), 4)
    swept = []
    original = backprop.sweep
    monkeypatch.setattr(backprop, "sweep", lambda *given, **named: swept.append(1) or original(*given, **named))
    jax.grad(lambda params: jnp.sum(fnn.differentiable(network)(params, inputs)))(params)
    assert swept == [1]


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("hidden", ["sigmoid", "softmax", "prelu"])
def test_the_gradient_of_the_gradient_is_autodiffs(hidden):
    network = hagan_p32(hidden, "tanh")
    params, inputs = random_params(network, jax.random.key(0)), inputs_for(network, jax.random.key(1), 3)
    direction = random_params(network, jax.random.key(2))

    def hessian_product(apply):
        def slope(params):
            gradients = jax.grad(lambda params: jnp.sum(apply(params, inputs) ** 2))(params)
            return sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True))

        return jax.grad(slope)(params)

    assert relative_error(hessian_product(fnn.differentiable(network)), hessian_product(network.apply)) <= 1e-12


def test_differentiable_refuses_what_apply_refuses():
    network = chain((3, 4, 2), "tanh", "linear")
    params = network.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"inputs: expected shape \(Q, 3\), got \(5, 2\)"):
        fnn.differentiable(network)(params, jnp.ones((5, 2)))


# One result, however it is run ----------------------------------------------------------------------------------------


@pytest.mark.newest
@pytest.mark.parametrize(
    ("hidden", "output", "loss"),
    [
        ("tanh", "softmax", "cross_entropy"),
        pytest.param("maxout(3)", "prelu(layer)", "mean_square_error(sum)", marks=pytest.mark.slow),
    ],
)
def test_jit_vmap_and_eager_agree(hidden, output, loss):
    network, loss = fan_out(hidden, output), fnn.losses.get(loss)
    step = fnn.value_and_grad(network, loss)
    members = [problem(network, loss, seed)[0] for seed in range(3)]
    _, inputs, targets = problem(network, loss)
    eager = [step(params, inputs, targets) for params in members]

    def stack(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    compiled = jax.jit(step)(members[0], inputs, targets)
    assert relative_error(compiled, eager[0]) <= 1e-12

    over_params = jax.jit(jax.vmap(step, in_axes=(0, None, None)))(stack(members), inputs, targets)
    assert relative_error(over_params, stack(eager)) <= 1e-12

    alone = [jax.tree.map(lambda x, q=q: x[q : q + 1], (inputs, targets)) for q in range(4)]
    each = jax.jit(jax.vmap(step, in_axes=(None, 0, 0)))(members[0], *stack(alone))
    assert relative_error(each, stack([step(members[0], *example) for example in alone])) <= 1e-12
    reduce = {"mean": jnp.mean, "sum": jnp.sum}[loss.reduction]
    assert relative_error(jax.tree.map(lambda x: reduce(x, axis=0), each), eager[0]) <= 1e-12


def test_the_same_description_compiles_once():
    traced = []

    def value(network, params, inputs):
        traced.append(network)
        return network.apply(params, inputs)

    run = jax.jit(value, static_argnums=0)
    for _ in range(3):
        network = fnn.multilayer((3, 4, 2), ("leaky_relu(0.1)", "maxout(3)"))
        run(network, network.init(jax.random.key(0)), jnp.ones((5, 3)))
    assert len(traced) == 1


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("output", PROVED)
@pytest.mark.slow
def test_sixteen_bits_stay_finite_and_in_their_dtype(output):
    dtype = (jnp.bfloat16, jnp.float16)[PROVED.index(output) % 2]  # every activation meets both, as output and hidden
    hidden = PROVED[(PROVED.index(output) + 5) % len(PROVED)]
    network = hagan_p32(hidden, output)
    for loss in [name for name in LOSSES if admitted(name, output)][::2]:
        loss = fnn.losses.get(loss)
        params, inputs, targets = problem(network, loss, dtype=jnp.float64)  # data comes in another dtype
        rounded = jax.tree.map(lambda x: x.astype(dtype), params)
        result = fnn.backpropagate(network, loss, rounded, inputs, targets, jnp.ones(4), input_gradients=True)
        for leaf in jax.tree.leaves(result):
            assert leaf.dtype == dtype
            assert np.isfinite(np.asarray(leaf).astype(float)).all()
        chex.assert_trees_all_equal_shapes(result.gradients, params)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_sixteen_bits_follow_float64(dtype):
    network, loss = fan_out("tanh", "softmax"), fnn.losses.cross_entropy()
    params, inputs, targets = problem(network, loss)
    rounded = jax.tree.map(lambda x: x.astype(dtype), (params, inputs, targets))
    exact = jax.tree.map(lambda x: x.astype(jnp.float64), rounded)
    step = fnn.value_and_grad(network, loss)
    # Four layers forward and back, each rounding sums of up to 12 products: 2 * 4 * 12 roundings at most.
    assert relative_error(step(*rounded), step(*exact)) <= 96 * float(jnp.finfo(dtype).eps)


def test_logits_of_ten_thousand_give_finite_gradients():
    network = fnn.multilayer((2, 3), ("softmax",))
    loss = fnn.losses.cross_entropy()
    params = {"layer1": {"weights": {"input": jnp.array([[1e4, 0.0], [0.0, 1e4], [-1e4, 0.0]])}, "bias": jnp.zeros(3)}}
    inputs, targets = jnp.eye(2), jnp.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    (value, gradients), (value_auto, automatic) = manual_and_automatic(network, loss, params, inputs, targets)
    assert value == value_auto == 1e4  # (2e4 + 0) / 2
    chex.assert_trees_all_close(gradients, automatic, rtol=1e-15)
    np.testing.assert_array_equal(gradients["layer1"]["weights"]["input"], [[0.5, 0.0], [0.0, 0.0], [-0.5, 0.0]])


def test_a_class_masked_by_its_bias_gives_finite_gradients():
    network, loss = fnn.multilayer((2, 3), ("softmax",)), fnn.losses.cross_entropy()
    params, inputs, _ = problem(network, loss, examples=2)
    params["layer1"]["bias"] = params["layer1"]["bias"].at[1].set(-jnp.inf)
    targets = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    manual, automatic = manual_and_automatic(network, loss, params, inputs, targets)
    assert np.isfinite(norm(manual))
    assert relative_error(manual, automatic) <= 1e-12
    assert manual[1]["layer1"]["bias"][1] == 0


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["hardlim", "hardlims"])
@pytest.mark.parametrize("place", ["hidden", "output"])
def test_training_through_a_perceptron_is_refused(through, place):
    network = chain((2, 3, 1), *((through, "linear") if place == "hidden" else ("tanh", through)))
    params, loss = network.init(jax.random.key(0)), fnn.losses.mean_square_error()
    name = "layer1" if place == "hidden" else "layer2"
    message = f"layer '{name}': '{through}' has no derivative"
    with pytest.raises(ValueError, match=message):
        fnn.value_and_grad(network, loss)
    with pytest.raises(ValueError, match=message):
        fnn.differentiable(network)
    with pytest.raises(ValueError, match=message):
        fnn.sensitivities(network, loss, params, jnp.ones((4, 2)), jnp.ones((4, 1)))
    assert network.apply(params, jnp.ones((4, 2))).shape == (4, 1)  # it may still be used


@pytest.mark.parametrize(("loss", "output"), [("cross_entropy", "tanh"), ("kullback_leibler", "sigmoid")])
def test_a_loss_of_probabilities_is_refused_on_other_outputs(loss, output):
    network, loss = chain((2, 3, 2), "tanh", output), fnn.losses.get(loss)
    params, message = network.init(jax.random.key(0)), f"{loss.name} needs outputs that are "
    for refused in (fnn.value_and_grad, fnn.objective):
        with pytest.raises(ValueError, match=message):
            refused(network, loss)
    with pytest.raises(ValueError, match=message):
        fnn.backpropagate(network, loss, params, jnp.ones((4, 2)), jnp.ones((4, 2)))


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        ((4, 2), (4,), ValueError, r"targets: expected shape \(4, 1\) to match the outputs, got \(4,\)"),
        ((4, 2), (5, 1), ValueError, r"targets: expected shape \(4, 1\) to match the outputs, got \(5, 1\)"),
        ((4, 2), (4, 2), ValueError, r"targets: expected shape \(4, 1\) to match the outputs, got \(4, 2\)"),
        ((4, 3), (4, 1), ValueError, r"inputs: expected shape \(Q, 2\), got \(4, 3\)"),
        ((2,), (4, 1), ValueError, r"inputs: expected shape \(Q, 2\), got \(2,\)"),
        ((0, 2), (0, 1), ValueError, r"inputs: expected at least one example, got shape \(0, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_eagerly_and_under_jit(inputs, targets, error, message):
    network, loss = chain((2, 3, 1), "tanh", "linear"), fnn.losses.mean_square_error()
    arguments = network.init(jax.random.key(0)), jnp.ones(inputs), jnp.ones(targets)
    for step in (
        fnn.value_and_grad(network, loss),
        fnn.objective(network, loss),
        jax.jit(fnn.value_and_grad(network, loss)),
    ):
        with pytest.raises(error, match=message):
            step(*arguments)


@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("argument", ["inputs", "targets"])
def test_numbers_that_are_not_finite_are_refused(argument, wrong):
    network, loss = chain((2, 3, 2), "tanh", "linear"), fnn.losses.mean_square_error()
    given = {"inputs": jnp.ones((4, 2)), "targets": jnp.ones((4, 2))}
    given[argument] = given[argument].at[2, 1].set(wrong).at[3, 0].set(wrong)
    for step in (fnn.value_and_grad(network, loss), fnn.objective(network, loss)):
        with pytest.raises(ValueError, match=rf"{argument}: expected finite numbers, got {wrong} at index \(2, 1\)"):
            step(network.init(jax.random.key(0)), **given)


@pytest.mark.parametrize("targets", [[[1.0]] * 4, "ones", None])
def test_targets_that_are_no_array_are_refused(targets):
    network, loss = chain((2, 3, 1), "tanh", "linear"), fnn.losses.mean_square_error()
    with pytest.raises(TypeError, match="targets: expected an array of numbers, got"):
        fnn.value_and_grad(network, loss)(network.init(jax.random.key(0)), jnp.ones((4, 2)), targets)


# By hand --------------------------------------------------------------------------------------------------------------

AUTOMATIC = frozenset("grad value_and_grad vjp jvp jacobian jacfwd jacrev hessian linearize linear_transpose".split())
SOURCES = [Path(backprop.__file__), *sorted(Path(networks.__path__[0]).rglob("*.py"))]


def automatic_differentiation(source: str) -> list[str]:
    """Where a source reaches for JAX's automatic derivatives: by attribute, by import, or through its internals."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in AUTOMATIC:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax"):
            internal = node.module.startswith(("jax._src", "jax.interpreters", "jax.experimental"))
            found += [f"line {node.lineno}: {name.name}" for name in node.names if internal or name.name in AUTOMATIC]
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "eval", "exec", "__import__"):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_calls_automatic_differentiation(path):
    """But for one function, by which rows may take the change of their hand-written pullback: no gradient asks it."""
    found = [line.partition(": ")[2] for line in automatic_differentiation(path.read_text())]
    assert found == (["jax.jvp"] if path.name == "activation.py" else [])


@pytest.mark.parametrize(
    "source",
    [
        "jax.grad(f)",
        "import jax as j\nj.vjp(f, x)",
        "from jax import jacobian as d",
        "from jax._src import api",
        "getattr(jax, name)(f)",
    ],
)
def test_the_scan_would_find_it(source):
    assert len(automatic_differentiation(source)) == 1


def test_the_gradient_needs_none_of_jaxs_derivatives(monkeypatch):
    network, loss = fan_out("prelu", "softmax"), fnn.losses.cross_entropy()
    params, inputs, targets = problem(network, loss)
    expected = jax.value_and_grad(fnn.objective(network, loss))(params, inputs, targets)

    def refuse(*given, **named):
        raise AssertionError("automatic differentiation was called")

    for name in AUTOMATIC:
        monkeypatch.setattr(jax, name, refuse)
    with pytest.raises(AssertionError, match="automatic differentiation was called"):
        jax.value_and_grad(fnn.objective(network, loss))(params, inputs, targets)
    step = fnn.value_and_grad(network, loss)
    assert relative_error(step(params, inputs, targets), expected) <= 1e-12
    assert relative_error(jax.jit(step)(params, inputs, targets), expected) <= 1e-12


def test_the_backward_pass_reads_the_parameters_it_was_given():
    """The old weights are used throughout: nothing is changed in place, and a second call gives the same."""
    network, loss = fan_out("tanh", "softmax"), fnn.losses.cross_entropy()
    params, inputs, targets = problem(network, loss)
    before = jax.tree.map(np.array, params)
    step = fnn.value_and_grad(network, loss)
    first = step(params, inputs, targets)
    chex.assert_trees_all_equal(params, before)
    chex.assert_trees_all_equal(step(params, inputs, targets), first)
