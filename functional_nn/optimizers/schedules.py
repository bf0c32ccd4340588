"""Schedules: learning rates, or any other constant of an optimizer, as functions of the step.

k = 0, 1, 2, ... counts the updates made so far, so that the first update uses the value at k = 0. `reduce_on_plateau`,
which depends on how the training goes rather than on k, is a wrapper: see `optimizers.wrappers`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks, precision
from functional_nn.registry import Registry
from functional_nn.rows import Constants, Described


@dataclass(frozen=True)
class Schedule(Described):
    """A constant as a function of the step: `schedule(k)` returns its value.

    Attributes:
        name: Its name, as in `schedules.get`.
        value: value(k), with k in floating point, returns the value.
        constants: The constants that it was made with, by name.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedule = schedules.cosine(1.0, steps=10)
        >>> schedule, float(schedule(10))
        (cosine(initial=1.0, steps=10, final=0.0), 0.0)
    """

    name: str
    value: Callable[[Array], Array]
    constants: dict[str, Any] = field(default_factory=dict, hash=False)

    def __call__(self, step: Array | int) -> Array:
        """Returns the value at a step, in JAX's default float.

        Args:
            step: An integer, an int32 scalar or an array of steps.
        """
        dtype = precision.default()
        return jnp.asarray(self.value(jnp.asarray(step).astype(dtype)), dtype)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self.constants.items())})"


__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "get",
    "gradual_reduction",
    "inverse",
    "linear_warmup",
    "names",
    "one_cycle",
    "register",
    "step",
]

_registry: Registry[Schedule] = Registry("schedule", Schedule)


def register(factory: Callable[Constants, Schedule]) -> Callable[Constants, Schedule]:
    """Gives a function that returns a schedule its name. A decorator.

    Afterwards the name may be used wherever a schedule is expected. Equal constants
    return the same object, so that compiled programs are used again.

    Args:
        factory: The function; its name is the name of the schedule, and its arguments are the constants.

    Returns:
        The same function, its results cached.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> @schedules.register
        ... def halved(rate: float):
        ...     return schedules.Schedule("halved", lambda k: rate / 2 + 0 * k, {"rate": rate})
        >>> float(schedules.get("halved(1.0)")(3))
        0.5
    """
    return _registry.register(factory)


def names() -> tuple[str, ...]:
    """Returns the names of the registered schedules.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> "cosine" in schedules.names()
        True
    """
    return _registry.names()


def get(schedule: str | Schedule) -> Schedule:
    """Returns the schedule with this name.

    Args:
        schedule: A name, with arguments where wanted, such as "cosine(0.1, 1000)"; a schedule is returned as it is.

    Returns:
        The schedule.

    Raises:
        ValueError: The name is unknown, or its arguments are refused.
        TypeError: It is neither a name nor a schedule.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedules.get("cosine(0.1, 1000)")
        cosine(initial=0.1, steps=1000, final=0.0)
    """
    return _registry.get(schedule)


@register
def constant(rate: float) -> Schedule:
    r"""The same value at every step.

    .. math:: \alpha_k = \mathrm{rate}

    Args:
        rate: >= 0.

    Returns:
        The schedule.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedule = schedules.constant(0.1)
        >>> [round(float(schedule(k)), 3) for k in (0, 100)]
        [0.1, 0.1]
    """
    rate = _rate("constant", "rate", rate)
    return Schedule("constant", lambda k: jnp.full_like(k, rate), {"rate": rate})


@register
def step(initial: float, every: int, factor: float = 0.1) -> Schedule:
    r"""Multiplies the value by a factor after every so many updates.

    .. math:: \alpha_k = \alpha_0 \, \mathrm{factor}^{\lfloor k / \mathrm{every} \rfloor}

    Args:
        initial: :math:`\alpha_0`, >= 0.
        every: The number of updates between reductions, >= 1.
        factor: In (0, 1].

    Returns:
        The schedule.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedule = schedules.step(1.0, every=10)
        >>> [round(float(schedule(k)), 3) for k in (0, 9, 10, 20)]
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
    r"""Multiplies the value by a factor in every so many updates, smoothly.

    .. math:: \alpha_k = \alpha_0 \, \mathrm{factor}^{k / \mathrm{steps}}

    Args:
        initial: :math:`\alpha_0`, >= 0.
        factor: In (0, 1].
        steps: The number of updates in which the factor applies once, >= 1.

    Returns:
        The schedule.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedule = schedules.exponential(1.0, 0.25, steps=10)
        >>> [round(float(schedule(k)), 3) for k in (0, 5, 10)]
        [1.0, 0.5, 0.25]
    """
    initial, steps = _rate("exponential", "initial", initial), _steps("exponential", "steps", steps)
    factor = _factor("exponential", "factor", factor)
    return Schedule(
        "exponential",
        lambda k: initial * factor ** (k / steps),
        {"initial": initial, "factor": factor, "steps": steps},
    )


@register
def inverse(initial: float, steps: int = 1) -> Schedule:
    r"""The 1/k of stochastic approximation: half the value after `steps` updates.

    .. math:: \alpha_k = \frac{\alpha_0}{1 + k / \mathrm{steps}}

    Its sum diverges and the sum of its squares converges (Robbins and Monro 1951).

    Args:
        initial: :math:`\alpha_0`, >= 0.
        steps: >= 1.

    Returns:
        The schedule.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedule = schedules.inverse(1.0, steps=10)
        >>> [round(float(schedule(k)), 3) for k in (0, 10, 30)]
        [1.0, 0.5, 0.25]
    """
    initial, steps = _rate("inverse", "initial", initial), _steps("inverse", "steps", steps)
    return Schedule("inverse", lambda k: initial / (1 + k / steps), {"initial": initial, "steps": steps})


@register
def cosine(initial: float, steps: int, final: float = 0.0) -> Schedule:
    r"""Half a cosine from `initial` to `final`, then `final`.

    .. math:: \alpha_k = \alpha_T + \frac{\alpha_0 - \alpha_T}{2} \Big(1 + \cos \frac{\pi k}{T}\Big)

    Args:
        initial: :math:`\alpha_0`, >= 0.
        steps: T, the number of updates until `final`, >= 1.
        final: :math:`\alpha_T`, >= 0.

    Returns:
        The schedule.

    Raises:
        ValueError: A constant is out of range.

    References:
        Loshchilov and Hutter 2017, Eq. 5.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedule = schedules.cosine(1.0, steps=10)
        >>> [round(float(schedule(k)), 3) for k in (0, 5, 10, 20)]
        [1.0, 0.5, 0.0, 0.0]
    """
    initial, final = _rate("cosine", "initial", initial), _rate("cosine", "final", final)
    steps = _steps("cosine", "steps", steps)
    return Schedule(
        "cosine",
        lambda k: _half_cosine(initial, final, k / steps),
        {"initial": initial, "steps": steps, "final": final},
    )


@register
def linear_warmup(then: "Schedule | float | str", steps: int, start: float = 0.0) -> Schedule:
    """A straight line from `start` to the first value of another schedule, which then follows with k counted from 0.

    Args:
        then: The other schedule, its name, or a number for a constant.
        steps: The number of updates of the warmup, >= 1.
        start: The first value, >= 0.

    Returns:
        The schedule.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedule = schedules.linear_warmup(1.0, steps=4)
        >>> [round(float(schedule(k)), 3) for k in (0, 1, 4, 100)]
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
    """Up to a peak and down again, both as half cosines.

    The value rises from peak / `start_division` in the first share `rise` of the steps, and falls to that start /
    `final_division` in the rest. The lowest value is reached at k = steps - 1 and stays.

    Args:
        peak: The largest value, >= 0.
        steps: The length of the cycle in updates, >= 1.
        rise: The share of the steps in which the value rises, in (0, 1).
        start_division: >= 1.
        final_division: >= 1.

    Returns:
        The schedule.

    Raises:
        ValueError: A constant is out of range.

    References:
        Smith and Topin 2018, in the form of PyTorch's OneCycleLR.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedule = schedules.one_cycle(1.0, steps=11, rise=0.5)
        >>> [round(float(schedule(k)), 3) for k in (0, 4, 10)]
        [0.04, 0.971, 0.0]
    """
    peak, steps = _rate("one_cycle", "peak", peak), _steps("one_cycle", "steps", steps)
    rise = checks.constant("one_cycle", "rise", rise, lambda v: (v > 0) & (v < 1), "in (0, 1)")
    divisions = {"start_division": start_division, "final_division": final_division}
    for name, division in divisions.items():
        divisions[name] = checks.constant("one_cycle", name, division, lambda v: v >= 1, "a number >= 1")
    start = peak / divisions["start_division"]
    final = start / divisions["final_division"]
    top = rise * steps - 1  # the step of the peak; steps - 1 is the last update

    def value(k):
        up = _half_cosine(start, peak, k / jnp.maximum(top, 1e-9))
        down = _half_cosine(peak, final, (k - top) / (steps - 1 - top))
        return jnp.where(k <= top, up, down)

    return Schedule("one_cycle", value, {"peak": peak, "steps": steps, "rise": rise, **divisions})


@register
def gradual_reduction(largest: float, final: float, steps: int, hold: int = 0) -> Schedule:
    """Starts large and reduces gradually: a constant ratio from `largest` to `final`.

    The value is `largest` for `hold` updates, then falls geometrically to `final` over `steps` updates, and stays
    there. It is the remedy of Hagan (after Fig. 3.3) where one rate is either too slow or unstable. Hagan leaves the
    shape open; a constant ratio spends as many updates on every scale of rate between the two.

    Args:
        largest: > 0.
        final: > 0.
        steps: >= 1.
        hold: >= 0.

    Returns:
        The schedule.

    Raises:
        ValueError: A constant is out of range.

    Example:
        >>> from functional_nn.optimizers import schedules
        >>> schedule = schedules.gradual_reduction(1.0, 0.01, steps=10, hold=5)
        >>> [round(float(schedule(k)), 3) for k in (0, 5, 10, 15)]
        [1.0, 1.0, 0.1, 0.01]
    """
    largest = checks.constant("gradual_reduction", "largest", largest, lambda v: (v > 0) & np.isfinite(v), "> 0")
    final = checks.constant("gradual_reduction", "final", final, lambda v: (v > 0) & np.isfinite(v), "> 0")
    steps = _steps("gradual_reduction", "steps", steps)
    hold = checks.integer("gradual_reduction", "hold", hold, 0)

    def value(k):
        return largest * (final / largest) ** jnp.clip((k - hold) / steps, 0, 1)

    return Schedule("gradual_reduction", value, {"largest": largest, "final": final, "steps": steps, "hold": hold})


def _half_cosine(first: Any, last: Any, share: Array) -> Array:
    return last + (first - last) * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1))) / 2


def _rate(schedule: str, name: str, value: Any) -> Any:
    return checks.constant(schedule, name, value, *checks.NON_NEGATIVE)


def _factor(schedule: str, name: str, value: Any) -> Any:
    return checks.constant(schedule, name, value, lambda v: (v > 0) & (v <= 1), "in (0, 1]")


def _steps(schedule: str, name: str, value: Any) -> int:
    return checks.integer(schedule, name, value, 1)
