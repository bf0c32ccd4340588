"""How a quantity is declared, and `compute`, which computes several at once."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import jax
from jax import Array
from jax.typing import ArrayLike

from functional_nn import checks, registry
from functional_nn.gradients import backprop, rules
from functional_nn.gradients.views import BLOCK, BUDGET, Examples, View, check_budget, fitting, in_blocks, prepare
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params
from functional_nn.registry import Registry


@dataclass(frozen=True)
class Whole:
    """All examples of a call, for what a quantity computes after its blocks.

    Attributes:
        network: The network.
        loss: The loss, or None.
        params: Parameters.
        examples: The examples, prepared.
        total: What the parts of F sum to: 1 for a mean, the sum of the weights for a sum.
        block: Examples swept at once, or None for all.

    Example:
        A quantity whose `finish` reads the number of parameters:

        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> from functional_nn import registry
        >>> network = fnn.multilayer((1, 1), ("linear",))
        >>> data = network.init(jax.random.key(0)), jnp.ones((2, 1)), jnp.ones((2, 1))
        >>> with registry.temporarily():  # so that this example leaves no name behind
        ...     @fnn.quantities.register(finish=lambda ones, whole: ones / whole.size)
        ...     def inverse_size(view):
        ...         return jnp.ones(len(view.part))
        ...     inverse_size(network, "mean_square_error", *data).tolist()
        [0.5, 0.5]
    """

    network: Network
    loss: Loss | None
    params: Params
    examples: Examples
    total: Array | float
    block: int | None

    @property
    def count(self) -> int:
        """Number of examples, Q."""
        return len(self.examples.part)

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


class Declaration(NamedTuple):
    """A declared quantity. options: {name: default}, `inspect.Parameter.empty` where an option is required."""

    measure: Callable[..., Any]
    adds: bool
    finish: Callable[..., Any] | None
    reads_loss: bool
    elements: Callable[..., int] | None
    instead: str
    options: dict[str, Any]


Result = TypeVar("Result")
Returned = TypeVar("Returned", covariant=True)


class Quantity(Protocol[Returned]):
    """What `register` returns: a function of a network, a loss, parameters and data."""

    __name__: str

    def __call__(
        self,
        network: Network,
        loss: Loss | str | None,
        params: Params,
        inputs: Inputs,
        targets: ArrayLike | None = None,
        *,
        weights: ArrayLike | None = None,
        block: int | None = BLOCK,
        budget: int = BUDGET,
        rule: rules.Given = "exact",
        rule_key: Array | None = None,
        **options: Any,
    ) -> Returned: ...


_registry: Registry[Declaration] = Registry("quantity", Declaration)
_SHARED = ("weights", "block", "budget", "rule", "rule_key")
_OPTIONS = {  # how each option is checked, before anything is computed
    "max_norm": lambda owner, value: checks.constant(owner, "max_norm", value, *checks.POSITIVE),
    "noise_multiplier": lambda owner, value: checks.constant(owner, "noise_multiplier", value, *checks.NON_NEGATIVE),
    "saturation": lambda owner, value: checks.constant(owner, "saturation", value, *checks.NON_NEGATIVE),
    "samples": lambda owner, value: checks.integer(owner, "samples", value, 1),
    "shared": lambda owner, value: checks.one_of(owner, "shared", value, ("expand", "reduce")),
    "of": lambda owner, value: checks.one_of(owner, "of", value, ("outputs", "net_inputs")),
    "key": lambda owner, value: checks.prng_key("key", value),
}


def names() -> tuple[str, ...]:
    """Returns the names of all quantities that `compute` knows.

    Example:
        >>> import functional_nn as fnn
        >>> "per_example_norms" in fnn.quantities.names()
        True
    """
    return _registry.names()


@overload
def register(
    *,
    adds: bool = ...,
    finish: None = ...,
    reads_loss: bool = ...,
    elements: Callable[..., int] | None = ...,
    instead: str = ...,
) -> Callable[[Callable[..., Result]], Quantity[Result]]: ...
@overload
def register(
    *,
    adds: bool = ...,
    finish: Callable[..., Result],
    reads_loss: bool = ...,
    elements: Callable[..., int] | None = ...,
    instead: str = ...,
) -> Callable[[Callable[..., Any]], Quantity[Result]]: ...
def register(
    *,
    adds: bool = False,
    finish: Callable[..., Any] | None = None,
    reads_loss: bool = True,
    elements: Callable[..., int] | None = None,
    instead: str = "",
) -> Callable[[Callable[..., Any]], Quantity[Any]]:
    """Makes a function of a block of examples a quantity, which `compute` knows by the function's name. A decorator.

    The decorated function is `measure(view, *, options)`: `view` is a `View` of one block of examples, and its
    keyword-only parameters are the quantity's options. What replaces it takes `(network, loss, params, inputs,
    targets)`, those options, and the options of `compute`.

    Args:
        adds: False if `measure` returns rows (Q, ...), which are put side by side; True if it returns sums over the
            block's examples, weighted by `view.part`.
        finish: `finish(measured, whole, **options)` makes the result from what all blocks returned; `whole` is a
            `Whole`. Not needed if that is the result already.
        reads_loss: False if the quantity needs neither loss nor targets.
        elements: `elements(whole, **options)` returns how many numbers the result has, for the check of the budget.
        instead: What to use instead, for the error message where the result is above the budget.

    Returns:
        The decorator.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> from functional_nn import registry
        >>> network = fnn.multilayer((3, 2), ("tanh",))
        >>> data = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.zeros((5, 2))
        >>> with registry.temporarily():  # so that this example leaves no name behind
        ...     @fnn.quantities.register()
        ...     def largest_outputs(view):
        ...         "The largest output of each example, (Q,)."
        ...         return jnp.max(view.trace.activations[view.network.output.name], axis=-1)
        ...     largest_outputs(network, "mean_square_error", *data, block=2).shape
        ...     sorted(fnn.quantities.compute(network, "mean_square_error", *data, ("largest_outputs", "variance")))
        (5,)
        ['largest_outputs', 'variance']
    """

    def declare(measure: Callable[..., Any]) -> Quantity[Any]:
        name = measure.__name__
        own = [p for p in inspect.signature(measure).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = {p.name: p.default for p in own}
        declaration = Declaration(measure, adds, finish, reads_loss, elements, instead, options)
        _registry.add(name, lambda: declaration)

        def function(
            network: Network, loss: Any, params: Params, inputs: Inputs, targets: Any = None, **settings: Any
        ) -> Any:
            return compute(network, loss, params, inputs, targets, (name,), **settings)[name]

        shared = inspect.signature(compute).parameters
        first = [shared[each] for each in ("network", "loss", "params", "inputs", "targets")]
        first[-1] = first[-1].replace(default=inspect.Parameter.empty if reads_loss else None)
        parameters = [*first, *own, *(shared[each] for each in _SHARED)]
        returned = inspect.signature(measure if finish is None else finish).return_annotation
        functools.update_wrapper(function, measure)
        del function.__wrapped__  # type: ignore[attr-defined]
        function.__doc__ = _with_shared_arguments(inspect.cleandoc(measure.__doc__ or ""), reads_loss)
        function.__signature__ = inspect.Signature(parameters, return_annotation=returned)
        function.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": returned}
        return function

    return declare


_DATA_ARGUMENTS = """
    network: The network.
    loss: {loss}
    params: Its parameters.
    inputs: `(Q, *P, R)`, or `{{name: (Q, *P, R)}}`.
    targets: {targets}
"""
_SHARED_ARGUMENTS = """
    weights: Weights of the examples, as in `compute`.
    block: Number of examples swept at once, as in `compute`.
    budget: Bytes that the result may take.
    rule: Learning rule, as in `compute`.
    rule_key: Random key for a random rule.
"""


def _with_shared_arguments(text: str, reads_loss: bool) -> str:
    """Puts the arguments of every quantity around a quantity's own ones, in the Args section of its docstring."""
    before, section, after = text.partition("\nArgs:\n")
    own, gap, after = after.partition("\n\n") if section else ("", "", "")
    if not section:
        before, section, after = text.partition("\nReturns:\n")
        gap, after = "\n\n", section.lstrip() + after
    first = _DATA_ARGUMENTS.format(
        loss="A loss, or its name." if reads_loss else "Not needed; may be None.",
        targets="`(Q, *P, S)`, or integer classes `(Q, *P)`." if reads_loss else "Not needed; may be None.",
    )
    arguments = "\n".join(filter(None, (first.strip("\n"), own, _SHARED_ARGUMENTS.strip("\n"))))
    return f"{before}\nArgs:\n{arguments}{gap}{after}".rstrip()


def compute(
    network: Network,
    loss: Loss | str | None,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike | None = None,
    names: Iterable[str] = (),
    *,
    weights: ArrayLike | None = None,
    block: int | None = BLOCK,
    budget: int = BUDGET,
    rule: rules.Given = "exact",
    rule_key: Array | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Computes several quantities at once, from one trace and one run of each sweep.

    Args:
        network: The network.
        loss: A loss, or its name; None if no quantity reads it.
        params: Its parameters.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`; None if no quantity reads them.
        names: Names of the quantities; `names()` lists them.
        weights: Weights of the examples (Q,), in everything that sums over them; or of the outputs' positions `(Q,
            *P)`.
        block: Examples swept at once; None for all. Fewer are taken if their signals would use more than 256 MiB, on a
            CPU 32 MiB. A larger batch goes in blocks, with the same result, so that only results grow with Q.
        budget: Bytes that one result may take.
        rule: A learning rule of `fnn.rules` for the way back from the loss, so that s_q is what the rule sends back.
            Jacobians and curvature stay exact. If a rule makes the whole gradient by itself (`fnn.methods`), everything
            is exact except `alignment` and `rule_noise`.
        rule_key: Random key for a random rule.
        **options: Options of the quantities, such as max_norm=1.0; each goes to all quantities that have it.

    Returns:
        {name: result}.

    Raises:
        ValueError: As `backpropagate`; for an unknown quantity, a missing option or one out of range; for a quantity
            that the loss does not support; for a result above the budget.
        TypeError: For an option that none of the quantities takes.

    Note:
        Outside `jax.jit`, what goes in blocks is compiled again by every call.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> names = ("per_example_norms", "clipped_gradient")
        >>> found = fnn.quantities.compute(network, "cross_entropy", *data, names, max_norm=0.5)
        >>> found["per_example_norms"].shape
        (6,)
    """
    options = {option: value for option, value in options.items() if value is not None}
    declared = _declared(names, options)
    checks.integer("compute", "budget", budget, 1)
    reading = ", ".join(name for name, quantity in declared.items() if quantity.reads_loss)
    for what, value in (("loss", loss), ("targets", targets)):
        if reading and value is None:
            raise ValueError(f"{what}: {reading} cannot do without")
    block = None if block is None else checks.integer("", "block", block, 1)
    rule = rules.get(rule)
    network = backprop.check_trainable(network, rule)
    rules.check_initialized(rule, network, params)
    drawing = rules.is_random(rule)
    if drawing and rule_key is None:
        raise ValueError(f"rule: {rules.written(rule)} draws; give rule_key=jax.random.key(...)")
    examples, total = prepare(network, loss, params, inputs, targets, weights)
    block = fitting(network, params, block)
    loss = None if loss is None else losses.get(loss)
    whole = Whole(network, loss, params, examples, total, block)
    settings = {
        name: {option: options.get(option, default) for option, default in quantity.options.items()}
        for name, quantity in declared.items()
    }
    _check_budget(declared, settings, whole, budget)

    def measure(some: Examples):
        view = View(
            network,
            loss,
            params,
            some,
            total,
            input_gradients="input_gradients" in declared,
            rule=rule,
            rule_key=jax.random.fold_in(rule_key, some.number[0]) if drawing else None,
        )
        measured = {name: quantity.measure(view, **settings[name]) for name, quantity in declared.items()}
        rows = {name: value for name, value in measured.items() if not declared[name].adds}
        return rows, {name: value for name, value in measured.items() if declared[name].adds}

    rows, sums = in_blocks(measure, examples, block)
    measured = rows | sums
    return {
        name: measured[name] if quantity.finish is None else quantity.finish(measured[name], whole, **settings[name])
        for name, quantity in declared.items()
    }


def check_names(requested: Iterable[str], options: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Raises for an unknown quantity, for options that none of them takes, and for a missing option."""
    accepted = {name: _declaration(name).options for name in requested}
    taken = [option for own in accepted.values() for option in own]
    for option in options:
        if option not in taken:
            raise TypeError(f"{', '.join(accepted)}: " + registry.unknown("option", option, (*_SHARED, *taken)))
    for name, own in accepted.items():
        for option, default in own.items():
            if default is inspect.Parameter.empty and option not in options:
                raise ValueError(f"{name} needs {option}=...")


def _declaration(name: str) -> Declaration:
    return _registry.factory(name if isinstance(name, str) else str(name))()


def _declared(names: Iterable[str], options: dict[str, Any]) -> dict[str, Declaration]:
    requested = () if isinstance(names, str) else tuple(names)
    if not requested:
        raise ValueError(f"names: expected a sequence of quantities, such as ('per_example_norms',), got {names!r}")
    check_names(requested, options)
    declared = {name: _declaration(name) for name in requested}
    for name, quantity in declared.items():
        for option in quantity.options.keys() & options.keys() & _OPTIONS.keys():
            _OPTIONS[option](name, options[option])
    return declared


def _check_budget(declared: dict[str, Declaration], settings: dict[str, dict], whole: Whole, budget: int) -> None:
    itemsize = jax.tree.leaves(whole.params)[0].dtype.itemsize
    for name, quantity in declared.items():
        if quantity.elements is not None:
            check_budget(name, quantity.elements(whole, **settings[name]) * itemsize, budget, quantity.instead)
