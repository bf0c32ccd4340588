"""Activations a = f(n): each row holds its forward map, its hand-written pullback and its second-order action.

An activation is named in a layer: `fnn.Layer("hidden", 8, "leaky_relu(0.1)")`. The rows are those of single neurons
(elementwise functions, softmax, maxout), and of whole signals: pooling, normalization, gates, positions, attention and
recurrences. `elementwise` makes a custom one, `register` gives it a name, and `Activation` says what each of its
functions computes.
"""

from functional_nn.networks.activations.activation import (
    Activation,
    Running,
    elementwise,
    get,
    names,
    output_shape,
    register,
)

# for the other floors and the rest of this one
from functional_nn.networks.activations.activation import Range as Range
from functional_nn.networks.activations.activation import Theta as Theta
from functional_nn.networks.activations.activation import check_examples_apart as check_examples_apart
from functional_nn.networks.activations.activation import counted as counted
from functional_nn.networks.activations.activation import kept_size as kept_size
from functional_nn.networks.activations.activation import learned_at_start as learned_at_start
from functional_nn.networks.activations.activation import mixes as mixes
from functional_nn.networks.activations.activation import mixes_examples as mixes_examples
from functional_nn.networks.activations.activation import started as started
from functional_nn.networks.activations.attention import attention
from functional_nn.networks.activations.gates import geglu, glu, sinusoidal, swiglu
from functional_nn.networks.activations.neurons import (
    celu,
    elu,
    gelu,
    hard_sigmoid,
    hard_tanh,
    hardlim,
    hardlims,
    leaky_relu,
    linear,
    maxout,
    mish,
    prelu,
    relu,
    relu6,
    selu,
    shifted_relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    softsign,
    tanh,
)
from functional_nn.networks.activations.neurons import largest_in_row as largest_in_row
from functional_nn.networks.activations.normalization import batch_norm, group_norm, layer_norm, rms_norm
from functional_nn.networks.activations.pooling import max_pool, mean_pool
from functional_nn.networks.activations.recurrence import gru, lstm, recurrent

__all__ = [
    "Activation",
    "Running",
    "attention",
    "batch_norm",
    "celu",
    "elementwise",
    "elu",
    "geglu",
    "gelu",
    "get",
    "glu",
    "group_norm",
    "gru",
    "hard_sigmoid",
    "hard_tanh",
    "hardlim",
    "hardlims",
    "layer_norm",
    "leaky_relu",
    "linear",
    "lstm",
    "max_pool",
    "maxout",
    "mean_pool",
    "mish",
    "names",
    "output_shape",
    "prelu",
    "recurrent",
    "register",
    "relu",
    "relu6",
    "rms_norm",
    "selu",
    "shifted_relu",
    "sigmoid",
    "silu",
    "sinusoidal",
    "softmax",
    "softplus",
    "softsign",
    "swiglu",
    "tanh",
]
