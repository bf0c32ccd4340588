"""What is drawn in training, and from which key: one run's key divides into streams that never meet.

The key given to `fit` is split in two, for the initial parameters and for the batches. What else is random folds a
number of its own into one of these, counted down from the largest, where epochs, layers and subsets never come. A
member of a population, and a start of several, has a key of its own, which divides likewise.
"""

import zlib

import jax
import numpy as np
from jax import Array

_NOISE, _SUBSET, _LABELS, _AUGMENTATION, _STRIPS = (2**32 - number for number in (1, 2, 3, 4, 5))


def parameters(key: Array) -> Array:
    """Of a run's key: the initial parameters'."""
    return jax.random.split(key)[0]


def plan(key: Array) -> Array:
    """Of a run's key: the batches', which folds in the epoch."""
    return jax.random.split(key)[1]


def epoch(plan_key: Array, number: Array | int) -> Array:
    """Of the batches' key: the order, or the draws, of that epoch."""
    return jax.random.fold_in(plan_key, number)


def strips(plan_key: Array, epoch: Array | int) -> Array:
    """Of the batches' key: the order in which that epoch reads the strips of data in chunks."""
    return jax.random.fold_in(jax.random.fold_in(plan_key, _STRIPS), epoch)


def updates(plan_key: Array, epoch: Array, count: int) -> Array:
    """Of the batches' key: one for each update of an epoch, (U,), for dropout, for gradients that are random
    and for augmentation.
    """
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(plan_key, _NOISE), epoch), count)


def gradient_noise(update_key: Array) -> Array:
    """Of an update's key: noise added to its gradient, beside the neurons that are dropped."""
    return jax.random.fold_in(update_key, _NOISE)


def augmentation(update_key: Array, number: int) -> Array:
    """Of an update's key: the augmentation's of that number, among those that its inputs go through."""
    return jax.random.fold_in(jax.random.fold_in(update_key, _AUGMENTATION), number)


def tracked(epoch: Array) -> Array:
    """Of no run's key: what a random rule draws where it is tracked after that epoch, the same in every run."""
    return jax.random.fold_in(jax.random.key(0), epoch)


def starts(key: Array, count: int) -> Array:
    """Of the key of `best_of`: each start's own (N,)."""
    return jax.random.split(key, count)


def member(key: Array, seed: Array) -> Array:
    """Of a population's key: that of its members with this seed. Seeds 0 and 1 give the two keys that `parameters` and
    `plan` give, since JAX splits a key by folding in 0 and 1; what members draw from is divided further.
    """
    return jax.random.fold_in(key, seed)


def subset(key: Array, number: int) -> Array:
    """Of a population's key: which examples are in the subset of that number."""
    return jax.random.fold_in(jax.random.fold_in(key, _SUBSET), number)


def labels(key: Array) -> Array:
    """Of a member's key: which of its targets are wrong, or the noise of those that are numbers."""
    return jax.random.fold_in(key, _LABELS)


def other_classes(labels_key: Array) -> tuple[Array, Array]:
    """Of the labels' key: which examples are of another class, and of which."""
    which, shift = jax.random.split(labels_key)
    return which, shift


def hyperparameter(search_seed: int, name: str) -> np.random.Generator:
    """What a random search draws of that name: NumPy's own stream, the same whatever else is searched."""
    return np.random.default_rng([search_seed, zlib.crc32(name.encode())])
