"""A page that Cliniko does not answer, read in smaller ones.

The smaller ones begin and end where it does, and are read from the last to the first: what vanishes meanwhile moves
records towards those still to come.
"""

from collections.abc import Callable
from typing import TypeVar

from cliniko_pipeline.errors import ClinikoUnavailableError

SIZES = (50, 25, 5, 1)
"""Each a part of the one before it, the first of a whole page."""

PartT = TypeVar("PartT")


def read_in_parts(
    ask: Callable[[int, int], PartT], first: int, beyond: int, sizes: tuple[int, ...] = SIZES
) -> list[PartT]:
    """Return the parts that hold the list's entries from `first` (counted from 0) up to `beyond`, in their order.

    `ask` gets the number of a page and its size. What it raises for one entry alone is raised.
    """
    size, smaller = sizes[0], sizes[1:]
    parts: list[PartT] = []
    for start in reversed(range(first, beyond, size)):
        try:
            read = [ask(start // size + 1, size)]
        except ClinikoUnavailableError:
            if not smaller:
                raise
            read = read_in_parts(ask, start, min(beyond, start + size), smaller)
        parts = read + parts
    return parts
