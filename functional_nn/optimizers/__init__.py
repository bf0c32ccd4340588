"""How parameters move: pure `(state, grads) -> state` functions, schedules of their constants, penalties, wrappers.

First-order methods are in `first_order`, and their constants in `constants`: one for all parameters, or one for each
layer or array by its name, `gd({"layer1": 0.1, "others": 0.01})`, also as a name `"gd({layer1: 0.1, others: 0.01})"`.
Methods that may evaluate more than one gradient a step, `(state, problem) -> state`, are in `second_order`.
"""

from functional_nn import registry
from functional_nn.optimizers import first_order, line_searches, regularizers, schedules, second_order
from functional_nn.optimizers.curve_fitting import CurveFit, curve_fit
from functional_nn.optimizers.first_order import (
    Optimizer,
    adadelta,
    adagrad,
    adam,
    adamax,
    adamw,
    amsgrad,
    full_matrix_adagrad,
    gd,
    momentum,
    nadam,
    names,
    nesterov,
    register,
    rmsprop,
    rprop,
)
from functional_nn.optimizers.second_order import (
    Problem,
    SecondOrder,
    bayesian_regularization,
    bfgs,
    conjugate_gradient,
    hessian_free,
    kfac,
    lbfgs,
    levenberg_marquardt,
    minimize,
    newton,
    newton_cg,
    problem_from,
    restarts,
    scaled_conjugate_gradient,
    variable_learning_rate,
)
from functional_nn.optimizers.wrappers import (
    accumulate,
    average,
    choose,
    clip_by_global_norm,
    clip_by_value,
    coupled_weight_decay,
    decoupled_weight_decay,
    freeze,
    from_optax,
    keep_pruned,
    reduce_on_plateau,
)

__all__ = [
    "CurveFit",
    "Optimizer",
    "Problem",
    "SecondOrder",
    "accumulate",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "amsgrad",
    "average",
    "bayesian_regularization",
    "bfgs",
    "choose",
    "clip_by_global_norm",
    "clip_by_value",
    "conjugate_gradient",
    "coupled_weight_decay",
    "curve_fit",
    "decoupled_weight_decay",
    "freeze",
    "from_optax",
    "full_matrix_adagrad",
    "gd",
    "get",
    "hessian_free",
    "keep_pruned",
    "kfac",
    "lbfgs",
    "levenberg_marquardt",
    "line_searches",
    "minimize",
    "momentum",
    "nadam",
    "names",
    "nesterov",
    "newton",
    "newton_cg",
    "problem_from",
    "reduce_on_plateau",
    "register",
    "regularizers",
    "restarts",
    "rmsprop",
    "rprop",
    "scaled_conjugate_gradient",
    "schedules",
    "second_order",
    "variable_learning_rate",
]


def get(optimizer: str | Optimizer | SecondOrder) -> Optimizer | SecondOrder:
    """Returns the optimizer with this name, of first or second order.

    Args:
        optimizer: A name, with arguments where wanted, such as "adam(0.01)" or "lbfgs(history=5)"; an optimizer is
            returned as it is. `names()` lists the first-order ones, `second_order.names()` the others.

    Returns:
        The optimizer.

    Raises:
        ValueError: The name is unknown, or its arguments are refused.
        TypeError: It is neither a name nor an optimizer.

    Example:
        >>> from functional_nn import optimizers
        >>> optimizers.get("adam(0.01)").constants["learning_rate"]
        0.01
        >>> optimizers.get("lbfgs(history=5)") is optimizers.lbfgs(history=5)
        True
    """
    if second_order.knows(optimizer):
        return second_order.get(optimizer)
    if isinstance(optimizer, str) and optimizer.strip().isidentifier() and not first_order.knows(optimizer):
        raise ValueError(registry.unknown("optimizer", optimizer, (*names(), *second_order.names())))
    return first_order.get(optimizer)
