r"""Recurrences: a state that goes from position to position of a signal, in time.

Letters: Q examples, T positions, S neurons, k pieces of each; n (Q, T, k S) in blocks of S, one for each gate. At every
step the layer reads its own state h in addition to its net inputs: with U (k S, S) the recurrent weights and h_0
learned,

.. math::

    z_t = U h_{t-1}, \qquad h_t = \mathrm{cell}(n_t, z_t, h_{t-1}), \qquad a_t = h_t

`recurrent` (Elman 1990):

.. math::

    h_t = f(n_t + z_t)

`gru` (Cho et al. 2014, Eq. 5-8, with r after U, as in cuDNN and PyTorch):

.. math::

    \begin{aligned}
    r &= \mathrm{sigmoid}(n^r + z^r), \quad u = \mathrm{sigmoid}(n^u + z^u), \quad c = \tanh(n^c + r z^c) \\
    h_t &= (1 - u) \, c + u \, h_{t-1}
    \end{aligned}

`lstm` (Hochreiter and Schmidhuber 1997; the forget gate p is that of Gers et al. 2000):

.. math::

    \begin{aligned}
    i &= \mathrm{sigmoid}(n^i + z^i), \quad p = \mathrm{sigmoid}(n^p + z^p + 1), \quad o = \mathrm{sigmoid}(n^o + z^o)
    \\ c &= \tanh(n^c + z^c), \quad m_t = p \, m_{t-1} + i \, c, \quad h_t = o \tanh(m_t)
    \end{aligned}

Backward, through time (Werbos 1990; Hagan et al., Neural Network Design, 2nd ed., ch. 14, dynamic backpropagation). F
depends on h_t in two ways: by a_t, with g_t = dF/da_t, and by all that comes later, through h_(t+1). Let d_t be the sum
of both, e_t = dF/dz_t and s_t = dF/dn_t. Then, with d_T = g_T,

.. math::

    \begin{aligned}
    d_t &= g_t + U^T e_{t+1} + \text{what the cell itself carries back from } d_{t+1} \\
    (s_t, e_t) &= \text{the cell's derivatives times } d_t
    \end{aligned}

where the second line is s_t = e_t = f'(n_t + z_t) d_t for `recurrent`. This is one scan over the positions, from the
last. U acts at every step: its derivative of example q is sum_t e_t h_(t-1)^T, a sum of outer products as of any
weights that positions share; that of h_0 is d_0. The size of s_t by t shows whether gradients vanish or explode:
through j steps they are multiplied by j factors f'(.) U (CSE 475, 19.73.1; Pascanu et al. 2013, Eq. 5).

`truncate=j` cuts time in segments of j steps: values are passed from one to the next, derivatives are not. The result
is not the derivative of F, but that of a forward map whose state is held fixed there, and `forward` tells JAX so, too.

From an example's length on (theta["lengths"]) its state is held: a_t = h_length, so that the last position has the last
state that counts.

Forward along a tangent each cell changes as its products do. The change of the pullback itself would be long to write
by hand: it is the forward derivative of the pullback below.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.networks.activations.activation import (
    Activation,
    Theta,
    by_forward_derivative,
    counted,
    get,
    register,
)
from functional_nn.networks.connections import Factors
from functional_nn.precision import at_least_float32
from functional_nn.rows import cached

State = tuple[Array, ...]  # (Q, S) each: h, and what else the next step reads


class _Cell(NamedTuple):
    """One step. gates: k; initial: the names of the learned initial states, that of h first.

    forward(n, z, state) -> (the next state, kept). back(d, kept, state, after) -> (s, e, dF/dstate without what goes
    through z), with d the derivatives with respect to the next state, `after`, which include all later steps. push(r_n,
    r_z, r_state, kept, state, after) -> R{the next state}.
    """

    gates: int
    forward: Callable[[Array, Array, State], tuple[State, Any]]
    back: Callable[[State, Any, State, State], tuple[Array, Array, State]]
    push: Callable[[Array, Array, State, Any, State, State], State]
    initial: tuple[str, ...] = ("initial",)


class Unrolled(NamedTuple):
    """What a recurrence keeps of all steps.

    Attributes:
        cells: what the cell kept, (T, Q, ...).
        states: its states other than h, (T, Q, S) each.
    """

    cells: Any
    states: State


class _Step(NamedTuple):
    """Of one step, or of all with T in front: does it count for each example (Q, 1); is the state cut off before
    it?
    """

    counts: Array | None
    cut: Array | None


def _recurrence(
    name: str, cell: _Cell, truncate: int | None, constants: tuple[Any, ...] = (), kinks: Callable | None = None
) -> Activation:
    if truncate is not None:
        truncate = checks.integer(name, "truncate", truncate, 1)
        constants = (*constants, f"truncate={truncate}")

    def steps(n: Array, theta: Theta) -> _Step:
        times, counts = np.arange(n.shape[1]), counted(theta, n.shape[1])
        counts = None if counts is None else counts.T[..., None]
        cut = None if truncate is None else jnp.asarray((times % truncate == 0) & (times > 0))
        return _Step(counts, cut)

    def started(n: Array, theta: Theta) -> State:
        return tuple(jnp.broadcast_to(theta[each][None], (len(n), theta[each].size)) for each in cell.initial)

    def run(body: Callable, first: State, n: Array, *rest: Any, reverse: bool = False):
        return lax.scan(body, first, (_by_time(n), *rest), reverse=reverse)

    def forward(n, theta):
        if n.ndim != 3:
            raise ValueError(f"needs a signal (T, channels), got shape {n.shape[1:]}")

        def advance(state, scanned):
            entering, step = scanned
            state = _cut(state, step.cut)
            after, kept = cell.forward(entering, _through(state[0], theta["recurrent"]), state)
            after = _held(step.counts, after, state)
            return after, (after, kept)

        _, (states, kept) = run(advance, started(n, theta), n, steps(n, theta))
        return _by_time(states[0]), Unrolled(kept, states[1:])

    def before(n, a, kept, theta) -> tuple[State, State]:
        # the states before and after every step, (T, Q, S) each
        after = (_by_time(a), *kept.states)
        first = started(n, theta)
        return tuple(jnp.concatenate([h[None], x[:-1]]) for h, x in zip(first, after, strict=True)), after

    def pullback(g, n, a, kept, theta):
        all_steps, (states, after) = steps(n, theta), before(n, a, kept, theta)
        states = _cut(states, all_steps.cut)

        def back(d, scanned):
            g, step, kept, state, after = scanned
            d = (d[0] + g, *d[1:])
            arriving = _held(step.counts, d, _zeros(d))
            s, e, direct = cell.back(arriving, kept, state, after)
            through = (direct[0] + _through_back(e, theta["recurrent"]), *direct[1:])
            through = _held(step.counts, through, d)
            if step.cut is not None:
                through = tuple(jnp.where(step.cut, 0, x) for x in through)
            return through, (s, None if s is e else e)

        none = _zeros(tuple(x[0] for x in states))
        first, (s, e) = run(back, none, g, all_steps, kept.cells, states, after, reverse=True)
        s = _by_time(s)
        shares = {"recurrent": Factors(s if e is None else _by_time(e), _by_time(states[0]))}
        return s, shares | {each: Factors(d, None) for each, d in zip(cell.initial, first, strict=True)}

    def pushforward(r, r_theta, n, a, kept, theta):
        all_steps, (states, after) = steps(n, theta), before(n, a, kept, theta)

        def push(r_state, scanned):
            r_n, step, kept, state, after = scanned
            if step.cut is not None:
                r_state = tuple(jnp.where(step.cut, 0, x) for x in r_state)
            r_z = _through(r_state[0], theta["recurrent"]) + _through(state[0], r_theta["recurrent"])
            moved = _held(step.counts, cell.push(r_n, r_z, r_state, kept, state, after), r_state)
            return moved, moved[0]

        return _by_time(run(push, started(n, r_theta), r, all_steps, kept.cells, states, after)[1])

    def parameters(size: int, dtype) -> Theta:
        return {"recurrent": jnp.zeros((cell.gates * size, size), dtype)} | {
            each: jnp.zeros(size, dtype) for each in cell.initial
        }

    def drawn(size: int, dtype, key: Array) -> Theta:
        # an orthogonal matrix for each gate: through it, lengths stay as they are (Saxe et al. 2014)
        matrices = jax.random.orthogonal(key, size, (cell.gates,), at_least_float32(dtype))
        return {"recurrent": matrices.reshape(-1, size).astype(dtype)}

    return Activation(
        f"{name}({', '.join(map(str, constants))})",
        forward,
        pullback,
        pushforward,
        by_forward_derivative(forward, pullback),
        kink_distance=kinks,
        parameters=parameters,
        drawn=drawn,
        pieces=cell.gates,
        by_length=True,
        through_time=True,
        cuts=truncate is not None,
    )


def _by_time(x: Array) -> Array:
    """(Q, T, ...) -> (T, Q, ...), and back."""
    return jnp.swapaxes(x, 0, 1)


def _through(h: Array, U: Array) -> Array:
    # z = U h of every example
    return lax.dot_general(h, U, (((1,), (1,)), ((), ())))


def _through_back(e: Array, U: Array) -> Array:
    return lax.dot_general(e, U, (((1,), (0,)), ((), ())))


def _zeros(state: State) -> State:
    return tuple(map(jnp.zeros_like, state))


def _held(counts: Array | None, new: State, old: State) -> State:
    if counts is None:
        return new
    return tuple(jnp.where(counts, x, y) for x, y in zip(new, old, strict=True))


def _cut(state: State, cut: Array | None) -> State:
    # the values, detached from what they depend on; for all steps (T, Q, S), cut (T,)
    if cut is None:
        return state
    cut = cut.reshape(*cut.shape, *(1,) * (state[0].ndim - cut.ndim))
    return tuple(jnp.where(cut, lax.stop_gradient(x), x) for x in state)


def _slope(y: Array) -> Array:
    # of a sigmoid, from its value
    return y * (1 - y)


def _tanh_slope(y: Array) -> Array:
    return (1 - y) * (1 + y)


# Cells ----------------------------------------------------------------------------------------------------------------


@register
@cached
def recurrent(activation: str | Activation = "tanh", truncate: int | None = None) -> Activation:
    """A plain recurrence: h_t = f(n_t + U h_(t-1)), (Q, T, S) -> (Q, T, S) (Elman 1990).

    Learned: "recurrent" U (S, S), from an orthogonal matrix, and "initial" h_0 (S,), from 0.

    Args:
        activation: f, elementwise, by name or as an `Activation`.
        truncate: derivatives go through this many steps, as the module describes; None: through all.

    Raises:
        ValueError: f is not elementwise or has no derivative, or truncate is not a positive integer.

    Example:
        >>> from functional_nn import activations
        >>> activations.recurrent("relu", truncate=10)
        <activation recurrent(relu, truncate=10)>
    """
    f = get(activation)
    if not f.alone or f.pieces > 1 or f.parameters or f.pullback is None:
        raise ValueError(f"recurrent: needs an elementwise activation with a derivative, got {f.name!r}")
    return _elman(f, truncate)


@functools.cache  # one row, whether f is passed by name or as a row
def _elman(f: Activation, truncate: int | None) -> Activation:
    def forward(n, z, state):
        entered = n + z
        h, kept = f.forward(entered, {})
        return (h,), (entered, kept)

    def back(d, kept, state, after):
        s, _ = f.pullback(d[0], kept[0], after[0], kept[1], {})
        return s, s, _zeros(state)

    def push(r_n, r_z, r_state, kept, state, after):
        return (f.pushforward(r_n + r_z, {}, kept[0], after[0], kept[1], {}),)

    kinks = None if f.smooth else lambda n, kept: f.kink_distance(_by_time(kept.cells[0]))
    return _recurrence("recurrent", _Cell(1, forward, back, push), truncate, (f.name,), kinks)


@register
@cached
def gru(truncate: int | None = None) -> Activation:
    """A gated recurrent unit, (Q, T, 3 S) -> (Q, T, S): Cho et al. 2014 (arXiv 1406.1078).

    The three net inputs of a neuron are in blocks [reset | update | candidate]. The reset gate acts on the state after
    its weights, as in cuDNN and PyTorch, whose GRU this is with a second bias of 0. Learned: "recurrent" U (3 S, S),
    from orthogonal matrices, and "initial" h_0 (S,), from 0.

    Args:
        truncate: as for `recurrent`.

    Raises:
        ValueError: truncate is not a positive integer.

    Example:
        >>> from functional_nn import activations
        >>> activations.output_shape(activations.gru(), (5, 24))
        (5, 8)
    """

    def forward(n, z, state):
        (h,), (n_r, n_u, n_c), (z_r, z_u, z_c) = state, jnp.split(n, 3, -1), jnp.split(z, 3, -1)
        r, u = lax.logistic(n_r + z_r), lax.logistic(n_u + z_u)
        c = lax.tanh(n_c + r * z_c)
        return (c + u * (h - c),), (r, u, c, z_c)

    def back(d, kept, state, after):
        (d,), (h,), (r, u, c, z_c) = d, state, kept
        s_c = d * (1 - u) * _tanh_slope(c)
        s_u = d * (h - c) * _slope(u)
        s_r = s_c * z_c * _slope(r)
        return jnp.concatenate([s_r, s_u, s_c], -1), jnp.concatenate([s_r, s_u, s_c * r], -1), (d * u,)

    def push(r_n, r_z, r_state, kept, state, after):
        (r_h,), (h,), (r, u, c, z_c) = r_state, state, kept
        (n_r, n_u, n_c), (z_r, z_u, moved_z) = jnp.split(r_n, 3, -1), jnp.split(r_z, 3, -1)
        r_r, r_u = _slope(r) * (n_r + z_r), _slope(u) * (n_u + z_u)
        r_c = _tanh_slope(c) * (n_c + r_r * z_c + r * moved_z)
        return (r_c + r_u * (h - c) + u * (r_h - r_c),)

    return _recurrence("gru", _Cell(3, forward, back, push), truncate)


@register
@cached
def lstm(forget_bias: float = 1.0, truncate: int | None = None) -> Activation:
    """Long short-term memory, (Q, T, 4 S) -> (Q, T, S): Hochreiter and Schmidhuber 1997.

    It has the forget gate of Gers, Schmidhuber and Cummins 2000. The four net inputs of a neuron are in blocks
    [input | forget | cell | output], as in PyTorch. Learned: "recurrent" U (4 S, S), from orthogonal matrices,
    "initial" h_0 and "initial_cell" m_0, (S,) each, from 0.

    Args:
        forget_bias: added to the forget gate's net inputs, so that at the start the memory is kept (Jozefowicz et al.
            2015).
        truncate: as for `recurrent`.

    Raises:
        ValueError: forget_bias is not finite, or truncate is not a positive integer.

    Example:
        >>> from functional_nn import activations
        >>> activations.output_shape(activations.lstm(), (5, 32))
        (5, 8)
    """
    return _lstm(float(checks.constant("lstm", "forget_bias", forget_bias, np.isfinite, "finite")), truncate)


@functools.cache  # one row, whichever type of number forget_bias is
def _lstm(forget_bias: float, truncate: int | None) -> Activation:
    def forward(n, z, state):
        _, m = state
        n_i, n_p, n_c, n_o = jnp.split(n + z, 4, -1)
        i, p, o = lax.logistic(n_i), lax.logistic(n_p + forget_bias), lax.logistic(n_o)
        c = lax.tanh(n_c)
        m = p * m + i * c
        return (o * lax.tanh(m), m), (i, p, c, o)

    def back(d, kept, state, after):
        (d, d_m), (_, m), (i, p, c, o), out = d, state, kept, lax.tanh(after[1])
        d_m = d_m + d * o * _tanh_slope(out)
        gates = [d_m * c * _slope(i), d_m * m * _slope(p), d_m * i * _tanh_slope(c), d * out * _slope(o)]
        s = jnp.concatenate(gates, -1)
        return s, s, (jnp.zeros_like(d), d_m * p)

    def push(r_n, r_z, r_state, kept, state, after):
        (_, r_m), (_, m), (i, p, c, o), out = r_state, state, kept, lax.tanh(after[1])
        r_i, r_p, r_c, r_o = jnp.split(r_n + r_z, 4, -1)
        r_m = p * r_m + _slope(p) * r_p * m + _slope(i) * r_i * c + i * _tanh_slope(c) * r_c
        return _slope(o) * r_o * out + o * _tanh_slope(out) * r_m, r_m

    cell = _Cell(4, forward, back, push, ("initial", "initial_cell"))
    return _recurrence("lstm", cell, truncate, (forget_bias,))
