"""Reading of a group, which is all records created in the same clock second.

A group that fits into one response is complete, whatever the order of its records. A larger group is split by ranges of
ids. If Cliniko refuses to filter by id, the pages of the group are read repeatedly, until as many distinct records have
arrived as Cliniko announces.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import RecordT
from cliniko_pipeline.errors import UnexpectedResponseError

MIN_REQUESTS = 20
REQUESTS_PER_PAGE = 20
"""The allowed requests per page of a group, besides MIN_REQUESTS. They almost always suffice."""

Part = tuple[int | None, int | None]
"""A range of ids, above the first number and up to the second; None for no limit."""


def group_pages(
    read: Callable[[tuple[str, ...], int], FetchedPage[RecordT]],
    can_filter: Callable[[], bool],
    page_size: int,
    what: str,
) -> Iterator[FetchedPage[RecordT]]:
    """Yield pages that together contain every record of the group.

    `read` takes additional filters and a page number. `can_filter` returns whether Cliniko filters by id.
    Raises UnexpectedResponseError after too many requests.
    """
    parts: list[Part] = [(None, None)]
    requests, allowed = 0, MIN_REQUESTS
    while parts:
        part = parts.pop()
        page = read(_filters(part), 1)
        allowed = max(allowed, _allowed(page.total_entries, page_size))
        requests += 1
        if requests > allowed:
            raise _incomplete(what)
        if page.total_entries <= page_size and _lies_within(page, part):
            yield page
            continue
        pivots = _pivots([int(record.id) for record in page.records], page.total_entries, page_size)
        if not can_filter() or not _lies_within(page, part) or not pivots:
            yield from _read_repeatedly(read, page_size, what)
            return
        ends: list[int | None] = [part[0], *pivots, part[1]]
        parts.extend(pairwise(ends))


def _read_repeatedly(
    read: Callable[[tuple[str, ...], int], FetchedPage[RecordT]], page_size: int, what: str
) -> Iterator[FetchedPage[RecordT]]:
    seen: set[str | None] = set()
    number, total, requests = 1, -1, 0
    while True:
        page = read((), number)
        if page.total_entries != total:
            # Start over after a change, because a deleted record would be counted in place of an unread record.
            seen, total = set[str | None](), page.total_entries
        yield page
        seen |= {record.id for record in page.records} | {record.id for record in page.rejected}
        if len(seen) >= total:
            return
        requests += 1
        if requests > _allowed(total, page_size):
            raise _incomplete(what)
        number = number + 1 if number * page_size < total else 1


def _allowed(total: int, page_size: int) -> int:
    return MIN_REQUESTS + REQUESTS_PER_PAGE * -(-total // page_size)


def _pivots(ids: list[int], total: int, page_size: int) -> list[int]:
    """Return ids, ascending, that split a group into parts which are smaller than the group."""
    ordered = sorted(set(ids))
    if len(ordered) < 2:
        return []
    if ids == ordered:
        # The page is sorted by id. Split before its last record, so that the first part fits into one response.
        return [ordered[-2]]
    parts = min(len(ordered), -(-total * 5 // (page_size * 3)))
    return sorted({ordered[len(ordered) * place // parts - 1] for place in range(1, parts)})


def _lies_within(page: FetchedPage[RecordT], part: Part) -> bool:
    """Return whether Cliniko applied the filters of the part."""
    above, to = part
    ids = [int(record.id) for record in page.records]
    return all((above is None or id_ > above) and (to is None or id_ <= to) for id_ in ids)


def _filters(part: Part) -> tuple[str, ...]:
    above, to = part
    return (() if above is None else (f"id:>{above}",)) + (() if to is None else (f"id:<={to}",))


def _incomplete(what: str) -> UnexpectedResponseError:
    return UnexpectedResponseError(
        f"{what}: Cliniko returns these records in no fixed order, and not all of them could be read. Nothing was"
        " marked as deleted, and the next sync reads them again: report this to Cliniko if the error persists"
    )
