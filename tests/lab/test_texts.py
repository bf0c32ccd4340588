"""Texts as streams of tokens, by character and by byte."""

import gzip

import numpy as np
import pytest

from functional_nn.lab import texts

SAYS = "tö be\nor nöt €"


@pytest.fixture
def write(tmp_path):
    def write(data, name="play.txt"):
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


def test_a_text_is_its_characters_and_comes_back(write):
    text = texts.load(write(SAYS))
    assert text.classes == tuple(sorted(set(SAYS))) and text.vocabulary == 10 and text.name == "play.txt"
    assert [text.classes[token] for token in text.tokens] == list(SAYS) and text.tokens.dtype == np.uint8
    assert texts.decode(text.tokens, "character", text.classes) == SAYS
    zipped = texts.load(write(gzip.compress(b"\xef\xbb\xbf" + SAYS.encode()), "play.txt.gz"))  # and a mark
    assert zipped.tokens.tolist() == text.tokens.tolist()
    other = texts.load(write("be\n", "other.txt"), classes=text.classes)
    assert texts.decode(other.tokens, "character", other.classes) == "be\n" and other.classes == text.classes


def test_many_characters_take_two_bytes_each(write):
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    text = texts.load(write(many))
    assert text.tokens.dtype == np.uint16 and text.tokens.tolist() == list(range(300))


def test_a_text_is_its_bytes(write):
    text = texts.load(write(b"\x00\xff\xc3\xb6"), "byte")
    assert text.tokens.tolist() == [0, 255, 0xC3, 0xB6] and text.vocabulary == 256 and text.classes == ()
    assert texts.decode(text.tokens[2:], "byte", ()) == "ö" and texts.decode(text.tokens[1:2], "byte", ()) == "\ufffd"
    assert texts.encode("ö", "byte", (), "prompt").tolist() == [0xC3, 0xB6]


def test_the_end_is_held_out(write):
    training, held_out = texts.split(texts.load(write(SAYS)), 2, 0.3)
    assert np.concatenate([training.tokens, held_out.tokens]).tolist() == texts.load(write(SAYS)).tokens.tolist()
    assert len(held_out.tokens) == round(0.3 * len(SAYS)) and len(texts.windows(held_out, 2)) == 1
    # characters of the end alone are in the vocabulary, too
    assert held_out.tokens[-1] == training.classes.index("€") and "€" not in SAYS[: len(training.tokens)]


@pytest.mark.parametrize(
    ("data", "unit", "says"),
    [
        ("", "character", "play.txt: the text is empty"),
        ("", "byte", "play.txt: the text is empty"),
        ("aaaa", "character", "play.txt: expected at least two different characters, got only 'a'"),
        (b"ab\xff", "character", "play.txt: not UTF-8: byte 0xff at 2; --unit byte reads any file"),
        ("ab", "word", "unit: expected character or byte, got 'word'"),
    ],
)
def test_an_invalid_text_is_refused(write, data, unit, says):
    with pytest.raises(ValueError, match=says):
        texts.load(write(data), unit)


def test_short_texts_and_unknown_characters_are_refused(write):
    text = texts.load(write(SAYS))
    for context, fraction, says in (
        (20, 0.3, "play.txt: the training part of its text has 10 characters; a context of 20 needs at least 21"),
        (4, 0.3, "play.txt: the held-out end of its text has 4 characters; a context of 4 needs at least 5"),
        (0, 0.3, "context must be an integer >= 1, got 0"),
        (2, 1, "test_fraction: expected a number between 0 and 1, got 1"),
    ):
        with pytest.raises(ValueError, match=says):
            texts.split(text, context, fraction)
    with pytest.raises(ValueError, match="prompt: character 'x' at 3 is not in the vocabulary, the 10 characters"):
        texts.encode("be x", "character", text.classes, "prompt")
    with pytest.raises(ValueError, match="no file '/nowhere/play.txt'"):
        texts.load("/nowhere/play.txt")
