"""Backpropagation of one example, step by step: a drawn graph, the equation of each step, and the numbers in it.

The steps are those of `gradients.backprop`: forward layer by layer, the loss, s^M, the recursion, the contraction and
the update. Letters as there; there is one example, so that arrays here are vectors (S,) and matrices (S, R) as in the
texts. Every number is the library's; automatic differentiation stands beside it.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from bokeh.document import Document
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import Arrow, Button, NormalHead, Range1d, Select, TextInput
from markupsafe import Markup

import functional_nn as fnn
from functional_nn.gradients import backprop
from functional_nn.lab import equations
from functional_nn.lab.demonstrations import page
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, said
from functional_nn.lab.equations import mathml
from functional_nn.networks.network import Params, theta

TITLE = "Backpropagation, step by step"
ABOUT = "Values forward, then sensitivities back, each with its equation and numbers. Click a weight to change it."
_ABOVE, _BELOW = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"), str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_FORWARD, _BACKWARD = page.COLORS[0], page.COLORS[1]
_NEAR = 0.12  # of a column's width: how far from an edge a click still means it


# What is computed -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Example:
    """A network and one example, with which the page begins.

    inputs (R,), targets (S,); places: where the middle of each input's and layer's neurons is drawn, x in columns and
    y upwards in neurons.
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
    """What is asked: all that the page's controls say, but for the step."""

    example: str
    params: Params
    inputs: tuple[float, ...]
    targets: tuple[float, ...]
    rate: float


class Found(NamedTuple):
    """Everything the page shows of a question, NumPy.

    value F; net_inputs, activations, sensitivities and received (g = dF/da of what another layer reads): {name: (S,)};
    slopes: {layer: F'(n)^T (S, S)}; loss_gradient dF/da^M (S,); gradients and updated as the parameters, updated_value
    F there; automatic and automatic_sensitivities: the same as gradients and sensitivities, by `jax.grad`.
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
    """A kind, which is one of `_EXPLAINED`, and the layer it is about, where it is about one."""

    kind: str
    layer: str = ""

    @property
    def forward(self) -> bool:
        return self.kind in ("net inputs", "activations", "loss")

    @property
    def words(self) -> str:
        way = "forward" if self.forward else "backward"
        special = {"loss": f"{way}: the loss", "start": f"{way}: the start, sensitivities of layer {self.layer}",
                   "update": "the update"}  # fmt: skip
        return special.get(self.kind, f"{way}: {self.kind} of layer {self.layer}")


def steps(network: fnn.Network) -> list[Step]:
    """In the order in which they are made."""
    names = [layer.name for layer in network.layers]
    output, hidden = names[-1], names[-2::-1]
    found = [Step(kind, name) for name in names for kind in ("net inputs", "activations")]
    found += [Step("loss", output), Step("start", output)]
    found += [Step(kind, name) for name in hidden for kind in ("derivatives by the activations", "sensitivities")]
    return [*found, *(Step("gradient", name) for name in reversed(names)), Step("update")]


def check(question: Question) -> None:
    """Raises ValueError for targets that the loss does not take, and a rate that gradient descent does not."""
    examples()[question.example].loss.check_targets(np.array([question.targets]))
    fnn.optimizers.gd(question.rate)


def answer(question: Question) -> tuple[Question, Found]:
    """The answer to a question that `check` has let pass."""
    example = examples()[question.example]
    inputs, targets = (np.array([values], float) for values in (question.inputs, question.targets))
    found = _program(example.network, example.loss)(question.params, inputs, targets, question.rate)
    return question, jax.tree.map(np.asarray, found)


@functools.cache
def _program(network: fnn.Network, loss: fnn.Loss) -> Callable[..., Found]:
    objective = fnn.objective(network, loss)

    def slopes(layer, params, trace):
        """F'(n)^T, column i the pullback of e_i."""
        across = lambda x: jnp.repeat(x[layer.name], layer.size, axis=0)  # noqa: E731
        n, a = across(trace.net_inputs), across(trace.activations)
        rows, _ = layer.activation.pullback(jnp.eye(layer.size, dtype=a.dtype), n, a, theta(layer, params[layer.name]))
        return rows.T

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
    """By name, in the order in which the page offers them."""
    made = (_kordecki(), _two_ways(), _two_readers(), _softmax(), _relu())
    return {one.name: one for one in made}


def _kordecki() -> Example:
    layers = [fnn.Layer("1", 2, "sigmoid", ("p",), "shared"), fnn.Layer("2", 2, "sigmoid", ("1",), "shared")]
    return Example(
        "Kordecki: two logistic layers",
        "One bias for all neurons of a layer. The text's y is our a, its w from i to j our w in row j, column i.",
        fnn.graph(inputs={"p": 3}, layers=layers),
        fnn.losses.half_sum_square_error(reduction="sum"),
        {"1": _parameters({"p": [[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]]}, [0.5]),
         "2": _parameters({"1": [[0.7, 0.9], [0.8, 0.1]]}, [0.5])},
        (1.0, 4.0, 5.0), (0.1, 0.05), 0.01,
        {"p": (0, 0), "1": (1, 0), "2": (2, 0)},
    )  # fmt: skip


def _two_ways() -> Example:
    layers = [fnn.Layer("1", 2, "tanh", ("p",)), fnn.Layer("2", 2, "linear", ("p", "1"))]
    return Example(
        "P3.2: the input feeds both layers",
        "Hagan: the second summing junction also receives the input; the text's W³ is our W²ᵖ. The numbers are ours.",
        fnn.graph(inputs={"p": 2}, layers=layers),
        fnn.losses.sum_square_error(reduction="sum"),
        {"1": _parameters({"p": [[0.5, -0.3], [-0.2, 0.8]]}, [0.1, -0.1]),
         "2": _parameters({"p": [[0.3, -0.5], [-0.4, 0.2]], "1": [[0.6, -0.7], [0.9, 0.4]]}, [0.2, 0.1])},
        (1.0, 0.5), (0.5, -0.5), 0.1,
        {"p": (0, -0.35), "1": (1, 1.15), "2": (2, -0.35)},
    )  # fmt: skip


def _two_readers() -> Example:
    layers = [
        fnn.Layer("1", 2, "tanh", ("p",)),
        fnn.Layer("2", 1, "sigmoid", ("1",)),
        fnn.Layer("3", 1, "tanh", ("1",)),
        fnn.Layer("4", 1, "linear", ("2", "3")),
    ]
    return Example(
        "E3.4: layer 1 feeds two layers",
        "Hagan: what two layers send back to the one they read is added. The figure is lost; sizes, numbers are ours.",
        fnn.graph(inputs={"p": 2}, layers=layers),
        fnn.losses.sum_square_error(reduction="sum"),
        {"1": _parameters({"p": [[0.4, -0.6], [0.7, 0.2]]}, [0.1, -0.2]),
         "2": _parameters({"1": [[0.8, -0.5]]}, [0.3]),
         "3": _parameters({"1": [[-0.3, 0.9]]}, [0.1]),
         "4": _parameters({"2": [[1.2]], "3": [[-0.7]]}, [0.2])},
        (1.0, 2.0), (1.0,), 0.1,
        {"p": (0, 0), "1": (1, 0), "2": (2, 0.6), "3": (2, -0.6), "4": (3, 0)},
    )  # fmt: skip


def _softmax() -> Example:
    layers = [fnn.Layer("1", 2, "tanh", ("p",)), fnn.Layer("2", 3, "softmax", ("1",))]
    return Example(
        "Softmax and cross-entropy",
        "Loss and output layer together start the recursion (Hagan E3.5); the derivative of softmax is not needed.",
        fnn.graph(inputs={"p": 2}, layers=layers),
        fnn.losses.cross_entropy(reduction="sum"),
        {"1": _parameters({"p": [[0.5, 0.4], [-0.6, 0.9]]}, [0.1, 0.0]),
         "2": _parameters({"1": [[0.8, -0.4], [-0.5, 0.7], [0.2, 0.3]]}, [0.0, 0.1, -0.1])},
        (1.0, -0.5), (0.0, 1.0, 0.0), 0.5,
        {"p": (0, 0), "1": (1, 0), "2": (2, 0)},
    )  # fmt: skip


def _relu() -> Example:
    layers = [fnn.Layer("1", 3, "relu", ("p",)), fnn.Layer("2", 1, "linear", ("1",))]
    return Example(
        "ReLU: a neuron at rest",
        "A neuron whose net input is negative gives 0 and passes nothing back: its weights stay as they are.",
        fnn.graph(inputs={"p": 2}, layers=layers),
        fnn.losses.half_sum_square_error(reduction="sum"),
        {"1": _parameters({"p": [[0.5, 0.3], [-0.8, -0.4], [0.2, 0.6]]}, [0.1, 0.2, -0.3]),
         "2": _parameters({"1": [[0.7, -0.9, 0.4]]}, [0.1])},
        (1.0, 2.0), (0.5,), 0.1,
        {"p": (0, 0), "1": (1, 0), "2": (2, 0)},
    )  # fmt: skip


def _parameters(weights: dict[str, list], bias: list[float]) -> dict:
    return {"weights": {source: np.array(W, float) for source, W in weights.items()}, "bias": np.array(bias, float)}


def warm_up() -> None:
    """Compiles every example."""
    for example in examples().values():
        answer(example.start)


def read(text: str, what: str, given: Sequence[float]) -> tuple[float, ...]:
    """The numbers of a line. Raises ValueError unless they are finite and as many as there are now.

    >>> read("1, 4,5", "inputs", (0.0, 0.0, 0.0))
    (1.0, 4.0, 5.0)
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != len(given) or not np.isfinite(values).all():
        numbers = f"{len(given)} finite numbers with commas between them" if len(given) > 1 else "one finite number"
        raise ValueError(f"{what}: expected {numbers}, as in {line(given)}, got {text!r}; the last ones stay")
    return values


def line(values: Sequence[float]) -> str:
    """Numbers as `read` takes them."""
    return ", ".join(f"{value:.6g}" for value in values)


# Equations and their numbers ------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """LaTeX of a number: six decimals, or six digits where those are fewer or too many.

    >>> number(0.5), number(-0.0004042799), number(3e-7)
    ('0.5', '-0.000404', '3 \\\\cdot 10^{-7}')
    """
    if not np.isfinite(value):
        return r"\text{nan}" if np.isnan(value) else r"\infty" if value > 0 else r"-\infty"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        text = f"{value:.6f}" if abs(value) < 1 else f"{value:.7g}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    digits, power = f"{value:.3e}".split("e")
    return rf"{digits.rstrip('0').rstrip('.')} \cdot 10^{{{int(power)}}}"


def matrix(values: np.ndarray) -> str:
    """LaTeX of a matrix (S, R), or of a vector (S,) as a column, which the page puts in brackets; or of one number.

    >>> matrix(np.array([[1.0, 2.0]])), matrix(np.array([0.5]))
    ('\\\\begin{matrix} 1 & 2 \\\\end{matrix}', '0.5')
    """
    rows = values.reshape(len(values), -1)
    if rows.size == 1:
        return number(rows.item()) if rows.item() >= 0 else rf"({number(rows.item())})"
    lines = r" \\ ".join(" & ".join(map(number, each)) for each in rows)
    return rf"\begin{{matrix}} {lines} \end{{matrix}}"


def product(left: np.ndarray, right: np.ndarray) -> str:
    """LaTeX of a product of two; a dot where one is a single number."""
    dot = r"\cdot" if 1 in (left.size, right.size) else ""
    return f"{matrix(left)} {dot} {matrix(right)}"


def symbol(letter: str, *above: str) -> str:
    """LaTeX of an array of a layer, as W^{2,1}; an input's activation is the input itself."""
    if letter == "a" and not above[0].isdigit():
        return above[0]
    return f"{letter}^{{{','.join(above)}}}"


def neuron(letter: str, name: str, number: int) -> str:
    """A neuron's own quantity, in words: a²₁, p₃."""
    if not name.isdigit():
        letter, name = name, ""
    return f"{letter}{name.translate(_ABOVE)}{str(number + 1).translate(_BELOW)}"


def chunks(*parts: str) -> Markup:
    """An equation that may go on in the next line between its parts."""
    return Markup("<p>{}</p>").format(Markup(" ").join(mathml(part) for part in parts))


class Explained(NamedTuple):
    """A step in words, the equation it follows, and the same with the numbers in it."""

    words: str
    equation: Markup
    numbers: Markup


def explain(example: Example, question: Question, found: Found, step: Step) -> Explained:
    """What stands beside the drawing at a step."""
    return _EXPLAINED[step.kind](example, question, found, example.network, step.layer)


def _layer(network: fnn.Network, name: str) -> fnn.Layer:
    return next(layer for layer in network.layers if layer.name == name)


def _readers(network: fnn.Network, name: str) -> list[str]:
    return [layer.name for layer in network.layers if name in layer.sources]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"layer {name}" if name.isdigit() else f"the input {name}" for name in names)


def _net_inputs(example, question, found, network, name) -> Explained:
    own, parts = question.params[name], [symbol("n", name) + " ="]
    for source, W in own["weights"].items():
        parts.append(("+ " if len(parts) > 1 else "") + product(W, found.activations[source]))
    if "bias" in own:
        alike = len(own["bias"]) < len(found.net_inputs[name])
        ones = matrix(np.ones(len(found.net_inputs[name]))) if alike else ""
        parts.append(f"+ {matrix(own['bias'])} {ones}")
    sources = _listed(_layer(network, name).sources)
    return Explained(
        f"The net inputs of layer {name}: what it reads of {sources}, weighted, and its bias"
        + (", one for all its neurons." if "bias" in own and alike else "."),
        mathml(equations.RECURSION["forward"][0], display=True),
        chunks(*parts, f"= {matrix(found.net_inputs[name])}"),
    )


def _activations(example, question, found, network, name) -> Explained:
    activation = _layer(network, name).activation.name
    function = rf"{symbol('a', name)} = {symbol('f', name)} \left( {matrix(found.net_inputs[name])} \right)"
    return Explained(
        f"The outputs of layer {name}: its activation is {activation}.",
        equations.activation(activation) or Markup(""),
        chunks(function, f"= {matrix(found.activations[name])}"),
    )


def _loss(example, question, found, network, name) -> Explained:
    a, t = found.activations[name], np.array(question.targets)
    return Explained(
        f"The performance: {example.loss.name.replace('_', ' ')} of the outputs and the targets.",
        mathml(equations.LOSSES[example.loss.name][0], display=True),
        chunks(f"t = {matrix(t)},", f"{symbol('a', name)} = {matrix(a)},", f"F = {number(found.value.item())}"),
    )


def _start(example, question, found, network, name) -> Explained:
    activation, t = network.output.activation, np.array(question.targets)
    s = f"= {matrix(found.sensitivities[name])}"
    equation = equations.start(f"{example.loss.name}({example.loss.reduction})", activation.name)
    if example.loss.fused_with(activation):
        parts = rf"{number(t.sum())} \cdot {matrix(found.activations[name])}", f"- {matrix(t)}"
        words = f"Back: {example.loss.name.replace('_', ' ')} and {activation.name} together start the recursion."
    else:
        parts = (product(found.slopes[name], found.loss_gradient),)
        words = "Back: the derivative of F by the net inputs of the last layer starts the recursion."
        equation += mathml(equations.LOSSES[example.loss.name][1], display=True)
    return Explained(words, equation, chunks(symbol("s", name) + " =", *parts, s))


def _derivatives(example, question, found, network, name) -> Explained:
    readers, parts = _readers(network, name), [symbol("g", name) + " ="]
    for reader in readers:
        W = question.params[reader]["weights"][name]
        parts.append(("+ " if len(parts) > 1 else "") + product(W.T, found.sensitivities[reader]))
    many = "what each sends back is added (Hagan E3.4)." if len(readers) > 1 else "it sends back its own."
    return Explained(
        f"Back across the weights: layer {name} is read by {_listed(readers)}, and {many}",
        mathml(equations.RECURSION["recursion"][0], display=True),
        chunks(*parts, f"= {matrix(found.received[name])}"),
    )


def _sensitivities(example, question, found, network, name) -> Explained:
    return Explained(
        f"Back across the activation of layer {name}: its derivative at the net inputs.",
        mathml(equations.RECURSION["recursion"][1], display=True),
        chunks(symbol("s", name) + " =", product(found.slopes[name], found.received[name]),
               f"= {matrix(found.sensitivities[name])}"),
    )  # fmt: skip


def _gradient(example, question, found, network, name) -> Explained:
    own, s, numbers = found.gradients[name], found.sensitivities[name], Markup("")
    for source, dW in own["weights"].items():
        derivative = rf"\frac{{\partial F}}{{\partial {symbol('W', name, source)}}} ="
        numbers += chunks(derivative, product(s, found.activations[source][None, :]), f"= {matrix(dW)}")
    alike = "bias" in own and len(own["bias"]) < len(s)
    if "bias" in own:
        derivative = rf"\frac{{\partial F}}{{\partial {symbol('b', name)}}} ="
        total = (rf"\sum_{{i}} s_i^{{{name}}} =",) if alike else ()
        numbers += chunks(derivative, *total, matrix(own["bias"]))
    return Explained(
        f"The gradient of layer {name}: its sensitivities times what it read; the edges show it."
        + (" The bias serves all neurons, so their sensitivities add." if alike else ""),
        Markup("").join(mathml(latex, display=True) for latex in equations.RECURSION["contraction"]),
        numbers,
    )


def _update(example, question, found, network, name) -> Explained:
    rate, numbers = number(question.rate), Markup("")
    for layer in network.layers:
        old, g, new = (tree[layer.name] for tree in (question.params, found.gradients, found.updated))
        for source, W in old["weights"].items():
            numbers += _moved(symbol("W", layer.name, source), W, rate, g["weights"][source], new["weights"][source])
        if "bias" in old:
            numbers += _moved(symbol("b", layer.name), old["bias"], rate, g["bias"], new["bias"])
    before, after = number(found.value.item()), number(found.updated_value.item())
    numbers = chunks(f"F = {before}", r"\text{before, and after the update}", after) + numbers
    return Explained("All parameters move at once, against the gradient; the edges show the new weights.",
                     equations.optimizer("gd") or Markup(""), numbers)  # fmt: skip


def _moved(name: str, old: np.ndarray, rate: str, g: np.ndarray, new: np.ndarray) -> Markup:
    return chunks(rf"{name} \leftarrow", matrix(old), rf"- {rate} \cdot {matrix(g)}", f"= {matrix(new)}")


_EXPLAINED: dict[str, Callable[..., Explained]] = {
    "net inputs": _net_inputs,
    "activations": _activations,
    "loss": _loss,
    "start": _start,
    "derivatives by the activations": _derivatives,
    "sensitivities": _sensitivities,
    "gradient": _gradient,
    "update": _update,
}


def comparison(example: Example, found: Found) -> Markup:
    """By hand and by `jax.grad`, number by number: the gradient, and the sensitivities."""
    header = ("by hand", "jax.grad", "difference")
    gradients = [_compared(each.words, each.of(found.gradients), each.of(found.automatic)) for each in example.entries]
    sensitivities = [
        _compared(neuron("s", layer.name, i), found.sensitivities[layer.name][i],
                  found.automatic_sensitivities[layer.name][i])
        for layer in example.network.layers for i in range(layer.size)
    ]  # fmt: skip
    half = -(-len(gradients) // 2)  # side by side, so that all are seen at once
    return page.beside(
        page.table(("dF/d", *header), gradients[:half], "The gradient"),
        page.table(("dF/d", *header), gradients[half:], "and the rest of it"),
        page.table(("dF/dn", *header), sensitivities, "Sensitivities"),
    )


def _compared(name: str, by_hand: float, automatic: float) -> tuple[str, ...]:
    difference = abs(float(by_hand) - float(automatic))
    return name, f"{by_hand + 0:.8g}", f"{automatic + 0:.8g}", f"{difference:.1e}" if difference else "0"


# The drawing ----------------------------------------------------------------------------------------------------------


def spots(example: Example) -> dict[str, np.ndarray]:
    """(S, 2) of each input's and layer's neurons, the first one on top."""
    sizes, found = example.network.sizes, {}
    for name, (x, y) in example.places.items():
        ys = y + (sizes[name] - 1) / 2 - np.arange(sizes[name])
        found[name] = np.stack([np.full(sizes[name], float(x)), ys], axis=1)
    return found


def active(network: fnn.Network, step: Step) -> tuple[set[str], set[tuple[str, str]]]:
    """What takes part in a step: inputs and layers, and pairs (source, layer) between which values go."""
    into = {layer.name: {(source, layer.name) for source in layer.sources} for layer in network.layers}
    if step.kind in ("net inputs", "gradient"):
        edges = into[step.layer]
    elif step.kind == "derivatives by the activations":
        edges = {(step.layer, reader) for reader in _readers(network, step.layer)}
    elif step.kind == "update":
        edges = set().union(*into.values())
    else:
        return {step.layer}, set()
    return {name for edge in edges for name in edge}, edges


def nodes(example: Example, question: Question, found: Found, at: int) -> dict[str, list]:
    """Columns of the neurons, with what is known of them at a step."""
    every = steps(example.network)
    seen, (part, _) = set(every[: at + 1]), active(example.network, every[at])
    known = {(kind, name) for kind, name in seen} | {("sensitivities", name) for kind, name in seen if kind == "start"}
    fill, line_color = ("#cfe3f3", _FORWARD) if every[at].forward else ("#fbdcc3", _BACKWARD)
    rows = []
    for name, places in spots(example).items():
        own = question.params.get(name, {})
        for i, (x, y) in enumerate(places):
            a, n, s = found.activations[name][i], found.net_inputs.get(name), found.sensitivities.get(name)
            bias = own.get("bias")
            rows.append({
                "x": x, "y": y, "name": neuron("a", name, i), "a": float(a),
                "n": np.nan if n is None else float(n[i]), "s": np.nan if s is None else float(s[i]),
                "value": said(a) if n is None or ("activations", name) in known else "",
                "net": f"n {said(n[i])}" if ("net inputs", name) in known else "",
                "back": f"s {said(s[i] + 0)}" if ("sensitivities", name) in known else "",
                "bias": "" if bias is None else f"b {said(bias[min(i, len(bias) - 1)])}",
                "fill": fill if name in part else "white", "line": line_color if name in part else page.GREY,
                "width": 3 if name in part else 1.5,
            })  # fmt: skip
    return _columns(rows)


def edges(example: Example, question: Question, found: Found, at: int) -> dict[str, list]:
    """Columns of the edges: their weights, or at the steps of gradient and update what these say of them."""
    step = steps(example.network)[at]
    _, pairs = active(example.network, step)
    largest = max(abs(entry.of(question.params)) for entry in example.entries if entry.source) or 1.0
    at_labels, rows = labels(example), []
    for entry, start, end in _drawn_edges(example):
        weight, here = entry.of(question.params), (entry.source, entry.layer) in pairs
        shown = {"gradient": found.gradients, "update": found.updated}.get(step.kind, question.params)
        value = entry.of(shown if here else question.params)
        lx, ly = at_labels[entry]
        rows.append({
            "x0": start[0], "y0": start[1], "x1": end[0], "y1": end[1], "lx": lx, "ly": ly, "entry": entry.words,
            "weight": weight, "gradient": entry.of(found.gradients), "label": said(value),
            "color": page.COLORS[0] if weight >= 0 else page.COLORS[1], "dash": "solid" if weight >= 0 else "dashed",
            "width": 1 + 4 * min(1.0, abs(weight) / largest), "alpha": 1.0 if here else 0.3,
            "text": "#1c2330" if here else "#4d586a",
        })  # fmt: skip
    return _columns(rows)


def flow(example: Example, at: int) -> dict[str, list]:
    """Arrows along the edges that take part, the way the values go."""
    step = steps(example.network)[at]
    _, pairs = active(example.network, step)
    rows = []
    moving = step.kind in ("net inputs", "derivatives by the activations")
    for entry, start, end in _drawn_edges(example):
        if moving and (entry.source, entry.layer) in pairs:
            tail, tip = (start + share * (end - start) for share in ((0.62, 0.72) if step.forward else (0.72, 0.62)))
            rows.append({"x0": tail[0], "y0": tail[1], "x1": tip[0], "y1": tip[1]})
    return _columns(rows) if rows else {name: [] for name in ("x0", "y0", "x1", "y1")}


def _drawn_edges(example: Example) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
    at = spots(example)
    for entry in example.entries:
        if entry.source:
            yield entry, at[entry.source][entry.start], at[entry.layer][entry.end]


def _columns(rows: list[dict]) -> dict[str, list]:
    return {name: [each[name] for each in rows] for name in rows[0]}


def labels(example: Example) -> dict[Entry, np.ndarray]:
    """Where each edge's number stands: evenly apart beside a column of neurons, whichever edges cross."""
    beside = collections.Counter(x for places in spots(example).values() for x in places[:, 0])
    return {
        entry: start + (end - start) / (1 + beside[example.places[entry.layer][0]])
        for entry, start, end in _drawn_edges(example)
    }


def clicked(example: Example, x: float, y: float, shape: tuple[float, float]) -> Entry | None:
    """The edge, or the neuron's bias, that a click means; shape: a column's and a neuron's size in one unit.

    Where edges cross, the number that was clicked decides.
    """
    unit = np.array(shape)
    point, near, distances = np.array([x, y]) * unit, _NEAR * shape[0], {}
    for entry, label in labels(example).items():
        distances[entry] = np.linalg.norm(point - label * unit)
    if min(distances.values()) > near / 2:
        for entry, *ends in _drawn_edges(example):
            start, end = (each * unit for each in ends)
            along = np.clip((point - start) @ (end - start) / ((end - start) @ (end - start)), 0.15, 0.85)
            distances[entry] = np.linalg.norm(point - start - along * (end - start))
    for entry in example.entries:
        if not entry.source:  # a bias that all neurons share is meant by a click on any of them
            ends, alike = spots(example)[entry.layer] * unit, len(example.params[entry.layer]["bias"]) == 1
            distances[entry] = min(np.linalg.norm(point - each) for each in (ends if alike else ends[[entry.end]]))
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] < near else None


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        self.example = next(iter(examples().values()))
        self.question, self.found, self.updates = self.example.start, None, 0
        self.quiet = False  # while the page itself sets a control
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide = {"sizing_mode": "stretch_width"}
        self.choice = Select(title="example", options=list(examples()), value=self.example.name, name="example", **wide)
        self.slot = column(**wide)
        back, forth = Button(label="◀ back", name="back", **wide), Button(label="next ▶", name="next", **wide)
        self.inputs, self.targets = (TextInput(title=f"{what}, with commas", name=what, **wide)
                                     for what in ("inputs", "targets"))  # fmt: skip
        self.rate = page.number("learning rate", self.question.rate, "rate")
        self.entry = Select(title="parameter", name="entry", **wide)
        self.value = page.number("its value", 0.0, "value")
        update = Button(label="make this update", button_type="primary", name="update", **wide)
        again = Button(label="start again", name="again", **wide)
        self.nodes = page.source("nodes", "x", "y", "name", "a", "n", "s", "value", "net", "back", "bias", "fill",
                                 "line", "width")  # fmt: skip
        self.edges = page.source("edges", "x0", "y0", "x1", "y1", "lx", "ly", "entry", "weight", "gradient", "label",
                                 "color", "dash", "width", "alpha", "text")  # fmt: skip
        self.flow, self.titles = page.source("flow", "x0", "y0", "x1", "y1"), page.source("titles", "x", "y", "text")
        self.plotted = self.drawing()
        self.key, self.panel = page.words(name="about"), page.words(name="panel", min_height=300)
        self.compared = page.words(name="compared")

        self.choice.on_change("value", lambda attribute, old, new: self.begin(examples()[new]))
        back.on_click(lambda: self.go(self.step.value - 1))
        forth.on_click(lambda: self.go(self.step.value + 1))
        self.inputs.on_change("value", self.typed)
        self.targets.on_change("value", self.typed)
        self.rate.on_change("value", self.typed)
        self.entry.on_change("value", lambda attribute, old, new: self.show_entry())
        self.value.on_change("value", self.weighed)
        self.plotted.on_event(Tap, self.tapped)
        update.on_click(self.update)
        again.on_click(lambda: self.begin(self.example))
        controls = column(self.choice, self.slot, row(back, forth, **wide), self.inputs, self.targets, self.rate,
                          row(self.entry, self.value, **wide), row(update, again, **wide), **wide)  # fmt: skip
        page.lay_out(document, TITLE, ABOUT, status=self.status.model, controls=controls,
                     main=column(self.plotted, self.key, **wide), side=self.panel, below=self.compared)  # fmt: skip
        self.begin(self.example)

    def drawing(self):
        plotted = page.plot("The network: neurons in columns, an arrow where values flow at this step", tools="",
                            toolbar_location=None, x_range=Range1d(0, 1), y_range=Range1d(0, 1), height=380,
                            name="drawing")  # fmt: skip
        plotted.axis.visible = plotted.grid.visible = False
        plotted.segment("x0", "y0", "x1", "y1", source=self.edges, line_color="color", line_width="width",
                        line_dash="dash", line_alpha="alpha")  # fmt: skip
        head = NormalHead(size=11, fill_color="#1c2330", line_color="#1c2330")
        plotted.add_layout(Arrow(end=head, source=self.flow, x_start="x0", y_start="y0", x_end="x1", y_end="y1",
                                 line_color="#1c2330", line_width=3))  # fmt: skip
        small = {"text_align": "center", "text_baseline": "middle", "text_font_size": "11px", "text_color": "#1c2330"}
        plotted.text("lx", "ly", "label", source=self.edges, background_fill_color="white", padding=1,
                     background_fill_alpha=0.85, **(small | {"text_color": "text"}))  # fmt: skip
        plotted.scatter("x", "y", source=self.nodes, size=44, fill_color="fill", line_color="line", line_width="width")
        plotted.text("x", "y", "value", source=self.nodes, **(small | {"text_font_size": "12px"}))
        paper = {"background_fill_color": "white", "background_fill_alpha": 0.8}
        plotted.text("x", "y", "name", source=self.nodes, x_offset=-14, y_offset=-31, **small, **paper)
        plotted.text("x", "y", "bias", source=self.nodes, x_offset=18, y_offset=-31, **small, **paper)
        plotted.text("x", "y", "net", source=self.nodes, y_offset=30, **small, **paper)
        plotted.text("x", "y", "back", source=self.nodes, y_offset=43, **(small | {"text_color": "#a34700"}), **paper)
        plotted.text("x", "y", "text", source=self.titles, **(small | {"text_color": "#4d586a"}))
        return plotted

    # What the visitor does -----------------------------------------------------------------------------------------

    def begin(self, example: Example) -> None:
        """An example as it is at first."""
        self.example, self.question, self.updates, self.found, self.quiet = example, example.start, 0, None, True
        at = np.concatenate(list(spots(example).values()))
        (left, low), (right, high) = at.min(axis=0), at.max(axis=0)
        self.plotted.x_range.update(start=left - 0.4, end=right + 0.4)
        self.plotted.y_range.update(start=low - 0.58, end=high + 0.68)
        tops = {name: places[0] for name, places in spots(example).items()}
        names = {layer.name: f"layer {layer.name}: {layer.activation.name}" for layer in example.network.layers}
        self.titles.data = {"x": [x for x, _ in tops.values()], "y": [y + 0.55 for _, y in tops.values()],
                            "text": [names.get(name, "input") for name in tops]}  # fmt: skip
        # another slider: the key End would go where it went in the one of another example
        self.step = page.slider("step", 1, len(steps(example.network)), 1, 1, "step")
        self.step.on_change("value", self.moved)
        self.slot.children = [self.step]
        self.inputs.value, self.targets.value = line(example.inputs), line(example.targets)
        self.rate.value = example.rate
        self.entry.options = [entry.words for entry in example.entries]
        self.entry.value = self.entry.options[0]
        self.key.text = str(Markup(
            '<p class="soft">{} Blue: a positive weight; orange and dashed: a negative one; the thicker, the larger. '
            "In a neuron its output a, above it its bias, below net input n and sensitivity s.</p>"
        ).format(example.about))  # fmt: skip
        self.quiet = False
        self.show_entry()
        self.live.ask(self.question)

    def go(self, step: int) -> None:
        self.step.value = min(max(step, self.step.start), self.step.end)

    def moved(self, attribute, old, new) -> None:
        if not self.quiet and self.found is not None:
            self.draw()

    def ask(self, question: Question) -> None:
        """Asks, unless it is refused: then the last question stays. Raises nothing."""
        try:
            check(question)
        except ValueError as error:
            self.status.refuse(f"{error}; the last ones stay")
            return
        self.question = question
        self.live.ask(question)

    def typed(self, attribute, old, new) -> None:
        if self.quiet:
            return
        if self.rate.value is None:
            self.status.refuse("learning rate: expected a number, got nothing; the last one stays")
            return
        try:
            inputs = read(self.inputs.value, "inputs", self.example.inputs)
            targets = read(self.targets.value, "targets", self.example.targets)
        except ValueError as error:
            self.status.refuse(str(error))
            return
        self.ask(self.question._replace(inputs=inputs, targets=targets, rate=float(self.rate.value)))

    @property
    def chosen(self) -> Entry:
        return next(entry for entry in self.example.entries if entry.words == self.entry.value)

    def show_entry(self) -> None:
        if not self.quiet:
            self.quiet, self.value.value = True, self.chosen.of(self.question.params)
            self.quiet = False

    def weighed(self, attribute, old, new) -> None:
        if self.quiet:
            return
        if new is None:
            self.status.refuse(f"{self.entry.value}: expected a number, got nothing; the last one stays")
            return
        self.ask(self.question._replace(params=self.chosen.put(self.question.params, float(new))))

    def tapped(self, event: Tap) -> None:
        if not page.inside(self.plotted, event.x, event.y):
            return
        ranges = self.plotted.x_range, self.plotted.y_range
        sizes = (self.plotted.inner_width or 480, self.plotted.inner_height or 350)
        entry = clicked(self.example, event.x, event.y,
                        tuple(size / (r.end - r.start) for size, r in zip(sizes, ranges, strict=True)))  # fmt: skip
        if entry is None:
            self.status.refuse("there is no edge where you clicked; click one, or choose it under parameter")
            return
        self.entry.value = entry.words
        self.status.say(f"{entry.words}: {said(entry.of(self.question.params))}; type another value under its value.")

    def update(self) -> None:
        if self.found is None:
            return  # what it would make is still being computed
        found, self.found, self.quiet = self.found, None, True
        self.updates += 1
        self.step.value = 1
        self.quiet = False
        self.ask(self.question._replace(params=found.updated))
        self.show_entry()

    # What is seen --------------------------------------------------------------------------------------------------

    def show(self, answered: tuple[Question, Found]) -> None:
        question, found = answered
        if question is not self.question:
            return  # no longer asked; the right one is on its way
        self.found = found
        self.compared.text = str(comparison(self.example, found))
        self.draw()

    def draw(self) -> None:
        at, every = self.step.value - 1, steps(self.example.network)
        shown = self.example, self.question, self.found
        self.nodes.data, self.edges.data = nodes(*shown, at), edges(*shown, at)
        self.flow.data = flow(self.example, at)
        step = page.templates().get_template("backpropagation.html")
        self.panel.text = step.render(explain(*shown, every[at])._asdict())
        made = f" after {self.updates} update{'s' if self.updates > 1 else ''}" if self.updates else ""
        F, new = self.found.value.item(), self.found.updated_value.item()
        where = f"Step {at + 1} of {len(every)}, {every[at].words}"
        text = f"{where}. F = {said(F)}{made}; this update makes it {said(new)}."
        if np.isfinite(F) and np.isfinite(new) and new <= F:
            self.status.say(text)
        else:
            self.status.warn(text)


DEMONSTRATION = Demonstration("backpropagation", TITLE, ABOUT, _Page, warm_up)
