"""The `Optimizer` record, and what turns a rule for one array into an optimizer of all parameters.

`first_order` holds the rules. Parameters keep their dtype; what an optimizer remembers is kept, and steps are computed,
in at least float32. Where the change is zero a parameter stays bitwise as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.optimizers.constants import Constant, at_step, check_names, in_dtype, of_each_array
from functional_nn.precision import at_least_float32
from functional_nn.rows import Described, FrozenMapping

State = Any


class BatchFunctions(NamedTuple):
    """The functions of a batch that a training step is built from; a method makes only those that it needs.

    Attributes:
        gradient: gradient() returns the function (params, batch) -> (metrics, gradients).
        problem: problem() returns the function batch -> `second_order.Problem`.
        metrics: metrics(params, value, gradient, batch) returns the same metrics, for a method that has F and its
            gradient (P,) already.
    """

    gradient: Callable[[], Callable[[Any, Any], tuple[Any, Any]]]
    problem: Callable[[], Callable[[Any], Any]]
    metrics: Callable[[Any, Array, Array, Any], Any]


def _params_of(state: State) -> Any:
    """Returns the parameters, where the gradient is taken."""
    return state.params


def _unchanged(state: State, loss: Array) -> State:
    """Returns the state as it is: this optimizer does not use the loss."""
    return state


@dataclass(frozen=True, eq=False)
class Optimizer(Described):
    """A first-order method as a pair of pure functions, `init` and `update`.

    Every state has the fields `params` and `step`.

    Attributes:
        name: Its name, as in `optimizers.get`.
        init: init(params) returns the first state.
        update: update(state, gradients) returns the next state.
        constants: The rates and decays that it was made with, by name.
        point: point(state) returns the parameters at which the next gradient is to be taken: `state.params`, except
            for methods that look ahead or report an average.
        observe: observe(state, loss) returns the state after an epoch with this loss, for methods that use it.
        full_batch: True if the method does not support mini-batches.
        gathers: The number of gradients that one update of the parameters takes.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> optimizer = optimizers.gd(0.5)
        >>> state = optimizer.init({"w": jnp.ones(2)})
        >>> state = optimizer.update(state, {"w": jnp.array([1.0, -1.0])})
        >>> state.params["w"].tolist(), int(state.step)
        ([0.5, 1.5], 1)
    """

    name: str
    init: Callable[[Any], State]
    update: Callable[[State, Any], State]
    constants: dict[str, Any]
    point: Callable[[State], Any] = _params_of
    observe: Callable[[State, Array], State] = _unchanged
    full_batch: bool = False
    gathers: int = 1
    one_device: ClassVar[bool] = False  # must all examples of a batch be on one device?

    def __repr__(self) -> str:
        return f"<optimizer {self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})>"

    # The interface of a training loop, which second-order methods have, too

    def begin(self, params: Any, problem: Callable[[], Any]) -> State:
        """Returns the state before the first update; `problem()`, the first batch's, is not called."""
        return self.init(params)

    def training_step(self, functions: BatchFunctions) -> Callable:
        """Returns the step (state, batch) -> (state, metrics); the metrics are those before the step."""
        gradient = functions.gradient()

        def step(state: State, batch: Any):
            metrics, grads = gradient(self.point(state), batch)
            return self.update(state, grads), metrics

        return step

    def ended(self, state: State) -> Array:
        """Returns whether the method itself has ended the run, int32: never, so always 0."""
        return jnp.zeros((), jnp.int32)

    def check_start(self, params: Any) -> None:
        """Raises ValueError naming a parameter that is nan; -inf is allowed, since it may mask a class."""
        for path, x in checks.by_path(params).items():
            index = checks.first(x, lambda block: np.isnan(block)) if hasattr(x, "dtype") else None
            if index is not None:
                raise ValueError(f"params: {path} has nan at index {index}")

    def check_gradient(self, by_hand: bool, rule: str | None) -> None:
        """Accepts every gradient, and every learning rule that replaces it."""

    def check_plan(self, plan: Any, updates: int, epochs: int) -> None:
        """Raises ValueError for batches, `updates` an epoch, that the method does not support."""
        if self.gathers > updates * epochs:
            raise ValueError(
                f"accumulate: the parameters move once in {self.gathers} updates, but the run has {updates * epochs}: "
                f"{epochs} epochs of {updates}"
            )
        if self.full_batch and updates > 1:
            raise ValueError(
                f"{self.name} compares the signs of successive gradients, which mini-batches make random: use "
                "plan=training.batch() (on the command line, --batch-size 0), or make it with minibatches=True to use "
                f"them anyway; got {updates} batches an epoch"
            )


# A rule for one array -------------------------------------------------------------------------------------------------


def elementwise(
    name: str,
    state_type: Any,
    rule: Callable[..., tuple],
    constants: dict[str, Constant],
    *,
    start: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Optimizer:
    r"""Returns the optimizer that applies a rule to each parameter array separately.

    Args:
        name: The optimizer's name.
        state_type: The NamedTuple of its states: params, step, and the fields that the rule remembers.
        rule: rule(now, g, \*remembered) returns (change, \*remembered). `now` has the attributes k, x and every
            constant at this step, in the dtype of the arithmetic.
        constants: The constants by name, already checked.
        start: The initial values of remembered fields; 0 for those that are not named.
        options: Other arguments that the optimizer was made with, for `Optimizer.constants`.
    """
    fields, start = state_type._fields[2:], start or {}
    arguments = constants | (options or {})

    def init(params):
        check_params(name, params)
        for constant, value in arguments.items():
            if isinstance(value, FrozenMapping):
                check_names(f"{name}: {constant}", value, params)
        leaves, structure = jax.tree.flatten(params)

        def filled(value):
            values = zip(leaves, of_each_array(value, params), strict=True)
            return structure.unflatten(jnp.full(x.shape, initial, at_least_float32(x.dtype)) for x, initial in values)

        return state_type(params, jnp.zeros((), jnp.int32), *(filled(start.get(field, 0)) for field in fields))

    def update(state, grads):
        check_state(name, state_type, state)
        check_gradients(state.params, grads)
        step = state.step + 1
        values = {each: of_each_array(at_step(value, state.step), state.params) for each, value in constants.items()}
        params, structure = jax.tree.flatten(state.params)
        columns = [structure.flatten_up_to(tree) for tree in (grads, *state[2:])]
        rows = []
        for number, (x, g, *remembered) in enumerate(zip(params, *columns, strict=True)):
            dtype = at_least_float32(x.dtype)
            now = SimpleNamespace(k=step.astype(dtype), x=x.astype(dtype))
            vars(now).update({constant: in_dtype(value[number], dtype) for constant, value in values.items()})
            change, *remembered = rule(now, g.astype(dtype), *remembered)
            rows.append((moved(x, change), *remembered))
        params, *memories = (structure.unflatten(column) for column in zip(*rows, strict=True))
        return state_type(params, step, *memories)

    return Optimizer(name, init, update, arguments)


def moved(x: Array, change: Array) -> Array:
    """Returns x + change in the dtype of x, bitwise x where the change is zero."""
    # x + 0 is not always x: it would turn -0.0 into 0.0. (Asking whether change == 0 instead would use it twice, and
    # the compiler would then store it.)
    after = (x.astype(change.dtype) + change).astype(x.dtype)
    return jnp.where(after == x, x, after)


# Checks ---------------------------------------------------------------------------------------------------------------


def check_state(optimizer: str, expected: type, state: Any) -> None:
    """Raises TypeError unless the state is of the expected type."""
    if not isinstance(state, expected):
        raise TypeError(f"{optimizer}: expected the {expected.__name__} that init returns, got {type(state).__name__}")


def check_params(optimizer: str, params: Any) -> None:
    """Raises ValueError for parameters without arrays, TypeError for a leaf that is not an array of real numbers."""
    leaves = checks.by_path(params)
    if not leaves:
        raise ValueError(f"{optimizer}: params: expected at least one array")
    _check_real(f"{optimizer}: params", leaves)


def _check_real(label: str, leaves: dict) -> None:
    """Raises TypeError at the first leaf that is not an array of real numbers."""
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
