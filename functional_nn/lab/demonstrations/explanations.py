"""Explains each step of backpropagation: in words, as an equation, and as the same equation with numbers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

import functional_nn as fnn
from functional_nn.lab import equations
from functional_nn.lab.demonstrations import page
from functional_nn.lab.demonstrations.one_example import Example, Found, Question, Step, neuron, readers
from functional_nn.lab.equations import mathml


def number(value: float) -> str:
    r"""LaTeX of a number: six decimals, or six digits where decimals would be too few or too many.

    >>> number(0.5), number(-0.0004042799), number(3e-7)
    ('0.5', '-0.000404', '3 \\cdot 10^{-7}')
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
    r"""LaTeX of a matrix (S, R), or of a vector (S,) as a column, which the page puts in brackets; or of a single
    number.

    >>> matrix(np.array([[1.0, 2.0]])), matrix(np.array([0.5]))
    ('\\begin{matrix} 1 & 2 \\end{matrix}', '0.5')
    """
    rows = values.reshape(len(values), -1)
    if rows.size == 1:
        return number(rows.item()) if rows.item() >= 0 else rf"({number(rows.item())})"
    lines = r" \\ ".join(" & ".join(map(number, each)) for each in rows)
    return rf"\begin{{matrix}} {lines} \end{{matrix}}"


def product(left: np.ndarray, right: np.ndarray) -> str:
    """LaTeX of a product; with a dot if one factor is a single number."""
    dot = r"\cdot" if 1 in (left.size, right.size) else ""
    return f"{matrix(left)} {dot} {matrix(right)}"


def symbol(letter: str, *above: str) -> str:
    """LaTeX of a layer's array, such as W^{2,1}; an input's activation is the input itself."""
    if letter == "a" and not above[0].isdigit():
        return above[0]
    return f"{letter}^{{{','.join(above)}}}"


def chunks(*parts: str) -> Markup:
    """An equation that may continue on the next line between its parts."""
    return Markup("<p>{}</p>").format(Markup(" ").join(mathml(part) for part in parts))


class Explained(NamedTuple):
    """A step in words, the equation it follows, and the same equation with numbers."""

    words: str
    equation: Markup
    numbers: Markup


def explain(example: Example, question: Question, found: Found, step: Step) -> Explained:
    """The explanation next to the drawing at a step."""
    return _EXPLAINED[step.kind](example, question, found, example.network, step.layer)


def _layer(network: fnn.Network, name: str) -> fnn.Layer:
    return next(layer for layer in network.layers if layer.name == name)


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
        f"The net inputs of layer {name}: the weighted sum of {sources}, plus the bias"
        + (", which all its neurons share." if "bias" in own and alike else "."),
        mathml(equations.RECURSION["forward"][0], display=True),
        chunks(*parts, f"= {matrix(found.net_inputs[name])}"),
    )


def _activations(example, question, found, network, name) -> Explained:
    activation = _layer(network, name).activation.name
    function = rf"{symbol('a', name)} = {symbol('f', name)} \left( {matrix(found.net_inputs[name])} \right)"
    return Explained(
        f"The outputs of layer {name}: the activation {activation} of its net inputs.",
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
        words = "Back: the derivative of F with respect to the last layer's net inputs starts the recursion."
        equation += mathml(equations.LOSSES[example.loss.name][1], display=True)
    return Explained(words, equation, chunks(symbol("s", name) + " =", *parts, s))


def _derivatives(example, question, found, network, name) -> Explained:
    those, parts = readers(network, name), [symbol("g", name) + " ="]
    for reader in those:
        W = question.params[reader]["weights"][name]
        parts.append(("+ " if len(parts) > 1 else "") + product(W.T, found.sensitivities[reader]))
    many = "; their contributions are added (Hagan E3.4)." if len(those) > 1 else "."
    return Explained(
        f"Back across the weights: layer {name} is read by {_listed(those)}{many}",
        mathml(equations.RECURSION["recursion"][0], display=True),
        chunks(*parts, f"= {matrix(found.received[name])}"),
    )


def _sensitivities(example, question, found, network, name) -> Explained:
    return Explained(
        f"Back across the activation of layer {name}: multiply by its derivative at the net inputs.",
        mathml(equations.RECURSION["recursion"][1], display=True),
        chunks(
            symbol("s", name) + " =",
            product(found.slopes[name], found.received[name]),
            f"= {matrix(found.sensitivities[name])}",
        ),
    )


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
        f"The gradient of layer {name}: its sensitivities times its inputs; the edges show it."
        + (" All neurons share the bias, so their sensitivities are added." if alike else ""),
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
    numbers = chunks(f"F = {before}", r"\text{before the update, and after it}", after) + numbers
    return Explained(
        "All parameters are changed at once, against the gradient; the edges show the new weights.",
        equations.optimizer("gd") or Markup(""),
        numbers,
    )


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
    """The hand-written gradient and sensitivities and those of `jax.grad`, number by number."""
    header = ("hand-written", "jax.grad", "difference")
    gradients = [_compared(each.words, each.of(found.gradients), each.of(found.automatic)) for each in example.entries]
    sensitivities = [
        _compared(
            neuron("s", layer.name, i), found.sensitivities[layer.name][i], found.automatic_sensitivities[layer.name][i]
        )
        for layer in example.network.layers
        for i in range(layer.size)
    ]
    half = -(-len(gradients) // 2)  # side by side, so that all can be seen at once
    return page.tables(
        page.Table(("dF/d", *header), gradients[:half], "The gradient"),
        page.Table(("dF/d", *header), gradients[half:], "The gradient, continued"),
        page.Table(("dF/dn", *header), sensitivities, "Sensitivities"),
    )


def _compared(name: str, by_hand: float, automatic: float) -> tuple[str, ...]:
    difference = abs(float(by_hand) - float(automatic))
    return name, f"{by_hand + 0:.8g}", f"{automatic + 0:.8g}", f"{difference:.1e}" if difference else "0"
