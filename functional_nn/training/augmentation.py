"""Augmentation: random changes of the training images, drawn again in every update.

Letters: Q examples, H rows and W columns of pixels, C channels.

An augmentation is a pure function of a key, `apply(key, x (Q, H, W, C)) -> (Q, H, W, C)`, in the dtype of x. Each
example is drawn by itself. Pixels are moved or set to 0, never computed. 0 is black where the network reads brightness,
and the mean where it reads standardized numbers.

`fit(..., augment=("shift(2)", "flip"))` applies them one after the other to the training batches, in the compiled step.
The data that are validated, tracked or evaluated are not changed. Whether an image stays in its class is for the user
to know: a 6 that is flipped vertically is no 6.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks, registry
from functional_nn.networks.connections import Shape
from functional_nn.registry import Registry
from functional_nn.rows import Described, cached
from functional_nn.training import keys

__all__ = ["Augment", "Augmentation", "crop", "cutout", "flip", "get", "names", "register", "shift"]

Augmented = tuple[tuple[str, tuple["Augmentation", ...]], ...]  # by the input's name, in the order they are applied


@dataclass(frozen=True)
class Augmentation(Described):
    """A random change of inputs, for `fit(augment=...)`.

    Attributes:
        name: Its name.
        apply: `apply(key, x) -> x`, changed, in the same shape and dtype.
        least: The fewest rows and columns of the images (H, W, C) that it takes. None (default) for any input
            `(Q, *P, R)`.
        constants: The arguments it was made with, by name.

    Example:
        >>> import jax.numpy as jnp, jax, functional_nn as fnn
        >>> fnn.training.augmentation.get("shift(2)")
        <augmentation shift(pixels=2)>
        >>> negative = fnn.training.Augmentation("negative", lambda key, x: -x)
        >>> negative.apply(jax.random.key(0), jnp.ones((1, 2))).tolist()
        [[-1.0, -1.0]]
    """

    name: str
    apply: Callable[[Array, Array], Array]
    least: int | None = None
    constants: dict[str, Any] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        return f"<augmentation {self.specification}>"

    @property
    def specification(self) -> str:
        """The text that `get` takes, such as "shift(pixels=2)"."""
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.name}({constants})" if constants else self.name


Function = Callable[[Array, Array], Array]  # (key, x) -> x, the user's
Augment = str | Augmentation | Function | Sequence[str | Augmentation | Function] | Mapping[str, Any]

_registry: Registry[Augmentation] = Registry("augmentation", Augmentation)
register, names, get = _registry.register, _registry.names, _registry.get


@cached
def shift(pixels: int) -> Augmentation:
    """Moves each image by whole pixels, vertically and horizontally, each of -p to p with the same probability.

    Pixels that enter at the edge are 0, and pixels that leave are lost. This is the same as padding by p pixels and
    cropping at random to the original size, so that `crop` is another name of it.

    Args:
        pixels: p, >= 0. Training refuses images that could be moved by more than half of their size.

    Raises:
        ValueError: Unless p is an integer >= 0.

    References:
        He et al. 2016, Deep Residual Learning for Image Recognition, sec. 4.2, with p = 4.

    Example:
        >>> import jax, functional_nn as fnn
        >>> images = jax.numpy.ones((3, 8, 8, 1))
        >>> fnn.training.augmentation.shift(2).apply(jax.random.key(0), images).shape
        (3, 8, 8, 1)
    """
    p = checks.integer("shift", "pixels", pixels, 0)

    def apply(key, x):
        corners = jax.random.randint(key, (len(x), 2), 0, 2 * p + 1, jnp.int32)
        padded = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))

        def window(image, corner):
            return lax.dynamic_slice(image, (*corner, jnp.int32(0)), x.shape[1:])

        # one gather: on CPU a third to a tenth of the time of 2 (2 p + 1) slices and as many choices
        return jax.vmap(window)(padded, corners)

    return Augmentation("shift", apply, 2 * p, {"pixels": p})


crop = shift
_registry.add("shift", shift, aliases=("crop",))


@register
def flip(axis: Literal["horizontal", "vertical"] = "horizontal") -> Augmentation:
    """Mirrors each image with probability 1/2.

    Args:
        axis: "horizontal" (default) exchanges left and right, "vertical" top and bottom.

    Raises:
        ValueError: For another word.

    Example:
        >>> import jax, functional_nn as fnn
        >>> image = jax.numpy.arange(4.0).reshape(1, 1, 4, 1)
        >>> flipped = fnn.training.augmentation.flip().apply(jax.random.key(0), image)
        >>> flipped.ravel().tolist() in ([0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0])
        True
    """
    checks.one_of("flip", "axis", axis, ("horizontal", "vertical"))
    reversed_axis = 2 if axis == "horizontal" else 1

    def apply(key, x):
        flipped = jax.random.bernoulli(key, 0.5, (len(x), 1, 1, 1))
        return jnp.where(flipped, jnp.flip(x, reversed_axis), x)

    return Augmentation("flip", apply, 1, {"axis": axis})


@register
def cutout(size: int) -> Augmentation:
    """Sets a square of size x size pixels to 0 in every image.

    The center of the square is any pixel, each with the same probability, so that part of the square may lie outside
    the image. The square begins size // 2 pixels before its center. The authors' code takes one pixel less for an odd
    size.

    Args:
        size: The side of the square in pixels, >= 0. Training refuses images that are smaller.

    Raises:
        ValueError: Unless the size is an integer >= 0.

    References:
        DeVries and Taylor 2017, Improved Regularization of Convolutional Neural Networks with Cutout, arXiv 1708.04552.

    Example:
        >>> import jax, functional_nn as fnn
        >>> images = jax.numpy.ones((50, 8, 8, 1))
        >>> pixels = fnn.training.augmentation.cutout(3).apply(jax.random.key(0), images).sum((1, 2, 3))
        >>> int(pixels.min()), int(pixels.max()) <= 60
        (55, True)
    """
    size = checks.integer("cutout", "size", size, 0)

    def apply(key, x):
        sides = x.shape[1:3]
        centers = jax.random.randint(key, (2, len(x)), 0, jnp.asarray(sides, jnp.int32)[:, None], jnp.int32)
        rows, columns = (_covers(center - size // 2, size, side) for center, side in zip(centers, sides, strict=True))
        return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], jnp.zeros((), x.dtype), x)

    return Augmentation("cutout", apply, size, {"size": size})


def _covers(first: Array, size: int, side: int) -> Array:
    """(Q, side) booleans: which pixels of a side are in first to first + size - 1."""
    pixels, first = jnp.arange(side, dtype=jnp.int32)[None, :], first[:, None]
    return (pixels >= first) & (pixels < first + size)


# In training ----------------------------------------------------------------------------------------------------------


def by_input(augment: Augment, shapes: Mapping[str, Shape]) -> Augmented:
    """Returns the argument `augment` of `fit` by input, checked.

    Args:
        augment: One or several augmentations, each a name, an `Augmentation` or a function (key, x) -> x, for the only
            input, or the only one that has images; or {input: one or several}.
        shapes: The shape of one example of each of the network's inputs.

    Raises:
        ValueError: For an unknown name, and for an input that has no images or too small ones.
        TypeError: For anything else.
    """
    if not isinstance(augment, Mapping):
        augment = {_image_input(shapes): augment} if _as_tuple(augment) else {}
    checked = []
    for name, of_input in augment.items():
        if name not in shapes:
            raise ValueError("augment: " + registry.unknown("input", str(name), shapes))
        augmentations = tuple(map(_augmentation, _as_tuple(of_input)))
        for augmentation in augmentations:
            _check_images(augmentation, name, shapes[name])
        checked += [(name, augmentations)] if augmentations else []
    return tuple(checked)


def _as_tuple(augment: Any) -> tuple:
    return tuple(augment) if isinstance(augment, tuple | list) else (augment,)


def _image_input(shapes: Mapping[str, Shape]) -> str:
    """The only input, or the only one that has images."""
    accepted = [name for name, shape in shapes.items() if len(shapes) == 1 or len(shape) == 3]
    if len(accepted) != 1:
        raise ValueError(
            f"augment: expected {{input: ...}}, since the network has {len(shapes)} inputs, of which {len(accepted)} "
            f"have images (H, W, C); with names among {', '.join(shapes)}"
        )
    return accepted[0]


def _augmentation(augment: Any) -> Augmentation:
    if isinstance(augment, str | Augmentation):
        return get(augment)
    if not callable(augment):
        raise TypeError(
            f"augment: expected a name ({', '.join(names())}), an Augmentation or a function (key, x) -> x, got "
            f"{augment!r}"
        )
    return Augmentation(getattr(augment, "__qualname__", type(augment).__name__), augment)


def _check_images(augmentation: Augmentation, name: str, shape: Shape) -> None:
    if augmentation.least is None:
        return
    if len(shape) != 3:
        raise ValueError(f"augment: {augmentation.name} needs images (H, W, C), got input {name!r} of shape {shape}")
    if min(shape[:2]) < augmentation.least:
        raise ValueError(
            f"augment: {augmentation.specification} needs images of at least {augmentation.least} x "
            f"{augmentation.least} pixels, got input {name!r} of shape {shape}"
        )


def check_shapes(augment: Augmented, inputs: Mapping[str, Array], size: int) -> None:
    """Raises ValueError if a function returns another shape or dtype than it takes, for batches of that size."""
    for name, augmentations in augment:
        like = jax.ShapeDtypeStruct((size, *inputs[name].shape[1:]), inputs[name].dtype)
        for augmentation in augmentations:
            result = jax.eval_shape(augmentation.apply, jax.random.key(0), like)
            returned = type(result).__name__
            if isinstance(result, jax.ShapeDtypeStruct):
                returned = f"{result.dtype} of shape {result.shape}"
            expected = f"{like.dtype} of shape {like.shape}"
            if returned != expected:
                raise ValueError(f"augment: {augmentation.name} must return what it takes, {expected}, got {returned}")


def augmented(augment: Augmented, update_key: Array, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Returns a batch's inputs, augmented. update_key: the update's, of `keys.updates`."""
    changed, number = dict(inputs), 0
    for name, augmentations in augment:
        for augmentation in augmentations:
            changed[name] = augmentation.apply(keys.augmentation(update_key, number), changed[name])
            number += 1
    return changed
