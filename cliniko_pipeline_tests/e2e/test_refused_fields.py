"""Tests of syncs of accounts whose lists cannot be sorted or filtered by some fields."""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest

from cliniko_pipeline.sandbox.faults import BrokenPage, Faults, RefusedField
from cliniko_pipeline_tests.support.page_by_page import small_pages
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest
from cliniko_pipeline_tests.support.synced_organizations import (
    START,
    SyncedOrganization,
    cliniko_text,
    synced_numbers,
)

IMPORTED = cliniko_text(START - timedelta(days=90))


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    starts = cliniko_text(START - timedelta(days=3))
    with synced_numbers(pipeline, 450, starts, created_at=IMPORTED, updated_at=IMPORTED) as organization:
        yield organization


def refused_requests(clinic: SyncedOrganization, *, full: bool = False) -> int:
    """Sync. Return the number of requests that Cliniko refused."""
    clinic.clock.advance(hours=1)
    clinic.sandbox.counters.clear()
    clinic.sync(full=full)
    clinic.assert_right()
    return clinic.sandbox.counters.requests(status=400)


def test_refused_field_is_remembered_until_a_full_sync(clinic: SyncedOrganization) -> None:
    by_id = RefusedField("id", "sort", resource="patients")
    by_change = RefusedField("updated_at", "filter", resource="patients")
    clinic.sandbox.faults = Faults(refused_fields=(by_id, by_change))
    assert refused_requests(clinic) == 1
    assert refused_requests(clinic) == 1
    assert refused_requests(clinic) == 0
    assert "Cliniko refuses to sort patients by id: records created in the same second" in clinic.problems()
    assert "Cliniko refuses to filter patients by updated_at: every sync reads the list in full." in clinic.problems()
    assert clinic.pipeline.compare_counts(clinic.id).success
    assert clinic.sandbox.counters.requests(status=400) == 0

    assert refused_requests(clinic, full=True) == 1
    clinic.sandbox.faults = Faults()
    assert refused_requests(clinic) == 0
    assert "Cliniko refuses to sort patients by id" in clinic.problems()
    assert refused_requests(clinic, full=True) == 0
    assert "Cliniko refuses" not in clinic.problems()


@pytest.mark.parametrize("refused_first", [True, False])
def test_crawl_without_bounds_is_resumed(clinic: SyncedOrganization, refused_first: bool) -> None:
    """Many records have the same creation time, so Cliniko cannot be asked for those that were not read yet."""
    refused = partial(Faults, refused_fields=(RefusedField("created_at", "filter"),))
    broken = (BrokenPage("patients", 2, status=404),)
    clinic.sandbox.faults = refused(broken_pages=broken) if refused_first else Faults(broken_pages=broken)
    with small_pages(100):  # one page in flight, so that no other page is lost with the page that fails
        assert "patients, page 2, answer 404" in clinic.fail()
    assert {row["resource"]: row["next_page"] for row in clinic.rows("cliniko.crawls")}["patients"] == 2
    assert clinic.rows("public.active_patients") == []

    clinic.sandbox.faults = refused()
    clinic.clock.advance(hours=1)
    clinic.sync()
    clinic.assert_right()
    assert len(clinic.pipeline.active_patients(clinic.id)) == 450
