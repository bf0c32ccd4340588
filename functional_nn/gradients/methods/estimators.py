"""Gradients without a way back: random directions, along which F is differentiated forwards, or only asked for.

Letters: P parameters in all, v a random direction as large as they are, of independent numbers with mean 0 and variance
1, F' = grad F.v the derivative along it, N how many directions are averaged, c or sigma how far a step goes.

    forward_gradient      F' v                                                Baydin et al. 2022 (arXiv 2202.08587),
    Alg. 1 weight_perturbation   (F(w + sigma v) - F(w)) / sigma  v                  Jabri and Flower 1992 spsa
    (F(w + c v) - F(w - c v)) / 2c  v, v of signs       Spall 1992 evolution_strategy    (F(w + sigma v) - F(w - sigma
    v)) / 2 sigma  v      Salimans et al. 2017 (1703.03864), Eq. 2 node_perturbation     of every example: (F_q(n +
    sigma v) - F_q) / sigma  v in the place of dF_q/dn
                                                                              Widrow and Lehr 1990; Werfel et al. 2005
    finite_differences    (F(w + h e_i) - F(w - h e_i)) / 2h, parameter by parameter

E[v v^T] = 1, so that the first is unbiased: E[F' v] = grad F. Those with a step are so to first order in it (one-sided:
the bias is sigma E[v v^T H v] / 2, 0 for symmetric v, and the next is of order sigma^2; two-sided: of order sigma^2).
Of N directions the variance, summed over the parameters, is (P - 2 + k) |grad F|^2 / N, k the fourth moment of v's
numbers: 3 of normal ones, 1 of signs; so that a single direction is right on average and off by sqrt(P) lengths.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from functional_nn import checks
from functional_nn.gradients import draws, factors, rules
from functional_nn.gradients.backprop import (
    Backpropagation,
    Request,
    Sweep,
    contract,
    example_losses,
    start,
)
from functional_nn.gradients.curvature import push_forward
from functional_nn.gradients.rules import Rule
from functional_nn.networks import activations
from functional_nn.networks.network import NOT_MOVED, Layer, Network, Params, Trace, dtype_of, forward

_AT_ONCE = 16  # directions that are gone at the same time


def _traced(request: Request, params: Params | None = None, offsets: dict | None = None) -> Trace:
    # the same neurons are dropped whatever is moved
    return forward(
        request.network, request.params if params is None else params, request.inputs, offsets or {}, request.key
    )


def _value(request: Request, params: Params) -> Array:
    return request.value(_traced(request, params))


def moves(params: Params) -> Params:
    """Which parameters a gradient has: Python booleans; statistics, and what other rules learn, have none."""
    return {
        layer: {name: jax.tree.map(lambda _, n=name: n not in NOT_MOVED, x) for name, x in own.items()}
        for layer, own in params.items()
    }


def _direction(draw: Callable, stream: draws.Stream, params: Params) -> Params:
    leaves, structure = jax.tree.flatten(params)
    moving = jax.tree.leaves(moves(params))
    return structure.unflatten(
        draw(draws.inside(stream, number), x.shape, x.dtype) if moved else jnp.zeros_like(x)
        for number, (x, moved) in enumerate(zip(leaves, moving, strict=True))
    )


def _stepped(params: Params, v: Params, step: Any) -> Params:
    return jax.tree.map(lambda x, d: x + jnp.asarray(step, x.dtype) * d, params, v)


def _scaled(v: Params, by: Array) -> Params:
    return jax.tree.map(lambda d: d * by.astype(d.dtype), v)


def _averaged(request: Request, directions: int, along: Callable[[draws.Stream], Any]) -> Any:
    """The mean over the directions of what is found along each, some of them at once."""
    stream = draws.of_key(request.key)
    if directions == 1:
        return along(draws.inside(stream, 0))
    numbers = jnp.arange(directions, dtype=jnp.uint32)

    def each(number):
        return along(draws.inside(stream, number))

    whole, rest = divmod(directions, min(directions, _AT_ONCE))

    def add(sums, some):
        return jax.tree.map(lambda a, x: a + jnp.sum(x, axis=0), sums, jax.vmap(each)(some))

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(each, numbers[0]))
    blocks = numbers[: directions - rest].reshape(whole, -1)
    sums = lax.scan(lambda sums, some: (add(sums, some), None), zeros, blocks)[0]
    sums = add(sums, numbers[directions - rest :]) if rest else sums
    return jax.tree.map(lambda x: x / directions, sums)


def _step(owner: str, name: str, value: Any) -> Any:
    return checks.constant(owner, name, value, *checks.POSITIVE)


def _told(name: str, *given: tuple[str, Any, Any]) -> str:
    """The rule as it is written: constants that are not as they always are."""
    said = [
        f"{key}={rules.number(value)}"
        for key, value, usual in given
        if isinstance(value, int | float) and value != usual
    ]
    return f"{name}({', '.join(said)})" if said else name


@rules.register
def forward_gradient(directions: int = 1) -> Rule:
    """The mean of (grad F.v) v over normal directions v: unbiased. grad F.v is one forward pass with its derivative
    along v (`curvature.push_forward`), so that no trace has to be kept, and nothing goes back.

    Baydin, Pearlmutter, Syme, Wood and Torr 2022, Alg. 1. Raises ValueError for directions < 1.
    """
    directions = checks.integer("forward_gradient", "directions", directions, 1)

    def method(request: Request) -> Backpropagation:
        network, params, trace, name = request.network, request.params, _traced(request), request.network.output.name
        s, learned = start(network, request.loss, params, trace, request.targets, request.weights)

        def along(stream):
            v = _direction(draws.normal, stream, params)
            slope = jnp.sum(s * push_forward(network, params, trace, v).net_inputs[name])
            for what, f in learned.items():  # which no net input depends on
                slope += jnp.sum(factors.total(f, params[name]["learned"][what]) * v[name]["learned"][what])
            return _scaled(v, slope)

        return request.result(trace, _averaged(request, directions, along))

    return Rule(_told("forward_gradient", ("directions", directions, 1)), method=method, random=True)


def _check_width(name: str, request: Request) -> None:
    # w + sigma v is w again there, and a difference of two F's their rounding
    dtype = dtype_of(request.params)
    if dtype.itemsize < 4:
        raise ValueError(f"rule: {name} takes a small step, which {dtype} does not resolve; give parameters in float32")


def _by_values(draw: Callable, step: Any, directions: int, two_sided: bool, name: str) -> Rule:
    def method(request: Request) -> Backpropagation:
        _check_width(name, request)
        trace = _traced(request)
        here = request.value(trace)

        def along(stream):
            v = _direction(draw, stream, request.params)
            ahead = _value(request, _stepped(request.params, v, step))
            size = jnp.asarray(step, ahead.dtype)
            if two_sided:
                return _scaled(v, (ahead - _value(request, _stepped(request.params, v, -step))) / (2 * size))
            return _scaled(v, (ahead - here) / size)

        return request.result(trace, _averaged(request, directions, along))

    return Rule(name, method=method, random=True, has_derivatives=False)


@rules.register
def weight_perturbation(sigma: float = 1e-3, directions: int = 1) -> Rule:
    """The mean of (F(w + sigma v) - F(w)) / sigma v over normal directions v: two forward passes, also of networks that
    have no derivative. Jabri and Flower 1992.

    Raises ValueError for sigma <= 0 and directions < 1.
    """
    sigma = _step("weight_perturbation", "sigma", sigma)
    directions = checks.integer("weight_perturbation", "directions", directions, 1)
    name = _told("weight_perturbation", ("sigma", sigma, 1e-3), ("directions", directions, 1))
    return _by_values(draws.normal, sigma, directions, False, name)


@rules.register
def spsa(c: float = 1e-3, directions: int = 1) -> Rule:
    """The mean of (F(w + c v) - F(w - c v)) / 2c v over v of signs, whose inverse, elementwise, v itself is:
    simultaneous perturbation. Spall 1992, Eq. 2.2.

    Raises ValueError for c <= 0 and directions < 1.
    """
    c, directions = _step("spsa", "c", c), checks.integer("spsa", "directions", directions, 1)
    name = _told("spsa", ("c", c, 1e-3), ("directions", directions, 1))
    return _by_values(draws.signs, c, directions, True, name)


@rules.register
def evolution_strategy(population: int = 32, sigma: float = 0.02) -> Rule:
    """The mean of (F(w + sigma v) - F(w - sigma v)) / 2 sigma v over population / 2 normal directions, each gone both
    ways: the gradient of F smoothed by a Gaussian of width sigma. Values as they are, no ranks.

    Salimans, Ho, Chen, Sidor and Sutskever 2017, Eq. 2. Raises ValueError for an odd population, or < 2, and sigma <=
    0.
    """
    population = checks.integer("evolution_strategy", "population", population, 2)
    if population % 2:
        raise ValueError(
            f"evolution_strategy: population must be even, each direction goes both ways, got {population}"
        )
    sigma = _step("evolution_strategy", "sigma", sigma)
    name = _told("evolution_strategy", ("population", population, 32), ("sigma", sigma, 0.02))
    return _by_values(draws.normal, sigma, population // 2, True, name)


@rules.register
def node_perturbation(sigma: float = 1e-3, directions: int = 1) -> Rule:
    """Of every example by itself: noise sigma v enters all net inputs, and (F_q(n + sigma v) - F_q) / sigma v is taken
    for dF_q/dn; the gradient is made of that and of what each layer reads, as always. Learned parameters of activations
    stay.

    Werfel, Xie and Seung 2005, Eq. 7, for all layers at once. Raises ValueError for sigma <= 0 and directions < 1.
    """
    sigma = _step("node_perturbation", "sigma", sigma)
    directions = checks.integer("node_perturbation", "directions", directions, 1)

    def method(request: Request) -> Backpropagation:
        _check_width("node_perturbation", request)
        network, trace = request.network, _traced(request)

        def losses_of(trace):
            return request.loss.of_example(
                example_losses(network, request.loss, trace, request.targets), request.positions
            )

        here = losses_of(trace)

        def along(stream):
            v = {
                name: draws.normal(draws.inside(stream, name), n.shape, n.dtype) for name, n in trace.net_inputs.items()
            }
            ahead = losses_of(
                _traced(request, offsets={name: x * jnp.asarray(sigma, x.dtype) for name, x in v.items()})
            )
            slope = (ahead - here) / jnp.asarray(sigma, here.dtype) * request.share.astype(here.dtype)
            return {name: factors.over_rows(x, slope) for name, x in v.items()}

        s = _averaged(request, directions, along)
        nothing = {layer.name: {} for layer in network.layers}
        return request.result(trace, contract(network, request.params, trace, Sweep(s, nothing, {})), s)

    def check(network: Network, layer: Layer) -> None:
        if activations.mixes_examples(layer.activation, network.net_shapes[layer.name]):
            raise ValueError(
                f"rule: node_perturbation asks what each example's own loss makes of its noise, and {layer.name!r} of "
                f"{layer.activation.name!r} lets in that of others"
            )

    name = _told("node_perturbation", ("sigma", sigma, 1e-3), ("directions", directions, 1))
    return Rule(name, method=method, check=check, random=True, has_derivatives=False)


@rules.register
def finite_differences(step: float | None = None) -> Rule:
    """(F(w + h e_i) - F(w - h e_i)) / 2h for every parameter, 2 P forward passes: slow, and right to h^2, but for
    rounding, which is eps F / h. step: h; by default the cube root of the dtype's eps, times |w_i| where that is above
    1.

    Raises ValueError for a step <= 0.
    """
    step = step if step is None else _step("finite_differences", "step", step)

    def method(request: Request) -> Backpropagation:
        _check_width("finite_differences", request)
        flat, unravel = ravel_pytree(request.params)
        moving = np.flatnonzero(
            np.concatenate(
                [
                    np.full(x.size, moved)
                    for x, moved in zip(
                        jax.tree.leaves(request.params), jax.tree.leaves(moves(request.params)), strict=True
                    )
                ]
            )
        )

        def slope(i):
            own = flat[i]
            usual = jnp.asarray(float(jnp.finfo(flat.dtype).eps) ** (1 / 3), flat.dtype) * jnp.maximum(jnp.abs(own), 1)
            h = usual if step is None else jnp.asarray(step, flat.dtype)
            low, high = own - h, own + h  # as they are once rounded
            there, back = (_value(request, unravel(flat.at[i].set(x))) for x in (high, low))
            return (there - back) / (high - low)

        found = lax.map(slope, jnp.asarray(moving), batch_size=_AT_ONCE)
        gradients = unravel(jnp.zeros_like(flat).at[moving].set(found.astype(flat.dtype)))
        return request.result(_traced(request), gradients)

    name = "finite_differences" if step is None else _told("finite_differences", ("step", step, None))
    return Rule(name, method=method, has_derivatives=False)
