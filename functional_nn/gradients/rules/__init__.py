r"""Learning rules: what crosses a connection on the way back, as a parameter of the recursion.

Letters: Q examples, S neurons of a layer, R of what it reads, s = dF/dn and g = dF/da as in `backprop`, W the weights
of a connection, B the matrix that replaces them on the way back, M the output layer.

========================  =============================================  ==============================================
rule                      on the way back                                source
========================  =============================================  ==============================================
`exact`                   g = s W                                        what `jax.grad` computes
`feedback_alignment`      g = s B, B random and fixed                    Lillicrap et al. 2016 (Nat. Commun. 7, 13276)
`direct_feedback`         g = s^M B, B random and fixed                  Nokland 2016 (arXiv 1609.01596), Eq. 7
`sign_symmetric`          g = s B, B of the signs of W                   Liao, Leibo, Poggio 2016 (1510.05067), Sec. 3
`kolen_pollack`           g = s B, B learned: dB = dW, and both decay    Akrout et al. 2019 (1904.05391), Eq. 16, 17
`weight_mirror`           g = s B, B learned from noise through W        the same, Eq. 7 and 8
`noisy`                   s plus noise
`rounded`                 s in few bits                                  Gupta et al. 2015 (1502.02551)
`dropped_back`            some elements of s
`clipped_back`            s_q no longer than a bound, in every layer
`surrogate`               s = g f~'(n), f~' where f has no derivative    Zenke and Ganguli 2018 (1705.11146), Eq. 5
========================  =============================================  ==============================================

All of them cross a connection without weights (a residual, pooling) exactly. Rules that need no way back, or have their
own, are in `fnn.methods`; `names` lists them too. With {layer: rule}, a rule covers what the named layer sends *back*,
and that layer's own s; "others" stands for the remaining layers, which are exact by default.

A rule of your own is one line. Register a function that makes it, and the rule is known by the function's name:

>>> import functional_nn as fnn
>>> damped = fnn.Rule("damped", carry=lambda edge, s: 0.9 * edge.back(s))
>>> network = fnn.multilayer((4, 3, 2), ("tanh", "softmax"))
>>> gradient = fnn.value_and_grad(network, "cross_entropy", rule={"layer2": damped})
"""

from functional_nn.gradients.rules.feedback import (
    direct_feedback,
    feedback_alignment,
    feedback_weights,
    kolen_pollack,
    sign_symmetric,
    weight_mirror,
)
from functional_nn.gradients.rules.feedback import drawn as drawn
from functional_nn.gradients.rules.feedback import glorot as glorot
from functional_nn.gradients.rules.feedback import places_of as places_of
from functional_nn.gradients.rules.lookup import ByLayer as ByLayer
from functional_nn.gradients.rules.lookup import Given as Given
from functional_nn.gradients.rules.lookup import _named as _named  # pickles of earlier versions find it here
from functional_nn.gradients.rules.lookup import (
    begin,
    exact,
    get,
    names,
    register,
    without_feedback,
)
from functional_nn.gradients.rules.lookup import check_initialized as check_initialized
from functional_nn.gradients.rules.lookup import factory as factory
from functional_nn.gradients.rules.lookup import is_exact as is_exact
from functional_nn.gradients.rules.lookup import is_random as is_random
from functional_nn.gradients.rules.lookup import knows as knows
from functional_nn.gradients.rules.lookup import learns as learns
from functional_nn.gradients.rules.lookup import method_of as method_of
from functional_nn.gradients.rules.lookup import number as number
from functional_nn.gradients.rules.lookup import of_layers as of_layers
from functional_nn.gradients.rules.lookup import rewritten as rewritten
from functional_nn.gradients.rules.lookup import rules_in as rules_in
from functional_nn.gradients.rules.lookup import written as written
from functional_nn.gradients.rules.rule import Edge, Place, Rule
from functional_nn.gradients.rules.sensitivities import (
    clipped_back,
    dropped_back,
    noisy,
    rounded,
    surrogate,
)

__all__ = [
    "Edge",
    "Place",
    "Rule",
    "begin",
    "clipped_back",
    "direct_feedback",
    "dropped_back",
    "exact",
    "feedback_alignment",
    "feedback_weights",
    "get",
    "kolen_pollack",
    "names",
    "noisy",
    "register",
    "rounded",
    "sign_symmetric",
    "surrogate",
    "weight_mirror",
    "without_feedback",
]
