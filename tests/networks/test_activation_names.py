"""Activations by name: constants, aliases, refusals, and new ones that are registered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import EPS, drawn
from cases import ACTIVATIONS

import functional_nn as fnn
from functional_nn import activations


def test_names_lists_the_required_activations():
    required = "linear sigmoid tanh relu shifted_relu leaky_relu prelu elu maxout softmax hardlim hardlims".split()
    required += "gelu silu softplus softsign selu mish relu6 celu hard_tanh hard_sigmoid".split()
    required += "max_pool layer_norm rms_norm group_norm batch_norm".split()
    assert set(required) <= set(activations.names())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_get_returns_the_row_of_a_name(name):
    f = activations.get(name)
    assert activations.get(f) is f
    assert activations.get(name) is f
    again = activations.get(f.name)
    assert (again.name, again.pieces, again.gives) == (f.name, f.pieces, f.gives)


@pytest.mark.parametrize(
    ("alias", "name"),
    [("logsig", "sigmoid"), ("tansig", "tanh"), ("purelin", "linear"), ("poslin", "relu"), ("swish", "silu")],
)
def test_aliases_are_the_same_function(alias, name):
    assert activations.get(alias) is activations.get(name)


@pytest.mark.parametrize(
    ("specification", "at_minus_one"),
    [
        ("leaky_relu", -0.01),
        ("leaky_relu(0.1)", -0.1),
        ("leaky_relu(slope=0.1)", -0.1),
        (" leaky_relu( slope = 0.1 ) ", -0.1),
        ("elu(2)", 2 * np.expm1(-1)),
        ("elu(alpha=2)", 2 * np.expm1(-1)),
    ],
)
def test_constants_are_read_from_the_name(specification, at_minus_one):
    np.testing.assert_allclose(
        activations.get(specification).forward(-jnp.ones((1, 1)), {})[0], [[at_minus_one]], rtol=4 * EPS
    )


def test_maxout_reads_its_pieces_and_prelu_what_shares_a_slope():
    assert activations.get("maxout").pieces == 2
    assert activations.get("maxout(3)").pieces == 3
    np.testing.assert_array_equal(activations.get("prelu").parameters(3, jnp.float32)["slope"], jnp.full(3, 0.25))
    np.testing.assert_array_equal(
        activations.get("prelu(layer, 0.5)").parameters(3, jnp.float32)["slope"], jnp.full(1, 0.5)
    )


@pytest.mark.parametrize("factory", [activations.leaky_relu, activations.elu])
def test_equal_constants_are_the_same_object(factory):
    assert factory(0.1) is factory(0.1)
    assert factory(0.1) is not factory(0.2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("leaky_relu", "leaky_relu(0.01)"),
        ("leaky_relu(0.1)", "leaky_relu(slope=0.1)"),
        ("elu", "elu(1.0)"),
        ("maxout", "maxout(2)"),
        ("prelu", "prelu(neuron, 0.25)"),
    ],
)
def test_equal_constants_are_the_same_object_however_they_are_given(one, other):
    assert activations.get(one) is activations.get(other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rleu", "unknown activation 'rleu'; did you mean 'relu'?"),
        ("sigmod", "did you mean 'sigmoid'?"),
        ("logsg", "did you mean 'logsig'?"),
        ("max_out(3)", "did you mean 'maxout'?"),
        ("qqqqqq", "unknown activation 'qqqqqq' (accepted: "),
        ("", "unknown activation ''"),
        ("leaky_relu(", "did you mean 'leaky_relu'?"),
        ("tanh(3)", "activation 'tanh(3)': too many positional arguments"),
        ("leaky_relu(1, 2)", "too many positional arguments (accepted: leaky_relu(slope"),
        ("leaky_relu(slop=1)", "unexpected keyword argument 'slop'"),
        ("leaky_relu(nan)", "leaky_relu: slope must be a finite number, got nan"),
        ("leaky_relu(steep)", "leaky_relu: slope must be a finite number, got 'steep'"),
        ("elu(inf)", "elu: alpha must be a finite number, got inf"),
        ("celu(0)", "celu: alpha must be a number > 0, got 0"),
        ("gelu(erf)", "gelu: form must be 'exact' or 'tanh', got 'erf'"),
        ("prelu(both)", "prelu: share must be 'neuron' or 'layer', got 'both'"),
        ("prelu(layer, nan)", "prelu: start must be a finite number"),
        ("maxout(1)", "maxout: pieces must be an integer >= 2, got 1"),
        ("maxout(2.5)", "maxout: pieces must be an integer >= 2, got 2.5"),
        ("maxout(-3)", "maxout: pieces must be an integer >= 2, got -3"),
    ],
)
def test_other_things_than_activations_are_refused(given, message):
    with pytest.raises(ValueError) as refusal:
        activations.get(given)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_only_names_and_activations_are_accepted():
    with pytest.raises(TypeError, match="activation: expected a name or an Activation, got int"):
        activations.get(3)


def test_a_count_that_is_not_an_integer_is_refused_even_after_an_equal_integer():
    activations.maxout(2)
    with pytest.raises(ValueError, match="pieces must be an integer"):
        activations.maxout(2.0)


# A new one ------------------------------------------------------------------------------------------------------------


def test_a_new_activation_is_a_few_lines():
    activations.register(
        activations.elementwise("cubic", lambda n: n**3, lambda n, a: 3 * n**2, lambda n, a: 6 * n), aliases=("cube",)
    )
    assert "cubic" in activations.names() and activations.get("cube") is activations.get("cubic")
    f, n, g, r, _, _ = drawn("cubic")
    a, vjp = jax.vjp(lambda n: f.forward(n, {})[0], n)
    np.testing.assert_allclose(f.pullback(g, n, a, f.forward(n, {})[1], {})[0], vjp(g)[0], rtol=8 * EPS)
    assert fnn.Layer("one", 3, "cubic", ("p",)).activation is f


def test_a_new_factory_is_known_with_its_constants():
    @activations.register
    def power(exponent: int = 2):
        return activations.elementwise(
            f"power({exponent})",
            lambda n: n**exponent,
            lambda n, a: exponent * n ** (exponent - 1),
            lambda n, a: exponent * (exponent - 1) * n ** (exponent - 2),
        )

    assert activations.get("power(3)").name == "power(3)"
    np.testing.assert_array_equal(activations.get("power(3)").forward(jnp.full((1, 1), 2.0), {})[0], [[8.0]])


@pytest.mark.parametrize("taken", ["tanh", "tansig"])
def test_a_name_that_is_taken_is_refused(taken):
    with pytest.raises(ValueError, match=f"activation '{taken}' is already registered"):
        activations.register(activations.elementwise(taken, jnp.sin, lambda n, a: jnp.cos(n), lambda n, a: -a))
    with pytest.raises(ValueError, match="already registered"):
        activations.register(
            activations.elementwise("fresh", jnp.sin, lambda n, a: jnp.cos(n), lambda n, a: -a), aliases=(taken,)
        )
    assert "fresh" not in activations.names()


def test_a_name_that_is_no_identifier_is_refused():
    with pytest.raises(ValueError, match="activation name 'my tanh' is not an identifier"):
        activations.register(activations.elementwise("my tanh", jnp.tanh, lambda n, a: 1 - a**2, lambda n, a: a))
