"""A network's hand-written gradient against `jax.grad`: `compare`, and `monitor` for a whole training run."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from functional_nn import checks, precision
from functional_nn.gradients import rules
from functional_nn.gradients.backprop import Backpropagation, backpropagate, check_trainable, loss_value
from functional_nn.gradients.comparison.bound import Examination, first_difference, flat, judge
from functional_nn.gradients.comparison.cost import measure_costs
from functional_nn.gradients.comparison.opinions import audit_kinks, opinions, zero_offsets
from functional_nn.gradients.comparison.records import Agreement, Angle, Cost, Difference
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params, dtype_of, forward, moved
from functional_nn.rows import cached


@precision.full
def compare(
    network: Network,
    loss: Loss | str,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike,
    *,
    manual: Callable[..., Backpropagation] = backpropagate,
    rule: rules.Given = "exact",
    key: Array | None = None,
    directions: int = 8,
    second_opinions: bool = True,
    costs: bool = False,
    jit: bool = True,
) -> Agreement:
    """Compares the hand-written gradient and sensitivities with `jax.grad`, and says which of the two is wrong.

    `print(fnn.compare(...))` shows a row for each array: the relative difference of the two and, next to it, the
    *bound*, the largest relative difference that rounding alone explains. A difference within its bound is agreement; a
    difference above it means that one of the two gradients is wrong. The bound is measured from the program and the
    numbers, so it needs no tolerance from the user; `help(fnn.comparison)` says how. Matrix products run at full
    precision on every device.

    Args:
        network: The network.
        loss: A loss, or its name.
        params: Parameters, in the dtype to compare in.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer classes `(Q, *P)`.
        manual: Your own `backpropagate`: `(network, loss, params, inputs, targets) -> Backpropagation`. It is called
            with prepared inputs, always a dict ({"input": (Q, R)} in a chain), in the parameters' dtype, and with
            `key=` if the network has dropout. Its `value`, its `gradients` in the parameters' structure and its
            `sensitivities` `{layer: (Q, *P, S)}` are compared.
        rule: A learning rule of `fnn.rules`, to see how far its gradient is from the exact one. What the rule learns is
            initialized where `params` do not hold it.
        key: Random key for random directions, for what a random rule draws, and for the neurons that dropout drops, the
            same on both sides. A fixed key by default.
        directions: Number of random directions for the third opinion and the Taylor test.
        second_opinions: Whether to run the third opinion and the Taylor test.
        costs: Whether to measure trace, compile and run time, FLOPs and memory.
        jit: Whether to compare compiled programs, which are kept for the next comparison of the same network and loss;
            otherwise operation by operation.

    Returns:
        The `Agreement`: a verdict, the differences with their bounds, and the further evidence.

    Raises:
        ValueError: As `backpropagate`; for targets that the loss does not accept; if `manual` returns arrays of other
            names or shapes.
        TypeError: If `manual` returns no `Backpropagation`.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> params, x = network.init(jax.random.key(0)), jnp.arange(12.0).reshape(4, 3) / 12
        >>> found = fnn.compare(network, "cross_entropy", params, x, jnp.array([0, 1, 1, 0]), jit=False)
        >>> found.verdict, found.third_opinion.says, found.taylor.says
        ('agree', 'both are right', 'right')

        A faulty gradient is found, and located:

        >>> def faulty(*args):
        ...     right = fnn.backpropagate(*args)
        ...     return right._replace(gradients=jax.tree.map(lambda g: 1.01 * g, right.gradients))
        >>> found = fnn.compare(network, "cross_entropy", params, x, jnp.array([0, 1, 1, 0]), manual=faulty, jit=False)
        >>> found.verdict, found.where.split(":")[0]
        ('differ', 'layer1/bias')
    """
    loss, rule = losses.get(loss), rules.get(rule)
    check_trainable(network, rule)
    loss.check_outputs(network.output.activation)
    inputs = network.prepare(params, inputs)
    targets = network.prepare_targets(inputs, targets, loss, dtype_of(params))
    loss.check_targets(targets)

    drawing_key = jax.random.key(0) if key is None else key
    drop_key = drawing_key if network.drops else None
    by_rule = not rules.is_exact(rule)
    if by_rule:
        if manual is not backpropagate:
            raise ValueError(
                "rule: it applies to the library's own backpropagate; give a manual that follows the rule, and no rule"
            )
        params, second_opinions = rules.begin(rule, network, params, drawing_key), False
        manual = _by_rule(rule, drawing_key if rules.is_random(rule) else drop_key)
    by_hand, automatically, objective = _callables(network, loss, manual, drop_key)
    examination = Examination(by_hand, automatically, (params, inputs, targets), _carries_rounding(loss), key, jit)
    parameters = examination.differences(lambda tree: tree["parameters"])
    backwards = [layer.name for layer in reversed(network.layers)]
    by_layer = {
        name: examination.differences(lambda t, name=name: {name: t["sensitivities"][name]}) for name in backwards
    }
    sensitivities = tuple(by_layer[name][0] for name in backwards)
    apart = [s.name for s in sensitivities if not s.agrees]
    through_time = {layer.name: layer.activation.through_time for layer in network.layers}
    positions = {
        name: examination.first_position_apart(lambda t, name=name: t["sensitivities"][name], last=through_time[name])
        for name in apart
    }
    kinks, convention = ((), 0.0) if by_rule else audit_kinks(network, loss, automatically, params, inputs, targets)
    total = examination.total(lambda tree: tree["parameters"])
    third = taylor = None
    if second_opinions:
        third, taylor = opinions(examination, objective, lambda tree: tree["parameters"], directions)
        if convention > total.bound:
            third = dataclasses.replace(third, says="the point is on a kink, where there is no derivative")
            taylor = dataclasses.replace(taylor, says="inconclusive")
        cut = [layer.name for layer in network.layers if layer.activation.cuts]
        if cut:
            says = f"{', '.join(cut)}: derivatives are cut off on purpose (truncate), so that they are not F's own"
            third, taylor = dataclasses.replace(third, says=says), dataclasses.replace(taylor, says="inconclusive")
    measured: tuple[Cost, ...] = ()
    if costs:

        def value_and_gradient(*args):
            return (lambda r: (r["value"], r["parameters"]))(by_hand(*args))

        callables = {"manual": value_and_gradient, "automatic": jax.value_and_grad(objective)}
        measured = measure_costs(callables, params, inputs, targets)
    # Where F itself has overflowed, as after a divergence, there is no gradient to be right or wrong about.
    defined = bool(np.isfinite(np.asarray(examination.automatic["value"]).astype(np.float64)))
    verdict = judge((total, *parameters, *sensitivities)) if defined else "inconclusive"
    return Agreement(
        title=f"{_describe(network)}, {loss.name} ({loss.reduction}), Q = {targets.shape[0]}",
        dtype=str(targets.dtype),
        verdict="another rule" if by_rule and verdict == "differ" else verdict,
        where=first_difference(parameters, sensitivities, positions) if defined else None,
        total=total,
        parameters=parameters,
        sensitivities=sensitivities,
        condition=examination.condition(lambda tree: tree["parameters"]),
        third_opinion=third,
        taylor=taylor,
        kinks=kinks,
        convention=convention,
        costs=measured,
        rule=rules.written(rule) if by_rule else None,
        angles=_angles(network, examination.manual, examination.automatic) if by_rule else (),
    )


def _describe(network: Network) -> str:
    inputs = "+".join("x".join(map(str, network.shapes[name])) for name, _ in network.inputs)
    return f"{inputs}-" + "-".join(f"{layer.size} {layer.activation.name}" for layer in network.layers)


@functools.partial(cached, size=32)
def _by_rule(rule: rules.Rule | rules.ByLayer, key: Array | None) -> Callable[..., Backpropagation]:
    """Returns `backpropagate` by that rule, with sensitivities of 0 where it has none."""

    def manual(network, loss, params, inputs, targets, **_):
        result = backpropagate(network, loss, params, inputs, targets, None, key, rule=rule)
        s = {name: result.sensitivities.get(name, jnp.zeros_like(n)) for name, n in result.trace.net_inputs.items()}
        return result._replace(sensitivities=s)

    return manual


def _angles(network: Network, manual: dict[str, Any], automatic: dict[str, Any]) -> tuple[Angle, ...]:
    def between(x, y) -> tuple[float, float]:
        x, y = flat(x), flat(y)
        sizes = np.linalg.norm(x), np.linalg.norm(y)
        if not (sizes[0] > 0 and sizes[1] > 0):
            return math.nan, math.nan
        # by the two halves of a rhombus, which small angles do not lose
        x, y = x / sizes[0], y / sizes[1]
        angle = 2 * math.atan2(np.linalg.norm(x - y), np.linalg.norm(x + y))
        return math.degrees(angle), float(sizes[0] / sizes[1])

    angles = []
    for layer in network.layers:
        parameters = (moved(tree["parameters"][layer.name]) for tree in (manual, automatic))
        s = (tree["sensitivities"][layer.name] for tree in (manual, automatic))
        angles.append(Angle(layer.name, *between(*parameters), *between(*s)))
    return tuple(angles)


def monitor(
    network: Network, loss: Loss | str, inputs: Inputs, targets: ArrayLike
) -> Callable[[Params], tuple[Difference, ...]]:
    """Returns a function that compares the gradient on fixed data, for use all through a training run.

    It is compiled once, and finds what `compare` finds about the gradient itself and no more.

    Args:
        network: The network.
        loss: A loss.
        inputs: As in `compare`.
        targets: As in `compare`.

    Returns:
        `params -> differences`: the total first, then each parameter array.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("tanh",))
        >>> loss = fnn.losses.mean_square_error()
        >>> watch = fnn.comparison.monitor(network, loss, jnp.ones((4, 3)), jnp.zeros((4, 2)))
        >>> [difference.agrees for difference in watch(network.init(jax.random.key(0)))]
        [True, True, True]
    """
    loss = losses.get(loss)
    by_hand, automatically, _ = _callables(network, loss, backpropagate, None)

    @precision.full
    def differences(params: Params) -> tuple[Difference, ...]:
        prepared = network.prepare(params, inputs)
        args = (params, prepared, network.prepare_targets(prepared, targets, loss, dtype_of(params)))
        examination = Examination(by_hand, automatically, args, _carries_rounding(loss), None, jit=True)

        def gradient(tree):
            return tree["parameters"]

        return (examination.total(gradient), *examination.differences(gradient))

    return differences


def _callables(network: Network, loss: Loss, manual: Callable[..., Backpropagation], key: Array | None):
    """Returns the manual gradient and sensitivities, the automatic ones, and the objective; of params, inputs, targets.

    key: for dropout. Without it, the same network and loss get the same three functions, and what was compiled of them.
    """
    return _by_hand(network, loss, manual, key), *_automatically(network, loss, key)


@functools.partial(cached, size=32)
def _by_hand(network: Network, loss: Loss, manual: Callable[..., Backpropagation], key: Array | None):
    dropout = {} if key is None else {"key": key}

    def by_hand(params, inputs, targets):
        result = manual(network, loss, params, inputs, targets, **dropout)
        _check_manual(network, params, targets, result)
        return {"value": result.value, "parameters": result.gradients, "sensitivities": dict(result.sensitivities)}

    return by_hand


@functools.partial(cached, size=32)
def _automatically(network: Network, loss: Loss, key: Array | None):
    """Returns the automatic gradient and the objective; they do not depend on what is compared with them."""
    dropout = {} if key is None else {"key": key}

    def objective(params, inputs, targets, offsets=None):
        dtype = dtype_of(params)  # complex while the third opinion steps into the imaginary
        inputs = {name: x if name in network.tokens else x.astype(dtype) for name, x in inputs.items()}
        targets = targets.astype(dtype)
        return loss_value(network, loss, forward(network, params, inputs, offsets or {}, **dropout), targets, None)

    def automatically(params, inputs, targets, offsets=None):
        # The derivative with respect to a zero added to each net input is that layer's sensitivity.
        zeros = zero_offsets(network, params, targets)
        offsets = zeros if offsets is None else jax.tree.map(jnp.add, zeros, offsets)
        value, (gradients, s) = jax.value_and_grad(objective, argnums=(0, 3))(params, inputs, targets, offsets)
        return {"value": value, "parameters": gradients, "sensitivities": s}

    return automatically, objective


def _check_manual(network: Network, params: Params, targets: Array, result: Any) -> None:
    """Raises TypeError or ValueError where `manual` returned what cannot be compared."""
    missing = [name for name in ("value", "gradients", "sensitivities") if not hasattr(result, name)]
    if missing:
        raise TypeError(
            "manual: expected a Backpropagation with value, gradients and sensitivities, as fnn.backpropagate returns; "
            f"got {type(result).__name__} without {missing[0]} (for a gradient alone, see compare_callables)"
        )
    examples = targets.shape[0]
    s = {name: (examples, *shape) for name, shape in network.net_shapes.items()}
    checks.same_shapes("manual's value", {"": jnp.shape(result.value)}, {"": ()}, "the loss")
    checks.same_shapes("manual's gradients", checks.shapes(result.gradients), checks.shapes(params), "the parameters")
    checks.same_shapes("manual's sensitivities", checks.shapes(dict(result.sensitivities)), s, "the layers")


def _carries_rounding(loss: Loss) -> tuple[bool, bool, bool]:
    # which of params, inputs and targets carry roundings; one-hot targets are labels, and are compared with 1
    return True, True, loss.targets != "one-hot"
