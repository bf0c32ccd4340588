"""Quantities of each example: its loss, its gradient, norms and inner products of gradients, input gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from functional_nn.gradients import backprop, factors
from functional_nn.gradients.quantities.declaring import Whole, register
from functional_nn.gradients.views import View, block_order
from functional_nn.networks.network import Params


def norms(view: View) -> Array:
    """Returns `|g_q|`, (Q,)."""
    return jnp.sqrt(sum(layer_squares(view.gradients).values()))


def layer_squares(factored: Params) -> dict[str, Array]:
    """Returns {layer: `|g_q|^2` (Q,)} of the layers that have parameters."""
    leaves = {name: factors.leaves(own) for name, own in factored.items()}
    return {name: sum(map(factors.square_norms, own)) for name, own in leaves.items() if own}


@register()
def per_example_losses(view: View) -> Array:
    """Returns the loss of every example.

    Returns:
        F_q, (Q,).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.per_example_losses(network, "cross_entropy", *data).shape
        (6,)
    """
    values = backprop.example_losses(view.network, view.loss, view.trace, view.examples.targets)
    return view.loss.of_example(values, view.examples.positions)


@register(
    elements=lambda whole: whole.count * whole.size,
    instead="per_example_norms, inner_products, clipped_gradient and variance never form them; or give fewer examples",
)
def per_example_gradients(view: View) -> Params:
    """Returns the gradient of every example's own loss.

    Returns:
        g_q in the parameters' structure, with Q in front: (Q, S, R) for weights, (Q, S) for a bias.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.per_example_gradients(network, "cross_entropy", *data)["layer1"]["weights"]["input"].shape
        (6, 4, 3)
    """
    return factors.shaped(factors.each(factors.formed, view.gradients), view.params, view.part.shape)


@register()
def per_example_norms(view: View) -> Array:
    """Returns the norm of every example's gradient without forming any gradient.

    Returns:
        `|g_q|`, (Q,), at least float32.

    References:
        Goodfellow 2015 (arXiv 1510.01799), here for graphs and shared parameters.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.per_example_norms(network, "cross_entropy", *data).shape
        (6,)
    """
    return norms(view)


@register()
def per_example_layer_norms(view: View) -> dict[str, Array]:
    """Returns the norm of each layer's part of every example's gradient.

    Returns:
        {layer: (Q,)}, for layers that have parameters; at least float32.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> sorted(fnn.quantities.per_example_layer_norms(network, "cross_entropy", *data))
        ['layer1', 'layer2']
    """
    return jax.tree.map(jnp.sqrt, layer_squares(view.gradients))


def paired(products: Callable, first: Params, second: Params, block: int | None) -> Array:
    """Returns the sum over the parameters of products(rows of first, second), some rows at a time: (Q, Q', ...)."""

    def rows(some):
        return sum(products(f, g) for f, g in zip(factors.leaves(some), factors.leaves(second), strict=True))

    count = len(factors.leaves(first)[0].left)
    order = block_order(count, block)
    if len(order) == 1:
        return rows(first)
    blocks = lax.map(lambda at: rows(jax.tree.map(lambda x: x[at], first)), jnp.asarray(order))
    return blocks.reshape(-1, *blocks.shape[2:])[:count]


def _all_pairs(factored: Params, whole: Whole) -> Array:
    return paired(factors.inner_products, factored, factored, whole.block)


@register(
    finish=_all_pairs,
    elements=lambda whole: whole.count**2,
    instead="give fewer examples",
)
def inner_products(view: View) -> Params:
    """Returns the inner products of all pairs of examples' gradients without forming any gradient.

    Returns:
        g_q . g_r, (Q, Q).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.inner_products(network, "cross_entropy", *data).shape
        (6, 6)
    """
    return view.gradients


@register()
def input_gradients(view: View) -> dict[str, Array]:
    """Returns dF/dp for every input p, each example's share of F included, as `backpropagate` does.

    Returns:
        `{input: (Q, *P, R)}`; tokens are left out.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.input_gradients(network, "cross_entropy", *data)["input"].shape
        (6, 3)
    """
    gradients = backprop.of_inputs(view.network, view.swept)
    return {name: factors.over_rows(g, view.share) for name, g in gradients.items()}
