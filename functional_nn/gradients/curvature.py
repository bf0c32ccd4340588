"""Second derivatives by hand: Pearlmutter's R-operator carried through the forward pass and the recursion.

Letters: Q examples, S neurons of a layer, P parameters in all, v a direction in the space of the parameters;
R{x} = dx(params + r v)/dr at r = 0 (Pearlmutter 1994, Eq. 2). R{} of a product is a product's derivative, so that each
line below is one line of the recursion, differentiated:

    forward      R{n^m} = sum over its sources j of V^(m,j) a^j + W^(m,j) R{a^j}, plus v_b;  R{a^m} = F'(n^m) R{n^m}
    start        R{s^M}, from the loss's second derivative
    recursion    R{g^m} = sum over the layers l that read m of R{s^l} W^(l,m) + s^l V^(l,m)
                 R{s^m} = F'(n^m)^T R{g^m} + (F''(n^m) R{n^m})^T g^m
    contraction  R{dF/dW^(m,j)} = R{s^m}^T a^j + s^m^T R{a^j},  R{dF/db^m} = sum_q R{s^m}

and the last is H v, exactly, for the cost of two gradients. Leaving out every term with s or g gives the Gauss-Newton
product. At a kink, F'' is 0, and no neuron is dropped.

Near a minimum gradient descent multiplies x - x* by I - alpha H, its part along an eigenvector by 1 - alpha lambda: it
converges where alpha < 2 / lambda_max (Hagan P3.3).

Running statistics of batch normalization are among the parameters, and F does not depend on them: their rows and
columns of a matrix are 0, and so are as many eigenvalues.

Matrix products are of full precision on every device. Compile what you call again and again. Matrices and vectors over
all parameters are in `jax.flatten_util.ravel_pytree`'s order.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

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


# Products -------------------------------------------------------------------------------------------------------------


def hessian_vector_product(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: Array,
    vector: Params,
    *,
    weights: Array | None = None,
    block: int | None = BLOCK,
) -> Params:
    """H v in the parameters' structure, H = d2F/dparams2; vector: v, in that structure, shapes and dtype.

    Raises as `products`.
    """
    return products(network, loss, params, inputs, targets, weights=weights, block=block)(vector)


def gauss_newton_vector_product(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: Array,
    vector: Params,
    *,
    weights: Array | None = None,
    block: int | None = BLOCK,
) -> Params:
    """G v in the parameters' structure, G = J^T H J as in `quantities.gauss_newton`. Raises as `products`."""
    return products(network, loss, params, inputs, targets, "gauss_newton", weights=weights, block=block)(vector)


@full
def products(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: Array,
    of: Matrix = "hessian",
    *,
    weights: Array | None = None,
    block: int | None = BLOCK,
) -> Product:
    """v -> H v, or v -> G v: for many products at one point, whose trace and sensitivities are computed once.

    of: "hessian" or "gauss_newton". A batch larger than `block` goes in blocks, whose traces are made anew for every
    product; all at once where batch normalization mixes its examples. Raises ValueError as `backpropagate`, for a loss
    without the second derivative asked for, and for a vector of other shapes than the parameters'.
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
                "jax.flatten_util.ravel_pytree(params)[1] makes it of a flat one"
            )
        checks.same_shapes("vector", checks.shapes(vector), checks.shapes(params), "the parameters")
        for path, leaf in checks.by_path(vector).items():
            checks.numeric(f"vector: {path}", leaf, examples.part.dtype)
        return prepared(jax.tree.map(lambda v, p: jnp.asarray(v, p.dtype), vector, params))

    return product


class Tangents(NamedTuple):
    """R{n} and R{a}, {layer: (Q, *P, S)} each: what the forward pass changes by along a direction."""

    net_inputs: dict[str, Array]
    activations: dict[str, Array]


def push_forward(network: Network, params: Params, trace: Trace, vector: Params) -> Tangents:
    """The forward pass, differentiated along `vector`; nothing enters from the inputs, which do not move, and what was
    dropped stays dropped.
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
        moved = push_forward(network, params, trace, vector)

        def pull(layer, r_g):
            name, r_n = layer.name, moved.net_inputs[layer.name]
            if layer is network.output and read == "net_inputs":
                return share * at_positions(curvature.product, r_n, *start), {}
            if layer is network.output:
                r_g = share * at_positions(curvature.product, moved.activations[name], *start)
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
                    own[source] = own[source] + by.outer(s[layer.name], moved.activations[source])
        return gradients

    return product


def _gauss_newton_product(view: View) -> Product:
    network, params, trace, output = view.network, view.params, view.trace, view.network.output
    read, curvature = view.loss.convex_in(output.activation)
    x = (trace.net_inputs if read == "net_inputs" else trace.activations)[output.name]
    share = _share(view)

    def product(vector: Params) -> Params:
        moved = push_forward(network, params, trace, vector)
        r_x = (moved.net_inputs if read == "net_inputs" else moved.activations)[output.name]
        bent = share * at_positions(curvature.product, r_x, x, view.examples.targets)
        started = (bent, {}) if read == "net_inputs" else backprop.pullback(output, params, trace, bent)
        return backprop.contract(network, params, trace, backprop.sweep(network, params, trace, started))

    return product


def _share(view: View) -> Array:
    return view.row_share.astype(view.dtype)[..., None]


def _loss_curvature(view: View):
    """What of the last layer the loss reads in the gradient, its curvature there, and (that, targets)."""
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
    targets: Array,
    *,
    weights: Array | None = None,
    block: int | None = BLOCK,
    budget: int = BUDGET,
) -> Array:
    """d2F/dparams2 (P, P), a column for each parameter; for small networks.

    Raises ValueError where it would take more than `budget` bytes, and as `products`.
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
    # x -> A x for vectors (P,)
    unravel = ravel_pytree(params)[1]
    return lambda x: ravel_pytree(product(unravel(x)))[0]


class Extremes(NamedTuple):
    """smallest, largest: eigenvalues, in at least float32; residuals (2,): ||A x - lambda x|| of each, measured, than
    which the next eigenvalue of A is no farther; smallest_vector, largest_vector: their eigenvectors x, ||x|| = 1, in
    the parameters' structure.
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
    targets: Array,
    of: Matrix = "hessian",
    *,
    key: Array,
    steps: int = 40,
    weights: Array | None = None,
    block: int | None = BLOCK,
) -> Extremes:
    """The smallest and the largest eigenvalue of the Hessian or Gauss-Newton matrix, by Lanczos from products alone.

    key: for the start, a random vector. steps: products made, at most P of them, in which case all is exact; their
    vectors are kept, (steps, P), and orthogonalized in full (Golub and Van Loan, Matrix Computations, 10.3). What has
    converged is told by the residuals. Raises as `products`.
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
    # Lanczos tells residuals too, but not what rounding has added to them.
    residuals = [_norm(multiply(x) - value * x) for value, x in zip(values, vectors, strict=True)]
    return Extremes(*values, jnp.stack(residuals), *(unravel(x.astype(flat.dtype)) for x in vectors))


def _lanczos(multiply: Callable[[Array], Array], size: int, dtype, steps: int, key: Array):
    """Ritz values (k,) in rising order and vectors (P, k) after k steps."""
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
        # An invariant subspace is complete: go on from a random vector outside it, to which nothing couples.
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
    """A random estimate and its standard error."""

    value: Array
    standard_error: Array


@full
def trace(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: Array,
    of: Matrix = "hessian",
    *,
    key: Array,
    samples: int = 100,
    weights: Array | None = None,
    block: int | None = BLOCK,
) -> Estimate:
    """The trace of the Hessian or Gauss-Newton matrix: the mean of z^T A z over random signs z (Hutchinson 1990).

    samples: products made, at least 2. Raises as `products`.
    """
    checks.prng_key("key", key)
    checks.integer("trace", "samples", samples, 2)
    multiply = _on_vectors(products(network, loss, params, inputs, targets, of, weights=weights, block=block), params)
    flat, _ = ravel_pytree(params)

    def one(own_key):
        z = jax.random.rademacher(own_key, flat.shape, flat.dtype)
        return jnp.vdot(z, multiply(z))

    found = lax.map(one, jax.random.split(key, samples))
    return Estimate(jnp.mean(found), jnp.std(found, ddof=1) / samples**0.5)


def stable_rate(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    key: Array,
    steps: int = 40,
    weights: Array | None = None,
    block: int | None = BLOCK,
) -> Array:
    """2 / lambda_max of the Hessian: above it gradient descent moves away (Hagan P3.3); inf where nothing curves up.

    Options as `extreme_eigenvalues`. Raises as `products`.
    """
    found = extreme_eigenvalues(
        network, loss, params, inputs, targets, key=key, steps=steps, weights=weights, block=block
    )
    return _two_over(found.largest)


def _two_over(largest: Array) -> Array:
    return jnp.where(largest > 0, 2 / jnp.where(largest > 0, largest, 1), jnp.inf)


def kronecker_solve(network: Network, kronecker: dict, damping: Array | float, vector: Params) -> Params:
    """What the damped inverse of the Gauss-Newton matrix, as `quantities.kfac` or `kflr` factor it, makes of `vector`.

    Of each layer (G + sqrt(lambda) / pi I)^-1 V (A + pi sqrt(lambda) I)^-1, V its part (S, A), lambda the `damping`
    (> 0), which pi = sqrt((tr A / dim A) / (tr G / dim G)) shares out between the factors: Martens and Grosse 2015,
    Sec. 6.3; of a kernel, put as a matrix (S, K). What is no outer product, a shared bias or learned slopes, by its own
    damped block.
    """
    found = {}
    for layer in network.layers:
        own, given = kronecker[layer.name], vector[layer.name]
        of_weights = [given["weights"][source] for source, _ in layer.weighted]
        parts, solved = [w.reshape(len(w), -1) for w in of_weights], {"weights": {}}
        has_bias = bool(parts) and layer.bias == "per_neuron"
        parts += [given["bias"][:, None]] if has_bias else []
        if parts:
            V = _solve_pair(own, damping, jnp.concatenate(parts, axis=1))
            edges = [sum(part.shape[1] for part in parts[: i + 1]) for i in range(len(parts) - 1)]
            columns = jnp.split(V, edges, axis=1)
            for (source, _), w, x in zip(layer.weighted, of_weights, columns, strict=False):
                solved["weights"][source] = x.reshape(w.shape)
            if has_bias:
                solved["bias"] = columns[-1][:, 0]
        alone = {name: given[name] for name in own.others}

        def solve(block, x):
            return (_solve_pair if _is_pair(block) else _solve_alone)(block, damping, x)

        found[layer.name] = solved | jax.tree.map(solve, own.others, alone, is_leaf=_is_pair)
    return jax.tree.map(lambda x, v: x.astype(v.dtype), {name: found[name] for name in vector}, vector)


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
    """F(x) = c + d^T x + x^T A x / 2, x all parameters in one vector (P,).

    A (P, P), d (P,), c; eigenvalues (P,) of A in rising order, eigenvectors (P, P) in columns; minimum (P,): x* =
    -A^-1 d, the shortest of them where A is singular, and the stationary point, which is no minimum, where A has
    negative eigenvalues; stable_rate: 2 / lambda_max. In at least float32.
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
        """F(x) for x (P,)."""
        return self.c + self.d @ x + x @ self.A @ x / 2


@full
def quadratic_model(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    budget: int = BUDGET,
) -> QuadraticModel:
    """The second-order Taylor model of F about `params`, in absolute x: Hagan Eq. 3.10 and 3.19-3.23.

    Of a linear layer under a square error it is F itself, wherever it is expanded. In `ravel_pytree`'s order, a
    layer's bias stands before its weights. Raises as `hessian`.
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
