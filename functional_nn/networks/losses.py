"""Performance functions F: the value and dF/da of each example, and the pairs that are fused with an output layer.

Letters: Q examples, S outputs. `a` outputs, `t` targets and `n` net inputs of the output layer are (Q, S);
`weights`, where given, weighs each example, (Q,).

A loss is F = sum_q w_q F_q, divided by sum_q w_q where `reduction` is "mean"; without weights every w_q is 1. A row
gives F_q and dF_q/da. Where a row is fused with an output activation it also gives F_q and s_q = dF_q/dn from the net
inputs: exact and finite where the composition would be log(0) or 0/0. Every value keeps the dtype of the outputs;
sums are accumulated in at least float32.

Where outputs have positions, (Q, *P, S), a row is asked at each of their T, and F_q is the mean of what it gives there,
or their sum where `positions` is "sum". Weights may be given at each position, (Q, *P), 0 for one that is masked: F_q
is then the mean by them, and w_q is their mean, so that a position counts as its weight says, whatever example it is
of.

What cancels in the two pairs everybody uses, of one example, with H = ds/dn (S, S):

    softmax    F_q = -sum_i t_i ln a_i
               s = (diag(a) - a a^T)(-t / a) = a sum(t) - t              Hagan E3.5; a - t where sum(t) = 1
               H = sum(t) (diag(a) - a a^T) = V V^T, whose columns are sqrt(sum(t) a_c) (e_c - a)
    sigmoid    F_q = -sum_i (t_i ln a_i + (1 - t_i) ln(1 - a_i))
               s = a (1 - a) (a - t) / (a (1 - a)) = a - t               Hagan P3.1
               H = diag(a (1 - a))

Kullback-Leibler differs from cross-entropy by sum t ln t, which no output moves: the same s, the same H.

Most losses are -ln of how likely the targets are, where the outputs say their distribution (Hagan 3.6-3.9, Lecture 2's
Normal, Bernoulli and Multinomial units): the parameters that minimise F are those that make the data the most likely.

    half_sum_, sum_, mean_square_error       Normal of variance 1, 1/2, S/2 around each output
    binary_cross_entropy                     Bernoulli of probability a, each output by itself
    logistic                                 Bernoulli of t = +1 with probability 1 / (1 + e^-a)
    cross_entropy, kullback_leibler          categorical (Multinomial with one draw): class i with probability a_i

The hinges, the symmetric divergence and Bhattacharyya's distance are given none.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, precision
from functional_nn.networks import activations
from functional_nn.networks.activations import Activation, Range, largest_in_row
from functional_nn.networks.connections import rows
from functional_nn.precision import at_least_float32
from functional_nn.registry import Described, Registry, cached

_SAID = {"real": "real numbers", "unit interval": "numbers in [0, 1]", "distribution": "a distribution"}
Reduction = Literal["mean", "sum"]
_RANGES: tuple[Range, ...] = ("real", "unit interval", "distribution")  # each is also all that stand before it


@dataclass(frozen=True)
class Curvature:
    """The second derivative H_q (S, S) of F_q by the x that it reads: outputs, or net inputs in a fused pair.

    product(r, x, t) -> H_q r_q (Q, S). root(x, t) -> V (Q, C, S), sum_c V_qc V_qc^T = H_q: the columns that curvature
    is swept back with; None where H_q may have negative eigenvalues. combine(z, x, t) -> sum_c z_qkc V_qc (Q, K, S), z
    (Q, K, C), without forming V; None where `root` must be asked, which is done for a few examples at a time.
    least_root(x, t): a root of fewer columns, as many as H_q has rank, for where all are swept; None where `root` has
    no more.
    """

    product: Callable[[Array, Array, Array], Array]
    root: Callable[[Array, Array], Array] | None
    combine: Callable[[Array, Array, Array], Array] | None = None
    least_root: Callable[[Array, Array], Array] | None = None


@dataclass(frozen=True)
class Likelihood:
    """The distribution of the targets that outputs stand for: F_q = -log(a, t) + what no output moves.

    name: the family; means: what the outputs are in it. log(a, t) -> (Q,) in the dtype of the outputs: ln of the
    density of each example's targets, or of their probability where they are classes, 0 and 1, or signs; normalized.
    Shares for targets (between 0 and 1) are no event: there it is the expected ln of one drawn with these shares.
    Counts of classes are that many draws in their order, the prod a^t of Hagan Eq. 3.8.
    """

    name: str
    means: str
    log: Callable[[Array, Array], Array]

    def __repr__(self) -> str:
        return f"<likelihood {self.name}: {self.means}>"


@dataclass(frozen=True)
class FusedPair:
    """F_q and dF_q/dn of an output activation and a loss together, from net inputs: (n, t) -> (Q,) and (Q, S)."""

    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]
    curvature: Curvature | None = None


@dataclass(frozen=True)
class Loss(Described):
    """A performance function. Usually made by one of the factories below, such as `cross_entropy(reduction="mean")`.

    example_value(a, t) -> F_q (Q,); example_gradient(a, t) -> dF_q/da (Q, S).
    fused: output activation's name -> FusedPair.
    curvature: its second derivative by the outputs; only second derivatives of the network ask for it.
    needs: what the outputs must be; targets: what concrete targets must be.
    correct(a, t) -> (Q,) booleans, which examples are classified rightly; None where the question has no sense.
    kink_distance(a, t) -> (Q, S), as in `Activation`.
    least_outputs: how many outputs it needs at least; doubt: a word where outputs of that range train to no good end.
    square_weight(S) -> c, where F_q = c sum_i (a_i - t_i)^2: a sum of squares has residuals, sqrt(c) (a - t).
    constants: what else than its reduction it was made with, by name; filled in by `register`.
    likelihood: the distribution of the targets whose -ln it is; None where there is none, or nobody said.
    positions: what F_q is of what is found at each position of the outputs, their "mean" or their "sum".
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
    doubt: Callable[[Range], str | None] = lambda gives: None
    constants: dict[str, Any] = field(default_factory=dict, hash=False)
    likelihood: Likelihood | None = None
    positions: Reduction = "mean"

    def __repr__(self) -> str:
        return f"<loss {self.specification}>"

    @property
    def specification(self) -> str:
        """What `get` makes it of again, such as "cross_entropy(mean)" or "huber(mean, delta=0.5)"."""
        constants = [f"{name}={x}" for name, x in self.constants.items()]
        constants += ["positions=sum"] if self.positions == "sum" else []
        return f"{self.name}({', '.join([self.reduction, *constants])})"

    @property
    def smooth(self) -> bool:
        """True where the loss has a derivative everywhere."""
        return self.kink_distance is None

    def value(self, outputs: Array, targets: Array, weights: Array | None = None) -> Array:
        """F, a scalar."""
        return self.reduce(at_positions(self.example_value, outputs, targets), weights)

    def gradient(self, outputs: Array, targets: Array, weights: Array | None = None) -> Array:
        """dF/da (Q, *P, S), reduction included."""
        return self.scale(at_positions(self.example_gradient, outputs, targets), weights)

    def fused_with(self, activation: Activation) -> FusedPair | None:
        """The pair that takes over from `activation` in the output layer, if there is one.

        Only from the functions of the registered activation: another that goes by its name keeps its own derivative.
        """
        pair = self.fused.get(activation.name)
        if pair is None:
            return None
        known = activations.get(activation.name)
        return pair if (known.forward, known.pullback) == (activation.forward, activation.pullback) else None

    def convex_in(self, activation: Activation) -> tuple[Literal["net_inputs", "outputs"], Curvature]:
        """What of the output layer F_q is a convex function of, and its curvature there: where Gauss-Newton splits F.

        The net inputs of a fused pair that is convex in them, else the outputs. Raises ValueError where the loss was
        given no such curvature.
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
        """What each of so many positions counts for in its example."""
        return 1 / count if self.positions == "mean" else 1.0

    def of_example(self, values: Array, weights: Array | None = None) -> Array:
        """F_q (Q,), from what is found at each position (Q, *P), and the positions' weights, whose mean is 1."""
        if values.ndim == 1:
            return values
        wide = values.astype(at_least_float32(values.dtype))
        wide = wide if weights is None else wide * weights.astype(wide.dtype)
        found = jnp.sum(wide.reshape(len(wide), -1), axis=1) * self.of_position(math.prod(values.shape[1:]))
        return found.astype(values.dtype)

    def reduce(self, values: Array, weights: Array | None = None) -> Array:
        """sum_q w_q F_q, over sum_q w_q for "mean" (0 where that is 0): from what is found of each example (Q,), or at
        each position (Q, *P), a scalar.
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
        """dF_q/d. -> dF/d. : each row times its share w_q (/ sum w) of F, (Q, *P, S) -> (Q, *P, S)."""
        # in at least float32: neither Q nor 1 / Q need be a number of a 16-bit dtype
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
        """What a mean over all positions of all examples is to be multiplied by, or a sum over them."""
        if self.reduction == "sum":
            return self.of_position(positions)
        return 1.0 if self.positions == "mean" else float(positions)

    def check_outputs(self, activation: Activation) -> None:
        """Raises ValueError where the loss needs probabilities and the output layer gives something else."""
        if _RANGES.index(activation.gives) < _RANGES.index(self.needs):
            raise ValueError(
                f"{self.name} needs outputs that are {_SAID[self.needs]}, but the output layer's activation "
                f"{activation.name!r} gives {_SAID[activation.gives]}; use "
                + ("'softmax'" if self.needs == "distribution" else "'softmax' or 'sigmoid'")
            )

    def check_classes(self, size: int) -> None:
        """Raises ValueError where there are too few outputs for the loss to tell classes apart."""
        if size < self.least_outputs:
            raise ValueError(
                f"{self.name} needs at least {self.least_outputs} outputs, one for each class, got {size}, of which "
                f"every answer would be right; use binary_cross_entropy with one 'sigmoid' output, or {self.name} with "
                "one output for each class"
            )

    def check_targets(self, targets) -> None:
        """Raises ValueError at the first concrete target this loss has no meaning for."""
        if self.targets != "real":
            _check_targets(self.name, self.targets, targets)


def _sums_to_1(t: np.ndarray) -> np.ndarray:
    return np.abs(t.sum(axis=-1, keepdims=True) - 1) <= 1e-2


# what a target must not be, (Q, S) -> (Q, S) booleans, and how what it may be is said
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


def _check_targets(owner: str, kind: str, targets: Array) -> None:
    if not checks.is_concrete(targets):
        return
    wrong, accepted = _WRONG_TARGETS[kind]
    index = checks.first(targets, lambda block: wrong(block.astype(np.float64)))
    if index is not None:
        found = float(np.asarray(targets)[index])
        raise ValueError(f"targets: {owner} accepts {accepted}, got {found:g} at index {index}")


def at_positions(function: Callable[..., Array], *signals: Array) -> Array:
    """What a function of rows (Q, S) gives at every position of signals (Q, *P, S): (Q, *P, ...)."""
    if signals[0].ndim == 2:
        return function(*signals)
    found = function(*map(rows, signals))
    return found.reshape(*signals[0].shape[:-1], *found.shape[1:])


def spread(weights: Array, shape: tuple[int, ...]) -> Array:
    """Weights of examples (Q,) at all of their positions (Q, *P)."""
    return jnp.broadcast_to(jnp.expand_dims(weights, tuple(range(weights.ndim, len(shape)))), shape)


def _times(x: Array, factor: float) -> Array:
    return x if factor == 1 else x * factor


def positive(total: Array) -> Array:
    """What is divided by: 1 where it is 0, as the sum of weights that are all 0."""
    return jnp.where(total > 0, total, 1)


_registry: Registry[Loss] = Registry("loss", Loss)
names, get = _registry.names, _registry.get


def register(factory: Callable[..., Loss]) -> Callable[..., Loss]:
    """Makes a factory `(reduction=..., ...) -> Loss` known by its name; returns it, its results cached. A decorator.

    Its other arguments are the loss's constants: `get("huber(mean, delta=0.5)")` gives them, too. Each takes
    positions="mean" or "sum" beside them, for outputs that have positions.
    Raises TypeError for a factory without `reduction`, ValueError where the name is taken.
    """
    signature = inspect.signature(factory)
    if next(iter(signature.parameters), None) != "reduction":
        raise TypeError(f"losses.register: {factory.__name__} must take reduction='mean' first, beside its constants")

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
    told = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    positions = inspect.Parameter("positions", inspect.Parameter.KEYWORD_ONLY, default="mean", annotation=Reduction)
    checked.__signature__ = signature.replace(parameters=[*told, positions, *rest])
    made = cached(checked)
    _registry.add(factory.__name__, made)
    return made


def one_hot(labels, classes: int, dtype=None) -> Array:
    """Labels (Q,) of integers 0..classes-1 as rows (Q, classes) with a single 1; (Q, T) as (Q, T, classes).

    Raises ValueError for concrete labels out of range or not integers, and for a column (Q, 1); under `jit`, where
    values are not known, such a label gives a row of nan, so that no example is lost silently. dtype: JAX's default
    float where not given.
    """
    labels = jnp.asarray(labels)
    if labels.ndim < 1 or labels.shape[1:] == (1,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels: expected integers of shape (Q,), got {labels.dtype} of shape {labels.shape}; of positions (Q, T)"
        )
    return _one_hot(labels, classes, precision.default() if dtype is None else precision.available(dtype))


def smooth_labels(targets: Array, rate: float) -> Array:
    """Label smoothing: (1 - rate) t + rate / C of targets (Q, *P, C), one for each class: Szegedy et al. 2016, sec. 7.

    A share `rate` of each example is given to all C classes alike, so that no output is driven to exactly 1; the
    largest target, by which answers are counted, stays the same. Integer labels are made rows by `one_hot` first. A
    single column (Q, *P, 1), of 0 and 1, says two classes: C = 2. In the dtype of the targets, or JAX's default float
    for integers and booleans. Raises ValueError unless the rate is in [0, 1), and for concrete targets that are no
    distribution.

    >>> import jax.numpy as jnp, functional_nn as fnn
    >>> fnn.smooth_labels(fnn.one_hot(jnp.array([2]), 4), 0.2).round(2).tolist()
    [[0.05, 0.05, 0.85, 0.05]]
    """
    rate = checks.constant("smooth_labels", "rate", rate, lambda v: (v >= 0) & (v < 1), "in [0, 1)")
    checks.numeric("targets", targets, precision.default())
    targets = jnp.asarray(targets)
    if targets.ndim < 2:
        raise ValueError(
            f"targets: expected shape (Q, C), one column for each class, got {targets.shape}; fnn.one_hot(labels, C) "
            "makes rows of integer labels"
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
    """Integer labels (Q, *P) as the targets (Q, *P, S) of S outputs: one-hot rows, or -1 and +1 where the loss wants
    signs.

    Of a single output, which 0 and 1 (or False and True) are the labels of: a column of them. Raises ValueError for
    labels out of range, and for a single output whose loss has no classes.
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


def class_weights(targets: Array, weights: Any = "balanced") -> Array:
    """The weight of each example (Q,) by its class: of targets (Q, S) the largest, of a single column > 1/2, or > 0
    where there are numbers below 0; of integers (Q,) the label. Of targets with positions, (Q, *P, S), of each (Q, *P).

    weights: one for each class, (C,) or {class: weight}, 1 where it has none; or "balanced", Q / (C Q_c) for a class of
    Q_c examples, so that every class counts alike (King and Zeng 2001; scikit-learn's). Raises ValueError for others.

    >>> import numpy as np, functional_nn as fnn
    >>> fnn.class_weights(np.array([0, 0, 0, 1])).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0]
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
    """The same of integer labels (Q, *P), of so many classes; None: as many as there are labels."""
    given = dict(enumerate(weights)) if isinstance(weights, list | tuple | np.ndarray | jax.Array) else weights
    if count is None:
        if not checks.is_concrete(labels):
            raise ValueError("class_weights: integer labels that are traced do not say how many classes there are")
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


_flat = _diagonal(lambda x, t: jnp.zeros_like(x))  # pieces of planes


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


# What a right answer is -----------------------------------------------------------------------------------------------


def largest(outputs: Array, targets: Array) -> Array:
    """(Q,): is the largest output where the largest target is? Raises ValueError for a single output."""
    if outputs.shape[-1] < 2:
        raise ValueError(
            f"correct: 'largest' compares outputs with each other, and there is one, of shape {outputs.shape}; give "
            "correct=lambda outputs, targets: ..., such as (outputs[:, 0] > 0.5) == (targets[:, 0] > 0.5)"
        )
    return jnp.argmax(outputs, axis=-1) == jnp.argmax(targets, axis=-1)


def _above(threshold: float) -> Callable[[Array, Array], Array]:
    return lambda a, t: jnp.all((a > threshold) == (t > threshold), axis=-1)


# Errors of regression -------------------------------------------------------------------------------------------------


def _normal(variance: str, square_weight: Callable[[int], float]) -> Likelihood:
    """c |a - t|^2 is the exponent of a Normal of variance 1 / (2 c), whose height is sqrt(c / pi) for each output."""

    def log(a, t):
        c = square_weight(a.shape[-1])
        return a.shape[-1] * math.log(c / math.pi) / 2 - c * jnp.sum((t - a) ** 2, axis=-1)

    return Likelihood("Normal", f"each output the mean of its target, of variance {variance}", log)


def _half_square_sum(a, t):
    return jnp.sum((t - a) ** 2, axis=-1) / 2


@register
def mean_square_error(reduction: Reduction = "mean") -> Loss:
    """F = 1/(Q S) sum_q sum_i (t - a)^2: Hagan Eq. 3.5. With "sum", the 1/Q is left out (Eq. 3.51, one example)."""
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
    """F = sum_q sum_i (t - a)^2: Hagan Eq. 3.17, CSE 475 19.71."""
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
    """F = 1/2 sum_q sum_i (t - a)^2: Kordecki; blog 001 Eq. 5."""
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
    # sum_i t_i x_i in which t_i = 0 counts as nothing, even where x_i is infinite: a masked class has log a = -inf
    return jnp.sum(jnp.where(t == 0, 0, t * x), axis=-1)


def _softplus(x):
    # ln(1 + e^x); the smaller exponent only, so that neither side overflows
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
    # ln a where a target asks for it; the rest is masked before the logarithm so that autodiff never meets 0 inf
    return jnp.log(jnp.where(t == 0, 1, a))


_categorical = Likelihood(
    "categorical",
    "each output the probability of its class, of which one is drawn (Multinomial with one draw)",
    lambda a, t: _weighted(t, _log_where(t, a)),
)


@register
def cross_entropy(reduction: Reduction = "mean") -> Loss:
    """F = -sum_q sum_i t ln a: Hagan Eq. 3.9 ("sum"). Fused with softmax: s = a sum(t) - t (E3.5); else -t/a (E3.6)."""
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
        "targets are -1 or +1, and told by the sign of the output, but the output layer gives numbers in [0, 1] alone: "
        "use 'linear' or 'tanh' outputs, or binary_cross_entropy with targets 0 and 1"
    )


def _binary_value(a, t):
    return -_weighted(t, _log_where(t, a)) - _weighted(1 - t, _log_where(1 - t, 1 - a))


def _binary_gradient(a, t):
    return _minus_target_over_output(a, t) - _minus_target_over_output(1 - a, 1 - t)


@register
def binary_cross_entropy(reduction: Reduction = "mean") -> Loss:
    """F = -sum_q sum_i [t ln a + (1 - t) ln(1 - a)]: Hagan P3.1. Fused with sigmoid: s = a - t."""
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
    """F = sum_q sum_i t ln(t / a), the divergence D(t || a): CSE 475 19.71. Fused with softmax.

    Of cross-entropy's likelihood: the entropy of the targets, by which the two differ, is moved by no output.
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
    # the derivative of the line above along r: of ln a it is r less its mean, of a it is a times that
    log_a = _log_softmax(n)
    a = jnp.exp(log_a)
    ratio, r_log = log_a - jnp.log(t), _away_from_mean(a, r)
    total = jnp.sum(t, axis=-1, keepdims=True)
    return a * (r_log * (total + _away_from_mean(a, ratio) + 1) - jnp.sum(a * r_log * ratio, axis=-1, keepdims=True))


@register
def symmetric_kullback_leibler(reduction: Reduction = "mean") -> Loss:
    """F = D(t || a) + D(a || t) = sum (t - a) ln(t / a): CSE 475 19.71. Targets > 0. Fused with softmax."""
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
    # ln sqrt(t a), term by term; -inf where t = 0, set there by hand since complex infinities do not survive arithmetic
    absent = t == 0
    return jnp.where(absent, -jnp.inf, (jnp.log(jnp.where(absent, 1, t)) + log_a) / 2)


def _log_sum_exp(x):
    shift = largest_in_row(x)
    return (jnp.log(jnp.sum(jnp.exp(x - shift), axis=-1, keepdims=True)) + shift)[..., 0]


def _root_products(a, t):
    # sqrt(t a), with 0 where t = 0 and a derivative there that is 0 too
    return jnp.where(t == 0, 0, jnp.sqrt(jnp.where(t == 0, 1, t * a)))


@register
def bhattacharyya(reduction: Reduction = "mean") -> Loss:
    """F = -sum_q ln sum_i sqrt(t a), the Bhattacharyya distance: CSE 475 19.71. Fused with softmax."""

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
    """F = sum_q sum_i max(0, 1 - t a), t = -1 or +1: CSE 475 19.69, Lecture 2. dF/da = 0 at t a = 1, as for relu."""
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
    """F = sum_q sum_(j != y) max(0, 1 + a_j - a_y), one-hot targets (Weston and Watkins 1999)."""

    def margins(a, t):
        # of the wrong classes; the right one is given no margin to violate
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
    """F = sum_q sum_i ln(1 + e^(-t a)), t = -1 or +1: Lecture 2."""
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
