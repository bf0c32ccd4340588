"""What `fit` measures after each epoch besides losses and accuracies, for `history.tracked`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax import Array

from functional_nn.gradients import quantities
from functional_nn.networks.network import Inputs, Params

Track = Sequence[str | Mapping[str, Callable[..., Any]]] | Mapping[str, Callable[[Params, Inputs, Array], Any]]

# (name, function) of everything that is tracked; the function of one of `fnn.quantities` is None.
Tracked = tuple[tuple[str, Callable[..., Any] | None], ...]


@dataclass(frozen=True)
class StateFunction:
    """A function of the optimizer's state, to be tracked. Made by `of_state`."""

    function: Callable[[Any], Any]

    def __call__(self, state: Any) -> Any:
        return self.function(state)


@dataclass(frozen=True)
class ValidationMetric:
    """A metric of each validation example, to be tracked. Made by `of_validation`."""

    function: Callable[[Array, Array], Array]

    def __call__(self, outputs: Array, targets: Array) -> Array:
        return self.function(outputs, targets)


def of_state(function: Callable[[Any], Any]) -> StateFunction:
    """Tracks what the optimizer's state holds after each epoch.

    Such as Levenberg-Marquardt's mu, `state.memory.mu`, or Bayesian regularization's `state.memory.evidence.gamma`.

    Args:
        function: of the optimizer's state; returns a number, an array or a tree of these.

    Returns:
        A value for `fit(track={name: ...})`; the numbers are in `history.tracked[name]`.

    Raises:
        TypeError: if `function` is not callable.

    Example:
        >>> import jax, numpy as np, functional_nn as fnn
        >>> from functional_nn import training
        >>> network = fnn.multilayer((2, 1), ("linear",))
        >>> x, t = np.eye(2), np.ones((2, 1))
        >>> updates = {"updates": training.of_state(lambda state: state.step)}
        >>> key = jax.random.key(0)
        >>> fit = training.fit(network, "mean_square_error", "gd(0.1)", x, t, key=key, epochs=3, track=updates)
        >>> fit.history.tracked["updates"].tolist()
        [1, 2, 3]
    """
    if not callable(function):
        raise TypeError(f"of_state: expected a function of the optimizer's state, got {type(function).__name__}")
    return StateFunction(function)


def of_validation(function: Callable[[Array, Array], Array]) -> ValidationMetric:
    """Tracks a metric of your own on the validation data after each epoch.

    It is measured in blocks, in the same pass as the validation loss, and averaged by the examples' weights.

    Args:
        function: (outputs (Q, S), targets (Q, S)) -> (Q,), a number or boolean for each example, as in
            `evaluate(metrics=...)`. Integer labels come one-hot; of outputs with positions, each position is a row.

    Returns:
        A value for `fit(track={name: ...})`; the averages are in `history.tracked[name]`.

    Raises:
        TypeError: if `function` is not callable.

    Example:
        >>> import jax, numpy as np, functional_nn as fnn
        >>> from functional_nn import training
        >>> network = fnn.multilayer((2, 1), ("linear",))
        >>> x, t = np.eye(2), np.ones((2, 1))
        >>> largest_error = {"error": training.of_validation(lambda a, t: abs(a - t).max(axis=1))}
        >>> key, end = jax.random.key(0), {"epochs": 3, "validation": (x, t)}
        >>> fit = training.fit(network, "mean_square_error", "gd(0.1)", x, t, key=key, track=largest_error, **end)
        >>> fit.history.tracked["error"].shape
        (3,)
    """
    if not callable(function):
        raise TypeError(f"of_validation: expected a function of outputs and targets, got {type(function).__name__}")
    return ValidationMetric(function)


def check_track(track: Track) -> Tracked:
    """Returns `fit`'s `track` as (name, function) pairs. Raises ValueError or TypeError for what cannot be tracked."""
    if isinstance(track, Mapping):
        for name, function in track.items():
            if not callable(function):
                raise TypeError(
                    f"track: expected a function of (params, inputs, targets) for {name!r}, got {function!r}"
                )
        return tuple(track.items())
    if isinstance(track, str) or not isinstance(track, Iterable):
        raise TypeError(f"track: expected names of quantities, such as ('noise_scale',), or functions, got {track!r}")
    names = tuple(name for name in track if not isinstance(name, Mapping))
    try:
        quantities.check_names(names)
    except ValueError as error:
        raise ValueError(f"track: {error}; or give {{name: function of (params, inputs, targets)}}") from None
    functions = [check_track(each) for each in track if isinstance(each, Mapping)]
    return sum(functions, start=tuple((name, None) for name in names))
