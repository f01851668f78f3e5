"""All records of one second, read by themselves in parts of which each fits into one answer.

Within one answer nothing can be missed, whatever its order. A group that is longer is parted by ranges of ids. Where
Cliniko does not filter by id, its pages are read again and again until as many distinct records came as it announces.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import RecordT
from cliniko_pipeline.errors import UnexpectedResponseError

LEAST_REQUESTS = 20
REQUESTS_FOR_EACH_PAGE = 20
"""For a group read again and again: after so many, all of its records have come with near certainty."""

Part = tuple[int | None, int | None]
"""Ids above the first and up to the second."""


def group_pages(
    ask: Callable[[tuple[str, ...], int], FetchedPage[RecordT]],
    can_filter: Callable[[], bool],
    page_size: int,
    what: str,
) -> Iterator[FetchedPage[RecordT]]:
    """Yield pages that hold every record of the group. `ask` gets further filters and a page's number; `can_filter`
    tells whether ids can be filtered by.

    Raises UnexpectedResponseError where that takes too many requests.
    """
    parts: list[Part] = [(None, None)]
    requests, allowed = 0, LEAST_REQUESTS
    while parts:
        part = parts.pop()
        page = ask(_filters(part), 1)
        allowed = max(allowed, _allowed(page.total_entries, page_size))
        requests += 1
        if requests > allowed:
            raise _incomplete(what)
        if page.total_entries <= page_size and _lies_within(page, part):
            yield page
            continue
        pivots = _pivots([int(one.id) for one in page.records], page.total_entries, page_size)
        if not can_filter() or not _lies_within(page, part) or not pivots:
            yield from _read_again_and_again(ask, page_size, what)
            return
        ends: list[int | None] = [part[0], *pivots, part[1]]
        parts.extend(pairwise(ends))


def _read_again_and_again(
    ask: Callable[[tuple[str, ...], int], FetchedPage[RecordT]], page_size: int, what: str
) -> Iterator[FetchedPage[RecordT]]:
    seen: set[str | None] = set()
    number, total, requests = 1, -1, 0
    while True:
        page = ask((), number)
        if page.total_entries != total:
            # Something has vanished: what was seen of it may stand for another one.
            seen, total = set[str | None](), page.total_entries
        yield page
        seen |= {one.id for one in page.records} | {one.id for one in page.rejected}
        if len(seen) >= total:
            return
        requests += 1
        if requests > _allowed(total, page_size):
            raise _incomplete(what)
        number = number + 1 if number * page_size < total else 1


def _allowed(total: int, page_size: int) -> int:
    return LEAST_REQUESTS + REQUESTS_FOR_EACH_PAGE * -(-total // page_size)


def _pivots(ids: list[int], total: int, page_size: int) -> list[int]:
    """Return the ids that end a part, ascending, none of them the greatest: each part is smaller than the whole."""
    ordered = sorted(set(ids))
    if len(ordered) < 2:
        return []
    if ids == ordered:
        # In order of ids: what comes next begins behind this page.
        return [ordered[-2]]
    parts = min(len(ordered), -(-total * 5 // (page_size * 3)))
    return sorted({ordered[len(ordered) * place // parts - 1] for place in range(1, parts)})


def _lies_within(page: FetchedPage[RecordT], part: Part) -> bool:
    """Whether the filters had their effect."""
    above, to = part
    return all((above is None or int(one.id) > above) and (to is None or int(one.id) <= to) for one in page.records)


def _filters(part: Part) -> tuple[str, ...]:
    above, to = part
    return (() if above is None else (f"id:>{above}",)) + (() if to is None else (f"id:<={to}",))


def _incomplete(what: str) -> UnexpectedResponseError:
    return UnexpectedResponseError(
        f"{what}: Cliniko gives the records of one second no order, and not all of them could be read in any other way."
        " Nothing was marked as deleted, and the next sync reads them again: report this to Cliniko if it stays"
    )
