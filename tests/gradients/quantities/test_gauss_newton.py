"""Gauss-Newton matrix, its diagonal, Kronecker factors, and their sampled estimates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    OUTPUT_PAIRS,
    chain,
    problem,
    relative_error,
)
from jax.flatten_util import ravel_pytree
from quantity_cases import (
    KEY,
    LOSS,
    NETWORK,
    TOLERANCE,
    each_curvature,
    each_sensitivity,
    flat,
    rows,
)

import functional_nn as fnn
from functional_nn import quantities
from functional_nn.gradients import views


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
def test_kronecker_factors_are_their_definitions(data, loss):
    loss = fnn.losses.get(loss)
    found = quantities.kflr(NETWORK, loss, *data, block=3)
    for name, (A, B) in kronecker_definition(NETWORK, loss, *data).items():
        assert relative_error(found[name].activations, A) <= TOLERANCE
        assert relative_error(found[name].sensitivities, B) <= TOLERANCE
    whole = np.asarray(quantities.gauss_newton(NETWORK, loss, *data))
    order = flat({name: jax.tree.map(jnp.zeros_like, own) for name, own in data[0].items()}).size
    positions = jax.tree.unflatten(*_numbered(data[0]))
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


def test_samples_are_unbiased(data):
    """The mean of many single samples is within five of its standard errors; and they do vary."""
    exact = {
        "diagonal": quantities.gauss_newton_diagonal(NETWORK, LOSS, *data),
        "factors": {name: f._replace(activations=None) for name, f in quantities.kflr(NETWORK, LOSS, *data).items()},
    }

    def sampled(key):
        names = ("sampled_gauss_newton_diagonal", "kfac")
        found = quantities.compute(NETWORK, LOSS, *data, names, key=key, samples=2)
        return {
            "diagonal": found["sampled_gauss_newton_diagonal"],
            "factors": {name: f._replace(activations=None) for name, f in found["kfac"].items()},
        }

    draws = rows(jax.jit(jax.vmap(sampled))(jax.random.split(KEY, 2000)))
    error = draws.std(axis=0) / np.sqrt(len(draws))
    apart = np.abs(draws.mean(axis=0) - flat(exact))
    assert (apart <= 5 * error + 1e-14).all()
    assert (error[flat(exact) != 0] > 0).mean() > 0.9


def test_samples_do_not_depend_on_the_blocks(data):
    options = {"key": KEY, "samples": 3}
    whole = quantities.kfac(NETWORK, LOSS, *data, **options)
    assert relative_error(quantities.kfac(NETWORK, LOSS, *data, block=2, **options), whole) <= 1e-12


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
def test_blocks_of_columns_are_all_columns(combined, block):
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
    names = ("kflr", "gauss_newton_diagonal", "gauss_newton")
    found = quantities.compute(network, loss, params, x, t, names, block=block)
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
