"""Constants by layer and parameter: each array moves as with its own, whatever the others have."""

import copy
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.rows import FrozenMapping
from functional_nn.training import checkpoints, configuration

DRAW = np.random.default_rng(0)
STEPS = 6


def tree(draw):
    """Two layers, all arrays of one shape: what is not jitted compiles each operation once."""
    return {
        name: {"weights": {source: draw()}, "bias": draw()}
        for name, source in (("layer1", "input"), ("layer2", "layer1"))
    }


PARAMS = tree(lambda: DRAW.standard_normal(2))
GRADS = [tree(lambda: DRAW.standard_normal(2)) for _ in range(STEPS)]
ELEMENTWISE = [name for name in optimizers.names() if name != "full_matrix_adagrad"]


def trained(optimizer, params=PARAMS, grads=GRADS):
    state = optimizer.init(params)
    for each in grads:
        state = optimizer.update(state, each)
    return state.params


# Each with its own ----------------------------------------------------------------------------------------------------

# two values of every constant of every method; one that is not here has no test
TWO = {
    "learning_rate": (0.1, 0.02),
    "decay": (0.9, 0.5),
    "b1": (0.9, 0.5),
    "b2": (0.999, 0.9),
    "epsilon": (1e-8, 1e-2),
    "weight_decay": (0.01, 0.3),
    "initial": (0.0, 0.5),
    "initial_step": (0.1, 0.02),
    "decrease": (0.5, 0.3),
    "increase": (1.2, 1.5),
    "smallest": (1e-6, 1e-3),
    "largest": (0.11, 0.15),
}
WORDS = {"form", "order", "backtracking", "minibatches", "centered", "bias_correction"}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_layer_moves_as_where_all_have_its_constants(name):
    """Bitwise; of each constant alone, of all together, and from another constant of the other layer otherwise."""
    make = getattr(optimizers, name)
    numbers = inspect.signature(make).parameters.keys() - WORDS
    for chosen in (*({each} for each in sorted(numbers)), numbers):
        first, second = ({each: TWO[each][i] for each in chosen} for i in (0, 1))
        both = {each: {"layer2": TWO[each][1], "others": TWO[each][0]} for each in chosen}
        found, one, other = trained(make(**both)), trained(make(**first)), trained(make(**second))
        np.testing.assert_array_equal(jax.tree.leaves(found["layer1"]), jax.tree.leaves(one["layer1"]))
        np.testing.assert_array_equal(jax.tree.leaves(found["layer2"]), jax.tree.leaves(other["layer2"]))
        if chosen - {"smallest", "largest", "b1"}:  # which may not act on every path
            assert not np.array_equal(jax.tree.leaves(one["layer2"]), jax.tree.leaves(other["layer2"])), chosen


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_of_equal_values_it_is_the_program_of_one(name):
    make, numbers = getattr(optimizers, name), inspect.signature(getattr(optimizers, name)).parameters.keys() - WORDS

    def program(wrap):
        optimizer = make(**{each: wrap(*TWO[each]) for each in numbers})
        init = jax.make_jaxpr(optimizer.init)(PARAMS)
        state = optimizer.init(PARAMS)
        return f"{init}\n{jax.make_jaxpr(optimizer.update)(state, GRADS[0])}\n{jax.make_jaxpr(optimizer.point)(state)}"

    plain = program(lambda one, other: one)
    assert program(lambda one, other: {"layer1": {"bias": one, "others": one}, "others": one}) == plain
    assert program(lambda one, other: {"others": one}) == plain
    assert program(lambda one, other: {"layer1": other, "others": one}) != plain


def adam_by_hand(rates, b1s):
    """x after each step of an array whose rate and b1 these functions of k = 0, 1, ... say."""

    def rule(x, grads):
        m = v = np.zeros(2)
        for k, g in enumerate(grads):
            b1 = b1s(k)
            m, v = b1 * m + (1 - b1) * g, 0.999 * v + 0.001 * g**2
            x = x - rates(k) * m / (1 - b1 ** (k + 1)) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        return x

    return rule


def test_names_as_deep_as_wanted_schedules_among_them():
    """Adam in NumPy, the constants of each array looked up by hand."""

    def cosine(k):
        return 0.05 * (1 + np.cos(np.pi * min(k / 4, 1)))

    expected = {
        "layer1": {"weights": {"input": (lambda k: 0.1, 0.9)}, "bias": (cosine, 0.9)},
        "layer2": {"weights": {"layer1": (lambda k: 0.03 / (1 + k), 0.5)}, "bias": (lambda k: 0.2, 0.8)},
    }
    optimizer = optimizers.adam(
        {
            "layer1": {"weights": 0.1, "bias": "cosine(0.1, 4)"},
            "others": {"bias": np.float64(0.2), "others": {"layer1": lambda k: 0.03 / (1 + k.astype(jnp.float64))}},
        },
        b1={"layer2": {"weights": {"layer1": 0.5}, "others": 0.8}, "others": 0.9},
    )
    found = jax.jit(lambda: trained(optimizer))()
    for path, (rate, b1) in (
        (("layer1", "weights", "input"), expected["layer1"]["weights"]["input"]),
        (("layer1", "bias"), expected["layer1"]["bias"]),
        (("layer2", "weights", "layer1"), expected["layer2"]["weights"]["layer1"]),
        (("layer2", "bias"), expected["layer2"]["bias"]),
    ):

        def at(tree, path=path):
            return tree if not path else at(tree[path[0]], path[1:])

        by_hand = adam_by_hand(rate, lambda k, b1=b1: b1)(at(PARAMS), [at(grads) for grads in GRADS])
        np.testing.assert_allclose(at(found), by_hand, rtol=1e-12, err_msg="/".join(path))


def test_it_looks_ahead_with_the_decay_of_each_layer():
    """Of sum x^2 / 2: v = alpha v - eta (w + alpha v), w = w + v; with rates that vmap sweeps."""
    decays, etas = {"layer1": 0.9, "layer2": 0.5}, np.array([0.1, 0.3])

    def run(eta):
        optimizer = optimizers.nesterov({"layer1": eta, "others": 0.2}, decays, form="look_ahead")
        state = optimizer.init(PARAMS)
        for _ in range(STEPS):
            state = optimizer.update(state, optimizer.point(state))
        return state.params, optimizer.point(state)

    found, ahead = jax.jit(jax.vmap(run))(etas)
    for i, eta in enumerate(etas):
        for name, rate in (("layer1", eta), ("layer2", 0.2)):
            w, v = PARAMS[name]["bias"], np.zeros(2)
            for _ in range(STEPS):
                v = decays[name] * v - rate * (w + decays[name] * v)
                w = w + v
            np.testing.assert_allclose(found[name]["bias"][i], w, rtol=1e-12)
            np.testing.assert_allclose(ahead[name]["bias"][i], w + decays[name] * v, rtol=1e-12)


def test_parameters_need_not_be_layers():
    """Places of a list are names, too."""
    ones = jnp.ones(2)
    found = optimizers.gd({"1": 0.5, "others": 0.25})
    state = found.update(found.init([ones, ones]), [ones, ones])
    np.testing.assert_array_equal(state.params, [[0.75] * 2, [0.5] * 2])
    wide = optimizers.gd({"a": 0.5, "b": jnp.asarray(0.25)})  # one that cannot be remembered by
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
    after = wide.update(wide.init(params), params).params
    assert [after[each].dtype.name for each in "ab"] == ["bfloat16", "float32"]
    assert after["a"][0] == 0.5 and after["b"][0] == 0.75


# Names, copies, descriptions ------------------------------------------------------------------------------------------

DEEP = {"layer1": {"weights": 1e-3, "bias": 1e-2}, "others": 1e-4}


def test_equal_mappings_are_one_optimizer():
    made = optimizers.adam(DEEP)
    turned = {"others": 1e-4, "layer1": {"bias": 1e-2, "weights": 1e-3}}
    for same in (turned, FrozenMapping(turned), made.constants["learning_rate"]):
        assert optimizers.adam(same) is made
    assert optimizers.adam(turned | {"others": 2e-4}) is not made
    assert optimizers.clip_by_value(optimizers.adam(turned), 1.0) is optimizers.clip_by_value(made, 1.0)
    assert optimizers.gd({"layer1": 1}) is not optimizers.gd({"layer1": 1.0})  # as of gd(1) and gd(1.0)
    with pytest.raises(ValueError, match="learning_rate of layer1 must be a finite number >= 0, got True"):
        optimizers.gd({"layer1": True})
    for way in (copy.copy, copy.deepcopy, lambda row: pickle.loads(pickle.dumps(row))):
        assert way(made) is made and way(FrozenMapping(DEEP)) == FrozenMapping(DEEP)
    given = {"layer1": 0.1}
    kept = optimizers.gd(given)
    given["layer1"] = 0.2  # is the user's to change
    assert kept.constants["learning_rate"]["layer1"] == 0.1 and optimizers.gd(given) is not kept


def test_they_are_written_as_they_are_read():
    for text, made in {
        "gd({layer1: 0.1, others: 0.01})": optimizers.gd({"layer1": 0.1, "others": 0.01}),
        "gd(learning_rate={ \"others\":0.01,'layer1' : 0.1 })": optimizers.gd({"layer1": 0.1, "others": 0.01}),
        "adam({layer1: {weights: 1e-3, bias: 1e-2}, others: 1e-4})": optimizers.adam(DEEP),
        "momentum({layer1: cosine(0.1, steps=10), others: 0.2}, {others: 0.5})": optimizers.momentum(
            {"layer1": "cosine(0.1, steps=10)", "others": 0.2}, {"others": 0.5}
        ),
    }.items():
        assert optimizers.get(text) is made
        again = ", ".join(f"{name}={value}" for name, value in made.constants.items())
        assert repr(optimizers.get(f"{made.name}({again})")) == repr(made)
    assert repr(optimizers.adam(DEEP)).startswith(
        "<optimizer adam(learning_rate={layer1: {bias: 0.01, weights: 0.001}, others: 0.0001}, b1="
    )


def test_runs_are_told_apart_by_them():
    """In what a checkpoint keeps: the same however it was given, and of functions by their code."""
    first = configuration.made_of(it=optimizers.adam(DEEP))
    turned = {"others": 1e-4, "layer1": {"bias": 1e-2, "weights": 1e-3}}
    assert first["unread"] == [] and configuration.made_of(it=optimizers.adam(turned)) == first
    scheduled = [optimizers.gd({"layer1": lambda k, p=p: 0.1 / (1 + k) ** p, "others": 0.1}) for p in (1, 2)]
    others = [optimizers.adam(DEEP | {"others": 2e-4}), optimizers.adam(1e-4), *scheduled]
    found = [configuration.made_of(it=each) for each in others]
    assert len({each["it"] for each in (first, *found)}) == 5 and all(each["unread"] == [] for each in found)


# Training -------------------------------------------------------------------------------------------------------------

NETWORK = fnn.multilayer((2, 1), ("linear",))
X = DRAW.standard_normal((8, 2))
T = DRAW.standard_normal((8, 1))


def test_a_population_has_rates_that_are_traced():
    """Gradient descent of a linear neuron in NumPy, weights and bias at rates of their own."""
    rates = np.array([0.05, 0.2])
    population = training.fit_population(
        NETWORK,
        "mean_square_error",
        lambda rate: optimizers.gd({"layer1": {"weights": rate, "others": 0.01}}),
        {"rate": rates},
        (X, T),
        key=jax.random.key(0),
        epochs=STEPS,
        plan=training.batch(),
    )
    start = NETWORK.init(training.keys.parameters(jax.random.key(0)))["layer1"]
    for member, rate in enumerate(rates):
        W, b = (np.asarray(each) for each in (start["weights"]["input"], start["bias"]))
        for _ in range(STEPS):
            s = 2 * (X @ W.T + b - T) / len(X)
            W, b = W - rate * s.T @ X, b - 0.01 * s.sum(0)
        found = population.params(member)["layer1"]
        np.testing.assert_allclose(found["weights"]["input"], W, rtol=1e-12)
        np.testing.assert_allclose(found["bias"], b, rtol=1e-12)


def test_a_run_goes_on_with_the_same_mapping_only(tmp_path):
    def train(optimizer, **settings):
        return fnn.fit(
            NETWORK,
            "mean_square_error",
            optimizer,
            X,
            T,
            key=jax.random.key(0),
            plan=training.batch(),
            chunk=1,
            checkpoint=checkpoints.keep(tmp_path),
            **settings,
        )

    train("gd({layer1: {bias: 0.01, weights: 0.1}})", epochs=1)
    same = {"layer1": {"weights": 0.1, "bias": 0.01}}
    for other, message in (
        ({"layer1": {"weights": 0.1, "bias": 0.02}}, r"made with optimizer/learning_rate = '\{layer1: \{bias: 0.01, "),
        (0.1, "made with optimizer/learning_rate"),
    ):
        with pytest.raises(training.CheckpointError, match=message):
            train(optimizers.gd(other), epochs=2, resume=True)
    found = train(optimizers.gd(same), epochs=2, resume=True)
    assert len(found.history.epoch) == 2
    with pytest.raises(ValueError, match="gd: learning_rate: unknown layer 'layr1'; did you mean 'layer1'?"):
        fnn.fit(NETWORK, "mean_square_error", "gd({layr1: 0.1})", X, T, key=jax.random.key(0), epochs=1)


def test_what_is_frozen_has_no_constant():
    optimizer = optimizers.freeze(optimizers.gd({"layer2": {"bias": 0.5, "others": 0.25}}), ["layer1"])
    found = trained(optimizer, grads=GRADS[:1])
    np.testing.assert_array_equal(jax.tree.leaves(found["layer1"]), jax.tree.leaves(PARAMS["layer1"]))
    np.testing.assert_array_equal(found["layer2"]["bias"], PARAMS["layer2"]["bias"] - 0.5 * GRADS[0]["layer2"]["bias"])


def test_a_plateau_reduces_a_rate_that_is_shared_out():
    optimizer = optimizers.reduce_on_plateau(
        lambda rate: optimizers.gd({"layer1": rate, "others": 0.5 * rate}), 0.5, factor=0.5, patience=0
    )
    state = optimizer.init(PARAMS)
    for loss in (1.0, 1.0):
        state = optimizer.observe(state, loss)
    found = optimizer.update(state, GRADS[0]).params
    for name, rate in (("layer1", 0.25), ("layer2", 0.125)):
        np.testing.assert_array_equal(found[name]["bias"], PARAMS[name]["bias"] - rate * GRADS[0][name]["bias"])


# Refusals -------------------------------------------------------------------------------------------------------------


def meets(optimizer, params=PARAMS):
    """Also where only shapes are known."""
    jax.eval_shape(optimizer.init, params)


BY_NAME = 'gd: learning_rate must be one value, or values by name such as {"layer1": ..., "others": ...}, got '
REFUSED = {
    "an unknown layer": (
        lambda: meets(optimizers.gd({"layr1": 0.1, "others": 0.1})),
        "gd: learning_rate: unknown layer 'layr1'; did you mean 'layer1'? (accepted: layer1, layer2, others)",
    ),
    "an unknown parameter": (
        lambda: meets(optimizers.adam(b1={"layer1": {"wieghts": 0.1, "others": 0.1}, "others": 0.1})),
        "adam: b1: unknown parameter of layer1 'wieghts'; did you mean 'weights'? (accepted: bias, others, weights)",
    ),
    "an unknown source": (
        lambda: meets(optimizers.gd({"layer2": {"weights": {"inptu": 0.1, "others": 1.0}, "bias": 1.0}, "others": 1})),
        "gd: learning_rate: unknown parameter of layer2/weights 'inptu' (accepted: layer1, others)",
    ),
    "unknown to all others": (
        lambda: meets(optimizers.gd({"layer1": 1.0, "others": {"bais": 0.1, "others": 1.0}})),
        "gd: learning_rate: unknown parameter of others 'bais'; did you mean 'bias'? (accepted: bias, others, weights)",
    ),
    "a layer without": (
        lambda: meets(optimizers.gd({"layer1": 0.1})),
        'gd: learning_rate: layer2 has no value; name it, or give "others" one',
    ),
    "a parameter without, though there are others above": (
        lambda: meets(optimizers.gd({"layer1": {"bias": 0.1}, "others": 0.1})),
        'gd: learning_rate: layer1/weights has no value; name it, or give "others" one',
    ),
    "below an array": (
        lambda: meets(optimizers.gd({"layer1": {"bias": {"x": 0.1}, "others": 0.1}, "others": 0.1})),
        "gd: learning_rate: layer1/bias is one array, expected one value, got {x: 0.1}",
    ),
    "of one array": (
        lambda: meets(optimizers.gd({"layer1": 0.1}), jnp.ones(2)),
        "gd: learning_rate: the parameter is one array, expected one value, got {layer1: 0.1}",
    ),
    "where a state begins": (
        lambda: meets(optimizers.adagrad(initial={"layer3": 0.1, "others": 0.1})),
        "adagrad: initial: unknown layer 'layer3'; did you mean 'layer2'? (accepted: layer1, layer2, others)",
    ),
    "frozen": (
        lambda: meets(optimizers.freeze(optimizers.gd({"layer1": 0.1, "layer2": 0.1}), ["layer1"])),
        "gd: learning_rate: unknown layer 'layer1'; did you mean 'layer2'? (accepted: layer2, others)",
    ),
    "bounds": (
        lambda: meets(optimizers.rprop({"layer1": 100.0, "others": 0.1})),
        "rprop: initial_step must be between smallest = 1e-06 and largest = 50.0, got 100.0",
    ),
    "out of range": (
        lambda: optimizers.momentum(0.1, {"layer1": {"bias": 1.0}}),
        "momentum: decay of layer1/bias must be in [0, 1), got 1.0",
    ),
    "a schedule for a start": (
        lambda: optimizers.rprop({"layer1": "cosine(0.1, 10)"}),
        "rprop: initial_step of layer1 must be a finite number > 0, got 'cosine(0.1, 10)'",
    ),
    "a schedule out of range": (
        lambda: optimizers.adam(epsilon={"layer1": "cosine(0.0, 10)"}),
        "adam: epsilon of layer1 must be a finite number > 0, got cosine(",
    ),
    "several": (
        lambda: optimizers.gd({"layer1": [0.1, 0.2]}),
        "gd: learning_rate of layer1 must be a finite number >= 0, got (",
    ),
    "nothing": (lambda: optimizers.gd({}), BY_NAME + "{}"),
    "nothing below": (lambda: optimizers.gd({"layer1": {}}), "learning_rate of layer1 must be one value, or values by"),
    "numbers for names": (lambda: optimizers.gd({1: 0.1}), BY_NAME + "{1: 0.1}"),
    "a word": (lambda: optimizers.gd({"layer1": "fast"}), "unknown schedule 'fast'"),
    "braces": (lambda: optimizers.get("gd({layer1: 0.1)"), "optimizer 'gd({layer1: 0.1)': the braces do not match"),
    "no value": (lambda: optimizers.get("gd({layer1: })"), "expected {name: value, ...}, each name once, got {layer1:"),
    "no name": (lambda: optimizers.get("gd({0.1})"), "expected {name: value, ...}, each name once, got {0.1}"),
    "twice": (lambda: optimizers.get("gd({a: 1, a: 2})"), "expected {name: value, ...}, each name once, got {a: 1, a"),
    "after the braces": (lambda: optimizers.get("gd({a: 1} 2)"), "expected {name: value, ...}, each name once, got {a"),
    **{
        f"of {name}": (
            lambda make=make: make({"layer1": 0.1}),
            f"{name}: {constant} must be one value for all parameters, got {{'layer1': 0.1}}",
        )
        for name, constant, make in (
            ("clip_by_global_norm", "largest", lambda own: optimizers.clip_by_global_norm("gd", own)),
            ("clip_by_value", "largest", lambda own: optimizers.clip_by_value("gd", own)),
            ("coupled_weight_decay", "decay", lambda own: optimizers.coupled_weight_decay("gd", own)),
            ("decoupled_weight_decay", "decay", lambda own: optimizers.decoupled_weight_decay("gd", own)),
            ("average", "decay", lambda own: optimizers.average("gd", own)),
            ("reduce_on_plateau", "learning_rate", lambda own: optimizers.reduce_on_plateau(optimizers.gd, own)),
            ("full_matrix_adagrad", "learning_rate", optimizers.full_matrix_adagrad),
            ("full_matrix_adagrad", "epsilon", lambda own: optimizers.full_matrix_adagrad(epsilon=own)),
        )
    },
    "of a method that asks the problem": (
        lambda: optimizers.variable_learning_rate({"layer1": 0.1}),
        "variable_learning_rate: learning_rate must be a finite number > 0, got {layer1: 0.1}",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_line(case):
    build, message = REFUSED[case]
    with pytest.raises(ValueError) as refused:
        build()
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["gd({'a:b': 0.1, others: 0.2})", "gd({'a, b': {others: 1.0, 'q{': 0.1}, c: 0.2})"])
def test_names_that_are_more_than_words_are_quoted(text):
    optimizer = optimizers.get(text)
    written = repr(optimizer.constants["learning_rate"])
    assert f"gd({written})" == text and optimizers.get(f"gd({written})") is optimizer


@pytest.mark.parametrize("text", ["{layer1: 0.1,, others: 1}", "{layer1: 0.1, layer1: 1}", "{: 1}", "{layer1}"])
def test_a_mapping_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="each name once, got"):
        optimizers.get(f"gd({text})")


def test_others_that_there_are_none_of_are_checked_too():
    params = fnn.multilayer((2, 1), ("tanh",)).init(jax.random.key(0))
    optimizers.gd({"layer1": 0.1, "others": {"bias": 1.0, "others": 2.0}}).init(params)
    with pytest.raises(ValueError, match="unknown parameter of others 'typo'"):
        optimizers.gd({"layer1": 0.1, "others": {"typo": 3.0}}).init(params)


def test_a_mapping_that_changes_afterwards_changes_nothing():
    """Of arrays, which have no hash to be remembered by."""
    given = {"layer1": jnp.asarray(0.1), "others": {"bias": jnp.asarray(0.2), "others": 0.3}}
    optimizer = optimizers.gd(given)
    given["others"]["bias"] = given["layer1"] = 9.0
    again = pickle.loads(pickle.dumps(optimizer))
    assert repr(again) == repr(optimizer) and "9" not in repr(again)
