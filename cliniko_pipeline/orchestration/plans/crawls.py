"""Pure functions that decide whether a crawl is full, resumed or incremental."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cliniko_pipeline.cliniko.crawling.crawl import Checkpoint
from cliniko_pipeline.postgres.writing.crawls import CrawlState


@dataclass(frozen=True)
class CrawlPlan:
    """How to crawl a resource.

    Attributes:
        is_full: whether the crawl reads all records instead of only changed ones.
        reconciles: whether, at the end, stored records are marked as deleted if the crawl did not find them.
        reason: why the crawl is of this kind, for the log.
        changed_since: the cursor of an incremental crawl, which reads what changed since then.
        position: the checkpoint at which a resumed crawl continues.
        refused: the sort and filter fields that Cliniko refused earlier. This crawl does not try them again.
    """

    is_full: bool
    reconciles: bool
    reason: str
    changed_since: datetime | None = None
    position: Checkpoint | None = None
    refused: Sequence[str] = ()


def plan_crawl(state: CrawlState | None, *, full: bool) -> CrawlPlan:
    """Plan the next crawl of a resource. `full` means that a full sync was requested.

    The first crawl does not reconcile, because no records are stored yet.
    """
    if state is None:
        return CrawlPlan(is_full=True, reconciles=False, reason="first crawl")
    if full:
        return CrawlPlan(is_full=True, reconciles=True, reason="full crawl, as requested")
    if state.is_full and not state.is_complete:
        return _resumed(state)
    if state.needs_full is not None:
        return CrawlPlan(is_full=True, reconciles=True, reason=f"full crawl: {state.needs_full}")
    if state.cursor is None:
        return CrawlPlan(is_full=True, reconciles=True, reason="full crawl: there is no cursor")
    reason = f"incremental crawl since {state.cursor.isoformat()}"
    return CrawlPlan(
        is_full=False, reconciles=False, reason=reason, changed_since=state.cursor, refused=state.refused_fields
    )


def _resumed(state: CrawlState) -> CrawlPlan:
    if state.next_page is None:
        return CrawlPlan(
            is_full=True,
            reconciles=state.reconciles,
            reason="full crawl: the last one left no checkpoint",
        )
    position = Checkpoint(state.next_cursor, state.next_page, state.total_entries or 0)
    reason = f"full crawl, resumed at page {state.next_page}"
    return CrawlPlan(
        is_full=True, reconciles=state.reconciles, reason=reason, position=position, refused=state.refused_fields
    )
