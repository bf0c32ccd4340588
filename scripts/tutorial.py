#!/usr/bin/env python
"""Backpropagation built from gates of two numbers to a graph, in plain NumPy: to be read from top to bottom, and run.

    python scripts/tutorial.py --out results/tutorial

Each section adds one idea, and ends with numbers computed by hand, each next to one that a source text prints (named by
its equation or author), one that no text prints ("recomputed"), or `jax.grad`'s. The last section finds the same
numbers in functional_nn. The exit status is 1 if any two differ by more than rounding explains.

Letters: Q examples, R inputs, S neurons; p an input, n = W p + b a net input, a = f(n) an output, t a target, F the
performance function, s = dF/dn a sensitivity. Weights are (S, R). Equation numbers are Hagan's, chapter 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.palette import BLUE, GREEN, VERMILION
from functional_nn.lab.plots import STYLE, plt

# Fewer than 128 roundings lie between the data and any number below, and no number on the way is larger than 64 (except
# the 800 of section 5, where nothing is rounded). Each may move it by half a unit in the last place, on both sides.
ROUNDING = 2 * 128 * 64 * 2.0**-53


class Row(NamedTuple):
    """A quantity by hand, the same from another source, and the difference that is allowed: half a unit of the last
    digit where the other is a number as printed, or as recomputed once.
    """

    section: int
    quantity: str
    by_hand: np.ndarray
    other: np.ndarray
    whose: str = "jax.grad"
    allowed: float = ROUNDING

    @property
    def difference(self) -> float:
        """The largest difference of an element; infinite where the shapes differ."""
        ours, other = np.asarray(self.by_hand, float), np.asarray(self.other, float)
        return float(np.max(np.abs(ours - other))) if ours.shape == other.shape else float("inf")

    @property
    def agrees(self) -> bool:
        return self.difference <= self.allowed


# 1. Gates -------------------------------------------------------------------------------------------------------------
#
# Back-propagation "can be applied to any function" (Lecture 2). A gate computes one small thing, and need not know what
# it is part of. Forward, it reads numbers from wires and writes others. Backward, it is given the derivatives of the
# last number, the loss, with respect to what it wrote, and returns those with respect to what it read. Every wire is
# written by one gate and read by one. A number that is needed twice goes through a copy gate. It then reaches the loss
# on both ways, so that backward a copy adds.


class Gate:
    def __init__(self, reads: str, writes: str):
        self.reads, self.writes = reads.split(), writes.split()  # names of wires


class Add(Gate):
    def forward(self, x, y):
        return (x + y,)

    def backward(self, g):
        return g, g


class Multiply(Gate):
    def forward(self, x, y):
        self.x, self.y = x, y
        return (x * y,)

    def backward(self, g):
        return g * self.y, g * self.x


class Max(Gate):
    def forward(self, x, y):
        self.first = x > y
        return (max(x, y),)

    def backward(self, g):
        return (g, 0.0) if self.first else (0.0, g)  # the smaller one has no effect; if equal, the second


class Copy(Gate):
    def forward(self, x):
        return (x,) * len(self.writes)

    def backward(self, *g):
        return (sum(g),)


class ComputationalGraph:
    """Lecture 2's class. gates: in any order. inputs: names of wires. The wire called "loss" is the last."""

    def __init__(self, gates, inputs):
        self.gates, self.inputs = gates, inputs

    def nodes_topologically_sorted(self):
        known, waiting, order = set(self.inputs), list(self.gates), []
        while waiting:
            ready = [gate for gate in waiting if known.issuperset(gate.reads)]
            if not ready:
                raise ValueError(f"wires {waiting[0].reads} are written by no gate, or by one that waits for them")
            order += ready
            known.update(wire for gate in ready for wire in gate.writes)
            waiting = [gate for gate in waiting if gate not in ready]
        return order

    def forward(self, inputs):
        wires = dict(inputs)
        for gate in self.nodes_topologically_sorted():
            wires.update(zip(gate.writes, gate.forward(*(wires[wire] for wire in gate.reads)), strict=True))
        return wires["loss"]

    def backward(self):
        g = {"loss": 1.0}  # dF/d of every wire reached so far
        for gate in reversed(self.nodes_topologically_sorted()):
            g.update(zip(gate.reads, gate.backward(*(g[wire] for wire in gate.writes)), strict=True))
        return {name: g[name] for name in self.inputs}


# Any function of the four: (x y + z) max(x, y z) + max(z, y). The gates may be written down in any order.

ANY_FUNCTION = (
    Add("product larger", "loss"),
    Multiply("sum which", "product"),
    Add("xy z1", "sum"),
    Multiply("x1 y1", "xy"),
    Max("x2 yz", "which"),
    Multiply("y2 z2", "yz"),
    Max("z3 y3", "larger"),
    Copy("x", "x1 x2"),
    Copy("y", "y1 y2 y3"),
    Copy("z", "z1 z2 z3"),
)


def relu_layer(S, R):
    """Returns the gates of a layer a = max(W p + b, 0) and of F = |t - a|^2, which copies p to the S neurons."""
    gates, total = [Copy(f"p{j}", " ".join(f"p{j}to{i}" for i in range(S))) for j in range(R)], f"zero{S}"
    for i in range(S):
        n = f"b{i}"
        for j in range(R):
            gates += [Multiply(f"w{i}{j} p{j}to{i}", f"wp{i}{j}"), Add(f"{n} wp{i}{j}", f"n{i}{j}")]
            n = f"n{i}{j}"
        gates += [Max(f"{n} zero{i}", f"a{i}"), Add(f"a{i} -t{i}", f"e{i}"), Copy(f"e{i}", f"e{i}again e{i}once")]
        gates += [Multiply(f"e{i}once e{i}again", f"ee{i}"), Add(f"{total} ee{i}", "loss" if i == S - 1 else f"F{i}")]
        total = f"F{i}"
    return gates


def a_network_of_gates() -> list[Row]:
    graph, rows = ComputationalGraph(ANY_FUNCTION, ("x", "y", "z")), []

    def f(x, y, z):
        return (x * y + z) * jnp.maximum(x, y * z) + jnp.maximum(z, y)

    for place in ((2.0, -1.5, 0.5), (-0.5, 1.0, 3.0)):  # where the max gates decide differently
        F, g = graph.forward(dict(zip("xyz", place, strict=True))), graph.backward()
        rows.append(Row(1, f"F at {place}", F, f(*place), "jax.numpy"))
        rows.append(Row(1, "dF/d(x, y, z) there", [g[name] for name in "xyz"], jax.grad(f, (0, 1, 2))(*place)))

    W, b = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]]), np.array([0.1, -0.2, 0.3])  # (S, R) = (3, 2), (S,)
    p, t = np.array([1.5, -0.5]), np.array([1.0, 0.5, -1.0])
    inputs = {f"w{i}{j}": W[i, j] for i, j in np.ndindex(W.shape)}
    for name, values in (("b", b), ("p", p), ("-t", -t), ("zero", np.zeros(len(b) + 1))):
        inputs |= {f"{name}{i}": value for i, value in enumerate(values)}
    layer = ComputationalGraph(relu_layer(*W.shape), tuple(inputs))
    F, g = layer.forward(inputs), layer.backward()
    dW = np.array([g[f"w{i}{j}"] for i, j in np.ndindex(W.shape)]).reshape(W.shape)
    db, dp = (np.array([g[f"{name}{i}"] for i in range(size)]) for name, size in (("b", 3), ("p", 2)))

    # All these gates at once, as in every section below: s = dF/dn (S,) is the derivative with respect to each sum.
    n = W @ p + b
    s = (n > 0) * 2 * (np.maximum(n, 0) - t)

    def squares(W, b, p):
        return jnp.sum((t - jax.nn.relu(W @ p + b)) ** 2)

    theirs = jax.grad(squares, argnums=(0, 1, 2))(W, b, p)
    return [
        *rows,
        Row(1, f"F of a layer of {len(layer.gates)} gates", F, squares(W, b, p), "jax.numpy"),
        Row(1, "dF/dW = s p'", dW, np.outer(s, p), "the layer"),
        Row(1, "dF/dp, which copies add up = W' s", dp, W.T @ s, "the layer"),
        Row(1, "dF/d(W, b, p)", flat([dW, db, dp]), flat(theirs)),
    ]


# 2. One linear neuron -------------------------------------------------------------------------------------------------
#
# Two weights x (R,), no bias: a = P x, with one row of P (Q, R) for each example. F is the sum of squared errors. It is
# a quadratic in x, so that its gradient and its whole landscape can be written down without any chain rule.

P = np.array([[-1.0, 2.0], [2.0, -1.0], [0.0, -1.0], [-1.0, 0.0]])  # Eq. 3.15, Q = 4, R = 2
T = np.array([-1.0, -1.0, 1.0, 1.0])
START = np.array([-1.0, -2.95])


def squared_errors(x):
    return ((T - P @ x) ** 2).sum()  # F, Eq. 3.17


def gradient(x):
    errors = T - P @ x  # (Q,)
    return -2 * P.T @ errors  # (R,): dF/dx = sum_q 2 e_q de_q/dx, and de_q/dx = -p_q


def descent(rate, steps=100):
    """Returns the points (steps + 1, R) of x <- x - rate dF/dx (Eq. 3.14)."""
    points = [START]
    for _ in range(steps):
        points.append(points[-1] - rate * gradient(points[-1]))
    return np.array(points)


def one_linear_neuron() -> list[Row]:
    A, d = 2 * P.T @ P, -2 * P.T @ T  # F = c + d'x + x'Ax/2, Eq. 3.21
    eigenvalues = np.linalg.eigvalsh(A)
    small, limit = descent(0.01), descent(2 / eigenvalues[-1])
    return [
        Row(2, "A", A, [[12, -8], [-8, 12]], "Eq. 3.23"),
        Row(2, "dF/dx at (-1, -2.95) is A x + d", gradient(START), A @ START + d, "Eq. 3.22"),
        Row(2, "dF/dx at (-1, -2.95)", gradient(START), jax.grad(squared_errors)(START)),
        Row(2, "stable rate, 2 / largest eigenvalue", 2 / eigenvalues[-1], 0.1, "2 / 20"),
        Row(2, "x after 100 steps at 0.01", small[-1], [-1.0164, -1.0164], "recomputed", 0.5e-4),
        Row(2, "F there", squared_errors(small[-1]), 0.00108, "recomputed", 0.5e-5),
        Row(2, "F after 100 steps at 0.1", squared_errors(limit[-1]), 19.0125, "recomputed", 0.5e-4),
    ]


# 3. A transfer function -----------------------------------------------------------------------------------------------
#
# One layer of S neurons, one example. The chain rule through a = f(n) and n = W p + b stops at n, and the derivative
# there has a name: s = dF/dn, the sensitivity (Eq. 3.38). Everything else follows from it, since n is linear in W and
# b.


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
    return [Row(3, "dF/dW = s p'", dW, theirs[0]), Row(3, "dF/db = s", db, theirs[1])]


# 4. Two layers --------------------------------------------------------------------------------------------------------
#
# The first layer's outputs reach F only through the second's net inputs, n2 = W2 a1 + b2. So dF/da1 = W2' s2 (Eq.
# 3.47), and a1 = f(n1) is section 3 again. That is the whole recursion, s1 = F'(n1) W2' s2 (Eq. 3.49). The example is
# Kordecki's: 3-2-2, logistic, one bias shared by the neurons of a layer, whose gradient is their sum.


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
    after = forward(W1 - rate * dW1, b1 - rate * db1, W2 - rate * dW2, b2 - rate * db2)[-1]  # all parameters at once

    printed, recomputed = ("Kordecki", 0.5e-4), ("recomputed", 0.5e-6)  # he prints four digits
    y, of_y = np.round(a2, 4), np.round(a2, 4) - t  # he continues with these, which changes two of his last digits
    return [
        Row(4, "a1", a1, [0.9866, 0.9950], *printed),
        Row(4, "n2", W2 @ a1 + b2, [2.0862, 1.3888], *printed),
        Row(4, "a2", a2, [0.8896, 0.8004], *printed),
        Row(4, "F of a2 to four digits", (of_y**2).sum() / 2, 0.5933, *printed),
        Row(4, "F", F, 0.593245, *recomputed),
        Row(4, "dF/dW2, as he writes it", dW2.T, [[0.0765, 0.1183], [0.0772, 0.1193]], *printed),
        Row(4, "dF/db2 of a2 to four digits", (y * (1 - y) * of_y).sum(), 0.1974, *printed),
        Row(4, "dF/db2", db2, 0.197457, *recomputed),
        Row(4, "dF/da1", g1, [0.1502, 0.0818], *printed),
        Row(4, "dF/dW1", dW1.T, [[0.0020, 0.0004], [0.0079, 0.0016], [0.0099, 0.0020]], *printed),
        Row(4, "dF/db1, which he has as 0.0008", db1, 0.002388, *recomputed),
        Row(4, "w21 of layer 2 after a step", (W2 - rate * dW2)[0, 1], 0.8992, *printed),
        Row(4, "b2 after a step", b2 - rate * db2, 0.4980, *printed),
        Row(4, "F after a step", after, 0.592452, *recomputed),
    ]


# 4, continued: two linear layers are one ------------------------------------------------------------------------------
#
# Why a transfer function at all? Without one, n2 = W2 (W1 p + b1) + b2 = (W2 W1) p + (W2 b1 + b2): one linear layer,
# and so on for any number (CSE 475, 17.60.1; Lecture 2; Kordecki). The matrix that acts first is on the right. CSE 475
# prints W''' = W' W'', the other way round: another map, or none, if the shapes do not fit. (With examples as rows and
# weights (R, S), as in Kordecki, it is right.) The gradients of both layers follow from the single layer's, G = s p'.


def two_linear_layers() -> list[Row]:
    draw = np.random.default_rng(3)
    W1, W2, b1, b2 = (draw.normal(size=size) for size in ((4, 3), (2, 4), 4, 2))
    p, t = np.array([1.0, -2.0, 0.5]), np.array([1.0, 0.0])
    W, b = W2 @ W1, W2 @ b1 + b2  # (2, 3), (2,)
    s = 2 * (W @ p + b - t)  # of F = |t - n2|^2
    G = np.outer(s, p)

    def F(W1, W2):
        return jnp.sum((t - (W2 @ (W1 @ p + b1) + b2)) ** 2)

    def bent(f):
        """Returns how far W2 f(W1 u + b1) + b2 is from the nearest linear layer, at 50 inputs u."""
        u = np.append(draw.normal(size=(50, 3)), np.ones((50, 1)), axis=1)  # the bias reads a 1
        n2 = f(u[:, :3] @ W1.T + b1) @ W2.T + b2
        return np.abs(n2 - u @ np.linalg.lstsq(u, n2, rcond=None)[0]).max()

    theirs = jax.grad(F, argnums=(0, 1))(W1, W2)
    nearest = bent(np.copy) < ROUNDING < 0.1 < bent(np.tanh)
    first, second = np.array([[1, 2], [0, 1]]), np.array([[0, 1], [1, 0]])
    one_by_one = np.array([second @ (first @ unit) for unit in np.eye(2)]).T
    return [
        Row(4, "one layer, (W2 W1) p + (W2 b1 + b2)", W @ p + b, W2 @ (W1 @ p + b1) + b2, "two layers"),
        Row(4, "W2 W1, if W1 = 1 2 0 1, W2 = 0 1 1 0", second @ first, one_by_one, "two layers"),
        Row(4, "W1 W2, as printed: another map", first @ second, [[2, 1], [1, 0]], "recomputed"),
        Row(4, "of 3 inputs, 4 and 2 neurons it does not fit", W1.shape[1] != W2.shape[0], True, "shapes"),
        Row(4, "dF/dW1 = W2' G", W2.T @ G, theirs[0]),
        Row(4, "dF/dW2 = G W1' + s b1'", G @ W1.T + np.outer(s, b1), theirs[1]),
        Row(4, "no linear layer is as near with tanh between", nearest, True, "a linear fit"),
    ]


# 5. Any loss ----------------------------------------------------------------------------------------------------------
#
# Only the start of the recursion depends on the loss. With softmax, every net input moves every output: F'(n) is a
# matrix, not a row of slopes. With cross-entropy F = -sum t ln a, it cancels against dF/da = -t / a (E3.6), which
# leaves s = a - t (E3.5). That is shorter, and it is right where a is 0 to the last bit and the long way computes 0 /
# 0.


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
        Row(5, "s by the matrix F'(n)", long_way(ordinary), jax.grad(F)(ordinary)),
        Row(5, "s = a - t", fused(ordinary), jax.grad(F)(ordinary)),
        Row(5, "s = a - t where a underflows", fused(sure), jax.grad(F)(sure)),
        Row(5, "the long way is lost there", np.isnan(long_way(sure)).all(), True, "0 / 0"),
    ]


# 5, continued: where losses come from ---------------------------------------------------------------------------------
#
# Let the outputs say how the targets are distributed, and choose the weights under which the given targets are most
# likely. With softmax outputs, class i has probability a_i (Eq. 3.6). The probability of all targets, collected
# independently, is a product in which a one-hot t selects the factor: prod_q prod_i a_iq^t_iq (Eq. 3.8). Minus its
# logarithm is cross-entropy (Eq. 3.9). It is lowest where the product is highest; it is a sum, of which each example
# has its own gradient; and no number in it is too small for the machine. One sigmoid output, Bernoulli, gives binary
# cross-entropy (P3.1); a Normal of variance 1/2 around a linear output gives the sum of squared errors. `fnn.losses`
# has it for each loss: `loss.likelihood`.

POINTS = np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])  # Q = 6, R = 1
CLASSES = np.eye(2)[[0, 0, 1, 0, 1, 1]]  # they overlap: no weights separate them


def probabilities(x):
    """Returns the outputs of a softmax layer of two neurons (Q, 2). x = (w, b) of the first; the second's are 0."""
    return np.array([softmax(np.array([n, 0.0])) for n in x[0] * POINTS + x[1]])


def product(x):
    return np.prod(probabilities(x) ** CLASSES)  # Eq. 3.8


def cross_entropy(x):
    return -np.sum(CLASSES * np.log(probabilities(x)))  # Eq. 3.9


def normal_product(x):
    return np.prod(np.exp(-((T - P @ x) ** 2)) / np.sqrt(np.pi))  # for section 2's targets, each with variance 1/2


def highest(likelihood):
    """Finds where it is highest, without logarithm or derivative: the best of a grid, then of a finer one,
    and so on.
    """
    best, reach = np.zeros(2), 4.0
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 7)] * 2), axis=-1).reshape(-1, 2)
    while reach > 1e-8:
        places = best + reach * grid
        best, reach = places[np.argmax([likelihood(x) for x in places])], reach / 2
    return best


def lowest():
    """Finds where cross-entropy is lowest, by gradient descent along s = a - t of the first neuron."""
    x = np.zeros(2)
    for _ in range(600):
        s = (probabilities(x) - CLASSES)[:, 0]
        x = x - 0.4 * np.array([s @ POINTS, s.sum()])
    return x


def likelihood_to_loss() -> list[Row]:
    x, flatness = np.array([-1.0, 0.5]), 1e-6  # a product is flat where it is highest: about the root of a rounding
    a, t = probabilities(x), CLASSES
    binary = -np.sum(t[:, 0] * np.log(a[:, 0]) + (1 - t[:, 0]) * np.log(1 - a[:, 0]))
    library = fnn.losses.cross_entropy().likelihood.log(jnp.asarray(a), jnp.asarray(t))
    best, least = highest(product), lowest()
    half, summed = np.full(1100, 0.5), 1100 * 1024 * 2.0**-53  # as many roundings of sums below 1024
    regression = np.array([-0.5, -0.5])
    densities, errors = normal_product(regression), squared_errors(regression)
    return [
        Row(5, "prod a^t at w = -1, b = 0.5", product(x), np.exp(-cross_entropy(x)), "exp(-F)"),
        Row(5, "one sigmoid output: the same", product(x), np.exp(-binary), "exp(-F)"),
        Row(5, "its logarithm", np.log(product(x)), library.sum(), "fnn.losses"),
        Row(5, "w, b where the product is highest", best, least, "F lowest", flatness),
        Row(5, "the highest product", product(best), np.exp(-cross_entropy(least)), "exp(-F)"),
        Row(5, "Normal: the product at (-0.5, -0.5)", densities, np.exp(-errors) / np.pi**2, "exp(-F) / pi^2"),
        Row(5, "x where it is highest", highest(normal_product), [-1, -1], "F lowest", flatness),
        Row(5, "1100 factors 1/2", np.prod(half), 0, "underflow"),
        Row(5, "minus the sum of their logarithms", -np.log(half).sum(), 1100 * np.log(2), "1100 ln 2", summed),
    ]


# 6. A batch -----------------------------------------------------------------------------------------------------------
#
# Examples become rows: a (Q, S), n = a W' + b. The recursion does not mix them, so s has a row for each. Only the last
# contraction mixes them: with the sum over q it gives the gradient of their sum, without it each example's own. The
# norm of an outer product is the product of the norms, so that |dF_q/dW| = |s_q| |a_q| needs no (Q, S, R) array.


def batch_forward(params, p):
    outputs = [p]  # (Q, R), then (Q, S) of each layer
    for W, b in params[:-1]:
        outputs.append(np.tanh(outputs[-1] @ W.T + b))
    W, b = params[-1]
    return outputs, outputs[-1] @ W.T + b  # the last layer's net inputs


def batch_sensitivities(params, outputs, s):
    s_by_layer = [s]  # from the last layer back; s (Q, S)
    for (W, _), a in zip(params[:0:-1], outputs[:0:-1], strict=True):
        s_by_layer.append((1 - a**2) * (s_by_layer[-1] @ W))  # Eq. 3.49, transposed: a row for each example
    return s_by_layer[::-1]


def a_batch() -> list[Row]:
    draw = np.random.default_rng(0)
    sizes, Q = (3, 4, 5, 2), 6
    params = [(draw.normal(size=(S, R)) / 2, draw.normal(size=S) / 2) for R, S in zip(sizes, sizes[1:], strict=False)]
    p, t = draw.normal(size=(Q, 3)), np.eye(2)[draw.integers(0, 2, Q)]

    outputs, n = batch_forward(params, p)
    s = batch_sensitivities(params, outputs, np.apply_along_axis(softmax, 1, n) - t)
    pairs = list(zip(s, outputs, strict=True))
    summed = [(np.einsum("qs,qr->sr", s, a), s.sum(axis=0)) for s, a in pairs]
    per_example = [(np.einsum("qs,qr->qsr", s, a), s) for s, a in pairs]  # one letter more
    squares = sum((s**2).sum(axis=1) * ((a**2).sum(axis=1) + 1) for s, a in pairs)  # + 1: the bias reads a 1

    def F(params, p, t):
        for W, b in params[:-1]:
            p = jnp.tanh(p @ W.T + b)
        W, b = params[-1]
        return -jnp.sum(t * jax.nn.log_softmax(p @ W.T + b))

    theirs = jax.jit(jax.grad(F))(params, p, t)
    theirs_per_example = jax.jit(jax.vmap(jax.grad(F), in_axes=(None, 0, 0)))(params, p, t)
    norms = np.sqrt(sum((leaf**2).reshape(Q, -1).sum(axis=1) for leaf in jax.tree.leaves(theirs_per_example)))
    return [
        Row(6, "dF/dparams of the batch", flat(summed), flat(theirs)),
        Row(6, "of each example", flat(per_example), flat(theirs_per_example), "vmap(jax.grad)"),
        Row(6, "their norms, never formed", np.sqrt(squares), norms, "vmap(jax.grad)"),
    ]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# 7. A graph -----------------------------------------------------------------------------------------------------------
#
# A layer may read several others: n2 = W3 p + W2 a1 + b2 (P3.2). Each term of the sum is as before, so that each block
# of weights has the same s with what it reads, dF/dW3 = s2 p'. And a layer may be read by several (E3.4): F then
# depends on a1 in every way, and g1 = dF/da1 is the sum over its readers of W' s. A chain is the case of one reader
# each. E3.4's figure is missing from the text. This graph has both: 1 is read by 2 and 3, and 3 and 4 read two each.
# Layer 4 is linear, the others are tanh; F = sum |t - a4|^2.

READS = {"1": ("p",), "2": ("1",), "3": ("1", "p"), "4": ("2", "3")}  # in topological order
SIZES = {"p": 3, "1": 4, "2": 2, "3": 5, "4": 2}


def graph_forward(weights, biases, p, tanh=np.tanh):
    outputs = {"p": p}
    for layer, sources in READS.items():
        n = sum(outputs[source] @ weights[layer, source].T for source in sources) + biases[layer]  # (Q, S), P3.2
        outputs[layer] = n if layer == "4" else tanh(n)
    return outputs


def graph_sensitivities(weights, outputs, t):
    g, s = {"4": 2 * (outputs["4"] - t)}, {}  # dF/da (Q, S) of each layer, from the readers so far
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
        Row(7, "dF/dW by layer and source", flat(dW), flat(theirs[0])),
        Row(7, "dF/dW(3, p) = s3' p", dW["3", "p"], theirs[0]["3", "p"]),
        Row(7, "dF/db", flat(db), flat(theirs[1])),
        Row(7, "dF/dp, read by 1 and 3", dp, theirs[2]),
    ]


# 7, continued: the same in functional_nn ------------------------------------------------------------------------------
#
# functional_nn/gradients/backprop.py is such a graph with every activation and loss; section 6's contractions are in
# quantities.py. `compare` does what this script does, with a bound for the roundings of each program.


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

SECTIONS = (
    a_network_of_gates,
    one_linear_neuron,
    one_layer,
    two_layers,
    two_linear_layers,
    any_loss,
    likelihood_to_loss,
    a_batch,
    a_graph,
    in_functional_nn,
)


def shown(values) -> str:
    """Writes up to four numbers, or their count and their norm."""
    values = np.ravel(values)
    if values.dtype == bool:
        return "yes" if values.all() else "no"
    if values.size > 4:
        return f"{values.size} numbers, norm {np.linalg.norm(values):.6g}"
    return " ".join(f"{value:.6g}" for value in values)


def draw():
    """Draws section 2: steps on the contours, and F at three rates; and section 5: product and loss by w."""
    x, y = np.linspace(-3.2, 1.2, 121), np.linspace(-3.2, 1.2, 121)
    F = np.array([[squared_errors(np.array([i, j])) for i in x] for j in y])
    with plt.rc_context(STYLE):
        figure, (plane, course, fit) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
        plane.contour(x, y, F, levels=F.max() * np.linspace(0.05, 1, 12) ** 2, colors="0.75", linewidths=0.7)
        for rate, color in ((0.01, BLUE), (0.09, GREEN), (0.1, VERMILION)):
            points = descent(rate)
            plane.plot(*points[:25].T, "-o", color=color, ms=2.5, lw=1)
            course.semilogy([squared_errors(x) for x in points], color=color, label=f"rate {rate:g}")
        plane.set(xlabel="$w_{1,1}$", ylabel="$w_{1,2}$", aspect="equal", title="steepest descent on F")
        course.set(xlabel="step", ylabel="F", title="at 2 / 20 = 0.1 it no longer converges")
        course.legend()
        w, b = lowest()
        line = np.linspace(w - 3, w + 3, 121)
        for of, color in ((product, BLUE), (cross_entropy, VERMILION)):
            values = np.array([of((i, b)) for i in line])
            fit.plot(line, values / values.max(), color=color, label=of.__name__.replace("_", "-"))
        fit.axvline(w, color="0.6", lw=0.8, ls=":")
        fit.set(xlabel="w", ylabel="divided by its largest", title="prod a^t and -ln of it, at the best b")
        fit.legend()
    return figure


def main() -> None:
    experiments.start(x64=True)
    options = experiments.arguments(__doc__, "results/tutorial")
    rows = []
    for section in SECTIONS:
        found = section()
        title, agreeing = f"{found[0].section}. {section.__name__.replace('_', ' ')}", sum(row.agrees for row in found)
        farthest = max(found, key=lambda row: row.difference / row.allowed)
        print(f"{title:25s} {agreeing} of {len(found)} agree; farthest, {farthest.difference:.1e}: {farthest.quantity}")
        rows += found
    table = [
        {
            "section": row.section,
            "quantity": row.quantity,
            "by hand": shown(row.by_hand),
            "expected": shown(row.other),
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
