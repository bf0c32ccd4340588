"""Training from several random starts in one compiled program, of which the best is kept (CSE 475, 19.70.1).

Letters: N starts, Q examples.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Inputs, Network, Params
from functional_nn.optimizers.optimizer import Optimizer
from functional_nn.optimizers.second_order import SecondOrder
from functional_nn.training import keys
from functional_nn.training.evaluation import evaluate
from functional_nn.training.loop import Outcome, pure_fit
from functional_nn.training.records import DIVERGED

_SETTINGS = ("plan", "regularizer", "stop", "gradient", "correct", "augment")


class Restarts(NamedTuple):
    """The outcome of several starts. Returned by `best_of`.

    Attributes:
        params: The parameters of the best start.
        index: Its number.
        losses: (N,), the loss that each start ended with, infinity where it diverged.
        outcomes: The `Outcome` of all starts, each array with a leading axis (N, ...).

    Example:
        >>> import functional_nn as fnn
        >>> fnn.training.Restarts._fields
        ('params', 'index', 'losses', 'outcomes')
    """

    params: Params
    index: int
    losses: np.ndarray
    outcomes: Outcome


def best_of(
    count: int,
    network: Network,
    loss: Loss | str,
    optimizer: Optimizer | SecondOrder | str,
    inputs: Inputs,
    targets: Array,
    *,
    key: Array,
    epochs: int,
    validation: tuple[Any, ...] | None = None,
    weights: Array | None = None,
    class_weights: Any = None,
    **settings: Any,
) -> Restarts:
    """Trains a network from several random starts at once and returns the one with the lowest loss.

    Start i is `fit` with the key `jax.random.split(key, count)[i]`, to rounding.

    Args:
        count: The number of starts, N.
        network: The network.
        loss: The loss, or its name.
        optimizer: A first- or second-order optimizer, or its name.
        inputs: `(Q, *P, R)`, or `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or integer labels `(Q, *P)`.
        key: The key that the starts' keys are split from.
        epochs: How many epochs each start is trained.
        validation: (inputs, targets) or (inputs, targets, weights). If given, the starts are compared by the loss on
            it, else by the training loss, in both cases of the parameters at the end.
        weights: The weights of the examples, as in `fit`.
        class_weights: The weights of the classes, as in `fit`.
        **settings: `plan`, `regularizer`, `stop`, `gradient`, `correct` and `augment`, as in `fit`.

    Returns:
        The parameters of the best start, its number, and the losses and outcomes of all.

    Raises:
        ValueError: As `fit`, for `count` < 1, and if every start diverged.
        TypeError: As `fit`, and for other settings.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((2, 1), ("sigmoid",))
        >>> inputs, targets = jax.numpy.eye(2), jax.numpy.array([[0.0], [1.0]])
        >>> best = fnn.training.best_of(
        ...     4, network, "binary_cross_entropy", "gd(0.5)", inputs, targets, key=jax.random.key(0), epochs=2
        ... )
        >>> best.losses.shape, best.index == int(best.losses.argmin())
        ((4,), True)
        >>> best.outcomes.history.training_loss.shape
        (4, 2)
    """
    checks.integer("", "count", count, 1)
    checks.prng_key("key", key)
    for name in settings:
        if name not in _SETTINGS:
            raise TypeError(f"best_of: expected {', '.join(_SETTINGS)} in addition to its own arguments, got {name}=")
    loss = losses.get(loss)
    train = pure_fit(network, loss, optimizer, epochs=epochs, **settings)
    weighting = {"weights": weights, "class_weights": class_weights}
    judged_on, judged_by = (inputs, targets), weighting
    if validation is not None:
        judged_on, judged_by = validation[:2], dict(zip(("weights",), validation[2:], strict=False))

    def train_and_evaluate(start_key):
        outcome = train(start_key, inputs, targets, validation, **weighting)
        return outcome, evaluate(network, loss, outcome.params, *judged_on, **judged_by)[0]

    outcomes, final = jax.jit(jax.vmap(train_and_evaluate))(keys.starts(key, count))
    final = np.where((np.asarray(outcomes.ended) == DIVERGED) | ~np.isfinite(final), np.inf, final)
    if not np.isfinite(final).any():
        raise ValueError(f"all {count} starts diverged; the learning rate may be too large")
    index = int(final.argmin())
    return Restarts(jax.tree.map(lambda x: x[index], outcomes.params), index, final, outcomes)
