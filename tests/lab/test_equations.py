"""The equations are what the library computes: they are parsed, evaluated and compared with it, number by number."""

import inspect
import re
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import functional_nn as fnn
from functional_nn.lab import equations
from functional_nn.lab.equations import By
from functional_nn.optimizers import first_order, second_order

HOSTILE = [
    r"\text{<script>alert(1)</script>}",
    r"\text{<img src=x onerror=alert(1)>}",
    "\\text{<mi\nonclick='x'>a</mi>}",
    r"\href{javascript:alert(1)}{a}",
    "\\text{<mtext\nstyle='color:red'/>}",
    r"\text{</math>}",
    r"a & b",
    "",
    r"\begin{aligned} a &= b \end{aligned}",
]
ENDS = ("", "+", "-", ")", "]", "}", ",", "&", "=", ">", "<", r"\le", r"\ge", r"\\", r"\end", "|", r"\quad")


# Reading LaTeX --------------------------------------------------------------------------------------------------------

TOKEN = re.compile(r"\\[A-Za-z]+|\\\\|\\[,{}]|\d+(?:\.\d+)?|\S")
SPACES = (r"\,", r"\left", r"\right")
FUNCTIONS = {
    r"\ln": np.log,
    r"\tanh": np.tanh,
    "sign": np.sign,
    r"\Phi": norm.cdf,
    r"\varphi": norm.pdf,
    r"\sigmoid": lambda n: 1 / (1 + np.exp(-n)),
}


class Reader:
    """Works out an expression: letters and their subscripts are names in `known`; side by side is times."""

    def __init__(self, latex, known):
        self.tokens, self.known = [t for t in TOKEN.findall(latex) if t not in SPACES], known

    @property
    def next(self):
        return self.tokens[0] if self.tokens else ""

    def take(self, expected=None):
        token = self.tokens.pop(0)
        assert expected in (None, token), f"expected {expected}, read {token}"
        return token

    def sum(self):
        negative = self.next == "-" and self.take()
        total = -self.product() if negative else self.product()
        while self.next in ("+", "-"):
            total = total + self.product() if self.take() == "+" else total - self.product()
        return total

    def product(self):
        total = self.power()
        while self.next not in ENDS:
            if self.next == r"\cdot":
                self.take()
            total = total * self.power()
        return total

    def group(self):
        if self.next != "{":
            return Reader(self.take(), self.known).sum()
        self.take()
        value = self.sum()
        self.take("}")
        return value

    def raw(self):
        """What stands in braces, or the one token, as it is written."""
        if self.next != "{":
            return self.take()
        text, depth = "", 0
        while True:
            token = self.take()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return text
            text += token if token != "{" or text else ""

    def power(self):
        value = self.base()
        if self.next == "^":
            self.take()
            value = value ** self.group()
        return value

    def base(self):
        token = self.take()
        if token[0].isdigit():
            return float(token)
        if token in ("(", "[", "|"):
            value = self.sum()
            self.take({"(": ")", "[": "]", "|": "|"}[token])
            return np.abs(value) if token == "|" else value
        if token == r"\frac":
            return self.group() / self.group()
        if token == r"\sqrt":
            return np.sqrt(self.group())
        if token == r"\max":
            self.take("(")
            one = self.sum()
            self.take(",")
            value = np.maximum(one, self.sum())
            self.take(")")
            return value
        if token == r"\sum":
            self.take("_"), self.raw()
            return np.sum(self.product(), axis=-1, keepdims=True)
        if token in FUNCTIONS:
            return FUNCTIONS[token](self.power())
        if token == r"\begin":
            return self.cases()
        name = token
        if token in (r"\hat", r"\text"):
            name = ("hat " if token == r"\hat" else "") + self.raw()
        if token == r"\Delta":
            name += " " + self.take()
        if self.next == "_":
            self.take()
            name += "_" + self.raw()
        return self.known[name]

    def cases(self):
        assert self.raw() == "cases"
        value = None
        while self.next != r"\end":
            one = self.sum()
            self.take("&")
            left, sign, right = self.sum(), self.take(), self.sum()
            holds = {">": np.greater, "<": np.less, r"\le": np.less_equal, r"\ge": np.greater_equal}[sign](left, right)
            value = np.where(holds, one, np.nan if value is None else value)
            if self.next == r"\\":
                self.take()
        self.take(), self.raw()
        return value


def work_out(lines, known):
    """Every `left = ... = right` in turn, each with those before known; what stands on the left by its name."""
    for line in lines:
        for equation in line.split(r", \quad "):
            *left, right = equation.split(" = ")
            value = Reader(right, known).sum()
            for name in left:
                known[name_of(name)] = value
    return known


def name_of(latex):
    return latex.replace("{k-1}", "k-1").replace("{k+1}", "k+1").replace(r"\hat{", "hat ").replace("}_", "_").strip()


def lines_of(name, **options):
    for part in equations.OPTIMIZERS[name]:
        yield from part.forms[options.get(part.option, next(iter(part.forms)))] if isinstance(part, By) else (part,)


# Optimizers -----------------------------------------------------------------------------------------------------------

LETTERS = {
    r"\alpha": "learning_rate",
    r"\gamma": "decay",
    r"\beta_1": "b1",
    r"\beta_2": "b2",
    r"\epsilon": "epsilon",
    r"\lambda": "weight_decay",
}
RULES = [
    ("gd", {}),
    ("momentum", {}),
    ("nesterov", {}),
    ("adagrad", {}),
    ("adadelta", {}),
    ("rmsprop", {}),
    ("rmsprop", {"centered": True}),
    ("adam", {}),
    ("adam", {"order": "efficient"}),
    ("adamax", {}),
    ("amsgrad", {}),
    ("amsgrad", {"bias_correction": False}),
    ("nadam", {}),
    ("adamw", {}),
]


@pytest.mark.parametrize(("name", "options"), RULES, ids=lambda one: one if isinstance(one, str) else str(list(one)))
def test_first_order_rules_are_the_updates(name, options):
    """Five updates by the page's own equations equal the optimizer's."""
    row = (
        first_order.factory(name)(epsilon=0.1, **options)
        if name not in ("gd", "momentum", "nesterov")
        else (fnn.optimizers.get(name))
    )
    known = {letter: row.constants[constant] for letter, constant in LETTERS.items() if constant in row.constants}
    x, draw = np.array([1.0, -2.0, 0.5]), np.random.default_rng(0)
    state = row.init(jnp.asarray(x))
    before = {}
    for k in range(1, 6):
        g = draw.normal(size=3)
        state = row.update(state, jnp.asarray(g))
        zeros = {f"{letter}_k-1": 0.0 for letter in (r"\Delta x", "v", "G", "R", "D", "m", "u")}
        found = work_out(lines_of(name, **options), known | zeros | before | {"k": float(k), "x_k": x, "g_k": g})
        x = found["x_k+1"]
        np.testing.assert_allclose(state.params, x, rtol=1e-9, err_msg=f"update {k}")
        before = {letter.replace("_k", "_k-1"): value for letter, value in found.items() if letter.endswith("_k")}


def test_the_two_forms_of_nesterov_are_shown_as_they_are_computed():
    """Where it looks ahead, the gradient is that of x^2 / 2 at the point that the optimizer asks for."""
    row = fnn.optimizers.nesterov(form="look_ahead")
    state, x, v = row.init(jnp.asarray([1.0])), 1.0, 0.0
    for _ in range(4):
        ahead = row.point(state)
        state = row.update(state, ahead)
        first, second = lines_of("nesterov", form="look_ahead")
        assert r"g(x_k + \gamma v_{k-1})" in first
        known = {"x_k": x, "v_k-1": v, r"\gamma": 0.9, r"\alpha": 0.1, "g_k": x + 0.9 * v}
        found = work_out([first.replace(r"g(x_k + \gamma v_{k-1})", "g_k"), second], known)
        x, v = found["x_k+1"], found["v_k"]
        np.testing.assert_allclose(state.params, [x], rtol=1e-9)


def test_every_optimizer_has_its_rule_and_every_rule_its_optimizer():
    assert set(equations.OPTIMIZERS) == {*fnn.optimizers.names(), *second_order.names()}
    assert set(equations.LOSSES) == set(fnn.losses.names())
    assert set(equations.ACTIVATIONS) == set(fnn.activations.names())


FORMS = [(name, part) for name, parts in equations.OPTIMIZERS.items() for part in parts if isinstance(part, By)]


@pytest.mark.parametrize(("name", "part"), FORMS, ids=[f"{name} {part.option}" for name, part in FORMS])
def test_forms_are_all_the_values_of_an_option_the_default_first(name, part):
    module = second_order if name in second_order.names() else first_order
    made = inspect.signature(module.factory(name)).parameters[part.option]
    assert next(iter(part.forms)) == made.default
    kinds = getattr(made.annotation, "__args__", (True, False))
    assert set(part.forms) == set(kinds)
    drawn = {value: equations.optimizer(name, {part.option: value}) for value in part.forms}
    assert len(set(drawn.values())) == len(drawn) and drawn[made.default] == equations.optimizer(name)
    assert equations.optimizer(name, {part.option: jnp.ones(2)}) == equations.optimizer(name)


# Losses and activations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in equations.LOSSES if name != "multiclass_hinge"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_and_their_derivatives(name, reduction):
    loss = fnn.losses.get(f"{name}({reduction})")
    draw = np.random.default_rng(1)
    a, t = (x / x.sum(axis=1, keepdims=True) for x in draw.uniform(0.1, 1, (2, 4, 3)))
    if loss.targets == "signs":
        a, t = draw.normal(size=(4, 3)), np.sign(draw.normal(size=(4, 3)))
    known = {"a_i": a, "a_j": a, "t_i": t, "t_j": t, "S": 3.0, "e": np.e}
    value, gradient = equations.LOSSES[name]
    each = Reader(value.split(" = ")[1], known).sum()[:, 0]
    np.testing.assert_allclose(each, loss.example_value(a, t), rtol=1e-9)
    found = Reader(gradient.split(" = ")[1], known).sum()
    np.testing.assert_allclose(found, loss.example_gradient(a, t), rtol=1e-9)
    total = Reader(equations.REDUCTIONS[reduction].split(" = ")[1], {"F_q": each, "Q": 4.0}).sum()
    np.testing.assert_allclose(total[0], loss.value(a, t), rtol=1e-9)


@pytest.mark.parametrize(("name", "output"), equations.FUSED)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fused_pairs(name, output, reduction):
    loss = fnn.losses.get(f"{name}({reduction})")
    assert output in loss.fused
    draw = np.random.default_rng(2)
    n, t = draw.normal(size=(4, 3)), draw.uniform(0.1, 1, (4, 3))
    a = np.asarray(fnn.activations.get(output).forward(n, {})[0])
    (line,) = equations.FUSED[name, output]
    found = Reader(line.split(" = ")[1], {"a_i": a, "a_j": a, "t_i": t, "t_j": t}).sum()
    np.testing.assert_allclose(found, loss.fused[output].gradient(n, t), rtol=1e-9)
    share = 1 / 4 if reduction == "mean" else 1
    np.testing.assert_allclose(share * found, loss.scale(loss.fused[output].gradient(n, t)), rtol=1e-9)
    assert (r"1</mn></mrow><mrow><mi>Q" in equations.start(f"{name}({reduction})", output)) == (reduction == "mean")


def test_all_fused_pairs_have_equations_and_others_start_with_the_product():
    fused = {(name, output) for name in fnn.losses.names() for output in fnn.losses.get(name).fused}
    assert fused == set(equations.FUSED)
    assert equations.start("cross_entropy(mean)", "sigmoid") == equations.recursion("start")


WITH_CONSTANTS = {"leaky_relu": "leaky_relu(0.2)", "elu": "elu(0.7)", "celu": "celu(0.7)"}

GATES, CELLS = ("glu", "swiglu", "geglu"), ("gru", "lstm")
OF_ONE_NEURON = [
    name
    for name in fnn.activations.names()
    if name not in ("maxout", "attention", *GATES) and fnn.activations.get(name).alone
]


@pytest.mark.parametrize("name", OF_ONE_NEURON)
def test_activations_and_their_derivatives(name):
    row = fnn.activations.get(WITH_CONSTANTS.get(name, name))
    n = np.array([[-3.0, -2.0, -1.0, -0.5, 0.0, 0.3, 1.0, 2.0, 3.0, 6.0]])  # the kinks among them
    known = {"n": n, "e": np.e, "slope": 0.2, r"\alpha": 0.7, r"\mu": 0.4}
    if name == "selu":
        work_out([equations.ACTIVATIONS[name][1]], known)
    theta = {"slope": jnp.asarray([0.4])} if name == "prelu" else {}
    forward, *derivative = equations.ACTIVATIONS[name][0].split(r", \quad ")
    a = Reader(forward.split(" = ")[-1], known).sum()
    outputs, kept = row.forward(jnp.asarray(n), theta)
    np.testing.assert_allclose(a, outputs, rtol=1e-9)
    if derivative:
        found = Reader(derivative[0].split(" = ")[1], known | {"a": a}).sum()
        g = jnp.ones_like(n)
        pulled, learned = row.pullback(g, jnp.asarray(n), jnp.asarray(a), kept, theta)
        np.testing.assert_allclose(np.broadcast_to(found, n.shape), pulled, rtol=1e-9)
        if name == "prelu":
            slope = Reader(equations.ACTIVATIONS[name][1].split(" = ")[1], known).sum()
            np.testing.assert_allclose(np.broadcast_to(slope, n.shape), learned["slope"].left, rtol=1e-9)


def test_normalization():
    """The bars are means over the channels here; of rms_norm there is no mean and no shift."""
    draw = np.random.default_rng(4)
    n, g, gain, shift = draw.normal(size=(3, 5)), draw.normal(size=(3, 5)), draw.normal(size=5), draw.normal(size=5)

    def bar(x):
        return x.mean(axis=-1, keepdims=True)

    for name, mean in (("layer_norm", bar(n)), ("rms_norm", 0)):
        theta = {"gain": jnp.asarray(gain), "shift": jnp.asarray(shift)}
        row = fnn.activations.get(name)
        theta = {key: theta[key] for key in row.parameters(5, jnp.float64)}
        a, kept = row.forward(jnp.asarray(n), theta)
        first, second = equations.ACTIVATIONS[name]
        known = {
            "n": n,
            r"\epsilon": 1e-5,
            "gain": gain,
            "shift": shift,
            r"\sigma": np.sqrt(bar((n - mean) ** 2) + 1e-5),
        }
        x = Reader(first.split(r", \quad ")[0].split(" = ")[1].replace(r"\bar{n}", "m"), known | {"m": mean}).sum()
        output = Reader(first.split(" a = ")[1], known | {"x": x}).sum()
        np.testing.assert_allclose(output, a, rtol=1e-9)
        h = gain * g
        means = {"b": bar(h), "c": bar(h * x)}
        written = second.split(r", \quad ")[0].split(" = ")[1].replace(r"\bar{h}", "b").replace(r"\overline{h x}", "c")
        s = Reader(written, known | means | {"h": h, "x": x}).sum()
        np.testing.assert_allclose(s, row.pullback(jnp.asarray(g), jnp.asarray(n), a, kept, theta)[0], rtol=1e-9)
    assert (
        equations.ACTIVATIONS["group_norm"]
        == equations.ACTIVATIONS["batch_norm"]
        == equations.ACTIVATIONS["layer_norm"]
    )


@pytest.mark.parametrize("name", GATES)
def test_gates(name):
    row, draw = fnn.activations.get(name), np.random.default_rng(5)
    n_1, n_2, g = draw.normal(size=(3, 1, 4))
    gate, opens = equations.ACTIVATIONS[name]
    value, slope = (each.split(" = ", 1)[1] for each in opens.split(r", \quad "))
    f = Reader(value, {"n": n_1, "e": np.e}).sum()
    known = {"n_1": n_1, "n_2": n_2, "g": g, "f": f}
    known["h"] = Reader(slope.replace("f(n)", "f"), {"n": n_1, "e": np.e, "f": f}).sum()
    found = work_out([gate.replace("f(n_1)", "f").replace("f'(n_1)", "h").rpartition(r", \quad ")[0]], known)
    n = jnp.stack([n_1, n_2], axis=-1).reshape(1, -1)
    a, kept = row.forward(n, {})
    np.testing.assert_allclose(found["a"], a, rtol=1e-9)
    s = row.pullback(jnp.asarray(g), n, a, kept, {})[0]
    np.testing.assert_allclose(np.stack([found["s_1"], found["s_2"]], axis=-1).reshape(1, -1), s, rtol=1e-9)


@pytest.mark.parametrize("name", CELLS)
def test_a_cells_last_step(name):
    """One neuron, one step, from states that are not 0; what comes back from later steps is 0 there."""
    row, draw = fnn.activations.get(name), np.random.default_rng(6)
    blocks = {"gru": "ruc", "lstm": "ipco"}[name]
    k, g, (h, m) = len(blocks), 0.7, draw.normal(size=2)
    n, U = draw.normal(size=(1, 1, k)), draw.normal(size=(k, 1))
    theta = {"recurrent": jnp.asarray(U), "initial": jnp.asarray([h])}
    theta |= {"initial_cell": jnp.asarray([m])} if name == "lstm" else {}
    a, kept = row.forward(jnp.asarray(n), theta)
    s = row.pullback(jnp.full((1, 1, 1), g), jnp.asarray(n), a, kept, theta)[0].ravel()
    known = {"d_t": g, "p_t+1": 0.0, "h_t+1": 0.0, "a_t-1": h, "m_t-1": m}
    for block, one, z in zip(blocks, n.ravel(), U.ravel() * h, strict=True):
        known |= {f"n_{block}": one, f"z_{block}": z}
        if name == "lstm" and block != "c":
            known[block] = 1 / (1 + np.exp(-(one + z + (block == "p"))))  # which its line says in words
    for line in equations.ACTIVATIONS[name]:
        line = re.sub(r"_t\^(\w)", r"_\1", line).replace(r"\text{sigmoid}", r"\sigmoid")
        told = [each for each in line.split(r", \quad ") if not re.match("z_t|d_t|e_t|i, p, o", each)]
        work_out(told, known)
    np.testing.assert_allclose(known["a_t"], a.item(), rtol=1e-9)
    np.testing.assert_allclose([known[f"s_{block}"] for block in blocks], s, rtol=1e-9)


def test_softmax():
    n = np.random.default_rng(3).normal(size=3)
    value, derivative = equations.ACTIVATIONS["softmax"]
    a = Reader(value.split(" = ")[1], {"n_i": n, "n_j": n, "e": np.e}).sum()
    known = {"a_i": a[:, None], "a_j": a[None, :], r"\delta_ij": np.eye(3)}
    jacobian = jax.jacobian(lambda n: fnn.activations.get("softmax").forward(n[None], {})[0][0])(n)
    np.testing.assert_allclose(Reader(derivative.split(" = ")[1], known).sum(), jacobian, rtol=1e-9)


# MathML ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (equations.optimizer, equations.OPTIMIZERS),
        (equations.loss, equations.LOSSES),
        (equations.activation, equations.ACTIVATIONS),
        (equations.recursion, equations.RECURSION),
        (equations.rule, equations.RULES),
    ],
)
def test_all_equations_are_well_formed_and_displayed(kind, table):
    for name in table:
        lines = list(ElementTree.fromstring(f"<div>{kind(name)}</div>"))
        assert lines and all(line.get("display") == "block" for line in lines)
        assert all("".join(line.itertext()).strip() for line in lines) and "\\" not in kind(name)


def test_every_rule_has_its_equation():
    assert {*equations.RULES, "exact"} == set(fnn.rules.names()) and equations.rule("exact") is None
    assert equations.rule("noisy(0.1)") == equations.rule("noisy") and equations.rule("{layer1: noisy(0.1)}") is None


def test_names_with_constants_and_unknown_names():
    assert equations.optimizer("adam(0.1)") == equations.optimizer("adam")
    assert equations.activation("leaky_relu(0.2)") == equations.activation("leaky_relu")
    for reduction, line in equations.REDUCTIONS.items():
        assert equations.loss(f"hinge({reduction})") == equations.mathml(line, True) + equations.loss("hinge")
    assert equations.optimizer("mine") is equations.loss("mine") is equations.activation("mine") is None


@pytest.mark.parametrize("latex", HOSTILE)
def test_invalid_latex_is_refused(latex):
    with pytest.raises(ValueError, match="cannot be converted to MathML"):
        equations.mathml(latex)


def test_equations_are_made_once():
    assert equations.mathml("x^2") is equations.mathml("x^2") and equations.mathml("x", True) != equations.mathml("x")
