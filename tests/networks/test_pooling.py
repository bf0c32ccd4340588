"""Max pooling against a loop over windows in NumPy, its derivatives against autodiff, with ties and padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES

import functional_nn as fnn
from functional_nn import activations

# how it is written -> a signal it goes over, and the window's size, stride and padding along each axis
CASES = {
    "max_pool(2)": ((6, 3), (2,), (2,), ((0, 0),)),
    "max_pool(3, stride=2)": ((8, 2), (3,), (2,), ((0, 0),)),
    "max_pool((2, 2))": ((6, 4, 3), (2, 2), (2, 2), ((0, 0), (0, 0))),
    "max_pool((3, 2), stride=(2, 1))": ((7, 5, 2), (3, 2), (2, 1), ((0, 0), (0, 0))),
    "max_pool((3, 3), stride=2, padding=same)": ((6, 5, 2), (3, 3), (2, 2), ((0, 1), (1, 1))),
    "max_pool((3, 3), stride=1, padding=1)": ((4, 3, 2), (3, 3), (1, 1), ((1, 1), (1, 1))),
    "max_pool((2, 2), padding=((0, 1), (1, 0)))": ((5, 3, 2), (2, 2), (2, 2), ((0, 1), (1, 0))),
    "max_pool((2, 1, 2))": ((4, 2, 4, 2), (2, 1, 2), (2, 1, 2), ((0, 0),) * 3),
    "max_pool": ((3, 4, 2), (3, 4), (1, 1), ((0, 0), (0, 0))),
}
every = pytest.mark.parametrize("name", CASES)


def windows(name):
    """(place of the output, positions of the signal that its window meets), one after the other."""
    shape, sizes, strides, pads = CASES[name]
    axes = list(zip(shape, sizes, strides, pads, strict=False))
    counts = [(n + sum(pad) - size) // stride + 1 for n, size, stride, pad in axes]
    for place in itertools.product(*map(range, counts)):
        starts = [at * stride - pad[0] for at, (_, _, stride, pad) in zip(place, axes, strict=True)]
        reached = (range(max(0, s), min(n, s + size)) for s, (n, size, _, _) in zip(starts, axes, strict=True))
        yield place, list(itertools.product(*reached))


def slow_max(name, n):
    """a (Q, *P', C) for n (Q, *P, C), one number after the other."""
    found = {place: np.max([n[(slice(None), *at)] for at in met], axis=0) for place, met in windows(name)}
    shape = tuple(max(place[axis] for place in found) + 1 for axis in range(n.ndim - 2))
    a = np.empty((len(n), *shape, n.shape[-1]))
    for place, values in found.items():
        a[(slice(None), *place)] = values
    return a.reshape(len(n), -1) if name == "max_pool" else a


def drawn(name, examples=3):
    return np.random.default_rng(0).standard_normal((examples, *CASES[name][0]))


@every
def test_the_largest_of_each_window(name):
    n = drawn(name)
    np.testing.assert_array_equal(activations.get(name).forward(jnp.asarray(n), {})[0], slow_max(name, n))
    assert activations.output_shape(activations.get(name), CASES[name][0]) == slow_max(name, n).shape[1:]


@pytest.mark.sampled(every=3)
@every
def test_derivatives_are_autodiffs(name):
    found = fnn.comparison.compare_activation(name, CASES[name][0])
    assert found.verdict == "agree" and found.total.relative <= 1e-12


@pytest.mark.sampled(every=2)
@every
def test_what_ties_shares_equally(name):
    """Small integers, so that many tie: every window gives each of its largest an equal part, as jnp.max does."""
    f, n = (
        activations.get(name),
        jnp.asarray(np.random.default_rng(1).integers(0, 3, (2, *CASES[name][0])), jnp.float64),
    )
    a, vjp = jax.vjp(lambda n: f.forward(n, {})[0], n)
    g = jnp.asarray(np.random.default_rng(2).standard_normal(a.shape))
    expected = np.zeros(n.shape)
    flat = np.asarray(g).reshape(len(n), -1, n.shape[-1])
    for number, (_, met) in enumerate(windows(name)):
        inside = np.stack([np.asarray(n)[(slice(None), *at)] for at in met])
        tied = inside == inside.max(axis=0)
        for at, share in zip(met, tied / tied.sum(axis=0), strict=True):
            expected[(slice(None), *at)] += share * flat[:, number]
    by_hand = f.pullback(g, n, a, None, {})[0]
    np.testing.assert_allclose(by_hand, expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(by_hand, vjp(g)[0], rtol=1e-14, atol=1e-14)


@pytest.mark.sampled(every=3)
@every
def test_the_distance_to_a_tie(name):
    """Of a number to the best other one of a window, the least over the windows that it is in."""
    n = drawn(name)
    expected = np.full(n.shape, np.inf)
    for _, met in windows(name):
        for at in met:
            others = [n[(slice(None), *other)] for other in met if other != at]
            gap = np.abs(n[(slice(None), *at)] - np.max(others, axis=0)) if others else np.inf
            expected[(slice(None), *at)] = np.minimum(expected[(slice(None), *at)], gap)
    np.testing.assert_allclose(activations.get(name).kink_distance(jnp.asarray(n)), expected, rtol=1e-14)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", ["max_pool((3, 3), stride=1, padding=1)", "max_pool"])
def test_dtype_is_kept_and_nan_and_infinities_stay(name, dtype):
    f, n = activations.get(name), jnp.asarray(drawn(name), dtype).at[0, 0, 0, 0].set(jnp.nan)
    n = n.at[1, 0, 0].set(-jnp.inf).at[2].set(jnp.asarray(-3e4, dtype))
    a = f.forward(n, {})[0]
    g = jnp.ones_like(a)
    back, along = f.pullback(g, n, a, None, {})[0], f.pushforward(jnp.ones_like(n), {}, n, a, None, {})
    assert a.dtype == back.dtype == along.dtype == f.kink_distance(n).dtype == dtype
    assert np.isnan(np.asarray(a).astype(float)[0].ravel()[0])
    assert np.isfinite(np.asarray(a).astype(float)[1:]).all() and np.isfinite(np.asarray(back).astype(float)[1:]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("max_pool(0)", "max_pool: window must be an integer >= 1, got 0"),
        ("max_pool(stride=2)", "max_pool: stride and padding belong to a window, and none is given"),
        ("max_pool((2, 2), stride=(1, 2, 3))", "max_pool: stride must be an integer or 2 of them"),
        ("max_pool((2, 2), padding=full)", "max_pool: padding must be 'same' or 'valid', got 'full'"),
        ("max_pool((1, 1, 1, 1))", "max_pool: one, two or three axes of positions, got 4"),
    ],
)
def test_invalid_windows_are_refused(given, message):
    with pytest.raises(ValueError, match="max_pool") as refusal:
        activations.get(given)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        ("max_pool((2, 2))", 8, "layer 'pool': its activation max_pool((2, 2)) needs a signal (P, Q, channels), got"),
        (
            "max_pool((9, 2))",
            (6, 6, 8),
            "max_pool((9, 2)) has a window over (9, 2) positions, larger than the signal's",
        ),
        ("max_pool((1, 1), padding=1)", (2, 2, 8), "has windows that meet nothing but padding, over positions (2, 2)"),
        ("max_pool", 8, "layer 'pool': its activation max_pool needs a signal with positions, got shape (8,)"),
    ],
)
def test_signals_that_it_cannot_go_over_are_refused_where_the_layer_is_described(given, shape, message):
    with pytest.raises(ValueError, match="layer 'pool'") as refusal:
        layers = [
            fnn.Layer("pool", 8, given, [("p", "identity")], bias="none"),
            fnn.Layer("out", 1, "linear", ["pool"]),
        ]
        fnn.graph(inputs={"p": shape}, layers=layers)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_equal_windows_are_one_row_and_survive_pickle():
    import pickle

    one, other = activations.get("max_pool((2, 2))"), activations.max_pool([2, 2], stride=2)
    assert one is other and pickle.loads(pickle.dumps(one)) is one
    assert activations.get(activations.max_pool((3, 3), 1, 1).name) is activations.max_pool((3, 3), 1, 1)
