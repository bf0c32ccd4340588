"""How parameters move: pure `(state, grads) -> state` functions."""

from functional_nn.optimizers.first_order import Optimizer, adam, gd, get, momentum, names, register

__all__ = ["Optimizer", "adam", "gd", "get", "momentum", "names", "register"]
