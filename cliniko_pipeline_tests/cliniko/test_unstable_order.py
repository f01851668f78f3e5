"""Tests of crawls in which records of the same clock second change their order with each request."""

import random
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.errors import UnexpectedResponseError
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.simulated_lists import PAGE, START, Account, AnswerOrder, crawl


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> Iterator[None]:
    with patch.object(Listing, "page_size", PAGE):
        yield


def account_of(sizes: list[int], seed: int = 0, refused: frozenset[str] = frozenset()) -> Account:
    """Return an account with the given number of records in each of several clock seconds."""
    account = Account(dice=random.Random(seed), refused=refused)
    for second, size in enumerate(sizes, START - len(sizes)):
        for _ in range(size):
            account.add(second, second)
    return account


sizes = st.lists(st.integers(0, 6 * PAGE), min_size=1, max_size=5)
refusals = st.sets(st.sampled_from(["sort:id", "sort:created_at", "filter:archived_at"])).map(frozenset)
interruptions = st.lists(st.booleans(), max_size=8)
answers = st.lists(st.tuples(st.booleans(), st.integers(-8, 8)), max_size=60)
orders = st.none() | st.builds(AnswerOrder, in_flight=st.integers(2, 8), answers=answers.map(tuple))
deletions = st.lists(
    st.lists(st.tuples(st.just("delete"), st.integers(0, 60), st.integers(1, 5)), max_size=2), max_size=20
)
budget = settings(max_examples=examples(60, 500), suppress_health_check=[HealthCheck.too_slow])


@given(sizes, st.integers(0, 9), refusals, interruptions, orders, st.sampled_from([None, 0]))
@budget
def test_unstable_order_loses_no_record(sizes, seed, refused, breaks, order, since):
    account = account_of(sizes, seed, refused)
    outcome = crawl(account, since, [], breaks if order is None else (), order)
    assert outcome.yielded == outcome.at_first


@given(sizes, st.integers(0, 9), deletions, interruptions, orders)
@budget
def test_unstable_order_and_deletions_lose_no_record(sizes, seed, changes, breaks, order):
    account = account_of(sizes, seed, frozenset({"sort:id"}))
    outcome = crawl(account, None, changes, breaks if order is None else (), order)
    assert account.records.keys() <= outcome.yielded


@given(sizes, st.integers(0, 9))
@budget
def test_unfilterable_ids_lose_no_record(sizes, seed):
    account = account_of(sizes, seed, frozenset({"sort:id", "filter:id"}))
    assert crawl(account, None, []).yielded == set(account.records)


@given(
    sizes, st.integers(0, 9), st.lists(st.just([("clock", 0, 1), ("insert", 0, 1)]), max_size=5), interruptions, orders
)
@budget
def test_unfilterable_creation_loses_no_record_of_an_ordered_list(sizes, seed, inserts, breaks, order):
    account = account_of(sizes, seed, frozenset({"filter:created_at"}))
    account.dice = None
    outcome = crawl(account, None, inserts, breaks if order is None else (), order)
    assert outcome.at_first <= outcome.yielded


def test_unfilterable_changes_are_read_with_everything():
    account = account_of([9, 3], refused=frozenset({"filter:updated_at"}))
    assert crawl(account, START - 1, []).yielded == set(account.records)


def test_group_that_cannot_be_isolated_fails_the_crawl():
    account = account_of([40], refused=frozenset({"sort:id", "filter:created_at"}))
    with pytest.raises(UnexpectedResponseError, match="no fixed order, and refuses to filter by created_at"):
        crawl(account, None, [])


def test_requests_for_a_large_import_are_bounded():
    account = account_of([3, 50 * PAGE, 3], refused=frozenset({"sort:id"}))
    outcome = crawl(account, None, [])
    assert outcome.yielded == set(account.records)
    assert account.group_requests <= 5 * 50


@pytest.mark.parametrize("pages_read", range(1, 7))
def test_resumed_crawl_reads_a_group_that_begins_with_a_page_again(pages_read):
    """The checkpoint does not say which records of the group were read, and it may lie behind all of them."""
    for seed in range(20):
        account = account_of([2 * PAGE, 2 * PAGE, PAGE], seed, frozenset({"sort:id"}))
        outcome = crawl(account, None, [], [False] * pages_read + [True])
        assert outcome.yielded == outcome.at_first
