"""Syncs in which nothing has changed: what they read of the tables, and when they compute and check all the same."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cliniko_pipeline.orchestration import io_managers
from cliniko_pipeline.orchestration.assets.active_patients import ActivePatientsConfig, active_patients
from cliniko_pipeline.orchestration.assets.contact_mapping import contact_mapping
from cliniko_pipeline.orchestration.checks.claims import UNCHANGED
from cliniko_pipeline.orchestration.values import TableQuery
from cliniko_pipeline.postgres import derivations
from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.tables import WATCHED
from cliniko_pipeline.sandbox.generated import generated_account
from cliniko_pipeline_tests.support.hostile_accounts import contact
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, materializations_of
from cliniko_pipeline_tests.support.synced_organizations import START, SyncedOrganization, synced_organization
from cliniko_pipeline_tests.support.waiting import wait_until

COMPUTED = ("contact_mapping", "active_patients")
FIRST_UNCHANGED = [False, True]
COMPUTED_CHECKS = (
    "every_active_patient_with_a_contact_is_stored_once",
    "no_contact_is_used_twice",
    "unmatched_share_is_below_the_limit",
)
# Texts that only the large computations and counts contain.
LARGE = (
    "cliniko.persons()",
    "cliniko.organization_contacts()",
    'count(*) from "cliniko"',
    "from cliniko.contact_mapping as mapping",
    "appointment.starts_at",
)


@contextmanager
def unchanged_clinic(pipeline: PipelineUnderTest, patients: int, appointments: int) -> Iterator[SyncedOrganization]:
    """Yield a clinic that has been synced twice without a change in between."""
    account = generated_account(patients, appointments, 3, START, 0.1)
    contacts = [contact(n, "clinic", cliniko_patient_id=each) for n, each in enumerate(account.records["patients"])]
    with synced_organization(pipeline, account, [each for n, each in enumerate(contacts) if n % 4]) as clinic:
        sync(clinic)
        assert computed(sync(clinic)) == FIRST_UNCHANGED
        yield clinic


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    with unchanged_clinic(pipeline, 100, 600) as clinic:
        yield clinic


def sync(clinic: SyncedOrganization, *, full: bool = False) -> dg.ExecuteInProcessResult:
    """Sync an hour later."""
    clinic.clock.advance(hours=1)
    return clinic.sync(full=full)


def change(clinic: SyncedOrganization, resource: str, number: int, **changes: Any) -> None:
    record = list(clinic.account.records[resource].values())[number]
    clinic.put(resource, dict(record) | changes, clinic.clock.now + timedelta(minutes=1))


def computed(result: dg.ExecuteInProcessResult) -> list[bool]:
    metadata = materializations_of(result)
    return [metadata[name]["computed_again"] for name in COMPUTED]


def kept(result: dg.ExecuteInProcessResult) -> list[bool]:
    """Return of each check that computes whether it kept its earlier result; all checks must pass."""
    evaluations = result.get_asset_check_evaluations()
    assert all(each.passed for each in evaluations)
    by_name = {each.check_name: each for each in evaluations}
    return [by_name[name].metadata[UNCHANGED].value for name in COMPUTED_CHECKS]


@contextmanager
def recorded_statements(clinic: SyncedOrganization) -> Iterator[list[str]]:
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        found.append(" ".join(statement.split()))

    engine = clinic.pipeline.database._engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


def rows_read(clinic: SyncedOrganization) -> dict[str, int]:
    """Return how many rows of each table were ever read; a session reports that when it has ended."""
    clinic.pipeline.database.close()
    with clinic.pipeline.database.operator() as connection:

        def sessions_have_ended() -> bool:
            connection.execute(sa.text("select pg_stat_clear_snapshot()"))
            others = sa.text(
                "select count(*) from pg_stat_activity where application_name = 'cliniko_pipeline'"
                " and datname = current_database() and pid <> pg_backend_pid()"
            )
            return connection.execute(others).scalar_one() == 0

        wait_until(sessions_have_ended, "a session goes on")
        rows = connection.execute(
            sa.text(
                "select relname, seq_tup_read + coalesce(idx_tup_fetch, 0) as rows_read from pg_stat_user_tables"
                " where schemaname = 'cliniko'"
            )
        )
        return {row.relname: row.rows_read for row in rows}


def test_unchanged_sync_computes_nothing(clinic: SyncedOrganization) -> None:
    """A full sync computes, counts and checks everything."""
    with recorded_statements(clinic) as statements:
        result = sync(clinic)
    assert computed(result) == [False, False]
    assert kept(result) == [True, True, True]
    assert [each for each in statements if any(text in each for text in LARGE)] == []
    assert len(statements) < 185

    with recorded_statements(clinic) as statements:
        result = sync(clinic, full=True)
    assert computed(result) == [True, True]
    assert kept(result) == [False, False, False]
    assert all(any(text in each for each in statements) for text in LARGE)


def test_changed_records_are_computed_checked_and_counted(clinic: SyncedOrganization) -> None:
    change(clinic, "individual_appointments", 3, cancelled_at="2026-06-15T09:00:00Z")
    result = sync(clinic)
    assert computed(result) == [False, True]
    assert kept(result) == [False, True, True]

    change(clinic, "patients", 3, email="new@clinic.example")
    change(clinic, "patients", 0, id="77", created_at="2026-06-15T12:31:00Z")
    result = sync(clinic)
    assert computed(result) == [True, True]
    # The numbers of the mapping come with its materialization.
    assert kept(result) == [False, True, True]
    metadata = materializations_of(result)
    for name in ("patients", "appointments"):
        assert metadata[f"cliniko/{name}"]["dagster/row_count"] == len(clinic.rows(f"cliniko.{name}"))
    assert metadata["cliniko/patients"]["dagster/row_count"] == 101
    assert computed(sync(clinic)) == FIRST_UNCHANGED
    assert computed(sync(clinic)) == [False, False]


@pytest.mark.slow
def test_unchanged_sync_reads_few_rows(pipeline: PipelineUnderTest) -> None:
    with unchanged_clinic(pipeline, 400, 2_500) as clinic:
        with pipeline.database.operator_statement() as connection:
            connection.execute(sa.text("vacuum analyze"))
            # As with a large table: of a small one all rows are read where an index would do.
            name = connection.execute(sa.text("select current_database()")).scalar_one()
            connection.execute(sa.text(f'alter database "{name}" set enable_seqscan = off'))
        pipeline.database.close()
        sync(clinic)
        before = rows_read(clinic)
        sync(clinic)
        found = {name: number - before[name] for name, number in rows_read(clinic).items()}
    # The first few are shown; of the mapping also those that the operator is to look at.
    assert found["appointments"] <= 20
    assert found["patients"] <= 20
    assert found["attendees"] <= 20
    assert found["contact_mapping"] <= 150


def test_tables_that_a_query_reads_are_its_inputs(pipeline: PipelineUnderTest) -> None:
    queries = (contact_mapping(), active_patients(ActivePatientsConfig(), pipeline.runtime))
    assert [isinstance(query, TableQuery) for query in queries] == [True, True]
    for query in queries:
        text = sql(query.query)
        read = derivations.current_attendances(text) if query.through is not None else text
        named = set(re.findall(r"(?:from|join) (cliniko\.\w+) ", f"{read} "))
        # The function of the same schema reads the patients; the names that are shown are looked up each time.
        assert named | {"cliniko.patients"} == {f"{table.schema}.{table.name}" for table in query.inputs}
        assert {table.name for table in query.inputs} <= {table.name for table in WATCHED}
        of_time = set(re.findall(r"(?:from|join) (cliniko\.\w+) ", derivations.from_current_attendances(text)))
        if query.through is not None:
            names = {"cliniko.appointment_types", "cliniko.practitioners"}
            assert of_time - named == {"cliniko.current_attendances", *names}
            assert set(re.findall(r"(?:from|join) (cliniko\.\w+) ", text)) - named <= names


@pytest.mark.slow
def test_assets_materialized_alone_are_computed(clinic: SyncedOrganization) -> None:
    assert computed(sync(clinic)) == [False, False]
    for name in COMPUTED:
        result = clinic.pipeline.materialize(clinic.id, name)
        assert result.success
        assert materializations_of(result)[name]["computed_again"]
    assert computed(sync(clinic)) == [False, True], "alone it was judged by the present, which is later"
    assert computed(sync(clinic)) == [False, False]


@pytest.mark.slow
def test_sync_that_dies_between_its_steps_is_completed_by_the_next(
    clinic: SyncedOrganization, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = clinic.pipeline.active_patients(clinic.id)
    victim = next(iter(before))
    with clinic.pipeline.database.operator() as connection:
        connection.execute(sa.text("delete from public.contacts where id = :id"), {"id": victim})
    real = io_managers.sql

    def fail_at_active_patients(name: str) -> str:
        if name == "active_patients":
            raise KeyboardInterrupt
        return real(name)

    clinic.clock.advance(hours=1)
    with monkeypatch.context() as patch:
        patch.setattr(io_managers, "sql", fail_at_active_patients)
        clinic.fail()
    assert clinic.pipeline.active_patients(clinic.id) == before
    assert victim not in {row["contact_id"] for row in clinic.rows("cliniko.contact_mapping")}
    assert computed(sync(clinic)) == [False, True]
    assert victim not in clinic.pipeline.active_patients(clinic.id)
    assert computed(sync(clinic)) == FIRST_UNCHANGED
    assert computed(sync(clinic)) == [False, False]
