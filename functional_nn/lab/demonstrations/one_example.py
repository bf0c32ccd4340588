"""Backpropagation of one example: the networks that the page offers, the steps, and every number in them.

The steps are those of `gradients.backprop`: forward layer by layer, the loss, s^M, the recursion, the contraction and
the update. Letters are the same as there. There is one example, so arrays here are vectors (S,) and matrices (S, R), as
in the texts.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.gradients import backprop
from functional_nn.networks.network import Params, theta

ABOVE, BELOW = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"), str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True, eq=False)
class Example:
    """A network and one example, with which the page starts.

    inputs (R,), targets (S,); places: the middle of each input's and layer's neurons in the drawing, x in columns and y
    upwards in neurons.
    """

    name: str
    about: str
    network: fnn.Network
    loss: fnn.Loss
    params: Params
    inputs: tuple[float, ...]
    targets: tuple[float, ...]
    rate: float
    places: dict[str, tuple[float, float]]

    @property
    def entries(self) -> list["Entry"]:
        """Every parameter, one number each, in the order of the layers."""
        found = []
        for layer in self.network.layers:
            for source, W in self.params[layer.name]["weights"].items():
                found += [Entry(layer.name, i, source, j) for i in range(W.shape[0]) for j in range(W.shape[1])]
            found += [Entry(layer.name, i) for i in range(len(self.params[layer.name].get("bias", ())))]
        return found

    @property
    def start(self) -> "Question":
        return Question(self.name, self.params, self.inputs, self.targets, self.rate)


class Entry(NamedTuple):
    """One weight, from neuron `start` of `source` to neuron `end` of `layer`; or, without a source, a bias."""

    layer: str
    end: int
    source: str = ""
    start: int = 0

    def of(self, params: Params) -> float:
        own = params[self.layer]
        return float(own["weights"][self.source][self.end, self.start] if self.source else own["bias"][self.end])

    def put(self, params: Params, value: float) -> Params:
        """The parameters with this one changed."""
        params = jax.tree.map(np.array, params)
        own = params[self.layer]
        if self.source:
            own["weights"][self.source][self.end, self.start] = value
        else:
            own["bias"][self.end] = value
        return params

    @property
    def words(self) -> str:
        end = neuron("a", self.layer, self.end)
        return f"{neuron('a', self.source, self.start)} → {end}" if self.source else neuron("b", self.layer, self.end)


class Question(NamedTuple):
    """What is requested: the values of all controls of the page, except the step."""

    example: str
    params: Params
    inputs: tuple[float, ...]
    targets: tuple[float, ...]
    rate: float


class Found(NamedTuple):
    """Everything the page shows for a question, as NumPy arrays.

    value F; net_inputs, activations, sensitivities and received (g = dF/da of what another layer reads): {name: (S,)};
    slopes: {layer: F'(n)^T (S, S)}; loss_gradient dF/da^M (S,); gradients and updated have the parameters' structure,
    updated_value is F after the update; automatic and automatic_sensitivities: gradients and sensitivities by
    `jax.grad`.
    """

    value: np.ndarray
    net_inputs: dict[str, np.ndarray]
    activations: dict[str, np.ndarray]
    slopes: dict[str, np.ndarray]
    loss_gradient: np.ndarray
    received: dict[str, np.ndarray]
    sensitivities: dict[str, np.ndarray]
    gradients: Params
    automatic: Params
    automatic_sensitivities: dict[str, np.ndarray]
    updated: Params
    updated_value: np.ndarray


class Step(NamedTuple):
    """A kind, one of `_EXPLAINED`, and the layer it is about, if it is about one."""

    kind: str
    layer: str = ""

    @property
    def forward(self) -> bool:
        return self.kind in ("net inputs", "activations", "loss")

    @property
    def words(self) -> str:
        way = "forward" if self.forward else "backward"
        special = {
            "loss": f"{way}: the loss",
            "start": f"{way}: the start, the sensitivities of layer {self.layer}",
            "update": "the update",
        }
        return special.get(self.kind, f"{way}: {self.kind} of layer {self.layer}")


def steps(network: fnn.Network) -> list[Step]:
    """The steps in order."""
    names = [layer.name for layer in network.layers]
    output, hidden = names[-1], names[-2::-1]
    found = [Step(kind, name) for name in names for kind in ("net inputs", "activations")]
    found += [Step("loss", output), Step("start", output)]
    found += [Step(kind, name) for name in hidden for kind in ("derivatives by the activations", "sensitivities")]
    return [*found, *(Step("gradient", name) for name in reversed(names)), Step("update")]


def check(question: Question) -> None:
    """Raises ValueError for targets that the loss does not accept, and a rate that gradient descent does not accept."""
    examples()[question.example].loss.check_targets(np.array([question.targets]))
    fnn.optimizers.gd(question.rate)


def answer(question: Question) -> tuple[Question, Found]:
    """The answer to a question that `check` has accepted."""
    example = examples()[question.example]
    inputs, targets = (np.array([values], float) for values in (question.inputs, question.targets))
    found = _program(example.network, example.loss)(question.params, inputs, targets, question.rate)
    return question, jax.tree.map(np.asarray, found)


@functools.cache
def _program(network: fnn.Network, loss: fnn.Loss) -> Callable[..., Found]:
    objective = fnn.objective(network, loss)

    def slopes(layer, params, trace):
        """F'(n)^T, column i the pullback of e_i."""

        def across(x):
            return jnp.repeat(x[layer.name], layer.size, axis=0)

        n, a = across(trace.net_inputs), across(trace.activations)
        kept = jax.tree.map(lambda x: jnp.repeat(x, layer.size, axis=0), trace.kept.get(layer.name))
        unit, own = jnp.eye(layer.size, dtype=a.dtype), theta(layer, params[layer.name])
        return layer.activation.pullback(unit, n, a, kept, own)[0].T

    @jax.jit
    def run(params, inputs, targets, rate):
        by_hand = fnn.backpropagate(network, loss, params, inputs, targets)
        trace = by_hand.trace
        swept = backprop.sweep(network, params, trace, backprop.start(network, loss, params, trace, targets, None))

        def shifted(offsets):
            return backprop.loss_value(network, loss, network.forward(params, inputs, offsets), targets, None)

        optimizer = fnn.optimizers.gd(rate)
        updated = optimizer.update(optimizer.init(params), by_hand.gradients).params
        vectors = functools.partial(jax.tree.map, lambda x: x[0])
        return Found(
            by_hand.value,
            vectors(trace.net_inputs),
            vectors(trace.activations),
            {layer.name: slopes(layer, params, trace) for layer in network.layers},
            loss.gradient(trace.activations[network.output.name], targets)[0],
            vectors(swept.output_gradients),
            vectors(by_hand.sensitivities),
            by_hand.gradients,
            jax.grad(objective)(params, inputs, targets),
            vectors(jax.grad(shifted)(jax.tree.map(jnp.zeros_like, trace.net_inputs))),
            updated,
            objective(updated, inputs, targets),
        )

    return run


@functools.cache
def examples() -> dict[str, Example]:
    """The examples by name, in the order in which the page offers them."""
    offered = (_kordecki(), _two_ways(), _two_readers(), _softmax(), _relu())
    return {example.name: example for example in offered}


def _kordecki() -> Example:
    layers = [fnn.Layer("1", 2, "sigmoid", ("p",), "shared"), fnn.Layer("2", 2, "sigmoid", ("1",), "shared")]
    return Example(
        "Kordecki: two logistic layers",
        "All neurons of a layer share one bias. The text's y is our a; its w from i to j is our w in row j, column i.",
        fnn.graph(inputs={"p": 3}, layers=layers),
        fnn.losses.half_sum_square_error(reduction="sum"),
        {
            "1": _parameters({"p": [[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]]}, [0.5]),
            "2": _parameters({"1": [[0.7, 0.9], [0.8, 0.1]]}, [0.5]),
        },
        (1.0, 4.0, 5.0),
        (0.1, 0.05),
        0.01,
        {"p": (0, 0), "1": (1, 0), "2": (2, 0)},
    )


def _two_ways() -> Example:
    layers = [fnn.Layer("1", 2, "tanh", ("p",)), fnn.Layer("2", 2, "linear", ("p", "1"))]
    return Example(
        "P3.2: the input feeds both layers",
        "Hagan: layer 2 also reads the input; the text's W³ is our W²ᵖ. The numbers are ours.",
        fnn.graph(inputs={"p": 2}, layers=layers),
        fnn.losses.sum_square_error(reduction="sum"),
        {
            "1": _parameters({"p": [[0.5, -0.3], [-0.2, 0.8]]}, [0.1, -0.1]),
            "2": _parameters({"p": [[0.3, -0.5], [-0.4, 0.2]], "1": [[0.6, -0.7], [0.9, 0.4]]}, [0.2, 0.1]),
        },
        (1.0, 0.5),
        (0.5, -0.5),
        0.1,
        {"p": (0, -0.35), "1": (1, 1.15), "2": (2, -0.35)},
    )


def _two_readers() -> Example:
    layers = [
        fnn.Layer("1", 2, "tanh", ("p",)),
        fnn.Layer("2", 1, "sigmoid", ("1",)),
        fnn.Layer("3", 1, "tanh", ("1",)),
        fnn.Layer("4", 1, "linear", ("2", "3")),
    ]
    return Example(
        "E3.4: layer 1 feeds two layers",
        "Hagan: two layers read layer 1, so their contributions to its derivative are added. The text's figure is "
        "missing; sizes and numbers are ours.",
        fnn.graph(inputs={"p": 2}, layers=layers),
        fnn.losses.sum_square_error(reduction="sum"),
        {
            "1": _parameters({"p": [[0.4, -0.6], [0.7, 0.2]]}, [0.1, -0.2]),
            "2": _parameters({"1": [[0.8, -0.5]]}, [0.3]),
            "3": _parameters({"1": [[-0.3, 0.9]]}, [0.1]),
            "4": _parameters({"2": [[1.2]], "3": [[-0.7]]}, [0.2]),
        },
        (1.0, 2.0),
        (1.0,),
        0.1,
        {"p": (0, 0), "1": (1, 0), "2": (2, 0.6), "3": (2, -0.6), "4": (3, 0)},
    )


def _softmax() -> Example:
    layers = [fnn.Layer("1", 2, "tanh", ("p",)), fnn.Layer("2", 3, "softmax", ("1",))]
    return Example(
        "Softmax and cross-entropy",
        "Loss and output layer start the recursion together (Hagan E3.5); the derivative of softmax is not needed.",
        fnn.graph(inputs={"p": 2}, layers=layers),
        fnn.losses.cross_entropy(reduction="sum"),
        {
            "1": _parameters({"p": [[0.5, 0.4], [-0.6, 0.9]]}, [0.1, 0.0]),
            "2": _parameters({"1": [[0.8, -0.4], [-0.5, 0.7], [0.2, 0.3]]}, [0.0, 0.1, -0.1]),
        },
        (1.0, -0.5),
        (0.0, 1.0, 0.0),
        0.5,
        {"p": (0, 0), "1": (1, 0), "2": (2, 0)},
    )


def _relu() -> Example:
    layers = [fnn.Layer("1", 3, "relu", ("p",)), fnn.Layer("2", 1, "linear", ("1",))]
    return Example(
        "ReLU: an inactive neuron",
        "A neuron whose net input is negative outputs 0 and passes nothing back: its weights do not change.",
        fnn.graph(inputs={"p": 2}, layers=layers),
        fnn.losses.half_sum_square_error(reduction="sum"),
        {
            "1": _parameters({"p": [[0.5, 0.3], [-0.8, -0.4], [0.2, 0.6]]}, [0.1, 0.2, -0.3]),
            "2": _parameters({"1": [[0.7, -0.9, 0.4]]}, [0.1]),
        },
        (1.0, 2.0),
        (0.5,),
        0.1,
        {"p": (0, 0), "1": (1, 0), "2": (2, 0)},
    )


def _parameters(weights: dict[str, list], bias: list[float]) -> dict:
    return {"weights": {source: np.array(W, float) for source, W in weights.items()}, "bias": np.array(bias, float)}


def neuron(letter: str, name: str, number: int) -> str:
    """A neuron's quantity as text: a²₁, p₃."""
    if not name.isdigit():
        letter, name = name, ""
    return f"{letter}{name.translate(ABOVE)}{str(number + 1).translate(BELOW)}"


def readers(network: fnn.Network, name: str) -> list[str]:
    return [layer.name for layer in network.layers if name in layer.sources]
