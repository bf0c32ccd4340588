"""Data as a network and a loss take it, checked: training data, validation data, and streams of tokens."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from functional_nn import checks
from functional_nn.gradients import rules
from functional_nn.networks import losses
from functional_nn.networks.network import dtype_of
from functional_nn.networks.stored import Labels, Rows, Windows, at_most_32_bits, placed, whole
from functional_nn.training.gradient import rule_of
from functional_nn.training.records import Batch
from functional_nn.training.settings import Settings
from functional_nn.training.tracking import ValidationMetric


def prepare_data(
    settings: Settings, params, inputs, targets, validation, weights=None, class_weights=None, place: Callable = placed
) -> tuple[Batch, Batch | None]:
    """Returns the training and the validation data, checked against the settings; None for no validation data.

    The arguments are those of `fit`; place as in `prepare_batch`.
    """
    network, loss = settings.network, settings.loss
    training = prepare_batch(network, loss, params, inputs, targets, weights, class_weights, place)
    check_learnable(settings, training)
    for criterion in settings.stop:
        if criterion.validation and validation is None:
            raise ValueError(f"stop: {criterion.name} needs validation=(inputs, targets)")
        if criterion.accuracy and not (settings.correct or settings.loss.correct):
            raise ValueError(f"stop: {settings.loss.name} has no rule for right answers; give fit correct=...")
    for name, function in settings.track:
        if isinstance(function, ValidationMetric) and validation is None:
            raise ValueError(f"track: {name!r} is measured on validation data; give validation=(inputs, targets)")
    if validation is None:
        return training, None
    validation = (validation, None) if isinstance(validation, Windows) else validation
    pair = isinstance(validation, tuple | list) and len(validation) in (2, 3)
    each = len(network.shapes[network.output.name])  # (Q, *P), as many axes as one example's outputs
    if not pair or (len(validation) == 3 and np.ndim(validation[2]) > each):
        given = f"{type(validation).__name__}{f' of {len(validation)}' if isinstance(validation, tuple | list) else ''}"
        raise TypeError(f"validation: expected a pair (inputs, targets), got {given}; weights (Q,) may be third")
    try:
        held_out = prepare_batch(network, loss, params, *validation, place=place)
        check_learnable(settings, held_out)
        return training, held_out
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation {error}") from None


def check_learnable(settings: Settings, data: Batch) -> None:
    """Raises ValueError if a learning rule cannot learn these targets."""
    for own in rules.rules_in(rule_of(settings.gradient)):
        if own.check_targets is not None:
            own.check_targets(settings.network, whole(data.targets))


def prepare_batch(
    network, loss, params, inputs, targets, weights=None, class_weights=None, place: Callable = placed
) -> Batch:
    """Returns data as the network and the loss take it, checked. Its weights include those of the classes.

    Windows of a stream are kept as they are. So are integer labels of positions: one-hot, those of a whole data set
    would take many times their memory. place: `stored.in_place`, if large arrays on the host, and their labels, are to
    stay there; by default they are copied to the device.
    """
    stream = _stream(inputs)
    if isinstance(targets, Labels):  # prepared before
        targets = targets.numbers if stream is None else None
    if stream is not None:
        if targets is not None or class_weights is not None:
            given = "class_weights" if targets is None else "targets"
            raise ValueError(f"{given}: windows of a stream bring their own targets, one at each position; give None")
        prepared, coded = _prepare_stream(network, loss, stream, dtype_of(params))
    else:
        prepared = network.prepare(params, inputs, place)
        coded = _labels(network, loss, params, prepared, targets)
        if coded is None:
            coded = network.prepare_targets(prepared, targets, loss, dtype_of(params), place)
    if class_weights is not None:
        if isinstance(coded, Labels):
            of_class = losses.weights_of_labels(coded.numbers, coded.outputs, class_weights)
        else:
            # integers at positions look like rows of classes, unless they are coded
            given = targets if isinstance(coded, Rows) or coded.ndim == 2 else coded
            of_class = losses.class_weights(given, class_weights)
        own = None if weights is None else network.prepare_weights(prepared, weights)
        weights = of_class if own is None else losses.spread(own, of_class.shape) * of_class
    # what one label is coded as, all are
    loss.check_targets(coded[:1] if isinstance(coded, Labels) else targets if isinstance(coded, Rows) else coded)
    return Batch(prepared, coded, network.prepare_weights(prepared, weights))


def _stream(inputs: Any) -> Windows | None:
    given = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    return next((x for x in given if isinstance(x, Windows)), None)


def _labels(network, loss, params, prepared, targets) -> Labels | None:
    """Returns integer labels `(Q, *P)` of several classes, checked, if they are to be kept as integers; else None.

    They are kept where outputs have positions or inputs are read in place.
    """
    checks.numeric("targets", targets)
    each = (len(next(iter(prepared.values()))), *network.shapes[network.output.name][:-1])
    outputs = network.output.size
    if targets.shape != each or outputs == 1 or targets.dtype.kind not in "biu":
        return None
    if len(each) == 1 and not any(isinstance(x, Rows) for x in prepared.values()):
        return None
    losses.check_labels(targets, outputs)
    return Labels(at_most_32_bits(targets), loss, outputs, dtype_of(params))


def _prepare_stream(network, loss, stream: Windows, dtype) -> tuple[dict[str, Windows], Labels]:
    """Returns a stream's windows, and those of the tokens that follow them.

    Raises ValueError if they are not what the network reads and predicts.
    """
    name, outputs = network.inputs[0][0], network.output.size
    reads, gives = network.shapes[name], network.shapes[network.output.name]
    reads_tokens = len(network.inputs) == 1 and name in network.tokens
    if not reads_tokens or reads != (stream.context,) or gives[:-1] != reads or outputs == 1:
        kind = "tokens" if reads_tokens else "inputs"
        raise ValueError(
            f"inputs: windows of {stream.context} tokens are for a network of one input of as many tokens and outputs "
            f"({stream.context}, S) at each, got {kind} of shape {reads} and outputs of shape {gives}"
        )
    least = min(network.tokens[name], outputs)
    if checks.is_concrete(stream.tokens):
        index = checks.first(stream.tokens, lambda block: (block < 0) | (block >= least))
        if index is not None:
            found = int(np.asarray(stream.tokens)[index])
            raise ValueError(f"inputs: expected tokens 0 to {least - 1}, got {found} at index {index[0]}")
    tokens = at_most_32_bits(stream.tokens)  # one copy, of which inputs and targets are windows
    following = Windows(tokens, stream.context, 1)
    return {name: Windows(tokens, stream.context)}, Labels(following, loss, outputs, dtype)
