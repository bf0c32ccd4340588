"""Which cases of a parametrized test run in the fast suite."""

import zlib
from collections.abc import Iterable


def fast_cases(names: Iterable[str], every: int) -> set[str]:
    """Of the cases with these names about one in `every`, chosen by a hash of the name; at least the lowest.

    A case is chosen by its name alone, so that a new case does not change which others run.
    """
    hashes = {name: zlib.crc32(name.encode()) for name in names}
    lowest = min(hashes, key=lambda name: (hashes[name], name))
    return {name for name, number in hashes.items() if number % every == 0} or {lowest}
