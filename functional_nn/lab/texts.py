"""Texts: files of characters or bytes as one stream of tokens, of which a network predicts the next one.

A run stores the unit and the vocabulary of its text; other texts and prompts are read with the same ones.

Letters: N tokens of a stream, V different tokens, T the context.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

import functional_nn as fnn
from functional_nn.lab import files
from functional_nn.networks.stored import Windows

__all__ = [
    "Text",
    "decode",
    "encode",
    "load",
    "split",
    "windows",
]

Unit = Literal["character", "byte"]
_NAMES = (".txt", ".txt.gz")
_MOST = 2**31 - 1  # bytes of a file


class Text(NamedTuple):
    """A stream of tokens.

    Attributes:
        name: the file's name.
        tokens: (N,), in the smallest unsigned integers that hold them.
        unit: "character" or "byte".
        classes: the characters that the tokens stand for, in order; empty for bytes, of which there are 256.
        task: "text".

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import texts
        >>> texts.Text("abab", np.array([0, 1, 0, 1], np.uint8), "character", ("a", "b")).vocabulary
        2
    """

    name: str
    tokens: np.ndarray
    unit: Unit
    classes: tuple[str, ...]
    task: Literal["text"] = "text"

    @property
    def vocabulary(self) -> int:
        """V, the number of different tokens."""
        return len(self.classes) or 256


def is_text(source: str | Path) -> bool:
    """Whether the file has a text's name."""
    return Path(source).name.lower().endswith(_NAMES)


def load(source: str | Path, unit: Unit = "character", classes: Sequence[str] | None = None) -> Text:
    """Loads a text from a file.

    Args:
        source: the file; UTF-8, or any file if the unit is "byte". It may be gzipped.
        unit: "character" or "byte".
        classes: the vocabulary. By default all characters of the file in sorted order; those of its held-out end are
            included, so that each of them can be predicted.

    Returns:
        The `Text`.

    Raises:
        ValueError: for an empty file, a file that is not UTF-8, or a character outside the vocabulary.

    Example:
        >>> import pathlib, tempfile
        >>> from functional_nn.lab import texts
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "play.txt"
        >>> _ = path.write_text("to be or not to be")
        >>> text = texts.load(path)
        >>> len(text.tokens), "".join(text.classes)
        (18, ' benort')
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
    """Turns a text into tokens.

    Args:
        text: the text.
        unit: "character" or "byte".
        classes: the vocabulary, for characters.
        what: what the text is, for the error message.

    Returns:
        (N,) unsigned integers.

    Raises:
        ValueError: for a character outside the vocabulary; the message begins with `what`.

    Example:
        >>> from functional_nn.lab import texts
        >>> texts.encode("abba", "character", ("a", "b"), "prompt").tolist()
        [0, 1, 1, 0]
    """
    if unit == "byte":
        return np.frombuffer(text.encode(), np.uint8)
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    known = np.frombuffer("".join(classes).encode("utf-32-le"), "<u4")
    dtype = np.min_scalar_type(len(known))  # one more than the last token stands for unknown characters
    token_of = np.full(max(points.max(initial=0), known.max(initial=0)) + 1, len(known), dtype)
    token_of[known] = np.arange(len(known))
    tokens = token_of[points]
    wrong = tokens == len(known)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{what}: character {text[place]!r} at {place} is not in the vocabulary, the {len(known)} characters "
            "of the training text"
        )
    return tokens


def decode(tokens: np.ndarray, unit: Unit, classes: Sequence[str]) -> str:
    """Turns tokens into text; bytes that are not UTF-8 are shown as U+FFFD.

    Args:
        tokens: (N,) integers.
        unit: "character" or "byte".
        classes: the vocabulary, for characters.

    Returns:
        The text.

    Example:
        >>> from functional_nn.lab import texts
        >>> texts.decode([0, 1, 1, 0], "character", ("a", "b"))
        'abba'
    """
    if unit == "byte":
        return np.asarray(tokens, np.uint8).tobytes().decode(errors="replace")
    return "".join(classes[token] for token in np.asarray(tokens).tolist())


def split(text: Text, context: int, test_fraction: float) -> tuple[Text, Text]:
    """Splits a text into its beginning and its end, which is held out.

    A random part would not be independent of the text around it.

    Args:
        text: the text.
        context: T.
        test_fraction: the fraction that is held out, between 0 and 1.

    Returns:
        (beginning, end), each a `Text`.

    Raises:
        ValueError: for a fraction outside (0, 1), or if a part is not longer than a context.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import texts
        >>> text = texts.Text("abab", np.tile(np.arange(2, dtype=np.uint8), 10), "character", ("a", "b"))
        >>> [len(part.tokens) for part in texts.split(text, context=2, test_fraction=0.2)]
        [16, 4]
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number between 0 and 1, got {test_fraction}")
    cut = len(text.tokens) - round(test_fraction * len(text.tokens))
    parts = text._replace(tokens=text.tokens[:cut]), text._replace(tokens=text.tokens[cut:])
    for part, name in zip(parts, ("training part", "held-out end"), strict=True):
        check_context(part, context, f"the {name} of its text")
    return parts


def check_context(text: Text, context: int, what: str = "its text") -> None:
    """Raises ValueError if a text is shorter than a context and the token after it."""
    if context < 1:
        raise ValueError(f"context must be an integer >= 1, got {context}")
    if len(text.tokens) <= context:
        raise ValueError(
            f"{text.name}: {what} has {len(text.tokens)} {text.unit}s; a context of {context} needs at least "
            f"{context + 1}"
        )


def windows(text: Text, context: int) -> Windows:
    """Returns the text as `fit` takes it: every window of T tokens, with the token after each as its target.

    Args:
        text: the text.
        context: T.

    Returns:
        The `Windows` of the text.

    Example:
        >>> import numpy as np
        >>> from functional_nn.lab import texts
        >>> text = texts.Text("abab", np.array([0, 1, 0, 1], np.uint8), "character", ("a", "b"))
        >>> texts.windows(text, 2).context
        2
    """
    return fnn.windows(text.tokens, context)
