"""A learning rule against the exact gradient: where it points, its bias and its variance."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks
from functional_nn.gradients import factors
from functional_nn.gradients.quantities.declaring import Whole, register
from functional_nn.gradients.views import View
from functional_nn.networks.network import moved
from functional_nn.precision import wide


class Alignment(NamedTuple):
    """Where a learning rule's gradient of one layer points, relative to the exact one.

    An entry is 0 where one of the two gradients is 0, and None where one is missing: for a layer without parameters,
    and for a rule without sensitivities.

    Attributes:
        gradient_cosine: Cosine of the angle between the two gradients of the layer's parameters.
        gradient_ratio: Ratio of their norms, rule over exact.
        sensitivity_cosine: Cosine of the angle between the layer's sensitivities, over all examples.
        sensitivity_ratio: Ratio of their norms.

    Example:
        See `alignment`.

        >>> import functional_nn as fnn
        >>> fnn.quantities.Alignment._fields[0]
        'gradient_cosine'
    """

    gradient_cosine: Array | None
    gradient_ratio: Array | None
    sensitivity_cosine: Array | None
    sensitivity_ratio: Array | None


def _aligned(sums: tuple[dict, dict], whole: Whole) -> dict[str, Alignment]:
    def angle(products: tuple[Array, Array, Array] | None) -> tuple[Array | None, Array | None]:
        if products is None:
            return None, None
        product, exact, given = products
        norms = jnp.sqrt(jnp.where(exact > 0, exact, 1)), jnp.sqrt(jnp.where(given > 0, given, 1))
        defined = (exact > 0) & (given > 0)
        cosine = jnp.where(defined, product / norms[0] / norms[1], 0)
        return cosine, jnp.where(defined, norms[1] / norms[0], 0)

    gradients, sensitivities = sums
    return {
        name: Alignment(*angle(_products(*own) if own else None), *angle(sensitivities.get(name)))
        for name, own in gradients.items()
    }


def _products(exact: Any, given: Any) -> tuple[Array, Array, Array]:
    pairs = [(wide(x), wide(y)) for x, y in zip(jax.tree.leaves(exact), jax.tree.leaves(given), strict=True)]
    return (
        sum(jnp.sum(x * y) for x, y in pairs),
        sum(jnp.sum(x**2) for x, _ in pairs),
        sum(jnp.sum(y**2) for _, y in pairs),
    )


@register(adds=True, finish=_aligned)
def alignment(view: View) -> tuple[dict, dict]:
    """Returns, for each layer, where the gradient by `rule` points relative to the exact one.

    A small step along it lowers F where the cosine is above 0, an angle below 90 degrees. All entries are 1 for
    the exact rule. What a rule's `learn` adds to the gradient, such as decay, is left out.

    Returns:
        {layer: Alignment}.

    References:
        Lillicrap et al. 2016 (Nat. Commun. 7, 13276), Fig. 2.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> found = fnn.quantities.alignment(network, "cross_entropy", *data, rule="feedback_alignment")
        >>> round(float(found["layer2"].gradient_cosine), 6)
        1.0
    """
    exact, (given, s) = view.exact.contract(view.share), view.by_rule()
    pairs = {name: (moved(own), moved(given[name])) for name, own in exact.items()}
    pairs = {name: pair if jax.tree.leaves(pair) else None for name, pair in pairs.items()}
    own = view.exact.swept.sensitivities
    return pairs, {name: _products(factors.over_rows(own[name], view.share), s[name]) for name in s}


class RuleNoise(NamedTuple):
    """Bias and variance of a random learning rule for one layer, in units of the exact gradient's norm (or its square).

    Attributes:
        bias: `|mean of the rule's gradients - exact gradient|`.
        bias_error: Standard error of that mean.
        variance: Variance about the mean, summed over the parameters.

    Example:
        See `rule_noise`.

        >>> import functional_nn as fnn
        >>> fnn.quantities.RuleNoise._fields
        ('bias', 'bias_error', 'variance')
    """

    bias: Array
    bias_error: Array
    variance: Array


def _moments(sums: tuple[dict, dict], whole: Whole, *, samples: int) -> dict[str, RuleNoise]:
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
def rule_noise(view: View, *, samples: int = 16) -> tuple[dict, dict]:
    """Estimates bias and variance of a random learning rule from repeated draws.

    Args:
        samples: Number of draws, at least 2.

    Returns:
        {layer: RuleNoise}, for layers that have parameters. The variance of a rule that draws nothing is 0.

    Raises:
        ValueError: For samples < 2.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
        >>> data = network.init(jax.random.key(0)), jnp.ones((6, 3)), jnp.arange(6) % 2
        >>> found = fnn.quantities.rule_noise(network, "cross_entropy", *data, rule="exact", samples=2)
        >>> float(found["layer1"].variance)
        0.0
    """
    checks.integer("rule_noise", "samples", samples, 2)
    key = jax.random.key(0) if view.rule_key is None else view.rule_key

    def drawn(draw_key: Array) -> dict:
        return jax.tree.map(wide, {name: moved(own) for name, own in view.by_rule(draw_key)[0].items()})

    exact = {name: moved(own) for name, own in view.exact.contract(view.share).items()}
    return exact, lax.map(drawn, jax.random.split(key, samples))
