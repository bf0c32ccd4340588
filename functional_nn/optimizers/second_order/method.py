"""What second-order methods have in common: their state, how they end, and `minimize`, which runs one to its end.

A method is a pair of pure functions, `init(params, problem) -> state` and `update(state, problem) -> state`, and is
written as two on vectors: `look`, what it must know at a point, and `move`, one step from there. Every failure is data:
a status in the state, so that one lane of many that fails leaves the others as they are.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.optimizers import first_order
from functional_nn.optimizers.line_searches import Line, LineSearch, Point
from functional_nn.optimizers.second_order.problem import Flat, Problem
from functional_nn.registry import Described, Registry, cached

BUDGET = 2 * 2**30  # bytes that a method's largest matrix may take

RUNNING, GOAL, GRADIENT, CHANGE, BUDGET_SPENT, SEARCH_FAILED, DIVERGED, NO_EVIDENCE = range(8)
STATUSES = ("running", "goal", "gradient", "change", "budget", "search_failed", "diverged", "no_evidence")
REASONS = (
    "not ended",
    "converged: F is at the goal or below",
    "converged: the gradient is within tolerance",
    "converged: F, or the parameters, no longer change",
    "the budget of steps or evaluations is spent",
    "no lower point was found: the line search failed, or the damping is at its largest",
    "F or its gradient is not finite",
    "converged, but the data determine no parameter: gamma is 0; they may be noise alone, or give another initializer",
)


class Counts(NamedTuple):
    """How often was asked for F alone, for F with its gradient, for a matrix times a vector, for a matrix: int32."""

    values: Array
    gradients: Array
    products: Array
    matrices: Array

    @property
    def evaluations(self) -> Array:
        """How often F was computed, with its gradient or without."""
        return self.values + self.gradients

    @property
    def passes(self) -> Array:
        """Passes over all that the problem is made of: one a question, whatever it costs."""
        return self.values + self.gradients + self.products + self.matrices


def counts(values=0, gradients=0, products=0, matrices=0) -> Counts:
    return Counts(*(jnp.asarray(count, jnp.int32) for count in (values, gradients, products, matrices)))


def added(one: Counts, other: Counts) -> Counts:
    return jax.tree.map(jnp.add, one, other)


class State(NamedTuple):
    """params; step: updates made, int32; value: F there; gradient: dF/dparams, flat (P,); length: of the last move that
    was tried, relative to the parameters' norm; expected: the decrease of F that was expected of it; status: 0 while
    running, else one of STATUSES; counts; damped: updates whose matrix was singular or indefinite and was damped
    beyond what the method prescribes, int32; memory: what else the method remembers.
    """

    params: Any
    step: Array
    value: Array
    gradient: Array
    length: Array
    expected: Array
    status: Array
    counts: Counts
    damped: Array
    memory: Any


class Here(NamedTuple):
    """What is known at a point x (P,): F, its gradient (P,), and the method's memory; counts: what that took."""

    x: Array
    value: Array
    gradient: Array
    memory: Any
    counts: Counts


class Move(NamedTuple):
    """Where one step leads. tried: the change of x that was tried, made or not, nan where there was none; failed:
    nothing lower was found; damped: the matrix had to be; expected: the decrease that was promised of what was tried
    and not made, else 0.
    """

    here: Here
    tried: Array
    failed: Array | bool = False
    damped: Array | bool = False
    expected: Array | float = 0.0


@dataclass(frozen=True, eq=False)
class SecondOrder(Described):
    """look(flat problem, x, memory or None) -> Here; move(flat problem, Here) -> Move.

    constants: what it was made with, by name. asks: what of `Functions` the problem must have. full_batch: True where
    one update builds on the last, and mini-batches would make no sense of that; elements(P, N): numbers in its largest
    matrix, which is refused where above `budget` bytes, N None where the problem has no residuals.
    verdict(memory before a step, memory after, status): the status, where the method has a word on convergence.
    """

    name: str
    look: Callable[[Flat, Array, Any], Here]
    move: Callable[[Flat, Here], Move]
    constants: dict[str, Any]
    asks: tuple[str, ...] = ()
    full_batch: bool = True
    elements: Callable[[int, int | None], int] = lambda size, count: 0
    budget: int = BUDGET
    verdict: Callable[[Any, Any, Array], Array] = lambda before, after, status: status

    def __repr__(self) -> str:
        return f"<optimizer {self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})>"

    def init(self, params: Any, problem: Problem) -> State:
        """The state at the start. Raises ValueError for a problem that cannot answer what the method asks."""
        first_order.check_params(self.name, params)
        flat = self.flat(problem, params)
        with jax.default_matmul_precision("highest"):
            here = self.look(flat, flat.flatten(params), None)
        zero = jnp.zeros((), jnp.int32)
        sound = jnp.isfinite(here.value) & jnp.all(jnp.isfinite(here.gradient))
        nothing = jnp.zeros_like(here.value)
        return State(
            params, zero, here.value, here.gradient, nothing, nothing,
            jnp.where(sound, RUNNING, DIVERGED).astype(jnp.int32), here.counts, zero, here.memory,
        )  # fmt: skip

    def update(self, state: State, problem: Problem, renewed: bool = False) -> State:
        """One step. A state that has ended is moved on all the same; `minimize` and `fit` do not ask for it.

        renewed: `renew` comes before the next update, so that where this one ends need not be looked at.
        """
        flat = self.flat(problem, state.params)
        flat.looks = not renewed
        x = flat.flatten(state.params)
        with jax.default_matmul_precision("highest"):
            made = self.move(flat, Here(x, state.value, state.gradient, state.memory, counts()))
        after = made.here
        sound = jnp.isfinite(after.value) & jnp.all(jnp.isfinite(after.gradient))
        norm = jnp.linalg.norm
        length = norm(made.tried) / jnp.maximum(norm(x), jnp.finfo(x.dtype).tiny)
        failed = jnp.where(jnp.asarray(made.failed), SEARCH_FAILED, RUNNING)
        return State(
            flat.unflatten(after.x), state.step + 1, after.value, after.gradient, length,
            jnp.asarray(made.expected, after.value.dtype),
            jnp.where(sound, failed, DIVERGED).astype(jnp.int32),
            added(state.counts, after.counts), state.damped + jnp.asarray(made.damped, jnp.int32), after.memory,
        )  # fmt: skip

    def point(self, state: State) -> Any:
        """Where the gradient is taken: the parameters."""
        return state.params

    def observe(self, state: State, loss: Array) -> State:
        """Nothing is made of the loss after an epoch."""
        return state

    def renew(self, state: State, problem: Problem) -> State:
        """The state at the same parameters in another problem: of the next mini-batch."""
        flat = self.flat(problem, state.params)
        with jax.default_matmul_precision("highest"):
            here = self.look(flat, flat.flatten(state.params), state.memory)
        return state._replace(
            value=here.value, gradient=here.gradient, memory=here.memory, counts=added(state.counts, here.counts)
        )

    def flat(self, problem: Problem, params: Any) -> Flat:
        """The problem on vectors. Raises as `init`."""
        for what in self.asks:
            if getattr(problem.functions, what) is None:
                raise ValueError(f"{self.name}: {problem!r} {_MISSING[what]}")
        flat = Flat(problem, params)
        count = flat.residual_count() if problem.functions.residuals is not None else None
        needed = self.elements(flat.size, count) * flat.dtype.itemsize
        if needed > self.budget:
            raise ValueError(
                f"{self.name}: a matrix for {flat.size} parameters would take {needed} bytes, above the budget of "
                f"{self.budget}; use lbfgs, conjugate_gradient or hessian_free, which need none, or allow it with "
                f"budget={needed}"
            )
        return flat


_MISSING = {
    "residuals": "has no residuals whose squares sum to F; use a square error without regularizer "
    "(bayesian_regularization brings its own), problem_from(residuals=...), or hessian_free, lbfgs and others, which "
    "need none",
    "gauss_newton_product": "has no Gauss-Newton matrix; use problem_from(residuals=...), a network, or newton",
    "factors": "has no layers to take Kronecker factors of; use a network, or hessian_free",
}

_registry: Registry[SecondOrder] = Registry("optimizer", SecondOrder)
register, names, get, factory = _registry.register, _registry.names, _registry.get, _registry.factory
knows = _registry.knows


def constant(method: str, name: str, value, accepted=checks.NON_NEGATIVE):
    """A checked constant: Python floats for plain numbers; arrays and tracers as they are."""
    return checks.constant(method, name, value, *accepted)


def choice(method: str, name: str, value, accepted: tuple[str, ...]) -> None:
    checks.one_of(method, name, value, accepted)


def landed(flat: Flat, look: Callable, here: Here, x: Array, value: Array, memory: Any) -> Here:
    """What is known at x, where F is known already; no more than that where `renew` is to come."""
    return look(flat, x, memory) if flat.looks else Here(x, value, here.gradient, memory, counts())


# Along a line ---------------------------------------------------------------------------------------------------------


def downhill(direction: Array, gradient: Array) -> tuple[Array, Array]:
    """(direction, replaced): the negative gradient instead where the direction is not finite or does not lead down."""
    good = jnp.all(jnp.isfinite(direction)) & (jnp.vdot(direction, gradient) < 0)
    return jnp.where(good, direction, -gradient), ~good


class Searched(NamedTuple):
    """x + alpha d, F and g there; step: alpha; counts. missed: nothing lower was found; failed: not along -g either."""

    x: Array
    value: Array
    gradient: Array
    step: Array
    missed: Array
    failed: Array
    counts: Counts

    def move(self, here: Here, direction: Array, memory: Any, damped: Array | bool = False) -> Move:
        """The move there. A search that missed is one that promised what the slope did."""
        after = Here(self.x, self.value, self.gradient, memory, self.counts)
        tried = jnp.where(self.missed, direction, self.x - here.x)
        expected = jnp.where(self.missed, -jnp.vdot(here.gradient, direction), 0)
        return Move(after, tried, self.failed, damped, expected)


def search(line_search: LineSearch, flat: Flat, here: Here, direction: Array, first: Array | float = 1.0) -> Searched:
    """The point that a line search finds. One that misses fails only along -g; the method is to begin anew there."""

    def point(step: Array) -> Point:
        value, gradient = flat.value_and_gradient(here.x + step * direction)
        return Point(step, value, jnp.vdot(gradient, direction), gradient)

    zero = jnp.zeros_like(here.value)
    start = Point(zero, here.value, jnp.vdot(here.gradient, direction), here.gradient)
    line = Line(lambda step: flat.value(here.x + step * direction), point, start)
    found = line_search.search(line, jnp.asarray(first, here.value.dtype))
    at, missed = found.point, ~found.found
    return Searched(
        here.x + at.step * direction, at.value, at.gradient, at.step, missed,
        missed & jnp.all(direction == -here.gradient), counts(found.values, found.gradients),
    )  # fmt: skip


def first_step(here: Here, direction: Array, before: Array) -> Array:
    """1, or shorter: what would decrease F by as much as the last step did, were F a parabola along the line (Nocedal
    and Wright 2006, Eq. 3.60). before: F at the point before this one, inf at the start, where the step has length 1.
    """
    slope = jnp.vdot(here.gradient, direction)
    again = 2.02 * (here.value - before) / jnp.where(slope < 0, slope, -1)
    unit = 1 / jnp.maximum(jnp.linalg.norm(direction), jnp.finfo(direction.dtype).tiny)
    again = jnp.where(jnp.isfinite(before), jnp.where(again > 0, again, 1), unit)
    return jnp.minimum(1, again)


# Run to the end -------------------------------------------------------------------------------------------------------


class Path(NamedTuple):
    """One row a step, (steps,): F and the norm of its gradient after it, the length of the move tried, relative to the
    parameters, and passes so far. nan, and 0 in passes, after the end.
    """

    value: Array
    gradient_norm: Array
    length: Array
    passes: Array


class Solution(NamedTuple):
    """params: the last, than which none before was better; value: F; gradient (P,); ended: the status' number; steps;
    counts; damped: steps whose matrix was singular or indefinite and was damped; path: `Path`, or None; state: to go
    on.

    Of several lanes, as `vmap` makes them, each array has a leading axis; `best` picks the lowest.
    """

    params: Any
    value: Array
    gradient: Array
    ended: Array
    steps: Array
    counts: Counts
    damped: Array
    path: Path | None
    state: State

    @property
    def status(self) -> str | np.ndarray:
        """One of STATUSES; an array of them for several lanes."""
        return _word(STATUSES, self.ended)

    @property
    def reason(self) -> str | np.ndarray:
        """The same in words."""
        return _word(REASONS, self.ended)

    @property
    def best(self) -> "Solution":
        """The lane whose value is the lowest."""
        if self.value.ndim != 1:
            raise ValueError(f"best: expected several lanes side by side, got values of shape {self.value.shape}")
        index = jnp.argmin(jnp.where(jnp.isfinite(self.value), self.value, jnp.inf))
        return jax.tree.map(lambda x: x[index], self)

    def __repr__(self) -> str:
        if not checks.is_concrete(self.value) or np.ndim(self.value):
            return f"<solutions, values {self.value}>"
        return f"<solution F = {float(self.value):.6g} after {int(self.steps)} steps: {self.reason}>"


def _word(words: tuple[str, ...], number: Array) -> str | np.ndarray:
    found = np.asarray(words)[np.asarray(number)]
    return found if found.ndim else str(found)


def minimize(
    problem: Problem,
    method: SecondOrder | str,
    params: Any,
    *,
    steps: int = 1000,
    goal: float | Array = -jnp.inf,
    gradient_tolerance: float | Array | None = None,
    change_tolerance: float | Array | None = None,
    evaluations: int | Array | None = None,
    path: bool = True,
) -> Solution:
    """Runs a second-order method from `params` until it has converged, failed, or spent its budget.

    goal: F at or below it is enough. gradient_tolerance: on the largest |dF/dx_i|; by default 1e-5, or the root of the
    dtype's epsilon where that is less: 1.5e-8 in float64. change_tolerance: F has changed by no more than this share of
    itself, in a step that was not expected to do better, or the move tried was no longer than this share of the
    parameters; epsilon by default.
    steps, evaluations (values and gradients asked for, in all): the budget. path: keep one row a step.

    Pure: it may be jitted and vmapped, over starts, data or traced constants; a lane that has ended stands still.
    Called with plain arrays it compiles once for each problem's functions, method, steps and shapes. Raises ValueError
    for a start where F or its gradient is not finite (inside `jit` the status is then "diverged").

    >>> import jax.numpy as jnp
    >>> from functional_nn.optimizers import problem_from
    >>> rosenbrock = problem_from(lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
    >>> solution = minimize(rosenbrock, "bfgs", jnp.array([-1.2, 1.0]))
    >>> solution.status, bool(jnp.abs(solution.params - 1).max() < 1e-3)
    ('gradient', True)
    """
    method, limits = settled(method, steps, goal, gradient_tolerance, change_tolerance, evaluations)
    checks.boolean("minimize", "path", path)
    params = jax.tree.map(jnp.asarray, params)
    first_order.check_params(method.name, params)
    limits = limits(Flat(problem, params).dtype)
    if not all(map(checks.is_concrete, jax.tree.leaves((problem, params, limits, method.constants)))):
        return run_to_end(method, steps, path, problem, params, *limits)
    for name, leaf in checks.by_path(params).items():
        checks.finite(f"params: {name}" if name else "params", leaf)
    found = _compiled(method, steps, path)(problem, params, *limits)
    if int(found.ended) == DIVERGED and int(found.steps) == 0:
        raise ValueError(
            f"params: {problem!r} is not finite at the start: F = {float(found.value):g}, "
            f"largest |dF/dx_i| = {float(jnp.max(jnp.abs(found.gradient))):g}; start elsewhere"
        )
    return found


def settled(method, steps, goal, gradient_tolerance, change_tolerance, evaluations) -> tuple[SecondOrder, Callable]:
    """The method, and (dtype -> the limits as arrays), all checked."""
    checks.integer("minimize", "steps", steps, 1)
    if evaluations is not None and checks.is_concrete(evaluations):
        checks.integer("minimize", "evaluations", evaluations, 1)
    for name, value in (("gradient_tolerance", gradient_tolerance), ("change_tolerance", change_tolerance)):
        if value is not None:
            constant("minimize", name, value)

    def limits(dtype) -> tuple[Array, ...]:
        eps = float(jnp.finfo(dtype).eps)
        return (
            jnp.asarray(goal, dtype),
            jnp.asarray(min(eps**0.5, 1e-5) if gradient_tolerance is None else gradient_tolerance, dtype),
            jnp.asarray(eps if change_tolerance is None else change_tolerance, dtype),
            jnp.asarray(np.iinfo(np.int32).max if evaluations is None else evaluations, jnp.int32),
        )

    return _second_order(method), limits


def _second_order(method: SecondOrder | str) -> SecondOrder:
    """The method; a message for a first-order one."""
    if first_order.knows(method):
        raise ValueError(
            f"minimize: {getattr(method, 'name', method)} is a first-order method, which `fit` runs; "
            f"accepted: {', '.join(names())}"
        )
    return get(method)


@functools.partial(cached, size=128)
def _compiled(method: SecondOrder, steps: int, path: bool) -> Callable:
    return jax.jit(functools.partial(run_to_end, method, steps, path))


def still(before: State, state: State, tolerance: Array | float) -> Array:
    """The status after a step: CHANGE where F, or the parameters, no longer change by more than `tolerance`."""
    change = jnp.maximum(jnp.abs(before.value - state.value), state.expected)
    settled = change <= tolerance * jnp.maximum(jnp.abs(before.value), jnp.abs(state.value))
    settled = settled | (state.length <= tolerance)
    # F may have settled to rounding while its gradient still goes to zero
    settled = settled & (jnp.linalg.norm(state.gradient) >= 0.5 * jnp.linalg.norm(before.gradient))
    return jnp.where(settled & (state.status != DIVERGED), CHANGE, state.status)


def run_to_end(method, steps, path, problem, params, *limits) -> Solution:
    """`minimize`, unchecked."""
    start = begun(method, steps, problem, params, *limits)
    column = jnp.full(steps, jnp.nan, start.value.dtype)
    rows = Path(column, column, column, jnp.zeros(steps, jnp.int32)) if path else None

    def going(carry):
        return carry[0].status == RUNNING

    def one(carry):
        before, rows = carry
        state = stepped(method, steps, problem, before, *limits)
        if path:
            row = Path(state.value, jnp.linalg.norm(state.gradient), state.length, state.counts.passes)
            rows = jax.tree.map(lambda column, x: column.at[before.step].set(x), rows, row)
        return state, rows

    state, rows = lax.while_loop(going, one, (start, rows))
    return solution(state, rows)


def solution(state: State, rows: Path | None) -> Solution:
    """What a state has come to."""
    return Solution(
        state.params, state.value, state.gradient, state.status, state.step, state.counts, state.damped, rows, state
    )


def begun(method: SecondOrder, steps: int, problem: Problem, params: Any, *limits: Array) -> State:
    """The start, judged."""
    state = method.init(params, problem)
    return state._replace(status=_judged(method, state.memory, state.status, state, steps, *limits))


def stepped(method: SecondOrder, steps: int, problem: Problem, before: State, *limits: Array) -> State:
    """One step, judged by the limits: goal, gradient and change tolerance, evaluations."""
    state = method.update(before, problem)
    return state._replace(status=_judged(method, before.memory, still(before, state, limits[2]), state, steps, *limits))


def _judged(method, memory, ended, state: State, steps: int, goal, gradient_tolerance, change_tolerance, most) -> Array:
    """The status: what the method says of itself, or which limit is met."""
    spent = (state.step >= steps) | (state.counts.evaluations >= most)
    ended = jnp.where(jnp.max(jnp.abs(state.gradient)) <= gradient_tolerance, GRADIENT, ended)
    ended = method.verdict(memory, state.memory, ended)
    ended = jnp.where((ended == RUNNING) & spent, BUDGET_SPENT, ended)
    ended = jnp.where(state.value <= goal, GOAL, ended)
    return jnp.where(state.status == DIVERGED, DIVERGED, ended).astype(jnp.int32)
