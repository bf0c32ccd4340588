"""Best of N: the same training from N random starts in one compiled program (CSE 475, 19.70.1)."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.networks import losses
from functional_nn.networks.network import Network, Params
from functional_nn.training import keys
from functional_nn.training.evaluation import evaluate
from functional_nn.training.loop import Outcome, pure_fit
from functional_nn.training.records import DIVERGED


class Restarts(NamedTuple):
    """params, index: of the best start; losses (N,): what each ended at, inf where it diverged; outcomes: of all."""

    params: Params
    index: int
    losses: np.ndarray
    outcomes: Outcome


def best_of(
    count: int,
    network: Network,
    loss: Any,
    optimizer: Any,
    inputs: Any,
    targets: Array,
    *,
    key: Array,
    epochs: int,
    validation: tuple | None = None,
    weights: Array | None = None,
    class_weights: Any = None,
    **settings: Any,
) -> Restarts:
    """Trains from `count` starts at once and keeps the one whose loss ends lowest, on the validation data if given.

    Start i is `fit` with key `jax.random.split(key, count)[i]`, to rounding; weights and class_weights are `fit`'s, as
    are `settings`: plan, regularizer, stop, gradient, correct, augment. Raises ValueError as `fit`, for count < 1, and
    where every start diverged.
    """
    checks.integer("", "count", count, 1)
    checks.prng_key("key", key)
    for name in settings.keys() - {"plan", "regularizer", "stop", "gradient", "correct", "augment"}:
        raise TypeError(
            f"best_of takes plan, regularizer, stop, gradient, correct and augment beside its own; got {name}="
        )
    loss = losses.get(loss)
    train = pure_fit(network, loss, optimizer, epochs=epochs, **settings)
    weighing = {"weights": weights, "class_weights": class_weights}
    judged_on, judged_by = (inputs, targets), weighing
    if validation is not None:
        judged_on, judged_by = validation[:2], dict(zip(("weights",), validation[2:], strict=False))

    def member(own_key):
        outcome = train(own_key, inputs, targets, validation, **weighing)
        return outcome, evaluate(network, loss, outcome.params, *judged_on, **judged_by)[0]

    outcomes, final = jax.jit(jax.vmap(member))(keys.starts(key, count))
    final = np.where((np.asarray(outcomes.ended) == DIVERGED) | ~np.isfinite(final), np.inf, final)
    if not np.isfinite(final).any():
        raise ValueError(f"all {count} starts diverged; the learning rate may be too large")
    index = int(final.argmin())
    return Restarts(jax.tree.map(lambda x: x[index], outcomes.params), index, final, outcomes)
