"""A small convolutional network on one picture of a digit, for the page on convolution; and its training.

Letters: S channels of a layer, P positions of a signal, T their number, K weights of one channel's kernel. There is one
example, so arrays here are signals (*P, S), as in `networks.connections` without the batch.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.gradients import backprop
from functional_nn.lab import datasets
from functional_nn.networks.network import Params

SIDE, CLASSES = 8, 10
HELD_OUT = 35  # of each class; some classes have one more
KERNEL = fnn.connections.conv((3, 3))
CONVOLVED = "1"  # the layer whose kernel's gradient is shown in its parts
LOSS = fnn.losses.cross_entropy(reduction="sum")
EPOCHS = 8  # few enough that some held-out digits are still wrong and have sensitivities to show


@functools.cache
def network() -> fnn.Network:
    """8 x 8 pixels; 6 channels, 3 x 3; half as many positions each way; 8 channels, 3 x 3; ten classes."""
    return fnn.graph(
        inputs={"p": (SIDE, SIDE, 1)},
        layers=[
            fnn.Layer("1", 6, "relu", [("p", KERNEL)]),
            fnn.Layer("2", 6, "max_pool((2, 2))", [("1", "identity")], bias="none"),
            fnn.Layer("3", 8, "relu", [("2", KERNEL)]),
            fnn.Layer("4", CLASSES, "softmax", [("3", "full")]),
        ],
    )


class Trained(NamedTuple):
    """The network's parameters, and the held-out digits by class: pictures[c] (Q, 8, 8), 0 to 1; right: the share of
    them that the network classifies correctly.
    """

    params: Params
    pictures: tuple[np.ndarray, ...]
    right: float


@functools.cache
def trained() -> Trained:
    """Trains the network once per process, always with the same result, on four fifths of scikit-learn's digits."""
    seen, held_out = datasets.split(datasets.load("digits"))

    def pictures(part):
        return part.inputs.reshape(-1, SIDE, SIDE, 1)

    found = fnn.fit(
        network(),
        "cross_entropy",
        fnn.optimizers.adam(0.01),
        pictures(seen),
        seen.targets,
        key=jax.random.key(0),
        epochs=EPOCHS,
    )
    # measured once and not in each epoch: compiling that would take as long as the training
    outputs = jax.jit(network().apply)(found.params, pictures(held_out))
    by_class = (pictures(held_out)[held_out.labels == digit, :, :, 0] for digit in range(CLASSES))
    right = np.mean(np.argmax(outputs, axis=1) == held_out.labels)
    return Trained(jax.tree.map(np.asarray, found.params), tuple(by_class), float(right))


class Question(NamedTuple):
    """What is requested: a picture (8, 8), or the indices of a held-out digit; the target class, 0 to 9; the
    parameters, None for those it was trained to; and the learning rate of a step from there.
    """

    picture: np.ndarray | tuple[int, int]
    target: int
    params: Params | None
    rate: float


class Found(NamedTuple):
    """Everything the page shows for a question, as NumPy arrays.

    picture (8, 8); value F; activations {name: (*P, S)} of the input p and of every layer, sensitivities {layer: dF/dn}
    in their shapes or those of its net inputs; input_gradient dF/dp (8, 8, 1). For layer CONVOLVED, with a channel's
    kernel as a picture: windows (T, 3, 3), what the kernel is multiplied with at each position; shares (T, S, 3, 3),
    s_p times them; sums (T, S, 3, 3), of the shares up to p. gradients: of all parameters; automatic: the same by
    `jax.grad`; differences: the largest difference between the two, by quantity. updated, updated_value: after a step
    of gradient descent.
    """

    picture: np.ndarray
    value: np.ndarray
    activations: dict[str, np.ndarray]
    sensitivities: dict[str, np.ndarray]
    input_gradient: np.ndarray
    windows: np.ndarray
    shares: np.ndarray
    sums: np.ndarray
    gradients: Params
    automatic: Params
    differences: dict[str, np.ndarray]
    updated: Params
    updated_value: np.ndarray

    @property
    def outputs(self) -> np.ndarray:
        return self.activations[network().output.name]


def check(rate: float) -> None:
    """Raises ValueError for a rate that gradient descent does not accept."""
    fnn.optimizers.gd(rate)


def answer(question: Question) -> tuple[Question, Found]:
    """The answer to a question whose rate `check` has accepted."""
    picture = question.picture
    if isinstance(picture, tuple):
        digit, number = picture
        picture = trained().pictures[digit][number]
    params = trained().params if question.params is None else question.params
    found = _program()(params, picture, np.eye(CLASSES)[question.target], question.rate)
    return question, Found(picture, *jax.tree.map(np.asarray, found))


@functools.cache
def _program() -> Callable[..., tuple]:
    """(params, picture, target (10,), rate) -> the fields of `Found` from `value` on."""
    network_ = network()
    objective = fnn.objective(network_, LOSS)
    vectors = functools.partial(jax.tree.map, lambda x: x[0])

    @jax.jit
    def run(params, picture, target, rate):
        inputs, targets = {"p": picture[None, :, :, None]}, target[None, :]
        by_hand = fnn.backpropagate(network_, LOSS, params, inputs, targets, input_gradients=True)
        s, trace = by_hand.sensitivities, by_hand.trace

        left, right = vectors(KERNEL.unfold(s[CONVOLVED], inputs["p"]))  # (T, S), (T, K)
        windows = right.reshape(-1, *params[CONVOLVED]["weights"]["p"].shape[1:-1])
        shares = left[:, :, None, None] * windows[:, None, :, :]

        def shifted(offsets):
            return backprop.loss_value(network_, LOSS, network_.forward(params, inputs, offsets), targets, None)

        automatic, input_gradient = jax.grad(objective, argnums=(0, 1))(params, inputs, targets)
        automatic_s = jax.grad(shifted)(jax.tree.map(jnp.zeros_like, trace.net_inputs))
        differences = {"dF/dp": _apart(by_hand.input_gradients, input_gradient)}
        for name in s:
            differences[f"dF/dn, layer {name}"] = _apart(s[name], automatic_s[name])
            if jax.tree.leaves(params[name]):
                differences[f"dF/dW, dF/db, layer {name}"] = _apart(by_hand.gradients[name], automatic[name])
        optimizer = fnn.optimizers.gd(rate)
        updated = optimizer.update(optimizer.init(params), by_hand.gradients).params
        return (
            by_hand.value,
            vectors(trace.activations),
            vectors(s),
            by_hand.input_gradients["p"][0],
            windows,
            shares,
            jnp.cumsum(shares, axis=0),
            by_hand.gradients,
            automatic,
            differences,
            updated,
            objective(updated, inputs, targets),
        )

    return run


def _apart(one, other):
    """The largest difference between the numbers of two trees."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x - y)) for x, y in pairs]))


def painted(picture: np.ndarray, start: tuple[float, float], end: tuple[float, float], ink: float) -> np.ndarray:
    """The picture with `ink` along a stroke from one (column, row) to another, in pixels from the upper left corner,
    in steps of at most half a pixel; the part of the stroke outside the picture paints nothing.
    """
    count = 1 + int(2 * np.ceil(np.abs(np.subtract(end, start)).max()))
    columns, rows = np.floor(np.linspace(start, end, count)).astype(int).T
    inside = (columns >= 0) & (columns < SIDE) & (rows >= 0) & (rows < SIDE)
    changed = picture.copy()
    changed[rows[inside], columns[inside]] = ink
    return changed
