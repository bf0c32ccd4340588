"""What second-order methods have in common: their state, how they end, and `minimize`, which runs one to its end.

A method is a pair of pure functions, `init(params, problem) -> state` and `update(state, problem) -> state`, and is
written as two on vectors: `look`, what it must know at a point, and `move`, one step from there. Every failure is data:
a status in the state, so that one lane of many that fails leaves the others as they are. What is not known yet is
never nan or infinity inside a program, so that `jax_debug_nans` and `jax_debug_infs` can be used.

No test of convergence depends on the units of F or of the parameters. Letters: x (P,), g the gradient at x, F there,
x_0 and F_0 at the start, eps of the dtype; all of them predict what F could still fall by.

Least squares, J_j a column of J, A = J^T J: along one parameter F falls by (J_j^T r)^2 / |J_j|^2, so that the cosine
|J_j^T r| / (|J_j| |r|) says by which share of itself (MINPACK's gtol: More, Garbow and Hillstrom 1980). Where r goes to
0 its direction stays random; but it cannot be made less than what the rounding of x does to it. So:

    |J_j^T r| / |J_j| <= tol |r| + 4 eps (sum_i A_ii x_i^2)^(1/2)         for all j

Other functions, s = x - x_before, y = g - g_before: the curvature that was met is h = s^T y / s^T s, and g^T g / 2h the
decrease that it predicts. It is that of the most curved directions; max_i |g_i| max(|x_i|, |x_0i|), what a change of
one parameter by its own size does to F (Dennis and Schnabel 1983, Sec. 7.2), tells of the others. The first must be
tol^2 |F| at most, the second tol |F|. Where F goes to 0, or through it, F_0 - F stands for |F| and eps^(3/4) for tol,
and the step predicted must be short, |g| / h <= eps^(1/4) max(|x|, |x_0|).
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, precision
from functional_nn.optimizers import first_order
from functional_nn.optimizers.line_searches import Line, LineSearch, Point
from functional_nn.optimizers.second_order.problem import Flat, Problem
from functional_nn.precision import largest
from functional_nn.reductions import norm, unit
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
    "no lower point was found: the line search failed, the damping is at its largest, or the rate moves nothing",
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
    """Where one step leads. tried: the change of x that was tried, made or not, 0 where there was none; failed:
    nothing lower was found; damped: the matrix had to be; expected: the decrease that was promised of what was tried
    and not made, else 0; the dtype's largest number where nothing could be tried.
    """

    here: Here
    tried: Array
    failed: Array | bool = False
    damped: Array | bool = False
    expected: Array | float = 0.0


def no_verdict(before: Any, after: Any, status: Array) -> Array:
    """The status as it is."""
    return status


@dataclass(frozen=True, eq=False)
class SecondOrder(Described):
    """look(flat problem, x, memory or None) -> Here; move(flat problem, Here) -> Move.

    constants: what it was made with, by name. asks: what of `Functions` the problem must have. full_batch: True where
    one update builds on the last, and mini-batches would make no sense of that; elements(P, N): numbers in its largest
    matrix, which is refused where above `budget` bytes, N None where the problem has no residuals.
    stationary(flat problem, state, x_0, tolerance) -> can F fall no more, by the method's own model? None where it has
    none; then the gradient's change says (see above).
    verdict(memory before a step, memory after, status): the status, where the method has a word on convergence.
    bounded: does it keep a problem's bounds?
    """

    name: str
    look: Callable[[Flat, Array, Any], Here]
    move: Callable[[Flat, Here], Move]
    constants: dict[str, Any]
    asks: tuple[str, ...] = ()
    full_batch: bool = True
    elements: Callable[[int, int | None], int] = lambda size, count: 0
    budget: int = BUDGET
    stationary: Callable[[Flat, State, Array, Array | float], Array] | None = None
    verdict: Callable[[Any, Any, Array], Array] = no_verdict
    bounded: bool = False
    one_device: ClassVar[bool] = True  # its problem's matrices are not laid over several

    def __repr__(self) -> str:
        return f"<optimizer {self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})>"

    @precision.full
    def init(self, params: Any, problem: Problem) -> State:
        """The state at the start. Raises ValueError for a problem that cannot answer what the method asks."""
        first_order.check_params(self.name, params)
        flat = self.flat(problem, params)
        here = self.look(flat, flat.flatten(params), None)
        zero = jnp.zeros((), jnp.int32)
        sound = jnp.isfinite(here.value) & jnp.all(jnp.isfinite(here.gradient))
        nothing = jnp.zeros_like(here.value)
        return State(
            params,
            zero,
            here.value,
            here.gradient,
            nothing,
            nothing,
            jnp.where(sound, RUNNING, DIVERGED).astype(jnp.int32),
            here.counts,
            zero,
            here.memory,
        )

    @precision.full
    def update(self, state: State, problem: Problem, renewed: bool = False) -> State:
        """One step. A state that has ended is still moved on; `minimize` and `fit` do not ask for it.

        renewed: `renew` comes before the next update, so that where this one ends need not be looked at.
        """
        flat = self.flat(problem, state.params)
        flat.looks = not renewed
        x = flat.flatten(state.params)
        made = self.move(flat, Here(x, state.value, state.gradient, state.memory, counts()))
        after = made.here
        sound = jnp.isfinite(after.value) & jnp.all(jnp.isfinite(after.gradient))
        length = norm(made.tried) / jnp.maximum(norm(x), jnp.finfo(x.dtype).tiny)
        failed = jnp.where(jnp.asarray(made.failed), SEARCH_FAILED, RUNNING)
        return State(
            flat.unflatten(after.x),
            state.step + 1,
            after.value,
            after.gradient,
            length,
            jnp.asarray(made.expected, after.value.dtype),
            jnp.where(sound, failed, DIVERGED).astype(jnp.int32),
            added(state.counts, after.counts),
            state.damped + jnp.asarray(made.damped, jnp.int32),
            after.memory,
        )

    @precision.full
    def renew(self, state: State, problem: Problem) -> State:
        """The state at the same parameters in another problem: of the next mini-batch."""
        flat = self.flat(problem, state.params)
        here = self.look(flat, flat.flatten(state.params), state.memory)
        return state._replace(
            value=here.value, gradient=here.gradient, memory=here.memory, counts=added(state.counts, here.counts)
        )

    def flat(self, problem: Problem, params: Any) -> Flat:
        """The problem on vectors. Raises as `init`."""
        check_problem(self.name, problem)
        for what in self.asks:
            if getattr(problem.functions, what) is None:
                raise ValueError(f"{self.name}: {problem!r} {_MISSING[what]}")
        flat = Flat(problem, params)
        if flat.bounds is not None and not self.bounded:
            raise ValueError(
                f"{self.name}: {problem!r} has bounds, which levenberg_marquardt keeps, by its trust region; give it "
                "residuals, or leave the bounds out"
            )
        count = flat.residual_count() if problem.functions.residuals is not None else None
        needed = self.elements(flat.size, count) * flat.dtype.itemsize
        if needed > self.budget:
            raise ValueError(
                f"{self.name}: a matrix for {flat.size} parameters would take {needed} bytes, above the budget of "
                f"{self.budget}; use lbfgs, conjugate_gradient or hessian_free, which need none, or allow it with "
                f"budget={needed}"
            )
        return flat

    # What a training loop asks, of methods of first order likewise

    def begin(self, params: Any, problem: Callable[[], Problem]) -> State:
        """The state before the first update: the method looks at `problem()`, the first batch's."""
        return self.init(params, problem())

    def lifted(self, asked: first_order.Asked) -> Callable:
        """The step (state, batch) -> (state, metrics), metrics of before it."""
        problem_of = asked.problem()

        @precision.full
        def step(state: State, batch: Any):
            problem = problem_of(batch)
            if not self.full_batch:
                state = self.renew(state, problem)
            metrics = asked.metrics(state.params, state.value, state.gradient, batch)
            after = self.update(state, problem, renewed=not self.full_batch)
            if self.full_batch:
                ended = still(self, problem, Begun(state.params, state.value), state, after)
                after = after._replace(status=self.verdict(state.memory, after.memory, ended).astype(jnp.int32))
            return after, metrics

        return step

    def ended(self, state: State) -> Array:
        """Whether the method has ended the run, int32: 0, or its status below 0."""
        return -state.status

    def point(self, state: State) -> Any:
        """Where the gradient is taken: the parameters."""
        return state.params

    def observe(self, state: State, loss: Array) -> State:
        """Nothing is made of the loss after an epoch."""
        return state

    def check_start(self, params: Any) -> None:
        """Raises ValueError naming the parameter that is not finite."""
        for path, x in checks.by_path(params).items():
            checks.finite(f"params: {path}", x)

    def check_gradient(self, by_hand: bool, rule: str | None) -> None:
        """Raises ValueError for any but the hand-written one, and for a rule, by its name, that is no gradient."""
        if rule is not None:
            raise ValueError(
                f"gradient: {self.name} asks for exact derivatives, which the {rule} rule does not give; use a method "
                "of first order, such as 'gd(1)'"
            )
        if not by_hand:
            raise ValueError(
                f"gradient: {self.name} asks for more than a gradient, all of it by hand; for automatic derivatives "
                "use optimizers.minimize and optimizers.problem_from(function)"
            )

    def check_plan(self, plan: Any, updates: int, epochs: int) -> None:
        """Raises ValueError for batches, `updates` an epoch, that the method makes no sense of."""
        if self.full_batch and plan.size is not None:
            taking = [name for name in names() if "minibatches" in inspect.signature(factory(name)).parameters]
            raise ValueError(
                f"{self.name} builds each step on the last, on all examples: use plan=training.batch() (on the command "
                f"line, --batch-size 0), or one of {', '.join(taking)} with minibatches=True; got {updates} batches an "
                "epoch"
            )
        if plan.importance is not None:
            raise ValueError(f"plan: {self.name} does not take importance(); use minibatch(size)")


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
    good = jnp.all(jnp.isfinite(direction)) & (jnp.vdot(direction / unit(direction), gradient / unit(gradient)) < 0)
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
        size = unit(direction)
        promised = jnp.minimum(-jnp.vdot(here.gradient, direction / size), largest(tried.dtype) / size) * size
        expected = jnp.where(self.missed, promised, 0)
        return Move(after, tried, self.failed, damped, expected)


def search(line_search: LineSearch, flat: Flat, here: Here, direction: Array, first: Array | float = 1.0) -> Searched:
    """The point that a line search finds. One that misses fails only along -g; the method is to begin anew there."""

    size = unit(direction)  # along -g the slope would be a square, of what may be 1e24 in single precision
    d = direction / size

    def point(step: Array) -> Point:
        value, gradient = flat.value_and_gradient(here.x + step * d)
        return Point(step, value, jnp.vdot(gradient, d), gradient)

    zero = jnp.zeros_like(here.value)
    start = Point(zero, here.value, jnp.vdot(here.gradient, d), here.gradient)
    line = Line(lambda step: flat.value(here.x + step * d), point, start)
    found = line_search.search(line, jnp.asarray(first, here.value.dtype) * size)
    at, missed = found.point, ~found.found
    return Searched(
        here.x + at.step * d,
        at.value,
        at.gradient,
        at.step / size,
        missed,
        missed & jnp.all(direction == -here.gradient),
        counts(found.values, found.gradients),
    )


def first_step(here: Here, direction: Array, before: Array) -> Array:
    """What would decrease F by as much as the last step did, were F a parabola along the line (Nocedal and Wright 2006,
    Eq. 3.60). before: F at the point before this one, `unknown` at the start. There sum |x_i d_i| / sum d_i^2, so that
    the parameters that d moves most change by about their own size; for x = 0 a tenth of what would bring a straight
    line from F to 0; a step of length 1 where F is 0, too. No unit of F matters, nor one of all parameters.
    """
    size = unit(direction)
    direction = direction / size
    slope = jnp.vdot(here.gradient, direction)
    known = before < largest(before.dtype)
    down = jnp.where(slope < 0, -slope, 1)
    again = 2.02 * (jnp.where(known, before, here.value) - here.value) / down
    length = jnp.linalg.norm(direction)
    length = jnp.where(length > 0, length, 1)
    begin = jnp.vdot(jnp.abs(direction) / length, jnp.abs(here.x)) / length
    begin = jnp.where(begin > 0, begin, 0.1 * jnp.abs(here.value) / down)
    begin = jnp.where(begin > 0, begin, 1 / length)
    return jnp.where(known & (again > 0), again, begin) / size


def unknown(value: Array) -> Array:
    """In the place of F at a point before the first: the largest number of its dtype."""
    return largest(value.dtype)


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
    """params: the last, than which none before was better, except of `variable_learning_rate`; value: F; gradient (P,);
    ended: the status' number; steps; counts; damped: steps whose matrix was singular or indefinite and was damped;
    path: `Path`, or None; state: to go on.

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
    def advice(self) -> str | np.ndarray:
        """What to do next, in words, "" where there is nothing to be done; an array of them for several lanes.

        It says more where the path was kept, and nothing of rounding where no state was (`restarts`).
        """
        lanes = np.ndim(self.ended) and range(len(self.ended))
        if not lanes:
            return _advised(jax.tree.map(np.asarray, self))
        return np.asarray([_advised(jax.tree.map(lambda x, k=k: np.asarray(x[k]), self)) for k in lanes])

    @property
    def best(self) -> "Solution":
        """The lane whose value is the lowest."""
        if self.value.ndim != 1:
            raise ValueError(f"best: expected several lanes side by side, got values of shape {self.value.shape}")
        index = jnp.argmin(jnp.where(jnp.isfinite(self.value), self.value, largest(self.value.dtype)))
        return jax.tree.map(lambda x: x[index], self)

    def __repr__(self) -> str:
        if not checks.is_concrete(self.value) or np.ndim(self.value):
            return f"<solutions, values {self.value}>"
        told = "; ".join(filter(None, (self.reason, self.advice)))
        return f"<solution F = {float(self.value):.6g} after {int(self.steps)} steps: {told}>"


def _word(words: tuple[str, ...], number: Array) -> str | np.ndarray:
    found = np.asarray(words)[np.asarray(number)]
    return found if found.ndim else str(found)


def _advised(found: Solution) -> str:
    """`Solution.advice`, of one lane, NumPy throughout."""
    status, state, dtype = STATUSES[int(found.ended)], found.state, found.value.dtype
    rounding = float(np.finfo(dtype).eps) * abs(float(found.value))
    if status == "diverged":
        bad = np.flatnonzero(~np.isfinite(found.gradient))
        where = f"dF/dx_i is not, for i = {_listed(bad)}"
        return (
            f"{where if bad.size else 'F is not'}: does F have a minimum? Start elsewhere, or use a method that makes "
            "no step to such a point"
        )
    if status in ("gradient", "change"):
        if int(found.steps) == 0 and not np.any(found.gradient):
            return (
                "no parameter moves F at the start, a minimum, a saddle, a maximum or a plateau: start elsewhere, or "
                "use newton, which leaves a saddle"
            )
        if state is not None and getattr(state.memory, "indefinite", False):
            return (
                "the last step met negative curvature, so that this may be a saddle: go on from beside it, or by newton"
            )
        free = np.flatnonzero(getattr(state and state.memory, "undetermined", ()))
        if free.size:
            return (
                f"the residuals do not tell parameters {_listed(free)} apart, or not at all: hold some of them, or "
                "give more data"
            )
        last = () if found.path is None else found.path.value[: int(found.steps)][-2:]
        if status == "change" and len(last) == 2 and abs(float(last[1] - last[0])) <= 4 * rounding:
            return f"F changes by no more than it is rounded by, {rounding:.1g}{_finer(dtype)}"
        return ""
    if status == "search_failed":
        # what is promised of a whole step is of F's own size; of one at rounding it is some of its last digits
        if state is None or not float(state.expected) <= 100 * rounding:
            return (
                "the gradient promises a fall that F does not show: F may be noisy, jump, or not have this gradient; "
                "compare both (jax.test_util.check_grads), or start elsewhere"
            )
        return (
            f"along its last direction F would fall by less than it is rounded by, {rounding:.1g}{_finer(dtype)}; or, "
            "of parameters whose sizes are far apart, give each a unit of its size, or use newton, which needs none"
        )
    if status == "budget":
        return _still_falling(found)
    return ""


def _listed(numbers: np.ndarray) -> str:
    """The first five."""
    return ", ".join(map(str, numbers[:5])) + (", ..." if numbers[5:].size else "")


def _finer(dtype: np.dtype) -> str:
    if dtype.itemsize >= 8:
        return ": subtract from F what is constant, or take it for the minimum"
    return f": for more digits than {dtype.name} has, use float64 (jax_enable_x64)"


def _still_falling(found: Solution) -> str:
    """How fast F fell in the last tenth of the steps, beside the tenth before and all, and what that says."""
    more, steps = "go on from params with more steps or evaluations", int(found.steps)
    if found.path is None or steps < 3:
        return more
    values = found.path.value[:steps].astype(float)
    last = max(1, steps // 10)
    falls = ((last, 0), (2 * last, last), (steps - 1, 0))
    fell, before, whole = (float(values[-1 - start] - values[-1 - end]) for start, end in falls)
    told = f"in the last {last} steps F fell by {fell:.2g}, by {before:.2g} in as many before"
    if fell <= 0:
        return f"{told}: it moves no more; start elsewhere, or use another method"
    if fell > before / 2 and fell < 1e-3 * whole:
        return f"{told}: it creeps; use a method that knows more curvature, or give each parameter a unit of its size"
    return f"{told}: {more}"


def minimize(
    problem: Problem,
    method: SecondOrder | str,
    params: Any,
    *,
    steps: int = 1000,
    goal: float | Array = -np.inf,
    gradient_tolerance: float | Array | None = None,
    change_tolerance: float | Array | None = None,
    evaluations: int | Array | None = None,
    path: bool = True,
) -> Solution:
    """Runs a second-order method from `params` until it has converged, failed, or spent its budget.

    goal: F at or below it is enough. gradient_tolerance: on the largest |dF/dx_i|, in the units that F and x have. By
    default a share instead, whatever the units are: 1e-5, or the root of the dtype's epsilon where that is less (1.5e-8
    in float64), of the cosine of the residuals with each column of their Jacobian, or of what F changes by when a
    parameter does by its own size, and the square of it of what F could still fall by (see `second_order.method`).
    change_tolerance: F has changed by no more than this share of itself, in a step that was not expected to do better,
    or the move tried was no longer than this share of the parameters. Epsilon by default, and then only where F could
    fall by no more than epsilon^(2/3) of itself, since a short step may be a damped one: of
    Levenberg-Marquardt, whose Jacobian tells, also of a share that is given.
    steps, evaluations (values and gradients asked for, in all): the budget. path: keep one row a step.

    Pure: it may be jitted and vmapped, over starts, data or traced constants; a lane that has ended no longer changes.
    Called with plain arrays it compiles once for each problem's functions, method, steps, shapes and tolerances given;
    the 32 programs that were used last are kept. Raises ValueError for a start where F or its gradient is not finite
    (inside `jit` the status is then "diverged"), TypeError for what is no problem, method or parameters.

    >>> import jax.numpy as jnp
    >>> from functional_nn.optimizers import problem_from
    >>> rosenbrock = problem_from(lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
    >>> solution = minimize(rosenbrock, "bfgs", jnp.array([-1.2, 1.0]))
    >>> solution.status, bool(jnp.abs(solution.params - 1).max() < 1e-3)
    ('gradient', True)
    """
    method, limits = settled("minimize", method, steps, goal, gradient_tolerance, change_tolerance, evaluations)
    checks.boolean("minimize", "path", path)
    check_problem("minimize", problem)
    params = checked_params(method.name, params)
    flat = Flat(problem, params)
    flat.check_start(f"{method.name}: params", params)
    limits = limits(flat.dtype)
    if not all(map(checks.is_concrete, jax.tree.leaves((problem, params, limits, method.constants)))):
        found = run_to_end(method, steps, path, problem, params, *limits)
        # Not where every nan is looked for: what stands after the end is 0 then.
        return found if path is False or jax.config.jax_debug_nans else found._replace(path=_ended(jnp, found))
    for name, leaf in checks.by_path(params).items():
        checks.finite(f"{method.name}: params" + (f": {name}" if name else ""), leaf)
    given = problem.data, problem.bounds
    found = _compiled(problem.functions, problem.name, method, steps, path)(given, params, *limits)
    if int(found.ended) == DIVERGED and int(found.steps) == 0:
        raise ValueError(
            f"{method.name}: params: {problem!r} is not finite at the start: F = {float(found.value):g}, "
            f"largest |dF/dx_i| = {np.max(np.abs(np.asarray(found.gradient))):g}; start elsewhere"
        )
    return found._replace(path=_ended(np, found)) if path else found


def _ended(numpy, found: Solution) -> Path:
    """The path with nan after the end, by `jax.numpy` or, where numbers are there, by NumPy."""
    rows = jax.tree.map(numpy.asarray, found.path)
    after = numpy.arange(rows.value.shape[0], dtype=np.int32) >= numpy.asarray(found.steps)

    def missing(x):
        return numpy.where(after, numpy.asarray(np.nan, x.dtype), x)

    return Path(*map(missing, rows[:3]), rows.passes)


def check_problem(owner: str, problem: Any) -> None:
    """Raises TypeError unless it is one."""
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{owner}: problem: expected one from optimizers.problem_from(function) or training.problem(network, ...), "
            f"got {type(problem).__name__}"
        )


def checked_params(owner: str, params: Any) -> Any:
    """The same as arrays. Raises TypeError for what is no array of real numbers, ValueError where there is none."""
    for name, leaf in checks.by_path(params).items():
        if not isinstance(leaf, bool | int | float | complex):
            checks.numeric(f"{owner}: params" + (f": {name}" if name else ""), leaf)
    params = jax.tree.map(jnp.asarray, params)
    first_order.check_params(owner, params)
    if not sum(leaf.size for leaf in jax.tree.leaves(params)):
        raise ValueError(f"{owner}: params: expected at least one number, got shapes {checks.shapes(params)}")
    return params


def settled(
    owner, method, steps, goal, gradient_tolerance, change_tolerance, evaluations
) -> tuple[SecondOrder, Callable]:
    """The method, and (dtype -> the limits as arrays), all checked; None for a tolerance by default."""
    method = _second_order(owner, method)
    checks.integer(owner, "steps", steps, 1)
    if checks.is_concrete(goal):
        checks.constant(owner, "goal", goal, lambda v: ~np.isnan(v), "a number")
    if evaluations is not None and checks.is_concrete(evaluations):
        checks.integer(owner, "evaluations", evaluations, 1)
    for name, value in (("gradient_tolerance", gradient_tolerance), ("change_tolerance", change_tolerance)):
        if value is not None:
            constant(owner, name, value)

    def limits(dtype) -> tuple[Array | None, ...]:
        end = float(jnp.finfo(dtype).max)
        finite = np.clip(goal, -end, end) if checks.is_concrete(goal) else goal
        most = np.iinfo(np.int32).max if evaluations is None else evaluations
        given = (finite, dtype), (gradient_tolerance, dtype), (change_tolerance, dtype), (most, np.int32)

        # of NumPy where it can be: JAX's take a tenth of a short run to be made
        def array(x, dtype):
            return (np if isinstance(x, int | float | np.generic) else jnp).asarray(x, dtype)

        return tuple(None if x is None else array(x, dtype) for x, dtype in given)

    return method, limits


def _second_order(owner: str, method: SecondOrder | str) -> SecondOrder:
    """The method; a message for a first-order one, and for one of another library."""
    if first_order.knows(method):
        raise ValueError(
            f"{owner}: {getattr(method, 'name', method)} is a first-order method, which `fit` runs; "
            f"accepted: {', '.join(names())}"
        )
    if not isinstance(method, str | SecondOrder):
        hint = ""
        if hasattr(method, "init") and hasattr(method, "update"):  # as optax's transformations have
            hint = "; for optax's, make an optimizer by optimizers.from_optax(...), which `fit` runs"
        raise TypeError(
            f"{owner}: method: expected one of {', '.join(names())}, by name or made, got {type(method).__name__}{hint}"
        )
    return get(method)


@functools.partial(cached, size=32)
def _compiled(functions: Any, name: str, method: SecondOrder, steps: int, path: bool) -> Callable:
    # A jit of its own for each problem's functions, which stand in no argument: what JAX keeps of them goes with it.
    return jax.jit(
        lambda given, params, *limits: run_to_end(
            method, steps, path, Problem(functions, given[0], name, given[1]), params, *limits
        )
    )


# Convergence ----------------------------------------------------------------------------------------------------------


class Begun(NamedTuple):
    """Where a run began: params, and F there."""

    params: Any
    value: Array


def _size(x: Array) -> Array:
    """The largest |x_i|; 1 where that is 0."""
    size = jnp.max(jnp.abs(x))
    return jnp.where(size > 0, size, 1)


def stationary(
    method: SecondOrder, problem: Problem, begun: Begun, before: State | None, state: State, tolerance: Array | float
) -> Array:
    """Can F fall by no more than a share of it, tolerance^2, as far as one can predict? The tests that stand above."""
    flat, g = method.flat(problem, state.params), state.gradient
    x, x0 = flat.flatten(state.params), flat.flatten(begun.params)
    still = jnp.all(g == 0)
    if method.stationary is not None:
        return still | method.stationary(flat, state, x0, tolerance)
    if before is None:  # of one point alone nothing is predicted
        return still
    s, y = x - flat.flatten(before.params), g - before.gradient
    # of unit size: squares of what is small would be 0 in single precision
    sizes = _size(s), _size(y)
    s, y = s / sizes[0], y / sizes[1]
    bend = jnp.vdot(s, y)
    p = g * (sizes[0] / sizes[1]) * (jnp.vdot(s, s) / jnp.where(bend > 0, bend, 1))
    fall = jnp.vdot(g, p) / 2
    w = jnp.maximum(jnp.abs(x), jnp.abs(x0))
    share = jnp.max(jnp.abs(g) * w)
    eps = jnp.finfo(x.dtype).eps
    F, fallen = jnp.abs(state.value), jnp.maximum(begun.value - state.value, 0)
    small = (share <= tolerance * F) & (fall <= tolerance**2 * F)
    short = jnp.max(jnp.abs(p)) <= eps**0.25 * jnp.max(w)
    gone = (share <= eps**0.75 * fallen) & (fall <= eps**1.5 * fallen) & short
    # Where not even the last digits have moved no curvature was met; then the run's own moves say how large x is.
    told = (bend > 0) | (jnp.all(s == 0) & jnp.all((x != x0) | (g == 0)))
    return still | (told & (small | gone))


def still(
    method: SecondOrder, problem: Problem, begun: Begun, before: State, state: State, tolerance: Array | None = None
) -> Array:
    """The status after a step: CHANGE where F, or the parameters, no longer change by more than `tolerance`, by default
    epsilon, and F could not fall by more either.
    """
    eps = float(jnp.finfo(state.value.dtype).eps)
    predicted = tolerance is None or method.stationary is not None
    tolerance = eps if tolerance is None else tolerance
    change = jnp.maximum(jnp.abs(before.value - state.value), state.expected)
    settled = change <= tolerance * jnp.maximum(jnp.abs(before.value), jnp.abs(state.value))
    settled = settled | ((state.length <= tolerance) & (state.length > 0))
    # F may have settled to rounding while its gradient still goes to zero
    settled = settled & (norm(state.gradient) >= 0.5 * norm(before.gradient))
    if predicted:
        near = jnp.maximum(tolerance, eps ** (2 / 3)) ** 0.5
        settled = settled & stationary(method, problem, begun, before, state, near)
    return jnp.where(settled & (state.status != DIVERGED), CHANGE, state.status)


def run_to_end(method, steps, path, problem, params, *limits) -> Solution:
    """`minimize`, unchecked; in the path, 0 after the end."""
    start = begun(method, steps, problem, params, *limits)
    column = jnp.zeros(steps, start.value.dtype)
    rows = Path(column, column, column, jnp.zeros(steps, jnp.int32)) if path else None
    origin = Begun(start.params, start.value)

    def going(carry):
        return carry[0].status == RUNNING

    def one(carry):
        before, rows = carry
        state = stepped(method, steps, problem, origin, before, *limits)
        if path:
            row = Path(state.value, norm(state.gradient), state.length, state.counts.passes)
            rows = jax.tree.map(lambda column, x: lax.dynamic_update_index_in_dim(column, x, before.step, 0), rows, row)
        return state, rows

    state, rows = lax.while_loop(going, one, (start, rows))
    return solution(state, rows)


def solution(state: State, rows: Path | None) -> Solution:
    """What a state has come to."""
    return Solution(
        state.params, state.value, state.gradient, state.status, state.step, state.counts, state.damped, rows, state
    )


@precision.full
def begun(method: SecondOrder, steps: int, problem: Problem, params: Any, *limits: Array | None) -> State:
    """The start, judged."""
    state = method.init(params, problem)
    origin = Begun(state.params, state.value)
    return state._replace(status=_judged(state.status, method, problem, origin, None, state, steps, *limits))


@precision.full
def stepped(
    method: SecondOrder, steps: int, problem: Problem, begun: Begun, before: State, *limits: Array | None
) -> State:
    """One step, judged by the limits: goal, gradient and change tolerance, evaluations."""
    state = method.update(before, problem)
    ended = still(method, problem, begun, before, state, limits[2])
    return state._replace(status=_judged(ended, method, problem, begun, before, state, steps, *limits))


def _judged(ended, method, problem, begun, before, state, steps, goal, gradient_tolerance, change_tolerance, most):
    """The status: what the method says of itself, or which limit is met."""
    if gradient_tolerance is None:
        tolerance = min(float(jnp.finfo(state.value.dtype).eps) ** 0.5, 1e-5)
        flat = stationary(method, problem, begun, before, state, tolerance)
    else:
        flat = jnp.max(jnp.abs(state.gradient)) <= gradient_tolerance
    ended = jnp.where(flat, GRADIENT, ended)
    ended = method.verdict((state if before is None else before).memory, state.memory, ended)
    spent = (state.step >= steps) | (state.counts.evaluations >= most)
    ended = jnp.where((ended == RUNNING) & spent, BUDGET_SPENT, ended)
    given = goal > -largest(state.value.dtype)  # else F that falls without end would arrive
    ended = jnp.where(given & (state.value <= goal), GOAL, ended)
    return jnp.where(state.status == DIVERGED, DIVERGED, ended).astype(jnp.int32)
