"""The `SecondOrder` record: a pair of pure functions, `init(params, problem) -> state` and `update(state, problem)`.

A method is written as two functions on vectors: `evaluate`, which computes what it must know at a point, and `move`,
which makes one step from there. `convergence` says when a method has converged, `minimization` runs one to its end, and
`line_steps` holds what methods with a line search have in common.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import jax.numpy as jnp
from jax import Array

from functional_nn import checks, precision
from functional_nn.optimizers.optimizer import BatchFunctions, check_params
from functional_nn.optimizers.second_order.convergence import status_after_step
from functional_nn.optimizers.second_order.problem import FlatProblem, Problem, check_problem
from functional_nn.optimizers.second_order.state import (
    DIVERGED,
    RUNNING,
    SEARCH_FAILED,
    Evaluation,
    Move,
    Start,
    State,
    add_counts,
    counts,
)
from functional_nn.reductions import norm
from functional_nn.registry import Registry
from functional_nn.rows import Constants, Described

BUDGET = 2 * 2**30  # bytes that a method's largest matrix may take


def keep_status(before: Any, after: Any, status: Array) -> Array:
    """Returns the status as it is, whatever the memories before and after the step."""
    return status


def no_matrix(size: int, count: int | None) -> int:
    """Returns 0: the method keeps no matrix."""
    return 0


def square_matrix(size: int, count: int | None) -> int:
    """Returns P^2, the elements of a Hessian or its inverse."""
    return size**2


@dataclass(frozen=True, eq=False)
class SecondOrder(Described):
    """A method that may evaluate more than one gradient a step.

    Attributes:
        name: Its name, as in `optimizers.get`.
        evaluate: evaluate(flat problem, x, memory or None) returns the `Evaluation` at x.
        move: move(flat problem, evaluation) returns the `Move` of one step.
        constants: The constants that it was made with, by name.
        requires: The fields of `Functions` that the problem must provide.
        full_batch: True if each update builds on the last, so that mini-batches are not supported.
        elements: elements(P, N) returns the number of elements of its largest matrix; N is None for a problem without
            residuals.
        budget: The bytes that this matrix may take; a larger one is refused.
        stationary: stationary(flat problem, state, x_0, tolerance) returns whether F cannot fall further by the
            method's own model. None where there is no such model; then the change of the gradient decides (see
            `second_order.convergence`).
        verdict: verdict(memory before a step, memory after, status) returns the status, for methods that have a say on
            convergence.
        bounded: True if it keeps a problem's bounds.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem, method = optimizers.problem_from(lambda x: jnp.sum((x - 1) ** 2)), optimizers.newton()
        >>> state = method.update(method.init(jnp.zeros(2), problem), problem)
        >>> [round(float(x), 3) for x in state.params]
        [1.0, 1.0]
    """

    name: str
    evaluate: Callable[[FlatProblem, Array, Any], Evaluation]
    move: Callable[[FlatProblem, Evaluation], Move]
    constants: dict[str, Any]
    requires: tuple[str, ...] = ()
    full_batch: bool = True
    elements: Callable[[int, int | None], int] = no_matrix
    budget: int = BUDGET
    stationary: Callable[[FlatProblem, State, Array, Array | float], Array] | None = None
    verdict: Callable[[Any, Any, Array], Array] = keep_status
    bounded: bool = False
    one_device: ClassVar[bool] = True  # the matrices of its problem are not distributed over several

    def __repr__(self) -> str:
        return f"<optimizer {self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})>"

    @precision.full
    def init(self, params: Any, problem: Problem) -> State:
        """Returns the state at the start.

        Raises ValueError for a problem that does not provide what the method requires.
        """
        check_params(self.name, params)
        flat = self.flat(problem, params)
        first = self.evaluate(flat, flat.flatten(params), None)
        zero = jnp.zeros((), jnp.int32)
        finite = jnp.isfinite(first.value) & jnp.all(jnp.isfinite(first.gradient))
        nothing = jnp.zeros_like(first.value)
        return State(
            params,
            zero,
            first.value,
            first.gradient,
            nothing,
            nothing,
            jnp.where(finite, RUNNING, DIVERGED).astype(jnp.int32),
            first.counts,
            zero,
            first.memory,
        )

    @precision.full
    def update(self, state: State, problem: Problem, renewed: bool = False) -> State:
        """Returns the state after one step.

        A state that has ended is updated, too; `minimize` and `fit` do not do that.

        Args:
            state: The state before.
            problem: The problem that the state was made for.
            renewed: True if `renew` comes before the next update, so that the end of this step need not be evaluated.
        """
        flat = self.flat(problem, state.params)
        flat.evaluates_end = not renewed
        x = flat.flatten(state.params)
        move = self.move(flat, Evaluation(x, state.value, state.gradient, state.memory, counts()))
        end = move.evaluation
        finite = jnp.isfinite(end.value) & jnp.all(jnp.isfinite(end.gradient))
        length = norm(move.tried) / jnp.maximum(norm(x), jnp.finfo(x.dtype).tiny)
        status = jnp.where(jnp.asarray(move.failed), SEARCH_FAILED, RUNNING)
        return State(
            flat.unflatten(end.x),
            state.step + 1,
            end.value,
            end.gradient,
            length,
            jnp.asarray(move.expected, end.value.dtype),
            jnp.where(finite, status, DIVERGED).astype(jnp.int32),
            add_counts(state.counts, end.counts),
            state.damped + jnp.asarray(move.damped, jnp.int32),
            end.memory,
        )

    @precision.full
    def renew(self, state: State, problem: Problem) -> State:
        """Returns the state at the same parameters in another problem: that of the next mini-batch."""
        flat = self.flat(problem, state.params)
        new = self.evaluate(flat, flat.flatten(state.params), state.memory)
        return state._replace(
            value=new.value, gradient=new.gradient, memory=new.memory, counts=add_counts(state.counts, new.counts)
        )

    def flat(self, problem: Problem, params: Any) -> FlatProblem:
        """Returns the problem on vectors. Raises as `init`."""
        check_problem(self.name, problem)
        for function in self.requires:
            if getattr(problem.functions, function) is None:
                raise ValueError(f"{self.name}: {problem!r} {_IF_NOT_PROVIDED[function]}")
        flat = FlatProblem(problem, params)
        if flat.bounds is not None and not self.bounded:
            raise ValueError(
                f"{self.name}: {problem!r} has bounds, which only levenberg_marquardt with its trust region keeps; "
                "give it residuals, or leave the bounds out"
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

    # The interface of a training loop, which first-order methods have, too

    def begin(self, params: Any, problem: Callable[[], Problem]) -> State:
        """Returns the state before the first update; the method evaluates `problem()`, the first batch's."""
        return self.init(params, problem())

    def training_step(self, functions: BatchFunctions) -> Callable:
        """Returns the step (state, batch) -> (state, metrics); the metrics are those before the step."""
        problem_of = functions.problem()

        @precision.full
        def step(state: State, batch: Any):
            problem = problem_of(batch)
            if not self.full_batch:
                state = self.renew(state, problem)
            metrics = functions.metrics(state.params, state.value, state.gradient, batch)
            after = self.update(state, problem, renewed=not self.full_batch)
            if self.full_batch:
                status = status_after_step(self, problem, Start(state.params, state.value), state, after)
                after = after._replace(status=self.verdict(state.memory, after.memory, status).astype(jnp.int32))
            return after, metrics

        return step

    def ended(self, state: State) -> Array:
        """Returns whether the method has ended the run, int32: 0, or minus its status."""
        return -state.status

    def point(self, state: State) -> Any:
        """Returns the parameters, where the gradient is taken."""
        return state.params

    def observe(self, state: State, loss: Array) -> State:
        """Returns the state as it is: the loss after an epoch is not used."""
        return state

    def check_start(self, params: Any) -> None:
        """Raises ValueError naming a parameter that is not finite."""
        for path, x in checks.by_path(params).items():
            checks.finite(f"params: {path}", x)

    def check_gradient(self, by_hand: bool, rule: str | None) -> None:
        """Raises ValueError unless the gradient is the hand-written one; `rule` names a rule that replaces it."""
        if rule is not None:
            raise ValueError(
                f"gradient: {self.name} requires exact derivatives, which the {rule} rule does not compute; use a "
                "first-order method, such as 'gd(1)'"
            )
        if not by_hand:
            raise ValueError(
                f"gradient: {self.name} requires more than a gradient, all of it hand-written; for automatic "
                "derivatives use optimizers.minimize and optimizers.problem_from(function)"
            )

    def check_plan(self, plan: Any, updates: int, epochs: int) -> None:
        """Raises ValueError for batches, `updates` an epoch, that the method does not support."""
        if self.full_batch and plan.size is not None:
            supporting = [name for name in names() if "minibatches" in inspect.signature(factory(name)).parameters]
            raise ValueError(
                f"{self.name} builds each step on the last, on all examples: use plan=training.batch() (on the command "
                f"line, --batch-size 0), or one of {', '.join(supporting)} with minibatches=True; got {updates} "
                "batches an epoch"
            )
        if plan.importance is not None:
            raise ValueError(f"plan: {self.name} does not take importance(); use minibatch(size)")


_IF_NOT_PROVIDED = {  # the end of the message, by the function that a problem does not provide
    "residuals": "has no residuals whose squares sum to F; use a square error without regularizer "
    "(bayesian_regularization brings its own), problem_from(residuals=...), or hessian_free, lbfgs and others, which "
    "need none",
    "gauss_newton_product": "has no Gauss-Newton matrix; use problem_from(residuals=...), a network, or newton",
    "factors": "has no layers to take Kronecker factors of; use a network, or hessian_free",
}

_registry: Registry[SecondOrder] = Registry("optimizer", SecondOrder)


def register(factory: Callable[Constants, SecondOrder]) -> Callable[Constants, SecondOrder]:
    """Gives a function that returns a second-order method its name. A decorator.

    Afterwards the name may be used wherever a second-order method is expected. Equal constants
    return the same object, so that compiled programs are used again.

    Args:
        factory: The function; its name is the name of the second-order method, and its arguments are the constants.

    Returns:
        The same function, its results cached.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> from functional_nn.optimizers import second_order
        >>> @second_order.register
        ... def short_memory(history: int = 2):
        ...     return second_order.lbfgs(history)
        >>> second_order.get("short_memory").name
        'lbfgs'
    """
    return _registry.register(factory)


def names() -> tuple[str, ...]:
    """Returns the names of the registered second-order methods.

    Example:
        >>> from functional_nn.optimizers import second_order
        >>> "newton" in second_order.names()
        True
    """
    return _registry.names()


def knows(method: Any) -> TypeGuard[str | SecondOrder]:
    """Returns whether this is a second-order method, or text that begins with the name of one.

    Args:
        method: Any object.

    Returns:
        A bool.

    Example:
        >>> from functional_nn.optimizers import second_order
        >>> second_order.knows("lbfgs(history=5)"), second_order.knows("unknown(1)")
        (True, False)
    """
    return _registry.knows(method)


def factory(name: str) -> Callable[..., SecondOrder]:
    """Returns the function with this bare name.

    Args:
        name: A name without arguments.

    Returns:
        The function that returns the second-order method for its constants.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> from functional_nn.optimizers import second_order
        >>> second_order.factory("lbfgs") is second_order.lbfgs
        True
    """
    return _registry.factory(name)


def get(method: str | SecondOrder) -> SecondOrder:
    """Returns the second-order method with this name.

    Args:
        method: A name, with arguments where wanted, such as "lbfgs(history=5)"; a second-order method is returned as it
        is.

    Returns:
        The second-order method.

    Raises:
        ValueError: The name is unknown, or its arguments are refused.
        TypeError: It is neither a name nor a second-order method.

    Example:
        >>> from functional_nn.optimizers import second_order
        >>> second_order.get("lbfgs(history=5)").constants["history"]
        5
    """
    return _registry.get(method)


def constant(method: str, name: str, value: Any, accepted: tuple[Callable, str] = checks.NON_NEGATIVE) -> Any:
    """Returns a checked constant: a Python float for plain numbers; arrays and tracers as they are."""
    return checks.constant(method, name, value, *accepted)


def evaluation_at(
    flat: FlatProblem, evaluate: Callable, current: Evaluation, x: Array, value: Array, memory: Any
) -> Evaluation:
    """Returns the evaluation at x, where F is known already; only that value where `renew` comes next."""
    return evaluate(flat, x, memory) if flat.evaluates_end else Evaluation(x, value, current.gradient, memory, counts())
