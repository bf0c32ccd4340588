"""The generalised Gauss-Newton matrix: its diagonal, exact or sampled, and the whole matrix."""

import jax.numpy as jnp
from jax import Array

from functional_nn.gradients import factors
from functional_nn.gradients.quantities.declaring import register
from functional_nn.gradients.quantities.kernels import width
from functional_nn.gradients.quantities.sums import second_moments
from functional_nn.gradients.views import View
from functional_nn.networks.network import Params


@register(adds=True)
def gauss_newton_diagonal(view: View) -> Params:
    """Returns the diagonal of the generalised Gauss-Newton matrix of F, from S sweeps.

    The matrix is :math:`J^T H J`, with H the second derivative of the loss by what it is convex in: the last layer's
    net inputs if they are fused (softmax, sigmoid), otherwise the outputs. For cross-entropy over softmax and one-hot
    targets it is the Fisher matrix.

    Returns:
        The diagonal, in the parameters' structure.

    Raises:
        ValueError: For a loss without second derivative.

    References:
        Schraudolph 2002 (Neural Computation 14, 1723).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.gauss_newton_diagonal(network, "cross_entropy", *data)["layer1"]["bias"].shape
        (4,)
    """
    return view.over_curvature(lambda columns: second_moments(columns, None, view.params))


@register(adds=True)
def sampled_gauss_newton_diagonal(view: View, *, key: Array, samples: int = 1) -> Params:
    """Estimates the diagonal of the Gauss-Newton matrix, without bias, from random signs on the root of H.

    Args:
        key: Random key.
        samples: Number of sweeps.

    Returns:
        The estimate, in the parameters' structure.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> key = jax.random.key(1)
        >>> found = fnn.quantities.sampled_gauss_newton_diagonal(network, "cross_entropy", *data, key=key)
        >>> found["layer1"]["bias"].shape
        (4,)
    """
    return second_moments(view.sampled_curvature(key, samples), None, view.params)


@register(
    adds=True,
    elements=lambda whole: (
        whole.size * (whole.size + min(whole.count, whole.block or whole.count) * width(whole.network, "outputs"))
    ),
    instead="use curvature.gauss_newton_vector_product, gauss_newton_diagonal or kflr, or smaller blocks",
)
def gauss_newton(view: View) -> Array:
    """Returns the whole generalised Gauss-Newton matrix of a small network.

    Returns:
        (P, P), in `ravel_pytree`'s order.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> fnn.quantities.gauss_newton(network, "cross_entropy", *data).shape
        (26, 26)
    """

    def squares(columns):
        each = [factors.formed(f) for f in factors.leaves(columns)]
        return factors.gram(jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in each], axis=2))

    return view.over_curvature(squares)
