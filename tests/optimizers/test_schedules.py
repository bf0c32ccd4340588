"""Schedules: their formulas in NumPy, optax's values, and what an optimizer makes of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn import optimizers
from functional_nn.optimizers import schedules
from functional_nn.optimizers.schedules import Schedule

STEPS = np.append(np.arange(120), 1000)  # one shape throughout: an operation compiles once for each


def half_cosine(first, last, share):
    return last + (first - last) * 0.5 * (1 + np.cos(np.pi * share))


def one_cycle_of_pytorch(k, peak, steps, rise=0.3, start_division=25.0, final_division=1e4):
    """OneCycleLR._initial_step and get_lr, one step at a time: two phases, which end at these steps."""
    start = peak / start_division
    top, end = rise * steps - 1, steps - 1
    if k <= top:
        return half_cosine(start, peak, k / top)
    return half_cosine(peak, start / final_division, (min(k, end) - top) / (end - top))


# specification -> (the formula of one step k, optax's schedule or None)
FORMULAS = {
    "constant(0.3)": (lambda k: 0.3, lambda x: x.constant_schedule(0.3)),
    "step(0.5, 10)": (
        lambda k: 0.5 * 0.1 ** (k // 10),
        lambda x: x.exponential_decay(0.5, 10, 0.1, staircase=True),
    ),
    "step(0.5, every=7, factor=0.6)": (
        lambda k: 0.5 * 0.6 ** (k // 7),
        lambda x: x.exponential_decay(0.5, 7, 0.6, staircase=True),
    ),
    "exponential(0.5, 0.97)": (lambda k: 0.5 * 0.97**k, lambda x: x.exponential_decay(0.5, 1, 0.97)),
    "exponential(0.5, 0.1, steps=40)": (
        lambda k: 0.5 * 0.1 ** (k / 40),
        lambda x: x.exponential_decay(0.5, 40, 0.1),
    ),
    "inverse(0.5)": (lambda k: 0.5 / (1 + k), None),
    "inverse(0.5, steps=10)": (lambda k: 0.5 / (1 + k / 10), None),
    "cosine(0.5, 100)": (
        lambda k: 0.5 * (1 + np.cos(np.pi * min(k, 100) / 100)) / 2,
        lambda x: x.cosine_decay_schedule(0.5, 100),
    ),
    "cosine(0.5, 80, final=0.05)": (
        lambda k: 0.05 + 0.45 * (1 + np.cos(np.pi * min(k, 80) / 80)) / 2,
        lambda x: x.cosine_decay_schedule(0.5, 80, alpha=0.1),
    ),
    "linear_warmup(0.5, steps=20)": (
        lambda k: 0.5 * min(k, 20) / 20,
        lambda x: x.linear_schedule(0.0, 0.5, 20),
    ),
    "linear_warmup(cosine(0.5, 60), steps=20, start=0.1)": (
        lambda k: 0.1 + 0.4 * k / 20 if k < 20 else 0.5 * (1 + np.cos(np.pi * min(k - 20, 60) / 60)) / 2,
        lambda x: x.warmup_cosine_decay_schedule(0.1, 0.5, 20, 80),
    ),
    "linear_warmup(exponential(0.5, 0.9), steps=5)": (
        lambda k: 0.5 * k / 5 if k < 5 else 0.5 * 0.9 ** (k - 5),
        lambda x: x.join_schedules([x.linear_schedule(0.0, 0.5, 5), x.exponential_decay(0.5, 1, 0.9)], [5]),
    ),
    "one_cycle(0.5, 100)": (lambda k: one_cycle_of_pytorch(k, 0.5, 100), None),
    "one_cycle(0.5, 90, rise=0.2, start_division=5, final_division=50)": (
        lambda k: one_cycle_of_pytorch(k, 0.5, 90, 0.2, 5.0, 50.0),
        None,
    ),
    # optax counts from 0 to N where PyTorch has N updates: the peak at 40 and the end at 100, said in either way
    "one_cycle(0.5, 101, rise=0.40594059405940597)": (
        lambda k: one_cycle_of_pytorch(k, 0.5, 101, 41 / 101),
        lambda x: x.cosine_onecycle_schedule(100, 0.5, pct_start=0.4),
    ),
    "gradual_reduction(0.5, 0.005, 60)": (
        lambda k: 0.5 * 0.01 ** (min(k, 60) / 60),
        lambda x: x.exponential_decay(0.5, 60, 0.01, end_value=0.005),
    ),
    "gradual_reduction(0.5, 0.005, 60, hold=20)": (
        lambda k: 0.5 * 0.01 ** (min(max(k - 20, 0), 60) / 60),
        lambda x: x.exponential_decay(0.5, 60, 0.01, transition_begin=20, end_value=0.005),
    ),
}
over_all = pytest.mark.parametrize("specification", FORMULAS)


def test_every_schedule_has_a_formula():
    assert {specification.partition("(")[0] for specification in FORMULAS} == set(schedules.names())


@over_all
def test_values_are_those_of_the_formula(specification):
    """Of arrays, integers, int32 scalars, under jit and under vmap; in JAX's default float."""
    schedule = schedules.get(specification)
    expected = np.array([FORMULAS[specification][0](int(k)) for k in STEPS])
    values = schedule(STEPS)
    assert values.shape == STEPS.shape and values.dtype == jnp.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-16)
    one = schedule(jnp.int32(7))
    assert one.shape == () and one.dtype == jnp.float64
    np.testing.assert_allclose([one, schedule(7)], expected[7], rtol=1e-12)
    compiled = jax.jit(jax.vmap(schedule))(jnp.asarray(STEPS, jnp.int32))
    np.testing.assert_allclose(compiled, values, rtol=1e-14, atol=1e-17)


@pytest.mark.oracle
@pytest.mark.parametrize("specification", [name for name, (_, theirs) in FORMULAS.items() if theirs])
def test_values_are_optaxs(specification):
    import optax

    theirs = FORMULAS[specification][1](optax)
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(jax.vmap(lambda k: jnp.asarray(theirs(k), jnp.float64)))(jnp.asarray(STEPS))
    # optax has its own constants in float32: pi's cosine reaches 0 only to their rounding
    np.testing.assert_allclose(schedules.get(specification)(STEPS), expected, rtol=1e-12, atol=1e-16)


def test_ends_are_reached_and_kept():
    def at(specification, *steps):
        by_step = dict(zip(STEPS.tolist(), np.asarray(schedules.get(specification)(STEPS)).tolist(), strict=True))
        return [by_step[k] for k in steps]

    assert at("cosine(0.5, 100, 0.1)", 0, 100, 1000) == [0.5, 0.1, 0.1]
    assert at("linear_warmup(0.5, 4, start=0.25)", 0, 2, 4, 1000) == [0.25, 0.375, 0.5, 0.5]
    assert at("gradual_reduction(0.5, 0.125, 2, hold=3)", 0, 3, 4, 5, 1000) == [0.5, 0.5, 0.25, 0.125, 0.125]
    np.testing.assert_allclose(at("one_cycle(0.5, 100)", 0, 29, 99, 1000), [0.02, 0.5, 2e-6, 2e-6], rtol=1e-12)
    np.testing.assert_allclose(at("one_cycle(0.5, 1)", 0, 5), [2e-6, 2e-6], rtol=1e-12)
    assert at("step(0.5, 10, 0.5)", 9, 10, 19, 20) == [0.5, 0.25, 0.25, 0.125]
    assert at("inverse(0.5, 10)", 0, 10) == [0.5, 0.25]


def test_schedules_are_float32_without_64_bits():
    with jax.enable_x64(False):
        assert schedules.cosine(0.1, 100)(3).dtype == jnp.float32


# As constants of optimizers -------------------------------------------------------------------------------------------

START = np.array([1.0, -0.5, 0.25])


def path(optimizer, steps=30, dtype=jnp.float64):
    """Parameters after each update down the bowl about -1/2."""

    def step(state, _):
        state = optimizer.update(state, jax.tree.map(lambda x: x + jnp.asarray(0.5, x.dtype), state.params))
        return state, state.params

    run = jax.jit(lambda x: jax.lax.scan(step, optimizer.init(x), length=steps)[1])
    return np.asarray(run(jnp.asarray(START, dtype)))


@pytest.mark.parametrize("name", ["gd", "nesterov", "adam", "rprop"])
def test_a_constant_schedule_is_its_number(name):
    if name == "rprop":  # has no rate; every other constant may be a schedule
        plain, scheduled = optimizers.rprop(increase=1.5), optimizers.rprop(increase="constant(1.5)")
    else:
        plain, scheduled = (getattr(optimizers, name)(rate) for rate in (0.03, schedules.constant(0.03)))
    np.testing.assert_allclose(path(scheduled), path(plain), rtol=1e-15, atol=1e-16)
    assert path(scheduled, 2, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("specification", ["cosine(0.3, 20)", "step(0.3, 5, 0.5)", "linear_warmup(0.3, 10)"])
def test_the_first_update_uses_the_rate_at_zero(specification):
    """Under jit and scan as in a Python loop with the rate computed again: x = x - alpha_k g, k = 0, 1, ..."""
    x, expected = START.copy(), []
    for k in range(30):
        x = x - FORMULAS_OF_RATES[specification](k) * (x + 0.5)
        expected.append(x)
    np.testing.assert_allclose(path(optimizers.gd(specification)), expected, rtol=1e-13)


FORMULAS_OF_RATES = {
    "cosine(0.3, 20)": lambda k: 0.15 * (1 + np.cos(np.pi * min(k, 20) / 20)),
    "step(0.3, 5, 0.5)": lambda k: 0.3 * 0.5 ** (k // 5),
    "linear_warmup(0.3, 10)": lambda k: 0.3 * min(k, 10) / 10,
}


@pytest.mark.parametrize("constant", ["b1", "b2"])
def test_other_constants_can_be_schedules_too(constant):
    """Adam with a decay that rises from 0: 1 - decay^k with the decay of the step."""

    def rising(k):
        return 0.9 * min(k, 10) / 10

    x, m, v, expected = START.copy(), 0.0, 0.0, []
    for k in range(30):
        decays = {"b1": 0.8, "b2": 0.95} | {constant: rising(k)}
        b1, b2, g = decays["b1"], decays["b2"], x + 0.5
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        x = x - 0.1 * m / (1 - b1 ** (k + 1)) / (np.sqrt(v / (1 - b2 ** (k + 1))) + 1e-3)
        expected.append(x)
    constants = {"b1": 0.8, "b2": 0.95} | {constant: "linear_warmup(0.9, 10)"}
    np.testing.assert_allclose(path(optimizers.adam(0.1, epsilon=1e-3, **constants)), expected, rtol=1e-12)


def test_any_function_of_the_step_is_a_schedule():
    halved = path(optimizers.gd(lambda k: 0.5 / (1 + k.astype(jnp.float64))))
    np.testing.assert_allclose(halved, path(optimizers.gd("inverse(0.5)")), rtol=1e-14)


# Names ----------------------------------------------------------------------------------------------------------------


def test_schedules_are_named_inside_optimizers():
    by_hand = optimizers.adam(schedules.cosine(0.1, 100))
    assert optimizers.adam("cosine(0.1, 100)").constants == by_hand.constants
    assert optimizers.adam(learning_rate="cosine(0.1, 100)").constants == by_hand.constants
    assert optimizers.get("adam(cosine(0.1, 100))").constants == by_hand.constants
    assert optimizers.get("adam(learning_rate=cosine(0.1, steps=100))").constants == by_hand.constants
    second = optimizers.get("momentum(cosine(0.1, 100), 0.8)")
    assert second.constants == optimizers.momentum(schedules.cosine(0.1, 100), 0.8).constants
    nested = optimizers.get("adam(linear_warmup(cosine(0.1, 100), 5))")
    assert repr(nested) == repr(optimizers.adam(schedules.linear_warmup(schedules.cosine(0.1, 100), 5)))


def test_a_nested_name_may_stand_last():
    warmup = schedules.linear_warmup(schedules.cosine(0.1, 100), 5)
    assert repr(schedules.get("linear_warmup(steps=5, then=cosine(0.1, 100))")) == repr(warmup)
    named = optimizers.get("adam(linear_warmup(steps=5, then=cosine(0.1, 100)))")
    assert repr(named) == repr(optimizers.adam(warmup))


def test_equal_constants_give_the_same_schedule():
    assert schedules.cosine(0.1, 100) is schedules.cosine(initial=0.1, steps=100, final=0.0)
    assert schedules.get("cosine(0.1, 100)") is schedules.cosine(0.1, 100)
    assert isinstance(schedules.get("cosine(0.1, 100)"), Schedule)
    assert repr(schedules.cosine(0.1, 100)) == "cosine(initial=0.1, steps=100, final=0.0)"
    with pytest.raises(ValueError, match="schedule 'cosine' is already registered"):
        schedules.register(schedules.cosine)


# Refusals -------------------------------------------------------------------------------------------------------------

RATE, FACTOR, INTEGER = "a finite number >= 0", "in (0, 1]", "an integer >= 1"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.constant(-0.1), f"constant: rate must be {RATE}, got -0.1"),
        (lambda: schedules.constant(float("nan")), f"constant: rate must be {RATE}, got nan"),
        (lambda: schedules.constant(None), f"constant: rate must be {RATE}, got None"),
        (lambda: schedules.step(float("inf"), 10), f"step: initial must be {RATE}, got inf"),
        (lambda: schedules.step(0.1, 0), f"step: every must be {INTEGER}, got 0"),
        (lambda: schedules.step(0.1, 10, 1.5), f"step: factor must be {FACTOR}, got 1.5"),
        (lambda: schedules.step(0.1, 10, 0.0), f"step: factor must be {FACTOR}, got 0.0"),
        (lambda: schedules.exponential(-1, 0.9), f"exponential: initial must be {RATE}, got -1"),
        (lambda: schedules.exponential(0.1, 0.0), f"exponential: factor must be {FACTOR}, got 0.0"),
        (lambda: schedules.exponential(0.1, 0.9, 2.5), f"exponential: steps must be {INTEGER}, got 2.5"),
        (lambda: schedules.inverse(-1.0), f"inverse: initial must be {RATE}, got -1.0"),
        (lambda: schedules.inverse(1.0, True), f"inverse: steps must be {INTEGER}, got True"),
        (lambda: schedules.cosine(0.1, -5), f"cosine: steps must be {INTEGER}, got -5"),
        (lambda: schedules.cosine(0.1, 10, -0.1), f"cosine: final must be {RATE}, got -0.1"),
        (lambda: schedules.cosine(-0.1, 10), f"cosine: initial must be {RATE}, got -0.1"),
        (lambda: schedules.linear_warmup(-0.1, 10), f"constant: rate must be {RATE}, got -0.1"),
        (lambda: schedules.linear_warmup(0.1, 0), f"linear_warmup: steps must be {INTEGER}, got 0"),
        (lambda: schedules.linear_warmup(0.1, 5, -1.0), f"linear_warmup: start must be {RATE}, got -1.0"),
        (lambda: schedules.linear_warmup("cosin(0.1, 3)", 5), "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (lambda: schedules.one_cycle(-1.0, 10), f"one_cycle: peak must be {RATE}, got -1.0"),
        (lambda: schedules.one_cycle(1.0, 0), f"one_cycle: steps must be {INTEGER}, got 0"),
        (lambda: schedules.one_cycle(1.0, 10, rise=1.0), "one_cycle: rise must be in (0, 1), got 1.0"),
        (
            lambda: schedules.one_cycle(1.0, 10, start_division=0.5),
            "one_cycle: start_division must be a number >= 1, got 0.5",
        ),
        (
            lambda: schedules.one_cycle(1.0, 10, final_division=float("nan")),
            "one_cycle: final_division must be a number >= 1, got nan",
        ),
        (lambda: schedules.gradual_reduction(0.0, 0.1, 5), "gradual_reduction: largest must be > 0, got 0.0"),
        (lambda: schedules.gradual_reduction(0.1, 0.0, 5), "gradual_reduction: final must be > 0, got 0.0"),
        (lambda: schedules.gradual_reduction(0.1, 0.1, 0), f"gradual_reduction: steps must be {INTEGER}, got 0"),
        (
            lambda: schedules.gradual_reduction(0.1, 0.1, 5, -1),
            "gradual_reduction: hold must be an integer >= 0, got -1",
        ),
        (lambda: schedules.get("cosin"), "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (lambda: schedules.get("cosine(0.1)"), "missing a required argument: 'steps' (accepted: cosine(initial"),
    ],
)
def test_constants_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError) as refused:
        build()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
