r"""An example's derivative by a parameter array in two factors, and the sums that are made of them.

Letters: Q examples, C directions swept back at once, S neurons of a layer, K of what one of them reads, T positions at
which a layer reads with the same weights.

By weights that are used once, example q's derivative is an outer product, :math:`s_q a_q^T`: left (Q, ..., S), right
(Q, K). By weights that are shared over positions it is a sum of them, :math:`\sum_t s_{qt} a_{qt}^T`: left (Q, ..., T,
S), right (Q, T, K). By a bias it is left itself, (Q, ..., N) for N numbers, and right is None. All axes of a kernel but
the first are the K of one neuron, joined into one; results take the parameter's own shape again.

Sums over the derivatives are computed in the cheaper of two ways, chosen from the shapes alone.

Gram: the products of positions, never the derivatives,

.. math:: \left\lVert \sum_t s_t a_t^T \right\rVert^2 = \sum_{t,u} (s_t \cdot s_u) (a_t \cdot a_u)

and in the same way for two examples. It is used where the S K numbers of a derivative are more than two sets of T
products of length S and of length K: :math:`T (S + K) \le S K` for one example, :math:`T^2 (S + K) \le S K` for two;
with one position always.

Formed: otherwise, and always for squares element by element, a few examples' derivatives at a time.

All sums but the gradient are at full precision on every device: with rounded products, eigenvalues of a Gram matrix and
square norms whose terms cancel may be below 0.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from functional_nn import platforms
from functional_nn.networks.connections import Connection, Factors, dense, rows
from functional_nn.networks.network import NOT_MOVED, Network, Params, Trace
from functional_nn.precision import full, wide
from functional_nn.reductions import over_columns

STRIP = 64  # columns of a symmetric product that go by themselves, at least


def total(f: Factors, parameter: Array, add: Callable[[Array], Array] = dense.total) -> Array:
    """Returns the gradient: the sum over all examples, in the parameter's shape.

    A bias's share is left `(Q, *P, S)`; the bias may serve several positions, or all neurons (1,). add: (Q, S) -> (S,).
    """
    if f.right is not None:
        strips = (dense.outer(rows(f.left), rows(right)) for right in _strips(f))
        return jnp.concatenate(list(strips), axis=-1).reshape(parameter.shape)
    if f.left.shape[1:] == parameter.shape:
        return add(f.left.reshape(len(f.left), -1)).reshape(parameter.shape)
    # for many positions XLA's own sum is faster, and needs no copy of them
    summed = add(f.left) if f.left.ndim == 2 else jnp.sum(f.left, axis=tuple(range(f.left.ndim - 1)))
    return summed if parameter.shape == summed.shape else jnp.sum(summed).reshape(1)


def of_examples(network: Network, params: Params, trace: Trace, s: dict[str, Array], learned: dict) -> Params:
    """Returns every example's derivative by every parameter, as `Factors` in the parameters' structure.

    It is made from a sweep's sensitivities and its learned parameters' shares. If the sweep went along C directions,
    these follow the examples' axis.
    """
    factored = {}
    for layer in network.layers:
        own, given = params[layer.name], s[layer.name]
        along = given.ndim - trace.net_inputs[layer.name].ndim  # 1 where there are directions
        weights = {source: _unfolded(by, given, trace.activations[source], along) for source, by in layer.weighted}
        factored[layer.name] = {"weights": weights}
        if layer.bias != "none":
            factored[layer.name]["bias"] = _share(Factors(given, None), own["bias"], along)
        if learned[layer.name]:
            shares = learned[layer.name].items()
            factored[layer.name]["learned"] = {name: _share(f, own["learned"][name], along) for name, f in shares}
        for name in NOT_MOVED:  # on which no example's loss depends
            if name in own:

                def nothing(x, lead=given.shape[: 1 + along]):
                    return Factors(jnp.zeros((*lead, x.size), x.dtype), None)

                factored[layer.name][name] = jax.tree.map(nothing, own[name])
    return factored


def _unfolded(by: Connection, s: Array, x: Array, along: int) -> Factors:
    # what is read is the same in all directions
    unfold = by.strips or by.unfold
    return Factors(*(jax.vmap(unfold, (1, None), (1, None)) if along else unfold)(s, x))


def _share(f: Factors, parameter: Array, along: int) -> Factors:
    # left (Q, [C,] *P, S) as the parameter's N numbers (Q, [C,] N), summed over the positions and neurons it serves
    if f.right is not None:
        return f
    left, lead = f.left, 1 + along
    if left.shape[lead:] != parameter.shape:
        positions = tuple(range(lead, left.ndim - 1))
        left = jnp.sum(left, axis=positions) if positions else left
        left = left if left.shape[lead:] == parameter.shape else jnp.sum(left, axis=-1, keepdims=True)
    return Factors(left.reshape(*left.shape[:lead], -1), None)


def scaled(f: Factors, scale: Array) -> Factors:
    """Returns each example's derivative times its scale (Q,)."""
    return f._replace(left=over_rows(f.left, scale))


def over_rows(x: Array, scale: Array) -> Array:
    """Returns x (Q, ...) times scale (Q,), in the dtype of x."""
    return x * jnp.expand_dims(scale.astype(x.dtype), tuple(range(1, x.ndim)))


def joined(first: Factors, second: Factors) -> Factors:
    """Returns the sum of two derivatives by the same parameter."""
    if first.right is None:
        return Factors(first.left + second.left, None)
    first, second = (f if is_shared(f) else Factors(f.left[..., None, :], f.right[:, None]) for f in (first, second))
    left = jnp.concatenate([first.left, second.left], axis=-2)
    right = [jnp.concatenate(pair, axis=1) for pair in zip(_strips(first), _strips(second), strict=True)]
    return Factors(left, tuple(right) if len(right) > 1 else right[0])


def shaped(found: Params, params: Params, lead: tuple[int, ...] = ()) -> Params:
    """Returns results by parameter, (..., S, K) or (..., N), in the shape `(*lead, *its own)`."""
    return jax.tree.map(lambda x, like: x.reshape(*lead, *like.shape), found, params)


def each(function: Callable[[Factors], Any], factored: Params) -> Any:
    """Returns the function of every parameter's factors, in the parameters' structure."""
    return jax.tree.map(function, factored, is_leaf=_is_factors)


def leaves(factored: Params) -> list[Factors]:
    """Returns all factors, in the order of the parameters' leaves."""
    return jax.tree.leaves(factored, is_leaf=_is_factors)


def _is_factors(node: Any) -> bool:
    return isinstance(node, Factors)


# Sums -----------------------------------------------------------------------------------------------------------------


def formed(f: Factors) -> Array:
    """Returns the derivatives themselves, (Q, ..., S, K) or (Q, ..., S)."""
    if f.right is None:
        return f.left
    if is_shared(f):
        strips = _formed_strips(f)
        return strips[0] if len(strips) == 1 else jnp.concatenate(strips, axis=-1)
    return f.left[..., None] * f.right.reshape(len(f.right), *(1,) * (f.left.ndim - 1), -1)


def _formed_strips(f: Factors) -> list[Array]:
    # shared weights go a strip of columns at a time
    return [jnp.einsum("q...ts,qtk->q...sk", f.left, right) for right in _strips(f)]


def weighed(f: Factors, scale: Array) -> Array:
    """Returns sum_q scale_q of the derivatives of shared weights, (S, K), from the formed ones."""
    strips = [jnp.tensordot(scale.astype(strip.dtype), strip, 1) for strip in _formed_strips(f)]
    return jnp.concatenate(strips, axis=-1)


@full
def square_norms(f: Factors) -> Array:
    """Returns the sum of their squares, over directions too, (Q,), at least float32."""
    if not is_shared(f):
        squares = row_squares(f.left)
        return squares if f.right is None else squares * row_squares(f.right)
    if gram_pays(f):
        left = wide(f.left).reshape(len(f.left), -1, *f.left.shape[-2:])
        right = sum(jnp.einsum("qtk,quk->qtu", wide(right), wide(right)) for right in _strips(f))
        return jnp.sum(jnp.einsum("qcts,qcus->qtu", left, left) * right, axis=(1, 2))
    return _a_few_at_a_time(lambda own: sum(map(row_squares, _formed_strips(own))), f)


@full
def second_moment(f: Factors, part: Array | None = None) -> Array:
    """Returns sum_q part_q of the squares of each element, over directions too: (S, K) or (S,), at least float32.

    part (Q,): None for ones.
    """
    if is_shared(f):

        def squares(own):
            few, part = own
            strips = (wide(strip) ** 2 for strip in _formed_strips(few))
            strips = [jnp.sum(x.reshape(len(x), -1, *x.shape[-2:]), axis=1) for x in strips]
            found = jnp.concatenate(strips, axis=-1)
            return found if part is None else over_rows(found, part)

        return jnp.sum(_a_few_at_a_time(squares, (f, part)), axis=0)
    squares = jnp.sum((wide(f.left) ** 2).reshape(len(f.left), -1, f.left.shape[-1]), axis=1)
    squares = squares if part is None else over_rows(squares, part)
    if f.right is None:
        return dense.total(squares)
    return dense.outer(squares, wide(f.right) ** 2)


@full
def inner_products(first: Factors, second: Factors) -> Array:
    """Returns the inner products of all pairs of examples, (Q, Q')."""
    if is_shared(first):
        return _paired("qts,rus->qrtu", "qts,rts->qr", first, second, "qrtu,qrtu->qr")
    return jnp.einsum("qs,rs->qr", first.left, second.left) * _source_products(first, second)


@full
def kernel_products(first: Factors, second: Factors) -> Array:
    """Returns the products of all pairs of directions, (Q, C, Q', C'), in the layout that the matrix product leaves."""
    if is_shared(first):
        return _paired("qcts,rdus->qcrdtu", "qcts,rdts->qcrd", first, second, "qcrdtu,qrtu->qcrd")
    products, sources = jnp.einsum("qcs,rds->qcrd", first.left, second.left), _source_products(first, second)
    return products * sources[:, None, :, None]


@full
def traced_products(first: Factors, second: Factors) -> Array:
    """Returns the same, summed over the pairs of one direction: (Q, Q')."""
    if is_shared(first):
        return _paired("qcts,rcus->qrtu", "qcts,rcts->qr", first, second, "qrtu,qrtu->qr")
    return jnp.einsum("qcs,rcs->qr", first.left, second.left) * _source_products(first, second)


@full
def gram(x: Array) -> Array:
    """Returns the sum of x_q x_q^T over all rows: (..., S) -> (S, S).

    On a CPU a large sum goes by strips of rows, each from its block on the diagonal on. What is below these is
    a copy, and so equal to the last digit.
    """
    x = rows(x)
    columns = x.shape[1]
    strips = min(platforms.here().gram_strips, columns // STRIP) if columns <= 4 * len(x) else 1
    if strips < 2:
        return dense.outer(x, x)
    width = -(-columns // strips)
    at = range(0, columns, width)
    upper = [dense.outer(x[:, i : i + width], x[:, i:]) for i in at]
    blocks = []
    for own, i in zip(upper, at, strict=True):
        left = [strip[:, i - j : i - j + width].T for strip, j in zip(upper, at, strict=True) if j < i]
        blocks.append(jnp.concatenate([*left, own], axis=1))
    return jnp.concatenate(blocks)


def _source_products(first: Factors, second: Factors) -> Array:
    # a.a' (Q, Q'), or (1, 1) where there is no a
    if first.right is None:
        return jnp.ones((1, 1), first.left.dtype)
    return jnp.einsum("qs,rs->qr", first.right, second.right)


def _paired(lefts: str, whole: str, first: Factors, second: Factors, both: str) -> Array:
    """Returns products of pairs of shared factors: from their Gram matrices, or from the formed derivatives."""
    if _gram_pays(first, _strips(first)[0].shape[1] ** 2):
        pairs = zip(_strips(first), _strips(second), strict=True)
        sources = sum(jnp.einsum("qtk,ruk->qrtu", *pair) for pair in pairs)
        return jnp.einsum(both, jnp.einsum(lefts, first.left, second.left), sources)

    def products(*some: Factors) -> Array:
        return jnp.einsum(whole, *(formed(f).reshape(*f.left.shape[:-2], 1, -1) for f in some))

    # as many neurons at a time as keep the formed derivatives within memory
    size = sum(len(f.left) * _formed_bytes(f) for f in (first, second))
    neurons = first.left.shape[-1]
    chunks = min(neurons, -(-size // platforms.here().formed))
    if chunks == 1:
        return products(first, second)
    width = -(-neurons // chunks)

    def chunk(f: Factors, i: Array) -> Factors:
        left = jnp.pad(f.left, ((0, 0),) * (f.left.ndim - 1) + ((0, chunks * width - neurons),))
        return f._replace(left=lax.dynamic_slice_in_dim(left, i * width, width, axis=-1))

    def some(i):
        return products(chunk(first, i), chunk(second, i))

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(some, 0))
    return lax.fori_loop(0, chunks, lambda i, total: total + some(i), zeros)


def _strips(f: Factors) -> tuple[Array, ...]:
    return f.right if isinstance(f.right, tuple) else (f.right,)


def _columns(f: Factors) -> int:
    # K
    return sum(right.shape[-1] for right in _strips(f))


def is_shared(f: Factors) -> bool:
    """Returns whether the derivative is a sum over positions, which share the weights."""
    return f.right is not None and _strips(f)[0].ndim == 3


def gram_pays(f: Factors) -> bool:
    """Returns whether squares of shared weights' derivatives cost less by Gram matrices than by forming them."""
    return _gram_pays(f, _strips(f)[0].shape[1])


def _gram_pays(f: Factors, positions: int) -> bool:
    S, K = f.left.shape[-1], _columns(f)
    return positions * (S + K) <= S * K


def _formed_bytes(f: Factors) -> int:
    """Returns the bytes that the formed derivatives of one example take."""
    return math.prod(f.left.shape[1:-2]) * f.left.shape[-1] * _columns(f) * f.left.dtype.itemsize


def _a_few_at_a_time(function: Callable, rows: Any) -> Array:
    """Returns function(rows), (Q, ...), of a few examples at a time, so that only so many derivatives are formed."""
    f = rows if isinstance(rows, Factors) else rows[0]
    size = max(1, platforms.here().formed // _formed_bytes(f))
    if size >= len(f.left):
        return function(rows)

    def single(own):
        return function(jax.tree.map(lambda x: x[None], own))[0]

    return lax.map(single, rows, batch_size=size)


def row_squares(x: Array) -> Array:
    """Returns the sum of x^2 over all but the first axis, (Q,)."""
    x = wide(x).reshape(len(x), -1)
    return over_columns(x * x)
