"""Rules that have no way back along the connections, or one of their own: each makes the whole gradient.

`rules.names()` lists them beside those that only change what crosses a connection, and they are given likewise:
`fit(..., rule="forward_gradient")`.
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
