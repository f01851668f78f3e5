"""Which records of one second a crawl may have missed where a page ends between them.

Records of different seconds have an order; those of one second have none unless Cliniko sorts them by id. Where it does
not, a page may repeat some of them and leave out others. Within one answer all are there; over several pages, all are
there if none comes twice. So only the group at the edge of two pages is held in memory.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from cliniko_pipeline.cliniko.decoding import DecodedPage
from cliniko_pipeline.cliniko.records import RecordT


@dataclass(frozen=True, slots=True)
class Edge:
    """The group of one second at a page's edge: the id next to the edge; None where records of it may be missed."""

    second: datetime
    id: int | None


@dataclass
class _Group:
    second: datetime
    ids: Collection[int] | None = field(repr=False)
    lowest: int | None
    highest: int | None
    is_torn: bool = False

    @property
    def is_sure(self) -> bool:
        return not self.is_torn and self.lowest is not None

    def joined(self, later: "_Group") -> "_Group":
        """Return this group with what was read of it behind this page, torn where a record came twice."""
        if not self.is_distinct_from(later):
            return _Group(self.second, None, None, None, is_torn=True)
        ids = None if self.ids is None or later.ids is None else {*self.ids, *later.ids}
        return _Group(self.second, ids, self.lowest, later.highest)

    def is_distinct_from(self, later: "_Group") -> bool:
        """Whether no record is in both, as far as that is known."""
        if not (self.is_sure and later.is_sure):
            return False
        if self.highest is not None and later.lowest is not None and self.highest < later.lowest:
            return True
        return self.ids is not None and later.ids is not None and set(self.ids).isdisjoint(later.ids)


def _group(second: datetime, ids: Sequence[int], nameless: int = 0) -> _Group:
    if nameless or len(set(ids)) < len(ids):
        return _Group(second, None, None, None, is_torn=not nameless)
    return _Group(second, set(ids), min(ids), max(ids))


class Boundaries:
    """Follows a crawl from page to page backwards. `head` and `behind` are edges from a checkpoint."""

    def __init__(self, head: Edge | None = None, behind: Edge | None = None) -> None:
        self._head = _from_edge(head)
        self._behind = _from_edge(behind)
        self._is_unknown = behind is None
        self._number: int | None = None

    @property
    def head(self) -> Edge | None:
        """The last group of the first page."""
        return self._head and Edge(self._head.second, self._head.highest)

    @property
    def behind(self) -> Edge | None:
        """The first group of the page that was read last."""
        return self._behind and Edge(self._behind.second, self._behind.lowest)

    def begin(self, page: DecodedPage[RecordT]) -> None:
        """Note the first page, which is read before all others; what comes next is the list's end."""
        groups = _groups(page)
        self._head = groups[-1] if groups else None
        self._is_unknown = False

    def take(self, number: int, page: DecodedPage[RecordT], *, is_end: bool) -> list[datetime]:
        """Note a page; return the seconds whose group begins in it or behind it, and of which records may be missed."""
        groups, behind = _groups(page), self._behind
        follows, self._number = self._number is None or number == self._number - 1, number
        if not groups:
            return []
        torn: list[datetime] = []
        if self._is_unknown and not is_end:
            groups[-1] = _torn(groups[-1])
        elif behind is not None and not is_end:
            if behind.second == groups[-1].second:
                groups[-1] = groups[-1].joined(behind) if follows else _torn(behind)
            elif behind.second > groups[-1].second and behind.is_torn:
                torn.append(behind.second)
        self._is_unknown = False
        self._behind = groups[0]
        return torn + [one.second for one in groups[1:] if one.is_torn]

    def finish(self) -> list[datetime]:
        """Return the same of the group at the beginning of the last page that was taken."""
        if self._behind is None:
            return []
        if self._number == 1:
            return [self._behind.second] if self._behind.is_torn else []
        reaches_head = self._head is None or self._head.second == self._behind.second
        is_missed = reaches_head and (self._head is None or not self._head.is_distinct_from(self._behind))
        return [self._behind.second] if self._behind.is_torn or is_missed else []


def _groups(page: DecodedPage[RecordT]) -> list[_Group]:
    keys = [(one.created_at.replace(microsecond=0), int(one.id)) for one in page.records]
    runs = [(second, [id_ for _, id_ in run]) for second, run in groupby(keys, key=lambda key: key[0])]
    if not runs:
        return []
    # Of a rejected record the second is not known: it may belong to either edge.
    rejected = [int(one.id) for one in page.rejected if one.id is not None]
    nameless = len(page.rejected) - len(rejected)
    edges = {0, len(runs) - 1}
    return [
        _group(second, ids + rejected, nameless) if place in edges else _group(second, ids)
        for place, (second, ids) in enumerate(runs)
    ]


def _from_edge(edge: Edge | None) -> _Group | None:
    return edge and _Group(edge.second, None, edge.id, edge.id, is_torn=edge.id is None)


def _torn(group: _Group) -> _Group:
    return _Group(group.second, None, None, None, is_torn=True)
