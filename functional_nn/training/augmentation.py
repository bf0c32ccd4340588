"""Augmentation: training pictures changed at random, anew in every update, so that one is seldom seen twice alike.

Letters: Q examples, H rows and W columns of pixels, C channels.

A row is a pure function of a key, `apply(key, x (Q, H, W, C)) -> (Q, H, W, C)`, in the dtype of x: each example is
drawn by itself, and pixels are moved or set to 0, never computed. 0 is 0 of the numbers that the network reads: black
where these are brightness, the mean where they are standardized. `fit(..., augment=("shift(2)", "flip"))` applies them
one after the other to the training batches, in the compiled step; what is validated, tracked or evaluated stays as it
is. What leaves a picture in its class is the user's to know: a 6 that is flipped vertically is none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks, registry
from functional_nn.networks.connections import Shape
from functional_nn.registry import Described, Registry, cached
from functional_nn.training import keys

Augmented = tuple[tuple[str, tuple["Augmentation", ...]], ...]  # by the input's name, in the order they are applied


@dataclass(frozen=True)
class Augmentation(Described):
    """apply(key, x) -> x changed, in its shape and dtype.

    least: it takes pictures (H, W, C) of at least so many rows and columns; None where it takes any input (Q, *P, R).
    constants: what it was made with, by name.
    """

    name: str
    apply: Callable[[Array, Array], Array]
    least: int | None = None
    constants: dict[str, Any] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        return f"<augmentation {self.specification}>"

    @property
    def specification(self) -> str:
        """What `get` makes it of again, such as "shift(pixels=2)"."""
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.name}({constants})" if constants else self.name


Own = Callable[[Array, Array], Array]
Augment = str | Augmentation | Own | Sequence[str | Augmentation | Own] | Mapping[str, Any]

_registry: Registry[Augmentation] = Registry("augmentation", Augmentation)
register, names, get = _registry.register, _registry.names, _registry.get


@cached
def shift(pixels: int) -> Augmentation:
    """Moves each picture by whole pixels, up or down and left or right: by each of -p..p with the same probability.

    What comes in at the edge is 0, what leaves is lost. That is "pad by p, then crop at random to the size it had", as
    in He et al. 2016, sec. 4.2, with p = 4, so that `crop` is another name of it. Raises ValueError unless p is an
    integer >= 0, and in training for pictures that it could move by more than half of their size.
    """
    p = checks.integer("shift", "pixels", pixels, 0)

    def apply(key, x):
        corners = jax.random.randint(key, (len(x), 2), 0, 2 * p + 1, jnp.int32)
        padded = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))

        def window(picture, corner):
            return lax.dynamic_slice(picture, (*corner, jnp.int32(0)), x.shape[1:])

        # one gather: on CPU a third to a tenth of what 2 (2 p + 1) slices and as many choices take
        return jax.vmap(window)(padded, corners)

    return Augmentation("shift", apply, 2 * p, {"pixels": p})


crop = shift
_registry.add("shift", shift, aliases=("crop",))


@register
def flip(axis: Literal["horizontal", "vertical"] = "horizontal") -> Augmentation:
    """Mirrors each picture with probability 1/2: left and right, or top and bottom where the axis is "vertical".

    Raises ValueError for another word.
    """
    checks.one_of("flip", "axis", axis, ("horizontal", "vertical"))
    over = 2 if axis == "horizontal" else 1

    def apply(key, x):
        flipped = jax.random.bernoulli(key, 0.5, (len(x), 1, 1, 1))
        return jnp.where(flipped, jnp.flip(x, over), x)

    return Augmentation("flip", apply, 1, {"axis": axis})


@register
def cutout(size: int) -> Augmentation:
    """Sets a square of size x size pixels to 0 in each picture, always: DeVries and Taylor 2017 (arXiv 1708.04552).

    Its center is any pixel, each with the same probability, so that part of the square may lie outside: from
    size // 2 before the center on it is `size` long, where the authors' code, of an odd size, takes one less. Raises
    ValueError unless the size is an integer >= 0, and in training for pictures that are smaller.
    """
    size = checks.integer("cutout", "size", size, 0)

    def apply(key, x):
        sides = x.shape[1:3]
        centers = jax.random.randint(key, (2, len(x)), 0, jnp.asarray(sides, jnp.int32)[:, None], jnp.int32)
        rows, columns = (_covers(center - size // 2, size, side) for center, side in zip(centers, sides, strict=True))
        return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], jnp.zeros((), x.dtype), x)

    return Augmentation("cutout", apply, size, {"size": size})


def _covers(first: Array, size: int, side: int) -> Array:
    """(Q, side) booleans: which pixels of a side lie in first..first + size - 1."""
    pixels, first = jnp.arange(side, dtype=jnp.int32)[None, :], first[:, None]
    return (pixels >= first) & (pixels < first + size)


# What training asks of them -------------------------------------------------------------------------------------------


def settled(augment: Augment, shapes: Mapping[str, Shape]) -> Augmented:
    """`fit`'s `augment` by input, checked; shapes: of one example of each of the network's inputs.

    One or several, each a name, an Augmentation or a function (key, x) -> x, for the only input, or the only one of
    pictures; or {input: one or several}. Raises ValueError for an input that is no picture or too small a one, and for
    names that are unknown, TypeError for what is none of these.
    """
    if not isinstance(augment, Mapping):
        augment = {_only(shapes): augment} if _several(augment) else {}
    found = []
    for name, given in augment.items():
        if name not in shapes:
            raise ValueError("augment: " + registry.unknown("input", str(name), shapes))
        rows = tuple(map(_row, _several(given)))
        for row in rows:
            _check_picture(row, name, shapes[name])
        found += [(name, rows)] if rows else []
    return tuple(found)


def _several(given: Any) -> tuple:
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _only(shapes: Mapping[str, Shape]) -> str:
    accepted = [name for name, shape in shapes.items() if len(shapes) == 1 or len(shape) == 3]
    if len(accepted) != 1:
        raise ValueError(
            f"augment: expected {{input: ...}}, since the network has {len(shapes)} inputs, of which {len(accepted)} "
            f"have pictures (H, W, C); with names among {', '.join(shapes)}"
        )
    return accepted[0]


def _row(given: Any) -> Augmentation:
    if isinstance(given, str | Augmentation):
        return get(given)
    if not callable(given):
        raise TypeError(
            f"augment: expected a name ({', '.join(names())}), an Augmentation or a function (key, x) -> x, got "
            f"{given!r}"
        )
    return Augmentation(getattr(given, "__qualname__", type(given).__name__), given)


def _check_picture(row: Augmentation, name: str, shape: Shape) -> None:
    if row.least is None:
        return
    if len(shape) != 3:
        raise ValueError(f"augment: {row.name} needs pictures (H, W, C), got input {name!r} of shape {shape}")
    if min(shape[:2]) < row.least:
        raise ValueError(
            f"augment: {row.specification} needs pictures of at least {row.least} x {row.least} pixels, got input "
            f"{name!r} of shape {shape}"
        )


def check_shapes(augment: Augmented, inputs: Mapping[str, Array], size: int) -> None:
    """Raises ValueError where a function gives another shape or dtype than it gets, of batches of that size."""
    for name, rows in augment:
        like = jax.ShapeDtypeStruct((size, *inputs[name].shape[1:]), inputs[name].dtype)
        for row in rows:
            found = jax.eval_shape(row.apply, jax.random.key(0), like)
            given = type(found).__name__
            if isinstance(found, jax.ShapeDtypeStruct):
                given = f"{found.dtype} of shape {found.shape}"
            expected = f"{like.dtype} of shape {like.shape}"
            if given != expected:
                raise ValueError(f"augment: {row.name} must give what it gets, {expected}, got {given}")


def augmented(augment: Augmented, update_key: Array, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A batch's inputs, with those that are augmented changed; update_key: of `keys.updates`."""
    changed, number = dict(inputs), 0
    for name, rows in augment:
        for row in rows:
            changed[name] = row.apply(keys.augmentation(update_key, number), changed[name])
            number += 1
    return changed
