"""Sums of factored derivatives are those of the derivatives themselves, formed in NumPy, whichever way is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn import platforms
from functional_nn.gradients import factors
from functional_nn.gradients.factors import Factors

DRAW = np.random.default_rng(0)
# (T, S, K): no positions; one; so few that Gram matrices pay, of one example and of two; so many that they do not
SIZES = {"rank one": (None, 4, 5), "one position": (1, 4, 5), "few": (2, 8, 9), "some": (3, 9, 8), "many": (7, 3, 4)}


def pair(size, directions):
    """Factors of 6 examples, and their derivatives (6, [C,] S, K)."""
    T, S, K = SIZES[size]
    between = () if directions is None else (directions,)
    left = DRAW.normal(size=(6, *between, *(() if T is None else (T,)), S))
    right = DRAW.normal(size=(6, *(() if T is None else (T,)), K))
    whole = left[..., None, :] if T is None else left
    each = right[:, None, :] if T is None else right
    formed = np.einsum("q...ts,qtk->q...sk", whole, each)
    return Factors(jnp.asarray(left), jnp.asarray(right)), formed


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("directions", [None, 3])
@pytest.mark.parametrize("size", SIZES)
def test_sums_of_one_example(size, directions, few, monkeypatch):
    """few: derivatives are formed of two examples at a time."""
    f, formed = pair(size, directions)
    if few:
        monkeypatch.setattr(platforms, "CPU", platforms.CPU._replace(formed=2 * formed[0].nbytes))
    part = DRAW.uniform(size=6)
    squares = (formed**2).reshape(6, -1, *formed.shape[-2:]).sum(axis=1)
    np.testing.assert_allclose(factors.formed(f), formed, rtol=1e-12)
    np.testing.assert_allclose(factors.square_norms(f), squares.sum(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        factors.second_moment(f, jnp.asarray(part)), np.einsum("q,qsk->sk", part, squares), rtol=1e-12
    )


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_sums_of_pairs(size, few, monkeypatch):
    """few: derivatives are formed of two neurons at a time, of which the last may be without company."""
    if few:
        monkeypatch.setattr(platforms, "CPU", platforms.CPU._replace(formed=8 * 2 * 6 * 2 * SIZES[size][2]))
    (one, a), (other, b) = pair(size, None), pair(size, None)
    np.testing.assert_allclose(factors.inner_products(one, other), np.einsum("qsk,rsk->qr", a, b), rtol=1e-11)
    (one, a), (other, b) = pair(size, 3), pair(size, 3)
    kernel = np.einsum("qcsk,rdsk->qcrd", a, b)
    np.testing.assert_allclose(factors.kernel_products(one, other), kernel, rtol=1e-10, atol=1e-12)
    traced = np.einsum("qcrc->qr", kernel)
    np.testing.assert_allclose(factors.traced_products(one, other), traced, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("directions", [None, 3])
def test_what_has_no_right_factor_is_itself(directions):
    left = DRAW.normal(size=(6, 4) if directions is None else (6, directions, 4))
    f, part = Factors(jnp.asarray(left), None), DRAW.uniform(size=6)
    squares = (left**2).reshape(6, -1, 4).sum(axis=1)
    np.testing.assert_array_equal(factors.formed(f), left)
    np.testing.assert_allclose(factors.square_norms(f), squares.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(factors.second_moment(f, jnp.asarray(part)), part @ squares, rtol=1e-12)


@pytest.mark.parametrize(("size", "positions"), [("few", 2), ("some", 3), ("many", 7)])
def test_the_cheaper_way_is_taken(size, positions):
    """Where Gram matrices pay, no array of the derivatives' size is made; where they do not, the derivatives are."""
    f, formed = pair(size, None)
    T, S, K = SIZES[size]

    def largest(function, *given):
        """The most numbers of an intermediate result."""
        found = [0]

        def look(jaxpr):
            for equation in jaxpr.eqns:
                found.append(max(out.aval.size for out in equation.outvars))
                for value in equation.params.values():
                    if hasattr(getattr(value, "jaxpr", value), "eqns"):
                        look(getattr(value, "jaxpr", value))

        look(jax.make_jaxpr(function)(*given).jaxpr)
        return max(found)

    assert (largest(factors.square_norms, f) < formed.size) == (T * (S + K) <= S * K) == (positions < 7)
    pairs = T**2 * (S + K) <= S * K
    assert (largest(factors.inner_products, f, f) < formed.size) == pairs == (positions < 3)


def test_float16_is_added_up_in_float32():
    f, formed = pair("many", None)
    narrow = Factors(*(x.astype(jnp.float16) for x in f))
    norms, moment = factors.square_norms(narrow), factors.second_moment(narrow, jnp.ones(6))
    assert norms.dtype == moment.dtype == jnp.float32
    np.testing.assert_allclose(norms, (formed**2).sum(axis=(1, 2)), rtol=2e-2)


# Symmetric products ---------------------------------------------------------------------------------------------------


def products_in(function, *args):
    """Multiplications of every product of matrices in the program, traced again, and in loops as often as they run."""

    def of(jaxpr, times=1):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (over, _), _ = equation.params["dimension_numbers"]
                terms = np.prod([equation.invars[0].aval.shape[axis] for axis in over])
                yield times * int(terms * equation.outvars[0].aval.size)
            inner = [p for p in equation.params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
            for each in inner:
                yield from of(getattr(each, "jaxpr", each), times * equation.params.get("length", 1))

    return list(of(jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr))


@pytest.mark.parametrize(
    "shape", [(5, 3), (40, 131), (300, 257), (70, 128), (64, 255), (3, 50, 321), (2, 3, 40, 200), (4, 130), (7, 0)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gram_matrix_is_the_product_and_what_is_copied_is_exactly_symmetric(shape, dtype):
    x = DRAW.normal(size=shape).astype(dtype)
    rows = x.reshape(int(np.prod(shape[:-1])), shape[-1]).astype(np.float64)
    found = np.asarray(jax.jit(factors.gram)(x))
    assert found.dtype == dtype and found.shape == (shape[-1], shape[-1])
    scale = np.sqrt(np.sum(rows**2, axis=0))  # |g_ij| <= |x_i| |x_j|, and so its rounding, of as many terms
    allowed = len(rows) * np.finfo(dtype).eps * scale[:, None] * scale[None, :]
    assert (np.abs(found - rows.T @ rows) <= allowed).all()
    if 128 <= shape[-1] <= 4 * len(rows):
        i, j = np.indices(found.shape)
        far = abs(i - j) >= (shape[-1] + 1) // 2  # in no block on the diagonal, however many strips there are
        np.testing.assert_array_equal(found[far], found.T[far])


def test_gram_matrices_of_lanes_are_those_of_each():
    x = DRAW.normal(size=(3, 50, 150))
    np.testing.assert_allclose(jax.vmap(factors.gram)(x), np.einsum("lqs,lqt->lst", x, x), rtol=1e-11, atol=1e-12)


def test_half_of_a_large_gram_matrix_is_computed_and_on_an_accelerator_it_is_one_product():
    x = jnp.zeros((300, 512))
    whole = 300 * 512 * 512
    assert 0.5 * whole < sum(products_in(factors.gram, x)) < 0.65 * whole
    assert products_in(factors.gram, jnp.zeros((300, 100))) == [300 * 100 * 100]
    assert products_in(factors.gram, jnp.zeros((30, 512))) == [30 * 512 * 512]  # copying would cost more
    with platforms.aimed_at("tpu"):
        assert products_in(factors.gram, x) == [whole]
