r"""Gradients without a way back: random directions, along which F is differentiated forwards, or only evaluated.

Letters: P parameters in all; v a random direction of P independent numbers with mean 0 and variance 1;
:math:`F' = \nabla F \cdot v` the derivative along it; N the number of directions that are averaged; c or
:math:`\sigma` the length of a step.

Forward gradient (Baydin et al. 2022, arXiv 2202.08587, Alg. 1):

.. math:: F' \, v

Weight perturbation (Jabri and Flower 1992):

.. math:: \frac{F(w + \sigma v) - F(w)}{\sigma} \, v

Simultaneous perturbation, with v of signs (Spall 1992):

.. math:: \frac{F(w + c v) - F(w - c v)}{2 c} \, v

Evolution strategy (Salimans et al. 2017, arXiv 1703.03864, Eq. 2):

.. math:: \frac{F(w + \sigma v) - F(w - \sigma v)}{2 \sigma} \, v

Node perturbation, for every example instead of :math:`\partial F_q / \partial n` (Widrow and Lehr 1990; Werfel et al.
2005):

.. math:: \frac{F_q(n + \sigma v) - F_q}{\sigma} \, v

Finite differences, parameter by parameter:

.. math:: \frac{F(w + h e_i) - F(w - h e_i)}{2 h}

Since :math:`E[v v^T] = I`, the first is unbiased: :math:`E[F' v] = \nabla F`. Those with a step are unbiased to first
order in it. One-sided, the bias is :math:`\sigma E[v v^T H v] / 2`, which is 0 for symmetric v, and the next term is of
order :math:`\sigma^2`; two-sided, it is of order :math:`\sigma^2`. The variance with N directions, summed over the
parameters, is

.. math:: \frac{P - 2 + k}{N} \lVert \nabla F \rVert^2

with k the fourth moment of v's numbers, 3 for normal ones and 1 for signs. A single direction is right on average and
off by :math:`\sqrt{P}` lengths.
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

__all__ = [
    "evolution_strategy",
    "finite_differences",
    "forward_gradient",
    "node_perturbation",
    "spsa",
    "weight_perturbation",
]

_AT_ONCE = 16  # directions that are evaluated together


def _traced(request: Request, params: Params | None = None, offsets: dict | None = None) -> Trace:
    # the same neurons are dropped, whatever is moved
    return forward(
        request.network, request.params if params is None else params, request.inputs, offsets or {}, request.key
    )


def _value(request: Request, params: Params) -> Array:
    return request.value(_traced(request, params))


def moves(params: Params) -> Params:
    """Returns which parameters a gradient has, as Python booleans; statistics and what other rules learn have none."""
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


def _displaced(params: Params, v: Params, step: Any) -> Params:
    return jax.tree.map(lambda x, d: x + jnp.asarray(step, x.dtype) * d, params, v)


def _scaled(v: Params, by: Array) -> Params:
    return jax.tree.map(lambda d: d * by.astype(d.dtype), v)


def _averaged(request: Request, directions: int, along: Callable[[draws.Stream], Any]) -> Any:
    """Returns the mean over the directions of along(stream), some of them at once."""
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


def _specification(name: str, *constants: tuple[str, Any, Any]) -> str:
    """Returns the specification of a rule: constants that differ from their defaults."""
    arguments = [
        f"{key}={rules.number(value)}"
        for key, value, default in constants
        if isinstance(value, int | float) and value != default
    ]
    return f"{name}({', '.join(arguments)})" if arguments else name


@rules.register
def forward_gradient(directions: int = 1) -> Rule:
    """Returns the rule of the forward gradient: the mean of (grad F . v) v over normal directions v, which is unbiased.

    grad F . v is one forward pass with its derivative along v (`curvature.push_forward`). No trace has to be kept, and
    nothing goes back.

    Args:
        directions: Number of directions, >= 1.

    Returns:
        The rule. It draws at every update.

    Raises:
        ValueError: For directions < 1.

    References:
        Baydin, Pearlmutter, Syme, Wood and Torr 2022 (arXiv 2202.08587), Alg. 1.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="forward_gradient")
        >>> step(params, x, t, None, jax.random.key(1))[1]["layer1"]["bias"].shape
        (2,)
    """
    directions = checks.integer("forward_gradient", "directions", directions, 1)

    def method(request: Request) -> Backpropagation:
        network, params, trace, name = request.network, request.params, _traced(request), request.network.output.name
        s, learned = start(network, request.loss, params, trace, request.targets, request.weights)

        def along(stream):
            v = _direction(draws.normal, stream, params)
            slope = jnp.sum(s * push_forward(network, params, trace, v).net_inputs[name])
            for what, f in learned.items():  # on which no net input depends
                slope += jnp.sum(factors.total(f, params[name]["learned"][what]) * v[name]["learned"][what])
            return _scaled(v, slope)

        return request.result(trace, _averaged(request, directions, along))

    return Rule(_specification("forward_gradient", ("directions", directions, 1)), method=method, random=True)


def _check_width(name: str, request: Request) -> None:
    # in 16 bits w + sigma v is w again, and the difference of two F is their rounding
    dtype = dtype_of(request.params)
    if dtype.itemsize < 4:
        raise ValueError(f"rule: {name} takes a small step, which {dtype} does not resolve; give parameters in float32")


def _by_values(draw: Callable, step: Any, directions: int, two_sided: bool, name: str) -> Rule:
    def method(request: Request) -> Backpropagation:
        _check_width(name, request)
        trace = _traced(request)
        value = request.value(trace)

        def along(stream):
            v = _direction(draw, stream, request.params)
            ahead = _value(request, _displaced(request.params, v, step))
            size = jnp.asarray(step, ahead.dtype)
            if two_sided:
                return _scaled(v, (ahead - _value(request, _displaced(request.params, v, -step))) / (2 * size))
            return _scaled(v, (ahead - value) / size)

        return request.result(trace, _averaged(request, directions, along))

    return Rule(name, method=method, random=True, has_derivatives=False)


@rules.register
def weight_perturbation(sigma: float = 1e-3, directions: int = 1) -> Rule:
    """Returns the rule of weight perturbation: the mean of (F(w + sigma v) - F(w)) / sigma v over normal directions v.

    It takes two forward passes, and works for networks without derivative too.

    Args:
        sigma: Length of the step, > 0.
        directions: Number of directions, >= 1.

    Returns:
        The rule. It draws at every update.

    Raises:
        ValueError: For sigma <= 0 and directions < 1.

    References:
        Jabri and Flower 1992 (IEEE Trans. Neural Networks 3, 154).

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="weight_perturbation")
        >>> step(params, x, t, None, jax.random.key(1))[1]["layer1"]["bias"].shape
        (2,)
    """
    sigma = _step("weight_perturbation", "sigma", sigma)
    directions = checks.integer("weight_perturbation", "directions", directions, 1)
    name = _specification("weight_perturbation", ("sigma", sigma, 1e-3), ("directions", directions, 1))
    return _by_values(draws.normal, sigma, directions, False, name)


@rules.register
def spsa(c: float = 1e-3, directions: int = 1) -> Rule:
    """Returns the rule of simultaneous perturbation: the mean of (F(w + c v) - F(w - c v)) / 2c v over v of signs.

    For signs the elementwise inverse of v, by which the paper multiplies, is v itself.

    Args:
        c: Length of the step, > 0.
        directions: Number of directions, >= 1.

    Returns:
        The rule. It draws at every update.

    Raises:
        ValueError: For c <= 0 and directions < 1.

    References:
        Spall 1992 (IEEE Trans. Automatic Control 37, 332), Eq. 2.2.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="spsa")
        >>> step(params, x, t, None, jax.random.key(1))[1]["layer1"]["bias"].shape
        (2,)
    """
    c, directions = _step("spsa", "c", c), checks.integer("spsa", "directions", directions, 1)
    name = _specification("spsa", ("c", c, 1e-3), ("directions", directions, 1))
    return _by_values(draws.signs, c, directions, True, name)


@rules.register
def evolution_strategy(population: int = 32, sigma: float = 0.02) -> Rule:
    """Returns the rule of an evolution strategy: the gradient of F smoothed by a Gaussian of width sigma.

    It is the mean of (F(w + sigma v) - F(w - sigma v)) / 2 sigma v over population / 2 normal directions, each taken
    both ways. Values are used as they are, without ranks.

    Args:
        population: Even number of evaluations, >= 2.
        sigma: Length of the step, > 0.

    Returns:
        The rule. It draws at every update.

    Raises:
        ValueError: For an odd population or one < 2, and for sigma <= 0.

    References:
        Salimans, Ho, Chen, Sidor and Sutskever 2017 (arXiv 1703.03864), Eq. 2.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="evolution_strategy(4)")
        >>> step(params, x, t, None, jax.random.key(1))[1]["layer1"]["bias"].shape
        (2,)
    """
    population = checks.integer("evolution_strategy", "population", population, 2)
    if population % 2:
        raise ValueError(
            f"evolution_strategy: population must be even, since each direction is taken both ways, got {population}"
        )
    sigma = _step("evolution_strategy", "sigma", sigma)
    name = _specification("evolution_strategy", ("population", population, 32), ("sigma", sigma, 0.02))
    return _by_values(draws.normal, sigma, population // 2, True, name)


@rules.register
def node_perturbation(sigma: float = 1e-3, directions: int = 1) -> Rule:
    """Returns the rule of node perturbation: (F_q(n + sigma v) - F_q) / sigma v replaces dF_q/dn in each example.

    The noise enters all net inputs at once. The gradient is made from that and from what each layer reads, as always.
    Learned parameters of activations do not move.

    Args:
        sigma: Length of the step, > 0.
        directions: Number of directions, >= 1.

    Returns:
        The rule. It draws at every update.

    Raises:
        ValueError: For sigma <= 0 and directions < 1.

    References:
        Werfel, Xie and Seung 2005 (Neural Computation 17, 2699), Eq. 7, for all layers at once.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> step = fnn.value_and_grad(network, "cross_entropy", rule="node_perturbation")
        >>> step(params, x, t, None, jax.random.key(1))[1]["layer1"]["bias"].shape
        (2,)
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

        values = losses_of(trace)

        def along(stream):
            v = {
                name: draws.normal(draws.inside(stream, name), n.shape, n.dtype) for name, n in trace.net_inputs.items()
            }
            ahead = losses_of(
                _traced(request, offsets={name: x * jnp.asarray(sigma, x.dtype) for name, x in v.items()})
            )
            slope = (ahead - values) / jnp.asarray(sigma, values.dtype) * request.share.astype(values.dtype)
            return {name: factors.over_rows(x, slope) for name, x in v.items()}

        s = _averaged(request, directions, along)
        no_learned = {layer.name: {} for layer in network.layers}
        return request.result(trace, contract(network, request.params, trace, Sweep(s, no_learned, {})), s)

    def check(network: Network, layer: Layer) -> None:
        if activations.mixes_examples(layer.activation, network.net_shapes[layer.name]):
            raise ValueError(
                f"rule: node_perturbation needs each example's loss to depend on its own noise alone, but layer "
                f"{layer.name!r} of {layer.activation.name!r} mixes examples"
            )

    name = _specification("node_perturbation", ("sigma", sigma, 1e-3), ("directions", directions, 1))
    return Rule(name, method=method, check=check, random=True, has_derivatives=False)


@rules.register
def finite_differences(step: float | None = None) -> Rule:
    """Returns the rule of central differences, (F(w + h e_i) - F(w - h e_i)) / 2h for every parameter.

    It takes 2 P forward passes: slow, and right to order h^2, apart from rounding, which is eps F / h.

    Args:
        step: h > 0. By default the cube root of the dtype's eps, times `|w_i|` where that is above 1.

    Returns:
        The rule.

    Raises:
        ValueError: For a step <= 0.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x, t = network.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5) % 2
        >>> found = fnn.value_and_grad(network, "cross_entropy", rule="finite_differences")(params, x, t)[1]
        >>> exact = fnn.value_and_grad(network, "cross_entropy")(params, x, t)[1]
        >>> bool(jnp.allclose(found["layer1"]["bias"], exact["layer1"]["bias"], atol=1e-3))
        True
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
            default = jnp.asarray(float(jnp.finfo(flat.dtype).eps) ** (1 / 3), flat.dtype) * jnp.maximum(
                jnp.abs(own), 1
            )
            h = default if step is None else jnp.asarray(step, flat.dtype)
            low, high = own - h, own + h  # as they are once rounded
            above, below = (_value(request, unravel(flat.at[i].set(x))) for x in (high, low))
            return (above - below) / (high - low)

        slopes = lax.map(slope, jnp.asarray(moving), batch_size=_AT_ONCE)
        gradients = unravel(jnp.zeros_like(flat).at[moving].set(slopes.astype(flat.dtype)))
        return request.result(_traced(request), gradients)

    name = "finite_differences" if step is None else _specification("finite_differences", ("step", step, None))
    return Rule(name, method=method, has_derivatives=False)
