"""Small networks that predict the next character of a text, and everything about one prediction, for the page on
attention and time; and their training.

Letters: T positions, V characters, S neurons of a layer, H heads. There is one example, so arrays here are signals
(T, S), as in `networks.connections` without the batch. The networks learn from the Python reference, which every Python
includes (`pydoc_data.topics`), in lower case and with single spaces.
"""

import functools
import re
import string
import threading
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_nn as fnn
from functional_nn.gradients import backprop
from functional_nn.networks.activations.attention import Attended
from functional_nn.networks.network import Params, Trace
from functional_nn.training import minibatch

T = 32  # the longest text
CHARACTERS = " " + string.ascii_lowercase + string.digits + ".,:;!?'()-=_"
LOSS = fnn.losses.cross_entropy("sum", positions="sum")
PRESETS = {
    "transformer": "transformer(layers=2, heads=2, width=32)",
    "gru": "gru(width=64)",
    "lstm": "lstm(width=64)",
}
UPDATES = {"transformer": 1400, "gru": 800, "lstm": 800}  # at least, with BATCH texts each: at most half a minute
RATES = {"transformer": 0.008, "gru": 0.01, "lstm": 0.02}
BATCH = 32
_STATES = {
    "gru": ("state h", "reset gate r", "update gate u", "candidate c"),
    "lstm": ("state h", "memory m", "input gate i", "forget gate p", "candidate c", "output gate o"),
}
_training = threading.Lock()  # a session that needs a network in training waits for it


@functools.cache
def network(name: str) -> fnn.Network:
    """One of PRESETS: T characters -> at each position the probabilities of the next, (T, V)."""
    return fnn.presets.get(PRESETS[name])((T,), len(CHARACTERS), tokens=len(CHARACTERS), each_position=True)


def views(name: str) -> tuple[str, ...]:
    """The names of what can be shown inside a network."""
    return _STATES.get(name, tuple(f"layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2)))


def reader(name: str) -> str:
    """The layer that reads the characters."""
    return network(name).layers[0].name


@functools.cache
def reference() -> str:
    """The training text, with CHARACTERS only: without the signs of its markup and the lines below headings."""
    from pydoc_data.topics import topics  # half a megabyte

    joined = " ".join(topics[name] for name in sorted(topics)).lower()
    joined = re.sub(r"([^\w\s])\1{3,}|_{3,}", " ", joined)
    return " ".join("".join(one for one in joined if one in CHARACTERS or one.isspace()).split())


def tokens(text: str) -> np.ndarray:
    """(len(text),) integers: the index of each character in CHARACTERS."""
    return np.array([CHARACTERS.index(one) for one in text], np.int32)


def read(text: str) -> str:
    """Returns a visitor's text in lower case.

    >>> read("The zen")
    'the zen'

    Raises ValueError, with what is accepted, for an empty text, more than T characters, and others than CHARACTERS.
    """
    small = text.lower()
    if not small:
        raise ValueError(f"expected 1 to {T} characters, got nothing")
    if strange := "".join(dict.fromkeys(one for one in small if one not in CHARACTERS)):
        raise ValueError(f"expected letters a to z, digits, spaces and {CHARACTERS[37:]}, got {strange!r}")
    if len(small) > T:
        raise ValueError(f"expected 1 to {T} characters, got {len(small)}")
    return small


class Trained(NamedTuple):
    """A network's parameters, and how many bits per character it needs on the held-out text."""

    params: Params
    bits: float


def trained(name: str) -> Trained:
    """Trains a network once per process, always with the same result, on all but the last twentieth of the
    reference.
    """
    with _training:
        return _trained(name)


@functools.cache
def _trained(name: str) -> Trained:
    read = tokens(reference())
    seen = len(read) * 19 // 20
    training = fnn.windows(read[: min(seen, UPDATES[name] * BATCH * T) + 1], T)
    each = len(training) // BATCH
    epochs = -(-UPDATES[name] // each)
    rate = fnn.optimizers.schedules.cosine(RATES[name], epochs * each, RATES[name] / 50)
    found = fnn.fit(
        network(name),
        "cross_entropy",
        fnn.optimizers.adam(rate),
        training,
        key=jax.random.key(0),
        epochs=epochs,
        plan=minibatch(BATCH),
    )
    nats, _ = fnn.training.evaluate(network(name), "cross_entropy", found.params, fnn.windows(read[seen:], T))
    return Trained(jax.tree.map(np.asarray, found.params), float(nats / np.log(2)))


class Question(NamedTuple):
    """What is requested: a network of PRESETS, a text that `read` has accepted, how many of its characters are read,
    from 1; and what is predicted: the character that follows in the text, or the most probable one, as if nothing
    follows.
    """

    network: str
    text: str
    count: int
    follows: bool


class Found(NamedTuple):
    """Everything the page shows for a question, as NumPy arrays, for its L characters only.

    character: the predicted one; value F = -ln of its probability after `count` characters; probabilities (L, V) after
    each character; sensitivities {layer: dF/dn (L, S)}, 0 from `count` on; inside: for the transformer {"layer 1, head
    1": (L, L)}, what each query (row) attends to; for the others {"state h": (L, S), ...}, with the gates; changes
    (L,): |h_t - h_(t-1)| of their states, empty for the transformer. differences: the largest differences between
    hand-written sensitivities and those of `jax.grad`, by layer; gradient_difference: the same for all parameters.
    """

    character: str
    value: np.ndarray
    probabilities: np.ndarray
    sensitivities: dict[str, np.ndarray]
    inside: dict[str, np.ndarray]
    changes: np.ndarray
    differences: dict[str, np.ndarray]
    gradient_difference: np.ndarray


def answer(question: Question) -> tuple[Question, Found]:
    """The answer to a question, once its network is trained."""
    return question, compute(question, trained(question.network).params)


def compute(question: Question, params: Params) -> Found:
    """The same for any parameters."""
    name, text, count, follows = question
    padded = np.zeros(T, np.int32)
    padded[: len(text)] = tokens(text)
    wanted = padded[count] if follows and count < len(text) else np.int32(-1)
    whole = jax.tree.map(np.asarray, _program(name)(params, padded, count - 1, wanted))
    # padding after the text does not change what comes before
    L, layers = len(text), [layer.name for layer in network(name).layers]
    inside = {view: whole.inside[view][:L] for view in views(name)}
    return whole._replace(
        character=CHARACTERS[int(whole.character)],
        probabilities=whole.probabilities[:L],
        sensitivities={layer: whole.sensitivities[layer][:L] for layer in layers},
        inside={view: x[:, :L] for view, x in inside.items()} if name == "transformer" else inside,
        changes=whole.changes[:L],
        differences={layer: whole.differences[layer] for layer in layers},
    )


@functools.cache
def _program(name: str) -> Callable[..., tuple]:
    """(params, tokens (T,), position, wanted: a character or -1) -> `Found` for all T positions, with the
    character's number instead of the character.
    """
    network_ = network(name)

    @jax.jit
    def run(params, read, position, wanted):
        inputs = {"sequence": read[None]}
        outputs = network_.apply(params, inputs)[0]
        character = jnp.where(wanted < 0, jnp.argmax(outputs[position]).astype(wanted.dtype), wanted)
        # only the loss at the chosen position counts
        targets, counts = jnp.full((1, T), character), (jnp.arange(T) == position)[None].astype(outputs.dtype)
        by_hand = fnn.backpropagate(network_, LOSS, params, inputs, targets, counts)
        s, trace = by_hand.sensitivities, by_hand.trace

        def shifted(params, offsets):
            own = network_.prepare(params, inputs)
            coded = network_.prepare_targets(own, targets, LOSS, outputs.dtype)
            return backprop.loss_value(network_, LOSS, network_.forward(params, own, offsets), coded, counts)

        none = jax.tree.map(jnp.zeros_like, trace.net_inputs)
        automatic, automatic_s = jax.grad(shifted, argnums=(0, 1))(params, none)
        differences = {layer: _apart(s[layer], automatic_s[layer]) for layer in s}
        inside, changes = _inside(name, params, trace)
        alone = functools.partial(jax.tree.map, lambda x: x[0])
        return Found(
            character,
            by_hand.value,
            outputs,
            alone(s),
            inside,
            changes,
            differences,
            _apart(by_hand.gradients, automatic),
        )

    return run


def _apart(one, other):
    """The largest difference between the numbers of two trees."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x - y)) for x, y in pairs]))


def _inside(name: str, params: Params, trace: Trace) -> tuple[dict[str, jax.Array], jax.Array]:
    """`inside` and `changes` of the result, (T, ...)."""
    if name == "transformer":
        attended = [kept.probabilities[0] for kept in trace.kept.values() if isinstance(kept, Attended)]
        heads = [p for layer in attended for p in layer]
        return dict(zip(views(name), heads, strict=True)), jnp.zeros(0)
    layer = reader(name)
    h, kept, initial = trace.activations[layer][0], trace.kept[layer], params[layer]["learned"]["initial"]
    shown = [h, *(states[:, 0] for states in kept.states), *(values[:, 0] for values in kept.cells)]
    found = dict(zip(views(name), shown, strict=False))  # a gru has one more cell array
    return found, jnp.linalg.norm(jnp.diff(h, axis=0, prepend=initial[None]), axis=-1)
