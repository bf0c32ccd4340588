"""What is drawn in training, and from which key: one run's key divides into streams that never meet.

The key given to `fit` is split in two, for the initial parameters and for the batches. What else is random folds a
number of its own into one of these, counted down from the largest, where epochs, layers and subsets never come.
"""

import jax
from jax import Array

_NOISE, _SUBSET, _LABELS = (2**32 - number for number in (1, 2, 3))


def parameters(key: Array) -> Array:
    """Of a run's key: the initial parameters'."""
    return jax.random.split(key)[0]


def plan(key: Array) -> Array:
    """Of a run's key: the batches', which folds in the epoch."""
    return jax.random.split(key)[1]


def updates(plan_key: Array, epoch: Array, count: int) -> Array:
    """Of the batches' key: one for each update of an epoch, (U,), for dropout and for gradients that are random."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(plan_key, _NOISE), epoch), count)


def gradient_noise(update_key: Array) -> Array:
    """Of an update's key: noise added to its gradient, beside the neurons that are dropped."""
    return jax.random.fold_in(update_key, _NOISE)


def subset(key: Array, number: int) -> Array:
    """Of a population's key: which examples are in the subset of that number."""
    return jax.random.fold_in(jax.random.fold_in(key, _SUBSET), number)


def labels(key: Array) -> Array:
    """Of a member's key: which of its targets are wrong."""
    return jax.random.fold_in(key, _LABELS)
