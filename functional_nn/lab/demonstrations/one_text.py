"""Small networks that predict the next character of a text, and one prediction of theirs, whole: what the page of
attention and time shows, and their training.

Letters: T positions, V characters, S neurons of a layer, H heads. There is one example, so that arrays here are signals
(T, S), as in `networks.connections` without the batch. What is learned is the Python reference, of which every Python
has a copy (`pydoc_data.topics`), in small letters and with single spaces.
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
UPDATES = {"transformer": 1400, "gru": 800, "lstm": 800}  # at least, of BATCH texts each: half a minute, and less
RATES = {"transformer": 0.008, "gru": 0.01, "lstm": 0.02}
BATCH = 32
_STATES = {
    "gru": ("state h", "reset gate r", "update gate u", "candidate c"),
    "lstm": ("state h", "memory m", "input gate i", "forget gate p", "candidate c", "output gate o"),
}
_one_at_a_time = threading.Lock()  # who asks for a network in training waits for it


@functools.cache
def network(name: str) -> fnn.Network:
    """One of PRESETS: T characters -> at each position the probabilities of the next, (T, V)."""
    return fnn.presets.get(PRESETS[name])((T,), len(CHARACTERS), tokens=len(CHARACTERS), each_position=True)


def views(name: str) -> tuple[str, ...]:
    """What can be seen inside of a network."""
    return _STATES.get(name, tuple(f"layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2)))


def reader(name: str) -> str:
    """The layer that reads the characters."""
    return network(name).layers[0].name


@functools.cache
def reference() -> str:
    """What is learned, of CHARACTERS alone: without the signs of its markup, and the lines below headings."""
    from pydoc_data.topics import topics  # half a megabyte

    joined = " ".join(topics[name] for name in sorted(topics)).lower()
    joined = re.sub(r"([^\w\s])\1{3,}|_{3,}", " ", joined)
    return " ".join("".join(one for one in joined if one in CHARACTERS or one.isspace()).split())


def tokens(text: str) -> np.ndarray:
    """(len(text),) integers: where each character stands in CHARACTERS."""
    return np.array([CHARACTERS.index(one) for one in text], np.int32)


def read(text: str) -> str:
    """What a visitor typed, in small letters.

    >>> read("The zen")
    'the zen'

    Raises ValueError, saying what is accepted: for nothing, more than T characters, and others than CHARACTERS.
    """
    small = text.lower()
    if not small:
        raise ValueError(f"expected 1 to {T} characters, got nothing")
    if strange := "".join(dict.fromkeys(one for one in small if one not in CHARACTERS)):
        raise ValueError(f"the networks know letters a to z, digits, spaces and {CHARACTERS[37:]}, got {strange!r}")
    if len(small) > T:
        raise ValueError(f"expected 1 to {T} characters, got {len(small)}")
    return small


class Trained(NamedTuple):
    """A network's parameters, and how many bits a character it needs for what was held out."""

    params: Params
    bits: float


def trained(name: str) -> Trained:
    """Trained once a process, always the same, on all but the last twentieth of the reference."""
    with _one_at_a_time:
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
    """What is asked: of PRESETS one, a text that `read` has let pass, how many of its characters are read, from 1; and
    what is predicted: that which follows in the text, or the most probable, as where nothing follows.
    """

    network: str
    text: str
    count: int
    follows: bool


class Found(NamedTuple):
    """Everything the page shows of a question, NumPy, its L characters alone.

    character: the one predicted; value F = -ln of its probability after `count` characters; probabilities (L, V) after
    each; sensitivities {layer: dF/dn (L, S)}, 0 from `count` on; inside: of the transformer {"layer 1, head 1": (L,
    L)}, rows of queries, what each attends to; of the others {"state h": (L, S), ...}, with the gates; changes (L,):
    |h_t - h_(t-1)| of their states, none of the transformer. differences: the largest between sensitivities by hand and
    by `jax.grad`, by layer; gradient_difference: the same of all parameters.
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
    return question, asked(question, trained(question.network).params)


def asked(question: Question, params: Params) -> Found:
    """The same of any parameters."""
    name, text, count, follows = question
    padded = np.zeros(T, np.int32)
    padded[: len(text)] = tokens(text)
    wanted = padded[count] if follows and count < len(text) else np.int32(-1)
    whole = jax.tree.map(np.asarray, _program(name)(params, padded, count - 1, wanted))
    # nothing before is changed by what pads the text
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
    """(params, tokens (T,), position, wanted: a character or -1) -> `Found` of all T positions, the character's number
    in place of it.
    """
    network_ = network(name)

    @jax.jit
    def run(params, read, position, wanted):
        inputs = {"sequence": read[None]}
        said = network_.apply(params, inputs)[0]
        character = jnp.where(wanted < 0, jnp.argmax(said[position]).astype(wanted.dtype), wanted)
        # of all positions' losses the chosen one's alone counts
        targets, counts = jnp.full((1, T), character), (jnp.arange(T) == position)[None].astype(said.dtype)
        by_hand = fnn.backpropagate(network_, LOSS, params, inputs, targets, counts)
        s, trace = by_hand.sensitivities, by_hand.trace

        def shifted(params, offsets):
            own = network_.prepare(params, inputs)
            coded = network_.prepare_targets(own, targets, LOSS, said.dtype)
            return backprop.loss_value(network_, LOSS, network_.forward(params, own, offsets), coded, counts)

        none = jax.tree.map(jnp.zeros_like, trace.net_inputs)
        automatic, automatic_s = jax.grad(shifted, argnums=(0, 1))(params, none)
        differences = {layer: _apart(s[layer], automatic_s[layer]) for layer in s}
        inside, changes = _inside(name, params, trace)
        alone = functools.partial(jax.tree.map, lambda x: x[0])
        return Found(
            character, by_hand.value, said, alone(s), inside, changes, differences, _apart(by_hand.gradients, automatic)
        )

    return run


def _apart(one, other):
    """The largest difference between two trees' numbers."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x - y)) for x, y in pairs]))


def _inside(name: str, params: Params, trace: Trace) -> tuple[dict[str, jax.Array], jax.Array]:
    """`inside` and `changes` of what was found, (T, ...)."""
    if name == "transformer":
        attended = [kept.probabilities[0] for kept in trace.kept.values() if isinstance(kept, Attended)]
        heads = [p for layer in attended for p in layer]
        return dict(zip(views(name), heads, strict=True)), jnp.zeros(0)
    layer = reader(name)
    h, kept, initial = trace.activations[layer][0], trace.kept[layer], params[layer]["learned"]["initial"]
    shown = [h, *(states[:, 0] for states in kept.states), *(values[:, 0] for values in kept.cells)]
    found = dict(zip(views(name), shown, strict=False))  # of a gru's cells there is one more
    return found, jnp.linalg.norm(jnp.diff(h, axis=0, prepend=initial[None]), axis=-1)
