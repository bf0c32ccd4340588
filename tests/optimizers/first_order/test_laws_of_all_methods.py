"""Laws of all first-order methods and wrappers: what every update leaves as it was."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, relative_error
from first_order_cases import METHODS, START

from functional_nn import optimizers

PARAMS = {  # one array that penalties act on, one that they spare; zeros of both signs
    "layer1": {"weights": {"input": jnp.array([[0.5, -0.0], [-1.25, 0.75]])}},
    "layer2": {"bias": jnp.array([-0.0, 0.25])},
}
MASKS = {
    "layer1": {"weights": {"input": np.array([[True, False], [True, True]])}},
    "layer2": {"bias": np.ones(2, bool)},
}


def run(optimizer, params, scale, steps):
    """The states before and after some updates."""
    before = optimizer.init(params)

    def step(state, _):
        return (optimizer.update(state, bowl(optimizer.point(state), scale)), None)

    return before, jax.lax.scan(step, before, length=steps)[0]


def bowl(params, scale):
    """The gradient of scale / 2 * sum (x + 1/2)^2, in the dtype of each parameter; zeros of both signs at scale 0."""
    return jax.tree.map(lambda x: (x + 0.5) * jnp.asarray(scale, x.dtype), params)


def sgd_of_optax(rate, _):
    import optax

    return optimizers.from_optax(optax.sgd(rate, momentum=0.9))


WRAPPED = {
    "clip_by_global_norm": lambda rate, _: optimizers.clip_by_global_norm(optimizers.adam(rate), 0.5),
    "clip_by_value": lambda rate, _: optimizers.clip_by_value(optimizers.adam(rate), 0.5),
    "coupled_weight_decay": lambda rate, decay: optimizers.coupled_weight_decay(optimizers.adam(rate), decay, True),
    "decoupled_weight_decay": lambda rate, decay: optimizers.decoupled_weight_decay(optimizers.adam(rate), decay, True),
    "accumulate": lambda rate, _: optimizers.accumulate(optimizers.adam(rate), 4),
    "freeze": lambda rate, _: optimizers.freeze(optimizers.adam(rate), ["layer2"]),
    "average": lambda rate, _: optimizers.average(optimizers.adam(rate)),
    "average, exponential": lambda rate, _: optimizers.average(optimizers.adam(rate), 0.9, start=3),
    "reduce_on_plateau": lambda rate, _: optimizers.reduce_on_plateau(optimizers.adam, rate),
    "keep_pruned": lambda rate, _: optimizers.keep_pruned(optimizers.adam(rate), MASKS),
    "from_optax": sgd_of_optax,
}
ALL = METHODS | WRAPPED
RATES = dict.fromkeys(ALL, 0.02) | {"adadelta": 10.0, "adagrad": 0.1}
over_all = pytest.mark.parametrize("name", ALL)


def fast_only_for(*fast):
    """A mark over all, those not named for the slow suite."""
    return pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in fast else pytest.mark.slow) for n in ALL])


def promotion(name):
    """optax multiplies by whatever a rate is; the package promotes nothing silently."""
    return jax.numpy_dtype_promotion("standard" if name == "from_optax" else "strict")


@cache
def hundred_updates(name):
    """(rate, decay, scale) -> the states before and after 100 updates in each dtype: one program for several laws."""

    def states(rate, decay, scale):
        def make(dtype):
            return run(ALL[name](rate, decay), jax.tree.map(lambda x: x.astype(dtype), PARAMS), scale, 100)

        return {np.dtype(dtype).name: make(dtype) for dtype in DTYPES}

    return jax.jit(states)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_kept(name, dtype, before, after):
    """Structure, shapes and dtypes; averages in float32 at least; numbers, and not those it began with."""
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)
    chex.assert_trees_all_equal_shapes(after.params, PARAMS)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after.params)} == {dtype}
    assert not any(np.isnan(np.asarray(leaf).astype(np.float64)).any() for leaf in jax.tree.leaves(after))
    chex.assert_tree_all_finite(jax.tree.map(lambda x: x.astype(jnp.float64), after.params))
    assert before.step == 0 and after.step == (25 if name == "accumulate" else 100)
    assert after.step.dtype == jnp.int32
    if name != "from_optax":
        narrow = sum(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(after))
        assert narrow == (len(jax.tree.leaves(PARAMS)) if dtype in ("bfloat16", "float16") else 0)


@pytest.mark.sampled(every=2)
@fast_only_for(
    *optimizers.names(), "decoupled_weight_decay", "accumulate", "freeze", "average", "reduce_on_plateau", "keep_pruned"
)
def test_100_updates_keep_structure_and_dtypes_and_descend(name):
    """In each dtype: the state's form; every bit where the gradient is zero, of either sign; and they descend."""
    updates, rate = hundred_updates(name), RATES[name]
    with promotion(name):
        moved, unmoved = updates(rate, 0.01, 1.0), updates(rate, 0.0, 0.0)

    def distance(x):
        return relative_error(x, jax.tree.map(lambda x: jnp.full_like(x, -0.5), x))

    for dtype, (before, after) in moved.items():
        assert_kept(name, dtype, before, after)
        assert distance(after.params) < 0.95 * distance(before.params)
    for before, after in unmoved.values():
        assert bits(after.params) == bits(before.params)


@fast_only_for("gd", "rprop", "amsgrad", "average", "reduce_on_plateau")
def test_a_sweep_of_64_rates_is_64_runs(name):
    rates = np.geomspace(1e-4, 0.1, 64)

    def trained_at(rate):
        return run(ALL[name](rate, 0.01), PARAMS, 1.0, 25)[1].params

    with promotion(name):
        swept, alone = jax.jit(jax.vmap(trained_at))(rates), jax.jit(trained_at)
        single = jax.tree.map(lambda *xs: np.stack(xs), *(jax.device_get(alone(rate)) for rate in rates))
    for ours, expected in zip(jax.tree.leaves(swept), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)
    assert len(np.unique(single["layer1"]["weights"]["input"][:, 0, 0])) == 64


@pytest.mark.parametrize(("name", "constant"), [("momentum", "decay"), ("adam", "b1"), ("adam", "b2"), ("nadam", "b1")])
def test_decays_can_be_swept_by_vmap(name, constant):
    """A decay of 0 among them, of which 1 - decay^k must not become 0 / 0; plain numbers next to arrays."""
    make = getattr(optimizers, name)

    def trained_with(decay):
        return run(make(**{constant: decay}), jnp.asarray(START), 1.0, 20)[1].params

    swept = jax.jit(jax.vmap(trained_with))(jnp.array([0.0, 0.5]))
    plain = jax.jit(lambda: [trained_with(0.0), trained_with(0.5)])()
    for i in (0, 1):
        np.testing.assert_allclose(swept[i], plain[i], rtol=1e-12)


@pytest.mark.sampled(every=2)
@over_all
def test_donated_states_are_updated_in_place(name):
    """The new state is in the memory of the old one, and nothing else of the parameters' size is allocated.

    Two wrappers make their own gradient, which needs memory; eigenvectors need it, too.
    """
    side = 16 if name == "full_matrix_adagrad" else 512
    params = {"layer1": jax.ShapeDtypeStruct((side, side), jnp.float32)}
    optimizer = {
        "keep_pruned": lambda *_: optimizers.keep_pruned(
            optimizers.adam(), {"layer1": np.arange(512 * 512).reshape(512, 512) % 3 > 0}
        ),
        "freeze": lambda *_: optimizers.freeze(optimizers.adam(), []),
    }.get(name, ALL[name])(0.02, 0.01)
    with promotion(name):
        state = jax.eval_shape(optimizer.init, params)
        usage = jax.jit(optimizer.update, donate_argnums=0).lower(state, params).compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert usage.alias_size_in_bytes >= size, f"{usage.alias_size_in_bytes} of {size} bytes are in place"
    own = 512 * 512 * 4 if name in ("clip_by_global_norm", "accumulate") else 0
    own += 4 * size if name == "full_matrix_adagrad" else 0
    assert usage.temp_size_in_bytes < own + 4096, f"{usage.temp_size_in_bytes} bytes in addition to a state of {size}"


@over_all
def test_a_fresh_state_can_be_donated(name):
    """No array stands in it twice."""
    with promotion(name):
        state = ALL[name](0.02, 0.01).init(PARAMS)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_sixteen_bit_gradients_serve_wider_parameters_and_the_other_way_round():
    for dtype, of_gradients in ((jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)):
        optimizer = optimizers.gd(0.5)
        state = optimizer.update(optimizer.init(jnp.ones(3, dtype)), jnp.ones(3, of_gradients))
        chex.assert_trees_all_equal(state.params, jnp.full(3, 0.5, dtype))


def test_numpy_numbers_are_numbers():
    """What np.linspace gives: a rate that is a NumPy scalar leaves dtypes as a Python float does."""
    params = jnp.ones(3, jnp.float32)
    for name in ("gd", "adam", "adadelta"):
        make = getattr(optimizers, name)
        optimizer, expected = make(np.float64(0.25)), make(0.25)
        state = optimizer.update(optimizer.init(params), params)
        chex.assert_trees_all_equal(state, expected.update(expected.init(params), params))
