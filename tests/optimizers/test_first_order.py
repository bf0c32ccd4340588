"""First-order methods: the updates of their texts, optax's trajectories, and what they leave as it was."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, chain, random_params, relative_error

from functional_nn import optimizers
from functional_nn.optimizers import first_order

STEPS = 200
FACTORIES = {name: getattr(optimizers, name) for name in optimizers.names()}
PARAMS = random_params(chain((2, 3, 1), "prelu", "linear"), jax.random.key(0))


def gradient(params):
    """Of a function that is neither quadratic nor symmetric: sum x^4/4 + (x + 1/2)^2."""
    return jax.tree.map(lambda x: x**3 + 2 * (x + 0.5), params)


def run(optimizer, params=PARAMS, steps=STEPS):
    def step(state, _):
        return optimizer.update(state, gradient(state.params)), None

    return jax.lax.scan(step, optimizer.init(params), length=steps)[0]


# The methods ----------------------------------------------------------------------------------------------------------


def test_names_are_the_public_functions():
    assert {"gd", "momentum", "adam"} <= set(optimizers.names())
    assert optimizers.get("gd(0.5)").name == "gd"


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: optimizers.gd(0.03), lambda optax: optax.sgd(0.03)),
        (lambda: optimizers.momentum(0.03, 0.8), lambda optax: optax.sgd(0.03, momentum=0.8)),
        (lambda: optimizers.momentum(0.03, 0.0), lambda optax: optax.sgd(0.03)),
        (lambda: optimizers.adam(0.01), lambda optax: optax.adam(0.01)),
        (lambda: optimizers.adam(0.01, 0.8, 0.95, 1e-3), lambda optax: optax.adam(0.01, 0.8, 0.95, 1e-3)),
    ],
    ids=["gd", "momentum", "momentum without decay", "adam", "adam with other constants"],
)
def test_trajectories_are_optaxs(ours, theirs):
    import optax

    optimizer = theirs(optax)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 power
        expected = jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), length=STEPS)[0][0]
    final = run(ours())
    assert final.step == STEPS
    assert relative_error(final.params, expected) <= 1e-12
    assert relative_error(final.params, PARAMS) > 0.1  # it went somewhere


def test_gradient_descent_is_hagans_first_step():
    """Worked examples 1 and 3: rate 0.01 from the first example; one step at 0.1 from w = b = 0."""
    state = optimizers.gd(0.01).update(optimizers.gd(0.01).init(jnp.zeros(2)), -2 * -1.0 * jnp.array([-1.0, 2.0]))
    np.testing.assert_allclose(state.params, [0.02, -0.04], rtol=1e-15)
    state = optimizers.gd(0.1).update(optimizers.gd(0.1).init(jnp.zeros(2)), jnp.array([-8.0, -3.0]))
    np.testing.assert_allclose(state.params, [0.8, 0.3], rtol=1e-15)


def test_momentum_is_the_recursion_written_out():
    optimizer, w, change = optimizers.momentum(0.1, 0.9), 1.0, 0.0
    state = optimizer.init(jnp.array(w))
    for g in (2.0, -1.0, 0.5, 3.0):
        change = -0.1 * g + 0.9 * change
        w = w + change
        state = optimizer.update(state, jnp.array(g))
        np.testing.assert_allclose((state.params, state.change), (w, change), rtol=1e-15)


def test_adam_is_the_algorithm_written_out():
    """Kingma and Ba 2015, Algorithm 1, in floats; the first step is the rate times the sign of the gradient."""
    rate, b1, b2, epsilon = 0.1, 0.9, 0.99, 1e-8
    optimizer, x, m, v = optimizers.adam(rate, b1, b2, epsilon), 1.0, 0.0, 0.0
    state = optimizer.init(jnp.array(x))
    for t, g in enumerate((2.0, -1.0, 0.5, 3.0), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x = x - rate * (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + epsilon)
        state = optimizer.update(state, jnp.array(g))
        np.testing.assert_allclose((state.params, state.first_moment, state.second_moment), (x, m, v), rtol=1e-14)
        assert t > 1 or abs(x - 0.9) < 1e-8
    assert state.step == 4


# Laws over all methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTORIES)
def test_it_descends(name):
    def distance(params):  # from the zero of the gradient, x^3 + 2 x + 1 = 0
        return relative_error(params, jax.tree.map(lambda x: jnp.full_like(x, -0.4533976515164037), params))

    assert distance(run(FACTORIES[name](learning_rate=0.05)).params) < 0.1 * distance(PARAMS)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", FACTORIES)
def test_structure_shapes_and_dtypes_are_kept(name, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    optimizer = FACTORIES[name]()
    state = optimizer.init(params)
    after = optimizer.update(state, gradient(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)  # so that it can be carried through a scan
    chex.assert_trees_all_equal_shapes_and_dtypes(after.params, params)
    chex.assert_tree_all_finite(jax.tree.map(lambda x: x.astype(jnp.float32), after.params))
    chex.assert_trees_all_equal(state.params, params)
    assert state.step == 0 and after.step == 1 and after.step.dtype == jnp.int32


@pytest.mark.parametrize("name", FACTORIES)
def test_averages_of_sixteen_bit_gradients_are_kept_in_thirty_two(name):
    state = FACTORIES[name]().init(jnp.ones(3, jnp.bfloat16))
    kept = {key: value for key, value in state._asdict().items() if key not in ("params", "step")}
    assert all(value.dtype == jnp.float32 for value in kept.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", FACTORIES)
def test_a_gradient_of_zero_moves_nothing(name, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype).at[0].set(-0.0), PARAMS)
    optimizer = FACTORIES[name]()
    after = optimizer.update(optimizer.init(params), jax.tree.map(jnp.zeros_like, params)).params
    chex.assert_trees_all_equal(after, params)
    if name == "gd":  # to the last bit, the sign of a zero included
        for was, now in zip(jax.tree.leaves(params), jax.tree.leaves(after), strict=True):
            assert np.asarray(was).tobytes() == np.asarray(now).tobytes()


@pytest.mark.parametrize("name", FACTORIES)
def test_a_rate_of_zero_moves_nothing(name):
    chex.assert_trees_all_equal(run(FACTORIES[name](learning_rate=0.0), steps=3).params, PARAMS)


@pytest.mark.parametrize("name", FACTORIES)
def test_rates_can_be_swept_by_vmap(name):
    rates = jnp.array([0.0, 0.01, 0.05])
    swept = jax.jit(jax.vmap(lambda rate: run(FACTORIES[name](learning_rate=rate), steps=20).params))(rates)
    for i, rate in enumerate((0.0, 0.01, 0.05)):
        alone = run(FACTORIES[name](learning_rate=rate), steps=20).params
        assert relative_error(jax.tree.map(lambda x, i=i: x[i], swept), alone) <= 1e-12


@pytest.mark.parametrize(("name", "constant"), [("momentum", "decay"), ("adam", "b1"), ("adam", "b2")])
def test_decays_can_be_swept_by_vmap(name, constant):
    swept = jax.vmap(lambda decay: run(FACTORIES[name](**{constant: decay}), steps=20).params)(jnp.array([0.0, 0.5]))
    for i, decay in enumerate((0.0, 0.5)):
        alone = run(FACTORIES[name](**{constant: decay}), steps=20).params
        assert relative_error(jax.tree.map(lambda x, i=i: x[i], swept), alone) <= 1e-12


def test_numpy_numbers_are_numbers():
    """What np.linspace gives: a rate that is a NumPy scalar leaves dtypes as a Python float does."""
    params = jnp.ones(3, jnp.float32)
    for factory in FACTORIES.values():
        optimizer, expected = factory(learning_rate=np.float64(0.25)), factory(learning_rate=0.25)
        state = optimizer.update(optimizer.init(params), params)
        chex.assert_trees_all_equal(state, expected.update(expected.init(params), params))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optimizers.gd(-0.1), "gd: learning_rate must be a finite number >= 0, got -0.1"),
        (lambda: optimizers.gd(float("nan")), "gd: learning_rate must be a finite number >= 0, got nan"),
        (lambda: optimizers.gd(float("inf")), "gd: learning_rate must be a finite number >= 0, got inf"),
        (lambda: optimizers.gd("fast"), "gd: learning_rate must be a finite number >= 0, got 'fast'"),
        (lambda: optimizers.gd(None), "gd: learning_rate must be a finite number >= 0, got None"),
        (lambda: optimizers.momentum(-1.0), "momentum: learning_rate must be a finite number >= 0, got -1.0"),
        (lambda: optimizers.momentum(decay=1.0), "momentum: decay must be in [0, 1), got 1.0"),
        (lambda: optimizers.momentum(decay=-0.1), "momentum: decay must be in [0, 1), got -0.1"),
        (lambda: optimizers.adam(-1e-3), "adam: learning_rate must be a finite number >= 0, got -0.001"),
        (lambda: optimizers.adam(b1=1.0), "adam: b1 must be in [0, 1), got 1.0"),
        (lambda: optimizers.adam(b2=1.5), "adam: b2 must be in [0, 1), got 1.5"),
        (lambda: optimizers.adam(b2=float("nan")), "adam: b2 must be in [0, 1), got nan"),
        (lambda: optimizers.adam(epsilon=-1e-8), "adam: epsilon must be a finite number >= 0, got -1e-08"),
        (lambda: optimizers.get("adm"), "unknown optimizer 'adm'; did you mean 'adam'?"),
        (lambda: optimizers.get("gd(1, 2)"), "too many positional arguments"),
        (lambda: optimizers.get("gd(-1)"), "gd: learning_rate must be a finite number >= 0, got -1"),
    ],
)
def test_constants_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError) as refusal:
        build()
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_name_that_is_taken_is_refused():
    def gd():
        raise AssertionError

    with pytest.raises(ValueError, match="optimizer 'gd' is already registered"):
        first_order.register(gd)
