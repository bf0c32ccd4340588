"""`compare` finds what is wrong, says where, and lets what is right pass."""

import csv
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import TRAINABLE, chain, fan_out, targets_for

import functional_nn as fnn
from functional_nn.gradients import backprop, comparison

KEYS = jax.random.split(jax.random.key(3), 4)


def case(hidden="tanh", output="softmax", loss="cross_entropy", dtype=jnp.float64, examples=6):
    network, loss = fan_out(hidden, output), fnn.losses.get(loss)
    params = network.init(KEYS[0], dtype)
    inputs = {"p1": jax.random.normal(KEYS[1], (examples, 2)), "p2": jax.random.normal(KEYS[2], (examples, 3))}
    return network, loss, params, inputs, targets_for(loss, KEYS[3], examples, 3)


def scaled(factor, layer):
    """`backpropagate` with one layer's pullback off by a factor."""

    def wrong(network, loss, params, inputs, targets):
        def pullback(g, n, a, kept, theta):
            s, learned = right(g, n, a, kept, theta)
            return s * jnp.asarray(factor, s.dtype), learned

        found = next(x for x in network.layers if x.name == layer)
        right = found.activation.pullback
        activation = dataclasses.replace(found.activation, pullback=pullback)
        layers = tuple(dataclasses.replace(x, activation=activation) if x is found else x for x in network.layers)
        return backprop.backpropagate(fnn.Network(network.inputs, layers), loss, params, inputs, targets)

    return wrong


@pytest.mark.parametrize(
    ("hidden", "output", "loss", "dtype"),
    [
        ("tanh", "softmax", "cross_entropy", jnp.float64),
        pytest.param("prelu", "sigmoid", "binary_cross_entropy", jnp.float64, marks=pytest.mark.slow),
        pytest.param("maxout", "linear", "multiclass_hinge", jnp.float32, marks=pytest.mark.slow),
        pytest.param("tanh", "softmax", "cross_entropy", jnp.float32, marks=pytest.mark.slow),
        pytest.param("prelu", "sigmoid", "binary_cross_entropy", jnp.float32, marks=pytest.mark.slow),
        pytest.param("maxout", "linear", "multiclass_hinge", jnp.float64, marks=pytest.mark.slow),
        *(
            pytest.param(*case, dtype, marks=pytest.mark.slow)
            for case in (("sigmoid", "linear", "mean_square_error"), ("elu", "softmax", "bhattacharyya"))
            for dtype in (jnp.float64, jnp.float32)
        ),
    ],
)
def test_right_gradients_pass_every_checker(hidden, output, loss, dtype):
    a = fnn.compare(*case(hidden, output, loss, dtype), jit=False)
    assert a.verdict == "agree" and a.where is None
    assert a.taylor.says == "right" and abs(a.taylor.slope - 2) < 0.3
    assert a.third_opinion.says == "both are right" and a.third_opinion.method == "complex step"
    assert a.total.relative <= (1e-12 if dtype == jnp.float64 else 1e-5)


@pytest.mark.sampled(every=6)
# The smallest fault that each dtype can show: the bounds for this case are near 1e-14 and 1e-5.
@pytest.mark.parametrize(("dtype", "fault"), [(jnp.float64, 1e-11), (jnp.float32, 1e-2)])
@pytest.mark.parametrize("layer", ["first", "second", "third"])
def test_a_small_fault_is_seen_and_its_layer_named(layer, dtype, fault):
    a = fnn.compare(*case(dtype=dtype), manual=scaled(1 + fault, layer), jit=False)
    assert a.verdict == "differ"
    assert a.where.startswith(f"{layer}: dF/dn")
    assert a.third_opinion.says == "the manual gradient is wrong"


def test_a_wrong_automatic_gradient_is_named_too():
    def objective(x):
        return jnp.sum(jnp.sin(x))

    a = fnn.compare_callables(jnp.cos, lambda x: jnp.cos(x) * 1.001, jnp.arange(4.0), objective=objective)
    assert (a.verdict, a.third_opinion.says, a.taylor.says) == ("differ", "the automatic gradient is wrong", "right")
    b = fnn.compare_callables(jnp.sin, lambda x: jnp.cos(x) * 1.001, jnp.arange(4.0), objective=objective)
    assert b.third_opinion.says == "neither is right" and b.taylor.says == "wrong"


def test_a_gradient_wrong_in_one_element_is_located():
    def manual(x):
        return {"w": (2 * x["w"]).at[1, 2].add(1e-3), "b": 2 * x["b"]}

    x = {"w": jnp.arange(6.0).reshape(2, 3) + 1, "b": jnp.ones(2)}
    a = fnn.compare_callables(manual, jax.grad(lambda x: jnp.sum(x["w"] ** 2) + jnp.sum(x["b"] ** 2)), x)
    (b, w) = a.parameters
    assert b.agrees and not w.agrees
    assert w.index == (1, 2) and w.largest == pytest.approx(1e-3) and a.where.startswith("w: ")
    assert (w.manual, w.automatic) == (pytest.approx(12.001), 12.0)


def test_callables_of_different_structure_are_refused():
    with pytest.raises(ValueError, match="differ in structure"):
        fnn.compare_callables(lambda x: (x,), lambda x: [x], jnp.ones(2))
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\)"):
        fnn.compare_callables(lambda x: jnp.ones(3), lambda x: x, jnp.ones(2))


def test_nan_never_agrees():
    a = fnn.compare_callables(lambda x: x * jnp.nan, lambda x: x, jnp.ones(2))
    assert a.verdict == "differ"


def test_an_objective_blind_to_complex_numbers_falls_back_on_differences():
    a = fnn.compare_callables(
        lambda x: jnp.sign(x) * 2 * jnp.abs(x),
        jax.grad(lambda x: jnp.sum(jnp.abs(x) ** 2)),
        jnp.array([1.0, -2.0, 3.0]),
        objective=lambda x: jnp.sum(jnp.abs(x) ** 2),
    )
    assert a.third_opinion.method == "central differences" and a.third_opinion.says == "both are right"


@pytest.mark.slow
def test_low_precision_is_inconclusive_rather_than_wrong():
    a = fnn.compare(*case(dtype=jnp.bfloat16), jit=False)
    assert a.verdict == "inconclusive" and a.taylor.says == "inconclusive"
    assert a.dtype == "bfloat16"


@pytest.mark.slow
def test_the_bound_holds_over_many_draws():
    """The bound is a statement about probabilities: at most about 2e-6 per result. It must hold, and not emptily."""
    ratios = []
    for seed in range(20):
        network, loss, _, inputs, targets = case(dtype=jnp.float32)
        params = network.init(jax.random.key(seed), jnp.float32)
        a = fnn.compare(network, loss, params, inputs, targets, second_opinions=False, jit=False)
        ratios += [d.relative / d.bound for d in (a.total, *a.parameters, *a.sensitivities)]
    assert max(ratios) < 1
    assert max(ratios) > 1e-3


def test_the_condition_number_grows_as_terms_cancel():
    def f(x):
        return jnp.sum((x[0] - x[1]) ** 2)

    far, near = (fnn.compare_callables(jax.grad(f), jax.grad(f), jnp.array([1.0, 1.0 + gap])) for gap in (1.0, 1e-3))
    assert far.condition < 10 and near.condition > 300  # (x0 + x1) / (x0 - x1) in the worst direction


def test_sensitivities_are_automatic_derivatives_of_a_zero_added_to_the_net_inputs():
    network, loss, params, inputs, targets = case()
    a = fnn.compare(network, loss, params, inputs, targets, second_opinions=False, jit=False)
    assert [s.name for s in a.sensitivities] == ["output", "third", "second", "first"]
    s = fnn.sensitivities(network, loss, params, inputs, targets)
    for row in a.sensitivities:
        assert row.norm == pytest.approx(float(jnp.linalg.norm(s[row.name])), rel=1e-12)


@pytest.mark.parametrize("hidden", ["relu", "leaky_relu", "shifted_relu", "prelu"])
@pytest.mark.slow
def test_kinks_are_counted_and_their_convention_weighed(hidden):
    network = chain((2, 3, 1), hidden, "linear")
    params = network.init(KEYS[0])
    params["layer1"]["weights"]["input"] = jnp.ones((3, 2))
    params["layer1"]["bias"] = jnp.full(3, -1.0 if hidden == "shifted_relu" else 0.0)
    inputs = jnp.array([[1.0, -1.0], [2.0, 1.0]])  # the first example sits on the kink of all three neurons
    a = fnn.compare(network, fnn.losses.mean_square_error(), params, inputs, jnp.ones((2, 1)), jit=False)
    (audit,) = a.kinks
    assert (audit.name, audit.at_kink, audit.of) == ("layer1", 3, 6)
    assert a.convention > 1e-3 and a.verdict == "agree"
    assert a.third_opinion.says == "the point is on a kink, where there is no derivative"
    off = fnn.compare(network, fnn.losses.mean_square_error(), params, inputs + 0.1, jnp.ones((2, 1)), jit=False)
    assert off.kinks[0].at_kink == 0 and off.convention == 0.0


def test_ties_of_maxout_and_the_kink_of_a_loss_are_counted():
    network = chain((2, 2, 1), "maxout", "linear")
    params = jax.tree.map(jnp.zeros_like, network.init(KEYS[0]))
    params["layer2"]["bias"] = jnp.ones(1)
    a = fnn.compare(network, fnn.losses.hinge(), params, jnp.ones((3, 2)), jnp.ones((3, 1)), jit=False)
    assert [(k.name, k.at_kink, k.of) for k in a.kinks] == [("layer1", 12, 12), ("hinge at layer2", 3, 3)]


def test_costs_cover_both_programs():
    network = chain((3, 2), "tanh", "linear")
    args = (network.init(KEYS[0]), jnp.ones((4, 3)), jnp.ones((4, 2)))
    a = fnn.compare(network, fnn.losses.mean_square_error(), *args, costs=True, second_opinions=False)
    assert [c.name for c in a.costs] == ["manual", "automatic"]
    for c in a.costs:
        assert min(c.trace_seconds, c.compile_seconds, c.run_seconds, c.flops) > 0 and c.temporary_bytes >= 0


def test_the_record_is_a_pytree_and_saves(tmp_path):
    a = fnn.compare(*case(), jit=False)
    again = jax.tree.map(lambda x: x, a)
    assert again == a and all(isinstance(x, int | float) for x in jax.tree.leaves(a))
    a.to_csv(tmp_path / "a.csv")
    a.to_json(tmp_path / "a.json")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows].count("sensitivity") == 4
    assert float(rows[0]["relative"]) == a.total.relative
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["verdict"] == "agree" and saved["taylor"]["slope"] == a.taylor.slope
    text = str(a)
    for word in ("total", "dF/dn first", "third opinion", "Taylor test", "condition number"):
        assert word in text


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_activation_is_proved_second_derivatives_included(name):
    a = comparison.compare_activation(name)
    assert a.verdict == "agree", str(a)
    assert {d.name.split("/")[0] for d in a.parameters} == {"pullback", "pushforward", "second_order"}


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("pullback", {"derivative": lambda n, a: 1 - a}),
        ("second_order", {"second_derivative": lambda n, a: 2 * a * (1 - a * a)}),
    ],
)
def test_a_wrong_derivative_of_an_activation_is_named(part, changes):
    right = {"derivative": lambda n, a: 1 - a * a, "second_derivative": lambda n, a: -2 * a * (1 - a * a)}
    wrong = fnn.activations.elementwise("mine", jnp.tanh, **(right | changes))
    a = comparison.compare_activation(wrong)
    assert a.verdict == "differ" and a.where.startswith(part)
    with pytest.raises(ValueError, match="'hardlim' has no derivative"):
        comparison.compare_activation("hardlim")


def test_undefined_gradients_are_said_to_be_so():
    a = fnn.compare_callables(lambda x: x * jnp.nan, lambda x: x * jnp.nan, jnp.ones(3), objective=jnp.sum)
    assert a.verdict == "inconclusive" and a.total.undefined == 3 and math.isnan(a.condition)
    assert "undefined" in str(a) and "3 elements are nan or infinite in both" in str(a)


def test_the_monitor_agrees_with_compare():
    network, loss, params, inputs, targets = case()
    watched = comparison.monitor(network, loss, inputs, targets)(params)
    assert [d.name for d in watched][:2] == ["total", "first/bias"]
    assert all(d.agrees for d in watched)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_ulp_distance(dtype):
    x = np.asarray([1.0, -1.0, 0.0, 3.5], dtype)
    up = np.nextafter(x, np.asarray(np.inf, dtype))
    assert comparison.ulp_distance(x, up).tolist() == [1, 1, 1, 1]
    assert comparison.ulp_distance(up, x).tolist() == [1, 1, 1, 1]
    assert comparison.ulp_distance(np.asarray([-0.0], dtype), np.asarray([0.0], dtype)).tolist() == [0]
    tiny = np.nextafter(np.zeros(1, dtype), np.ones(1, dtype))
    assert comparison.ulp_distance(-tiny, tiny).tolist() == [2]
    assert math.isnan(comparison.ulp_distance(np.asarray([np.nan], dtype), np.asarray([1.0], dtype))[0])
    with pytest.raises(TypeError, match="one float dtype"):
        comparison.ulp_distance(x, x.astype(np.int32))


def test_bad_input_is_refused_before_any_work():
    network, loss, params, inputs, targets = case()
    with pytest.raises(ValueError, match="targets: expected shape"):
        fnn.compare(network, loss, params, inputs, targets[:3])
    with pytest.raises(ValueError, match="cross_entropy accepts values >= 0, got -0"):
        fnn.compare(network, loss, params, inputs, -targets)
    with pytest.raises(ValueError, match="hardlim"):
        fnn.compare(fan_out("hardlim", "softmax"), loss, params, inputs, targets)
