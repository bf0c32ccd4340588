"""Wrappers: each against its definition in NumPy or its equal among the optimizers; composed in either order."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn import optimizers
from functional_nn.optimizers import regularizers

STEPS = 50
PARAMS = {  # an array that weight decay and pruning act on, and one that they spare
    "layer1": {"weights": {"input": jnp.array([[0.5, -1.5], [-1.25, 0.75]])}},
    "layer2": {"bias": jnp.array([2.0])},
}
_draw = np.random.default_rng(1)
NOISE = jax.tree.map(lambda x: jnp.asarray(_draw.standard_normal((STEPS, *x.shape))), PARAMS)


def slope(params, noise):
    """Of a bowl about -1/2, under noise."""
    return jax.tree.map(lambda x, e: x + jnp.asarray(0.5, x.dtype) + e.astype(x.dtype), params, noise)


def zip_trees(trees):
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


@cache
def states(optimizer, steps=STEPS):
    """All states, the first first, in one program; gradients taken where the optimizer says."""

    def step(state, noise):
        return optimizer.update(state, slope(optimizer.point(state), noise)), state

    def run(params):
        last, before = jax.lax.scan(step, optimizer.init(params), jax.tree.map(lambda e: e[:steps], NOISE))
        return jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), before, last)

    return jax.device_get(jax.jit(run)(PARAMS))  # NumPy from here on: slicing compiles nothing


def assert_close(ours, theirs, rtol=1e-12):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-15), ours, theirs)


def far(ours, theirs):
    return max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def taken(wrap):
    """grads -> what the wrapper hands on: -x after one step of gradient descent at rate 1 from 0."""
    optimizer = wrap(optimizers.gd(1.0))

    @jax.jit
    def handed_on(grads):
        after = optimizer.update(optimizer.init(jax.tree.map(jnp.zeros_like, grads)), grads).params
        return jax.tree.map(jnp.negative, after)

    return handed_on


# Clipping -------------------------------------------------------------------------------------------------------------


def test_the_global_norm_is_clipped_and_the_direction_kept():
    """min(1, c / ||g||) of the norm over all parameters; every bit where it is within bounds, and no 0 / 0."""
    clipped = taken(lambda gd: optimizers.clip_by_global_norm(gd, 2.0))

    def norm(tree):
        return np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(tree)))

    for size in (1e-100, 1e-3, 1.9, 2.0, 2.1, 10.0, 1e100):
        grads = jax.tree.map(lambda g, size=size: g * (size / norm(PARAMS)), PARAMS)
        out = clipped(grads)
        np.testing.assert_allclose(norm(out), min(size, 2.0), rtol=1e-14)
        assert_close(jax.tree.map(lambda g, size=size: g * (size / min(size, 2.0)), out), grads)
        assert size >= 2.0 or bits(out) == bits(grads)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    chex.assert_trees_all_equal(clipped(zeros), zeros)
    exact = zeros | {"layer2": zeros["layer2"] | {"bias": jnp.array([-2.0])}}
    chex.assert_trees_all_equal(clipped(exact), exact)


@pytest.mark.oracle
def test_clipping_is_optaxs():
    import optax

    grads = jax.tree.map(lambda g: 3 * g, PARAMS)
    for ours, theirs in (
        (partial(optimizers.clip_by_global_norm, largest=2.0), optax.clip_by_global_norm(2.0)),
        (partial(optimizers.clip_by_value, largest=2.0), optax.clip(2.0)),
    ):
        expected, _ = theirs.update(grads, theirs.init(PARAMS))
        assert_close(taken(ours)(grads), expected)
        assert far(grads, expected) > 0.1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_norm_of_sixteen_bit_gradients_does_not_overflow(dtype):
    grads = {"layer1": jnp.array([30000.0, -40000.0], dtype)}  # whose squares are beyond float16
    out = np.asarray(taken(lambda gd: optimizers.clip_by_global_norm(gd, 5.0))(grads)["layer1"]).astype(float)
    np.testing.assert_allclose(out, [3, -4], rtol=2e-2)


def test_values_are_clipped_one_by_one():
    grads = {"layer1": jnp.array([-3.0, -1.0, -0.5, -0.0, 0.25, 1.0, jnp.inf])}
    out = taken(lambda gd: optimizers.clip_by_value(gd, 1.0))(grads)
    np.testing.assert_array_equal(out["layer1"], [-1, -1, -0.5, 0, 0.25, 1, 1])


def test_bounds_can_be_swept():
    grads = jax.tree.map(lambda g: 3 * g, PARAMS)
    for wrap in (optimizers.clip_by_global_norm, optimizers.clip_by_value):
        swept = jax.vmap(lambda c, wrap=wrap: taken(lambda gd: wrap(gd, c))(grads))(jnp.array([0.5, 1.5]))
        for i, bound in enumerate((0.5, 1.5)):
            one = taken(lambda gd, wrap=wrap, bound=bound: wrap(gd, bound))(grads)
            assert_close(jax.tree.map(lambda x, i=i: x[i], swept), one)


# Weight decay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [False, True], ids=["weights", "biases too"])
def test_coupled_decay_is_the_penaltys_gradient(biases):
    """g + decay w is the gradient of (decay / 2) ||w||^2, and the L2 regularizer of strength decay / 2."""
    optimizer, adam = optimizers.coupled_weight_decay(optimizers.adam(0.1), 0.3, biases), optimizers.adam(0.1)
    l2 = regularizers.l2(0.15, biases)

    def half_square(params):
        decayed = jax.tree.leaves(params if biases else params["layer1"])
        return 0.3 / 2 * sum(jnp.sum(w**2) for w in decayed)

    def by_hand(gradient):
        return jax.tree.map(lambda *gs: sum(gs), slope(PARAMS, first), gradient)

    first = jax.tree.map(lambda e: e[0], NOISE)
    decayed = optimizer.update(optimizer.init(PARAMS), slope(PARAMS, first))
    for gradient in (jax.grad(half_square)(PARAMS), l2.gradient(PARAMS)):
        assert_close(decayed, adam.update(adam.init(PARAMS), by_hand(gradient)))
    plain = adam.update(adam.init(PARAMS), slope(PARAMS, first))
    assert far(decayed.first_moment["layer1"], plain.first_moment["layer1"]) > 1e-3
    assert (far(decayed.first_moment["layer2"], plain.first_moment["layer2"]) > 1e-3) == biases


def test_coupled_decay_acts_where_the_gradient_is_taken():
    """At the look-ahead point: as if the penalty were in the loss."""
    decayed = optimizers.coupled_weight_decay(optimizers.nesterov(0.1, form="look_ahead"), 0.3, biases=True)
    plain = optimizers.nesterov(0.1, form="look_ahead")

    def step(state, noise):
        point = plain.point(state)
        return plain.update(state, jax.tree.map(lambda g, x: g + 0.3 * x, slope(point, noise), point)), None

    expected = jax.jit(lambda: jax.lax.scan(step, plain.init(PARAMS), NOISE)[0])()
    assert_close(jax.tree.map(lambda x: x[-1], states(decayed)), expected)


def test_decoupled_decay_of_adam_is_adamw():
    """decay = rate * lambda, biases too; by default they are spared."""
    decoupled = states(optimizers.decoupled_weight_decay(optimizers.adam(0.1), 0.1 * 0.3, biases=True))
    assert_close(decoupled.params, states(optimizers.adamw(0.1, weight_decay=0.3)).params)
    spared = states(optimizers.decoupled_weight_decay(optimizers.adam(0.1), 0.03))
    adam = states(optimizers.adam(0.1))
    assert far(decoupled.params, adam.params) > 0.01
    assert_close(spared.params["layer1"], decoupled.params["layer1"])
    assert_close(spared.params["layer2"], adam.params["layer2"])


def test_decay_alone_is_geometric():
    """With a gradient of zero, w_k = (1 - decay)^k w_0; a schedule of the decay counts the updates from 0."""
    for decay, left in ((0.1, 0.9**4), ("step(0.5, 2, 0.5)", 0.5**2 * 0.75**2)):
        optimizer = optimizers.decoupled_weight_decay(optimizers.gd(), decay)
        state = optimizer.init(PARAMS)
        for _ in range(4):
            state = optimizer.update(state, jax.tree.map(jnp.zeros_like, PARAMS))
        assert_close(state.params["layer1"], jax.tree.map(lambda w, left=left: w * left, PARAMS["layer1"]))
        assert bits(state.params["layer2"]) == bits(PARAMS["layer2"])


# Accumulation ---------------------------------------------------------------------------------------------------------


def test_micro_batches_are_one_update_with_their_mean():
    """Between updates nothing moves; steps count updates. Adam, in one program each."""
    state = states(optimizers.accumulate(optimizers.adam(0.1), 5), steps=20)
    np.testing.assert_array_equal(state.step, np.arange(21) // 5)
    np.testing.assert_array_equal(state.count, np.arange(21) % 5)
    for leaf in jax.tree.leaves(state.params):
        np.testing.assert_array_equal(
            leaf[:20].reshape(4, 5, *leaf.shape[1:])[:, 1:], leaf[:20:5][:, None].repeat(4, 1)
        )

    adam = optimizers.adam(0.1)
    mean = jax.tree.map(lambda e: e[:20].reshape(4, 5, *e.shape[1:]).mean(axis=1), NOISE)

    def step(own, noise):
        return (adam.update(own, slope(own.params, noise)),) * 2

    expected = jax.jit(lambda: jax.lax.scan(step, adam.init(PARAMS), mean)[1])()
    assert_close(jax.tree.map(lambda x: x[5::5], state.inner), expected)


def test_a_sum_at_a_rate_of_one_nth_is_a_mean():
    """Kordecki: the two are one training at rates that differ by their number, for gradient descent."""
    sums = states(optimizers.accumulate(optimizers.gd(0.1 / 4), 4, "sum"), steps=20).params
    assert_close(sums, states(optimizers.accumulate(optimizers.gd(0.1), 4), steps=20).params)
    assert far(sums, states(optimizers.accumulate(optimizers.gd(0.1), 4, "sum"), steps=20).params) > 0.1


def test_one_gradient_for_one_update_is_the_optimizer_itself():
    assert_close(states(optimizers.accumulate(optimizers.adam(0.1), 1)).inner, states(optimizers.adam(0.1)))


# Freezing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inside",
    [
        lambda: optimizers.adamw(0.1, weight_decay=0.3),
        lambda: optimizers.decoupled_weight_decay(optimizers.adam(0.1), 0.1, biases=True),
        lambda: optimizers.coupled_weight_decay(optimizers.momentum(0.1), 0.1, biases=True),
        lambda: optimizers.accumulate(optimizers.adamw(0.1, weight_decay=0.3), 3),
    ],
    ids=["adamw", "decoupled", "coupled", "accumulated"],
)
def test_frozen_layers_keep_every_bit(inside):
    """Even under weight decay inside; the others move as if nothing were frozen."""
    frozen, free = states(optimizers.freeze(inside(), ["layer1"])).params, states(inside()).params
    for leaf, was in zip(jax.tree.leaves(frozen["layer1"]), jax.tree.leaves(PARAMS["layer1"]), strict=True):
        assert all(row.tobytes() == np.asarray(was).tobytes() for row in np.asarray(leaf))
    assert_close(frozen["layer2"], free["layer2"])
    assert far(free["layer1"], jax.tree.map(lambda x: x[None], PARAMS["layer1"])) > 0.1


def test_one_layer_may_be_named_alone():
    optimizer = optimizers.freeze(optimizers.gd(), "layer2")
    after = optimizer.update(optimizer.init(PARAMS), PARAMS).params
    assert bits(after["layer2"]) == bits(PARAMS["layer2"]) and bits(after["layer1"]) != bits(PARAMS["layer1"])


# Averages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 7])
def test_polyaks_average_is_the_mean_of_the_iterates(start):
    """After each update, from the one after `start`; the iterates themselves go on as without it."""
    ours, plain = states(optimizers.average(optimizers.adam(0.1), start=start)), states(optimizers.adam(0.1))
    assert_close(ours.inner, plain, rtol=1e-15)
    for k in range(STEPS + 1):
        expected = jax.tree.map(lambda x, k=k: x[min(k, start + 1) : k + 1].mean(axis=0), plain.params)
        assert_close(jax.tree.map(lambda x, k=k: x[k], ours.params), expected)


def test_the_exponential_average_is_its_recursion():
    ours, plain = states(optimizers.average(optimizers.adam(0.1), 0.8, start=2)), states(optimizers.adam(0.1)).params
    mean = jax.tree.map(lambda x: x[3], plain)
    for k in range(STEPS + 1):
        now = jax.tree.map(lambda x, k=k: np.asarray(x[k]), plain)
        mean = jax.tree.map(lambda a, x: 0.8 * a + 0.2 * x, mean, now) if k > 3 else now
        assert_close(jax.tree.map(lambda x, k=k: x[k], ours.params), mean)
    assert far(jax.tree.map(lambda x: x[-1], plain), mean) > 0.01


def test_gradients_are_taken_at_the_iterate_not_at_the_average():
    optimizer = optimizers.average(optimizers.gd(0.5))
    state = optimizer.init(PARAMS)
    for _ in range(3):
        state = optimizer.update(state, PARAMS)
    chex.assert_trees_all_equal(optimizer.point(state), state.inner.params)
    assert far(state.params, state.inner.params) > 0.1
    look_ahead = optimizers.average(optimizers.nesterov(0.5, form="look_ahead"))
    state = look_ahead.update(look_ahead.init(PARAMS), PARAMS)
    assert far(look_ahead.point(state), state.inner.params) > 0.1


def test_averages_of_sixteen_bit_parameters_are_reported_in_sixteen_bits():
    params = {"layer1": jnp.array([1.0, 2.0], jnp.bfloat16)}
    optimizer = optimizers.average(optimizers.gd(1.0))
    state = optimizer.update(optimizer.init(params), {"layer1": jnp.array([0.25, 0.5], jnp.bfloat16)})
    assert state.average["layer1"].dtype == jnp.float32 and state.params["layer1"].dtype == jnp.bfloat16


# Composition ----------------------------------------------------------------------------------------------------------


def test_decay_outside_an_average_is_decay_inside_it():
    """What shrinks are the iterates, never their average."""
    decay = partial(optimizers.decoupled_weight_decay, decay=0.1)
    plain = states(decay(optimizers.adam(0.1))).params
    inside = states(optimizers.average(decay(optimizers.adam(0.1))))
    outside = states(decay(optimizers.average(optimizers.adam(0.1))))
    assert_close(inside.inner.params, plain)
    assert_close(outside.inner.params, plain)


def test_freezing_outside_an_average_is_freezing_inside_it():
    freeze = partial(optimizers.freeze, layers=["layer1"])
    plain = states(freeze(optimizers.adamw(0.1, weight_decay=0.3))).params
    inside = states(optimizers.average(freeze(optimizers.adamw(0.1, weight_decay=0.3))))
    outside = states(freeze(optimizers.average(optimizers.adamw(0.1, weight_decay=0.3))))
    assert_close(inside.inner.params, plain)
    assert_close(outside.inner.inner.params, {name: own for name, own in plain.items() if name != "layer1"})
    assert_close(outside.params, inside.params)


def test_the_average_around_accumulation_is_of_parameters_after_updates():
    """Each counted once, however many gradients it took."""
    around = states(optimizers.average(optimizers.accumulate(optimizers.gd(0.1), 4)), steps=20).params
    inside = states(optimizers.accumulate(optimizers.average(optimizers.gd(0.1)), 4), steps=20)
    assert_close(jax.tree.map(lambda x: x[4::4], around), jax.tree.map(lambda x: x[4::4], inside.params))


MASKS = regularizers.magnitude_masks(PARAMS, 0.4)
COMPOSED = {
    "clip, decay, accumulate, average": lambda rate: optimizers.average(
        optimizers.accumulate(
            optimizers.decoupled_weight_decay(optimizers.clip_by_global_norm(optimizers.adam(rate), 1.0), 0.01), 2
        )
    ),
    "average, accumulate, decay, clip": lambda rate: optimizers.clip_by_global_norm(
        optimizers.decoupled_weight_decay(optimizers.accumulate(optimizers.average(optimizers.adam(rate)), 2), 0.01),
        1.0,
    ),
    "freeze, prune, plateau": lambda rate: optimizers.reduce_on_plateau(
        lambda now: optimizers.keep_pruned(optimizers.freeze(optimizers.nesterov(now), ["layer2"]), MASKS), rate
    ),
    "plateau, prune, freeze": lambda rate: optimizers.freeze(
        optimizers.keep_pruned(
            optimizers.reduce_on_plateau(partial(optimizers.nesterov, form="look_ahead"), rate), MASKS
        ),
        ["layer2"],
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n.startswith("freeze") else ()) for n in COMPOSED]
)
def test_wrappers_compose_in_either_order(name):
    """Under scan and vmap, with losses observed on the way; a sweep equals its single runs."""

    def run(rate):
        optimizer = COMPOSED[name](rate)

        def step(state, noise):
            state = optimizer.update(state, slope(optimizer.point(state), noise))
            state = optimizer.observe(state, jnp.asarray(1.0, jnp.float64))
            return state, optimizer.point(state)

        return jax.lax.scan(step, optimizer.init(PARAMS), NOISE)

    rates = jnp.array([0.01, 0.1])
    (last, points), one = jax.jit(jax.vmap(run))(rates), jax.jit(run)
    for i in (0, 1):
        assert_close(jax.tree.map(lambda x, i=i: x[i], (last, points)), one(rates[i]))
    assert last.step[0] == (25 if "accumulate" in name else 50)
    assert far(last.params, jax.tree.map(lambda x: x[None], PARAMS)) > 0.1
    if "prune" in name:
        plateau = last if hasattr(last, "learning_rate") else last.inner
        assert (plateau.learning_rate < rates).all()
        for x, keep in zip(jax.tree.leaves(points), jax.tree.leaves(MASKS), strict=True):
            assert not np.any(np.where(keep, 0, np.asarray(x)))


def test_names_and_constants_tell_what_is_wrapped():
    optimizer = optimizers.clip_by_value(optimizers.accumulate(optimizers.gd(0.5), 2), 1.0)
    assert optimizer.name == "clip_by_value(accumulate(gd))"
    assert optimizer.constants["learning_rate"] == 0.5
    assert optimizer.constants["accumulate"] == {"updates": 2, "reduction": "mean"}
    assert optimizer.constants["clip_by_value"] == {"largest": 1.0}


# Plateaus -------------------------------------------------------------------------------------------------------------


def reduce_lr_on_plateau(losses, rate, factor, patience, threshold, cooldown, min_lr):
    """torch.optim.lr_scheduler.ReduceLROnPlateau.step with mode="min", threshold_mode="rel", in plain Python."""
    best, num_bad_epochs, cooldown_counter, rates = float("inf"), 0, 0, []
    for loss in losses:
        if loss < best * (1 - threshold):
            best, num_bad_epochs = loss, 0
        else:
            num_bad_epochs += 1
        if cooldown_counter > 0:
            cooldown_counter -= 1
            num_bad_epochs = 0
        if num_bad_epochs > patience:
            rate = max(rate * factor, min_lr)
            cooldown_counter, num_bad_epochs = cooldown, 0
        rates.append(rate)
    return rates


LOSSES = np.concatenate([[5.0, 4.0, 3.99, 3.98, 3.0], np.full(12, 3.0), [2.0, 1.999, 2.5, np.nan], np.full(20, 2.2)])


@pytest.mark.parametrize(
    "constants",
    [
        {"factor": 0.5, "patience": 0, "tolerance": 0.01, "cooldown": 0, "smallest": 0.0},
        {"factor": 0.5, "patience": 2, "tolerance": 0.01, "cooldown": 0, "smallest": 0.02},
        {"factor": 0.3, "patience": 2, "tolerance": 1e-4, "cooldown": 3, "smallest": 0.0},
        {"factor": 0.3, "patience": 0, "tolerance": 0.3, "cooldown": 1, "smallest": 1e-3},
        {},
    ],
    ids=["impatient", "with a floor", "with a cooldown", "with both", "default"],
)
def test_rates_on_plateaus_are_pytorchs(constants):
    optimizer = optimizers.reduce_on_plateau(optimizers.gd, 0.1, **constants)

    def epoch(state, loss):
        state = optimizer.observe(state, loss)
        after = optimizer.update(state, jax.tree.map(jnp.ones_like, PARAMS))
        return after, (state.learning_rate, state.params["layer2"]["bias"] - after.params["layer2"]["bias"])

    rates, moves = jax.jit(lambda: jax.lax.scan(epoch, optimizer.init(PARAMS), jnp.asarray(LOSSES))[1])()
    default = {"factor": 0.1, "patience": 10, "tolerance": 1e-4, "cooldown": 0, "smallest": 0.0} | constants
    expected = reduce_lr_on_plateau(LOSSES, 0.1, *default.values())
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    np.testing.assert_allclose(moves[:, 0], expected, rtol=1e-9, atol=1e-15)  # the rate that the next update uses
    assert len(set(expected)) > 1


def test_a_negative_loss_counts_as_lower_when_it_is():
    optimizer = optimizers.reduce_on_plateau(optimizers.gd, 0.1, patience=0, tolerance=0.1)
    state = optimizer.init(PARAMS)
    for loss, best in ((-1.0, -1.0), (-1.05, -1.0), (-1.2, -1.2), (-1.2, -1.2)):
        state = optimizer.observe(state, loss)
        assert state.best == best
    np.testing.assert_allclose(state.learning_rate, 0.1 * 0.1**2, rtol=1e-14)


def test_losses_reach_the_plateau_through_other_wrappers():
    plateau = optimizers.reduce_on_plateau(optimizers.gd, 0.1, patience=0)
    for wrap in (
        partial(optimizers.clip_by_value, largest=1.0),
        partial(optimizers.accumulate, updates=2),
        optimizers.average,
        partial(optimizers.freeze, layers=["layer1"]),
        partial(optimizers.decoupled_weight_decay, decay=0.1),
        lambda inner: optimizers.reduce_on_plateau(lambda rate: inner, 0.1, patience=5),
    ):
        optimizer = wrap(plateau)
        state = optimizer.init(PARAMS)
        for _ in range(2):
            state = optimizer.observe(state, 1.0)
        while not hasattr(state, "cooling") or hasattr(state.inner, "cooling"):
            state = state.inner
        np.testing.assert_allclose(state.learning_rate, 0.01, rtol=1e-14)


def test_rates_below_the_floor_are_left_alone():
    """PyTorch reduces nothing where that would raise the rate."""
    optimizer = optimizers.reduce_on_plateau(optimizers.gd, 0.1, patience=0, smallest=0.5)
    state = optimizer.init(PARAMS)
    for _ in range(3):
        state = optimizer.observe(state, 1.0)
    assert state.learning_rate == 0.1


# Pruned weights, and optax's ------------------------------------------------------------------------------------------

EVERY = {name: getattr(optimizers, name) for name in optimizers.names()} | {
    "nesterov, look-ahead": partial(optimizers.nesterov, form="look_ahead"),
    "rprop without backtracking": partial(optimizers.rprop, backtracking=False),
    "rmsprop, centered": partial(optimizers.rmsprop, centered=True),
    "adam, efficient": partial(optimizers.adam, order="efficient"),
    "decoupled decay": lambda: optimizers.decoupled_weight_decay(optimizers.momentum(), 0.1),
    "coupled decay": lambda: optimizers.coupled_weight_decay(optimizers.momentum(), 0.1),
    "accumulated average": lambda: optimizers.accumulate(optimizers.average(optimizers.adam()), 2),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if "a" not in n[:2] or " " in n else pytest.mark.slow) for n in EVERY]
)
def test_pruned_weights_stay_exactly_zero(name):
    """For 50 updates with gradients that are not zero; the others move."""
    weights = {"weights": PARAMS["layer1"]["weights"]["input"]}
    optimizer = optimizers.keep_pruned(EVERY[name](), {"weights": np.array([[True, False], [False, True]])})

    def step(state, noise):
        state = optimizer.update(state, {"weights": optimizer.point(state)["weights"] + 0.5 + noise})
        return state, jnp.stack([state.params["weights"], optimizer.point(state)["weights"]])

    run = jax.jit(lambda w: jax.lax.scan(step, optimizer.init(w), NOISE["layer1"]["weights"]["input"])[1])
    path = np.asarray(run(weights))
    assert not path[:, :, [0, 1], [1, 0]].any()
    kept, was = path[-1][:, [0, 1], [0, 1]], np.asarray(weights["weights"])[[0, 1], [0, 1]]
    assert (kept != was).all() and kept.all()


def test_an_average_around_pruning_begins_pruned():
    masks = regularizers.magnitude_masks(PARAMS, 0.5)
    state = optimizers.average(optimizers.keep_pruned(optimizers.adam(), masks)).init(PARAMS)
    chex.assert_trees_all_equal(state.params, regularizers.prune(PARAMS, masks))


@pytest.mark.oracle
# One of several -------------------------------------------------------------------------------------------------------


def test_every_choice_of_a_race_is_its_method():
    """All elementwise methods in one program by a traced index, each against itself alone; starts differ, too."""
    names = [name for name in optimizers.names() if name not in ("rprop", "full_matrix_adagrad")]
    candidates = [optimizers.get(name) for name in names] + [optimizers.rprop(minibatches=True)]
    candidates += [optimizers.nesterov(form="look_ahead"), optimizers.adagrad(initial=0.5)]
    steps = 5

    def run(index):
        optimizer = optimizers.choose(index, candidates)

        def step(state, noise):
            return optimizer.update(state, slope(optimizer.point(state), noise)), state.params

        noise = jax.tree.map(lambda e: e[:steps], NOISE)
        return jax.lax.scan(step, optimizer.init(PARAMS), noise)[0]

    together = jax.device_get(jax.jit(jax.vmap(run))(jnp.arange(len(candidates))))
    for number, candidate in enumerate(candidates):
        alone = states(candidate, steps)
        assert_close(
            jax.tree.map(lambda x, n=number: x[n], together.params), jax.tree.map(lambda x: x[-1], alone.params)
        )
    assert (together.step == steps).all() and not optimizers.choose(0, candidates).full_batch
    assert optimizers.choose(0, ["adam", "rprop"]).full_batch


def test_what_cannot_be_chosen_is_refused():
    averaged = optimizers.average(optimizers.gd())
    with pytest.raises(TypeError, match="choose: expected elementwise methods such as adam, got AverageState"):
        optimizers.choose(0, ["adam", averaged]).init(PARAMS)
    for params in (PARAMS, jnp.ones(3)):  # of one array, a matrix is one array, too
        with pytest.raises(TypeError, match="choose: expected elementwise methods such as adam, got FullMatrix"):
            optimizers.choose(0, ["adam", "full_matrix_adagrad"]).init(params)
    with pytest.raises(ValueError, match="choose: index must be 0 to 1, the number of a candidate, got 2"):
        optimizers.choose(2, ["adam", "gd"])


def test_a_chain_of_optax_is_an_optimizer():
    """The same trajectory as optax's own loop, and as ours made of the same parts."""
    import optax

    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))

    def step(carry, noise):
        params, state = carry
        updates, state = chain.update(slope(params, noise), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(lambda: jax.lax.scan(step, (PARAMS, chain.init(PARAMS)), NOISE)[1])()
        ours = states(optimizers.from_optax(chain, "clipped adam"))
    assert_close(jax.tree.map(lambda x: x[1:], ours.params), expected, rtol=1e-15)
    np.testing.assert_array_equal(ours.step, np.arange(STEPS + 1))
    by_parts = states(optimizers.clip_by_global_norm(optimizers.adam(0.1), 1.0))
    assert_close(by_parts.params, ours.params)
    assert optimizers.from_optax(chain, "clipped adam").name == "clipped adam"


# Refusals -------------------------------------------------------------------------------------------------------------

ADAM = optimizers.adam()


def refused(build, error):
    with pytest.raises(error) as refusal:
        build()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        *(
            (
                lambda wrap=wrap, value=value: wrap(ADAM, value),
                f"{wrap.__name__}: {name} must be {accepted}, got {value!r}",
            )
            for wrap, name, accepted, values in (
                (optimizers.clip_by_global_norm, "largest", "a finite number > 0", (0.0, -1.0, np.nan, np.inf, None)),
                (optimizers.clip_by_value, "largest", "a finite number > 0", (0.0, -1.0, np.nan, np.inf, None)),
                (optimizers.coupled_weight_decay, "decay", "a finite number >= 0", (-0.1, np.nan, np.inf, None)),
                (optimizers.decoupled_weight_decay, "decay", "in [0, 1)", (-0.1, 1.0, np.nan, None)),
                (optimizers.accumulate, "updates", "an integer >= 1", (0, -1, 2.0, True, None)),
                (optimizers.average, "decay", "in [0, 1)", (-0.1, 1.0, np.nan)),
            )
            for value in values
        ),
        (lambda: optimizers.accumulate(ADAM, 2, "max"), "accumulate: reduction must be 'mean' or 'sum', got 'max'"),
        (lambda: optimizers.average(ADAM, start=-1), "average: start must be an integer >= 0, got -1"),
        (
            lambda: optimizers.freeze(ADAM, ["layer3"]).init(PARAMS),
            "freeze: unknown layer 'layer3'; did you mean 'layer2'? (accepted: layer1, layer2)",
        ),
        *(
            (
                lambda name=name, value=value: optimizers.reduce_on_plateau(
                    optimizers.adam, **{"learning_rate": 0.1, name: value}
                ),
                f"reduce_on_plateau: {name} must be {accepted}, got {value!r}",
            )
            for name, accepted, values in (
                ("learning_rate", "a finite number >= 0", (-0.1, np.nan, None, "cosine(0.1, 10)")),
                ("factor", "in (0, 1)", (0.0, 1.0, np.nan)),
                ("patience", "an integer >= 0", (-1, 1.5)),
                ("cooldown", "an integer >= 0", (-1, 1.5)),
                ("tolerance", "in [0, 1)", (-0.1, 1.0, np.nan)),
                ("smallest", "a finite number >= 0", (-0.1, np.inf, "cosine(0.1, 10)")),
            )
            for value in values
        ),
    ],
)
def test_constants_out_of_range_are_refused(build, message):
    assert refused(build, ValueError).endswith(message)


def test_what_is_no_optimizer_is_refused():
    message = refused(lambda: optimizers.reduce_on_plateau(lambda rate: rate, 0.1), TypeError)
    assert message == "reduce_on_plateau: make must return an Optimizer for a learning rate, got float"
    for wrong, kind in ((3, "int"), (optimizers.adam, "function"), (object(), "object")):
        message = refused(lambda wrong=wrong: optimizers.from_optax(wrong), TypeError)
        assert message == f"from_optax: expected an object with init and update, got {kind}"


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.clip_by_value(ADAM, 1.0),
        optimizers.coupled_weight_decay(ADAM, 0.1),
        optimizers.decoupled_weight_decay(ADAM, 0.1),
        optimizers.accumulate(ADAM, 2),
        optimizers.freeze(ADAM, ["layer1"]),
        optimizers.average(ADAM),
        optimizers.reduce_on_plateau(optimizers.adam, 0.1),
        optimizers.keep_pruned(ADAM, MASKS),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_every_wrapper_refuses_gradients_that_do_not_match(optimizer):
    state = jax.eval_shape(optimizer.init, PARAMS)
    short = {"layer1": PARAMS["layer1"]}
    message = refused(lambda: jax.eval_shape(optimizer.update, state, short), ValueError)
    assert message == "grads: layer2/bias is missing"
    integers = jax.tree.map(lambda x: x.astype(jnp.int32), PARAMS)
    message = refused(lambda: jax.eval_shape(optimizer.update, state, integers), TypeError)
    assert message == "grads: layer1/weights/input expected an array of real numbers, got int32"
