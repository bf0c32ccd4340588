"""How quantities are declared and called, and what is refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import chain, problem
from quantity_cases import (
    KEY,
    LOSS,
    NETWORK,
    flat,
)

import functional_nn as fnn
from functional_nn import quantities
from functional_nn.gradients import backprop

REFUSED = [
    ("per_example_norm", {}, ValueError, "unknown quantity 'per_example_norm'; did you mean 'per_example_norms'?"),
    ("clipped_gradient", {}, ValueError, "clipped_gradient needs max_norm=..."),
    ("kfac", {}, ValueError, "kfac needs key=..."),
    ("kfac", {"key": None}, ValueError, "kfac needs key=..."),
    ("clipped_gradient", {"maxnorm": 1.0}, TypeError, "did you mean 'max_norm'?"),
    ("jacobian", {"of": np.ones(2)}, ValueError, "jacobian: of must be 'outputs' or 'net_inputs'"),
    ("variance", {"budget": 0}, ValueError, "compute: budget must be an integer >= 1, got 0"),
    ("variance", {"weights": jnp.zeros(5)}, ValueError, "weights: expected at least one above 0, got none"),
    ("noise_scale", {"weights": jnp.eye(5)[0]}, ValueError, "noise_scale: expected at least two examples, got 1"),
    ("tangent_kernel", {"others": 3.0}, ValueError, "others: inputs: expected"),
    ("tangent_kernel", {"others": {}}, ValueError, "others: inputs: expected"),
    ("variance", {"max_norm": 1.0}, TypeError, "variance: unknown option 'max_norm'"),
    ("clipped_gradient", {"maxnorm": 1.0, "max_norm": 1.0}, TypeError, "did you mean 'max_norm'?"),
    ("clipped_gradient", {"max_norm": 0.0}, ValueError, "max_norm must be a finite number > 0, got 0.0"),
    (
        "clipped_gradient",
        {"max_norm": -1},
        ValueError,
        "clipped_gradient: max_norm must be a finite number > 0, got -1",
    ),
    ("clipped_gradient", {"max_norm": float("nan")}, ValueError, "max_norm must be a finite number > 0, got nan"),
    ("clipped_gradient", {"max_norm": 1.0, "noise_multiplier": -1.0}, ValueError, "noise_multiplier must be"),
    ("clipped_gradient", {"max_norm": 1.0, "noise_multiplier": 1.0}, ValueError, "noise needs key="),
    ("kfac", {"key": 3}, TypeError, "key: expected a single key"),
    ("kfac", {"key": KEY, "samples": 0}, ValueError, "kfac: samples must be an integer >= 1, got 0"),
    ("jacobian", {"of": "output"}, ValueError, "jacobian: of must be 'outputs' or 'net_inputs', got 'output'"),
    ("jacobian", {"budget": 1000}, ValueError, "jacobian would take"),
    ("gauss_newton", {"budget": 1000}, ValueError, "curvature.gauss_newton_vector_product"),
    ("per_example_gradients", {"budget": 1000}, ValueError, "per_example_norms"),
    ("tangent_kernel", {"budget": 1000}, ValueError, "tangent_kernel_trace is smaller"),
    ("variance", {"block": 0}, ValueError, "block must be an integer >= 1, got 0"),
    ("variance", {"weights": -jnp.ones(5)}, ValueError, "weights: expected numbers >= 0"),
    ("tangent_kernel", {"others": {"p1": jnp.ones((2, 2))}}, ValueError, "others: inputs: expected"),
    ("layer_statistics", {"saturation": -1.0}, ValueError, "layer_statistics: saturation must be a finite number >= 0"),
]


@pytest.mark.parametrize(("name", "options", "error", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_bad_arguments_are_refused(data, name, options, error, message):
    with pytest.raises(error) as refusal:
        quantities.compute(NETWORK, LOSS, *data, (name,), **options)
    assert message in str(refusal.value)


def test_names_may_come_from_a_generator(data):
    assert list(quantities.compute(NETWORK, LOSS, *data, (name for name in ["per_example_norms"]))) == [
        "per_example_norms"
    ]


@pytest.mark.parametrize("names", ["variance", ()])
def test_names_are_a_sequence(data, names):
    with pytest.raises(ValueError, match="names: expected a sequence of quantities, such as"):
        quantities.compute(NETWORK, LOSS, *data, names)


def test_loss_and_targets_may_be_left_out_only_where_nothing_reads_them(data):
    params, inputs, targets = data
    assert quantities.tangent_kernel_trace(NETWORK, None, params, inputs).shape == (5, 5)
    for loss, t, what in ((None, targets, "loss"), (LOSS, None, "targets")):
        with pytest.raises(ValueError, match=f"{what}: variance cannot do without"):
            quantities.compute(NETWORK, loss, params, inputs, t, ("jacobian", "variance"))


def test_a_budget_says_how_much_is_needed(data):
    with pytest.raises(ValueError) as refusal:
        quantities.jacobian(NETWORK, None, *data[:2], budget=2048)
    size = sum(x.size for x in jax.tree.leaves(data[0]))
    needed = 5 * 3 * size * 8
    assert f"jacobian would take {needed / 1024:.4g} KiB of memory, above the budget of 2 KiB" in str(refusal.value)
    assert f"budget={needed}" in str(refusal.value)
    quantities.jacobian(NETWORK, None, *data[:2], budget=needed)


def test_a_loss_that_does_not_support_a_quantity_is_refused(data):
    own = fnn.Loss("quartic", "mean", lambda a, t: jnp.sum((a - t) ** 4, -1), lambda a, t: 4 * (a - t) ** 3)
    assert np.isfinite(flat(quantities.variance(NETWORK, own, *data))).all()
    with pytest.raises(ValueError, match="loss 'quartic' has no second derivative with a root, which Gauss-Newton"):
        quantities.gauss_newton_diagonal(NETWORK, own, *data)
    network = chain((2, 3, 2), "hardlim", "softmax")
    with pytest.raises(ValueError, match="layer 'layer1': 'hardlim' has no derivative"):
        quantities.jacobian(network, None, network.init(KEY), jnp.ones((4, 2)))
    for name in ("alignment", "per_example_norms"):  # a rule that needs no derivative has none to compare with
        with pytest.raises(ValueError, match="layer 'layer1': 'hardlim' has no derivative"):
            quantities.compute(
                network,
                "cross_entropy",
                network.init(KEY),
                jnp.ones((4, 2)),
                jnp.array([0, 1, 0, 1]),
                (name,),
                rule="weight_perturbation",
                rule_key=KEY,
            )
    with pytest.raises(ValueError, match="needs outputs that are"):
        quantities.variance(
            chain((2, 3), "tanh", "linear"), "cross_entropy", *problem(chain((2, 3), "tanh", "linear"), "cross_entropy")
        )
    with pytest.raises(ValueError, match="noise_scale: expected at least two examples, got 1"):
        quantities.noise_scale(NETWORK, LOSS, data[0], *jax.tree.map(lambda x: x[:1], data[1:]))


def test_a_users_quantity_is_known_to_compute():
    """Known with its options, in blocks, together with others; its name can be taken once."""
    name = "own_losses"

    @quantities.register()
    def own_losses(view, *, power=1.0):
        """F_q to a power, (Q,)."""
        return backprop.example_losses(view.network, view.loss, view.trace, view.examples.targets) ** power

    network = fnn.multilayer((3, 2), ("tanh",))
    data = network, "mean_square_error", network.init(jax.random.key(0)), np.eye(3), np.ones((3, 2))
    wanted = quantities.per_example_losses(*data)
    np.testing.assert_allclose(own_losses(*data, power=2.0, block=2), wanted**2, rtol=1e-12)
    found = quantities.compute(*data, ("per_example_losses", name))
    np.testing.assert_array_equal(found[name], found["per_example_losses"])
    with pytest.raises(ValueError, match=f"quantity '{name}' is already registered; choose another name"):
        quantities.register()(own_losses)


def test_every_quantity_has_a_docstring_and_the_common_signature():
    """With types, and with every argument in its docstring."""
    for name in quantities.names():
        function = getattr(quantities, name)
        assert function.__name__ == name
        signature = inspect.signature(function)
        parameters = list(signature.parameters)
        assert parameters[:5] == ["network", "loss", "params", "inputs", "targets"]
        assert parameters[-5:] == ["weights", "block", "budget", "rule", "rule_key"]
        described = function.__doc__.partition("Args:\n")[2]
        for parameter in signature.parameters.values():
            assert parameter.annotation is not parameter.empty, (name, parameter.name)
            assert f"    {parameter.name}: " in described, (name, parameter.name)
        assert signature.return_annotation is not signature.empty
