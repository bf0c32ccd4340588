"""The data that members of a population train on: all examples, subsets of them, or targets made wrong on purpose.

Letters: Q examples, N members of a group, M of them at a time, n examples a member sees, P positions, S outputs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn.networks import stored
from functional_nn.networks.stored import Windows
from functional_nn.training import keys
from functional_nn.training.records import Batch


class MemberData(NamedTuple):
    """The data of a group.

    Attributes:
        whole: All training examples, with their weights where they have any.
        rows: The numbers of the examples that are seen: (n,) where all members see the same, (N, n) where each has
            its own, None where all see all Q.
        label_noise: (N,), the share of each member's targets that are wrong, or None.
        examples: n.
    """

    whole: Batch
    rows: np.ndarray | None
    label_noise: np.ndarray | None
    examples: int

    @property
    def axes(self) -> Batch:
        """0 for the arrays of which each member has its own, None for those that all share."""
        own = 0 if self.rows is not None and self.rows.ndim == 2 else None
        return Batch(own, own if self.label_noise is None else 0, None if self.whole.weights is None else own)

    def of(self, positions: np.ndarray, member_keys: Array, signs: bool) -> Batch:
        """The data of the members at these positions in the group: (M, n, ...), or (n, ...) for what all share.

        signs: True where the targets are +-1 in a single column.
        """
        inputs, targets, weights = self.whole[:3]
        if self.rows is not None:
            rows = self.rows if self.rows.ndim == 1 else self.rows[positions]
            inputs, targets, weights = jax.tree.map(lambda x: x[rows], (inputs, targets, weights))
        if self.label_noise is not None:
            axis = 0 if self.rows is not None and self.rows.ndim == 2 else None
            disturb = jax.vmap(functools.partial(with_wrong_targets, signs=signs), (0, axis, 0))
            noise = jnp.asarray(self.label_noise[positions], targets.dtype)
            targets = jax.jit(disturb)(member_keys[positions], targets, noise)
        return Batch(inputs, targets, weights)


def member_data(
    training: Batch, examples: int | None, columns: dict[str, np.ndarray], members: np.ndarray, key: Array
) -> MemberData:
    """The data of a group of members, from the population's hyperparameters and key.

    examples: how many each sees, None for all. Raises ValueError for more than there are, and for a stream of windows,
    which has no examples to choose from.
    """
    whole = len(training.targets)
    names = [name for name in ("examples", "subset", "label_noise") if name in columns]
    if names and any(isinstance(x, Windows) for x in training.inputs.values()):
        raise ValueError(
            f"hyperparameters: {names[0]} needs examples and targets of their own, which windows of a stream do not "
            "have; every member reads the whole stream"
        )
    if examples is not None and examples > whole:
        raise ValueError(f"hyperparameters: examples must be at most {whole}, the training examples, got {examples}")
    noise = columns["label_noise"][members] if "label_noise" in columns else None
    if noise is not None:
        training = training._replace(targets=stored.whole(training.targets))
    examples = examples or whole
    rows = None
    if "subset" in columns or examples < whole:
        subsets = columns["subset"][members] if "subset" in columns else np.zeros(1, np.int64)
        rows_of = {
            subset: np.asarray(jax.random.permutation(keys.subset(key, int(subset)), whole))[:examples]
            for subset in np.unique(subsets)
        }
        rows = np.stack([rows_of[subset] for subset in subsets]) if "subset" in columns else rows_of[0]
    return MemberData(training, rows, noise, examples)


def with_wrong_targets(key: Array, targets: Array, noise: Array, signs: bool) -> Array:
    """Targets `(n, *P, S)` of which the share `noise` is changed to another class, at every position if they have any.

    Numeric targets get Gaussian noise of `noise` standard deviations instead. signs: True for +-1 in a single column,
    where the other class is the other sign.
    """
    key = keys.labels(key)
    whole, width = targets, targets.shape[-1]
    targets = targets.reshape(-1, width)
    examples = len(targets)
    order_key, shift_key = keys.other_classes(key)
    rank = jnp.argsort(jax.random.permutation(order_key, examples))
    wrong = (rank < jnp.round(noise * examples).astype(rank.dtype))[:, None]
    if width > 1 or signs:
        if width == 1:
            return jnp.where(wrong, -targets, targets).reshape(whole.shape)
        shift = jax.random.randint(shift_key, (examples, 1), 1, width)
        columns = (jnp.arange(width)[None, :] - shift) % width
        return jnp.where(wrong, jnp.take_along_axis(targets, columns, axis=1), targets).reshape(whole.shape)
    return whole + noise * jnp.std(whole) * jax.random.normal(key, whole.shape, whole.dtype)
