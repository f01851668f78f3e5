"""How a resource is crawled, planned from its state alone."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cliniko_pipeline.cliniko.pagination import Position
from cliniko_pipeline.orchestration.crawl_plans import plan_crawl
from cliniko_pipeline.postgres.crawls import CrawlState

HORIZON = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
CURSOR = datetime(2026, 6, 15, 9, 27, tzinfo=UTC)

WELL = CrawlState(
    resource="patients",
    is_complete=True,
    is_full=True,
    reconciles=False,
    horizon=HORIZON,
    next_page=None,
    total_entries=None,
    records=250,
    is_partial=False,
    cursor=CURSOR,
    needs_full=None,
    doubtful_deletions=0,
)
INTERRUPTED = replace(WELL, is_complete=False, next_page=7, total_entries=1234, cursor=None)
INCREMENTAL_INTERRUPTED = replace(WELL, is_full=False, is_complete=False)


@pytest.mark.parametrize("full", [False, True])
def test_first_crawl_is_full_and_marks_no_deletions(full):
    plan = plan_crawl(None, full=full)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == (True, False, None, None)


@pytest.mark.parametrize("state", [WELL, INCREMENTAL_INTERRUPTED], ids=["well", "interrupted"])
def test_crawl_after_a_full_one_is_incremental(state):
    plan = plan_crawl(state, full=False)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == (False, False, CURSOR, None)


@pytest.mark.parametrize(
    ("state", "full"),
    [
        (WELL, True),
        (INTERRUPTED, True),
        (replace(WELL, needs_full="asked for"), True),
        (INCREMENTAL_INTERRUPTED, True),
        (replace(WELL, needs_full="asked for"), False),
        (replace(WELL, cursor=None), False),
    ],
)
def test_requested_or_needed_full_crawl_starts_at_the_first_page(state, full):
    plan = plan_crawl(state, full=full)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == (True, True, None, None)
    assert full or (state.needs_full or "") in plan.reason


@pytest.mark.parametrize("reconciles", [False, True])
@pytest.mark.parametrize("page", [7, 0])
def test_interrupted_full_crawl_resumes_at_its_checkpoint(reconciles, page):
    plan = plan_crawl(replace(INTERRUPTED, next_page=page, reconciles=reconciles, cursor=CURSOR), full=False)
    assert (plan.is_full, plan.reconciles, plan.changed_since) == (True, reconciles, None)
    assert plan.position == Position(HORIZON, page, 1234)


def test_full_crawl_without_a_checkpoint_starts_again():
    plan = plan_crawl(replace(INTERRUPTED, next_page=None, horizon=None), full=False)
    assert (plan.is_full, plan.position) == (True, None)
