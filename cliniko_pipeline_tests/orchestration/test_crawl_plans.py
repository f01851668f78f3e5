"""Which way a resource is read, decided from its state alone."""

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
BROKEN_OFF = replace(WELL, is_complete=False, next_page=7, total_entries=1234, cursor=None)


@pytest.mark.parametrize("full", [False, True])
def test_what_was_never_read_is_read_whole_and_nothing_can_have_vanished_from_it(full):
    plan = plan_crawl(None, full=full)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == (True, False, None, None)


def test_after_a_whole_reading_only_changes_are_read():
    plan = plan_crawl(WELL, full=False)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == (False, False, CURSOR, None)


@pytest.mark.parametrize(
    "state",
    [WELL, BROKEN_OFF, replace(WELL, needs_full="asked for"), replace(WELL, is_full=False, is_complete=False)],
    ids=["well", "broken off", "due", "changes broken off"],
)
def test_a_full_reading_that_is_asked_for_begins_from_the_beginning(state):
    plan = plan_crawl(state, full=True)
    assert (plan.is_full, plan.reconciles, plan.changed_since, plan.position) == (True, True, None, None)


@pytest.mark.parametrize("reconciles", [False, True])
@pytest.mark.parametrize("page", [7, 1, 0])
def test_a_full_reading_that_broke_off_goes_on_where_it_was_and_still_marks_what_vanished(reconciles, page):
    plan = plan_crawl(replace(BROKEN_OFF, next_page=page, reconciles=reconciles, cursor=CURSOR), full=False)
    assert (plan.is_full, plan.reconciles, plan.changed_since) == (True, reconciles, None)
    assert plan.position == Position(HORIZON, page, 1234)


def test_a_full_reading_that_broke_off_before_its_first_batch_begins_again():
    plan = plan_crawl(replace(BROKEN_OFF, next_page=None, horizon=None), full=False)
    assert (plan.is_full, plan.position) == (True, None)


def test_a_reading_of_changes_that_broke_off_begins_again_from_the_same_cursor():
    plan = plan_crawl(replace(WELL, is_full=False, is_complete=False), full=False)
    assert (plan.is_full, plan.changed_since) == (False, CURSOR)


def test_where_changes_would_not_do_everything_is_read_and_the_log_says_why():
    plan = plan_crawl(replace(WELL, needs_full="Cliniko's clock was set back"), full=False)
    assert (plan.is_full, plan.reconciles) == (True, True)
    assert "Cliniko's clock was set back" in plan.reason


def test_without_a_cursor_everything_is_read():
    plan = plan_crawl(replace(WELL, cursor=None), full=False)
    assert (plan.is_full, plan.reconciles) == (True, True)
