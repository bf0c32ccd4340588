"""The loop: index streams, the compiled training step, and histories."""

from functional_nn.training.loop import FitResult, History, evaluate, fit, train_step
from functional_nn.training.minibatches import BatchPlan, batch, minibatch, stochastic

__all__ = [
    "BatchPlan",
    "FitResult",
    "History",
    "batch",
    "evaluate",
    "fit",
    "minibatch",
    "stochastic",
    "train_step",
]
