r"""Second derivatives by hand: Pearlmutter's R-operator carried through the forward pass and the recursion.

Letters: Q examples, S neurons of a layer, P parameters in all, v a direction in the space of the parameters.
The R-operator is the derivative along v (Pearlmutter 1994, Eq. 2):

.. math:: R\{x\} = \left. \frac{d}{dr} x(\mathrm{params} + r v) \right|_{r=0}

R{} of a product is the derivative of a product, so that each equation below is one of the recursion, differentiated.

Forward, over the sources j of layer m:

.. math:: \begin{aligned}
   R\{n^m\} &= \sum_j \left( V^{(m,j)} a^j + W^{(m,j)} R\{a^j\} \right) + v_b \\
   R\{a^m\} &= F'(n^m) \, R\{n^m\}
   \end{aligned}

Start: :math:`R\{s^M\}`, from the loss's second derivative.

Recursion, over the layers l that read m:

.. math:: \begin{aligned}
   R\{g^m\} &= \sum_l \left( R\{s^l\} W^{(l,m)} + s^l V^{(l,m)} \right) \\
   R\{s^m\} &= F'(n^m)^T R\{g^m\} + \left( F''(n^m) R\{n^m\} \right)^T g^m
   \end{aligned}

Contraction:

.. math:: \begin{aligned}
   R\left\{\frac{\partial F}{\partial W^{(m,j)}}\right\} &= R\{s^m\}^T a^j + (s^m)^T R\{a^j\} \\
   R\left\{\frac{\partial F}{\partial b^m}\right\} &= \sum_q R\{s^m_q\}
   \end{aligned}

The last is H v, exactly, for the cost of two gradients. Leaving out every term with s or g gives the Gauss-Newton
product. At a kink F'' is 0. Dropout drops no neuron.

Near a minimum x*, gradient descent multiplies :math:`x - x^*` by :math:`I - \alpha H`, and its part along an
eigenvector by :math:`1 - \alpha \lambda`: it converges where :math:`\alpha < 2 / \lambda_{\max}` (Hagan P3.3).

Running statistics of batch normalization are among the parameters, but F does not depend on them: their rows and
columns of a matrix are 0, and so are as many eigenvalues.

Matrix products run at full precision on every device. Compile what you call repeatedly. Matrices and vectors over all
parameters are in `jax.flatten_util.ravel_pytree`'s order.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from functional_nn import checks, linalg
from functional_nn.gradients import backprop, factors
from functional_nn.gradients.quantities import KroneckerFactors
from functional_nn.gradients.views import BLOCK, BUDGET, Examples, View, check_budget, fitting, in_blocks, prepare
from functional_nn.networks import activations, losses
from functional_nn.networks.losses import Loss, at_positions
from functional_nn.networks.network import Inputs, Network, Params, Trace, plus_bias, theta, weights_of
from functional_nn.precision import at_least_float32, full

Matrix = Literal["hessian", "gauss_newton"]
Product = Callable[[Params], Params]

__all__ = [
    "Estimate",
    "Extremes",
    "QuadraticModel",
    "extreme_eigenvalues",
    "gauss_newton_vector_product",
    "hessian",
    "hessian_vector_product",
    "kronecker_solve",
    "products",
    "quadratic_model",
    "stable_rate",
    "trace",
]


# Products -------------------------------------------------------------------------------------------------------------


def hessian_vector_product(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    vector: Params,
    *,
    weights: ArrayLike | None = None,
    block: int | None = BLOCK,
) -> Params:
    """Computes H v, with H the Hessian of F by the parameters, exactly, for the cost of about two gradients.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        vector: v, in the parameters' structure, shapes and dtype.
        weights: Weights of the examples (Q,), or of the outputs' positions `(Q, *P)`.
        block: Examples at once; None for all.

    Returns:
        H v, in the parameters' structure.

    Raises:
        ValueError: As `products`.
        TypeError: As `products`.

    References:
        Pearlmutter 1994 (Neural Computation 6, 147).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> fnn.curvature.hessian_vector_product(network, "cross_entropy", params, x, t, params)["layer1"]["bias"].shape
        (4,)
    """
    return products(network, loss, params, inputs, targets, weights=weights, block=block)(vector)


def gauss_newton_vector_product(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    vector: Params,
    *,
    weights: ArrayLike | None = None,
    block: int | None = BLOCK,
) -> Params:
    """Computes G v, with G = J^T H J the generalised Gauss-Newton matrix, as in `quantities.gauss_newton`.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        vector: v, in the parameters' structure, shapes and dtype.
        weights: Weights of the examples (Q,), or of the outputs' positions `(Q, *P)`.
        block: Examples at once; None for all.

    Returns:
        G v, in the parameters' structure.

    Raises:
        ValueError: As `products`.
        TypeError: As `products`.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> found = fnn.curvature.gauss_newton_vector_product(network, "cross_entropy", params, x, t, params)
        >>> found["layer1"]["bias"].shape
        (4,)
    """
    return products(network, loss, params, inputs, targets, "gauss_newton", weights=weights, block=block)(vector)


@full
def products(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    of: Matrix = "hessian",
    *,
    weights: ArrayLike | None = None,
    block: int | None = BLOCK,
) -> Product:
    """Returns the function v -> H v or v -> G v at one point, for many products with the same trace and sensitivities.

    A batch larger than `block` goes in blocks, whose traces are computed again for every product. All examples go at
    once where batch normalization mixes them.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        of: "hessian" or "gauss_newton".
        weights: Weights of the examples (Q,), or of the outputs' positions `(Q, *P)`.
        block: Examples at once; None for all.

    Returns:
        The product: it takes and returns vectors in the parameters' structure.

    Raises:
        ValueError: As `backpropagate`; for a loss or an activation without the second derivative that is needed; for a
            vector of other shapes than the parameters.
        TypeError: For a vector that has not the parameters' structure.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> multiply = fnn.curvature.products(network, "cross_entropy", params, x, t, "gauss_newton")
        >>> multiply(multiply(params))["layer2"]["bias"].shape
        (2,)
    """
    checks.one_of("products", "of", of, ("hessian", "gauss_newton"))
    if targets is None:
        raise ValueError("targets: second derivatives cannot do without")
    backprop.check_trainable(network)
    loss = losses.get(loss)
    examples, total = prepare(network, loss, params, inputs, targets, weights, apart=False)
    if any(activations.mixes_examples(layer.activation, network.net_shapes[layer.name]) for layer in network.layers):
        block = None
    multiply = _hessian_product if of == "hessian" else _gauss_newton_product
    if block is not None:
        block = fitting(network, params, checks.integer("products", "block", block, 1))
    if block is None or len(examples.part) <= block:
        prepared = multiply(View(network, loss, params, examples, total))
    else:

        def prepared(vector):
            def measure(some: Examples):
                return None, multiply(View(network, loss, params, some, total))(vector)

            return in_blocks(measure, examples, block)[1]

    @full
    def product(vector: Params) -> Params:
        if not isinstance(vector, dict):
            raise TypeError(
                f"vector: expected the parameters' structure, got {type(vector).__name__}; "
                "jax.flatten_util.ravel_pytree(params)[1] makes it from a flat one"
            )
        checks.same_shapes("vector", checks.shapes(vector), checks.shapes(params), "the parameters")
        for path, leaf in checks.by_path(vector).items():
            checks.numeric(f"vector: {path}", leaf, examples.part.dtype)
        return prepared(jax.tree.map(lambda v, p: jnp.asarray(v, p.dtype), vector, params))

    return product


class Tangents(NamedTuple):
    """R{n} and R{a}, `{layer: (Q, *P, S)}` each: the change of the forward pass along a direction."""

    net_inputs: dict[str, Array]
    activations: dict[str, Array]


def push_forward(network: Network, params: Params, trace: Trace, vector: Params) -> Tangents:
    """Differentiates the forward pass along `vector`.

    The inputs do not move, so nothing enters from them. What was dropped stays dropped.
    """
    r_n, r_a, a, n = {}, {}, trace.activations, trace.net_inputs
    for layer in network.layers:
        name, own, v = layer.name, params[layer.name], vector[layer.name]
        terms = [by.forward(a[source], v["weights"][source]) for source, by in layer.weighted]
        moving = [(source, by) for source, by in layer.reads if source in r_a]
        terms += [by.forward(r_a[source], weights_of(own, source, by)) for source, by in moving]
        r = sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(n[name])
        r_n[name] = plus_bias(r, v)
        mask, own_a = trace.dropped.get(name, (None, a[name]))
        r_a[name] = layer.activation.pushforward(
            r_n[name], theta(layer, v), n[name], own_a, trace.kept.get(name), theta(layer, own, a)
        )
        if mask is not None:
            r_a[name] = r_a[name] * mask
    return Tangents(r_n, r_a)


def _hessian_product(view: View) -> Product:
    network, params, trace, layers = view.network, view.params, view.trace, view.network.layers
    share = _share(view)
    swept = view.swept_from(trace, view.share)
    s, g = swept.sensitivities, dict(swept.output_gradients)
    read, curvature, start = _loss_curvature(view)
    for layer in layers:
        if layer.activation.second_order is None and not (layer is network.output and read == "net_inputs"):
            raise ValueError(
                f"layer {layer.name!r}: {layer.activation.name!r} has no second derivative, which Hessians need; give "
                "elementwise(..., second_derivative=...), or use the Gauss-Newton matrix"
            )
    if read == "outputs":
        g[network.output.name] = share * at_positions(view.loss.example_gradient, *start)

    def product(vector: Params) -> Params:
        tangents = push_forward(network, params, trace, vector)

        def pull(layer, r_g):
            name, r_n = layer.name, tangents.net_inputs[layer.name]
            if layer is network.output and read == "net_inputs":
                return share * at_positions(curvature.product, r_n, *start), {}
            if layer is network.output:
                r_g = share * at_positions(curvature.product, tangents.activations[name], *start)
            r_s, learned = backprop.pullback(layer, params, trace, r_g)
            bent, more = layer.activation.second_order(
                g[name],
                r_n,
                theta(layer, vector[name]),
                trace.net_inputs[name],
                trace.activations[name],
                trace.kept.get(name),
                theta(layer, params[name], trace.activations),
            )
            return r_s + bent, {
                each: factors.joined(f, more[each]) if each in more else f for each, f in learned.items()
            }

        def carry(layer, source, by, r_s):
            w, v = (weights_of(tree[layer.name], source, by) for tree in (params, vector))
            back = by.back(r_s, w, trace.activations[source])
            return back if w is None else back + by.back(s[layer.name], v, trace.activations[source])

        bent = backprop.recursion(network, pull, carry, lambda source: source in params)
        gradients = backprop.contract(network, params, trace, bent)
        for layer in layers:
            for source, by in layer.weighted:
                if source in params:
                    own = gradients[layer.name]["weights"]
                    own[source] = own[source] + by.outer(s[layer.name], tangents.activations[source])
        return gradients

    return product


def _gauss_newton_product(view: View) -> Product:
    network, params, trace, output = view.network, view.params, view.trace, view.network.output
    read, curvature = view.loss.convex_in(output.activation)
    x = (trace.net_inputs if read == "net_inputs" else trace.activations)[output.name]
    share = _share(view)

    def product(vector: Params) -> Params:
        tangents = push_forward(network, params, trace, vector)
        r_x = (tangents.net_inputs if read == "net_inputs" else tangents.activations)[output.name]
        bent = share * at_positions(curvature.product, r_x, x, view.examples.targets)
        started = (bent, {}) if read == "net_inputs" else backprop.pullback(output, params, trace, bent)
        return backprop.contract(network, params, trace, backprop.sweep(network, params, trace, started))

    return product


def _share(view: View) -> Array:
    return view.row_share.astype(view.dtype)[..., None]


def _loss_curvature(view: View):
    """Returns what the loss reads of the last layer in the gradient, its curvature there, and (that, targets)."""
    output, targets = view.network.output, view.examples.targets
    pair = view.loss.fused_with(output.activation)
    read, curvature = ("net_inputs", pair.curvature) if pair else ("outputs", view.loss.curvature)
    if curvature is None:
        raise ValueError(
            f"loss {view.loss.name!r} has no second derivative{' over ' + output.activation.name if pair else ''}, "
            "which Hessians need; give it curvature=losses.Curvature(product, root)"
        )
    x = (view.trace.net_inputs if pair else view.trace.activations)[output.name]
    return read, curvature, (x, targets)


# Matrices -------------------------------------------------------------------------------------------------------------


def hessian(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    block: int | None = BLOCK,
    budget: int = BUDGET,
) -> Array:
    """Computes the Hessian of F by all parameters of a small network, one product for each column.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        weights: Weights of the examples (Q,), or of the outputs' positions `(Q, *P)`.
        block: Examples at once; None for all.
        budget: Bytes that the matrix may take.

    Returns:
        (P, P), in `ravel_pytree`'s order.

    Raises:
        ValueError: If the matrix would take more than `budget` bytes, and as `products`.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> fnn.curvature.hessian(network, "cross_entropy", params, x, t).shape
        (8, 8)
    """
    flat, _ = ravel_pytree(params)
    needed = flat.size**2 * flat.dtype.itemsize
    check_budget(
        "hessian", needed, budget, "use hessian_vector_product, extreme_eigenvalues or trace, which need no matrix"
    )
    multiply = _on_vectors(products(network, loss, params, inputs, targets, weights=weights, block=block), params)
    # Row i is H e_i, and H is symmetric. As many at once as make good use of a product, and no more memory than that.
    return lax.map(multiply, jnp.eye(flat.size, dtype=flat.dtype), batch_size=64)


def _on_vectors(product: Product, params: Params) -> Callable[[Array], Array]:
    """Returns x -> A x for vectors (P,)."""
    unravel = ravel_pytree(params)[1]
    return lambda x: ravel_pytree(product(unravel(x)))[0]


class Extremes(NamedTuple):
    r"""The two extreme eigenvalues of a matrix and their eigenvectors.

    Attributes:
        smallest: Smallest eigenvalue, in at least float32.
        largest: Largest eigenvalue.
        residuals: (2,): :math:`\lVert A x - \lambda x \rVert` of each, measured. A has an eigenvalue within that
            distance.
        smallest_vector: Eigenvector x of the smallest, :math:`\lVert x \rVert = 1`, in the parameters' structure.
        largest_vector: Eigenvector of the largest.

    Example:
        See `extreme_eigenvalues`.

        >>> import functional_nn as fnn
        >>> fnn.curvature.Extremes._fields[:3]
        ('smallest', 'largest', 'residuals')
    """

    smallest: Array
    largest: Array
    residuals: Array
    smallest_vector: Params
    largest_vector: Params


@full
def extreme_eigenvalues(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    of: Matrix = "hessian",
    *,
    key: Array,
    steps: int = 40,
    weights: ArrayLike | None = None,
    block: int | None = BLOCK,
) -> Extremes:
    """Computes the extreme eigenvalues of the Hessian or Gauss-Newton matrix, by Lanczos from products alone.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        of: "hessian" or "gauss_newton".
        key: Random key for the first vector.
        steps: Number of products, at most P; with P of them the result is exact. Their vectors are kept, (steps, P),
            and orthogonalized in full. The residuals show what has converged.
        weights: Weights of the examples (Q,), or of the outputs' positions `(Q, *P)`.
        block: Examples at once; None for all.

    Returns:
        `Extremes`.

    Raises:
        ValueError: As `products`.
        TypeError: As `products`.

    References:
        Golub and Van Loan, Matrix Computations, 10.3.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> found = fnn.curvature.extreme_eigenvalues(network, "cross_entropy", params, x, t, key=jax.random.key(1))
        >>> bool(found.largest > 0)
        True
    """
    checks.prng_key("key", key)
    narrow = _on_vectors(products(network, loss, params, inputs, targets, of, weights=weights, block=block), params)
    flat, unravel = ravel_pytree(params)
    dtype = at_least_float32(flat.dtype)
    steps = min(checks.integer("extreme_eigenvalues", "steps", steps, 1), flat.size)

    def multiply(x):
        return narrow(x.astype(flat.dtype)).astype(dtype)

    values, vectors = _lanczos(multiply, flat.size, dtype, steps, key)
    values, vectors = values[jnp.array([0, -1])], vectors[:, jnp.array([0, -1])].T
    # Lanczos yields residuals too, but not what rounding has added to them.
    residuals = [_norm(multiply(x) - value * x) for value, x in zip(values, vectors, strict=True)]
    return Extremes(*values, jnp.stack(residuals), *(unravel(x.astype(flat.dtype)) for x in vectors))


def _lanczos(multiply: Callable[[Array], Array], size: int, dtype, steps: int, key: Array):
    """Returns Ritz values (k,) in rising order and vectors (P, k) after k steps."""
    draws, tiny = jax.random.split(key, steps + 1), jnp.finfo(dtype).tiny

    def without(basis, x):
        for _ in range(2):  # once leaves what rounding put back; twice is enough (Kahan and Parlett)
            x = x - basis.T @ (basis @ x)
        return x

    def step(i, carry):
        basis, alphas, betas = carry
        q = basis[i]
        w = multiply(q)
        alpha = jnp.vdot(q, w)
        scale = _norm(w)
        w = without(basis, w)
        beta = _norm(w)
        # An invariant subspace is complete: continue from a random vector outside it, to which nothing couples.
        complete = beta <= size**0.5 * jnp.finfo(dtype).eps * scale
        fresh = without(basis, jax.random.normal(draws[i + 1], (size,), dtype))
        following = jnp.where(complete, fresh / jnp.maximum(_norm(fresh), tiny), w / jnp.where(complete, 1, beta))
        beta = jnp.where(complete, 0, beta)
        basis = basis.at[i + 1].set(following, mode="drop")
        return basis, alphas.at[i].set(alpha), betas.at[i].set(beta)

    start = jax.random.normal(draws[0], (size,), dtype)
    basis = jnp.zeros((steps, size), dtype).at[0].set(start / jnp.linalg.norm(start))
    basis, alphas, betas = lax.fori_loop(0, steps, step, (basis, jnp.zeros(steps, dtype), jnp.zeros(steps, dtype)))
    tridiagonal = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    values, mixing = linalg.eigh(tridiagonal)
    return values, basis.T @ mixing


def _norm(x: Array) -> Array:
    # with a derivative of 0 at 0, where that of the root is not finite
    square = jnp.vdot(x, x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


class Estimate(NamedTuple):
    """A random estimate.

    Attributes:
        value: The estimate.
        standard_error: Its standard error.

    Example:
        See `trace`.

        >>> import functional_nn as fnn
        >>> fnn.curvature.Estimate(value=2.0, standard_error=0.1).value
        2.0
    """

    value: Array
    standard_error: Array


@full
def trace(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    of: Matrix = "hessian",
    *,
    key: Array,
    samples: int = 100,
    weights: ArrayLike | None = None,
    block: int | None = BLOCK,
) -> Estimate:
    """Estimates the trace of the Hessian or Gauss-Newton matrix: the mean of z^T A z over random signs z.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        of: "hessian" or "gauss_newton".
        key: Random key for the signs.
        samples: Number of products, at least 2.
        weights: Weights of the examples (Q,), or of the outputs' positions `(Q, *P)`.
        block: Examples at once; None for all.

    Returns:
        An `Estimate`.

    Raises:
        ValueError: For samples < 2, and as `products`.
        TypeError: As `products`.

    References:
        Hutchinson 1990 (Commun. Statist. Simul. 19, 433).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> found = fnn.curvature.trace(network, "cross_entropy", params, x, t, key=jax.random.key(1), samples=4)
        >>> bool(found.value > 0)
        True
    """
    checks.prng_key("key", key)
    checks.integer("trace", "samples", samples, 2)
    multiply = _on_vectors(products(network, loss, params, inputs, targets, of, weights=weights, block=block), params)
    flat, _ = ravel_pytree(params)

    def sample(sample_key: Array) -> Array:
        z = jax.random.rademacher(sample_key, flat.shape, flat.dtype)
        return jnp.vdot(z, multiply(z))

    values = lax.map(sample, jax.random.split(key, samples))
    return Estimate(jnp.mean(values), jnp.std(values, ddof=1) / samples**0.5)


def stable_rate(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    *,
    key: Array,
    steps: int = 40,
    weights: ArrayLike | None = None,
    block: int | None = BLOCK,
) -> Array:
    """Computes 2 / lambda_max of the Hessian, above which gradient descent moves away from a minimum (Hagan P3.3).

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        key: Random key, as in `extreme_eigenvalues`.
        steps: As in `extreme_eigenvalues`.
        weights: Weights of the examples (Q,), or of the outputs' positions `(Q, *P)`.
        block: Examples at once; None for all.

    Returns:
        The learning rate, a scalar; inf where no direction curves up.

    Raises:
        ValueError: As `products`.
        TypeError: As `products`.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> bool(fnn.curvature.stable_rate(network, "cross_entropy", params, x, t, key=jax.random.key(1)) > 0)
        True
    """
    extremes = extreme_eigenvalues(
        network, loss, params, inputs, targets, key=key, steps=steps, weights=weights, block=block
    )
    return _two_over(extremes.largest)


def _two_over(largest: Array) -> Array:
    return jnp.where(largest > 0, 2 / jnp.where(largest > 0, largest, 1), jnp.inf)


def kronecker_solve(
    network: Network, kronecker: dict[str, KroneckerFactors], damping: Array | float, vector: Params
) -> Params:
    r"""Multiplies a vector by the damped inverse of a Kronecker-factored Gauss-Newton matrix.

    For each layer :math:`(G + \sqrt\lambda / \pi \, I)^{-1} V (A + \pi \sqrt\lambda \, I)^{-1}`, with V the layer's
    part (S, A) of the vector, :math:`\lambda` the damping, and :math:`\pi = \sqrt{(\mathrm{tr} A / \dim A) /
    (\mathrm{tr} G / \dim G)}`, which divides the damping between the factors. A kernel is treated as a matrix (S, K). A
    parameter whose derivative is no outer product, such as a shared bias or learned slopes, is solved by its own damped
    block.

    Args:
        network: The network.
        kronecker: {layer: KroneckerFactors}, from `quantities.kfac` or `quantities.kflr`.
        damping: lambda > 0.
        vector: In the parameters' structure, such as the gradient.

    Returns:
        The solution, in the parameters' structure.

    References:
        Martens and Grosse 2015 (arXiv 1503.05671), Sec. 6.3.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> kronecker = fnn.quantities.kflr(network, "cross_entropy", *data)
        >>> gradient = fnn.value_and_grad(network, "cross_entropy")(*data)[1]
        >>> fnn.curvature.kronecker_solve(network, kronecker, 0.1, gradient)["layer1"]["bias"].shape
        (4,)
    """
    solution = {}
    for layer in network.layers:
        own, given = kronecker[layer.name], vector[layer.name]
        of_weights = [given["weights"][source] for source, _ in layer.weighted]
        columns, solved = [w.reshape(len(w), -1) for w in of_weights], {"weights": {}}
        has_bias = bool(columns) and layer.bias == "per_neuron"
        columns += [given["bias"][:, None]] if has_bias else []
        if columns:
            V = _solve_pair(own, damping, jnp.concatenate(columns, axis=1))
            edges = [sum(part.shape[1] for part in columns[: i + 1]) for i in range(len(columns) - 1)]
            split = jnp.split(V, edges, axis=1)
            for (source, _), w, x in zip(layer.weighted, of_weights, split, strict=False):
                solved["weights"][source] = x.reshape(w.shape)
            if has_bias:
                solved["bias"] = split[-1][:, 0]
        alone = {name: given[name] for name in own.others}

        def solve(block, x):
            return (_solve_pair if _is_pair(block) else _solve_alone)(block, damping, x)

        solution[layer.name] = solved | jax.tree.map(solve, own.others, alone, is_leaf=_is_pair)
    return jax.tree.map(lambda x, v: x.astype(v.dtype), {name: solution[name] for name in vector}, vector)


def _is_pair(node) -> bool:
    return isinstance(node, KroneckerFactors)


def _solve_pair(own: KroneckerFactors, damping: Array | float, V: Array) -> Array:
    A, G, dtype = own.activations, own.sensitivities, own.activations.dtype
    root = jnp.sqrt(jnp.asarray(damping, dtype))
    tiny = jnp.finfo(dtype).tiny
    shares = [jnp.maximum(jnp.trace(M) / len(M), tiny) for M in (A, G)]
    pi = jnp.sqrt(shares[0] / shares[1])
    V = _damped_solve(G, root / pi, V.astype(dtype))
    return _damped_solve(A, root * pi, V.T).T


def _solve_alone(block: Array, damping: Array | float, x: Array) -> Array:
    damping = jnp.asarray(damping, block.dtype)
    return _damped_solve(block, damping, x.astype(block.dtype).ravel()).reshape(x.shape)


def _damped_solve(matrix: Array, damping: Array, right: Array) -> Array:
    # (matrix + damping I)^-1 right, for a matrix without negative eigenvalues
    return linalg.positive_solve(matrix + damping * jnp.eye(len(matrix), dtype=matrix.dtype), right)


# The quadratic model --------------------------------------------------------------------------------------------------


class QuadraticModel(NamedTuple):
    r"""The quadratic model :math:`F(x) = c + d^T x + \frac12 x^T A x`, with x all parameters in one vector (P,).

    All numbers are in at least float32.

    Attributes:
        A: (P, P).
        d: (P,).
        c: Scalar.
        eigenvalues: (P,), of A, in rising order.
        eigenvectors: (P, P), in columns.
        minimum: (P,), x* = -A^-1 d. The shortest of them where A is singular; a stationary point, which is no minimum,
            where A has negative eigenvalues.
        stable_rate: 2 / lambda_max.

    Example:
        See `quadratic_model`.

        >>> import functional_nn as fnn
        >>> fnn.curvature.QuadraticModel._fields[:3]
        ('A', 'd', 'c')
    """

    A: Array
    d: Array
    c: Array
    eigenvalues: Array
    eigenvectors: Array
    minimum: Array
    stable_rate: Array

    @full
    def value(self, x: Array) -> Array:
        """Returns F(x) for x (P,)."""
        return self.c + self.d @ x + x @ self.A @ x / 2


@full
def quadratic_model(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    *,
    budget: int = BUDGET,
) -> QuadraticModel:
    """Computes the second-order Taylor model of F about `params`, in absolute x (Hagan Eq. 3.10 and 3.19-3.23).

    For a linear layer under a square error it is F itself, wherever it is expanded. In `ravel_pytree`'s order, a
    layer's bias comes before its weights.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        budget: Bytes that the matrix may take.

    Returns:
        A `QuadraticModel`.

    Raises:
        ValueError: As `hessian`.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((1, 1), ("linear",), bias="none")
        >>> params, x, t = network.init(jax.random.key(0)), jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
        >>> model = fnn.curvature.quadratic_model(network, "half_sum_square_error", params, x, t)
        >>> [round(float(value), 4) for value in model.minimum]
        [2.0]
    """
    A = hessian(network, loss, params, inputs, targets, budget=budget)
    value, gradients = backprop.value_and_grad(network, loss)(params, inputs, targets)
    x, g = ravel_pytree(params)[0], ravel_pytree(gradients)[0]
    d = g - A @ x
    A, d, x, g, value = (each.astype(at_least_float32(A.dtype)) for each in (A, d, x, g, value))
    eigenvalues, eigenvectors = linalg.eigh(A)
    flat = jnp.abs(eigenvalues) <= len(x) * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(eigenvalues))
    along = jnp.where(flat, 0, -(eigenvectors.T @ d) / jnp.where(flat, 1, eigenvalues))
    return QuadraticModel(
        A, d, value - g @ x + x @ A @ x / 2, eigenvalues, eigenvectors, eigenvectors @ along, _two_over(eigenvalues[-1])
    )
