"""A pipeline under test, with the real definitions, a real database, and a sandbox over real HTTP.

`python -m cliniko_pipeline_tests.support.pipelines AS_OF ORGANIZATION ...` runs the main job in a separate process. It
uses the Dagster instance in DAGSTER_HOME if that variable is set.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import sqlalchemy as sa

from cliniko_pipeline.cliniko.exchange.throttle import BudgetRegistry
from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.tables import TENANT_TABLES
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline.sync_options import SyncOptions, run_config
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget
from cliniko_pipeline_tests.support.independent import ExpectedMapping

CONTACT_COLUMNS = ("id", "organization_id", "cliniko_patient_id", "name", "first_name", "last_name", "email")

# Columns that depend on the time or order in which rows were written.
BOOKKEEPING = {
    "cliniko.contact_mapping": ("created_at", "updated_at"),
    "public.active_patients": ("id", "created_at", "updated_at"),
    "cliniko.crawls": ("started_at", "completed_at", "horizon", "cursor", "is_full", "reconciles", "records"),
    "cliniko.rejected_records": ("rejected_at", "position"),
}

KEPT = frozenset({"cliniko.table_states"})
"""Tables whose rows depend on the number of syncs."""

Table = list[dict[str, Any]]


class PipelineUnderTest:
    def __init__(self, runtime: Runtime, instance: dg.DagsterInstance) -> None:
        self.runtime = runtime
        self.instance = instance
        self.definitions = build_definitions(runtime=runtime)

    @property
    def database(self):
        return self.runtime.database

    @contextmanager
    def sandbox(self, accounts: Iterable[Account], **options: Any) -> Iterator[Sandbox]:
        """Run a sandbox at the only address that the settings allow."""
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
        present = [column for column in CONTACT_COLUMNS if column in contacts[0]]
        rows = [{column: contact.get(column) for column in present} for contact in contacts]
        columns = ", ".join(present)
        values = ", ".join(f":{column}" for column in present)
        with self.database.operator() as connection:
            connection.execute(sa.text(f"insert into public.contacts ({columns}) values ({values})"), rows)

    def sync(
        self,
        organization_id: str,
        as_of: datetime | None = None,
        *,
        full: bool = False,
        accept_deletions: bool = False,
        accept_unmatched: bool = False,
        log_level: str = "DEBUG",
    ) -> dg.ExecuteInProcessResult:
        """Run the main job as Dagster does. Return the result, even if it is a failure."""
        ensure_partitions(self.instance, [organization_id])
        return self.definitions.resolve_job_def("cliniko_sync").execute_in_process(
            instance=self.instance,
            partition_key=organization_id,
            run_config={
                "loggers": {"console": {"config": {"log_level": log_level}}},
                **run_config(SyncOptions(as_of, full, accept_deletions, accept_unmatched)),
            },
            raise_on_error=False,
        )

    def compare_counts(self, organization_id: str | None) -> dg.ExecuteInProcessResult:
        """Run the job that compares record counts with Cliniko. None means all organizations, as from the UI."""
        tags = {} if organization_id is None else {"dagster/partition": organization_id}
        return self.definitions.resolve_job_def("cliniko_counts").execute_in_process(
            instance=self.instance, tags=tags, raise_on_error=False
        )

    def contact_mapping(self, organization_id: str) -> dict[str, ExpectedMapping]:
        """Return the stored mapping in the form of the independent computation."""
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
        """Return the stored rows by contact id, without bookkeeping columns."""
        rows = self.rows(organization_id, "public.active_patients")
        bookkeeping = {"id", "created_at", "updated_at"}
        return {
            row["contact_id"]: {column: value for column, value in row.items() if column not in bookkeeping}
            for row in rows
        }

    def rows(self, organization_id: str, table: str) -> list[dict[str, Any]]:
        """Return all rows of a tenant table that are visible in the organization context."""
        with self.database.organization(organization_id) as connection:
            return [dict(row) for row in connection.execute(sa.text(f"select * from {table}")).mappings()]

    def tables(self, organization_id: str) -> dict[str, Table]:
        """Return all stored rows of the organization by table, in a reproducible order."""
        return {
            name: sorted(self.rows(organization_id, name), key=repr)
            for name in (table.replace('"', "") for table in TENANT_TABLES)
        }

    def contents(self, organization_id: str) -> dict[str, Table]:
        """Return `tables` without bookkeeping columns, sync runs and KEPT tables."""
        return {
            name: sorted(({c: row[c] for c in row if c not in _bookkeeping(name)} for row in rows), key=repr)
            for name, rows in self.tables(organization_id).items()
            if name not in {"cliniko.sync_runs", *KEPT}
        }

    def materialize(self, organization_id: str, *keys: str, **config: Any) -> dg.ExecuteInProcessResult:
        """Materialize only these assets, as from the UI."""
        ensure_partitions(self.instance, [organization_id])
        job = self.definitions.resolve_job_def("cliniko_sync")
        return job.execute_in_process(
            instance=self.instance,
            partition_key=organization_id,
            asset_selection=[dg.AssetKey.from_user_string(key) for key in keys],
            raise_on_error=False,
            **config,
        )


def _bookkeeping(table: str) -> tuple[str, ...]:
    return BOOKKEEPING.get(table, ("synced_at",))


class SkippedTime:
    """A clock whose sleeps take no time. `skipped` is the sum of the sleeps in seconds."""

    def __init__(self, on_sleep: Callable[[], None] = lambda: None) -> None:
        self.skipped = 0.0
        self._on_sleep = on_sleep

    def clock(self) -> float:
        return time.monotonic() + self.skipped

    def sleep(self, seconds: float) -> None:
        self._on_sleep()
        self.skipped += seconds


@contextmanager
def opened_pipeline(
    environ: Mapping[str, str], *, instance: dg.DagsterInstance | None = None, waits: SkippedTime | None = None
) -> Iterator[PipelineUnderTest]:
    """Open a pipeline, by default on a new instance. With `waits`, the waits of the client take no time."""
    settings = load_settings(environ)
    with ExitStack() as stack:
        if instance is None:
            instance = stack.enter_context(dg.DagsterInstance.ephemeral())
        if waits is None:
            yield PipelineUnderTest(stack.enter_context(open_runtime(settings)), instance)
            return
        runtime = stack.enter_context(open_runtime(settings, sleep=waits.sleep))
        # Real budgets measure real time, so without real sleeps they would retry in a busy loop.
        runtime._budgets = BudgetRegistry(
            lambda _digest: SlidingWindowBudget(settings.requests_per_minute, clock=waits.clock, sleep=waits.sleep)
        )
        yield PipelineUnderTest(runtime, instance)


def errors_of(result: dg.ExecuteInProcessResult) -> list[str]:
    """Return the errors of the failed steps, as the UI shows them."""
    events = result.filter_events(lambda event: event.is_step_failure)
    return [event.step_failure_data.error_display_string for event in events]


def materializations_of(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """Return the metadata values of the materializations by asset."""
    return {
        event.asset_key.to_user_string(): {
            name: value.value for name, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in result.filter_events(lambda event: event.is_step_materialization)
    }


def main() -> int:
    as_of, *organization_ids = sys.argv[1:]
    home = os.environ.get("DAGSTER_HOME")
    failed = 0
    with (
        dg.DagsterInstance.from_config(home) if home else dg.DagsterInstance.ephemeral() as instance,
        opened_pipeline(os.environ, instance=instance, waits=SkippedTime()) as pipeline,
    ):
        for organization_id in organization_ids:
            result = pipeline.sync(organization_id, datetime.fromisoformat(as_of))
            failed += not result.success
            for error in errors_of(result):
                sys.stderr.write(f"{error}\n")
    return failed


def sync_in_a_process(environ: Mapping[str, str], as_of: datetime, *organization_ids: str) -> subprocess.Popen[bytes]:
    """Run the main job for one organization after the other. The exit code is the number of failures."""
    return subprocess.Popen(
        [sys.executable, "-m", "cliniko_pipeline_tests.support.pipelines", as_of.isoformat(), *organization_ids],
        env=os.environ | environ,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


if __name__ == "__main__":
    sys.exit(main())
