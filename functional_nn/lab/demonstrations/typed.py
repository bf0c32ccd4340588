"""Reads numbers that visitors type.

A decimal comma counts as a decimal point. Lists may be separated by commas, semicolons or spaces; a text that could be
read as two different lists is refused. `written` is how the pages write numbers back.
"""

import math
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?|[0-9]*[.,][0-9]+)(?:[eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+")  # could also be three decimals
_EVERY_COMMA = re.compile(r"\s*[,;]\s*|\s+")  # every comma separates
_SPACED_COMMA = re.compile(r"\s*;\s*|\s+,\s*|,\s+|\s+")  # only commas with a space separate; others are decimal
_LONGEST = 40  # characters of a refused text that the message repeats


def number(text: str) -> float:
    """Returns the finite number in a text.

    >>> number("0,05"), number(" 1e-3 "), number("−2.95")
    (0.05, 0.001, -2.95)

    Raises ValueError, with what is accepted, also if a comma could be a decimal mark or separate thousands, and for
    numbers that are too large or too small for a double.
    """
    plain = text.strip()
    if _THOUSANDS.fullmatch(plain):
        raise ValueError(
            f"{quoted(text)} could be decimals or thousands; write a point before decimals, nothing between thousands"
        )
    value = _float(plain)
    if value is None:
        raise ValueError(f"expected a finite number, as in 0.05 or 1e-3, got {quoted(text)}")
    return value


def numbers(text: str, count: int) -> tuple[float, ...]:
    """Returns `count` finite numbers.

    >>> numbers("0,05 0,1", 2), numbers("0.05, 0.1", 2), numbers("1;2", 2), numbers("1,4,5", 3)
    ((0.05, 0.1), (0.05, 0.1), (1.0, 2.0), (1.0, 4.0, 5.0))

    Raises ValueError, with what is accepted, also if a comma could be a decimal mark or a separator.
    """
    plain = text.strip()
    separated, decimal = _EVERY_COMMA.split(plain), _SPACED_COMMA.split(plain)
    one, other = _floats(separated), _floats(decimal)
    if any(re.fullmatch(r"[+-]?0[0-9].*", part) for part in separated):
        one = None  # only decimals start with a zero like this
    if one and len(one) == count and other in (None, one):
        return one
    if one and len(one) == count:
        raise ValueError(
            f"{quoted(text)} could be {count} or {len(other)} numbers; write points before decimals, and semicolons "
            "or spaces between numbers"
        )
    if other and len(other) == count:
        return tuple(map(number, decimal))  # refuses possible thousands
    example = "1; 0.5; -2".split("; ")[:count] if count < 4 else ["1", "0.5", "...", "-2"]
    expected = f"{count} finite numbers" if count > 1 else "one finite number"
    raise ValueError(f"expected {expected}, as in {', '.join(example)}, got {quoted(text)}")


def integers(text: str) -> tuple[int, ...]:
    """Returns positive integers; empty if the text is anything else.

    >>> integers("8, 4"), integers("8 4"), integers("8.5")
    ((8, 4), (8, 4), ())
    """
    parts = _EVERY_COMMA.split(text.strip())
    return tuple(map(int, parts)) if all(re.fullmatch("[1-9][0-9]{0,8}", part) for part in parts) else ()


def written(value: float | Sequence[float]) -> str:
    """Numbers as text that reads back to the last bit.

    >>> written(1e-08), written((1.0, 0.05))
    ('1e-8', '1, 0.05')
    """
    if isinstance(value, Sequence):
        return ", ".join(map(written, value))
    return re.sub(r"e([+-])0*", r"e\1", repr(float(value)).removesuffix(".0"))


def _float(plain: str) -> float | None:
    plain = plain.replace("−", "-")  # as the pages write it
    if not _NUMBER.fullmatch(plain):
        return None
    value = float(plain.replace(",", "."))
    vanished = value == 0 and re.search("[1-9]", plain.lower().partition("e")[0])
    return None if vanished or not math.isfinite(value) else value


def _floats(parts: Sequence[str]) -> tuple[float, ...] | None:
    found = tuple(map(_float, parts))
    return None if None in found else found


def quoted(text: str) -> str:
    """A refused text as it is repeated in the message."""
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...") if text.strip() else "nothing"
