"""What `fit` measures after each epoch besides the losses: quantities, functions of the parameters or the state."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax import Array

from functional_nn.gradients import quantities
from functional_nn.networks.network import Inputs, Params

Track = Sequence[str | Mapping[str, Callable]] | Mapping[str, Callable[[Params, Inputs, Array], Any]]


# (name, function) of all that is tracked; a quantity of the library has no function.
Tracked = tuple[tuple[str, Callable | None], ...]


@dataclass(frozen=True)
class StateFunction:
    """A function of the optimizer's state, to be tracked in the place of one of (params, inputs, targets)."""

    function: Callable[[Any], Any]

    def __call__(self, state: Any) -> Any:
        return self.function(state)


def of_state(function: Callable[[Any], Any]) -> StateFunction:
    """For `fit(track={"mu": of_state(lambda state: state.memory.mu)})`: what an optimizer's state has after each epoch,
    such as Levenberg-Marquardt's mu, or Bayesian regularization's `state.memory.evidence.gamma`.

    Raises TypeError for what is no function.
    """
    if not callable(function):
        raise TypeError(f"of_state: expected a function of the optimizer's state, got {type(function).__name__}")
    return StateFunction(function)


def check_track(track: Track) -> Tracked:
    """(name, function) of all that is tracked; a quantity of the library has no function."""
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
