#!/usr/bin/env python
"""The worked examples of the source texts, recomputed through the library, beside the texts' own numbers.

    python scripts/worked_examples.py --csv results/worked_examples.csv

Each example is a function that returns rows: a quantity, its expected value (the text's, where misprinted corrected),
the library's, and how many decimals the text gives. Where the text gives an equation and no number (examples 4, 5)
NumPy evaluates it, one example of the batch after the other. Exit status 1 if a value differs beyond its decimals.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

jax.config.update("jax_enable_x64", True)  # before the first array: an equation must hold to 12 decimals

import functional_nn as fnn  # noqa: E402

EXACT = 12  # decimals of a value that the text gives exactly, or that an equation gives


class Row(NamedTuple):
    """One quantity of an example: a number, a truth, a vector or a matrix, right if it agrees to `digits` decimals."""

    example: int
    quantity: str
    expected: ArrayLike
    computed: ArrayLike
    digits: int = EXACT

    @property
    def difference(self) -> float:
        """The largest absolute difference; infinite where the shapes differ."""
        expected, computed = np.asarray(self.expected, np.float64), np.asarray(self.computed, np.float64)
        return float(np.max(np.abs(expected - computed))) if expected.shape == computed.shape else float("inf")

    @property
    def ok(self) -> bool:
        """Would the computed value be printed as the expected one?"""
        return self.difference <= 0.5 * 10.0**-self.digits


def neuron(activation, x, width):
    """One neuron as a network and its parameters; x holds its weights and, where it is longer, its bias."""
    biased = x.size > width
    network = fnn.multilayer((width, 1), (activation,), bias="per_neuron" if biased else "none")
    return network, {"layer1": {"weights": {"input": x[None, :width]}} | ({"bias": x[width:]} if biased else {})}


def squared_errors(inputs, targets):
    """x -> (F, dF/dx), F = sum (t - a)^2 of the linear neuron with parameters x (Eq. 3.17)."""

    def performance(x):
        network, params = neuron("linear", x, inputs.shape[1])
        value, grads = fnn.value_and_grad(network, fnn.losses.sum_square_error())(params, inputs, targets)
        return value, jnp.concatenate([g.ravel() for g in reversed(jax.tree.leaves(grads))])  # leaves: bias, weights

    return jax.jit(performance)


def quadratic(performance, size):
    """A, d, c of F = c + d'x + x'Ax/2 (Eq. 3.19): dF/dx = A x + d is affine, its differences are the columns of A."""
    c, d = performance(np.zeros(size))
    return np.stack([performance(e)[1] - d for e in np.eye(size)], axis=1), np.asarray(d), float(c)


def descend(rate, performances, start):
    """The points (K + 1, size) of gradient descent, a step on each of K performance functions in turn (Eq. 3.14)."""
    optimizer = fnn.optimizers.gd(rate)
    states = [optimizer.init(jnp.asarray(start, jnp.float64))]
    for performance in performances:
        states.append(optimizer.update(states[-1], performance(states[-1].params)[1]))
    return np.stack([state.params for state in states])


def example1():
    """Hagan, Eq. 3.15-3.28 and the demonstration dl3gd: a linear neuron without bias."""
    inputs, targets = np.array([[-1.0, 2], [2, -1], [0, -1], [-1, 0]]), np.array([[-1.0], [-1], [1], [1]])
    performance = squared_errors(inputs, targets)
    A, d, c = quadratic(performance, 2)
    eigenvalues, vectors = np.linalg.eigh(A)
    minimum = -np.linalg.solve(A, d)
    constant, *images = (descend(0.01, [performance], x)[1] for x in [(0, 0), (1, 0), (0, 1)])
    matrix = np.stack(images, axis=1) - constant[:, None]
    each_example = [squared_errors(inputs[q : q + 1], targets[q : q + 1]) for q in range(4)]
    sgd = [[0.02, -0.04], [-0.0232, -0.0184], [-0.0232, -0.038032], [-0.042736, -0.038032]]
    paths = {rate: descend(rate, [performance] * 100, (-1, -2.95)) for rate in (0.01, 0.1, 0.11)}
    F = {rate: np.array([performance(x)[0] for x in path]) for rate, path in paths.items()}
    return [
        Row(1, "A (Eq. 3.23)", [[12, -8], [-8, 12]], A),
        Row(1, "d (Eq. 3.23)", [4, 4], d),
        Row(1, "c (Eq. 3.23)", 4, c),
        Row(1, "eigenvalues of A", [4, 20], eigenvalues),
        Row(1, "eigenvectors in rows, from 1", [[1, 1], [1, -1]], (vectors / vectors[0]).T),
        Row(1, "minimum x* = -A^-1 d", [-1, -1], minimum),
        Row(1, "F(x*)", 0, performance(minimum)[0]),
        Row(1, "largest stable rate, 2 / eigenvalue", 0.1, 2 / eigenvalues[-1]),
        Row(1, "GD step at 0.01: matrix (Eq. 3.24)", [[0.88, 0.08], [0.08, 0.88]], matrix),
        Row(1, "GD step at 0.01: constant (Eq. 3.24)", [-0.04, -0.04], constant),
        Row(1, "SGD at 0.01: four steps (Eq. 3.27)", sgd, descend(0.01, each_example, (0, 0))[1:]),
        Row(1, "dl3gd: F at (-1, -2.95)", 22.815, F[0.01][0]),
        Row(1, "dl3gd at 0.01: x_100", [-1.0164, -1.0164], paths[0.01][100], 4),
        Row(1, "dl3gd at 0.01: F(x_100)", 0.00108, F[0.01][100], 5),
        Row(1, "dl3gd at 0.1: F(x_99), F(x_100)", [19.0125, 19.0125], F[0.1][99:]),
        Row(1, "dl3gd at 0.1: (x_99 + x_100) / 2 is x*", [-1, -1], paths[0.1][99:].mean(axis=0)),
        Row(1, "dl3gd at 0.11: diverges", True, F[0.11][100] > 1e9 * F[0.11][0]),
        Row(1, "damped Newton from 0, alpha = 1", [-0.8, -0.8], -np.linalg.solve(A + np.eye(2), d)),
    ]


def example3():
    """Hagan E3.1 and E3.2: a linear neuron with a bias."""
    performance = squared_errors(np.array([[-1.0], [0], [1]]), np.array([[-1.5], [0.5], [2.5]]))
    A, d, c = quadratic(performance, 2)
    descended, newton = descend(0.1, [performance], (0, 0))[1], -np.linalg.solve(A, d)
    return [
        Row(3, "F at w = b = 0 (E3.1)", 8.75, c),
        Row(3, "dF/d(w, b) there (E3.1)", [-8, -3], d),
        Row(3, "GD step at 0.1: (w, b) (Eq. 3.14)", [0.8, 0.3], descended),
        Row(3, "GD step at 0.1: F", 3.0, performance(descended)[0]),
        Row(3, "Newton step: (w, b) (Eq. 3.28)", [2, 0.5], newton),
        Row(3, "Newton step: F", 0, performance(newton)[0]),
        Row(3, "Newton step: dF/d(w, b)", [0, 0], performance(newton)[1]),
    ]


def logsig(n):
    """The logistic function in NumPy."""
    return 1 / (1 + np.exp(-n))


def drawn(network, rng):
    """Normal parameters, biases included."""
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
    rows = [Row(4, "F (Eq. 3.17)", F, found.value)]
    for m in s[0]:
        rows.append(Row(4, f"s^{m} ({named.get(m, 'Eq. 3.49')})", [s_q[m] for s_q in s], found.sensitivities[m]))
    for m, source in W:
        name = f"dF/dW, from {source} to {m} ({named.get((m, source), 'Eq. 3.39')})"
        rows.append(Row(4, name, dW[m, source], found.gradients[m]["weights"][source]))
    return rows


def example5():
    """Hagan E3.5, E3.6 and P3.1: s^M of cross-entropy, on random networks; soft targets have any sum."""
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

    rows = []
    for kind, t in (("one-hot", np.eye(3)[[2, 0]]), ("soft", rng.uniform(0.1, 1, size=(2, 3)))):
        s, n, _ = last_layer("softmax", loss, t)
        a = each(lambda n: np.exp(n) / sum(np.exp(n)), n)
        fused = each(lambda a, t: a * sum(t) - t, a, t)
        composed = each(lambda a, t: (np.diag(a) - np.outer(a, a)).T @ (-t / a), a, t)
        pulled_back, _ = fnn.activations.softmax.pullback(loss.gradient(a, t), n, a, {})
        rows.append(Row(5, f"softmax, {kind} t: a sum(t) - t (E3.5)", fused, s))
        rows.append(Row(5, f"softmax, {kind} t: F'(n)' (-t/a) (E3.6)", composed, pulled_back))
        s, n, _ = last_layer("sigmoid", loss, t)
        composed = each(lambda a, t: np.diag(a * (1 - a)).T @ (-t / a), logsig(n), t)
        rows.append(Row(5, f"sigmoid, {kind} t: F'(n)' (-t/a) (E3.6)", composed, s))
    t = np.array([[1.0], [0.0]])
    s, n, value = last_layer("sigmoid", binary, t)
    a = logsig(n)
    F = -np.sum(t * np.log(a) + (1 - t) * np.log(1 - a))
    rows.append(Row(5, "one logistic neuron: s = a - t (P3.1)", a - t, s))
    rows.append(Row(5, "one logistic neuron: F (P3.1)", F, value))
    rows.append(Row(5, "its F by Eq. 3.9 (P3.1)", F, loss.value(np.hstack([a, 1 - a]), np.hstack([t, 1 - t]))))
    return rows


def example6():
    """Kordecki: two logistic layers, in each one bias for all neurons; w_(i,j) runs from i to j, our transpose."""
    network, loss = fnn.multilayer((3, 2, 2), ("sigmoid",) * 2, bias="shared"), fnn.losses.half_sum_square_error()
    w0, w1, b = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]), np.array([[0.7, 0.8], [0.9, 0.1]]), np.array([0.5])
    params = {"layer1": {"weights": {"input": w0.T}, "bias": b}, "layer2": {"weights": {"layer1": w1.T}, "bias": b}}
    x, t = np.array([[1.0, 4, 5]]), np.array([[0.1, 0.05]])
    E, grads, s, _, (n, y, _) = fnn.backpropagate(network, loss, params, x, t)
    optimizer = fnn.optimizers.gd(0.01)
    new = optimizer.update(optimizer.init(params), grads).params
    text_w0, text_w1 = (lambda p: p["layer1"]["weights"]["input"].T), (lambda p: p["layer2"]["weights"]["layer1"].T)
    return [
        Row(6, "net inputs, layer 1", [4.3, 5.3], n["layer1"][0]),
        Row(6, "outputs, layer 1", [0.986613, 0.995033], y["layer1"][0], 6),
        Row(6, "net inputs, layer 2", [2.086159, 1.388794], n["layer2"][0], 6),
        Row(6, "outputs, layer 2", [0.889551, 0.800400], y["layer2"][0], 6),
        Row(6, "E", 0.593245, E, 6),
        Row(6, "dE/dw^(1)", [[0.076535, 0.118279], [0.077188, 0.119288]], text_w1(grads), 6),
        Row(6, "dE/dw_0^(1)", 0.197457, grads["layer2"]["bias"][0], 6),
        Row(6, "dE/dw^(0)", [[0.001984, 0.000404], [0.007936, 0.001617], [0.009920, 0.002021]], text_w0(grads), 6),
        Row(6, "dE/dw_0^(0)", 0.002388, grads["layer1"]["bias"][0], 6),
        Row(6, "dE/dy^(1)", [0.150209, 0.081805], s["layer2"][0] @ w1.T, 6),
        Row(6, "new w^(1)", [[0.699235, 0.798817], [0.899228, 0.098807]], text_w1(new), 6),
        Row(6, "new w_0^(1)", 0.498025, new["layer2"]["bias"][0], 6),
        Row(6, "new w_0^(0)", 0.499976, new["layer1"]["bias"][0], 6),
        Row(6, "new E", 0.592452, fnn.objective(network, loss)(new, x, t), 6),
        Row(6, "new w^(0)", [[0.09998, 0.199996], [0.299921, 0.399984], [0.499901, 0.59998]], text_w0(new), 6),
    ]


def threshold_neurons(activation, neurons, p):
    """Outputs (N, Q) of N neurons for inputs p; `neurons` in rows, (w1, w2, b), or (w1, w2) without a bias."""

    def outputs(x):
        network, params = neuron(activation, x, 2)
        return network.apply(params, p)[:, 0]

    return np.asarray(jax.vmap(outputs)(neurons))


def example7():
    """CSE 475, 17.61: what threshold neurons represent, outputs for (A, B) = FF, FT, TF, TT.

    No neuron is XOR: FF and TT ask for b < 0 and w1 + w2 + b < 0, so w1 + w2 + 2 b < 0; TF and FT for w1 + b >= 0 and
    w2 + b >= 0, so w1 + w2 + 2 b >= 0 (-1/+1 logic renames the variables). The search, over all halves in [-2, 2],
    boundaries included, meets the 14 linear threshold functions of two inputs: all but XOR and its opposite.
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
        for gate, truth, a in zip(gates, truths, threshold_neurons(activation, weights[:4], p), strict=True):
            rows.append(Row(7, f"{gate}, {logic}", truth, a))
        found, found_bare = (set(map(tuple, threshold_neurons(activation, x, p))) for x in (grid, grid[:, :2]))
        layer1 = {"weights": {"input": weights[4:, :2]}, "bias": weights[4:, 2]}  # A B' and A' B
        layer2 = {"weights": {"layer1": weights[1:2, :2]}, "bias": weights[1, 2:]}  # OR
        two_layers = fnn.multilayer((2, 2, 1), (activation, activation))
        a = two_layers.apply({"layer1": layer1, "layer2": layer2}, p)[:, 0]
        rows.append(Row(7, f"without bias the same four, {logic}", bare, [tuple(v) in found_bare for v in truths]))
        rows.append(Row(7, f"functions one neuron represents, {logic}", 14, len(found)))
        rows.append(Row(7, f"XOR among them, {logic}", False, tuple(xor) in found))
        rows.append(Row(7, f"XOR = A B' + A' B, two layers, {logic}", xor, a))
    return rows


def example9():
    """CSE 475, 19.71: measures between p = (0.5, 0.5) and q = (0.9, 0.1)."""
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    return [
        Row(9, "KL(p||q)", 0.5108, fnn.losses.kullback_leibler().value(q, p), 4),  # D(targets || outputs)
        Row(9, "KL(q||p)", 0.3681, fnn.losses.kullback_leibler().value(p, q), 4),
        Row(9, "Bhattacharyya distance", 0.1116, fnn.losses.bhattacharyya().value(q, p), 4),
    ]


EXAMPLES = {1: example1, 3: example3, 4: example4, 5: example5, 6: example6, 7: example7, 9: example9}


def shown(values, digits):
    """A number or a vector at the digits given, six at most; yes or no for truths."""
    if np.asarray(values).dtype == bool:
        return " ".join("yes" if value else "no" for value in np.ravel(values))
    rounded = np.round(np.ravel(values) * 1.0, min(digits, 6)) + 0.0  # 0.0: no minus before a zero
    return " ".join(np.format_float_positional(value, trim="-") for value in rounded)


def show(row):
    """Prints the row; a matrix takes a line for each of its own rows."""
    columns = [value if np.ndim(value) == 2 else [value] for value in (row.expected, row.computed)]
    lines = [f"{shown(e, row.digits):31s}{shown(c, row.digits):31s}" for e, c in zip(*columns, strict=False)]
    print(f"{row.quantity:42s}{lines[0]}{row.difference:10.1e}  {'yes' if row.ok else 'NO'}")
    for line in lines[1:]:
        print(f"{'':42s}{line}".rstrip())


def main(arguments=None) -> int:
    """0 if the library gives every number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, metavar="PATH", help="also write the table there, in full precision")
    path = parser.parse_args(arguments).csv
    rows = []
    for number, example in EXAMPLES.items():
        print(f"\n{number}. {example.__doc__.splitlines()[0]}")
        print(f"{'quantity':42s}{'expected':31s}{'library':31s}{'difference':>10s}  ok")
        for row in (found := example()):
            show(row)
        rows += found
    print(f"\n{sum(row.ok for row in rows)} of {len(rows)} quantities agree to the digits given")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*Row._fields, "difference", "ok"])
            writer.writerows([*(np.asarray(value).tolist() for value in r), r.difference, r.ok] for r in rows)
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
