"""Training: the loop, batches, criteria for stopping, populations, checkpoints and logs."""

from functional_nn.training import augmentation, checkpoints, logs, search, termination
from functional_nn.training.augmentation import Augmentation
from functional_nn.training.checkpoints import CheckpointError
from functional_nn.training.chunked_data import Chunks, chunks, mapped
from functional_nn.training.clipping import clipped
from functional_nn.training.divisions import Division, divide
from functional_nn.training.evaluation import confusion_matrix, evaluate
from functional_nn.training.loop import FitResult, Outcome, fit, pure_fit
from functional_nn.training.minibatches import BatchPlan, batch, importance, minibatch, stochastic
from functional_nn.training.multistart import Restarts, best_of
from functional_nn.training.populations import Progress, fit_population
from functional_nn.training.problems import problem
from functional_nn.training.records import Batch, History, Metrics
from functional_nn.training.results import Drift, Population
from functional_nn.training.search import grid, random_search, successive_halving
from functional_nn.training.step import train_step
from functional_nn.training.termination import (
    Criterion,
    cycle,
    early_stopping,
    generalization_loss,
    gradient_below,
    loss_below,
    no_change,
    progress_below,
    progress_quotient,
    successive_increases,
    unchanged,
)
from functional_nn.training.tracking import of_state, of_validation

__all__ = [
    "Augmentation",
    "Batch",
    "BatchPlan",
    "CheckpointError",
    "Chunks",
    "Criterion",
    "Division",
    "Drift",
    "FitResult",
    "History",
    "Metrics",
    "Outcome",
    "Population",
    "Progress",
    "Restarts",
    "augmentation",
    "batch",
    "best_of",
    "checkpoints",
    "chunks",
    "clipped",
    "confusion_matrix",
    "cycle",
    "divide",
    "early_stopping",
    "evaluate",
    "fit",
    "fit_population",
    "generalization_loss",
    "gradient_below",
    "grid",
    "importance",
    "logs",
    "loss_below",
    "mapped",
    "minibatch",
    "no_change",
    "of_state",
    "of_validation",
    "problem",
    "progress_below",
    "progress_quotient",
    "pure_fit",
    "random_search",
    "search",
    "stochastic",
    "successive_halving",
    "successive_increases",
    "termination",
    "train_step",
    "unchanged",
]
