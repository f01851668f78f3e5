"""A pipeline to be tested: the real definitions on a real database, reading a sandbox over real HTTP."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import dagster as dg
import sqlalchemy as sa

from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.independent import ExpectedMapping

CONTACT_COLUMNS = ("id", "organization_id", "cliniko_patient_id", "name", "first_name", "last_name", "email")


class PipelineUnderTest:
    def __init__(self, runtime: Runtime, instance: dg.DagsterInstance) -> None:
        self.runtime = runtime
        self.instance = instance
        self._definitions = build_definitions(runtime=runtime)

    @property
    def database(self):
        return self.runtime.database

    @contextmanager
    def sandbox(self, accounts: Iterable[Account], **options: Any) -> Iterator[Sandbox]:
        """A sandbox at the address that the settings allow."""
        (host,) = self.runtime.settings.allowed_hosts
        with running_sandbox(accounts, port=int(host.rpartition(":")[2]), **options) as sandbox:
            yield sandbox

    def add_organization(self, organization_id: str, sandbox: Sandbox, account: Account) -> None:
        credentials = ClinikoCredentials(account.api_key, None, sandbox.base_url(account))
        with self.database.operator() as connection:
            organizations.save(
                connection,
                organization_id,
                f"Clinic {organization_id}",
                self.runtime.vault.encrypt(credentials),
                validated=False,
            )

    def add_contacts(self, contacts: Sequence[Mapping[str, Any]]) -> None:
        if not contacts:
            return
        rows = [{column: contact.get(column) for column in CONTACT_COLUMNS} for contact in contacts]
        columns = ", ".join(CONTACT_COLUMNS)
        values = ", ".join(f":{column}" for column in CONTACT_COLUMNS)
        with self.database.operator() as connection:
            connection.execute(sa.text(f"insert into public.contacts ({columns}) values ({values})"), rows)

    def sync(self, organization_id: str, as_of: datetime | None = None) -> dg.ExecuteInProcessResult:
        """The main job, as Dagster runs it; a failure is in the result, not raised."""
        ensure_partitions(self.instance, [organization_id])
        config = {} if as_of is None else {"ops": {"active_patients": {"config": {"as_of": as_of.isoformat()}}}}
        return self._definitions.resolve_job_def("cliniko_sync").execute_in_process(
            instance=self.instance, partition_key=organization_id, run_config=config, raise_on_error=False
        )

    def contact_mapping(self, organization_id: str) -> dict[str, ExpectedMapping]:
        """The stored mapping in the form of the independent computation, which says of a match only how it was made."""
        rows = self.rows(organization_id, "cliniko.contact_mapping")
        return {
            row["patient_id"]: ExpectedMapping(
                row["status"],
                row["contact_id"],
                row["method"] if row["status"] == "matched" else None,
                row["candidate_count"],
            )
            for row in rows
        }

    def active_patients(self, organization_id: str) -> dict[UUID, dict[str, Any]]:
        """The stored rows by contact, without what says when and in which order they were written."""
        rows = self.rows(organization_id, "public.active_patients")
        bookkeeping = {"id", "created_at", "updated_at"}
        return {
            row["contact_id"]: {column: value for column, value in row.items() if column not in bookkeeping}
            for row in rows
        }

    def rows(self, organization_id: str, table: str) -> list[dict[str, Any]]:
        """All rows of a tenant table that the organization's context shows."""
        with self.database.organization(organization_id) as connection:
            return [dict(row) for row in connection.execute(sa.text(f"select * from {table}")).mappings()]


@contextmanager
def opened_pipeline(environ: Mapping[str, str]) -> Iterator[PipelineUnderTest]:
    with open_runtime(load_settings(environ)) as runtime, dg.DagsterInstance.ephemeral() as instance:
        yield PipelineUnderTest(runtime, instance)


def errors_of(result: dg.ExecuteInProcessResult) -> list[str]:
    """What the failed steps of a run say, as the UI shows it."""
    events = result.filter_events(lambda event: event.is_step_failure)
    return [event.step_failure_data.error_display_string for event in events]
