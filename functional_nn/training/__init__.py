"""The loop: index streams, the compiled training step, criteria for stopping, restarts, and histories."""

from functional_nn.training.loop import Batch, FitResult, History, Outcome, evaluate, fit, pure_fit, train_step
from functional_nn.training.minibatches import BatchPlan, batch, minibatch, stochastic
from functional_nn.training.restarts import Restarts, best_of
from functional_nn.training.termination import Criterion, early_stopping, gradient_below, loss_below, no_change

__all__ = [
    "Batch",
    "BatchPlan",
    "Criterion",
    "FitResult",
    "History",
    "Outcome",
    "Restarts",
    "batch",
    "best_of",
    "early_stopping",
    "evaluate",
    "fit",
    "gradient_below",
    "loss_below",
    "minibatch",
    "no_change",
    "pure_fit",
    "stochastic",
    "train_step",
]
