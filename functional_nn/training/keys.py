"""The random keys of training: the key of one run is divided into streams that never overlap.

The key given to `fit` is split in two, for the initial parameters and for the batches. Everything else that is random
folds a number into one of these. These numbers are counted down from the largest, which epochs, layers and subsets
never reach. Each member of a population, and each start of `best_of`, has its own key, divided in the same way.
"""

import zlib

import jax
import numpy as np
from jax import Array

_NOISE, _SUBSET, _LABELS, _AUGMENTATION, _STRIPS = (2**32 - number for number in (1, 2, 3, 4, 5))


def parameters(key: Array) -> Array:
    """The initial parameters' key, of a run's key."""
    return jax.random.split(key)[0]


def plan(key: Array) -> Array:
    """The batches' key, of a run's key; each epoch is folded into it."""
    return jax.random.split(key)[1]


def epoch(plan_key: Array, number: Array | int) -> Array:
    """The key of an epoch's order or draws, of the batches' key."""
    return jax.random.fold_in(plan_key, number)


def strips(plan_key: Array, epoch: Array | int) -> Array:
    """The key of the order in which an epoch reads the strips of data in chunks, of the batches' key."""
    return jax.random.fold_in(jax.random.fold_in(plan_key, _STRIPS), epoch)


def updates(plan_key: Array, epoch: Array, count: int) -> Array:
    """Keys (U,) of an epoch's updates, of the batches' key: for dropout, random gradients and augmentation."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(plan_key, _NOISE), epoch), count)


def gradient_noise(update_key: Array) -> Array:
    """The key of noise added to a gradient, of an update's key; dropout uses another."""
    return jax.random.fold_in(update_key, _NOISE)


def augmentation(update_key: Array, number: int) -> Array:
    """The key of one augmentation, by its number among those of the inputs, of an update's key."""
    return jax.random.fold_in(jax.random.fold_in(update_key, _AUGMENTATION), number)


def tracked(epoch: Array) -> Array:
    """The key that a random rule draws from where it is tracked after an epoch; the same in every run."""
    return jax.random.fold_in(jax.random.key(0), epoch)


def starts(key: Array, count: int) -> Array:
    """Keys (N,) of the starts, of the key of `best_of`."""
    return jax.random.split(key, count)


def member(key: Array, seed: Array) -> Array:
    """The key of the members with this seed, of a population's key.

    Seeds 0 and 1 have the two keys that `parameters` and `plan` return, since JAX splits a key by folding in 0 and 1.
    Members draw from keys that are divided further.
    """
    return jax.random.fold_in(key, seed)


def subset(key: Array, number: int) -> Array:
    """The key of the examples in a subset, by its number, of a population's key."""
    return jax.random.fold_in(jax.random.fold_in(key, _SUBSET), number)


def labels(key: Array) -> Array:
    """The key of label noise, of a member's key: which targets are wrong, or what is added to numeric ones."""
    return jax.random.fold_in(key, _LABELS)


def other_classes(labels_key: Array) -> tuple[Array, Array]:
    """The keys of which examples are moved to another class, and to which, of the labels' key."""
    which, shift = jax.random.split(labels_key)
    return which, shift


def hyperparameter(search_seed: int, name: str) -> np.random.Generator:
    """NumPy's generator for a hyperparameter of a random search; it does not depend on what else is searched."""
    return np.random.default_rng([search_seed, zlib.crc32(name.encode())])
