"""The settings of a training: everything but arrays, checked once and passed whole."""

import dataclasses
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from jax.sharding import Mesh

from functional_nn import optimizers, registry
from functional_nn.gradients import rules
from functional_nn.gradients.backprop import Along, check_trainable, value_and_grad
from functional_nn.networks import losses
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Network
from functional_nn.optimizers import regularizers
from functional_nn.optimizers.optimizer import Optimizer
from functional_nn.optimizers.regularizers import Regularizer
from functional_nn.optimizers.second_order import SecondOrder
from functional_nn.training import augmentation, termination
from functional_nn.training.augmentation import Augment, Augmented
from functional_nn.training.gradient import GRADIENTS, Gradient, gradient_by_rule, rule_of
from functional_nn.training.minibatches import BatchPlan, batch, minibatch
from functional_nn.training.records import Batch, Correct
from functional_nn.training.termination import Criterion
from functional_nn.training.tracking import Track, Tracked, check_track


@dataclass(frozen=True, kw_only=True)
class Common:
    """The settings that runs side by side have in common. They are hashable if the user's own callables are.

    Attributes:
        plan: None until the number of examples is known; see `choose_plan`.
        mesh: the devices over which each batch is laid, None for one device.
        columns: for lanes, whether the network's connections work in columns; see `for_lanes`. None for one run.
        augment: the augmentations of each update's inputs, by input.
    """

    network: Network
    loss: Loss
    plan: BatchPlan | None
    stop: tuple[Criterion, ...]
    gradient: Gradient
    correct: Correct | None
    track: Tracked
    mesh: Mesh | None = None
    columns: bool | None = None
    augment: Augmented = ()

    def settings(self, **own: Any) -> "Settings":
        """Returns the settings of one run, with those that only it has."""
        return Settings(**_in_common(self), **own)


@dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Everything but arrays that a run depends on. Made by `check_settings`.

    Attributes:
        mask: as in `train_step`.
    """

    optimizer: Optimizer | SecondOrder
    regularizer: Regularizer | None
    mask: Any = None

    @property
    def common(self) -> Common:
        """The settings that the run may have in common with others."""
        return Common(**_in_common(self))


def _in_common(settings: Common) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in fields(Common)}


def settings_among(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of a function's arguments, by name, that are settings: the parameters of `check_settings`."""
    return {name: arguments[name] for name in inspect.signature(check_settings).parameters}


def check_settings(
    network: Network,
    loss: Loss | str,
    optimizer: Optimizer | SecondOrder | str,
    *,
    plan: BatchPlan | None = None,
    regularizer: Regularizer | str | None = None,
    stop: Criterion | str | Sequence[Criterion | str] = (),
    gradient: Gradient | Literal["manual", "automatic", "perceptron"] = "manual",
    rule: rules.Given = "exact",
    correct: Correct | None = None,
    track: Track = (),
    augment: Augment = (),
) -> Settings:
    """Returns the settings of `fit`, checked as far as that needs no data. The arguments are those of `fit`.

    What depends on the data is checked by `choose_plan` and `data.prepare_data`.
    """
    if not isinstance(network, Network):
        raise TypeError(f"network: expected fnn.multilayer(...) or fnn.graph(...), got {type(network).__name__}")
    if not (correct is None or callable(correct)):
        raise TypeError(f"correct: expected a function, got {correct!r}")
    gradient = _check_gradient(network, gradient, rule)
    loss, optimizer = losses.get(loss), optimizers.get(optimizer)
    loss.check_classes(network.output.size)
    doubt = loss.doubt(network.output.activation.gives)
    if doubt is not None:
        warnings.warn(doubt, stacklevel=3)
    if plan is not None and not isinstance(plan, BatchPlan):
        raise TypeError(f"plan: expected training.batch(), minibatch(size) or stochastic(), got {plan!r}")
    return Settings(
        network=network,
        loss=loss,
        optimizer=optimizer,
        plan=plan,
        regularizer=None if regularizer is None else regularizers.get(regularizer),
        stop=_check_stop(stop),
        gradient=gradient,
        correct=correct,
        track=check_track(track),
        augment=augmentation.by_input(augment, {name: network.shapes[name] for name, _ in network.inputs}),
    )


def _check_gradient(network: Network, gradient: Any, rule: rules.Given) -> Gradient:
    """Returns the gradient by its name and rule. Raises ValueError or TypeError where there is none."""
    if isinstance(gradient, str):
        if gradient not in GRADIENTS:
            raise ValueError(registry.unknown("gradient", gradient, GRADIENTS))
        gradient = GRADIENTS[gradient]
    if not callable(gradient):
        raise TypeError(f"gradient: expected 'manual', 'automatic' or a function, got {gradient!r}")
    gradient = gradient_by_rule(gradient, rule)
    if gradient is value_and_grad or hasattr(gradient, "rule"):
        check_trainable(network, rule_of(gradient))
    return gradient


def _check_stop(stop: Criterion | str | Sequence[Criterion | str]) -> tuple[Criterion, ...]:
    """Returns the criteria by their names. Raises ValueError or TypeError for what is no criterion."""
    stop = tuple(stop) if isinstance(stop, tuple | list) else (stop,)
    for criterion in stop:
        if not termination.knows(criterion):
            names = f" (names: {', '.join(termination.names())})" if isinstance(criterion, str) else ""
            raise TypeError(f"stop: expected training.early_stopping(...) or the like, got {criterion!r}{names}")
    stop = tuple(map(termination.get, stop))
    if sum(criterion.score is not None for criterion in stop) > 1:
        raise ValueError("stop: only one criterion can restore the best parameters; give the others restore=False")
    return stop


def with_plan(settings: Settings, training: Batch, epochs: int) -> Settings:
    """Returns the settings with a plan that suits the data and the optimizer; as `choose_plan`, with the data."""
    settings = choose_plan(settings, len(training.targets), training.weights is not None, epochs)
    augmentation.check_shapes(settings.augment, training.inputs, settings.plan.size or len(training.targets))
    return settings


def choose_plan(settings: Settings, examples: int, weighted: bool, epochs: int) -> Settings:
    """Returns the settings with a plan that suits the optimizer and this number of examples.

    Raises ValueError where no plan does, before anything is compiled. weighted: whether the examples have weights.
    """
    optimizer, plan = settings.optimizer, settings.plan
    if plan is None:
        plan = batch() if optimizer.full_batch else minibatch(min(32, examples))
    updates = plan.updates(examples)
    if weighted and plan.importance is not None:
        raise ValueError("weights: importance() draws and weights examples itself; use minibatch(size) with weights")
    rule = rule_of(settings.gradient)
    _check_rule(rule, settings, plan)
    by_hand = settings.gradient is value_and_grad
    optimizer.check_gradient(by_hand, rules.written(rule) if isinstance(settings.gradient, Along) else None)
    optimizer.check_plan(plan, updates, epochs)
    if settings.augment and optimizer.full_batch:
        raise ValueError(
            f"augment: {optimizer.name} builds each step on the last one, on the same examples, and augmentation "
            "changes them in every update; use a method that takes mini-batches, such as 'adam'"
        )
    return dataclasses.replace(settings, plan=plan)


def _check_rule(rule: rules.Rule | rules.ByLayer, settings: Settings, plan: BatchPlan) -> None:
    """Raises ValueError for settings that need derivatives, where the rule trains layers that have none."""
    layers = rules.rewritten(rule, settings.network).layers
    if all(layer.activation.pullback is not None for layer in layers):
        return
    needing = [f"track: {name!r}" for name, function in settings.track if function is None]
    needing += ["plan: importance()"] if plan.importance is not None else []
    if needing:
        raise ValueError(
            f"{needing[0]} needs derivatives, and layers that the {rules.written(rule)} rule trains have none"
        )
