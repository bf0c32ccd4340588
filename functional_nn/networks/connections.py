"""What enters a summing junction: connections, each bilinear in what it reads and in its weights.

Letters: Q examples, S channels of what enters (neurons, times the pieces of their activation), R of what is read, P
positions of a signal along each of its axes, T their number, K of what one neuron reads at a position; x what is read
(Q, *P, R), w the weights, z = x * w what enters (Q, *P', S), s = dF/dz. A vector has no positions: (Q, R). That z is
linear in x and linear in w is all that the recursion, the R-operator and every derived quantity need of it (Hagan Eq.
3.42-3.48, weight and net-input functions; CSE 475 18.64, criteria A and B): s reaches x through the adjoint of
dx -> dx * w, and w through that of dw -> x * dw,

    <s, forward(dx, w)> = <back(s, w, x), dx>        <s, forward(x, dw)> = <outer(s, x), dw>

and `outer` is, summed over the examples, what `unfold` gives of each: sum_t left_t right_t^T. A row proves itself by
these three laws (`comparison.compare_connection`). The rows:

    dense        z_p = W x_p                        the layer of the texts, at every position the same weights
    full         z = W (all of x in one vector)     every neuron reads everything, positions side by side
    conv         z_p = sum_i W_i x_(p stride + i dilation - padding)
                 back: a position receives from all that read it, the kernel turned round; outer: W_i has met
                 x_(p stride + i dilation - padding) at every p, so its derivative is a sum over positions
    embedding    z_p = the column of W that token x_p names: dense of one-hot rows, which are never made
    identity     z = x: a residual; mean_pool, take, upsample: a window's mean, one position of a signal, each repeated

Each says what is meant and leaves the order of memory to the compiler. A row of its own behind the same shapes may
stand in for it in populations (`network.for_lanes`). The `twin` of `dense`, for CPUs, keeps x and s as (S, Q) in
memory, so that every product of a whole population of small networks is one that XLA's fast kernels take as it stands:
a step takes 0.6 of the time. `in_lanes`, `conv` copies the windows side by side and makes one product of them, since
kernels that differ by lane would be a grouped convolution, for which XLA on CPU has no fast kernel, and cuDNN slow ones
(measured by others: pytorch issues 70954 and 41167; not here).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, platforms
from functional_nn.networks.windows import Shape, Window, said, window_of, with_constants
from functional_nn.reductions import over_examples
from functional_nn.registry import Described, Registry, cached, remember


class Factors(NamedTuple):
    """An example's derivative by one array of parameters, in two factors: see `gradients.factors`.

    left (Q, ..., S) and right (Q, K), or (Q, ..., T, S) and (Q, T, K); left alone where right is None. Of shared
    weights right may be several such arrays, whose columns side by side are the K.
    """

    left: Array
    right: Array | tuple[Array, ...] | None


@dataclass(frozen=True)
class Connection(Described):
    """shapes(x, channels) -> (z, w): of one example's signal, and of the weights, None where it has none; ValueError
    where it cannot read x, in words that say what it reads.

    forward(x, w) -> z (Q, *P', S); back(s, w, like) -> dF/dx (Q, *P, R), like: what was read, whose shape is looked
    at; outer(s, x) -> dF/dw; unfold(s, x) -> each example's share of it, (left (Q, T, S), right (Q, T, K)) of weights
    that are (S, K) when their axes but the first are put in one. The last two are None where it has no weights, where w
    is None. strips(s, x): the same with right in several arrays (Q, T, K_i), where to put them in one costs more than
    what is made of them; None where `unfold` serves.
    fans(w) -> (fan_in, fan_out): how many numbers reach a neuron's net input through w, and how many net inputs a
    number that is read reaches.
    pads: a corner of w is a narrower network's w, and what pads it stays out of all else.
    tokens: how many there are, where it reads integers and not numbers; None where it reads numbers.
    total(s) -> sum_q s_q (S,): what a bias, which reads a 1 of every example, gets of s (Q, S) laid out as here.
    twin: the same connection in the order of memory for populations on CPU; in_lanes: the same for populations on every
    platform, whose weights differ by lane. None where it serves as it is.
    """

    name: str
    shapes: Callable[[Shape, int], tuple[Shape, Shape | None]]
    forward: Callable[[Array, Array | None], Array]
    back: Callable[[Array, Array | None, Array], Array]
    outer: Callable[[Array, Array], Array] | None = None
    unfold: Callable[[Array, Array], tuple[Array, Array]] | None = None
    strips: Callable[[Array, Array], tuple[Array, tuple[Array, ...]]] | None = None
    fans: Callable[[Shape], tuple[int, int]] = lambda w: (math.prod(w[1:]), w[0])
    pads: bool = False
    tokens: int | None = None
    total: Callable[[Array], Array] = over_examples
    twin: "Connection | None" = None
    in_lanes: "Connection | None" = None

    def __repr__(self) -> str:
        return f"<connection {self.name}>"


_registry: Registry[Connection] = Registry("connection", Connection)
names, get, knows = _registry.names, _registry.get, _registry.knows


def register(connection: Connection | Callable[..., Connection], *, aliases: tuple[str, ...] = ()):
    """Makes a connection, or a factory of connections with constants, known by name; returns it. Also a decorator.

    Raises ValueError where the name is taken.
    """
    if isinstance(connection, Connection):
        _registry.add(connection.name, lambda: connection, aliases)
        remember(connection, _named, (connection.name,))
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
    for own, named in ((row.twin, _twin_of), (row.in_lanes, _in_lanes_of)):
        if own is not None:
            remember(own, named, (row.name,))
    return row


def _twin_of(name: str) -> Connection:
    return get(name).twin


def _in_lanes_of(name: str) -> Connection:
    return get(name).in_lanes


def rows(x: Array) -> Array:
    """(Q, *P, S) -> (Q T, S): every position as an example of its own."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # S may be 0


def _by_position(x: Array) -> Array:
    """(Q, *P, S) -> (Q, T, S)."""
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
    """The transpose, written down: without the barrier XLA would fold it into the product beside it."""
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
    )
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


full = register(_flattened(dense, "full", _flattened(_in_columns, "full in columns")))


_COLUMNS = 32  # of a strip of windows


# Convolution ----------------------------------------------------------------------------------------------------------


@register
def conv(kernel, stride=1, padding="same", dilation=1, groups: int = 1) -> Connection:
    """z_p = sum_i W_i x_(p stride + i dilation - padding), W (S, *kernel, R / groups): a convolution, as learning has
    it: the kernel is not turned round on the way forward, but on the way back (Lecture 2).

    kernel: (height, width), or a length for signals (T, R) of one axis; up to three axes. stride, dilation: one for
    each axis or one for all. padding: "same" (ceil(P / stride) positions come out), "valid" (none), or zeros before and
    after: p, (p, p'), ((before, after), ...). groups: of channels, each of which reads its own part of what is read.

    >>> from functional_nn import connections
    >>> connections.conv((3, 3), stride=2).shapes((28, 28, 1), 16)
    ((14, 14, 16), (16, 3, 3, 1))
    """
    window = window_of("conv", "kernel", kernel, stride, dilation, padding)
    return _convolution(window, checks.integer("conv", "groups", groups, 1))


@functools.cache  # one row, however its constants are given
def _convolution(window: Window, groups: int) -> Connection:
    axes = len(window.size)
    one = (1,) * axes
    name = with_constants(
        "conv",
        window.size,
        {"stride": one, "padding": "same", "dilation": one, "groups": 1},
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=groups,
    )
    # XLA's letters for the axes: examples N, channels C read and given, I and O of the kernel. On CPU its fast kernels
    # take this order alone; elsewhere than in the outermost program (in `scan`, `while_loop`) it does not bring other
    # orders into it, and takes up to a hundred times as long. So what is in another order is turned here.
    letters, inner = "XYZ"[:axes], tuple(range(1, axes + 1))
    in_order = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def shapes(x: Shape, channels: int) -> tuple[Shape, Shape]:
        window.check(x)
        for what, count in (("reads", x[-1]), ("gives", channels)):
            if count % groups:
                raise ValueError(f"{what} {count} channels, which groups={groups} does not divide")
        return (*window.places(x[:-1]), channels), (channels, *window.size, x[-1] // groups)

    def forward(x, w):
        if jnp.iscomplexobj(w):  # XLA makes three real convolutions of it, in whose sums the complex step is lost
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
        # s, with the gaps that the stride left, meets the kernel turned round; of each group its own channels
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
            one,
            edges,
            lhs_dilation=window.stride,
            rhs_dilation=window.dilation,
            dimension_numbers=in_order,
            feature_group_count=groups,
        )

    def outer(s, x):
        # a convolution over the examples: x is gone over by s, whose elements lie a stride apart
        edges = []
        lengths = zip(x.shape[1:-1], s.shape[1:-1], window.pads(x.shape[1:-1]), strict=True)
        for (length, places, (before, _)), reach, step in zip(lengths, window.reaches, window.stride, strict=True):
            edges.append((before, (places - 1) * step + reach - length - before))
        x, s = (
            lax.transpose(x, (axes + 1, *inner, 0)),
            lax.transpose(s, (*inner, 0, axes + 1)),
        )  # (R, *P, Q), (*P', Q, S)
        found = lax.conv_general_dilated(
            x,
            s,
            window.dilation,
            edges,
            rhs_dilation=window.stride,
            dimension_numbers=in_order,
            batch_group_count=groups,
        )
        return lax.transpose(found, (axes + 1, *inner, 0))  # of (R / G, *kernel, S)

    def unfold(s, x):
        left, right = _by_position(s), _by_position(jnp.concatenate(window.read(x), axis=-1))
        if groups == 1:
            return left, right
        # of each group the positions once: its own channels of s, and what they read
        own = np.repeat(np.eye(groups), s.shape[-1] // groups, axis=1)
        left = left[:, None] * jnp.asarray(own, s.dtype)[None, :, None, :]
        right = right.reshape(*right.shape[:2], len(window.offsets()), groups, -1)
        right = jnp.moveaxis(right, 3, 1)
        return left.reshape(len(s), -1, s.shape[-1]), right.reshape(len(s), left.shape[1] * left.shape[2], -1)

    def strips(s, x):
        # of so many elements of the window that a product with them is a good one, and no more: copied side by side
        # they are as many times the signal
        parts = window.read(x)
        many = -(-_COLUMNS // x.shape[-1])
        pieces = (parts[at : at + many] for at in range(0, len(parts), many))
        return _by_position(s), tuple(_by_position(jnp.concatenate(some, axis=-1)) for some in pieces)

    def fans(w: Shape) -> tuple[int, int]:
        return math.prod(w[1:]), w[0] // groups * math.prod(window.size)

    row = functools.partial(
        Connection, shapes=shapes, unfold=unfold, strips=strips if groups == 1 else None, fans=fans, pads=groups == 1
    )
    product = None if groups > 1 else row(f"{name} as a product", **_as_product(window))
    return row(name, forward=forward, back=back, outer=outer, in_lanes=product)


def _complex_convolution(window: Window, groups: int, x: Array, w: Array) -> Array:
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(w, groups, axis=0), strict=True)
    return jnp.concatenate([_as_product(window)["forward"](*pair) for pair in parts], axis=-1)


def _as_product(window: Window) -> dict[str, Callable]:
    """The convolution as a dense layer of windows that are copied side by side."""

    def flat(w):
        return w.reshape(w.shape[0], -1)

    def windows(x):
        return jnp.concatenate(window.read(x), axis=-1)

    def back(s, w, like):
        parts = jnp.split(_dense_back(s, flat(w), s), len(window.offsets()), axis=-1)
        return window.write(parts, like.shape[1:-1])

    def outer(s, x):
        return _dense_outer(s, windows(x)).reshape(s.shape[-1], *window.size, x.shape[-1])

    return {"forward": lambda x, w: _dense_forward(windows(x), flat(w)), "back": back, "outer": outer}


# Tokens ---------------------------------------------------------------------------------------------------------------


@register
def embedding(tokens: int) -> Connection:
    """z_p = the x_p-th column of W (S, tokens): of an input of integers 0 to tokens - 1, (Q, *P) -> (Q, *P, S).

    A signal of tokens has no channels: an input of 32 of them is {"text": 32}. A token out of range, where its value
    is not known, as under `jit`, gives nan, so that none is lost silently. Integers have no derivative.
    """
    return _of_tokens(checks.integer("embedding", "tokens", tokens, 1))


@functools.cache
def _of_tokens(tokens: int) -> Connection:
    def inside(x):
        return (x >= 0) & (x < tokens)

    def forward(x, w):
        chosen = jnp.asarray(w).T[jnp.where(inside(x), x, 0)]  # NumPy's could not be asked for tokens that are traced
        return jnp.where(inside(x)[..., None], chosen, jnp.nan)

    def back(s, w, like):
        return np.zeros(like.shape, jax.dtypes.float0)

    def outer(s, x):
        # one that is out of range goes to no column: -1 would be the last
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
        fans=lambda w: (1, w[0]),  # of all columns one is read
        pads=True,
        tokens=tokens,
    )


# Without weights ------------------------------------------------------------------------------------------------------

identity = register(
    Connection("identity", lambda x, channels: (x, None), lambda x, w: x, lambda s, w, like: s, pads=True)
)


@register
def mean_pool(window=None, stride=None, padding="valid") -> Connection:
    """The mean of each window, (height, width) or a length; windows stand side by side where no stride is given.

    What pads a signal counts in no mean. Without a window, the mean over all positions: (Q, *P, R) -> (Q, R).
    """
    if window is None:
        if stride is not None or padding != "valid":
            raise ValueError("mean_pool: stride and padding are those of a window, and none is given")
        return Connection("mean_pool", _all_positions, _mean, _back_of_mean, pads=True)
    return _mean_of_windows(window_of("mean_pool", "window", window, window if stride is None else stride, 1, padding))


@functools.cache
def _mean_of_windows(own: Window) -> Connection:
    name = with_constants(
        "mean_pool", own.size, {"stride": own.size, "padding": "valid"}, stride=own.stride, padding=own.padding
    )

    def shapes(x: Shape, channels: int) -> tuple[Shape, None]:
        own.check(x)
        own.check_met(x[:-1])
        return (*own.places(x[:-1]), x[-1]), None

    def share(positions: Shape, dtype) -> Array:
        return jnp.asarray(1 / own.met(positions)[None, ..., None], dtype)

    def forward(x, w):
        return sum(own.read(x)) * share(x.shape[1:-1], x.dtype)

    def back(s, w, like):
        part = s * share(like.shape[1:-1], s.dtype)
        return own.write([part] * len(own.offsets()), like.shape[1:-1])

    return Connection(name, shapes, forward, back, pads=True)


def _all_positions(x: Shape, channels: int) -> tuple[Shape, None]:
    if len(x) < 2:
        raise ValueError(f"needs a signal with positions, got shape {x}")
    return x[-1:], None


def _mean(x: Array, w: None) -> Array:
    return jnp.mean(_by_position(x), axis=1)


def _back_of_mean(s: Array, w: None, like: Array) -> Array:
    positions = like.shape[1:-1]
    part = (s / math.prod(positions)).reshape(len(s), *(1,) * len(positions), -1)
    return jnp.broadcast_to(part, like.shape)


@register
def take(position) -> Connection:
    """One position of a signal, (Q, *P, R) -> (Q, R): take(-1) of (T, R) is the last; a pair (i, j) of (H, W, R)."""
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
                raise ValueError(f"has position {said(given)}, outside the signal's {x[:-1]}")
        return x[-1:], None

    def forward(x, w):
        return x[(slice(None), *given)]

    def back(s, w, like):
        places = [
            (at % length, length - 1 - at % length, 0) for at, length in zip(given, like.shape[1:-1], strict=True)
        ]
        one = s.reshape(len(s), *(1,) * len(places), -1)
        return lax.pad(one, np.zeros((), s.dtype), [(0, 0, 0), *places, (0, 0, 0)])

    return Connection(f"take({said(given)})", shapes, forward, back, pads=True)


@register
def upsample(factor) -> Connection:
    """Every position `factor` times along each axis, (Q, P, R) -> (Q, factor P, R): the nearest neighbour's value.

    factor: (2, 2) of pictures, or a number for signals of one axis. Back, what was repeated is added up.
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
        apart = [n for pair in zip(like.shape[1:-1], factor, strict=True) for n in pair]
        return jnp.sum(s.reshape(len(s), *apart, s.shape[-1]), axis=tuple(2 * axis for axis in axes))

    return Connection(f"upsample({said(factor)})", shapes, forward, back, pads=True)
