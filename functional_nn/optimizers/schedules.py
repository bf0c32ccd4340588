"""Learning rates, or any other constant of an optimizer, as functions of the step.

k = 0, 1, 2, ... counts the updates made so far, so that the first update uses the value at k = 0. What depends on how
the training goes rather than on k, `reduce_on_plateau`, is a wrapper: see `optimizers.wrappers`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, precision
from functional_nn.registry import Described, Registry


@dataclass(frozen=True)
class Schedule(Described):
    """`schedule(k)` -> scalar in JAX's default float; k an integer, an int32 scalar or an array of steps.

    value(k, as a float) -> scalar; constants: what it was made with, by name.
    """

    name: str
    value: Callable[[Array], Array]
    constants: dict[str, Any] = field(default_factory=dict, hash=False)

    def __call__(self, step: Array | int) -> Array:
        dtype = precision.default()
        return jnp.asarray(self.value(jnp.asarray(step).astype(dtype)), dtype)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})"


_registry: Registry[Schedule] = Registry("schedule", Schedule)
register, names, get = _registry.register, _registry.names, _registry.get


@register
def constant(rate: float) -> Schedule:
    """alpha_k = rate. Raises ValueError, as all schedules do, for constants out of range."""
    rate = _rate("constant", "rate", rate)
    return Schedule("constant", lambda k: jnp.full_like(k, rate), {"rate": rate})


@register
def step(initial: float, every: int, factor: float = 0.1) -> Schedule:
    """alpha_k = initial * factor^floor(k / every): multiplied by `factor` in (0, 1] after `every` updates.

    >>> [round(float(step(1.0, every=10)(k)), 3) for k in (0, 9, 10, 20)]
    [1.0, 1.0, 0.1, 0.01]
    """
    initial, every = _rate("step", "initial", initial), _steps("step", "every", every)
    factor = _factor("step", "factor", factor)
    return Schedule(
        "step",
        lambda k: initial * factor ** jnp.floor(k / every),
        {"initial": initial, "every": every, "factor": factor},
    )


@register
def exponential(initial: float, factor: float, steps: int = 1) -> Schedule:
    """alpha_k = initial * factor^(k / steps): `factor` in (0, 1] every `steps` updates, smoothly."""
    initial, steps = _rate("exponential", "initial", initial), _steps("exponential", "steps", steps)
    factor = _factor("exponential", "factor", factor)
    return Schedule(
        "exponential",
        lambda k: initial * factor ** (k / steps),
        {"initial": initial, "factor": factor, "steps": steps},
    )


@register
def inverse(initial: float, steps: int = 1) -> Schedule:
    """alpha_k = initial / (1 + k / steps), the 1/k of stochastic approximation: half the rate after `steps` updates.

    Its sum diverges and the sum of its squares does not: Robbins and Monro 1951.
    """
    initial, steps = _rate("inverse", "initial", initial), _steps("inverse", "steps", steps)
    return Schedule("inverse", lambda k: initial / (1 + k / steps), {"initial": initial, "steps": steps})


@register
def cosine(initial: float, steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine from `initial` to `final` over `steps` updates, then `final`: Loshchilov and Hutter 2017, Eq. 5."""
    initial, final = _rate("cosine", "initial", initial), _rate("cosine", "final", final)
    steps = _steps("cosine", "steps", steps)
    return Schedule(
        "cosine",
        lambda k: _half_cosine(initial, final, k / steps),
        {"initial": initial, "steps": steps, "final": final},
    )


@register
def linear_warmup(then: "Schedule | float | str", steps: int, start: float = 0.0) -> Schedule:
    """A straight line from `start` to the first value of `then` over `steps` updates, then `then`, its k from there.

    >>> [float(linear_warmup(1.0, steps=4)(k)) for k in (0, 1, 4, 100)]
    [0.0, 0.25, 1.0, 1.0]
    """
    then = get(then) if isinstance(then, str | Schedule) else constant(then)
    steps, start = _steps("linear_warmup", "steps", steps), _rate("linear_warmup", "start", start)

    def value(k):
        line = start + (then.value(jnp.zeros_like(k)) - start) * k / steps
        return jnp.where(k < steps, line, then.value(jnp.maximum(k - steps, 0)))

    return Schedule("linear_warmup", value, {"then": then, "steps": steps, "start": start})


@register
def one_cycle(
    peak: float, steps: int, *, rise: float = 0.3, start_division: float = 25.0, final_division: float = 1e4
) -> Schedule:
    """Up from peak / start_division in the first `rise` of `steps` updates, down to start / final_division in the rest.

    Both legs are half cosines; the lowest rate is reached at k = steps - 1 and stays. Smith and Topin 2018, in the
    form PyTorch's OneCycleLR made usual.
    """
    peak, steps = _rate("one_cycle", "peak", peak), _steps("one_cycle", "steps", steps)
    rise = checks.constant("one_cycle", "rise", rise, lambda v: (v > 0) & (v < 1), "in (0, 1)")
    divisions = {"start_division": start_division, "final_division": final_division}
    for name, given in divisions.items():
        divisions[name] = checks.constant("one_cycle", name, given, lambda v: v >= 1, "a number >= 1")
    start = peak / divisions["start_division"]
    final = start / divisions["final_division"]
    top = rise * steps - 1  # where the peak stands; steps - 1 is the last update

    def value(k):
        up = _half_cosine(start, peak, k / jnp.maximum(top, 1e-9))
        down = _half_cosine(peak, final, (k - top) / (steps - 1 - top))
        return jnp.where(k <= top, up, down)

    return Schedule("one_cycle", value, {"peak": peak, "steps": steps, "rise": rise, **divisions})


@register
def gradual_reduction(largest: float, final: float, steps: int, hold: int = 0) -> Schedule:
    """Start large, reduce gradually: Hagan, after Fig. 3.3, the remedy where one rate is either too slow or unstable.

    `largest` for `hold` updates, then geometrically down to `final` over `steps` updates, and `final` from there on.
    Hagan leaves the shape open; a constant ratio spends as many updates on every scale of rate between the two.
    """
    largest = checks.constant("gradual_reduction", "largest", largest, lambda v: (v > 0) & np.isfinite(v), "> 0")
    final = checks.constant("gradual_reduction", "final", final, lambda v: (v > 0) & np.isfinite(v), "> 0")
    steps = _steps("gradual_reduction", "steps", steps)
    hold = checks.integer("gradual_reduction", "hold", hold, 0)

    def value(k):
        return largest * (final / largest) ** jnp.clip((k - hold) / steps, 0, 1)

    return Schedule("gradual_reduction", value, {"largest": largest, "final": final, "steps": steps, "hold": hold})


def _half_cosine(first, last, share: Array) -> Array:
    return last + (first - last) * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1))) / 2


def _rate(schedule: str, name: str, value):
    return checks.constant(schedule, name, value, *checks.NON_NEGATIVE)


def _factor(schedule: str, name: str, value):
    return checks.constant(schedule, name, value, lambda v: (v > 0) & (v <= 1), "in (0, 1]")


def _steps(schedule: str, name: str, value) -> int:
    return checks.integer(schedule, name, value, 1)
