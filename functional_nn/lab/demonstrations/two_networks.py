"""Two networks that learn one task side by side, each by its own rule, for the page on learning rules.

Letters: Q examples, L layers, C classes, N grid points each way, K measurements. Both start with the same weights and
read the same batches: what `fit` does with the same key, a few epochs per call, with the learning rate as an argument.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn import training
from functional_nn.gradients import rules
from functional_nn.lab import datasets
from functional_nn.lab.demonstrations import classifier
from functional_nn.lab.demonstrations.classifier import EPOCHS
from functional_nn.optimizers import first_order
from functional_nn.training import interruption, keys, loop
from functional_nn.training.records import Batch, History, Run
from functional_nn.training.settings import Settings, check_settings, choose_plan

DIGITS = "digits"
TASKS = (*classifier.DATA, DIGITS)
ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu", "hardlim")
OPTIMIZERS = tuple(name for name in first_order.names() if not first_order.get(name).full_batch)
CLASSES = 10
_BATCH = {DIGITS: 50}  # and 20 in the plane


@dataclass(frozen=True)
class Choice:
    """What both networks have in common. hidden: the sizes of the hidden layers."""

    task: str = "two spirals"
    hidden: tuple[int, ...] = (16, 16)
    activation: str = "tanh"
    optimizer: str = "adam"
    seed: int = 0


class Learner(NamedTuple):
    """What each network has for itself: its rule as it was typed, and its learning rate."""

    rule: str
    rate: float


class Measured(NamedTuple):
    """Each layer's gradient by the rule compared with the exact one, over all training examples: the epochs (K,) of
    the measurements, the angles in degrees and the ratios of the norms, (K, L). nan if there is no exact gradient.
    """

    epochs: np.ndarray
    angles: np.ndarray
    ratios: np.ndarray


class Training(NamedTuple):
    """A run in progress: its state, its history (one row per epoch), the measurements, at the start and after each
    call, and the network's results: in the plane the outputs (N, N) over `classifier.axis()`, rows along the second
    input; for digits the confusion counts (C, C) of the held-out part, rows the class and columns the predicted class.
    """

    choice: Choice
    rule: rules.Rule | rules.ByLayer
    run: Run
    history: History
    measured: Measured
    seen: np.ndarray

    @property
    def params(self) -> Any:
        return self.run.state.params

    @property
    def ended(self) -> bool:
        return bool(int(self.run.ended))

    @property
    def reason(self) -> str:
        """How it ended, in words."""
        return interruption.describe_end(_settings(_key(self.choice), self.rule, 0.1), self.run, None)[1]


class Question(NamedTuple):
    """now: the two runs to continue for `epochs` epochs; None for new networks; for a refused one, the reason.

    turn: which pair of networks it is about, of all that a page has had.
    """

    choice: Choice
    learners: tuple[Learner, Learner]
    now: tuple[Training | str, Training | str] | None
    epochs: int
    turn: int = 0


class Answer(NamedTuple):
    """Both runs, continued; a rule that this network refuses is answered with the reason, and the other one
    continues.
    """

    question: Question
    sides: tuple[Training | str, Training | str]


def answer(question: Question) -> Answer:
    """Both runs, continued."""
    before = question.now or (None, None)
    return Answer(question, tuple(_side(question, *own) for own in zip(question.learners, before, strict=True)))


def _side(question: Question, learner: Learner, now: Training | str | None) -> Training | str:
    if isinstance(now, str):
        return now
    try:
        now = now or begin(question.choice, learner)
        return advance(now, learner.rate, question.epochs) if question.epochs and not now.ended else now
    except (ValueError, TypeError) as error:
        return str(error)


def data(task: str) -> tuple[Batch, Batch]:
    """The training and the held-out part: 200 points each, or four fifths of the digits and the rest."""
    if task == DIGITS:
        return _digits()
    inputs, targets = classifier.data(task)
    return tuple(Batch({"input": jnp.asarray(x)}, jnp.asarray(t)) for x, t in zip(inputs, targets, strict=True))


@functools.cache
def _digits() -> tuple[Batch, Batch]:
    parts = datasets.split(datasets.load("digits"))
    return tuple(Batch({"input": jnp.asarray(part.inputs)}, jnp.asarray(part.targets, float)) for part in parts)


def sizes(choice: Choice) -> tuple[int, ...]:
    """Sizes of the inputs, the hidden layers and the outputs."""
    return (64, *choice.hidden, CLASSES) if choice.task == DIGITS else (2, *choice.hidden, 1)


def network(choice: Choice) -> fnn.Network:
    """In the plane one sigmoid output, the probability of class 1; for digits one softmax output per class."""
    last = "softmax" if choice.task == DIGITS else "sigmoid"
    return fnn.multilayer(sizes(choice), (choice.activation,) * len(choice.hidden) + (last,))


def read(text: str) -> str:
    """Returns a typed rule without spaces around it. Raises ValueError for an invalid one."""
    try:
        rules.get(text.strip())
    except TypeError as error:  # a constant of another kind
        raise ValueError(str(error)) from None
    return text.strip()


def begin(choice: Choice, learner: Learner) -> Training:
    """The run before the first epoch. Raises ValueError for a rate that the optimizer refuses, and for a rule that
    is unknown or that the network does not support.
    """
    classifier.check_rate(choice.optimizer, learner.rate)
    rule, settings = rules.get(learner.rule), _settings(choice, learner.rule, learner.rate)
    fnn.value_and_grad(settings.network, settings.loss, rule)  # refuses a network without derivatives
    params = loop.initial_params(settings, jax.random.key(choice.seed))
    run = _compiled(_key(choice), rule)[0](learner.rate, params, data(choice.task)[0])
    nothing = np.zeros((0, len(settings.network.layers)))
    return _measure(choice, rule, run, classifier.NOTHING_YET, Measured(np.zeros(0, int), nothing, nothing))


def advance(now: Training, rate: float, epochs: int) -> Training:
    """The run `epochs` (1 to EPOCHS) later, or when it ended. Raises ValueError for a rate that the optimizer
    refuses.
    """
    choice, rule = now.choice, now.rule
    classifier.check_rate(choice.optimizer, rate)
    key = keys.plan(jax.random.key(choice.seed))
    run, table, count = _compiled(_key(choice), rule)[1](rate, now.run, *data(choice.task), key, epochs)
    return _measure(choice, rule, run, classifier.longer(now.history, table, count), now.measured)


def _key(choice: Choice) -> Choice:
    """The choice, with those fields made equal that do not change the compiled program."""
    task = choice.task if choice.task == DIGITS else Choice.task
    return Choice(task, choice.hidden, choice.activation, choice.optimizer)


def _settings(choice: Choice, rule: rules.Given, rate) -> Settings:
    size, digits = _BATCH.get(choice.task, 20), choice.task == DIGITS
    settings = check_settings(
        network(choice),
        "cross_entropy" if digits else "binary_cross_entropy",
        first_order.factory(choice.optimizer)(rate),
        plan=training.minibatch(size),
        rule=rule,
        correct=None if digits else classifier.right,
    )
    return choose_plan(settings, len(data(choice.task)[0].targets), False, EPOCHS)


@functools.lru_cache(maxsize=64)
def _compiled(choice: Choice, rule: rules.Rule | rules.ByLayer) -> tuple[Callable, Callable]:
    return classifier.in_portions(functools.partial(_settings, choice, rule))


def _measure(choice: Choice, rule, run: Run, history: History, before: Measured) -> Training:
    """The run with the measurements at its current state."""
    epoch = int(run.epoch)
    key = jax.random.fold_in(jax.random.key(choice.seed), epoch)
    cosines, ratios, seen = map(np.asarray, _measures(_key(choice), rule)(run.state.params, *data(choice.task), key))
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    pairs = zip(before, (epoch, angles, ratios), strict=True)
    return Training(choice, rule, run, history, Measured(*(np.concatenate([old, [new]]) for old, new in pairs)), seen)


@functools.lru_cache(maxsize=64)
def _measures(choice: Choice, rule: rules.Rule | rules.ByLayer) -> Callable:
    """(params, training part, held-out part, key) -> cosines (L,), ratios (L,), and the network's results."""
    own, loss = network(choice), _settings(choice, rule, 0.1).loss
    side = classifier.CELLS + 1
    points = np.stack(np.meshgrid(classifier.axis(), classifier.axis()), axis=-1).reshape(-1, 2)
    differentiable = all(layer.activation.pullback is not None for layer in rules.rewritten(rule, own).layers)

    def aligned(params, examples: Batch, key):
        if not differentiable:
            nothing = jnp.full(len(own.layers), jnp.nan)
            return nothing, nothing
        # all examples at once, so that a random rule draws as it does for one batch
        found = fnn.quantities.compute(
            own, loss, params, examples.inputs, examples.targets, ("alignment",), block=None, rule=rule, rule_key=key
        )["alignment"]
        layers = [found[layer.name] for layer in own.layers]
        return jnp.stack([each.gradient_cosine for each in layers]), jnp.stack([each.gradient_ratio for each in layers])

    def seen(params, held_out: Batch):
        params = rules.without_feedback(params)
        if choice.task != DIGITS:
            return own.apply(params, points).reshape(side, side)
        taken = jax.nn.one_hot(jnp.argmax(own.apply(params, held_out.inputs), axis=1), CLASSES, dtype=jnp.int32)
        return held_out.targets.astype(jnp.int32).T @ taken

    return jax.jit(lambda params, examples, held_out, key: (*aligned(params, examples, key), seen(params, held_out)))
