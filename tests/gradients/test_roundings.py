"""How far rounding may move a result: against sums, products and programs of which it is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GRAPHS, OUTPUT_PAIRS, PROVED, problem
from jax import lax
from signal_cases import random_network, signal_problem, texts

import functional_nn as fnn
from functional_nn.gradients import backprop
from functional_nn.gradients.roundings import displacements, unit_roundoff

KEY = jax.random.key(0)
WAYS = {
    "compiled": lambda f: jax.jit(functools.partial(displacements, f)),
    "stepwise": lambda f: functools.partial(displacements, f),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_moves_as_its_terms_do_whatever_they_leave_of_each_other(way):
    terms = jnp.tile(jnp.array([1.0, -1.0]), 50)
    cancelling, adding = (float(WAYS[way](jnp.sum)((x,), KEY)) for x in (terms, abs(terms)))
    assert cancelling == pytest.approx(np.sqrt(100) * 100, rel=1e-6)  # sqrt(K) sum |t|, all of it the sum's own
    assert adding == pytest.approx(np.sqrt(100) * 100 + 100, rel=1e-6)  # and u |x|


def _signs(*shape):
    return jnp.asarray(np.where(np.indices(shape).sum(axis=0) % 2, -1.0, 1.0))


def _convolution(groups=1, over="N", **settings):
    """Of signals (Q, T, R) and kernels (S, K, R); over="C", of what a kernel's derivative is made of."""
    letters = ("NTC", "OTI", "NTC") if over == "N" else ("CTN", "ITO", "CTN")
    count = {"feature_group_count": groups} if over == "N" else {"batch_group_count": groups}
    settings = {"window_strides": (1,), "padding": ((0, 0),)} | settings | count
    return functools.partial(lax.conv_general_dilated, dimension_numbers=letters, **settings)


def _added(size):
    return lambda x: lax.reduce_window(x, jnp.zeros(()), lax.add, (1, size, 1), (1, 1, 1), "VALID")  # as a program


def _largest(size):
    return lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, size, 1), (1, 1, 1), "VALID")


PLACES = jnp.array([0, 0, 0, 0, 2, 2])
# name -> (what is computed, of what, how many terms of size 1 each result has); all results are 0
SUMS = {
    "product": (jnp.dot, (_signs(3, 8), jnp.ones((8, 2))), 8),
    "convolution": (_convolution(), (_signs(2, 9, 1), jnp.ones((3, 4, 1))), 4),
    "of channels": (_convolution(), (_signs(2, 9, 4), jnp.ones((3, 3, 4))), 12),
    "in groups": (_convolution(2), (_signs(2, 9, 4), jnp.ones((6, 3, 2))), 6),
    "dilated": (_convolution(rhs_dilation=(3,)), (_signs(2, 9, 1), jnp.ones((3, 2, 1))), 2),
    # on its way back a stride leaves gaps, of which half of the kernel meets nothing
    "back by a stride": (_convolution(lhs_dilation=(2,)), (_signs(2, 9, 1), jnp.ones((3, 4, 1))), 2),
    "with both": (_convolution(lhs_dilation=(2,), rhs_dilation=(2,)), (_signs(2, 9, 2), jnp.ones((3, 2, 2))), 4),
    "of one position": (_convolution(padding=((2, 2),)), (_signs(2, 1, 4), jnp.ones((3, 3, 4))), 4),
    # of a kernel's derivative the examples are the channels
    "a kernel's": (_convolution(over="C"), (_signs(2, 9, 3), jnp.ones((2, 6, 5))), 12),
    "a strided kernel's": (_convolution(over="C", rhs_dilation=(3,)), (_signs(2, 9, 3), jnp.ones((2, 2, 5))), 4),
    "a grouped kernel's": (_convolution(2, over="C"), (_signs(2, 9, 4), jnp.ones((2, 6, 6))), 12),
    "sum": (lambda x: jnp.sum(x, axis=1), (_signs(3, 8, 2),), 8),
    "sum as a program": (lambda x: lax.reduce(x, jnp.zeros(()), lax.add, (1,)), (_signs(3, 8, 2),), 8),
    "windows": (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 4, 1), (1, 1, 1), "VALID"), (_signs(2, 9, 1),), 4),
    "windows as a program": (_added(4), (_signs(2, 9, 1),), 4),
    "cumulative": (lambda x: lax.cumsum(x, axis=1)[:, -1], (_signs(3, 8, 2),), 8),
    "scattered": (
        lambda x: jnp.zeros(3, x.dtype).at[PLACES].add(x)[0],
        (_signs(6),),
        (5, 4),
    ),  # and the 0 that was there
}

FAST = ("product", "in groups", "back by a stride", "of one position", "a grouped kernel's", "windows", "scattered")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SUMS]
)
def test_terms_are_counted_as_they_are(name, way):
    """sqrt(K) sum |t| where the sum leaves nothing, at every place that is no edge."""
    function, args, terms = SUMS[name]
    count, size = terms if isinstance(terms, tuple) else (terms, terms)
    np.testing.assert_allclose(function(*args), 0, atol=0)
    found = np.asarray(WAYS[way](function)(args, KEY))
    np.testing.assert_allclose(np.max(found), np.sqrt(count) * size, rtol=1e-6)


@pytest.mark.parametrize("name", ["product", "convolution", "a kernel's", "windows", "scattered"])
def test_sums_of_16_bits_are_rounded_at_every_step_but_products_once(name):
    function, args, terms = SUMS[name]
    count, size = terms if isinstance(terms, tuple) else (terms, terms)
    found = np.asarray(displacements(function, tuple(x.astype(jnp.bfloat16) for x in args), KEY), np.float64)
    step = 1.0 if name in ("windows", "scattered") else 2.0**-16  # of float32's unit roundoff in that of bfloat16
    np.testing.assert_allclose(np.max(found), step * np.sqrt(count) * size, rtol=0.02)


@pytest.mark.parametrize("way", WAYS)
def test_errors_go_through_a_program_as_its_derivative_says(way):
    x = jnp.linspace(0.5, 2, 400)
    found = np.asarray(WAYS[way](lambda x: jnp.exp(x * 3.0))((x,), KEY))
    own, product = np.exp(3 * x), 3 * x * np.exp(3 * x)  # of exp; of the product, times exp's derivative
    assert np.sqrt(np.mean((found / np.hypot(own, product)) ** 2)) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_moved_where_nothing_is_computed(way):
    def function(x):
        return jnp.concatenate([-x.T.reshape(-1), jnp.maximum(x, 0)[0], jnp.where(x > 0, x, 0)[1], jnp.sort(x)[0]])

    assert not np.asarray(WAYS[way](_largest(2))((jnp.arange(6.0).reshape(1, 6, 1),), KEY)).any()

    assert not np.asarray(WAYS[way](function)((jnp.arange(6.0).reshape(2, 3) - 2,), KEY)).any()


def test_a_kink_is_decided_once():
    """A net input within a move of 0 keeps its side, or the derivative's jump would be taken for rounding."""
    gradient = jax.grad(lambda x: 5 * jax.nn.relu(x[0] - x[1] + 1e-15))
    for way in WAYS.values():
        assert float(jnp.max(way(gradient)((jnp.array([1.0, 1.0]),), KEY))) < 20


@pytest.mark.newest
def test_loops_and_branches_are_followed():
    """A sum in a loop of any kind moves as the same sum written out."""
    x = jnp.tile(jnp.array([1.0, -1.0]), 8)

    def add(total, term):
        return jax.lax.cond(term > 0, lambda a, b: a + b, lambda a, b: a - -b, total, term), total

    loops = {
        "scan": lambda x: jax.lax.scan(add, jnp.zeros(()), x)[0],
        "reversed": lambda x: jax.lax.scan(add, jnp.zeros(()), x, reverse=True)[0],
        "while": lambda x: jax.lax.while_loop(lambda c: c[0] < 16, lambda c: (c[0] + 1, c[1] + x[c[0]]), (0, 0.0))[1],
        "stacked": lambda x: jnp.sum(jax.lax.scan(lambda c, t: (c, t * 1.0), 0.0, x)[1]),
    }
    for name, loop in loops.items():
        found = float(displacements(loop, (x,), KEY))
        assert 1 < found < 100, name  # eight partial sums of 1, or 16 sqrt(16) at once; the result is 0
    compiled = jax.jit(functools.partial(displacements, loops["scan"]))  # there a loop is one operation
    assert np.isfinite(float(compiled((x + 1,), KEY)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_small_numbers_move_as_large_ones(way, dtype):
    """Not a square of theirs underflows; and where results are flushed to 0, by what is flushed."""
    x = jnp.full(50, float(jnp.finfo(dtype).tiny) * 1e6, dtype)
    assert float(WAYS[way](lambda x: x[0] * 3)((x,), KEY)) == pytest.approx(3 * float(x[0]), rel=0.1)
    assert float(WAYS[way](lambda x: x[0] * x[1])((x,), KEY)) * unit_roundoff(dtype) >= float(jnp.finfo(dtype).tiny)


def test_results_that_overflow_or_are_masked_do_not_move_what_is_finite():
    def function(x):
        return jnp.exp(jnp.array([-jnp.inf, 0.0]) + x), x[:1] / 0

    masked, infinite = displacements(function, (jnp.ones(2),), KEY)
    assert masked[0] < 1e-290 and 0 < masked[1] < 10 and np.isinf(infinite).all()


# What `compare` makes of it -------------------------------------------------------------------------------------------

XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64), np.array([[0], [1], [1], [0]], np.float64)


@pytest.mark.sampled(every=2)
@pytest.mark.newest
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients_that_cancel_are_no_false_alarm(dtype):
    """A bias shared before softmax has the gradient 0, whatever the data; of XOR some arrays come near it."""
    shared = fnn.multilayer((4, 3, 3), ("tanh", "softmax"), bias="shared")
    draw = np.random.default_rng(1)
    data = draw.normal(size=(16, 4)), np.eye(3)[draw.integers(0, 3, 16)]
    of_xor = fnn.multilayer((2, 2, 1), ("tanh", "sigmoid"))
    for network, loss, xt in ((shared, "cross_entropy", data), (of_xor, "binary_cross_entropy", XOR)):
        for seed in range(10):
            a = fnn.compare(network, loss, network.init(jax.random.key(seed), dtype), *xt, second_opinions=False)
            assert a.verdict == "agree", str(a)
            if network is shared:
                (bias,) = (row for row in a.rows() if row["name"] == "layer2/bias")
                assert fnn.comparison.mark(bias) == "vanishes" and "vanishes" in str(a)


def added(layer, array, fault):
    """`backpropagate` with one array off by a constant."""

    def wrong(*args):
        found = backprop.backpropagate(*args)
        own = found.gradients[layer]
        own = own | {array: own[array] + jnp.asarray(fault, own[array].dtype)}
        return found._replace(gradients=found.gradients | {layer: own})

    return wrong


@pytest.mark.parametrize(("dtype", "fault"), [("float64", 1e-13), ("float32", 1e-4)])
def test_a_fault_in_an_array_that_vanishes_is_seen_and_placed(dtype, fault):
    """Its terms are 48 sensitivities of some 0.03; rounding leaves 3e-15 or 3e-6 of them."""
    network = fnn.multilayer((4, 3, 3), ("tanh", "softmax"), bias="shared")
    draw = np.random.default_rng(1)
    x, t = draw.normal(size=(16, 4)), np.eye(3)[draw.integers(0, 3, 16)]
    manual = added("layer2", "bias", fault)
    for seed in range(3):
        params = network.init(jax.random.key(seed), dtype)
        a = fnn.compare(network, "cross_entropy", params, x, t, manual=manual, second_opinions=False)
        assert a.verdict == "differ" and a.where.startswith("layer2/bias"), str(a)


def _alarms(configurations, seeds):
    """(random networks compared, those called different, the largest error over what is allowed)."""
    compared, alarms, largest = 0, [], 0.0
    for number in configurations:
        draw = np.random.default_rng(number)
        graph, hidden = (names[draw.integers(len(names))] for names in (list(GRAPHS), PROVED))
        output, loss = OUTPUT_PAIRS[draw.integers(len(OUTPUT_PAIRS))]
        network = GRAPHS[graph][0](hidden, output)
        loss = fnn.losses.get(f"{loss}({draw.choice(['mean', 'sum'])})")
        dtype = draw.choice(["float64", "float32", "bfloat16", "float16"])
        examples = int(draw.choice([1, 4, 16]))
        for seed in seeds:
            p, x, t = problem(network, loss, 1000 * number + seed, examples, dtype)
            kinds = {
                "as they are": (p, x, t),
                "one example many times": (p, *jax.tree.map(lambda v: jnp.broadcast_to(v[:1], v.shape), (x, t))),
                "signs": (p, jax.tree.map(jnp.sign, x), t),
                "large": (jax.tree.map(lambda v: 8 * v, p), x, t),
                "no inputs": (p, jax.tree.map(jnp.zeros_like, x), t),
                "quarters": (jax.tree.map(lambda v: jnp.round(4 * v) / 4, p), x, t),
            }
            kind = draw.choice(list(kinds))
            try:
                with np.errstate(all="ignore"):
                    a = fnn.compare(network, loss, *kinds[kind], second_opinions=False)
            except ValueError:  # of targets rounded to the dtype
                continue
            compared += 1
            for d in (a.total, *a.parameters, *a.sensitivities):
                largest = max(largest, d.error / d.allowed if d.allowed > 0 else np.inf * d.error if d.error else 0.0)
            if a.verdict == "differ":
                alarms.append((number, seed, kind, graph, hidden, output, loss, dtype, a.where))
    return compared, alarms, largest


@pytest.mark.slow
def test_random_networks_raise_no_alarm():
    compared, alarms, largest = _alarms(range(3), range(20))
    assert compared >= 40 and not alarms and 1e-3 < largest < 1


def _signal_alarms(configurations, seeds, dtypes=("float64", "float32", "bfloat16")):
    """The same of random networks on signals: (compared, those called different, the largest error over allowed)."""
    compared, alarms, largest = 0, [], 0.0
    for number in configurations:
        draw = np.random.default_rng(number)
        network = random_network(draw) if number % 5 else texts()
        of_output = {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy"}
        loss = f"{of_output.get(network.output.activation.name, 'mean_square_error')}({draw.choice(['mean', 'sum'])})"
        dtype, examples = str(draw.choice(dtypes)), int(draw.choice([1, 4, 16]))
        for seed in seeds:
            p, x, t = signal_problem(network, loss, 1000 * number + seed, examples, dtype)

            def signs(v):
                return jnp.sign(v) if v.dtype.kind == "f" else v

            kinds = {
                "as they are": (p, x, t),
                "one example many times": (p, *jax.tree.map(lambda v: jnp.broadcast_to(v[:1], v.shape), (x, t))),
                "signs": (p, jax.tree.map(signs, x), t),
                "large": (jax.tree.map(lambda v: 4 * v, p), x, t),
                "quarters": (jax.tree.map(lambda v: jnp.round(4 * v) / 4, p), x, t),
            }
            kind = draw.choice(list(kinds))
            with np.errstate(all="ignore"):
                a = fnn.compare(network, loss, *kinds[kind], second_opinions=False)
            compared += 1
            for d in (a.total, *a.parameters, *a.sensitivities):
                largest = max(largest, d.error / d.allowed if d.allowed > 0 else np.inf * d.error if d.error else 0.0)
            if a.verdict == "differ":
                alarms.append((number, seed, kind, network, loss, dtype, a.where))
    return compared, alarms, largest


@pytest.mark.slow
def test_random_convolutional_networks_raise_no_alarm():
    compared, alarms, largest = _signal_alarms((8,), range(20))
    assert compared == 20 and not alarms and 1e-3 < largest < 1, (alarms, largest)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("ten", range(3))
def test_thousands_of_random_convolutional_networks_raise_no_alarm(ten, dtype):
    compared, alarms, largest = _signal_alarms(range(100 + 10 * ten, 110 + 10 * ten), range(20), (dtype,))
    jax.clear_caches()  # a process can only hold so many programs
    assert compared == 200 and not alarms and largest < 1, (alarms, largest)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bounds_of_what_signals_do_are_of_the_size_of_the_errors(dtype):
    """Against float64: sums of some hundred terms that are convolved, scattered to one place, and taken by windows."""
    draw = np.random.default_rng(0)
    x, w, s = (draw.normal(size=size) + 0.5 for size in ((32, 9, 8), (4, 3, 8), (32, 9, 4)))
    programs = {
        "convolution": (_convolution(padding=((1, 1),)), (x, w)),
        "back by a stride": (_convolution(lhs_dilation=(2,)), (x, w)),
        "a kernel's": (_convolution(over="C", padding=((1, 1),)), (x, s)),
        "a grouped kernel's": (_convolution(4, over="C", padding=((1, 1),)), (x, s)),
        "scattered": (lambda x: jnp.zeros((1, 8), x.dtype).at[jnp.zeros(288, int)].add(x.reshape(-1, 8)), (x,)),
        "windows": (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 5, 1), (1, 1, 1), "VALID"), (x,)),
    }
    for name, (function, args) in programs.items():
        args = [jnp.asarray(v, dtype) for v in args]
        exact = function(*(v.astype(jnp.float64) for v in args))
        delta = np.linalg.norm(np.asarray(displacements(function, tuple(args), KEY)).astype(np.float64))
        error = np.linalg.norm(np.asarray(function(*args)).astype(np.float64) - exact)
        assert 1e-4 < error / (6 * unit_roundoff(dtype) * delta) < 1, name


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(10))
def test_ten_thousand_random_networks_raise_no_alarm(hundred):
    compared, alarms, largest = _alarms(range(100 + 10 * hundred, 110 + 10 * hundred), range(100))
    assert compared > 900 and not alarms and largest < 1, (alarms, largest)


def test_the_bound_is_of_the_size_of_the_errors():
    """float32 against the same program in float64: within the bound, which is not a thousand times too large."""
    network = fnn.multilayer((12, 20, 5), ("tanh", "softmax"))
    loss, ratios = fnn.losses.cross_entropy(), []
    gradient = jax.grad(fnn.objective(network, loss))
    delta, compiled = jax.jit(functools.partial(displacements, gradient)), jax.jit(gradient)
    for seed in range(5):
        given = problem(network, loss, seed, 40, jnp.float32)
        exact = compiled(*jax.tree.map(lambda v: v.astype(jnp.float64), given))
        for a, b, d in zip(*map(jax.tree.leaves, (compiled(*given), exact, delta(given, KEY))), strict=True):
            allowed = 6 * unit_roundoff(jnp.float32) * np.linalg.norm(d)
            ratios.append(float(np.linalg.norm(np.asarray(a, np.float64) - b)) / allowed)
    assert 1e-3 < min(ratios) and max(ratios) < 1


@pytest.mark.parametrize(
    ("gives", "error", "said"),
    [
        (lambda b: (b.value, b.gradients), TypeError, "expected a Backpropagation .* got tuple without value"),
        (
            lambda b: b._replace(gradients={"layer1": b.gradients["layer1"]}),
            ValueError,
            "gradients: layer2/bias is mis",
        ),
        (lambda b: b._replace(sensitivities={}), ValueError, "sensitivities: layer1 is missing"),
        (lambda b: b._replace(value=b.sensitivities["layer1"]), ValueError, "value: the array expected shape ()"),
    ],
)
def test_the_result_of_a_manual_backpropagate_is_checked(gives, error, said):
    network = fnn.multilayer((2, 2, 1), ("tanh", "sigmoid"))
    seen = []

    def manual(network, loss, params, inputs, targets):
        seen.append(inputs)
        return gives(backprop.backpropagate(network, loss, params, inputs, targets))

    with pytest.raises(error, match=said):
        fnn.compare(network, "binary_cross_entropy", network.init(KEY), *XOR, manual=manual, jit=False)
    assert list(seen[0]) == ["input"]  # as documented: by name, also a single one


@pytest.mark.slow
def test_a_second_comparison_compiles_nothing():
    network = fnn.multilayer((2, 2, 1), ("tanh", "sigmoid"))
    args = [network.init(jax.random.key(seed)) for seed in range(2)]
    fnn.compare(network, "binary_cross_entropy", args[0], *XOR)
    events = itertools.count()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: next(events) if name == "/jax/core/compile/backend_compile_duration" else None
    )
    fnn.compare(network, "binary_cross_entropy", args[1], *XOR)
    assert next(events) == 0
