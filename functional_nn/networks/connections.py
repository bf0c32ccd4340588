r"""Connections, which carry a source to a summing junction: each is bilinear in what it reads and in its weights.

Letters: Q examples, S channels of what enters (neurons, times the pieces of their activation), R of what is read, P
positions of a signal along each of its axes, T their number, K of what one neuron reads at a position; x what is read
`(Q, *P, R)`, w the weights, z = x * w what enters `(Q, *P', S)`, s = dF/dz. A vector has no positions: (Q, R).

That z is linear in x and linear in w is all that the recursion, the R-operator and every derived quantity need (Hagan
Eq. 3.42-3.48, weight and net-input functions; CSE 475 18.64, criteria A and B): s reaches x through the adjoint of
dx -> dx * w, and w through that of dw -> x * dw,

.. math::

    \langle s, \mathrm{forward}(dx, w) \rangle = \langle \mathrm{back}(s, w, x), dx \rangle, \qquad
    \langle s, \mathrm{forward}(x, dw) \rangle = \langle \mathrm{outer}(s, x), dw \rangle

and `outer` is the sum over the examples of what `unfold` returns for each, sum_t left_t right_t^T. A row is proved by
these three laws (`comparison.compare_connection`). The rows:

    - `dense`, the layer of the texts, at every position the same weights: :math:`z_p = W x_p`.
    - `full`, where every neuron reads everything, positions concatenated: :math:`z = W \, \mathrm{vec}(x)`.
    - `conv`: :math:`z_p = \sum_i W_i \, x_{p \cdot \mathrm{stride} + i \cdot \mathrm{dilation} - \mathrm{padding}}`.
      In `back` a position receives from all that read it, with the kernel reversed. In `outer` W_i has met
      x_(p stride + i dilation - padding) at every p, so that its derivative is a sum over positions.
    - `embedding`: z_p is the column of W for token x_p. It is dense for one-hot rows, which are never made.
    - `identity`, z = x, a residual; `mean_pool`, a window's mean; `take`, one position of a signal; `upsample`, each
      position repeated.

`register` adds a custom one. Each row states what it computes and leaves the order of memory to the compiler. Another
row with the same shapes may replace it in populations (`network.for_lanes`). The `twin` of `dense`, for CPUs, keeps x
and s as (S, Q) in memory, so that every product of a whole population of small networks is one that XLA's fast kernels
take directly: a step takes 0.6 of the time. `in_lanes`, `conv` copies the windows side by side and makes one product of
them, since kernels that differ between members would be a grouped convolution. For that XLA on CPU has no fast kernel,
and cuDNN slow ones (measured by others: pytorch issues 70954 and 41167; not here).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, platforms
from functional_nn.networks.windows import Padding, Shape, Sizes, Window, window_of, with_constants, written
from functional_nn.reductions import over_examples
from functional_nn.registry import Registry
from functional_nn.rows import Constants, Described, cached, documented, remember

__all__ = [
    "Connection",
    "Factors",
    "conv",
    "dense",
    "embedding",
    "full",
    "get",
    "identity",
    "knows",
    "mean_pool",
    "names",
    "register",
    "take",
    "upsample",
]


class Factors(NamedTuple):
    """An example's derivative with respect to one array of parameters, in two factors, sum_t left_t right_t^T.

    Attributes:
        left: (Q, ..., S), or (Q, ..., T, S) with right (Q, T, K). The derivative itself if right is None.
        right: (Q, K) or (Q, T, K), or None. For shared weights it may be several arrays, whose concatenated columns are
            the K.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> s, x = jnp.ones((5, 4)), jnp.ones((5, 3))
        >>> factors = fnn.connections.Factors(*fnn.connections.dense.unfold(s, x))
        >>> factors.left.shape, factors.right.shape
        ((5, 4), (5, 3))
    """

    left: Array
    right: Array | tuple[Array, ...] | None


def _dense_fans(w: Shape) -> tuple[int, int]:
    """Returns (fan_in, fan_out) of weights `(S, *K)`, where each neuron reads all of its row."""
    return math.prod(w[1:]), w[0]


@dataclass(frozen=True)
class Connection(Described):
    """How a layer reads a source: z = x * w, linear in x and linear in w.

    A custom connection is made of its functions, as in the example. `register` gives it a name, and
    `comparison.compare_connection` proves that its functions agree with each other and with autodiff. Letters are those
    of the module: Q examples, P positions, T their number, R channels that are read, S channels that enter.

    Attributes:
        name: how it is shown, and under what it is registered.
        shapes: shapes(x, channels) -> (z, w), the shapes of one example's signal and of the weights, for a source of
            shape x and so many net inputs a position; w is None for a connection without weights. It raises ValueError
            if it cannot read x, with a message such as "needs a signal with positions, got shape (3,)".
        forward: forward(x, w) -> z `(Q, *P', S)`. w is None for a connection without weights.
        back: back(s, w, like) -> dF/dx `(Q, *P, R)`. like is what was read; only its shape is used.
        outer: outer(s, x) -> dF/dw. None for a connection without weights.
        unfold: unfold(s, x) -> (left (Q, T, S), right (Q, T, K)), each example's share of `outer`, for weights that are
            (S, K) when their axes but the first are put in one. None for a connection without weights.
        strips: strips(s, x): the same with right in several arrays (Q, T, K_i), where concatenating them costs more
            than what is computed from them. None where `unfold` serves.
        fans: fans(w) -> (fan_in, fan_out): how many numbers reach a net input through weights of shape w, and how many
            net inputs a number that is read reaches.
        pads: True if a corner of w is the w of a narrower network, and padding has no effect on anything else.
        tokens: how many different tokens it reads; None for a connection that reads numbers.
        total: total(s) -> sum_q s_q (S,), which a bias gets, of s (Q, S) in this row's memory order.
        twin: the same connection in the memory order for populations on CPU. None where it serves as it is.
        in_lanes: the same for populations on every platform, with different weights in each member. None where it
            serves as it is.

    Example:
        Weights on the diagonal alone, one for each channel:

        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> def shapes(x, channels):
        ...     if x[-1:] != (channels,):
        ...         raise ValueError(f"needs {channels} channels, got shape {x}")
        ...     return x, (channels, 1)
        >>> def by_position(x):  # (Q, *P, S) -> (Q, T, S)
        ...     return x.reshape(len(x), -1, x.shape[-1])
        >>> scaled = fnn.Connection(
        ...     "scaled",
        ...     shapes,
        ...     forward=lambda x, w: x * w[:, 0],
        ...     back=lambda s, w, like: s * w[:, 0],
        ...     outer=lambda s, x: jnp.sum((s * x).reshape(-1, s.shape[-1]), axis=0)[:, None],
        ...     unfold=lambda s, x: (by_position(s * x), by_position(jnp.ones_like(s[..., :1]))),
        ... )
        >>> network = fnn.graph(
        ...     inputs={"x": 3},
        ...     layers=[fnn.Layer("scale", 3, sources=[("x", scaled)]), fnn.Layer("output", 1, sources=["scale"])],
        ... )
        >>> network.layers[0].connections
        (<connection scaled>,)
    """

    name: str
    shapes: Callable[[Shape, int], tuple[Shape, Shape | None]]
    forward: Callable[[Array, Any], Array]
    back: Callable[[Array, Any, Array], Array]
    outer: Callable[[Array, Array], Array] | None = None
    unfold: Callable[[Array, Array], tuple[Array, Array]] | None = None
    strips: Callable[[Array, Array], tuple[Array, tuple[Array, ...]]] | None = None
    fans: Callable[[Shape], tuple[int, int]] = _dense_fans
    pads: bool = False
    tokens: int | None = None
    total: Callable[[Array], Array] = over_examples
    twin: "Connection | None" = None
    in_lanes: "Connection | None" = None

    def __repr__(self) -> str:
        return f"<connection {self.name}>"


_registry: Registry[Connection] = Registry("connection", Connection)


def names() -> tuple[str, ...]:
    """Returns the names of the registered connections.

    Example:
        >>> from functional_nn import connections
        >>> connections.names()[:3]
        ('dense', 'full', 'conv')
    """
    return _registry.names()


def knows(specification: str | Connection) -> bool:
    """Returns True for a connection, and for text that begins with the name of one.

    Args:
        specification: text such as "conv((3, 3))", or a `Connection`.

    Example:
        >>> from functional_nn import connections
        >>> connections.knows("conv((3, 3))"), connections.knows("image")
        (True, False)
    """
    return _registry.knows(specification)


def get(connection: str | Connection) -> Connection:
    """Returns the connection that a name stands for.

    Args:
        connection: a name such as "dense", a name with constants such as "conv((3, 3), stride=2)", or a `Connection`,
            which is returned unchanged.

    Raises:
        ValueError: the name is unknown (the message suggests the closest one), or its constants are refused.
        TypeError: neither a name nor a connection.

    Example:
        >>> from functional_nn import connections
        >>> connections.get("conv((3, 3), stride=2)")
        <connection conv((3, 3), stride=(2, 2))>
    """
    return _registry.get(connection)


@overload
def register(connection: Connection, *, aliases: tuple[str, ...] = (), doc: str | None = None) -> Connection: ...


@overload
def register(
    connection: Callable[Constants, Connection], *, aliases: tuple[str, ...] = ()
) -> Callable[Constants, Connection]: ...


def register(
    connection: Connection | Callable[..., Connection], *, aliases: tuple[str, ...] = (), doc: str | None = None
) -> Connection | Callable[..., Connection]:
    """Gives a connection, or a function that makes connections from constants, a name. Also a decorator.

    Afterwards the name may be used wherever a connection is expected: in the sources of a `Layer` and in `get`.

    Args:
        connection: a `Connection`, registered under its `name`; or a function of constants that returns one, registered
            under the function's name and called as in "name(0.5)".
        aliases: further names.
        doc: the docstring of a `Connection`, which `help` shows; a function has its own.

    Returns:
        The connection that was passed; or the function, its results cached.

    Raises:
        ValueError: a name is taken or is not an identifier.

    Example:
        >>> import functional_nn as fnn
        >>> @fnn.connections.register
        ... def times(factor: float = 1.0) -> fnn.Connection:
        ...     return fnn.Connection(
        ...         f"times({factor})",
        ...         shapes=lambda x, channels: (x, None),  # it has no weights
        ...         forward=lambda x, w: factor * x,
        ...         back=lambda s, w, like: factor * s,
        ...     )
        >>> fnn.Layer("half", 3, sources=[("input", "times(0.5)")]).connections
        (<connection times(0.5)>,)
    """
    if isinstance(connection, Connection):
        _registry.add(connection.name, lambda: connection, aliases)
        remember(connection, _named, (connection.name,))
        if doc is not None:
            documented(connection, doc)
        return _remembered(connection)

    @cached
    @functools.wraps(connection)
    def same(*args, **keywords):
        return _remembered(connection(*args, **keywords))

    _registry.add(connection.__name__, same, aliases)
    return same


def _named(name: str) -> Connection:
    return get(name)


def _remembered(row: Connection) -> Connection:
    for variant, named in ((row.twin, _twin_of), (row.in_lanes, _in_lanes_of)):
        if variant is not None:
            remember(variant, named, (row.name,))
    return row


def _twin_of(name: str) -> Connection:
    return get(name).twin


def _in_lanes_of(name: str) -> Connection:
    return get(name).in_lanes


def rows(x: Array) -> Array:
    """`(Q, *P, S)` -> (Q T, S): every position as an example by itself."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # S may be 0


def _by_position(x: Array) -> Array:
    """`(Q, *P, S)` -> (Q, T, S)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


# The dense layer ------------------------------------------------------------------------------------------------------


def _dense_shapes(x: Shape, channels: int) -> tuple[Shape, Shape]:
    return (*x[:-1], channels), (channels, x[-1])


def _dense_forward(x: Array, w: Array) -> Array:
    return lax.dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())))  # without writing the transpose down


def _dense_back(s: Array, w: Array, like: Array) -> Array:
    return lax.dot_general(s, w, (((s.ndim - 1,), (0,)), ((), ())))


def _dense_outer(s: Array, x: Array) -> Array:
    if s.size * x.shape[-1] <= platforms.here().transposed:
        return lax.dot(_standing(rows(s)), rows(x))
    over = tuple(range(s.ndim - 1))
    return lax.dot_general(s, x, ((over, over), ((), ())))


def _dense_unfold(s: Array, x: Array) -> tuple[Array, Array]:
    if x.ndim == 2:
        return s, x  # the outer product of the two
    return _by_position(s), _by_position(x)


def _standing(x: Array) -> Array:
    """The transpose, written to memory: without the barrier XLA would fold it into the product next to it."""
    return lax.optimization_barrier(x.T)


def _standing_product(x: Array, y: Array) -> Array:
    # The transpose of a product would be taken for a product of transposes, hence this barrier.
    return lax.optimization_barrier(lax.dot(x, y)).T


def _forward_in_columns(x: Array, w: Array) -> Array:
    return _standing_product(w, _standing(rows(x))).reshape(*x.shape[:-1], -1)


def _back_in_columns(s: Array, w: Array, like: Array) -> Array:
    return _standing_product(_standing(w), _standing(rows(s))).reshape(like.shape)


def _outer_in_columns(s: Array, x: Array) -> Array:
    return lax.dot_general(_standing(rows(s)), _standing(rows(x)), (((1,), (1,)), ((), ())))


def _total_in_columns(s: Array) -> Array:
    s = _standing(s)
    while s.shape[1] % 2 == 0 and s.shape[1] > 4:  # halves, which vectorize; XLA adds a row one number at a time
        s = s[:, : s.shape[1] // 2] + s[:, s.shape[1] // 2 :]
    return jnp.sum(s, axis=1)


_in_columns = Connection(
    "dense in columns",
    _dense_shapes,
    _forward_in_columns,
    _back_in_columns,
    _outer_in_columns,
    _dense_unfold,
    pads=True,
    total=_total_in_columns,
)
dense = register(
    Connection(
        "dense",
        _dense_shapes,
        _dense_forward,
        _dense_back,
        _dense_outer,
        _dense_unfold,
        pads=True,
        twin=_in_columns,
    ),
    doc="""The layer of the texts, z = W x; for a signal, at every position with the same weights W (S, R).

    Example:
        >>> from functional_nn import connections
        >>> connections.dense.shapes((28, 28, 3), 16)
        ((28, 28, 16), (16, 3))
    """,
)


def _whole(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _flattened(row: Connection, name: str, twin: Connection | None = None) -> Connection:
    """`full`, from the dense row: what is read is put in one vector first."""
    return Connection(
        name,
        lambda x, channels: ((channels,), (channels, math.prod(x))),
        lambda x, w: row.forward(_whole(x), w),
        lambda s, w, like: row.back(s, w, _whole(like)).reshape(like.shape),
        lambda s, x: row.outer(s, _whole(x)),
        lambda s, x: (s, _whole(x)),
        total=row.total,
        twin=twin,
    )


full = register(
    _flattened(dense, "full", _flattened(_in_columns, "full in columns")),
    doc="""Every neuron reads everything a source holds, its positions concatenated: W (S, T R).

    Example:
        >>> from functional_nn import connections
        >>> connections.full.shapes((28, 28, 3), 10)
        ((10,), (10, 2352))
    """,
)


_COLUMNS = 32  # of a strip of windows


# Convolution ----------------------------------------------------------------------------------------------------------


@register
def conv(
    kernel: Sizes, stride: Sizes = 1, padding: Padding = "same", dilation: Sizes = 1, groups: int = 1
) -> Connection:
    """A convolution: z_p = sum_i W_i x_(p stride + i dilation - padding), with W `(S, *kernel, R / groups)`.

    As usual in machine learning, the kernel is not reversed on the way forward, but on the way back (Lecture 2).

    Args:
        kernel: (height, width), or a length for signals (T, R) of one axis; up to three axes.
        stride: the step from one output position to the next, one for each axis or one for all.
        padding: "same" (ceil(P / stride) positions come out), "valid" (none), or zeros before and after: p, (p, p'),
            ((before, after), ...).
        dilation: the step inside the kernel, one for each axis or one for all.
        groups: of channels; each group reads its own share of the source's channels.

    Raises:
        ValueError: sizes are not positive integers, or not one for each axis. A layer raises it for a signal that the
            kernel does not fit, or channels that groups do not divide.

    Example:
        >>> from functional_nn import connections
        >>> connections.conv((3, 3), stride=2).shapes((28, 28, 1), 16)
        ((14, 14, 16), (16, 3, 3, 1))
    """
    window = window_of("conv", "kernel", kernel, stride, dilation, padding)
    return _convolution(window, checks.integer("conv", "groups", groups, 1))


@functools.cache  # one row, however its constants are passed
def _convolution(window: Window, groups: int) -> Connection:
    axes = len(window.size)
    ones = (1,) * axes
    name = with_constants(
        "conv",
        window.size,
        {"stride": ones, "padding": "same", "dilation": ones, "groups": 1},
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=groups,
    )
    # XLA's letters for the axes: examples N, channels C read and given, I and O of the kernel. On CPU its fast kernels
    # take only this order. Inside `scan` and `while_loop` XLA does not convert other orders to it, and takes up to a
    # hundred times as long. Arrays in another order are therefore transposed here.
    letters, inner = "XYZ"[:axes], tuple(range(1, axes + 1))
    in_order = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def shapes(x: Shape, channels: int) -> tuple[Shape, Shape]:
        window.check(x)
        for verb, count in (("reads", x[-1]), ("gives", channels)):
            if count % groups:
                raise ValueError(f"{verb} {count} channels, which groups={groups} does not divide")
        return (*window.places(x[:-1]), channels), (channels, *window.size, x[-1] // groups)

    def forward(x, w):
        if jnp.iscomplexobj(w):  # XLA makes three real convolutions of it, whose sums lose the complex step
            return _complex_convolution(window, groups, x, w)
        return lax.conv_general_dilated(
            x,
            lax.transpose(w, (*inner, axes + 1, 0)),
            window.stride,
            window.pads(x.shape[1:-1]),
            rhs_dilation=window.dilation,
            dimension_numbers=in_order,
            feature_group_count=groups,
        )

    def back(s, w, like):
        # s, with the gaps that the stride left, meets the reversed kernel; each group with its own channels
        turned = lax.rev(w, inner)
        if groups == 1:
            turned = lax.transpose(turned, (*inner, 0, axes + 1))
        else:
            turned = turned.reshape(groups, -1, *w.shape[1:])  # (G, S / G, *kernel, R / G)
            turned = jnp.moveaxis(turned, (1, 0), (-3, -2)).reshape(*window.size, w.shape[0] // groups, -1)
        edges = []
        lengths = zip(like.shape[1:-1], s.shape[1:-1], window.pads(like.shape[1:-1]), strict=True)
        for (length, places, (before, _)), reach, step in zip(lengths, window.reaches, window.stride, strict=True):
            first = reach - 1 - before
            edges.append((first, length + reach - 1 - ((places - 1) * step + 1) - first))
        return lax.conv_general_dilated(
            s,
            turned,
            ones,
            edges,
            lhs_dilation=window.stride,
            rhs_dilation=window.dilation,
            dimension_numbers=in_order,
            feature_group_count=groups,
        )

    def outer(s, x):
        # a convolution over the examples: s slides over x, its elements a stride apart
        edges = []
        lengths = zip(x.shape[1:-1], s.shape[1:-1], window.pads(x.shape[1:-1]), strict=True)
        for (length, places, (before, _)), reach, step in zip(lengths, window.reaches, window.stride, strict=True):
            edges.append((before, (places - 1) * step + reach - length - before))
        x, s = (
            lax.transpose(x, (axes + 1, *inner, 0)),
            lax.transpose(s, (*inner, 0, axes + 1)),
        )  # (R, *P, Q), (*P', Q, S)
        derivative = lax.conv_general_dilated(
            x,
            s,
            window.dilation,
            edges,
            rhs_dilation=window.stride,
            dimension_numbers=in_order,
            batch_group_count=groups,
        )
        return lax.transpose(derivative, (axes + 1, *inner, 0))  # from (R / G, *kernel, S)

    def unfold(s, x):
        left, right = _by_position(s), _by_position(jnp.concatenate(window.read(x), axis=-1))
        if groups == 1:
            return left, right
        # the positions once for each group: its own channels of s, and what they read
        members = np.repeat(np.eye(groups), s.shape[-1] // groups, axis=1)
        left = left[:, None] * jnp.asarray(members, s.dtype)[None, :, None, :]
        right = right.reshape(*right.shape[:2], len(window.offsets()), groups, -1)
        right = jnp.moveaxis(right, 3, 1)
        return left.reshape(len(s), -1, s.shape[-1]), right.reshape(len(s), left.shape[1] * left.shape[2], -1)

    def strips(s, x):
        # Each strip has just enough elements of the window for an efficient product: copied side by side, all of them
        # would take as many times the signal's memory.
        elements = window.read(x)
        many = -(-_COLUMNS // x.shape[-1])
        pieces = (elements[at : at + many] for at in range(0, len(elements), many))
        return _by_position(s), tuple(_by_position(jnp.concatenate(piece, axis=-1)) for piece in pieces)

    def fans(w: Shape) -> tuple[int, int]:
        return math.prod(w[1:]), w[0] // groups * math.prod(window.size)

    row = functools.partial(
        Connection, shapes=shapes, unfold=unfold, strips=strips if groups == 1 else None, fans=fans, pads=groups == 1
    )
    product = None if groups > 1 else row(f"{name} as a product", **_as_product(window))
    return row(name, forward=forward, back=back, outer=outer, in_lanes=product)


def _complex_convolution(window: Window, groups: int, x: Array, w: Array) -> Array:
    pairs = zip(jnp.split(x, groups, axis=-1), jnp.split(w, groups, axis=0), strict=True)
    return jnp.concatenate([_as_product(window)["forward"](*pair) for pair in pairs], axis=-1)


def _as_product(window: Window) -> dict[str, Any]:
    """The convolution as a dense layer of windows that are copied side by side."""

    def flat(w):
        return w.reshape(w.shape[0], -1)

    def windows(x):
        return jnp.concatenate(window.read(x), axis=-1)

    def back(s, w, like):
        elements = jnp.split(_dense_back(s, flat(w), s), len(window.offsets()), axis=-1)
        return window.write(elements, like.shape[1:-1])

    def outer(s, x):
        return _dense_outer(s, windows(x)).reshape(s.shape[-1], *window.size, x.shape[-1])

    return {"forward": lambda x, w: _dense_forward(windows(x), flat(w)), "back": back, "outer": outer}


# Tokens ---------------------------------------------------------------------------------------------------------------


@register
def embedding(tokens: int) -> Connection:
    """The column of W (S, tokens) that belongs to each token: integers `(Q, *P)` -> `(Q, *P, S)`.

    A signal of tokens has no channels: an input of 32 tokens is {"text": 32}. A token that is out of range where its
    value is not known, as under `jit`, gives nan, so that none is lost silently. Integers have no derivative.

    Args:
        tokens: how many there are; inputs are 0 to tokens - 1.

    Raises:
        ValueError: tokens is not a positive integer.

    Example:
        >>> from functional_nn import connections
        >>> connections.embedding(5).shapes((32,), 8)  # of 32 positions; the weights of 5 tokens
        ((32, 8), (8, 5))
    """
    return _of_tokens(checks.integer("embedding", "tokens", tokens, 1))


@functools.cache
def _of_tokens(tokens: int) -> Connection:
    def inside(x):
        return (x >= 0) & (x < tokens)

    def forward(x, w):
        chosen = jnp.asarray(w).T[jnp.where(inside(x), x, 0)]  # a NumPy array cannot be indexed by tracers
        return jnp.where(inside(x)[..., None], chosen, jnp.nan)

    def back(s, w, like):
        return np.zeros(like.shape, jax.dtypes.float0)

    def outer(s, x):
        # a token out of range goes to no column: -1 would be the last
        return jnp.zeros((tokens, s.shape[-1]), s.dtype).at[jnp.where(inside(x), x, tokens)].add(s, mode="drop").T

    def unfold(s, x):
        return _by_position(s), jax.nn.one_hot(x.reshape(len(x), -1), tokens, dtype=s.dtype)

    return Connection(
        f"embedding({tokens})",
        lambda x, channels: ((*x, channels), (channels, tokens)),
        forward,
        back,
        outer,
        unfold,
        fans=lambda w: (1, w[0]),  # one of all columns is read
        pads=True,
        tokens=tokens,
    )


# Without weights ------------------------------------------------------------------------------------------------------

identity = register(
    Connection("identity", lambda x, channels: (x, None), lambda x, w: x, lambda s, w, like: s, pads=True),
    doc="""z = x, without weights: a residual connection, or the way into a pooling or normalization layer.

    Example:
        >>> from functional_nn import connections
        >>> connections.identity.shapes((28, 28, 3), 3)
        ((28, 28, 3), None)
    """,
)


@register
def mean_pool(window: Sizes | None = None, stride: Sizes | None = None, padding: Padding = "valid") -> Connection:
    """The mean of each window, or of all positions: `(Q, *P, R)` -> `(Q, *P', R)` or (Q, R). It has no weights.

    Padding does not count in any mean.

    Args:
        window: (height, width), or a length for signals of one axis; None takes all positions.
        stride: the step from one window to the next, one for each axis or one for all; by default the window's size.
        padding: as for `conv`.

    Raises:
        ValueError: sizes are not positive integers, or stride and padding are given without a window. A layer raises it
            for a signal that the window does not fit.

    Example:
        >>> from functional_nn import connections
        >>> connections.mean_pool((2, 2)).shapes((28, 28, 6), 6)
        ((14, 14, 6), None)
    """
    if window is None:
        if stride is not None or padding != "valid":
            raise ValueError("mean_pool: stride and padding belong to a window, and none is given")
        return Connection("mean_pool", _all_positions, _mean, _back_of_mean, pads=True)
    return _mean_of_windows(window_of("mean_pool", "window", window, window if stride is None else stride, 1, padding))


@functools.cache
def _mean_of_windows(window: Window) -> Connection:
    name = with_constants(
        "mean_pool",
        window.size,
        {"stride": window.size, "padding": "valid"},
        stride=window.stride,
        padding=window.padding,
    )

    def shapes(x: Shape, channels: int) -> tuple[Shape, None]:
        window.check(x)
        window.check_met(x[:-1])
        return (*window.places(x[:-1]), x[-1]), None

    def share(positions: Shape, dtype) -> Array:
        return jnp.asarray(1 / window.met(positions)[None, ..., None], dtype)

    def forward(x, w):
        return sum(window.read(x)) * share(x.shape[1:-1], x.dtype)

    def back(s, w, like):
        element = s * share(like.shape[1:-1], s.dtype)
        return window.write([element] * len(window.offsets()), like.shape[1:-1])

    return Connection(name, shapes, forward, back, pads=True)


def _all_positions(x: Shape, channels: int) -> tuple[Shape, None]:
    if len(x) < 2:
        raise ValueError(f"needs a signal with positions, got shape {x}")
    return x[-1:], None


def _mean(x: Array, w: None) -> Array:
    return jnp.mean(_by_position(x), axis=1)


def _back_of_mean(s: Array, w: None, like: Array) -> Array:
    positions = like.shape[1:-1]
    share = (s / math.prod(positions)).reshape(len(s), *(1,) * len(positions), -1)
    return jnp.broadcast_to(share, like.shape)


@register
def take(position: Sizes) -> Connection:
    """One position of a signal, `(Q, *P, R)` -> (Q, R). It has no weights.

    Args:
        position: an integer for (T, R), so that take(-1) is the last; a pair (i, j) for (H, W, R).

    Raises:
        ValueError: position is not an integer or one for each axis. A layer raises it for a position outside the
            signal.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> fnn.connections.take(-1).forward(jnp.array([[[1.0], [2.0]]]), None).tolist()
        [[2.0]]
    """
    given = position if isinstance(position, tuple | list) else (position,)
    if not given or any(isinstance(each, bool) or not isinstance(each, int | np.integer) for each in given):
        raise ValueError(f"take: position must be an integer, or one for each axis, got {position!r}")
    return _at(tuple(map(int, given)))


@functools.cache
def _at(given: Shape) -> Connection:
    def shapes(x: Shape, channels: int) -> tuple[Shape, None]:
        if len(x) != len(given) + 1:
            raise ValueError(f"needs a signal with {len(given)} axes of positions, got shape {x}")
        for at, length in zip(given, x[:-1], strict=True):
            if not -length <= at < length:
                raise ValueError(f"has position {written(given)}, outside the signal's {x[:-1]}")
        return x[-1:], None

    def forward(x, w):
        return x[(slice(None), *given)]

    def back(s, w, like):
        places = [
            (at % length, length - 1 - at % length, 0) for at, length in zip(given, like.shape[1:-1], strict=True)
        ]
        single = s.reshape(len(s), *(1,) * len(places), -1)
        return lax.pad(single, np.zeros((), s.dtype), [(0, 0, 0), *places, (0, 0, 0)])

    return Connection(f"take({written(given)})", shapes, forward, back, pads=True)


@register
def upsample(factor: Sizes) -> Connection:
    """Every position repeated `factor` times along each axis, (Q, P, R) -> (Q, factor P, R). It has no weights.

    This is the value of the nearest neighbour. On the way back, the repetitions are added.

    Args:
        factor: (2, 2) for pictures, or a number for signals of one axis.

    Raises:
        ValueError: a factor is not a positive integer.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> fnn.connections.upsample(2).forward(jnp.array([[[1.0], [2.0]]]), None)[0, :, 0].tolist()
        [1.0, 1.0, 2.0, 2.0]
    """
    factor = factor if isinstance(factor, tuple | list) else (factor,)
    return _repeated(tuple(checks.integer("upsample", "factor", each, 1) for each in factor))


@functools.cache
def _repeated(factor: Shape) -> Connection:
    axes = range(1, len(factor) + 1)

    def shapes(x: Shape, channels: int) -> tuple[Shape, None]:
        if len(x) != len(factor) + 1:
            raise ValueError(f"needs a signal with {len(factor)} axes of positions, got shape {x}")
        return (*(n * many for n, many in zip(x, factor, strict=False)), x[-1]), None

    def forward(x, w):
        for axis, many in zip(axes, factor, strict=True):
            x = jnp.repeat(x, many, axis)
        return x

    def back(s, w, like):
        pairs = [n for pair in zip(like.shape[1:-1], factor, strict=True) for n in pair]
        return jnp.sum(s.reshape(len(s), *pairs, s.shape[-1]), axis=tuple(2 * axis for axis in axes))

    return Connection(f"upsample({written(factor)})", shapes, forward, back, pads=True)
