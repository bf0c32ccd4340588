#!/usr/bin/env python
"""The worked examples of the source texts, recomputed through the library, next to the texts' own numbers.

    python scripts/worked_examples.py --csv results/worked_examples.csv

Each example is a function that returns rows: a quantity, its expected value, the library's, and the number of decimals
to which they must agree. A row says where its expected value comes from:

    printed          the text prints it as a result
    printed, mended  the text prints it with a slip: in the number, in its label, or in the equation it is the value of
    recomputed       from data that the text prints, or those of its demonstration; the text prints no such number
    exercise         the answer to an exercise or question that the text leaves open
    equation         an equation of the text, evaluated in NumPy

Every number that the five texts print as a result is included. Constants that they choose (Adam's 0.9 and 0.999,
Rprop's 1.2 and 0.5) and claims about an experiment (relu "6x faster") are no results; the blog prints none at all. The
exit status is 1 if a value differs by more than its decimals allow.
"""

import argparse
import csv
import itertools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

import functional_nn as fnn

EXACT = 12  # decimals of a value that the text gives exactly, or that an equation gives
PROVENANCES = ("printed", "printed, mended", "recomputed", "exercise", "equation")
SQUARES = fnn.losses.sum_square_error()


class Row(NamedTuple):
    """One quantity of an example: a number, a boolean, a vector or a matrix, right if it agrees to `digits` decimals.

    provenance: one of PROVENANCES. place: where in the text. shift: how far the text's own rounding of intermediate
    results moves the value, computed without the library; it is allowed in addition to the half digit.
    """

    example: int
    quantity: str
    expected: ArrayLike
    computed: ArrayLike
    digits: int = EXACT
    shift: float = 0.0
    provenance: str = ""
    place: str = ""

    @property
    def difference(self) -> float:
        """The largest absolute difference; infinite where the shapes differ."""
        expected, computed = np.asarray(self.expected, np.float64), np.asarray(self.computed, np.float64)
        return float(np.max(np.abs(expected - computed))) if expected.shape == computed.shape else float("inf")

    @property
    def ok(self) -> bool:
        """Whether the computed value would be printed as the expected one."""
        return self.difference <= 0.5 * 10.0**-self.digits + self.shift


def sourced(provenance, place, *rows):
    """Returns the rows with the source of their expected values."""
    return [row._replace(provenance=provenance, place=place) for row in rows]


def neuron(activation, x, width):
    """Returns one neuron as a network, and its parameters from x: its weights and, if x is longer, its bias."""
    biased = x.size > width
    network = fnn.multilayer((width, 1), (activation,), bias="per_neuron" if biased else "none")
    return network, {"layer1": {"weights": {"input": x[None, :width]}} | ({"bias": x[width:]} if biased else {})}


@jax.jit
def squared_errors(x, inputs, targets):
    """Returns F and dF/dx, F = sum (t - a)^2 of the linear neuron with parameters x (Eq. 3.17)."""
    network, params = neuron("linear", x, inputs.shape[1])
    value, grads = fnn.value_and_grad(network, SQUARES)(params, inputs, targets)
    return value, vector(grads)


def vector(tree):
    """Returns the neuron's parameters, or their gradient, as x: the weights and, if it has one, the bias."""
    return jnp.concatenate([leaf.ravel() for leaf in reversed(jax.tree.leaves(tree))])  # leaves: bias, weights


class LinearNeuron:
    """F of a linear neuron with parameters x (2,), two weights or a weight and a bias, by the library."""

    def __init__(self, inputs, targets):
        self.data = inputs, targets
        self.network, _ = neuron("linear", np.zeros(2), inputs.shape[1])
        self.problem = fnn.training.problem(self.network, SQUARES, *self.data)

    def params(self, x):
        """Returns x in the form of the network's parameters."""
        return neuron("linear", jnp.asarray(x, jnp.float64), self.data[0].shape[1])[1]

    def value_and_gradient(self, x):
        """Returns F and dF/dx."""
        return squared_errors(jnp.asarray(x, jnp.float64), *self.data)

    def model(self):
        """Returns c, d, A and what follows from them (Eq. 3.19-3.23), the parameters in `ravel_pytree`'s order."""
        quadratic_model = jax.jit(fnn.curvature.quadratic_model, static_argnums=(0, 1))
        model = quadratic_model(self.network, SQUARES, self.params(np.zeros(2)), *self.data)
        return jax.tree.map(np.asarray, model)

    def steps(self, method, start, count=1):
        """Returns the points (count + 1, 2) of a second-order method."""
        init, update = jax.jit(method.init), jax.jit(method.update)
        states = [init(self.params(start), self.problem)]
        for _ in range(count):
            states.append(update(states[-1], self.problem))
        return np.stack([vector(state.params) for state in states])


def descend(optimizer, gradients, start):
    """Returns the points (K + 1, 2) of a first-order method, with a step on each of K functions x -> (F, dF/dx)."""
    update = jax.jit(optimizer.update)
    states = [optimizer.init(jnp.asarray(start, jnp.float64))]
    for value_and_gradient in gradients:
        states.append(update(states[-1], value_and_gradient(states[-1].params)[1]))
    return np.stack([state.params for state in states])


NEWTON = fnn.optimizers.newton(line_search="full_step")  # Eq. 3.28 as it is printed


def example1():
    """Hagan, Eq. 3.15-3.28 and the demonstration dl3gd: a linear neuron without bias."""
    inputs, targets = np.array([[-1.0, 2], [2, -1], [0, -1], [-1, 0]]), np.array([[-1.0], [-1], [1], [1]])
    linear, start = LinearNeuron(inputs, targets), (-1, -2.95)
    model, batch = linear.model(), linear.value_and_gradient
    gd = {rate: fnn.optimizers.gd(rate) for rate in (0.01, 0.1, 0.11)}
    constant, *images = (descend(gd[0.01], [batch], x)[1] for x in [(0, 0), (1, 0), (0, 1)])
    matrix = np.stack(images, axis=1) - constant[:, None]
    examples = [LinearNeuron(inputs[q : q + 1], targets[q : q + 1]).value_and_gradient for q in range(4)]
    sgd = [[0.02, -0.04], [-0.0232, -0.0184], [-0.0232, -0.038032], [-0.042736, -0.038032]]
    paths = {rate: descend(gd[rate], [batch] * 100, start) for rate in gd}
    F = {rate: np.array([batch(x)[0] for x in path]) for rate, path in paths.items()}
    newton = fnn.optimizers.minimize(linear.problem, NEWTON, linear.params(start))
    damped = fnn.optimizers.newton(1.0, line_search="full_step")
    conjugate = linear.steps(fnn.optimizers.conjugate_gradient(), start, 2)
    return [
        *sourced(
            "printed",
            "Hagan Eq. 3.23",
            Row(1, "A (Eq. 3.23)", [[12, -8], [-8, 12]], model.A),
            Row(1, "d (Eq. 3.23)", [4, 4], model.d),
            Row(1, "c (Eq. 3.23)", 4, model.c),
        ),
        *sourced(
            "printed",
            "Hagan Eq. 3.24, whose rate is 0.01; the sentence above it says 0.1",
            Row(1, "GD step at 0.01: matrix (Eq. 3.24)", [[0.88, 0.08], [0.08, 0.88]], matrix),
        ),
        *sourced(
            "printed, mended",
            "Hagan Eq. 3.24, printed with a plus",
            Row(1, "GD step at 0.01: constant (Eq. 3.24)", [-0.04, -0.04], constant),
        ),
        *sourced(
            "printed",
            "Hagan, below Figure 3.4",
            Row(1, "eigenvalues of A", [4, 20], model.eigenvalues),
        ),
        *sourced(
            "printed",
            'Hagan, below Eq. 3.28: "will converge in one iteration"',
            Row(1, "Newton from (-1, -2.95): iterations", 1, newton.steps),
        ),
        *sourced(
            "recomputed",
            "Hagan Eq. 3.15-3.28",
            Row(1, "eigenvectors in rows, from 1", [[1, 1], [1, -1]], (model.eigenvectors / model.eigenvectors[0]).T),
            Row(1, "minimum x* = -A^-1 d", [-1, -1], model.minimum),
            Row(1, "F(x*)", 0, batch(model.minimum)[0]),
            Row(1, "largest stable rate, 2 / eigenvalue", 0.1, model.stable_rate),
            Row(1, "SGD at 0.01: four steps (Eq. 3.27)", sgd, descend(gd[0.01], examples, (0, 0))[1:]),
            Row(1, "Newton from (-1, -2.95) (Eq. 3.28)", [-1, -1], vector(newton.params)),
        ),
        *sourced(
            "recomputed",
            "Hagan's demonstration dl3gd on Eq. 3.15, from (-1, -2.95)",
            Row(1, "dl3gd: F at (-1, -2.95)", 22.815, F[0.01][0]),
            Row(1, "dl3gd at 0.01: x_100", [-1.0164, -1.0164], paths[0.01][100], 4),
            Row(1, "dl3gd at 0.01: F(x_100)", 0.00108, F[0.01][100], 5),
            Row(1, "dl3gd at 0.1: F(x_99), F(x_100)", [19.0125, 19.0125], F[0.1][99:]),
            Row(1, "dl3gd at 0.1: (x_99 + x_100) / 2 is x*", [-1, -1], paths[0.1][99:].mean(axis=0)),
            Row(1, "dl3gd at 0.11: diverges", True, F[0.11][100] > 1e9 * F[0.11][0]),
        ),
        *sourced(
            "recomputed",
            "Hagan Eq. 3.15, as CSE 475 19.72 and 19.73.2 step",
            Row(1, "damped Newton from 0, alpha = 1", [-0.8, -0.8], linear.steps(damped, (0, 0))[1]),
            Row(1, "conjugate gradient: x_1", [-379 / 210, -61 / 35], conjugate[1]),  # -1.80476, -1.74286
            Row(1, "conjugate gradient: x_2 is x*", [-1, -1], conjugate[2]),
        ),
    ]


def example2():
    """Hagan P3.3: the linear neuron without bias again, on two examples."""
    linear = LinearNeuron(np.array([[-4.0, 2], [1, 2]]), np.array([[-1.0], [1]]))
    model, batch = linear.model(), linear.value_and_gradient
    A, eigenvalues, (v1, v2) = model.A, model.eigenvalues, model.eigenvectors.T
    path = descend(fnn.optimizers.gd(0.05), [batch] * 100, (1, 1))
    F = np.array([batch(x)[0] for x in path])
    ends = {rate: batch(descend(fnn.optimizers.gd(rate), [batch] * 100, (1, 1))[-1])[0] for rate in (0.045, 0.06)}
    return [
        *sourced(
            "printed",
            "Hagan P3.3 i",
            Row(2, "c", 2, model.c),
            Row(2, "d", [-10, 0], model.d),
            Row(2, "A", [[34, -12], [-12, 16]], A),
        ),
        *sourced(
            "printed",
            "Hagan P3.3 iii",
            Row(2, "|A - lambda I|: coefficients", [1, -50, 400], np.poly(A)),
            Row(2, "eigenvalues", [10, 40], eigenvalues),
            Row(2, "A - lambda_1 I", [[24, -12], [-12, 6]], A - eigenvalues[0] * np.eye(2)),
            Row(2, "A - lambda_2 I", [[-6, -12], [-12, -24]], A - eigenvalues[1] * np.eye(2)),
            Row(2, "v_1, from -1", [-1, -2], -v1 / v1[0]),
            Row(2, "v_2, to 1", [-2, 1], v2 / v2[1]),
        ),
        *sourced(
            "printed, mended",
            "Hagan P3.3 iv, -A^-1 d printed without its minus in the numbers",
            Row(2, "minimum x* = -A^-1 d", [0.4, 0.3], model.minimum),
        ),
        *sourced(
            "printed",
            "Hagan P3.3 v",
            Row(2, "largest stable rate, 2 / 40", 0.05, model.stable_rate),
        ),
        *sourced(
            "recomputed",
            "Hagan P3.3 v, from W = [1 1] (iv)",
            Row(2, "F(x*)", 0, batch(model.minimum)[0]),
            Row(2, "Newton from (1, 1) (Eq. 3.28)", [0.4, 0.3], linear.steps(NEWTON, (1, 1))[1]),
            Row(2, "GD at 0.05: F(x_0), ..., F(x_4)", [5, 2, 1.25, 1.0625, 1.015625], F[:5]),
            Row(2, "GD at 0.05: F(x_99), F(x_100)", [1, 1], F[99:]),
            Row(2, "GD at 0.05: x_99 - x_100 is 0.2 v_2", [-0.4, 0.2], path[99] - path[100]),
            Row(2, "GD at 0.045: converges", True, ends[0.045] < 1e-9),
            Row(2, "GD at 0.06: diverges", True, ends[0.06] > 1e9),
        ),
    ]


def example3():
    """Hagan E3.1 and E3.2: a linear neuron with a bias."""
    linear = LinearNeuron(np.array([[-1.0], [0], [1]]), np.array([[-1.5], [0.5], [2.5]]))
    performance = linear.value_and_gradient
    F, gradient = performance(jnp.zeros(2))
    descended, newton = descend(fnn.optimizers.gd(0.1), [performance], (0, 0))[1], linear.steps(NEWTON, (0, 0))[1]
    return [
        *sourced(
            "exercise",
            "Hagan E3.1",
            Row(3, "F at w = b = 0 (E3.1)", 8.75, F),
            Row(3, "dF/d(w, b) there (E3.1)", [-8, -3], gradient),
            Row(3, "GD step at 0.1: (w, b) (Eq. 3.14)", [0.8, 0.3], descended),
            Row(3, "GD step at 0.1: F", 3.0, performance(descended)[0]),
        ),
        *sourced(
            "exercise",
            "Hagan E3.2",
            Row(3, "Hessian by (w, b)", [[4, 0], [0, 6]], linear.model().A[::-1, ::-1]),
            Row(3, "Newton step: (w, b) (Eq. 3.28)", [2, 0.5], newton),
            Row(3, "Newton step: F", 0, performance(newton)[0]),
            Row(3, "Newton step: dF/d(w, b)", [0, 0], performance(newton)[1]),
        ),
    ]


def logsig(n):
    """The logistic function in NumPy."""
    return 1 / (1 + np.exp(-n))


def drawn(network, rng):
    """Draws normal parameters, biases included."""
    return jax.tree.map(lambda x: rng.normal(size=x.shape), jax.eval_shape(network.init, jax.random.key(0)))


def example4():
    """Hagan P3.2 and E3.4: not a chain.

    One graph for both, chosen here: the figure of E3.4 is lost. Layer 2's summing junction also receives the input
    (P3.2; its W^3 is our W from p1 to 2); layer 1 feeds layers 2 and 3, which both feed layer 4 (E3.4).
    """
    rng = np.random.default_rng(4)
    layers = [
        fnn.Layer("1", 3, "tanh", ("p1",)),
        fnn.Layer("2", 2, "sigmoid", ("p1", "1")),
        fnn.Layer("3", 3, "tanh", ("1",)),
        fnn.Layer("4", 2, "linear", ("2", "3")),
    ]
    network = fnn.graph(inputs={"p1": 2}, layers=layers)
    params, inputs, targets = drawn(network, rng), rng.normal(size=(2, 2)), rng.normal(size=(2, 2))
    found = fnn.backpropagate(network, fnn.losses.sum_square_error(), params, inputs, targets)

    W = {(m, source): w for m in params for source, w in params[m]["weights"].items()}
    b = {m: params[m]["bias"] for m in params}
    F, s, dW = 0.0, [], {place: np.zeros_like(w) for place, w in W.items()}
    for p, t in zip(inputs, targets, strict=True):
        a1 = np.tanh(W["1", "p1"] @ p + b["1"])
        a2 = logsig(W["2", "p1"] @ p + W["2", "1"] @ a1 + b["2"])  # P3.2: n^2 = W^3 p^1 + W^2 a^1 + b^2
        a3 = np.tanh(W["3", "1"] @ a1 + b["3"])
        a4 = W["4", "2"] @ a2 + W["4", "3"] @ a3 + b["4"]
        s4 = -2 * (t - a4)  # Eq. 3.50
        s3 = np.diag(1 - a3**2) @ W["4", "3"].T @ s4  # Eq. 3.49
        s2 = np.diag(a2 * (1 - a2)) @ W["4", "2"].T @ s4
        s1 = np.diag(1 - a1**2) @ (W["2", "1"].T @ s2 + W["3", "1"].T @ s3)  # E3.4
        F += (t - a4) @ (t - a4)
        a = {"p1": p, "1": a1, "2": a2, "3": a3}
        s.append({"4": s4, "3": s3, "2": s2, "1": s1})
        for m, source in W:
            dW[m, source] += np.outer(s[-1][m], a[source])  # Eq. 3.39; P3.2: s_i^2 p_j^1, printed with p_i
    named = {"4": "Eq. 3.50", "1": "E3.4", ("2", "p1"): "P3.2"}
    sensitivities = [
        Row(4, f"s^{m} ({named.get(m, 'Eq. 3.49')})", [s_q[m] for s_q in s], found.sensitivities[m]) for m in s[0]
    ]
    gradients = [
        Row(
            4,
            f"dF/dW, from {source} to {m} ({named.get((m, source), 'Eq. 3.39')})",
            dW[m, source],
            found.gradients[m]["weights"][source],
        )
        for m, source in W
    ]
    return [
        *sourced("exercise", "Hagan E3.4, on a graph and parameters chosen here", *sensitivities),
        *sourced("equation", "Hagan Eq. 3.17, 3.39 and P3.2 there", Row(4, "F (Eq. 3.17)", F, found.value), *gradients),
    ]


def example5():
    """Hagan E3.5, E3.6 and P3.1: s^M of cross-entropy, on random networks; soft targets may have any sum."""
    rng = np.random.default_rng(5)
    loss, binary = fnn.losses.cross_entropy(reduction="sum"), fnn.losses.binary_cross_entropy(reduction="sum")
    p = rng.normal(size=(2, 2))

    def last_layer(activation, loss, t):
        network = fnn.multilayer((2, 3, t.shape[1]), ("tanh", activation))
        params = drawn(network, rng)
        s = fnn.sensitivities(network, loss, params, p, t)["layer2"]
        return s, network.forward(params, p).net_inputs["layer2"], fnn.objective(network, loss)(params, p, t)

    def each(equation, *batches):
        return np.stack([equation(*examples) for examples in zip(*batches, strict=True)])

    fused_rows, composed_rows = [], []
    for kind, t in (("one-hot", np.eye(3)[[2, 0]]), ("soft", rng.uniform(0.1, 1, size=(2, 3)))):
        s, n, _ = last_layer("softmax", loss, t)
        a = each(lambda n: np.exp(n) / sum(np.exp(n)), n)
        fused = each(lambda a, t: a * sum(t) - t, a, t)
        composed = each(lambda a, t: (np.diag(a) - np.outer(a, a)).T @ (-t / a), a, t)
        pulled_back, _ = fnn.activations.softmax.pullback(loss.gradient(a, t), n, a, None, {})
        fused_rows.append(Row(5, f"softmax, {kind} t: a sum(t) - t (E3.5)", fused, s))
        composed_rows.append(Row(5, f"softmax, {kind} t: F'(n)' (-t/a) (E3.6)", composed, pulled_back))
        s, n, _ = last_layer("sigmoid", loss, t)
        composed = each(lambda a, t: np.diag(a * (1 - a)).T @ (-t / a), logsig(n), t)
        composed_rows.append(Row(5, f"sigmoid, {kind} t: F'(n)' (-t/a) (E3.6)", composed, s))
    t = np.array([[1.0], [0.0]])
    s, n, value = last_layer("sigmoid", binary, t)
    a = logsig(n)
    F = -np.sum(t * np.log(a) + (1 - t) * np.log(1 - a))
    two_neurons = loss.value(np.hstack([a, 1 - a]), np.hstack([t, 1 - t]))
    return [
        *sourced("exercise", "Hagan E3.5, on parameters drawn here", *fused_rows),
        *sourced("exercise", "Hagan E3.6, on parameters drawn here", *composed_rows),
        *sourced(
            "equation",
            "Hagan P3.1, on parameters drawn here",
            Row(5, "one logistic neuron: s = a - t (P3.1)", a - t, s),
            Row(5, "one logistic neuron: F (P3.1)", F, value),
            Row(5, "its F by Eq. 3.9 (P3.1)", F, two_neurons),
        ),
    ]


def example6():
    """Kordecki: two logistic layers, in each one bias for all neurons; w_(i,j) runs from i to j, our transpose.

    He continues with four decimals of each result. That moves three of his last digits by one; how far is computed
    below from his own digits.
    """
    network, loss = fnn.multilayer((3, 2, 2), ("sigmoid",) * 2, bias="shared"), fnn.losses.half_sum_square_error()
    w0, w1, b = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]), np.array([[0.7, 0.8], [0.9, 0.1]]), np.array([0.5])
    params = {"layer1": {"weights": {"input": w0.T}, "bias": b}, "layer2": {"weights": {"layer1": w1.T}, "bias": b}}
    x, t = np.array([[1.0, 4, 5]]), np.array([[0.1, 0.05]])
    E, grads, s, _, (n, y, *_) = fnn.backpropagate(network, loss, params, x, t)
    optimizer = fnn.optimizers.gd(0.01)
    new = optimizer.update(optimizer.init(params), grads).params
    text_w0, text_w1 = (lambda p: p["layer1"]["weights"]["input"].T), (lambda p: p["layer2"]["weights"]["layer1"].T)
    (v1, v2), (y1, y2) = ((kept["layer1"][0], kept["layer2"][0]) for kept in (n, y))
    dw0, dw1, new_w1, error = text_w0(grads), text_w1(grads), text_w1(new), -loss.gradient(y["layer2"], t)[0]
    dy1 = s["layer2"][0] @ w1.T
    slope, _ = fnn.activations.sigmoid.pullback(jnp.ones((1, 2)), n["layer1"], y["layer1"], None, {})
    input_slope = dw0[0] / s["layer1"][0]  # dE/dw = dE/dv dv/dw

    his_y = np.array([0.8896, 0.8004])
    his_e = [0.1, 0.05] - his_y
    shift_E = abs(his_e @ his_e / 2 - 0.593245)
    shift_dw = abs(-his_e @ (his_y * (1 - his_y)) - 0.197457)
    shift_slope = abs(0.9950 * (1 - 0.9950) - 0.004942)
    return [
        *sourced(
            "printed",
            "Kordecki, forward pass",
            Row(6, "v_1^(1)", 4.3, v1[0]),
            Row(6, "y_1^(1)", 0.9866, y1[0], 4),
            Row(6, "v_2^(1)", 5.3, v1[1]),
            Row(6, "y_2^(1)", 0.9950, y1[1], 4),
            Row(6, "v_1^(2)", 2.0862, v2[0], 4),
            Row(6, "y_1^(2)", 0.8896, y2[0], 4),
            Row(6, "v_2^(2)", 1.3888, v2[1], 4),
            Row(6, "y_2^(2)", 0.8004, y2[1], 4),
            Row(6, "E, of rounded y", 0.5933, E, 4, shift_E),
            Row(6, "e_1", -0.7896, error[0], 4),
            Row(6, "e_2", -0.7504, error[1], 4),
        ),
        *sourced(
            "printed",
            "Kordecki, backward pass, 2nd layer",
            Row(6, "dE/dw_11^(1)", 0.0765, dw1[0, 0], 4),
            Row(6, "dE/dw_12^(1)", 0.1183, dw1[0, 1], 4),
            Row(6, "dE/dw_21^(1)", 0.0772, dw1[1, 0], 4),
            Row(6, "dE/dw_22^(1)", 0.1193, dw1[1, 1], 4),
            Row(6, "dE/dw_0^(1), of rounded y", 0.1974, grads["layer2"]["bias"][0], 4, shift_dw),
        ),
        *sourced(
            "printed",
            "Kordecki, backward pass, 1st layer",
            Row(6, "dv_1^(1)/dw_11^(0)", 1, input_slope[0]),
            Row(6, "dy_1^(1)/dv_1^(1)", 0.0132, slope[0, 0], 4),
            Row(6, "dE/dw_11^(0)", 0.0020, dw0[0, 0], 4),
            Row(6, "dv_2^(1)/dw_12^(0)", 1, input_slope[1]),
            Row(6, "dy_2^(1)/dv_2^(1), of rounded y", 0.0050, slope[0, 1], 4, shift_slope),
            Row(6, "dE/dw_12^(0)", 0.0004, dw0[0, 1], 4),
            Row(6, "dE/dw_21^(0)", 0.0079, dw0[1, 0], 4),
            Row(6, "dE/dw_22^(0)", 0.0016, dw0[1, 1], 4),
            Row(6, "dE/dw_31^(0)", 0.0099, dw0[2, 0], 4),
            Row(6, "dE/dw_32^(0)", 0.0020, dw0[2, 1], 4),
        ),
        *sourced(
            "printed, mended",
            "Kordecki, backward pass, 1st layer, labelled dE/dw_1^(0)",
            Row(6, "dE/dy_1^(1)", 0.1502, dy1[0], 4),
        ),
        *sourced(
            "printed, mended",
            "Kordecki, backward pass, 1st layer, labelled dE/dw_12^(0)",
            Row(6, "dE/dy_2^(1)", 0.0818, dy1[1], 4),
        ),
        *sourced(
            "printed",
            "Kordecki, weight update",
            Row(6, "new w_0^(0), four decimals", 0.5000, new["layer1"]["bias"][0], 4),
            Row(6, "dE/dw_0^(1), of the update", 0.1975, grads["layer2"]["bias"][0], 4),
            Row(6, "new w_0^(1), four decimals", 0.4980, new["layer2"]["bias"][0], 4),
        ),
        *sourced(
            "printed, mended",
            "Kordecki, weight update, from w_22^(1) as printed, with w_21^(1)'s number",
            Row(6, "new w_21^(1)", 0.8992, new_w1[1, 0], 4),
        ),
        *sourced(
            "printed, mended",
            "Kordecki, weight update, printed 0.9881",
            Row(6, "new w_22^(1)", 0.0988, new_w1[1, 1], 4),
        ),
        *sourced(
            "printed, mended",
            "Kordecki, weight update, printed 0.0008",
            Row(6, "dE/dw_0^(0), of the update", 0.0024, grads["layer1"]["bias"][0], 4),
        ),
        *sourced(
            "recomputed",
            "Kordecki's example in six decimals, no step rounded",
            Row(6, "net inputs, layer 1", [4.3, 5.3], n["layer1"][0]),
            Row(6, "outputs, layer 1", [0.986613, 0.995033], y["layer1"][0], 6),
            Row(6, "slopes, layer 1", [0.013208, 0.004942], slope[0], 6),
            Row(6, "net inputs, layer 2", [2.086159, 1.388794], n["layer2"][0], 6),
            Row(6, "outputs, layer 2", [0.889551, 0.800400], y["layer2"][0], 6),
            Row(6, "E", 0.593245, E, 6),
            Row(6, "dE/dw^(1)", [[0.076535, 0.118279], [0.077188, 0.119288]], text_w1(grads), 6),
            Row(6, "dE/dw_0^(1)", 0.197457, grads["layer2"]["bias"][0], 6),
            Row(6, "dE/dw^(0)", [[0.001984, 0.000404], [0.007936, 0.001617], [0.009920, 0.002021]], dw0, 6),
            Row(6, "dE/dw_0^(0)", 0.002388, grads["layer1"]["bias"][0], 6),
            Row(6, "dE/dy^(1)", [0.150209, 0.081805], dy1, 6),
            Row(6, "new w^(1)", [[0.699235, 0.798817], [0.899228, 0.098807]], new_w1, 6),
            Row(6, "new w_0^(1)", 0.498025, new["layer2"]["bias"][0], 6),
            Row(6, "new w_0^(0)", 0.499976, new["layer1"]["bias"][0], 6),
            Row(6, "new E", 0.592452, fnn.objective(network, loss)(new, x, t), 6),
            Row(6, "new w^(0)", [[0.09998, 0.199996], [0.299921, 0.399984], [0.499901, 0.59998]], text_w0(new), 6),
        ),
    ]


def threshold_neurons(activation, neurons, p):
    """Returns outputs (N, Q) of N neurons for inputs p. neurons: rows (w1, w2, b), or (w1, w2) without a bias."""

    def outputs(x):
        network, params = neuron(activation, x, 2)
        return network.apply(params, p)[:, 0]

    return np.asarray(jax.vmap(outputs)(neurons))


def example7():
    """CSE 475, 17.61: what threshold neurons represent, outputs for (A, B) = FF, FT, TF, TT.

    No neuron is XOR: FF and TT require b < 0 and w1 + w2 + b < 0, so w1 + w2 + 2 b < 0; TF and FT for w1 + b >= 0 and
    w2 + b >= 0, so w1 + w2 + 2 b >= 0 (-1/+1 logic renames the variables). The search, over all multiples of 1/2 in
    [-2, 2], boundaries included, finds the 14 linear threshold functions of two inputs: all but XOR and its opposite.
    """
    A, B = np.array([[False, False], [False, True], [True, False], [True, True]]).T
    gates = {"AND": A & B, "OR": A | B, "NAND": ~(A & B), "NOR": ~(A | B)}
    # (w1, w2, b) of the four gates, A B' and A' B
    binary = [(1, 1, -1.5), (1, 1, -0.5), (-1, -1, 1.5), (-1, -1, 0.5), (1, -1, -0.5), (-1, 1, -0.5)]
    signs = [(1, 1, -1), (1, 1, 1), (-1, -1, 1), (-1, -1, -1), (1, -1, -1), (-1, 1, -1)]  # NAND and NOR: our choice
    grid = np.mgrid[-2:2:9j, -2:2:9j, -2:2:9j].reshape(3, -1).T
    rows = []
    for logic, activation, false, weights, bare in (
        ("0/1", "hardlim", 0.0, np.array(binary), [False, False, False, True]),
        ("-1/+1", "hardlims", -1.0, np.array(signs, float), [False, True, True, False]),
    ):
        p, xor, *truths = (np.where(v, 1.0, false) for v in (np.stack([A, B], axis=1), A ^ B, *gates.values()))
        outputs = threshold_neurons(activation, weights[:4], p)
        found, found_bare = (set(map(tuple, threshold_neurons(activation, x, p))) for x in (grid, grid[:, :2]))
        layer1 = {"weights": {"input": weights[4:, :2]}, "bias": weights[4:, 2]}  # A B' and A' B
        layer2 = {"weights": {"layer1": weights[1:2, :2]}, "bias": weights[1, 2:]}  # OR
        two_layers = fnn.multilayer((2, 2, 1), (activation, activation))
        a = two_layers.apply({"layer1": layer1, "layer2": layer2}, p)[:, 0]
        rows.append(
            [
                *(Row(7, f"{gate}, {logic}", *pair) for gate, *pair in zip(gates, truths, outputs, strict=True)),
                Row(7, f"without bias the same four, {logic}", bare, [tuple(v) in found_bare for v in truths]),
                Row(7, f"functions one neuron represents, {logic}", 14, len(found)),
                Row(7, f"XOR among them, {logic}", False, tuple(xor) in found),
                Row(7, f"XOR = A B' + A' B, two layers, {logic}", xor, a),
            ]
        )
    (*answers, count, single, double), (*signed_answers, signed_count, signed_single, signed_double) = rows
    return [
        *sourced("printed", "CSE 475 17.61.2, in words", single),
        *sourced("printed", 'Lecture 2, the table of "How to implement XOR?"', double),
        *sourced("exercise", "CSE 475 17.61.1, its weights left blank and its questions", *answers),
        *sourced(
            "exercise",
            'CSE 475 17.61.1, "assume we use -1, 1 representation"',
            *signed_answers,
            signed_single,
            signed_double,
        ),
        *sourced("recomputed", "CSE 475 17.61.1, the neuron", count, signed_count),
    ]


def example8():
    """Hagan's demonstration dl3aa: Adam on two weights of a 1-2-1 logistic network.

    x = (w_1,1^1, w_1,1^2), started here at (4, 4). The network itself makes the targets on p = -2:0.1:2, so that its
    own weights, (10, 1), have no error. Adam is Eq. 3.29-3.33 with Hagan's constants and rate 0.1, in NumPy as in the
    library: k begins at 1 in the bias correction, and each parameter has its own second moment (the
    demonstration's program has a slip in both).
    """
    p = np.arange(-20, 21) / 10
    W1, b1, W2, b2 = np.array([10.0, 10]), np.array([-5.0, 5]), np.array([1.0, 1]), -1.0

    def a1(w):
        return logsig(np.outer([w, W1[1]], p) + b1[:, None])

    def a2(w, v):
        return logsig(np.array([v, W2[1]]) @ a1(w) + b2)

    t = a2(W1[0], W2[0])

    def F(x):
        return (t - a2(*x)) @ (t - a2(*x))

    def gradient(x):
        hidden, a = a1(x[0])[0], a2(*x)
        s2 = -2 * a * (1 - a) * (t - a)  # Eq. 3.50
        s1 = hidden * (1 - hidden) * x[1] * s2  # Eq. 3.49, of the first neuron
        return np.array([s1 @ p, s2 @ hidden])  # Eq. 3.39, summed over the examples

    x, m, v = np.array([4.0, 4]), np.zeros(2), np.zeros(2)
    path = [x]
    for k in range(1, 601):
        g = gradient(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2  # Eq. 3.29, 3.30
        x = x - 0.1 * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)  # Eq. 3.31-3.33
        path.append(x)

    network = fnn.multilayer((1, 2, 1), ("sigmoid", "sigmoid"))
    data = p[:, None], t[:, None]

    @jax.jit
    def value_and_gradient(x):
        first = {"weights": {"input": jnp.stack([x[0], W1[1]])[:, None]}, "bias": b1}
        second = {"weights": {"layer1": jnp.stack([x[1], W2[1]])[None, :]}, "bias": np.array([b2])}
        value, g = fnn.value_and_grad(network, SQUARES)({"layer1": first, "layer2": second}, *data)
        return value, jnp.stack([g["layer1"]["weights"]["input"][0, 0], g["layer2"]["weights"]["layer1"][0, 0]])

    found = descend(fnn.optimizers.adam(0.1), [value_and_gradient] * 600, path[0])
    at_target, (start, g) = value_and_gradient(jnp.array([10.0, 1])), value_and_gradient(jnp.array([4.0, 4]))
    return [
        *sourced(
            "recomputed",
            "Hagan's demonstration dl3aa; the text only names it",
            Row(8, "F at (10, 1)", 0, at_target[0]),
            Row(8, "dF/dx at (10, 1)", [0, 0], at_target[1]),
            Row(8, "x_1: a step of the rate in each weight", [3.9, 3.9], found[1], 7),  # epsilon / |g| is below 1e-7
        ),
        *sourced(
            "equation",
            "Hagan Eq. 3.29-3.33, on dl3aa's network",
            Row(8, "F at (4, 4)", F(path[0]), start),
            Row(8, "dF/dx at (4, 4)", gradient(path[0]), g),
            Row(8, "x_10", path[10], found[10]),
            Row(8, "x_100", path[100], found[100]),
            Row(8, "F(x_100)", F(path[100]), value_and_gradient(jnp.asarray(found[100]))[0]),
            Row(8, "x_600", path[600], found[600]),
        ),
    ]


def example9():
    """CSE 475, 19.71: measures between p = (0.5, 0.5) and q = (0.9, 0.1)."""
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    return sourced(
        "equation",
        "CSE 475 19.71, on distributions chosen here",
        Row(9, "KL(p||q)", 0.5108, fnn.losses.kullback_leibler().value(q, p), 4),  # D(targets || outputs)
        Row(9, "KL(q||p)", 0.3681, fnn.losses.kullback_leibler().value(p, q), 4),
        Row(9, "Bhattacharyya distance", 0.1116, fnn.losses.bhattacharyya().value(q, p), 4),
    )


def example10():
    """Hagan E3.3: a step of a linear 2-2-1 network on p = (0, -1), t = 1.

    The network of E2.3 is in another chapter. Chosen here: A B' + A' B, XOR in 0/1 logic (example 7), its hard limits
    replaced by linear functions.
    """
    p, t = np.array([0.0, -1]), np.array([1.0])
    W1, b1, W2, b2 = np.array([[1.0, -1], [-1, 1]]), np.array([-0.5, -0.5]), np.array([[1.0, 1]]), np.array([-0.5])
    a1 = W1 @ p + b1  # Eq. 3.3; F' is I
    a2 = W2 @ a1 + b2
    s2 = -2 * (t - a2)  # Eq. 3.53
    s1 = W2.T @ s2  # Eq. 3.49
    dW1, dW2 = np.outer(s1, p), np.outer(s2, a1)  # Eq. 3.39; the biases' are s1 and s2 (Eq. 3.40)
    new_W1, new_b1, new_W2, new_b2 = (
        x - 0.1 * g
        for x, g in zip((W1, b1, W2, b2), (dW1, s1, dW2, s2), strict=True)  # Eq. 3.14
    )
    new_e = t - (new_W2 @ (new_W1 @ p + new_b1) + new_b2)

    network = fnn.multilayer((2, 2, 1), ("linear", "linear"))
    params = {"layer1": {"weights": {"input": W1}, "bias": b1}, "layer2": {"weights": {"layer1": W2}, "bias": b2}}
    example = p[None, :], t[None, :]
    found = fnn.backpropagate(network, SQUARES, params, *example)
    optimizer = fnn.optimizers.gd(0.1)
    first, second = (found.gradients[layer] for layer in ("layer1", "layer2"))
    new = optimizer.update(optimizer.init(params), found.gradients).params
    new_first, new_second = new["layer1"], new["layer2"]
    return sourced(
        "exercise",
        "Hagan E3.3, on a network chosen here",
        Row(10, "F", (t - a2) @ (t - a2), found.value),
        Row(10, "s^2", s2, found.sensitivities["layer2"][0]),
        Row(10, "s^1", s1, found.sensitivities["layer1"][0]),
        Row(10, "dF/dW^2", dW2, second["weights"]["layer1"]),
        Row(10, "dF/db^2", s2, second["bias"]),
        Row(10, "dF/dW^1", dW1, first["weights"]["input"]),
        Row(10, "dF/db^1", s1, first["bias"]),
        Row(10, "new W^2", new_W2, new_second["weights"]["layer1"]),
        Row(10, "new b^2", new_b2, new_second["bias"]),
        Row(10, "new W^1", new_W1, new_first["weights"]["input"]),
        Row(10, "new b^1", new_b1, new_first["bias"]),
        Row(10, "new F", new_e @ new_e, fnn.objective(network, SQUARES)(new, *example)),
    )


def example11():
    """Lecture 2, Gradient Descent v.s. SGD: updates in an epoch of 20 examples."""
    return sourced(
        "printed",
        "Lecture 2, Gradient Descent v.s. SGD",
        Row(11, "gradient descent, all examples at once", 1, fnn.training.batch().updates(20)),
        Row(11, "SGD, one example at a time", 20, fnn.training.stochastic().updates(20)),
    )


EXAMPLES = {
    1: example1,
    2: example2,
    3: example3,
    4: example4,
    5: example5,
    6: example6,
    7: example7,
    8: example8,
    9: example9,
    10: example10,
    11: example11,
}


def shown(values, digits):
    """Writes a number or a vector with so many digits, six at most; yes or no for booleans."""
    if np.asarray(values).dtype == bool:
        return " ".join("yes" if value else "no" for value in np.ravel(values))
    rounded = np.round(np.ravel(values) * 1.0, min(digits, 6)) + 0.0  # 0.0: no minus before a zero
    return " ".join(np.format_float_positional(value, trim="-") for value in rounded)


def show(row):
    """Prints the row; a matrix takes one line for each of its rows."""
    columns = [value if np.ndim(value) == 2 else [value] for value in (row.expected, row.computed)]
    lines = [f"{shown(e, row.digits):31s}{shown(c, row.digits):31s}" for e, c in zip(*columns, strict=False)]
    print(f"{row.quantity:42s}{lines[0]}{row.difference:10.1e}  {'yes' if row.ok else 'NO'}")
    for line in lines[1:]:
        print(f"{'':42s}{line}".rstrip())


def main(arguments=None) -> int:
    """Returns 0 if the library gives every number, else 1."""
    jax.config.update("jax_enable_x64", True)  # an equation must hold to 12 decimals
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, metavar="PATH", help="also write the table there, in full precision")
    path = parser.parse_args(arguments).csv
    rows = []
    for number, example in EXAMPLES.items():
        print(f"\n{number}. {example.__doc__.splitlines()[0]}")
        print(f"{'quantity':42s}{'expected':31s}{'library':31s}{'difference':>10s}  ok")
        found = example()
        for (provenance, place), group in itertools.groupby(found, key=lambda row: (row.provenance, row.place)):
            print(f"  {provenance}: {place}")
            for row in group:
                show(row)
        rows += found
    print()
    for provenance in PROVENANCES:
        kind = [row for row in rows if row.provenance == provenance]
        shifted = sum(row.shift > 0 for row in kind)
        note = f", {shifted} of them to one in the last digit, since the text continues with rounded numbers"
        print(f"{provenance:17s}{sum(row.ok for row in kind):4d} of {len(kind)} agree{note if shifted else ''}")
    print(f"{sum(row.ok for row in rows)} of {len(rows)} quantities agree to the digits given")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*Row._fields, "difference", "ok"])
            writer.writerows([*(np.asarray(value).tolist() for value in r), r.difference, r.ok] for r in rows)
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
