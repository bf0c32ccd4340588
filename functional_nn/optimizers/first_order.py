r"""First-order methods as pairs of pure functions: `init(params) -> state` and `update(state, grads) -> state`.

The state carries the parameters and the step. A constant is a number, a traced array, a schedule of the step such as
`adam(schedules.cosine(1e-2, steps=1000))`, or a mapping by the names of layers (see `optimizers.constants`). Parameters
keep their dtype; averages of gradients are kept, and steps computed, in at least float32. A gradient of zero leaves a
parameter bitwise as it was.

Letters, in every rule: g the gradient, k = 1, 2, ... the number of the update, x the parameter,
:math:`\eta` or :math:`\alpha` the learning rate. Every method but `full_matrix_adagrad` is elementwise: its rule says
how one element changes and what is remembered.

Bias correction: an average that is initialized at 0 is a weighted sum of the gradients so far, whose weights sum to
:math:`1 - b^k`:

.. math:: m_k = b\, m_{k-1} + (1 - b)\, g_k = (1 - b) \sum_{i=1}^{k} b^{k-i} g_i

Divided by that sum it is a weighted mean of the gradients, with their expectation where that does not change (Kingma
and Ba 2015, Sec. 3).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, linalg
from functional_nn.optimizers.constants import (
    Constant,
    at_step,
    checked,
    decay_rate,
    in_dtype,
    initial_value,
    non_negative,
    of_each_array,
    one_for_all,
    positive,
)
from functional_nn.optimizers.optimizer import (
    Optimizer,
    check_gradients,
    check_params,
    check_state,
    elementwise,
    moved,
)
from functional_nn.precision import at_least_float32
from functional_nn.registry import Registry
from functional_nn.rows import Constants

__all__ = [
    "Optimizer",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "amsgrad",
    "factory",
    "full_matrix_adagrad",
    "gd",
    "get",
    "knows",
    "momentum",
    "nadam",
    "names",
    "nesterov",
    "register",
    "rmsprop",
    "rprop",
]

_registry: Registry[Optimizer] = Registry("optimizer", Optimizer)


def register(factory: Callable[Constants, Optimizer]) -> Callable[Constants, Optimizer]:
    """Gives a function that returns a first-order optimizer its name. A decorator.

    Afterwards the name may be used wherever a first-order optimizer is expected. Equal constants
    return the same object, so that compiled programs are used again.

    Args:
        factory: The function; its name is the name of the first-order optimizer, and its arguments are the constants.

    Returns:
        The same function, its results cached.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> from functional_nn import optimizers
        >>> @optimizers.register
        ... def doubled(learning_rate: float = 0.1):
        ...     return optimizers.gd(2 * learning_rate)
        >>> optimizers.get("doubled(0.5)")
        <optimizer gd(learning_rate=1.0)>
    """
    return _registry.register(factory)


def names() -> tuple[str, ...]:
    """Returns the names of the registered first-order optimizers.

    Example:
        >>> from functional_nn import optimizers
        >>> "adam" in optimizers.names()
        True
    """
    return _registry.names()


def knows(optimizer: Any) -> TypeGuard[str | Optimizer]:
    """Returns whether this is a first-order optimizer, or text that begins with the name of one.

    Args:
        optimizer: Any object.

    Returns:
        A bool.

    Example:
        >>> from functional_nn.optimizers import first_order
        >>> first_order.knows("gd(0.1)"), first_order.knows("unknown(1)")
        (True, False)
    """
    return _registry.knows(optimizer)


def factory(name: str) -> Callable[..., Optimizer]:
    """Returns the function with this bare name.

    Args:
        name: A name without arguments.

    Returns:
        The function that returns the first-order optimizer for its constants.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> from functional_nn.optimizers import first_order
        >>> first_order.factory("gd") is first_order.gd
        True
    """
    return _registry.factory(name)


def get(optimizer: str | Optimizer) -> Optimizer:
    """Returns the first-order optimizer with a name such as "adam(0.01)"; an `Optimizer` is returned as it is.

    Raises ValueError for an unknown name, TypeError for anything but a name or an `Optimizer`.
    """
    if not isinstance(optimizer, Optimizer) and all(callable(getattr(optimizer, f, None)) for f in ("init", "update")):
        raise TypeError(
            f"optimizer: expected a name or an Optimizer, got {type(optimizer).__name__}; optimizers.from_optax(...) "
            "turns an optax transformation into one"
        )
    return _registry.get(optimizer)


# Gradient descent, with momentum --------------------------------------------------------------------------------------


class GDState(NamedTuple):
    """params; step: updates made so far, an int32 scalar."""

    params: Any
    step: Array


@register
def gd(learning_rate: Constant = 0.1) -> Optimizer:
    r"""Gradient descent: each step goes against the gradient.

    .. math:: x_{k+1} = x_k - \alpha g_k

    Args:
        learning_rate: :math:`\alpha`, >= 0.

    Returns:
        The optimizer.

    Raises:
        ValueError: The learning rate is out of range.

    References:
        Hagan et al., Eq. 3.14.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.gd(0.5)
        >>> optimizer.update(optimizer.init(jnp.ones(2)), jnp.array([1.0, -1.0])).params.tolist()
        [0.5, 1.5]
    """

    def rule(now, g):
        return (-now.learning_rate * g,)

    return elementwise("gd", GDState, rule, {"learning_rate": non_negative("gd", "learning_rate", learning_rate)})


class MomentumState(NamedTuple):
    """params; step; change: the change by the last step, in the parameters' structure."""

    params: Any
    step: Array
    change: Any


@register
def momentum(learning_rate: Constant = 0.1, decay: Constant = 0.9) -> Optimizer:
    r"""Gradient descent with momentum: each step keeps a share of the last one.

    .. math::
        \begin{aligned}
        \Delta w_t &= \alpha \, \Delta w_{t-1} - \eta \, g_t \\
        w_{t+1} &= w_t + \Delta w_t
        \end{aligned}

    Warning:
        Where the rate changes from step to step, :math:`\Delta w` keeps the rates it was made with. optax and PyTorch
        multiply the whole average by the latest rate instead.

    Args:
        learning_rate: :math:`\eta`, >= 0.
        decay: :math:`\alpha`, in [0, 1); at 0 this is gradient descent.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Blog 001, Eq. 3; Kordecki.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.momentum(0.5, decay=0.5)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     state = optimizer.update(state, jnp.ones(1))
        >>> state.params.tolist(), state.change.tolist()
        ([-1.25], [-0.75])
    """
    return elementwise("momentum", MomentumState, _momentum, _momentum_constants("momentum", learning_rate, decay))


def _momentum(now: SimpleNamespace, g: Array, change: Array) -> tuple[Array, Array]:
    change = now.decay * change - now.learning_rate * g
    return change, change


def _momentum_constants(name: str, learning_rate: Constant, decay: Constant) -> dict[str, Any]:
    return {
        "learning_rate": non_negative(name, "learning_rate", learning_rate),
        "decay": decay_rate(name, "decay", decay),
    }


@register
def nesterov(
    learning_rate: Constant = 0.1, decay: Constant = 0.9, form: Literal["gradient", "look_ahead"] = "gradient"
) -> Optimizer:
    r"""Nesterov's accelerated gradient: momentum whose gradient is taken at a point further ahead.

    In the form "look_ahead" (Sutskever et al. 2013, Eq. 3-4) `state.params` is w, and the gradient belongs at
    `optimizer.point(state)`, :math:`w + \alpha v`, where `fit` takes it:

    .. math::
        \begin{aligned}
        v_t &= \alpha \, v_{t-1} - \eta \, g(w_{t-1} + \alpha \, v_{t-1}) \\
        w_t &= w_{t-1} + v_t
        \end{aligned}

    The form "gradient" is the same recursion written in the point ahead, :math:`y = w + \alpha v`, so that gradients
    are taken at `state.params` as for every other method:

    .. math::
        \begin{aligned}
        v_t &= \alpha \, v_{t-1} - \eta \, g(y_{t-1}) \\
        y_t &= y_{t-1} + \alpha \, v_t - \eta \, g(y_{t-1})
        \end{aligned}

    Warning:
        optax and PyTorch use the form "gradient". With constant :math:`\alpha` both forms are one trajectory,
        :math:`y_t = w_t + \alpha v_t`; where :math:`\alpha` changes, only "look_ahead" is Nesterov's.

    Args:
        learning_rate: :math:`\eta`, >= 0.
        decay: :math:`\alpha`, in [0, 1).
        form: "gradient" or "look_ahead".

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range, or the form is unknown.

    References:
        Nesterov 1983; Sutskever, Martens, Dahl and Hinton 2013.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.nesterov(0.5, decay=0.5, form="look_ahead")
        >>> state = optimizer.update(optimizer.init(jnp.zeros(1)), jnp.ones(1))
        >>> state.params.tolist(), optimizer.point(state).tolist()
        ([-0.5], [-0.75])
    """
    constants = _momentum_constants("nesterov", learning_rate, decay)
    checks.one_of("nesterov", "form", form, ("gradient", "look_ahead"))

    def in_points_ahead(now, g, change):
        change, _ = _momentum(now, g, change)
        return now.decay * change - now.learning_rate * g, change

    def point_ahead(state):
        decays = of_each_array(at_step(constants["decay"], state.step), state.params)
        decays = jax.tree.structure(state.params).unflatten(decays)

        def ahead(w, v, decay):
            return moved(w, in_dtype(decay, v.dtype) * v)

        return jax.tree.map(ahead, state.params, state.change, decays)

    if form == "gradient":
        return elementwise("nesterov", MomentumState, in_points_ahead, constants, options={"form": form})
    optimizer = elementwise("nesterov", MomentumState, _momentum, constants, options={"form": form})
    return dataclasses.replace(optimizer, point=point_ahead)


# Signs of gradients ---------------------------------------------------------------------------------------------------


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
    r"""Resilient propagation: a step size for each weight, from the signs of its last two gradients alone.

    Where the sign of the gradient stayed, the step size grows; where it changed, the step size shrinks and the next
    gradient is not compared:

    .. math::
        \begin{aligned}
        \Delta_k &= \begin{cases}
        \min(\eta^+ \Delta_{k-1}, \Delta_{\max}) & g_k g_{k-1} > 0 \\
        \max(\eta^- \Delta_{k-1}, \Delta_{\min}) & g_k g_{k-1} < 0 \\
        \Delta_{k-1} & g_k g_{k-1} = 0
        \end{cases} \\
        x_{k+1} &= x_k - \mathrm{sign}(g_k) \, \Delta_k
        \end{aligned}

    On a change of sign, the last move is taken back with `backtracking` (Riedmiller and Braun 1993); without it the
    weight does not move (iRprop-, Igel and Huesken 2000).

    Warning:
        PyTorch and optax use the form without backtracking; optax 0.2 applies each move one update late.

        `fit` refuses mini-batches, for which signs mean nothing: a weight with gradient 0.1 in nine batches and -0.9 in
        the tenth would move far in nine steps instead of staying (Kordecki). `minibatches=True` allows them anyway.

    Args:
        initial_step: :math:`\Delta_0`, between `smallest` and `largest`.
        decrease: :math:`\eta^-`, in (0, 1).
        increase: :math:`\eta^+`, > 1.
        smallest: :math:`\Delta_{\min}`, >= 0.
        largest: :math:`\Delta_{\max}`, > 0.
        backtracking: Whether a change of sign takes the last move back.
        minibatches: Whether `fit` may train with mini-batches.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Riedmiller and Braun 1993; Igel and Huesken 2000; Kordecki.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.rprop(initial_step=0.5, increase=2.0)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     state = optimizer.update(state, jnp.array([0.01]))
        >>> state.params.tolist(), state.step_size.tolist()
        ([-1.5], [1.0])
    """
    checks.boolean("rprop", "backtracking", backtracking)
    checks.boolean("rprop", "minibatches", minibatches)
    constants = {
        "decrease": checked("rprop", "decrease", decrease, lambda v: (v > 0) & (v < 1), "in (0, 1)"),
        "increase": checked("rprop", "increase", increase, lambda v: (v > 1) & np.isfinite(v), "a finite number > 1"),
        "smallest": non_negative("rprop", "smallest", smallest),
        "largest": positive("rprop", "largest", largest),
    }
    initial_step = initial_value("rprop", "initial_step", initial_step, *checks.POSITIVE)
    bounds = (constants["smallest"], initial_step, constants["largest"])
    _check_order(*bounds)

    def resized(now, g, last, size):
        # The sign of the new step size says that the gradient changed its sign, so that only one kernel reads what is
        # remembered: the compiler copies what a second one reads before it is overwritten.
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
    optimizer = elementwise(
        "rprop",
        state,
        rule,
        constants,
        start={"step_size": initial_step},
        options={"initial_step": initial_step, "backtracking": backtracking, "minibatches": minibatches},
    )

    def init(params):
        state = optimizer.init(params)
        for values in zip(*(of_each_array(bound, params) for bound in bounds), strict=True):
            _check_order(*values)
        return state

    return dataclasses.replace(optimizer, init=init, full_batch=not minibatches)


def _check_order(smallest: Any, initial_step: Any, largest: Any) -> None:
    plain = all(isinstance(value, float) for value in (smallest, initial_step, largest))
    if plain and not smallest <= initial_step <= largest:
        raise ValueError(
            f"rprop: initial_step must be between smallest = {smallest} and largest = {largest}, got {initial_step}"
        )


# Sums of squares ------------------------------------------------------------------------------------------------------


class AdaGradState(NamedTuple):
    """params; step; sum_of_squares: of all gradients so far, in the parameters' structure."""

    params: Any
    step: Array
    sum_of_squares: Any


@register
def adagrad(
    learning_rate: Constant = 0.01, epsilon: Constant = 1e-10, initial: float | Array | Mapping[str, Any] = 0.0
) -> Optimizer:
    r"""AdaGrad, diagonal form: each rate is divided by the root of the sum of squared gradients so far.

    .. math::
        \begin{aligned}
        G_k &= G_{k-1} + g_k^2 \\
        w_{k+1} &= w_k - \frac{\eta}{\sqrt{\epsilon + G_k}} \, g_k
        \end{aligned}

    Warning:
        optax has epsilon 1e-7 and starts G at 0.1; PyTorch adds epsilon outside the root. Kordecki writes G as the sum
        of outer products and calls it diagonal; this is its diagonal, and the full matrix is `full_matrix_adagrad`.

    Args:
        learning_rate: :math:`\eta`, >= 0.
        epsilon: > 0.
        initial: :math:`G_0`, >= 0.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Duchi, Hazan and Singer 2011; Kordecki.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.adagrad(0.1)
        >>> state = optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([3.0, -0.3]))
        >>> [round(float(x), 4) for x in state.params]
        [-0.1, 0.1]
    """
    constants = {
        "learning_rate": non_negative("adagrad", "learning_rate", learning_rate),
        "epsilon": positive("adagrad", "epsilon", epsilon),
    }
    initial = initial_value("adagrad", "initial", initial, *checks.NON_NEGATIVE)

    def rule(now, g, total):
        total = total + g**2
        return -now.learning_rate * g / jnp.sqrt(now.epsilon + total), total

    return elementwise(
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
    r"""AdaGrad with the full matrix, as Kordecki prints it; g holds all P gradients as one vector.

    .. math::
        \begin{aligned}
        G_k &= G_{k-1} + g_k g_k^T \\
        w_{k+1} &= w_k - \eta \, (\epsilon I + G_k)^{-1/2} g_k
        \end{aligned}

    A parameter whose gradient has always been 0 stays bitwise as it was; one whose gradient is 0 now may move with the
    parameters that it was correlated with. Each update takes the eigenvalues of a (P, P) matrix: O(P^3).

    Warning:
        An eigenvalue of G below P eps times the largest, eps the dtype's, is rounding of either sign. It counts as that
        much, where P is the number of parameters that have had a gradient. Fig. 2 of Duchi, Hazan and Singer adds
        :math:`\delta I` outside the root. `adagrad` keeps only the diagonal of G.

    Args:
        learning_rate: :math:`\eta`, >= 0, one for all parameters.
        epsilon: > 0, one for all parameters.
        budget: The bytes that G may take; it takes 4 P^2 in float32.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range, or (in `init`) there are more parameters than the budget has room for.

    References:
        Duchi, Hazan and Singer 2011, Sec. 1.1; Kordecki.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.full_matrix_adagrad(0.1)
        >>> state = optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([3.0, 4.0]))
        >>> [round(float(x), 4) for x in state.params]  # along the gradient, 0.1 long
        [-0.06, -0.08]
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
        check_state(name, FullMatrixAdaGradState, state)
        check_gradients(state.params, grads)
        dtype = state.matrix.dtype
        rate, epsilon = (in_dtype(at_step(constant, state.step), dtype) for constant in constants.values())
        g = jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in jax.tree.leaves(grads)])
        G = state.matrix + g[:, None] * g[None, :]
        eigenvalues, V = linalg.eigh(G)
        # Below this an eigenvalue is rounding, and may be negative; the rounding of g along its eigenvector is divided
        # by its root. Parameters that never had a gradient, such as the padding of a network, add none.
        size = jnp.sum(jnp.diagonal(G) > 0).astype(dtype)
        least = size * float(jnp.finfo(dtype).eps) * eigenvalues[-1]
        with jax.default_matmul_precision("highest"):
            change = -rate * (V @ ((g @ V) / jnp.sqrt(epsilon + jnp.maximum(eigenvalues, least))))
        change = jnp.where(jnp.diagonal(G) > 0, change, 0)  # a row of zeros, but for rounding of the eigenvectors
        leaves, structure = jax.tree.flatten(state.params)
        ends = np.cumsum([x.size for x in leaves])[:-1]
        changes = jnp.split(change, ends)
        params = [moved(x, change.reshape(x.shape)) for x, change in zip(leaves, changes, strict=True)]
        return FullMatrixAdaGradState(structure.unflatten(params), state.step + 1, G)

    return Optimizer(name, init, update, constants | {"budget": budget})


# Averages of squares --------------------------------------------------------------------------------------------------


class AdadeltaState(NamedTuple):
    """params; step; squares, changes: averages of g^2 and of the squared changes, in the parameters' structure."""

    params: Any
    step: Array
    squares: Any
    changes: Any


@register
def adadelta(learning_rate: Constant = 1.0, decay: Constant = 0.9, epsilon: Constant = 1e-6) -> Optimizer:
    r"""Adadelta: each change is scaled by the ratio of two running root mean squares, that of changes and of gradients.

    .. math::
        \begin{aligned}
        \Delta w_t &= - \frac{\mathrm{RMS}[\Delta w]_{t-1}}{\mathrm{RMS}[g]_t} \, g_t \\
        \mathrm{RMS}[x]_t &= \sqrt{R[x^2]_t + \epsilon} \\
        R[x^2]_t &= \gamma R[x^2]_{t-1} + (1 - \gamma) \, x_t^2
        \end{aligned}

    Warning:
        The method itself has no learning rate; `learning_rate` multiplies the change, as in optax and PyTorch (whose
        default decay is 0.9, too). Kordecki's first form, :math:`\eta / \mathrm{RMS}[g]`, is RMSprop.

    Args:
        learning_rate: A factor of the change, >= 0.
        decay: :math:`\gamma`, in [0, 1).
        epsilon: > 0.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Zeiler 2012, Alg. 1; Kordecki.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.adadelta()
        >>> state = optimizer.update(optimizer.init(jnp.zeros(1)), jnp.ones(1))
        >>> round(float(state.params[0]), 5)
        -0.00316
    """
    constants = {
        "learning_rate": non_negative("adadelta", "learning_rate", learning_rate),
        "decay": decay_rate("adadelta", "decay", decay),
        "epsilon": positive("adadelta", "epsilon", epsilon),
    }

    def rule(now, g, squares, changes):
        squares = now.decay * squares + (1 - now.decay) * g**2
        changes = now.decay * changes + (1 - now.decay) * (changes + now.epsilon) / (squares + now.epsilon) * g**2
        # RMS[Delta w]_(t-1) / RMS[g]_t in terms of the new average, by solving the line above for the old one: the
        # compiler would copy an average that a second kernel reads before it is overwritten.
        denominator = now.decay * (squares + now.epsilon) + (1 - now.decay) * g**2
        ratio = (changes + now.decay * now.epsilon) / jnp.where(denominator > 0, denominator, 1)
        return -now.learning_rate * jnp.sqrt(ratio) * g, squares, changes

    return elementwise("adadelta", AdadeltaState, rule, constants)


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
    r"""RMSprop: the gradient is divided by the root of a running average of its squares.

    .. math::
        \begin{aligned}
        R_k &= \gamma R_{k-1} + (1 - \gamma) \, g_k^2 \\
        w_{k+1} &= w_k - \frac{\eta}{\sqrt{R_k + \epsilon}} \, g_k
        \end{aligned}

    With `centered`, the square of the average gradient is subtracted from R, which makes it an estimate of the
    gradient's variance (Graves 2013, Eq. 38-45).

    Warning:
        Epsilon is inside the root, as in Kordecki and optax; PyTorch has it outside. Kordecki prints
        :math:`\gamma g^2` for :math:`(1 - \gamma) g^2`.

    Args:
        learning_rate: :math:`\eta`, >= 0.
        decay: :math:`\gamma`, in [0, 1).
        epsilon: > 0.
        centered: Whether to divide by the standard deviation.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Hinton, lecture 6; Kordecki; Graves 2013.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.rmsprop(0.1, decay=0.75)
        >>> state = optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([3.0, -0.3]))
        >>> [round(float(x), 4) for x in state.params]
        [-0.2, 0.2]
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
        variance = jnp.maximum(squares - mean**2, 0)  # negative by rounding only
        return -now.learning_rate * g / jnp.sqrt(variance + now.epsilon), squares, mean

    state, rule = (CenteredRMSpropState, about_the_mean) if centered else (RMSpropState, plain)
    return elementwise("rmsprop", state, rule, constants, options={"centered": centered})


# Two moments ----------------------------------------------------------------------------------------------------------


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
    r"""Adam: a running average of gradients, divided by the root of one of their squares.

    .. math::
        \begin{aligned}
        m_k &= \beta_1 m_{k-1} + (1 - \beta_1) \, g_k \\
        v_k &= \beta_2 v_{k-1} + (1 - \beta_2) \, g_k^2
        \end{aligned}

    The order "corrected" (Hagan Eq. 3.31-3.33) corrects both averages for their start at 0:

    .. math::
        x_{k+1} = x_k - \alpha \frac{\hat m_k}{\sqrt{\hat v_k} + \epsilon}, \quad
        \hat m_k = \frac{m_k}{1 - \beta_1^k}, \quad \hat v_k = \frac{v_k}{1 - \beta_2^k}

    The order "efficient" (Eq. 3.34-3.35) corrects the rate instead:

    .. math::
        x_{k+1} = x_k - \alpha_k \frac{m_k}{\sqrt{v_k} + \epsilon}, \quad
        \alpha_k = \alpha \frac{\sqrt{1 - \beta_2^k}}{1 - \beta_1^k}

    Warning:
        In the order "efficient" epsilon is added to :math:`\sqrt{v}` before its correction. It is the
        :math:`\hat \epsilon` of Kingma and Ba, Sec. 2, which equals the other epsilon divided by
        :math:`\sqrt{1 - \beta_2^k}`. Where epsilon is negligible compared to :math:`\sqrt{v}` both orders agree. Hagan
        prints :math:`\alpha_k` upside down, and :math:`v_{i+1}` for :math:`v_{k+1}` in Eq. 3.33 and 3.35.

    Args:
        learning_rate: :math:`\alpha`, >= 0.
        b1: :math:`\beta_1`, in [0, 1).
        b2: :math:`\beta_2`, in [0, 1).
        epsilon: > 0.
        order: "corrected" or "efficient".

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range, or the order is unknown.

    References:
        Kingma and Ba 2015, Alg. 1; Hagan Eq. 3.29-3.35.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.adam(0.1)
        >>> state = optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([3.0, -0.3]))
        >>> [round(float(x), 4) for x in state.params]  # the first step is the rate in each weight
        [-0.1, 0.1]
    """
    constants = _moment_constants("adam", learning_rate, b1, b2, epsilon)
    checks.one_of("adam", "order", order, ("corrected", "efficient"))

    def efficient(now, g, m, v):
        m, v = _moments(now, g, m, v)
        root = jnp.sqrt(_total_weight(now.b2, now.k))
        rate = now.learning_rate * root / _total_weight(now.b1, now.k)  # Eq. 3.34, corrected
        return -rate * m / (jnp.sqrt(v) + now.epsilon), m, v  # Eq. 3.35

    rule = _adam if order == "corrected" else efficient
    return elementwise("adam", AdamState, rule, constants, options={"order": order})


def _adam(now: SimpleNamespace, g: Array, m: Array, v: Array) -> tuple[Array, Array, Array]:
    m, v = _moments(now, g, m, v)
    unbiased_m, unbiased_v = m / _total_weight(now.b1, now.k), v / _total_weight(now.b2, now.k)  # Eq. 3.31, 3.32
    return -now.learning_rate * unbiased_m / (jnp.sqrt(unbiased_v) + now.epsilon), m, v  # Eq. 3.33


def _moments(now: SimpleNamespace, g: Array, m: Array, v: Array) -> tuple[Array, Array]:
    return now.b1 * m + (1 - now.b1) * g, now.b2 * v + (1 - now.b2) * g**2  # Eq. 3.29, 3.30


def _total_weight(decay: float | Array, k: Array) -> Array:
    """Returns 1 - decay^k, the sum of the weights of an average that began at 0, computed without cancellation."""
    logarithm = (math.log(decay) if decay else -math.inf) if isinstance(decay, float) else jnp.log(decay)
    return -jnp.expm1(k * logarithm)


def _moment_constants(
    name: str, learning_rate: Constant, b1: Constant, b2: Constant, epsilon: Constant
) -> dict[str, Any]:
    return {
        "learning_rate": non_negative(name, "learning_rate", learning_rate),
        "b1": decay_rate(name, "b1", b1),
        "b2": decay_rate(name, "b2", b2),
        "epsilon": positive(name, "epsilon", epsilon),
    }


class AdaMaxState(NamedTuple):
    """params; step; first_moment: average of g; largest: decaying maximum of `|g|`, in the parameters' structure."""

    params: Any
    step: Array
    first_moment: Any
    largest: Any


@register
def adamax(
    learning_rate: Constant = 2e-3, b1: Constant = 0.9, b2: Constant = 0.999, epsilon: Constant = 1e-8
) -> Optimizer:
    r"""AdaMax: Adam with a decaying maximum of gradients in place of the root of their average square.

    .. math::
        \begin{aligned}
        m_k &= \beta_1 m_{k-1} + (1 - \beta_1) \, g_k \\
        u_k &= \max(\beta_2 u_{k-1}, \lvert g_k \rvert + \epsilon) \\
        x_{k+1} &= x_k - \frac{\alpha}{1 - \beta_1^k} \, \frac{m_k}{u_k}
        \end{aligned}

    Warning:
        The paper has no epsilon, and divides 0 by 0 while a gradient has always been zero. optax and PyTorch add it as
        here.

    Args:
        learning_rate: :math:`\alpha`, >= 0.
        b1: :math:`\beta_1`, in [0, 1).
        b2: :math:`\beta_2`, in [0, 1).
        epsilon: > 0.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Kingma and Ba 2015, Sec. 7.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.adamax(0.1)
        >>> state = optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([3.0, -0.3]))
        >>> [round(float(x), 4) for x in state.params]
        [-0.1, 0.1]
    """

    def rule(now, g, m, u):
        m = now.b1 * m + (1 - now.b1) * g
        u = jnp.maximum(now.b2 * u, jnp.abs(g) + now.epsilon)
        return -now.learning_rate / _total_weight(now.b1, now.k) * m / u, m, u

    return elementwise("adamax", AdaMaxState, rule, _moment_constants("adamax", learning_rate, b1, b2, epsilon))


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
    r"""AMSGrad: Adam divided by the root of the largest second moment so far, so that no rate grows again.

    With m and v as in `adam`:

    .. math::
        \begin{aligned}
        \hat v_k &= \max\left(\hat v_{k-1}, \frac{v_k}{1 - \beta_2^k}\right) \\
        x_{k+1} &= x_k - \frac{\alpha}{1 - \beta_1^k} \, \frac{m_k}{\sqrt{\hat v_k} + \epsilon}
        \end{aligned}

    Warning:
        The paper's Alg. 2 corrects no bias: `bias_correction=False`. With correction, the maximum is taken over
        corrected second moments, as in optax; PyTorch takes it over uncorrected ones and corrects the maximum.

    Args:
        learning_rate: :math:`\alpha`, >= 0.
        b1: :math:`\beta_1`, in [0, 1).
        b2: :math:`\beta_2`, in [0, 1).
        epsilon: > 0.
        bias_correction: Whether both moments are corrected for their start at 0.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Reddi, Kale and Kumar 2018.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.amsgrad(0.1)
        >>> state = optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([3.0, -0.3]))
        >>> [round(float(x), 4) for x in state.params]
        [-0.1, 0.1]
    """

    checks.boolean("amsgrad", "bias_correction", bias_correction)

    def rule(now, g, m, v, largest):
        m, v = _moments(now, g, m, v)
        weight_m, weight_v = (_total_weight(now.b1, now.k), _total_weight(now.b2, now.k)) if bias_correction else (1, 1)
        largest = jnp.maximum(largest, v / weight_v)
        return -now.learning_rate * (m / weight_m) / (jnp.sqrt(largest) + now.epsilon), m, v, largest

    constants = _moment_constants("amsgrad", learning_rate, b1, b2, epsilon)
    return elementwise("amsgrad", AMSGradState, rule, constants, options={"bias_correction": bias_correction})


@register
def nadam(
    learning_rate: Constant = 1e-3, b1: Constant = 0.9, b2: Constant = 0.999, epsilon: Constant = 1e-8
) -> Optimizer:
    r"""NAdam: Adam with Nesterov's look-ahead in its first moment.

    With m and v as in `adam`:

    .. math::
        \begin{aligned}
        \hat m_k &= \frac{\beta_1 m_k}{1 - \beta_1^{k+1}} + \frac{(1 - \beta_1) \, g_k}{1 - \beta_1^k} \\
        x_{k+1} &= x_k - \alpha \frac{\hat m_k}{\sqrt{v_k / (1 - \beta_2^k)} + \epsilon}
        \end{aligned}

    Warning:
        Dozat's :math:`\mu` is constant here, :math:`\beta_1`, as in optax. PyTorch lets it grow to :math:`\beta_1` from
        :math:`\beta_1 (1 - 0.96^{0.004} / 2)` by Dozat's schedule.

    Args:
        learning_rate: :math:`\alpha`, >= 0.
        b1: :math:`\beta_1`, in [0, 1).
        b2: :math:`\beta_2`, in [0, 1).
        epsilon: > 0.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Dozat 2016, Alg. 8.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.nadam(0.1, b1=0.5)
        >>> state = optimizer.update(optimizer.init(jnp.zeros(1)), jnp.ones(1))
        >>> round(float(state.params[0]), 4)
        -0.1333
    """

    def rule(now, g, m, v):
        m, v = _moments(now, g, m, v)
        ahead = now.b1 * m / _total_weight(now.b1, now.k + 1) + (1 - now.b1) * g / _total_weight(now.b1, now.k)
        return -now.learning_rate * ahead / (jnp.sqrt(v / _total_weight(now.b2, now.k)) + now.epsilon), m, v

    return elementwise("nadam", AdamState, rule, _moment_constants("nadam", learning_rate, b1, b2, epsilon))


@register
def adamw(
    learning_rate: Constant = 1e-3,
    b1: Constant = 0.9,
    b2: Constant = 0.999,
    epsilon: Constant = 1e-8,
    weight_decay: Constant = 1e-2,
) -> Optimizer:
    r"""AdamW: Adam with decoupled weight decay, which its averages do not see.

    With the averages of `adam`:

    .. math:: x_{k+1} = x_k - \alpha \left( \frac{\hat m_k}{\sqrt{\hat v_k} + \epsilon} + \lambda x_k \right)

    Warning:
        :math:`\lambda` is multiplied by the rate and acts on every parameter, including biases, as in optax and
        PyTorch; the paper scales it by the schedule alone. `decoupled_weight_decay` leaves biases out.

    Args:
        learning_rate: :math:`\alpha`, >= 0.
        b1: :math:`\beta_1`, in [0, 1).
        b2: :math:`\beta_2`, in [0, 1).
        epsilon: > 0.
        weight_decay: :math:`\lambda`, >= 0.

    Returns:
        The optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Loshchilov and Hutter 2019, Alg. 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.adamw(0.1, weight_decay=0.5)
        >>> state = optimizer.update(optimizer.init(jnp.array([2.0])), jnp.zeros(1))
        >>> round(float(state.params[0]), 4)
        1.9
    """
    constants = _moment_constants("adamw", learning_rate, b1, b2, epsilon)
    constants["weight_decay"] = non_negative("adamw", "weight_decay", weight_decay)

    def rule(now, g, m, v):
        change, m, v = _adam(now, g, m, v)
        return change - now.learning_rate * now.weight_decay * now.x, m, v

    return elementwise("adamw", AdamState, rule, constants)
