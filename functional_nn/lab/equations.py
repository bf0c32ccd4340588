"""The equations of what the library computes, as LaTeX by name and as MathML, which browsers draw without a network.

An equation describes our function. Where texts differ, the function's docstring says whose convention it follows. A
name without an equation, such as one that a user registered, returns None.

The letters are the same in every equation. F is the performance, g its gradient, k = 1, 2, ... the number of the
update, x the parameters. The constants are alpha (learning_rate, or the result of a line search), gamma (decay),
beta_1 (b1), beta_2 (b2), epsilon, lambda (damping or weight_decay) and mu. Products, powers, roots and quotients of
first-order methods are elementwise. H, G and J are the Hessian, the Gauss-Newton matrix and the Jacobian of the
residuals r. For a layer m: n net inputs, a activations, s sensitivities; q is the example.
"""

import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any, NamedTuple

import latex2mathml.converter
from markupsafe import Markup

__all__ = [
    "ACTIVATIONS",
    "FUSED",
    "LOSSES",
    "OF_LAYERS",
    "OF_UPDATES",
    "OPTIMIZERS",
    "RECURSION",
    "REDUCTIONS",
    "RULES",
    "SHARES",
    "By",
    "activation",
    "loss",
    "mathml",
    "optimizer",
    "recursion",
    "rule",
    "start",
]

OF_LAYERS = (
    "For layer m (M is the last): n net inputs, a activations (a^0 the network's inputs), s sensitivities dF/dn, "
    "g = dF/da, W weights, b bias; q is one of Q examples, i one of S outputs, t targets."
)
OF_UPDATES = (
    "In the update, x are all parameters, g is their gradient and k the number of the update; α is the learning rate "
    "or the step of a line search, γ the decay, β b1 and b2, ε epsilon, λ weight_decay or damping; first-order rules "
    "are elementwise."
)

_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
_ELEMENTS = frozenset(
    (
        "math",
        "mrow",
        "mi",
        "mo",
        "mn",
        "mtext",
        "mspace",
        "mfrac",
        "msqrt",
        "msub",
        "msup",
        "msubsup",
        "mover",
        "munder",
        "munderover",
        "mtable",
        "mtr",
        "mtd",
    )
)
_ATTRIBUTES = frozenset(
    (
        "accent",
        "columnalign",
        "display",
        "displaystyle",
        "fence",
        "form",
        "linethickness",
        "mathvariant",
        "maxsize",
        "minsize",
        "movablelimits",
        "scriptlevel",
        "stretchy",
        "width",
    )
)


@functools.lru_cache(maxsize=1024)
def mathml(latex: str, display: bool = False) -> Markup:
    r"""Converts LaTeX to a <math> element.

    Args:
        latex: the formula; it is not escaped.
        display: whether it is on a line of its own.

    Returns:
        The MathML.

    Raises:
        ValueError: for LaTeX that does not convert to well-formed MathML of a few known elements.

    Example:
        >>> from functional_nn.lab import equations
        >>> str(equations.mathml(r"\alpha")).partition("<mrow>")[2]
        '<mi>&#x003B1;</mi></mrow></math>'
    """
    try:
        text = latex2mathml.converter.convert(latex, display="block" if display else "inline")
        elements = list(ElementTree.fromstring(text).iter())
    except Exception as error:  # the converter raises many kinds
        raise ValueError(f"LaTeX that cannot be converted to MathML: {latex!r} ({error!r})") from None
    foreign = {element.tag.removeprefix(_NAMESPACE) for element in elements} - _ELEMENTS
    foreign |= {name for element in elements for name in element.attrib} - _ATTRIBUTES
    if foreign:
        raise ValueError(f"LaTeX that cannot be converted to MathML: {latex!r} needs {min(foreign)!r}")
    return Markup(text)


class By(NamedTuple):
    """Equations that depend on an option of the method.

    Attributes:
        option: the option's name.
        forms: the equations by the option's value, the default's first.

    Example:
        >>> from functional_nn.lab import equations
        >>> [part.option for part in equations.OPTIMIZERS["adam"] if isinstance(part, equations.By)]
        ['order']
    """

    option: str
    forms: Mapping[Any, tuple[str, ...]]


def optimizer(name: str, constants: Mapping[str, Any] | None = None) -> Markup | None:
    """Returns an optimizer's update rule, one line per equation.

    Args:
        name: the optimizer's name, with or without constants in parentheses.
        constants: choose among the rule's forms, as `order` does for adam.

    Returns:
        The MathML; None for a name without equations.

    Example:
        >>> from functional_nn.lab import equations
        >>> equations.optimizer("adam", {"order": "efficient"}) != equations.optimizer("adam")
        True
        >>> equations.optimizer("my_own") is None
        True
    """
    lines: list[str] = []
    for part in OPTIMIZERS.get(_bare(name), ()):
        if isinstance(part, By):
            given = (constants or {}).get(part.option)
            chosen = given if isinstance(given, str | bool) and given in part.forms else next(iter(part.forms))
            lines.extend(part.forms[chosen])
        else:
            lines.append(part)
    return _lines(tuple(lines) or None)


def loss(name: str) -> Markup | None:
    """Returns F_q of one example and its derivative; with the reduction in parentheses, as in "hinge(sum)", also F.

    Args:
        name: the loss' name.

    Returns:
        The MathML; None for a name without equations.

    Example:
        >>> from functional_nn.lab import equations
        >>> equations.loss("hinge").count("<math"), equations.loss("hinge(sum)").count("<math")
        (2, 3)
    """
    lines = LOSSES.get(_bare(name))
    reduction = REDUCTIONS.get(_reduction(name))
    return _lines(lines and ((reduction, *lines) if reduction else lines))


def activation(name: str) -> Markup | None:
    """Returns an activation's function and its derivative.

    Args:
        name: the activation's name.

    Returns:
        The MathML; None for a name without equations.

    Example:
        >>> from functional_nn.lab import equations
        >>> equations.activation("tanh").count("<math")
        1
    """
    return _lines(ACTIVATIONS.get(_bare(name)))


def start(loss: str, activation: str) -> Markup:
    """Returns s^M, where the recursion starts: the fused form of a loss and an output layer that have one, else the
    product.

    Args:
        loss: the loss' name.
        activation: the output activation's name.

    Returns:
        The MathML.

    Example:
        >>> from functional_nn.lab import equations
        >>> equations.start("cross_entropy", "softmax") == equations.start("mean_square_error", "tanh")
        False
    """
    fused = FUSED.get((_bare(loss), _bare(activation)))
    return _displayed((*fused, SHARES["sum" if _reduction(loss) == "sum" else "mean"]) if fused else RECURSION["start"])


def recursion(step: str) -> Markup:
    """Returns one step of backpropagation, as in `gradients.backprop`.

    Args:
        step: "forward", "start", "recursion" or "contraction".

    Returns:
        The MathML.

    Example:
        >>> from functional_nn.lab import equations
        >>> equations.recursion("forward").count("<math")
        2
    """
    return _displayed(RECURSION[step])


def rule(name: str) -> Markup | None:
    """Returns what a learning rule uses instead of a line of the recursion, or instead of the gradient.

    Args:
        name: the rule's name.

    Returns:
        The MathML; None for a user's own rule and for rules by layer.

    Example:
        >>> from functional_nn.lab import equations
        >>> equations.rule("feedback_alignment").count("<math")
        1
    """
    return _lines(RULES.get(_bare(name)))


def _reduction(loss: str) -> str:
    """The first word in the parentheses of a loss's specification."""
    return loss.partition("(")[2].rstrip(")").partition(",")[0].strip()


def _bare(specification: str) -> str:
    return specification.partition("(")[0].strip()


def _lines(latex: tuple[str, ...] | None) -> Markup | None:
    return _displayed(latex) if latex else None


def _displayed(latex: tuple[str, ...]) -> Markup:
    return Markup("").join(mathml(line, display=True) for line in latex)


# Backpropagation: Hagan Eq. 3.2-3.50 ----------------------------------------------------------------------------------

RECURSION = {
    "forward": (
        r"n^m = \sum_{j} W^{m,j} a^{j} + b^m",
        r"a^m = f^m(n^m)",
    ),
    "start": (r"s^M = \dot{F}^M(n^M)^{T} \frac{\partial F}{\partial a^M}",),
    "recursion": (
        r"g^m = \sum_{l} (W^{l,m})^{T} s^{l}",
        r"s^m = \dot{F}^m(n^m)^{T} g^m",
    ),
    "contraction": (
        r"\frac{\partial F}{\partial W^{m,j}} = \sum_{q} s_q^m (a_q^j)^{T}",
        r"\frac{\partial F}{\partial b^m} = \sum_{q} s_q^m",
    ),
}

# Learning rules: B is used instead of W, ξ is noise, v a random direction
_ALONG_V = r"g \approx \frac{F(x + \sigma v) - F(x - \sigma v)}{2 \sigma} \, v"
RULES = {
    "feedback_alignment": (r"g^m = \sum_{l} (B^{l,m})^{T} s^{l}, \quad B \text{ random and fixed}",),
    "direct_feedback": (r"g^m = \sum_{l} (B^{l,m})^{T} s^{M}, \quad B \text{ random and fixed}",),
    "sign_symmetric": (r"g^m = \sum_{l} (B^{l,m})^{T} s^{l}, \quad B = |B| \, \mathrm{sign} \, W",),
    "kolen_pollack": (
        r"g^m = \sum_{l} (B^{l,m})^{T} s^{l}",
        r"g_W = \sum_{q} s_q (a_q)^{T} + \lambda W, \quad g_B = \sum_{q} s_q (a_q)^{T} + \lambda B",
    ),
    "weight_mirror": (r"g^m = \sum_{l} (B^{l,m})^{T} s^{l}", r"g_B = B - \langle (W \xi) \, \xi^{T} \rangle"),
    "noisy": (r"s^m = \dot{F}^m(n^m)^{T} g^m + \sigma \, \mathrm{rms}(s^m) \, \xi",),
    "rounded": (r"s^m = \mathrm{round}(\dot{F}^m(n^m)^{T} g^m), \text{ to few bits}",),
    "dropped_back": (r"s_i^m \rightarrow s_i^m / (1 - p) \text{ or } 0, \text{ with probability } p",),
    "clipped_back": (r"s_q^m \rightarrow s_q^m \min(1, c / |s_q^m|)",),
    "surrogate": (r"s^m = g^m \frac{h}{(1 + \beta |n^m|)^2}",),
    "forward_gradient": (r"g \approx (\nabla F^{T} v) \, v",),
    "weight_perturbation": (r"g \approx \frac{F(x + \sigma v) - F(x)}{\sigma} \, v",),
    "spsa": (_ALONG_V, r"v_i = \pm 1"),
    "evolution_strategy": (_ALONG_V,),
    "node_perturbation": (r"s_q \approx \frac{F_q(n + \sigma v_q) - F_q(n)}{\sigma} \, v_q",),
    "finite_differences": (r"g_i \approx \frac{F(x + h e_i) - F(x - h e_i)}{2 h}",),
    "local_loss": (r"g^m = V^{T} \frac{\partial F(f^M(V a^m + c))}{\partial n}",),
    "forward_forward": (r"F^m = \ln(1 + e^{\theta - G_+}) + \ln(1 + e^{G_- - \theta}), \quad G = \overline{(a^m)^2}",),
    "target_propagation": (r"t^{m-1} = a^{m-1} + h^m(t^m) - h^m(a^m), \quad g^m = \frac{a^m - t^m}{\eta}",),
    "predictive_coding": (r"E = F + \frac{\pi}{2} \sum_{m} |x^m - f^m(W x^{m-1})|^2, \quad g = \nabla_W \min_x E",),
    # for hardlims half of it
    "perceptron": (r"g_W = \sum_{q} (a_q - t_q) (a_q^{0})^{T}, \quad g_b = \sum_{q} (a_q - t_q)",),
    "delta": (r"g_W = \sum_{q} (n_q - t_q) (a_q^{0})^{T}, \quad g_b = \sum_{q} (n_q - t_q)",),
    "hebb": (r"g_W = - \sum_{q} t_q (a_q^{0})^{T}, \quad g_b = - \sum_{q} t_q",),
}

_SOFTMAX_MINUS_TARGET = (r"\frac{\partial F_q}{\partial n_i^M} = a_i \sum_{j} t_j - t_i",)
FUSED = {
    ("cross_entropy", "softmax"): _SOFTMAX_MINUS_TARGET,
    ("kullback_leibler", "softmax"): _SOFTMAX_MINUS_TARGET,
    ("binary_cross_entropy", "sigmoid"): (r"\frac{\partial F_q}{\partial n_i^M} = a_i - t_i",),
    ("symmetric_kullback_leibler", "softmax"): (
        r"\frac{\partial F_q}{\partial n_i^M} = "
        r"a_i \left( \sum_{j} t_j + \ln \, \frac{a_i}{t_i} - \sum_{j} a_j \ln \, \frac{a_j}{t_j} \right) - t_i",
    ),
    ("bhattacharyya", "softmax"): (
        r"\frac{\partial F_q}{\partial n_i^M} = "
        r"\frac{1}{2} \left( a_i - \frac{\sqrt{t_i a_i}}{\sum_{j} \sqrt{t_j a_j}} \right)",
    ),
}
SHARES = {
    "mean": r"s_q^M = \frac{1}{Q} \frac{\partial F_q}{\partial n_q^M}",
    "sum": r"s_q^M = \frac{\partial F_q}{\partial n_q^M}",
}

# Losses ---------------------------------------------------------------------------------------------------------------

REDUCTIONS = {
    "mean": r"F = \frac{1}{Q} \sum_{q} F_q",
    "sum": r"F = \sum_{q} F_q",
}
LOSSES = {
    "mean_square_error": (
        r"F_q = \frac{1}{S} \sum_{i} (t_i - a_i)^2",
        r"\frac{\partial F_q}{\partial a_i} = \frac{2}{S} (a_i - t_i)",
    ),
    "sum_square_error": (
        r"F_q = \sum_{i} (t_i - a_i)^2",
        r"\frac{\partial F_q}{\partial a_i} = 2 (a_i - t_i)",
    ),
    "half_sum_square_error": (
        r"F_q = \frac{1}{2} \sum_{i} (t_i - a_i)^2",
        r"\frac{\partial F_q}{\partial a_i} = a_i - t_i",
    ),
    "cross_entropy": (
        r"F_q = - \sum_{i} t_i \ln \, a_i",
        r"\frac{\partial F_q}{\partial a_i} = - \frac{t_i}{a_i}",
    ),
    "binary_cross_entropy": (
        r"F_q = - \sum_{i} \left[ t_i \ln \, a_i + (1 - t_i) \ln \, (1 - a_i) \right]",
        r"\frac{\partial F_q}{\partial a_i} = - \frac{t_i}{a_i} + \frac{1 - t_i}{1 - a_i}",
    ),
    "kullback_leibler": (
        r"F_q = \sum_{i} t_i \ln \, \frac{t_i}{a_i}",
        r"\frac{\partial F_q}{\partial a_i} = - \frac{t_i}{a_i}",
    ),
    "symmetric_kullback_leibler": (
        r"F_q = \sum_{i} (t_i - a_i) \ln \, \frac{t_i}{a_i}",
        r"\frac{\partial F_q}{\partial a_i} = \ln \, \frac{a_i}{t_i} + 1 - \frac{t_i}{a_i}",
    ),
    "bhattacharyya": (
        r"F_q = - \ln \, \sum_{i} \sqrt{t_i a_i}",
        r"\frac{\partial F_q}{\partial a_i} = - \frac{\sqrt{t_i a_i}}{2 a_i \sum_{j} \sqrt{t_j a_j}}",
    ),
    "hinge": (
        r"F_q = \sum_{i} \max(0, 1 - t_i a_i)",
        r"\frac{\partial F_q}{\partial a_i} = \begin{cases} -t_i & 1 - t_i a_i > 0 \\ 0 & 1 - t_i a_i \le 0 "
        r"\end{cases}",
    ),
    "multiclass_hinge": (
        r"F_q = \sum_{j \ne y} \max(0, 1 + a_j - a_y), \quad t_y = 1",
        r"\frac{\partial F_q}{\partial a_j} = \begin{cases} 1 & 1 + a_j - a_y > 0 \\ 0 & 1 + a_j - a_y \le 0 "
        r"\end{cases}, \quad j \ne y",
        r"\frac{\partial F_q}{\partial a_y} = - \sum_{j \ne y} \frac{\partial F_q}{\partial a_j}",
    ),
    "logistic": (
        r"F_q = \sum_{i} \ln \, (1 + e^{-t_i a_i})",
        r"\frac{\partial F_q}{\partial a_i} = - \frac{t_i}{1 + e^{t_i a_i}}",
    ),
}

# Activations ----------------------------------------------------------------------------------------------------------

# a bar is the mean over the numbers that are normalized together
_NORMALIZED = (
    r"x = \frac{n - \bar{n}}{\sigma}, \quad \sigma = \sqrt{\overline{(n - \bar{n})^2} + \epsilon}, \quad "
    r"a = \text{gain} \cdot x + \text{shift}",
    r"s = \frac{h - \bar{h} - x \, \overline{h x}}{\sigma}, \quad h = \text{gain} \cdot \frac{\partial F}{\partial a}",
)

_GATED = r"a = f(n_1) n_2, \quad s_1 = f'(n_1) n_2 g, \quad s_2 = f(n_1) g, \quad g = \frac{\partial F}{\partial a}"

ACTIVATIONS = {
    "linear": (r"f(n) = n, \quad f'(n) = 1",),
    "sigmoid": (r"a = f(n) = \frac{1}{1 + e^{-n}}, \quad f'(n) = a (1 - a)",),
    "tanh": (r"a = f(n) = \tanh \, n, \quad f'(n) = 1 - a^2",),
    "softmax": (
        r"a_i = \frac{e^{n_i}}{\sum_{j} e^{n_j}}",
        r"\frac{\partial a_i}{\partial n_j} = a_i (\delta_{ij} - a_j)",
    ),
    "relu": (r"f(n) = \max(0, n), \quad f'(n) = \begin{cases} 1 & n > 0 \\ 0 & n \le 0 \end{cases}",),
    "shifted_relu": (r"f(n) = \max(-1, n), \quad f'(n) = \begin{cases} 1 & n > -1 \\ 0 & n \le -1 \end{cases}",),
    "leaky_relu": (
        r"f(n) = \begin{cases} n & n \ge 0 \\ \text{slope} \cdot n & n < 0 \end{cases}, \quad "
        r"f'(n) = \begin{cases} 1 & n \ge 0 \\ \text{slope} & n < 0 \end{cases}",
    ),
    "elu": (
        r"a = f(n) = \begin{cases} n & n > 0 \\ \alpha (e^{n} - 1) & n \le 0 \end{cases}, \quad "
        r"f'(n) = \begin{cases} 1 & n > 0 \\ a + \alpha & n \le 0 \end{cases}",
    ),
    "prelu": (
        r"f(n) = \begin{cases} n & n \ge 0 \\ \mu n & n < 0 \end{cases}, \quad "
        r"f'(n) = \begin{cases} 1 & n \ge 0 \\ \mu & n < 0 \end{cases}",
        r"\frac{\partial f}{\partial \mu} = \begin{cases} 0 & n \ge 0 \\ n & n < 0 \end{cases}",
    ),
    "maxout": (
        r"a_i = \max_{j} n_{ij}",
        r"\frac{\partial a_i}{\partial n_{ij}} = \begin{cases} 1 / c_i & n_{ij} = a_i \\ 0 & n_{ij} < a_i "
        r"\end{cases}, \quad c_i = \left| \{ j : n_{ij} = a_i \} \right|",
    ),
    "softplus": (r"f(n) = \ln \, (1 + e^{n}), \quad f'(n) = \frac{1}{1 + e^{-n}}",),
    "softsign": (r"f(n) = \frac{n}{1 + |n|}, \quad f'(n) = \frac{1}{(1 + |n|)^2}",),
    "silu": (r"a = f(n) = \frac{n}{1 + e^{-n}}, \quad f'(n) = a + \frac{1 - a}{1 + e^{-n}}",),
    "mish": (
        r"f(n) = n \, \tanh \, (\ln \, (1 + e^{n})), \quad f'(n) = \tanh \, (\ln \, (1 + e^{n})) "
        r"+ \frac{n}{1 + e^{-n}} (1 - (\tanh \, (\ln \, (1 + e^{n})))^2)",
    ),
    "gelu": (r"f(n) = n \, \Phi \, (n), \quad f'(n) = \Phi \, (n) + n \, \varphi \, (n)",),
    "celu": (
        r"a = f(n) = \begin{cases} n & n > 0 \\ \alpha (e^{\frac{n}{\alpha}} - 1) & n \le 0 \end{cases}, \quad "
        r"f'(n) = \begin{cases} 1 & n > 0 \\ \frac{a}{\alpha} + 1 & n \le 0 \end{cases}",
    ),
    "selu": (
        r"a = f(n) = \begin{cases} \lambda n & n > 0 \\ \lambda \alpha (e^{n} - 1) & n \le 0 \end{cases}, \quad "
        r"f'(n) = \begin{cases} \lambda & n > 0 \\ a + \lambda \alpha & n \le 0 \end{cases}",
        r"\lambda = 1.0507009873554805, \quad \alpha = 1.6732632423543772",
    ),
    "relu6": (
        r"f(n) = \max(0, n) - \max(0, n - 6), \quad "
        r"f'(n) = \begin{cases} 1 & |n - 3| < 3 \\ 0 & |n - 3| \ge 3 \end{cases}",
    ),
    "hard_tanh": (
        r"f(n) = \max(-1, n) - \max(0, n - 1), \quad "
        r"f'(n) = \begin{cases} 1 & |n| \le 1 \\ 0 & |n| > 1 \end{cases}",
    ),
    "hard_sigmoid": (
        r"f(n) = \frac{\max(0, n + 3) - \max(0, n - 3)}{6}, \quad "
        r"f'(n) = \begin{cases} \frac{1}{6} & |n| < 3 \\ 0 & |n| \ge 3 \end{cases}",
    ),
    "max_pool": (
        r"a_p = \max_{i \in p} n_i",
        r"\frac{\partial a_p}{\partial n_i} = \begin{cases} 1 / c_p & n_i = a_p \\ 0 & n_i < a_p "
        r"\end{cases}, \quad c_p = \left| \{ i \in p : n_i = a_p \} \right|",
    ),
    "layer_norm": _NORMALIZED,
    "rms_norm": (
        r"x = \frac{n}{\sigma}, \quad \sigma = \sqrt{\overline{n^2} + \epsilon}, \quad a = \text{gain} \cdot x",
        r"s = \frac{h - x \, \overline{h x}}{\sigma}, \quad h = \text{gain} \cdot \frac{\partial F}{\partial a}",
    ),
    "group_norm": _NORMALIZED,
    "batch_norm": _NORMALIZED,
    "mean_pool": (r"a = \frac{1}{T} \sum_{t} n_t, \quad s_t = \frac{1}{T} \frac{\partial F}{\partial a}",),
    "glu": (_GATED, r"f(n) = \frac{1}{1 + e^{-n}}, \quad f'(n) = f(n) (1 - f(n))"),
    "swiglu": (_GATED, r"f(n) = \frac{n}{1 + e^{-n}}, \quad f'(n) = f(n) + \frac{1 - f(n)}{1 + e^{-n}}"),
    "geglu": (_GATED, r"f(n) = n \, \Phi \, (n), \quad f'(n) = \Phi \, (n) + n \, \varphi \, (n)"),
    "sinusoidal": (
        r"a_{t,2i} = n_{t,2i} + \sin \, \omega_i t, \quad a_{t,2i+1} = n_{t,2i+1} + \cos \, \omega_i t, \quad "
        r"\omega_i = \text{base}^{-2i/S}",
        r"s = \frac{\partial F}{\partial a}",
    ),
    "attention": (
        r"x_{tu} = \frac{q_t \cdot k_u}{\sqrt{d}}, \quad p_{tu} = \frac{e^{x_{tu}}}{\sum_{w} e^{x_{tw}}}, \quad "
        r"a_t = \sum_{u} p_{tu} v_u",
        r"y_{tu} = p_{tu} (g_t \cdot v_u - g_t \cdot a_t), \quad g_t = \frac{\partial F}{\partial a_t}",
        r"\frac{\partial F}{\partial q_t} = \sum_{u} \frac{y_{tu} k_u}{\sqrt{d}}, \quad "
        r"\frac{\partial F}{\partial k_u} = \sum_{t} \frac{y_{tu} q_t}{\sqrt{d}}, \quad "
        r"\frac{\partial F}{\partial v_u} = \sum_{t} p_{tu} g_t",
    ),
    "recurrent": (
        r"a_t = f(n_t + U a_{t-1})",
        r"s_t = f'(n_t + U a_{t-1}) \, d_t, \quad d_t = \frac{\partial F}{\partial a_t} + U^T s_{t+1}",
        r"\frac{\partial F}{\partial U} = \sum_{t} s_t a_{t-1}^T",
    ),
    "gru": (
        r"z_t = U a_{t-1}, \quad r = \text{sigmoid}(n_t^r + z_t^r), \quad u = \text{sigmoid}(n_t^u + z_t^u)",
        r"c = \tanh \, (n_t^c + r z_t^c), \quad a_t = (1 - u) c + u a_{t-1}",
        r"s_t^c = d_t (1 - u) (1 - c^2), \quad s_t^u = d_t (a_{t-1} - c) u (1 - u), \quad "
        r"s_t^r = s_t^c z_t^c r (1 - r)",
        r"d_t = \frac{\partial F}{\partial a_t} + u_{t+1} d_{t+1} + U^T e_{t+1}, \quad e_t = (s_t^r, s_t^u, r s_t^c)",
    ),
    "lstm": (
        r"z_t = U a_{t-1}, \quad i, p, o = \text{sigmoid}(n_t + z_t), \text{ for } p \text{ plus forget bias}, \quad "
        r"c = \tanh \, (n_t^c + z_t^c)",
        r"m_t = p m_{t-1} + i c, \quad a_t = o \tanh \, m_t",
        r"h_t = d_t o (1 - (\tanh \, m_t)^2) + p_{t+1} h_{t+1}, \quad s_t^i = h_t c i (1 - i), \quad "
        r"s_t^p = h_t m_{t-1} p (1 - p)",
        r"s_t^c = h_t i (1 - c^2), \quad s_t^o = d_t \tanh \, m_t \, o (1 - o), \quad "
        r"d_t = \frac{\partial F}{\partial a_t} + U^T s_{t+1}",
    ),
    "hardlim": (r"f(n) = \begin{cases} 1 & n \ge 0 \\ 0 & n < 0 \end{cases}",),
    "hardlims": (r"f(n) = \begin{cases} 1 & n \ge 0 \\ -1 & n < 0 \end{cases}",),
}

# Optimizers -----------------------------------------------------------------------------------------------------------

_MOMENTS = (
    r"m_k = \beta_1 m_{k-1} + (1 - \beta_1) g_k",
    r"v_k = \beta_2 v_{k-1} + (1 - \beta_2) g_k^2",
)
_UNBIASED = r"\hat{m}_k = \frac{m_k}{1 - \beta_1^k}, \quad \hat{v}_k = \frac{v_k}{1 - \beta_2^k}"
_VELOCITY = r"v_k = \gamma v_{k-1} - \alpha g_k"
_SQUARES = r"R_k = \gamma R_{k-1} + (1 - \gamma) g_k^2"
_SEARCHED = r"x_{k+1} = x_k + \alpha_k d_k"
_CHANGES = r"s_k = x_{k+1} - x_k, \quad y_k = g_{k+1} - g_k"
_GAIN_RATIO = r"\rho_k = \text{the decrease of } F \text{ divided by the predicted one}"
_MU = {
    "gain_ratio": (
        r"\mu_{k+1} = \begin{cases} \mu_k \max(\text{decrease}, 1 - (2 \rho_k - 1)^3) & \text{the step is taken} \\ "
        r"2^{i} \mu_k & \text{refused, for the } i \text{th time in a row} \end{cases}",
        _GAIN_RATIO,
    ),
    "factor": (
        r"\mu_{k+1} = \begin{cases} \text{decrease} \cdot \mu_k & \text{the step is taken} \\ "
        r"\text{increase} \cdot \mu_k & \text{refused} \end{cases}",
    ),
}
_RADIUS = (
    r"\mu_k = 0 \text{ if } |D_k \delta_k| \le \Delta_k, \text{ else such that } |D_k \delta_k| = \Delta_k",
    r"\Delta_{k+1} = \begin{cases} 2 |D_k \delta_k| & \rho_k \ge 3/4 \text{ or } \mu_k = 0 \\ "
    r"\text{a tenth to a half of } \Delta_k & \rho_k \le 1/4 \\ \Delta_k & \text{else} \end{cases}",
    _GAIN_RATIO,
)

OPTIMIZERS: dict[str, tuple[str | By, ...]] = {
    "gd": (r"x_{k+1} = x_k - \alpha g_k",),
    "momentum": (
        r"\Delta x_k = \gamma \Delta x_{k-1} - \alpha g_k",
        r"x_{k+1} = x_k + \Delta x_k",
    ),
    "nesterov": (
        By(
            "form",
            {
                "gradient": (_VELOCITY, r"x_{k+1} = x_k + \gamma v_k - \alpha g_k"),
                "look_ahead": (
                    r"v_k = \gamma v_{k-1} - \alpha g(x_k + \gamma v_{k-1})",
                    r"x_{k+1} = x_k + v_k",
                ),
            },
        ),
    ),
    "rprop": (
        r"\Delta_k = \begin{cases} \min(\text{increase} \cdot \Delta_{k-1}, \text{largest}) & g_{k-1} g_k > 0 \\ "
        r"\max(\text{decrease} \cdot \Delta_{k-1}, \text{smallest}) & g_{k-1} g_k < 0 \\ "
        r"\Delta_{k-1} & g_{k-1} g_k = 0 \end{cases}",
        By(
            "backtracking",
            {
                True: (
                    r"x_{k+1} - x_k = \begin{cases} - (x_k - x_{k-1}), \text{ then } g_k \leftarrow 0 & "
                    r"g_{k-1} g_k < 0 \\ - \text{sign}(g_k) \Delta_k & g_{k-1} g_k \ge 0 \end{cases}",
                ),
                False: (
                    r"x_{k+1} - x_k = \begin{cases} 0, \text{ then } g_k \leftarrow 0 & g_{k-1} g_k < 0 \\ "
                    r"- \text{sign}(g_k) \Delta_k & g_{k-1} g_k \ge 0 \end{cases}",
                ),
            },
        ),
    ),
    "adagrad": (
        r"G_k = G_{k-1} + g_k^2",
        r"x_{k+1} = x_k - \frac{\alpha}{\sqrt{\epsilon + G_k}} g_k",
    ),
    "full_matrix_adagrad": (
        r"G_k = G_{k-1} + g_k g_k^T, \text{ with all parameters as one vector}",
        r"x_{k+1} = x_k - \alpha (\epsilon I + G_k)^{-1/2} g_k",
    ),
    "adadelta": (
        _SQUARES,
        r"d_k = - \frac{\sqrt{D_{k-1} + \epsilon}}{\sqrt{R_k + \epsilon}} g_k",
        r"D_k = \gamma D_{k-1} + (1 - \gamma) d_k^2",
        r"x_{k+1} = x_k + \alpha d_k",
    ),
    "rmsprop": (
        _SQUARES,
        By(
            "centered",
            {
                False: (r"x_{k+1} = x_k - \frac{\alpha}{\sqrt{R_k + \epsilon}} g_k",),
                True: (
                    r"m_k = \gamma m_{k-1} + (1 - \gamma) g_k",
                    r"x_{k+1} = x_k - \frac{\alpha}{\sqrt{R_k - m_k^2 + \epsilon}} g_k",
                ),
            },
        ),
    ),
    "adam": (
        *_MOMENTS,
        By(
            "order",
            {
                "corrected": (
                    _UNBIASED,
                    r"x_{k+1} = x_k - \alpha \frac{\hat{m}_k}{\sqrt{\hat{v}_k} + \epsilon}",
                ),
                "efficient": (
                    r"\alpha_k = \alpha \frac{\sqrt{1 - \beta_2^k}}{1 - \beta_1^k}",
                    r"x_{k+1} = x_k - \alpha_k \frac{m_k}{\sqrt{v_k} + \epsilon}",
                ),
            },
        ),
    ),
    "adamax": (
        _MOMENTS[0],
        r"u_k = \max(\beta_2 u_{k-1}, |g_k| + \epsilon)",
        r"x_{k+1} = x_k - \frac{\alpha}{1 - \beta_1^k} \frac{m_k}{u_k}",
    ),
    "amsgrad": (
        *_MOMENTS,
        By(
            "bias_correction",
            {
                True: (
                    _UNBIASED,
                    r"u_k = \max(u_{k-1}, \hat{v}_k)",
                    r"x_{k+1} = x_k - \alpha \frac{\hat{m}_k}{\sqrt{u_k} + \epsilon}",
                ),
                False: (
                    r"u_k = \max(u_{k-1}, v_k)",
                    r"x_{k+1} = x_k - \alpha \frac{m_k}{\sqrt{u_k} + \epsilon}",
                ),
            },
        ),
    ),
    "nadam": (
        *_MOMENTS,
        r"\hat{m}_k = \frac{\beta_1 m_k}{1 - \beta_1^{k+1}} + \frac{(1 - \beta_1) g_k}{1 - \beta_1^k}, \quad "
        r"\hat{v}_k = \frac{v_k}{1 - \beta_2^k}",
        r"x_{k+1} = x_k - \alpha \frac{\hat{m}_k}{\sqrt{\hat{v}_k} + \epsilon}",
    ),
    "adamw": (
        *_MOMENTS,
        _UNBIASED,
        r"x_{k+1} = x_k - \alpha \left( \frac{\hat{m}_k}{\sqrt{\hat{v}_k} + \epsilon} + \lambda x_k \right)",
    ),
    "newton": (
        By(
            "saddle_free",
            {
                False: (r"d_k = - (H_k + \lambda I + \tau_k D_k^2)^{-1} g_k",),
                True: (
                    r"H_k + \lambda I = V \, \text{diag}(\nu) \, V^T",
                    r"d_k = - V \, \text{diag}(|\nu|)^{-1} \, V^T g_k, \text{ without } \tau_k",
                ),
            },
        ),
        By(
            "globalization",
            {
                "trust_region": (
                    r"\tau_k \ge 0 \text{ the smallest for which } H_k + \lambda I + \tau_k D_k^2 "
                    r"\text{ is not indefinite and } |D_k d_k| \le \Delta_k",
                    r"D_k^2 = \max(D_{k-1}^2, |\text{diag}(H_k + \lambda I)|)",
                    r"x_{k+1} = x_k + d_k",
                ),
                "line_search": (
                    r"D_k = I, \quad \tau_k = 0 \text{ if } H_k + \lambda I \text{ is positive definite, "
                    r"else large enough}",
                    _SEARCHED,
                ),
            },
        ),
    ),
    "newton_cg": (
        r"d_k \text{ minimizes } g_k^T d + \frac{1}{2} d^T H_k d \text{ for } |d| \le \Delta_k, "
        r"\text{ approximately, by conjugate gradients}",
        r"x_{k+1} = x_k + d_k",
    ),
    "levenberg_marquardt": (
        r"\delta_k = - (J_k^T J_k + \mu_k D_k^2)^{-1} J_k^T r_k",
        By(
            "scaling",
            {
                "auto": (
                    r"D_k = I, \text{ or, for a plain function, } D_k^2 = \max(D_{k-1}^2, \text{diag}(J_k^T J_k))",
                ),
                "identity": (r"D_k = I",),
                "marquardt": (r"D_k^2 = \max(D_{k-1}^2, \text{diag}(J_k^T J_k))",),
            },
        ),
        By(
            "geodesic",
            {
                False: (r"x_{k+1} = x_k + \delta_k \text{ if } F \text{ falls, else } x_k",),
                True: (
                    r"a_k = - (J_k^T J_k + \mu_k D_k^2)^{-1} J_k^T \frac{d^2 r(x_k + t \delta_k)}{dt^2}",
                    r"x_{k+1} = x_k + \delta_k + a_k / 2 \text{ if } F \text{ falls, else } x_k",
                ),
            },
        ),
        By(
            "rule",
            {
                "auto": (r"\text{for a plain function:}", *_RADIUS, r"\text{for a network:}", *_MU["gain_ratio"]),
                "trust_region": _RADIUS,
                **_MU,
            },
        ),
    ),
    "bayesian_regularization": (
        r"F_B = \beta F + \alpha |x|^2",
        r"\delta_k = - \left( J_k^T J_k + \left( \frac{\alpha}{\beta} + \mu_k \right) I \right)^{-1} "
        r"\left( J_k^T r_k + \frac{\alpha}{\beta} x_k \right)",
        r"x_{k+1} = x_k + \delta_k \text{ if } F_B \text{ falls, else } x_k",
        r"\gamma = P - \alpha \, \text{tr} (\beta J^T J + \alpha I)^{-1}, \quad \alpha = \frac{\gamma}{2 |x|^2}, \quad "
        r"\beta = \frac{N - \gamma}{2 F}",
        By("rule", _MU),
    ),
    "conjugate_gradient": (
        _SEARCHED,
        By(
            "restart",
            {
                "powell_beale": (
                    r"d_{k+1} = - g_{k+1} + \beta_k d_k + \frac{g_{k+1}^T y_t}{d_t^T y_t} d_t, "
                    r"\text{ restarted at } t",
                ),
                "never": (r"d_{k+1} = - g_{k+1} + \beta_k d_k",),
                "gradient": (r"d_{k+1} = - g_{k+1} + \beta_k d_k, \text{ at a restart } - g_{k+1}",),
            },
        ),
        By(
            "beta",
            {
                "polak_ribiere_plus": (r"\beta_k = \max \left( 0, \frac{g_{k+1}^T y_k}{g_k^T g_k} \right)",),
                "polak_ribiere": (r"\beta_k = \frac{g_{k+1}^T y_k}{g_k^T g_k}",),
                "fletcher_reeves": (r"\beta_k = \frac{g_{k+1}^T g_{k+1}}{g_k^T g_k}",),
                "hestenes_stiefel": (r"\beta_k = \frac{g_{k+1}^T y_k}{d_k^T y_k}",),
                "dai_yuan": (r"\beta_k = \frac{g_{k+1}^T g_{k+1}}{d_k^T y_k}",),
            },
        ),
        r"y_k = g_{k+1} - g_k",
    ),
    "scaled_conjugate_gradient": (
        r"\delta_k = p_k^T H_k p_k + \lambda_k |p_k|^2, \quad \alpha_k = - \frac{p_k^T g_k}{\delta_k}",
        r"x_{k+1} = x_k + \alpha_k p_k",
        r"p_{k+1} = - g_{k+1} + \beta_k p_k, \quad \beta_k = \frac{|g_{k+1}|^2 - g_{k+1}^T g_k}{- p_k^T g_k}",
        r"\lambda_{k+1} = \begin{cases} \lambda_k / 4 & \rho_k \ge 3/4 \\ "
        r"\lambda_k + \delta_k (1 - \rho_k) / |p_k|^2 & \rho_k < 1/4 \\ \lambda_k & \text{else} \end{cases}, \quad "
        r"\rho_k = \frac{2 \delta_k (F(x_k) - F(x_{k+1}))}{(p_k^T g_k)^2}",
    ),
    "bfgs": (
        r"d_k = - B_k g_k",
        _SEARCHED,
        _CHANGES,
        r"B_{k+1} = \left( I - \frac{s_k y_k^T}{s_k^T y_k} \right) B_k \left( I - \frac{y_k s_k^T}{s_k^T y_k} \right) "
        r"+ \frac{s_k s_k^T}{s_k^T y_k}",
    ),
    "lbfgs": (
        r"d_k = - B_k g_k, \quad B_k \text{ from } \frac{s_{k-1}^T y_{k-1}}{y_{k-1}^T y_{k-1}} I "
        r"\text{ by the last pairs } s, y",
        _SEARCHED,
        _CHANGES,
    ),
    "hessian_free": (
        r"(G_k + \lambda_k I) \, \delta_k \approx - g_k \text{ by conjugate gradients}",
        r"x_{k+1} = x_k + \alpha_k \delta_k",
        r"\lambda_{k+1} = \lambda_k \cdot \begin{cases} 2/3 & \rho_k > 3/4 \\ 3/2 & \rho_k < 1/4 \\ 1 & \text{else} "
        r"\end{cases}, \quad \rho_k = \frac{F(x_k + \delta_k) - F(x_k)}"
        r"{g_k^T \delta_k + \frac{1}{2} \delta_k^T G_k \delta_k}",
    ),
    "kfac": (
        r"\Delta^m = - \left( S^m + \frac{\sqrt{\lambda}}{\pi} I \right)^{-1} \frac{\partial F}{\partial W^m} "
        r"\left( A^m + \pi \sqrt{\lambda} I \right)^{-1}",
        By(
            "momentum",
            {
                True: (
                    r"\delta_k = a \Delta_k + b \delta_{k-1}, \quad a, b \text{ minimize } "
                    r"g_k^T \delta + \frac{1}{2} \delta^T (G_k + \lambda I) \delta",
                ),
                False: (
                    r"\delta_k = a \Delta_k, \quad a \text{ minimizes } "
                    r"g_k^T \delta + \frac{1}{2} \delta^T (G_k + \lambda I) \delta",
                ),
            },
        ),
        r"x_{k+1} = x_k + \delta_k \text{ if } F \text{ falls, else } x_k",
    ),
    "variable_learning_rate": (
        r"d_k = \gamma d_{k-1} - (1 - \gamma) \alpha_k g_k, \text{ at the start and after a refusal } - \alpha_k g_k",
        r"x_{k+1} = x_k + d_k \text{ if } F(x_k + d_k) \le F(x_k) + \text{tolerance} \cdot |F(x_k)|, "
        r"\text{ else refused: } x_k",
        r"\alpha_{k+1} = \begin{cases} \text{increase} \cdot \alpha_k & F \text{ falls} \\ "
        r"\text{decrease} \cdot \alpha_k & \text{refused} \\ \alpha_k & \text{else} \end{cases}",
    ),
}
