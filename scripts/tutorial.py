#!/usr/bin/env python
"""Backpropagation built from one linear neuron to a graph, in plain NumPy: to be read from top to bottom, and run.

    python scripts/tutorial.py --out results/tutorial

Each section adds one idea, and ends with what came out by hand beside the source text's number or `jax.grad`'s. The
last finds the same numbers in functional_nn. Exit status 1 if any two are farther apart than rounding explains.

Letters: Q examples, R inputs, S neurons; p an input, n = W p + b a net input, a = f(n) an output, t a target, F the
performance function, s = dF/dn a sensitivity. Weights are (S, R). Equation numbers are Hagan's, chapter 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)  # before the first array: differences should be rounding, and small

import functional_nn as fnn  # noqa: E402
from functional_nn.lab import experiments  # noqa: E402
from functional_nn.lab.plots import STYLE  # noqa: E402

# after the lab, which says what to install where it is missing
import matplotlib.pyplot as plt  # noqa: E402  # isort: skip

# Fewer than 128 roundings lie between the data and any number below, and nothing on the way is larger than 64 (but the
# 800 of section 4, where nothing is rounded): each may move it by half a unit in the last place of that, on both sides.
ROUNDING = 2 * 128 * 64 * 2.0**-53


class Row(NamedTuple):
    """A quantity by hand, the other opinion, and how far the two may be apart: half a unit of the last digit printed,
    where the other one is a text's.
    """

    section: int
    quantity: str
    by_hand: np.ndarray
    other: np.ndarray
    whose: str = "jax.grad"
    allowed: float = ROUNDING

    @property
    def difference(self) -> float:
        """The largest of one element; infinite where the shapes differ."""
        one, other = np.asarray(self.by_hand, float), np.asarray(self.other, float)
        return float(np.max(np.abs(one - other))) if one.shape == other.shape else float("inf")

    @property
    def agrees(self) -> bool:
        return self.difference <= self.allowed


# 1. One linear neuron -------------------------------------------------------------------------------------------------
#
# Two weights x (R,), no bias: a = P x, one row of P (Q, R) for each example. F is the sum of squared errors. It is a
# quadratic in x, so that its gradient can be written down without any chain rule, and so can its whole landscape.

P = np.array([[-1.0, 2.0], [2.0, -1.0], [0.0, -1.0], [-1.0, 0.0]])  # Eq. 3.15, Q = 4, R = 2
T = np.array([-1.0, -1.0, 1.0, 1.0])
START = np.array([-1.0, -2.95])


def squared_errors(x):
    return ((T - P @ x) ** 2).sum()  # F, Eq. 3.17


def gradient(x):
    errors = T - P @ x  # (Q,)
    return -2 * P.T @ errors  # (R,): dF/dx = sum_q 2 e_q de_q/dx, and de_q/dx = -p_q


def descent(rate, steps=100):
    """The points (steps + 1, R) of x <- x - rate dF/dx (Eq. 3.14)."""
    points = [START]
    for _ in range(steps):
        points.append(points[-1] - rate * gradient(points[-1]))
    return np.array(points)


def one_linear_neuron() -> list[Row]:
    A, d = 2 * P.T @ P, -2 * P.T @ T  # F = c + d'x + x'Ax/2, Eq. 3.21
    eigenvalues = np.linalg.eigvalsh(A)
    small, limit = descent(0.01), descent(2 / eigenvalues[-1])
    return [
        Row(1, "A", A, [[12, -8], [-8, 12]], "Eq. 3.23"),
        Row(1, "dF/dx at (-1, -2.95) is A x + d", gradient(START), A @ START + d, "Eq. 3.22"),
        Row(1, "dF/dx at (-1, -2.95)", gradient(START), jax.grad(squared_errors)(START)),
        Row(1, "stable rate, 2 / largest eigenvalue", 2 / eigenvalues[-1], 0.1, "2 / 20"),
        Row(1, "x after 100 steps at 0.01", small[-1], [-1.0164, -1.0164], "text", 0.5e-4),
        Row(1, "F there", squared_errors(small[-1]), 0.00108, "text", 0.5e-5),
        Row(1, "F after 100 steps at 0.1", squared_errors(limit[-1]), 19.0125, "text", 0.5e-4),
    ]


# 2. A transfer function -----------------------------------------------------------------------------------------------
#
# One layer of S neurons, one example. The chain rule through a = f(n) and n = W p + b stops at n, and the place has a
# name: s = dF/dn, the sensitivity (Eq. 3.38). All else follows from it, since n is linear in W and in b.


def logistic(n):
    return 1 / (1 + np.exp(-n))


def one_layer() -> list[Row]:
    W, b = np.array([[0.1, -0.4, 0.3], [0.7, 0.2, -0.5]]), np.array([0.2, -0.1])  # (S, R) = (2, 3), (S,)
    p, t = np.array([1.0, -2.0, 0.5]), np.array([1.0, 0.0])  # (R,), (S,)

    a = logistic(W @ p + b)  # (S,), Eq. 3.3
    g = a - t  # (S,): dF/da of F = |t - a|^2 / 2
    s = a * (1 - a) * g  # (S,): F'(n) dF/da, Eq. 3.50; the logistic function's slope is a (1 - a)
    dW, db = np.outer(s, p), s  # (S, R), (S,): dn_i/dw_ij = p_j and dn_i/db_i = 1, Eq. 3.39, 3.40

    def F(W, b):
        return jnp.sum((t - jax.nn.sigmoid(W @ p + b)) ** 2) / 2

    theirs = jax.grad(F, argnums=(0, 1))(W, b)
    return [Row(2, "dF/dW = s p'", dW, theirs[0]), Row(2, "dF/db = s", db, theirs[1])]


# 3. Two layers --------------------------------------------------------------------------------------------------------
#
# The first layer's outputs reach F through the second's net inputs alone, n2 = W2 a1 + b2: what F does when a1 moves is
# W2' s2 (Eq. 3.47), and a1 = f(n1) is section 2 again. That is the whole recursion, s1 = F'(n1) W2' s2 (Eq. 3.49).
# The example is Kordecki's: 3-2-2, logistic, one bias shared by the neurons of a layer, whose gradient is their sum.


def two_layers() -> list[Row]:
    W1, W2 = np.array([[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]]), np.array([[0.7, 0.9], [0.8, 0.1]])  # (2, 3), (2, 2)
    b1 = b2 = 0.5
    p, t, rate = np.array([1.0, 4.0, 5.0]), np.array([0.1, 0.05]), 0.01

    def forward(W1, b1, W2, b2):
        a1 = logistic(W1 @ p + b1)  # (2,)
        a2 = logistic(W2 @ a1 + b2)  # (2,)
        return a1, a2, ((t - a2) ** 2).sum() / 2

    a1, a2, F = forward(W1, b1, W2, b2)
    s2 = a2 * (1 - a2) * (a2 - t)  # (2,)
    g1 = W2.T @ s2  # (2,): dF/da1
    s1 = a1 * (1 - a1) * g1  # (2,)
    dW2, db2 = np.outer(s2, a1), s2.sum()
    dW1, db1 = np.outer(s1, p), s1.sum()
    after = forward(W1 - rate * dW1, b1 - rate * db1, W2 - rate * dW2, b2 - rate * db2)[-1]  # all moved at once

    six = ("Kordecki", 0.5e-6)
    return [
        Row(3, "F", F, 0.593245, *six),
        Row(3, "dF/dW2, as he writes it", dW2.T, [[0.076535, 0.118279], [0.077188, 0.119288]], *six),
        Row(3, "dF/db2", db2, 0.197457, *six),
        Row(3, "dF/da1", g1, [0.150209, 0.081805], *six),
        Row(3, "dF/dW1", dW1.T, [[0.001984, 0.000404], [0.007936, 0.001617], [0.009920, 0.002021]], *six),
        Row(3, "dF/db1", db1, 0.002388, *six),
        Row(3, "F after a step", after, 0.592452, *six),
    ]


# 4. Any loss ----------------------------------------------------------------------------------------------------------
#
# Only the start of the recursion knows the loss. Softmax lets every net input move every output: F'(n) is a matrix, no
# row of slopes. With cross-entropy F = -sum t ln a it cancels against dF/da = -t / a (E3.6), and s = a - t is left
# (E3.5). That is shorter, and it is right where a is 0 to the last bit and the long way asks for 0 / 0.


def softmax(n):
    e = np.exp(n - n.max())  # the same for any shift, and no overflow
    return e / e.sum()


def any_loss() -> list[Row]:
    t = np.array([0.0, 1.0, 0.0])

    def long_way(n):
        a = softmax(n)
        slopes = np.diag(a) - np.outer(a, a)  # (S, S): da_i/dn_j, symmetric
        with np.errstate(all="ignore"):
            return slopes @ (-t / a)

    def fused(n):
        return softmax(n) - t

    def F(n):
        return -jnp.sum(t * jax.nn.log_softmax(n))

    ordinary, sure = np.array([0.3, -1.2, 2.0]), np.array([800.0, -800.0, 0.0])
    return [
        Row(4, "s by the matrix F'(n)", long_way(ordinary), jax.grad(F)(ordinary)),
        Row(4, "s = a - t", fused(ordinary), jax.grad(F)(ordinary)),
        Row(4, "s = a - t where a underflows", fused(sure), jax.grad(F)(sure)),
        Row(4, "the long way is lost there", np.isnan(long_way(sure)).all(), True, "0 / 0"),
    ]


# 5. A batch -----------------------------------------------------------------------------------------------------------
#
# Examples become rows: a (Q, S), n = a W' + b. Nothing in the recursion mixes them, so s has a row for each. What mixes
# them is the last contraction: with the sum over q it is the gradient of their sum; without, each example's own. The
# norm of an outer product is the product of the norms, so that |dF_q/dW| = |s_q| |a_q| needs no (Q, S, R) array.


def batch_forward(params, p):
    outputs = [p]  # (Q, R), then (Q, S) of each layer
    for W, b in params[:-1]:
        outputs.append(np.tanh(outputs[-1] @ W.T + b))
    W, b = params[-1]
    return outputs, outputs[-1] @ W.T + b  # the last layer's net inputs


def batch_sensitivities(params, outputs, s):
    found = [s]  # from the last layer back; s (Q, S)
    for (W, _), a in zip(params[:0:-1], outputs[:0:-1], strict=True):
        found.append((1 - a**2) * (found[-1] @ W))  # Eq. 3.49, transposed: a row for each example
    return found[::-1]


def a_batch() -> list[Row]:
    draw = np.random.default_rng(0)
    sizes, Q = (3, 4, 5, 2), 6
    params = [(draw.normal(size=(S, R)) / 2, draw.normal(size=S) / 2) for R, S in zip(sizes, sizes[1:], strict=False)]
    p, t = draw.normal(size=(Q, 3)), np.eye(2)[draw.integers(0, 2, Q)]

    outputs, n = batch_forward(params, p)
    s = batch_sensitivities(params, outputs, np.apply_along_axis(softmax, 1, n) - t)
    pairs = list(zip(s, outputs, strict=True))
    summed = [(np.einsum("qs,qr->sr", s, a), s.sum(axis=0)) for s, a in pairs]
    of_each = [(np.einsum("qs,qr->qsr", s, a), s) for s, a in pairs]  # one letter more
    squares = sum((s**2).sum(axis=1) * ((a**2).sum(axis=1) + 1) for s, a in pairs)  # + 1: the bias reads a 1

    def F(params, p, t):
        for W, b in params[:-1]:
            p = jnp.tanh(p @ W.T + b)
        W, b = params[-1]
        return -jnp.sum(t * jax.nn.log_softmax(p @ W.T + b))

    theirs = jax.jit(jax.grad(F))(params, p, t)
    theirs_of_each = jax.jit(jax.vmap(jax.grad(F), in_axes=(None, 0, 0)))(params, p, t)
    norms = np.sqrt(sum((leaf**2).reshape(Q, -1).sum(axis=1) for leaf in jax.tree.leaves(theirs_of_each)))
    return [
        Row(5, "dF/dparams of the batch", flat(summed), flat(theirs)),
        Row(5, "of each example", flat(of_each), flat(theirs_of_each), "vmap(jax.grad)"),
        Row(5, "their norms, never formed", np.sqrt(squares), norms, "vmap(jax.grad)"),
    ]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# 6. A graph -----------------------------------------------------------------------------------------------------------
#
# A layer may read several others: n2 = W3 p + W2 a1 + b2 (P3.2). The sum changes nothing for either term, so each block
# of weights has the same s with what it reads, dF/dW3 = s2 p'. And a layer may be read by several (E3.4): F then feels
# a1 on every way, and g1 = dF/da1 is the sum over its readers of W' s. A chain is the case of one reader each.
# E3.4's figure is missing from the text; this graph has both: 1 is read by 2 and 3, and 3 and 4 read two each.
# Layer 4 is linear, the others tanh; F = sum |t - a4|^2.

READS = {"1": ("p",), "2": ("1",), "3": ("1", "p"), "4": ("2", "3")}  # in topological order
SIZES = {"p": 3, "1": 4, "2": 2, "3": 5, "4": 2}


def graph_forward(weights, biases, p, tanh=np.tanh):
    outputs = {"p": p}
    for layer, sources in READS.items():
        n = sum(outputs[source] @ weights[layer, source].T for source in sources) + biases[layer]  # (Q, S), P3.2
        outputs[layer] = n if layer == "4" else tanh(n)
    return outputs


def graph_sensitivities(weights, outputs, t):
    g, s = {"4": 2 * (outputs["4"] - t)}, {}  # dF/da (Q, S) of each layer, as far as its readers have been met
    for layer in reversed(READS):
        s[layer] = g[layer] if layer == "4" else (1 - outputs[layer] ** 2) * g[layer]
        for source in READS[layer]:
            g[source] = g.get(source, 0) + s[layer] @ weights[layer, source]  # the sum over readers, E3.4
    return s, g["p"]


def graph_problem():
    draw = np.random.default_rng(1)
    weights = {(m, j): draw.normal(size=(SIZES[m], SIZES[j])) / 2 for m, sources in READS.items() for j in sources}
    biases = {layer: draw.normal(size=SIZES[layer]) / 2 for layer in READS}
    return weights, biases, draw.normal(size=(6, 3)), draw.normal(size=(6, 2))


def a_graph() -> list[Row]:
    weights, biases, p, t = graph_problem()
    outputs = graph_forward(weights, biases, p)
    s, dp = graph_sensitivities(weights, outputs, t)
    dW = {(m, j): s[m].T @ outputs[j] for m, j in weights}  # Eq. 3.39, a block for each source
    db = {layer: s[layer].sum(axis=0) for layer in READS}

    def F(weights, biases, p):
        return jnp.sum((t - graph_forward(weights, biases, p, jnp.tanh)["4"]) ** 2)

    theirs = jax.jit(jax.grad(F, argnums=(0, 1, 2)))(weights, biases, p)
    return [
        Row(6, "dF/dW by layer and source", flat(dW), flat(theirs[0])),
        Row(6, "dF/dW(3, p) = s3' p", dW["3", "p"], theirs[0]["3", "p"]),
        Row(6, "dF/db", flat(db), flat(theirs[1])),
        Row(6, "dF/dp, read by 1 and 3", dp, theirs[2]),
    ]


# 7. functional_nn -----------------------------------------------------------------------------------------------------
#
# Section 6 with every activation, loss and graph is functional_nn/gradients/backprop.py; section 5's contractions are
# quantities.py. `compare` does what this script did by eye, with a bound for the roundings of the program at hand.


def in_functional_nn() -> list[Row]:
    weights, biases, p, t = graph_problem()
    s, dp = graph_sensitivities(weights, graph_forward(weights, biases, p), t)
    layers = [
        fnn.Layer(f"layer{m}", SIZES[m], "linear" if m == "4" else "tanh", tuple(map(named, sources)))
        for m, sources in READS.items()
    ]
    network, loss = fnn.graph(inputs={"p": 3}, layers=layers), fnn.losses.sum_square_error()
    params = {
        named(m): {"weights": {named(j): jnp.asarray(weights[m, j]) for j in sources}, "bias": jnp.asarray(biases[m])}
        for m, sources in READS.items()
    }
    swept = jax.jit(lambda params: fnn.backpropagate(network, loss, params, p, t, input_gradients=True))(params)
    theirs = jax.jit(jax.grad(fnn.objective(network, loss)))(params, p, t)
    return [
        *(Row(7, f"s{m}", s[m], swept.sensitivities[named(m)], "backpropagate") for m in READS),
        Row(7, "dF/dp", dp, swept.input_gradients["p"], "backpropagate"),
        Row(7, "backpropagate's dF/dparams", flat(swept.gradients), flat(theirs)),
        Row(7, "fnn.compare agrees", fnn.compare(network, loss, params, p, t).verdict == "agree", True, "its bound"),
    ]


def named(letter):
    return letter if letter == "p" else f"layer{letter}"


# The table ------------------------------------------------------------------------------------------------------------

SECTIONS = (one_linear_neuron, one_layer, two_layers, any_loss, a_batch, a_graph, in_functional_nn)


def shown(values) -> str:
    """Up to four numbers, or how many there are and their norm."""
    values = np.ravel(values)
    if values.dtype == bool:
        return "yes" if values.all() else "no"
    if values.size > 4:
        return f"{values.size} numbers, norm {np.linalg.norm(values):.6g}"
    return " ".join(f"{value:.6g}" for value in values)


def draw():
    """Section 1: the steps on the contours, and F against them, below, near and at the stable rate."""
    x, y = np.linspace(-3.2, 1.2, 121), np.linspace(-3.2, 1.2, 121)
    F = np.array([[squared_errors(np.array([i, j])) for i in x] for j in y])
    with plt.rc_context(STYLE):
        figure, (plane, course) = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
        plane.contour(x, y, F, levels=F.max() * np.linspace(0.05, 1, 12) ** 2, colors="0.75", linewidths=0.7)
        for rate, color in ((0.01, "#0072B2"), (0.09, "#009E73"), (0.1, "#D55E00")):
            points = descent(rate)
            plane.plot(*points[:25].T, "-o", color=color, ms=2.5, lw=1)
            course.semilogy([squared_errors(x) for x in points], color=color, label=f"rate {rate:g}")
        plane.set(xlabel="$w_{1,1}$", ylabel="$w_{1,2}$", aspect="equal", title="steepest descent on F")
        course.set(xlabel="step", ylabel="F", title="at 2 / 20 = 0.1 it converges no more")
        course.legend()
    return figure


def main() -> None:
    options = experiments.arguments(__doc__, "results/tutorial")
    rows = []
    for number, section in enumerate(SECTIONS, 1):
        found = section()
        title, agreeing = f"{number}. {section.__name__.replace('_', ' ')}", sum(row.agrees for row in found)
        farthest = max(found, key=lambda row: row.difference / row.allowed)
        print(f"{title:25s} {agreeing} of {len(found)} agree; farthest, {farthest.difference:.1e}: {farthest.quantity}")
        rows += found
    table = [
        {
            "section": row.section,
            "quantity": row.quantity,
            "by hand": shown(row.by_hand),
            "beside it": shown(row.other),
            "whose": row.whose,
            "difference": row.difference,
            "allowed": row.allowed,
            "agrees": "yes" if row.agrees else "NO",
        }
        for row in rows
    ]
    experiments.write(options.out, table, draw(), "difference: the largest of one element; allowed: see ROUNDING.")
    if not all(row.agrees for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
