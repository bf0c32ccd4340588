"""Manual against automatic: how far apart two gradients are, which of them is wrong, where, and what each costs.

Letters: u the unit roundoff of the dtype, F the objective, g its gradient, d a direction.

What rounding alone may make of a difference is derived, not chosen: allowed = lambda u |delta|, where delta is how far
an array of the automatic gradient moves, in the root mean square, when every operation's result is moved at random by
as much as rounding may, u left out (`roundings.py`). It is as large as the terms that an array is summed from, also
where these leave nothing of each other. Independent roundings add up like a random walk: a rounding error is uniform
within +-u, its root mean square u / sqrt(3), so that lambda = 6 is over 7 standard deviations of the difference of two
gradients, each with its own.
"""

import csv
import dataclasses
import functools
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, precision
from functional_nn.gradients import factors, rules
from functional_nn.gradients.backprop import Backpropagation, backpropagate, check_trainable, loss_value
from functional_nn.gradients.roundings import displacements, unit_roundoff
from functional_nn.networks import activations, connections, losses
from functional_nn.networks.activations import Activation
from functional_nn.networks.connections import Connection, Factors, Shape
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params, dtype_of, forward, moved
from functional_nn.registry import cached

Verdict = Literal["agree", "differ", "inconclusive", "another rule"]
_LAMBDA = 6.0
_SAYS_LITTLE = 0.1  # a bound above this would pass gradients that are wrong by a tenth


def _record(cls):
    """A frozen dataclass that is a pytree: numbers are leaves, text and positions belong to its structure."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    static = (str, str | None, Verdict, tuple[int, ...])
    names = [f.name for f in dataclasses.fields(cls)]
    meta = [f.name for f in dataclasses.fields(cls) if f.type in static or f.metadata.get("static")]
    jax.tree_util.register_dataclass(cls, [n for n in names if n not in meta], meta)
    return cls


@_record
class Difference:
    """Two arrays side by side. error: ||manual - auto||; allowed: how large rounding alone may make it; relative and
    bound: the two over norm, ||auto||; largest, ulps: the largest difference of one element, absolutely and in units in
    the last place; index: where it is; manual, automatic: the two values there. undefined: elements that are nan or
    infinite in both, which are left out of all this.
    """

    name: str
    error: float
    allowed: float
    relative: float
    bound: float
    largest: float
    ulps: float
    index: tuple[int, ...]
    manual: float
    automatic: float
    norm: float
    undefined: int

    @property
    def agrees(self) -> bool:
        """Is the difference one that rounding explains? False for nan."""
        return self.error <= self.allowed

    @property
    def vanishes(self) -> bool:
        """True where the array itself is no larger than its rounding: its terms cancel."""
        return 0 < self.allowed and self.norm <= self.allowed


@_record
class ThirdOpinion:
    """Directional derivatives in float64, from the objective's values alone, and how far each gradient is from them."""

    method: str  # "complex step" or "central differences"
    says: str
    manual_error: float
    automatic_error: float
    accuracy: float  # what the method itself can be trusted to, relatively


@_record
class TaylorTest:
    """The slope in h of |F(x + h d) - F(x) - h g'd|: 2 for a right gradient, 1 for a wrong one (medians)."""

    says: Literal["right", "wrong", "inconclusive"] = dataclasses.field(metadata={"static": True})
    slope: float
    directions: int
    conclusive: int  # directions along which the remainder stood above rounding


@_record
class KinkAudit:
    """Net inputs of one layer (or outputs, for a loss with a kink) that sit where there is no derivative."""

    name: str
    at_kink: int
    within_rounding: int
    of: int


@_record
class Cost:
    """What one gradient costs: seconds (medians), FLOPs and bytes of temporaries as the compiler reports them."""

    name: str
    trace_seconds: float
    compile_seconds: float
    run_seconds: float
    flops: float
    temporary_bytes: int


@_record
class Angle:
    """What a rule gives for one layer beside the exact gradient: degrees between the two and the ratio of their norms,
    of the layer's parameters and of its sensitivities; nan where there are none.
    """

    name: str
    degrees: float
    ratio: float
    sensitivity_degrees: float
    sensitivity_ratio: float


@_record
class Agreement:
    """What `compare` found. Prints as a table; `to_csv` and `to_json` save it; a pytree of its numbers.

    verdict is by the gradient as a whole and each part of it; where is the first layer, counted from the output back,
    at which the two part. convention is how much the gradient would change under another derivative at the kinks. rule:
    the learning rule that was compared, None for the exact one; where it gives something else, the verdict is "another
    rule", which is no error, and angles say by layer how far it turns.
    """

    title: str
    dtype: str
    verdict: Verdict
    where: str | None
    total: Difference
    parameters: tuple[Difference, ...]
    sensitivities: tuple[Difference, ...]
    condition: float
    third_opinion: ThirdOpinion | None
    taylor: TaylorTest | None
    kinks: tuple[KinkAudit, ...]
    convention: float
    costs: tuple[Cost, ...]
    rule: str | None = None
    angles: tuple[Angle, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict a compared array: kind ("total", "parameter", "sensitivity") and `Difference`'s fields."""
        kinds = (("total", (self.total,)), ("parameter", self.parameters), ("sensitivity", self.sensitivities))
        return [{"kind": kind, **dataclasses.asdict(d)} for kind, differences in kinds for d in differences]

    def to_csv(self, path: str | Path) -> None:
        """Writes `rows` as CSV with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows()[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        Path(path).write_text(text.getvalue())

    def to_json(self, path: str | Path) -> None:
        """Writes the whole record as JSON; nan and infinities as null."""
        Path(path).write_text(json.dumps(finite_or_none(dataclasses.asdict(self)), indent=2) + "\n")

    def __str__(self) -> str:
        return _as_text(self)


@precision.full
def compare(
    network: Network,
    loss: Loss,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    manual: Callable[..., Backpropagation] = backpropagate,
    rule: rules.Given = "exact",
    key: Array | None = None,
    directions: int = 8,
    second_opinions: bool = True,
    costs: bool = False,
    jit: bool = True,
) -> Agreement:
    """The hand-written gradient and sensitivities against `jax.grad`'s, and everything that tells who is right.

    inputs (Q, *P, R) or {name: (Q, *P, R)}, targets (Q, *P, S), or classes (Q, *P). manual: another `backpropagate` to
    be tried, `(network, loss, params, inputs, targets) -> Backpropagation`. It is called with what `Network.prepare`
    makes of the inputs, a dict also of a single one, {"input": (Q, R)} in a chain, in the parameters' dtype, and with
    `key=` where the network has dropout; of what it gives, `value`, `gradients` in the parameters' structure and
    `sensitivities` {layer: (Q, *P, S)} are read. rule: one of `fnn.rules`, to see how far what it gives is from the
    gradient; it begins with what it learns where `params` do not hold it. key, directions: for random directions, for
    what a random rule draws, and for the neurons dropped by layers with dropout, the same on both sides (a fixed key
    where not given). second_opinions: also the third opinion
    and the Taylor test. costs: also trace, compile and run time, FLOPs and memory. jit: compare the compiled programs,
    which are kept for the next comparison of the same network and loss, or else operation by operation.

    Matrix products run at full precision on every device. Raises ValueError as `backpropagate`, for targets that the
    loss has no meaning for, and where `manual` gives arrays of other names or shapes; TypeError where it gives no
    Backpropagation.
    """
    loss, rule = losses.get(loss), rules.get(rule)
    check_trainable(network, rule)
    loss.check_outputs(network.output.activation)
    inputs = network.prepare(params, inputs)
    targets = network.prepare_targets(inputs, targets, loss, dtype_of(params))
    loss.check_targets(targets)

    own_key = jax.random.key(0) if key is None else key
    drop_key = own_key if network.drops else None
    other = not rules.is_exact(rule)
    if other:
        if manual is not backpropagate:
            raise ValueError("rule: it is that of our own backpropagate; give manual one that goes by it, and no rule")
        params, second_opinions = rules.begin(rule, network, params, own_key), False
        manual = _by_rule(rule, own_key if rules.is_random(rule) else drop_key)
    by_hand, automatically, objective = _callables(network, loss, manual, drop_key)
    found = _Examination(by_hand, automatically, (params, inputs, targets), _rounded(loss), key, jit)
    parameters = found.differences(lambda tree: tree["parameters"])
    backwards = [layer.name for layer in reversed(network.layers)]
    parted = {name: found.differences(lambda t, name=name: {name: t["sensitivities"][name]}) for name in backwards}
    sensitivities = tuple(parted[name][0] for name in backwards)
    apart = [s.name for s in sensitivities if not s.agrees]
    through_time = {layer.name: layer.activation.through_time for layer in network.layers}
    parted_at = {
        name: found.parts_at(lambda t, name=name: t["sensitivities"][name], last=through_time[name]) for name in apart
    }
    kinks, convention = ((), 0.0) if other else _audit_kinks(network, loss, automatically, params, inputs, targets)
    total = found.total(lambda tree: tree["parameters"])
    third = taylor = None
    if second_opinions:
        third, taylor = _opinions(found, objective, lambda tree: tree["parameters"], directions)
        if convention > total.bound:
            third = dataclasses.replace(third, says="the point is on a kink, where there is no derivative")
            taylor = dataclasses.replace(taylor, says="inconclusive")
        cut = [layer.name for layer in network.layers if layer.activation.cuts]
        if cut:
            says = f"{', '.join(cut)}: derivatives are cut off on purpose (truncate), so that they are not F's own"
            third, taylor = dataclasses.replace(third, says=says), dataclasses.replace(taylor, says="inconclusive")
    measured = ()
    if costs:

        def value_and_gradient(*args):
            return (lambda r: (r["value"], r["parameters"]))(by_hand(*args))

        callables = {"manual": value_and_gradient, "automatic": jax.value_and_grad(objective)}
        measured = measure_costs(callables, params, inputs, targets)
    # Where F itself has overflowed, as after a divergence, there is no gradient to be right or wrong about.
    defined = bool(np.isfinite(np.asarray(found.automatic["value"]).astype(np.float64)))
    verdict = _judge((total, *parameters, *sensitivities)) if defined else "inconclusive"
    return Agreement(
        title=f"{_describe(network)}, {loss.name} ({loss.reduction}), Q = {targets.shape[0]}",
        dtype=str(targets.dtype),
        verdict="another rule" if other and verdict == "differ" else verdict,
        where=_where(parameters, sensitivities, parted_at) if defined else None,
        total=total,
        parameters=parameters,
        sensitivities=sensitivities,
        condition=found.condition(lambda tree: tree["parameters"]),
        third_opinion=third,
        taylor=taylor,
        kinks=kinks,
        convention=convention,
        costs=measured,
        rule=rules.said(rule) if other else None,
        angles=_angles(network, found.manual, found.automatic) if other else (),
    )


@functools.partial(cached, size=32)
def _by_rule(rule: rules.Rule | rules.ByLayer, key: Array | None) -> Callable[..., Backpropagation]:
    """`backpropagate` by that rule; where it has no sensitivities they are 0."""

    def manual(network, loss, params, inputs, targets, **_):
        result = backpropagate(network, loss, params, inputs, targets, None, key, rule=rule)
        s = {name: result.sensitivities.get(name, jnp.zeros_like(n)) for name, n in result.trace.net_inputs.items()}
        return result._replace(sensitivities=s)

    return manual


def _angles(network: Network, manual: dict[str, Any], automatic: dict[str, Any]) -> tuple[Angle, ...]:
    def between(x, y) -> tuple[float, float]:
        x, y = _flat(x), _flat(y)
        sizes = np.linalg.norm(x), np.linalg.norm(y)
        if not (sizes[0] > 0 and sizes[1] > 0):
            return math.nan, math.nan
        # by the two halves of a rhombus, which small angles do not lose
        one, other = x / sizes[0], y / sizes[1]
        angle = 2 * math.atan2(np.linalg.norm(one - other), np.linalg.norm(one + other))
        return math.degrees(angle), float(sizes[0] / sizes[1])

    found = []
    for layer in network.layers:
        parameters = (moved(tree["parameters"][layer.name]) for tree in (manual, automatic))
        s = (tree["sensitivities"][layer.name] for tree in (manual, automatic))
        found.append(Angle(layer.name, *between(*parameters), *between(*s)))
    return tuple(found)


def monitor(network: Network, loss: Loss, inputs: Inputs, targets: Array) -> Callable[[Params], tuple[Difference, ...]]:
    """`params -> differences` of the gradient on fixed data: the total first, then each parameter array.

    What `compare` finds about the gradient itself and no more; compiled once, so cheap enough to ask all through a
    training run.
    """
    by_hand, automatically, _ = _callables(network, loss, backpropagate, None)

    @precision.full
    def differences(params: Params) -> tuple[Difference, ...]:
        prepared = network.prepare(params, inputs)
        args = (params, prepared, network.prepare_targets(prepared, targets, loss, dtype_of(params)))
        found = _Examination(by_hand, automatically, args, _rounded(loss), None, jit=True)

        def gradient(tree):
            return tree["parameters"]

        return (found.total(gradient), *found.differences(gradient))

    return differences


def _callables(network: Network, loss: Loss, manual: Callable[..., Backpropagation], key: Array | None):
    """The gradient and sensitivities by hand, the same automatically, and the objective; of params, inputs, targets.

    key: for dropout. Without it the same three are given for the same network and loss, with what was compiled of them.
    """
    return _by_hand(network, loss, manual, key), *_automatically(network, loss, key)


@functools.partial(cached, size=32)
def _by_hand(network: Network, loss: Loss, manual: Callable[..., Backpropagation], key: Array | None):
    dropping = {} if key is None else {"key": key}

    def by_hand(params, inputs, targets):
        result = manual(network, loss, params, inputs, targets, **dropping)
        _check_manual(network, params, targets, result)
        return {"value": result.value, "parameters": result.gradients, "sensitivities": dict(result.sensitivities)}

    return by_hand


@functools.partial(cached, size=32)
def _automatically(network: Network, loss: Loss, key: Array | None):
    """The same, whoever is compared with it."""
    dropping = {} if key is None else {"key": key}

    def objective(params, inputs, targets, offsets=None):
        dtype = dtype_of(params)  # complex while the third opinion steps into the imaginary
        inputs = {name: x if name in network.tokens else x.astype(dtype) for name, x in inputs.items()}
        targets = targets.astype(dtype)
        return loss_value(network, loss, forward(network, params, inputs, offsets or {}, **dropping), targets, None)

    def automatically(params, inputs, targets, offsets=None):
        # The derivative with respect to a zero added to each net input is that layer's sensitivity.
        zeros = _zero_offsets(network, params, targets)
        offsets = zeros if offsets is None else jax.tree.map(jnp.add, zeros, offsets)
        value, (gradients, s) = jax.value_and_grad(objective, argnums=(0, 3))(params, inputs, targets, offsets)
        return {"value": value, "parameters": gradients, "sensitivities": s}

    return automatically, objective


def _check_manual(network: Network, params: Params, targets: Array, result: Any) -> None:
    """Raises TypeError or ValueError where `manual` gave what cannot be compared."""
    missing = [name for name in ("value", "gradients", "sensitivities") if not hasattr(result, name)]
    if missing:
        raise TypeError(
            "manual: expected a Backpropagation with value, gradients and sensitivities, as fnn.backpropagate gives; "
            f"got {type(result).__name__} without {missing[0]} (for a gradient alone, see compare_callables)"
        )
    examples = targets.shape[0]
    s = {name: (examples, *shape) for name, shape in network.net_shapes.items()}
    checks.same_shapes("manual's value", {"": jnp.shape(result.value)}, {"": ()}, "the loss")
    checks.same_shapes("manual's gradients", checks.shapes(result.gradients), checks.shapes(params), "the parameters")
    checks.same_shapes("manual's sensitivities", checks.shapes(dict(result.sensitivities)), s, "the layers")


def _rounded(loss: Loss) -> tuple[bool, bool, bool]:
    # which of params, inputs and targets carry roundings; one-hot targets are labels, and are compared with 1
    return True, True, loss.targets != "one-hot"


@precision.full
def compare_callables(
    manual: Callable[..., Any],
    automatic: Callable[..., Any],
    *args: Any,
    objective: Callable[..., Array] | None = None,
    key: Array | None = None,
    directions: int = 8,
    costs: bool = False,
    jit: bool = True,
) -> Agreement:
    """Any two callables of one signature that give the same pytree of arrays, such as a gradient of your own.

    objective: the scalar function of `args` whose gradient with respect to the first argument both claim to be; with
    it come the third opinion and the Taylor test. Raises ValueError where the two results differ in structure.

    >>> import jax, jax.numpy as jnp, functional_nn as fnn
    >>> f = lambda x: jnp.sum(jnp.sin(x))
    >>> fnn.compare_callables(jnp.cos, jax.grad(f), jnp.arange(3.0), objective=f).verdict
    'agree'
    """
    found = _Examination(manual, automatic, args, (True,) * len(args), key, jit, reused=False)
    parameters, total = found.differences(lambda tree: tree), found.total(lambda tree: tree)
    third = taylor = None
    if objective is not None:
        third, taylor = _opinions(found, objective, lambda tree: tree, directions)
    measured = measure_costs({"manual": manual, "automatic": automatic}, *args) if costs else ()
    return Agreement(
        title="two callables",
        dtype=str(jax.tree.leaves(found.automatic)[0].dtype),
        verdict=_judge((total, *parameters)),
        where=_where(parameters, (), {}),
        total=total,
        parameters=parameters,
        sensitivities=(),
        condition=found.condition(lambda tree: tree),
        third_opinion=third,
        taylor=taylor,
        kinks=(),
        convention=0.0,
        costs=measured,
    )


@precision.full
def compare_activation(activation: str | Activation, shape: Shape | int = 8, *, key: Array | None = None) -> Agreement:
    """An activation's hand-written derivatives against `jax.vjp` and `jax.jvp` of its own forward map, on random data.

    shape: of one example's signal, (*P, S) for S neurons at each position, such as (6, 6, 4) for pooling.
    Covers what no gradient shows: "pushforward" and "second_order", which Hessian-vector products need; and the
    "pullback", learned parameters included. In JAX's default float. Raises ValueError for one without derivative, for
    one that says each neuron is `alone` where it is not, and for a signal that it cannot read; one without second
    derivative is compared without.

    >>> import functional_nn as fnn
    >>> fnn.comparison.compare_activation("tanh").verdict
    'agree'
    """
    f = activations.get(activation)
    if f.pullback is None:
        raise ValueError(f"activation {f.name!r} has no derivative to compare")
    shape = _signal("compare_activation", shape)
    given = (*shape[:-1], shape[-1] * f.pieces)
    examples, dtype = 32, precision.default()
    try:
        theta = activations.started(f, shape[-1], dtype)
        mixes = f.alone and any(activations.mixes(f, given))
        gives = activations.output_shape(f, given)
    except ValueError as error:
        raise ValueError(f"activation {f.name} {error}") from None
    if mixes:
        raise ValueError(
            f"activation {f.name!r} says alone=True, but a neuron's output depends on other neurons' inputs"
        )
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, 4)
    r_theta = jax.tree.map(lambda x: jax.random.normal(keys[3], x.shape, dtype), theta)
    n, r = (2 * jax.random.normal(k, (examples, *given), dtype) for k in keys[:2])
    g = jax.random.normal(keys[2], (examples, *gives), dtype)

    def by_hand(n, g, r, theta, r_theta):
        a, kept = f.forward(n, theta)
        s, learned = f.pullback(g, n, a, kept, theta)
        found = {
            "pullback": {"n": s, **_summed_like(theta, learned)},
            "pushforward": f.pushforward(r, r_theta, n, a, kept, theta),
        }
        if f.second_order is not None:
            second, second_learned = f.second_order(g, r, r_theta, n, a, kept, theta)
            found["second_order"] = {"n": second, **_summed_like(theta, second_learned)}
        return found

    own = activations.learned_at_start(f, shape[-1], dtype) if f.parameters else {}  # of theta

    def outputs(n, theta):
        return f.forward(n, theta)[0]

    def automatically(n, g, r, theta, r_theta):
        def pulled_back(n, theta):
            s, learned = jax.vjp(outputs, n, theta)[1](g)
            return {"n": s, **{f"learned/{name}": x for name, x in learned.items() if name in own}}

        found = {
            "pullback": pulled_back(n, theta),
            "pushforward": jax.jvp(outputs, (n, theta), (r, r_theta))[1],
        }
        if f.second_order is not None:
            found["second_order"] = jax.jvp(pulled_back, (n, theta), (r, r_theta))[1]
        return found

    found = compare_callables(by_hand, automatically, n, g, r, theta, r_theta, key=key, jit=False)
    return dataclasses.replace(found, title=f"derivatives of {f.name}")


def _summed_like(theta, learned):
    return {f"learned/{name}": factors.total(f, theta[name]) for name, f in learned.items()}


@precision.full
def compare_connection(
    connection: str | Connection, shape: Shape | int, channels: int = 4, *, key: Array | None = None
) -> Agreement:
    """A connection's three laws, and its `back` and `outer` against `jax.vjp` of its own forward map, on random data.

    shape: of one example's signal that it reads, (*P, R); channels: how many it gives, its own where it has no weights.
    The laws, one row each: "adjoint in x", <s, forward(dx, w)> = <back(s, w), dx>; "adjoint in w", <s, forward(x, dw)>
    = <outer(s, x), dw>; "unfolded", what `unfold` gives of each example is its own outer; and "linear in x", "linear
    in w": forward(x, w) of a sum is the sum. Where the row has a `twin`, or one `in_lanes`, "twin/..." and
    "in_lanes/..." hold them to the same. In JAX's
    default float. Raises ValueError for a signal that it cannot read, and for results of other shapes than it says.

    >>> import functional_nn as fnn
    >>> fnn.comparison.compare_connection("conv((3, 3), stride=2)", (7, 6, 3)).verdict
    'agree'
    """
    by, shape = connections.get(connection), _signal("compare_connection", shape)
    channels = shape[-1] if by.outer is None else checks.integer("compare_connection", "channels", channels, 1)
    try:
        given, of_weights = by.shapes(shape, channels)
    except ValueError as error:
        raise ValueError(f"connection {by.name}: {error}") from None
    if of_weights is not None and not (by.outer and by.unfold):
        raise ValueError(f"connection {by.name}: has weights {of_weights}, and needs `outer` and `unfold` for them")
    examples, dtype = 3, precision.default()
    key = jax.random.key(0) if key is None else key
    keys = iter(jax.random.split(key, 5))

    def draw(*size):
        return jax.random.normal(next(keys), size, dtype)

    s, w, dw = draw(examples, *given), *(None if of_weights is None else draw(*of_weights) for _ in range(2))
    if by.tokens is None:
        x, dx = draw(examples, *shape), draw(examples, *shape)
    else:
        x, dx = jax.random.randint(next(keys), (examples, *shape), 0, by.tokens), None
    rows = {"": by} | {name: row for name, row in (("twin/", by.twin), ("in_lanes/", by.in_lanes)) if row is not None}
    for prefix, row in rows.items():
        z = jax.eval_shape(row.forward, x, w).shape
        if z != s.shape:
            raise ValueError(f"connection {by.name}: {prefix}forward gives {z}, where its shapes say {s.shape}")

    def by_hand(s, x, w, dx, dw):
        found = {}
        for prefix, row in rows.items():
            own = _laws(row, s, x, w, dx, dw) | {"forward": row.forward(x, w)}
            found |= {prefix + name: value for name, value in own.items()}
        return found

    def automatically(s, x, w, dx, dw):
        forward, own = by.forward, {}
        own["forward"] = forward(x, w)
        if dx is not None:
            own["back"] = jax.vjp(lambda x: forward(x, w), x)[1](s)[0]
            own["adjoint in x"] = jnp.vdot(s, forward(dx, w))
            own["linear in x"] = forward(x, w) + 2 * forward(dx, w)
        if w is not None:

            def adjoint(s, x):
                return jax.vjp(lambda w: forward(x, w), w)[1](s)[0]

            own["outer"] = adjoint(s, x)
            own["unfolded"] = jnp.stack([adjoint(s[q : q + 1], x[q : q + 1]) for q in range(examples)])
            own["adjoint in w"] = jnp.vdot(s, forward(x, dw))
            own["linear in w"] = forward(x, w) - forward(x, dw)
        return {prefix + name: value for prefix in rows for name, value in own.items()}

    found = compare_callables(by_hand, automatically, s, x, w, dx, dw, key=key, jit=False)
    return dataclasses.replace(found, title=f"laws of {by.name} on {shape}, {channels} channels")


def _signal(owner: str, shape: Shape | int) -> Shape:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in shape:
        checks.integer(owner, "every size of shape", size, 1)
    return shape


def _laws(by: Connection, s, x, w, dx, dw) -> dict[str, Array]:
    """What a connection's maps give of the same data, by the law that it is of."""
    found = {}
    if dx is not None:
        found["back"] = by.back(s, w, x)
        found["adjoint in x"] = jnp.vdot(found["back"], dx)
        found["linear in x"] = by.forward(x + 2 * dx, w)
    if w is not None:
        found["outer"] = by.outer(s, x)
        found["adjoint in w"] = jnp.vdot(found["outer"], dw)
        left, right = by.unfold(s, x)
        found["unfolded"] = factors.formed(Factors(left, right)).reshape(len(x), *w.shape)
        found["linear in w"] = by.forward(x, w - dw)
    return found


# Differences and their bound ------------------------------------------------------------------------------------------


class _Examination:
    """Both results at one point, and the automatic one at points moved by small random signs, for the condition."""

    def __init__(self, manual, automatic, args, moved, key, jit, reused=True):
        """reused: the automatic callable will be asked again, so that what rounding does to it is worth compiling."""
        self.key = jax.random.key(0) if key is None else key
        self.args, self.jit = args, jit
        compiled = jax.jit if jit else (lambda f: f)
        automatic_compiled = compiled(automatic)
        self.manual, self.automatic = compiled(manual)(*args), automatic_compiled(*args)
        if jax.tree.structure(self.manual) != jax.tree.structure(self.automatic):
            raise ValueError(
                "the two results differ in structure: "
                f"{jax.tree.structure(self.manual)} and {jax.tree.structure(self.automatic)}"
            )
        self.unit = unit_roundoff(jax.tree.leaves(self.automatic)[0].dtype)
        shaken = _compiled_displacements(automatic) if jit and reused else functools.partial(displacements, automatic)
        self.delta = shaken(args, self.key)
        self.step = 2.0 ** round(math.log2(math.sqrt(self.unit)))
        draw = _generator(self.key, 1)
        self.nearby = [automatic_compiled(*_moved_by_signs(args, moved, draw, self.step)) for _ in range(3)]

    def condition(self, part) -> float:
        """kappa of a part of the result, at least 1."""
        here = _flat(part(self.automatic))
        norm = np.linalg.norm(here)
        if not np.isfinite(norm):
            return math.nan
        change = max(float(np.linalg.norm(_flat(part(there)) - here)) for there in self.nearby)
        return max(1.0, change / (self.step * norm)) if norm > 0 else 1.0

    def allowed(self, part) -> float:
        """How large rounding alone may make the difference of a part of the results."""
        return _LAMBDA * self.unit * float(np.linalg.norm(_flat(part(self.delta))))

    def differences(self, part) -> tuple[Difference, ...]:
        """One for each array of a part of the results, each with a bound of its own."""
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(part(self.automatic))]
        rows = []
        for number, path in enumerate(paths):

            def leaf(tree, number=number):
                return jax.tree.leaves(part(tree))[number]

            name = jax.tree_util.keystr(path, simple=True, separator="/") or "result"
            rows.append(_difference(name, leaf(self.manual), leaf(self.automatic), self.allowed(leaf)))
        return tuple(rows)

    def parts_at(self, part, last: bool = False) -> tuple[int, ...] | None:
        """The first position of a signal (Q, *P, S) at which the two differ by more than rounding explains there; or
        the last, which is the first on a way back through time.
        """
        manual, automatic, delta = (
            np.asarray(part(x)).astype(np.float64) for x in (self.manual, self.automatic, self.delta)
        )
        if manual.ndim < 3:
            return None

        def norm(x):
            return np.linalg.norm(np.moveaxis(x, 0, -2).reshape(-1, len(x) * x.shape[-1]), axis=1)

        with np.errstate(invalid="ignore"):  # of infinities
            apart = np.flatnonzero(~(norm(manual - automatic) <= _LAMBDA * self.unit * norm(delta)))
        if not apart.size:
            return None
        return tuple(int(i) for i in np.unravel_index(apart[-1 if last else 0], manual.shape[1:-1]))

    def total(self, part) -> Difference:
        """All arrays of a part taken as one vector."""
        joined = [
            np.concatenate([np.ravel(np.asarray(x)) for x in jax.tree.leaves(part(tree))])
            for tree in (self.manual, self.automatic)
        ]
        return _difference("total", *joined, self.allowed(part))


@functools.partial(cached, size=32)
def _compiled_displacements(automatic: Callable) -> Callable:
    return jax.jit(functools.partial(displacements, automatic))


def _difference(name: str, manual, automatic, allowed: float) -> Difference:
    manual, automatic = np.asarray(manual), np.asarray(automatic)
    if manual.shape != automatic.shape:
        raise ValueError(f"{name}: the two results have shapes {manual.shape} and {automatic.shape}")
    undefined = ~np.isfinite(manual.astype(np.float64)) & ~np.isfinite(automatic.astype(np.float64))
    manual, automatic = (np.where(undefined, np.zeros((), x.dtype), x) for x in (manual, automatic))
    wide = [x.astype(np.float64) for x in (manual, automatic)]
    apart = np.abs(wide[0] - wide[1])
    norm, error = float(np.linalg.norm(wide[1])), float(np.linalg.norm(apart))
    worst = np.unravel_index(int(np.argmax(np.nan_to_num(apart, nan=np.inf))), apart.shape)
    return Difference(
        name,
        error=error,
        allowed=allowed,
        relative=_over(error, norm),
        bound=_over(allowed, norm),
        largest=float(apart[worst]),
        ulps=float(np.max(ulp_distance(manual, automatic))),
        index=tuple(int(i) for i in worst),
        manual=float(wide[0][worst]),
        automatic=float(wide[1][worst]),
        norm=norm,
        undefined=int(undefined.sum()),
    )


def _over(x: float, norm: float) -> float:
    if norm > 0:
        return x / norm
    return math.nan if math.isnan(x) else math.inf if x > 0 else 0.0


def ulp_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How many floating-point numbers of their dtype lie between x and y, elementwise, as float64; nan for nan.

    Raises TypeError for dtypes that are not one and the same float.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype != y.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"ulp_distance: expected two arrays of one float dtype, got {x.dtype} and {y.dtype}")

    def position(v):
        # Bit patterns of positive floats are ordered as they are; those of negative ones the other way round.
        bits = v.view(f"i{v.dtype.itemsize}").astype(np.int64)
        lowest = -(2 ** (8 * v.dtype.itemsize - 1))
        return np.where(bits < 0, lowest - bits, bits)

    a, b = position(x), position(y)
    near = (a - b).astype(np.float64)  # exact unless the signs differ, where int64 may wrap around
    far = a.astype(np.float64) - b.astype(np.float64)
    distance = np.abs(np.where((a < 0) == (b < 0), near, far))
    return np.where(np.isnan(x.astype(np.float64)) | np.isnan(y.astype(np.float64)), np.nan, distance)


def _moved_by_signs(args, moved, generator: np.random.Generator, step: float):
    """Every float in the arguments that `moved` marks, times 1 + step or 1 - step at random."""

    def move(x):
        x = np.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        signs = generator.integers(0, 2, x.shape) * 2 - 1
        return (x.astype(np.float64) * (1 + step * signs)).astype(x.dtype)

    return tuple(jax.tree.map(move, arg) if mark else arg for arg, mark in zip(args, moved, strict=True))


def _generator(key: Array, purpose: int) -> np.random.Generator:
    return np.random.default_rng([purpose, *np.ravel(jax.random.key_data(key)).tolist()])


def _flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x)).astype(np.float64) for x in jax.tree.leaves(tree)])


def _judge(differences: Sequence[Difference]) -> Verdict:
    if not all(d.agrees for d in differences):
        return "differ"
    total = differences[0]
    equal = total.error == 0 == total.norm  # both are 0, by whatever was left out of them
    says_little = any(d.undefined for d in differences) or (total.bound > _SAYS_LITTLE and not equal)
    return "inconclusive" if says_little else "agree"


def _where(
    parameters: Sequence[Difference], sensitivities: Sequence[Difference], positions: dict[str, tuple | None]
) -> str | None:
    """The first place, from the output back, where the two part; positions: in a layer's signal."""
    for position, s in enumerate(sensitivities):
        if not s.agrees:
            at = f" at position {positions[s.name]}" if positions.get(s.name) else ""
            origin = "the start, from loss and output activation" if position == 0 else "the step back into this layer"
            return f"{s.name}: dF/dn parts here first{at}, by {s.ulps:.3g} ulps ({origin})"
    for p in parameters:
        if not p.agrees:
            found = "the sensitivities agree, this gradient does not" if sensitivities else "the two differ"
            return f"{p.name}: {found}, by {p.ulps:.3g} ulps"
    return None


# A third opinion and the Taylor test ----------------------------------------------------------------------------------


def _opinions(found: _Examination, objective, part, count: int) -> tuple[ThirdOpinion, TaylorTest]:
    gradients = [part(tree) for tree in (found.manual, found.automatic)]
    # Where gradients overflow, as after a divergence, infinities meet on the way to "inconclusive".
    with np.errstate(over="ignore", invalid="ignore"):
        third = _third_opinion(objective, found.args, gradients, found.key, count, found.total(part).bound, found.jit)
        return third, _taylor_test(objective, found.args, gradients[0], found.key, count, found.unit, found.jit)


def _directions(key, tree, count: int) -> list[np.ndarray]:
    """`count` random directions as arrays (count, ...) in the tree's order, each as long as the tree itself."""
    leaves = [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(tree)]
    generator = _generator(key, 2)
    drawn = [generator.standard_normal((count, *x.shape)) for x in leaves]
    length = np.sqrt(sum(np.sum(d.reshape(count, -1) ** 2, axis=1) for d in drawn))
    size = np.sqrt(sum(np.sum(x[np.isfinite(x)] ** 2) for x in leaves)) or 1.0
    return [d * (size / length).reshape(-1, *[1] * (d.ndim - 1)) for d in drawn]


def _dot(directions: list[np.ndarray], tree) -> np.ndarray:
    """g'd for every direction, in float64: (count,)."""
    leaves = [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(tree)]
    return sum(np.sum((d * x).reshape(len(d), -1), axis=1) for d, x in zip(directions, leaves, strict=True))


def _along(objective, args, directions, jit: bool):
    """h -> F(x + h d) for all directions at once, (count,) NumPy; h may be complex."""
    x, structure = jax.tree.flatten(args[0])
    batched = _over_directions(objective, len(args) - 1, jit)

    def values(h):
        dtype = jnp.complex128 if isinstance(h, complex) else x[0].dtype
        moved = [jnp.asarray(np.asarray(a).astype(d.dtype) + h * d, dtype) for a, d in zip(x, directions, strict=True)]
        found = batched(jax.tree.unflatten(structure, moved), *args[1:])
        return np.asarray(found).astype(np.result_type(dtype, np.float64))

    return values


@functools.partial(cached, size=32)
def _over_directions(objective: Callable, others: int, jit: bool) -> Callable:
    """The objective of many first arguments at once; the same function for the same objective."""
    batched = jax.vmap(objective, in_axes=(0, *(None,) * others))
    return jax.jit(batched) if jit else batched


def _third_opinion(objective, args, gradients, key, count, bound, jit) -> ThirdOpinion:
    directions = _directions(key, args[0], count)
    claimed = [_dot(directions, g) for g in gradients]
    with jax.enable_x64(True):
        # integers are tokens
        exact = jax.tree.map(
            lambda x: x if x.dtype.kind in "iu" else jnp.asarray(np.asarray(x).astype(np.float64)), args
        )
        values = _along(objective, exact, directions, jit)
        fine, coarse = 2.0**-12, 2.0**-11
        slopes = [(values(h) - values(-h)) / (2 * h) for h in (coarse, fine)]
        extrapolated = (4 * slopes[1] - slopes[0]) / 3  # Richardson: the error in h^2 is taken away
        derivative, method = extrapolated, "central differences"
        size = np.linalg.norm(extrapolated) or 1.0
        noise = np.finfo(np.float64).eps * np.max(np.abs(values(0.0))) / fine
        accuracy = (np.linalg.norm(slopes[1] - extrapolated) + noise * math.sqrt(count)) / size
        try:
            stepped = values(1e-30j).imag / 1e-30
        except (TypeError, ValueError, NotImplementedError):  # an objective that is not written for complex numbers
            stepped = np.full(count, np.nan)
        # Taken only where it confirms the differences: abs, max or a kink make an objective blind to imaginary parts.
        if np.linalg.norm(stepped - extrapolated) <= 10 * accuracy * size:
            derivative, method, accuracy = stepped, "complex step", 16 * np.finfo(np.float64).eps
    size = np.linalg.norm(derivative)
    errors = [float(np.linalg.norm(c - derivative) / size) if size > 0 else float(np.linalg.norm(c)) for c in claimed]
    right = [error <= max(bound, 10 * accuracy) for error in errors]
    says = {
        (True, True): "both are right",
        (False, True): "the manual gradient is wrong",
        (True, False): "the automatic gradient is wrong",
        (False, False): "neither is right",
    }[tuple(right)]
    if not np.isfinite(size) or (max(bound, 10 * accuracy) > _SAYS_LITTLE and all(right)):
        says = "inconclusive"
    return ThirdOpinion(method, says, errors[0], errors[1], float(accuracy))


def _taylor_test(objective, args, gradient, key, count, unit, jit) -> TaylorTest:
    directions = _directions(key, args[0], count)
    values = _along(objective, args, directions, jit)
    start, linear = values(0.0), _dot(directions, gradient)
    # What F itself is uncertain by: its change under moves of the size of a rounding, and its own last place.
    jitter = np.max([np.abs(values(sign * 4 * unit) - start) - 4 * unit * np.abs(linear) for sign in (1, -1)], axis=0)
    noise = 8 * np.maximum(jitter, unit * np.abs(start)) + np.finfo(np.float64).tiny
    steps = 4.0 ** -np.arange(1, 13)
    remainders = np.array([np.abs(values(h) - start - h * linear) for h in steps])  # (steps, directions)
    slopes = []
    for direction, floor in enumerate(noise):
        r = remainders[:, direction]
        usable = (
            int(np.argmin(r > 8 * floor)) if (r <= 8 * floor).any() else len(r)
        )  # down to the first one in the noise
        if usable >= 3:
            local = np.log(r[: usable - 1] / r[1:usable]) / np.log(4)
            slopes.append(float(np.median(local[-2:])))
        elif usable == 0 and steps[0] * abs(linear[direction]) > 1e3 * floor:
            slopes.append(2.0)  # no remainder at all: F is linear along d, with this gradient
    slope = median(slopes) if slopes else math.nan
    says = "inconclusive"
    if len(slopes) >= max(1, count // 2):
        says = "right" if slope > 1.7 else "wrong" if slope < 1.3 else "inconclusive"
    return TaylorTest(says, slope, count, len(slopes))


# Kinks ----------------------------------------------------------------------------------------------------------------


def _zero_offsets(network: Network, params: Params, targets: Array) -> dict[str, Array]:
    return {name: jnp.zeros((len(targets), *n), dtype_of(params)) for name, n in network.net_shapes.items()}


def _audit_kinks(network, loss, automatically, params, inputs, targets) -> tuple[tuple[KinkAudit, ...], float]:
    """Counts of net inputs at a kink, and the gradient's relative change when they are pushed off it, either way."""
    trace = forward(network, params, inputs, {})
    audits, push = [], _zero_offsets(network, params, targets)
    sites = []
    for layer in network.layers:
        kept = (trace.kept[layer.name],) if layer.name in trace.kept else ()
        sites.append((layer.name, layer.activation.kink_distance, (trace.net_inputs[layer.name], *kept)))
    output = network.output
    sites.append((f"{loss.name} at {output.name}", loss.kink_distance, (trace.activations[output.name], targets)))
    unit = unit_roundoff(targets.dtype)
    for (name, distance, at), layer in zip(sites, (*network.layers, output), strict=True):
        if distance is None:
            continue
        gap = np.asarray(distance(*at)).astype(np.float64)
        scale = max(1.0, float(np.max(np.abs(np.asarray(at[0]).astype(np.float64)), initial=0.0)))
        audits.append(KinkAudit(name, int(np.sum(gap == 0)), int(np.sum(gap <= 8 * unit * scale)), gap.size))
        # What ties is pushed by different amounts: pieces of one maxout neuron, numbers of one window.
        order = 1 + np.arange(layer.rows) % layer.activation.pieces
        if not layer.activation.alone:
            order = 1 + np.random.default_rng(0).random(gap.shape)
        at_kink = np.repeat(gap == 0, layer.rows // gap.shape[-1], axis=-1)
        push[layer.name] += jnp.asarray(at_kink * order * 4 * unit * scale, targets.dtype)
    if not any(audit.at_kink for audit in audits):
        return tuple(audits), 0.0
    here = _flat(automatically(params, inputs, targets)["parameters"])
    changes = []
    for sign in (1, -1):
        offsets = jax.tree.map(lambda x, sign=sign: sign * x, push)
        changes.append(np.linalg.norm(_flat(automatically(params, inputs, targets, offsets)["parameters"]) - here))
    norm = np.linalg.norm(here)
    return tuple(audits), float(max(changes) / norm) if norm > 0 else math.inf * max(changes) if max(changes) else 0.0


# Cost -----------------------------------------------------------------------------------------------------------------


def measure_costs(callables: dict[str, Callable], *args: Any, repeats: int = 7, inner_seconds: float = 0.02):
    """`Cost` of each callable on `args`: tracing and running are timed in turns, medians over `repeats`."""
    programs, compile_seconds = {}, {}
    trace_times = {name: [] for name in callables}
    run_times = {name: [] for name in callables}

    def trace(f):
        return jax.jit(lambda *a: f(*a)).trace(*args)  # a new function each time: nothing is remembered

    for name, f in callables.items():
        lowered = trace(f).lower()
        began = time.perf_counter()
        programs[name] = lowered.compile()
        compile_seconds[name] = time.perf_counter() - began
    began = time.perf_counter()
    jax.block_until_ready([program(*args) for program in programs.values()])
    loops = max(1, int(inner_seconds * len(programs) / (time.perf_counter() - began)))

    def in_turns(times, measure):
        for repeat in range(repeats):
            for name in list(callables) if repeat % 2 else reversed(callables):
                began = time.perf_counter()
                measure(name)
                times[name].append(time.perf_counter() - began)

    def run(name):
        for _ in range(loops):
            result = programs[name](*args)
        jax.block_until_ready(result)

    in_turns(trace_times, lambda name: trace(callables[name]))
    in_turns(run_times, run)

    def cost(name):
        analysis, memory = programs[name].cost_analysis() or {}, programs[name].memory_analysis()
        temporary = getattr(memory, "temp_size_in_bytes", 0)
        flops = float(analysis.get("flops", math.nan))
        return Cost(
            name, median(trace_times[name]), compile_seconds[name], median(run_times[name]) / loops, flops, temporary
        )

    return tuple(cost(name) for name in callables)


# Showing and saving ---------------------------------------------------------------------------------------------------


def _describe(network: Network) -> str:
    inputs = "+".join("x".join(map(str, network.shapes[name])) for name, _ in network.inputs)
    return f"{inputs}-" + "-".join(f"{layer.size} {layer.activation.name}" for layer in network.layers)


def finite_or_none(value):
    """Nested dicts and lists with None for every float that JSON cannot say."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mark(row: dict[str, Any], rule: str | None = None) -> str:
    """One word for a row of `Agreement.rows`: "ok", "DIFFERS", "another" where that is by another rule, "undefined" for
    nan or infinity in both, or "vanishes" for an array that is no larger than its rounding, so that its relative
    difference says nothing.
    """
    found = Difference(**{name: value for name, value in row.items() if name != "kind"})
    if not found.agrees:
        return "another" if rule else "DIFFERS"
    return "undefined" if found.undefined else "vanishes" if found.vanishes else "ok"


def _degrees(degrees: float, ratio: float) -> str:
    return "nothing to be turned" if math.isnan(degrees) else f"{degrees:.1f} degrees, {ratio:.3g} times as long"


def _as_text(a: Agreement) -> str:
    header = ("", "relative", "bound", "largest", "ulps", "at", "")
    rows = [header]
    for row in a.rows():
        name = f"dF/dn {row['name']}" if row["kind"] == "sensitivity" else row["name"]
        numbers = [f"{row[column]:.2e}" for column in ("relative", "bound", "largest")]
        rows.append((name, *numbers, f"{row['ulps']:.3g}", str(row["index"]), mark(row, a.rule)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    another = "" if a.rule is None else f" by {a.rule}" if a.verdict != "another rule" else f", not an error: {a.rule}"
    lines = [f"{a.title}, {a.dtype}: {a.verdict}{another}"]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True))]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    for angle in a.angles:
        lines.append(
            f"{angle.name}: {_degrees(angle.degrees, angle.ratio)} from its gradient; "
            f"{_degrees(angle.sensitivity_degrees, angle.sensitivity_ratio)} from its sensitivities"
        )
    if a.where:
        lines.append(f"first apart at {a.where}")
    if a.total.undefined:
        lines.append(f"{a.total.undefined} elements are nan or infinite in both, so there is little to agree on")
    elif a.verdict == "inconclusive":
        lines.append(f"a bound of {a.total.bound:.1e} in {a.dtype} would pass gradients that are wrong; try float64")
    lines.append(f"condition number of the gradient {a.condition:.3g}")
    if a.third_opinion:
        t = a.third_opinion
        lines.append(
            f"third opinion (float64, {t.method}): {t.says}; manual {t.manual_error:.1e}, "
            f"automatic {t.automatic_error:.1e}, itself good to {t.accuracy:.1e}"
        )
    if a.taylor:
        t = a.taylor
        lines.append(f"Taylor test: {t.says}; slope {t.slope:.2f}, {t.conclusive} of {t.directions} directions tell")
    for k in a.kinks:
        lines.append(f"kinks of {k.name}: {k.at_kink} of {k.of} on one, {k.within_rounding} within rounding of one")
    if a.convention:
        lines.append(f"another derivative at the kinks would change the gradient by {a.convention:.1e}")
    for c in a.costs:
        lines.append(
            f"{c.name}: trace {1e3 * c.trace_seconds:.2f} ms, compile {1e3 * c.compile_seconds:.0f} ms, "
            f"run {1e6 * c.run_seconds:.1f} us, {c.flops:.4g} FLOPs, {c.temporary_bytes} bytes of temporaries"
        )
    return "\n".join(lines)
