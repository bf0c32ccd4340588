"""Performance surfaces over two weights of a network, and paths of first-order methods on them.

Letters: Q examples, K updates, P parameters in all; x (2,) the two weights that are searched, while the others stay
fixed. F is the sum of squared errors over all examples (Hagan 3.15, P3.3). Its gradient is the library's hand-written
one, its Hessian is computed by the R-operator.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn import checks
from functional_nn.gradients import curvature
from functional_nn.optimizers import first_order
from functional_nn.training import BatchPlan

STEPS = 600  # of every path: one program computes any number of steps
LOSS = fnn.losses.sum_square_error()
_CELLS = 100  # of the grid on which F is drawn, each way


class Point(NamedTuple):
    """A point where the gradient is zero: "minimum", "local minimum" or "saddle", and F there."""

    kind: str
    x: tuple[float, float]
    value: float


@dataclass(frozen=True, eq=False)
class Surface:
    """A network's F as a function of two of its parameters, and the part of it that is drawn.

    inputs (Q, R), targets (Q, 1); params: all parameters; places: the indices of the two that are searched, in the
    parameters as one vector (P,). start, rate and largest_rate: the page's initial values and the slider's end; window:
    ((low, high), (low, high)). batch_size: of its mini-batches. stationary: the points that are marked.
    """

    name: str
    about: str
    network: fnn.Network
    inputs: np.ndarray
    targets: np.ndarray
    params: fnn.networks.network.Params
    places: tuple[int, int]
    labels: tuple[str, str]
    start: tuple[float, float]
    rate: float
    largest_rate: float
    window: tuple[tuple[float, float], tuple[float, float]]
    batch_size: int
    stationary: tuple[Point, ...]

    def at(self, x) -> fnn.networks.network.Params:
        """All parameters, with x (2,) in the two places."""
        vector, back = ravel_pytree(self.params)
        return back(vector.at[jnp.array(self.places)].set(x))

    def value(self, x) -> Array:
        """F at x (2,)."""
        return fnn.objective(self.network, LOSS)(self.at(x), self.inputs, self.targets)

    @functools.cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(x1 (N,), x2 (N,), F (N, N)), rows along x2, for the contours."""
        x, y = (np.linspace(low, high, _CELLS + 1) for low, high in self.window)
        F = jax.jit(jax.vmap(jax.vmap(self.value)))(jnp.stack(jnp.meshgrid(x, y), axis=-1))
        return x, y, np.asarray(F)

    @property
    def quadratic(self) -> bool:
        """Whether the Hessian is the same everywhere."""
        return self.network.output.activation.name == "linear"

    @property
    def levels(self) -> np.ndarray:
        """The contours' values of F, closer together where F is low."""
        F = self.grid[2]
        return F.min() + (F.max() - F.min()) * np.linspace(0, 1, 16)[1:-1] ** 2


class Path(NamedTuple):
    """points (K + 1, 2) from the start on; values (K + 1,) of F for all examples. They are not finite after
    divergence.
    """

    points: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> int:
        """The number of the last finite point."""
        finite = np.isfinite(self.values) & np.isfinite(self.points).all(axis=1)
        return int(np.flatnonzero(finite)[-1])


class Bend(NamedTuple):
    """The Hessian at a point: eigenvalues (2,), rising, and eigenvectors (2, 2), in columns."""

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @property
    def stable_rate(self) -> float:
        """2 / lambda_max, gradient descent's limit on the quadratic that approximates F here; infinite if there is
        none.
        """
        return 2 / float(self.eigenvalues[1]) if self.eigenvalues[1] > 0 else np.inf


def descend(
    surface: Surface,
    start: tuple[float, float],
    steps: int,
    optimizer: str = "gd",
    constants: dict[str, float] | None = None,
    plan: BatchPlan | None = None,
    seed: int = 0,
) -> Path:
    """The path of an optimizer, given by its name and constants, from `start`; plan: by default all examples at
    once.

    Raises ValueError for what the optimizer refuses, a start that is not finite, and steps outside 1 to `STEPS`.
    """
    start, constants = np.asarray(start, float), constants or {}
    if not (start.shape == (2,) and np.isfinite(start).all()):
        raise ValueError(f"start: expected two finite numbers, got {', '.join(map(str, start.ravel()))}")
    if not 1 <= checks.integer("", "steps", steps, 1) <= STEPS:
        raise ValueError(f"steps must be 1 to {STEPS}, got {steps}")
    first_order.factory(optimizer)(**constants)  # refuses invalid constants before anything is traced
    run = _descent(surface.network, optimizer, tuple(constants), fnn.training.batch() if plan is None else plan)
    values = jnp.array(list(constants.values()), float)
    points, F = map(np.asarray, run(_problem(surface), jnp.asarray(start), values, jax.random.key(seed)))
    return Path(points[: steps + 1], F[: steps + 1])


def bend(surface: Surface, x: np.ndarray) -> Bend:
    """The Hessian by the two weights at x (2,), by the R-operator."""
    return Bend(*map(np.asarray, _hessian(surface.network)(_problem(surface), jnp.asarray(x))))


class _Problem(NamedTuple):
    """A surface's arrays: all parameters as one vector (P,), the two places in it, the data."""

    vector: Array
    places: Array
    inputs: Array
    targets: Array


def _problem(surface: Surface) -> _Problem:
    vector, _ = ravel_pytree(surface.params)
    return _Problem(*map(jnp.asarray, (vector, surface.places, surface.inputs, surface.targets)))


def _back(network: fnn.Network) -> Callable:
    """A vector (P,) to parameters."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))[1]


@functools.cache
def _descent(network: fnn.Network, optimizer: str, names: tuple[str, ...], plan: BatchPlan) -> Callable:
    """(problem, start, constants, key) -> (points (STEPS + 1, 2), F (STEPS + 1,))."""
    back = _back(network)
    value_and_grad, objective = fnn.value_and_grad(network, LOSS), fnn.objective(network, LOSS)

    def path(problem: _Problem, start, constants, key):
        rule = first_order.factory(optimizer)(**dict(zip(names, constants, strict=True)))
        examples = len(problem.targets)
        updates, weights = plan.updates(examples), plan.weights(examples)

        def params(x):
            return back(problem.vector.at[problem.places].set(x))

        def value(x):
            return objective(params(x), problem.inputs, problem.targets)

        def update(state, k):
            rows = plan.indices(key, k // updates, examples)[k % updates]
            weighed = None if weights is None else jnp.asarray(weights, start.dtype)[k % updates]
            at = params(rule.point(state)), problem.inputs[rows], problem.targets[rows], weighed
            state = rule.update(state, ravel_pytree(value_and_grad(*at)[1])[0][problem.places])
            return state, (state.params, value(state.params))

        _, (points, F) = jax.lax.scan(update, rule.init(start), jnp.arange(STEPS))
        return jnp.concatenate([start[None, :], points]), jnp.concatenate([value(start)[None], F])

    return jax.jit(path)


@functools.cache
def _hessian(network: fnn.Network) -> Callable:
    """(problem, x) -> eigenvalues and eigenvectors of the Hessian by the two weights."""
    back = _back(network)

    def eigen(problem: _Problem, x):
        at = back(problem.vector.at[problem.places].set(x)), problem.inputs, problem.targets
        product = curvature.products(network, LOSS, *at)

        def row(place):
            unit = jnp.zeros_like(problem.vector).at[place].set(1)
            return ravel_pytree(product(back(unit)))[0][problem.places]

        hessian = jax.vmap(row)(problem.places)
        return jnp.linalg.eigh((hessian + hessian.T) / 2)

    return jax.jit(eigen)


def constants_of(optimizer: str) -> dict[str, float]:
    """An optimizer's numeric constants and their defaults; options that are words are left out.

    >>> constants_of("momentum")
    {'learning_rate': 0.1, 'decay': 0.9}
    """
    parameters = inspect.signature(first_order.factory(optimizer)).parameters
    return {name: each.default for name, each in parameters.items() if type(each.default) is float}


def verdict(path: Path) -> str:
    """How a path ends, from F alone: "converged", "still falling", "oscillates" or "diverges"."""
    F = path.values
    if not np.isfinite(F[-1]) or F[-1] > 1e3 * max(F[0], 1e-12):
        return "diverges"
    if F[-1] < 1e-9 + 1e-6 * F[0]:
        return "converged"
    tenth = max(1, len(F) // 10)
    if len(F) < 5:
        return "still falling" if F[-1] < F[0] else "rises"
    before, after = F[-2 * tenth : -tenth].mean(), F[-tenth:].mean()
    moves = np.abs(np.diff(path.points[-2 * tenth :], axis=0)).max()
    if moves < 1e-6 * (1 + np.abs(path.points[-1]).max()):
        return "stopped moving"
    if (np.diff(F[-2 * tenth :]) < 0).all():
        return "still falling"
    if abs(after - before) <= 1e-6 * before or np.ptp(F[-2 * tenth :]) > 3 * abs(after - before):
        return "oscillates"
    return "still falling" if after < before else "diverges"


def reached(path: Path, goal: float) -> int | None:
    """The first update from which on F stays below the goal; None if the path ends before."""
    above = np.flatnonzero(~(path.values < goal))
    first = int(above[-1]) + 1 if above.size else 0
    return first if first < len(path.values) else None


# The surfaces ---------------------------------------------------------------------------------------------------------


def _linear(inputs, targets, **rest) -> Surface:
    """Hagan's linear neuron of two inputs, without a bias: both weights are searched."""
    network = fnn.multilayer((2, 1), ("linear",), bias="none")
    params = {"layer1": {"weights": {"input": np.zeros((1, 2))}}}
    return Surface(
        network=network,
        inputs=np.array(inputs, float),
        targets=np.array(targets, float)[:, None],
        params=params,
        places=(0, 1),
        labels=("w₁,₁", "w₁,₂"),
        **rest,
    )


def _sigmoid(n: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-n))


def _logistic(first: tuple[float, float], places: tuple[str, str], **rest) -> Surface:
    """The 1-2-1 logistic network of dl3aa; the targets are its outputs at b1 = (-5, 5), W2 = (1, 1), b2 = -1."""
    network = fnn.multilayer((1, 2, 1), ("sigmoid", "sigmoid"))
    params = {
        "layer1": {"weights": {"input": np.array(first)[:, None]}, "bias": np.array([-5.0, 5.0])},
        "layer2": {"weights": {"layer1": np.array([[1.0, 1.0]])}, "bias": np.array([-1.0])},
    }
    inputs = np.linspace(-2, 2, 41)[:, None]
    order = ("b1_1", "b1_2", "w1_1", "w1_2", "b2", "w2_1", "w2_2")  # as the parameters lie in one vector
    targets = _sigmoid(_sigmoid(inputs * first + [-5.0, 5.0]).sum(axis=1, keepdims=True) - 1)
    return Surface(
        network=network,
        inputs=inputs,
        targets=targets,
        params=params,
        places=tuple(order.index(name) for name in places),
        batch_size=8,
        **rest,
    )


@functools.cache
def surfaces() -> dict[str, Surface]:
    """All surfaces by name; made at the first call, so that 64-bit mode can be switched on before."""
    every = [
        _linear(
            [(-1, 2), (2, -1), (0, -1), (-1, 0)],
            [-1, -1, 1, 1],
            name="Quadratic, Hagan Eq. 3.15",
            about="A linear neuron with two weights; eigenvalues 4 and 20.",
            start=(-1.0, -2.95),
            rate=0.01,
            largest_rate=0.3,
            window=((-4, 2), (-4, 2)),
            batch_size=2,
            stationary=(Point("minimum", (-1.0, -1.0), 0.0),),
        ),
        _linear(
            [(-4, 2), (1, 2)],
            [-1, 1],
            name="Quadratic, Hagan P3.3",
            about="A linear neuron with two weights; eigenvalues 10 and 40.",
            start=(1.0, 1.0),
            rate=0.01,
            largest_rate=0.15,
            window=((-1, 2), (-1, 2)),
            batch_size=2,
            stationary=(Point("minimum", (0.4, 0.3), 0.0),),
        ),
        _logistic(
            (10.0, 5.0),
            ("b1_1", "b1_2"),
            name="Two minima and a saddle",
            about="The two hidden biases of a 1-2-1 logistic network.",
            labels=("b¹₁", "b¹₂"),
            start=(8.0, 20.0),
            rate=10.0,
            largest_rate=300.0,
            window=((-12, 14), (-12, 24)),
            stationary=(
                Point("minimum", (-5.0, 5.0), 0.0),
                Point("local minimum", (9.874, -2.572), 0.0154),
                Point("saddle", (1.352, 0.622), 0.3442),
            ),
        ),
        _logistic(
            (10.0, 10.0),
            ("w1_1", "w2_1"),
            name="Weights of two layers (dl3aa)",
            about="A weight of each layer of a 1-2-1 logistic network.",
            labels=("w¹₁,₁", "w²₁,₁"),
            start=(-3.0, 9.0),
            rate=0.1,
            largest_rate=10.0,
            window=((-5, 15), (-5, 15)),
            stationary=(Point("minimum", (10.0, 1.0), 0.0), Point("saddle", (2.683, 3.293), 0.2379)),
        ),
    ]
    return {surface.name: surface for surface in every}
