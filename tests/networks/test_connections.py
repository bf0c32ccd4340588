"""Connections are what NumPy's loops say, and their own adjoints; both orders of memory give the same recursion.

Every row is a list of terms, z_i += c x_j w_k, written from its definition one number at a time. The same list, gone
over with s, says what reaches x and w, so that one slow definition holds forward, back, outer and unfold.
"""

import copy
import dataclasses
import itertools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import functional_nn as fnn
from functional_nn import connections
from functional_nn.networks.connections import Connection, dense
from functional_nn.networks.network import for_lanes
from functional_nn.training import group_training

DRAW = np.random.default_rng(0)


# The definitions ------------------------------------------------------------------------------------------------------


def met_along(length, size, step, gap, padding):
    """Of each place of a window along one axis, what it meets: [(element, position)], None for padding."""
    reach = (size - 1) * gap + 1
    if padding == "same":  # ceil(P / stride) places; the zeros that they need, the odd one behind
        zeros = max((math.ceil(length / step) - 1) * step + reach - length, 0)
        padding = (zeros // 2, zeros - zeros // 2)
    before, after = {"valid": (0, 0)}.get(padding, padding if isinstance(padding, tuple) else (padding, padding))
    starts = range(-before, length + after - reach + 1, step)
    met = [[(i, start + i * gap) for i in range(size)] for start in starts]
    return [[(i, p if 0 <= p < length else None) for i, p in window] for window in met]


def windows(positions, size, stride=None, dilation=1, padding="same"):
    """(place, [(where in the window, position)]) of every window, what is padding left out."""

    def each(x):
        return x if isinstance(x, tuple) else (x,) * len(positions)

    axes = list(map(met_along, positions, each(size), each(stride), each(dilation), each(padding)))
    for place in itertools.product(*(range(len(axis)) for axis in axes)):
        elements = itertools.product(*(axis[at] for axis, at in zip(axes, place, strict=True)))
        met = [tuple(zip(*element, strict=True)) for element in elements]
        yield place, [(where, at) for where, at in met if None not in at]


def terms(name, constants, shape, channels):
    """[(i, j, k, c)] of one example: z_i += c x_j w_k, k None where there are no weights."""
    positions, R = shape[:-1], shape[-1]
    everywhere = list(itertools.product(*map(range, positions)))
    if name == "dense":
        return [((*p, s), (*p, r), (s, r), 1) for p in everywhere for s in range(channels) for r in range(R)]
    if name == "full":
        read = enumerate(itertools.product(*map(range, shape)))
        return [((s,), j, (s, k), 1) for k, j in read for s in range(channels)]
    if name == "identity":
        return [(i, i, None, 1) for i in itertools.product(*map(range, shape))]
    if name == "take":
        at = constants["position"] if isinstance(constants["position"], tuple) else (constants["position"],)
        at = tuple(p if p >= 0 else p + length for p, length in zip(at, positions, strict=True))
        return [((r,), (*at, r), None, 1) for r in range(R)]
    if name == "upsample":
        by = constants["factor"] if isinstance(constants["factor"], tuple) else (constants["factor"],)
        larger = itertools.product(*(range(n * many) for n, many in zip(positions, by, strict=True)))

        def nearest(p):
            return tuple(i // many for i, many in zip(p, by, strict=True))

        return [((*p, r), (*nearest(p), r), None, 1) for p in larger for r in range(R)]
    if name == "mean_pool" and not constants:
        return [((r,), (*p, r), None, 1 / len(everywhere)) for p in everywhere for r in range(R)]
    if name == "mean_pool":
        given = {"stride": constants["window"], "padding": "valid"} | constants
        met = windows(positions, given.pop("window"), **given)
        return [((*i, r), (*j, r), None, 1 / len(own)) for i, own in met for _, j in own for r in range(R)]
    given = {"stride": 1} | {key: x for key, x in constants.items() if key not in ("kernel", "groups")}
    groups = constants.get("groups", 1)
    read, given_out = R // groups, channels // groups
    return [
        ((*i, g * given_out + s), (*j, g * read + r), (g * given_out + s, *k, r), 1)
        for i, own in windows(positions, constants["kernel"], **given)
        for k, j in own
        for g in range(groups)
        for s in range(given_out)
        for r in range(read)
    ]


def by_definition(found, s, x, w):
    """(z, dF/dx, each example's dF/dw): s (Q, ...) has the shape of z, w that of the weights."""
    z, back, shares = np.zeros_like(s), np.zeros_like(x), None if w is None else np.zeros((len(x), *w.shape))
    for i, j, k, c in found:
        weight = c if w is None else c * w[k]
        z[:, *i] += weight * x[:, *j]
        back[:, *j] += weight * s[:, *i]
        if w is not None:
            shares[:, *k] += c * s[:, *i] * x[:, *j]
    return z, back, shares


# The rows -------------------------------------------------------------------------------------------------------------


def case(name, shape, channels, **constants):
    """A row with its constants, on a signal (*P, R), giving so many channels."""
    text = ", ".join([str(shape), *(f"{key}={x}" for key, x in constants.items())])
    return pytest.param(name, constants, shape, channels, id=f"{name} {text}")


CASES = [
    case("dense", (5,), 4),
    case("dense", (3, 5), 4),
    case("dense", (2, 3, 5), 4),
    case("full", (5,), 4),
    case("full", (2, 3, 2), 4),
    case("conv", (6, 2), 3, kernel=3),
    case("conv", (8, 2), 3, kernel=3, stride=2, padding="valid"),  # the last position is not read
    case("conv", (8, 1), 3, kernel=2, stride=3),  # nor are some between
    case("conv", (5, 2), 2, kernel=2, dilation=2, padding=((2, 0),)),  # nothing of what comes later
    case("conv", (3, 1), 2, kernel=2, padding=4),  # windows that are all padding
    case("conv", (4, 5, 2), 3, kernel=(2, 3)),
    case("conv", (5, 6, 2), 4, kernel=(3, 3), stride=2),
    case("conv", (7, 6, 1), 2, kernel=(2, 3), stride=(3, 2), padding="valid"),
    case("conv", (5, 5, 2), 3, kernel=(3, 2), stride=(2, 1), dilation=(1, 2), padding=(2, 1)),
    case("conv", (3, 3, 2), 3, kernel=(2, 2), padding=((0, 3), (1, 0))),
    case("conv", (2, 3, 2), 3, kernel=(5, 1), padding=(4, 0)),  # larger than the signal, but for the padding
    case("conv", (4, 3, 2), 3, kernel=(1, 1), stride=2),
    case("conv", (4, 4, 4), 6, kernel=(3, 3), groups=2),
    case("conv", (5, 4, 4), 8, kernel=(2, 3), stride=2, padding="valid", groups=4),  # two neurons for each channel
    case("conv", (6, 3), 3, kernel=3, dilation=2, groups=3),
    case("conv", (3, 4, 3, 2), 2, kernel=(2, 2, 2), stride=(1, 2, 1)),
    case("conv", (2, 4, 3, 2), 4, kernel=(1, 3, 2), padding="valid", groups=2),
    case("identity", (5,), 5),
    case("identity", (3, 4, 2), 2),
    case("mean_pool", (5, 3), 3),
    case("mean_pool", (2, 3, 4), 4),
    case("mean_pool", (5, 4, 3), 3, window=(2, 2)),
    case("mean_pool", (5, 2), 2, window=3, stride=1, padding="same"),
    case("mean_pool", (6, 3, 2), 2, window=(3, 2), stride=(2, 1), padding="same"),
    case("mean_pool", (8, 2), 2, window=2, stride=3),
    case("mean_pool", (5, 2), 2, window=3, stride=2, padding=((0, 2),)),
    case("mean_pool", (2, 3, 2, 1), 1, window=(2, 2, 2), stride=1, padding=1),
    case("take", (4, 3), 3, position=-1),
    case("take", (3, 2, 3), 3, position=(1, 0)),
    case("upsample", (4, 2), 2, factor=2),
    case("upsample", (2, 3, 2), 2, factor=(3, 1)),
]
TOKENS = [case("embedding", (6,), 3, tokens=5), case("embedding", (2, 3), 3, tokens=4)]


def row_of(name, constants):
    """The row, by its name alone or with its constants."""
    made = getattr(connections, name)
    return made if isinstance(made, Connection) else made(**constants)


def everything(row, s, x, w):
    """What a row gives of the same data: z, dF/dx, dF/dw and each example's share of it."""
    found = {"forward": row.forward(x, w), "back": row.back(s, w, x)}
    if w is not None:
        left, right = row.unfold(s, x)
        left, right = (y.reshape(len(x), -1, y.shape[-1]) for y in (left, right))  # of one position they are rows
        found["outer"] = row.outer(s, x)
        found["unfold"] = jnp.einsum("qts,qtk->qsk", left, right).reshape(len(x), *w.shape)
    return found


def held_against(row, expected, s, x, w):
    """The row in float64, alone and along lanes, and its twin along lanes in float32, against results (M, ...)."""
    lanes = [y for y in (s, x, w) if y is not None]
    narrow = [y.astype(np.float32) if y.dtype.kind == "f" else y for y in lanes]

    def along(row):
        return jax.vmap(lambda s, x, w=None: everything(row, s, x, w))

    @jax.jit
    def compiled(lanes, narrow):
        first = (y[0] for y in lanes)
        return (
            everything(row, *first, *([None] if w is None else [])),
            along(row)(*lanes),
            along(row.twin or row)(*narrow),
        )

    for results, dtype in zip(compiled(lanes, narrow), (jnp.float64, jnp.float64, jnp.float32), strict=True):
        for name, right in expected.items():
            assert results[name].dtype == dtype, name
            right = right[0] if results[name].ndim < right.ndim else right
            atol = 64 * float(jnp.finfo(dtype).eps) * np.abs(right).max()
            np.testing.assert_allclose(results[name], right, rtol=0, atol=atol, err_msg=name)


SETTINGS = ("name", "constants", "shape", "channels")


def drawn(row, shape, channels):
    """(s, x, w) of two lanes with three examples each."""
    z, of_weights = row.shapes(shape, channels)
    s, x = DRAW.normal(size=(2, 3, *z)), DRAW.normal(size=(2, 3, *shape))
    return s, x, None if of_weights is None else DRAW.normal(size=(2, *of_weights))


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(SETTINGS, CASES)
def test_rows_are_their_definitions(name, constants, shape, channels):
    """Forward, back, outer and each example's share; of rows and twins; two lanes of kernels, signals of their own."""
    row = row_of(name, constants)
    s, x, w = drawn(row, shape, channels)
    held_against(row, by_lanes(terms(name, constants, shape, channels), s, x, w), s, x, w)


def by_lanes(found, s, x, w):
    """{name: (M, ...)} by the definition, of each lane."""
    lanes = [by_definition(found, s[m], x[m], None if w is None else w[m]) for m in range(len(s))]
    z, back, shares = (None if own[0] is None else np.stack(own) for own in zip(*lanes, strict=True))
    return {"forward": z, "back": back} | ({} if w is None else {"outer": shares.sum(axis=1), "unfold": shares})


@pytest.mark.parametrize(SETTINGS, TOKENS)
def test_tokens_choose_columns(name, constants, shape, channels):
    """An embedding is the dense row of one-hot rows; integers have no derivative."""
    count = constants["tokens"]
    row, x = row_of(name, constants), DRAW.integers(count, size=(2, 3, *shape))
    s, w = DRAW.normal(size=(2, 3, *shape, channels)), DRAW.normal(size=(2, channels, count))
    expected = by_lanes(terms("dense", {}, (*shape, count), channels), s, np.eye(count)[x], w)
    assert row.shapes(shape, channels) == ((*shape, channels), (channels, count))
    assert row.back(s[0], w[0], x[0]).dtype == jax.dtypes.float0
    found = [jax.vmap(row.forward)(x, w), jax.vmap(row.outer)(s, x)]
    left, right = jax.vmap(row.unfold)(s, x)
    found.append(jnp.einsum("mqts,mqtk->mqsk", left, right))
    for name, own in zip(("forward", "outer", "unfold"), found, strict=True):
        np.testing.assert_allclose(own, expected[name], rtol=1e-14, atol=1e-14, err_msg=name)


def test_a_token_out_of_range_gives_nan():
    """Where its value is not known it gives nan, and no column of the weights gets its derivative."""
    row, w, s = connections.embedding(3), jnp.asarray(DRAW.normal(size=(2, 3))), jnp.ones((1, 5, 2))
    x = jnp.array([[0, -1, 2, 3, 2]])
    found = jax.jit(row.forward)(x, w)[0]
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, False, True, False])
    np.testing.assert_array_equal(found[jnp.array([0, 2, 4])], w.T[jnp.array([0, 2, 2])])
    np.testing.assert_array_equal(jax.jit(row.outer)(s, x), [[1, 0, 2], [1, 0, 2]])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_complex_step_goes_through_a_convolution(groups):
    """Im z(w + i h dw) / h is z(dw) to the last digits: nothing of it is lost in sums of other sizes."""
    row = connections.conv((2, 2), stride=2, groups=groups)
    _, x, w = (y[0] for y in drawn(row, (4, 3, 4), 6))
    dw = DRAW.normal(size=w.shape)
    z = row.forward(jnp.asarray(x, jnp.complex128), w + 1e-30j * dw)
    np.testing.assert_allclose(z.imag / 1e-30, row.forward(x, dw), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(z.real, row.forward(x, w), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "constants", "shape", "expected"),
    [
        ("dense", {}, (7, 5), (5, 4)),
        ("full", {}, (7, 5), (35, 4)),
        ("conv", {"kernel": (3, 2)}, (7, 7, 5), (30, 24)),  # a pixel is read at 6 places by 4 neurons each
        ("conv", {"kernel": 3, "groups": 2}, (7, 6), (9, 6)),  # of its group alone
        ("embedding", {"tokens": 9}, (7,), (1, 4)),  # of nine columns one
    ],
)
def test_fans_count_what_reaches_a_neuron_and_what_a_number_reaches(name, constants, shape, expected):
    row = row_of(name, constants)
    assert row.fans(row.shapes(shape, 4)[1]) == expected


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(SETTINGS, CASES + TOKENS)
def test_a_rows_name_is_how_it_is_made_again(name, constants, shape, channels):
    row = row_of(name, constants)
    assert connections.get(row.name) is row and connections.get(row) is row
    assert repr(row) == f"<connection {row.name}>"
    for own in (row, row.twin or row):
        assert pickle.loads(pickle.dumps(own)) is own and copy.deepcopy(own) is own and copy.copy(own) is own


@pytest.mark.parametrize(
    "spellings",
    [
        ("conv(3)", "conv((3))", "conv((3,))", connections.conv(np.int64(3)), connections.conv([3], padding="same")),
        ("conv((3, 3), stride=2)", "conv( (3,3),2 )", "conv(kernel=(3, 3), stride=(2, 2), dilation=1, groups=1)"),
        ("conv((3, 3), padding=1)", "conv((3, 3), padding=(1, 1))", "conv((3, 3), padding=((1, 1), (1, 1)))"),
        ("conv(3, padding='valid')", "conv(3, padding=valid)", connections.conv(3, padding="valid")),
        ("mean_pool((2, 3))", "mean_pool((2, 3), (2, 3))", connections.mean_pool([2, 3], padding="valid")),
        ("mean_pool", "mean_pool()", connections.mean_pool(None)),
        ("take(-1)", "take((-1,))", connections.take(np.int32(-1))),
        ("embedding(5)", "embedding(tokens=5)", connections.embedding(np.int64(5))),
        ("identity", "identity()", connections.identity),
    ],
    ids=lambda spellings: spellings[0],
)
def test_equal_constants_are_one_row_however_they_are_written(spellings):
    assert len({connections.get(own) for own in spellings}) == 1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("cnv(3)", ValueError, "unknown connection 'cnv'; did you mean 'conv'? (accepted: conv, dense, embedding"),
        (3, TypeError, "connection: expected a name or a Connection, got int"),
        ("conv", ValueError, "connection 'conv': missing a required argument: 'kernel' (accepted: conv(kernel, stride"),
        ("conv((3, 3)", ValueError, "connection 'conv((3, 3)': the parentheses do not match"),
        ("conv(3, stide=2)", ValueError, "got an unexpected keyword argument 'stide'"),
        ("conv(0)", ValueError, "conv: kernel must be an integer >= 1, got 0"),
        ("conv(2.5)", ValueError, "conv: kernel must be an integer >= 1, got 2.5"),
        ("conv(true)", ValueError, "conv: kernel must be an integer >= 1, got True"),
        ("conv(())", ValueError, "conv: kernel must be an integer or several of them, got ()"),
        ("conv((1, 1, 1, 1))", ValueError, "conv: one, two or three axes of positions, got 4"),
        ("conv((3, 3), stride=(1, 2, 3))", ValueError, "conv: stride must be an integer or 2 of them, got (1, 2, 3)"),
        ("conv(3, stride=0)", ValueError, "conv: stride must be an integer >= 1, got 0"),
        ("conv(3, dilation=0)", ValueError, "conv: dilation must be an integer >= 1, got 0"),
        ("conv(3, groups=0)", ValueError, "conv: groups must be an integer >= 1, got 0"),
        ("conv(3, padding=full)", ValueError, "conv: padding must be 'same' or 'valid', got 'full'"),
        ("conv(3, padding=-1)", ValueError, "conv: padding must be an integer >= 0, got -1"),
        ("conv(3, padding=(1, 2))", ValueError, "conv: padding must be 'same', 'valid' or 1, one for each axis, got"),
        ("conv((3, 3), padding=(1, (2,)))", ValueError, "conv: padding must be an integer or 2 of them, got (2,)"),
        ("mean_pool(0)", ValueError, "mean_pool: window must be an integer >= 1, got 0"),
        ("mean_pool(stride=2)", ValueError, "mean_pool: stride and padding belong to a window, and none is given"),
        ("take(last)", ValueError, "take: position must be an integer, or one for each axis, got 'last'"),
        ("take(())", ValueError, "take: position must be an integer, or one for each axis, got ()"),
        ("embedding(0)", ValueError, "embedding: tokens must be an integer >= 1, got 0"),
        ("identity(2)", ValueError, "connection 'identity(2)': too many positional arguments"),
    ],
)
def test_other_things_than_connections_are_refused(given, error, message):
    with pytest.raises(error) as refusal:
        connections.get(given)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


# Rows prove themselves ------------------------------------------------------------------------------------------------


def verdict(row, shape, channels):
    return fnn.comparison.compare_connection(row, shape, channels)


@pytest.mark.sampled(every=18)
@pytest.mark.parametrize(SETTINGS, CASES + TOKENS)
def test_every_row_proves_itself(name, constants, shape, channels):
    assert verdict(row_of(name, constants), shape, channels).verdict == "agree"


STRIDED = dataclasses.replace(connections.conv(2, stride=2), twin=None)
POOL = connections.mean_pool(3, stride=2, padding="same")
FAULTS = {  # row, and the first of its laws that is broken
    "kernel not turned round": (
        dataclasses.replace(STRIDED, back=lambda s, w, like: STRIDED.back(s, w[:, ::-1], like)),
        "adjoint in x",
    ),
    "stride forgotten": (
        dataclasses.replace(STRIDED, outer=lambda s, x: connections.conv(2).outer(jnp.repeat(s, 2, axis=1), x)),
        "adjoint in w",
    ),
    "positions not summed": (
        dataclasses.replace(STRIDED, unfold=lambda s, x: tuple(y[:, :1] for y in STRIDED.unfold(s, x))),
        "unfolded",
    ),
    "not linear": (dataclasses.replace(STRIDED, forward=lambda x, w: STRIDED.forward(x, w) + 1), "adjoint in w"),
    "twin twice as large": (
        dataclasses.replace(STRIDED, twin=dataclasses.replace(STRIDED, outer=lambda s, x: 2 * STRIDED.outer(s, x))),
        "twin/adjoint in w",
    ),
    "padding counted on the way back": (
        dataclasses.replace(
            POOL, back=lambda s, w, like: connections.conv(3, 2, groups=2).back(s, jnp.full((2, 3, 1), 1 / 3), like)
        ),
        "adjoint in x",
    ),
    "squared": (
        dataclasses.replace(
            POOL, forward=lambda x, w: x**2, back=lambda s, w, like: 2 * like * s, shapes=lambda x, channels: (x, None)
        ),
        "adjoint in x",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_row_fails_the_law_it_breaks(fault):
    row, law = FAULTS[fault]
    found = verdict(row, (5, 2), 3)
    assert found.verdict == "differ" and found.where.startswith(f"{law}: ")


SIZES = st.integers(1, 3)


@st.composite
def convolutions(draw):
    """(constants, shape, channels) of a convolution with any settings, on a signal that it fits."""
    axes, groups = draw(st.integers(1, 2)), draw(SIZES)

    def each(sizes):
        return draw(st.one_of(sizes, st.tuples(*[sizes] * axes)))

    kernel, pads = draw(st.tuples(*[SIZES] * axes)), st.integers(0, 2)
    padding = st.tuples(*[st.one_of(pads, st.tuples(pads, pads))] * axes)
    padding = draw(st.one_of(st.sampled_from(["same", "valid", 1]), padding))
    constants = {"stride": each(SIZES), "dilation": each(st.integers(1, 2)), "padding": padding, "groups": groups}
    shape = (*(2 * size + draw(st.integers(1, 4)) for size in kernel), groups * draw(st.integers(1, 2)))
    return {"kernel": kernel} | constants, shape, groups * draw(st.integers(1, 2))


def held_by_loops(constants, shape, channels):
    row = connections.conv(**constants)
    s, x, w = drawn(row, shape, channels)
    held_against(row, by_lanes(terms("conv", constants, shape, channels), s, x, w), s, x, w)


@settings(max_examples=3)
@given(convolutions())
def test_any_convolution_is_its_definition(case):
    held_by_loops(*case)


@pytest.mark.slow
@settings(max_examples=40)
@given(convolutions())
def test_any_convolution_is_its_definition_and_proves_itself(case):
    constants, shape, channels = case
    held_by_loops(*case)
    assert verdict(connections.conv(**constants), shape, channels).verdict == "agree"


# A custom row ---------------------------------------------------------------------------------------------------------


def local(size):
    """Locally connected along one axis: z_p = W_p x_(p .. p + size), W (S, P', size R), at every place another."""

    def shapes(x, channels):
        if len(x) != 2 or x[0] < size:
            raise ValueError(f"needs a signal (P, channels) of at least {size} positions, got shape {x}")
        return (x[0] - size + 1, channels), (channels, x[0] - size + 1, size * x[1])

    def read(x):
        places = range(x.shape[1] - size + 1)
        return jnp.stack([x[:, p : p + size].reshape(len(x), -1) for p in places], axis=1)  # (Q, P', size R)

    def back(s, w, like):
        parts = jnp.einsum("qps,spk->qpk", s, w).reshape(*s.shape[:2], size, -1)
        places = range(s.shape[1])
        return sum(jnp.zeros_like(like).at[:, p : p + size].set(parts[:, p]) for p in places)

    def unfold(s, x):  # each position has its own columns
        met = read(x)
        apart = met[:, :, None, :] * jnp.eye(s.shape[1], dtype=x.dtype)[None, :, :, None]
        return s, apart.reshape(*s.shape[:2], -1)

    return Connection(
        f"local({size})",
        shapes,
        lambda x, w: jnp.einsum("qpk,spk->qps", read(x), w),
        back,
        lambda s, x: jnp.einsum("qps,qpk->spk", s, read(x)),
        unfold,
        fans=lambda w: (w[2], w[0] * size),
    )


@pytest.fixture
def registered(monkeypatch):
    """The row is known by name, and is forgotten again after the test."""
    monkeypatch.setitem(globals(), "local", connections.register(local))


@pytest.mark.slow  # the README does the same
def test_a_custom_row_is_proved_and_trained(registered):
    assert verdict("local(2)", (5, 3), 4).verdict == "agree"
    network = fnn.graph(
        inputs={"x": (5, 3)},
        layers=[
            fnn.Layer("hidden", 4, "tanh", sources=[("x", "local(2)")]),
            fnn.Layer("output", 2, "softmax", sources=[("hidden", "full")]),
        ],
    )
    assert pickle.loads(pickle.dumps(network)) == network == copy.deepcopy(network)
    params, x = network.init(jax.random.key(0)), DRAW.normal(size=(12, 5, 3))
    assert params["hidden"]["weights"]["x"].shape == (4, 4, 6)
    t = (x[:, 0, 0] > x[:, -1, 0]).astype(int)
    assert fnn.compare(network, "cross_entropy", params, x, t, second_opinions=False).verdict == "agree"
    found = fnn.fit(network, "cross_entropy", "adam(0.1)", x, t, key=jax.random.key(0), epochs=20)
    assert found.history.training_loss[-1] < 0.05 * found.history.training_loss[0]
    with pytest.raises(ValueError, match=r"layer 'a' reads 'x' by local\(7\), which needs a signal .* at least 7"):
        fnn.graph(inputs={"x": (5, 3)}, layers=[fnn.Layer("a", 1, sources=[("x", "local(7)")])])


def test_a_name_that_is_taken_is_refused(registered):
    for again in (local, connections.dense, dataclasses.replace(connections.dense, name="conv")):
        with pytest.raises(ValueError, match="is already registered; choose another name"):
            connections.register(again)


# The dense layer, and programs ----------------------------------------------------------------------------------------

A, S, W = DRAW.normal(size=(3, 12, 5)), DRAW.normal(size=(3, 12, 4)), DRAW.normal(size=(3, 4, 5))
EXPECTED = {
    "forward": ((A, W), np.einsum("mqr,msr->mqs", A, W)),
    "back": ((S, W, A), np.einsum("mqs,msr->mqr", S, W)),
    "outer": ((S, A), np.einsum("mqs,mqr->msr", S, A)),
    "total": ((S,), S.sum(axis=1)),
}


@pytest.mark.newest
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("connection", [dense, dense.twin], ids=repr)
@pytest.mark.parametrize("name", EXPECTED)
def test_products_are_numpys(name, connection, dtype):
    arguments, expected = EXPECTED[name]
    arguments = [jnp.asarray(x, dtype) for x in arguments]
    tolerance = 16 * float(jnp.finfo(dtype).eps)
    product = getattr(connection, name)
    found = jax.jit(jax.vmap(product))(*arguments)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=8 * tolerance)
    np.testing.assert_allclose(product(*(x[0] for x in arguments)), expected[0], rtol=tolerance, atol=8 * tolerance)


@pytest.mark.newest
@pytest.mark.parametrize("examples", [1, 2, 7, 8])
def test_totals_of_any_number_of_examples(examples):
    s = DRAW.normal(size=(examples, 3))
    np.testing.assert_allclose(dense.twin.total(jnp.asarray(s)), s.sum(axis=0), rtol=1e-14)


def test_the_recursion_in_columns_is_the_recursion():
    """On a graph that fans out, with two inputs, maxout, a shared bias and a learned slope; a population, compiled."""
    network = fnn.graph(
        inputs={"p": 3, "q": 2},
        layers=[
            fnn.Layer("first", 4, "prelu", ("p",)),
            fnn.Layer("second", 3, "maxout(2)", ("first", "q"), bias="shared"),
            fnn.Layer("output", 2, "softmax", ("second", "first")),
        ],
    )
    loss = fnn.losses.cross_entropy()
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 3))
    inputs = {"p": jnp.asarray(DRAW.normal(size=(8, 3))), "q": jnp.asarray(DRAW.normal(size=(8, 2)))}
    targets = fnn.one_hot(jnp.arange(8) % 2, 2).astype(jnp.float64)
    found, expected = (
        jax.jit(jax.vmap(fnn.value_and_grad(laid_out, loss), (0, None, None)))(params, inputs, targets)
        for laid_out in (for_lanes(network, True), network)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), found, expected)


@pytest.mark.parametrize("connection", [dense, dense.twin], ids=repr)
def test_a_connection_is_bilinear_and_knows_its_adjoints(connection):
    """<s, dx * w> = <back(s, w), dx> and <s, x * dw> = <outer(s, x), dw>, of any dx and dw; it is linear in each."""
    x, dx, s, w, dw = (jnp.asarray(DRAW.normal(size=size)) for size in ((12, 5), (12, 5), (12, 4), (4, 5), (4, 5)))
    z = connection.forward
    np.testing.assert_allclose(jnp.vdot(s, z(dx, w)), jnp.vdot(connection.back(s, w, x), dx), rtol=1e-12)
    np.testing.assert_allclose(jnp.vdot(s, z(x, dw)), jnp.vdot(connection.outer(s, x), dw), rtol=1e-12)
    np.testing.assert_allclose(z(x + 2 * dx, w), z(x, w) + 2 * z(dx, w), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(z(x, w - dw), z(x, w) - z(x, dw), rtol=1e-12, atol=1e-12)


def test_layers_read_by_dense_connections_and_stay_equal_through_copies():
    layer = fnn.Layer("hidden", 4, "tanh", ("p", "q"))
    assert layer.reads == (("p", dense), ("q", dense))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), dataclasses.replace(layer, size=4)):
        assert other == layer and hash(other) == hash(layer) and other.reads == layer.reads
    assert dataclasses.replace(layer, sources="p").reads == (("p", dense),)
    network = fnn.multilayer((3, 2), ("linear",))
    assert for_lanes(network, True).output.reads == (("input", dense.twin),) and for_lanes(network, True) != network
    assert pickle.loads(pickle.dumps(for_lanes(network, True))) == for_lanes(network, True)


def counted(jaxpr, names):
    """How often each of these primitives occurs in a program, including the programs inside it."""
    found = dict.fromkeys(names, 0)
    for equation in jaxpr.eqns:
        if equation.primitive.name in found:
            found[equation.primitive.name] += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found = {name: found[name] + more for name, more in counted(inner, names).items()}
    return found


def test_dense_programs_stay_what_they_are(monkeypatch):
    """Two layers: 2 products forward, 1 back, 2 outer, 2 totals; a step of `fit` has the forward pass no second time,
    for its metrics, and 2 products more are the validation's. Of so few numbers a transpose is written down, behind a
    barrier, for each outer one. In columns totals are sums, and what a product reads or gives is written down: 2
    barriers a product forward, 3 one back, 2 an outer one, 1 a total; 2 transposes are of an epoch's metrics (U, M).
    """
    network, loss = fnn.multilayer((5, 4, 3), ("tanh", "softmax")), fnn.losses.cross_entropy()
    names = ("dot_general", "optimization_barrier", "transpose", "while", "scan")
    outer = {"optimization_barrier": 2, "transpose": 2}
    x, t, key = jnp.ones((16, 5)), fnn.one_hot(jnp.arange(16) % 3, 3), jax.random.key(0)
    gradient = jax.make_jaxpr(fnn.value_and_grad(network, loss))(network.init(key), x, t)
    assert counted(gradient.jaxpr, names) == {**dict.fromkeys(names, 0), **outer, "dot_general": 7}
    train = fnn.training.pure_fit(network, loss, "adam", epochs=2, plan=fnn.training.minibatch(4))
    fitted = counted(jax.make_jaxpr(train)(key, x, t, (x, t)).jaxpr, names)
    assert fitted == {"dot_general": 9, **outer, "while": 1, "scan": 1}
    programs, traced = group_training.compiled_programs, []

    def spied(*given):
        begin, advance = programs(*given)
        return begin, lambda *data: traced.append(advance.trace(*data).jaxpr) or advance(*data)

    monkeypatch.setattr(group_training, "compiled_programs", spied)
    fnn.training.fit_population(
        network,
        loss,
        "adam",
        {"learning_rate": [0.1, 0.2]},
        (x, t),
        key=key,
        epochs=2,
        validation=(x, t),
        plan=fnn.training.minibatch(4),
    )
    laid_out = {"dot_general": 7, "optimization_barrier": 4 * 2 + 3 + 2 * 2 + 2, "transpose": 22}
    assert counted(traced[0].jaxpr, names) == laid_out | {"while": 1, "scan": 1}
