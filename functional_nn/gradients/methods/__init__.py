"""Learning rules that need no way back along the connections, or have their own: each makes the whole gradient.

`fnn.rules.names()` lists them with the rules that only change what crosses a connection, and they are given in the same
way: `fnn.fit(..., rule="forward_gradient")`.
"""

from functional_nn.gradients.methods import (
    estimators,
    forward_forward,
    local_loss,
    one_layer,
    predictive_coding,
    target_propagation,
)

__all__ = ["estimators", "forward_forward", "local_loss", "one_layer", "predictive_coding", "target_propagation"]
