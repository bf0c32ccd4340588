"""What the tests of quantities share: a network of all kinds of layers, and every quantity by its autodiff definition.

The definitions see a network only through `jax.grad`, `jax.jacobian` and `jax.hessian` of plain JAX, flatten the
results to matrices (Q, P) and (Q, S, P), and continue in NumPy. Programs that meet many shapes only once are compiled
whole, which takes a third of the time that their operations take one by one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from cases import relative_error
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn import quantities

TOLERANCE = 1e-10


MAX_NORM = 0.3


# one network whose layers have all that layers may have, for what needs no product of cases
NETWORK = fnn.graph(
    inputs={"p1": 2, "p2": 3},
    layers=[
        fnn.Layer("first", 4, "tanh", ("p1",)),
        fnn.Layer("second", 2, "prelu(layer)", ("first", "p2"), bias="shared"),
        fnn.Layer("third", 4, "prelu", ("second", "first", "p1"), bias="none"),
        fnn.Layer("fourth", 2, "maxout", ("third",)),
        fnn.Layer("output", 3, "softmax", ("fourth", "first", "p2")),
    ],
)


LOSS = fnn.losses.cross_entropy()


KEY = jax.random.key(7)


def rows(tree, lead=1):
    """A tree of (Q, ..., *shape) as one NumPy array (Q, ..., P), in `ravel_pytree`'s order."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def each_gradient(network, loss, params, inputs, targets):
    """(Q, P): jax.grad of one example's loss after the other."""
    objective = fnn.objective(network, fnn.losses.get(f"{loss.name}(sum)"))

    def alone(params, x, t):
        return objective(params, jax.tree.map(lambda v: v[None], x), t[None])

    return rows(jax.jit(jax.vmap(jax.grad(alone), (None, 0, 0)))(params, inputs, targets))


def each_jacobian(network, read, params, inputs):
    """(Q, S, P): jax.jacobian of the last layer's outputs or net inputs."""

    def alone(params, x):
        trace = network.forward(params, jax.tree.map(lambda v: v[None], x))
        return getattr(trace, {"outputs": "activations"}.get(read, read))[network.output.name][0]

    return rows(jax.jit(jax.vmap(jax.jacrev(alone), (None, 0)))(params, inputs), 2)


def each_curvature(network, loss, read, params, inputs, targets):
    """(Q, S, S): jax.hessian of one example's loss by the outputs or net inputs of the last layer."""
    name = network.output.name

    def value(x, t):
        if read == "net_inputs":
            return loss.fused_with(network.output.activation).value(x[None], t[None])[0]
        return loss.example_value(x[None], t[None])[0]

    def curvature(params, inputs, targets):
        trace = network.forward(params, inputs)
        read_at = (trace.net_inputs if read == "net_inputs" else trace.activations)[name]
        return jax.vmap(jax.hessian(value))(read_at, targets)

    return np.asarray(jax.jit(curvature)(params, inputs, targets))


def each_sensitivity(network, function, params, inputs):
    """{layer: d function(trace) / dn}, from autodiff by an offset of zeros; function gives (Q,) or (Q, S)."""
    count = len(jax.tree.leaves(inputs)[0])
    zeros = {layer.name: jnp.zeros((count, layer.rows)) for layer in network.layers}
    found = jax.jit(jax.jacrev(lambda offsets: function(network.forward(params, inputs, offsets))))(zeros)
    # d of example q by the offset of example q
    return {name: np.asarray(jnp.einsum("q...qs->q...s", value)) for name, value in found.items()}


def share_of(loss, weights):
    """(part (Q,), share (Q,)) by hand: the parts sum to 1; the shares make up F."""
    weights = np.asarray(weights, np.float64)
    part = weights / weights.sum()
    return part, part if loss.reduction == "mean" else weights


def definitions(network, loss, params, inputs, targets, weights=None):
    """{name: what the quantity is}, NumPy arrays that are flat in the parameters."""
    count = len(targets)
    part, share = share_of(loss, np.ones(count) if weights is None else weights)
    g = each_gradient(network, loss, params, inputs, targets)
    norms = np.linalg.norm(g, axis=1)
    mean = part @ g
    of, _ = loss.convex_in(network.output.activation)
    J = each_jacobian(network, "outputs", params, inputs)
    Jn = each_jacobian(network, "net_inputs", params, inputs)
    V = Jn if of == "net_inputs" else J
    H = each_curvature(network, loss, of, params, inputs, targets)
    G = np.einsum("q,qcp,qcd,qdr->pr", share, V, H, V)
    objective = fnn.objective(network, loss)
    weighing = () if weights is None else (weights,)
    gradient, input_gradients = jax.jit(jax.grad(objective, (0, 1)))(params, inputs, targets, *weighing)
    return {
        "per_example_gradients": g,
        "per_example_norms": norms,
        "inner_products": g @ g.T,
        "input_gradients": input_gradients,
        "gradient": flat(gradient),
        "clipped_gradient": (share * np.minimum(1, MAX_NORM / np.maximum(norms, 1e-300))) @ g,
        "second_moment": part @ g**2,
        "variance": part @ (g - mean) ** 2,
        "jacobian": J,
        "tangent_kernel": np.einsum("qcp,rdp->qrcd", J, J),
        "tangent_kernel_trace": np.einsum("qcp,rcp->qr", J, J),
        "gauss_newton_diagonal": np.diag(G),
        "gauss_newton": G,
    }


def measured(network, loss, params, inputs, targets, weights=None, **settings):
    """Returns the library's own, flattened in the same way."""
    names = (
        "per_example_gradients",
        "per_example_norms",
        "inner_products",
        "input_gradients",
        "gradient",
        "second_moment",
        "clipped_gradient",
        "variance",
        "jacobian",
        "tangent_kernel",
        "tangent_kernel_trace",
        "gauss_newton_diagonal",
        "gauss_newton",
    )

    @jax.jit
    def compute(params, inputs, targets, weights):
        return quantities.compute(
            network, loss, params, inputs, targets, names, weights=weights, max_norm=MAX_NORM, **settings
        )

    found = compute(params, inputs, targets, weights)
    lead = {"per_example_gradients": 1, "jacobian": 2}
    whole = {"per_example_norms", "inner_products", "tangent_kernel", "tangent_kernel_trace", "gauss_newton"}
    return {
        name: value
        if name in whole
        else by_input(network, value)
        if name == "input_gradients"
        else rows(value, lead[name])
        if name in lead
        else flat(value)
        for name, value in found.items()
    }


def by_input(network, found):
    return found if len(network.inputs) > 1 else found[network.inputs[0][0]]


def assert_equal(found, expected, tolerance=TOLERANCE):
    for name, value in expected.items():
        error = relative_error(jax.tree.map(np.asarray, found[name]), jax.tree.map(np.asarray, value))
        assert error <= tolerance, (name, error)
