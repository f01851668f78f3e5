"""Tests of the demo organizations against the independent computation."""

import pytest

from cliniko_pipeline.sandbox.accounts.demo import DemoOrganization, demo_organizations
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest
from cliniko_pipeline_tests.support.synced_organizations import START, demo_contacts, synced_organization

DEMO = demo_organizations(START)


@pytest.mark.parametrize(
    "demo",
    [pytest.param(each, marks=pytest.mark.slow) if each.id == "surf-rehab" else each for each in DEMO],
    ids=lambda demo: demo.id,
)
def test_demo_organization_has_the_right_tables(pipeline: PipelineUnderTest, demo: DemoOrganization) -> None:
    """The database has the contacts of all demo organizations."""
    contacts = [contact for each in DEMO for contact in demo_contacts(each)]
    with synced_organization(pipeline, demo.account, contacts, demo.id) as organization:
        organization.sync()
        organization.assert_right()
        assert len(pipeline.active_patients(demo.id)) >= 5
