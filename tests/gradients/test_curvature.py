"""Second derivatives by the R-operator equal autodiff's; spectra, traces and models are those of the matrix."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GRAPHS, OUTPUT_PAIRS, PROVED, admitted, chain, fan_out, problem, random_params, relative_error
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn import curvature, quantities

TOLERANCE = 1e-10
KEY = jax.random.key(3)
SMOOTH = tuple(name for name in PROVED if fnn.activations.get(name).smooth)
SMOOTH_PAIRS = [(f, loss) for f, loss in OUTPUT_PAIRS if f in SMOOTH and fnn.losses.get(loss).smooth]


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def assert_products(network, loss, given, seed=9):
    """H v against jvp(grad), G v against jvp and vjp around the loss's own Hessian-vector product."""
    params, inputs, targets = given
    v = random_params(network, jax.random.key(seed))
    objective, name = fnn.objective(network, loss), network.output.name

    # each product is compiled whole, which takes less than its operations one by one
    @jax.jit
    def by_autodiff(params, v):
        return jax.jvp(lambda p: jax.grad(objective)(p, inputs, targets), (params,), (v,))[1]

    @jax.jit
    def by_hand(params, v):
        products = (curvature.hessian_vector_product, curvature.gauss_newton_vector_product)
        return [product(network, loss, params, inputs, targets, v) for product in products]

    hessian_product, gauss_newton_product = by_hand(params, v)
    assert relative_error(hessian_product, by_autodiff(params, v)) <= TOLERANCE
    chex.assert_trees_all_equal_shapes_and_dtypes(hessian_product, params)

    of, _ = loss.convex_in(network.output.activation)
    pair = loss.fused_with(network.output.activation)

    def read(params):
        trace = network.forward(params, inputs)
        return (trace.net_inputs if of == "net_inputs" else trace.activations)[name]

    def value(x):
        return loss.reduce(pair.value(x, targets)) if of == "net_inputs" else loss.value(x, targets)

    @jax.jit
    def around_the_loss(params, v):
        x, r = jax.jvp(read, (params,), (v,))
        bent = jax.jvp(jax.grad(value), (x,), (r,))[1]
        return jax.vjp(read, params)[1](bent)[0]

    assert relative_error(gauss_newton_product, around_the_loss(params, v)) <= TOLERANCE


@pytest.mark.sampled(every=6)
@pytest.mark.parametrize("output", PROVED)
def test_products_are_autodiffs(output):
    """Every activation over half of the losses that admit it, every loss over some, on a graph of all sorts."""
    admitting = [loss for f, loss in OUTPUT_PAIRS if f == output]
    for i, loss in enumerate(admitting[PROVED.index(output) % 2 :: 2]):
        hidden, reduction = PROVED[(2 * i + PROVED.index(output) + 3) % len(PROVED)], ("mean", "sum")[i % 2]
        network, loss = fan_out(hidden, output), fnn.losses.get(f"{loss}({reduction})")
        assert_products(network, loss, problem(network, loss, 0, 5))


@pytest.mark.slow
@pytest.mark.parametrize("hidden", SMOOTH)
def test_products_are_autodiffs_for_smooth_hidden_layers(hidden):
    for output, loss in SMOOTH_PAIRS[SMOOTH.index(hidden) :: len(SMOOTH)]:
        network, loss = fan_out(hidden, output), fnn.losses.get(loss)
        assert_products(network, loss, problem(network, loss, 4, 5))


@pytest.mark.slow
@pytest.mark.parametrize("graph", [name for name in GRAPHS if name != "width one"])
@pytest.mark.parametrize("output", PROVED)
def test_products_are_autodiffs_for_the_full_product(graph, output):
    build, examples = GRAPHS[graph]
    for hidden in PROVED:
        for loss in fnn.losses.names():
            if admitted(loss, output):
                network = build(hidden, output)
                assert_products(network, fnn.losses.get(loss), problem(network, loss, 1, examples))


NETWORK, LOSS = fan_out("tanh", "softmax"), fnn.losses.cross_entropy()


@pytest.fixture(scope="module")
def given():
    return problem(NETWORK, LOSS, 2, 5)


@pytest.fixture(scope="module")
def exact(given):
    """The Hessian by `jax.hessian`, as a matrix."""
    vector, unravel = ravel_pytree(given[0])
    objective = fnn.objective(NETWORK, LOSS)
    return np.asarray(jax.jit(jax.hessian(lambda x: objective(unravel(x), *given[1:])))(vector))


def test_products_are_symmetric(given):
    """u^T H v = v^T H u, and the same of Gauss-Newton."""
    u, v = (random_params(NETWORK, jax.random.key(seed)) for seed in (1, 2))
    for of in ("hessian", "gauss_newton"):
        product = curvature.products(NETWORK, LOSS, *given, of)
        one, other = flat(u) @ flat(product(v)), flat(v) @ flat(product(u))
        assert one == pytest.approx(other, rel=1e-10)


def test_blocks_and_weights_change_nothing_else(given):
    params, inputs, targets = given
    v = random_params(NETWORK, KEY)
    weights = jnp.array([1.0, 0.5, 0.0, 2.0, 1.0])
    objective = fnn.objective(NETWORK, LOSS)
    expected = jax.jvp(lambda p: jax.grad(objective)(p, inputs, targets, weights), (params,), (v,))[1]
    for block in (2, None):
        found = curvature.hessian_vector_product(NETWORK, LOSS, *given, v, weights=weights, block=block)
        assert relative_error(found, expected) <= TOLERANCE
    whole = curvature.gauss_newton_vector_product(NETWORK, LOSS, *given, v)
    assert relative_error(curvature.gauss_newton_vector_product(NETWORK, LOSS, *given, v, block=3), whole) <= TOLERANCE


@pytest.mark.slow
def test_products_under_jit_vmap_and_grad(given):
    """A population of directions in one program in float32; and the derivative of v^T H v by v is 2 H v."""
    small = jax.tree.map(lambda x: x.astype(jnp.float32), given)
    vs = [random_params(NETWORK, jax.random.key(i)) for i in (1, 2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x).astype(jnp.float32), *vs)
    found = jax.jit(jax.vmap(curvature.products(NETWORK, LOSS, *small)))(stacked)
    product = curvature.products(NETWORK, LOSS, *given)
    for i, v in enumerate(vs):
        # about 100 roundings of 6e-8 in each number, in the norm over all of them
        assert relative_error(jax.tree.map(lambda x, i=i: x[i], found), product(v)) <= 1e-5

    def square(v):
        return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (v, product(v))), strict=True))

    twice = jax.tree.map(lambda x: 2 * x, product(vs[0]))
    assert relative_error(jax.grad(square)(vs[0]), twice) <= TOLERANCE


def test_the_hessian_is_autodiffs(given, exact):
    found = np.asarray(jax.jit(lambda params: curvature.hessian(NETWORK, LOSS, params, *given[1:]))(given[0]))
    assert relative_error(found, exact) <= TOLERANCE
    assert relative_error(found, found.T) <= TOLERANCE


def test_gauss_newton_products_are_the_matrix(given):
    G = np.asarray(quantities.gauss_newton(NETWORK, LOSS, *given))
    v = random_params(NETWORK, KEY)
    assert (
        relative_error(flat(curvature.gauss_newton_vector_product(NETWORK, LOSS, *given, v)), G @ flat(v)) <= TOLERANCE
    )


# Spectrum -------------------------------------------------------------------------------------------------------------


def test_extreme_eigenvalues_are_the_matrix_s(given, exact):
    values = np.linalg.eigvalsh(exact)
    found = curvature.extreme_eigenvalues(NETWORK, LOSS, *given, key=KEY, steps=30)
    for i, (value, vector) in enumerate(
        ((found.smallest, found.smallest_vector), (found.largest, found.largest_vector))
    ):
        x = flat(vector)
        assert np.linalg.norm(x) == pytest.approx(1, rel=1e-10)
        residual = np.linalg.norm(exact @ x - float(value) * x)
        assert residual == pytest.approx(float(found.residuals[i]), rel=1e-3, abs=1e-14)
        assert abs(float(value) - values[-i]) <= residual + 1e-12
    assert float(found.largest) == pytest.approx(values[-1], rel=1e-8)


def test_as_many_steps_as_parameters_are_exact():
    network = chain((2, 2), "tanh", "softmax")
    given = problem(network, LOSS, 0)
    exact = np.linalg.eigvalsh(np.asarray(curvature.hessian(network, LOSS, *given)))
    found = curvature.extreme_eigenvalues(network, LOSS, *given, key=KEY, steps=100)
    np.testing.assert_allclose([found.smallest, found.largest], exact[[0, -1]], atol=1e-14 * exact[-1])
    assert float(found.residuals.max()) <= 1e-13


@pytest.mark.slow
def test_half_precision_has_a_spectrum_too(given):
    """In float32, of products whose parameters have 8 bits: within one in a hundred of the exact one."""
    half = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), given[0]), *given[1:]]
    exact = curvature.extreme_eigenvalues(NETWORK, LOSS, *given, key=KEY, steps=20)
    found = curvature.extreme_eigenvalues(NETWORK, LOSS, *half, key=KEY, steps=20)
    assert found.largest.dtype == jnp.float32 and found.largest_vector["first"]["bias"].dtype == jnp.bfloat16
    assert float(found.largest) == pytest.approx(float(exact.largest), rel=0.03)


@pytest.mark.slow
def test_the_stable_rate_has_a_derivative_where_lanczos_is_exact():
    network = chain((2, 2), "tanh", "softmax")
    params, x, t = jax.tree.map(lambda v: v.astype(jnp.float32), problem(network, LOSS, 0))
    slope = jax.grad(lambda p: curvature.stable_rate(network, LOSS, p, x, t, key=KEY))(params)
    assert np.isfinite(flat(slope)).all()


@pytest.mark.slow
def test_repeated_eigenvalues_do_not_end_the_search():
    """I (x) A: each eigenvalue as often as there are outputs, so that Lanczos comes to an invariant subspace early."""
    network = fnn.multilayer((2, 5), ("linear",), bias="none")
    x, t = jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.zeros((2, 5))
    given = network.init(KEY), x, t
    found = curvature.extreme_eigenvalues(network, "half_sum_square_error", *given, key=KEY, steps=10)
    assert [float(found.smallest), float(found.largest)] == pytest.approx([1, 9], rel=1e-12)
    # H = 0: every vector is an eigenvector
    flat_loss = curvature.extreme_eigenvalues(network, "hinge", given[0], x, jnp.ones((2, 5)), key=KEY, steps=4)
    assert float(flat_loss.smallest) == float(flat_loss.largest) == 0
    assert np.isinf(curvature.stable_rate(network, "hinge", given[0], x, jnp.ones((2, 5)), key=KEY, steps=4))


def test_the_trace_is_estimated_with_the_error_it_says(given, exact):
    found = curvature.trace(NETWORK, LOSS, *given, key=KEY, samples=400)
    assert abs(float(found.value) - np.trace(exact)) <= 5 * float(found.standard_error)
    # of random signs the variance of z^T A z is 2 sum_(i != j) A_ij^2
    deviation = np.sqrt(2 * ((exact**2).sum() - (np.diag(exact) ** 2).sum()))
    assert float(found.standard_error) == pytest.approx(deviation / np.sqrt(400), rel=0.2)
    positive = curvature.trace(NETWORK, LOSS, *given, "gauss_newton", key=KEY, samples=400)
    G = np.asarray(quantities.gauss_newton(NETWORK, LOSS, *given))
    assert abs(float(positive.value) - np.trace(G)) <= 5 * float(positive.standard_error)


# The texts ------------------------------------------------------------------------------------------------------------

TEXTS = [
    # inputs, targets; A, d, c, eigenvalues, minimum, largest stable rate: Eq. 3.15-3.23, P3.3
    ([(-1, 2), (2, -1), (0, -1), (-1, 0)], [-1, -1, 1, 1], [[12, -8], [-8, 12]], [4, 4], 4, [4, 20], [-1, -1], 0.1),
    ([(-4, 2), (1, 2)], [-1, 1], [[34, -12], [-12, 16]], [-10, 0], 2, [10, 40], [0.4, 0.3], 0.05),
]


@pytest.mark.parametrize(("p", "t", "A", "d", "c", "eigenvalues", "minimum", "rate"), TEXTS)
def test_quadratic_models_of_the_texts(p, t, A, d, c, eigenvalues, minimum, rate):
    network = fnn.multilayer((2, 1), ("linear",), bias="none")
    inputs, targets = jnp.array(p, jnp.float64), jnp.array(t, jnp.float64)[:, None]
    start = {"layer1": {"weights": {"input": jnp.array([[0.7, -2.0]])}}}  # wherever it is expanded
    model = curvature.quadratic_model(network, "sum_square_error", start, inputs, targets)
    for found, expected in (
        (model.A, A),
        (model.d, d),
        (model.c, c),
        (model.eigenvalues, eigenvalues),
        (model.minimum, minimum),
        (model.stable_rate, rate),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    for value, vector in zip(model.eigenvalues, model.eigenvectors.T, strict=True):
        np.testing.assert_allclose(model.A @ vector, value * vector, atol=1e-12)
    at = jnp.array([0.3, 0.9])
    value = fnn.objective(network, fnn.losses.sum_square_error())(
        {"layer1": {"weights": {"input": at[None, :]}}}, inputs, targets
    )
    assert float(model.value(at)) == pytest.approx(float(value), rel=1e-12)
    found = curvature.stable_rate(network, "sum_square_error", start, inputs, targets, key=KEY)
    assert float(found) == pytest.approx(rate, rel=1e-12)


def test_one_newton_step_reaches_the_minimum_of_e3_2():
    """E3.1 and E3.2: w = 2, b = 0.5, F = 0, from w = b = 0, where the gradient is [-8, -3]. The bias stands first."""
    network = fnn.multilayer((1, 1), ("linear",))
    start = jax.tree.map(jnp.zeros_like, network.init(KEY))
    inputs, targets = jnp.array([[-1.0], [0.0], [1.0]]), jnp.array([[-1.5], [0.5], [2.5]])
    model = curvature.quadratic_model(network, "sum_square_error", start, inputs, targets)
    np.testing.assert_allclose(model.d, [-3, -8], atol=1e-12)
    np.testing.assert_allclose(model.minimum, [0.5, 2.0], atol=1e-12)
    assert float(model.value(model.minimum)) == pytest.approx(0, abs=1e-12)


def test_a_singular_model_takes_the_shortest_minimum():
    """Two equal inputs: only the sum of their weights matters."""
    network = fnn.multilayer((2, 1), ("linear",), bias="none")
    inputs, targets = jnp.array([[1.0, 1.0], [2.0, 2.0]]), jnp.array([[2.0], [4.0]])
    model = curvature.quadratic_model(network, "sum_square_error", network.init(KEY), inputs, targets)
    np.testing.assert_allclose(model.minimum, [1, 1], atol=1e-12)


# What is refused ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_answered_is_refused(given):
    params, inputs, targets = given
    size = flat(params).size
    with pytest.raises(ValueError) as refusal:
        curvature.hessian(NETWORK, LOSS, *given, budget=1000)
    assert f"hessian would take {size**2 * 8 / 1024:.4g} KiB" in str(refusal.value)
    assert "use hessian_vector_product" in str(refusal.value)
    with pytest.raises(ValueError, match="vector: first/bias expected shape"):
        curvature.hessian_vector_product(NETWORK, LOSS, *given, jax.tree.map(lambda x: x[:1], params))
    with pytest.raises(TypeError, match="vector: expected the parameters' structure, got ndarray; jax.flatten_util"):
        curvature.hessian_vector_product(NETWORK, LOSS, *given, flat(params))
    with pytest.raises(TypeError, match="vector: first/bias: expected real numbers, got dtype complex128"):
        curvature.hessian_vector_product(NETWORK, LOSS, *given, jax.tree.map(lambda x: x.astype(complex), params))
    with pytest.raises(ValueError, match="targets: second derivatives cannot do without"):
        curvature.products(NETWORK, LOSS, params, inputs, None)
    with pytest.raises(ValueError, match="products: of must be 'hessian' or 'gauss_newton', got 'fisher'"):
        curvature.products(NETWORK, LOSS, *given, "fisher")
    with pytest.raises(ValueError, match="extreme_eigenvalues: steps must be an integer >= 1, got 0"):
        curvature.extreme_eigenvalues(NETWORK, LOSS, *given, key=KEY, steps=0)
    with pytest.raises(TypeError, match="key: expected a single key"):
        curvature.trace(NETWORK, LOSS, *given, key=3)
    with pytest.raises(ValueError, match="trace: samples must be an integer >= 2, got 1"):
        curvature.trace(NETWORK, LOSS, *given, key=KEY, samples=1)
    own = fnn.Loss("quartic", "mean", lambda a, t: jnp.sum((a - t) ** 4, -1), lambda a, t: 4 * (a - t) ** 3)
    with pytest.raises(ValueError, match="loss 'quartic' has no second derivative, which Hessians need"):
        curvature.hessian_vector_product(NETWORK, own, *given, params)
    network = chain((2, 3, 2), "hardlim", "softmax")
    with pytest.raises(ValueError, match="'hardlim' has no derivative"):
        curvature.products(network, LOSS, network.init(KEY), jnp.ones((4, 2)), targets[:4, :2])
