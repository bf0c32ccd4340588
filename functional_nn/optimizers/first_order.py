"""First-order methods as pairs of pure functions: `init(params) -> state` and `update(state, grads) -> state`.

The state carries the parameters and the step. A constant is a Python number, a traced array (so that `vmap` can sweep
it) or a schedule of the step: `adam(schedules.cosine(1e-2, steps=1000))`. Parameters keep their dtype; averages of
gradients are kept, and steps computed, in at least float32. A gradient of zero leaves a parameter bitwise as it was.

Any constant of an elementwise method may be a mapping, of names of layers to such constants, or to mappings of the
names below, as deep as wanted; "others" is for what a mapping does not name. A name that the parameters have not, and a
parameter left without a value, are refused in `init`, which meets the parameters (inside `freeze`, the trained ones):

    gd({"layer1": 0.1, "others": "cosine(0.01, 1000)"})
    adam({"layer1": {"weights": 1e-3, "bias": 1e-2}, "others": {"bias": 0.0, "others": 1e-4}})

Letters, in every rule: g the gradient, k = 1, 2, ... the number of the update, x the parameter, eta or alpha the
learning rate. Every method but `full_matrix_adagrad` works elementwise: its rule says what one element's change is, and
what is remembered.

An average m_k = b m_(k-1) + (1 - b) g_k begun at 0 is (1 - b) sum_i b^(k-i) g_i, whose weights sum to 1 - b^k: divided
by that it is a weighted mean of the gradients so far, with their expectation where that stays what it is (Kingma and
Ba 2015, Sec. 3).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, linalg, registry
from functional_nn.optimizers import schedules
from functional_nn.precision import at_least_float32
from functional_nn.registry import Described, FrozenMapping, Registry

State = Any
Constant = float | Array | Callable[[Array], Array] | str | Mapping[str, Any]


def _own_params(state: State):
    return state.params


def _unmoved(state: State, value: Array) -> State:
    return state


class Asked(NamedTuple):
    """What a method may ask of the batches it is trained on; each is made only where it is asked for.

    gradient() -> ((params, batch) -> (metrics, gradients)); problem() -> (batch -> `second_order.Problem`);
    metrics(params, value, gradient, batch) -> the same metrics, where a method has F and its gradient (P,) already.
    """

    gradient: Callable[[], Callable[[Any, Any], tuple[Any, Any]]]
    problem: Callable[[], Callable[[Any], Any]]
    metrics: Callable[[Any, Array, Array, Any], Any]


@dataclass(frozen=True, eq=False)
class Optimizer(Described):
    """init(params) -> state; update(state, grads) -> state, with `state.params` and `state.step` in every state.

    constants: the rates and decays it was made with, by name.
    point(state): where the next gradient is to be taken: `state.params`, save for methods that look ahead or report
    an average. observe(state, loss) -> state: told the loss after each epoch, for methods that listen.
    full_batch: True where the method makes no sense of mini-batches. gathers: how many gradients one move of the
    parameters takes.
    """

    name: str
    init: Callable[[Any], State]
    update: Callable[[State, Any], State]
    constants: dict[str, Any]
    point: Callable[[State], Any] = _own_params
    observe: Callable[[State, Array], State] = _unmoved
    full_batch: bool = False
    gathers: int = 1
    one_device: ClassVar[bool] = False  # must all examples of a batch lie on one?

    def __repr__(self) -> str:
        return f"<optimizer {self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})>"

    # What a training loop asks, of methods of second order likewise

    def begin(self, params: Any, problem: Callable[[], Any]) -> State:
        """The state before the first update; `problem()`, the first batch's, is not asked for."""
        return self.init(params)

    def lifted(self, asked: Asked) -> Callable:
        """The step (state, batch) -> (state, metrics), metrics of before it."""
        gradient = asked.gradient()

        def step(state: State, batch: Any):
            metrics, grads = gradient(self.point(state), batch)
            return self.update(state, grads), metrics

        return step

    def ended(self, state: State) -> Array:
        """Whether the method has ended the run, int32: never, 0."""
        return jnp.zeros((), jnp.int32)

    def check_start(self, params: Any) -> None:
        """Raises ValueError naming the parameter that is nan; -inf may mask a class, and stay."""
        for path, x in checks.by_path(params).items():
            index = checks.first(x, lambda block: np.isnan(block)) if hasattr(x, "dtype") else None
            if index is not None:
                raise ValueError(f"params: {path} has nan at index {index}")

    def check_gradient(self, by_hand: bool, rule: str | None) -> None:
        """Every gradient will do, and what stands in its place."""

    def check_plan(self, plan: Any, updates: int, epochs: int) -> None:
        """Raises ValueError for batches, `updates` an epoch, that the method makes no sense of."""
        if self.gathers > updates * epochs:
            raise ValueError(
                f"accumulate: the parameters move once in {self.gathers} updates, but the run has {updates * epochs}: "
                f"{epochs} epochs of {updates}"
            )
        if self.full_batch and updates > 1:
            raise ValueError(
                f"{self.name} compares the signs of successive gradients, which mini-batches make random: use "
                "plan=training.batch() (on the command line, --batch-size 0), or make it with minibatches=True all the "
                f"same; got {updates} batches an epoch"
            )


_registry: Registry[Optimizer] = Registry("optimizer", Optimizer)
register, names = _registry.register, _registry.names
factory, knows = _registry.factory, _registry.knows


def get(optimizer: str | Optimizer) -> Optimizer:
    """The optimizer that a name such as "adam(0.01)" stands for; optimizers pass. Raises ValueError and TypeError."""
    if not isinstance(optimizer, Optimizer) and all(callable(getattr(optimizer, f, None)) for f in ("init", "update")):
        raise TypeError(
            f"optimizer: expected a name or an Optimizer, got {type(optimizer).__name__}; optimizers.from_optax(...) "
            "makes one of what optax made"
        )
    return _registry.get(optimizer)


# The methods ----------------------------------------------------------------------------------------------------------


class GDState(NamedTuple):
    """params; step: updates made so far, int32 scalar."""

    params: Any
    step: Array


@register
def gd(learning_rate: Constant = 0.1) -> Optimizer:
    """Gradient descent, x_(k+1) = x_k - alpha g_k: Hagan Eq. 3.14. Raises ValueError unless the rate is >= 0."""

    def rule(now, g):
        return (-now.learning_rate * g,)

    return _elementwise("gd", GDState, rule, {"learning_rate": non_negative("gd", "learning_rate", learning_rate)})


class MomentumState(NamedTuple):
    """params; step; change: Delta w of the last step, in the parameters' structure."""

    params: Any
    step: Array
    change: Any


@register
def momentum(learning_rate: Constant = 0.1, decay: Constant = 0.9) -> Optimizer:
    """Delta w_t = -eta g_t + alpha Delta w_(t-1), w_(t+1) = w_t + Delta w_t: blog 001 Eq. 3, Kordecki.

    `decay` is alpha, in [0, 1); at 0 this is gradient descent. Where the rate changes from step to step, Delta w
    keeps the rates it was made with; optax and PyTorch multiply the whole average by the latest rate instead.
    Raises ValueError for constants out of range.
    """
    return _elementwise("momentum", MomentumState, _momentum, _momentum_constants("momentum", learning_rate, decay))


def _momentum(now, g, change):
    change = now.decay * change - now.learning_rate * g
    return change, change


def _momentum_constants(name: str, learning_rate, decay) -> dict:
    return {
        "learning_rate": non_negative(name, "learning_rate", learning_rate),
        "decay": decay_rate(name, "decay", decay),
    }


@register
def nesterov(
    learning_rate: Constant = 0.1, decay: Constant = 0.9, form: Literal["gradient", "look_ahead"] = "gradient"
) -> Optimizer:
    """Nesterov's accelerated gradient (1983), momentum that looks ahead before it takes the gradient.

    "look_ahead" (Sutskever et al. 2013, Eq. 3-4): v_t = alpha v_(t-1) - eta g(w_(t-1) + alpha v_(t-1)),
    w_t = w_(t-1) + v_t. `state.params` is w; the gradient belongs at `optimizer.point(state)` = w + alpha v, where
    `fit` takes it.
    "gradient": the same recursion told in the look-ahead point y = w + alpha v, so that gradients are taken at
    `state.params` as for every other method: v_t = alpha v_(t-1) - eta g(y), y_t = y_(t-1) + alpha v_t - eta g(y).
    This is optax's and PyTorch's. With constant alpha the two forms are one trajectory, y_t = w_t + alpha v_t; where
    alpha changes, only the first form is Nesterov's. Raises ValueError for constants out of range.
    """
    constants = _momentum_constants("nesterov", learning_rate, decay)
    checks.one_of("nesterov", "form", form, ("gradient", "look_ahead"))

    def told_in_y(now, g, change):
        change, _ = _momentum(now, g, change)
        return now.decay * change - now.learning_rate * g, change

    def ahead(state):
        decays = of_each(at_step(constants["decay"], state.step), state.params)
        decays = jax.tree.structure(state.params).unflatten(decays)

        def further(w, v, decay):
            return moved(w, in_dtype(decay, v.dtype) * v)

        return jax.tree.map(further, state.params, state.change, decays)

    if form == "gradient":
        return _elementwise("nesterov", MomentumState, told_in_y, constants, options={"form": form})
    optimizer = _elementwise("nesterov", MomentumState, _momentum, constants, options={"form": form})
    return dataclasses.replace(optimizer, point=ahead)


class RpropState(NamedTuple):
    """params; step; gradient: the last one, 0 where its sign changed; step_size: of each element, negative there."""

    params: Any
    step: Array
    gradient: Any
    step_size: Any


class BacktrackingRpropState(NamedTuple):
    """params; step; gradient, step_size as in `RpropState`; change: the last one, which may have to be taken back."""

    params: Any
    step: Array
    gradient: Any
    step_size: Any
    change: Any


@register
def rprop(
    initial_step: float | Array | Mapping[str, Any] = 0.1,
    decrease: Constant = 0.5,
    increase: Constant = 1.2,
    smallest: Constant = 1e-6,
    largest: Constant = 50.0,
    backtracking: bool = True,
    minibatches: bool = False,
) -> Optimizer:
    """Resilient propagation: a step size for each weight, from the signs of its last two gradients alone.

    Where the sign stayed, the step grows by `increase`; where it changed, it shrinks by `decrease` and the next
    gradient is not compared. The move is -sign(g) times the step. On a change of sign, with `backtracking` the last
    move is taken back (Riedmiller and Braun 1993), without it nothing moves (iRprop-, Igel and Huesken 2000:
    PyTorch's, and optax's, whose 0.2 makes each move one update late).

    `fit` refuses mini-batches, for which signs mean nothing: a weight with gradient 0.1 in nine batches and -0.9 in
    the tenth would move far in nine steps instead of staying (Kordecki). `minibatches=True` takes them nevertheless.
    Raises ValueError for constants out of range.
    """
    checks.boolean("rprop", "backtracking", backtracking)
    checks.boolean("rprop", "minibatches", minibatches)
    constants = {
        "decrease": _constant("rprop", "decrease", decrease, lambda v: (v > 0) & (v < 1), "in (0, 1)"),
        "increase": _constant("rprop", "increase", increase, lambda v: (v > 1) & np.isfinite(v), "a finite number > 1"),
        "smallest": non_negative("rprop", "smallest", smallest),
        "largest": positive("rprop", "largest", largest),
    }
    initial_step = _begins("rprop", "initial_step", initial_step, *checks.POSITIVE)
    bounds = (constants["smallest"], initial_step, constants["largest"])
    _check_order(*bounds)

    def resized(now, g, last, size):
        # A change of sign is told by the sign of the new step size, so that one kernel alone reads what is remembered:
        # the compiler copies what a second one reads before it is overwritten.
        agreement, size = last * g, jnp.abs(size)
        grown, shrunk = jnp.minimum(size * now.increase, now.largest), jnp.maximum(size * now.decrease, now.smallest)
        size = jnp.where(agreement > 0, grown, jnp.where(agreement < 0, -shrunk, size))
        return size, jnp.where(size < 0, 0, g)

    def staying(now, g, last, size):
        size, g = resized(now, g, last, size)
        return -jnp.sign(g) * size, g, size

    def taking_back(now, g, last, size, change):
        size, g = resized(now, g, last, size)
        change = jnp.where(size < 0, -change, -jnp.sign(g) * size)
        return change, g, size, change

    state, rule = (BacktrackingRpropState, taking_back) if backtracking else (RpropState, staying)
    optimizer = _elementwise(
        "rprop",
        state,
        rule,
        constants,
        start={"step_size": initial_step},
        options={"initial_step": initial_step, "backtracking": backtracking, "minibatches": minibatches},
    )

    def init(params):
        state = optimizer.init(params)
        for own in zip(*(of_each(bound, params) for bound in bounds), strict=True):
            _check_order(*own)
        return state

    return dataclasses.replace(optimizer, init=init, full_batch=not minibatches)


def _check_order(smallest, initial_step, largest) -> None:
    plain = all(isinstance(value, float) for value in (smallest, initial_step, largest))
    if plain and not smallest <= initial_step <= largest:
        raise ValueError(
            f"rprop: initial_step must be between smallest = {smallest} and largest = {largest}, got {initial_step}"
        )


class AdaGradState(NamedTuple):
    """params; step; sum_of_squares: of all gradients so far, in the parameters' structure."""

    params: Any
    step: Array
    sum_of_squares: Any


@register
def adagrad(
    learning_rate: Constant = 0.01, epsilon: Constant = 1e-10, initial: float | Array | Mapping[str, Any] = 0.0
) -> Optimizer:
    """AdaGrad, diagonal form: G = G + g^2, w = w - eta g / sqrt(epsilon + G). Duchi, Hazan, Singer 2011; Kordecki.

    G starts at `initial`. Kordecki writes G as the sum of outer products and calls it diagonal; the diagonal is what
    is meant, the full matrix is `full_matrix_adagrad`. optax has epsilon 1e-7 and starts at 0.1; PyTorch adds epsilon
    outside the root. Raises ValueError for constants out of range.
    """
    constants = {
        "learning_rate": non_negative("adagrad", "learning_rate", learning_rate),
        "epsilon": positive("adagrad", "epsilon", epsilon),
    }
    initial = _begins("adagrad", "initial", initial, *checks.NON_NEGATIVE)

    def rule(now, g, total):
        total = total + g**2
        return -now.learning_rate * g / jnp.sqrt(now.epsilon + total), total

    return _elementwise(
        "adagrad", AdaGradState, rule, constants, start={"sum_of_squares": initial}, options={"initial": initial}
    )


class FullMatrixAdaGradState(NamedTuple):
    """params; step; matrix: the sum of g g^T of all gradients so far, (P, P), rows in the order of the parameters'
    leaves.
    """

    params: Any
    step: Array
    matrix: Array


@register
def full_matrix_adagrad(learning_rate: Constant = 0.01, epsilon: Constant = 1e-8, budget: int = 2**26) -> Optimizer:
    """AdaGrad as Kordecki prints it: G = G + g g^T, w = w - eta (epsilon I + G)^(-1/2) g, g all P gradients as one.

    Duchi, Hazan and Singer 2011, Sec. 1.1; their Fig. 2 adds delta I outside the root. `adagrad` keeps the diagonal
    of G. An eigenvalue of G below P eps times the largest, eps the dtype's, is rounding, of either sign: it counts
    as that much, P being those that have had a gradient. A parameter whose gradient has always been 0 stays bitwise
    as it was; one whose gradient is 0 now may move with those that it was correlated with. Each update takes the
    eigenvalues of a (P, P) matrix: O(P^3).

    budget: bytes that G may take, 4 P^2 in float32. Raises ValueError for constants out of range, in `init` for more
    parameters than the budget has room for.
    """
    name = "full_matrix_adagrad"
    constants = {
        "learning_rate": one_for_all(non_negative, name, "learning_rate", learning_rate),
        "epsilon": one_for_all(positive, name, "epsilon", epsilon),
    }
    budget = checks.integer(name, "budget", budget, 1)

    def init(params):
        check_params(name, params)
        leaves = jax.tree.leaves(params)
        dtype = max((at_least_float32(x.dtype) for x in leaves), key=lambda dtype: dtype.itemsize)
        size = sum(x.size for x in leaves)
        needed = size**2 * dtype.itemsize
        if needed > budget:
            raise ValueError(
                f"{name}: the matrix of {size} parameters would take {needed} bytes, above the budget of {budget}, "
                f"which has room for {math.isqrt(budget // dtype.itemsize)}; use adagrad, which keeps the diagonal, or "
                f"allow it with budget={needed}"
            )
        return FullMatrixAdaGradState(params, jnp.zeros((), jnp.int32), jnp.zeros((size, size), dtype))

    def update(state, grads):
        _check_state(name, FullMatrixAdaGradState, state)
        check_gradients(state.params, grads)
        dtype = state.matrix.dtype
        rate, epsilon = (in_dtype(at_step(constant, state.step), dtype) for constant in constants.values())
        g = jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in jax.tree.leaves(grads)])
        G = state.matrix + g[:, None] * g[None, :]
        eigenvalues, V = linalg.eigh(G)
        # Below this an eigenvalue is rounding, and may be negative; what rounding makes of g in its direction is
        # divided by its root. Parameters that never had a gradient, such as those that fill a network up, add none.
        size = jnp.sum(jnp.diagonal(G) > 0).astype(dtype)
        least = size * float(jnp.finfo(dtype).eps) * eigenvalues[-1]
        with jax.default_matmul_precision("highest"):
            change = -rate * (V @ ((g @ V) / jnp.sqrt(epsilon + jnp.maximum(eigenvalues, least))))
        change = jnp.where(jnp.diagonal(G) > 0, change, 0)  # a row of zeros, but for rounding of the eigenvectors
        leaves, structure = jax.tree.flatten(state.params)
        ends = np.cumsum([x.size for x in leaves])[:-1]
        parts = jnp.split(change, ends)
        params = [moved(x, part.reshape(x.shape)) for x, part in zip(leaves, parts, strict=True)]
        return FullMatrixAdaGradState(structure.unflatten(params), state.step + 1, G)

    return Optimizer(name, init, update, constants | {"budget": budget})


class AdadeltaState(NamedTuple):
    """params; step; squares, changes: averages of g^2 and of Delta w^2, in the parameters' structure."""

    params: Any
    step: Array
    squares: Any
    changes: Any


@register
def adadelta(learning_rate: Constant = 1.0, decay: Constant = 0.9, epsilon: Constant = 1e-6) -> Optimizer:
    """Adadelta: Delta w = -RMS[Delta w]_(t-1) / RMS[g]_t g, where RMS[x] = sqrt(R[x^2] + epsilon). Zeiler 2012, Alg. 1.

    R[x^2]_t = gamma R[x^2]_(t-1) + (1 - gamma) x^2, gamma the `decay`. Kordecki's first form, eta / RMS[g], is
    RMSprop. The method has no rate of its own; `learning_rate` multiplies the change, as in optax and PyTorch (whose
    default decay is 0.9 too). Raises ValueError for constants out of range.
    """
    constants = {
        "learning_rate": non_negative("adadelta", "learning_rate", learning_rate),
        "decay": decay_rate("adadelta", "decay", decay),
        "epsilon": positive("adadelta", "epsilon", epsilon),
    }

    def rule(now, g, squares, changes):
        squares = now.decay * squares + (1 - now.decay) * g**2
        changes = now.decay * changes + (1 - now.decay) * (changes + now.epsilon) / (squares + now.epsilon) * g**2
        # RMS[Delta w]_(t-1) / RMS[g]_t told by the new average, the line above solved for the old one: the compiler
        # would copy an average that a second kernel reads before it is overwritten.
        denominator = now.decay * (squares + now.epsilon) + (1 - now.decay) * g**2
        ratio = (changes + now.decay * now.epsilon) / jnp.where(denominator > 0, denominator, 1)
        return -now.learning_rate * jnp.sqrt(ratio) * g, squares, changes

    return _elementwise("adadelta", AdadeltaState, rule, constants)


class RMSpropState(NamedTuple):
    """params; step; squares: average of g^2, in the parameters' structure."""

    params: Any
    step: Array
    squares: Any


class CenteredRMSpropState(NamedTuple):
    """params; step; squares, mean: averages of g^2 and of g, in the parameters' structure."""

    params: Any
    step: Array
    squares: Any
    mean: Any


@register
def rmsprop(
    learning_rate: Constant = 1e-3, decay: Constant = 0.9, epsilon: Constant = 1e-8, centered: bool = False
) -> Optimizer:
    """RMSprop: R = gamma R + (1 - gamma) g^2, w = w - eta g / sqrt(R + epsilon). Hinton, lecture 6; Kordecki.

    gamma is the `decay` (Kordecki prints gamma g^2). `centered` subtracts the square of the average gradient from R:
    an estimate of the gradient's variance (Graves 2013, Eq. 38-45). epsilon stands inside the root, as in the text
    and in optax; PyTorch has it outside. Raises ValueError for constants out of range.
    """
    constants = {
        "learning_rate": non_negative("rmsprop", "learning_rate", learning_rate),
        "decay": decay_rate("rmsprop", "decay", decay),
        "epsilon": positive("rmsprop", "epsilon", epsilon),
    }

    checks.boolean("rmsprop", "centered", centered)

    def plain(now, g, squares):
        squares = now.decay * squares + (1 - now.decay) * g**2
        return -now.learning_rate * g / jnp.sqrt(squares + now.epsilon), squares

    def about_the_mean(now, g, squares, mean):
        squares = now.decay * squares + (1 - now.decay) * g**2
        mean = now.decay * mean + (1 - now.decay) * g
        variance = jnp.maximum(squares - mean**2, 0)  # never negative but by rounding
        return -now.learning_rate * g / jnp.sqrt(variance + now.epsilon), squares, mean

    state, rule = (CenteredRMSpropState, about_the_mean) if centered else (RMSpropState, plain)
    return _elementwise("rmsprop", state, rule, constants, options={"centered": centered})


class AdamState(NamedTuple):
    """params; step; first_moment, second_moment: averages of g and g^2, in the parameters' structure."""

    params: Any
    step: Array
    first_moment: Any
    second_moment: Any


@register
def adam(
    learning_rate: Constant = 1e-3,
    b1: Constant = 0.9,
    b2: Constant = 0.999,
    epsilon: Constant = 1e-8,
    order: Literal["corrected", "efficient"] = "corrected",
) -> Optimizer:
    """Adam: Kingma and Ba 2015, Alg. 1; Hagan Eq. 3.29-3.35 (whose 3.33 and 3.35 print v_(i+1) for v_(k+1)).

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; then, at step k = 1, 2, ...,
    "corrected" (Eq. 3.31-3.33): x = x - alpha m^ / (sqrt(v^) + epsilon), m^ = m / (1 - b1^k), v^ = v / (1 - b2^k);
    "efficient" (Eq. 3.34-3.35): x = x - alpha_k m / (sqrt(v) + epsilon), alpha_k = alpha sqrt(1 - b2^k) / (1 - b1^k),
    which Hagan prints upside down. Here epsilon is added to sqrt(v) before its correction: the epsilon-hat of Kingma
    and Ba, section 2, which equals the other divided by sqrt(1 - b2^k). Where epsilon is negligible beside sqrt(v)
    the two orders agree. Raises ValueError for constants out of range.
    """
    constants = _moment_constants("adam", learning_rate, b1, b2, epsilon)
    checks.one_of("adam", "order", order, ("corrected", "efficient"))

    def efficient(now, g, m, v):
        m, v = _moments(now, g, m, v)
        rate = now.learning_rate * jnp.sqrt(_missing(now.b2, now.k)) / _missing(now.b1, now.k)  # Eq. 3.34, righted
        return -rate * m / (jnp.sqrt(v) + now.epsilon), m, v  # Eq. 3.35

    rule = _adam if order == "corrected" else efficient
    return _elementwise("adam", AdamState, rule, constants, options={"order": order})


def _adam(now, g, m, v):
    m, v = _moments(now, g, m, v)
    unbiased_m, unbiased_v = m / _missing(now.b1, now.k), v / _missing(now.b2, now.k)  # Eq. 3.31, 3.32
    return -now.learning_rate * unbiased_m / (jnp.sqrt(unbiased_v) + now.epsilon), m, v  # Eq. 3.33


def _moments(now, g, m, v):
    return now.b1 * m + (1 - now.b1) * g, now.b2 * v + (1 - now.b2) * g**2  # Eq. 3.29, 3.30


def _missing(decay, k: Array) -> Array:
    """1 - decay^k, what the weights of an average begun at zero lack of 1; without the cancellation of that form."""
    logarithm = (math.log(decay) if decay else -math.inf) if isinstance(decay, float) else jnp.log(decay)
    return -jnp.expm1(k * logarithm)


def _moment_constants(name: str, learning_rate, b1, b2, epsilon) -> dict:
    return {
        "learning_rate": non_negative(name, "learning_rate", learning_rate),
        "b1": decay_rate(name, "b1", b1),
        "b2": decay_rate(name, "b2", b2),
        "epsilon": positive(name, "epsilon", epsilon),
    }


class AdaMaxState(NamedTuple):
    """params; step; first_moment: average of g; largest: decaying maximum of |g|, in the parameters' structure."""

    params: Any
    step: Array
    first_moment: Any
    largest: Any


@register
def adamax(
    learning_rate: Constant = 2e-3, b1: Constant = 0.9, b2: Constant = 0.999, epsilon: Constant = 1e-8
) -> Optimizer:
    """AdaMax: m = b1 m + (1 - b1) g, u = max(b2 u, |g|), x = x - alpha / (1 - b1^k) m / u. Kingma and Ba 2015, 7.1.

    The paper has no epsilon and divides 0 by 0 while a gradient has always been zero; like optax and PyTorch, u is
    max(b2 u, |g| + epsilon). Raises ValueError for constants out of range.
    """

    def rule(now, g, m, u):
        m = now.b1 * m + (1 - now.b1) * g
        u = jnp.maximum(now.b2 * u, jnp.abs(g) + now.epsilon)
        return -now.learning_rate / _missing(now.b1, now.k) * m / u, m, u

    return _elementwise("adamax", AdaMaxState, rule, _moment_constants("adamax", learning_rate, b1, b2, epsilon))


class AMSGradState(NamedTuple):
    """params; step; first_moment, second_moment as in Adam; largest: the largest second moment so far."""

    params: Any
    step: Array
    first_moment: Any
    second_moment: Any
    largest: Any


@register
def amsgrad(
    learning_rate: Constant = 1e-3,
    b1: Constant = 0.9,
    b2: Constant = 0.999,
    epsilon: Constant = 1e-8,
    bias_correction: bool = True,
) -> Optimizer:
    """AMSGrad: Adam divided by the root of the largest v so far, so that no rate ever grows again. Reddi et al. 2018.

    The paper's Alg. 2 corrects no bias: `bias_correction=False`. With it, the default, the maximum is taken over
    corrected second moments, as in optax; PyTorch takes it over uncorrected ones and corrects the maximum.
    Raises ValueError for constants out of range.
    """

    checks.boolean("amsgrad", "bias_correction", bias_correction)

    def rule(now, g, m, v, largest):
        m, v = _moments(now, g, m, v)
        lacking_m, lacking_v = (_missing(now.b1, now.k), _missing(now.b2, now.k)) if bias_correction else (1, 1)
        largest = jnp.maximum(largest, v / lacking_v)
        return -now.learning_rate * (m / lacking_m) / (jnp.sqrt(largest) + now.epsilon), m, v, largest

    constants = _moment_constants("amsgrad", learning_rate, b1, b2, epsilon)
    return _elementwise("amsgrad", AMSGradState, rule, constants, options={"bias_correction": bias_correction})


@register
def nadam(
    learning_rate: Constant = 1e-3, b1: Constant = 0.9, b2: Constant = 0.999, epsilon: Constant = 1e-8
) -> Optimizer:
    """NAdam: Adam with Nesterov's look-ahead in its first moment. Dozat 2016, Alg. 8 with constant mu, as in optax.

    m^ = b1 m / (1 - b1^(k+1)) + (1 - b1) g / (1 - b1^k), the rest as in Adam. PyTorch lets mu grow to b1 from
    b1 (1 - 0.96^0.004 / 2) by Dozat's schedule. Raises ValueError for constants out of range.
    """

    def rule(now, g, m, v):
        m, v = _moments(now, g, m, v)
        ahead = now.b1 * m / _missing(now.b1, now.k + 1) + (1 - now.b1) * g / _missing(now.b1, now.k)
        return -now.learning_rate * ahead / (jnp.sqrt(v / _missing(now.b2, now.k)) + now.epsilon), m, v

    return _elementwise("nadam", AdamState, rule, _moment_constants("nadam", learning_rate, b1, b2, epsilon))


@register
def adamw(
    learning_rate: Constant = 1e-3,
    b1: Constant = 0.9,
    b2: Constant = 0.999,
    epsilon: Constant = 1e-8,
    weight_decay: Constant = 1e-2,
) -> Optimizer:
    """AdamW: Adam and, beside its averages, x = x - alpha lambda x. Loshchilov and Hutter 2019, Alg. 2.

    lambda, the `weight_decay`, is multiplied by the rate and acts on every parameter, biases too, as in optax and
    PyTorch (the paper scales it by the schedule alone); `wrappers.decoupled_weight_decay` spares biases.
    Raises ValueError for constants out of range.
    """
    constants = _moment_constants("adamw", learning_rate, b1, b2, epsilon)
    constants["weight_decay"] = non_negative("adamw", "weight_decay", weight_decay)

    def rule(now, g, m, v):
        change, m, v = _adam(now, g, m, v)
        return change - now.learning_rate * now.weight_decay * now.x, m, v

    return _elementwise("adamw", AdamState, rule, constants)


# What they have in common ---------------------------------------------------------------------------------------------


def _elementwise(
    name: str,
    state_type: type,
    rule: Callable[..., tuple],
    constants: dict[str, Constant],
    *,
    start: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Optimizer:
    """The optimizer whose `rule(now, g, *remembered) -> (change, *remembered)` serves each parameter array alone.

    now: k, x and every constant at this step, in the dtype of the arithmetic. What is remembered are the fields of
    `state_type` after params and step; they begin at `start`, 0 where not given. options: what else it was made with.
    """
    remembered, start = state_type._fields[2:], start or {}
    made_with = constants | (options or {})

    def init(params):
        check_params(name, params)
        for constant, value in made_with.items():
            if isinstance(value, FrozenMapping):
                _check_names(f"{name}: {constant}", value, params)
        leaves, structure = jax.tree.flatten(params)

        def filled(value):
            values = zip(leaves, of_each(value, params), strict=True)
            return structure.unflatten(jnp.full(x.shape, own, at_least_float32(x.dtype)) for x, own in values)

        return state_type(params, jnp.zeros((), jnp.int32), *(filled(start.get(slot, 0)) for slot in remembered))

    def update(state, grads):
        _check_state(name, state_type, state)
        check_gradients(state.params, grads)
        step = state.step + 1
        values = {each: of_each(at_step(value, state.step), state.params) for each, value in constants.items()}
        params, structure = jax.tree.flatten(state.params)
        columns = [structure.flatten_up_to(tree) for tree in (grads, *state[2:])]
        rows = []
        for number, (x, g, *own) in enumerate(zip(params, *columns, strict=True)):
            dtype = at_least_float32(x.dtype)
            now = SimpleNamespace(k=step.astype(dtype), x=x.astype(dtype))
            vars(now).update({constant: in_dtype(value[number], dtype) for constant, value in values.items()})
            change, *own = rule(now, g.astype(dtype), *own)
            rows.append((moved(x, change), *own))
        params, *after = (structure.unflatten(column) for column in zip(*rows, strict=True))
        return state_type(params, step, *after)

    return Optimizer(name, init, update, made_with)


def at_step(constant: Constant, step: Array) -> float | Array | FrozenMapping:
    """The constant at a step: schedules asked, each once, numbers as they are."""
    if isinstance(constant, FrozenMapping):
        return FrozenMapping({name: at_step(own, step) for name, own in constant.items()})
    return constant(step) if callable(constant) else constant


def of_each(constant: Any, params: Any) -> list:
    """The constant of each array, in the order of the parameters' leaves."""

    def of(path):
        value = constant
        for name in path:
            if isinstance(value, FrozenMapping):
                value = value[name if name in value else _OTHERS]
        return value

    return [of(path) for path in _paths(params)]


def _paths(params: Any) -> list[tuple[str, ...]]:
    """The names that lead to each array, such as ("layer1", "weights", "input")."""

    def said(key):
        return jax.tree_util.keystr((key,), simple=True)

    return [tuple(map(said, path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def in_dtype(value: float | Array, dtype) -> float | Array:
    """A constant ready for arithmetic in `dtype`, into which Python floats fall by themselves."""
    return value if isinstance(value, float) else jnp.asarray(value, dtype)


def moved(x: Array, change: Array) -> Array:
    """x + change in the dtype of x, which stays bitwise as it is where there is no change."""
    # x + 0 is not always x: it would turn -0.0 into 0.0. (Asking whether change == 0 instead would use it twice, and
    # the compiler would then store it.)
    after = (x.astype(change.dtype) + change).astype(x.dtype)
    return jnp.where(after == x, x, after)


def _check_state(optimizer: str, expected: type, state: Any) -> None:
    if not isinstance(state, expected):
        raise TypeError(f"{optimizer}: expected the {expected.__name__} that init gives, got {type(state).__name__}")


def check_params(optimizer: str, params: Any) -> None:
    """Raises ValueError for parameters without arrays, TypeError for what is no array of real numbers."""
    leaves = checks.by_path(params)
    if not leaves:
        raise ValueError(f"{optimizer}: params: expected at least one array")
    _check_real(f"{optimizer}: params", leaves)


def _check_real(label: str, leaves: dict) -> None:
    for path, leaf in leaves.items():
        if not hasattr(leaf, "dtype") or not jax.dtypes.issubdtype(leaf.dtype, np.floating):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(f"{label}: {path or 'the array'} expected an array of real numbers, got {kind}")


def check_gradients(params: Any, grads: Any) -> None:
    """Raises ValueError at the first path where gradients do not match the parameters, TypeError for integers."""
    if isinstance(grads, tuple | list) and not isinstance(params, tuple | list):
        raise ValueError(f"grads: expected the structure of the parameters, got a {type(grads).__name__}")
    _check_real("grads", checks.by_path(grads))
    checks.same_shapes("grads", checks.shapes(grads), checks.shapes(params), "the parameters'")
    if jax.tree.structure(grads) != jax.tree.structure(params):
        raise ValueError(f"grads: expected the structure {jax.tree.structure(params)}, got {jax.tree.structure(grads)}")


# Their constants ------------------------------------------------------------------------------------------------------

_OTHERS = "others"  # in a mapping: what it does not name


def _constant(optimizer: str, name: str, value, accepts, accepted: str):
    """A checked constant; a schedule, or the name of one, stands for itself and checks its own values."""
    if isinstance(value, Mapping):
        return _by_names(_constant, optimizer, name, value, accepts, accepted)
    if isinstance(value, str) and not value.strip().replace(".", "", 1).isdigit():  # not a number in quotes
        value = schedules.get(value)
    if isinstance(value, schedules.Schedule):
        first = value(0)
        if checks.is_concrete(first) and not accepts(np.asarray(first)):
            raise ValueError(f"{optimizer}: {name} must be {accepted}, got {value}, which begins with {float(first):g}")
    if callable(value):
        return value
    return checks.constant(optimizer, name, value, accepts, accepted)


def _begins(optimizer: str, name: str, value, accepts, accepted: str):
    """A checked constant of where a state begins, which is no schedule."""
    if isinstance(value, Mapping):
        return _by_names(_begins, optimizer, name, value, accepts, accepted)
    return checks.constant(optimizer, name, value, accepts, accepted)


def _by_names(check: Callable, optimizer: str, name: str, values: Mapping, *accepted) -> FrozenMapping:
    """Constants by names of layers and parameters, each checked under the name that says whose it is."""
    if not values or not all(isinstance(own, str) for own in values):
        raise ValueError(
            f'{optimizer}: {name} must be one value, or values by name such as {{"layer1": ..., "others": ...}}, got '
            f"{dict(values)}"
        )
    below = f"{name}/" if " of " in name else f"{name} of "
    return FrozenMapping({own: check(optimizer, below + own, value, *accepted) for own, value in values.items()})


def one_for_all(check: Callable, owner: str, name: str, value):
    """The constant as `check` gives it. Raises ValueError for a mapping: it is one for all parameters."""
    if isinstance(value, Mapping):
        raise ValueError(f"{owner}: {name} must be one value for all parameters, got {dict(value)}")
    return check(owner, name, value)


def _check_names(label: str, values: FrozenMapping, params: Any) -> None:
    """Raises ValueError for a name that leads to no parameters, and for parameters that no name leads to."""
    known: dict[tuple, set] = {}  # where in the mapping -> the names that parameters have there
    wrong = []
    paths = _paths(params)
    for path in paths:
        own, place = values, ()
        for depth, name in enumerate(path, 1):
            if not isinstance(own, FrozenMapping):
                break
            known.setdefault(place, set()).add(name)
            taken = name if name in own else _OTHERS
            if taken not in own:
                wrong.append(f'{label}: {"/".join(path[:depth])} has no value; name it, or give "others" one')
                break
            own, place = own[taken], (*place, taken)
        else:
            if isinstance(own, FrozenMapping):
                wrong.append(
                    f"{label}: {'/'.join(path) or 'the parameter'} is one array, expected one value, got {own}"
                )
    _check_known(label, values, (), known, paths)
    if wrong:
        raise ValueError(wrong[0])


def _check_known(label: str, values: FrozenMapping, place: tuple, known: dict[tuple, set], paths: list) -> None:
    for name, own in values.items():
        here = known.get(place, set())
        if _OTHERS in place and not here:  # there are none, which might have what any parameters have there
            here = {path[len(place)] for path in paths if len(path) > len(place)}
        if name not in here and name != _OTHERS and here:
            kind = f"parameter of {'/'.join(place)}" if place else "layer"
            raise ValueError(f"{label}: {registry.unknown(kind, name, {*here, _OTHERS})}")
        if isinstance(own, FrozenMapping):
            _check_known(label, own, (*place, name), known, paths)


def non_negative(optimizer: str, name: str, value):
    """Checks a finite number >= 0."""
    return _constant(optimizer, name, value, *checks.NON_NEGATIVE)


def positive(optimizer: str, name: str, value):
    """Checks a finite number > 0."""
    # 0 / 0 where a gradient has always been zero
    return _constant(optimizer, name, value, *checks.POSITIVE)


def decay_rate(optimizer: str, name: str, value):
    """Checks a decay rate, in [0, 1)."""
    return _constant(optimizer, name, value, lambda v: (v >= 0) & (v < 1), "in [0, 1)")
