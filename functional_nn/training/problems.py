r"""Networks as problems for second-order methods: values, gradients, products and factors, all hand-written.

Letters: Q examples, S outputs, P parameters, N = Q S residuals. Everything is computed by the same functions as the
quantities of `fnn.quantities` and `fnn.curvature`, which state the equations.

A square error is a sum of squares of residuals,

.. math:: F = \sum_q w_q c \sum_i (a_{qi} - t_{qi})^2 = r^T r, \qquad r_{qi} = \sqrt{w_q c} \, (a_{qi} - t_{qi})

where :math:`w_q` is the share of example q in F. The Jacobian of the residuals has the rows

.. math:: \sqrt{w_q c} \, \frac{\partial a_{qi}}{\partial x}

which are swept back from the unit vectors of the outputs (Marquardt sensitivities). :math:`J J^T` is their tangent
kernel.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from functional_nn import checks
from functional_nn.gradients import backprop, curvature, quantities
from functional_nn.gradients.views import View, prepare
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network
from functional_nn.optimizers import regularizers
from functional_nn.optimizers.regularizers import Regularizer
from functional_nn.optimizers.second_order import Functions, Problem
from functional_nn.rows import cached

_NO_LIMIT = 2**62  # the methods have their own memory budgets


def problem(
    network: Network,
    loss: Loss | str,
    inputs: Inputs,
    targets: Array,
    *,
    weights: Array | None = None,
    regularizer: Regularizer | str | None = None,
) -> Problem:
    """Returns a network's training as a problem for `optimizers.minimize`: F(params) on all examples.

    Square errors without a regularizer have residuals, whose squares sum to F, and their Jacobian, by one backward
    sweep of S Marquardt sensitivities an example. Gauss-Newton products and Kronecker factors exist for every loss that
    is convex in the outputs that Gauss-Newton linearizes.

    Args:
        network: A network without dropout and batch normalization.
        loss: The loss, or its name.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`.
        weights: The weights of the examples, (Q,). All 1 by default.
        regularizer: A penalty that is added to F, or its name. None by default.

    Returns:
        An `optimizers.Problem`.

    Raises:
        ValueError: As `backpropagate`, and for a network with dropout or batch normalization.
        TypeError: If `network` is not a network, or the data are not arrays of numbers.

    References:
        Hagan and Menhaj 1994, Eq. 35-37. Hagan, Demuth and Beale, Neural Network Design, 2nd ed., chapter 12.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((1, 5, 1), ("tanh", "linear"))
        >>> x = jax.numpy.linspace(-1, 1, 21)[:, None]
        >>> sine = fnn.training.problem(network, "mean_square_error", x, jax.numpy.sin(3 * x))
        >>> result = fnn.optimizers.minimize(sine, "levenberg_marquardt", network.init(jax.random.key(0)), goal=1e-4)
        >>> result.status
        'goal'
    """
    if not isinstance(network, Network):
        raise TypeError(f"network: expected fnn.multilayer(...) or fnn.graph(...), got {type(network).__name__}")
    loss = losses.get(loss)
    for name, x in checks.by_path({"inputs": inputs, "targets": targets, "weights": weights}).items():
        checks.numeric(name, x)
        checks.finite(name, x)
    loss.check_targets(targets)
    return of_batch(network, loss, regularizer)(inputs, targets, weights)


@functools.partial(cached, size=64)
def of_batch(network: Network, loss: Loss, regularizer: Regularizer | None = None) -> Callable[..., Problem]:
    """Returns (inputs, targets, weights or None) -> the problem, unchecked. Equal networks and losses share its
    functions.
    """
    if network.drops:
        raise ValueError(
            "network: with dropout, F is another function at every evaluation; use a network without dropout or a "
            "first-order method"
        )
    for layer in network.layers:
        if layer.activation.running:
            raise ValueError(
                f"layer {layer.name!r}: second-order methods evaluate F many times a step, each time with other "
                f"running statistics of {layer.activation.name}; use a first-order method, or a normalization of each "
                "example by itself such as 'group_norm'"
            )
    value_and_gradient = backprop.value_and_grad(network, loss)  # refuses networks that cannot be trained
    objective = backprop.objective(network, loss)
    regularizer = None if regularizer is None else regularizers.get(regularizer)

    def value(params, data):
        F = objective(params, *data)
        return F if regularizer is None else F + regularizer.value(params)

    def with_gradient(params, data):
        F, gradient = value_and_gradient(params, *data)
        if regularizer is None:
            return F, gradient
        return F + regularizer.value(params), jax.tree.map(jnp.add, gradient, regularizer.gradient(params))

    def product(matrix: curvature.Matrix):
        def products_at(params, data):
            inputs, targets, weights = data
            multiply = curvature.products(network, loss, params, inputs, targets, matrix, weights=weights)
            if regularizer is None:
                return multiply
            penalty_product = jax.linearize(regularizer.gradient, params)[1]
            return lambda vector: jax.tree.map(jnp.add, multiply(vector), penalty_product(vector))

        return products_at

    def hessian(params, data):
        inputs, targets, weights = data
        H = curvature.hessian(network, loss, params, inputs, targets, weights=weights, budget=_NO_LIMIT)
        if regularizer is None:
            return H
        x, unravel = ravel_pytree(params)
        return H + jax.jacfwd(lambda x: ravel_pytree(regularizer.gradient(unravel(x)))[0])(x)

    def square_gradients(params, data):
        inputs, targets, weights = data
        return quantities.second_moment(network, loss, params, inputs, targets, weights=weights)

    def factors(params, data):
        inputs, targets, weights = data
        return quantities.kflr(network, loss, params, inputs, targets, weights=weights, budget=_NO_LIMIT)

    def solve(kept, damping, vector):
        return curvature.kronecker_solve(network, kept, damping, vector)

    try:
        loss.convex_in(network.output.activation)
        convex = True
    except ValueError:
        convex = False
    functions = Functions(
        value,
        with_gradient,
        product("hessian"),
        product("gauss_newton") if convex else None,
        hessian,
        square_gradients=square_gradients,
        factors=factors if convex else None,
        solve=solve,
    )
    name = f"of a network under {loss.name}"
    if regularizer is not None:
        name += f" with {regularizer.name}"
    elif loss.square_weight is not None:
        functions = functions._replace(**_square_error(network, loss))
    return lambda inputs, targets, weights=None: Problem(functions, (inputs, targets, weights), name)


def _square_error(network: Network, loss: Loss) -> dict[str, Callable]:
    """The residuals, Jacobian and tangent kernel of a loss that is a sum of squares."""

    def scaled(params, data):
        """a - t, the square root of w_q c as (Q, *P, 1), and the trace."""
        view = View(network, loss, params, *prepare(network, loss, params, *data))
        a = view.trace.activations[network.output.name]
        scale = jnp.sqrt(view.row_share * loss.square_weight(network.output.size)).astype(a.dtype)[..., None]
        return a - view.examples.targets, scale, view.trace

    def residuals(params, data):
        error, scale, _ = scaled(params, data)
        return (scale * error).reshape(-1)

    def jacobian(params, data):
        error, scale, _ = scaled(params, data)
        rows = quantities.jacobian(network, None, params, data[0], budget=_NO_LIMIT)
        J = jnp.concatenate([leaf.reshape(error.size, -1) for leaf in jax.tree.leaves(rows)], axis=1)
        scale = jnp.broadcast_to(scale, error.shape).reshape(-1)
        return scale * error.reshape(-1), scale[:, None] * J

    def kernel(params, data):
        error, scale, trace = scaled(params, data)
        K = quantities.tangent_kernel(network, None, params, data[0], budget=_NO_LIMIT)
        K = jnp.swapaxes(K.reshape(len(error), len(error), *(error[0].size,) * 2), 1, 2).reshape(error.size, error.size)
        flat = jnp.broadcast_to(scale, error.shape).reshape(-1)

        def transposed_product(y):
            """J^T y."""
            sensitivities = backprop.pullback(network.output, params, trace, scale * y.reshape(error.shape))
            return backprop.contract(network, params, trace, backprop.sweep(network, params, trace, sensitivities))

        return flat * error.reshape(-1), flat[:, None] * K * flat[None, :], transposed_product

    return {"residuals": residuals, "jacobian": jacobian, "kernel": kernel}
