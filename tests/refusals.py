"""What is refused, and with which message."""

import pytest


def refusal(build, error=ValueError):
    """The message with which `build` is refused, one line."""
    with pytest.raises(error) as refused:
        build()
    assert "\n" not in str(refused.value)
    return str(refused.value)
