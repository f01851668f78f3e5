"""Tests of syncs of accounts with imports. Records of the same clock second change their order with each request."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from cliniko_pipeline.sandbox.faults import Faults, RefusedField
from cliniko_pipeline_tests.support.hostile_accounts import individual_appointment
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest
from cliniko_pipeline_tests.support.synced_organizations import (
    START,
    SyncedOrganization,
    cliniko_text,
    synced_numbers,
)

IMPORTED = cliniko_text(START - timedelta(days=90))
TIMES = {"created_at": IMPORTED, "updated_at": IMPORTED}


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    """Yield an account with 450 patients and 450 appointments, all imported in the same clock second."""
    with synced_numbers(pipeline, 450, cliniko_text(START - timedelta(days=3)), **TIMES) as organization:
        yield organization


SORT_BY_ID = RefusedField("id", "sort")


@pytest.mark.parametrize(
    "refused",
    [
        (),
        (SORT_BY_ID,),
        pytest.param((RefusedField("id", "sort", silently=True),), marks=pytest.mark.slow),
        pytest.param((SORT_BY_ID, RefusedField("id", "filter")), marks=pytest.mark.slow),
        pytest.param((RefusedField("updated_at", "filter"),), marks=pytest.mark.slow),
    ],
    ids=["accepted", "refused", "ignored", "ids not filterable", "changes not filterable"],
)
def test_imports_are_synced_exactly(clinic: SyncedOrganization, refused: tuple[RefusedField, ...]) -> None:
    clinic.sandbox.faults = Faults(refused_fields=refused)
    clinic.sync()
    clinic.assert_right()
    assert len(clinic.pipeline.active_patients(clinic.id)) == 450

    clinic.clock.advance(hours=1)
    for number in range(10_000, 10_240):
        record = clinic.account.get("individual_appointments", number)
        assert record is not None
        clinic.put("individual_appointments", record | {"cancelled_at": cliniko_text(clinic.clock.now)})
    clinic.clock.advance(hours=1)
    clinic.sync()
    clinic.assert_right()

    clinic.account.delete("individual_appointments", "10300")
    clinic.put("individual_appointments", individual_appointment("20000", "1000", cliniko_text(START), **TIMES))
    clinic.clock.advance(hours=1)
    clinic.sync(full=True)
    clinic.assert_right()


def test_order_that_cannot_be_made_up_for_fails_the_sync(clinic: SyncedOrganization) -> None:
    clinic.sync()
    tables = clinic.pipeline.contents(clinic.id)
    clinic.sandbox.faults = Faults(refused_fields=(SORT_BY_ID, RefusedField("created_at", "filter")))
    clinic.clock.advance(hours=1)
    message = clinic.fail(full=True)
    assert "patients: Cliniko returns records created in the same second in no fixed order, and refuses" in message
    after = clinic.pipeline.contents(clinic.id)
    unchanged = ("cliniko.patients", "cliniko.appointments", "public.active_patients")
    assert {name: after[name] for name in unchanged} == {name: tables[name] for name in unchanged}
