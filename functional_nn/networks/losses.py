r"""Losses: the value and dF/da of each example, and the pairs that are fused with an output layer.

Letters: Q examples, S outputs. `a` outputs, `t` targets and `n` net inputs of the output layer are (Q, S); `weights`,
if passed, weighs each example, (Q,).

A loss (the texts' performance function) is a sum over examples, or their mean if `reduction` is "mean":

.. math::

    F = \sum_q w_q F_q, \qquad \text{or} \qquad F = \frac{\sum_q w_q F_q}{\sum_q w_q}

where every w_q is 1 without weights. A row computes F_q and dF_q/da. A row that is fused with an output activation also
computes F_q and s_q = dF_q/dn from the net inputs: exact and finite where the composition would be log(0) or 0/0. Every
value keeps the dtype of the outputs; sums are accumulated in at least float32.

Where outputs have positions, `(Q, *P, S)`, a row is computed at each of their T, and F_q is the mean of its values
there, or their sum if `positions` is "sum". Weights may be given at each position, `(Q, *P)`, 0 for one that is masked:
F_q is then the weighted mean, and w_q the mean of the weights, so that a position counts by its weight, whichever
example it belongs to.

What cancels in the two most used pairs, for one example, with H = ds/dn (S, S). Softmax and cross-entropy (Hagan E3.5):

.. math::

    \begin{aligned}
    F_q &= -\sum_i t_i \ln a_i \\
    s &= (\mathrm{diag}(a) - a a^T)(-t / a) = a \sum_i t_i - t, \qquad \text{which is } a - t \text{ if the targets sum
    to 1} \\ H &= \sum_i t_i \, (\mathrm{diag}(a) - a a^T) = V V^T,
        \qquad \text{with columns } \sqrt{a_c \textstyle\sum_i t_i} \, (e_c - a)
    \end{aligned}

Sigmoid and binary cross-entropy (Hagan P3.1):

.. math::

    \begin{aligned}
    F_q &= -\sum_i \left(t_i \ln a_i + (1 - t_i) \ln(1 - a_i)\right) \\
    s &= \frac{a (1 - a)(a - t)}{a (1 - a)} = a - t, \qquad H = \mathrm{diag}(a (1 - a))
    \end{aligned}

Kullback-Leibler differs from cross-entropy by sum t ln t, which does not depend on the outputs: the same s, the same H.

Most losses are -ln of how likely the targets are, given a distribution that the outputs describe (Hagan 3.6-3.9,
Lecture 2's Normal, Bernoulli and Multinomial units). The parameters that minimize F then make the data the most likely:

    - half_sum_square_error, sum_square_error, mean_square_error: Normal of variance 1, 1/2, S/2 around each output;
    - binary_cross_entropy: Bernoulli of probability a, each output by itself;
    - logistic: Bernoulli of t = +1 with probability 1 / (1 + e^-a);
    - cross_entropy, kullback_leibler: categorical (Multinomial with one draw), class i with probability a_i.

The hinges, the symmetric divergence and Bhattacharyya's distance have no likelihood.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from functional_nn import checks, precision
from functional_nn.networks import activations
from functional_nn.networks.activations import Activation, Range, largest_in_row
from functional_nn.networks.connections import rows
from functional_nn.precision import at_least_float32
from functional_nn.registry import Registry
from functional_nn.rows import Constants, Described, cached

__all__ = [
    "Curvature",
    "FusedPair",
    "Likelihood",
    "Loss",
    "bhattacharyya",
    "binary_cross_entropy",
    "class_weights",
    "cross_entropy",
    "get",
    "half_sum_square_error",
    "hinge",
    "kullback_leibler",
    "largest",
    "logistic",
    "mean_square_error",
    "multiclass_hinge",
    "names",
    "one_hot",
    "register",
    "smooth_labels",
    "sum_square_error",
    "symmetric_kullback_leibler",
]

_RANGE_IN_WORDS = {"real": "real numbers", "unit interval": "numbers in [0, 1]", "distribution": "a distribution"}
Reduction = Literal["mean", "sum"]
_RANGES: tuple[Range, ...] = ("real", "unit interval", "distribution")  # each is also all that come before it


@dataclass(frozen=True)
class Curvature:
    """The second derivative H_q (S, S) of F_q with respect to x: the outputs, or the net inputs in a fused pair.

    Attributes:
        product: product(r, x, t) -> H_q r_q (Q, S).
        root: root(x, t) -> V (Q, C, S), with sum_c V_qc V_qc^T = H_q: the columns that curvature is propagated back
            with. None if H_q may have negative eigenvalues.
        combine: combine(z, x, t) -> sum_c z_qkc V_qc (Q, K, S), for z (Q, K, C), without forming V. None if `root` must
            be formed, which is done for a few examples at a time.
        least_root: least_root(x, t) -> a root with as few columns as H_q has rank, for when all are propagated. None if
            `root` has no more.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> def root(x, t):
        ...     return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), (len(x), x.shape[-1], x.shape[-1]))
        >>> identity = fnn.losses.Curvature(product=lambda r, x, t: r, root=root)  # of half the sum of squares
        >>> identity.root(jnp.zeros((5, 2)), None).shape
        (5, 2, 2)
    """

    product: Callable[[Array, Array, Array], Array]
    root: Callable[[Array, Array], Array] | None
    combine: Callable[[Array, Array, Array], Array] | None = None
    least_root: Callable[[Array, Array], Array] | None = None


@dataclass(frozen=True)
class Likelihood:
    """The distribution of the targets that outputs describe: F_q = -log(a, t) + what does not depend on the outputs.

    Attributes:
        name: the family.
        means: what the outputs are in it.
        log: log(a, t) -> (Q,) in the dtype of the outputs: ln of the normalized density of each example's targets, or
            of their probability where they are classes, 0 and 1, or signs. For shares as targets (between 0 and 1),
            which are not outcomes, it is the expected ln of an outcome drawn with these shares. Counts of classes are
            that many draws in their order, the prod a^t of Hagan Eq. 3.8.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.losses.cross_entropy().likelihood.name
        'categorical'
    """

    name: str
    means: str
    log: Callable[[Array, Array], Array]

    def __repr__(self) -> str:
        return f"<likelihood {self.name}: {self.means}>"


@dataclass(frozen=True)
class FusedPair:
    """F_q and dF_q/dn of an output activation and a loss together, from net inputs.

    Attributes:
        value: value(n, t) -> F_q (Q,).
        gradient: gradient(n, t) -> dF_q/dn (Q, S).
        curvature: its second derivative by the net inputs; None if not given.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> pair = fnn.losses.cross_entropy().fused["softmax"]
        >>> pair.gradient(jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 0.0]])).tolist()
        [[-0.5, 0.5]]
    """

    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]
    curvature: Curvature | None = None


def _no_doubt(gives: Range) -> str | None:
    """Returns None: outputs of every range train well."""
    return None


@dataclass(frozen=True)
class Loss(Described):
    """A loss (performance function): made by a factory such as `cross_entropy(reduction="mean")`, or from its
    functions.

    Attributes:
        name: how it is shown, and under what it is registered.
        reduction: "mean" over the examples, or their "sum".
        example_value: example_value(a, t) -> F_q (Q,).
        example_gradient: example_gradient(a, t) -> dF_q/da (Q, S).
        fused: {output activation: FusedPair}, the activations with which value and gradient are computed together.
        needs: what the outputs must be: "real", "unit interval" or "distribution".
        targets: what concrete targets must be.
        correct: correct(a, t) -> (Q,) booleans, which examples are classified correctly. None where this is undefined.
        kink_distance: kink_distance(a, t) -> (Q, S), as in `Activation`; None for a smooth loss.
        curvature: its second derivative by the outputs, which only second derivatives of the network need.
        square_weight: square_weight(S) -> c, where F_q = c sum_i (a_i - t_i)^2. A sum of squares has residuals,
            sqrt(c) (a - t), which least-squares methods need. None for other losses.
        least_outputs: how many outputs it needs at least.
        doubt: doubt(gives) -> a warning if outputs of that range are legal but do not train well; else None.
        constants: its constants other than the reduction, by name; `register` fills them in.
        likelihood: the distribution of the targets whose -ln it is; None if there is none, or none was given.
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        A custom loss, the fourth power of the error, and its name:

        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> quartic = fnn.Loss(
        ...     "quartic", "mean", lambda a, t: jnp.sum((a - t) ** 4, axis=-1), lambda a, t: 4 * (a - t) ** 3
        ... )
        >>> quartic.value(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]])).item()
        16.0
        >>> quartic.gradient(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]])).tolist()
        [[0.0, 32.0]]
    """

    name: str
    reduction: Reduction
    example_value: Callable[[Array, Array], Array]
    example_gradient: Callable[[Array, Array], Array]
    fused: dict[str, FusedPair] = field(default_factory=dict, hash=False)
    needs: Range = "real"
    targets: Literal["real", "non-negative", "unit interval", "distribution", "positive", "signs", "one-hot"] = "real"
    correct: Callable[[Array, Array], Array] | None = None
    kink_distance: Callable[[Array, Array], Array] | None = None
    curvature: Curvature | None = None
    square_weight: Callable[[int], float] | None = None
    least_outputs: int = 1
    doubt: Callable[[Range], str | None] = _no_doubt
    constants: dict[str, Any] = field(default_factory=dict, hash=False)
    likelihood: Likelihood | None = None
    positions: Reduction = "mean"

    def __repr__(self) -> str:
        return f"<loss {self.specification}>"

    @property
    def specification(self) -> str:
        """The text from which `get` makes it again, such as "cross_entropy(mean)" or "huber(mean, delta=0.5)"."""
        constants = [f"{name}={x}" for name, x in self.constants.items()]
        constants += ["positions=sum"] if self.positions == "sum" else []
        return f"{self.name}({', '.join([self.reduction, *constants])})"

    @property
    def smooth(self) -> bool:
        """True where the loss has a derivative everywhere."""
        return self.kink_distance is None

    def value(self, outputs: Array, targets: Array, weights: Array | None = None) -> Array:
        """Returns F, a scalar.

        Args:
            outputs: `(Q, *P, S)`.
            targets: of the same shape.
            weights: (Q,), or `(Q, *P)` for each position; all 1 if None.
        """
        return self.reduce(at_positions(self.example_value, outputs, targets), weights)

    def gradient(self, outputs: Array, targets: Array, weights: Array | None = None) -> Array:
        """Returns dF/da `(Q, *P, S)`, reduction included.

        Args:
            outputs: `(Q, *P, S)`.
            targets: of the same shape.
            weights: (Q,), or `(Q, *P)` for each position; all 1 if None.
        """
        return self.scale(at_positions(self.example_gradient, outputs, targets), weights)

    def fused_with(self, activation: Activation) -> FusedPair | None:
        """Returns the pair that replaces the derivative of `activation` in the output layer; None if there is none.

        It replaces only the functions of the registered activation. Another activation of the same name keeps its
        derivative.
        """
        pair = self.fused.get(activation.name)
        if pair is None:
            return None
        known = activations.get(activation.name)
        return pair if (known.forward, known.pullback) == (activation.forward, activation.pullback) else None

    def convex_in(self, activation: Activation) -> tuple[Literal["net_inputs", "outputs"], Curvature]:
        """Returns of what F_q is a convex function, with its curvature there: Gauss-Newton splits F at that point.

        It is the net inputs of the output layer for a fused pair that is convex in them, else the outputs.

        Raises:
            ValueError: the loss has no such curvature.
        """
        pair = self.fused_with(activation)
        if pair and pair.curvature and pair.curvature.root:
            return "net_inputs", pair.curvature
        if self.curvature and self.curvature.root:
            return "outputs", self.curvature
        raise ValueError(
            f"loss {self.name!r} has no second derivative with a root, which Gauss-Newton quantities need; give it "
            "curvature=losses.Curvature(product, root)"
        )

    def of_position(self, count: int) -> float:
        """Returns how much each of `count` positions counts in its example."""
        return 1 / count if self.positions == "mean" else 1.0

    def of_example(self, values: Array, weights: Array | None = None) -> Array:
        """Returns F_q (Q,), from the values at each position `(Q, *P)` and the positions' weights, whose mean is 1."""
        if values.ndim == 1:
            return values
        wide = values.astype(at_least_float32(values.dtype))
        wide = wide if weights is None else wide * weights.astype(wide.dtype)
        found = jnp.sum(wide.reshape(len(wide), -1), axis=1) * self.of_position(math.prod(values.shape[1:]))
        return found.astype(values.dtype)

    def reduce(self, values: Array, weights: Array | None = None) -> Array:
        """Returns sum_q w_q F_q, divided by sum_q w_q for "mean" (0 if that sum is 0).

        Args:
            values: of each example (Q,), or at each position `(Q, *P)`.
            weights: (Q,), or `(Q, *P)` for each position; all 1 if None.
        """
        wide, count = values.astype(at_least_float32(values.dtype)), math.prod(values.shape[1:])
        if weights is None:
            total, weight = jnp.sum(wide), float(wide.size)
        else:
            own = spread(weights.astype(wide.dtype), values.shape)
            total, weight = jnp.sum(wide * own), positive(jnp.sum(own))
        total = total / weight if self.reduction == "mean" else total
        return _times(total, self.of_all(count)).astype(values.dtype)

    def scale(self, gradients: Array, weights: Array | None = None) -> Array:
        """Returns dF/dx from dF_q/dx: each row times its share w_q (/ sum w) of F, `(Q, *P, S)` -> `(Q, *P, S)`.

        Args:
            gradients: dF_q/dx `(Q, *P, S)`.
            weights: (Q,), or `(Q, *P)` for each position; all 1 if None.
        """
        # in at least float32: Q and 1 / Q may be out of range of a 16-bit dtype
        dtype, wide = gradients.dtype, gradients.astype(at_least_float32(gradients.dtype))
        counted = self.of_all(math.prod(gradients.shape[1:-1]))
        if weights is None:
            if self.reduction == "sum" and counted == 1:
                return gradients
            scaled = wide / math.prod(gradients.shape[:-1]) if self.reduction == "mean" else wide
            return _times(scaled, counted).astype(dtype)
        share = spread(weights.astype(wide.dtype), gradients.shape[:-1])
        share = share / positive(jnp.sum(share)) if self.reduction == "mean" else share
        return (wide * _times(share, counted)[..., None]).astype(dtype)

    def of_all(self, positions: int) -> float:
        """Returns the factor of a mean, or of a sum, over all positions of all examples."""
        if self.reduction == "sum":
            return self.of_position(positions)
        return 1.0 if self.positions == "mean" else float(positions)

    def check_outputs(self, activation: Activation) -> None:
        """Raises ValueError if the loss needs probabilities and the output layer computes something else."""
        if _RANGES.index(activation.gives) < _RANGES.index(self.needs):
            raise ValueError(
                f"{self.name} needs outputs that are {_RANGE_IN_WORDS[self.needs]}, but the output layer's activation "
                f"{activation.name!r} gives {_RANGE_IN_WORDS[activation.gives]}; use "
                + ("'softmax'" if self.needs == "distribution" else "'softmax' or 'sigmoid'")
            )

    def check_classes(self, size: int) -> None:
        """Raises ValueError if there are too few outputs for the loss to distinguish classes."""
        if size < self.least_outputs:
            raise ValueError(
                f"{self.name} needs at least {self.least_outputs} outputs, one for each class, got {size}, for which "
                "every answer would be correct; use binary_cross_entropy with one 'sigmoid' output, or "
                f"{self.name} with one output for each class"
            )

    def check_targets(self, targets: Array | np.ndarray) -> None:
        """Raises ValueError at the first concrete target for which the loss is undefined."""
        if self.targets != "real":
            _check_targets(self.name, self.targets, targets)


def _sums_to_1(t: np.ndarray) -> np.ndarray:
    return np.abs(t.sum(axis=-1, keepdims=True) - 1) <= 1e-2


# which targets are wrong, (Q, S) -> (Q, S) booleans, and the right ones in words
_WRONG_TARGETS = {
    "non-negative": (lambda t: t < 0, "values >= 0"),
    "unit interval": (lambda t: (t < 0) | (t > 1), "values in [0, 1]"),
    "distribution": (lambda t: (t < 0) | ~_sums_to_1(t), "rows >= 0 that sum to 1"),
    "positive": (lambda t: (t <= 0) | ~_sums_to_1(t), "rows > 0 that sum to 1"),
    "signs": (lambda t: np.abs(t) != 1, "-1 or +1"),
    "one-hot": (
        lambda t: ((t != 0) & (t != 1)) | (t.sum(axis=-1, keepdims=True) != 1),
        "rows with a single 1, the rest 0",
    ),
}


def _check_targets(owner: str, kind: str, targets: Array | np.ndarray) -> None:
    if not checks.is_concrete(targets):
        return
    wrong, accepted = _WRONG_TARGETS[kind]
    index = checks.first(targets, lambda block: wrong(block.astype(np.float64)))
    if index is not None:
        found = float(np.asarray(targets)[index])
        raise ValueError(f"targets: {owner} accepts {accepted}, got {found:g} at index {index}")


def at_positions(function: Callable[..., Array], *signals: Array) -> Array:
    """Returns a function of rows (Q, S) at every position of signals `(Q, *P, S)`: `(Q, *P, ...)`."""
    if signals[0].ndim == 2:
        return function(*signals)
    found = function(*map(rows, signals))
    return found.reshape(*signals[0].shape[:-1], *found.shape[1:])


def spread(weights: Array, shape: tuple[int, ...]) -> Array:
    """Returns weights of examples (Q,) at all of their positions `(Q, *P)`."""
    return jnp.broadcast_to(jnp.expand_dims(weights, tuple(range(weights.ndim, len(shape)))), shape)


def _times(x: Array, factor: float) -> Array:
    return x if factor == 1 else x * factor


def positive(total: Array) -> Array:
    """Returns a divisor: 1 where the total is 0, as the sum of weights that are all 0."""
    return jnp.where(total > 0, total, 1)


_registry: Registry[Loss] = Registry("loss", Loss)


def names() -> tuple[str, ...]:
    """Returns the names of the registered losses.

    Example:
        >>> from functional_nn import losses
        >>> "cross_entropy" in losses.names()
        True
    """
    return _registry.names()


def get(loss: str | Loss) -> Loss:
    """Returns the loss that a name stands for.

    Args:
        loss: a name such as "cross_entropy" or "cross_entropy(sum)", a name with constants such as
            "huber(mean, delta=0.5)", or a `Loss`, which is returned unchanged.

    Raises:
        ValueError: the name is unknown (the message suggests the closest one), or its constants are refused.
        TypeError: neither a name nor a loss.

    Example:
        >>> from functional_nn import losses
        >>> losses.get("cross_entropy")
        <loss cross_entropy(mean)>
    """
    return _registry.get(loss)


def register(factory: Callable[Constants, Loss]) -> Callable[Constants, Loss]:
    """Gives a function `(reduction=..., constants) -> Loss` its name. A decorator.

    Afterwards the name may be used wherever a loss is expected, with its constants: "huber(mean, delta=0.5)".

    Args:
        factory: its first argument is `reduction`; the others are the loss's constants.

    Returns:
        The factory, its results cached. It also takes positions="mean" or "sum", for outputs that have positions.

    Raises:
        TypeError: the factory's first argument is not `reduction`.
        ValueError: the name is taken or is not an identifier.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> @fnn.losses.register
        ... def smooth_error(reduction="mean", width: float = 1.0) -> fnn.Loss:
        ...     return fnn.Loss(
        ...         "smooth_error",
        ...         reduction,
        ...         lambda a, t: jnp.sum(width * jnp.sqrt(1 + ((a - t) / width) ** 2), axis=-1),
        ...         lambda a, t: (a - t) / (width * jnp.sqrt(1 + ((a - t) / width) ** 2)),
        ...     )
        >>> fnn.losses.get("smooth_error(sum, width=0.5)")
        <loss smooth_error(sum, width=0.5)>
    """
    signature = inspect.signature(factory)
    if next(iter(signature.parameters), None) != "reduction":
        raise TypeError(f"losses.register: {factory.__name__} must take reduction='mean' first, before its constants")

    def checked(reduction: Reduction, *args, positions: Reduction = "mean", **keywords):
        for name, value in (("reduction", reduction), ("positions", positions)):
            if value not in ("mean", "sum"):
                raise ValueError(f"{factory.__name__}: {name} must be 'mean' or 'sum', got {value!r}")
        loss = factory(reduction, *args, **keywords)
        constants = signature.bind(reduction, *args, **keywords).arguments
        del constants["reduction"]
        constants = constants if constants and not loss.constants else loss.constants
        return dataclasses.replace(loss, constants=constants, positions=positions)

    functools.update_wrapper(checked, factory)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    positions = inspect.Parameter("positions", inspect.Parameter.KEYWORD_ONLY, default="mean", annotation=Reduction)
    checked.__signature__ = signature.replace(parameters=[*named, positions, *rest])
    same = cached(checked)
    _registry.add(factory.__name__, same)
    return same


def one_hot(labels: ArrayLike, classes: int, dtype: DTypeLike | None = None) -> Array:
    """Returns labels (Q,) as rows (Q, classes) with a single 1; labels (Q, T) as (Q, T, classes).

    Args:
        labels: integers 0 to classes - 1.
        classes: how many there are.
        dtype: of the result; by default JAX's default float.

    Raises:
        ValueError: concrete labels are out of range or not integers, or are a column (Q, 1). Under `jit`, where values
            are not known, a label out of range gives a row of nan, so that no example is lost silently.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> fnn.one_hot(jnp.array([2, 0]), 3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    labels = jnp.asarray(labels)
    if labels.ndim < 1 or labels.shape[1:] == (1,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            "labels: expected integers of shape (Q,), or with positions (Q, T), got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return _one_hot(labels, classes, precision.default() if dtype is None else precision.available(dtype))


def smooth_labels(targets: Array | np.ndarray, rate: float) -> Array:
    """Returns smoothed targets, (1 - rate) t + rate / C (label smoothing: Szegedy et al. 2016, sec. 7).

    A share `rate` of each example is divided equally among all C classes, so that no output is driven to exactly 1. The
    largest target, by which correct answers are counted, stays the same. `one_hot` turns integer labels into rows
    first.

    Args:
        targets: `(Q, *P, C)`, one column for each class, each row a distribution. A single column `(Q, *P, 1)` of 0 and
            1 has two classes: C = 2.
        rate: in [0, 1).

    Returns:
        Targets of the same shape and dtype; in JAX's default float for integers and booleans.

    Raises:
        ValueError: the rate is out of range, or concrete targets are not a distribution.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> fnn.smooth_labels(fnn.one_hot(jnp.array([2]), 4), 0.5).tolist()
        [[0.125, 0.125, 0.625, 0.125]]
    """
    rate = checks.constant("smooth_labels", "rate", rate, lambda v: (v >= 0) & (v < 1), "in [0, 1)")
    checks.numeric("targets", targets, precision.default())
    targets = jnp.asarray(targets)
    if targets.ndim < 2:
        raise ValueError(
            f"targets: expected shape (Q, C), one column for each class, got {targets.shape}; fnn.one_hot(labels, C) "
            "turns integer labels into rows"
        )
    if not jnp.issubdtype(targets.dtype, jnp.floating):
        targets = targets.astype(precision.default())
    column = targets.shape[-1] == 1
    _check_targets("smooth_labels", "unit interval" if column else "distribution", targets)
    classes = 2 if column else targets.shape[-1]
    rate = jnp.asarray(rate, at_least_float32(targets.dtype))
    return ((1 - rate) * targets.astype(rate.dtype) + rate / classes).astype(targets.dtype)


def _one_hot(labels: Array, classes: int, dtype) -> Array:
    check_labels(labels, classes)
    inside = (labels >= 0) & (labels < classes)
    return jnp.where(inside[..., None], jax.nn.one_hot(labels, classes, dtype=dtype), jnp.nan)


def check_labels(labels: Array, classes: int) -> None:
    """Raises ValueError at the first concrete label that is out of range."""
    if checks.is_concrete(labels):
        index = checks.first(labels, lambda block: (block < 0) | (block >= classes))
        if index is not None:
            at = index[0] if len(index) == 1 else index
            raise ValueError(f"labels: expected 0 to {classes - 1}, got {int(np.asarray(labels)[index])} at index {at}")


def coded(loss: Loss | None, labels: Array, outputs: int) -> Array:
    """Returns integer labels `(Q, *P)` as targets `(Q, *P, S)` of S outputs: one-hot rows, or -1 and +1 if the loss
    needs signs.

    For a single output, whose labels are 0 and 1 (or False and True), a column of them. Raises ValueError for labels
    out of range, and for a single output whose loss has no classes.
    """
    signs = loss is not None and loss.targets == "signs"
    if outputs > 1:
        coding = _one_hot(jnp.asarray(labels, jnp.int32), outputs, precision.default())
    elif signs or (loss is not None and loss.targets == "unit interval"):
        coding = _one_hot(jnp.asarray(labels, jnp.int32), 2, precision.default())[..., 1:]
    else:
        expected = (*labels.shape, 1)
        raise ValueError(f"targets: expected shape {expected} to match the outputs, got {labels.shape}")
    return 2 * coding - 1 if signs else coding


def class_weights(targets: Array | np.ndarray, weights: ArrayLike | Mapping[int, float] | str = "balanced") -> Array:
    """Returns the weight of each example by its class, (Q,).

    Args:
        targets: (Q, S), whose class is the largest; a single column (Q, 1), whose class is whether it is > 1/2, or > 0
            if there are numbers below 0; or integer labels (Q,). Targets with positions, `(Q, *P, S)`, get `(Q, *P)`
            weights.
        weights: one for each class, (C,), or {class: weight}, 1 for the others; or "balanced", Q / (C Q_c) for a class
            of Q_c examples, so that every class counts equally (King and Zeng 2001; as in scikit-learn).

    Raises:
        ValueError: targets have no classes, or weights are negative, not finite, or not one for each class.

    Example:
        >>> import numpy as np, functional_nn as fnn
        >>> fnn.class_weights(np.array([0, 0, 1, 1, 1, 1])).tolist()
        [1.5, 1.5, 0.75, 0.75, 0.75, 0.75]
        >>> fnn.class_weights(np.array([0, 1]), {1: 5.0}).tolist()
        [1.0, 5.0]
    """
    checks.numeric("targets", targets)
    targets = jnp.asarray(targets)
    if targets.ndim == 1 and jnp.issubdtype(targets.dtype, jnp.integer):
        labels, count = targets, None
    elif targets.ndim > 1 and targets.shape[-1] > 1:
        labels, count = jnp.argmax(targets, axis=-1), targets.shape[-1]
    elif targets.ndim > 1:
        labels, count = (targets[..., 0] > jnp.where(jnp.any(targets < 0), 0, 0.5)).astype(jnp.int32), 2
    else:
        raise ValueError(f"targets: expected classes, (Q, S) or integers (Q,), got {targets.dtype} of {targets.shape}")
    return weights_of_labels(labels, count, weights)


def weights_of_labels(labels: Array, count: int | None, weights: Any) -> Array:
    """`class_weights` for integer labels `(Q, *P)` of `count` classes; None: as many as there are labels."""
    given = dict(enumerate(weights)) if isinstance(weights, list | tuple | np.ndarray | jax.Array) else weights
    if count is None:
        if not checks.is_concrete(labels):
            raise ValueError("class_weights: traced integer labels do not show how many classes there are")
        count = max(int(labels.max()) + 1, len(given) if isinstance(given, dict) else 1)
    if isinstance(given, str) and given == "balanced":
        found = jnp.bincount(labels.ravel(), length=count).astype(precision.default())
        return (labels.size / (count * jnp.maximum(found, 1)))[labels]
    if not isinstance(given, dict):
        raise ValueError(
            f"class_weights: expected 'balanced', or a weight for each of {count} classes, got {weights!r}"
        )
    if isinstance(weights, list | tuple | np.ndarray | jax.Array) and len(given) != count:
        raise ValueError(f"class_weights: expected {count}, one for each class, got {len(given)}")
    for name in given:
        if isinstance(name, bool) or not isinstance(name, int | np.integer) or not 0 <= name < count:
            raise ValueError(f"class_weights: expected classes 0 to {count - 1}, got {name!r}")
    return jnp.stack(
        [
            jnp.asarray(checks.constant("class_weights", f"class {c}", given.get(c, 1.0), *checks.NON_NEGATIVE))
            for c in range(count)
        ]
    ).astype(precision.default())[labels]


# Second derivatives ---------------------------------------------------------------------------------------------------


def _diagonal(second_derivative: Callable[[Array, Array], Array]) -> Curvature:
    """The curvature of a loss that is a sum over its outputs, from d2F_q/dx2 (Q, S) >= 0."""

    def root(x, t):
        return jnp.sqrt(second_derivative(x, t))[:, None, :] * jnp.eye(x.shape[-1], dtype=x.dtype)[None, :, :]

    def combine(z, x, t):
        return jnp.sqrt(second_derivative(x, t))[:, None, :] * z

    return Curvature(lambda r, x, t: second_derivative(x, t) * r, root, combine)


_flat = _diagonal(lambda x, t: jnp.zeros_like(x))  # piecewise linear


def _away_from_mean(p, r):
    # r - sum_i p_i r_i, of each row
    return r - jnp.sum(p * r, axis=-1, keepdims=True)


def _softmax_root(n, t):
    # sum(t) (diag(p) - p p^T) as a sum of squares: sqrt(p_c) (e_c - p)
    p = jnp.exp(_log_softmax(n))
    scale = jnp.sqrt(p * jnp.sum(t, axis=-1, keepdims=True))
    return scale[:, :, None] * (jnp.eye(p.shape[-1], dtype=p.dtype)[None, :, :] - p[:, None, :])


def _softmax_combine(z, n, t):
    p = jnp.exp(_log_softmax(n))
    scaled = jnp.sqrt(p * jnp.sum(t, axis=-1, keepdims=True))[:, None, :] * z
    return scaled - p[:, None, :] * jnp.sum(scaled, axis=-1, keepdims=True)


def _softmax_least_root(n, t):
    # L D L^T of the same (Tanabe and Sagae 1992), S - 1 columns: with r_c = sum_(i > c) p_i, L_ic = -p_i / r_c below
    # the diagonal and D_c = p_c r_c / (p_c + r_c). Nothing cancels; where all that follows is 0, so is the column.
    p = jnp.exp(_log_softmax(n))
    size, own = p.shape[-1], p[:, :-1]
    below = np.arange(size - 1)[:, None] < np.arange(size)[None, :]
    later = jnp.where(below[None, :, :], p[:, None, :], 0)
    r = jnp.sum(later, axis=-1)
    columns = jnp.eye(size - 1, size, dtype=p.dtype)[None, :, :] - later / _or_1(r)[:, :, None]
    return jnp.sqrt(jnp.sum(t, axis=-1, keepdims=True) * own * (r / _or_1(own + r)))[:, :, None] * columns


def _or_1(x):
    return jnp.where(x == 0, 1, x)


def _softmax_product(r, n, t):
    p = jnp.exp(_log_softmax(n))
    return jnp.sum(t, axis=-1, keepdims=True) * p * _away_from_mean(p, r)


# Shared, as the first derivative is, by cross-entropy and Kullback-Leibler
_softmax_curvature = Curvature(_softmax_product, _softmax_root, _softmax_combine, _softmax_least_root)


# What a correct answer is ---------------------------------------------------------------------------------------------


def largest(outputs: Array, targets: Array) -> Array:
    """Returns for each example whether its largest output is at its largest target, (Q,).

    It is `Loss.correct` of the losses that compare classes.

    Args:
        outputs: (Q, S).
        targets: (Q, S).

    Raises:
        ValueError: there is a single output.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> fnn.losses.largest(jnp.array([[0.2, 0.8], [0.6, 0.4]]), jnp.array([[0.0, 1.0], [0.0, 1.0]])).tolist()
        [True, False]
    """
    if outputs.shape[-1] < 2:
        raise ValueError(
            f"correct: 'largest' compares outputs with each other, and there is only one, of shape {outputs.shape}; "
            "pass correct=lambda outputs, targets: ..., such as (outputs[:, 0] > 0.5) == (targets[:, 0] > 0.5)"
        )
    return jnp.argmax(outputs, axis=-1) == jnp.argmax(targets, axis=-1)


def _above(threshold: float) -> Callable[[Array, Array], Array]:
    return lambda a, t: jnp.all((a > threshold) == (t > threshold), axis=-1)


# Errors of regression -------------------------------------------------------------------------------------------------


def _normal(variance: str, square_weight: Callable[[int], float]) -> Likelihood:
    """The Normal with exponent c (a - t)^2: of variance 1 / (2 c), with height sqrt(c / pi), for each output."""

    def log(a, t):
        c = square_weight(a.shape[-1])
        return a.shape[-1] * math.log(c / math.pi) / 2 - c * jnp.sum((t - a) ** 2, axis=-1)

    return Likelihood("Normal", f"each output the mean of its target, of variance {variance}", log)


def _half_square_sum(a, t):
    return jnp.sum((t - a) ** 2, axis=-1) / 2


@register
def mean_square_error(reduction: Reduction = "mean") -> Loss:
    """F = 1/(Q S) sum_q sum_i (t - a)^2 (Hagan Eq. 3.5).

    With "sum", the 1/Q is left out (Eq. 3.51, one example).

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.mean_square_error("sum")
        >>> f"{loss.value(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]])):.2f}"
        '5.00'
    """
    return Loss(
        "mean_square_error",
        reduction,
        lambda a, t: jnp.sum((t - a) ** 2, axis=-1) / a.shape[-1],
        lambda a, t: (a - t) * (2 / a.shape[-1]),
        curvature=_diagonal(lambda a, t: jnp.full_like(a, 2 / a.shape[-1])),
        square_weight=lambda outputs: 1 / outputs,
        likelihood=_normal("S/2", lambda outputs: 1 / outputs),
    )


@register
def sum_square_error(reduction: Reduction = "sum") -> Loss:
    """F = sum_q sum_i (t - a)^2 (Hagan Eq. 3.17, CSE 475 19.71).

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.sum_square_error("sum")
        >>> f"{loss.value(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]])):.2f}"
        '10.00'
    """
    return Loss(
        "sum_square_error",
        reduction,
        lambda a, t: 2 * _half_square_sum(a, t),
        lambda a, t: 2 * (a - t),
        curvature=_diagonal(lambda a, t: jnp.full_like(a, 2)),
        square_weight=lambda outputs: 1.0,
        likelihood=_normal("1/2", lambda outputs: 1.0),
    )


@register
def half_sum_square_error(reduction: Reduction = "sum") -> Loss:
    """F = 1/2 sum_q sum_i (t - a)^2 (Kordecki; blog 001 Eq. 5).

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.half_sum_square_error("sum")
        >>> f"{loss.value(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]])):.2f}"
        '5.00'
    """
    return Loss(
        "half_sum_square_error",
        reduction,
        _half_square_sum,
        lambda a, t: a - t,
        curvature=_diagonal(lambda a, t: jnp.ones_like(a)),
        square_weight=lambda outputs: 0.5,
        likelihood=_normal("1", lambda outputs: 0.5),
    )


# Errors of classification, from probabilities -------------------------------------------------------------------------


def _log_softmax(n):
    shifted = n - largest_in_row(n)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))


def _weighted(t, x):
    # sum_i t_i x_i, where t_i = 0 adds nothing even if x_i is infinite: a masked class has log a = -inf
    return jnp.sum(jnp.where(t == 0, 0, t * x), axis=-1)


def _softplus(x):
    # ln(1 + e^x), with the smaller exponent only, so that neither side overflows
    return jnp.where(x > 0, x, 0) + jnp.log1p(jnp.exp(jnp.where(x > 0, -x, x)))


def _entropy_terms(t):
    return _weighted(t, jnp.log(jnp.where(t == 0, 1, t)))


def _softmax_minus_target(n, t):
    # a sum(t) - t: Hagan E3.5; a - t for one-hot targets. Shared by cross-entropy and Kullback-Leibler.
    e = jnp.exp(n - largest_in_row(n))
    return e * (jnp.sum(t, axis=-1, keepdims=True) / jnp.sum(e, axis=-1, keepdims=True)) - t


def _minus_target_over_output(a, t):
    return jnp.where(t == 0, 0, -t / jnp.where(t == 0, 1, a))  # Hagan E3.6


def _target_over_square(a, t):
    return jnp.where(t == 0, 0, t / jnp.where(t == 0, 1, a) ** 2)


def _log_where(t, a):
    # ln a where the target is not 0; the rest is masked before the logarithm so that autodiff never meets 0 inf
    return jnp.log(jnp.where(t == 0, 1, a))


_categorical = Likelihood(
    "categorical",
    "each output the probability of its class, of which one is drawn (Multinomial with one draw)",
    lambda a, t: _weighted(t, _log_where(t, a)),
)


@register
def cross_entropy(reduction: Reduction = "mean") -> Loss:
    """F = -sum_q sum_i t ln a (Hagan Eq. 3.9), for outputs that are probabilities.

    Fused with softmax: s = a sum(t) - t (E3.5); else dF/da = -t/a (E3.6).

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.cross_entropy("sum")
        >>> f"{loss.value(jnp.array([[0.5, 0.5]]), jnp.array([[1.0, 0.0]])):.2f}"
        '0.69'
    """
    return Loss(
        "cross_entropy",
        reduction,
        lambda a, t: -_weighted(t, _log_where(t, a)),
        _minus_target_over_output,
        fused={
            "softmax": FusedPair(lambda n, t: -_weighted(t, _log_softmax(n)), _softmax_minus_target, _softmax_curvature)
        },
        needs="unit interval",
        targets="non-negative",
        correct=largest,
        least_outputs=2,
        doubt=_sums_to_one,
        curvature=_diagonal(_target_over_square),
        likelihood=_categorical,
    )


def _sums_to_one(gives: Range) -> str | None:
    # Hagan's E3.6 and P3.1 change the form there
    if gives != "unit interval":
        return None
    return (
        "cross_entropy, -sum t ln a, raises the outputs whose target is 1 and never lowers one whose target is 0, as "
        "only a sum of 1 would: use 'softmax' outputs, or binary_cross_entropy with 'sigmoid'"
    )


def _of_both_signs(gives: Range) -> str | None:
    if gives == "real":
        return None
    return (
        "targets are -1 or +1, and compared with the sign of the output, but the output layer gives numbers in "
        "[0, 1] only: use 'linear' or 'tanh' outputs, or binary_cross_entropy with targets 0 and 1"
    )


def _binary_value(a, t):
    return -_weighted(t, _log_where(t, a)) - _weighted(1 - t, _log_where(1 - t, 1 - a))


def _binary_gradient(a, t):
    return _minus_target_over_output(a, t) - _minus_target_over_output(1 - a, 1 - t)


@register
def binary_cross_entropy(reduction: Reduction = "mean") -> Loss:
    """F = -sum_q sum_i [t ln a + (1 - t) ln(1 - a)] (Hagan P3.1), for outputs in [0, 1].

    Each output is a question by itself. Fused with sigmoid: s = a - t.

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.binary_cross_entropy("sum")
        >>> f"{loss.value(jnp.array([[0.5]]), jnp.array([[1.0]])):.2f}"
        '0.69'
    """
    return Loss(
        "binary_cross_entropy",
        reduction,
        _binary_value,
        _binary_gradient,
        fused={
            "sigmoid": FusedPair(
                lambda n, t: jnp.sum(_softplus(n), axis=-1) - _weighted(t, n),
                lambda n, t: lax.logistic(n) - t,
                _diagonal(lambda n, t: lax.logistic(n) * lax.logistic(-n)),
            )
        },
        needs="unit interval",
        targets="unit interval",
        correct=_above(0.5),
        curvature=_diagonal(lambda a, t: _target_over_square(a, t) + _target_over_square(1 - a, 1 - t)),
        likelihood=Likelihood(
            "Bernoulli", "each output the probability that its target is 1", lambda a, t: -_binary_value(a, t)
        ),
    )


# Distances between distributions --------------------------------------------------------------------------------------


@register
def kullback_leibler(reduction: Reduction = "mean") -> Loss:
    """F = sum_q sum_i t ln(t / a), the divergence D(t || a) (CSE 475 19.71). Fused with softmax.

    Its likelihood is that of cross-entropy: the two differ by the entropy of the targets, which does not depend on the
    outputs.

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.kullback_leibler("sum")
        >>> f"{loss.value(jnp.array([[0.5, 0.5]]), jnp.array([[1.0, 0.0]])):.2f}"
        '0.69'
    """
    return Loss(
        "kullback_leibler",
        reduction,
        lambda a, t: _entropy_terms(t) - _weighted(t, _log_where(t, a)),
        _minus_target_over_output,
        fused={
            "softmax": FusedPair(
                lambda n, t: _entropy_terms(t) - _weighted(t, _log_softmax(n)),
                _softmax_minus_target,
                _softmax_curvature,
            )
        },
        needs="distribution",
        targets="distribution",
        correct=largest,
        least_outputs=2,
        curvature=_diagonal(_target_over_square),
        likelihood=_categorical,
    )


def _symmetric_fused_gradient(n, t):
    # softmax's Jacobian times -t/a + ln(a/t) + 1, with a (1/a) cancelled by hand
    log_a = _log_softmax(n)
    a = jnp.exp(log_a)
    ratio = log_a - jnp.log(t)
    mean_ratio = jnp.sum(a * ratio, axis=-1, keepdims=True)
    return a * (jnp.sum(t, axis=-1, keepdims=True) + ratio - mean_ratio) - t


def _symmetric_fused_product(r, n, t):
    # the derivative of the gradient above along r: of ln a it is r minus its mean, of a it is a times that
    log_a = _log_softmax(n)
    a = jnp.exp(log_a)
    ratio, r_log = log_a - jnp.log(t), _away_from_mean(a, r)
    total = jnp.sum(t, axis=-1, keepdims=True)
    return a * (r_log * (total + _away_from_mean(a, ratio) + 1) - jnp.sum(a * r_log * ratio, axis=-1, keepdims=True))


@register
def symmetric_kullback_leibler(reduction: Reduction = "mean") -> Loss:
    """F = D(t || a) + D(a || t) = sum (t - a) ln(t / a) (CSE 475 19.71). Fused with softmax.

    Targets must be > 0.

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.symmetric_kullback_leibler("sum")
        >>> f"{loss.value(jnp.array([[0.5, 0.5]]), jnp.array([[0.5, 0.5]])):.2f}"
        '0.00'
    """
    return Loss(
        "symmetric_kullback_leibler",
        reduction,
        lambda a, t: jnp.sum((t - a) * (jnp.log(t) - jnp.log(a)), axis=-1),
        lambda a, t: jnp.log(a) - jnp.log(t) + 1 - t / a,
        fused={
            "softmax": FusedPair(
                lambda n, t: jnp.sum((t - jnp.exp(_log_softmax(n))) * (jnp.log(t) - _log_softmax(n)), axis=-1),
                _symmetric_fused_gradient,
                Curvature(_symmetric_fused_product, None),
            )
        },
        needs="distribution",
        targets="positive",
        correct=largest,
        least_outputs=2,
        curvature=_diagonal(lambda a, t: 1 / a + t / a**2),
    )


def _geometric(t, log_a):
    # ln sqrt(t a), term by term; -inf where t = 0, set explicitly since complex infinities do not survive arithmetic
    absent = t == 0
    return jnp.where(absent, -jnp.inf, (jnp.log(jnp.where(absent, 1, t)) + log_a) / 2)


def _log_sum_exp(x):
    shift = largest_in_row(x)
    return (jnp.log(jnp.sum(jnp.exp(x - shift), axis=-1, keepdims=True)) + shift)[..., 0]


def _root_products(a, t):
    # sqrt(t a), and 0 where t = 0, with a derivative of 0 there
    return jnp.where(t == 0, 0, jnp.sqrt(jnp.where(t == 0, 1, t * a)))


@register
def bhattacharyya(reduction: Reduction = "mean") -> Loss:
    """F = -sum_q ln sum_i sqrt(t a), the Bhattacharyya distance (CSE 475 19.71). Fused with softmax.

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.bhattacharyya("sum")
        >>> f"{loss.value(jnp.array([[0.5, 0.5]]), jnp.array([[1.0, 0.0]])):.2f}"
        '0.35'
    """

    def gradient(a, t):
        roots = _root_products(a, t)
        return jnp.where(t == 0, 0, -roots / (2 * a * jnp.sum(roots, axis=-1, keepdims=True)))

    def fused_gradient(n, t):
        a, u = fused_distributions(n, t)
        return (a - u) / 2

    def fused_distributions(n, t):
        # a, and u = sqrt(t a) / sum sqrt(t a)
        terms = _geometric(t, _log_softmax(n))
        return jnp.exp(_log_softmax(n)), jnp.exp(terms - _log_sum_exp(terms)[..., None])

    def fused_product(r, n, t):
        a, u = fused_distributions(n, t)
        return a * _away_from_mean(a, r) / 2 - u * _away_from_mean(u, r) / 4

    def over_output(a, t):
        # sqrt(t a) / (a sum sqrt(t a)), which is -2 dF/da
        return -2 * gradient(a, t)

    def product(r, a, t):
        v = over_output(a, t)
        return (jnp.where(t == 0, 0, v / a) * r + v * jnp.sum(v * r, axis=-1, keepdims=True)) / 4

    def root(a, t):
        v = over_output(a, t)
        columns = jnp.sqrt(jnp.where(t == 0, 0, v / a))[:, None, :] * jnp.eye(a.shape[-1], dtype=a.dtype)[None, :, :]
        return jnp.concatenate([columns, v[:, None, :]], axis=1) / 2

    def combine(z, a, t):
        v = over_output(a, t)
        roots = jnp.sqrt(jnp.where(t == 0, 0, v / a))
        return (roots[:, None, :] * z[:, :, :-1] + v[:, None, :] * z[:, :, -1:]) / 2

    return Loss(
        "bhattacharyya",
        reduction,
        lambda a, t: -jnp.log(jnp.sum(_root_products(a, t), axis=-1)),
        gradient,
        fused={
            "softmax": FusedPair(
                lambda n, t: -_log_sum_exp(_geometric(t, _log_softmax(n))),
                fused_gradient,
                Curvature(fused_product, None),
            )
        },
        needs="distribution",
        targets="distribution",
        correct=largest,
        least_outputs=2,
        curvature=Curvature(product, root, combine),
    )


# Errors of classification, from scores --------------------------------------------------------------------------------


@register
def hinge(reduction: Reduction = "mean") -> Loss:
    """F = sum_q sum_i max(0, 1 - t a), for targets -1 and +1 (CSE 475 19.69, Lecture 2).

    dF/da = 0 at t a = 1, as for relu.

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.hinge("sum")
        >>> f"{loss.value(jnp.array([[0.5]]), jnp.array([[1.0]])):.2f}"
        '0.50'
    """
    return Loss(
        "hinge",
        reduction,
        lambda a, t: jnp.sum(_positive_part(1 - t * a), axis=-1),
        lambda a, t: jnp.where(1 - t * a > 0, -t, 0),
        targets="signs",
        correct=_above(0.0),
        doubt=_of_both_signs,
        kink_distance=lambda a, t: jnp.abs(1 - t * a),
        curvature=_flat,
    )


def _positive_part(x):
    return jnp.where(x <= 0, 0, x)


@register
def multiclass_hinge(reduction: Reduction = "mean") -> Loss:
    """F = sum_q sum_(j != y) max(0, 1 + a_j - a_y), for one-hot targets (Weston and Watkins 1999).

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.multiclass_hinge("sum")
        >>> f"{loss.value(jnp.array([[0.5, 1.0]]), jnp.array([[1.0, 0.0]])):.2f}"
        '1.50'
    """

    def margins(a, t):
        # of the wrong classes; the right one has no margin that could be violated
        return jnp.where(t == 1, -1, 1 + a - jnp.sum(t * a, axis=-1, keepdims=True))

    def gradient(a, t):
        violated = jnp.where(margins(a, t) > 0, 1.0, 0.0).astype(a.dtype)
        return violated - t * jnp.sum(violated, axis=-1, keepdims=True)

    return Loss(
        "multiclass_hinge",
        reduction,
        lambda a, t: jnp.sum(_positive_part(margins(a, t)), axis=-1),
        gradient,
        targets="one-hot",
        correct=largest,
        least_outputs=2,
        kink_distance=lambda a, t: jnp.abs(margins(a, t)),
        curvature=_flat,
    )


@register
def logistic(reduction: Reduction = "mean") -> Loss:
    """F = sum_q sum_i ln(1 + e^(-t a)), for targets -1 and +1 (Lecture 2).

    Args:
        reduction: "mean" over the examples, or their "sum".
        positions: F_q is the "mean" or the "sum" of the values at each position of the outputs.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> loss = fnn.losses.logistic("sum")
        >>> f"{loss.value(jnp.array([[0.0]]), jnp.array([[1.0]])):.2f}"
        '0.69'
    """
    return Loss(
        "logistic",
        reduction,
        lambda a, t: jnp.sum(_softplus(-t * a), axis=-1),
        lambda a, t: -t * lax.logistic(-t * a),
        targets="signs",
        correct=_above(0.0),
        doubt=_of_both_signs,
        curvature=_diagonal(lambda a, t: t**2 * lax.logistic(a) * lax.logistic(-a)),
        likelihood=Likelihood(
            "Bernoulli",
            "each output the log-odds ln p/(1 - p) that its target is +1 and not -1",
            lambda a, t: -jnp.sum(_softplus(-t * a), axis=-1),
        ),
    )
