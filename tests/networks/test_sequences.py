"""Attention, gates and recurrences against loops in NumPy, PyTorch and autodiff, masked by lengths and not."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, relative_error

import functional_nn as fnn
from functional_nn import Layer, activations
from functional_nn.gradients import factors

NEURONS = 4
ROWS = (
    "attention(2)",
    "attention(2, True)",
    "attention(1, rotary=True)",
    "attention(2, True, True)",
    "mean_pool",
    "recurrent",
    "recurrent(relu)",
    "recurrent(tanh, truncate=2)",
    "gru",
    "gru(truncate=3)",
    "lstm",
    "lstm(0.5, truncate=1)",
)
names = pytest.mark.parametrize("name", ROWS)


def drawn(name, positions, examples=3, dtype=jnp.float64, lengths=False):
    """n and theta, nothing at its start; lengths 0, T and one between."""
    f, draw = activations.get(name), np.random.default_rng(positions)

    def normal(shape):
        return jnp.asarray(draw.standard_normal(shape), dtype)

    theta = {key: normal(x.shape) for key, x in activations.started(f, NEURONS, jnp.float64).items()}
    if lengths:
        theta["lengths"] = jnp.asarray([positions, 0, (positions + 1) // 2][:examples], jnp.int32)
    return normal((examples, positions, NEURONS * f.pieces)), theta


# By definition --------------------------------------------------------------------------------------------------------


def attention_by_definition(n, heads, causal, rotary, lengths):
    """One example, head, query and number at a time."""
    Q, T, _ = n.shape
    d, a = NEURONS // heads, np.zeros((*n.shape[:2], NEURONS))
    for q in range(Q):
        count = T if lengths is None else int(lengths[q])
        for h in range(heads):

            def part(t, block):
                return n[q, t, block * NEURONS + h * d : block * NEURONS + (h + 1) * d]  # noqa: B023

            for t in range(count):
                seen = range(min(t + 1, count) if causal else count)
                turn = (lambda x, t: turned(x, t)) if rotary else (lambda x, t: x)
                scores = [np.dot(turn(part(t, 0), t), turn(part(u, 1), u)) / math.sqrt(d) for u in seen]
                weights = np.exp(scores) / np.sum(np.exp(scores))
                a[q, t, h * d : (h + 1) * d] = sum(w * part(u, 2) for w, u in zip(weights, seen, strict=True))
    return a


def turned(x, t):
    """A complex number of each pair, times exp(i angle)."""
    half = len(x) // 2
    pairs = x[:half] + 1j * x[half:]
    pairs = pairs * np.exp(1j * t * 10000.0 ** (-2 * np.arange(half) / len(x)))
    return np.concatenate([pairs.real, pairs.imag])


@pytest.mark.newest
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(("causal", "rotary"), [(False, False), (True, False), (True, True)])
def test_attention_is_its_definition(heads, causal, rotary, lengths):
    n, theta = drawn("attention(1)", 5, lengths=lengths)
    f = activations.attention(heads, causal, rotary)
    a, kept = f.forward(n, theta)
    expected = attention_by_definition(np.asarray(n), heads, causal, rotary, theta.get("lengths"))
    np.testing.assert_allclose(a, expected, rtol=1e-12, atol=1e-14)
    assert kept.probabilities.shape == (3, heads, 5, 5)
    sums = np.asarray(kept.probabilities).sum(axis=-1)
    counts = np.asarray(theta["lengths"])[:, None] > np.arange(5) if lengths else np.ones((3, 5), bool)
    np.testing.assert_allclose(sums, np.broadcast_to(counts[:, None], sums.shape), atol=1e-14)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def states_by_definition(name, n, theta):
    """One example and one step at a time, gate by gate."""
    U, found = np.asarray(theta["recurrent"]), np.zeros((*n.shape[:2], NEURONS))
    for q, own in enumerate(np.asarray(n)):
        h = np.asarray(theta["initial"])
        m = np.asarray(theta.get("initial_cell", h))
        for t, entering in enumerate(own):
            if "lengths" not in theta or t < theta["lengths"][q]:
                x = np.split(entering, len(entering) // NEURONS)
                z = np.split(U @ h, len(x))
                if name == "recurrent":
                    h = np.tanh(x[0] + z[0])
                elif name == "gru":
                    r, u = sigmoid(x[0] + z[0]), sigmoid(x[1] + z[1])
                    h = (1 - u) * np.tanh(x[2] + r * z[2]) + u * h
                else:
                    i, p, o = (sigmoid(x[k] + z[k] + (k == 1)) for k in (0, 1, 3))
                    m = p * m + i * np.tanh(x[2] + z[2])
                    h = o * np.tanh(m)
            found[q, t] = h
    return found


@pytest.mark.newest
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", ["recurrent", "gru", "lstm"])
def test_recurrences_are_their_definitions(name, lengths):
    n, theta = drawn(name, 6, lengths=lengths)
    a = activations.get(name).forward(n, theta)[0]
    np.testing.assert_allclose(a, states_by_definition(name, n, theta), rtol=1e-12, atol=1e-14)


# Derivatives ----------------------------------------------------------------------------------------------------------


def derivatives(f, n, theta, seed=0):
    """By hand and by autodiff: the pullback, the pushforward, and the pullback's change, of learned parameters too."""
    draw, learned = np.random.default_rng(seed), {key: x for key, x in theta.items() if key != "lengths"}
    rest = {key: x for key, x in theta.items() if key == "lengths"}

    def normal(x):
        return jnp.asarray(draw.standard_normal(x.shape), x.dtype)

    def outputs(n, learned):
        return f.forward(n, learned | rest)[0]

    g, r, r_theta = normal(jax.eval_shape(outputs, n, learned)), normal(n), jax.tree.map(normal, learned)

    def summed(shares):
        return {key: factors.total(share, learned[key]) for key, share in shares.items()}

    def by_hand(n, learned):
        own = learned | rest
        a, kept = f.forward(n, own)
        s, shares = f.pullback(g, n, a, kept, own)
        bent, more = f.second_order(g, r, r_theta, n, a, kept, own)
        return (s, summed(shares)), f.pushforward(r, r_theta, n, a, kept, own), (bent, summed(more) if more else {})

    def automatic(n, learned):
        def back(*x):
            return jax.vjp(outputs, *x)[1](g)

        pushed = jax.jvp(outputs, (n, learned), (r, r_theta))[1]
        return back(n, learned), pushed, jax.jvp(back, (n, learned), (r, r_theta))[1]

    return jax.jit(by_hand)(n, learned), jax.jit(automatic)(n, learned)


@pytest.mark.sampled(every=21)
@names
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("positions", [5, 1, 2, 64])
def test_derivatives_are_autodiffs(positions, lengths, name):
    found, expected = derivatives(activations.get(name), *drawn(name, positions, lengths=lengths))
    for ours, theirs, tolerance in zip(found, expected, (1e-12, 1e-12, 1e-10), strict=True):
        # for one position attention's weights are 1, whatever n is: derivatives of 0 by hand are rounding by autodiff
        small = max(float(jnp.abs(x).max()) for x in jax.tree.leaves((ours, theirs))) <= 1e-15
        assert small or relative_error(ours, theirs) <= tolerance


@pytest.mark.sampled(every=6)
@names
def test_derivatives_in_float32(name):
    found, expected = derivatives(activations.get(name), *drawn(name, 9, dtype=jnp.float32, lengths=True))
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.sampled(every=14)
@names
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_dtype_is_kept(dtype, name):
    f, (n, theta) = activations.get(name), drawn(name, 3, dtype=dtype, lengths=True)
    a, kept = f.forward(n, theta)
    learned = {key: x for key, x in theta.items() if key != "lengths"}
    results = [a, f.pullback(a, n, a, kept, theta), f.pushforward(n, learned, n, a, kept, theta)]
    results.append(f.second_order(a, n, learned, n, a, kept, theta))
    for x in jax.tree.leaves(results):
        assert x.dtype == dtype and np.isfinite(np.asarray(x).astype(np.float64)).all()


def test_scores_of_any_size_are_met():
    """exp of the largest would overflow in each dtype, and a position that is not seen may have the largest."""
    f = activations.attention(1, causal=True)
    n = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 12)) * 1e3)
    a, kept = f.forward(n, {})
    s, _ = f.pullback(jnp.ones_like(a), n, a, kept, {})
    assert np.isfinite(s).all() and np.isfinite(a).all() and np.asarray(kept.probabilities)[:, 0, 0, 1:].max() == 0


def test_truncated_derivatives_are_those_of_pieces_whose_state_is_given():
    """Six steps in segments of two: each segment separately, from the final values of the one before."""
    n, theta = drawn("gru", 6)
    cut, whole = activations.gru(truncate=2), activations.gru()
    a, kept = cut.forward(n, theta)
    np.testing.assert_array_equal(a, whole.forward(n, theta)[0])
    g = jnp.asarray(np.random.default_rng(1).standard_normal(a.shape))
    s, shares = cut.pullback(g, n, a, kept, theta)
    total, first = 0, theta["initial"]
    for at in (0, 2, 4):
        piece, own = n[:, at : at + 2], theta | {"initial": first[None] if at == 0 else a[:, at - 1]}

        def outputs(piece, U, own=own):
            states = []
            for q in range(len(n)):
                each = own | {"recurrent": U, "initial": own["initial"][q if len(own["initial"]) > 1 else 0]}
                states.append(whole.forward(piece[q : q + 1], each)[0])
            return jnp.concatenate(states)

        back, of_U = jax.vjp(outputs, piece, theta["recurrent"])[1](g[:, at : at + 2])
        np.testing.assert_allclose(s[:, at : at + 2], back, rtol=1e-11, atol=1e-13)
        total = total + of_U
    np.testing.assert_allclose(factors.total(shares["recurrent"], theta["recurrent"]), total, rtol=1e-11, atol=1e-12)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("examples", [3, 1])
def test_positions_beyond_an_examples_length_have_no_effect(examples):
    for name in ROWS:
        n, theta = drawn(name, 6, lengths=True)
        n, theta = n[-examples:], theta | {"lengths": theta["lengths"][-examples:]}
        f, counts = activations.get(name), np.arange(6)[None, :, None] < np.asarray(theta["lengths"])[:, None, None]
        a, kept = f.forward(n, theta)
        other = f.forward(jnp.where(counts, n, 7 * n), theta)[0]
        np.testing.assert_array_equal(a, other, err_msg=name)
        s, _ = f.pullback(jnp.ones_like(a), n, a, kept, theta)
        assert (np.asarray(s)[~np.broadcast_to(counts, s.shape)] == 0).all(), name


# Networks -------------------------------------------------------------------------------------------------------------


def test_pieces_of_a_gate_stand_side_by_side():
    n = jnp.asarray([[0.5, 3.0, -1.0, 2.0]])
    for name, opens in {"glu": sigmoid, "swiglu": lambda x: x * sigmoid(x)}.items():
        np.testing.assert_allclose(
            activations.get(name).forward(n, {})[0], [[opens(0.5) * 3, opens(-1.0) * 2]], rtol=1e-14
        )


def test_sinusoidal_positions_are_the_papers():
    a, _ = activations.get("sinusoidal").forward(jnp.zeros((1, 3, 6)), {})
    for t in range(3):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            np.testing.assert_allclose(a[0, t, 2 * i : 2 * i + 2], [math.sin(angle), math.cos(angle)], atol=1e-14)


def test_recurrent_weights_start_orthogonal_by_seed():
    network = fnn.presets.get("lstm(width=5)")((3, 2), 4)
    one, same, other = (network.init(jax.random.key(seed))["state1"]["learned"] for seed in (0, 0, 1))
    for block in np.split(np.asarray(one["recurrent"]), 4):
        np.testing.assert_allclose(block @ block.T, np.eye(5), atol=1e-14)
    np.testing.assert_array_equal(one["recurrent"], same["recurrent"])
    assert not np.allclose(one["recurrent"], other["recurrent"]) and not one["initial"].any()


def graph_of(activation, size=6, inputs=(4, 3), **layer):
    return fnn.graph(
        inputs={"x": inputs, **({"lengths": ()} if layer.get("lengths") else {})},
        layers=[Layer("first", size, activation, ["x"], **layer), Layer("output", 2, "linear", [("first", "full")])],
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activations.get("attention(0)"), "attention: heads must be an integer >= 1, got 0"),
        (lambda: activations.attention(2, causal=1), "attention: causal must be True or False, got 1"),
        (lambda: graph_of("attention(4)"), "layer 'first'.*has 4 heads, which do not divide 6 neurons"),
        (lambda: graph_of(activations.attention(2, rotary=True)), "turns pairs of numbers, and a head has 3 of 6"),
        (lambda: graph_of("attention(2)", inputs=3), "needs a signal with positions, got shape"),
        (lambda: graph_of("gru", inputs=3), "needs a signal \\(T, channels\\), got shape"),
        (lambda: graph_of("lstm(truncate=0)"), "lstm: truncate must be an integer >= 1, got 0"),
        (lambda: activations.recurrent("softmax"), "recurrent: needs an elementwise activation"),
        (lambda: activations.recurrent("maxout"), "recurrent: needs an elementwise activation"),
        (lambda: activations.lstm(math.inf), "lstm: forget_bias must be"),
        (lambda: graph_of("tanh", lengths="lengths"), "layer 'first': tanh does not read lengths"),
        (lambda: graph_of("gru", lengths="length"), "lengths must be the name of an input.*did you mean 'lengths'"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_lengths_are_integers_of_each_example():
    network = graph_of("gru", lengths="lengths")
    assert network.shapes["lengths"] == () and network.tokens == {"lengths": 5}
    params, x = network.init(jax.random.key(0)), jnp.ones((2, 4, 3))
    assert network.apply(params, {"x": x, "lengths": np.array([4, 2])}).shape == (2, 2)
    for given, message in {
        (5, 2): r"inputs\['lengths'\]: expected lengths 0 to 4, got 5 at index \(0,\)",
        (1.0, 2.0): r"inputs\['lengths'\]: expected lengths, integers 0 to 4, got dtype float64",
    }.items():
        with pytest.raises(ValueError, match=message):
            network.apply(params, {"x": x, "lengths": np.array(given)})
    with pytest.raises(ValueError, match=r"input 'x': the shape \(\), one number an example, is that of lengths"):
        fnn.graph(inputs={"x": ()}, layers=[Layer("output", 2, "linear", ["x"])])
    with pytest.raises(ValueError, match="the layers that read lengths must have equally many positions"):
        fnn.graph(
            inputs={"x": (4, 3), "lengths": ()},
            layers=[
                Layer("first", 3, "gru", ["x"], lengths="lengths"),
                Layer("half", 3, "linear", [("first", "conv(3, stride=2)")]),
                Layer("second", 3, "gru", ["half"], lengths="lengths"),
                Layer("output", 2, "linear", [("second", "full")]),
            ],
        )


def test_names_lead_back_to_the_row():
    """However its constants were given: what is saved by name is what is read."""
    pairs = {
        activations.recurrent("elu"): activations.recurrent("elu(1.0)"),
        activations.lstm(1): activations.lstm(1.0),
        activations.attention(np.int64(2)): activations.attention(2),
        activations.sinusoidal(50): activations.sinusoidal(50.0),
    }
    for one, other in pairs.items():
        assert one is other and activations.get(one.name) is one, one.name


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("scale", [1, 30])
def test_attention_in_16_bits_is_as_exact_as_they_are(scale, dtype):
    """Where softmax is saturated what is left of its gradient is less than 16 bits show of its terms."""
    f, draw = activations.attention(1), np.random.default_rng(0)
    n = jnp.asarray(scale * draw.standard_normal((3, 7, 12)) / 5, dtype)
    g = jnp.asarray(draw.standard_normal((3, 7, 4)), dtype)
    found, exact = (
        f.pullback(g.astype(t), n.astype(t), *f.forward(n.astype(t), {}), {})[0] for t in (dtype, "float64")
    )
    # a few roundings of each number, and of n itself through exp: scores are of the size of n squared
    unit = float(jnp.finfo(dtype).eps)
    assert relative_error(found, exact) <= 8 * unit * max(1, float(jnp.max(jnp.abs(n))))
    large = jnp.full((1, 2, 12), 300, dtype)  # whose products no float16 holds
    assert np.isfinite(np.asarray(f.forward(large, {})[0]).astype(np.float64)).all()


def test_lengths_out_of_range_are_not_lost_in_a_program():
    network = graph_of("gru", lengths="lengths")
    params, x = network.init(jax.random.key(0)), jnp.ones((3, 4, 3))
    for dtype in (np.int8, np.uint8, np.int64):
        a = jax.jit(lambda own: network.apply(params, {"x": x, "lengths": own}))(np.array([9, 4, 0], dtype))
        assert np.isnan(a[0]).all() and np.isfinite(a[1:]).all(), dtype
