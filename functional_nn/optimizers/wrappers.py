"""Optimizers made of optimizers: clipping, weight decay, accumulation, freezing, averaging, and optax's own.

A wrapper takes an optimizer and returns one, so that they compose; the outermost sees the gradient first. A wrapper
that remembers nothing keeps the state of what it wraps; one that does has a state with `inner`, the wrapped state.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn import checks, registry
from functional_nn.optimizers import first_order, regularizers
from functional_nn.optimizers.constants import (
    Constant,
    at_step,
    decay_rate,
    in_dtype,
    non_negative,
    one_for_all,
    positive,
)
from functional_nn.optimizers.optimizer import Optimizer, State, check_gradients, check_params, moved
from functional_nn.precision import at_least_float32, largest
from functional_nn.rows import cached

# The same wrapper of the same optimizer is one object, so that compiled programs are used again; the latest are kept.
_kept = functools.partial(cached, size=128)


def _params(state: Any) -> Any:
    """Returns the parameters of the wrapped optimizer's state."""
    return state.inner.params


def _step(state: Any) -> Array:
    """Returns the wrapped optimizer's step: updates of the parameters made so far."""
    return state.inner.step


def iterate(state: State) -> Any:
    """Returns the parameters that the innermost optimizer moves, also where a wrapper reports others."""
    if isinstance(state, FrozenState):
        return {**state.frozen, **iterate(state.inner)}
    return iterate(state.inner) if hasattr(state, "inner") else state.params


def with_iterate(state: State, params: Any) -> State:
    """Returns the state with these parameters instead.

    Frozen parameters stay, except for running statistics, which are not trained.
    """
    if isinstance(state, FrozenState):
        state = state._replace(frozen=with_statistics(state.frozen, params))
        params = {name: own for name, own in params.items() if name not in state.frozen}
    if hasattr(state, "inner"):
        return state._replace(inner=with_iterate(state.inner, params))
    return state._replace(params=params)


def with_statistics(params: Any, of: Any) -> Any:
    """Returns the layers with the running statistics of others."""
    return {
        name: own | {"statistics": of[name]["statistics"]} if "statistics" in own else own
        for name, own in params.items()
    }


# Gradients changed on their way in ------------------------------------------------------------------------------------


@_kept
def clip_by_global_norm(optimizer: Optimizer, largest: Constant) -> Optimizer:
    r"""Scales the gradient down where its norm, over all parameters together, is above a limit.

    .. math:: g \leftarrow g \, \min\left(1, \frac{\mathrm{largest}}{\lVert g \rVert}\right)

    A norm that overflows its dtype makes the gradient zero.

    Args:
        optimizer: The optimizer, or its name.
        largest: The limit, > 0; a schedule is allowed.

    Returns:
        The wrapped optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Pascanu, Mikolov and Bengio 2013.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.clip_by_global_norm(optimizers.gd(1.0), 1.0)
        >>> state = optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([3.0, 4.0]))
        >>> [round(float(x), 3) for x in state.params]
        [-0.6, -0.8]
    """
    optimizer = first_order.get(optimizer)
    largest = one_for_all(positive, "clip_by_global_norm", "largest", largest)

    def clipped(state, grads):
        leaves = jax.tree.leaves(grads)
        dtype = max((at_least_float32(g.dtype) for g in leaves), key=lambda dtype: dtype.itemsize)
        bound = in_dtype(at_step(largest, state.step), dtype)
        norm = jnp.sqrt(sum(jnp.sum(g.astype(dtype) ** 2) for g in leaves))
        # by a quotient that cannot be 0 / 0; a norm within bounds leaves the gradient bitwise as it is
        factor = jnp.where(norm > bound, bound / jnp.maximum(norm, bound), 1)
        return jax.tree.map(lambda g: (g.astype(dtype) * factor).astype(g.dtype), grads)

    return _with_changed_gradients(optimizer, "clip_by_global_norm", {"largest": largest}, clipped)


@_kept
def clip_by_value(optimizer: Optimizer, largest: Constant) -> Optimizer:
    """Keeps each element of the gradient within [-largest, largest].

    Args:
        optimizer: The optimizer, or its name.
        largest: The limit, > 0; a schedule is allowed.

    Returns:
        The wrapped optimizer.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.clip_by_value(optimizers.gd(1.0), 1.0)
        >>> optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([3.0, 0.5])).params.tolist()
        [-1.0, -0.5]
    """
    optimizer = first_order.get(optimizer)
    largest = one_for_all(positive, "clip_by_value", "largest", largest)

    def clipped(state, grads):
        now = at_step(largest, state.step)

        def bounded(g, bound):
            return jnp.clip(g, -bound, bound)

        return jax.tree.map(lambda g: bounded(g, in_dtype(now, g.dtype)), grads)

    return _with_changed_gradients(optimizer, "clip_by_value", {"largest": largest}, clipped)


@_kept
def coupled_weight_decay(optimizer: Optimizer, decay: Constant, biases: bool = False) -> Optimizer:
    r"""Adds the gradient of a penalty of squared weights, which the method then treats as any other gradient.

    .. math:: g \leftarrow g + \lambda w

    It is the gradient of :math:`\tfrac{\lambda}{2} \lVert w \rVert^2`. With gradient descent this is weight decay
    proper.

    Warning:
        An adaptive method divides the penalty by its averages; see `decoupled_weight_decay`.

    Args:
        optimizer: The optimizer, or its name.
        decay: :math:`\lambda`, >= 0; a schedule is allowed.
        biases: Whether biases decay, too.

    Returns:
        The wrapped optimizer.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.coupled_weight_decay(optimizers.gd(0.5), 0.5)
        >>> optimizer.update(optimizer.init(jnp.array([4.0])), jnp.zeros(1)).params.tolist()
        [3.0]
    """
    optimizer, biases = first_order.get(optimizer), checks.boolean("coupled_weight_decay", "biases", biases)
    decay = one_for_all(non_negative, "coupled_weight_decay", "decay", decay)

    def decayed(state, grads):
        rate = at_step(decay, state.step)

        def add(chosen, w, g):
            return g + (in_dtype(rate, g.dtype) * w).astype(g.dtype) if chosen else g

        params = optimizer.point(state)
        return jax.tree.map(add, regularizers.penalized(params, biases), params, grads)

    return _with_changed_gradients(optimizer, "coupled_weight_decay", {"decay": decay, "biases": biases}, decayed)


@_kept
def keep_pruned(optimizer: Optimizer, masks: Any) -> Optimizer:
    """Keeps weights whose mask is False exactly at zero, from the start: training after pruning.

    Inside `freeze` it does not see the frozen layers, which keep their values; outside it they are pruned once.

    Args:
        optimizer: The optimizer, or its name.
        masks: Booleans in the parameters' structure, as from `regularizers.magnitude_masks`.

    Returns:
        The wrapped optimizer.

    Raises:
        ValueError: (in `init`) The masks do not match the parameters.
        TypeError: (in `init`) The masks are not booleans.

    References:
        CSE 475, 19.71.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.keep_pruned(optimizers.gd(1.0), jnp.array([True, False]))
        >>> optimizer.update(optimizer.init(jnp.ones(2)), jnp.ones(2) / 2).params.tolist()
        [0.5, 0.0]
    """
    optimizer = first_order.get(optimizer)

    def pruned(tree):
        chosen = masks
        if isinstance(masks, Mapping) and isinstance(tree, Mapping):  # inside `freeze`, the trained layers only
            chosen = {name: mask for name, mask in masks.items() if name in tree}
        return regularizers.prune(tree, chosen)

    masked = _with_changed_gradients(optimizer, "keep_pruned", {}, lambda state, grads: pruned(grads))
    return dataclasses.replace(masked, init=lambda params: optimizer.init(pruned(params)))


def _with_changed_gradients(optimizer: Optimizer, name: str, constants: dict[str, Any], change: Callable) -> Optimizer:
    """Returns `optimizer`, which receives `change(state, grads)` for grads; the state stays its own."""

    def update(state, grads):
        check_gradients(state.params, grads)
        return optimizer.update(state, change(state, grads))

    return dataclasses.replace(
        optimizer, name=f"{name}({optimizer.name})", update=update, constants=optimizer.constants | {name: constants}
    )


# Parameters changed on their way out ----------------------------------------------------------------------------------


@_kept
def decoupled_weight_decay(optimizer: Optimizer, decay: Constant, biases: bool = False) -> Optimizer:
    r"""Shrinks the weights themselves, in addition to the optimizer's own step.

    .. math:: w \leftarrow w - \lambda w

    Warning:
        :math:`\lambda` is the share of w lost in one update, whatever the learning rate: AdamW's :math:`\lambda` times
        its rate.

    Args:
        optimizer: The optimizer, or its name.
        decay: :math:`\lambda`, in [0, 1); a schedule is allowed.
        biases: Whether biases decay, too.

    Returns:
        The wrapped optimizer.

    Raises:
        ValueError: A constant is out of range.

    References:
        Hanson and Pratt 1988; Loshchilov and Hutter 2019.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.decoupled_weight_decay(optimizers.adam(), 0.25)
        >>> optimizer.update(optimizer.init(jnp.array([4.0])), jnp.zeros(1)).params.tolist()
        [3.0]
    """
    optimizer, biases = first_order.get(optimizer), checks.boolean("decoupled_weight_decay", "biases", biases)
    decay = one_for_all(decay_rate, "decoupled_weight_decay", "decay", decay)

    def update(state, grads):
        rate = at_step(decay, state.step)
        after = optimizer.update(state, grads)
        updates = after.step - state.step  # 0 while gradients are only gathered

        def shrink(chosen, old, new):
            if not chosen:
                return new
            wide = old.astype(at_least_float32(old.dtype))
            lost = in_dtype(rate, wide.dtype) * updates.astype(wide.dtype) * wide
            return moved(new, -lost)

        before = iterate(state)
        return with_iterate(after, jax.tree.map(shrink, regularizers.penalized(before, biases), before, iterate(after)))

    return dataclasses.replace(
        optimizer,
        name=f"decoupled_weight_decay({optimizer.name})",
        update=update,
        constants=optimizer.constants | {"decoupled_weight_decay": {"decay": decay, "biases": biases}},
    )


# Wrappers that remember -----------------------------------------------------------------------------------------------


class FrozenState(NamedTuple):
    """The state of `freeze`.

    Attributes:
        inner: The state of the parameters that are trained.
        frozen: The other parameters.
    """

    inner: State
    frozen: Any

    step = property(_step)

    @property
    def params(self) -> Any:
        """All parameters, the frozen ones unchanged."""
        return {**self.frozen, **self.inner.params}


@_kept
def freeze(optimizer: Optimizer, layers: Sequence[str]) -> Optimizer:
    """Leaves the parameters of the named layers bitwise unchanged; the optimizer never sees them.

    Args:
        optimizer: The optimizer, or its name.
        layers: Top-level names of the parameters, "layer1" and so on, or one name.

    Returns:
        The wrapped optimizer.

    Raises:
        ValueError: (in `init`) A name is unknown, or nothing is left to train.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.freeze(optimizers.gd(0.5), ["layer1"])
        >>> params = {"layer1": jnp.ones(1), "layer2": jnp.ones(1)}
        >>> state = optimizer.update(optimizer.init(params), params)
        >>> state.params["layer1"].tolist(), state.params["layer2"].tolist()
        ([1.0], [0.5])
    """
    optimizer = first_order.get(optimizer)
    layers = (layers,) if isinstance(layers, str) else tuple(layers)

    def trained(tree):
        return {name: own for name, own in tree.items() if name not in layers}

    def init(params):
        for name in layers:
            if name not in params:
                raise ValueError("freeze: " + registry.unknown("layer", str(name), params))
        if not trained(params):
            raise ValueError("freeze: nothing is left to train")
        return FrozenState(optimizer.init(trained(params)), {name: params[name] for name in layers})

    def update(state, grads):
        check_gradients(state.params, grads)
        return state._replace(inner=optimizer.update(state.inner, trained(grads)))

    return dataclasses.replace(
        _with_own_state(optimizer, "freeze", init, update, {"layers": list(layers)}),
        point=lambda state: {**state.frozen, **optimizer.point(state.inner)},
    )


class AccumulationState(NamedTuple):
    """The state of `accumulate`.

    Attributes:
        inner: The wrapped state.
        total: The sum of the gradients since the last update.
        count: How many they are, an int32 scalar.
    """

    inner: State
    total: Any
    count: Array

    params, step = property(_params), property(_step)


@_kept
def accumulate(optimizer: Optimizer, updates: int, reduction: str = "mean") -> Optimizer:
    """Updates the parameters once for so many gradients, with their mean or their sum.

    Mean and sum are the same training at learning rates that differ by the factor `updates` (Kordecki), for methods
    that follow the size of the gradient. `step` counts updates of the parameters.

    Args:
        optimizer: The optimizer, or its name.
        updates: The number of gradients, >= 1.
        reduction: "mean" or "sum".

    Returns:
        The wrapped optimizer.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.accumulate(optimizers.gd(1.0), 2)
        >>> state = optimizer.update(optimizer.init(jnp.zeros(1)), jnp.ones(1))
        >>> state.params.tolist(), optimizer.update(state, 3 * jnp.ones(1)).params.tolist()
        ([0.0], [-2.0])
    """
    optimizer = first_order.get(optimizer)
    checks.integer("accumulate", "updates", updates, 1)
    checks.one_of("accumulate", "reduction", reduction, ("mean", "sum"))

    def init(params):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, at_least_float32(x.dtype)), params)
        return AccumulationState(optimizer.init(params), zeros, jnp.zeros((), jnp.int32))

    def update(state, grads):
        check_gradients(state.params, grads)
        total = jax.tree.map(lambda sum_, g: sum_ + g.astype(sum_.dtype), state.total, grads)
        divisor = updates if reduction == "mean" else 1
        return jax.lax.cond(
            state.count + 1 == updates,
            lambda: AccumulationState(
                optimizer.update(state.inner, jax.tree.map(lambda sum_: sum_ / divisor, total)),
                jax.tree.map(jnp.zeros_like, total),
                jnp.zeros((), jnp.int32),
            ),
            lambda: AccumulationState(state.inner, total, state.count + 1),
        )

    gathering = _with_own_state(optimizer, "accumulate", init, update, {"updates": updates, "reduction": reduction})
    return dataclasses.replace(gathering, gathers=updates * optimizer.gathers)


class AverageState(NamedTuple):
    """The state of `average`.

    Attributes:
        inner: The wrapped state.
        average: The average of the parameters over the updates; `params` is this average.
    """

    inner: State
    average: Any

    step = property(_step)

    @property
    def params(self) -> Any:
        """The average, in the parameters' dtype: what is reported, measured and kept."""
        return jax.tree.map(lambda a, x: a.astype(x.dtype), self.average, iterate(self.inner))


@_kept
def average(optimizer: Optimizer, decay: Constant | None = None, start: int = 0) -> Optimizer:
    r"""Reports an average of the parameters, while the optimizer continues from the latest ones, its `point`.

    The plain mean is of the parameters after each update (Polyak and Juditsky 1992). The exponential mean is

    .. math:: a \leftarrow \mathrm{decay} \cdot a + (1 - \mathrm{decay}) \, x

    without bias, as it begins at the first parameters.

    Args:
        optimizer: The optimizer, or its name.
        decay: None for the plain mean, else in [0, 1); a schedule is allowed.
        start: The number of updates after which averaging begins; before, the average is the latest parameters.

    Returns:
        The wrapped optimizer.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.average(optimizers.gd(1.0))
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     state = optimizer.update(state, jnp.ones(1))
        >>> state.params.tolist(), optimizer.point(state).tolist()
        ([-1.5], [-2.0])
    """
    optimizer = first_order.get(optimizer)
    if decay is not None:
        decay = one_for_all(decay_rate, "average", "decay", decay)
    checks.integer("average", "start", start, 0)

    def init(params):
        inner = optimizer.init(params)
        first = jax.tree.map(lambda x: jnp.array(x, at_least_float32(x.dtype), copy=True), iterate(inner))
        return AverageState(inner, first)

    def update(state, grads):
        inner = optimizer.update(state.inner, grads)
        count = inner.step - start  # of the parameters averaged, these included
        rate = None if decay is None else at_step(decay, inner.step)

        def mean(a, x):
            x = x.astype(a.dtype)
            share = 1 / jnp.maximum(count, 1).astype(a.dtype)
            if rate is not None:
                share = jnp.where(count > 1, 1 - in_dtype(rate, a.dtype), 1).astype(a.dtype)
            new = inner.step > state.inner.step  # not where gradients are only gathered
            return jnp.where(new & (x != a), a + share * (x - a), a)

        return AverageState(inner, jax.tree.map(mean, state.average, iterate(inner)))

    return _with_own_state(optimizer, "average", init, update, {"decay": decay, "start": start})


class PlateauState(NamedTuple):
    """The state of `reduce_on_plateau`.

    Attributes:
        inner: The wrapped state.
        learning_rate: The present one.
        best: The lowest loss so far.
        waited: Epochs since then.
        cooling: Epochs that are not counted, still to come.
    """

    inner: State
    learning_rate: Array
    best: Array
    waited: Array
    cooling: Array

    params, step = property(_params), property(_step)


@_kept
def reduce_on_plateau(
    make: Callable[[Array], Optimizer],
    learning_rate: float,
    factor: float = 0.1,
    patience: int = 10,
    tolerance: float = 1e-4,
    cooldown: int = 0,
    smallest: float = 0.0,
) -> Optimizer:
    """Multiplies the learning rate by a factor whenever the loss has not fallen for a number of epochs.

    `fit` passes the loss after each epoch, the validation's where there is one; elsewhere call
    `optimizer.observe(state, loss)`. A loss counts as lower below best * (1 - tolerance) (for a negative best,
    best * (1 + tolerance)). These are PyTorch's ReduceLROnPlateau and its defaults.

    Args:
        make: make(rate) returns the optimizer, such as `optimizers.adam` or `lambda rate: optimizers.momentum(rate,
            0.95)`. The rate is one number, which a method may divide among layers: `lambda rate:
            optimizers.gd({"layer1": rate, "others": 0.1 * rate})`.
        learning_rate: The first rate, >= 0.
        factor: In (0, 1).
        patience: The number of epochs without a lower loss after which the next one reduces the rate.
        tolerance: The share by which a loss must be lower, in [0, 1).
        cooldown: The number of epochs after a reduction that are not counted.
        smallest: The lowest rate, >= 0.

    Returns:
        The wrapped optimizer.

    Raises:
        ValueError: A constant is out of range.
        TypeError: `make` does not return an optimizer for a rate.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.reduce_on_plateau(optimizers.gd, 1.0, factor=0.5, patience=1)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for loss in (3.0, 3.0, 3.0):
        ...     state = optimizer.observe(state, loss)
        >>> float(state.learning_rate)
        0.5
    """
    name = "reduce_on_plateau"

    def plain(owner, name, value):
        return checks.constant(owner, name, value, *checks.NON_NEGATIVE)

    learning_rate = one_for_all(plain, name, "learning_rate", learning_rate)
    smallest = checks.constant(name, "smallest", smallest, *checks.NON_NEGATIVE)
    if not callable(make):
        raise TypeError(f"{name}: make must be a function of the learning rate such as optimizers.adam, got {make!r}")
    inner = make(learning_rate)
    if not isinstance(inner, Optimizer):
        raise TypeError(f"{name}: make must return an Optimizer for a learning rate, got {type(inner).__name__}")
    factor = checks.constant(name, "factor", factor, lambda v: (v > 0) & (v < 1), "in (0, 1)")
    checks.integer(name, "patience", patience, 0)
    checks.integer(name, "cooldown", cooldown, 0)
    tolerance = checks.constant(name, "tolerance", tolerance, lambda v: (v >= 0) & (v < 1), "in [0, 1)")

    def init(params):
        inner_state = inner.init(params)
        dtype = at_least_float32(jax.tree.leaves(params)[0].dtype)
        rate, best = jnp.array(learning_rate, dtype), largest(dtype)
        return PlateauState(inner_state, rate, best, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(state, grads):
        return state._replace(inner=make(state.learning_rate).update(state.inner, grads))

    def observe(state, loss):
        loss = jnp.asarray(loss, state.best.dtype)
        fell = loss < jnp.where(jnp.isinf(state.best), state.best, state.best - tolerance * jnp.abs(state.best))
        cooling = jnp.maximum(state.cooling - 1, 0)
        waited = jnp.where(fell | (state.cooling > 0), 0, state.waited + 1)
        reduce = waited > patience
        reduced = jnp.minimum(jnp.maximum(state.learning_rate * factor, smallest), state.learning_rate)
        rate = jnp.where(reduce, reduced, state.learning_rate).astype(state.learning_rate.dtype)
        return PlateauState(
            make(state.learning_rate).observe(state.inner, loss),
            rate,
            jnp.where(fell, loss, state.best),
            jnp.where(reduce, 0, waited).astype(jnp.int32),
            jnp.where(reduce, cooldown, cooling).astype(jnp.int32),
        )

    constants = {
        "learning_rate": learning_rate,
        "factor": factor,
        "patience": patience,
        "tolerance": tolerance,
        "cooldown": cooldown,
        "smallest": smallest,
    }
    wrapped = _with_own_state(inner, name, init, update, constants)
    return dataclasses.replace(
        wrapped, observe=observe, point=lambda state: make(state.learning_rate).point(state.inner)
    )


def _with_own_state(
    optimizer: Optimizer, name: str, init: Callable, update: Callable, constants: dict[str, Any]
) -> Optimizer:
    """Returns a wrapper with its own state around that of `optimizer`, whose functions are called as before."""
    return Optimizer(
        f"{name}({optimizer.name})",
        init,
        update,
        optimizer.constants | {name: constants},
        point=lambda state: optimizer.point(state.inner),
        observe=lambda state, loss: state._replace(inner=optimizer.observe(state.inner, loss)),
        full_batch=optimizer.full_batch,
        gathers=optimizer.gathers,
    )


# One of several -------------------------------------------------------------------------------------------------------


class ChoiceState(NamedTuple):
    """The state of `choose`.

    Attributes:
        params: The parameters.
        step: The number of updates, int32.
        memories: The fields that the chosen method remembers, in places that all candidates share.
    """

    params: Any
    step: Array
    memories: tuple


@_kept
def choose(index: int | Array, candidates: Sequence[Optimizer]) -> Optimizer:
    """Returns the candidate with a number that may be traced: under `vmap`, a race of methods is one program.

    Every candidate computes its update and one of them is kept, so only methods belong here whose update costs little
    compared to the gradient: those whose state is the parameters, the step, and memories in the parameters' structure,
    as for every elementwise method.

    Args:
        index: The number of the candidate, from 0.
        candidates: Optimizers, or their names.

    Returns:
        The optimizer.

    Raises:
        ValueError: There is no candidate with this number.
        TypeError: (in `init`) The state of a candidate holds something else.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> def step(index):
        ...     optimizer = optimizers.choose(index, [optimizers.gd(0.5), optimizers.adam(0.25)])
        ...     return optimizer.update(optimizer.init(jnp.zeros(())), jnp.asarray(2.0)).params
        >>> [round(float(x), 3) for x in jax.vmap(step)(jnp.arange(2))]
        [-1.0, -0.25]
    """
    candidates = tuple(first_order.get(candidate) for candidate in candidates)
    if checks.is_concrete(index) and not 0 <= int(index) < len(candidates):
        raise ValueError(f"choose: index must be 0 to {len(candidates) - 1}, the number of a candidate, got {index}")

    def pick(trees: Sequence[Any]) -> Any:
        picked = trees[0]
        for number, tree in enumerate(trees[1:], 1):
            # the default argument binds the number now
            picked = jax.tree.map(lambda new, old, number=number: jnp.where(index == number, new, old), tree, picked)
        return picked

    def memories_of(state: State) -> tuple:
        memories = tuple(state[2:]) if isinstance(state, tuple) and state._fields[:2] == ("params", "step") else None

        def kind(tree):
            return (jax.tree.structure(tree), checks.shapes(tree))

        if memories is None or any(kind(memory) != kind(state.params) for memory in memories):
            raise TypeError(
                f"choose: expected elementwise methods such as adam, got {type(state).__name__}, the state of a method "
                "that remembers something else than arrays like the parameters; race it in its own run"
            )
        return memories

    def init(params):
        check_params("choose", params)
        all_memories = [memories_of(candidate.init(params)) for candidate in candidates]
        places = max(map(len, all_memories))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, at_least_float32(x.dtype)), params)
        filled = [(*memories, *[nothing] * (places - len(memories))) for memories in all_memories]
        return ChoiceState(params, jnp.zeros((), jnp.int32), tuple(map(pick, zip(*filled, strict=True))))

    def states(state):
        kinds = [jax.eval_shape(candidate.init, state.params) for candidate in candidates]
        return [type(kind)(state.params, state.step, *state.memories[: len(kind) - 2]) for kind in kinds]

    def update(state, grads):
        after = [candidate.update(before, grads) for candidate, before in zip(candidates, states(state), strict=True)]
        memories = [(*a[2:], *state.memories[len(a) - 2 :]) for a in after]
        return ChoiceState(pick([a.params for a in after]), state.step + 1, pick(memories))

    return Optimizer(
        f"choose({', '.join(candidate.name for candidate in candidates)})",
        init,
        update,
        {"index": index},
        point=lambda state: pick([c.point(s) for c, s in zip(candidates, states(state), strict=True)]),
        full_batch=any(candidate.full_batch for candidate in candidates),
    )


# From optax -----------------------------------------------------------------------------------------------------------


class OptaxState(NamedTuple):
    """The state of `from_optax`.

    Attributes:
        params: The parameters.
        step: The number of updates, int32.
        transformation: The state of the transformation.
    """

    params: Any
    step: Array
    transformation: Any


@_kept
def from_optax(transformation: Any, name: str = "optax") -> Optimizer:
    """Makes an optimizer of any object with optax's `init` and `update`.

    Nothing is imported; the object must have `init(params)` and `update(grads, state, params) -> (updates, state)`.

    Args:
        transformation: Such as `optax.adam(1e-3)`.
        name: The optimizer's name.

    Returns:
        The optimizer.

    Raises:
        TypeError: The object has no such functions, or (in the first update) the transformation also requires the loss
            or the function itself, as line searches do.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.from_optax(optax.sgd(0.5))
        >>> optimizer.update(optimizer.init(jnp.ones(1)), jnp.ones(1)).params.tolist()
        [0.5]
    """
    for method in ("init", "update"):
        if not callable(getattr(transformation, method, None)):
            raise TypeError(f"from_optax: expected an object with init and update, got {type(transformation).__name__}")

    def init(params):
        return OptaxState(params, jnp.zeros((), jnp.int32), transformation.init(params))

    def update(state, grads):
        check_gradients(state.params, grads)
        try:
            updates, after = transformation.update(grads, state.transformation, state.params)
        except TypeError as error:
            if "keyword-only" not in str(error):
                raise
            raise TypeError(
                f"from_optax: the transformation requires more than gradients ({error}); second-order optimizers, "
                "such as 'lbfgs', search along lines"
            ) from None
        trained = regularizers.penalized(state.params, biases=True)  # running statistics are not trained, even by decay

        def moved_by(is_trained, x, change):
            return (x + change).astype(x.dtype) if is_trained else x

        params = jax.tree.map(moved_by, trained, state.params, updates)
        return OptaxState(params, state.step + 1, after)

    return Optimizer(name, init, update, {})
