"""What the tests of learning rules share: a backward pass in NumPy that takes what crosses each connection.

Written from the papers' equations, of layers that read vectors; it reads a network's description and parameters and
calls none of its code. Letters: Q examples, S neurons of a layer, s = dF/dn, g = dF/da.
"""

import jax
import numpy as np
import pytest
from cases import problem
from signal_cases import signal_problem

import functional_nn as fnn
from functional_nn import checks, rules

KEY = jax.random.key(20)
LOSS = "cross_entropy"

MLP = fnn.multilayer((3, 5, 4, 2), ("tanh", "sigmoid", "softmax"))
SKIP = fnn.graph(
    inputs={"p1": 3, "p2": 2},
    layers=[
        fnn.Layer("first", 4, "tanh", ("p1",)),
        fnn.Layer("second", 3, "sigmoid", ("first", "p2")),
        fnn.Layer("third", 4, "tanh", ("second", "first", "p1"), bias="none"),
        fnn.Layer("output", 3, "softmax", ("third", "first", "p2")),
    ],
)
TINY = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
NETWORKS = {"MLP": MLP, "skip": SKIP}
STEPS = fnn.multilayer((3, 5, 4, 2), ("hardlim", "hardlims", "softmax"))
EXAMPLES = 6
networks = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)

# every rule that goes the way back along the connections
ONE_SWEEP = (
    "feedback_alignment(0)",
    "direct_feedback(0)",
    "sign_symmetric",
    "sign_symmetric(random)",
    "sign_symmetric(fixed)",
    "kolen_pollack",
    "weight_mirror",
    "noisy(0.1)",
    "rounded(4)",
    "rounded(1)",
    "rounded(4, stochastic=false)",
    "dropped_back(0.5)",
    "clipped_back(0.1)",
    "surrogate",
)

WEIGHTS = np.random.default_rng(11).uniform(0.5, 2, EXAMPLES)


def _softmax(n):
    powers = np.exp(n - n.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# a = f(n), and f'(n) as far as each neuron is by itself
TRANSFER = {
    "linear": (lambda n: n, lambda n, a: np.ones_like(n)),
    "tanh": (np.tanh, lambda n, a: 1 - a**2),
    "sigmoid": (lambda n: 1 / (1 + np.exp(-n)), lambda n, a: a * (1 - a)),
    "softmax": (_softmax, None),
    "hardlim": (lambda n: np.where(n >= 0, 1.0, 0.0), None),
    "hardlims": (lambda n: np.where(n >= 0, 1.0, -1.0), None),
}


def numbers(network, seed=0, examples=EXAMPLES, loss=LOSS):
    """(params, inputs by name, targets) in NumPy's arrays; targets of the cross-entropy add up to 1."""
    params, inputs, targets = problem(network, loss, seed, examples)
    targets = targets / targets.sum(axis=1, keepdims=True) if loss == LOSS else targets
    inputs = inputs if isinstance(inputs, dict) else {network.inputs[0][0]: inputs}
    return jax.tree.map(np.asarray, (params, inputs, targets))


def forward(network, params, inputs):
    """({layer: n}, {name: a})."""
    n, a = {}, dict(inputs)
    for layer in network.layers:
        own = params[layer.name]
        read = sum(a[source] @ own["weights"][source].T for source in layer.sources)
        n[layer.name] = read + own.get("bias", 0.0)
        a[layer.name] = TRANSFER[layer.activation.name][0](n[layer.name])
    return n, a


def backward(network, params, inputs, start, cross=None, alter=lambda layer, s: s, slopes=None):
    """(gradient, {layer: s}). start(a) -> s^M; cross(layer, source, s, s^M) -> g, W's by default; alter(layer, s) -> s;
    slopes: {activation: f'(n, a)} in addition to those of `TRANSFER`.
    """
    n, a = forward(network, params, inputs)
    known = {name: slope for name, (_, slope) in TRANSFER.items()} | (slopes or {})
    cross = cross or (lambda layer, source, s, errors: s @ params[layer]["weights"][source])
    s, g, errors, gradient = {}, {}, None, {}
    for layer in reversed(network.layers):
        name = layer.name
        own = start(a[name]) if errors is None else known[layer.activation.name](n[name], a[name]) * g[name]
        s[name] = alter(name, own)
        errors = s[name] if errors is None else errors
        for source in layer.sources:
            if source in params:
                g[source] = g.get(source, 0.0) + cross(name, source, s[name], errors)
        gradient[name] = {"weights": {source: s[name].T @ a[source] for source in layer.sources}}
        if layer.bias != "none":
            gradient[name]["bias"] = s[name].sum(axis=0)
    return gradient, s


def mean_error(targets, weights=None):
    """s^M of softmax outputs under the mean cross-entropy, of examples with weights (Q,)."""
    share = np.full(len(targets), 1 / len(targets)) if weights is None else weights / weights.sum()
    return lambda a: share[:, None] * (a - targets)


def edges(network):
    """(layer, source) of all connections that something is sent back by."""
    layers = {layer.name for layer in network.layers}
    return {(layer.name, source) for layer in network.layers for source in layer.sources if source in layers}


def tree(flat):
    """{(layer, source): x} as {layer: {source: x}}."""
    found = {}
    for (layer, source), x in flat.items():
        found.setdefault(layer, {})[source] = x
    return found


def close(found, expected, tolerance=1e-12):
    """Asserts that each array is the expected one, relative to that array's norm."""
    paths = checks.by_path(expected)
    given = checks.by_path(found)
    assert given.keys() == paths.keys()
    for path, x in paths.items():
        difference = np.linalg.norm(np.asarray(given[path]) - np.asarray(x))
        assert difference <= tolerance * (np.linalg.norm(np.asarray(x)) or 1.0), (path, difference)


def flat(found):
    """All leaves side by side, behind the axis of the draws: (K, P)."""
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(found)], axis=1)


def unbiased(drawn, expected, errors=5.0, deviation=None):
    """Asserts that the mean over draws (K, P) is the expected (P,), within so many standard errors, of the deviation
    that is derived, or the draws' own: where all is right, by more than 5 one number in 1.7 million is off.
    """
    drawn, expected = np.asarray(drawn), np.asarray(expected)
    deviation = drawn.std(axis=0, ddof=1) if deviation is None else deviation
    allowed = errors * deviation / np.sqrt(len(drawn))
    off = np.abs(drawn.mean(axis=0) - expected)
    worst = int(np.argmax(off - allowed))
    assert off[worst] <= allowed[worst] + 1e-12 * np.abs(expected).max(), (worst, off[worst], allowed[worst])


def over_keys(function, count, seed=1):
    """What function(key) gives of so many keys, side by side, compiled once."""
    return jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), count))


def initialized(rule, network, seed=0):
    """Returns parameters with what the rule learns, inputs and targets, in NumPy's arrays."""
    params, inputs, targets = numbers(network, seed)
    return jax.tree.map(np.asarray, rules.begin(rule, network, params, KEY)), inputs, targets


def signal_numbers(network):
    """(params, {name: inputs}, one-hot targets) of three examples."""
    params, inputs, targets = signal_problem(network, LOSS, examples=3)
    return params, {network.inputs[0][0]: inputs}, jax.nn.one_hot(targets, network.output.size, dtype=np.float64)


def backpropagated(rule, network, params, inputs, targets, weights=None, key=KEY):
    return fnn.backpropagate(network, LOSS, params, inputs, targets, weights, key, rule=rule)


def gradients_over_keys(rule, network, data, count=2000):
    """(K, P) of so many keys, in the order of `flat`."""
    step = fnn.value_and_grad(network, LOSS, rule=rule)
    return flat(over_keys(lambda key: step(*data, None, key)[1], count))


def sensitivities_over_keys(rule, network, data, count=2000):
    """{layer: (K, Q, S)}."""
    return over_keys(lambda key: backpropagated(rule, network, *data, key=key).sensitivities, count)


def clip_in_numpy(norm, share):
    def alter(layer, s):
        lengths = np.linalg.norm(s / share[:, None], axis=1)  # of dF_q/dn
        return s * np.minimum(1, norm / lengths)[:, None]

    return alter


def as_vector(gradient):
    """A gradient as (P,), in the order of `flat`."""
    return flat(jax.tree.map(lambda x: x[None], gradient))[0]
