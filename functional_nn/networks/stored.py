"""Data that stay as they are stored: examples are made from them where they are read, a batch at a time.

Letters: Q examples, N tokens of a stream, T the context, S outputs. A `Stored` behaves in a compiled program as an
array does: it has a shape, a dtype and a length, and `x[numbers]` returns the examples with these numbers. `taken` and
`whole` read trees of arrays, `Stored`, or both.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, platforms
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss

_STATIC = {"static": True}

LARGE = 64 * 2**20  # bytes of an array; a copy of a larger one is avoided
_ALIGNED = 64  # bytes


class Stored:
    """Examples that are not an array yet; `len` is Q."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all examples, Q first."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Windows(Stored):
    """A stream cut into windows: example q is tokens[qT + offset : (q + 1)T + offset]. Made by `windows`.

    Attributes:
        tokens: (N,) integers of any size.
        context: T.
        offset: 0 for inputs, 1 for targets.
    """

    tokens: Array | np.ndarray  # (N,) integers of any size
    context: int = field(metadata=_STATIC)
    offset: int = field(default=0, metadata=_STATIC)

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, T)."""
        return (self.tokens.shape[0] - 1) // self.context, self.context

    @property
    def dtype(self) -> np.dtype:
        """int32, the dtype of the examples."""
        return np.dtype(np.int32)

    def __getitem__(self, numbers) -> Array:
        numbers = jnp.arange(*numbers.indices(len(self)), dtype=jnp.int32) if isinstance(numbers, slice) else numbers
        starts = numbers * self.context + self.offset
        # one gather of whole windows
        rows = jax.vmap(lambda start: lax.dynamic_slice(self.tokens, (start,), (self.context,)))(starts)
        return rows.astype(jnp.int32)

    def __repr__(self) -> str:
        return f"<windows of {self.context} tokens, {len(self)} in a stream of {self.tokens.shape[0]}>"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Labels(Stored):
    """Integer labels `(Q, *P)` that stand for the targets `(Q, *P, S)` which `losses.coded` makes from them.

    Attributes:
        numbers: the labels.
        loss: decides how they are coded.
        outputs: S.
        dtype: of the targets.
    """

    numbers: Array | Windows
    loss: Loss = field(metadata=_STATIC)
    outputs: int = field(metadata=_STATIC)
    dtype: Any = field(metadata=_STATIC)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(Q, *P, S)`."""
        return (*self.numbers.shape, self.outputs)

    def __getitem__(self, numbers) -> Array:
        return jnp.asarray(losses.coded(self.loss, self.numbers[numbers], self.outputs), self.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Rows(Stored):
    """A large array `(Q, *P, R)` in the host's memory, which the compiled program reads there as it is stored, without
    a copy.

    Made by `in_place`. Its examples have the shape of those of `first`, and `dtype`.

    Attributes:
        rest: (N,) its numbers in order, from the first that lies where XLA can read the host's memory.
        first: `(H, *P, R)` the few examples that begin before it.
        examples: Q.
        dtype: of the examples.
    """

    rest: Array  # (N,) its numbers in order, from the first that lies where XLA reads the host's memory
    first: Array  # (H, *P, R) the few examples that begin before it
    examples: int = field(metadata=_STATIC)
    dtype: Any = field(metadata=_STATIC)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(Q, *P, R)`."""
        return (self.examples, *self.first.shape[1:])

    def __getitem__(self, numbers) -> Array:
        numbers = jnp.arange(*numbers.indices(len(self)), dtype=jnp.int32) if isinstance(numbers, slice) else numbers
        size, early = math.prod(self.first.shape[1:]), self.first.shape[0]
        starts = jnp.maximum(numbers * size - (self.examples * size - self.rest.shape[0]), 0)
        rows = jax.vmap(lambda start: lax.dynamic_slice(self.rest, (start,), (size,)))(starts)
        rows = rows.reshape(-1, *self.first.shape[1:])
        if early:
            before = self.first[jnp.minimum(numbers, early - 1)]
            rows = jnp.where((numbers < early).reshape(-1, *[1] * (rows.ndim - 1)), before, rows)
        return rows.astype(self.dtype)


def placed(x: Array, dtype: Any) -> Array:
    """Returns x on the device, in that dtype."""
    if _is_narrow(x):  # bytes are moved as they are, and widened on the device
        return jnp.asarray(x).astype(dtype)
    return jnp.asarray(x, dtype)


def in_place(x: Array, dtype: Any) -> Array | Rows:
    """Returns a large NumPy array as examples of that dtype, without a copy where possible, as on CPU; else `placed`.

    Numbers of that dtype, and narrower ones that it holds exactly, are read as they are stored. Other dtypes, and
    arrays that are not in C order, are copied once. The array must not be written to while it is read. XLA reads the
    host's memory from multiples of 64 bytes on.
    """
    whole_numbers = x.dtype.kind in "biu" and not _is_narrow(x)
    elsewhere = not platforms.here().one_memory
    if elsewhere or not isinstance(x, np.ndarray) or x.nbytes < LARGE or x.size >= 2**31 or whole_numbers:
        return placed(x, dtype)
    kept = _is_narrow(x) or x.dtype.itemsize <= np.dtype(dtype).itemsize
    x = np.require(x, x.dtype.newbyteorder("=") if kept else dtype, ["C_CONTIGUOUS", "ALIGNED"])
    start = -x.ctypes.data % _ALIGNED // x.dtype.itemsize
    early = -(-start // math.prod(x.shape[1:]))
    rest = jax.device_put(x.reshape(-1)[start:], may_alias=True)
    return Rows(rest, jnp.asarray(x[:early]), len(x), np.dtype(dtype))


def windows(tokens: Array | np.ndarray, context: int) -> Windows:
    """Returns a stream of tokens as examples for `fit`, `evaluate` and the like, which take it instead of inputs and
    targets.

    The stream is kept once, in its own dtype, bytes as bytes, and cut into windows batch by batch. Example q is the
    `context` tokens from number q context on, and its targets are the tokens that follow each of them. This gives
    Q = (N - 1) // context examples, for a network with an input of `context` tokens and outputs at each. The rest at
    the end is not read.

    Args:
        tokens: (N,) integers.
        context: T, the length of a window.

    Raises:
        TypeError: tokens are not an array of integers.
        ValueError: the shape is another, context < 1, or the stream is shorter than one window and the token after it.

    Example:
        >>> import numpy as np, functional_nn as fnn
        >>> text = np.frombuffer(b"to be or not to be", np.uint8)
        >>> fnn.windows(text, 4)
        <windows of 4 tokens, 4 in a stream of 18>
    """
    context = checks.integer("windows", "context", context, 1)
    checks.numeric("tokens", tokens)
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens: expected integers, got dtype {tokens.dtype}")
    if tokens.ndim != 1:
        raise ValueError(f"tokens: expected a stream, shape (N,), got {tokens.shape}")
    if not context < tokens.shape[0] < 2**31:  # places in it are int32
        raise ValueError(
            f"tokens: expected {context + 1} or more, one window of {context} and the token after it, and less than "
            f"2^31; got {tokens.shape[0]}"
        )
    return Windows(tokens, context)


def at_most_32_bits(x: Array) -> Array:
    """Returns integers on the device, in their own dtype if it has at most 32 bits."""
    return jnp.asarray(x) if x.dtype.itemsize <= 4 else jnp.asarray(x, jnp.int32)


def _is_narrow(x: Array) -> bool:
    return x.dtype.kind in "biu" and x.dtype.itemsize <= 2


def is_stored(tree: Any) -> bool:
    """Returns True if a leaf of the tree is `Stored`."""
    return any(map(_is_leaf, jax.tree.leaves(tree, is_leaf=_is_leaf)))


def taken(tree: Any, numbers: Any) -> Any:
    """Returns the examples with these numbers."""
    return jax.tree.map(lambda x: x[numbers], tree, is_leaf=_is_leaf)


def whole(tree: Any) -> Any:
    """Returns all examples as arrays; arrays unchanged."""
    return jax.tree.map(lambda x: x[:] if _is_leaf(x) else x, tree, is_leaf=_is_leaf)


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Stored)
