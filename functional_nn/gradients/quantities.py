"""What else one backward sweep gives: each quantity a short contraction of sensitivities and activations.

Letters: Q examples, S neurons of a layer, R of the source it reads, C directions swept back at once, P parameters in
all; g_q = dF_q/dparams, the gradient of one example's own loss F_q, whatever the reduction of F makes of their sum.

Of a layer's weights, example q's gradient is the outer product s_q a_q^T: never formed, it has the norm |s_q| |a_q|,
the inner product (s_q . s_r) (a_q . a_r) with another, and the squares s_q^2 (a_q^2)^T. Swept from the columns of
another matrix than dF/dn^M (unit vectors, or a root of the loss's curvature), the same contractions give Jacobian,
tangent kernel and Gauss-Newton quantities. Of a layer with a bias per neuron, which reads 1 beside a (sums over layers,
and over the sources of a layer, are left out):

    |g_q|^2            |s_q|^2 (|a_q|^2 + 1)
    g_q . g_r          (s_q . s_r) (a_q . a_r + 1)
    mean of g_q^2      (s^2)^T a^2 / Q, elementwise; the variance is that less (mean of g_q)^2
    clipped            (s_q min(1, c / |g_q|))^T a
    noise scale        tr(Sigma) / |G|^2: mean |g_q|^2 is |G|^2 + tr(Sigma) in expectation, and
                       |mean g_q|^2 is |G|^2 + tr(Sigma) / Q
    tangent kernel     K_qr,cd = (s_qc . s_rd) (a_q . a_r + 1), s_qc swept from the unit vector of output c
    Gauss-Newton       sum_q J_q^T H_q J_q with H_q = V V^T: the sum over q and c of what s_qc a_q^T, as a vector, has
                       for an outer product with itself, s_qc swept from V's column c
    Kronecker factors  of that, s_qc s_qc^T (x) a_q a_q^T, the sum over q taken of each factor alone

Every function here takes `(network, loss, params, inputs, targets)` as `backpropagate` does and, by keyword, its own
options beside those of `compute`: weights, block and budget. Norms, moments and noise are kept in at least float32,
everything else in the parameters' dtype. No neuron is dropped in layers with dropout. Compile what you call again and
again: `jax.jit(lambda params: quantities.variance(network, loss, params, inputs, targets))`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, registry
from functional_nn.gradients import backprop, factors, rules
from functional_nn.gradients.views import (
    BLOCK,
    BUDGET,
    Examples,
    Of,
    View,
    block_order,
    check_budget,
    fitting,
    in_blocks,
    prepare,
    swept_from,
)
from functional_nn.networks import losses
from functional_nn.networks.activations import Activation, Theta
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Layer, Network, Params, moved, theta
from functional_nn.precision import wide

# Sums of factors ------------------------------------------------------------------------------------------------------


def _norms(view: View) -> Array:
    # (Q,): |g_q|
    return jnp.sqrt(sum(_layer_squares(view.gradients).values()))


def _layer_squares(factored: Params) -> dict[str, Array]:
    # {layer: |g_q|^2 (Q,)} of the layers that have parameters
    leaves = {name: factors.leaves(own) for name, own in factored.items()}
    return {name: sum(map(factors.square_norms, own)) for name, own in leaves.items() if own}


def _second_moments(factored: Params, part: Array | None, params: Params) -> Params:
    return factors.shaped(factors.each(functools.partial(factors.second_moment, part=part), factored), params)


def _square(tree: Params) -> Array:
    return sum(jnp.sum(wide(leaf) ** 2) for leaf in jax.tree.leaves(tree))


# How a quantity is declared -------------------------------------------------------------------------------------------


class Whole(NamedTuple):
    """All examples and what they are given to, for what a quantity does after its blocks."""

    network: Network
    loss: Loss | None
    params: Params
    examples: Examples
    total: Array | float
    block: int | None

    @property
    def count(self) -> int:
        """Q."""
        return len(self.examples.part)

    @property
    def size(self) -> int:
        """P."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


class _Rule(NamedTuple):
    """measure(view, **options): rows (Q, ...) that are put side by side or, where it adds, sums over the examples.

    finish(measured, whole, **options) makes the result of that. elements(whole, **options): numbers in the result.
    """

    measure: Callable
    adds: bool
    finish: Callable | None
    reads_loss: bool
    elements: Callable | None
    instead: str
    options: dict[str, Any]


_rules: dict[str, _Rule] = {}
_SHARED = ("weights", "block", "budget", "rule", "rule_key")
_OPTIONS = {  # what is checked of each option, before anything is computed
    "max_norm": lambda owner, value: checks.constant(owner, "max_norm", value, *checks.POSITIVE),
    "noise_multiplier": lambda owner, value: checks.constant(owner, "noise_multiplier", value, *checks.NON_NEGATIVE),
    "saturation": lambda owner, value: checks.constant(owner, "saturation", value, *checks.NON_NEGATIVE),
    "samples": lambda owner, value: checks.integer(owner, "samples", value, 1),
    "shared": lambda owner, value: checks.one_of(owner, "shared", value, Shared.__args__),
    "of": lambda owner, value: checks.one_of(owner, "of", value, ("outputs", "net_inputs")),
    "key": lambda owner, value: checks.prng_key("key", value),
}


def names() -> tuple[str, ...]:
    """The quantities that `compute` knows."""
    return tuple(_rules)


def register(*, adds=False, finish=None, reads_loss=True, elements=None, instead=""):
    """Makes `measure(view, *, options)` a quantity that `compute` knows, and a function of its own. A decorator.

    measure: of a block of examples, a `views.View`: rows (Q, ...), which are put side by side, or with adds=True sums
    over its examples, weighed by `view.part`. finish(measured, whole, **options) makes the result of what all blocks
    gave, where that is not the result yet. reads_loss: False where neither loss nor targets are needed. elements(whole,
    **options): how many numbers the result has, where it may be too large; instead: what to do then. Raises ValueError
    for a name that is taken.
    """

    def declare(measure):
        name = measure.__name__
        if name in _rules:
            raise ValueError(f"quantity {name!r} is already registered; choose another name")
        own = [p for p in inspect.signature(measure).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = {p.name: p.default for p in own}
        _rules[name] = _Rule(measure, adds, finish, reads_loss, elements, instead, options)

        def function(network, loss, params, inputs, targets=None, **settings):
            return compute(network, loss, params, inputs, targets, (name,), **settings)[name]

        shared = inspect.signature(compute).parameters
        first = [shared[each] for each in ("network", "loss", "params", "inputs", "targets")]
        first[-1] = first[-1].replace(default=inspect.Parameter.empty if reads_loss else None)
        signature = inspect.Signature([*first, *own, *(shared[each] for each in _SHARED)])
        functools.update_wrapper(function, measure)
        del function.__wrapped__, function.__annotations__
        function.__signature__ = signature
        return function

    return declare


def compute(
    network: Network,
    loss: Loss | str | None,
    params: Params,
    inputs: Inputs,
    targets: Array | None = None,
    names: Sequence[str] = (),
    *,
    weights: Array | None = None,
    block: int | None = BLOCK,
    budget: int = BUDGET,
    rule: rules.Given = "exact",
    rule_key: Array | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Several quantities at once, {name: result}: one trace and each sweep once, whatever is asked for.

    inputs (Q, *P, R), or {name: (Q, *P, R)}; targets (Q, *P, S), None with `loss` None where no quantity asked for
    reads them. weights (Q,): of the examples, in everything that sums over them; of positions (Q, *P). block: examples
    swept at once, None for all, fewer where signals would take more than 256 MiB, on a CPU 32; a larger batch goes in
    blocks, with the same answer, so that only results grow with Q. budget: bytes that a result may take. rule: one of
    `fnn.rules`, by which the way back from the loss goes, so that s_q is what it gives; Jacobians and curvature stay
    exact, and where a rule makes the whole gradient by itself (`gradients.methods`) all is exact but `alignment` and
    `rule_noise`. rule_key: what a random rule draws from. options: those of the quantities asked for, such as
    max_norm=1.0, each given to all that have it.

    >>> import jax, functional_nn as fnn
    >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
    >>> params, x = network.init(jax.random.key(0)), jax.numpy.ones((6, 3))
    >>> t = fnn.one_hot(jax.numpy.arange(6) % 2, 2)
    >>> asked = ("per_example_norms", "clipped_gradient")
    >>> found = fnn.quantities.compute(network, "cross_entropy", params, x, t, asked, max_norm=0.5)
    >>> found["per_example_norms"].shape
    (6,)

    Raises ValueError as `backpropagate`, for an unknown quantity, a missing option or one out of range, a quantity
    that the loss does not admit, and a result above the budget; TypeError for an option that nobody asked takes. What
    goes in blocks is compiled anew by every call outside `jax.jit`.
    """
    options = {option: value for option, value in options.items() if value is not None}
    asked = _rules_for(names, options)
    checks.integer("compute", "budget", budget, 1)
    if any(rule.reads_loss for rule in asked.values()):
        for what, value in (("loss", loss), ("targets", targets)):
            if value is None:
                reading = ", ".join(name for name, rule in asked.items() if rule.reads_loss)
                raise ValueError(f"{what}: {reading} cannot do without")
    block = None if block is None else checks.integer("", "block", block, 1)
    rule = rules.get(rule)
    network = backprop.check_trainable(network, rule)
    rules.check_begun(rule, network, params)
    drawing = rules.is_random(rule)
    if drawing and rule_key is None:
        raise ValueError(f"rule: {rules.said(rule)} draws; give rule_key=jax.random.key(...)")
    examples, total = prepare(network, loss, params, inputs, targets, weights)
    block = fitting(network, params, block)
    loss = None if loss is None else losses.get(loss)
    whole = Whole(network, loss, params, examples, total, block)
    own = {name: {key: options.get(key, rule.options[key]) for key in rule.options} for name, rule in asked.items()}
    _check_budget(asked, own, whole, budget)

    def measure(part_of: Examples):
        own_key = jax.random.fold_in(rule_key, part_of.number[0]) if drawing else None
        view = View(
            network,
            loss,
            params,
            part_of,
            total,
            input_gradients="input_gradients" in asked,
            rule=rule,
            rule_key=own_key,
        )
        measured = {name: rule.measure(view, **own[name]) for name, rule in asked.items()}
        rows = {name: value for name, value in measured.items() if not asked[name].adds}
        return rows, {name: value for name, value in measured.items() if asked[name].adds}

    rows, sums = in_blocks(measure, examples, block)
    measured = rows | sums
    return {
        name: measured[name] if rule.finish is None else rule.finish(measured[name], whole, **own[name])
        for name, rule in asked.items()
    }


def check_names(asked: Sequence[str], options: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Raises for an unknown quantity, for options that none of them takes, and for one that needs what is not given."""
    for name in asked:
        if not isinstance(name, str) or name not in _rules:
            raise ValueError(registry.unknown("quantity", str(name), _rules))
    taken = [option for name in asked for option in _rules[name].options]
    for option in options:
        if option not in taken:
            raise TypeError(f"{', '.join(asked)}: " + registry.unknown("option", option, (*_SHARED, *taken)))
    for name in asked:
        for option, default in _rules[name].options.items():
            if default is inspect.Parameter.empty and option not in options:
                raise ValueError(f"{name} needs {option}=...")


def _rules_for(asked: Sequence[str], options: dict[str, Any]) -> dict[str, _Rule]:
    names = () if isinstance(asked, str) else tuple(asked)
    if not names:
        raise ValueError(f"names: expected the quantities asked for, such as ('per_example_norms',), got {asked!r}")
    check_names(names, options)
    rules = {name: _rules[name] for name in names}
    for name, rule in rules.items():
        for option in rule.options.keys() & options.keys() & _OPTIONS.keys():
            _OPTIONS[option](name, options[option])
    return rules


def _check_budget(rules: dict[str, _Rule], own: dict[str, dict], whole: Whole, budget: int) -> None:
    itemsize = jax.tree.leaves(whole.params)[0].dtype.itemsize
    for name, rule in rules.items():
        if rule.elements is not None:
            check_budget(name, rule.elements(whole, **own[name]) * itemsize, budget, rule.instead)


# Of each example ------------------------------------------------------------------------------------------------------


@register()
def per_example_losses(view):
    """F_q (Q,)."""
    found = backprop.example_losses(view.network, view.loss, view.trace, view.examples.targets)
    return view.loss.of_example(found, view.examples.positions)


@register(
    elements=lambda whole: whole.count * whole.size,
    instead="per_example_norms, inner_products, clipped_gradient and variance never form them; or give fewer examples",
)
def per_example_gradients(view):
    """g_q in the parameters' structure, with Q in front: (Q, S, R) for weights, (Q, S) for a bias."""
    return factors.shaped(factors.each(factors.formed, view.gradients), view.params, view.part.shape)


@register()
def per_example_norms(view):
    """||g_q|| (Q,), without forming any g_q: Goodfellow 2015 (arXiv 1510.01799), for graphs and shared parameters."""
    return _norms(view)


@register()
def per_example_layer_norms(view):
    """{layer: (Q,)}, the norm of each layer's part of every g_q, of layers that have parameters."""
    return jax.tree.map(jnp.sqrt, _layer_squares(view.gradients))


@register(
    finish=lambda factored, whole: _paired(factors.inner_products, factored, factored, whole.block),
    elements=lambda whole: whole.count**2,
    instead="give fewer examples",
)
def inner_products(view):
    """g_q . g_r of all pairs of examples, (Q, Q), without forming any g_q."""
    return view.gradients


def _paired(products: Callable, one: Params, other: Params, block: int | None) -> Array:
    """sum over the parameters of products(rows of one, other), some rows at a time: (Q, Q', ...)."""

    def rows(some):
        return sum(products(f, g) for f, g in zip(factors.leaves(some), factors.leaves(other), strict=True))

    count = len(factors.leaves(one)[0].left)
    order = block_order(count, block)
    if len(order) == 1:
        return rows(one)
    found = lax.map(lambda at: rows(jax.tree.map(lambda x: x[at], one)), jnp.asarray(order))
    return found.reshape(-1, *found.shape[2:])[:count]


@register()
def input_gradients(view):
    """dF/dp by name of the input, (Q, *P, R) each, as `backpropagate` gives it: the examples' share of F included."""
    found = backprop.of_inputs(view.network, view.swept)
    return {name: factors.over_rows(g, view.share) for name, g in found.items()}


# Sums over the examples -----------------------------------------------------------------------------------------------


@register(adds=True)
def gradient(view):
    """dF/dparams, as `value_and_grad` gives it, but for what a rule lets decay or learns beside the parameters."""
    return view.contract(view.share)


def clip(view: View, max_norm: Array | float) -> Params:
    """What `clipped_gradient` is before its noise."""
    norms = _norms(view)
    # An example that has overflowed would be scaled down to nothing: nan says so, and stops a run.
    scale = view.share * jnp.where(jnp.isfinite(norms), jnp.minimum(1, max_norm / norms), jnp.nan)
    signals = any(len(shape) > 1 for shape in view.network.net_shapes.values())
    return view.contract_formed(scale) if signals else view.contract_anew(scale)


def add_noise(clipped: Params, shares: Array, max_norm, noise_multiplier, key: Array | None) -> Params:
    """Gaussian noise on a clipped gradient in which the examples have shares (Q,) of F."""
    if checks.is_concrete(noise_multiplier) and noise_multiplier == 0:
        return clipped
    if key is None:
        raise ValueError("clipped_gradient: noise needs key=jax.random.key(...)")
    # One example can move the sum by max_norm times its share of F: that is what the noise is measured in.
    deviation = noise_multiplier * max_norm * jnp.max(shares)
    leaves, structure = jax.tree.flatten(clipped)
    noised = [
        g + deviation.astype(g.dtype) * jax.random.normal(own_key, g.shape, g.dtype)
        for g, own_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    return jax.tree.unflatten(structure, noised)


def _noised(clipped, whole, *, max_norm, noise_multiplier, key):
    return add_noise(clipped, whole.examples.part * whole.total, max_norm, noise_multiplier, key)


@register(adds=True, finish=_noised)
def clipped_gradient(view, *, max_norm, noise_multiplier=0.0, key=None):
    """The gradient of F with every g_q scaled down to at most max_norm, in the parameters' structure.

    The norms, then one contraction for the sum: Abadi et al. 2016 (arXiv 1607.00133), Alg. 1. With noise_multiplier
    sigma > 0, Gaussian noise of sigma max_norm (over Q, for a mean loss) is added from `key`. No accounting of privacy
    is made. nan where some |g_q| is not finite (its square, in float32, from 1.8e19 on). Raises ValueError for
    max_norm <= 0, sigma < 0, and noise without a key.
    """
    return clip(view, max_norm)


@register(adds=True)
def second_moment(view):
    """The mean of g_q^2, elementwise, in the parameters' structure: (s^2)^T a^2 / Q."""
    return _second_moments(view.gradients, view.part, view.params)


def _variance(moments, whole):
    second, first = moments
    # Rounding may leave less than nothing where all examples agree.
    return jax.tree.map(lambda m2, m: jnp.maximum(m2 - wide(m) ** 2, 0), second, first)


@register(adds=True, finish=_variance)
def variance(view):
    """The variance of g_q over the examples, elementwise: the mean of g_q^2 less the square of the mean of g_q.

    A difference, whose relative error is that of g_q^2 times mean^2 / variance: in float32, a mean of a thousand
    deviations leaves one digit of it. The same holds of `noise_scale` and `signal_to_noise`.
    """
    return _second_moments(view.gradients, view.part, view.params), view.contract(view.part)


# Of a learning rule ---------------------------------------------------------------------------------------------------


class Alignment(NamedTuple):
    """Of one layer: cosine of the angle between what a rule gives and the exact gradient of the layer's parameters, and
    the ratio of their norms; the same of its sensitivities, over all examples. 0 where one of them is 0; None where
    there are none: of a layer without parameters, and of a rule without sensitivities.
    """

    gradient_cosine: Array | None
    gradient_ratio: Array | None
    sensitivity_cosine: Array | None
    sensitivity_ratio: Array | None


def _aligned(sums, whole):
    def one(found):
        if found is None:
            return None, None
        product, exact, given = found
        norms = jnp.sqrt(jnp.where(exact > 0, exact, 1)), jnp.sqrt(jnp.where(given > 0, given, 1))
        there = (exact > 0) & (given > 0)
        cosine = jnp.where(there, product / norms[0] / norms[1], 0)
        return cosine, jnp.where(there, norms[1] / norms[0], 0)

    gradients, sensitivities = sums
    return {
        name: Alignment(*one(_products(*own) if own else None), *one(sensitivities.get(name)))
        for name, own in gradients.items()
    }


def _products(exact, given) -> tuple[Array, Array, Array]:
    pairs = [(wide(x), wide(y)) for x, y in zip(jax.tree.leaves(exact), jax.tree.leaves(given), strict=True)]
    return (
        sum(jnp.sum(x * y) for x, y in pairs),
        sum(jnp.sum(x**2) for x, _ in pairs),
        sum(jnp.sum(y**2) for _, y in pairs),
    )


@register(adds=True, finish=_aligned)
def alignment(view):
    """{layer: Alignment}: where what `rule` gives points, beside the exact gradient; 1 throughout for the exact rule.
    Of what comes from the examples: what a rule's `learn` makes of it, such as decay, is left out.

    Below 90 degrees, a cosine above 0, a small step along it lowers F. Lillicrap et al. 2016, Fig. 2.
    """
    exact, (given, s) = view.exact.contract(view.share), view.by_rule()
    parts = {name: (moved(own), moved(given[name])) for name, own in exact.items()}
    parts = {name: pair if jax.tree.leaves(pair) else None for name, pair in parts.items()}
    own = view.exact.swept.sensitivities
    return parts, {name: _products(factors.over_rows(own[name], view.share), s[name]) for name in s}


class RuleNoise(NamedTuple):
    """Of one layer: |mean of what a rule gives - exact gradient|, and the standard error of that mean, and the variance
    about it, summed over the parameters; all in units of the exact gradient's norm, or its square.
    """

    bias: Array
    bias_error: Array
    variance: Array


def _moments(sums, whole, *, samples):
    exact, given = sums
    found = {}
    for name, own in exact.items():
        leaves = list(zip(jax.tree.leaves(own), jax.tree.leaves(given[name]), strict=True))
        if not leaves:
            continue
        means = [jnp.mean(wide(y), axis=0) for _, y in leaves]
        squares = sum(jnp.sum(wide(x) ** 2) for x, _ in leaves)
        unit = jnp.where(squares > 0, squares, 1)
        bias = sum(jnp.sum((m - wide(x)) ** 2) for m, (x, _) in zip(means, leaves, strict=True))
        spread = sum(jnp.sum((wide(y) - m[None]) ** 2) for m, (_, y) in zip(means, leaves, strict=True)) / (samples - 1)
        found[name] = RuleNoise(jnp.sqrt(bias / unit), jnp.sqrt(spread / samples / unit), spread / unit)
    return found


@register(
    adds=True,
    finish=_moments,
    elements=lambda whole, samples: samples * whole.size,
    instead="give fewer samples",
)
def rule_noise(view, *, samples=16):
    """{layer: RuleNoise}: bias and variance of a random rule over `samples` draws of it, of the layers that have
    parameters. Of a rule that draws nothing the variance is 0. Raises ValueError for samples < 2.
    """
    checks.integer("rule_noise", "samples", samples, 2)
    key = jax.random.key(0) if view.rule_key is None else view.rule_key

    def one(own_key):
        return jax.tree.map(wide, {name: moved(own) for name, own in view.by_rule(own_key)[0].items()})

    exact = {name: moved(own) for name, own in view.exact.contract(view.share).items()}
    return exact, lax.map(one, jax.random.split(key, samples))


# Noise ----------------------------------------------------------------------------------------------------------------


class Noise(NamedTuple):
    """Of a gradient over random examples: signal |G|^2 and noise tr(Sigma), unbiased, and scale = noise / signal.

    inf where the signal is lost in the noise. A batch of `scale` examples has as much noise as signal.
    """

    scale: Array
    signal: Array
    noise: Array


class NoiseScale(NamedTuple):
    """`Noise` of the whole gradient, and by layer."""

    total: Noise
    layers: dict[str, Noise]


def _layer_moments(view):
    # {layer: mean |g_q|^2}, and the mean of g_q
    part = view.part
    return {name: jnp.sum(n * part) for name, n in _layer_squares(view.gradients).items()}, view.contract(part)


def _noise_scale(moments, whole):
    part = whole.examples.part
    counted = np.count_nonzero(part) if checks.is_concrete(part) else whole.count
    if counted < 2:
        raise ValueError(f"noise_scale: expected at least two examples, got {counted}")
    squares, mean = moments
    of_mean = {name: _square(own) for name, own in mean.items()}
    one_in = jnp.sum(whole.examples.part**2)  # 1 / Q, with equal weights

    def noise(square, square_of_mean):
        trace = jnp.maximum(square - square_of_mean, 0) / (1 - one_in)  # rounding may leave less than nothing
        signal = square_of_mean - trace * one_in
        return Noise(jnp.where(signal > 0, trace / jnp.where(signal > 0, signal, 1), jnp.inf), signal, trace)

    layers = {name: noise(squares[name], of_mean[name]) for name in squares}
    return NoiseScale(noise(sum(squares.values()), sum(of_mean.values())), layers)


@register(adds=True, finish=_noise_scale)
def noise_scale(view):
    """`NoiseScale`: tr(Sigma) / |G|^2, McCandlish et al. 2018 (arXiv 1812.06162), Eq. 2.9 and App. A.

    Raises ValueError for a single example.
    """
    return _layer_moments(view)


def _signal_to_noise(moments, whole):
    squares, mean = moments
    of_mean = {name: _square(own) for name, own in mean.items()}
    return {name: jnp.sqrt(of_mean[name] / jnp.maximum(squares[name] - of_mean[name], 0)) for name in squares}


@register(adds=True, finish=_signal_to_noise)
def signal_to_noise(view):
    """{layer: ||mean of g_q|| / standard deviation of g_q}: Shwartz-Ziv and Tishby 2017 (arXiv 1703.00810).

    inf where all examples agree, nan for a layer without gradient.
    """
    return _layer_moments(view)


# The Jacobian and the tangent kernel ----------------------------------------------------------------------------------


@register(
    reads_loss=False,
    elements=lambda whole, of: whole.count * _width(whole.network, of) * whole.size,
    instead="tangent_kernel and the Gauss-Newton products of curvature never form it; or give fewer examples",
)
def jacobian(view, *, of="outputs"):
    """d(outputs)/dparams in the parameters' structure with (Q, *P, S) in front; `loss` and `targets` may be None.

    Swept back from the unit vectors: the Marquardt sensitivities of Hagan's NND2, ch. 12 (there of the errors t - a,
    which turns the sign). of: "outputs", or the last layer's "net_inputs".
    """
    lead = (len(view.part), *swept_from(view.network, of))
    return factors.shaped(factors.each(factors.formed, view.jacobian(of)), view.params, lead)


def _width(network: Network, of: Of) -> int:
    return math.prod(swept_from(network, of))


def _kernel(products: Callable, factored: Params, whole: Whole, others: Inputs | None, of: Of) -> Array:
    # all pairs of the examples' Jacobians and the others'
    if others is None:
        return _paired(products, factored, factored, whole.block)

    def measure(some):
        return (View(whole.network, None, whole.params, some).jacobian(of), None)

    return _paired(products, factored, in_blocks(measure, _others(whole, others), whole.block)[0], whole.block)


def _others(whole: Whole, others: Inputs) -> Examples:
    try:
        return prepare(whole.network, None, whole.params, others, None, None)[0]
    except (TypeError, ValueError) as error:
        raise type(error)(f"others: {error}") from None


def _other_count(whole: Whole, others) -> int:
    return whole.count if others is None else len(_others(whole, others).part)


@register(
    reads_loss=False,
    finish=lambda factored, whole, **options: _by_outputs(
        jnp.swapaxes(_kernel(factors.kernel_products, factored, whole, **options), 1, 2), whole, options["of"]
    ),
    elements=lambda whole, others, of: whole.count * _other_count(whole, others) * _width(whole.network, of) ** 2,
    instead="tangent_kernel_trace is smaller by the square of the number of outputs; or give fewer examples",
)
def tangent_kernel(view, *, others=None, of="outputs"):
    """The empirical tangent kernel J(x) J(x')^T between inputs and `others` (the inputs themselves by default).

    (Q, Q', S, S), or (Q, Q', *P, S, *P, S): Jacot et al. 2018 (arXiv 1806.07572); without forming J. `loss` and
    `targets` may be None; of as in `jacobian`.
    """
    return view.jacobian(of)


def _by_outputs(kernel: Array, whole: Whole, of: Of) -> Array:
    shape = swept_from(whole.network, of)
    return kernel.reshape(*kernel.shape[:2], *shape, *shape)


@register(
    reads_loss=False,
    finish=functools.partial(_kernel, factors.traced_products),
    elements=lambda whole, others, of: whole.count * _other_count(whole, others),
    instead="give fewer examples",
)
def tangent_kernel_trace(view, *, others=None, of="outputs"):
    """The tangent kernel's trace over the outputs, (Q, Q'): sum_i dJ_i(x) . dJ_i(x'). Options as `tangent_kernel`."""
    return view.jacobian(of)


# Gauss-Newton ---------------------------------------------------------------------------------------------------------


@register(adds=True)
def gauss_newton_diagonal(view):
    """The diagonal of the generalised Gauss-Newton matrix of F, in the parameters' structure; S sweeps.

    J^T H J, with H the loss's second derivative by what it is convex in: the last layer's net inputs where they are
    fused (softmax, sigmoid), else the outputs. For cross-entropy over softmax and one-hot targets it is the Fisher
    matrix's. Schraudolph 2002.
    """
    return view.over_curvature(lambda columns: _second_moments(columns, None, view.params))


@register(adds=True)
def sampled_gauss_newton_diagonal(view, *, key, samples=1):
    """A Monte Carlo estimate of the same, unbiased, from `samples` sweeps: random signs on the root of H."""
    return _second_moments(view.sampled_curvature(key, samples), None, view.params)


class KroneckerFactors(NamedTuple):
    """Of one layer's block of the Gauss-Newton matrix, about sensitivities (x) activations.

    activations (A, A): the mean of a a^T, over all its weighted sources side by side in their order, each with the K
    numbers that a neuron reads of it, and then 1 where it has a bias per neuron; (0, 0) where it has none of these.
    sensitivities (S, S): the sum over the columns of s s^T, as much of F as each example is. others: the exact blocks
    (N, N) of what is not an outer product: a shared bias or one per position, learned activation parameters; of a
    learned matrix, as of a recurrence, KroneckerFactors of its own.
    """

    activations: Array
    sensitivities: Array
    others: dict[str, Any]


Shared = Literal["expand", "reduce"]


def _kronecker(view: View, over: Callable, shared: Shared) -> dict[str, KroneckerFactors]:
    # over(measure): measure(the columns swept back), or the sum of it over some columns after others
    def of_sensitivities(f):
        summed = shared == "reduce" and factors.is_shared(f)
        return factors.gram(jnp.sum(f.left, axis=-2) if summed else f.left)

    def of_read(x):  # (Q, A), or (Q, T, A)
        part = view.part
        if x.ndim > 2 and shared == "reduce":
            x = jnp.mean(x, axis=1)
        elif x.ndim > 2:
            part = part / x.shape[1]
        return factors.gram(factors.over_rows(x, jnp.sqrt(part)))

    def squares(factored):
        found = {}
        for layer in view.network.layers:
            own = factored[layer.name]
            G = jnp.zeros((0, 0), view.dtype)
            if layer.weighted:
                G = of_sensitivities(own["weights"][layer.weighted[0][0]])
            found[layer.name] = G, factors.each(of_sensitivities, _alone(layer, own))
        return found

    def with_read(G, f):
        return G if f.right is None else KroneckerFactors(of_read(f.right), G, {})

    found = over(squares)
    for layer in view.network.layers:
        # what is read, as unfolded; of net inputs in the sensitivities' place, which are as large
        n, a = view.trace.net_inputs[layer.name], view.trace.activations
        columns = [by.unfold(n, a[source])[1] for source, by in layer.weighted] or [jnp.zeros_like(n[..., :0])]
        if len({x.shape[:-1] for x in columns}) > 1:
            shared_by = ", ".join(str(math.prod(x.shape[1:-1])) for x in columns)
            raise ValueError(
                f"layer {layer.name!r}: Kronecker factors need weights that as many positions share, whatever the "
                f"source, got {shared_by}; groups of channels count as positions"
            )
        if layer.bias == "per_neuron" and layer.weighted:
            columns.append(jnp.ones_like(columns[0][..., :1]))
        G, others = found[layer.name]
        for name, f in view.swept.learned[layer.name].items():
            others["learned"][name] = with_read(others["learned"][name], f)
        found[layer.name] = KroneckerFactors(of_read(jnp.concatenate(columns, axis=-1)), G, others)
    return found


def _alone(layer: Layer, own: dict) -> dict:
    """What of a layer's parameters is no outer product."""
    with_weights = ("weights", "bias") if layer.weighted and layer.bias == "per_neuron" else ("weights",)
    return {name: part for name, part in own.items() if name not in with_weights}


def _factor_elements(whole: Whole, **options) -> int:
    found = 0
    for layer in whole.network.layers:
        own = whole.params[layer.name]
        read = sum(w.size // len(w) for w in own["weights"].values()) + 1
        alone = jax.tree.leaves(_alone(layer, own))
        matrices = [
            x for x in jax.tree.leaves(own.get("learned", {})) if x.ndim == 2
        ]  # which have factors of their own
        found += layer.rows**2 + read**2 if layer.weighted else 0
        found += sum(x.size**2 for x in alone if x.size > 1) - sum(x.size**2 for x in matrices)
        found += sum(n**2 for x in matrices for n in x.shape)
    return found


_FEWER_FACTORS = "gauss_newton_diagonal needs no more than the parameters do"


@register(adds=True, elements=_factor_elements, instead=_FEWER_FACTORS)
def kflr(view, *, shared="expand"):
    """{layer: KroneckerFactors} with exact curvature, from S sweeps: Botev et al. 2017 (arXiv 1706.03662), Sec. 3.

    shared: what is made of weights that T positions share (Eschenhagen et al. 2023, arXiv 2311.00636), "expand": each
    position as an example of its own, the mean of a_t a_t^T and the sum of s_t s_t^T; "reduce": of the mean a and the
    sum of s. Each is exact in deep linear networks in which all that stands above the layer reads position by position,
    of losses at each position, and of one on the positions' mean; below another convolution neither is.
    """
    return _kronecker(view, view.over_curvature, shared)


@register(adds=True, elements=_factor_elements, instead=_FEWER_FACTORS)
def kfac(view, *, key, samples=1, shared="expand"):
    """{layer: KroneckerFactors} from `samples` random sweeps: Martens and Grosse 2015 (arXiv 1503.05671).

    The curvature is sampled by random signs on the root of H; for a log-likelihood that has the expectation which the
    sampled targets of the paper have. shared as in `kflr`.
    """
    return _kronecker(view, lambda measure: measure(view.sampled_curvature(key, samples)), shared)


@register(
    adds=True,
    elements=lambda whole: (
        whole.size * (whole.size + min(whole.count, whole.block or whole.count) * _width(whole.network, "outputs"))
    ),
    instead="use curvature.gauss_newton_vector_product, gauss_newton_diagonal or kflr, or smaller blocks",
)
def gauss_newton(view):
    """The generalised Gauss-Newton matrix (P, P) of a small network, in `ravel_pytree`'s order."""

    def squares(columns):
        each = [factors.formed(f) for f in factors.leaves(columns)]
        return factors.gram(jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in each], axis=2))

    return view.over_curvature(squares)


# How layers are -------------------------------------------------------------------------------------------------------


class LayerStatistics(NamedTuple):
    """Of one layer, over examples and neurons. activation_mean, activation_deviation, and sensitivity: the root of the
    mean square of dF_q/dn. ratio: of that to the output layer's; below 1 it vanishes on its way back, above it
    explodes, nan where the output's is 0. saturated: the share of f'(n) that are smaller than `saturation` in size;
    dead: the share of neurons whose f'(n) is 0 on every example.
    """

    activation_mean: Array
    activation_deviation: Array
    sensitivity: Array
    ratio: Array
    saturated: Array
    dead: Array


def _statistics(sums, whole, *, saturation):
    output = sums[whole.network.output.name]["sensitivity"]
    found = {}
    for name, own in sums.items():
        deviation = jnp.sqrt(jnp.maximum(own["square"] - own["mean"] ** 2, 0))
        found[name] = LayerStatistics(
            own["mean"],
            deviation,
            jnp.sqrt(own["sensitivity"]),
            jnp.sqrt(own["sensitivity"] / output),
            own["saturated"],
            jnp.mean(jnp.where(own["alive"] == 0, 1.0, 0.0).astype(deviation.dtype)),
        )
    return found


def _own_slopes(activation: Activation, n: Array, a: Array, kept: Any, theta: Theta) -> Array:
    """da_i/dn_i (Q, *P, S): as the activation tells it, all at once where each neuron is by itself, else one after the
    other.
    """
    if activation.slopes is not None:
        return jnp.broadcast_to(activation.slopes(n, a, kept, theta), a.shape)

    def of_each(g):
        return activation.pullback(g, n, a, kept, theta)[0].reshape(*a.shape, -1).sum(axis=-1)

    if activation.alone:
        return of_each(jnp.ones_like(a))
    shape = a.shape[1:]
    units = jnp.eye(math.prod(shape), dtype=a.dtype).reshape(-1, *shape)
    over = tuple(range(1, a.ndim))
    own = lax.map(lambda unit: jnp.sum(of_each(jnp.broadcast_to(unit, a.shape)) * unit[None], axis=over), units)
    return own.T.reshape(a.shape)


@register(adds=True, finish=_statistics)
def layer_statistics(view, *, saturation=0.01):
    """{layer: LayerStatistics}: activations and sensitivities, saturation, dead units, vanishing and exploding ratios.

    f'(n) is da_i/dn_i of each neuron; of maxout and max_pool, which never saturate, the sum over pieces and windows.
    """
    found = {}
    for layer in view.network.layers:
        n, a, s = (
            view.trace.net_inputs[layer.name],
            view.trace.activations[layer.name],
            view.swept.sensitivities[layer.name],
        )
        kept, own = view.trace.kept.get(layer.name), theta(layer, view.params[layer.name], view.trace.activations)
        slope = _own_slopes(layer.activation, n, a, kept, own)
        over = tuple(range(1, a.ndim))

        def mean(x):
            return jnp.sum(jnp.mean(wide(x), axis=tuple(range(1, x.ndim))) * view.part)

        found[layer.name] = {
            "mean": mean(a),
            "square": mean(wide(a) ** 2),
            "sensitivity": mean(wide(s) ** 2),
            "saturated": mean(jnp.where(jnp.abs(slope) < saturation, 1.0, 0.0).astype(a.dtype)),
            # of a signal a neuron is alive where it is at some position
            "alive": jnp.sum((slope != 0) & jnp.expand_dims(view.part > 0, over), axis=tuple(range(a.ndim - 1))),
        }
    return found
