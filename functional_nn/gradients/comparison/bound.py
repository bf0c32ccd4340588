"""Differences of two results, and the bound that says which of them rounding alone explains."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn.gradients.comparison.records import Difference, Verdict
from functional_nn.gradients.roundings import displacements, unit_roundoff
from functional_nn.rows import cached

Part = Callable[[Any], Any]  # takes a part of a result
LAMBDA = 6.0


SAYS_LITTLE = 0.1  # a bound above this would pass gradients that are wrong by a tenth


class Examination:
    """Both results at one point, and the automatic one at nearby points, for the condition number."""

    def __init__(
        self,
        manual: Callable,
        automatic: Callable,
        args: tuple,
        moved: tuple[bool, ...],
        key: Array | None,
        jit: bool,
        reused: bool = True,
    ) -> None:
        """reused: the automatic callable will be examined again, so its displacements are worth compiling."""
        self.key = jax.random.key(0) if key is None else key
        self.args, self.jit = args, jit
        compiled = jax.jit if jit else (lambda f: f)
        automatic_compiled = compiled(automatic)
        self.manual, self.automatic = compiled(manual)(*args), automatic_compiled(*args)
        if jax.tree.structure(self.manual) != jax.tree.structure(self.automatic):
            raise ValueError(
                "the two results differ in structure: "
                f"{jax.tree.structure(self.manual)} and {jax.tree.structure(self.automatic)}"
            )
        self.unit = unit_roundoff(jax.tree.leaves(self.automatic)[0].dtype)
        displaced = (
            _compiled_displacements(automatic) if jit and reused else functools.partial(displacements, automatic)
        )
        self.delta = displaced(args, self.key)
        self.step = 2.0 ** round(math.log2(math.sqrt(self.unit)))
        draw = generator(self.key, 1)
        self.nearby = [automatic_compiled(*_moved_by_signs(args, moved, draw, self.step)) for _ in range(3)]

    def condition(self, part: Part) -> float:
        """Returns the condition number of a part of the result, at least 1."""
        result = flat(part(self.automatic))
        norm = np.linalg.norm(result)
        if not np.isfinite(norm):
            return math.nan
        change = max(float(np.linalg.norm(flat(part(moved)) - result)) for moved in self.nearby)
        return max(1.0, change / (self.step * norm)) if norm > 0 else 1.0

    def allowed(self, part: Part) -> float:
        """Returns how large rounding alone may make the difference of a part of the results."""
        return LAMBDA * self.unit * float(np.linalg.norm(flat(part(self.delta))))

    def differences(self, part: Part) -> tuple[Difference, ...]:
        """Returns one difference for each array of a part of the results, each with its own bound."""
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(part(self.automatic))]
        rows = []
        for number, path in enumerate(paths):

            def leaf(tree, number=number):
                return jax.tree.leaves(part(tree))[number]

            name = jax.tree_util.keystr(path, simple=True, separator="/") or "result"
            rows.append(_difference(name, leaf(self.manual), leaf(self.automatic), self.allowed(leaf)))
        return tuple(rows)

    def first_position_apart(self, part: Part, last: bool = False) -> tuple[int, ...] | None:
        """Returns the first position of a signal `(Q, *P, S)` at which the two differ by more than rounding explains.

        last: the last position instead, which is the first on the way back through time.
        """
        manual, automatic, delta = (
            np.asarray(part(x)).astype(np.float64) for x in (self.manual, self.automatic, self.delta)
        )
        if manual.ndim < 3:
            return None

        def norm(x):
            return np.linalg.norm(np.moveaxis(x, 0, -2).reshape(-1, len(x) * x.shape[-1]), axis=1)

        with np.errstate(invalid="ignore"):  # of infinities
            apart = np.flatnonzero(~(norm(manual - automatic) <= LAMBDA * self.unit * norm(delta)))
        if not apart.size:
            return None
        return tuple(int(i) for i in np.unravel_index(apart[-1 if last else 0], manual.shape[1:-1]))

    def total(self, part: Part) -> Difference:
        """Returns the difference of all arrays of a part, taken as one vector."""
        manual, automatic = (
            np.concatenate([np.ravel(np.asarray(x)) for x in jax.tree.leaves(part(tree))])
            for tree in (self.manual, self.automatic)
        )
        return _difference("total", manual, automatic, self.allowed(part))


@functools.partial(cached, size=32)
def _compiled_displacements(automatic: Callable) -> Callable:
    return jax.jit(functools.partial(displacements, automatic))


def _difference(name: str, manual: Any, automatic: Any, allowed: float) -> Difference:
    manual, automatic = np.asarray(manual), np.asarray(automatic)
    if manual.shape != automatic.shape:
        raise ValueError(f"{name}: the two results have shapes {manual.shape} and {automatic.shape}")
    undefined = ~np.isfinite(manual.astype(np.float64)) & ~np.isfinite(automatic.astype(np.float64))
    manual, automatic = (np.where(undefined, np.zeros((), x.dtype), x) for x in (manual, automatic))
    wide = [x.astype(np.float64) for x in (manual, automatic)]
    apart = np.abs(wide[0] - wide[1])
    norm, error = float(np.linalg.norm(wide[1])), float(np.linalg.norm(apart))
    worst = np.unravel_index(int(np.argmax(np.nan_to_num(apart, nan=np.inf))), apart.shape)
    return Difference(
        name,
        error=error,
        allowed=allowed,
        relative=_over(error, norm),
        bound=_over(allowed, norm),
        largest=float(apart[worst]),
        ulps=float(np.max(ulp_distance(manual, automatic))),
        index=tuple(int(i) for i in worst),
        manual=float(wide[0][worst]),
        automatic=float(wide[1][worst]),
        norm=norm,
        undefined=int(undefined.sum()),
    )


def _over(x: float, norm: float) -> float:
    if norm > 0:
        return x / norm
    return math.nan if math.isnan(x) else math.inf if x > 0 else 0.0


def ulp_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Counts the floating-point numbers between x and y, elementwise.

    Args:
        x: Array of a float dtype.
        y: Array of the same shape and dtype.

    Returns:
        Distances in units in the last place, float64; nan where x or y is nan.

    Raises:
        TypeError: If the dtypes differ, or are not float.

    Example:
        >>> import numpy as np, functional_nn as fnn
        >>> x = np.array([1.0, 2.0])
        >>> fnn.comparison.ulp_distance(x, np.nextafter(x, np.inf)).tolist()
        [1.0, 1.0]
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype != y.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"ulp_distance: expected two arrays of one float dtype, got {x.dtype} and {y.dtype}")

    def position(v):
        # Bit patterns of positive floats are ordered as they are; those of negative ones the other way round.
        bits = v.view(f"i{v.dtype.itemsize}").astype(np.int64)
        lowest = -(2 ** (8 * v.dtype.itemsize - 1))
        return np.where(bits < 0, lowest - bits, bits)

    a, b = position(x), position(y)
    near = (a - b).astype(np.float64)  # exact unless the signs differ, where int64 may wrap around
    far = a.astype(np.float64) - b.astype(np.float64)
    distance = np.abs(np.where((a < 0) == (b < 0), near, far))
    return np.where(np.isnan(x.astype(np.float64)) | np.isnan(y.astype(np.float64)), np.nan, distance)


def _moved_by_signs(args, marked, draw: np.random.Generator, step: float):
    """Multiplies every float in the arguments that `moved` marks by 1 + step or 1 - step, at random."""

    def move(x):
        x = np.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        signs = draw.integers(0, 2, x.shape) * 2 - 1
        return (x.astype(np.float64) * (1 + step * signs)).astype(x.dtype)

    return tuple(jax.tree.map(move, arg) if mark else arg for arg, mark in zip(args, marked, strict=True))


def generator(key: Array, purpose: int) -> np.random.Generator:
    return np.random.default_rng([purpose, *np.ravel(jax.random.key_data(key)).tolist()])


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x)).astype(np.float64) for x in jax.tree.leaves(tree)])


def judge(differences: Sequence[Difference]) -> Verdict:
    if not all(d.agrees for d in differences):
        return "differ"
    total = differences[0]
    equal = total.error == 0 == total.norm  # both are 0, apart from what was left out of them
    says_little = any(d.undefined for d in differences) or (total.bound > SAYS_LITTLE and not equal)
    return "inconclusive" if says_little else "agree"


def first_difference(
    parameters: Sequence[Difference], sensitivities: Sequence[Difference], positions: dict[str, tuple | None]
) -> str | None:
    """Returns the first place, from the output back, where the two differ; positions: in a layer's signal."""
    for position, s in enumerate(sensitivities):
        if not s.agrees:
            at = f" at position {positions[s.name]}" if positions.get(s.name) else ""
            origin = "the start, from loss and output activation" if position == 0 else "the step back into this layer"
            return f"{s.name}: dF/dn parts here first{at}, by {s.ulps:.3g} ulps ({origin})"
    for p in parameters:
        if not p.agrees:
            reason = "the sensitivities agree, this gradient does not" if sensitivities else "the two differ"
            return f"{p.name}: {reason}, by {p.ulps:.3g} ulps"
    return None
