"""What second-order methods ask of a network, answered by hand: its own recursion, R-operator and sweeps.

Letters: Q examples, S outputs, P parameters, N = Q S residuals. Each answer goes through the same functions as the
quantities of `fnn.quantities` and `fnn.curvature`, where their equations stand.

Square errors are F = sum_q share_q c sum_i (a_i - t_i)^2, share_q the weight of example q in F: F = r^T r with the
residuals r_qi = sqrt(share_q c) (a_i - t_i), and their Jacobian has the rows sqrt(share_q c) da_i/dparams, swept back
from the unit vectors of the outputs (Marquardt sensitivities). J J^T is their tangent kernel.
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
from functional_nn.registry import cached

_ALL = 2**62  # the methods keep a budget of their own


def problem(
    network: Network,
    loss: Loss | str,
    inputs: Inputs,
    targets: Array,
    *,
    weights: Array | None = None,
    regularizer: Regularizer | str | None = None,
) -> Problem:
    """A network's training as a problem for `optimizers.minimize`: F(params) on inputs (Q, R) and targets (Q, S).

    weights (Q,): of the examples. Residuals, whose squares sum to F, are there for square errors without a
    regularizer: sqrt(share_q c) (a - t), their Jacobian by one backward sweep of S Marquardt sensitivities an example
    (Hagan and Menhaj 1994, Eq. 35-37; NND2 12). Gauss-Newton products and Kronecker factors are there for every loss
    that is convex in what Gauss-Newton linearizes. No neuron can be dropped.

    >>> import jax, functional_nn as fnn
    >>> network = fnn.multilayer((1, 5, 1), ("tanh", "linear"))
    >>> x = jax.numpy.linspace(-1, 1, 21)[:, None]
    >>> sine = fnn.training.problem(network, "mean_square_error", x, jax.numpy.sin(3 * x))
    >>> found = fnn.optimizers.minimize(sine, "levenberg_marquardt", network.init(jax.random.key(0)), goal=1e-4)
    >>> found.status
    'goal'

    Raises ValueError as `backpropagate`, and for a network with dropout or batch normalization.
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
    """(inputs, targets, weights or None) -> the problem, unchecked; equal networks and losses share its functions."""
    if network.drops:
        raise ValueError(
            "network: with dropout, F is another function at every evaluation; second-order methods need one without, "
            "or use a first-order method"
        )
    for layer in network.layers:
        if layer.activation.running:
            raise ValueError(
                f"layer {layer.name!r}: second-order methods look at F many times a step, each time at other running "
                f"statistics of {layer.activation.name}; use a first-order method, or a norm of each example's own "
                "such as 'group_norm'"
            )
    value_and_gradient = backprop.value_and_grad(network, loss)  # refuses what cannot be trained
    objective = backprop.objective(network, loss)
    regularizer = None if regularizer is None else regularizers.get(regularizer)

    def value(params, data):
        found = objective(params, *data)
        return found if regularizer is None else found + regularizer.value(params)

    def with_gradient(params, data):
        found, gradient = value_and_gradient(params, *data)
        if regularizer is None:
            return found, gradient
        return found + regularizer.value(params), jax.tree.map(jnp.add, gradient, regularizer.gradient(params))

    def product(of: curvature.Matrix):
        def prepared(params, data):
            inputs, targets, weights = data
            multiply = curvature.products(network, loss, params, inputs, targets, of, weights=weights)
            if regularizer is None:
                return multiply
            bend = jax.linearize(regularizer.gradient, params)[1]
            return lambda vector: jax.tree.map(jnp.add, multiply(vector), bend(vector))

        return prepared

    def hessian(params, data):
        inputs, targets, weights = data
        found = curvature.hessian(network, loss, params, inputs, targets, weights=weights, budget=_ALL)
        if regularizer is None:
            return found
        x, unravel = ravel_pytree(params)
        return found + jax.jacfwd(lambda x: ravel_pytree(regularizer.gradient(unravel(x)))[0])(x)

    def square_gradients(params, data):
        inputs, targets, weights = data
        return quantities.second_moment(network, loss, params, inputs, targets, weights=weights)

    def factors(params, data):
        inputs, targets, weights = data
        return quantities.kflr(network, loss, params, inputs, targets, weights=weights, budget=_ALL)

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
    """Residuals, Jacobian and kernel of a loss that is a sum of squares."""

    def scaled(params, data):
        """a - t, and the root of what the squares count for, (Q, *P, 1)."""
        view = View(network, loss, params, *prepare(network, loss, params, *data))
        a = view.trace.activations[network.output.name]
        scale = jnp.sqrt(view.row_share * loss.square_weight(network.output.size)).astype(a.dtype)[..., None]
        return a - view.examples.targets, scale, view.trace

    def residuals(params, data):
        error, scale, _ = scaled(params, data)
        return (scale * error).reshape(-1)

    def jacobian(params, data):
        error, scale, _ = scaled(params, data)
        rows = quantities.jacobian(network, None, params, data[0], budget=_ALL)
        J = jnp.concatenate([leaf.reshape(error.size, -1) for leaf in jax.tree.leaves(rows)], axis=1)
        scale = jnp.broadcast_to(scale, error.shape).reshape(-1)
        return scale * error.reshape(-1), scale[:, None] * J

    def kernel(params, data):
        error, scale, trace = scaled(params, data)
        K = quantities.tangent_kernel(network, None, params, data[0], budget=_ALL)
        K = jnp.swapaxes(K.reshape(len(error), len(error), *(error[0].size,) * 2), 1, 2).reshape(error.size, error.size)
        flat = jnp.broadcast_to(scale, error.shape).reshape(-1)

        def pull(y):
            started = backprop.pullback(network.output, params, trace, scale * y.reshape(error.shape))
            return backprop.contract(network, params, trace, backprop.sweep(network, params, trace, started))

        return flat * error.reshape(-1), flat[:, None] * K * flat[None, :], pull

    return {"residuals": residuals, "jacobian": jacobian, "kernel": kernel}
