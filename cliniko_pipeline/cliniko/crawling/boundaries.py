"""Groups of records created in one second that a page boundary splits, some of which a crawl may miss.

Records of one second have no order unless Cliniko sorts them by id: a page may repeat some and leave out others. One
answer holds all of them. Several pages hold all of them if none comes twice. So only the group at the boundary of two
pages is kept in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import UNANSWERED, RecordT


@dataclass(frozen=True, slots=True)
class _Group:
    """The records of one second that were read; `ids` is None if unknown. Of a torn group, some may be missed."""

    second: datetime
    ids: frozenset[int] | None = field(repr=False)
    is_torn: bool = False

    def join(self, later: "_Group") -> "_Group":
        """Return this group with its records from later pages, torn if a record came twice."""
        if self.ids is None or later.ids is None or self.may_share_records_with(later):
            return _torn(self)
        return _Group(self.second, self.ids | later.ids)

    def may_share_records_with(self, later: "_Group") -> bool:
        """Return whether a record may be in both."""
        return self.ids is None or later.ids is None or not self.ids.isdisjoint(later.ids)


def _group(second: datetime, ids: Sequence[int], nameless: int = 0) -> _Group:
    if nameless or len(set(ids)) < len(ids):
        return _Group(second, None, is_torn=not nameless)
    return _Group(second, frozenset(ids))


class Boundaries:
    """Follows a crawl backwards from page to page. A resumed crawl does not know the pages after its checkpoint."""

    def __init__(self) -> None:
        self._head: _Group | None = None
        self._behind: _Group | None = None
        self._is_unknown = True
        self._number: int | None = None

    def begin(self, page: FetchedPage[RecordT]) -> None:
        """Note the first page. The list's last page follows."""
        groups = _groups(page)
        self._head = groups[-1] if groups else None
        self._is_unknown = False

    def take(self, number: int, page: FetchedPage[RecordT], *, is_end: bool) -> list[datetime]:
        """Note a page; return the seconds of torn groups that begin in it or after it."""
        groups, behind = _groups(page), self._behind
        follows, self._number = self._number is None or number == self._number - 1, number
        if not groups:
            return []
        torn: list[datetime] = []
        if self._is_unknown and not is_end and len(groups) == 1:
            # Only a group that fills the page can be incomplete: another one begins within it.
            groups[0] = _torn(groups[0])
        elif behind is not None and not is_end:
            if behind.second == groups[-1].second:
                groups[-1] = groups[-1].join(behind) if follows else _torn(behind)
            elif behind.second > groups[-1].second and behind.is_torn:
                torn.append(behind.second)
        self._is_unknown = False
        self._behind = groups[0]
        return torn + [one.second for one in groups[1:] if one.is_torn]

    def finish(self) -> list[datetime]:
        """Return the second of the group at the beginning of the last page, if it is torn."""
        if self._behind is None:
            return []
        if self._number == 1:
            return [self._behind.second] if self._behind.is_torn else []
        reaches_head = self._head is None or self._head.second == self._behind.second
        is_missed = reaches_head and (self._head is None or self._head.may_share_records_with(self._behind))
        return [self._behind.second] if self._behind.is_torn or is_missed else []


def _groups(page: FetchedPage[RecordT]) -> list[_Group]:
    keys = [(one.created_at.replace(microsecond=0), int(one.id)) for one in page.records]
    runs = [(second, [id_ for _, id_ in run]) for second, run in groupby(keys, key=lambda key: key[0])]
    if not runs:
        return []
    # The second of a rejected record is unknown: it may belong to either edge.
    rejected = [int(one.id) for one in page.rejected if one.id is not None]
    # An unanswered record keeps its place in a page whose parts agree: no other record is missed.
    nameless = sum(one.id is None and not one.reason.startswith(UNANSWERED) for one in page.rejected)
    edges = {0, len(runs) - 1}
    return [
        _group(second, ids + rejected, nameless) if place in edges else _group(second, ids)
        for place, (second, ids) in enumerate(runs)
    ]


def _torn(group: _Group) -> _Group:
    return _Group(group.second, None, is_torn=True)
