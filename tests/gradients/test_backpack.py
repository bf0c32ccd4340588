"""Per-example and curvature quantities are BackPACK's (Dangel et al. 2020, arXiv 1912.10985), on the same weights.

BackPACK differentiates F as it is: of a mean over N examples, one example's gradient is 1/N of our g_q, and what is
quadratic in gradients 1/N^2. PyTorch computes in the dtype of the weights, so float32 meets float32, and float64
float64.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import chain, problem, relative_error

import functional_nn as fnn
from functional_nn import quantities

with warnings.catch_warnings():  # of what PyTorch and BackPACK find in one another's modules on import
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    backpack = pytest.importorskip("backpack")
    from backpack import extensions

pytestmark = [
    pytest.mark.oracle,
    # Inputs need no gradient here, at which PyTorch warns of the hooks that BackPACK sets.
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]

EXAMPLES, SIZES = 6, (5, 7, 4, 3)
KEY = jax.random.key(11)
DTYPES = {"float32": jnp.float32, "float64": jnp.float64}
# From data to result, a number passes through sums of 5, 7 and 4 products forward, 3 and 4 back, 6 over the examples,
# and a dozen functions between: some 40 roundings, 6 sqrt(40) u in all with the chance of `comparison`'s bound. Squares
# double this, two sides are sqrt(2) further apart than one is from the truth: 107 u, in powers of two 128 u. Nothing
# cancels badly here: 9 u are the most there is. Another scale or a term left out is wrong in the first digit.
TOLERANCE = {name: 128 * float(jnp.finfo(dtype).eps) / 2 for name, dtype in DTYPES.items()}
LOSSES = {"cross_entropy": ("softmax", "CrossEntropyLoss"), "mean_square_error": ("linear", "MSELoss")}
HIDDEN = {"tanh": "Tanh", "sigmoid": "Sigmoid"}

of_every_chain = pytest.mark.parametrize(
    "hidden, loss, dtype", [(h, loss, dtype) for h in HIDDEN for loss in LOSSES for dtype in DTYPES]
)


def same_chain(hidden, loss, dtype):
    """(network, params, inputs, targets), and BackPACK's loss on the same as a function of the extensions.

    It returns {savefield: a list of what each layer's weights and bias have there}.
    """
    output, module = LOSSES[loss]
    network = chain(SIZES, hidden, output)
    params, inputs, targets = problem(network, loss, seed=3, examples=EXAMPLES, dtype=DTYPES[dtype])
    labels = np.arange(EXAMPLES) % SIZES[-1]
    if loss == "cross_entropy":
        targets = fnn.one_hot(labels, SIZES[-1], DTYPES[dtype])
    parts = []
    for layer in network.layers:
        weights, bias = weights_and_bias(params[layer.name])
        linear = torch.nn.Linear(weights.shape[1], weights.shape[0], dtype=getattr(torch, dtype))
        with torch.no_grad():
            linear.weight.copy_(tensor(weights))
            linear.bias.copy_(tensor(bias))
        parts += [linear, getattr(torch.nn, HIDDEN[hidden])()]
    model, measured = backpack.extend(torch.nn.Sequential(*parts[:-1])), backpack.extend(getattr(torch.nn, module)())
    expected = torch.from_numpy(labels) if loss == "cross_entropy" else tensor(targets)

    def theirs(*names):
        torch.manual_seed(0)  # of the Monte Carlo extensions
        with backpack.backpack(*names):
            measured(model(tensor(inputs)), expected).backward()
        return {each.savefield: [getattr(p, each.savefield) for p in model.parameters()] for each in names}

    return (network, loss, params, inputs, targets), theirs


def tensor(array):
    return torch.from_numpy(np.array(array))


def weights_and_bias(own):
    (weights,) = own["weights"].values()
    return weights, own["bias"]


def in_their_order(tree):
    """Ours, a tree in the parameters' structure, as the list of weights and bias of every layer."""
    return [array for own in tree.values() for array in weights_and_bias(own)]


def assert_same(what, ours, theirs, scale=1, bound=0.0):
    # arrays one by one: an error in a small bias does not hide behind large weights
    assert len(ours) == len(theirs)
    for number, (own, their) in enumerate(zip(ours, theirs, strict=True)):
        their = scale * their.detach().numpy()
        assert own.dtype == their.dtype
        assert relative_error(own, their) <= max(bound, TOLERANCE[str(own.dtype)]), f"{what}, array {number}"


@of_every_chain
def test_what_comes_of_each_examples_gradient(hidden, loss, dtype):
    given, theirs = same_chain(hidden, loss, dtype)
    found = theirs(extensions.BatchGrad(), extensions.BatchL2Grad(), extensions.SumGradSquared(), extensions.Variance())
    names = ("per_example_gradients", "per_example_norms", "second_moment", "variance")
    ours = jax.jit(lambda *batch: quantities.compute(*given[:2], *batch, names))(*given[2:])
    N = EXAMPLES
    assert_same("g_q", in_their_order(ours["per_example_gradients"]), found["grad_batch"], N)
    assert_same("norms", [ours["per_example_norms"] ** 2], [sum(found["batch_l2"])], N**2)
    assert_same("mean of squares", in_their_order(ours["second_moment"]), found["sum_grad_squared"], N**2 / N)
    assert_same("variance", in_their_order(ours["variance"]), found["variance"], N**2)


@of_every_chain
def test_exact_curvature(hidden, loss, dtype):
    given, theirs = same_chain(hidden, loss, dtype)
    found = theirs(extensions.DiagGGNExact(), extensions.KFLR())
    names = ("gauss_newton_diagonal", "kflr")
    ours = jax.jit(lambda *batch: quantities.compute(*given[:2], *batch, names))(*given[2:])
    assert_same("diagonal", in_their_order(ours["gauss_newton_diagonal"]), found["diag_ggn_exact"])
    assert_same("factors", factors(ours["kflr"]), their_factors(found["kflr"]))


def factors(ours):
    """Sensitivities, activations without the bias's 1, and sensitivities for the bias, of every layer."""
    for own in ours.values():  # which BackPACK leaves out, and which are the mean of the activations
        assert (own.activations[-1, -1] - 1) == pytest.approx(0, abs=TOLERANCE[str(own.activations.dtype)])
    return [each for f in ours.values() for each in (f.sensitivities, f.activations[:-1, :-1], f.sensitivities)]


def their_factors(found):
    return [factor for of_parameter in found for factor in of_parameter]


@pytest.mark.parametrize("loss", LOSSES)
def test_random_sweeps_approach_exact_curvature(loss):
    """Ours by random signs, BackPACK's by random targets: two samplings of what both have exactly."""
    samples = 4096
    # The mean of K draws is off by 1/sqrt(K) of a draw's own spread, which is at most about as large as its mean here,
    # since every entry is also a mean over the examples; twice that, and for two samplings twice again.
    bound = 2 / samples**0.5
    given, theirs = same_chain("tanh", loss, "float64")
    exact = theirs(extensions.DiagGGNExact(), extensions.KFLR())
    sampled = theirs(extensions.DiagGGNMC(mc_samples=samples), extensions.KFAC(mc_samples=samples))
    names = ("sampled_gauss_newton_diagonal", "kfac")
    ours = quantities.compute(*given, names, key=KEY, samples=samples)
    diagonal = in_their_order(ours["sampled_gauss_newton_diagonal"])
    assert_same("sampled is exact", diagonal, exact["diag_ggn_exact"], bound=bound)
    assert_same("sampled is sampled", diagonal, sampled["diag_ggn_mc"], bound=2 * bound)
    assert_same("kfac is kflr", factors(ours["kfac"]), their_factors(exact["kflr"]), bound=bound)
    assert_same("kfac is kfac", factors(ours["kfac"]), their_factors(sampled["kfac"]), bound=2 * bound)
