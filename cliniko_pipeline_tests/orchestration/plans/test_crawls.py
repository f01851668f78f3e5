"""Tests of the plan of a crawl, which depends only on the state of the resource."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cliniko_pipeline.cliniko.crawling.crawl import Checkpoint
from cliniko_pipeline.orchestration.plans.crawls import plan_crawl
from cliniko_pipeline.postgres.writing.crawls import CrawlState

HORIZON = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
CURSOR = datetime(2026, 6, 15, 9, 27, tzinfo=UTC)

WELL = CrawlState(
    resource="patients",
    is_complete=True,
    is_full=True,
    reconciles=False,
    next_cursor=HORIZON,
    next_page=None,
    total_entries=None,
    records=250,
    is_partial=False,
    cursor=CURSOR,
    needs_full=None,
    doubtful_deletions=0,
    refused_fields=["sort id"],
)
INTERRUPTED = replace(WELL, is_complete=False, next_page=7, total_entries=1234, cursor=None)
INCREMENTAL_INTERRUPTED = replace(WELL, is_full=False, is_complete=False)


FIRST_PAGE = Checkpoint(HORIZON, 0, 1234)
NEEDED = replace(WELL, needs_full="Cliniko's clock was set back")
FIRST = (True, False, None, None)
WHOLE = (True, True, None, None)
CHANGES = (False, False, CURSOR, None)


@pytest.mark.parametrize(
    ("state", "full", "planned"),
    [
        (None, False, FIRST),
        (None, True, FIRST),
        (WELL, False, CHANGES),
        (INCREMENTAL_INTERRUPTED, False, CHANGES),
        (WELL, True, WHOLE),
        (INTERRUPTED, True, WHOLE),
        (INCREMENTAL_INTERRUPTED, True, WHOLE),
        (NEEDED, False, WHOLE),
        (replace(WELL, cursor=None), False, WHOLE),
        (INTERRUPTED, False, (True, False, None, Checkpoint(HORIZON, 7, 1234))),
        (replace(INTERRUPTED, next_page=0, reconciles=True, cursor=CURSOR), False, (True, True, None, FIRST_PAGE)),
        (replace(INTERRUPTED, next_page=None, next_cursor=None), False, FIRST),
    ],
)
def test_crawl_follows_from_the_state(state: CrawlState | None, full: bool, planned: tuple[object, ...]) -> None:
    """An interrupted full crawl resumes at its checkpoint unless a full sync is requested."""
    plan = plan_crawl(state, full=full)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == planned
    goes_on = plan.changed_since is not None or plan.position is not None
    assert list(plan.refused) == (["sort id"] if goes_on else []), "a full crawl asks again"


def test_needed_full_crawl_has_its_reason() -> None:
    assert "Cliniko's clock was set back" in plan_crawl(NEEDED, full=False).reason
