"""Which way to read a resource: whole, on from where it broke off, or what changed. Pure: decides, does nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cliniko_pipeline.cliniko.crawling.pagination import Position
from cliniko_pipeline.postgres.writing.crawls import CrawlState


@dataclass(frozen=True)
class CrawlPlan:
    """How to read a resource.

    Attributes:
        is_full: whether everything is read, or what changed.
        reconciles: whether what it does not see is then marked as deleted.
        reason: the choice in words, for the log.
        changed_since: the cursor of an incremental reading.
        position: where a full one that broke off goes on.
        refused: what is not asked for, since Cliniko refused it; a full reading that begins asks for everything again.
    """

    is_full: bool
    reconciles: bool
    reason: str
    changed_since: datetime | None = None
    position: Position | None = None
    refused: Sequence[str] = ()


def plan_crawl(state: CrawlState | None, *, full: bool) -> CrawlPlan:
    """Decides from the resource's state; `full`: the operator asked to begin from the beginning.

    The first reading reconciles nothing, for there is nothing it could miss.
    """
    if state is None:
        return CrawlPlan(is_full=True, reconciles=False, reason="read for the first time")
    if full:
        return CrawlPlan(is_full=True, reconciles=True, reason="read whole, as asked for")
    if state.is_full and not state.is_complete:
        return _resumed(state)
    if state.needs_full is not None:
        return CrawlPlan(is_full=True, reconciles=True, reason=f"read whole: {state.needs_full}")
    if state.cursor is None:
        return CrawlPlan(is_full=True, reconciles=True, reason="read whole: no cursor is known")
    reason = f"read what changed since {state.cursor.isoformat()}"
    return CrawlPlan(
        is_full=False, reconciles=False, reason=reason, changed_since=state.cursor, refused=state.refused_fields
    )


def _resumed(state: CrawlState) -> CrawlPlan:
    if state.next_page is None:
        return CrawlPlan(is_full=True, reconciles=state.reconciles, reason="read whole; the last reading broke off")
    position = Position(state.horizon, state.next_page, state.total_entries or 0)
    reason = f"the reading that broke off goes on at page {state.next_page}"
    return CrawlPlan(
        is_full=True, reconciles=state.reconciles, reason=reason, position=position, refused=state.refused_fields
    )
