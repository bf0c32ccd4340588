"""Any two callables against each other; an activation's or a connection's rules against autodiff of its forward map."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from functional_nn import checks, precision
from functional_nn.gradients import factors
from functional_nn.gradients.comparison.bound import Examination, first_difference, judge
from functional_nn.gradients.comparison.cost import measure_costs
from functional_nn.gradients.comparison.opinions import opinions
from functional_nn.gradients.comparison.records import Agreement
from functional_nn.networks import activations, connections
from functional_nn.networks.activations import Activation
from functional_nn.networks.connections import Connection, Factors, Shape


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
    """Compares two callables that return the same pytree of arrays, such as your own gradient and `jax.grad`.

    Args:
        manual: The callable under test.
        automatic: The callable to compare with.
        *args: Arguments of both.
        objective: The scalar function of `args` whose gradient by the first argument both claim to be. With it, the
            third opinion and the Taylor test are run.
        key: Random key for directions and displacements; a fixed key by default.
        directions: Number of random directions.
        costs: Whether to measure time, FLOPs and memory.
        jit: Whether to compare compiled programs.

    Returns:
        The `Agreement`; `help(fnn.comparison)` explains its bound.

    Raises:
        ValueError: If the two results differ in structure or shape.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> f = lambda x: jnp.sum(jnp.sin(x))
        >>> fnn.compare_callables(jnp.cos, jax.grad(f), jnp.arange(3.0), objective=f).verdict
        'agree'
    """
    examination = Examination(manual, automatic, args, (True,) * len(args), key, jit, reused=False)
    parameters, total = examination.differences(lambda tree: tree), examination.total(lambda tree: tree)
    third = taylor = None
    if objective is not None:
        third, taylor = opinions(examination, objective, lambda tree: tree, directions)
    measured = measure_costs({"manual": manual, "automatic": automatic}, *args) if costs else ()
    return Agreement(
        title="two callables",
        dtype=str(jax.tree.leaves(examination.automatic)[0].dtype),
        verdict=judge((total, *parameters)),
        where=first_difference(parameters, (), {}),
        total=total,
        parameters=parameters,
        sensitivities=(),
        condition=examination.condition(lambda tree: tree),
        third_opinion=third,
        taylor=taylor,
        kinks=(),
        convention=0.0,
        costs=measured,
    )


@precision.full
def compare_activation(activation: str | Activation, shape: Shape | int = 8, *, key: Array | None = None) -> Agreement:
    """Compares an activation's hand-written derivatives with autodiff of its forward map, on random data.

    "pullback" (with learned parameters) and "pushforward" are compared with `jax.vjp` and `jax.jvp`, and
    "second_order", which Hessian-vector products need, with `jax.jvp` of `jax.vjp`; an activation without second
    derivative is compared without it. Everything is in JAX's default float.

    Args:
        activation: An activation, or its name.
        shape: One example's signal: `(*P, S)` for S neurons at each position, such as (6, 6, 4) for pooling; an integer
            S.
        key: Random key for the data; a fixed key by default.

    Returns:
        The `Agreement`.

    Raises:
        ValueError: If the activation has no derivative, claims that each neuron is `alone` where it is not, or cannot
            read such a signal.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.comparison.compare_activation("tanh").verdict
        'agree'
    """
    f = activations.get(activation)
    if f.pullback is None:
        raise ValueError(f"activation {f.name!r} has no derivative to compare")
    shape = _signal_shape("compare_activation", shape)
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
    """Checks a connection's laws, and compares its maps with autodiff of its forward map, on random data.

    The rows of the result, each in JAX's default float:

    * "forward", "back", "outer": against the forward map and its autodiff derivatives.
    * "adjoint in x": <s, forward(dx, w)> = <back(s, w), dx>.
    * "adjoint in w": <s, forward(x, dw)> = <outer(s, x), dw>.
    * "unfolded": `unfold` returns each example's own `outer`.
    * "linear in x", "linear in w": `forward` of a sum is the sum.
    * "twin/..." and "in_lanes/...": the same for a connection's `twin` and `in_lanes`, where it has them.

    Args:
        connection: A connection, or its specification.
        shape: One example's signal that it reads, `(*P, R)`, or an integer R.
        channels: How many channels it writes; ignored for a connection without weights, which keeps its own.
        key: Random key for the data; a fixed key by default.

    Returns:
        The `Agreement`.

    Raises:
        ValueError: If the connection cannot read such a signal, or returns other shapes than it declares.

    Example:
        >>> import functional_nn as fnn
        >>> fnn.comparison.compare_connection("conv((3, 3), stride=2)", (7, 6, 3)).verdict
        'agree'
    """
    by, shape = connections.get(connection), _signal_shape("compare_connection", shape)
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


def _signal_shape(owner: str, shape: Shape | int) -> Shape:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in shape:
        checks.integer(owner, "every size of shape", size, 1)
    return shape


def _laws(by: Connection, s, x, w, dx, dw) -> dict[str, Array]:
    """Returns the two sides' own values for each law, from a connection's maps on the same data."""
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
