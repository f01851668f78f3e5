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


@pytest.mark.parametrize("full", [False, True])
def test_first_crawl_is_full_and_marks_no_deletions(full):
    plan = plan_crawl(None, full=full)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == (True, False, None, None)


def test_crawl_after_a_full_one_is_incremental():
    plan = plan_crawl(WELL, full=False)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == (False, False, CURSOR, None)


@pytest.mark.parametrize(
    "state",
    [WELL, INTERRUPTED, replace(WELL, needs_full="asked for"), replace(WELL, is_full=False, is_complete=False)],
    ids=["well", "interrupted", "due", "incremental interrupted"],
)
def test_requested_full_crawl_starts_at_the_first_page(state):
    plan = plan_crawl(state, full=True)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == (True, True, None, None)


@pytest.mark.parametrize("reconciles", [False, True])
@pytest.mark.parametrize("page", [7, 0])
def test_interrupted_full_crawl_resumes_at_its_checkpoint(reconciles, page):
    plan = plan_crawl(replace(INTERRUPTED, next_page=page, reconciles=reconciles, cursor=CURSOR), full=False)
    assert (plan.is_full, plan.reconciles, plan.changed_since) == (True, reconciles, None)
    assert plan.position == Position(HORIZON, page, 1234)


def test_full_crawl_without_a_checkpoint_starts_again():
    plan = plan_crawl(replace(INTERRUPTED, next_page=None, horizon=None), full=False)
    assert (plan.is_full, plan.position) == (True, None)


def test_interrupted_incremental_crawl_keeps_its_cursor():
    plan = plan_crawl(replace(WELL, is_full=False, is_complete=False), full=False)
    assert (plan.is_full, plan.changed_since) == (False, CURSOR)


def test_needed_full_crawl_has_its_reason():
    plan = plan_crawl(replace(WELL, needs_full="Cliniko's clock was set back"), full=False)
    assert (plan.is_full, plan.reconciles) == (True, True)
    assert "Cliniko's clock was set back" in plan.reason


def test_crawl_without_a_cursor_is_full():
    plan = plan_crawl(replace(WELL, cursor=None), full=False)
    assert (plan.is_full, plan.reconciles) == (True, True)
