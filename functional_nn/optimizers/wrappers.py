"""Optimizers made of optimizers: clipping, weight decay, accumulation, freezing, averaging, and optax's own.

A wrapper takes an optimizer and gives one, so that they compose; the outermost sees the gradient first. One that
remembers nothing keeps the state of what it wraps; one that does has a state with `inner`, the wrapped one's.
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
from functional_nn.registry import cached

# The same wrapper of the same optimizer is one object, for which what was compiled serves again; the latest are kept.
_kept = functools.partial(cached, size=128)


def _params(state):
    """The parameters of the wrapped optimizer's state."""
    return state.inner.params


def _step(state):
    """The wrapped optimizer's step: updates of the parameters made so far."""
    return state.inner.step


def iterate(state: State) -> Any:
    """The parameters that the innermost optimizer moves, whatever is reported of them."""
    if isinstance(state, FrozenState):
        return {**state.frozen, **iterate(state.inner)}
    return iterate(state.inner) if hasattr(state, "inner") else state.params


def with_iterate(state: State, params: Any) -> State:
    """The state with these in their place; what is frozen stays, but for running statistics, which nothing trains."""
    if isinstance(state, FrozenState):
        state = state._replace(frozen=with_statistics(state.frozen, params))
        params = {name: own for name, own in params.items() if name not in state.frozen}
    if hasattr(state, "inner"):
        return state._replace(inner=with_iterate(state.inner, params))
    return state._replace(params=params)


def with_statistics(params: Any, of: Any) -> Any:
    """The layers with the running statistics that others have."""
    return {
        name: own | {"statistics": of[name]["statistics"]} if "statistics" in own else own
        for name, own in params.items()
    }


# Gradients changed on their way in ------------------------------------------------------------------------------------


@_kept
def clip_by_global_norm(optimizer: Optimizer, largest: Constant) -> Optimizer:
    """g * min(1, largest / ||g||), the norm taken over all parameters together: Pascanu, Mikolov, Bengio 2013.

    A norm beyond the largest number of its dtype makes the gradient zero. Raises ValueError unless `largest` is > 0.
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

    return _before(optimizer, "clip_by_global_norm", {"largest": largest}, clipped)


@_kept
def clip_by_value(optimizer: Optimizer, largest: Constant) -> Optimizer:
    """Each element of g kept within [-largest, largest]. Raises ValueError unless `largest` is > 0."""
    optimizer = first_order.get(optimizer)
    largest = one_for_all(positive, "clip_by_value", "largest", largest)

    def clipped(state, grads):
        now = at_step(largest, state.step)

        def bounded(g, bound):
            return jnp.clip(g, -bound, bound)

        return jax.tree.map(lambda g: bounded(g, in_dtype(now, g.dtype)), grads)

    return _before(optimizer, "clip_by_value", {"largest": largest}, clipped)


@_kept
def coupled_weight_decay(optimizer: Optimizer, decay: Constant, biases: bool = False) -> Optimizer:
    """g + decay * w: the gradient of (decay / 2) ||w||^2, which the method then treats as any other gradient.

    With gradient descent this is weight decay proper; an adaptive method divides it by its averages. Biases are
    spared unless `biases`. Raises ValueError unless `decay` is >= 0.
    """
    optimizer, biases = first_order.get(optimizer), checks.boolean("coupled_weight_decay", "biases", biases)
    decay = one_for_all(non_negative, "coupled_weight_decay", "decay", decay)

    def decayed(state, grads):
        rate = at_step(decay, state.step)

        def add(chosen, w, g):
            return g + (in_dtype(rate, g.dtype) * w).astype(g.dtype) if chosen else g

        params = optimizer.point(state)
        return jax.tree.map(add, regularizers.penalized(params, biases), params, grads)

    return _before(optimizer, "coupled_weight_decay", {"decay": decay, "biases": biases}, decayed)


@_kept
def keep_pruned(optimizer: Optimizer, masks: Any) -> Optimizer:
    """Weights whose mask is False start at zero and stay exactly zero: re-training after pruning, CSE 475 19.71.1.

    masks: booleans in the parameters' structure, as `regularizers.magnitude_masks` gives them. Inside `freeze` it
    does not see the frozen layers, which keep what they have; outside it they are pruned once.
    """
    optimizer = first_order.get(optimizer)

    def pruned(tree):
        own = masks  # inside `freeze`, of the trained layers only
        if isinstance(masks, Mapping) and isinstance(tree, Mapping):
            own = {name: mask for name, mask in masks.items() if name in tree}
        return regularizers.prune(tree, own)

    masked = _before(optimizer, "keep_pruned", {}, lambda state, grads: pruned(grads))
    return dataclasses.replace(masked, init=lambda params: optimizer.init(pruned(params)))


def _before(optimizer: Optimizer, name: str, constants: dict[str, Any], change: Callable) -> Optimizer:
    """`optimizer`, given `change(state, grads)` for grads; its state is its own."""

    def update(state, grads):
        check_gradients(state.params, grads)
        return optimizer.update(state, change(state, grads))

    return dataclasses.replace(
        optimizer, name=f"{name}({optimizer.name})", update=update, constants=optimizer.constants | {name: constants}
    )


# Parameters changed on their way out ----------------------------------------------------------------------------------


@_kept
def decoupled_weight_decay(optimizer: Optimizer, decay: Constant, biases: bool = False) -> Optimizer:
    """w = w - decay * w, and the optimizer's own step: Hanson and Pratt 1988; Loshchilov and Hutter 2019.

    `decay` is the share of w lost in one update, whatever the learning rate; AdamW's lambda times its rate. Biases
    are spared unless `biases`. Raises ValueError unless `decay` is in [0, 1).
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
    """inner: of the parameters that are trained; frozen: the others; `params` are both."""

    inner: State
    frozen: Any

    step = property(_step)

    @property
    def params(self):
        """All parameters, the frozen ones as they came."""
        return {**self.frozen, **self.inner.params}


@_kept
def freeze(optimizer: Optimizer, layers: Sequence[str]) -> Optimizer:
    """The parameters of the named layers stay bitwise as they are; the optimizer never sees them.

    layers: top-level names of the parameters, "layer1" and so on. Raises ValueError for a name that is not one, and
    where nothing is left to train, when the optimizer meets its parameters.
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
        _around(optimizer, "freeze", init, update, {"layers": list(layers)}),
        point=lambda state: {**state.frozen, **optimizer.point(state.inner)},
    )


class AccumulationState(NamedTuple):
    """inner; total: sum of the gradients since the last update; count: how many they are, int32 scalar."""

    inner: State
    total: Any
    count: Array

    params, step = property(_params), property(_step)


@_kept
def accumulate(optimizer: Optimizer, updates: int, reduction: str = "mean") -> Optimizer:
    """One update of `optimizer` for every `updates` gradients, with their mean, or their sum.

    The two are the same training at learning rates that differ by the factor `updates` (Kordecki), for methods that
    follow the gradient's size. `step` counts updates of the parameters. Raises ValueError for constants out of range.
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

    gathering = _around(optimizer, "accumulate", init, update, {"updates": updates, "reduction": reduction})
    return dataclasses.replace(gathering, gathers=updates * optimizer.gathers)


class AverageState(NamedTuple):
    """inner; average: of the parameters over the updates; `params` is this average."""

    inner: State
    average: Any

    step = property(_step)

    @property
    def params(self):
        """The average, in the parameters' dtype: what is reported, measured and kept."""
        return jax.tree.map(lambda a, x: a.astype(x.dtype), self.average, iterate(self.inner))


@_kept
def average(optimizer: Optimizer, decay: Constant | None = None, start: int = 0) -> Optimizer:
    """Reports an average of the parameters while `optimizer` goes on from the latest ones, its `point`.

    decay None: Polyak's plain mean of the parameters after each update (Polyak and Juditsky 1992); else the
    exponential mean decay * average + (1 - decay) * x, without bias as it begins at the first of them. Averaging
    begins after `start` updates; before, the average is the latest. Raises ValueError for constants out of range.
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

    return _around(optimizer, "average", init, update, {"decay": decay, "start": start})


class PlateauState(NamedTuple):
    """inner; learning_rate: at present; best: lowest loss seen; waited: epochs since then; cooling: epochs left."""

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
    """Multiplies the learning rate by `factor` whenever the loss has not fallen for more than `patience` epochs.

    make(rate) -> the optimizer, such as `optimizers.adam` or `lambda rate: optimizers.momentum(rate, 0.95)`. The rate
    is one number, which a method may share out: `lambda rate: optimizers.gd({"layer1": rate, "others": 0.1 * rate})`.
    `fit` tells the loss after each epoch, the validation's where there is one; elsewhere call `optimizer.observe(state,
    loss)`. A loss counts as lower below best * (1 - tolerance) (of a negative best, * (1 + tolerance)); after a
    reduction, `cooldown` epochs are not counted; the rate stops at `smallest`. PyTorch's ReduceLROnPlateau and its
    defaults. Raises ValueError for constants out of range.
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
        raise TypeError(f"{name}: make must give an Optimizer for a learning rate, got {type(inner).__name__}")
    factor = checks.constant(name, "factor", factor, lambda v: (v > 0) & (v < 1), "in (0, 1)")
    checks.integer(name, "patience", patience, 0)
    checks.integer(name, "cooldown", cooldown, 0)
    tolerance = checks.constant(name, "tolerance", tolerance, lambda v: (v >= 0) & (v < 1), "in [0, 1)")

    def init(params):
        own = inner.init(params)
        dtype = at_least_float32(jax.tree.leaves(params)[0].dtype)
        rate, best = jnp.array(learning_rate, dtype), largest(dtype)
        return PlateauState(own, rate, best, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

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
    wrapped = _around(inner, name, init, update, constants)
    return dataclasses.replace(
        wrapped, observe=observe, point=lambda state: make(state.learning_rate).point(state.inner)
    )


def _around(optimizer: Optimizer, name: str, init, update, constants: dict[str, Any]) -> Optimizer:
    """A wrapper with a state of its own around that of `optimizer`, which is told and asked as before."""
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
    """params; step; memories: what the chosen method remembers, in places that all candidates share."""

    params: Any
    step: Array
    memories: tuple


@_kept
def choose(index: int | Array, candidates: Sequence[Optimizer]) -> Optimizer:
    """The candidate with that number, which may be traced: under `vmap`, a race of methods is one program.

    Every candidate computes its update and one of them is kept, so that only methods whose update costs little beside
    the gradient belong here: those whose state is the parameters, the step, and memories in the parameters' structure,
    as of every elementwise method. Raises TypeError for others, ValueError for a number that is none of theirs.
    """
    candidates = tuple(first_order.get(candidate) for candidate in candidates)
    if checks.is_concrete(index) and not 0 <= int(index) < len(candidates):
        raise ValueError(f"choose: index must be 0 to {len(candidates) - 1}, the number of a candidate, got {index}")

    def pick(trees: Sequence[Any]) -> Any:
        picked = trees[0]
        for number, tree in enumerate(trees[1:], 1):
            # the default stands behind the loop variable: bound now
            picked = jax.tree.map(lambda new, old, number=number: jnp.where(index == number, new, old), tree, picked)
        return picked

    def memories_of(state: State) -> tuple:
        own = tuple(state[2:]) if isinstance(state, tuple) and state._fields[:2] == ("params", "step") else None

        def kind(tree):
            return (jax.tree.structure(tree), checks.shapes(tree))

        if own is None or any(kind(memory) != kind(state.params) for memory in own):
            raise TypeError(
                f"choose: expected elementwise methods such as adam, got {type(state).__name__}, the state of a method "
                "that remembers something else than arrays like the parameters; race it in a run of its own"
            )
        return own

    def init(params):
        check_params("choose", params)
        own = [memories_of(candidate.init(params)) for candidate in candidates]
        places = max(map(len, own))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, at_least_float32(x.dtype)), params)
        memories = tuple(pick([(*m, *[nothing] * (places - len(m)))[place] for m in own]) for place in range(places))
        return ChoiceState(params, jnp.zeros((), jnp.int32), memories)

    def states(state):
        kinds = [jax.eval_shape(candidate.init, state.params) for candidate in candidates]
        return [type(kind)(state.params, state.step, *state.memories[: len(kind) - 2]) for kind in kinds]

    def update(state, grads):
        after = [candidate.update(own, grads) for candidate, own in zip(candidates, states(state), strict=True)]
        own = [(*a[2:], *state.memories[len(a) - 2 :]) for a in after]
        return ChoiceState(pick([a.params for a in after]), state.step + 1, pick(own))

    return Optimizer(
        f"choose({', '.join(candidate.name for candidate in candidates)})",
        init,
        update,
        {"index": index},
        point=lambda state: pick([c.point(own) for c, own in zip(candidates, states(state), strict=True)]),
        full_batch=any(candidate.full_batch for candidate in candidates),
    )


# Somebody else's ------------------------------------------------------------------------------------------------------


class OptaxState(NamedTuple):
    """params; step; transformation: its own state."""

    params: Any
    step: Array
    transformation: Any


@_kept
def from_optax(transformation: Any, name: str = "optax") -> Optimizer:
    """Any object with optax's `init(params)` and `update(grads, state, params) -> (updates, state)` as an Optimizer.

    Nothing is imported: only the shape counts. Raises TypeError where the two are not there, and, as it is first used,
    for a transformation that also wants the loss or the function itself, as line searches do.
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
                f"from_optax: the transformation asks for more than gradients ({error}); optimizers of second order, "
                "such as 'lbfgs', search along lines"
            ) from None
        trained = regularizers.penalized(state.params, biases=True)  # running statistics are not, decay or none
        params = jax.tree.map(
            lambda own, x, change: (x + change).astype(x.dtype) if own else x, trained, state.params, updates
        )
        return OptaxState(params, state.step + 1, after)

    return Optimizer(name, init, update, {})
