"""Page boundaries between records created in the same second, where a crawl may miss some.

A group is all records created in the same clock second. Unless Cliniko sorts a group by id, its order may change with
every request. If pages split such a group, some records may come twice and others not at all. A group on a single page
is complete. A group on several pages is complete if no record comes twice, because it has as many places as records. So
only the group at the boundary of two pages is kept in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import UNANSWERED, RecordT


@dataclass(frozen=True, slots=True)
class _Group:
    """The read records of a group, with their ids if known. A torn group may lack records."""

    second: datetime
    ids: frozenset[int] | None = field(repr=False)
    is_torn: bool = False

    def join(self, later: "_Group") -> "_Group":
        """Return the group made of both parts, torn if a record may have come twice."""
        if self.ids is None or later.ids is None or self.may_share_records_with(later):
            return _torn(self.second)
        return _Group(self.second, self.ids | later.ids)

    def may_share_records_with(self, later: "_Group") -> bool:
        """Return whether a record may be in both parts."""
        return self.ids is None or later.ids is None or not self.ids.isdisjoint(later.ids)


def _group(second: datetime, ids: Sequence[int], unidentified: int = 0) -> _Group:
    if unidentified or _has_repeated(ids):
        return _Group(second, None, is_torn=not unidentified)
    return _Group(second, frozenset(ids))


def _has_repeated(ids: Sequence[int]) -> bool:
    return len(ids) > 1 and len(set(ids)) < len(ids)


class Boundaries:
    """The page boundaries of one crawl. A resumed crawl does not call `begin`."""

    def __init__(self) -> None:
        self._head: _Group | None = None
        self._behind: _Group | None = None
        self._is_unknown = True
        self._number: int | None = None

    def begin(self, page: FetchedPage[RecordT]) -> None:
        """Note the list's first page. The crawl reads the last page next."""
        groups = _groups(page)
        self._head = groups[-1] if groups else None
        self._is_unknown = False

    def take(self, number: int, page: FetchedPage[RecordT], *, is_end: bool) -> list[datetime]:
        """Note a page; return the creation times of torn groups that begin on it or later."""
        groups, behind = _groups(page), self._behind
        follows, self._number = self._number is None or number == self._number - 1, number
        if not groups:
            return []
        torn: list[datetime] = []
        if self._is_unknown and not is_end and len(groups) == 1:
            # In a resumed crawl, a group that fills this page may go on after it. Later groups are already checked.
            groups[0] = _torn(groups[0].second)
        elif behind is not None and not is_end:
            if behind.second == groups[-1].second:
                groups[-1] = groups[-1].join(behind) if follows else _torn(behind.second)
            elif behind.second > groups[-1].second and behind.is_torn:
                torn.append(behind.second)
        self._is_unknown = False
        self._behind = groups[0]
        return torn + [group.second for group in groups[1:] if group.is_torn]

    def finish(self) -> list[datetime]:
        """Return the creation time of the latest page's first group if it may lack records."""
        if self._behind is None:
            return []
        if self._number == 1:
            return [self._behind.second] if self._behind.is_torn else []
        reaches_head = self._head is None or self._head.second == self._behind.second
        is_missed = reaches_head and (self._head is None or self._head.may_share_records_with(self._behind))
        return [self._behind.second] if self._behind.is_torn or is_missed else []


def _groups(page: FetchedPage[RecordT]) -> list[_Group]:
    """Return the page's first and last group, and between them the torn groups."""
    keys = [(record.created_at.replace(microsecond=0), int(record.id)) for record in page.records]
    runs = [(second, [id_ for _, id_ in run]) for second, run in groupby(keys, key=lambda key: key[0])]
    if not runs:
        return []
    # A rejected record's creation time is unknown, so the record may belong to the first or the last group.
    rejected = [int(record.id) for record in page.rejected if record.id is not None]
    # An unanswered record (see page_parts.py) is left out, because it keeps its place and so hides no other record.
    unidentified = sum(record.id is None and not record.reason.startswith(UNANSWERED) for record in page.rejected)
    edges = {0, len(runs) - 1}
    return [
        _group(second, ids + rejected, unidentified) if place in edges else _torn(second)
        for place, (second, ids) in enumerate(runs)
        if place in edges or _has_repeated(ids)
    ]


def _torn(second: datetime) -> _Group:
    return _Group(second, None, is_torn=True)
