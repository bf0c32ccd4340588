"""Names of first-order methods, and the constants, parameters and gradients that are refused."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal

from functional_nn import optimizers
from functional_nn.optimizers import first_order


def without(tree, *path):
    """A copy of the tree less one branch."""
    if len(path) == 1:
        return {key: value for key, value in tree.items() if key != path[0]}
    return tree | {path[0]: without(tree[path[0]], *path[1:])}


def test_names_are_the_public_functions():
    assert len(optimizers.names()) == 13
    for name in optimizers.names():
        assert optimizers.get(name) is getattr(optimizers, name)()  # what was compiled for it serves again
    assert optimizers.get("gd(0.5)") is optimizers.gd(0.5)
    assert optimizers.get("nesterov(0.5, form=look_ahead)") is optimizers.nesterov(0.5, form="look_ahead")


@pytest.mark.parametrize(
    ("specification", "made"),
    [
        ("amsgrad(bias_correction=False)", partial(optimizers.amsgrad, bias_correction=False)),
        ("rmsprop(centered=True)", partial(optimizers.rmsprop, centered=True)),
        ("rprop(minibatches=False)", partial(optimizers.rprop, minibatches=False)),
    ],
)
def test_truth_values_in_names_are_truth_values(specification, made):
    assert optimizers.get(specification) is made()
    assert optimizers.get(specification).full_batch is made().full_batch


def test_a_name_that_is_taken_is_refused():
    def gd():
        raise AssertionError

    with pytest.raises(ValueError, match="optimizer 'gd' is already registered"):
        first_order.register(gd)


NAN, INF = float("nan"), float("inf")
NON_NEGATIVE = ("a finite number >= 0", (-0.1, NAN, INF, None, 1j))
POSITIVE = ("a finite number > 0", (0.0, -1e-8, NAN, INF, None))
DECAY = ("in [0, 1)", (1.0, -0.1, 1.5, NAN, None))
# every constant of every method; one that is not here has no test
ACCEPTED = (
    dict.fromkeys(("learning_rate", "weight_decay", "initial", "smallest"), NON_NEGATIVE)
    | dict.fromkeys(("decay", "b1", "b2"), DECAY)
    | {
        "epsilon": POSITIVE,
        "largest": POSITIVE,
        "initial_step": POSITIVE,
        "budget": ("an integer >= 1", (0, 1.5, True, None)),
        "decrease": ("in (0, 1)", (0.0, 1.0, NAN)),
        "increase": ("a finite number > 1", (1.0, 0.5, INF, NAN)),
        "form": ("'gradient' or 'look_ahead'", ("lookahead", None)),
        "order": ("'corrected' or 'efficient'", ("fast",)),
    }
)
FLAGS = {"backtracking", "minibatches", "centered", "bias_correction"}


@pytest.mark.parametrize("name", optimizers.names())
def test_constants_out_of_range_are_refused(name):
    for constant in inspect.signature(getattr(optimizers, name)).parameters.keys() - FLAGS:
        accepted, wrong = ACCEPTED[constant]
        for value in wrong:
            message = refusal(lambda c=constant, v=value: getattr(optimizers, name)(**{c: v}))
            assert message == f"{name}: {constant} must be {accepted}, got {value!r}"


@pytest.mark.parametrize("value", [np.array([0.1, 0.2]), [0.1, 0.2]], ids=["array", "list"])
def test_several_rates_for_one_are_refused_in_one_line(value):
    assert "gd: learning_rate must be a finite number >= 0, got" in refusal(lambda: optimizers.gd(value))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: optimizers.rprop(initial_step="cosine(0.1, 10)"), "rprop: initial_step"),
        (lambda: optimizers.adagrad(initial="cosine(0.1, 10)"), "adagrad: initial"),
    ],
)
def test_an_initial_value_cannot_be_a_schedule(build, name):
    assert f"{name} must be a finite number >" in refusal(build)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optimizers.gd("fast"), "unknown schedule 'fast'"),
        (lambda: optimizers.gd("0.1"), "gd: learning_rate must be a finite number >= 0, got '0.1'"),
        (lambda: optimizers.gd("cosin(0.1, 10)"), "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (lambda: optimizers.adam("cosine(-0.1, 10)"), "cosine: initial must be a finite number >= 0, got -0.1"),
        (lambda: optimizers.get("adm"), "unknown optimizer 'adm'; did you mean 'adam'?"),
        (lambda: optimizers.get("gd(1, 2)"), "too many positional arguments"),
        (lambda: optimizers.get("gd(-1)"), "gd: learning_rate must be a finite number >= 0, got -1"),
        (lambda: optimizers.get("adam(cosin(0.1, 10))"), "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (lambda: optimizers.gd().init({}), "gd: params: expected at least one array"),
    ],
)
def test_bad_names_and_empty_parameters_are_refused(build, message):
    assert message in refusal(build)


TREE = {
    "layer1": {"weights": {"input": jnp.ones((2, 2))}, "bias": jnp.ones(2)},
    "layer2": {"weights": {"layer1": jnp.ones((1, 2))}},
}
GRADS = jax.tree.map(jnp.zeros_like, TREE)
MISMATCHED = {
    "a leaf is missing": (without(GRADS, "layer1", "bias"), "grads: layer1/bias is missing"),
    "None for a leaf": (GRADS | {"layer1": GRADS["layer1"] | {"bias": None}}, "grads: layer1/bias is missing"),
    "a layer is missing": (without(GRADS, "layer2"), "grads: layer2/weights/layer1 is missing"),
    "a leaf too many": (
        GRADS | {"layer2": GRADS["layer2"] | {"bias": jnp.zeros(1)}},
        "grads: layer2/bias is not one of the parameters'",
    ),
    "two differences, the first named": (
        {"layer1": without(GRADS["layer1"], "weights")},
        "grads: layer1/weights/input is missing",
    ),
    "another shape": (
        GRADS | {"layer1": GRADS["layer1"] | {"bias": jnp.zeros((2, 1))}},
        "grads: layer1/bias expected shape (2,), got (2, 1)",
    ),
    "a scalar": (
        GRADS | {"layer1": GRADS["layer1"] | {"bias": jnp.zeros(())}},
        "grads: layer1/bias expected shape (2,), got ()",
    ),
}


@pytest.mark.parametrize("case", MISMATCHED)
@pytest.mark.parametrize(
    "optimizer", [optimizers.adam(), optimizers.clip_by_global_norm(optimizers.gd(), 1.0)], ids=["adam", "wrapped"]
)
def test_gradients_that_do_not_match_are_refused_at_the_first_path(case, optimizer):
    grads, message = MISMATCHED[case]
    state = optimizer.init(TREE)
    assert refusal(lambda: optimizer.update(state, grads)) == message
    assert refusal(lambda: jax.eval_shape(optimizer.update, state, grads)) == message  # shapes are known under jit


def test_lists_and_dictionaries_are_not_the_same():
    optimizer, leaf = optimizers.gd(), jnp.ones(2)
    state = optimizer.init([leaf, leaf])
    for grads in ({"0": leaf, "1": leaf}, (leaf, leaf)):
        assert "grads: expected the structure PyTreeDef([*, *]), got PyTreeDef(" in refusal(
            lambda grads=grads: optimizer.update(state, grads)
        )
    assert refusal(lambda: optimizer.update(state, [leaf])) == "grads: 1 is missing"
    single = optimizer.init(leaf)
    assert refusal(lambda: optimizer.update(single, jnp.ones(3))) == "grads: the array expected shape (2,), got (3,)"


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (jnp.array([1, 2]), "int64"),
        (jnp.array([1j, 2]), "complex128"),
        (jnp.array([True, False]), "bool"),
        (3.0, "float"),
    ],
)
def test_gradients_are_real_numbers(leaf, kind):
    grads = GRADS | {"layer1": GRADS["layer1"] | {"bias": leaf}}
    for optimizer in (optimizers.momentum(), optimizers.accumulate(optimizers.adam(), 2)):
        state = optimizer.init(TREE)
        message = refusal(lambda o=optimizer, s=state: o.update(s, grads), TypeError)
        assert message == f"grads: layer1/bias expected an array of real numbers, got {kind}"
