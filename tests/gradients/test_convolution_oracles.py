"""Of the same convolutional network: gradients are PyTorch's, each example's Opacus's, the rest BackPACK's, in float64.

PyTorch has channels before positions, (Q, R, H, W), kernels (S, R, height, width). BackPACK differentiates F: of a
mean over N examples, one example's gradient is 1/N of our g_q. Its Kronecker factors of a convolution are neither form
of Eschenhagen et al. 2023 by itself: sensitivities are summed over the T positions first, as in "reduce", and products
a_t a_t^T are summed over them, T times the mean of "expand".
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error
from signal_cases import signal_problem

import functional_nn as fnn
from functional_nn import Layer, quantities

with warnings.catch_warnings():  # of what PyTorch, BackPACK and Opacus find in one another's modules on import
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
]

EXAMPLES, TOLERANCE = 6, 1e-10
HIDDEN = {"relu": "ReLU", "tanh": "Tanh"}
# the second convolution's constants, ours and PyTorch's
SECOND = {
    "plain": ("conv((3, 2), stride=2, padding='valid')", {"kernel_size": (3, 2), "stride": 2}),
    "dilated": ("conv((2, 2), dilation=2, padding=1)", {"kernel_size": 2, "dilation": 2, "padding": 1}),
    "grouped": ("conv((3, 3), groups=2)", {"kernel_size": 3, "padding": 1, "groups": 2}),
}
every = pytest.mark.parametrize("second", SECOND)
both = pytest.mark.parametrize("hidden", HIDDEN)


def same_network(hidden, second):
    """((network, loss, params, inputs, targets), PyTorch's model, its inputs and labels)."""
    by, constants = SECOND[second]
    network = fnn.graph(
        inputs={"image": (7, 5, 2)},
        layers=[
            Layer("conv1", 4, hidden, [("image", "conv((3, 3))")]),
            Layer("conv2", 6, "tanh", [("conv1", by)]),
            Layer("output", 3, "softmax", [("conv2", "full")]),
        ],
    )
    params, inputs, targets = signal_problem(network, "cross_entropy", seed=3, examples=EXAMPLES)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1, dtype=torch.float64),
        getattr(torch.nn, HIDDEN[hidden])(),
        torch.nn.Conv2d(4, 6, **constants, dtype=torch.float64),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(network.sizes["conv2"], 3, dtype=torch.float64),
    )
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), in_their_order(network, params), strict=True):
            parameter.copy_(torch.from_numpy(array))
    given = network, "cross_entropy", params, inputs, targets
    return given, model, torch.from_numpy(np.moveaxis(np.asarray(inputs), -1, 1).copy()), torch.tensor(targets.tolist())


def in_their_order(network, tree, lead=0):
    """Ours, in the parameters' structure with `lead` axes in front, as the list of weights and bias of every layer."""
    found = []
    for layer in network.layers:
        (weights,) = tree[layer.name]["weights"].values()
        weights = np.array(weights)
        if weights.ndim > lead + 2:
            weights = np.moveaxis(weights, -1, lead + 1)
        else:  # of the whole signal, channels come last in ours
            height, width, channels = network.shapes[layer.sources[0]]
            split = weights.reshape(*weights.shape[: lead + 1], height, width, channels)
            weights = np.moveaxis(split, -1, lead + 1).reshape(weights.shape)
        found += [weights.copy(), np.array(tree[layer.name]["bias"])]
    return found


def assert_same(what, ours, theirs, scale=1):
    assert len(ours) == len(theirs)
    apart = [relative_error(own, scale * their.detach().numpy()) for own, their in zip(ours, theirs, strict=True)]
    print(f"{what}: {max(apart):.1e}")
    assert max(apart) <= TOLERANCE, (what, apart)


def measured(given, names, **options):
    network, loss, *batch = given
    return jax.jit(lambda *batch: quantities.compute(network, loss, *batch, names, **options))(*batch)


@every
@both
def test_gradients_are_pytorchs(hidden, second):
    given, model, x, labels = same_network(hidden, second)
    value = torch.nn.functional.cross_entropy(model(x), labels)
    value.backward()
    ours, gradients = fnn.value_and_grad(*given[:2])(*given[2:])
    assert_same("F", [jnp.asarray(ours)], [value])
    assert_same("gradient", in_their_order(given[0], gradients), [p.grad for p in model.parameters()])


@every
@both
def test_each_examples_gradient_is_opacus(hidden, second):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grad_sample = pytest.importorskip("opacus.grad_sample")
        given, model, x, labels = same_network(hidden, second)
        wrapped = grad_sample.GradSampleModule(model)
        torch.nn.functional.cross_entropy(wrapped(x), labels).backward()
    theirs = [p.grad_sample for p in wrapped.parameters()]
    found = measured(given, ("per_example_gradients", "per_example_norms"))
    assert_same("g_q", in_their_order(given[0], found["per_example_gradients"], 1), theirs)
    norms = torch.sqrt(sum(g.flatten(1).square().sum(dim=1) for g in theirs))
    assert_same("norms", [found["per_example_norms"]], [norms])


def by_backpack(model, x, labels, *names):
    """{savefield: a list of what each parameter has there}."""
    backpack = pytest.importorskip("backpack")
    extended, loss = backpack.extend(model), backpack.extend(torch.nn.CrossEntropyLoss())
    names = [getattr(backpack.extensions, name)() for name in names]
    with backpack.backpack(*names):
        loss(extended(x), labels).backward()
    return {each.savefield: [getattr(p, each.savefield) for p in extended.parameters()] for each in names}


@every
@both
def test_what_comes_of_each_examples_gradient_is_backpacks(hidden, second):
    given, *theirs = same_network(hidden, second)
    # groups are more than BackPACK's first-order sums know
    names = ("BatchGrad",) if second == "grouped" else ("BatchGrad", "BatchL2Grad", "SumGradSquared", "Variance")
    found = by_backpack(*theirs, *names)
    ours = measured(given, ("per_example_gradients", "per_example_norms", "second_moment", "variance"))
    network, N = given[0], EXAMPLES
    assert_same("g_q", in_their_order(network, ours["per_example_gradients"], 1), found["grad_batch"], N)
    if second != "grouped":
        assert_same("squared norms", [ours["per_example_norms"] ** 2], [sum(found["batch_l2"])], N**2)
        assert_same("mean of squares", in_their_order(network, ours["second_moment"]), found["sum_grad_squared"], N)
        assert_same("variance", in_their_order(network, ours["variance"]), found["variance"], N**2)


@pytest.mark.parametrize("second", ["plain", "dilated"])
@both
def test_exact_curvature_is_backpacks(hidden, second):
    given, *theirs = same_network(hidden, second)
    network = given[0]
    found = by_backpack(*theirs, "DiagGGNExact", "KFLR")
    expand = measured(given, ("gauss_newton_diagonal", "kflr"))
    reduce = measured(given, ("kflr",), shared="reduce")["kflr"]
    assert_same("diagonal", in_their_order(network, expand["gauss_newton_diagonal"]), found["diag_ggn_exact"])
    ours = []
    for layer in network.layers:
        positions = np.prod(network.net_shapes[layer.name][:-1], dtype=int)
        # theirs have channels first among what a neuron reads
        (weights,) = given[2][layer.name]["weights"].values()
        shape = weights.shape[1:] if weights.ndim > 2 else network.shapes[layer.sources[0]]
        order = np.moveaxis(np.arange(np.prod(shape)).reshape(shape), -1, 0).ravel()
        activations = np.asarray(expand["kflr"][layer.name].activations)[np.ix_(order, order)]
        sensitivities = reduce[layer.name].sensitivities
        ours += [sensitivities, positions * activations, sensitivities]
    assert_same("factors", ours, [factor for own in found["kflr"] for factor in own])
