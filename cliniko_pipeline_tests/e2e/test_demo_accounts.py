"""The main job against the independent computation, on the demo data and on hostile data."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from cliniko_pipeline.sandbox.demo import demo_organizations
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of

AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
DEMO = demo_organizations(AS_OF)
RESOURCES = (
    "patients",
    "individual_appointments",
    "group_appointments",
    "attendees",
    "appointment_types",
    "practitioners",
)


@pytest.mark.parametrize("demo", DEMO, ids=lambda demo: demo.id)
def test_the_tables_of_a_demo_organization_equal_the_independent_computation(pipeline: PipelineUnderTest, demo) -> None:
    contacts = [contact | {"id": UUID(contact["id"])} for each in DEMO for contact in each.contacts]
    pipeline.add_contacts(contacts)
    with pipeline.sandbox([demo.account]) as sandbox:
        pipeline.add_organization(demo.id, sandbox, demo.account)
        result = pipeline.sync(demo.id, AS_OF)
    assert result.success, errors_of(result)
    wire = {name: demo.account.wire_records(name, "http://sandbox/v1") for name in RESOURCES}
    mapping = expected_contact_mapping(wire, contacts, demo.id)
    active = expected_active_patients(wire, contacts, demo.id, AS_OF)
    assert pipeline.contact_mapping(demo.id) == mapping
    assert pipeline.active_patients(demo.id) == active
    assert len(active) >= 5
