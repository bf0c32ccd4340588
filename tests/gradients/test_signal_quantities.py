"""On convolutions, residuals and tokens, with weights and masks, every quantity equals its autodiff definition; and
Kronecker factors are the Gauss-Newton blocks themselves where theory says that they are.

The definitions see a network through `jax.grad`, `jax.jacrev` and `jax.hessian` of plain JAX alone, one example at a
time, and go on in NumPy. Letters: Q examples, P parameters, C numbers in one example's outputs, T positions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error
from jax.flatten_util import ravel_pytree
from signal_cases import chain, images, series, signal_problem, texts

import functional_nn as fnn
from functional_nn import Layer, curvature, quantities
from functional_nn.gradients import factors

TOLERANCE = 1e-10
KEY = jax.random.key(5)
LOSS = fnn.losses.cross_entropy()
MASK = np.array(
    [[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], float
)  # the second counts nowhere


def sequence(name, shape, **told):
    return fnn.presets.get(name)(shape, 3, **told)


# (network, loss, weights, block): of outputs without and with positions, their mean and their sum, weighed and masked
CASES = {
    "images": (images(), "cross_entropy", None, None),
    "images, outputs read": (images("linear", 2), "mean_square_error", None, 3),
    "texts": (texts(), "cross_entropy(sum)", None, 2),
    "texts, masked": (texts(), "cross_entropy(mean, positions=sum)", MASK, None),
    "texts, masked, summed": (texts(), "cross_entropy(sum)", MASK, 2),
    "texts, weighed": (texts(), "cross_entropy(sum, positions=sum)", np.array([1, 0, 2, 0.5]), 3),
    "transformer": (
        sequence("transformer(2, 2, 4, 3)", 4, tokens=5, each_position=True, lengths=True),
        "cross_entropy(sum)",
        MASK[:, :4],
        2,
    ),
    "transformer, gated": (
        sequence("transformer(1, 1, 4, 3, 'rotary', 'rms_norm', 'swiglu')", (4, 2), lengths=True),
        "cross_entropy",
        None,
        None,
    ),
    "lstm": (sequence("lstm(3)", (4, 2), lengths=True), "cross_entropy", None, 3),
    "gru": (
        sequence("gru(2, 2)", 4, tokens=5, each_position=True),
        "cross_entropy(mean, positions=sum)",
        MASK[:, :4] + 0.5,
        None,
    ),
    "series": (series(), "mean_square_error", None, None),
    "series, weighed": (series(), "sum_square_error(mean, positions=sum)", MASK[:, :2] + 0.5, 2),
}
FAST = ("images", "texts, masked, summed", "transformer, gated", "lstm")
cases = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)


# Definitions ----------------------------------------------------------------------------------------------------------


def rows(tree, lead=1):
    """A tree of (Q, ..., *shape) as one NumPy array (Q, ..., P), in `ravel_pytree`'s order."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)


def weighed(network, loss, examples, weights):
    """(part (Q,), share (Q,), positions (Q, *P)) by hand: parts sum to 1, shares make up F, and what each position
    counts for in its example is 1 on average.
    """
    shape = (examples, *network.shapes[network.output.name][:-1])
    weights = np.ones(examples) if weights is None else np.asarray(weights)
    each = weights.reshape(examples, -1).mean(axis=1)
    positions = np.ones(shape)
    if weights.ndim > 1:
        positions = weights / np.where(each > 0, each, 1).reshape(-1, *(1,) * (weights.ndim - 1))
    part = each / each.sum()
    return part, part if loss.reduction == "mean" else each, positions


def _derivatives(network, loss, params, inputs, targets, positions, weights, vector):
    """What the definitions need, of one program: of each example, and of F."""
    output = network.output
    of, _ = loss.convex_in(output.activation)
    count = 1 / np.prod(positions.shape[1:]) if loss.positions == "mean" else 1.0

    def read(params, x, of):
        trace = network.forward(params, jax.tree.map(lambda v: v[None], x))
        return (trace.net_inputs if of == "net_inputs" else trace.activations)[output.name].ravel()

    def of_read(x, t, own):  # F_q as a function of what it is convex in
        x, t = x.reshape(own.size, -1), t.reshape(own.size, -1)
        found = loss.fused_with(output.activation).value if of == "net_inputs" else loss.example_value
        return jnp.sum(found(x, t) * own.ravel()) * count

    def value(params, x, t, own):
        return of_read(read(params, x, of), t, own)

    def each(x, t, own):
        at = read(params, x, of)
        return {
            "losses": value(params, x, t, own),
            "gradients": jax.grad(value)(params, x, t, own),
            "jacobian": {of: jax.jacrev(read)(params, x, of) for of in ("outputs", "net_inputs")},
            "curvature": jax.hessian(of_read)(at, t, own),
        }

    objective = fnn.objective(network, loss)
    floats = {name: x for name, x in inputs.items() if name not in network.tokens}

    def whole(params, floats):
        return objective(params, inputs | floats, targets, weights)

    gradient = jax.grad(whole)
    return jax.vmap(each)(inputs, targets, positions) | {
        "gradient": gradient(params, floats),
        "input_gradients": jax.grad(whole, 1)(params, floats),
        "hessian_vector_product": jax.jvp(lambda p: gradient(p, floats), (params,), (vector,))[1],
    }


def definitions(network, loss, params, inputs, targets, weights, vector):
    """{name: what the quantity is}, NumPy arrays that are flat in the parameters."""
    prepared = network.prepare(params, inputs)
    coded = network.prepare_targets(prepared, targets, loss, jnp.float64)
    part, share, positions = weighed(network, loss, len(coded), weights)
    derivatives = jax.jit(functools.partial(_derivatives, network, loss))
    found = derivatives(params, prepared, coded, jnp.asarray(positions), weights, vector)
    g, of = rows(found["gradients"]), loss.convex_in(network.output.activation)[0]
    norms, mean = np.linalg.norm(g, axis=1), part @ g
    J = {of: rows(own, 2) for of, own in found["jacobian"].items()}
    G = np.einsum("q,qcp,qcd,qdr->pr", share, J[of], found["curvature"], J[of])
    return (
        {
            "per_example_losses": found["losses"],
            "per_example_gradients": g,
            "per_example_norms": norms,
            "inner_products": g @ g.T,
            "input_gradients": found["input_gradients"],
            "F": share @ np.asarray(found["losses"]),
            "F's gradient": share @ g,
            "gradient": share @ g,
            "clipped_gradient": (share * np.minimum(1, np.median(norms) / np.maximum(norms, 1e-300))) @ g,
            "second_moment": part @ g**2,
            "variance": part @ g**2 - mean**2,
            "noise": (part @ norms**2 - mean @ mean) / (1 - part @ part),
            "jacobian": J["outputs"],
            "tangent_kernel": np.einsum("qcp,rdp->qrcd", J["outputs"], J["outputs"]),
            "tangent_kernel_trace": np.einsum("qcp,rcp->qr", J["outputs"], J["outputs"]),
            "gauss_newton": G,
            "gauss_newton_diagonal": np.diag(G),
        },
        found,
        np.median(norms),
        G,
    )


MEASURED = (
    "per_example_losses",
    "per_example_gradients",
    "per_example_norms",
    "inner_products",
    "input_gradients",
    "gradient",
    "clipped_gradient",
    "second_moment",
    "variance",
    "noise_scale",
    "jacobian",
    "tangent_kernel",
    "tangent_kernel_trace",
    "gauss_newton",
    "gauss_newton_diagonal",
    "sampled_gauss_newton_diagonal",
)


@functools.cache
def compared(name):
    """(ours by name, the definitions, what else was found of them), each flat in the parameters."""
    network, loss, weights, block = CASES[name]
    loss, weights = fnn.losses.get(loss), None if weights is None else jnp.asarray(weights)
    params, inputs, targets = signal_problem(network, loss)
    vector = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params)
    expected, found, max_norm, G = definitions(network, loss, params, inputs, targets, weights, vector)
    settings = {"weights": weights, "block": block}

    @jax.jit
    def measure(params, inputs, targets, vector):
        given = network, loss, params, inputs, targets
        own = quantities.compute(*given, MEASURED, max_norm=max_norm, key=KEY, samples=512, **settings)
        by_matrix = {of: curvature.products(*given, of, **settings)(vector) for of in ("hessian", "gauss_newton")}
        return own, by_matrix, fnn.value_and_grad(network, loss)(params, inputs, targets, weights)

    own, by_matrix, (F, gradient) = measure(params, inputs, targets, vector)
    flat = {"F": F, "F's gradient": np.asarray(ravel_pytree(gradient)[0])}
    for key, value in own.items():
        if key == "per_example_gradients":
            flat[key] = rows(value)
        elif key == "jacobian":
            shape = network.shapes[network.output.name]
            flat[key] = rows(value, 1 + len(shape)).reshape(len(targets), int(np.prod(shape)), -1)
        elif key == "tangent_kernel":
            flat[key] = np.asarray(value).reshape(expected[key].shape)
        elif key == "noise_scale":
            flat["noise"] = np.asarray(value.total.noise)
        elif isinstance(value, dict) and key != "input_gradients":
            flat[key] = np.asarray(ravel_pytree(value)[0])
        else:
            flat[key] = value
    v = np.asarray(ravel_pytree(vector)[0])
    products = {
        "hessian": (ravel_pytree(by_matrix["hessian"])[0], ravel_pytree(found["hessian_vector_product"])[0]),
        "gauss_newton": (ravel_pytree(by_matrix["gauss_newton"])[0], G @ v),
    }
    return flat, expected, found, products


@pytest.mark.sampled(every=3)
@cases
def test_every_quantity_is_what_autodiff_says(name):
    ours, expected, found, _ = compared(name)
    apart = {key: relative_error(jax.tree.map(np.asarray, ours[key]), value) for key, value in expected.items()}
    assert max(apart.values()) <= TOLERANCE, apart
    # and the definitions make up F
    assert relative_error(expected["gradient"], np.asarray(ravel_pytree(found["gradient"])[0])) <= TOLERANCE


@cases
def test_products_of_the_r_operator_are_those_of_autodiffs_matrices(name):
    _, _, _, products = compared(name)
    for of, (ours, expected) in products.items():
        assert relative_error(np.asarray(ours), np.asarray(expected)) <= TOLERANCE, of


@pytest.mark.sampled(every=16)
@pytest.mark.parametrize("name", CASES)
def test_gauss_newton_has_no_negative_eigenvalue_and_its_sampled_diagonal_approaches_it(name):
    ours, expected, _, _ = compared(name)
    values = np.linalg.eigvalsh(np.asarray(ours["gauss_newton"]))
    assert values[0] >= -1e-13 * values[-1]
    # the mean of K draws is off by 1/sqrt(K) of a draw's own spread, sqrt(2) of its mean where all is one direction
    bound = 2 * np.sqrt(2 / 512)
    assert relative_error(ours["sampled_gauss_newton_diagonal"], expected["gauss_newton_diagonal"]) < bound


def test_both_ways_of_summing_are_taken(monkeypatch):
    """Gram matrices where positions are few and kernels wide, derivatives formed elsewhere; of one example, of two."""
    taken, decide = set(), factors._gram_pays

    def watched(f, positions):
        found = decide(f, positions)
        taken.add((positions > f.left.shape[-2], found))
        return found

    monkeypatch.setattr(factors, "_gram_pays", watched)
    names = ("per_example_gradients", "per_example_norms", "inner_products", "jacobian", "tangent_kernel_trace")

    def measure(network, loss):
        return lambda *given: quantities.compute(network, loss, *given, names)

    jax.eval_shape(measure(images(), LOSS), *signal_problem(images()))
    network, loss = CASES["series"][:2]
    found = jax.jit(measure(network, loss))(*signal_problem(network, loss))
    assert taken == {(pairs, pays) for pairs in (False, True) for pays in (False, True)}
    g, J = rows(found["per_example_gradients"]), rows(found["jacobian"], 1)
    assert relative_error(found["per_example_norms"], np.linalg.norm(g, axis=1)) <= 1e-12
    assert relative_error(found["inner_products"], g @ g.T) <= 1e-12
    assert relative_error(found["tangent_kernel_trace"], J @ J.T) <= 1e-12


def test_the_hessian_is_autodiffs_and_symmetric_and_its_spectrum_numpys():
    network, loss = CASES["series, weighed"][:2]
    params, inputs, targets = signal_problem(network, loss)
    x, unravel = ravel_pytree(params)
    objective = fnn.objective(network, loss)
    expected = jax.jit(jax.hessian(lambda x: objective(unravel(x), inputs, targets)))(x)
    H = jax.jit(lambda p: curvature.hessian(network, loss, p, inputs, targets))(params)
    assert relative_error(H, expected) <= TOLERANCE and relative_error(H.T, H) <= 1e-13
    extremes = functools.partial(curvature.extreme_eigenvalues, network, loss, key=KEY, steps=len(x))
    found = jax.jit(extremes)(params, inputs, targets)
    np.testing.assert_allclose((found.smallest, found.largest), np.linalg.eigvalsh(H)[[0, -1]], rtol=1e-9)


def test_layers_are_described_over_all_positions():
    """Means over examples, positions and channels; a channel is dead where it is at every position of every example."""
    network, loss = chain("conv(3)", "relu"), fnn.losses.cross_entropy("sum")
    params, inputs, targets = signal_problem(network)
    shut = jnp.zeros((6, 4)).at[1:, 0].set(-100.0).at[:, 1].set(-100.0)  # at all positions but one, and at all
    params["first"]["bias"] = params["first"]["bias"] + shut.at[0, 0].set(100.0)
    found = jax.jit(lambda p: quantities.layer_statistics(network, loss, p, inputs, targets, block=2))(params)
    zeros = {name: jnp.zeros((len(inputs), *n)) for name, n in network.net_shapes.items()}

    def value(offsets):
        trace = network.forward(params, inputs, offsets)
        return loss.value(trace.activations["output"], fnn.one_hot(targets, 3)), trace

    s, trace = jax.jit(jax.grad(value, has_aux=True))(zeros)
    for name, own in found.items():
        a = np.asarray(trace.activations[name])
        expected = (a.mean(), a.std(), np.sqrt(np.mean(np.asarray(s[name]) ** 2)))
        np.testing.assert_allclose(own[:3], expected, rtol=1e-9, err_msg=name)
    shut = np.mean(np.asarray(trace.net_inputs["first"]) <= 0)
    assert found["first"].dead == 0.25 and found["first"].saturated == pytest.approx(shut) and shut > 11 / 24


# Kronecker factors ----------------------------------------------------------------------------------------------------


def blocks(network, loss, params, inputs, targets):
    """{layer: its block of the Gauss-Newton matrix}, weights as (S, K) and the bias's column behind them."""
    G = jax.jit(lambda *own: quantities.gauss_newton(network, loss, *own))(params, inputs, targets)
    numbers, found = numbered(params), {}
    for layer in network.layers:
        own = numbers[layer.name]
        if layer.weighted:
            picked = as_matrix(layer, own).ravel()
            found[layer.name] = np.asarray(G)[np.ix_(picked, picked)]
    return found


def as_matrix(layer, tree):
    """A layer's weights (S, K) side by side, and its bias behind them."""
    parts = [np.reshape(w, (len(w), -1)) for w in tree["weights"].values()]
    return np.concatenate(parts + ([tree["bias"][:, None]] if layer.bias == "per_neuron" else []), axis=1)


def numbered(params):
    """The place of every parameter in `ravel_pytree`'s order."""
    flat, unravel = ravel_pytree(params)
    return jax.tree.map(lambda x: np.asarray(x, int), unravel(jnp.arange(len(flat), dtype=flat.dtype)))


def kronecker(factors):
    return np.kron(factors.sensitivities, factors.activations)


def both_ways(network, loss, params, inputs, targets, **settings):
    """{"expand": kflr, "reduce": kflr}, of one program."""

    def measure(*given):
        return {way: quantities.kflr(network, loss, *given, shared=way, **settings) for way in ("expand", "reduce")}

    return jax.jit(measure)(params, inputs, targets)


def one_position():
    """Kernels as large as what they read: one position, and nothing is shared."""
    return fnn.graph(
        inputs={"p": (3, 2, 2)},
        layers=[
            Layer("conv", 4, "tanh", [("p", "conv((3, 2), padding='valid')")]),
            Layer("dense", 3, "sigmoid", [("conv", "dense")]),
            Layer("output", 3, "softmax", [("dense", "full")]),
        ],
    )


def at_each_position():
    """Linear, a window into dense layers at each position, and a loss there."""
    return fnn.graph(
        inputs={"p": (5, 2)},
        layers=[
            Layer("conv", 4, "linear", [("p", "conv(3)")]),
            Layer("same", 4, "linear", [("conv", "identity")], bias="none"),
            Layer("output", 2, "linear", [("same", "dense")]),
        ],
    )


def of_the_mean():
    """Linear, a window into dense layers at each position, and a loss on the positions' mean."""
    return fnn.graph(
        inputs={"p": (5, 2)},
        layers=[
            Layer("conv", 4, "linear", [("p", "conv(3, stride=2)")], bias="per_position"),
            Layer("dense", 3, "linear", [("conv", "dense")]),
            Layer("mean", 3, "linear", [("dense", "mean_pool")], bias="none"),
            Layer("output", 2, "linear", [("mean", "dense")]),
        ],
    )


@pytest.mark.parametrize(
    ("network", "loss", "examples", "shared"),
    [
        (one_position(), "cross_entropy", 1, "expand"),
        (at_each_position(), "mean_square_error", 4, "expand"),
        (at_each_position(), "mean_square_error(sum, positions=sum)", 4, "expand"),
        (of_the_mean(), "mean_square_error", 4, "reduce"),
    ],
)
def test_kronecker_factors_are_exact_where_theory_says_so(network, loss, examples, shared):
    """One example and position; deep linear networks in the two settings of Eschenhagen et al. 2023, Prop. 1 and 2."""
    given = network, loss, *signal_problem(network, loss, examples=examples)
    found, exact = both_ways(*given), blocks(*given)
    apart = {
        way: max(relative_error(kronecker(own[name]), exact[name]) for name in exact) for way, own in found.items()
    }
    assert apart.pop(shared) <= TOLERANCE
    (other,) = apart.values()
    assert other <= TOLERANCE if examples == 1 else other > 1e-2  # a test that both would pass would say nothing


def test_kronecker_factors_of_a_nonlinear_network_are_the_sums_that_they_are_defined_as():
    """Of the Jacobian at each position, and of what a neuron reads there, both by autodiff; expand and reduce."""
    network, loss = images("linear", 2), fnn.losses.mean_square_error()
    params, inputs, targets = signal_problem(network, loss.name)
    Q, layer = len(inputs), "conv1"
    zeros = {layer: jnp.zeros((1, *network.net_shapes[layer]))}

    def outputs(x):
        jacobian = jax.jacrev(lambda own: network.forward(params, x[None], own).activations["output"][0])
        return jacobian(zeros)[layer].reshape(2, -1, 4)

    J = np.asarray(jax.jit(jax.vmap(outputs))(inputs))  # (Q, C, T, S), of a loss whose second derivative is I
    w, by = params[layer]["weights"]["image"], network.layers[0].connections[0]
    read = jax.jit(jax.vmap(jax.jacrev(lambda w, x: by.forward(x[None], w)[0, ..., 0]), (None, 0)))(w, inputs)
    a = np.asarray(read)[:, :, :, 0].reshape(Q, J.shape[2], -1)  # d z_t0 / d W_0
    a = np.concatenate([a, np.ones((*a.shape[:2], 1))], axis=2)
    expected = {
        "expand": (np.einsum("qtk,qtl->kl", a, a) / a.shape[1] / Q, np.einsum("qcts,qctr->sr", J, J) / Q),
        "reduce": (
            np.einsum("qk,ql->kl", a.mean(axis=1), a.mean(axis=1)) / Q,
            np.einsum("qcs,qcr->sr", J.sum(axis=2), J.sum(axis=2)) / Q,
        ),
    }
    ours = both_ways(network, loss, params, inputs, targets, block=3)
    for way, pair in expected.items():
        assert max(map(relative_error, ours[way][layer][:2], pair)) <= TOLERANCE, way


@pytest.mark.parametrize(
    ("network", "widths"),
    [
        (images(), {"conv1": 19, "pool1": 0, "conv2": 18, "block": 0, "output": 49}),
        pytest.param(texts(), {"embedded": 9, "conv": 13, "output": 9}, marks=pytest.mark.slow),
    ],
)
def test_kronecker_factors_of_what_has_groups_tokens_or_no_weights(network, widths):
    """Symmetric, without negative eigenvalues, as large as they should be; sampled sweeps approach exact curvature."""
    given = network, "cross_entropy", *signal_problem(network)
    exact, G = (
        both_ways(*given),
        jax.jit(lambda *own: quantities.gauss_newton(network, LOSS, *own))(*given[2:]),
    )
    sampled = jax.jit(lambda *own: quantities.kfac(network, LOSS, *own, key=KEY, samples=256))(*given[2:])
    assert {name: len(own.activations) for name, own in exact["expand"].items()} == widths
    for name, own in exact["expand"].items():
        assert relative_error(sampled[name].activations, own.activations) <= 1e-13
        assert relative_error(sampled[name].sensitivities, own.sensitivities) < 2 * np.sqrt(2 / 256)
    for name, own in [pair for found in exact.values() for pair in found.items()]:
        for factor in own[:2]:
            assert relative_error(factor.T, factor) <= 1e-13
            assert factor.size == 0 or np.linalg.eigvalsh(factor)[0] >= -1e-13 * np.linalg.norm(factor)
        # a bias for each position, a slope and a shared bias have the Gauss-Newton matrix's own blocks
        assert set(own.others) == alone(network, name, given[2])
        places = {key: numbered(given[2])[name][key] for key in own.others}
        for block, picked in zip(jax.tree.leaves(own.others), jax.tree.leaves(places), strict=True):
            assert relative_error(block, G[np.ix_(picked.ravel(), picked.ravel())]) <= TOLERANCE, name


def alone(network, name, params):
    """What of a layer's parameters is no outer product."""
    layer = next(layer for layer in network.layers if layer.name == name)
    in_product = {"weights"} | ({"bias"} if layer.weighted and layer.bias == "per_neuron" else set())
    return set(params[name]) - in_product


@pytest.mark.slow
def test_kronecker_factors_of_recurrent_weights_are_those_of_weights_that_positions_share():
    """By their definitions: A of the states before each step, G of dF/d(U h) at each, and no outer product is made."""
    network, T = sequence("gru(2)", (3, 2)), 3
    params, inputs, targets = signal_problem(network)
    found = both_ways(network, "cross_entropy", params, inputs, targets)

    def steps(x, offsets):
        """The states, step by step, with what is added to U h."""
        own, h, states = params["state1"], params["state1"]["learned"]["initial"], []
        for t in range(T):
            states.append(h)
            n = own["weights"]["sequence"] @ x[t] + own["bias"]
            z = own["learned"]["recurrent"] @ h + offsets[t]
            r, u = jax.nn.sigmoid(n[:2] + z[:2]), jax.nn.sigmoid(n[2:4] + z[2:4])
            h = (1 - u) * jnp.tanh(n[4:] + r * z[4:]) + u * h
        out = params["output"]
        return jnp.stack(states), out["weights"]["last"] @ h + out["bias"]

    zeros, fused = jnp.zeros((T, 6)), LOSS.fused_with(network.output.activation).curvature
    states, J, roots = [], [], []
    coded = np.eye(3)[np.asarray(targets)]
    for x, t in zip(inputs, coded, strict=True):
        h, n = steps(x, zeros)
        states.append(h)
        roots.append(fused.root(n[None], jnp.asarray(t)[None])[0])  # (C, 3)
        J.append(roots[-1] @ jax.jacrev(lambda e, x=x: steps(x, e)[1])(zeros).reshape(3, -1))
    states, J = np.stack(states), np.stack(J).reshape(len(coded), -1, T, 6)
    own = found["expand"]["state1"].others["learned"]
    assert relative_error(own["recurrent"].activations, np.einsum("qts,qtr->sr", states, states) / T / len(J)) <= 1e-12
    assert relative_error(own["recurrent"].sensitivities, np.einsum("qcts,qctr->sr", J, J) / len(J)) <= 1e-12
    own = found["reduce"]["state1"].others["learned"]
    mean, summed = states.mean(axis=1), J.sum(axis=2)
    assert relative_error(own["recurrent"].activations, np.einsum("qs,qr->sr", mean, mean) / len(J)) <= 1e-12
    assert relative_error(own["recurrent"].sensitivities, np.einsum("qcs,qcr->sr", summed, summed) / len(J)) <= 1e-12
    assert own["initial"].shape == (2, 2)
    vector = jax.tree.map(jnp.ones_like, params)
    solved = curvature.kronecker_solve(network, found["expand"], 0.1, vector)["state1"]["learned"]
    pair = found["expand"]["state1"].others["learned"]["recurrent"]
    A, G = np.asarray(pair.activations), np.asarray(pair.sensitivities)
    pi = np.sqrt(np.trace(A) / 2 / (np.trace(G) / 6))
    damped = np.kron(G + np.sqrt(0.1) / pi * np.eye(6), A + np.sqrt(0.1) * pi * np.eye(2))
    np.testing.assert_allclose(np.ravel(solved["recurrent"]), np.linalg.solve(damped, np.ones(12)), rtol=1e-9)


def test_a_damped_solve_is_numpys_of_the_kronecker_product():
    """Martens and Grosse 2015, Sec. 6.3: (G + sqrt(lambda) / pi I) (x) (A + pi sqrt(lambda) I)."""
    network, loss, damping = of_the_mean(), "mean_square_error", 0.1
    params, inputs, targets = signal_problem(network, loss)
    found = both_ways(network, loss, params, inputs, targets)["reduce"]
    vector = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params)
    solved = jax.jit(lambda *own: curvature.kronecker_solve(network, *own))(found, damping, vector)
    for layer in network.layers:
        own, v, x = found[layer.name], vector[layer.name], solved[layer.name]
        if layer.weighted:
            G, A = np.asarray(own.sensitivities), np.asarray(own.activations)
            pi = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))
            damped = np.kron(G + np.sqrt(damping) / pi * np.eye(len(G)), A + np.sqrt(damping) * pi * np.eye(len(A)))
            right, left = (as_matrix(layer, tree) for tree in (v, x))
            np.testing.assert_allclose(left.ravel(), np.linalg.solve(damped, right.ravel()), rtol=1e-9)
    of_bias = np.asarray(found["conv"].others["bias"])
    expected = np.linalg.solve(of_bias + damping * np.eye(len(of_bias)), np.ravel(vector["conv"]["bias"]))
    np.testing.assert_allclose(np.ravel(solved["conv"]["bias"]), expected, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), solved, vector)


def test_weights_that_unequal_numbers_of_positions_share_have_no_kronecker_factors():
    network = fnn.graph(
        inputs={"p": (4, 2), "q": (4, 2)},
        layers=[Layer("output", 2, "linear", [("p", "conv(3, groups=2)"), ("q", "conv(3)")])],
    )
    given = network, "mean_square_error", *signal_problem(network, "mean_square_error")
    with pytest.raises(ValueError, match="layer 'output': Kronecker factors need .* got 8, 4"):
        quantities.kflr(*given)
