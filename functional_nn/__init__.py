"""functional_nn: hand-written backpropagation as a first-class object, proved equal to `jax.grad`.

>>> import functional_nn as fnn
>>> network = fnn.multilayer((64, 32, 10), activations=("tanh", "softmax"))
>>> network.output.size
10
"""

from functional_nn import compiler

compiler.make_safe()  # before anything below lets XLA start

from functional_nn import optimizers, training
from functional_nn.gradients import comparison, curvature, methods, quantities, rules
from functional_nn.gradients.backprop import (
    Backpropagation,
    backpropagate,
    differentiable,
    objective,
    sensitivities,
    value_and_grad,
)
from functional_nn.gradients.comparison import Agreement, compare, compare_callables
from functional_nn.gradients.real_time import real_time_gradient
from functional_nn.gradients.rules import Rule
from functional_nn.networks import activations, connections, initializers, losses, presets
from functional_nn.networks.activations import Activation
from functional_nn.networks.connections import Connection
from functional_nn.networks.generation import generate
from functional_nn.networks.losses import Loss, class_weights, one_hot, smooth_labels
from functional_nn.networks.network import Layer, Network, Trace, graph, inference_mode, multilayer
from functional_nn.networks.stored import windows
from functional_nn.training import fit

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Agreement",
    "Backpropagation",
    "Connection",
    "Layer",
    "Loss",
    "Network",
    "Rule",
    "Trace",
    "activations",
    "backpropagate",
    "class_weights",
    "compare",
    "compare_callables",
    "comparison",
    "connections",
    "curvature",
    "differentiable",
    "fit",
    "generate",
    "graph",
    "inference_mode",
    "initializers",
    "losses",
    "methods",
    "multilayer",
    "objective",
    "one_hot",
    "optimizers",
    "presets",
    "quantities",
    "real_time_gradient",
    "rules",
    "sensitivities",
    "smooth_labels",
    "training",
    "value_and_grad",
    "windows",
]
