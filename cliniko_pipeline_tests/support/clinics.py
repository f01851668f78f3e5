"""Small clinics on a sandbox in the test's process, and their organizations."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox
from cliniko_pipeline_tests.support.hostile_accounts import individual_appointment, patient

AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)


def small_clinic(name: str) -> Account:
    """Return an account with two patients. Patient 1 has an appointment two weeks before AS_OF."""
    records = {
        "patients": [patient("1", email="one@clinic.example"), patient("2", email="two@clinic.example")],
        "individual_appointments": [individual_appointment("10", "1", "2026-06-01T09:00:00Z")],
    }
    return Account.from_records(name, "au2", f"MS0tbm90LWEtc2VjcmV0-{name}-au2", records)


class Clinics:
    """The clinics of a sandbox, stored as organizations."""

    def __init__(self, sandbox: Sandbox, database: Database, vault: Vault) -> None:
        self.sandbox = sandbox
        self.database = database
        self.vault = vault

    def open(self, names: Iterable[str]) -> None:
        for name in names:
            self.add(name)

    def add(self, name: str, *, api_key: str | None = None) -> Account:
        account = small_clinic(name)
        self.sandbox.add(account)
        credentials = ClinikoCredentials(api_key or account.api_key, None, self.sandbox.base_url(account))
        with self.database.operator() as connection:
            organizations.save(connection, name, f"Clinic {name}", self.vault.encrypt(credentials), validated=False)
            columns = "organization_id, cliniko_patient_id, name"
            connection.exec_driver_sql(f"insert into public.contacts ({columns}) values (%s, '1', 'First')", (name,))
        return account

    def active(self, name: str) -> int:
        return self.count(name, "public.active_patients")

    def count(self, name: str, table: str) -> int:
        with self.database.organization(name) as connection:
            return connection.exec_driver_sql(f"select count(*) from {table}").scalar_one()

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statement that runs as the operator."""
        with self.database.operator() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]

    def run_states(self, name: str) -> list[tuple[str, str | None]]:
        """Return the status and error of each of the organization's runs, the oldest first."""
        with self.database.organization(name) as connection:
            rows = connection.exec_driver_sql("select status, error from cliniko.sync_runs order by started_at")
            return [tuple(row) for row in rows]

    def runs_of_process(self, process: int) -> list[str]:
        """Return the runs for which this process sends heartbeats."""
        with self.database.operator() as connection:
            rows = connection.exec_driver_sql(
                "select run_id from cliniko.run_heartbeats where split_part(process, ' ', 3) = %s", (str(process),)
            )
            return list(rows.scalars())

    def dagster_runs(self, name: str) -> list[str]:
        """Return the states of the organization's runs in Dagster, the oldest first."""
        with self.database.operator() as connection:
            rows = connection.exec_driver_sql(
                "select run.status from dagster.runs as run join dagster.run_tags as tag using (run_id)"
                " where tag.key = 'dagster/partition' and tag.value = %s order by run.id",
                (name,),
            )
            return list(rows.scalars())


@contextmanager
def opened_clinics(environ: dict[str, str]) -> Iterator[Clinics]:
    port = int(environ["CLINIKO_ALLOWED_HOSTS"].rpartition(":")[2])
    database = Database(environ["DATABASE_URL"])
    with running_sandbox([], port=port) as sandbox:
        yield Clinics(sandbox, database, Vault([environ["CREDENTIALS_ENCRYPTION_KEY"]]))
    database.close()
