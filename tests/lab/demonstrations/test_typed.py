"""Numbers as visitors type them: what is understood is right, and what may be read in two ways is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_nn.lab.demonstrations import typed

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.one_of(FINITE, st.integers(-1500, 1500).map(float), st.integers(-15000, 15000).map(lambda n: n / 1000))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.05", 0.05),
        ("0,05", 0.05),
        ("  0,05 ", 0.05),
        (",05", 0.05),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0,1", -0.1),
        ("−2.95", -2.95),
        ("+3", 3.0),
        ("1e-3", 1e-3),
        ("1,5E-3", 1.5e-3),
        ("1e−3", 1e-3),
        ("007", 7.0),
        ("0", 0.0),
        ("-0", 0.0),
        ("0,125", 0.125),
        ("1,5", 1.5),
        ("12,3456", 12.3456),
        ("1.000", 1.0),
        ("0e5", 0.0),
        ("1000,5", 1000.5),
        ("5e-324", 5e-324),
        ("0,000", 0.0),
    ],
)
def test_numbers_alone(text, value):
    assert typed.number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "abc",
        "1 2",
        "1,2,3",
        "1;2",
        "0,05,",
        "5,",
        "1,,5",
        "1..5",
        "1.000,5",
        "1,000.5",
        "1 000",
        "1_000",
        "0x10",
        "1e",
        "e5",
        "1e400",
        "-1e400",
        "1e-400",
        "inf",
        "nan",
        "-Infinity",
        "٣",
        "½",
        "1/2",
        "5%",
        "--1",
        "1-2",
        "1e5.5",
        "True",
        "[1]",
    ],
)
def test_invalid_numbers_are_refused(text):
    with pytest.raises(ValueError, match="expected a finite number, as in 0.05 or 1e-3, got "):
        typed.number(text)


@pytest.mark.parametrize("text", ["1,000", "-12,345", "1,234,567", "+999,999"])
def test_a_comma_before_three_digits_is_refused(text):
    with pytest.raises(ValueError, match=f"'.{text[1:]}' could be decimals or thousands; write a point"):
        typed.number(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,05 0,1", (0.05, 0.1)),
        ("0.05, 0.1", (0.05, 0.1)),
        ("0.05,0.1", (0.05, 0.1)),
        ("0,05; 0,1", (0.05, 0.1)),
        ("0,05, 0,1", (0.05, 0.1)),
        ("0,05 , 0,1", (0.05, 0.1)),
        ("1 2 3", (1, 2, 3)),
        ("1;2", (1, 2)),
        ("1; 2", (1, 2)),
        ("1, 4, 5", (1, 4, 5)),
        ("1,4,5", (1, 4, 5)),
        (" 1  4\t5 ", (1, 4, 5)),
        ("1, 4.5", (1, 4.5)),
        ("0,5", (0.5,)),
        ("2.5", (2.5,)),
        ("1e-3 2e3", (1e-3, 2e3)),
        ("−1, 2", (-1, 2)),
        ("1 ,2", (1, 2)),
        ("0.5 1, 2", (0.5, 1, 2)),
    ],
)
def test_lists(text, values):
    assert typed.numbers(text, len(values)) == values


@pytest.mark.parametrize(
    ("text", "count", "said"),
    [
        ("1,5", 2, "'1,5' could be 2 or 1 numbers"),
        ("1, 4,5", 3, "'1, 4,5' could be 3 or 2 numbers"),
        ("0,5 1", 3, "could be 3 or 2 numbers"),
        ("1,000", 2, "expected 2"),
        ("1,2;3", 3, "3 or 2 numbers"),
        ("0,05", 2, "expected 2 finite numbers, as in 1, 0.5, got '0,05'"),
        ("0,1,0,05", 2, "expected 2"),
        ("0,1,0,05", 4, "expected 4"),
        ("1, 4", 3, "expected 3 finite numbers, as in 1, 0.5, -2, got '1, 4'"),
        ("1, 4, 5, 6", 3, "expected 3"),
        ("1, four, 5", 3, "expected 3"),
        ("1, inf, 5", 3, "expected 3"),
        ("1,,2", 2, "expected 2"),
        ("1, 2,", 2, "expected 2"),
        (",1 2", 3, "expected 3"),
        ("", 2, "got nothing"),
        ("1 2", 1, "expected one finite number, as in 1, got '1 2'"),
        ("[1, 2]", 2, "expected 2"),
        ("1,000 2,000", 2, "could be decimals or thousands"),
        ("1|2", 2, "expected 2"),
        ("nan, 4, 5", 3, "expected 3"),
        ("1, 2", 5, r"expected 5 finite numbers, as in 1, 0.5, \.\.\., -2, got '1, 2'"),
    ],
)
def test_invalid_or_ambiguous_lists_are_refused(text, count, said):
    with pytest.raises(ValueError, match=said):
        typed.numbers(text, count)


@given(PLAIN)
def test_written_numbers_are_read_back(value):
    assert typed.number(typed.written(value)) == value
    assert len(typed.written(value)) <= len(repr(value))


@given(st.lists(PLAIN, min_size=1, max_size=5), st.sampled_from([", ", ",", " ", ";", "; ", " , "]), st.booleans())
def test_a_list_is_read_right_or_refused(values, between, decimal_comma):
    """Whatever separates, and whichever mark decimals have: never other numbers without a word."""
    texts = [typed.written(value).replace(".", "," if decimal_comma else ".") for value in values]
    try:
        read = typed.numbers(between.join(texts), len(values))
    except ValueError:
        assert decimal_comma or between == ","  # texts with points and spaces are never refused
    else:
        assert read == tuple(values)


@given(PLAIN)
def test_a_decimal_comma_is_read_right_or_refused(value):
    text = typed.written(value).replace(".", ",")
    try:
        assert typed.number(text) == value
    except ValueError:
        assert 1 <= abs(value) < 1000 and len(text.split(",")[1]) == 3


@given(st.text("01234.,;eE+-− \tx_", max_size=10), st.integers(1, 3))
def test_any_text_is_read_or_refused(text, count):
    for read in (typed.number, lambda text: typed.numbers(text, count), typed.integers):
        try:
            found = read(text)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert all(map(math.isfinite, found if isinstance(found, tuple) else (found,)))


def test_a_long_text_is_not_repeated_whole():
    with pytest.raises(ValueError) as error:
        typed.number("x" * 10_000)
    assert len(str(error.value)) < 120
