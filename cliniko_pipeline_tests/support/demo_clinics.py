"""The demo's clinics on a sandbox in the test's process."""

import sqlalchemy as sa

from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.sandbox.accounts.demo import DemoOrganization
from cliniko_pipeline_tests.support.clinics import Clinics


def add_demo_clinic(clinics: Clinics, demo: DemoOrganization) -> None:
    """Serve the account, and store the organization with its credentials and contacts."""
    clinics.sandbox.add(demo.account)
    credentials = ClinikoCredentials(demo.account.api_key, None, clinics.sandbox.base_url(demo.account))
    with clinics.database.operator() as connection:
        organizations.save(connection, demo.id, demo.name, clinics.vault.encrypt(credentials), validated=False)
        connection.execute(sa.text(sql("demo/save_contact")), demo.contacts)
