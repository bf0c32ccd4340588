"""Windows that slide over the positions of a signal, for convolution and pooling.

Letters: Q examples, P positions along each axis of a signal, C channels.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
from jax import Array, lax

from functional_nn import checks

Shape = tuple[int, ...]  # one example's signal: (*positions, channels); a vector is (R,), an image (H, W, C)
Sizes = int | Sequence[int]  # one for each axis, or one for all
Padding = Literal["same", "valid"] | int | Sequence[int | Sequence[int]]


class Window(NamedTuple):
    """Where a window meets a signal.

    Attributes:
        size: along each axis of positions.
        stride: the step from one window to the next, along each axis.
        dilation: the step inside a window, along each axis.
        padding: "same", "valid", or how many zeros before and after, for each axis.
    """

    size: Shape
    stride: Shape
    dilation: Shape
    padding: Any

    def pads(self, positions: Shape) -> tuple[tuple[int, int], ...]:
        """Returns how many zeros are before and after each axis.

        With "same" they are such that there are ceil(P / stride) windows, an odd zero behind.
        """
        if self.padding == "valid":
            return ((0, 0),) * len(self.size)
        if self.padding != "same":
            return self.padding
        found = []
        for length, reach, stride in zip(positions, self.reaches, self.stride, strict=True):
            whole = max((-(-length // stride) - 1) * stride + reach - length, 0)
            found.append((whole // 2, whole - whole // 2))
        return tuple(found)

    @property
    def reaches(self) -> Shape:
        """How many positions a window spans, gaps included."""
        return tuple((size - 1) * gap + 1 for size, gap in zip(self.size, self.dilation, strict=True))

    def places(self, positions: Shape) -> Shape:
        """Returns how many windows there are along each axis."""
        axes = zip(positions, self.pads(positions), self.reaches, self.stride, strict=True)
        return tuple((length + sum(pad) - reach) // stride + 1 for length, pad, reach, stride in axes)

    def check(self, x: Shape) -> None:
        """Raises ValueError for a signal that the window does not fit."""
        if len(x) != len(self.size) + 1:
            axes = ", ".join("PQR"[: len(self.size)])
            raise ValueError(f"needs a signal ({axes}, channels), got shape {x}")
        same = self.padding == "same"
        padded = x[:-1] if same else tuple(n + sum(pad) for n, pad in zip(x[:-1], self.pads(x[:-1]), strict=True))

        def larger(sizes):
            return any(size > n for size, n in zip(sizes, padded, strict=True))

        signal = f"larger than the signal's {written(padded)}" + (", padding included" if padded != x[:-1] else "")
        if larger(self.reaches):
            hint = "; padding given as numbers allows it" if same else ""
            raise ValueError(f"has a window over {written(self.reaches)} positions, {signal}{hint}")
        if larger(self.stride):
            raise ValueError(f"has a stride of {written(self.stride)} positions, {signal}")

    def offsets(self) -> list[Shape]:
        """Returns the positions of a window's elements in it."""
        return list(product(*(range(0, reach, gap) for reach, gap in zip(self.reaches, self.dilation, strict=True))))

    def met(self, positions: Shape) -> np.ndarray:
        """Returns how many of the signal's positions each window meets, of shape P'."""
        counts = np.ones(())
        axes = zip(positions, self.places(positions), self.pads(positions), self.size, self.stride, strict=True)
        for length, places, (before, _), size, step in axes:
            first = np.arange(places) * step - before
            inside = np.minimum(first + size, length) - np.maximum(first, 0)
            counts = np.multiply.outer(counts, np.maximum(inside, 0))  # below 0 where a window is all padding
        return counts

    def check_met(self, positions: Shape) -> None:
        """Raises ValueError if a window meets only padding, which has no mean and no largest."""
        if (self.met(positions) < 1).any():
            raise ValueError(f"has windows that meet nothing but padding, over positions {positions}")

    def read(self, x: Array, fill: float = 0) -> list[Array]:
        """Returns, for each element of a window, what it meets at all places, `(Q, *P', C)` each; `fill` pads x
        `(Q, *P, C)`.
        """
        pads, places = self.pads(x.shape[1:-1]), self.places(x.shape[1:-1])
        padded = x
        if any(map(any, pads)):
            padded = lax.pad(x, np.asarray(fill, x.dtype), ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
        found = []
        for start in self.offsets():
            ends = [at + (count - 1) * step + 1 for at, count, step in zip(start, places, self.stride, strict=True)]
            found.append(lax.slice(padded, (0, *start, 0), (x.shape[0], *ends, x.shape[-1]), (1, *self.stride, 1)))
        return found

    def write(
        self,
        elements: list[Array],
        positions: Shape,
        combine: Callable[[Array, Array], Array] = lax.add,
        empty: float = 0,
    ) -> Array:
        """The adjoint of `read`: what was read at several places is added, what was padding is left out.

        combine, empty: another operation than the sum, and its value where nothing was read.
        """
        total: Any = None
        for start, element in zip(self.offsets(), elements, strict=True):
            edges = []
            axes = zip(start, self.pads(positions), element.shape[1:-1], self.stride, positions, strict=True)
            for at, (before, _), count, step, length in axes:
                first = at - before
                edges.append((first, length - first - (count - 1) * step - 1, step - 1))
            back = lax.pad(element, np.asarray(empty, element.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
            total = back if total is None else combine(total, back)
        return total


def written(sizes: Shape) -> str:
    """Returns sizes as they are written in a name: a single one without parentheses."""
    return str(sizes[0]) if len(sizes) == 1 else str(sizes)


def window_of(owner: str, called: str, size, stride, dilation, padding) -> Window:
    """Returns a checked window; called: what the size is called in messages.

    Raises ValueError for sizes that are not positive integers, or not one for each axis.
    """
    size = _each(owner, called, size, None)
    if len(size) > 3:
        raise ValueError(f"{owner}: one, two or three axes of positions, got {len(size)}")
    count = len(size)
    if isinstance(padding, str):
        checks.one_of(owner, "padding", padding, ("same", "valid"))
    else:
        given = padding if isinstance(padding, tuple | list) else (padding,) * count
        if len(given) != count:
            raise ValueError(f"{owner}: padding must be 'same', 'valid' or {count}, one for each axis, got {padding!r}")
        pairs = (pad if isinstance(pad, tuple | list) else (pad, pad) for pad in given)
        padding = tuple(_each(owner, "padding", pair, 2, 0) for pair in pairs)
        padding = padding if any(map(any, padding)) else "valid"
    return Window(size, _each(owner, "stride", stride, count), _each(owner, "dilation", dilation, count), padding)


def _each(owner: str, name: str, given, count: int | None, least: int = 1) -> Shape:
    """One integer for each axis; a single one serves all axes."""
    given = given if isinstance(given, tuple | list) else (given,) * (count or 1)
    if not given or (count is not None and len(given) != count):
        raise ValueError(f"{owner}: {name} must be an integer or {count or 'several'} of them, got {given!r}")
    return tuple(checks.integer(owner, name, x, least) for x in given)


def with_constants(name: str, first, defaults: dict[str, Any], **given) -> str:
    """The name with its constants, as `get` reads it; defaults are left out."""

    def text(x):
        if isinstance(x, str | int):
            return x
        edges = {edge for pad in x if isinstance(pad, tuple) for edge in pad}  # of padding
        return edges.pop() if len(edges) == 1 else x if edges else written(x)

    others = [f"{key}={text(x)}" for key, x in given.items() if x != defaults[key]]
    return f"{name}({', '.join([written(first), *others])})"
