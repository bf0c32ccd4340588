"""Texts: files of characters or of bytes as one stream of tokens, of which a network predicts the next.

Letters: N tokens of a stream, V of them different, T the context. What a run keeps of a text is its unit and its
vocabulary, with which other texts and prompts are read alike.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

import functional_nn as fnn
from functional_nn.lab import files
from functional_nn.networks.stored import Windows

Unit = Literal["character", "byte"]
_NAMES = (".txt", ".txt.gz")
_MOST = 2**31 - 1  # bytes of a file


class Text(NamedTuple):
    """A stream of tokens (N,), in the smallest unsigned integers that hold them.

    classes: the characters that the tokens stand for, in order; none where the unit is a byte, of which there are 256.
    """

    name: str
    tokens: np.ndarray
    unit: Unit
    classes: tuple[str, ...]
    task: Literal["text"] = "text"

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.classes) or 256


def is_text(source: str | Path) -> bool:
    """Is it called as a text is?"""
    return Path(source).name.lower().endswith(_NAMES)


def load(source: str | Path, unit: Unit = "character", classes: Sequence[str] | None = None) -> Text:
    """A file of text, UTF-8 or, by bytes, whatever it is.

    classes: the vocabulary; by default all characters of the file in their order, those of its held-out end among them,
    so that each of them can be told. Raises ValueError for an empty file, what is no UTF-8, and a character outside the
    vocabulary.
    """
    if unit not in get_args(Unit):
        raise ValueError(f"unit: expected {' or '.join(get_args(Unit))}, got {unit!r}")
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"no file {str(source)!r}")
    with files.reading(path) as file:
        data = file.read(_MOST)
    if len(data) == _MOST:
        raise ValueError(f"{source}: expected less than 2 GiB of text")
    if unit == "byte":
        tokens, classes = np.frombuffer(data, np.uint8), ()
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{source}: not UTF-8: byte {data[error.start]:#04x} at {error.start}; --unit byte reads any file"
            ) from None
        classes = tuple(sorted(set(text)) if classes is None else classes)
        tokens = encode(text, "character", classes, str(source))
    if not len(tokens):
        raise ValueError(f"{source}: the text is empty")
    if len(classes) == 1:
        raise ValueError(f"{source}: expected at least two different characters, got only {classes[0]!r}")
    return Text(path.name, tokens, unit, classes)


def encode(text: str, unit: Unit, classes: Sequence[str], what: str) -> np.ndarray:
    """A text's tokens (N,). Raises ValueError, beginning with `what` it is, at a character outside the vocabulary."""
    if unit == "byte":
        return np.frombuffer(text.encode(), np.uint8)
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    known = np.frombuffer("".join(classes).encode("utf-32-le"), "<u4")
    dtype = np.min_scalar_type(len(known))  # one more than the last token, which stands for all that are unknown
    token_of = np.full(max(points.max(initial=0), known.max(initial=0)) + 1, len(known), dtype)
    token_of[known] = np.arange(len(known))
    tokens = token_of[points]
    wrong = tokens == len(known)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{what}: character {text[place]!r} at {place} is not in the vocabulary, the {len(known)} characters "
            "of the text trained on"
        )
    return tokens


def decode(tokens: np.ndarray, unit: Unit, classes: Sequence[str]) -> str:
    """The text of tokens (N,); bytes that are no UTF-8 are shown as U+FFFD."""
    if unit == "byte":
        return np.asarray(tokens, np.uint8).tobytes().decode(errors="replace")
    return "".join(classes[token] for token in np.asarray(tokens).tolist())


def split(text: Text, context: int, test_fraction: float) -> tuple[Text, Text]:
    """The text's beginning, and its end, which is held out: a random part would be known from what is around it.

    Raises ValueError for a fraction outside (0, 1), and where a part is shorter than a context and the token after it.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number between 0 and 1, got {test_fraction}")
    cut = len(text.tokens) - round(test_fraction * len(text.tokens))
    parts = text._replace(tokens=text.tokens[:cut]), text._replace(tokens=text.tokens[cut:])
    for part, name in zip(parts, ("training part", "held-out end"), strict=True):
        check_context(part, context, f"the {name} of its text")
    return parts


def check_context(text: Text, context: int, what: str = "its text") -> None:
    """Raises ValueError where a text is shorter than a context and the token after it."""
    if context < 1:
        raise ValueError(f"context must be an integer >= 1, got {context}")
    if len(text.tokens) <= context:
        raise ValueError(
            f"{text.name}: {what} has {len(text.tokens)} {text.unit}s, and a context of {context} needs {context + 1} "
            "or more"
        )


def windows(text: Text, context: int) -> Windows:
    """The text as `fit` takes it."""
    return fnn.windows(text.tokens, context)
