"""The loop: index streams, the compiled training step, per-example clipping, criteria for stopping, restarts."""

from functional_nn.training.clipping import clipped
from functional_nn.training.loop import Batch, FitResult, History, Outcome, evaluate, fit, pure_fit, train_step
from functional_nn.training.minibatches import BatchPlan, batch, importance, minibatch, stochastic
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
    "clipped",
    "early_stopping",
    "evaluate",
    "fit",
    "importance",
    "gradient_below",
    "loss_below",
    "minibatch",
    "no_change",
    "pure_fit",
    "stochastic",
    "train_step",
]
