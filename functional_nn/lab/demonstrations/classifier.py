"""A small network that learns two classes in the plane, a few epochs at a time, for the page on decision boundaries.

Letters: Q examples, S neurons of a layer, N grid points each way. The training is `fit`'s own program, which runs a few
epochs per call, with the learning rate as an argument: another rate compiles nothing.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab.demonstrations import typed
from functional_nn.optimizers import first_order, second_order
from functional_nn.training import epoch, interruption, program
from functional_nn.training.records import Batch, History, Run
from functional_nn.training.settings import Settings, check_settings, choose_plan

EXAMPLES = 200  # for training, and as many held out
EPOCHS = 20  # at most, per call
WINDOW = (-1.6, 1.6)  # of both inputs
CELLS = 90
ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu", "elu", "linear")
LOSSES = ("binary_cross_entropy", "mean_square_error")
_RESIDUALS = ("levenberg_marquardt", "bayesian_regularization")
_MOST_LAYERS, _MOST_NEURONS = 3, 24
NOTHING_YET = History(*([np.zeros(0)] * 6), {})


class Data(NamedTuple):
    """inputs (2, Q, 2) and targets (2, Q, 1), 0 or 1: first the training part, then the held-out part."""

    inputs: np.ndarray
    targets: np.ndarray


@functools.cache
def data(name: str) -> Data:
    """Examples of one of `DATA`, always the same."""
    rng = np.random.default_rng(7)
    x, t = DATA[name](2 * EXAMPLES, rng)
    order = rng.permutation(len(x))
    return Data(x[order].reshape(2, -1, 2), t[order].astype(float).reshape(2, -1, 1))


def _xor(count: int, rng) -> tuple[np.ndarray, np.ndarray]:
    corner = rng.integers(0, 2, (count, 2))
    return 1.6 * (corner - 0.5) + 0.25 * rng.standard_normal((count, 2)), corner[:, 0] ^ corner[:, 1]


def _spirals(count: int, rng) -> tuple[np.ndarray, np.ndarray]:
    which, along = np.arange(count) % 2, np.sqrt(rng.uniform(0.02, 1, count))
    angle = 3 * np.pi * along + np.pi * which
    x = 1.35 * along[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return x + 0.03 * rng.standard_normal(x.shape), which


def _moons(count: int, rng) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_moons  # slower to import than everything else that the page needs at first

    x, t = make_moons(count, noise=0.15, random_state=7)
    return (x - [0.5, 0.25]) * [0.9, 1.2], t


def _circles(count: int, rng) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_circles

    return make_circles(count, noise=0.1, factor=0.45, random_state=7)


DATA: dict[str, Callable] = {"XOR": _xor, "two spirals": _spirals, "moons": _moons, "circles": _circles}


@dataclass(frozen=True)
class Choice:
    """The settings of a network and its training. batch_size: 0 for all examples at once."""

    data: str = "XOR"
    hidden: tuple[int, ...] = (6,)
    activation: str = "tanh"
    loss: str = LOSSES[0]
    optimizer: str = "adam"
    batch_size: int = 20
    seed: int = 0

    @property
    def second_order(self) -> bool:
        """Whether steps use all examples and no learning rate."""
        return second_order.knows(self.optimizer)

    @property
    def suited(self) -> "Choice":
        """The same with what the optimizer needs: all examples at once, square errors."""
        whole = self.second_order or first_order.get(self.optimizer).full_batch
        loss = LOSSES[1] if self.optimizer in _RESIDUALS else self.loss
        return Choice(
            self.data, self.hidden, self.activation, loss, self.optimizer, 0 if whole else self.batch_size, self.seed
        )


def hidden_sizes(text: str) -> tuple[int, ...]:
    """The hidden layers in "8" or "8, 8".

    >>> hidden_sizes("8, 4")
    (8, 4)

    Raises ValueError, with what is accepted.
    """
    sizes = typed.integers(text)
    if not 1 <= len(sizes) <= _MOST_LAYERS or not all(1 <= size <= _MOST_NEURONS for size in sizes):
        raise ValueError(
            f"expected 1 to {_MOST_LAYERS} integers from 1 to {_MOST_NEURONS}, as in 8 or 8, 8, "
            f"got {typed.quoted(text)}"
        )
    return sizes


class Training(NamedTuple):
    """A run in progress: its choice, its state, and its history so far, one row per epoch."""

    choice: Choice
    run: Run
    history: History

    @property
    def params(self) -> Any:
        return self.run.state.params

    @property
    def ended(self) -> bool:
        return bool(int(self.run.ended))

    @property
    def reason(self) -> str:
        """How it ended, in words."""
        return interruption.describe_end(_settings(self.choice, 0.1), self.run, None)[1]


def network(choice: Choice) -> fnn.Network:
    """Two inputs, the hidden layers, and one sigmoid output: the probability of class 1."""
    return fnn.multilayer((2, *choice.hidden, 1), (choice.activation,) * len(choice.hidden) + ("sigmoid",))


def begin(choice: Choice, rate: float) -> Training:
    """The run before the first epoch. Raises ValueError for a rate that the optimizer refuses."""
    check_rate(choice.optimizer, rate)
    network_ = network(choice)
    params = network_.init(jax.random.key(choice.seed))
    run = _compiled(_key(choice))[0](rate, params, _batch(network_, choice, 0))
    return Training(choice, run, NOTHING_YET)


def advance(now: Training, rate: float, epochs: int) -> Training:
    """The run `epochs` (1 to EPOCHS) later, or when it ended. Raises ValueError for a rate that the optimizer
    refuses.
    """
    check_rate(now.choice.optimizer, rate)
    network_ = network(now.choice)
    batches = _batch(network_, now.choice, 0), _batch(network_, now.choice, 1)
    run, table, count = _compiled(_key(now.choice))[1](rate, now.run, *batches, jax.random.key(now.choice.seed), epochs)
    return Training(now.choice, run, longer(now.history, table, count))


def check_rate(optimizer: str, rate: float) -> None:
    """Raises ValueError for an invalid learning rate of that optimizer; second-order optimizers have none."""
    if not second_order.knows(optimizer):
        first_order.factory(optimizer)(rate)  # the first constant of each optimizer; for Rprop its first step


def _key(choice: Choice) -> Choice:
    """The choice, with those fields made equal that do not change the compiled program."""
    return Choice(
        hidden=choice.hidden,
        activation=choice.activation,
        loss=choice.loss,
        optimizer=choice.optimizer,
        batch_size=choice.batch_size,
    )


def _settings(choice: Choice, rate) -> Settings:
    optimizer = optimizers.get(choice.optimizer) if choice.second_order else first_order.factory(choice.optimizer)(rate)
    plan = training.minibatch(choice.batch_size) if choice.batch_size else training.batch()
    settings = check_settings(network(choice), choice.loss, optimizer, plan=plan, correct=right)
    return choose_plan(settings, EXAMPLES, False, EPOCHS)


def right(outputs, targets):
    """Which examples (Q,) are on their side of 1/2; outputs and targets (Q, 1)."""
    return ((outputs > 0.5) == (targets > 0.5))[:, 0]


@functools.lru_cache(maxsize=64)
def _compiled(choice: Choice) -> tuple[Callable, Callable]:
    return in_portions(functools.partial(_settings, choice))


def in_portions(settings: Callable[[Any], Settings]) -> tuple[Callable, Callable]:
    """(rate, params, training) -> Run; (rate, run, training, held out, key, epochs) -> (Run, table, epochs run), up
    to EPOCHS epochs; compiled once for all rates. settings(rate): the training's.
    """

    def begin(rate, params, batch):
        return epoch.start_run(settings(rate), params, batch)

    def advance(rate, run, batch, held_out, key, epochs):
        return program.run_program(settings(rate), EPOCHS)(run, batch, held_out, key, epochs)

    return jax.jit(begin), jax.jit(advance)


def longer(history: History, table: History, count: Any) -> History:
    """The history, with the first `count` rows of a table appended."""
    pairs = zip(history[:-1], table[:-1], strict=True)
    return History(*(np.concatenate([rows, np.asarray(more)[: int(count)]]) for rows, more in pairs), {})


def _batch(network_: fnn.Network, choice: Choice, part: int) -> Batch:
    found = data(choice.data)
    return Batch({"input": jnp.asarray(found.inputs[part])}, jnp.asarray(found.targets[part]))


class Field(NamedTuple):
    """The network over the plane: outputs (N, N), rows along the second input, and each hidden layer's net inputs
    (S, N, N), which are zero on its neurons' boundaries.
    """

    outputs: np.ndarray
    net_inputs: tuple[np.ndarray, ...]


def axis() -> np.ndarray:
    """(N,): the grid, each way."""
    return np.linspace(*WINDOW, CELLS + 1)


def field(now: Training) -> Field:
    """The network's outputs and net inputs over the window."""
    outputs, net_inputs = _fielded(network(now.choice))(now.params)
    return Field(np.asarray(outputs), tuple(map(np.asarray, net_inputs)))


@functools.lru_cache(maxsize=64)
def _fielded(network_: fnn.Network) -> Callable:
    points = np.stack(np.meshgrid(axis(), axis()), axis=-1).reshape(-1, 2)
    side = CELLS + 1

    def over_the_plane(params):
        trace = network_.forward(params, points)
        hidden = [trace.net_inputs[layer.name].T.reshape(-1, side, side) for layer in network_.layers[:-1]]
        return trace.activations[network_.output.name].reshape(side, side), hidden

    return jax.jit(over_the_plane)
