"""Methods that may evaluate more than one gradient a step, `(state, problem) -> state`, and their problems.

Most use curvature; `variable_learning_rate` does not, and is here because it judges its steps by the problem's F.

`problem_from` makes a problem, `minimize` runs a method on it from one start, and `restarts` from many. A new method is
a function that returns a `SecondOrder`, decorated with `register`.
"""

from functional_nn.optimizers.second_order.conjugate_gradient import conjugate_gradient, scaled_conjugate_gradient
from functional_nn.optimizers.second_order.hessian_free import hessian_free, kfac
from functional_nn.optimizers.second_order.levenberg_marquardt import bayesian_regularization, levenberg_marquardt
from functional_nn.optimizers.second_order.many_starts import restarts
from functional_nn.optimizers.second_order.method import SecondOrder, factory, get, knows, names, register
from functional_nn.optimizers.second_order.minimization import minimize
from functional_nn.optimizers.second_order.newton import newton, newton_cg
from functional_nn.optimizers.second_order.problem import Functions, Problem, problem_from
from functional_nn.optimizers.second_order.quasi_newton import bfgs, lbfgs
from functional_nn.optimizers.second_order.solution import Path, Solution
from functional_nn.optimizers.second_order.state import REASONS, STATUSES, Counts, State
from functional_nn.optimizers.second_order.variable_learning_rate import variable_learning_rate

__all__ = [
    "REASONS",
    "STATUSES",
    "Counts",
    "Functions",
    "Path",
    "Problem",
    "SecondOrder",
    "Solution",
    "State",
    "bayesian_regularization",
    "bfgs",
    "conjugate_gradient",
    "factory",
    "get",
    "hessian_free",
    "kfac",
    "knows",
    "lbfgs",
    "levenberg_marquardt",
    "minimize",
    "names",
    "newton",
    "newton_cg",
    "problem_from",
    "register",
    "restarts",
    "scaled_conjugate_gradient",
    "variable_learning_rate",
]
