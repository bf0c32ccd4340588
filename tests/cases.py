"""What the tests share: networks, data that fits them, and a slow reference that owes nothing to the package.

The reference computes one example, one neuron and one number at a time, in float64 (or complex128, for the complex
step), each function by its definition. It reads a network's description and parameters and calls none of its code.
Letters: Q examples, S neurons.
"""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn

DTYPES = (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16)


# What is crossed ------------------------------------------------------------------------------------------------------

# every registered activation of single neurons and of vectors, and others of a family with constants of their own;
# those of whole signals have tests of their own
ACTIVATIONS = (
    *(name for name in fnn.activations.names() if fnn.activations.get(name).alone or name == "softmax"),
    "leaky_relu(-0.5)",
    "elu(0.7)",
    "celu(0.7)",
    "gelu(tanh)",
    "prelu(layer)",
    "maxout(3)",
)
TRAINABLE = tuple(name for name in ACTIVATIONS if fnn.activations.get(name).pullback is not None)
LOSSES = fnn.losses.names()


def admitted(loss, activation) -> bool:
    """May this activation be in the output layer of a network trained on this loss?"""
    loss, activation = fnn.losses.get(loss), fnn.activations.get(activation)
    try:
        loss.check_outputs(activation)
    except ValueError:
        return False
    return activation.pullback is not None


# what networks are made of in the proofs: every family once, and both ways of sharing a learned slope
_BY_THEIR_DERIVATIVES = (
    "leaky_relu(-0.5)",
    "elu(0.7)",
    "celu(0.7)",
    "maxout(3)",
    "softplus",
    "softsign",
    "silu",
    "mish",
    "gelu",
    "gelu(tanh)",
    "celu",
    "selu",
    "relu6",
    "hard_tanh",
    "hard_sigmoid",
    "swiglu",
    "geglu",
)
PROVED = tuple(name for name in TRAINABLE if name not in _BY_THEIR_DERIVATIVES)
OUTPUT_PAIRS = tuple((f, loss) for f in PROVED for loss in LOSSES if admitted(loss, f))


# Networks -------------------------------------------------------------------------------------------------------------


def chain(sizes, hidden, output, bias="per_neuron"):
    """A chain with one activation throughout but for the last layer's."""
    return fnn.multilayer(sizes, (hidden,) * (len(sizes) - 2) + (output,), bias=bias)


def hagan_p32(hidden, output):
    """Hagan P3.2: n2 = W3 p1 + W2 a1 + b2; the second summing junction also receives the input."""
    return fnn.graph(
        inputs={"p1": 2},
        layers=[
            fnn.Layer("layer1", 4, hidden, ("p1",)),
            fnn.Layer("layer2", 3, output, ("layer1", "p1")),
        ],
    )


def fan_out(hidden, output):
    """Two inputs; `first` feeds three layers (E3.4), `second` skips one, and both inputs enter twice."""
    return fnn.graph(
        inputs={"p1": 2, "p2": 3},
        layers=[
            fnn.Layer("first", 4, hidden, ("p1",)),
            fnn.Layer("second", 2, hidden, ("first", "p2"), bias="shared"),
            fnn.Layer("third", 4, hidden, ("second", "first", "p1"), bias="none"),
            fnn.Layer("output", 3, output, ("third", "first", "second", "p2")),
        ],
    )


# name -> (network from the hidden and the output activation, number of examples)
GRAPHS = {
    "one layer": (lambda hidden, output: chain((3, 3), hidden, output), 4),
    "two layers": (partial(chain, (3, 4, 3)), 4),
    "five layers": (partial(chain, (3, 4, 2, 4, 2, 3)), 4),
    "P3.2": (hagan_p32, 4),
    "fan-out and skip": (fan_out, 4),
    "shared bias": (partial(chain, (3, 4, 3), bias="shared"), 4),
    "no bias": (partial(chain, (3, 4, 3), bias="none"), 4),
    "batch of one": (partial(chain, (3, 4, 3)), 1),
    "width one": (partial(chain, (1, 1, 1)), 4),
}


# Data -----------------------------------------------------------------------------------------------------------------


def generator(key):
    """A NumPy generator from a JAX key: no shape is compiled to draw from it."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def random_params(network, key, dtype=jnp.float64):
    """Parameters with nothing at zero or at its starting value: every weight, bias and slope is drawn.

    Weights shrink with the fan-in, so that net inputs are of order 1 and nothing saturates: where 1 - a is rounding
    error, so is any gradient that has it as a factor, and two right answers may differ.
    """
    draw = generator(key)

    def normal(*shape):
        return jnp.asarray(0.5 * draw.standard_normal(shape), dtype)

    params = {}
    for layer in network.layers:
        widths = {source: network.sizes[source] for source in layer.sources}
        shrink = float(np.sqrt(sum(widths.values())))
        params[layer.name] = own = {
            "weights": {source: normal(layer.rows, width) / shrink for source, width in widths.items()}
        }
        if layer.bias != "none":
            own["bias"] = normal(layer.rows if layer.bias == "per_neuron" else 1)
        if layer.activation.parameters:
            learned = layer.activation.parameters(layer.size, dtype)
            own["learned"] = {name: normal(*value.shape) for name, value in learned.items()}
    return params


def inputs_for(network, key, examples, dtype=jnp.float64):
    """An array for a network of one input, {name: array} for several."""
    draw = generator(key)
    drawn = {name: jnp.asarray(draw.standard_normal((examples, width)), dtype) for name, width in network.inputs}
    return drawn if len(drawn) > 1 else drawn[network.inputs[0][0]]


def targets_for(loss, key, examples, outputs, dtype=jnp.float64):
    """Targets (Q, S) that the loss has a meaning for; zeros and ones among them where those are allowed."""
    draw = generator(key)
    loss = fnn.losses.get(loss)
    shape = examples, outputs
    if loss.targets == "real":
        t = draw.standard_normal(shape)
    elif loss.targets == "signs":
        t = draw.choice([-1.0, 1.0], shape)
        t[:, 1:2] = -t[:, :1]  # both signs in a row: of a softmax output, one sign alone has the hinge gradient 0
    elif loss.targets == "one-hot":
        t = np.eye(outputs)[draw.integers(outputs, size=examples)]
    elif loss.targets in ("unit interval", "non-negative"):
        t = draw.uniform(0, 1, shape)
        t[0, 0], t[-1, -1] = 0, 1
    else:
        t = draw.uniform(0.1, 1, shape)
        if loss.targets == "distribution" and outputs > 1:
            t[0, 0] = 0
        t = t / t.sum(axis=1, keepdims=True)
    return jnp.asarray(t, dtype)


def problem(network, loss, seed=0, examples=4, dtype=jnp.float64):
    """(params, inputs, targets) for a network and a loss."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return (
        random_params(network, keys[0], dtype),
        inputs_for(network, keys[1], examples, dtype),
        targets_for(loss, keys[2], examples, network.output.size, dtype),
    )


# Measures -------------------------------------------------------------------------------------------------------------


def norm(tree) -> float:
    """The Euclidean norm of all leaves together, in float64."""
    leaves = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(sum((leaf**2).sum() for leaf in leaves)))


def relative_error(tree_a, tree_b) -> float:
    """||a - b|| / ||b|| over all leaves; the structures must be the same. 0 where both are 0."""
    assert jax.tree.structure(tree_a) == jax.tree.structure(tree_b)
    for a, b in zip(jax.tree.leaves(tree_a), jax.tree.leaves(tree_b), strict=True):
        assert a.shape == b.shape, (a.shape, b.shape)
    wide = partial(jax.tree.map, lambda x: np.asarray(x).astype(np.float64))
    difference = norm(jax.tree.map(np.subtract, wide(tree_a), wide(tree_b)))
    return difference / (norm(tree_b) or 1.0)


# The reference: transfer functions, one neuron at a time --------------------------------------------------------------


def _constants(name):
    return [part.strip() for part in re.search(r"\((.*)\)", name).group(1).split(",")] if "(" in name else []


_GATES = {
    "glu": lambda x: 1 / (1 + np.exp(-x)),
    "swiglu": lambda x: x / (1 + np.exp(-x)),
    "geglu": lambda x: x * math.erfc(-x / np.sqrt(2)) / 2,
}


def reference_activation(activation, n, theta):
    """a (S,) for the net inputs n (N,) of one example; `theta` {name: (S,) or (1,)}."""
    base, constants = activation.name.partition("(")[0], _constants(activation.name)
    if base == "softmax":
        powers = [np.exp(x - max(n, key=np.real).real) for x in n]
        return [power / sum(powers) for power in powers]
    if base == "maxout":
        k = int(constants[0])
        return [max(n[i : i + k], key=np.real) for i in range(0, len(n), k)]
    if base in _GATES:
        return [_GATES[base](n[i]) * n[i + 1] for i in range(0, len(n), 2)]
    if base == "prelu":
        slopes = [theta["slope"][i % len(theta["slope"])] for i in range(len(n))]
        return [x if x.real >= 0 else slope * x for x, slope in zip(n, slopes, strict=True)]
    function = {
        "linear": lambda x: x,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)) if x.real > 0 else np.exp(x) / (1 + np.exp(x)),
        "tanh": np.tanh,
        "relu": lambda x: x if x.real > 0 else 0 * x,
        "shifted_relu": lambda x: x if x.real > -1 else 0 * x - 1,
        "leaky_relu": lambda x: x if x.real > 0 else float(constants[0]) * x,
        "elu": lambda x: x if x.real > 0 else float(constants[0]) * np.expm1(x),
        "celu": lambda x: x if x > 0 else float(constants[0]) * np.expm1(x / float(constants[0])),
        "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * np.expm1(x)),
        "relu6": lambda x: min(max(x, 0.0), 6.0),
        "hard_tanh": lambda x: min(max(x, -1.0), 1.0),
        "hard_sigmoid": lambda x: min(max(x + 3.0, 0.0), 6.0) / 6,
        "softplus": lambda x: max(x, 0.0) + np.log1p(np.exp(-abs(x))),
        "softsign": lambda x: x / (1 + abs(x)),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
        "gelu": lambda x: (
            x
            * (
                (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
                if constants == ["tanh"]
                else math.erfc(-x / np.sqrt(2)) / 2
            )
        ),
        "hardlim": lambda x: 1.0 if x >= 0 else 0.0,
        "hardlims": lambda x: 1.0 if x >= 0 else -1.0,
    }[base]
    return [function(x) for x in n]


# The reference: performance functions of one example ------------------------------------------------------------------


def _t_ln(t, x):
    return t * np.log(x) if t != 0 else 0 * x


def _kl(p, q):
    return sum(_t_ln(pi, pi) - _t_ln(pi, qi) for pi, qi in zip(p, q, strict=True))


def _above_zero(x):
    return x if x.real > 0 else 0 * x


REFERENCE_LOSSES = {
    "mean_square_error": lambda a, t: sum((ti - ai) ** 2 for ai, ti in zip(a, t, strict=True)) / len(a),
    "sum_square_error": lambda a, t: sum((ti - ai) ** 2 for ai, ti in zip(a, t, strict=True)),
    "half_sum_square_error": lambda a, t: sum((ti - ai) ** 2 for ai, ti in zip(a, t, strict=True)) / 2,
    "cross_entropy": lambda a, t: -sum(_t_ln(ti, ai) for ai, ti in zip(a, t, strict=True)),
    "binary_cross_entropy": lambda a, t: (
        -sum(_t_ln(ti, ai) + _t_ln(1 - ti, 1 - ai) for ai, ti in zip(a, t, strict=True))
    ),
    "kullback_leibler": lambda a, t: _kl(t, a),
    "symmetric_kullback_leibler": lambda a, t: _kl(t, a) + _kl(a, t),
    "bhattacharyya": lambda a, t: -np.log(sum(np.sqrt(ti * ai) for ai, ti in zip(a, t, strict=True))),
    "hinge": lambda a, t: sum(_above_zero(1 - ti * ai) for ai, ti in zip(a, t, strict=True)),
    "multiclass_hinge": lambda a, t: sum(
        _above_zero(1 + ai - a[list(t).index(1)]) for ai, ti in zip(a, t, strict=True) if ti != 1
    ),
    "logistic": lambda a, t: sum(np.log(1 + np.exp(-ti * ai)) for ai, ti in zip(a, t, strict=True)),
}


def reference_loss(loss, outputs, targets, weights=None):
    """F for outputs and targets (Q, S): the examples' values, weighed, summed, and divided where it is a mean."""
    weights = [1.0] * len(outputs) if weights is None else [float(w) for w in weights]
    rows = zip(weights, outputs, targets, strict=True)
    total = sum(w * REFERENCE_LOSSES[loss.name](a, [float(x) for x in t]) for w, a, t in rows)
    return total / sum(weights) if loss.reduction == "mean" else total


# The reference: networks ----------------------------------------------------------------------------------------------


def reference_forward(network, params, inputs):
    """({layer: n (Q, N)}, {name: a (Q, S)}) as nested lists, neuron by neuron."""
    by_name = inputs if isinstance(inputs, dict) else {network.inputs[0][0]: inputs}
    activations = {name: [list(row) for row in np.asarray(x, np.float64)] for name, x in by_name.items()}
    examples = len(next(iter(activations.values())))
    net_inputs = {}
    for layer in network.layers:
        own = params[layer.name]
        net_inputs[layer.name], activations[layer.name] = [], []
        for q in range(examples):
            n = []
            for i in range(layer.size * layer.activation.pieces):
                x = 0.0
                for source in layer.sources:
                    row = own["weights"][source][i]
                    x += sum(w * p for w, p in zip(row, activations[source][q], strict=True))
                if "bias" in own:
                    x += own["bias"][i % len(own["bias"])]
                n.append(x)
            net_inputs[layer.name].append(n)
            activations[layer.name].append(reference_activation(layer.activation, n, own.get("learned", {})))
    return net_inputs, activations


def reference_objective(network, loss, params, inputs, targets, weights=None):
    """F, from nothing but sums, products and the definitions above."""
    _, activations = reference_forward(network, params, inputs)
    return reference_loss(loss, activations[network.output.name], np.asarray(targets), weights)


def reference_gradient(network, loss, params, inputs, targets, weights=None):
    """dF/dparams by the complex step: Im F(x + i h) / h, h = 1e-30, one parameter after the other.

    No difference is taken, so nothing cancels; and no derivative is written, so none can be wrong. A kink is decided
    by the real part, so this holds for every function here wherever it has a derivative.
    """
    params = jax.tree.map(lambda x: np.asarray(x).astype(np.float64).astype(np.complex128), params)
    leaves, structure = jax.tree.flatten(params)
    gradients = []
    for leaf in leaves:
        gradient = np.zeros(leaf.shape)
        for index in np.ndindex(leaf.shape):
            leaf[index] += 1e-30j
            gradient[index] = reference_objective(network, loss, params, inputs, targets, weights).imag / 1e-30
            leaf[index] = leaf[index].real
        gradients.append(gradient)
    return jax.tree.unflatten(structure, gradients)
